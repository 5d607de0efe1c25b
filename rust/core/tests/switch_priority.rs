//! Priorities of ports: an urgent frame waits for one turn of a less urgent port, not for a round of all of them.
//!
//! Order is read off the ring of one receiver, which has a buffer for every frame. While a port has frames waiting, what
//! stands between two of its frames there is what the worker did between two of its turns, whenever the test itself ran.
//! So that all ports have frames waiting at once, the worker is kept meanwhile by a guest whose doorbell blocks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use crate::switch_guest::{Guest, Lab, SWITCH, Shape, eventually, frame, mac};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::write;
use vbnet_core::fabric::{Param, PortId, VenetParams};

const FLOODERS: usize = 8;
/// The port whose turns are looked at.
const WATCHED: usize = FLOODERS;
const RECEIVER: usize = FLOODERS + 1;
/// Frames one turn may take.
const BUDGET: usize = 4;
const FRAMES: usize = 512;
const SMALL: Shape = Shape { slots: FRAMES as u32, buffer_bytes: 128 };
const LARGE: Shape = Shape { slots: 8192, buffer_bytes: 128 };

/// Eight senders, one that is watched, and a receiver whose place the switch knows.
fn lab(watched_priority: u32) -> Lab {
    let params = VenetParams { budget: BUDGET as u32, ..VenetParams::default() };
    let mut lab = Lab::with(FLOODERS, SMALL, params);
    let mut add = |name: &str, shape: Shape, priority: u32| -> PortId {
        let mut guest = Guest::new(shape);
        guest.post(shape.slots);
        let params = VenetParams { priority, ..params };
        let id = lab.fabric.port_add_venet(SWITCH, name, guest.queues(), params).unwrap();
        lab.guests.push(guest);
        id
    };
    let ids = [add("watched", SMALL, watched_priority), add("receiver", LARGE, 0)];
    lab.ids.extend(ids);
    lab.guests[RECEIVER].send(&frame(mac(0xee), station(RECEIVER), 64, 0));
    lab.settle();
    lab
}

fn station(guest: usize) -> vbnet_core::net::frame::MacAddress {
    mac(guest as u8 + 1)
}

fn stage(lab: &mut Lab, guest: usize, count: usize) {
    let sent = frame(station(RECEIVER), station(guest), 64, 0);
    for _ in 0..count {
        assert!(lab.guests[guest].stage(&sent), "as many slots as frames");
    }
}

/// Who sent what the receiver has got so far, in order.
fn senders(lab: &mut Lab) -> Vec<usize> {
    let senders = lab.guests[RECEIVER].received().into_iter().map(|frame| usize::from(frame[11]) - 1);
    senders.filter(|&sender| sender <= WATCHED).collect()
}

/// Has the worker ring a doorbell that blocks: until the watchdog comes, nothing is forwarded and frames pile up.
fn brake(lab: &Lab) {
    let mut guest = Guest::new(SMALL);
    lab.fabric.port_add_venet(SWITCH, "brake", guest.queues(), VenetParams::default()).unwrap();
    write(guest.tx_call.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(guest.tx_call.as_fd(), OFlags::RDWR).unwrap();
    guest.tx.listener().acknowledge();
    assert!(guest.tx.listener().arm());
    guest.send(&frame(station(RECEIVER), mac(0xdd), 64, 0));
    // Taken, so the doorbell is next.
    eventually(|| guest.tx.completed().unwrap() == 1);
}

/// Sends everything that was staged, all of it, and gives who sent what the receiver got.
fn rush(lab: &mut Lab) -> Vec<usize> {
    (0..=WATCHED).for_each(|guest| stage(lab, guest, FRAMES));
    brake(lab);
    (0..=WATCHED).for_each(|guest| lab.guests[guest].publish());
    lab.settle();
    let order = senders(lab);
    assert_eq!((FLOODERS + 1) * FRAMES, order.len());
    order
}

/// What other ports got through between two turns of the watched one, while it had frames waiting.
fn gaps(order: &[usize]) -> Vec<BTreeMap<usize, usize>> {
    let is_watched = |sender: &usize| *sender == WATCHED;
    let first = order.iter().position(is_watched).unwrap_or(0);
    let last = order.iter().rposition(is_watched).unwrap_or(0);
    order[first..last]
        .split(is_watched)
        .filter(|gap| !gap.is_empty())
        .map(|gap| {
            let mut counts = BTreeMap::new();
            gap.iter().for_each(|&sender| *counts.entry(sender).or_insert(0) += 1);
            counts
        })
        .collect()
}

fn most_frames(gaps: &[BTreeMap<usize, usize>]) -> usize {
    gaps.iter().map(|gap| gap.values().sum()).max().unwrap_or(0)
}

#[test]
fn urgent_frame_waits_for_one_turn_of_another_port_at_most() {
    let mut lab = lab(7);

    let order = rush(&mut lab);

    assert!(most_frames(&gaps(&order)) <= BUDGET, "{:?}", gaps(&order));
}

#[test]
fn ports_of_equal_priority_take_turns() {
    let mut lab = lab(0);

    let order = rush(&mut lab);

    let most_of_one = gaps(&order).iter().flat_map(BTreeMap::values).copied().max().unwrap_or(0);
    assert!(most_of_one <= BUDGET, "{:?}", gaps(&order));
}

#[test]
fn less_urgent_ports_are_served_while_an_urgent_one_floods() {
    let mut lab = lab(7);

    let order = rush(&mut lab);

    let served: BTreeMap<_, _> = order.iter().fold(BTreeMap::new(), |mut counts, &sender| {
        *counts.entry(sender).or_insert(0) += 1;
        counts
    });
    assert_eq!((0..=WATCHED).map(|guest| (guest, FRAMES)).collect::<BTreeMap<_, _>>(), served);
}

/// The ports are active already when the priority changes, so their order has to change with it.
#[test]
fn priority_changed_while_ports_are_active_counts_from_then_on() {
    let mut lab = lab(0);
    (0..FLOODERS).for_each(|guest| stage(&mut lab, guest, FRAMES));
    stage(&mut lab, WATCHED, FRAMES / 2);
    brake(&lab);
    (0..=WATCHED).for_each(|guest| lab.guests[guest].publish());

    lab.fabric.port_set(lab.ids[WATCHED], Param::Priority(7)).unwrap();

    let before = senders(&mut lab);
    lab.settle();
    let order = senders(&mut lab);
    assert_eq!((2 * FLOODERS + 1) * FRAMES, 2 * (before.len() + order.len()));
    assert!(most_frames(&gaps(&order)) <= BUDGET, "{:?}", gaps(&order));
}
