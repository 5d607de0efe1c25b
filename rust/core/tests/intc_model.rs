//! A level against an obvious model: sets of what is pending and masked, and whether the taker asked for its bell.
//!
//! It is driven with the same random steps on the heap and in guest RAM that one end formatted and the other attached.
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour intc_model` looks longer; failures leave seeds beside it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::guest::intc::Level;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::intc::{LEVEL_BYTES, LevelMemory, Raised, Raiser, Taker, VECTORS, Way};
use vbnet_core::shm::layout::RAM_HEADER_BYTES;
use vbnet_core::shm::region::Ram;

/// One thing that either side does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Raise(u32),
    Take(u32),
    Mask(u32),
    Unmask(u32),
    Hold(bool),
    Arm,
    Disarm,
}

/// What a level is, said as plainly as possible.
#[derive(Default)]
struct Model {
    pending: BTreeSet<u32>,
    masked: BTreeSet<u32>,
    /// The taker waits for its bell, which has not rung yet.
    is_asleep: bool,
    /// Something was raised since the last take that the taker was, or would have been, told of.
    is_told: bool,
}

impl Model {
    fn raise(&mut self, vector: u32) -> Raised {
        if !self.pending.insert(vector) {
            return Raised::Pending;
        }
        if self.masked.contains(&vector) {
            return Raised::Masked;
        }
        self.is_told = true;
        if std::mem::take(&mut self.is_asleep) { Raised::Asleep } else { Raised::Awake }
    }

    fn eligible(&self) -> BTreeSet<u32> {
        self.pending.difference(&self.masked).copied().collect()
    }
}

/// Few vectors in few words, so that steps meet; and any others.
fn vector() -> impl Strategy<Value = u32> {
    prop_oneof![4 => (0..3u32, 0..4u32).prop_map(|(word, bit)| word * 64 + bit * 21), 1 => 0..VECTORS]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => vector().prop_map(Step::Raise),
        4 => prop_oneof![Just(0), Just(1), 2..10u32, Just(u32::MAX)].prop_map(Step::Take),
        2 => vector().prop_map(Step::Mask),
        3 => vector().prop_map(Step::Unmask),
        1 => any::<bool>().prop_map(Step::Hold),
        3 => Just(Step::Arm),
        1 => Just(Step::Disarm),
    ]
}

fn ends_on_heap(way: Way) -> (Raiser, Taker) {
    let level = LevelMemory::on_heap();
    (Raiser::new(level.clone(), way), Taker::new(level, way))
}

fn ends_in_ram(way: Way) -> (Raiser, Taker) {
    let ram = Ram::create("intc-model", 2 * u64::from(RAM_HEADER_BYTES)).unwrap();
    let level = LevelMemory::format(&ram, RAM_HEADER_BYTES).unwrap();
    let seen = LevelMemory::attach(&ram, RAM_HEADER_BYTES, LEVEL_BYTES as u32).unwrap();
    (Raiser::new(seen, way), Taker::new(level, way))
}

fn follow(steps: &[Step], (raiser, mut taker): (Raiser, Taker)) {
    let mut model = Model::default();
    let gate = taker.gate();
    for step in steps {
        match *step {
            Step::Raise(vector) => assert_eq!(model.raise(vector), raiser.raise(vector)),
            Step::Take(budget) => take(&mut model, &mut taker, budget),
            Step::Mask(vector) => {
                model.masked.insert(vector);
                gate.mask(vector);
            }
            Step::Unmask(vector) => {
                model.masked.remove(&vector);
                assert_eq!(model.pending.contains(&vector), gate.unmask(vector));
            }
            Step::Hold(is_held) => {
                gate.set_held(is_held);
                assert_eq!((is_held, is_held), (gate.is_held(), raiser.memory().snapshot().is_held));
            }
            Step::Arm => {
                let may_sleep = !taker.has_more() && !model.is_told;
                // With something left over it is not even tried, and an earlier arming stands.
                model.is_asleep = if taker.has_more() { model.is_asleep } else { may_sleep };
                assert_eq!(may_sleep, taker.arm());
            }
            Step::Disarm => {
                model.is_asleep = false;
                taker.disarm();
            }
        }
    }
    let left = model.eligible().len() as u32;
    let now = raiser.memory().snapshot();
    assert_eq!((left, model.pending.len() as u32 - left), (now.pending, now.masked_pending));
    // Everything comes out in the end, in as few takes as there can be words and halves of one.
    for _ in 0..66 {
        take(&mut model, &mut taker, u32::MAX);
    }
    assert_eq!((false, true), (taker.has_more(), model.eligible().is_empty()));
}

fn take(model: &mut Model, taker: &mut Taker, budget: u32) {
    let eligible = model.eligible();
    let mut found = Vec::new();

    let count = taker.take(budget, |vector| found.push(vector));

    let distinct: BTreeSet<_> = found.iter().copied().collect();
    assert!(distinct.is_subset(&eligible) && distinct.len() == found.len(), "{found:?} of {eligible:?}");
    assert_eq!((budget.min(eligible.len() as u32), count), (count, found.len() as u32));
    model.pending.retain(|vector| !distinct.contains(vector));
    model.is_told = false;
    assert!(taker.has_more() || model.eligible().is_empty(), "something is left and nothing says so");
}

proptest! {
    #[test]
    fn level_on_the_heap_follows_the_model(steps in vec(step(), 1..200)) {
        follow(&steps, ends_on_heap(Way::ToGuest));
        follow(&steps, ends_on_heap(Way::ToHost));
    }

    #[test]
    fn level_in_guest_ram_follows_the_model(steps in vec(step(), 1..200)) {
        follow(&steps, ends_in_ram(Way::ToGuest));
        follow(&steps, ends_in_ram(Way::ToHost));
    }

    /// Whatever the budget, signals that are raised again at once leave room for every other one.
    #[test]
    fn every_signal_is_taken_before_any_is_taken_twice(
        vectors in proptest::collection::btree_set(0..VECTORS, 1..20), crowd in 0..64u32, budget in 1..70u32,
    ) {
        let (raiser, mut taker) = ends_on_heap(Way::ToGuest);
        let vectors: BTreeSet<u32> = vectors.into_iter().chain(0..crowd).collect();
        let mut history = Vec::new();
        for &vector in &vectors {
            let _ = raiser.raise(vector);
        }

        while history.len() < 3 * vectors.len() {
            taker.take(budget, |vector| history.push(vector));
            for &vector in &vectors {
                let _ = raiser.raise(vector);
            }
        }

        for round in history.chunks_exact(vectors.len()) {
            prop_assert_eq!(&vectors, &round.iter().copied().collect::<BTreeSet<_>>());
        }
    }
}

#[test]
fn million_raises_of_a_sleeper_ring_once() {
    let (raiser, mut taker) = ends_in_ram(Way::ToGuest);
    taker.take(u32::MAX, |_| {});
    assert!(taker.arm());

    let rings = (0..1_000_000u32).filter(|&number| raiser.raise(number % 1000) == Raised::Asleep).count();

    assert_eq!((1, 1000), (rings, taker.take(u32::MAX, |_| {})));
}

#[test]
fn vector_beyond_the_last_is_taken_for_one_that_is() {
    let (raiser, mut taker) = ends_on_heap(Way::ToGuest);
    let mut found = Vec::new();

    let _ = raiser.raise(VECTORS + 5);
    taker.take(u32::MAX, |vector| found.push(vector));

    assert_eq!(vec![5], found);
}

#[test]
fn level_that_is_held_back_keeps_its_signals_and_wants_no_bell() {
    let memory = LevelMemory::on_heap();
    let raiser = Raiser::new(memory.clone(), Way::ToGuest);
    let mut level = Level::new(memory, Doorbell::create().unwrap());
    let hand = level.hand();
    hand.set_held(true).unwrap();
    assert!(level.arm());

    let raised = raiser.raise(1);
    let while_held = level.take(8, |_| {});
    hand.set_held(false).unwrap();
    let mut found = Vec::new();
    level.wait(8, Duration::ZERO, Some(Duration::from_secs(10)), |vector| found.push(vector)).unwrap();

    assert_eq!((Raised::Awake, 0, vec![1]), (raised, while_held, found));
}

#[test]
fn unmasked_signal_that_was_raised_meanwhile_wakes_the_sleeper() {
    let memory = LevelMemory::on_heap();
    let raiser = Raiser::new(memory.clone(), Way::ToGuest);
    let mut level = Level::new(memory, Doorbell::create().unwrap());
    let hand = level.hand();
    hand.mask(3);
    assert!(level.arm());

    let raised = raiser.raise(3);
    hand.unmask(3).unwrap();
    let mut found = Vec::new();
    level.wait(8, Duration::ZERO, Some(Duration::from_secs(10)), |vector| found.push(vector)).unwrap();

    assert_eq!((Raised::Masked, vec![3]), (raised, found));
}

#[test]
fn handler_is_seen_while_it_runs_and_counted_when_it_ends() {
    let (raiser, taker) = ends_in_ram(Way::ToGuest);

    taker.begin(0, 77);
    let during = raiser.memory().snapshot();
    taker.end();

    let after = raiser.memory().snapshot();
    assert_eq!((Some(0), 77, 0), (during.in_service, during.since_ns, during.served));
    assert_eq!((None, 1), (after.in_service, after.served));
}
