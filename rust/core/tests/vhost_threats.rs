//! Known attacks on vhost-user back ends, each as a test of its own: what is sent is in the name, the number is that of
//! `docs/threats.md`, the verdict is refused (and counted, and told) or survived, and others go on either way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::switch_guest::{Lab, eventually, frame, long_frame, mac, tcp_frame};
use crate::vhost_front::verdict::{CONTENT, MESSAGE, assert_quarantined, assert_quarantined_of, assert_refused};
use crate::vhost_front::{
    Entry, FEATURES, FrontEnd, GET_FEATURES, GET_QUEUE_NUM, GET_VRING_BASE, GUEST, HEADER, INDIRECT, KINDS, MEMORY,
    MERGEABLE, NEXT, PACKED, SET_FEATURES, SET_INFLIGHT_FD, SET_MEM_TABLE, SET_PROTOCOL_FEATURES, SET_VRING_ADDR,
    SET_VRING_BASE, SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM, SIZE, USER, WRITE, Wire, add_port, addresses,
    counted, inflight, longs, memfd, table, wait_until_alone, words,
};
use vbnet_core::fabric::VhostUserCounter;
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::{PortCounter, PortPart};

const CHECK_DEVICE_STATE: u32 = 43;

/// A frame of a front end still reaches a guest, and one of the guest the front end.
fn assert_talks(front: &mut FrontEnd, lab: &mut Lab, seed: u8) {
    let there = frame(MacAddress::BROADCAST, mac(1), 200, seed);
    front.send(&there);
    assert_eq!(there, lab.guests[0].receive());
    lab.guests[0].refill();
    let back = frame(mac(1), mac(2), 300, seed);
    lab.guests[0].send(&back);
    assert_eq!(back, front.receive());
}

// ---- messages ------------------------------------------------------------------------------------------------------

/// 8, CVE-2026-86563, where there are offsets: a region ends where its file does, and would be outside of it were its offset
/// counted twice; positions are kept where the region for chains in flight begins.
#[test]
fn offset_of_a_region_is_applied_once() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::bare(&add_port(&lab, "vm"), FEATURES);
    let half = MEMORY / 4;
    let regions = [[GUEST, half, USER, 0], [GUEST + half, MEMORY - half, USER + half, half]];
    let memory = front.memory.file.try_clone().unwrap();
    front.wire.done(SET_MEM_TABLE, &table(&regions), &[memory.as_fd(), memory.as_fd()]);
    let kept = memfd(0x2000);
    front.wire.done(SET_INFLIGHT_FD, &inflight(0x1000, 0x1000, 2, SIZE), &[kept.as_fd()]);
    front.start();
    front.post(SIZE);

    for seed in 0..3 {
        assert_talks(&mut front, &mut lab, seed);
    }

    front.stop_queue(1);
    let mut position = [0; 2];
    let second = 0x1000 + (16 + 16 * u64::from(SIZE)).next_multiple_of(64);
    rustix::io::pread(&kept, &mut position, second + 14).unwrap();
    assert_eq!(3, u16::from_le_bytes(position));
}

/// 11, QEMU work item 4403: every message there is, and some that there are not, with bodies of every length but the right
/// one, full of ones. One of them, which was not agreed on, is answered with an error instead, whatever its length.
#[test]
fn message_with_a_body_of_the_wrong_length_is_refused() {
    // What each takes, where it is one of what is agreed on here and has one length.
    let right = |request: u32| match request {
        1 | 3 | 4 | 15 | 17 | 34 | 36 => Some(0),
        2 | 8 | 10 | 11 | 12 | 13 | 14 | 16 | 18 => Some(8),
        9 | 37 | 38 => Some(40),
        31 | 32 => Some(24),
        _ => None,
    };
    let mut lab = Lab::new(2);
    let path = add_port(&lab, "vm");
    let mut refused = 0;

    for request in (0..48).chain([0xff, 0x7fff_ffff, u32::MAX]) {
        for length in [0, 1, 4, 7, 8, 9, 12, 16, 20, 23, 24, 25, 32, 39, 40, 41, 264, 4096_usize] {
            if right(request) == Some(length) || request == CHECK_DEVICE_STATE {
                continue;
            }
            let mut wire = Wire::connect(&path);
            wire.ask_u64(GET_FEATURES);
            wire.send(SET_FEATURES, 0, &longs(&[FEATURES]), &[]);
            wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[1 | 8 | 0x200 | 0x1000 | 0x2000 | 0x8000]), &[]);
            wire.send(request, 0, &vec![0xff; length], &[]);
            let _ = wire.0.shutdown(std::net::Shutdown::Write);
            wire.assert_hung_up();
            wait_until_alone(&lab, "vm");
            let kinds = [
                VhostUserCounter::RefusedMessage,
                VhostUserCounter::RefusedContent,
                VhostUserCounter::RefusedMachine,
                VhostUserCounter::RefusedPartial,
            ];
            let now = kinds.map(|kind| counted(&lab, "vm", kind)).iter().sum::<u64>();
            assert_eq!(refused + 1, now, "request {request} with {length} bytes");
            refused = now;
        }
    }

    assert_eq!(0, counted(&lab, "vm", VhostUserCounter::RefusedMachine));
    for length in [0, 1, 8, 4096] {
        assert_ne!(vec![0; 8], Wire::connect(&path).ask(CHECK_DEVICE_STATE, &vec![0xff; length]));
    }
    lab.assert_passes(0, 1);
}

/// 13, QEMU work item 3882: made longer while it runs, a queue goes on with its new size and nothing of the old one counts;
/// made shorter, what was within its size is outside of it. In-order use is agreed on, for which QEMU had a table of the old
/// size.
#[test]
fn queue_number_raised_while_the_queue_runs_counts_for_heads_at_once() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::new(&add_port(&lab, "vm"));
    for seed in 0..10 {
        front.send(&frame(MacAddress::BROADCAST, mac(1), 64, seed));
        assert_eq!(frame(MacAddress::BROADCAST, mac(1), 64, seed), lab.guests[0].receive());
    }
    front.drain();

    front.wire.done(SET_VRING_NUM, &words(&[1, 2 * u32::from(SIZE)]), &[]);
    let sent = frame(MacAddress::BROADCAST, mac(1), 64, 99);
    front.memory.write(front.tx.buffer(0), &[&[0; HEADER][..], &sent].concat());
    let far = SIZE + 50;
    let entry = (GUEST + front.tx.buffer(0), (HEADER + 64) as u32, 0, 0);
    front.tx.describe(&front.memory, far, entry);
    front.offer_tx(far);
    assert_eq!(sent, lab.guests[0].receive());
    front.drain();

    front.wire.done(SET_VRING_NUM, &words(&[1, SIZE.into()]), &[]);
    front.offer_tx(far);
    assert_eq!("index_out_of_range", lab.fault().reason);
}

/// 14, QEMU work item 3867, on this side of the wire: we ask nothing of a front end, so every message that says that it is an
/// answer is refused, whatever length it claims.
#[test]
fn answer_that_nobody_asked_for_is_refused_whatever_its_length() {
    for request in [GET_FEATURES, GET_VRING_BASE, 24, 31] {
        for length in [0, 8, 0x1000, 0x1001, 0x7fff_ffff, u32::MAX - 11, u32::MAX] {
            assert_refused(&format!("{request} of {length}"), MESSAGE, |front| {
                front.wire.raw(&words(&[request, 1 | 4, length, 0, 0]), &[]);
            });
        }
    }
}

/// 21, CVE-2019-14835, the descriptors themselves: of length 0, alone, within a chain and within a table.
#[test]
fn descriptor_of_length_0_is_quarantined_wherever_it_is() {
    let place = GUEST + 0x10_0000;
    for features in KINDS {
        let chains: [(&str, &[Entry]); 3] = [
            ("alone", &[(place, 0, 0, 0)]),
            ("first", &[(place, 0, NEXT, 1), (place, 100, 0, 0)]),
            ("last", &[(place, 100, NEXT, 1), (place, 0, 0, 0)]),
        ];
        for (name, chain) in chains {
            assert_quarantined_of(features, name, "zero_length", PortPart::Transmit, |front, _| {
                for (index, &entry) in chain.iter().enumerate() {
                    front.tx.describe(&front.memory, index as u16, entry);
                }
                front.offer_tx(0);
            });
            assert_quarantined_of(features, name, "zero_length", PortPart::Transmit, |front, _| {
                for (index, &entry) in chain.iter().enumerate() {
                    front.tx.describe_in(&front.memory, 0x9_0000, index as u16, entry);
                }
                let table = (GUEST + 0x9_0000, 16 * chain.len() as u32, INDIRECT, 0);
                front.tx.describe(&front.memory, 0, table);
                front.offer_tx(0);
            });
        }
    }
}

/// 33, DPDK 7cc4f260bf: pairs are counted to eight, and the queue behind the last of 128 pairs is none, nor is any other.
#[test]
fn queues_of_128_pairs_and_one_for_control_are_refused() {
    let lab = Lab::new(0);
    let mut wire = Wire::connect(&add_port(&lab, "vm"));
    wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[1]), &[]);
    assert_eq!(8, wire.ask_u64(GET_QUEUE_NUM));
    for index in [16, 17, 255, 256, 257] {
        assert_refused(&format!("queue {index}"), CONTENT, |front| {
            front.wire.send(SET_VRING_NUM, 0, &words(&[index, 64]), &[]);
        });
    }
}

// ---- descriptors and rings -----------------------------------------------------------------------------------------

/// 22, CVE-2016-5403: one head as often as the queue has entries, all at once, is as many frames.
#[test]
fn head_offered_again_while_it_is_under_way_is_served_as_often() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::bare(&add_port(&lab, "vm"), FEATURES);
    let sent = frame(MacAddress::BROADCAST, mac(1), 64, 5);
    front.memory.write(front.tx.buffer(7), &[&[0; HEADER][..], &sent].concat());
    let entry = (GUEST + front.tx.buffer(7), (HEADER + 64) as u32, 0, 0);
    front.tx.describe(&front.memory, 7, entry);
    let buffer = (GUEST + front.rx.buffer(3), 4096, WRITE, 0);
    front.rx.describe(&front.memory, 3, buffer);
    for _ in 0..SIZE {
        front.tx.offer(&front.memory, 7);
        front.rx.offer(&front.memory, 3);
    }

    front.start();
    front.tx.kick.ring().unwrap();
    front.drain();
    lab.barrier();

    assert_eq!(vec![sent; SIZE.into()], lab.guests[0].received());
    lab.guests[0].refill();
    for _ in 0..SIZE {
        let back = frame(mac(1), mac(2), 80, 6);
        lab.guests[0].send(&back);
        assert_eq!(back, front.receive());
    }
    assert!(lab.fabric.take_faults().is_empty());
}

/// 22, CVE-2016-5403: more than the queue has entries.
#[test]
fn more_heads_than_the_queue_has_entries_are_quarantined() {
    assert_quarantined("one too many", "tail_out_of_range", PortPart::Transmit, |front, _| {
        let index = front.tx.available_ring() + 2;
        front.memory.word(index).store(front.tx.available.wrapping_add(SIZE + 1), Ordering::Release);
        front.tx.kick.ring().unwrap();
    });
}

/// 30, CVE-2026-86847: what follows a descriptor that cannot be mapped is not followed to be let go of, be it a loop or nothing
/// that was ever written; the queue stops when it is told to, where the chain began.
#[test]
fn chain_that_cannot_be_mapped_in_its_middle_is_not_followed_further() {
    let place = GUEST + 0x10_0000;
    for features in KINDS {
        for (name, next) in [("to itself", 1), ("to the head", 0), ("to what was never written", 9)] {
            assert_quarantined_of(features, name, "outside_memory", PortPart::Transmit, |front, _| {
                front.tx.describe(&front.memory, 0, (place, 100, NEXT, 1));
                // A packed ring has no `next`; there the third is as good.
                let next = if features & PACKED == 0 { next } else { 2 };
                front.tx.describe(&front.memory, 1, (0x1000, 100, NEXT, next));
                front.tx.describe(&front.memory, 2, (place, 100, 0, 0));
                front.offer_tx(0);
            });
        }
        let lab = Lab::new(0);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features);
        front.tx.describe(&front.memory, 0, (place, 100, NEXT, 1));
        front.tx.describe(&front.memory, 1, (0x1000, 100, 0, 0));
        front.offer_tx(0);
        assert_eq!("outside_memory", lab.fault().reason);
        let start = if features & PACKED == 0 { 0 } else { 0x8000_8000 };
        assert_eq!(start, front.stop_queue(1));
    }
}

/// 36, CH PR#8401: a chain of one descriptor that holds no frame is refused, and where it lies is told, so that nothing of it is
/// lost to the driver.
#[test]
fn chain_with_only_a_head_is_refused_and_told_of_when_the_queue_stops() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features);
        assert_talks(&mut front, &mut lab, 1);
        front.drain();
        let before = front.tx.base();
        front.tx.describe(&front.memory, 1, (GUEST + front.tx.buffer(1), HEADER as u32, 0, 0));
        front.offer_tx(1);

        assert_eq!("too_short", lab.fault().reason);

        assert_eq!(before, front.stop_queue(1) & 0xffff);
    }
}

/// 40, Linux CVE-2026-74614: once it was answered that a queue has stopped, its worker touches neither its ring nor its buffers.
#[test]
fn stopped_queue_is_not_touched_by_a_worker_that_had_it() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features);
        for round in 0..50 {
            (0..8).for_each(|seed| lab.guests[0].send(&frame(mac(1), mac(2), 500, seed)));
            front.stop_queue(0);
            // Its rings, and all of its buffers; the other queue goes on.
            let (rings, buffers) = (front.rx.descriptors(), front.rx.buffer(0));
            let touched = |front: &FrontEnd| [front.memory.read(rings, 0x2000), front.memory.read(buffers, 0x4_0000)];
            let before = touched(&front);
            (0..8).for_each(|seed| lab.guests[0].send(&frame(mac(1), mac(2), 500, seed)));
            lab.settle();
            assert!(before == touched(&front), "round {round}");
            front.received();
            front.start_queue(0);
        }
        assert!(lab.fabric.take_faults().is_empty());
    }
}

/// Sends a frame from descriptor 0 without a look at what the host says is used.
fn send_blindly(front: &mut FrontEnd, sent: &[u8]) {
    let place = front.tx.buffer(0);
    front.memory.write(place, &[&[0; HEADER][..], sent].concat());
    front.tx.describe(&front.memory, 0, (GUEST + place, (HEADER + sent.len()) as u32, 0, 0));
    front.offer_tx(0);
}

/// Rings of one queue that lie over each other, in whole or in part, so that what the host writes into one is what the driver said
/// in another: the queue is served, or ends; it can be stopped, and the next front end is served.
#[test]
fn rings_that_overlap_end_their_queue_at_most() {
    for features in KINDS {
        // Descriptors, used, available: offsets within the place of the queue.
        for places in
            [[0, 0x800, 0x800], [0, 0x804, 0x800], [0, 0x1000, 0], [0, 0, 0x800], [0, 0, 0], [0, 0x3f0, 0x3f8]]
        {
            let mut lab = Lab::new(2);
            let path = add_port(&lab, "vm");
            let mut front = FrontEnd::with(&path, features);
            let rings = places.map(|offset| USER + front.tx.descriptors() + offset);
            let body = [words(&[1, 0]), longs(&[rings[0], rings[1], rings[2], 0])].concat();

            front.wire.send(SET_VRING_ADDR, 0, &body, &[]);
            (0..8).for_each(|seed| send_blindly(&mut front, &frame(MacAddress::BROADCAST, mac(1), 64, seed)));
            front.tx.kick.ring().unwrap();
            front.wire.send(GET_VRING_BASE, 0, &words(&[1, 0]), &[]);
            let answer = front.wire.0.read_exact(&mut [0; 20]).map_err(|error| error.kind());

            assert!(
                [Ok(()), Err(ErrorKind::UnexpectedEof), Err(ErrorKind::ConnectionReset)].contains(&answer),
                "{places:#x?} {answer:?}"
            );
            drop(front);
            wait_until_alone(&lab, "vm");
            lab.barrier();
            lab.guests.iter_mut().for_each(|guest| drop(guest.received()));
            lab.assert_passes(0, 1);
            let mut next = FrontEnd::with(&path, features);
            lab.guests[0].refill();
            assert_talks(&mut next, &mut lab, 1);
        }
    }
}

/// The driver writes over what the host says is used, index and entries of a split ring: the host keeps its own count.
#[test]
fn used_ring_that_the_driver_wrote_is_not_read_while_the_queue_runs() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::new(&add_port(&lab, "vm"));
    assert_talks(&mut front, &mut lab, 1);
    front.drain();
    for ring in [front.tx.used_ring(), front.rx.used_ring()] {
        front.memory.write(ring + 2, &[0xee; 2 + 8 * SIZE as usize]);
    }

    let there = frame(MacAddress::BROADCAST, mac(1), 64, 2);
    send_blindly(&mut front, &there);
    assert_eq!(there, lab.guests[0].receive());
    let index = |front: &FrontEnd, ring: u64| front.memory.word(ring + 2).load(Ordering::Acquire);
    eventually(|| index(&front, front.tx.used_ring()) == front.tx.available);
    let back = frame(mac(1), mac(2), 80, 3);
    lab.guests[0].send(&back);
    eventually(|| index(&front, front.rx.used_ring()) == front.rx.seen.wrapping_add(1));

    assert_eq!(back, front.receive());
    assert!(lab.fabric.take_faults().is_empty());
}

/// The same before the queue is taken up again, where the used index says how far it was.
#[test]
fn used_index_that_the_driver_wrote_ends_the_queue_when_it_is_taken_up_again() {
    assert_quarantined("ahead", "tail_out_of_range", PortPart::Transmit, |front, _| {
        front.memory.word(front.tx.used_ring() + 2).store(front.tx.available.wrapping_add(1), Ordering::Release);
        front.wire.done(SET_VRING_ENABLE, &words(&[1, 1]), &[]);
    });
}

/// The driver says of descriptors of a packed ring that they are used before they were available: nothing is taken, and what it
/// makes available later is.
#[test]
fn packed_descriptor_that_the_driver_says_is_used_is_not_taken() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::with(&add_port(&lab, "vm"), FEATURES | PACKED);
    let ring = front.tx.descriptors();
    for index in 0..u64::from(SIZE) {
        front.memory.write(ring + 16 * index + 8, &[0xff, 0xff, 0, 0, 0xee, 0xee, 0x80, 0x80]);
    }
    front.tx.kick.ring().unwrap();
    lab.barrier();
    assert_eq!(0, lab.guests[0].received().len());

    let sent = frame(MacAddress::BROADCAST, mac(1), 64, 2);
    send_blindly(&mut front, &sent);

    assert_eq!(sent, lab.guests[0].receive());
    // Its id, and its own flags.
    eventually(|| front.memory.read(ring + 12, 4) == [0, 0, 0x80, 0x80]);
    assert!(lab.fabric.take_faults().is_empty());
}

/// Kicks from before there is anything to kick until the queue is enabled: nothing is taken until then, and everything after.
#[test]
fn kick_before_a_queue_is_enabled_takes_nothing_and_loses_nothing() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::bare(&add_port(&lab, "vm"), features);
        let sent = frame(MacAddress::BROADCAST, mac(1), 64, 4);
        front.tx.kick.ring().unwrap();
        send_blindly(&mut front, &sent);
        let addresses = addresses(&front.tx, None);
        for (request, body) in [
            (SET_VRING_NUM, words(&[1, SIZE.into()])),
            (SET_VRING_BASE, words(&[1, front.tx.base()])),
            (SET_VRING_ADDR, addresses),
        ] {
            front.wire.done(request, &body, &[]);
            front.tx.kick.ring().unwrap();
        }
        front.wire.done(SET_VRING_KICK, &longs(&[1]), &[front.tx.kick.as_fd()]);
        front.tx.kick.ring().unwrap();
        lab.barrier();
        assert_eq!((0, None), (lab.guests[0].received().len(), front.tx.used(&front.memory)));

        front.wire.done(SET_VRING_ENABLE, &words(&[1, 1]), &[]);

        assert_eq!(sent, lab.guests[0].receive());
        front.drain();
    }
}

/// Kicks by four threads at once, with and without something behind them: each frame arrives, once and in order.
#[test]
fn kicks_by_many_at_once_bring_each_frame_once() {
    for features in KINDS {
        let mut lab = Lab::new(2);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features);
        let kick = rustix::io::dup(front.tx.kick.as_fd()).unwrap();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
                    }
                });
            }
            for seed in 0..200 {
                let sent = frame(MacAddress::BROADCAST, mac(1), 64, seed);
                front.send(&sent);
                assert_eq!(sent, lab.guests[0].receive());
                lab.guests[0].refill();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        front.drain();
        lab.barrier();
        assert_eq!(0, lab.guests[0].received().len());
        lab.guests[1].received();
        lab.assert_passes(0, 1);
    }
}

// ---- headers of offloads -------------------------------------------------------------------------------------------

const CHECKSUM: u64 = 1 << 0;
const HOST_TCP4: u64 = 1 << 11;
const SENDS: u64 = CHECKSUM | HOST_TCP4;
/// Where a frame lies that is longer than a buffer of the tests' queues.
const LONG: u64 = 0xc_0000;

/// Sends a frame behind a header of ten bytes that asks for something.
fn send_asking(front: &mut FrontEnd, header: &[u8], frame: &[u8]) {
    let bytes = [header, &[0, 0], frame].concat();
    front.memory.write(LONG, &bytes);
    front.tx.describe(&front.memory, 0, (GUEST + LONG, bytes.len() as u32, 0, 0));
    front.offer_tx(0);
    front.drain();
}

/// A header with its words: claimed header, segment, start and place of the checksum.
fn asking(flags: u8, kind: u8, words: [u16; 4]) -> Vec<u8> {
    let mut header = vec![flags, kind];
    header.extend(words.into_iter().flat_map(u16::to_le_bytes));
    header
}

/// Each header drops its frame under the reason, and a plain frame passes after it.
fn assert_dropped(reason: PortCounter, headers: &[Vec<u8>]) {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features | SENDS);
        let (_, long) = long_frame(mac(1), mac(2));
        for (count, header) in headers.iter().enumerate() {
            send_asking(&mut front, header, &long);
            assert_talks(&mut front, &mut lab, count as u8);
            lab.barrier();
            assert_eq!(count as u64 + 1, lab.count_of("vm", reason), "{header:?}");
        }
        assert!(lab.fabric.take_faults().is_empty());
    }
}

/// 41, CVE-2024-11614.
#[test]
fn checksum_that_begins_beyond_the_packet_drops_the_frame() {
    let length = 54 + crate::switch_guest::LONG_PAYLOAD_BYTES as u16;
    let places =
        [(length, 0), (length - 1, 0), (length + 1, 16), (34, length - 34 - 1), (0xffff, 0xffff), (0xffff, 16)];
    let headers: Vec<_> = places.iter().map(|&(start, place)| asking(1, 0, [0, 0, start, place])).collect();
    assert_dropped(PortCounter::TransmitDropOffloadChecksum, &headers);
}

/// 42, DPDK 285e6b8b18: while it is read, the place of the checksum changes without end between one within the packet and one
/// beyond it. Each frame is dropped for the one or completed for the other; nothing else ever arrives.
#[test]
fn checksum_start_changed_between_reads_completes_or_drops_the_frame() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features | SENDS);
        let open = tcp_frame(mac(1), mac(2), 1000);
        let closed = {
            send_asking(&mut front, &asking(1, 0, [0, 0, 34, 16]), &open);
            lab.guests[0].receive()
        };
        assert_ne!(open, closed);
        let mut arrived = 0;
        let is_over = AtomicBool::new(false);
        let changing = [0xffff, 34];

        thread::scope(|scope| {
            // SAFETY: the memory stays mapped until the scope is over, and everybody goes through an atomic or a raw copy.
            let word = unsafe { &*std::ptr::from_ref(front.memory.word(LONG + 6)) };
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    changing.iter().for_each(|&value| word.store(value, Ordering::Relaxed));
                }
            });
            for _ in 0..500 {
                front.offer_tx(0);
                front.drain();
                lab.barrier();
                for found in lab.guests[0].received() {
                    assert_eq!(closed, found);
                    arrived += 1;
                }
                lab.guests[0].refill();
            }
            is_over.store(true, Ordering::Relaxed);
        });

        assert_eq!(500, arrived + lab.count_of("vm", PortCounter::TransmitDropOffloadChecksum));
        assert!(lab.fabric.take_faults().is_empty());
    }
}

/// 43, CVE-2026-100236: segments shorter than their headers, headers said to be longer than that, and headers that are spread
/// over several descriptors: each segment is a packet, and nothing is counted below zero.
#[test]
fn segments_shorter_than_their_headers_are_cut_all_the_same() {
    let (payload, segment) = (400, 20);
    for features in KINDS {
        for (claimed, first) in [(54, 0), (0, 12), (400, 25), (454, 30)] {
            let mut lab = Lab::new(1);
            let mut front = FrontEnd::with(&add_port(&lab, "vm"), features | SENDS);
            let long = tcp_frame(mac(1), mac(2), payload);
            let bytes = [&asking(1, 1, [claimed, segment, 34, 16])[..], &[0, 0], &long].concat();
            front.memory.write(LONG, &bytes);
            let length = bytes.len() as u32;
            if first == 0 {
                front.tx.describe(&front.memory, 0, (GUEST + LONG, length, 0, 0));
            } else {
                front.tx.describe(&front.memory, 0, (GUEST + LONG, first, NEXT, 1));
                front.tx.describe(&front.memory, 1, (GUEST + LONG + u64::from(first), length - first, 0, 0));
            }
            front.offer_tx(0);
            front.drain();

            let segments: Vec<_> = (0..payload / usize::from(segment)).map(|_| lab.guests[0].receive()).collect();
            assert!(segments.iter().all(|found| found.len() == 54 + usize::from(segment)));
            assert_eq!(long[54..], segments.iter().flat_map(|found| found[54..].to_vec()).collect::<Vec<_>>());
        }
    }
}

/// 43, CVE-2026-100236: headers that are said to be longer than the whole frame.
#[test]
fn header_length_beyond_the_frame_drops_it() {
    let length = 54 + crate::switch_guest::LONG_PAYLOAD_BYTES as u16;
    let headers = [length + 1, 0xffff].map(|claimed| asking(1, 1, [claimed, 1400, 34, 16]));
    assert_dropped(PortCounter::TransmitDropOffloadSize, &headers);
}

/// 44, CVE-2023-6693: a header with a hash report has another length; neither it nor receive-side scaling can be agreed on, so
/// that there are two lengths, and each is told by what was agreed on.
#[test]
fn hash_report_cannot_be_agreed_on_and_headers_have_the_length_that_was() {
    for bit in [57, 60] {
        assert_refused(&format!("feature {bit}"), CONTENT, |front| {
            front.wire.send(SET_FEATURES, 0, &longs(&[FEATURES | 1 << bit]), &[]);
        });
    }
    for (features, header) in [(FEATURES, 12), (0, 10), (MERGEABLE, 12)] {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::bare(&add_port(&lab, "vm"), features);
        front.start();
        front.post(2);
        let (there, back) = (frame(MacAddress::BROADCAST, mac(1), 100, 1), frame(mac(1), mac(2), 90, 2));
        let place = front.tx.buffer(0);
        front.memory.write(place, &[&vec![0; header][..], &there].concat());
        front.tx.describe(&front.memory, 0, (GUEST + place, header as u32 + 100, 0, 0));
        front.offer_tx(0);
        assert_eq!(there, lab.guests[0].receive());
        lab.guests[0].send(&back);
        assert_eq!(back, front.receive_whole()[header..]);
    }
}

/// 45, villain n0003, n0027, n0098: kinds of segmentation that there are not.
#[test]
fn gso_type_that_there_is_not_drops_the_frame() {
    let headers = [2, 3, 6, 7, 0x7f, 0x80, 0x85, 0xff].map(|kind| asking(1, kind, [54, 1400, 34, 16]));
    assert_dropped(PortCounter::TransmitDropOffloadKind, &headers);
}

/// 45, villain n0003, n0027, n0098: segments of no bytes, and of so few that one frame would become thousands.
#[test]
fn gso_size_of_0_drops_the_frame() {
    let headers = [0, 1, 2].map(|segment| asking(1, 1, [54, segment, 34, 16]));
    assert_dropped(PortCounter::TransmitDropOffloadSize, &headers);
}

/// 47, GHSA-q7p4-pxjx-6h42: nothing is looked up by a VLAN's number, so that a tag of any number, also one that there is not,
/// passes as it is.
#[test]
fn vlan_tag_of_any_number_passes_unchanged() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::new(&add_port(&lab, "vm"));
    for tag in [0_u16, 1, 0x0fff, 0x1000, 0xffff] {
        let mut tagged = frame(MacAddress::BROADCAST, mac(1), 100, 3);
        tagged[12..14].copy_from_slice(&[0x81, 0]);
        tagged[14..16].copy_from_slice(&tag.to_be_bytes());
        front.send(&tagged);
        let mut found = None;
        eventually(|| {
            found = lab.guests[0].receive_nowait();
            found.is_some()
        });
        assert_eq!(Some(tagged), found, "{tag:#x}");
    }
}
