//! Whatever a front end says, in whatever order, and whatever lies in its queues: others are served on.
//!
//! Messages are made of what the protocol has, of values at which something changes, and of noise; rings are filled with such
//! values while they run. `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour vhost_fuzz` (or `make fuzz`) looks longer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;
use std::fs;

use crate::vhost_front::{EVENT_INDEX, FEATURES, GUEST, LOG_ALL, MEMORY, PACKED, USER, longs, words};
use crate::vhost_speaker::{Speech, Stage, Step};
use arbitrary::{Arbitrary, Unstructured};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;

/// Numbers at which something changes.
fn number() -> impl Strategy<Value = u64> {
    let edges = [0, 1, 2, 7, 8, 15, 16, 63, 64, 65, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_0000, u64::MAX, u64::MAX - 7];
    let places = [USER, USER + 0x1000, USER + 0x2000, GUEST, GUEST + MEMORY - 8, GUEST + MEMORY, USER + MEMORY - 16];
    prop_oneof![select(edges.to_vec()), select(places.to_vec()), any::<u64>(), 0..300_u64]
}

/// Two halves of a descriptor, and other words of rings.
fn ring_word() -> impl Strategy<Value = u64> {
    let half = (select(vec![0_u32, 1, 11, 12, 26, 64, 1500, 4096, 0x1_0000, u32::MAX]), any::<[u8; 4]>()).prop_map(
        |(length, words)| {
            let few = |word: u8, other: u8| u64::from(word % 8) | u64::from(other & 0x80) << (word % 9);
            u64::from(length) | few(words[0], words[1]) << 32 | few(words[2], words[3]) << 48
        },
    );
    prop_oneof![3 => half, 2 => (0..MEMORY + 64).prop_map(|at| GUEST + at), 1 => number()]
}

fn step() -> impl Strategy<Value = Step> {
    let body = prop_oneof![
        vec(number(), 0..6).prop_map(|numbers| longs(&numbers)),
        vec(number(), 0..10)
            .prop_map(|numbers| words(&numbers.iter().map(|&number| number as u32).collect::<Vec<_>>())),
        vec(any::<u8>(), 0..80),
    ];
    let files = || vec(0..3_usize, 0..3);
    prop_oneof![
        4 => (0..50_u32, select(vec![0_u32, 8, 4, 12]), body, files()).prop_map(|(request, flags, body, files)| Step::Say(request, flags, body, files)),
        1 => vec(any::<u8>(), 1..40).prop_map(Step::Noise),
        2 => select(vec![FEATURES, FEATURES | PACKED, FEATURES | EVENT_INDEX, FEATURES | PACKED | EVENT_INDEX, FEATURES | LOG_ALL, FEATURES | PACKED | LOG_ALL, 0]).prop_map(Step::Agree),
        2 => prop_oneof![3 => Just(MEMORY), 1 => 1..MEMORY + 2].prop_map(Step::Share),
        6 => (0..5_u32, select(vec![1_u32, 2, 4, 64, 256, 3]), prop_oneof![Just(0x8000_u32), Just(0), any::<u32>()], select(vec![0_u64, 0x2000, 0x4000, 0x1_0000])).prop_map(|(index, size, base, at)| Step::Queue(index, size, base, at)),
        2 => (0..5_u16, select(vec![0_u16, 1, 64, 256]), select(vec![0_u64, 64, 0x1000, 0x2_0000]), number()).prop_map(|(queues, size, bytes, offset)| Step::Track(queues, size, bytes, offset)),
        2 => (prop_oneof![Just((GUEST + MEMORY) / 4096 / 8), number()], prop_oneof![Just(0), number()], 0..3_u32, number()).prop_map(|(bytes, offset, index, address)| Step::Log(bytes, offset, index, address)),
        8 => vec((0..0xd000_u64, ring_word()), 1..40).prop_map(Step::Write),
    ]
}

/// A front end that says and writes anything hurts nobody but itself.
#[test]
fn prop_front_end_that_says_anything_hurts_nobody_else() {
    let stage = RefCell::new(Stage::new());
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() });
    let speech = (any::<bool>(), vec(step(), 1..30)).prop_map(|(is_set_up, steps)| Speech { is_set_up, steps });

    let outcome = runner.run(&speech, |speech| {
        stage.borrow_mut().hear(&speech);
        Ok(())
    });

    outcome.unwrap();
}

/// Bytes that a search guided by coverage once found new ways with.
#[test]
fn front_ends_of_earlier_searches_hurt_nobody_else() {
    let mut stage = Stage::new();
    for seed in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/vhost_messages")).unwrap() {
        let bytes = fs::read(seed.unwrap().path()).unwrap();
        stage.hear(&Speech::arbitrary_take_rest(Unstructured::new(&bytes)).unwrap());
    }
}
