//! Signals of a host: lines with names, priorities and routes, made, changed and destroyed while everything runs.
//!
//! ```text
//!            devices' workers ─┐                               ┌─▶ a guest's controller, at the line's priority
//!   outside eventfd ─▶ signal  ├──▶ Line ── route ─────────────┼─▶ an eventfd in anybody's hands
//!   guest's outbox ──▶ thread ─┘                               └─▶ nowhere: latched
//! ```
//!
//! [`SignalTable`] is the control face: nothing in it is on the way of a raise, which goes through an `Arc<Line>` that
//! the raiser keeps. What a guest owns here (lines, controller, outbox, sources) is removed by its owner, the session, when
//! the guest dies; a raise that is under way then meets a retired controller and is latched. Source: vbus dynamic signals.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::fs::{FileType, fstat, readlink};

pub use self::apic::{Apic, Apics, Interrupt};
pub use self::controller::{Controller, LevelPart, LevelStatus, VCPUS_MAX, WakeHook};
use self::latency::WakeupTimes;
pub use self::latency::{OutboxLatency, WakeupLatency};
pub use self::line::{Caller, Line, LineCounter, LineId, Outcome, Target};
use self::service::{Command, Grants, Held, Outbox, Service};
pub use self::service::{OutboxCounter, SignalEvent};
use crate::error::{Error, Result};
use crate::shm::counters::CounterFile;
use crate::shm::doorbell::Doorbell;
use crate::shm::intc::{LevelMemory, PRIORITIES, Taker, VECTORS, Way};
use crate::shm::labels;

pub mod apic;
pub(crate) mod controller;
pub(crate) mod latency;
pub(crate) mod line;
pub(crate) mod service;

/// Longest name of a line in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Lines of one host at most.
pub const LINES_MAX: usize = 1 << 20;
/// How long the signal thread may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// What is known of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineInfo {
    /// Its number.
    pub id: LineId,
    /// Its name.
    pub name: String,
    /// The guest it belongs to; empty: the host.
    pub guest: String,
    /// The device it comes from.
    pub device: String,
    /// 0 to 7.
    pub priority: u32,
    /// Where it leads.
    pub route: Route,
    /// The host masked it.
    pub is_masked: bool,
    /// A raise waits for it to be unmasked or routed.
    pub is_latched: bool,
    /// Its guest made the doorbell behind it block.
    pub is_blocked: bool,
    /// Its counters, in the order of [`LineCounter`].
    pub counts: [u64; LineCounter::COUNT],
}

/// Where a line leads, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Nowhere.
    Nowhere,
    /// To an eventfd.
    Bell,
    /// To a vector of an emulated controller.
    Apic {
        /// The vector.
        vector: u32,
    },
    /// To a vector of a guest's controller.
    Vector {
        /// The guest.
        guest: String,
        /// Its vCPU.
        vcpu: u32,
        /// The vector.
        vector: u32,
    },
}

#[derive(Default)]
struct Book {
    lines: BTreeMap<LineId, Arc<Line>>,
    names: HashMap<(String, String), LineId>,
    /// What lines of one device share, and how many lines do.
    devices: HashMap<(String, String), (u64, usize)>,
    controllers: BTreeMap<u64, Arc<Controller>>,
    outboxes: BTreeMap<u64, Grants>,
    sources: BTreeMap<u64, LineId>,
    last_id: u64,
    service: Option<Service>,
    is_closed: bool,
}

/// Every signal of one host node.
pub struct SignalTable {
    counters: Arc<CounterFile>,
    book: Mutex<Book>,
    told: Sender<SignalEvent>,
    events: Receiver<SignalEvent>,
    events_bell: Arc<Doorbell>,
}

impl SignalTable {
    /// An empty table, which counts into `counters`. The signal thread starts with the first need of it.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no descriptor is free.
    pub fn new(counters: Arc<CounterFile>) -> Result<Self> {
        let (told, events) = crossbeam_channel::unbounded();
        Ok(Self { counters, book: Mutex::default(), told, events, events_bell: Arc::new(Doorbell::create()?) })
    }

    fn book(&self) -> Result<MutexGuard<'_, Book>> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        if book.is_closed { Err(Error::Closed("the signal table")) } else { Ok(book) }
    }

    fn service<'book>(&self, book: &'book mut Book) -> Result<&'book Service> {
        if book.service.is_none() {
            book.service = Some(Service::start(self.told.clone(), self.events_bell.clone())?);
        }
        book.service.as_ref().ok_or(Error::Closed("the signal thread"))
    }

    /// Makes a line, which leads nowhere yet.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: a name or priority cannot be. [`Error::Exists`]: its guest has a line of that name.
    /// [`Error::Machine`]: too many lines, or the counters file is full.
    pub fn create(&self, guest: &str, device: &str, name: &str, priority: u32) -> Result<Arc<Line>> {
        check_priority(priority)?;
        let is_odd = |character: char| character.is_control() || matches!(character, ',' | '=');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(is_odd) {
            return Err(Error::Usage(format!(
                "a signal's name has 1 to {NAME_BYTES_MAX} bytes, no control character, comma or equals sign; got {name:?}"
            )));
        }
        let mut book = self.book()?;
        let key = (guest.to_owned(), name.to_owned());
        if book.names.contains_key(&key) {
            return Err(Error::Exists(format!("signal {name:?} of {guest:?} exists already")));
        }
        if book.lines.len() >= LINES_MAX {
            return Err(Error::machine("find room for a signal", rustix::io::Errno::NOSPC));
        }
        book.last_id += 1;
        let id = LineId(book.last_id);
        let number = id.to_string();
        let labels = labels::text(&[("guest", guest), ("device", device), ("signal", name), ("id", &number)]);
        let block = self.counters.allocate("signal", &labels, LineCounter::COUNT)?;
        let (device_key, users) = book.devices.entry((guest.to_owned(), device.to_owned())).or_insert((id.0, 0));
        *users += 1;
        let device_key = *device_key;
        let names = [name.to_owned(), guest.to_owned(), device.to_owned()];
        let line = Arc::new(Line::new(id, names, device_key, priority, block));
        book.names.insert(key, id);
        book.lines.insert(id, line.clone());
        Ok(line)
    }

    /// The line of that number.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is none.
    pub fn line(&self, id: LineId) -> Result<Arc<Line>> {
        find(&self.book()?.lines, id)
    }

    /// Destroys a line: it leads nowhere, outboxes and sources that raised it do no more, and raisers that still hold it
    /// raise in vain.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is none of that number.
    pub fn destroy(&self, id: LineId) -> Result<()> {
        let mut book = self.book()?;
        let line = book.lines.remove(&id).ok_or_else(|| no_line(id))?;
        book.names.remove(&(line.guest().to_owned(), line.name().to_owned()));
        if let Entry::Occupied(mut device) = book.devices.entry((line.guest().to_owned(), line.device().to_owned())) {
            device.get_mut().1 -= 1;
            if device.get().1 == 0 {
                device.remove();
            }
        }
        for grants in book.outboxes.values() {
            grants.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, granted| granted.id() != id);
        }
        let sources: Vec<u64> =
            book.sources.iter().filter(|(_, driven)| **driven == id).map(|(token, _)| *token).collect();
        book.sources.retain(|_, driven| *driven != id);
        let _ = line.route(Target::Nowhere);
        let asked: Vec<_> = sources.into_iter().map(|token| book.ask_back(token)).collect();
        drop(book);
        for answer in asked {
            // A late answer frees what it brings by itself.
            drop(answer.and_then(|answer| hear(&answer)));
        }
        Ok(())
    }

    /// Leads a line to an eventfd.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn route_to_bell(&self, id: LineId, bell: Doorbell) -> Result<()> {
        self.route(id, Target::Bell(bell))
    }

    /// Leads a line to a vector of a guest's controller.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: no such line, controller or vCPU. [`Error::Usage`]: no such vector.
    pub fn route_to_vector(&self, id: LineId, controller: u64, vcpu: u32, vector: u32) -> Result<()> {
        if vector >= VECTORS {
            return Err(Error::Usage(format!("a vector is 0 to {}; got {vector}", VECTORS - 1)));
        }
        let controller = self.controller(controller)?;
        if vcpu >= controller.vcpus() {
            return Err(Error::NotFound(format!(
                "guest {:?} has {} vCPUs, numbered from 0; got {vcpu}",
                controller.guest(),
                controller.vcpus()
            )));
        }
        self.route(id, Target::Vector { controller, vcpu, vector })
    }

    /// Leads a line to a vector of an emulated controller.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: no such line. [`Error::Usage`]: no such vector.
    pub fn route_to_apic(&self, id: LineId, apic: Arc<Apic>, vector: u32) -> Result<()> {
        if vector >= VECTORS {
            return Err(Error::Usage(format!("a vector is 0 to {}; got {vector}", VECTORS - 1)));
        }
        self.route(id, Target::Apic { apic, vector })
    }

    /// Leads a line nowhere: raises are latched until it is routed again.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn route_nowhere(&self, id: LineId) -> Result<()> {
        self.route(id, Target::Nowhere)
    }

    fn route(&self, id: LineId, target: Target) -> Result<()> {
        let mut book = self.book()?;
        let line = find(&book.lines, id)?;
        if line.route(target) { self.redeliver(&mut book, line) } else { Ok(()) }
    }

    /// Has a raise that was latched delivered; it is latched again when nobody can.
    fn redeliver(&self, book: &mut Book, line: Arc<Line>) -> Result<()> {
        let sent = self.service(book).and_then(|service| service.send(Command::Redeliver(line.clone())));
        if sent.is_err() {
            line.latch();
        }
        sent
    }

    /// Changes a line's priority, for raises to come.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Usage`]: no such priority.
    pub fn set_priority(&self, id: LineId, priority: u32) -> Result<()> {
        check_priority(priority)?;
        self.line(id)?.set_priority(priority);
        Ok(())
    }

    /// Masks a line, or unmasks it and delivers what was raised meanwhile, as one raise.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn set_masked(&self, id: LineId, is_masked: bool) -> Result<()> {
        let mut book = self.book()?;
        let line = find(&book.lines, id)?;
        if line.set_masked(is_masked) { self.redeliver(&mut book, line) } else { Ok(()) }
    }

    /// Raises a line soon, from a thread that must not wait for doorbells. Several requests may become one raise.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Machine`]: the signal thread cannot be started.
    pub fn raise_soon(&self, id: LineId) -> Result<()> {
        let mut book = self.book()?;
        let line = find(&book.lines, id)?;
        // A request that is noted but never sent would swallow all later ones.
        let service = self.service(&mut book)?;
        if line.enqueue() { service.send(Command::Raise(line)) } else { Ok(()) }
    }

    /// Every line, oldest first.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn list(&self) -> Result<Vec<LineInfo>> {
        let book = self.book()?;
        book.controllers.values().for_each(|controller| controller.settle());
        Ok(book.lines.values().map(|line| describe(line)).collect())
    }

    // ---- controllers ---------------------------------------------------------------------------------------------

    /// Takes a guest's controller into use: eight levels a vCPU, in the order of priorities.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: no vCPU, or more than [`VCPUS_MAX`].
    pub fn controller_attach(&self, guest: &str, vcpus: Vec<[LevelPart; PRIORITIES as usize]>) -> Result<u64> {
        if vcpus.is_empty() || vcpus.len() > VCPUS_MAX {
            return Err(Error::Usage(format!("a controller has 1 to {VCPUS_MAX} vCPUs; got {}", vcpus.len())));
        }
        let mut book = self.book()?;
        book.last_id += 1;
        let id = book.last_id;
        book.controllers.insert(id, Arc::new(Controller::new(guest.to_owned(), vcpus, self.wakeup_times(guest))));
        Ok(id)
    }

    fn wakeup_times(&self, guest: &str) -> WakeupTimes {
        let labels = labels::text(&[("guest", guest)]);
        WakeupTimes::new(self.counters.allocate_spare("signal_latency", &labels, WakeupLatency::WORDS))
    }

    /// Emulated controllers of a guest, one vCPU for each doorbell. They are the caller's; lines lead there by
    /// [`Self::route_to_apic`].
    pub fn apics(&self, guest: &str, bells: impl IntoIterator<Item = Doorbell>) -> Apics {
        Apics::new(bells, self.wakeup_times(guest))
    }

    /// The controller of that number.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn controller(&self, id: u64) -> Result<Arc<Controller>> {
        let found = self.book()?.controllers.get(&id).cloned();
        found.ok_or_else(|| Error::NotFound(format!("there is no controller {id}")))
    }

    /// Lets go of a controller; lines that led to it lead nowhere.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn controller_detach(&self, id: u64) -> Result<()> {
        let mut book = self.book()?;
        let controller =
            book.controllers.remove(&id).ok_or_else(|| Error::NotFound(format!("there is no controller {id}")))?;
        controller.retire();
        for line in book.lines.values() {
            let leads_here = match &*line.target() {
                Target::Vector { controller: target, .. } => Arc::ptr_eq(target, &controller),
                _ => false,
            };
            if leads_here {
                let _ = line.route(Target::Nowhere);
            }
        }
        Ok(())
    }

    // ---- what drives lines from outside ----------------------------------------------------------------------------

    /// Lets an eventfd, or the end of a socket, raise a line: each write to it is a raise, hang-up of a socket detaches it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: no such line. [`Error::Usage`]: the descriptor is neither.
    pub fn source_attach(&self, id: LineId, file: OwnedFd) -> Result<u64> {
        let is_socket = fstat(&file).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Socket);
        if !is_socket && !is_eventfd(&file) {
            return Err(Error::Usage("a signal is driven by an eventfd or a connected socket; this is neither".into()));
        }
        let mut book = self.book()?;
        let line = find(&book.lines, id)?;
        book.last_id += 1;
        let token = book.last_id;
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.service(&mut book)?.send(Command::AddSource { token, file, is_socket, line, reply })?;
        book.sources.insert(token, id);
        drop(book);
        self.confirm(token, &answer)
    }

    /// Lets go of a source. That it hung up already is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn source_detach(&self, source: u64) -> Result<()> {
        let mut book = self.book()?;
        if book.sources.remove(&source).is_some() {
            let asked = book.ask_back(source);
            drop(book);
            drop(asked.and_then(|answer| hear(&answer)));
        }
        Ok(())
    }

    /// Takes a guest's outbox into use: what it raises there raises the lines that [`Self::grant`] names.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no thread, descriptor or counters are left.
    pub fn outbox_attach(&self, guest: &str, memory: LevelMemory, kick: Doorbell) -> Result<u64> {
        let mut book = self.book()?;
        let labels = labels::text(&[("guest", guest)]);
        let block = self.counters.allocate("outbox", &labels, OutboxCounter::COUNT)?;
        let times = self.counters.allocate_spare("outbox_latency", &labels, OutboxLatency::WORDS);
        book.last_id += 1;
        let token = book.last_id;
        let grants = Grants::default();
        let outbox = Box::new(Outbox {
            taker: Taker::new(memory, Way::ToHost),
            kick,
            grants: grants.clone(),
            block,
            times: WakeupTimes::new(times),
            is_active: false,
            last_work: Instant::now(),
        });
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.service(&mut book)?.send(Command::AddOutbox { token, outbox, reply })?;
        book.outboxes.insert(token, grants);
        drop(book);
        self.confirm(token, &answer)
    }

    /// Waits, without the book, for the signal thread to take what was sent under `token`; takes it back if it did not.
    fn confirm(&self, token: u64, answer: &Receiver<Result<()>>) -> Result<u64> {
        let added = hear(answer).and_then(|added| added);
        if added.is_err()
            && let Ok(mut book) = self.book()
        {
            book.sources.remove(&token);
            book.outboxes.remove(&token);
            // If it comes late it is let go of then, for the thread does one thing after the other.
            let _ = book.ask_back(token);
        }
        added.map(|()| token)
    }

    /// Lets an outbox raise a line, by the number its guest will use.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: no such outbox or line. [`Error::Usage`]: no such number. [`Error::Exists`]: it is in use.
    pub fn grant(&self, outbox: u64, number: u32, line: LineId) -> Result<()> {
        if number >= VECTORS {
            return Err(Error::Usage(format!("an outbox has numbers 0 to {}; got {number}", VECTORS - 1)));
        }
        let book = self.book()?;
        let line = find(&book.lines, line)?;
        let grants =
            book.outboxes.get(&outbox).ok_or_else(|| Error::NotFound(format!("there is no outbox {outbox}")))?;
        match grants.lock().unwrap_or_else(PoisonError::into_inner).entry(number) {
            Entry::Occupied(_) => Err(Error::Exists(format!("number {number} of this outbox raises a signal already"))),
            Entry::Vacant(free) => {
                free.insert(line);
                Ok(())
            }
        }
    }

    /// Takes a grant back; that it was taken back before is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn revoke(&self, outbox: u64, number: u32) -> Result<()> {
        if let Some(grants) = self.book()?.outboxes.get(&outbox) {
            grants.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        }
        Ok(())
    }

    /// Lets go of an outbox. After `Ok` its memory is not touched any more.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Machine`]: the signal thread did not answer in time.
    pub fn outbox_detach(&self, outbox: u64) -> Result<()> {
        let mut book = self.book()?;
        if book.outboxes.remove(&outbox).is_none() {
            return Err(Error::NotFound(format!("there is no outbox {outbox}")));
        }
        let answer = book.ask_back(outbox)?;
        drop(book);
        drop(hear(&answer)?);
        Ok(())
    }

    // ---- what happened ---------------------------------------------------------------------------------------------

    /// What happened since the last call.
    #[must_use]
    pub fn take_events(&self) -> Vec<SignalEvent> {
        self.events_bell.quiet();
        let events: Vec<_> = self.events.try_iter().collect();
        if let Ok(mut book) = self.book() {
            for event in &events {
                if let SignalEvent::SourceGone { source, .. } = event {
                    book.sources.remove(source);
                }
            }
        }
        events
    }

    /// The number of a descriptor that is readable while [`Self::take_events`] has something to tell. Do not read it.
    #[must_use]
    pub fn events_fd(&self) -> RawFd {
        self.events_bell.raw()
    }

    /// Ends the signal thread and forgets every line. Harmless when closed already.
    pub fn close(&self) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *book);
        book.is_closed = true;
        drop(book);
        old.controllers.values().for_each(|controller| controller.retire());
        for line in old.lines.values() {
            let _ = line.route(Target::Nowhere);
        }
    }
}

impl fmt::Debug for SignalTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalTable").finish_non_exhaustive()
    }
}

impl Book {
    /// Asks the signal thread for what it holds under `token`. Hear the answer without the book: the thread may be in the
    /// middle of a doorbell that blocks, and whoever raises soon must not wait for that.
    fn ask_back(&self, token: u64) -> Result<Receiver<Option<Held>>> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        let service = self.service.as_ref().ok_or(Error::Closed("the signal thread"))?;
        service.send(Command::Remove { token, reply })?;
        Ok(answer)
    }
}

fn hear<T>(answer: &Receiver<T>) -> Result<T> {
    answer.recv_timeout(ANSWER_DEADLINE).map_err(|_| late())
}

fn find(lines: &BTreeMap<LineId, Arc<Line>>, id: LineId) -> Result<Arc<Line>> {
    lines.get(&id).cloned().ok_or_else(|| no_line(id))
}

fn no_line(id: LineId) -> Error {
    Error::NotFound(format!("there is no signal {id}"))
}

fn late() -> Error {
    Error::machine("hear from the signal thread in time", rustix::io::Errno::TIMEDOUT)
}

fn check_priority(priority: u32) -> Result<()> {
    if priority < PRIORITIES {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "a priority is 0 to {}, {} the most urgent; got {priority}",
        PRIORITIES - 1,
        PRIORITIES - 1
    )))
}

fn is_eventfd(file: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file.as_fd()));
    readlink(path.as_str(), Vec::new()).is_ok_and(|target| target.to_bytes().starts_with(b"anon_inode:[eventfd"))
}

fn describe(line: &Line) -> LineInfo {
    let route = match &*line.target() {
        Target::Nowhere => Route::Nowhere,
        Target::Bell(_) => Route::Bell,
        Target::Apic { vector, .. } => Route::Apic { vector: *vector },
        Target::Vector { controller, vcpu, vector } => {
            Route::Vector { guest: controller.guest().to_owned(), vcpu: *vcpu, vector: *vector }
        }
    };
    let mut counts = [0; LineCounter::COUNT];
    counts.iter_mut().zip(line.block()).for_each(|(count, value)| *count = value);
    LineInfo {
        id: line.id(),
        name: line.name().to_owned(),
        guest: line.guest().to_owned(),
        device: line.device().to_owned(),
        priority: line.priority(),
        route,
        is_masked: line.is_masked(),
        is_latched: line.is_latched(),
        is_blocked: line.is_blocked(),
        counts,
    }
}
