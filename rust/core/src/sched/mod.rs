//! The scheduler coordinator: applies what guests' threads publish they need to the real Linux threads.
//!
//! ```text
//!   guest: record ── kick ──▶ coordinator's thread ── check, ladder ──▶ sched_setattr, sched_setaffinity
//!   signal of high priority ─▶ Booster ─────────────────────────────▶ sched_setattr, at the raiser's place
//!   leave · off · stop · the thread's end of use ──────────────────▶ what the thread had before
//! ```
//!
//! One native thread waits for kicks edge-triggered and never reads a doorbell, so no guest can make it block; a guest
//! that rings without end is not heard for a while. With the privilege for it the thread is itself a realtime one, above
//! every guest's, so that it can always take back what it gave. Pages and records: [`crate::shm::sched`]; what is granted:
//! [`policy`]; the system calls: [`kernel`]; whole guests beside
//! others: [`group`]. Source: vbus's coordination of guests' and host's schedulers; sched(7).

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::epoll;
use rustix::time::Timespec;

use self::boost::{Booster as BoosterInner, Caller};
use self::engine::Engine;
use self::kernel::{Kernel, Linux, Schedule};
use self::policy::{Abilities, Limits, Refusal};
use crate::error::{Error, Result};
use crate::net::counters::counters;
use crate::shm::counters::{Block, CounterFile};
use crate::shm::doorbell::Doorbell;
use crate::shm::region::Ram;
use crate::shm::sched::HostPage;

mod boost;
mod engine;
pub mod group;
pub mod kernel;
pub mod policy;

pub use self::boost::Booster;

/// Priority of the coordinator's own thread: above every guest's.
const HOST_PRIORITY: u32 = 45;
/// Highest priority that an operator may grant to guests.
pub const GUEST_PRIORITY_MAX: u32 = 40;
/// How long a command may take to be answered.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// The doorbell of commands and boosts, where guests have their number.
const COMMAND_TOKEN: u64 = u64::MAX;
/// Rings of one guest that are heard within [`WINDOW_NS`].
const RINGS: u32 = 64;
const WINDOW_NS: u64 = 10_000_000;
const EVENTS: usize = 32;

counters! {
    /// What a coordinator counts; after these come its refusals, in the order of `policy::Refusal`.
    pub enum SchedCounter {
        /// Doorbells heard.
        Kicks = "kicks",
        /// Records that were copied because they had changed.
        Samples = "samples",
        /// Transitions after which the thread had already what it was to get.
        NoOps = "no_ops",
        /// Changes made to threads.
        Applied = "applied",
        /// Threads that got back what they had.
        PutBack = "put_back",
        /// Threads that could not get it back.
        PutBackFailed = "put_back_failed",
        /// Times a guest's control group got another weight.
        Weighed = "weighed",
        /// Groups that could not be weighed, and are left alone since.
        WeighFailed = "weigh_failed",
        /// Threads raised because an urgent signal waited for them.
        Boosts = "boosts",
        /// Times a guest that rang without end was not heard for a while.
        Muted = "muted",
        /// Guests that take part now.
        Guests = "guests",
        /// Threads in hand now.
        Threads = "threads",
    }
}

/// How many values a coordinator's counter block has.
pub const COUNTERS: usize = SchedCounter::COUNT + Refusal::NAMES.len();

/// Names of all values of a coordinator's counter block.
#[must_use]
pub fn counter_names() -> Vec<String> {
    let base = SchedCounter::NAMES.into_iter().map(String::from);
    base.chain(Refusal::NAMES.into_iter().map(|name| format!("refused_{name}"))).collect()
}

/// One thread, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadInfo {
    /// Whose.
    pub guest: String,
    /// The guest's process.
    pub pid: u32,
    /// Number of its record.
    pub record: usize,
    /// Kernel's number; 0: none is in hand.
    pub tid: u32,
    /// Class it wants, or nothing.
    pub wanted: &'static str,
    /// Class it has, or nothing.
    pub applied: &'static str,
    /// It says that it runs.
    pub is_running: bool,
    /// An urgent signal raised it.
    pub is_boosted: bool,
    /// For how long it has had that, ns.
    pub age_ns: u64,
    /// Weight of its guest's control group; 0: that is not weighed.
    pub weight: u32,
    /// Why it did not get what it wants, or nothing.
    pub refusal: &'static str,
}

enum Command {
    Join { guest: String, pid: u32, page: Box<HostPage>, kick: Doorbell, reply: Sender<Result<u64>> },
    Leave(u64, Sender<()>),
    Limit(Limits, Sender<()>),
    Threads(Sender<Vec<ThreadInfo>>),
    Booster(u64, Sender<Option<Arc<BoosterInner>>>),
    Stop,
}

/// The coordinator of one device. Dropping it puts everything back and ends its thread.
pub struct Coordinator {
    commands: Sender<Command>,
    caller: Arc<Caller>,
    thread: Mutex<Option<JoinHandle<()>>>,
    abilities: Abilities,
    counters: Arc<CounterFile>,
    labels: String,
}

impl Coordinator {
    /// Starts its thread, which finds out what this host can do by trying it on itself.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no thread, descriptor or counter block is free.
    pub fn start(limits: Limits, counters: Option<Arc<CounterFile>>, labels: &str) -> Result<Self> {
        let counters = match counters {
            Some(counters) => counters,
            None => Arc::new(CounterFile::create(None, 1 << 16)?),
        };
        let block = counters.allocate("sched", labels, COUNTERS)?;
        let bell = Arc::new(Doorbell::create()?);
        let caller = Arc::new(Caller { is_called: Mutex::new(false), bell });
        let (commands, queue) = crossbeam_channel::unbounded();
        let (started, outcome) = crossbeam_channel::bounded(1);
        let heard = caller.clone();
        let run = move || match Loop::new(queue, heard, limits, block) {
            Ok(mut turning) => {
                let _ = started.send(Ok(turning.engine.abilities));
                turning.run();
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        };
        let thread = thread::Builder::new()
            .name("vbnet-sched".into())
            .spawn(run)
            .map_err(|error| Error::machine("start the scheduler coordinator", error))?;
        let abilities = outcome.recv().map_err(|_| Error::PeerGone("the scheduler coordinator"))??;
        let labels = labels.to_owned();
        Ok(Self { commands, caller, thread: Mutex::new(Some(thread)), abilities, counters, labels })
    }

    fn ask<T>(&self, make: impl FnOnce(Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.commands.send(make(reply)).map_err(|_| Error::Closed("the scheduler coordinator"))?;
        self.caller.bell.ring()?;
        answer.recv_timeout(ANSWER_DEADLINE).map_err(|_| Error::Closed("the scheduler coordinator"))
    }

    /// What this host can do.
    #[must_use]
    pub const fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Takes part for a guest: the page that it showed, its kick doorbell, and its process as the kernel vouches for it.
    /// Gives a number to leave by.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: no page is there. [`Error::Machine`]: the doorbell cannot be waited for.
    pub fn join(&self, guest: &str, pid: u32, ram: Arc<Ram>, place: (u32, usize), kick: OwnedFd) -> Result<u64> {
        let page = Box::new(HostPage::open(ram, place.0, place.1)?);
        let (guest, kick) = (guest.to_owned(), Doorbell::from_fd(kick));
        self.ask(|reply| Command::Join { guest, pid, page, kick, reply })?
    }

    /// Lets a guest go. When this returns its threads have what they had before, and its memory is not looked at again.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]: the coordinator has ended, and has put everything back before it did.
    pub fn leave(&self, id: u64) -> Result<()> {
        self.ask(|reply| Command::Leave(id, reply))
    }

    /// Changes what is granted. When this returns it is in force.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]: the coordinator has ended.
    pub fn limit(&self, limits: Limits) -> Result<()> {
        self.ask(|reply| Command::Limit(limits, reply))
    }

    /// Every thread there is something to say about.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]: the coordinator has ended.
    pub fn threads(&self) -> Result<Vec<ThreadInfo>> {
        self.ask(Command::Threads)
    }

    /// What raises a guest's threads when urgent signals wait for them.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: nobody of this number takes part. [`Error::Closed`]: the coordinator has ended.
    pub fn booster(&self, id: u64) -> Result<Arc<Booster>> {
        let found = self.ask(|reply| Command::Booster(id, reply))?;
        found.ok_or_else(|| Error::NotFound(format!("no guest {id} takes part in scheduling")))
    }

    /// What was counted so far, in the order of [`counter_names`].
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        let blocks = self.counters.reader().blocks();
        let own = blocks.into_iter().find(|block| block.kind == "sched" && block.labels == self.labels);
        own.map_or_else(|| vec![0; COUNTERS], |block| block.values)
    }

    /// Puts everything back and ends the thread; harmless when that was done before.
    pub fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = self.commands.send(Command::Stop);
            let _ = self.caller.bell.ring();
            let _ = thread.join();
        }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator").field("abilities", &self.abilities).finish_non_exhaustive()
    }
}

/// A guest's doorbell, as the coordinator hears it.
struct Heard {
    kick: Doorbell,
    window_ns: u64,
    rings: u32,
    is_muted: bool,
}

struct Loop {
    engine: Engine<Linux>,
    commands: Receiver<Command>,
    caller: Arc<Caller>,
    epoll: OwnedFd,
    heard: HashMap<u64, Heard>,
    kicks: u64,
    muted: u64,
    next: u64,
    start: Instant,
    is_over: bool,
}

impl Loop {
    fn new(commands: Receiver<Command>, caller: Arc<Caller>, limits: Limits, block: Block) -> Result<Self> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::machine("create an epoll set", errno))?;
        epoll::add(&epoll, &*caller.bell, epoll::EventData::new_u64(COMMAND_TOKEN), epoll::EventFlags::IN)
            .map_err(|errno| Error::machine("wait for commands", errno))?;
        let kernel = Linux::new();
        // SAFETY: a plain question about ourselves.
        let own_tid = unsafe { libc::gettid() }.cast_unsigned();
        let abilities = try_out(&kernel, own_tid);
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        let engine = Engine::new(kernel, abilities, limits, processors, caller.clone(), block, own_tid);
        let heard = HashMap::new();
        let start = Instant::now();
        Ok(Self { engine, commands, caller, epoll, heard, kicks: 0, muted: 0, next: 1, start, is_over: false })
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn run(&mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
        while !self.is_over {
            events.clear();
            let timeout = self.due_ns().map(|due_ns| {
                let rest = due_ns.saturating_sub(self.now_ns());
                Timespec { tv_sec: (rest / 1_000_000_000) as i64, tv_nsec: (rest % 1_000_000_000) as i64 }
            });
            let outcome = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref());
            let now_ns = self.now_ns();
            self.engine.gather_boosts(now_ns);
            if outcome.is_ok() {
                for event in &events {
                    match event.data.u64() {
                        COMMAND_TOKEN => self.obey(now_ns),
                        id => self.hear(id, now_ns),
                    }
                }
            }
            self.unmute(now_ns);
            self.engine.tick(now_ns);
        }
        self.engine.leave_all();
    }

    fn due_ns(&self) -> Option<u64> {
        let muted = self.heard.values().filter(|heard| heard.is_muted).map(|heard| heard.window_ns + WINDOW_NS);
        muted.chain(self.engine.due_ns()).min()
    }

    fn hear(&mut self, id: u64, now_ns: u64) {
        let Some(heard) = self.heard.get_mut(&id) else { return };
        self.kicks += 1;
        self.engine.gauge(SchedCounter::Kicks, self.kicks);
        if now_ns >= heard.window_ns + WINDOW_NS {
            (heard.window_ns, heard.rings) = (now_ns, 0);
        }
        heard.rings += 1;
        if heard.rings > RINGS && !heard.is_muted {
            heard.is_muted = true;
            self.muted += 1;
            self.engine.gauge(SchedCounter::Muted, self.muted);
            let nothing = epoll::EventFlags::empty();
            let _ = epoll::modify(&self.epoll, &heard.kick, epoll::EventData::new_u64(id), nothing);
            return;
        }
        self.engine.serve(id, now_ns);
    }

    /// Hears those again whose time has come; their doorbells say at once if they rang meanwhile.
    fn unmute(&mut self, now_ns: u64) {
        for (&id, heard) in self.heard.iter_mut().filter(|(_, heard)| heard.is_muted) {
            if now_ns >= heard.window_ns + WINDOW_NS {
                (heard.is_muted, heard.window_ns, heard.rings) = (false, now_ns, 0);
                let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
                let _ = epoll::modify(&self.epoll, &heard.kick, epoll::EventData::new_u64(id), flags);
            }
        }
    }

    fn obey(&mut self, now_ns: u64) {
        self.caller.bell.quiet();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Join { guest, pid, page, kick, reply } => {
                    let _ = reply.send(self.join(guest, pid, *page, kick, now_ns));
                }
                Command::Leave(id, reply) => {
                    if let Some(heard) = self.heard.remove(&id) {
                        let _ = epoll::delete(&self.epoll, &heard.kick);
                    }
                    self.engine.leave(id);
                    let _ = reply.send(());
                }
                Command::Limit(limits, reply) => {
                    self.engine.limit(limits, now_ns);
                    let _ = reply.send(());
                }
                Command::Threads(reply) => {
                    let _ = reply.send(self.engine.threads(now_ns));
                }
                Command::Booster(id, reply) => {
                    let _ = reply.send(self.engine.client(id).map(engine::Client::booster));
                }
                Command::Stop => self.is_over = true,
            }
        }
    }

    fn join(&mut self, guest: String, pid: u32, page: HostPage, kick: Doorbell, now_ns: u64) -> Result<u64> {
        let id = self.next;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &kick, epoll::EventData::new_u64(id), flags)
            .map_err(|errno| Error::machine("wait for a guest's kicks", errno))?;
        self.next += 1;
        self.heard.insert(id, Heard { kick, window_ns: now_ns, rings: 0, is_muted: false });
        self.engine.join(id, guest, pid, page, now_ns);
        Ok(id)
    }
}

/// Finds out what can be done, on the calling thread, which at the end is a realtime one if that is permitted.
fn try_out(kernel: &Linux, tid: u32) -> Abilities {
    let Ok(before) = kernel.setting(tid) else { return Abilities::default() };
    let Schedule::Fair { nice: had, .. } = before.schedule else { return Abilities::default() };
    let can = |schedule: Schedule| kernel.schedule(tid, schedule, false).is_ok();
    let short = Schedule::Fair { is_batch: false, nice: had, slice_ns: 300_000 };
    let slice = can(short) && kernel.setting(tid).is_ok_and(|setting| setting.schedule == short);
    let nice = can(Schedule::Fair { is_batch: false, nice: had - 1, slice_ns: 0 });
    let deadline = can(Schedule::Deadline { runtime_ns: 100_000, deadline_ns: 10_000_000, period_ns: 10_000_000 });
    let _ = kernel.schedule(tid, before.schedule, before.is_reset_on_fork);
    let realtime = can(Schedule::Realtime { is_fifo: true, priority: HOST_PRIORITY });
    Abilities { realtime, deadline, nice, slice, weight: kernel.has_groups() }
}
