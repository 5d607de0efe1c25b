//! An emulated interrupt controller whose registers are on the host: the baseline for the one in shared memory.
//!
//! ```text
//!   raise        request bit, and nobody asserted? ring the vCPU's one doorbell
//!   acknowledge  trap: the most urgent request above what is in service, and it is in service now
//!   end          trap: the most urgent in service is not any more; is another requested?
//! ```
//!
//! It does what an APIC does with a guest that knows nothing better: every acknowledge and every end of interrupt is a
//! synchronous call to the host, and a vCPU has one line for all priorities. In one thing it is kinder than the real one:
//! an end tells whether more is requested, so that a busy guest needs no doorbell for each. All state is the host's own;
//! a guest that acknowledges or ends out of turn gets nothing. Source: Intel SDM volume 3, 10.8 (IRR, ISR, EOI).
//!
//! One thread serves all priorities, so an urgent request is told to the [`WakeHook`] also when the doorbell was rung for
//! a lesser one before: the thread may still wait for a processor, or be in the middle of the lesser one's handler.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::io::Errno;

use super::controller::WakeHook;
use super::latency::WakeupTimes;
use crate::fastcall::{FastHandler, Refusal};
use crate::guest::clock::monotonic_ns;
use crate::shm::doorbell::Doorbell;
use crate::shm::intc::{PRIORITIES, VECTORS};
use crate::shm::stamp::Age;

const WORDS: usize = VECTORS as usize / 64;

/// What an acknowledge brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its priority.
    pub priority: u32,
    /// Its vector.
    pub vector: u32,
}

/// Request and service registers of one vCPU.
struct Pins {
    /// The priority that the doorbell was rung for, and when; until the vCPU acknowledges.
    rung: Option<(u32, u64)>,
    requested: [[u64; WORDS]; PRIORITIES as usize],
    in_service: [Option<u32>; PRIORITIES as usize],
    is_asserted: bool,
}

impl Default for Pins {
    fn default() -> Self {
        Self {
            rung: None,
            requested: [[0; WORDS]; PRIORITIES as usize],
            in_service: [None; PRIORITIES as usize],
            is_asserted: false,
        }
    }
}

impl Pins {
    fn highest_in_service(&self) -> Option<usize> {
        self.in_service.iter().rposition(Option::is_some)
    }

    /// The most urgent request that is above what is in service.
    fn next(&self) -> Option<(usize, usize)> {
        let lowest = self.highest_in_service().map_or(0, |priority| priority + 1);
        (lowest..self.requested.len()).rev().find_map(|priority| {
            self.requested[priority].iter().position(|&word| word != 0).map(|word| (priority, word))
        })
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requested {
    /// It was requested already.
    Already,
    /// The vCPU was told of something else before, and will find it.
    Later,
    /// Ring the vCPU's doorbell.
    Assert,
}

/// Function of a fastcall with a vCPU: acknowledge; answered with priority and vector, two u32, or nothing.
pub const ACKNOWLEDGE: u32 = 15;
/// Function of a fastcall with a vCPU: end of interrupt; answered with one byte, whether another is requested.
pub const END: u32 = 16;

/// Who is told of requests, and under which number this vCPU goes there.
struct Told {
    hook: Arc<dyn WakeHook>,
    vcpu: u32,
}

/// One vCPU's emulated controller.
pub struct Apic {
    pins: Mutex<Box<Pins>>,
    pub(crate) bell: Doorbell,
    told: RwLock<Option<Told>>,
    /// By priority.
    times: Arc<WakeupTimes>,
}

impl Apic {
    /// One vCPU, whose guest waits on `bell`.
    pub(crate) fn new(bell: Doorbell, times: Arc<WakeupTimes>) -> Self {
        Self { pins: Mutex::default(), bell, told: RwLock::new(None), times }
    }

    fn pins(&self) -> MutexGuard<'_, Box<Pins>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests `vector` at `priority`; what is new is told to the hook, before anybody rings for it.
    pub(crate) fn raise(&self, priority: u32, vector: u32) -> Requested {
        let requested = self.request(priority, vector);
        if requested != Requested::Already
            && let Some(told) = &*self.told.read().unwrap_or_else(PoisonError::into_inner)
        {
            told.hook.waking(told.vcpu, priority);
        }
        requested
    }

    fn request(&self, priority: u32, vector: u32) -> Requested {
        let (word, bit) = ((vector % VECTORS / 64) as usize, 1 << (vector % 64));
        let mut pins = self.pins();
        let requested = &mut pins.requested[(priority % PRIORITIES) as usize][word];
        if *requested & bit != 0 {
            return Requested::Already;
        }
        *requested |= bit;
        let is_covered = pins.highest_in_service().is_some_and(|serving| serving >= priority as usize);
        if pins.is_asserted || is_covered {
            return Requested::Later;
        }
        pins.is_asserted = true;
        pins.rung = Some((priority, monotonic_ns()));
        Requested::Assert
    }

    /// Takes the most urgent request above what is in service into service. `None`: there is none, go to sleep.
    #[must_use]
    pub fn acknowledge(&self) -> Option<Interrupt> {
        let mut pins = self.pins();
        pins.is_asserted = false;
        if let Some((priority, rung_ns)) = pins.rung.take() {
            self.times.record(priority, Age::Nanoseconds(monotonic_ns().saturating_sub(rung_ns)));
        }
        let (priority, word) = pins.next()?;
        let bit = pins.requested[priority][word].trailing_zeros();
        pins.requested[priority][word] &= pins.requested[priority][word] - 1;
        let vector = word as u32 * 64 + bit;
        pins.in_service[priority] = Some(vector);
        Some(Interrupt { priority: priority as u32, vector })
    }

    /// Ends the most urgent interrupt in service. `true`: another is requested, acknowledge it.
    pub fn end(&self) -> bool {
        let mut pins = self.pins();
        if let Some(priority) = pins.highest_in_service() {
            pins.in_service[priority] = None;
        }
        let is_requested = pins.next().is_some();
        pins.is_asserted = is_requested;
        is_requested
    }
}

/// The vCPUs of one guest, as the fastcalls of its interrupt controller reach them.
#[derive(Debug)]
pub struct Apics {
    vcpus: Vec<Arc<Apic>>,
    times: Arc<WakeupTimes>,
}

impl Apics {
    /// One vCPU for each doorbell.
    pub(crate) fn new(bells: impl IntoIterator<Item = Doorbell>, times: WakeupTimes) -> Self {
        let times = Arc::new(times);
        let vcpus = bells.into_iter().map(|bell| Arc::new(Apic::new(bell, times.clone()))).collect();
        Self { vcpus, times }
    }

    /// One of them.
    #[must_use]
    pub fn vcpu(&self, number: usize) -> Option<Arc<Apic>> {
        self.vcpus.get(number).cloned()
    }

    /// Has `hook` told of requests from now on; `None`: nobody.
    pub fn set_hook(&self, hook: Option<&Arc<dyn WakeHook>>) {
        for (vcpu, apic) in (0..).zip(&self.vcpus) {
            let told = hook.map(|hook| Told { hook: hook.clone(), vcpu });
            *apic.told.write().unwrap_or_else(PoisonError::into_inner) = told;
        }
    }
}

impl Drop for Apics {
    fn drop(&mut self) {
        self.times.close();
    }
}

impl FastHandler for Apics {
    fn call(&self, function: u32, data: &[u8], answer: &mut [u8]) -> std::result::Result<usize, Refusal> {
        let vcpu = <[u8; 4]>::try_from(data).map(u32::from_le_bytes).ok();
        let Some(apic) = vcpu.and_then(|vcpu| self.vcpus.get(vcpu as usize)) else {
            return Err(Refusal::new(Errno::INVAL, "acknowledge and end take the number of a vCPU, four bytes"));
        };
        match function {
            ACKNOWLEDGE => Ok(apic.acknowledge().map_or(0, |Interrupt { priority, vector }| {
                answer[..4].copy_from_slice(&priority.to_le_bytes());
                answer[4..8].copy_from_slice(&vector.to_le_bytes());
                8
            })),
            END => {
                answer[0] = apic.end().into();
                Ok(1)
            }
            _ => Err(Refusal::new(Errno::INVAL, "only acknowledge and end are answered here")),
        }
    }
}

impl fmt::Debug for Apic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Apic").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::latency::WakeupLatency;
    use super::*;
    use crate::shm::counters::CounterFile;
    use crate::shm::histogram;

    fn apic() -> Apic {
        Apic::new(Doorbell::create().unwrap(), Arc::default())
    }

    #[test]
    fn requests_are_acknowledged_by_priority_and_only_above_what_is_in_service() {
        let apic = apic();
        apic.request(1, 10);
        apic.request(5, 20);
        apic.request(5, 3);

        let first = apic.acknowledge();
        let nested = apic.acknowledge();
        let more = apic.end();
        let second = apic.acknowledge();

        assert_eq!(Some(Interrupt { priority: 5, vector: 3 }), first);
        assert_eq!((None, true), (nested, more));
        assert_eq!(Some(Interrupt { priority: 5, vector: 20 }), second);
    }

    #[test]
    fn one_doorbell_is_asserted_until_it_is_acknowledged() {
        let apic = apic();

        let outcomes = [apic.request(0, 1), apic.request(0, 1), apic.request(0, 2), apic.request(7, 3)];

        assert_eq!([Requested::Assert, Requested::Already, Requested::Later, Requested::Later], outcomes);
    }

    #[derive(Default)]
    struct Notes(Mutex<Vec<(u32, u32)>>);

    impl WakeHook for Notes {
        fn waking(&self, vcpu: u32, priority: u32) {
            self.0.lock().unwrap().push((vcpu, priority));
        }
    }

    #[test]
    fn hook_is_told_of_what_is_new_also_while_the_doorbell_is_asserted_and_under_its_vcpus_number() {
        let apics = Apics::new((0..2).map(|_| Doorbell::create().unwrap()), WakeupTimes::default());
        let notes = Arc::new(Notes::default());
        let hook: Arc<dyn WakeHook> = notes.clone();

        apics.vcpus[1].raise(7, 9);
        apics.set_hook(Some(&hook));
        for (vcpu, priority, vector) in [(0, 2, 1), (0, 2, 1), (0, 6, 2), (1, 5, 3)] {
            apics.vcpus[vcpu].raise(priority, vector);
        }
        apics.set_hook(None);
        apics.vcpus[0].raise(7, 4);

        assert_eq!(vec![(0, 2), (0, 6), (1, 5)], *notes.0.lock().unwrap());
    }

    #[test]
    fn acknowledge_of_a_rung_doorbell_is_timed_once_at_the_priority_it_was_rung_for() {
        let file = CounterFile::create(None, 1 << 17).unwrap();
        let block = file.allocate("signal_latency", "", WakeupLatency::WORDS).unwrap();
        let apics = Apics::new([Doorbell::create().unwrap()], WakeupTimes::new(Some(block)));
        let apic = apics.vcpu(0).unwrap();
        let samples = || {
            let blocks = file.reader().blocks();
            blocks.first().map(|found| [2, 5].map(|priority| found.values[priority * histogram::WORDS]))
        };

        let _ = apic.acknowledge();
        apic.raise(2, 1);
        apic.raise(5, 2);
        let _ = (apic.acknowledge(), apic.end(), apic.acknowledge(), apic.end());
        let timed = samples();
        drop(apics);

        assert_eq!((Some([1, 0]), None), (timed, samples()), "and nothing is left when the guest has gone");
    }

    #[test]
    fn end_out_of_turn_does_nothing() {
        let apic = apic();

        let answers = (apic.end(), apic.acknowledge());

        assert_eq!((false, None), answers);
    }
}
