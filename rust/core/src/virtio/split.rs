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

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use super::dirty::{DirtyLog, QueueLog};
use super::inflight::Trail;
use super::memory::GuestMemory;
use super::queue::{
    Ahead, CHAIN_MAX, Chain, Checked, DESCRIPTOR_BYTES, Descriptor, Direction, INDIRECT, Lookup, NEXT, QueueAt,
    SIZE_MAX, Segment, Table, Used, WRITE,
};
use crate::error::Fault;
use crate::port::batch::prefetch_read;

/// One queue, worked on by one thread.
pub(crate) struct SplitQueue {
    lookup: Lookup,
    size: u16,
    descriptors: NonNull<u8>,
    available: NonNull<u8>,
    used: NonNull<u8>,
    has_event_index: bool,
    has_indirect: bool,
    /// The chain to complete next; also where its used entry will be.
    next: u16,
    /// The chain to look at next.
    seen: u16,
    /// How far the driver is, as last read.
    known: u16,
    /// Where the position is kept besides, if the front end wants that.
    trail: Option<Trail>,
    /// Where what we write into the used ring is marked.
    log: Option<QueueLog>,
}

// SAFETY: its places lie in the memory that `lookup` holds, which is mapped for as long as that is.
unsafe impl Send for SplitQueue {}

impl SplitQueue {
    /// A queue that goes on where its used ring says it was left.
    ///
    /// # Errors
    ///
    /// The front end's fault: a size or an alignment that cannot be, or a ring that is not in its memory.
    pub(crate) fn new(memory: Arc<GuestMemory>, at: &QueueAt, trail: Option<Trail>) -> Checked<Self> {
        let size = at.size;
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(Fault::BadSize { what: "queue size", found: size.into(), limit: SIZE_MAX.into() });
        }
        let entries = u64::from(size);
        let lookup = Lookup::new(memory);
        let descriptors =
            lookup.ring("address of a descriptor table", at.descriptors, 16, DESCRIPTOR_BYTES * entries)?;
        let available = lookup.ring("address of an available ring", at.available, 2, 6 + 2 * entries)?;
        let used = lookup.ring("address of a used ring", at.used, 4, 6 + 8 * entries)?;
        let mut queue = Self {
            size: size as u16,
            descriptors,
            available,
            used,
            has_event_index: at.has_event_index,
            has_indirect: at.has_indirect,
            next: 0,
            seen: 0,
            known: 0,
            trail,
            log: None,
            lookup,
        };
        queue.next = queue.used_index().load(Ordering::Relaxed);
        queue.seen = queue.next;
        queue.known = queue.next;
        if let Some(trail) = &queue.trail {
            trail.begin_split(queue.size, queue.next);
        }
        Ok(queue)
    }

    /// Marks in a log, from now on, what is written into the used ring, which is at guest address `used`.
    ///
    /// # Errors
    ///
    /// The log is too short.
    pub(crate) fn keep_log(&mut self, log: Arc<DirtyLog>, used: u64) -> Checked<()> {
        self.log = Some(QueueLog::new(log, (used, 6 + 8 * u64::from(self.size)), None)?);
        Ok(())
    }

    /// Entries.
    pub(crate) const fn size(&self) -> u32 {
        self.size as u32
    }

    /// The chain that will be completed next: what a front end asks for when it stops a queue.
    pub(crate) const fn position(&self) -> u16 {
        self.next
    }

    /// Chains that were available when this was last looked at and are not completed.
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
        if ready > self.size || ready < self.seen.wrapping_sub(self.next) {
            return Err(Fault::TailOutOfRange { tail: tail.into(), head: self.next.into(), slots: self.size() });
        }
        self.known = tail;
        Ok(ready.into())
    }

    /// Looks at up to `wanted` more chains: see [`super::queue::Queue::look`].
    ///
    /// # Errors
    ///
    /// As [`Self::refresh`], or the very next chain breaks a rule.
    #[inline]
    pub(crate) fn look(&mut self, direction: Direction, wanted: usize, ahead: &mut Ahead) -> Checked<usize> {
        let mut ready = usize::from(self.known.wrapping_sub(self.seen));
        if ready < wanted {
            self.refresh()?;
            ready = usize::from(self.known.wrapping_sub(self.seen)).min(wanted);
        }
        let (start, first) = (ahead.chains.len(), ahead.pieces.len());
        // Heads first, so that their descriptors are on their way when they are asked for.
        for place in 0..ready.min(wanted) {
            let place = self.index_of(self.seen.wrapping_add(place as u16));
            let id = self.available_word(2 + place).load(Ordering::Relaxed);
            if id >= self.size {
                if ahead.chains.len() == start {
                    return Err(Fault::IndexOutOfRange { index: id.into(), limit: self.size() });
                }
                break;
            }
            prefetch_read(self.descriptors.as_ptr().wrapping_add(usize::from(id) * DESCRIPTOR_BYTES as usize));
            ahead.chains.push(Chain::new(Used { id, descriptors: 1, written: 0 }));
        }
        let heads = ahead.chains.len() - start;
        let mut found = 0;
        while found < heads && !ahead.is_full(first) {
            let chain = &mut ahead.chains[start + found];
            let id = chain.used.id;
            // SAFETY: id < size, and the table was looked up for its whole size.
            let head = unsafe { Descriptor::fetch(self.descriptors.as_ptr().add(usize::from(id) * 16)) };
            let whole = if head.is_single(direction) { self.lookup.whole(head.address, head.length) } else { None };
            if let Some(place) = whole {
                (chain.place, chain.bytes) = (place, head.length);
            } else if let Err(fault) = self.scatter(head, direction, ahead, start + found) {
                ahead.chains.truncate(start + found);
                self.seen = self.seen.wrapping_add(found as u16);
                return if found == 0 { Err(fault) } else { Ok(found) };
            }
            found += 1;
        }
        ahead.chains.truncate(start + found);
        self.seen = self.seen.wrapping_add(found as u16);
        Ok(found)
    }

    /// Looks again at what was not completed.
    #[inline]
    pub(crate) const fn rewind(&mut self) {
        self.seen = self.next;
    }

    /// Finds the pieces of a chain that does not lie together, beginning with its head.
    #[cold]
    fn scatter(&mut self, head: Descriptor, direction: Direction, ahead: &mut Ahead, at: usize) -> Checked<()> {
        let first = ahead.pieces.len();
        let mut total = 0;
        let pieces = &mut ahead.pieces;
        let walked = self.walk(head, |lookup, found| {
            if found.flags & WRITE != direction.flags() {
                return Err(Fault::WrongDirection { flags: found.flags });
            }
            total += lookup.pieces(found, pieces)?;
            Ok(())
        });
        match walked {
            Ok(()) => ahead.chains[at] = ahead.scattered(first, total, ahead.chains[at].used),
            Err(fault) => {
                ahead.pieces.truncate(first);
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Looks at the next chain, which must be known, as one of both directions: appends the pieces that the driver wrote to
    /// `from`, and those that it posted, which come behind them, to `to`. How to complete it, or look again: [`Self::rewind`].
    ///
    /// # Errors
    ///
    /// The chain breaks a rule.
    pub(crate) fn request(&mut self, from: &mut Vec<Segment>, to: &mut Vec<Segment>) -> Checked<Used> {
        debug_assert!(self.known() != 0 && self.seen == self.next);
        let id = self.available_word(2 + self.index_of(self.next)).load(Ordering::Relaxed);
        let head = self.descriptor(None, id.into())?;
        self.walk(head, |lookup, found| {
            if found.flags & WRITE != 0 {
                return lookup.pieces(found, to).map(drop);
            }
            if !to.is_empty() {
                return Err(Fault::WrongDirection { flags: found.flags });
            }
            lookup.pieces(found, from).map(drop)
        })?;
        self.seen = self.next.wrapping_add(1);
        Ok(Used { id, descriptors: 1, written: 0 })
    }

    /// Shows `visit` a copy of each descriptor of a chain that has a buffer.
    fn walk(
        &mut self,
        head: Descriptor,
        mut visit: impl FnMut(&mut Lookup, &Descriptor) -> Checked<()>,
    ) -> Checked<()> {
        let mut table = None;
        let mut found = head;
        let mut limit = CHAIN_MAX.min(self.size());
        let mut left = limit;
        loop {
            if left == 0 {
                return Err(Fault::ChainTooLong { limit });
            }
            left -= 1;
            if found.flags & INDIRECT != 0 {
                let inner = Table::of(&found, self.has_indirect && table.is_none())?;
                limit = CHAIN_MAX.min(inner.entries);
                left = limit;
                table = Some(inner);
                found = self.descriptor(table.as_ref(), 0)?;
                continue;
            }
            visit(&mut self.lookup, &found)?;
            if found.flags & NEXT == 0 {
                return Ok(());
            }
            found = self.descriptor(table.as_ref(), found.next.into())?;
        }
    }

    /// A copy of a descriptor of the queue's own table, or of an indirect one.
    fn descriptor(&mut self, table: Option<&Table>, index: u32) -> Checked<Descriptor> {
        let limit = table.map_or(self.size(), |table| table.entries);
        if index >= limit {
            return Err(Fault::IndexOutOfRange { index, limit });
        }
        let Some(table) = table else {
            // SAFETY: index < size, and the table was looked up for its whole size.
            return Ok(unsafe { Descriptor::fetch(self.descriptors.as_ptr().add(index as usize * 16)) });
        };
        let copy = self.lookup.entry(table, index)?;
        // SAFETY: the private copy has 16 bytes.
        Ok(unsafe { Descriptor::fetch(copy.as_ptr()) })
    }

    /// Takes the oldest chains and shows the driver that we are done with them. `true`: it wants to be called.
    #[inline]
    pub(crate) fn complete(&mut self, used: impl Iterator<Item = Used>) -> bool {
        let before = self.next;
        for Used { id, written, .. } in used {
            let place = self.index_of(self.next);
            // SAFETY: entries begin behind flags and idx, 8 bytes each, as many as `new` looked up; aligned to 4.
            unsafe {
                let entry = self.used.as_ptr().add(4 + 8 * place).cast::<u32>();
                entry.write_volatile((id as u32).to_le());
                entry.add(1).write_volatile(written.to_le());
            }
            self.next = self.next.wrapping_add(1);
        }
        // [VQ-2 used visible] release: the entries, and what was written into buffers, before the index.
        self.used_index().store(self.next, Ordering::Release);
        if let Some(trail) = &self.trail {
            trail.note_split(self.next);
        }
        if let Some(log) = &self.log {
            self.mark(log, before);
        }
        // [VQ-3 call or see] our index before the driver's wish; the driver's wish before its look at our index.
        fence(Ordering::SeqCst);
        if !self.has_event_index {
            return self.available_word(0).load(Ordering::Relaxed) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0;
        }
        let event = self.available_word(2 + usize::from(self.size)).load(Ordering::Relaxed);
        is_reached(event, before, self.next)
    }

    /// Marks the used entries from `before` on, and our index.
    #[cold]
    fn mark(&self, log: &QueueLog, before: u16) {
        let (first, count) = (self.index_of(before), usize::from(self.next.wrapping_sub(before)));
        let until_end = count.min(usize::from(self.size) - first);
        log.mark_used(4 + 8 * first, 8 * until_end);
        log.mark_used(4, 8 * (count - until_end));
        log.mark_used(2, 2);
    }

    /// Writes a word of the used ring that says when we want to hear.
    fn wish(&self, word: usize, value: u16) {
        self.used_word(word).store(value, Ordering::Relaxed);
        if let Some(log) = &self.log {
            log.mark_used(2 * word, 2);
        }
    }

    /// Asks the driver to kick when there is more. `true`: there is nothing now.
    ///
    /// # Errors
    ///
    /// As [`Self::refresh`].
    pub(crate) fn arm(&mut self) -> Checked<bool> {
        if self.has_event_index {
            self.wish(2 + 4 * usize::from(self.size), self.next);
        } else {
            self.wish(0, 0);
        }
        // [VQ-4 kick or see] our wish before we look at the driver's index; the driver's index before its look at our wish.
        fence(Ordering::SeqCst);
        Ok(self.refresh()? == 0)
    }

    /// No kicks wanted. With an event index there is nothing to do: the one that was asked for is in the past soon.
    pub(crate) fn disarm(&self) {
        if !self.has_event_index {
            self.wish(0, VRING_USED_F_NO_NOTIFY as u16);
        }
    }
}

impl fmt::Debug for SplitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitQueue")
            .field("size", &self.size)
            .field("next", &self.next)
            .field("known", &self.known)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

/// Whether an index passed `event` on its way from `before` to `after`.
const fn is_reached(event: u16, before: u16, after: u16) -> bool {
    after.wrapping_sub(event).wrapping_sub(1) < after.wrapping_sub(before)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::sync::atomic::AtomicU16;
    use std::thread;

    use super::*;
    use crate::virtio::test_memory::{BUFFERS, BYTES, END, GUEST, TestMemory, USER, buffer, lengths};

    const SIZE: u16 = 8;
    const TABLE: u64 = 0;
    const AVAILABLE: u64 = 0x200;
    const USED: u64 = 0x400;

    /// The driver's side: writes what it likes.
    struct Driver {
        memory: TestMemory,
        available: u16,
    }

    impl Driver {
        fn new() -> Self {
            Self { memory: TestMemory::new(), available: 0 }
        }

        fn at(&self) -> QueueAt {
            QueueAt {
                size: SIZE.into(),
                descriptors: USER + TABLE,
                available: USER + AVAILABLE,
                used: USER + USED,
                has_event_index: false,
                has_indirect: true,
                is_packed: false,
            }
        }

        fn queue(&self) -> SplitQueue {
            SplitQueue::new(self.memory.whole(), &self.at(), None).unwrap()
        }

        fn word(&self, offset: u64) -> &AtomicU16 {
            self.memory.word(offset)
        }

        /// Writes a descriptor into a table at `table`.
        fn describe(&self, table: u64, index: u64, address: u64, length: u32, flags: u16, next: u16) {
            self.memory.describe(table + index * 16, address, length, [flags, next]);
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
            // [VQ-2 used visible] acquire: the index before the entries; partner in complete.
            self.word(USED + 2).load(Ordering::Acquire)
        }

        /// Says whether calls are wanted, then looks whether one is needed no more.
        fn listens(&self, is_listening: bool) -> u16 {
            self.word(AVAILABLE).store(u16::from(!is_listening), Ordering::Relaxed);
            // [VQ-3 call or see] our wish before the device's index; partner in complete.
            fence(Ordering::SeqCst);
            self.used()
        }
    }

    fn walk(driver: &mut Driver, head: u16, direction: Direction) -> Checked<(u64, Vec<u32>)> {
        let mut queue = driver.queue();
        let mut ahead = Ahead::default();
        driver.offer(head);
        assert_eq!(1, queue.look(direction, 8, &mut ahead)?);
        let chain = ahead.chains[0];
        Ok((chain.bytes.into(), lengths(&chain, &ahead)))
    }

    fn reason(outcome: Checked<(u64, Vec<u32>)>) -> &'static str {
        outcome.unwrap_err().reason()
    }

    fn used(id: u16, written: u32) -> Used {
        Used { id, descriptors: 1, written }
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

    /// CVE-2018-1059: a buffer that goes on in the next region is two pieces.
    #[test]
    fn buffer_across_two_regions_is_two_pieces() {
        let mut driver = Driver::new();
        driver.describe(TABLE, 0, GUEST + BYTES - 100, 300, 0, 0);

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
        }
    }

    /// CVE-2020-10725: length 0, at an address that is there and at one that is not.
    #[test]
    fn buffer_of_length_0_is_refused() {
        for address in [buffer(0), 0] {
            let mut driver = Driver::new();
            driver.describe(TABLE, 0, address, 0, 0, 0);
            assert_eq!("zero_length", reason(walk(&mut driver, 0, Direction::FromDriver)));
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
    }

    #[test]
    fn request_has_what_was_written_in_front_of_what_was_posted() {
        let mut driver = Driver::new();
        driver.describe(TABLE, 0, buffer(0), 16, NEXT, 1);
        driver.describe(TABLE, 1, buffer(1), 512, NEXT | WRITE, 2);
        driver.describe(TABLE, 2, buffer(2), 1, WRITE, 0);
        driver.describe(TABLE, 3, buffer(1), 512, NEXT | WRITE, 0);
        driver.offer(0);
        driver.offer(3);
        let mut queue = driver.queue();
        let (mut from, mut to) = (Vec::new(), Vec::new());

        queue.refresh().unwrap();
        let first = queue.request(&mut from, &mut to).unwrap();
        queue.complete(std::iter::once(Used { written: 513, ..first }));
        let backwards = queue.request(&mut Vec::new(), &mut Vec::new());

        let bytes = |pieces: &[Segment]| pieces.iter().map(|piece| piece.bytes).collect::<Vec<_>>();
        assert_eq!((vec![16], vec![512, 1]), (bytes(&from), bytes(&to)));
        assert_eq!((1, "wrong_direction"), (driver.used(), backwards.unwrap_err().reason()));
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
            SplitQueue::new(unasked.memory.whole(), &QueueAt { has_indirect: false, ..unasked.at() }, None).unwrap();
        let refused = queue.look(Direction::FromDriver, 1, &mut Ahead::default()).unwrap_err();
        assert_eq!("bad_indirect", refused.reason());
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

    /// An index that takes back chains that were.
    #[test]
    fn available_index_that_takes_back_what_was_looked_at_is_refused() {
        let mut driver = Driver::new();
        let mut queue = driver.queue();
        (0..3).for_each(|head| driver.describe(TABLE, head, buffer(head), 64, 0, 0));
        (0..3).for_each(|head| driver.offer(head));
        let mut ahead = Ahead::default();
        assert_eq!(Ok(3), queue.look(Direction::FromDriver, 3, &mut ahead));

        driver.word(AVAILABLE + 2).store(2, Ordering::Relaxed);

        let refused = queue.look(Direction::FromDriver, 1, &mut ahead).unwrap_err();
        assert_eq!("tail_out_of_range", refused.reason());
    }

    /// What comes before a chain that breaks a rule is looked at first; the fault is found when it is the next.
    #[test]
    fn chains_before_a_bad_one_are_good() {
        for (bad, length, expected) in [(2, 0, "zero_length"), (SIZE, 64, "index_out_of_range")] {
            let mut driver = Driver::new();
            let mut queue = driver.queue();
            let mut ahead = Ahead::default();
            (0..2).for_each(|head| driver.describe(TABLE, head, buffer(head), 64, 0, 0));
            driver.describe(TABLE, 2, buffer(2), length, 0, 0);
            [0, 1, bad].into_iter().for_each(|head| driver.offer(head));

            assert_eq!(Ok(2), queue.look(Direction::FromDriver, 8, &mut ahead));
            let refused = queue.look(Direction::FromDriver, 8, &mut ahead).unwrap_err();
            queue.complete(ahead.chains.iter().map(|chain| chain.used));

            assert_eq!((expected, 2), (refused.reason(), driver.used()));
        }
    }

    /// A driver that posts nothing but chains of a thousand pieces does not make a batch of them a thousand times as long.
    #[test]
    fn look_ends_at_a_thousand_pieces() {
        let mut driver = Driver::new();
        let mut queue = driver.queue();
        for entry in 0..1000 {
            driver.describe(BUFFERS, entry, buffer(0), 1, if entry < 999 { NEXT } else { 0 }, entry as u16 + 1);
        }
        for head in 0..SIZE {
            driver.describe(TABLE, head.into(), GUEST + BUFFERS, 16000, INDIRECT, 0);
            driver.offer(head);
        }

        let found = queue.look(Direction::FromDriver, 8, &mut Ahead::default());

        assert_eq!(Ok(2), found);
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
            let refused = SplitQueue::new(driver.memory.whole(), &bad, None).unwrap_err();
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

        let before = driver.used();
        queue.complete([used(3, 0), used(1, 77)].into_iter());

        assert_eq!((0, 2), (before, driver.used()));
        let entries = (0..8).map(|word| driver.word(USED + 4 + 2 * word).load(Ordering::Relaxed));
        assert_eq!(vec![3, 0, 0, 0, 1, 0, 77, 0], entries.collect::<Vec<_>>());
    }

    #[test]
    fn driver_is_called_only_while_it_listens() {
        let mut driver = Driver::new();
        let mut queue = driver.queue();
        driver.describe(TABLE, 0, buffer(0), 64, 0, 0);

        let called = [true, false].map(|is_listening| {
            driver.offer(0);
            driver.listens(is_listening);
            assert_eq!(Ok(1), queue.look(Direction::FromDriver, 8, &mut Ahead::default()));
            queue.complete([used(0, 0)].into_iter())
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

    /// vm-memory #93: an index that is written while it is read is never seen half old and half new. A step over a whole byte
    /// (0x00ff to 0x0100) seen so would be a jump that is refused.
    #[test]
    fn available_index_is_never_seen_torn() {
        const STEPS: u32 = 0x2_0000;
        let mut driver = Driver::new();
        driver.describe(TABLE, 0, buffer(0), 64, 0, 0);
        let mut queue = driver.queue();
        let device = thread::spawn(move || {
            let (mut ahead, mut seen) = (Ahead::default(), 0);
            while seen < STEPS {
                ahead.clear();
                let found = queue.look(Direction::FromDriver, SIZE.into(), &mut ahead).unwrap();
                queue.complete(ahead.chains.iter().map(|chain| chain.used));
                seen += found as u32;
            }
            queue.position()
        });

        let mut offered = 0;
        while offered < STEPS && !device.is_finished() {
            if driver.available.wrapping_sub(driver.used()) < SIZE {
                driver.offer(0);
                offered += 1;
            }
        }

        assert_eq!(STEPS as u16, device.join().unwrap());
    }

    /// CVE-2026-93683: a table whose length changes without end has one length for whoever walks it: a link that leads out of
    /// that is refused, also where it led into the table before.
    #[test]
    fn indirect_table_whose_length_changes_between_reads_has_one_length() {
        const LENGTHS: [u32; 3] = [2, 40, 0x1_0000];
        let mut driver = Driver::new();
        let indirect = 0x6000;
        (0..39).for_each(|entry| driver.describe(indirect, entry, buffer(entry % 16), 1, NEXT, entry as u16 + 1));
        driver.describe(indirect, 39, buffer(0), 1, 0, 0);
        driver.describe(TABLE, 0, GUEST + indirect, 16 * LENGTHS[0], INDIRECT, 0);
        driver.offer(0);
        let mut queue = driver.queue();
        let walker = thread::spawn(move || {
            let mut ahead = Ahead::default();
            for _ in 0..20_000 {
                ahead.clear();
                queue.rewind();
                match queue.look(Direction::FromDriver, 1, &mut ahead) {
                    Ok(_) => assert_eq!(40, ahead.chains[0].bytes),
                    Err(fault) => assert!(["index_out_of_range", "bad_indirect"].contains(&fault.reason()), "{fault}"),
                }
            }
        });

        while !walker.is_finished() {
            let length = driver.memory.double_word(TABLE + 8);
            LENGTHS.iter().for_each(|entries| length.store(16 * entries, Ordering::Relaxed));
        }

        walker.join().unwrap();
    }

    /// CVE-2026-86848: what a driver changes while a chain is walked leads to a piece of its memory or to a fault.
    #[test]
    fn descriptor_that_changes_while_it_is_read_never_leads_outside() {
        let mut driver = Driver::new();
        driver.describe(TABLE, 0, buffer(0), 64, NEXT, 1);
        driver.describe(TABLE, 1, buffer(1), 64, 0, 0);
        driver.offer(0);
        let mut queue = driver.queue();
        let walker = thread::spawn(move || {
            let mut ahead = Ahead::default();
            let mut outcomes = [0_u32; 2];
            for _ in 0..20_000 {
                ahead.clear();
                queue.rewind();
                match queue.look(Direction::FromDriver, 1, &mut ahead) {
                    Ok(found) => {
                        assert_eq!(1, found);
                        let chain = ahead.chains[0];
                        assert_eq!(chain.bytes, lengths(&chain, &ahead).into_iter().sum::<u32>());
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
            unsafe { driver.memory.place(TABLE + offset).write_volatile((seed >> 24) as u8) };
        }

        assert_eq!(20_000, walker.join().unwrap());
    }
}
