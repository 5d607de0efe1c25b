//! Doorbells: a ring is never lost, a wait always ends, a full counter is no error.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use rustix::io::{Errno, read, write};
use vbnet_core::error::Error;
use vbnet_core::shm::doorbell::Doorbell;

/// Longest any test waits for anything.
const DEADLINE: Option<Duration> = Some(Duration::from_secs(10));
const NOT_AT_ALL: Option<Duration> = Some(Duration::ZERO);

/// Nobody rang: the wait ends by itself and says so.
#[test]
fn wait_that_nobody_ends_is_over_after_its_time() {
    let bell = Doorbell::create().unwrap();
    for timeout in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(3)] {
        assert!(!bell.wait(Some(timeout)).unwrap());
    }
}

/// A ring before the wait is not lost: the wait ends at once, whatever its limit.
#[test]
fn ring_before_the_wait_ends_it_at_once() {
    let bell = Doorbell::create().unwrap();
    for timeout in [NOT_AT_ALL, DEADLINE, None, Some(Duration::MAX)] {
        bell.ring().unwrap();
        assert!(bell.wait(timeout).unwrap());
    }
}

/// Any number of rings wakes once; after that there is quiet.
#[test]
fn many_rings_wake_once() {
    let bell = Doorbell::create().unwrap();
    (0..1000).for_each(|_| bell.ring().unwrap());

    assert_eq!([true, false], [bell.wait(NOT_AT_ALL).unwrap(), bell.wait(NOT_AT_ALL).unwrap()]);
}

/// Rings so far can be forgotten, and forgetting nothing does not block.
#[test]
fn quiet_forgets_earlier_rings() {
    let bell = Doorbell::create().unwrap();
    bell.ring().unwrap();
    bell.quiet();
    bell.quiet();

    assert!(!bell.wait(NOT_AT_ALL).unwrap());
}

/// A peer that fills the counter up makes ringing pointless, not wrong; the sleeper still wakes.
#[test]
fn full_counter_counts_as_rung() {
    let bell = Doorbell::create().unwrap();
    write(bell.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();

    bell.ring().unwrap();

    assert!(bell.wait(DEADLINE).unwrap());
    assert_eq!(Err(Errno::AGAIN), read(bell.as_fd(), &mut [0; 8]));
}

/// The other holder's descriptor is the same bell: what one rings the other hears, in turn, a thousand times.
#[test]
fn two_threads_wake_each_other_in_turn() {
    let (ping, pong) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
    let (their_ping, their_pong) = (shared(&ping), shared(&pong));
    let answering = thread::spawn(move || {
        for _ in 0..1000 {
            assert!(their_ping.wait(DEADLINE).unwrap());
            their_pong.ring().unwrap();
        }
    });
    for _ in 0..1000 {
        ping.ring().unwrap();
        assert!(pong.wait(DEADLINE).unwrap());
    }
    answering.join().unwrap();
}

fn shared(bell: &Doorbell) -> Doorbell {
    Doorbell::from_fd(rustix::io::dup(bell).unwrap())
}

/// A descriptor that cannot be rung says so instead of pretending.
#[test]
fn ringing_what_is_no_eventfd_fails() {
    let file = std::fs::File::open("/proc/self/stat").unwrap();

    assert!(matches!(Doorbell::from_fd(file.into()).ring(), Err(Error::Machine { .. })));
}

/// A doorbell dies with this process' children and never blocks it: close-on-exec and non-blocking.
#[test]
fn doorbell_is_closed_on_exec_and_does_not_block() {
    let bell = Doorbell::create().unwrap();

    assert!(rustix::io::fcntl_getfd(&bell).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    assert!(rustix::fs::fcntl_getfl(&bell).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    assert_eq!(bell.as_fd().as_raw_fd(), bell.raw());
}
