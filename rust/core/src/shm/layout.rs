//! Every byte that two processes agree on. Little-endian, `repr(C)`, fixed sizes, magic and version in front.
//!
//! Whoever changes a number here changes `docs/wire/` with it (a test compares the two) and raises the version.
//! Writers never share a cache line with other writers, nor with the neighbour a prefetcher drags along: hence 128.

use crate::sync::{AtomicU32, AtomicU64};

/// Distance that keeps two words from disturbing each other: a cache line and its prefetched neighbour.
pub const LINE_PAIR: usize = 128;
/// A cache line.
pub const CACHE_LINE: usize = 64;

/// First eight bytes of a guest's RAM: `VBNETRAM`.
pub const RAM_MAGIC: u64 = u64::from_le_bytes(*b"VBNETRAM");
/// Version of [`RamHeader`].
pub const RAM_VERSION: u32 = 1;
/// Bytes at the start of RAM that belong to the header.
pub const RAM_HEADER_BYTES: u32 = 4096;

/// First four bytes of a ring: `vRNG`.
pub const RING_MAGIC: u32 = u32::from_le_bytes(*b"vRNG");
/// Version of [`RingHeader`] and of the descriptor word.
pub const RING_VERSION: u32 = 2;
/// Bytes in front of a ring's first slot.
pub const RING_HEADER_BYTES: usize = 0x400;
/// Least number of slots.
pub const RING_SLOTS_MIN: u32 = 1;
/// Most slots.
pub const RING_SLOTS_MAX: u32 = 1 << 15;

/// First four bytes of a signal pair: `vSIG`.
pub const SIGNAL_MAGIC: u32 = u32::from_le_bytes(*b"vSIG");
/// Version of [`SignalPair`].
pub const SIGNAL_VERSION: u32 = 2;
/// Bytes of a signal pair.
pub const SIGNAL_PAIR_BYTES: usize = 0x280;

/// First four bytes of a fastcall slot: `vFCL`.
pub const FASTCALL_MAGIC: u32 = u32::from_le_bytes(*b"vFCL");
/// Version of [`FastcallSlot`].
pub const FASTCALL_VERSION: u32 = 1;
/// Bytes of a fastcall slot.
pub const FASTCALL_SLOT_BYTES: usize = 0x600;
/// Where the signal of a fastcall slot begins.
pub const FASTCALL_SIGNAL_OFFSET: usize = 0x380;
/// Most bytes that go into a request or an answer of a fastcall.
pub const FASTCALL_DATA_BYTES: usize = 368;
/// Words that hold them. A model checks every access, so it has as few as show the same.
pub(crate) const FASTCALL_DATA_WORDS: usize = if cfg!(loom) { 2 } else { FASTCALL_DATA_BYTES / 8 };
/// First four bytes of a timer page: `vTIM`.
pub const TIMER_MAGIC: u32 = u32::from_le_bytes(*b"vTIM");
/// Version of [`TimerHeader`] and of what follows it.
pub const TIMER_VERSION: u32 = 1;
/// Bytes in front of a timer page's first bitmap.
pub const TIMER_HEADER_BYTES: usize = 0x280;
/// Least number of timers on a page: a word of a bitmap.
pub const TIMER_SLOTS_MIN: u32 = 64;
/// Most timers on a page.
pub const TIMER_SLOTS_MAX: u32 = 1 << 17;
/// Bytes of what a guest says about one timer.
pub const TIMER_SETTING_BYTES: usize = 32;
/// How urgent a timer can be: 0 to 7, 7 the most.
pub const TIMER_PRIORITIES: usize = 8;

/// First four bytes of a state page: `vSTA`.
pub const STATE_MAGIC: u32 = u32::from_le_bytes(*b"vSTA");
/// Version of [`StateHeader`] and of the records behind it.
pub const STATE_VERSION: u32 = 1;
/// Bytes in front of a page's first record.
pub const STATE_HEADER_BYTES: usize = 0x80;
/// Most records of a page.
pub const STATE_RECORDS_MAX: u32 = 1 << 12;
/// Most bytes of a record's values.
pub const STATE_VALUES_MAX: u32 = 1 << 12;

/// First four bytes of a roll: `vROL`.
pub const ROLL_MAGIC: u32 = u32::from_le_bytes(*b"vROL");
/// Version of [`RollHeader`] and of the words behind it.
pub const ROLL_VERSION: u32 = 1;
/// Bytes in front of a roll's first word.
pub const ROLL_HEADER_BYTES: usize = 0x80;

/// The first page of a guest's RAM. Written by the guest before the memory is sealed and handed over.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RamHeader {
    /// [`RAM_MAGIC`].
    pub magic: u64,
    /// [`RAM_VERSION`].
    pub version: u32,
    /// [`RAM_HEADER_BYTES`].
    pub header_bytes: u32,
    /// Bytes of the whole region, header included; equals the file's size.
    pub size: u64,
}

/// One word alone on its pair of cache lines.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct PaddedU32(pub(crate) AtomicU32);

/// The words the receiving side of a signal writes.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct ReceiverWords {
    /// 0 = awake or masked, do not ring; else the number of this arming, ring once for it.
    pub(crate) enabled: AtomicU32,
    /// How long the last ring took to be heard: an answer to `rung_at`.
    pub(crate) heard: AtomicU64,
}

/// The words the sending side of a signal writes.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct SenderWords {
    /// Counted up, modulo 2^32, whenever something happened.
    pub(crate) dirty: AtomicU32,
    /// The arming for which the doorbell was rung last; 0 = never.
    pub(crate) pending: AtomicU32,
    /// When it was rung: a stamp of that arming.
    pub(crate) rung_at: AtomicU64,
}

/// One direction of a signal.
#[repr(C)]
#[derive(Debug)]
pub struct SignalWords {
    /// Written by the receiver.
    pub(crate) receiver: ReceiverWords,
    /// Written by the sender.
    pub(crate) sender: SenderWords,
}

impl SignalWords {
    pub(crate) fn new() -> Self {
        Self {
            receiver: ReceiverWords { enabled: AtomicU32::new(0), heard: AtomicU64::new(0) },
            sender: SenderWords { dirty: AtomicU32::new(0), pending: AtomicU32::new(0), rung_at: AtomicU64::new(0) },
        }
    }
}

/// Both directions of a shm-signal. `kick`: guest to host. `call`: host to guest.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct SignalPair {
    pub(crate) magic: AtomicU32,
    pub(crate) version: AtomicU32,
    pub(crate) kick: SignalWords,
    pub(crate) call: SignalWords,
}

impl SignalPair {
    pub(crate) fn new() -> Self {
        Self {
            magic: AtomicU32::new(SIGNAL_MAGIC),
            version: AtomicU32::new(SIGNAL_VERSION),
            kick: SignalWords::new(),
            call: SignalWords::new(),
        }
    }
}

/// What a guest asks in a fastcall. The first 48 bytes of data share a cache line with everything else.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct FastcallRequest {
    /// Calls begun so far, modulo 2^32; stored last.
    pub(crate) sequence: AtomicU32,
    /// Upper half of the handle of the device that is called.
    pub(crate) device: AtomicU32,
    /// Function of the device's ABI.
    pub(crate) function: AtomicU32,
    /// Bytes of data, at most [`FASTCALL_DATA_BYTES`].
    pub(crate) length: AtomicU32,
    pub(crate) data: [AtomicU64; FASTCALL_DATA_WORDS],
}

/// What the host answers. The same shape, written by the other side.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct FastcallAnswer {
    /// Calls answered so far, modulo 2^32; stored last.
    pub(crate) sequence: AtomicU32,
    /// 0 = done; else why not.
    pub(crate) status: AtomicU32,
    /// Nanoseconds the caller spends on top, as a modelled leave of the guest would cost it.
    pub(crate) trap_ns: AtomicU32,
    /// Bytes of data, at most [`FASTCALL_DATA_BYTES`].
    pub(crate) length: AtomicU32,
    pub(crate) data: [AtomicU64; FASTCALL_DATA_WORDS],
}

/// Where one thread of a guest calls devices of the host, one call at a time.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct FastcallSlot {
    pub(crate) magic: AtomicU32,
    pub(crate) version: AtomicU32,
    /// Written by the guest.
    pub(crate) request: FastcallRequest,
    /// Written by the host.
    pub(crate) answer: FastcallAnswer,
    pub(crate) signal: SignalPair,
}

impl FastcallSlot {
    pub(crate) fn new() -> Self {
        let data = || std::array::from_fn(|_| AtomicU64::new(0));
        let zero = || AtomicU32::new(0);
        Self {
            magic: AtomicU32::new(FASTCALL_MAGIC),
            version: AtomicU32::new(FASTCALL_VERSION),
            request: FastcallRequest {
                sequence: zero(),
                device: zero(),
                function: zero(),
                length: zero(),
                data: data(),
            },
            answer: FastcallAnswer { sequence: zero(), status: zero(), trap_ns: zero(), length: zero(), data: data() },
            signal: SignalPair::new(),
        }
    }
}

/// The words the producer of a ring writes.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct ProducerWords {
    /// Slots published, counted up for ever, modulo 2^32.
    pub(crate) tail: AtomicU32,
    /// When a slot was published: a stamp of its index.
    pub(crate) published_at: AtomicU64,
    /// How long a returned slot lay there: an answer to `returned_at`.
    pub(crate) reaped_after: AtomicU64,
    /// What the last slot published says, once more; 0: look there.
    pub(crate) newest: AtomicU64,
}

/// The words the consumer of a ring writes.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct ConsumerWords {
    /// Slots returned, counted up for ever, modulo 2^32.
    pub(crate) head: AtomicU32,
    /// When a slot was returned: a stamp of its index.
    pub(crate) returned_at: AtomicU64,
    /// What the last slot returned says, once more; 0: look there.
    pub(crate) newest: AtomicU64,
}

/// What stands in front of a ring's slots.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct RingHeader {
    pub(crate) magic: AtomicU32,
    pub(crate) version: AtomicU32,
    /// Number of slots, a power of two. Written once by the producer, copied once by the consumer.
    pub(crate) slots: AtomicU32,
    pub(crate) producer: ProducerWords,
    pub(crate) consumer: ConsumerWords,
    pub(crate) signal: SignalPair,
}

impl RingHeader {
    pub(crate) fn new(slots: u32) -> Self {
        Self {
            magic: AtomicU32::new(RING_MAGIC),
            version: AtomicU32::new(RING_VERSION),
            slots: AtomicU32::new(slots),
            producer: ProducerWords {
                tail: AtomicU32::new(0),
                published_at: AtomicU64::new(0),
                reaped_after: AtomicU64::new(0),
                newest: AtomicU64::new(0),
            },
            consumer: ConsumerWords {
                head: AtomicU32::new(0),
                returned_at: AtomicU64::new(0),
                newest: AtomicU64::new(0),
            },
            signal: SignalPair::new(),
        }
    }
}

/// One slot of a ring: a descriptor in one word, so that it can never be read half.
pub(crate) type Slot = AtomicU64;

/// What the host says about its sleep, on a timer page.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct TimerSleepWords {
    /// Deadline the host will wake for by itself, in nanoseconds of CLOCK_MONOTONIC; 0 while it is awake.
    pub(crate) waiting_for_ns: AtomicU64,
    /// Counted up with every sleep.
    pub(crate) sleeps: AtomicU64,
}

/// A word that both sides change, alone on its lines.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct PaddedU64(pub(crate) AtomicU64);

/// The uppermost words of the bitmaps of expired timers, one a priority.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct TimerExpiredTops(pub(crate) [AtomicU64; TIMER_PRIORITIES]);

/// What stands in front of a timer page's bitmaps.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct TimerHeader {
    pub(crate) magic: AtomicU32,
    pub(crate) version: AtomicU32,
    /// Number of timers, a power of two. Written once by the guest, copied once by the host.
    pub(crate) slots: AtomicU32,
    pub(crate) sleep: TimerSleepWords,
    /// Written by the guest: how long before a deadline it wants to be woken, in nanoseconds.
    pub(crate) lead_ns: PaddedU64,
    pub(crate) changed_top: PaddedU64,
    pub(crate) expired_tops: TimerExpiredTops,
}

impl TimerHeader {
    pub(crate) fn new(slots: u32) -> Self {
        Self {
            magic: AtomicU32::new(TIMER_MAGIC),
            version: AtomicU32::new(TIMER_VERSION),
            slots: AtomicU32::new(slots),
            sleep: TimerSleepWords { waiting_for_ns: AtomicU64::new(0), sleeps: AtomicU64::new(0) },
            lead_ns: PaddedU64(AtomicU64::new(0)),
            changed_top: PaddedU64(AtomicU64::new(0)),
            expired_tops: TimerExpiredTops([(); TIMER_PRIORITIES].map(|()| AtomicU64::new(0))),
        }
    }
}

/// What the guest says about one timer.
#[repr(C, align(32))]
#[derive(Debug)]
pub struct TimerSetting {
    /// When it expires, in nanoseconds of CLOCK_MONOTONIC.
    pub(crate) deadline_ns: AtomicU64,
    /// How long after that again and again; 0 = once.
    pub(crate) period_ns: AtomicU64,
    /// Generation, priority, whether it is armed or being changed.
    pub(crate) control: AtomicU64,
}

impl TimerSetting {
    pub(crate) fn new() -> Self {
        Self { deadline_ns: AtomicU64::new(0), period_ns: AtomicU64::new(0), control: AtomicU64::new(0) }
    }
}

/// Bytes a ring of `slots` slots occupies.
#[must_use]
pub const fn ring_bytes(slots: u32) -> usize {
    RING_HEADER_BYTES + 8 * slots as usize
}

/// What stands in front of a state page's records. Written once, by whoever lays the page out.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct StateHeader {
    pub(crate) magic: AtomicU32,
    pub(crate) version: AtomicU32,
    /// Number of records.
    pub(crate) records: AtomicU32,
    /// Bytes of the values of one record, a multiple of 8.
    pub(crate) value_bytes: AtomicU32,
    /// Says what the values mean: both sides must have the same number.
    pub(crate) schema: AtomicU64,
}

/// What stands in front of a roll's words. Written once, by the host.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct RollHeader {
    pub(crate) magic: AtomicU32,
    pub(crate) version: AtomicU32,
    /// Number of words.
    pub(crate) records: AtomicU32,
}

/// Bytes from one record of a state page to the next: the count, and the moment and values of two slots.
#[must_use]
pub const fn state_record_bytes(value_bytes: u32) -> usize {
    (8 + 2 * (8 + value_bytes as usize)).next_multiple_of(LINE_PAIR)
}

/// Bytes of a roll of `records` words.
#[must_use]
pub const fn roll_bytes(records: u32) -> usize {
    ROLL_HEADER_BYTES + 8 * records as usize
}

#[cfg(not(loom))]
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<StateHeader>() == STATE_HEADER_BYTES);
    assert!(offset_of!(StateHeader, value_bytes) == 12);
    assert!(offset_of!(StateHeader, schema) == 16);
    assert!(size_of::<RollHeader>() == ROLL_HEADER_BYTES);
    assert!(offset_of!(RollHeader, records) == 8);
    assert!(size_of::<RamHeader>() == 24);
    assert!(offset_of!(RamHeader, version) == 8);
    assert!(offset_of!(RamHeader, header_bytes) == 12);
    assert!(offset_of!(RamHeader, size) == 16);
    assert!(size_of::<SignalPair>() == SIGNAL_PAIR_BYTES);
    assert!(offset_of!(SignalPair, kick) == 0x80);
    assert!(offset_of!(SignalPair, call) == 0x180);
    assert!(size_of::<SignalWords>() == 0x100);
    assert!(offset_of!(SignalWords, sender) == 0x80);
    assert!(offset_of!(ReceiverWords, heard) == 8);
    assert!(offset_of!(SenderWords, pending) == 4);
    assert!(offset_of!(SenderWords, rung_at) == 8);
    assert!(size_of::<RingHeader>() == RING_HEADER_BYTES);
    assert!(offset_of!(RingHeader, slots) == 8);
    assert!(offset_of!(RingHeader, producer) == 0x80);
    assert!(offset_of!(ProducerWords, published_at) == 8);
    assert!(offset_of!(ProducerWords, reaped_after) == 16);
    assert!(offset_of!(ProducerWords, newest) == 24);
    assert!(offset_of!(RingHeader, consumer) == 0x100);
    assert!(offset_of!(ConsumerWords, returned_at) == 8);
    assert!(offset_of!(ConsumerWords, newest) == 16);
    assert!(offset_of!(RingHeader, signal) == 0x180);
    assert!(size_of::<FastcallRequest>() == 16 + FASTCALL_DATA_BYTES);
    assert!(size_of::<FastcallAnswer>() == 16 + FASTCALL_DATA_BYTES);
    assert!(size_of::<FastcallSlot>() == FASTCALL_SLOT_BYTES);
    assert!(offset_of!(FastcallSlot, request) == 0x80);
    assert!(offset_of!(FastcallRequest, device) == 4);
    assert!(offset_of!(FastcallRequest, function) == 8);
    assert!(offset_of!(FastcallRequest, length) == 12);
    assert!(offset_of!(FastcallRequest, data) == 16);
    assert!(offset_of!(FastcallSlot, answer) == 0x200);
    assert!(offset_of!(FastcallAnswer, status) == 4);
    assert!(offset_of!(FastcallAnswer, trap_ns) == 8);
    assert!(offset_of!(FastcallAnswer, length) == 12);
    assert!(offset_of!(FastcallAnswer, data) == 16);
    assert!(offset_of!(FastcallSlot, signal) == FASTCALL_SIGNAL_OFFSET);
    assert!(size_of::<TimerHeader>() == TIMER_HEADER_BYTES);
    assert!(offset_of!(TimerHeader, slots) == 8);
    assert!(offset_of!(TimerHeader, sleep) == 0x80);
    assert!(offset_of!(TimerHeader, lead_ns) == 0x100);
    assert!(offset_of!(TimerHeader, changed_top) == 0x180);
    assert!(offset_of!(TimerHeader, expired_tops) == 0x200);
    assert!(size_of::<TimerSetting>() == TIMER_SETTING_BYTES);
    assert!(offset_of!(TimerSetting, period_ns) == 8);
    assert!(offset_of!(TimerSetting, control) == 16);
};

/// `(structure, field, byte offset, byte size)` for every word of every shared structure: what `docs/wire/` must say.
#[cfg(not(loom))]
#[must_use]
pub fn wire_table() -> Vec<(&'static str, &'static str, usize, usize)> {
    let ring_signal = 0x180;
    let mut rows = vec![
        ("ram", "magic", 0, 8),
        ("ram", "version", 8, 4),
        ("ram", "header_bytes", 12, 4),
        ("ram", "size", 16, 8),
        ("ring", "magic", 0, 4),
        ("ring", "version", 4, 4),
        ("ring", "slots", 8, 4),
        ("ring", "tail", 0x80, 4),
        ("ring", "published_at", 0x88, 8),
        ("ring", "reaped_after", 0x90, 8),
        ("ring", "published_newest", 0x98, 8),
        ("ring", "head", 0x100, 4),
        ("ring", "returned_at", 0x108, 8),
        ("ring", "returned_newest", 0x110, 8),
        ("ring", "signal", ring_signal, SIGNAL_PAIR_BYTES),
        ("ring", "descriptors", RING_HEADER_BYTES, 8),
    ];
    rows.extend([
        ("signal", "magic", 0, 4),
        ("signal", "version", 4, 4),
        ("signal", "kick.enabled", 0x80, 4),
        ("signal", "kick.heard", 0x88, 8),
        ("signal", "kick.dirty", 0x100, 4),
        ("signal", "kick.pending", 0x104, 4),
        ("signal", "kick.rung_at", 0x108, 8),
        ("signal", "call.enabled", 0x180, 4),
        ("signal", "call.heard", 0x188, 8),
        ("signal", "call.dirty", 0x200, 4),
        ("signal", "call.pending", 0x204, 4),
        ("signal", "call.rung_at", 0x208, 8),
        ("state", "magic", 0, 4),
        ("state", "version", 4, 4),
        ("state", "records", 8, 4),
        ("state", "value_bytes", 12, 4),
        ("state", "schema", 16, 8),
        ("state", "first_record", STATE_HEADER_BYTES, LINE_PAIR),
        ("record", "count", 0, 8),
        ("record", "slot_0.moment", 8, 8),
        ("record", "slot_0.values", 16, 8),
        ("record", "slot_1.moment", 24, 8),
        ("record", "slot_1.values", 32, 8),
        ("roll", "magic", 0, 4),
        ("roll", "version", 4, 4),
        ("roll", "records", 8, 4),
        ("roll", "words", ROLL_HEADER_BYTES, 8),
    ]);
    rows.extend(super::intc::WIRE_ROWS);
    rows.extend([
        ("fastcall", "magic", 0, 4),
        ("fastcall", "version", 4, 4),
        ("fastcall", "request.sequence", 0x80, 4),
        ("fastcall", "request.device", 0x84, 4),
        ("fastcall", "request.function", 0x88, 4),
        ("fastcall", "request.length", 0x8c, 4),
        ("fastcall", "request.data", 0x90, FASTCALL_DATA_BYTES),
        ("fastcall", "answer.sequence", 0x200, 4),
        ("fastcall", "answer.status", 0x204, 4),
        ("fastcall", "answer.trap_ns", 0x208, 4),
        ("fastcall", "answer.length", 0x20c, 4),
        ("fastcall", "answer.data", 0x210, FASTCALL_DATA_BYTES),
        ("fastcall", "signal", FASTCALL_SIGNAL_OFFSET, SIGNAL_PAIR_BYTES),
        ("timer", "magic", 0, 4),
        ("timer", "version", 4, 4),
        ("timer", "slots", 8, 4),
        ("timer", "waiting_for_ns", 0x80, 8),
        ("timer", "sleeps", 0x88, 8),
        ("timer", "lead_ns", 0x100, 8),
        ("timer", "changed_top", 0x180, 8),
        ("timer", "expired_tops", 0x200, 64),
        ("timer_setting", "deadline_ns", 0, 8),
        ("timer_setting", "period_ns", 8, 8),
        ("timer_setting", "control", 16, 8),
    ]);
    rows.extend(super::sched::WIRE_ROWS);
    rows.extend(super::capture::WIRE_ROWS);
    rows
}
