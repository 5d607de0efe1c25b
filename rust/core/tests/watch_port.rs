//! Captures and traces on real workers: what is seen of each frame, and that nobody waits for a reader.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::switch_guest::{Guest, Lab, SWITCH, Shape, eventually, frame, mac};
use vbnet_core::error::Error;
use vbnet_core::fabric::{Fabric, VenetParams, WatchEnds, WatchId, WatchParams};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::PortCounter;
use vbnet_core::shm::capture::{CAPTURE_RING_MIN, CaptureReader, KIND_STAGE, RecordHead};
use vbnet_core::watch::bpf::Instruction;
use vbnet_core::watch::{CaptureCounter, Purpose, Stage, WATCHES_A_PORT_MAX};

/// `ether[14] = 7`
const SEEDED: [Instruction; 4] = [
    Instruction::new(0x30, 0, 0, 14),
    Instruction::new(0x15, 0, 1, 7),
    Instruction::new(0x06, 0, 0, 262_144),
    Instruction::new(0x06, 0, 0, 0),
];

struct Eye {
    id: WatchId,
    reader: CaptureReader,
}

/// Way, drop reason and bytes of a frame.
type Seen = (u8, Option<&'static str>, Vec<u8>);

impl Eye {
    fn open(fabric: &Fabric, params: &WatchParams<'_>) -> Self {
        let WatchEnds { id, memory, bell } = fabric.watch_add(params).unwrap();
        Self { id, reader: CaptureReader::open(memory, bell).unwrap() }
    }

    fn on(fabric: &Fabric, port: &str) -> Self {
        Self::open(fabric, &params(port))
    }

    fn records(&mut self) -> Vec<(RecordHead, Vec<u8>)> {
        let mut found = Vec::new();
        while let Some(head) = self.reader.peek().unwrap() {
            let mut bytes = Vec::new();
            self.reader.copy_data(&head, &mut bytes);
            self.reader.skip(&head);
            found.push((head, bytes));
        }
        self.reader.give_back();
        found
    }

    fn seen(&mut self) -> Vec<Seen> {
        let reason = |head: &RecordHead| usize::from(head.reason).checked_sub(1).map(|at| PortCounter::NAMES[at]);
        self.records().into_iter().map(|(head, bytes)| (head.way, reason(&head), bytes)).collect()
    }

    /// Stages with drop reasons of every frame, by its number.
    fn stages(&mut self) -> Vec<(u32, &'static str, u32)> {
        self.records()
            .into_iter()
            .filter(|(head, _)| head.kind == KIND_STAGE)
            .map(|(head, _)| (head.length, Stage::NAMES[usize::from(head.way)], head.detail))
            .collect()
    }
}

const fn params(port: &str) -> WatchParams<'_> {
    WatchParams { port, purpose: Purpose::Capture, filter: &[], snap_bytes: 65535, ring_bytes: CAPTURE_RING_MIN }
}

const IN: u8 = 0;
const OUT: u8 = 1;

#[test]
fn frame_is_seen_at_both_ports_as_it_was_sent() {
    let mut lab = Lab::new(3);
    let mut eyes: Vec<_> = ["g0", "g1", "g2"].map(|port| Eye::on(&lab.fabric, port)).into();
    let flooded = frame(mac(2), mac(1), 200, 1);
    let answer = frame(mac(1), mac(2), 70, 2);

    lab.guests[0].send(&flooded);
    lab.settle();
    lab.guests[1].send(&answer);
    lab.settle();

    assert_eq!(vec![(OUT, None, flooded.clone()), (IN, None, answer.clone())], eyes[0].seen());
    assert_eq!(vec![(IN, None, flooded.clone()), (OUT, None, answer)], eyes[1].seen());
    assert_eq!(vec![(IN, None, flooded)], eyes[2].seen());
}

#[test]
fn dropped_frames_are_seen_where_they_ended_with_the_reason() {
    let mut lab = Lab::new(1);
    let deaf = Guest::new(Shape::SMALL);
    let own = VenetParams { mac: mac(2), ..VenetParams::default() };
    lab.ids.push(lab.fabric.port_add_venet(SWITCH, "g1", deaf.queues(), own).unwrap());
    lab.guests.push(deaf);
    let mut sender = Eye::on(&lab.fabric, "g0");
    let mut receiver = Eye::on(&lab.fabric, "g1");
    let fine = frame(mac(2), mac(1), 100, 1);
    let forged = frame(mac(9), mac(2), 64, 2);
    let same = frame(mac(1), mac(3), 64, 3);
    let long = frame(mac(2), mac(1), 1600, 4);

    for frame in [&fine, &forged, &same, &long] {
        lab.guests[0].send(frame);
    }
    lab.settle();
    lab.fabric.port_link(lab.ids[0], false).unwrap();
    lab.guests[0].send(&fine);
    lab.settle();

    assert_eq!(
        vec![
            (OUT, None, fine.clone()),
            (OUT, Some("transmit_drop_forged_source"), forged),
            (OUT, Some("transmit_drop_same_port"), same),
            (OUT, Some("transmit_drop_oversize"), long),
            (OUT, Some("transmit_drop_link_down"), fine.clone()),
        ],
        sender.seen()
    );
    assert_eq!(vec![(IN, Some("receive_drop_no_room"), fine)], receiver.seen());
}

#[test]
fn what_is_counted_is_the_same_whether_somebody_looks_or_not() {
    let count = |is_watched: bool| {
        let mut lab = Lab::new(3);
        let _eye = is_watched.then(|| Eye::on(&lab.fabric, "g0"));
        for index in 0..300u32 {
            let to = [mac(2), mac(1), MacAddress::BROADCAST, mac(9)][index as usize % 4];
            lab.guests[0].send(&frame(to, mac(1), [64, 600, 1600][index as usize % 3], index as u8));
            lab.settle();
            lab.guests[1].refill();
        }
        lab.settle();
        let steady = [PortCounter::ReceiveFrames as usize..=PortCounter::TransmitDropRunt as usize];
        (0..3)
            .map(|guest| {
                let names = steady.clone().into_iter().flatten();
                let block = lab.counters.reader().blocks();
                let wanted = format!("device=g{guest},");
                let block = block.into_iter().find(|b| b.kind == "port" && b.labels.contains(&wanted)).unwrap();
                names.map(|at| block.values[at]).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    };

    assert_eq!(count(false), count(true));
}

#[test]
fn filter_keeps_what_it_wants_and_counts_the_rest() {
    let mut lab = Lab::new(2);
    let mut eye = Eye::open(&lab.fabric, &WatchParams { filter: &SEEDED, snap_bytes: 20, ..params("g0") });
    let mut wanted = frame(mac(2), mac(1), 300, 0);
    wanted[14] = 7;

    for seed in 8..13 {
        let mut other = frame(mac(2), mac(1), 300, 0);
        other[14] = seed;
        lab.guests[0].send(&other);
    }
    lab.guests[0].send(&wanted);
    lab.settle();

    let records = eye.records();
    assert_eq!(1, records.len());
    assert_eq!((300, wanted[..20].to_vec()), (records[0].0.length, records[0].1.clone()));
    let counts = eye.reader.counts();
    assert_eq!((1, 5, 0), (counts.captured, counts.filtered, counts.dropped));
}

#[test]
fn forged_program_is_refused_and_nothing_is_watched() {
    let lab = Lab::new(1);
    let endless = [Instruction::new(0x05, 0, 0, u32::MAX), Instruction::new(0x06, 0, 0, 1)];

    let refusal = lab.fabric.watch_add(&WatchParams { filter: &endless, ..params("g0") });

    assert!(matches!(refusal, Err(Error::Usage(why)) if why.contains("jumps out")));
    assert!(lab.counters.reader().blocks().iter().all(|block| block.kind != "capture"));
}

#[test]
fn reader_that_does_not_read_loses_frames_and_slows_nobody() {
    let mut lab = Lab::new(2);
    let mut eye = Eye::on(&lab.fabric, "g0");
    let sent = frame(mac(2), mac(1), 1400, 1);
    let total = 3 * u64::from(CAPTURE_RING_MIN) / 1424;

    for _ in 0..total {
        lab.guests[1].refill();
        lab.guests[0].send(&sent);
        lab.guests[0].drain();
    }
    lab.settle();

    assert_eq!(total, lab.count(0, PortCounter::TransmitFrames));
    let counts = eye.reader.counts();
    assert_eq!(total, counts.captured + counts.dropped);
    assert_eq!(counts.captured, eye.seen().len() as u64);
    assert!(counts.dropped > total / 2);
    let blocks = lab.counters.reader().blocks();
    let block = blocks.iter().find(|block| block.kind == "capture").unwrap();
    assert_eq!(counts.dropped, block.values[CaptureCounter::DropNoRoom as usize]);
    assert_eq!("device=g0,purpose=capture,id=1", block.labels);
}

#[test]
fn sleeping_reader_is_woken_by_the_next_frame() {
    let mut lab = Lab::new(2);
    let WatchEnds { memory, bell, .. } = lab.fabric.watch_add(&params("g0")).unwrap();
    let mut awaited =
        [rustix::event::PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(&bell), rustix::event::PollFlags::IN)];
    let mut reader = CaptureReader::open(memory, rustix::io::dup(&bell).unwrap()).unwrap();
    reader.acknowledge();
    assert!(reader.arm());

    lab.guests[0].send(&frame(mac(2), mac(1), 64, 0));

    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(1, rustix::event::poll(&mut awaited, Some(&limit)).unwrap());
    assert!(reader.peek().unwrap().is_some());
}

#[test]
fn watch_waits_for_the_next_port_of_its_name() {
    let mut lab = Lab::new(2);
    let mut eye = Eye::on(&lab.fabric, "g0");
    let sent = frame(mac(2), mac(1), 64, 0);
    lab.guests[0].send(&sent);
    lab.settle();

    lab.fabric.port_remove(lab.ids[0]).unwrap();
    assert!(eye.reader.counts().is_away);
    let mut again = Guest::new(Shape::SMALL);
    lab.fabric.port_add_venet(SWITCH, "g0", again.queues(), VenetParams::default()).unwrap();
    again.send(&sent);
    again.drain();
    lab.barrier();

    assert!(!eye.reader.counts().is_away);
    assert_eq!(vec![(OUT, None, sent.clone()), (OUT, None, sent)], eye.seen());
}

#[test]
fn removed_watch_sees_nothing_more_also_while_its_port_is_away() {
    let mut lab = Lab::new(2);
    let mut eye = Eye::on(&lab.fabric, "g0");
    let away = Eye::on(&lab.fabric, "g1");
    lab.fabric.port_remove(lab.ids[1]).unwrap();

    lab.fabric.watch_remove(eye.id).unwrap();
    lab.fabric.watch_remove(away.id).unwrap();
    lab.guests[0].send(&frame(mac(2), mac(1), 64, 0));
    lab.guests[0].drain();
    lab.barrier();

    assert!(eye.seen().is_empty());
    assert!(matches!(lab.fabric.watch_remove(eye.id), Err(Error::NotFound(_))));
    assert!(lab.counters.reader().blocks().iter().all(|block| block.kind != "capture"));
}

#[test]
fn port_is_watched_so_often_and_not_more() {
    let lab = Lab::new(1);
    let eyes: Vec<_> = (0..WATCHES_A_PORT_MAX).map(|_| Eye::on(&lab.fabric, "g0")).collect();

    assert!(matches!(lab.fabric.watch_add(&params("g0")), Err(Error::Busy(_))));

    lab.fabric.watch_remove(eyes[3].id).unwrap();
    assert!(lab.fabric.watch_add(&params("g0")).is_ok());
    assert!(matches!(lab.fabric.watch_add(&params("nobody")), Err(Error::NotFound(_))));
}

#[test]
fn traced_frames_tell_each_stage_in_order() {
    let mut lab = Lab::new(3);
    let mut eye = Eye::open(&lab.fabric, &WatchParams { purpose: Purpose::Trace(2), ..params("g0") });
    let [g1, g2] = [lab.ids[1].0 as u32, lab.ids[2].0 as u32];
    let flooded = frame(mac(2), mac(1), 64, 0);

    lab.guests[0].send(&flooded);
    lab.settle();
    lab.guests[1].send(&frame(mac(1), mac(2), 64, 0));
    lab.settle();
    for _ in 0..3 {
        lab.guests[0].send(&flooded);
        lab.settle();
    }

    let last = |stages: &[(u32, &str, u32)]| stages.iter().filter(|s| s.1 == "rung" || s.1 == "spared").count();
    let stages = eye.stages();
    assert_eq!(3, last(&stages), "{stages:?}");
    let plain: Vec<_> = stages.iter().filter(|s| s.1 != "rung" && s.1 != "spared").copied().collect();
    assert_eq!(
        vec![
            (0, "taken", 0),
            (0, "decided", 2),
            (0, "claimed", g1),
            (0, "copied", g1),
            (0, "claimed", g2),
            (0, "copied", g2),
        ],
        plain[..6]
    );
    assert_eq!(
        vec![(1, "taken", 0), (1, "decided", 1), (1, "claimed", g1), (1, "copied", g1), (1, "published", g1)],
        plain[8..]
    );
}

#[test]
fn traced_frame_that_is_dropped_says_where() {
    let mut lab = Lab::new(1);
    let deaf = Guest::new(Shape::SMALL);
    let own = VenetParams { mac: mac(2), ..VenetParams::default() };
    let id = lab.fabric.port_add_venet(SWITCH, "g1", deaf.queues(), own).unwrap();
    let mut eye = Eye::open(&lab.fabric, &WatchParams { purpose: Purpose::Trace(9), ..params("g0") });

    lab.guests[0].send(&frame(mac(2), mac(1), 64, 0));
    lab.guests[0].send(&frame(mac(9), mac(2), 64, 0));
    lab.guests[0].drain();
    lab.barrier();

    let own_id = lab.ids[0].0 as u32;
    assert_eq!(
        vec![
            (0, "taken", 0),
            (0, "decided", 1),
            (0, "dropped", id.0 as u32),
            (1, "taken", 0),
            (1, "decided", 0),
            (1, "dropped", own_id),
        ],
        eye.stages()
    );
    eventually(|| eye.reader.counts().captured == 2);
}
