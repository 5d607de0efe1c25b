//! A worker: one thread that runs ports to completion, and sleeps when there is nothing to run.
//!
//! ```text
//!            ┌───────────── active ports, each a turn ──────────────┐
//!   wake ──▶ │ turn · turn · turn … ─▶ tell receivers ─▶ look again │ ──▶ idle too long: arm the signal, park
//!     ▲      └──────────────────────────────────────────────────────┘                       │
//!     └── epoll: kick of a parked port · device readable · command ◀── nobody active: sleep ┘
//! ```
//!
//! A port and its switch belong to one worker, so nothing on the way of a frame is locked. Cost follows active ports:
//! parked ones are a line in an epoll set. Kick doorbells are waited for edge-triggered and never read, so a guest that
//! plays with its copy of one wakes the worker at most as often as it writes. There are no timers: ageing is looked at
//! when a table is, and an idle worker sleeps until something happens.
//!
//! Control reaches a worker by commands with an answer each; `fabric` sends them. Source: design of Snabb's and VPP's
//! run-to-completion loops, and of vbus's interrupt mitigation.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::epoll;
use rustix::time::Timespec;

use self::forward::{End, EventSink, Plane, Port, port_at};
use self::watchdog::{Ringer, WatchdogHandle};
use crate::error::{Error, Result};
use crate::net::counters::counters;
use crate::net::frame::MacAddress;
use crate::net::mac_table::{PortSlot, TableEntry, Tick};
use crate::net::switch::Switch;
use crate::port::driver::DriverRings;
use crate::port::virtqueues::Rings;
use crate::port::{PortCounter, PortId};
use crate::shm::counters::Block;
use crate::shm::doorbell::Doorbell;
use crate::watch::{Watch, WatchId};

pub mod bellman;
pub(crate) mod brake;
pub(crate) mod forward;
pub(crate) mod hold;
pub(crate) mod offloaded;
pub(crate) mod parking;
mod source;
pub(crate) mod watchdog;
pub(crate) mod watched;

/// How long a worker may take to answer.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// How often a worker looks for kicks and commands while it moves frames.
const LOOK_BUSY_NS: u64 = 20_000;
/// How often while it polls in vain.
const LOOK_IDLE_NS: u64 = 2_000;
/// Looking at the clock costs more than an idle round: so many credits between two looks.
const CLOCK_CREDITS: u32 = 16;
/// What a round in vain takes of them; one that moved frames takes 1.
const IDLE_ROUND_CREDITS: u32 = 4;
/// Doorbells heard in one look.
const EVENTS: usize = 64;
/// The doorbell of the command queue, where ports have their slot and number.
const COMMAND_TOKEN: u64 = u64::MAX;

counters! {
    /// What is counted for every worker.
    pub enum WorkerCounter {
        /// Rounds over the active ports that moved frames.
        BusyRounds = "busy_rounds",
        /// Rounds that found nothing to do: polling.
        IdleRounds = "idle_rounds",
        /// Times it went to sleep.
        Sleeps = "sleeps",
        /// Nanoseconds it slept.
        AsleepNanoseconds = "asleep_nanoseconds",
        /// Commands done.
        Commands = "commands",
        /// Ports attached now.
        Ports = "ports",
        /// Ports polled now.
        ActivePorts = "active_ports",
    }
}

/// What can be changed on a port while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// Longest payload of a frame, 68 to 65535 bytes.
    Mtu(u32),
    /// Returned frames after which a sleeping guest is told; 0 = after every batch.
    TxMitigation(u32),
    /// How long at most the port is polled after its last frame, in µs.
    BurstThresholdUs(u32),
    /// Frames one turn may take.
    Budget(u32),
    /// 0 to 7, 7 the most urgent.
    Priority(u32),
    /// Whether the port sleeps while it has nothing to do; if not, its worker never sleeps.
    Parks(bool),
    /// How long at most the port holds up whoever sends to it while its guest has no room, in µs; 0 = never.
    HoldUs(u32),
}

/// What a worker is asked to do; each answers exactly once, or drops the answer when there is no such thing.
pub(crate) enum Command {
    AddSwitch(Box<Switch>, Sender<u32>),
    RemoveSwitch(u32, Sender<Option<Box<Switch>>>),
    AddPort(Box<Port>, MacAddress, Sender<Result<()>>),
    RemovePort(PortId, Sender<Option<Box<Port>>>),
    SetPort(PortId, Param, Sender<()>),
    SetLink(PortId, bool, Sender<()>),
    FlushRx(PortId, Sender<u32>),
    /// Other rings for a front end, or none; answers with those that ran until now.
    SetRings(PortId, Option<Box<Rings>>, Sender<Result<Option<Box<Rings>>>>),
    /// Other queues for the front end of somebody else's device, or none; answers with those until now.
    SetDriver(PortId, Option<Box<DriverRings>>, Sender<Result<Option<Box<DriverRings>>>>),
    /// Says in a station's name that it is behind this port.
    Announce(PortId, MacAddress, Sender<()>),
    SetAgeing(u32, u32, Sender<()>),
    Macs(u32, Sender<Vec<(TableEntry, PortId)>>),
    /// Answers with a watch that the port has no room for.
    AddWatch(PortId, Box<Watch>, Sender<Option<Box<Watch>>>),
    RemoveWatch(PortId, WatchId, Sender<Option<Box<Watch>>>),
    Stop,
}

/// The hold others have on a worker's thread.
pub(crate) struct WorkerHandle {
    commands: Sender<Command>,
    bell: Arc<Doorbell>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts a worker.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no thread or descriptor is free.
    pub(crate) fn start<const COUNTS: bool>(
        index: usize,
        watchdog: WatchdogHandle,
        sink: EventSink,
        block: Block,
    ) -> Result<Self> {
        let (commands, queue) = crossbeam_channel::unbounded();
        let bell = Arc::new(Doorbell::create()?);
        let heard = bell.clone();
        let (started, outcome) = crossbeam_channel::bounded(1);
        let run =
            move || match watchdog.enlist().and_then(|ringer| Worker::<COUNTS>::new(queue, heard, ringer, sink, block))
            {
                Ok(worker) => {
                    let _ = started.send(Ok(()));
                    worker.run();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            };
        let thread = thread::Builder::new()
            .name(format!("vbnet-worker-{index}"))
            .spawn(run)
            .map_err(|error| Error::machine("start a worker", error))?;
        let handle = Self { commands, bell, thread: Some(thread) };
        outcome.recv().map_err(|_| Error::PeerGone("a worker"))??;
        Ok(handle)
    }

    /// Puts a command into its queue. It will be done soon, but not here and now.
    pub(crate) fn send(&self, command: Command) -> Result<()> {
        self.door().send(command)
    }

    /// A way to it for other threads than the one that holds it.
    pub(crate) fn door(&self) -> WorkerDoor {
        WorkerDoor { commands: self.commands.clone(), bell: self.bell.clone() }
    }
}

/// A way to a worker, which may have ended.
#[derive(Clone)]
pub(crate) struct WorkerDoor {
    commands: Sender<Command>,
    bell: Arc<Doorbell>,
}

impl WorkerDoor {
    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::Closed("the worker"))?;
        self.bell.ring()
    }

    /// Has the worker do something, and waits for its answer.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], [`Error::PeerGone`]: it has ended. [`Error::Machine`]: no answer within [`ANSWER_DEADLINE`].
    pub(crate) fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(command(reply))?;
        answer.recv_timeout(ANSWER_DEADLINE).map_err(|error| match error {
            crossbeam_channel::RecvTimeoutError::Timeout => {
                Error::machine("wait for a worker", std::io::Error::from(std::io::ErrorKind::TimedOut))
            }
            crossbeam_channel::RecvTimeoutError::Disconnected => Error::PeerGone("a worker"),
        })
    }
}

impl fmt::Debug for WorkerDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerDoor").finish_non_exhaustive()
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").finish_non_exhaustive()
    }
}

struct Worker<const COUNTS: bool> {
    plane: Plane<COUNTS>,
    slots: HashMap<PortId, PortSlot>,
    /// Ports that are polled, in the order of their turns.
    active: Vec<PortSlot>,
    commands: Receiver<Command>,
    bell: Arc<Doorbell>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    start: Instant,
    now_ns: u64,
    block: Block,
    is_over: bool,
}

impl<const COUNTS: bool> Worker<COUNTS> {
    fn new(
        commands: Receiver<Command>,
        bell: Arc<Doorbell>,
        ringer: Ringer,
        sink: EventSink,
        block: Block,
    ) -> Result<Self> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::machine("create an epoll set", errno))?;
        epoll::add(&epoll, &*bell, epoll::EventData::new_u64(COMMAND_TOKEN), epoll::EventFlags::IN)
            .map_err(|errno| Error::machine("wait for commands", errno))?;
        Ok(Self {
            plane: Plane::new(ringer, sink),
            slots: HashMap::new(),
            active: Vec::new(),
            commands,
            bell,
            epoll,
            events: Vec::with_capacity(EVENTS),
            start: Instant::now(),
            now_ns: 0,
            block,
            is_over: false,
        })
    }

    fn run(mut self) {
        let mut looked_ns = 0;
        let mut credits = 0;
        let mut was_busy = false;
        while !self.is_over {
            if self.active.is_empty() {
                self.sleep();
            }
            let has_worked = self.round();
            was_busy |= has_worked;
            credits += if has_worked { 1 } else { IDLE_ROUND_CREDITS };
            if credits < CLOCK_CREDITS {
                continue;
            }
            credits = 0;
            self.read_clock();
            self.park_idle();
            let patience_ns = if was_busy { LOOK_BUSY_NS } else { LOOK_IDLE_NS };
            if self.now_ns - looked_ns >= patience_ns && !self.active.is_empty() {
                looked_ns = self.now_ns;
                was_busy = false;
                self.wait(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
                self.hear();
            }
        }
    }

    fn read_clock(&mut self) {
        let elapsed = self.start.elapsed();
        self.now_ns = elapsed.as_nanos() as u64;
        self.plane.now = elapsed.as_secs() as Tick;
    }

    /// Gives every active port its turn.
    fn round(&mut self) -> bool {
        let mut unflushed = 0;
        let mut has_worked = false;
        let mut index = 0;
        let is_mixed = self.is_mixed();
        self.plane.tells_early = self.active.len() <= TELLS_EARLY_PORTS;
        while let Some(&slot) = self.active.get(index) {
            if is_mixed {
                has_worked |= self.serve_before(slot, index);
            }
            let turn = self.plane.turn(slot);
            has_worked |= turn.cost != 0;
            unflushed += turn.cost;
            // Latency of a long round is bounded by telling receivers in between.
            if unflushed >= FLUSH_AFTER {
                self.plane.flush();
                unflushed = 0;
            }
            if turn.is_dry && self.park(slot) {
                self.active.remove(index);
            } else {
                index += 1;
            }
        }
        if !self.plane.is_flushed() {
            self.plane.flush();
        }
        if COUNTS {
            let counter = if has_worked { WorkerCounter::BusyRounds } else { WorkerCounter::IdleRounds };
            self.block.add(counter as usize, 1);
        }
        has_worked
    }

    /// Whether active ports differ in priority; they are kept in its order, the most urgent first.
    fn is_mixed(&self) -> bool {
        match (self.active.first(), self.active.last()) {
            (Some(&first), Some(&last)) => self.priority_of(first) != self.priority_of(last),
            _ => false,
        }
    }

    fn priority_of(&self, slot: PortSlot) -> u32 {
        self.plane.ports.get(slot as usize).and_then(Option::as_ref).map_or(0, |port| port.priority)
    }

    /// Before the turn of the port at `index`, gives another to every one that is more urgent, and tells its receivers at
    /// once: so an urgent frame waits for one turn of the less urgent, not for a round of theirs.
    fn serve_before(&mut self, slot: PortSlot, index: usize) -> bool {
        let priority = self.priority_of(slot);
        let mut has_worked = false;
        for ahead in 0..index {
            let Some(&urgent) = self.active.get(ahead) else { break };
            if self.priority_of(urgent) <= priority {
                break;
            }
            has_worked |= self.plane.turn(urgent).cost != 0;
        }
        if has_worked {
            self.plane.flush();
        }
        has_worked
    }

    /// Parks every active port that has been idle for too long.
    fn park_idle(&mut self) {
        let mut index = 0;
        while let Some(&slot) = self.active.get(index) {
            let is_due = self.plane.port(slot).is_none_or(|port| port.is_mute() || port.parking.is_due(self.now_ns));
            if is_due && self.park(slot) {
                self.active.remove(index);
            } else {
                index += 1;
            }
        }
        self.block.set(WorkerCounter::ActivePorts as usize, self.active.len() as u64);
    }

    /// Sends a port to sleep. `true`: it is not polled any more.
    fn park(&mut self, slot: PortSlot) -> bool {
        let Some(port) = port_at(&mut self.plane.ports, slot) else { return true };
        if !port.does_park && !port.is_mute() {
            return false;
        }
        let is_parked = match &mut port.end {
            End::Venet(venet) => venet.arm::<COUNTS>(),
            // Whatever comes in after its last empty read makes an edge.
            End::Tap(_) => true,
            End::Virtqueues(queues) => queues.arm(),
            End::Nic(nic) => nic.arm(),
            End::Driver(driver) => driver.arm(),
        };
        if is_parked {
            port.parking.is_active = false;
            port.count::<COUNTS>(PortCounter::Parks, 1);
            if port.is_mute() {
                self.silence(slot);
            }
        }
        is_parked
    }

    /// Hears nothing more of a port that nothing comes out of.
    fn silence(&mut self, slot: PortSlot) {
        if let Some(port) = port_at(&mut self.plane.ports, slot) {
            for bell in waited_for(&port.end) {
                let _ = epoll::delete(&self.epoll, bell);
            }
        }
        self.plane.report(slot);
    }

    /// Nobody is active: waits for the first who is.
    fn sleep(&mut self) {
        self.block.add(WorkerCounter::Sleeps as usize, 1);
        self.block.set(WorkerCounter::ActivePorts as usize, 0);
        let started_ns = self.block.start(WorkerCounter::AsleepNanoseconds as usize);
        self.wait(None);
        self.block.stop(WorkerCounter::AsleepNanoseconds as usize, started_ns);
        self.hear();
    }

    /// Waits for doorbells and commands, which [`Self::hear`] then hears.
    fn wait(&mut self, timeout: Option<&Timespec>) {
        self.events.clear();
        // A wait that was interrupted has heard nothing.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout);
        self.read_clock();
    }

    /// Does what doorbells and commands ask.
    fn hear(&mut self) {
        let events = std::mem::take(&mut self.events);
        for event in &events {
            match event.data.u64() {
                COMMAND_TOKEN => self.obey(),
                token => self.wake(token),
            }
        }
        self.events = events;
    }

    fn wake(&mut self, token: u64) {
        let slot = token as u32;
        let Some(port) = port_at(&mut self.plane.ports, slot) else { return };
        if port.id.0 as u32 != (token >> 32) as u32 {
            return;
        }
        // A card's clock is no kick.
        if !matches!(&port.end, End::Nic(nic) if !nic.was_rung()) {
            port.count::<COUNTS>(PortCounter::Kicks, 1);
        }
        if !port.parking.is_active {
            if COUNTS && let End::Venet(venet) = &port.end {
                venet.wake();
            }
            port.parking.wake(self.now_ns);
            port.count::<COUNTS>(PortCounter::Wakeups, 1);
            self.plane.time_next();
            self.activate(slot);
        }
    }

    fn activate(&mut self, slot: PortSlot) {
        let Some(port) = port_at(&mut self.plane.ports, slot) else { return };
        port.parking.is_active = true;
        match &port.end {
            End::Venet(venet) => venet.disarm(),
            End::Virtqueues(queues) => queues.disarm(),
            End::Nic(nic) => nic.disarm(),
            End::Driver(driver) => driver.disarm(),
            End::Tap(_) => {}
        }
        let priority = port.priority;
        let place = self.active.partition_point(|&other| self.priority_of(other) >= priority);
        self.active.insert(place, slot);
    }

    /// Polls a port that sleeps.
    fn stay_awake(&mut self, id: PortId) {
        let Some(&slot) = self.slots.get(&id) else { return };
        if self.plane.port(slot).is_some_and(|port| !port.parking.is_active && !port.is_mute()) {
            self.activate(slot);
        }
    }

    /// Puts active ports into the order of their priorities again.
    fn sort_active(&mut self) {
        let mut active = std::mem::take(&mut self.active);
        active.sort_by_key(|&slot| std::cmp::Reverse(self.priority_of(slot)));
        self.active = active;
    }

    fn obey(&mut self) {
        self.bell.quiet();
        while let Ok(command) = self.commands.try_recv() {
            self.block.add(WorkerCounter::Commands as usize, 1);
            self.execute(command);
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::AddSwitch(switch, reply) => answer(&reply, self.add_switch(switch)),
            Command::RemoveSwitch(slot, reply) => {
                answer(&reply, self.plane.switches.get_mut(slot as usize).and_then(Option::take));
            }
            Command::AddPort(port, mac, reply) => answer(&reply, self.add_port(port, mac)),
            Command::RemovePort(id, reply) => answer(&reply, self.remove_port(id)),
            Command::SetPort(id, param, reply) => {
                self.with_port(id, |port| set_param(port, param));
                match param {
                    Param::Priority(_) => self.sort_active(),
                    Param::Parks(false) => self.stay_awake(id),
                    _ => {}
                }
                answer(&reply, ());
            }
            Command::SetLink(id, is_up, reply) => {
                self.set_link(id, is_up);
                answer(&reply, ());
            }
            Command::FlushRx(id, reply) => answer(&reply, self.flush_rx(id)),
            Command::SetRings(id, rings, reply) => answer(&reply, self.set_rings(id, rings)),
            Command::SetDriver(id, rings, reply) => answer(&reply, self.set_driver(id, rings)),
            Command::Announce(id, station, reply) => {
                if let Some(&slot) = self.slots.get(&id) {
                    self.plane.announce(slot, station);
                }
                answer(&reply, ());
            }
            Command::SetAgeing(slot, ageing_s, reply) => {
                if let Some(switch) = self.plane.switch(slot) {
                    switch.table_mut().set_ageing(ageing_s);
                }
                answer(&reply, ());
            }
            Command::Macs(slot, reply) => answer(&reply, self.macs(slot)),
            Command::AddWatch(id, watch, reply) => answer(&reply, self.add_watch(id, watch)),
            Command::RemoveWatch(id, watch, reply) => {
                let watch = self.slots.get(&id).and_then(|&slot| self.plane.watches.remove(slot, watch));
                answer(&reply, watch);
            }
            Command::Stop => self.is_over = true,
        }
    }

    fn add_switch(&mut self, switch: Box<Switch>) -> u32 {
        let switches = &mut self.plane.switches;
        let slot = switches.iter().position(Option::is_none).unwrap_or(switches.len());
        if slot == switches.len() {
            switches.push(Some(switch));
        } else {
            switches[slot] = Some(switch);
        }
        slot as u32
    }

    fn add_port(&mut self, port: Box<Port>, mac: MacAddress) -> Result<()> {
        let id = port.id;
        let switch = port.switch;
        let slot = self.plane.insert(port);
        let now = self.plane.now;
        let pinned = match switch.and_then(|switch| self.plane.switch(switch)) {
            Some(switch) if mac.is_station() => switch.table_mut().pin(mac, slot, now),
            _ => true,
        };
        if !pinned {
            self.plane.remove(slot);
            return Err(Error::Busy(format!("the address {mac} belongs to another port of the switch")));
        }
        if let Err(error) = self.wait_for(id, slot) {
            self.plane.remove(slot);
            return Err(error);
        }
        self.slots.insert(id, slot);
        self.block.set(WorkerCounter::Ports as usize, self.slots.len() as u64);
        self.activate(slot);
        Ok(())
    }

    /// Hears the doorbells of a port from now on.
    fn wait_for(&mut self, id: PortId, slot: PortSlot) -> Result<()> {
        let Some(port) = port_at(&mut self.plane.ports, slot) else { return Err(Error::Closed("the port")) };
        let token = epoll::EventData::new_u64(id.0 << 32 | u64::from(slot));
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        for bell in waited_for(&port.end) {
            epoll::add(&self.epoll, bell, token, flags).map_err(|errno| Error::machine("wait for a port", errno))?;
        }
        Ok(())
    }

    /// Runs other rings of a front end, or none; those that ran until now. Their doorbells are heard no more.
    fn set_rings(&mut self, id: PortId, rings: Option<Box<Rings>>) -> Result<Option<Box<Rings>>> {
        let &slot = self.slots.get(&id).ok_or(Error::Closed("the port"))?;
        let before = self.plane.exchange(slot, rings);
        for ring in before.iter().flat_map(|rings| &rings.tx) {
            // Of a port that fell silent they are not in the set.
            let _ = epoll::delete(&self.epoll, &ring.kick);
        }
        self.wait_for(id, slot)?;
        if !self.active.contains(&slot) {
            self.activate(slot);
        }
        Ok(before)
    }

    /// Is the front end of another back end, or of none: the queues until now, whose doorbells are heard no more.
    fn set_driver(&mut self, id: PortId, rings: Option<Box<DriverRings>>) -> Result<Option<Box<DriverRings>>> {
        let &slot = self.slots.get(&id).ok_or(Error::Closed("the port"))?;
        let before = self.plane.exchange_driver(slot, rings);
        if let Some(before) = &before {
            // Of a port that fell silent it is not in the set.
            let _ = epoll::delete(&self.epoll, &before.from_device.call);
        }
        self.wait_for(id, slot)?;
        if !self.active.contains(&slot) {
            self.activate(slot);
        }
        Ok(before)
    }

    fn remove_port(&mut self, id: PortId) -> Option<Box<Port>> {
        let slot = self.slots.remove(&id)?;
        self.active.retain(|&active| active != slot);
        let port = self.plane.remove(slot)?;
        for bell in waited_for(&port.end) {
            let _ = epoll::delete(&self.epoll, bell);
        }
        self.block.set(WorkerCounter::Ports as usize, self.slots.len() as u64);
        Some(port)
    }

    fn with_port(&mut self, id: PortId, change: impl FnOnce(&mut Port)) {
        if let Some(&slot) = self.slots.get(&id)
            && let Some(port) = self.plane.port(slot)
        {
            change(port);
        }
    }

    fn set_link(&mut self, id: PortId, is_up: bool) {
        let Some(&slot) = self.slots.get(&id) else { return };
        let mut switch = None;
        self.with_port(id, |port| {
            port.set_up(is_up);
            switch = port.switch;
        });
        if !is_up && let Some(switch) = switch.and_then(|switch| self.plane.switch(switch)) {
            switch.table_mut().forget(slot, false);
        }
    }

    fn flush_rx(&mut self, id: PortId) -> u32 {
        self.plane.flush();
        let mut flushed = 0;
        self.with_port(id, |port| {
            if let End::Venet(venet) = &mut port.end {
                flushed = venet.flush_rx();
            }
        });
        if let Some(&slot) = self.slots.get(&id) {
            self.plane.report(slot);
        }
        flushed
    }

    fn add_watch(&mut self, id: PortId, watch: Box<Watch>) -> Option<Box<Watch>> {
        let Some(&slot) = self.slots.get(&id) else { return Some(watch) };
        self.plane.watches.add(slot, watch)
    }

    fn macs(&mut self, slot: u32) -> Vec<(TableEntry, PortId)> {
        let now = self.plane.now;
        let entries = self.plane.switch(slot).map(|switch| switch.table().entries(now)).unwrap_or_default();
        entries.into_iter().filter_map(|entry| self.plane.port(entry.port).map(|port| (entry, port.id))).collect()
    }
}

/// So many busy ports at most have receivers told of a lonely frame within their turns. With more of them one telling a
/// round is worth more: the frames of many senders then cost a receiver one wake-up.
const TELLS_EARLY_PORTS: usize = 2;
/// Copies after which receivers are told in the middle of a round.
const FLUSH_AFTER: u32 = 64;

fn answer<T>(reply: &Sender<T>, value: T) {
    // Whoever gave up waiting does not want it any more.
    let _ = reply.try_send(value);
}

fn waited_for(end: &End) -> Vec<BorrowedFd<'_>> {
    match end {
        End::Venet(venet) => vec![venet.kick_bell().as_fd()],
        End::Tap(tap) => vec![tap.as_fd()],
        End::Virtqueues(queues) => queues.kicks().collect(),
        End::Nic(nic) => nic.wakers().to_vec(),
        End::Driver(driver) => driver.calls().collect(),
    }
}

fn set_param(port: &mut Port, param: Param) {
    match (param, &mut port.end) {
        (Param::Mtu(mtu), End::Venet(venet)) => venet.set_mtu(mtu),
        (Param::Mtu(mtu), End::Tap(tap)) => tap.set_mtu(mtu),
        (Param::TxMitigation(frames), End::Venet(venet)) => venet.set_tx_mitigation(frames),
        (Param::Mtu(mtu), End::Virtqueues(queues)) => queues.set_mtu(mtu),
        (Param::Mtu(mtu), End::Nic(nic)) => nic.set_mtu(mtu),
        (Param::Mtu(mtu), End::Driver(driver)) => driver.set_mtu(mtu),
        (Param::TxMitigation(_), End::Tap(_) | End::Virtqueues(_) | End::Nic(_) | End::Driver(_)) => {}
        (Param::BurstThresholdUs(burst_threshold_us), _) => port.parking.set_threshold(burst_threshold_us),
        (Param::Budget(budget), _) => port.budget = budget,
        (Param::Priority(priority), _) => port.priority = priority,
        (Param::Parks(does_park), _) => port.does_park = does_park,
        (Param::HoldUs(threshold_us), _) => port.hold.set_threshold(threshold_us),
    }
}
