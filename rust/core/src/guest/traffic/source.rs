//! The generator: test frames when they are due, or as many as fit.
//!
//! With a schedule ([`super::arrivals`]) the loop is *open*: a frame is due when it is whatever happens to those before it, and
//! says so in its header. A host that stalls makes later frames late, not fewer, and their latency counts from when they
//! were due: nothing is omitted because the generator waited. How late frames left is counted here, so that a slow
//! generator is not mistaken for a slow network. Source: "coordinated omission", G. Tene.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::arrivals::{Arrivals, Schedule};
use super::frame::{self, FRAME_MAX, FRAME_MIN, Route};
use super::{LOOK, pause};
use crate::error::{Error, Result};
use crate::guest::clock::monotonic_ns;
use crate::guest::imix::Sizes;
use crate::guest::nic::{Load, Sender, Stage};
use crate::guest::row::Row;
use crate::net::frame::HEADER_BYTES;

/// What is sent.
#[derive(Clone, Debug)]
pub struct TrafficConfig {
    /// From whom to whom: one frame to each in turn, each numbered by itself.
    pub routes: Vec<Route>,
    /// Frame sizes in bytes, header included, 60 at least.
    pub sizes: Sizes,
    /// When frames are due.
    pub arrivals: Arrivals,
    /// When the first is due, in nanoseconds of the monotonic clock; `None`, or a time that is over: at once.
    pub start_ns: Option<u64>,
    /// Ends after so many frames.
    pub frames: Option<u64>,
    /// Ends after so long: frames due later are not sent.
    pub duration: Option<Duration>,
    /// Most frames shown to the host at once.
    pub batch: u32,
    /// Makes each frame in memory of its own and copies it to where it is sent from: what buffers that are shared spare.
    pub does_copy: bool,
    /// Waits by looking instead of sleeping.
    pub does_poll: bool,
    /// Header and number only: no pattern, no time.
    pub is_light: bool,
    /// Whole frames that are sent over and over instead of numbered ones, with the route's addresses; [`Self::sizes`] is then
    /// not looked at.
    pub recorded: Option<Arc<[Box<[u8]>]>>,
}

impl TrafficConfig {
    /// Checked frames of `size` bytes, as many as there is room for, until stopped.
    #[must_use]
    pub fn new(route: Route, size: u32) -> Self {
        Self {
            routes: vec![route],
            sizes: Sizes::Fixed(size),
            arrivals: Arrivals::Flood,
            start_ns: None,
            frames: None,
            duration: None,
            batch: 32,
            does_copy: false,
            does_poll: false,
            is_light: false,
            recorded: None,
        }
    }

    /// The sizes of frames, over and over.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the device does not carry one of them.
    pub fn cycle(&self, sender: &Sender) -> Result<Box<[u32]>> {
        let most = sender.limit().min(FRAME_MAX);
        match &self.recorded {
            None => self.sizes.cycle(FRAME_MIN, most),
            Some(frames) => {
                Sizes::List(frames.iter().map(|frame| frame.len() as u32).collect()).cycle(HEADER_BYTES, most)
            }
        }
    }
}

/// What a source has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Frames sent.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Times there was no room.
    pub blocked: u64,
    /// Sum over all frames of how late they left, in nanoseconds.
    pub late_sum_ns: u64,
    /// The largest of these.
    pub late_max_ns: u64,
}

impl SourceStats {
    /// Names of the counters, in the order of the source's [`Row`].
    pub const NAMES: [&'static str; 5] = ["frames", "bytes", "blocked", "late_sum_ns", "late_max_ns"];
    /// Counters of a row.
    pub const WORDS: usize = Self::NAMES.len();

    /// What a source's row says now.
    #[must_use]
    pub fn read(row: &Row) -> Self {
        Self {
            frames: row.load(0),
            bytes: row.load(1),
            blocked: row.load(2),
            late_sum_ns: row.load(3),
            late_max_ns: row.load(4),
        }
    }
}

/// What a step of a source found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceStep {
    /// A whole batch was sent; there may be more to send now.
    Sent,
    /// Nothing more is due before this time, in nanoseconds.
    Waits(u64),
    /// There is no room.
    Blocked,
    /// Everything was sent.
    Done,
}

/// Some frames of a cycle, and where in it the first is.
struct Numbered<'a> {
    config: &'a TrafficConfig,
    sizes: &'a [u32],
    count: u32,
    stamp_ns: u64,
    next: usize,
    to: usize,
    number: u64,
    /// Where frames are made first; empty: where they are sent from.
    own: &'a mut [u8],
}

/// What became of them, and where the cycle goes on.
struct Loaded {
    staged: u32,
    bytes: u64,
    next: usize,
    to: usize,
    number: u64,
    outcome: Result<()>,
}

impl Load for Numbered<'_> {
    type Answer = Loaded;

    #[inline(always)]
    fn load(self, burst: &mut impl Stage) -> Loaded {
        let Self { config, sizes, count, stamp_ns, mut next, mut to, mut number, own } = self;
        let (mut staged, mut bytes) = (0, 0);
        let mut outcome = Ok(());
        for _ in 0..count {
            let size = sizes[next];
            let make = |room: &mut [u8]| match &config.recorded {
                None => frame::write(room, &config.routes[to], number, stamp_ns, config.is_light),
                Some(frames) => frame::write_recorded(room, &config.routes[to], &frames[next]),
            };
            let write = |room: &mut [u8]| match own.get_mut(..room.len()) {
                Some(own) if config.does_copy => {
                    make(own);
                    room.copy_from_slice(own);
                }
                _ => make(room),
            };
            match burst.stage_with(size as usize, write) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
            next = if next + 1 == sizes.len() { 0 } else { next + 1 };
            to += 1;
            if to == config.routes.len() {
                (to, number) = (0, number + 1);
            }
            staged += 1;
            bytes += u64::from(size);
        }
        Loaded { staged, bytes, next, to, number, outcome }
    }
}

/// The generator.
#[derive(Debug)]
pub struct TrafficSource {
    sender: Sender,
    config: TrafficConfig,
    sizes: Box<[u32]>,
    turn: usize,
    /// The route of the next frame, and its number there.
    route: usize,
    number: u64,
    schedule: Option<Schedule>,
    /// Nothing is due before.
    start_ns: u64,
    end_ns: Option<u64>,
    has_begun: bool,
    /// Frames that this row had counted before: what is counted goes on, what is sent begins anew.
    frames_before: u64,
    /// Where frames are made first, when they are copied.
    own: Box<[u8]>,
    stats: SourceStats,
    row: Arc<Row>,
}

/// What a generator that was interrupted has still to send: by another driver it goes on where it was.
#[derive(Clone, Debug)]
pub struct Interrupted {
    config: TrafficConfig,
    turn: usize,
    route: usize,
    number: u64,
    end_ns: Option<u64>,
    frames_before: u64,
}

impl TrafficSource {
    /// A generator that has not begun. `row` has at least [`SourceStats::WORDS`] counters, which go on from what they say.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: a size, the schedule, the routes or the batch cannot be.
    pub fn new(sender: impl Into<Sender>, config: TrafficConfig, row: Arc<Row>) -> Result<Self> {
        let sender = sender.into();
        let sizes = config.cycle(&sender)?;
        config.arrivals.check()?;
        if config.batch == 0 || config.routes.is_empty() {
            return Err(Error::Usage(format!(
                "traffic goes in batches of at least one frame, to one receiver at least; got {} and {}",
                config.batch,
                config.routes.len()
            )));
        }
        let stats = SourceStats::read(&row);
        let longest = sizes.iter().copied().max().filter(|_| config.does_copy).unwrap_or(0);
        Ok(Self {
            own: vec![0; longest as usize].into_boxed_slice(),
            sender,
            config,
            sizes,
            turn: 0,
            route: 0,
            number: 0,
            schedule: None,
            start_ns: 0,
            end_ns: None,
            has_begun: false,
            frames_before: stats.frames,
            stats,
            row,
        })
    }

    /// The generator that was interrupted, with another driver: numbers go on, and it ends when it would have ended. What
    /// was due while it had no driver is not made up for.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the device does not carry one of the sizes.
    pub fn resume(left: Interrupted, sender: impl Into<Sender>, row: Arc<Row>) -> Result<Self> {
        let Interrupted { config, turn, route, number, end_ns, frames_before } = left;
        Ok(Self { turn, route, number, end_ns, frames_before, ..Self::new(sender, config, row)? })
    }

    /// Ends the generator and gives its driver back, and what it has still to send.
    #[must_use]
    pub fn interrupt(self) -> (Sender, Interrupted) {
        let Self { sender, config, turn, route, number, end_ns, frames_before, .. } = self;
        (sender, Interrupted { config, turn, route, number, end_ns, frames_before })
    }

    fn begin(&mut self, now_ns: u64) {
        self.has_begun = true;
        self.start_ns = self.config.start_ns.unwrap_or(now_ns).max(now_ns);
        self.schedule = Schedule::new(&self.config.arrivals, self.start_ns);
        let lasts_ns = self.config.duration.map(|lasts| u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX));
        self.end_ns = self.end_ns.or_else(|| lasts_ns.map(|lasts_ns| self.start_ns.saturating_add(lasts_ns)));
    }

    /// Sends what is due at `now_ns`, at most one batch. The first step sets the schedule off.
    ///
    /// # Errors
    ///
    /// The driver's: the host broke the ring, or a doorbell is broken.
    #[inline]
    pub fn step(&mut self, now_ns: u64) -> Result<SourceStep> {
        if !self.has_begun {
            self.begin(now_ns);
        }
        let outcome = match self.schedule.take() {
            None if now_ns < self.start_ns => return Ok(SourceStep::Waits(self.start_ns)),
            None => self.flood(now_ns),
            Some(mut schedule) => {
                let outcome = self.keep_time(now_ns, &mut schedule);
                self.schedule = Some(schedule);
                outcome
            }
        };
        self.sender.flush()?;
        self.count();
        outcome
    }

    /// How many more frames there may be, at most one batch.
    fn quota(&self) -> u32 {
        let left = self.config.frames.map_or(u64::MAX, |limit| limit - (self.stats.frames - self.frames_before));
        u32::try_from(left).unwrap_or(u32::MAX).min(self.config.batch)
    }

    /// Writes up to `count` frames, due at `due_ns`, where there is room for them; how many.
    #[inline]
    fn stage(&mut self, count: u32, due_ns: u64) -> Result<u32> {
        let Self { sender, config, sizes, turn, route, number, own, stats, .. } = self;
        let stamp_ns = if config.is_light { 0 } else { due_ns };
        let work = Numbered { config, sizes, count, stamp_ns, next: *turn, to: *route, number: *number, own };
        let Loaded { staged, bytes, next, to, number: numbered, outcome } = sender.burst(count, work);
        (*turn, *route, *number) = (next, to, numbered);
        (stats.frames, stats.bytes) = (stats.frames + u64::from(staged), stats.bytes + bytes);
        stats.blocked += u64::from(staged < count);
        outcome.map(|()| staged)
    }

    /// Stages as many frames as there is room for, at most one batch.
    #[inline]
    fn flood(&mut self, now_ns: u64) -> Result<SourceStep> {
        let quota = self.quota();
        if quota == 0 || self.end_ns.is_some_and(|end| now_ns >= end) {
            return Ok(SourceStep::Done);
        }
        let staged = self.stage(quota, now_ns)?;
        Ok(if staged == quota { SourceStep::Sent } else { SourceStep::Blocked })
    }

    /// Stages what is due, at most one batch.
    fn keep_time(&mut self, now_ns: u64, schedule: &mut Schedule) -> Result<SourceStep> {
        for _ in 0..self.quota() {
            let due_ns = schedule.next_ns();
            if self.end_ns.is_some_and(|end| due_ns >= end) {
                return Ok(SourceStep::Done);
            }
            if due_ns > now_ns {
                return Ok(SourceStep::Waits(due_ns));
            }
            if self.stage(1, due_ns)? == 0 {
                return Ok(SourceStep::Blocked);
            }
            schedule.advance();
            let late_ns = now_ns - due_ns;
            self.stats.late_sum_ns = self.stats.late_sum_ns.wrapping_add(late_ns);
            self.stats.late_max_ns = self.stats.late_max_ns.max(late_ns);
        }
        Ok(if self.quota() == 0 { SourceStep::Done } else { SourceStep::Sent })
    }

    fn count(&self) {
        let stats = &self.stats;
        let words = [stats.frames, stats.bytes, stats.blocked, stats.late_sum_ns, stats.late_max_ns];
        for (index, word) in words.into_iter().enumerate() {
            self.row.set(index, word);
        }
    }

    /// Sends until everything is sent or `stop` is set, which is looked at every 50 ms at least.
    ///
    /// # Errors
    ///
    /// As [`Self::step`]; [`Error::Usage`] when it should sleep without doorbells.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            match self.step(monotonic_ns())? {
                SourceStep::Done => return Ok(()),
                SourceStep::Sent => {}
                SourceStep::Waits(at_ns) => pause(at_ns, self.config.does_poll),
                SourceStep::Blocked if self.config.does_poll => std::hint::spin_loop(),
                SourceStep::Blocked => drop(self.sender.wait(Some(LOOK))?),
            }
        }
        Ok(())
    }

    /// What was sent so far.
    #[must_use]
    pub const fn stats(&self) -> SourceStats {
        self.stats
    }

    /// Ends the generator and gives its driver back.
    #[must_use]
    pub fn into_sender(self) -> Sender {
        self.sender
    }
}
