//! Frames of a virtio network card's driver that are more than one plain buffer: chains, merged buffers, requests, and what a
//! device that lies makes of them. `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour virtio_long` looks longer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::Ordering;

use crate::switch_guest::{LONG_PAYLOAD_BYTES, long_frame, long_frame_of};
use crate::virtio_card::{Card, Lab, RAM_BYTES, SLOTS, START, frame, until};
use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::error::{Error, Fault};
use vbnet_core::guest::nic::{Receiver, Sender};
use vbnet_core::guest::pieces::Part;
use vbnet_core::net::frame::{FRAME_BYTES_MAX, MacAddress};
use vbnet_core::net::grant::Grant;
use vbnet_core::net::offload::{Features, NO_REQUEST, OFFLOAD_HEADER_BYTES};
use vbnet_core::port::PortCounter;
use vbnet_core::virtio::device::Transport;

type Asked = [u8; OFFLOAD_HEADER_BYTES];
/// What a device that lies writes of one buffer: its number, its bytes, and its header.
type Lie = (u32, u32, [u8; 12]);

/// Where a guest has bytes that it sends from where they lie.
const OWN: u32 = RAM_BYTES as u32 - (1 << 17);
/// The used ring of the receive queue, the first in the block.
const RX_USED: u32 = START + 0x1000;
/// Most bytes of one receive buffer of these drivers, header included.
const BUFFER_BYTES: u32 = 4096 - 64 + 12;

/// A lab with two cards whose drivers ask for these.
fn pair(wanted: [Features; 2], transport: Transport) -> (Lab, Card, (Sender, Receiver), Card, (Sender, Receiver)) {
    let lab = Lab::new();
    let (one, two) = (lab.card(1, transport, 1), lab.card(2, transport, 1));
    let [first, second] = [one.start_with(SLOTS, wanted[0]), two.start_with(SLOTS, wanted[1])];
    (lab, one, first, two, second)
}

fn asked(header: &[u8]) -> &Asked {
    header.try_into().unwrap()
}

/// Puts bytes where the guest has its own.
fn keep(card: &Card, at: u32, bytes: &[u8]) -> Part<'static> {
    card.write(OWN + at, bytes);
    Part::Place { offset: OWN + at, length: bytes.len() as u32 }
}

fn send(sender: &mut Sender, request: Option<&[u8]>, parts: &[Part<'_>]) {
    until("room", || sender.stage_long(request.map(asked), parts).unwrap());
    sender.flush().unwrap();
}

/// Waits for `count` frames: each with what it asks for.
fn receive(receiver: &mut Receiver, count: usize) -> Vec<(Vec<u8>, Asked)> {
    let mut found = Vec::new();
    until("frames", || {
        receiver.receive_long(64, |frame, asked| found.push((frame.to_vec(), *asked))).unwrap();
        found.len() >= count
    });
    found
}

fn count(lab: &Lab, card: &Card, counter: PortCounter) -> u64 {
    // What the worker did is counted before it answers.
    lab.fabric.ports().unwrap();
    let wanted = lab.info(card).name;
    let blocks = lab.counters.reader().blocks();
    let label = format!("device={wanted},");
    let block = blocks.iter().find(|block| block.kind == "port" && block.labels.contains(&label)).unwrap();
    block.values[counter as usize]
}

#[test]
fn long_request_crosses_whole_over_each_transport() {
    for (transport, name) in Transport::ALL {
        let (lab, one, (mut sender, _), two, (_, mut receiver)) = pair([Features::ALL; 2], transport);
        let (header, sent) = long_frame_of(MacAddress::new(two.mac), MacAddress::new(one.mac), 60_000);
        let parts = [Part::Bytes(&sent[..54]), keep(&one, 0, &sent[54..30_000]), Part::Bytes(&sent[30_000..])];

        send(&mut sender, Some(&header), &parts);

        let (received, asked) = receive(&mut receiver, 1).remove(0);
        assert!(sent == received && header == asked, "{name}");
        let counted = |card, counter| count(&lab, card, counter);
        assert_eq!(1, counted(&one, PortCounter::TransmitOffloads), "{name}");
        assert_eq!(1, counted(&two, PortCounter::ReceiveOffloads), "{name}");
        until("the sender has its memory back", || sender.pending().unwrap() == 0);
    }
}

#[test]
fn long_request_is_cut_for_a_driver_that_asked_for_nothing() {
    let (lab, one, (mut sender, _), two, (_, mut receiver)) = pair([Features::ALL, Features::NONE], Transport::Vbus);
    let (header, sent) = long_frame(MacAddress::new(two.mac), MacAddress::new(one.mac));

    send(&mut sender, Some(&header), &[Part::Bytes(&sent)]);

    let received = receive(&mut receiver, LONG_PAYLOAD_BYTES.div_ceil(1400));
    let payload: Vec<u8> = received.iter().flat_map(|(frame, _)| frame[54..].to_vec()).collect();
    assert_eq!(&sent[54..], payload);
    assert!(received.iter().all(|(_, asked)| *asked == NO_REQUEST));
    assert_eq!(1, count(&lab, &two, PortCounter::SegmentedFrames));
}

#[test]
fn bytes_are_sent_from_where_they_lie() {
    let (_lab, one, (mut sender, _), two, (_, mut receiver)) = pair([Features::ALL; 2], Transport::Vbus);
    let sent = frame(two.mac, one.mac, 1000, 3);
    let parts = [keep(&one, 0, &sent[..500]), keep(&one, 512, &sent[500..])];

    assert!(sender.stage_long(None, &parts).unwrap());
    keep(&one, 512, &[0xee; 500]);
    sender.flush().unwrap();

    let received = receive(&mut receiver, 1).remove(0).0;
    assert_eq!((&sent[..500], &[0xee; 500][..]), received.split_at(500));
}

/// Descriptors of long frames have their own buffers back, with headers that ask for nothing: twice round the queue, long ones
/// and plain ones by turns, arrives what was sent.
#[test]
fn descriptors_of_a_chain_are_plain_again_when_it_returns() {
    let (_lab, one, (mut sender, _), two, (_, mut receiver)) = pair([Features::ALL; 2], Transport::Vbus);
    for number in 0..20 {
        let (header, long) = long_frame_of(MacAddress::new(two.mac), MacAddress::new(one.mac), 20_000 + number);
        send(&mut sender, Some(&header), &[Part::Bytes(&long[..100]), keep(&one, 0, &long[100..])]);
        let plain: Vec<_> = (0..8).map(|each| frame(two.mac, one.mac, 100 + each, number as u8)).collect();
        assert_eq!(8, sender.send(plain.iter().map(Vec::as_slice)).unwrap());

        let received = receive(&mut receiver, 9);

        assert!((&long, &header[..]) == (&received[0].0, &received[0].1[..]), "{number}");
        let expected = plain.into_iter().map(|frame| (frame, NO_REQUEST));
        assert!(expected.eq(received.into_iter().skip(1)), "{number}");
    }
}

/// Nobody takes frames from a card whose queues were taken back, so there is room for so many of them and no more.
#[test]
fn frame_without_room_is_not_staged_and_nothing_happened() {
    let (_lab, one, (mut sender, _), _two, _other) = pair([Features::ALL; 2], Transport::Vbus);
    one.call(4, &[0]);
    let (header, sent) = long_frame_of(MacAddress::new([2; 6]), MacAddress::new(one.mac), 60_000);

    let staged = (0..5).map(|_| sender.stage_long(Some(asked(&header)), &[Part::Bytes(&sent)]).unwrap());

    assert_eq!(vec![true, true, true, true, false], staged.collect::<Vec<_>>());
    assert!(sender.stage(&frame([2; 6], one.mac, 100, 1)).unwrap(), "four times 15 of 64 descriptors");
}

#[test]
fn frame_of_many_pieces_is_put_together_where_a_chain_would_be_too_long() {
    let lab = Lab::new();
    let (one, two) = (lab.card(1, Transport::Vbus, 1), lab.card(2, Transport::Vbus, 1));
    let ((mut sender, _), (_, mut receiver)) = (one.start_with(4, Features::ALL), two.start_with(4, Features::ALL));
    let sent = frame(two.mac, one.mac, 800, 9);
    let parts: Vec<_> = sent.chunks(100).zip(0..).map(|(chunk, at)| keep(&one, 128 * at, chunk)).collect();

    send(&mut sender, None, &parts);

    assert_eq!(sent, receive(&mut receiver, 1)[0].0);
}

/// However few slots there are, a frame of 64 KiB takes half of them at most.
#[test]
fn longest_frames_cross_with_the_fewest_slots() {
    for slots in [2, 4, 16] {
        let lab = Lab::new();
        let (one, two) = (lab.card(1, Transport::Vbus, 1), lab.card(2, Transport::Vbus, 1));
        let ((mut sender, _), (_, mut receiver)) =
            (one.start_with(slots, Features::ALL), two.start_with(slots, Features::ALL));
        let (header, sent) = long_frame_of(MacAddress::new(two.mac), MacAddress::new(one.mac), 65_495);

        for _ in 0..3 {
            send(&mut sender, Some(&header), &[Part::Bytes(&sent)]);

            assert!(sent == receive(&mut receiver, 1)[0].0, "{slots}");
        }
    }
}

#[test]
fn driver_refuses_what_was_not_agreed_on() {
    let lab = Lab::new();
    let (plain, poor) = (lab.card(1, Transport::Vbus, 1), lab.card_of(2, Transport::Vbus, 1, false));
    let ((mut plain_sender, _), (mut poor_sender, _)) = (plain.start(), poor.start_with(SLOTS, Features::ALL));
    let (header, sent) = long_frame(MacAddress::new([2; 6]), MacAddress::new(plain.mac));
    assert_eq!(&Grant::NOTHING, plain_sender.grant());
    assert_eq!(&Grant { is_scattered: true, is_merged: true, ..Grant::NOTHING }, poor_sender.grant());
    for sender in [&mut plain_sender, &mut poor_sender] {
        let refused = [
            sender.stage_long(None, &[Part::Bytes(&sent)]),
            sender.stage_long(Some(asked(&header)), &[Part::Bytes(&sent[..1000])]),
            sender.stage_long(None, &[Part::Bytes(&sent[..13])]),
            sender.stage_long(None, &[Part::Place { offset: 0, length: 100 }]),
            sender.stage_long(None, &[Part::Place { offset: u32::MAX, length: 100 }]),
        ];
        assert!(refused.iter().all(|answer| matches!(answer, Err(Error::Usage(_)))), "{refused:?}");
    }
}

#[test]
fn plain_driver_puts_pieces_together() {
    let (_lab, one, (mut sender, _), two, (_, mut receiver)) = pair([Features::NONE; 2], Transport::Vbus);
    let sent = frame(two.mac, one.mac, 700, 3);
    let kept = keep(&one, 0, &sent[300..]);

    send(&mut sender, None, &[Part::Bytes(&sent[..300]), kept]);

    assert_eq!(sent, receive(&mut receiver, 1)[0].0);
}

#[test]
fn only_what_was_asked_for_is_agreed_on() {
    let some = Features::CHECKSUM.with(Features::TCP4);
    let cases = [
        (some, some),
        (Features::TCP4, Features::NONE),
        (Features::CHECKSUM.with(Features::ECN), Features::CHECKSUM),
        (Features::ALL, Features::ALL),
    ];
    for (wanted, expected) in cases {
        let lab = Lab::new();
        let card = lab.card(1, Transport::Vbus, 1);
        let (sender, _) = card.start_with(SLOTS, wanted);

        let grant = Grant { takes: expected, gives: expected, is_scattered: true, is_merged: true, pool: None };
        assert_eq!(&grant, sender.grant(), "{wanted:?}");
    }
}

#[test]
fn frames_that_may_be_long_are_not_lent() {
    let lab = Lab::new();
    let (_, mut receiver) = lab.card(1, Transport::Vbus, 1).start_with(SLOTS, Features::ALL);

    assert!(matches!(receiver.hold(1, &mut Vec::new()), Err(Error::Usage(_))));
}

/// Writes used entries as a device would that lies.
fn lie(card: &Card, lies: &[Lie]) {
    for (number, (id, written, header)) in (0..).zip(lies) {
        if *id < SLOTS {
            let place = u32::from_le_bytes(card.read(START + 16 * id, 4).try_into().unwrap());
            card.write(place, header);
        }
        card.write(RX_USED + 4 + 8 * number, &[id.to_le_bytes(), written.to_le_bytes()].concat());
    }
    card.word(RX_USED + 2).store(lies.len() as u16, Ordering::SeqCst);
}

fn header(flags: u8, kind: u8, buffers: u16) -> [u8; 12] {
    let [low, high] = buffers.to_le_bytes();
    [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0, low, high]
}

#[test]
fn each_lie_of_a_device_ends_the_driver_by_name() {
    let full = |id, header| (id, BUFFER_BYTES, header);
    let cases: Vec<(&str, Features, Vec<Lie>)> = vec![
        ("chain_unfinished", Features::ALL, vec![full(0, header(0, 0, 2))]),
        ("chain_unfinished", Features::ALL, vec![full(0, header(0, 0, 3)), full(1, header(0, 0, 1))]),
        ("chain_unfinished", Features::ALL, vec![full(0, header(0, 0, 0)), full(1, header(0, 0, 1))]),
        ("chain_unfinished", Features::ALL, vec![full(0, header(0, 0, u16::MAX))]),
        ("too_long", Features::ALL, vec![(0, BUFFER_BYTES + 1, header(0, 0, 1))]),
        ("too_long", Features::ALL, vec![full(0, header(0, 0, 2)), (1, u32::MAX, header(0, 0, 1))]),
        ("too_long", Features::ALL, (0..17).map(|id| full(id, header(0, 0, 17))).collect()),
        ("too_short", Features::ALL, vec![(0, 11, header(0, 0, 1))]),
        ("index_out_of_range", Features::ALL, vec![full(0, header(0, 0, 2)), full(0, header(0, 0, 2))]),
        ("index_out_of_range", Features::ALL, vec![full(0, header(0, 0, 2)), full(SLOTS, header(0, 0, 1))]),
        ("unknown_flags", Features::ALL, vec![full(0, header(4, 0, 1))]),
        ("unknown_flags", Features::ALL, vec![full(0, header(1, 9, 1))]),
        ("unknown_flags", Features::CHECKSUM, vec![full(0, header(1, 1, 1))]),
        ("unknown_flags", Features::CHECKSUM.with(Features::TCP4), vec![full(0, header(1, 0x81, 1))]),
    ];
    for (reason, wanted, lies) in cases {
        let lab = Lab::new();
        let card = lab.card(1, Transport::Vbus, 1);
        let (_sender, mut receiver) = card.start_with(SLOTS, wanted);

        lie(&card, &lies);

        let answer = receiver.receive_long(64, |_, _| panic!("{reason}: a frame of a lie"));
        assert!(matches!(&answer, Err(Error::Peer(fault)) if fault.reason() == reason), "{reason}: {answer:?}");
    }
}

/// As the specification has it: without mergeable buffers the number of buffers says nothing.
#[test]
fn plain_driver_believes_no_header() {
    let lab = Lab::new();
    let card = lab.card(1, Transport::Vbus, 1);
    let (_sender, mut receiver) = card.start();
    lie(&card, &[(0, 112, header(0xff, 0xff, 9))]);
    let mut found = Vec::new();

    receiver.receive_long(64, |frame, asked| found.push((frame.len(), *asked))).unwrap();

    assert_eq!(vec![(100, NO_REQUEST)], found);
}

/// A chain that comes back twice, or whose inner descriptor comes back: both end the driver, and nothing is freed twice.
#[test]
fn chain_that_returns_otherwise_than_it_went_ends_the_driver() {
    for lies in [[1_u32, 1], [0, 0]] {
        let (_lab, one, (mut sender, _), _two, _other) = pair([Features::ALL; 2], Transport::Vbus);
        one.call(4, &[0]);
        let (header, sent) = long_frame(MacAddress::new([2; 6]), MacAddress::new(one.mac));
        for _ in 0..2 {
            assert!(
                sender
                    .stage_long(Some(asked(&header)), &[Part::Bytes(&sent[..54]), keep(&one, 0, &sent[54..])])
                    .unwrap()
            );
        }
        sender.flush().ok();
        // The TX queue is behind the RX queue, which has two pages.
        let used = RX_USED + 0x2000;
        for (number, id) in (0..).zip(lies) {
            one.write(used + 4 + 8 * number, &[id.to_le_bytes(), [0; 4]].concat());
        }
        one.word(used + 2).store(2, Ordering::SeqCst);

        let answer = sender.pending();

        assert!(matches!(answer, Err(Error::Peer(Fault::IndexOutOfRange { .. }))), "{lies:?}: {answer:?}");
    }
}

/// Where pieces begin in a frame, in order.
fn cuts(length: usize) -> impl Strategy<Value = Vec<usize>> {
    vec(0..length, 0..12).prop_map(|mut cuts| {
        cuts.sort_unstable();
        cuts
    })
}

/// Often nearly right.
fn one_lie() -> impl Strategy<Value = Lie> {
    let id = prop_oneof![8 => 0..20_u32, 1 => any::<u32>()];
    let written = prop_oneof![4 => 0..200_u32, 4 => BUFFER_BYTES - 2..=BUFFER_BYTES + 2, 1 => any::<u32>()];
    let buffers = prop_oneof![4 => 0..6_u16, 1 => any::<u16>()];
    let asks = prop_oneof![4 => Just((0, 0)), 1 => (any::<u8>(), any::<u8>())];
    (id, written, asks, buffers)
        .prop_map(|(id, written, (flags, kind), buffers)| (id, written, header(flags, kind, buffers)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However a frame is cut, copied or left where it lies, its bytes arrive once, in order, and so does what it asks for.
    #[test]
    fn every_cut_of_a_frame_arrives_as_that_frame(
        (payload, cuts) in (2000usize..30_000).prop_flat_map(|payload| (Just(payload), cuts(payload))), stays in any::<u16>(),
        slots in prop_oneof![Just(4), Just(16), Just(64)],
    ) {
        let lab = Lab::new();
        let (one, two) = (lab.card(1, Transport::Vbus, 1), lab.card(2, Transport::Vbus, 1));
        let ((mut sender, _), (_, mut receiver)) =
            (one.start_with(slots, Features::ALL), two.start_with(64, Features::ALL));
        let (header, sent) = long_frame_of(MacAddress::new(two.mac), MacAddress::new(one.mac), payload);
        let ends = cuts.iter().copied().chain([sent.len()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let parts: Vec<Part<'_>> = starts.zip(ends).enumerate().map(|(number, (start, end))| {
            if stays >> number & 1 == 1 {
                keep(&one, start as u32 * 2, &sent[start..end])
            } else {
                Part::Bytes(&sent[start..end])
            }
        }).collect();

        send(&mut sender, Some(&header), &parts);

        let (received, asked) = receive(&mut receiver, 1).remove(0);
        prop_assert!(sent == received && header == asked);
        until("all descriptors back", || sender.pending().unwrap() == 0);
    }

    /// Whatever a device writes into used entries and headers, the driver hands over nothing but bytes of its own buffers, or
    /// says that the device lies.
    #[test]
    fn receiver_survives_whatever_a_device_writes(lies in vec(one_lie(), 1..20)) {
        let lab = Lab::new();
        let card = lab.card(1, Transport::Vbus, 1);
        let (_sender, mut receiver) = card.start_with(SLOTS, Features::ALL);
        lie(&card, &lies);

        let (mut frames, mut longest) = (0, 0);
        let answer = receiver.receive_long(64, |frame, _| (frames, longest) = (frames + 1, longest.max(frame.len())));

        prop_assert!(frames <= lies.len() && longest <= FRAME_BYTES_MAX as usize);
        match answer {
            Ok(found) => prop_assert_eq!(frames, found as usize),
            Err(error) => prop_assert!(matches!(error, Error::Peer(_)), "{}", error),
        }
    }
}
