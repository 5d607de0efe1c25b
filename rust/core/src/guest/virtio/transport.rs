//! The `virtio-drivers` crate's `Transport` over a bus: its drivers run on it unchanged.
//!
//! ```text
//!   features, status, configuration, queue set-up ─▶ Registers: a bus call each, or (mmio, pci) a trap for each access
//!   queue_set ─▶ shows the rings and a signal behind them as region n ─▶ two eventfds
//!   notify    ─▶ marks the signal; rings only if the host sleeps         (mmio, pci: a trap)
//!   interrupt ─▶ the signal's other direction; only if this side sleeps  (mmio: and a trap to read, one to acknowledge)
//! ```
//!
//! The crate's trait has no room for errors: what a register access ran into is kept, and [`Failure::take`] gives it to
//! whoever used the driver. Registers then read as zero, which no driver mistakes for a device that works.
//!
//! Who writes what: rings as virtio says; the signal's words as [`crate::shm::signal`] says.
//! Source: virtio 1.2 §4.2 and §4.1 for the trapping ones; for the bus, `docs/wire/virtio.md`.

use std::cell::Cell;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error as VirtioError, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::arena::Arena;
use crate::error::{Error, Fault, Result};
use crate::guest::clock::monotonic_ns;
use crate::shm::doorbell::Doorbell;
use crate::shm::layout::SIGNAL_PAIR_BYTES;
use crate::shm::pair::PairMemory;
use crate::shm::signal::{Listener, Notifier};
use crate::virtio::device::{CONFIG_BYTES_MAX, Transport as Shape, function};

/// Status of a device whose driver is at work.
pub(crate) const ALIVE: u32 = DeviceStatus::ACKNOWLEDGE.bits()
    | DeviceStatus::DRIVER.bits()
    | DeviceStatus::FEATURES_OK.bits()
    | DeviceStatus::DRIVER_OK.bits();

/// Polls between two looks at the clock.
const POLLS_A_LOOK: u32 = 64;

/// How a transport reaches its device: calls that wait for their answer, and regions that are shown.
pub trait Registers: Send + Sync {
    /// Runs a function of the open device.
    ///
    /// # Errors
    ///
    /// Whatever the device refuses with, or why it cannot be reached.
    fn call(&self, function: u32, data: &[u8]) -> Result<Vec<u8>>;

    /// Shows a region with a signal: the eventfds that this side rings, and waits for.
    ///
    /// # Errors
    ///
    /// As [`Self::call`].
    fn share(&self, id: u32, offset: u32, length: u32, signal_offset: u32) -> Result<(OwnedFd, OwnedFd)>;
}

/// What went wrong on the way to a device, kept until somebody asks.
#[derive(Debug, Default)]
pub struct Failure(Mutex<Option<Error>>);

impl Failure {
    fn keep<T>(&self, outcome: Result<T>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                None
            }
        }
    }

    /// The first failure since the last call.
    ///
    /// # Errors
    ///
    /// That failure.
    pub fn take(&self) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

/// What a driver of ours has of its transport while the transport itself is inside one of the crate's drivers.
#[derive(Debug, Default)]
pub struct Waker {
    is_gone: AtomicBool,
    calls: Mutex<Vec<Arc<Doorbell>>>,
}

impl Waker {
    /// The host is gone: whoever waits, and whoever waits later, gets [`Error::PeerGone`].
    pub fn abandon(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
        for call in &*self.calls.lock().unwrap_or_else(PoisonError::into_inner) {
            // The guest's own copy; a full counter wakes as well. The write orders the store before the sleeper's wake-up.
            let _ = call.ring();
        }
    }

    /// Whether it was not.
    ///
    /// # Errors
    ///
    /// [`Error::PeerGone`]: the host is gone.
    pub fn check(&self) -> Result<()> {
        if self.is_gone.load(Ordering::Relaxed) { Err(Error::PeerGone("a virtio device")) } else { Ok(()) }
    }
}

/// What a transport did, for benches.
#[derive(Debug, Default)]
pub struct Tally {
    /// Register accesses: bus calls, or traps.
    pub accesses: AtomicU64,
    /// Kicks that the queue asked for.
    pub kicks: AtomicU64,
    /// Doorbells rung for them.
    pub rings: AtomicU64,
    /// Sleeps for want of an answer.
    pub sleeps: AtomicU64,
}

struct QueueSignal {
    listener: Listener,
    notifier: Notifier,
    kick: Doorbell,
    call: Arc<Doorbell>,
}

/// The way to a device's registers.
struct Line {
    registers: Arc<dyn Registers>,
    waker: Arc<Waker>,
    tally: Arc<Tally>,
}

impl Line {
    fn call(&self, function: u32, data: &[u8]) -> Result<Vec<u8>> {
        self.waker.check()?;
        self.tally.accesses.fetch_add(1, Ordering::Relaxed);
        self.registers.call(function, data)
    }

    fn trap_read(&self, offset: u32, bytes: u32) -> Result<u64> {
        let answer = self.call(function::TRAP_READ, &words(&[offset, bytes]))?;
        numbers(&answer).map(|[low, high]| long(low, high))
    }

    fn trap_write(&self, offset: u32, bytes: u32, value: u64) -> Result<()> {
        let data = words(&[offset, bytes, value as u32, (value >> 32) as u32]);
        self.call(function::TRAP_WRITE, &data).map(drop)
    }

    /// Kicks a queue, which asked for it. `true`: with a system call or a trap.
    fn kick(&self, shape: Shape, queue: u16, signal: &QueueSignal) -> Result<bool> {
        self.tally.kicks.fetch_add(1, Ordering::Relaxed);
        match shape {
            Shape::Vbus => {
                let is_asleep = signal.notifier.inject();
                if is_asleep {
                    self.tally.rings.fetch_add(1, Ordering::Relaxed);
                    signal.kick.ring()?;
                }
                return Ok(is_asleep);
            }
            Shape::Mmio => self.trap_write(0x050, 4, queue.into())?,
            Shape::Pci => self.trap_write(0x2000 + 4 * u32::from(queue), 2, queue.into())?,
        }
        Ok(true)
    }

    /// Acknowledges an interrupt that was heard.
    fn acknowledge(&self, shape: Shape) -> Result<()> {
        if shape != Shape::Mmio {
            // Interrupts are messages: there is nothing to acknowledge.
            return Ok(());
        }
        let status = self.trap_read(0x060, 4)?;
        self.trap_write(0x064, 4, status & 3)
    }
}

/// What one half of a driver needs of its queue, while the other half runs on another thread.
pub struct QueueEnds {
    line: Line,
    shape: Shape,
    queue: u16,
    signal: QueueSignal,
    /// The doorbell was asked for: whoever is woken by it has an interrupt to acknowledge.
    is_armed: Cell<bool>,
}

impl QueueEnds {
    /// Kicks the device, which asked for it. `true`: with a system call or a trap.
    pub(crate) fn kick(&self) -> Result<bool> {
        self.line.kick(self.shape, self.queue, &self.signal)
    }

    /// Notes what was signalled so far, before the ring is looked at.
    pub(crate) fn acknowledge(&self) {
        self.signal.listener.acknowledge();
    }

    /// Asks for the doorbell, after the ring was armed. `true`: nothing came.
    pub(crate) fn arm(&self) -> bool {
        let is_asleep = self.signal.listener.arm();
        self.is_armed.set(is_asleep);
        is_asleep
    }

    /// What the device calls by.
    pub(crate) fn bell(&self) -> &Doorbell {
        &self.signal.call
    }

    /// Sleeps until called. `false`: the time was up.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        self.line.tally.sleeps.fetch_add(1, Ordering::Relaxed);
        let rung = self.signal.call.wait(timeout)?;
        self.wake()?;
        Ok(rung)
    }

    /// No more doorbells.
    pub(crate) fn wake(&self) -> Result<()> {
        self.signal.listener.wake(monotonic_ns);
        if self.is_armed.replace(false) { self.line.acknowledge(self.shape) } else { Ok(()) }
    }
}

impl fmt::Debug for QueueEnds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueEnds").field("shape", &self.shape).field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// The transport.
pub struct BusTransport {
    line: Line,
    arena: Arc<Arena>,
    shape: Shape,
    device_type: DeviceType,
    config_bytes: usize,
    queues: Vec<Option<QueueSignal>>,
    failure: Arc<Failure>,
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn numbers<const N: usize>(answer: &[u8]) -> Result<[u32; N]> {
    if answer.len() != 4 * N {
        let (found, limit) = (answer.len() as u64, 4 * N as u64);
        return Err(Fault::BadSize { what: "answer of a virtio device", found, limit }.into());
    }
    let mut found = [0; N];
    for (word, bytes) in found.iter_mut().zip(answer.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    Ok(found)
}

const fn long(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

impl BusTransport {
    /// Asks an open device what it is; its queues and buffers will lie in `arena`.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: it answered what cannot be. Otherwise what `registers` ran into.
    pub fn open(registers: Arc<dyn Registers>, arena: &Arc<Arena>) -> Result<Self> {
        let [device, queues, shape, config_bytes] = numbers(&registers.call(function::INFO, &[])?)?;
        let bad = |what, found: u32, limit| Fault::BadSize { what, found: found.into(), limit };
        let shape = Shape::ALL.iter().find(|(known, _)| *known as u32 == shape);
        let (shape, _) = shape.ok_or_else(|| bad("transport of a virtio device", 0, 2))?;
        let device_type = DeviceType::try_from(device).map_err(|_| bad("kind of a virtio device", device, 25))?;
        if queues as usize > crate::virtio::device::QUEUES_MAX || config_bytes as usize > CONFIG_BYTES_MAX {
            return Err(bad("queues of a virtio device", queues, crate::virtio::device::QUEUES_MAX as u64).into());
        }
        Ok(Self {
            line: Line { registers, waker: Arc::default(), tally: Arc::default() },
            arena: arena.clone(),
            shape: *shape,
            device_type,
            config_bytes: config_bytes as usize,
            queues: (0..queues).map(|_| None).collect(),
            failure: Arc::default(),
        })
    }

    /// What its register accesses ran into.
    #[must_use]
    pub fn failure(&self) -> Arc<Failure> {
        self.failure.clone()
    }

    /// Ends waits when the host is gone.
    #[must_use]
    pub fn waker(&self) -> Arc<Waker> {
        self.line.waker.clone()
    }

    /// What it did so far.
    #[must_use]
    pub fn tally(&self) -> Arc<Tally> {
        self.line.tally.clone()
    }

    /// Resets the device, and agrees on those of the features that both sides know: which. Queues can be set up then.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the device does not agree. Otherwise what the registers ran into.
    pub(crate) fn agree(&mut self, wanted: u64) -> Result<u64> {
        self.agree_on(|offered| offered & wanted)
    }

    /// As [`Self::agree`], on what `choose` takes of what is offered.
    ///
    /// # Errors
    ///
    /// As [`Self::agree`].
    pub(crate) fn agree_on(&mut self, choose: impl FnOnce(u64) -> u64) -> Result<u64> {
        let known = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.set_status(DeviceStatus::empty());
        self.set_status(known);
        let offered = self.read_device_features();
        let features = offered & choose(offered);
        self.write_driver_features(features);
        self.set_status(known | DeviceStatus::FEATURES_OK);
        let status = self.get_status();
        self.failure.take()?;
        if status.contains(DeviceStatus::FEATURES_OK) && features & 1 << VIRTIO_F_VERSION_1 != 0 {
            return Ok(features);
        }
        Err(Error::Usage("the device does not agree to the features that are needed".into()))
    }

    /// The doorbell by which the device calls for a queue.
    pub(crate) fn bell(&self, queue: u16) -> Option<Arc<Doorbell>> {
        self.queues.get(usize::from(queue))?.as_ref().map(|signal| signal.call.clone())
    }

    /// Asks for a queue's doorbell. `true`: nothing came, wait for it.
    pub(crate) fn arm(&self, queue: u16, is_done: impl FnOnce() -> bool) -> bool {
        let Some(Some(signal)) = self.queues.get(usize::from(queue)) else { return false };
        signal.listener.acknowledge();
        // As in `wait`: the ring is looked at once more after the signal was armed.
        let is_asleep = signal.listener.arm();
        if is_done() {
            signal.listener.mask();
            return false;
        }
        is_asleep
    }

    /// Bytes of the device's configuration.
    pub(crate) const fn config_bytes(&self) -> usize {
        self.config_bytes
    }

    /// Where a register is, and how wide: `(mmio, pci)`.
    fn either(&self, mmio: (u32, u32), pci: (u32, u32)) -> (u32, u32) {
        if self.shape == Shape::Mmio { mmio } else { pci }
    }

    fn read_features(&self) -> Result<u64> {
        if self.shape == Shape::Vbus {
            return numbers(&self.line.call(function::GET_FEATURES, &[])?).map(|[low, high]| long(low, high));
        }
        let (select, value) = (self.either((0x014, 4), (0x00, 4)), self.either((0x010, 4), (0x04, 4)));
        let mut found = 0;
        for half in 0..2 {
            self.line.trap_write(select.0, select.1, half)?;
            found |= self.line.trap_read(value.0, value.1)? << (32 * half);
        }
        Ok(found)
    }

    fn write_features(&self, features: u64) -> Result<()> {
        if self.shape == Shape::Vbus {
            let data = words(&[features as u32, (features >> 32) as u32]);
            return self.line.call(function::SET_FEATURES, &data).map(drop);
        }
        let (select, value) = (self.either((0x024, 4), (0x08, 4)), self.either((0x020, 4), (0x0c, 4)));
        for half in 0..2 {
            self.line.trap_write(select.0, select.1, half)?;
            self.line.trap_write(value.0, value.1, features >> (32 * half) & 0xffff_ffff)?;
        }
        Ok(())
    }

    fn status(&self) -> Result<u32> {
        if self.shape == Shape::Vbus {
            return numbers(&self.line.call(function::GET_STATUS, &[])?).map(|[status]| status);
        }
        let (offset, bytes) = self.either((0x070, 4), (0x14, 1));
        self.line.trap_read(offset, bytes).map(|status| status as u32)
    }

    fn write_status(&self, status: u32) -> Result<()> {
        if self.shape == Shape::Vbus {
            return self.line.call(function::SET_STATUS, &words(&[status])).map(drop);
        }
        let (offset, bytes) = self.either((0x070, 4), (0x14, 1));
        self.line.trap_write(offset, bytes, status.into())
    }

    fn select(&self, queue: u16) -> Result<()> {
        let (offset, bytes) = self.either((0x030, 4), (0x16, 2));
        self.line.trap_write(offset, bytes, queue.into())
    }

    /// Largest size of a queue, and whether it is in use.
    fn query(&self, queue: u16) -> Result<(u32, bool)> {
        if self.shape == Shape::Vbus {
            let [size, is_ready] = numbers(&self.line.call(function::QUERY_VQ, &words(&[queue.into()]))?)?;
            return Ok((size, is_ready != 0));
        }
        self.select(queue)?;
        let (size, ready) = (self.either((0x034, 4), (0x18, 2)), self.either((0x044, 4), (0x1c, 2)));
        Ok((self.line.trap_read(size.0, size.1)? as u32, self.line.trap_read(ready.0, ready.1)? != 0))
    }

    fn enable(&self, queue: u16, size: u32, places: [PhysAddr; 3]) -> Result<()> {
        if self.shape == Shape::Vbus {
            let mut data = words(&[queue.into(), size]);
            data.extend(places.iter().flat_map(|place| place.to_le_bytes()));
            return self.line.call(function::SET_VQ, &data).map(drop);
        }
        self.select(queue)?;
        let (offset, bytes) = self.either((0x038, 4), (0x18, 2));
        self.line.trap_write(offset, bytes, size.into())?;
        for (place, (mmio, pci)) in places.iter().zip([(0x080, 0x20), (0x090, 0x28), (0x0a0, 0x30)]) {
            let (offset, bytes) = self.either((mmio, 4), (pci, 4));
            self.line.trap_write(offset, bytes, place & 0xffff_ffff)?;
            self.line.trap_write(offset + 4, bytes, place >> 32)?;
        }
        let (offset, bytes) = self.either((0x044, 4), (0x1c, 2));
        self.line.trap_write(offset, bytes, 1)
    }

    fn disable(&self, queue: u16) -> Result<()> {
        if self.shape == Shape::Vbus {
            return self.line.call(function::DEL_VQ, &words(&[queue.into()])).map(drop);
        }
        self.select(queue)?;
        let (offset, bytes) = self.either((0x044, 4), (0x1c, 2));
        self.line.trap_write(offset, bytes, 0)
    }

    /// Shows a queue's memory, with its signal in the last page of the used ring, once.
    fn show(&mut self, queue: u16, size: u32, places: [PhysAddr; 3]) -> Result<()> {
        let [descriptors, available, used] = places;
        // A used ring is 6 bytes longer than a power of two, so its last page has room for a signal.
        let end = (used + 6 + 8 * u64::from(size)).next_multiple_of(PAGE_SIZE as u64);
        let start = descriptors.min(available).min(used);
        let signal = end - SIGNAL_PAIR_BYTES as u64;
        if !self.arena.holds(start, end - start) {
            return Err(Error::Usage("a virtqueue lies outside of its driver's arena".into()));
        }
        let Some(entry) = self.queues.get_mut(usize::from(queue)) else {
            return Err(Error::Usage(format!("this device has no queue {queue}")));
        };
        let ram = self.arena.ram();
        let pair = PairMemory::format(ram, signal as u32)?;
        let (listener, notifier) = pair.guest_ends();
        let shown = (start as u32, (end - start) as u32, (signal - start) as u32);
        let (kick, call) = self.line.registers.share(queue.into(), shown.0, shown.1, shown.2)?;
        let (kick, call) = (Doorbell::from_fd(kick), Arc::new(Doorbell::from_fd(call)));
        self.line.waker.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call.clone());
        *entry = Some(QueueSignal { listener, notifier, kick, call });
        Ok(())
    }

    fn kick(&self, queue: u16) -> Result<()> {
        match self.queues.get(usize::from(queue)) {
            Some(Some(signal)) => self.line.kick(self.shape, queue, signal).map(drop),
            _ => Ok(()),
        }
    }

    /// What a half of a driver goes on with by itself, reaching registers by a way of its own.
    pub(crate) fn take_ends(&mut self, queue: u16, registers: Arc<dyn Registers>) -> Option<QueueEnds> {
        let signal = self.queues.get_mut(usize::from(queue))?.take()?;
        let line = Line { registers, waker: self.waker(), tally: self.tally() };
        Some(QueueEnds { line, shape: self.shape, queue, signal, is_armed: Cell::new(false) })
    }

    /// Waits until `is_done`, or until `deadline`: spins for `spin`, then sleeps. `false`: the time was up.
    ///
    /// # Errors
    ///
    /// [`Error::PeerGone`]: the host is gone. [`Error::Machine`]: the system refused to wait.
    pub(crate) fn wait(
        &self,
        queue: u16,
        spin: Duration,
        deadline: Instant,
        mut is_done: impl FnMut() -> bool,
    ) -> Result<bool> {
        let Some(Some(signal)) = self.queues.get(usize::from(queue)) else { return Ok(is_done()) };
        let start = Instant::now();
        loop {
            for _ in 0..POLLS_A_LOOK {
                if is_done() {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= spin {
                break;
            }
        }
        loop {
            self.line.waker.check()?;
            signal.listener.acknowledge();
            // The ring is looked at once more after the signal was armed: the device may have found the ring's event index
            // of before, and then did not mark the signal.
            let is_asleep = signal.listener.arm();
            if is_done() {
                signal.listener.mask();
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                signal.listener.mask();
                return Ok(false);
            }
            if is_asleep {
                self.line.tally.sleeps.fetch_add(1, Ordering::Relaxed);
                signal.call.wait(Some(left))?;
                signal.listener.mask();
                self.line.acknowledge(self.shape)?;
            }
        }
    }
}

impl Transport for BusTransport {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn read_device_features(&mut self) -> u64 {
        self.failure.keep(self.read_features()).unwrap_or(0)
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.failure.keep(self.write_features(driver_features));
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.failure.keep(self.query(queue)).map_or(0, |(size, _)| size)
    }

    fn notify(&mut self, queue: u16) {
        self.failure.keep(self.kick(queue));
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.failure.keep(self.status()).unwrap_or(0))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.failure.keep(self.write_status(status.bits()));
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let places = [descriptors, driver_area, device_area];
        let outcome = self.show(queue, size, places).and_then(|()| self.enable(queue, size, places));
        self.failure.keep(outcome);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.failure.keep(self.disable(queue));
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.failure.keep(self.query(queue)).is_some_and(|(_, is_used)| is_used)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        if self.shape != Shape::Mmio {
            // Interrupts are messages: there is nothing to acknowledge.
            return InterruptStatus::QUEUE_INTERRUPT;
        }
        let outcome = self.line.trap_read(0x060, 4).and_then(|status| {
            self.line.trap_write(0x064, 4, status & 3)?;
            Ok(status)
        });
        InterruptStatus::from_bits_retain(self.failure.keep(outcome).unwrap_or(0) as u32)
    }

    fn read_config_generation(&self) -> u32 {
        let outcome = match self.shape {
            Shape::Vbus => {
                self.line.call(function::GET_GENERATION, &[]).and_then(|answer| numbers(&answer)).map(|[one]| one)
            }
            Shape::Mmio => self.line.trap_read(0x0fc, 4).map(|value| value as u32),
            Shape::Pci => self.line.trap_read(0x15, 1).map(|value| value as u32),
        };
        self.failure.keep(outcome).unwrap_or(0)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let length = size_of::<T>();
        let outcome = match self.shape {
            Shape::Vbus => self.line.call(function::GET_CONFIG, &words(&[offset as u32, length as u32])),
            shape => {
                let base = if shape == Shape::Mmio { 0x100 } else { 0x3000 };
                self.line.trap_read(base + offset as u32, length as u32).map(|value| {
                    let bytes = value.to_le_bytes();
                    bytes[..length.min(bytes.len())].to_vec()
                })
            }
        };
        let answer = self.failure.keep(outcome).ok_or(VirtioError::ConfigSpaceMissing)?;
        T::read_from_bytes(&answer).map_err(|_| VirtioError::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> virtio_drivers::Result<()> {
        let bytes = value.as_bytes();
        let outcome = match self.shape {
            Shape::Vbus => {
                let mut data = words(&[offset as u32]);
                data.extend(bytes);
                self.line.call(function::SET_CONFIG, &data).map(drop)
            }
            shape => {
                let base = if shape == Shape::Mmio { 0x100 } else { 0x3000 };
                let mut wide = [0; 8];
                let length = bytes.len().min(wide.len());
                wide[..length].copy_from_slice(&bytes[..length]);
                self.line.trap_write(base + offset as u32, length as u32, u64::from_le_bytes(wide))
            }
        };
        self.failure.keep(outcome).ok_or(VirtioError::ConfigSpaceMissing)
    }
}

impl fmt::Debug for BusTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusTransport")
            .field("device", &self.device_type)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}
