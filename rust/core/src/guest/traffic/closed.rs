//! A closed loop: so many requests under way to a reflector, the next when one has come back.
//!
//! It finds out what a pair can do that waits for each other, as most programs do. The time of a round trip counts from
//! when its request was sent, so a stall is one long trip and not many: for latency at a given load use an open loop
//! ([`super::source`]) towards a reflector, whose sink tells the same and omits nothing.
//!
//! What is counted goes into the rows of a source (requests) and of a sink (replies; `lost`: requests given up).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::frame::{self, FRAME_MAX, FRAME_MIN, Found, Route};
use super::sink::SinkStats;
use super::source::SourceStats;
use super::{LOOK, pause};
use crate::error::{Error, Result};
use crate::guest::clock::monotonic_ns;
use crate::guest::imix::Sizes;
use crate::guest::nic::{Receiver, Sender};
use crate::guest::row::Row;
use crate::shm::histogram::Recorder;

/// Most requests under way.
pub const WINDOW_MAX: u32 = 4096;
/// Most frames taken at once.
const BATCH: u32 = 32;

/// What is asked.
#[derive(Clone, Debug)]
pub struct ClosedConfig {
    /// From whom to whom.
    pub route: Route,
    /// Frame sizes in bytes, header included, 60 at least.
    pub sizes: Sizes,
    /// Requests under way, 1 to [`WINDOW_MAX`].
    pub window: u32,
    /// A request that has not come back for so long is given up.
    pub timeout: Duration,
    /// When the first request is sent, in nanoseconds of the monotonic clock; `None`, or a time that is over: at once.
    pub start_ns: Option<u64>,
    /// Ends after so long.
    pub duration: Option<Duration>,
    /// How long it looks for replies before it sleeps.
    pub spin: Duration,
}

impl ClosedConfig {
    /// The sizes that are sent over and over; refuses what this half of a device cannot send.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: a size or the window cannot be.
    pub fn check(&self, sender: &Sender) -> Result<Box<[u32]>> {
        if !(1..=WINDOW_MAX).contains(&self.window) {
            return Err(Error::Usage(format!("1 to {WINDOW_MAX} requests are under way; got {}", self.window)));
        }
        self.sizes.cycle(FRAME_MIN, sender.limit().min(FRAME_MAX))
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedStep {
    /// Something was sent or came back.
    Moved,
    /// Everything that may be under way is.
    Waits,
    /// The time is up, and nothing is under way any more.
    Done,
}

/// The requesting end.
#[derive(Debug)]
pub struct ClosedLoop {
    sender: Sender,
    receiver: Receiver,
    config: ClosedConfig,
    sizes: Box<[u32]>,
    turn: usize,
    /// Number of the next request, and of the oldest that may be under way.
    next: u64,
    oldest: u64,
    /// When each request under way was sent, at its number modulo [`WINDOW_MAX`]; 0: it is not under way.
    waiting: Box<[u64; WINDOW_MAX as usize]>,
    under_way: u32,
    end_ns: Option<u64>,
    sent: SourceStats,
    received: SinkStats,
    requests: Arc<Row>,
    replies: Arc<Row>,
}

impl ClosedLoop {
    /// A loop that has not begun. The rows are those of a source and of a sink, and go on from what they say.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: a size or the window cannot be.
    pub fn new(
        sender: impl Into<Sender>,
        receiver: impl Into<Receiver>,
        config: ClosedConfig,
        requests: Arc<Row>,
        replies: Arc<Row>,
    ) -> Result<Self> {
        let (sender, receiver) = (sender.into(), receiver.into());
        let sizes = config.check(&sender)?;
        Ok(Self {
            sender,
            receiver,
            config,
            sizes,
            turn: 0,
            next: 0,
            oldest: 0,
            waiting: Box::new([0; WINDOW_MAX as usize]),
            under_way: 0,
            end_ns: None,
            sent: SourceStats::read(&requests),
            received: SinkStats::read(&replies),
            requests,
            replies,
        })
    }

    /// Takes replies in and sends as many requests as may be under way.
    ///
    /// # Errors
    ///
    /// The driver's: the host broke a ring, or a doorbell is broken.
    pub fn step(&mut self, clock: impl Fn() -> u64) -> Result<ClosedStep> {
        let count = self.take(&clock)?;
        let now_ns = clock();
        let end_ns = *self.end_ns.get_or_insert_with(|| {
            let length =
                self.config.duration.map_or(u64::MAX, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            now_ns.saturating_add(length)
        });
        self.give_up(now_ns);
        let asked = if now_ns < end_ns { self.ask(now_ns)? } else { 0 };
        self.count();
        if now_ns >= end_ns && self.under_way == 0 {
            return Ok(ClosedStep::Done);
        }
        Ok(if count + asked == 0 { ClosedStep::Waits } else { ClosedStep::Moved })
    }

    fn take(&mut self, clock: &impl Fn() -> u64) -> Result<u32> {
        let Self { receiver, config, waiting, under_way, next, oldest, received, replies, .. } = self;
        let recorder = replies.values().get(SinkStats::LATENCY..).and_then(Recorder::new);
        let mut now_ns = None;
        receiver.receive(BATCH, |data| {
            let stamp = match frame::read(data) {
                Found::Intact(stamp) if stamp.is_reply && stamp.stream == config.route.stream => stamp,
                Found::Corrupted => {
                    received.corrupted += 1;
                    return;
                }
                _ => {
                    received.foreign += 1;
                    return;
                }
            };
            let sent_ns = &mut waiting[place(stamp.number)];
            // What was given up, or came before, is not waited for; a number that was never sent is nobody's reply.
            if stamp.number < *oldest || stamp.number >= *next {
                received.stale += 1;
            } else if *sent_ns == 0 {
                received.duplicates += 1;
            } else {
                let now_ns = *now_ns.get_or_insert_with(clock);
                if let Some(recorder) = &recorder {
                    recorder.record(now_ns.saturating_sub(*sent_ns), 1);
                }
                *sent_ns = 0;
                *under_way -= 1;
                received.frames += 1;
                received.bytes += data.len() as u64;
            }
        })
    }

    /// Goes on to the oldest request that is waited for, past those that took too long.
    fn give_up(&mut self, now_ns: u64) {
        let timeout_ns = u64::try_from(self.config.timeout.as_nanos()).unwrap_or(u64::MAX);
        while self.oldest < self.next {
            let sent_ns = &mut self.waiting[place(self.oldest)];
            if *sent_ns != 0 {
                if now_ns.saturating_sub(*sent_ns) < timeout_ns {
                    return;
                }
                *sent_ns = 0;
                self.under_way -= 1;
                self.received.lost += 1;
            }
            self.oldest += 1;
        }
    }

    fn ask(&mut self, now_ns: u64) -> Result<u32> {
        let mut asked = 0;
        while self.under_way < self.config.window && self.next - self.oldest < WINDOW_MAX.into() {
            let size = self.sizes[self.turn];
            let (route, number) = (self.config.route, self.next);
            if !self.sender.stage_with(size as usize, |room| frame::write(room, &route, number, now_ns, false))? {
                self.sent.blocked += 1;
                break;
            }
            self.waiting[place(number)] = now_ns.max(1);
            self.under_way += 1;
            self.next += 1;
            self.turn = if self.turn + 1 == self.sizes.len() { 0 } else { self.turn + 1 };
            self.sent.frames += 1;
            self.sent.bytes += u64::from(size);
            asked += 1;
        }
        self.sender.flush()?;
        Ok(asked)
    }

    fn count(&self) {
        for (index, word) in [self.sent.frames, self.sent.bytes, self.sent.blocked].into_iter().enumerate() {
            self.requests.set(index, word);
        }
        for (index, word) in self.received.words().into_iter().enumerate() {
            self.replies.set(index, word);
        }
    }

    /// Asks until the time is up or `stop` is set, which is looked at every 50 ms at least.
    ///
    /// # Errors
    ///
    /// As [`Self::step`]; [`Error::Usage`] when it should sleep without doorbells.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while let Some(start_ns) = self.config.start_ns.filter(|&start_ns| monotonic_ns() < start_ns) {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            pause(start_ns, false);
        }
        while !stop.load(Ordering::Relaxed) {
            match self.step(monotonic_ns)? {
                ClosedStep::Done => return Ok(()),
                ClosedStep::Moved => {}
                ClosedStep::Waits => {
                    self.receiver.wait(self.config.spin, Some(LOOK.min(self.config.timeout)))?;
                }
            }
        }
        Ok(())
    }

    /// Ends the loop and gives its driver back.
    #[must_use]
    pub fn into_halves(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

const fn place(number: u64) -> usize {
    number as usize % WINDOW_MAX as usize
}
