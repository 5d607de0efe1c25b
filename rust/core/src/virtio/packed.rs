//! One packed virtqueue, seen from the device.
//!
//! ```text
//!            next (oldest not completed)      seen (to be looked at)
//!   ring  ──── used ────▼──── looked at ────▼──── available ────▶ round and round: the wrap counter turns at its end
//!   driver's wish: when it wants to be called (it writes)      our wish: when we want to be kicked (we write)
//! ```
//!
//! The driver makes a chain available by the flags of its first descriptor, written last; we say that we are done with it by
//! overwriting that very descriptor. Which of the two a descriptor is depends on how often the ring went round. Chains are
//! completed in the order in which they were looked at, so a used descriptor lies where its chain began.
//!
//! The danger: the driver may write any of this at any time. The half of a descriptor that holds its flags is loaded once,
//! with what else is in it; the address after that; never again. There is no index that could be wrong, but what has gone
//! round more than once can look available, so no more is looked at than the ring has descriptors.
//! Source: virtio 1.2 §2.8 (packed virtqueues), with the rules for drivers taken as rules that are checked.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
};

use super::dirty::{DirtyLog, QueueLog};
use super::inflight::Trail;
use super::memory::GuestMemory;
use super::queue::{
    Ahead, CHAIN_MAX, Chain, Checked, DESCRIPTOR_BYTES, Descriptor, Direction, INDIRECT, Lookup, NEXT, QueueAt,
    SIZE_MAX, Table, Used, WRITE,
};
use super::whereabouts::{self, Round, Slot};
use crate::error::Fault;

pub(super) const AVAILABLE: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
pub(super) const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;
const WRAP: u16 = 1 << 15;
/// So often a ring is copied until it holds still; the driver fills one at most.
const LOOKS_MAX: usize = 64;

/// A descriptor's place, and which way round its flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub index: u16,
    pub wrap: bool,
}

impl Place {
    /// Where a ring that was never used is.
    pub const START: Self = Self { index: 0, wrap: true };

    #[inline]
    pub const fn advance(&mut self, by: u16, size: u16) {
        let index = self.index + by;
        if index >= size {
            self.index = index - size;
            self.wrap = !self.wrap;
        } else {
            self.index = index;
        }
    }

    /// The one before it.
    pub const fn back(self, size: u16) -> Self {
        if self.index == 0 {
            Self { index: size - 1, wrap: !self.wrap }
        } else {
            Self { index: self.index - 1, ..self }
        }
    }

    /// As it is written in wishes and told to front ends: the index, and the counter above it.
    #[inline]
    const fn word(self) -> u16 {
        if self.wrap { self.index | WRAP } else { self.index }
    }

    const fn from_word(word: u16) -> Self {
        Self { index: word & !WRAP, wrap: word & WRAP != 0 }
    }

    /// Whether flags say that the descriptor here is available.
    #[inline]
    pub const fn is_available(self, flags: u16) -> bool {
        (flags & AVAILABLE != 0) == self.wrap && (flags & USED != 0) != self.wrap
    }

    /// Whether they say that it is used.
    pub const fn is_used(self, flags: u16) -> bool {
        flags & (AVAILABLE | USED) == self.used_flags()
    }

    /// Flags that say so.
    #[inline]
    const fn used_flags(self) -> u16 {
        if self.wrap { AVAILABLE | USED } else { 0 }
    }
}

/// One queue, worked on by one thread.
pub(crate) struct PackedQueue {
    lookup: Lookup,
    size: u16,
    ring: NonNull<u8>,
    driver_wish: NonNull<u8>,
    device_wish: NonNull<u8>,
    has_event_index: bool,
    has_indirect: bool,
    /// The oldest descriptor that is not completed.
    next: Place,
    /// The descriptor to look at next.
    seen: Place,
    /// Descriptors from `next` to `seen`, and the chains they are.
    looked: u16,
    chains: u16,
    /// Where the position is kept, if the front end wants that.
    trail: Option<Trail>,
    /// Where what we write into the ring, and as our wish, is marked.
    log: Option<QueueLog>,
}

// SAFETY: its places lie in the memory that `lookup` holds, which is mapped for as long as that is.
unsafe impl Send for PackedQueue {}

impl PackedQueue {
    /// The position of a ring that was never used.
    pub(crate) const START: u32 = (WRAP as u32) << 16 | WRAP as u32;

    /// Where the ring at `at` is, as its memory has it: at `told`, if nothing speaks against it. None: that cannot be told.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub(crate) fn find(memory: Arc<GuestMemory>, at: &QueueAt, told: u32) -> Checked<Option<u32>> {
        let mut queue = Self::new(memory, at, told, None)?;
        let Some(slots) = queue.slots() else { return Ok(None) };
        let wish = u32::from_le(queue.wish(queue.device_wish).load(Ordering::Relaxed));
        let asleep = Some(Place::from_word(wish as u16))
            .filter(|place| wish >> 16 & 3 == VRING_PACKED_EVENT_FLAG_DESC && place.index < queue.size);
        let found = whereabouts::find(&slots, queue.next, asleep, at.has_indirect);
        Ok(found.map(|place| {
            queue.next = place;
            queue.position()
        }))
    }

    /// A copy of what turns each descriptor over, of one moment: none if the driver does not stop writing. While nobody takes
    /// what it makes available it has to.
    fn slots(&self) -> Option<Vec<Slot>> {
        // [VQ-1 chains visible] acquire: one look after the other; nothing is read by what is found.
        let copy = || (0..self.size).map(|index| Slot(u64::from_le(self.second_half(index).load(Ordering::Acquire))));
        let mut slots: Vec<Slot> = copy().collect();
        for _ in 0..LOOKS_MAX {
            let mut is_same = true;
            for (before, now) in slots.iter_mut().zip(copy()) {
                is_same &= *before == now;
                *before = now;
            }
            if is_same {
                return Some(slots);
            }
        }
        None
    }

    /// Ends a batch in the middle of which a host was killed. The driver looks at its first descriptor, which is written last;
    /// the others are used, and what they were is lost. So the first is used too, of nothing.
    pub(crate) fn mend(&mut self) {
        let Some(first) = self.available(self.next) else { return };
        let mut behind = self.next;
        behind.advance(1, self.size);
        let is_whole = !first.goes_on() && {
            let half = u64::from_le(self.second_half(behind.index).load(Ordering::Relaxed));
            !behind.is_used((half >> 48) as u16)
        };
        if is_whole {
            return;
        }
        let Some(slots) = self.slots() else { return };
        let mut round = Round::new(&slots, self.next);
        let Some(id) = round.chain() else { return };
        if !round.used_ahead() {
            return;
        }
        let place = self.next;
        let half = u64::from(id) << 32 | u64::from(place.used_flags()) << 48;
        self.next = round.place();
        self.seen = self.next;
        // [VQ-2 used visible] release: as in `complete`.
        self.second_half(place.index).store(half.to_le(), Ordering::Release);
        if let Some(trail) = &self.trail {
            trail.note_packed(self.next, self.next);
        }
        if let Some(log) = &self.log {
            self.mark(log, place.index, 1);
        }
    }

    /// A queue that goes on where its trail was left, or at `base`, as [`Self::position`] tells it. The half for used
    /// descriptors says nothing that the other does not: front ends leave it empty, or have it from us.
    ///
    /// # Errors
    ///
    /// The front end's fault: a size, a base, a trail or an alignment that cannot be, or a ring that is not in its memory.
    pub(crate) fn new(memory: Arc<GuestMemory>, at: &QueueAt, base: u32, trail: Option<Trail>) -> Checked<Self> {
        if at.size == 0 || at.size > SIZE_MAX {
            return Err(Fault::BadSize { what: "queue size", found: at.size.into(), limit: SIZE_MAX.into() });
        }
        let next = Place::from_word(base as u16);
        if u32::from(next.index) >= at.size {
            return Err(Fault::IndexOutOfRange { index: next.index.into(), limit: at.size });
        }
        let lookup = Lookup::new(memory);
        let bytes = DESCRIPTOR_BYTES * u64::from(at.size);
        let ring = lookup.ring("address of a packed ring", at.descriptors, 16, bytes)?;
        let driver_wish = lookup.ring("address of a driver's event suppression", at.available, 4, 4)?;
        let device_wish = lookup.ring("address of a device's event suppression", at.used, 4, 4)?;
        let mut queue = Self {
            lookup,
            size: at.size as u16,
            ring,
            driver_wish,
            device_wish,
            has_event_index: at.has_event_index,
            has_indirect: at.has_indirect,
            next,
            seen: next,
            looked: 0,
            chains: 0,
            trail: None,
            log: None,
        };
        if let Some(trail) = trail {
            queue.next = trail.resume(queue.size, next, |place| queue.available(place).is_some())?;
            queue.seen = queue.next;
            queue.trail = Some(trail);
        }
        Ok(queue)
    }

    /// Marks in a log, from now on, what is written: descriptors where they are, our wish at guest address `used`, as the front
    /// end said it.
    ///
    /// # Errors
    ///
    /// The log is too short.
    pub(crate) fn keep_log(&mut self, log: Arc<DirtyLog>, used: u64) -> Checked<()> {
        let bytes = DESCRIPTOR_BYTES * u64::from(self.size);
        let ring = self.lookup.address_of(self.ring).map(|address| (address, bytes));
        self.log = Some(QueueLog::new(log, (used, 4), ring)?);
        Ok(())
    }

    /// Entries.
    pub(crate) const fn size(&self) -> u32 {
        self.size as u32
    }

    /// The descriptor that will be completed next, twice: as the next available and as the next used.
    pub(crate) const fn position(&self) -> u32 {
        let word = self.next.word() as u32;
        word | word << 16
    }

    /// Chains that were looked at and are not completed.
    #[inline]
    pub(crate) const fn known(&self) -> u32 {
        self.chains as u32
    }

    /// Length, id and flags of a descriptor: what turns it over.
    #[inline]
    const fn second_half(&self, index: u16) -> &AtomicU64 {
        // SAFETY: index < size; the ring was looked up for its whole size, aligned to 16.
        unsafe { AtomicU64::from_ptr(self.ring.as_ptr().add(index as usize * 16 + 8).cast()) }
    }

    /// A copy of the descriptor at `index`, whose second half was loaded before.
    #[inline]
    fn copy(&self, index: u16, second_half: u64) -> Descriptor {
        // SAFETY: as above; one copy.
        let address = unsafe { self.ring.as_ptr().add(index as usize * 16).cast::<u64>().read_volatile() };
        Descriptor::packed(u64::from_le(address), second_half)
    }

    /// The descriptor at `place`, if the driver has made it available.
    #[inline]
    fn available(&self, place: Place) -> Option<Descriptor> {
        // [VQ-1 chains visible] acquire: the driver wrote the chain before the flags of its first descriptor.
        let half = u64::from_le(self.second_half(place.index).load(Ordering::Acquire));
        place.is_available((half >> 48) as u16).then(|| self.copy(place.index, half))
    }

    /// Looks at up to `wanted` more chains: see [`super::queue::Queue::look`].
    ///
    /// # Errors
    ///
    /// The very next chain breaks a rule.
    #[inline]
    pub(crate) fn look(&mut self, direction: Direction, wanted: usize, ahead: &mut Ahead) -> Checked<usize> {
        let first = ahead.pieces.len();
        let mut found = 0;
        while found < wanted && self.looked < self.size && !ahead.is_full(first) {
            let Some(head) = self.available(self.seen) else { break };
            let whole = if head.is_single(direction) { self.lookup.whole(head.address, head.length) } else { None };
            let chain = if let Some(place) = whole {
                let used = Used { id: head.next, descriptors: 1, written: 0 };
                Chain { place, bytes: head.length, ..Chain::new(used) }
            } else {
                match self.scattered(head, direction, ahead) {
                    Ok(chain) => chain,
                    Err(fault) if found == 0 => return Err(fault),
                    Err(_) => break,
                }
            };
            ahead.chains.push(chain);
            self.seen.advance(chain.used.descriptors, self.size);
            self.looked += chain.used.descriptors;
            self.chains += 1;
            found += 1;
        }
        Ok(found)
    }

    /// Looks again at what was not completed.
    #[inline]
    pub(crate) const fn rewind(&mut self) {
        self.seen = self.next;
        self.looked = 0;
        self.chains = 0;
    }

    /// Finds the pieces of a chain that does not lie together, beginning with its head.
    #[cold]
    fn scattered(&mut self, head: Descriptor, direction: Direction, ahead: &mut Ahead) -> Checked<Chain> {
        let first = ahead.pieces.len();
        let walked = self.walk(head, direction, ahead);
        if walked.is_err() {
            ahead.pieces.truncate(first);
        }
        let (total, used) = walked?;
        Ok(ahead.scattered(first, total, used))
    }

    /// Appends the pieces of a chain: how many bytes they have together, and what it takes of the ring.
    fn walk(&mut self, head: Descriptor, direction: Direction, ahead: &mut Ahead) -> Checked<(u64, Used)> {
        let room = self.size - self.looked;
        let limit = CHAIN_MAX.min(room.into());
        let mut place = self.seen;
        let mut found = head;
        let mut total = 0;
        let mut descriptors = 0;
        loop {
            if u32::from(descriptors) == limit {
                return Err(Fault::ChainTooLong { limit });
            }
            descriptors += 1;
            if found.flags & INDIRECT != 0 {
                // A table takes the place of all other descriptors of a chain.
                let table = Table::of(&found, self.has_indirect && descriptors == 1)?;
                total = self.walk_table(&table, direction, ahead)?;
            } else {
                total += self.piece(&found, direction, ahead)?;
            }
            if found.flags & NEXT == 0 {
                // The last one of a chain says what its buffer is called.
                return Ok((total, Used { id: found.next, descriptors, written: 0 }));
            }
            place.advance(1, self.size);
            // The flags of the head made all of the chain available.
            let half = u64::from_le(self.second_half(place.index).load(Ordering::Relaxed));
            found = self.copy(place.index, half);
        }
    }

    /// All entries of a table, one after the other, are one chain; only the direction counts of their flags.
    fn walk_table(&mut self, table: &Table, direction: Direction, ahead: &mut Ahead) -> Checked<u64> {
        if table.entries > CHAIN_MAX {
            return Err(Fault::ChainTooLong { limit: CHAIN_MAX });
        }
        let mut total = 0;
        for index in 0..table.entries {
            let entry = u128::from_le_bytes(self.lookup.entry(table, index)?);
            let found = Descriptor::packed(entry as u64, (entry >> 64) as u64);
            if found.flags & INDIRECT != 0 {
                return Err(Fault::BadIndirect { length: found.length, flags: found.flags });
            }
            total += self.piece(&found, direction, ahead)?;
        }
        Ok(total)
    }

    fn piece(&mut self, found: &Descriptor, direction: Direction, ahead: &mut Ahead) -> Checked<u64> {
        if found.flags & WRITE != direction.flags() {
            return Err(Fault::WrongDirection { flags: found.flags });
        }
        self.lookup.pieces(found, &mut ahead.pieces)
    }

    /// Takes the oldest chains that were looked at and shows the driver that we are done with them. `true`: it wants to be
    /// called.
    #[inline]
    pub(crate) fn complete(&mut self, used: impl Iterator<Item = Used>) -> bool {
        let mut moved = 0;
        let before = self.next;
        let mut held_back = None;
        for Used { id, descriptors, written } in used {
            let place = self.next;
            let flags = if written == 0 { place.used_flags() } else { place.used_flags() | WRITE };
            let half = u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48;
            // The first one is written last: until then the driver does not look behind it.
            if held_back.is_none() {
                held_back = Some((place.index, half));
            } else {
                self.second_half(place.index).store(half.to_le(), Ordering::Relaxed);
            }
            self.next.advance(descriptors, self.size);
            moved += descriptors;
            self.chains -= 1;
        }
        let Some((index, half)) = held_back else { return false };
        self.looked -= moved;
        if let Some(trail) = &self.trail {
            trail.note_packed(before, self.next);
        }
        // [VQ-2 used visible] release: the other used descriptors, and what was written into buffers, before the first.
        self.second_half(index).store(half.to_le(), Ordering::Release);
        if let Some(trail) = &self.trail {
            trail.note_packed(self.next, self.next);
        }
        if let Some(log) = &self.log {
            self.mark(log, before.index, moved);
        }
        // [VQ-3 call or see] our descriptors before the driver's wish; the driver's wish before its look at them.
        fence(Ordering::SeqCst);
        self.is_call_wanted(moved)
    }

    /// Marks `moved` descriptors from `first` on, of which at least the heads were written.
    #[cold]
    fn mark(&self, log: &QueueLog, first: u16, moved: u16) {
        const BYTES: usize = DESCRIPTOR_BYTES as usize;
        let until_end = moved.min(self.size - first);
        log.mark_ring(BYTES * usize::from(first), BYTES * usize::from(until_end));
        log.mark_ring(0, BYTES * usize::from(moved - until_end));
    }

    /// Writes our wish.
    fn say(&self, wish: u32) {
        self.wish(self.device_wish).store(wish.to_le(), Ordering::Relaxed);
        if let Some(log) = &self.log {
            log.mark_used(0, size_of::<u32>());
        }
    }

    /// Whether the driver wants to hear of the last `moved` descriptors.
    #[inline]
    fn is_call_wanted(&self, moved: u16) -> bool {
        let wish = u32::from_le(self.wish(self.driver_wish).load(Ordering::Relaxed));
        match wish >> 16 & 3 {
            VRING_PACKED_EVENT_FLAG_DISABLE => false,
            VRING_PACKED_EVENT_FLAG_DESC if self.has_event_index => {
                let asked = Place::from_word(wish as u16);
                // Both as they would be if the ring had not gone round since.
                let now = i32::from(self.next.index);
                let then =
                    i32::from(asked.index) - if asked.wrap == self.next.wrap { 0 } else { self.size().cast_signed() };
                (now - i32::from(moved)..now).contains(&then)
            }
            // What means nothing is no reason to let the driver sleep.
            _ => true,
        }
    }

    const fn wish(&self, place: NonNull<u8>) -> &AtomicU32 {
        // SAFETY: one of the two wishes, 4 bytes, aligned to 4, as `new` looked them up.
        unsafe { AtomicU32::from_ptr(place.as_ptr().cast()) }
    }

    /// Asks the driver to kick when there is more. `true`: there is nothing now.
    pub(crate) fn arm(&self) -> bool {
        let wish = if self.has_event_index {
            VRING_PACKED_EVENT_FLAG_DESC << 16 | u32::from(self.next.word())
        } else {
            VRING_PACKED_EVENT_FLAG_ENABLE << 16
        };
        self.say(wish);
        // [VQ-4 kick or see] our wish before we look at the driver's flags; the driver's flags before its look at our wish.
        fence(Ordering::SeqCst);
        self.available(self.next).is_none()
    }

    /// No kicks wanted.
    pub(crate) fn disarm(&self) {
        self.say(VRING_PACKED_EVENT_FLAG_DISABLE << 16);
    }
}

impl fmt::Debug for PackedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedQueue")
            .field("size", &self.size)
            .field("next", &self.next)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::{HashMap, VecDeque};
    use std::thread;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::virtio::test_memory::{BUFFERS, BYTES, END, GUEST, TestMemory, USER, buffer, lengths};

    const SIZE: u16 = 5;
    const RING: u64 = 0;
    const DRIVER_WISH: u64 = 0x400;
    const DEVICE_WISH: u64 = 0x404;
    /// Where indirect tables are.
    const TABLES: u64 = 0x6000;

    /// The driver's side, as the specification tells it, word by word.
    struct Driver {
        memory: TestMemory,
        size: u16,
        /// Where the next chain goes, and where the next used one will be.
        free: (u16, bool),
        oldest: (u16, bool),
        /// Descriptors of each chain that is under way, by the id of its buffer.
        under_way: HashMap<u16, u16>,
    }

    fn step((index, wrap): (u16, bool), size: u16) -> (u16, bool) {
        if index + 1 == size { (0, !wrap) } else { (index + 1, wrap) }
    }

    impl Driver {
        fn new(size: u16) -> Self {
            let start = (0, true);
            Self { memory: TestMemory::new(), size, free: start, oldest: start, under_way: HashMap::new() }
        }

        fn at(&self) -> QueueAt {
            QueueAt {
                size: self.size.into(),
                descriptors: USER + RING,
                available: USER + DRIVER_WISH,
                used: USER + DEVICE_WISH,
                has_event_index: true,
                has_indirect: true,
                is_packed: true,
            }
        }

        fn queue(&self) -> PackedQueue {
            PackedQueue::new(self.memory.whole(), &self.at(), 0x8000, None).unwrap()
        }

        fn write(&self, index: u16, address: u64, length: u32, id: u16, flags: u16) {
            self.memory.describe(RING + 16 * u64::from(index), address, length, [id, flags]);
        }

        fn flags(&self, index: u16) -> u16 {
            self.memory.word(RING + 16 * u64::from(index) + 14).load(Ordering::Acquire)
        }

        /// Makes a chain available, its head last.
        fn offer(&mut self, id: u16, chain: &[(u64, u32, u16)]) {
            let mut place = self.free;
            let mut head = None;
            for (number, &(address, length, flags)) in chain.iter().enumerate() {
                let turn = if place.1 { AVAILABLE } else { USED };
                let next = if number + 1 < chain.len() { NEXT } else { 0 };
                // Only the last one's id counts.
                let named = if next == 0 { id } else { 0xdead };
                if head.is_none() {
                    head = Some((place.0, address, length, named, flags | next | turn));
                } else {
                    self.write(place.0, address, length, named, flags | next | turn);
                }
                place = step(place, self.size);
            }
            let (index, address, length, named, flags) = head.unwrap();
            self.write(index, address, length, named, flags);
            self.free = place;
            self.under_way.insert(id, chain.len() as u16);
        }

        /// The oldest used chain that was not seen: its id, bytes written, and whether that number counts.
        fn used(&mut self) -> Option<(u16, u32, bool)> {
            let (index, wrap) = self.oldest;
            let flags = self.flags(index);
            if (flags & AVAILABLE != 0, flags & USED != 0) != (wrap, wrap) {
                return None;
            }
            let offset = RING + 16 * u64::from(index);
            let length = self.memory.double_word(offset + 8).load(Ordering::Relaxed);
            let id = self.memory.word(offset + 12).load(Ordering::Relaxed);
            let descriptors = self.under_way.remove(&id).expect("an id that was given");
            (0..descriptors).for_each(|_| self.oldest = step(self.oldest, self.size));
            Some((id, length, flags & WRITE != 0))
        }

        fn wish(&self, flags: u32, place: (u16, bool)) {
            let word = u32::from(place.0) | u32::from(place.1) << 15 | flags << 16;
            self.memory.double_word(DRIVER_WISH).store(word, Ordering::Relaxed);
        }

        fn room(&self) -> u16 {
            self.size - self.under_way.values().sum::<u16>()
        }
    }

    type Outcome = Checked<(Used, Vec<u32>)>;

    /// What a look at the first chain says.
    fn look(driver: &Driver, direction: Direction) -> Outcome {
        let mut ahead = Ahead::default();
        assert_eq!(1, driver.queue().look(direction, 8, &mut ahead)?);
        let chain = ahead.chains[0];
        Ok((chain.used, lengths(&chain, &ahead)))
    }

    fn assert_refused(expected: &str, driver: &Driver, direction: Direction) {
        assert_eq!(expected, look(driver, direction).unwrap_err().reason());
    }

    #[test]
    fn chain_is_named_by_its_last_descriptor() {
        let mut driver = Driver::new(SIZE);
        driver.offer(77, &[(buffer(0), 12, 0), (buffer(1), 64, 0), (buffer(2), 100, 0)]);

        let outcome = look(&driver, Direction::FromDriver);

        assert_eq!(Ok((Used { id: 77, descriptors: 3, written: 0 }, vec![12, 64, 100])), outcome);
    }

    #[test]
    fn chain_goes_on_at_the_beginning_of_the_ring() {
        let mut driver = Driver::new(3);
        let mut queue = driver.queue();
        let mut ahead = Ahead::default();
        for id in 0..20 {
            driver.offer(id, &[(buffer(0), 100, WRITE), (buffer(1), 200, WRITE)]);
            ahead.clear();
            assert_eq!(Ok(1), queue.look(Direction::ToDriver, 8, &mut ahead));
            assert_eq!(vec![100, 200], lengths(&ahead.chains[0], &ahead));
            queue.complete([Used { written: 150, ..ahead.chains[0].used }].into_iter());

            assert_eq!(Some((id, 150, true)), driver.used());
        }
    }

    #[test]
    fn indirect_table_is_followed_to_its_end() {
        let mut driver = Driver::new(SIZE);
        // Whatever else its flags say.
        driver.memory.describe(TABLES, buffer(0), 12, [9, WRITE]);
        driver.memory.describe(TABLES + 16, buffer(1), 1500, [9, WRITE | NEXT]);
        driver.offer(3, &[(GUEST + TABLES, 32, INDIRECT | WRITE)]);

        let outcome = look(&driver, Direction::ToDriver);

        assert_eq!(Ok((Used { id: 3, descriptors: 1, written: 0 }, vec![12, 1500])), outcome);
    }

    /// CVE-2018-1059.
    #[test]
    fn buffer_across_two_regions_is_two_pieces() {
        let mut driver = Driver::new(SIZE);
        driver.offer(0, &[(GUEST + BYTES - 100, 300, 0)]);

        assert_eq!(vec![100, 200], look(&driver, Direction::FromDriver).unwrap().1);
    }

    /// CVE-2018-1059, CVE-2020-10725, CVE-2016-7422: the length counts, not only the beginning.
    #[test]
    fn buffer_outside_of_memory_or_of_length_0_is_refused() {
        for (address, length, expected) in [
            (0, 64, "outside_memory"),
            (GUEST - 1, 64, "outside_memory"),
            (END - 63, 64, "outside_memory"),
            (u64::MAX - 10, u32::MAX, "outside_memory"),
            (buffer(0), u32::MAX, "outside_memory"),
            (buffer(0), 0, "zero_length"),
            (0, 0, "zero_length"),
        ] {
            let mut driver = Driver::new(SIZE);
            driver.offer(0, &[(address, length, 0)]);
            assert_refused(expected, &driver, Direction::FromDriver);
        }
    }

    /// Every descriptor says that there is one more.
    #[test]
    fn chain_longer_than_the_ring_is_refused() {
        for size in [1, SIZE] {
            let driver = Driver::new(size);
            (0..size).for_each(|index| driver.write(index, buffer(0), 64, 0, NEXT | AVAILABLE));
            assert_eq!(
                Err(Fault::ChainTooLong { limit: size.into() }),
                look(&driver, Direction::FromDriver).map(|_| ())
            );
        }
    }

    /// One that fits by itself, but not with those that were looked at before it.
    #[test]
    fn chain_over_what_is_under_way_is_refused() {
        let mut driver = Driver::new(SIZE);
        let mut queue = driver.queue();
        let mut ahead = Ahead::default();
        driver.offer(0, &[(buffer(0), 64, 0); 3]);
        assert_eq!(Ok(1), queue.look(Direction::FromDriver, 8, &mut ahead));
        for index in [3, 4] {
            driver.write(index, buffer(0), 64, 1, NEXT | AVAILABLE);
        }
        driver.write(0, buffer(0), 64, 1, USED);

        let refused = queue.look(Direction::FromDriver, 8, &mut ahead).unwrap_err();

        assert_eq!(Fault::ChainTooLong { limit: 2 }, refused);
    }

    /// A driver that turns descriptors over again before they were used: no more are under way than there are.
    #[test]
    fn ring_that_goes_round_before_it_was_used_is_looked_at_once() {
        let driver = Driver::new(SIZE);
        let mut queue = driver.queue();
        let mut ahead = Ahead::default();
        (0..SIZE).for_each(|index| driver.write(index, buffer(0), 64, index, AVAILABLE));
        assert_eq!(Ok(3), queue.look(Direction::FromDriver, 3, &mut ahead));
        (0..SIZE).for_each(|index| driver.write(index, buffer(0), 64, index, if index < 3 { USED } else { AVAILABLE }));

        let found = queue.look(Direction::FromDriver, 8, &mut ahead);

        assert_eq!((Ok(2), SIZE.into()), (found, queue.known()));
    }

    #[test]
    fn buffer_of_the_wrong_direction_is_refused() {
        for (chain, direction) in [
            (vec![(buffer(0), 64, 0), (buffer(1), 64, WRITE)], Direction::FromDriver),
            (vec![(buffer(0), 64, WRITE), (buffer(1), 64, 0)], Direction::ToDriver),
            (vec![(buffer(0), 64, WRITE)], Direction::FromDriver),
        ] {
            let mut driver = Driver::new(SIZE);
            driver.offer(0, &chain);
            assert_refused("wrong_direction", &driver, direction);
        }
    }

    /// With a next, behind another, of no or half an entry, ending behind the last address, nested, or not agreed on.
    #[test]
    fn indirect_descriptor_that_cannot_be_is_refused() {
        let table = GUEST + TABLES;
        for chain in [
            vec![(table, 32, INDIRECT), (buffer(0), 64, 0)],
            vec![(buffer(0), 64, 0), (table, 32, INDIRECT)],
            vec![(table, 0, INDIRECT)],
            vec![(table, 24, INDIRECT)],
            vec![(u64::MAX - 8, 16, INDIRECT)],
            vec![(table, 0xffff_fff0, INDIRECT)],
            vec![(table + 32, 16, INDIRECT)],
        ] {
            let mut driver = Driver::new(SIZE);
            driver.memory.describe(TABLES, buffer(0), 64, [0, 0]);
            driver.memory.describe(TABLES + 16, buffer(0), 64, [0, 0]);
            driver.memory.describe(TABLES + 32, table, 16, [0, INDIRECT]);
            driver.offer(0, &chain);
            assert_refused("bad_indirect", &driver, Direction::FromDriver);
        }
        let mut driver = Driver::new(SIZE);
        driver.offer(0, &[(table, 32, INDIRECT)]);
        let at = QueueAt { has_indirect: false, ..driver.at() };
        let mut queue = PackedQueue::new(driver.memory.whole(), &at, 0x8000, None).unwrap();
        let refused = queue.look(Direction::FromDriver, 1, &mut Ahead::default()).unwrap_err();
        assert_eq!("bad_indirect", refused.reason());
    }

    /// CVE-2011-2212, a table of more entries than a chain may have; and tables outside of memory.
    #[test]
    fn indirect_table_too_long_or_outside_of_memory_is_refused() {
        for (address, length, expected) in
            [(GUEST + BUFFERS, 1025 * 16, "chain_too_long"), (0, 16, "outside_memory"), (END - 8, 16, "outside_memory")]
        {
            let mut driver = Driver::new(SIZE);
            driver.offer(0, &[(address, length, INDIRECT)]);
            assert_refused(expected, &driver, Direction::FromDriver);
        }
    }

    #[test]
    fn chains_before_a_bad_one_are_good() {
        let mut driver = Driver::new(SIZE);
        let mut queue = driver.queue();
        let mut ahead = Ahead::default();
        driver.offer(1, &[(buffer(0), 64, 0)]);
        driver.offer(2, &[(buffer(1), 64, 0), (buffer(2), 0, 0)]);

        assert_eq!(Ok(1), queue.look(Direction::FromDriver, 8, &mut ahead));
        let refused = queue.look(Direction::FromDriver, 8, &mut ahead).unwrap_err();

        assert_eq!(("zero_length", 1, 0), (refused.reason(), ahead.chains.len(), ahead.pieces.len()));
    }

    #[test]
    fn look_ends_at_a_thousand_pieces() {
        let mut driver = Driver::new(SIZE);
        (0..1000).for_each(|entry| driver.memory.describe(BUFFERS + 16 * entry, buffer(0), 1, [0, 0]));
        (0..SIZE).for_each(|id| driver.offer(id, &[(GUEST + BUFFERS, 16000, INDIRECT)]));

        assert_eq!(Ok(2), driver.queue().look(Direction::FromDriver, 8, &mut Ahead::default()));
    }

    /// Flags of another round, of both and of none: nothing is available, and nothing is wrong.
    #[test]
    fn descriptor_of_another_round_is_not_available() {
        for (base, flags) in [(0x8000, 0), (0x8000, USED), (0x8000, AVAILABLE | USED), (0, AVAILABLE)] {
            let driver = Driver::new(SIZE);
            driver.write(0, buffer(0), 64, 0, flags);
            let mut queue = PackedQueue::new(driver.memory.whole(), &driver.at(), base, None).unwrap();
            assert_eq!(Ok(0), queue.look(Direction::FromDriver, 8, &mut Ahead::default()), "{base:#x} {flags:#x}");
        }
    }

    #[test]
    fn queue_that_cannot_be_is_refused() {
        let driver = Driver::new(SIZE);
        let fine = driver.at();
        for (bad, base, expected) in [
            (QueueAt { size: 0, ..fine }, 0x8000, "bad_size"),
            (QueueAt { size: 32769, ..fine }, 0x8000, "bad_size"),
            (QueueAt { descriptors: fine.descriptors + 8, ..fine }, 0x8000, "bad_size"),
            (QueueAt { available: fine.available + 2, ..fine }, 0x8000, "bad_size"),
            (QueueAt { used: fine.used + 1, ..fine }, 0x8000, "bad_size"),
            (QueueAt { descriptors: 0, ..fine }, 0x8000, "outside_memory"),
            (QueueAt { size: 4096, ..fine }, 0x8000, "outside_memory"),
            (QueueAt { used: USER + BYTES, ..fine }, 0x8000, "outside_memory"),
            (fine, 0x8000 + u32::from(SIZE), "index_out_of_range"),
            (fine, 0x7fff, "index_out_of_range"),
        ] {
            let refused = PackedQueue::new(driver.memory.whole(), &bad, base, None).unwrap_err();
            assert_eq!(expected, refused.reason(), "{bad:?} {base:#x}");
        }
    }

    /// Reserved flags, and places that are in no ring: the driver is called, or is not, and that is all.
    #[test]
    fn wish_that_means_nothing_does_no_harm() {
        for (word, expected) in [(0x3_0000, true), (0xffff_0000, true), (0x2_7fff, false), (0x2_ffff, false)] {
            let mut driver = Driver::new(SIZE);
            let mut queue = driver.queue();
            driver.offer(0, &[(buffer(0), 64, 0)]);
            driver.memory.double_word(DRIVER_WISH).store(word, Ordering::Relaxed);
            queue.look(Direction::FromDriver, 1, &mut Ahead::default()).unwrap();

            assert_eq!(expected, queue.complete([Used { id: 0, descriptors: 1, written: 0 }].into_iter()), "{word:#x}");
        }
    }

    /// What goes round in our wish, and the look that follows it.
    #[test]
    fn kicks_are_asked_for_when_armed_and_not_before() {
        let mut driver = Driver::new(2);
        let mut queue = driver.queue();
        let wish = || driver.memory.double_word(DEVICE_WISH).load(Ordering::Relaxed);
        queue.disarm();
        assert_eq!(0x1_0000, wish());
        assert!(queue.arm());
        assert_eq!(0x2_8000, wish());
        for id in 0..2 {
            driver.offer(id, &[(buffer(0), 64, 0)]);
            assert!(!queue.arm());
            let mut ahead = Ahead::default();
            queue.look(Direction::FromDriver, 1, &mut ahead).unwrap();
            queue.complete(ahead.chains.iter().map(|chain| chain.used));
        }
        let is_idle = queue.arm();
        let wish = driver.memory.double_word(DEVICE_WISH).load(Ordering::Relaxed);

        assert_eq!((true, 0x2_0000), (is_idle, wish));
    }

    /// A position says it all: a queue made anew there goes on.
    #[test]
    fn queue_goes_on_at_its_position() {
        let mut driver = Driver::new(3);
        let mut base = 0x8000;
        for id in 0..14 {
            let mut queue = PackedQueue::new(driver.memory.whole(), &driver.at(), base, None).unwrap();
            driver.offer(id, &[(buffer(0), 64, WRITE)]);
            let mut ahead = Ahead::default();
            assert_eq!(Ok(1), queue.look(Direction::ToDriver, 3, &mut ahead));
            queue.complete(ahead.chains.iter().map(|chain| chain.used));
            assert_eq!(Some((id, 0, false)), driver.used());
            base = queue.position();
        }

        let turned = (14 % 3) | (u32::from(14 / 3 % 2 == 0) << 15);
        assert_eq!(turned | turned << 16, base);
    }

    /// All but the first descriptor of a batch are used when a host dies: the next one finishes it, and goes on behind it.
    #[test]
    fn batch_that_was_cut_off_is_finished() {
        let mut driver = Driver::new(SIZE);
        let mut queue = driver.queue();
        let chains: [&[_]; 3] = [
            &[(buffer(0), 64, 0), (buffer(1), 64, 0)],
            &[(buffer(2), 64, 0), (buffer(3), 64, 0)],
            &[(buffer(4), 64, 0)],
        ];
        (0..).zip(chains).for_each(|(id, chain)| driver.offer(id, chain));
        let mut ahead = Ahead::default();
        queue.look(Direction::FromDriver, 2, &mut ahead).unwrap();
        let first = queue.second_half(0).load(Ordering::Relaxed);
        queue.complete(ahead.chains.iter().map(|chain| chain.used));
        queue.second_half(0).store(first, Ordering::Relaxed);
        assert_eq!(None, driver.used());

        let mut next = PackedQueue::new(driver.memory.whole(), &driver.at(), 0x8000, None).unwrap();
        next.mend();

        assert_eq!([Some((0, 0, false)), Some((1, 0, false)), None], [(); 3].map(|()| driver.used()));
        ahead.clear();
        assert_eq!(Ok(1), next.look(Direction::FromDriver, 8, &mut ahead));
        next.complete(ahead.chains.iter().map(|chain| chain.used));
        assert_eq!(Some((2, 0, false)), driver.used());
    }

    #[test]
    fn whole_ring_is_mended_by_nothing() {
        for chain in [&[(buffer(0), 64, 0)][..], &[(buffer(0), 64, 0), (buffer(1), 64, 0)]] {
            for offered in 0..=1 {
                let mut driver = Driver::new(SIZE);
                (0..offered).for_each(|id| driver.offer(id, chain));
                let mut queue = driver.queue();

                queue.mend();

                assert_eq!((0x8000_8000, None), (queue.position(), driver.used()));
            }
        }
    }

    /// Told its beginning, as by a front end whose back end died, a queue goes on where its ring is.
    #[test]
    fn queue_is_found_where_its_ring_is() {
        let mut driver = Driver::new(3);
        for id in 0..14 {
            driver.offer(id, &[(buffer(0), 64, WRITE)]);
            let base = PackedQueue::find(driver.memory.whole(), &driver.at(), 0x8000).unwrap().unwrap();
            let mut queue = PackedQueue::new(driver.memory.whole(), &driver.at(), base, None).unwrap();
            let mut ahead = Ahead::default();
            assert_eq!(Ok(1), queue.look(Direction::ToDriver, 3, &mut ahead));
            queue.complete(ahead.chains.iter().map(|chain| chain.used));
            assert_eq!(Some((id, 0, false)), driver.used());
        }
    }

    /// A driver that writes on and on: an answer in time.
    #[test]
    fn ring_that_never_holds_still_is_found_nowhere_or_somewhere() {
        let driver = Driver::new(SIZE);
        let (memory, at) = (driver.memory.whole(), driver.at());
        let finder = thread::spawn(move || {
            for _ in 0..2000 {
                let found = PackedQueue::find(memory.clone(), &at, 0x8000).unwrap();
                assert!(found.is_none_or(|base| u32::from(base as u16 & !WRAP) < at.size));
            }
        });

        let mut seed = 1_u32;
        while !finder.is_finished() {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            driver
                .memory
                .word(RING + 14 + 16 * u64::from(seed >> 8) % 80)
                .store((seed >> 16) as u16, Ordering::Relaxed);
        }

        finder.join().unwrap();
    }

    /// CVE-2026-86848: what a driver changes while a chain is walked leads to a piece of its memory or to a fault.
    #[test]
    fn descriptor_that_changes_while_it_is_read_never_leads_outside() {
        let mut driver = Driver::new(SIZE);
        driver.offer(0, &[(buffer(0), 64, 0), (buffer(1), 64, 0)]);
        let mut queue = driver.queue();
        let walker = thread::spawn(move || {
            let mut ahead = Ahead::default();
            for _ in 0..20_000 {
                ahead.clear();
                queue.rewind();
                let found = queue.look(Direction::FromDriver, 1, &mut ahead).unwrap_or(0);
                assert_eq!(found, ahead.chains.len());
                for chain in &ahead.chains {
                    assert_eq!(chain.bytes, lengths(chain, &ahead).into_iter().sum::<u32>());
                    assert!((1..=SIZE).contains(&chain.used.descriptors));
                }
            }
        });

        let mut seed = 1_u32;
        while !walker.is_finished() {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // SAFETY: within the first two descriptors.
            unsafe { driver.memory.place(RING + u64::from(seed >> 8) % 32).write_volatile((seed >> 24) as u8) };
        }

        walker.join().unwrap();
    }

    /// CVE-2026-93683: a table whose length changes without end has one length for whoever walks it, and nothing behind that is
    /// looked at.
    #[test]
    fn indirect_table_whose_length_changes_between_reads_has_one_length() {
        const LENGTHS: [u32; 3] = [2, 40, 0x1_0000];
        let mut driver = Driver::new(SIZE);
        (0..64).for_each(|entry| driver.memory.describe(TABLES + 16 * entry, buffer(entry % 16), 1, [0, 0]));
        driver.offer(0, &[(GUEST + TABLES, 16 * LENGTHS[0], INDIRECT)]);
        let mut queue = driver.queue();
        let walker = thread::spawn(move || {
            let mut ahead = Ahead::default();
            for _ in 0..20_000 {
                ahead.clear();
                queue.rewind();
                match queue.look(Direction::FromDriver, 1, &mut ahead) {
                    Ok(_) => assert!(LENGTHS[..2].contains(&ahead.chains[0].bytes), "{}", ahead.chains[0].bytes),
                    Err(fault) => assert!(["bad_indirect", "chain_too_long"].contains(&fault.reason()), "{fault}"),
                }
            }
        });

        while !walker.is_finished() {
            let length = driver.memory.double_word(RING + 8);
            LENGTHS.iter().for_each(|entries| length.store(16 * entries, Ordering::Relaxed));
        }

        walker.join().unwrap();
    }

    /// One thing that one of the two sides does.
    #[derive(Clone, Debug)]
    enum Step {
        /// The driver offers chains of so many pieces, in a table of their own or not.
        Offer(Vec<(u16, bool)>),
        /// The driver wants to be called when the place so far behind its oldest descriptor is used, or always, or never.
        Wish(u16),
        /// We look at so many chains, and take so many of those that were looked at.
        Take(usize, usize),
        Rewind,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => vec((1..4_u16, any::<bool>()), 1..5).prop_map(Step::Offer),
            1 => (0..12_u16).prop_map(Step::Wish),
            4 => (0..6_usize, 0..6_usize).prop_map(|(look, take)| Step::Take(look, take)),
            1 => Just(Step::Rewind),
        ];
        vec(step, 1..80)
    }

    proptest! {
        /// Ids, lengths, order and calls are what a driver expects that does one thing after the other.
        #[test]
        fn prop_driver_sees_what_it_offered(size in 1..9_u16, steps in steps()) {
            let mut driver = Driver::new(size);
            let mut queue = driver.queue();
            let mut ahead = Ahead::default();
            // Chains that were offered and not completed, and how many of them were looked at.
            let mut waiting: VecDeque<(u16, Vec<u32>, u16)> = VecDeque::new();
            let mut looked = 0;
            let mut next_id = 0_u16;
            let mut asked = None;
            for step in steps {
                match step {
                    Step::Offer(chains) => {
                        for (pieces, is_indirect) in chains {
                            let taken = if is_indirect { 1 } else { pieces };
                            if driver.room() < taken {
                                continue;
                            }
                            let sizes: Vec<u32> = (0..pieces).map(|piece| u32::from(next_id % 100 + piece) + 1).collect();
                            let of = |piece: u16| (buffer(u64::from(next_id % 16)), sizes[usize::from(piece)], WRITE);
                            if is_indirect {
                                let table = TABLES + 64 * u64::from(next_id % 16);
                                for piece in 0..pieces {
                                    let (address, length, flags) = of(piece);
                                    driver.memory.describe(table + 16 * u64::from(piece), address, length, [0, flags]);
                                }
                                driver.offer(next_id, &[(GUEST + table, 16 * u32::from(pieces), INDIRECT)]);
                            } else {
                                driver.offer(next_id, &(0..pieces).map(of).collect::<Vec<_>>());
                            }
                            waiting.push_back((next_id, sizes, taken));
                            next_id = next_id.wrapping_add(1);
                        }
                    }
                    Step::Wish(behind) => {
                        // 0 wants every call, 1 none, others one at a place.
                        let mut place = driver.oldest;
                        (2..behind).for_each(|_| place = super::tests::step(place, size));
                        asked = (behind >= 2).then_some(place);
                        driver.wish(u32::from(behind.min(2)), place);
                    }
                    Step::Take(look, take) => {
                        let found = queue.look(Direction::ToDriver, look, &mut ahead).unwrap();
                        prop_assert_eq!(look.min(waiting.len() - looked), found);
                        looked += found;
                        let take = take.min(looked);
                        if take == 0 {
                            continue;
                        }
                        let wish = driver.memory.double_word(DRIVER_WISH).load(Ordering::Relaxed) >> 16;
                        let before = driver.oldest;
                        let chains: Vec<Chain> = ahead.chains.drain(..take).collect();
                        let is_called = queue.complete(chains.iter().map(|chain| Used { written: chain.bytes, ..chain.used }));
                        looked -= take;
                        let mut moved = 0;
                        for chain in &chains {
                            let (id, sizes, taken) = waiting.pop_front().unwrap();
                            prop_assert_eq!(sizes.iter().sum::<u32>(), chain.bytes);
                            prop_assert_eq!(Some((id, chain.bytes, true)), driver.used());
                            moved += taken;
                        }
                        let mut place = before;
                        let passed = (0..moved).any(|_| {
                            let here = place;
                            place = super::tests::step(place, size);
                            Some(here) == asked
                        });
                        prop_assert_eq!([true, false, passed][wish as usize], is_called);
                    }
                    Step::Rewind => {
                        queue.rewind();
                        ahead.clear();
                        looked = 0;
                    }
                }
                prop_assert_eq!(None, driver.used());
            }
        }
    }
}
