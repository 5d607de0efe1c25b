//! Drivers of guests against a device that lies: what it answers and what it says is done is checked against what was asked.
//!
//! The device is made here: registers that answer by the book, or a lie instead, and used rings that a test writes. Numbers are
//! those of `docs/threats.md`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vbnet_core::error::{Error, Fault, Result};
use vbnet_core::guest::nic::{Receiver, Sender};
use vbnet_core::guest::virtio::arena::Arena;
use vbnet_core::guest::virtio::disk::{Disk, Patience};
use vbnet_core::guest::virtio::net;
use vbnet_core::guest::virtio::stream::Stream;
use vbnet_core::guest::virtio::transport::Registers;
use vbnet_core::net::offload::Features;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::region::Ram;

const NETWORK: u32 = 1;
const BLOCK: u32 = 2;
const ENTROPY: u32 = 4;
const INFO: u32 = 0;
const GET_FEATURES: u32 = 1;
const GET_STATUS: u32 = 3;
const SET_STATUS: u32 = 4;
const GET_CONFIG: u32 = 6;
const QUERY_VQ: u32 = 8;
const SET_VQ: u32 = 9;

const FEATURES: u64 = 1 << 32 | 1 << 5 | 1 << 3;
const SLOTS: u32 = 64;
const HEADER: u32 = 12;
/// Bytes of the longest frame, with an MTU of 1500.
const LONGEST: u32 = 1518;
const DEADLINE: Duration = Duration::from_secs(10);

/// A device that nobody serves.
struct Liar {
    kind: u32,
    ram: Arc<Ram>,
    status: Mutex<u32>,
    /// Where the used ring of each queue is, and how many entries that has.
    used: Mutex<HashMap<u32, (u32, u32)>>,
    /// What this function answers instead.
    lie: Option<(u32, Vec<u8>)>,
}

fn words(data: &[u8]) -> Vec<u32> {
    data.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Liar {
    fn new(kind: u32, lie: Option<(u32, Vec<u8>)>) -> Arc<Self> {
        let ram = Ram::create("guest", 2 << 20).unwrap();
        Arc::new(Self { kind, ram, status: Mutex::new(0), used: Mutex::default(), lie })
    }

    fn config(&self) -> Vec<u8> {
        match self.kind {
            NETWORK => vec![2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 5],
            BLOCK => 2048_u64.to_le_bytes().to_vec(),
            _ => Vec::new(),
        }
    }

    fn arena(&self) -> Arc<Arena> {
        Arena::new(&self.ram, 0x2000, net::block_bytes(1500, SLOTS, false).unwrap()).unwrap()
    }

    fn card(self: &Arc<Self>) -> Result<(Sender, Receiver)> {
        let registers: Arc<dyn Registers> = self.clone();
        let started =
            net::start(registers.clone(), [registers.clone(), registers], &self.arena(), SLOTS, Features::NONE)?;
        Ok((started.sender.into(), started.receiver.into()))
    }

    fn start(self: &Arc<Self>) -> Result<()> {
        match self.kind {
            NETWORK => self.card().map(drop),
            BLOCK => Disk::start(self.clone(), &self.arena()).map(drop),
            _ => Stream::start(self.clone(), &self.arena()).map(drop),
        }
    }

    /// Says that chains are done, from the first entry of the used ring on: id and bytes written of each.
    fn use_up(&self, queue: u32, entries: &[(u32, u32)]) {
        self.write_entries(queue, entries);
        self.say_used(queue, entries.len() as u16);
    }

    fn write_entries(&self, queue: u32, entries: &[(u32, u32)]) {
        let (place, size) = self.used.lock().unwrap()[&queue];
        for (index, &(id, length)) in entries.iter().enumerate() {
            self.write(place + 4 + 8 * (index as u32 % size), &bytes(&[id, length]));
        }
    }

    fn say_used(&self, queue: u32, index: u16) {
        let (place, _) = self.used.lock().unwrap()[&queue];
        self.write(place + 2, &index.to_le_bytes());
    }

    fn write(&self, offset: u32, bytes: &[u8]) {
        // SAFETY: mapped, and this test's own.
        unsafe { self.ram.at(offset, bytes.len()).unwrap().as_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
    }
}

impl Registers for Liar {
    fn call(&self, function: u32, data: &[u8]) -> Result<Vec<u8>> {
        if let Some((lying, answer)) = &self.lie
            && *lying == function
        {
            return Ok(answer.clone());
        }
        let asked = words(data);
        Ok(match function {
            INFO => bytes(&[self.kind, 2, 0, self.config().len() as u32]),
            GET_FEATURES => FEATURES.to_le_bytes().to_vec(),
            GET_STATUS => bytes(&[*self.status.lock().unwrap()]),
            SET_STATUS => {
                *self.status.lock().unwrap() = asked[0];
                Vec::new()
            }
            GET_CONFIG => self.config()[asked[0] as usize..][..asked[1] as usize].to_vec(),
            QUERY_VQ => bytes(&[1024, 0]),
            SET_VQ => {
                self.used.lock().unwrap().insert(asked[0], (asked[6], asked[1]));
                Vec::new()
            }
            _ => Vec::new(),
        })
    }

    fn share(&self, _id: u32, _offset: u32, _length: u32, _signal_offset: u32) -> Result<(OwnedFd, OwnedFd)> {
        let bell = || Doorbell::create().unwrap().as_fd().try_clone_to_owned().unwrap();
        Ok((bell(), bell()))
    }
}

fn patience() -> Patience {
    Patience { deadline: Instant::now() + DEADLINE, spin: Duration::ZERO }
}

fn fault<T: std::fmt::Debug>(outcome: Result<T>) -> Fault {
    match outcome {
        Err(Error::Peer(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

/// The device itself is one that every driver starts on.
#[test]
fn device_by_the_book_starts_every_driver() {
    for kind in [NETWORK, BLOCK, ENTROPY] {
        Liar::new(kind, None).start().unwrap();
    }
}

/// 14, QEMU work item 3867: answers shorter and longer than what was asked for, by one byte or by thousands.
#[test]
fn answer_of_a_wrong_length_ends_the_start_of_the_driver() {
    let asked: [(u32, &[(u32, usize)]); 3] = [
        (NETWORK, &[(INFO, 16), (GET_FEATURES, 8), (GET_STATUS, 4), (GET_CONFIG, 4), (QUERY_VQ, 8)]),
        (BLOCK, &[(INFO, 16), (GET_FEATURES, 8), (GET_STATUS, 4), (GET_CONFIG, 8), (QUERY_VQ, 8)]),
        (ENTROPY, &[(INFO, 16), (GET_FEATURES, 8), (GET_STATUS, 4), (QUERY_VQ, 8)]),
    ];
    for (kind, functions) in asked {
        for &(function, right) in functions {
            for length in [0, 1, right - 1, right + 1, 4 * right, 1 << 16] {
                let outcome = Liar::new(kind, Some((function, vec![1; length]))).start();
                assert!(outcome.is_err(), "kind {kind}, function {function}, {length} bytes");
            }
        }
    }
}

/// 14, QEMU work item 3867: numbers that would wrap what is allocated for them.
#[test]
fn answer_with_a_count_that_cannot_be_ends_the_start_of_the_driver() {
    for (name, info) in [
        ("queues", [NETWORK, u32::MAX, 0, 12]),
        ("queues", [NETWORK, 65, 0, 12]),
        ("no queue", [NETWORK, 0, 0, 12]),
        ("bytes of the configuration", [NETWORK, 2, 0, u32::MAX]),
        ("bytes of the configuration", [NETWORK, 2, 0, 257]),
        ("a configuration that is too short", [NETWORK, 2, 0, 11]),
        ("transport", [NETWORK, 2, 3, 12]),
        ("kind", [0x7fff_ffff, 2, 0, 12]),
    ] {
        assert!(Liar::new(NETWORK, Some((INFO, bytes(&info)))).start().is_err(), "{name}");
    }
    for size in [0, SLOTS - 1] {
        assert!(Liar::new(NETWORK, Some((QUERY_VQ, bytes(&[size, 0])))).start().is_err(), "queue of {size}");
    }
}

/// 38, CVE-2026-64456, CVE-2025-38375, CVE-2025-38413: more bytes than the buffer has, or fewer than a header.
#[test]
fn used_length_beyond_the_posted_buffer_ends_a_card() {
    let limit = HEADER + LONGEST;
    for length in [limit + 1, 2048, 0x1_0000, u32::MAX] {
        let device = Liar::new(NETWORK, None);
        let (_sender, mut receiver) = device.card().unwrap();
        device.use_up(0, &[(5, length)]);
        assert_eq!(Fault::TooLong { length, limit }, fault(receiver.receive(8, |_| panic!("a frame of {length}"))));
    }
    for length in [0, HEADER - 1] {
        let device = Liar::new(NETWORK, None);
        let (_sender, mut receiver) = device.card().unwrap();
        device.use_up(0, &[(5, length)]);
        assert_eq!(Fault::TooShort { length, limit: HEADER }, fault(receiver.receive(8, |_| panic!("a frame"))));
    }
}

/// 38, CVE-2026-64456 and others, of streams: nothing behind the buffer is handed out.
#[test]
fn used_length_beyond_the_posted_buffer_ends_a_stream() {
    for length in [1025, 4096, u32::MAX] {
        let device = Liar::new(ENTROPY, None);
        let mut stream = Stream::start(device.clone(), &device.arena()).unwrap();
        device.use_up(0, &[(0, length)]);
        let outcome = stream.poll_read(1 << 20, |_| panic!("bytes of {length}"));
        assert!(matches!(fault(outcome), Fault::BadSize { limit: 1024, .. }));
    }
}

/// 38, CVE-2026-64456 and others, of disks: how much was written is not asked for; a request without a status has failed.
#[test]
fn used_length_beyond_the_posted_buffer_is_not_believed_of_a_disk() {
    let device = Liar::new(BLOCK, None);
    let mut disk = Disk::start(device.clone(), &device.arena()).unwrap();
    device.use_up(0, &[(0, u32::MAX)]);

    let outcome = disk.read_at(0, 512, patience(), |_, _| panic!("bytes"));

    assert!(matches!(outcome, Err(Error::Machine { .. })), "{outcome:?}");
}

/// 39, MigTD PR#986: ids that were never issued, that are out of range, and more of them than there are chains under way.
#[test]
fn used_id_that_was_never_issued_ends_a_card() {
    for id in [SLOTS, 0x1_0000, u32::MAX] {
        let device = Liar::new(NETWORK, None);
        let (_sender, mut receiver) = device.card().unwrap();
        device.use_up(0, &[(id, 100)]);
        let found = fault(receiver.receive(8, |_| panic!("a frame of {id}")));
        assert_eq!(Fault::IndexOutOfRange { index: id, limit: SLOTS }, found);
    }
    for index in [SLOTS as u16 + 1, 0x8000, u16::MAX] {
        let device = Liar::new(NETWORK, None);
        let (_sender, mut receiver) = device.card().unwrap();
        device.say_used(0, index);
        assert!(matches!(fault(receiver.receive(8, |_| panic!("a frame"))), Fault::IndexOutOfRange { .. }));
    }
    let device = Liar::new(NETWORK, None);
    let (mut sender, _receiver) = device.card().unwrap();
    assert!(sender.stage(&[7; 60]).unwrap());
    sender.flush().unwrap();
    device.use_up(1, &[(40, 0)]);
    assert_eq!(Fault::IndexOutOfRange { index: 40, limit: SLOTS }, fault(sender.pending()));
}

/// 39, MigTD PR#986: an id comes back twice.
#[test]
fn used_id_that_is_replayed_ends_a_card() {
    let device = Liar::new(NETWORK, None);
    let (mut sender, mut receiver) = device.card().unwrap();
    device.use_up(0, &[(9, HEADER + 60), (9, HEADER + 60)]);
    let mut held = Vec::new();
    assert_eq!(Fault::IndexOutOfRange { index: 9, limit: SLOTS }, fault(receiver.hold(8, &mut held)));
    assert_eq!(1, held.len());

    (0..2).for_each(|_| assert!(sender.stage(&[7; 60]).unwrap()));
    sender.flush().unwrap();
    device.use_up(1, &[(0, 0), (0, 0)]);
    assert_eq!(Fault::IndexOutOfRange { index: 0, limit: SLOTS }, fault(sender.pending()));
}

/// 39, MigTD PR#986: the id of a descriptor that is no head, or of none at all. The driver stays ended.
#[test]
fn used_id_in_the_middle_of_a_chain_ends_a_disk() {
    for id in [1, 2, 31, 0xffff] {
        let device = Liar::new(BLOCK, None);
        let mut disk = Disk::start(device.clone(), &device.arena()).unwrap();
        device.use_up(0, &[(id, 513)]);
        for _ in 0..2 {
            let found = fault(disk.read_at(0, 512, patience(), |_, _| panic!("bytes")));
            assert_eq!(Fault::IndexOutOfRange { index: id, limit: 32 }, found);
        }
    }
}
