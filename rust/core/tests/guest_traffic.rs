//! Generator, sink, reflector and requester, through a fake host that loses, repeats, swaps, changes and stalls.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{FakeHost, mac};
use proptest::prelude::*;
use vbnet_core::error::Error;
use vbnet_core::guest::imix::{IMIX, Sizes};
use vbnet_core::guest::row::Row;
use vbnet_core::guest::sequence::{Arrival, Sequence, WINDOW};
use vbnet_core::guest::traffic::frame::{self, Found, Stamp};
use vbnet_core::guest::traffic::{
    Arrivals, ClosedConfig, ClosedLoop, ClosedStep, Reflector, Requester, RequesterConfig, RequesterStats, Route,
    Running, SinkConfig, SinkStats, SourceStats, SourceStep, TrafficConfig, TrafficSink, TrafficSource, run_pair,
};
use vbnet_core::shm::histogram::quantile;

const START_NS: u64 = 5_000_000_000;
const LONG: Duration = Duration::from_secs(20);
const ROUTE: Route = Route { to: mac(1), from: mac(0), stream: 7 };

/// A generator at port 0, a sink at port 1.
struct Bench {
    fake: FakeHost,
    source: TrafficSource,
    sink: TrafficSink,
    row: Arc<Row>,
}

impl Bench {
    fn new(config: TrafficConfig, slots: u32) -> Self {
        let mut fake = FakeHost::default();
        let (sender, _) = fake.attach(1500, slots);
        let (_, receiver) = fake.attach(1500, slots);
        let row = Arc::new(Row::in_memory(SinkStats::WORDS));
        let source = TrafficSource::new(sender, config, Arc::new(Row::in_memory(SourceStats::WORDS))).unwrap();
        let sink = TrafficSink::new(receiver, SinkConfig::default(), row.clone());
        Self { fake, source, sink, row }
    }

    /// Runs until everything is sent and taken, at one instant.
    fn finish(&mut self, now_ns: u64) {
        loop {
            let step = self.source.step(now_ns).unwrap();
            let moved = self.move_on(now_ns);
            if step == SourceStep::Done && moved == 0 {
                return;
            }
            assert!(!matches!(step, SourceStep::Waits(_)), "time must pass first");
        }
    }

    fn move_on(&mut self, now_ns: u64) -> usize {
        let moved = self.fake.pump();
        while self.sink.step(|| now_ns).unwrap() != 0 {}
        moved
    }

    fn stats(&self) -> SinkStats {
        SinkStats::read(&self.row)
    }
}

fn number_of(frame: &[u8]) -> u64 {
    u64::from_le_bytes(frame[24..32].try_into().unwrap())
}

#[test]
fn every_frame_of_the_internet_mix_arrives_intact() {
    //! Sizes repeat 7:4:1, every byte is accounted for, nothing is amiss.
    let config = TrafficConfig { sizes: Sizes::Imix, frames: Some(1200), ..TrafficConfig::new(ROUTE, 60) };
    let mut bench = Bench::new(config, 64);

    bench.finish(START_NS);

    let bytes = 100 * (7 * 60 + 4 * 590 + 1514);
    assert_eq!(bytes, 100 * IMIX.iter().map(|size| u64::from(*size)).sum::<u64>());
    assert_eq!(SinkStats { frames: 1200, bytes, ..SinkStats::default() }, bench.stats());
    assert_eq!((1200, bytes), (bench.source.stats().frames, bench.source.stats().bytes));
    assert_eq!(0, bench.sink.missing(7, 1200));
}

#[test]
fn light_frames_are_counted_like_others() {
    //! Without pattern and time, numbers still tell what was lost.
    let config = TrafficConfig { is_light: true, frames: Some(1000), ..TrafficConfig::new(ROUTE, 64) };
    let mut bench = Bench::new(config, 64);
    bench.fake.set_hook(|frame| if number_of(frame) % 10 == 3 { Vec::new() } else { vec![frame.to_vec()] });

    bench.finish(START_NS);

    assert_eq!(SinkStats { frames: 900, bytes: 900 * 64, lost: 100, ..SinkStats::default() }, bench.stats());
    assert_eq!(0, SinkStats::latency(&bench.row)[0]);
}

#[test]
fn each_impairment_is_counted_exactly() {
    //! Of 1000 frames 10 are lost, 20 repeated, 30 delayed, 40 damaged: exactly that is found.
    let config = TrafficConfig { frames: Some(1000), ..TrafficConfig::new(ROUTE, 300) };
    let mut bench = Bench::new(config, 64);
    let mut held: Option<Vec<u8>> = None;
    bench.fake.set_hook(move |frame| {
        let number = number_of(frame);
        let mut out = vec![frame.to_vec()];
        match number {
            100..110 => out.clear(),
            200..220 => out.push(frame.to_vec()),
            300..360 if number.is_multiple_of(2) => {
                held = Some(frame.to_vec());
                out.clear();
            }
            // The one before arrives behind this one.
            300..360 => out.extend(held.take()),
            400..440 => out[0][14 + (number as usize * 7) % 280] ^= 1 << (number % 8),
            _ => {}
        }
        out
    });

    bench.finish(START_NS);

    let expected = SinkStats {
        frames: 1000 - 10 - 40 + 20,
        bytes: (1000 - 10 - 40 + 20) * 300,
        // A damaged frame has no number to be believed: it is missing as well.
        lost: 10 + 40,
        reordered: 30,
        duplicates: 20,
        corrupted: 40,
        foreign: 0,
        stale: 0,
        misdelivered: 0,
    };
    assert_eq!(expected, bench.stats());
}

#[test]
fn losses_at_the_end_are_missing_too() {
    //! The sink cannot know what never came; told how much was sent, it says.
    let config = TrafficConfig { frames: Some(100), ..TrafficConfig::new(ROUTE, 60) };
    let mut bench = Bench::new(config, 64);
    bench.fake.set_hook(|frame| if number_of(frame) >= 95 { Vec::new() } else { vec![frame.to_vec()] });

    bench.finish(START_NS);

    assert_eq!((0, 5), (bench.stats().lost, bench.sink.missing(7, 100)));
    assert_eq!(100, bench.sink.missing(8, 100));
}

#[test]
fn frames_of_others_are_foreign() {
    //! An ARP request that was flooded to the sink is neither lost nor damaged.
    let config = TrafficConfig { frames: Some(1), ..TrafficConfig::new(ROUTE, 60) };
    let mut bench = Bench::new(config, 64);
    let mut arp = vec![0xff; 42];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);

    bench.fake.deliver(1, &arp);
    bench.finish(START_NS);

    assert_eq!(SinkStats { frames: 1, bytes: 60, foreign: 1, ..SinkStats::default() }, bench.stats());
}

#[test]
fn frames_are_due_at_exact_times_whenever_the_generator_looks() {
    //! At 3000 a second frame n is due at n/3000 s: looking late sends what is due, no more, no less.
    let config = TrafficConfig {
        arrivals: Arrivals::Constant { rate: 3000 },
        frames: Some(3001),
        ..TrafficConfig::new(ROUTE, 60)
    };
    let mut bench = Bench::new(config, 256);
    bench.fake.captured = Some(Vec::new());

    assert_eq!(SourceStep::Waits(START_NS + 333_333), bench.source.step(START_NS).unwrap());
    assert_eq!(SourceStep::Waits(START_NS + 333_333), bench.source.step(START_NS + 333_332).unwrap());
    for now_ns in (START_NS + 333_333..=START_NS + 1_000_000_000).step_by(7_919_000) {
        while bench.source.step(now_ns).unwrap() == SourceStep::Sent {}
        bench.move_on(now_ns);
        assert_eq!(((now_ns - START_NS + 1) * 3000).div_ceil(1_000_000_000), bench.source.stats().frames, "{now_ns}");
    }
    bench.finish(START_NS + 1_000_000_001);

    let due: Vec<u64> = bench
        .fake
        .captured
        .unwrap()
        .iter()
        .map(|frame| u64::from_le_bytes(frame[32..40].try_into().unwrap()))
        .collect();
    let expected: Vec<u64> = (0..3001u64).map(|number| START_NS + number * 1_000_000_000 / 3000).collect();
    assert_eq!(expected.len(), due.len());
    // 2^-32 ns are lost a frame.
    assert!(expected.iter().zip(&due).all(|(expected, due)| expected - due <= 1));
}

#[test]
fn a_stalled_host_shows_in_every_frame_it_delayed() {
    //! The host sleeps 100 ms at 10000 frames a second, with a ring of 64: all 1000 frames that were due meanwhile
    //! count with the time since they were due, although only 64 could leave.
    let config = TrafficConfig {
        arrivals: Arrivals::Constant { rate: 10_000 },
        frames: Some(1000),
        ..TrafficConfig::new(ROUTE, 60)
    };
    let mut bench = Bench::new(config, 64);
    for tick in 0..1000 {
        bench.source.step(START_NS + tick * 100_000).unwrap();
    }
    assert_eq!(64, bench.source.stats().frames);

    bench.finish(START_NS + 100_000_000);

    let latency = SinkStats::latency(&bench.row);
    assert_eq!((1000, 1000), (bench.stats().frames, latency[0]));
    assert_eq!((100_000, 100_000_000), (latency[2], latency[3]));
    for (part, expected_ns) in [(0.25, 25_000_000u64), (0.5, 50_000_000), (0.75, 75_000_000), (1.0, 100_000_000)] {
        let found = quantile(&latency, part);
        assert!(found.abs_diff(expected_ns) <= expected_ns / 16, "{part}: {found}");
    }
    // The generator knows as well how late its frames left.
    assert!(bench.source.stats().late_max_ns >= 93_000_000, "{:?}", bench.source.stats());
}

#[test]
fn a_duration_ends_the_schedule_and_not_the_frames_due_in_it() {
    //! Half a second at 1000 a second is 500 frames, also when the generator looks too late.
    let config = TrafficConfig {
        arrivals: Arrivals::Constant { rate: 1000 },
        duration: Some(Duration::from_millis(500)),
        ..TrafficConfig::new(ROUTE, 60)
    };
    let mut bench = Bench::new(config, 1024);
    bench.source.step(START_NS).unwrap();

    bench.finish(START_NS + 3_000_000_000);

    assert_eq!(500, bench.stats().frames);
}

#[test]
fn streams_are_told_apart_up_to_a_bound() {
    //! The 257th stream at a sink is foreign: a peer cannot fill our memory with streams.
    let mut fake = FakeHost::default();
    let (_, receiver) = fake.attach(1500, 512);
    let row = Arc::new(Row::in_memory(SinkStats::WORDS));
    let mut sink = TrafficSink::new(receiver, SinkConfig::default(), row.clone());
    for stream in 0..300 {
        let mut bytes = vec![0; 60];
        frame::write(&mut bytes, &Route { stream, ..ROUTE }, 0, 1, false);
        fake.deliver(0, &bytes);
    }

    while sink.step(|| 2).unwrap() != 0 {}

    assert_eq!((256, 44, 0), (SinkStats::read(&row).frames, SinkStats::read(&row).foreign, SinkStats::read(&row).lost));
}

#[test]
fn frames_for_another_station_are_neither_counted_as_received_nor_sent_back() {
    //! A switch floods what is for a station that it does not know: everybody gets it, nobody takes it for its own.
    let to = |to: u8| {
        let mut bytes = vec![0; 60];
        frame::write(&mut bytes, &Route { to: mac(to), ..ROUTE }, 0, 1, false);
        bytes
    };
    let mut fake = FakeHost::default();
    let (_, receiver) = fake.attach(1500, 16);
    let (back_sender, back_receiver) = fake.attach(1500, 16);
    let row = Arc::new(Row::in_memory(SinkStats::WORDS));
    let config = SinkConfig { mac: Some(mac(0)), ..SinkConfig::default() };
    let mut sink = TrafficSink::new(receiver, config, row.clone());
    let reflected = Arc::new(Row::in_memory(Reflector::WORDS));
    let mut reflector = Reflector::new(back_sender, back_receiver, true, reflected.clone()).station(mac(1));
    for (port, station) in [(0, 0), (0, 9), (1, 1), (1, 9)] {
        fake.deliver(port, &to(station));
    }

    sink.step(|| 2).unwrap();
    reflector.step().unwrap();

    assert_eq!((1, 1), (SinkStats::read(&row).frames, SinkStats::read(&row).misdelivered));
    assert_eq!((1, 1), (reflected.load(0), reflected.load(1)));
}

#[test]
fn impossible_traffic_is_refused() {
    //! Sizes outside the device, no sizes, no rate, no batch: the caller's mistakes.
    let base = || TrafficConfig::new(ROUTE, 60);
    for config in [
        TrafficConfig { sizes: Sizes::Fixed(59), ..base() },
        TrafficConfig { sizes: Sizes::Fixed(1519), ..base() },
        TrafficConfig { sizes: Sizes::List(Vec::new()), ..base() },
        TrafficConfig { arrivals: Arrivals::Constant { rate: 0 }, ..base() },
        TrafficConfig { batch: 0, ..base() },
        TrafficConfig { routes: Vec::new(), ..base() },
    ] {
        let (sender, _) = FakeHost::default().attach(1500, 16);

        let made = TrafficSource::new(sender, config.clone(), Arc::new(Row::in_memory(SourceStats::WORDS)));

        assert!(matches!(made, Err(Error::Usage(_))), "{config:?}");
    }
}

#[test]
fn a_source_with_many_receivers_serves_them_in_turn_and_numbers_each_by_itself() {
    //! Ten frames to three receivers: four, three and three, each of them in order from 0.
    let mut fake = FakeHost::default();
    let (sender, _) = fake.attach(1500, 64);
    let receivers: Vec<_> = (0..3).map(|_| fake.attach(1500, 64).1).collect();
    let routes: Vec<Route> = (1..4).map(|to| Route { to: mac(to), ..ROUTE }).collect();
    let config = TrafficConfig { frames: Some(10), routes, ..TrafficConfig::new(ROUTE, 60) };
    let mut source = TrafficSource::new(sender, config, Arc::new(Row::in_memory(SourceStats::WORDS))).unwrap();
    while source.step(START_NS).unwrap() != SourceStep::Done {}
    for frame in fake.take(0) {
        let to = (1..4).find(|&to| frame[..6] == mac(to)).unwrap();
        fake.deliver(to.into(), &frame);
    }

    let found: Vec<SinkStats> = receivers
        .into_iter()
        .map(|receiver| {
            let row = Arc::new(Row::in_memory(SinkStats::WORDS));
            let mut sink = TrafficSink::new(receiver, SinkConfig::default(), row.clone());
            while sink.step(|| START_NS).unwrap() != 0 {}
            SinkStats::read(&row)
        })
        .collect();

    let whole = |frames| SinkStats { frames, bytes: frames * 60, ..SinkStats::default() };
    assert_eq!(vec![whole(4), whole(3), whole(3)], found);
}

#[test]
fn a_source_that_begins_anew_counts_on_and_numbers_from_zero() {
    let mut bench = Bench::new(TrafficConfig { frames: Some(5), ..TrafficConfig::new(ROUTE, 60) }, 64);
    bench.finish(START_NS);
    let row = Arc::new(Row::in_memory(SourceStats::WORDS));
    row.set(0, 5);
    let again = TrafficConfig { frames: Some(3), ..TrafficConfig::new(Route { stream: 8, ..ROUTE }, 60) };

    bench.source = TrafficSource::new(bench.source.into_sender(), again, row.clone()).unwrap();
    bench.finish(START_NS);

    assert_eq!((8, 8, 0), (row.load(0), bench.stats().frames, bench.stats().lost));
}

#[test]
fn generator_and_sink_with_other_drivers_go_on_where_they_were() {
    //! A thousand frames a second for a second, a fifth of it without drivers: numbers go on, and what was due then is not
    //! made up for.
    let config = TrafficConfig {
        arrivals: Arrivals::Constant { rate: 1000 },
        duration: Some(Duration::from_secs(1)),
        ..TrafficConfig::new(ROUTE, 60)
    };
    let mut bench = Bench::new(config, 64);
    let sent = Arc::new(Row::in_memory(SourceStats::WORDS));
    let step = |bench: &mut Bench, ms: u64| {
        let step = bench.source.step(START_NS + ms * 1_000_000).unwrap();
        bench.move_on(START_NS + ms * 1_000_000);
        step
    };
    for ms in 0..300 {
        step(&mut bench, ms);
    }
    let (sender, left) = bench.source.interrupt();
    let (receiver, streams) = bench.sink.interrupt();

    bench.source = TrafficSource::resume(left, sender, sent).unwrap();
    bench.sink = TrafficSink::new(receiver, SinkConfig::default(), bench.row.clone()).knowing(streams);
    for ms in 500..999 {
        assert_ne!(SourceStep::Done, step(&mut bench, ms));
    }

    assert_eq!(SourceStep::Done, step(&mut bench, 999));
    assert_eq!(SinkStats { frames: 800, bytes: 800 * 60, ..SinkStats::default() }, bench.stats());
    assert_eq!(0, bench.sink.missing(7, 800));
}

#[test]
fn recorded_frames_are_sent_byte_for_byte_with_new_addresses() {
    //! What lies behind the addresses is nobody's business; sizes are the recording's own.
    let recorded: Vec<Box<[u8]>> = vec![[9; 20].into(), [7; 1000].into()];
    let config = TrafficConfig { recorded: Some(recorded.into()), frames: Some(3), ..TrafficConfig::new(ROUTE, 60) };
    let mut fake = FakeHost::default();
    let (sender, _) = fake.attach(1500, 16);
    let mut source = TrafficSource::new(sender, config, Arc::new(Row::in_memory(SourceStats::WORDS))).unwrap();
    while source.step(START_NS).unwrap() != SourceStep::Done {}

    let sent = fake.take(0);

    assert_eq!(vec![20, 1000, 20], sent.iter().map(Vec::len).collect::<Vec<_>>());
    assert_eq!([mac(1), mac(0)].concat(), sent[1][..12]);
    assert!(sent[1][12..].iter().all(|&byte| byte == 7));
}

#[test]
fn a_source_waits_for_the_moment_it_was_given() {
    for arrivals in [Arrivals::Flood, Arrivals::Constant { rate: 1000 }] {
        let start_ns = Some(START_NS + 10);
        let config = TrafficConfig { arrivals, start_ns, frames: Some(1), ..TrafficConfig::new(ROUTE, 60) };
        let mut bench = Bench::new(config, 16);

        assert_eq!(SourceStep::Waits(START_NS + 10), bench.source.step(START_NS).unwrap());
        bench.finish(START_NS + 10);

        assert_eq!(1, bench.stats().frames);
    }
}

/// A closed loop at port 0, a reflector at port 1.
fn closed(config: ClosedConfig) -> (FakeHost, ClosedLoop, Reflector, Arc<Row>, Arc<Row>) {
    let mut fake = FakeHost::default();
    let (sender, receiver) = fake.attach(1500, 64);
    let (back_sender, back_receiver) = fake.attach(1500, 64);
    let (sent, received) = (Arc::new(Row::in_memory(SourceStats::WORDS)), Arc::new(Row::in_memory(SinkStats::WORDS)));
    let asking = ClosedLoop::new(sender, receiver, config, sent.clone(), received.clone()).unwrap();
    let reflector = Reflector::new(back_sender, back_receiver, true, Arc::new(Row::in_memory(Reflector::WORDS)));
    (fake, asking, reflector, sent, received)
}

const CLOSED: ClosedConfig = ClosedConfig {
    route: ROUTE,
    sizes: Sizes::Fixed(64),
    window: 4,
    timeout: Duration::from_millis(100),
    start_ns: None,
    duration: Some(Duration::from_secs(1)),
    spin: Duration::ZERO,
};

#[test]
fn a_closed_loop_keeps_its_window_under_way_and_times_each_round_trip() {
    let (mut fake, mut asking, mut reflector, sent, received) = closed(CLOSED);

    for turn in 0..10 {
        asking.step(|| START_NS + turn * 1000).unwrap();
        assert_eq!(4 * (turn + 1), sent.load(0));
        fake.pump();
        while reflector.step().unwrap() != 0 {}
        fake.pump();
    }
    asking.step(|| START_NS + 2_000_000_000).unwrap();

    assert_eq!(40, received.load(0));
    assert_eq!(40, SinkStats::latency(&received)[0]);
    assert_eq!(ClosedStep::Done, asking.step(|| START_NS + 2_000_000_000).unwrap());
}

#[test]
fn a_request_that_does_not_come_back_is_given_up_and_the_window_goes_on() {
    let (mut fake, mut asking, mut reflector, sent, received) = closed(CLOSED);
    let mut seen = 0;
    fake.set_hook(move |frame| {
        seen += 1;
        if seen == 1 { Vec::new() } else { vec![frame.to_vec()] }
    });
    asking.step(|| START_NS).unwrap();
    fake.pump();
    while reflector.step().unwrap() != 0 {}
    fake.pump();

    asking.step(|| START_NS + 1000).unwrap();
    let before = (sent.load(0), received.load(0), SinkStats::read(&received).lost);
    asking.step(|| START_NS + 100_000_000).unwrap();

    assert_eq!((7, 3, 0), before);
    assert_eq!((8, 3, 1), (sent.load(0), received.load(0), SinkStats::read(&received).lost));
}

#[test]
fn a_window_that_cannot_be_is_refused() {
    for window in [0, 4097] {
        let (sender, receiver) = FakeHost::default().attach(1500, 16);
        let (sent, received) =
            (Arc::new(Row::in_memory(SourceStats::WORDS)), Arc::new(Row::in_memory(SinkStats::WORDS)));

        let made = ClosedLoop::new(sender, receiver, ClosedConfig { window, ..CLOSED }, sent, received);

        assert!(matches!(made, Err(Error::Usage(_))), "{window}");
    }
}

#[test]
fn a_pair_on_one_thread_passes_everything() {
    //! Generator and sink in turn, the host beside them: with more buffers than can be under way, nothing is lost.
    let mut fake = FakeHost::default();
    let (sender, _) = fake.attach(1500, 64);
    let (_, receiver) = fake.attach(1500, 2048);
    let config = TrafficConfig { frames: Some(20_000), is_light: true, ..TrafficConfig::new(ROUTE, 64) };
    let row = Arc::new(Row::in_memory(SinkStats::WORDS));
    let mut source = TrafficSource::new(sender, config, Arc::new(Row::in_memory(SourceStats::WORDS))).unwrap();
    let mut sink = TrafficSink::new(receiver, SinkConfig::default(), row.clone());
    let _fake = fake.start();

    run_pair(&mut source, &mut sink, &AtomicBool::new(false)).unwrap();

    assert_eq!(20_000, source.stats().frames);
    assert_eq!(SinkStats { frames: 20_000, bytes: 20_000 * 64, ..SinkStats::default() }, SinkStats::read(&row));
}

#[test]
fn a_requester_gets_every_frame_back_polled_and_asleep() {
    //! Each request is answered by the reflector, and its round trip recorded.
    for does_poll in [true, false] {
        let mut fake = FakeHost::default();
        let ends = [fake.attach(1500, 64), fake.attach(1500, 64)];
        let _fake = fake.start();
        let [(sender, receiver), (back_sender, back_receiver)] = ends;
        let mut reflector =
            Reflector::new(back_sender, back_receiver, does_poll, Arc::new(Row::in_memory(Reflector::WORDS)));
        let mut running = Running::start("reflector", move |stop| reflector.run(stop)).unwrap();
        let config = RequesterConfig { route: ROUTE, size: 64, requests: Some(200), timeout: LONG, does_poll };
        let row = Arc::new(Row::in_memory(RequesterStats::WORDS));

        Requester::new(sender, receiver, config, row.clone()).unwrap().run(&AtomicBool::new(false)).unwrap();

        let expected = RequesterStats { requests: 200, replies: 200, ..RequesterStats::default() };
        assert_eq!(expected, RequesterStats::read(&row));
        assert_eq!(200, RequesterStats::latency(&row)[0]);
        running.stop().unwrap();
    }
}

#[test]
fn requests_nobody_answers_time_out() {
    //! A requester without a reflector counts timeouts and ends.
    let mut fake = FakeHost::default();
    let (sender, receiver) = fake.attach(1500, 64);
    let config = RequesterConfig {
        route: ROUTE,
        size: 64,
        requests: Some(3),
        timeout: Duration::from_millis(5),
        does_poll: false,
    };
    let row = Arc::new(Row::in_memory(RequesterStats::WORDS));

    Requester::new(sender, receiver, config, row.clone()).unwrap().run(&AtomicBool::new(false)).unwrap();

    let expected = RequesterStats { requests: 3, timeouts: 3, ..RequesterStats::default() };
    assert_eq!(expected, RequesterStats::read(&row));
}

#[test]
fn reflectors_do_not_answer_each_other_nor_groups() {
    //! A reply and a frame to everybody are ignored: otherwise they would be under way for ever.
    let mut fake = FakeHost::default();
    let (sender, receiver) = fake.attach(1500, 64);
    let row = Arc::new(Row::in_memory(Reflector::WORDS));
    let mut reflector = Reflector::new(sender, receiver, true, row.clone());
    let mut request = vec![0; 60];
    frame::write(&mut request, &Route { to: mac(0), from: mac(1), stream: 1 }, 5, 9, false);
    let mut group = vec![0; 60];
    frame::write(&mut group, &Route { to: [0xff; 6], from: mac(1), stream: 1 }, 5, 9, false);

    for arriving in [&request, &group, &vec![1; 60]] {
        fake.deliver(0, arriving);
    }
    reflector.step().unwrap();
    let replies = fake.take(0);
    fake.deliver(0, &replies[0]);
    reflector.step().unwrap();

    assert_eq!((1, 0), (replies.len(), fake.take(0).len()));
    assert_eq!((mac(1), mac(0)), (replies[0][0..6].try_into().unwrap(), replies[0][6..12].try_into().unwrap()));
    let stamp = Stamp { stream: 1, number: 5, scheduled_ns: 9, is_light: false, is_reply: true };
    assert_eq!(Found::Intact(stamp), frame::read(&replies[0]));
    assert_eq!((1, 3), (row.load(0), row.load(1)));
}

#[test]
fn a_running_thread_ends_by_itself_or_when_told() {
    //! The end rings a bell; stopping twice is told.
    let mut short = Running::start("short", |_| Ok(())).unwrap();
    let mut endless = Running::start("endless", |stop| {
        while !stop.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        Err(Error::Closed("a test"))
    })
    .unwrap();

    assert!(short.wait(LONG).unwrap());
    assert!(short.stop().is_ok());
    assert!(!endless.has_ended());
    assert!(matches!(endless.stop(), Err(Error::Closed("a test"))));
    assert!(matches!(endless.stop(), Err(Error::Closed("the traffic thread"))));
}

#[test]
fn the_bytes_of_a_frame_are_as_documented() {
    //! Header fields lie where the table says, little-endian.
    let mut bytes = vec![0; 60];

    frame::write(&mut bytes, &ROUTE, 0x0102_0304_0506_0708, 0x1112_1314_1516_1718, true);

    let mut expected = Vec::new();
    expected.extend(mac(1));
    expected.extend(mac(0));
    expected.extend([0x88, 0xb5, 1, 1, 7, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]);
    expected.extend([0; 20]);
    assert_eq!(expected, bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_changed_bit_behind_the_ethertype_is_noticed(
        length in 60usize..1515, number: u64, scheduled_ns: u64, stream: u32, position: prop::sample::Index
    ) {
        let mut bytes = vec![0; length];
        let route = Route { stream, ..ROUTE };
        frame::write(&mut bytes, &route, number, scheduled_ns, false);
        let stamp = Stamp { stream, number, scheduled_ns, is_light: false, is_reply: false };
        prop_assert_eq!(Found::Intact(stamp), frame::read(&bytes));

        // The flag of a reply is set on the way, by a reflector.
        let reply = 15 * 8 + 1;
        let bit = 14 * 8 + position.index((length - 14) * 8);
        prop_assume!(bit != reply);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(Found::Corrupted, frame::read(&bytes));
    }

    #[test]
    fn sequence_agrees_with_a_set_of_numbers(steps in prop::collection::vec((0u64..40, 0u64..5), 1..400)) {
        let (mut sequence, mut seen, mut newest) = (Sequence::new(), HashSet::new(), None::<u64>);
        for (back, ahead) in steps {
            let number = (newest.map_or(0, |newest| newest + 1) + ahead).saturating_sub(back * (back % 2));
            let next = newest.map_or(0, |newest| newest + 1);
            let expected = match number {
                _ if number < next && seen.contains(&number) => Arrival::Duplicate,
                _ if number < next => Arrival::Reordered,
                _ if number == next => Arrival::InOrder,
                _ => Arrival::Ahead(number - next),
            };
            prop_assert_eq!(expected, sequence.arrive(number));
            seen.insert(number);
            newest = Some(newest.unwrap_or(0).max(number));
            prop_assert_eq!(newest.unwrap_or(0) + 1 - seen.len() as u64, sequence.missing());
        }
    }

    #[test]
    fn sequence_agrees_across_jumps_larger_than_its_window(jumps in prop::collection::vec(1u64..200_000, 1..60)) {
        let (mut sequence, mut seen, mut newest) = (Sequence::new(), HashSet::new(), 0);
        prop_assert_eq!(Arrival::InOrder, sequence.arrive(0));
        for jump in jumps {
            newest += jump;
            let expected = if jump == 1 { Arrival::InOrder } else { Arrival::Ahead(jump - 1) };
            prop_assert_eq!(expected, sequence.arrive(newest));
            seen.insert(newest);
            for back in [1, 63, 64, 65, jump - 1, WINDOW - 1, WINDOW, WINDOW + 1] {
                let Some(number) = newest.checked_sub(back).filter(|number| *number != newest && *number != 0) else {
                    continue;
                };
                let expected = if newest + 1 - number > WINDOW {
                    Arrival::Stale
                } else if seen.insert(number) {
                    Arrival::Reordered
                } else {
                    Arrival::Duplicate
                };
                prop_assert_eq!(expected, sequence.arrive(number));
            }
        }
    }
}
