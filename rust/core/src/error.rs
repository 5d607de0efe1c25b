//! What can go wrong, sorted by whose fault it is.
//!
//! [`Fault`]: the other side broke the contract of a shared structure. It names the rule and carries the values, and
//! [`Fault::reason`] is the label under which it is counted. [`Error`]: everything an operation can answer; the Python
//! side turns each variant into one class of `vbnet.errors`.

use std::io;

/// A peer broke a rule of a shared structure. The queue it happened on is quarantined; nothing else is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The producer moved its index further ahead than the ring has slots, or backwards.
    #[error("ring index: tail {tail} is more than {slots} slots ahead of head {head}")]
    TailOutOfRange {
        /// The index that was read.
        tail: u32,
        /// Our own index.
        head: u32,
        /// Size of the ring.
        slots: u32,
    },
    /// The consumer moved its index past what was published, or backwards.
    #[error("ring index: head {head} is outside what was published, {reaped}..={tail}")]
    HeadOutOfRange {
        /// The index that was read.
        head: u32,
        /// First slot not yet reaped.
        reaped: u32,
        /// First slot not yet published.
        tail: u32,
    },
    /// A descriptor points outside the memory the peer owns.
    #[error("descriptor: {offset:#x} + {length} ends outside the region of {limit} bytes")]
    OutsideRegion {
        /// Byte offset in the region.
        offset: u32,
        /// Length in bytes.
        length: u32,
        /// Size of the region.
        limit: u64,
    },
    /// A descriptor points into the page that describes the region, or into the ring itself.
    #[error("descriptor: {offset:#x} + {length} overlaps the control structures, {start:#x}..{end:#x}")]
    OverlapsControl {
        /// Byte offset in the region.
        offset: u32,
        /// Length in bytes.
        length: u32,
        /// First byte of the structure.
        start: u32,
        /// One past its last byte.
        end: u32,
    },
    /// A descriptor is empty.
    #[error("descriptor: length 0 at offset {offset:#x}")]
    ZeroLength {
        /// Byte offset in the region.
        offset: u32,
    },
    /// A descriptor is longer than any frame may be.
    #[error("descriptor: length {length} exceeds the longest frame, {limit}")]
    TooLong {
        /// Length in bytes.
        length: u32,
        /// Longest length accepted.
        limit: u32,
    },
    /// A frame is too short to carry an Ethernet header, or a posted buffer is too short to be of use.
    #[error("descriptor: length {length} is below the least accepted, {limit}")]
    TooShort {
        /// Length in bytes.
        length: u32,
        /// Shortest length accepted.
        limit: u32,
    },
    /// A descriptor carries a flag that was never negotiated.
    #[error("descriptor: flags {flags:#04x} were not negotiated")]
    UnknownFlags {
        /// The flags.
        flags: u8,
    },
    /// A completion names another buffer than the one that was posted in its slot, or more bytes than it holds.
    #[error(
        "completion: offset {offset:#x} length {length} does not fit the posted {posted_offset:#x} + {posted_length}"
    )]
    ForeignCompletion {
        /// Byte offset that came back.
        offset: u32,
        /// Length that came back.
        length: u32,
        /// Byte offset that was posted.
        posted_offset: u32,
        /// Length that was posted.
        posted_length: u32,
    },
    /// The head of a structure is not what was agreed.
    #[error("{what}: found {found:#x}, expected {expected:#x}")]
    BadHeader {
        /// Which word of which structure.
        what: &'static str,
        /// What was found.
        found: u64,
        /// What should be there.
        expected: u64,
    },
    /// A size or position inside a structure cannot be.
    #[error("{what}: {found} is not allowed; at most {limit}")]
    BadSize {
        /// Which word of which structure.
        what: &'static str,
        /// What was found.
        found: u64,
        /// The limit that applies.
        limit: u64,
    },
    /// The memory was handed over without the seals that keep it from being cut short.
    #[error("memory region: seals {found:#x} lack some of {expected:#x}; the sender must seal SHRINK, GROW and SEAL")]
    NotSealed {
        /// Seals found.
        found: u32,
        /// Seals demanded.
        expected: u32,
    },
    /// The file descriptor is not a memfd on tmpfs.
    #[error("memory region: the descriptor is not a sealable memfd ({detail})")]
    NotMemfd {
        /// What it is instead.
        detail: &'static str,
    },
    /// A doorbell could not be rung without blocking: the peer filled it up.
    #[error("doorbell: the peer blocked it for more than {limit_ms} ms")]
    DoorbellBlocked {
        /// The limit in milliseconds.
        limit_ms: u32,
    },
    /// A queue names a descriptor that is not there.
    #[error("queue: descriptor {index} is not one of {limit}")]
    IndexOutOfRange {
        /// The index that was read.
        index: u32,
        /// Descriptors of the table.
        limit: u32,
    },
    /// A buffer or ring of a queue is not, or not whole, in the memory that its driver handed over.
    #[error("queue: {address:#x} + {length} is not in the memory that was handed over")]
    OutsideMemory {
        /// Its address, as it was given.
        address: u64,
        /// Its bytes.
        length: u32,
    },
    /// A chain of descriptors has more links than a chain may have: perhaps it has no end.
    #[error("a chain has more than {limit} descriptors")]
    ChainTooLong {
        /// Most descriptors of a chain.
        limit: u32,
    },
    /// A buffer to be read where one to be written belongs, or the other way round.
    #[error("virtqueue: descriptor flags {flags:#06x} are of the other direction")]
    WrongDirection {
        /// The flags.
        flags: u16,
    },
    /// An indirect descriptor that is not allowed, or whose table cannot be.
    #[error("virtqueue: indirect descriptor of {length} bytes with flags {flags:#06x}")]
    BadIndirect {
        /// Bytes of its table.
        length: u32,
        /// Its flags.
        flags: u16,
    },
    /// Memory that the front end handed over has been cut short.
    #[error("memory region: it was cut short under us, or could not be had")]
    MemoryGone,
    /// A frame in several pieces, of which not all were published.
    #[error("descriptor: a frame goes on behind its piece {pieces}, but nothing more was published")]
    ChainUnfinished {
        /// Pieces that are there.
        pieces: u32,
    },
}

impl Fault {
    /// Every reason, in the order of the counters that count them.
    pub const REASONS: [&'static str; 21] = [
        "tail_out_of_range",
        "head_out_of_range",
        "outside_region",
        "overlaps_control",
        "zero_length",
        "too_long",
        "too_short",
        "unknown_flags",
        "foreign_completion",
        "bad_header",
        "bad_size",
        "not_sealed",
        "not_memfd",
        "doorbell_blocked",
        "index_out_of_range",
        "outside_memory",
        "chain_too_long",
        "wrong_direction",
        "bad_indirect",
        "memory_gone",
        "chain_unfinished",
    ];

    /// Position of this fault in [`Fault::REASONS`].
    #[must_use]
    pub const fn reason_index(&self) -> usize {
        match self {
            Self::TailOutOfRange { .. } => 0,
            Self::HeadOutOfRange { .. } => 1,
            Self::OutsideRegion { .. } => 2,
            Self::OverlapsControl { .. } => 3,
            Self::ZeroLength { .. } => 4,
            Self::TooLong { .. } => 5,
            Self::TooShort { .. } => 6,
            Self::UnknownFlags { .. } => 7,
            Self::ForeignCompletion { .. } => 8,
            Self::BadHeader { .. } => 9,
            Self::BadSize { .. } => 10,
            Self::NotSealed { .. } => 11,
            Self::NotMemfd { .. } => 12,
            Self::DoorbellBlocked { .. } => 13,
            Self::IndexOutOfRange { .. } => 14,
            Self::OutsideMemory { .. } => 15,
            Self::ChainTooLong { .. } => 16,
            Self::WrongDirection { .. } => 17,
            Self::BadIndirect { .. } => 18,
            Self::MemoryGone => 19,
            Self::ChainUnfinished { .. } => 20,
        }
    }

    /// The label under which this fault is counted.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        Self::REASONS[self.reason_index()]
    }
}

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The caller named something that is not there.
    #[error("{0}")]
    NotFound(String),
    /// The caller wanted to make what exists already.
    #[error("{0}")]
    Exists(String),
    /// The caller closed this object before.
    #[error("{0} is closed")]
    Closed(&'static str),
    /// Somebody of the caller's own is using it.
    #[error("{0}")]
    Busy(String),
    /// The other side has ended.
    #[error("the other side of {0} is gone")]
    PeerGone(&'static str),
    /// The other side broke the contract.
    #[error(transparent)]
    Peer(#[from] Fault),
    /// The machine refused.
    #[error("{doing}: {source}")]
    Machine {
        /// What was being attempted.
        doing: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl Error {
    /// Wraps an operating-system error with what was being attempted.
    pub fn machine(doing: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Machine { doing, source: source.into() }
    }
}

/// What operations of this crate answer.
pub type Result<T> = std::result::Result<T, Error>;
