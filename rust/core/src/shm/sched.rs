//! Scheduling pages: what a guest's threads need of the processor, published in the guest's own memory.
//!
//! ```text
//!   guest thread                                        coordinator (host)
//!     wants ──▶ record: sequence odd · words · even ──▶  copy, bounded tries, check, apply to the Linux thread
//!     turns ──▶ one word: even idle, odd running               only where a transition changes what is applied
//!     kick, if the host must act now                     applied, boosted, refusal ──▶ hints for the guest
//! ```
//!
//! Who writes what: a record's first two cache lines belong to the guest thread it describes, the next two to the host.
//! A record that is copied while it is written shows by its sequence number and is copied again, at most
//! [`SAMPLE_TRIES`] times: a writer that died inside, or that never stops, costs the host that much and is counted.
//! Nothing here is true because a guest says so: `crate::sched` checks the copy against its limits and the kernel.
//! Source: vbus's scheduling of guests by what they publish; sequence locks as in Linux (seqlock.rst).

use std::ptr::NonNull;

#[cfg(not(loom))]
use super::layout::{LINE_PAIR, SIGNAL_PAIR_BYTES, SignalPair};
use super::signal::Owner;
#[cfg(not(loom))]
use super::signal::SignalMemory;
use crate::sync::{AtomicU32, AtomicU64, Ordering, half_fence, ordering};

/// First four bytes of a scheduling page: `vSCH`.
pub const SCHED_MAGIC: u32 = u32::from_le_bytes(*b"vSCH");
/// Version of the page.
pub const SCHED_VERSION: u32 = 1;
/// Bytes in front of the first record: header, then a signal pair.
pub const SCHED_HEADER_BYTES: usize = 0x300;
/// Bytes of a record.
pub const SCHED_RECORD_BYTES: usize = 0x100;
/// Most records of a page.
pub const SCHED_RECORDS_MAX: u32 = 256;
/// Processors that an affinity can name.
pub const AFFINITY_BITS: usize = 256;
/// How often a record that changes is copied before the sampler gives up.
pub const SAMPLE_TRIES: u32 = if cfg!(loom) { 1 } else { 16 };
/// `vcpu` of a thread that serves no interrupts.
pub const NO_VCPU: u32 = u32::MAX;
/// Flag: realtime until it blocks, where it would otherwise share in turns with its equals.
pub const FLAG_FIFO: u32 = 1;
/// Flag: while idle it polls, so that it should give way until it runs again.
pub const FLAG_IDLE_POLLS: u32 = 2;
/// Words of an affinity.
pub const AFFINITY_WORDS: usize = AFFINITY_BITS / 64;

/// What one thread wants, as its guest wrote it: a copy, of which nothing is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Declaration {
    /// Kernel's number of the thread; 0: this record is unused.
    pub tid: u32,
    /// 0 idle, 1 batch, 2 normal, 3 interactive, 4 realtime, 5 deadline.
    pub class: u32,
    /// [`FLAG_FIFO`], [`FLAG_IDLE_POLLS`].
    pub flags: u32,
    /// Added to the class's own nice value, -20 to 19.
    pub nice: i32,
    /// 1 to 99, 0: the least; realtime only.
    pub rt_priority: u32,
    /// The vCPU whose interrupts it serves, or [`NO_VCPU`].
    pub vcpu: u32,
    /// Processor time it needs in each period, ns.
    pub runtime_ns: u64,
    /// Within which it must have it, ns from the period's start.
    pub deadline_ns: u64,
    /// How often, ns.
    pub period_ns: u64,
    /// Processors it may use, a bit each; all zero: wherever it might before.
    pub affinity: [u64; AFFINITY_WORDS],
}

/// What the host says of one thread: hints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Class in force plus one; 0: none.
    pub applied: u32,
    /// 1 while an urgent signal boosts it.
    pub boosted: u32,
    /// Number of the last refusal plus one; 0: none.
    pub refusal: u32,
}

#[repr(C, align(128))]
struct Words {
    sequence: AtomicU32,
    tid: AtomicU32,
    class: AtomicU32,
    flags: AtomicU32,
    nice: AtomicU32,
    rt_priority: AtomicU32,
    vcpu: AtomicU32,
    reserved: AtomicU32,
    runtime_ns: AtomicU64,
    deadline_ns: AtomicU64,
    period_ns: AtomicU64,
    affinity: [AtomicU64; AFFINITY_WORDS],
    turns: AtomicU32,
}

#[cfg(not(loom))]
impl Words {
    fn store_rest(&self, wanted: &Declaration) {
        self.flags.store(wanted.flags, Ordering::Relaxed);
        self.nice.store(wanted.nice.cast_unsigned(), Ordering::Relaxed);
        self.rt_priority.store(wanted.rt_priority, Ordering::Relaxed);
        self.vcpu.store(wanted.vcpu, Ordering::Relaxed);
        self.runtime_ns.store(wanted.runtime_ns, Ordering::Relaxed);
        self.deadline_ns.store(wanted.deadline_ns, Ordering::Relaxed);
        self.period_ns.store(wanted.period_ns, Ordering::Relaxed);
        for (word, bits) in self.affinity.iter().zip(wanted.affinity) {
            word.store(bits, Ordering::Relaxed);
        }
    }

    fn load_rest(&self, copy: Declaration) -> Declaration {
        let mut affinity = [0; AFFINITY_WORDS];
        for (bits, word) in affinity.iter_mut().zip(&self.affinity) {
            *bits = word.load(Ordering::Relaxed);
        }
        Declaration {
            flags: self.flags.load(Ordering::Relaxed),
            nice: self.nice.load(Ordering::Relaxed).cast_signed(),
            rt_priority: self.rt_priority.load(Ordering::Relaxed),
            vcpu: self.vcpu.load(Ordering::Relaxed),
            runtime_ns: self.runtime_ns.load(Ordering::Relaxed),
            deadline_ns: self.deadline_ns.load(Ordering::Relaxed),
            period_ns: self.period_ns.load(Ordering::Relaxed),
            affinity,
            ..copy
        }
    }
}

#[repr(C, align(128))]
struct HostWords {
    applied: AtomicU32,
    boosted: AtomicU32,
    refusal: AtomicU32,
}

/// One thread's place in a page.
#[repr(C)]
struct RecordWords {
    guest: Words,
    host: HostWords,
}

#[repr(C, align(128))]
struct PageHeader {
    magic: AtomicU32,
    version: AtomicU32,
    records: AtomicU32,
}

#[cfg(not(loom))]
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<RecordWords>() == SCHED_RECORD_BYTES);
    assert!(offset_of!(Words, runtime_ns) == 0x20);
    assert!(offset_of!(Words, affinity) == 0x38);
    assert!(offset_of!(Words, turns) == 0x58);
    assert!(offset_of!(RecordWords, host) == 0x80);
    assert!(size_of::<PageHeader>() == LINE_PAIR);
    assert!(LINE_PAIR + SIGNAL_PAIR_BYTES == SCHED_HEADER_BYTES);
};

/// Rows of [`super::layout::wire_table`].
#[cfg(not(loom))]
pub(crate) const WIRE_ROWS: [(&str, &str, usize, usize); 19] = [
    ("sched", "magic", 0, 4),
    ("sched", "version", 4, 4),
    ("sched", "records", 8, 4),
    ("sched", "signal", 0x80, 0x280),
    ("sched_record", "sequence", 0, 4),
    ("sched_record", "tid", 4, 4),
    ("sched_record", "class", 8, 4),
    ("sched_record", "flags", 12, 4),
    ("sched_record", "nice", 0x10, 4),
    ("sched_record", "rt_priority", 0x14, 4),
    ("sched_record", "vcpu", 0x18, 4),
    ("sched_record", "runtime_ns", 0x20, 8),
    ("sched_record", "deadline_ns", 0x28, 8),
    ("sched_record", "period_ns", 0x30, 8),
    ("sched_record", "affinity", 0x38, 32),
    ("sched_record", "turns", 0x58, 4),
    ("sched_record", "applied", 0x80, 4),
    ("sched_record", "boosted", 0x84, 4),
    ("sched_record", "refusal", 0x88, 4),
];

/// Bytes of a page with so many records.
#[must_use]
pub const fn sched_page_bytes(records: u32) -> usize {
    SCHED_HEADER_BYTES + records as usize * SCHED_RECORD_BYTES
}

/// One record, wherever it is: each side keeps to its own words.
#[derive(Clone)]
pub(crate) struct Record {
    words: NonNull<RecordWords>,
    _owner: Owner,
}

// SAFETY: the words are atomics, reachable for as long as `_owner` lives.
unsafe impl Send for Record {}
// SAFETY: as above.
unsafe impl Sync for Record {}

impl Record {
    fn guest(&self) -> &Words {
        // SAFETY: valid for the life of `_owner`, as promised where it was made.
        &unsafe { self.words.as_ref() }.guest
    }

    fn host(&self) -> &HostWords {
        // SAFETY: valid for the life of `_owner`, as promised where it was made.
        &unsafe { self.words.as_ref() }.host
    }

    /// Guest: replaces what the thread wants. One thread at a time does so: the caller keeps that promise.
    pub(crate) fn publish(&self, wanted: &Declaration) {
        let words = self.guest();
        let sequence = words.sequence.load(Ordering::Relaxed) & !1;
        words.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // [SC-2 whole or again] the odd number before the words; partner in Record::sample.
        half_fence("sched_publish_begin", Ordering::Release);
        words.tid.store(wanted.tid, Ordering::Relaxed);
        words.class.store(wanted.class, Ordering::Relaxed);
        // Two words show a model all there is to see, and more would take it hours.
        #[cfg(not(loom))]
        words.store_rest(wanted);
        // [SC-1 words before even] release: the words before the even number; partner in Record::sample.
        let order = ordering("sched_publish_end", Ordering::Release);
        words.sequence.store(sequence.wrapping_add(2), order);
    }

    /// Host: copies what the thread wants, with the number of this copy. `None`: it changed through all tries.
    pub(crate) fn sample(&self) -> Option<(u32, Declaration)> {
        let words = self.guest();
        for _ in 0..SAMPLE_TRIES {
            // [SC-1 words before even] acquire: the even number before the words; partner in Record::publish.
            let order = ordering("sched_sample_begin", Ordering::Acquire);
            let before = words.sequence.load(order);
            if before % 2 == 1 {
                std::hint::spin_loop();
                continue;
            }
            let copy = Declaration {
                tid: words.tid.load(Ordering::Relaxed),
                class: words.class.load(Ordering::Relaxed),
                ..Declaration::default()
            };
            #[cfg(not(loom))]
            let copy = words.load_rest(copy);
            // [SC-2 whole or again] the words before the second look at the number; partner in Record::publish.
            half_fence("sched_sample_end", Ordering::Acquire);
            if words.sequence.load(Ordering::Relaxed) == before {
                return Some((before, copy));
            }
        }
        None
    }

    /// Host: the number of the present copy, to see whether anything changed.
    #[cfg(not(loom))]
    pub(crate) fn sequence(&self) -> u32 {
        self.guest().sequence.load(Ordering::Relaxed)
    }

    /// Host: how often the thread went from idle to running and back; odd: it runs.
    #[cfg(not(loom))]
    pub(crate) fn turns(&self) -> u32 {
        self.guest().turns.load(Ordering::Relaxed)
    }

    /// Host: whether the thread says that it runs.
    #[cfg(not(loom))]
    pub(crate) fn is_running(&self) -> bool {
        self.turns() % 2 == 1
    }

    /// Host: tells the guest what is in force.
    #[cfg(not(loom))]
    pub(crate) fn tell(&self, verdict: Verdict) {
        let words = self.host();
        words.applied.store(verdict.applied, Ordering::Relaxed);
        words.boosted.store(verdict.boosted, Ordering::Relaxed);
        words.refusal.store(verdict.refusal, Ordering::Relaxed);
    }

    /// Host: tells the guest whether it is boosted.
    #[cfg(not(loom))]
    pub(crate) fn tell_boosted(&self, is_boosted: bool) {
        self.host().boosted.store(u32::from(is_boosted), Ordering::Relaxed);
    }

    #[cfg(not(loom))]
    fn verdict(&self) -> Verdict {
        let words = self.host();
        Verdict {
            applied: words.applied.load(Ordering::Relaxed),
            boosted: words.boosted.load(Ordering::Relaxed),
            refusal: words.refusal.load(Ordering::Relaxed),
        }
    }
}

/// A record on the heap, for models: what one thread publishes and another samples.
#[cfg(loom)]
#[derive(Clone)]
pub struct HeapRecord(Record);

#[cfg(loom)]
impl HeapRecord {
    /// An unused record.
    #[must_use]
    pub fn new() -> Self {
        let word = || AtomicU32::new(0);
        let long = || AtomicU64::new(0);
        let words = std::sync::Arc::new(RecordWords {
            guest: Words {
                sequence: word(),
                tid: word(),
                class: word(),
                flags: word(),
                nice: word(),
                rt_priority: word(),
                vcpu: word(),
                reserved: word(),
                runtime_ns: long(),
                deadline_ns: long(),
                period_ns: long(),
                affinity: std::array::from_fn(|_| long()),
                turns: word(),
            },
            host: HostWords { applied: word(), boosted: word(), refusal: word() },
        });
        Self(Record { words: NonNull::from(&*words), _owner: words })
    }

    /// See [`Record::publish`].
    pub fn publish(&self, wanted: &Declaration) {
        self.0.publish(wanted);
    }

    /// See [`Record::sample`].
    #[must_use]
    pub fn sample(&self) -> Option<(u32, Declaration)> {
        self.0.sample()
    }
}

#[cfg(not(loom))]
pub(crate) use self::mapped::HostPage;
#[cfg(not(loom))]
pub use self::mapped::{GuestPage, Publisher};

#[cfg(not(loom))]
mod mapped {
    use std::fmt;
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;
    use crate::error::{Error, Fault, Result};
    use crate::shm::region::Ram;
    use crate::shm::signal::{Listener, Notifier};

    /// A page in a guest's RAM, by either side.
    #[derive(Clone)]
    struct Page {
        base: NonNull<u8>,
        records: u32,
        ram: Arc<Ram>,
    }

    // SAFETY: everything behind `base` is atomics, mapped for as long as `ram` lives.
    unsafe impl Send for Page {}
    // SAFETY: as above.
    unsafe impl Sync for Page {}

    impl Page {
        fn at(ram: Arc<Ram>, offset: u32, records: u32) -> Result<Self> {
            if !(1..=SCHED_RECORDS_MAX).contains(&records) || !(offset as usize).is_multiple_of(LINE_PAIR) {
                return Err(Error::Usage(format!(
                    "a scheduling page has 1 to {SCHED_RECORDS_MAX} records and lies at a multiple of {LINE_PAIR}; \
                     got {records} at {offset:#x}"
                )));
            }
            let base = ram.at(offset, sched_page_bytes(records))?;
            Ok(Self { base, records, ram })
        }

        fn header(&self) -> &PageHeader {
            // SAFETY: in bounds and aligned, as checked by `at`; every word of it is an atomic.
            unsafe { self.base.cast().as_ref() }
        }

        fn kick(&self) -> SignalMemory {
            // SAFETY: the pair follows the header, in bounds and aligned; the words live for as long as `ram`.
            unsafe {
                let pair: &SignalPair = self.base.add(LINE_PAIR).cast().as_ref();
                SignalMemory::new(NonNull::from(&pair.kick), self.ram.clone())
            }
        }

        fn record(&self, index: u32) -> Option<Record> {
            if index >= self.records {
                return None;
            }
            let place = SCHED_HEADER_BYTES + index as usize * SCHED_RECORD_BYTES;
            // SAFETY: in bounds and aligned, as checked by `at` and just above.
            Some(Record { words: unsafe { self.base.add(place) }.cast(), _owner: self.ram.clone() })
        }
    }

    /// The guest's hold on its page; shared by its threads.
    pub struct GuestPage {
        page: Page,
        kick: Mutex<Notifier>,
    }

    impl GuestPage {
        /// Lays out a page; nothing of it was shown to the host yet.
        ///
        /// # Errors
        ///
        /// [`Error::Usage`]: number or place of the records. [`Error::Peer`]: it ends outside the RAM.
        pub fn create(ram: Arc<Ram>, offset: u32, records: u32) -> Result<Self> {
            let page = Page::at(ram, offset, records)?;
            // SAFETY: in bounds, and nobody else knows of this memory yet.
            unsafe { page.base.write_bytes(0, sched_page_bytes(records)) };
            let header = page.header();
            header.magic.store(SCHED_MAGIC, Ordering::Relaxed);
            header.version.store(SCHED_VERSION, Ordering::Relaxed);
            header.records.store(records, Ordering::Relaxed);
            // SAFETY: as in `Page::kick`.
            let pair: &SignalPair = unsafe { page.base.add(LINE_PAIR).cast().as_ref() };
            pair.magic.store(super::super::layout::SIGNAL_MAGIC, Ordering::Relaxed);
            pair.version.store(super::super::layout::SIGNAL_VERSION, Ordering::Relaxed);
            Ok(Self { kick: Mutex::new(Notifier::new(page.kick())), page })
        }

        /// The place of one thread. One of each: the caller keeps that promise.
        ///
        /// # Errors
        ///
        /// [`Error::Usage`]: the page has no such record.
        pub fn publisher(self: &Arc<Self>, index: u32) -> Result<Publisher> {
            let limit = self.page.records;
            let record = self
                .page
                .record(index)
                .ok_or_else(|| Error::Usage(format!("record {index} of a page with {limit} records")))?;
            Ok(Publisher { record, page: self.clone(), last: None, turns: 0 })
        }

        fn inject(&self) -> bool {
            self.kick.lock().unwrap_or_else(PoisonError::into_inner).inject()
        }
    }

    impl fmt::Debug for GuestPage {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("GuestPage").field("records", &self.page.records).finish_non_exhaustive()
        }
    }

    /// What one guest thread publishes of itself.
    pub struct Publisher {
        record: Record,
        page: Arc<GuestPage>,
        last: Option<Declaration>,
        turns: u32,
    }

    impl Publisher {
        /// Says what the thread wants. `true`: the host sleeps and must act; ring its doorbell now.
        ///
        /// What is said already is no news and costs nothing.
        #[must_use = "true means that nothing is applied until the doorbell is rung"]
        pub fn declare(&mut self, wanted: &Declaration) -> bool {
            if self.last.as_ref() == Some(wanted) {
                return false;
            }
            self.record.publish(wanted);
            self.last = Some(*wanted);
            self.page.inject()
        }

        /// Says that the thread has work. `true`: ring the doorbell now.
        #[must_use = "true means that nothing is applied until the doorbell is rung"]
        pub fn running(&mut self) -> bool {
            self.turn(true)
        }

        /// Says that the thread has nothing to do. `true`: ring the doorbell now.
        #[must_use = "true means that nothing is applied until the doorbell is rung"]
        pub fn idle(&mut self) -> bool {
            self.turn(false)
        }

        /// Cost: one store; one fence more where the host must know.
        fn turn(&mut self, is_running: bool) -> bool {
            if (self.turns % 2 == 1) == is_running {
                return false;
            }
            self.turns = self.turns.wrapping_add(1);
            self.record.guest().turns.store(self.turns, Ordering::Relaxed);
            let gives_way = self.last.is_some_and(|wanted| wanted.flags & FLAG_IDLE_POLLS != 0);
            let ends_boost = !is_running && self.record.host().boosted.load(Ordering::Relaxed) != 0;
            (gives_way || ends_boost) && self.page.inject()
        }

        /// What the host last said.
        #[must_use]
        pub fn verdict(&self) -> Verdict {
            self.record.verdict()
        }
    }

    impl fmt::Debug for Publisher {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Publisher").field("last", &self.last).finish_non_exhaustive()
        }
    }

    /// The host's hold on a guest's page.
    pub(crate) struct HostPage {
        page: Page,
        pub(crate) kick: Listener,
    }

    impl HostPage {
        /// Takes a page that a guest showed: `length` bytes at `offset` of its RAM.
        ///
        /// # Errors
        ///
        /// [`Error::Peer`]: the header is none, or says more records than there is room for.
        pub(crate) fn open(ram: Arc<Ram>, offset: u32, length: usize) -> Result<Self> {
            let bare = Page::at(ram.clone(), offset, 1)?;
            let header = bare.header();
            let (magic, version, records) = (
                header.magic.load(Ordering::Relaxed),
                header.version.load(Ordering::Relaxed),
                header.records.load(Ordering::Relaxed),
            );
            let expect = |what, found: u32, expected: u32| {
                if found == expected {
                    Ok(())
                } else {
                    Err(Fault::BadHeader { what, found: found.into(), expected: expected.into() })
                }
            };
            expect("magic of a scheduling page", magic, SCHED_MAGIC)?;
            expect("version of a scheduling page", version, SCHED_VERSION)?;
            if !(1..=SCHED_RECORDS_MAX).contains(&records) || sched_page_bytes(records) > length {
                let limit = (length.saturating_sub(SCHED_HEADER_BYTES) / SCHED_RECORD_BYTES) as u64;
                return Err(Fault::BadHeader {
                    what: "records of a scheduling page",
                    found: records.into(),
                    expected: limit,
                }
                .into());
            }
            let page = Page::at(ram, offset, records)?;
            Ok(Self { kick: Listener::new(page.kick()), page })
        }

        pub(crate) fn records(&self) -> Vec<Record> {
            (0..self.page.records).filter_map(|index| self.page.record(index)).collect()
        }
    }
}
