//! How fast frames go guest → switch → guest, with generator and sink on one core and the worker on the other.
//!
//! `switch_speed [LENGTH] [SECONDS] [ATTACHED] [SLOTS]`: bytes a frame, seconds to measure, guests attached (two of them
//! active), ring slots. Prints one line: millions of frames a second received, drops, and the ping-pong of a cache line
//! between the two cores before and after, which says where the hypervisor put them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vbnet_core::fabric::{Fabric, VenetParams, VenetQueues};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::PortCounter;
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::layout::ring_bytes;
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::ring::{Descriptor, Producer, RingMemory};
use vbnet_core::worker::WorkerCounter;

const BURST: u32 = 32;

struct Guest {
    ram: Arc<Ram>,
    tx: Producer,
    rx: Producer,
    kick: Doorbell,
    slots: u32,
    stride: u32,
    first: u32,
}

impl Guest {
    fn attach(fabric: &Fabric, name: &str, slots: u32, length: u32, mac: MacAddress, mtu: u32) -> Self {
        let ring = (ring_bytes(slots) as u32).next_multiple_of(128);
        let stride = (length.div_ceil(64) | 1) * 64;
        let first = 4096 + 2 * ring;
        let ram = Ram::create(name, u64::from(first + 2 * slots * stride)).unwrap();
        let tx = Producer::new(RingMemory::format(&ram, 4096, slots).unwrap());
        let rx = Producer::new(RingMemory::format(&ram, 4096 + ring, slots).unwrap());
        let bell = || Doorbell::create().unwrap();
        let kick = bell();
        let queues = VenetQueues {
            guest: String::new(),
            ram: Ram::open(rustix::io::dup(&*ram).unwrap(), u64::MAX).unwrap(),
            tx: (4096, ring_bytes(slots) as u32),
            rx: (4096 + ring, ring_bytes(slots) as u32),
            tx_kick: Doorbell::from_fd(rustix::io::dup(&kick).unwrap()),
            tx_call: bell().into(),
            rx_kick: bell(),
            rx_call: bell().into(),
        };
        let params = VenetParams { mac, mtu, ..VenetParams::default() };
        fabric.port_add_venet("lan", name, queues, params).unwrap();
        Self { ram, tx, rx, kick, slots, stride, first }
    }

    fn place(&self, index: u32) -> (u32, *mut u8) {
        let offset = self.first + index * self.stride;
        (offset, self.ram.at(offset, self.stride as usize).unwrap().as_ptr())
    }

    /// Sends a burst, writing every byte of every frame. Answers how many.
    fn generate(&mut self, header: &[u8; 14], length: u32, seed: u64) -> u32 {
        let returned = self.tx.completed().unwrap();
        self.tx.reap(returned);
        if self.tx.room() < BURST {
            return 0;
        }
        for _ in 0..BURST {
            let (offset, place) = self.place(self.tx.next_index() & (self.slots - 1));
            // SAFETY: the buffer is this slot's, `stride` ≥ `length` ≥ 64 bytes.
            unsafe {
                place.write_bytes(seed as u8, length as usize);
                place.copy_from_nonoverlapping(header.as_ptr(), 14);
            }
            assert!(self.tx.stage(Descriptor::new(offset, length)));
        }
        self.tx.publish();
        if self.tx.notify() {
            self.kick.ring().unwrap();
        }
        BURST
    }

    fn post(&mut self) {
        while self.rx.room() != 0 {
            let (offset, _) = self.place(self.slots + (self.rx.next_index() & (self.slots - 1)));
            assert!(self.rx.stage(Descriptor::new(offset, self.stride)));
        }
        self.rx.publish();
    }

    /// Reads every byte of up to a burst of frames and posts their buffers again. Answers how many.
    fn consume(&mut self, sum: &mut u64) -> u32 {
        let ready = self.rx.completed().unwrap().min(BURST);
        for ahead in 0..ready {
            let descriptor = self.rx.peek(ahead);
            let place = self.ram.at(descriptor.offset, descriptor.length as usize).unwrap().as_ptr();
            for word in 0..descriptor.length as usize / 8 {
                // SAFETY: within the frame.
                *sum = sum.wrapping_add(unsafe { place.cast::<u64>().add(word).read_unaligned() });
            }
        }
        if ready != 0 {
            self.rx.reap(ready);
            self.post();
        }
        ready
    }
}

fn pin(core: usize) {
    // SAFETY: an empty set, one core added, for the calling thread.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

/// Nanoseconds a cache line takes there and back.
fn ping_pong() -> f64 {
    let word = Arc::new(AtomicU32::new(0));
    let other = word.clone();
    let rounds = 100_000;
    let echo = thread::spawn(move || {
        pin(0);
        for round in 0..rounds {
            while other.load(Ordering::Acquire) != 2 * round + 1 {
                std::hint::spin_loop();
            }
            other.store(2 * round + 2, Ordering::Release);
        }
    });
    thread::sleep(Duration::from_millis(5));
    let start = Instant::now();
    for round in 0..rounds {
        word.store(2 * round + 1, Ordering::Release);
        while word.load(Ordering::Acquire) != 2 * round + 2 {
            std::hint::spin_loop();
        }
    }
    let took = start.elapsed();
    echo.join().unwrap();
    took.as_nanos() as f64 / f64::from(rounds)
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<f64>().unwrap());
    let length = arguments.next().unwrap_or(64.0) as u32;
    let seconds = arguments.next().unwrap_or(1.0);
    let attached = arguments.next().unwrap_or(2.0) as u32;
    let slots = arguments.next().unwrap_or(1024.0) as u32;

    // The worker inherits core 0.
    pin(0);
    let counters = Arc::new(CounterFile::create(None, 4 << 20).unwrap());
    let fabric = Fabric::new(counters.clone(), 1).unwrap();
    pin(1);
    fabric.switch_create("lan", 300).unwrap();
    let mac = |number: u32| {
        let [a, b, ..] = number.to_le_bytes();
        MacAddress::new([2, 0, 0, 0, b, a])
    };
    let mtu = length.max(1500);
    let idle: Vec<_> =
        (2..attached).map(|n| Guest::attach(&fabric, &format!("idle{n}"), 64, 64, mac(n + 2), mtu)).collect();
    let mut source = Guest::attach(&fabric, "source", slots, length, mac(1), mtu);
    let mut sink = Guest::attach(&fabric, "sink", slots, length, mac(2), mtu);
    sink.post();
    let mut header = [0; 14];
    header[..6].copy_from_slice(&mac(2).bytes());
    header[6..12].copy_from_slice(&mac(1).bytes());
    header[12..].copy_from_slice(&[0x88, 0xb5]);

    let before = ping_pong();
    let mut sum = 0;
    let rounds = || {
        let blocks = counters.reader().blocks();
        let values = &blocks.iter().find(|block| block.kind == "worker").unwrap().values;
        (values[WorkerCounter::BusyRounds as usize], values[WorkerCounter::IdleRounds as usize])
    };
    let mut run = |seconds: f64| {
        let start = Instant::now();
        let (mut sent, mut received) = (0u64, 0u64);
        while start.elapsed().as_secs_f64() < seconds {
            for _ in 0..64 {
                sent += u64::from(source.generate(&header, length, sent));
                received += u64::from(sink.consume(&mut sum));
            }
        }
        (sent, received, start.elapsed().as_secs_f64())
    };
    run(0.1);
    let (busy, idle_rounds) = rounds();
    let (sent, received, took) = run(seconds);
    let (busy, idle_rounds) = (rounds().0 - busy, rounds().1 - idle_rounds);
    let after = ping_pong();
    let blocks = counters.reader().blocks();
    let drops = blocks.iter().find(|block| block.labels.contains("device=sink")).unwrap().values
        [PortCounter::ReceiveDropNoRoom as usize];
    println!(
        "{length} B, {attached} attached, {slots} slots: {:.2} M/s received, {:.2} M/s sent, {drops} dropped, {:.0} frames a round, {:.0} % idle rounds, line {before:.0}/{after:.0} ns, sum {sum}",
        received as f64 / took / 1e6,
        sent as f64 / took / 1e6,
        sent as f64 / busy as f64,
        100.0 * idle_rounds as f64 / (busy + idle_rounds) as f64,
    );
    drop(idle);
}
