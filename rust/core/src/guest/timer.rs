//! The driver half of a timer device: arms timers in the guest's own memory, and waits for what expires.
//!
//! ```text
//!   start ┌────────────────────────────┬──────────────────────────────────┐
//!         │ timer page                 │ eight signals, one a priority    │
//!         └────────────────────────────┴──────────────────────────────────┘ start + bytes
//!
//!   host tells, a lead early ─▶ collect: whose? ─▶ soon, by deadline ─▶ the rest is spun away ─▶ delivered, never early
//! ```
//!
//! Who writes what: see `shm::timer`. What a timer is set to is kept privately as well, so that what the host says is held
//! against it: a host that lies can make a timer late, not early, and not another one's. An expiry is one word, how
//! often; which grid point that is, and how many were missed, follows from the private copy.
//!
//! Two sides wait: threads, for one timer each, and one event loop, for all timers that were armed for it. Whoever is
//! awake collects for both, and rings the other's bell when something is for it. Of several threads one waits for the
//! host, and the others for it. How early to be woken is learned from how late the last wake-ups were: a little more for
//! each that was late, a very little less for each that was early, which settles where one in [`LEAD_DOWN`] is late.
//!
//! Who keeps the timers may change while they run: the host, a thread of this process, the host again. Between two
//! keepers [`Timers::hand_over`] notes what the former one told and sets every timer anew on the page, from the expiry
//! after the last one told on. That is another generation of the slot, so whatever the former one says late is void; the
//! name of the timer and the numbers of its ticks stay.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::epoll;
use rustix::time::Timespec;

use crate::error::{Error, Result};
use crate::shm::doorbell::Doorbell;
use crate::shm::layout::{LINE_PAIR, RAM_HEADER_BYTES, SIGNAL_PAIR_BYTES, TIMER_PRIORITIES};
use crate::shm::region::Ram;
use crate::shm::signal::Listener;
use crate::shm::timer::{
    GENERATIONS, PERIOD_MIN_NS, Setter, Setting, TIMES, Taker, TimerLayout, TimerMemory, format_signal,
};
use crate::timer::agenda::LEAD_MAX_NS;
use crate::timer::now_ns;

/// Added to the lead for a wake-up that came after its deadline.
const LEAD_UP_NS: u64 = 4_000;
/// The lead loses this part of [`LEAD_UP_NS`] for a wake-up that came before.
const LEAD_DOWN: u64 = 64;
/// Changes of the lead that the host is not told of.
const LEAD_STEP_NS: u64 = 1_000;
/// Longest rest before a deadline that is spun away; more than the lead ever is.
const SPIN_MAX_NS: u64 = LEAD_MAX_NS;
/// Looks at the clock before the caller's thread asks whether something else came.
const SPINS_A_LOOK: u32 = 8;
const BELL_TOKEN: u64 = 1;

/// Where the parts of a timer device lie in the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimersLayout {
    /// Number of timers.
    pub slots: u32,
    /// First byte of the page.
    pub page_offset: u32,
    /// Bytes of the page.
    pub page_bytes: u32,
    /// First byte of the first signal.
    pub signals_offset: u32,
    /// Bytes of one signal.
    pub signal_bytes: u32,
    /// One past the last byte.
    pub end: u32,
}

impl TimersLayout {
    /// Lays a device out from byte `start` on (0: right behind the RAM header).
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: slots are no power of two from 64 to 131072, or 4 GiB are exceeded.
    pub fn plan(start: u32, slots: u32) -> Result<Self> {
        let page = TimerLayout::plan(slots).ok_or_else(|| {
            Error::Usage(format!("a timer page has a power of two of slots, 64 to 131072; got {slots}"))
        })?;
        let page_offset = start.max(RAM_HEADER_BYTES).next_multiple_of(LINE_PAIR as u32);
        let signals = u64::from(page_offset) + page.bytes as u64;
        let end = signals + (TIMER_PRIORITIES * SIGNAL_PAIR_BYTES) as u64;
        let too_far = |_| Error::Usage(format!("timers for {slots} slots would end at {end}, past 4 GiB"));
        Ok(Self {
            slots,
            page_offset,
            page_bytes: page.bytes as u32,
            signals_offset: u32::try_from(signals).map_err(too_far)?,
            signal_bytes: SIGNAL_PAIR_BYTES as u32,
            end: u32::try_from(end).map_err(too_far)?,
        })
    }

    /// First byte of a priority's signal.
    #[must_use]
    pub const fn signal_offset(&self, priority: u8) -> u32 {
        self.signals_offset + (priority & 7) as u32 * self.signal_bytes
    }
}

/// Names one arming of one timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TimerId(pub u64);

impl TimerId {
    const fn new(slot: u32, generation: u32) -> Self {
        Self(slot as u64 | ((generation as u64) << 32))
    }

    const fn slot(self) -> u32 {
        self.0 as u32
    }

    const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What to arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arming {
    /// When, in nanoseconds of CLOCK_MONOTONIC; the past means at once.
    pub deadline_ns: u64,
    /// How long after that again and again, at least [`PERIOD_MIN_NS`]; 0 = once.
    pub period_ns: u64,
    /// 0 to 7, 7 the most urgent.
    pub priority: u8,
    /// Who will hear of it.
    pub side: Side,
}

/// Who waits for a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A thread, in [`Timers::wait`].
    Thread,
    /// An event loop, by [`Timers::take_for_loop`].
    Loop,
}

/// One expiry, as it is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Which arming.
    pub id: TimerId,
    /// Which expiry of it, from 1 on; those missed are counted in.
    pub number: u64,
    /// When it should have been.
    pub deadline_ns: u64,
    /// How much later it is delivered.
    pub late_ns: u64,
    /// Expiries since the last tick that had none of their own.
    pub missed: u64,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerTotals {
    /// Timers armed or moved.
    pub arms: u64,
    /// Timers cancelled.
    pub cancels: u64,
    /// Times the host was woken for it.
    pub kicks: u64,
    /// Ticks delivered.
    pub ticks: u64,
    /// Expiries that had no tick.
    pub missed: u64,
    /// Times a thread or the loop asked to be woken.
    pub sleeps: u64,
    /// How early wake-ups are asked for now.
    pub lead_ns: u64,
}

/// What the loop does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForLoop {
    /// Handle these, then ask again.
    Ticks(Vec<Tick>),
    /// Sleep until [`Timers::loop_fd`] is readable, or until this time: then ask again.
    Sleep(Option<u64>),
}

/// A timer as the guest has it.
#[derive(Clone, Copy, Debug)]
struct Timer {
    /// Deadline of the first expiry.
    first_ns: u64,
    period_ns: u64,
    /// Which arming of the slot, as its name says.
    generation: u32,
    /// The generation of its setting on the page.
    written: u32,
    priority: u8,
    side: Side,
    is_armed: bool,
    /// It has an entry in `soon`.
    is_soon: bool,
    /// Expiries the host told of.
    told: u64,
    /// Those of them that belong to earlier settings.
    told_before: u64,
    /// The last expiry delivered, by number.
    delivered: u64,
    /// Delivered, and not fetched by the thread that waits.
    waiting: Option<Tick>,
}

impl Timer {
    const FREE: Self = Self {
        first_ns: 0,
        period_ns: 0,
        generation: 0,
        written: 0,
        priority: 0,
        side: Side::Thread,
        is_armed: false,
        is_soon: false,
        told: 0,
        told_before: 0,
        delivered: 0,
        waiting: None,
    };

    /// What this slot's next arming, and its next setting, are called.
    const fn next(&self) -> (u32, u32) {
        ((self.generation + 1) % GENERATIONS, (self.written + 1) % GENERATIONS)
    }

    /// When expiry `number` is due, from 1 on.
    const fn deadline_of(&self, number: u64) -> u64 {
        self.first_ns.saturating_add(self.period_ns.saturating_mul(number.saturating_sub(1)))
    }

    /// The last expiry that is due at `now_ns` and was told of.
    fn due(&self, now_ns: u64) -> u64 {
        if now_ns < self.first_ns {
            return 0;
        }
        let passed = (now_ns - self.first_ns).checked_div(self.period_ns).unwrap_or(0).saturating_add(1);
        passed.min(self.told)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Gone,
    Closed,
}

struct Book {
    state: State,
    setter: Setter,
    taker: Taker,
    listeners: [Listener; TIMER_PRIORITIES],
    kick: Option<Doorbell>,
    calls: [Option<Doorbell>; TIMER_PRIORITIES],
    timers: Vec<Timer>,
    free: Vec<u32>,
    slots: u32,
    /// Told of and not delivered: deadline, slot, generation.
    soon: BinaryHeap<Reverse<(u64, u32, u32)>>,
    for_loop: Vec<Tick>,
    found: Vec<u32>,
    /// A thread waits for the host, so many others for it.
    has_leader: bool,
    followers: u32,
    /// It sleeps, or the loop does.
    is_asleep: [bool; 2],
    lead_max_ns: u64,
    /// In nanoseconds times [`LEAD_DOWN`].
    lead_fine: u64,
    lead_told_ns: u64,
    totals: TimerTotals,
}

/// A set of descriptors to sleep on, and the bell that ends the sleep from our own side.
struct Bed {
    epoll: OwnedFd,
    bell: Doorbell,
}

impl Bed {
    fn new() -> Result<Self> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::machine("create an epoll set", errno))?;
        let bed = Self { epoll, bell: Doorbell::create()? };
        bed.listen(&bed.bell)?;
        Ok(bed)
    }

    fn listen(&self, bell: &Doorbell) -> Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, bell, epoll::EventData::new_u64(BELL_TOKEN), flags)
            .map_err(|errno| Error::machine("wait for a doorbell", errno))
    }

    /// The other end may keep a bell open for longer than we do.
    fn forget(&self, bell: &Doorbell) {
        // It cannot fail: the descriptor is ours and was added.
        let _ = epoll::delete(&self.epoll, bell);
    }

    /// Sleeps until a bell rings or `until_ns` is there.
    fn sleep(&self, until_ns: Option<u64>) {
        let limit = until_ns.map(|until_ns| {
            let rest = Duration::from_nanos(until_ns.saturating_sub(now_ns()));
            Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() }
        });
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 16];
        // Interrupted or not, the caller looks again; edges that were heard are not heard twice.
        let _ = epoll::wait(&self.epoll, &mut events, limit.as_ref());
    }
}

/// The driver half of a timer device. Any thread may call anything.
pub struct Timers {
    book: Mutex<Book>,
    turnover: Condvar,
    beds: [Bed; 2],
    page: TimerMemory,
    layout: TimersLayout,
}

impl Timers {
    /// Formats the page and the signals in `ram`. Nobody keeps the timers before [`Self::connect`].
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the layout does not fit into `ram`. [`Error::Machine`]: no descriptor is free.
    pub fn open(ram: &Arc<Ram>, layout: TimersLayout) -> Result<Self> {
        let page = TimerMemory::format(ram, layout.page_offset, layout.slots)?;
        let mut listeners = Vec::with_capacity(TIMER_PRIORITIES);
        for priority in 0..TIMER_PRIORITIES as u8 {
            listeners.push(format_signal(ram, layout.signal_offset(priority))?);
        }
        let listeners = listeners.try_into().map_err(|_| Error::Usage("a signal for each priority".into()))?;
        let book = Book {
            state: State::Open,
            setter: Setter::new(page.clone()),
            taker: Taker::new(page.clone()),
            listeners,
            kick: None,
            calls: Default::default(),
            timers: Vec::new(),
            free: Vec::new(),
            slots: layout.slots,
            soon: BinaryHeap::new(),
            for_loop: Vec::new(),
            found: Vec::new(),
            has_leader: false,
            followers: 0,
            is_asleep: [false; 2],
            lead_max_ns: 0,
            lead_fine: 0,
            lead_told_ns: 0,
            totals: TimerTotals::default(),
        };
        let beds = [Bed::new()?, Bed::new()?];
        Ok(Self { book: Mutex::new(book), turnover: Condvar::new(), beds, page, layout })
    }

    /// Where everything is.
    #[must_use]
    pub const fn layout(&self) -> TimersLayout {
        self.layout
    }

    /// Sets every timer anew for the next keeper. The former one touches the page no more, and the next one has yet to be
    /// given it; then [`Self::connect`]. What is armed meanwhile waits for the next one.
    ///
    /// Cost: a [`Setter::set`] for each timer that runs.
    pub fn hand_over(&self) {
        let mut book = self.book();
        self.collect(&mut book, now_ns());
        for slot in 0..book.timers.len() as u32 {
            book.set_anew(slot);
        }
    }

    /// The host keeps the timers and is woken by `kick`; it grants a lead of `lead_max_ns`, 0 for none.
    pub fn connect(&self, kick: Doorbell, lead_max_ns: u64) {
        let mut book = self.book();
        book.kick = Some(kick);
        book.lead_max_ns = lead_max_ns.min(LEAD_MAX_NS);
        book.lead_fine = book.lead_fine.min(book.lead_max_ns * LEAD_DOWN);
        book.wake_host();
        // What expired before the host had all signals rang none.
        self.wake(&mut book);
    }

    /// The host rings `call` for what expires at `priority`, and no doorbell it was given before. It has it already.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the priority is not 0 to 7. [`Error::Machine`]: it cannot be waited for.
    pub fn connect_priority(&self, priority: u8, call: Doorbell) -> Result<()> {
        let mut book = self.book();
        let place = book.calls.get_mut(usize::from(priority));
        let place = place.ok_or_else(|| Error::Usage(format!("a priority is 0 to 7; got {priority}")))?;
        self.beds.iter().try_for_each(|bed| bed.listen(&call))?;
        if let Some(former) = place.replace(call) {
            self.beds.iter().for_each(|bed| bed.forget(&former));
        }
        // Whoever sleeps does not listen to it yet.
        self.wake(&mut book);
        Ok(())
    }

    /// Arms a timer.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the period or priority cannot be. [`Error::Busy`]: all slots are in use. [`Error::PeerGone`],
    /// [`Error::Closed`]: it is over.
    #[inline]
    pub fn arm(&self, arming: Arming) -> Result<TimerId> {
        let mut book = self.book();
        book.check(arming)?;
        let slot = match book.free.pop() {
            Some(slot) => slot,
            None if book.timers.len() < book.slots as usize => {
                book.timers.push(Timer::FREE);
                book.timers.len() as u32 - 1
            }
            None => return Err(Error::Busy(format!("all {} timers are armed; cancel some", book.slots))),
        };
        Ok(book.set(slot, arming))
    }

    /// Moves a timer that runs, or arms it anew; gives the name it has from now on, and what was told of it before is
    /// forgotten.
    ///
    /// # Errors
    ///
    /// As [`Self::arm`].
    #[inline]
    pub fn rearm(&self, id: TimerId, arming: Arming) -> Result<TimerId> {
        let mut book = self.book();
        book.check(arming)?;
        if book.known(id).is_none() {
            drop(book);
            return self.arm(arming);
        }
        Ok(book.set(id.slot(), arming))
    }

    /// Cancels a timer and gives its slot back. `false`: it was over already.
    pub fn cancel(&self, id: TimerId) -> bool {
        let mut book = self.book();
        if book.state != State::Open || book.known(id).is_none() {
            return false;
        }
        book.totals.cancels += 1;
        book.release(id.slot());
        // Whoever waits for it shall not wait on.
        self.wake(&mut book);
        true
    }

    /// It runs, or has a tick that nobody fetched.
    #[must_use]
    pub fn is_known(&self, id: TimerId) -> bool {
        self.book().known(id).is_some()
    }

    /// Waits for the next tick of a timer that was armed for threads. `None`: the time is up, or it was cancelled.
    ///
    /// # Errors
    ///
    /// [`Error::PeerGone`]: the host has ended. [`Error::Closed`]: we have.
    pub fn wait(&self, id: TimerId, until_ns: Option<u64>) -> Result<Option<Tick>> {
        let mut book = self.book();
        loop {
            book.alive()?;
            let now = now_ns();
            self.collect(&mut book, now);
            if book.known(id).is_none() {
                return Ok(None);
            }
            if let Some(tick) = book.fetch(id) {
                return Ok(Some(tick));
            }
            if until_ns.is_some_and(|until_ns| until_ns <= now) {
                return Ok(None);
            }
            book = if book.has_leader { self.follow(book, until_ns) } else { self.lead(book, now, until_ns) };
        }
    }

    /// What expired for the event loop, after spinning away what little is left until the next deadline.
    ///
    /// # Errors
    ///
    /// As [`Self::wait`].
    pub fn take_for_loop(&self) -> Result<ForLoop> {
        let mut book = self.book();
        book.is_asleep[Side::Loop as usize] = false;
        self.beds[Side::Loop as usize].sleep(Some(0));
        loop {
            book.alive()?;
            let now = now_ns();
            self.collect(&mut book, now);
            if !book.for_loop.is_empty() {
                return Ok(ForLoop::Ticks(std::mem::take(&mut book.for_loop)));
            }
            let next_ns = book.next_soon(Side::Loop);
            if let Some(next_ns) = next_ns.filter(|next_ns| next_ns.saturating_sub(now) <= SPIN_MAX_NS) {
                drop(book);
                self.spin(next_ns);
                book = self.book();
            } else if book.fall_asleep(Side::Loop) {
                return Ok(ForLoop::Sleep(next_ns));
            } else {
                // What a thread that sleeps had asked for is masked now; it has to ask anew.
                self.rouse(&mut book, Side::Thread);
            }
        }
    }

    /// Readable when [`Self::take_for_loop`] has something, after it said to sleep. It stays open as long as this lives.
    #[must_use]
    pub fn loop_fd(&self) -> RawFd {
        self.beds[Side::Loop as usize].epoll.as_raw_fd()
    }

    /// What was done so far.
    #[must_use]
    pub fn totals(&self) -> TimerTotals {
        let book = self.book();
        TimerTotals { lead_ns: book.lead_told_ns, ..book.totals }
    }

    /// The host or the device has ended: who waits gets [`Error::PeerGone`], and so does every later call.
    pub fn abandon(&self) {
        self.end(State::Gone);
    }

    /// Ends it on this side: who waits gets [`Error::Closed`], and so does every later call.
    pub fn close(&self) {
        self.end(State::Closed);
    }

    fn end(&self, state: State) {
        let mut book = self.book();
        if book.state == State::Open {
            book.state = state;
        }
        self.wake(&mut book);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everybody looks again.
    fn wake(&self, book: &mut Book) {
        self.rouse(book, Side::Loop);
        self.rouse(book, Side::Thread);
    }

    fn rouse(&self, book: &mut Book, side: Side) {
        if std::mem::take(&mut book.is_asleep[side as usize]) {
            // Ours alone and never blocking; it cannot fail.
            let _ = self.beds[side as usize].bell.ring();
        }
        if side == Side::Thread {
            self.call_followers(book);
        }
    }

    /// Finds out what expired and delivers what is due, for both sides; rouses the side that something is for.
    fn collect(&self, book: &mut Book, now_ns: u64) {
        let told = book.collect(now_ns);
        let delivered = book.deliver(now_ns);
        for side in [Side::Thread, Side::Loop] {
            if (told | delivered) & side.bit() != 0 {
                self.rouse(book, side);
            }
        }
    }

    /// A system call, so only if there are any.
    fn call_followers(&self, book: &Book) {
        if book.followers != 0 {
            self.turnover.notify_all();
        }
    }

    /// Waits for whoever waits for the host.
    fn follow<'a>(&'a self, mut book: MutexGuard<'a, Book>, until_ns: Option<u64>) -> MutexGuard<'a, Book> {
        book.followers += 1;
        let mut book = match until_ns {
            None => self.turnover.wait(book).unwrap_or_else(PoisonError::into_inner),
            Some(until_ns) => {
                let rest = Duration::from_nanos(until_ns.saturating_sub(now_ns()));
                self.turnover.wait_timeout(book, rest).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        book.followers -= 1;
        book
    }

    /// Waits for the host, for all threads.
    fn lead<'a>(&'a self, mut book: MutexGuard<'a, Book>, now: u64, until_ns: Option<u64>) -> MutexGuard<'a, Book> {
        let next_ns = book.next_soon(Side::Thread);
        let until_ns = next_ns.into_iter().chain(until_ns).min();
        let is_near = next_ns.is_some_and(|next_ns| next_ns.saturating_sub(now) <= SPIN_MAX_NS);
        if !is_near && !book.fall_asleep(Side::Thread) {
            // What the loop had asked for is masked now, if it sleeps; it has to ask anew.
            self.rouse(&mut book, Side::Loop);
            return book;
        }
        book.has_leader = true;
        drop(book);
        match until_ns {
            Some(until_ns) if is_near => self.spin(until_ns),
            _ => self.beds[Side::Thread as usize].sleep(until_ns),
        }
        let mut book = self.book();
        book.has_leader = false;
        book.is_asleep[Side::Thread as usize] = false;
        self.call_followers(&book);
        book
    }

    /// Looks at the clock until `until_ns`, or until something else expired.
    fn spin(&self, until_ns: u64) {
        loop {
            for _ in 0..SPINS_A_LOOK {
                if now_ns() >= until_ns {
                    return;
                }
                std::hint::spin_loop();
            }
            if self.page.has_expired() {
                return;
            }
        }
    }
}

impl fmt::Debug for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timers").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Side {
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl Book {
    fn alive(&self) -> Result<()> {
        match self.state {
            State::Open => Ok(()),
            State::Gone => Err(Error::PeerGone("the timer device")),
            State::Closed => Err(Error::Closed("the timer device")),
        }
    }

    fn check(&self, arming: Arming) -> Result<()> {
        if arming.period_ns != 0 && arming.period_ns < PERIOD_MIN_NS {
            return Err(Error::Usage(format!(
                "a period is {PERIOD_MIN_NS} ns or longer, or 0 for none; got {}",
                arming.period_ns
            )));
        }
        if arming.priority > 7 {
            return Err(Error::Usage(format!("a priority is 0 to 7; got {}", arming.priority)));
        }
        self.alive()
    }

    /// The timer of this very arming.
    fn known(&self, id: TimerId) -> Option<&Timer> {
        let timer = self.timers.get(id.slot() as usize)?;
        (timer.generation == id.generation() && (timer.is_armed || timer.waiting.is_some())).then_some(timer)
    }

    fn set(&mut self, slot: u32, arming: Arming) -> TimerId {
        let Arming { deadline_ns, period_ns, priority, side } = arming;
        let (generation, written) = self.timers[slot as usize].next();
        self.timers[slot as usize] = Timer {
            first_ns: deadline_ns,
            period_ns,
            generation,
            written,
            priority,
            side,
            is_armed: true,
            ..Timer::FREE
        };
        self.totals.arms += 1;
        self.write(slot, deadline_ns);
        TimerId::new(slot, generation)
    }

    /// Sets a timer that has expiries left on the page anew, from the next one on. One that was told of for the last time
    /// is none of the keeper's business any more.
    fn set_anew(&mut self, slot: u32) {
        let timer = &mut self.timers[slot as usize];
        if timer.is_armed && (timer.period_ns != 0 || timer.told == 0) {
            timer.written = timer.next().1;
            timer.told_before = timer.told;
            let deadline_ns = timer.deadline_of(timer.told + 1);
            self.write(slot, deadline_ns);
        }
    }

    /// Writes the setting of an armed timer.
    fn write(&mut self, slot: u32, deadline_ns: u64) {
        let Timer { period_ns, priority, written, .. } = self.timers[slot as usize];
        if self.setter.set(slot, Setting { deadline_ns, period_ns, priority, generation: written, is_armed: true }) {
            self.wake_host();
        }
    }

    fn wake_host(&mut self) {
        if let Some(kick) = &self.kick {
            self.totals.kicks += 1;
            // An eventfd that the host made; a full one means that the host is awake.
            let _ = kick.ring();
        }
    }

    /// Disarms a slot and gives it back.
    fn release(&mut self, slot: u32) {
        let Some(timer) = self.timers.get_mut(slot as usize) else { return };
        let was_armed = timer.is_armed;
        let (generation, written) = timer.next();
        let priority = timer.priority;
        *timer = Timer { generation, written, ..Timer::FREE };
        self.free.push(slot);
        if was_armed {
            // Nobody has to be told that there is less to wait for.
            let setting = Setting { deadline_ns: 0, period_ns: 0, priority, generation: written, is_armed: false };
            let _ = self.setter.set(slot, setting);
        }
    }

    /// The tick a thread waits for. A timer that is over gives its slot back with it.
    fn fetch(&mut self, id: TimerId) -> Option<Tick> {
        let timer = self.timers.get_mut(id.slot() as usize)?;
        let tick = timer.waiting.take()?;
        if !timer.is_armed {
            self.release(id.slot());
        }
        Some(tick)
    }

    /// Notes what the host told. Gives the sides it is for.
    fn collect(&mut self, now_ns: u64) -> u8 {
        let mut sides = 0;
        let mut found = std::mem::take(&mut self.found);
        let mut first_ns = u64::MAX;
        for priority in (0..TIMER_PRIORITIES).rev() {
            if self.calls[priority].is_some() {
                self.listeners[priority].acknowledge();
            }
            self.taker.take(priority, &mut found);
            for slot in found.drain(..) {
                let expiry = self.taker.expiry(slot);
                let Some(timer) = self.timers.get_mut(slot as usize) else { continue };
                let news = expiry.times.wrapping_sub(timer.told - timer.told_before) % TIMES;
                // The upper half is what was told before, by a host that read the setting twice.
                let is_new = news != 0 && news < TIMES / 2;
                if !timer.is_armed || timer.written != expiry.generation || !is_new {
                    continue;
                }
                timer.told += if timer.period_ns == 0 { 1 - timer.told } else { news };
                sides |= timer.side.bit();
                let deadline_ns = timer.deadline_of(timer.told);
                first_ns = first_ns.min(deadline_ns);
                if !timer.is_soon {
                    timer.is_soon = true;
                    self.soon.push(Reverse((deadline_ns, slot, timer.generation)));
                }
            }
        }
        self.found = found;
        if first_ns != u64::MAX {
            self.learn(first_ns, now_ns);
        }
        sides
    }

    /// Delivers what is due. Gives the sides it is for.
    fn deliver(&mut self, now_ns: u64) -> u8 {
        let mut sides = 0;
        while let Some(&Reverse((deadline_ns, slot, generation))) = self.soon.peek() {
            let Some(timer) = self.timers.get_mut(slot as usize) else { break };
            if timer.generation != generation || !timer.is_soon {
                self.soon.pop();
                continue;
            }
            if deadline_ns > now_ns {
                break;
            }
            self.soon.pop();
            timer.is_soon = false;
            let number = timer.due(now_ns);
            if number > timer.delivered {
                sides |= self.deliver_one(slot, number, now_ns);
            }
            self.expect_rest(slot);
        }
        sides
    }

    fn deliver_one(&mut self, slot: u32, number: u64, now_ns: u64) -> u8 {
        let timer = &mut self.timers[slot as usize];
        let deadline_ns = timer.deadline_of(number);
        let missed = number - timer.delivered - 1;
        let id = TimerId::new(slot, timer.generation);
        let mut tick = Tick { id, number, deadline_ns, late_ns: now_ns - deadline_ns, missed };
        timer.delivered = number;
        self.totals.ticks += 1;
        self.totals.missed += missed;
        timer.is_armed = timer.period_ns != 0;
        let side = timer.side;
        match side {
            Side::Thread => {
                // A tick that nobody fetched is one that was missed.
                tick.missed += timer.waiting.map_or(0, |unfetched| unfetched.missed + 1);
                timer.waiting = Some(tick);
            }
            Side::Loop => {
                self.for_loop.push(tick);
                if !timer.is_armed {
                    self.release(slot);
                }
            }
        }
        side.bit()
    }

    /// What was told of a timer and is not due yet.
    fn expect_rest(&mut self, slot: u32) {
        let timer = &mut self.timers[slot as usize];
        if timer.is_armed && timer.told > timer.delivered {
            timer.is_soon = true;
            self.soon.push(Reverse((timer.deadline_of(timer.delivered + 1), slot, timer.generation)));
        }
    }

    /// When the next timer of this side that was told of is due; the other side sees to its own.
    fn next_soon(&self, side: Side) -> Option<u64> {
        let mine = |&Reverse((deadline_ns, slot, generation)): &Reverse<(u64, u32, u32)>| {
            let timer = self.timers.get(slot as usize)?;
            (timer.side == side && timer.generation == generation && timer.is_soon).then_some(deadline_ns)
        };
        // Nearly always the first one: what is told of is due within a lead.
        self.soon.peek().and_then(mine).or_else(|| self.soon.iter().filter_map(mine).min())
    }

    /// Asks for all doorbells. `false`: something expired meanwhile, and the doorbells are nobody's.
    fn fall_asleep(&mut self, side: Side) -> bool {
        let is_quiet =
            (0..TIMER_PRIORITIES).all(|priority| self.calls[priority].is_none() || self.listeners[priority].arm());
        self.is_asleep[side as usize] = is_quiet;
        self.totals.sleeps += u64::from(is_quiet);
        is_quiet
    }

    /// Learns from a wake-up at `now_ns` for `deadline_ns`.
    fn learn(&mut self, deadline_ns: u64, now_ns: u64) {
        if self.lead_max_ns == 0 {
            return;
        }
        let limit = self.lead_max_ns * LEAD_DOWN;
        self.lead_fine = if now_ns > deadline_ns {
            self.lead_fine.saturating_add(LEAD_UP_NS * LEAD_DOWN).min(limit)
        } else {
            self.lead_fine.saturating_sub(LEAD_UP_NS)
        };
        let lead_ns = self.lead_fine / LEAD_DOWN;
        if lead_ns.abs_diff(self.lead_told_ns) >= LEAD_STEP_NS {
            self.lead_told_ns = lead_ns;
            self.setter.set_lead(lead_ns);
        }
    }
}
