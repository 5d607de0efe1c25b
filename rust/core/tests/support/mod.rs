//! A host for tests: a learning switch without threads, budgets or mercy, on the consuming ends of the guests' rings.
//!
//! It moves frames when it is told to, or on a thread of its own; a hook may drop, change, repeat or delay any of them.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test support fails loudly")]

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vbnet_core::guest::venet::{self, Bells, Receiver, Sender, VenetLayout};
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::ring::{Consumer, Descriptor, RingMemory};

/// What happens to one frame on its way: what arrives instead of it, in order.
pub type Hook = Box<dyn FnMut(&[u8]) -> Vec<Vec<u8>> + Send>;

struct Port {
    ram: Arc<Ram>,
    tx: Consumer,
    rx: Consumer,
    tx_kick: Doorbell,
    tx_call: Doorbell,
    rx_call: Doorbell,
}

/// The host.
#[derive(Default)]
pub struct FakeHost {
    ports: Vec<Port>,
    macs: HashMap<[u8; 6], usize>,
    hook: Option<Hook>,
    /// Every frame that entered, when asked for.
    pub captured: Option<Vec<Vec<u8>>>,
    /// Frames that found no buffer.
    pub dropped: u64,
}

fn again(bell: &Doorbell) -> Doorbell {
    Doorbell::from_fd(bell.as_fd().try_clone_to_owned().unwrap())
}

fn bytes_at(ram: &Ram, offset: u32, length: u32) -> *mut u8 {
    ram.at(offset, length as usize).unwrap().as_ptr()
}

impl FakeHost {
    /// Makes a guest's RAM and driver, and attaches to it.
    pub fn attach(&mut self, mtu: u32, slots: u32) -> (Sender, Receiver) {
        self.attach_uneven(mtu, slots, slots)
    }

    /// As [`Self::attach`], with rings of different lengths.
    pub fn attach_uneven(&mut self, mtu: u32, tx_slots: u32, rx_slots: u32) -> (Sender, Receiver) {
        let layout = VenetLayout::plan(0, mtu, tx_slots, rx_slots).unwrap();
        let ram = Ram::create("test-guest", layout.ram_bytes()).unwrap();
        let (mut sender, mut receiver) = venet::open(&ram, layout).unwrap();
        let bells = || Bells { kick: Doorbell::create().unwrap(), call: Doorbell::create().unwrap() };
        let (tx, rx) = (bells(), bells());
        self.ports.push(Port {
            tx: Consumer::new(RingMemory::attach(&ram, layout.tx_offset, layout.tx_bytes()).unwrap()),
            rx: Consumer::new(RingMemory::attach(&ram, layout.rx_offset, layout.rx_bytes()).unwrap()),
            ram,
            tx_kick: again(&tx.kick),
            tx_call: again(&tx.call),
            rx_call: again(&rx.call),
        });
        sender.connect(tx);
        receiver.connect(rx);
        (sender, receiver)
    }

    /// Forgets the guest attached last.
    pub fn detach_last(&mut self) {
        self.ports.pop();
        let left = self.ports.len();
        self.macs.retain(|_, port| *port < left);
    }

    /// Decides what becomes of each frame from now on.
    pub fn set_hook(&mut self, hook: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static) {
        self.hook = Some(Box::new(hook));
    }

    /// Moves frames until none is left; how many there were.
    pub fn pump(&mut self) -> usize {
        let mut moved = 0;
        for index in 0..self.ports.len() {
            for frame in self.take(index) {
                moved += 1;
                self.forward(index, frame);
            }
        }
        moved
    }

    /// Everything a guest has sent and nobody has seen yet.
    pub fn take(&mut self, index: usize) -> Vec<Vec<u8>> {
        let port = &mut self.ports[index];
        let mut frames = Vec::new();
        while port.tx.available().unwrap() != 0 {
            let found = port.tx.peek(0);
            let place = bytes_at(&port.ram, found.offset, found.length);
            // SAFETY: in bounds, and ours until the slot is released below.
            frames.push(unsafe { std::slice::from_raw_parts(place, found.length as usize) }.to_vec());
            port.tx.advance(1);
        }
        port.tx.release();
        if port.tx.notify() {
            port.tx_call.ring().unwrap();
        }
        if let Some(captured) = &mut self.captured {
            captured.extend(frames.iter().cloned());
        }
        frames
    }

    fn forward(&mut self, from: usize, frame: Vec<u8>) {
        let arriving = match &mut self.hook {
            Some(hook) => hook(&frame),
            None => vec![frame],
        };
        for frame in arriving {
            let mac = |start: usize| <[u8; 6]>::try_from(&frame[start..start + 6]).unwrap();
            self.macs.insert(mac(6), from);
            match self.macs.get(&mac(0)).copied() {
                Some(to) => self.deliver(to, &frame),
                None => {
                    for to in (0..self.ports.len()).filter(|to| *to != from) {
                        self.deliver(to, &frame);
                    }
                }
            }
        }
    }

    /// Writes a frame into a guest's next buffer. Without one it is dropped and counted.
    pub fn deliver(&mut self, to: usize, frame: &[u8]) {
        let port = &mut self.ports[to];
        if port.rx.available().unwrap() == 0 {
            self.dropped += 1;
            return;
        }
        let found = port.rx.peek(0);
        assert!(frame.len() <= found.length as usize, "a buffer of {} is too small", found.length);
        let place = bytes_at(&port.ram, found.offset, found.length);
        // SAFETY: in bounds, and ours until the slot is released below.
        unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), place, frame.len()) };
        port.rx.complete(0, Descriptor::new(found.offset, frame.len() as u32));
        Self::hand_over(port);
    }

    /// Completes a guest's next buffer with a descriptor that was never posted.
    pub fn break_contract(&mut self, to: usize) {
        let port = &mut self.ports[to];
        assert_ne!(0, port.rx.available().unwrap());
        port.rx.complete(0, Descriptor::new(64, 64));
        Self::hand_over(port);
    }

    fn hand_over(port: &mut Port) {
        port.rx.advance(1);
        port.rx.release();
        if port.rx.notify() {
            port.rx_call.ring().unwrap();
        }
    }

    /// Sleeps until a guest sends, at most `timeout`.
    fn wait(&mut self, timeout: Duration) {
        for port in &mut self.ports {
            if !port.tx.arm().unwrap() {
                return;
            }
        }
        let mut fds: Vec<PollFd<'_>> =
            self.ports.iter().map(|port| PollFd::new(&port.tx_kick, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
        let _ = poll(&mut fds, Some(&timeout));
        for port in &self.ports {
            port.tx_kick.quiet();
        }
    }

    /// Moves frames on a thread, until the answer is dropped.
    pub fn start(self) -> RunningHost {
        let host = Arc::new(Mutex::new(self));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, flag) = (host.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                let mut host = shared.lock().unwrap();
                if host.pump() == 0 {
                    host.wait(Duration::from_millis(5));
                }
            }
        });
        RunningHost { host, stop, thread: Some(thread) }
    }
}

/// A fake host on its thread.
pub struct RunningHost {
    host: Arc<Mutex<FakeHost>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RunningHost {
    /// Does something to the host between two of its rounds.
    pub fn with<T>(&self, action: impl FnOnce(&mut FakeHost) -> T) -> T {
        action(&mut self.host.lock().unwrap())
    }
}

impl Drop for RunningHost {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A MAC of the test's own.
pub const fn mac(number: u8) -> [u8; 6] {
    [0x02, 0x76, 0x62, 0, 0, number]
}
