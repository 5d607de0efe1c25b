//! What a worker has in hand: a few dozen frames between being looked at and being copied.
//!
//! Forwarding runs in passes over a batch, so that the cache misses of many frames overlap: descriptors are read and
//! payloads prefetched, then first lines are copied and destinations found, then buffers are claimed and prefetched for
//! writing, then the rest is copied. Nothing here is allocated after the worker has started.

use std::ptr::{self, NonNull};

use crate::net::frame::FrameStart;
use crate::net::offload::Request;
use crate::net::switch::Verdict;
use crate::shm::line;

/// Frames of one batch.
pub(crate) const BATCH: usize = 64;
/// Room for frames that are gathered; at least one of the longest, with a header.
const GATHER_BYTES: usize = 256 << 10;

/// One frame in hand. `source` is valid from being loaded until its slot is returned, `target` from being claimed until
/// its buffer is; both within one turn of one thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Where the sender has it.
    pub source: *const u8,
    /// Where the receiver wants it; null when nobody does.
    pub target: *mut u8,
    /// Its bytes; 0 = longer than the sender's MTU allows, drop it.
    pub length: u32,
}

impl Piece {
    const EMPTY: Self = Self { source: ptr::null(), target: ptr::null_mut(), length: 0 };
}

/// The frames of one batch, first lines apart from the rest so that each pass touches only what it needs.
#[derive(Debug)]
pub(crate) struct Batch {
    pub starts: [FrameStart; BATCH],
    pub pieces: [Piece; BATCH],
    pub verdicts: [Verdict; BATCH],
    /// What is to be done with each frame; of no meaning without `has_requests`.
    pub requests: [Request; BATCH],
    /// Some frame of the batch asks for something. Such a frame lies in private memory, whole.
    pub has_requests: bool,
    /// Where scattered frames, and those that ask for something, are gathered for as long as they are in hand.
    pub gathered: Box<[u8]>,
    /// Why frames were dropped ([`crate::port::PortCounter::reason`]); only kept up to date while somebody looks.
    pub reasons: [u8; BATCH],
}

impl Batch {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self {
            starts: [FrameStart::default(); BATCH],
            pieces: [Piece::EMPTY; BATCH],
            verdicts: [Verdict::Flood; BATCH],
            requests: [Request::NOTHING; BATCH],
            has_requests: false,
            gathered: vec![0; GATHER_BYTES].into_boxed_slice(),
            reasons: [0; BATCH],
        })
    }
}

/// Asks for a cache line that will be read soon. Any address is allowed.
#[inline]
pub(crate) fn prefetch_read(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks for a cache line that will be written soon. Any address is allowed.
#[inline]
pub(crate) fn prefetch_write(place: *const u8) {
    if let Some(place) = NonNull::new(place.cast_mut()) {
        line::fetch_to_write(place, 1);
    }
}
