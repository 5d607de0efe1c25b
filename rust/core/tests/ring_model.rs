//! The ring against an obvious model: whatever order the two ends are used in, both tell the same story.
//!
//! The model keeps four queues (staged, published, in hand, returned) and what each end has looked at. It is driven
//! with the same random steps as a ring on the heap and a ring that one end formatted and the other attached in guest
//! RAM, from any first index, the last before the 32-bit wrap-around included.
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour ring_model` looks longer; failures leave seeds beside it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::shm::layout::{RAM_HEADER_BYTES, RING_SLOTS_MAX, ring_bytes};
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::ring::{Consumer, Descriptor, LENGTH_MAX, Producer, RingMemory};

/// One thing a user of either end does. Numbers are cut down to what is allowed at that moment.
#[derive(Clone, Copy, Debug)]
enum Step {
    Stage(Descriptor),
    Publish,
    Completed,
    ReapPeeked(u32),
    Available,
    Refresh,
    Complete(u32, Descriptor),
    Advance(u32),
    Release,
}

/// What a ring is, said as plainly as possible.
struct Model {
    capacity: usize,
    staged: VecDeque<Descriptor>,
    published: VecDeque<Descriptor>,
    in_hand: VecDeque<Descriptor>,
    returned: VecDeque<Descriptor>,
    /// Published slots the consumer knows of.
    available: usize,
    /// Returned slots the producer knows of.
    completed: usize,
}

impl Model {
    fn new(slots: u32) -> Self {
        Self {
            capacity: slots as usize,
            staged: VecDeque::new(),
            published: VecDeque::new(),
            in_hand: VecDeque::new(),
            returned: VecDeque::new(),
            available: 0,
            completed: 0,
        }
    }

    fn in_flight(&self) -> usize {
        self.published.len() + self.in_hand.len() + self.returned.len()
    }

    fn room(&self) -> usize {
        self.capacity - self.staged.len() - self.in_flight()
    }
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    (any::<u32>(), 0..=LENGTH_MAX, any::<u8>()).prop_map(|(offset, length, flags)| Descriptor { offset, length, flags })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => descriptor().prop_map(Step::Stage),
        3 => Just(Step::Publish),
        2 => Just(Step::Completed),
        3 => (0..40u32).prop_map(Step::ReapPeeked),
        2 => Just(Step::Available),
        1 => Just(Step::Refresh),
        2 => (0..40u32, descriptor()).prop_map(|(ahead, answer)| Step::Complete(ahead, answer)),
        4 => (0..40u32).prop_map(Step::Advance),
        3 => Just(Step::Release),
    ]
}

fn first_index() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), (0..100u32).prop_map(|below| u32::MAX - below), any::<u32>()]
}

fn ends_on_heap(slots: u32, first: u32) -> (Producer, Consumer) {
    let ring = RingMemory::on_heap(slots);
    (Producer::starting_at(ring.clone(), first), Consumer::starting_at(ring, first))
}

fn ends_in_ram(slots: u32, first: u32) -> (Producer, Consumer) {
    let length = ring_bytes(slots) as u32;
    let ram = Ram::create("ring-model", u64::from(2 * RAM_HEADER_BYTES + length)).unwrap();
    let ring = RingMemory::format(&ram, RAM_HEADER_BYTES, slots).unwrap();
    let seen = RingMemory::attach(&ram, RAM_HEADER_BYTES, length).unwrap();
    (Producer::starting_at(ring, first), Consumer::starting_at(seen, first))
}

fn follow(slots: u32, first: u32, steps: &[Step], (mut producer, mut consumer): (Producer, Consumer)) {
    let mut model = Model::new(slots);
    let (mut staged_ever, mut reaped_ever) = (first, first);
    for step in steps {
        match *step {
            Step::Stage(descriptor) => {
                let has_room = model.room() != 0;
                if has_room {
                    model.staged.push_back(descriptor);
                    staged_ever = staged_ever.wrapping_add(1);
                }
                assert_eq!(has_room, producer.stage(descriptor));
            }
            Step::Publish => {
                model.published.append(&mut model.staged);
                producer.publish();
            }
            Step::Completed => look_for_returned(&mut model, &mut producer),
            Step::ReapPeeked(most) => {
                look_for_returned(&mut model, &mut producer);
                let count = most.min(model.completed as u32);
                for ahead in 0..count {
                    assert_eq!(model.returned[ahead as usize], producer.peek(ahead));
                }
                model.returned.drain(..count as usize);
                model.completed -= count as usize;
                reaped_ever = reaped_ever.wrapping_add(count);
                producer.reap(count);
            }
            Step::Available => look_for_published(&mut model, &mut consumer),
            Step::Refresh => {
                model.available = model.published.len();
                assert_eq!(Ok(model.available as u32), consumer.refresh());
            }
            Step::Complete(ahead, answer) => {
                if (ahead as usize) < model.available {
                    model.published[ahead as usize] = answer;
                    consumer.complete(ahead, answer);
                }
            }
            Step::Advance(most) => {
                look_for_published(&mut model, &mut consumer);
                let count = most.min(model.available as u32);
                for ahead in 0..count {
                    assert_eq!(model.published[ahead as usize], consumer.peek(ahead));
                }
                model.in_hand.extend(model.published.drain(..count as usize));
                model.available -= count as usize;
                consumer.advance(count);
            }
            Step::Release => {
                model.returned.append(&mut model.in_hand);
                consumer.release();
            }
        }
        assert_eq!(
            (model.room(), model.in_flight(), model.staged.len(), model.in_hand.len()),
            (
                producer.room() as usize,
                producer.in_flight() as usize,
                producer.unpublished() as usize,
                consumer.held() as usize
            )
        );
        assert_eq!((staged_ever, reaped_ever), (producer.next_index(), producer.reap_index()));
    }
}

fn look_for_returned(model: &mut Model, producer: &mut Producer) {
    if model.completed == 0 {
        model.completed = model.returned.len();
    }
    assert_eq!(Ok(model.completed as u32), producer.completed());
}

fn look_for_published(model: &mut Model, consumer: &mut Consumer) {
    if model.available == 0 {
        model.available = model.published.len();
    }
    assert_eq!(Ok(model.available as u32), consumer.available());
}

proptest! {
    /// Both ends of a ring on the heap do what the model does, step by step.
    #[test]
    fn ring_on_heap_follows_the_model(slots in (0..6u32).prop_map(|exponent| 1 << exponent), first in first_index(),
                                      steps in vec(step(), 0..400)) {
        follow(slots, first, &steps, ends_on_heap(slots, first));
    }

    /// A ring that one end formatted and the other attached in guest RAM does what the model does.
    #[test]
    fn ring_in_guest_ram_follows_the_model(
        slots in (0..6u32).prop_map(|exponent| 1 << exponent), first in first_index(), steps in vec(step(), 0..400),
    ) {
        follow(slots, first, &steps, ends_in_ram(slots, first));
    }
}

/// Sends `count` descriptors through in turns of at most `batch`, and checks that each comes out, answered, in order.
/// What fits beside an index, and what just does not.
fn lonely() -> impl Strategy<Value = Descriptor> {
    let flags = prop_oneof![4 => Just(0), 1 => any::<u8>()];
    (any::<u32>(), prop_oneof![0..3u32, 65_534..65_538u32, 0..=LENGTH_MAX], flags)
        .prop_map(|(offset, length, flags)| Descriptor { offset, length, flags })
}

const fn fits_beside_an_index(descriptor: Descriptor) -> bool {
    descriptor.flags == 0 && descriptor.length != 0 && descriptor.length < 1 << 16
}

proptest! {
    /// The last slot of each batch stands beside the index in both directions, if it fits, and no other ever does.
    #[test]
    fn word_beside_an_index_says_what_the_last_slot_says(
        first in first_index(), batches in vec(vec((lonely(), lonely()), 1..5), 1..40),
    ) {
        let (mut producer, mut consumer) = ends_in_ram(4, first);
        for batch in batches {
            let last = batch.len() as u32 - 1;
            for (descriptor, _) in &batch {
                assert!(producer.stage(*descriptor));
            }
            producer.publish();
            assert_eq!(Ok(last + 1), consumer.available());
            for (number, (descriptor, answer)) in (0..).zip(&batch) {
                let expected = (number == last && fits_beside_an_index(*descriptor)).then_some(*descriptor);
                assert_eq!(expected, consumer.peek_newest());
                consumer.complete(0, *answer);
                consumer.advance(1);
            }
            consumer.release();
            assert_eq!(Ok(last + 1), producer.completed());
            for (number, (_, answer)) in (0..).zip(&batch) {
                let expected = (number == last && fits_beside_an_index(*answer)).then_some(*answer);
                assert_eq!(expected, producer.peek_newest());
                producer.reap(1);
            }
        }
    }
}

/// A consumer that never answers does not touch the lines of the slots to say something of them.
#[test]
fn slot_that_was_not_answered_is_not_repeated() {
    let (mut producer, mut consumer) = ends_on_heap(4, 0);
    assert!(producer.stage(Descriptor::new(0, 60)));
    producer.publish();
    assert_eq!(Ok(1), consumer.available());
    consumer.advance(1);
    consumer.release();

    assert_eq!((Ok(1), None), (producer.completed(), producer.peek_newest()));
}

/// Tags come round after 65536 slots; what is said of one long gone is not taken for one that is there now.
#[test]
fn slot_of_65536_ago_is_never_taken_for_the_newest() {
    let (mut producer, mut consumer) = ends_on_heap(1, 0);
    for round in 0..1 << 16 {
        assert!(producer.stage(Descriptor::new(round, 60)));
        producer.publish();
        assert_eq!(Ok(1), consumer.available());
        if round == 0 {
            consumer.complete(0, Descriptor::new(round, 61));
        }
        consumer.advance(1);
        consumer.release();
        assert_eq!(Ok(1), producer.completed());
        assert_eq!(Some(producer.peek(0)), producer.peek_newest());
        producer.reap(1);
    }
    assert!(producer.stage(Descriptor { flags: 1, ..Descriptor::new(0, 60) }));
    producer.publish();
    assert_eq!(Ok(1), consumer.available());
    assert_eq!(None, consumer.peek_newest());
}

fn pump(count: u32, batch: u32, (mut producer, mut consumer): (Producer, Consumer)) {
    let (mut sent, mut worked, mut back) = (0, 0, 0);
    while back < count {
        for _ in 0..batch.min(count - sent) {
            sent += u32::from(producer.stage(Descriptor::new(sent, 1)));
        }
        producer.publish();
        let available = consumer.available().unwrap();
        for ahead in 0..available {
            assert_eq!(Descriptor::new(worked, 1), consumer.peek(ahead));
            consumer.complete(ahead, Descriptor::new(worked, 2));
            worked += 1;
        }
        consumer.advance(available);
        consumer.release();
        for _ in 0..producer.completed().unwrap() {
            assert_eq!(Descriptor::new(back, 2), producer.peek(0));
            producer.reap(1);
            back += 1;
        }
    }
    assert_eq!((Ok(0), Ok(0)), (producer.completed(), consumer.available()));
}

/// A ring of one slot takes turns: full after one, empty after its return, also past index 2^32.
#[test]
fn ring_of_one_slot_carries_one_at_a_time_across_the_wrap_around() {
    let (mut producer, mut consumer) = ends_in_ram(1, u32::MAX);
    assert!(producer.stage(Descriptor::new(1, 1)));
    assert!(!producer.stage(Descriptor::new(2, 1)));
    producer.publish();
    assert_eq!((Ok(1), Ok(0)), (consumer.available(), producer.completed()));
    consumer.advance(1);
    assert_eq!(Ok(0), producer.completed());
    consumer.release();
    assert_eq!((0, Ok(1)), (producer.room(), producer.completed()));
    producer.reap(1);
    assert_eq!((1, 0), (producer.room(), producer.next_index()));

    pump(1000, 1, (producer, consumer));
}

/// Every ring size carries several times its slots across index 2^32, whatever the batch.
#[test]
fn rings_of_every_size_carry_on_across_the_wrap_around() {
    for slots in [1, 2, 4, 64, 1024, RING_SLOTS_MAX] {
        for batch in [1, 3, slots] {
            let before = (2 * slots).min(5000);
            pump(2 * before, batch, ends_on_heap(slots, u32::MAX - before));
        }
    }
}

/// A ring takes exactly as many descriptors as it has slots, the largest ring too.
#[test]
fn ring_takes_as_many_descriptors_as_it_has_slots() {
    for slots in [1, 2, RING_SLOTS_MAX] {
        let (mut producer, mut consumer) = ends_in_ram(slots, u32::MAX - slots / 2);

        let taken = (0..=slots).filter(|&index| producer.stage(Descriptor::new(index, 1))).count();
        producer.publish();

        assert_eq!((slots as usize, 0, Ok(slots)), (taken, producer.room(), consumer.available()));
    }
}

/// What is staged but not published stays invisible, and what is advanced over but not released stays ours.
#[test]
fn nothing_changes_hands_before_publish_and_release() {
    let (mut producer, mut consumer) = ends_in_ram(4, 0);
    assert!(producer.stage(Descriptor::new(0, 1)));
    assert_eq!(Ok(0), consumer.available());
    producer.publish();
    assert_eq!(Ok(1), consumer.available());
    consumer.advance(1);
    assert_eq!((1, Ok(0)), (consumer.held(), producer.completed()));
    consumer.release();
    assert_eq!((0, Ok(1)), (consumer.held(), producer.completed()));
}
