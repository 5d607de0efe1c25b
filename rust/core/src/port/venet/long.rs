//! Frames of a venet guest that are more than one plain slot: in several pieces or buffers, or with a request.
//!
//! ```text
//!   TX   slots or words of the pool, each copied once ─▶ pieces checked ─▶ gathered, private ─▶ request parsed ─▶ (switch)
//!   RX   posted buffers, as many as it takes, checked ─▶ header of ours and frame written ─▶ slots completed, flagged
//! ```
//!
//! None of this is on the way of plain frames: it begins where a slot has flags, or where a frame does not fit its buffer.
//! Who writes what: as in [`super`]; besides, the worker gathers into memory of its own.
//! The danger: a guest may change slots, words, pieces and bytes at any time. Each word is read once; what is parsed was
//! gathered before. Pieces that overlap are no fault: the frame has those bytes twice.
//! Source: vbus venet (`venet_sg`, PMTD, L4RO); what stands for them is in `docs/wire/venet.md`.

use std::ptr::NonNull;
use std::sync::Arc;

use super::{GuestMemory, VenetPort};
use crate::error::Fault;
use crate::net::frame::{FRAME_BYTES_MAX, FrameStart, HEADER_BYTES};
use crate::net::grant::{
    DESCRIPTION_BYTES, FLAG_MORE, FLAG_POOLED, FLAG_REQUEST, Grant, LONG_BYTES_MAX, PIECE_BYTES, PIECES_MAX,
    REQUEST_BYTES, asked, request_header,
};
use crate::net::offload::{Features, Request, Unfit};
use crate::port::Refusal;
use crate::port::batch::{BATCH, Batch, Piece};
use crate::port::spread::{Parts, gather};
use crate::shm::region::Ram;
use crate::shm::ring::{Consumer, Descriptor};
use crate::virtio::queue::Segment;

/// What was done since the last look, to be counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LongCounts {
    /// Frames that were taken in several pieces.
    pub gathered: u64,
    /// Frames given in several buffers, and those buffers.
    pub merged: u64,
    pub buffers: u64,
}

/// What a port has for such frames.
pub(crate) struct Long {
    grant: Grant,
    transmit_flags: u8,
    /// The pool's first word, and its bytes.
    pool: Option<(NonNull<u64>, u32)>,
    /// Of the batch in hand: slots, place and bytes of each frame from `from` on; `from` is one past the batch when all are
    /// plain.
    spans: [u8; BATCH],
    frames: [(usize, u32); BATCH],
    from: usize,
    counts: LongCounts,
}

/// One frame as it was found: how many slots and pieces it takes, and what it asks for.
struct Found {
    slots: usize,
    pieces: usize,
    place: *const u8,
    length: u32,
    request: Request,
}

impl Long {
    /// `None`: plain frames only.
    ///
    /// # Errors
    ///
    /// The guest's fault: its pool is not in its memory.
    pub(super) fn new(ram: &Arc<Ram>, grant: &Grant) -> Result<Option<Box<Self>>, Fault> {
        if *grant == Grant::default() {
            return Ok(None);
        }
        let pool = match grant.pool {
            None => None,
            Some((offset, length)) if offset.is_multiple_of(PIECE_BYTES) && length >= PIECE_BYTES => {
                Some((ram.at(offset, length as usize)?.cast::<u64>(), length))
            }
            Some((offset, length)) => {
                let (found, limit) = if length < PIECE_BYTES { (length, 0) } else { (offset, PIECE_BYTES) };
                return Err(Fault::BadSize { what: "place of the pool", found: found.into(), limit: limit.into() });
            }
        };
        Ok(Some(Box::new(Self {
            grant: *grant,
            transmit_flags: grant.transmit_flags(),
            pool,
            spans: [0; BATCH],
            frames: [(0, 0); BATCH],
            from: BATCH,
            counts: LongCounts::default(),
        })))
    }

    /// A frame that was loaded here.
    pub(super) fn loaded(&self, index: u32) -> Option<(*const u8, u32)> {
        let index = index as usize;
        let &(place, length) = self.frames.get(index).filter(|_| index >= self.from)?;
        Some((place as *const u8, length))
    }

    /// Slots of the oldest `count` loaded frames, which go back now.
    pub(super) fn slots_of(&mut self, count: u32) -> u32 {
        let count = count as usize;
        let from = std::mem::replace(&mut self.from, BATCH).min(count);
        from as u32 + self.spans.get(from..count).unwrap_or_default().iter().map(|&span| u32::from(span)).sum::<u32>()
    }

    /// Finds the frame that begins at slot `first`, of `known` that are published. `None`: no room is left to gather it.
    fn find(
        &self,
        (tx, memory): (&Consumer, &GuestMemory),
        (first, known): (usize, usize),
        room: &mut &mut [u8],
    ) -> Result<Option<Found>, Fault> {
        let head = tx.peek(first as u32);
        if head.flags & !self.transmit_flags != 0 {
            return Err(Fault::UnknownFlags { flags: head.flags });
        }
        let mut pieces = Pieces::new();
        let slots = if head.flags & FLAG_POOLED == 0 {
            self.follow(&mut pieces, (tx, memory), (first, known), head)?
        } else {
            self.describe(&mut pieces, memory, head)?;
            1
        };
        let has_request = head.flags & FLAG_REQUEST != 0;
        let shortest = HEADER_BYTES + if has_request { REQUEST_BYTES } else { 0 };
        if pieces.bytes < shortest {
            return Err(Fault::TooShort { length: pieces.bytes, limit: shortest });
        }
        if !has_request && pieces.bytes > FRAME_BYTES_MAX {
            return Err(Fault::TooLong { length: pieces.bytes, limit: FRAME_BYTES_MAX });
        }
        let plain = |place, pieces: &Pieces| {
            Ok(Some(Found { slots, pieces: pieces.count, place, length: pieces.bytes, request: Request::NOTHING }))
        };
        if let ([only], false) = (pieces.found(), has_request) {
            return plain(only.place.as_ptr().cast_const(), &pieces);
        }
        // SAFETY: every piece was found to lie in the guest's memory, and they are as many bytes as was added up.
        let Some(place) = (unsafe { gather(pieces.found(), pieces.bytes as usize, room) }) else { return Ok(None) };
        if !has_request {
            return plain(place, &pieces);
        }
        // SAFETY: gathered here, in memory of the worker's that nobody writes while the frame is in hand.
        let whole = unsafe { std::slice::from_raw_parts(place, pieces.bytes as usize) };
        let request = match whole.split_first_chunk() {
            Some((header, frame)) => match asked(header) {
                Some(asked) => Request::parse(&asked, frame).unwrap_or_else(Request::refused),
                None => Request::refused(Unfit::Flag),
            },
            None => Request::refused(Unfit::Headers),
        };
        if !self.grant.takes.contains(request.needs()) {
            return Err(Fault::UnknownFlags { flags: whole[0] | whole[1] });
        }
        let place = place.wrapping_add(REQUEST_BYTES as usize);
        Ok(Some(Found { slots, pieces: pieces.count, place, length: pieces.bytes - REQUEST_BYTES, request }))
    }

    /// Takes the pieces of a frame from its slots: how many slots that are.
    fn follow(
        &self,
        pieces: &mut Pieces,
        (tx, memory): (&Consumer, &GuestMemory),
        (first, known): (usize, usize),
        head: Descriptor,
    ) -> Result<usize, Fault> {
        let mut slot = first;
        let mut piece = head;
        loop {
            pieces.add(memory, piece)?;
            slot += 1;
            if piece.flags & FLAG_MORE == 0 {
                return Ok(slot - first);
            }
            if slot == known {
                return Err(Fault::ChainUnfinished { pieces: (slot - first) as u32 });
            }
            piece = tx.peek(slot as u32);
            if piece.flags & !(self.transmit_flags & FLAG_MORE) != 0 {
                return Err(Fault::UnknownFlags { flags: piece.flags });
            }
        }
    }

    /// Takes them from a description in the pool.
    fn describe(&self, pieces: &mut Pieces, memory: &GuestMemory, head: Descriptor) -> Result<(), Fault> {
        let Descriptor { offset, length, flags } = head;
        let Some((words, bytes)) = self.pool.filter(|_| flags & FLAG_MORE == 0) else {
            return Err(Fault::UnknownFlags { flags });
        };
        if length == 0 {
            return Err(Fault::ZeroLength { offset });
        }
        if length > DESCRIPTION_BYTES {
            return Err(Fault::ChainTooLong { limit: PIECES_MAX as u32 });
        }
        if u64::from(offset) + u64::from(length) > bytes.into() {
            return Err(Fault::OutsideRegion { offset, length, limit: bytes.into() });
        }
        if !(offset | length).is_multiple_of(PIECE_BYTES) {
            let found = u64::from(offset | length);
            return Err(Fault::BadSize { what: "alignment of a description", found, limit: PIECE_BYTES.into() });
        }
        let first = (offset / PIECE_BYTES) as usize;
        for word in first..first + (length / PIECE_BYTES) as usize {
            // SAFETY: the word lies in the pool, which was found to be aligned and in the guest's memory; one look at it.
            let piece = Descriptor::from_word(unsafe { words.add(word).read_volatile() });
            if piece.flags != 0 {
                return Err(Fault::UnknownFlags { flags: piece.flags });
            }
            pieces.add(memory, piece)?;
        }
        Ok(())
    }
}

/// The pieces of one frame, checked one by one.
struct Pieces {
    segments: [Segment; PIECES_MAX],
    count: usize,
    bytes: u32,
}

impl Pieces {
    const fn new() -> Self {
        Self { segments: [Segment { place: NonNull::dangling(), bytes: 0 }; PIECES_MAX], count: 0, bytes: 0 }
    }

    fn add(&mut self, memory: &GuestMemory, piece: Descriptor) -> Result<(), Fault> {
        let Descriptor { offset, length, .. } = piece;
        if length == 0 {
            return Err(Fault::ZeroLength { offset });
        }
        // No piece is longer than a slot can say, so the sum cannot wrap.
        if self.bytes + length > LONG_BYTES_MAX {
            return Err(Fault::TooLong { length: self.bytes + length, limit: LONG_BYTES_MAX });
        }
        let limit = PIECES_MAX as u32;
        let place = memory.place(offset, length)?;
        *self.segments.get_mut(self.count).ok_or(Fault::ChainTooLong { limit })? = Segment { place, bytes: length };
        self.count += 1;
        self.bytes += length;
        Ok(())
    }

    fn found(&self) -> &[Segment] {
        &self.segments[..self.count]
    }
}

impl VenetPort {
    /// What its driver can be left with.
    pub(crate) fn features(&self) -> Features {
        self.long.as_ref().map_or(Features::NONE, |long| long.grant.gives)
    }

    /// What was done since the last look.
    #[inline]
    pub(crate) fn take_counts(&mut self) -> Option<LongCounts> {
        self.long.as_deref_mut().map(|long| std::mem::take(&mut long.counts))
    }

    /// As [`Self::load`], from frame `done` on, whose slot is not that of a plain frame: why, says `fault`. How many frames are
    /// loaded in all.
    #[cold]
    #[inline(never)]
    pub(super) fn load_long(&mut self, batch: &mut Batch, (done, wanted): (usize, usize), fault: Fault) -> usize {
        let Self { tx, memory, long: Some(long), frame_limit, .. } = self else {
            self.tx_fault = Some(fault);
            return done;
        };
        let Batch { pieces, requests, has_requests, gathered, .. } = batch;
        let mut room = &mut gathered[..];
        let known = tx.known() as usize;
        long.from = done;
        let (mut found, mut slot) = (done, done);
        while found < wanted && slot < known {
            let frame = match long.find((tx, memory), (slot, known), &mut room) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(fault) => {
                    self.tx_fault = Some(fault);
                    break;
                }
            };
            let Found { slots, pieces: count, place, length, request } = frame;
            if !request.is_nothing() && !*has_requests {
                *has_requests = true;
                requests.fill(Request::NOTHING);
            }
            if *has_requests {
                requests[found] = request;
            }
            let is_dropped = request.unfit().is_some() || request.longest(length) > *frame_limit;
            pieces[found].source = place;
            pieces[found].length = if is_dropped { 0 } else { length };
            long.frames[found] = (place as usize, length);
            // At most `PIECES_MAX`.
            long.spans[found] = slots as u8;
            long.counts.gathered += u64::from(count > 1);
            found += 1;
            slot += slots;
        }
        found
    }

    /// Gives a frame that needs a header or several buffers, and copies it.
    ///
    /// # Safety
    ///
    /// `piece` was loaded in this turn, and `start` is its start.
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn give_long(
        &mut self,
        start: &FrameStart,
        piece: &Piece,
        request: &Request,
    ) -> Result<(), Refusal> {
        if !self.is_up || self.rx_fault.is_some() {
            return Err(if self.rx_fault.is_some() { Refusal::Quarantined } else { Refusal::LinkDown });
        }
        if request.longest(piece.length) > self.frame_limit {
            return Err(Refusal::Oversize);
        }
        let is_merged = self.long.as_ref().is_some_and(|long| long.grant.is_merged);
        let (header_bytes, flag) = if request.is_nothing() { (0, 0) } else { (REQUEST_BYTES, FLAG_REQUEST) };
        let needed = header_bytes + piece.length;
        let mut buffers = [Descriptor::default(); PIECES_MAX];
        let mut pieces = Pieces::new();
        let mut room = 0;
        while room < needed {
            let number = pieces.count;
            if number != 0 && !is_merged {
                return Err(Refusal::BufferTooSmall);
            }
            let Some(buffer) = buffers.get_mut(number) else { return Err(Refusal::BufferTooSmall) };
            *buffer = self.posted(number as u32)?;
            let place = match self.check_rx(*buffer) {
                Ok(place) => place,
                Err(fault) => return Err(self.refuse_rx(fault)),
            };
            pieces.segments[number] = Segment { place, bytes: buffer.length };
            pieces.count += 1;
            room += u64::from(buffer.length).min(needed.into()) as u32;
        }
        let header = request_header(&request.header());
        let first = (piece.length as usize).min(start.bytes().len());
        let mut parts = Parts::new([
            (header.as_ptr(), header_bytes as usize),
            (start.bytes().as_ptr(), first),
            (piece.source.wrapping_add(first), piece.length as usize - first),
        ]);
        let last = pieces.count - 1;
        for (number, (buffer, segment)) in buffers.iter().zip(pieces.found()).enumerate() {
            // SAFETY: the buffer was checked just now; header and start are private, the rest is as the caller promises.
            let length = unsafe { parts.fill(*segment) };
            let flags = (if number == 0 { flag } else { 0 }) | (if number == last { 0 } else { FLAG_MORE });
            self.rx.complete(number as u32, Descriptor { offset: buffer.offset, length, flags });
        }
        let taken = pieces.count as u32;
        self.rx.advance(taken);
        self.rx_next = self.rx_next.wrapping_add(taken);
        self.rx_bytes += u64::from(piece.length);
        self.rx_more += taken - 1;
        if taken > 1
            && let Some(long) = &mut self.long
        {
            long.counts.merged += 1;
            long.counts.buffers += u64::from(taken);
        }
        Ok(())
    }

    /// The posted buffer that is `ahead` places behind the next one.
    fn posted(&mut self, ahead: u32) -> Result<Descriptor, Refusal> {
        let mut posted = self.rx.available();
        if posted.is_ok_and(|posted| posted <= ahead) {
            posted = self.rx.refresh();
        }
        match posted {
            Ok(posted) if posted > ahead => Ok(self.rx.peek(ahead)),
            Ok(_) => Err(Refusal::NoRoom),
            Err(fault) => Err(self.refuse_rx(fault)),
        }
    }
}
