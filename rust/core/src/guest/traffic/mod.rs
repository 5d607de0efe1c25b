//! Traffic for measuring: [`source`] sends numbered frames when [`arrivals`] says, [`sink`] tells what became of them,
//! [`closed`] sends the next when one has come back, [`echo`] sends back and times round trips, [`frame`] is what they say to
//! each other.
//!
//! Each runs on whatever thread its owner gives it, until done or told to stop; [`Running`] is such a thread. Time is a
//! parameter of every step, so that a test can be its own clock. Statistics are a [`super::row::Row`] that anybody may
//! read while they run.

pub mod arrivals;
pub mod closed;
pub mod echo;
pub mod frame;
pub mod sink;
pub mod source;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::clock::{SECOND_NS, monotonic_ns};
use super::row::Row;
use crate::error::{Error, Result};
use crate::shm::doorbell::Doorbell;
use crate::shm::histogram;

pub use arrivals::Arrivals;
pub use closed::{ClosedConfig, ClosedLoop, ClosedStep};
pub use echo::{Reflector, Requester, RequesterConfig, RequesterStats};
pub use frame::Route;
pub use sink::{SinkConfig, SinkStats, Streams, TrafficSink};
pub use source::{Interrupted, SourceStats, SourceStep, TrafficConfig, TrafficSource};

/// How long anything sleeps before it looks whether it should stop.
const LOOK: Duration = Duration::from_millis(50);
/// What the kernel may oversleep: the rest is waited for awake.
const SLACK_NS: u64 = 60_000;
/// A pair gives frames that are under way this long to arrive.
const SETTLE_NS: u64 = SECOND_NS;

/// Waits until `at_ns`, or for a while of it: asleep while it is far, awake when it is near.
fn pause(at_ns: u64, does_poll: bool) {
    let left_ns = at_ns.saturating_sub(monotonic_ns());
    if does_poll || left_ns <= SLACK_NS {
        std::hint::spin_loop();
    } else {
        std::thread::sleep(Duration::from_nanos(left_ns - SLACK_NS).min(LOOK));
    }
}

/// The words of a histogram that begins at `start` in a row; zeroes when the row ends before.
fn histogram_words(row: &Row, start: usize) -> Vec<u64> {
    let mut words: Vec<u64> = row.values().iter().skip(start).map(|word| word.load(Ordering::Relaxed)).collect();
    words.resize(histogram::WORDS, 0);
    words
}

/// Runs generator and sink in turn on this thread, looking instead of sleeping, until everything sent has arrived, or
/// nothing did for a second after the last was sent, or `stop` is set.
///
/// # Errors
///
/// Those of either.
pub fn run_pair(source: &mut TrafficSource, sink: &mut TrafficSink, stop: &AtomicBool) -> Result<()> {
    let mut last_ns = 0;
    while !stop.load(Ordering::Relaxed) {
        let now_ns = monotonic_ns();
        let step = source.step(now_ns)?;
        let count = sink.step(monotonic_ns)?;
        if count != 0 || step == SourceStep::Sent {
            last_ns = now_ns;
        } else if step == SourceStep::Done {
            let is_quiet = now_ns.saturating_sub(last_ns) >= SETTLE_NS;
            if is_quiet || sink.stats().frames >= source.stats().frames {
                return Ok(());
            }
            std::hint::spin_loop();
        }
    }
    Ok(())
}

/// A thread with something to do until it is stopped. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    done: Arc<Doorbell>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Running {
    /// Starts `work` on a thread of this name; 15 bytes of it are seen.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no threads or descriptors left.
    pub fn start(name: &str, work: impl FnOnce(&AtomicBool) -> Result<()> + Send + 'static) -> Result<Self> {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Doorbell::create()?));
        let (flag, bell) = (stop.clone(), done.clone());
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let outcome = work(&flag);
                // Whoever waits learns of the end from the thread, if not from the bell.
                let _ = bell.ring();
                outcome
            })
            .map_err(|error| Error::machine("start a traffic thread", error))?;
        Ok(Self { stop, done, thread: Some(thread) })
    }

    /// Rings when the work has ended by itself; for an event loop.
    #[must_use]
    pub fn done_bell(&self) -> &Doorbell {
        &self.done
    }

    /// Whether the work has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the work to end by itself. `false`: it has not, within `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the bell is broken.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        Ok(self.has_ended() || self.done.wait(Some(timeout))?)
    }

    /// Stops the work and tells how it went. Takes 50 ms at most when it was asleep.
    ///
    /// # Errors
    ///
    /// Those of the work; [`Error::Closed`] when it was stopped before, or panicked.
    pub fn stop(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) | None => Err(Error::Closed("the traffic thread")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whoever wanted to know how it went has asked before.
        let _ = self.stop();
    }
}
