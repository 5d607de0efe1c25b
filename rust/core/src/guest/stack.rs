//! Many small IP hosts on one thread: added and removed at run time, asleep while nobody talks to them.
//!
//! ```text
//!   callers ── commands ──▶ ┌ thread ─────────────────────────────────────────┐
//!                           │ active: polled in turn   parked: bells armed,   │
//!   doorbells of guests ──▶ │ (batches of 32 frames)   timers in one ordered  │ ──▶ faults + fault bell
//!         (epoll)           │                          set                    │
//!                           └─────────────────────────────────────────────────┘
//! ```
//!
//! Cost follows guests that have traffic: a parked one is an entry in a table, two descriptors in an epoll set, and a
//! timer only while a connection is open. A guest whose host breaks its rings loses its card and is reported, and goes on
//! when it is given another, as after a card that was unplugged; one whose stack panics is removed. The others go on.
//! Statistics are counters that any thread reads without asking this one. Several [`StackGuests`] in a process are several
//! threads.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver as Answers, RecvTimeoutError, Sender as Channel, bounded, unbounded};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::clock::{SECOND_NS, monotonic_ns};
use super::nic::{Receiver, Sender};
use super::row::Row;
pub use super::stack_client::{ExchangeEnd, ExchangeReport, ExchangeRequest, PingReport, PingRequest, Transport};
use super::stack_config::HostConfig;
pub use super::stack_config::StackStats;
use super::stack_host::{Host, Scratch};
use crate::error::{Error, Result};
use crate::shm::counters::Block;
use crate::shm::doorbell::Doorbell;
use crate::sync::{AtomicU64, Ordering};

/// How long a command may take before its caller gives up.
const ANSWER: Duration = Duration::from_secs(10);
/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// What the command doorbell is called in the epoll set; guests have 32-bit numbers.
const COMMANDS: u64 = u64::MAX;

/// What all guests of a thread share.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// Name of the thread, as `top` shows it; 15 bytes are seen.
    pub thread_name: String,
    /// How long a guest is looked at after its last frame before its doorbell is asked for. Costs that much processor
    /// time a burst; saves the wakeup when the next frame comes within it.
    pub spin: Duration,
}

impl Default for StackOptions {
    fn default() -> Self {
        Self { thread_name: "vbnet-stack".to_owned(), spin: Duration::from_micros(20) }
    }
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackConfig {
    /// Shown on its page and in faults.
    pub name: String,
    /// Its MAC: unicast.
    pub mac: [u8; 6],
    /// Its address and the length of its network's prefix; without, only IPv6 link-local is spoken.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// Where packets for other networks go.
    pub gateway: Option<Ipv4Addr>,
    /// Largest IP packet in bytes, 68 to 65535; at most what the device was laid out for.
    pub mtu: u32,
    /// Whether the link is up from the beginning.
    pub is_link_up: bool,
    /// Most TCP connections at a time; further ones are reset and counted.
    pub connections_max: usize,
}

impl StackConfig {
    /// A guest with an MTU of 1500, its link up, and at most 64 connections.
    #[must_use]
    pub fn new(name: &str, mac: [u8; 6], ipv4: Option<(Ipv4Addr, u8)>) -> Self {
        Self { name: name.to_owned(), mac, ipv4, gateway: None, mtu: 1500, is_link_up: true, connections_max: 64 }
    }
}

/// Why a guest lost its card, or was removed, without being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackFault {
    /// Its number.
    pub guest: u32,
    /// Its name.
    pub name: String,
    /// A word for counters: one of [`crate::error::Fault::REASONS`], `machine`, or `panicked`.
    pub reason: &'static str,
    /// What happened.
    pub message: String,
}

struct Entry {
    name: String,
    row: Arc<Row>,
}

struct Shared {
    bell: Doorbell,
    fault_bell: Doorbell,
    faults: Mutex<Vec<StackFault>>,
    guests: Mutex<HashMap<u32, Entry>>,
    polls: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Command {
    Add(u32, Box<Host>, Channel<Result<()>>),
    Remove(u32, Channel<Result<()>>),
    Detach(u32, Channel<Result<()>>),
    Attach(u32, Box<(Sender, Receiver)>, Channel<Result<()>>),
    Link(u32, bool, Channel<Result<()>>),
    Ping(u32, PingRequest, Channel<Result<PingReport>>),
    Exchange(u32, ExchangeRequest, Channel<Result<ExchangeReport>>),
    Close,
}

/// A thread of stack guests. Dropping it ends them all.
pub struct StackGuests {
    shared: Arc<Shared>,
    commands: Channel<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    next: Mutex<u32>,
}

impl StackGuests {
    /// Starts the thread, without guests.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no descriptors or threads left.
    pub fn new(options: StackOptions) -> Result<Self> {
        let shared = Arc::new(Shared {
            bell: Doorbell::create()?,
            fault_bell: Doorbell::create()?,
            faults: Mutex::new(Vec::new()),
            guests: Mutex::new(HashMap::new()),
            polls: AtomicU64::new(0),
        });
        let (commands, inbox) = unbounded();
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::machine("create an epoll set", errno))?;
        epoll::add(&epoll, &shared.bell, epoll::EventData::new_u64(COMMANDS), epoll::EventFlags::IN)
            .map_err(|errno| Error::machine("watch a doorbell", errno))?;
        let worker = Worker {
            shared: shared.clone(),
            inbox,
            epoll,
            spin_ns: u64::try_from(options.spin.as_nanos()).unwrap_or(u64::MAX),
            slots: HashMap::new(),
            active: Vec::new(),
            timers: BTreeSet::new(),
            scratch: Scratch::default(),
        };
        let thread = std::thread::Builder::new()
            .name(options.thread_name)
            .spawn(move || worker.run())
            .map_err(|error| Error::machine("start the thread of stack guests", error))?;
        Ok(Self { shared, commands, thread: Mutex::new(Some(thread)), next: Mutex::new(0) })
    }

    /// Adds a guest on a driver whose halves have their doorbells; its number, never used again. Statistics are counted
    /// in `block` when there is one, of at least [`StackStats::WORDS`] counters.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the configuration cannot be, or doorbells are missing; [`Error::Closed`]; [`Error::Machine`].
    pub fn add(
        &self,
        config: StackConfig,
        sender: impl Into<Sender>,
        receiver: impl Into<Receiver>,
        block: Option<Block>,
    ) -> Result<u32> {
        let (sender, receiver) = (sender.into(), receiver.into());
        let StackConfig { name, mac, ipv4, gateway, mtu, is_link_up, connections_max } = config;
        check_bells(&name, &sender, &receiver)?;
        let row = Arc::new(Row::new(block, StackStats::WORDS)?);
        let seed = RandomState::new().build_hasher().finish();
        let host = HostConfig { name: name.clone(), mac, ipv4, gateway, mtu, connections_max };
        let mut host = Host::new(host, sender, receiver, row.clone(), seed, monotonic_ns())?;
        host.set_link(is_link_up);
        let id = {
            let mut next = locked(&self.next);
            *next = next.checked_add(1).ok_or_else(|| Error::Usage("too many stack guests in one life".to_owned()))?;
            *next
        };
        locked(&self.shared.guests).insert(id, Entry { name, row });
        let added = self.ask(ANSWER, |reply| Command::Add(id, Box::new(host), reply));
        if added.is_err() {
            locked(&self.shared.guests).remove(&id);
        }
        added.map(|()| id)
    }

    /// Removes a guest; its driver and memory are released when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: there is no such guest; [`Error::Closed`].
    pub fn remove(&self, id: u32) -> Result<()> {
        self.ask(ANSWER, |reply| Command::Remove(id, reply))
    }

    /// Takes a guest's card away; its driver and memory are released when this returns. The guest stays, with what it
    /// counted and its connections, which hear nothing until it is given another. Twice is once.
    ///
    /// # Errors
    ///
    /// As [`Self::remove`].
    pub fn detach(&self, id: u32) -> Result<()> {
        self.ask(ANSWER, |reply| Command::Detach(id, reply))
    }

    /// Gives a guest another card, instead of the one it may have; it announces its address through it.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: there is no such guest, doorbells are missing, or the device's frames are shorter than the MTU;
    /// [`Error::Closed`]; [`Error::Machine`]. The guest then has no card.
    pub fn attach(&self, id: u32, sender: impl Into<Sender>, receiver: impl Into<Receiver>) -> Result<()> {
        let card = Box::new((sender.into(), receiver.into()));
        let name = locked(&self.shared.guests).get(&id).map(|entry| entry.name.clone()).ok_or_else(|| unknown(id))?;
        check_bells(&name, &card.0, &card.1)?;
        self.ask(ANSWER, |reply| Command::Attach(id, card, reply))
    }

    /// Takes a guest's link up, which announces its address, or down.
    ///
    /// # Errors
    ///
    /// As [`Self::remove`].
    pub fn set_link(&self, id: u32, is_up: bool) -> Result<()> {
        self.ask(ANSWER, |reply| Command::Link(id, is_up, reply))
    }

    /// Lets a guest ping somebody, and waits for the outcome: at most count × interval + timeout, and a grace of 10 s.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: no such guest, or the request cannot be; [`Error::Busy`]: it asks too much already;
    /// [`Error::Closed`]: the guest went meanwhile.
    pub fn ping(&self, id: u32, request: PingRequest) -> Result<PingReport> {
        let limit = request.interval.saturating_mul(request.count).saturating_add(request.timeout);
        self.ask(limit.saturating_add(ANSWER), |reply| Command::Ping(id, request, reply))
    }

    /// Lets a guest send bytes to somebody and collect the answer, and waits for the outcome.
    ///
    /// # Errors
    ///
    /// As [`Self::ping`]. A refused connection or a timeout is an outcome, not an error.
    pub fn exchange(&self, id: u32, request: ExchangeRequest) -> Result<ExchangeReport> {
        self.ask(request.timeout.saturating_add(ANSWER), |reply| Command::Exchange(id, request, reply))
    }

    /// What a guest has counted. Asks nobody: works while the thread is busy.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: there is no such guest.
    pub fn stats(&self, id: u32) -> Result<StackStats> {
        locked(&self.shared.guests).get(&id).map(|entry| StackStats::read(&entry.row)).ok_or_else(|| unknown(id))
    }

    /// Numbers and names of all guests, in the order of their numbers.
    #[must_use]
    pub fn guests(&self) -> Vec<(u32, String)> {
        let mut found: Vec<_> =
            locked(&self.shared.guests).iter().map(|(id, entry)| (*id, entry.name.clone())).collect();
        found.sort_unstable();
        found
    }

    /// How often the thread has looked at a guest so far: grows with traffic, not with the number of guests.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.shared.polls.load(Ordering::Relaxed)
    }

    /// Rings when a guest lost its card, or was removed, because of a fault; for an event loop. [`Self::take_faults`] quiets it.
    #[must_use]
    pub fn fault_bell(&self) -> &Doorbell {
        &self.shared.fault_bell
    }

    /// The faults since the last call.
    #[must_use]
    pub fn take_faults(&self) -> Vec<StackFault> {
        self.shared.fault_bell.quiet();
        std::mem::take(&mut locked(&self.shared.faults))
    }

    /// Ends all guests and the thread. Twice is once.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the thread's doorbell is broken.
    pub fn close(&self) -> Result<()> {
        let Some(thread) = locked(&self.thread).take() else { return Ok(()) };
        // A thread that ended by itself hears nothing.
        let _ = self.commands.send(Command::Close);
        self.shared.bell.ring()?;
        // Guests' panics are caught one by one, so there is nothing to learn from a join.
        let _ = thread.join();
        locked(&self.shared.guests).clear();
        Ok(())
    }

    fn ask<T>(&self, limit: Duration, command: impl FnOnce(Channel<Result<T>>) -> Command) -> Result<T> {
        let (reply, answer) = bounded(1);
        self.commands.send(command(reply)).map_err(|_| Error::Closed("the thread of stack guests"))?;
        self.shared.bell.ring()?;
        answer.recv_timeout(limit).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Disconnected => Error::Closed("the stack guest"),
                RecvTimeoutError::Timeout => Error::machine("wait for the thread of stack guests", Errno::TIMEDOUT),
            })
        })
    }
}

impl Drop for StackGuests {
    fn drop(&mut self) {
        // There is nobody to tell; the thread ends when its channel does.
        let _ = self.close();
    }
}

impl std::fmt::Debug for StackGuests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StackGuests").field("guests", &locked(&self.shared.guests).len()).finish_non_exhaustive()
    }
}

fn check_bells(name: &str, sender: &Sender, receiver: &Receiver) -> Result<()> {
    if sender.call_bell().is_none() || receiver.call_bell().is_none() {
        return Err(Error::Usage(format!("stack guest {name}: connect both halves to their doorbells first")));
    }
    Ok(())
}

fn unknown(id: u32) -> Error {
    Error::Usage(format!("there is no stack guest {id}"))
}

struct Slot {
    host: Box<Host>,
    is_active: bool,
    /// Its entry in the timers, while parked.
    timer_ns: Option<u64>,
    worked_ns: u64,
}

/// The thread.
struct Worker {
    shared: Arc<Shared>,
    inbox: Answers<Command>,
    epoll: OwnedFd,
    spin_ns: u64,
    slots: HashMap<u32, Slot>,
    /// Guests to poll, in no particular order.
    active: Vec<u32>,
    /// When parked guests want to be polled.
    timers: BTreeSet<(u64, u32)>,
    scratch: Scratch,
}

impl Worker {
    fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            while let Ok(command) = self.inbox.try_recv() {
                if matches!(command, Command::Close) {
                    return;
                }
                self.obey(command);
            }
            self.wake_due();
            self.poll_active();
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    self.give_up(&Error::machine("wait for doorbells", errno));
                    return;
                }
            }
            for event in &events {
                match u32::try_from(event.data.u64()) {
                    Ok(id) => self.activate(id),
                    Err(_) => self.shared.bell.quiet(),
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now_ns = monotonic_ns();
        // Whoever asked may have given up waiting: answers that nobody takes are dropped.
        match command {
            Command::Add(id, host, reply) => drop(reply.send(self.add(id, host))),
            Command::Remove(id, reply) => {
                let removed = self.remove(id);
                drop(reply.send(removed.map(drop).ok_or_else(|| unknown(id))));
            }
            Command::Detach(id, reply) => drop(reply.send(self.detach(id))),
            Command::Attach(id, card, reply) => drop(reply.send(self.attach(id, *card))),
            Command::Link(id, is_up, reply) => {
                let found = self.slots.get_mut(&id).map(|slot| slot.host.set_link(is_up));
                self.activate(id);
                drop(reply.send(found.ok_or_else(|| unknown(id))));
            }
            Command::Ping(id, request, reply) => match self.slots.get_mut(&id) {
                None => drop(reply.send(Err(unknown(id)))),
                Some(slot) => {
                    slot.host.ping(request, reply, now_ns);
                    self.activate(id);
                }
            },
            Command::Exchange(id, request, reply) => match self.slots.get_mut(&id) {
                None => drop(reply.send(Err(unknown(id)))),
                Some(slot) => {
                    slot.host.exchange(request, reply, now_ns);
                    self.activate(id);
                }
            },
            Command::Close => {}
        }
    }

    fn add(&mut self, id: u32, host: Box<Host>) -> Result<()> {
        watch(&self.epoll, id, &host)?;
        self.slots.insert(id, Slot { host, is_active: false, timer_ns: None, worked_ns: 0 });
        self.activate(id);
        Ok(())
    }

    fn remove(&mut self, id: u32) -> Option<Box<Host>> {
        let slot = self.slots.remove(&id)?;
        if let Some(at) = slot.timer_ns {
            self.timers.remove(&(at, id));
        }
        unwatch(&self.epoll, &slot.host);
        locked(&self.shared.guests).remove(&id);
        Some(slot.host)
    }

    fn detach(&mut self, id: u32) -> Result<()> {
        let slot = self.slots.get_mut(&id).ok_or_else(|| unknown(id))?;
        unwatch(&self.epoll, &slot.host);
        slot.host.detach();
        self.activate(id);
        Ok(())
    }

    fn attach(&mut self, id: u32, (sender, receiver): (Sender, Receiver)) -> Result<()> {
        self.detach(id)?;
        let slot = self.slots.get_mut(&id).ok_or_else(|| unknown(id))?;
        slot.host.attach(sender, receiver)?;
        let watched = watch(&self.epoll, id, &slot.host);
        if watched.is_err() {
            slot.host.detach();
        }
        watched
    }

    fn activate(&mut self, id: u32) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.is_active {
            return;
        }
        slot.is_active = true;
        slot.host.unpark();
        if let Some(at) = slot.timer_ns.take() {
            self.timers.remove(&(at, id));
        }
        self.active.push(id);
    }

    fn wake_due(&mut self) {
        let Some((first, _)) = self.timers.first() else { return };
        let now_ns = monotonic_ns();
        if *first > now_ns {
            return;
        }
        let later = self.timers.split_off(&(now_ns.saturating_add(1), 0));
        for (_, id) in std::mem::replace(&mut self.timers, later) {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.timer_ns = None;
            }
            self.activate(id);
        }
    }

    fn poll_active(&mut self) {
        self.shared.polls.fetch_add(self.active.len() as u64, Ordering::Relaxed);
        let mut index = 0;
        while let Some(id) = self.active.get(index).copied() {
            // A guest that was removed is forgotten here.
            let Some(slot) = self.slots.get_mut(&id) else {
                self.active.swap_remove(index);
                continue;
            };
            let (scratch, spin_ns) = (&mut self.scratch, self.spin_ns);
            let outcome = catch_unwind(AssertUnwindSafe(|| turn(slot, scratch, spin_ns)));
            match outcome {
                Ok(Ok(Turn::Again)) => index += 1,
                Ok(Ok(Turn::Parked(deadline_ns))) => {
                    slot.is_active = false;
                    slot.timer_ns = deadline_ns;
                    if let Some(at) = deadline_ns {
                        self.timers.insert((at, id));
                    }
                    self.active.swap_remove(index);
                }
                // Without its card it is looked at again at once, and parked.
                Ok(Err(error)) => self.lose_card(id, &error),
                Err(_) => {
                    self.active.swap_remove(index);
                    self.fault(id, "panicked", "its IP stack panicked; the guest was removed".to_owned());
                }
            }
        }
    }

    /// How long to wait for doorbells; `None`: until one rings.
    fn timeout(&self) -> Option<Timespec> {
        if !self.active.is_empty() {
            return Some(Timespec::default());
        }
        let (first, _) = self.timers.first()?;
        let wait_ns = first.saturating_sub(monotonic_ns());
        Some(Timespec {
            tv_sec: i64::try_from(wait_ns / SECOND_NS).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(wait_ns % SECOND_NS).unwrap_or(0),
        })
    }

    /// A guest's driver failed. That its device is gone is no fault: whoever took that away knows.
    fn lose_card(&mut self, id: u32, error: &Error) {
        let name = self.slots.get(&id).map(|slot| slot.host.name().to_owned());
        if let (Ok(()), Some(name)) = (self.detach(id), name)
            && !matches!(error, Error::PeerGone(_))
        {
            self.report(id, name, reason_of(error), error.to_string());
        }
    }

    fn fault(&mut self, id: u32, reason: &'static str, message: String) {
        let Some(host) = self.remove(id) else { return };
        let name = host.name().to_owned();
        drop(host);
        self.report(id, name, reason, message);
    }

    fn report(&self, id: u32, name: String, reason: &'static str, message: String) {
        locked(&self.shared.faults).push(StackFault { guest: id, name, reason, message });
        // A fault bell that is broken leaves the list, which can be asked for.
        let _ = self.shared.fault_bell.ring();
    }

    fn give_up(&mut self, error: &Error) {
        let all: Vec<u32> = self.slots.keys().copied().collect();
        for id in all {
            self.fault(id, reason_of(error), error.to_string());
        }
    }
}

enum Turn {
    Again,
    Parked(Option<u64>),
}

fn turn(slot: &mut Slot, scratch: &mut Scratch, spin_ns: u64) -> Result<Turn> {
    let now_ns = monotonic_ns();
    let progress = slot.host.poll(now_ns, scratch)?;
    if progress.has_worked {
        slot.worked_ns = now_ns;
        return Ok(Turn::Again);
    }
    if now_ns.saturating_sub(slot.worked_ns) < spin_ns || !slot.host.park()? {
        return Ok(Turn::Again);
    }
    Ok(Turn::Parked(progress.deadline_ns))
}

fn watch(epoll: &OwnedFd, id: u32, host: &Host) -> Result<()> {
    for bell in bells(host) {
        let name = epoll::EventData::new_u64(id.into());
        epoll::add(epoll, bell, name, epoll::EventFlags::IN | epoll::EventFlags::ET)
            .map_err(|errno| Error::machine("watch a guest's doorbell", errno))?;
    }
    Ok(())
}

fn unwatch(epoll: &OwnedFd, host: &Host) {
    for bell in bells(host) {
        // The host node holds the same doorbell, so closing ours would leave it in the set.
        let _ = epoll::delete(epoll, bell);
    }
}

fn bells(host: &Host) -> impl Iterator<Item = BorrowedFd<'_>> {
    use std::os::fd::AsFd;
    host.call_bells().into_iter().flatten().map(AsFd::as_fd)
}

const fn reason_of(error: &Error) -> &'static str {
    match error {
        Error::Peer(fault) => fault.reason(),
        _ => "machine",
    }
}
