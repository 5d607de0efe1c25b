//! Known attacks on virtio devices, here on cards and on devices of a bus, each as a test of its own: what is sent is in the name,
//! the number is that of `docs/threats.md`, the verdict is refused or survived, and others go on either way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use crate::virtio_bench::DEADLINE;
use crate::virtio_card::{
    Bare, Card, Lab, SET_FEATURES, SET_STATUS, SET_VQ, SLOTS, START, frame, receive, set_vq, until,
};
use rustix::fd::OwnedFd;
use vbnet_core::error::{Error, Result};
use vbnet_core::fastcall::FastHandler;
use vbnet_core::shm::region::Ram;
use vbnet_core::virtio::device::{COMMON_FEATURES, Kind, Model, Offer, Params, Transport, VirtioCounter};
use vbnet_core::virtio::net::{NetKind, NetParams};
use vbnet_core::virtio::server::Request;

const GET_STATUS: u32 = 3;
const TRAP_WRITE: u32 = 12;
const NEEDS_RESET: u32 = 64;
const ALIVE: u32 = 15;
const CONTROL: u64 = 1 << 17;
const VLANS: u64 = 1 << 19;
const PAIRS: u64 = 1 << 22;
const HASH_REPORT: u64 = 1 << 57;
const SCALING: u64 = 1 << 60;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Where a test lays its own queue out, with its signal in the last page, and its buffers.
const RING: u32 = 0x10_0000;
const RING_BYTES: u32 = 0x4000;
const RINGS: [u32; 3] = [RING, RING + 0x1000, RING + 0x2000];
const BUFFER: u32 = 0x11_0000;

fn refused(outcome: Result<Vec<u8>>) -> bool {
    matches!(outcome, Err(Error::Usage(_)))
}

fn status(device: &Bare) -> u32 {
    u32::from_le_bytes(device.ask(GET_STATUS, &[]).unwrap().try_into().unwrap())
}

// ---- the control queue ---------------------------------------------------------------------------------------------

/// A card whose control queue a test drives.
struct Commander {
    lab: Lab,
    card: Card,
    kick: OwnedFd,
    sent: u16,
}

const SIZE: u16 = 16;

impl Commander {
    fn new() -> Self {
        let commander = Self::asleep();
        commander.card.call(SET_STATUS, &[ALIVE]);
        commander
    }

    /// One whose driver has not said DRIVER_OK.
    fn asleep() -> Self {
        let lab = Lab::new();
        let card = lab.card(1, Transport::Vbus, 4);
        card.agree(COMMON_FEATURES | CONTROL | PAIRS);
        let kick = card.queue(8, SIZE.into(), (RING, RING_BYTES), RINGS);
        Self { lab, card, kick, sent: 0 }
    }

    fn offer(&mut self, head: u16) {
        self.card.word(RINGS[1] + 4 + 2 * u32::from(self.sent % SIZE)).store(head, Ordering::Relaxed);
        self.sent += 1;
        self.card.word(RINGS[1] + 2).store(self.sent, Ordering::SeqCst);
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
    }

    /// Waits until the last chain came back: how many bytes were written to it.
    fn wait(&self) -> u32 {
        until("an answer", || self.card.word(RINGS[2] + 2).load(Ordering::SeqCst) == self.sent);
        let entry = RINGS[2] + 4 + 8 * u32::from((self.sent - 1) % SIZE);
        u32::from_le_bytes(self.card.read(entry + 4, 4).try_into().unwrap())
    }

    /// Sends a command with a place for its answer.
    fn send(&mut self, bytes: &[u8]) {
        self.card.write(BUFFER, bytes);
        self.card.write(BUFFER + 0x1000, &[0xee]);
        self.card.describe(RING, 0, BUFFER, bytes.len() as u32, [NEXT, 1]);
        self.card.describe(RING, 1, BUFFER + 0x1000, 1, [WRITE, 0]);
        self.offer(0);
    }

    /// The same, and waits for the answer.
    fn command(&mut self, bytes: &[u8]) -> u8 {
        self.send(bytes);
        assert_eq!(1, self.wait());
        self.card.read(BUFFER + 0x1000, 1)[0]
    }

    /// The queue has ended under this rule; the device says that it needs a reset, and works after it.
    fn assert_ended(mut self, what: &str, rule: &str) {
        until("a fault", || status(&self.card) & NEEDS_RESET != 0);
        let mut faults = Vec::new();
        until("the fault to be told", || {
            faults.extend(self.lab.host.take_faults());
            !faults.is_empty()
        });
        assert_eq!((rule, 8), (faults[0].reason, faults[0].queue), "{what}");
        self.card.call(SET_STATUS, &[0]);
        for word in [RINGS[1] + 2, RINGS[2] + 2] {
            self.card.word(word).store(0, Ordering::SeqCst);
        }
        self.sent = 0;
        self.card.agree(COMMON_FEATURES | CONTROL | PAIRS);
        self.card.call(SET_VQ, &set_vq(8, SIZE.into(), RINGS));
        self.card.call(SET_STATUS, &[ALIVE]);
        assert_eq!(0, self.command(&[4, 0, 2, 0]), "{what}");
    }
}

/// 31, DPDK 6ec1778134: loops of one, two and all descriptors, links and heads outside of the queue, and the same in a table.
#[test]
fn control_chain_that_is_cyclic_or_out_of_range_is_refused() {
    let loops: [(&str, &[(u16, u16)]); 3] = [
        ("one", &[(NEXT, 0)]),
        ("two", &[(NEXT, 1), (NEXT, 0)]),
        ("behind an answer", &[(NEXT, 1), (NEXT | WRITE, 1)]),
    ];
    for (what, chain) in loops {
        for is_indirect in [false, true] {
            let mut commander = Commander::new();
            let table = if is_indirect { BUFFER + 0x2000 } else { RING };
            for (index, &(flags, next)) in chain.iter().enumerate() {
                commander.card.describe(table, index as u16, BUFFER, 4, [flags, next]);
            }
            if is_indirect {
                commander.card.describe(RING, 0, table, 16 * chain.len() as u32, [INDIRECT, 0]);
            }
            commander.offer(0);
            commander.assert_ended(what, "chain_too_long");
        }
    }
    for next in [SIZE, 0x7fff, u16::MAX] {
        let mut commander = Commander::new();
        commander.card.describe(RING, 0, BUFFER, 4, [NEXT, next]);
        commander.offer(0);
        commander.assert_ended("a link", "index_out_of_range");
        let mut commander = Commander::new();
        commander.offer(next);
        commander.assert_ended("a head", "index_out_of_range");
    }
}

/// 32, CVE-2026-86564: commands of one to three bytes, with their data missing or in part.
#[test]
fn control_command_shorter_than_its_data_is_answered_with_an_error() {
    let mut commander = Commander::new();
    for command in [&[4][..], &[4, 0], &[4, 0, 1], &[1, 0], &[2, 0, 1], &[0]] {
        assert_eq!(1, commander.command(command), "{command:?}");
    }
    assert_eq!(0, commander.command(&[4, 0, 1, 0]));
    assert_eq!(ALIVE, status(&commander.card));
}

/// 36, CH PR#8401: a command without a place for its answer, and a place without a command, come back.
#[test]
fn control_chain_with_only_a_head_comes_back() {
    let mut commander = Commander::new();
    commander.card.write(BUFFER, &[4, 0, 2, 0]);
    commander.card.describe(RING, 0, BUFFER, 4, [0, 0]);
    commander.offer(0);
    assert_eq!(0, commander.wait());
    commander.card.describe(RING, 0, BUFFER, 4, [WRITE, 0]);
    commander.offer(0);
    assert_eq!((1, vec![1]), (commander.wait(), commander.card.read(BUFFER, 1)));
}

/// 46, CVE-2024-6505: tables for receive-side scaling and for hashes, whatever length they claim; neither was offered.
#[test]
fn control_command_with_an_indirection_table_is_answered_with_an_error() {
    let mut commander = Commander::new();
    for command in [1, 2] {
        for (mask, queue, indices) in [(0_u16, 0_u16, 1), (127, 0, 128), (0xffff, 0xffff, 64), (3, 0x8000, 4)] {
            let mut asked = vec![4, command];
            asked.extend(0x3f_u32.to_le_bytes());
            asked.extend([mask, queue].into_iter().flat_map(u16::to_le_bytes));
            asked.extend(std::iter::repeat_n(0xff, 2 * indices));
            asked.extend([0xff, 0xff, 0xff]);
            assert_eq!(1, commander.command(&asked), "command {command}, mask {mask:#x}");
        }
    }
    assert_eq!(0, commander.command(&[4, 0, 4, 0]));
}

/// 47, GHSA-q7p4-pxjx-6h42: filters for VLANs of any number, beyond 4095 too; there is no table of them.
#[test]
fn control_command_for_a_vlan_of_any_number_is_answered_with_an_error() {
    let mut commander = Commander::new();
    for command in [0, 1] {
        for vlan in [0_u16, 1, 4095, 4096, 0xffff] {
            let [low, high] = vlan.to_le_bytes();
            assert_eq!(1, commander.command(&[2, command, low, high]), "{vlan}");
        }
    }
    assert_eq!(ALIVE, status(&commander.card));
}

/// Tables of addresses that are longer than they say, shorter, or as long as nobody has memory for; no filter was offered.
#[test]
fn control_command_with_a_table_of_addresses_is_answered_with_an_error() {
    let mut commander = Commander::new();
    for (claimed, given) in [(0_u32, 0), (1, 1), (2, 1), (1, 2), (600, 600), (0x2aaa_aaab, 1), (u32::MAX, 10)] {
        let mut asked = vec![1, 0];
        for _ in 0..2 {
            asked.extend(claimed.to_le_bytes());
            asked.extend(std::iter::repeat_n(2, 6 * given.min(300)));
        }
        assert_eq!(1, commander.command(&asked), "{claimed} of {given}");
    }
    assert_eq!(0, commander.command(&[4, 0, 4, 0]));
    assert_eq!(ALIVE, status(&commander.card));
}

/// Coalescing of all queues, of one, of the control queue and of queues that there are not; it was not offered.
#[test]
fn control_command_to_coalesce_a_queue_that_there_is_not_is_answered_with_an_error() {
    let mut commander = Commander::new();
    for command in 0..4 {
        for queue in [0_u16, 8, 9, 16, 0x7fff, 0xffff] {
            let mut asked = vec![6, command];
            asked.extend(queue.to_le_bytes());
            asked.extend([0, 0]);
            asked.extend([u32::MAX; 2].into_iter().flat_map(u32::to_le_bytes));
            assert_eq!(1, commander.command(&asked), "command {command}, queue {queue}");
        }
    }
    assert_eq!(0, commander.command(&[4, 0, 2, 0]));
}

/// A kick before DRIVER_OK: nothing is taken until then, and nothing is lost.
#[test]
fn kick_before_driver_ok_takes_nothing() {
    let mut commander = Commander::asleep();
    commander.send(&[4, 0, 2, 0]);
    let used = |commander: &Commander| commander.card.word(RINGS[2] + 2).load(Ordering::SeqCst);
    assert_eq!(11, status(&commander.card));
    assert_eq!((0, vec![0xee]), (used(&commander), commander.card.read(BUFFER + 0x1000, 1)));

    commander.card.call(SET_STATUS, &[ALIVE]);

    assert_eq!((1, vec![0]), (commander.wait(), commander.card.read(BUFFER + 0x1000, 1)));
    assert_eq!(0, commander.command(&[4, 0, 1, 0]));
}

// ---- registers -----------------------------------------------------------------------------------------------------

/// 44, 46, 47: what the three need is not offered by a card of a bus, and is not agreed to.
#[test]
fn features_of_hash_report_scaling_and_vlan_filters_are_not_agreed_to() {
    for feature in [HASH_REPORT, SCALING, VLANS] {
        let lab = Lab::new();
        let card = lab.card(1, Transport::Vbus, 2);
        card.agree(COMMON_FEATURES | CONTROL | PAIRS | feature);
        assert_eq!(3, status(&card), "{feature:#x}");
    }
}

/// 33, DPDK 7cc4f260bf: more than eight pairs cannot be made; the queue for control is the last of seventeen.
#[test]
fn card_of_128_pairs_and_queues_behind_the_last_are_refused() {
    let lab = Lab::new();
    let params = |pairs| NetParams {
        mac: vbnet_core::net::frame::MacAddress::new([2; 6]),
        mtu: 1500,
        pairs,
        has_offloads: true,
    };
    for pairs in [0, 9, 128, usize::MAX] {
        let port = lab.fabric.port_add_virtio_net("lan", &format!("p{pairs}"), "g", Default::default()).unwrap();
        assert!(NetKind::new(port, params(pairs)).is_err(), "{pairs}");
    }
    let card = lab.card(1, Transport::Vbus, 8);
    card.agree(COMMON_FEATURES | CONTROL | PAIRS);
    card.queue(16, 16, (RING, RING_BYTES), RINGS);
    for queue in [17, 255, 256, 257, 0x8000_0000, u32::MAX] {
        assert!(refused(card.ask(SET_VQ, &set_vq(queue, 16, RINGS))), "{queue}");
    }
}

/// 34, CVE-2011-2512: numbers in the register that kicks, of queues that are not there, or that were not set up.
#[test]
fn notify_register_with_a_huge_or_negative_queue_is_refused() {
    for transport in [Transport::Mmio, Transport::Pci] {
        let lab = Lab::new();
        let (one, two) = (lab.card(1, transport, 1), lab.card(2, Transport::Vbus, 1));
        let ((mut sender, _unused), (_back, mut receiver)) = (one.start(), two.start());
        for queue in [2_u32, 0xff, 0x3ff, 0x7fff, 0xffff, 0x8000_0000, u32::MAX] {
            let outcome = match transport {
                Transport::Mmio => one.ask(TRAP_WRITE, &[0x50, 4, queue, 0]),
                _ => one.ask(TRAP_WRITE, &[0x2000_u32.wrapping_add(queue.wrapping_mul(4)), 2, queue, 0]),
            };
            // A multiple of 4 that wraps is the register of another queue, which is there or is no register for this.
            let is_other = transport == Transport::Pci && queue == 0x8000_0000;
            assert!(is_other || refused(outcome), "{queue:#x}");
        }
        assert!(refused(one.ask(TRAP_WRITE, &[0x50, 4, 0, 1])), "beyond 32 bits");
        let sent = frame(two.mac, one.mac, 80, 1);
        sender.stage(&sent).unwrap();
        sender.flush().unwrap();
        assert_eq!(vec![sent], receive(&mut receiver, 1));
    }
}

/// 16, Firecracker #5818: bits of the status that are taken back, one by one.
#[test]
fn status_bit_that_is_cleared_is_refused_and_the_card_goes_on() {
    let lab = Lab::new();
    let (one, two) = (lab.card(1, Transport::Vbus, 1), lab.card(2, Transport::Vbus, 1));
    let ((mut sender, _unused), (_back, mut receiver)) = (one.start(), two.start());
    for bit in [1, 2, 4, 8] {
        assert!(refused(one.ask(SET_STATUS, &[ALIVE & !bit])), "{bit}");
    }
    assert_eq!(ALIVE, status(&one));
    let sent = frame(two.mac, one.mac, 80, 1);
    sender.stage(&sent).unwrap();
    sender.flush().unwrap();
    assert_eq!(vec![sent], receive(&mut receiver, 1));
}

/// 16, Firecracker #5818: a queue is set up before features were agreed on, when they were not agreed to, and after DRIVER_OK;
/// by calls and by registers.
#[test]
fn queue_configured_outside_of_features_ok_and_driver_ok_is_refused() {
    let lab = Lab::new();
    let card = lab.card(1, Transport::Vbus, 1);
    card.show(0, (RING, RING_BYTES));
    let set_up = || card.ask(SET_VQ, &set_vq(0, 16, RINGS));
    assert!(refused(set_up()), "before ACKNOWLEDGE");
    card.call(SET_STATUS, &[3]);
    assert!(refused(set_up()), "before FEATURES_OK");
    card.call(SET_FEATURES, &[0, 0]);
    card.call(SET_STATUS, &[11]);
    assert_eq!(3, status(&card));
    assert!(refused(set_up()), "without features that are acceptable");
    card.agree(COMMON_FEATURES);
    card.call(SET_STATUS, &[ALIVE]);
    assert!(refused(set_up()), "after DRIVER_OK");
    for (transport, queue_size, address, ready) in
        [(Transport::Mmio, (0x38, 4), 0x80, (0x44, 4)), (Transport::Pci, (0x18, 2), 0x20, (0x1c, 2))]
    {
        let card = lab.card(if transport == Transport::Mmio { 2 } else { 3 }, transport, 1);
        for (what, offset, bytes) in
            [("size", queue_size.0, queue_size.1), ("place", address, 4), ("ready", ready.0, ready.1)]
        {
            assert!(refused(card.ask(TRAP_WRITE, &[offset, bytes, 1, 0])), "{what}");
        }
    }
}

/// 16, Firecracker #5818: after FAILED there is only a reset.
#[test]
fn driver_ok_after_failed_is_refused() {
    let lab = Lab::new();
    let card = lab.card(1, Transport::Vbus, 1);
    card.agree(COMMON_FEATURES);
    assert!(refused(card.ask(SET_STATUS, &[ALIVE | 128])), "both at once");
    card.call(SET_STATUS, &[11 | 128]);
    assert!(refused(card.ask(SET_STATUS, &[ALIVE | 128])), "one after the other");
    card.call(SET_STATUS, &[0]);
    card.agree(COMMON_FEATURES);
    card.call(SET_STATUS, &[ALIVE]);
    assert_eq!(ALIVE, status(&card));
}

/// A device each of whose requests takes until the test lets go of it.
struct StuckKind(Arc<Mutex<Receiver<()>>>);
struct StuckModel(Arc<Mutex<Receiver<()>>>);

impl Kind for StuckKind {
    fn offer(&self) -> Offer {
        Offer { device_id: 4, queue_sizes: vec![16], ..Offer::default() }
    }

    fn model(&self, _features: u64) -> Result<Box<dyn Model>> {
        Ok(Box::new(StuckModel(self.0.clone())))
    }
}

impl Model for StuckModel {
    fn serve(&mut self, _queue: usize, _request: &Request<'_>) -> Option<u32> {
        self.0.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        Some(0)
    }
}

fn stuck(lab: &Lab) -> (Bare, SyncSender<()>) {
    let (let_go, held) = sync_channel(4);
    let ram = Ram::create("guest", 2 << 20).unwrap();
    let kind = Arc::new(StuckKind(Arc::new(Mutex::new(held))));
    let device = lab.host.open(kind, &ram, Params::default(), "stuck", "").unwrap();
    (Bare { device: Arc::new(device), ram }, let_go)
}

/// 16, Firecracker #5818: a reset that could not be done changed nothing, so that nothing can be set up anew on top of what
/// still runs; once it can be done, everything can.
#[test]
fn re_init_after_a_failed_reset_is_refused() {
    let lab = Lab::new();
    let (device, let_go) = stuck(&lab);
    device.agree(COMMON_FEATURES);
    let kick = device.queue(0, 16, (RING, RING_BYTES), RINGS);
    device.call(SET_STATUS, &[ALIVE]);
    device.describe(RING, 0, BUFFER, 16, [WRITE, 0]);
    let offer = |count: u16| {
        device.word(RINGS[1] + 2).store(count, Ordering::SeqCst);
        rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
    };
    let used = || device.word(RINGS[2] + 2).load(Ordering::SeqCst);
    // One request is answered, so that the next one is known to be under way soon; the reset waits two milliseconds for it.
    let_go.send(()).unwrap();
    offer(1);
    until("an answer", || used() == 1);
    offer(2);
    until("a reset that fails", || {
        let outcome = FastHandler::call(&*device.device, SET_STATUS, &0_u32.to_le_bytes(), &mut [0; 16]);
        if outcome.is_ok() {
            // The request was not under way yet: as before.
            device.agree(COMMON_FEATURES);
            device.call(SET_VQ, &set_vq(0, 16, RINGS));
            device.call(SET_STATUS, &[ALIVE]);
            offer(2);
        }
        outcome.is_err()
    });

    assert_eq!(ALIVE, status(&device));
    assert!(refused(device.ask(SET_STATUS, &[3])));
    assert!(refused(device.ask(SET_FEATURES, &[0, 1])));
    assert!(refused(device.ask(SET_VQ, &set_vq(0, 16, RINGS))));
    let_go.send(()).unwrap();
    device.call(SET_STATUS, &[0]);
    let after = used();
    device.agree(COMMON_FEATURES);
    device.call(SET_VQ, &set_vq(0, 16, RINGS));
    let_go.send(()).unwrap();
    device.call(SET_STATUS, &[ALIVE]);
    offer(after + 1);
    until("an answer", || used() == after + 1);
}

/// Resets without end, which have a worker take queues back that serves others: from some number a second on they are put off,
/// and counted; the others go on, and so does the card when the second is over.
#[test]
fn resets_without_end_are_put_off_and_counted() {
    let lab = Lab::new();
    let card = lab.card_with(1, Params { stops_a_second: 1, ..Params::default() }, 1);
    let (two, three) = (lab.card(2, Transport::Vbus, 1), lab.card(3, Transport::Vbus, 1));
    let ((mut sender, _unused), (_back, mut receiver)) = (two.start(), three.start());
    card.show(0, (RING, RING_BYTES));
    let start = || {
        card.agree(COMMON_FEATURES);
        card.call(SET_VQ, &set_vq(0, 16, RINGS));
        card.call(SET_STATUS, &[ALIVE]);
    };
    let put_off = || {
        let blocks = lab.host.counters().reader().blocks();
        let of = |block: &&vbnet_core::shm::counters::BlockSnapshot| block.kind == "virtio";
        blocks.iter().filter(of).map(|block| block.values[VirtioCounter::PutOff as usize]).sum::<u64>()
    };

    start();
    let mut outcome = Ok(Vec::new());
    until("a reset that is put off", || {
        outcome = card.ask(SET_STATUS, &[0]);
        if outcome.is_ok() {
            start();
        }
        outcome.is_err()
    });

    assert!(matches!(outcome, Err(Error::Busy(_))), "{outcome:?}");
    assert_eq!((1, ALIVE), (put_off(), status(&card)));
    let sent = frame(three.mac, two.mac, 80, 1);
    sender.stage(&sent).unwrap();
    sender.flush().unwrap();
    assert_eq!(vec![sent], receive(&mut receiver, 1));
    until("a reset that is not put off", || card.ask(SET_STATUS, &[0]).is_ok());
    start();
}

/// 40, Linux CVE-2026-74614: once a reset is answered, the worker that had the queue touches nothing of the guest's memory.
#[test]
fn queue_is_not_touched_once_its_reset_was_answered() {
    let lab = Lab::new();
    let (one, two) = (lab.card(1, Transport::Vbus, 1), lab.card(2, Transport::Vbus, 1));
    let (mut sender, _unused) = two.start();
    one.show(0, (RING, RING_BYTES));
    for index in 0..SLOTS as u16 {
        one.describe(RING, index, BUFFER + 0x800 * u32::from(index), 0x800, [WRITE, 0]);
        one.word(RINGS[1] + 4 + 2 * u32::from(index)).store(index, Ordering::Relaxed);
    }
    one.word(RINGS[1] + 2).store(SLOTS as u16, Ordering::SeqCst);
    let mut send = || {
        (0..8).for_each(|number| until("room", || sender.stage(&frame(one.mac, two.mac, 900, number)).unwrap()));
        sender.flush().unwrap();
    };
    let whole = || one.read(START, (2 << 20) - START as usize);
    let used = one.word(RINGS[2] + 2);

    for round in 0..50 {
        used.store(0, Ordering::SeqCst);
        one.agree(COMMON_FEATURES);
        one.call(SET_VQ, &set_vq(0, SLOTS, RINGS));
        one.call(SET_STATUS, &[ALIVE]);
        send();
        // In the middle of a batch, and at its beginning.
        until("a frame", || round % 2 == 0 || used.load(Ordering::SeqCst) != 0);
        one.call(SET_STATUS, &[0]);
        let before = whole();
        send();
        lab.fabric.macs("lan").unwrap();

        assert!(before == whole(), "round {round}");
    }
}
