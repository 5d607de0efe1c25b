//! The timekeeper: one thread of the host that keeps the timers of all its guests.
//!
//! ```text
//!   guests' pages ──kick──▶ ┌────────────┐  earliest of all: one timerfd, absolute, CLOCK_MONOTONIC
//!   timerfd ───────────────▶│ epoll, then │──▶ a turn for each guest with something to do ──▶ raise, once a priority
//!   commands ──────────────▶│ turns       │    (timer::agenda), in rounds while any has more
//!                           └────────────┘
//! ```
//!
//! The thread sleeps until the earliest deadline of all guests, less the lead each asked for, or until a guest kicks
//! because it armed an earlier one. However many timers expire together, a guest's doorbell is rung at most once for each
//! priority, and not at all while it is awake. Kicks are waited for edge-triggered and never read.
//!
//! The danger: a doorbell that its guest made block. It holds the thread up for one watchdog's limit, once: the guest's
//! timers end with that, and its owner is told. When [`Timekeeper::detach`] has returned, the thread touches the page no
//! more. Source: timerfd_create(2), epoll(7).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rustix::event::epoll;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

use self::agenda::{Agenda, Rest, TimerCounter};
use crate::error::{Error, Fault, Result};
use crate::shm::counters::{Block, CounterFile};
use crate::shm::doorbell::Doorbell;
use crate::shm::histogram;
use crate::shm::region::Ram;
use crate::shm::signal::Notifier;
use crate::shm::timer::{Keeper, TimerMemory, attach_signal};
use crate::signals::Caller;
use crate::worker::watchdog::{Ringer, Watchdog, WatchdogHandle};

pub mod agenda;
mod heap;

/// How long the thread may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
const EVENTS: usize = 64;
const COMMAND_TOKEN: u64 = u64::MAX;
const CLOCK_TOKEN: u64 = u64::MAX - 1;

/// Nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A guest's timer page, and how its guest wakes us.
#[derive(Debug)]
pub struct TimerPage {
    /// The guest's memory.
    pub ram: Arc<Ram>,
    /// Byte offset and length of the page.
    pub place: (u32, u32),
    /// Rung by the guest when it armed something earlier than we wait for. Never read.
    pub kick: Doorbell,
    /// Most timers it may have.
    pub slots_max: u32,
    /// Longest lead it is granted, in nanoseconds.
    pub lead_max_ns: u64,
}

/// One priority's signal, and how we wake the guest.
struct Bell {
    notifier: Notifier,
    caller: Caller,
}

struct Client {
    agenda: Agenda,
    kick: Doorbell,
    bells: [Option<Bell>; 8],
    /// When it is in `deadlines`.
    wake_ns: u64,
    is_ready: bool,
}

enum Command {
    Attach(u64, Box<Client>, Sender<Result<()>>),
    Connect(u64, u8, Box<Bell>, Sender<()>),
    SetLead(u64, u64, Sender<()>),
    Detach(u64, Sender<Option<Box<Client>>>),
    Stop,
}

/// Faults that nobody took yet.
struct Faults {
    found: Mutex<Vec<(u64, Fault)>>,
    bell: Doorbell,
}

/// The hold others have on the thread. Dropping it ends the thread.
pub struct Timekeeper {
    commands: Sender<Command>,
    bell: Arc<Doorbell>,
    faults: Arc<Faults>,
    last_id: AtomicU64,
    counters: Arc<CounterFile>,
    /// How late the thread was, for all guests.
    late: Arc<Block>,
    thread: Option<JoinHandle<()>>,
    _watchdog: Watchdog,
}

impl Timekeeper {
    /// Starts the thread, and the watchdog that frees it.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no thread, descriptor, signal number or counter is free.
    pub fn start(counters: Arc<CounterFile>) -> Result<Self> {
        let late = Arc::new(counters.allocate("timekeeper", "", histogram::WORDS)?);
        let watchdog = Watchdog::start()?;
        let (commands, queue) = crossbeam_channel::unbounded();
        let bell = Arc::new(Doorbell::create()?);
        let faults = Arc::new(Faults { found: Mutex::default(), bell: Doorbell::create()? });
        let (heard, told, handle) = (bell.clone(), faults.clone(), watchdog.handle());
        let (started, outcome) = crossbeam_channel::bounded(1);
        let run = move || match Hand::new(queue, heard, handle, told) {
            Ok(hand) => {
                let _ = started.send(Ok(()));
                hand.run();
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        };
        let thread = thread::Builder::new()
            .name("vbnet-timer".into())
            .spawn(run)
            .map_err(|error| Error::machine("start the timekeeper", error))?;
        let last_id = AtomicU64::new(0);
        let keeper =
            Self { commands, bell, faults, last_id, counters, late, thread: Some(thread), _watchdog: watchdog };
        outcome.recv().map_err(|_| Error::PeerGone("the timekeeper"))??;
        Ok(keeper)
    }

    /// Keeps the timers of a page from now on; gives the number it is known by. `labels` say whose it is, for counters.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the page is not what it should be. [`Error::Machine`]: no descriptor or counter is free.
    pub fn attach(&self, page: TimerPage, labels: &str) -> Result<u64> {
        let TimerPage { ram, place, kick, slots_max, lead_max_ns } = page;
        let memory = TimerMemory::attach(&ram, place.0, place.1, slots_max)?;
        let block = self.counters.allocate("timer", labels, TimerCounter::COUNT)?;
        let agenda = Agenda::new(Keeper::new(memory), lead_max_ns, block, self.late.clone());
        let client = Box::new(Client { agenda, kick, bells: Default::default(), wake_ns: u64::MAX, is_ready: false });
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        self.ask(|reply| Command::Attach(id, client, reply))??;
        Ok(id)
    }

    /// Calls the guest by `caller` for what expires at `priority`, from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: there is no signal in that place. [`Error::Usage`]: the priority is not 0 to 7.
    /// [`Error::NotFound`]: no such page is kept.
    pub fn connect(&self, id: u64, priority: u8, ram: &Arc<Ram>, place: (u32, u32), caller: Caller) -> Result<()> {
        if priority > 7 {
            return Err(Error::Usage(format!("a priority is 0 to 7; got {priority}")));
        }
        let bell = Box::new(Bell { notifier: attach_signal(ram, place.0, place.1)?, caller });
        self.ask(|reply| Command::Connect(id, priority, bell, reply)).map_err(|error| unknown(id, error))
    }

    /// Grants another lead.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: no such page is kept.
    pub fn set_lead(&self, id: u64, lead_max_ns: u64) -> Result<()> {
        self.ask(|reply| Command::SetLead(id, lead_max_ns, reply)).map_err(|error| unknown(id, error))
    }

    /// Lets go of a page: when this returns, the thread touches it no more. A page that is not kept is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`]: the thread did not answer in time.
    pub fn detach(&self, id: u64) -> Result<()> {
        self.ask(|reply| Command::Detach(id, reply)).map(drop)
    }

    /// Pages given up because their guest broke a rule, since the last call.
    #[must_use]
    pub fn take_faults(&self) -> Vec<(u64, Fault)> {
        self.faults.bell.quiet();
        std::mem::take(&mut *self.faults.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Readable while [`Self::take_faults`] has something to tell; the timekeeper's own.
    #[must_use]
    pub fn fault_fd(&self) -> RawFd {
        self.faults.bell.raw()
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.commands.send(command(reply)).map_err(|_| Error::Closed("the timekeeper"))?;
        self.bell.ring()?;
        answer.recv_timeout(ANSWER_DEADLINE).map_err(|error| match error {
            crossbeam_channel::RecvTimeoutError::Timeout => Error::Busy("the timekeeper does not answer".into()),
            crossbeam_channel::RecvTimeoutError::Disconnected => Error::PeerGone("the timekeeper"),
        })
    }
}

/// A dropped answer means that the page is not there.
fn unknown(id: u64, error: Error) -> Error {
    match error {
        Error::PeerGone(_) => Error::NotFound(format!("no timer page {id} is kept; it was let go of, or broke a rule")),
        other => other,
    }
}

impl Drop for Timekeeper {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        let _ = self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Timekeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timekeeper").finish_non_exhaustive()
    }
}

/// What the thread holds.
struct Hand {
    commands: Receiver<Command>,
    bell: Arc<Doorbell>,
    ringer: Ringer,
    faults: Arc<Faults>,
    epoll: OwnedFd,
    clock: OwnedFd,
    /// What the clock is set to.
    set_ns: u64,
    clients: HashMap<u64, Client>,
    /// When each sleeping client wants its next turn.
    deadlines: BTreeSet<(u64, u64)>,
    /// Who wants a turn now.
    ready: VecDeque<u64>,
    is_over: bool,
}

impl Hand {
    fn new(
        commands: Receiver<Command>,
        bell: Arc<Doorbell>,
        watchdog: WatchdogHandle,
        faults: Arc<Faults>,
    ) -> Result<Self> {
        let ringer = watchdog.enlist()?;
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::machine("create an epoll set", errno))?;
        let clock = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(|errno| Error::machine("create a clock", errno))?;
        let listen = |fd: &dyn AsFd, token, flags| {
            epoll::add(&epoll, fd.as_fd(), epoll::EventData::new_u64(token), flags)
                .map_err(|errno| Error::machine("wait for the clock and commands", errno))
        };
        listen(&*bell, COMMAND_TOKEN, epoll::EventFlags::IN)?;
        // Setting it again quiets it, so it is never read.
        listen(&clock, CLOCK_TOKEN, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        let (clients, deadlines, ready) = (HashMap::new(), BTreeSet::new(), VecDeque::new());
        let set_ns = u64::MAX;
        Ok(Self { commands, bell, ringer, faults, epoll, clock, set_ns, clients, deadlines, ready, is_over: false })
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        while !self.is_over {
            self.look(&mut events);
            self.wake_due(now_ns());
            for _ in 0..self.ready.len() {
                let Some(id) = self.ready.pop_front() else { break };
                self.turn(id);
            }
        }
    }

    /// Hears kicks and commands; sleeps for them when nobody wants a turn.
    fn look(&mut self, events: &mut Vec<epoll::Event>) {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let limit = if self.ready.is_empty() {
            self.set_clock();
            None
        } else {
            Some(&at_once)
        };
        events.clear();
        // Interrupted, or out of memory for a moment: looking again is all there is to do.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), limit);
        for event in events.iter() {
            match event.data.u64() {
                COMMAND_TOKEN => self.obey(),
                // The clock says what wake_due() finds out by itself, and has to be set anew.
                CLOCK_TOKEN => self.set_ns = u64::MAX,
                id => {
                    if let Some(client) = self.clients.get(&id) {
                        client.agenda.count(TimerCounter::Kicks, 1);
                    }
                    self.rouse(id);
                }
            }
        }
    }

    fn set_clock(&mut self) {
        let wake_ns = self.deadlines.first().map_or(u64::MAX, |&(wake_ns, _)| wake_ns);
        if wake_ns == self.set_ns {
            return;
        }
        self.set_ns = wake_ns;
        // 0 stops the clock: right for what is further away than it can say, wrong for what is due.
        let value = match i64::try_from(wake_ns.max(1)) {
            Ok(wake_ns) => Timespec { tv_sec: wake_ns / 1_000_000_000, tv_nsec: wake_ns % 1_000_000_000 },
            Err(_) => Timespec { tv_sec: 0, tv_nsec: 0 },
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        let set = timerfd_settime(&self.clock, TimerfdTimerFlags::ABSTIME, &once);
        debug_assert!(set.is_ok());
    }

    fn wake_due(&mut self, now_ns: u64) {
        while let Some(&(wake_ns, id)) = self.deadlines.first() {
            if wake_ns > now_ns {
                break;
            }
            self.rouse(id);
        }
    }

    /// Wants a turn for a client; nothing when it has one coming.
    fn rouse(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        self.deadlines.remove(&(client.wake_ns, id));
        if !client.is_ready {
            client.is_ready = true;
            self.ready.push_back(id);
        }
    }

    fn turn(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.is_ready = false;
        let turn = client.agenda.turn(now_ns());
        if let Err(fault) = client.raise(turn.raise, &self.ringer) {
            self.give_up(id, fault);
            return;
        }
        match turn.rest {
            Rest::Again => {
                client.is_ready = true;
                self.ready.push_back(id);
            }
            Rest::Until(u64::MAX) => client.wake_ns = u64::MAX,
            Rest::Until(wake_ns) => {
                client.wake_ns = wake_ns;
                self.deadlines.insert((wake_ns, id));
            }
        }
    }

    fn obey(&mut self) {
        self.bell.quiet();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Attach(id, client, reply) => {
                    let _ = reply.send(self.take_on(id, *client));
                }
                Command::Connect(id, priority, bell, reply) => {
                    if let Some(client) = self.clients.get_mut(&id) {
                        client.bells[usize::from(priority & 7)] = Some(*bell);
                        let _ = reply.send(());
                        // What expired before there was a bell.
                        if let Err(fault) = client.raise(1 << (priority & 7), &self.ringer) {
                            self.give_up(id, fault);
                        }
                    }
                }
                Command::SetLead(id, lead_max_ns, reply) => {
                    if let Some(client) = self.clients.get_mut(&id) {
                        client.agenda.set_lead_max(lead_max_ns);
                        let _ = reply.send(());
                        self.rouse(id);
                    }
                }
                Command::Detach(id, reply) => {
                    let _ = reply.send(self.let_go(id).map(Box::new));
                }
                Command::Stop => self.is_over = true,
            }
        }
    }

    fn take_on(&mut self, id: u64, client: Client) -> Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &client.kick, epoll::EventData::new_u64(id), flags)
            .map_err(|errno| Error::machine("wait for a guest's kicks", errno))?;
        self.clients.insert(id, client);
        self.rouse(id);
        Ok(())
    }

    fn let_go(&mut self, id: u64) -> Option<Client> {
        let client = self.clients.remove(&id)?;
        self.deadlines.remove(&(client.wake_ns, id));
        self.ready.retain(|&ready| ready != id);
        // It cannot fail: the descriptor is ours and was added.
        let _ = epoll::delete(&self.epoll, &client.kick);
        Some(client)
    }

    fn give_up(&mut self, id: u64, fault: Fault) {
        self.let_go(id);
        self.faults.found.lock().unwrap_or_else(PoisonError::into_inner).push((id, fault));
        // Ours alone and never blocking; it cannot fail.
        let _ = self.faults.bell.ring();
    }
}

impl Client {
    /// Tells the guest of what expired, the most urgent first.
    fn raise(&self, priorities: u8, ringer: &Ringer) -> std::result::Result<(), Fault> {
        for priority in (0..8).rev().filter(|priority| priorities & (1 << priority) != 0) {
            let Some(bell) = &self.bells[priority] else { continue };
            if bell.notifier.inject() {
                self.agenda.count(TimerCounter::Rings, 1);
                bell.caller.call(ringer)?;
            } else {
                self.agenda.count(TimerCounter::RingsSpared, 1);
            }
        }
        Ok(())
    }
}
