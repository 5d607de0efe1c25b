//! What a hostile or broken guest puts into its rings: its queue ends, counted by reason; its neighbours go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::switch_guest::{Guest, Lab, SWITCH, Shape, frame, mac};
use proptest::prelude::*;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::write;
use vbnet_core::error::{Error, Fault};
use vbnet_core::fabric::{VenetParams, VenetQueues};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::{PortCounter, PortPart};
use vbnet_core::shm::ring::Descriptor;

const TAIL: u32 = 0x80;
const PUBLISHED_NEWEST: u32 = 0x98;
const SLOTS: u32 = 0x400;

/// A descriptor that breaks a rule, and the reason under which that is counted.
type Garbage = (&'static str, Descriptor);

fn descriptor(offset: u32, length: u32, flags: u8) -> Descriptor {
    Descriptor { offset, length, flags }
}

/// Garbage that is wrong for frames and for buffers alike.
fn places() -> Vec<Garbage> {
    let shape = Shape::SMALL;
    let size = 1 << 20;
    let (tx, rx) = (shape.tx_ring(), shape.rx_ring());
    vec![
        ("overlaps_control", descriptor(0, 100, 0)),
        ("overlaps_control", descriptor(4095, 100, 0)),
        ("overlaps_control", descriptor(tx.0, 100, 0)),
        ("overlaps_control", descriptor(tx.0 - 64, 100, 0)),
        ("overlaps_control", descriptor(tx.0 + tx.1 - 1, 100, 0)),
        ("overlaps_control", descriptor(rx.0 + 7, 100, 0)),
        ("overlaps_control", descriptor(rx.0 + rx.1 - 1, 100, 0)),
        ("outside_region", descriptor(size - 99, 100, 0)),
        ("outside_region", descriptor(size, 100, 0)),
        ("outside_region", descriptor(u32::MAX, 100, 0)),
        ("outside_region", descriptor(u32::MAX - 50, 100, 0)),
        ("zero_length", descriptor(shape.tx_buffer(0), 0, 0)),
        ("unknown_flags", descriptor(shape.tx_buffer(0), 100, 1)),
        ("unknown_flags", descriptor(shape.tx_buffer(0), 100, 0x80)),
    ]
}

/// A lab whose guest 2 has exactly 1 MiB, so that its end can be named.
fn lab() -> Lab {
    let mut lab = Lab::new(2);
    let mut hostile = Guest::new(Shape::SMALL);
    hostile.ram = vbnet_core::shm::region::Ram::create("hostile", 1 << 20).unwrap();
    let ring = |at: u32| vbnet_core::shm::ring::RingMemory::format(&hostile.ram, at, hostile.shape.slots).unwrap();
    hostile.tx = vbnet_core::shm::ring::Producer::new(ring(hostile.shape.tx_ring().0));
    hostile.rx = vbnet_core::shm::ring::Producer::new(ring(hostile.shape.rx_ring().0));
    let id = lab.fabric.port_add_venet(SWITCH, "g2", hostile.queues(), VenetParams::default()).unwrap();
    lab.ids.push(id);
    lab.guests.push(hostile);
    lab
}

fn fault_counter(reason: &str) -> PortCounter {
    let index = Fault::REASONS.iter().position(|&known| known == reason).unwrap();
    let counters = [
        PortCounter::FaultTailOutOfRange,
        PortCounter::FaultHeadOutOfRange,
        PortCounter::FaultOutsideRegion,
        PortCounter::FaultOverlapsControl,
        PortCounter::FaultZeroLength,
        PortCounter::FaultTooLong,
        PortCounter::FaultTooShort,
        PortCounter::FaultUnknownFlags,
        PortCounter::FaultForeignCompletion,
        PortCounter::FaultBadHeader,
        PortCounter::FaultBadSize,
        PortCounter::FaultNotSealed,
        PortCounter::FaultNotMemfd,
        PortCounter::FaultDoorbellBlocked,
    ];
    counters[index]
}

/// The event, the counter and the listing all name the reason, once; neighbours talk to each other.
fn assert_quarantined(lab: &mut Lab, part: PortPart, reason: &str) {
    let event = lab.fault();
    assert_eq!(
        (lab.ids[2], "g2", part, reason),
        (event.port, &*event.name, event.part, event.reason),
        "{}",
        event.text
    );
    assert_eq!(1, lab.count(2, fault_counter(reason)));
    let info = lab.fabric.ports().unwrap().into_iter().find(|port| port.id == lab.ids[2]).unwrap();
    let (broken, other) = match part {
        PortPart::Transmit => (info.transmit_fault, info.receive_fault),
        _ => (info.receive_fault, info.transmit_fault),
    };
    assert_eq!((Some(reason), None), (broken, other));
    lab.assert_passes(0, 1);
    lab.assert_passes(1, 0);
    assert!(lab.fabric.take_faults().is_empty());
}

#[test]
fn frame_that_breaks_a_rule_ends_the_queue_wherever_it_stands_in_a_batch() {
    let extra = [
        ("too_short", descriptor(Shape::SMALL.tx_buffer(0), 13, 0)),
        ("too_long", descriptor(Shape::SMALL.tx_buffer(0), 65535 + 19, 0)),
        ("too_long", descriptor(Shape::SMALL.tx_buffer(0), (1 << 24) - 1, 0)),
    ];
    for (reason, garbage) in places().into_iter().chain(extra) {
        for position in [0, 1, 31, 32, 40] {
            let mut lab = lab();
            let sent: Vec<_> = (0..41).map(|index| frame(mac(9), mac(2), 100, index)).collect();
            for (index, frame) in sent.iter().enumerate() {
                let offset = Shape::SMALL.tx_buffer(index as u32);
                lab.guests[2].write(offset, frame);
                let good = Descriptor::new(offset, frame.len() as u32);
                assert!(lab.guests[2].tx.stage(if index == position { garbage } else { good }));
            }

            lab.guests[2].publish();

            assert_quarantined(&mut lab, PortPart::Transmit, reason);
            // What stood before it was good, and what stands behind it is never looked at.
            assert_eq!(position as u64, lab.count(2, PortCounter::TransmitFrames), "{reason} at {position}");
            assert_eq!(position as u32, lab.guests[2].tx.completed().unwrap());
        }
    }
}

/// What stands beside the index is looked at instead of the slot, and checked like it.
#[test]
fn frame_named_beside_the_index_keeps_the_rules_of_slots() {
    let short = ("too_short", descriptor(Shape::SMALL.tx_buffer(0), 13, 0));
    for (reason, garbage) in places().into_iter().chain([short]) {
        if garbage.flags != 0 || garbage.length == 0 {
            continue;
        }
        let mut lab = lab();
        let good = frame(mac(9), mac(2), 100, 0);
        let offset = Shape::SMALL.tx_buffer(0);
        lab.guests[2].write(offset, &good);
        let tx = Shape::SMALL.tx_ring().0;
        lab.guests[2].write(tx + SLOTS, &Descriptor::new(offset, 100).to_word().to_ne_bytes());
        lab.guests[2].write(tx + PUBLISHED_NEWEST, &garbage.to_word().to_ne_bytes());

        lab.guests[2].write(tx + TAIL, &1u32.to_ne_bytes());
        lab.guests[2].tx_kick.ring().unwrap();

        assert_quarantined(&mut lab, PortPart::Transmit, reason);
        assert_eq!(0, lab.count(2, PortCounter::TransmitFrames), "{reason}");
    }
}

#[test]
fn buffer_that_breaks_a_rule_ends_the_queue_and_is_never_written() {
    let extra = [
        ("too_short", descriptor(Shape::SMALL.rx_buffer(0), 63, 0)),
        ("too_short", descriptor(Shape::SMALL.rx_buffer(0), 1, 0)),
    ];
    for (reason, garbage) in places().into_iter().chain(extra) {
        for position in [0, 1, 33] {
            let mut lab = lab();
            let hostile = &mut lab.guests[2];
            for index in 0..64 {
                let good = Descriptor::new(hostile.shape.rx_buffer(index), 2048);
                assert!(hostile.rx.stage(if index == position { garbage } else { good }));
            }
            hostile.rx.publish();
            let before = hostile.read(0, hostile.shape.rx_ring().0);

            for index in 0..40 {
                lab.guests[0].send(&frame(mac(9), mac(1), 64, index));
            }
            lab.settle_except(2);

            let hostile = &mut lab.guests[2];
            assert_eq!(position, hostile.rx.completed().unwrap(), "{reason}");
            assert_eq!(before[..4096], hostile.read(0, 4096));
            assert_quarantined(&mut lab, PortPart::Receive, reason);
            // Neighbours went on, and every frame for the broken queue is accounted for.
            assert_eq!(40 - u64::from(position) + 2, lab.count(2, PortCounter::ReceiveDropQuarantined));
        }
    }
}

#[test]
fn index_that_runs_ahead_or_back_ends_the_queue() {
    for (part, ring, tail) in [
        (PortPart::Transmit, Shape::SMALL.tx_ring(), 65),
        (PortPart::Transmit, Shape::SMALL.tx_ring(), u32::MAX),
        (PortPart::Transmit, Shape::SMALL.tx_ring(), 1 << 31),
        (PortPart::Receive, Shape::SMALL.rx_ring(), 65),
        (PortPart::Receive, Shape::SMALL.rx_ring(), u32::MAX),
    ] {
        let mut lab = lab();
        lab.guests[2].write(ring.0 + TAIL, &tail.to_ne_bytes());
        lab.guests[2].tx_kick.ring().unwrap();

        lab.guests[0].send(&frame(mac(9), mac(1), 64, 0));

        assert_quarantined(&mut lab, part, "tail_out_of_range");
    }
}

#[test]
fn stale_slots_after_the_index_wraps_are_not_taken_again() {
    let mut lab = lab();
    for index in 0..1000u32 {
        lab.guests[2].send(&frame(mac(1), mac(2), 64, index as u8));
    }
    lab.guests[2].drain();
    lab.barrier();

    assert_eq!(1000, lab.count(2, PortCounter::TransmitFrames));
    // The whole ring is full of old descriptors; only the index says that none is new.
    lab.guests[2].tx_kick.ring().unwrap();
    lab.barrier();
    assert_eq!(1000, lab.count(2, PortCounter::TransmitFrames));
}

#[test]
fn descriptor_rewritten_all_the_time_hurts_nobody_else() {
    let mut lab = lab();
    let ram = lab.guests[2].ram.clone();
    let ring = Shape::SMALL.tx_ring().0;
    let is_over = std::sync::Arc::new(AtomicU32::new(0));
    let seen = is_over.clone();
    let scribbler = std::thread::spawn(move || {
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        while seen.load(Ordering::Relaxed) == 0 {
            for slot in 0..64 {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                let place = ram.at(ring + SLOTS + slot * 8, 8).unwrap().cast::<u64>();
                // SAFETY: a slot of this very ring, scribbled over as a hostile guest would.
                unsafe { place.write_volatile(word) };
            }
        }
    });
    lab.guests[2].write(ring + TAIL, &64u32.to_ne_bytes());
    lab.guests[2].tx_kick.ring().unwrap();

    let event = lab.fault();

    assert_eq!((lab.ids[2], PortPart::Transmit), (event.port, event.part));
    lab.assert_passes(0, 1);
    is_over.store(1, Ordering::Relaxed);
    scribbler.join().unwrap();
    lab.fabric.port_remove(lab.ids[2]).unwrap();
}

#[test]
fn ring_header_that_changes_after_attaching_is_never_looked_at_again() {
    let mut lab = lab();
    let shape = lab.guests[2].shape;
    lab.guests[2].post(8);
    for ring in [shape.tx_ring(), shape.rx_ring()] {
        lab.guests[2].write(ring.0, &[0xff; 12]);
    }
    lab.guests[2].write(0, &[0xff; 4096]);

    lab.assert_passes(2, 0);
    lab.assert_passes(0, 2);
}

#[test]
fn ring_in_an_impossible_place_is_refused() {
    let lab = Lab::new(1);
    let good = || Guest::new(Shape::SMALL).queues();
    let (tx, rx) = (Shape::SMALL.tx_ring(), Shape::SMALL.rx_ring());
    let refused: Vec<(&str, VenetQueues)> = vec![
        ("overlaps_control", VenetQueues { tx: rx, ..good() }),
        ("overlaps_control", VenetQueues { tx: (0, tx.1), ..good() }),
        ("bad_size", VenetQueues { tx: (tx.0 + 1, tx.1), ..good() }),
        ("bad_size", VenetQueues { tx: (tx.0, tx.1 + 8), ..good() }),
        ("bad_size", VenetQueues { rx: (rx.0, 0), ..good() }),
        ("outside_region", VenetQueues { rx: (rx.0, u32::MAX), ..good() }),
        ("outside_region", VenetQueues { rx: (0xffff_ff80, rx.1), ..good() }),
        ("bad_header", VenetQueues { rx: (rx.0 + 128, rx.1), ..good() }),
    ];
    for (reason, queues) in refused {
        let place = (queues.tx, queues.rx);
        match lab.fabric.port_add_venet(SWITCH, "wrong", queues, VenetParams::default()) {
            Err(Error::Peer(fault)) => assert_eq!(reason, fault.reason(), "{place:x?}"),
            other => panic!("{place:x?}: {other:?}"),
        }
    }
    for slots in [0u32, 3, 1 << 16] {
        let guest = Guest::new(Shape::SMALL);
        guest.write(tx.0 + 8, &slots.to_ne_bytes());
        let answer = lab.fabric.port_add_venet(SWITCH, "wrong", guest.queues(), VenetParams::default());
        assert!(matches!(answer, Err(Error::Peer(Fault::BadSize { .. }))), "{slots}: {answer:?}");
    }
    assert_eq!(1, lab.fabric.ports().unwrap().len());
}

#[test]
fn blocked_doorbell_costs_its_owner_the_queue() {
    let mut lab = lab();
    let hostile = &mut lab.guests[2];
    hostile.post(8);
    // The counter as full as it gets, and a description that blocks for everybody.
    write(hostile.rx_call.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(hostile.rx_call.as_fd(), OFlags::RDWR).unwrap();
    hostile.rx.listener().acknowledge();
    assert!(hostile.rx.listener().arm());

    lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(1), 64, 0));

    assert_quarantined(&mut lab, PortPart::Receive, "doorbell_blocked");
    lab.fabric.port_remove(lab.ids[2]).unwrap();
}

#[test]
fn blocked_doorbell_of_returned_frames_costs_its_owner_the_queue() {
    let mut lab = lab();
    let hostile = &mut lab.guests[2];
    write(hostile.tx_call.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(hostile.tx_call.as_fd(), OFlags::RDWR).unwrap();
    hostile.tx.listener().acknowledge();
    assert!(hostile.tx.listener().arm());

    hostile.send(&frame(mac(9), mac(2), 64, 0));

    assert_quarantined(&mut lab, PortPart::Transmit, "doorbell_blocked");
}

#[test]
fn doorbell_rung_without_end_changes_nothing() {
    let mut lab = lab();
    for _ in 0..1000 {
        lab.guests[2].tx_kick.ring().unwrap();
    }
    // The fullest counter there is still makes an edge for whoever waits.
    write(lab.guests[2].tx_kick.as_fd(), &(u64::MAX - 2000).to_ne_bytes()).unwrap();

    lab.assert_passes(0, 1);
    lab.assert_passes(2, 0);
}

#[test]
fn signal_words_scribbled_over_hurt_only_their_guest() {
    let mut lab = lab();
    for ring in [Shape::SMALL.tx_ring(), Shape::SMALL.rx_ring()] {
        lab.guests[2].write(ring.0 + 0x180, &[0xff; 0x280]);
    }
    lab.guests[2].tx_kick.ring().unwrap();

    lab.assert_passes(0, 1);
    lab.assert_passes(1, 0);
    lab.fabric.port_remove(lab.ids[2]).unwrap();
}

#[test]
fn port_removed_with_unheard_doorbells_leaves_nothing_behind() {
    let mut lab = lab();
    let mut removed = 0;
    while removed < 100 {
        let mut guest = Guest::new(Shape::SMALL);
        guest.post(4);
        let id = lab.fabric.port_add_venet(SWITCH, "brief", guest.queues(), VenetParams::default()).unwrap();
        for index in 0..40 {
            assert!(guest.stage(&frame(MacAddress::BROADCAST, mac(9), 64, index)));
        }
        guest.publish();
        guest.tx_kick.ring().unwrap();

        lab.fabric.port_remove(id).unwrap();

        removed += 1;
    }
    lab.assert_passes(0, 1);
    assert_eq!(3, lab.fabric.ports().unwrap().len());
}

#[test]
fn quarantined_queue_wakes_nobody_any_more() {
    let mut lab = lab();
    assert!(lab.guests[2].tx.stage(descriptor(0, 1, 0)));
    lab.guests[2].publish();
    assert_quarantined(&mut lab, PortPart::Transmit, "too_short");
    let kicks = lab.count(2, PortCounter::Kicks);

    for _ in 0..10 {
        lab.guests[2].tx_kick.ring().unwrap();
        lab.barrier();
    }

    assert_eq!(kicks, lab.count(2, PortCounter::Kicks));
    assert!(!lab.fabric.wait_fault(std::time::Duration::ZERO).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any words anywhere in rings, indices and signals, with kicks in between: neighbours never notice.
    #[test]
    fn garbage_anywhere_in_the_rings_hurts_nobody_else(
        scribbles in proptest::collection::vec((any::<bool>(), 0u32..0x600, any::<u64>(), any::<bool>()), 1..60),
    ) {
        let mut lab = lab();
        lab.guests[2].post(32);
        for (is_tx, place, word, kicks) in scribbles {
            let ring = if is_tx { Shape::SMALL.tx_ring() } else { Shape::SMALL.rx_ring() };
            let place = ring.0 + (place & !7);
            lab.guests[2].write(place, &word.to_ne_bytes());
            // Indices that are believed for a while: near where they should be.
            lab.guests[2].write(ring.0 + TAIL, &(word as u32 % 70).to_ne_bytes());
            if kicks {
                lab.guests[2].tx_kick.ring().unwrap();
                lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(1), 64, word as u8));
            }
        }
        lab.guests[0].drain();

        lab.assert_passes(0, 1);
        lab.assert_passes(1, 0);

        let broken = lab.fabric.take_faults();
        prop_assert!(broken.len() <= 2 && broken.iter().all(|event| event.port == lab.ids[2]));
    }
}
