//! A page: memory that the host makes and lends to guests, some of whom may only read it.
//!
//! ```text
//!   host                               publisher (a guest)            samplers (guests)
//!   create: sealed SHRINK, GROW  ───►  open: maps it writable
//!   freeze: sealed FUTURE_WRITE, SEAL  (keeps its mapping)       ───►  open: maps it read-only
//! ```
//!
//! Who writes what: whoever mapped the page before it was frozen, and nobody else ever after. A descriptor that was only
//! opened read-only would not do: its holder reopens it writable under `/proc/self/fd`. A frozen page has no writable
//! mapping, no write and no hole punched through any descriptor, of whatever mode and whoever opens it again.
//! The danger: as with any mapped file, SIGBUS when it shrinks, hence the seals; and a guest that seals it first, hence
//! `freeze` looks at what came of it. Source: fcntl(2) F_ADD_SEALS, memfd_create(2).

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{self, FallocateFlags, MemfdFlags, OFlags, SealFlags};
use rustix::mm::{self, MapFlags, ProtFlags};

use super::region::{Mapped, TMPFS_MAGIC};
use crate::error::{Error, Fault, Result};

/// Pages are made of so many bytes.
const GRAIN: usize = 4096;
/// Largest page.
pub const PAGE_BYTES_MAX: usize = 1 << 26;

fn size_seals() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW
}

fn frozen_seals() -> SealFlags {
    size_seals() | SealFlags::FUTURE_WRITE | SealFlags::SEAL
}

/// A mapped page. Dropping the last handle unmaps it and closes the file.
pub struct Page {
    file: OwnedFd,
    base: NonNull<u8>,
    size: usize,
    is_writable: bool,
}

// SAFETY: the mapping is plain shared memory without thread affinity, accessed by atomics or raw copies only.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// Makes a page of `bytes` bytes (rounded up to 4096): allocated, zero, mapped writable here, its size sealed.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when the size is out of range, [`Error::Machine`] when there is no memory or descriptor for it.
    pub fn create(name: &str, bytes: usize) -> Result<Arc<Self>> {
        if !(1..=PAGE_BYTES_MAX).contains(&bytes) {
            return Err(Error::Usage(format!("a page is 1 to {PAGE_BYTES_MAX} bytes; got {bytes}")));
        }
        let size = bytes.next_multiple_of(GRAIN);
        let file = fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|errno| Error::machine("create a page", errno))?;
        fs::ftruncate(&file, size as u64).map_err(|errno| Error::machine("size a page", errno))?;
        fs::fallocate(&file, FallocateFlags::empty(), 0, size as u64)
            .map_err(|errno| Error::machine("allocate a page", errno))?;
        fs::fcntl_add_seals(&file, size_seals()).map_err(|errno| Error::machine("seal a page", errno))?;
        Self::map(file, size, true)
    }

    /// From now on nobody gets a writable mapping, or writes, who has not one already. Harmless when frozen before.
    ///
    /// # Errors
    ///
    /// The guest's fault: it sealed the page first, in a way that does not freeze it.
    pub fn freeze(&self) -> std::result::Result<(), Fault> {
        let expected = frozen_seals();
        // Refused when somebody sealed it against seals; what counts is what is there afterwards.
        let _ = fs::fcntl_add_seals(&self.file, SealFlags::FUTURE_WRITE | SealFlags::SEAL);
        let found = fs::fcntl_get_seals(&self.file).unwrap_or(SealFlags::empty());
        if found.contains(expected) {
            Ok(())
        } else {
            Err(Fault::NotSealed { found: found.bits(), expected: expected.bits() })
        }
    }

    /// Maps a page somebody else made: read-only when it is frozen, else writable.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`] when it is no memfd of a possible size sealed against changing it; [`Error::Machine`] when
    /// mapping fails.
    pub fn open(file: OwnedFd) -> Result<Arc<Self>> {
        let system = fs::fstatfs(&file).map_err(|errno| Error::machine("inspect a page", errno))?;
        if system.f_type as i64 != TMPFS_MAGIC {
            return Err(Fault::NotMemfd { detail: "its file system is not tmpfs" }.into());
        }
        let seals = fs::fcntl_get_seals(&file).map_err(|_| Fault::NotMemfd { detail: "it takes no seals" })?;
        if !seals.contains(size_seals()) {
            return Err(Fault::NotSealed { found: seals.bits(), expected: size_seals().bits() }.into());
        }
        let mode = fs::fcntl_getfl(&file).map_err(|errno| Error::machine("inspect a page", errno))?;
        let is_writable =
            mode & OFlags::RWMODE == OFlags::RDWR && !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE);
        let status = fs::fstat(&file).map_err(|errno| Error::machine("inspect a page", errno))?;
        let size = usize::try_from(status.st_size).unwrap_or(0);
        if !(GRAIN..=PAGE_BYTES_MAX).contains(&size) || !size.is_multiple_of(GRAIN) {
            return Err(Fault::BadSize { what: "page size", found: size as u64, limit: PAGE_BYTES_MAX as u64 }.into());
        }
        Self::map(file, size, is_writable)
    }

    fn map(file: OwnedFd, size: usize, is_writable: bool) -> Result<Arc<Self>> {
        let protection = if is_writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh shared mapping chosen by the kernel; it overlaps nothing of ours.
        let base = unsafe {
            mm::mmap(std::ptr::null_mut(), size, protection, MapFlags::SHARED | MapFlags::POPULATE, &file, 0)
        }
        .map_err(|errno| Error::machine("map a page", errno))?;
        let base =
            NonNull::new(base.cast::<u8>()).ok_or_else(|| Error::machine("map a page", rustix::io::Errno::NOMEM))?;
        Ok(Arc::new(Self { file, base, size, is_writable }))
    }

    /// Bytes of the page.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }
}

impl Mapped for Page {
    fn at(&self, offset: u32, bytes: usize) -> std::result::Result<NonNull<u8>, Fault> {
        if offset as usize > self.size || bytes > self.size - offset as usize {
            return Err(Fault::OutsideRegion {
                offset,
                length: u32::try_from(bytes).unwrap_or(u32::MAX),
                limit: self.size as u64,
            });
        }
        // SAFETY: offset is within the mapping, as just checked.
        Ok(unsafe { self.base.add(offset as usize) })
    }

    fn reserved_bytes(&self) -> u32 {
        0
    }

    fn is_writable(&self) -> bool {
        self.is_writable
    }
}

impl AsFd for Page {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; places handed out are only used while an `Arc` of this page is held.
        let unmapped = unsafe { mm::munmap(self.base.as_ptr().cast(), self.size) };
        debug_assert!(unmapped.is_ok());
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("size", &self.size).field("is_writable", &self.is_writable).finish_non_exhaustive()
    }
}
