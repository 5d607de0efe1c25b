//! Network cards as hypervisors emulate them: the registers, descriptors and DMA of cards that were once made.
//!
//! ```text
//!   guest's driver ── trap: read, write ──▶ ┌ Card ┐ ──▶ Model: E1000, Rtl8139 ── Dma ──▶ descriptors, buffers
//!   worker ── transmit, receive ──────────▶ └──────┘        │
//!   worker ◀── raise the line now, or at … ◀── throttling ◀─┘ a cause that the driver wants to hear of
//! ```
//!
//! A [`Model`] is logic alone: what its registers say, what it takes from memory and writes there. It knows no threads, no
//! process and no clock, so that tests and proptest drive it as they like. A [`card::Card`] is one model in use, shared by
//! the thread that answers traps and the worker that moves frames.
//!
//! Who writes what: registers are private to the host, and a guest changes them by traps; rings and buffers are the guest's
//! RAM, and the model writes there what a card writes: filled buffers and states of descriptors.
//! The danger: a guest may write anything into registers, rings and addresses, at any time. A descriptor is copied once;
//! indices, addresses and lengths of the copy are checked before each access, and what cannot be ends that half of the
//! card for good, with a reason. Work a call is bounded, however long the ring and whatever is in it.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Fault;
use crate::shm::layout::RAM_HEADER_BYTES;
use crate::shm::region::Ram;

pub mod card;
pub mod e1000;
pub mod rtl8139;

/// Least bytes of a frame on a wire, without its check sequence: shorter ones are filled up.
pub const WIRE_BYTES_MIN: usize = 60;
/// Bytes of a frame's check sequence. No wire here carries one; where a card puts one into memory, it is zeroes.
pub const CHECK_SEQUENCE_BYTES: usize = 4;
/// Longest frame that any model sends, without its check sequence.
pub const FRAME_BYTES_MAX: usize = 16_124;

/// Memory as a card reaches it.
pub trait Dma: Send {
    /// Copies bytes out of it, once.
    ///
    /// # Errors
    ///
    /// The guest's fault: they are not all in its memory.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault>;

    /// Copies bytes into it.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault>;

    /// Writes eight bytes in one piece, behind everything that was written before. `address` is a multiple of 8.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    fn publish(&self, address: u64, word: u64) -> Result<(), Fault>;
}

/// A guest's RAM: an address is an offset in it, and its header is nowhere.
#[derive(Clone)]
pub struct RamDma(Arc<Ram>);

impl RamDma {
    /// The memory of one guest.
    #[must_use]
    pub const fn new(ram: Arc<Ram>) -> Self {
        Self(ram)
    }

    fn place(&self, address: u64, bytes: usize) -> Result<NonNull<u8>, Fault> {
        let outside = || Fault::OutsideMemory { address, length: u32::try_from(bytes).unwrap_or(u32::MAX) };
        let offset = u32::try_from(address).map_err(|_| outside())?;
        if offset < RAM_HEADER_BYTES {
            return Err(outside());
        }
        self.0.at(offset, bytes).map_err(|_| outside())
    }
}

impl Dma for RamDma {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        let place = self.place(address, into.len())?;
        // SAFETY: as many bytes are mapped there, and `into` is private. The guest may write meanwhile: each byte is copied
        // once, and the copy is what counts.
        unsafe { place.as_ptr().copy_to(into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        let place = self.place(address, from.len())?;
        // SAFETY: as above, the other way.
        unsafe { place.as_ptr().copy_from(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn publish(&self, address: u64, word: u64) -> Result<(), Fault> {
        let place = self.place(address, size_of::<u64>())?.cast::<AtomicU64>();
        if !place.is_aligned() {
            return Err(Fault::OutsideMemory { address, length: size_of::<u64>() as u32 });
        }
        // SAFETY: eight bytes are mapped there and aligned; both sides use them as an atomic.
        let place = unsafe { place.as_ref() };
        // [NC-1 descriptor done] release: a descriptor's buffer before its state; partner in Ring::state of guest/card.
        place.store(word, Ordering::Release);
        Ok(())
    }
}

impl fmt::Debug for RamDma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamDma").field("size", &self.0.size()).finish()
    }
}

/// What came of looking for a frame to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A frame is there.
    Frame,
    /// A descriptor was taken that is no frame, or not yet one.
    Piece,
    /// A frame was taken that is shorter than an Ethernet header, and is dropped.
    Runt,
    /// The driver has nothing to send, or must not.
    Nothing,
}

/// Why a card did not take a frame in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// No buffer is free, or too few for its length.
    NoRoom,
    /// It is longer than the card takes.
    Oversize,
    /// Its receiver is switched off.
    Disabled,
    /// It is for another station, by the card's filters.
    Filtered,
    /// The guest broke a rule, and this half is ended.
    Broken,
}

/// The two halves of a card, each of which ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Frames from the guest.
    Transmit,
    /// Frames to it.
    Receive,
}

/// A kind of card.
pub trait Model: Send + fmt::Debug {
    /// What it is called: the name of its counters' label.
    fn name(&self) -> &'static str;

    /// Reads a register of 1, 2 or 4 bytes. What is no register reads as zero.
    fn read(&mut self, offset: u32, bytes: u32) -> u32;

    /// Writes one. What is no register, or none that can be written, takes nothing.
    fn write(&mut self, offset: u32, bytes: u32, value: u32);

    /// Looks at the next descriptor or slot that the driver gave the card to send. A frame is put into `frame`, which is
    /// empty before.
    fn transmit(&mut self, memory: &dyn Dma, frame: &mut Vec<u8>) -> Sent;

    /// Takes a frame in, without its check sequence.
    ///
    /// # Errors
    ///
    /// Why not.
    fn receive(&mut self, memory: &dyn Dma, frame: &[u8]) -> Result<(), Missed>;

    /// Whether [`Self::transmit`] would find something.
    fn has_work(&self) -> bool;

    /// Whether its interrupt line is asserted: there is a cause that the driver wants to hear of.
    fn is_asserted(&self) -> bool;

    /// Whether the driver acknowledged causes since the last call: a line that is asserted still is asserted anew then.
    fn take_acknowledged(&mut self) -> bool;

    /// Least time between two interrupts, in ns; 0: none.
    fn throttle_ns(&self) -> u64;

    /// The carrier came or went.
    fn set_link(&mut self, is_up: bool);

    /// Slots of the rings of both halves, and how many of each the driver has given to the card.
    fn occupancy(&self) -> [(u32, u32); 2];

    /// What ended a half.
    fn fault(&self, half: Half) -> Option<Fault>;

    /// Resets by the driver so far.
    fn resets(&self) -> u64;
}
