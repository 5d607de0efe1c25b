//! The interrupt controller: which signals are pending for one vCPU at one priority, as bits that anyone may raise.
//!
//! ```text
//!            raiser (any thread of one process)              taker (one thread of the other)
//!   raise:   pending |= bit   was set? coalesced, done   take:  seen = dirty
//!            summary |= word                                    summary → 0, each word named there:
//!            ── fence [IC-3] ──                                   pending &= ~taken      (not the masked ones)
//!            masked? done                                       handler runs, in_service = vector + 1
//!            shm-signal: dirty += 1, asleep? ring               end of interrupt: in_service = 0, a store
//! ```
//!
//! A *level* is one priority of one vCPU: a bitmap of 4096 vectors with a summary word, a mask, and a doorbell of its own.
//! Raising is an atomic OR, so a million raises of one signal occupy one bit and nothing can overflow; a raise of what is
//! pending already costs no system call, and of all who find the taker asleep one rings. A guest has eight levels a vCPU,
//! which the host raises and a thread of the guest takes. The same structure the other way round, with the `kick` half
//! of its shm-signal, is a guest's *outbox*: doorbells it raises for others, which the host takes.
//!
//! Who writes what: raisers only ever set bits of `pending` and `summary`, the taker only ever clears them (and sets
//! summary bits again for what it left); `mask`, `held`, `in_service` and the counts belong to the taker. The danger: the
//! memory is the guest's, who may write anything at any time. It changes what the guest itself is told, or what vectors
//! it asks the host for, which the host looks up before it believes them; no loop here depends on what is found.
//! Source: vbus event queue ("shared-memory interrupt controller"), with bits instead of a ring; `docs/wire/intc.md`.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::layout::{SIGNAL_PAIR_BYTES, SignalPair};
use super::signal::{Listener, Owner, SharedNotifier, SignalMemory};
use super::stamp::Age;
use crate::sync::{AtomicU32, AtomicU64, Ordering, full_fence, ordering};
#[cfg(not(loom))]
use crate::{
    error::{Error, Fault, Result},
    shm::{
        layout::{LINE_PAIR, RAM_HEADER_BYTES, SIGNAL_MAGIC, SIGNAL_VERSION},
        region::Ram,
    },
};

/// First four bytes of a level: `vINT`.
pub const LEVEL_MAGIC: u32 = u32::from_le_bytes(*b"vINT");
/// Version of the layout.
pub const LEVEL_VERSION: u32 = 1;
/// Words of a bitmap. A model checks two.
const WORDS: usize = if cfg!(loom) { 2 } else { 64 };
/// Signals one controller can tell apart.
pub const VECTORS: u32 = 64 * WORDS as u32;
/// Priorities of a vCPU; 7 is the most urgent.
pub const PRIORITIES: u32 = 8;
/// Bytes of one level.
pub const LEVEL_BYTES: usize = 0x800;

/// What the taker alone writes.
#[repr(C, align(128))]
#[derive(Debug)]
struct TakerWords {
    /// The vector being served, plus one; 0 = none. Storing 0 is the end of the interrupt.
    in_service: AtomicU32,
    /// 1 while the vCPU's threshold is above this priority: nothing is taken and no doorbell is wanted.
    held: AtomicU32,
    /// When the vector in service was begun, CLOCK_MONOTONIC in nanoseconds.
    since_ns: AtomicU64,
    /// Interrupts ended.
    served: AtomicU64,
    /// Times the taker was woken and found nothing.
    spurious: AtomicU64,
}

/// One level, or one outbox.
#[repr(C, align(128))]
#[derive(Debug)]
struct LevelWords {
    magic: AtomicU32,
    version: AtomicU32,
    taker: TakerWords,
    /// Bit `w`: word `w` of `pending` may have something. Set by raisers, cleared by the taker.
    summary: Padded64,
    signal: SignalPair,
    pending: [AtomicU64; WORDS],
    mask: [AtomicU64; WORDS],
}

#[repr(C, align(128))]
#[derive(Debug)]
struct Padded64(AtomicU64);

impl LevelWords {
    fn new() -> Self {
        Self {
            magic: AtomicU32::new(LEVEL_MAGIC),
            version: AtomicU32::new(LEVEL_VERSION),
            taker: TakerWords {
                in_service: AtomicU32::new(0),
                held: AtomicU32::new(0),
                since_ns: AtomicU64::new(0),
                served: AtomicU64::new(0),
                spurious: AtomicU64::new(0),
            },
            summary: Padded64(AtomicU64::new(0)),
            signal: SignalPair::new(),
            pending: std::array::from_fn(|_| AtomicU64::new(0)),
            mask: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

#[cfg(not(loom))]
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<LevelWords>() == LEVEL_BYTES);
    assert!(offset_of!(LevelWords, taker) == 0x80);
    assert!(offset_of!(TakerWords, held) == 4);
    assert!(offset_of!(TakerWords, since_ns) == 8);
    assert!(offset_of!(TakerWords, served) == 16);
    assert!(offset_of!(TakerWords, spurious) == 24);
    assert!(offset_of!(LevelWords, summary) == 0x100);
    assert!(offset_of!(LevelWords, signal) == LEVEL_SIGNAL_OFFSET);
    assert!(offset_of!(LevelWords, pending) == 0x400);
    assert!(offset_of!(LevelWords, mask) == 0x600);
};

/// Where a level's shm-signal is.
pub const LEVEL_SIGNAL_OFFSET: usize = 0x180;
const _: () = assert!(LEVEL_SIGNAL_OFFSET + SIGNAL_PAIR_BYTES <= 0x400);

/// `(structure, field, byte offset, byte size)` of every word: what `docs/wire/intc.md` must say.
#[cfg(not(loom))]
pub(crate) const WIRE_ROWS: [(&str, &str, usize, usize); 11] = [
    ("level", "magic", 0, 4),
    ("level", "version", 4, 4),
    ("level", "in_service", 0x80, 4),
    ("level", "held", 0x84, 4),
    ("level", "since_ns", 0x88, 8),
    ("level", "served", 0x90, 8),
    ("level", "spurious", 0x98, 8),
    ("level", "summary", 0x100, 8),
    ("level", "signal", LEVEL_SIGNAL_OFFSET, SIGNAL_PAIR_BYTES),
    ("level", "pending", 0x400, 0x200),
    ("level", "mask", 0x600, 0x200),
];

/// Who takes: which half of the shm-signal tells whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The host raises, the guest takes: a level of a vCPU.
    ToGuest,
    /// The guest raises, the host takes: an outbox.
    ToHost,
}

/// Where a level is, checked once.
#[derive(Clone)]
pub struct LevelMemory {
    words: NonNull<LevelWords>,
    owner: Owner,
}

// SAFETY: atomics only, reachable for as long as `owner` lives.
unsafe impl Send for LevelMemory {}
// SAFETY: as above.
unsafe impl Sync for LevelMemory {}

impl LevelMemory {
    /// A level in this process's own memory, for models, tests and the bare limits of benchmarks.
    #[must_use]
    pub fn on_heap() -> Self {
        let words = Arc::new(LevelWords::new());
        Self { words: NonNull::from(&*words), owner: words }
    }

    /// Lays an empty level out at `offset` of memory that is ours: the guest does.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the place is misaligned or outside the region.
    #[cfg(not(loom))]
    pub fn format(ram: &Arc<Ram>, offset: u32) -> Result<Self> {
        let words = Self::place(ram, offset).map_err(|fault| Error::Usage(fault.to_string()))?;
        // SAFETY: `place` checked alignment and bounds; nobody else knows of this level yet.
        unsafe { words.write(LevelWords::new()) };
        Ok(Self { words, owner: ram.clone() })
    }

    /// Believes a level that a guest laid out in `length` bytes at `offset`, after checking all of it.
    ///
    /// # Errors
    ///
    /// The guest's fault: place, length, magic or version cannot be.
    #[cfg(not(loom))]
    pub fn attach(ram: &Arc<Ram>, offset: u32, length: u32) -> std::result::Result<Self, Fault> {
        if length as usize != LEVEL_BYTES {
            return Err(Fault::BadSize { what: "level length", found: length.into(), limit: LEVEL_BYTES as u64 });
        }
        let words = Self::place(ram, offset)?;
        let memory = Self { words, owner: ram.clone() };
        let shared = memory.words();
        let expect = |what, found: u32, expected: u32| {
            if found == expected {
                Ok(())
            } else {
                Err(Fault::BadHeader { what, found: found.into(), expected: expected.into() })
            }
        };
        expect("level magic", shared.magic.load(Ordering::Relaxed), LEVEL_MAGIC)?;
        expect("level version", shared.version.load(Ordering::Relaxed), LEVEL_VERSION)?;
        expect("level signal magic", shared.signal.magic.load(Ordering::Relaxed), SIGNAL_MAGIC)?;
        expect("level signal version", shared.signal.version.load(Ordering::Relaxed), SIGNAL_VERSION)?;
        Ok(memory)
    }

    #[cfg(not(loom))]
    fn place(ram: &Arc<Ram>, offset: u32) -> std::result::Result<NonNull<LevelWords>, Fault> {
        if !(offset as usize).is_multiple_of(LINE_PAIR) {
            return Err(Fault::BadSize { what: "level alignment", found: offset.into(), limit: LINE_PAIR as u64 });
        }
        if offset < RAM_HEADER_BYTES {
            return Err(Fault::OverlapsControl { offset, length: LEVEL_BYTES as u32, start: 0, end: RAM_HEADER_BYTES });
        }
        Ok(ram.at(offset, LEVEL_BYTES)?.cast())
    }

    fn words(&self) -> &LevelWords {
        // SAFETY: valid for the life of `owner`, as checked when this was made.
        unsafe { self.words.as_ref() }
    }

    fn signal(&self, way: Way) -> SignalMemory {
        let pair = &self.words().signal;
        let half = match way {
            Way::ToGuest => &pair.call,
            Way::ToHost => &pair.kick,
        };
        // SAFETY: the words live inside the level, for as long as `owner`.
        unsafe { SignalMemory::new(NonNull::from(half), self.owner.clone()) }
    }

    /// Wake-ups that found nothing, as the taker says.
    #[must_use]
    pub fn spurious(&self) -> u64 {
        self.words().taker.spurious.load(Ordering::Relaxed)
    }

    /// What an onlooker can say of the level. Each word is read once; they need not belong together.
    #[must_use]
    pub fn snapshot(&self) -> LevelSnapshot {
        let words = self.words();
        let masked = |index: usize| words.mask[index].load(Ordering::Relaxed);
        let pending = |index: usize| words.pending[index].load(Ordering::Relaxed);
        LevelSnapshot {
            pending: (0..WORDS).map(|index| (pending(index) & !masked(index)).count_ones()).sum(),
            masked_pending: (0..WORDS).map(|index| (pending(index) & masked(index)).count_ones()).sum(),
            in_service: match words.taker.in_service.load(Ordering::Relaxed) {
                0 => None,
                vector => Some(vector - 1),
            },
            since_ns: words.taker.since_ns.load(Ordering::Relaxed),
            is_held: words.taker.held.load(Ordering::Relaxed) != 0,
            is_asleep: words.signal.call.receiver.enabled.load(Ordering::Relaxed) != 0,
            served: words.taker.served.load(Ordering::Relaxed),
            spurious: words.taker.spurious.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for LevelMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelMemory").field("now", &self.snapshot()).finish()
    }
}

/// A level as it was at some moment; what the taker wrote may be lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelSnapshot {
    /// Signals that wait to be taken.
    pub pending: u32,
    /// Signals that were raised while they were masked.
    pub masked_pending: u32,
    /// The vector whose handler runs.
    pub in_service: Option<u32>,
    /// Since when, CLOCK_MONOTONIC in nanoseconds.
    pub since_ns: u64,
    /// The threshold of the vCPU is above this priority.
    pub is_held: bool,
    /// The taker asked for its doorbell.
    pub is_asleep: bool,
    /// Interrupts ended so far.
    pub served: u64,
    /// Wake-ups that found nothing so far.
    pub spurious: u64,
}

/// What became of a raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// It was pending already: nothing more was done.
    Pending,
    /// It is pending now, but masked; the taker finds it when it unmasks.
    Masked,
    /// It is pending now, and the taker is awake or was rung for another signal.
    Awake,
    /// It is pending now, and the taker sleeps: ring its doorbell.
    Asleep,
}

/// The raising half of a level: any number of threads of one process.
pub struct Raiser {
    memory: LevelMemory,
    notifier: SharedNotifier,
}

impl Raiser {
    /// Takes the raising half. One per level: the caller keeps that promise.
    #[must_use]
    pub fn new(memory: LevelMemory, way: Way) -> Self {
        let notifier = SharedNotifier::new(memory.signal(way));
        Self { memory, notifier }
    }

    /// Raises `vector`, modulo [`VECTORS`]. Cost when it is pending already: one atomic OR.
    #[must_use = "Asleep means that its doorbell must be rung"]
    #[inline]
    pub fn raise(&self, vector: u32) -> Raised {
        let (word, bit) = place_of(vector);
        let words = self.memory.words();
        // [IC-1 raised means visible] release: the work before its bit, also when the bit was set already; partner in
        // Taker::take.
        let before = words.pending[word].fetch_or(bit, ordering("intc_pending", Ordering::Release));
        if before & bit != 0 {
            return Raised::Pending;
        }
        // [IC-2 summary means look] release: the bit before the word that leads to it; partner in Taker::take.
        words.summary.0.fetch_or(1 << word, ordering("intc_summary", Ordering::Release));
        // [IC-3 masked or seen] store of pending before load of mask; partner in Taker::unmask.
        full_fence("intc_raise");
        if words.mask[word].load(Ordering::Relaxed) & bit != 0 {
            return Raised::Masked;
        }
        if self.notifier.inject() { Raised::Asleep } else { Raised::Awake }
    }

    /// Says that the doorbell is rung, at `now_ns` of CLOCK_MONOTONIC, after [`Self::raise`] asked for it. Gives how long
    /// the taker took to hear the last ring, as it says.
    pub fn ringing(&self, now_ns: u64) -> Age {
        let age = self.heard_after(now_ns);
        self.notifier.ringing(now_ns);
        age
    }

    /// How long the taker took to hear the last ring, as it says; once for each.
    pub fn heard_after(&self, now_ns: u64) -> Age {
        self.notifier.heard_after(now_ns)
    }

    /// The level, for onlookers.
    #[must_use]
    pub const fn memory(&self) -> &LevelMemory {
        &self.memory
    }
}

impl fmt::Debug for Raiser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raiser").field("memory", &self.memory).finish_non_exhaustive()
    }
}

/// The taking half of a level: one thread.
pub struct Taker {
    memory: LevelMemory,
    listener: Listener,
    /// Vector at which the next take begins, so that low vectors cannot starve high ones, whatever the budget.
    cursor: u32,
    has_more: bool,
}

impl Taker {
    /// Takes the taking half. One per level: the caller keeps that promise.
    #[must_use]
    pub fn new(memory: LevelMemory, way: Way) -> Self {
        let listener = Listener::new(memory.signal(way));
        Self { memory, listener, cursor: 0, has_more: false }
    }

    /// Takes up to `budget` pending signals and hands each to `found`; gives how many. What is masked stays.
    ///
    /// [`Self::has_more`] tells afterwards whether the budget ended it. Bounded by the size of the bitmap, whatever the
    /// other side writes meanwhile.
    pub fn take(&mut self, budget: u32, mut found: impl FnMut(u32)) -> u32 {
        self.listener.acknowledge();
        let words = self.memory.words();
        // [IC-2 summary means look] acquire: a word's bit before the word; partner in Raiser::raise.
        let summary = words.summary.0.swap(0, ordering("intc_take_summary", Ordering::Acquire));
        let (start, from_cursor) = (self.cursor / u64::BITS, u64::MAX << (self.cursor % u64::BITS));
        let mut left = summary.rotate_right(start);
        // The word in which the last take ended has two turns: first what is above the cursor, at last what is below.
        let mut is_rest_due = left & 1 != 0 && from_cursor != u64::MAX;
        let mut unseen = 0;
        let mut count = 0;
        while left != 0 || is_rest_due {
            let (index, eligible) = if left == 0 {
                is_rest_due = false;
                (start, !from_cursor)
            } else {
                let ahead = left.trailing_zeros();
                left &= left - 1;
                ((ahead + start) % u64::BITS, if ahead == 0 { from_cursor } else { u64::MAX })
            };
            let Some(pending) = words.pending.get(index as usize) else { continue };
            if count == budget {
                unseen |= 1 << index;
                continue;
            }
            let eligible = eligible & !words.mask[index as usize].load(Ordering::Relaxed);
            let taken = lowest(pending.load(Ordering::Relaxed) & eligible, budget - count);
            if taken == 0 {
                continue;
            }
            // [IC-1 raised means visible] acquire: the bit before the work behind it; partner in Raiser::raise.
            let before = pending.fetch_and(!taken, ordering("intc_take_pending", Ordering::Acquire));
            let mut bits = taken & before;
            while bits != 0 {
                found(index * u64::BITS + bits.trailing_zeros());
                bits &= bits - 1;
                count += 1;
            }
            self.cursor = (index + 1) * u64::BITS % VECTORS;
            if before & !taken & eligible != 0 {
                unseen |= 1 << index;
                self.cursor = index * u64::BITS + (u64::BITS - taken.leading_zeros()) % u64::BITS;
            }
        }
        if unseen != 0 {
            words.summary.0.fetch_or(unseen, Ordering::Relaxed);
        }
        self.has_more = unseen != 0;
        count
    }

    /// The last take left something that it could have taken.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.has_more
    }

    /// Asks for the doorbell. `true`: nothing came in since the last take, sleep now. `false`: take again.
    #[must_use = "false means there is work and no doorbell will ring for it"]
    pub fn arm(&self) -> bool {
        !self.has_more && self.listener.arm()
    }

    /// As [`Self::disarm`], after a sleep: also tells what [`Self::answer`] does.
    pub fn wake(&self, now_ns: impl FnOnce() -> u64) {
        self.listener.wake(now_ns);
    }

    /// Tells the raiser how long its ring took to be heard, if this is the first look since.
    pub fn answer(&self, now_ns: impl FnOnce() -> u64) {
        self.listener.answer(now_ns);
    }

    /// How long ago the doorbell was rung for the sleep that it ended; once for each.
    pub fn woken_after(&self, now_ns: impl FnOnce() -> u64) -> Age {
        self.listener.woken_after(now_ns)
    }

    /// No doorbell is wanted: the taker is awake, or holds this level back.
    pub fn disarm(&self) {
        self.listener.mask();
    }

    /// What this half shares with other threads of its process.
    #[must_use]
    pub fn gate(&self) -> Gate {
        Gate { memory: self.memory.clone() }
    }

    /// The handler of `vector` begins, at `now_ns` of CLOCK_MONOTONIC.
    pub fn begin(&self, vector: u32, now_ns: u64) {
        let taker = &self.memory.words().taker;
        taker.since_ns.store(now_ns, Ordering::Relaxed);
        taker.in_service.store(vector.wrapping_add(1), Ordering::Relaxed);
    }

    /// End of interrupt: the handler has returned.
    pub fn end(&self) {
        let taker = &self.memory.words().taker;
        taker.served.store(taker.served.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        taker.in_service.store(0, Ordering::Relaxed);
    }

    /// The taker was woken and found nothing.
    pub fn count_spurious(&self) {
        let spurious = &self.memory.words().taker.spurious;
        spurious.store(spurious.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

impl fmt::Debug for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taker").field("memory", &self.memory).finish_non_exhaustive()
    }
}

/// What any thread of the taker's process may do to a level: mask, and hold back.
#[derive(Clone, Debug)]
pub struct Gate {
    memory: LevelMemory,
}

impl Gate {
    /// Keeps `vector` from being taken; raises of it stay pending.
    pub fn mask(&self, vector: u32) {
        let (word, bit) = place_of(vector);
        self.memory.words().mask[word].fetch_or(bit, Ordering::Relaxed);
    }

    /// Lets `vector` be taken again. `true`: it was raised meanwhile and nobody rang; wake the taker.
    #[must_use = "true means that the taker must be woken"]
    pub fn unmask(&self, vector: u32) -> bool {
        let (word, bit) = place_of(vector);
        let words = self.memory.words();
        words.mask[word].fetch_and(!bit, Ordering::Relaxed);
        // [IC-3 masked or seen] store of mask before load of pending; partner in Raiser::raise.
        full_fence("intc_unmask");
        let is_pending = words.pending[word].load(Ordering::Relaxed) & bit != 0;
        if is_pending {
            words.summary.0.fetch_or(1 << word, Ordering::Relaxed);
        }
        is_pending
    }

    /// Says whether the vCPU's threshold is above this priority.
    pub fn set_held(&self, is_held: bool) {
        self.memory.words().taker.held.store(is_held.into(), Ordering::Relaxed);
    }

    /// Whether the level is held back.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.memory.words().taker.held.load(Ordering::Relaxed) != 0
    }
}

/// Word and bit of a vector.
#[inline]
const fn place_of(vector: u32) -> (usize, u64) {
    let vector = vector % VECTORS;
    ((vector / u64::BITS) as usize, 1 << (vector % u64::BITS))
}

/// The lowest `count` bits that are set.
fn lowest(bits: u64, count: u32) -> u64 {
    let mut rest = bits;
    for _ in 0..count.min(u64::BITS) {
        rest &= rest.wrapping_sub(1);
    }
    bits & !rest
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn lowest_bits_are_taken_and_no_more_than_asked_for() {
        let taken = [0, 1, 2, 3, 64].map(|count| lowest(0b1_1010, count));

        assert_eq!([0, 0b10, 0b1010, 0b1_1010, 0b1_1010], taken);
    }
}
