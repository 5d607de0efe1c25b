//! The signal thread: raises for those who may not ring themselves, and listens to what drives lines from outside.
//!
//! ```text
//!   event loop, operator ── raise(line) ──┐
//!   an eventfd or socket of anybody ──────┼──▶ signal thread ──▶ Line::raise ──▶ doorbells
//!   outbox of a guest (guest → guest) ────┘     (enlisted: the watchdog frees it from a doorbell that blocks)
//! ```
//!
//! Eventfds are waited for edge-triggered and never read, because whoever shares one could make a read block; each write
//! is an edge. Sockets are drained without waiting, and their hang-up detaches them. An outbox is polled for a moment after
//! its last signal and then parked, as a worker does with ports; each turn of it takes a bounded number of signals, so a
//! guest that raises without end costs others one turn. Lines an outbox may raise are looked up by the number the guest
//! gave: what was not granted is counted and nothing else. Source: KVM's irqfd; vbus `shm_signal_eventfd`.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::time::Timespec;

use super::latency::WakeupTimes;
use super::line::{Line, LineId};
use crate::error::{Error, Fault, Result};
use crate::guest::clock::monotonic_ns;
use crate::net::counters::counters;
use crate::shm::counters::Block;
use crate::shm::doorbell::Doorbell;
use crate::shm::intc::Taker;
use crate::worker::watchdog::{Ringer, Watchdog};

counters! {
    /// What is counted for every outbox.
    pub enum OutboxCounter {
        /// Signals taken from it.
        Taken = "taken",
        /// Of those, how many named no line that was granted.
        Refused = "refused",
        /// Doorbells heard from the guest.
        Kicks = "kicks",
        /// Turns that ended with more waiting.
        BudgetExhausted = "budget_exhausted",
    }
}

/// Signals one turn of an outbox takes.
const TURN: u32 = 64;
/// How long an outbox is polled after its last signal.
const PATIENCE: Duration = Duration::from_micros(50);
/// Rounds over polled outboxes between two looks at everything else.
const ROUNDS_A_LOOK: u32 = 16;
/// Datagrams or bytes drained from a socket at one event.
const DRAINS: u32 = 16;
const EVENTS: usize = 64;
const COMMAND_TOKEN: u64 = u64::MAX;

/// Something that happened to a line and that somebody should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignalEvent {
    /// A guest made the doorbell behind a line block.
    Blocked {
        /// The line.
        line: LineId,
        /// Whose doorbell it is, as far as we know: the controller's guest, or the line's when it leads to an eventfd.
        guest: String,
        /// What happened.
        fault: Fault,
    },
    /// What drove a line from outside hung up, and was let go of.
    SourceGone {
        /// The number of the source.
        source: u64,
        /// The line it drove.
        line: LineId,
    },
}

/// Lines an outbox may raise, by the numbers its guest knows them by.
pub(crate) type Grants = Arc<Mutex<HashMap<u32, Arc<Line>>>>;

pub(crate) enum Command {
    Raise(Arc<Line>),
    Redeliver(Arc<Line>),
    AddSource {
        token: u64,
        file: OwnedFd,
        is_socket: bool,
        line: Arc<Line>,
        reply: Sender<Result<()>>,
    },
    AddOutbox {
        token: u64,
        outbox: Box<Outbox>,
        reply: Sender<Result<()>>,
    },
    /// Answered with what was held, so that the caller closes it, and not this thread.
    Remove {
        token: u64,
        reply: Sender<Option<Held>>,
    },
    Stop,
}

/// A guest's outbox, as the signal thread holds it.
pub(crate) struct Outbox {
    pub taker: Taker,
    pub kick: Doorbell,
    pub grants: Grants,
    pub block: Block,
    pub times: WakeupTimes,
    pub is_active: bool,
    pub last_work: Instant,
}

pub(crate) enum Held {
    Source { file: OwnedFd, is_socket: bool, line: Arc<Line> },
    Outbox(Box<Outbox>),
}

/// The hold others have on the thread.
pub(crate) struct Service {
    commands: Sender<Command>,
    bell: Arc<Doorbell>,
    thread: Option<JoinHandle<()>>,
    _watchdog: Watchdog,
}

impl Service {
    pub(crate) fn start(events: Sender<SignalEvent>, events_bell: Arc<Doorbell>) -> Result<Self> {
        let watchdog = Watchdog::start()?;
        let handle = watchdog.handle();
        let (commands, queue) = crossbeam_channel::unbounded();
        let bell = Arc::new(Doorbell::create()?);
        let heard = bell.clone();
        let (started, outcome) = crossbeam_channel::bounded(1);
        let run = move || {
            let begun = handle.enlist().and_then(|ringer| Loop::new(queue, heard, ringer, events, events_bell));
            match begun {
                Ok(service) => {
                    let _ = started.send(Ok(()));
                    service.run();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        };
        let thread = thread::Builder::new()
            .name("vbnet-signals".into())
            .spawn(run)
            .map_err(|error| Error::machine("start the signal thread", error))?;
        let service = Self { commands, bell, thread: Some(thread), _watchdog: watchdog };
        outcome.recv().map_err(|_| Error::PeerGone("the signal thread"))??;
        Ok(service)
    }

    pub(crate) fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::Closed("the signal thread"))?;
        self.bell.ring()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Loop {
    epoll: OwnedFd,
    commands: Receiver<Command>,
    bell: Arc<Doorbell>,
    ringer: Ringer,
    held: HashMap<u64, Held>,
    /// Outboxes that are polled.
    active: VecDeque<u64>,
    events: Sender<SignalEvent>,
    events_bell: Arc<Doorbell>,
    heard: Vec<epoll::Event>,
    is_over: bool,
}

impl Loop {
    fn new(
        commands: Receiver<Command>,
        bell: Arc<Doorbell>,
        ringer: Ringer,
        events: Sender<SignalEvent>,
        events_bell: Arc<Doorbell>,
    ) -> Result<Self> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::machine("create an epoll set", errno))?;
        epoll::add(&epoll, &*bell, epoll::EventData::new_u64(COMMAND_TOKEN), epoll::EventFlags::IN)
            .map_err(|errno| Error::machine("wait for commands", errno))?;
        Ok(Self {
            epoll,
            commands,
            bell,
            ringer,
            held: HashMap::new(),
            active: VecDeque::new(),
            events,
            events_bell,
            heard: Vec::with_capacity(EVENTS),
            is_over: false,
        })
    }

    fn run(mut self) {
        while !self.is_over {
            self.look(self.active.is_empty());
            for _ in 0..ROUNDS_A_LOOK {
                if !self.round() {
                    break;
                }
            }
        }
    }

    /// Hears commands, sources and kicks.
    fn look(&mut self, may_sleep: bool) {
        self.heard.clear();
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = if may_sleep { None } else { Some(&at_once) };
        if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.heard), timeout).is_err() {
            return;
        }
        let heard = std::mem::take(&mut self.heard);
        self.stir_all(&heard);
        // Last, for a command may take away what something was heard of.
        if heard.iter().any(|event| event.data.u64() == COMMAND_TOKEN) {
            self.obey();
        }
        self.heard = heard;
    }

    fn stir_all(&mut self, heard: &[epoll::Event]) {
        for event in heard.iter().filter(|event| event.data.u64() != COMMAND_TOKEN) {
            self.stir(event.data.u64(), event.flags);
        }
    }

    /// What was written to a source before it is let go of is a raise: hears it now, if it was not heard yet.
    fn hear_out(&mut self, token: u64) {
        if !matches!(self.held.get(&token), Some(Held::Source { .. })) {
            return;
        }
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut heard = Vec::with_capacity(EVENTS);
        // What is ready longest comes first, so this one comes before others come again, however busy they are.
        for _ in 0..=self.held.len() / EVENTS {
            heard.clear();
            if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut heard), Some(&at_once)).is_err() {
                return;
            }
            self.stir_all(&heard);
            if heard.len() < EVENTS || heard.iter().any(|event| event.data.u64() == token) {
                return;
            }
        }
    }

    fn obey(&mut self) {
        self.bell.quiet();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Raise(line) => {
                    line.dequeue();
                    self.raise(&line);
                }
                Command::Redeliver(line) => {
                    let outcome = line.redeliver(&self.ringer);
                    self.tell(&line, outcome.err());
                }
                Command::AddSource { token, file, is_socket, line, reply } => {
                    let added = self.listen(file.as_fd(), token);
                    if added.is_ok() {
                        self.held.insert(token, Held::Source { file, is_socket, line });
                    }
                    let _ = reply.send(added);
                }
                Command::AddOutbox { token, outbox, reply } => {
                    let added = self.listen(outbox.kick.as_fd(), token);
                    if added.is_ok() {
                        self.held.insert(token, Held::Outbox(outbox));
                        // It may have been raised before we listened.
                        self.activate(token);
                    }
                    let _ = reply.send(added);
                }
                Command::Remove { token, reply } => {
                    self.hear_out(token);
                    let _ = reply.send(self.remove(token));
                }
                Command::Stop => self.is_over = true,
            }
        }
    }

    fn listen(&self, file: std::os::fd::BorrowedFd<'_>, token: u64) -> Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, file, epoll::EventData::new_u64(token), flags)
            .map_err(|errno| Error::machine("wait for what drives a signal", errno))
    }

    fn remove(&mut self, token: u64) -> Option<Held> {
        let held = self.held.remove(&token)?;
        let _ = match &held {
            Held::Source { file, .. } => epoll::delete(&self.epoll, file),
            Held::Outbox(outbox) => epoll::delete(&self.epoll, outbox.kick.as_fd()),
        };
        self.active.retain(|&active| active != token);
        Some(held)
    }

    /// Something happened at a source or an outbox.
    fn stir(&mut self, token: u64, flags: epoll::EventFlags) {
        match self.held.get(&token) {
            Some(Held::Outbox(outbox)) => {
                outbox.block.add(OutboxCounter::Kicks as usize, 1);
                outbox.times.record(0, outbox.taker.woken_after(monotonic_ns));
                self.activate(token);
            }
            Some(Held::Source { file, is_socket, line }) => {
                const OVER: epoll::EventFlags =
                    epoll::EventFlags::HUP.union(epoll::EventFlags::RDHUP).union(epoll::EventFlags::ERR);
                // What was written before a hang-up counts, even if both are heard of at once.
                let drained = if *is_socket {
                    drain(file)
                } else {
                    Drained { has_data: flags.contains(epoll::EventFlags::IN), is_over: false }
                };
                let is_over = drained.is_over || flags.intersects(OVER);
                let line = line.clone();
                if drained.has_data {
                    self.raise(&line);
                }
                if is_over {
                    drop(self.remove(token));
                    self.report(SignalEvent::SourceGone { source: token, line: line.id() });
                }
            }
            None => {}
        }
    }

    fn activate(&mut self, token: u64) {
        if let Some(Held::Outbox(outbox)) = self.held.get_mut(&token) {
            outbox.last_work = Instant::now();
            if !outbox.is_active {
                outbox.is_active = true;
                outbox.taker.disarm();
                self.active.push_back(token);
            }
        }
    }

    /// Gives each polled outbox its turn. `false`: none is polled any more.
    fn round(&mut self) -> bool {
        for _ in 0..self.active.len() {
            let Some(token) = self.active.pop_front() else { break };
            if self.turn(token) {
                self.active.push_back(token);
            }
        }
        !self.active.is_empty()
    }

    /// `true`: go on polling it.
    fn turn(&mut self, token: u64) -> bool {
        let Some(Held::Outbox(outbox)) = self.held.get_mut(&token) else { return false };
        let mut raised = Vec::new();
        let taken = outbox.taker.take(TURN, |number| raised.push(number));
        if taken != 0 {
            outbox.last_work = Instant::now();
            outbox.block.add(OutboxCounter::Taken as usize, taken.into());
            if outbox.taker.has_more() {
                outbox.block.add(OutboxCounter::BudgetExhausted as usize, 1);
            }
            let lines: Vec<_> = {
                let grants = outbox.grants.lock().unwrap_or_else(PoisonError::into_inner);
                raised.iter().filter_map(|number| grants.get(number).cloned()).collect()
            };
            outbox.block.add(OutboxCounter::Refused as usize, (raised.len() - lines.len()) as u64);
            for line in &lines {
                self.raise(line);
            }
            return true;
        }
        if outbox.last_work.elapsed() < PATIENCE || !outbox.taker.arm() {
            return true;
        }
        outbox.is_active = false;
        false
    }

    fn raise(&self, line: &Arc<Line>) {
        let outcome = line.raise(&self.ringer);
        self.tell(line, outcome.err());
    }

    fn tell(&self, line: &Line, fault: Option<Fault>) {
        if let Some(fault) = fault {
            self.report(SignalEvent::Blocked { line: line.id(), guest: line.holder(), fault });
        }
    }

    fn report(&self, event: SignalEvent) {
        let _ = self.events.send(event);
        let _ = self.events_bell.ring();
    }
}

/// What was in a socket.
struct Drained {
    has_data: bool,
    /// The other side has hung up.
    is_over: bool,
}

/// Takes what waits in a socket, without waiting.
fn drain(file: &OwnedFd) -> Drained {
    let mut bytes = [0; 256];
    let mut has_data = false;
    for _ in 0..DRAINS {
        match recv(file, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Drained { has_data, is_over: true },
            Ok(_) => has_data = true,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Drained { has_data, is_over: false },
            Err(_) => return Drained { has_data, is_over: true },
        }
    }
    Drained { has_data, is_over: false }
}
