//! The control face of the data path: switches, ports and the workers that run them.
//!
//! ```text
//!   caller ── Fabric ──command──▶ worker 0: switch "lan" · its ports
//!                │ ◀───answer─── worker 1: switch "wan" · its ports · loopbacks
//!                └─ events ◀──── what broke, and an eventfd to wait for it
//! ```
//!
//! Nothing here is on the way of a frame. Rings and devices are checked here, on the caller's thread, before a worker
//! sees them; what a worker gives back is dropped here, so that it never unmaps memory itself. Every command is
//! answered within [`ANSWER_DEADLINE`] or fails. When [`Fabric::port_remove`] has returned `Ok`, no worker touches the
//! port's memory any more.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::error::{Error, Result};
use crate::net::frame::{FRAME_BYTES_MAX, MacAddress};
use crate::net::offload::Features;
use crate::net::switch::{Switch, SwitchCounter};
use crate::port::driver::DriverPort;
use crate::port::latency::{Latencies, PortLatency};
use crate::port::nic::NicPort;
use crate::port::tap::{self, TapPort};
use crate::port::venet::{VenetPort, check_budget, check_burst_threshold, check_hold, check_mtu, check_priority};
use crate::port::virtqueues::VirtqueuePort;
use crate::port::{PortCounter, PortKind, PortPart, PortStatus};
use crate::shm::capture::CaptureRing;
use crate::shm::counters::{Block, CounterFile};
use crate::shm::doorbell::Doorbell;
use crate::shm::labels;
use crate::vhost_user::server::{Bound, Meeting, Role, Server, ServerParams};
use crate::virtio::net::NetPort;
use crate::watch::bpf::{Instruction, Program};
use crate::watch::{CaptureCounter, Purpose, WATCHES_A_PORT_MAX, WATCHES_MAX, Watch};
use crate::worker::forward::{End, EventSink, Port};
use crate::worker::watchdog::Watchdog;
use crate::worker::{Command, WorkerCounter, WorkerHandle};

pub use crate::port::nic::NicParts;
pub use crate::port::venet::{VenetParams, VenetQueues};
pub use crate::port::{PortEvent, PortId};
pub use crate::vhost_user::server::VhostUserCounter;
pub use crate::watch::WatchId;
pub use crate::worker::{ANSWER_DEADLINE, Param};

/// Most workers of one fabric.
pub const WORKERS_MAX: usize = 64;
/// Longest name of a switch or port in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// What is known of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Its number, never reused.
    pub id: PortId,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: PortKind,
    /// Its switch; a loopback has none.
    pub switch: Option<String>,
    /// The worker that runs it.
    pub worker: usize,
    /// Its own address, if it was given one.
    pub mac: Option<MacAddress>,
    /// The device behind a TAP port.
    pub device: Option<String>,
    /// Longest payload of a frame in bytes.
    pub mtu: u32,
    /// See [`VenetParams::tx_mitigation`].
    pub tx_mitigation: u32,
    /// See [`VenetParams::burst_threshold_us`].
    pub burst_threshold_us: u32,
    /// See [`VenetParams::budget`].
    pub budget: u32,
    /// See [`VenetParams::priority`].
    pub priority: u32,
    /// See [`VenetParams::hold_us`].
    pub hold_us: u32,
    /// The link is up.
    pub is_up: bool,
    /// Why nothing is taken from it any more, one of [`crate::error::Fault::REASONS`].
    pub transmit_fault: Option<&'static str>,
    /// Why nothing is given to it any more.
    pub receive_fault: Option<&'static str>,
    /// The device behind it has ended.
    pub is_gone: bool,
    /// A front end has set its queues up; none: this kind of port waits for nobody.
    pub is_served: Option<bool>,
    /// What its guest can be left with.
    pub offloads: Features,
    /// Another front end waits for the connected one to go; none: this kind of port waits for nobody.
    pub has_waiting: Option<bool>,
}

/// One line of a switch's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacEntry {
    /// The station.
    pub mac: MacAddress,
    /// Where it is.
    pub port: PortId,
    /// Seconds since it was last heard; 0 for a pinned one.
    pub age_s: u32,
    /// It is the port's own address: it neither ages nor moves.
    pub is_pinned: bool,
}

struct SwitchRecord {
    worker: usize,
    slot: u32,
}

struct PortRecord {
    info: PortInfo,
    status: Arc<PortStatus>,
    /// Of a port that front ends set up.
    server: Option<Server>,
}

/// How to look at a port.
#[derive(Clone, Debug)]
pub struct WatchParams<'a> {
    /// Name of the port.
    pub port: &'a str,
    /// Keep every frame, or follow some.
    pub purpose: Purpose,
    /// Which frames; empty = all.
    pub filter: &'a [Instruction],
    /// Most bytes kept of a frame.
    pub snap_bytes: u32,
    /// Room for records, a power of two.
    pub ring_bytes: u32,
}

/// What somebody needs who looks at a port.
#[derive(Debug)]
pub struct WatchEnds {
    /// By which to end it.
    pub id: WatchId,
    /// The capture ring.
    pub memory: OwnedFd,
    /// Its doorbell.
    pub bell: OwnedFd,
}

struct WatchRecord {
    port: String,
    /// The port it is on now.
    at: Option<(PortId, usize)>,
    /// While no port of that name is there.
    parked: Option<Box<Watch>>,
}

#[derive(Default)]
struct Registry {
    /// Empty once the fabric is closed.
    workers: Vec<WorkerHandle>,
    watchdog: Option<Watchdog>,
    switches: BTreeMap<String, SwitchRecord>,
    ports: BTreeMap<PortId, PortRecord>,
    watches: BTreeMap<WatchId, WatchRecord>,
    last_id: u64,
    last_watch: u64,
}

/// Switches, ports and workers of one host node.
pub struct Fabric {
    counters: Arc<CounterFile>,
    registry: Mutex<Registry>,
    events: Receiver<PortEvent>,
    told: Sender<PortEvent>,
    events_bell: Arc<Doorbell>,
}

impl Fabric {
    /// Starts `workers` worker threads that count into `counters`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: `workers` is not 1 to [`WORKERS_MAX`]. [`Error::Machine`]: threads, descriptors or counters ran
    /// out.
    pub fn new(counters: Arc<CounterFile>, workers: usize) -> Result<Self> {
        Self::start::<true>(counters, workers)
    }

    /// As [`Self::new`], but its workers count and time no frames: shows in a benchmark what that costs.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn without_counting(counters: Arc<CounterFile>, workers: usize) -> Result<Self> {
        Self::start::<false>(counters, workers)
    }

    fn start<const COUNTS: bool>(counters: Arc<CounterFile>, workers: usize) -> Result<Self> {
        if !(1..=WORKERS_MAX).contains(&workers) {
            return Err(Error::Usage(format!("a fabric has 1 to {WORKERS_MAX} workers; got {workers}")));
        }
        let (told, events) = crossbeam_channel::unbounded();
        let events_bell = Arc::new(Doorbell::create()?);
        let watchdog = Watchdog::start()?;
        let handles = (0..workers)
            .map(|index| {
                let block = counters.allocate("worker", &format!("worker={index}"), WorkerCounter::COUNT)?;
                let sink = EventSink { events: told.clone(), bell: events_bell.clone() };
                WorkerHandle::start::<COUNTS>(index, watchdog.handle(), sink, block)
            })
            .collect::<Result<Vec<_>>>()?;
        let registry = Registry { workers: handles, watchdog: Some(watchdog), ..Registry::default() };
        Ok(Self { counters, registry: Mutex::new(registry), events, told, events_bell })
    }

    /// The file it counts into.
    #[must_use]
    pub const fn counters(&self) -> &Arc<CounterFile> {
        &self.counters
    }

    /// Makes a switch. Learned stations are forgotten after `ageing_s` seconds of silence; 0 means never.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the name cannot be one. [`Error::Exists`]: it is taken.
    pub fn switch_create(&self, name: &str, ageing_s: u32) -> Result<()> {
        check_name(name)?;
        let mut registry = self.open()?;
        if registry.switches.contains_key(name) {
            return Err(Error::Exists(format!("switch {name:?} exists already")));
        }
        let block = self.counters.allocate("switch", &labels::text(&[("switch", name)]), SwitchCounter::COUNT)?;
        let worker = registry.least_busy();
        let switch = Box::new(Switch::new(ageing_s, block));
        let slot = registry.ask(worker, |reply| Command::AddSwitch(switch, reply))?;
        registry.switches.insert(name.into(), SwitchRecord { worker, slot });
        Ok(())
    }

    /// Removes a switch.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is none of that name. [`Error::Busy`]: it has ports.
    pub fn switch_delete(&self, name: &str) -> Result<()> {
        let mut registry = self.open()?;
        let &SwitchRecord { worker, slot } = registry.switch(name)?;
        let ports = registry.ports_of(name);
        if ports != 0 {
            return Err(Error::Busy(format!("switch {name:?} still has {ports} ports; remove them first")));
        }
        drop(registry.ask(worker, |reply| Command::RemoveSwitch(slot, reply))?);
        registry.switches.remove(name);
        Ok(())
    }

    /// Changes after how many seconds of silence a switch forgets stations; 0 means never.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is no switch of that name.
    pub fn switch_set_ageing(&self, name: &str, ageing_s: u32) -> Result<()> {
        let registry = self.open()?;
        let &SwitchRecord { worker, slot } = registry.switch(name)?;
        registry.ask(worker, |reply| Command::SetAgeing(slot, ageing_s, reply))
    }

    /// Names of all switches with the number of their ports.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn switches(&self) -> Result<Vec<(String, usize)>> {
        let registry = self.open()?;
        Ok(registry.switches.keys().map(|name| (name.clone(), registry.ports_of(name))).collect())
    }

    /// What a switch knows of its stations.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is no switch of that name.
    pub fn macs(&self, switch: &str) -> Result<Vec<MacEntry>> {
        let registry = self.open()?;
        let &SwitchRecord { worker, slot } = registry.switch(switch)?;
        let mut entries: Vec<MacEntry> = registry
            .ask(worker, |reply| Command::Macs(slot, reply))?
            .into_iter()
            .map(|(entry, port)| MacEntry { mac: entry.mac, port, age_s: entry.age_s, is_pinned: entry.is_pinned })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.mac);
        Ok(entries)
    }

    /// Joins a guest's rings to a switch.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the rings are not what they should be, the guest's fault. [`Error::Usage`]: a name or parameter
    /// cannot be. [`Error::Busy`]: the name or the address is taken.
    pub fn port_add_venet(&self, switch: &str, name: &str, queues: VenetQueues, params: VenetParams) -> Result<PortId> {
        params.check()?;
        let guest = queues.guest.clone();
        let end = End::Venet(VenetPort::attach(queues, &params)?);
        self.add(NewPort { name, guest, kind: PortKind::Venet, switch: Some(switch), device: None, params, end })
    }

    /// Joins a guest's rings to themselves: what it sends it receives.
    ///
    /// # Errors
    ///
    /// As [`Self::port_add_venet`].
    pub fn port_add_loopback(&self, name: &str, queues: VenetQueues, params: VenetParams) -> Result<PortId> {
        params.check()?;
        let guest = queues.guest.clone();
        let end = End::Venet(VenetPort::attach(queues, &params)?);
        self.add(NewPort { name, guest, kind: PortKind::Loopback, switch: None, device: None, params, end })
    }

    /// Joins an emulated card to a switch.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: a name or parameter cannot be. [`Error::Busy`]: the name or the address is taken.
    pub fn port_add_nic(&self, switch: &str, name: &str, parts: NicParts, params: VenetParams) -> Result<PortId> {
        params.check()?;
        let guest = parts.guest.clone();
        let device = Some(parts.model.to_owned());
        let end = End::Nic(Box::new(NicPort::new(parts, params.mtu)));
        self.add(NewPort { name, guest, kind: PortKind::Nic, switch: Some(switch), device, params, end })
    }

    /// Joins a TAP device to a switch: opened with `IFF_TAP | IFF_NO_PI`, and with `IFF_VNET_HDR` when its kernel shall leave
    /// checksums and segments to the switch and take them from it. `guest`: whose it is, for its counters; "": the machine's own.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the descriptor is no such device, or a name or the MTU cannot be. [`Error::Busy`]: the name is
    /// taken. [`Error::Machine`]: the device is gone.
    pub fn port_add_tap(&self, switch: &str, name: &str, guest: &str, file: OwnedFd, mtu: u32) -> Result<PortId> {
        // A read that finds nothing is a system call, so a TAP device is never polled for longer than it has frames.
        let params = VenetParams { mtu, burst_threshold_us: 0, ..VenetParams::default() };
        params.check()?;
        let found = tap::describe(file.as_fd())?;
        tap::set_offloads(file.as_fd(), found.has_headers)?;
        let device = Some(found.name);
        let end = End::Tap(Box::new(TapPort::new(file, mtu, found.has_headers)));
        self.add(NewPort { name, guest: guest.into(), kind: PortKind::Tap, switch: Some(switch), device, params, end })
    }

    /// Listens on a socket for front ends of vhost-user, whose network card is a port of a switch: one after the other, for
    /// as long as the port is there. `socket` is an absolute path.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: a name, an address, the path or the MTU cannot be. [`Error::Exists`]: the name is taken, or
    /// something is at the path. [`Error::Busy`]: the address is taken. [`Error::Machine`]: the socket cannot be had.
    pub fn port_add_vhost_user(&self, switch: &str, name: &str, socket: &Path, params: VenetParams) -> Result<PortId> {
        params.check()?;
        self.add_vhost_user(switch, name, (socket, Meeting::Listen(Bound::new(socket)?)), params)
    }

    /// As [`Self::port_add_vhost_user`], with front ends that listen themselves: the port connects to their socket, and
    /// again whenever nobody is or was there.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: a name, an address, the path or the MTU cannot be. [`Error::Exists`]: the name is taken.
    /// [`Error::Busy`]: the address is taken.
    pub fn port_join_vhost_user(&self, switch: &str, name: &str, socket: &Path, params: VenetParams) -> Result<PortId> {
        params.check()?;
        self.add_vhost_user(switch, name, (socket, Meeting::at(socket)?), params)
    }

    /// Makes a port for a virtio network card of a guest on a bus: it has no queues until the card's driver has set them up.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: a name, an address or a parameter cannot be. [`Error::Busy`]: the name or the address is taken.
    pub fn port_add_virtio_net(&self, switch: &str, name: &str, guest: &str, params: VenetParams) -> Result<NetPort> {
        params.check()?;
        let end = End::Virtqueues(Box::new(VirtqueuePort::new(params.mtu)));
        let (kind, switch) = (PortKind::VirtioNet, Some(switch));
        let id = self.add(NewPort { name, guest: guest.into(), kind, switch, device: None, params, end })?;
        let registry = self.open()?;
        let worker = registry.port(id)?.info.worker;
        let handle = registry.workers.get(worker).ok_or(Error::Closed("the fabric"))?;
        Ok(NetPort { id, door: handle.door() })
    }

    /// Joins a switch to somebody else's network device: the port is its front end. It connects to the socket where a back end
    /// listens, or with `does_listen` waits there for one, again and again for as long as the port is there.
    ///
    /// # Errors
    ///
    /// As [`Self::port_add_vhost_user`].
    pub fn port_add_front_end(
        &self,
        switch: &str,
        name: &str,
        (socket, does_listen): (&Path, bool),
        params: VenetParams,
    ) -> Result<PortId> {
        params.check()?;
        let meeting = if does_listen { Meeting::Listen(Bound::new(socket)?) } else { Meeting::at(socket)? };
        let device = Some(socket.display().to_string());
        let end = End::Driver(Box::new(DriverPort::new(params.mtu)));
        let (guest, kind, switch) = (name.into(), PortKind::FrontEnd, Some(switch));
        self.add_served(NewPort { name, guest, kind, switch, device, params, end }, Some(meeting))
    }

    fn add_vhost_user(
        &self,
        switch: &str,
        name: &str,
        (socket, meeting): (&Path, Meeting),
        params: VenetParams,
    ) -> Result<PortId> {
        let device = Some(socket.display().to_string());
        let end = End::Virtqueues(Box::new(VirtqueuePort::new(params.mtu)));
        let (guest, kind, switch) = (name.into(), PortKind::VhostUser, Some(switch));
        self.add_served(NewPort { name, guest, kind, switch, device, params, end }, Some(meeting))
    }

    fn add(&self, new: NewPort<'_>) -> Result<PortId> {
        self.add_served(new, None)
    }

    fn add_served(&self, mut new: NewPort<'_>, meeting: Option<Meeting>) -> Result<PortId> {
        check_name(new.name)?;
        let mut registry = self.open()?;
        if registry.ports.values().any(|port| port.info.name == new.name) {
            return Err(Error::Exists(format!("port {:?} exists already", new.name)));
        }
        let place = new.switch.map(|name| registry.switch(name).map(|at| (at.worker, at.slot))).transpose()?;
        let worker = place.map_or_else(|| registry.least_busy(), |(worker, _)| worker);
        registry.last_id += 1;
        let id = PortId(registry.last_id);
        let labels = labels_of(&new, id);
        let block = self.counters.allocate("port", &labels, PortCounter::COUNT)?;
        let meeting = meeting.map(|meeting| {
            let block = self.counters.allocate("vhost_user", &labels, VhostUserCounter::COUNT)?;
            Ok::<_, Error>((meeting, block))
        });
        let meeting = meeting.transpose()?;
        let latencies = self.counters.allocate_spare("port_latency", &labels, PortLatency::WORDS);
        let latencies = latencies.map_or_else(Latencies::default, Latencies::new);
        if let End::Venet(venet) = &mut new.end {
            venet.set_latencies(latencies.clone());
        }
        let NewPort { name, guest: _, kind, switch, device, params, end } = new;
        let mut port = Box::new(Port::new(id, name.into(), end, block));
        port.latencies = latencies;
        port.switch = place.map(|(_, slot)| slot);
        let offloads = port.features();
        port.status.set_offloads(offloads);
        port.budget = params.budget;
        port.priority = params.priority;
        port.parking.set_threshold(params.burst_threshold_us);
        port.hold.set_threshold(params.hold_us);
        let status = port.status.clone();
        let added = registry.ask(worker, |reply| Command::AddPort(port, params.mac, reply)).and_then(|added| added);
        if let Err(error) = added {
            // A worker that answers too late shall not keep a port that nobody knows of.
            registry.tell(worker, |reply| Command::RemovePort(id, reply));
            return Err(error);
        }
        let serve = |(meeting, block): (Meeting, Block)| {
            let handle = registry.workers.get(worker).ok_or(Error::Closed("the fabric"))?;
            let sink = EventSink { events: self.told.clone(), bell: self.events_bell.clone() };
            let (mac, mtu, door) = (params.mac, params.mtu, handle.door());
            let role = if kind == PortKind::FrontEnd { Role::FrontEnd } else { Role::BackEnd };
            Server::start(meeting, ServerParams { role, mtu, port: id, name: name.into(), mac, door, sink, block })
        };
        let server = meeting.map(serve).transpose();
        let server = server.inspect_err(|_| registry.tell(worker, |reply| Command::RemovePort(id, reply)))?;
        let info = PortInfo {
            id,
            name: name.into(),
            kind,
            switch: switch.map(Into::into),
            worker,
            mac: params.mac.is_station().then_some(params.mac),
            device,
            mtu: params.mtu,
            tx_mitigation: params.tx_mitigation,
            burst_threshold_us: params.burst_threshold_us,
            budget: params.budget,
            priority: params.priority,
            hold_us: params.hold_us,
            is_up: true,
            transmit_fault: None,
            receive_fault: None,
            is_gone: false,
            is_served: matches!(kind, PortKind::VhostUser | PortKind::FrontEnd | PortKind::VirtioNet).then_some(false),
            offloads,
            has_waiting: matches!(kind, PortKind::VhostUser | PortKind::FrontEnd).then_some(false),
        };
        registry.ports.insert(id, PortRecord { info, status, server });
        registry.resume_watches(id, name, worker);
        Ok(id)
    }

    /// Removes a port. After `Ok` nothing touches its memory any more; its descriptors are closed.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is no such port. [`Error::Machine`]: the worker did not answer in time; ask again.
    pub fn port_remove(&self, id: PortId) -> Result<()> {
        let mut registry = self.open()?;
        let worker = registry.port(id)?.info.worker;
        // Whoever sets its rings up goes first; the worker answers it while we wait.
        if let Some(record) = registry.ports.get_mut(&id) {
            drop(record.server.take());
        }
        registry.park_watches(id);
        let port = registry.ask(worker, |reply| Command::RemovePort(id, reply))?;
        registry.ports.remove(&id);
        drop(registry);
        drop(port);
        Ok(())
    }

    /// Changes a parameter of a running port.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is no such port, or the value is out of range.
    pub fn port_set(&self, id: PortId, param: Param) -> Result<()> {
        match param {
            Param::Mtu(mtu) => check_mtu(mtu)?,
            Param::Budget(budget) => check_budget(budget)?,
            Param::Priority(priority) => check_priority(priority)?,
            Param::BurstThresholdUs(burst_threshold_us) => check_burst_threshold(burst_threshold_us)?,
            Param::HoldUs(threshold_us) => check_hold(threshold_us)?,
            Param::TxMitigation(_) | Param::Parks(_) => {}
        }
        let mut registry = self.open()?;
        let worker = registry.port(id)?.info.worker;
        registry.ask(worker, |reply| Command::SetPort(id, param, reply))?;
        if let Some(PortRecord { info, .. }) = registry.ports.get_mut(&id) {
            match param {
                Param::Mtu(mtu) => info.mtu = mtu,
                Param::TxMitigation(frames) => info.tx_mitigation = frames,
                Param::BurstThresholdUs(burst_threshold_us) => info.burst_threshold_us = burst_threshold_us,
                Param::Budget(budget) => info.budget = budget,
                Param::Priority(priority) => info.priority = priority,
                Param::HoldUs(hold_us) => info.hold_us = hold_us,
                Param::Parks(_) => {}
            }
        }
        Ok(())
    }

    /// Returns every buffer the guest has posted, with length 0 and without a signal: how many (FLUSHRX).
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is no such port.
    pub fn port_flush_rx(&self, id: PortId) -> Result<u32> {
        let registry = self.open()?;
        let worker = registry.port(id)?.info.worker;
        registry.ask(worker, |reply| Command::FlushRx(id, reply))
    }

    /// Sets a port's link up or down. While it is down every frame from and to it is dropped and counted.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is no such port.
    pub fn port_link(&self, id: PortId, is_up: bool) -> Result<()> {
        let registry = self.open()?;
        let worker = registry.port(id)?.info.worker;
        registry.ask(worker, |reply| Command::SetLink(id, is_up, reply))
    }

    /// All ports, in the order they were added.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn ports(&self) -> Result<Vec<PortInfo>> {
        let registry = self.open()?;
        let current = |port: &PortRecord| PortInfo {
            is_up: port.status.is_up(),
            transmit_fault: port.status.fault(PortPart::Transmit),
            receive_fault: port.status.fault(PortPart::Receive),
            is_gone: port.status.is_gone(),
            is_served: port.info.is_served.map(|_| port.status.is_served()),
            offloads: port.status.offloads(),
            has_waiting: port.server.as_ref().map(Server::has_waiting),
            ..port.info.clone()
        };
        Ok(registry.ports.values().map(current).collect())
    }

    /// Looks at a port from now on: whatever its filter wants goes into a ring that is the caller's to read, or to leave
    /// unread. When the port is removed the watch waits for one of the same name.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: filter, length or size cannot be. [`Error::NotFound`]: there is no such port. [`Error::Busy`]: it,
    /// or this fabric, is watched too often. [`Error::Machine`]: no memory or descriptor is left.
    pub fn watch_add(&self, params: &WatchParams<'_>) -> Result<WatchEnds> {
        let program = if params.filter.is_empty() { None } else { Some(Program::check(params.filter)?) };
        if !(1..=FRAME_BYTES_MAX).contains(&params.snap_bytes) {
            let snap_bytes = params.snap_bytes;
            return Err(Error::Usage(format!("a capture keeps 1 to {FRAME_BYTES_MAX} bytes; got {snap_bytes}")));
        }
        let mut registry = self.open()?;
        let port = registry.ports.values().find(|port| port.info.name == params.port);
        let Some(&PortInfo { id: port, worker, .. }) = port.map(|port| &port.info) else {
            return Err(Error::NotFound(format!("there is no port {:?}", params.port)));
        };
        if registry.watches.len() >= WATCHES_MAX {
            return Err(Error::Busy(format!("{WATCHES_MAX} captures and traces run already; end one")));
        }
        let ring = CaptureRing::create(params.ring_bytes)?;
        let bell = Doorbell::create()?;
        let copy = |file: std::os::fd::BorrowedFd<'_>| {
            file.try_clone_to_owned().map_err(|error| Error::machine("duplicate a descriptor", error))
        };
        let (memory, reader_bell) = (copy(ring.as_fd())?, copy(bell.as_fd())?);
        registry.last_watch += 1;
        let id = WatchId(registry.last_watch);
        let purpose = if params.purpose == Purpose::Capture { "capture" } else { "trace" };
        let labels = labels::text(&[("device", params.port), ("purpose", purpose), ("id", &id.0.to_string())]);
        let block = self.counters.allocate("capture", &labels, CaptureCounter::COUNT)?;
        let watch = Box::new(Watch::new(id, params.purpose, program, params.snap_bytes, ring, bell, block));
        let refused = registry.ask(worker, |reply| Command::AddWatch(port, watch, reply)).inspect_err(|_| {
            registry.tell(worker, |reply| Command::RemoveWatch(port, id, reply));
        })?;
        if refused.is_some() {
            return Err(Error::Busy(format!(
                "port {:?} has {WATCHES_A_PORT_MAX} captures and traces already; end one",
                params.port
            )));
        }
        let record = WatchRecord { port: params.port.into(), at: Some((port, worker)), parked: None };
        registry.watches.insert(id, record);
        Ok(WatchEnds { id, memory, bell: reader_bell })
    }

    /// Looks no more. What was captured stays in the ring for whoever has it mapped.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is no such watch. [`Error::Machine`]: the worker did not answer in time; ask again.
    pub fn watch_remove(&self, id: WatchId) -> Result<()> {
        let mut registry = self.open()?;
        let record = registry.watches.get(&id);
        let record = record.ok_or_else(|| Error::NotFound(format!("there is no capture {}", id.0)))?;
        if let Some((port, worker)) = record.at {
            drop(registry.ask(worker, |reply| Command::RemoveWatch(port, id, reply))?);
        }
        registry.watches.remove(&id);
        Ok(())
    }

    /// What broke since the last call, oldest first. Each part of a port breaks at most once.
    #[must_use]
    pub fn take_faults(&self) -> Vec<PortEvent> {
        // Quiet before draining: what comes in between rings again.
        self.events_bell.quiet();
        self.events.try_iter().collect()
    }

    /// Readable while [`Self::take_faults`] has something to tell. Belongs to the fabric: do not read or close it.
    #[must_use]
    pub fn fault_fd(&self) -> RawFd {
        self.events_bell.raw()
    }

    /// Waits until something broke or `timeout` has passed. `true`: [`Self::take_faults`] may have something.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the system refused to wait.
    pub fn wait_fault(&self, timeout: Duration) -> Result<bool> {
        self.events_bell.wait(Some(timeout))
    }

    /// Stops the workers and lets go of every port. Closing twice is fine.
    pub fn close(&self) {
        let registry = std::mem::take(&mut *self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        // Servers first, for workers answer them; then workers: the watchdog frees them should one be stuck.
        drop(registry.ports);
        drop(registry.workers);
        drop(registry.watchdog);
    }

    fn open(&self) -> Result<MutexGuard<'_, Registry>> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if registry.workers.is_empty() { Err(Error::Closed("the fabric")) } else { Ok(registry) }
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric").finish_non_exhaustive()
    }
}

struct NewPort<'a> {
    name: &'a str,
    guest: String,
    kind: PortKind,
    switch: Option<&'a str>,
    device: Option<String>,
    params: VenetParams,
    end: End,
}

fn labels_of(new: &NewPort<'_>, id: PortId) -> String {
    labels::text(&[
        ("guest", &new.guest),
        ("device", new.name),
        ("switch", new.switch.unwrap_or_default()),
        ("kind", new.kind.label()),
        ("id", &id.to_string()),
    ])
}

impl Registry {
    fn switch(&self, name: &str) -> Result<&SwitchRecord> {
        self.switches.get(name).ok_or_else(|| Error::NotFound(format!("there is no switch {name:?}")))
    }

    fn port(&self, id: PortId) -> Result<&PortRecord> {
        self.ports.get(&id).ok_or_else(|| Error::NotFound(format!("there is no port {id}")))
    }

    fn ports_of(&self, switch: &str) -> usize {
        self.ports.values().filter(|port| port.info.switch.as_deref() == Some(switch)).count()
    }

    /// Takes the watches off a port that is about to go.
    fn park_watches(&mut self, port: PortId) {
        let on_it = |record: &WatchRecord| record.at.filter(|&(at, _)| at == port);
        let found: Vec<_> =
            self.watches.iter().filter_map(|(&id, record)| on_it(record).map(|(_, worker)| (id, worker))).collect();
        for (id, worker) in found {
            let parked = self.ask(worker, |reply| Command::RemoveWatch(port, id, reply)).ok().flatten();
            if let Some(record) = self.watches.get_mut(&id) {
                record.at = None;
                record.parked = parked.map(|mut watch| {
                    watch.set_away(true);
                    watch
                });
            }
        }
    }

    /// Puts watches that wait for a port of this name onto it.
    fn resume_watches(&mut self, port: PortId, name: &str, worker: usize) {
        let waiting: Vec<_> = self
            .watches
            .iter_mut()
            .filter(|(_, record)| record.port == name)
            .filter_map(|(&id, record)| record.parked.take().map(|watch| (id, watch)))
            .collect();
        for (id, mut watch) in waiting {
            watch.set_away(false);
            let refused = self.ask(worker, |reply| Command::AddWatch(port, watch, reply)).ok().flatten();
            if let Some(record) = self.watches.get_mut(&id) {
                record.at = refused.is_none().then_some((port, worker));
                record.parked = refused;
            }
        }
    }

    /// The worker with the fewest switches and ports.
    fn least_busy(&self) -> usize {
        let mut load = vec![0; self.workers.len()];
        for worker in self.switches.values().map(|at| at.worker).chain(self.ports.values().map(|at| at.info.worker)) {
            load[worker] += 1;
        }
        load.iter().enumerate().min_by_key(|&(_, load)| load).map_or(0, |(worker, _)| worker)
    }

    /// As [`Self::ask`], for an answer that nobody waits for.
    fn tell<T>(&self, worker: usize, command: impl FnOnce(Sender<T>) -> Command) {
        if let Some(handle) = self.workers.get(worker) {
            let _ = handle.send(command(crossbeam_channel::bounded(1).0));
        }
    }

    fn ask<T>(&self, worker: usize, command: impl FnOnce(Sender<T>) -> Command) -> Result<T> {
        self.workers.get(worker).ok_or(Error::Closed("the fabric"))?.door().ask(command)
    }
}

/// Names go into labels and messages: printable, without what separates labels.
fn check_name(name: &str) -> Result<()> {
    let is_fine = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b'=' | b'"' | b'\\');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_fine) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "a name is 1 to {NAME_BYTES_MAX} printable ASCII characters without space, comma, '=', '\"' and '\\'; got {name:?}"
    )))
}

const _: () = {
    const fn is_shared_between_threads<T: Send + Sync>() {}
    is_shared_between_threads::<Fabric>();
};
