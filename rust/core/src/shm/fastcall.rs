//! A fastcall slot: one thread of a guest calls a device of the host and waits for its answer, without a system call.
//!
//! ```text
//!            caller (guest)                              server (host)
//!   begin:   request written, its sequence += 1 ──FC-1──▶ take:   sequence moved by one? copy the request, once
//!            mark kick; ring if the host sleeps                   … the device's function runs …
//!   poll:    answer.sequence == ours? copy it  ◀──FC-2──  answer: written, its sequence += 1; mark call, ring a sleeper
//! ```
//!
//! Each side writes lines of its own and reads the other's: a call of up to 48 bytes moves one line there and one back,
//! which is what a bare round trip costs. The signal's words are touched by their writer alone while both are awake.
//!
//! Who writes what: the guest the request, the host the answer; both count calls, modulo 2^32, and believe the other's
//! count only where it can be. One call is under way at a time, so a count that moved by more than one is a [`Fault`].
//! Every word is an atomic and is read once: data that the guest changes during the call is torn at most, and whoever
//! handles it works on a copy. Source: vbus `bus->call`, synchronous in the original; `docs/wire/fastcall.md` has the
//! bytes.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::layout::{FASTCALL_DATA_WORDS, FastcallSlot};
use super::signal::{Listener, Notifier, Owner, SignalMemory};
use crate::error::Fault;
#[cfg(not(loom))]
use crate::error::{Error, Result};
#[cfg(not(loom))]
use crate::shm::{
    layout::{self, FASTCALL_MAGIC, FASTCALL_SLOT_BYTES, FASTCALL_VERSION, SIGNAL_MAGIC, SIGNAL_VERSION},
    region::Ram,
};
use crate::sync::{AtomicU64, Ordering, ordering};

/// Most bytes of a request's or answer's data.
pub const DATA_BYTES: usize = FASTCALL_DATA_WORDS * 8;

/// Status of a call that was done.
pub const STATUS_DONE: u32 = 0;
/// Status of a call that nobody here answers: make the ordinary one instead. Other statuses are errno numbers.
pub const STATUS_UNSERVED: u32 = 1 << 31;

/// Room for the data of one request or answer.
pub type Data = [u8; DATA_BYTES];

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Upper half of the device's handle.
    pub device: u32,
    /// Function of the device's ABI.
    pub function: u32,
    /// Bytes of data as the caller says. More than [`DATA_BYTES`]: none were copied.
    pub length: u32,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// [`STATUS_DONE`], [`STATUS_UNSERVED`] or an errno number, whose data is a sentence.
    pub status: u32,
    /// Nanoseconds the caller is to spend on top.
    pub trap_ns: u32,
    /// Bytes of data, at most [`DATA_BYTES`].
    pub length: u32,
}

/// Where a slot is.
#[derive(Clone)]
pub struct SlotMemory {
    slot: NonNull<FastcallSlot>,
    owner: Owner,
}

// SAFETY: the slot is atomics only, reachable for as long as `owner` lives.
unsafe impl Send for SlotMemory {}

impl SlotMemory {
    /// A slot in this process's own memory, for models and tests.
    #[must_use]
    pub fn on_heap() -> Self {
        let slot = Arc::new(FastcallSlot::new());
        Self { slot: NonNull::from(&*slot), owner: slot }
    }

    /// Lays an empty slot out at `offset` of memory that is ours.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the place is misaligned or outside the region.
    #[cfg(not(loom))]
    pub fn format(ram: &Arc<Ram>, offset: u32) -> Result<Self> {
        let start = place(ram, offset).map_err(|fault| Error::Usage(fault.to_string()))?;
        // SAFETY: `place` checked alignment and bounds; nobody else knows of this slot yet.
        unsafe { start.write(FastcallSlot::new()) };
        Ok(Self { slot: start, owner: ram.clone() })
    }

    /// Believes a slot that a peer laid out in `length` bytes at `offset`, after checking its head.
    ///
    /// # Errors
    ///
    /// The peer's fault: place, length, magic or version cannot be.
    #[cfg(not(loom))]
    pub fn attach(ram: &Arc<Ram>, offset: u32, length: u32) -> std::result::Result<Self, Fault> {
        if length as usize != FASTCALL_SLOT_BYTES {
            let limit = FASTCALL_SLOT_BYTES as u64;
            return Err(Fault::BadSize { what: "fastcall slot length", found: length.into(), limit });
        }
        let memory = Self { slot: place(ram, offset)?, owner: ram.clone() };
        let expect = |what, found: u32, expected: u32| {
            if found == expected {
                Ok(())
            } else {
                Err(Fault::BadHeader { what, found: found.into(), expected: expected.into() })
            }
        };
        let slot = memory.slot();
        expect("fastcall magic", slot.magic.load(Ordering::Relaxed), FASTCALL_MAGIC)?;
        expect("fastcall version", slot.version.load(Ordering::Relaxed), FASTCALL_VERSION)?;
        expect("signal magic", slot.signal.magic.load(Ordering::Relaxed), SIGNAL_MAGIC)?;
        expect("signal version", slot.signal.version.load(Ordering::Relaxed), SIGNAL_VERSION)?;
        Ok(memory)
    }

    fn slot(&self) -> &FastcallSlot {
        // SAFETY: valid for the life of `owner`.
        unsafe { self.slot.as_ref() }
    }

    fn kick(&self) -> SignalMemory {
        // SAFETY: the words live inside the slot, for as long as `owner`.
        unsafe { SignalMemory::new(NonNull::from(&self.slot().signal.kick), self.owner.clone()) }
    }

    fn call(&self) -> SignalMemory {
        // SAFETY: the words live inside the slot, for as long as `owner`.
        unsafe { SignalMemory::new(NonNull::from(&self.slot().signal.call), self.owner.clone()) }
    }
}

impl fmt::Debug for SlotMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotMemory").finish_non_exhaustive()
    }
}

#[cfg(not(loom))]
fn place(ram: &Arc<Ram>, offset: u32) -> std::result::Result<NonNull<FastcallSlot>, Fault> {
    if !(offset as usize).is_multiple_of(layout::LINE_PAIR) {
        let limit = layout::LINE_PAIR as u64;
        return Err(Fault::BadSize { what: "fastcall slot alignment", found: offset.into(), limit });
    }
    if offset < layout::RAM_HEADER_BYTES {
        let length = FASTCALL_SLOT_BYTES as u32;
        return Err(Fault::OverlapsControl { offset, length, start: 0, end: layout::RAM_HEADER_BYTES });
    }
    Ok(ram.at(offset, FASTCALL_SLOT_BYTES)?.cast())
}

/// The guest's end: one call at a time.
pub struct Caller {
    memory: SlotMemory,
    /// Calls begun.
    sequence: u32,
    is_under_way: bool,
    kick: Notifier,
    call: Listener,
}

impl Caller {
    /// Takes the guest's end of a slot nobody has used yet. One per slot: the caller keeps that promise.
    #[must_use]
    pub fn new(memory: SlotMemory) -> Self {
        Self::starting_at(memory, 0)
    }

    /// As [`Self::new`], but after `sequence` calls: shows in a test what else takes 2^32 calls to see.
    #[doc(hidden)]
    #[must_use]
    pub fn starting_at(memory: SlotMemory, sequence: u32) -> Self {
        memory.slot().request.sequence.store(sequence, Ordering::Relaxed);
        memory.slot().answer.sequence.store(sequence, Ordering::Relaxed);
        Self {
            kick: Notifier::new(memory.kick()),
            call: Listener::new(memory.call()),
            memory,
            sequence,
            is_under_way: false,
        }
    }

    /// Whether a call was begun and its answer not taken yet.
    #[must_use]
    pub const fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// Begins a call. `true`: the host sleeps, ring the kick doorbell now.
    ///
    /// Nothing may be under way, and `data` is at most [`DATA_BYTES`] long; more is cut off.
    #[must_use = "true means the host sleeps until its doorbell is rung"]
    #[inline]
    pub fn begin(&mut self, device: u32, function: u32, data: &[u8]) -> bool {
        debug_assert!(!self.is_under_way && data.len() <= DATA_BYTES);
        let data = &data[..data.len().min(DATA_BYTES)];
        let request = &self.memory.slot().request;
        request.device.store(device, Ordering::Relaxed);
        request.function.store(function, Ordering::Relaxed);
        request.length.store(data.len() as u32, Ordering::Relaxed);
        store(&request.data, data);
        self.sequence = self.sequence.wrapping_add(1);
        self.is_under_way = true;
        // [FC-1 request visible] release: the request before its sequence; partner in Server::take.
        request.sequence.store(self.sequence, ordering("fastcall_request_stored", Ordering::Release));
        self.kick.inject()
    }

    /// The answer, if it is there; its data in front of `data`.
    ///
    /// # Errors
    ///
    /// The host's fault: an answer to a call that was never made, or longer than an answer can be. The slot is of no use
    /// any more.
    #[inline]
    pub fn poll(&mut self, data: &mut Data) -> std::result::Result<Option<Answer>, Fault> {
        let answer = &self.memory.slot().answer;
        // [FC-2 answer visible] acquire: the sequence before the answer; partner in Server::answer.
        let sequence = answer.sequence.load(ordering("fastcall_answer_loaded", Ordering::Acquire));
        if sequence.wrapping_add(1) == self.sequence {
            return Ok(None);
        }
        if sequence != self.sequence {
            let (found, limit) = (sequence.into(), self.sequence.into());
            return Err(Fault::BadSize { what: "fastcall answer sequence", found, limit });
        }
        let found = Answer {
            status: answer.status.load(Ordering::Relaxed),
            trap_ns: answer.trap_ns.load(Ordering::Relaxed),
            length: answer.length.load(Ordering::Relaxed),
        };
        load(&answer.data, data, found.length, "fastcall answer length")?;
        self.is_under_way = false;
        Ok(Some(found))
    }

    /// Asks for the call doorbell. `true`: the answer is not there, sleep now. `false`: it may be, poll again.
    ///
    /// # Errors
    ///
    /// As [`Self::poll`].
    pub fn arm(&mut self, data: &mut Data) -> std::result::Result<Waiting, Fault> {
        self.call.acknowledge();
        if let Some(answer) = self.poll(data)? {
            return Ok(Waiting::Over(answer));
        }
        Ok(if self.call.arm() { Waiting::Asleep } else { Waiting::Again })
    }

    /// Awake again: no doorbell, please.
    pub fn disarm(&self) {
        self.call.mask();
    }
}

/// What became of trying to sleep until an answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It is here.
    Over(Answer),
    /// It is not; the doorbell will ring.
    Asleep,
    /// Something moved meanwhile; try again.
    Again,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// The host's end.
pub struct Server {
    memory: SlotMemory,
    /// Requests taken.
    taken: u32,
    kick: Listener,
    call: Notifier,
}

impl Server {
    /// Takes the host's end of a slot. One per slot: the caller keeps that promise.
    #[must_use]
    pub fn new(memory: SlotMemory) -> Self {
        Self::starting_at(memory, 0)
    }

    /// As [`Self::new`], but after `sequence` calls.
    #[doc(hidden)]
    #[must_use]
    pub fn starting_at(memory: SlotMemory, sequence: u32) -> Self {
        Self { kick: Listener::new(memory.kick()), call: Notifier::new(memory.call()), memory, taken: sequence }
    }

    /// The next request, if there is one; its data in front of `data`. Answer it before the next is taken.
    ///
    /// # Errors
    ///
    /// The guest's fault: its count moved by more than one, or backwards. There is no telling what it waits for.
    #[inline]
    pub fn take(&mut self, data: &mut Data) -> std::result::Result<Option<Request>, Fault> {
        let request = &self.memory.slot().request;
        // [FC-1 request visible] acquire: the sequence before the request; partner in Caller::begin.
        let sequence = request.sequence.load(ordering("fastcall_request_loaded", Ordering::Acquire));
        if sequence == self.taken {
            return Ok(None);
        }
        let next = self.taken.wrapping_add(1);
        if sequence != next {
            return Err(Fault::BadSize { what: "fastcall sequence", found: sequence.into(), limit: next.into() });
        }
        self.taken = next;
        let found = Request {
            device: request.device.load(Ordering::Relaxed),
            function: request.function.load(Ordering::Relaxed),
            length: request.length.load(Ordering::Relaxed),
        };
        // Too long is the caller's own business: it is refused, by whoever answers.
        let _ = load(&request.data, data, found.length, "fastcall length");
        Ok(Some(found))
    }

    /// Answers the request taken last. `true`: the caller sleeps, ring the call doorbell now.
    ///
    /// `data` is at most [`DATA_BYTES`] long; more is cut off.
    #[must_use = "true means the caller sleeps until its doorbell is rung"]
    #[inline]
    pub fn answer(&mut self, status: u32, trap_ns: u32, data: &[u8]) -> bool {
        let data = &data[..data.len().min(DATA_BYTES)];
        let answer = &self.memory.slot().answer;
        answer.status.store(status, Ordering::Relaxed);
        answer.trap_ns.store(trap_ns, Ordering::Relaxed);
        answer.length.store(data.len() as u32, Ordering::Relaxed);
        store(&answer.data, data);
        // [FC-2 answer visible] release: the answer before its sequence; partner in Caller::poll.
        answer.sequence.store(self.taken, ordering("fastcall_answer_stored", Ordering::Release));
        self.call.inject()
    }

    /// Asks for the kick doorbell. `true`: there is no request, sleep. `false`: there may be one; take again.
    #[must_use = "false means there may be a request and no doorbell will ring for it"]
    pub fn arm(&self) -> bool {
        self.kick.acknowledge();
        self.memory.slot().request.sequence.load(Ordering::Relaxed) == self.taken && self.kick.arm()
    }

    /// Awake again: no doorbell, please.
    pub fn disarm(&self) {
        self.kick.mask();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("taken", &self.taken).finish_non_exhaustive()
    }
}

/// Both ends of a slot in this process's own memory, for models and tests.
#[must_use]
pub fn pair_on_heap() -> (Caller, Server) {
    pair_starting_at(0)
}

/// As [`pair_on_heap`], after `sequence` calls.
#[doc(hidden)]
#[must_use]
pub fn pair_starting_at(sequence: u32) -> (Caller, Server) {
    let memory = SlotMemory::on_heap();
    (Caller::starting_at(memory.clone(), sequence), Server::starting_at(memory, sequence))
}

/// Words, not bytes: what the other side changes meanwhile is torn at most, and never undefined.
#[inline]
fn store(words: &[AtomicU64; FASTCALL_DATA_WORDS], data: &[u8]) {
    let (whole, rest) = data.as_chunks::<8>();
    for (word, part) in words.iter().zip(whole) {
        word.store(u64::from_le_bytes(*part), Ordering::Relaxed);
    }
    if let Some(word) = words.get(whole.len())
        && !rest.is_empty()
    {
        let mut part = [0; 8];
        part[..rest.len()].copy_from_slice(rest);
        word.store(u64::from_le_bytes(part), Ordering::Relaxed);
    }
}

/// Copies the words that hold `length` bytes. Behind `length`, `data` may hold what else was in the last word.
#[inline]
fn load(
    words: &[AtomicU64; FASTCALL_DATA_WORDS],
    data: &mut Data,
    length: u32,
    what: &'static str,
) -> std::result::Result<(), Fault> {
    let Some(words) = words.get(..(length as usize).div_ceil(8)) else {
        return Err(Fault::BadSize { what, found: length.into(), limit: DATA_BYTES as u64 });
    };
    for (part, word) in data.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *part = word.load(Ordering::Relaxed).to_le_bytes();
    }
    Ok(())
}
