//! What split and packed virtqueues have in common: chains of buffers, looked at a batch ahead of being taken.
//!
//! ```text
//!   look ─▶ Ahead: chains checked, each with its place or its pieces ─▶ (frames copied) ─▶ complete: used, seen by the driver
//!    ▲ rewind: look again at what was not completed
//! ```
//!
//! Which kind a queue is, is asked once a batch. Chains are completed in the order in which they were looked at, so a queue has
//! one position, and whoever goes on with it needs to know nothing else.
//! The danger: see [`super::split`]. What was looked at is a private copy; the driver may change its own as it likes.
//! Source: virtio 1.2 §2.7, §2.8.

use std::ptr::NonNull;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::dirty::DirtyLog;
use super::inflight::Trail;
use super::memory::GuestMemory;
use super::packed::PackedQueue;
use super::split::SplitQueue;
use crate::error::Fault;

/// Largest queue, as the specification has it.
pub const SIZE_MAX: u32 = 32768;
/// Most descriptors of one chain: what bounds the work that one frame can make.
pub const CHAIN_MAX: u32 = 1024;
/// A look ends at so many pieces of scattered chains: what bounds the work that one batch can make.
pub(super) const PIECES_MAX: usize = CHAIN_MAX as usize;

pub(super) const DESCRIPTOR_BYTES: u64 = 16;
pub(super) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(super) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(super) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

pub(super) type Checked<T> = std::result::Result<T, Fault>;

/// A private copy of one descriptor. The last two words of a packed ring's are the other way round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    /// # Safety
    ///
    /// 16 bytes at `place` are mapped; it need not be aligned.
    #[inline]
    pub unsafe fn fetch(place: *const u8) -> Self {
        // SAFETY: as promised by the caller. One copy of each word; what the driver writes meanwhile is its own loss.
        let [address, rest] = unsafe { place.cast::<[[u8; 8]; 2]>().read_volatile() }.map(u64::from_le_bytes);
        Self { address, length: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// As a packed ring has it: the id of the buffer where `next` is, then the flags.
    #[inline]
    pub const fn packed(address: u64, rest: u64) -> Self {
        Self { address, length: rest as u32, flags: (rest >> 48) as u16, next: (rest >> 32) as u16 }
    }

    /// Whether the chain goes on behind it.
    pub const fn goes_on(&self) -> bool {
        self.flags & NEXT != 0
    }

    /// Whether this is a whole chain, of one buffer that goes the right way.
    #[inline]
    pub const fn is_single(&self, direction: Direction) -> bool {
        self.flags & (NEXT | INDIRECT | WRITE) == direction.flags() && self.length != 0
    }
}

/// Bytes of one chain that lie together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub place: NonNull<u8>,
    pub bytes: u32,
}

// SAFETY: a place and nothing more, good for as long as the memory that it was found in, on whatever thread.
unsafe impl Send for Segment {}

/// Which way a chain's buffers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The driver wrote them, we read.
    FromDriver,
    /// The driver posted them, we write.
    ToDriver,
}

impl Direction {
    /// The flag of its descriptors.
    #[inline]
    pub(super) const fn flags(self) -> u16 {
        match self {
            Self::FromDriver => 0,
            Self::ToDriver => WRITE,
        }
    }
}

/// Where a front end put a queue, and what it agreed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueAt {
    /// Entries, 1 to [`SIZE_MAX`]; of a split queue a power of two.
    pub size: u32,
    /// Address of the descriptor table, or of the packed ring, as the front end has it.
    pub descriptors: u64,
    /// Address of the ring of available chains; packed: of the driver's wish to be called.
    pub available: u64,
    /// Address of the ring of used chains; packed: of our wish to be kicked.
    pub used: u64,
    /// `VIRTIO_F_EVENT_IDX` was agreed on.
    pub has_event_index: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was agreed on.
    pub has_indirect: bool,
    /// `VIRTIO_F_RING_PACKED` was agreed on.
    pub is_packed: bool,
}

/// A chain that was looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// Where its first piece is.
    pub place: NonNull<u8>,
    /// Bytes of all its pieces; what is more than fits here is far too much anyway.
    pub bytes: u32,
    /// Where its pieces begin in [`Ahead::pieces`], and how many there are; none: it lies together.
    pub first: u32,
    pub pieces: u32,
    pub used: Used,
}

impl Chain {
    /// One whose place is not known yet.
    pub(super) const fn new(used: Used) -> Self {
        Self { place: NonNull::dangling(), bytes: 0, first: 0, pieces: 0, used }
    }
}

/// How the driver is told that we are done with a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// Its head, or the id of its buffer.
    pub id: u16,
    /// Descriptors of the ring that it takes.
    pub descriptors: u16,
    /// Bytes written to it.
    pub written: u32,
}

/// Chains that were looked at, in order.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    pub chains: Vec<Chain>,
    /// Of chains that do not lie together.
    pub pieces: Vec<Segment>,
}

// SAFETY: places are good for as long as the memory of the queue that they were found by, on whatever thread.
unsafe impl Send for Ahead {}

impl Ahead {
    pub(crate) fn clear(&mut self) {
        self.chains.clear();
        self.pieces.clear();
    }

    /// The pieces of a chain that does not lie together.
    pub(crate) fn pieces_of(&self, chain: &Chain) -> &[Segment] {
        &self.pieces[chain.first as usize..][..chain.pieces as usize]
    }

    /// No more scattered chains may be looked at in one go.
    #[inline]
    pub(super) const fn is_full(&self, before: usize) -> bool {
        self.pieces.len() >= before + PIECES_MAX
    }

    /// A chain whose pieces from `first` on were appended just now; a single one lies together after all.
    pub(super) fn scattered(&mut self, first: usize, total: u64, used: Used) -> Chain {
        if let [Segment { place, bytes }] = self.pieces[first..] {
            self.pieces.truncate(first);
            return Chain { place, bytes, first: 0, pieces: 0, used };
        }
        let bytes = u32::try_from(total).unwrap_or(u32::MAX);
        let pieces = (self.pieces.len() - first) as u32;
        Chain { bytes, first: first as u32, pieces, ..Chain::new(used) }
    }
}

/// A queue of either kind, worked on by one thread.
#[derive(Debug)]
pub(crate) enum Queue {
    Split(SplitQueue),
    Packed(PackedQueue),
}

impl Queue {
    /// A queue that goes on where its used ring says it was left, or, packed, its trail, or at `base`.
    ///
    /// # Errors
    ///
    /// The front end's fault: a size or an alignment that cannot be, or a ring that is not in its memory.
    pub(crate) fn new(memory: Arc<GuestMemory>, at: &QueueAt, base: u32, trail: Option<Trail>) -> Checked<Self> {
        if at.is_packed {
            return PackedQueue::new(memory, at, base, trail).map(Self::Packed);
        }
        SplitQueue::new(memory, at, trail).map(Self::Split)
    }

    /// Entries.
    pub(crate) const fn size(&self) -> u32 {
        match self {
            Self::Split(queue) => queue.size(),
            Self::Packed(queue) => queue.size(),
        }
    }

    /// Where the queue is, as front ends ask for it and tell it.
    pub(crate) const fn position(&self) -> u32 {
        match self {
            Self::Split(queue) => queue.position() as u32,
            Self::Packed(queue) => queue.position(),
        }
    }

    /// Chains that were available when this was last looked at and are not completed; of a packed queue those looked at.
    #[inline]
    pub(crate) const fn known(&self) -> u32 {
        match self {
            Self::Split(queue) => queue.known(),
            Self::Packed(queue) => queue.known(),
        }
    }

    /// Looks at up to `wanted` more chains and appends them to `ahead`: how many. Fewer if one of them breaks a rule, or if
    /// they are scattered over many pieces.
    ///
    /// # Errors
    ///
    /// The very next chain breaks a rule.
    #[inline]
    pub(crate) fn look(&mut self, direction: Direction, wanted: usize, ahead: &mut Ahead) -> Checked<usize> {
        match self {
            Self::Split(queue) => queue.look(direction, wanted, ahead),
            Self::Packed(queue) => queue.look(direction, wanted, ahead),
        }
    }

    /// Looks again, from now on, at what was not completed.
    #[inline]
    pub(crate) const fn rewind(&mut self) {
        match self {
            Self::Split(queue) => queue.rewind(),
            Self::Packed(queue) => queue.rewind(),
        }
    }

    /// Takes the oldest chains that were looked at and shows the driver that we are done with them. `true`: it wants to be
    /// called.
    #[inline]
    pub(crate) fn complete(&mut self, used: impl ExactSizeIterator<Item = Used>) -> bool {
        match self {
            Self::Split(queue) => queue.complete(used),
            Self::Packed(queue) => queue.complete(used),
        }
    }

    /// Ends a batch in the middle of which a host was killed: see [`PackedQueue::mend`]. A split queue is shown a batch whole.
    pub(crate) fn mend(&mut self) {
        if let Self::Packed(queue) = self {
            queue.mend();
        }
    }

    /// Marks in a log, from now on, what is written into its rings; the used ring, or our wish, is at guest address `used`.
    ///
    /// # Errors
    ///
    /// The log is too short.
    pub(crate) fn keep_log(&mut self, log: Arc<DirtyLog>, used: u64) -> Checked<()> {
        match self {
            Self::Split(queue) => queue.keep_log(log, used),
            Self::Packed(queue) => queue.keep_log(log, used),
        }
    }

    /// Asks the driver to kick when there is more. `true`: there is nothing now.
    ///
    /// # Errors
    ///
    /// The driver's index cannot be.
    pub(crate) fn arm(&mut self) -> Checked<bool> {
        match self {
            Self::Split(queue) => queue.arm(),
            Self::Packed(queue) => Ok(queue.arm()),
        }
    }

    /// No kicks wanted.
    pub(crate) fn disarm(&self) {
        match self {
            Self::Split(queue) => queue.disarm(),
            Self::Packed(queue) => queue.disarm(),
        }
    }
}

/// Finds buffers, tables and rings in memory that is somebody else's.
#[derive(Debug)]
pub(super) struct Lookup {
    memory: Arc<GuestMemory>,
    hint: usize,
}

impl Lookup {
    pub const fn new(memory: Arc<GuestMemory>) -> Self {
        Self { memory, hint: 0 }
    }

    /// Where a ring is: all of it in one region, aligned.
    pub fn ring(&self, what: &'static str, address: u64, align: u64, bytes: u64) -> Checked<NonNull<u8>> {
        if !address.is_multiple_of(align) {
            return Err(Fault::BadSize { what, found: address, limit: align });
        }
        let limit = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.memory.structure(address, bytes).ok_or(Fault::OutsideMemory { address, length: limit })
    }

    /// Guest address of a ring that was found.
    pub fn address_of(&self, ring: NonNull<u8>) -> Option<u64> {
        self.memory.address_of(ring)
    }

    /// Where a buffer is that lies together.
    #[inline]
    pub fn whole(&mut self, address: u64, length: u32) -> Option<NonNull<u8>> {
        let (place, bytes) = self.memory.place(&mut self.hint, address, length)?;
        (bytes == length).then_some(place)
    }

    /// Appends the buffer of one descriptor, in as many pieces as regions it is in: its bytes.
    pub fn pieces(&mut self, found: &Descriptor, pieces: &mut Vec<Segment>) -> Checked<u64> {
        if found.length == 0 {
            return Err(Fault::ZeroLength { offset: found.address as u32 });
        }
        let outside = Fault::OutsideMemory { address: found.address, length: found.length };
        let mut done = 0;
        while done < found.length {
            let address = found.address.checked_add(done.into()).ok_or(outside)?;
            let (place, bytes) = self.memory.place(&mut self.hint, address, found.length - done).ok_or(outside)?;
            pieces.push(Segment { place, bytes });
            done += bytes;
        }
        Ok(found.length.into())
    }

    /// Copies one entry of an indirect table, which may begin anywhere and cross regions.
    pub fn entry(&mut self, table: &Table, index: u32) -> Checked<[u8; DESCRIPTOR_BYTES as usize]> {
        let mut copy = [0; DESCRIPTOR_BYTES as usize];
        let address = table.first + u64::from(index) * DESCRIPTOR_BYTES;
        let mut done = 0;
        while done < copy.len() {
            let (here, length) = (address.wrapping_add(done as u64), (copy.len() - done) as u32);
            let outside = Fault::OutsideMemory { address: here, length };
            let (place, bytes) = self.memory.place(&mut self.hint, here, length).ok_or(outside)?;
            // SAFETY: `bytes` of them are mapped there, and at most as many are left of the copy.
            unsafe { place.as_ptr().copy_to_nonoverlapping(copy.as_mut_ptr().add(done), bytes as usize) };
            done += bytes as usize;
        }
        Ok(copy)
    }
}

/// An indirect table, in the memory of the driver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub first: u64,
    pub entries: u32,
}

impl Table {
    /// The table that an indirect descriptor of a ring points at.
    pub fn of(found: &Descriptor, is_allowed: bool) -> Checked<Self> {
        let entries = u64::from(found.length) / DESCRIPTOR_BYTES;
        let is_whole = u64::from(found.length).is_multiple_of(DESCRIPTOR_BYTES) && entries != 0;
        let is_alone = found.flags & NEXT == 0 && is_allowed;
        let ends = found.address.checked_add(u64::from(found.length)).is_some();
        if !(is_whole && is_alone && ends) || entries > u64::from(SIZE_MAX) {
            return Err(Fault::BadIndirect { length: found.length, flags: found.flags });
        }
        Ok(Self { first: found.address, entries: entries as u32 })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arbitrary::{Arbitrary, Unstructured};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::virtio::test_memory::{BYTES, END, GUEST};
    use crate::virtio::walk::{Step, TABLES, Walk};

    fn address() -> impl Strategy<Value = u64> {
        let edges = vec![0, GUEST - 1, GUEST, GUEST + BYTES - 1, GUEST + BYTES, END - 16, END - 1, END, u64::MAX - 15];
        prop_oneof![4 => GUEST..END, 2 => (0..64_u64).prop_map(|entry| GUEST + TABLES + 16 * entry), 1 => select(edges)]
    }

    fn length() -> impl Strategy<Value = u32> {
        prop_oneof![
            1..300_u32,
            (0..70_u32).prop_map(|entries| 16 * entries),
            select(vec![0, 0x8000, 0x1_0000, u32::MAX])
        ]
    }

    /// Flags of either kind of ring, and small numbers.
    fn words() -> impl Strategy<Value = [u16; 2]> {
        let word = || (0..16_u16, select(vec![0, 0x80, 0x8000, 0x8080, 0x7f00])).prop_map(|(low, high)| low | high);
        [word(), word()]
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = prop_oneof![0..32_u64, 0x100..0x140_u64].prop_map(|entry| 16 * entry);
        prop_oneof![
            8 => (place, address(), length(), words()).prop_map(|(at, address, length, words)| Step::Describe(at, address, length, words)),
            3 => (0..0x600_u64, any::<u16>()).prop_map(|(word, value)| Step::Write(2 * word, value)),
            3 => (0..40_u16).prop_map(Step::Offer),
            5 => (0..9_usize).prop_map(Step::Look),
            3 => (0..9_usize).prop_map(Step::Complete),
            1 => Just(Step::Rewind),
            1 => Just(Step::Arm),
            2 => Just(Step::Request),
        ]
    }

    fn direction() -> impl Strategy<Value = Direction> {
        select(vec![Direction::FromDriver, Direction::ToDriver])
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever a driver writes, what is found of a split queue is within its memory.
        #[test]
        fn prop_split_queue_of_anything_leads_into_memory_or_to_a_fault(
            power in 0..6_u32, direction in direction(), steps in vec(step(), 1..60),
        ) {
            Walk { size: 1 << power, direction, steps }.split();
        }

        /// As above, of a packed one.
        #[test]
        fn prop_packed_queue_of_anything_leads_into_memory_or_to_a_fault(
            size in 1..33_u32, direction in direction(), steps in vec(step(), 1..60),
        ) {
            Walk { size, direction, steps }.packed();
        }
    }

    /// Bytes that a search guided by coverage once found new ways with, as each kind of queue has it.
    #[test]
    fn walks_of_earlier_searches_lead_into_memory_or_to_a_fault() {
        for (target, walk) in [("split_walk", Walk::split as fn(&Walk)), ("packed_walk", Walk::packed)] {
            let folder = format!("{}/../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
            for seed in std::fs::read_dir(folder).unwrap() {
                let bytes = std::fs::read(seed.unwrap().path()).unwrap();
                walk(&Walk::arbitrary_take_rest(Unstructured::new(&bytes)).unwrap());
            }
        }
    }
}
