//! One guest's timers against an obvious model, on a clock that moves when the test says so.
#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::histogram;
use vbnet_core::shm::timer::{Keeper, PERIOD_MIN_NS, Setter, Setting, Taker, TimerMemory};
use vbnet_core::timer::agenda::{Agenda, Rest, TimerCounter};

const SLOTS: u32 = 8192;

/// A guest's page with both ends, and a clock.
struct Lab {
    setter: Setter,
    taker: Taker,
    agenda: Agenda,
    now_ns: u64,
    /// When the host wakes by itself.
    wake_ns: u64,
    is_kicked: bool,
    generations: BTreeMap<u32, u32>,
}

impl Lab {
    fn new(lead_ns: u64) -> Self {
        let page = TimerMemory::on_heap(SLOTS);
        let counters = CounterFile::create(None, 1 << 16).unwrap();
        let block = counters.allocate("timer", "guest=test", TimerCounter::COUNT).unwrap();
        let late = Arc::new(counters.allocate("timekeeper", "", histogram::WORDS).unwrap());
        let setter = Setter::new(page.clone());
        setter.set_lead(lead_ns);
        let mut lab = Self {
            setter,
            taker: Taker::new(page.clone()),
            agenda: Agenda::new(Keeper::new(page), lead_ns, block, late),
            now_ns: 1_000_000,
            wake_ns: u64::MAX,
            is_kicked: true,
            generations: BTreeMap::new(),
        };
        lab.serve();
        lab
    }

    fn set(&mut self, slot: u32, deadline_ns: u64, period_ns: u64, priority: u8, is_armed: bool) {
        let generation = self.generations.entry(slot).or_default();
        *generation += 1;
        let setting = Setting { deadline_ns, period_ns, priority, generation: *generation, is_armed };
        self.is_kicked |= self.setter.set(slot, setting);
    }

    /// The host wakes if it has a reason to, and takes turns until it sleeps again. Gives the priorities raised.
    fn serve(&mut self) -> u8 {
        let mut raised = 0;
        while self.is_kicked || self.wake_ns <= self.now_ns {
            self.is_kicked = false;
            let turn = self.agenda.turn(self.now_ns);
            raised |= turn.raise;
            self.wake_ns = match turn.rest {
                Rest::Until(wake_ns) => wake_ns,
                Rest::Again => self.now_ns,
            };
        }
        raised
    }

    /// Slot → how often it expired by its present arming, of those of one priority that are marked.
    fn take(&self, priority: usize) -> BTreeMap<u32, u64> {
        let mut found = Vec::new();
        self.taker.take(priority, &mut found);
        let present = |slot: &u32| self.taker.expiry(*slot).generation == self.generations[slot];
        found.into_iter().filter(present).map(|slot| (slot, self.taker.expiry(slot).times)).collect()
    }
}

/// What the model knows of a timer.
#[derive(Clone, Copy, Debug)]
struct Armed {
    first_ns: u64,
    period_ns: u64,
    priority: u8,
    seen: u64,
}

impl Armed {
    fn times_at(&self, now_ns: u64) -> u64 {
        match (now_ns.checked_sub(self.first_ns), self.period_ns) {
            (None, _) => 0,
            (Some(_), 0) => 1,
            (Some(past_ns), period_ns) => past_ns / period_ns + 1,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Arm { slot: u32, ahead_ns: i64, period_ns: u64, priority: u8 },
    Cancel { slot: u32 },
    Pass { ns: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let slot = prop_oneof![0u32..6, Just(63), Just(64), Just(4095), Just(4096), Just(SLOTS - 1)];
    let period_ns = prop_oneof![Just(0), PERIOD_MIN_NS..200_000];
    let arm = (slot.clone(), -50_000i64..400_000, period_ns, 0u8..8)
        .prop_map(|(slot, ahead_ns, period_ns, priority)| Step::Arm { slot, ahead_ns, period_ns, priority });
    prop::collection::vec(
        prop_oneof![4 => arm, 1 => slot.prop_map(|slot| Step::Cancel { slot }), 4 => (0u64..300_000).prop_map(|ns| Step::Pass { ns })],
        1..120,
    )
}

proptest! {
    /// Whatever is armed, moved and cancelled: each timer has expired as often as its grid says, and is raised.
    #[test]
    fn prop_timers_expire_as_often_as_their_grid_says(steps in steps()) {
        let mut lab = Lab::new(0);
        let mut model: BTreeMap<u32, Armed> = BTreeMap::new();

        for step in steps {
            match step {
                Step::Arm { slot, ahead_ns, period_ns, priority } => {
                    let first_ns = lab.now_ns.saturating_add_signed(ahead_ns);
                    lab.set(slot, first_ns, period_ns, priority, true);
                    model.insert(slot, Armed { first_ns, period_ns, priority, seen: 0 });
                }
                Step::Cancel { slot } => {
                    lab.set(slot, 0, 0, 0, false);
                    model.remove(&slot);
                }
                Step::Pass { ns } => lab.now_ns += ns,
            }
            let raised = lab.serve();

            for priority in 0..8u8 {
                let mut expected = BTreeMap::new();
                for (&slot, timer) in model.iter_mut().filter(|(_, timer)| timer.priority == priority) {
                    let times = timer.times_at(lab.now_ns);
                    if times > timer.seen {
                        timer.seen = times;
                        expected.insert(slot, times);
                    }
                }
                let has_raised = raised & (1 << priority) != 0;
                prop_assert!(has_raised || expected.is_empty(), "priority {} was not raised", priority);
                prop_assert_eq!(expected, lab.take(usize::from(priority)));
            }
        }
    }

    /// With a lead, nothing is told more than the lead early, nor a periodic timer twice ahead, and nothing is told late.
    #[test]
    fn prop_lead_is_never_exceeded_and_never_later_than_the_deadline(
        lead_ns in 1u64..100_000,
        ahead_ns in 100_000u64..400_000,
        period_ns in prop_oneof![Just(0), PERIOD_MIN_NS..200_000],
        passes in prop::collection::vec(1u64..100_000, 1..40),
    ) {
        let mut lab = Lab::new(lead_ns);
        let timer = Armed { first_ns: lab.now_ns + ahead_ns, period_ns, priority: 0, seen: 0 };
        lab.set(0, timer.first_ns, period_ns, 0, true);
        lab.serve();

        let mut told = 0;
        for ns in passes {
            lab.now_ns += ns;
            lab.serve();
            told = lab.take(0).get(&0).copied().unwrap_or(told);

            let ahead_ns = if period_ns == 0 { lead_ns } else { lead_ns.min(period_ns / 2) };
            prop_assert!(told >= timer.times_at(lab.now_ns));
            prop_assert!(told <= timer.times_at(lab.now_ns + ahead_ns));
        }
    }
}

#[test]
fn later_deadline_does_not_kick_and_an_earlier_one_does_once() {
    let mut lab = Lab::new(0);
    lab.set(0, lab.now_ns + 1000, 0, 0, true);
    lab.serve();

    let kicks = [2000, 1001, 999, 10].map(|ahead_ns| {
        lab.set(1, lab.now_ns + ahead_ns, 0, 0, true);
        std::mem::take(&mut lab.is_kicked)
    });

    assert_eq!([false, false, true, false], kicks);
}

#[test]
fn cancelled_timer_does_not_kick_and_does_not_expire() {
    let mut lab = Lab::new(0);
    lab.set(0, lab.now_ns + 1000, 0, 0, true);
    lab.serve();

    lab.set(0, 0, 0, 0, false);
    let is_kicked = lab.is_kicked;
    lab.now_ns += 1000;
    let raised = lab.serve();

    assert_eq!((false, 0), (is_kicked, raised));
    assert_eq!(1, lab.agenda.counted(TimerCounter::Cancels));
}

#[test]
fn storm_of_one_guest_is_served_in_bounded_turns_and_raised_at_most_once_a_turn() {
    let mut lab = Lab::new(0);
    for slot in 0..SLOTS {
        lab.set(slot, lab.now_ns + 1, 0, (slot % 8) as u8, true);
    }
    lab.serve();
    lab.now_ns += 1;
    let turns = lab.agenda.counted(TimerCounter::Turns);

    lab.serve();

    let found: usize = (0..8).map(|priority| lab.take(priority).len()).sum();
    assert_eq!(SLOTS as usize, found);
    assert!(lab.agenda.counted(TimerCounter::Turns) - turns >= u64::from(SLOTS) / 256);
}

#[test]
fn periods_that_went_by_are_counted_and_the_next_is_on_the_grid() {
    let mut lab = Lab::new(0);
    let first_ns = lab.now_ns + 100_000;
    lab.set(0, first_ns, 100_000, 0, true);
    lab.serve();

    lab.now_ns = first_ns + 350_000;
    lab.serve();

    assert_eq!(BTreeMap::from([(0, 4)]), lab.take(0));
    assert_eq!(3, lab.agenda.counted(TimerCounter::Missed));
    assert_eq!(first_ns + 400_000, lab.wake_ns);
}

#[test]
fn storm_from_before_the_beginning_of_time_is_served_with_a_lead_too() {
    let mut lab = Lab::new(100_000);
    for slot in 0..600 {
        lab.set(slot, 1, 0, 0, true);
    }

    lab.serve();

    assert_eq!(600, lab.take(0).len());
    assert_eq!(u64::MAX, lab.wake_ns);
}
