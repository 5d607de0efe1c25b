//! The generator: test frames at a rate, or as many as fit.
//!
//! With a rate the loop is *open*: frame `n` is due at `start + n / rate` whatever happens to those before it, and says
//! so in its header. A host that stalls makes later frames late, not fewer, and their latency counts from when they
//! were due: nothing is omitted because the generator waited. How late frames left is counted here, so that a slow
//! generator is not mistaken for a slow network. Source: "coordinated omission", G. Tene.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::frame::{self, FRAME_MAX, FRAME_MIN, Route};
use super::{LOOK, pause};
use crate::error::{Error, Result};
use crate::guest::clock::{SECOND_NS, monotonic_ns};
use crate::guest::imix::Sizes;
use crate::guest::row::Row;
use crate::guest::venet::Sender;

/// What is sent.
#[derive(Clone, Debug)]
pub struct TrafficConfig {
    /// From whom to whom.
    pub route: Route,
    /// Frame sizes in bytes, header included, 60 at least.
    pub sizes: Sizes,
    /// Frames a second; `None`: as many as there is room for.
    pub rate: Option<u64>,
    /// Ends after so many frames.
    pub frames: Option<u64>,
    /// Ends after so long: frames due later are not sent.
    pub duration: Option<Duration>,
    /// Most frames shown to the host at once.
    pub batch: u32,
    /// Waits by looking instead of sleeping.
    pub does_poll: bool,
    /// Header and number only: no pattern, no time.
    pub is_light: bool,
}

impl TrafficConfig {
    /// Checked frames of `size` bytes, as many as there is room for, until stopped.
    #[must_use]
    pub const fn new(route: Route, size: u32) -> Self {
        Self {
            route,
            sizes: Sizes::Fixed(size),
            rate: None,
            frames: None,
            duration: None,
            batch: 32,
            does_poll: false,
            is_light: false,
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

/// When frames are due, exactly: 32 binary places below the nanosecond keep a rate true for weeks.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    next: u128,
    interval: u128,
}

impl Schedule {
    const fn next_ns(&self) -> u64 {
        (self.next >> 32) as u64
    }

    const fn advance(&mut self) {
        self.next += self.interval;
    }
}

/// The generator.
#[derive(Debug)]
pub struct TrafficSource {
    sender: Sender,
    config: TrafficConfig,
    sizes: Box<[u32]>,
    turn: usize,
    schedule: Option<Schedule>,
    end_ns: Option<u64>,
    has_begun: bool,
    stats: SourceStats,
    row: Arc<Row>,
}

impl TrafficSource {
    /// A generator that has not begun. `row` has at least [`SourceStats::WORDS`] counters.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: a size, the rate or the batch cannot be.
    pub fn new(sender: Sender, config: TrafficConfig, row: Arc<Row>) -> Result<Self> {
        let sizes = config.sizes.cycle(FRAME_MIN, sender.limit().min(FRAME_MAX))?;
        if config.batch == 0 || config.rate == Some(0) {
            return Err(Error::Usage(format!(
                "traffic goes in batches of at least one frame, at one frame a second at least; got {} and {:?}",
                config.batch, config.rate
            )));
        }
        Ok(Self {
            sender,
            config,
            sizes,
            turn: 0,
            schedule: None,
            end_ns: None,
            has_begun: false,
            stats: SourceStats::default(),
            row,
        })
    }

    fn begin(&mut self, now_ns: u64) {
        self.has_begun = true;
        self.schedule = self.config.rate.map(|rate| Schedule {
            next: u128::from(now_ns) << 32,
            interval: (u128::from(SECOND_NS) << 32) / u128::from(rate),
        });
        self.end_ns = self
            .config
            .duration
            .map(|duration| now_ns.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)));
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
        let outcome = match self.schedule {
            None => self.flood(now_ns),
            Some(schedule) => self.keep_time(now_ns, schedule),
        };
        self.sender.flush()?;
        self.count();
        outcome
    }

    /// How many more frames there may be, at most one batch.
    fn quota(&self) -> u32 {
        let left = self.config.frames.map_or(u64::MAX, |limit| limit - self.stats.frames);
        u32::try_from(left).unwrap_or(u32::MAX).min(self.config.batch)
    }

    /// Writes up to `count` frames, due at `due_ns`, where there is room for them; how many.
    #[inline]
    fn stage(&mut self, count: u32, due_ns: u64) -> Result<u32> {
        let Self { sender, config, sizes, turn, stats, .. } = self;
        let stamp_ns = if config.is_light { 0 } else { due_ns };
        let (first, mut number, mut bytes, mut next) = (stats.frames, stats.frames, stats.bytes, *turn);
        let outcome = sender.burst(count, |burst| {
            for _ in 0..count {
                let size = sizes[next];
                let write = |room: &mut [u8]| frame::write(room, &config.route, number, stamp_ns, config.is_light);
                if !burst.stage_with(size as usize, write)? {
                    break;
                }
                next = if next + 1 == sizes.len() { 0 } else { next + 1 };
                number += 1;
                bytes += u64::from(size);
            }
            Ok(())
        });
        (*turn, stats.frames, stats.bytes) = (next, number, bytes);
        let staged = (number - first) as u32;
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
    fn keep_time(&mut self, now_ns: u64, mut schedule: Schedule) -> Result<SourceStep> {
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
            self.schedule = Some(schedule);
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
