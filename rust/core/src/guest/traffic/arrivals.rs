//! When the frames of a stream are due: evenly, in bursts, at random, or as somebody recorded them.
//!
//! A schedule is exact: 32 binary places below the nanosecond keep a rate true for weeks, and a frame that leaves late moves
//! none behind it. Random schedules follow from a seed, so that a run can be repeated. Source: open-loop load generation
//! as in "coordinated omission", G. Tene; Poisson arrivals by inversion (Devroye, "Non-Uniform Random Variate Generation",
//! ch. II.2); the generator is SplitMix64 (Steele, Lea, Flood 2014).

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::guest::clock::SECOND_NS;

/// Most frames a second that can be asked for.
pub const RATE_MAX: u64 = 1_000_000_000;

/// When frames are due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// As many as there is room for.
    Flood,
    /// Evenly.
    Constant {
        /// Frames a second.
        rate: u64,
    },
    /// Evenly, at a rate that goes from one to the other in a straight line, and stays there.
    Ramp {
        /// Frames a second at the beginning.
        from: u64,
        /// Frames a second at the end.
        to: u64,
        /// How long that takes.
        over: Duration,
    },
    /// Many at once, every so often.
    Burst {
        /// How many.
        frames: u32,
        /// From the first of one burst to that of the next.
        every: Duration,
    },
    /// At random, independent of each other.
    Poisson {
        /// Frames a second on average.
        rate: u64,
        /// What the randomness follows from.
        seed: u64,
    },
    /// Evenly while on, nothing while off.
    OnOff {
        /// Frames a second while on.
        rate: u64,
        /// How long it is on.
        on: Duration,
        /// How long it is off.
        off: Duration,
    },
    /// With these gaps in nanoseconds from each frame to the next, over and over.
    Gaps(Arc<[u64]>),
}

impl Arrivals {
    /// Refuses what no clock can keep.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`], saying which number cannot be.
    pub fn check(&self) -> Result<()> {
        let rate = |what: &str, rate: u64| {
            if (1..=RATE_MAX).contains(&rate) {
                return Ok(());
            }
            Err(Error::Usage(format!("{what} is 1 to {RATE_MAX} frames a second; got {rate}")))
        };
        let time = |what: &str, time: Duration| {
            if !time.is_zero() && time <= Duration::from_hours(24) {
                return Ok(());
            }
            Err(Error::Usage(format!("{what} is more than 0 and at most a day; got {time:?}")))
        };
        match self {
            Self::Flood => Ok(()),
            Self::Constant { rate: frames } | Self::Poisson { rate: frames, .. } => rate("a rate", *frames),
            Self::Ramp { from, to, over } => {
                rate("a ramp's first rate", *from)?;
                rate("a ramp's last rate", *to)?;
                time("a ramp's time", *over)
            }
            Self::Burst { frames: 0, .. } => Err(Error::Usage("a burst has one frame at least; got 0".to_owned())),
            Self::Burst { every, .. } => time("the time from burst to burst", *every),
            Self::OnOff { rate: frames, on, off } => {
                rate("a rate", *frames)?;
                time("the time on", *on)?;
                time("the time off", *off)
            }
            Self::Gaps(gaps) if gaps.iter().all(|&gap| gap == 0) => {
                Err(Error::Usage("a recorded stream takes some time; all gaps are 0".to_owned()))
            }
            Self::Gaps(_) => Ok(()),
        }
    }
}

/// Nanoseconds with 32 binary places.
type Fixed = u128;

const fn fixed(nanoseconds: u64) -> Fixed {
    (nanoseconds as Fixed) << 32
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn interval(rate: u64) -> Fixed {
    fixed(SECOND_NS) / Fixed::from(rate.max(1))
}

/// The schedule of one stream.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    next: Fixed,
    pace: Pace,
}

#[derive(Clone, Debug)]
enum Pace {
    Even { interval: Fixed },
    Ramp { start: Fixed, from: f64, to: f64, over: Fixed },
    Burst { frames: u32, left: u32, every: Fixed },
    Poisson { mean: f64, state: u64 },
    OnOff { interval: Fixed, on_until: Fixed, off: Fixed, on: Fixed },
    Gaps { gaps: Arc<[u64]>, turn: usize },
}

impl Schedule {
    /// The schedule of arrivals that begin at `start_ns`; `None`: frames are due as soon as there is room.
    pub(super) fn new(arrivals: &Arrivals, start_ns: u64) -> Option<Self> {
        let start = fixed(start_ns);
        let pace = match arrivals {
            Arrivals::Flood => return None,
            Arrivals::Constant { rate } => Pace::Even { interval: interval(*rate) },
            Arrivals::Ramp { from, to, over } => {
                Pace::Ramp { start, from: *from as f64, to: *to as f64, over: fixed(nanoseconds(*over)) }
            }
            Arrivals::Burst { frames, every } => {
                Pace::Burst { frames: *frames, left: *frames, every: fixed(nanoseconds(*every)) }
            }
            Arrivals::Poisson { rate, seed } => Pace::Poisson { mean: interval(*rate) as f64, state: *seed },
            Arrivals::OnOff { rate, on, off } => {
                let on = fixed(nanoseconds(*on));
                Pace::OnOff { interval: interval(*rate), on_until: start + on, off: fixed(nanoseconds(*off)), on }
            }
            Arrivals::Gaps(gaps) => Pace::Gaps { gaps: gaps.clone(), turn: 0 },
        };
        Some(Self { next: start, pace })
    }

    /// When the next frame is due.
    #[inline]
    pub(super) const fn next_ns(&self) -> u64 {
        (self.next >> 32) as u64
    }

    /// The next frame was sent.
    #[inline]
    pub(super) fn advance(&mut self) {
        match &mut self.pace {
            Pace::Even { interval } => self.next += *interval,
            Pace::Ramp { start, from, to, over } => {
                let gone = ((self.next - *start) as f64 / *over as f64).min(1.0);
                self.next += (fixed(SECOND_NS) as f64 / (*from + (*to - *from) * gone)) as Fixed;
            }
            Pace::Burst { frames, left, every } => {
                *left -= 1;
                if *left == 0 {
                    *left = *frames;
                    self.next += *every;
                }
            }
            Pace::Poisson { mean, state } => self.next += (*mean * exponential(state)) as Fixed,
            Pace::OnOff { interval, on_until, off, on } => {
                self.next += *interval;
                if self.next >= *on_until {
                    self.next = *on_until + *off;
                    *on_until = self.next + *on;
                }
            }
            Pace::Gaps { gaps, turn } => {
                self.next += fixed(gaps[*turn]);
                *turn = if *turn + 1 == gaps.len() { 0 } else { *turn + 1 };
            }
        }
    }
}

/// An exponentially distributed number of mean 1.
fn exponential(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    // 53 bits, shifted half a step away from 0, whose logarithm there is not.
    let uniform = (((mixed ^ mixed >> 31) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -uniform.ln()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn due(arrivals: &Arrivals, count: usize) -> Vec<u64> {
        let mut schedule = Schedule::new(arrivals, 1000).unwrap();
        (0..count)
            .map(|_| {
                let next = schedule.next_ns();
                schedule.advance();
                next - 1000
            })
            .collect()
    }

    #[test]
    fn constant_rate_is_true_for_a_million_frames() {
        // Binary places end somewhere: a nanosecond in a second.
        let last = due(&Arrivals::Constant { rate: 999_983 }, 999_984).pop().unwrap();
        assert!((SECOND_NS - 1..=SECOND_NS).contains(&last), "{last}");
    }

    #[test]
    fn ramp_sends_the_mean_of_both_rates_and_then_keeps_the_last() {
        let ramp = Arrivals::Ramp { from: 1000, to: 3000, over: Duration::from_secs(1) };

        let due = due(&ramp, 5000);

        let in_first = due.iter().filter(|&&at| at < SECOND_NS).count();
        let in_second = due.iter().filter(|&&at| (SECOND_NS..2 * SECOND_NS).contains(&at)).count();
        assert!((1995..=2005).contains(&in_first), "{in_first}");
        assert!((2999..=3001).contains(&in_second), "{in_second}");
    }

    #[test]
    fn burst_is_due_at_once_and_then_not_for_a_while() {
        let burst = Arrivals::Burst { frames: 3, every: Duration::from_millis(1) };
        assert_eq!([0, 0, 0, 1_000_000, 1_000_000, 1_000_000, 2_000_000].as_slice(), due(&burst, 7));
    }

    #[test]
    fn on_off_is_silent_between_its_turns() {
        let arrivals = Arrivals::OnOff { rate: 1000, on: Duration::from_millis(2), off: Duration::from_millis(8) };
        assert_eq!([0, 1_000_000, 10_000_000, 11_000_000, 20_000_000].as_slice(), due(&arrivals, 5));
    }

    #[test]
    fn poisson_has_the_mean_and_the_spread_it_should_and_can_be_repeated() {
        let arrivals = Arrivals::Poisson { rate: 1_000_000, seed: 7 };

        let due_ns = due(&arrivals, 200_000);

        let gaps: Vec<f64> = due_ns.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((990.0..1010.0).contains(&mean), "{mean}");
        assert!((0.98..1.02).contains(&(deviation / mean)), "{deviation}");
        assert_eq!(due_ns, due(&arrivals, 200_000));
        assert_ne!(due_ns, due(&Arrivals::Poisson { rate: 1_000_000, seed: 8 }, 200_000));
    }

    #[test]
    fn recorded_gaps_come_round_again() {
        let arrivals = Arrivals::Gaps([5, 0, 7].into());
        assert_eq!([0, 5, 5, 12, 17, 17, 24].as_slice(), due(&arrivals, 7));
    }

    #[test]
    fn what_no_clock_can_keep_is_refused() {
        let second = Duration::from_secs(1);
        for (refused, what) in [
            (Arrivals::Constant { rate: 0 }, "got 0"),
            (Arrivals::Constant { rate: RATE_MAX + 1 }, "got 1000000001"),
            (Arrivals::Ramp { from: 1, to: 0, over: second }, "last rate"),
            (Arrivals::Ramp { from: 1, to: 1, over: Duration::ZERO }, "a ramp's time"),
            (Arrivals::Burst { frames: 0, every: second }, "one frame"),
            (Arrivals::Burst { frames: 1, every: Duration::ZERO }, "burst to burst"),
            (Arrivals::OnOff { rate: 1, on: Duration::ZERO, off: second }, "time on"),
            (Arrivals::OnOff { rate: 1, on: second, off: Duration::from_hours(25) }, "time off"),
            (Arrivals::Gaps([0, 0].into()), "all gaps are 0"),
        ] {
            let error = refused.check().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        assert!(Arrivals::Flood.check().is_ok());
    }
}
