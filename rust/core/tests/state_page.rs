//! State pages against an obvious model, against headers and writers that lie, and pages against those who would write.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{self, FallocateFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, MprotectFlags, ProtFlags};
use vbnet_core::error::{Error, Fault};
use vbnet_core::shm::layout::{
    RAM_HEADER_BYTES, STATE_HEADER_BYTES, STATE_RECORDS_MAX, STATE_VALUES_MAX, state_record_bytes,
};
use vbnet_core::shm::page::Page;
use vbnet_core::shm::region::{Mapped, Ram};
use vbnet_core::shm::state::{Publisher, Roll, RollReader, Sampled, Sampler, Standing, StateLayout, StatePage};

const SCHEMA: u64 = 0x1234_5678_9abc_def0;

fn page_of(records: u32, value_bytes: u32) -> (Arc<Page>, StatePage) {
    let layout = StateLayout::plan(records, value_bytes).unwrap();
    let memory = Page::create("test", layout.bytes()).unwrap();
    let page = StatePage::format(&memory, 0, layout, SCHEMA).unwrap();
    (memory, page)
}

fn again(page: &Page) -> OwnedFd {
    page.as_fd().try_clone_to_owned().unwrap()
}

fn word(memory: &Page, offset: usize) -> &AtomicU64 {
    let place = memory.at(u32::try_from(offset).unwrap(), 8).unwrap();
    // SAFETY: in bounds, aligned, and everybody uses atomics here.
    unsafe { place.cast().as_ref() }
}

fn half_word(memory: &Page, offset: usize) -> &AtomicU32 {
    let place = memory.at(u32::try_from(offset).unwrap(), 4).unwrap();
    // SAFETY: as above.
    unsafe { place.cast().as_ref() }
}

fn sample(sampler: &Sampler) -> (Sampled, Vec<u64>) {
    let mut values = vec![0; sampler.values()];
    (sampler.sample(&mut values), values)
}

// --- the model ---------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Publish(u32, Vec<u64>),
    Sample(u32),
    TakeOver(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let record = 0..3_u32;
    vec(
        prop_oneof![
            (record.clone(), vec(any::<u64>(), 0..6)).prop_map(|(record, values)| Step::Publish(record, values)),
            record.clone().prop_map(Step::Sample),
            record.prop_map(Step::TakeOver),
        ],
        0..60,
    )
}

proptest! {
    /// Whatever the order, a sample is the record's latest value: missing words are 0, surplus ones are gone, neighbours
    /// are untouched, and a new owner goes on where the old one ended.
    #[test]
    fn prop_sample_is_the_latest_value(steps in steps(), first_count in prop_oneof![Just(0_u64), any::<u64>()]) {
        let (memory, page) = page_of(3, 32);
        for record in 0..3 {
            word(&memory, STATE_HEADER_BYTES + record * state_record_bytes(32)).store(first_count, Ordering::Relaxed);
        }
        let other = Page::open(again(&memory)).unwrap();
        let theirs = StatePage::attach(&other, 0, other.size(), SCHEMA).unwrap();
        let mut publishers: Vec<Publisher> = (0..3).map(|record| page.publisher(record).unwrap()).collect();
        let samplers: Vec<Sampler> = (0..3).map(|record| theirs.sampler(record).unwrap()).collect();
        let mut model = [(first_count, 0, [0; 4]); 3];

        for (moment, step) in steps.into_iter().enumerate() {
            match step {
                Step::Publish(record, values) => {
                    publishers[record as usize].publish(moment as u64, &values);
                    let latest = &mut model[record as usize];
                    *latest = (latest.0.wrapping_add(1), moment as u64, [0; 4]);
                    latest.2.iter_mut().zip(values).for_each(|(kept, value)| *kept = value);
                }
                Step::TakeOver(record) => publishers[record as usize] = page.publisher(record).unwrap(),
                Step::Sample(record) => {
                    let (count, published_ns, values) = model[record as usize];
                    let found = sample(&samplers[record as usize]);
                    if count == 0 {
                        prop_assert_eq!(Sampled::Empty, found.0);
                    } else {
                        prop_assert_eq!((Sampled::Value { count, published_ns }, values.to_vec()), found);
                    }
                }
            }
        }
    }

    /// Any bytes at all in place of a page: attaching and sampling refuse, or answer, and end.
    #[test]
    fn prop_garbage_is_refused_or_sampled_and_never_followed(
        header in vec(any::<u32>(), 6), garbage in vec(any::<u64>(), 64), is_plausible in any::<bool>()
    ) {
        let (memory, _page) = page_of(2, 64);
        for (index, value) in garbage.iter().enumerate() {
            word(&memory, STATE_HEADER_BYTES + 8 * index).store(*value, Ordering::Relaxed);
        }
        for (index, value) in header.iter().enumerate().filter(|_| !is_plausible) {
            half_word(&memory, 4 * index).store(*value, Ordering::Relaxed);
        }
        if let Ok(page) = StatePage::attach(&memory, 0, memory.size(), SCHEMA) {
            for record in 0..page.layout().records() {
                sample(&page.sampler(record).unwrap());
            }
        }
    }
}

// --- writers that die or lie -------------------------------------------------------------------------------------

/// A publisher killed between any two stores leaves the value before readable, and its successor goes on.
#[test]
fn value_before_a_death_is_kept_whole() {
    let (memory, page) = page_of(1, 16);
    let mut publisher = page.publisher(0).unwrap();
    publisher.publish(1, &[10, 11]);
    publisher.publish(2, &[20, 21]);
    drop(publisher);

    // The third value would go where the first was; its author dies after two words of it.
    let slot_1 = STATE_HEADER_BYTES + 8;
    let slot_1 = slot_1 + 24;
    word(&memory, slot_1).store(3, Ordering::Relaxed);
    word(&memory, slot_1 + 8).store(30, Ordering::Relaxed);
    let after_death = sample(&page.sampler(0).unwrap());
    page.publisher(0).unwrap().publish(4, &[40, 41]);

    assert_eq!((Sampled::Value { count: 2, published_ns: 2 }, vec![20, 21]), after_death);
    assert_eq!((Sampled::Value { count: 3, published_ns: 4 }, vec![40, 41]), sample(&page.sampler(0).unwrap()));
}

/// A publisher that does nothing but count makes samplers busy at worst, and holds none of them.
#[test]
fn sampler_of_a_record_that_never_rests_ends() {
    let (memory, page) = page_of(1, 4096);
    let count = word(&memory, STATE_HEADER_BYTES);
    let sampler = page.sampler(0).unwrap();
    count.store(1, Ordering::Relaxed);
    let is_over = AtomicU32::new(0);

    let outcomes = std::thread::scope(|scope| {
        scope.spawn(|| {
            while is_over.load(Ordering::Relaxed) == 0 {
                count.fetch_add(2, Ordering::Relaxed);
            }
        });
        let outcomes: Vec<Sampled> = (0..1000).map(|_| sample(&sampler).0).collect();
        is_over.store(1, Ordering::Relaxed);
        outcomes
    });

    assert!(outcomes.iter().all(|found| *found != Sampled::Empty));
}

// --- pages that are not what they say ----------------------------------------------------------------------------

/// Each word of the header that cannot be is a fault of whoever wrote it.
#[test]
fn header_that_cannot_be_is_refused() {
    let wrongs: [(usize, u32); 9] = [
        (0, 0),
        (4, 2),
        (8, 0),
        (8, STATE_RECORDS_MAX + 1),
        (8, 1000),
        (12, 0),
        (12, 12),
        (12, STATE_VALUES_MAX + 8),
        (16, 1),
    ];
    for (offset, value) in wrongs {
        let (memory, _page) = page_of(2, 64);
        half_word(&memory, offset).store(value, Ordering::Relaxed);

        let refusal = StatePage::attach(&memory, 0, memory.size(), SCHEMA);

        assert!(matches!(refusal, Err(Fault::BadHeader { .. } | Fault::BadSize { .. })), "{offset}: {refusal:?}");
    }
}

/// In a guest's memory a page lies where nothing else does, and both sides find the same values there.
#[test]
fn page_in_guest_memory_is_shared_and_its_place_is_checked() {
    let guest = Ram::create("test", 64 * 1024).unwrap();
    let host = Ram::open(guest.as_fd().try_clone_to_owned().unwrap(), 1 << 20).unwrap();
    let layout = StateLayout::plan(2, 16).unwrap();
    let offset = RAM_HEADER_BYTES + 256;

    let page = StatePage::format(&guest, offset, layout, SCHEMA).unwrap();
    page.publisher(1).unwrap().publish(5, &[7, 8]);
    let seen = StatePage::attach(&host, offset, layout.bytes(), SCHEMA).unwrap();

    assert_eq!((Sampled::Value { count: 1, published_ns: 5 }, vec![7, 8]), sample(&seen.sampler(1).unwrap()));
    assert_eq!(Sampled::Empty, sample(&seen.sampler(0).unwrap()).0);
    assert!(seen.sampler(2).is_err());
    for (wrong, length) in [(0, 512), (offset + 64, 512), (offset, layout.bytes() - 1), (u32::MAX - 127, 512)] {
        assert!(StatePage::attach(&host, wrong, length, SCHEMA).is_err(), "{wrong:#x}");
    }
    assert!(matches!(StatePage::format(&guest, 64 * 1024 - 128, layout, 0), Err(Error::Usage(_))));
}

// --- who may write -----------------------------------------------------------------------------------------------

fn writable_mapping(file: &OwnedFd) -> Result<(), Errno> {
    let (flags, both) = (MapFlags::SHARED, ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a fresh mapping, unmapped at once, touched by nobody.
    unsafe { mm::munmap(mm::mmap(std::ptr::null_mut(), 4096, both, flags, file, 0)?, 4096) }
}

fn mapping_made_writable(file: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: a fresh mapping, unmapped at once, touched by nobody.
    unsafe {
        let place = mm::mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, file, 0)?;
        let outcome = mm::mprotect(place, 4096, MprotectFlags::READ | MprotectFlags::WRITE);
        mm::munmap(place, 4096)?;
        outcome
    }
}

/// Through a frozen page's descriptor, and through any other opened from it, nobody writes by any means; whoever mapped
/// it before still does.
#[test]
fn frozen_page_is_written_only_by_who_mapped_it_before() {
    let (host, _) = page_of(1, 8);
    let publisher = Page::open(again(&host)).unwrap();
    host.freeze().unwrap();
    host.freeze().unwrap();

    let lent = again(&host);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&lent));
    let reopened = fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for file in [&lent, &reopened] {
        assert_eq!(Err(Errno::PERM), writable_mapping(file));
        assert!(mapping_made_writable(file).is_err());
        assert_eq!(Err(Errno::PERM), rustix::io::pwrite(file, b"x", 0).map(drop));
        assert!(fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).is_err());
        assert!(fs::ftruncate(file, 0).is_err());
        assert!(fs::fcntl_add_seals(file, SealFlags::WRITE).is_err());
    }
    let sampler = Page::open(reopened).unwrap();
    assert!(!sampler.is_writable());
    let page = StatePage::attach(&sampler, 0, sampler.size(), SCHEMA).unwrap();
    assert!(matches!(page.publisher(0), Err(Error::Usage(_))));

    let theirs = StatePage::attach(&publisher, 0, publisher.size(), SCHEMA).unwrap();
    theirs.publisher(0).unwrap().publish(1, &[42]);
    assert_eq!((Sampled::Value { count: 1, published_ns: 1 }, vec![42]), sample(&page.sampler(0).unwrap()));
}

/// A guest that seals its page first cannot keep it from being frozen unnoticed.
#[test]
fn page_sealed_against_freezing_is_a_fault() {
    let (host, _) = page_of(1, 8);
    fs::fcntl_add_seals(host.as_fd(), SealFlags::SEAL).unwrap();

    assert!(matches!(host.freeze(), Err(Fault::NotSealed { .. })));
}

/// What could shrink under its reader, or is no memory file, is not mapped.
#[test]
fn descriptor_that_is_no_page_is_refused() {
    let unsealed = fs::memfd_create("test", fs::MemfdFlags::ALLOW_SEALING | fs::MemfdFlags::CLOEXEC).unwrap();
    fs::ftruncate(&unsealed, 4096).unwrap();
    let empty = fs::memfd_create("test", fs::MemfdFlags::ALLOW_SEALING | fs::MemfdFlags::CLOEXEC).unwrap();
    fs::fcntl_add_seals(&empty, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    let null = fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();

    let faults = [unsealed, empty, null].map(|file| Page::open(file).unwrap_err());

    assert!(matches!(
        faults,
        [
            Error::Peer(Fault::NotSealed { .. }),
            Error::Peer(Fault::BadSize { .. }),
            Error::Peer(Fault::NotMemfd { .. } | Fault::NotSealed { .. }) | Error::Machine { .. }
        ]
    ));
    assert!(Page::create("test", 0).is_err());
}

// --- the roll ----------------------------------------------------------------------------------------------------

/// What the host enters is what guests see, record by record; numbers that are none are refused.
#[test]
fn roll_tells_each_record_s_standing() {
    let memory = Page::create("test", 4096).unwrap();
    let roll = Roll::format(&memory, 3).unwrap();
    memory.freeze().unwrap();
    let theirs = Page::open(again(&memory)).unwrap();
    let reader = RollReader::attach(&theirs).unwrap();
    let (owned, left) =
        (Standing { generation: 7, is_owned: true }, Standing { generation: u64::MAX >> 1, is_owned: false });

    roll.enter(0, owned).unwrap();
    roll.enter(2, left).unwrap();

    assert_eq!([owned, Standing::default(), left], [0, 1, 2].map(|record| reader.look(record).unwrap()));
    assert!(roll.enter(3, owned).is_err() && reader.look(3).is_err());
    assert!(Roll::format(&theirs, 3).is_err(), "it can only be read there");
}

/// A roll with another head, or with more words than there is memory, is refused.
#[test]
fn roll_that_cannot_be_is_refused() {
    for (offset, value) in [(0, 1), (4, 9), (8, 0), (8, 4096)] {
        let memory = Page::create("test", 4096).unwrap();
        Roll::format(&memory, 3).unwrap();
        half_word(&memory, offset).store(value, Ordering::Relaxed);

        assert!(RollReader::attach(&memory).is_err(), "{offset}");
    }
}
