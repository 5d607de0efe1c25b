//! Round trips: a reflector that sends test frames back, and a requester that times how long that takes.
//!
//! The requester has one frame under way at a time, so it measures latency, not throughput; it is a closed loop on
//! purpose. Polled or asleep is the difference of a wakeup on another processor, and that is what is to be measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::LOOK;
use super::frame::{self, FRAME_MAX, FRAME_MIN, Found, Route};
use crate::error::{Error, Result};
use crate::guest::clock::monotonic_ns;
use crate::guest::nic::{Load, Receiver, Sender, Stage};
use crate::guest::row::Row;
use crate::shm::histogram::{self, Recorder};

/// Looks between two looks at the clock.
const LOOKS: u32 = 64;
/// Most frames taken at once.
const BATCH: u32 = 32;

/// Sends every test frame back to where it came from.
#[derive(Debug)]
pub struct Reflector {
    sender: Sender,
    receiver: Receiver,
    does_poll: bool,
    row: Arc<Row>,
    mac: Option<[u8; 6]>,
}

impl Reflector {
    /// Names of the counters, in the order of its [`Row`]: frames sent back, frames ignored, replies without room.
    pub const NAMES: [&'static str; 3] = ["frames", "foreign", "drops_no_room"];
    /// Counters of a row.
    pub const WORDS: usize = Self::NAMES.len();

    /// A reflector that waits by looking, or asleep.
    #[must_use]
    pub fn new(sender: impl Into<Sender>, receiver: impl Into<Receiver>, does_poll: bool, row: Arc<Row>) -> Self {
        Self { sender: sender.into(), receiver: receiver.into(), does_poll, row, mac: None }
    }

    /// Answers as this station only: a frame that was flooded is not sent back by everybody in somebody else's name.
    #[must_use]
    pub const fn station(mut self, mac: [u8; 6]) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Turns one batch round; how many frames arrived.
    ///
    /// # Errors
    ///
    /// The driver's: the host broke a ring, or a doorbell is broken.
    #[inline]
    pub fn step(&mut self) -> Result<u32> {
        let Self { sender, receiver, row, mac, .. } = self;
        let (received, counts, outcome) = sender.burst(BATCH, Reflecting { receiver, mac: *mac });
        for (index, count) in counts.into_iter().enumerate() {
            row.add(index, count);
        }
        let count = received?;
        outcome?;
        self.sender.flush()?;
        Ok(count)
    }

    /// Reflects until `stop` is set, which is looked at every 50 ms at least.
    ///
    /// # Errors
    ///
    /// As [`Self::step`]; [`Error::Usage`] when it should sleep without doorbells.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            if self.step()? != 0 {
                continue;
            }
            if self.does_poll {
                std::hint::spin_loop();
            } else {
                self.receiver.wait(Duration::ZERO, Some(LOOK))?;
            }
        }
        Ok(())
    }

    /// Ends the reflector and gives its driver back.
    #[must_use]
    pub fn into_halves(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

/// One batch on its way back.
struct Reflecting<'a> {
    receiver: &'a mut Receiver,
    mac: Option<[u8; 6]>,
}

impl Load for Reflecting<'_> {
    /// How many arrived; how many were answered, were strange, found no room; what the sender ran into.
    type Answer = (Result<u32>, [u64; Reflector::WORDS], Result<()>);

    #[inline(always)]
    fn load(self, burst: &mut impl Stage) -> Self::Answer {
        let (mut answered, mut strange, mut lost) = (0, 0, 0);
        let mut outcome = Ok(());
        let Self { receiver, mac } = self;
        let received = receiver.receive(BATCH, |frame| {
            if !frame::is_request(frame) || mac.is_some_and(|mac| frame::is_for_another(frame, mac)) {
                strange += 1;
                return;
            }
            let staged = burst.stage_with(frame.len(), |room| {
                room.copy_from_slice(frame);
                frame::turn_round(room);
            });
            match staged {
                Ok(true) => answered += 1,
                Ok(false) | Err(Error::Usage(_)) => lost += 1,
                Err(error) => outcome = Err(error),
            }
        });
        (received, [answered, strange, lost], outcome)
    }
}

/// What a requester asks.
#[derive(Clone, Copy, Debug)]
pub struct RequesterConfig {
    /// From whom to whom.
    pub route: Route,
    /// Bytes of a frame, header included, 60 at least.
    pub size: u32,
    /// Ends after so many requests.
    pub requests: Option<u64>,
    /// How long a reply is waited for.
    pub timeout: Duration,
    /// Waits by looking instead of sleeping.
    pub does_poll: bool,
}

/// What a requester has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequesterStats {
    /// Frames sent.
    pub requests: u64,
    /// Replies in time.
    pub replies: u64,
    /// Requests without a reply in time.
    pub timeouts: u64,
    /// Frames that were no reply to the request under way.
    pub foreign: u64,
}

impl RequesterStats {
    /// Names of the counters, in the order of the requester's [`Row`]; the histogram of round trips follows them.
    pub const NAMES: [&'static str; 4] = ["requests", "replies", "timeouts", "foreign"];
    /// Where the histogram of round trips in nanoseconds begins.
    pub const LATENCY: usize = Self::NAMES.len();
    /// Counters of a row, histogram included.
    pub const WORDS: usize = Self::LATENCY + histogram::WORDS;

    /// What a requester's row says now.
    #[must_use]
    pub fn read(row: &Row) -> Self {
        Self { requests: row.load(0), replies: row.load(1), timeouts: row.load(2), foreign: row.load(3) }
    }

    /// The words of the histogram of round trips in a requester's row.
    #[must_use]
    pub fn latency(row: &Row) -> Vec<u64> {
        super::histogram_words(row, Self::LATENCY)
    }
}

/// Sends one frame, waits for it to come back, and so on.
#[derive(Debug)]
pub struct Requester {
    sender: Sender,
    receiver: Receiver,
    config: RequesterConfig,
    next: u64,
    row: Arc<Row>,
}

impl Requester {
    /// A requester that has not begun. `row` has at least [`RequesterStats::WORDS`] counters; with fewer, round trips
    /// are not recorded.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the device does not carry frames of this size.
    pub fn new(
        sender: impl Into<Sender>,
        receiver: impl Into<Receiver>,
        config: RequesterConfig,
        row: Arc<Row>,
    ) -> Result<Self> {
        let (sender, receiver) = (sender.into(), receiver.into());
        crate::guest::imix::Sizes::Fixed(config.size).cycle(FRAME_MIN, sender.limit().min(FRAME_MAX))?;
        Ok(Self { sender, receiver, config, next: 0, row })
    }

    /// One round trip, begun at `start_ns`; when it ended, by the clock. Whether it succeeded is in the counters.
    fn trip(&mut self, start_ns: u64, stop: &AtomicBool) -> Result<u64> {
        let number = self.next;
        self.next += 1;
        let (route, deadline_ns) = (self.config.route, start_ns.saturating_add(nanoseconds(self.config.timeout)));
        let write = |room: &mut [u8]| frame::write(room, &route, number, start_ns, true);
        if !self.sender.stage_with(self.config.size as usize, write)? {
            // With one frame under way there is room, unless the host has stopped returning slots.
            self.row.add(2, 1);
            return self.rest(deadline_ns, stop);
        }
        self.sender.flush()?;
        self.row.add(0, 1);
        loop {
            for _ in 0..LOOKS {
                let mut is_back = false;
                let row = &self.row;
                self.receiver.receive(BATCH, |frame| match frame::read(frame) {
                    Found::Intact(stamp)
                        if stamp.is_reply && stamp.stream == route.stream && stamp.number == number =>
                    {
                        is_back = true;
                    }
                    _ => row.add(3, 1),
                })?;
                if is_back {
                    let end_ns = monotonic_ns();
                    self.row.add(1, 1);
                    if let Some(recorder) = self.row.values().get(RequesterStats::LATENCY..).and_then(Recorder::new) {
                        recorder.record(end_ns.saturating_sub(start_ns), 1);
                    }
                    return Ok(end_ns);
                }
                if self.config.does_poll {
                    std::hint::spin_loop();
                } else {
                    break;
                }
            }
            let now_ns = monotonic_ns();
            if now_ns >= deadline_ns || stop.load(Ordering::Relaxed) {
                self.row.add(2, 1);
                return Ok(now_ns);
            }
            if !self.config.does_poll {
                let left = Duration::from_nanos(deadline_ns - now_ns);
                self.receiver.wait(Duration::ZERO, Some(left.min(LOOK)))?;
            }
        }
    }

    /// Waits for room to send again.
    fn rest(&mut self, deadline_ns: u64, stop: &AtomicBool) -> Result<u64> {
        loop {
            let now_ns = monotonic_ns();
            if now_ns >= deadline_ns || stop.load(Ordering::Relaxed) {
                return Ok(now_ns);
            }
            if self.config.does_poll {
                std::hint::spin_loop();
            } else if self.sender.wait(Some(LOOK))? {
                return Ok(monotonic_ns());
            }
        }
    }

    /// Measures until all requests were made or `stop` is set, which is looked at every 50 ms at least.
    ///
    /// # Errors
    ///
    /// The driver's; [`Error::Usage`] when it should sleep without doorbells.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut now_ns = monotonic_ns();
        while !stop.load(Ordering::Relaxed) && self.config.requests.is_none_or(|limit| self.next < limit) {
            now_ns = self.trip(now_ns, stop)?;
        }
        Ok(())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
