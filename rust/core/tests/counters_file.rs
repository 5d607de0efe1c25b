//! The counters file: blocks change hands without ever lying about whose they are, and readers survive any content.
//!
//! The writer's bytes are read back by a decoder written here from `docs/wire/counters.md`.
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour counters_file` looks longer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so by panicking")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::error::{Error, Fault};
use vbnet_core::shm::counters::{BLOCK_HEADER_WORDS, BlockSnapshot, CounterFile, CounterReader, FILE_HEADER_WORDS};

/// Longest any test waits for anything.
const DEADLINE: Duration = Duration::from_secs(30);
const FILE_BYTES: usize = 4096;
const FILE_WORDS: usize = FILE_BYTES / 8;
/// Words in front of the first block, and in front of a block's values.
const HEADER: usize = 8;
const BLOCK: usize = 32;

/// A path of this test's own that is gone afterwards.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("vbnet-counters-{}-{number}", std::process::id())))
    }

    fn holding(bytes: &[u8]) -> Self {
        let place = Self::new();
        std::fs::write(&place.0, bytes).unwrap();
        place
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn block(kind: &str, labels: &str, generation: u64, values: &[u64]) -> BlockSnapshot {
    BlockSnapshot { kind: kind.into(), labels: labels.into(), generation, values: values.to_vec() }
}

fn words_of(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Another process that opens the file by its path sees what the writer counted.
#[test]
fn reader_by_path_sees_kind_labels_and_values() {
    let place = Place::new();
    let file = CounterFile::create(Some(place.path()), FILE_BYTES).unwrap();
    let port = file.allocate("port", "guest=a,port=0", 3).unwrap();
    let worker = file.allocate("worker", "", 1).unwrap();
    port.add(0, 5);
    port.add(0, 2);
    port.set(2, u64::MAX);
    port.add(2, 1);
    port.add(99, 1);
    worker.set(0, 9);

    let found = CounterFile::open(place.path()).unwrap().blocks();

    assert_eq!(vec![block("port", "guest=a,port=0", 1, &[7, 0, 0]), block("worker", "", 1, &[9])], found);
    assert_eq!((7, 0), (port.load(0), port.load(99)));
}

/// The words are where the description of the file says.
#[test]
fn file_has_the_documented_bytes() {
    let place = Place::new();
    let file = CounterFile::create(Some(place.path()), FILE_BYTES).unwrap();
    let owner = file.allocate("port", "guest=a", 2).unwrap();
    owner.set(1, 77);

    let bytes = std::fs::read(place.path()).unwrap();

    let words = words_of(&bytes);
    assert_eq!((b"VBNETCNT".as_slice(), 2, FILE_BYTES as u64), (&bytes[..8], words[1], words[2]));
    assert_eq!([1, 2, 1], words[HEADER..HEADER + 3]);
    assert_eq!(b"port\0", &bytes[8 * (HEADER + 3)..][..5]);
    assert_eq!(b"guest=a\0", &bytes[8 * (HEADER + 7)..][..8]);
    assert_eq!([0, 77, 0], words[HEADER + BLOCK..HEADER + BLOCK + 3]);
}

/// Text that does not fit is cut between characters, never within one.
#[test]
fn long_labels_are_cut_at_a_character_boundary() {
    let file = CounterFile::create(None, FILE_BYTES).unwrap();
    let labels = format!("{}ü", "x".repeat(191));
    let kind = "é".repeat(20);

    let _owner = file.allocate(&kind, &labels, 0).unwrap();

    assert_eq!(vec![block(&"é".repeat(16), &"x".repeat(191), 1, &[])], file.reader().blocks());
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Both readers: of the file by its path, and of the mapping.
fn seen(file: &CounterFile, place: &Place) -> [Vec<BlockSnapshot>; 2] {
    [CounterFile::open(place.path()).unwrap().blocks(), file.reader().blocks()]
}

/// Without its owner writing anything, a counter that runs is told with what has passed since.
#[test]
fn counter_that_runs_goes_on_by_itself_until_it_is_stopped() {
    let place = Place::new();
    let file = CounterFile::create(Some(place.path()), FILE_BYTES).unwrap();
    let owner = file.allocate("worker", "", 2).unwrap();
    owner.add(1, 5_000_000);

    let started_ns = owner.start(1);
    while monotonic_ns() < started_ns + 3_000_000 {
        std::hint::spin_loop();
    }
    let running = seen(&file, &place);
    owner.stop(1, started_ns);
    let stopped = seen(&file, &place);

    let total = owner.load(1);
    for [found] in running.map(|blocks| <[BlockSnapshot; 1]>::try_from(blocks).unwrap()) {
        assert_eq!(0, found.values[0]);
        assert!((5_000_000 + 2_999_000..=total).contains(&found.values[1]), "{found:?}, at most {total}");
    }
    assert_eq!([vec![block("worker", "", 1, &[0, total])], vec![block("worker", "", 1, &[0, total])]], stopped);
}

/// A reader whose look began before the counter ran shows what it said before.
#[test]
fn counter_that_began_to_run_during_a_look_is_told_as_it_was() {
    let place = Place::new();
    let file = CounterFile::create(Some(place.path()), FILE_BYTES).unwrap();
    let owner = file.allocate("worker", "", 1).unwrap();
    owner.set(0, 7);
    let mut bytes = std::fs::read(place.path()).unwrap();
    let to_come_us = monotonic_ns() / 1_000 + 3_600_000_000;
    bytes[8 * (HEADER + 31)..][..8].copy_from_slice(&(to_come_us << 8 | 1).to_le_bytes());
    let forged = Place::holding(&bytes);

    assert_eq!(vec![block("worker", "", 1, &[7])], CounterFile::open(forged.path()).unwrap().blocks());
}

/// The clock's word may come from anybody: it names a counter that is not there, or a moment to come.
#[test]
fn nonsense_in_the_word_of_the_clock_changes_nothing() {
    let place = Place::new();
    let file = CounterFile::create(Some(place.path()), FILE_BYTES).unwrap();
    let owner = file.allocate("worker", "", 1).unwrap();
    owner.set(0, 7);
    let mut bytes = std::fs::read(place.path()).unwrap();
    for word in [2, 255, u64::MAX, u64::MAX - 254, (1 << 55) << 8 | 1] {
        bytes[8 * (HEADER + 31)..][..8].copy_from_slice(&word.to_le_bytes());
        let forged = Place::holding(&bytes);

        assert_eq!(vec![block("worker", "", 1, &[7])], CounterFile::open(forged.path()).unwrap().blocks(), "{word:#x}");
    }
}

/// A freed block disappears, and its next owner starts at zero under a higher generation.
#[test]
fn reused_block_is_zeroed_under_a_higher_generation() {
    let file = CounterFile::create(None, FILE_BYTES).unwrap();
    for generation in 1..4 {
        let owner = file.allocate("port", &format!("n={generation}"), 2).unwrap();
        assert_eq!(vec![block("port", &format!("n={generation}"), generation, &[0, 0])], file.reader().blocks());
        owner.set(0, 5);
        owner.set(1, 6);
        owner.start(1);
        drop(owner);
        assert!(file.reader().blocks().is_empty());
    }
}

/// Only a block of the same size is reused; others follow behind and stay readable.
#[test]
fn freed_block_is_not_reused_for_another_size() {
    let file = CounterFile::create(None, FILE_BYTES).unwrap();
    drop(file.allocate("small", "", 1).unwrap());
    let _large = file.allocate("large", "", 2).unwrap();
    let _small = file.allocate("again", "", 1).unwrap();

    assert_eq!(vec![block("again", "", 2, &[0]), block("large", "", 1, &[0, 0])], file.reader().blocks());
}

/// A full file refuses with ENOSPC and keeps what it has; a freed block makes room again.
#[test]
fn full_file_refuses_and_keeps_its_blocks() {
    let file = CounterFile::create(None, FILE_BYTES).unwrap();
    let mut owners = Vec::new();
    let refusal = loop {
        match file.allocate("port", "", 8) {
            Ok(owner) => owners.push(owner),
            Err(refusal) => break refusal,
        }
    };

    let no_space =
        |error: Error| matches!(error, Error::Machine { source, .. } if source.raw_os_error() == Some(libc::ENOSPC));
    assert!(no_space(refusal));
    assert_eq!(((FILE_WORDS - HEADER) / (BLOCK + 8), owners.len()), (owners.len(), file.reader().blocks().len()));
    owners.pop();
    assert!(file.allocate("port", "", 8).is_ok());
    assert!(no_space(file.allocate("port", "", usize::MAX).unwrap_err()));
}

/// What is no counters file is refused with the word that is wrong, or with the machine's answer.
#[test]
fn file_of_another_kind_is_refused() {
    let header =
        |magic: &[u8; 8], version: u64, size: u64| [*magic, version.to_le_bytes(), size.to_le_bytes()].concat();
    let padded = |mut bytes: Vec<u8>| {
        bytes.resize(FILE_BYTES, 0);
        bytes
    };
    let size = FILE_BYTES as u64;
    let refused = [
        Vec::new(),
        vec![0; 63],
        padded(vec![]),
        padded(header(b"VBNETCNT", 1, size)),
        padded(header(b"VBNETCNT", 3, size)),
        padded(header(b"VBNETCNT", 2, size + 8)),
        padded(header(b"VBNETCNU", 2, size)),
    ];
    for bytes in refused {
        let place = Place::holding(&bytes);
        let found = CounterFile::open(place.path());
        assert!(matches!(found, Err(Error::Peer(Fault::BadSize { .. } | Fault::BadHeader { .. }))), "{found:?}");
    }
    for path in ["/", "/nonexistent/counters", "/dev/null"] {
        assert!(CounterFile::open(Path::new(path)).is_err(), "{path}");
    }
}

/// A named pipe in the file's place is refused; the reader does not wait for somebody to write into it.
#[test]
fn named_pipe_does_not_hold_the_reader() {
    let place = Place::new();
    rustix::fs::mknodat(rustix::fs::CWD, place.path(), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();

    assert!(matches!(CounterFile::open(place.path()), Err(Error::Peer(Fault::BadSize { .. }))));
}

/// A file too large to be anybody's counters is refused instead of being read into memory.
#[test]
fn enormous_file_is_refused() {
    let place = Place::holding(&[]);
    std::fs::OpenOptions::new().write(true).open(place.path()).unwrap().set_len(1 << 40).unwrap();

    assert!(matches!(CounterFile::open(place.path()), Err(Error::Peer(Fault::BadSize { .. }))));
    assert!(matches!(CounterFile::create(None, 1 << 40), Err(Error::Usage(_))));
}

/// The name changes hands without touching the old file: who mapped it before keeps it whole.
#[test]
fn old_reader_keeps_its_file_when_a_new_one_takes_the_name() {
    let place = Place::new();
    let old = CounterFile::create(Some(place.path()), FILE_BYTES).unwrap();
    let _kept = old.allocate("old", "", 1).unwrap();
    let reader = CounterFile::open(place.path()).unwrap();

    let _new = CounterFile::create(Some(place.path()), 2 * FILE_BYTES).unwrap();

    assert_eq!(vec![block("old", "", 1, &[0])], reader.blocks());
    assert!(CounterFile::open(place.path()).unwrap().blocks().is_empty());
}

/// Nothing of another's file is mapped, so shortening it under a reader ends what is found, and nothing else.
#[test]
fn file_that_is_shortened_under_its_reader_shows_what_is_left() {
    let place = Place::new();
    let file = CounterFile::create(Some(place.path()), FILE_BYTES).unwrap();
    let kept = [file.allocate("first", "", 1).unwrap(), file.allocate("second", "", 1).unwrap()];
    let reader = CounterFile::open(place.path()).unwrap();
    let shorten = |bytes| std::fs::OpenOptions::new().write(true).open(place.path()).unwrap().set_len(bytes).unwrap();
    let first_ends = ((FILE_HEADER_WORDS + BLOCK_HEADER_WORDS + 1) * 8) as u64;

    let mut found = vec![reader.blocks().len()];
    for bytes in [first_ends + 8, first_ends - 8, 0] {
        shorten(bytes);
        found.push(reader.blocks().len());
    }

    assert_eq!(vec![2, 1, 0, 0], found);
    // What is mapped and gone cannot be touched: the blocks' owners must not write when they are dropped.
    kept.into_iter().for_each(std::mem::forget);
}

/// While a block changes hands all the time, every reading is whole: kind, labels and values of one owner.
#[test]
fn concurrent_reader_sees_whole_blocks_only() {
    let file = CounterFile::create(None, FILE_BYTES).unwrap();
    change_hands(&file, &file.reader(), 16);
}

/// The same for who copies the file: the copies take longer than most owners last, and none of what is seen is mixed,
/// neither of blocks that a window has whole nor of one that goes on behind it.
#[test]
fn concurrent_reader_by_path_sees_whole_blocks_only() {
    for values in [16, 400] {
        let place = Place::new();
        let file = CounterFile::create(Some(place.path()), FILE_BYTES).unwrap();
        change_hands(&file, &CounterFile::open(place.path()).unwrap(), values);
    }
}

fn change_hands(file: &CounterFile, reader: &CounterReader, values: usize) {
    const OWNERS: u64 = 50_000;
    const READINGS: u64 = 500;
    /// One owner of so many stays until somebody has seen a block, so that there is something to see.
    const STAYING: u64 = 128;
    let (is_over, readings) = (AtomicBool::new(false), AtomicU64::new(0));
    let deadline = Instant::now() + DEADLINE;

    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut last = 0;
            while !is_over.load(Ordering::Relaxed) {
                for found in reader.blocks() {
                    let owner = found.generation;
                    assert_eq!((labels_of(owner), kind_of(owner)), (found.labels, found.kind), "generation {owner}");
                    assert!(found.values.iter().all(|&value| value == 0 || value == owner), "{:?}", found.values);
                    assert!(owner >= last, "a generation never goes back");
                    last = owner;
                    readings.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut owner = 0;
        while (owner < OWNERS || readings.load(Ordering::Relaxed) < READINGS) && !reading.is_finished() {
            assert!(Instant::now() < deadline, "{} readings in {DEADLINE:?}", readings.load(Ordering::Relaxed));
            owner += 1;
            let block = file.allocate(&kind_of(owner), &labels_of(owner), values).unwrap();
            (0..values).for_each(|index| block.set(index, owner));
            let before = readings.load(Ordering::Relaxed);
            while owner.is_multiple_of(STAYING)
                && readings.load(Ordering::Relaxed) == before
                && !reading.is_finished()
                && Instant::now() < deadline
            {
                thread::yield_now();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

fn kind_of(owner: u64) -> String {
    format!("kind-{owner:020}")
}

fn labels_of(owner: u64) -> String {
    format!("owner={owner:020},").repeat(7)
}

/// Few or many values, around what readers copy at once.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0..6usize, 1 => 250..260usize, 1 => 900..1100usize]
}

proptest! {
    /// Blocks taken and freed in any order: whoever reads sees exactly the live ones, with their own values.
    #[test]
    fn readers_see_exactly_the_live_blocks(steps in vec((any::<bool>(), sizes()), 0..60)) {
        let place = Place::new();
        let file = CounterFile::create(Some(place.path()), 8 * FILE_BYTES).unwrap();
        let mut live = Vec::new();
        for (number, (takes, size)) in steps.into_iter().enumerate() {
            if takes {
                if let Ok(owner) = file.allocate("k", &number.to_string(), size) {
                    owner.set(0, number as u64);
                    live.push((number, owner));
                }
            } else if !live.is_empty() {
                live.swap_remove(size % live.len());
            }
            let mut expected: Vec<_> = live.iter().map(|(number, owner)| {
                let mut values = vec![0; owner.values().len()];
                if let Some(first) = values.first_mut() {
                    *first = *number as u64;
                }
                (number.to_string(), values)
            }).collect();
            expected.sort();
            for blocks in seen(&file, &place) {
                let mut found: Vec<_> = blocks.into_iter().map(|found| (found.labels, found.values)).collect();
                found.sort();
                prop_assert_eq!(&expected, &found);
            }
        }
    }

    /// Any bytes behind a right header: reading ends, stays inside the file and never panics.
    #[test]
    fn reader_of_nonsense_stops(
        words in vec(prop_oneof![4 => 0..4u64, 2 => 0..600u64, 1 => any::<u64>()], FILE_WORDS - HEADER),
    ) {
        let mut bytes = [*b"VBNETCNT", 2u64.to_le_bytes(), (FILE_BYTES as u64).to_le_bytes(), [0; 8]].concat();
        bytes.resize(8 * HEADER, 0);
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let place = Place::holding(&bytes);

        let found = CounterFile::open(place.path()).unwrap().blocks();

        let used: usize = found.iter().map(|block| BLOCK + block.values.len()).sum();
        prop_assert!(used <= FILE_WORDS - HEADER);
    }

    /// A file of any size and content is opened or refused, never more.
    #[test]
    fn opening_any_bytes_answers(
        mut bytes in vec(any::<u8>(), 0..5000), has_magic in any::<bool>(), has_size in any::<bool>(),
    ) {
        if has_magic && bytes.len() >= 24 {
            bytes[..8].copy_from_slice(b"VBNETCNT");
            bytes[8..16].copy_from_slice(&1u64.to_le_bytes());
        }
        if has_size && bytes.len() >= 24 {
            let size = bytes.len() as u64;
            bytes[16..24].copy_from_slice(&size.to_le_bytes());
        }
        let place = Place::holding(&bytes);

        if let Ok(reader) = CounterFile::open(place.path()) {
            prop_assert!(reader.blocks().len() <= bytes.len() / (8 * BLOCK));
        }
    }

    /// Text of any characters comes back as its longest prefix that fits, up to its first NUL.
    #[test]
    fn text_comes_back_as_far_as_it_fits(kind in "\\PC{0,40}", labels in "(\\PC|\0){0,220}") {
        let file = CounterFile::create(None, FILE_BYTES).unwrap();
        let _owner = file.allocate(&kind, &labels, 1).unwrap();

        let found = &file.reader().blocks()[0];

        for (given, most, read) in [(&kind, 32, &found.kind), (&labels, 192, &found.labels)] {
            let mut end = given.len().min(most);
            while !given.is_char_boundary(end) {
                end -= 1;
            }
            prop_assert_eq!(given[..end].split('\0').next().unwrap(), read);
        }
    }
}
