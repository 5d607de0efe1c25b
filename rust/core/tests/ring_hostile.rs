//! A ring whose other end writes whatever it likes: every impossible index is a fault, for ever, and never "empty".
//!
//! The peer is played by raw stores at the byte offsets of `docs/wire/ring.md`, written down here a second time.
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour ring_hostile` looks longer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::error::{Error, Fault};
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::ring::{Consumer, Descriptor, Producer, RingMemory};

const RING: u32 = 4096;
const SLOTS: u32 = 8;
const RING_BYTES: u32 = 0x400 + 8 * SLOTS;

const MAGIC: u32 = 0;
const VERSION: u32 = 4;
const SLOT_COUNT: u32 = 8;
const TAIL: u32 = 0x80;
const HEAD: u32 = 0x100;
const SIGNAL_MAGIC: u32 = 0x180;
const SIGNAL_VERSION: u32 = 0x184;
const KICK_ENABLED: u32 = 0x200;
const KICK_DIRTY: u32 = 0x280;
const KICK_PENDING: u32 = 0x284;
const CALL_ENABLED: u32 = 0x300;
const CALL_DIRTY: u32 = 0x380;
const CALL_PENDING: u32 = 0x384;

fn ram() -> Arc<Ram> {
    let ram = Ram::create("hostile-ring", 3 * 4096).unwrap();
    RingMemory::format(&ram, RING, SLOTS).unwrap();
    ram
}

/// The word `field` bytes into the ring, as anybody who maps the region can write it.
fn word(ram: &Arc<Ram>, field: u32) -> &AtomicU32 {
    let place = ram.at(RING + field, 4).unwrap();
    // SAFETY: in bounds, aligned, accessed by atomics only, and borrowed from the region that maps it.
    unsafe { place.cast::<AtomicU32>().as_ref() }
}

fn scribble(ram: &Arc<Ram>, field: u32, value: u32) {
    word(ram, field).store(value, Ordering::SeqCst);
}

fn attach(ram: &Arc<Ram>) -> RingMemory {
    RingMemory::attach(ram, RING, RING_BYTES).unwrap()
}

/// A consumer that saw `published` slots from index `first` on, advanced over `advanced` and returned `returned`.
fn consumer(ram: &Arc<Ram>, first: u32, published: u32, advanced: u32, returned: u32) -> Consumer {
    let mut consumer = Consumer::starting_at(attach(ram), first);
    scribble(ram, TAIL, first.wrapping_add(published));
    assert_eq!(Ok(published), consumer.refresh());
    consumer.advance(returned);
    consumer.release();
    consumer.advance(advanced - returned);
    consumer
}

/// A producer from index `first` on with `published` slots of which `reaped` came back, and `staged` more.
fn producer(ram: &Arc<Ram>, first: u32, published: u32, reaped: u32, staged: u32) -> Producer {
    scribble(ram, HEAD, first);
    let mut producer = Producer::starting_at(attach(ram), first);
    for index in 0..published {
        assert!(producer.stage(Descriptor::new(index, 1)));
    }
    producer.publish();
    scribble(ram, HEAD, first.wrapping_add(reaped));
    assert_eq!(Ok(reaped), producer.completed());
    producer.reap(reaped);
    for index in 0..staged {
        assert!(producer.stage(Descriptor::new(index, 1)));
    }
    producer
}

/// Indices near the edges of what is allowed, and any others.
fn index_near(first: u32) -> impl Strategy<Value = u32> {
    prop_oneof![3 => (0..40u32).prop_map(move |far| first.wrapping_add(far).wrapping_sub(20)), 1 => any::<u32>()]
}

fn first_index() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), (0..20u32).prop_map(|below| u32::MAX - below), any::<u32>()]
}

/// published >= advanced >= returned, all at most the ring's slots.
fn progress() -> impl Strategy<Value = (u32, u32, u32)> {
    (0..=SLOTS)
        .prop_flat_map(|published| (Just(published), 0..=published))
        .prop_flat_map(|(published, advanced)| (Just(published), Just(advanced), 0..=advanced))
}

proptest! {
    /// Of all values a producer may store, those between what was seen and a full ring count, all others are faults.
    #[test]
    fn consumer_believes_a_tail_within_the_ring_and_no_other(
        (first, tail) in first_index().prop_flat_map(|first| (Just(first), index_near(first))),
        (published, advanced, returned) in progress(),
    ) {
        let ram = ram();
        let mut consumer = consumer(&ram, first, published, advanced, returned);
        scribble(&ram, TAIL, tail);

        let found = consumer.refresh();

        let head = first.wrapping_add(returned);
        let moved = tail.wrapping_sub(first);
        let expected = if (published..=returned + SLOTS).contains(&moved) {
            Ok(moved - advanced)
        } else {
            Err(Fault::TailOutOfRange { tail, head, slots: SLOTS })
        };
        prop_assert_eq!(expected, found);
        prop_assert_eq!(expected, consumer.refresh());
    }

    /// Of all values a consumer may store, those between what was reaped and what was published count.
    #[test]
    fn producer_believes_a_head_within_what_it_published_and_no_other(
        (first, head) in first_index().prop_flat_map(|first| (Just(first), index_near(first))),
        (published, reaped) in (0..=SLOTS).prop_flat_map(|published| (Just(published), 0..=published)),
        staged in 0..=SLOTS,
    ) {
        let ram = ram();
        let mut producer = producer(&ram, first, published, reaped, staged.min(SLOTS + reaped - published));
        scribble(&ram, HEAD, head);

        let found = producer.completed();

        let moved = head.wrapping_sub(first);
        let expected = if (reaped..=published).contains(&moved) {
            Ok(moved - reaped)
        } else {
            let (reaped, tail) = (first.wrapping_add(reaped), first.wrapping_add(published));
            Err(Fault::HeadOutOfRange { head, reaped, tail })
        };
        prop_assert_eq!(expected, found);
        prop_assert_eq!(expected, producer.completed());
    }

    /// However the end is asked, a ring with an impossible index answers with the fault, again and again.
    #[test]
    fn corrupt_ring_is_never_reported_as_empty(
        first in first_index(), beyond in 1..=u32::MAX - SLOTS, asks in 1..5u32,
    ) {
        let ram = ram();
        let mut consumer = consumer(&ram, first, SLOTS, SLOTS, SLOTS);
        let head = first.wrapping_add(SLOTS);
        let tail = head.wrapping_add(SLOTS).wrapping_add(beyond);
        scribble(&ram, TAIL, tail);
        let fault = Fault::TailOutOfRange { tail, head, slots: SLOTS };
        for _ in 0..asks {
            prop_assert_eq!(Err(fault), consumer.available());
            prop_assert_eq!(Err(fault), consumer.refresh());
            prop_assert_eq!(Err(fault), consumer.arm());
        }
        prop_assert_eq!(0, word(&ram, KICK_ENABLED).load(Ordering::SeqCst));
    }

    /// A slot's word says the same after being read and written back, whatever bits are in it.
    #[test]
    fn any_word_is_a_descriptor_and_comes_back_unchanged(word in any::<u64>()) {
        let descriptor = Descriptor::from_word(word);

        prop_assert_eq!(word, descriptor.to_word());
        prop_assert_eq!(word.to_le_bytes(), {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&descriptor.offset.to_le_bytes());
            bytes[4..7].copy_from_slice(&descriptor.length.to_le_bytes()[..3]);
            bytes[7] = descriptor.flags;
            bytes
        });
    }

    /// A length beyond 24 bits is cut and never spills into offset or flags.
    #[test]
    fn overlong_length_disturbs_no_other_field(offset in any::<u32>(), length in any::<u32>(), flags in any::<u8>()) {
        let found = Descriptor::from_word(Descriptor { offset, length, flags }.to_word());

        prop_assert_eq!(Descriptor { offset, length: length & 0x00ff_ffff, flags }, found);
    }

    /// Garbage in the signal's words costs wake-ups at worst: nothing panics and no arming rings twice.
    #[test]
    fn scribbled_signal_words_ring_at_most_once_an_arming(garbage in vec((0..6usize, any::<u32>()), 1..50)) {
        const FIELDS: [u32; 6] = [KICK_ENABLED, KICK_DIRTY, KICK_PENDING, CALL_ENABLED, CALL_DIRTY, CALL_PENDING];
        let ram = ram();
        let mut consumer = Consumer::new(attach(&ram));
        let producer = Producer::new(attach(&ram));
        for (field, value) in garbage {
            scribble(&ram, FIELDS[field], value);
            let (kick, call) = (word(&ram, KICK_ENABLED), word(&ram, CALL_ENABLED));
            let (kick_before, call_before) = (kick.load(Ordering::SeqCst), call.load(Ordering::SeqCst));
            prop_assert!(!(producer.notify() && kick_before == 0));
            prop_assert!(!producer.notify());
            prop_assert!(!(consumer.notify() && call_before == 0));
            prop_assert!(!consumer.notify());
            prop_assert!(consumer.arm().is_ok());
            producer.listener().acknowledge();
            let _ = producer.listener().arm();
        }
    }

    /// A header of any content is attached only when each of its words is right, and never panics.
    #[test]
    fn ring_with_any_wrong_header_word_is_refused(field in 0..5usize, value in any::<u32>()) {
        let field = [MAGIC, VERSION, SLOT_COUNT, SIGNAL_MAGIC, SIGNAL_VERSION][field];
        let ram = ram();
        let right = word(&ram, field).load(Ordering::SeqCst);
        scribble(&ram, field, value);

        prop_assert_eq!(value == right, RingMemory::attach(&ram, RING, RING_BYTES).is_ok());
    }

    /// Whatever place and length a peer names, attaching answers, and accepts the one right pair only.
    #[test]
    fn ring_is_attached_at_its_own_place_only(
        offset in prop_oneof![any::<u32>(), (0..100u32).prop_map(|line| line * 128)],
        length in prop_oneof![any::<u32>(), Just(RING_BYTES), 0..2000u32],
    ) {
        let ram = ram();

        let found = RingMemory::attach(&ram, offset, length).is_ok();

        prop_assert_eq!((offset, length) == (RING, RING_BYTES), found);
    }
}

/// Slots in hand are not free: a producer that publishes into them is caught although the consumer moved on.
#[test]
fn tail_that_runs_into_slots_in_hand_is_a_fault() {
    let ram = ram();
    let mut consumer = consumer(&ram, 0, SLOTS, 3, 0);

    scribble(&ram, TAIL, SLOTS + 3);

    assert_eq!(Err(Fault::TailOutOfRange { tail: SLOTS + 3, head: 0, slots: SLOTS }), consumer.refresh());
}

/// Slots published before the fault stay usable, the fault is found behind them.
#[test]
fn fault_is_found_behind_the_slots_that_were_seen_before() {
    let ram = ram();
    let mut consumer = consumer(&ram, 0, 2, 0, 0);
    scribble(&ram, TAIL, 1000);

    assert_eq!(Ok(2), consumer.available());
    consumer.advance(2);

    assert_eq!(Err(Fault::TailOutOfRange { tail: 1000, head: 0, slots: SLOTS }), consumer.available());
}

/// The number of slots is copied once: a producer that changes it later changes nothing for us.
#[test]
fn number_of_slots_changed_after_attaching_is_not_believed() {
    let ram = ram();
    let mut consumer = consumer(&ram, 0, 0, 0, 0);

    scribble(&ram, SLOT_COUNT, 1 << 15);
    scribble(&ram, TAIL, SLOTS + 1);

    assert_eq!(SLOTS, consumer.slots());
    assert_eq!(Err(Fault::TailOutOfRange { tail: SLOTS + 1, head: 0, slots: SLOTS }), consumer.available());
}

/// Our own index in shared memory is for the other side: what it does to it does not move us.
#[test]
fn own_index_overwritten_by_the_peer_is_not_read_back() {
    let ram = ram();
    let mut consumer = consumer(&ram, 0, 5, 0, 0);
    let mut producer = producer(&ram, 0, 5, 0, 0);

    scribble(&ram, HEAD, 77);
    consumer.advance(5);
    consumer.release();

    assert_eq!(5, word(&ram, HEAD).load(Ordering::SeqCst));
    scribble(&ram, TAIL, 99);
    assert_eq!(Ok(5), producer.completed());
    producer.reap(5);
    producer.publish();
    assert_eq!(5, word(&ram, TAIL).load(Ordering::SeqCst));
}

/// A ring at a place or of a length that cannot be is a fault that names it.
#[test]
fn refused_place_is_named() {
    let outside = |offset, length| Fault::OutsideRegion { offset, length, limit: 12288 };
    let cases = [
        (RING + 64, RING_BYTES, Fault::BadSize { what: "ring alignment", found: 4160, limit: 128 }),
        (0, RING_BYTES, Fault::OverlapsControl { offset: 0, length: RING_BYTES, start: 0, end: 4096 }),
        (12288, RING_BYTES, outside(12288, RING_BYTES)),
        (12160, RING_BYTES, outside(12160, RING_BYTES)),
        (0xffff_ff80, u32::MAX, outside(0xffff_ff80, u32::MAX)),
        (RING, RING_BYTES - 8, bad_length(RING_BYTES - 8)),
        (RING, RING_BYTES + 8, bad_length(RING_BYTES + 8)),
        (RING, 0, bad_length(0)),
    ];
    for (offset, length, expected) in cases {
        assert_eq!(Some(expected), RingMemory::attach(&ram(), offset, length).err());
    }
}

/// A ring whose header is wrong is a fault that names the word.
#[test]
fn refused_header_word_is_named() {
    let bad =
        |what, found: u32, expected: u32| Fault::BadHeader { what, found: found.into(), expected: expected.into() };
    let (ring_magic, signal_magic) = (u32::from_le_bytes(*b"vRNG"), u32::from_le_bytes(*b"vSIG"));
    let cases = [
        (MAGIC, 0, bad("ring magic", 0, ring_magic)),
        (VERSION, 1, bad("ring version", 1, 2)),
        (SIGNAL_MAGIC, ring_magic, bad("signal magic", ring_magic, signal_magic)),
        (SIGNAL_VERSION, 0, bad("signal version", 0, 2)),
        (SLOT_COUNT, 0, bad_slots(0)),
        (SLOT_COUNT, 7, bad_slots(7)),
        (SLOT_COUNT, 1 << 16, bad_slots(1 << 16)),
        (SLOT_COUNT, 1 << 31, bad_slots(1 << 31)),
        (SLOT_COUNT, u32::MAX, bad_slots(u32::MAX)),
    ];
    for (field, value, expected) in cases {
        let ram = ram();
        scribble(&ram, field, value);

        assert_eq!(Some(expected), RingMemory::attach(&ram, RING, RING_BYTES).err());
    }
}

fn bad_length(found: u32) -> Fault {
    Fault::BadSize { what: "ring length", found: found.into(), limit: RING_BYTES.into() }
}

fn bad_slots(found: u32) -> Fault {
    Fault::BadSize { what: "ring slots", found: found.into(), limit: 1 << 15 }
}

/// Our own side is told what it asked for wrongly instead of laying out a ring that cannot work.
#[test]
fn ring_is_formatted_only_where_it_fits() {
    let ram = ram();
    for (offset, slots) in
        [(RING, 0), (RING, 3), (RING, 1 << 16), (RING + 8, 8), (0, 8), (RING, 1 << 15), (u32::MAX, 8)]
    {
        assert!(matches!(RingMemory::format(&ram, offset, slots), Err(Error::Usage(_))), "{offset} {slots}");
    }
}

/// The word for a descriptor beyond the region reaches the consumer as it is; bounds are the region's to say.
#[test]
fn place_outside_the_region_is_refused_by_the_region_however_it_is_written() {
    let ram = ram();
    for (offset, length) in [(12288, 1), (12287, 2), (u32::MAX, 1), (u32::MAX, u32::MAX), (1, u32::MAX), (0, 12289)] {
        let expected = Fault::OutsideRegion { offset, length, limit: 12288 };
        assert_eq!(Some(expected), ram.at(offset, length as usize).err());
    }
    assert!(ram.at(12288, 0).is_ok() && ram.at(0, 12288).is_ok() && ram.at(12287, 1).is_ok());
}
