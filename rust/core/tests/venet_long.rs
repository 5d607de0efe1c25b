//! Frames of venet guests that are more than one plain slot: pieces, buffers, requests, and what a hostile guest makes of
//! them. The cards of most tests are the driver's own halves; hostile ones write their rings by hand.
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour venet_long` looks longer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use crate::switch_guest::{LONG_PAYLOAD_BYTES, Lab, SWITCH, Shape, eventually, frame, long_frame, mac};
use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::error::{Error, Fault};
use vbnet_core::fabric::{Fabric, VenetParams, VenetQueues};
use vbnet_core::guest::venet::{self, Part, Receiver, Sender, VenetLayout};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::net::grant::{Grant, PIECES_MAX, REQUEST_BYTES};
use vbnet_core::net::offload::{Features, OFFLOAD_HEADER_BYTES};
use vbnet_core::port::{PortCounter, PortPart};
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::ring::Descriptor;

const MORE: u8 = 1;
const REQUEST: u8 = 2;
const POOLED: u8 = 4;
/// Where the guest has bytes that it sends from where they lie, in bytes from the end of its RAM.
const OWN_BYTES: u32 = 1 << 17;

fn everything() -> Grant {
    Grant { takes: Features::ALL, gives: Features::ALL, is_scattered: true, is_merged: true, pool: None }
}

fn only_pieces() -> Grant {
    Grant { is_scattered: true, is_merged: true, ..Grant::default() }
}

/// A driver with its memory.
struct Card {
    ram: Arc<Ram>,
    sender: Sender,
    receiver: Receiver,
    own: u32,
}

impl Card {
    fn join(fabric: &Fabric, name: &str, mtu: u32, grant: Grant, has_pool: bool) -> Self {
        let layout = VenetLayout::plan_long(0, mtu, 64, 64, &grant, has_pool).unwrap();
        let ram = Ram::create(name, layout.ram_bytes() + u64::from(OWN_BYTES)).unwrap();
        let (mut sender, mut receiver) = venet::open(&ram, layout).unwrap();
        let grant = Grant { pool: layout.pool(), ..grant };
        sender.set_grant(grant).unwrap();
        receiver.set_grant(&grant);
        let bells: Vec<Doorbell> = (0..4).map(|_| Doorbell::create().unwrap()).collect();
        let shared = |index: usize| Doorbell::from_fd(rustix::io::dup(&bells[index]).unwrap());
        sender.connect(venet::Bells { kick: shared(0), call: shared(1) });
        receiver.connect(venet::Bells { kick: shared(2), call: shared(3) });
        let queues = VenetQueues {
            guest: String::new(),
            ram: Ram::open(rustix::io::dup(&*ram).unwrap(), u64::MAX).unwrap(),
            tx: (layout.tx_offset, layout.tx_bytes()),
            rx: (layout.rx_offset, layout.rx_bytes()),
            tx_kick: shared(0),
            tx_call: shared(1).into(),
            rx_kick: shared(2),
            rx_call: shared(3).into(),
        };
        let params = VenetParams { mtu, grant, ..VenetParams::default() };
        fabric.port_add_venet(SWITCH, name, queues, params).unwrap();
        let own = layout.ram_bytes() as u32;
        Self { ram, sender, receiver, own }
    }

    /// Puts bytes where the guest has its own.
    fn keep(&self, at: u32, bytes: &[u8]) -> Part<'static> {
        let offset = self.own + at;
        let place = self.ram.at(offset, bytes.len()).unwrap();
        // SAFETY: in bounds, and behind everything that belongs to the device.
        unsafe { bytes.as_ptr().copy_to_nonoverlapping(place.as_ptr(), bytes.len()) };
        Part::Place { offset, length: bytes.len() as u32 }
    }

    fn send(&mut self, request: Option<&[u8]>, parts: &[Part<'_>]) {
        let request = request.map(|request| <&[u8; OFFLOAD_HEADER_BYTES]>::try_from(request).unwrap());
        eventually(|| self.sender.stage_long(request, parts).unwrap());
        self.sender.flush().unwrap();
    }

    /// Waits for `count` frames: each with what it asks for.
    fn receive(&mut self, count: usize) -> Vec<(Vec<u8>, [u8; OFFLOAD_HEADER_BYTES])> {
        let mut found = Vec::new();
        eventually(|| {
            self.receiver.receive_long(64, |frame, asked| found.push((frame.to_vec(), *asked))).unwrap();
            found.len() >= count
        });
        found
    }
}

/// A switch, the counters of its ports, and the cards on it.
struct Net {
    lab: Lab,
    cards: Vec<Card>,
}

impl Net {
    fn new(mtu: u32, cards: &[(Grant, bool)]) -> Self {
        let counters = Arc::new(CounterFile::create(None, 1 << 20).unwrap());
        let fabric = Fabric::new(counters.clone(), 1).unwrap();
        fabric.switch_create(SWITCH, 300).unwrap();
        let join = |(index, &(grant, has_pool)): (usize, &(Grant, bool))| {
            Card::join(&fabric, &format!("c{index}"), mtu, grant, has_pool)
        };
        let cards = cards.iter().enumerate().map(join).collect();
        Self { lab: Lab { counters, fabric, guests: Vec::new(), ids: Vec::new() }, cards }
    }

    fn count(&self, card: usize, counter: PortCounter) -> u64 {
        self.lab.barrier();
        self.lab.count_of(&format!("c{card}"), counter)
    }
}

#[test]
fn pieces_that_lie_apart_arrive_as_one_frame() {
    for has_pool in [false, true] {
        let mut net = Net::new(1500, &[(only_pieces(), has_pool), (Grant::default(), false)]);
        let sent = frame(mac(9), mac(1), 1000, 3);
        let card = &mut net.cards[0];
        let parts = [card.keep(0, &sent[..14]), Part::Bytes(&sent[14..400]), card.keep(4000, &sent[400..])];

        card.send(None, &parts);

        assert_eq!(sent, net.cards[1].receive(1)[0].0, "pool: {has_pool}");
        assert_eq!(1, net.count(0, PortCounter::GatheredFrames));
        assert_eq!(1, net.count(0, PortCounter::TransmitFrames));
        eventually(|| net.cards[0].sender.pending().unwrap() == 0);
    }
}

#[test]
fn bytes_are_sent_from_where_they_lie() {
    let mut net = Net::new(1500, &[(only_pieces(), false), (Grant::default(), false)]);
    let sent = frame(mac(9), mac(1), 1000, 3);
    let parts = [net.cards[0].keep(0, &sent[..500]), net.cards[0].keep(512, &sent[500..])];

    assert!(net.cards[0].sender.stage_long(None, &parts).unwrap());
    net.cards[0].keep(512, &[0xee; 500]);
    net.cards[0].sender.flush().unwrap();

    let received = net.cards[1].receive(1).remove(0).0;
    assert_eq!((&sent[..500], &[0xee; 500][..]), received.split_at(500));
}

#[test]
fn pieces_that_overlap_are_sent_twice() {
    let mut net = Net::new(1500, &[(only_pieces(), false), (Grant::default(), false)]);
    let sent = frame(mac(9), mac(1), 100, 3);
    let whole = net.cards[0].keep(0, &sent);
    let Part::Place { offset, .. } = whole else { unreachable!() };
    let again = Part::Place { offset: offset + 50, length: 50 };

    net.cards[0].send(None, &[whole, again]);

    assert_eq!([&sent[..], &sent[50..]].concat(), net.cards[1].receive(1)[0].0);
}

#[test]
fn long_request_arrives_whole_where_it_can_be_done() {
    let mut net = Net::new(1500, &[(everything(), true), (everything(), false)]);
    let (header, sent) = long_frame(mac(9), mac(1));

    net.cards[0].send(Some(&header), &[Part::Bytes(&sent)]);

    let (received, asked) = net.cards[1].receive(1).remove(0);
    assert_eq!((&sent, &header[..]), (&received, &asked[..]));
    assert_eq!(1, net.count(0, PortCounter::TransmitOffloads));
    assert_eq!(1, net.count(1, PortCounter::ReceiveOffloads));
}

#[test]
fn long_request_is_cut_for_a_card_that_was_granted_nothing() {
    let mut net = Net::new(1500, &[(everything(), false), (Grant::default(), false)]);
    let (header, sent) = long_frame(mac(9), mac(1));
    let whole = net.cards[0].keep(0, &sent);

    net.cards[0].send(Some(&header), &[whole]);

    let received = net.cards[1].receive(LONG_PAYLOAD_BYTES.div_ceil(1400));
    let payload: Vec<u8> = received.iter().flat_map(|(frame, _)| frame[54..].to_vec()).collect();
    assert_eq!(&sent[54..], payload);
    assert_eq!(1, net.count(1, PortCounter::SegmentedFrames));
}

#[test]
fn longest_frame_of_any_mtu_crosses_in_both_directions() {
    for mtu in [1500, 9000, 65535] {
        for has_pool in [false, true] {
            let mut net = Net::new(mtu, &[(everything(), has_pool), (everything(), has_pool)]);
            for (from, to) in [(0, 1), (1, 0)] {
                let sent = frame(mac(9), mac(1), mtu as usize + 18, 7);

                net.cards[from].send(None, &[Part::Bytes(&sent[..14]), Part::Bytes(&sent[14..])]);

                let (received, asked) = net.cards[to].receive(1).remove(0);
                assert!(sent == received && asked == [0; OFFLOAD_HEADER_BYTES], "{mtu} {from} {has_pool}");
            }
            assert_eq!(0, net.count(1, PortCounter::MergedFrames), "buffers are made for the MTU");
        }
    }
}

#[test]
fn frame_longer_than_a_buffer_fills_the_next_ones_too() {
    let params = VenetParams { mtu: 9000, grant: only_pieces(), ..VenetParams::default() };
    let mut lab = Lab::with(2, Shape::SMALL, params);
    let sent = frame(mac(9), mac(1), 9000, 3);
    // Twelve of them take 60 of 64 buffers; the next one finds four, which stay for the small frame behind it.
    for _ in 0..13 {
        lab.guests[0].drain();
        for (index, piece) in sent.chunks(1800).enumerate() {
            let offset = Shape::SMALL.tx_buffer(index as u32);
            lab.guests[0].write(offset, piece);
            assert!(lab.guests[0].tx.stage(slot(offset, piece.len() as u32, if index == 4 { 0 } else { MORE })));
        }
        lab.guests[0].publish();
    }
    lab.guests[0].send(&sent[..100]);
    lab.settle();

    let receiver = &mut lab.guests[1];
    assert_eq!(61, receiver.rx.completed().unwrap());
    let returned: Vec<_> = (0..5).map(|ahead| receiver.rx.peek(ahead)).collect();
    assert_eq!([MORE, MORE, MORE, MORE, 0], [0, 1, 2, 3, 4].map(|index: usize| returned[index].flags));
    let received: Vec<_> = (0..5).flat_map(|_| receiver.receive_nowait().unwrap()).collect();
    assert_eq!(sent, received);
    assert_eq!([12, 60], [PortCounter::MergedFrames, PortCounter::MergedBuffers].map(|counter| lab.count(1, counter)));
    assert_eq!(
        [13, 1],
        [PortCounter::ReceiveFrames, PortCounter::ReceiveDropNoRoom].map(|counter| lab.count(1, counter))
    );
    assert_eq!(13, lab.count(0, PortCounter::GatheredFrames));
}

#[test]
fn frame_too_long_for_its_buffer_is_dropped_where_buffers_are_not_merged() {
    let gives = Grant { gives: Features::ALL, ..Grant::default() };
    let mut net = Net::new(1500, &[(everything(), false), (gives, false)]);
    let (header, sent) = long_frame(mac(9), mac(1));

    net.cards[0].send(Some(&header), &[Part::Bytes(&sent)]);
    eventually(|| net.cards[0].sender.pending().unwrap() == 0);

    assert_eq!(1, net.count(1, PortCounter::ReceiveDropBufferTooSmall));
}

#[test]
fn request_that_cannot_be_done_drops_the_frame_and_nothing_else() {
    let (header, sent) = long_frame(mac(9), mac(1));
    let with = |at: usize, byte: u8| {
        let mut changed = header.clone();
        changed[at] = byte;
        changed
    };
    let zero_segment = [&header[..4], &[0, 0], &header[6..]].concat();
    let beyond = [&header[..6], &[0xff, 0xff], &header[8..]].concat();
    let cases = [
        (with(0, 8), PortCounter::TransmitDropOffloadFlag),
        (with(1, 9), PortCounter::TransmitDropOffloadKind),
        (with(1, 4), PortCounter::TransmitDropOffloadHeaders),
        (zero_segment, PortCounter::TransmitDropOffloadSize),
        (beyond, PortCounter::TransmitDropOffloadChecksum),
        (with(9, 0xff), PortCounter::TransmitDropOffloadChecksum),
    ];
    for (header, counter) in cases {
        let mut net = Net::new(1500, &[(everything(), false), (everything(), false)]);
        let after = frame(mac(9), mac(1), 100, 5);

        net.cards[0].send(Some(&header), &[Part::Bytes(&sent)]);
        net.cards[0].send(None, &[Part::Bytes(&after)]);

        assert_eq!(after, net.cards[1].receive(1)[0].0);
        assert_eq!(1, net.count(0, counter), "{header:?}");
        assert!(net.lab.fabric.take_faults().is_empty());
    }
}

#[test]
fn driver_refuses_what_was_not_granted() {
    let mut net = Net::new(1500, &[(Grant::default(), false)]);
    let (header, sent) = long_frame(mac(9), mac(1));
    let request = <&[u8; OFFLOAD_HEADER_BYTES]>::try_from(&header[..]).unwrap();
    let card = &mut net.cards[0];
    let refused = [
        card.sender.stage_long(None, &[Part::Bytes(&sent)]),
        card.sender.stage_long(Some(request), &[Part::Bytes(&sent[..1000])]),
        card.sender.stage_long(None, &[Part::Bytes(&sent[..13])]),
        card.sender.stage_long(None, &[Part::Place { offset: 0, length: 100 }]),
        card.sender.stage_long(None, &[Part::Place { offset: u32::MAX, length: 100 }]),
    ];

    assert!(refused.iter().all(|answer| matches!(answer, Err(Error::Usage(_)))), "{refused:?}");
}

#[test]
fn driver_without_pieces_sends_them_together() {
    let mut net = Net::new(1500, &[(Grant::default(), false), (Grant::default(), false)]);
    let sent = frame(mac(9), mac(1), 700, 3);
    let kept = net.cards[0].keep(0, &sent[300..]);

    net.cards[0].send(None, &[Part::Bytes(&sent[..300]), kept]);

    assert_eq!(sent, net.cards[1].receive(1)[0].0);
    assert_eq!(0, net.count(0, PortCounter::GatheredFrames));
}

/// A lab of bare rings, the last guest of which was granted everything, its pool at the last two pages of its MiB.
fn hostile_lab() -> Lab {
    const POOL: (u32, u32) = ((1 << 20) - 8192, 8192);
    let mut lab = Lab::new(2);
    let mut hostile = crate::switch_guest::Guest::new(Shape::SMALL);
    hostile.ram = Ram::create("hostile", 1 << 20).unwrap();
    let ring = |at: u32| vbnet_core::shm::ring::RingMemory::format(&hostile.ram, at, hostile.shape.slots).unwrap();
    hostile.tx = vbnet_core::shm::ring::Producer::new(ring(hostile.shape.tx_ring().0));
    hostile.rx = vbnet_core::shm::ring::Producer::new(ring(hostile.shape.rx_ring().0));
    let grant = Grant { pool: Some(POOL), ..everything() };
    let params = VenetParams { grant, ..VenetParams::default() };
    let id = lab.fabric.port_add_venet(SWITCH, "g2", hostile.queues(), params).unwrap();
    lab.ids.push(id);
    lab.guests.push(hostile);
    lab
}

fn slot(offset: u32, length: u32, flags: u8) -> Descriptor {
    Descriptor { offset, length, flags }
}

/// Words of a description at the pool's start, and the slot that names so many of them.
fn described(lab: &Lab, pieces: &[Descriptor]) -> Descriptor {
    let words: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_word().to_le_bytes()).collect();
    lab.guests[2].write((1 << 20) - 8192, &words);
    slot(0, words.len() as u32, POOLED)
}

fn assert_ends(lab: &mut Lab, slots: &[Descriptor], reason: &str) {
    for slot in slots {
        assert!(lab.guests[2].tx.stage(*slot));
    }

    lab.guests[2].publish();

    let event = lab.fault();
    assert_eq!((lab.ids[2], PortPart::Transmit, reason), (event.port, event.part, event.reason), "{}", event.text);
    let first = PortCounter::FaultTailOutOfRange as usize;
    let index = first + Fault::REASONS.iter().position(|&known| known == reason).unwrap();
    let blocks = lab.counters.reader().blocks();
    let block = blocks.iter().find(|block| block.kind == "port" && block.labels.contains("device=g2,")).unwrap();
    assert_eq!(1, block.values[index]);
    lab.assert_passes(0, 1);
}

#[test]
fn pieces_that_break_a_rule_end_the_queue() {
    let at = Shape::SMALL.tx_buffer(0);
    let size = 1 << 20;
    let good = slot(at, 100, MORE);
    let cases: Vec<(&str, Vec<Descriptor>)> = vec![
        ("zero_length", vec![good, slot(at, 0, 0)]),
        ("zero_length", vec![slot(at, 0, MORE), slot(at, 100, 0)]),
        ("outside_region", vec![good, slot(size - 50, 100, 0)]),
        ("overlaps_control", vec![good, slot(100, 100, 0)]),
        ("too_long", vec![slot(at, 40000, MORE), slot(at, 40000, 0)]),
        ("too_short", vec![slot(at, 7, MORE), slot(at, 6, 0)]),
        ("too_short", vec![slot(at, REQUEST_BYTES + 13, REQUEST)]),
        ("too_short", vec![slot(at, 5, REQUEST)]),
        ("unknown_flags", vec![good, slot(at, 100, REQUEST)]),
        ("unknown_flags", vec![good, slot(at, 100, POOLED)]),
        ("unknown_flags", vec![slot(at, 100, 8)]),
        ("unknown_flags", vec![good, slot(at, 100, 0x80)]),
        ("chain_unfinished", vec![good]),
        ("chain_unfinished", vec![slot(at, 100, 0), good, good]),
    ];
    for (reason, slots) in cases {
        let mut lab = hostile_lab();
        assert_ends(&mut lab, &slots, reason);
    }
}

#[test]
fn descriptions_that_break_a_rule_end_the_queue() {
    let at = Shape::SMALL.tx_buffer(0);
    let piece = slot(at, 100, 0);
    let cases: Vec<(&str, Vec<Descriptor>, Descriptor)> = vec![
        ("zero_length", vec![], slot(0, 0, POOLED)),
        ("outside_region", vec![], slot(8192 - 8, 16, POOLED)),
        ("outside_region", vec![], slot(u32::MAX - 7, 16, POOLED)),
        ("bad_size", vec![], slot(4, 16, POOLED)),
        ("bad_size", vec![], slot(0, 12, POOLED)),
        ("chain_too_long", vec![], slot(0, 8 * (PIECES_MAX as u32 + 1), POOLED)),
        ("unknown_flags", vec![piece], slot(0, 8, POOLED | MORE)),
        ("unknown_flags", vec![piece, slot(at, 100, MORE)], slot(0, 16, POOLED)),
        ("unknown_flags", vec![slot(0, 8, POOLED)], slot(0, 8, POOLED)),
        ("zero_length", vec![piece, slot(at, 0, 0)], slot(0, 16, POOLED)),
        ("outside_region", vec![piece, slot(1 << 20, 9, 0)], slot(0, 16, POOLED)),
        ("too_short", vec![slot(at, 13, 0)], slot(0, 8, POOLED)),
    ];
    for (reason, words, head) in cases {
        let mut lab = hostile_lab();
        described(&lab, &words);
        assert_ends(&mut lab, &[head], reason);
    }
}

#[test]
fn chain_of_more_pieces_than_there_may_be_ends_the_queue() {
    let counters = Arc::new(CounterFile::create(None, 1 << 20).unwrap());
    let fabric = Fabric::new(counters.clone(), 1).unwrap();
    fabric.switch_create(SWITCH, 300).unwrap();
    let shape = Shape { slots: 128, ..Shape::SMALL };
    let mut guest = crate::switch_guest::Guest::new(shape);
    let params = VenetParams { grant: only_pieces(), ..VenetParams::default() };
    let id = fabric.port_add_venet(SWITCH, "g0", guest.queues(), params).unwrap();
    let lab = Lab { counters, fabric, guests: Vec::new(), ids: vec![id] };
    for index in 0..=PIECES_MAX as u32 {
        assert!(guest.tx.stage(slot(shape.tx_buffer(index), 20, if index == PIECES_MAX as u32 { 0 } else { MORE })));
    }

    guest.publish();

    assert_eq!("chain_too_long", lab.fault().reason);
}

#[test]
fn flags_that_were_not_granted_end_the_queue() {
    for flags in [MORE, REQUEST, POOLED] {
        let mut lab = Lab::new(3);
        let at = Shape::SMALL.tx_buffer(0);

        assert_ends(&mut lab, &[slot(at, 100, flags), slot(at, 100, 0)], "unknown_flags");
    }
}

#[test]
fn request_for_more_than_was_granted_ends_the_queue() {
    let takes = Grant { takes: Features::CHECKSUM, ..Grant::default() };
    let mut lab = Lab::with(
        3,
        Shape { buffer_bytes: 8192, ..Shape::SMALL },
        VenetParams { grant: takes, ..VenetParams::default() },
    );
    let (header, sent) = long_frame(mac(9), mac(2));
    let whole = [&header[..], &[0; 6], &sent].concat();
    let at = lab.guests[2].shape.tx_buffer(0);
    lab.guests[2].write(at, &whole);

    assert_ends(&mut lab, &[slot(at, whole.len() as u32, REQUEST)], "unknown_flags");
}

#[test]
fn pool_in_an_impossible_place_is_refused() {
    let lab = Lab::new(1);
    for pool in [(4, 4096), ((1 << 20) - 8, 4096), (u32::MAX - 7, 4096), (8192, 0)] {
        let guest = crate::switch_guest::Guest::new(Shape::SMALL);
        let params = VenetParams { grant: Grant { pool: Some(pool), ..everything() }, ..VenetParams::default() };

        let answer = lab.fabric.port_add_venet(SWITCH, "wrong", guest.queues(), params);

        assert!(matches!(answer, Err(Error::Peer(_))), "{pool:?}: {answer:?}");
    }
}

#[test]
fn receiver_believes_no_flags_that_were_not_granted() {
    let layout = VenetLayout::plan(0, 1500, 4, 4).unwrap();
    let ram = Ram::create("lied to", layout.ram_bytes()).unwrap();
    let (_, mut receiver) = venet::open(&ram, layout).unwrap();
    let ring = vbnet_core::shm::ring::RingMemory::attach(&ram, layout.rx_offset, layout.rx_bytes()).unwrap();
    let mut host = vbnet_core::shm::ring::Consumer::new(ring);
    assert_eq!(4, host.refresh().unwrap());
    let posted = host.peek(0);
    host.complete(0, Descriptor { flags: MORE, ..posted });
    host.advance(1);
    host.release();

    let answer = receiver.receive(4, |_| panic!("a frame that nobody granted"));

    assert!(matches!(answer, Err(Error::Peer(Fault::ForeignCompletion { .. }))), "{answer:?}");
}

/// What a host that lies may complete, of a card that was granted merging.
fn lies() -> impl Strategy<Value = Vec<(u32, u32, u8)>> {
    vec((0..3u32, prop_oneof![0..20u32, 1500..5000u32, Just(u32::MAX)], any::<u8>()), 1..4)
}

/// Where pieces begin in a frame, in order.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(any::<prop::sample::Index>(), 0..12).prop_map(|cuts| {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(1500)).collect();
        cuts.sort_unstable();
        cuts
    })
}

/// One slot of garbage that often looks like something.
fn garbage() -> impl Strategy<Value = Descriptor> {
    let shape = Shape::SMALL;
    let offset = prop_oneof![
        4 => Just(shape.tx_buffer(0)),
        2 => (0..16u32).prop_map(|word| word * 8),
        1 => any::<u32>(),
    ];
    let length = prop_oneof![4 => 14..200u32, 2 => (0..70u32).prop_map(|words| words * 8), 1 => 0..(1u32 << 24)];
    let flags = prop_oneof![8 => 0..8u8, 1 => any::<u8>()];
    (offset, length, flags).prop_map(|(offset, length, flags)| Descriptor { offset, length, flags })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However a frame is cut, copied or left where it lies, its bytes arrive once, in order.
    #[test]
    fn every_cut_of_a_frame_arrives_as_that_frame(
        length in 14usize..1500, cuts in cuts(), stays in any::<u16>(), has_pool in any::<bool>(), seed in any::<u8>(),
    ) {
        let mut net = Net::new(1500, &[(only_pieces(), has_pool), (only_pieces(), false)]);
        let sent = frame(mac(9), mac(1), length, seed);
        let ends: Vec<usize> = cuts.iter().map(|&cut| cut.min(length)).chain([length]).collect();
        let starts = [0].into_iter().chain(ends.iter().copied());
        let parts: Vec<Part<'_>> = starts.zip(&ends).enumerate().map(|(number, (start, &end))| {
            if stays >> number & 1 == 1 && start != end {
                net.cards[0].keep(start as u32 * 2, &sent[start..end])
            } else {
                Part::Bytes(&sent[start..end])
            }
        }).collect();

        net.cards[0].send(None, &parts);

        prop_assert_eq!(&sent, &net.cards[1].receive(1)[0].0);
    }

    /// Whatever a guest writes into slots, pool and memory, its neighbours go on.
    #[test]
    fn garbage_in_slots_and_pool_hurts_nobody_else(
        slots in vec(garbage(), 1..60), words in vec(garbage(), 0..64), bytes in vec(any::<u8>(), 512),
    ) {
        let mut lab = hostile_lab();
        described(&lab, &words);
        lab.guests[2].write(Shape::SMALL.tx_buffer(0), &bytes);
        for slot in slots {
            prop_assert!(lab.guests[2].tx.stage(slot));
        }

        lab.guests[2].publish();

        // What makes a frame by chance is flooded, and may come first.
        for (from, to) in [(0, 1), (1, 0)] {
            let sent = frame(MacAddress::BROADCAST, mac(0xf0 + from as u8), 200, 77);
            lab.guests[from].send(&sent);
            while lab.guests[to].receive() != sent {}
        }
    }

    /// Whatever a host completes, the driver hands over nothing but bytes of its own buffers, or says that the host lies.
    #[test]
    fn receiver_survives_whatever_a_host_completes(lies in lies()) {
        let layout = VenetLayout::plan_long(0, 1500, 4, 4, &everything(), false).unwrap();
        let ram = Ram::create("lied to", layout.ram_bytes()).unwrap();
        let (_, mut receiver) = venet::open(&ram, layout).unwrap();
        receiver.set_grant(&everything());
        let ring = vbnet_core::shm::ring::RingMemory::attach(&ram, layout.rx_offset, layout.rx_bytes()).unwrap();
        let mut host = vbnet_core::shm::ring::Consumer::new(ring);
        prop_assert_eq!(4, host.refresh().unwrap());
        for (ahead, &(other, length, flags)) in lies.iter().enumerate() {
            let offset = host.peek((ahead as u32 + other.saturating_sub(1)) % 4).offset;
            host.complete(ahead as u32, Descriptor { offset, length, flags });
        }
        host.advance(lies.len() as u32);
        host.release();

        let mut longest = 0;
        match receiver.receive_long(64, |frame, _| longest = longest.max(frame.len())) {
            Ok(frames) => prop_assert!(frames as usize <= lies.len()),
            Err(error) => prop_assert!(matches!(error, Error::Peer(_)), "{}", error),
        }
        prop_assert!(longest <= 4 * 4096);
    }
}
