//! A vhost-user front end as a port: the virtqueues of a virtual machine's or a DPDK application's network card.
//!
//! ```text
//!   TX queues   driver makes full chains available   ─▶ load: check, find the frame ─▶ (switch) ─▶ used, maybe call
//!   RX queues   driver makes empty chains available  ─▶ claim: check, write the header ─▶ fill ─▶ used, maybe call
//! ```
//!
//! A frame that lies together is copied once, from where its sender has it to where its receiver wants it, whatever kinds
//! of port both are. One that is scattered over several buffers is gathered first; one that goes into several is written
//! there at once.
//!
//! Who writes what: the driver owns all of this memory; we write used rings, and buffers that it posted. The rings are set up
//! by another thread ([`crate::vhost_user`]) and handed over whole; while it changes them the port has none.
//! The danger: as everywhere in [`crate::virtio`]. Besides, eventfds are the front end's: they are believed after the
//! kernel said what they are, kicks are never read, and calls are rung where a watchdog ends what blocks.
//! Source: virtio 1.2 §5.1.6 (device operation of the network device).

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::batch::{BATCH, Batch, prefetch_read};
use super::{PortPart, Refusal};
use crate::error::Fault;
use crate::net::frame::{FRAME_BYTES_MAX, FrameStart, HEADER_BYTES, START_BYTES, frame_limit};
use crate::port::batch::Piece;
use crate::shm::doorbell::Doorbell;
use crate::virtio::memory::GuestMemory;
use crate::virtio::split::{Direction, Segment, SplitQueue};
use crate::worker::watchdog::Ringer;

/// `virtio_net_hdr` with `num_buffers`: what is in front of each frame once version 1 or mergeable buffers were agreed on.
pub(crate) const LONG_HEADER: u32 = 12;
/// `virtio_net_hdr` without.
pub(crate) const SHORT_HEADER: u32 = 10;
/// Where `num_buffers` is in the longer header.
const NUM_BUFFERS: usize = 10;
/// Room for frames that are gathered; at least one of the longest.
const GATHER_BYTES: usize = 256 << 10;

/// One queue and the eventfds that belong to it.
#[derive(Debug)]
pub(crate) struct Ring {
    pub queue: SplitQueue,
    pub kick: Doorbell,
    /// None: the driver polls.
    pub call: Option<Doorbell>,
    /// Number of the queue as the front end counts: even ones are for frames to the driver.
    pub index: usize,
    pub fault: Option<Fault>,
    is_told: bool,
}

impl Ring {
    pub(crate) const fn new(index: usize, queue: SplitQueue, kick: Doorbell, call: Option<Doorbell>) -> Self {
        Self { queue, kick, call, index, fault: None, is_told: false }
    }

    /// Whether it works still.
    const fn works(&self) -> bool {
        self.fault.is_none()
    }

    #[cold]
    fn end(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    fn ring(&mut self, ringer: &Ringer) {
        let Some(call) = &self.call else { return };
        if let Err(fault) = ringer.ring(call) {
            self.end(fault);
        }
    }

    /// Whether there is a chain to take; a queue that is broken has none.
    #[inline]
    fn has_chain(&mut self) -> bool {
        if self.queue.known() != 0 {
            return true;
        }
        self.queue.refresh().map_or_else(
            |fault| {
                self.end(fault);
                false
            },
            |ready| ready != 0,
        )
    }
}

/// Everything that a front end has set up and that runs now.
#[derive(Debug)]
pub(crate) struct Rings {
    /// Frames from the driver.
    pub tx: Vec<Ring>,
    /// Buffers for frames to it.
    pub rx: Vec<Ring>,
    /// Bytes in front of each frame.
    pub header: u32,
    /// A frame may be spread over several chains.
    pub is_mergeable: bool,
    pub memory: Arc<GuestMemory>,
}

/// A frame that was loaded: its chain's head.
#[derive(Clone, Copy, Debug, Default)]
struct Loaded {
    head: u16,
    source: usize,
    length: u32,
}

/// A front end's queues, worked on by one worker.
pub(crate) struct VhostUserPort {
    rings: Option<Box<Rings>>,
    frame_limit: u32,
    is_up: bool,
    /// The TX queue that is looked at next, and the one that frames were last loaded from.
    turn: usize,
    from: usize,
    loaded: [Loaded; BATCH],
    /// Frames and bytes given since the last release.
    given: (u64, u64),
    /// Where scattered frames are gathered, for as long as they are in hand.
    gathered: Box<[u8]>,
    /// Pieces of the chain in hand, and chains of the frame in hand: kept for their room.
    pieces: Vec<Segment>,
    chains: Vec<(u16, u32)>,
}

// SAFETY: places in `loaded` and `pieces` are good within one turn of one thread, and never used after it.
unsafe impl Send for VhostUserPort {}

impl VhostUserPort {
    pub(crate) fn new(mtu: u32) -> Self {
        Self {
            rings: None,
            frame_limit: frame_limit(mtu),
            is_up: true,
            turn: 0,
            from: 0,
            loaded: [Loaded::default(); BATCH],
            given: (0, 0),
            gathered: vec![0; GATHER_BYTES].into_boxed_slice(),
            pieces: Vec::new(),
            chains: Vec::new(),
        }
    }

    /// Runs other rings from now on, or none: those that ran until now, with everything published.
    pub(crate) fn exchange(&mut self, rings: Option<Box<Rings>>, ringer: &Ringer) -> Option<Box<Rings>> {
        let _ = self.release(ringer);
        self.turn = 0;
        self.from = 0;
        let before = std::mem::replace(&mut self.rings, rings);
        for ring in self.rings.iter_mut().flat_map(|rings| rings.rx.iter_mut().chain(&mut rings.tx)) {
            ring.queue.disarm();
            // What the driver waits for may have come while nobody called.
            ring.ring(ringer);
        }
        before
    }

    /// Eventfds by which the driver says that it has frames.
    pub(crate) fn kicks(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().flat_map(|rings| rings.tx.iter().map(|ring| ring.kick.as_fd()))
    }

    /// Entries of all TX and of all RX queues, and how many are in use as far as was looked.
    pub(crate) fn occupancy(&self) -> [(u32, u32); 2] {
        let sum = |rings: &[Ring]| {
            rings.iter().fold((0, 0), |(size, known), ring| (size + ring.queue.size(), known + ring.queue.known()))
        };
        self.rings.as_ref().map_or([(0, 0); 2], |rings| [sum(&rings.tx), sum(&rings.rx)])
    }

    pub(crate) const fn set_mtu(&mut self, mtu: u32) {
        self.frame_limit = frame_limit(mtu);
    }

    pub(crate) const fn set_up(&mut self, is_up: bool) {
        self.is_up = is_up;
    }

    /// Nothing comes out of it until its rings are set up anew.
    pub(crate) fn is_mute(&self) -> bool {
        self.rings.as_ref().is_some_and(|rings| rings.tx.iter().all(|ring| !ring.works()))
    }

    /// Something broke that was not told yet: what, once.
    pub(crate) fn take_fault(&mut self) -> Option<(PortPart, Fault)> {
        let rings = self.rings.as_mut()?;
        let tx = rings.tx.iter_mut().map(|ring| (PortPart::Transmit, ring));
        let rx = rings.rx.iter_mut().map(|ring| (PortPart::Receive, ring));
        tx.chain(rx).find_map(|(part, ring)| {
            let fault = ring.fault.filter(|_| !ring.is_told)?;
            ring.is_told = true;
            Some((part, fault))
        })
    }

    /// Ends every queue when memory has ended.
    #[inline]
    fn watch_memory(&mut self) {
        if let Some(rings) = &mut self.rings
            && rings.memory.has_ended()
        {
            rings.rx.iter_mut().chain(&mut rings.tx).for_each(|ring| ring.end(Fault::MemoryGone));
        }
    }

    // ---- frames from the driver ------------------------------------------------------------------------------------

    /// Looks at up to `wanted` frames of the next queue that has some; they stay available until [`Self::give_back`]. A
    /// chain that breaks a rule ends its queue; the frames before it are still good.
    #[inline]
    pub(crate) fn load(&mut self, batch: &mut Batch, wanted: usize) -> usize {
        let Self { rings: Some(rings), turn, from, loaded, gathered, pieces, frame_limit, .. } = self else { return 0 };
        let header = rings.header;
        for _ in 0..rings.tx.len() {
            let number = *turn % rings.tx.len();
            *turn = number + 1;
            let ring = &mut rings.tx[number];
            if !ring.works() || !ring.has_chain() {
                continue;
            }
            *from = number;
            if (ring.queue.known() as usize) < wanted {
                let _ = ring.queue.refresh().map_err(|fault| ring.end(fault));
            }
            let ready = (ring.queue.known() as usize).min(wanted);
            let mut heads = 0;
            for (ahead, entry) in loaded.iter_mut().enumerate().take(ready) {
                match ring.queue.head(ahead as u32) {
                    Ok(head) => entry.head = head,
                    Err(fault) => {
                        ring.end(fault);
                        break;
                    }
                }
                heads += 1;
            }
            let mut room = &mut gathered[..];
            let mut found = 0;
            for entry in &mut loaded[..heads] {
                match find_frame(&mut ring.queue, entry, header, pieces, &mut room) {
                    Ok(true) => found += 1,
                    Ok(false) => break,
                    Err(fault) => {
                        ring.end(fault);
                        break;
                    }
                }
            }
            for (index, entry) in loaded[..found].iter().enumerate() {
                let source = entry.source as *const u8;
                // SAFETY: `find_frame` found a header and a frame behind it at this place, or gathered them there.
                let asked = unsafe { offload(source.sub(header as usize)) };
                if asked != 0 {
                    ring.end(Fault::UnknownFlags { flags: asked });
                    found = index;
                    break;
                }
                let piece = &mut batch.pieces[index];
                piece.source = source;
                piece.length = if entry.length > *frame_limit { 0 } else { entry.length };
            }
            if found != 0 {
                return found;
            }
        }
        0
    }

    /// A loaded frame, also one that is too long to be forwarded.
    pub(crate) fn loaded(&self, index: u32) -> Option<(*const u8, u32)> {
        let entry = self.loaded.get(index as usize)?;
        (entry.length != 0).then_some((entry.source as *const u8, entry.length))
    }

    /// Returns the oldest `count` loaded frames to the driver. `true`: it wants to hear of that, call.
    #[inline]
    pub(crate) fn give_back(&mut self, count: u32) -> bool {
        let Some(ring) = self.rings.as_mut().and_then(|rings| rings.tx.get_mut(self.from)) else { return false };
        for entry in &self.loaded[..count as usize] {
            ring.queue.complete(entry.head, 0);
        }
        count != 0 && ring.queue.publish()
    }

    /// Wakes the driver of the queue that frames were last taken from.
    pub(crate) fn call_tx(&mut self, ringer: &Ringer) {
        if let Some(ring) = self.rings.as_mut().and_then(|rings| rings.tx.get_mut(self.from)) {
            ring.ring(ringer);
        }
    }

    /// Something broke, or memory has ended, and was not told: asked after each turn and each release.
    #[inline]
    pub(crate) fn has_news(&mut self) -> bool {
        self.watch_memory();
        let Some(rings) = &self.rings else { return false };
        rings.tx.iter().chain(&rings.rx).any(|ring| ring.fault.is_some() && !ring.is_told)
    }

    /// Asks the driver to kick. `true`: there is nothing to do now.
    pub(crate) fn arm(&mut self) -> bool {
        let Some(rings) = &mut self.rings else { return true };
        let mut is_idle = true;
        for ring in rings.tx.iter_mut().filter(|ring| ring.works()) {
            match ring.queue.arm() {
                Ok(is_empty) => is_idle &= is_empty,
                Err(fault) => ring.end(fault),
            }
        }
        is_idle
    }

    /// No more kicks wanted: the port is polled.
    pub(crate) fn disarm(&self) {
        if let Some(rings) = &self.rings {
            rings.tx.iter().for_each(|ring| ring.queue.disarm());
        }
    }

    // ---- frames to the driver --------------------------------------------------------------------------------------

    /// Takes buffers for a frame. `Ok(null)`: it was written already. Otherwise: where to write it, at least 64 bytes.
    ///
    /// # Safety
    ///
    /// `piece` was loaded in this turn, and `start` is its start.
    // Not in line: the loop over frames is tuned for guests' rings.
    #[inline(never)]
    pub(crate) unsafe fn claim(&mut self, start: &FrameStart, piece: &Piece) -> std::result::Result<*mut u8, Refusal> {
        let Self { rings: Some(rings), pieces, chains, given, frame_limit, .. } = self else {
            return Err(Refusal::LinkDown);
        };
        if !self.is_up {
            return Err(Refusal::LinkDown);
        }
        if piece.length > *frame_limit {
            return Err(Refusal::Oversize);
        }
        let (header, is_mergeable) = (rings.header, rings.is_mergeable);
        let number = if rings.rx.len() > 1 { flow(start) % rings.rx.len() } else { 0 };
        let Some(ring) = rings.rx.get_mut(number) else { return Err(Refusal::LinkDown) };
        if !ring.works() {
            return Err(Refusal::Quarantined);
        }
        if !ring.has_chain() {
            return Err(if ring.works() { Refusal::NoRoom } else { Refusal::Quarantined });
        }
        let head = ring.queue.head(0).map_err(|fault| refuse(ring, fault))?;
        let needed = header + piece.length.max(START_BYTES as u32);
        let target = match ring.queue.single(head, Direction::ToDriver) {
            Some(Segment { place, bytes }) if bytes >= needed => {
                // SAFETY: at least the header fits there, as just compared.
                unsafe { write_header(place.as_ptr(), header, 1) };
                ring.queue.complete(head, header + piece.length);
                // SAFETY: more bytes than the header lie there.
                unsafe { place.add(header as usize) }.as_ptr()
            }
            _ => {
                // SAFETY: as promised by the caller.
                unsafe { scatter(ring, (pieces, chains), header, is_mergeable, (start, piece)) }?;
                std::ptr::null_mut()
            }
        };
        given.0 += 1;
        given.1 += u64::from(piece.length);
        Ok(target)
    }

    /// Frames and bytes given since the last [`Self::release`].
    pub(crate) const fn given(&self) -> (u64, u64) {
        self.given
    }

    /// Shows the driver what it was given, and calls it where it wants that: whether it was called.
    pub(crate) fn release(&mut self, ringer: &Ringer) -> bool {
        self.given = (0, 0);
        let Some(rings) = &mut self.rings else { return false };
        let mut is_called = false;
        for ring in rings.rx.iter_mut().filter(|ring| ring.queue.unpublished() != 0) {
            if ring.queue.publish() {
                is_called = true;
                ring.ring(ringer);
            }
        }
        is_called
    }
}

impl fmt::Debug for VhostUserPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUserPort").field("rings", &self.rings).field("is_up", &self.is_up).finish_non_exhaustive()
    }
}

/// Finds the frame of a chain and asks for its start; what is scattered is gathered in `room`. `Ok(false)`: no room is left.
#[inline]
fn find_frame(
    queue: &mut SplitQueue,
    entry: &mut Loaded,
    header: u32,
    pieces: &mut Vec<Segment>,
    room: &mut &mut [u8],
) -> Result<bool, Fault> {
    let shortest = header + HEADER_BYTES;
    if let Some(Segment { place, bytes }) = queue.single(entry.head, Direction::FromDriver)
        && (shortest..=header + FRAME_BYTES_MAX).contains(&bytes)
    {
        prefetch_read(place.as_ptr());
        entry.source = place.as_ptr().wrapping_add(header as usize) as usize;
        entry.length = bytes - header;
        return Ok(true);
    }
    gather(queue, entry, header, pieces, room)
}

/// As [`find_frame`], for chains of several pieces, and for those that break a rule.
#[cold]
fn gather(
    queue: &mut SplitQueue,
    entry: &mut Loaded,
    header: u32,
    pieces: &mut Vec<Segment>,
    room: &mut &mut [u8],
) -> Result<bool, Fault> {
    pieces.clear();
    let total = queue.chain(entry.head, Direction::FromDriver, pieces)?;
    let (shortest, longest) = (header + HEADER_BYTES, header + FRAME_BYTES_MAX);
    if total > longest.into() {
        return Err(Fault::TooLong { length: u32::try_from(total).unwrap_or(u32::MAX), limit: longest });
    }
    let total = total as u32;
    if total < shortest {
        return Err(Fault::TooShort { length: total, limit: shortest });
    }
    if (total as usize) > room.len() {
        return Ok(false);
    }
    let (here, rest) = std::mem::take(room).split_at_mut(total as usize);
    *room = rest;
    let mut done = 0;
    for piece in &*pieces {
        // SAFETY: the piece was just looked up; together they are `total` bytes, as many as are here. Private memory of ours
        // overlaps none of a front end's.
        unsafe {
            piece.place.as_ptr().copy_to_nonoverlapping(here.as_mut_ptr().add(done), piece.bytes as usize);
        }
        done += piece.bytes as usize;
    }
    entry.source = here.as_ptr().wrapping_add(header as usize) as usize;
    entry.length = total - header;
    Ok(true)
}

/// What the header in front of a frame asks for; 0 is nothing, which is all that was offered.
///
/// # Safety
///
/// Two bytes at `header` are mapped.
#[inline]
unsafe fn offload(header: *const u8) -> u8 {
    // SAFETY: as promised by the caller; one look.
    let [flags, segmentation] = unsafe { header.cast::<[u8; 2]>().read_volatile() };
    flags | segmentation
}

/// # Safety
///
/// `bytes` bytes at `place`, 10 or 12, are mapped and ours to write.
#[inline]
unsafe fn write_header(place: *mut u8, bytes: u32, buffers: u16) {
    let header = header_of(buffers);
    // SAFETY: as promised by the caller; the private copy has 12 bytes.
    unsafe { header.as_ptr().copy_to_nonoverlapping(place, bytes.min(LONG_HEADER) as usize) };
}

const fn header_of(buffers: u16) -> [u8; LONG_HEADER as usize] {
    let mut header = [0; LONG_HEADER as usize];
    let [low, high] = buffers.to_le_bytes();
    header[NUM_BUFFERS] = low;
    header[NUM_BUFFERS + 1] = high;
    header
}

/// Frames of one flow go into one queue: a number that is the same for the same addresses, and for the same ports where no
/// fragment can lack them.
fn flow(start: &FrameStart) -> usize {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const MULTIPLIER: u32 = 0x9e37_79b1;
    let bytes = start.bytes();
    let has_ports = |protocol: u8| matches!(protocol, TCP | UDP);
    let ends = match start.ether_type() {
        0x0800 if bytes[14] == 0x45 => {
            let is_whole = bytes[20] & 0x3f == 0 && bytes[21] == 0;
            if is_whole && has_ports(bytes[23]) { &bytes[26..38] } else { &bytes[26..34] }
        }
        0x86dd if has_ports(bytes[20]) => &bytes[22..58],
        0x86dd => &bytes[22..54],
        _ => &bytes[..12],
    };
    let mix = |sum: u32, word: &[u8; 4]| (sum ^ u32::from_le_bytes(*word)).wrapping_mul(MULTIPLIER).rotate_left(15);
    let sum = ends.as_chunks::<4>().0.iter().fold(0, mix);
    // What differs least is high up in the last word: once more, and the upper half.
    (sum.wrapping_mul(MULTIPLIER) >> 16) as usize
}

#[cold]
fn refuse(ring: &mut Ring, fault: Fault) -> Refusal {
    ring.end(fault);
    Refusal::Quarantined
}

/// Writes a frame into a chain of several pieces, or into several chains.
///
/// # Safety
///
/// `piece` was loaded in this turn, and `start` is its start.
#[cold]
unsafe fn scatter(
    ring: &mut Ring,
    (pieces, chains): (&mut Vec<Segment>, &mut Vec<(u16, u32)>),
    header: u32,
    is_mergeable: bool,
    (start, piece): (&FrameStart, &Piece),
) -> Result<(), Refusal> {
    let needed = u64::from(header) + u64::from(piece.length);
    pieces.clear();
    chains.clear();
    let mut room = 0;
    while room < needed {
        if !chains.is_empty() && !is_mergeable {
            return Err(Refusal::BufferTooSmall);
        }
        if chains.len() as u32 >= ring.queue.known() {
            let known = ring.queue.refresh().map_err(|fault| refuse(ring, fault))?;
            if chains.len() as u32 >= known {
                return Err(Refusal::NoRoom);
            }
        }
        let chained = ring.queue.head(chains.len() as u32).and_then(|head| {
            let bytes = ring.queue.chain(head, Direction::ToDriver, pieces)?;
            // The header is in one chain, and a chain that holds nothing of the frame would be lost.
            if chains.is_empty() && bytes < u64::from(header) {
                return Err(Fault::TooShort { length: bytes as u32, limit: header });
            }
            Ok((head, bytes))
        });
        let (head, bytes) = chained.map_err(|fault| refuse(ring, fault))?;
        chains.push((head, bytes.min(needed - room) as u32));
        room += bytes;
    }
    let lead = header_of(u16::try_from(chains.len()).unwrap_or(u16::MAX));
    let head = start.bytes();
    let first = (piece.length as usize).min(START_BYTES);
    let mut parts = [
        (lead.as_ptr(), header as usize),
        (head.as_ptr(), first),
        (piece.source.wrapping_add(first), piece.length as usize - first),
    ]
    .into_iter();
    let (mut from, mut left) = parts.next().unwrap_or((lead.as_ptr(), 0));
    for Segment { place, bytes } in &*pieces {
        let (mut to, mut free): (NonNull<u8>, usize) = (*place, *bytes as usize);
        while free != 0 {
            if left == 0 {
                let Some(next) = parts.next() else { break };
                (from, left) = next;
                continue;
            }
            let count = free.min(left);
            // SAFETY: `free` bytes are left of a piece that was looked up in this call, `left` of a part that is private or, as
            // the caller promises, loaded. Both may lie in one guest's memory, so they move as if they overlapped.
            unsafe {
                from.copy_to(to.as_ptr(), count);
                to = to.add(count);
            }
            from = from.wrapping_add(count);
            free -= count;
            left -= count;
        }
    }
    for &(head, written) in &*chains {
        ring.queue.complete(head, written);
    }
    Ok(())
}
