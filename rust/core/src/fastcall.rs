//! The service behind fastcalls: one thread that answers calls guests make through shared memory.
//!
//! ```text
//!   caller ── Service ──command──▶ thread:  active slots, one call a turn each ─▶ handler ─▶ answer, ring a sleeper
//!                │ ◀───answer─────    ▲                                        │ idle for longer than its patience
//!                └─ faults, eventfd   └── epoll: kick of a parked slot · command ◀─ arm the signal, park
//! ```
//!
//! A handler belongs to one session and one device handle, and only slots of that session reach it: what a guest writes
//! as handle can miss, and cannot reach what another guest opened. Each active slot has one call a turn, so a guest that
//! calls without end gets its share and no more. Parked slots are a line in an epoll set; a service without active slots
//! sleeps. A slot whose guest breaks the rules is not looked at again, and everybody else goes on.
//!
//! What a call costs on top (`trap_ns`, a modelled leave of the guest) is told in the answer and spent by the caller: on
//! this thread it would hold up callers that have nothing to do with each other, as no leave of a processor does.
//!
//! The danger: handlers run here, one at a time. One that takes long delays all callers; one that panics costs its call.
//! Doorbells are rung where a watchdog ends what blocks. When [`Service::detach`] or [`Service::unregister`] has returned
//! `Ok`, the thread uses neither the slot's memory nor the handler any more.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::error::{Error, Fault, Result};
use crate::net::counters::counters;
use crate::shm::counters::{Block, CounterFile};
use crate::shm::doorbell::Doorbell;
use crate::shm::fastcall::{DATA_BYTES, Data, Request, STATUS_DONE, STATUS_UNSERVED, Server, SlotMemory};
use crate::shm::region::Ram;
use crate::worker::parking::Parking;
use crate::worker::watchdog::{Ringer, Watchdog, WatchdogHandle};

/// How long the thread may take to do a command: longer than any call a handler should make it wait for.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
/// Longest time a slot is polled after its last call.
pub const SPIN_US_MAX: u32 = 100_000;
/// Highest modelled cost of a call.
pub const TRAP_NS_MAX: u32 = 1_000_000;

/// Slots looked at between two looks at the clock.
const CLOCK_LOOKS: u32 = 64;
/// How often kicks and commands are heard while slots are polled.
const HEAR_NS: u64 = 20_000;
const EVENTS: usize = 64;
/// The doorbell of the command queue, where slots have their number.
const COMMAND_TOKEN: u64 = u64::MAX;

counters! {
    /// What is counted for every slot.
    pub enum FastcallCounter {
        /// Calls answered by a handler, refusals included.
        Calls = "calls",
        /// Bytes of their data and their answers.
        Bytes = "bytes",
        /// Calls that a handler refused.
        Refused = "refused",
        /// Calls that ended in a handler's panic or an answer longer than there is room for.
        Failed = "failed",
        /// Calls refused because their data is longer than there is room for.
        RefusedTooLong = "refused_too_long",
        /// Calls sent to the ordinary way because the device has no handler here.
        UnservedNoHandler = "unserved_no_handler",
        /// Calls sent to the ordinary way because fastcalls are switched off.
        UnservedDisabled = "unserved_disabled",
        /// Doorbells heard from the guest.
        Kicks = "kicks",
        /// Times the slot woke.
        Wakeups = "wakeups",
        /// Times the slot fell asleep.
        Parks = "parks",
        /// Doorbells rung for the guest.
        CallsRung = "calls_rung",
        /// Doorbells spared because the guest was awake.
        CallsSuppressed = "calls_suppressed",
        /// Slots ended because the guest broke a rule.
        Faults = "faults",
    }
}

counters! {
    /// What is counted for the service.
    pub enum ServiceCounter {
        /// Rounds over the active slots that answered calls.
        BusyRounds = "busy_rounds",
        /// Rounds that found nothing to do: polling.
        IdleRounds = "idle_rounds",
        /// Times it went to sleep.
        Sleeps = "sleeps",
        /// Nanoseconds it slept.
        AsleepNanoseconds = "asleep_nanoseconds",
        /// Commands done.
        Commands = "commands",
        /// Slots attached now.
        Slots = "slots",
        /// Slots polled now.
        ActiveSlots = "active_slots",
        /// Handlers registered now.
        Handlers = "handlers",
    }
}

/// Why a handler does not do what it was called for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its name as a system error.
    pub code: Errno,
    /// For whoever called; what does not fit an answer is cut off.
    pub text: Cow<'static, str>,
}

impl Refusal {
    /// A refusal with a sentence.
    #[must_use]
    pub fn new(code: Errno, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, text: text.into() }
    }

    /// A refusal by number; one that is no system error's becomes an input/output error.
    #[must_use]
    pub fn from_code(code: u32, text: impl Into<Cow<'static, str>>) -> Self {
        let known = i32::try_from(code).ok().filter(|code| (1..4096).contains(code));
        Self::new(known.map_or(Errno::IO, Errno::from_raw_os_error), text)
    }

    /// The number of the system error.
    #[must_use]
    pub fn code(&self) -> u32 {
        self.code.raw_os_error().unsigned_abs()
    }
}

/// What answers the fastcalls of one open device.
pub trait FastHandler: Send + Sync {
    /// Runs a function of the device; answers how much of `answer`, which has [`DATA_BYTES`] bytes, is filled.
    ///
    /// Runs on the service's thread: it must not block, and must not wait for a command of the service.
    ///
    /// # Errors
    ///
    /// Why not; the guest is told.
    fn call(&self, function: u32, data: &[u8], answer: &mut [u8]) -> std::result::Result<usize, Refusal>;

    /// What a call of this device costs on top of what its slot says, in ns: see the head of this file.
    fn trap_ns(&self) -> u32 {
        0
    }
}

/// Gives back what it is sent: the limit of what a call can cost, and the simplest example.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl FastHandler for Echo {
    fn call(&self, _function: u32, data: &[u8], answer: &mut [u8]) -> std::result::Result<usize, Refusal> {
        answer[..data.len()].copy_from_slice(data);
        Ok(data.len())
    }
}

/// Names a slot; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u64);

/// How a slot is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotParams {
    /// Calls reach handlers; otherwise callers are told to take the ordinary way.
    pub is_enabled: bool,
    /// How long at most the slot is polled after its last call, in µs, at most [`SPIN_US_MAX`].
    pub spin_us: u32,
    /// Modelled cost of a call in ns, at most [`TRAP_NS_MAX`].
    pub trap_ns: u32,
}

impl Default for SlotParams {
    fn default() -> Self {
        Self { is_enabled: true, spin_us: 50, trap_ns: 0 }
    }
}

impl SlotParams {
    fn checked(self) -> Result<Self> {
        if self.spin_us > SPIN_US_MAX || self.trap_ns > TRAP_NS_MAX {
            return Err(Error::Usage(format!(
                "a slot is polled for at most {SPIN_US_MAX} µs and a call costs at most {TRAP_NS_MAX} ns on top; got {} \
                 and {}",
                self.spin_us, self.trap_ns
            )));
        }
        Ok(self)
    }
}

/// What a guest showed and the host made for it.
#[derive(Debug)]
pub struct SlotParts {
    /// The guest's memory.
    pub ram: Arc<Ram>,
    /// Byte offset of the slot in it.
    pub offset: u32,
    /// Its length in bytes.
    pub length: u32,
    /// Rung by the guest.
    pub kick: Doorbell,
    /// Rung for the guest.
    pub call: Doorbell,
}

/// A slot that is not served any more because its guest broke a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultEvent {
    /// Which.
    pub slot: SlotId,
    /// One of [`Fault::REASONS`].
    pub reason: &'static str,
    /// For an operator.
    pub text: String,
}

type Handler = Arc<dyn FastHandler>;

enum Command {
    Attach(Box<Slot>, Sender<Result<()>>),
    Detach(SlotId, Sender<Option<Box<Slot>>>),
    Set(SlotId, SlotParams, Sender<bool>),
    Register(u64, u32, Handler, Sender<bool>),
    Unregister(u64, u32, Sender<Option<Handler>>),
    Stop,
}

/// The thread that answers fastcalls, and the hold others have on it. Dropping it ends the thread.
pub struct Service {
    commands: Sender<Command>,
    bell: Arc<Doorbell>,
    thread: Mutex<Option<JoinHandle<()>>>,
    counters: Arc<CounterFile>,
    last_slot: AtomicU64,
    faults: Receiver<FaultEvent>,
    fault_bell: Arc<Doorbell>,
    watchdog: Mutex<Option<Watchdog>>,
}

impl Service {
    /// Starts it; it counts into `counters`.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: threads, descriptors, a signal number or room for counters ran out.
    pub fn start(counters: Arc<CounterFile>) -> Result<Self> {
        let watchdog = Watchdog::start()?;
        let (commands, queue) = crossbeam_channel::unbounded();
        let (told, faults) = crossbeam_channel::unbounded();
        let bell = Arc::new(Doorbell::create()?);
        let fault_bell = Arc::new(Doorbell::create()?);
        let block = counters.allocate("fastcall_service", "", ServiceCounter::COUNT)?;
        let sink = Sink { told, bell: fault_bell.clone() };
        let thread = spawn(queue, bell.clone(), watchdog.handle(), sink, block)?;
        Ok(Self {
            commands,
            bell,
            thread: Mutex::new(Some(thread)),
            counters,
            last_slot: AtomicU64::new(0),
            faults,
            fault_bell,
            watchdog: Mutex::new(Some(watchdog)),
        })
    }

    /// Serves a slot from now on; `labels` say whose, in the counters.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the slot is not what it should be (the guest's fault). [`Error::Usage`]: `params` are out of
    /// range. [`Error::Machine`]: no room in the counters or the epoll set. [`Error::Closed`].
    pub fn attach(&self, session: u64, parts: SlotParts, params: SlotParams, labels: &str) -> Result<SlotId> {
        let params = params.checked()?;
        let memory = SlotMemory::attach(&parts.ram, parts.offset, parts.length)?;
        let block = self.counters.allocate("fastcall", labels, FastcallCounter::COUNT)?;
        let id = SlotId(self.last_slot.fetch_add(1, Ordering::Relaxed) + 1);
        let slot = Box::new(Slot {
            id,
            session,
            server: Server::new(memory),
            kick: parts.kick,
            call: parts.call,
            params,
            parking: Parking::new(params.spin_us),
            target: None,
            data: [0; DATA_BYTES],
            room: [0; DATA_BYTES],
            block,
        });
        self.ask(|reply| Command::Attach(slot, reply))??;
        Ok(id)
    }

    /// Lets go of a slot: when this returns `Ok`, its memory is not touched any more.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is no such slot. [`Error::Busy`]: a handler takes too long. [`Error::Closed`].
    pub fn detach(&self, slot: SlotId) -> Result<()> {
        let found = self.ask(|reply| Command::Detach(slot, reply))?;
        found.map(drop).ok_or_else(|| no_slot(slot))
    }

    /// Changes how a slot is served.
    ///
    /// # Errors
    ///
    /// As [`Self::detach`], and [`Error::Usage`]: `params` are out of range.
    pub fn set(&self, slot: SlotId, params: SlotParams) -> Result<()> {
        let params = params.checked()?;
        if self.ask(|reply| Command::Set(slot, params, reply))? { Ok(()) } else { Err(no_slot(slot)) }
    }

    /// Has `handler` answer the fastcalls of `session` to the open device `device`.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`]: another does. [`Error::Busy`]: a handler takes too long. [`Error::Closed`].
    pub fn register(&self, session: u64, device: u32, handler: Arc<dyn FastHandler>) -> Result<()> {
        if self.ask(|reply| Command::Register(session, device, handler, reply))? {
            return Ok(());
        }
        Err(Error::Exists(format!("session {session} has a fast handler for device {device:#x} already")))
    }

    /// Takes a handler away: when this returns `Ok`, it is not called any more. `false`: there was none.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`]: a handler takes too long. [`Error::Closed`].
    pub fn unregister(&self, session: u64, device: u32) -> Result<bool> {
        Ok(self.ask(|reply| Command::Unregister(session, device, reply))?.is_some())
    }

    /// What broke since the last call.
    #[must_use]
    pub fn take_faults(&self) -> Vec<FaultEvent> {
        self.fault_bell.quiet();
        self.faults.try_iter().collect()
    }

    /// Readable while [`Self::take_faults`] has something to tell. Belongs to the service: do not read or close it.
    #[must_use]
    pub fn fault_fd(&self) -> RawFd {
        self.fault_bell.raw()
    }

    /// Ends the thread; harmless when it was ended. Everything else answers [`Error::Closed`] from now on.
    pub fn close(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = self.commands.send(Command::Stop);
            let _ = self.bell.ring();
            let _ = thread.join();
            lock(&self.watchdog).take();
        }
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.commands.send(command(reply)).map_err(|_| Error::Closed("the fastcall service"))?;
        self.bell.ring()?;
        answer.recv_timeout(ANSWER_DEADLINE).map_err(|error| {
            if error.is_timeout() {
                Error::Busy(format!("a fast handler keeps its thread for more than {} s", ANSWER_DEADLINE.as_secs()))
            } else {
                Error::Closed("the fastcall service")
            }
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

fn no_slot(slot: SlotId) -> Error {
    Error::NotFound(format!("there is no fastcall slot {}", slot.0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(
    commands: Receiver<Command>,
    bell: Arc<Doorbell>,
    watchdog: WatchdogHandle,
    sink: Sink,
    block: Block,
) -> Result<JoinHandle<()>> {
    let (started, outcome) = crossbeam_channel::bounded(1);
    let run = move || match watchdog.enlist().and_then(|ringer| Runner::new(commands, bell, ringer, sink, block)) {
        Ok(runner) => {
            let _ = started.send(Ok(()));
            runner.run();
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    };
    let thread = thread::Builder::new()
        .name("vbnet-fastcall".into())
        .spawn(run)
        .map_err(|error| Error::machine("start the fastcall service", error))?;
    outcome.recv().map_err(|_| Error::PeerGone("the fastcall service"))??;
    Ok(thread)
}

struct Sink {
    told: Sender<FaultEvent>,
    bell: Arc<Doorbell>,
}

/// One slot, as the thread has it.
struct Slot {
    id: SlotId,
    session: u64,
    server: Server,
    kick: Doorbell,
    call: Doorbell,
    params: SlotParams,
    parking: Parking,
    /// Who was called last: looking it up again costs as much as half a call.
    target: Option<(u32, Handler)>,
    /// The request as it was copied.
    data: Data,
    /// The answer as it is made. Nobody else's: a handler that fills less than it says tells its own guest nothing new.
    room: Data,
    block: Block,
}

impl Slot {
    fn count(&self, counter: FastcallCounter, amount: u64) {
        self.block.add(counter as usize, amount);
    }

    /// Answers one call, if there is one. `true`: there was.
    fn turn(&mut self, handlers: &Handlers, ringer: &Ringer) -> std::result::Result<bool, Fault> {
        let Some(request) = self.server.take(&mut self.data)? else { return Ok(false) };
        self.parking.work();
        let (status, length) = self.answer(request, handlers);
        let own_ns =
            if status == STATUS_UNSERVED { 0 } else { self.target.as_ref().map_or(0, |(_, own)| own.trap_ns()) };
        let trap_ns = self.params.trap_ns.saturating_add(own_ns).min(TRAP_NS_MAX);
        if self.server.answer(status, trap_ns, &self.room[..length]) {
            self.count(FastcallCounter::CallsRung, 1);
            ringer.ring(&self.call)?;
        } else {
            self.count(FastcallCounter::CallsSuppressed, 1);
        }
        Ok(true)
    }

    /// What to answer: a status, and how much of `room`.
    fn answer(&mut self, request: Request, handlers: &Handlers) -> (u32, usize) {
        if !self.params.is_enabled {
            self.count(FastcallCounter::UnservedDisabled, 1);
            return (STATUS_UNSERVED, 0);
        }
        let Some(data) = self.data.get(..request.length as usize) else {
            self.count(FastcallCounter::RefusedTooLong, 1);
            return say(&mut self.room, Errno::MSGSIZE, "a fastcall has less room for data");
        };
        if self.target.as_ref().is_none_or(|(known, _)| *known != request.device) {
            self.target = handlers.get(&(self.session, request.device)).map(|found| (request.device, found.clone()));
        }
        let Some((_, handler)) = &self.target else {
            self.count(FastcallCounter::UnservedNoHandler, 1);
            return (STATUS_UNSERVED, 0);
        };
        self.count(FastcallCounter::Calls, 1);
        let room = &mut self.room;
        match catch_unwind(AssertUnwindSafe(|| handler.call(request.function, data, room))) {
            Ok(Ok(length)) if length <= DATA_BYTES => {
                self.count(FastcallCounter::Bytes, (data.len() + length) as u64);
                (STATUS_DONE, length)
            }
            Ok(Err(refusal)) => {
                self.count(FastcallCounter::Refused, 1);
                say(&mut self.room, refusal.code, &refusal.text)
            }
            Ok(Ok(_)) | Err(_) => {
                self.count(FastcallCounter::Failed, 1);
                say(&mut self.room, Errno::IO, "the device failed to answer")
            }
        }
    }
}

type Handlers = BTreeMap<(u64, u32), Handler>;

/// Puts a sentence where the data goes, cut at a character if it must be.
fn say(room: &mut Data, code: Errno, text: &str) -> (u32, usize) {
    let length = text.floor_char_boundary(DATA_BYTES);
    room[..length].copy_from_slice(&text.as_bytes()[..length]);
    (code.raw_os_error().unsigned_abs(), length)
}

struct Runner {
    handlers: Handlers,
    #[expect(clippy::vec_box, reason = "a slot is a kilobyte, and moves between the active and the parked ones")]
    active: Vec<Box<Slot>>,
    /// Asleep, or ended by a fault: then it is not waited for either.
    parked: HashMap<u64, Box<Slot>>,
    commands: Receiver<Command>,
    bell: Arc<Doorbell>,
    ringer: Ringer,
    sink: Sink,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    start: Instant,
    now_ns: u64,
    block: Block,
    is_over: bool,
}

impl Runner {
    fn new(commands: Receiver<Command>, bell: Arc<Doorbell>, ringer: Ringer, sink: Sink, block: Block) -> Result<Self> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::machine("create an epoll set", errno))?;
        epoll::add(&epoll, &*bell, epoll::EventData::new_u64(COMMAND_TOKEN), epoll::EventFlags::IN)
            .map_err(|errno| Error::machine("wait for commands", errno))?;
        Ok(Self {
            handlers: BTreeMap::new(),
            active: Vec::new(),
            parked: HashMap::new(),
            commands,
            bell,
            ringer,
            sink,
            epoll,
            events: Vec::with_capacity(EVENTS),
            start: Instant::now(),
            now_ns: 0,
            block,
            is_over: false,
        })
    }

    fn run(mut self) {
        let mut heard_ns = 0;
        let mut looks = 0;
        while !self.is_over {
            if self.active.is_empty() {
                self.sleep();
            }
            looks += self.active.len() as u32;
            self.round();
            if looks < CLOCK_LOOKS {
                continue;
            }
            looks = 0;
            self.read_clock();
            self.park_idle();
            if self.now_ns - heard_ns >= HEAR_NS && !self.active.is_empty() {
                heard_ns = self.now_ns;
                self.wait(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
                self.hear();
            }
        }
    }

    fn read_clock(&mut self) {
        self.now_ns = self.start.elapsed().as_nanos() as u64;
    }

    /// Gives every active slot its turn.
    fn round(&mut self) {
        let mut is_busy = false;
        let mut index = 0;
        while let Some(slot) = self.active.get_mut(index) {
            match slot.turn(&self.handlers, &self.ringer) {
                Ok(has_worked) => {
                    is_busy |= has_worked;
                    index += 1;
                }
                Err(fault) => self.end(index, fault),
            }
        }
        let counter = if is_busy { ServiceCounter::BusyRounds } else { ServiceCounter::IdleRounds };
        self.block.add(counter as usize, 1);
    }

    /// Looks no more at a slot whose guest broke a rule, and says so.
    fn end(&mut self, index: usize, fault: Fault) {
        let slot = self.active.swap_remove(index);
        slot.count(FastcallCounter::Faults, 1);
        let _ = epoll::delete(&self.epoll, &slot.kick);
        let event = FaultEvent { slot: slot.id, reason: fault.reason(), text: fault.to_string() };
        let _ = self.sink.told.send(event);
        // Ours alone and never blocking; it cannot fail.
        let _ = self.sink.bell.ring();
        self.parked.insert(slot.id.0, slot);
    }

    /// Parks every active slot that has been idle for too long.
    fn park_idle(&mut self) {
        let mut index = 0;
        while let Some(slot) = self.active.get_mut(index) {
            if slot.parking.is_due(self.now_ns) && slot.server.arm() {
                slot.count(FastcallCounter::Parks, 1);
                let slot = self.active.swap_remove(index);
                self.parked.insert(slot.id.0, slot);
            } else {
                index += 1;
            }
        }
        self.block.set(ServiceCounter::ActiveSlots as usize, self.active.len() as u64);
    }

    /// Nobody is active: waits for the first who is.
    fn sleep(&mut self) {
        self.block.add(ServiceCounter::Sleeps as usize, 1);
        self.block.set(ServiceCounter::ActiveSlots as usize, 0);
        let started_ns = self.block.start(ServiceCounter::AsleepNanoseconds as usize);
        self.wait(None);
        self.block.stop(ServiceCounter::AsleepNanoseconds as usize, started_ns);
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
        if let Some(mut slot) = self.parked.remove(&token) {
            slot.count(FastcallCounter::Kicks, 1);
            slot.count(FastcallCounter::Wakeups, 1);
            slot.server.disarm();
            slot.parking.wake(self.now_ns);
            self.active.push(slot);
        } else if let Some(slot) = self.active.iter().find(|slot| slot.id.0 == token) {
            slot.count(FastcallCounter::Kicks, 1);
        }
    }

    fn obey(&mut self) {
        self.bell.quiet();
        while let Ok(command) = self.commands.try_recv() {
            self.block.add(ServiceCounter::Commands as usize, 1);
            self.execute(command);
        }
        self.block.set(ServiceCounter::Slots as usize, (self.active.len() + self.parked.len()) as u64);
        self.block.set(ServiceCounter::Handlers as usize, self.handlers.len() as u64);
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Attach(slot, reply) => {
                let id = slot.id;
                let outcome = self.add(slot);
                if !answer(&reply, outcome) {
                    drop(self.remove(id));
                }
            }
            Command::Detach(id, reply) => {
                answer(&reply, self.remove(id));
            }
            Command::Set(id, params, reply) => {
                answer(&reply, self.set(id, params));
            }
            Command::Register(session, device, handler, reply) => {
                let is_new = !self.handlers.contains_key(&(session, device));
                if is_new {
                    self.handlers.insert((session, device), handler);
                }
                if !answer(&reply, is_new) && is_new {
                    self.handlers.remove(&(session, device));
                }
            }
            Command::Unregister(session, device, reply) => {
                let handler = self.handlers.remove(&(session, device));
                for slot in self.active.iter_mut().chain(self.parked.values_mut()) {
                    slot.target.take_if(|(known, _)| slot.session == session && *known == device);
                }
                answer(&reply, handler);
            }
            Command::Stop => self.is_over = true,
        }
    }

    fn add(&mut self, mut slot: Box<Slot>) -> Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &slot.kick, epoll::EventData::new_u64(slot.id.0), flags)
            .map_err(|errno| Error::machine("wait for a fastcall slot", errno))?;
        slot.parking.wake(self.now_ns);
        self.active.push(slot);
        Ok(())
    }

    fn remove(&mut self, id: SlotId) -> Option<Box<Slot>> {
        let slot = match self.active.iter().position(|slot| slot.id == id) {
            Some(index) => self.active.swap_remove(index),
            None => self.parked.remove(&id.0)?,
        };
        let _ = epoll::delete(&self.epoll, &slot.kick);
        Some(slot)
    }

    fn set(&mut self, id: SlotId, params: SlotParams) -> bool {
        let found = self.active.iter_mut().chain(self.parked.values_mut()).find(|slot| slot.id == id);
        let is_found = found.is_some();
        if let Some(slot) = found {
            slot.params = params;
            slot.parking.set_threshold(params.spin_us);
        }
        is_found
    }
}

/// `false`: whoever asked gave up waiting, and takes it for not done.
fn answer<T>(reply: &Sender<T>, value: T) -> bool {
    reply.try_send(value).is_ok()
}
