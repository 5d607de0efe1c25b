//! What must become of a front end that does what cannot be: its connection or its queue ends, under a reason that is counted and
//! told, others go on, and the next front end is served.

use std::path::Path;

use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::{PortCounter, PortEvent, PortPart};

use super::{FEATURES, FrontEnd, add_port, wait_until_alone};
use crate::switch_guest::{Lab, frame, mac};

/// What happened, which must concern this part of its port.
pub fn told(lab: &Lab, part: PortPart) -> PortEvent {
    let event = lab.fault();
    assert_eq!(part, event.part, "{}", event.text);
    event
}

/// Sends something to a port whose front end was set up; the connection ends, the port is told of, and the next front end is
/// served as if nothing had been.
pub fn assert_refused(name: &str, reason: &str, say: impl FnOnce(&mut FrontEnd)) {
    let mut lab = Lab::new(1);
    let path = add_port(&lab, "vm");
    let mut front = FrontEnd::new(&path);

    say(&mut front);
    front.wire.assert_hung_up();
    let event = told(&lab, PortPart::Control);

    assert_eq!(reason, event.reason, "{name}: {}", event.text);
    wait_until_alone(&lab, "vm");
    let mut next = FrontEnd::new(&path);
    let sent = frame(MacAddress::BROADCAST, mac(1), 64, 1);
    next.send(&sent);
    assert_eq!(sent, lab.guests[0].receive(), "{name}");
}

pub const MESSAGE: &str = "refused_message";
pub const CONTENT: &str = "refused_content";

/// Breaks a queue of a front end; the queue is quarantined and told of, others go on, and a front end that sets it up anew
/// has it back.
pub fn assert_quarantined(name: &str, reason: &str, part: PortPart, harm: impl FnOnce(&mut FrontEnd, &mut Lab)) {
    assert_quarantined_of(FEATURES, name, reason, part, harm);
}

/// As above, of a kind of queue.
pub fn assert_quarantined_of(
    features: u64,
    name: &str,
    reason: &str,
    part: PortPart,
    harm: impl FnOnce(&mut FrontEnd, &mut Lab),
) {
    let mut lab = Lab::new(2);
    let mut front = FrontEnd::with(&add_port(&lab, "vm"), features);

    harm(&mut front, &mut lab);
    let event = told(&lab, part);

    assert_eq!(reason, event.reason, "{name}: {}", event.text);
    let position = vbnet_core::error::Fault::REASONS.iter().position(|&known| known == reason).unwrap();
    let counter = PortCounter::FaultTailOutOfRange as usize + position;
    let blocks = lab.counters.reader().blocks();
    let block = blocks.iter().find(|block| block.kind == "port" && block.labels.contains("device=vm,")).unwrap();
    assert_eq!(1, block.values[counter], "{name}");
    let ports = lab.fabric.ports().unwrap();
    let port = ports.iter().find(|port| port.name == "vm").unwrap();
    let fault = if part == PortPart::Transmit { port.transmit_fault } else { port.receive_fault };
    assert_eq!(Some(reason), fault, "{name}");
    lab.assert_passes(0, 1);
    let Ok(path) = port.device.clone().ok_or(()) else { panic!("{name}") };
    drop(front);
    wait_until_alone(&lab, "vm");
    let mut next = FrontEnd::with(Path::new(&path), features);
    let sent = frame(MacAddress::BROADCAST, mac(1), 64, 1);
    lab.guests[0].refill();
    next.send(&sent);
    assert_eq!(sent, lab.guests[0].receive(), "{name}");
}
