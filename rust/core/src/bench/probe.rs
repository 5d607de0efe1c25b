//! Where two processors are, told by how long a cache line takes from one to the other and back.
//!
//! ```text
//!   below 75 ns     hyper-threads: both in one core, they share its first cache
//!   75 .. 250 ns    near: two cores behind one last-level cache or on one mesh
//!   250 .. 300 ns   between: neither; such a run is compared with nothing
//!   above 300 ns    far: another cache, die or socket
//! ```
//!
//! A hypervisor moves virtual processors about, and throughput between two of them changes by a factor of three to ten
//! when it does. So every run is probed before and after, and only like is compared with like. Two threads suffice:
//! the line does not know which process asks for it. The thresholds are the round trips published for current server
//! processors, with the gap between the kinds left out; what a machine shows is printed beside every figure.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::duo::{self, Cores, Isolation};
use crate::error::{Error, Result};

/// Below: the two share a core.
pub const HYPER_THREAD_BELOW_NS: f64 = 75.0;
/// Up to here: near.
pub const NEAR_UP_TO_NS: f64 = 250.0;
/// Above: far.
pub const FAR_ABOVE_NS: f64 = 300.0;

/// Round trips between two looks at the clock: each is one sample.
const ROUNDS_A_SAMPLE: u32 = 500;

/// Where two processors are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Hyper-threads of one core.
    HyperThreads,
    /// Two cores that reach each other quickly.
    Near,
    /// Between near and far: compared with nothing.
    Between,
    /// Two cores far from each other.
    Far,
}

impl Placement {
    /// What a round trip of `round_trip_ns` tells.
    #[must_use]
    pub fn of(round_trip_ns: f64) -> Self {
        if round_trip_ns < HYPER_THREAD_BELOW_NS {
            Self::HyperThreads
        } else if round_trip_ns <= NEAR_UP_TO_NS {
            Self::Near
        } else if round_trip_ns <= FAR_ABOVE_NS {
            Self::Between
        } else {
            Self::Far
        }
    }

    /// The word printed beside a figure.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::HyperThreads => "hyper-threads",
            Self::Near => "near",
            Self::Between => "between",
            Self::Far => "far",
        }
    }
}

#[repr(align(128))]
struct Line(AtomicU32);

/// Nanoseconds a cache line takes from one core to the other and back: one sample every few hundred round trips.
///
/// # Errors
///
/// [`Error::Usage`]: the cores are the same one; [`Error::Machine`]: this process may not use them;
/// [`Error::PeerGone`]: the machine was too busy to answer in time.
pub fn line_round_trips_ns(cores: Cores, length: Duration) -> Result<Vec<f64>> {
    if cores.near == cores.far {
        return Err(Error::Usage(format!("a round trip needs two cores; got core {} twice", cores.near)));
    }
    let line = &Line(AtomicU32::new(0));
    duo::run(
        cores,
        Isolation::Thread,
        length + Duration::from_secs(2),
        |control| {
            let mut expected = 1;
            while control.spin_until(|| (line.0.load(Ordering::Acquire) == expected).then_some(())).is_some() {
                line.0.store(expected + 1, Ordering::Release);
                expected = expected.wrapping_add(2);
            }
        },
        |control| {
            let mut samples = Vec::new();
            let mut value = 0u32;
            let end = Instant::now() + length;
            let mut begin = Instant::now();
            loop {
                for _ in 0..ROUNDS_A_SAMPLE {
                    line.0.store(value + 1, Ordering::Release);
                    value = value.wrapping_add(2);
                    control
                        .spin_until(|| (line.0.load(Ordering::Acquire) == value).then_some(()))
                        .ok_or(Error::PeerGone("a cache-line round trip"))?;
                }
                let now = Instant::now();
                samples.push((now - begin).as_nanos() as f64 / f64::from(ROUNDS_A_SAMPLE));
                begin = now;
                if now > end {
                    return Ok(samples);
                }
            }
        },
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The thresholds fall where the table says, borders included.
    #[test]
    fn placements_follow_the_thresholds() {
        let found = [40.0, 74.9, 75.0, 250.0, 250.1, 300.0, 300.1].map(|ns| Placement::of(ns).label());

        assert_eq!(["hyper-threads", "hyper-threads", "near", "near", "between", "between", "far"], found);
    }

    /// One core cannot play ping-pong with itself.
    #[test]
    fn one_core_is_refused() {
        let outcome = line_round_trips_ns(Cores { near: 0, far: 0 }, Duration::ZERO);

        assert!(matches!(outcome, Err(Error::Usage(_))));
    }

    /// A probe of any length answers at least one positive sample.
    #[test]
    fn a_probe_answers_positive_samples() {
        let Some(cores) = duo::tests::two_cores() else { return };

        let samples = line_round_trips_ns(cores, Duration::ZERO).unwrap();

        assert!(!samples.is_empty() && samples.iter().all(|ns| *ns > 0.0), "{samples:?}");
    }
}
