//! The limit: frames copied into and out of plain shared memory, with nothing around them.
//!
//! ```text
//!   inline        [frame 0][frame 1][frame 2]…                     tail, head on lines of their own
//!   lengths       [length·frame 0][length·frame 1]…                tail, head
//!   descriptors   [where·length]… + packed frames elsewhere        tail, head
//!   flags         [full or empty·frame 0][…]…                      no indices at all
//!   headers       [where·length]…, frames not touched              tail, head
//! ```
//!
//! One side copies a frame from a buffer of its own into a slot, the other copies it out into a buffer of its own:
//! two copies, the least that isolation allows. Nothing is checked, nobody sleeps, no length is even carried where the
//! layout can do without. `inline` is what `vbnet bench ring` is held against: with frames of a known size it moves the
//! fewest cache lines of all. The others say what a length, a descriptor or the absence of indices costs.
//!
//! A writer that leaves it to the processor takes every line from the reader's core one after the other; one that asks
//! for lines ahead ([`Transfer::ahead`]) is several times faster with small frames. Both are limits worth knowing, and
//! the better of the two is the one to be held against.
//!
//! Each side keeps its own index and a copy of the other's, and looks at the other's only when the copy says full or
//! empty. The far side is a process of its own, as a guest is; the memory is one memfd of 4 KiB pages, as guest RAM is.
//! Source: the queue of Lamport with cached indices (FastForward, MCRingBuffer, rte_ring, `docs/performance.md`).

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::duo::{self, Control, Cores, Isolation};
use super::{Meter, Windows, look_every};
use crate::error::{Error, Result};
use crate::shm::layout::{CACHE_LINE, LINE_PAIR, RAM_HEADER_BYTES};
use crate::shm::line;
use crate::shm::region::Ram;

/// Longest frame a measurement can be asked for.
pub const FRAME_BYTES_MAX: u32 = 1 << 16;
/// Most slots.
pub const SLOTS_MAX: u32 = 1 << 15;
/// Most memory one measurement takes.
pub const MEMORY_MAX: u64 = 1 << 29;

// Positions in `Layout::ALL`, for loops that are compiled once a layout.
const INLINE: usize = 0;
const LENGTHS: usize = 1;
const DESCRIPTORS: usize = 2;
const FLAGS: usize = 3;
const HEADERS: usize = 4;

const TAIL: u32 = RAM_HEADER_BYTES;
const HEAD: u32 = TAIL + LINE_PAIR as u32;
const SLOTS: u32 = TAIL + 4096;

/// How frames lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Frames of one known size, one behind the other, in whole cache lines.
    Inline,
    /// As inline, with a length in front of each.
    Lengths,
    /// A ring of eight-byte descriptors; frames elsewhere, in whole cache lines.
    Descriptors,
    /// A word in front of each frame says whether it is there; nobody reads an index.
    Flags,
    /// A ring of descriptors alone; no frame is read or written.
    Headers,
}

impl Layout {
    /// Every layout, in the order of the tables.
    pub const ALL: [Self; 5] = [Self::Inline, Self::Lengths, Self::Descriptors, Self::Flags, Self::Headers];

    /// The word by which it is asked for.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::Lengths => "lengths",
            Self::Descriptors => "descriptors",
            Self::Flags => "flags",
            Self::Headers => "headers",
        }
    }

    /// The layout a word asks for.
    #[must_use]
    pub fn named(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.label() == label)
    }

    /// Bytes from one frame to the next.
    const fn stride(self, frame_bytes: u32) -> u32 {
        let line = CACHE_LINE as u32;
        match self {
            Self::Inline | Self::Descriptors => frame_bytes.next_multiple_of(line),
            Self::Lengths | Self::Flags => (frame_bytes + 8).next_multiple_of(line),
            Self::Headers => 0,
        }
    }

    /// Bytes in front of the first frame.
    const fn descriptor_bytes(self, slots: u32) -> u32 {
        match self {
            Self::Descriptors | Self::Headers => (8 * slots).next_multiple_of(LINE_PAIR as u32),
            Self::Inline | Self::Lengths | Self::Flags => 0,
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes of each frame.
    pub frame_bytes: u32,
    /// Slots of the ring, a power of two.
    pub slots: u32,
    /// Frames that are published, and returned, at a time.
    pub batch: u32,
    /// How many frames ahead the bare ring's writer asks for the lines it will write; 0 leaves it to the processor.
    pub ahead: u32,
}

impl Transfer {
    /// # Errors
    ///
    /// [`Error::Usage`]: a number is out of range.
    pub fn checked(self) -> Result<Self> {
        if !(1..=FRAME_BYTES_MAX).contains(&self.frame_bytes) {
            return Err(Error::Usage(format!("frames have 1 to {FRAME_BYTES_MAX} bytes; got {}", self.frame_bytes)));
        }
        if !self.slots.is_power_of_two() || self.slots > SLOTS_MAX {
            return Err(Error::Usage(format!(
                "a ring has a power of two of slots, at most {SLOTS_MAX}; got {}",
                self.slots
            )));
        }
        if !(1..=self.slots).contains(&self.batch) {
            return Err(Error::Usage(format!("a batch is 1 to {} frames, the slots; got {}", self.slots, self.batch)));
        }
        if self.ahead >= self.slots {
            return Err(Error::Usage(format!(
                "lines are asked for less than the ring's {} slots ahead; got {}",
                self.slots, self.ahead
            )));
        }
        Ok(self)
    }
}

/// Frames a second from the near core's process to the far core's, one sample a window.
///
/// # Errors
///
/// [`Error::Usage`]: a number is out of range or the memory would exceed [`MEMORY_MAX`]; [`Error::Machine`]: no memory,
/// process or core; [`Error::PeerGone`]: the other side did not come up or stood still.
pub fn frames_per_second(layout: Layout, transfer: Transfer, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    let transfer = transfer.checked()?;
    match layout {
        Layout::Inline => measure_layout::<INLINE>(transfer, cores, windows),
        Layout::Lengths => measure_layout::<LENGTHS>(transfer, cores, windows),
        Layout::Descriptors => measure_layout::<DESCRIPTORS>(transfer, cores, windows),
        Layout::Flags => measure_layout::<FLAGS>(transfer, cores, windows),
        Layout::Headers => measure_layout::<HEADERS>(transfer, cores, windows),
    }
}

fn measure_layout<const LAYOUT: usize>(transfer: Transfer, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    match transfer.frame_bytes {
        64 => measure::<Fixed<64>, LAYOUT>(Fixed, transfer, cores, windows),
        256 => measure::<Fixed<256>, LAYOUT>(Fixed, transfer, cores, windows),
        1500 => measure::<Fixed<1500>, LAYOUT>(Fixed, transfer, cores, windows),
        bytes => measure::<Any, LAYOUT>(Any(bytes as usize), transfer, cores, windows),
    }
}

fn measure<S: Size, const LAYOUT: usize>(
    size: S,
    transfer: Transfer,
    cores: Cores,
    windows: Windows,
) -> Result<Vec<f64>> {
    let slots = Slots::<S, LAYOUT>::new(size, transfer)?;
    let patience = windows.total() + Duration::from_secs(5);
    let (near, far) = (&slots, &slots);
    // The reader is the near side, so that what was read is what is counted.
    let swapped = Cores { near: cores.far, far: cores.near };
    match Layout::ALL[LAYOUT] {
        Layout::Flags => duo::run(
            swapped,
            Isolation::Process,
            patience,
            |control| write_flagged(far, control),
            |control| read_flagged(near, control, windows),
        ),
        _ => duo::run(
            swapped,
            Isolation::Process,
            patience,
            |control| write_indexed(far, control),
            |control| read_indexed(near, control, windows),
        ),
    }
}

/// A frame's size, known to the compiler where it can be.
trait Size: Copy + Send + Sync {
    fn bytes(self) -> usize;
}

#[derive(Clone, Copy)]
struct Fixed<const BYTES: usize>;

impl<const BYTES: usize> Size for Fixed<BYTES> {
    #[inline(always)]
    fn bytes(self) -> usize {
        BYTES
    }
}

#[derive(Clone, Copy)]
struct Any(usize);

impl Size for Any {
    #[inline(always)]
    fn bytes(self) -> usize {
        self.0
    }
}

/// The memory, and where everything in it is. `LAYOUT` is a position in [`Layout::ALL`], so that no loop asks for it.
struct Slots<S, const LAYOUT: usize> {
    _ram: Arc<Ram>,
    size: S,
    transfer: Transfer,
    tail: NonNull<AtomicU32>,
    head: NonNull<AtomicU32>,
    descriptors: NonNull<AtomicU64>,
    frames: NonNull<u8>,
    stride: usize,
    /// A frame's worth of memory a side: what is sent, where it is received.
    own: Vec<u8>,
}

// SAFETY: the pointers lead into a shared mapping; indices and words in front of frames are atomics, and a frame is
// touched only by the side whose turn the indices or flags say it is.
unsafe impl<S: Send, const LAYOUT: usize> Send for Slots<S, LAYOUT> {}
// SAFETY: as above.
unsafe impl<S: Sync, const LAYOUT: usize> Sync for Slots<S, LAYOUT> {}

impl<S: Size, const LAYOUT: usize> Slots<S, LAYOUT> {
    fn new(size: S, transfer: Transfer) -> Result<Self> {
        let layout = Layout::ALL[LAYOUT];
        let stride = layout.stride(transfer.frame_bytes);
        let start = SLOTS + layout.descriptor_bytes(transfer.slots);
        let frames_bytes = u64::from(stride) * u64::from(transfer.slots);
        let bytes = u64::from(start) + frames_bytes;
        if bytes > MEMORY_MAX {
            return Err(Error::Usage(format!(
                "{} slots of {} bytes take {bytes} bytes, more than {MEMORY_MAX}",
                transfer.slots, transfer.frame_bytes
            )));
        }
        let ram = Ram::create("vbnet-bench", bytes)?;
        Ok(Self {
            size,
            transfer,
            tail: ram.at(TAIL, 4)?.cast(),
            head: ram.at(HEAD, 4)?.cast(),
            descriptors: ram.at(SLOTS, layout.descriptor_bytes(transfer.slots) as usize)?.cast(),
            frames: ram.at(start, frames_bytes as usize)?,
            stride: stride as usize,
            own: vec![0xa5; size.bytes()],
            _ram: ram,
        })
    }

    fn tail(&self) -> &AtomicU32 {
        // SAFETY: in the mapping, aligned, an atomic for both sides.
        unsafe { self.tail.as_ref() }
    }

    fn head(&self) -> &AtomicU32 {
        // SAFETY: in the mapping, aligned, an atomic for both sides.
        unsafe { self.head.as_ref() }
    }

    #[inline(always)]
    fn place(&self, index: u32) -> usize {
        (index & (self.transfer.slots - 1)) as usize
    }

    #[inline(always)]
    fn descriptor(&self, index: u32) -> &AtomicU64 {
        // SAFETY: `place` is below the number of slots, for which `new` mapped descriptors.
        unsafe { self.descriptors.add(self.place(index)).as_ref() }
    }

    #[inline(always)]
    fn frame(&self, index: u32) -> NonNull<u8> {
        // SAFETY: `place` is below the number of slots, for which `new` mapped frames.
        unsafe { self.frames.add(self.place(index) * self.stride) }
    }

    /// The word in front of a frame; the frame itself begins behind it.
    #[inline(always)]
    fn word(&self, index: u32) -> &AtomicU64 {
        // SAFETY: these layouts have a stride of at least eight bytes more than the frame, aligned to a line.
        unsafe { self.frame(index).cast().as_ref() }
    }

    #[inline(always)]
    fn copy_in(&self, to: NonNull<u8>, own: *const u8) {
        // SAFETY: a frame's bytes at `to` are this side's by the ring's rules; `own` has as many and is no shared memory.
        unsafe { std::ptr::copy_nonoverlapping(std::hint::black_box(own), to.as_ptr(), self.size.bytes()) };
    }

    #[inline(always)]
    fn copy_out(&self, from: NonNull<u8>, own: *mut u8) {
        // SAFETY: as in `copy_in`, the other way round; black_box keeps the copy from being left out.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), own, self.size.bytes()) };
        std::hint::black_box(own);
    }

    /// Asks for the lines of a frame that will be written soon.
    #[inline(always)]
    fn ask_for(&self, index: u32) {
        if LAYOUT != HEADERS {
            line::fetch_to_write(self.frame(index), self.stride);
        }
    }

    #[inline(always)]
    fn write(&self, index: u32, own: *const u8) {
        match Layout::ALL[LAYOUT] {
            Layout::Inline => self.copy_in(self.frame(index), own),
            Layout::Lengths => {
                self.word(index).store(self.size.bytes() as u64, Ordering::Relaxed);
                self.copy_in(self.behind_word(index), own);
            }
            Layout::Descriptors => {
                self.copy_in(self.frame(index), own);
                self.describe(index);
            }
            Layout::Flags => self.copy_in(self.behind_word(index), own),
            Layout::Headers => self.describe(index),
        }
    }

    #[inline(always)]
    fn read(&self, index: u32, own: *mut u8) {
        match Layout::ALL[LAYOUT] {
            Layout::Inline => self.copy_out(self.frame(index), own),
            Layout::Lengths => {
                std::hint::black_box(self.word(index).load(Ordering::Relaxed));
                self.copy_out(self.behind_word(index), own);
            }
            Layout::Descriptors => {
                let offset = self.descriptor(index).load(Ordering::Relaxed) as u32 as usize;
                // SAFETY: the offset was written by `describe`, of this same process image.
                self.copy_out(unsafe { self.frames.add(offset) }, own);
            }
            Layout::Flags => self.copy_out(self.behind_word(index), own),
            Layout::Headers => {
                std::hint::black_box(self.descriptor(index).load(Ordering::Relaxed));
            }
        }
    }

    #[inline(always)]
    fn describe(&self, index: u32) {
        let offset = (self.place(index) * self.stride) as u64;
        self.descriptor(index).store(offset | (self.size.bytes() as u64) << 32, Ordering::Relaxed);
    }

    #[inline(always)]
    fn behind_word(&self, index: u32) -> NonNull<u8> {
        // SAFETY: the stride of these layouts covers the word and the frame.
        unsafe { self.frame(index).add(8) }
    }
}

fn write_indexed<S: Size, const LAYOUT: usize>(slots: &Slots<S, LAYOUT>, control: &Control) {
    let Transfer { slots: count, batch, ahead: distance, .. } = slots.transfer;
    let own = slots.own.as_ptr();
    let mut staged = 0u32;
    let mut head_seen = 0u32;
    loop {
        if staged.wrapping_sub(head_seen) > count - batch {
            let room = control.spin_until(|| {
                let head = slots.head().load(Ordering::Acquire);
                (staged.wrapping_sub(head) <= count - batch).then_some(head)
            });
            match room {
                Some(head) => head_seen = head,
                None => return,
            }
        }
        for ahead in 0..batch {
            let index = staged.wrapping_add(ahead);
            if distance != 0 {
                slots.ask_for(index.wrapping_add(distance));
            }
            slots.write(index, own);
        }
        staged = staged.wrapping_add(batch);
        slots.tail().store(staged, Ordering::Release);
    }
}

fn read_indexed<S: Size, const LAYOUT: usize>(
    slots: &Slots<S, LAYOUT>,
    control: &Control,
    windows: Windows,
) -> Result<Vec<f64>> {
    let batch = slots.transfer.batch;
    let mut own = slots.own.clone();
    let own = own.as_mut_ptr();
    let mut next = 0u32;
    let mut tail_seen = 0u32;
    let mut meter = Meter::start(windows, look_every(slots.transfer.frame_bytes));
    loop {
        if tail_seen == next {
            tail_seen = control
                .spin_until(|| {
                    let tail = slots.tail().load(Ordering::Acquire);
                    (tail != next).then_some(tail)
                })
                .ok_or(Error::PeerGone("the bare ring"))?;
        }
        let count = tail_seen.wrapping_sub(next).min(batch);
        for ahead in 0..count {
            slots.read(next.wrapping_add(ahead), own);
        }
        next = next.wrapping_add(count);
        slots.head().store(next, Ordering::Release);
        if !meter.count(count) {
            return Ok(meter.into_rates());
        }
    }
}

/// Batches have no meaning here: each frame is handed over by its own word.
fn write_flagged<S: Size, const LAYOUT: usize>(slots: &Slots<S, LAYOUT>, control: &Control) {
    let own = slots.own.as_ptr();
    let distance = slots.transfer.ahead;
    let mut index = 0u32;
    loop {
        let word = slots.word(index);
        if distance != 0 {
            slots.ask_for(index.wrapping_add(distance));
        }
        if word.load(Ordering::Acquire) != 0
            && control.spin_until(|| (word.load(Ordering::Acquire) == 0).then_some(())).is_none()
        {
            return;
        }
        slots.write(index, own);
        word.store(slots.size.bytes() as u64, Ordering::Release);
        index = index.wrapping_add(1);
    }
}

fn read_flagged<S: Size, const LAYOUT: usize>(
    slots: &Slots<S, LAYOUT>,
    control: &Control,
    windows: Windows,
) -> Result<Vec<f64>> {
    let mut own = slots.own.clone();
    let own = own.as_mut_ptr();
    let mut index = 0u32;
    let mut meter = Meter::start(windows, look_every(slots.transfer.frame_bytes));
    loop {
        let word = slots.word(index);
        control
            .spin_until(|| (word.load(Ordering::Acquire) != 0).then_some(()))
            .ok_or(Error::PeerGone("the bare ring"))?;
        slots.read(index, own);
        word.store(0, Ordering::Release);
        index = index.wrapping_add(1);
        if !meter.count(1) {
            return Ok(meter.into_rates());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TRANSFER: Transfer = Transfer { frame_bytes: 64, slots: 8, batch: 4, ahead: 0 };

    fn echo<const LAYOUT: usize>(index: u32) -> Vec<u8> {
        let slots = Slots::<Any, LAYOUT>::new(Any(64), TRANSFER).unwrap();
        let sent: Vec<u8> = (0..64).collect();
        let mut found = vec![0; 64];

        slots.write(index, sent.as_ptr());
        slots.read(index, found.as_mut_ptr());

        found
    }

    /// What is read from a slot is what was written into it, in every layout that carries frames, round the end too.
    #[test]
    fn a_frame_comes_out_as_it_went_in() {
        let sent: Vec<u8> = (0..64).collect();

        for index in [0, 7, 8, u32::MAX] {
            assert_eq!(sent, echo::<INLINE>(index));
            assert_eq!(sent, echo::<LENGTHS>(index));
            assert_eq!(sent, echo::<DESCRIPTORS>(index));
            assert_eq!(sent, echo::<FLAGS>(index));
        }
    }

    /// Neighbouring slots share no byte.
    #[test]
    fn slots_do_not_overlap() {
        let transfer = Transfer { frame_bytes: 100, ..TRANSFER };
        let slots = Slots::<Any, LENGTHS>::new(Any(100), transfer).unwrap();
        let (first, second) = (vec![1u8; 100], vec![2u8; 100]);
        let mut found = vec![0u8; 100];

        slots.write(0, first.as_ptr());
        slots.write(1, second.as_ptr());
        slots.read(0, found.as_mut_ptr());

        assert_eq!(first, found);
    }

    /// Numbers that cannot be measured are refused before anything is started.
    #[test]
    fn impossible_transfers_are_refused() {
        let wrong = [
            Transfer { frame_bytes: 0, ..TRANSFER },
            Transfer { frame_bytes: FRAME_BYTES_MAX + 1, ..TRANSFER },
            Transfer { slots: 12, ..TRANSFER },
            Transfer { batch: 0, ..TRANSFER },
            Transfer { batch: 9, ..TRANSFER },
            Transfer { ahead: 8, ..TRANSFER },
        ];

        for transfer in wrong {
            assert!(matches!(transfer.checked(), Err(Error::Usage(_))), "{transfer:?}");
        }
    }

    /// Every layout answers one rate a window, and each rate is positive.
    #[test]
    fn every_layout_answers_one_rate_a_window() {
        let Some(cores) = duo::tests::two_cores() else { return };
        let windows = Windows { warm_up: Duration::ZERO, window: Duration::from_millis(1), count: 2 };

        for layout in Layout::ALL {
            let rates = frames_per_second(layout, TRANSFER, cores, windows).unwrap();

            assert_eq!(2, rates.len());
            assert!(rates.iter().all(|rate| *rate > 0.0), "{layout:?}: {rates:?}");
        }
    }
}
