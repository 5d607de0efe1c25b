//! Where a packed ring is, found out from the ring itself.
//!
//! ```text
//!   turn w:     used of w │ available of w │ used of the turn before           D = first available, or where the turns meet
//!                         D
//!   gone round: available of the next turn │ used of w │ available of w
//!                                                      D
//! ```
//!
//! Whoever goes on with a ring is told where. A front end whose back end died never heard it: QEMU says what it heard when it
//! last stopped the ring itself, or the ring's beginning. Each descriptor shows which turn it is of and which side wrote it
//! last, and we complete chains in order, so the ring contradicts a place that is wrong, and of chains of one descriptor it
//! shows exactly one. Of a longer chain only the head is overwritten when it is used, and the rest of it still looks
//! available; it is told from chains that are by the id in its last descriptor, which is the head's. That may leave two
//! places; then the one where we last fell asleep is taken, if our wish in the ring's memory says that we did.
//!
//! The danger: the driver writes all of this, and goes on while we look. So this works on a copy, taken until two in a row are
//! the same, in time that grows with the ring's size only; and the worst that a lie can do is what a wrong base can.
//! Source: virtio 1.2 §2.8.1 (wrap counters), §2.8.6 (next flag), §2.8.9 (in-order use of descriptors).

use super::packed::{AVAILABLE, Place, USED};
use super::queue::NEXT;

/// More runs of like descriptors than a ring of single descriptors can have.
const RUNS_MAX: usize = 8;

/// Copy of the half of a descriptor that turns it over: length, id, flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub u64);

impl Slot {
    const fn flags(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// What its buffer is called; of a chain that is available its last descriptor has it, of one that is used its first.
    pub const fn id(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The chain goes on behind it.
    pub const fn goes_on(self) -> bool {
        self.flags() & NEXT != 0
    }

    const fn is_available(self, wrap: bool) -> bool {
        Place { index: 0, wrap }.is_available(self.flags())
    }

    const fn is_used(self, wrap: bool) -> bool {
        Place { index: 0, wrap }.is_used(self.flags())
    }

    /// Which side wrote it last, and in which turn.
    const fn kind(self) -> u16 {
        self.flags() & (AVAILABLE | USED)
    }
}

/// Goes once round a ring.
#[derive(Clone, Copy)]
pub(super) struct Round<'a> {
    slots: &'a [Slot],
    place: Place,
    /// Descriptors from `place` to where it began.
    left: usize,
}

impl<'a> Round<'a> {
    pub const fn new(slots: &'a [Slot], place: Place) -> Self {
        Self { slots, place, left: slots.len() }
    }

    pub const fn place(&self) -> Place {
        self.place
    }

    fn slot(&self) -> Option<Slot> {
        if self.left == 0 { None } else { self.slots.get(usize::from(self.place.index)).copied() }
    }

    const fn step(&mut self) {
        self.place.advance(1, self.slots.len() as u16);
        self.left -= 1;
    }

    fn is_available(&self) -> bool {
        self.slot().is_some_and(|slot| slot.is_available(self.place.wrap))
    }

    fn is_used(&self) -> bool {
        self.slot().is_some_and(|slot| slot.is_used(self.place.wrap))
    }

    /// Used in the turn before.
    fn is_old(&self) -> bool {
        self.slot().is_some_and(|slot| slot.is_used(!self.place.wrap))
    }

    /// Available in the turn before, as what is left of a chain that was used.
    fn is_rest(&self) -> bool {
        self.slot().is_some_and(|slot| slot.is_available(!self.place.wrap))
    }

    /// Passes a chain that is available, whole: what its buffer is called.
    pub fn chain(&mut self) -> Option<u16> {
        while self.is_available() {
            let slot = self.slot()?;
            self.step();
            if !slot.goes_on() {
                return Some(slot.id());
            }
        }
        None
    }

    /// Passes the rest of a used chain, if one is here, whose head says that its buffer is called `id`.
    fn rest(&mut self, id: u16, is_rest: impl Fn(&Self) -> bool) {
        let mut ahead = *self;
        while is_rest(&ahead) {
            let Some(slot) = ahead.slot() else { return };
            ahead.step();
            if slot.goes_on() {
                continue;
            }
            if slot.id() == id {
                *self = ahead;
            }
            return;
        }
    }

    /// Passes chains that were used in this turn already, behind one that was not: what is left by whoever died before it
    /// wrote the first descriptor of a batch, which is written last. Whether there are any.
    ///
    /// The driver has not seen them, so no other chain has the id of one of them.
    pub fn used_ahead(&mut self) -> bool {
        let mut is_any = false;
        while self.is_used() {
            let Some(slot) = self.slot() else { break };
            self.step();
            self.rest(slot.id(), Self::is_available);
            is_any = true;
        }
        is_any
    }

    /// Passes the rest of a used chain whose head is overwritten, if there is one here: whether there was room for a head.
    fn headless(&mut self) -> bool {
        let before = self.left;
        while self.is_rest() {
            let goes_on = self.slot().is_some_and(Slot::goes_on);
            self.step();
            if !goes_on {
                break;
            }
        }
        before - self.left < self.slots.len()
    }

    /// Passes a chain that the driver is about to make available: its head, which is written last, is not.
    fn unfinished(&mut self) {
        let mut ahead = *self;
        if !self.is_old() && !self.is_rest() {
            return;
        }
        ahead.step();
        while ahead.is_available() {
            ahead.step();
            *self = ahead;
        }
    }
}

/// Whether the ring can be at `place`: `has_chains` says that chains may have more than one descriptor.
fn fits(slots: &[Slot], place: Place, has_chains: bool) -> bool {
    let mut round = Round::new(slots, place);
    let mut is_first = true;
    while round.is_available() {
        if round.chain().is_none() {
            return false;
        }
        if is_first {
            round.used_ahead();
            is_first = false;
        }
    }
    if has_chains {
        round.unfinished();
        // The head of the oldest may be overwritten already, but there was one.
        if !round.headless() {
            return false;
        }
    }
    // What was used before, oldest first.
    while let Some(slot) = round.slot() {
        if !round.is_old() {
            return false;
        }
        round.step();
        if has_chains {
            round.rest(slot.id(), Round::is_rest);
        }
    }
    true
}

/// Where the ring is if all chains in it that were used are of one descriptor each; none if they cannot be.
fn single(slots: &[Slot]) -> Option<Place> {
    let kind = |index: usize| slots.get(index).map(|slot| slot.kind());
    let mut runs = (0..slots.len()).filter(|&index| index == 0 || kind(index) != kind(index - 1));
    let starts: Vec<usize> = runs.by_ref().take(RUNS_MAX).collect();
    if runs.next().is_some() {
        return None;
    }
    let places = starts.into_iter().flat_map(|index| [true, false].map(|wrap| Place { index: index as u16, wrap }));
    let mut fitting = places.filter(|&place| fits(slots, place, false));
    fitting.next().filter(|_| fitting.next().is_none())
}

/// Whether what is available at `place` may as well be the rest of the chain that was used before it.
fn may_be_rest(slots: &[Slot], place: Place) -> bool {
    let size = slots.len() as u16;
    let last = place.back(size);
    let Some(head) = slots.get(usize::from(last.index)).filter(|slot| slot.is_used(last.wrap)) else { return false };
    let mut round = Round::new(slots, place);
    round.rest(head.id(), Round::is_available);
    round.place != place && fits(slots, round.place, true)
}

/// Where a ring is.
///
/// Args: `told` is where it should be; `asleep` where we wanted to be kicked, if our wish says so; `has_indirect`: chains have one
/// descriptor, as far as its driver has memory for tables.
///
/// None: it is not at `told`, and more than one place, or none, can be.
pub(super) fn find(slots: &[Slot], told: Place, asleep: Option<Place>, has_indirect: bool) -> Option<Place> {
    let single = single(slots);
    if single == Some(told) {
        return single;
    }
    // What was heard long ago the ring contradicts. The beginning is also said by those who never heard of anything.
    let is_told = fits(slots, told, true);
    if is_told && told != Place::START {
        return Some(told);
    }
    if let Some(place) = asleep.filter(|&place| fits(slots, place, true)) {
        return Some(place);
    }
    single.filter(|&place| has_indirect || !may_be_rest(slots, place)).or_else(|| is_told.then_some(told))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Both sides of a ring, descriptor by descriptor as the specification tells it.
    struct Model {
        slots: Vec<Slot>,
        free: Place,
        /// Where the device is.
        next: Place,
        /// Chains that are available, oldest first: their ids and descriptors.
        available: VecDeque<(u16, u16)>,
        /// Ids that are free; the one that came back last goes out first.
        ids: Vec<u16>,
    }

    impl Model {
        fn new(size: u16) -> Self {
            let (free, next) = (Place::START, Place::START);
            let slots = vec![Slot(0); size.into()];
            Self { slots, free, next, available: VecDeque::new(), ids: (0..size).rev().collect() }
        }

        fn size(&self) -> u16 {
            self.slots.len() as u16
        }

        fn write(&mut self, place: Place, id: u16, flags: u16) {
            self.slots[usize::from(place.index)] = Slot(u64::from(id) << 32 | u64::from(flags) << 48);
        }

        /// The driver makes a chain available, if there is room. `is_begun`: all of it but its head, so far.
        fn offer(&mut self, descriptors: u16, is_begun: bool) {
            let taken: u16 = self.available.iter().map(|&(_, taken)| taken).sum();
            if taken + descriptors > self.size() {
                return;
            }
            let Some(id) = self.ids.pop() else { return };
            let mut place = self.free;
            for number in 1..=descriptors {
                let turn = if place.wrap { AVAILABLE } else { USED };
                // Only the id of the last one counts.
                let (named, next) = if number == descriptors { (id, 0) } else { (!id, NEXT) };
                if !(is_begun && number == 1) {
                    self.write(place, named, turn | next);
                }
                place.advance(1, self.size());
            }
            if is_begun {
                self.ids.push(id);
            } else {
                self.free = place;
                self.available.push_back((id, descriptors));
            }
        }

        /// The device completes so many chains, of which `is_cut` says that it dies before it has written the first.
        fn complete(&mut self, chains: usize, is_cut: bool) {
            let (mut place, mut is_first) = (self.next, true);
            for (id, descriptors) in self.available.drain(..chains.min(self.available.len())).collect::<Vec<_>>() {
                if !(is_cut && is_first) {
                    let turn = if place.wrap { AVAILABLE | USED } else { 0 };
                    self.write(place, id, turn);
                }
                is_first = false;
                place.advance(descriptors, self.size());
                self.ids.push(id);
            }
            if !is_cut {
                self.next = place;
            }
        }
    }

    /// A chain of so many descriptors is offered, or so many are completed.
    #[derive(Clone, Debug)]
    enum Step {
        Offer(u16),
        Complete(usize),
    }

    fn steps(chain: u16) -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![2 => (1..=chain).prop_map(Step::Offer), 1 => (0..4_usize).prop_map(Step::Complete)];
        vec(step, 0..100)
    }

    fn model(size: u16, steps: &[Step]) -> Model {
        let mut model = Model::new(size);
        for step in steps {
            match *step {
                Step::Offer(descriptors) => model.offer(descriptors, false),
                Step::Complete(chains) => model.complete(chains, false),
            }
        }
        model
    }

    fn place(size: u16) -> impl Strategy<Value = Place> {
        (0..size, any::<bool>()).prop_map(|(index, wrap)| Place { index, wrap })
    }

    /// A size, steps, and any place of such a ring.
    fn sized(chain: u16) -> impl Strategy<Value = ((u16, Vec<Step>), Place)> {
        (1..12_u16).prop_flat_map(move |size| ((Just(size), steps(chain)), place(size)))
    }

    #[test]
    fn ring_that_was_never_used_begins_at_its_beginning() {
        for size in [1, 2, 256] {
            let mut model = Model::new(size);
            for _ in 0..=size {
                assert_eq!(Some(Place::START), find(&model.slots, Place::START, None, false));
                model.offer(1, false);
            }
        }
    }

    /// One waits, in a ring whose last chain had the same id: it may be the rest of that one.
    #[test]
    fn place_that_may_be_another_is_found_by_where_the_device_fell_asleep_or_not_at_all() {
        let mut model = Model::new(8);
        model.offer(1, false);
        model.complete(1, false);
        model.offer(1, false);
        let (told, truth) = (Place::START, model.next);

        assert_eq!(None, find(&model.slots, told, None, false));
        assert_eq!(Some(truth), find(&model.slots, told, None, true));
        assert_eq!(Some(truth), find(&model.slots, told, Some(truth), false));
        let other = Place { index: 2, wrap: true };
        assert_eq!(Some(other), find(&model.slots, told, Some(other), true));
        // Where it cannot be is believed of nobody.
        assert_eq!(Some(truth), find(&model.slots, told, Some(Place { index: 3, wrap: false }), true));
    }

    proptest! {
        /// Chains of one descriptor leave one place. What a front end heard before is believed only where it can be as well.
        #[test]
        fn prop_place_of_single_descriptors_is_found(((size, steps), told) in sized(1)) {
            let model = model(size, &steps);

            prop_assert_eq!(Some(model.next), find(&model.slots, Place::START, None, true));
            let found = find(&model.slots, told, None, true);
            prop_assert!(found == Some(model.next) || found == Some(told) && fits(&model.slots, told, true));
        }

        /// Also after a batch that was not finished, and that is finished then.
        #[test]
        fn prop_place_of_a_batch_that_was_cut_off_is_found_and_its_end(
            ((size, steps), _) in sized(1),
            batch in 2..5_usize,
        ) {
            let mut model = model(size, &steps);
            let batch = batch.min(model.available.len());
            model.complete(batch, true);
            let truth = model.next;

            prop_assert_eq!(Some(truth), find(&model.slots, Place::START, None, true));
            let mut round = Round::new(&model.slots, truth);
            round.chain();
            let mut end = truth;
            end.advance(batch as u16, size);
            if batch >= 2 {
                prop_assert!(round.used_ahead());
                prop_assert_eq!(end, round.place());
            } else {
                prop_assert!(!round.used_ahead());
            }
        }

        /// What is true is never denied: with long chains, in the middle of one, after a batch that was not finished. Only the
        /// beginning is, where the ring looks as if it were elsewhere, for those say so as well who do not know.
        #[test]
        fn prop_place_that_is_true_is_believed(
            ((size, steps), _) in sized(4),
            begun in 0..4_u16,
            cut in 0..4_usize,
        ) {
            let mut model = model(size, &steps);
            model.complete(cut, true);
            if begun != 0 && cut == 0 {
                model.offer(begun, true);
            }

            let found = find(&model.slots, model.next, None, true);

            let is_elsewhere = model.next == Place::START && found == single(&model.slots);
            prop_assert!(found == Some(model.next) || is_elsewhere, "{:?}", found);
            prop_assert!(fits(&model.slots, model.next, true));
        }

        /// The end of a batch that was cut off is found among chains of every length.
        #[test]
        fn prop_batch_of_long_chains_that_was_cut_off_ends_where_it_ended(((size, steps), _) in sized(4), batch in 2..5_usize) {
            let mut model = model(size, &steps);
            let batch = batch.min(model.available.len());
            if batch < 2 {
                return Ok(());
            }
            let mut end = model.next;
            model.available.iter().take(batch).for_each(|&(_, descriptors)| end.advance(descriptors, size));
            model.complete(batch, true);

            let mut round = Round::new(&model.slots, model.next);
            round.chain();

            prop_assert!(round.used_ahead());
            prop_assert_eq!(end, round.place());
        }

        /// Where it fell asleep settles what the ring alone does not.
        #[test]
        fn prop_place_where_the_device_fell_asleep_is_found(((size, steps), _) in sized(4)) {
            let model = model(size, &steps);
            let found = find(&model.slots, Place::START, Some(model.next), false);

            // A ring that may be at its beginning, with nothing used in it that was long, is taken to be there.
            let is_new = single(&model.slots) == Some(Place::START);
            prop_assert_eq!(Some(if is_new { Place::START } else { model.next }), found);
        }

        /// Whatever a driver writes: an answer in time, and a place of the ring.
        #[test]
        fn prop_nonsense_leads_to_a_place_of_the_ring_or_to_none(
            slots in vec((0..4_u16, 0..3_u16, any::<bool>()), 1..40),
            told in place(1),
            asleep in proptest::option::of(place(1)),
            has_indirect in any::<bool>(),
        ) {
            let flags = |turn: u16, goes_on| [0, AVAILABLE, USED, AVAILABLE | USED][usize::from(turn)] | if goes_on { NEXT } else { 0 };
            let slots: Vec<Slot> = slots
                .into_iter()
                .map(|(turn, id, goes_on)| Slot(u64::from(id) << 32 | u64::from(flags(turn, goes_on)) << 48))
                .collect();

            let found = find(&slots, told, asleep, has_indirect);

            prop_assert!(found.is_none_or(|place| usize::from(place.index) < slots.len()));
        }
    }
}
