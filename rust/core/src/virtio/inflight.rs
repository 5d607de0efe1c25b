//! Where queues are, in memory that outlives this process: vhost-user's region for chains in flight.
//!
//! ```text
//!   region:  queue 0 │ queue 1 │ …      each: head (version, size, position), an entry a descriptor
//!   batch:   used := behind it ─▶ its first descriptor shown (it is done) ─▶ old := used
//!   resume:  used = old: there      used ≠ old: is the first descriptor at `old` still available? there, else at `used`
//! ```
//!
//! A chain is taken when it is completed, and not before: one that was only looked at is still available. So none is ever in
//! flight, entries stay empty, and only positions are kept. Of a split queue its used ring has it anyway; of a packed one
//! nothing else is sure to tell after a host was killed ([`super::whereabouts`] finds it in most rings).
//!
//! Who writes what: we, while a queue runs; the front end holds the file, and may write or cut it at any time.
//! The danger: what is in it is checked like everything of a front end's, and a region in which another back end has left
//! chains in flight is refused, for we know nothing of what it did with them.
//! Source: vhost-user protocol, "Inflight I/O tracking".

use std::fmt;
use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::memory::{GuestMemory, RegionAt};
use super::packed::Place;
use super::queue::Checked;
use crate::error::{Error, Fault, Result};

/// Each queue's part begins at a multiple of this.
const ALIGN: u64 = 64;
const VERSION: u16 = 1;
/// Offsets in the head of a part, and its bytes; those of one entry, which begins with its flag.
const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;
const SPLIT_USED_AT: usize = 14;
const SPLIT_HEAD: u64 = 16;
const SPLIT_ENTRY: u64 = 16;
/// `used_idx`, `old_used_idx`, and a byte each for their wrap counters.
const PACKED_USED_AT: usize = 16;
const PACKED_HEAD: u64 = 32;
const PACKED_ENTRY: u64 = 32;

const fn head_and_entry(is_packed: bool) -> (u64, u64) {
    if is_packed { (PACKED_HEAD, PACKED_ENTRY) } else { (SPLIT_HEAD, SPLIT_ENTRY) }
}

fn part_bytes(size: u16, is_packed: bool) -> u64 {
    let (head, entry) = head_and_entry(is_packed);
    (head + entry * u64::from(size)).next_multiple_of(ALIGN)
}

/// Bytes of a region for `queues` queues of `size` descriptors.
pub(crate) fn region_bytes(queues: u16, size: u16, is_packed: bool) -> u64 {
    u64::from(queues) * part_bytes(size, is_packed)
}

/// A new region, empty, that nobody can cut short.
///
/// # Errors
///
/// [`Error::Machine`]: no memory or descriptor is left.
pub(crate) fn create(bytes: u64) -> Result<File> {
    let made = |errno| Error::machine("make a region for chains in flight", errno);
    let file = memfd_create("vbnet-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(made)?;
    ftruncate(&file, bytes).map_err(made)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(made)?;
    Ok(File::from(file))
}

/// A region that a front end handed over.
#[derive(Debug)]
pub(crate) struct Region {
    memory: Arc<GuestMemory>,
    queues: u16,
    size: u16,
}

impl Region {
    /// Maps `bytes` bytes of a file, from `offset` on, said to be for so many queues of so many descriptors.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: they do not hold so many, or the file cannot be mapped without danger. [`Error::Machine`]: mapping fails.
    pub(crate) fn map(
        file: File,
        (offset, bytes): (u64, u64),
        (queues, size): (u16, u16),
        is_packed: bool,
    ) -> Result<Self> {
        let needed = region_bytes(queues, size, is_packed);
        if needed > bytes {
            return Err(Fault::BadSize { what: "region for chains in flight", found: needed, limit: bytes }.into());
        }
        let at = RegionAt { guest: 0, size: bytes, user: 0, offset };
        Ok(Self { memory: Arc::new(GuestMemory::map([(at, file)])?), queues, size })
    }

    /// The part of one queue; none if the region is for fewer.
    ///
    /// # Errors
    ///
    /// The queue has more descriptors than the region is for, or another back end has left chains in flight.
    pub(crate) fn trail(&self, index: usize, size: u32, is_packed: bool) -> Checked<Option<Trail>> {
        if index >= usize::from(self.queues) {
            return Ok(None);
        }
        if size > self.size.into() {
            let (what, limit) = ("descriptors of a queue whose chains in flight are tracked", self.size.into());
            return Err(Fault::BadSize { what, found: size.into(), limit });
        }
        let bytes = part_bytes(self.size, is_packed);
        let address = index as u64 * bytes;
        let outside = Fault::OutsideMemory { address, length: u32::try_from(bytes).unwrap_or(u32::MAX) };
        let place = self.memory.structure(address, bytes).filter(|place| place.as_ptr().addr().is_multiple_of(8));
        let trail = Trail { memory: self.memory.clone(), place: place.ok_or(outside)? };
        let (head, entry) = head_and_entry(is_packed);
        let is_in_flight =
            |number: u32| trail.byte((head + entry * u64::from(number)) as usize).load(Ordering::Relaxed) != 0;
        if let Some(number) = (0..size).find(|&number| is_in_flight(number)) {
            let (what, expected) = ("chain in flight of another back end, descriptor", 0);
            return Err(Fault::BadHeader { what, found: number.into(), expected });
        }
        Ok(Some(trail))
    }
}

/// One queue's part of a region.
pub(crate) struct Trail {
    /// Keeps it mapped.
    #[expect(dead_code, reason = "held, not read")]
    memory: Arc<GuestMemory>,
    place: NonNull<u8>,
}

// SAFETY: its place lies in the memory that it holds, which is mapped for as long as that is.
unsafe impl Send for Trail {}

impl Trail {
    const fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: callers stay within the part, which was looked up as a whole.
        unsafe { AtomicU8::from_ptr(self.place.as_ptr().add(offset)) }
    }

    const fn word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as above; parts begin at multiples of 8, and offsets are even.
        unsafe { AtomicU16::from_ptr(self.place.as_ptr().add(offset).cast()) }
    }

    const fn places(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.place.as_ptr().add(PACKED_USED_AT).cast()) }
    }

    /// Whether somebody has begun to keep this part.
    pub(crate) fn is_kept(&self) -> bool {
        // [VQ-5 trail beside ring] acquire: places before the version that says that they are kept.
        u16::from_le(self.word(VERSION_AT).load(Ordering::Acquire)) == VERSION
    }

    fn begin(&self, size: u16) {
        self.word(SIZE_AT).store(size.to_le(), Ordering::Relaxed);
        // [VQ-5 trail beside ring] release: partner in is_kept.
        self.word(VERSION_AT).store(VERSION.to_le(), Ordering::Release);
    }

    /// Notes where a split queue is.
    pub(super) fn begin_split(&self, size: u16, next: u16) {
        self.note_split(next);
        self.begin(size);
    }

    /// As above, after a batch was shown to the driver.
    #[inline]
    pub(super) fn note_split(&self, next: u16) {
        self.word(SPLIT_USED_AT).store(next.to_le(), Ordering::Relaxed);
    }

    /// Where a packed queue goes on: at `base` if nobody has kept this part, otherwise where it was left.
    /// `is_available` looks at the ring.
    ///
    /// # Errors
    ///
    /// What is kept is no place of the ring.
    pub(super) fn resume(&self, size: u16, base: Place, is_available: impl Fn(Place) -> bool) -> Checked<Place> {
        let mut next = base;
        if self.is_kept() {
            // [VQ-5 trail beside ring] acquire, and one load: both are of the same moment.
            let word = u64::from_le(self.places().load(Ordering::Acquire));
            let place =
                |index: u32, wrap: u32| Place { index: (word >> index) as u16, wrap: (word >> wrap) as u8 != 0 };
            let (used, old) = (place(0, 32), place(16, 40));
            for found in [used, old] {
                if found.index >= size {
                    return Err(Fault::IndexOutOfRange { index: found.index.into(), limit: size.into() });
                }
            }
            // A batch that was under way is done as soon as its first descriptor is not available any more; until then
            // `PackedQueue::mend` does the rest.
            next = if used != old && is_available(old) { old } else { used };
        }
        self.note_packed(next, next);
        self.begin(size);
        Ok(next)
    }

    /// Notes that descriptors from `old` on will be, or with `old` the same are, used up to `used`.
    #[inline]
    pub(super) fn note_packed(&self, old: Place, used: Place) {
        let word =
            u64::from(used.index) | u64::from(old.index) << 16 | u64::from(used.wrap) << 32 | u64::from(old.wrap) << 40;
        // [VQ-5 trail beside ring] release: descriptors shown before are shown; partner is the load of whoever resumes.
        self.places().store(word.to_le(), Ordering::Release);
    }
}

impl fmt::Debug for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trail").field("place", &self.place).finish_non_exhaustive()
    }
}
