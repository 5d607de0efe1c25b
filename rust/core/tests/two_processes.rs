//! A ring between two real processes: ten million messages each way, and four hundred thousand falls asleep.
//!
//! ```text
//!   parent ("guest")                 region (memfd)                 child ("host")
//!   makes the region, owns the    ring · a word · buffers           opens the region by its descriptor,
//!   ring's producer                                                 owns the ring's consumer
//! ```
//!
//! Every message has its number and a checksum over all its bytes inside the region; lengths and batches are random. A
//! side that has armed its doorbell waits for it ten seconds at most: nothing happens for so long only when a wake-up
//! was lost, or the other side is dead, and then this says which. The child dies with its parent. Weakening either fence
//! of the signal (built with `--cfg vbnet_mutants`; `VBNET_MUTANT=signal_inject` or `signal_arm`) makes this fail on two processors.
//!
//! `VBNET_STRESS_MESSAGES=100000000 cargo test -p vbnet-core --test two_processes` sends more; the number of falls
//! asleep grows with it. Names of tests may be given as filters, as to any other test program.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::catch_unwind;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::layout::ring_bytes;
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::ring::{Consumer, Descriptor, Producer, RingMemory};

/// Longest anybody waits for anything.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often a sleeper looks whether the other side is alive. It does not look at the ring.
const LIFE_SIGN: Duration = Duration::from_millis(250);
const MESSAGES: u64 = 10_000_000;
const SLEEPS: u64 = 400_000;

const RING: u32 = 4096;
const SLOTS: u32 = 1024;
/// Few slots: the sides run dry and full all the time.
const SLEEPY_SLOTS: u32 = 8;
/// How often the child fell asleep, written by the child.
const CHILD_SLEEPS: u32 = 32 * 1024;
const BUFFERS: u32 = 64 * 1024;
const BUFFER_BYTES: u32 = 33 * 64;
const RAM_BYTES: u32 = BUFFERS + SLOTS * BUFFER_BYTES;
const SHORTEST: u32 = 16;
/// Empty looks at the ring before a side of the message tests falls asleep.
const LOOKS: u32 = 2_000;
const STOP: u8 = 1;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((flag, role)) = arguments.split_first()
        && flag == "--role"
    {
        return play(role);
    }
    let tests: [(&str, fn()); 5] = [
        ("messages_to_the_host_arrive_whole_and_in_order", messages_to_the_host_arrive_whole_and_in_order),
        ("messages_to_the_guest_arrive_whole_and_in_order", messages_to_the_guest_arrive_whole_and_in_order),
        ("no_wakeup_is_lost_whenever_the_sides_fall_asleep", no_wakeup_is_lost_whenever_the_sides_fall_asleep),
        ("death_of_the_other_side_is_told_from_a_lost_wakeup", death_of_the_other_side_is_told_from_a_lost_wakeup),
        ("child_dies_with_its_parent", child_dies_with_its_parent),
    ];
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = tests.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|part| name.contains(*part)));
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in chosen {
        let start = Instant::now();
        let is_ok = catch_unwind(test).is_ok();
        *(if is_ok { &mut passed } else { &mut failed }) += 1;
        println!("test {name} ... {} ({:.1} s)", if is_ok { "ok" } else { "FAILED" }, start.elapsed().as_secs_f64());
    }
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed != 0));
}

// The two sides

/// Frames from guest to host: the producer writes the payload, the consumer checks it.
fn messages_to_the_host_arrive_whole_and_in_order() {
    let mut guest = Guest::launch("check", SLOTS, message_count());
    let (mut sent, mut back) = (0, 0);
    let mut random = Random(1);
    let mut idle = 0;
    while back < guest.messages {
        let returned = guest.producer.completed().unwrap();
        guest.producer.reap(returned);
        back += u64::from(returned);
        let count = guest.producer.room().min(1 + random.below(32)).min((guest.messages - sent) as u32);
        for _ in 0..count {
            let descriptor = Descriptor::new(buffer(guest.producer.next_index()), length(sent));
            compose(room(&guest.ram, descriptor), sent);
            assert!(guest.producer.stage(descriptor));
            sent += 1;
        }
        if count != 0 {
            guest.publish();
        }
        idle = if count + returned == 0 { idle + 1 } else { 0 };
        guest.rest_when(idle > LOOKS);
    }
    guest.finish();
}

/// Frames from host to guest: the producer posts empty buffers, the consumer fills and completes them.
fn messages_to_the_guest_arrive_whole_and_in_order() {
    let mut guest = Guest::launch("fill", SLOTS, message_count());
    let (mut posted, mut received) = (0, 0);
    let mut random = Random(2);
    let mut idle = 0;
    while received < guest.messages {
        let returned = guest.producer.completed().unwrap().min(1 + random.below(32));
        for _ in 0..returned {
            let found = guest.producer.peek(0);
            assert_eq!(Descriptor::new(buffer(guest.producer.reap_index()), length(received)), found);
            check(room(&guest.ram, found), received);
            guest.producer.reap(1);
            received += 1;
        }
        let count = guest.producer.room().min((guest.messages - posted) as u32);
        for _ in 0..count {
            let descriptor = Descriptor::new(buffer(guest.producer.next_index()), BUFFER_BYTES);
            assert!(guest.producer.stage(descriptor));
            posted += 1;
        }
        if count != 0 {
            guest.publish();
        }
        idle = if count + returned == 0 { idle + 1 } else { 0 };
        guest.rest_when(idle > LOOKS);
    }
    guest.finish();
}

/// Both sides fall asleep at random moments, over a ring that is often full and often empty, and are always woken.
fn no_wakeup_is_lost_whenever_the_sides_fall_asleep() {
    let wanted = SLEEPS * message_count().div_ceil(MESSAGES);
    let mut guest = Guest::launch("doze", SLEEPY_SLOTS, 0);
    let child_sleeps = word(&guest.ram, CHILD_SLEEPS);
    let (mut sent, mut back) = (0, 0);
    let mut random = Random(3);
    while guest.sleeps.min(child_sleeps.load(Ordering::Relaxed)) < wanted / 2 {
        let returned = guest.producer.completed().unwrap();
        for ahead in 0..returned {
            assert_eq!(Descriptor::new(!back, 2), guest.producer.peek(ahead));
            back = back.wrapping_add(1);
        }
        guest.producer.reap(returned);
        let count = random.below(SLEEPY_SLOTS + 1).min(guest.producer.room());
        for _ in 0..count {
            assert!(guest.producer.stage(Descriptor::new(sent, 1)));
            sent = sent.wrapping_add(1);
        }
        if count != 0 {
            guest.publish();
        }
        random.dawdle();
        let is_drowsy = guest.producer.in_flight() != 0 && random.below(2) == 0;
        guest.rest_when(is_drowsy);
    }
    while guest.producer.room() == 0 {
        let returned = guest.producer.completed().unwrap();
        guest.producer.reap(returned);
        guest.rest_when(returned == 0);
    }
    assert!(guest.producer.stage(Descriptor { offset: sent, length: 1, flags: STOP }));
    guest.publish();
    println!("  asleep: guest {}, host {}", guest.sleeps, child_sleeps.load(Ordering::Relaxed));
    guest.finish();
}

/// A side whose peer died while it slept hears of the death, not of a time-out.
fn death_of_the_other_side_is_told_from_a_lost_wakeup() {
    let mut guest = Guest::launch("die", SLOTS, 0);
    assert!(guest.producer.stage(Descriptor::new(0, 1)));
    guest.publish();

    assert_eq!(Err("the child died while we slept: exit status: 3".to_owned()), guest.rest());
}

/// Nothing of a test is left when its parent is killed: the kernel kills the child.
fn child_dies_with_its_parent() {
    let mut middle = Command::new(std::env::current_exe().unwrap())
        .args(["--role", "nest", &getpid().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .map(Kill)
        .unwrap();
    // Middle and grandchild hold the pipe's other end: it ends when both are gone.
    let mut output = BufReader::new(middle.0.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!("ready\n", line);

    middle.0.kill().unwrap();

    let mut fds = [rustix::event::PollFd::new(output.get_ref(), rustix::event::PollFlags::HUP)];
    let limit = rustix::event::Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(Ok(1), rustix::event::poll(&mut fds, Some(&limit)), "the grandchild lives on");
    assert_eq!(0, output.read(&mut [0]).unwrap());
}

/// What a child does, by its name.
fn play(arguments: &[String]) {
    let number = |at: usize| arguments[at].parse::<u64>().unwrap();
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    if getppid().map(Pid::as_raw_pid) != Some(number(1) as i32) {
        panic!("the parent died before this child could ask to die with it");
    }
    match arguments[0].as_str() {
        "nest" => {
            let _child = Command::new(std::env::current_exe().unwrap())
                .args(["--role", "cling", &getpid().to_string()])
                .spawn()
                .map(Kill)
                .unwrap();
            sleep_until_killed();
        }
        "cling" => {
            println!("ready");
            sleep_until_killed();
        }
        role => {
            // SAFETY: the parent opened these three for this process, which names each of them once.
            let [ram, kick, call] = [2, 3, 4].map(|at| unsafe { OwnedFd::from_raw_fd(number(at) as RawFd) });
            let mut host = Host::attach(ram, Doorbell::from_fd(kick), Doorbell::from_fd(call), number(5) as u32);
            match role {
                "check" => host.check_all(number(6)),
                "fill" => host.fill_all(number(6)),
                "doze" => host.doze(),
                _ => host.die(),
            }
        }
    }
}

fn sleep_until_killed() {
    Doorbell::create().unwrap().wait(None).unwrap();
}

impl Host {
    fn check_all(&mut self, messages: u64) {
        let mut random = Random(4);
        self.serve(messages, |host, ahead, number| {
            let descriptor = host.consumer.peek(ahead);
            assert_eq!(length(number), descriptor.length);
            check(room(&host.ram, descriptor), number);
            random.below(8) != 0
        });
    }

    fn fill_all(&mut self, messages: u64) {
        let mut random = Random(5);
        self.serve(messages, |host, ahead, number| {
            let posted = host.consumer.peek(ahead);
            assert_eq!(BUFFER_BYTES, posted.length);
            let answer = Descriptor::new(posted.offset, length(number));
            compose(room(&host.ram, answer), number);
            host.consumer.complete(ahead, answer);
            random.below(8) != 0
        });
    }

    /// Works on every slot in order; `work` says whether to go on before returning what was done.
    fn serve(&mut self, messages: u64, mut work: impl FnMut(&mut Self, u32, u64) -> bool) {
        let (mut number, mut idle) = (0, 0);
        while number < messages {
            let available = self.consumer.available().unwrap();
            let mut done = 0;
            while done < available {
                let goes_on = work(self, done, number);
                done += 1;
                number += 1;
                if !goes_on {
                    break;
                }
            }
            if done != 0 {
                self.release(done);
            }
            idle = if done == 0 { idle + 1 } else { 0 };
            self.rest_when(idle > LOOKS);
        }
    }

    fn doze(&mut self) {
        let mut random = Random(6);
        let mut expected = 0;
        loop {
            let count = self.consumer.available().unwrap().min(random.below(SLEEPY_SLOTS + 1));
            for ahead in 0..count {
                let found = self.consumer.peek(ahead);
                assert_eq!((expected, 1), (found.offset, found.length));
                if found.flags == STOP {
                    return self.release(ahead + 1);
                }
                self.consumer.complete(ahead, Descriptor::new(!expected, 2));
                expected = expected.wrapping_add(1);
            }
            if count != 0 {
                self.release(count);
            }
            random.dawdle();
            self.rest_when(random.below(2) == 0);
            word(&self.ram, CHILD_SLEEPS).store(self.sleeps, Ordering::Relaxed);
        }
    }

    fn die(&mut self) {
        while self.consumer.available().unwrap() == 0 {
            self.rest_when(true);
        }
        std::process::exit(3);
    }
}

// What both need

/// A child that does not outlive the test.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The parent's side.
struct Guest {
    ram: Arc<Ram>,
    producer: Producer,
    kick: Doorbell,
    call: Doorbell,
    messages: u64,
    sleeps: u64,
    child: Kill,
}

impl Guest {
    fn launch(role: &str, slots: u32, messages: u64) -> Self {
        let ram = Ram::create("two-processes", RAM_BYTES.into()).unwrap();
        let producer = Producer::new(RingMemory::format(&ram, RING, slots).unwrap());
        let (kick, call) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
        // Duplicates stay open over exec; they are closed here as soon as the child has them.
        let handed: [OwnedFd; 3] = [ram.as_fd(), kick.as_fd(), call.as_fd()].map(|fd| rustix::io::dup(fd).unwrap());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--role", role, &getpid().to_string()])
            .args(handed.iter().map(|fd| fd.as_raw_fd().to_string()))
            .args([slots.to_string(), messages.to_string()])
            .spawn()
            .map(Kill)
            .unwrap();
        Self { ram, producer, kick, call, messages, sleeps: 0, child }
    }

    fn publish(&mut self) {
        self.producer.publish();
        if self.producer.notify() {
            self.kick.ring().unwrap();
        }
    }

    fn rest_when(&mut self, is_drowsy: bool) {
        if is_drowsy {
            self.rest().unwrap_or_else(|message| panic!("{message}"));
        }
    }

    /// Sleeps until a slot comes back, unless one has.
    fn rest(&mut self) -> Result<(), String> {
        self.producer.listener().acknowledge();
        if self.producer.completed().unwrap() == 0 && self.producer.listener().arm() {
            self.sleeps += 1;
            let child = &mut self.child.0;
            wait(&self.call, || match child.try_wait().unwrap() {
                Some(status) => Err(format!("the child died while we slept: {status}")),
                None => Ok(()),
            })?;
            self.producer.listener().mask();
        }
        Ok(())
    }

    fn finish(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            match self.child.0.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "the child does not end"),
            }
            std::thread::yield_now();
        };
        assert!(status.success(), "the child ended with {status}");
    }
}

/// The child's side.
struct Host {
    ram: Arc<Ram>,
    consumer: Consumer,
    kick: Doorbell,
    call: Doorbell,
    sleeps: u64,
}

impl Host {
    fn attach(ram: OwnedFd, kick: Doorbell, call: Doorbell, slots: u32) -> Self {
        let ram = Ram::open(ram, RAM_BYTES.into()).unwrap();
        let consumer = Consumer::new(RingMemory::attach(&ram, RING, ring_bytes(slots) as u32).unwrap());
        Self { ram, consumer, kick, call, sleeps: 0 }
    }

    fn release(&mut self, count: u32) {
        self.consumer.advance(count);
        self.consumer.release();
        if self.consumer.notify() {
            self.call.ring().unwrap();
        }
    }

    /// Sleeps until a slot is published, unless one is.
    fn rest_when(&mut self, is_drowsy: bool) {
        if is_drowsy && self.consumer.arm().unwrap() {
            self.sleeps += 1;
            // The kernel kills this process when the parent dies: no need to look.
            wait(&self.kick, || Ok(())).unwrap_or_else(|message| panic!("{message}"));
            self.consumer.listener().mask();
        }
    }
}

/// Waits for the bell alone: whoever looked at the ring again would find work whose bell was lost.
fn wait(bell: &Doorbell, mut look_after_peer: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let deadline = Instant::now() + DEADLINE;
    while !bell.wait(Some(LIFE_SIGN)).unwrap() {
        look_after_peer()?;
        if Instant::now() >= deadline {
            return Err(format!("armed, asleep, and no bell for {DEADLINE:?}: a wake-up was lost"));
        }
    }
    Ok(())
}

fn message_count() -> u64 {
    std::env::var("VBNET_STRESS_MESSAGES").map_or(MESSAGES, |count| count.parse().unwrap())
}

fn buffer(index: u32) -> u32 {
    BUFFERS + index % SLOTS * BUFFER_BYTES
}

fn word(ram: &Arc<Ram>, offset: u32) -> &'static AtomicU64 {
    let place = ram.at(offset, 8).unwrap().cast::<AtomicU64>();
    // SAFETY: aligned and in bounds; leaking an owner keeps the region mapped until the process ends.
    unsafe {
        std::mem::forget(ram.clone());
        place.as_ref()
    }
}

/// The bytes a descriptor names.
#[allow(clippy::mut_from_ref, reason = "the ring lends these bytes to one side at a time")]
fn room(ram: &Ram, descriptor: Descriptor) -> &mut [u8] {
    let place = ram.at(descriptor.offset, descriptor.length as usize).unwrap();
    // SAFETY: in bounds; the slot that names these bytes is in our hands, and one such slice exists at a time.
    unsafe { std::slice::from_raw_parts_mut(place.as_ptr(), descriptor.length as usize) }
}

/// Length of message `number`: mostly small, sometimes a frame's.
fn length(number: u64) -> u32 {
    let noise = mix(number);
    let most = if noise.is_multiple_of(64) { BUFFER_BYTES - SHORTEST } else { 112 };
    SHORTEST + (noise >> 32) as u32 % (most + 1)
}

/// Number, checksum, noise.
fn compose(room: &mut [u8], number: u64) {
    let mut random = Random(mix(number) | 1);
    room[..8].copy_from_slice(&number.to_le_bytes());
    let mut words = room[16..].chunks_exact_mut(8);
    words.by_ref().for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
    let last = random.next().to_le_bytes();
    words.into_remainder().iter_mut().zip(last).for_each(|(byte, noise)| *byte = noise);
    let sum = checksum(room);
    room[8..16].copy_from_slice(&sum.to_le_bytes());
}

fn check(room: &[u8], number: u64) {
    let (found, sum) = (load(&room[..8]), load(&room[8..16]));
    assert_eq!(number, found, "a message is missing, doubled or in the wrong place");
    assert_eq!(checksum(room), sum, "message {number} of {} bytes is not whole", room.len());
}

/// Over number, length and noise.
fn checksum(room: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = room[16..].chunks_exact(8);
    let rest = words.remainder().iter().fold(room.len() as u64, |rest, &byte| rest << 8 | u64::from(byte));
    step(words.fold(step(7, load(&room[..8])), |sum, word| step(sum, load(word))), rest)
}

fn load(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

const fn mix(number: u64) -> u64 {
    let mixed = (number ^ number >> 31).wrapping_mul(0x7fb5_d329_728e_a185);
    (mixed ^ mixed >> 27).wrapping_mul(0x81da_def4_bc2d_d44d)
}

/// Numbers that look random and are the same in every run (xorshift64*).
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    const fn below(&mut self, limit: u32) -> u32 {
        (self.next() >> 32) as u32 % limit
    }

    /// Does nothing for a random, mostly short time: the other side's steps fall anywhere between ours.
    fn dawdle(&mut self) {
        let turns = if self.below(16) == 0 { 2_000 } else { 60 };
        (0..self.below(turns)).for_each(|_| std::hint::spin_loop());
    }
}
