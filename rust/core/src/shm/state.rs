//! State pages: typed records of which only the latest value counts. Publish and sample; no signal, no queue, no lock.
//!
//! ```text
//!   record    count │ slot 0: moment, values │ slot 1: moment, values
//!
//!   publish   write slot (count + 1) & 1, then count += 1       sample   n = count, copy slot n & 1, count still n?
//! ```
//!
//! A sequence lock over two slots: the publisher never touches the slot that `count` names, so whoever reads it is
//! disturbed only when two values are published meanwhile, and then tries again. A publisher that dies while it writes
//! leaves the value before whole and readable, where the classic lock over one slot stays locked for ever.
//! The publisher never waits and does not know who reads. A sampler tries [`TRIES`] times and then says busy.
//!
//! Who writes what: one publisher a record, everything in it; whoever lays the page out, the header. The danger: a
//! publisher that counts without end, or writes whatever it likes: it spoils its own record, and a sampler's bounded
//! time. A value is copied once and is data; nothing here is an index but the lowest bit of `count`.
//! A *roll* is the host's word on each record: which page it is in now, and whether somebody owns it. Guests read it.
//!
//! Every word is atomic, so a read that is thrown away was no data race either. Source: Boehm, Can seqlocks get along
//! with programming language memory models? (fences around relaxed accesses); `docs/wire/state.md` has the bytes.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::signal::Owner;
#[cfg(not(loom))]
use crate::error::{Error, Fault, Result};
#[cfg(not(loom))]
use crate::shm::{
    layout::{self, ROLL_MAGIC, ROLL_VERSION, RollHeader, STATE_MAGIC, STATE_VERSION, StateHeader},
    region::Mapped,
};
use crate::sync::{AtomicU64, Ordering, half_fence, ordering};

/// How often a sampler tries for a value nobody changes meanwhile, before it says [`Sampled::Busy`].
#[cfg(not(loom))]
pub const TRIES: u32 = 64;
/// How often a sampler tries; few, for the models.
#[cfg(loom)]
pub const TRIES: u32 = 2;

const COUNT: usize = 0;
/// First word of slot 0, its moment; the values follow.
const SLOTS: usize = 1;

/// One record's words: the count, then two slots of a moment and `values` words.
#[derive(Clone)]
struct Record {
    words: NonNull<AtomicU64>,
    values: usize,
    _owner: Owner,
}

// SAFETY: the words are atomics, reachable for as long as `_owner` lives, and every access goes through them.
unsafe impl Send for Record {}
// SAFETY: as above.
unsafe impl Sync for Record {}

impl Record {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: so many words are valid for the life of `_owner`, as whoever made this record checked.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), SLOTS + 2 * (1 + self.values)) }
    }

    fn slot(&self, count: u64) -> &[AtomicU64] {
        let length = 1 + self.values;
        let start = SLOTS + (count & 1) as usize * length;
        &self.words()[start..start + length]
    }
}

/// A record in this process's own memory, for models and tests.
#[must_use]
pub fn record_on_heap(values: usize) -> (Publisher, Sampler) {
    let words: Arc<Box<[AtomicU64]>> = Arc::new((0..SLOTS + 2 * (1 + values)).map(|_| AtomicU64::new(0)).collect());
    let record = Record { words: NonNull::from(&words[0]), values, _owner: words };
    (Publisher::new(record.clone()), Sampler { record })
}

/// The writing end of a record.
pub struct Publisher {
    record: Record,
    /// What the count says.
    count: u64,
}

impl Publisher {
    /// Takes a record over as its last owner left it. One a record: the caller keeps that promise.
    fn new(record: Record) -> Self {
        let count = record.words()[COUNT].load(Ordering::Relaxed);
        Self { record, count }
    }

    /// Words of a value.
    #[must_use]
    pub fn values(&self) -> usize {
        self.record.values
    }

    /// How many values were published, this owner's and its predecessors'.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Makes `values` the latest; words that are missing count as 0, surplus ones are ignored.
    ///
    /// `now_ns` is the moment, nanoseconds of the monotonic clock. Cost: a few stores; nobody is told.
    #[inline]
    pub fn publish(&mut self, now_ns: u64, values: &[u64]) {
        let count = self.count.wrapping_add(1);
        // [ST-1 slot untouched] release: whoever reads a word stored below sees the count before it; partner in
        // Sampler::sample.
        half_fence("state_slot", Ordering::Release);
        let slot = self.record.slot(count);
        slot[0].store(now_ns, Ordering::Relaxed);
        for (index, word) in slot[1..].iter().enumerate() {
            word.store(values.get(index).copied().unwrap_or(0), Ordering::Relaxed);
        }
        self.count = count;
        // [ST-2 values before count] release: the slot before the count that names it; partner in Sampler::sample.
        let order = ordering("state_count", Ordering::Release);
        self.record.words()[COUNT].store(count, order);
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("count", &self.count).finish_non_exhaustive()
    }
}

/// The moment now, in nanoseconds of the monotonic clock, which all processes of a machine share.
#[cfg(not(loom))]
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// What a sampler found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampled {
    /// Nothing was ever published.
    Empty,
    /// The record changed during each of [`TRIES`] looks; what was copied means nothing.
    Busy,
    /// The latest value was copied.
    Value {
        /// How many values were published up to this one.
        count: u64,
        /// When, in nanoseconds of the publisher's monotonic clock, as the publisher says.
        published_ns: u64,
    },
}

/// A reading end of a record.
#[derive(Clone)]
pub struct Sampler {
    record: Record,
}

impl Sampler {
    /// Words of a value.
    #[must_use]
    pub fn values(&self) -> usize {
        self.record.values
    }

    /// Copies the latest value into `values`, as many words as both have. Never waits; bounded by [`TRIES`].
    #[inline]
    pub fn sample(&self, values: &mut [u64]) -> Sampled {
        for _ in 0..TRIES {
            // [ST-2 values before count] acquire: the slot this count names is complete; partner in Publisher::publish.
            let order = ordering("state_look", Ordering::Acquire);
            let count = self.record.words()[COUNT].load(order);
            if count == 0 {
                return Sampled::Empty;
            }
            let slot = self.record.slot(count);
            let published_ns = slot[0].load(Ordering::Relaxed);
            for (value, word) in values.iter_mut().zip(&slot[1..]) {
                *value = word.load(Ordering::Relaxed);
            }
            // [ST-1 slot untouched] acquire: if a word above was of a later value, the count below moved; partner in
            // Publisher::publish.
            half_fence("state_check", Ordering::Acquire);
            if self.record.words()[COUNT].load(Ordering::Relaxed) == count {
                return Sampled::Value { count, published_ns };
            }
            #[cfg(not(loom))]
            std::hint::spin_loop();
        }
        Sampled::Busy
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sampler").field("count", &self.record.words()[COUNT]).finish_non_exhaustive()
    }
}

/// How many records of which size a page has.
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLayout {
    records: u32,
    value_bytes: u32,
}

#[cfg(not(loom))]
impl StateLayout {
    /// Plans a page.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: not 1 to 4096 records, or values that are not 8 to 4096 bytes in whole words.
    pub fn plan(records: u32, value_bytes: u32) -> Result<Self> {
        Self::check(records, value_bytes).map_err(|fault| Error::Usage(fault.to_string()))
    }

    fn check(records: u32, value_bytes: u32) -> std::result::Result<Self, Fault> {
        if !(1..=layout::STATE_RECORDS_MAX).contains(&records) {
            return Err(Fault::BadSize {
                what: "state records",
                found: records.into(),
                limit: layout::STATE_RECORDS_MAX.into(),
            });
        }
        if !(8..=layout::STATE_VALUES_MAX).contains(&value_bytes) || !value_bytes.is_multiple_of(8) {
            return Err(Fault::BadSize {
                what: "state value bytes",
                found: value_bytes.into(),
                limit: layout::STATE_VALUES_MAX.into(),
            });
        }
        Ok(Self { records, value_bytes })
    }

    /// Number of records.
    #[must_use]
    pub const fn records(self) -> u32 {
        self.records
    }

    /// Bytes of one record's values.
    #[must_use]
    pub const fn value_bytes(self) -> u32 {
        self.value_bytes
    }

    /// Bytes of the whole page.
    #[must_use]
    pub const fn bytes(self) -> usize {
        layout::STATE_HEADER_BYTES + self.records as usize * layout::state_record_bytes(self.value_bytes)
    }
}

/// A state page somewhere in mapped memory; what the header says was copied and checked once.
#[cfg(not(loom))]
#[derive(Clone)]
pub struct StatePage {
    first: NonNull<u8>,
    layout: StateLayout,
    is_writable: bool,
    owner: Owner,
}

// SAFETY: what `first` points to is atomics, reachable for as long as `owner` lives.
#[cfg(not(loom))]
unsafe impl Send for StatePage {}
// SAFETY: as above.
#[cfg(not(loom))]
unsafe impl Sync for StatePage {}

#[cfg(not(loom))]
impl StatePage {
    /// Lays an empty page out at `offset` of memory that is ours.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the place is misaligned, reserved, outside the memory, or cannot be written.
    pub fn format<M: Mapped>(memory: &Arc<M>, offset: u32, layout: StateLayout, schema: u64) -> Result<Self> {
        let start = place(memory, offset, layout.bytes()).map_err(|fault| Error::Usage(fault.to_string()))?;
        if !memory.is_writable() {
            return Err(Error::Usage("this memory can only be read".into()));
        }
        let header = start.cast::<StateHeader>();
        // SAFETY: `place` checked alignment and bounds of header and records; nobody else knows of this page yet.
        let page = unsafe {
            start.write_bytes(0, layout.bytes());
            header.as_ref().records.store(layout.records, Ordering::Relaxed);
            header.as_ref().value_bytes.store(layout.value_bytes, Ordering::Relaxed);
            header.as_ref().schema.store(schema, Ordering::Relaxed);
            header.as_ref().version.store(STATE_VERSION, Ordering::Relaxed);
            header.as_ref().magic.store(STATE_MAGIC, Ordering::Relaxed);
            start.add(layout::STATE_HEADER_BYTES)
        };
        Ok(Self { first: page, layout, is_writable: true, owner: memory.clone() })
    }

    /// Believes a page that somebody else laid out at `offset`, in at most `length` bytes, after checking all of it.
    ///
    /// # Errors
    ///
    /// The other side's fault: place, magic, version, sizes or schema cannot be.
    pub fn attach<M: Mapped>(
        memory: &Arc<M>,
        offset: u32,
        length: usize,
        schema: u64,
    ) -> std::result::Result<Self, Fault> {
        let start = place(memory, offset, length.max(layout::STATE_HEADER_BYTES))?;
        // SAFETY: `place` checked alignment and bounds; the header is atomics only.
        let header = unsafe { start.cast::<StateHeader>().as_ref() };
        expect("state magic", header.magic.load(Ordering::Relaxed).into(), STATE_MAGIC.into())?;
        expect("state version", header.version.load(Ordering::Relaxed).into(), STATE_VERSION.into())?;
        expect("state schema", header.schema.load(Ordering::Relaxed), schema)?;
        let layout =
            StateLayout::check(header.records.load(Ordering::Relaxed), header.value_bytes.load(Ordering::Relaxed))?;
        if layout.bytes() > length {
            return Err(Fault::BadSize {
                what: "state page bytes",
                found: layout.bytes() as u64,
                limit: length as u64,
            });
        }
        // SAFETY: the length just checked covers header and records.
        let first = unsafe { start.add(layout::STATE_HEADER_BYTES) };
        Ok(Self { first, layout, is_writable: memory.is_writable(), owner: memory.clone() })
    }

    /// How many records of which size there are.
    #[must_use]
    pub const fn layout(&self) -> StateLayout {
        self.layout
    }

    /// The writing end of a record. One a record, in whatever process: the caller keeps that promise; values of two
    /// publishers are mixed up.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: there is no such record, or the memory can only be read.
    pub fn publisher(&self, record: u32) -> Result<Publisher> {
        if !self.is_writable {
            return Err(Error::Usage("this state page can only be sampled".into()));
        }
        Ok(Publisher::new(self.record(record)?))
    }

    /// A reading end of a record; any number.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: there is no such record.
    pub fn sampler(&self, record: u32) -> Result<Sampler> {
        Ok(Sampler { record: self.record(record)? })
    }

    fn record(&self, record: u32) -> Result<Record> {
        if record >= self.layout.records {
            return Err(Error::Usage(format!("there is no record {record}; there are {}", self.layout.records)));
        }
        let offset = record as usize * layout::state_record_bytes(self.layout.value_bytes);
        // SAFETY: the record lies within the page, whose bounds were checked.
        let words = unsafe { self.first.add(offset) }.cast();
        Ok(Record { words, values: self.layout.value_bytes as usize / 8, _owner: self.owner.clone() })
    }
}

#[cfg(not(loom))]
impl fmt::Debug for StatePage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatePage").field("layout", &self.layout).finish_non_exhaustive()
    }
}

/// What the host says of a record: one word, so that it cannot be read half.
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Counts the pages the record was in; 0: in none yet. Another number than before: look for its page anew.
    pub generation: u64,
    /// Whether somebody may publish into it.
    pub is_owned: bool,
}

#[cfg(not(loom))]
impl Standing {
    const fn to_word(self) -> u64 {
        self.generation << 1 | self.is_owned as u64
    }

    const fn from_word(word: u64) -> Self {
        Self { generation: word >> 1, is_owned: word & 1 == 1 }
    }
}

/// The host's end of a roll.
#[cfg(not(loom))]
pub struct Roll {
    words: RollWords,
}

#[cfg(not(loom))]
impl Roll {
    /// Lays a roll out at the start of memory that is ours.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: not 1 to 4096 records, or they do not fit.
    pub fn format<M: Mapped>(memory: &Arc<M>, records: u32) -> Result<Self> {
        StateLayout::plan(records, 8)?;
        let start = place(memory, 0, layout::roll_bytes(records)).map_err(|fault| Error::Usage(fault.to_string()))?;
        if !memory.is_writable() {
            return Err(Error::Usage("this memory can only be read".into()));
        }
        // SAFETY: `place` checked alignment and bounds; nobody else knows of this roll yet.
        let first = unsafe {
            start.write_bytes(0, layout::roll_bytes(records));
            let header = start.cast::<RollHeader>().as_ref();
            header.records.store(records, Ordering::Relaxed);
            header.version.store(ROLL_VERSION, Ordering::Relaxed);
            header.magic.store(ROLL_MAGIC, Ordering::Relaxed);
            start.add(layout::ROLL_HEADER_BYTES).cast()
        };
        Ok(Self { words: RollWords { first, records, _owner: memory.clone() } })
    }

    /// Says how a record stands from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: there is no such record.
    pub fn enter(&self, record: u32, standing: Standing) -> Result<()> {
        // [RO-1 page before roll] release: the page was laid out and frozen before; partner in RollReader::look.
        self.words.word(record)?.store(standing.to_word(), Ordering::Release);
        Ok(())
    }
}

/// A guest's end of a roll.
#[cfg(not(loom))]
#[derive(Clone)]
pub struct RollReader {
    words: RollWords,
}

#[cfg(not(loom))]
impl RollReader {
    /// Believes a roll at the start of memory that the host lent, after checking it.
    ///
    /// # Errors
    ///
    /// The host's fault: place, magic, version or size cannot be.
    pub fn attach<M: Mapped>(memory: &Arc<M>) -> std::result::Result<Self, Fault> {
        let start = place(memory, 0, layout::ROLL_HEADER_BYTES)?;
        // SAFETY: `place` checked alignment and bounds; the header is atomics only.
        let header = unsafe { start.cast::<RollHeader>().as_ref() };
        expect("roll magic", header.magic.load(Ordering::Relaxed).into(), ROLL_MAGIC.into())?;
        expect("roll version", header.version.load(Ordering::Relaxed).into(), ROLL_VERSION.into())?;
        let records = StateLayout::check(header.records.load(Ordering::Relaxed), 8)?.records;
        place(memory, 0, layout::roll_bytes(records))?;
        // SAFETY: the length just checked covers header and words.
        let first = unsafe { start.add(layout::ROLL_HEADER_BYTES) }.cast();
        Ok(Self { words: RollWords { first, records, _owner: memory.clone() } })
    }

    /// How a record stands right now.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: there is no such record.
    #[inline]
    pub fn look(&self, record: u32) -> Result<Standing> {
        // [RO-1 page before roll] acquire: the page of this generation is laid out and frozen; partner in Roll::enter.
        Ok(Standing::from_word(self.words.word(record)?.load(Ordering::Acquire)))
    }
}

#[cfg(not(loom))]
#[derive(Clone)]
struct RollWords {
    first: NonNull<AtomicU64>,
    records: u32,
    _owner: Owner,
}

// SAFETY: the words are atomics, reachable for as long as `_owner` lives.
#[cfg(not(loom))]
unsafe impl Send for RollWords {}
// SAFETY: as above.
#[cfg(not(loom))]
unsafe impl Sync for RollWords {}

#[cfg(not(loom))]
impl RollWords {
    #[inline]
    fn word(&self, record: u32) -> Result<&AtomicU64> {
        if record >= self.records {
            return Err(Error::Usage(format!("there is no record {record}; there are {}", self.records)));
        }
        // SAFETY: below `records`, whose words were checked to be in bounds; valid for the life of `_owner`.
        Ok(unsafe { self.first.add(record as usize).as_ref() })
    }
}

#[cfg(not(loom))]
fn expect(what: &'static str, found: u64, expected: u64) -> std::result::Result<(), Fault> {
    if found == expected { Ok(()) } else { Err(Fault::BadHeader { what, found, expected }) }
}

#[cfg(not(loom))]
fn place<M: Mapped>(memory: &Arc<M>, offset: u32, bytes: usize) -> std::result::Result<NonNull<u8>, Fault> {
    if !(offset as usize).is_multiple_of(layout::LINE_PAIR) {
        return Err(Fault::BadSize { what: "state alignment", found: offset.into(), limit: layout::LINE_PAIR as u64 });
    }
    if offset < memory.reserved_bytes() {
        return Err(Fault::OverlapsControl {
            offset,
            length: u32::try_from(bytes).unwrap_or(u32::MAX),
            start: 0,
            end: memory.reserved_bytes(),
        });
    }
    memory.at(offset, bytes)
}
