//! Emulated cards on a switch: drivers and devices whole, with frames between them and a guest on rings.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use crate::switch_guest::{DEADLINE, Lab, SWITCH, Shape, eventually, frame, mac};
use proptest::prelude::*;
use vbnet_core::error::{Error, Result};
use vbnet_core::fabric::{NicParts, PortId, VenetParams};
use vbnet_core::fastcall::FastHandler;
use vbnet_core::guest::card::{Registers, e1000, rtl8139};
use vbnet_core::guest::nic::{Sender, Stage};
use vbnet_core::guest::pieces::Part;
use vbnet_core::net::frame::MacAddress;
use vbnet_core::net::grant::Grant;
use vbnet_core::nic::card::{Card, CardCounter, Traps, function};
use vbnet_core::nic::e1000::{E1000, RCTL_EN, RCTL_UPE, TCTL_EN, register as intel};
use vbnet_core::nic::rtl8139::{CR_RE, CR_TE, Rtl8139, register as realtek};
use vbnet_core::nic::{Dma, Model, RamDma};
use vbnet_core::port::PortCounter;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::region::Ram;
use vbnet_core::signals::apic::{ACKNOWLEDGE, END};
use vbnet_core::signals::{Caller, SignalTable};

/// Registers in the same process: what a fastcall would carry.
#[derive(Clone)]
struct Here(Arc<Traps>);

impl Here {
    fn call(&self, function: u32, words: &[u32]) -> (usize, [u8; 8]) {
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut answer = [0; 8];
        let length = self.0.call(function, &data, &mut answer).unwrap();
        (length, answer)
    }
}

impl Registers for Here {
    fn read(&self, offset: u32, bytes: u32) -> Result<u32> {
        let (_, [a, b, c, d, ..]) = self.call(function::READ, &[offset, bytes]);
        Ok(u32::from_le_bytes([a, b, c, d]))
    }

    fn write(&self, offset: u32, bytes: u32, value: u32) -> Result<()> {
        self.call(function::WRITE, &[offset, bytes, value]);
        Ok(())
    }

    fn acknowledge(&self) -> Result<bool> {
        Ok(self.call(ACKNOWLEDGE, &[0]).0 != 0)
    }

    fn end(&self) -> Result<bool> {
        Ok(self.call(END, &[0]).1[0] != 0)
    }
}

/// One card of a guest, on the lab's switch.
struct Machine {
    ram: Arc<Ram>,
    traps: Here,
    line: Doorbell,
    port: PortId,
    _signals: SignalTable,
}

fn shared(bell: &Doorbell) -> Doorbell {
    Doorbell::from_fd(rustix::io::dup(bell).unwrap())
}

impl Machine {
    fn new(lab: &Lab, name: &str, model: Box<dyn Model>, params: VenetParams) -> Self {
        let ram = Ram::create(name, 4 << 20).unwrap();
        let block = lab.counters.allocate("nic", &format!("device={name}"), CardCounter::COUNT).unwrap();
        let label = model.name();
        let card = Card::new(model, Box::new(RamDma::new(ram.clone())), block).unwrap();
        let line = Doorbell::create().unwrap();
        let signals = SignalTable::new(lab.counters.clone()).unwrap();
        let wire = signals.create(name, "eth0", "line", 0).unwrap();
        let traps = Arc::new(Traps::new(card.clone()));
        let apics = traps.connect(shared(&line));
        signals.route_to_apic(wire.id(), apics.vcpu(0).unwrap(), 0).unwrap();
        let parts = NicParts { guest: name.into(), model: label, card, line: Caller::Line(wire) };
        let port = lab.fabric.port_add_nic(SWITCH, name, parts, params).unwrap();
        Self { ram, traps: Here(traps), line, port, _signals: signals }
    }

    fn registers(&self) -> [Box<dyn Registers>; 2] {
        [Box::new(self.traps.clone()), Box::new(self.traps.clone())]
    }

    fn e1000(&self, mtu: u32) -> (MacAddress, e1000::Sender, e1000::Receiver) {
        let layout = e1000::E1000Layout::plan(0, mtu, 64, 64).unwrap();
        let setup = e1000::E1000Setup::default();
        e1000::open(&self.ram, layout, self.registers(), shared(&self.line), setup).unwrap()
    }

    fn rtl8139(&self) -> (MacAddress, rtl8139::Sender, rtl8139::Receiver) {
        let layout = rtl8139::Rtl8139Layout::plan(0, 1500).unwrap();
        rtl8139::open(&self.ram, layout, self.registers(), shared(&self.line), false).unwrap()
    }
}

fn params(own: u8, mtu: u32) -> VenetParams {
    VenetParams { mac: mac(own), mtu, ..VenetParams::default() }
}

/// What both drivers have in common, as tests use it.
macro_rules! receive_one {
    ($receiver:expr) => {{
        let mut found = Vec::new();
        let mut rounds = 0;
        while found.is_empty() {
            $receiver.receive(1, |frame| found.push(frame.to_vec())).unwrap();
            assert!(rounds < 100 && (!found.is_empty() || $receiver.wait(Duration::ZERO, Some(DEADLINE)).unwrap()));
            rounds += 1;
        }
        found.remove(0)
    }};
}

macro_rules! send_one {
    ($sender:expr, $frame:expr) => {{
        while !$sender.stage_with($frame.len(), |room| room.copy_from_slice(&$frame)).unwrap() {
            assert!($sender.wait(Some(DEADLINE)).unwrap());
        }
        $sender.flush().unwrap();
    }};
}

/// A frame as it is after a wire of at least 60 bytes.
fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(60), 0);
    frame
}

#[test]
fn e1000_sends_and_receives_frames_of_any_length() {
    let mut lab =
        Lab::with(1, Shape { slots: 16, buffer_bytes: 9100 }, VenetParams { mtu: 9000, ..VenetParams::default() });
    let machine = Machine::new(&lab, "intel", Box::new(E1000::new(mac(9))), params(9, 9000));
    let (address, mut sender, mut receiver) = machine.e1000(9000);
    assert_eq!((mac(9), true), (address, receiver.is_link_up().unwrap()));
    for length in [14, 59, 60, 61, 64, 1000, 1514, 1518, 2044, 2048, 4096, 9018] {
        let (out, back) = (frame(mac(1), mac(9), length, 1), frame(mac(9), mac(1), length, 2));

        send_one!(sender, out);
        assert_eq!(padded(out), lab.guests[0].receive(), "out, {length}");
        lab.guests[0].send(&back);
        assert_eq!(padded(back), receive_one!(receiver), "back, {length}");

        lab.guests[0].post(1);
    }
}

#[test]
fn rtl8139_sends_and_receives_frames_of_any_length_round_its_ring() {
    let mut lab = Lab::new(1);
    let machine = Machine::new(&lab, "realtek", Box::new(Rtl8139::new(mac(9))), params(9, 1500));
    let (address, mut sender, mut receiver) = machine.rtl8139();
    assert_eq!((mac(9), true), (address, receiver.is_link_up().unwrap()));
    for (number, length) in [14, 60, 61, 62, 63, 1000, 1514, 1518].into_iter().cycle().take(80).enumerate() {
        let (out, back) = (frame(mac(1), mac(9), length, number as u8), frame(mac(9), mac(1), length, 2));

        send_one!(sender, out);
        assert_eq!(padded(out), lab.guests[0].receive(), "out, {length}");
        lab.guests[0].send(&back);
        assert_eq!(padded(back), receive_one!(receiver), "back, {length}");

        lab.guests[0].post(1);
    }
}

/// No card of these models was granted pieces or requests: the ones are put together, the others refused.
#[test]
fn pieces_of_a_frame_are_put_together_for_either_card() {
    let mut lab = Lab::new(1);
    let intel = Machine::new(&lab, "intel", Box::new(E1000::new(mac(8))), params(8, 1500));
    let realtek = Machine::new(&lab, "realtek", Box::new(Rtl8139::new(mac(9))), params(9, 1500));
    let senders: [Sender; 2] = [intel.e1000(1500).1.into(), realtek.rtl8139().1.into()];
    for (mut sender, own) in senders.into_iter().zip([8, 9]) {
        let sent = frame(mac(1), mac(own), 300, own);
        let parts = [Part::Bytes(&sent[..14]), Part::Bytes(&sent[14..])];

        assert!(sender.stage_long(None, &parts).unwrap());
        sender.flush().unwrap();

        assert_eq!(sent, lab.guests[0].receive());
        for outside in [0, u32::MAX] {
            let refused = sender.stage_long(None, &[parts[0], Part::Place { offset: outside, length: 100 }]);
            assert!(matches!(refused, Err(Error::Usage(_))), "{refused:?}");
        }
        assert!(matches!(sender.stage_long(Some(&[1; 10]), &parts), Err(Error::Usage(_))));
        assert_eq!(&Grant::NOTHING, sender.grant());
        lab.guests[0].post(1);
    }
}

/// Numbered frames one way while others go the other way: all arrive, in their order, and each interrupt is a real one.
#[test]
fn cards_of_both_models_carry_a_stream_each_way_between_two_threads() {
    const FRAMES: u32 = 2000;
    // Frames under way at once: fewer than the receiver has buffers.
    const WINDOW: usize = 32;
    let lab = Lab::new(0);
    let intel = Machine::new(&lab, "intel", Box::new(E1000::new(mac(1))), params(1, 1500));
    let realtek = Machine::new(&lab, "realtek", Box::new(Rtl8139::new(mac(2))), params(2, 1500));
    let (_, mut intel_out, mut intel_in) = intel.e1000(1500);
    let (_, mut realtek_out, mut realtek_in) = realtek.rtl8139();
    let numbered = |to: u8, from: u8, number: u32| {
        let mut made = frame(mac(to), mac(from), 64 + number as usize % 1400, 0);
        made[14..18].copy_from_slice(&number.to_le_bytes());
        made
    };
    let number_of = |frame: &[u8]| u32::from_le_bytes(frame[14..18].try_into().unwrap());

    let (under_way, arrived) = sync_channel(WINDOW);
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..FRAMES {
                under_way.send(()).unwrap();
                send_one!(realtek_out, numbered(1, 2, number));
            }
        });
        let receiving = scope.spawn(move || {
            for expected in 0..FRAMES {
                assert_eq!(expected, number_of(&receive_one!(intel_in)));
                arrived.recv().unwrap();
            }
            intel_in.totals().frames
        });
        assert_eq!(u64::from(FRAMES), receiving.join().unwrap());
    });
    // The other way a sender that is faster than its receiver: what finds no room is counted, nothing is out of order.
    for number in 0..FRAMES {
        send_one!(intel_out, numbered(2, 1, number));
    }
    eventually(|| intel_out.pending().unwrap() == 0);
    lab.barrier();
    let mut last = None;
    let mut came = 0;
    while let Ok(1) = realtek_in.receive(1, |frame| {
        assert!(last.is_none_or(|last| last < number_of(frame)));
        last = Some(number_of(frame));
    }) {
        came += 1;
    }

    let dropped = lab.count_of("realtek", PortCounter::ReceiveDropNoRoom);
    assert_eq!(u64::from(FRAMES), came + dropped);
    assert!(came > 10 && dropped > 0);
}

#[test]
fn card_filters_what_is_for_others_and_drops_what_it_cannot_take_each_under_its_reason() {
    let mut lab = Lab::new(1);
    let machine = Machine::new(&lab, "intel", Box::new(E1000::new(mac(9))), params(9, 1500));
    let group = MacAddress::new([1, 0, 0x5e, 0, 0, 1]);
    lab.guests[0].send(&frame(mac(9), mac(1), 64, 0));
    eventually(|| lab.count_of("intel", PortCounter::ReceiveDropDisabled) == 1);
    let (_, _, mut receiver) = machine.e1000(1500);

    for to in [mac(8), group, MacAddress::BROADCAST, mac(9)] {
        lab.guests[0].send(&frame(to, mac(1), 64, 0));
    }
    let first = receive_one!(receiver);
    let second = receive_one!(receiver);

    let count = |counter| lab.count_of("intel", counter);
    assert_eq!([&[0xff; 6][..], &mac(9).bytes()], [&first[..6], &second[..6]]);
    assert_eq!((2, 2), (count(PortCounter::ReceiveDropFiltered), count(PortCounter::ReceiveFrames)));
}

#[test]
fn frames_beyond_the_posted_buffers_are_dropped_and_counted_by_the_card_too() {
    let mut lab = Lab::with(1, Shape { slots: 256, buffer_bytes: 256 }, VenetParams::default());
    let machine = Machine::new(&lab, "intel", Box::new(E1000::new(mac(9))), params(9, 1500));
    let (_, _, receiver) = machine.e1000(1500);

    for number in 0..100 {
        lab.guests[0].send(&frame(mac(9), mac(1), 64, number));
    }
    lab.settle();
    eventually(|| lab.count_of("intel", PortCounter::ReceiveFrames) == 63);

    let registers = &machine.traps;
    let statistics = [intel::GPRC, intel::MPC, intel::TPR].map(|register| registers.read(register, 4).unwrap());
    assert_eq!(37, lab.count_of("intel", PortCounter::ReceiveDropNoRoom));
    assert_eq!([63, 37, 100], statistics);
    assert_eq!([0; 3], [intel::GPRC, intel::MPC, intel::TPR].map(|register| registers.read(register, 4).unwrap()));
    drop(receiver);
}

/// What each hostile driver does to its card, and what ends for it.
#[test]
fn hostile_rings_end_one_half_of_the_card_with_a_reason_and_nobody_else() {
    type Writes<'a> = &'a [(u32, u32)];
    let cases: [(&str, Writes<'_>, &str); 5] = [
        (
            "ring outside of memory",
            &[(intel::TDBAL, 0x4000_0000), (intel::TDLEN, 128), (intel::TDT, 1)],
            "outside_memory",
        ),
        ("ring in the header", &[(intel::TDBAL, 0), (intel::TDLEN, 128), (intel::TDT, 1)], "outside_memory"),
        ("tail behind the end", &[(intel::TDBAL, 0x2000), (intel::TDLEN, 128), (intel::TDT, 8)], "index_out_of_range"),
        (
            "base near the end of addresses",
            &[(intel::TDBAL, 0xffff_fff0), (intel::TDBAH, u32::MAX), (intel::TDLEN, 128), (intel::TDT, 2)],
            "outside_memory",
        ),
        ("pieces without end", &[(intel::TDBAL, 0x2000), (intel::TDLEN, 0x1000), (intel::TDT, 200)], "chain_too_long"),
    ];
    let mut lab = Lab::new(2);
    for (number, (what, writes, reason)) in cases.into_iter().enumerate() {
        let machine = Machine::new(
            &lab,
            &format!("hostile{number}"),
            Box::new(E1000::new(mac(20 + number as u8))),
            params(20 + number as u8, 1500),
        );
        // Empty descriptors without end of a frame, at an address that is there.
        for index in 0..256u32 {
            let place = machine.ram.at(0x2000 + 16 * index, 8).unwrap();
            // SAFETY: in bounds, and nobody else has the memory.
            unsafe { place.cast::<u64>().write(0x8000) };
        }
        machine.traps.write(intel::TCTL, 4, TCTL_EN).unwrap();

        for &(register, value) in writes {
            machine.traps.write(register, 4, value).unwrap();
        }

        let event = lab.fault();
        assert_eq!((machine.port, reason), (event.port, event.reason), "{what}");
    }
    let sent = frame(mac(2), mac(1), 64, 7);
    lab.guests[0].send(&sent);
    assert_eq!(sent, lab.guests[1].receive());
}

#[test]
fn hostile_receive_buffers_end_the_receiver_and_leave_the_transmitter() {
    let mut lab = Lab::new(1);
    let intel_machine = Machine::new(&lab, "intel", Box::new(E1000::new(mac(9))), params(9, 1500));
    let realtek_machine = Machine::new(&lab, "realtek", Box::new(Rtl8139::new(mac(8))), params(8, 1500));
    for (register, value) in
        [(intel::RDBAL, 0x2000), (intel::RDLEN, 128), (intel::RDT, 7), (intel::RCTL, RCTL_EN | RCTL_UPE)]
    {
        intel_machine.traps.write(register, 4, value).unwrap();
    }
    // The descriptors are zeroes: buffers in the header of the memory.
    realtek_machine.traps.write(realtek::RBSTART, 4, 0xffff_0000).unwrap();
    realtek_machine.traps.write(realtek::CR, 1, CR_RE | CR_TE).unwrap();
    realtek_machine.traps.write(realtek::RCR, 4, 0x0f).unwrap();

    lab.guests[0].send(&frame(mac(9), mac(1), 64, 0));
    let first = lab.fault();
    lab.guests[0].send(&frame(mac(8), mac(1), 64, 0));
    let second = lab.fault();

    assert_eq!(
        [(intel_machine.port, "outside_memory"), (realtek_machine.port, "outside_memory")],
        [(first.port, first.reason), (second.port, second.reason)]
    );
    assert!(["receive"; 2] == [first.part.label(), second.part.label()]);
    // A reset does not lift it: who opened the card has to open it again.
    intel_machine.traps.write(intel::CTRL, 4, 1 << 26).unwrap();
    lab.guests[0].send(&frame(mac(9), mac(1), 64, 0));
    eventually(|| lab.count_of("intel", PortCounter::ReceiveDropQuarantined) >= 1);
}

#[test]
fn throttled_card_interrupts_less_often_than_frames_come_and_loses_none() {
    let mut lab = Lab::with(1, Shape { slots: 256, buffer_bytes: 256 }, VenetParams::default());
    let machine = Machine::new(&lab, "intel", Box::new(E1000::new(mac(9))), params(9, 1500));
    let layout = e1000::E1000Layout::plan(0, 1500, 64, 64).unwrap();
    let setup = e1000::E1000Setup { interrupts_per_second: 61, ..e1000::E1000Setup::default() };
    let (_, _, mut receiver) =
        e1000::open(&machine.ram, layout, machine.registers(), shared(&machine.line), setup).unwrap();

    let counted = |lab: &Lab| {
        let blocks = lab.counters.reader().blocks();
        blocks.into_iter().find(|block| block.kind == "nic").unwrap().values
    };
    let mut number = 0;
    // On a machine that is slower than the throttle no interrupt has to wait for it: then the next may.
    while number < 10 || (number < 200 && counted(&lab)[CardCounter::Throttled as usize] == 0) {
        let sent = frame(mac(9), mac(1), 64, number);
        lab.guests[0].send(&sent);
        assert_eq!(sent, receive_one!(receiver));
        number += 1;
    }

    let counted = counted(&lab);
    assert!(counted[CardCounter::Throttled as usize] > 0);
    assert!(counted[CardCounter::Acknowledges as usize] >= counted[CardCounter::Interrupts as usize]);
}

#[test]
fn carrier_that_goes_and_comes_is_told_and_frames_meanwhile_are_dropped() {
    let mut lab = Lab::new(1);
    let machine = Machine::new(&lab, "intel", Box::new(E1000::new(mac(9))), params(9, 1500));
    let (_, mut sender, mut receiver) = machine.e1000(1500);

    lab.fabric.port_link(machine.port, false).unwrap();
    let while_down = receiver.is_link_up().unwrap();
    send_one!(sender, frame(mac(1), mac(9), 64, 1));
    eventually(|| lab.count_of("intel", PortCounter::TransmitDropLinkDown) == 1);
    lab.fabric.port_link(machine.port, true).unwrap();
    let back = padded(frame(mac(9), mac(1), 64, 2));
    lab.guests[0].send(&back);

    assert_eq!((false, true, back), (while_down, receiver.is_link_up().unwrap(), receive_one!(receiver)));
}

#[test]
fn held_frames_keep_their_bytes_while_others_come() {
    let mut lab = Lab::new(1);
    let intel_machine = Machine::new(&lab, "intel", Box::new(E1000::new(mac(9))), params(9, 1500));
    let realtek_machine = Machine::new(&lab, "realtek", Box::new(Rtl8139::new(mac(8))), params(8, 1500));
    let (_, _, mut intel_in) = intel_machine.e1000(1500);
    let (_, _, mut realtek_in) = realtek_machine.rtl8139();
    let read = |ram: &Ram, offset: u32, length: u32| {
        let place = ram.at(offset, length as usize).unwrap();
        // SAFETY: in bounds; the frame is held.
        unsafe { std::slice::from_raw_parts(place.as_ptr(), length as usize) }.to_vec()
    };
    macro_rules! check {
        ($machine:expr, $receiver:expr, $own:expr) => {
            let first = frame(mac($own), mac(1), 100, 1);
            lab.guests[0].send(&first);
            let mut held = Vec::new();
            while held.is_empty() {
                assert!($receiver.wait(Duration::ZERO, Some(DEADLINE)).unwrap());
                $receiver.hold(1, &mut held).unwrap();
            }
            for number in 2..200 {
                lab.guests[0].send(&frame(mac($own), mac(1), 100, number));
                receive_one!($receiver);
            }
            assert_eq!(first, read(&$machine.ram, held[0].offset, held[0].length));
            $receiver.give_back(held[0].buffer).unwrap();
        };
    }
    check!(intel_machine, intel_in, 9);
    check!(realtek_machine, realtek_in, 8);
}

proptest! {
    /// What a card reads or writes lies behind the header of the guest's memory and before its end, whatever the address.
    #[test]
    fn prop_dma_outside_of_the_guests_memory_is_refused_whole(
        address in prop_oneof![0u64..0x3000, 0xf000u64..0x1_1000, any::<u64>()],
        length in 0usize..5000,
    ) {
        const SIZE: u64 = 0x1_0000;
        let memory = RamDma::new(Ram::create("dma", SIZE).unwrap());
        let is_inside = (0x1000..=SIZE).contains(&address) && length as u64 <= SIZE - address;

        let (written, read) = (memory.write(address, &vec![0xa5; length]), memory.read(address, &mut vec![0; length]));
        let published = memory.publish(address, 7);

        prop_assert_eq!((is_inside, is_inside), (written.is_ok(), read.is_ok()));
        let has_word = (0x1000..=SIZE - 8).contains(&address) && address.is_multiple_of(8);
        prop_assert_eq!(has_word, published.is_ok());
    }
}
