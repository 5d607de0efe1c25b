//! Whatever a front end says, in whatever order, and whatever lies in its queues: others are served on.
//!
//! Messages are made of what the protocol has, of values at which something changes, and of noise; rings are filled with such
//! values while they run. `PROPTEST_CASES=20000 cargo test -p vbnet-core --test vhost_fuzz` (or `make fuzz`) looks longer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod switch_guest;
mod vhost_front;

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use switch_guest::{Lab, frame, mac};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::shm::doorbell::Doorbell;
use vhost_front::{
    EVENT_INDEX, FEATURES, GUEST, MEMORY, Memory, PACKED, SET_FEATURES, SET_INFLIGHT_FD, SET_MEM_TABLE,
    SET_PROTOCOL_FEATURES, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_KICK,
    SET_VRING_NUM, USER, Wire, add_port, inflight, longs, memfd, table, wait_until_alone, words,
};

/// One thing that a front end does.
#[derive(Clone, Debug)]
enum Step {
    /// Anything, with any of its descriptors.
    Say(u32, u32, Vec<u8>, Vec<usize>),
    /// Bytes that are no message.
    Noise(Vec<u8>),
    Agree(u64),
    Share(u64),
    /// A queue set up whole: index, size, base, where its rings are.
    Queue(u32, u32, u32, u64),
    Track(u16, u16, u64, u64),
    /// Words written into the memory, wherever queues may be, then a kick.
    Write(Vec<(u64, u64)>),
}

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
        2 => select(vec![FEATURES, FEATURES | PACKED, FEATURES | EVENT_INDEX, FEATURES | PACKED | EVENT_INDEX, 0]).prop_map(Step::Agree),
        2 => prop_oneof![3 => Just(MEMORY), 1 => 1..MEMORY + 2].prop_map(Step::Share),
        6 => (0..5_u32, select(vec![1_u32, 2, 4, 64, 256, 3]), prop_oneof![Just(0x8000_u32), Just(0), any::<u32>()], select(vec![0_u64, 0x2000, 0x4000, 0x1_0000])).prop_map(|(index, size, base, at)| Step::Queue(index, size, base, at)),
        2 => (0..5_u16, select(vec![0_u16, 1, 64, 256]), select(vec![0_u64, 64, 0x1000, 0x2_0000]), number()).prop_map(|(queues, size, bytes, offset)| Step::Track(queues, size, bytes, offset)),
        8 => vec((0..0xd000_u64, ring_word()), 1..40).prop_map(Step::Write),
    ]
}

struct Speaker {
    wire: Wire,
    memory: Memory,
    kick: Doorbell,
    call: Doorbell,
    region: File,
}

impl Speaker {
    fn act(&self, step: &Step) {
        let files = [self.memory.file.as_fd(), self.kick.as_fd(), self.region.as_fd()];
        let send = |request, body: &[u8], files: &[BorrowedFd<'_>]| self.wire.send(request, 0, body, files);
        match step {
            Step::Say(request, flags, body, with) => {
                let with: Vec<BorrowedFd<'_>> = with.iter().map(|&file| files[file]).collect();
                self.wire.send(*request, *flags, body, &with);
            }
            Step::Noise(bytes) => self.wire.raw(bytes, &[]),
            Step::Agree(features) => {
                send(SET_PROTOCOL_FEATURES, &longs(&[1 | 8 | 0x200 | 0x1000 | 0x2000 | 0x8000]), &[]);
                send(SET_FEATURES, &longs(&[*features]), &[]);
            }
            Step::Share(bytes) => send(SET_MEM_TABLE, &table(&[[GUEST, *bytes, USER, 0]]), &files[..1]),
            Step::Queue(index, size, base, at) => {
                send(SET_VRING_NUM, &words(&[*index, *size]), &[]);
                send(SET_VRING_BASE, &words(&[*index, *base]), &[]);
                let rings = longs(&[USER + at, USER + at + 0x1800, USER + at + 0x1000, 0]);
                send(SET_VRING_ADDR, &[words(&[*index, 0]), rings].concat(), &[]);
                send(SET_VRING_CALL, &longs(&[u64::from(*index)]), &[self.call.as_fd()]);
                send(SET_VRING_KICK, &longs(&[u64::from(*index)]), &[self.kick.as_fd()]);
                send(SET_VRING_ENABLE, &words(&[*index, 1]), &[]);
            }
            Step::Track(queues, size, bytes, offset) => {
                send(SET_INFLIGHT_FD, &inflight(*bytes, *offset, *queues, *size), &files[2..]);
            }
            Step::Write(entries) => {
                for &(at, word) in entries {
                    self.memory.write(at & !7, &word.to_le_bytes());
                }
                let _ = self.kick.ring();
            }
        }
    }
}

/// A front end that says and writes anything hurts nobody but itself.
#[test]
fn prop_front_end_that_says_anything_hurts_nobody_else() {
    let lab = RefCell::new(Lab::new(2));
    let path = add_port(&lab.borrow(), "vm");
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() });
    let start = [Step::Agree(FEATURES), Step::Share(MEMORY)];
    let steps = (any::<bool>(), vec(step(), 1..30));

    let outcome = runner.run(&steps, |(is_set_up, steps)| {
        let mut lab = lab.borrow_mut();
        let speaker = Speaker {
            wire: Wire::connect(&path),
            memory: Memory::new(),
            kick: Doorbell::create().unwrap(),
            call: Doorbell::create().unwrap(),
            region: memfd(0x2_0000),
        };
        let start = start.iter().filter(|_| is_set_up);
        start.chain(&steps).for_each(|step| speaker.act(step));
        lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(9), 200, 1));
        lab.guests[0].drain();
        let _ = speaker.wire.0.shutdown(Shutdown::Write);
        let _ = (&speaker.wire.0).read_to_end(&mut Vec::new());
        wait_until_alone(&lab, "vm");
        lab.barrier();
        let _ = lab.fabric.take_faults();
        let _ = lab.guests[1].received();
        lab.guests[1].refill();
        lab.assert_passes(0, 1);
        let _ = lab.guests[1].received();
        lab.guests[1].refill();
        Ok(())
    });

    outcome.unwrap();
}
