//! Fastcalls through the whole service: a guest's slot, the host's thread, a handler that echoes.
//!
//! * [`round_trip_ns`]: one caller, both sides spinning or both asleep in between;
//! * [`calls_per_second`]: several slots with a call under way in each, as several processors of a guest would have.
//!
//! The service's thread is on the far core, what calls on the near one, each with a mapping of its own of the guest's
//! memory; they are threads of one process, which costs a cache line nothing and a wake-up little. Several callers are
//! one thread that has a call under way in every slot: so the service is what is measured, not how two cores are shared
//! by many threads that spin. Compare with [`super::pingpong`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::duo::{self, Cores, Isolation};
use super::{Meter, Windows};
use crate::error::{Error, Result};
use crate::fastcall::{Echo, SPIN_US_MAX, Service, SlotParams, SlotParts};
use crate::guest::fastcall::FastCaller;
use crate::shm::counters::CounterFile;
use crate::shm::doorbell::Doorbell;
use crate::shm::fastcall::{Caller, DATA_BYTES, STATUS_DONE};
use crate::shm::layout::{FASTCALL_SLOT_BYTES, RAM_HEADER_BYTES};
use crate::shm::region::{RAM_MAX, Ram};

const PATIENCE: Duration = Duration::from_secs(5);
/// Calls between two looks at the clock.
const LOOK_EVERY_POLLED: u32 = 256;
const LOOK_EVERY_ASLEEP: u32 = 8;
/// Most slots that are measured at once.
pub const CALLERS_MAX: u32 = 64;
const SESSION: u64 = 1;
const DEVICE: u32 = 1;
const COUNTER_BYTES: usize = 1 << 16;

/// A guest with slots, and the host's service for them.
struct Bench {
    service: Service,
    callers: Vec<(Caller, Doorbell, Doorbell)>,
}

impl Bench {
    fn new(callers: u32, spin_us: u32) -> Result<Self> {
        let bytes = RAM_HEADER_BYTES as usize + FASTCALL_SLOT_BYTES * callers as usize;
        let ram = Ram::create("vbnet-bench", (bytes as u64).max(u64::from(2 * RAM_HEADER_BYTES)))?;
        let theirs = Ram::open(copy(&ram)?, RAM_MAX)?;
        let service = Service::start(Arc::new(CounterFile::create(None, COUNTER_BYTES)?))?;
        service.register(SESSION, DEVICE, Arc::new(Echo))?;
        let params = SlotParams { spin_us, ..SlotParams::default() };
        let callers = (0..callers)
            .map(|index| {
                let offset = RAM_HEADER_BYTES + index * FASTCALL_SLOT_BYTES as u32;
                let caller = FastCaller::format(&ram, offset)?;
                let (kick, call) = (Doorbell::create()?, Doorbell::create()?);
                let parts = SlotParts {
                    ram: theirs.clone(),
                    offset,
                    length: FASTCALL_SLOT_BYTES as u32,
                    kick: Doorbell::from_fd(copy(&kick)?),
                    call: Doorbell::from_fd(copy(&call)?),
                };
                service.attach(SESSION, parts, params, "")?;
                Ok((caller, kick, call))
            })
            .collect::<Result<_>>()?;
        Ok(Self { service, callers })
    }

    /// Made by a thread that is pinned already: the service's thread stays on that core, too.
    fn on_core(core: usize, callers: u32, spin_us: u32) -> Result<Self> {
        std::thread::scope(|scope| {
            let made = scope.spawn(move || {
                duo::pin(core)?;
                Self::new(callers, spin_us)
            });
            made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn copy(from: &impl AsFd) -> Result<OwnedFd> {
    from.as_fd().try_clone_to_owned().map_err(|error| Error::machine("copy a descriptor", error))
}

fn check(data_bytes: u32, cores: Cores, spins: bool) -> Result<()> {
    if data_bytes as usize > DATA_BYTES {
        return Err(Error::Usage(format!("a fastcall carries at most {DATA_BYTES} bytes; got {data_bytes}")));
    }
    if spins && cores.near == cores.far {
        return Err(Error::Usage(format!("spinning sides need two cores; got core {} twice", cores.near)));
    }
    Ok(())
}

/// Nanoseconds from a call until its answer, one sample a window.
///
/// `is_asleep`: neither side spins; each sleeps until the other wakes it.
///
/// # Errors
///
/// [`Error::Usage`]: more data than a call carries, or spinning on one core; [`Error::Machine`]: no memory, thread or
/// core; [`Error::PeerGone`]: the service did not answer in time.
pub fn round_trip_ns(data_bytes: u32, is_asleep: bool, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    check(data_bytes, cores, !is_asleep)?;
    let spin_us = if is_asleep { 0 } else { SPIN_US_MAX };
    let Bench { service, mut callers } = Bench::on_core(cores.far, 1, spin_us)?;
    let (caller, kick, call) = callers.pop().ok_or(Error::Closed("a bench"))?;
    let caller = FastCaller::new(caller, kick, call, spin_us);
    let own = vec![0x5a; data_bytes as usize];
    let look_every = if is_asleep { LOOK_EVERY_ASLEEP } else { LOOK_EVERY_POLLED };
    let found = near(cores, windows, || {
        let mut answer = [0; DATA_BYTES];
        let mut meter = Meter::start(windows, look_every);
        while meter.count(1) {
            let outcome = caller.call(DEVICE, 0, std::hint::black_box(&own), &mut answer, PATIENCE)?;
            if outcome.is_none_or(|outcome| outcome.status != STATUS_DONE || outcome.length != data_bytes) {
                return Err(Error::PeerGone("a fastcall"));
            }
            std::hint::black_box(&answer);
        }
        Ok(meter.into_nanoseconds())
    });
    service.close();
    found
}

/// Calls a second of so many slots at once, both sides spinning, one sample a window.
///
/// # Errors
///
/// As [`round_trip_ns`]; [`Error::Usage`] also for no callers or more than [`CALLERS_MAX`].
pub fn calls_per_second(callers: u32, data_bytes: u32, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    check(data_bytes, cores, true)?;
    if !(1..=CALLERS_MAX).contains(&callers) {
        return Err(Error::Usage(format!("take 1 to {CALLERS_MAX} callers; got {callers}")));
    }
    let Bench { service, mut callers } = Bench::on_core(cores.far, callers, SPIN_US_MAX)?;
    let own = vec![0x5a; data_bytes as usize];
    let callers = &mut callers;
    let found = near(cores, windows, move || {
        let mut answer = [0; DATA_BYTES];
        for (caller, kick, _) in callers.iter_mut() {
            begin(caller, kick, &own)?;
        }
        let mut meter = Meter::start(windows, LOOK_EVERY_POLLED);
        loop {
            for (caller, kick, _) in callers.iter_mut() {
                let mut polls = 0u32;
                while caller.poll(&mut answer)?.is_none() {
                    polls += 1;
                    if polls > POLLS_MAX {
                        return Err(Error::PeerGone("a fastcall"));
                    }
                }
                std::hint::black_box(&answer);
                if !meter.count(1) {
                    return Ok(meter.into_rates());
                }
                begin(caller, kick, &own)?;
            }
        }
    });
    service.close();
    found
}

/// Polls in vain, some seconds' worth, after which the service is taken for lost.
const POLLS_MAX: u32 = 1 << 30;

fn begin(caller: &mut Caller, kick: &Doorbell, data: &[u8]) -> Result<()> {
    if caller.begin(DEVICE, 0, std::hint::black_box(data)) {
        kick.ring()?;
    }
    Ok(())
}

/// Runs on the near core, while nobody else of ours does.
fn near<T: Send>(cores: Cores, windows: Windows, measure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    duo::run(cores, Isolation::Thread, windows.total() + PATIENCE, |_control| {}, |_control| measure())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SHORT: Windows = Windows { warm_up: Duration::ZERO, window: Duration::from_micros(100), count: 2 };

    /// A call alone answers one sample a window, spinning and asleep.
    #[test]
    fn a_call_comes_back_spinning_and_asleep() {
        let Some(cores) = duo::tests::two_cores() else { return };

        for is_asleep in [false, true] {
            let samples = round_trip_ns(48, is_asleep, cores, SHORT).unwrap();

            assert_eq!(2, samples.len());
        }
    }

    /// Several callers at once answer one rate a window.
    #[test]
    fn several_callers_are_measured_at_once() {
        let Some(cores) = duo::tests::two_cores() else { return };

        for callers in [1, 3] {
            let samples = calls_per_second(callers, 8, cores, SHORT).unwrap();

            assert_eq!(2, samples.len());
        }
    }

    /// What cannot be measured is refused before anything is started.
    #[test]
    fn impossible_calls_are_refused() {
        let cores = Cores { near: 0, far: 1 };
        let long = DATA_BYTES as u32 + 1;

        assert!(matches!(round_trip_ns(long, true, cores, SHORT), Err(Error::Usage(_))));
        assert!(matches!(round_trip_ns(8, false, Cores { near: 0, far: 0 }, SHORT), Err(Error::Usage(_))));
        assert!(matches!(calls_per_second(0, 8, cores, SHORT), Err(Error::Usage(_))));
        assert!(matches!(calls_per_second(CALLERS_MAX + 1, 8, cores, SHORT), Err(Error::Usage(_))));
    }
}
