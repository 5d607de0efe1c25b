//! The guest side of a venet port for tests: bare rings, frames built and read byte by byte.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vbnet_core::fabric::{Fabric, PortId, VenetParams, VenetQueues};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::{PortCounter, PortEvent};
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::layout::ring_bytes;
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::ring::{Descriptor, Producer, RingMemory};

/// Longest any test waits for anything.
pub const DEADLINE: Duration = Duration::from_secs(10);

const TX_RING: u32 = 4096;

/// Where one guest's rings and buffers are.
#[derive(Clone, Copy)]
pub struct Shape {
    pub slots: u32,
    pub buffer_bytes: u32,
}

impl Shape {
    pub const SMALL: Self = Self { slots: 64, buffer_bytes: 2048 };

    fn ring_bytes(self) -> u32 {
        (ring_bytes(self.slots) as u32).next_multiple_of(128)
    }

    pub fn tx_ring(self) -> (u32, u32) {
        (TX_RING, ring_bytes(self.slots) as u32)
    }

    pub fn rx_ring(self) -> (u32, u32) {
        (TX_RING + self.ring_bytes(), ring_bytes(self.slots) as u32)
    }

    /// A whole number of lines, an odd one.
    pub fn stride(self) -> u32 {
        (self.buffer_bytes.div_ceil(64) | 1) * 64
    }

    pub fn tx_buffer(self, index: u32) -> u32 {
        TX_RING + 2 * self.ring_bytes() + (index % self.slots) * self.stride()
    }

    pub fn rx_buffer(self, index: u32) -> u32 {
        self.tx_buffer(0) + self.slots * self.stride() + (index % self.slots) * self.stride()
    }

    pub fn ram_bytes(self) -> u32 {
        (self.rx_buffer(0) + self.slots * self.stride()).max(8192)
    }
}

/// A guest with its two rings. RX buffers are posted by hand: `post`.
pub struct Guest {
    pub shape: Shape,
    pub ram: Arc<Ram>,
    pub tx: Producer,
    pub rx: Producer,
    pub tx_kick: Doorbell,
    pub tx_call: Doorbell,
    pub rx_kick: Doorbell,
    pub rx_call: Doorbell,
}

fn shared(bell: &Doorbell) -> Doorbell {
    Doorbell::from_fd(rustix::io::dup(bell).unwrap())
}

impl Guest {
    pub fn new(shape: Shape) -> Self {
        let ram = Ram::create("test-guest", shape.ram_bytes().into()).unwrap();
        let tx = Producer::new(RingMemory::format(&ram, shape.tx_ring().0, shape.slots).unwrap());
        let rx = Producer::new(RingMemory::format(&ram, shape.rx_ring().0, shape.slots).unwrap());
        let bell = || Doorbell::create().unwrap();
        Self { shape, ram, tx, rx, tx_kick: bell(), tx_call: bell(), rx_kick: bell(), rx_call: bell() }
    }

    /// What the host is handed: the same memory, mapped again, and the same doorbells.
    pub fn queues(&self) -> VenetQueues {
        VenetQueues {
            guest: String::new(),
            ram: Ram::open(rustix::io::dup(&*self.ram).unwrap(), u64::MAX).unwrap(),
            tx: self.shape.tx_ring(),
            rx: self.shape.rx_ring(),
            tx_kick: shared(&self.tx_kick),
            tx_call: shared(&self.tx_call).into(),
            rx_kick: shared(&self.rx_kick),
            rx_call: shared(&self.rx_call).into(),
        }
    }

    pub fn write(&self, offset: u32, bytes: &[u8]) {
        let place = self.ram.at(offset, bytes.len()).unwrap();
        // SAFETY: `at` checked the bounds; the test keeps to buffers that are the guest's.
        unsafe { bytes.as_ptr().copy_to_nonoverlapping(place.as_ptr(), bytes.len()) };
    }

    pub fn read(&self, offset: u32, length: u32) -> Vec<u8> {
        let place = self.ram.at(offset, length as usize).unwrap();
        let mut bytes = vec![0; length as usize];
        // SAFETY: `at` checked the bounds.
        unsafe { place.as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Posts `count` empty buffers.
    pub fn post(&mut self, count: u32) {
        for _ in 0..count {
            let offset = self.shape.rx_buffer(self.rx.next_index());
            assert!(self.rx.stage(Descriptor::new(offset, self.shape.buffer_bytes)));
        }
        self.rx.publish();
    }

    /// Forgets what was received and posts every buffer there is.
    pub fn refill(&mut self) {
        self.received();
        self.post(self.rx.room());
    }

    /// Lays a frame into the next TX slot without publishing it. `false`: no room.
    pub fn stage(&mut self, frame: &[u8]) -> bool {
        let returned = self.tx.completed().unwrap();
        self.tx.reap(returned);
        if self.tx.room() == 0 {
            return false;
        }
        let offset = self.shape.tx_buffer(self.tx.next_index());
        self.write(offset, frame);
        self.tx.stage(Descriptor::new(offset, frame.len() as u32))
    }

    /// Publishes what was staged and kicks if the host sleeps.
    pub fn publish(&mut self) {
        self.tx.publish();
        if self.tx.notify() {
            self.tx_kick.ring().unwrap();
        }
    }

    pub fn send(&mut self, frame: &[u8]) {
        eventually(|| self.stage(frame));
        self.publish();
    }

    /// Waits until every frame sent was taken.
    pub fn drain(&mut self) {
        eventually(|| {
            let returned = self.tx.completed().unwrap();
            self.tx.reap(returned);
            self.tx.in_flight() == 0
        });
    }

    /// Takes one received frame if there is one. Its buffer is not posted again.
    pub fn receive_nowait(&mut self) -> Option<Vec<u8>> {
        if self.rx.completed().unwrap() == 0 {
            return None;
        }
        let descriptor = self.rx.peek(0);
        self.rx.reap(1);
        Some(self.read(descriptor.offset, descriptor.length))
    }

    /// Everything received so far.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.receive_nowait()).collect()
    }

    /// Sleeps on the doorbell until a frame comes in.
    pub fn receive(&mut self) -> Vec<u8> {
        let start = Instant::now();
        loop {
            self.rx.listener().acknowledge();
            if let Some(frame) = self.receive_nowait() {
                self.rx.listener().mask();
                return frame;
            }
            if self.rx.listener().arm() {
                assert!(start.elapsed() < DEADLINE, "nothing received");
                self.rx_call.wait(Some(DEADLINE)).unwrap();
            }
        }
    }
}

/// Polls until `claim` holds. Panics at the deadline.
pub fn eventually(mut claim: impl FnMut() -> bool) {
    let start = Instant::now();
    while !claim() {
        assert!(start.elapsed() < DEADLINE, "it never happened");
        thread::yield_now();
    }
}

pub fn mac(number: u8) -> MacAddress {
    MacAddress::new([2, 0, 0, 0, 0, number])
}

/// A frame of `length` bytes whose payload depends on every argument and every position.
pub fn frame(to: MacAddress, from: MacAddress, length: usize, seed: u8) -> Vec<u8> {
    let mut bytes = [to.bytes(), from.bytes()].concat();
    bytes.extend([0x88, 0xb5]);
    bytes.extend(
        (bytes.len()..length).map(|index| (index as u8).wrapping_mul(31).wrapping_add(seed) ^ (index >> 8) as u8),
    );
    bytes
}

/// Payload of a [`long_frame`].
pub const LONG_PAYLOAD_BYTES: usize = 4000;

/// A long packet of TCP, its checksum open, and the header that leaves it to others.
pub fn long_frame(to: MacAddress, from: MacAddress) -> (Vec<u8>, Vec<u8>) {
    long_frame_of(to, from, LONG_PAYLOAD_BYTES)
}

/// The same with another length of payload.
pub fn long_frame_of(to: MacAddress, from: MacAddress, payload_bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let mut header = vec![1, 1];
    header.extend([54u16, 1400, 34, 16].into_iter().flat_map(u16::to_le_bytes));
    (header, tcp_frame(to, from, payload_bytes))
}

/// A packet of TCP whose checksum is open: its field holds the sum of the pseudo-header.
pub fn tcp_frame(to: MacAddress, from: MacAddress, payload_bytes: usize) -> Vec<u8> {
    let total = (40 + payload_bytes) as u16;
    let mut frame = [to.bytes(), from.bytes()].concat();
    frame.extend([0x08, 0x00, 0x45, 0, (total >> 8) as u8, total as u8, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0]);
    let mut sum: u32 = 0x0a00 + 1 + 0x0a00 + 2 + 6 + 20 + payload_bytes as u32;
    sum = (sum & 0xffff) + (sum >> 16);
    frame.extend([(sum >> 8) as u8, sum as u8, 0, 0]);
    frame.extend((0..payload_bytes).map(|index| ((index * 7) >> 3) as u8));
    frame
}

/// A fabric with one switch and a few guests on it.
pub struct Lab {
    pub counters: Arc<CounterFile>,
    pub fabric: Fabric,
    pub guests: Vec<Guest>,
    pub ids: Vec<PortId>,
}

pub const SWITCH: &str = "lan";

impl Lab {
    /// `count` guests named `g0`, `g1`, … without addresses of their own, all RX buffers posted.
    pub fn new(count: usize) -> Self {
        Self::with(count, Shape::SMALL, VenetParams::default())
    }

    pub fn with(count: usize, shape: Shape, params: VenetParams) -> Self {
        let counters = Arc::new(CounterFile::create(None, 1 << 20).unwrap());
        let fabric = Fabric::new(counters.clone(), 1).unwrap();
        fabric.switch_create(SWITCH, 300).unwrap();
        let mut lab = Self { counters, fabric, guests: Vec::new(), ids: Vec::new() };
        for index in 0..count {
            let mut guest = Guest::new(shape);
            guest.post(shape.slots);
            let id = lab.fabric.port_add_venet(SWITCH, &format!("g{index}"), guest.queues(), params).unwrap();
            lab.guests.push(guest);
            lab.ids.push(id);
        }
        lab
    }

    /// Everything sent so far has been forwarded, and receivers have been told.
    pub fn settle(&mut self) {
        self.guests.iter_mut().for_each(Guest::drain);
        self.barrier();
    }

    /// As `settle`, for all guests but one that is not attached.
    pub fn settle_except(&mut self, detached: usize) {
        let others = self.guests.iter_mut().enumerate().filter(|&(index, _)| index != detached);
        others.for_each(|(_, guest)| guest.drain());
        self.barrier();
    }

    /// Every round begun before is over.
    pub fn barrier(&self) {
        self.fabric.macs(SWITCH).unwrap();
    }

    pub fn count(&self, guest: usize, counter: PortCounter) -> u64 {
        self.count_of(&format!("g{guest}"), counter)
    }

    pub fn count_of(&self, port: &str, counter: PortCounter) -> u64 {
        let wanted = format!("device={port},");
        let blocks = self.counters.reader().blocks();
        let block = blocks.iter().find(|block| block.kind == "port" && block.labels.contains(&wanted)).unwrap();
        block.values[counter as usize]
    }

    /// Waits for something to break.
    pub fn fault(&self) -> PortEvent {
        let start = Instant::now();
        loop {
            if let Some(event) = self.fabric.take_faults().pop() {
                return event;
            }
            assert!(start.elapsed() < DEADLINE, "nothing broke");
            self.fabric.wait_fault(DEADLINE).unwrap();
        }
    }

    /// A frame from one guest still reaches the other.
    pub fn assert_passes(&mut self, from: usize, to: usize) {
        let sent = frame(MacAddress::BROADCAST, mac(0xf0 + from as u8), 200, 77);
        self.barrier();
        self.guests[to].refill();
        self.guests[from].send(&sent);
        assert_eq!(sent, self.guests[to].receive());
    }
}
