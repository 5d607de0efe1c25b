//! One driver's use of a virtio device: its registers, its state, and the thread that serves its queues.
//!
//! ```text
//!   bus calls ─▶ call ─────────────┐
//!   traps ─────▶ call ─▶ traps ────┴─▶ features · status · configuration · queues ──DRIVER_OK──▶ Server ─▶ Model
//!   shm ───────▶ show: a queue's memory and its signal                          ◀──reset, DEL_VQ──
//! ```
//!
//! What kind of device it is, a [`Kind`] says: what it offers, and the [`Model`] that serves chains. Everything here is the
//! same for all of them. A driver that does things out of order is refused, and nothing changes; one that breaks a rule in
//! its memory has its queue ended, and finds `DEVICE_NEEDS_RESET` in the status.
//!
//! Who writes what: registers are private; a guest reaches them by calls, one at a time. `status` is also written by the
//! device's thread. Source: virtio 1.2 §2.1 (status), §2.2 (features), §2.5 (configuration), §3.1 (initialisation).

use std::fmt;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::io::Errno;
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::memory::GuestMemory;
use super::packed::PackedQueue;
use super::queue::{QueueAt, SIZE_MAX};
use super::server::Server;
pub use super::server::{Around, Model, QueueParts};
use super::traps::Traps;
use crate::error::{Error, Fault, Result};
use crate::fastcall::{FastHandler, Refusal, SPIN_US_MAX, TRAP_NS_MAX};
use crate::net::counters::counters;
use crate::shm::counters::{Block, CounterFile};
use crate::shm::doorbell::Doorbell;
use crate::shm::fastcall::DATA_BYTES;
use crate::shm::pair::PairMemory;
use crate::shm::region::Ram;
use crate::signals::Caller;
use crate::worker::brake::Brake;
use crate::worker::watchdog::Watchdog;

pub(crate) const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
/// Bits of the status that a driver may set.
const SETTABLE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | FEATURES_OK | DRIVER_OK | FAILED;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_INDEX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// What every device here offers.
pub const COMMON_FEATURES: u64 = VERSION_1 | EVENT_INDEX | INDIRECT;

/// How long whoever ends a device waits for a chain that is being served.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
/// The same for a driver that calls where others wait for their turn.
const STOP_DEADLINE_FAST: Duration = Duration::from_millis(2);
/// Most queues of a device.
pub const QUEUES_MAX: usize = 64;
/// Most bytes of a configuration.
pub const CONFIG_BYTES_MAX: usize = 256;

counters! {
    /// What is counted for every device that a guest has open, whatever its kind. Behind these: faults by reason.
    pub enum VirtioCounter {
        /// Registers read or written.
        Registers = "registers",
        /// Of those, by traps.
        Traps = "traps",
        /// Chains completed.
        Chains = "chains",
        /// Doorbells heard from the guest.
        Kicks = "kicks",
        /// Doorbells rung for the guest.
        CallsRung = "calls_rung",
        /// Chains completed without one.
        CallsSuppressed = "calls_suppressed",
        /// Times the device's thread fell asleep.
        Parks = "parks",
        /// Times it woke.
        Wakeups = "wakeups",
        /// Resets by the driver.
        Resets = "resets",
        /// Requests to registers that were refused.
        Refused = "refused",
        /// Resets, and queues taken out of use, that were put off because there were too many within a second.
        PutOff = "put_off",
    }
}

/// Functions of the bus: what registers are elsewhere. The numbers are the wire's.
pub(crate) mod function {
    pub(crate) const INFO: u32 = 0;
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const GET_STATUS: u32 = 3;
    pub(crate) const SET_STATUS: u32 = 4;
    pub(crate) const GET_GENERATION: u32 = 5;
    pub(crate) const GET_CONFIG: u32 = 6;
    pub(crate) const SET_CONFIG: u32 = 7;
    pub(crate) const QUERY_VQ: u32 = 8;
    pub(crate) const SET_VQ: u32 = 9;
    pub(crate) const DEL_VQ: u32 = 10;
    pub(crate) const TRAP_READ: u32 = 11;
    pub(crate) const TRAP_WRITE: u32 = 12;
}

/// How a driver reaches registers and rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Transport {
    /// Bus calls, and shm-signals as kicks.
    #[default]
    Vbus = 0,
    /// Registers as virtio-mmio has them, each access a trap; kicks are traps, and so are acknowledgements.
    Mmio = 1,
    /// Registers as virtio-pci has them, each access a trap; kicks are traps, interrupts are messages.
    Pci = 2,
}

impl Transport {
    /// Every transport with its name.
    pub const ALL: [(Self, &'static str); 3] = [(Self::Vbus, "vbus"), (Self::Mmio, "mmio"), (Self::Pci, "pci")];
}

/// What an operator chooses for a device.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// How its driver reaches it.
    pub transport: Transport,
    /// How long at most its thread stays awake after a chain, in µs, at most [`SPIN_US_MAX`].
    pub spin_us: u32,
    /// What a trap costs on top, in ns, at most [`TRAP_NS_MAX`]: a modelled leave of the guest, spent by the caller.
    pub trap_cost_ns: u32,
    /// How often a second its driver may have its queues stopped, by a reset or one by one: whoever has them serves others.
    pub stops_a_second: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self { transport: Transport::default(), spin_us: 50, trap_cost_ns: 0, stops_a_second: 100 }
    }
}

/// What a device is, as its driver sees it.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// Its number in the specification.
    pub device_id: u32,
    /// Features of its kind; [`COMMON_FEATURES`] are added.
    pub features: u64,
    /// Its configuration.
    pub config: Vec<u8>,
    /// Largest size of each queue.
    pub queue_sizes: Vec<u32>,
}

/// A kind of device.
pub trait Kind: Send + Sync {
    /// What it offers.
    fn offer(&self) -> Offer;

    /// What serves its chains from DRIVER_OK until the next reset, with the features that were agreed on.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: it cannot be had.
    fn model(&self, features: u64) -> Result<Box<dyn Model>>;

    /// Whether a queue is served by somebody else than the device's own thread.
    fn forwards(&self, _queue: usize, _features: u64) -> bool {
        false
    }

    /// Hands those queues over, from DRIVER_OK until the next reset; none: nobody takes them.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: a ring is not where the driver said. [`Error::Machine`]: whoever takes them does not answer.
    fn forward(
        &self,
        _parts: Vec<QueueParts>,
        _features: u64,
        _around: &Around,
    ) -> Result<Option<Box<dyn Forwarding>>> {
        Ok(None)
    }
}

/// Queues that somebody else serves than the device's own thread.
pub trait Forwarding: Send {
    /// Has a queue looked at: for transports whose kicks are not doorbells of the guest.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the doorbell is broken.
    fn look(&self, queue: usize) -> Result<()>;

    /// Takes them back: the number of each, and where it goes on. When this returns `Ok`, nobody touches the guest's memory
    /// any more.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no answer; ask again.
    fn stop(&mut self) -> Result<Vec<(usize, u32)>>;
}

/// A device whose driver broke a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultEvent {
    /// Number of the device's open.
    pub device: u64,
    /// The queue.
    pub queue: usize,
    /// One of [`Fault::REASONS`].
    pub reason: &'static str,
    /// For an operator.
    pub text: String,
}

/// Where faults are told.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    device: u64,
    told: Sender<FaultEvent>,
    bell: Arc<Doorbell>,
}

impl Sink {
    pub(crate) fn tell(&self, queue: usize, fault: &Fault) {
        let event = FaultEvent { device: self.device, queue, reason: fault.reason(), text: fault.to_string() };
        let _ = self.told.send(event);
        // Ours alone and never blocking; it cannot fail.
        let _ = self.bell.ring();
    }
}

/// What the virtio devices of a host share: who frees their threads from blocked doorbells, and where faults go.
pub struct VirtioHost {
    watchdog: Watchdog,
    counters: Arc<CounterFile>,
    last: AtomicU64,
    told: Sender<FaultEvent>,
    faults: Receiver<FaultEvent>,
    bell: Arc<Doorbell>,
}

impl VirtioHost {
    /// Starts it; devices count into `counters`.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no thread, descriptor or signal number is left.
    pub fn start(counters: Arc<CounterFile>) -> Result<Self> {
        let (told, faults) = crossbeam_channel::unbounded();
        Ok(Self {
            watchdog: Watchdog::start()?,
            counters,
            last: AtomicU64::new(0),
            told,
            faults,
            bell: Arc::new(Doorbell::create()?),
        })
    }

    /// The file that devices count into.
    #[must_use]
    pub const fn counters(&self) -> &Arc<CounterFile> {
        &self.counters
    }

    /// Opens a device for a guest; `labels` say whose it is, in the counters, and `name` which, for its thread.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the kind offers what cannot be. [`Error::Machine`]: no room for counters.
    pub fn open(
        &self,
        kind: Arc<dyn Kind>,
        ram: &Arc<Ram>,
        params: Params,
        name: &str,
        labels: &str,
    ) -> Result<Device> {
        if params.spin_us > SPIN_US_MAX {
            return Err(Error::Usage(format!(
                "a thread stays awake for at most {SPIN_US_MAX} µs; got {}",
                params.spin_us
            )));
        }
        if params.trap_cost_ns > TRAP_NS_MAX {
            let found = params.trap_cost_ns;
            return Err(Error::Usage(format!("a trap costs at most {TRAP_NS_MAX} ns on top; got {found}")));
        }
        let mut offer = kind.offer();
        offer.features |= COMMON_FEATURES;
        let are_sizes_good = offer.queue_sizes.iter().all(|size| size.is_power_of_two() && *size <= SIZE_MAX);
        if !are_sizes_good || offer.queue_sizes.len() > QUEUES_MAX || offer.config.len() > CONFIG_BYTES_MAX {
            return Err(Error::Usage("a device offers queues or a configuration that cannot be".into()));
        }
        let block = self.counters.allocate("virtio", labels, VirtioCounter::COUNT + Fault::REASONS.len())?;
        let queues = offer.queue_sizes.iter().map(|_| Queue::default()).collect();
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        // A thread's name has 15 bytes.
        let thread_name = format!("vb-{}", name.get(..12).unwrap_or(name));
        Ok(Device {
            id,
            status: Arc::new(AtomicU32::new(0)),
            block: Arc::new(Mutex::new(block)),
            state: Mutex::new(State {
                kind,
                offer,
                ram: ram.clone(),
                memory: Arc::new(GuestMemory::of_ram(ram)?),
                transport: params.transport,
                features: 0,
                queues,
                traps: Traps::default(),
                interrupt: Arc::new(AtomicU32::new(0)),
                server: None,
                forwarding: None,
                generation: 0,
                patience: STOP_DEADLINE,
                brake: Brake::new(params.stops_a_second),
                is_closed: false,
                thread_name,
                spin_us: params.spin_us,
            }),
            trap_cost_ns: if params.transport == Transport::Vbus { 0 } else { params.trap_cost_ns },
            sink: Sink { device: id, told: self.told.clone(), bell: self.bell.clone() },
            watch: self.watchdog.handle(),
        })
    }

    /// What broke since the last call.
    #[must_use]
    pub fn take_faults(&self) -> Vec<FaultEvent> {
        self.bell.quiet();
        self.faults.try_iter().collect()
    }

    /// Readable while [`Self::take_faults`] has something to tell. Belongs to the host: do not read or close it.
    #[must_use]
    pub fn fault_fd(&self) -> RawFd {
        self.bell.raw()
    }
}

impl fmt::Debug for VirtioHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioHost").finish_non_exhaustive()
    }
}

/// Memory that a driver showed for one queue.
#[derive(Debug)]
pub struct QueueRegion {
    /// Byte offset in the guest's RAM.
    pub offset: u32,
    /// Its bytes.
    pub length: u32,
    /// Where its signal is in it.
    pub signal_offset: u32,
    /// Rung by the guest.
    pub kick: Doorbell,
    /// Rung for the guest.
    pub call: Caller,
}

struct Shown {
    place: Range<u64>,
    /// Where its signal is in the RAM.
    signal: u32,
    kick: Arc<Doorbell>,
    call: Arc<Caller>,
}

#[derive(Default)]
pub(super) struct Queue {
    shown: Option<Shown>,
    /// Its signal, once the queue is in use.
    pair: Option<PairMemory>,
    pub(super) size: u32,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) is_ready: bool,
    /// Where a packed queue goes on that was stopped.
    base: Option<u32>,
    /// Rung for the driver when its kicks are traps; nobody else has it.
    trapped: Option<Arc<Doorbell>>,
}

pub(super) struct State {
    kind: Arc<dyn Kind>,
    pub(super) offer: Offer,
    ram: Arc<Ram>,
    memory: Arc<GuestMemory>,
    pub(super) transport: Transport,
    pub(super) features: u64,
    pub(super) queues: Vec<Queue>,
    pub(super) traps: Traps,
    pub(super) interrupt: Arc<AtomicU32>,
    server: Option<Server>,
    forwarding: Option<Box<dyn Forwarding>>,
    /// Counts changes of the configuration.
    pub(super) generation: u32,
    /// How long the call that is being served may wait for a chain.
    patience: Duration,
    /// How often the driver has its queues stopped.
    brake: Brake,
    is_closed: bool,
    thread_name: String,
    spin_us: u32,
}

/// A device that a guest has open.
pub struct Device {
    /// Its number among the host's.
    pub id: u64,
    status: Arc<AtomicU32>,
    block: Arc<Mutex<Block>>,
    state: Mutex<State>,
    sink: Sink,
    watch: crate::worker::watchdog::WatchdogHandle,
    trap_cost_ns: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the words of a call's data, which must be exactly these.
fn words<const N: usize>(data: &[u8]) -> Result<[u32; N]> {
    if data.len() != 4 * N {
        return Err(Error::Usage(format!("this function takes {} bytes; got {}", 4 * N, data.len())));
    }
    let mut found = [0; N];
    for (word, bytes) in found.iter_mut().zip(data.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    Ok(found)
}

const fn long(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

impl Device {
    /// Shows the device the memory of one queue and its signal, once.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: there is no such queue, or no signal could be there. [`Error::Exists`]: it was shown before.
    pub fn show(&self, queue: u32, region: QueueRegion) -> Result<()> {
        let mut state = lock(&self.state);
        let ram = state.ram.clone();
        let count = state.queues.len();
        let Some(found) = state.queues.get_mut(queue as usize) else {
            return Err(Error::Usage(format!("this device has {count} queues; there is no queue {queue}")));
        };
        if found.shown.is_some() {
            return Err(Error::Exists(format!("queue {queue} was shared before; close the device to share it anew")));
        }
        let offset = region.offset.saturating_add(region.signal_offset);
        PairMemory::check_place(&ram, offset).map_err(|fault| Error::Usage(fault.to_string()))?;
        let place = u64::from(region.offset)..u64::from(region.offset) + u64::from(region.length);
        found.shown = Some(Shown { place, signal: offset, kick: Arc::new(region.kick), call: Arc::new(region.call) });
        Ok(())
    }

    /// Runs a function: what it answers comes behind what `answer` has.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: there is no such function, or it cannot be now; nothing changed. [`Error::Busy`]: the queues could not
    /// be stopped. [`Error::Machine`]: no thread is left.
    pub fn call(&self, function: u32, data: &[u8], answer: &mut Vec<u8>) -> Result<()> {
        self.call_within(STOP_DEADLINE, function, data, answer)
    }

    fn call_within(&self, patience: Duration, function: u32, data: &[u8], answer: &mut Vec<u8>) -> Result<()> {
        let mut state = lock(&self.state);
        state.patience = patience;
        self.count(VirtioCounter::Registers);
        let outcome = if state.is_closed {
            Err(Error::Closed("this virtio device"))
        } else {
            self.dispatch(&mut state, function, data, answer)
        };
        if outcome.is_err() {
            self.count(VirtioCounter::Refused);
        }
        outcome
    }

    fn dispatch(&self, state: &mut State, function: u32, data: &[u8], answer: &mut Vec<u8>) -> Result<()> {
        let is_trap = matches!(function, function::TRAP_READ | function::TRAP_WRITE);
        if function != function::INFO && is_trap != (state.transport != Transport::Vbus) {
            return Err(Error::Usage(format!("function {function} is not one of the device's transport")));
        }
        match function {
            function::INFO => {
                let [] = words(data)?;
                let offer = &state.offer;
                for word in [offer.device_id, offer.queue_sizes.len() as u32, state.transport as u32] {
                    answer.extend(word.to_le_bytes());
                }
                answer.extend((offer.config.len() as u32).to_le_bytes());
            }
            function::GET_FEATURES => {
                let [] = words(data)?;
                answer.extend(state.offer.features.to_le_bytes());
            }
            function::SET_FEATURES => {
                let [low, high] = words(data)?;
                self.set_features(state, long(low, high))?;
            }
            function::GET_STATUS => {
                let [] = words(data)?;
                answer.extend(self.status().to_le_bytes());
            }
            function::SET_STATUS => {
                let [status] = words(data)?;
                self.set_status(state, status)?;
            }
            function::GET_GENERATION => {
                let [] = words(data)?;
                answer.extend(state.generation.to_le_bytes());
            }
            function::GET_CONFIG => {
                let [offset, length] = words(data)?;
                answer.extend(state.config(offset, length)?);
            }
            function::SET_CONFIG => {
                return Err(Error::Usage("no field of this device's configuration can be written".into()));
            }
            function::QUERY_VQ => {
                let [queue] = words(data)?;
                // A queue that is not there has size 0, as the specification says it.
                let size = state.offer.queue_sizes.get(queue as usize).copied().unwrap_or(0);
                let is_ready = state.queues.get(queue as usize).is_some_and(|queue| queue.is_ready);
                answer.extend(size.to_le_bytes());
                answer.extend(u32::from(is_ready).to_le_bytes());
            }
            function::SET_VQ => {
                let [queue, size, rest @ ..] = words::<8>(data)?;
                let [descriptors, available, used] = [0, 2, 4].map(|at| long(rest[at], rest[at + 1]));
                self.check_configurable(state, queue)?;
                let found = &mut state.queues[queue as usize];
                (found.size, found.descriptors, found.available, found.used) = (size, descriptors, available, used);
                self.enable(state, queue)?;
            }
            function::DEL_VQ => {
                let [queue] = words(data)?;
                self.disable(state, queue)?;
            }
            function::TRAP_READ => {
                self.count(VirtioCounter::Traps);
                let [offset, bytes] = words(data)?;
                let value = self.trap_read(state, offset, bytes)?;
                answer.extend(value.to_le_bytes());
            }
            function::TRAP_WRITE => {
                self.count(VirtioCounter::Traps);
                let [offset, bytes, low, high] = words(data)?;
                self.trap_write(state, offset, bytes, long(low, high))?;
            }
            _ => return Err(Error::Usage(format!("there is no function {function}"))),
        }
        Ok(())
    }

    fn count(&self, counter: VirtioCounter) {
        lock(&self.block).add(counter as usize, 1);
    }

    /// The status, as the driver reads it.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Relaxed)
    }

    pub(super) fn set_features(&self, state: &mut State, features: u64) -> Result<()> {
        if self.status() & FEATURES_OK != 0 {
            return Err(Error::Usage("features are agreed on; reset the device to change them".into()));
        }
        state.features = features;
        Ok(())
    }

    /// Follows the driver's status. Bits come one after the other and go all at once, by a reset.
    pub(super) fn set_status(&self, state: &mut State, wanted: u32) -> Result<()> {
        if wanted == 0 {
            return self.reset(state);
        }
        let now = self.status() & !NEEDS_RESET;
        let wanted = wanted & !NEEDS_RESET;
        if wanted & !SETTABLE != 0 || now & !wanted != 0 {
            return Err(Error::Usage(format!("status {now:#x} cannot become {wanted:#x}; write 0 first")));
        }
        let mut new = wanted & !now;
        let is_acceptable = state.features & !state.offer.features == 0 && state.features & VERSION_1 != 0;
        if new & FEATURES_OK != 0 && !is_acceptable {
            // The driver finds the bit missing, as the specification has it.
            new &= !(FEATURES_OK | DRIVER_OK);
        }
        if new & DRIVER_OK != 0 && (now | new) & FEATURES_OK == 0 {
            return Err(Error::Usage("DRIVER_OK comes after FEATURES_OK".into()));
        }
        if new & DRIVER_OK != 0 && (now | new) & FAILED != 0 {
            return Err(Error::Usage("the driver has given this device up; write 0 first".into()));
        }
        if new & DRIVER_OK != 0 && self.status() & NEEDS_RESET == 0 {
            self.run(state)?;
        }
        if new & FAILED != 0 {
            Self::halt(state)?;
        }
        self.status.fetch_or(new, Ordering::Relaxed);
        Ok(())
    }

    fn reset(&self, state: &mut State) -> Result<()> {
        self.slow_down(state)?;
        Self::halt(state)?;
        self.count(VirtioCounter::Resets);
        state.features = 0;
        state.traps = Traps::default();
        state.interrupt.store(0, Ordering::Relaxed);
        for queue in &mut state.queues {
            *queue = Queue { shown: queue.shown.take(), ..Queue::default() };
        }
        self.status.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Serves every queue that is ready, from where its used ring says that it was left.
    fn run(&self, state: &mut State) -> Result<()> {
        let is_packed = state.features & PACKED != 0;
        let is_trapping = state.transport != Transport::Vbus;
        for queue in state.queues.iter_mut().filter(|queue| queue.is_ready && is_trapping && queue.trapped.is_none()) {
            queue.trapped = Some(Arc::new(Doorbell::create()?));
        }
        let parts = state.queues.iter().enumerate().filter(|(_, queue)| queue.is_ready).filter_map(|(index, queue)| {
            let shown = queue.shown.as_ref()?;
            let at = QueueAt {
                size: queue.size,
                descriptors: queue.descriptors,
                available: queue.available,
                used: queue.used,
                has_event_index: state.features & EVENT_INDEX != 0,
                has_indirect: state.features & INDIRECT != 0,
                is_packed,
            };
            Some(QueueParts {
                index,
                at,
                base: queue.base.unwrap_or(if is_packed { PackedQueue::START } else { 0 }),
                pair: queue.pair.clone()?,
                kick: queue.trapped.as_ref().unwrap_or(&shown.kick).clone(),
                call: shown.call.clone(),
            })
        });
        let (forwarded, parts): (Vec<_>, Vec<_>) =
            parts.partition(|parts| state.kind.forwards(parts.index, state.features));
        let around = Around {
            memory: state.memory.clone(),
            watchdog: self.watch.clone(),
            block: self.block.clone(),
            status: self.status.clone(),
            interrupt: state.interrupt.clone(),
            sink: self.sink.clone(),
            name: state.thread_name.clone(),
            spin_us: state.spin_us,
        };
        let outcome = Self::start(state, (forwarded, parts), around);
        outcome.inspect_err(|_| {
            self.status.fetch_or(NEEDS_RESET, Ordering::Relaxed);
        })
    }

    fn start(state: &mut State, (forwarded, parts): (Vec<QueueParts>, Vec<QueueParts>), around: Around) -> Result<()> {
        if !forwarded.is_empty() {
            state.forwarding = state.kind.forward(forwarded, state.features, &around)?;
        }
        // A device whose queues are all served elsewhere has no thread.
        if !parts.is_empty() || state.forwarding.is_none() {
            let model = state.kind.model(state.features)?;
            state.server = Some(Server::start(parts, model, around)?);
        }
        Ok(())
    }

    /// Puts a driver off that has its queues stopped without end: it has to ask again when the second is over. Whoever runs
    /// this serves others' registers too, and so does not wait here.
    fn slow_down(&self, state: &mut State) -> Result<()> {
        if !state.is_running() || state.brake.lets(Instant::now()) {
            return Ok(());
        }
        self.count(VirtioCounter::PutOff);
        Err(Error::Busy("the queues were stopped too often within a second; ask again when it is over".into()))
    }

    fn halt(state: &mut State) -> Result<()> {
        if let Some(server) = &mut state.server {
            server.stop(state.patience)?;
            state.server = None;
        }
        if let Some(forwarding) = &mut state.forwarding {
            for (index, base) in forwarding.stop()? {
                if let Some(queue) = state.queues.get_mut(index) {
                    queue.base = Some(base);
                }
            }
            state.forwarding = None;
        }
        Ok(())
    }

    /// Changes bytes of the configuration, which the driver is told of by whoever calls: the bus has a message for that.
    pub fn set_config(&self, offset: usize, bytes: &[u8]) {
        let mut state = lock(&self.state);
        if let Some(place) = state.offer.config.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
            state.generation = state.generation.wrapping_add(1);
        }
    }

    pub(super) fn check_configurable(&self, state: &State, queue: u32) -> Result<()> {
        let count = state.queues.len();
        let Some(found) = state.queues.get(queue as usize) else {
            return Err(Error::Usage(format!("this device has {count} queues; there is no queue {queue}")));
        };
        if found.is_ready {
            return Err(Error::Usage(format!("queue {queue} is in use; delete it, or reset the device")));
        }
        // Before features are agreed on nobody knows of which kind a queue is.
        if self.status() & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return Err(Error::Usage("queues are set up after FEATURES_OK and before DRIVER_OK".into()));
        }
        Ok(())
    }

    /// Takes a queue into use, where its registers say.
    pub(super) fn enable(&self, state: &mut State, queue: u32) -> Result<()> {
        self.check_configurable(state, queue)?;
        let limit = state.offer.queue_sizes[queue as usize];
        let is_packed = state.features & PACKED != 0;
        let found = &mut state.queues[queue as usize];
        let size = u64::from(found.size);
        if !(found.size.is_power_of_two() || is_packed && size != 0) || found.size > limit {
            let kind = if is_packed { "" } else { ", a power of two" };
            return Err(Error::Usage(format!("queue {queue} has 1 to {limit} entries{kind}; got {size}")));
        }
        let Some(shown) = &found.shown else {
            return Err(Error::Usage(format!("share queue {queue}'s memory first, as region {queue}")));
        };
        let parts = if is_packed {
            [
                ("descriptor ring", found.descriptors, 16, 16 * size),
                ("driver's event area", found.available, 4, 4),
                ("device's event area", found.used, 4, 4),
            ]
        } else {
            [
                ("descriptor table", found.descriptors, 16, 16 * size),
                ("available ring", found.available, 2, 6 + 2 * size),
                ("used ring", found.used, 4, 6 + 8 * size),
            ]
        };
        for (what, address, align, bytes) in parts {
            let end = address.checked_add(bytes).filter(|end| *end <= shown.place.end);
            if end.is_none() || address < shown.place.start || !address.is_multiple_of(align) {
                let place = &shown.place;
                return Err(Error::Usage(format!(
                    "the {what} of queue {queue}, {bytes} bytes at {address:#x}, is misaligned or not in its region, \
                     {:#x}..{:#x}",
                    place.start, place.end
                )));
            }
        }
        found.pair = Some(PairMemory::attach(&state.ram, shown.signal)?);
        found.is_ready = true;
        Ok(())
    }

    /// Takes a queue out of use; the others go on.
    pub(super) fn disable(&self, state: &mut State, queue: u32) -> Result<()> {
        let Some(found) = state.queues.get(queue as usize) else {
            return Err(Error::Usage(format!("there is no queue {queue}")));
        };
        if !found.is_ready {
            return Ok(());
        }
        let was_running = state.is_running();
        self.slow_down(state)?;
        Self::halt(state)?;
        state.queues[queue as usize].is_ready = false;
        if was_running && state.queues.iter().any(|queue| queue.is_ready) {
            self.run(state)?;
        }
        Ok(())
    }

    /// Has queues looked at, by a driver whose kicks are traps.
    pub(super) fn notify(state: &State, queue: u32) -> Result<()> {
        let is_there = state.queues.get(queue as usize).is_some_and(|queue| queue.is_ready);
        let is_forwarded = state.kind.forwards(queue as usize, state.features);
        match (&state.server, &state.forwarding) {
            (_, Some(forwarding)) if is_there && is_forwarded => forwarding.look(queue as usize),
            (Some(server), _) if is_there => {
                server.look();
                Ok(())
            }
            _ => Err(Error::Usage(format!("queue {queue} is not in use"))),
        }
    }

    /// Lets go of the guest's memory: when this returns `Ok`, nobody touches it any more.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`]: a request takes the device's thread too long; it lets go when it is done with it.
    pub fn close(&self) -> Result<()> {
        let mut state = lock(&self.state);
        state.is_closed = true;
        state.patience = STOP_DEADLINE;
        let outcome = Self::halt(&mut state);
        for queue in &mut state.queues {
            *queue = Queue::default();
        }
        outcome
    }
}

impl State {
    /// Somebody serves its queues.
    const fn is_running(&self) -> bool {
        self.server.is_some() || self.forwarding.is_some()
    }

    /// Bytes of the configuration.
    pub(super) fn config(&self, offset: u32, length: u32) -> Result<&[u8]> {
        let end = (offset as usize).saturating_add(length as usize);
        self.offer.config.get(offset as usize..end).ok_or_else(|| {
            let bytes = self.offer.config.len();
            Error::Usage(format!("the configuration has {bytes} bytes; {length} at {offset} were asked for"))
        })
    }
}

impl FastHandler for Device {
    fn trap_ns(&self) -> u32 {
        self.trap_cost_ns
    }

    fn call(&self, function: u32, data: &[u8], answer: &mut [u8]) -> std::result::Result<usize, Refusal> {
        let mut found = Vec::new();
        self.call_within(STOP_DEADLINE_FAST, function, data, &mut found).map_err(|error| {
            let code = match &error {
                Error::Usage(_) => Errno::INVAL,
                Error::Exists(_) => Errno::EXIST,
                Error::Busy(_) => Errno::BUSY,
                Error::NotFound(_) => Errno::NOENT,
                _ => Errno::IO,
            };
            Refusal::new(code, error.to_string())
        })?;
        debug_assert!(found.len() <= DATA_BYTES);
        let Some(room) = answer.get_mut(..found.len()) else {
            return Err(Refusal::new(Errno::MSGSIZE, "an answer has less room"));
        };
        room.copy_from_slice(&found);
        Ok(found.len())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("id", &self.id).field("status", &self.status()).finish_non_exhaustive()
    }
}
