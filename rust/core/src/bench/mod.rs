//! What the machine itself can do, and what vbnet makes of it: the measuring loops behind `vbnet bench`.
//!
//! * [`probe`] says where the two processors are: how long a cache line takes there and back.
//! * [`bare`] is the limit: frames copied in and out of plain shared memory, in several layouts, with nothing around.
//! * [`pingpong`] is the limit of latency: polled, asleep on an eventfd, asleep on a futex.
//! * [`ring`] is the subject: the same frames through vbnet's ring, arena and checks, between two mappings.
//! * [`exchange`] is the subject with a switch in between: frames and round trips from guest to guest.
//! * [`irq`] is what signals cost: raises, wake-ups, and urgent ones under a flood.
//! * [`fastcall`] is a call of the host and its answer: alone, asleep, and with several callers at once.
//! * [`timer`] is the cost and the lateness of timers, beside a bare timerfd.
//! * [`state`] is a state record: what publishing and sampling the latest value costs.
//! * [`duo`] puts the two sides of a measurement on two cores, as threads or as two processes.
//!
//! Every measurement answers a list of samples, one a window of time, so that median and spread can be told. Nothing
//! here is on a data path; nothing leaves a process, a thread or a mapping behind.

pub mod bare;
pub mod duo;
pub mod exchange;
pub mod fastcall;
pub mod irq;
pub mod pingpong;
pub mod probe;
pub mod ring;
pub mod state;
pub mod timer;

use std::time::{Duration, Instant};

/// How long to measure: one warm-up, then windows one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Not counted, before the first window.
    pub warm_up: Duration,
    /// Length of one window.
    pub window: Duration,
    /// Number of windows: that many samples come back.
    pub count: u32,
}

impl Windows {
    /// All of it, warm-up included.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.warm_up + self.window * self.count
    }
}

/// Turns a running count into one rate a window.
#[derive(Debug)]
pub struct Meter {
    windows: Windows,
    look_every: u32,
    since_look: u32,
    counted: u64,
    started: Instant,
    warm: bool,
    rates: Vec<f64>,
}

impl Meter {
    /// Starts the warm-up. The clock is looked at once in `look_every` counts: often enough for the windows, rarely
    /// enough not to be measured itself.
    #[must_use]
    pub fn start(windows: Windows, look_every: u32) -> Self {
        Self {
            windows,
            look_every: look_every.max(1),
            since_look: 0,
            counted: 0,
            started: Instant::now(),
            warm: false,
            rates: Vec::with_capacity(windows.count as usize),
        }
    }

    /// Counts `count` more. `false`: all windows are full, stop.
    #[inline]
    pub fn count(&mut self, count: u32) -> bool {
        self.counted += u64::from(count);
        self.since_look += count;
        self.since_look < self.look_every || self.look()
    }

    #[cold]
    fn look(&mut self) -> bool {
        self.since_look = 0;
        let now = Instant::now();
        let spent = now - self.started;
        if !self.warm {
            if spent >= self.windows.warm_up {
                self.warm = true;
                self.begin(now);
            }
            return true;
        }
        if spent >= self.windows.window {
            self.rates.push(self.counted as f64 / spent.as_secs_f64());
            self.begin(now);
        }
        self.rates.len() < self.windows.count as usize
    }

    fn begin(&mut self, now: Instant) {
        self.started = now;
        self.counted = 0;
    }

    /// Counts a second, one sample a window.
    #[must_use]
    pub fn into_rates(self) -> Vec<f64> {
        self.rates
    }

    /// Nanoseconds a count, one sample a window.
    #[must_use]
    pub fn into_nanoseconds(self) -> Vec<f64> {
        self.rates.into_iter().map(|rate| 1e9 / rate).collect()
    }
}

/// How many frames may pass between two looks at the clock: some tens of microseconds' worth.
#[must_use]
pub fn look_every(frame_bytes: u32) -> u32 {
    ((1 << 20) / frame_bytes.max(256)).max(16)
}
