//! The descriptor ring ("IOQ"): one producer, one consumer, slots handed over in order and returned in order.
//!
//! ```text
//!            reaped              head                 tail            staged
//!   ───────────┬──────────────────┬────────────────────┬─────────────────┬──────────── slots, modulo the ring's size
//!     free     │ returned: the    │ published: the     │ claimed: the    │  free
//!              │ producer reaps   │ consumer works     │ producer fills  │
//! ```
//!
//! A slot is one 64-bit word, `offset | length << 32 | flags << 56`: it is read in one load, so no peer can change it
//! between two reads or have it read half. The consumer may write a slot back before returning it (a received frame's
//! length), the producer finds the answer when it reaps: frames to the guest travel in buffers the guest published.
//!
//! Beside each index stands what the slot in front of it says, with that slot's number: who waits for one slot at a time
//! finds it on the line that it waits on anyway, and the line of the slots stays with who writes them.
//!
//! Who writes what: the producer `tail` and slots it owns; the consumer `head` and slots it owns. Each keeps its own
//! indices privately and believes the other's only within bounds; anything else is a [`Fault`] and ends the queue.
//! Source: vbus IOQ with its store-only barriers mended; `docs/wire/ring.md` has the bytes.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::layout::{RING_SLOTS_MAX, RingHeader, Slot};
use super::signal::{Listener, Notifier, Owner, SignalMemory};
use super::stamp::{self, Age, STAMP_EVERY, Watch};
use crate::error::Fault;
#[cfg(not(loom))]
use crate::error::{Error, Result};
#[cfg(not(loom))]
use crate::shm::{
    layout::{self, RING_MAGIC, RING_VERSION, SIGNAL_MAGIC, SIGNAL_VERSION},
    line,
    region::Ram,
};
use crate::sync::{Ordering, ordering};

/// Longest piece of memory one descriptor can name.
pub const LENGTH_MAX: u32 = (1 << 24) - 1;

/// What one slot says: `length` bytes at `offset` of the producer's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Byte offset in the region.
    pub offset: u32,
    /// Bytes, at most [`LENGTH_MAX`]; higher bits are cut off on the wire.
    pub length: u32,
    /// Negotiated flags; 0 when none were.
    pub flags: u8,
}

impl Descriptor {
    /// A piece of memory without flags.
    #[must_use]
    pub const fn new(offset: u32, length: u32) -> Self {
        Self { offset, length, flags: 0 }
    }

    /// The word that goes into the slot.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.offset as u64 | ((self.length & LENGTH_MAX) as u64) << 32 | (self.flags as u64) << 56
    }

    /// What a slot's word says.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self { offset: word as u32, length: (word >> 32) as u32 & LENGTH_MAX, flags: (word >> 56) as u8 }
    }
}

/// The word beside an index that repeats slot `index`; 0, which is no slot's, when it does not fit.
///
/// ```text
///   offset | length << 32 | index << 48, the last two modulo 2^16
/// ```
const fn newest(slot: u64, index: u32) -> u64 {
    if slot >> 48 == 0 { slot | (index as u64) << 48 } else { 0 }
}

/// What a word beside an index says of slot `index`; `None`: nothing, look at the slot.
///
/// The number has 16 bits and a ring at most 2^15 slots: a word that was written for any other slot that can be out there,
/// with whatever index it was read, has another number.
const fn of_newest(word: u64, index: u32) -> Option<Descriptor> {
    let found = Descriptor { offset: word as u32, length: (word >> 32) as u32 & 0xffff, flags: 0 };
    if word >> 48 == index as u64 & 0xffff && found.length != 0 { Some(found) } else { None }
}

/// Where a ring is, checked once: everything the two ends need is copied from the shared header here.
#[derive(Clone)]
pub struct RingMemory {
    header: NonNull<RingHeader>,
    slots: NonNull<Slot>,
    count: u32,
    owner: Owner,
}

// SAFETY: header and slots are atomics, reachable for as long as `owner` lives, and accessed as atomics only.
unsafe impl Send for RingMemory {}

struct HeapRing {
    header: RingHeader,
    slots: Box<[Slot]>,
}

impl RingMemory {
    /// A ring in this process's own memory, for models, tests and the bare limits of benchmarks.
    ///
    /// # Panics
    ///
    /// Never for a power of two up to 32768; anything else is rounded up to one.
    #[must_use]
    pub fn on_heap(slots: u32) -> Self {
        let count = slots.clamp(1, RING_SLOTS_MAX).next_power_of_two();
        let ring =
            Arc::new(HeapRing { header: RingHeader::new(count), slots: (0..count).map(|_| Slot::new(0)).collect() });
        Self { header: NonNull::from(&ring.header), slots: NonNull::from(&ring.slots[0]), count, owner: ring }
    }

    /// Lays an empty ring out at `offset` of memory that is ours, for the producing side.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: `slots` is not a power of two up to 32768, or the place is misaligned or outside the region.
    #[cfg(not(loom))]
    pub fn format(ram: &Arc<Ram>, offset: u32, slots: u32) -> Result<Self> {
        if !slots.is_power_of_two() || slots > RING_SLOTS_MAX {
            return Err(Error::Usage(format!(
                "a ring has a power of two of slots, at most {RING_SLOTS_MAX}; got {slots}"
            )));
        }
        let start =
            Self::place(ram, offset, layout::ring_bytes(slots)).map_err(|fault| Error::Usage(fault.to_string()))?;
        let header = start.cast::<RingHeader>();
        // SAFETY: `place` checked alignment and bounds of header and slots; nobody else knows of this ring yet.
        unsafe {
            header.write(RingHeader::new(slots));
            let first = start.add(layout::RING_HEADER_BYTES).cast::<Slot>();
            for index in 0..slots as usize {
                first.add(index).write(Slot::new(0));
            }
            Ok(Self { header, slots: first, count: slots, owner: ram.clone() })
        }
    }

    /// Believes a ring that a peer laid out in `length` bytes at `offset`, after checking all of it.
    ///
    /// # Errors
    ///
    /// The peer's fault: place, magic, version or number of slots cannot be.
    #[cfg(not(loom))]
    pub fn attach(ram: &Arc<Ram>, offset: u32, length: u32) -> std::result::Result<Self, Fault> {
        let start = Self::place(ram, offset, (length as usize).max(layout::RING_HEADER_BYTES))?;
        let header = start.cast::<RingHeader>();
        // SAFETY: `place` checked alignment and bounds; the header is atomics only.
        let shared = unsafe { header.as_ref() };
        let expect = |what, found: u32, expected: u32| {
            if found == expected {
                Ok(())
            } else {
                Err(Fault::BadHeader { what, found: found.into(), expected: expected.into() })
            }
        };
        expect("ring magic", shared.magic.load(Ordering::Relaxed), RING_MAGIC)?;
        expect("ring version", shared.version.load(Ordering::Relaxed), RING_VERSION)?;
        expect("signal magic", shared.signal.magic.load(Ordering::Relaxed), SIGNAL_MAGIC)?;
        expect("signal version", shared.signal.version.load(Ordering::Relaxed), SIGNAL_VERSION)?;
        let slots = shared.slots.load(Ordering::Relaxed);
        if !slots.is_power_of_two() || slots > RING_SLOTS_MAX {
            return Err(Fault::BadSize { what: "ring slots", found: slots.into(), limit: RING_SLOTS_MAX.into() });
        }
        if layout::ring_bytes(slots) != length as usize {
            return Err(Fault::BadSize {
                what: "ring length",
                found: length.into(),
                limit: layout::ring_bytes(slots) as u64,
            });
        }
        // SAFETY: the length just checked covers header and slots.
        let first = unsafe { start.add(layout::RING_HEADER_BYTES).cast::<Slot>() };
        Ok(Self { header, slots: first, count: slots, owner: ram.clone() })
    }

    #[cfg(not(loom))]
    fn place(ram: &Arc<Ram>, offset: u32, bytes: usize) -> std::result::Result<NonNull<u8>, Fault> {
        if !(offset as usize).is_multiple_of(layout::LINE_PAIR) {
            return Err(Fault::BadSize {
                what: "ring alignment",
                found: offset.into(),
                limit: layout::LINE_PAIR as u64,
            });
        }
        if offset < layout::RAM_HEADER_BYTES {
            return Err(Fault::OverlapsControl {
                offset,
                length: u32::try_from(bytes).unwrap_or(u32::MAX),
                start: 0,
                end: layout::RAM_HEADER_BYTES,
            });
        }
        ram.at(offset, bytes)
    }

    /// Number of slots.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.count
    }

    fn header(&self) -> &RingHeader {
        // SAFETY: valid for the life of `owner`.
        unsafe { self.header.as_ref() }
    }

    fn slot(&self, index: u32) -> &Slot {
        // SAFETY: the mask keeps the index below `count`, whose slots were checked to be in bounds.
        unsafe { self.slots.add((index & (self.count - 1)) as usize).as_ref() }
    }

    fn kick(&self) -> SignalMemory {
        // SAFETY: the words live inside the header, for as long as `owner`.
        unsafe { SignalMemory::new(NonNull::from(&self.header().signal.kick), self.owner.clone()) }
    }

    fn call(&self) -> SignalMemory {
        // SAFETY: the words live inside the header, for as long as `owner`.
        unsafe { SignalMemory::new(NonNull::from(&self.header().signal.call), self.owner.clone()) }
    }
}

/// The end that fills slots, and finds them again after the consumer returned them.
pub struct Producer {
    ring: RingMemory,
    /// Next slot to fill; `tail` as of the last publish is `published`.
    staged: u32,
    published: u32,
    /// First slot not yet reaped.
    reaped: u32,
    /// The consumer's `head` when last looked at: never ahead of the truth, so it may only lack room, not invent it.
    head_seen: u32,
    /// The next slot that is stamped; `None`: none is.
    stamp_due: Option<u32>,
    returns: Watch,
    kick: Notifier,
    call: Listener,
}

impl Producer {
    /// Takes the producing end of a ring nobody has used yet. One per ring: the caller keeps that promise.
    #[must_use]
    pub fn new(ring: RingMemory) -> Self {
        Self::starting_at(ring, 0)
    }

    /// As [`Self::new`], but counting from `index`: shows in a test what else takes 2^32 slots to see.
    #[doc(hidden)]
    #[must_use]
    pub fn starting_at(ring: RingMemory, index: u32) -> Self {
        ring.header().producer.tail.store(index, Ordering::Relaxed);
        Self {
            kick: Notifier::new(ring.kick()),
            call: Listener::new(ring.call()),
            ring,
            staged: index,
            published: index,
            reaped: index,
            head_seen: index,
            stamp_due: Some(index),
            returns: Watch::default(),
        }
    }

    /// Slots of the ring.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.ring.count
    }

    /// Slots that can be staged right now. Slots that came back count only once they were reaped.
    #[must_use]
    pub const fn room(&self) -> u32 {
        self.ring.count - self.staged.wrapping_sub(self.reaped)
    }

    /// Slots published and not yet reaped.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.published.wrapping_sub(self.reaped)
    }

    /// Fills the next slot; the consumer sees it after [`Self::publish`]. `false`: no room, nothing happened.
    #[must_use = "false means the descriptor was not taken"]
    pub fn stage(&mut self, descriptor: Descriptor) -> bool {
        if self.room() == 0 {
            return false;
        }
        self.ring.slot(self.staged).store(descriptor.to_word(), Ordering::Relaxed);
        self.staged = self.staged.wrapping_add(1);
        true
    }

    /// Fills slot `index`, which counts on from [`Self::next_index`] and lies within [`Self::room`]; it is staged by
    /// [`Self::stage_filled`]. For who fills many in a row: nothing of this side's own changes meanwhile.
    #[inline]
    pub fn fill(&self, index: u32, descriptor: Descriptor) {
        debug_assert!(index.wrapping_sub(self.staged) < self.room());
        self.ring.slot(index).store(descriptor.to_word(), Ordering::Relaxed);
    }

    /// Stages the next `count` slots, all of them filled; at most [`Self::room`].
    #[inline]
    pub fn stage_filled(&mut self, count: u32) {
        debug_assert!(count <= self.room());
        self.staged = self.staged.wrapping_add(count.min(self.room()));
    }

    /// Asks for the lines that the next publish writes, which the consumer has looked at last.
    #[cfg(not(loom))]
    #[inline]
    pub fn ask_ahead(&self) {
        line::fetch_to_write(NonNull::from(self.ring.slot(self.staged)).cast(), 1);
        line::fetch_to_write(NonNull::from(&self.ring.header().producer).cast(), 1);
    }

    /// Asks for the lines that staging and publishing the next slot will write: the consumer reads both all the time.
    #[cfg(not(loom))]
    #[inline]
    pub fn prepare(&self) {
        line::fetch_to_write(NonNull::from(&self.ring.header().producer.tail).cast(), 1);
        line::fetch_to_write(NonNull::from(self.ring.slot(self.staged)).cast(), 1);
    }

    /// Slots filled since the last publish.
    #[must_use]
    pub const fn unpublished(&self) -> u32 {
        self.staged.wrapping_sub(self.published)
    }

    /// Makes everything staged visible to the consumer. Cost: two stores to one line, no system call.
    pub fn publish(&mut self) {
        if self.staged != self.published {
            let last = self.staged.wrapping_sub(1);
            let word = newest(self.ring.slot(last).load(Ordering::Relaxed), last);
            self.ring.header().producer.newest.store(word, Ordering::Relaxed);
        }
        self.published = self.staged;
        // [RG-1 slots visible] release: slots and payload before tail; partner in Consumer::available.
        let order = ordering("ring_publish", Ordering::Release);
        self.ring.header().producer.tail.store(self.staged, order);
    }

    /// Before a publish: says when that was, for one slot in many and always when the consumer sleeps. Costs a look at
    /// words that this side reads and writes anyway.
    #[inline]
    pub fn stamp(&mut self, now_ns: impl FnOnce() -> u64) {
        let Some(due) = self.stamp_due else { return };
        if self.staged.wrapping_sub(due).cast_signed() > 0 || self.kick.would_ring() {
            self.stamp_now(now_ns());
        }
    }

    #[cold]
    fn stamp_now(&mut self, now_ns: u64) {
        if self.staged == self.published {
            return;
        }
        self.stamp_due = Some(self.staged.wrapping_add(STAMP_EVERY));
        let word = stamp::stamp(self.staged.wrapping_sub(1), now_ns);
        self.ring.header().producer.published_at.store(word, Ordering::Relaxed);
    }

    /// Stamps nothing from now on: for measuring what stamps cost.
    pub fn stop_stamping(&mut self) {
        self.stamp_due = None;
    }

    /// Whether [`Self::completed`] will look at the shared index.
    #[inline]
    #[must_use]
    pub const fn knows_of_none(&self) -> bool {
        self.head_seen == self.reaped
    }

    /// Right after [`Self::completed`] looked: notes what the consumer stamped.
    #[inline]
    pub fn watch_returns(&mut self) {
        let word = self.ring.header().consumer.returned_at.load(Ordering::Relaxed);
        self.returns.look(word, self.reaped, self.head_seen, self.ring.count);
    }

    /// Before the oldest `count` returned slots are reaped: tells the consumer how long a stamped one of them lay there.
    #[inline]
    pub fn answer(&mut self, count: u32, now_ns: impl FnOnce() -> u64) {
        if let Some(word) = self.returns.take(self.reaped, count)
            && let Age::Nanoseconds(age_ns) = stamp::age(word, now_ns())
        {
            let answer = stamp::stamp(stamp::tag(word), age_ns);
            self.ring.header().producer.reaped_after.store(answer, Ordering::Relaxed);
        }
    }

    /// Number of slots the consumer returned and nobody reaped yet.
    ///
    /// # Errors
    ///
    /// The consumer's index lies outside what was published.
    pub fn completed(&mut self) -> std::result::Result<u32, Fault> {
        if self.head_seen == self.reaped {
            // [RG-2 slots returned] acquire: head before slots and payload; partner in Consumer::release.
            let order = ordering("ring_completed", Ordering::Acquire);
            let head = self.ring.header().consumer.head.load(order);
            if head.wrapping_sub(self.reaped) > self.in_flight() {
                return Err(Fault::HeadOutOfRange { head, reaped: self.reaped, tail: self.published });
            }
            self.head_seen = head;
        }
        Ok(self.head_seen.wrapping_sub(self.reaped))
    }

    /// Looks at the `ahead`-th returned slot without reaping it. Only below what [`Self::completed`] said.
    #[must_use]
    pub fn peek(&self, ahead: u32) -> Descriptor {
        Descriptor::from_word(self.ring.slot(self.reaped.wrapping_add(ahead)).load(Ordering::Relaxed))
    }

    /// As [`Self::peek`] of the oldest, if it is the only one and stands beside the consumer's index: spares the look at its
    /// slot. Only after [`Self::completed`] said that there is one. One load.
    #[inline]
    #[must_use]
    pub fn peek_newest(&self) -> Option<Descriptor> {
        of_newest(self.ring.header().consumer.newest.load(Ordering::Relaxed), self.reaped)
    }

    /// Takes the oldest `count` returned slots back; at most what [`Self::completed`] said.
    pub fn reap(&mut self, count: u32) {
        debug_assert!(count <= self.head_seen.wrapping_sub(self.reaped));
        self.reaped = self.reaped.wrapping_add(count);
    }

    /// Index of the next slot to stage, counted up for ever modulo 2^32: a key for what the producer remembers a slot.
    #[must_use]
    pub const fn next_index(&self) -> u32 {
        self.staged
    }

    /// Index of the next slot to reap.
    #[must_use]
    pub const fn reap_index(&self) -> u32 {
        self.reaped
    }

    /// Tells the consumer that there is work. `true`: it sleeps, ring its doorbell.
    #[must_use = "true means the consumer sleeps until its doorbell is rung"]
    pub fn notify(&self) -> bool {
        self.kick.inject()
    }

    /// Says when the doorbell is rung, which [`Self::notify`] asked for.
    pub fn ringing(&self, now_ns: u64) {
        self.kick.ringing(now_ns);
    }

    /// As [`Listener::mask`], after a sleep: tells the consumer how long its ring took to be heard.
    pub fn wake(&self, now_ns: impl FnOnce() -> u64) {
        self.call.wake(now_ns);
    }

    /// How the consumer reaches us: armed when we want to hear of returned slots.
    #[must_use]
    pub const fn listener(&self) -> &Listener {
        &self.call
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("slots", &self.ring.count)
            .field("reaped", &self.reaped)
            .field("published", &self.published)
            .field("staged", &self.staged)
            .finish_non_exhaustive()
    }
}

/// The end that works on published slots and returns them.
pub struct Consumer {
    ring: RingMemory,
    /// Next slot to work on.
    next: u32,
    /// `head` as last stored.
    returned: u32,
    /// The producer's `tail` when last looked at.
    tail_seen: u32,
    publishes: Watch,
    /// Slots are written here before they are returned.
    does_answer: bool,
    /// The next slot that is stamped, and the last that was, with when.
    stamp_due: u32,
    stamped: Option<(u32, u64)>,
    kick: Listener,
    call: Notifier,
}

impl Consumer {
    /// Takes the consuming end, starting at slot 0. One per ring: the caller keeps that promise.
    #[must_use]
    pub fn new(ring: RingMemory) -> Self {
        Self::starting_at(ring, 0)
    }

    /// As [`Self::new`], but counting from `index`, where the producer started too.
    #[doc(hidden)]
    #[must_use]
    pub fn starting_at(ring: RingMemory, index: u32) -> Self {
        ring.header().consumer.head.store(index, Ordering::Relaxed);
        Self {
            kick: Listener::new(ring.kick()),
            call: Notifier::new(ring.call()),
            ring,
            next: index,
            returned: index,
            tail_seen: index,
            publishes: Watch::default(),
            does_answer: false,
            stamp_due: index,
            stamped: None,
        }
    }

    /// Slots of the ring.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.ring.count
    }

    /// Published slots that were not returned, as far as was looked: for counters, without a look of its own.
    #[must_use]
    pub const fn known(&self) -> u32 {
        self.tail_seen.wrapping_sub(self.returned)
    }

    /// Published slots not yet advanced over. Looks at the shared index only when it knows of none.
    ///
    /// # Errors
    ///
    /// The producer's index is more than a ring ahead of ours.
    pub fn available(&mut self) -> std::result::Result<u32, Fault> {
        if self.tail_seen == self.next { self.refresh() } else { Ok(self.tail_seen.wrapping_sub(self.next)) }
    }

    /// As [`Self::available`], but always looks.
    ///
    /// # Errors
    ///
    /// The producer's index is more than a ring ahead of ours.
    pub fn refresh(&mut self) -> std::result::Result<u32, Fault> {
        // [RG-1 slots visible] acquire: tail before slots and payload; partner in Producer::publish.
        let order = ordering("ring_available", Ordering::Acquire);
        let tail = self.ring.header().producer.tail.load(order);
        // Against what was returned, not what was worked on: slots in hand are still ours and cannot be published again.
        let ahead = tail.wrapping_sub(self.returned);
        if ahead > self.ring.count || ahead < self.tail_seen.wrapping_sub(self.returned) {
            return Err(Fault::TailOutOfRange { tail, head: self.returned, slots: self.ring.count });
        }
        self.tail_seen = tail;
        Ok(tail.wrapping_sub(self.next))
    }

    /// Right after [`Self::refresh`]: notes what the producer stamped. `false`: a slot that cannot be.
    #[inline]
    pub fn watch_publishes(&mut self) -> bool {
        let word = self.ring.header().producer.published_at.load(Ordering::Relaxed);
        self.publishes.look(word, self.next, self.tail_seen, self.ring.count)
    }

    /// Before the next `count` slots are worked on: how long a stamped one of them lay there.
    #[inline]
    pub fn published_before(&mut self, count: u32, now_ns: impl FnOnce() -> u64) -> Age {
        self.publishes.take(self.next, count).map_or(Age::Unknown, |word| stamp::age(word, now_ns()))
    }

    /// Whether what is returned next should be stamped: one slot in many, and always when the producer sleeps.
    #[inline]
    #[must_use]
    pub fn is_stamp_due(&self) -> bool {
        self.next.wrapping_sub(self.stamp_due).cast_signed() > 0 || self.call.would_ring()
    }

    /// Before a release: says when that was. Gives how long the slot that was stamped last lay there, as the producer says.
    pub fn stamp(&mut self, now_ns: u64) -> Age {
        let age = self.reaped_after(now_ns);
        if self.held() != 0 {
            let index = self.next.wrapping_sub(1);
            self.stamp_due = self.next.wrapping_add(STAMP_EVERY);
            self.stamped = Some((index, now_ns));
            self.ring.header().consumer.returned_at.store(stamp::stamp(index, now_ns), Ordering::Relaxed);
        }
        age
    }

    /// How long the slot that was stamped last lay there, as the producer says; once for each.
    pub fn reaped_after(&mut self, now_ns: u64) -> Age {
        let Some((index, asked_ns)) = self.stamped else { return Age::Unknown };
        let answer = self.ring.header().producer.reaped_after.load(Ordering::Relaxed);
        if !stamp::is_about(answer, index) {
            return Age::Unknown;
        }
        self.stamped = None;
        stamp::answered(answer, asked_ns, now_ns)
    }

    /// The `ahead`-th published slot. Only below what [`Self::available`] said. One load: copy it, check the copy.
    #[must_use]
    pub fn peek(&self, ahead: u32) -> Descriptor {
        Descriptor::from_word(self.ring.slot(self.next.wrapping_add(ahead)).load(Ordering::Relaxed))
    }

    /// As [`Self::peek`] of the next, if it is the only one and stands beside the producer's index: spares the look at its
    /// slot. Only after [`Self::available`] said that there is one. One load.
    #[inline]
    #[must_use]
    pub fn peek_newest(&self) -> Option<Descriptor> {
        of_newest(self.ring.header().producer.newest.load(Ordering::Relaxed), self.next)
    }

    /// Writes the answer into the `ahead`-th slot, before advancing over it.
    pub fn complete(&mut self, ahead: u32, descriptor: Descriptor) {
        self.ring.slot(self.next.wrapping_add(ahead)).store(descriptor.to_word(), Ordering::Relaxed);
        self.does_answer = true;
    }

    /// Steps over `count` slots; they stay ours until [`Self::release`].
    pub fn advance(&mut self, count: u32) {
        debug_assert!(count <= self.tail_seen.wrapping_sub(self.next));
        self.next = self.next.wrapping_add(count);
    }

    /// Slots advanced over and not yet returned.
    #[must_use]
    pub const fn held(&self) -> u32 {
        self.next.wrapping_sub(self.returned)
    }

    /// Returns everything advanced over to the producer. Cost: one store, or two to one line when there are answers; no
    /// system call.
    pub fn release(&mut self) {
        // Where nothing is answered the producer does not look, and this side may not have had the slot's line.
        if self.does_answer && self.returned != self.next {
            let last = self.next.wrapping_sub(1);
            let word = newest(self.ring.slot(last).load(Ordering::Relaxed), last);
            self.ring.header().consumer.newest.store(word, Ordering::Relaxed);
        }
        self.returned = self.next;
        // [RG-2 slots returned] release: slots and payload before head; partner in Producer::completed.
        let order = ordering("ring_release", Ordering::Release);
        self.ring.header().consumer.head.store(self.next, order);
    }

    /// Tells the producer that slots came back. `true`: it sleeps, ring its doorbell.
    #[must_use = "true means the producer sleeps until its doorbell is rung"]
    pub fn notify(&self) -> bool {
        self.call.inject()
    }

    /// Says when the doorbell is rung, which [`Self::notify`] asked for. Gives how long the producer took to hear the last
    /// ring, as it says.
    pub fn ringing(&self, now_ns: u64) -> Age {
        let age = self.heard_after(now_ns);
        self.call.ringing(now_ns);
        age
    }

    /// How long the producer took to hear the last ring, as it says; once for each.
    pub fn heard_after(&self, now_ns: u64) -> Age {
        self.call.heard_after(now_ns)
    }

    /// How long ago the doorbell was rung that ended this sleep; once for each.
    pub fn woken_after(&self, now_ns: impl FnOnce() -> u64) -> Age {
        self.kick.woken_after(now_ns)
    }

    /// How the producer reaches us: armed when we have nothing to do.
    #[must_use]
    pub const fn listener(&self) -> &Listener {
        &self.kick
    }

    /// Goes to sleep unless there is work. `true`: armed and empty, wait for the doorbell. `false`: work came in.
    ///
    /// # Errors
    ///
    /// As [`Self::available`].
    pub fn arm(&mut self) -> std::result::Result<bool, Fault> {
        self.kick.acknowledge();
        if self.refresh()? != 0 {
            return Ok(false);
        }
        Ok(self.kick.arm())
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("slots", &self.ring.count)
            .field("returned", &self.returned)
            .field("next", &self.next)
            .field("tail_seen", &self.tail_seen)
            .finish_non_exhaustive()
    }
}

/// Both ends of a ring in this process's own memory.
#[must_use]
pub fn pair_on_heap(slots: u32) -> (Producer, Consumer) {
    let ring = RingMemory::on_heap(slots);
    (Producer::new(ring.clone()), Consumer::new(ring))
}
