//! The guest's half of its interrupt controller: levels that threads of the guest serve, and the outbox it raises.
//!
//! ```text
//!   thread of priority p   wait ─▶ [vector, …]    begin(v) · handler · end()  ── a store ──▶ next
//!                            └ nothing: look on for a moment, arm, sleep on the level's own doorbell
//! ```
//!
//! Each priority has a thread and a doorbell of its own, so a more urgent handler runs while a less urgent one is still in
//! the middle of its work: the scheduler preempts, not we. A threshold holds the lower levels of a vCPU back; what was
//! raised there stays pending.
//!
//! Who writes what: see [`crate::shm::intc`]; this half formats the memory and owns the taker's words. What the host
//! raises is only ever a bit, so a host that lies costs a spurious handler call. Source: vbus event queues.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::error::Result;
use crate::shm::doorbell::Doorbell;
use crate::shm::intc::{Gate, LevelMemory, Raised, Raiser, Taker, Way};
use crate::shm::region::Ram;

/// Nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// How many signals one wait may bring, at most.
pub const BUDGET_MAX: u32 = 4096;

/// One priority of one vCPU, for the thread that serves it.
pub struct Level {
    taker: Taker,
    hand: LevelHand,
}

/// What other threads may do to a level: hold it back, mask signals of it, wake its thread.
#[derive(Clone)]
pub struct LevelHand {
    gate: Gate,
    bell: Arc<Doorbell>,
    /// Somebody of our own woke the thread: finding nothing is then nobody's fault.
    was_nudged: Arc<AtomicBool>,
}

impl LevelHand {
    /// Wakes the level's thread.
    ///
    /// # Errors
    ///
    /// The doorbell is no eventfd.
    pub fn nudge(&self) -> Result<()> {
        self.was_nudged.store(true, Ordering::Relaxed);
        self.bell.ring()
    }

    /// Keeps `vector` from being taken.
    pub fn mask(&self, vector: u32) {
        self.gate.mask(vector);
    }

    /// Lets `vector` be taken again, and wakes the thread if it was raised meanwhile.
    ///
    /// # Errors
    ///
    /// The doorbell is no eventfd.
    pub fn unmask(&self, vector: u32) -> Result<()> {
        if self.gate.unmask(vector) { self.nudge() } else { Ok(()) }
    }

    /// Holds the level back, or lets it go on.
    ///
    /// # Errors
    ///
    /// The doorbell is no eventfd.
    pub fn set_held(&self, is_held: bool) -> Result<()> {
        self.gate.set_held(is_held);
        if is_held { Ok(()) } else { self.nudge() }
    }

    /// Whether it is held back.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.gate.is_held()
    }
}

impl Level {
    /// Lays a level out at `offset` of the guest's memory; `bell` is what the host rings for it.
    ///
    /// # Errors
    ///
    /// As [`LevelMemory::format`].
    pub fn format(ram: &Arc<Ram>, offset: u32) -> Result<LevelMemory> {
        LevelMemory::format(ram, offset)
    }

    /// Takes the serving end of a level that was formatted and shown to the host.
    #[must_use]
    pub fn new(memory: LevelMemory, bell: Doorbell) -> Self {
        let taker = Taker::new(memory, Way::ToGuest);
        let hand = LevelHand { gate: taker.gate(), bell: Arc::new(bell), was_nudged: Arc::new(AtomicBool::new(false)) };
        Self { taker, hand }
    }

    /// What other threads need.
    #[must_use]
    pub fn hand(&self) -> LevelHand {
        self.hand.clone()
    }

    /// The doorbell, for somebody else's event loop.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.hand.bell.as_fd()
    }

    /// Takes what is pending, up to `budget` signals, without waiting; gives how many.
    pub fn take(&mut self, budget: u32, found: impl FnMut(u32)) -> u32 {
        if self.hand.is_held() { 0 } else { self.taker.take(budget, found) }
    }

    /// Asks for the doorbell, for those who wait elsewhere. `true`: nothing is pending, sleep now.
    #[must_use = "false means there is work and no doorbell will ring for it"]
    pub fn arm(&self) -> bool {
        self.hand.is_held() || self.taker.arm()
    }

    /// Sleeps until the doorbell rings, after [`Self::arm`] said so, and wants it no more. `true`: it rang.
    ///
    /// # Errors
    ///
    /// The system refused to wait.
    pub fn sleep(&self, timeout: Option<Duration>) -> Result<bool> {
        let was_rung = self.hand.bell.wait(timeout);
        self.taker.wake(monotonic_ns);
        was_rung
    }

    /// Forgets rings of the doorbell so far: for those who waited elsewhere, before the next [`Self::take`].
    pub fn quiet(&self) {
        self.hand.bell.quiet();
        self.taker.answer(monotonic_ns);
    }

    /// Waits until something is pending, for `timeout` at most, and takes up to `budget` signals; gives how many. Looks on
    /// for `spin` before it sleeps. 0: the time is up, or [`LevelHand::nudge`] or an interrupting signal ended the wait.
    ///
    /// # Errors
    ///
    /// The system refused to wait.
    pub fn wait(
        &mut self,
        budget: u32,
        spin: Duration,
        timeout: Option<Duration>,
        mut found: impl FnMut(u32),
    ) -> Result<u32> {
        let begun = Instant::now();
        loop {
            let taken = self.take(budget, &mut found);
            if taken != 0 {
                return Ok(taken);
            }
            let elapsed = begun.elapsed();
            let left = timeout.map(|timeout| timeout.saturating_sub(elapsed));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(0);
            }
            if elapsed < spin {
                std::hint::spin_loop();
                continue;
            }
            if !self.arm() {
                continue;
            }
            let was_rung = self.hand.bell.wait(left)?;
            self.taker.wake(monotonic_ns);
            let taken = self.take(budget, &mut found);
            if taken != 0 {
                self.hand.was_nudged.store(false, Ordering::Relaxed);
                return Ok(taken);
            }
            if self.hand.was_nudged.swap(false, Ordering::Relaxed) {
                return Ok(0);
            }
            if !was_rung {
                return Ok(0);
            }
            if !self.hand.is_held() {
                self.taker.count_spurious();
            }
        }
    }

    /// The handler of `vector` begins.
    pub fn begin(&self, vector: u32) {
        self.taker.begin(vector, monotonic_ns());
    }

    /// End of interrupt.
    pub fn end(&self) {
        self.taker.end();
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Level").field("taker", &self.taker).finish_non_exhaustive()
    }
}

impl fmt::Debug for LevelHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelHand").field("is_held", &self.is_held()).finish_non_exhaustive()
    }
}

/// The doorbells a guest raises for others: numbers that the host granted.
pub struct Outbox {
    raiser: Raiser,
    kick: Doorbell,
}

impl Outbox {
    /// Takes the raising end of an outbox that was formatted and shown to the host.
    #[must_use]
    pub fn new(memory: LevelMemory, kick: Doorbell) -> Self {
        Self { raiser: Raiser::new(memory, Way::ToHost), kick }
    }

    /// Raises `number`. `true`: the host slept and was woken.
    ///
    /// # Errors
    ///
    /// The doorbell is no eventfd.
    pub fn raise(&self, number: u32) -> Result<bool> {
        if self.raiser.raise(number) == Raised::Asleep {
            self.raiser.ringing(monotonic_ns());
            self.kick.ring()?;
            return Ok(true);
        }
        Ok(false)
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("raiser", &self.raiser).finish_non_exhaustive()
    }
}
