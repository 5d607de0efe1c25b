//! Frames to be sent that lie in several pieces, whatever the model of the card.
//!
//! A piece is bytes that are copied, or a place in the guest's own RAM. Models that were granted frames in pieces name such
//! places to their device ([`super::venet`], [`super::virtio::net`]); all others put a frame together first.
//!
//! The danger: lengths and places are a user's. Each is checked here before memory is touched, once, for every model.

use crate::error::{Error, Result};
use crate::guest::nic::{ETHERNET_HEADER, Stage};
use crate::net::grant::Grant;
use crate::shm::layout::RAM_HEADER_BYTES;
use crate::shm::region::Ram;

/// One piece of a frame to be sent.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Bytes that are copied into the device's memory.
    Bytes(&'a [u8]),
    /// Bytes of the guest's RAM, sent from there: not to be changed until the host has returned the frame.
    Place {
        /// Byte offset in the RAM.
        offset: u32,
        /// How many.
        length: u32,
    },
}

impl Part<'_> {
    pub(super) const fn length(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Place { length, .. } => *length as usize,
        }
    }

    pub(super) const fn is_copied(&self) -> bool {
        matches!(self, Self::Bytes(_))
    }

    /// Where its bytes are.
    pub(super) fn start(&self, ram: &Ram) -> Result<*const u8> {
        match *self {
            Self::Bytes(bytes) => Ok(bytes.as_ptr()),
            Self::Place { offset, length } => Ok(ram.at(offset, length as usize)?.as_ptr().cast_const()),
        }
    }
}

/// Refuses what is no frame of a card whose plain frames are at most `limit` bytes: all bytes of one that is.
///
/// # Errors
///
/// [`Error::Usage`]: no frame has this length here, a place is outside the RAM, or requests were not granted.
pub(super) fn check(parts: &[Part<'_>], has_request: bool, grant: &Grant, limit: u32, ram: &Ram) -> Result<usize> {
    let length = parts.iter().map(Part::length).sum::<usize>();
    let limit = if has_request { grant.transmit_limit(limit) } else { limit };
    if !(ETHERNET_HEADER as usize..=limit as usize).contains(&length) {
        let message = format!("a frame here is {ETHERNET_HEADER} to {limit} bytes, header included; got {length}");
        return Err(Error::Usage(message));
    }
    if has_request && grant.takes.is_empty() {
        return Err(Error::Usage("the host granted this device no requests; send whole frames".to_owned()));
    }
    for part in parts {
        if let Part::Place { offset, length } = *part {
            if offset < RAM_HEADER_BYTES {
                return Err(Error::Usage(format!("byte {offset} of the RAM belongs to its header, not to a frame")));
            }
            ram.at(offset, length as usize).map_err(|fault| Error::Usage(fault.to_string()))?;
        }
    }
    Ok(length)
}

/// Stages a frame as one that lies together, for a card that was granted nothing. `false`: no room now.
///
/// # Errors
///
/// As [`check`] and [`Stage::stage_with`].
pub(super) fn stage_together(
    stage: &mut impl Stage,
    has_request: bool,
    parts: &[Part<'_>],
    limit: u32,
    ram: &Ram,
) -> Result<bool> {
    let length = check(parts, has_request, &Grant::NOTHING, limit, ram)?;
    let mut copied = Ok(());
    let is_staged = stage.stage_with(length, |room| copied = join(parts, ram, room))?;
    copied.map(|()| is_staged)
}

/// Copies all pieces into `room`, which is as long as they are together.
fn join(parts: &[Part<'_>], ram: &Ram, room: &mut [u8]) -> Result<()> {
    let mut place = room.as_mut_ptr();
    for part in parts {
        // SAFETY: the pieces are as long together as the room, which is the card's own. What lies in RAM may be anywhere there.
        unsafe { part.start(ram)?.copy_to(place, part.length()) };
        place = place.wrapping_add(part.length());
    }
    Ok(())
}

/// Why frames of a device cannot be lent as they lie.
#[cold]
pub(super) fn no_views() -> Error {
    Error::Usage(
        "a frame of this device may lie in several buffers, or have a request: receive copies instead of views"
            .to_owned(),
    )
}
