//! What a timer costs to arm, and how late it comes: shared timers beside a bare timerfd.
//!
//! ```text
//!   near core   the guest's thread: arms, waits                 bare: one thread asleep on its own timerfd
//!   far core    the host's timekeeper, on its own mapping
//! ```
//!
//! The guest's side and the host's are two mappings of one memory in two threads, with eventfds between: what wakes whom is
//! the same as between processes. Threads are made here and joined here, so the caller's affinity is never touched.
//! Source: timerfd_create(2).

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rustix::io::{Errno, read};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::Windows;
use super::duo::{Cores, pin};
use crate::error::{Error, Result};
use crate::guest::timer::{Arming, Side, Timers, TimersLayout};
use crate::shm::counters::CounterFile;
use crate::shm::doorbell::Doorbell;
use crate::shm::region::Ram;
use crate::timer::{Timekeeper, TimerPage, now_ns};

/// Time from one measured expiry to the next.
const PERIOD_NS: u64 = 1_000_000;
/// Nothing that is armed beside expires during a measurement.
const FAR_NS: u64 = 3_600_000_000_000;
/// How long an expiry may be overdue before a measurement ends without it.
const PATIENCE_NS: u64 = 10_000_000_000;
const ARMS_A_LOOK: u32 = 256;

/// Nanoseconds it takes to move a timer to a later deadline while the host sleeps, one sample a window.
///
/// # Errors
///
/// [`Error::Usage`], [`Error::Machine`]: no such core, or the machine refused. [`Error::Busy`]: the host was kicked, so
/// what was measured is something else.
pub fn arm_ns(cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    with_timers(cores, 64, 0, |timers| {
        let start_ns = now_ns();
        let far =
            |step: u64| Arming { deadline_ns: start_ns + FAR_NS + step, period_ns: 0, priority: 0, side: Side::Thread };
        let _first = timers.arm(far(0))?;
        let mut id = timers.arm(far(1))?;
        let mut step = 1;
        settle(timers)?;
        let kicks = timers.totals().kicks;
        let mut measure = |length: std::time::Duration| -> Result<f64> {
            let (start, mut arms) = (Instant::now(), 0u32);
            while start.elapsed() < length {
                for _ in 0..ARMS_A_LOOK {
                    step += 1;
                    id = timers.rearm(id, far(step))?;
                }
                arms += ARMS_A_LOOK;
            }
            Ok(start.elapsed().as_nanos() as f64 / f64::from(arms))
        };
        measure(windows.warm_up)?;
        let samples = (0..windows.count).map(|_| measure(windows.window)).collect::<Result<Vec<_>>>()?;
        if timers.totals().kicks != kicks {
            return Err(Error::Busy("the host was kicked for a later deadline".into()));
        }
        Ok(samples)
    })
}

/// How late each of a thousand expiries a second was delivered, in nanoseconds, with `armed` timers armed in all and a
/// lead of at most `lead_ns`. What was late during the warm-up is not told.
///
/// # Errors
///
/// [`Error::Usage`], [`Error::Machine`]: no such core, too many timers, or the machine refused.
pub fn late_ns(cores: Cores, windows: Windows, armed: u32, lead_ns: u64) -> Result<Vec<f64>> {
    let slots = armed.max(64).checked_next_power_of_two().unwrap_or(u32::MAX);
    with_timers(cores, slots, lead_ns, |timers| {
        let start_ns = now_ns();
        let arming = Arming { deadline_ns: start_ns + FAR_NS, period_ns: 0, priority: 0, side: Side::Thread };
        for _ in 1..armed {
            timers.arm(arming)?;
        }
        settle(timers)?;
        let first_ns = now_ns() + PERIOD_NS;
        let id = timers.arm(Arming { deadline_ns: first_ns, period_ns: PERIOD_NS, ..arming })?;
        let mut late = Vec::new();
        let (counted_ns, end_ns) = span(first_ns, windows);
        while let Some(tick) = timers.wait(id, Some(end_ns + PATIENCE_NS))? {
            if tick.deadline_ns >= counted_ns {
                late.push(tick.late_ns as f64);
            }
            // Who never had the core in time still has one to show.
            if tick.deadline_ns >= end_ns {
                break;
            }
        }
        Ok(late)
    })
}

/// The same for one thread that sleeps on a timerfd of its own.
///
/// # Errors
///
/// As [`late_ns`].
pub fn bare_late_ns(cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    let run = || {
        pin(cores.near)?;
        let refused = |errno| Error::machine("wait for a timerfd", errno);
        let clock = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).map_err(refused)?;
        let first_ns = now_ns() + PERIOD_NS;
        let spec = Itimerspec { it_interval: timespec(PERIOD_NS), it_value: timespec(first_ns) };
        timerfd_settime(&clock, TimerfdTimerFlags::ABSTIME, &spec).map_err(refused)?;
        let mut late = Vec::new();
        let (counted_ns, end_ns) = span(first_ns, windows);
        let mut expired = 0;
        loop {
            let mut count = [0; 8];
            match read(&clock, &mut count) {
                Ok(_) => expired += u64::from_ne_bytes(count),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(refused(errno)),
            }
            let now_ns = now_ns();
            let deadline_ns = first_ns + (expired - 1) * PERIOD_NS;
            if deadline_ns >= counted_ns {
                late.push((now_ns - deadline_ns) as f64);
            }
            if deadline_ns >= end_ns {
                return Ok(late);
            }
        }
    };
    thread::scope(|scope| join(scope.spawn(run)))
}

fn timespec(ns: u64) -> Timespec {
    Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// From when on expiries count, and until when.
fn span(first_ns: u64, windows: Windows) -> (u64, u64) {
    let warm_up_ns = windows.warm_up.as_nanos() as u64;
    (first_ns + warm_up_ns, first_ns + windows.total().as_nanos() as u64)
}

/// Waits until the host has seen what was armed, and sleeps.
fn settle(timers: &Timers) -> Result<()> {
    let now = now_ns();
    let id = timers.arm(Arming { deadline_ns: now + PERIOD_NS, period_ns: 0, priority: 0, side: Side::Thread })?;
    timers.wait(id, Some(now + FAR_NS))?;
    let id = timers.arm(Arming { deadline_ns: now + 10 * PERIOD_NS, period_ns: 0, priority: 0, side: Side::Thread })?;
    timers.wait(id, Some(now + FAR_NS))?;
    Ok(())
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or(Err(Error::PeerGone("a measurement")))
}

/// Runs `guest` on the near core beside a timekeeper on the far one.
fn with_timers<T: Send>(
    cores: Cores,
    slots: u32,
    lead_ns: u64,
    guest: impl FnOnce(&Timers) -> Result<T> + Send,
) -> Result<T> {
    let layout = TimersLayout::plan(0, slots)?;
    let host = move || {
        pin(cores.far)?;
        let ram = Ram::create("vbnet-bench", layout.end.into())?;
        let timers = Timers::open(&ram, layout)?;
        let copy = |fd: &dyn AsFd| {
            fd.as_fd()
                .try_clone_to_owned()
                .map_err(|error| Error::machine("copy a descriptor for a measurement", error))
        };
        let shown = Ram::open(copy(&*ram)?, ram.size() as u64)?;
        let keeper = Timekeeper::start(Arc::new(CounterFile::create(None, 1 << 16)?))?;
        let (kick, call) = (Doorbell::create()?, Doorbell::create()?);
        let page = TimerPage {
            ram: shown.clone(),
            place: (layout.page_offset, layout.page_bytes),
            kick: Doorbell::from_fd(copy(&kick)?),
            slots_max: slots,
            lead_max_ns: lead_ns,
        };
        let id = keeper.attach(page, "guest=bench")?;
        timers.connect(kick, lead_ns);
        let place = (layout.signal_offset(0), layout.signal_bytes);
        keeper.connect(id, 0, &shown, place, Doorbell::from_fd(copy(&call)?).into())?;
        timers.connect_priority(0, call)?;
        let near = || {
            pin(cores.near)?;
            guest(&timers)
        };
        thread::scope(|scope| join(scope.spawn(near)))
    };
    thread::scope(|scope| join(scope.spawn(host)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::super::duo::tests::two_cores;
    use super::*;

    const SHORT: Windows = Windows { warm_up: Duration::ZERO, window: Duration::from_millis(5), count: 2 };

    /// A later deadline kicks nobody, or this would be an error.
    #[test]
    fn arming_later_is_measured_without_a_kick() {
        let Some(cores) = two_cores() else { return };

        let samples = arm_ns(cores, SHORT).unwrap();

        assert_eq!(2, samples.len());
    }

    /// With and without lead, beside others and bare: there are samples, none of them early.
    #[test]
    fn lateness_is_measured_in_every_way() {
        let Some(cores) = two_cores() else { return };

        let ways = [
            late_ns(cores, SHORT, 1, 0).unwrap(),
            late_ns(cores, SHORT, 1000, 100_000).unwrap(),
            bare_late_ns(cores, SHORT).unwrap(),
        ];

        for late in ways {
            assert!(!late.is_empty());
            assert!(late.iter().all(|late| *late >= 0.0));
        }
    }
}
