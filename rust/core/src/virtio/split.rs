//! One split virtqueue, seen from the device.
//!
//! ```text
//!   available ring ─▶ heads: which chains the driver made available     (driver writes idx, ring, used_event)
//!   descriptor table ─▶ chain: where its pieces are                      (driver writes)
//!   used ring ◀─ complete, publish: which chains we are done with        (we write idx, ring, flags, avail_event)
//! ```
//!
//! Chains are completed in the order in which they were taken, so `next` counts for both rings.
//! The danger: the driver may write any of this at any time. Each index and each descriptor is loaded once into a private
//! copy, the copy is checked, and every loop is bounded by the size of the queue or of an indirect table, never by what is
//! read. What breaks a rule is a [`Fault`], after which the queue is not touched again. Places in rings were looked up once,
//! for the whole ring; buffers are looked up with their length, piece by piece.
//! Source: virtio 1.2 §2.7 (split virtqueues), with the rules for drivers taken as rules that are checked.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};

use super::memory::GuestMemory;
use crate::error::Fault;
use crate::port::batch::prefetch_read;

/// Largest queue, as the specification has it.
pub const SIZE_MAX: u32 = 32768;
/// Most descriptors of one chain: what bounds the work that one frame can make.
pub const CHAIN_MAX: u32 = 1024;

const DESCRIPTOR_BYTES: u64 = 16;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

type Checked<T> = std::result::Result<T, Fault>;

/// A private copy of one descriptor.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// # Safety
    ///
    /// 16 bytes at `place` are mapped; it need not be aligned.
    #[inline]
    unsafe fn fetch(place: *const u8) -> Self {
        // SAFETY: as promised by the caller. One copy of each word; what the driver writes meanwhile is its own loss.
        let [address, rest] = unsafe { place.cast::<[[u8; 8]; 2]>().read_volatile() }.map(u64::from_le_bytes);
        Self { address, length: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

/// Bytes of one chain that lie together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub place: NonNull<u8>,
    pub bytes: u32,
}

/// Which way a chain's buffers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The driver wrote them, we read.
    FromDriver,
    /// The driver posted them, we write.
    ToDriver,
}

/// Where a front end put a queue, and what it agreed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueAt {
    /// Entries, a power of two, 1 to [`SIZE_MAX`].
    pub size: u32,
    /// Address of the descriptor table, as the front end has it.
    pub descriptors: u64,
    /// Address of the ring of available chains.
    pub available: u64,
    /// Address of the ring of used chains.
    pub used: u64,
    /// `VIRTIO_F_EVENT_IDX` was agreed on.
    pub has_event_index: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was agreed on.
    pub has_indirect: bool,
}

/// One queue, worked on by one thread.
pub(crate) struct SplitQueue {
    memory: Arc<GuestMemory>,
    size: u16,
    descriptors: NonNull<u8>,
    available: NonNull<u8>,
    used: NonNull<u8>,
    has_event_index: bool,
    has_indirect: bool,
    /// The chain to take next; also where its used entry will be.
    next: u16,
    /// How far the driver is, as last read.
    known: u16,
    /// The used entries that were published.
    published: u16,
    /// Where `published` was when it was last asked whether the driver wants to hear.
    announced: u16,
    hint: usize,
}

// SAFETY: its places lie in `memory`, which is mapped for as long as the queue holds it.
unsafe impl Send for SplitQueue {}

impl SplitQueue {
    /// A queue that goes on where its used ring says it was left.
    ///
    /// # Errors
    ///
    /// The front end's fault: a size or an alignment that cannot be, or a ring that is not in its memory.
    pub(crate) fn new(memory: Arc<GuestMemory>, at: &QueueAt) -> Checked<Self> {
        let size = at.size;
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(Fault::BadSize { what: "queue size", found: size.into(), limit: SIZE_MAX.into() });
        }
        let entries = u64::from(size);
        let ring = |what, address: u64, align: u64, bytes: u64| {
            if !address.is_multiple_of(align) {
                return Err(Fault::BadSize { what, found: address, limit: align });
            }
            let limit = u32::try_from(bytes).unwrap_or(u32::MAX);
            memory.structure(address, bytes).ok_or(Fault::OutsideMemory { address, length: limit })
        };
        let descriptors = ring("address of a descriptor table", at.descriptors, 16, DESCRIPTOR_BYTES * entries)?;
        let available = ring("address of an available ring", at.available, 2, 6 + 2 * entries)?;
        let used = ring("address of a used ring", at.used, 4, 6 + 8 * entries)?;
        let mut queue = Self {
            size: size as u16,
            descriptors,
            available,
            used,
            has_event_index: at.has_event_index,
            has_indirect: at.has_indirect,
            next: 0,
            known: 0,
            published: 0,
            announced: 0,
            hint: 0,
            memory,
        };
        queue.next = queue.used_index().load(Ordering::Relaxed);
        queue.known = queue.next;
        queue.published = queue.next;
        queue.announced = queue.next;
        Ok(queue)
    }

    /// Entries.
    pub(crate) const fn size(&self) -> u32 {
        self.size as u32
    }

    /// The chain that will be taken next: what a front end asks for when it stops a queue.
    pub(crate) const fn position(&self) -> u16 {
        self.next
    }

    /// Chains that were available when this was last looked at and are not taken.
    #[inline]
    pub(crate) const fn known(&self) -> u32 {
        self.known.wrapping_sub(self.next) as u32
    }

    #[inline]
    const fn index_of(&self, number: u16) -> usize {
        (number & (self.size - 1)) as usize
    }

    /// A word of the available ring: 0 flags, 1 idx, 2 and on the ring, then `used_event`.
    #[inline]
    const fn available_word(&self, word: usize) -> &AtomicU16 {
        // SAFETY: `word` is at most size + 2, which lies in the ring as `new` looked it up, aligned to 2; everybody who
        // shares it is bound to whole words by the specification, and whoever is not gets what it gets.
        unsafe { AtomicU16::from_ptr(self.available.as_ptr().cast::<u16>().add(word)) }
    }

    /// A word of the used ring: 0 flags, 1 idx; `avail_event` behind all entries.
    #[inline]
    const fn used_word(&self, word: usize) -> &AtomicU16 {
        // SAFETY: as above, for the used ring: 3 + 4 × size words.
        unsafe { AtomicU16::from_ptr(self.used.as_ptr().cast::<u16>().add(word)) }
    }

    #[inline]
    const fn used_index(&self) -> &AtomicU16 {
        self.used_word(1)
    }

    /// Looks how many chains are available now.
    ///
    /// # Errors
    ///
    /// The driver's index is further ahead than the queue has entries, or went back.
    #[inline]
    pub(crate) fn refresh(&mut self) -> Checked<u32> {
        // [VQ-1 chains visible] acquire: the driver wrote ring and descriptors before its index.
        let tail = self.available_word(1).load(Ordering::Acquire);
        let ready = tail.wrapping_sub(self.next);
        if ready > self.size {
            return Err(Fault::TailOutOfRange { tail: tail.into(), head: self.next.into(), slots: self.size() });
        }
        self.known = tail;
        Ok(ready.into())
    }

    /// The head of the chain `ahead` places behind the next, which must be known, and asks for its descriptor.
    ///
    /// # Errors
    ///
    /// It is no descriptor of this queue.
    #[inline]
    pub(crate) fn head(&self, ahead: u32) -> Checked<u16> {
        debug_assert!(ahead < self.known());
        let place = self.index_of(self.next.wrapping_add(ahead as u16));
        let head = self.available_word(2 + place).load(Ordering::Relaxed);
        if head >= self.size {
            return Err(Fault::IndexOutOfRange { index: head.into(), limit: self.size() });
        }
        prefetch_read(self.descriptors.as_ptr().wrapping_add(usize::from(head) * DESCRIPTOR_BYTES as usize));
        Ok(head)
    }

    /// The buffer of a chain of one piece that lies together; `None`: it is not so simple, see [`Self::chain`].
    #[inline]
    pub(crate) fn single(&mut self, head: u16, direction: Direction) -> Option<Segment> {
        // SAFETY: head < size, and the table was looked up for its whole size.
        let found = unsafe { Descriptor::fetch(self.descriptors.as_ptr().add(usize::from(head) * 16)) };
        let expected = if direction == Direction::ToDriver { WRITE } else { 0 };
        if found.flags != expected || found.length == 0 {
            return None;
        }
        let (place, bytes) = self.memory.place(&mut self.hint, found.address, found.length)?;
        (bytes == found.length).then_some(Segment { place, bytes })
    }

    /// Appends the pieces of a chain to `pieces`: how many bytes they have together.
    ///
    /// # Errors
    ///
    /// The chain breaks a rule.
    pub(crate) fn chain(&mut self, head: u16, direction: Direction, pieces: &mut Vec<Segment>) -> Checked<u64> {
        let mut table = Table { first: None, entries: self.size() };
        let mut index = u32::from(head);
        let mut total = 0;
        let mut left = CHAIN_MAX.min(self.size());
        let mut limit = left;
        loop {
            if index >= table.entries {
                return Err(Fault::IndexOutOfRange { index, limit: table.entries });
            }
            if left == 0 {
                return Err(Fault::ChainTooLong { limit });
            }
            left -= 1;
            let found = self.descriptor(&table, index)?;
            if found.flags & INDIRECT != 0 {
                table = self.indirect(&table, &found)?;
                index = 0;
                limit = CHAIN_MAX.min(table.entries);
                left = limit;
                continue;
            }
            if (found.flags & WRITE != 0) != (direction == Direction::ToDriver) {
                return Err(Fault::WrongDirection { flags: found.flags });
            }
            total += u64::from(found.length);
            self.pieces(&found, pieces)?;
            if found.flags & NEXT == 0 {
                return Ok(total);
            }
            index = found.next.into();
        }
    }

    fn descriptor(&mut self, table: &Table, index: u32) -> Checked<Descriptor> {
        let Some(first) = table.first else {
            // SAFETY: index < size, and the table was looked up for its whole size.
            return Ok(unsafe { Descriptor::fetch(self.descriptors.as_ptr().add(index as usize * 16)) });
        };
        // An indirect table may begin anywhere and cross regions, so each entry is looked up, and copied piece by piece.
        let mut copy = [0; DESCRIPTOR_BYTES as usize];
        let address = first + u64::from(index) * DESCRIPTOR_BYTES;
        let mut done = 0;
        while done < copy.len() {
            let (here, wanted) = (address.wrapping_add(done as u64), (copy.len() - done) as u32);
            let (place, bytes) = self.locate(here, wanted)?;
            // SAFETY: `bytes` of them are mapped there, and at most as many are left of the copy.
            unsafe { place.as_ptr().copy_to_nonoverlapping(copy.as_mut_ptr().add(done), bytes as usize) };
            done += bytes as usize;
        }
        // SAFETY: the private copy has 16 bytes.
        Ok(unsafe { Descriptor::fetch(copy.as_ptr()) })
    }

    /// The table that an indirect descriptor of the queue's own table points at.
    fn indirect(&self, table: &Table, found: &Descriptor) -> Checked<Table> {
        let entries = u64::from(found.length) / DESCRIPTOR_BYTES;
        let is_whole = u64::from(found.length).is_multiple_of(DESCRIPTOR_BYTES) && entries != 0;
        let is_alone = found.flags & NEXT == 0 && table.first.is_none() && self.has_indirect;
        let ends = found.address.checked_add(u64::from(found.length)).is_some();
        if !(is_whole && is_alone && ends) || entries > u64::from(SIZE_MAX) {
            return Err(Fault::BadIndirect { length: found.length, flags: found.flags });
        }
        Ok(Table { first: Some(found.address), entries: entries as u32 })
    }

    /// Appends the buffer of one descriptor, in as many pieces as regions it is in.
    fn pieces(&mut self, found: &Descriptor, pieces: &mut Vec<Segment>) -> Checked<()> {
        if found.length == 0 {
            return Err(Fault::ZeroLength { offset: found.address as u32 });
        }
        let mut done = 0;
        while done < found.length {
            let address = found.address.checked_add(done.into());
            let outside = Fault::OutsideMemory { address: found.address, length: found.length };
            let (place, bytes) = self.locate(address.ok_or(outside)?, found.length - done).map_err(|_| outside)?;
            pieces.push(Segment { place, bytes });
            done += bytes;
        }
        Ok(())
    }

    fn locate(&mut self, address: u64, length: u32) -> Checked<(NonNull<u8>, u32)> {
        self.memory.place(&mut self.hint, address, length).ok_or(Fault::OutsideMemory { address, length })
    }

    /// Takes the next chain and notes that we are done with it: `written` bytes of it were, or will be before
    /// [`Self::publish`], written.
    #[inline]
    pub(crate) fn complete(&mut self, head: u16, written: u32) {
        let place = self.index_of(self.next);
        // SAFETY: entries begin behind flags and idx, 8 bytes each, as many as `new` looked up; aligned to 4.
        unsafe {
            let entry = self.used.as_ptr().add(4 + 8 * place).cast::<u32>();
            entry.write_volatile((head as u32).to_le());
            entry.add(1).write_volatile(written.to_le());
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Chains completed that the driver cannot see yet.
    #[inline]
    pub(crate) const fn unpublished(&self) -> u32 {
        self.next.wrapping_sub(self.published) as u32
    }

    /// Shows the driver every chain that was completed. `true`: it wants to be called.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        self.published = self.next;
        // [VQ-2 used visible] release: the entries, and what was written into buffers, before the index.
        self.used_index().store(self.next, Ordering::Release);
        // [VQ-3 call or see] our index before the driver's wish; the driver's wish before its look at our index.
        fence(Ordering::SeqCst);
        let before = std::mem::replace(&mut self.announced, self.next);
        if !self.has_event_index {
            return self.available_word(0).load(Ordering::Relaxed) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0;
        }
        let event = self.available_word(2 + usize::from(self.size)).load(Ordering::Relaxed);
        is_reached(event, before, self.next)
    }

    /// Asks the driver to kick when there is more. `true`: there is nothing now.
    ///
    /// # Errors
    ///
    /// As [`Self::refresh`].
    pub(crate) fn arm(&mut self) -> Checked<bool> {
        if self.has_event_index {
            self.used_word(2 + 4 * usize::from(self.size)).store(self.next, Ordering::Relaxed);
        } else {
            self.used_word(0).store(0, Ordering::Relaxed);
        }
        // [VQ-4 kick or see] our wish before we look at the driver's index; the driver's index before its look at our wish.
        fence(Ordering::SeqCst);
        Ok(self.refresh()? == 0)
    }

    /// No kicks wanted. With an event index there is nothing to do: the one that was asked for is in the past soon.
    pub(crate) fn disarm(&self) {
        if !self.has_event_index {
            self.used_word(0).store(VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for SplitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitQueue")
            .field("size", &self.size)
            .field("next", &self.next)
            .field("known", &self.known)
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}

/// Where descriptors are read from: the queue's own table, or an indirect one.
struct Table {
    first: Option<u64>,
    entries: u32,
}

/// Whether an index passed `event` on its way from `before` to `after`.
const fn is_reached(event: u16, before: u16, after: u16) -> bool {
    after.wrapping_sub(event).wrapping_sub(1) < after.wrapping_sub(before)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::fs::File;
    use std::thread;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::virtio::memory::RegionAt;

    const SIZE: u16 = 8;
    /// Two regions, each behind the other for descriptors but not for the front end, and nothing behind them.
    const GUEST: u64 = 0x10000;
    const BYTES: u64 = 0x8000;
    const END: u64 = GUEST + 2 * BYTES;
    const USER: u64 = 0x7f00_0000;
    const TABLE: u64 = 0;
    const AVAILABLE: u64 = 0x200;
    const USED: u64 = 0x400;
    /// Where buffers and indirect tables are, counted from the first guest address.
    const BUFFERS: u64 = 0x1000;

    /// The driver's side: writes what it likes.
    struct Driver {
        memory: Arc<GuestMemory>,
        available: u16,
    }

    impl Driver {
        fn new() -> Self {
            let memfd = || {
                let file = memfd_create("driver", MemfdFlags::CLOEXEC).unwrap();
                ftruncate(&file, BYTES).unwrap();
                File::from(file)
            };
            let at = |number: u64| RegionAt {
                guest: GUEST + number * BYTES,
                size: BYTES,
                user: USER + 2 * number * BYTES,
                offset: 0,
            };
            let memory = GuestMemory::map([(at(0), memfd()), (at(1), memfd())]).unwrap();
            Self { memory: Arc::new(memory), available: 0 }
        }

        fn at(&self) -> QueueAt {
            QueueAt {
                size: SIZE.into(),
                descriptors: USER + TABLE,
                available: USER + AVAILABLE,
                used: USER + USED,
                has_event_index: false,
                has_indirect: true,
            }
        }

        fn queue(&self) -> SplitQueue {
            SplitQueue::new(self.memory.clone(), &self.at()).unwrap()
        }

        fn place(&self, offset: u64) -> *mut u8 {
            self.memory.place(&mut 0, GUEST + offset, 1).unwrap().0.as_ptr()
        }

        fn word(&self, offset: u64) -> &AtomicU16 {
            // SAFETY: mapped for as long as `memory` is; offsets of tests are even.
            unsafe { AtomicU16::from_ptr(self.place(offset).cast()) }
        }

        /// Writes a descriptor, byte by byte as the specification has it, into a table at `table`.
        fn describe(&self, table: u64, index: u64, address: u64, length: u32, flags: u16, next: u16) {
            let bytes =
                [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
            for (at, byte) in bytes.into_iter().enumerate() {
                // SAFETY: tests keep tables within the first region.
                unsafe { self.place(table + index * 16 + at as u64).write_volatile(byte) };
            }
        }

        /// Makes the chain that begins at `head` available.
        fn offer(&mut self, head: u16) {
            let place = u64::from(self.available % SIZE);
            self.word(AVAILABLE + 4 + 2 * place).store(head, Ordering::Relaxed);
            self.available = self.available.wrapping_add(1);
            // [VQ-1 chains visible] release: descriptors and ring before the index; the device's partner is in refresh.
            self.word(AVAILABLE + 2).store(self.available, Ordering::Release);
        }

        /// Whether the device wants to hear of what was offered just now.
        fn kicks(&self) -> bool {
            // [VQ-4 kick or see] our index before we look at the device's wish; partner in arm.
            fence(Ordering::SeqCst);
            self.word(USED).load(Ordering::Relaxed) & 1 == 0
        }

        /// Chains that came back.
        fn used(&self) -> u16 {
            // [VQ-2 used visible] acquire: the index before the entries; partner in publish.
            self.word(USED + 2).load(Ordering::Acquire)
        }

        /// Says whether calls are wanted, then looks whether one is needed no more.
        fn listens(&self, is_listening: bool) -> u16 {
            self.word(AVAILABLE).store(u16::from(!is_listening), Ordering::Relaxed);
            // [VQ-3 call or see] our wish before the device's index; partner in publish.
            fence(Ordering::SeqCst);
            self.used()
        }
    }

    fn walk(driver: &mut Driver, head: u16, direction: Direction) -> Checked<(u64, Vec<u32>)> {
        let mut queue = driver.queue();
        driver.offer(head);
        queue.refresh()?;
        let head = queue.head(0)?;
        let mut pieces = Vec::new();
        let total = queue.chain(head, direction, &mut pieces)?;
        Ok((total, pieces.iter().map(|piece| piece.bytes).collect()))
    }

    fn reason(outcome: Checked<(u64, Vec<u32>)>) -> &'static str {
        outcome.unwrap_err().reason()
    }

    fn buffer(number: u64) -> u64 {
        GUEST + BUFFERS + number * 0x100
    }

    #[test]
    fn chain_of_three_has_three_pieces() {
        let mut driver = Driver::new();
        driver.describe(TABLE, 2, buffer(0), 12, NEXT, 5);
        driver.describe(TABLE, 5, buffer(1), 64, NEXT, 0);
        driver.describe(TABLE, 0, buffer(2), 100, 0, 9);

        assert_eq!(Ok((176, vec![12, 64, 100])), walk(&mut driver, 2, Direction::FromDriver));
    }

    #[test]
    fn indirect_table_is_followed_by_its_own_indices() {
        let mut driver = Driver::new();
        driver.describe(BUFFERS, 0, buffer(4), 12, NEXT | WRITE, 19);
        driver.describe(BUFFERS, 19, buffer(5), 1500, WRITE, 0);
        driver.describe(TABLE, 7, GUEST + BUFFERS, 20 * 16, INDIRECT, 0);

        assert_eq!(Ok((1512, vec![12, 1500])), walk(&mut driver, 7, Direction::ToDriver));
    }

    /// CVE-2018-1059: a buffer that goes on in the next region is two pieces; there is no one-piece shortcut for it.
    #[test]
    fn buffer_across_two_regions_is_two_pieces() {
        let mut driver = Driver::new();
        driver.describe(TABLE, 0, GUEST + BYTES - 100, 300, 0, 0);

        let mut queue = driver.queue();
        assert!(queue.single(0, Direction::FromDriver).is_none());
        assert_eq!(Ok((300, vec![100, 200])), walk(&mut driver, 0, Direction::FromDriver));
    }

    /// CVE-2018-1059, and addresses that are nowhere: the length counts, not only the beginning.
    #[test]
    fn buffer_that_ends_outside_of_memory_is_refused() {
        for (address, length) in [
            (0, 64),
            (GUEST - 1, 64),
            (END - 63, 64),
            (END, 1),
            (u64::MAX, 64),
            (u64::MAX - 10, u32::MAX),
            (buffer(0), u32::MAX),
        ] {
            let mut driver = Driver::new();
            driver.describe(TABLE, 0, address, length, 0, 0);

            let outcome = walk(&mut driver, 0, Direction::FromDriver);

            assert_eq!("outside_memory", reason(outcome), "{address:#x} + {length}");
            assert!(driver.queue().single(0, Direction::FromDriver).is_none());
        }
    }

    /// CVE-2020-10725: length 0, at an address that is there and at one that is not.
    #[test]
    fn buffer_of_length_0_is_refused() {
        for address in [buffer(0), 0] {
            let mut driver = Driver::new();
            driver.describe(TABLE, 0, address, 0, 0, 0);
            assert_eq!("zero_length", reason(walk(&mut driver, 0, Direction::FromDriver)));
            assert!(driver.queue().single(0, Direction::FromDriver).is_none());
        }
    }

    #[test]
    fn chain_without_an_end_is_refused() {
        let mut driver = Driver::new();
        driver.describe(TABLE, 0, buffer(0), 64, NEXT, 1);
        driver.describe(TABLE, 1, buffer(1), 64, NEXT, 0);

        assert_eq!(Err(Fault::ChainTooLong { limit: SIZE.into() }), walk(&mut driver, 0, Direction::FromDriver));
    }

    /// A loop within an indirect table, and a table of more links than any chain may have.
    #[test]
    fn indirect_chain_without_an_end_is_refused() {
        for next in [0, 1] {
            let mut driver = Driver::new();
            driver.describe(BUFFERS, 0, buffer(8), 1, NEXT, next);
            driver.describe(BUFFERS, 1, buffer(8), 1, NEXT, 0);
            driver.describe(TABLE, 0, GUEST + BUFFERS, 0x6000, INDIRECT, 0);
            assert_eq!("chain_too_long", reason(walk(&mut driver, 0, Direction::FromDriver)));
        }
    }

    /// CVE-2026-86846, and `next` outside of the table (CVE-2026-93683).
    #[test]
    fn index_outside_of_the_table_is_refused() {
        let mut driver = Driver::new();
        driver.describe(TABLE, 0, buffer(0), 64, NEXT, SIZE);
        driver.describe(BUFFERS, 0, buffer(8), 1, NEXT, 2);
        driver.describe(TABLE, 1, GUEST + BUFFERS, 32, INDIRECT, 0);

        for head in [0, 1, SIZE, u16::MAX] {
            driver.available = 0;
            assert_eq!("index_out_of_range", reason(walk(&mut driver, head, Direction::FromDriver)), "{head}");
        }
    }

    #[test]
    fn buffer_of_the_wrong_direction_is_refused() {
        let mut driver = Driver::new();
        driver.describe(TABLE, 0, buffer(0), 64, NEXT, 1);
        driver.describe(TABLE, 1, buffer(1), 64, WRITE, 0);

        assert_eq!("wrong_direction", reason(walk(&mut driver, 0, Direction::FromDriver)));
        driver.available = 0;
        assert_eq!("wrong_direction", reason(walk(&mut driver, 0, Direction::ToDriver)));
        assert!(driver.queue().single(1, Direction::FromDriver).is_none());
    }

    /// Not agreed on, nested, with a next, of no or of half an entry, or ending behind the last address.
    #[test]
    fn indirect_descriptor_that_cannot_be_is_refused() {
        let table = GUEST + BUFFERS;
        for (address, length, flags) in [
            (table, 32, INDIRECT | NEXT),
            (table, 0, INDIRECT),
            (table, 24, INDIRECT),
            (u64::MAX - 8, 16, INDIRECT),
            (table, 0xffff_fff0, INDIRECT),
        ] {
            let mut driver = Driver::new();
            driver.describe(BUFFERS, 0, buffer(8), 64, 0, 0);
            driver.describe(TABLE, 0, address, length, flags, 1);
            assert_eq!("bad_indirect", reason(walk(&mut driver, 0, Direction::FromDriver)), "{length} {flags}");
        }
        let mut nested = Driver::new();
        nested.describe(BUFFERS, 0, table, 16, INDIRECT, 0);
        nested.describe(TABLE, 0, table, 16, INDIRECT, 0);
        assert_eq!("bad_indirect", reason(walk(&mut nested, 0, Direction::FromDriver)));
        let mut unasked = Driver::new();
        unasked.describe(TABLE, 0, table, 16, INDIRECT, 0);
        unasked.offer(0);
        let mut queue =
            SplitQueue::new(unasked.memory.clone(), &QueueAt { has_indirect: false, ..unasked.at() }).unwrap();
        assert_eq!("bad_indirect", queue.chain(0, Direction::FromDriver, &mut Vec::new()).unwrap_err().reason());
    }

    #[test]
    fn indirect_table_outside_of_memory_is_refused() {
        for address in [0, END - 8, END] {
            let mut driver = Driver::new();
            driver.describe(TABLE, 0, address, 16, INDIRECT, 0);
            assert_eq!("outside_memory", reason(walk(&mut driver, 0, Direction::FromDriver)), "{address:#x}");
        }
    }

    /// An indirect table may begin at any byte and go on in the next region.
    #[test]
    fn indirect_table_across_two_regions_is_followed() {
        let mut driver = Driver::new();
        let start = BYTES - 17;
        driver.describe(start, 0, buffer(0), 12, NEXT, 1);
        driver.describe(start, 1, buffer(1), 64, 0, 0);
        driver.describe(TABLE, 0, GUEST + start, 32, INDIRECT, 0);

        assert_eq!(Ok((76, vec![12, 64])), walk(&mut driver, 0, Direction::FromDriver));
    }

    /// An index that jumps further than the queue is long, or goes back by one.
    #[test]
    fn available_index_that_jumps_is_refused() {
        for index in [SIZE + 1, 0x8000, u16::MAX] {
            let driver = Driver::new();
            let mut queue = driver.queue();
            driver.word(AVAILABLE + 2).store(index, Ordering::Relaxed);
            assert_eq!("tail_out_of_range", queue.refresh().unwrap_err().reason(), "{index}");
        }
    }

    #[test]
    fn queue_that_cannot_be_is_refused() {
        let driver = Driver::new();
        let fine = driver.at();
        for (bad, expected) in [
            (QueueAt { size: 0, ..fine }, "bad_size"),
            (QueueAt { size: 3, ..fine }, "bad_size"),
            (QueueAt { size: 65536, ..fine }, "bad_size"),
            (QueueAt { descriptors: fine.descriptors + 8, ..fine }, "bad_size"),
            (QueueAt { available: fine.available + 1, ..fine }, "bad_size"),
            (QueueAt { used: fine.used + 2, ..fine }, "bad_size"),
            (QueueAt { descriptors: 0, ..fine }, "outside_memory"),
            (QueueAt { size: 4096, ..fine }, "outside_memory"),
            (QueueAt { used: USER + BYTES - 64, ..fine }, "outside_memory"),
            (QueueAt { available: u64::MAX - 1, ..fine }, "outside_memory"),
        ] {
            let refused = SplitQueue::new(driver.memory.clone(), &bad).unwrap_err();
            assert_eq!(expected, refused.reason(), "{bad:?}");
        }
    }

    #[test]
    fn completed_chains_are_seen_once_published() {
        let mut driver = Driver::new();
        let mut queue = driver.queue();
        driver.offer(3);
        driver.offer(1);
        assert_eq!(Ok(2), queue.refresh());

        queue.complete(3, 0);
        queue.complete(1, 77);
        let before = driver.used();
        queue.publish();

        assert_eq!((0, 2, 0), (before, driver.used(), queue.unpublished()));
        let entries = (0..8).map(|word| driver.word(USED + 4 + 2 * word).load(Ordering::Relaxed));
        assert_eq!(vec![3, 0, 0, 0, 1, 0, 77, 0], entries.collect::<Vec<_>>());
    }

    #[test]
    fn driver_is_called_only_while_it_listens() {
        let mut driver = Driver::new();
        let mut queue = driver.queue();

        let called = [true, false].map(|is_listening| {
            driver.offer(0);
            driver.listens(is_listening);
            queue.refresh().unwrap();
            queue.complete(0, 0);
            queue.publish()
        });

        assert_eq!([true, false], called);
    }

    #[test]
    fn kicks_are_asked_for_when_armed_and_not_before() {
        let mut driver = Driver::new();
        let mut queue = driver.queue();
        queue.disarm();
        let polled = driver.kicks();

        let is_idle = queue.arm().unwrap();
        driver.offer(0);

        assert_eq!((false, true, true, false), (polled, is_idle, driver.kicks(), queue.arm().unwrap()));
    }

    /// The event index of the one side is reached exactly when the other passes it.
    #[test]
    fn event_index_is_reached_once() {
        for (event, before, after, expected) in [
            (0, 0, 1, true),
            (0, 1, 2, false),
            (5, 3, 6, true),
            (5, 3, 5, false),
            (0xffff, 0xfffe, 1, true),
            (1, 0xfffe, 1, false),
            (7, 7, 7, false),
        ] {
            assert_eq!(expected, is_reached(event, before, after), "{event} {before} {after}");
        }
    }

    /// CVE-2026-86848: what a driver changes while a chain is walked leads to a piece of its memory or to a fault.
    #[test]
    fn descriptor_that_changes_while_it_is_read_never_leads_outside() {
        let mut driver = Driver::new();
        driver.describe(TABLE, 0, buffer(0), 64, NEXT, 1);
        driver.describe(TABLE, 1, buffer(1), 64, 0, 0);
        driver.offer(0);
        let mut queue = driver.queue();
        queue.refresh().unwrap();
        let walker = thread::spawn(move || {
            let mut pieces = Vec::new();
            let mut outcomes = [0_u32; 2];
            for _ in 0..20_000 {
                pieces.clear();
                match queue.chain(0, Direction::FromDriver, &mut pieces) {
                    Ok(total) => {
                        assert_eq!(total, pieces.iter().map(|piece| u64::from(piece.bytes)).sum::<u64>());
                        outcomes[0] += 1;
                    }
                    Err(_) => outcomes[1] += 1,
                }
            }
            outcomes.iter().sum::<u32>()
        });

        let mut seed = 1_u32;
        while !walker.is_finished() {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let offset = u64::from(seed >> 8) % 32;
            // SAFETY: within the first two descriptors.
            unsafe { driver.place(TABLE + offset).write_volatile((seed >> 24) as u8) };
        }

        assert_eq!(20_000, walker.join().unwrap());
    }
}
