//! A driver that breaks every rule there is: the device refuses, answers an error, or ends that queue; nothing else happens.
//! Numbers of weaknesses are those of other hypervisors that such input was found in.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use crate::virtio_bench::{Bench, DEADLINE, Direct};
use vbnet_core::error::{Error, Fault};
use vbnet_core::guest::virtio::transport::Registers;
use vbnet_core::virtio::device::{COMMON_FEATURES, Transport};

const BYTES: usize = 1 << 20;
const SIZE: u16 = 16;
/// Where this driver puts its queue, its signal and its buffers in its RAM.
const QUEUE: u32 = 0x10000;
const AVAILABLE: u32 = QUEUE + 0x1000;
const USED: u32 = QUEUE + 0x2000;
const SIGNAL: u32 = QUEUE + 0x3000;
const QUEUE_BYTES: u32 = 0x4000;
const BUFFER: u32 = 0x20000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const STATUS_ALIVE: u32 = 15;
const NEEDS_RESET: u32 = 64;

const GET_STATUS: u32 = 3;
const SET_FEATURES: u32 = 2;
const SET_STATUS: u32 = 4;
const SET_VQ: u32 = 9;

struct Hostile {
    bench: Bench,
    available: u16,
    kick: rustix::fd::OwnedFd,
}

impl Hostile {
    fn new() -> Self {
        Self::with_features(COMMON_FEATURES)
    }

    fn with_features(features: u64) -> Self {
        let bench = Bench::new(BYTES, false, Transport::Vbus);
        format_signal(&bench, SIGNAL);
        let (kick, _call) = Direct(bench.device.clone()).share(0, QUEUE, QUEUE_BYTES, SIGNAL - QUEUE).unwrap();
        let hostile = Self { bench, available: 0, kick };
        hostile.start(features);
        hostile
    }

    fn start(&self, features: u64) {
        agree_on(&self.bench, features);
        self.bench.call(SET_VQ, &set_vq(0, SIZE.into(), [QUEUE, AVAILABLE, USED])).unwrap();
        self.bench.call(SET_STATUS, &[STATUS_ALIVE]).unwrap();
    }

    fn write(&self, offset: u32, bytes: &[u8]) {
        let place = self.bench.ram.at(offset, bytes.len()).unwrap();
        // SAFETY: mapped, and this test's own.
        unsafe { place.as_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
    }

    fn byte(&self, offset: u32) -> u8 {
        // SAFETY: as above.
        unsafe { self.bench.ram.at(offset, 1).unwrap().as_ptr().read_volatile() }
    }

    fn word(&self, offset: u32) -> &AtomicU16 {
        // SAFETY: as above; aligned by whoever asks.
        unsafe { AtomicU16::from_ptr(self.bench.ram.at(offset, 2).unwrap().as_ptr().cast()) }
    }

    fn describe(&self, index: u32, address: u64, length: u32, flags: u16, next: u16) {
        let mut entry = Vec::new();
        entry.extend(address.to_le_bytes());
        entry.extend(length.to_le_bytes());
        entry.extend(flags.to_le_bytes());
        entry.extend(next.to_le_bytes());
        self.write(QUEUE + 16 * index, &entry);
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.write(BUFFER, &header);
    }

    fn offer(&mut self, head: u16) {
        self.word(AVAILABLE + 4 + 2 * u32::from(self.available % SIZE)).store(head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        self.word(AVAILABLE + 2).store(self.available, Ordering::SeqCst);
        self.ring();
    }

    fn ring(&self) {
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
    }

    fn used(&self) -> u16 {
        self.word(USED + 2).load(Ordering::Acquire)
    }

    /// Waits until so many chains came back; what the last one says was written.
    fn wait_used(&self, count: u16) -> u32 {
        self.until("a used chain", || self.used() == count);
        let entry = USED + 4 + 8 * u32::from(count.wrapping_sub(1) % SIZE) + 4;
        u32::from(self.word(entry).load(Ordering::Relaxed))
            | u32::from(self.word(entry + 2).load(Ordering::Relaxed)) << 16
    }

    /// Waits until the device ended the queue; the rule that was broken.
    fn wait_fault(&self) -> &'static str {
        self.until("a fault", || self.status() & NEEDS_RESET != 0);
        let mut found = self.bench.host.take_faults();
        self.until("the fault to be told", || {
            found.extend(self.bench.host.take_faults());
            !found.is_empty()
        });
        assert_eq!(1, found.len());
        found[0].reason
    }

    fn status(&self) -> u32 {
        u32::from_le_bytes(self.bench.call(GET_STATUS, &[]).unwrap().try_into().unwrap())
    }

    fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < DEADLINE, "no {what}");
            std::thread::yield_now();
        }
    }

    /// A read of one sector in the shape `header · data · status`, with these three descriptors; its status.
    fn request(&mut self, kind: u32, sector: u64, data: u32, flags: u16) -> u8 {
        self.header(kind, sector);
        self.write(BUFFER + 0x800, &[0xee]);
        self.describe(0, BUFFER.into(), 16, NEXT, 1);
        self.describe(1, (BUFFER + 0x1000).into(), data, NEXT | flags, 2);
        self.describe(2, (BUFFER + 0x800).into(), 1, WRITE, 0);
        self.offer(0);
        self.wait_used(self.available);
        self.byte(BUFFER + 0x800)
    }
}

fn agree(bench: &Bench) {
    agree_on(bench, COMMON_FEATURES);
}

fn agree_on(bench: &Bench, features: u64) {
    bench.call(SET_STATUS, &[3]).unwrap();
    bench.call(SET_FEATURES, &[features as u32, (features >> 32) as u32]).unwrap();
    bench.call(SET_STATUS, &[11]).unwrap();
}

/// Lays a signal out as `docs/wire/signal.md` says it, with nobody asleep.
fn format_signal(bench: &Bench, offset: u32) {
    let place = bench.ram.at(offset, 0x280).unwrap().as_ptr();
    // SAFETY: mapped, and this test's own.
    unsafe {
        place.write_bytes(0, 0x280);
        place.copy_from(b"vSIG\x02".as_ptr(), 5);
    }
}

fn set_vq(queue: u32, size: u32, places: [u32; 3]) -> Vec<u32> {
    let mut words = vec![queue, size];
    words.extend(places.iter().flat_map(|place| [*place, 0]));
    words
}

// ---- requests of the disk -----------------------------------------------------------------------------------------------

/// VIRTIO_BLK_S_IOERR for what cannot be done, VIRTIO_BLK_S_UNSUPP for what is not known; the queue goes on.
#[test]
fn blk_request_that_cannot_be_done_is_answered_with_its_error() {
    let mut hostile = Hostile::new();
    for (what, kind, sector, bytes, flags, status) in [
        ("a read", 0, 3, 512, WRITE, 0),
        ("a read behind the end", 0, BYTES as u64 / 512, 512, WRITE, 1),
        ("a read across the end", 0, BYTES as u64 / 512 - 1, 1024, WRITE, 1),
        ("a sector that overflows", 0, u64::MAX, 512, WRITE, 1),
        ("a byte offset that overflows", 0, u64::MAX / 512, 512, WRITE, 1),
        ("half a sector", 0, 0, 256, WRITE, 1),
        ("a write of half a sector", 1, 0, 100, 0, 1),
        ("a write behind the end", 1, 1 << 40, 512, 0, 1),
        ("an unknown kind", 77, 0, 512, WRITE, 2),
        ("a discard of half a range", 11, 0, 8, 0, 1),
        ("a flush with data", 4, 0, 512, 0, 0),
        ("a read once more", 0, 3, 512, WRITE, 0),
    ] {
        assert_eq!(status, hostile.request(kind, sector, bytes, flags), "{what}");
    }
    assert_eq!(0, hostile.status() & NEEDS_RESET);
}

/// Ranges that end behind the disk, flags that are not known, more ranges than may be: nothing of the file changes.
#[test]
fn blk_discard_of_ranges_that_cannot_be_changes_nothing() {
    let mut hostile = Hostile::new();
    let range = |sector: u64, sectors: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    let good = range(0, 8, 0);
    for (what, ranges, kind, status) in [
        ("good, then behind the end", [good.clone(), range(1 << 40, 1, 0)].concat(), 11, 1),
        ("good, then across the end", [good.clone(), range(BYTES as u64 / 512 - 1, 2, 0)].concat(), 13, 1),
        ("a sector that overflows", range(u64::MAX, 2, 0), 11, 1),
        ("too many sectors", range(0, u32::MAX, 0), 13, 1),
        ("unmap of a discard", range(0, 8, 1), 11, 2),
        ("an unknown flag", range(0, 8, 2), 13, 2),
        ("seventeen ranges", good.repeat(17), 11, 1),
    ] {
        hostile.write(BUFFER + 0x1000, &ranges);
        assert_eq!(status, hostile.request(kind, 0, ranges.len() as u32, 0), "{what}");
    }
    let mut found = vec![0; BYTES];
    hostile.bench.file.read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().enumerate().all(|(at, value)| *value == (at / 512) as u8));
}

/// CVE-2022-2132's family: a header that is short, or spread over descriptors of one byte, or a chain that is only that.
#[test]
fn blk_header_in_pieces_is_read_and_a_short_one_is_answered() {
    let mut hostile = Hostile::new();
    hostile.header(0, 2);
    for index in 0..8 {
        hostile.describe(index, (BUFFER + 2 * index).into(), 2, NEXT, index as u16 + 1);
    }
    hostile.describe(8, (BUFFER + 0x1000).into(), 513, WRITE, 0);
    hostile.offer(0);
    assert_eq!(513, hostile.wait_used(1));
    assert_eq!(
        (2, 2, 0),
        (hostile.byte(BUFFER + 0x1000), hostile.byte(BUFFER + 0x11ff), hostile.byte(BUFFER + 0x1200))
    );

    hostile.describe(0, BUFFER.into(), 15, NEXT, 1);
    hostile.describe(1, (BUFFER + 0x1000).into(), 1, WRITE, 0);
    hostile.offer(0);
    assert_eq!((1, 1), (hostile.wait_used(2), hostile.byte(BUFFER + 0x1000)));
}

/// CH PR#8401: a chain without a place for its status, or without a header, comes back and is not leaked.
#[test]
fn blk_chain_with_only_a_head_comes_back() {
    let mut hostile = Hostile::new();
    hostile.header(0, 0);
    hostile.describe(0, BUFFER.into(), 16, 0, 0);
    hostile.offer(0);
    assert_eq!(0, hostile.wait_used(1));
    hostile.describe(1, (BUFFER + 0x1000).into(), 1, WRITE, 0);
    hostile.offer(1);
    assert_eq!((1, 1), (hostile.wait_used(2), hostile.byte(BUFFER + 0x1000)));
}

/// CVE-2016-5403: one head made available as often as the queue has entries is served as often, and no more.
#[test]
fn blk_head_that_is_offered_again_and_again_is_served_as_often() {
    let mut hostile = Hostile::new();
    assert_eq!(0, hostile.request(0, 1, 512, WRITE));
    for _ in 0..3 * SIZE {
        hostile.offer(0);
        hostile.wait_used(hostile.available);
    }
    assert_eq!(0, hostile.status() & NEEDS_RESET);
}

/// A data buffer that is the queue itself: the driver spoils its own ring, and nobody else's anything.
#[test]
fn blk_read_into_the_ring_ends_that_queue_at_most() {
    let mut hostile = Hostile::new();
    hostile.header(0, 255);
    hostile.describe(0, BUFFER.into(), 16, NEXT, 1);
    hostile.describe(1, AVAILABLE.into(), 512, NEXT | WRITE, 2);
    hostile.describe(2, (BUFFER + 0x800).into(), 1, WRITE, 0);
    hostile.offer(0);
    hostile.until("an end", || hostile.used() == 1 || hostile.status() & NEEDS_RESET != 0);
    assert!(hostile.bench.device.close().is_ok());
}

// ---- rules of the queue -------------------------------------------------------------------------------------------------

/// Each breaks a rule of the ring: the queue is ended, under the name of the rule, and the device says that it needs a reset.
#[test]
fn queue_that_breaks_a_rule_is_ended_under_its_name() {
    type Break = fn(&mut Hostile);
    let rules: [(&str, &str, Break); 11] = [
        ("CVE-2018-1059 buffer behind the end", "outside_memory", |hostile| {
            hostile.describe(0, crate::virtio_bench::RAM_BYTES - 8, 16, 0, 0);
            hostile.offer(0);
        }),
        ("buffer in the RAM's header", "outside_memory", |hostile| {
            hostile.describe(0, 0, 16, 0, 0);
            hostile.offer(0);
        }),
        ("CVE-2016-7422 huge length", "outside_memory", |hostile| {
            hostile.describe(0, BUFFER.into(), u32::MAX, 0, 0);
            hostile.offer(0);
        }),
        ("CVE-2020-10725 length 0", "zero_length", |hostile| {
            hostile.describe(0, BUFFER.into(), 0, WRITE, 0);
            hostile.offer(0);
        }),
        ("CVE-2026-86846 head outside of the queue", "index_out_of_range", |hostile| hostile.offer(SIZE)),
        ("next outside of the queue", "index_out_of_range", |hostile| {
            hostile.describe(0, BUFFER.into(), 16, NEXT, SIZE);
            hostile.offer(0);
        }),
        ("chain without an end", "chain_too_long", |hostile| {
            hostile.describe(0, BUFFER.into(), 16, NEXT, 0);
            hostile.offer(0);
        }),
        ("read behind write", "wrong_direction", |hostile| {
            hostile.describe(0, BUFFER.into(), 16, NEXT | WRITE, 1);
            hostile.describe(1, BUFFER.into(), 16, 0, 0);
            hostile.offer(0);
        }),
        ("CVE-2011-2212 indirect of half an entry", "bad_indirect", |hostile| {
            hostile.describe(0, BUFFER.into(), 24, INDIRECT, 0);
            hostile.offer(0);
        }),
        ("indirect table behind the end", "outside_memory", |hostile| {
            hostile.describe(0, crate::virtio_bench::RAM_BYTES - 8, 16, INDIRECT, 0);
            hostile.offer(0);
        }),
        ("vm-virtio #196 available index that jumps", "tail_out_of_range", |hostile| {
            hostile.word(AVAILABLE + 2).store(SIZE + 1, Ordering::SeqCst);
            hostile.ring();
        }),
    ];
    for (what, rule, break_it) in rules {
        let mut hostile = Hostile::new();
        break_it(&mut hostile);

        assert_eq!(rule, hostile.wait_fault(), "{what}");
        assert_eq!(0, hostile.used(), "{what}");
    }
}

/// After DEVICE_NEEDS_RESET the driver can start again, and everything works.
#[test]
fn device_works_again_after_the_reset_that_it_needs() {
    let mut hostile = Hostile::new();
    hostile.offer(SIZE);
    assert_eq!("index_out_of_range", hostile.wait_fault());

    hostile.bench.call(SET_STATUS, &[0]).unwrap();
    hostile.available = 0;
    hostile.word(AVAILABLE + 2).store(0, Ordering::Relaxed);
    hostile.start(COMMON_FEATURES);

    assert_eq!((0, STATUS_ALIVE), (hostile.request(0, 1, 512, WRITE), hostile.status()));
}

// ---- registers and status -----------------------------------------------------------------------------------------------

fn refused(outcome: Result<Vec<u8>, Error>) -> bool {
    matches!(outcome, Err(Error::Usage(_) | Error::Exists(_)))
}

#[test]
fn status_out_of_order_is_refused_and_changes_nothing() {
    let hostile = Hostile::new();
    for status in [1, 3, 7, 16 | STATUS_ALIVE, 256 | STATUS_ALIVE, u32::MAX] {
        assert!(refused(hostile.bench.call(SET_STATUS, &[status])), "{status:#x}");
    }
    assert_eq!(STATUS_ALIVE, hostile.status());
    hostile.bench.call(SET_STATUS, &[STATUS_ALIVE]).unwrap();
    hostile.bench.call(SET_STATUS, &[0]).unwrap();
    assert!(refused(hostile.bench.call(SET_STATUS, &[7])), "DRIVER_OK without FEATURES_OK");
}

#[test]
fn features_that_were_not_offered_are_not_agreed_to() {
    for features in [0, 1 << 32 | 1 << 60, COMMON_FEATURES | 1 << 63, COMMON_FEATURES & !(1 << 32)] {
        let bench = Bench::new(BYTES, false, Transport::Vbus);
        bench.call(SET_STATUS, &[3]).unwrap();
        bench.call(SET_FEATURES, &[features as u32, (features >> 32) as u32]).unwrap();
        bench.call(SET_STATUS, &[11]).unwrap();

        let status = bench.call(GET_STATUS, &[]).unwrap();
        assert_eq!(3_u32.to_le_bytes().to_vec(), status, "{features:#x}");
    }
    let hostile = Hostile::new();
    assert!(refused(hostile.bench.call(SET_FEATURES, &[0, 0])), "after FEATURES_OK");
}

/// CVE-2011-2512: a queue that is not there; sizes that cannot be; rings that are misaligned or not in the queue's region.
#[test]
fn queue_that_cannot_be_is_refused() {
    let bench = Bench::new(BYTES, false, Transport::Vbus);
    agree(&bench);
    let good = [QUEUE, AVAILABLE, USED];
    assert!(refused(bench.call(SET_VQ, &set_vq(0, 16, good))), "without a region");
    format_signal(&bench, SIGNAL);
    Direct(bench.device.clone()).share(0, QUEUE, QUEUE_BYTES, SIGNAL - QUEUE).unwrap();
    for (what, words) in [
        ("no such queue", set_vq(1, 16, good)),
        ("a negative queue", set_vq(u32::MAX, 16, good)),
        ("size 0", set_vq(0, 0, good)),
        ("size 3", set_vq(0, 3, good)),
        ("size 512", set_vq(0, 512, good)),
        ("misaligned descriptors", set_vq(0, 16, [QUEUE + 8, AVAILABLE, USED])),
        ("misaligned available ring", set_vq(0, 16, [QUEUE, AVAILABLE + 1, USED])),
        ("misaligned used ring", set_vq(0, 16, [QUEUE, AVAILABLE, USED + 2])),
        ("rings outside of the region", set_vq(0, 16, [BUFFER, AVAILABLE, USED])),
        ("rings that end outside", set_vq(0, 256, [QUEUE, AVAILABLE, QUEUE + QUEUE_BYTES - 64])),
        ("too few words", vec![0, 16]),
        ("an address that overflows", vec![0, 16, u32::MAX, u32::MAX, AVAILABLE, 0, USED, 0]),
    ] {
        assert!(refused(bench.call(SET_VQ, &words)), "{what}");
    }
    bench.call(SET_VQ, &set_vq(0, 16, good)).unwrap();
    assert!(refused(bench.call(SET_VQ, &set_vq(0, 16, good))), "a second time");
}

#[test]
fn region_that_is_no_queue_or_has_no_signal_is_refused() {
    let bench = Bench::new(BYTES, false, Transport::Vbus);
    let share = |queue, signal| Direct(bench.device.clone()).share(queue, QUEUE, QUEUE_BYTES, signal).is_err();
    format_signal(&bench, SIGNAL);

    assert!(share(1, SIGNAL - QUEUE), "no such queue");
    assert!(share(0, 0x3008), "misaligned");
    assert!(share(0, u32::MAX - 127), "outside");
    assert!(!share(0, SIGNAL - QUEUE));
    assert!(share(0, SIGNAL - QUEUE), "a second time");
}

/// What the memory of a signal holds is looked at when its queue is taken into use.
#[test]
fn queue_with_a_signal_that_is_none_is_a_fault() {
    let bench = Bench::new(BYTES, false, Transport::Vbus);
    agree(&bench);
    Direct(bench.device.clone()).share(0, QUEUE, QUEUE_BYTES, SIGNAL - QUEUE).unwrap();

    let outcome = bench.call(SET_VQ, &set_vq(0, 16, [QUEUE, AVAILABLE, USED]));

    assert!(matches!(outcome, Err(Error::Peer(Fault::BadHeader { .. }))), "{outcome:?}");
}

/// Every function with every wrong length of data, and functions that are not there.
#[test]
fn function_that_cannot_be_is_refused() {
    let hostile = Hostile::new();
    for function in (0..16).chain([0x100, u32::MAX]) {
        for words in [&[][..], &[0], &[7; 2], &[u32::MAX; 5], &[1; 9], &[0; 90]] {
            let _ = hostile.bench.call(function, words);
        }
        let mut answer = Vec::new();
        let _ = hostile.bench.device.call(function, &[1, 2, 3], &mut answer);
    }
    for (offset, length) in [(0, 61), (60, 1), (u32::MAX, 2), (2, u32::MAX)] {
        assert!(refused(hostile.bench.call(6, &[offset, length])), "{offset} {length}");
    }
}

/// Registers of the trapping transports: every offset, every width, whatever value.
#[test]
fn trap_at_any_register_is_answered_or_refused() {
    for transport in [Transport::Mmio, Transport::Pci] {
        let bench = Bench::new(BYTES, false, transport);
        for offset in (0..0x180).chain(0x1000..0x1008).chain(0x2000..0x2010).chain(0x3000..0x3048).chain([u32::MAX]) {
            for bytes in [0, 1, 2, 4, 8, u32::MAX] {
                let _ = bench.call(11, &[offset, bytes]);
                for value in [0, 1, 0xffff_ffff] {
                    let _ = bench.call(12, &[offset, bytes, value, value]);
                }
            }
        }
        assert!(refused(bench.call(SET_STATUS, &[1])), "bus calls are not this transport's");
    }
}

/// Linux CVE-2026-74614: kicks and registers after the device was closed reach nothing.
#[test]
fn closed_device_answers_nothing() {
    let hostile = Hostile::new();
    hostile.bench.device.close().unwrap();
    hostile.ring();

    assert!(matches!(hostile.bench.call(GET_STATUS, &[]), Err(Error::Closed(_))));
    assert_eq!(0, hostile.used());
}

/// Registers from one thread, requests from another, resets in between: nothing hangs, nothing is served twice.
#[test]
fn resets_while_requests_are_under_way_end_cleanly() {
    let mut hostile = Hostile::new();
    for _ in 0..20 {
        hostile.header(0, 1);
        hostile.describe(0, BUFFER.into(), 16, NEXT, 1);
        hostile.describe(1, (BUFFER + 0x1000).into(), 513, WRITE, 0);
        for _ in 0..8 {
            hostile.offer(0);
        }
        hostile.bench.call(SET_STATUS, &[0]).unwrap();
        let used = hostile.used();
        hostile.ring();
        assert_eq!(used, hostile.used());
        hostile.available = 0;
        hostile.word(AVAILABLE + 2).store(0, Ordering::Relaxed);
        hostile.word(USED + 2).store(0, Ordering::Relaxed);
        hostile.start(COMMON_FEATURES);
        assert_eq!(0, hostile.request(0, 1, 512, WRITE));
        hostile.bench.call(SET_STATUS, &[0]).unwrap();
        hostile.available = 0;
        hostile.word(AVAILABLE + 2).store(0, Ordering::Relaxed);
        hostile.word(USED + 2).store(0, Ordering::Relaxed);
        hostile.start(COMMON_FEATURES);
    }
}
