//! What a port's worker times: residence in rings and wake-ups, with honest guests and with lying ones.
//!
//! Every bound is what the test itself measured around the same frame; nothing here says how fast anything must be.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::switch_guest::{DEADLINE, Lab, SWITCH, Shape, eventually, frame, mac};
use proptest::prelude::*;
use vbnet_core::fabric::{Fabric, VenetParams, VenetQueues};
use vbnet_core::guest::clock::monotonic_ns;
use vbnet_core::guest::venet::{self, Bells, Receiver, Sender, VenetLayout};
use vbnet_core::port::latency::PortLatency;
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::histogram;
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::ring::RingMemory;
use vbnet_core::shm::stamp::{AGE_MAX_NS, STAMP_EVERY, stamp};

const PUBLISHED_AT: u32 = 0x88;
const REAPED_AFTER: u32 = 0x90;
const KICK_RUNG_AT: u32 = 0x180 + 0x108;
const CALL_HEARD: u32 = 0x180 + 0x188;

/// A guest with the driver that guests use.
struct Driven {
    sender: Sender,
    receiver: Receiver,
}

fn shared(bell: &Doorbell) -> Doorbell {
    Doorbell::from_fd(rustix::io::dup(bell).unwrap())
}

fn join(fabric: &Fabric, name: &str, number: u8, params: VenetParams) -> Driven {
    let layout = VenetLayout::plan(0, 1500, 256, 256).unwrap();
    let ram = Ram::create(name, layout.ram_bytes()).unwrap();
    let (mut sender, mut receiver) = venet::open(&ram, layout).unwrap();
    let bells: [Doorbell; 4] = std::array::from_fn(|_| Doorbell::create().unwrap());
    let queues = VenetQueues {
        guest: name.to_owned(),
        ram: Ram::open(rustix::io::dup(&*ram).unwrap(), u64::MAX).unwrap(),
        tx: (layout.tx_offset, layout.tx_bytes()),
        rx: (layout.rx_offset, layout.rx_bytes()),
        tx_kick: shared(&bells[0]),
        tx_call: shared(&bells[1]).into(),
        rx_kick: shared(&bells[2]),
        rx_call: shared(&bells[3]).into(),
    };
    fabric.port_add_venet(SWITCH, name, queues, VenetParams { mac: mac(number), ..params }).unwrap();
    let [tx_kick, tx_call, rx_kick, rx_call] = bells;
    sender.connect(Bells { kick: tx_kick, call: tx_call });
    receiver.connect(Bells { kick: rx_kick, call: rx_call });
    Driven { sender, receiver }
}

fn latencies(counters: &CounterFile, device: &str) -> Vec<u64> {
    let wanted = format!("device={device},");
    let blocks = counters.reader().blocks();
    blocks.into_iter().find(|block| block.kind == "port_latency" && block.labels.contains(&wanted)).unwrap().values
}

/// How many samples, and the greatest.
fn samples(words: &[u64], what: PortLatency) -> (u64, u64) {
    let words = &words[what.start()..what.start() + histogram::WORDS];
    (words[0], words[3])
}

#[test]
fn sleeping_sides_are_timed_and_no_sample_exceeds_its_frame() {
    let counters = Arc::new(CounterFile::create(None, 1 << 20).unwrap());
    let fabric = Fabric::new(counters.clone(), 1).unwrap();
    fabric.switch_create(SWITCH, 300).unwrap();
    let params = VenetParams { burst_threshold_us: 0, ..VenetParams::default() };
    let mut source = join(&fabric, "source", 1, params);
    let mut sink = join(&fabric, "sink", 2, params);
    let sent = frame(mac(2), mac(1), 100, 5);
    let mut longest = Duration::ZERO;

    eventually(|| {
        let start = Instant::now();
        assert_eq!(1, source.sender.send([&sent[..]]).unwrap());
        while sink.receiver.receive(1, |_| {}).unwrap() == 0 {
            sink.receiver.wait(Duration::ZERO, Some(DEADLINE)).unwrap();
        }
        longest = longest.max(start.elapsed());
        let (source, sink) = (latencies(&counters, "source"), latencies(&counters, "sink"));
        let is_timed = |words: &[u64], what| samples(words, what).0 >= 3;
        is_timed(&source, PortLatency::TransmitResidence)
            && is_timed(&source, PortLatency::HostWakeup)
            && is_timed(&sink, PortLatency::ReceiveResidence)
            && is_timed(&sink, PortLatency::GuestWakeup)
            && is_timed(&source, PortLatency::Service)
    });

    let (source, sink) = (latencies(&counters, "source"), latencies(&counters, "sink"));
    let greatest = [
        samples(&source, PortLatency::TransmitResidence).1,
        samples(&source, PortLatency::HostWakeup).1,
        samples(&sink, PortLatency::ReceiveResidence).1,
        samples(&sink, PortLatency::GuestWakeup).1,
    ];
    assert_eq!(0, samples(&sink, PortLatency::Service).0, "nothing came from it");
    let bound = longest.as_nanos() as u64;
    assert!(greatest.iter().all(|&greatest| (1..=bound).contains(&greatest)), "{greatest:?} ns of {bound} ns");
    assert_eq!([0, 0], [source[PortLatency::IMPOSSIBLE], sink[PortLatency::IMPOSSIBLE]]);
}

#[test]
fn stream_between_sides_that_are_awake_is_sampled_and_not_timed_slot_by_slot() {
    let counters = Arc::new(CounterFile::create(None, 1 << 20).unwrap());
    let fabric = Fabric::new(counters.clone(), 1).unwrap();
    fabric.switch_create(SWITCH, 300).unwrap();
    let params = VenetParams { burst_threshold_us: 100_000, ..VenetParams::default() };
    let mut source = join(&fabric, "source", 1, params);
    let mut sink = join(&fabric, "sink", 2, params);
    let sent = frame(mac(2), mac(1), 100, 5);
    let (start, wanted) = (Instant::now(), 8 * u64::from(STAMP_EVERY));

    let (mut outstanding, mut received) = (0, 0);
    eventually(|| {
        if outstanding + 32 <= 128 {
            outstanding += source.sender.send(std::iter::repeat_n(&sent[..], 32)).unwrap();
        }
        let count = sink.receiver.receive(64, |_| {}).unwrap();
        outstanding -= count as usize;
        received += u64::from(count);
        received >= wanted
    });

    let bound = start.elapsed().as_nanos() as u64;
    let (source, sink) = (latencies(&counters, "source"), latencies(&counters, "sink"));
    let publishes = wanted / 32 + 8;
    let stamps = wanted / u64::from(STAMP_EVERY) + 2;
    for (words, what, most) in
        [(&source, PortLatency::TransmitResidence, publishes), (&sink, PortLatency::ReceiveResidence, stamps)]
    {
        let (count, greatest) = samples(words, what);
        assert!((1..=most).contains(&count), "{count} samples of {wanted} frames: {what:?}");
        assert!(greatest <= bound, "{greatest} ns of {bound} ns: {what:?}");
    }
}

/// A fabric that counts nothing forwards all the same.
#[test]
fn fabric_without_counting_forwards_and_leaves_its_counters_at_nothing() {
    let counters = Arc::new(CounterFile::create(None, 1 << 20).unwrap());
    let fabric = Fabric::without_counting(counters.clone(), 1).unwrap();
    fabric.switch_create(SWITCH, 300).unwrap();
    let mut source = join(&fabric, "source", 1, VenetParams::default());
    let mut sink = join(&fabric, "sink", 2, VenetParams::default());
    let sent = frame(mac(2), mac(1), 100, 5);

    let mut received = 0;
    for _ in 0..3 {
        assert_eq!(1, source.sender.send([&sent[..]]).unwrap());
        eventually(|| {
            let count = sink.receiver.receive(1, |found| assert_eq!(sent, found)).unwrap();
            received += count;
            count == 1
        });
    }

    let blocks = counters.reader().blocks();
    let counted: u64 = blocks.iter().filter(|block| block.kind == "port_latency").flat_map(|block| &block.values).sum();
    assert_eq!((3, 0), (received, counted));
}

fn scribble(ram: &Ram, offset: u32, value: u64) {
    let place = ram.at(offset, 8).unwrap();
    // SAFETY: in bounds, aligned, accessed by atomics only.
    unsafe { place.cast::<AtomicU64>().as_ref() }.store(value, Ordering::SeqCst);
}

#[test]
fn lying_stamp_is_counted_and_the_frame_passes() {
    let now_ns = monotonic_ns();
    let index = 0;
    let lies = [
        stamp(index, now_ns + 3_600_000_000_000),
        stamp(index, now_ns - AGE_MAX_NS - 1_000_000_000),
        stamp(index + 5000, now_ns),
    ];
    for lie in lies {
        let mut lab = Lab::new(2);
        let sent = frame(mac(2), mac(1), 100, 5);
        assert!(lab.guests[0].stage(&sent));
        scribble(&lab.guests[0].ram, Shape::SMALL.tx_ring().0 + PUBLISHED_AT, lie);

        lab.guests[0].publish();

        assert_eq!(sent, lab.guests[1].receive());
        lab.settle();
        let words = latencies(&lab.counters, "g0");
        assert_eq!((1, 0), (words[PortLatency::IMPOSSIBLE], samples(&words, PortLatency::TransmitResidence).0));
    }
}

#[test]
fn answer_that_takes_longer_than_since_it_was_asked_for_is_counted() {
    let mut lab = Lab::new(2);
    let sent = frame(mac(2), mac(1), 100, 5);
    lab.guests[0].send(&sent);
    assert_eq!(sent, lab.guests[1].receive());
    let first = 0;
    scribble(&lab.guests[1].ram, Shape::SMALL.rx_ring().0 + REAPED_AFTER, stamp(first, AGE_MAX_NS - 1));

    // Asleep, so that what is returned next is stamped, and the answer to the last stamp looked at.
    eventually(|| {
        lab.guests[0].send(&sent);
        assert_eq!(sent, lab.guests[1].receive());
        latencies(&lab.counters, "g1")[PortLatency::IMPOSSIBLE] != 0 || {
            lab.guests[1].refill();
            false
        }
    });

    let words = latencies(&lab.counters, "g1");
    assert_eq!((1, 0), (words[PortLatency::IMPOSSIBLE], samples(&words, PortLatency::ReceiveResidence).0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(64), ..ProptestConfig::default() })]

    /// Whatever a guest writes where stamps and answers are, frames pass, and nothing is recorded that cannot be.
    #[test]
    fn prop_scribbled_stamps_change_no_frame_and_no_sample_exceeds_what_is_believed(
        words in prop::collection::vec((0..8usize, any::<u64>(), 0..3u32, any::<bool>()), 1..20),
    ) {
        let mut lab = Lab::new(2);
        let (tx, rx) = (Shape::SMALL.tx_ring().0, Shape::SMALL.rx_ring().0);
        for (place, noise, tag, is_likely) in words {
            let ring = if place % 2 == 0 { tx } else { rx };
            let field = [PUBLISHED_AT, REAPED_AFTER, KICK_RUNG_AT, CALL_HEARD][place / 2];
            let now_ns = monotonic_ns();
            let value = if is_likely { stamp(tag, now_ns ^ noise >> 28) } else { noise };
            for guest in &lab.guests {
                scribble(&guest.ram, ring + field, value);
            }
            lab.assert_passes(0, 1);
            lab.assert_passes(1, 0);
        }
        for device in ["g0", "g1"] {
            let words = latencies(&lab.counters, device);
            for what in [
                PortLatency::TransmitResidence,
                PortLatency::ReceiveResidence,
                PortLatency::HostWakeup,
                PortLatency::GuestWakeup,
            ] {
                prop_assert!(samples(&words, what).1 <= AGE_MAX_NS);
            }
        }
        prop_assert!(lab.fabric.take_faults().is_empty());
    }
}

/// Rings of another version are refused: their reserved words mean something else.
#[test]
fn ring_of_the_version_before_is_refused() {
    let ram = Ram::create("old", 1 << 16).unwrap();
    drop(RingMemory::format(&ram, 4096, 64).unwrap());
    let place = ram.at(4096 + 4, 4).unwrap();
    // SAFETY: in bounds, aligned, and nobody else looks.
    unsafe { place.cast::<u32>().write(1) };

    let found = RingMemory::attach(&ram, 4096, 0x400 + 8 * 64);

    assert!(found.is_err());
}
