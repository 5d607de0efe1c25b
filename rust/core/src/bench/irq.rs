//! What signals cost: a raise, a wake-up, and how long an urgent one waits while others flood.
//!
//! ```text
//!   near core: the guests                              far core: the host
//!   flooders ×8 ── outboxes, numbers of their own ──▶  signal thread ── lines of priority 0 ──┐
//!   level 0: a handler of 1 µs each  ◀─────────────────────────────────────────────────────────┤
//!   level 7: notes now − raised_at   ◀── the line measured ── pacer, one at a time ─────────────┘
//! ```
//!
//! The real things are measured: `SignalTable`, its thread, lines, controller, levels and outboxes, in one process whose
//! threads are kept on their cores. The pacer stamps CLOCK_MONOTONIC and raises; the handler looks at the same clock. It
//! raises again only when the last one was handled, so no sample hides behind another.

use std::hint::spin_loop;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::duo::{Cores, pin};
use super::{Meter, Windows};
use crate::error::{Error, Result};
use crate::fastcall::{Service, SlotParams, SlotParts};
use crate::guest::fastcall::FastCaller;
use crate::guest::intc::{Level, Outbox, monotonic_ns};
use crate::shm::counters::CounterFile;
use crate::shm::doorbell::Doorbell;
use crate::shm::fastcall::DATA_BYTES;
use crate::shm::intc::{LEVEL_BYTES, LevelMemory, PRIORITIES};
use crate::shm::layout::FASTCALL_SLOT_BYTES;
use crate::shm::layout::RAM_HEADER_BYTES;
use crate::shm::region::{RAM_MIN, Ram};
use crate::signals::apic::{self, Apics};
use crate::signals::{LevelPart, Line, LineCounter, SignalTable};
use crate::worker::watchdog::{Ringer, Watchdog};

/// Signals that each flooding guest raises, one after the other.
const FLOOD_SIGNALS: u32 = 16;
/// What a flooded handler does.
const HANDLER: Duration = Duration::from_micros(1);
/// How long the pacer waits for one raise to be handled; without priorities a flood may hold it up for long.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a server looks whether it is over.
const LOOK: Duration = Duration::from_millis(100);
const BUDGET: u32 = 64;
const COUNTER_BYTES: usize = 1 << 20;
/// Signals that events are spread over.
const EVENT_SIGNALS: u32 = 64;
/// What is worth sleeping for between two events.
const SLEEPABLE: Duration = Duration::from_micros(200);
const APIC_SESSION: u64 = 1;
const APIC_DEVICE: u32 = 1;
/// The vCPU of the bench, as calls name it.
const VCPU: [u8; 4] = [0; 4];
/// How long a trapped guest spins for its answer.
const TRAP_SPIN_US: u32 = 50;
/// The priority of the signal measured, when there are priorities.
pub const URGENT: u32 = PRIORITIES - 1;
/// The vector that is measured; flooders' vectors follow it.
pub const MEASURED: u32 = 0;
const LOOK_EVERY: u32 = 1024;

/// What happens while latencies are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// Guests that raise signals of priority 0 without a pause.
    pub guests: u32,
    /// The signal measured has priority 7; otherwise it is one among those of priority 0.
    pub is_prioritised: bool,
}

/// How long each raise took until its handler ran, in nanoseconds, as they came.
///
/// # Errors
///
/// [`Error::Machine`]: no thread, memory or core; [`Error::PeerGone`]: a raise was not handled within ten seconds.
pub fn latencies_ns(cores: Cores, flood: Flood, pause: Duration, length: Duration) -> Result<Vec<u64>> {
    let range = Range::new(cores, flood)?;
    // A thread that the flood has not let run yet is not in the real-time class either.
    let ready = Arc::new(Barrier::new(3));
    let servers = [0, URGENT].map(|priority| {
        let level = range.level(priority);
        let (board, ready) = (range.board.clone(), ready.clone());
        thread::spawn(move || {
            let pinned = pin(cores.near);
            become_realtime(priority);
            ready.wait();
            if let Ok(level) = level
                && pinned.is_ok()
            {
                serve(level, &board);
            }
        })
    });
    ready.wait();
    let samples = range.pace(pause, length);
    drop(range);
    for server in servers {
        let _ = server.join();
    }
    samples
}

/// Nanoseconds of raising a signal that is pending already, one sample a window.
///
/// # Errors
///
/// As [`latencies_ns`].
pub fn raise_pending_ns(cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    on_core(cores.far, move || {
        let bench = Bench::new()?;
        let line = bench.line("measured", 0, MEASURED)?;
        let ringer = bench.enlist()?;
        line.raise(&ringer)?;
        let mut meter = Meter::start(windows, LOOK_EVERY);
        while meter.count(1) {
            line.raise(&ringer)?;
        }
        if line.count(LineCounter::Wakeups) > 1 {
            return Err(Error::Usage("a raise of what is pending woke somebody".into()));
        }
        Ok(meter.into_nanoseconds())
    })
}

/// Nanoseconds of one write to an eventfd that nobody reads: what each raise costs without a controller.
///
/// # Errors
///
/// As [`latencies_ns`].
pub fn eventfd_write_ns(cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    on_core(cores.far, move || {
        let bell = Doorbell::create()?;
        let mut meter = Meter::start(windows, LOOK_EVERY);
        while meter.count(1) {
            bell.ring()?;
        }
        Ok(meter.into_nanoseconds())
    })
}

/// Doorbells rung for `raises` raises of `signals` signals in turn, while whoever serves them sleeps all the time.
///
/// # Errors
///
/// As [`latencies_ns`].
pub fn wakeups_of(raises: u64, signals: u32) -> Result<u64> {
    let run = move || {
        let bench = Bench::new()?;
        let lines =
            (0..signals).map(|number| bench.line(&format!("s{number}"), 0, number)).collect::<Result<Vec<_>>>()?;
        let level = bench.level(0)?;
        let ringer = bench.enlist()?;
        if !level.arm() {
            return Err(Error::Usage("a signal was pending before the first raise".into()));
        }
        for line in lines.iter().cycle().take(usize::try_from(raises).unwrap_or(usize::MAX)) {
            line.raise(&ringer)?;
        }
        Ok(lines.iter().map(|line| line.count(LineCounter::Wakeups)).sum())
    };
    thread::spawn(run).join().map_err(|_| Error::PeerGone("the bench"))?
}

/// Runs `work` on a thread of its own that stays on `core`, as do the threads it starts unless they move.
fn on_core<T: Send + 'static>(core: usize, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let run = move || pin(core).and_then(|()| work());
    thread::spawn(run).join().map_err(|_| Error::PeerGone("the bench"))?
}

/// A host with one guest's controller, on the calling thread.
struct Bench {
    table: SignalTable,
    controller: u64,
    ram: Arc<Ram>,
    bells: Vec<Doorbell>,
    watchdog: Watchdog,
}

impl Bench {
    fn new() -> Result<Self> {
        let watchdog = Watchdog::start()?;
        let table = SignalTable::new(Arc::new(CounterFile::create(None, COUNTER_BYTES)?))?;
        let bytes = RAM_HEADER_BYTES as usize + LEVEL_BYTES * PRIORITIES as usize;
        let ram = Ram::create("vbnet-bench", bytes as u64)?;
        let bells = (0..PRIORITIES).map(|_| Doorbell::create()).collect::<Result<Vec<_>>>()?;
        let parts = bells.iter().zip(0..).map(|(bell, priority)| {
            let memory = LevelMemory::format(&ram, place(priority))?;
            Ok(LevelPart { memory, bell: copy(bell)? })
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let parts = <[LevelPart; PRIORITIES as usize]>::try_from(parts)
            .map_err(|_| Error::Usage("a vCPU has eight levels".into()))?;
        let controller = table.controller_attach("bench", vec![parts])?;
        Ok(Self { table, controller, ram, bells, watchdog })
    }

    fn line(&self, name: &str, priority: u32, vector: u32) -> Result<Arc<Line>> {
        let line = self.table.create("bench", "bench", name, priority)?;
        self.table.route_to_vector(line.id(), self.controller, 0, vector)?;
        Ok(line)
    }

    /// Lets the calling thread ring, and take no other signal from now on.
    fn enlist(&self) -> Result<Ringer> {
        self.watchdog.handle().enlist()
    }

    fn level(&self, priority: u32) -> Result<Level> {
        let memory = LevelMemory::attach(&self.ram, place(priority), LEVEL_BYTES as u32)?;
        Ok(Level::new(memory, copy(&self.bells[priority as usize])?))
    }
}

fn place(priority: u32) -> u32 {
    RAM_HEADER_BYTES + priority * LEVEL_BYTES as u32
}

fn copy(bell: &Doorbell) -> Result<Doorbell> {
    let file = bell.as_fd().try_clone_to_owned().map_err(|error| Error::machine("copy a doorbell", error))?;
    Ok(Doorbell::from_fd(file))
}

/// What pacer and handlers share.
#[derive(Debug, Default)]
pub struct Board {
    /// When the signal measured was raised; 0: it was handled.
    raised_at_ns: AtomicU64,
    taken_ns: AtomicU64,
    is_over: AtomicBool,
}

impl Board {
    /// The handler of the signal measured runs.
    pub fn handled(&self) {
        let raised = self.raised_at_ns.load(Ordering::SeqCst);
        self.taken_ns.store(monotonic_ns().saturating_sub(raised), Ordering::SeqCst);
        self.raised_at_ns.store(0, Ordering::SeqCst);
    }

    /// Servers may go home.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// A host, a guest whose levels somebody serves, and guests that flood them: where latencies are taken.
///
/// Whoever serves level 0 and [`URGENT`] calls [`Board::handled`] for vector [`MEASURED`]; dropping it ends the flood, and
/// servers that look at [`Board::is_over`].
pub struct Range {
    bench: Arc<Bench>,
    board: Arc<Board>,
    measured: Arc<Line>,
    far: usize,
    flooders: Vec<JoinHandle<()>>,
}

impl Range {
    /// Sets it up and starts the flood.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no thread, memory or core.
    pub fn new(cores: Cores, flood: Flood) -> Result<Self> {
        let (bench, measured) = on_core(cores.far, move || {
            let bench = Bench::new()?;
            let measured = bench.line("measured", if flood.is_prioritised { URGENT } else { 0 }, MEASURED)?;
            Ok((Arc::new(bench), measured))
        })?;
        let mut range = Self { bench, board: Arc::default(), measured, far: cores.far, flooders: Vec::new() };
        for guest in 0..flood.guests {
            let bench = range.bench.clone();
            // The first outbox starts the signal thread, which stays where it was started.
            let outbox = on_core(cores.far, move || flooder(&bench, guest))?;
            let board = range.board.clone();
            range.flooders.push(thread::spawn(move || {
                if pin(cores.near).is_ok() {
                    while !board.is_over() {
                        for number in 0..FLOOD_SIGNALS {
                            let _ = outbox.raise(number);
                        }
                    }
                }
            }));
        }
        Ok(range)
    }

    /// A level, for whoever is to serve it; one taker each.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no descriptor is free.
    pub fn level(&self, priority: u32) -> Result<Level> {
        self.bench.level(priority.min(URGENT))
    }

    /// What pacer and handlers share.
    #[must_use]
    pub const fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Raises the signal measured, one at a time for `length`, and answers how long each took, in nanoseconds.
    ///
    /// # Errors
    ///
    /// [`Error::PeerGone`]: a raise was not handled within ten seconds.
    pub fn pace(&self, pause: Duration, length: Duration) -> Result<Vec<u64>> {
        let (bench, board, line) = (self.bench.clone(), self.board.clone(), self.measured.clone());
        on_core(self.far, move || pace(&bench.enlist()?, &line, &board, pause, length))
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        self.board.is_over.store(true, Ordering::Relaxed);
        for flooder in self.flooders.drain(..) {
            let _ = flooder.join();
        }
    }
}

/// Raises one signal at a time and collects how long each took.
fn pace(ringer: &Ringer, line: &Arc<Line>, board: &Board, pause: Duration, length: Duration) -> Result<Vec<u64>> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    while begun.elapsed() < length {
        // Not in step with anything that runs in a cycle of its own.
        let jitter = Duration::from_nanos(monotonic_ns() % (1 + pause.as_nanos() as u64 / 2));
        thread::sleep(pause + jitter);
        board.raised_at_ns.store(monotonic_ns(), Ordering::SeqCst);
        line.raise(ringer)?;
        let raised = Instant::now();
        while board.raised_at_ns.load(Ordering::SeqCst) != 0 {
            if raised.elapsed() > PATIENCE {
                return Err(Error::PeerGone("a handler"));
            }
            thread::yield_now();
        }
        samples.push(board.taken_ns.load(Ordering::SeqCst));
    }
    if samples.is_empty() { Err(Error::PeerGone("a handler")) } else { Ok(samples) }
}

fn serve(mut level: Level, board: &Board) {
    let mut found = Vec::new();
    while !board.is_over() {
        found.clear();
        if level.wait(BUDGET, Duration::ZERO, Some(LOOK), |vector| found.push(vector)).is_err() {
            return;
        }
        for &vector in &found {
            level.begin(vector);
            if vector == MEASURED {
                board.handled();
            } else {
                let begun = Instant::now();
                while begun.elapsed() < HANDLER {
                    spin_loop();
                }
            }
            level.end();
        }
    }
}

/// A guest with an outbox whose numbers raise lines of its own, all of priority 0.
fn flooder(bench: &Bench, guest: u32) -> Result<Outbox> {
    let ram = Ram::create("vbnet-bench", RAM_MIN)?;
    let kick = Doorbell::create()?;
    let theirs = LevelMemory::format(&ram, RAM_HEADER_BYTES)?;
    let outbox = bench.table.outbox_attach(&format!("flooder{guest}"), theirs.clone(), copy(&kick)?)?;
    for number in 0..FLOOD_SIGNALS {
        let line = bench.line(&format!("flood{guest}.{number}"), 0, 1 + guest * FLOOD_SIGNALS + number)?;
        bench.table.grant(outbox, number, line.id())?;
    }
    Ok(Outbox::new(theirs, kick))
}

/// The real-time class for urgent levels, where this process may; elsewhere nothing changes.
fn become_realtime(priority: u32) {
    if priority != 0 {
        let parameter = libc::sched_param { sched_priority: priority.cast_signed() };
        // SAFETY: a plain request about the calling thread.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) };
    }
}

/// How interrupts are acknowledged and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In shared memory: taking bits, and a store.
    Shared,
    /// By two synchronous calls to an emulated controller on the host.
    Trapped,
}

/// What a number of events cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EndCost {
    /// Events raised.
    pub events: u64,
    /// Handlers that ran; events of a signal that was pending were one with it.
    pub handled: u64,
    /// Doorbells rung.
    pub wakeups: u64,
    /// Synchronous calls to the host.
    pub traps: u64,
    /// System calls of the serving thread and of the raiser, for these events.
    pub system_calls: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Raises one of 64 signals after the other, `rate` a second (0: as fast as it goes), for `length`; what it cost.
///
/// # Errors
///
/// [`Error::Machine`]: no thread, memory or core.
pub fn end_cost(cores: Cores, ending: Ending, rate: u64, length: Duration) -> Result<EndCost> {
    on_core(cores.far, move || {
        let bench = Bench::new()?;
        let board = Arc::new(Board::default());
        let lines = (0..EVENT_SIGNALS)
            .map(|number| bench.line(&format!("event{number}"), 0, number))
            .collect::<Result<Vec<_>>>()?;
        let server = match ending {
            Ending::Shared => {
                let (level, board) = (bench.level(0)?, board.clone());
                thread::spawn(move || {
                    pin(cores.near).map_or_else(|_| Served::default(), |()| end_in_memory(level, &board))
                })
            }
            Ending::Trapped => {
                let bell = copy(&bench.bells[0])?;
                let apics = bench.table.apics("bench", [copy(&bell)?]);
                let apic = apics.vcpu(0).ok_or(Error::Closed("the vCPU"))?;
                for (line, vector) in lines.iter().zip(0..) {
                    bench.table.route_to_apic(line.id(), apic.clone(), vector)?;
                }
                let (caller, service) = trap_line(apics)?;
                let board = board.clone();
                thread::spawn(move || {
                    let served =
                        pin(cores.near).map_or_else(|_| Served::default(), |()| end_by_trap(&bell, &caller, &board));
                    drop(service);
                    served
                })
            }
        };
        let begun = Instant::now();
        let events = raise_at(&bench.enlist()?, &lines, rate, length)?;
        let seconds = begun.elapsed().as_secs_f64();
        board.is_over.store(true, Ordering::Relaxed);
        bench.bells[0].ring()?;
        let served = server.join().map_err(|_| Error::PeerGone("a server"))?;
        let wakeups: u64 = lines.iter().map(|line| line.count(LineCounter::Wakeups)).sum();
        let system_calls = wakeups + served.system_calls;
        Ok(EndCost { events, handled: served.handled, wakeups, traps: served.traps, system_calls, seconds })
    })
}

/// What a server did.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    handled: u64,
    traps: u64,
    system_calls: u64,
}

fn raise_at(ringer: &Ringer, lines: &[Arc<Line>], rate: u64, length: Duration) -> Result<u64> {
    let begun = Instant::now();
    let mut events = 0_u64;
    for line in lines.iter().cycle() {
        let elapsed = begun.elapsed();
        if elapsed >= length {
            break;
        }
        if let Some(due_ns) = (events * 1_000_000_000).checked_div(rate) {
            let due = Duration::from_nanos(due_ns);
            match due.checked_sub(elapsed) {
                Some(early) if early > SLEEPABLE => thread::sleep(early - SLEEPABLE / 2),
                Some(_) => {
                    while begun.elapsed() < due {
                        spin_loop();
                    }
                }
                None => {}
            }
        }
        line.raise(ringer)?;
        events += 1;
    }
    Ok(events)
}

fn end_in_memory(mut level: Level, board: &Board) -> Served {
    let mut served = Served::default();
    let mut found = Vec::new();
    while !board.is_over() {
        found.clear();
        if level.take(BUDGET, |vector| found.push(vector)) == 0 {
            if level.arm() {
                // poll(2) and read(2).
                served.system_calls += 2;
                let _ = level.sleep(Some(LOOK));
            }
            continue;
        }
        for &vector in &found {
            level.begin(vector);
            level.end();
            served.handled += 1;
        }
    }
    served
}

fn end_by_trap(bell: &Doorbell, caller: &FastCaller, board: &Board) -> Served {
    let mut served = Served::default();
    let mut answer = [0; DATA_BYTES];
    while !board.is_over() {
        served.system_calls += 2;
        let _ = bell.wait(Some(LOOK));
        loop {
            served.traps += 1;
            match caller.call(APIC_DEVICE, apic::ACKNOWLEDGE, &VCPU, &mut answer, PATIENCE) {
                Ok(Some(found)) if found.length != 0 => served.handled += 1,
                _ => break,
            }
            served.traps += 1;
            match caller.call(APIC_DEVICE, apic::END, &VCPU, &mut answer, PATIENCE) {
                Ok(Some(found)) if found.length == 1 && answer[0] == 1 => {}
                _ => break,
            }
        }
    }
    served
}

/// A fastcall slot whose calls end up at `apics`.
fn trap_line(apics: Apics) -> Result<(FastCaller, Service)> {
    let service = Service::start(Arc::new(CounterFile::create(None, COUNTER_BYTES)?))?;
    let ram = Ram::create("vbnet-bench", RAM_MIN)?;
    let (kick, call) = (Doorbell::create()?, Doorbell::create()?);
    let caller = FastCaller::format(&ram, RAM_HEADER_BYTES)?;
    let parts = SlotParts {
        ram: ram.clone(),
        offset: RAM_HEADER_BYTES,
        length: FASTCALL_SLOT_BYTES as u32,
        kick: copy(&kick)?,
        call: copy(&call)?,
    };
    service.attach(APIC_SESSION, parts, SlotParams::default(), "guest=bench")?;
    service.register(APIC_SESSION, APIC_DEVICE, Arc::new(apics))?;
    Ok((FastCaller::new(caller, kick, call, TRAP_SPIN_US), service))
}
