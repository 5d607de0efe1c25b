//! Frames of several pieces and frames with requests, in a driver that was granted them.
//!
//! ```text
//!   bytes elsewhere ─▶ copied into the arena, together ┐
//!   guest RAM       ─▶ named where it lies             ┴─▶ slots that go on, or one slot and a description in the pool
//! ```
//!
//! What is named where it lies belongs to the host until the frame's slots come back: that is sending without a copy of the
//! guest's own. Frames that come in several buffers are put together in memory of the driver's.
//! Who writes what: as in [`super`]. The danger: what the host completes is checked as there, flags included.
//! Source: `docs/wire/venet.md`.

use std::ops::Range;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Receiver, Sender};
use crate::error::{Error, Fault, Result};
use crate::guest::pieces::{self, Part};
use crate::net::grant::{
    DESCRIPTION_BYTES, FLAG_MORE, FLAG_POOLED, FLAG_REQUEST, Grant, LONG_BYTES_MAX, PIECE_BYTES, PIECES_MAX,
    REQUEST_BYTES, asked, request_header,
};
use crate::net::offload::OFFLOAD_HEADER_BYTES;
use crate::shm::ring::Descriptor;

/// A frame that was put together.
pub(super) struct Merged {
    pub slots: u32,
    /// What it asks for.
    pub asked: [u8; OFFLOAD_HEADER_BYTES],
    start: usize,
    end: usize,
}

impl Merged {
    /// Where in `Receiver::merged` the frame is.
    pub(super) const fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

impl Sender {
    /// Sends, from now on, as was granted; before the first frame.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the pool does not lie in the RAM, or has no description for each slot.
    pub fn set_grant(&mut self, grant: Grant) -> Result<()> {
        if let Some((offset, length)) = grant.pool {
            let needed = self.ring.slots() * DESCRIPTION_BYTES;
            if length < needed || !offset.is_multiple_of(PIECE_BYTES) {
                let message = format!("the pool has {needed} bytes, 8 bytes apart; got {length} at {offset}");
                return Err(Error::Usage(message));
            }
            self.ram.at(offset, length as usize)?;
        }
        self.grant = grant;
        Ok(())
    }

    /// What was granted.
    #[must_use]
    pub const fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Stages one frame of several pieces, `request` (a `virtio_net_hdr`) with it. The host sees it after [`Self::flush`].
    /// `false`: there is no room now, nothing happened.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: no frame has this length here, it has too many pieces, a place is outside the RAM, or requests were not
    /// granted; [`Error::Peer`]: the host broke the ring.
    pub fn stage_long(&mut self, request: Option<&[u8; OFFLOAD_HEADER_BYTES]>, parts: &[Part<'_>]) -> Result<bool> {
        let length = pieces::check(parts, request.is_some(), &self.grant, self.limit, &self.ram)?;
        let header = request.map(request_header);
        let header_bytes = header.map_or(0, |header| header.len());
        let total = length + header_bytes;
        let mut pieces = self.pieces_of(header_bytes, parts);
        let is_together = pieces.is_none();
        let copied = match &pieces {
            None => total,
            Some(_) => header_bytes + parts.iter().filter(|part| part.is_copied()).map(Part::length).sum::<usize>(),
        };
        let count = pieces.as_ref().map_or(1, Vec::len);
        let has_description = count > 1 && self.grant.pool.is_some();
        let Some(arena) = self.room_for(if has_description { 1 } else { count as u32 }, copied as u32)? else {
            return Ok(false);
        };
        self.fill_arena(arena, header.as_ref().map_or(&[], |header| &header[..]), parts, is_together)?;
        let pieces = pieces.get_or_insert_with(|| vec![Descriptor::new(0, total as u32)]);
        let mut next = arena;
        for piece in pieces.iter_mut().filter(|piece| piece.offset == 0) {
            piece.offset = next;
            next += piece.length;
        }
        let flag = if header.is_some() { FLAG_REQUEST } else { 0 };
        if has_description {
            let slot = self.describe(pieces)?;
            self.stage_slot(Descriptor { flags: slot.flags | flag, ..slot });
        } else {
            for (number, piece) in pieces.iter().enumerate() {
                let more = if number + 1 == count { 0 } else { FLAG_MORE };
                let first = if number == 0 { flag } else { 0 };
                self.stage_slot(Descriptor { flags: more | first, ..*piece });
            }
        }
        self.totals.frames += 1;
        self.totals.bytes += length as u64;
        Ok(true)
    }

    /// The pieces of a frame; those to be copied have offset 0, where nothing of a frame can be. `None`: it has to lie
    /// together.
    fn pieces_of(&self, header_bytes: usize, parts: &[Part<'_>]) -> Option<Vec<Descriptor>> {
        let mut pieces = Vec::with_capacity(parts.len() + 1);
        if header_bytes != 0 {
            pieces.push(Descriptor::new(0, header_bytes as u32));
        }
        for part in parts.iter().filter(|part| part.length() != 0) {
            match (*part, pieces.last_mut()) {
                (Part::Place { offset, length }, _) => pieces.push(Descriptor::new(offset, length)),
                (Part::Bytes(bytes), Some(last)) if last.offset == 0 => last.length += bytes.len() as u32,
                (Part::Bytes(bytes), _) => pieces.push(Descriptor::new(0, bytes.len() as u32)),
            }
        }
        let slots = if self.grant.pool.is_some() { PIECES_MAX } else { PIECES_MAX.min(self.ring.slots() as usize) };
        (pieces.len() == 1 || (self.grant.is_scattered && pieces.len() <= slots)).then_some(pieces)
    }

    /// Takes `bytes` of the arena for a frame of `slots` slots: where they are. `None`: there is no room now.
    fn room_for(&mut self, slots: u32, bytes: u32) -> Result<Option<u32>> {
        let run = loop {
            if self.ring.room() >= slots {
                if bytes == 0 {
                    break None;
                }
                if let Some(run) = self.arena.plan(bytes, 1) {
                    break Some(run);
                }
            }
            if !self.reclaim()? {
                return Ok(None);
            }
        };
        // The bytes belong to the first slot; the others have none there.
        match run {
            Some(run) => self.arena.take_run(run, 1),
            None => self.arena.take_nothing(),
        }
        (1..slots).for_each(|_| self.arena.take_nothing());
        Ok(Some(run.map_or(self.arena.start(), |run| run.offset)))
    }

    /// Copies what does not lie in RAM, or everything, to byte `offset` of the arena.
    fn fill_arena(&self, offset: u32, header: &[u8], parts: &[Part<'_>], is_together: bool) -> Result<()> {
        let mut place = self.arena_place(offset);
        let mut put = |from: *const u8, length: usize| {
            // SAFETY: so many bytes of the arena were taken, and are ours until their slot comes back. What lies in RAM may
            // be anywhere there.
            unsafe { from.copy_to(place, length) };
            place = place.wrapping_add(length);
        };
        put(header.as_ptr(), header.len());
        for part in parts {
            if is_together || part.is_copied() {
                put(part.start(&self.ram)?, part.length());
            }
        }
        Ok(())
    }

    /// Writes the description of a frame: the slot that names it.
    fn describe(&self, pieces: &[Descriptor]) -> Result<Descriptor> {
        let (pool, _) = self.grant.pool.unwrap_or_default();
        let number = self.ring.next_index() & (self.ring.slots() - 1);
        let bytes = pieces.len() * size_of::<u64>();
        let first = self.ram.at(pool + number * DESCRIPTION_BYTES, bytes)?.cast::<AtomicU64>();
        for (index, piece) in pieces.iter().enumerate() {
            // SAFETY: the words lie in the pool, at a multiple of eight bytes. Publishing the slot makes them visible.
            unsafe { first.add(index).as_ref() }.store(piece.to_word(), Ordering::Relaxed);
        }
        Ok(Descriptor { offset: number * DESCRIPTION_BYTES, length: bytes as u32, flags: FLAG_POOLED })
    }

    fn stage_slot(&mut self, descriptor: Descriptor) {
        let staged = self.ring.stage(descriptor);
        debug_assert!(staged);
    }
}

impl Receiver {
    /// Lets the host do, from now on, what was granted.
    pub fn set_grant(&mut self, grant: &Grant) {
        self.receive_flags = grant.receive_flags();
        self.gives = grant.gives;
        let room = if self.receive_flags == 0 { 0 } else { LONG_BYTES_MAX as usize };
        self.merged = vec![0; room];
    }

    /// Puts the frame together that begins at the `ahead`-th returned slot, where no plain one is. `None`: the host broke
    /// the ring, and `broken` says how.
    #[cold]
    #[inline(never)]
    pub(super) fn merge(&mut self, ahead: u32) -> Option<Merged> {
        let first = self.ring.peek(ahead);
        if self.receive_flags == 0 || first.flags == 0 {
            return None;
        }
        let has_request = first.flags & FLAG_REQUEST != 0;
        let ready = self.completed_or_break()?;
        let mut allowed = self.receive_flags;
        let mut end = 0;
        let mut slots = 0;
        loop {
            let slot = ahead + slots;
            let buffer = self.posted[self.ring.reap_index().wrapping_add(slot) as usize & (self.posted.len() - 1)];
            let offset = self.pool.offset(buffer);
            let found = self.ring.peek(slot);
            let is_good = found.offset == offset && (1..=self.limit).contains(&found.length);
            if !is_good || found.flags & !allowed != 0 {
                self.refuse(found, offset);
                return None;
            }
            let Some(room) = self.merged.get_mut(end..end + found.length as usize) else {
                let length = (end + found.length as usize) as u32;
                self.broken = Some(Fault::TooLong { length, limit: LONG_BYTES_MAX });
                return None;
            };
            let place = self.ram.at(found.offset, found.length as usize).ok()?;
            // SAFETY: in bounds; the host returned this buffer and we have not posted it again.
            room.copy_from_slice(unsafe { slice::from_raw_parts(place.as_ptr(), found.length as usize) });
            end += found.length as usize;
            slots += 1;
            if found.flags & FLAG_MORE == 0 {
                break;
            }
            if slot + 1 == ready {
                self.broken = Some(Fault::ChainUnfinished { pieces: slots });
                return None;
            }
            allowed &= FLAG_MORE;
        }
        let (start, request) = if has_request {
            (REQUEST_BYTES as usize, self.merged.first_chunk().and_then(asked))
        } else {
            (0, Some([0; OFFLOAD_HEADER_BYTES]))
        };
        let Some(asked) = request.filter(|_| end > start) else {
            self.refuse(first, self.ring.peek(ahead).offset);
            return None;
        };
        if !self.gives.covers(&asked) {
            self.broken = Some(Fault::UnknownFlags { flags: asked[0] | asked[1] });
            return None;
        }
        self.broken = None;
        Some(Merged { slots, asked, start, end })
    }

    fn completed_or_break(&mut self) -> Option<u32> {
        match self.ring.completed() {
            Ok(ready) => Some(ready),
            Err(fault) => {
                self.broken = Some(fault);
                None
            }
        }
    }
}
