//! Which pages of a virtual machine we have written: the log by which its front end moves it, while it runs, to elsewhere.
//!
//! ```text
//!   we write a buffer or a ring ─▶ mark: a bit a page ─▶ front end takes the bits, clears them, sends those pages again
//! ```
//!
//! A page's bit is set when what was written there is visible, never before: a front end that takes the bit then, reads it.
//! Marks are wanted for two things, each by itself: buffers, and the rings of a queue ([`QueueLog`]).
//!
//! Who writes what: we set bits, the front end clears them, both atomically. It holds the file, and may cut it short at any
//! time; see [`super::guard`].
//! The danger: a log that is too short for what may be written. It is compared with the memory and with the ring before a queue
//! runs; what would lie behind its end all the same is not marked.
//! Source: vhost-user protocol, "Migration"; `VHOST_F_LOG_ALL`, `VHOST_VRING_F_LOG`.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::memory::{GuestMemory, RegionAt};
use super::queue::Checked;
use crate::error::{Error, Fault, Result};

/// What one bit stands for, as the protocol has it, whatever a machine's pages are.
const PAGE_BYTES: u64 = 4096;
const BITS: u64 = u8::BITS as u64;

/// A log that a front end handed over.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    /// Keeps it mapped.
    memory: GuestMemory,
    place: NonNull<u8>,
    bytes: u64,
}

// SAFETY: its place lies in the memory that it holds, and is accessed by atomics only.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps `bytes` bytes of a file, from `offset` on.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the file does not hold so many, or cannot be mapped without danger. [`Error::Machine`]: mapping fails.
    pub(crate) fn map(file: File, (offset, bytes): (u64, u64)) -> Result<Self> {
        let at = RegionAt { guest: 0, size: bytes, user: 0, offset };
        let memory = GuestMemory::map([(at, file)])?;
        let length = u32::try_from(bytes).unwrap_or(u32::MAX);
        let place = memory.structure(0, bytes).ok_or(Error::Peer(Fault::OutsideMemory { address: 0, length }))?;
        Ok(Self { memory, place, bytes })
    }

    /// Refuses a log that has no bit for the byte before `end`.
    ///
    /// # Errors
    ///
    /// It is too short.
    pub(crate) fn check(&self, end: u64) -> Checked<()> {
        let needed = end.div_ceil(PAGE_BYTES).div_ceil(BITS);
        if needed > self.bytes {
            return Err(Fault::BadSize { what: "bytes of a log of dirty pages", found: needed, limit: self.bytes });
        }
        Ok(())
    }

    /// Marks the pages of `length` bytes at a guest address, which were written.
    pub(crate) fn mark(&self, address: u64, length: u64) {
        if length == 0 {
            return;
        }
        let last = address.saturating_add(length - 1) / PAGE_BYTES;
        for page in address / PAGE_BYTES..=last {
            let Some(byte) = self.byte(page / BITS) else { return };
            // [VQ-6 written then dirty] release: what was written before the bit that says so; the front end takes the bit, then
            // reads the page. Never skipped where the bit is set: the front end may be about to clear it.
            byte.fetch_or(1 << (page % BITS), Ordering::Release);
        }
    }

    fn byte(&self, index: u64) -> Option<&AtomicU8> {
        // SAFETY: one of the bytes that were looked up as a whole.
        (index < self.bytes).then(|| unsafe { AtomicU8::from_ptr(self.place.as_ptr().add(index as usize)) })
    }

    /// It has been cut short since the last call, or before the first.
    pub(crate) fn has_ended(&self) -> bool {
        self.memory.has_ended()
    }
}

/// Where what is written into a queue's rings is marked.
#[derive(Clone, Debug)]
pub(crate) struct QueueLog {
    log: Arc<DirtyLog>,
    /// Guest address of the used ring, or, packed, of our wish: as the front end said it.
    used: u64,
    /// Guest address of a packed ring; 0 of a split queue.
    ring: u64,
}

impl QueueLog {
    /// A log for a queue's `bytes` bytes at `used`; `ring` are address and bytes of a packed one.
    ///
    /// # Errors
    ///
    /// It is too short.
    pub(crate) fn new(log: Arc<DirtyLog>, (used, bytes): (u64, u64), ring: Option<(u64, u64)>) -> Checked<Self> {
        let (ring, ring_bytes) = ring.unwrap_or((0, 0));
        log.check(used.saturating_add(bytes))?;
        log.check(ring.saturating_add(ring_bytes))?;
        Ok(Self { log, used, ring })
    }

    /// Marks bytes of the used ring or of our wish.
    pub(super) fn mark_used(&self, offset: usize, length: usize) {
        self.log.mark(self.used + offset as u64, length as u64);
    }

    /// Marks bytes of a packed ring.
    pub(super) fn mark_ring(&self, offset: usize, length: usize) {
        self.log.mark(self.ring + offset as u64, length as u64);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn log(bytes: u64, offset: u64) -> DirtyLog {
        let file = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, offset + bytes).unwrap();
        DirtyLog::map(File::from(file), (offset, bytes)).unwrap()
    }

    /// Takes the bits, as a front end does: the pages that were marked.
    fn pages(log: &DirtyLog) -> Vec<u64> {
        let take = |index| {
            // [VQ-6 written then dirty] acquire: the bit before the page is read; partner in mark.
            let bits = log.byte(index).unwrap().swap(0, Ordering::AcqRel);
            (0..BITS).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| index * BITS + bit)
        };
        (0..log.bytes).flat_map(take).collect()
    }

    #[test]
    fn pages_that_bytes_touch_are_marked_and_no_others() {
        let cases = [
            ((0, 1), vec![0]),
            ((0, 4096), vec![0]),
            ((4095, 2), vec![0, 1]),
            ((4096, 0), vec![]),
            ((7 * 4096 + 1, 8192), vec![7, 8, 9]),
            ((15 * 4096, 4096), vec![15]),
        ];
        for ((address, length), expected) in cases {
            let log = log(2, 100);

            log.mark(address, length);

            assert_eq!(expected, pages(&log), "{length} bytes at {address}");
        }
    }

    #[test]
    fn what_lies_behind_the_end_is_not_marked() {
        let log = log(2, 0);

        log.mark(15 * 4096, 5000);
        log.mark(u64::MAX - 10, u64::MAX);

        assert_eq!(vec![15], pages(&log));
    }

    #[test]
    fn log_has_a_bit_for_each_page_or_is_refused() {
        let log = Arc::new(log(2, 0));

        assert!(log.check(16 * 4096).is_ok());
        assert!(matches!(log.check(16 * 4096 + 1), Err(Fault::BadSize { found: 3, limit: 2, .. })));
        assert!(log.check(u64::MAX).is_err());
        assert!(QueueLog::new(log.clone(), (15 * 4096, 4096), None).is_ok());
        for (used, ring) in [((15 * 4096 + 1, 4096), None), ((u64::MAX, 100), None), ((0, 4), Some((60_000, 8192)))] {
            assert!(QueueLog::new(log.clone(), used, ring).is_err(), "{used:?} {ring:?}");
        }
    }
}
