//! A thousand stack guests in one process: what each costs, and that idle ones are left alone.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::FakeHost;
use vbnet_core::guest::stack::{
    ExchangeEnd, ExchangeRequest, PingRequest, StackConfig, StackGuests, StackOptions, Transport,
};

/// Counts what is allocated and not freed.
struct Counting;

static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only a counter is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The allocator counts for the whole process, so one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const GUESTS: u16 = 1000;

fn mac(number: u16) -> [u8; 6] {
    let [high, low] = number.to_be_bytes();
    [0x02, 0x76, 0x62, 1, high, low]
}

fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 1)) + u32::from(number))
}

fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

fn live_bytes() -> isize {
    LIVE_BYTES.load(Ordering::Relaxed)
}

#[test]
fn a_thousand_guests_cost_kilobytes_each_and_idle_ones_nothing() {
    //! Heap a guest, its driver included, stays far below a mebibyte; polls follow traffic, not attached guests.
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    raise_descriptor_limit();
    let mut fake = FakeHost::default();
    let guests = StackGuests::new(StackOptions { spin: Duration::ZERO, ..StackOptions::default() }).unwrap();
    let drivers: Vec<_> = (0..GUESTS).map(|_| fake.attach(1500, 16)).collect();
    let before = live_bytes();

    let mut ids = Vec::new();
    for (number, (sender, receiver)) in (0..GUESTS).zip(drivers) {
        let config = StackConfig::new(&format!("packed-{number}"), mac(number), Some((address(number), 16)));
        ids.push(guests.add(config, sender, receiver, None).unwrap());
    }

    let each = (live_bytes() - before) / isize::from(GUESTS as i16);
    println!("heap bytes a packed guest: {each}");
    assert!((1..64 << 10).contains(&each), "{each} bytes a guest");
    assert_eq!(usize::from(GUESTS), guests.guests().len());

    // Announcements of a thousand guests to a thousand guests are not what is to be counted.
    for port in 0..usize::from(GUESTS) {
        fake.take(port);
    }
    let _fake = fake.start();
    let pings = |count| PingRequest {
        to: IpAddr::V4(address(GUESTS - 1)),
        count,
        interval: Duration::ZERO,
        timeout: Duration::from_secs(20),
        bytes: 56,
    };
    assert_eq!(1, guests.ping(ids[0], pings(1)).unwrap().received);
    let polls_before = guests.polls();
    assert_eq!(500, guests.ping(ids[0], pings(500)).unwrap().received);
    let polls = guests.polls() - polls_before;
    println!("polls for 500 pings among {GUESTS} guests: {polls}");
    assert!(polls < 500 * 20, "{polls} polls for 500 pings: idle guests are being looked at");
}

#[test]
fn a_guest_gives_back_what_a_conversation_took() {
    //! After a connection is over its buffers are gone; after a guest is removed its memory and descriptors are.
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut fake = FakeHost::default();
    let drivers: Vec<_> = (0..2).map(|_| fake.attach(1500, 64)).collect();
    let fake = fake.start();
    let guests = StackGuests::new(StackOptions::default()).unwrap();
    let mut ids = Vec::new();
    for (number, (sender, receiver)) in (0u16..).zip(drivers) {
        let config = StackConfig::new("packed", mac(number), Some((address(number), 16)));
        ids.push(guests.add(config, sender, receiver, None).unwrap());
    }
    let talk = || {
        let request = ExchangeRequest {
            transport: Transport::Tcp,
            to: SocketAddr::new(address(1).into(), 80),
            request: b"GET / HTTP/1.0\r\n\r\n".to_vec(),
            want: 1 << 20,
            timeout: Duration::from_secs(20),
        };
        guests.exchange(ids[0], request).unwrap().end
    };
    assert_eq!(ExchangeEnd::Closed, talk());
    let before = live_bytes();

    for _ in 0..40 {
        assert_eq!(ExchangeEnd::Closed, talk());
    }

    // Connections that were closed by the server wait for stragglers; there are at most 64 of them.
    assert!(live_bytes() - before < 64 * (80 << 10), "{} bytes more", live_bytes() - before);
    let (before, open) = (live_bytes(), descriptors());
    for number in 100..150 {
        let (sender, receiver) = fake.with(|host| host.attach(1500, 16));
        let config = StackConfig::new("passing", mac(number), Some((address(number), 16)));
        let id = guests.add(config, sender, receiver, None).unwrap();
        guests.remove(id).unwrap();
        fake.with(FakeHost::detach_last);
    }
    assert!(live_bytes() - before < 16 << 10, "{} bytes more", live_bytes() - before);
    assert_eq!(open, descriptors());
}
