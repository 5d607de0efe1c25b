//! Counters other processes can read: a mapped file of blocks, one block a port, worker or guest.
//!
//! ```text
//!   file   ┌ header: magic, version, size ┐┌ block ┐┌ block ┐ …
//!   block  ┌ state · words · kind[32] · labels[192] · clock ┐┌ value 0 ┐┌ value 1 ┐ …  (all 64-bit words)
//! ```
//!
//! Who writes what: the process that made the file writes all of it; each value has exactly one writing thread. Reading
//! needs no permission of the writer, takes no lock, and works when the writer hangs or is dead. What value `n` of a
//! kind means is declared beside its owner. A block that is freed is marked so and reused by one of the same size, under
//! a new generation. A file is readable garbage to nobody: readers check every length. Source: aeron's counters file.
//!
//! One counter of a block, of nanoseconds, may run by itself: the word `clock` says which and since when, and whoever reads
//! adds what has passed. So a thread that sleeps for an hour is seen to sleep, and writes nothing meanwhile.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::CStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{self, FallocateFlags, Mode, OFlags};
use rustix::mm::{self, MapFlags, ProtFlags};
use zerocopy::IntoBytes as _;

use crate::error::{Error, Fault, Result};
use crate::shm::state::monotonic_ns;
use crate::sync::{AtomicU64, Ordering, fence};

/// First eight bytes of a counters file: `VBNETCNT`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"VBNETCNT");
/// Version of the layout.
pub const VERSION: u64 = 2;
/// Words of the file's header.
pub const FILE_HEADER_WORDS: usize = 8;
/// Words in front of a block's values.
pub const BLOCK_HEADER_WORDS: usize = 32;
/// Longest kind in bytes.
pub const KIND_BYTES: usize = 32;
/// Longest labels in bytes.
pub const LABEL_BYTES: usize = 192;
/// Largest file anybody makes or reads.
pub const FILE_BYTES_MAX: usize = 1 << 30;

const KIND_END: usize = 3 + KIND_BYTES / 8;
const LABELS_END: usize = KIND_END + LABEL_BYTES / 8;
/// The word of a block's header that says which of its counters runs, and since when; 0: none does.
const CLOCK: usize = LABELS_END;
const _: () = assert!(CLOCK + 1 == BLOCK_HEADER_WORDS);
/// Bits of the clock's word that say which counter runs, plus 1. Those above are the microsecond of the monotonic clock at
/// which it would have begun to run, had it run at a stretch.
const CLOCK_COUNTER_BITS: u32 = 8;

/// Of somebody's file, how many words are looked at: what is behind them is nobody's counters.
const SCAN_WORDS_MAX: usize = 64 << 20 >> 3;
/// How many are looked at for blocks at once.
const WINDOW_WORDS: usize = 8 << 10 >> 3;
/// Blocks of more values are copied whole wherever the window ends, each as the last of its window.
const SMALL_WORDS: usize = 256;
const FOREIGN: &str = "counters magic";
const VERSION_WORD: &str = "counters version";
const SIZE: &str = "counters size";

const STATE_END: u64 = 0;
const STATE_LIVE: u64 = 1;
const STATE_FREE: u64 = 2;

struct Mapping {
    _file: OwnedFd,
    base: NonNull<AtomicU64>,
    words: usize,
    /// Headers of freed blocks, by the number of their counters. Readers have none.
    free: Mutex<HashMap<usize, Vec<usize>>>,
}

// SAFETY: shared memory accessed by atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: OwnedFd, bytes: usize) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh shared mapping chosen by the kernel.
        let base = unsafe { mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, &file, 0) }
            .map_err(|errno| Error::machine("map a counters file", errno))?;
        let base =
            NonNull::new(base.cast()).ok_or_else(|| Error::machine("map a counters file", rustix::io::Errno::NOMEM))?;
        Ok(Self { _file: file, base, words: bytes / 8, free: Mutex::default() })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped for the life of self, aligned to a page, accessed by atomics only.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped.
        let unmapped = unsafe { mm::munmap(self.base.as_ptr().cast(), self.words * 8) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The writing end: makes the file and hands out blocks.
pub struct CounterFile {
    mapping: Arc<Mapping>,
    /// First word never used.
    end: Mutex<usize>,
}

/// What a reader found in one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSnapshot {
    /// What is counted: names the declaration of the values.
    pub kind: String,
    /// Whose: `name=value,name=value`.
    pub labels: String,
    /// Goes up when the block changes hands.
    pub generation: u64,
    /// The counters.
    pub values: Vec<u64>,
}

/// Why a file is left out by those who read many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// It cannot be opened.
    Unreadable,
    /// It does not begin like a counters file, or was not finished.
    Foreign,
    /// Its layout has another version.
    Version,
    /// Its size is not what it says, or none that a counters file has.
    Size,
}

impl SkipReason {
    /// The word under which it is counted.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Foreign => "foreign",
            Self::Version => "version",
            Self::Size => "size",
        }
    }
}

impl From<&Error> for SkipReason {
    fn from(error: &Error) -> Self {
        match error {
            Error::Peer(Fault::BadHeader { what: FOREIGN, .. }) => Self::Foreign,
            Error::Peer(Fault::BadHeader { what: VERSION_WORD, .. }) => Self::Version,
            Error::Peer(_) => Self::Size,
            _ => Self::Unreadable,
        }
    }
}

/// One owner's row of counters. Dropping it frees the block.
pub struct Block {
    mapping: Arc<Mapping>,
    header: usize,
    count: usize,
}

impl CounterFile {
    /// Makes a file of `bytes` bytes at `path`, or a nameless one.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: more than [`FILE_BYTES_MAX`]; [`Error::Machine`]: the path cannot be created or the space is
    /// not there.
    pub fn create(path: Option<&Path>, bytes: usize) -> Result<Self> {
        if bytes > FILE_BYTES_MAX {
            return Err(Error::Usage(format!("a counters file has at most {FILE_BYTES_MAX} bytes; got {bytes}")));
        }
        let bytes = bytes.max(4096).next_multiple_of(4096);
        let file = match path {
            Some(path) => {
                // A new file, never a shortened one: readers of the old keep their mapping whole.
                let _ = fs::unlink(path);
                fs::open(
                    path,
                    OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                    Mode::RUSR | Mode::WUSR,
                )
            }
            None => fs::memfd_create("vbnet-counters", fs::MemfdFlags::CLOEXEC),
        }
        .map_err(|errno| Error::machine("create a counters file", errno))?;
        fs::ftruncate(&file, bytes as u64).map_err(|errno| Error::machine("size a counters file", errno))?;
        fs::fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)
            .map_err(|errno| Error::machine("allocate a counters file", errno))?;
        let mapping = Mapping::new(file, bytes)?;
        let words = mapping.words();
        words[1].store(VERSION, Ordering::Relaxed);
        words[2].store(bytes as u64, Ordering::Relaxed);
        // [CT-2 file ready] release: version and size before the magic; partner in CounterFile::open.
        words[0].store(MAGIC, Ordering::Release);
        Ok(Self { mapping: Arc::new(mapping), end: Mutex::new(FILE_HEADER_WORDS) })
    }

    /// Takes a block of `count` counters, all 0. Longer labels than fit are cut.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the file is full.
    pub fn allocate(&self, kind: &str, labels: &str, count: usize) -> Result<Block> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let words = self.mapping.words();
        let freed = self.mapping.free.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&count).and_then(Vec::pop);
        let header = freed.unwrap_or(*end);
        // [CT-3 block freed] acquire: the old owner's last stores before our zeroes; partner in Block::drop.
        words.get(header).map(|state| state.load(Ordering::Acquire));
        // The next block's state must stay in reach: readers stop at it.
        if count >= self.mapping.words.saturating_sub(header + BLOCK_HEADER_WORDS) {
            return Err(Error::machine("find room in the counters file", rustix::io::Errno::NOSPC));
        }
        words[header + 1].store(count as u64, Ordering::Relaxed);
        let generation = &words[header + 2];
        // [CT-4 whose values] release: the old owner's end before the new generation, and that before what follows under
        // it; partners in CounterReader::blocks.
        generation.store(generation.load(Ordering::Relaxed) + 1, Ordering::Release);
        fence(Ordering::Release);
        store_text(&words[header + 3..header + KIND_END], kind);
        store_text(&words[header + KIND_END..header + LABELS_END], labels);
        words[header + CLOCK].store(0, Ordering::Relaxed);
        for value in &words[header + BLOCK_HEADER_WORDS..header + BLOCK_HEADER_WORDS + count] {
            value.store(0, Ordering::Relaxed);
        }
        // [CT-1 block published] release: labels and zeroes before the state; partner in CounterFile::blocks.
        words[header].store(STATE_LIVE, Ordering::Release);
        *end = (*end).max(header + BLOCK_HEADER_WORDS + count);
        Ok(Block { mapping: self.mapping.clone(), header, count })
    }

    /// As [`Self::allocate`], for what is large and good to have: `None` when less than a quarter of the file would be left
    /// for what must be counted.
    #[must_use]
    pub fn allocate_spare(&self, kind: &str, labels: &str, count: usize) -> Option<Block> {
        let limit = self.mapping.words / 4 * 3;
        let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let has_freed = || {
            let free = self.mapping.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.get(&count).is_some_and(|freed| !freed.is_empty())
        };
        if end + BLOCK_HEADER_WORDS + count > limit && !has_freed() {
            return None;
        }
        self.allocate(kind, labels, count).ok()
    }

    /// Opens somebody's file for reading. Nothing of it is mapped: whoever shortens it hurts no reader.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] when the file cannot be opened, [`Error::Peer`] when it is no counters file.
    pub fn open(path: &Path) -> Result<CounterReader> {
        // Non-blocking: a named pipe in this place must not hold us until somebody writes into it.
        let file = fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            .map_err(|errno| Error::machine("open a counters file", errno))?;
        let status = fs::fstat(&file).map_err(|errno| Error::machine("inspect a counters file", errno))?;
        let bytes = usize::try_from(status.st_size).unwrap_or(0);
        if !(FILE_HEADER_WORDS * 8..=FILE_BYTES_MAX).contains(&bytes) {
            let limit = FILE_BYTES_MAX as u64;
            return Err(Fault::BadSize { what: SIZE, found: bytes as u64, limit }.into());
        }
        // [CT-2 file ready] the magic by a system call of its own, before the rest; partner in CounterFile::create.
        let (mut magic, mut header) = ([0], [0; FILE_HEADER_WORDS]);
        for (start, words) in [(0, &mut magic[..]), (0, &mut header[..])] {
            let filled = read_into(&file, start, words);
            if filled.map_err(|errno| Error::machine("read a counters file", errno))? < words.len() {
                return Err(Fault::BadSize { what: SIZE, found: 0, limit: FILE_BYTES_MAX as u64 }.into());
            }
        }
        let expect = |what, found: u64, expected: u64| {
            if found == expected { Ok(()) } else { Err(Fault::BadHeader { what, found, expected }) }
        };
        expect(FOREIGN, magic[0], MAGIC)?;
        expect(VERSION_WORD, header[1], VERSION)?;
        expect(SIZE, header[2], bytes as u64)?;
        Ok(CounterReader { source: Source::File { file, words: bytes / 8 } })
    }

    /// A reader of this very file.
    #[must_use]
    pub fn reader(&self) -> CounterReader {
        CounterReader { source: Source::Mapping(self.mapping.clone()) }
    }
}

impl fmt::Debug for CounterFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CounterFile").field("words", &self.mapping.words).finish_non_exhaustive()
    }
}

/// The reading end.
pub struct CounterReader {
    source: Source,
}

enum Source {
    /// Our own file.
    Mapping(Arc<Mapping>),
    /// Anybody's.
    File { file: OwnedFd, words: usize },
}

/// A block while its file is read: what is kept of it is copied.
#[derive(Clone, Copy, Debug)]
pub struct BlockView<'a> {
    /// As [`BlockSnapshot::kind`].
    pub kind: &'a str,
    /// As [`BlockSnapshot::labels`].
    pub labels: &'a str,
    /// As [`BlockSnapshot::generation`].
    pub generation: u64,
    /// As [`BlockSnapshot::values`].
    pub values: &'a [u64],
}

impl From<BlockView<'_>> for BlockSnapshot {
    fn from(block: BlockView<'_>) -> Self {
        let BlockView { kind, labels, generation, values } = block;
        Self { kind: kind.into(), labels: labels.into(), generation, values: values.into() }
    }
}

/// How full a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Of those, how many are header and blocks, live or free.
    pub used_bytes: u64,
}

impl CounterReader {
    /// Every live block, as of now. Nonsense inside ends what is found; nothing blocks or fails.
    #[must_use]
    pub fn blocks(&self) -> Vec<BlockSnapshot> {
        let mut blocks = Vec::new();
        self.each(|block| blocks.push(block.into()));
        blocks
    }

    /// Shows `look` what [`Self::blocks`] finds, one block after the other where it was copied to; and how full the file is.
    pub fn each(&self, mut look: impl FnMut(BlockView<'_>)) -> Extent {
        match &self.source {
            Source::Mapping(mapping) => scan_mapping(mapping.words(), &mut look),
            Source::File { file, words } => scan_file(file, *words, &mut look),
        }
    }
}

impl fmt::Debug for CounterReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match &self.source {
            Source::Mapping(mapping) => mapping.words,
            Source::File { words, .. } => *words,
        };
        f.debug_struct("CounterReader").field("words", &words).finish_non_exhaustive()
    }
}

fn scan_mapping(words: &[AtomicU64], look: &mut impl FnMut(BlockView<'_>)) -> Extent {
    let now_ns = monotonic_ns();
    let (mut head, mut values) = (Vec::new(), Vec::new());
    let mut header = FILE_HEADER_WORDS;
    while header + BLOCK_HEADER_WORDS <= words.len() {
        // [CT-4 whose values] acquire: the generation before the state, or the state could be the last owner's and
        // what follows the half-written next one's; partner in CounterFile::allocate.
        let generation = words[header + 2].load(Ordering::Acquire);
        // [CT-1 block published] acquire: state before labels and values; partner in CounterFile::allocate.
        let state = words[header].load(Ordering::Acquire);
        let count = words[header + 1].load(Ordering::Relaxed) as usize;
        if state == STATE_END || count > words.len() - header - BLOCK_HEADER_WORDS {
            break;
        }
        let end = header + BLOCK_HEADER_WORDS + count;
        if state == STATE_LIVE {
            let copy = |words: &[AtomicU64], copy: &mut Vec<u64>| {
                copy.clear();
                copy.extend(words.iter().map(|word| word.load(Ordering::Relaxed)));
            };
            copy(&words[header..header + BLOCK_HEADER_WORDS], &mut head);
            // [CT-5 clock stopped] acquire: the clock's word before the counter; partners in Block::start and stop.
            fence(Ordering::Acquire);
            copy(&words[header + BLOCK_HEADER_WORDS..end], &mut values);
            // A block that changed hands while it was read belongs to neither; the next look will find it whole.
            // [CT-4 whose values] acquire: values before the generation; partner in CounterFile::allocate.
            fence(Ordering::Acquire);
            if words[header + 2].load(Ordering::Relaxed) == generation {
                show(&head, generation, &mut values, now_ns, look);
            }
        }
        header = end;
    }
    Extent { bytes: words.len() as u64 * 8, used_bytes: header as u64 * 8 }
}

/// Copies the blocks and believes those whose generation was the same before, in and after the copy, as in
/// [`scan_mapping`]. What a file that was cut short no longer has ends what is found.
///
/// A node of a thousand devices has ten thousand blocks, and a system call costs as much as the copy of some of them: so a
/// window of blocks is copied as often as an order is needed, and each copy has them all. Copies are made to where those
/// of the window before were, which a processor's cache still has.
fn scan_file(file: &OwnedFd, words: usize, look: &mut impl FnMut(BlockView<'_>)) -> Extent {
    let now_ns = monotonic_ns();
    let mut header = FILE_HEADER_WORDS;
    let end_of_file = words.min(SCAN_WORDS_MAX);
    let mut looks = Looks::default();
    while header + BLOCK_HEADER_WORDS <= end_of_file {
        let seen = looks.first(file, header, end_of_file - header);
        if seen.words == 0 {
            break;
        }
        looks.others(file, header, &seen);
        for &block in &seen.live {
            looks.show(block, now_ns, look);
        }
        header += seen.words;
    }
    Extent { bytes: words as u64 * 8, used_bytes: header as u64 * 8 }
}

/// Copies of one window of a file, one after the other: what each says was so after what the one before says.
#[derive(Default)]
struct Looks {
    /// Whose blocks they are.
    first: Copied,
    heads: Copied,
    values: Copied,
    /// Whose they still are.
    after: Copied,
}

/// Words of a file, as far as it had them. Their memory is kept for the next ones.
#[derive(Default)]
struct Copied {
    memory: Vec<u64>,
    filled: usize,
}

/// A block as it was seen at first.
#[derive(Clone, Copy)]
struct Place {
    /// Where in the window.
    at: usize,
    count: usize,
    generation: u64,
}

/// The blocks at the beginning of a window: small ones, and at most one large one behind them.
#[derive(Default)]
struct Seen {
    live: Vec<Place>,
    /// How far copies of heads and of values go.
    heads: usize,
    values: usize,
    /// How many words they take, those that are free too.
    words: usize,
}

impl Copied {
    fn take(&mut self, file: &OwnedFd, start: usize, words: usize) {
        if self.memory.len() < words {
            self.memory.resize(words, 0);
        }
        self.filled = read_into(file, start, &mut self.memory[..words]).unwrap_or(0);
    }

    fn words(&self) -> &[u64] {
        &self.memory[..self.filled]
    }
}

impl Looks {
    /// Looks for blocks from word `start` on, of which the file has `room` more.
    fn first(&mut self, file: &OwnedFd, start: usize, room: usize) -> Seen {
        self.first.take(file, start, room.min(WINDOW_WORDS));
        blocks_in(self.first.words(), room)
    }

    /// Copies what was seen as often as is needed besides.
    fn others(&mut self, file: &OwnedFd, start: usize, seen: &Seen) {
        self.heads.take(file, start, seen.heads);
        self.values.take(file, start, seen.values);
        self.after.take(file, start, seen.heads);
    }

    /// Shows a block that is whole in all copies and has not changed hands meanwhile.
    fn show(&mut self, place: Place, now_ns: u64, look: &mut impl FnMut(BlockView<'_>)) {
        let Place { at, count, generation } = place;
        let start = at + BLOCK_HEADER_WORDS;
        let Self { heads, values, after, .. } = self;
        let values = values.memory[..values.filled].get_mut(start..start + count);
        let (Some(head), Some(values), Some(&still)) =
            (heads.words().get(at..start), values, after.words().get(at + 2))
        else {
            return;
        };
        if head.starts_with(&[STATE_LIVE, count as u64, generation]) && still == generation {
            show(head, generation, values, now_ns, look);
        }
    }
}

/// `room`: how many words the file has from the window's first on. None: there is nothing behind, or nonsense.
fn blocks_in(window: &[u64], room: usize) -> Seen {
    let mut seen = Seen::default();
    loop {
        let at = seen.words;
        let Some(&[state, count, generation]) = window.get(at..).and_then(|start| start.first_chunk()) else { break };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if state == STATE_END || count > room.saturating_sub(at + BLOCK_HEADER_WORDS) {
            break;
        }
        let (start, end) = (at + BLOCK_HEADER_WORDS, at + BLOCK_HEADER_WORDS + count);
        let is_large = count > SMALL_WORDS;
        if !is_large && end > window.len() {
            break;
        }
        if state == STATE_LIVE {
            seen.live.push(Place { at, count, generation });
            (seen.heads, seen.values) = (start, end);
        }
        seen.words = end;
        if is_large {
            break;
        }
    }
    seen
}

/// Fills `words` with those of the file from word `start` on; how many it has.
fn read_into(file: &OwnedFd, start: usize, words: &mut [u64]) -> rustix::io::Result<usize> {
    let bytes = words.as_mut_bytes();
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::io::pread(file, &mut bytes[filled..], (start * 8 + filled) as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let words = &mut words[..filled / 8];
    words.iter_mut().for_each(|word| *word = u64::from_le(*word));
    Ok(words.len())
}

/// `now_ns` is a moment before anything was read, and `head` was read before `values`: a counter that ran so shows no more
/// than it will when it stops, and no less than it did before, whatever its writer does meanwhile.
fn show(head: &[u64], generation: u64, values: &mut [u64], now_ns: u64, look: &mut impl FnMut(BlockView<'_>)) {
    let (since_us, counter) = (head[CLOCK] >> CLOCK_COUNTER_BITS, head[CLOCK] & ((1 << CLOCK_COUNTER_BITS) - 1));
    if let Some(value) = counter.checked_sub(1).and_then(|counter| values.get_mut(counter as usize)) {
        *value = (*value).max(now_ns.saturating_sub(since_us.saturating_mul(1_000)));
    }
    let (mut kind, mut labels) = ([0; KIND_BYTES], [0; LABEL_BYTES]);
    look(BlockView {
        kind: &text_of(&head[3..KIND_END], &mut kind),
        labels: &text_of(&head[KIND_END..LABELS_END], &mut labels),
        generation,
        values,
    });
}

impl Block {
    /// The counters. One writing thread each: add with [`add`].
    #[must_use]
    pub fn values(&self) -> &[AtomicU64] {
        let start = self.header + BLOCK_HEADER_WORDS;
        &self.mapping.words()[start..start + self.count]
    }

    /// Adds to counter `index`, for its one writer. An index the block does not have is ignored.
    #[inline]
    pub fn add(&self, index: usize, amount: u64) {
        if let Some(value) = self.values().get(index) {
            value.store(value.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        }
    }

    /// Sets counter `index`, for a value that goes up and down.
    #[inline]
    pub fn set(&self, index: usize, amount: u64) {
        if let Some(value) = self.values().get(index) {
            value.store(amount, Ordering::Relaxed);
        }
    }

    /// Lets counter `index`, of nanoseconds and among the first 255, run for those who read, until [`Self::stop`]. When it
    /// began, on the monotonic clock.
    pub fn start(&self, index: usize) -> u64 {
        let now_ns = monotonic_ns();
        let since_us = now_ns.saturating_sub(self.load(index)).div_ceil(1_000);
        // [CT-5 clock stopped] release: the counter before the word that makes it run; partner in scan_mapping.
        self.clock().store(since_us << CLOCK_COUNTER_BITS | (index as u64 + 1), Ordering::Release);
        now_ns
    }

    /// Stops counter `index`, which began to run at `started_ns`.
    pub fn stop(&self, index: usize, started_ns: u64) {
        self.add(index, monotonic_ns().saturating_sub(started_ns));
        // [CT-5 clock stopped] release: what was counted before the word that ends it; partner in scan_mapping.
        self.clock().store(0, Ordering::Release);
    }

    fn clock(&self) -> &AtomicU64 {
        &self.mapping.words()[self.header + CLOCK]
    }

    /// What counter `index` says.
    #[must_use]
    pub fn load(&self, index: usize) -> u64 {
        self.values().get(index).map_or(0, |value| value.load(Ordering::Relaxed))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // [CT-3 block freed] release: our last stores before the state; partner in CounterFile::allocate.
        self.mapping.words()[self.header].store(STATE_FREE, Ordering::Release);
        let mut free = self.mapping.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.entry(self.count).or_default().push(self.header);
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("count", &self.count).finish_non_exhaustive()
    }
}

fn store_text(words: &[AtomicU64], text: &str) {
    let mut end = text.len().min(words.len() * 8);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let bytes = &text.as_bytes()[..end];
    for (index, word) in words.iter().enumerate() {
        let mut part = [0; 8];
        let rest = bytes.get(index * 8..).unwrap_or_default();
        let length = rest.len().min(8);
        part[..length].copy_from_slice(&rest[..length]);
        word.store(u64::from_le_bytes(part), Ordering::Relaxed);
    }
}

/// The text that words say, up to its first NUL; `bytes` is room for it.
fn text_of<'a>(words: &[u64], bytes: &'a mut [u8]) -> Cow<'a, str> {
    for (letters, word) in bytes.chunks_exact_mut(8).zip(words) {
        letters.copy_from_slice(&word.to_le_bytes());
    }
    let text = CStr::from_bytes_until_nul(bytes).map_or(&*bytes, CStr::to_bytes);
    // What is no text is rare, and what makes one of it takes ten times as long.
    str::from_utf8(text).map_or_else(|_| String::from_utf8_lossy(text), Cow::Borrowed)
}
