//! The whole switch against an obvious one: whatever guests do, everybody receives what the model says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, VecDeque};

use crate::switch_guest::{Guest, Lab, SWITCH, Shape, frame, mac};
use proptest::prelude::*;
use vbnet_core::fabric::VenetParams;
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::PortCounter;

const GUESTS: usize = 4;
const STATIONS: u8 = 6;
/// The obvious switch waits for nobody: a frame that waited is looked up anew, and its station may have moved.
fn params() -> VenetParams {
    VenetParams { hold_us: 0, ..VenetParams::default() }
}

const SHAPE: Shape = Shape { slots: 16, buffer_bytes: 256 };

#[derive(Clone, Debug)]
enum Step {
    /// Frames of one guest, published together: (destination, source, length).
    Send(usize, Vec<(u8, u8, usize)>),
    /// A guest takes what it received and posts so many buffers.
    Post(usize, u32),
    Link(usize, bool),
    /// A guest is unplugged and another one plugged in its place.
    Replace(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Station 0 stands for everybody.
    let one = (0..=STATIONS, 1..=STATIONS, prop_oneof![9 => 14usize..256, 1 => 257usize..300]);
    let step = prop_oneof![
        8 => (0..GUESTS, proptest::collection::vec(one, 1..12)).prop_map(|(guest, frames)| Step::Send(guest, frames)),
        4 => (0..GUESTS, 0u32..16).prop_map(|(guest, count)| Step::Post(guest, count)),
        1 => (0..GUESTS, any::<bool>()).prop_map(|(guest, is_up)| Step::Link(guest, is_up)),
        1 => (0..GUESTS).prop_map(Step::Replace),
    ];
    proptest::collection::vec(step, 1..40)
}

fn destination(station: u8) -> MacAddress {
    if station == 0 { MacAddress::BROADCAST } else { mac(station) }
}

/// A hub with a memory.
#[derive(Default)]
struct Model {
    stations: BTreeMap<u8, usize>,
    ports: [ModelPort; GUESTS],
}

#[derive(Default)]
struct ModelPort {
    is_down: bool,
    posted: u32,
    received: VecDeque<Vec<u8>>,
    no_room: u64,
    too_small: u64,
    link_down: u64,
}

impl Model {
    fn send(&mut self, from: usize, to: u8, source: u8, bytes: &[u8]) {
        if self.ports[from].is_down {
            return;
        }
        self.stations.insert(source, from);
        match self.stations.get(&to).copied() {
            Some(port) if port == from => {}
            Some(port) => self.ports[port].give(bytes),
            None => (0..GUESTS).filter(|&port| port != from).for_each(|port| self.ports[port].give(bytes)),
        }
    }
}

impl ModelPort {
    fn give(&mut self, bytes: &[u8]) {
        if self.is_down {
            self.link_down += 1;
        } else if self.posted == 0 {
            self.no_room += 1;
        } else if bytes.len() > SHAPE.buffer_bytes as usize {
            self.too_small += 1;
        } else {
            self.posted -= 1;
            self.received.push_back(bytes.to_vec());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn everybody_receives_what_the_obvious_switch_says(steps in steps()) {
        let mut lab = Lab::with(GUESTS, SHAPE, params());
        let mut model = Model::default();
        model.ports.iter_mut().for_each(|port| port.posted = SHAPE.slots);
        let mut names = [0; GUESTS];
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Send(from, frames) => {
                    for (index, (to, source, length)) in frames.into_iter().enumerate() {
                        let bytes = frame(destination(to), mac(source), length, (number * 16 + index) as u8);
                        prop_assert!(lab.guests[from].stage(&bytes));
                        model.send(from, to, source, &bytes);
                    }
                    lab.guests[from].publish();
                    lab.settle();
                }
                Step::Post(index, count) => {
                    let received: VecDeque<_> = lab.guests[index].received().into();
                    prop_assert_eq!(&model.ports[index].received, &received);
                    model.ports[index].received.clear();
                    let count = count.min(lab.guests[index].rx.room());
                    lab.guests[index].post(count);
                    model.ports[index].posted += count;
                }
                Step::Link(index, is_up) => {
                    lab.fabric.port_link(lab.ids[index], is_up).unwrap();
                    model.ports[index].is_down = !is_up;
                    if !is_up {
                        model.stations.retain(|_, port| *port != index);
                    }
                }
                Step::Replace(index) => {
                    lab.fabric.port_remove(lab.ids[index]).unwrap();
                    let mut guest = Guest::new(SHAPE);
                    guest.post(SHAPE.slots);
                    names[index] = number + 1;
                    let name = format!("g{index}x{number}");
                    let port = lab.fabric.port_add_venet(SWITCH, &name, guest.queues(), params());
                    lab.ids[index] = port.unwrap();
                    lab.guests[index] = guest;
                    model.stations.retain(|_, port| *port != index);
                    model.ports[index] = ModelPort { posted: SHAPE.slots, ..ModelPort::default() };
                }
            }
        }
        for (index, port) in model.ports.iter().enumerate() {
            let received: VecDeque<_> = lab.guests[index].received().into();
            prop_assert_eq!(&port.received, &received);
            let name = match names[index] {
                0 => format!("g{index}"),
                number => format!("g{index}x{}", number - 1),
            };
            let counted = [
                PortCounter::ReceiveDropNoRoom,
                PortCounter::ReceiveDropBufferTooSmall,
                PortCounter::ReceiveDropLinkDown,
            ];
            let counted = counted.map(|counter| lab.count_of(&name, counter));
            prop_assert_eq!([port.no_room, port.too_small, port.link_down], counted);
        }
        let learned: BTreeMap<_, _> =
            lab.fabric.macs(SWITCH).unwrap().into_iter().map(|entry| (entry.mac.bytes()[5], entry.port)).collect();
        let expected: BTreeMap<_, _> =
            model.stations.iter().map(|(&station, &port)| (station, lab.ids[port])).collect();
        prop_assert_eq!(expected, learned);
    }
}
