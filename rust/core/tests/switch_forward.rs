//! Frames between guests through the switch: who gets them, whole and in order, and what is counted when not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::switch_guest::{Guest, Lab, SWITCH, Shape, eventually, frame, mac};
use vbnet_core::fabric::{Param, VenetParams};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::PortCounter;
use vbnet_core::worker::WorkerCounter;

const JUMBO: Shape = Shape { slots: 16, buffer_bytes: 9100 };

#[test]
fn frame_of_any_length_arrives_unchanged() {
    let mut lab = Lab::with(2, JUMBO, VenetParams { mtu: 9000, ..VenetParams::default() });
    for length in (14..140).chain([1499, 1500, 1514, 1518, 4095, 4096, 9014, 9018]) {
        let sent = frame(mac(2), mac(1), length, length as u8);

        lab.guests[0].send(&sent);

        assert_eq!(sent, lab.guests[1].receive(), "{length}");
        lab.guests[1].post(1);
    }
}

#[test]
fn frames_keep_their_order_across_floods_and_batches() {
    let mut lab = Lab::with(2, Shape { slots: 512, buffer_bytes: 256 }, VenetParams::default());
    lab.guests[1].send(&frame(mac(9), mac(2), 64, 0));
    lab.guests[0].receive();
    let destinations = [mac(2), mac(2), mac(7), mac(2), MacAddress::BROADCAST];
    let sent: Vec<_> = (0..400).map(|index| frame(destinations[index % 5], mac(1), 100, index as u8)).collect();

    for frame in &sent {
        assert!(lab.guests[0].stage(frame));
    }
    lab.guests[0].publish();
    lab.settle();

    assert_eq!(sent, lab.guests[1].received());
}

#[test]
fn known_station_gets_its_frames_alone() {
    let mut lab = Lab::new(3);
    lab.guests[1].send(&frame(mac(9), mac(2), 64, 0));
    lab.settle();
    lab.guests.iter_mut().for_each(|guest| drop(guest.received()));
    let sent = frame(mac(2), mac(1), 64, 1);

    lab.guests[0].send(&sent);
    lab.settle();

    assert_eq!(vec![sent], lab.guests[1].received());
    assert!(lab.guests[0].received().is_empty() && lab.guests[2].received().is_empty());
}

#[test]
fn flood_with_first_port_full_keeps_other_copies_whole() {
    let mut lab = Lab::new(1);
    for index in 1..4 {
        let mut guest = Guest::new(Shape::SMALL);
        if index != 1 {
            guest.post(8);
        }
        let name = format!("g{index}");
        lab.ids.push(lab.fabric.port_add_venet(SWITCH, &name, guest.queues(), VenetParams::default()).unwrap());
        lab.guests.push(guest);
    }
    let sent = frame(MacAddress::BROADCAST, mac(1), 300, 5);

    lab.guests[0].send(&sent);
    lab.settle();

    assert!(lab.guests[0].received().is_empty() && lab.guests[1].received().is_empty());
    assert_eq!(vec![sent.clone()], lab.guests[2].received());
    assert_eq!(vec![sent], lab.guests[3].received());
    assert_eq!(1, lab.count(1, PortCounter::ReceiveDropNoRoom));
    assert_eq!(1, lab.count(2, PortCounter::ReceiveFrames));
}

#[test]
fn receiver_without_buffers_loses_frames_and_goes_on_when_it_posts_some() {
    let mut lab = Lab::with(2, Shape { slots: 8, buffer_bytes: 256 }, VenetParams::default());
    for index in 0..20 {
        lab.guests[0].send(&frame(mac(2), mac(1), 64, index));
    }
    lab.settle();
    assert_eq!(8, lab.guests[1].received().len());

    lab.guests[1].post(1);
    let sent = frame(mac(2), mac(1), 64, 99);
    lab.guests[0].send(&sent);

    assert_eq!(sent, lab.guests[1].receive());
    assert_eq!(12, lab.count(1, PortCounter::ReceiveDropNoRoom));
    assert_eq!(9, lab.count(1, PortCounter::ReceiveFrames));
}

/// Two guests, the second of which is known and has taken enough to hold its senders up for as long as is allowed.
fn lab_of_a_reliable_receiver(hold_us: u32) -> Lab {
    let mut lab = Lab::with(2, Shape::SMALL, VenetParams { hold_us, ..VenetParams::default() });
    lab.guests[1].send(&frame(mac(1), mac(2), 64, 0));
    lab.settle();
    for _ in 0..5_000_u32.div_ceil(Shape::SMALL.slots) {
        for _ in 0..Shape::SMALL.slots {
            lab.guests[0].send(&frame(mac(2), mac(1), 64, 1));
        }
        lab.settle();
        lab.guests[1].refill();
    }
    lab
}

#[test]
fn receiver_without_room_holds_its_sender_up_and_loses_nothing_when_it_makes_some() {
    let mut lab = lab_of_a_reliable_receiver(10_000);
    let slots = u64::from(Shape::SMALL.slots);

    // A thread that slept meanwhile has made room too late; one time it does not.
    eventually(|| {
        lab.settle();
        lab.guests[1].refill();
        let counted = [PortCounter::ReceiveHolds, PortCounter::ReceiveDropNoRoom, PortCounter::ReceiveFrames];
        let [holds, drops, frames] = counted.map(|counter| lab.count(1, counter));
        for index in 0..slots + 8 {
            lab.guests[0].send(&frame(mac(2), mac(1), 64, index as u8));
        }
        eventually(|| lab.count(1, PortCounter::ReceiveHolds) > holds || lab.count(1, counted[1]) > drops);
        lab.guests[1].refill();
        lab.settle();
        let lost = lab.count(1, PortCounter::ReceiveDropNoRoom) - drops;
        assert_eq!(slots + 8, lab.count(1, PortCounter::ReceiveFrames) - frames + lost);
        lost == 0
    });
}

#[test]
fn receiver_that_makes_no_room_holds_its_sender_up_no_longer_than_it_may() {
    let mut lab = lab_of_a_reliable_receiver(10_000);

    for index in 0..Shape::SMALL.slots + 8 {
        lab.guests[0].send(&frame(mac(2), mac(1), 64, index as u8));
    }
    lab.settle();

    assert_eq!(8, lab.count(1, PortCounter::ReceiveDropNoRoom));
    assert!(lab.count(1, PortCounter::ReceiveHolds) != 0);
    assert!(lab.count(1, PortCounter::ReceiveHeldNanoseconds) < 10_000_000);
}

#[test]
fn receiver_that_may_hold_nobody_up_loses_frames_at_once() {
    let mut lab = lab_of_a_reliable_receiver(10_000);
    lab.fabric.port_set(lab.ids[1], Param::HoldUs(0)).unwrap();

    for index in 0..Shape::SMALL.slots + 8 {
        lab.guests[0].send(&frame(mac(2), mac(1), 64, index as u8));
    }
    lab.settle();

    assert_eq!(8, lab.count(1, PortCounter::ReceiveDropNoRoom));
    assert_eq!(0, lab.count(1, PortCounter::ReceiveHolds));
    assert!(lab.fabric.port_set(lab.ids[1], Param::HoldUs(10_001)).is_err());
}

#[test]
fn frame_beyond_the_senders_mtu_is_dropped_and_counted() {
    let mut lab = Lab::with(2, JUMBO, VenetParams { mtu: 1500, ..VenetParams::default() });
    let fits = frame(mac(2), mac(1), 1518, 1);

    lab.guests[0].send(&frame(mac(2), mac(1), 1519, 0));
    lab.guests[0].send(&fits);
    lab.settle();

    assert_eq!(vec![fits], lab.guests[1].received());
    assert_eq!(1, lab.count(0, PortCounter::TransmitDropOversize));
}

#[test]
fn frame_beyond_the_receivers_mtu_is_dropped_and_counted() {
    let mut lab = Lab::with(3, JUMBO, VenetParams { mtu: 9000, ..VenetParams::default() });
    lab.fabric.port_set(lab.ids[1], Param::Mtu(1500)).unwrap();
    let sent = frame(MacAddress::BROADCAST, mac(1), 5000, 1);

    lab.guests[0].send(&sent);
    lab.settle();

    assert!(lab.guests[1].received().is_empty());
    assert_eq!(vec![sent], lab.guests[2].received());
    assert_eq!(1, lab.count(1, PortCounter::ReceiveDropOversize));
}

#[test]
fn buffer_smaller_than_the_frame_stays_posted_for_the_next_one() {
    let mut lab = Lab::with(2, Shape { slots: 4, buffer_bytes: 128 }, VenetParams::default());
    let mut big = Guest::new(Shape::SMALL);
    let id = lab.fabric.port_add_venet(SWITCH, "big", big.queues(), VenetParams::default()).unwrap();
    let fits = frame(MacAddress::BROADCAST, mac(3), 128, 2);

    big.send(&frame(MacAddress::BROADCAST, mac(3), 129, 1));
    big.send(&fits);
    big.drain();
    lab.barrier();

    assert_eq!(vec![fits], lab.guests[0].received());
    assert_eq!(1, lab.count(0, PortCounter::ReceiveDropBufferTooSmall));
    lab.fabric.port_remove(id).unwrap();
}

#[test]
fn short_frame_leaks_nothing_behind_it() {
    let mut lab = Lab::new(2);
    let secret = vec![0xaa; 2048];
    let offset = lab.guests[0].shape.tx_buffer(0);
    lab.guests[0].write(offset, &secret);
    let buffer = lab.guests[1].shape.rx_buffer(0);

    lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(1), 20, 0));
    lab.settle();

    assert_eq!(vec![0; 44], lab.guests[1].read(buffer + 20, 44));
}

#[test]
fn link_down_drops_both_ways_and_up_restores() {
    let mut lab = Lab::new(2);
    lab.fabric.port_link(lab.ids[1], false).unwrap();
    assert!(!lab.fabric.ports().unwrap()[1].is_up);

    lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(1), 64, 0));
    lab.guests[1].send(&frame(MacAddress::BROADCAST, mac(2), 64, 0));
    lab.settle();

    assert!(lab.guests[0].received().is_empty() && lab.guests[1].received().is_empty());
    assert_eq!(1, lab.count(1, PortCounter::ReceiveDropLinkDown));
    assert_eq!(1, lab.count(1, PortCounter::TransmitDropLinkDown));
    lab.fabric.port_link(lab.ids[1], true).unwrap();
    lab.assert_passes(0, 1);
    lab.assert_passes(1, 0);
}

#[test]
fn flushed_buffers_come_back_empty_and_without_a_signal() {
    let mut lab = Lab::new(1);
    lab.guests[0].rx.listener().acknowledge();
    assert!(lab.guests[0].rx.listener().arm());

    let flushed = lab.fabric.port_flush_rx(lab.ids[0]).unwrap();

    let guest = &mut lab.guests[0];
    assert_eq!(64, flushed);
    assert_eq!(64, guest.rx.completed().unwrap());
    for index in 0..64 {
        assert_eq!((guest.shape.rx_buffer(index), 0), (guest.rx.peek(index).offset, guest.rx.peek(index).length));
    }
    assert!(!guest.rx_call.wait(Some(std::time::Duration::ZERO)).unwrap());
}

#[test]
fn loopback_returns_every_frame_and_needs_no_switch() {
    let mut lab = Lab::new(0);
    let mut guest = Guest::new(Shape::SMALL);
    guest.post(8);
    lab.ids.push(lab.fabric.port_add_loopback("echo", guest.queues(), VenetParams::default()).unwrap());
    let sent = frame(mac(9), mac(1), 700, 3);

    guest.send(&sent);

    assert_eq!(sent, guest.receive());
    let info = lab.fabric.ports().unwrap().remove(0);
    assert_eq!((None, "loopback"), (info.switch, info.kind.label()));
}

#[test]
fn own_address_is_known_without_flooding_and_cannot_be_stolen() {
    let mut lab = Lab::new(1);
    let mut owner = Guest::new(Shape::SMALL);
    owner.post(4);
    let params = VenetParams { mac: mac(7), ..VenetParams::default() };
    lab.fabric.port_add_venet(SWITCH, "owner", owner.queues(), params).unwrap();

    lab.guests[0].send(&frame(mac(1), mac(7), 64, 0));
    let sent = frame(mac(7), mac(1), 64, 1);
    lab.guests[0].send(&sent);

    assert_eq!(sent, owner.receive());
    assert_eq!(1, lab.count(0, PortCounter::TransmitDropForgedSource));
}

#[test]
fn sleeping_sender_is_called_when_its_slots_come_back() {
    let mut lab = Lab::with(2, Shape { slots: 32, buffer_bytes: 256 }, VenetParams::default());
    lab.fabric.port_set(lab.ids[0], Param::TxMitigation(1_000_000)).unwrap();
    let guest = &mut lab.guests[0];
    guest.tx.listener().acknowledge();
    assert!(guest.tx.listener().arm());
    for index in 0..32 {
        assert!(guest.stage(&frame(mac(2), mac(1), 64, index)));
    }

    guest.publish();

    assert!(guest.tx_call.wait(Some(crate::switch_guest::DEADLINE)).unwrap());
    assert_eq!(32, guest.tx.completed().unwrap());
}

#[test]
fn ring_longer_than_any_batch_is_served_whole() {
    let shape = Shape { slots: 4096, buffer_bytes: 64 };
    let mut lab = Lab::with(2, shape, VenetParams { budget: 4096, ..VenetParams::default() });
    let sent: Vec<_> = (0..4096).map(|index| frame(mac(2), mac(1), 64, index as u8)).collect();

    for frame in &sent {
        assert!(lab.guests[0].stage(frame));
    }
    lab.guests[0].publish();
    lab.settle();

    assert_eq!(sent, lab.guests[1].received());
}

#[test]
fn removed_port_frees_its_memory_while_neighbours_run() {
    let mut lab = Lab::new(3);
    for round in 0..50 {
        for index in 0..20 {
            assert!(lab.guests[0].stage(&frame(MacAddress::BROADCAST, mac(1), 64, index)));
        }
        lab.guests[0].publish();

        lab.fabric.port_remove(lab.ids[1]).unwrap();

        // What is posted now is touched by nobody: the slots keep what the guest wrote.
        let ring_before = lab.guests[1].read(lab.guests[1].shape.rx_ring().0, lab.guests[1].shape.rx_ring().1);
        lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(1), 64, 99));
        lab.settle_except(1);
        let ring_after = lab.guests[1].read(lab.guests[1].shape.rx_ring().0, lab.guests[1].shape.rx_ring().1);
        assert_eq!(ring_before, ring_after);
        assert_eq!(21, lab.guests[2].received().len());
        lab.guests[2].post(21);
        lab.guests[1] = Guest::new(Shape::SMALL);
        lab.guests[1].post(64);
        let name = format!("again{round}");
        lab.ids[1] = lab.fabric.port_add_venet(SWITCH, &name, lab.guests[1].queues(), VenetParams::default()).unwrap();
    }
}

#[test]
fn flooding_guest_does_not_starve_its_neighbour() {
    let mut lab = Lab::with(3, Shape { slots: 256, buffer_bytes: 256 }, VenetParams::default());
    let noise = frame(mac(0xee), mac(1), 64, 0);
    let mut quiet_frames = 0;
    while quiet_frames < 200 {
        while lab.guests[0].stage(&noise) {}
        lab.guests[0].publish();

        lab.guests[1].send(&frame(mac(3), mac(2), 64, quiet_frames));
        lab.guests[1].drain();

        quiet_frames += 1;
    }
    assert_eq!(200, lab.count(1, PortCounter::TransmitFrames));
}

#[test]
fn every_sleeper_is_woken_in_a_long_ping_pong() {
    let mut lab = Lab::new(2);
    lab.fabric.port_set(lab.ids[0], Param::BurstThresholdUs(0)).unwrap();
    for index in 0..2000u32 {
        let (from, to) = ((index % 2) as usize, ((index + 1) % 2) as usize);
        let sent = frame(mac(to as u8 + 1), mac(from as u8 + 1), 64 + index as usize % 7, index as u8);

        lab.guests[from].send(&sent);

        assert_eq!(sent, lab.guests[to].receive());
        lab.guests[to].post(1);
    }
}

#[test]
fn ports_without_traffic_are_parked_and_the_worker_sleeps() {
    let mut lab = Lab::new(20);
    lab.assert_passes(0, 19);

    eventually(|| (0..20).all(|guest| lab.count(guest, PortCounter::Parks) != 0));

    eventually(|| {
        let blocks = lab.counters.reader().blocks();
        let worker = blocks.iter().find(|block| block.kind == "worker").unwrap();
        worker.values[WorkerCounter::ActivePorts as usize] == 0
    });
}

#[test]
fn port_that_does_not_park_keeps_its_worker_awake_until_it_may() {
    let mut lab = Lab::new(2);
    let sleeps = |lab: &Lab| {
        let blocks = lab.counters.reader().blocks();
        let worker = blocks.into_iter().find(|block| block.kind == "worker").unwrap();
        (worker.values[WorkerCounter::ActivePorts as usize], worker.values[WorkerCounter::Sleeps as usize])
    };
    eventually(|| sleeps(&lab).0 == 0);

    lab.fabric.port_set(lab.ids[1], Param::Parks(false)).unwrap();
    lab.assert_passes(0, 1);
    eventually(|| lab.count(0, PortCounter::Parks) >= 2);
    let (active, awake_since) = sleeps(&lab);
    lab.assert_passes(0, 1);

    assert_eq!((1, awake_since), (active, sleeps(&lab).1));
    lab.fabric.port_set(lab.ids[1], Param::Parks(true)).unwrap();
    eventually(|| sleeps(&lab).0 == 0);
}

#[test]
fn names_and_addresses_are_taken_once() {
    let lab = Lab::new(1);
    let guest = Guest::new(Shape::SMALL);
    let params = VenetParams { mac: mac(5), ..VenetParams::default() };

    assert!(lab.fabric.switch_create(SWITCH, 300).is_err());
    assert!(lab.fabric.switch_delete(SWITCH).is_err());
    assert!(lab.fabric.port_add_venet(SWITCH, "g0", guest.queues(), params).is_err());
    assert!(lab.fabric.port_add_venet("nowhere", "g1", guest.queues(), params).is_err());
    assert!(lab.fabric.port_add_venet(SWITCH, "a name", guest.queues(), params).is_err());
    let id = lab.fabric.port_add_venet(SWITCH, "g1", guest.queues(), params).unwrap();
    assert!(lab.fabric.port_add_venet(SWITCH, "g2", Guest::new(Shape::SMALL).queues(), params).is_err());

    lab.fabric.port_remove(id).unwrap();
    assert!(lab.fabric.port_remove(id).is_err());
    lab.fabric.port_add_venet(SWITCH, "g2", Guest::new(Shape::SMALL).queues(), params).unwrap();
}

#[test]
fn closed_fabric_refuses_and_lets_go_of_memory() {
    let lab = Lab::new(2);
    let ram = lab.guests[0].queues().ram;
    let weak = std::sync::Arc::downgrade(&ram);
    let queues = vbnet_core::fabric::VenetQueues { ram, ..lab.guests[0].queues() };
    lab.fabric.port_add_loopback("echo", queues, VenetParams::default()).unwrap();

    lab.fabric.close();
    lab.fabric.close();

    assert!(weak.upgrade().is_none());
    assert!(lab.fabric.switch_create("other", 1).is_err());
}
