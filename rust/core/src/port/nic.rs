//! An emulated card as a port: frames go in and out of it as if it hung on a wire of the switch.
//!
//! ```text
//!   driver's descriptors ─▶ Card::take: copied into a FIFO ─▶ load ─▶ (switch)
//!   (switch) ─▶ give: copied out of the sender's memory ─▶ Card::give: filtered, into the driver's buffers
//!   settle ─▶ raise the card's line, or leave it to its clock
//! ```
//!
//! A frame is copied once more than on other ports, as on a card with a FIFO: what is between two guests' memories is private,
//! so that models need no other memory than bytes of their own. Who writes what, and the danger: see [`crate::nic`].

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::Refusal;
use super::batch::{Batch, Piece};
use crate::error::Fault;
use crate::guest::clock::monotonic_ns;
use crate::net::frame::{FrameStart, START_BYTES, frame_limit};
use crate::nic::card::{Card, Settled};
use crate::nic::{FRAME_BYTES_MAX, Half, Missed};
use crate::signals::Caller;
use crate::worker::watchdog::Ringer;

/// Bytes of frames from the driver after which no more are taken for now.
const FIFO_BYTES: usize = 64 << 10;

/// A card and its line.
#[derive(Debug)]
pub struct NicParts {
    /// The guest's name, for counters; empty: nobody's.
    pub guest: String,
    /// Name of the card's model.
    pub model: &'static str,
    /// The card.
    pub card: Arc<Card>,
    /// Its interrupt line.
    pub line: Caller,
}

/// One card, worked on by one worker.
pub(crate) struct NicPort {
    card: Arc<Card>,
    line: Caller,
    frame_limit: u32,
    /// Frames from the driver: their bytes, and where each is.
    fifo: Vec<u8>,
    frames: Vec<(usize, u32)>,
    /// The first of them that was not forwarded yet.
    next: usize,
    /// A frame to the driver.
    arrived: Vec<u8>,
    /// Frames and bytes given since the last look.
    given: (u64, u64),
    /// The line's doorbell blocks.
    line_fault: Option<Fault>,
    is_tx_told: bool,
    is_rx_told: bool,
}

impl NicPort {
    pub(crate) fn new(parts: NicParts, mtu: u32) -> Self {
        Self {
            card: parts.card,
            line: parts.line,
            frame_limit: frame_limit(mtu),
            fifo: Vec::with_capacity(FIFO_BYTES + FRAME_BYTES_MAX),
            frames: Vec::new(),
            next: 0,
            arrived: Vec::with_capacity(FRAME_BYTES_MAX),
            given: (0, 0),
            line_fault: None,
            is_tx_told: false,
            is_rx_told: false,
        }
    }

    pub(crate) const fn set_mtu(&mut self, mtu: u32) {
        self.frame_limit = frame_limit(mtu);
    }

    pub(crate) fn set_up(&self, is_up: bool) {
        self.card.set_link(is_up);
    }

    pub(crate) fn wakers(&self) -> [BorrowedFd<'_>; 2] {
        self.card.wakers()
    }

    pub(crate) fn was_rung(&self) -> bool {
        self.card.was_rung()
    }

    /// Sends the port to sleep. `false`: there is something to do.
    pub(crate) fn arm(&self) -> bool {
        self.next == self.frames.len() && self.card.park()
    }

    pub(crate) fn disarm(&self) {
        self.card.unpark();
    }

    pub(crate) fn occupancy(&self) -> [(u32, u32); 2] {
        self.card.occupancy()
    }

    /// Shows up to `wanted` frames of the FIFO, which is filled when it is empty: how many, and how many were too short.
    pub(crate) fn load(&mut self, batch: &mut Batch, wanted: usize) -> (usize, u32) {
        let mut runts = 0;
        if self.next == self.frames.len() {
            runts = self.refill(wanted);
        }
        let waiting = self.frames.iter().skip(self.next);
        let mut loaded = 0;
        for (piece, &(start, length)) in batch.pieces.iter_mut().zip(waiting).take(wanted) {
            piece.source = self.fifo[start..].as_ptr();
            piece.length = if length > self.frame_limit { 0 } else { length };
            loaded += 1;
        }
        (loaded, runts)
    }

    fn refill(&mut self, wanted: usize) -> u32 {
        let Self { fifo, frames, .. } = self;
        fifo.clear();
        frames.clear();
        self.next = 0;
        self.card.take(wanted as u32, |frame| {
            frames.push((fifo.len(), frame.len() as u32));
            fifo.extend_from_slice(frame);
            fifo.len() < FIFO_BYTES
        })
    }

    /// A loaded frame, also one that is too long to be forwarded.
    pub(crate) fn loaded(&self, index: u32) -> Option<(*const u8, u32)> {
        let &(start, length) = self.frames.get(self.next + index as usize)?;
        Some((self.fifo.get(start..)?.as_ptr(), length))
    }

    /// The oldest `count` loaded frames were forwarded.
    pub(crate) fn give_back(&mut self, count: u32) {
        self.next = self.frames.len().min(self.next + count as usize);
    }

    /// Gives the driver a frame.
    ///
    /// # Safety
    ///
    /// The piece was loaded in this turn: its bytes are readable at its source.
    pub(crate) unsafe fn give(&mut self, start: &FrameStart, piece: &Piece) -> Result<(), Refusal> {
        let length = piece.length as usize;
        if piece.length > self.frame_limit {
            return Err(Refusal::Oversize);
        }
        let head = length.min(START_BYTES);
        self.arrived.clear();
        self.arrived.extend_from_slice(&start.bytes()[..head]);
        self.arrived.reserve(length - head);
        // SAFETY: as promised by the caller, `length` bytes are readable; as many fit, as was just reserved. The sender may
        // write meanwhile: each byte is copied once, and the copy is what counts.
        unsafe {
            piece.source.add(head).copy_to(self.arrived.as_mut_ptr().add(head), length - head);
            self.arrived.set_len(length);
        }
        self.card.give(&self.arrived).map_err(|missed| match missed {
            Missed::NoRoom => Refusal::NoRoom,
            Missed::Oversize => Refusal::Oversize,
            Missed::Disabled => Refusal::Disabled,
            Missed::Filtered => Refusal::Filtered,
            Missed::Broken => Refusal::Quarantined,
        })?;
        self.given.0 += 1;
        self.given.1 += u64::from(piece.length);
        Ok(())
    }

    /// Frames and bytes given since the last call.
    pub(crate) fn take_given(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.given)
    }

    /// Raises the card's line if it is due.
    pub(crate) fn settle(&mut self, ringer: &Ringer) -> Settled {
        let settled = self.card.settle(monotonic_ns());
        if settled == Settled::Raise
            && let Err(fault) = self.line.call(ringer)
        {
            self.line_fault.get_or_insert(fault);
        }
        settled
    }

    fn faults(&self) -> (Option<Fault>, Option<Fault>) {
        (self.card.fault(Half::Transmit), self.card.fault(Half::Receive).or(self.line_fault))
    }

    /// Something broke that was not told yet.
    pub(crate) fn has_news(&self) -> bool {
        let (tx, rx) = self.faults();
        (tx.is_some() && !self.is_tx_told) || (rx.is_some() && !self.is_rx_told)
    }

    /// What broke of each half, once.
    pub(crate) fn take_news(&mut self) -> (Option<Fault>, Option<Fault>) {
        let (tx, rx) = self.faults();
        let news = (tx.filter(|_| !self.is_tx_told), rx.filter(|_| !self.is_rx_told));
        self.is_tx_told |= tx.is_some();
        self.is_rx_told |= rx.is_some();
        news
    }
}

impl fmt::Debug for NicPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NicPort").field("card", &self.card).finish_non_exhaustive()
    }
}
