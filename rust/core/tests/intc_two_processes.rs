//! A level between two real processes: two threads raise ten million signals, and no wake-up for one is lost.
//!
//! ```text
//!   parent ("host"): two raisers        region (memfd)            child ("guest"): takes, and falls asleep at random
//!     raised[v] += 1, raise(v)          level · raised · seen       take v: seen[v] = what raised[v] says
//!     after each burst: all quiet, until seen[v] is what was raised last
//! ```
//!
//! After every burst nobody raises until the last raise of both threads was seen, so no later raise can make up for a bell
//! that did not ring. Nothing happens for ten seconds only when a wake-up was lost, or the other side is dead. The child
//! dies with its parent. `VBNET_STRESS_RAISES=1000000000 cargo test -p vbnet-core --test intc_two_processes` raises more.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so by panicking")]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::intc::{LEVEL_BYTES, LevelMemory, Raised, Raiser, Taker, VECTORS, Way};
use vbnet_core::shm::region::Ram;

/// Longest anybody waits for anything.
const DEADLINE: Duration = Duration::from_secs(10);
const RAISES: u64 = 10_000_000;
const NAME: &str = "every_signal_is_seen_and_no_wakeup_is_lost";

const LEVEL: u32 = 4096;
const RAISED: u32 = 8192;
const SEEN: u32 = RAISED + 8 * VECTORS;
/// How often the child fell asleep.
const SLEEPS: u32 = SEEN + 8 * VECTORS;
const RAM_BYTES: u32 = SLEEPS + 4096;
/// Tells the child to end.
const STOP: u32 = 0;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((flag, handed)) = arguments.split_first()
        && flag == "--child"
    {
        return take_all(handed);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return println!("{NAME}: test");
    }
    let mut filters = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
    if filters.peek().is_none() || filters.any(|filter| NAME.contains(filter.as_str())) {
        raise_all();
        println!("test {NAME} ... ok");
    }
}

/// The parent.
fn raise_all() {
    let ram = Ram::create("intc-two-processes", RAM_BYTES.into()).unwrap();
    LevelMemory::format(&ram, LEVEL).unwrap();
    let raiser = Raiser::new(attach(&ram), Way::ToGuest);
    let bell = Doorbell::create().unwrap();
    // Duplicates stay open over exec; they are closed here as soon as the child has them.
    let handed: [OwnedFd; 2] = [ram.as_fd(), bell.as_fd()].map(|fd| rustix::io::dup(fd).unwrap());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--child", &getpid().to_string()])
        .args(handed.iter().map(|fd| fd.as_raw_fd().to_string()))
        .spawn()
        .map(Kill)
        .unwrap();
    drop(handed);
    let wanted = std::env::var("VBNET_STRESS_RAISES").map_or(RAISES, |count| count.parse().unwrap());
    let raise = |vector: u32| {
        let number = word(&ram, RAISED, vector).fetch_add(1, Ordering::Relaxed) + 1;
        if raiser.raise(vector) == Raised::Asleep {
            bell.ring().unwrap();
        }
        number
    };
    let quiet = Barrier::new(2);

    let raise_half = |seed: u64| {
        // Both threads draw the same lengths, so that both meet at every barrier, and vectors of their own.
        let (mut lengths, mut vectors) = (Random(7), Random(seed));
        let mut raises = 0;
        while raises < wanted / 2 {
            // Few vectors at times, so that most raises meet a pending bit; short bursts at times, to meet the arming.
            let spread = [2, 64, VECTORS - 1][vectors.below(3) as usize];
            let length = [1, 16, 1000, 4000][lengths.below(4) as usize];
            let mut last = (STOP, 0);
            for _ in 0..length {
                let vector = 1 + vectors.below(spread);
                last = (vector, raise(vector));
            }
            raises += length;
            quiet.wait();
            let start = Instant::now();
            while word(&ram, SEEN, last.0).load(Ordering::Acquire) < last.1 {
                if start.elapsed() > DEADLINE {
                    // The other thread waits at a barrier, and would for ever.
                    eprintln!("raise {} of vector {} was not seen: a wake-up was lost", last.1, last.0);
                    std::process::exit(1);
                }
                thread::yield_now();
            }
            quiet.wait();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| raise_half(1));
        raise_half(2);
    });
    raise(STOP);

    let start = Instant::now();
    let status = loop {
        match child.0.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(start.elapsed() < DEADLINE, "the child does not end"),
        }
        thread::yield_now();
    };
    assert!(status.success(), "the child ended with {status}");
    let unseen = (1..VECTORS).filter(|&vector| {
        word(&ram, SEEN, vector).load(Ordering::Relaxed) != word(&ram, RAISED, vector).load(Ordering::Relaxed)
    });
    assert_eq!(0, unseen.count());
    println!("  asleep: {}", word(&ram, SLEEPS, 0).load(Ordering::Relaxed));
}

/// The child.
fn take_all(handed: &[String]) {
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    if getppid().map(Pid::as_raw_pid) != Some(handed[0].parse().unwrap()) {
        panic!("the parent died before this child could ask to die with it");
    }
    // SAFETY: the parent opened these two for this process, which names each of them once.
    let [ram, bell] = [1, 2].map(|at| unsafe { OwnedFd::from_raw_fd(handed[at].parse::<RawFd>().unwrap()) });
    let (ram, bell) = (Ram::open(ram, RAM_BYTES.into()).unwrap(), Doorbell::from_fd(bell));
    let mut taker = Taker::new(attach(&ram), Way::ToGuest);
    let mut random = Random(2);
    let mut is_over = false;
    loop {
        let budget = [1, 7, 64, u32::MAX][random.below(4) as usize];
        let taken = taker.take(budget, |vector| {
            is_over |= vector == STOP;
            let number = word(&ram, RAISED, vector).load(Ordering::Relaxed);
            word(&ram, SEEN, vector).store(number, Ordering::Release);
        });
        if taken == 0 && is_over {
            return;
        }
        let turns = if random.below(16) == 0 { 2_000 } else { 60 };
        (0..random.below(turns)).for_each(|_| std::hint::spin_loop());
        // Often with something left behind, which arming must notice.
        if !is_over && random.below(2) == 0 && taker.arm() {
            word(&ram, SLEEPS, 0).fetch_add(1, Ordering::Relaxed);
            // Waits for the bell alone: whoever looked at the level again would find what was lost.
            assert!(bell.wait(Some(DEADLINE)).unwrap(), "armed, asleep, and no bell: a wake-up was lost");
            taker.disarm();
        }
    }
}

fn attach(ram: &Arc<Ram>) -> LevelMemory {
    LevelMemory::attach(ram, LEVEL, LEVEL_BYTES as u32).unwrap()
}

/// Word `index` of an array of the region's.
fn word(ram: &Arc<Ram>, array: u32, index: u32) -> &AtomicU64 {
    let place = ram.at(array + 8 * index, 8).unwrap().cast::<AtomicU64>();
    // SAFETY: in bounds, aligned, accessed by atomics only, and borrowed from the region that maps it.
    unsafe { place.as_ref() }
}

/// A child that does not outlive the test.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
}
