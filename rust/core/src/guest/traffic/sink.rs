//! The sink: takes test frames in, and tells what became of them on their way.
//!
//! Lost, reordered and duplicate frames are told from their numbers ([`crate::guest::sequence`]), corrupted ones from
//! their pattern ([`super::frame`]). Latency runs from the time a frame was due to the time its batch was taken. A
//! corrupted frame has no number that could be believed, so it is missing from its stream as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::LOOK;
use super::frame::{self, Found};
use crate::error::Result;
use crate::guest::clock::monotonic_ns;
use crate::guest::nic::Receiver;
use crate::guest::row::Row;
use crate::guest::sequence::{Arrival, Sequence};
use crate::shm::histogram::{self, Recorder};

/// Most streams one sink tells apart; frames of others are foreign.
pub const STREAMS_MAX: usize = 256;

/// How a sink takes frames in.
#[derive(Clone, Copy, Debug)]
pub struct SinkConfig {
    /// Most frames taken at once.
    pub batch: u32,
    /// Copies each frame into memory of its own before it looks at it: what buffers that are shared spare.
    pub does_copy: bool,
    /// Waits by looking instead of sleeping.
    pub does_poll: bool,
    /// How long it looks before it sleeps.
    pub spin: Duration,
    /// Its address: a frame to another one was brought to the wrong guest. `None`: any will do.
    pub mac: Option<[u8; 6]>,
}

impl Default for SinkConfig {
    fn default() -> Self {
        Self { batch: 32, does_copy: false, does_poll: false, spin: Duration::from_micros(20), mac: None }
    }
}

/// What a sink has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkStats {
    /// Test frames received intact, duplicates included.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Numbers missing below the largest seen, in all streams. Goes down when a reordered frame arrives.
    pub lost: u64,
    /// Frames that arrived behind a later one.
    pub reordered: u64,
    /// Frames that had arrived before.
    pub duplicates: u64,
    /// Frames that were changed on their way.
    pub corrupted: u64,
    /// Frames that were none of ours.
    pub foreign: u64,
    /// Frames so late that nobody remembers whether they were missing: more than 65472 numbers behind.
    pub stale: u64,
    /// Intact test frames to another address than this guest's: flooded, or brought to the wrong port.
    pub misdelivered: u64,
}

impl SinkStats {
    /// Names of the counters, in the order of the sink's [`Row`]; the latency histogram follows them.
    pub const NAMES: [&'static str; 9] =
        ["frames", "bytes", "lost", "reordered", "duplicates", "corrupted", "foreign", "stale", "misdelivered"];
    /// Where the histogram of latencies in nanoseconds begins.
    pub const LATENCY: usize = Self::NAMES.len();
    /// Counters of a row, histogram included.
    pub const WORDS: usize = Self::LATENCY + histogram::WORDS;

    /// What a sink's row says now.
    #[must_use]
    pub fn read(row: &Row) -> Self {
        Self {
            frames: row.load(0),
            bytes: row.load(1),
            lost: row.load(2),
            reordered: row.load(3),
            duplicates: row.load(4),
            corrupted: row.load(5),
            foreign: row.load(6),
            stale: row.load(7),
            misdelivered: row.load(8),
        }
    }

    /// The words of the latency histogram in a sink's row.
    #[must_use]
    pub fn latency(row: &Row) -> Vec<u64> {
        super::histogram_words(row, Self::LATENCY)
    }

    pub(super) const fn words(&self) -> [u64; Self::LATENCY] {
        [
            self.frames,
            self.bytes,
            self.lost,
            self.reordered,
            self.duplicates,
            self.corrupted,
            self.foreign,
            self.stale,
            self.misdelivered,
        ]
    }
}

/// The streams that a sink knows, and what has arrived of them: by another driver it goes on with them.
#[derive(Debug, Default)]
pub struct Streams(Vec<(u32, Sequence)>);

/// What arrived, without the driver it arrived through.
#[derive(Debug)]
struct Intake {
    mac: Option<[u8; 6]>,
    streams: Vec<(u32, Sequence)>,
    /// The stream of the frame before.
    last: usize,
    stats: SinkStats,
}

impl Intake {
    #[inline]
    fn take(&mut self, frame: &[u8], recorder: Option<&Recorder<'_>>, now_ns: impl FnOnce() -> u64) {
        let stamp = match frame::read(frame) {
            Found::Intact(stamp) => stamp,
            Found::Corrupted => {
                self.stats.corrupted += 1;
                return;
            }
            Found::Foreign => {
                self.stats.foreign += 1;
                return;
            }
        };
        if self.mac.is_some_and(|mac| frame::is_for_another(frame, mac)) {
            self.stats.misdelivered += 1;
            return;
        }
        if self.streams.get(self.last).is_none_or(|(stream, _)| *stream != stamp.stream) && !self.find(stamp.stream) {
            self.stats.foreign += 1;
            return;
        }
        let sequence = &mut self.streams[self.last].1;
        self.stats.frames += 1;
        self.stats.bytes += frame.len() as u64;
        match sequence.arrive(stamp.number) {
            Arrival::InOrder => {}
            Arrival::Ahead(skipped) => self.stats.lost += skipped,
            Arrival::Reordered => {
                self.stats.reordered += 1;
                self.stats.lost = self.stats.lost.saturating_sub(1);
            }
            Arrival::Duplicate => self.stats.duplicates += 1,
            Arrival::Stale => self.stats.stale += 1,
        }
        if stamp.scheduled_ns != 0
            && let Some(recorder) = recorder
        {
            recorder.record(now_ns().saturating_sub(stamp.scheduled_ns), 1);
        }
    }

    /// Makes `stream` the last one. `false`: there are too many.
    #[cold]
    fn find(&mut self, stream: u32) -> bool {
        match self.streams.iter().position(|(known, _)| *known == stream) {
            Some(index) => self.last = index,
            None if self.streams.len() < STREAMS_MAX => {
                self.last = self.streams.len();
                self.streams.push((stream, Sequence::new()));
            }
            None => return false,
        }
        true
    }
}

/// The sink.
#[derive(Debug)]
pub struct TrafficSink {
    receiver: Receiver,
    config: SinkConfig,
    intake: Intake,
    /// Where frames are copied to, if they are.
    own: Vec<u8>,
    row: Arc<Row>,
}

impl TrafficSink {
    /// A sink that has seen nothing. `row` has at least [`SinkStats::WORDS`] counters, which go on from what they say; with
    /// fewer, latencies are not recorded.
    #[must_use]
    pub fn new(receiver: impl Into<Receiver>, config: SinkConfig, row: Arc<Row>) -> Self {
        let intake = Intake { mac: config.mac, streams: Vec::new(), last: 0, stats: SinkStats::read(&row) };
        Self { receiver: receiver.into(), config, intake, own: Vec::new(), row }
    }

    /// The same sink, going on with what another one knew.
    #[must_use]
    pub fn knowing(mut self, streams: Streams) -> Self {
        (self.intake.streams, self.intake.last) = (streams.0, 0);
        self
    }

    /// Takes one batch in; how many frames that were. The clock is read once a batch, after its frames arrived, and
    /// only when a frame says when it was due.
    ///
    /// # Errors
    ///
    /// The driver's: the host broke the ring, or a doorbell is broken.
    #[inline]
    pub fn step(&mut self, clock: impl Fn() -> u64) -> Result<u32> {
        let Self { receiver, config, intake, own, row } = self;
        let recorder = row.values().get(SinkStats::LATENCY..).and_then(Recorder::new);
        let mut now_ns = None;
        let count = receiver.receive(config.batch, |frame| {
            let frame = if config.does_copy {
                own.clear();
                own.extend_from_slice(frame);
                own.as_slice()
            } else {
                frame
            };
            intake.take(frame, recorder.as_ref(), || *now_ns.get_or_insert_with(&clock));
        })?;
        if count != 0 {
            for (index, word) in intake.stats.words().into_iter().enumerate() {
                row.set(index, word);
            }
        }
        Ok(count)
    }

    /// Takes frames in until `stop` is set, which is looked at every 50 ms at least.
    ///
    /// # Errors
    ///
    /// As [`Self::step`]; [`crate::error::Error::Usage`] when it should sleep without doorbells.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            if self.step(monotonic_ns)? != 0 {
                continue;
            }
            if self.config.does_poll {
                std::hint::spin_loop();
            } else {
                self.receiver.wait(self.config.spin, Some(LOOK))?;
            }
        }
        Ok(())
    }

    /// What arrived so far.
    #[must_use]
    pub const fn stats(&self) -> SinkStats {
        self.intake.stats
    }

    /// Frames of a stream that are missing when `sent` were sent: those lost before the last that arrived, and those
    /// behind it.
    #[must_use]
    pub fn missing(&self, stream: u32, sent: u64) -> u64 {
        match self.intake.streams.iter().find(|(known, _)| *known == stream) {
            None => sent,
            Some((_, sequence)) => sequence.missing() + sent.saturating_sub(sequence.next()),
        }
    }

    /// Ends the sink and gives its driver back.
    #[must_use]
    pub fn into_receiver(self) -> Receiver {
        self.receiver
    }

    /// Ends the sink and gives its driver back, and what it knows.
    #[must_use]
    pub fn interrupt(self) -> (Receiver, Streams) {
        (self.receiver, Streams(self.intake.streams))
    }
}
