//! Logs of dirty pages, by which front ends move a guest while it runs: which pages are marked, which are not, and what logs
//! are refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::switch_guest::{Lab, eventually, frame, mac};
use crate::vhost_front::{
    EVENT_INDEX, FEATURES, FrontEnd, GET_FEATURES, GUEST, KINDS, LOG_ALL, MEMORY, NEXT, PACKED, SET_FEATURES,
    SET_LOG_BASE, SET_LOG_FD, SET_PROTOCOL_FEATURES, SET_VRING_ADDR, WRITE, Wire, add_port, addresses, counted, longs,
    memfd, wait_until_alone,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vbnet_core::fabric::VhostUserCounter;
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::PortPart;
use vbnet_core::shm::doorbell::Doorbell;

const PAGE: u64 = 4096;
/// A bit for each page up to the end of the memory.
const LOG_BYTES: u64 = (GUEST + MEMORY) / PAGE / 8;
/// Where tests put buffers: pages that nothing else has.
const OWN: u64 = 0x30_0000;

/// A log, as its front end has it.
struct Log {
    file: File,
    base: *mut u8,
    bytes: u64,
}

impl Log {
    fn new() -> Self {
        Self::of(LOG_BYTES)
    }

    /// A file of so many bytes, all of it mapped.
    fn of(bytes: u64) -> Self {
        let file = memfd(bytes);
        // SAFETY: a fresh mapping.
        let base = unsafe {
            let rights = ProtFlags::READ | ProtFlags::WRITE;
            mmap(std::ptr::null_mut(), bytes as usize, rights, MapFlags::SHARED, &file, 0).unwrap()
        };
        Self { file, base: base.cast(), bytes }
    }

    /// Takes the bits: pages of the front end's memory that were marked since the last time, first bytes.
    fn take(&self) -> BTreeSet<u64> {
        let pages = self.take_bits().into_iter().map(|bit| bit * PAGE);
        pages.map(|address| address.checked_sub(GUEST).expect("a page of the memory")).collect()
    }

    /// Takes the numbers of the bits that were set since the last time, counted from the beginning of the file.
    fn take_bits(&self) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        for index in 0..self.bytes {
            // SAFETY: within the mapping.
            let byte = unsafe { AtomicU8::from_ptr(self.base.add(index as usize)) };
            // Before the page is read, as in the host: [VQ-6].
            let bits = byte.swap(0, Ordering::AcqRel);
            found.extend((0..8).filter(|bit| bits >> bit & 1 == 1).map(|bit| index * 8 + bit));
        }
        found
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped.
        unsafe { munmap(self.base.cast(), self.bytes as usize).unwrap() };
    }
}

fn give(front: &mut FrontEnd, log: &Log) {
    front.wire.send(SET_LOG_BASE, 0, &longs(&[LOG_BYTES, 0]), &[log.file.as_fd()]);
    assert_eq!(longs(&[LOG_BYTES, 0]), front.wire.reply());
}

/// Has buffers marked, or not, and the rings of both queues.
fn switch(front: &mut FrontEnd, buffers: bool, rings: bool) {
    let features = front.features | if buffers { LOG_ALL } else { 0 };
    front.wire.done(SET_FEATURES, &longs(&[features]), &[]);
    for queue in [&front.rx, &front.tx] {
        let log = rings.then_some(GUEST + queue.used_ring());
        front.wire.done(SET_VRING_ADDR, &addresses(queue, log), &[]);
    }
}

/// A front end that runs, with a log that marks so much, and nothing marked yet.
fn logged(lab: &Lab, features: u64, (buffers, rings): (bool, bool)) -> (FrontEnd, Log) {
    let mut front = FrontEnd::bare(&add_port(lab, "vm"), features);
    front.start();
    let log = Log::new();
    give(&mut front, &log);
    switch(&mut front, buffers, rings);
    lab.barrier();
    log.take();
    (front, log)
}

/// Posts a buffer of these pieces, offsets and bytes.
fn post(front: &mut FrontEnd, first: u16, pieces: &[(u64, u32)]) {
    for (index, &(offset, bytes)) in (first..).zip(pieces) {
        let next = if usize::from(index - first) + 1 < pieces.len() { NEXT } else { 0 };
        front.rx.describe(&front.memory, index, (GUEST + offset, bytes, WRITE | next, index + 1));
    }
    front.rx.offer(&front.memory, first);
}

/// What was marked, but for our wishes about the sending queue, which come when the port falls asleep.
fn marked(lab: &Lab, front: &FrontEnd, log: &Log) -> BTreeSet<u64> {
    lab.barrier();
    let mut pages = log.take();
    pages.remove(&front.tx.used_ring());
    pages
}

/// The page that used entries of a queue are written to.
fn ring_page(queue: &crate::vhost_front::Queue) -> u64 {
    if queue.packed.is_some() { queue.descriptors() } else { queue.used_ring() }
}

fn receive(lab: &mut Lab, front: &mut FrontEnd, length: usize) {
    lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(2), length, 7));
    eventually(|| front.rx.used(&front.memory).is_some());
}

#[test]
fn pages_that_a_frame_was_written_to_are_marked_and_no_others() {
    // At the end of a page: what is written ends with it, or goes on in the next one. Of less than 64 bytes as many are written.
    let cases = [
        (100, 4096 - 112, 1),
        (101, 4096 - 112, 2),
        (14, 4096 - 76, 1),
        (14, 4096 - 75, 2),
        (1514, 0, 1),
        (1514, 4095, 2),
    ];
    for features in [FEATURES, FEATURES | PACKED, FEATURES | EVENT_INDEX] {
        let mut lab = Lab::new(1);
        let (mut front, log) = logged(&lab, features, (true, true));
        for (number, (length, at, pages)) in (0..).zip(cases) {
            let first = OWN + 4 * PAGE * u64::from(number);
            post(&mut front, number, &[(first + at, 3000)]);

            receive(&mut lab, &mut front, length);

            let mut expected: BTreeSet<u64> = (0..pages).map(|page| first + page * PAGE).collect();
            expected.insert(ring_page(&front.rx));
            assert_eq!(expected, marked(&lab, &front, &log), "{length} at {at} {features:#x}");
        }
    }
}

#[test]
fn of_a_scattered_buffer_the_pieces_are_marked_that_were_written() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let (mut front, log) = logged(&lab, features, (true, false));
        let pieces = [(OWN + 10, 60), (OWN + 2 * PAGE, 100), (OWN + 4 * PAGE - 50, 2000)];
        for (length, expected) in [(80, vec![0, 2]), (148, vec![0, 2]), (149, vec![0, 2, 3]), (300, vec![0, 2, 3, 4])] {
            post(&mut front, 0, &pieces);

            receive(&mut lab, &mut front, length);

            let expected: BTreeSet<u64> = expected.into_iter().map(|page| OWN + page * PAGE).collect();
            assert_eq!(expected, marked(&lab, &front, &log), "{length}");
        }
    }
}

#[test]
fn of_merged_buffers_those_are_marked_that_the_frame_fills() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let (mut front, log) = logged(&lab, features, (true, true));
        (0..4).for_each(|number| post(&mut front, number, &[(OWN + PAGE * u64::from(number), 700)]));

        receive(&mut lab, &mut front, 1514);

        let expected = BTreeSet::from([OWN, OWN + PAGE, OWN + 2 * PAGE, ring_page(&front.rx)]);
        assert_eq!(expected, marked(&lab, &front, &log));
    }
}

#[test]
fn used_entries_of_sent_frames_are_marked() {
    for features in KINDS {
        let lab = Lab::new(1);
        let (mut front, log) = logged(&lab, features, (false, true));

        front.send(&frame(MacAddress::BROADCAST, mac(1), 80, 1));
        front.drain();

        lab.barrier();
        assert!(log.take().contains(&ring_page(&front.tx)));
    }
}

/// Each of the two kinds by itself, on and off while the queues run.
#[test]
fn buffers_and_rings_are_marked_where_that_is_switched_on() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let (mut front, log) = logged(&lab, features, (false, false));
        for (number, (buffers, rings)) in
            [(true, true), (false, true), (true, false), (false, false)].into_iter().enumerate()
        {
            switch(&mut front, buffers, rings);
            lab.barrier();
            log.take();
            post(&mut front, number as u16, &[(OWN, 2000)]);

            receive(&mut lab, &mut front, 200);

            let mut expected = BTreeSet::new();
            expected.extend(buffers.then_some(OWN));
            expected.extend(rings.then_some(ring_page(&front.rx)));
            assert_eq!(expected, marked(&lab, &front, &log), "{buffers} {rings}");
        }
    }
}

/// By an address in front of an IOMMU, for instance: what the front end says counts.
#[test]
fn used_ring_is_marked_where_the_front_end_says() {
    let mut lab = Lab::new(1);
    let (mut front, log) = logged(&lab, FEATURES, (false, false));
    front.wire.done(SET_VRING_ADDR, &addresses(&front.rx, Some(GUEST + 0x2_0000)), &[]);
    lab.barrier();
    log.take();
    post(&mut front, 0, &[(OWN, 2000)]);

    receive(&mut lab, &mut front, 200);

    assert_eq!(BTreeSet::from([0x2_0000]), marked(&lab, &front, &log));
}

/// Nothing that would be missing is written before it is known where to mark it.
#[test]
fn queues_wait_for_the_log() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::bare(&add_port(&lab, "vm"), FEATURES);
    front.start();
    switch(&mut front, true, true);
    post(&mut front, 0, &[(OWN, 2000)]);
    lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(2), 80, 7));
    lab.guests[0].drain();
    lab.barrier();
    assert_eq!(None, front.rx.used(&front.memory));

    let log = Log::new();
    give(&mut front, &log);
    receive(&mut lab, &mut front, 80);

    assert!(marked(&lab, &front, &log).is_superset(&BTreeSet::from([OWN, ring_page(&front.rx)])));
}

/// A longer log takes the place of the one before: marks go there from then on.
#[test]
fn next_log_takes_the_place_of_the_one_before() {
    let mut lab = Lab::new(1);
    let (mut front, before) = logged(&lab, FEATURES, (true, false));
    let after = Log::new();
    give(&mut front, &after);
    post(&mut front, 0, &[(OWN, 2000)]);

    receive(&mut lab, &mut front, 80);

    assert_eq!(BTreeSet::from([OWN]), marked(&lab, &front, &after));
    assert_eq!(BTreeSet::new(), marked(&lab, &front, &before));
}

/// 8, CVE-2026-86563: of a log that begins within its file, marks lie where it begins, its offset counted once, and nowhere else.
/// The file is long enough for an offset that is counted twice, or not at all.
#[test]
fn log_that_begins_at_an_offset_of_its_file_is_marked_from_there() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::bare(&add_port(&lab, "vm"), features);
        front.start();
        let log = Log::of(LOG_BYTES + 3 * PAGE);
        front.wire.send(SET_LOG_BASE, 0, &longs(&[LOG_BYTES, PAGE]), &[log.file.as_fd()]);
        front.wire.reply();
        switch(&mut front, true, false);
        for at in [OWN, OWN + 5 * PAGE, MEMORY - PAGE] {
            post(&mut front, 0, &[(at, 2000)]);

            receive(&mut lab, &mut front, 200);

            lab.barrier();
            assert_eq!(BTreeSet::from([8 * PAGE + (GUEST + at) / PAGE]), log.take_bits(), "{at:#x} {features:#x}");
        }
    }
}

/// What a front end may be told of marks by is taken and not used.
#[test]
fn descriptor_to_tell_of_marks_is_closed() {
    let lab = Lab::new(0);
    let (mut front, _log) = logged(&lab, FEATURES, (true, true));
    let (reader, writer) = std::io::pipe().unwrap();

    front.wire.done(SET_LOG_FD, &[], &[writer.as_fd()]);
    drop(writer);

    assert_eq!(0, std::io::Read::read(&mut &reader, &mut [0]).unwrap(), "nobody has the other end");
    assert_ne!(0, LOG_ALL & front.wire.ask_u64(GET_FEATURES));
}

/// Ends with the next front end being served.
fn assert_refused(lab: &mut Lab, front: FrontEnd, counter: VhostUserCounter, what: &str) {
    front.wire.assert_hung_up();
    wait_until_alone(lab, "vm");
    let event = lab.fault();
    assert_eq!((PortPart::Control, 1), (event.part, counted(lab, "vm", counter)), "{what}: {}", event.text);
}

#[test]
fn log_that_cannot_be_is_refused_and_the_next_front_end_is_served() {
    let sealed = || {
        let file = memfd_create("log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, LOG_BYTES).unwrap();
        fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
        File::from(file)
    };
    let cases: Vec<(&str, File, [u64; 2])> = vec![
        ("longer than its file", memfd(LOG_BYTES), [LOG_BYTES + 1, 0]),
        ("beyond its file", memfd(LOG_BYTES), [LOG_BYTES, 1]),
        ("far beyond its file", memfd(LOG_BYTES), [LOG_BYTES, u64::MAX - LOG_BYTES]),
        ("sealed", sealed(), [LOG_BYTES, 0]),
        ("a program", File::open("/proc/self/exe").unwrap(), [4096, 0]),
        ("a doorbell", File::from(rustix::io::dup(Doorbell::create().unwrap()).unwrap()), [8, 0]),
    ];
    for (what, file, [bytes, offset]) in cases {
        let mut lab = Lab::new(0);
        let (front, _log) = logged(&lab, FEATURES, (false, false));

        front.wire.send(SET_LOG_BASE, 0, &longs(&[bytes, offset]), &[file.as_fd()]);

        assert_refused(&mut lab, front, VhostUserCounter::RefusedContent, what);
    }
}

#[test]
fn log_too_short_for_what_it_is_to_mark_is_refused() {
    for (buffers, bytes, ring) in [
        (true, LOG_BYTES - 1, None),
        (false, LOG_BYTES, Some(GUEST + MEMORY - 8)),
        (false, 8, Some(GUEST)),
        (false, 8, Some(u64::MAX)),
    ] {
        let mut lab = Lab::new(0);
        let (mut front, _log) = logged(&lab, FEATURES, (false, false));
        let file = memfd(LOG_BYTES);
        front.wire.send(SET_LOG_BASE, 0, &longs(&[bytes, 0]), &[file.as_fd()]);
        front.wire.reply();

        let features = front.features | if buffers { LOG_ALL } else { 0 };
        front.wire.send(SET_FEATURES, 0, &longs(&[features]), &[]);
        front.wire.send(SET_VRING_ADDR, 0, &addresses(&front.rx, ring), &[]);

        assert_refused(&mut lab, front, VhostUserCounter::RefusedContent, &format!("{bytes} {ring:?}"));
    }
}

#[test]
fn messages_about_logs_that_are_none_end_the_connection() {
    let cases: [(&str, u32, Vec<u8>, bool); 4] = [
        ("a log without a file", SET_LOG_BASE, longs(&[LOG_BYTES, 0]), false),
        ("a log of no bytes", SET_LOG_BASE, longs(&[0, 0]), true),
        ("a log whose end overflows", SET_LOG_BASE, longs(&[LOG_BYTES, u64::MAX]), true),
        ("nothing to tell of marks by", SET_LOG_FD, vec![], false),
    ];
    for (what, request, body, has_file) in cases {
        let mut lab = Lab::new(0);
        let (front, log) = logged(&lab, FEATURES, (true, true));
        let files = [log.file.as_fd()];

        front.wire.send(request, 0, &body, if has_file { &files } else { &[] });

        assert_refused(&mut lab, front, VhostUserCounter::RefusedMessage, what);
    }
}

#[test]
fn log_that_was_not_agreed_on_ends_the_connection() {
    for request in [SET_LOG_BASE, SET_LOG_FD] {
        let mut lab = Lab::new(0);
        let path = add_port(&lab, "vm");
        let front = FrontEnd::bare(&path, FEATURES);
        front.wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[1 | 8]), &[]);
        let log = Log::new();
        let body = if request == SET_LOG_BASE { longs(&[LOG_BYTES, 0]) } else { vec![] };

        front.wire.send(request, 0, &body, &[log.file.as_fd()]);

        assert_refused(&mut lab, front, VhostUserCounter::RefusedMessage, "not agreed on");
        assert_eq!(0, lab.fabric.take_faults().len());
        assert_ne!(0, FEATURES & Wire::connect(&path).ask_u64(GET_FEATURES));
    }
}

/// Cut short while frames are marked in it: the queues end with a reason, and the host goes on.
#[test]
fn log_cut_short_under_way_ends_the_queues() {
    let mut lab = Lab::new(2);
    let (mut front, log) = logged(&lab, FEATURES, (true, true));
    post(&mut front, 0, &[(OWN, 2000)]);
    ftruncate(&log.file, 0).unwrap();

    lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(2), 80, 7));

    assert_eq!("memory_gone", lab.fault().reason);
    lab.assert_passes(0, 1);
}
