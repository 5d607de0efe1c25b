//! A virtio network card on a real fabric, its driver or a test in its place, in one process: registers are direct calls,
//! everything else is as between two.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use vbnet_core::error::Result;
use vbnet_core::fabric::{Fabric, PortInfo, VenetParams};
use vbnet_core::guest::nic::{Receiver, Sender};
use vbnet_core::guest::virtio::arena::Arena;
use vbnet_core::guest::virtio::net::{self, block_bytes};
use vbnet_core::guest::virtio::transport::Registers;
use vbnet_core::net::frame::MacAddress;
use vbnet_core::net::offload::Features;
use vbnet_core::port::PortId;
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::region::Ram;
use vbnet_core::virtio::device::{Device, Params, Transport, VirtioHost};
use vbnet_core::virtio::net::{NetKind, NetParams};

use crate::virtio_bench::{DEADLINE, Direct};

/// Where the driver's block of memory begins.
pub const START: u32 = 0x2000;
pub const SLOTS: u32 = 64;
pub const MTU: u32 = 1500;
pub const RAM_BYTES: u64 = 2 << 20;
pub const SET_FEATURES: u32 = 2;
pub const SET_STATUS: u32 = 4;
pub const SET_VQ: u32 = 9;

pub struct Lab {
    pub counters: Arc<CounterFile>,
    pub fabric: Fabric,
    pub host: VirtioHost,
}

impl Lab {
    pub fn new() -> Self {
        let counters = Arc::new(CounterFile::create(None, 1 << 20).unwrap());
        let fabric = Fabric::new(counters.clone(), 1).unwrap();
        fabric.switch_create("lan", 300).unwrap();
        let host = VirtioHost::start(Arc::new(CounterFile::create(None, 1 << 20).unwrap())).unwrap();
        Self { counters, fabric, host }
    }

    /// A card that nobody drives yet.
    pub fn card(&self, number: u8, transport: Transport, pairs: usize) -> Card {
        self.card_with(number, Params { transport, ..Params::default() }, pairs)
    }

    /// The same; `has_offloads`: whether it offers any.
    pub fn card_of(&self, number: u8, transport: Transport, pairs: usize, has_offloads: bool) -> Card {
        self.make(number, Params { transport, ..Params::default() }, pairs, has_offloads)
    }

    pub fn card_with(&self, number: u8, device: Params, pairs: usize) -> Card {
        self.make(number, device, pairs, true)
    }

    fn make(&self, number: u8, device: Params, pairs: usize, has_offloads: bool) -> Card {
        let mac = MacAddress::new([2, 0, 0, 0, 0, number]);
        let params = VenetParams { mac, mtu: MTU, ..VenetParams::default() };
        let port = self.fabric.port_add_virtio_net("lan", &format!("g{number}.eth0"), "g", params).unwrap();
        let id = port.id();
        let kind = NetKind::new(port, NetParams { mac, mtu: MTU, pairs, has_offloads }).unwrap();
        let ram = Ram::create("guest", RAM_BYTES).unwrap();
        let device = Arc::new(self.host.open(Arc::new(kind), &ram, device, "eth0", "").unwrap());
        Card { bare: Bare { device, ram }, id, mac: mac.bytes() }
    }

    pub fn info(&self, card: &Card) -> PortInfo {
        self.fabric.ports().unwrap().into_iter().find(|port| port.id == card.id).unwrap()
    }
}

pub struct Card {
    bare: Bare,
    pub id: PortId,
    pub mac: [u8; 6],
}

impl Deref for Card {
    type Target = Bare;

    fn deref(&self) -> &Bare {
        &self.bare
    }
}

impl Card {
    pub fn start(&self) -> (Sender, Receiver) {
        self.start_with(SLOTS, Features::NONE)
    }

    /// Starts a driver with so many slots that asks for these offloads.
    pub fn start_with(&self, slots: u32, wanted: Features) -> (Sender, Receiver) {
        let bytes = block_bytes(MTU, slots, !wanted.is_empty()).unwrap();
        let arena = Arena::new(&self.ram, START, bytes).unwrap();
        let registers: Arc<dyn Registers> = Arc::new(Direct(self.device.clone()));
        let halves = [registers.clone(), registers.clone()];
        let started = net::start(registers, halves, &arena, slots, wanted).unwrap();
        assert_eq!((self.mac, MTU), (started.mac, started.mtu));
        (started.sender.into(), started.receiver.into())
    }
}

/// A device of any kind, and the memory of who has it open.
pub struct Bare {
    pub device: Arc<Device>,
    pub ram: Arc<Ram>,
}

impl Bare {
    pub fn call(&self, function: u32, words: &[u32]) {
        self.ask(function, words).unwrap();
    }

    /// Runs a function; what it answers, or why it was refused.
    pub fn ask(&self, function: u32, words: &[u32]) -> Result<Vec<u8>> {
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut answer = Vec::new();
        self.device.call(function, &data, &mut answer)?;
        Ok(answer)
    }

    pub fn agree(&self, features: u64) {
        self.call(SET_STATUS, &[3]);
        self.call(SET_FEATURES, &[features as u32, (features >> 32) as u32]);
        self.call(SET_STATUS, &[11]);
    }

    /// Shows a queue whose signal is in the last page of `place`, and enables it.
    pub fn queue(&self, queue: u32, size: u32, place: (u32, u32), rings: [u32; 3]) -> OwnedFd {
        let kick = self.show(queue, place);
        self.call(SET_VQ, &set_vq(queue, size, rings));
        kick
    }

    /// Shows a queue whose signal is in the last page of `place`.
    pub fn show(&self, queue: u32, place: (u32, u32)) -> OwnedFd {
        let signal = place.0 + place.1 - 0x1000;
        self.write(signal, b"vSIG\x02");
        let (kick, _call) = Direct(self.device.clone()).share(queue, place.0, place.1, signal - place.0).unwrap();
        kick
    }

    /// Writes an entry of a split descriptor table.
    pub fn describe(&self, table: u32, index: u16, address: u32, length: u32, [flags, next]: [u16; 2]) {
        let mut entry = u64::from(address).to_le_bytes().to_vec();
        entry.extend(length.to_le_bytes());
        entry.extend([flags, next].into_iter().flat_map(u16::to_le_bytes));
        self.write(table + 16 * u32::from(index), &entry);
    }

    pub fn write(&self, offset: u32, bytes: &[u8]) {
        // SAFETY: mapped, and this test's own.
        unsafe { self.ram.at(offset, bytes.len()).unwrap().as_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
    }

    pub fn read(&self, offset: u32, length: usize) -> Vec<u8> {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.ram.at(offset, length).unwrap().as_ptr(), length) }.to_vec()
    }

    pub fn word(&self, offset: u32) -> &AtomicU16 {
        // SAFETY: as above; aligned by whoever asks.
        unsafe { AtomicU16::from_ptr(self.ram.at(offset, 2).unwrap().as_ptr().cast()) }
    }
}

/// The words of SET_VQ.
pub fn set_vq(queue: u32, size: u32, rings: [u32; 3]) -> Vec<u32> {
    let mut words = vec![queue, size];
    words.extend(rings.iter().flat_map(|ring| [*ring, 0]));
    words
}

pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "no {what}");
        std::thread::yield_now();
    }
}

pub fn frame(to: [u8; 6], from: [u8; 6], length: usize, number: u8) -> Vec<u8> {
    let mut frame = vec![number; length];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

pub fn receive(receiver: &mut Receiver, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let start = Instant::now();
    while frames.len() < count {
        assert!(start.elapsed() < DEADLINE, "only {} of {count} frames came", frames.len());
        receiver.receive(32, |frame| frames.push(frame.to_vec())).unwrap();
        if frames.len() < count {
            receiver.wait(Duration::ZERO, Some(DEADLINE)).unwrap();
        }
    }
    frames
}
