//! A line: one signal of the host, with a name and a route, raised from any thread.
//!
//! ```text
//!   worker, timer, operator …                                          ┌─▶ Bell     an eventfd, anybody's
//!        raise ──▶ Line: masked? latched ── priority ── target ────────┼─▶ Vector   a bit of a guest's controller
//!                    ▲ mask · route · set_priority, at any time        └─▶ Nowhere  latched until it is routed
//! ```
//!
//! Raising takes no lock: a raise that meets a change goes the old way or the new one, and both ways deliver. What a
//! masked or unrouted line is raised for is kept as one latched raise, which is delivered when the line is unmasked or
//! routed. Only a thread with a [`Ringer`] may raise, because the doorbell behind it may be one that a guest made block.
//!
//! Who writes what: `flags` change by read-modify-write only; the target is swapped whole; the counts are added to by
//! whoever raises. Source: vbus dynamic signals ("dynirq"), KVM's irqfd routing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use arc_swap::ArcSwap;

use super::apic::{Apic, Requested};
use super::controller::{Controller, Delivery};
use crate::error::Fault;
use crate::net::counters::counters;
use crate::shm::counters::Block;
use crate::shm::doorbell::Doorbell;
use crate::shm::intc::PRIORITIES;
use crate::worker::watchdog::Ringer;

counters! {
    /// What is counted for every line.
    pub enum LineCounter {
        /// Raises, whatever became of them.
        Raises = "raises",
        /// Raises of a signal that was pending already.
        CoalescedSignal = "coalesced_signal",
        /// Raises that needed no wake-up of their own, because one for the same device was under way or being served.
        CoalescedDevice = "coalesced_device",
        /// The same, and the wake-up was another device's.
        CoalescedAcross = "coalesced_across",
        /// Doorbells rung.
        Wakeups = "wakeups",
        /// Of those, how many found nothing to do.
        Spurious = "spurious",
        /// Raises while the host had masked the line.
        Masked = "masked",
        /// Raises while the guest had masked the signal.
        MaskedByGuest = "masked_by_guest",
        /// Raises while the line led nowhere.
        Unrouted = "unrouted",
        /// Raises that were lost because the guest made its doorbell block.
        Blocked = "blocked",
        /// Its priority now.
        Priority = "priority",
    }
}

const MASKED: u32 = 1;
const LATCHED: u32 = 2;
const QUEUED: u32 = 4;
const BLOCKED: u32 = 8;

/// How a device tells a guest: by an eventfd of its own, or through a line that leads wherever it was routed.
#[derive(Debug)]
pub enum Caller {
    /// The eventfd, always.
    Bell(Doorbell),
    /// The line.
    Line(Arc<Line>),
}

impl Caller {
    /// Tells the guest, from a thread that may ring.
    ///
    /// # Errors
    ///
    /// The guest's fault: it made its doorbell block.
    #[inline]
    pub(crate) fn call(&self, ringer: &Ringer) -> Result<(), Fault> {
        match self {
            Self::Bell(bell) => ringer.ring(bell),
            Self::Line(line) => line.raise(ringer).map(|_| ()),
        }
    }
}

impl From<Doorbell> for Caller {
    fn from(bell: Doorbell) -> Self {
        Self::Bell(bell)
    }
}

/// The number of a line, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineId(pub u64);

impl fmt::Display for LineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a line leads.
#[derive(Debug)]
pub enum Target {
    /// Nowhere: raises are latched.
    Nowhere,
    /// An eventfd, which whoever waits on it drains.
    Bell(Doorbell),
    /// A vector of a guest's interrupt controller; the line's priority says at which level.
    Vector {
        /// Whose.
        controller: Arc<Controller>,
        /// The vCPU that serves it.
        vcpu: u32,
        /// Its number there.
        vector: u32,
    },
    /// A vector of an emulated controller whose registers are here; the line's priority is its priority there.
    Apic {
        /// The vCPU's.
        apic: Arc<Apic>,
        /// Its number there.
        vector: u32,
    },
}

/// What became of a raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A doorbell was rung.
    Rung,
    /// Whoever serves it knows already, or will look without being woken.
    Coalesced,
    /// The line or the signal is masked: it is kept.
    Masked,
    /// The line leads nowhere: it is kept.
    Unrouted,
    /// The doorbell was found to block before; nobody rings it any more.
    Blocked,
}

/// One signal of the host.
pub struct Line {
    id: LineId,
    name: String,
    guest: String,
    device: String,
    /// Lines of one device share it: what coalescing is attributed by.
    device_key: u64,
    priority: AtomicU32,
    flags: AtomicU32,
    target: ArcSwap<Target>,
    block: Block,
}

impl Line {
    pub(crate) fn new(id: LineId, names: [String; 3], device_key: u64, priority: u32, block: Block) -> Self {
        let [name, guest, device] = names;
        let priority = priority.min(PRIORITIES - 1);
        block.set(LineCounter::Priority as usize, priority.into());
        Self {
            id,
            name,
            guest,
            device,
            device_key,
            priority: AtomicU32::new(priority),
            flags: AtomicU32::new(0),
            target: ArcSwap::from_pointee(Target::Nowhere),
            block,
        }
    }

    /// Its number.
    #[must_use]
    pub const fn id(&self) -> LineId {
        self.id
    }

    /// Its name, unique among its guest's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The guest it belongs to; empty: the host's own.
    #[must_use]
    pub fn guest(&self) -> &str {
        &self.guest
    }

    /// The device it comes from.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    pub(crate) const fn device_key(&self) -> u64 {
        self.device_key
    }

    /// 0 to 7, 7 the most urgent.
    #[must_use]
    pub fn priority(&self) -> u32 {
        self.priority.load(Ordering::Relaxed)
    }

    /// Whether the host masked it.
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & MASKED != 0
    }

    /// Whether a raise waits for it to be unmasked or routed.
    #[must_use]
    pub fn is_latched(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & LATCHED != 0
    }

    /// Whether the doorbell behind it, its own or one of the controller it leads to, was found to block.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        match &**self.target.load() {
            Target::Vector { controller, .. } => controller.is_blocked(),
            _ => self.flags.load(Ordering::Relaxed) & BLOCKED != 0,
        }
    }

    /// Whose doorbell is behind it: the guest's of the controller it leads to, or its own guest's.
    pub(crate) fn holder(&self) -> String {
        match &**self.target.load() {
            Target::Vector { controller, .. } => controller.guest().to_owned(),
            _ => self.guest.clone(),
        }
    }

    /// Where it leads now.
    #[must_use]
    pub fn target(&self) -> Arc<Target> {
        self.target.load_full()
    }

    /// What counter `counter` says.
    #[must_use]
    pub fn count(&self, counter: LineCounter) -> u64 {
        self.block.load(counter as usize)
    }

    /// Every counter, in the order of [`LineCounter`].
    pub(crate) fn block(&self) -> impl Iterator<Item = u64> {
        self.block.values().iter().map(|value| value.load(Ordering::Relaxed))
    }

    pub(crate) fn add(&self, counter: LineCounter) {
        // Several threads raise one line, so this is the one kind of block that is added to atomically.
        self.block.values()[counter as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Raises it, from a thread that may ring.
    ///
    /// # Errors
    ///
    /// The guest's fault, told once: it made the doorbell behind this line block.
    #[inline]
    pub(crate) fn raise(self: &Arc<Self>, ringer: &Ringer) -> Result<Outcome, Fault> {
        self.add(LineCounter::Raises);
        self.deliver(ringer)
    }

    fn deliver(self: &Arc<Self>, ringer: &Ringer) -> Result<Outcome, Fault> {
        loop {
            let flags = self.flags.load(Ordering::Relaxed);
            if flags & MASKED != 0 {
                // Masked and latched in one word, so unmask either finds this raise or comes before it.
                if self.change_flags(flags, flags | LATCHED) {
                    self.add(LineCounter::Masked);
                    return Ok(Outcome::Masked);
                }
                continue;
            }
            let target = self.target.load();
            match &**target {
                Target::Nowhere => {}
                Target::Bell(bell) => return self.ring(bell, flags, ringer),
                Target::Apic { apic, vector } => {
                    return match apic.raise(self.priority(), *vector) {
                        Requested::Assert => self.ring(&apic.bell, flags, ringer),
                        Requested::Later => {
                            self.add(LineCounter::CoalescedAcross);
                            Ok(Outcome::Coalesced)
                        }
                        Requested::Already => {
                            self.add(LineCounter::CoalescedSignal);
                            Ok(Outcome::Coalesced)
                        }
                    };
                }
                Target::Vector { controller, vcpu, vector } => {
                    if let Delivery::Done(outcome) = controller.raise(self, *vcpu, *vector, ringer)? {
                        return Ok(outcome);
                    }
                }
            }
            // It leads nowhere, or to a guest that has left, which the table is about to make the same.
            if self.latch_unless_routed(&target) {
                self.add(LineCounter::Unrouted);
                return Ok(Outcome::Unrouted);
            }
        }
    }

    /// Keeps a raise that `seen` does not take. `false`: the line leads elsewhere by now; deliver it there.
    fn latch_unless_routed(&self, seen: &Arc<Target>) -> bool {
        self.latch();
        // [LN-1 latched or routed] store of latched before load of target; partner in Line::route.
        fence(Ordering::SeqCst);
        Arc::ptr_eq(&self.target.load(), seen) || self.flags.fetch_and(!LATCHED, Ordering::Relaxed) & LATCHED == 0
    }

    /// Keeps a raise for whoever unmasks or routes the line next.
    pub(crate) fn latch(&self) {
        self.flags.fetch_or(LATCHED, Ordering::Relaxed);
    }

    fn ring(&self, bell: &Doorbell, flags: u32, ringer: &Ringer) -> Result<Outcome, Fault> {
        if flags & BLOCKED != 0 {
            self.add(LineCounter::Blocked);
            return Ok(Outcome::Blocked);
        }
        match ringer.ring(bell) {
            Ok(()) => {
                self.add(LineCounter::Wakeups);
                Ok(Outcome::Rung)
            }
            Err(fault) => {
                self.flags.fetch_or(BLOCKED, Ordering::Relaxed);
                self.add(LineCounter::Blocked);
                Err(fault)
            }
        }
    }

    fn change_flags(&self, from: u32, to: u32) -> bool {
        self.flags.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Leads it elsewhere. `true`: a raise was latched; deliver it with [`Self::redeliver`].
    ///
    /// A raise under way still arrives at the old target.
    #[must_use = "true means a raise waits to be delivered"]
    pub(crate) fn route(&self, target: Target) -> bool {
        let is_nowhere = matches!(target, Target::Nowhere);
        self.target.store(Arc::new(target));
        self.flags.fetch_and(!BLOCKED, Ordering::Relaxed);
        // [LN-1 latched or routed] store of target before load of latched; partner in Line::deliver.
        fence(Ordering::SeqCst);
        let flags = self.flags.load(Ordering::Relaxed);
        !is_nowhere && flags & MASKED == 0 && self.flags.fetch_and(!LATCHED, Ordering::Relaxed) & LATCHED != 0
    }

    /// Delivers what was latched: no raise of its own.
    pub(crate) fn redeliver(self: &Arc<Self>, ringer: &Ringer) -> Result<Outcome, Fault> {
        self.deliver(ringer)
    }

    /// Changes its priority for raises to come; what is pending stays at the level where it is.
    pub(crate) fn set_priority(&self, priority: u32) {
        let priority = priority.min(PRIORITIES - 1);
        self.priority.store(priority, Ordering::Relaxed);
        self.block.set(LineCounter::Priority as usize, priority.into());
    }

    /// Masks or unmasks it. `true`: a raise was latched meanwhile; deliver it with [`Self::redeliver`].
    #[must_use = "true means a raise waits to be delivered"]
    pub(crate) fn set_masked(&self, is_masked: bool) -> bool {
        if is_masked {
            self.flags.fetch_or(MASKED, Ordering::Relaxed);
            return false;
        }
        self.flags.fetch_and(!(MASKED | LATCHED), Ordering::Relaxed) & LATCHED != 0
    }

    /// `true`: it was not waiting for the signal thread yet, and is now.
    pub(crate) fn enqueue(&self) -> bool {
        // [LN-2 queued means raised] release: the work before the request; partner in Line::dequeue.
        self.flags.fetch_or(QUEUED, Ordering::Release) & QUEUED == 0
    }

    /// The signal thread has it in hand: another request is another raise.
    pub(crate) fn dequeue(&self) {
        // [LN-2 queued means raised] acquire: requests before the raise that answers them; partner in Line::enqueue.
        self.flags.fetch_and(!QUEUED, Ordering::Acquire);
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::thread;

    use super::*;
    use crate::shm::counters::CounterFile;
    use crate::shm::intc::{LevelMemory, Taker, Way};
    use crate::signals::controller::LevelPart;
    use crate::signals::latency::WakeupTimes;
    use crate::worker::watchdog::Watchdog;

    fn line() -> Arc<Line> {
        let counters = CounterFile::create(None, 1 << 16).unwrap();
        let block = counters.allocate("signal", "", LineCounter::COUNT).unwrap();
        Arc::new(Line::new(LineId(1), ["n", "g", "d"].map(str::to_owned), 1, 0, block))
    }

    /// A controller of one vCPU, and what takes from its lowest level.
    fn controller() -> (Arc<Controller>, Taker) {
        let memory = LevelMemory::on_heap();
        let part = |priority| LevelPart {
            memory: if priority == 0 { memory.clone() } else { LevelMemory::on_heap() },
            bell: Doorbell::create().unwrap(),
        };
        let controller = Controller::new("g".to_owned(), vec![std::array::from_fn(part)], WakeupTimes::default());
        (Arc::new(controller), Taker::new(memory, Way::ToGuest))
    }

    /// Does something on a thread that may ring.
    fn with_ringer<T: Send>(action: impl FnOnce(&Ringer) -> T + Send) -> T {
        let watchdog = Watchdog::start().unwrap();
        let handle = watchdog.handle();
        thread::scope(|scope| scope.spawn(|| action(&handle.enlist().unwrap())).join().unwrap())
    }

    /// Between the moment a guest leaves and the moment its lines are led away, raises meet a retired controller.
    #[test]
    fn raise_that_meets_a_retired_controller_waits_for_the_next_route() {
        let line = line();
        let ((old, mut gone), (new, mut next)) = (controller(), controller());
        assert!(!line.route(Target::Vector { controller: old.clone(), vcpu: 0, vector: 1 }));
        old.retire();

        let outcome = with_ringer(|ringer| line.raise(ringer).unwrap());
        let is_due = [Target::Nowhere, Target::Vector { controller: new, vcpu: 0, vector: 2 }].map(|to| line.route(to));
        with_ringer(|ringer| line.redeliver(ringer).unwrap());

        let mut found = Vec::new();
        gone.take(8, |vector| found.push(vector));
        next.take(8, |vector| found.push(vector));
        assert_eq!((Outcome::Unrouted, [false, true], vec![2]), (outcome, is_due, found));
        assert!(!line.is_latched());
    }
}
