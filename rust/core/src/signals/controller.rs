//! The host's half of a guest's interrupt controller: eight levels a vCPU, each with a doorbell of its own.
//!
//! ```text
//!   Line (priority p) ─▶ vcpu ─▶ level p ─▶ pending already? coalesced
//!                                       ├▶ awake?            coalesced into the wake-up it is serving: whose was it?
//!                                       └▶ asleep            ring, and remember for whom
//! ```
//!
//! At most one wake-up is outstanding for each level, so each useless one is the fault of the line that was rung for last:
//! that is how wake-ups that found nothing are attributed to signals, and coalescing to devices. A doorbell that the guest
//! made block ends the whole controller: whoever plays with one of its doorbells gets no more of any. The danger is
//! that what the guest writes into its levels is believed; it is only ever counted, and each count by one at a time.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::latency::WakeupTimes;
use super::line::{Line, LineCounter, Outcome};
use crate::error::Fault;
use crate::guest::clock::monotonic_ns;
use crate::shm::doorbell::Doorbell;
use crate::shm::intc::{LevelMemory, LevelSnapshot, PRIORITIES, Raised, Raiser, Way};
use crate::worker::watchdog::Ringer;

/// Most vCPUs of one controller.
pub const VCPUS_MAX: usize = 64;

/// Told before a sleeping level is rung, on the path that makes a system call anyway, and of what is newly requested of an
/// emulated controller: what raises a thread's class.
pub trait WakeHook: Send + Sync {
    /// A signal of priority `priority` waits for vCPU `vcpu`. Called from any thread that raises; must not block.
    fn waking(&self, vcpu: u32, priority: u32);
}

/// What became of a raise at a controller.
pub(crate) enum Delivery {
    Done(Outcome),
    /// The guest has left.
    Gone,
}

struct Level {
    raiser: Raiser,
    bell: Doorbell,
    /// The device whose line was rung for last.
    rung_device: AtomicU64,
    /// Of the wake-ups so far, how many the guest had called useless when the level was last rung.
    spurious_seen: AtomicU64,
    rung_for: Mutex<Weak<Line>>,
}

/// One guest's interrupt controller, as the host holds it.
pub struct Controller {
    guest: String,
    /// By priority.
    times: WakeupTimes,
    vcpus: Vec<[Level; PRIORITIES as usize]>,
    is_blocked: AtomicBool,
    is_gone: AtomicBool,
    hook: RwLock<Option<Arc<dyn WakeHook>>>,
}

/// One level of a controller to be: its memory, and the doorbell that wakes the thread which serves it.
#[derive(Debug)]
pub struct LevelPart {
    /// What the guest laid out, already checked.
    pub memory: LevelMemory,
    /// Wakes the guest.
    pub bell: Doorbell,
}

/// How one level of one vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelStatus {
    /// The vCPU.
    pub vcpu: u32,
    /// The priority.
    pub priority: u32,
    /// What the guest's words say.
    pub now: LevelSnapshot,
}

impl Controller {
    pub(crate) fn new(guest: String, vcpus: Vec<[LevelPart; PRIORITIES as usize]>, times: WakeupTimes) -> Self {
        let level = |part: LevelPart| Level {
            spurious_seen: AtomicU64::new(part.memory.spurious()),
            raiser: Raiser::new(part.memory, Way::ToGuest),
            bell: part.bell,
            rung_device: AtomicU64::new(0),
            rung_for: Mutex::default(),
        };
        Self {
            guest,
            times,
            vcpus: vcpus.into_iter().map(|parts| parts.map(level)).collect(),
            is_blocked: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            hook: RwLock::new(None),
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn guest(&self) -> &str {
        &self.guest
    }

    /// How many vCPUs it has.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.vcpus.len() as u32
    }

    /// The guest made one of its doorbells block.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    /// Has `hook` told of wake-ups from now on; `None`: nobody.
    pub fn set_hook(&self, hook: Option<Arc<dyn WakeHook>>) {
        *self.hook.write().unwrap_or_else(PoisonError::into_inner) = hook;
    }

    /// How every level is doing.
    #[must_use]
    pub fn status(&self) -> Vec<LevelStatus> {
        (0u32..)
            .zip(&self.vcpus)
            .flat_map(|(vcpu, levels)| {
                (0u32..).zip(levels).map(move |(priority, level)| LevelStatus {
                    vcpu,
                    priority,
                    now: level.raiser.memory().snapshot(),
                })
            })
            .collect()
    }

    /// Nothing is delivered any more.
    pub(crate) fn retire(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
        self.times.close();
    }

    pub(crate) fn raise(&self, line: &Arc<Line>, vcpu: u32, vector: u32, ringer: &Ringer) -> Result<Delivery, Fault> {
        if self.is_gone.load(Ordering::Relaxed) {
            return Ok(Delivery::Gone);
        }
        let priority = line.priority();
        let Some(level) = self.vcpus.get(vcpu as usize).and_then(|levels| levels.get(priority as usize)) else {
            return Ok(Delivery::Gone);
        };
        let outcome = match level.raiser.raise(vector) {
            Raised::Pending => {
                line.add(LineCounter::CoalescedSignal);
                Outcome::Coalesced
            }
            Raised::Masked => {
                line.add(LineCounter::MaskedByGuest);
                Outcome::Masked
            }
            Raised::Awake => {
                let is_own = level.rung_device.load(Ordering::Relaxed) == line.device_key();
                line.add(if is_own { LineCounter::CoalescedDevice } else { LineCounter::CoalescedAcross });
                Outcome::Coalesced
            }
            Raised::Asleep if self.is_blocked() => {
                line.add(LineCounter::Blocked);
                Outcome::Blocked
            }
            Raised::Asleep => {
                if let Some(hook) = &*self.hook.read().unwrap_or_else(PoisonError::into_inner) {
                    hook.waking(vcpu, priority);
                }
                level.settle(Some(line));
                level.rung_device.store(line.device_key(), Ordering::Relaxed);
                self.times.record(priority, level.raiser.ringing(monotonic_ns()));
                if let Err(fault) = ringer.ring(&level.bell) {
                    line.add(LineCounter::Blocked);
                    self.is_blocked.store(true, Ordering::Relaxed);
                    return Err(fault);
                }
                line.add(LineCounter::Wakeups);
                Outcome::Rung
            }
        };
        Ok(Delivery::Done(outcome))
    }

    /// Puts wake-ups that found nothing down to the lines they were made for, and records how long the last ones took.
    pub(crate) fn settle(&self) {
        let now_ns = monotonic_ns();
        for (priority, level) in self.vcpus.iter().flat_map(|levels| (0..).zip(levels)) {
            level.settle(None);
            self.times.record(priority, level.raiser.heard_after(now_ns));
        }
    }
}

impl Level {
    /// If the last wake-up found nothing, counts that for the line it was made for. `next`: whom the next one is for.
    fn settle(&self, next: Option<&Arc<Line>>) {
        let mut rung_for = self.rung_for.lock().unwrap_or_else(PoisonError::into_inner);
        let told = self.raiser.memory().spurious();
        if self.spurious_seen.swap(told, Ordering::Relaxed) != told
            && let Some(line) = rung_for.upgrade()
        {
            line.add(LineCounter::Spurious);
        }
        if let Some(line) = next {
            *rung_for = Arc::downgrade(line);
        }
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("guest", &self.guest)
            .field("vcpus", &self.vcpus.len())
            .finish_non_exhaustive()
    }
}
