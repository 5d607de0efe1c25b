//! The subject: the latest value of a state record, published by one process and sampled by another.
//!
//! Both sides use the record as a guest and a host do, through two mappings of one page. A publisher that does nothing
//! else is the worst that can happen to a sampler: the lines it reads are always on their way to the other core.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::duo::{self, Control, Cores, Isolation};
use super::{Meter, Windows};
use crate::error::{Error, Result};
use crate::shm::page::Page;
use crate::shm::state::{Publisher, Sampled, Sampler, StateLayout, StatePage};

/// Publishes or samples between two looks at the clock.
const LOOK_EVERY: u32 = 4096;
/// Longest value that is measured.
const WORDS_MAX: usize = 512;
const SCHEMA: u64 = 1;

/// What the other core does while a record is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Nothing: the value was published before.
    Still,
    /// It publishes, and spins so many times in between; 0: it publishes as fast as it can.
    Published {
        /// Turns of an empty loop between two values.
        pause: u32,
    },
}

/// Nanoseconds one publish takes, one sample a window. With `with_clock` it asks for the time too, as a program without
/// a clock of its own would.
///
/// # Errors
///
/// [`Error::Usage`]: no such size, [`Error::Machine`]: no memory or core.
pub fn publish_ns(value_bytes: u32, with_clock: bool, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    let (mut publisher, _sampler) = ends(value_bytes)?;
    let started = Instant::now();
    duo::run(
        cores,
        Isolation::Thread,
        windows.total() + Duration::from_secs(5),
        |_control| {},
        |_control| {
            let mut meter = Meter::start(windows, LOOK_EVERY);
            let mut values = [0; WORDS_MAX];
            let length = publisher.values();
            let mut now_ns = 0;
            loop {
                values[0] += 1;
                now_ns = if with_clock { started.elapsed().as_nanos() as u64 } else { now_ns + 1 };
                publisher.publish(now_ns, std::hint::black_box(&values[..length]));
                if !meter.count(1) {
                    return Ok(meter.into_nanoseconds());
                }
            }
        },
    )
}

/// Nanoseconds until a sampler has the latest value, one sample a window. What was busy counts into the time of the next.
///
/// # Errors
///
/// As [`publish_ns`], and [`Error::PeerGone`]: the publisher did not come up, or the record stayed empty.
pub fn sample_ns(value_bytes: u32, traffic: Traffic, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    let (mut publisher, sampler) = ends(value_bytes)?;
    publisher.publish(0, &[]);
    duo::run(
        cores,
        Isolation::Process,
        windows.total() + Duration::from_secs(5),
        |control| publish(&mut publisher, traffic, control),
        |_control| {
            let mut meter = Meter::start(windows, LOOK_EVERY);
            let mut values = [0; WORDS_MAX];
            let length = sampler.values();
            loop {
                let found = sampler.sample(std::hint::black_box(&mut values[..length]));
                if found == Sampled::Empty {
                    return Err(Error::PeerGone("the state record"));
                }
                if matches!(found, Sampled::Value { .. }) && !meter.count(1) {
                    return Ok(meter.into_nanoseconds());
                }
            }
        },
    )
}

fn publish(publisher: &mut Publisher, traffic: Traffic, control: &Control) {
    let mut values = [0; WORDS_MAX];
    let length = publisher.values();
    while !control.is_stopped() {
        match traffic {
            Traffic::Still => std::hint::spin_loop(),
            Traffic::Published { pause } => {
                let next = publisher.count() + 1;
                values[..length].fill(next);
                publisher.publish(next, &values[..length]);
                (0..pause).for_each(|_| std::hint::spin_loop());
            }
        }
    }
}

/// Both ends of one record, each in a mapping of its own.
fn ends(value_bytes: u32) -> Result<(Publisher, Sampler)> {
    let layout = StateLayout::plan(1, value_bytes)?;
    let page = Page::create("vbnet-bench", layout.bytes())?;
    let publisher = StatePage::format(&page, 0, layout, SCHEMA)?.publisher(0)?;
    let lent = page.as_fd().try_clone_to_owned().map_err(|source| Error::machine("hand a page over", source))?;
    let other: Arc<Page> = Page::open(lent)?;
    let sampler = StatePage::attach(&other, 0, other.size(), SCHEMA)?.sampler(0)?;
    Ok((publisher, sampler))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A process publishes as fast as it can: each of a million samples is one value, whole, and none goes back in time.
    #[test]
    fn samples_of_another_process_are_whole_and_in_order() {
        let Some(cores) = duo::tests::two_cores() else { return };
        for (words, pause) in [(1, 0), (4, 0), (6, 3), (100, 50)] {
            let (mut publisher, sampler) = ends(8 * words).unwrap();

            let outcome = duo::run(
                cores,
                Isolation::Process,
                Duration::from_secs(30),
                |control| publish(&mut publisher, Traffic::Published { pause }, control),
                |control| {
                    let mut values = vec![0; words as usize];
                    let (mut newest, mut got, mut changes) = (0, 0_u32, 0_u32);
                    while got < 250_000 || changes < 100 {
                        let Sampled::Value { count, published_ns } = sampler.sample(&mut values) else { continue };
                        assert_eq!(count, published_ns);
                        assert!(values.iter().all(|value| *value == count), "torn: {values:?} of {count}");
                        assert!(count >= newest);
                        changes += u32::from(count != newest);
                        (newest, got) = (count, got + 1);
                    }
                    control.say_stop();
                    Ok(changes)
                },
            );

            assert!(outcome.unwrap() >= 100);
        }
    }

    /// Each measurement answers one sample a window.
    #[test]
    fn each_window_gives_one_sample() {
        let Some(cores) = duo::tests::two_cores() else { return };
        let windows = Windows { warm_up: Duration::ZERO, window: Duration::from_millis(1), count: 2 };

        let samples = [
            publish_ns(32, false, cores, windows).unwrap(),
            publish_ns(32, true, cores, windows).unwrap(),
            sample_ns(32, Traffic::Still, cores, windows).unwrap(),
            sample_ns(32, Traffic::Published { pause: 10 }, cores, windows).unwrap(),
        ];

        assert!(samples.iter().all(|each| each.len() == 2 && each.iter().all(|ns| *ns > 0.0)), "{samples:?}");
    }
}
