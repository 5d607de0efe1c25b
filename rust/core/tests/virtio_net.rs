//! A virtio network card on a real fabric and its driver in one process: registers are direct calls, everything else is as
//! between two.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::sync::atomic::Ordering;

use crate::virtio_bench::DEADLINE;
use crate::virtio_card::{Lab, SET_STATUS, SLOTS, START, frame, receive, until};
use vbnet_core::error::{Error, Fault};
use vbnet_core::virtio::device::{COMMON_FEATURES, Transport};

const NEEDS_RESET: u32 = 64;
const PACKED: u64 = 1 << 34;
const CONTROL: u64 = 1 << 17;
const PAIRS: u64 = 1 << 22;
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Every length, more frames than slots, asleep and awake: what is sent is what arrives, in order, over each transport.
#[test]
fn frames_between_two_cards_arrive_whole_and_in_order_over_each_transport() {
    for (transport, name) in Transport::ALL {
        let lab = Lab::new();
        let (one, two) = (lab.card(1, transport, 1), lab.card(2, transport, 1));
        let ((mut sender, _unused), (mut back, mut receiver)) = (one.start(), two.start());
        for length in [14, 60, 64, 65, 1000, 1514, 1518] {
            let frames: Vec<_> = (0..40).map(|number| frame(two.mac, one.mac, length, number)).collect();
            let mut sent = 0;
            let mut found = Vec::new();
            while found.len() < frames.len() {
                sent += sender.send(frames[sent..].iter().map(Vec::as_slice)).unwrap();
                found.extend(receive(&mut receiver, sent - found.len()));
                if sent < frames.len() {
                    sender.wait(Some(DEADLINE)).unwrap();
                }
            }
            assert_eq!(frames, found, "{name}, {length} bytes");
        }
        until("frames returned", || sender.pending().unwrap() == 0);
        assert!(matches!(back.stage(&[0; 13]), Err(Error::Usage(_))));
        assert!(matches!(back.stage(&[0; 1519]), Err(Error::Usage(_))));
        assert_eq!(Some(true), lab.info(&two).is_served);
        assert_eq!(7 * 40, receiver.totals().frames);
    }
}

/// A claimed frame lies where the driver says; held frames keep their buffers until they are given back.
#[test]
fn frames_are_written_and_read_in_place() {
    let lab = Lab::new();
    let (one, two) = (lab.card(1, Transport::Vbus, 1), lab.card(2, Transport::Vbus, 1));
    let ((mut sender, _unused), (_back, mut receiver)) = (one.start(), two.start());
    let sent = frame(two.mac, one.mac, 100, 7);

    let cancelled = sender.claim(60).unwrap().unwrap();
    sender.cancel();
    let offset = sender.claim(1000).unwrap().unwrap();
    one.write(offset, &sent);
    sender.commit(offset, 100);
    sender.flush().unwrap();
    let mut held = Vec::new();
    until("a frame", || receiver.hold(32, &mut held).unwrap() != 0);

    assert_eq!((cancelled, 100), (offset, held[0].length));
    assert_eq!(sent, two.read(held[0].offset, 100));
    receiver.give_back(held[0].buffer).unwrap();
    receiver.give_back(held[0].buffer).unwrap();
    for number in 0..=SLOTS {
        sender.stage(&frame(two.mac, one.mac, 64, number as u8)).unwrap();
        sender.flush().unwrap();
        receive(&mut receiver, 1);
    }
}

/// A reset takes the queues back: what is made available then is not looked at any more. The port stays until it is removed.
#[test]
fn card_that_was_reset_has_no_queues() {
    let lab = Lab::new();
    let (one, two) = (lab.card(1, Transport::Mmio, 1), lab.card(2, Transport::Vbus, 1));
    let ((mut sender, _unused), (_back, mut receiver)) = (one.start(), two.start());
    let sent = frame(two.mac, one.mac, 80, 1);
    assert!(sender.stage(&sent).unwrap());
    sender.flush().unwrap();
    assert_eq!(vec![sent.clone()], receive(&mut receiver, 1));

    // The status register, as behind virtio-mmio.
    one.call(12, &[0x70, 4, 0, 0]);
    assert_eq!(Some(false), lab.info(&one).is_served);
    assert!(sender.stage(&sent).unwrap());
    let outcome = sender.flush();

    assert!(matches!(outcome, Ok(()) | Err(Error::Usage(_))), "{outcome:?}");
    assert_eq!(0, receiver.receive(1, |_| ()).unwrap());
    one.device.close().unwrap();
    one.device.close().unwrap();
    lab.fabric.port_remove(one.id).unwrap();
}

/// A descriptor that leads out of the guest's memory ends the queue under its reason, and the device needs a reset; the other
/// queue, and the other card, go on.
#[test]
fn queue_that_breaks_a_rule_is_quarantined_and_the_device_needs_a_reset() {
    let lab = Lab::new();
    let (one, two) = (lab.card(1, Transport::Vbus, 1), lab.card(2, Transport::Vbus, 1));
    let ((mut broken, mut alive), (mut sender, mut receiver)) = (one.start(), two.start());
    // The TX queue comes behind the RX queue, which has two pages; the first descriptor is the first one to be used.
    one.write(START + 0x2000, &[0xff; 8]);
    broken.stage(&frame(two.mac, one.mac, 64, 1)).unwrap();
    broken.flush().unwrap();
    sender.stage(&frame(one.mac, two.mac, 64, 1)).unwrap();
    sender.flush().unwrap();

    until("a fault", || one.device.status() & NEEDS_RESET != 0);

    // The device says so before the worker tells whose fault it was.
    let mut fault = Vec::new();
    until("who is told of it", || {
        fault.extend(lab.fabric.take_faults());
        !fault.is_empty()
    });
    assert_eq!(Some("outside_memory"), lab.info(&one).transmit_fault);
    assert_eq!((1, one.id), (fault.len(), fault[0].port));
    assert_eq!(1, receive(&mut alive, 1).len());
    assert_eq!(None, lab.info(&two).transmit_fault);
    assert_eq!(0, receiver.receive(1, |_| ()).unwrap());
}

/// A device that returns what was never posted costs the card, and nothing of it is believed.
#[test]
fn device_that_lies_ends_the_driver() {
    let lab = Lab::new();
    let one = lab.card(1, Transport::Vbus, 1);
    let (_sender, mut receiver) = one.start();
    let used = START + 0x1000;
    one.write(used + 4, &[0x88, 0x13, 0, 0, 64, 0, 0, 0]);
    one.word(used + 2).store(1, Ordering::SeqCst);

    let outcome = receiver.receive(1, |_| ());

    assert!(matches!(outcome, Err(Error::Peer(Fault::IndexOutOfRange { index: 5000, .. }))), "{outcome:?}");
}

/// A packed queue, as drivers other than ours lay it out: a frame goes out of it and the descriptor comes back.
#[test]
fn frame_of_a_packed_queue_is_forwarded() {
    let lab = Lab::new();
    let (one, two) = (lab.card(1, Transport::Vbus, 1), lab.card(2, Transport::Vbus, 1));
    let (_back, mut receiver) = two.start();
    let (ring, buffer) = (0x10000, 0x20000);
    one.agree(COMMON_FEATURES | PACKED);
    let sent = frame(two.mac, one.mac, 90, 3);
    one.write(buffer, &[0; 12]);
    one.write(buffer + 12, &sent);
    let mut descriptor = u64::from(buffer).to_le_bytes().to_vec();
    descriptor.extend(102_u32.to_le_bytes());
    descriptor.extend(5_u16.to_le_bytes());
    one.write(ring, &descriptor);
    let kick = one.queue(1, 6, (ring, 0x3000), [ring, ring + 0x1000, ring + 0x1100]);
    one.call(SET_STATUS, &[15]);
    one.word(ring + 14).store(AVAILABLE, Ordering::SeqCst);
    rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();

    assert_eq!(vec![sent], receive(&mut receiver, 1));
    until("the descriptor", || one.word(ring + 14).load(Ordering::SeqCst) & (AVAILABLE | USED) == AVAILABLE | USED);
    assert_eq!(5, one.word(ring + 12).load(Ordering::SeqCst));
}

/// The control queue takes a number of pairs that there is, and refuses others.
#[test]
fn number_of_pairs_is_chosen_by_the_control_queue() {
    let lab = Lab::new();
    let one = lab.card(1, Transport::Vbus, 4);
    let (ring, buffer) = (0x10000, 0x20000);
    one.agree(COMMON_FEATURES | CONTROL | PAIRS);
    let kick = one.queue(8, 4, (ring, 0x4000), [ring, ring + 0x1000, ring + 0x2000]);
    one.call(SET_STATUS, &[15]);
    for (turn, (pairs, answer)) in [(1, 0), (4, 0), (0, 1), (5, 1)].into_iter().enumerate() {
        one.write(buffer, &[4, 0, pairs, 0, 0xee]);
        one.describe(ring, 0, buffer, 4, [1, 1]);
        one.describe(ring, 1, buffer + 4, 1, [2, 0]);
        one.word(ring + 0x1000 + 4 + 2 * (turn as u32 % 4)).store(0, Ordering::Relaxed);
        one.word(ring + 0x1002).store(turn as u16 + 1, Ordering::SeqCst);
        rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
        until("an answer", || one.word(ring + 0x2002).load(Ordering::SeqCst) == turn as u16 + 1);
        assert_eq!(vec![answer], one.read(buffer + 4, 1), "{pairs} pairs");
    }
}
