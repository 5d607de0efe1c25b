//! A guest's RAM: one memfd, sealed so that nobody can cut it short under us, allocated so that it cannot run dry.
//!
//! Who writes what: the guest makes the region and its header, then seals SHRINK, GROW and SEAL; from then on the size
//! is a fact for everybody who maps it. The receiver believes nothing before it has seen the seals, the file system,
//! the size and the header. Bytes behind the header belong to whoever the rings say.
//! The danger: a mapping of a file that shrinks answers with SIGBUS. Seals are what prevents that, so they are checked
//! by the receiver, not assumed.
//!
//! Large regions lie at multiples of a huge page, on both sides, and the guest asks the kernel to put their pages
//! together. Source: memfd_create(2), fcntl(2) F_GET_SEALS, madvise(2) MADV_COLLAPSE.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{self, FallocateFlags, MemfdFlags, OFlags, SealFlags};
use rustix::mm::{self, MapFlags, ProtFlags};

use super::layout::{RAM_HEADER_BYTES, RAM_MAGIC, RAM_VERSION, RamHeader};
use crate::error::{Error, Fault, Result};

/// Memory that stays mapped for as long as it is held.
pub trait Mapped: std::any::Any + Send + Sync {
    /// Where `bytes` bytes at `offset` are mapped.
    ///
    /// # Errors
    ///
    /// The place ends outside the memory.
    fn at(&self, offset: u32, bytes: usize) -> std::result::Result<NonNull<u8>, Fault>;

    /// Bytes at the start that nothing else may lie in.
    fn reserved_bytes(&self) -> u32;

    /// Whether a write to it is possible.
    fn is_writable(&self) -> bool;
}

/// Least size of a region: header and one more page.
pub const RAM_MIN: u64 = 2 * RAM_HEADER_BYTES as u64;
/// Largest size of a region: what a descriptor's 32-bit offset can reach.
pub const RAM_MAX: u64 = 1 << 32;

/// Bytes of a huge page where pages have 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

pub(crate) const TMPFS_MAGIC: i64 = 0x0102_1994;

fn needed_seals() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL
}

/// A mapped region. Dropping the last handle unmaps it and closes the file.
pub struct Ram {
    file: OwnedFd,
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping is plain shared memory without thread affinity; all access is by raw copies or atomics, and
// callers that hand out overlapping places are bound by the rings' ownership rules.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Makes a region of `size` bytes (rounded up to pages, to huge ones if that adds a quarter at most): allocated, headed,
    /// sealed, mapped.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when the size is out of range, [`Error::Machine`] when there is no memory for it.
    pub fn create(name: &str, size: u64) -> Result<Arc<Self>> {
        if !(RAM_MIN..=RAM_MAX).contains(&size) {
            return Err(Error::Usage(format!("guest RAM is {RAM_MIN} to {RAM_MAX} bytes; got {size}")));
        }
        let size = rounded(size);
        let file = fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|errno| Error::machine("create a memory region", errno))?;
        fs::ftruncate(&file, size).map_err(|errno| Error::machine("size a memory region", errno))?;
        fs::fallocate(&file, FallocateFlags::empty(), 0, size)
            .map_err(|errno| Error::machine("allocate a memory region", errno))?;
        fs::fcntl_add_seals(&file, needed_seals()).map_err(|errno| Error::machine("seal a memory region", errno))?;
        let ram = Self::map(file, size)?;
        ram.gather();
        let header = RamHeader { magic: RAM_MAGIC, version: RAM_VERSION, header_bytes: RAM_HEADER_BYTES, size };
        // SAFETY: the mapping is page-aligned, at least two pages long, and nobody else has it yet.
        unsafe { ram.base.cast::<RamHeader>().write(header) };
        Ok(Arc::new(ram))
    }

    /// Maps a region somebody else made, after checking everything that could hurt us.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`] when it is no sealed memfd of a possible size with the right header; [`Error::Usage`] when it is
    /// larger than `quota`; [`Error::Machine`] when mapping fails.
    pub fn open(file: OwnedFd, quota: u64) -> Result<Arc<Self>> {
        let system = fs::fstatfs(&file).map_err(|errno| Error::machine("inspect a memory region", errno))?;
        if system.f_type as i64 != TMPFS_MAGIC {
            return Err(Fault::NotMemfd { detail: "its file system is not tmpfs" }.into());
        }
        let seals = fs::fcntl_get_seals(&file).map_err(|_| Fault::NotMemfd { detail: "it takes no seals" })?;
        if !seals.contains(needed_seals()) {
            return Err(Fault::NotSealed { found: seals.bits(), expected: needed_seals().bits() }.into());
        }
        if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
            return Err(Fault::NotMemfd { detail: "it is sealed against writing" }.into());
        }
        let mode = fs::fcntl_getfl(&file).map_err(|errno| Error::machine("inspect a memory region", errno))?;
        if mode & OFlags::RWMODE != OFlags::RDWR {
            return Err(Fault::NotMemfd { detail: "it is not open for reading and writing" }.into());
        }
        let status = fs::fstat(&file).map_err(|errno| Error::machine("inspect a memory region", errno))?;
        let size = u64::try_from(status.st_size).unwrap_or(0);
        if !(RAM_MIN..=RAM_MAX).contains(&size) || !size.is_multiple_of(RAM_HEADER_BYTES.into()) {
            return Err(Fault::BadSize { what: "region size", found: size, limit: RAM_MAX }.into());
        }
        if size > quota {
            return Err(Error::Usage(format!("guest RAM of {size} bytes exceeds the quota of {quota} bytes")));
        }
        let allocated = u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(512);
        if allocated < size {
            return Err(Fault::BadSize { what: "region bytes not allocated", found: size - allocated, limit: 0 }.into());
        }
        let ram = Self::map(file, size)?;
        // SAFETY: page-aligned and at least two pages long. One volatile copy: the peer may be writing.
        let header = unsafe { ram.base.cast::<RamHeader>().read_volatile() };
        let expect = |what, found: u64, expected: u64| {
            if found == expected { Ok(()) } else { Err(Fault::BadHeader { what, found, expected }) }
        };
        expect("region magic", header.magic, RAM_MAGIC)?;
        expect("region version", header.version.into(), RAM_VERSION.into())?;
        expect("region header bytes", header.header_bytes.into(), RAM_HEADER_BYTES.into())?;
        expect("region size", header.size, size)?;
        Ok(Arc::new(ram))
    }

    fn map(file: OwnedFd, size: u64) -> Result<Self> {
        let size = usize::try_from(size).map_err(|_| Error::Usage(format!("{size} bytes cannot be mapped here")))?;
        let failed = |errno| Error::machine("map a memory region", errno);
        let room = Room::reserve(size).map_err(failed)?;
        // SAFETY: a shared mapping in place of a reservation that is ours alone.
        let mapped = unsafe {
            mm::mmap(
                room.place.cast(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE | MapFlags::FIXED,
                &file,
                0,
            )
        };
        let base = mapped.map_err(failed)?;
        room.keep(size);
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| failed(rustix::io::Errno::NOMEM))?;
        Ok(Self { file, base, size })
    }

    /// Puts the region's pages together into huge ones, as far as the kernel can: whoever maps the region then needs a
    /// five hundredth of the entries to find them. JUSTIFY: frames of 1500 bytes go between two guests a fifth faster.
    fn gather(&self) {
        let bytes = self.size / HUGE_PAGE * HUGE_PAGE;
        if bytes != 0 {
            // SAFETY: a request about memory that is ours and mapped; it changes nothing a program can see. It may fail:
            // an old kernel, no huge page free.
            unsafe { libc::madvise(self.base.as_ptr().cast(), bytes, libc::MADV_COLLAPSE) };
        }
    }

    /// Bytes of the region.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Where `bytes` bytes at `offset` are mapped.
    ///
    /// # Errors
    ///
    /// The place ends outside the region.
    #[inline]
    pub fn at(&self, offset: u32, bytes: usize) -> std::result::Result<NonNull<u8>, Fault> {
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
}

fn rounded(size: u64) -> u64 {
    let (pages, huge_pages) = (size.next_multiple_of(RAM_HEADER_BYTES.into()), size.next_multiple_of(HUGE_PAGE as u64));
    if huge_pages - size <= size / 4 && huge_pages <= RAM_MAX { huge_pages } else { pages }
}

/// Addresses that nothing else is mapped at, and a huge page's multiple where that may matter.
struct Room {
    start: *mut u8,
    length: usize,
    place: *mut u8,
}

impl Room {
    fn reserve(size: usize) -> rustix::io::Result<Self> {
        let align = if size < HUGE_PAGE { 1 } else { HUGE_PAGE };
        let length = size + align - 1;
        // SAFETY: a fresh mapping chosen by the kernel that nobody can touch; it overlaps nothing of ours.
        let start = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::empty(), MapFlags::PRIVATE)? };
        let start = start.cast::<u8>();
        let ahead = (start as usize).next_multiple_of(align) - start as usize;
        Ok(Self { start, length, place: start.wrapping_add(ahead) })
    }

    /// Keeps `size` bytes at its place, and lets go of what lies around them.
    fn keep(mut self, size: usize) {
        let ahead = self.place as usize - self.start as usize;
        let end = self.place.wrapping_add(size.next_multiple_of(RAM_HEADER_BYTES as usize));
        let behind = (self.start as usize + self.length).saturating_sub(end as usize);
        for (start, length) in [(self.start, ahead), (end, behind)] {
            release(start, length);
        }
        self.length = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        release(self.start, self.length);
    }
}

fn release(start: *mut u8, length: usize) {
    if length != 0 {
        // SAFETY: part of a reservation of ours that nothing points into.
        let released = unsafe { mm::munmap(start.cast(), length) };
        debug_assert!(released.is_ok());
    }
}

impl Mapped for Ram {
    fn at(&self, offset: u32, bytes: usize) -> std::result::Result<NonNull<u8>, Fault> {
        self.at(offset, bytes)
    }

    fn reserved_bytes(&self) -> u32 {
        RAM_HEADER_BYTES
    }

    fn is_writable(&self) -> bool {
        true
    }
}

impl AsFd for Ram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; places handed out are only used while an `Arc` of this region is held.
        let unmapped = unsafe { mm::munmap(self.base.as_ptr().cast(), self.size) };
        debug_assert!(unmapped.is_ok());
    }
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ram").field("size", &self.size).finish_non_exhaustive()
    }
}
