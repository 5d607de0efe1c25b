//! Stack guests on their thread: a fake host on another moves their frames.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::support::{FakeHost, RunningHost, mac};
use vbnet_core::error::Error;
use vbnet_core::guest::stack::{
    ExchangeEnd, ExchangeRequest, PingRequest, StackConfig, StackGuests, StackOptions, StackStats, Transport,
};
use vbnet_core::shm::counters::CounterFile;

const LONG: Duration = Duration::from_secs(20);

fn config(number: u8) -> StackConfig {
    StackConfig::new(&format!("guest-{number}"), mac(number), Some((Ipv4Addr::new(10, 0, 0, number + 1), 24)))
}

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number + 1).into()
}

fn pings(to: IpAddr, count: u32) -> PingRequest {
    PingRequest { to, count, interval: Duration::ZERO, timeout: LONG, bytes: 56 }
}

/// So many guests on one thread and one fake host; the numbers of the guests.
fn world(count: u8) -> (StackGuests, RunningHost, Vec<u32>) {
    let mut fake = FakeHost::default();
    let guests = StackGuests::new(StackOptions::default()).unwrap();
    let ids = (0..count)
        .map(|number| {
            let (sender, receiver) = fake.attach(1500, 256);
            guests.add(config(number), sender, receiver, None).unwrap()
        })
        .collect();
    (guests, fake.start(), ids)
}

#[test]
fn guests_on_one_thread_ping_each_other() {
    //! Everybody answers everybody, whoever asks.
    let (guests, _fake, ids) = world(4);

    for (from, id) in ids.iter().enumerate() {
        let report = guests.ping(*id, pings(address((from as u8 + 1) % 4), 5)).unwrap();

        assert_eq!((5, 5), (report.sent, report.received));
    }
    assert_eq!(20, ids.iter().map(|id| guests.stats(*id).unwrap().pings_answered).sum::<u64>());
}

#[test]
fn bytes_pass_between_guests_of_two_threads() {
    //! A client on one thread, a server on the other, a megabyte through the echo.
    let mut fake = FakeHost::default();
    let threads = [0u8, 1].map(|_| StackGuests::new(StackOptions::default()).unwrap());
    let mut ids = Vec::new();
    for (number, guests) in threads.iter().enumerate() {
        let (sender, receiver) = fake.attach(1500, 256);
        ids.push(guests.add(config(number as u8), sender, receiver, None).unwrap());
    }
    let _fake = fake.start();
    let request: Vec<u8> = (0..1_000_000u32).map(|index| (index / 3) as u8).collect();

    let report = threads[0]
        .exchange(
            ids[0],
            ExchangeRequest {
                transport: Transport::Tcp,
                to: SocketAddr::new(address(1), 7),
                request: request.clone(),
                want: request.len(),
                timeout: LONG,
            },
        )
        .unwrap();

    assert_eq!(ExchangeEnd::Complete, report.end);
    assert!(request == report.bytes);
}

#[test]
fn a_sending_ring_of_two_slots_delays_and_loses_nothing() {
    //! The server fills its ring at once and is woken each time the host has made room.
    let mut fake = FakeHost::default();
    let guests = StackGuests::new(StackOptions::default()).unwrap();
    let (sender, receiver) = fake.attach(1500, 256);
    let client = guests.add(config(0), sender, receiver, None).unwrap();
    let (sender, receiver) = fake.attach_uneven(1500, 2, 256);
    let server = guests.add(config(1), sender, receiver, None).unwrap();
    let fake = fake.start();
    let request = ExchangeRequest {
        transport: Transport::Tcp,
        to: SocketAddr::new(address(1), 80),
        request: b"GET /bytes/500000 HTTP/1.0\r\n\r\n".to_vec(),
        want: 1 << 20,
        timeout: LONG,
    };

    let report = guests.exchange(client, request).unwrap();

    assert_eq!(ExchangeEnd::Closed, report.end);
    assert!(report.bytes.len() > 500_000, "{}", report.bytes.len());
    assert_eq!((0, 0), (guests.stats(server).unwrap().tx_drops_no_room, fake.with(|host| host.dropped)));
}

#[test]
fn a_broken_host_costs_one_guest_its_card_and_is_reported() {
    //! The ring of one guest is broken: it loses that card, with the reason, and the others go on. So does it, with another.
    let (guests, fake, ids) = world(3);
    assert_eq!(1, guests.ping(ids[0], pings(address(1), 1)).unwrap().received);

    fake.with(|host| host.break_contract(1));

    assert!(guests.fault_bell().wait(Some(LONG)).unwrap());
    let faults = guests.take_faults();
    assert_eq!(
        vec![(ids[1], "guest-1", "foreign_completion")],
        faults.iter().map(|fault| (fault.guest, fault.name.as_str(), fault.reason)).collect::<Vec<_>>()
    );
    assert_eq!(3, guests.ping(ids[0], pings(address(2), 3)).unwrap().received);
    let (sender, receiver) = fake.with(|host| host.attach(1500, 64));
    guests.attach(ids[1], sender, receiver).unwrap();
    // What the guest sends tells the host where it is now.
    assert_eq!(1, guests.ping(ids[1], pings(address(0), 1)).unwrap().received);
    assert_eq!(3, guests.ping(ids[0], pings(address(1), 3)).unwrap().received);
    assert!(guests.take_faults().is_empty());
}

#[test]
fn guests_come_and_go_while_others_talk() {
    //! A number is never used again, and a removed guest answers nothing.
    let (guests, fake, ids) = world(2);
    guests.remove(ids[1]).unwrap();
    let (sender, receiver) = fake.with(|host| host.attach(1500, 64));

    let late = guests.add(config(7), sender, receiver, None).unwrap();

    assert!(!ids.contains(&late));
    assert_eq!(vec![(ids[0], "guest-0".to_owned()), (late, "guest-7".to_owned())], guests.guests());
    assert_eq!(2, guests.ping(ids[0], pings(address(7), 2)).unwrap().received);
    let gone = PingRequest { timeout: Duration::from_millis(50), ..pings(address(1), 1) };
    assert_eq!(0, guests.ping(ids[0], gone).unwrap().received);
    for outcome in [guests.remove(ids[1]), guests.set_link(ids[1], true)] {
        assert!(matches!(outcome, Err(Error::Usage(_))), "{outcome:?}");
    }
}

#[test]
fn a_guest_whose_card_was_taken_away_goes_on_with_another() {
    //! Without a card it hears nothing; with another it answers, and counts on.
    let (guests, fake, ids) = world(2);
    assert_eq!(2, guests.ping(ids[0], pings(address(1), 2)).unwrap().received);
    for _ in 0..2 {
        guests.detach(ids[1]).unwrap();
    }
    let short = PingRequest { timeout: Duration::from_millis(50), ..pings(address(1), 1) };
    assert_eq!(0, guests.ping(ids[0], short).unwrap().received);
    let before = guests.stats(ids[1]).unwrap();

    let (sender, receiver) = fake.with(|host| host.attach(1500, 64));
    guests.attach(ids[1], sender, receiver).unwrap();

    // What the guest sends tells the host where it is now.
    assert_eq!(1, guests.ping(ids[1], pings(address(0), 1)).unwrap().received);
    assert_eq!(3, guests.ping(ids[0], pings(address(1), 3)).unwrap().received);
    let after = guests.stats(ids[1]).unwrap();
    assert_eq!((2, 5), (before.pings_answered, after.pings_answered));
    assert!(after.rx_frames >= before.rx_frames + 3, "{after:?}");
    assert!(guests.take_faults().is_empty());
}

#[test]
fn a_card_that_does_not_fit_is_refused() {
    //! Its frames are too short for the guest's MTU, it has no doorbells, or there is no such guest.
    let (guests, fake, ids) = world(1);
    let (sender, receiver) = fake.with(|host| host.attach(576, 64));
    let short = guests.attach(ids[0], sender, receiver);
    let (sender, receiver) = fake.with(|host| host.attach(1500, 64));
    let nobody = guests.attach(ids[0] + 1, sender, receiver);
    let layout = vbnet_core::guest::venet::VenetLayout::plan(0, 1500, 16, 16).unwrap();
    let ram = vbnet_core::shm::region::Ram::create("test-guest", layout.ram_bytes()).unwrap();
    let (sender, receiver) = vbnet_core::guest::venet::open(&ram, layout).unwrap();
    let mute = guests.attach(ids[0], sender, receiver);

    for outcome in [short, nobody, mute, guests.detach(ids[0] + 1)] {
        assert!(matches!(outcome, Err(Error::Usage(_))), "{outcome:?}");
    }
}

#[test]
fn a_link_taken_down_answers_again_when_it_is_up() {
    //! Down means silence, up means service; nothing else is needed.
    let (guests, _fake, ids) = world(2);
    guests.set_link(ids[1], false).unwrap();
    let short = PingRequest { timeout: Duration::from_millis(50), ..pings(address(1), 1) };

    assert_eq!(0, guests.ping(ids[0], short).unwrap().received);

    guests.set_link(ids[1], true).unwrap();
    assert_eq!(2, guests.ping(ids[0], pings(address(1), 2)).unwrap().received);
}

#[test]
fn statistics_are_readable_from_a_counters_file() {
    //! A block of the file carries the same numbers as the interface.
    let mut fake = FakeHost::default();
    let file = CounterFile::create(None, 1 << 16).unwrap();
    let guests = StackGuests::new(StackOptions::default()).unwrap();
    let (sender, receiver) = fake.attach(1500, 64);
    let block = file.allocate("stack", "guest=a", StackStats::WORDS).unwrap();
    let first = guests.add(config(0), sender, receiver, Some(block)).unwrap();
    let (sender, receiver) = fake.attach(1500, 64);
    let second = guests.add(config(1), sender, receiver, None).unwrap();
    let _fake = fake.start();

    assert_eq!(4, guests.ping(second, pings(address(0), 4)).unwrap().received);

    let found = file.reader().blocks();
    let answered = StackStats::NAMES.iter().position(|name| *name == "pings_answered").unwrap();
    assert_eq!(("stack", "guest=a"), (found[0].kind.as_str(), found[0].labels.as_str()));
    assert_eq!(4, found[0].values[answered]);
    assert_eq!(4, guests.stats(first).unwrap().pings_answered);
}

#[test]
fn after_close_everything_says_so() {
    //! Closing twice is closing once, and no call hangs on a thread that is gone.
    let (guests, _fake, ids) = world(1);

    guests.close().unwrap();
    guests.close().unwrap();

    assert!(matches!(guests.remove(ids[0]), Err(Error::Closed(_))));
    assert!(matches!(guests.ping(ids[0], pings(address(0), 1)), Err(Error::Closed(_))));
    assert!(guests.guests().is_empty());
}

#[test]
fn a_guest_without_doorbells_is_refused() {
    //! Such a guest could never be woken, so it is the caller's mistake.
    let guests = StackGuests::new(StackOptions::default()).unwrap();
    let layout = vbnet_core::guest::venet::VenetLayout::plan(0, 1500, 16, 16).unwrap();
    let ram = vbnet_core::shm::region::Ram::create("test-guest", layout.ram_bytes()).unwrap();
    let (sender, receiver) = vbnet_core::guest::venet::open(&ram, layout).unwrap();

    let added = guests.add(config(0), sender, receiver, None);

    assert!(matches!(added, Err(Error::Usage(_))), "{added:?}");
}
