//! Memory for virtio drivers: one block of the guest's RAM, whose "physical" addresses are offsets in the RAM.
//!
//! The crate's hardware layer has no `self`, so the arena is entered: what a thread allocates between [`Arena::enter`] and
//! the end of its closure comes from there. Buffers outside of the arena are shared by a copy into it, and back.
//!
//! Who writes what: the guest owns all of it; the device may write what a descriptor lets it. Source: virtio-drivers, `Hal`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::error::{Error, Result};
use crate::shm::layout::RAM_HEADER_BYTES;
use crate::shm::region::Ram;

/// What every place is a multiple of: a cache line, so that two buffers share none.
const ALIGN: u32 = 64;

/// A block of guest RAM that drivers allocate from.
pub struct Arena {
    ram: Arc<Ram>,
    start: u32,
    length: u32,
    /// Free places: offset in the RAM, bytes.
    free: Mutex<BTreeMap<u32, u32>>,
}

thread_local! {
    static ENTERED: RefCell<Option<Arc<Arena>>> = const { RefCell::new(None) };
}

impl Arena {
    /// An arena in `length` bytes at `start` of the guest's RAM, whole pages of it.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: it does not lie in the RAM, or is not made of pages.
    pub fn new(ram: &Arc<Ram>, start: u32, length: u32) -> Result<Arc<Self>> {
        let page = PAGE_SIZE as u32;
        if start < RAM_HEADER_BYTES || !start.is_multiple_of(page) || !length.is_multiple_of(page) || length == 0 {
            return Err(Error::Usage(format!(
                "a virtio arena is whole pages behind the header; got {length} bytes at {start:#x}"
            )));
        }
        ram.at(start, length as usize).map_err(|fault| Error::Usage(fault.to_string()))?;
        let free = Mutex::new(BTreeMap::from([(start, length)]));
        Ok(Arc::new(Self { ram: ram.clone(), start, length, free }))
    }

    /// The RAM it lies in.
    pub(crate) const fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Whether these bytes of the RAM lie in it.
    pub(crate) fn holds(&self, offset: u64, bytes: u64) -> bool {
        let (start, end) = (u64::from(self.start), u64::from(self.start) + u64::from(self.length));
        offset >= start && offset.checked_add(bytes).is_some_and(|last| last <= end)
    }

    /// Runs `work`, whose drivers allocate here.
    pub fn enter<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        /// Puts back what was entered before, also when `work` unwinds.
        struct Leave(Option<Arc<Arena>>);
        impl Drop for Leave {
            fn drop(&mut self) {
                ENTERED.set(self.0.take());
            }
        }
        let _leave = Leave(ENTERED.replace(Some(self.clone())));
        work()
    }

    fn free(&self) -> MutexGuard<'_, BTreeMap<u32, u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the first place of `bytes` bytes, aligned to `align`, a power of two.
    pub(crate) fn allocate(&self, bytes: u32, align: u32) -> Option<u32> {
        let bytes = bytes.checked_next_multiple_of(ALIGN)?.max(ALIGN);
        let mut free = self.free();
        let (offset, length, place) = free.iter().find_map(|(&offset, &length)| {
            let place = offset.checked_next_multiple_of(align.max(ALIGN))?;
            (place - offset <= length && length - (place - offset) >= bytes).then_some((offset, length, place))
        })?;
        free.remove(&offset);
        if place != offset {
            free.insert(offset, place - offset);
        }
        let behind = offset + length - (place + bytes);
        if behind != 0 {
            free.insert(place + bytes, behind);
        }
        drop(free);
        Some(place)
    }

    /// Gives a place back that was allocated with as many bytes.
    pub(crate) fn release(&self, place: u32, bytes: u32) {
        let bytes = bytes.next_multiple_of(ALIGN).max(ALIGN);
        let mut free = self.free();
        let (mut start, mut length) = (place, bytes);
        if let Some((&before, &size)) = free.range(..place).next_back()
            && before + size == place
        {
            free.remove(&before);
            (start, length) = (before, size + length);
        }
        if let Some(size) = free.remove(&(place + bytes)) {
            length += size;
        }
        free.insert(start, length);
    }

    /// Where a place of it is mapped.
    pub(crate) fn at(&self, place: u32, bytes: usize) -> Option<NonNull<u8>> {
        self.ram.at(place, bytes).ok()
    }

    /// The offset of bytes that lie in it; `None`: they lie elsewhere.
    fn offset_of(&self, buffer: NonNull<[u8]>) -> Option<u32> {
        let base = self.at(self.start, self.length as usize)?.as_ptr() as usize;
        let inside = (buffer.cast::<u8>().as_ptr() as usize).checked_sub(base)?;
        let is_whole = inside.checked_add(buffer.len())? <= self.length as usize;
        is_whole.then_some(self.start + inside as u32)
    }

    /// Bytes that are free now.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.free().values().sum()
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("start", &self.start).field("length", &self.length).finish_non_exhaustive()
    }
}

/// The crate's hardware layer, by the arena that the thread has entered.
#[derive(Debug)]
pub struct RamHal;

fn entered<T>(work: impl FnOnce(&Arc<Arena>) -> Option<T>) -> Option<T> {
    ENTERED.with_borrow(|arena| arena.as_ref().and_then(work))
}

fn bytes_of(pages: usize) -> Option<u32> {
    u32::try_from(pages.checked_mul(PAGE_SIZE)?).ok()
}

// SAFETY: places come from an arena that is mapped for as long as whoever entered it holds it, aligned to pages, and none is
// given out twice.
unsafe impl Hal for RamHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // Address 0 is the RAM's header, and says that there is no room.
        let found = entered(|arena| {
            let bytes = bytes_of(pages)?;
            let place = arena.allocate(bytes, PAGE_SIZE as u32)?;
            let start = arena.at(place, bytes as usize)?;
            // SAFETY: just taken from the arena; nobody else has it.
            unsafe { start.write_bytes(0, bytes as usize) };
            Some((PhysAddr::from(place), start))
        });
        found.unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        let released = entered(|arena| {
            arena.release(u32::try_from(paddr).ok()?, bytes_of(pages)?);
            Some(())
        });
        debug_assert!(released.is_some(), "a virtio driver was dropped outside of its arena");
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        // Nobody has registers in memory here: they are calls.
        NonNull::dangling()
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let found = entered(|arena| {
            if let Some(offset) = arena.offset_of(buffer) {
                return Some(offset);
            }
            let place = arena.allocate(u32::try_from(buffer.len()).ok()?, ALIGN)?;
            let start = arena.at(place, buffer.len())?;
            if direction != BufferDirection::DeviceToDriver {
                // SAFETY: as many bytes lie at both places, and one was just taken.
                unsafe { start.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
            }
            Some(place)
        });
        // Without room the device is shown an address that it must refuse.
        found.map_or(0, PhysAddr::from)
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let _ = entered(|arena| {
            let place = u32::try_from(paddr).ok().filter(|place| *place != 0)?;
            if arena.offset_of(buffer) == Some(place) {
                return None;
            }
            let start = arena.at(place, buffer.len())?;
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: as many bytes lie at both places, which `share` made so.
                unsafe { buffer.cast::<u8>().copy_from_nonoverlapping(start, buffer.len()) };
            }
            arena.release(place, buffer.len() as u32);
            Some(())
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn arena(pages: u32) -> Arc<Arena> {
        let ram = Ram::create("guest", 1 << 20).unwrap();
        Arena::new(&ram, 0x2000, pages * PAGE_SIZE as u32).unwrap()
    }

    #[test]
    fn what_is_given_back_is_one_piece_again() {
        let arena = arena(4);
        let places: Vec<_> = (0..4).map(|_| arena.allocate(4096, 4096).unwrap()).collect();
        assert_eq!((None, 0), (arena.allocate(1, 64), arena.room()));

        for place in [places[2], places[0], places[3], places[1]] {
            arena.release(place, 4096);
        }

        assert_eq!(Some(0x2000), arena.allocate(4 * 4096, 4096));
    }

    #[test]
    fn place_is_aligned_and_what_lies_before_it_stays_free() {
        let arena = arena(2);
        let small = arena.allocate(10, 64).unwrap();

        let page = arena.allocate(4096, 4096).unwrap();

        assert_eq!((0x2000, 0x3000, 4096 - 64), (small, page, arena.room()));
    }

    #[test]
    fn buffer_from_elsewhere_is_copied_there_and_back() {
        let arena = arena(1);
        let mut buffer = *b"from elsewhere";
        let shared = NonNull::from(&mut buffer[..]);
        arena.enter(|| {
            // SAFETY: the buffer is ours and nobody else's.
            let address = unsafe { RamHal::share(shared, BufferDirection::Both) };
            let place = arena.at(address as u32, buffer.len()).unwrap();
            // SAFETY: mapped, and shared with nobody.
            unsafe { place.write(b'F') };
            // SAFETY: as it was shared.
            unsafe { RamHal::unshare(address, NonNull::from(&mut buffer[..]), BufferDirection::Both) };
        });

        assert_eq!((b"From elsewhere", 4096), (&buffer, arena.room()));
    }

    #[test]
    fn arena_that_is_not_made_of_pages_of_the_ram_is_refused() {
        let ram = Ram::create("guest", 1 << 20).unwrap();
        for (start, length) in [(0, 4096), (0x2001, 4096), (0x2000, 100), (0x2000, 0), (0x2000, 1 << 20)] {
            assert!(matches!(Arena::new(&ram, start, length), Err(Error::Usage(_))), "{start:#x} {length}");
        }
    }
}
