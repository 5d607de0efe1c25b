//! The capture ring: what a worker saw at a port, on its way to whoever looks.
//!
//! ```text
//!   worker ──▶ │ record │ record │ … free … │ record │ ──▶ capturing process
//!              head: given back          tail: written      (may be slow, stopped or dead: nobody waits for it)
//! ```
//!
//! Who writes what: the host makes the memory and lends it; its worker writes records, `tail` and the counts, the reader
//! `head` and its half of the signal. Single producer, single consumer, bytes counted up for ever. A record never wraps;
//! where one does not fit before the end, a record to be skipped fills the rest.
//!
//! The danger: the reader may write anything into `head`. The producer copies and checks it, and takes a ring whose reader
//! lied for full: frames are then counted as lost, and nothing else happens. The reader checks every record as well.
//! Byte tables: docs/wire/capture.md. Source: packet rings of `packet(7)`, with the ring's own signal for sleeping.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::doorbell::Doorbell;
use super::layout::{LINE_PAIR, SignalWords};
use super::page::{PAGE_BYTES_MAX, Page};
use super::region::Mapped;
use super::signal::{Listener, Notifier, SignalMemory};
use crate::error::{Error, Fault, Result};

/// First four bytes of a capture ring: `vCAP`.
pub const CAPTURE_MAGIC: u32 = u32::from_le_bytes(*b"vCAP");
/// Version of [`CaptureHeader`] and of [`RecordHead`].
pub const CAPTURE_VERSION: u32 = 1;
/// Bytes in front of the first record.
pub const CAPTURE_HEADER_BYTES: usize = 0x280;
/// Least bytes of records a ring can hold: more than two of the longest.
pub const CAPTURE_RING_MIN: u32 = 1 << 18;
/// Most.
pub const CAPTURE_RING_MAX: u32 = 1 << 25;
/// Bytes in front of a record's data.
pub const RECORD_HEAD_BYTES: u32 = 24;

/// What is in a record.
pub const KIND_FRAME: u16 = 1;
/// One stage of a traced frame's way.
pub const KIND_STAGE: u16 = 2;
/// Nothing: go on at the ring's start.
pub const KIND_SKIP: u16 = 0xffff;

const GRAIN: u32 = 8;

/// `(structure, field, byte offset, byte size)` of what is laid out here.
pub(crate) const WIRE_ROWS: [(&str, &str, usize, usize); 20] = [
    ("capture", "magic", 0, 4),
    ("capture", "version", 4, 4),
    ("capture", "ring_bytes", 8, 4),
    ("capture", "tail", 0x80, 8),
    ("capture", "captured", 0x88, 8),
    ("capture", "filtered", 0x90, 8),
    ("capture", "dropped", 0x98, 8),
    ("capture", "is_away", 0xa0, 8),
    ("capture", "head", 0x100, 8),
    ("capture", "signal.enabled", 0x180, 4),
    ("capture", "signal.dirty", 0x200, 4),
    ("capture", "signal.pending", 0x204, 4),
    ("capture_record", "bytes", 0, 4),
    ("capture_record", "kind", 4, 2),
    ("capture_record", "way", 6, 1),
    ("capture_record", "reason", 7, 1),
    ("capture_record", "time_ns", 8, 8),
    ("capture_record", "length", 16, 4),
    ("capture_record", "detail", 20, 4),
    ("capture_record", "data", 24, 8),
];

/// What the host says.
#[repr(C, align(128))]
#[derive(Debug)]
struct HostWords {
    /// Bytes of records written, counted up for ever.
    tail: AtomicU64,
    captured: AtomicU64,
    filtered: AtomicU64,
    dropped: AtomicU64,
    is_away: AtomicU64,
}

#[repr(C, align(128))]
#[derive(Debug)]
struct ReaderWords {
    /// Bytes of records given back, counted up for ever.
    head: AtomicU64,
}

/// What stands in front of a capture ring's records.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct CaptureHeader {
    magic: AtomicU32,
    version: AtomicU32,
    /// Bytes of the records' room, a power of two. Written once by the host, copied once by the reader.
    ring_bytes: AtomicU32,
    host: HostWords,
    reader: ReaderWords,
    signal: SignalWords,
}

/// The head of a record. The meaning of `way`, `length` and `detail` is the kind's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHead {
    /// Bytes of the record with its head, a multiple of 8.
    pub bytes: u32,
    /// [`KIND_FRAME`], [`KIND_STAGE`] or [`KIND_SKIP`].
    pub kind: u16,
    /// Frame: 0 = into the guest, 1 = out of it. Stage: which.
    pub way: u8,
    /// 0, or why the frame was dropped: 1 + the position of the port's counter.
    pub reason: u8,
    /// Frame: nanoseconds since 1970. Stage: nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// Frame: its bytes. Stage: the frame's number in the trace.
    pub length: u32,
    /// Frame: bytes of it that follow. Stage: a port's number, or how many ports.
    pub detail: u32,
}

/// How many frames a capture saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureCounts {
    /// Written into the ring.
    pub captured: u64,
    /// Not wanted by the filter.
    pub filtered: u64,
    /// Wanted, but the ring was full.
    pub dropped: u64,
    /// The port has been removed; the capture goes on when one of its name is added.
    pub is_away: bool,
}

/// Mapped memory with a checked header.
struct Memory {
    page: Arc<Page>,
    header: NonNull<CaptureHeader>,
    records: NonNull<u8>,
    ring_bytes: u32,
}

// SAFETY: the pointers go into `page`, which lives as long; words are atomics, records are accessed by raw copies under
// the ring's rules.
unsafe impl Send for Memory {}

impl Memory {
    fn new(page: Arc<Page>, ring_bytes: u32) -> std::result::Result<Self, Fault> {
        let header = page.at(0, CAPTURE_HEADER_BYTES)?.cast();
        let records = page.at(CAPTURE_HEADER_BYTES as u32, ring_bytes as usize)?;
        Ok(Self { page, header, records, ring_bytes })
    }

    fn header(&self) -> &CaptureHeader {
        // SAFETY: `new` found the header inside the page, which is aligned to more; every word is an atomic.
        unsafe { self.header.as_ref() }
    }

    fn signal(&self) -> SignalMemory {
        // SAFETY: the words are atomics inside the page, which the signal holds.
        unsafe { SignalMemory::new(NonNull::from(&self.header().signal), self.page.clone()) }
    }

    /// Where the byte counted `index` is, and how many follow before the ring's end.
    #[inline]
    fn place(&self, index: u64) -> (*mut u8, u32) {
        let offset = index as u32 & (self.ring_bytes - 1);
        (self.records.as_ptr().wrapping_add(offset as usize), self.ring_bytes - offset)
    }
}

/// The writing end.
pub struct CaptureRing {
    memory: Memory,
    tail: u64,
    /// What the reader had given back when last looked.
    head: u64,
    notifier: Notifier,
    counts: CaptureCounts,
}

impl CaptureRing {
    /// Makes a ring for `ring_bytes` bytes of records, a power of two.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: there can be no such size. [`Error::Machine`]: no memory or descriptor for it.
    pub fn create(ring_bytes: u32) -> Result<Self> {
        if !(CAPTURE_RING_MIN..=CAPTURE_RING_MAX).contains(&ring_bytes) || !ring_bytes.is_power_of_two() {
            return Err(Error::Usage(format!(
                "a capture ring has {CAPTURE_RING_MIN} to {CAPTURE_RING_MAX} bytes, a power of two; got {ring_bytes}"
            )));
        }
        let page = Page::create("vbnet-capture", CAPTURE_HEADER_BYTES + ring_bytes as usize)?;
        let memory = Memory::new(page, ring_bytes)?;
        let header = memory.header();
        header.magic.store(CAPTURE_MAGIC, Ordering::Relaxed);
        header.version.store(CAPTURE_VERSION, Ordering::Relaxed);
        header.ring_bytes.store(ring_bytes, Ordering::Relaxed);
        let notifier = Notifier::new(memory.signal());
        Ok(Self { memory, tail: 0, head: 0, notifier, counts: CaptureCounts::default() })
    }

    /// Writes a record whose `head.bytes` is still to be found, with room for `data` bytes that `fill` writes. `false`:
    /// there is no room.
    #[inline]
    pub(crate) fn push(&mut self, head: RecordHead, data: u32, fill: impl FnOnce(*mut u8)) -> bool {
        let bytes = (RECORD_HEAD_BYTES + data).next_multiple_of(GRAIN);
        let (_, to_end) = self.memory.place(self.tail);
        let skipped = if bytes > to_end { to_end } else { 0 };
        if !self.has_room(u64::from(skipped) + u64::from(bytes)) {
            return false;
        }
        if skipped != 0 {
            let (place, _) = self.memory.place(self.tail);
            // SAFETY: at least 8 bytes before the ring's end, which are free; a multiple of 8 from its start.
            unsafe { place.cast::<u64>().write(u64::from(skipped) | u64::from(KIND_SKIP) << 32) };
            self.tail += u64::from(skipped);
        }
        let (place, _) = self.memory.place(self.tail);
        // SAFETY: `bytes` bytes from here are inside the ring and free; the place is a multiple of 8.
        unsafe { place.cast::<RecordHead>().write(RecordHead { bytes, ..head }) };
        fill(place.wrapping_add(RECORD_HEAD_BYTES as usize));
        self.tail += u64::from(bytes);
        // [CP-1 record visible] release: the record before `tail`; partner in CaptureReader::refresh.
        self.memory.header().host.tail.store(self.tail, Ordering::Release);
        true
    }

    #[inline]
    fn has_room(&mut self, bytes: u64) -> bool {
        let room = |head: u64| u64::from(self.memory.ring_bytes) - (self.tail - head);
        if room(self.head) >= bytes {
            return true;
        }
        // [CP-2 room returned] acquire: the reader's copies before we write there; partner in CaptureReader::give_back.
        let head = self.memory.header().reader.head.load(Ordering::Acquire);
        // A reader that goes back, or past what was written, is not believed.
        if (self.head..=self.tail).contains(&head) {
            self.head = head;
        }
        room(self.head) >= bytes
    }

    /// Counts frames by what became of them.
    #[inline]
    pub(crate) fn count(&mut self, captured: u64, filtered: u64, dropped: u64) {
        let host = &self.memory.header().host;
        let counts = &mut self.counts;
        for (word, value, more) in [
            (&host.captured, &mut counts.captured, captured),
            (&host.filtered, &mut counts.filtered, filtered),
            (&host.dropped, &mut counts.dropped, dropped),
        ] {
            if more != 0 {
                *value += more;
                word.store(*value, Ordering::Relaxed);
            }
        }
    }

    /// What was counted.
    #[must_use]
    pub const fn counts(&self) -> CaptureCounts {
        self.counts
    }

    /// Says whether the port is there.
    pub(crate) fn set_away(&mut self, is_away: bool) {
        self.counts.is_away = is_away;
        self.memory.header().host.is_away.store(is_away.into(), Ordering::Relaxed);
    }

    /// Marks that there are records. `true`: the reader sleeps, ring its doorbell.
    #[must_use = "true means the reader sleeps until its doorbell is rung"]
    pub(crate) fn inject(&self) -> bool {
        self.notifier.inject()
    }
}

impl AsFd for CaptureRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.page.as_fd()
    }
}

impl fmt::Debug for CaptureRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaptureRing").field("tail", &self.tail).field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// The reading end.
pub struct CaptureReader {
    memory: Memory,
    head: u64,
    tail: u64,
    listener: Listener,
    bell: Doorbell,
}

impl CaptureReader {
    /// Takes the reading end of a ring that was lent, with its doorbell.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: it is no capture ring. [`Error::Machine`]: mapping failed.
    pub fn open(file: OwnedFd, bell: OwnedFd) -> Result<Self> {
        let page = Page::open(file)?;
        if !page.is_writable() {
            return Err(Fault::NotMemfd { detail: "it is sealed against writing" }.into());
        }
        let header = Memory::new(page.clone(), 0)?;
        let expect = |what, found: &AtomicU32, expected: u32| {
            let found = found.load(Ordering::Relaxed).into();
            let expected = expected.into();
            if found == expected { Ok(()) } else { Err(Fault::BadHeader { what, found, expected }) }
        };
        expect("capture magic", &header.header().magic, CAPTURE_MAGIC)?;
        expect("capture version", &header.header().version, CAPTURE_VERSION)?;
        let ring_bytes = header.header().ring_bytes.load(Ordering::Relaxed);
        if !(CAPTURE_RING_MIN..=CAPTURE_RING_MAX).contains(&ring_bytes) || !ring_bytes.is_power_of_two() {
            let limit = CAPTURE_RING_MAX.into();
            return Err(Fault::BadSize { what: "capture ring", found: ring_bytes.into(), limit }.into());
        }
        let memory = Memory::new(page, ring_bytes)?;
        let head = memory.header().reader.head.load(Ordering::Relaxed);
        let listener = Listener::new(memory.signal());
        Ok(Self { memory, head, tail: head, listener, bell: Doorbell::from_fd(bell) })
    }

    /// The next record, which stays until [`Self::skip`].
    ///
    /// # Errors
    ///
    /// The writer's fault: an index or a record cannot be.
    pub fn peek(&mut self) -> std::result::Result<Option<RecordHead>, Fault> {
        loop {
            if self.tail == self.head && !self.refresh()? {
                return Ok(None);
            }
            let (place, to_end) = self.memory.place(self.head);
            let left = (self.tail - self.head).min(to_end.into()) as u32;
            if left < GRAIN {
                return Err(wrong_record(left));
            }
            // SAFETY: 8 bytes before the ring's end, at a multiple of 8.
            let first = unsafe { place.cast::<u64>().read_volatile() };
            let (bytes, is_skip) = (first as u32, (first >> 32) as u16 == KIND_SKIP);
            let least = if is_skip { GRAIN } else { RECORD_HEAD_BYTES };
            if !(least..=left).contains(&bytes) || !bytes.is_multiple_of(GRAIN) {
                return Err(wrong_record(bytes));
            }
            if is_skip {
                self.head += u64::from(bytes);
                continue;
            }
            // SAFETY: at least a head before the ring's end, at a multiple of 8. One volatile copy, checked again.
            let head = unsafe { place.cast::<RecordHead>().read_volatile() };
            let data = if head.kind == KIND_FRAME { head.detail } else { 0 };
            if head.bytes != bytes || data > bytes - RECORD_HEAD_BYTES {
                return Err(wrong_record(head.bytes));
            }
            return Ok(Some(head));
        }
    }

    fn refresh(&mut self) -> std::result::Result<bool, Fault> {
        // [CP-1 record visible] acquire: `tail` before the record; partner in CaptureRing::push.
        let tail = self.memory.header().host.tail.load(Ordering::Acquire);
        let waiting = tail.wrapping_sub(self.head);
        if waiting > self.memory.ring_bytes.into() || !waiting.is_multiple_of(GRAIN.into()) {
            let limit = self.memory.ring_bytes.into();
            return Err(Fault::BadSize { what: "capture ring's records", found: waiting, limit });
        }
        self.tail = tail;
        Ok(waiting != 0)
    }

    /// Copies the data of the record that [`Self::peek`] found.
    pub fn copy_data(&self, head: &RecordHead, to: &mut Vec<u8>) {
        let length = if head.kind == KIND_FRAME { head.detail as usize } else { 0 };
        let (place, to_end) = self.memory.place(self.head);
        let length = length.min((to_end - RECORD_HEAD_BYTES.min(to_end)) as usize);
        to.reserve(length);
        // SAFETY: so many bytes lie before the ring's end, and there is room for them.
        unsafe {
            let from = place.add(RECORD_HEAD_BYTES as usize);
            to.as_mut_ptr().add(to.len()).copy_from_nonoverlapping(from, length);
            to.set_len(to.len() + length);
        }
    }

    /// Goes on behind the record that [`Self::peek`] found.
    pub const fn skip(&mut self, head: &RecordHead) {
        self.head += head.bytes as u64;
    }

    /// Gives the room of everything read back to the writer.
    pub fn give_back(&self) {
        // [CP-2 room returned] release: our copies before `head`; partner in CaptureRing::has_room.
        self.memory.header().reader.head.store(self.head, Ordering::Release);
    }

    /// What the host counted.
    #[must_use]
    pub fn counts(&self) -> CaptureCounts {
        let host = &self.memory.header().host;
        CaptureCounts {
            captured: host.captured.load(Ordering::Relaxed),
            filtered: host.filtered.load(Ordering::Relaxed),
            dropped: host.dropped.load(Ordering::Relaxed),
            is_away: host.is_away.load(Ordering::Relaxed) != 0,
        }
    }

    /// Asks for the doorbell. `false`: records came in since the last look; read on.
    #[must_use = "false means there are records and no doorbell will ring for them"]
    pub fn arm(&self) -> bool {
        self.bell.quiet();
        self.listener.arm()
    }

    /// Notes what was signalled so far; before reading, never after.
    pub fn acknowledge(&self) {
        self.listener.acknowledge();
    }
}

impl fmt::Debug for CaptureReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaptureReader").field("head", &self.head).field("tail", &self.tail).finish_non_exhaustive()
    }
}

#[cold]
const fn wrong_record(bytes: u32) -> Fault {
    Fault::BadSize { what: "capture record", found: bytes as u64, limit: CAPTURE_RING_MAX as u64 }
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<CaptureHeader>() == CAPTURE_HEADER_BYTES);
    assert!(offset_of!(CaptureHeader, ring_bytes) == 8);
    assert!(offset_of!(CaptureHeader, host) == 0x80 && LINE_PAIR == 0x80);
    assert!(offset_of!(HostWords, is_away) == 0x20);
    assert!(offset_of!(CaptureHeader, reader) == 0x100);
    assert!(offset_of!(CaptureHeader, signal) == 0x180);
    assert!(size_of::<RecordHead>() == RECORD_HEAD_BYTES as usize);
    assert!(
        offset_of!(RecordHead, kind) == 4 && offset_of!(RecordHead, way) == 6 && offset_of!(RecordHead, reason) == 7
    );
    assert!(offset_of!(RecordHead, time_ns) == 8 && offset_of!(RecordHead, length) == 16);
    assert!(offset_of!(RecordHead, detail) == 20);
    assert!(CAPTURE_HEADER_BYTES + CAPTURE_RING_MAX as usize <= PAGE_BYTES_MAX);
};

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn pair() -> (CaptureRing, CaptureReader) {
        let ring = CaptureRing::create(CAPTURE_RING_MIN).unwrap();
        let file = rustix::io::dup(ring.as_fd()).unwrap();
        let bell = rustix::io::dup(Doorbell::create().unwrap()).unwrap();
        (ring, CaptureReader::open(file, bell).unwrap())
    }

    fn push(ring: &mut CaptureRing, number: u32, length: u32) -> bool {
        let head = RecordHead { kind: KIND_FRAME, length: number, detail: length, ..RecordHead::default() };
        // SAFETY: `length` bytes were asked for.
        ring.push(head, length, |place| unsafe { place.write_bytes(number as u8, length as usize) })
    }

    fn take(reader: &mut CaptureReader) -> Option<(u32, Vec<u8>)> {
        let head = reader.peek().unwrap()?;
        let mut data = Vec::new();
        reader.copy_data(&head, &mut data);
        reader.skip(&head);
        reader.give_back();
        Some((head.length, data))
    }

    #[test]
    fn records_arrive_whole_and_in_order_however_often_the_ring_goes_round() {
        let (mut ring, mut reader) = pair();

        for number in 0..2000 {
            let length = (number * 7919) % 65536;
            assert!(push(&mut ring, number, length));
            assert_eq!(Some((number, vec![number as u8; length as usize])), take(&mut reader));
        }
        assert_eq!(None, take(&mut reader));
    }

    #[test]
    fn full_ring_takes_nothing_more_and_loses_nothing_it_has() {
        let (mut ring, mut reader) = pair();
        let mut written = 0;
        while push(&mut ring, written, 1000) {
            written += 1;
        }

        assert_eq!(CAPTURE_RING_MIN / 1024, written);
        for number in 0..written {
            assert_eq!(Some((number, vec![number as u8; 1000])), take(&mut reader));
        }
        assert!(push(&mut ring, 0, 1000));
    }

    #[test]
    fn reader_that_lies_about_its_place_only_loses_frames() {
        for lie in [1_u64, u64::MAX, 1 << 40] {
            let (mut ring, _reader) = pair();
            while push(&mut ring, 0, 1000) {}

            ring.memory.header().reader.head.store(lie, Ordering::Relaxed);

            assert!(!push(&mut ring, 0, 60_000), "{lie}");
        }
    }

    #[test]
    fn record_that_cannot_be_is_refused() {
        for first in [0_u64, 16, 25, 1 << 30, 8 | u64::from(KIND_FRAME) << 32, u64::from(u32::MAX)] {
            let (mut ring, mut reader) = pair();
            assert!(push(&mut ring, 0, 60));

            // SAFETY: the first record's first word.
            unsafe { ring.memory.records.cast::<u64>().write(first) };

            assert!(reader.peek().is_err(), "{first:#x}");
        }
    }

    #[test]
    fn frame_longer_than_its_record_is_refused() {
        let (mut ring, mut reader) = pair();
        let head = RecordHead { kind: KIND_FRAME, detail: 1000, ..RecordHead::default() };
        assert!(ring.push(head, 10, |_| {}));

        assert!(reader.peek().is_err());
    }

    #[test]
    fn writer_that_lies_about_its_place_is_refused() {
        for lie in [7_u64, u64::from(CAPTURE_RING_MIN) + 8, u64::MAX - 7] {
            let (ring, mut reader) = pair();

            ring.memory.header().host.tail.store(lie, Ordering::Relaxed);

            assert!(reader.peek().is_err(), "{lie}");
        }
    }

    #[test]
    fn sleeping_reader_is_to_be_rung_once() {
        let (mut ring, reader) = pair();
        reader.acknowledge();
        assert!(reader.arm());

        assert!(push(&mut ring, 0, 60));

        assert!(ring.inject());
        assert!(!ring.inject());
        assert!(!reader.arm());
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for bytes in [0, CAPTURE_RING_MIN - 1, CAPTURE_RING_MIN + 8, CAPTURE_RING_MAX * 2] {
            assert!(matches!(CaptureRing::create(bytes), Err(Error::Usage(_))));
        }
    }

    #[test]
    fn page_that_is_no_capture_ring_is_refused() {
        let page = Page::create("other", 4096).unwrap();
        let file = rustix::io::dup(page.as_fd()).unwrap();
        let bell = rustix::io::dup(Doorbell::create().unwrap()).unwrap();

        assert!(matches!(CaptureReader::open(file, bell), Err(Error::Peer(_))));
    }
}
