//! Frames in several descriptors and frames with requests, of a driver that asked for them.
//!
//! ```text
//!   TX   header, bytes ─▶ the buffer of a descriptor ─NEXT▶ the next one's buffer ─NEXT▶ guest RAM, where it lies ─▶ …
//!   RX   header: num_buffers ─▶ the first buffer's bytes, then all of as many more ─▶ one frame, in memory of our own
//! ```
//!
//! A chain takes descriptors that are free; they have their own buffers back, described as before, when its head returns. Which
//! descriptors those are is noted where no device can write. What lies in guest RAM is named there, which is sending without a
//! copy of the guest's own.
//!
//! The danger: the device may write any header and any used entry. A header is copied once, and its number of buffers, their
//! lengths, and what it asks for are compared with what is there, with what was posted, and with what was agreed on.
//! Source: virtio 1.2 §5.1.6.2 (transmission), §5.1.6.3 and §5.1.6.4 (reception, mergeable buffers).

use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_NEXT;

use super::{HEADER, Lent, Receiver, Sender};
use crate::error::{Fault, Result};
use crate::guest::pieces::{self, Part};
use crate::net::frame::FRAME_BYTES_MAX;
use crate::net::grant::Grant;
use crate::net::offload::{Features, NO_REQUEST, OFFLOAD_HEADER_BYTES};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;

/// One descriptor of a chain that is being made.
#[derive(Clone, Copy, Debug)]
struct Link {
    id: u16,
    address: u64,
    length: u32,
    /// Bytes that its own buffer has room for still; none of one that names guest RAM.
    room: u32,
}

impl Sender {
    pub(crate) const fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Stages one frame of several pieces, `request` with it. `false`: there is no room now, nothing happened.
    ///
    /// # Errors
    ///
    /// As [`crate::guest::nic::Sender::stage_long`].
    pub(crate) fn stage_long(
        &mut self,
        request: Option<&[u8; OFFLOAD_HEADER_BYTES]>,
        parts: &[Part<'_>],
    ) -> Result<bool> {
        let ram = &self.buffers.ram.clone();
        let length = pieces::check(parts, request.is_some(), &self.grant, self.limit, ram)?;
        let is_together = !self.grant.is_scattered || self.links_for(parts, false) > self.ring.size.into();
        // Together it takes half of the descriptors at most: that is how large their buffers are.
        let needed = self.links_for(parts, is_together);
        while self.free.len() < needed {
            if !self.reclaim()? {
                return Ok(false);
            }
        }
        let mut chain = Vec::with_capacity(needed);
        chain.extend(self.own_link(HEADER));
        for part in parts {
            match *part {
                Part::Place { length: 0, .. } => {}
                Part::Place { offset, length } if !is_together => {
                    chain.extend(self.free.pop().map(|id| Link { id, address: offset.into(), length, room: 0 }));
                }
                _ => self.copy(part.start(ram)?, part.length() as u32, &mut chain),
            }
        }
        self.put_chain(&chain, request.unwrap_or(&NO_REQUEST));
        self.totals.frames += 1;
        self.totals.bytes += length as u64;
        Ok(true)
    }

    /// How many descriptors a frame takes, whose first one has room behind the header.
    fn links_for(&self, parts: &[Part<'_>], is_together: bool) -> usize {
        let mut count = 1;
        let mut left = self.buffers.room as usize;
        for part in parts {
            let length = part.length();
            if !is_together && !part.is_copied() {
                count += usize::from(length != 0);
                left = if length == 0 { left } else { 0 };
            } else if let Some(rest) = length.checked_sub(left + 1) {
                let room = self.buffers.room as usize;
                let more = rest / room + 1;
                count += more;
                left = left + more * room - length;
            } else {
                left -= length;
            }
        }
        count
    }

    /// A descriptor with its own buffer, `lead` bytes of which come before its frame. None: none is free.
    fn own_link(&mut self, lead: u32) -> Option<Link> {
        let id = self.free.pop()?;
        let address = u64::from(self.buffers.offset(id) - lead);
        Some(Link { id, address, length: lead, room: self.buffers.room })
    }

    /// Copies bytes to the end of a chain, into buffers of its own.
    fn copy(&mut self, mut from: *const u8, mut length: u32, chain: &mut Vec<Link>) {
        while length != 0 {
            if chain.last().is_none_or(|link| link.room == 0) {
                chain.extend(self.own_link(0));
            }
            let Some(link) = chain.last_mut().filter(|link| link.room != 0) else { return };
            let part = length.min(link.room);
            let filled = self.buffers.room - link.room;
            // SAFETY: so much room is left in the buffer, which is ours until the device was shown it; what is copied may lie
            // anywhere in the guest's RAM.
            unsafe { from.copy_to(self.buffers.frame(link.id).add(filled as usize), part as usize) };
            link.room -= part;
            link.length += part;
            length -= part;
            from = from.wrapping_add(part as usize);
        }
    }

    /// Describes a chain and puts it at the end of what is available.
    fn put_chain(&mut self, chain: &[Link], request: &[u8; OFFLOAD_HEADER_BYTES]) {
        let Some(head) = chain.first().map(|link| link.id) else { return };
        for (number, &Link { id, address, length, .. }) in chain.iter().enumerate() {
            let next = chain.get(number + 1).map(|link| link.id);
            let flags = if next.is_some() { NEXT } else { 0 };
            self.ring.describe(id, address, length, flags, next.unwrap_or(0));
            self.chained[usize::from(id)] = next;
        }
        // SAFETY: the header's bytes before a frame that lies in our buffers; the last two of them stay zero.
        unsafe {
            let header = self.buffers.frame(head).sub(HEADER as usize);
            header.copy_from_nonoverlapping(request.as_ptr(), OFFLOAD_HEADER_BYTES);
        }
        self.ring.put(head);
        self.lent[usize::from(head)] = Lent::Long;
    }

    /// Takes back the descriptors of a chain whose head returned.
    #[cold]
    pub(super) fn unchain(&mut self, head: u16) {
        let mut next = Some(head);
        while let Some(id) = next {
            next = self.chained[usize::from(id)].take();
            self.restore(id);
            self.free.push(id);
        }
    }
}

/// How frames are received that are not one plain frame in one buffer.
#[derive(Debug)]
pub(super) struct Merging {
    /// What the device may leave to us.
    gives: Features,
    /// Frames may fill several buffers.
    is_merged: bool,
    /// Where those are put together; empty: neither was agreed on.
    frame: Vec<u8>,
    /// Buffers of the frame in hand.
    taken: Vec<u16>,
}

impl Merging {
    pub(super) fn new(grant: &Grant) -> Self {
        let is_on = grant.is_merged || !grant.gives.is_empty();
        let frame = vec![0; if is_on { FRAME_BYTES_MAX as usize } else { 0 }];
        Self { gives: grant.gives, is_merged: grant.is_merged, frame, taken: Vec::new() }
    }

    /// Headers are to be looked at.
    #[inline]
    pub(super) const fn is_on(&self) -> bool {
        !self.frame.is_empty()
    }
}

impl Receiver {
    /// As [`Self::receive`], with the header of each frame looked at.
    pub(super) fn receive_merging(
        &mut self,
        max: u32,
        mut each: impl FnMut(&[u8], &[u8; OFFLOAD_HEADER_BYTES]),
    ) -> Result<u32> {
        let mut ready = self.ring.ready(self.posted)?;
        let mut frames = 0;
        let mut broken = Ok(());
        while ready != 0 && frames < max {
            match self.receive_one(&mut ready, &mut each) {
                Ok(is_frame) => frames += u32::from(is_frame),
                Err(fault) => {
                    broken = Err(fault.into());
                    break;
                }
            }
        }
        self.totals.frames += u64::from(frames);
        self.announce()?;
        broken.map(|()| frames)
    }

    /// Hands over the next frame, which is the first of `ready` used buffers or takes more of them. `false`: it was an empty
    /// buffer.
    fn receive_one(
        &mut self,
        ready: &mut u16,
        each: &mut impl FnMut(&[u8], &[u8; OFFLOAD_HEADER_BYTES]),
    ) -> std::result::Result<bool, Fault> {
        let (id, length) = self.next()?;
        *ready -= 1;
        let (asked, buffers) = self.header(id);
        if !self.merging.gives.covers(&asked) {
            return Err(Fault::UnknownFlags { flags: asked[0] | asked[1] });
        }
        if buffers == 1 {
            if length != 0 {
                // SAFETY: within the buffer, which the device gave back and which is not posted; see `receive`.
                each(unsafe { std::slice::from_raw_parts(self.buffers.frame(id), length as usize) }, &asked);
                self.totals.bytes += u64::from(length);
            }
            self.post(id);
            return Ok(length != 0);
        }
        // All buffers of a frame become used at once; none at all is as wrong as too many.
        let more = buffers.wrapping_sub(1);
        if more > *ready {
            return Err(Fault::ChainUnfinished { pieces: u32::from(*ready) + 1 });
        }
        let mut end = self.append(id, 0, 0, length)?;
        for _ in 0..more {
            let (id, written) = self.used()?;
            *ready -= 1;
            // There is no header in front of what goes on.
            end = self.append(id, HEADER, end, written)?;
        }
        while let Some(id) = self.merging.taken.pop() {
            self.post(id);
        }
        each(&self.merging.frame[..end], &asked);
        self.totals.bytes += end as u64;
        Ok(true)
    }

    /// A copy of a buffer's header: what is asked for, and how many buffers the frame takes.
    fn header(&self, id: u16) -> ([u8; OFFLOAD_HEADER_BYTES], u16) {
        // SAFETY: the header's bytes before a frame that lies in our buffers; one copy, whatever the device writes meanwhile.
        let header =
            unsafe { self.buffers.frame(id).sub(HEADER as usize).cast::<[u8; HEADER as usize]>().read_volatile() };
        let [asked @ .., low, high] = header;
        (asked, if self.merging.is_merged { u16::from_le_bytes([low, high]) } else { 1 })
    }

    /// Puts `length` bytes of a buffer, which begin `lead` bytes before where frames do, behind the first `end` ones of a frame
    /// that is put together, to be posted again with it: where that frame ends now.
    fn append(&mut self, id: u16, lead: u32, end: usize, length: u32) -> std::result::Result<usize, Fault> {
        let length = length as usize;
        let too_long = Fault::TooLong { length: (end + length) as u32, limit: FRAME_BYTES_MAX };
        let room = self.merging.frame.get_mut(end..end + length).ok_or(too_long)?;
        // SAFETY: within the buffer, which the device gave back and which is not posted.
        unsafe { self.buffers.frame(id).sub(lead as usize).copy_to_nonoverlapping(room.as_mut_ptr(), length) };
        self.merging.taken.push(id);
        Ok(end + length)
    }
}
