//! The memory of a virtual machine or a DPDK application: files that its front end handed over, and addresses in them.
//!
//! ```text
//!   guest address ─▶ region that has it ─▶ where we mapped it, and how far it goes there
//!   user address  ─▶ the same, by the front end's own addresses: where rings are
//! ```
//!
//! Who writes what: the other side may write, cut short or punch holes into all of it at any time. So nothing here is a Rust
//! reference; places are raw, and who reads one copies it once.
//! The memory of a guest on a bus is of the same kind and has one region, whose addresses are offsets in its [`Ram`].
//!
//! The danger: a file on a file system whose server is hostile never answers a page fault. Only tmpfs (memfds too) and
//! hugetlbfs are mapped, and what is cut short there is [`super::guard`]'s. A buffer may begin in one region and go on in the
//! next, so a place comes with the bytes that follow it there. Source: vhost-user, "Memory regions description".

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{self, FileType, OFlags, SealFlags};
use rustix::mm::{self, MapFlags, ProtFlags};

use super::guard::{Guarded, gone_so_far};
use crate::error::{Error, Fault, Result};
use crate::shm::layout::RAM_HEADER_BYTES;
use crate::shm::region::{Ram, TMPFS_MAGIC};

/// Most regions of one front end.
pub const REGIONS_MAX: usize = 32;

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
const PAGE_BYTES: u64 = 4096;

/// Where a front end says that a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionAt {
    /// First address as descriptors have it.
    pub guest: u64,
    /// Its bytes.
    pub size: u64,
    /// First address as the front end has it, which says where rings are.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

impl RegionAt {
    fn overlaps(&self, other: &Self) -> bool {
        let meets = |one: u64, two: u64| one < two.saturating_add(other.size) && two < one.saturating_add(self.size);
        meets(self.guest, other.guest) || meets(self.user, other.user)
    }
}

/// One region: where it is said to be, and where it is.
#[derive(Debug)]
struct Region {
    at: RegionAt,
    /// Where its first byte is here.
    place: NonNull<u8>,
    held: Held,
}

/// What keeps a region mapped.
#[derive(Debug)]
enum Held {
    /// A mapping of our own.
    Mapping(Mapping),
    /// A guest's RAM, which is sealed: it cannot be cut short, so nobody watches it.
    Ram(#[expect(dead_code, reason = "held for as long as places in it are used")] Arc<Ram>),
}

// SAFETY: the mapping has no thread affinity and is accessed by raw copies and atomics only.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn map(at: RegionAt, file: &File) -> Result<Self> {
        let page = check(at, file)?;
        // What is mapped begins and ends at whole pages, as a file of huge pages demands.
        let lead = at.offset % page;
        let bytes = usize::try_from((lead + at.size).next_multiple_of(page))
            .map_err(|_| Error::Usage(format!("{} bytes cannot be mapped here", at.size)))?;
        // SAFETY: a fresh shared mapping chosen by the kernel; it overlaps nothing of ours.
        let base = unsafe {
            mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                at.offset - lead,
            )
        }
        .map_err(|errno| Error::machine("map memory of a front end", errno))?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| Error::machine("map memory of a front end", rustix::io::Errno::NOMEM))?;
        let mut mapping = Mapping { base, bytes, guard: None };
        // SAFETY: less than a page into a mapping that is longer.
        let place = unsafe { base.add(lead as usize) };
        mapping.guard = Some(Guarded::watch(base.as_ptr() as usize, bytes)?);
        Ok(Self { at, place, held: Held::Mapping(mapping) })
    }

    /// Where `address` is, as `first` counts, and how many bytes follow it.
    #[inline]
    const fn find(&self, first: u64, address: u64) -> Option<(NonNull<u8>, u64)> {
        let inside = address.wrapping_sub(first);
        if inside >= self.at.size {
            return None;
        }
        // SAFETY: less than the region's size behind its first byte, all of which is mapped.
        Some((unsafe { self.place.add(inside as usize) }, self.at.size - inside))
    }

    fn is_gone(&self) -> bool {
        match &self.held {
            Held::Mapping(mapping) => mapping.guard.as_ref().is_some_and(Guarded::is_gone),
            Held::Ram(_) => false,
        }
    }
}

/// A mapping, which begins and ends at whole pages of its file. Dropping it unmaps it.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    guard: Option<Guarded>,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The watch first: from here on nobody may find zeroes to put into this range.
        self.guard = None;
        // SAFETY: exactly what `map` mapped; nobody holds a place in it any more.
        let unmapped = unsafe { mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Refuses a file that cannot be mapped without danger; its page size.
fn check(at: RegionAt, file: &File) -> Result<u64> {
    let asked = |errno| Error::machine("inspect memory of a front end", errno);
    let system = fs::fstatfs(file).map_err(asked)?;
    let page = match system.f_type as i64 {
        TMPFS_MAGIC => PAGE_BYTES,
        HUGETLBFS_MAGIC => system.f_bsize as u64,
        _ => return Err(Fault::NotMemfd { detail: "its file system is neither tmpfs nor hugetlbfs" }.into()),
    };
    let status = fs::fstat(file).map_err(asked)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile || !page.is_power_of_two() {
        return Err(Fault::NotMemfd { detail: "it is no regular file" }.into());
    }
    let mode = fs::fcntl_getfl(file).map_err(asked)?;
    if mode & OFlags::RWMODE != OFlags::RDWR {
        return Err(Fault::NotMemfd { detail: "it is not open for reading and writing" }.into());
    }
    // A file system without seals has none.
    let seals = fs::fcntl_get_seals(file).unwrap_or(SealFlags::empty());
    if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Err(Fault::NotMemfd { detail: "it is sealed against writing" }.into());
    }
    let limit = u64::try_from(status.st_size).unwrap_or(0);
    let end = at.offset.checked_add(at.size).filter(|&end| at.size != 0 && end <= limit);
    if end.is_none() {
        let found = at.offset.saturating_add(at.size);
        return Err(Fault::BadSize { what: "end of a memory region in its file", found, limit }.into());
    }
    if at.guest.checked_add(at.size).is_none() || at.user.checked_add(at.size).is_none() {
        return Err(Fault::BadSize { what: "memory region", found: at.size, limit: u64::MAX }.into());
    }
    Ok(page)
}

/// All regions of one front end.
#[derive(Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
    /// Ranges of this process that had ended when this was last looked at.
    gone_seen: AtomicUsize,
}

impl GuestMemory {
    /// Maps what a front end handed over, in any order.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: a file cannot be mapped without danger, or is shorter than its region, or regions overlap.
    /// [`Error::Busy`]: there are too many. [`Error::Machine`]: mapping fails.
    pub fn map(regions: impl IntoIterator<Item = (RegionAt, File)>) -> Result<Self> {
        regions.into_iter().try_fold(Self::default(), |memory, (at, file)| memory.with(at, &file))
    }

    /// A guest's RAM: both kinds of address are offsets in it, and those of its header are nowhere.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: it has nothing behind its header.
    pub fn of_ram(ram: &Arc<Ram>) -> Result<Self> {
        let first = u64::from(RAM_HEADER_BYTES);
        let size = (ram.size() as u64).saturating_sub(first);
        let place = ram.at(RAM_HEADER_BYTES, size as usize)?;
        let at = RegionAt { guest: first, size, user: first, offset: first };
        let region = Region { at, place, held: Held::Ram(ram.clone()) };
        Ok(Self { regions: vec![Arc::new(region)], gone_seen: AtomicUsize::new(gone_so_far()) })
    }

    /// The same memory and one more region.
    ///
    /// # Errors
    ///
    /// As [`Self::map`].
    pub fn with(&self, at: RegionAt, file: &File) -> Result<Self> {
        if self.regions.len() >= REGIONS_MAX {
            return Err(Error::Busy(format!("a front end may have {REGIONS_MAX} memory regions")));
        }
        if self.regions.iter().any(|region| region.at.overlaps(&at)) {
            return Err(Fault::BadSize { what: "overlapping memory region at", found: at.guest, limit: 0 }.into());
        }
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region::map(at, file)?));
        Ok(Self { regions, gone_seen: AtomicUsize::new(0) })
    }

    /// Whether there is none at all.
    pub const fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Whether exactly this region is there.
    pub fn has(&self, at: RegionAt) -> bool {
        self.regions.iter().any(|region| region.at == at)
    }

    /// The same memory without one region.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: there is no such region.
    pub fn without(&self, at: RegionAt) -> Result<Self> {
        let is_it =
            |region: &Arc<Region>| (region.at.guest, region.at.size, region.at.user) == (at.guest, at.size, at.user);
        if !self.regions.iter().any(is_it) {
            return Err(Error::NotFound(format!("there is no memory region at {:#x}", at.guest)));
        }
        let regions = self.regions.iter().filter(|region| !is_it(region)).cloned().collect();
        Ok(Self { regions, gone_seen: AtomicUsize::new(0) })
    }

    /// Where the bytes at a guest address are, and how many of `length` follow there; at least one.
    ///
    /// `hint` is the region that was last found, which is looked at first.
    #[inline]
    pub(crate) fn place(&self, hint: &mut usize, address: u64, length: u32) -> Option<(NonNull<u8>, u32)> {
        let found = self.regions.get(*hint).and_then(|region| region.find(region.at.guest, address));
        let (place, follow) = match found {
            Some(found) => found,
            None => self.look_for(hint, address)?,
        };
        Some((place, length.min(u32::try_from(follow).unwrap_or(u32::MAX))))
    }

    #[cold]
    fn look_for(&self, hint: &mut usize, address: u64) -> Option<(NonNull<u8>, u64)> {
        self.regions.iter().enumerate().find_map(|(index, region)| {
            let found = region.find(region.at.guest, address)?;
            *hint = index;
            Some(found)
        })
    }

    /// Where `bytes` bytes at an address of the front end's own are: all in one region.
    pub(crate) fn structure(&self, address: u64, bytes: u64) -> Option<NonNull<u8>> {
        self.regions.iter().find_map(|region| {
            let (place, follow) = region.find(region.at.user, address)?;
            (bytes <= follow).then_some(place)
        })
    }

    /// One past the last guest address.
    pub(crate) fn end(&self) -> u64 {
        self.regions.iter().map(|region| region.at.guest + region.at.size).max().unwrap_or(0)
    }

    /// The guest address of a place that was found here.
    pub(crate) fn address_of(&self, place: NonNull<u8>) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let inside = (place.as_ptr().addr() as u64).checked_sub(region.place.as_ptr().addr() as u64)?;
            (inside < region.at.size).then_some(region.at.guest + inside)
        })
    }

    /// A region has ended since the last call, or before the first.
    pub(crate) fn has_ended(&self) -> bool {
        let gone = gone_so_far();
        if self.gone_seen.load(Ordering::Relaxed) == gone {
            return false;
        }
        self.gone_seen.store(gone, Ordering::Relaxed);
        self.regions.iter().any(|region| region.is_gone())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn memfd(bytes: u64) -> File {
        let file = memfd_create("front-end", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, bytes).unwrap();
        File::from(file)
    }

    fn at(guest: u64, size: u64, user: u64, offset: u64) -> RegionAt {
        RegionAt { guest, size, user, offset }
    }

    fn reason(result: Result<GuestMemory>) -> &'static str {
        match result.unwrap_err() {
            Error::Peer(fault) => fault.reason(),
            other => panic!("{other}"),
        }
    }

    /// A guest address and a user address of the same byte are the same place.
    #[test]
    fn both_kinds_of_address_lead_to_one_place() {
        let memory = GuestMemory::map([
            (at(0x10000, 0x4000, 0x7000_0000, 0x1000), memfd(0x8000)),
            (at(0x4000, 0x1000, 0x9000_0000, 0), memfd(0x1000)),
        ])
        .unwrap();
        let mut hint = 0;

        let (by_guest, follow) = memory.place(&mut hint, 0x13ff0, 64).unwrap();
        let by_user = memory.structure(0x7000_3ff0, 16).unwrap();
        let other = memory.place(&mut hint, 0x4000, 64).unwrap();

        assert_eq!((by_user, 16), (by_guest, follow));
        assert_eq!((64, 1), (other.1, hint));
        assert_eq!([Some(0x13ff0), Some(0x4000)], [by_guest, other.0].map(|place| memory.address_of(place)));
        assert_eq!((0x14000, None), (memory.end(), memory.address_of(NonNull::dangling())));
    }

    /// Addresses outside of all regions, and structures that run out of one, lead nowhere.
    #[test]
    fn what_is_not_mapped_has_no_place() {
        let memory = GuestMemory::map([(at(0x10000, 0x1000, 0x7000_0000, 0), memfd(0x1000))]).unwrap();
        let mut hint = 7;

        for address in [0, 0xffff, 0x11000, u64::MAX] {
            assert_eq!(None, memory.place(&mut hint, address, 1), "{address:#x}");
        }
        assert_eq!(None, memory.structure(0x7000_0ff1, 16));
        assert_eq!(None, memory.structure(0x7000_0000, u64::MAX));
    }

    /// CVE-2026-86561: size 0, longer than the file, or so long that its end overflows.
    #[test]
    fn region_size_that_cannot_be_is_refused() {
        for bad in [
            at(0, 0, 0, 0),
            at(0, 0x2000, 0, 0),
            at(0, 0x1000, 0, 0x1000),
            at(0, u64::MAX, 0, 0x1000),
            at(0, 0x1000, 0, u64::MAX),
        ] {
            assert_eq!("bad_size", reason(GuestMemory::map([(bad, memfd(0x1000))])), "{bad:?}");
        }
        for bad in [at(u64::MAX, 0x1000, 0, 0), at(0, 0x1000, u64::MAX, 0)] {
            assert_eq!("bad_size", reason(GuestMemory::map([(bad, memfd(0x1000))])), "{bad:?}");
        }
    }

    #[test]
    fn regions_that_overlap_are_refused() {
        let first = at(0x1000, 0x2000, 0x10000, 0);
        for second in [at(0x2fff, 0x1000, 0x90000, 0), at(0x9000, 0x1000, 0x11fff, 0)] {
            let both = [(first, memfd(0x2000)), (second, memfd(0x1000))];
            assert_eq!("bad_size", reason(GuestMemory::map(both)), "{second:?}");
        }
    }

    /// A pipe, a file of a disk, a directory: none of them is mapped.
    #[test]
    fn other_files_than_of_memory_are_refused() {
        let (pipe, _writer) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        let program = File::open("/proc/self/exe").unwrap();

        for file in [pipe, program] {
            assert_eq!("not_memfd", reason(GuestMemory::map([(at(0, 0x1000, 0, 0), file)])));
        }
    }

    /// Memory that is cut short reads as zeroes, says so, and ends nobody.
    #[test]
    fn memory_that_is_cut_short_reads_as_zeroes() {
        let file = memfd(0x4000);
        let memory = GuestMemory::map([(at(0, 0x4000, 0, 0), file.try_clone().unwrap())]).unwrap();
        let (place, _) = memory.place(&mut 0, 0x2000, 8).unwrap();
        // SAFETY: mapped, and nobody's object.
        unsafe { place.as_ptr().write_volatile(7) };
        assert!(!memory.has_ended());

        ftruncate(&file, 0).unwrap();
        // SAFETY: as above; what is gone is replaced.
        let read = unsafe { place.as_ptr().read_volatile() };

        assert_eq!((0, true), (read, memory.has_ended()));
    }

    /// Addresses in a guest's RAM are offsets; its header, and what lies behind it, are nowhere.
    #[test]
    fn ram_is_addressed_by_offset() {
        let ram = Ram::create("guest", 1 << 16).unwrap();
        let memory = GuestMemory::of_ram(&ram).unwrap();
        let end = ram.size() as u64;

        assert_eq!(Some((ram.at(0x2000, 8).unwrap(), 8)), memory.place(&mut 0, 0x2000, 8));
        assert_eq!(Some(ram.at(0x1000, 8).unwrap()), memory.structure(0x1000, end - 0x1000));
        for address in [0, 0xfff, end, u64::MAX] {
            assert_eq!(None, memory.place(&mut 0, address, 1), "{address:#x}");
        }
        assert_eq!(None, memory.structure(0x1000, end - 0xfff));
        assert!(!memory.has_ended());
    }

    #[test]
    fn regions_come_and_go_one_by_one() {
        let (one, two) = (at(0, 0x1000, 0x10000, 0), at(0x1000, 0x1000, 0x20000, 0));
        let memory = GuestMemory::default().with(one, &memfd(0x1000)).unwrap().with(two, &memfd(0x1000)).unwrap();

        let left = memory.without(one).unwrap();

        assert_eq!(None, left.place(&mut 0, 0, 1));
        assert!(left.place(&mut 0, 0x1000, 1).is_some());
        assert!(matches!(left.without(one), Err(Error::NotFound(_))));
    }
}
