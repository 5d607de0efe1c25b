//! shm-signal: how one side tells the other that there is work, without a system call while the other is awake.
//!
//! ```text
//!            sender (Notifier)                        receiver (Listener)
//!   inject:  dirty += 1       (release SG-2)  acknowledge: seen = dirty (acquire SG-2), then drain the queue
//!            ── fence [SG-1] ──               arm:         enabled = number of this arming
//!            enabled, and not the arming                   ── fence [SG-1] ──
//!            rung for already?                             dirty != seen? then enabled = 0 and drain again, else sleep
//!              pending = enabled, ring
//! ```
//!
//! Who writes what: the receiver writes `enabled`, the sender `dirty` and `pending`: every word has one writer, nothing
//! is ever cleared by the other side, so no mark can be wiped out by accident. The original had both sides set and clear
//! the same flags with store barriers between; `tests/loom_signal.rs` shows what is lost without each ordering here.
//! Spurious wake-ups are allowed, lost ones are not: whichever of the two fences `SG-1` comes second in the total order
//! of fences sees the other side's store, so either the sender sees `enabled` or the receiver sees `dirty` move.
//! A peer that scribbles over these words delays its own wake-ups and nobody else's.
//!
//! Who rings leaves a [`stamp`], and who was woken tells how long that took: two words beside those, on the way of a system
//! call only.
//!
//! Source: vbus shm-signal (inject, wakeup, enable, disable); `docs/wire/signal.md` has the bytes.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::layout::SignalWords;
use super::stamp::{self, Age};
use crate::sync::{AtomicU32, AtomicU64, Ordering, full_fence, ordering};

/// Keeps mapped memory alive for as long as something points into it.
pub(crate) type Owner = Arc<dyn Any + Send + Sync>;

/// One direction of a signal, wherever its words are.
#[derive(Clone)]
pub(crate) struct SignalMemory {
    words: NonNull<SignalWords>,
    _owner: Owner,
}

// SAFETY: the words are atomics, reachable for as long as `_owner` lives, and every access goes through them.
unsafe impl Send for SignalMemory {}
// SAFETY: as above; which thread may do what is the business of the halves.
unsafe impl Sync for SignalMemory {}

impl SignalMemory {
    /// # Safety
    ///
    /// `words` must stay valid and be accessed by atomics only for as long as `owner` lives.
    pub(crate) unsafe fn new(words: NonNull<SignalWords>, owner: Owner) -> Self {
        Self { words, _owner: owner }
    }

    fn words(&self) -> &SignalWords {
        // SAFETY: valid for the life of `_owner`, as promised to `new`.
        unsafe { self.words.as_ref() }
    }
}

/// The sending half of one direction.
pub struct Notifier {
    memory: SignalMemory,
    /// What `dirty` says.
    injected: Cell<u32>,
    /// Arming the bell was last rung for; what `pending` says.
    rung: Cell<u32>,
    /// The stamp left last, and when that was, in nanoseconds; 0: it was answered.
    rung_at: Cell<u64>,
    rung_ns: Cell<u64>,
}

impl Notifier {
    /// Takes the sending half. One per direction: the caller keeps that promise.
    pub(crate) fn new(memory: SignalMemory) -> Self {
        memory.words().sender.pending.store(0, Ordering::Relaxed);
        let injected = memory.words().sender.dirty.load(Ordering::Relaxed);
        Self { memory, injected: Cell::new(injected), rung: Cell::new(0), rung_at: Cell::new(0), rung_ns: Cell::new(0) }
    }

    /// Marks that something happened. `true`: the receiver sleeps, ring its doorbell now.
    ///
    /// Call it after the work itself was published. Cost: one store, one fence, one load.
    #[must_use = "true means the receiver sleeps until its doorbell is rung"]
    #[inline]
    pub fn inject(&self) -> bool {
        let words = self.memory.words();
        let injected = self.injected.get().wrapping_add(1);
        self.injected.set(injected);
        // [SG-2 seen means drained] release: the work before its mark; partner in Listener::acknowledge.
        words.sender.dirty.store(injected, ordering("signal_dirty", Ordering::Release));
        // [SG-1 sleep or see] store of dirty before load of enabled; partner in Listener::arm.
        full_fence("signal_inject");
        let enabled = words.receiver.enabled.load(Ordering::Relaxed);
        if enabled == 0 || enabled == self.rung.get() {
            return false;
        }
        self.rung.set(enabled);
        words.sender.pending.store(enabled, Ordering::Relaxed);
        true
    }

    /// Whether the next [`Self::inject`] would say that the receiver sleeps, as far as can be seen now.
    #[inline]
    pub(crate) fn would_ring(&self) -> bool {
        let enabled = self.memory.words().receiver.enabled.load(Ordering::Relaxed);
        enabled != 0 && enabled != self.rung.get()
    }

    /// How long the receiver took to hear the last ring, as it says; known once it has slept again.
    pub(crate) fn heard_after(&self, now_ns: u64) -> Age {
        let asked_ns = self.rung_ns.get();
        let heard = self.memory.words().receiver.heard.load(Ordering::Relaxed);
        // A ring that is asked for now has its number in `rung` already.
        if asked_ns == 0 || !stamp::is_about(heard, stamp::tag(self.rung_at.get())) {
            return Age::Unknown;
        }
        self.rung_ns.set(0);
        stamp::answered(heard, asked_ns, now_ns)
    }

    /// Says that the doorbell is rung now, at `now_ns` of CLOCK_MONOTONIC, after [`Self::inject`] asked for it.
    pub(crate) fn ringing(&self, now_ns: u64) {
        let word = stamp::stamp(self.rung.get(), now_ns);
        self.rung_at.set(word);
        self.rung_ns.set(now_ns);
        self.memory.words().sender.rung_at.store(word, Ordering::Relaxed);
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier").field("words", self.memory.words()).finish()
    }
}

/// The sending half of one direction for senders on several threads, who all belong to one process.
pub(crate) struct SharedNotifier {
    memory: SignalMemory,
    /// Arming the bell was last rung for; what `pending` says.
    rung: AtomicU32,
    /// The stamp left last, and when that was; each by whoever rang.
    rung_at: AtomicU64,
    rung_ns: AtomicU64,
}

impl SharedNotifier {
    /// Takes the sending half. One per direction: the caller keeps that promise.
    pub(crate) fn new(memory: SignalMemory) -> Self {
        memory.words().sender.pending.store(0, Ordering::Relaxed);
        Self { memory, rung: AtomicU32::new(0), rung_at: AtomicU64::new(0), rung_ns: AtomicU64::new(0) }
    }

    /// Marks that something happened, as [`Notifier::inject`] does. `true`: the receiver sleeps, and the bell is this
    /// caller's to ring; of all who find one arming, one does.
    #[must_use = "true means the receiver sleeps until its doorbell is rung"]
    pub(crate) fn inject(&self) -> bool {
        let words = self.memory.words();
        // [SG-2 seen means drained] release: the work before its mark; partner in Listener::acknowledge.
        words.sender.dirty.fetch_add(1, Ordering::Release);
        // [SG-1 sleep or see] store of dirty before load of enabled; partner in Listener::arm.
        full_fence("intc_shared_inject");
        let enabled = words.receiver.enabled.load(Ordering::Relaxed);
        let mut rung = self.rung.load(Ordering::Relaxed);
        // An arming older than the one rung for is over: armings are numbered upwards, modulo 2^32. The receiver may have
        // counted far before we came, so the first one is believed whatever its number.
        while enabled != 0 && (rung == 0 || enabled.wrapping_sub(rung).cast_signed() > 0) {
            match self.rung.compare_exchange_weak(rung, enabled, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    words.sender.pending.store(enabled, Ordering::Relaxed);
                    return true;
                }
                Err(newer) => rung = newer,
            }
        }
        false
    }

    /// As [`Notifier::heard_after`]. Whoever asks first is told.
    pub(crate) fn heard_after(&self, now_ns: u64) -> Age {
        let asked_ns = self.rung_ns.load(Ordering::Relaxed);
        let heard = self.memory.words().receiver.heard.load(Ordering::Relaxed);
        let is_answer = stamp::is_about(heard, stamp::tag(self.rung_at.load(Ordering::Relaxed)));
        if asked_ns == 0 || !is_answer || self.rung_ns.swap(0, Ordering::Relaxed) != asked_ns {
            return Age::Unknown;
        }
        stamp::answered(heard, asked_ns, now_ns)
    }

    /// As [`Notifier::ringing`]. Should another thread have rung for a newer arming, this stamp names one that is over and
    /// is passed over.
    pub(crate) fn ringing(&self, now_ns: u64) {
        let word = stamp::stamp(self.rung.load(Ordering::Relaxed), now_ns);
        self.rung_at.store(word, Ordering::Relaxed);
        self.rung_ns.store(now_ns, Ordering::Relaxed);
        self.memory.words().sender.rung_at.store(word, Ordering::Relaxed);
    }
}

impl fmt::Debug for SharedNotifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedNotifier").field("words", self.memory.words()).finish()
    }
}

/// The receiving half of one direction.
pub struct Listener {
    memory: SignalMemory,
    /// What `dirty` said when last acknowledged.
    seen: Cell<u32>,
    /// Number of the last arming; never 0.
    arming: Cell<u32>,
    /// The arming whose ring was timed last.
    timed: Cell<u32>,
}

impl Listener {
    /// Takes the receiving half, masked. One per direction: the caller keeps that promise.
    pub(crate) fn new(memory: SignalMemory) -> Self {
        memory.words().receiver.enabled.store(0, Ordering::Relaxed);
        // A sender that was here before remembers the arming it rang for last: begin behind that one.
        let arming = memory.words().sender.pending.load(Ordering::Relaxed);
        Self { memory, seen: Cell::new(0), arming: Cell::new(arming), timed: Cell::new(0) }
    }

    /// Notes what was signalled so far. Call it before draining the queue, never after.
    pub fn acknowledge(&self) {
        // [SG-2 seen means drained] acquire: whoever notes a mark sees the work it stands for; partner in
        // Notifier::inject.
        let order = ordering("signal_acknowledge", Ordering::Acquire);
        self.seen.set(self.memory.words().sender.dirty.load(order));
    }

    /// Asks for the doorbell. `true`: nothing came in since [`Self::acknowledge`], sleep now. `false`: something did,
    /// the signal is masked again; acknowledge, drain and try once more.
    #[must_use = "false means there is work and no doorbell will ring for it"]
    pub fn arm(&self) -> bool {
        let words = self.memory.words();
        let arming = self.arming.get().wrapping_add(1).max(1);
        self.arming.set(arming);
        words.receiver.enabled.store(arming, Ordering::Relaxed);
        // [SG-1 sleep or see] store of enabled before load of dirty; partner in Notifier::inject.
        full_fence("signal_arm");
        if words.sender.dirty.load(Ordering::Relaxed) == self.seen.get() {
            return true;
        }
        self.mask();
        false
    }

    /// How long ago the doorbell was rung for this sleep, asked when it was heard; once for each.
    #[inline]
    pub(crate) fn woken_after(&self, now_ns: impl FnOnce() -> u64) -> Age {
        let arming = self.arming.get();
        let word = self.memory.words().sender.rung_at.load(Ordering::Relaxed);
        if !stamp::is_about(word, arming) || self.timed.get() == arming {
            return Age::Unknown;
        }
        self.timed.set(arming);
        stamp::age(word, now_ns())
    }

    /// As [`Self::mask`], for a receiver that was asleep: also tells what [`Self::answer`] does.
    pub(crate) fn wake(&self, now_ns: impl FnOnce() -> u64) {
        self.answer(now_ns);
        self.mask();
    }

    /// Tells the sender how long its ring took to be heard, if this is the first look since.
    pub(crate) fn answer(&self, now_ns: impl FnOnce() -> u64) {
        if let Age::Nanoseconds(age_ns) = self.woken_after(now_ns) {
            let answer = stamp::stamp(self.arming.get(), age_ns);
            self.memory.words().receiver.heard.store(answer, Ordering::Relaxed);
        }
    }

    /// No more doorbells: the receiver is awake and polls. What happens meanwhile is kept in `dirty`.
    pub fn mask(&self) {
        self.memory.words().receiver.enabled.store(0, Ordering::Relaxed);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("words", self.memory.words()).finish()
    }
}
