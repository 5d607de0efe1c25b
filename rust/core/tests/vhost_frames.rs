//! Frames through vhost-user ports: how they lie in a driver's buffers, and what else is on the switch.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::Ordering;

use crate::switch_guest::{DEADLINE, Lab, Shape, eventually, frame, long_frame, mac};
use crate::vhost_front::{
    EVENT_INDEX, FEATURES, FrontEnd, GUEST, HEADER, INDIRECT, KINDS, MERGEABLE, NEXT, PACKED, Queue, SET_VRING_ENABLE,
    SIZE, WRITE, add_port, start_queue, words,
};
use vbnet_core::fabric::{Param, VenetParams};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::net::grant::{FLAG_REQUEST, Grant};
use vbnet_core::net::offload::Features;
use vbnet_core::port::PortCounter;
use vbnet_core::shm::ring::Descriptor;

/// Two front ends on the switch; the first has told where it is.
fn pair(lab: &Lab, features: u64) -> (FrontEnd, FrontEnd) {
    let (a, b) = (add_port(lab, "a"), add_port(lab, "b"));
    (FrontEnd::with(&a, features), FrontEnd::with(&b, features))
}

#[test]
fn frames_of_every_length_pass_between_two_front_ends() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (mut a, mut b) = pair(&lab, features);

        for length in [14, 15, 52, 59, 60, 63, 64, 65, 128, 1000, 1514, 1518] {
            let there = frame(mac(2), mac(1), length, 3);
            a.send(&there);
            assert_eq!(there, b.receive(), "{length}");
            let back = frame(mac(1), mac(2), length, 5);
            b.send(&back);
            assert_eq!(back, a.receive(), "{length}");
        }
    }
}

#[test]
fn frames_pass_between_a_front_end_and_a_venet_guest() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features);

        for length in [14, 64, 700, 1514] {
            let there = frame(MacAddress::BROADCAST, mac(1), length, 7);
            front.send(&there);
            assert_eq!(there, lab.guests[0].receive());
            let back = frame(mac(1), mac(2), length, 9);
            lab.guests[0].send(&back);
            assert_eq!(back, front.receive());
        }
    }
}

#[test]
fn thousands_of_frames_arrive_once_and_in_order() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (mut a, mut b) = pair(&lab, features);
        let mut received = Vec::new();

        for number in 0..5000_u32 {
            let mut sent = frame(MacAddress::BROADCAST, mac(1), 80, 0);
            sent[14..18].copy_from_slice(&number.to_le_bytes());
            a.send(&sent);
            // Never more under way than the receiver has buffers for.
            if number % 32 == 31 {
                eventually(|| {
                    received.extend(b.received());
                    received.len() as u32 == number + 1
                });
            }
        }
        eventually(|| {
            received.extend(b.received());
            received.len() == 5000
        });

        let numbers = received.iter().map(|frame| u32::from_le_bytes(frame[14..18].try_into().unwrap()));
        assert!(numbers.eq(0..5000));
    }
}

/// As a driver may count on that agreed on `VIRTIO_F_IN_ORDER`: also those of frames that nobody gets.
#[test]
fn chains_come_back_in_the_order_in_which_they_were_offered() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features);
        lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(2), 64, 1));
        front.receive();
        let heads: Vec<u16> = (0..60).map(|number| number * 7 % 60).collect();

        for &head in &heads {
            let (to, length) = match head % 4 {
                0 => (mac(2), 64),
                1 => (MacAddress::BROADCAST, 300),
                // To where it came from, and longer than anything may be: dropped.
                2 => (mac(1), 64),
                _ => (mac(2), 1900),
            };
            let bytes = [&[0; HEADER][..], &frame(to, mac(1), length, 1)].concat();
            let place = front.tx.buffer(head);
            front.memory.write(place, &bytes);
            front.tx.describe(&front.memory, head, (GUEST + place, bytes.len() as u32, 0, 0));
            front.offer_tx(head);
        }
        let mut back = Vec::new();
        eventually(|| {
            back.extend(front.tx.used(&front.memory).map(|(head, _)| head));
            back.len() == heads.len()
        });

        assert_eq!(heads, back);
        let mut filled = Vec::new();
        for number in 0..2 * SIZE {
            lab.guests[0].send(&frame(mac(1), mac(2), 60 + usize::from(number), 1));
            eventually(|| {
                filled.extend(front.rx.used(&front.memory).inspect(|&(head, _)| front.rx.offer(&front.memory, head)));
                filled.len() > usize::from(number)
            });
        }
        assert!(filled.iter().map(|&(head, _)| head).eq((1..=2 * SIZE).map(|number| number % SIZE)), "{filled:?}");
    }
}

/// Header and frame apart, a frame in many pieces, an indirect table: each arrives as it was.
#[test]
fn frame_in_several_buffers_arrives_whole() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (mut a, mut b) = pair(&lab, features);
        let sent = frame(MacAddress::BROADCAST, mac(1), 900, 11);
        let bytes = [&[0; HEADER][..], &sent].concat();
        for cuts in [vec![12], vec![5], vec![12, 13, 26, 100], (1..60).collect::<Vec<_>>()] {
            for is_indirect in [false, true] {
                let mut start = 0;
                let ends: Vec<usize> = cuts.iter().copied().chain([bytes.len()]).collect();
                let table = 0x9_0000;
                for (index, &end) in ends.iter().enumerate() {
                    let place = a.tx.buffer(index as u16) + 7;
                    a.memory.write(place, &bytes[start..end]);
                    let next = if index + 1 < ends.len() { NEXT } else { 0 };
                    let entry = (GUEST + place, (end - start) as u32, next, index as u16 + 1);
                    if is_indirect {
                        a.tx.describe_in(&a.memory, table, index as u16, entry);
                    } else {
                        a.tx.describe(&a.memory, index as u16, entry);
                    }
                    start = end;
                }
                if is_indirect {
                    let entry = (GUEST + table, 16 * ends.len() as u32, INDIRECT, 0);
                    a.tx.describe(&a.memory, 0, entry);
                }
                a.offer_tx(0);
                assert_eq!(sent, b.receive(), "{cuts:?} {is_indirect}");
                a.drain();
            }
        }
    }
}

/// A frame that no buffer holds goes into as many as it takes, and the first header says into how many.
#[test]
fn long_frame_is_spread_over_mergeable_buffers() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (a_path, b_path) = (add_port(&lab, "a"), add_port(&lab, "b"));
        let (mut a, mut b) = (FrontEnd::with(&a_path, features), FrontEnd::bare(&b_path, features));
        b.start();
        for (index, length) in [100, 700, 64, 1000].into_iter().enumerate() {
            b.post_one(index as u16, length);
        }
        let sent = frame(MacAddress::BROADCAST, mac(1), 1500, 13);

        a.send(&sent);
        let mut parts = Vec::new();
        eventually(|| {
            parts.extend(b.rx.used(&b.memory));
            parts.len() == 4
        });

        let lengths: Vec<u32> = parts.iter().map(|&(_, written)| written).collect();
        assert_eq!(vec![100, 700, 64, 648], lengths);
        let whole: Vec<u8> =
            parts.iter().flat_map(|&(head, written)| b.memory.read(b.rx.buffer(head), written as usize)).collect();
        assert_eq!([4, 0], whole[10..HEADER]);
        assert_eq!(sent, whole[HEADER..]);
    }
}

/// While too few buffers are posted the frame is dropped whole, and what was posted stays.
#[test]
fn frame_without_enough_buffers_is_dropped_and_counted() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (a_path, b_path) = (add_port(&lab, "a"), add_port(&lab, "b"));
        let (mut a, mut b) = (FrontEnd::with(&a_path, features), FrontEnd::bare(&b_path, features));
        b.start();
        b.post_one(0, 500);
        let (long, short) = (frame(mac(2), mac(1), 1000, 1), frame(mac(2), mac(1), 400, 2));

        a.send(&long);
        a.send(&short);

        assert_eq!(short, b.receive());
        assert_eq!(1, lab.count_of("b", PortCounter::ReceiveDropNoRoom));
    }
}

/// For longer than its port is polled without a frame: what waits is no reason to sleep.
#[test]
fn front_end_that_waits_for_a_full_receiver_is_served_on() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features);
        lab.guests[0].send(&frame(mac(1), mac(2), 64, 0));
        lab.settle();
        for _ in 0..10 {
            for index in 0..Shape::SMALL.slots {
                front.send(&frame(mac(2), mac(1), 64, index as u8));
            }
            front.drain();
            lab.guests[0].refill();
        }

        for index in 0..Shape::SMALL.slots + 8 {
            front.send(&frame(mac(2), mac(1), 64, index as u8));
        }
        front.drain();
        lab.barrier();

        assert_eq!(8, lab.count(0, PortCounter::ReceiveDropNoRoom));
        assert!(lab.count(0, PortCounter::ReceiveHolds) != 0);
    }
}

/// CVE-2022-2132 and others: without mergeable buffers, a buffer that is too small is left alone.
#[test]
fn buffer_that_is_too_small_stays_posted() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (a_path, b_path) = (add_port(&lab, "a"), add_port(&lab, "b"));
        let (mut a, mut b) = (FrontEnd::with(&a_path, features), FrontEnd::bare(&b_path, features & !MERGEABLE));
        b.start();
        b.post_one(0, 60);
        b.post_one(1, 2000);

        a.send(&frame(mac(2), mac(1), 64, 1));
        a.drain();
        lab.barrier();
        a.send(&frame(mac(2), mac(1), 40, 2));
        let received = b.receive();

        assert_eq!(frame(mac(2), mac(1), 40, 2), received);
        assert_eq!(1, lab.count_of("b", PortCounter::ReceiveDropBufferTooSmall));
    }
}

/// A driver of the time before virtio 1, without mergeable buffers: two bytes less in front of each frame.
#[test]
fn short_header_is_spoken_with_who_agreed_on_it() {
    let lab = Lab::new(0);
    let (a_path, b_path) = (add_port(&lab, "a"), add_port(&lab, "b"));
    let (mut a, mut b) = (FrontEnd::bare(&a_path, 0), FrontEnd::new(&b_path));
    a.start();
    a.post(4);
    let sent = frame(MacAddress::BROADCAST, mac(1), 100, 1);
    let place = a.tx.buffer(0);
    a.memory.write(place, &[&[0; 10][..], &sent].concat());
    a.tx.describe(&a.memory, 0, (GUEST + place, 110, 0, 0));

    a.offer_tx(0);
    let there = b.receive();
    b.send(&frame(mac(1), mac(2), 80, 2));
    let back = a.receive_whole();

    assert_eq!(sent, there);
    assert_eq!([&[0; 10][..], &frame(mac(1), mac(2), 80, 2)].concat(), back);
}

#[test]
fn frame_longer_than_the_mtu_is_dropped_and_counted() {
    let lab = Lab::new(0);
    let (mut a, mut b) = pair(&lab, FEATURES);
    let id = lab.fabric.ports().unwrap()[0].id;

    a.send(&frame(mac(2), mac(1), 1519, 1));
    a.drain();
    lab.fabric.port_set(id, Param::Mtu(3000)).unwrap();
    a.send(&frame(mac(2), mac(1), 1519, 2));
    a.drain();
    a.send(&frame(mac(2), mac(1), 1518, 3));

    assert_eq!(frame(mac(2), mac(1), 1518, 3), b.receive());
    assert_eq!(1, lab.count_of("a", PortCounter::TransmitDropOversize));
    assert_eq!(1, lab.count_of("b", PortCounter::ReceiveDropOversize));
}

/// A driver that sleeps is called; a port that is idle sleeps, and wakes by a kick.
#[test]
fn both_sides_may_sleep() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (mut a, mut b) = pair(&lab, features);
        b.rx.call.quiet();

        for number in 0..20 {
            eventually(|| lab.count_of("a", PortCounter::Parks) > number);
            a.send(&frame(mac(2), mac(1), 64, number as u8));
            assert!(b.rx.call.wait(Some(DEADLINE)).unwrap());
            assert_eq!(1, b.received().len());
        }
        assert!(lab.count_of("a", PortCounter::Wakeups) != 0);
    }
}

/// With an event index the driver is called when its index is reached, and kicks when ours is.
#[test]
fn event_index_says_who_wants_to_hear_of_what() {
    let lab = Lab::new(0);
    let (a_path, b_path) = (add_port(&lab, "a"), add_port(&lab, "b"));
    let mut a = FrontEnd::new(&a_path);
    let mut b = FrontEnd::bare(&b_path, FEATURES | EVENT_INDEX);
    b.start();
    b.post(SIZE);
    lab.barrier();
    b.rx.call.quiet();
    // Not before five frames are there.
    let used_event = b.rx.available_ring() + 4 + 2 * u64::from(SIZE);
    b.memory.word(used_event).store(4, Ordering::Relaxed);

    for number in 0..4 {
        a.send(&frame(mac(2), mac(1), 64, number));
        a.drain();
    }
    lab.barrier();
    let early = b.rx.call.wait(Some(std::time::Duration::ZERO)).unwrap();
    a.send(&frame(mac(2), mac(1), 64, 4));

    assert!(!early);
    assert!(b.rx.call.wait(Some(DEADLINE)).unwrap());
    assert_eq!(5, b.received().len());
    // The port sleeps: it says from which frame on it wants a kick.
    let avail_event = b.tx.used_ring() + 4 + 8 * u64::from(SIZE);
    b.memory.word(avail_event).store(999, Ordering::Relaxed);
    let sent = frame(mac(1), mac(2), 64, 7);
    b.memory.write(b.tx.buffer(0), &[&[0; HEADER][..], &sent].concat());
    b.tx.describe(&b.memory, 0, (GUEST + b.tx.buffer(0), (HEADER + 64) as u32, 0, 0));
    b.tx.offer(&b.memory, 0);
    b.tx.kick.ring().unwrap();
    assert_eq!(sent, a.receive());
    eventually(|| b.memory.word(avail_event).load(Ordering::Relaxed) == 1);
}

/// As above, of a packed queue: a place in the ring instead of an index, in one word with what is wanted.
#[test]
fn place_in_a_packed_ring_says_who_wants_to_hear_of_what() {
    let lab = Lab::new(0);
    let (a_path, b_path) = (add_port(&lab, "a"), add_port(&lab, "b"));
    let mut a = FrontEnd::new(&a_path);
    let mut b = FrontEnd::bare(&b_path, FEATURES | EVENT_INDEX | PACKED);
    b.start();
    b.post(SIZE);
    lab.barrier();
    b.rx.call.quiet();
    // Not before five frames are there.
    b.memory.word(b.rx.available_ring()).store(4 | 0x8000, Ordering::Relaxed);
    b.memory.word(b.rx.available_ring() + 2).store(2, Ordering::Relaxed);

    for number in 0..4 {
        a.send(&frame(mac(2), mac(1), 64, number));
        a.drain();
    }
    lab.barrier();
    let early = b.rx.call.wait(Some(std::time::Duration::ZERO)).unwrap();
    a.send(&frame(mac(2), mac(1), 64, 4));

    assert!(!early);
    assert!(b.rx.call.wait(Some(DEADLINE)).unwrap());
    assert_eq!(5, b.received().len());
    // The port sleeps: it says from which descriptor on it wants a kick, here the first of its first round.
    let wish = b.tx.used_ring();
    eventually(|| {
        (b.memory.word(wish).load(Ordering::Relaxed), b.memory.word(wish + 2).load(Ordering::Relaxed)) == (0x8000, 2)
    });
    let sent = frame(mac(1), mac(2), 64, 7);
    b.memory.write(b.tx.buffer(0), &[&[0; HEADER][..], &sent].concat());
    b.tx.describe(&b.memory, 0, (GUEST + b.tx.buffer(0), (HEADER + 64) as u32, 0, 0));
    b.tx.offer(&b.memory, 0);
    b.tx.kick.ring().unwrap();
    assert_eq!(sent, a.receive());
    eventually(|| b.memory.word(wish).load(Ordering::Relaxed) == 0x8001);
}

/// Frames leave by any queue; those that come in go to the same queue for the same stations.
#[test]
fn second_pair_of_queues_works_like_the_first() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (a_path, b_path) = (add_port(&lab, "a"), add_port(&lab, "b"));
        let (mut a, mut b) = (FrontEnd::with(&a_path, features), FrontEnd::bare(&b_path, features | 1 << 22));
        let (mut second_rx, mut second_tx) = (Queue::new(2, features), Queue::new(3, features));
        b.start();
        b.post(SIZE);
        for index in 0..SIZE {
            let address = GUEST + second_rx.buffer(index);
            second_rx.describe(&b.memory, index, (address, 4096, WRITE, 0));
            second_rx.offer(&b.memory, index);
        }
        start_queue(&mut b.wire, &second_rx, features);
        start_queue(&mut b.wire, &second_tx, features);
        let sent = frame(MacAddress::BROADCAST, mac(2), 100, 1);
        b.memory.write(second_tx.buffer(0), &[&[0; HEADER][..], &sent].concat());
        second_tx.describe(&b.memory, 0, (GUEST + second_tx.buffer(0), 112, 0, 0));

        second_tx.offer(&b.memory, 0);
        second_tx.kick_if_wanted(&b.memory);
        let there = a.receive();
        let (mut first, mut second) = (0, 0);
        for number in 0..48 {
            a.send(&frame(mac(2), mac(10 + number), 64, 0));
        }
        eventually(|| {
            first += b.received().len();
            second += std::iter::from_fn(|| second_rx.used(&b.memory)).count();
            first + second == 48
        });

        assert_eq!(sent, there);
        assert!(first != 0 && second != 0, "{first} and {second}");
        // With the second pair disabled everything comes by the first.
        b.wire.done(SET_VRING_ENABLE, &words(&[2, 0]), &[]);
        (0..16).for_each(|number| a.send(&frame(mac(2), mac(10 + number), 64, 0)));
        eventually(|| {
            first += b.received().len();
            first + second == 64
        });
    }
}

/// Whatever was agreed on, a flood reaches a front end and a guest alike.
#[test]
fn flooded_frame_reaches_every_kind_of_port() {
    let mut lab = Lab::new(2);
    let mut front = FrontEnd::new(&add_port(&lab, "vm"));
    let sent = frame(MacAddress::BROADCAST, mac(1), 333, 4);

    lab.guests[0].send(&sent);

    assert_eq!(sent, lab.guests[1].receive());
    assert_eq!(sent, front.receive());
    assert_eq!(1, lab.count_of("vm", PortCounter::ReceiveFrames));
    assert_eq!(333, lab.count_of("vm", PortCounter::ReceiveBytes));
}

/// A port nobody has connected to takes nothing and says so.
#[test]
fn frame_for_a_port_without_a_front_end_is_dropped_and_counted() {
    let mut lab = Lab::new(1);
    let path = add_port(&lab, "vm");

    lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(1), 64, 4));
    lab.settle();

    assert_eq!(1, lab.count_of("vm", PortCounter::ReceiveDropLinkDown));
    let served = || lab.fabric.ports().unwrap().iter().find(|port| port.name == "vm").unwrap().is_served;
    assert_eq!(Some(false), served());
    let _front = FrontEnd::new(&path);
    assert_eq!(Some(true), served());
}

const CHECKSUM: u64 = 1 << 0;
const GUEST_CHECKSUM: u64 = 1 << 1;
const GUEST_TCP4: u64 = 1 << 7;
const HOST_TCP4: u64 = 1 << 11;
const SENDS: u64 = CHECKSUM | HOST_TCP4;
const TAKES: u64 = GUEST_CHECKSUM | GUEST_TCP4;

/// Sends a frame with a header of ten bytes that asks for something, in one buffer or with the header in one of its own.
fn send_asking(front: &mut FrontEnd, (header, frame): (&[u8], &[u8]), is_apart: bool) {
    // Far from every other buffer, for it is longer than those.
    let place = 0xc_0000;
    let bytes = [header, &[0, 0], frame].concat();
    front.memory.write(place, &bytes);
    let length = bytes.len() as u32;
    if is_apart {
        front.tx.describe(&front.memory, 0, (GUEST + place, HEADER as u32, NEXT, 1));
        front.tx.describe(&front.memory, 1, (GUEST + place + HEADER as u64, length - HEADER as u32, 0, 0));
    } else {
        front.tx.describe(&front.memory, 0, (GUEST + place, length, 0, 0));
    }
    front.offer_tx(0);
    front.drain();
}

#[test]
fn long_frame_of_a_front_end_reaches_a_venet_guest_in_segments() {
    for features in KINDS {
        for is_apart in [false, true] {
            let mut lab = Lab::new(1);
            let mut front = FrontEnd::with(&add_port(&lab, "vm"), features | SENDS);
            let (header, long) = long_frame(mac(1), mac(2));

            send_asking(&mut front, (&header, &long), is_apart);

            let segments: Vec<_> = (0..3).map(|_| lab.guests[0].receive()).collect();
            assert_eq!([1454, 1454, 1254], [0, 1, 2].map(|index: usize| segments[index].len()));
            assert_eq!(long[54..], segments.iter().flat_map(|frame| frame[54..].to_vec()).collect::<Vec<_>>());
            lab.settle();
            assert_eq!(1, lab.count_of("vm", PortCounter::TransmitOffloads));
            assert_eq!(1, lab.count(0, PortCounter::SegmentedFrames));
        }
    }
}

/// A receiver that agreed gets the request as it was, and the frame over as many buffers as it needs.
#[test]
fn long_frame_stays_whole_for_a_front_end_that_takes_it() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (a, b) = (add_port(&lab, "a"), add_port(&lab, "b"));
        let mut a = FrontEnd::with(&a, features | SENDS);
        let mut b = FrontEnd::with(&b, features | TAKES);
        let (header, long) = long_frame(mac(2), mac(1));

        send_asking(&mut a, (&header, &long), false);

        // 12 + 4054 bytes fit into one buffer of 4096.
        let whole = b.receive_whole();
        assert_eq!(header, whole[..10]);
        assert_eq!([1, 0], whole[10..12]);
        assert_eq!(long, whole[12..]);
        lab.barrier();
        assert_eq!(1, lab.count_of("b", PortCounter::ReceiveOffloads));
        assert_eq!(vec!["checksum", "tso4"], lab.fabric.ports().unwrap()[1].offloads.names().collect::<Vec<_>>());
    }
}

/// Both were granted it: the request is the same on either side, only the header in front is as each has it.
#[test]
fn long_frame_stays_whole_between_a_front_end_and_a_venet_guest() {
    for features in KINDS {
        let shape = Shape { slots: 64, buffer_bytes: 8192 };
        let grant = Grant { takes: Features::ALL, gives: Features::ALL, ..Grant::default() };
        let mut lab = Lab::with(1, shape, VenetParams { grant, ..VenetParams::default() });
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features | SENDS | TAKES);

        let (header, long) = long_frame(mac(1), mac(2));
        send_asking(&mut front, (&header, &long), true);
        assert_eq!([&header[..], &[0; 6], &long].concat(), lab.guests[0].receive());

        let (header, long) = long_frame(mac(2), mac(1));
        let whole = [&header[..], &[0; 6], &long].concat();
        let at = shape.tx_buffer(0);
        lab.guests[0].write(at, &whole);
        assert!(lab.guests[0].tx.stage(Descriptor { offset: at, length: whole.len() as u32, flags: FLAG_REQUEST }));
        lab.guests[0].publish();
        let received = front.receive_whole();
        assert_eq!((&header[..], &long[..]), (&received[..10], &received[12..]));
    }
}

#[test]
fn long_frame_that_stays_whole_is_spread_over_small_buffers() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (a, b) = (add_port(&lab, "a"), add_port(&lab, "b"));
        let mut a = FrontEnd::with(&a, features | SENDS);
        let mut b = FrontEnd::bare(&b, features | TAKES);
        b.start();
        (0..SIZE).for_each(|index| b.post_one(index, 1024));
        let (header, long) = long_frame(mac(2), mac(1));

        send_asking(&mut a, (&header, &long), true);

        let parts: Vec<_> = (0..4).map(|_| b.receive_whole()).collect();
        assert_eq!([&header[..], &[4, 0], &long].concat(), parts.concat());
    }
}

#[test]
fn long_frame_is_cut_for_a_front_end_that_takes_checksums_alone() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (a, b) = (add_port(&lab, "a"), add_port(&lab, "b"));
        let mut a = FrontEnd::with(&a, features | SENDS);
        let mut b = FrontEnd::with(&b, features | GUEST_CHECKSUM);
        let (header, long) = long_frame(mac(2), mac(1));
        let open = [&[1, 0, 0, 0, 0, 0][..], &header[6..]].concat();

        send_asking(&mut a, (&header, &long), false);
        let segments: Vec<_> = (0..3).map(|_| b.receive()).collect();
        send_asking(&mut a, (&open, &long[..1514]), false);
        let checksum = b.receive_whole();

        assert_eq!(long[54..], segments.iter().flat_map(|frame| frame[54..].to_vec()).collect::<Vec<_>>());
        assert_eq!(open, checksum[..10]);
        assert_eq!(long[..1514], checksum[12..]);
    }
}

/// What was agreed on and cannot be done is dropped under its reason; the queue goes on.
#[test]
fn request_that_cannot_be_done_is_dropped_and_counted() {
    for features in KINDS {
        let lab = Lab::new(0);
        let (a, b) = (add_port(&lab, "a"), add_port(&lab, "b"));
        let mut a = FrontEnd::with(&a, features | SENDS);
        let mut b = FrontEnd::with(&b, features);
        let (good, long) = long_frame(mac(2), mac(1));
        let changed = |changes: &[(usize, u8)]| {
            let mut header = good.clone();
            changes.iter().for_each(|&(at, byte)| header[at] = byte);
            header
        };
        let cases = [
            (changed(&[(0, 5)]), PortCounter::TransmitDropOffloadFlag),
            (changed(&[(1, 3)]), PortCounter::TransmitDropOffloadKind),
            (changed(&[(7, 0xff)]), PortCounter::TransmitDropOffloadChecksum),
            (changed(&[(4, 0), (5, 0)]), PortCounter::TransmitDropOffloadSize),
            (changed(&[(4, 1), (5, 0)]), PortCounter::TransmitDropOffloadSize),
            (changed(&[(1, 4)]), PortCounter::TransmitDropOffloadHeaders),
        ];
        let sent = frame(mac(2), mac(1), 100, 1);
        let mut expected = std::collections::HashMap::new();
        for (header, reason) in cases {
            send_asking(&mut a, (&header, &long), false);
            a.send(&sent);

            assert_eq!(sent, b.receive());
            lab.barrier();
            *expected.entry(reason as usize).or_insert(0) += 1;
            assert_eq!(expected[&(reason as usize)], lab.count_of("a", reason), "{reason:?}");
        }
        assert!(lab.fabric.take_faults().is_empty());
    }
}

/// Segments longer than the MTU are no way around it.
#[test]
fn segments_longer_than_the_mtu_are_dropped() {
    let lab = Lab::new(0);
    let (a, b) = (add_port(&lab, "a"), add_port(&lab, "b"));
    let mut a = FrontEnd::with(&a, FEATURES | SENDS);
    let _b = FrontEnd::with(&b, FEATURES | TAKES);
    let (mut header, long) = long_frame(mac(2), mac(1));
    header[4..6].copy_from_slice(&1500_u16.to_le_bytes());

    send_asking(&mut a, (&header, &long), false);

    lab.barrier();
    assert_eq!(1, lab.count_of("a", PortCounter::TransmitDropOversize));
}

/// A kind of segmentation that this front end did not agree on is a breach, whatever others may do.
#[test]
fn segmentation_that_was_not_agreed_on_ends_the_queue() {
    for features in KINDS {
        let lab = Lab::new(0);
        let mut a = FrontEnd::with(&add_port(&lab, "a"), features | CHECKSUM);
        let (header, long) = long_frame(mac(2), mac(1));
        let bytes = [&header[..], &[0, 0], &long].concat();
        a.memory.write(0xc_0000, &bytes);
        a.tx.describe(&a.memory, 0, (GUEST + 0xc_0000, bytes.len() as u32, 0, 0));
        a.offer_tx(0);

        assert_eq!("unknown_flags", lab.fault().reason);
    }
}
