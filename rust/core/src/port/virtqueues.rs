//! Virtqueues as a port: those of a virtual machine's or a DPDK application's network card, and of a guest's on a bus.
//!
//! ```text
//!   TX queues   driver makes full chains available   ─▶ load: check, find the frame ─▶ (switch) ─▶ used, maybe call
//!   RX queues   driver makes empty chains available  ─▶ claim: check, write the header ─▶ fill ─▶ used, maybe call
//! ```
//!
//! A frame that lies together is copied once, from where its sender has it to where its receiver wants it, whatever kinds
//! of port both are. One that is scattered over several buffers is gathered first; one that goes into several is written
//! there at once. One that asks for an offload is gathered too, before its header is read: what is checked is what is sent.
//!
//! Who writes what: the driver owns all of this memory; we write used rings, and buffers that it posted. The rings are set up
//! by another thread ([`crate::vhost_user`], [`crate::virtio::net`]) and handed over whole; while it changes them the port has
//! none. A guest of a bus has a shm-signal beside each queue, which spares doorbells while it is awake.
//! The danger: as everywhere in [`crate::virtio`]. Besides, eventfds are the front end's: they are believed after the
//! kernel said what they are, kicks are never read, and calls are rung where a watchdog ends what blocks.
//! Source: virtio 1.2 §5.1.6 (device operation of the network device).

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::batch::{BATCH, Batch, prefetch_read, prefetch_write};
use super::{PortPart, Refusal};
use crate::error::Fault;
use crate::net::frame::{FRAME_BYTES_MAX, FrameStart, HEADER_BYTES, START_BYTES, frame_limit};
use crate::net::offload::{Features, OFFLOAD_HEADER_BYTES, Request};
use crate::port::batch::Piece;
use crate::port::spread::{Parts, gather};
use crate::shm::doorbell::Doorbell;
use crate::shm::signal::{Listener, Notifier};
use crate::signals::Caller;
use crate::virtio::device::NEEDS_RESET;
use crate::virtio::dirty::DirtyLog;
use crate::virtio::memory::GuestMemory;
use crate::virtio::queue::{Ahead, Chain, Direction, Queue, Segment, Used};
use crate::virtio::server::QUEUE_INTERRUPT;
use crate::worker::watchdog::Ringer;

/// `virtio_net_hdr` with `num_buffers`: what is in front of each frame once version 1 or mergeable buffers were agreed on.
pub(crate) const LONG_HEADER: u32 = 12;
/// `virtio_net_hdr` without.
pub(crate) const SHORT_HEADER: u32 = 10;

/// What a queue of a guest on a bus has beside it.
#[derive(Debug)]
pub(crate) struct BusEnds {
    /// What hears kicks.
    pub listener: Listener,
    /// What calls.
    pub notifier: Notifier,
    pub call: Arc<Caller>,
    /// What the driver reads to learn why it was called.
    pub interrupt: Arc<AtomicU32>,
    /// The device's status.
    pub status: Arc<AtomicU32>,
}

/// How the driver of a queue hears of it.
#[derive(Debug)]
pub(crate) enum Ends {
    /// By an eventfd of its front end's; none: it polls.
    FrontEnd(Option<Doorbell>),
    /// By a signal, and by its doorbell when it sleeps.
    Bus(BusEnds),
}

/// One queue and what belongs to it.
#[derive(Debug)]
pub(crate) struct Ring {
    pub queue: Queue,
    pub kick: Arc<Doorbell>,
    pub ends: Ends,
    /// Number of the queue as the front end counts: even ones are for frames to the driver.
    pub index: usize,
    pub fault: Option<Fault>,
    is_told: bool,
    /// Chains that were looked at.
    ahead: Ahead,
    /// Posted ones that were taken from there.
    taken: usize,
    /// Of those, the ones that were filled and that the driver has not been shown.
    filled: Vec<Used>,
    /// What of them was written, where that is to be marked.
    written: Vec<Segment>,
}

impl Ring {
    pub(crate) fn new(index: usize, queue: Queue, kick: Arc<Doorbell>, ends: Ends) -> Self {
        let filled = Vec::with_capacity(queue.size() as usize);
        let written = Vec::new();
        Self {
            queue,
            kick,
            ends,
            index,
            fault: None,
            is_told: false,
            ahead: Ahead::default(),
            filled,
            written,
            taken: 0,
        }
    }

    /// Whether it works still.
    const fn works(&self) -> bool {
        self.fault.is_none()
    }

    #[cold]
    fn end(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        if let Ends::Bus(bus) = &self.ends {
            bus.status.fetch_or(NEEDS_RESET, Ordering::Relaxed);
        }
    }

    /// Tells the driver, which wants to hear: whether its doorbell was rung for that.
    fn ring(&mut self, ringer: &Ringer) -> bool {
        let outcome = match &self.ends {
            Ends::FrontEnd(None) => return false,
            Ends::FrontEnd(Some(call)) => ringer.ring(call),
            Ends::Bus(bus) if !bus.notifier.inject() => return false,
            Ends::Bus(bus) => {
                bus.interrupt.fetch_or(QUEUE_INTERRUPT, Ordering::Relaxed);
                bus.call.call(ringer)
            }
        };
        if let Err(fault) = outcome {
            self.end(fault);
        }
        true
    }

    /// Asks to be kicked. `true`: there is nothing now.
    fn arm(&mut self) -> bool {
        if let Ends::Bus(bus) = &self.ends {
            bus.listener.acknowledge();
        }
        match self.queue.arm() {
            Ok(is_empty) => match &self.ends {
                Ends::Bus(bus) => is_empty && bus.listener.arm(),
                Ends::FrontEnd(_) => is_empty,
            },
            Err(fault) => {
                self.end(fault);
                true
            }
        }
    }

    /// No kicks wanted.
    fn disarm(&self) {
        self.queue.disarm();
        if let Ends::Bus(bus) = &self.ends {
            bus.listener.mask();
        }
    }

    /// Looks at up to `wanted` more chains: how many. A queue that is broken has none.
    #[inline]
    fn look(&mut self, direction: Direction, wanted: usize) -> usize {
        self.queue.look(direction, wanted, &mut self.ahead).unwrap_or_else(|fault| {
            self.end(fault);
            0
        })
    }

    /// Sees to it that the posted chain `ahead` places behind the next one to be filled is known: where it is among those
    /// that were looked at.
    ///
    /// A place, not a copy: a chain was written word by word a moment ago, and a copy of it all at once would wait until
    /// those words have passed every store into buffers that is still under way.
    #[inline]
    fn posted(&mut self, ahead: usize) -> Result<usize, Refusal> {
        let number = self.taken + ahead;
        if number < self.ahead.chains.len() && self.works() { Ok(number) } else { self.look_further(ahead) }
    }

    #[inline(never)]
    fn look_further(&mut self, ahead: usize) -> Result<usize, Refusal> {
        if !self.works() {
            return Err(Refusal::Quarantined);
        }
        if ahead == 0 {
            self.ahead.clear();
            self.taken = 0;
        }
        let known = self.ahead.chains.len();
        if self.look(Direction::ToDriver, BATCH) == 0 {
            return Err(if self.works() { Refusal::NoRoom } else { Refusal::Quarantined });
        }
        // Headers are written one after the other: each would wait for its line, and all stores behind it with it.
        for chain in &self.ahead.chains[known..] {
            prefetch_write(chain.place.as_ptr());
        }
        Ok(self.taken + ahead)
    }

    /// Notes that the next posted chain is filled.
    #[inline]
    fn fill(&mut self, written: u32) {
        let Used { id, descriptors, .. } = self.ahead.chains[self.taken].used;
        self.taken += 1;
        self.filled.push(Used { id, descriptors, written });
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
    /// What the driver may leave to us.
    pub takes: Features,
    /// What we may leave to the driver.
    pub gives: Features,
    /// Where pages of buffers are marked that we wrote.
    pub log: Option<Arc<DirtyLog>>,
    /// How many pairs the driver uses; none: all there are.
    pub pairs: Option<Arc<AtomicU32>>,
    pub memory: Arc<GuestMemory>,
}

impl Rings {
    /// Over how many queues frames to the driver are spread; at least one.
    fn spread(&self) -> usize {
        let all = self.rx.len();
        let wanted = self.pairs.as_ref().map_or(all, |pairs| pairs.load(Ordering::Relaxed) as usize);
        wanted.clamp(1, all.max(1))
    }
}

/// A frame that was loaded.
#[derive(Clone, Copy, Debug, Default)]
struct Loaded {
    source: usize,
    length: u32,
}

/// A front end's queues, worked on by one worker.
pub(crate) struct VirtqueuePort {
    rings: Option<Box<Rings>>,
    frame_limit: u32,
    is_up: bool,
    /// The TX queue that is looked at next, and the one that frames were last loaded from.
    turn: usize,
    from: usize,
    loaded: [Loaded; BATCH],
    /// Frames and bytes given since the last release.
    given: (u64, u64),
}

// SAFETY: places in `loaded` are good within one turn of one thread, and never used after it; those of chains that were looked
// at are good for as long as their queue is, which is never without its memory.
unsafe impl Send for VirtqueuePort {}

impl VirtqueuePort {
    pub(crate) fn new(mtu: u32) -> Self {
        Self {
            rings: None,
            frame_limit: frame_limit(mtu),
            is_up: true,
            turn: 0,
            from: 0,
            loaded: [Loaded::default(); BATCH],
            given: (0, 0),
        }
    }

    /// Runs other rings from now on, or none: those that ran until now, with everything published.
    pub(crate) fn exchange(&mut self, rings: Option<Box<Rings>>, ringer: &Ringer) -> Option<Box<Rings>> {
        let _ = self.release(ringer);
        self.turn = 0;
        self.from = 0;
        let before = std::mem::replace(&mut self.rings, rings);
        for ring in self.rings.iter_mut().flat_map(|rings| rings.rx.iter_mut().chain(&mut rings.tx)) {
            ring.disarm();
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

    /// What the driver can be left with.
    pub(crate) fn features(&self) -> Features {
        self.rings.as_ref().map_or(Features::NONE, |rings| rings.gives)
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
            && (rings.memory.has_ended() || rings.log.as_ref().is_some_and(|log| log.has_ended()))
        {
            rings.rx.iter_mut().chain(&mut rings.tx).for_each(|ring| ring.end(Fault::MemoryGone));
        }
    }

    // ---- frames from the driver ------------------------------------------------------------------------------------

    /// Looks at up to `wanted` frames of the next queue that has some; they stay available until [`Self::give_back`]. A
    /// chain that breaks a rule ends its queue; the frames before it are still good.
    #[inline]
    pub(crate) fn load(&mut self, batch: &mut Batch, wanted: usize) -> usize {
        let Self { rings: Some(rings), turn, from, loaded, frame_limit, .. } = self else { return 0 };
        let Batch { pieces, requests, has_requests, gathered, .. } = batch;
        let (header, takes) = (rings.header, rings.takes);
        for _ in 0..rings.tx.len() {
            let number = *turn % rings.tx.len();
            *turn = number + 1;
            let ring = &mut rings.tx[number];
            if !ring.works() {
                continue;
            }
            ring.ahead.clear();
            ring.queue.rewind();
            if ring.look(Direction::FromDriver, wanted) == 0 {
                continue;
            }
            *from = number;
            let mut room = &mut gathered[..];
            let mut found = 0;
            for (entry, chain) in loaded.iter_mut().zip(&ring.ahead.chains) {
                match find_frame(chain, &ring.ahead, header, &mut room) {
                    Ok(Some(frame)) => *entry = frame,
                    Ok(None) => break,
                    Err(fault) => {
                        ring.end(fault);
                        break;
                    }
                }
                found += 1;
            }
            for (index, entry) in loaded[..found].iter_mut().enumerate() {
                let source = entry.source as *const u8;
                // SAFETY: `find_frame` found a header and a frame behind it at this place, or gathered them there.
                let asked = unsafe { offload(source.sub(header as usize)) };
                let piece = &mut pieces[index];
                piece.source = source;
                piece.length = if entry.length > *frame_limit { 0 } else { entry.length };
                if asked == 0 {
                    continue;
                }
                if takes == Features::NONE {
                    ring.end(Fault::UnknownFlags { flags: asked });
                    found = index;
                    break;
                }
                if !*has_requests {
                    *has_requests = true;
                    requests.fill(Request::NOTHING);
                }
                let is_private = ring.ahead.chains[index].pieces != 0;
                let Some(request) = take_request(entry, header, is_private, &mut room) else {
                    found = index;
                    break;
                };
                if !takes.contains(request.needs()) {
                    ring.end(Fault::UnknownFlags { flags: asked });
                    found = index;
                    break;
                }
                let is_dropped = request.unfit().is_some() || request.longest(entry.length) > *frame_limit;
                piece.source = entry.source as *const u8;
                piece.length = if is_dropped { 0 } else { entry.length };
                requests[index] = request;
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

    /// Returns the oldest `count` loaded frames to the driver. `true`: it wanted to hear of that, and was called.
    #[inline]
    pub(crate) fn give_back(&mut self, count: u32, ringer: &Ringer) -> bool {
        let Some(ring) = self.rings.as_mut().and_then(|rings| rings.tx.get_mut(self.from)) else { return false };
        let chains = &ring.ahead.chains[..count as usize];
        count != 0 && ring.queue.complete(chains.iter().map(|chain| chain.used)) && ring.ring(ringer)
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
            is_idle &= ring.arm();
        }
        is_idle
    }

    /// No more kicks wanted: the port is polled.
    pub(crate) fn disarm(&self) {
        if let Some(rings) = &self.rings {
            rings.tx.iter().for_each(Ring::disarm);
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
        // SAFETY: as promised by the caller.
        unsafe { self.claim_for(start, piece, &Request::NOTHING) }
    }

    /// As [`Self::claim`], with a request that the driver can do.
    ///
    /// # Safety
    ///
    /// As for [`Self::claim`].
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn claim_requested(
        &mut self,
        start: &FrameStart,
        piece: &Piece,
        request: &Request,
    ) -> std::result::Result<*mut u8, Refusal> {
        // SAFETY: as promised by the caller.
        unsafe { self.claim_for(start, piece, request) }
    }

    /// # Safety
    ///
    /// As for [`Self::claim`].
    #[inline(always)]
    unsafe fn claim_for(
        &mut self,
        start: &FrameStart,
        piece: &Piece,
        request: &Request,
    ) -> std::result::Result<*mut u8, Refusal> {
        let Self { rings: Some(rings), given, frame_limit, .. } = self else {
            return Err(Refusal::LinkDown);
        };
        if !self.is_up {
            return Err(Refusal::LinkDown);
        }
        if request.longest(piece.length) > *frame_limit {
            return Err(Refusal::Oversize);
        }
        let asked = request.header();
        let (header, is_mergeable, is_logged) = (rings.header, rings.is_mergeable, rings.log.is_some());
        let number = if rings.rx.len() > 1 { flow(start) % rings.spread() } else { 0 };
        let Some(ring) = rings.rx.get_mut(number) else { return Err(Refusal::LinkDown) };
        let number = ring.posted(0)?;
        let Chain { place, bytes, pieces, .. } = ring.ahead.chains[number];
        let target = if pieces == 0 && bytes >= header + piece.length.max(START_BYTES as u32) {
            // SAFETY: at least the header fits there, as just compared.
            unsafe { write_header(place.as_ptr(), header, &asked) };
            ring.fill(header + piece.length);
            if is_logged {
                // Also of a shorter frame so much is written.
                let bytes = header + piece.length.max(START_BYTES as u32);
                ring.written.push(Segment { place, bytes });
            }
            // SAFETY: more bytes than the header lie there.
            unsafe { place.add(header as usize) }.as_ptr()
        } else {
            // SAFETY: as promised by the caller.
            unsafe { scatter(ring, (header, &asked), (is_mergeable, is_logged), (start, piece)) }?;
            std::ptr::null_mut()
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
        let Rings { rx, log, memory, .. } = &mut **rings;
        for ring in rx.iter_mut().filter(|ring| !ring.filled.is_empty()) {
            if let Some(log) = log {
                mark_written(log, memory, &mut ring.written);
            }
            if ring.queue.complete(ring.filled.drain(..)) {
                is_called |= ring.ring(ringer);
            }
        }
        is_called
    }
}

impl fmt::Debug for VirtqueuePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtqueuePort").field("rings", &self.rings).field("is_up", &self.is_up).finish_non_exhaustive()
    }
}

/// Notes the first `left` bytes of these pieces, which were written.
fn note_written(written: &mut Vec<Segment>, pieces: &[Segment], mut left: u32) {
    for piece in pieces {
        let bytes = piece.bytes.min(left);
        left -= bytes;
        written.push(Segment { bytes, ..*piece });
    }
}

/// Marks what was written into buffers, now that all of it is there.
#[cold]
fn mark_written(log: &DirtyLog, memory: &GuestMemory, written: &mut Vec<Segment>) {
    for Segment { place, bytes } in written.drain(..) {
        if let Some(address) = memory.address_of(place) {
            log.mark(address, bytes.into());
        }
    }
}

/// Finds the frame of a chain and asks for its start; what is scattered is gathered in `room`. `None`: no room is left.
#[inline]
fn find_frame(chain: &Chain, ahead: &Ahead, header: u32, room: &mut &mut [u8]) -> Result<Option<Loaded>, Fault> {
    let (shortest, longest) = (header + HEADER_BYTES, header + FRAME_BYTES_MAX);
    if chain.bytes > longest {
        return Err(Fault::TooLong { length: chain.bytes, limit: longest });
    }
    if chain.bytes < shortest {
        return Err(Fault::TooShort { length: chain.bytes, limit: shortest });
    }
    let length = chain.bytes - header;
    if chain.pieces != 0 {
        // SAFETY: the pieces were just looked up; together they are as many bytes as the chain.
        let place = unsafe { gather(ahead.pieces_of(chain), chain.bytes as usize, room) };
        return Ok(place.map(|place| Loaded { source: place.wrapping_add(header as usize) as usize, length }));
    }
    let place = chain.place.as_ptr();
    prefetch_read(place);
    // Often on a line of its own, as drivers put the header into the room in front of a frame.
    prefetch_read(place.wrapping_add(header as usize));
    Ok(Some(Loaded { source: place.wrapping_add(header as usize) as usize, length }))
}

/// The request of a frame, read from a copy of header and frame that is made for that unless there is one. `None`: no room is
/// left for it now.
#[cold]
#[inline(never)]
fn take_request(entry: &mut Loaded, header: u32, is_private: bool, room: &mut &mut [u8]) -> Option<Request> {
    let (header, length) = (header as usize, entry.length as usize);
    let mut place = (entry.source as *const u8).wrapping_sub(header);
    if !is_private {
        let whole = Segment { place: NonNull::new(place.cast_mut())?, bytes: (header + length) as u32 };
        // SAFETY: header and frame were just looked up.
        place = unsafe { gather(&[whole], header + length, room) }?;
        entry.source = place.wrapping_add(header) as usize;
    }
    // SAFETY: header and frame were gathered here, in memory of ours that nobody writes while the frame is in hand.
    let whole = unsafe { std::slice::from_raw_parts(place, header + length) };
    let (asked, frame) = (whole.first_chunk::<OFFLOAD_HEADER_BYTES>()?, &whole[header..]);
    Some(Request::parse(asked, frame).unwrap_or_else(Request::refused))
}

/// What the header in front of a frame asks for; 0 is nothing.
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
unsafe fn write_header(place: *mut u8, bytes: u32, asked: &[u8; OFFLOAD_HEADER_BYTES]) {
    let header = header_of(asked, 1);
    // A copy whose length is known is two stores, another one a call.
    // SAFETY: as promised by the caller; the private copy has 12 bytes.
    unsafe {
        if bytes == SHORT_HEADER {
            header.as_ptr().copy_to_nonoverlapping(place, SHORT_HEADER as usize);
        } else {
            header.as_ptr().copy_to_nonoverlapping(place, LONG_HEADER as usize);
        }
    }
}

/// What was asked for, and `num_buffers`.
const fn header_of(asked: &[u8; OFFLOAD_HEADER_BYTES], buffers: u16) -> [u8; LONG_HEADER as usize] {
    let [a, b, c, d, e, f, g, h, i, j] = *asked;
    let [low, high] = buffers.to_le_bytes();
    [a, b, c, d, e, f, g, h, i, j, low, high]
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

/// Writes a frame into a chain of several pieces, or into several chains.
///
/// # Safety
///
/// `piece` was loaded in this turn, and `start` is its start.
#[cold]
unsafe fn scatter(
    ring: &mut Ring,
    (header, asked): (u32, &[u8; OFFLOAD_HEADER_BYTES]),
    (is_mergeable, is_logged): (bool, bool),
    (start, piece): (&FrameStart, &Piece),
) -> Result<(), Refusal> {
    let needed = u64::from(header) + u64::from(piece.length);
    let mut chains = 0;
    let mut room = 0;
    while room < needed {
        if chains != 0 && !is_mergeable {
            return Err(Refusal::BufferTooSmall);
        }
        let number = ring.posted(chains)?;
        let bytes = ring.ahead.chains[number].bytes;
        // The header is in one chain.
        if chains == 0 && bytes < header {
            ring.end(Fault::TooShort { length: bytes, limit: header });
            return Err(Refusal::Quarantined);
        }
        chains += 1;
        room += u64::from(bytes);
    }
    let lead = header_of(asked, u16::try_from(chains).unwrap_or(u16::MAX));
    let head = start.bytes();
    let first = (piece.length as usize).min(START_BYTES);
    let mut parts = Parts::new([
        (lead.as_ptr(), header as usize),
        (head.as_ptr(), first),
        (piece.source.wrapping_add(first), piece.length as usize - first),
    ]);
    let mut rest = needed;
    for _ in 0..chains {
        let number = ring.posted(0)?;
        let chain = ring.ahead.chains[number];
        let together = [Segment { place: chain.place, bytes: chain.bytes }];
        let pieces = if chain.pieces == 0 { &together } else { ring.ahead.pieces_of(&chain) };
        for piece in pieces {
            // SAFETY: the piece was looked up; the parts are private or, as the caller promises, loaded.
            unsafe { parts.fill(*piece) };
        }
        let written = rest.min(chain.bytes.into());
        rest -= written;
        if is_logged {
            note_written(&mut ring.written, pieces, written as u32);
        }
        ring.fill(written as u32);
    }
    Ok(())
}
