//! One connection of a front end: what it agreed to, its memory, its queues.
//!
//! ```text
//!   message ─▶ vhost crate: framing, sizes, descriptors ─▶ Session: is it allowed, is it possible?
//!                                                           yes ─▶ noted; rings taken back, made anew, handed over
//!                                                           no  ─▶ refused, counted, the connection ends
//! ```
//!
//! The danger: a message may say anything, in any order, any number of times, with any descriptor attached. So there is one
//! value for each thing that can be said, a later one replaces it and closes what it held; numbers are checked before they
//! are places; and an eventfd is believed after the kernel said that it is one. What was refused ends the connection, for a
//! front end that goes on as if it had been heard would be harder to understand than one that has to begin anew.
//! Source: vhost-user protocol, "Front-end message types"; `docs/decisions/0021-vhost-user-memory-and-eventfds.md`.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::{FdFlags, fcntl_setfd};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error as Refused, GpuBackend, Result as Answer, VhostUserBackendReqHandler};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_F_ANY_LAYOUT, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::error::{Error, Fault, Result};
use crate::net::frame::MacAddress;
use crate::port::PortId;
use crate::port::virtqueues::{Ends, Ring};
use crate::shm::doorbell::Doorbell;
use crate::virtio::dirty::DirtyLog;
use crate::virtio::inflight::{self, Trail};
use crate::virtio::memory::{GuestMemory, REGIONS_MAX, RegionAt};
use crate::virtio::net::{self, OFFLOADS, PAIRS_MAX, bit};
use crate::virtio::packed::PackedQueue;
use crate::virtio::queue::{self, QueueAt, SIZE_MAX};
use crate::worker::brake::Brake;
use crate::worker::{Command, WorkerDoor};

const QUEUES: usize = 2 * PAIRS_MAX;
/// So often a second rings may be taken from the worker: many times what setting up every queue takes.
const STOPS_A_SECOND: u32 = 1000;
/// What each message has to wait that takes them more often.
const WAIT: Duration = Duration::from_millis(1);

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// `VHOST_F_LOG_ALL`: pages of buffers that we write are marked in a log.
const LOG_ALL: u64 = 1 << 26;

/// What every port offers; one with an address of its own tells it besides.
const FEATURES: u64 = OFFLOADS
    | bit(VIRTIO_NET_F_MRG_RXBUF)
    | bit(VIRTIO_NET_F_MQ)
    | bit(VIRTIO_F_ANY_LAYOUT)
    | bit(VIRTIO_F_VERSION_1)
    | bit(VIRTIO_F_RING_PACKED)
    | bit(VIRTIO_F_IN_ORDER)
    | bit(VIRTIO_RING_F_INDIRECT_DESC)
    | bit(VIRTIO_RING_F_EVENT_IDX)
    | LOG_ALL
    | PROTOCOL_FEATURES;

/// What is agreed on about messages themselves.
fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::RARP
}

/// What a front end said of one queue.
#[derive(Debug, Default)]
struct Queue {
    size: u32,
    addresses: Option<(u64, u64, u64)>,
    /// Where it goes on: what was said, or where it was when it was stopped. None: at its beginning.
    base: Option<u32>,
    /// The base is where we left it, not what somebody said.
    is_ours: bool,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    is_enabled: bool,
    /// Guest address by which what we write into its rings is marked in the log; none: it is not.
    log: Option<u64>,
    /// Why it is not run again before it is set up anew.
    fault: Option<Fault>,
}

#[derive(Debug, Default)]
struct State {
    features: u64,
    protocol_features: u64,
    memory: Arc<GuestMemory>,
    inflight: Option<inflight::Region>,
    /// Where written pages are marked, where that is wanted.
    log: Option<Arc<DirtyLog>>,
    queues: [Queue; QUEUES],
    /// The worker has rings of this session.
    runs: bool,
    /// Why the last message was refused.
    refusal: Option<Error>,
}

/// One front end's session, as the `vhost` crate calls it.
pub(crate) struct Session {
    port: PortId,
    mac: MacAddress,
    door: WorkerDoor,
    state: Mutex<State>,
    /// How often rings are taken back.
    brake: Mutex<Brake>,
}

impl Session {
    pub(crate) fn new(port: PortId, mac: MacAddress, door: WorkerDoor) -> Self {
        Self { port, mac, door, state: Mutex::default(), brake: Mutex::new(Brake::new(STOPS_A_SECOND)) }
    }

    /// Why the last message was refused, if it was by us.
    pub(crate) fn take_refusal(&self) -> Option<Error> {
        self.state().refusal.take()
    }

    /// Whether it was agreed on that queues are switched on and off.
    pub(super) fn has_agreed(&self) -> bool {
        self.state().features & PROTOCOL_FEATURES != 0
    }

    /// Whether it was agreed on that written pages are marked in a log.
    pub(super) fn logs(&self) -> bool {
        self.state().protocol_features & VhostUserProtocolFeatures::LOG_SHMFD.bits() != 0
    }

    /// Whether it was agreed on that a machine which has moved is announced.
    pub(super) fn announces(&self) -> bool {
        self.state().protocol_features & VhostUserProtocolFeatures::RARP.bits() != 0
    }

    /// Announces a machine that has moved here.
    pub(super) fn announce(&self, station: MacAddress) -> Answer<()> {
        let outcome = if station.is_station() {
            self.door.ask(|reply| Command::Announce(self.port, station, reply))
        } else {
            Err(Error::Usage(format!("{station} is no address of a machine that could have moved")))
        };
        outcome.map_err(|error| refuse(&mut self.state(), error))
    }

    /// Whether every message is answered that asks for it.
    pub(super) fn answers_all(&self) -> bool {
        self.state().protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Takes the rings from the worker for good.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        if state.runs {
            let _ = self.stop(&mut state);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offered(&self) -> u64 {
        if self.mac.is_station() { FEATURES | bit(VIRTIO_NET_F_MAC) } else { FEATURES }
    }

    /// Does something to the state with no ring running, then runs what is ready.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T>) -> Answer<T> {
        let mut state = self.state();
        let outcome = self.stop(&mut state).and_then(|()| change(&mut state)).and_then(|value| {
            self.run(&mut state)?;
            Ok(value)
        });
        outcome.map_err(|error| refuse(&mut state, error))
    }

    /// Takes the rings back; where each was is its base from now on. A front end that has it done without end is slowed
    /// down, for the worker serves others.
    fn stop(&self, state: &mut State) -> Result<()> {
        if !state.runs {
            return Ok(());
        }
        if !self.brake.lock().unwrap_or_else(PoisonError::into_inner).lets(Instant::now()) {
            thread::sleep(WAIT);
        }
        let rings = self.door.ask(|reply| Command::SetRings(self.port, None, reply))??;
        state.runs = false;
        for ring in rings.into_iter().flat_map(|rings| rings.tx.into_iter().chain(rings.rx)) {
            if let Some(queue) = state.queues.get_mut(ring.index) {
                queue.base = Some(ring.queue.position());
                queue.is_ours = true;
                queue.fault = ring.fault;
            }
        }
        Ok(())
    }

    /// Hands every queue that is ready over to the worker. While pages are to be marked and nobody has said where, none is: what
    /// was written then would be missing where the guest goes.
    fn run(&self, state: &mut State) -> Result<()> {
        let mut rings = net::rings_for(state.features, state.memory.clone());
        if state.features & LOG_ALL != 0 {
            let Some(log) = &state.log else { return Ok(()) };
            log.check(state.memory.end())?;
            rings.log = Some(log.clone());
        }
        for index in 0..QUEUES {
            let Some(ring) = ready_ring(state, index)? else { continue };
            if index % 2 == 0 { rings.rx.push(ring) } else { rings.tx.push(ring) }
        }
        if rings.tx.is_empty() && rings.rx.is_empty() {
            return Ok(());
        }
        // Whatever becomes of it, the worker may have it from here on.
        state.runs = true;
        self.door.ask(|reply| Command::SetRings(self.port, Some(Box::new(rings)), reply))??;
        Ok(())
    }
}

/// The ring of a queue about which everything was said and that is enabled.
fn ready_ring(state: &State, index: usize) -> Result<Option<Ring>> {
    let queue = &state.queues[index];
    let is_enabled = queue.is_enabled || state.features & PROTOCOL_FEATURES == 0;
    let (Some((descriptors, used, available)), Some(kick)) = (queue.addresses, &queue.kick) else { return Ok(None) };
    if !is_enabled || queue.size == 0 || queue.fault.is_some() {
        return Ok(None);
    }
    if state.memory.is_empty() {
        return Err(Error::Usage(
            "it shares no memory for its queues; QEMU does with a memory backend that has share=on".into(),
        ));
    }
    let at = QueueAt {
        size: queue.size,
        descriptors,
        available,
        used,
        has_event_index: state.features & bit(VIRTIO_RING_F_EVENT_IDX) != 0,
        has_indirect: state.features & bit(VIRTIO_RING_F_INDIRECT_DESC) != 0,
        is_packed: is_packed(state),
    };
    let trail = match &state.inflight {
        Some(region) => region.trail(index, at.size, at.is_packed)?,
        None => None,
    };
    let is_known = queue.is_ours || !at.is_packed || trail.as_ref().is_some_and(Trail::is_kept);
    let base = base_of(queue, at.is_packed);
    let base = if is_known { base } else { find_base(state, &at, base)? };
    let mut made = queue::Queue::new(state.memory.clone(), &at, base, trail)?;
    if let Some(used) = queue.log {
        let Some(log) = &state.log else { return Ok(None) };
        made.keep_log(log.clone(), used)?;
    }
    made.mend();
    let bell = |file: &OwnedFd| {
        let file = file.try_clone().map_err(|error| Error::machine("duplicate an eventfd", error))?;
        Ok::<_, Error>(Doorbell::from_fd(file))
    };
    let call = queue.call.as_ref().map(bell).transpose()?;
    Ok(Some(Ring::new(index, made, Arc::new(bell(kick)?), Ends::FrontEnd(call))))
}

/// Where a packed ring is. A front end whose back end has died was not told, and says something older.
fn find_base(state: &State, at: &QueueAt, told: u32) -> Result<u32> {
    if let Some(found) = PackedQueue::find(state.memory.clone(), at, told)? {
        return Ok(found);
    }
    // Others complete in order without a trace in each descriptor.
    if state.features & bit(VIRTIO_F_IN_ORDER) != 0 && told as u16 != PackedQueue::START as u16 {
        return Ok(told);
    }
    Err(Error::Usage(
        "where its packed queue goes on is lost, and its ring does not tell; reset the card in the machine, or the machine"
            .into(),
    ))
}

fn base_of(queue: &Queue, is_packed: bool) -> u32 {
    queue.base.unwrap_or(if is_packed { PackedQueue::START } else { 0 })
}

const fn is_packed(state: &State) -> bool {
    state.features & bit(VIRTIO_F_RING_PACKED) != 0
}

fn refuse(state: &mut State, error: Error) -> Refused {
    let answer = match &error {
        Error::Machine { .. } | Error::Closed(_) | Error::PeerGone(_) => Refused::BackendInternalError,
        _ => Refused::InvalidParam,
    };
    state.refusal = Some(error);
    answer
}

/// Refuses regions for more than there can be.
fn check_inflight(queues: u16, size: u16) -> Result<()> {
    let refused = |what, found: u16, limit| Err(Fault::BadSize { what, found: found.into(), limit }.into());
    if queues == 0 || usize::from(queues) > QUEUES {
        return refused("queues whose chains in flight are tracked", queues, QUEUES as u64);
    }
    if size == 0 || u32::from(size) > SIZE_MAX {
        return refused("descriptors of a queue whose chains in flight are tracked", size, SIZE_MAX.into());
    }
    Ok(())
}

fn queue_of(state: &mut State, index: usize) -> Result<&mut Queue> {
    let limit = QUEUES as u32;
    let found = u32::try_from(index).unwrap_or(u32::MAX);
    state.queues.get_mut(index).ok_or_else(|| Fault::IndexOutOfRange { index: found, limit }.into())
}

/// Believes a descriptor of a front end to be an eventfd, after the kernel said so: it names what is behind a descriptor
/// without asking it, and nothing else can have this name, for every path begins with a slash.
fn eventfd(file: File) -> Result<OwnedFd> {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|error| Error::machine("inspect an eventfd", error))?;
    if name.as_os_str() != "anon_inode:[eventfd]" {
        return Err(Error::Usage(format!("a kick or call of a front end is an eventfd, not {}", name.display())));
    }
    let file = OwnedFd::from(file);
    // Neither is trusted later on; they spare the watchdog an honest front end.
    fcntl_setfd(&file, FdFlags::CLOEXEC).map_err(|errno| Error::machine("set up an eventfd", errno))?;
    let flags = rustix::fs::fcntl_getfl(file.as_fd()).map_err(|errno| Error::machine("set up an eventfd", errno))?;
    rustix::fs::fcntl_setfl(file.as_fd(), flags | OFlags::NONBLOCK)
        .map_err(|errno| Error::machine("set up an eventfd", errno))?;
    Ok(file)
}

fn region_at(region: &VhostUserMemoryRegion) -> RegionAt {
    RegionAt {
        guest: region.guest_phys_addr,
        size: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

/// Messages of what was never offered.
const NOT_OFFERED: Refused = Refused::InvalidOperation("not offered");

impl VhostUserBackendReqHandler for Session {
    fn set_owner(&self) -> Answer<()> {
        Ok(())
    }

    fn reset_owner(&self) -> Answer<()> {
        self.reset_device()
    }

    fn reset_device(&self) -> Answer<()> {
        self.change(|state| {
            state.queues = Default::default();
            state.inflight = None;
            state.log = None;
            state.features = 0;
            Ok(())
        })
    }

    fn get_features(&self) -> Answer<u64> {
        Ok(self.offered())
    }

    fn set_features(&self, features: u64) -> Answer<()> {
        let surplus = features & !self.offered();
        self.change(|state| {
            if surplus != 0 {
                let (what, expected) = ("features beyond those offered", 0);
                return Err(Fault::BadHeader { what, found: surplus, expected }.into());
            }
            state.features = features;
            Ok(())
        })
    }

    fn get_protocol_features(&self) -> Answer<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&self, features: u64) -> Answer<()> {
        let mut state = self.state();
        let surplus = features & !protocol_features().bits();
        if surplus != 0 {
            let fault =
                Fault::BadHeader { what: "protocol features beyond those offered", found: surplus, expected: 0 };
            return Err(refuse(&mut state, fault.into()));
        }
        state.protocol_features = features;
        Ok(())
    }

    fn get_queue_num(&self) -> Answer<u64> {
        Ok(PAIRS_MAX as u64)
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Answer<Option<Vec<u64>>> {
        self.change(|state| {
            // The old memory first: a front end that sets its table again shall not need twice the room.
            state.memory = Arc::default();
            state.memory = Arc::new(GuestMemory::map(regions.iter().map(region_at).zip(files))?);
            Ok(None)
        })
    }

    fn get_max_mem_slots(&self) -> Answer<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Answer<Option<u64>> {
        self.change(|state| {
            // QEMU 7.2 says the same once for each pair of queues.
            if !state.memory.has(region_at(region)) {
                state.memory = Arc::new(state.memory.with(region_at(region), &file)?);
            }
            Ok(None)
        })
    }

    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Answer<()> {
        self.change(|state| {
            if state.memory.has(region_at(region)) {
                state.memory = Arc::new(state.memory.without(region_at(region))?);
            }
            Ok(())
        })
    }

    fn set_vring_num(&self, index: u32, size: u32) -> Answer<()> {
        self.change(|state| {
            let is_whole = is_packed(state) || size.is_power_of_two();
            let queue = queue_of(state, index as usize)?;
            if size == 0 || !is_whole || size > SIZE_MAX {
                return Err(Fault::BadSize { what: "queue size", found: size.into(), limit: SIZE_MAX.into() }.into());
            }
            queue.size = size;
            queue.fault = None;
            Ok(())
        })
    }

    fn set_vring_addr(
        &self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Answer<()> {
        self.change(|state| {
            let queue = queue_of(state, index as usize)?;
            queue.addresses = Some((descriptors, used, available));
            queue.log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
            queue.fault = None;
            Ok(())
        })
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Answer<()> {
        self.change(|state| {
            let queue = queue_of(state, index as usize)?;
            queue.is_ours &= queue.base == Some(base);
            queue.base = Some(base);
            queue.fault = None;
            Ok(())
        })
    }

    /// Stops a queue, until it is given a kick again.
    fn get_vring_base(&self, index: u32) -> Answer<VhostUserVringState> {
        self.change(|state| {
            let is_packed = is_packed(state);
            let queue = queue_of(state, index as usize)?;
            queue.kick = None;
            queue.fault = None;
            Ok(VhostUserVringState::new(index, base_of(queue, is_packed)))
        })
    }

    fn set_vring_kick(&self, index: u8, file: Option<File>) -> Answer<()> {
        self.change(|state| {
            let queue = queue_of(state, index.into())?;
            let Some(file) = file else {
                return Err(Error::Usage("a queue without a kick would have to be polled; give an eventfd".into()));
            };
            queue.kick = Some(eventfd(file)?);
            Ok(())
        })
    }

    fn set_vring_call(&self, index: u8, file: Option<File>) -> Answer<()> {
        self.change(|state| {
            let queue = queue_of(state, index.into())?;
            queue.call = file.map(eventfd).transpose()?;
            Ok(())
        })
    }

    /// Nobody is told of errors that way; the descriptor is closed.
    fn set_vring_err(&self, index: u8, _file: Option<File>) -> Answer<()> {
        let mut state = self.state();
        queue_of(&mut state, index.into()).map(|_| ()).map_err(|error| refuse(&mut state, error))
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Answer<()> {
        self.change(|state| {
            queue_of(state, index as usize)?.is_enabled = enable;
            Ok(())
        })
    }

    fn get_config(&self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Answer<Vec<u8>> {
        let space = net::config_space(self.mac, PAIRS_MAX, None);
        let end = offset.checked_add(size).ok_or(Refused::InvalidParam)?;
        // Fields behind ours exist in other versions of the structure; they read as zeroes.
        if end as usize > CONFIG_BYTES_MAX {
            return Err(Refused::InvalidParam);
        }
        Ok((offset as usize..end as usize).map(|at| space.get(at).copied().unwrap_or(0)).collect())
    }

    fn set_config(&self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Answer<()> {
        Err(NOT_OFFERED)
    }

    fn set_gpu_socket(&self, _gpu: GpuBackend) -> Answer<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&self, _object: VhostUserSharedMsg) -> Answer<File> {
        Err(NOT_OFFERED)
    }

    /// Makes a region; nothing of it is kept here before it is handed over.
    fn get_inflight_fd(&self, wanted: &VhostUserInflight) -> Answer<(VhostUserInflight, File)> {
        let mut state = self.state();
        let (queues, size) = (wanted.num_queues, wanted.queue_size);
        let made = check_inflight(queues, size).and_then(|()| {
            let bytes = inflight::region_bytes(queues, size, is_packed(&state));
            Ok((VhostUserInflight::new(bytes, 0, queues, size), inflight::create(bytes)?))
        });
        made.map_err(|error| refuse(&mut state, error))
    }

    fn set_inflight_fd(&self, told: &VhostUserInflight, file: File) -> Answer<()> {
        self.change(|state| {
            check_inflight(told.num_queues, told.queue_size)?;
            let place = (told.mmap_offset, told.mmap_size);
            let region = inflight::Region::map(file, place, (told.num_queues, told.queue_size), is_packed(state))?;
            state.inflight = Some(region);
            Ok(())
        })
    }

    fn set_device_state_fd(
        &self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Answer<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&self) -> Answer<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&self) -> Answer<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&self, told: &VhostUserLog, file: File) -> Answer<()> {
        self.change(|state| {
            state.log = Some(Arc::new(DirtyLog::map(file, (told.mmap_offset, told.mmap_size))?));
            Ok(())
        })
    }
}

/// Bytes of the configuration space that may be asked for.
const CONFIG_BYTES_MAX: usize = 256;
