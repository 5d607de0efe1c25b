//! The driver's end of one split virtqueue, and buffers for it, in RAM of ours: for a guest's network card, and for a port that
//! is the front end of somebody else's device.
//!
//! ```text
//!   ┌ descriptors, each with its buffer for good ┬ available ring ┬ used ring ┐   ┌ header · frame ┬ header · frame ┐
//!   we write                                     we write         the device writes    both, each while it has the buffer
//! ```
//!
//! The danger: the device may write any of this at any time. Used entries are copied once and checked; who owns the ring checks
//! them against what it gave away. A device that lies costs the card, not our memory.
//! Source: virtio 1.2 §2.7.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_drivers::PAGE_SIZE;

use crate::error::Fault;
use crate::shm::layout::CACHE_LINE;
use crate::shm::region::Ram;

/// `virtio_net_hdr` as version 1 has it.
pub(crate) const HEADER: u32 = 12;
/// Where a frame is in its buffer: on a line of its own, the header at the end of the one before.
pub(crate) const FRAME_AT: u32 = CACHE_LINE as u32;
/// The device writes to what a descriptor with this flag describes.
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const DESCRIPTOR: u32 = 16;
/// A flag of the available ring: no interrupts wanted.
const NO_INTERRUPT: u16 = 1;
/// A flag of the used ring: no kicks wanted.
const NO_NOTIFY: u16 = 1;

/// Where the parts of a ring are in the RAM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingPlaces {
    pub descriptors: u32,
    pub available: u32,
    pub used: u32,
}

impl RingPlaces {
    /// Bytes of one ring: its parts, each from a page on, and room for a signal behind them.
    pub(crate) const fn bytes(slots: u32) -> u32 {
        let page = PAGE_SIZE as u32;
        (DESCRIPTOR * slots + 6 + 2 * slots).next_multiple_of(page) + (6 + 8 * slots + 512).next_multiple_of(page)
    }

    /// Those of a ring of `slots` entries that begins at `start`, a multiple of a page.
    pub(crate) const fn at(start: u32, slots: u32) -> Self {
        let available = start + DESCRIPTOR * slots;
        Self { descriptors: start, available, used: (available + 6 + 2 * slots).next_multiple_of(PAGE_SIZE as u32) }
    }
}

/// Buffers of one ring, each at its number: a frame begins on a cache line, with its header right before it.
#[derive(Debug)]
pub(crate) struct DriverBuffers {
    pub ram: Arc<Ram>,
    place: NonNull<u8>,
    offset: u32,
    /// Bytes of a frame that each has room for, and from one to the next.
    pub room: u32,
    stride: u32,
}

// SAFETY: the buffers lie in the RAM, which this holds, and have no thread affinity; one half of a driver has them.
unsafe impl Send for DriverBuffers {}

impl DriverBuffers {
    /// Bytes from one buffer to the next.
    pub(crate) const fn stride(room: u32) -> u32 {
        FRAME_AT + room.next_multiple_of(CACHE_LINE as u32)
    }

    /// `slots` buffers from `offset` on, a multiple of a cache line.
    ///
    /// # Errors
    ///
    /// They do not lie in the RAM.
    pub(crate) fn new(ram: &Arc<Ram>, offset: u32, room: u32, slots: u32) -> Result<Self, Fault> {
        let stride = Self::stride(room);
        let place = ram.at(offset, stride as usize * slots as usize)?;
        Ok(Self { ram: ram.clone(), place, offset, room, stride })
    }

    /// Where the frame of a buffer is in the RAM.
    #[inline(always)]
    pub(crate) const fn offset(&self, id: u16) -> u32 {
        self.offset + self.stride * id as u32 + FRAME_AT
    }

    /// Where the frame of a buffer is mapped.
    #[inline(always)]
    pub(crate) fn frame(&self, id: u16) -> *mut u8 {
        self.place.as_ptr().wrapping_add((self.stride * u32::from(id) + FRAME_AT) as usize)
    }
}

/// The driver's end of one split queue.
pub(crate) struct DriverRing {
    _ram: Arc<Ram>,
    descriptors: NonNull<[u64; 2]>,
    /// Flags, index, the numbers, and the index at which we want to be called.
    available: NonNull<AtomicU16>,
    used: NonNull<AtomicU16>,
    pub size: u16,
    has_event_index: bool,
    /// The next entry of the available ring, and how far the device was shown it.
    next: u16,
    shown: u16,
    /// The next used entry.
    pub seen: u16,
    /// Its index as last looked at.
    known: u16,
}

// SAFETY: the ring lies in the RAM, which this holds, and has no thread affinity; one half of a driver has it.
unsafe impl Send for DriverRing {}

impl DriverRing {
    /// An empty ring of `slots` entries, a power of two, at `start`.
    ///
    /// # Errors
    ///
    /// It does not lie in the RAM.
    pub(crate) fn new(ram: &Arc<Ram>, start: u32, slots: u32, has_event_index: bool) -> Result<Self, Fault> {
        let bytes = RingPlaces::bytes(slots) as usize;
        let place = ram.at(start, bytes)?;
        // SAFETY: in the RAM, as just found; whoever calls has these bytes to itself.
        unsafe { place.write_bytes(0, bytes) };
        let RingPlaces { available, used, .. } = RingPlaces::at(start, slots);
        let at = |offset: u32| {
            // SAFETY: within the bytes just found.
            unsafe { place.add((offset - start) as usize) }
        };
        Ok(Self {
            _ram: ram.clone(),
            descriptors: place.cast(),
            available: at(available).cast(),
            used: at(used).cast(),
            size: slots as u16,
            has_event_index,
            next: 0,
            shown: 0,
            seen: 0,
            known: 0,
        })
    }

    /// The word at position `index` of the available ring: 0 flags, 1 index, from 2 on numbers, then the wish.
    #[inline(always)]
    fn available(&self, index: u16) -> &AtomicU16 {
        // SAFETY: at most `size + 2`, and as many words and three lie there.
        unsafe { self.available.add(usize::from(index)).as_ref() }
    }

    /// A word of the used ring: 0 flags, 1 index; behind its entries the device's wish.
    #[inline(always)]
    fn used(&self, index: usize) -> &AtomicU16 {
        // SAFETY: 0, 1, or behind the entries, where `new` left room.
        unsafe { self.used.add(index).as_ref() }
    }

    pub(crate) fn describe(&self, id: u16, address: u64, length: u32, flags: u16, next: u16) {
        let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
        // SAFETY: `id` is less than `size`; the device was not shown this descriptor.
        unsafe { self.descriptors.add(usize::from(id)).write([address.to_le(), rest.to_le()]) };
    }

    /// The length of a descriptor that has its buffer already.
    #[inline(always)]
    pub(crate) fn set_length(&self, id: u16, length: u32) {
        // SAFETY: `id` is less than `size`; the device does not have this descriptor now.
        unsafe {
            self.descriptors.add(usize::from(id)).cast::<[u32; 4]>().as_ptr().cast::<u32>().add(2).write(length.to_le())
        };
    }

    /// Puts a chain at the end of what is available; the device sees it after [`Self::show`].
    #[inline(always)]
    pub(crate) fn put(&mut self, id: u16) {
        self.available(2 + (self.next & (self.size - 1))).store(id.to_le(), Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
    }

    /// Chains that the device was not shown.
    pub(crate) const fn unshown(&self) -> u16 {
        self.next.wrapping_sub(self.shown)
    }

    /// Shows the device everything put. `true`: it wants a kick.
    #[inline]
    pub(crate) fn show(&mut self) -> bool {
        let before = std::mem::replace(&mut self.shown, self.next);
        // [VQ-1 chains visible] release: descriptors and numbers before the index; the device's partner is in refresh.
        self.available(1).store(self.next.to_le(), Ordering::Release);
        // [VQ-4 kick or see] our index before we look at the device's wish; partner in arm.
        fence(Ordering::SeqCst);
        if !self.has_event_index {
            return u16::from_le(self.used(0).load(Ordering::Relaxed)) & NO_NOTIFY == 0;
        }
        let wish = u16::from_le(self.used(2 + 4 * usize::from(self.size)).load(Ordering::Relaxed));
        self.next.wrapping_sub(wish).wrapping_sub(1) < self.next.wrapping_sub(before)
    }

    /// Used entries that were not taken. Looks again only when there are none.
    #[inline]
    pub(crate) fn ready(&mut self, under_way: u16) -> std::result::Result<u16, Fault> {
        if self.known == self.seen {
            // [VQ-2 used visible] acquire: the index before the entries; partner in complete.
            let found = u16::from_le(self.used(1).load(Ordering::Acquire));
            let ready = found.wrapping_sub(self.seen);
            if ready > under_way {
                return Err(Fault::IndexOutOfRange { index: ready.into(), limit: under_way.into() });
            }
            self.known = found;
        }
        Ok(self.known.wrapping_sub(self.seen))
    }

    /// The next used entry: the number of its chain, checked, and the bytes written to it.
    #[inline]
    pub(crate) fn take(&mut self) -> std::result::Result<(u16, u32), Fault> {
        let index = usize::from(self.seen & (self.size - 1));
        // SAFETY: less than `size` entries of 8 bytes lie behind the first two words, aligned to four.
        let entry = unsafe { self.used.add(2).cast::<[u32; 2]>().add(index).read_volatile() };
        let [id, length] = entry.map(u32::from_le);
        if id >= self.size.into() {
            return Err(Fault::IndexOutOfRange { index: id, limit: self.size.into() });
        }
        self.seen = self.seen.wrapping_add(1);
        Ok((id as u16, length))
    }

    /// The number in the used entry at `index`, for who does not believe it.
    #[inline]
    pub(crate) fn peek(&self, index: usize) -> u32 {
        // SAFETY: as in `take`.
        u32::from_le(unsafe { self.used.add(2).cast::<[u32; 2]>().add(index).cast::<u32>().read_volatile() })
    }

    /// Asks to be called for the next used entry. `true`: there is none yet.
    pub(crate) fn arm(&mut self, under_way: u16) -> std::result::Result<bool, Fault> {
        if self.has_event_index {
            self.available(2 + self.size).store(self.seen.to_le(), Ordering::Relaxed);
        } else {
            self.available(0).store(0, Ordering::Relaxed);
        }
        // [VQ-3 call or see] our wish before the device's index; partner in complete.
        fence(Ordering::SeqCst);
        Ok(self.ready(under_way)? == 0)
    }

    /// No calls wanted.
    pub(crate) fn disarm(&self) {
        if self.has_event_index {
            // As far behind as can be: an index that comes by seldom, and harms nobody when it does.
            self.available(2 + self.size).store(self.seen.wrapping_sub(1).to_le(), Ordering::Relaxed);
        } else {
            self.available(0).store(NO_INTERRUPT.to_le(), Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for DriverRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverRing")
            .field("size", &self.size)
            .field("next", &self.next)
            .field("seen", &self.seen)
            .finish()
    }
}
