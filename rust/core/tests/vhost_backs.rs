//! Ports that are front ends: before other host nodes, before back ends that come and go, and before those that lie.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::switch_guest::{Lab, SWITCH, eventually, frame, long_frame, mac};
use crate::vhost_back::{BackEnd, RX, TX, listen, reply};
use crate::vhost_front::{
    GET_FEATURES, GET_PROTOCOL_FEATURES, HEADER, PROTOCOL, SET_FEATURES, SET_MEM_TABLE, SET_VRING_ENABLE, VERSION_1,
    Wire, add_port, counted, longs, socket_path,
};
use vbnet_core::fabric::{VenetParams, VhostUserCounter};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::PortCounter;

fn join(lab: &Lab, path: &Path) {
    lab.fabric.port_add_front_end(SWITCH, "out", (path, false), VenetParams::default()).unwrap();
}

fn is_served(lab: &Lab, port: &str) -> bool {
    lab.fabric.ports().unwrap().iter().find(|found| found.name == port).unwrap().is_served == Some(true)
}

/// Two host nodes of one guest each, whose switches are one.
fn pair() -> (Lab, Lab) {
    let (there, here) = (Lab::new(1), Lab::new(1));
    join(&here, &add_port(&there, "in"));
    eventually(|| is_served(&here, "out") && is_served(&there, "in"));
    (there, here)
}

#[test]
fn switches_of_two_host_nodes_are_one() {
    let (mut there, mut here) = pair();

    for length in [14, 59, 60, 63, 64, 65, 128, 1000, 1514, 1518] {
        let sent = frame(MacAddress::BROADCAST, mac(1), length, 3);
        here.guests[0].send(&sent);
        assert_eq!(sent, there.guests[0].receive(), "{length}");
        let back = frame(mac(1), mac(2), length, 5);
        there.guests[0].send(&back);
        assert_eq!(back, here.guests[0].receive(), "{length}");
    }
    // Counted once the receivers know.
    for counter in [PortCounter::ReceiveFrames, PortCounter::TransmitFrames] {
        eventually(|| here.count_of("out", counter) == 10);
    }
}

#[test]
fn thousands_of_frames_arrive_once_and_in_order() {
    let (mut there, mut here) = pair();
    let mut numbers = Vec::new();

    for number in 0..5000_u32 {
        let mut sent = frame(MacAddress::BROADCAST, mac(1), 80, 0);
        sent[14..18].copy_from_slice(&number.to_le_bytes());
        here.guests[0].send(&sent);
        // Never more under way than the receiver has buffers for.
        if number % 32 == 31 || number == 4999 {
            eventually(|| {
                for frame in there.guests[0].received() {
                    numbers.push(u32::from_le_bytes(frame[14..18].try_into().unwrap()));
                }
                numbers.len() as u32 == number + 1
            });
            there.guests[0].refill();
        }
    }

    assert!(numbers.iter().copied().eq(0..5000));
}

#[test]
fn frames_longer_than_the_port_carries_are_dropped_and_counted() {
    let (there, mut here) = pair();

    here.guests[0].send(&frame(MacAddress::BROADCAST, mac(1), 1519, 1));
    here.settle();

    assert_eq!(0, there.count_of("in", PortCounter::TransmitFrames));
    assert_eq!(1, here.count(0, PortCounter::TransmitDropOversize));
}

#[test]
fn requests_are_done_before_a_back_end_sees_the_frame() {
    let path = socket_path();
    let listener = listen(&path);
    let lab = Lab::new(0);
    join(&lab, &path);
    let mut back = BackEnd::accept(&listener);
    let mut front =
        crate::vhost_front::FrontEnd::with(&add_port(&lab, "vm"), crate::vhost_front::FEATURES | 1 | 1 << 11);
    eventually(|| is_served(&lab, "out"));

    let (header, packet) = long_frame(MacAddress::BROADCAST, mac(1));
    let place = front.tx.buffer(0);
    front.memory.write(place, &[&header[..], &[0; 2], &packet].concat());
    let entry = (crate::vhost_front::GUEST + place, (HEADER + packet.len()) as u32, 0, 0);
    front.tx.describe(&front.memory, 0, entry);
    front.offer_tx(0);

    let mut segments = Vec::new();
    eventually(|| {
        segments.extend(back.frame());
        segments.len() == 3
    });
    assert!(segments.iter().all(|segment| segment.len() <= 1454));
}

#[test]
fn back_end_that_goes_and_comes_again_is_joined_again() {
    let (mut there, mut here) = pair();
    let port = there.fabric.ports().unwrap().into_iter().find(|port| port.name == "in").unwrap();
    let path = port.device.clone().unwrap();

    for round in 0..3 {
        let id = there.fabric.ports().unwrap().into_iter().find(|port| port.name == "in").unwrap().id;
        there.fabric.port_remove(id).unwrap();
        eventually(|| !is_served(&here, "out"));
        here.guests[0].send(&frame(MacAddress::BROADCAST, mac(1), 70, round));
        here.settle();
        there.fabric.port_add_vhost_user(SWITCH, "in", Path::new(&path), VenetParams::default()).unwrap();
        eventually(|| is_served(&here, "out") && is_served(&there, "in"));

        there.guests[0].refill();
        let sent = frame(MacAddress::BROADCAST, mac(1), 200, round);
        here.guests[0].send(&sent);
        assert_eq!(sent, there.guests[0].receive());
    }

    assert_eq!(3, here.count_of("out", PortCounter::ReceiveDropLinkDown));
    assert_eq!(4, counted(&here, "out", VhostUserCounter::Connections));
}

#[test]
fn back_end_may_come_to_a_front_end_that_listens() {
    let (mut there, mut here) = (Lab::new(1), Lab::new(1));
    let path = socket_path();
    here.fabric.port_add_front_end(SWITCH, "out", (&path, true), VenetParams::default()).unwrap();
    there.fabric.port_join_vhost_user(SWITCH, "in", &path, VenetParams::default()).unwrap();
    eventually(|| is_served(&here, "out") && is_served(&there, "in"));

    let sent = frame(MacAddress::BROADCAST, mac(1), 300, 1);
    there.guests[0].send(&sent);

    assert_eq!(sent, here.guests[0].receive());
}

/// Frames that come while the port sleeps wake it, and those to a back end that sleeps kick it.
#[test]
fn sleeping_sides_wake_each_other() {
    let path = socket_path();
    let listener = listen(&path);
    let mut lab = Lab::new(1);
    join(&lab, &path);
    let mut back = BackEnd::accept(&listener);
    eventually(|| is_served(&lab, "out"));

    for seed in 0..20 {
        let parks = lab.count_of("out", PortCounter::Parks);
        let sent = frame(MacAddress::BROADCAST, mac(9), 90, seed);
        back.give([0; HEADER], &sent);
        assert_eq!(sent, lab.guests[0].receive());
        eventually(|| lab.count_of("out", PortCounter::Parks) > parks);
    }
}

// ---- lies ----------------------------------------------------------------------------------------------------------

/// What a back end says instead of an honest answer to one request.
type Lie = fn(u32) -> Vec<u8>;

/// Whatever a back end answers, the port goes on to the next one, and says and counts why.
#[test]
fn answers_that_cannot_be_end_the_connection_and_nothing_else() {
    let lies: [(&str, u32, Lie); 9] = [
        ("answer to another request", GET_FEATURES, |number| reply(number + 1, &longs(&[VERSION_1]))),
        ("answer that is no answer", GET_FEATURES, |number| {
            [[number, 1, 8].map(u32::to_le_bytes).concat(), longs(&[VERSION_1])].concat()
        }),
        ("answer of another version", GET_FEATURES, |number| {
            [[number, 4 | 2, 8].map(u32::to_le_bytes).concat(), longs(&[VERSION_1])].concat()
        }),
        ("answer without a body", GET_FEATURES, |number| reply(number, &[])),
        ("answer that claims 4 GiB", GET_PROTOCOL_FEATURES, |number| {
            [number, 5, u32::MAX].map(u32::to_le_bytes).concat()
        }),
        ("features before virtio 1.0", GET_FEATURES, |number| reply(number, &longs(&[PROTOCOL]))),
        ("memory that it does not want", SET_MEM_TABLE, |number| reply(number, &longs(&[1]))),
        ("features that it does not want", SET_FEATURES, |number| reply(number, &longs(&[u64::MAX]))),
        ("queue that it does not start", SET_VRING_ENABLE, |number| reply(number, &longs(&[22]))),
    ];
    for (name, request, lie) in lies {
        let path = socket_path();
        let listener = listen(&path);
        let mut lab = Lab::new(1);
        join(&lab, &path);
        let mut back = BackEnd::meet(&listener);
        loop {
            let asked = back.next().expect(name);
            if asked.number == request {
                back.say(&lie(request));
                break;
            }
            back.answer(&asked);
        }
        while back.next().is_some() {}
        let told = lab.fault();
        assert!(told.reason.starts_with("refused_"), "{name}: {told:?}");
        assert!(told.text.contains("back end of port out"), "{name}: {told:?}");

        assert_next_back_end_is_served(&mut lab, &listener);
    }
}

fn assert_next_back_end_is_served(lab: &mut Lab, listener: &std::os::unix::net::UnixListener) {
    let mut back = BackEnd::accept(listener);
    eventually(|| is_served(lab, "out"));
    let sent = frame(MacAddress::BROADCAST, mac(1), 99, 7);
    lab.guests[0].send(&sent);
    let mut found = None;
    eventually(|| {
        found = back.frame();
        found.is_some()
    });
    assert_eq!(Some(sent), found);
}

#[test]
fn back_end_that_answers_nothing_is_left_after_the_deadline() {
    let path = socket_path();
    let listener = listen(&path);
    let mut lab = Lab::new(1);
    join(&lab, &path);
    let mut silent = BackEnd::meet(&listener);
    while silent.next().is_some() {}

    let told = lab.fault();

    assert_eq!("refused_message", told.reason);
    assert!(told.text.contains("did not answer within 2 s"), "{told:?}");
    drop(silent);
    assert_next_back_end_is_served(&mut lab, &listener);
}

/// Both wait to be asked: a port that is connected and no front end tells so.
#[test]
fn back_end_before_a_back_end_is_told_of() {
    let (here, there) = (Lab::new(0), Lab::new(0));
    here.fabric.port_join_vhost_user(SWITCH, "in", &add_port(&there, "in"), VenetParams::default()).unwrap();

    for lab in [&here, &there] {
        let told = lab.fault();
        assert_eq!("silent", told.reason);
        assert!(told.text.contains("has to be its front end"), "{told:?}");
    }
}

#[test]
fn back_end_that_says_what_nobody_asked_for_is_left() {
    let path = socket_path();
    let listener = listen(&path);
    let mut lab = Lab::new(1);
    join(&lab, &path);
    let mut back = BackEnd::accept(&listener);
    eventually(|| is_served(&lab, "out"));

    back.stream.write_all(&reply(GET_FEATURES, &longs(&[0]))).unwrap();

    assert_eq!("refused_message", lab.fault().reason);
    Wire::of(back.stream.try_clone().unwrap()).assert_hung_up();
    drop(back);
    assert_next_back_end_is_served(&mut lab, &listener);
}

#[test]
fn back_end_that_hangs_up_anywhere_is_waited_for() {
    let path = socket_path();
    let listener = listen(&path);
    let mut lab = Lab::new(1);
    join(&lab, &path);

    for count in 0..18 {
        let mut back = BackEnd::meet(&listener);
        for _ in 0..count {
            let Some(request) = back.next() else { break };
            back.answer(&request);
        }
    }

    assert_next_back_end_is_served(&mut lab, &listener);
}

/// What a back end does to its queues.
type Harm = fn(&mut BackEnd);

/// A used ring that says what cannot be ends its queue until the next back end; others do not notice.
#[test]
fn used_entries_that_cannot_be_quarantine_the_queue_until_the_next_back_end() {
    let harms: [(&str, &str, Harm); 9] = [
        ("number beyond the queue", "index_out_of_range", |back| back.complete(RX, 5000, 100)),
        ("number of a buffer that it gave back", "index_out_of_range", |back| {
            back.complete_all(RX, &[(3, 100), (3, 100)]);
        }),
        ("index ahead of what was posted", "index_out_of_range", |back| back.show(RX, 1025)),
        ("index that goes back", "index_out_of_range", |back| back.show(RX, u16::MAX)),
        ("more bytes than the buffer has", "too_long", |back| back.complete(RX, 1, 70_000)),
        ("fewer bytes than a header", "too_short", |back| back.complete(RX, 1, 11)),
        ("header without a whole frame", "too_short", |back| back.complete(RX, 1, 25)),
        ("request that was not agreed on", "unknown_flags", |back| {
            back.give([1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &frame(MacAddress::BROADCAST, mac(1), 100, 1));
        }),
        ("index ahead of what was sent", "index_out_of_range", |back| back.show(TX, 2000)),
    ];
    for (name, reason, harm) in harms {
        let path = socket_path();
        let listener = listen(&path);
        let mut lab = Lab::new(2);
        join(&lab, &path);
        let mut back = BackEnd::accept(&listener);
        eventually(|| is_served(&lab, "out"));

        harm(&mut back);
        // What was sent is asked for again when no other buffer is left.
        let mut told = None;
        eventually(|| {
            lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(1), 60, 1));
            told = lab.fabric.take_faults().pop();
            told.is_some()
        });
        assert_eq!(reason, told.unwrap().reason, "{name}");
        lab.assert_passes(0, 1);
        drop(back);
        eventually(|| !is_served(&lab, "out"));
        assert_next_back_end_is_served(&mut lab, &listener);
    }
}

/// What a back end does that knows no rules.
#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    Complete(usize, u32, u32),
    Show(usize, u16),
    /// Bytes anywhere in the memory that it was given.
    Write(u64, Vec<u8>),
    /// A frame of a guest's comes by.
    Send,
}

fn step() -> impl Strategy<Value = Step> {
    let queue = || 0..2_usize;
    let number = prop_oneof![8 => 0..1024_u32, 1 => Just(1024), 1 => any::<u32>()];
    let length = prop_oneof![6 => 26..1530_u32, 2 => 0..27_u32, 1 => any::<u32>()];
    prop_oneof![
        2 => queue().prop_map(Step::Take),
        6 => (queue(), number, length).prop_map(|(queue, number, length)| Step::Complete(queue, number, length)),
        1 => (queue(), any::<u16>()).prop_map(|(queue, index)| Step::Show(queue, index)),
        2 => (0..0x20_0000_u64, vec(any::<u8>(), 1..64)).prop_map(|(place, bytes)| Step::Write(place, bytes)),
        4 => Just(Step::Send),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever it writes, guests keep their switch, and the next back end is served.
    #[test]
    fn prop_back_end_that_writes_anything_harms_nobody_else(steps in vec(step(), 1..60)) {
        let path = socket_path();
        let listener = listen(&path);
        let mut lab = Lab::new(2);
        join(&lab, &path);
        let mut back = BackEnd::accept(&listener);
        eventually(|| is_served(&lab, "out"));

        for step in steps {
            match step {
                Step::Take(queue) => drop(back.take(queue)),
                Step::Complete(queue, number, length) => back.complete(queue, number, length),
                Step::Show(queue, index) => back.show(queue, index),
                Step::Write(place, bytes) => back.scribble(place, &bytes),
                Step::Send => lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(1), 60, 1)),
            }
        }
        drop(back);
        eventually(|| !is_served(&lab, "out"));

        lab.settle();
        lab.assert_passes(0, 1);
        assert_next_back_end_is_served(&mut lab, &listener);
    }
}
