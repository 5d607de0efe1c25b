//! Watches: who looks at what passes a port, and how that reaches them without anybody waiting.
//!
//! ```text
//!   worker's batch ──▶ filter ──▶ capture: a frame's bytes, direction, drop reason ──┐
//!                            └──▶ trace: stages of some frames, with time stamps ────┴▶ capture ring ──▶ reader
//! ```
//!
//! A watch belongs to the worker of its port. Where nobody looks, a batch costs one branch on a number that lies beside
//! what the batch uses anyway. Where somebody does, frames take the way in `worker::watched`: the same decisions, and a
//! look at each. A full ring loses frames and counts them; a slow, stopped or dead reader is never waited for.

use std::fmt;

use crate::net::counters::counters;
use crate::net::frame::FrameStart;
use crate::net::mac_table::PortSlot;
use crate::port::PortId;
use crate::port::batch::{BATCH, Batch, Piece};
use crate::shm::capture::{CaptureRing, KIND_FRAME, KIND_STAGE, RecordHead};
use crate::shm::counters::Block;
use crate::shm::doorbell::Doorbell;
use crate::worker::watchdog::Ringer;
use bpf::{Packet, Program, every};

pub mod bpf;
pub mod pcapng;
mod prefilter;

/// Most watches of one port.
pub const WATCHES_A_PORT_MAX: usize = 8;
/// Most watches of one fabric.
pub const WATCHES_MAX: usize = 64;
/// Traced copies between being made and being told of, at most; a frame that would need more is not traced.
const PENDING_MAX: usize = 256;
// One look at a prefilter tells of a whole batch.
const _: () = assert!(BATCH <= prefilter::FRAMES);

counters! {
    /// What is counted for every capture and trace.
    pub enum CaptureCounter {
        /// Frames written into its ring.
        CapturedFrames = "captured_frames",
        /// Their bytes, as far as they were kept.
        CapturedBytes = "captured_bytes",
        /// Frames its filter did not want.
        FilteredFrames = "filtered_frames",
        /// Frames it wanted and lost, because its reader had left no room.
        DropNoRoom = "drop_no_room",
        /// Times its reader was woken.
        CallsRung = "calls_rung",
        /// 1: its reader made the doorbell block; nothing is captured any more.
        IsBlocked = "is_blocked",
    }
}

/// A watch's number in the fabric: never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// Which way a frame went, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Into the guest.
    Receive = 0,
    /// Out of it.
    Transmit = 1,
}

/// A stage of a traced frame's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Found in the sender's ring or device.
    Taken = 0,
    /// Looked up: how many ports it goes to.
    Decided = 1,
    /// A buffer of this port was claimed for it.
    Claimed = 2,
    /// Copied into that buffer, or given to the device behind the port.
    Copied = 3,
    /// The buffer was given to this port's guest.
    Published = 4,
    /// Its doorbell was rung.
    Rung = 5,
    /// Its doorbell was spared: the guest is awake.
    Spared = 6,
    /// Given to the kernel.
    Sent = 7,
    /// It ended here, at this port.
    Dropped = 8,
}

impl Stage {
    /// Names of all stages, in the order of their numbers.
    pub const NAMES: [&'static str; 9] =
        ["taken", "decided", "claimed", "copied", "published", "rung", "spared", "sent", "dropped"];
}

/// What becomes of what is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Every frame is kept.
    Capture,
    /// So many frames are followed, then no more.
    Trace(u32),
}

/// Somebody looks at a port.
pub(crate) struct Watch {
    pub id: WatchId,
    purpose: Purpose,
    program: Option<Program>,
    snap_bytes: u32,
    ring: CaptureRing,
    bell: Doorbell,
    block: Block,
    /// Frames traced so far.
    traced: u32,
    /// Records were written that the reader has not been told of.
    has_news: bool,
    is_blocked: bool,
}

impl Watch {
    pub(crate) const fn new(
        id: WatchId,
        purpose: Purpose,
        program: Option<Program>,
        snap_bytes: u32,
        ring: CaptureRing,
        bell: Doorbell,
        block: Block,
    ) -> Self {
        Self { id, purpose, program, snap_bytes, ring, bell, block, traced: 0, has_news: false, is_blocked: false }
    }

    pub(crate) fn set_away(&mut self, is_away: bool) {
        self.ring.set_away(is_away);
    }

    /// Which of a batch's frames the filter may want.
    #[inline]
    fn candidates(&self, starts: &[FrameStart]) -> u64 {
        self.program.as_ref().map_or(every(starts.len()), |program| program.candidates(starts))
    }

    /// How much of a frame is kept, or that it is not wanted.
    #[inline]
    fn wants(&self, packet: &Packet<'_>) -> Option<u32> {
        self.kept_of(packet, self.program.as_ref().map_or(u32::MAX, |program| program.run(packet)))
    }

    fn kept_of(&self, packet: &Packet<'_>, wanted: u32) -> Option<u32> {
        (wanted != 0).then_some(wanted.min(self.snap_bytes).min(packet.length()))
    }

    /// Keeps those frames of a batch that the filter wants.
    #[inline]
    fn see_all(&mut self, starts: &[FrameStart], pieces: &[Piece], way: Way, reasons: &[u8]) {
        let candidates = self.candidates(starts);
        let kept = if candidates == 0 { 0 } else { self.judge(candidates, starts, pieces, way, reasons) };
        self.ring.count(0, starts.len() as u64 - kept, 0);
    }

    /// Keeps what the filter wants of a batch's candidates; how many it wanted.
    #[inline(never)]
    fn judge(&mut self, candidates: u64, starts: &[FrameStart], pieces: &[Piece], way: Way, reasons: &[u8]) -> u64 {
        let mut wanted = 0;
        for (index, ((start, piece), &reason)) in starts.iter().zip(pieces).zip(reasons).enumerate() {
            if candidates >> index & 1 == 0 {
                continue;
            }
            // SAFETY: loaded in this turn, its slot not returned.
            let packet = unsafe { Packet::new(start, piece.source, piece.length) };
            let bytes = self.program.as_ref().map_or(u32::MAX, |program| program.judge(&packet));
            if let Some(kept) = self.kept_of(&packet, bytes) {
                wanted += 1;
                self.keep(&packet, kept, way, reason);
            }
        }
        wanted
    }

    /// Keeps a frame if the filter wants it.
    #[inline]
    fn see(&mut self, packet: &Packet<'_>, way: Way, reason: u8) {
        if self.is_blocked {
            return;
        }
        match self.wants(packet) {
            Some(kept) => {
                self.keep(packet, kept, way, reason);
            }
            None => self.ring.count(0, 1, 0),
        }
    }

    #[inline(never)]
    fn keep(&mut self, packet: &Packet<'_>, kept: u32, way: Way, reason: u8) -> bool {
        let head = RecordHead {
            kind: KIND_FRAME,
            way: way as u8,
            reason,
            time_ns: now_ns(rustix::time::ClockId::Realtime),
            length: packet.length(),
            detail: kept,
            bytes: 0,
        };
        // SAFETY: the ring has room for as many bytes as were asked for.
        let is_kept = self.ring.push(head, kept, |place| unsafe { packet.copy_to(place, kept) });
        self.ring.count(is_kept.into(), 0, (!is_kept).into());
        if is_kept {
            self.has_news = true;
            self.block.add(CaptureCounter::CapturedBytes as usize, kept.into());
        }
        is_kept
    }

    fn stage(&mut self, stage: Stage, number: u32, detail: u32, reason: u8, time_ns: u64) {
        let head = RecordHead { kind: KIND_STAGE, way: stage as u8, reason, time_ns, length: number, detail, bytes: 0 };
        if self.ring.push(head, 0, |_| {}) {
            self.has_news = true;
        } else {
            self.ring.count(0, 0, 1);
        }
    }

    /// Tells the reader, if it sleeps, and others who count.
    fn tell(&mut self, ringer: &Ringer) {
        let counts = self.ring.counts();
        self.block.set(CaptureCounter::CapturedFrames as usize, counts.captured);
        self.block.set(CaptureCounter::FilteredFrames as usize, counts.filtered);
        self.block.set(CaptureCounter::DropNoRoom as usize, counts.dropped);
        if self.is_blocked || !std::mem::take(&mut self.has_news) || !self.ring.inject() {
            return;
        }
        self.block.add(CaptureCounter::CallsRung as usize, 1);
        if ringer.ring(&self.bell).is_err() {
            self.is_blocked = true;
            self.block.set(CaptureCounter::IsBlocked as usize, 1);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("id", &self.id).field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

/// A copy of a traced frame that its receiver has not been told of.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Where the trace is.
    traced: PortSlot,
    id: WatchId,
    number: u32,
    to: PortSlot,
    port: PortId,
}

/// A frame that is followed now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Followed {
    traced: PortSlot,
    id: WatchId,
    number: u32,
}

/// The watches of all ports of a worker.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    by_slot: Vec<Vec<Watch>>,
    count: usize,
    pending: Vec<Pending>,
    /// The flooded frame that is followed.
    pub flooded: Option<Followed>,
    has_news: bool,
}

impl Watches {
    /// Somebody looks at some port.
    #[inline]
    pub(crate) const fn is_on(&self) -> bool {
        self.count != 0
    }

    /// There is something to tell readers or others who count.
    #[inline]
    pub(crate) const fn has_news(&self) -> bool {
        self.has_news
    }

    /// Somebody looks at this port.
    pub(crate) fn is_watched(&self, slot: PortSlot) -> bool {
        self.by_slot.get(slot as usize).is_some_and(|watches| !watches.is_empty())
    }

    pub(crate) fn add(&mut self, slot: PortSlot, watch: Box<Watch>) -> Option<Box<Watch>> {
        if self.by_slot.len() <= slot as usize {
            self.by_slot.resize_with(slot as usize + 1, Vec::new);
        }
        let watches = self.by_slot.get_mut(slot as usize).filter(|watches| watches.len() < WATCHES_A_PORT_MAX);
        let Some(watches) = watches else { return Some(watch) };
        watches.push(*watch);
        self.count += 1;
        self.pending.reserve(PENDING_MAX);
        None
    }

    pub(crate) fn remove(&mut self, slot: PortSlot, id: WatchId) -> Option<Box<Watch>> {
        let watches = self.by_slot.get_mut(slot as usize)?;
        let at = watches.iter().position(|watch| watch.id == id)?;
        self.count -= 1;
        self.pending.retain(|pending| pending.id != id);
        Some(Box::new(watches.remove(at)))
    }

    /// Nobody looks at a port any more, because it goes.
    pub(crate) fn clear(&mut self, slot: PortSlot) -> Vec<Watch> {
        self.pending.retain(|pending| pending.traced != slot && pending.to != slot);
        let watches = self.by_slot.get_mut(slot as usize).map(std::mem::take).unwrap_or_default();
        self.count -= watches.len();
        watches
    }

    /// Shows a frame to everyone who captures at a port.
    #[inline]
    pub(crate) fn see(&mut self, slot: PortSlot, packet: &Packet<'_>, way: Way, reason: u8) {
        let Some(watches) = self.by_slot.get_mut(slot as usize) else { return };
        for watch in watches.iter_mut().filter(|watch| watch.purpose == Purpose::Capture) {
            watch.see(packet, way, reason);
            self.has_news = true;
        }
    }

    /// Somebody looks at a port other than this.
    pub(crate) fn is_on_beside(&self, slot: PortSlot) -> bool {
        self.by_slot.get(slot as usize).map_or(0, Vec::len) != self.count
    }

    /// Shows frames to everyone who captures at a port, in order: those from `first` to `end` of a batch.
    #[inline]
    pub(crate) fn see_all(
        &mut self,
        slot: PortSlot,
        batch: &Batch,
        (first, end): (usize, usize),
        way: Way,
        reasons: &[u8; BATCH],
    ) {
        let Some(watches) = self.by_slot.get_mut(slot as usize) else { return };
        for watch in watches.iter_mut().filter(|watch| watch.purpose == Purpose::Capture && !watch.is_blocked) {
            watch.see_all(&batch.starts[first..end], &batch.pieces[first..end], way, &reasons[first..end]);
            self.has_news = true;
        }
    }

    /// Whether a port has a trace that is not over.
    pub(crate) fn follows(&self, slot: PortSlot) -> bool {
        let watches = self.by_slot.get(slot as usize).map(Vec::as_slice).unwrap_or_default();
        watches.iter().any(|watch| watch.is_following())
    }

    /// Begins to follow a frame, if a trace wants it.
    pub(crate) fn follow(&mut self, slot: PortSlot, packet: &Packet<'_>, taken_ns: u64) -> Option<Followed> {
        if self.pending.len() >= PENDING_MAX / 2 {
            return None;
        }
        let watches = self.by_slot.get_mut(slot as usize)?;
        let watch = watches.iter_mut().find(|watch| watch.is_following() && watch.wants(packet).is_some())?;
        let kept = watch.wants(packet)?;
        if !watch.keep(packet, kept, Way::Transmit, 0) {
            return None;
        }
        let number = watch.traced;
        watch.traced += 1;
        watch.stage(Stage::Taken, number, 0, 0, taken_ns);
        self.has_news = true;
        Some(Followed { traced: slot, id: watch.id, number })
    }

    /// Notes a stage of a frame that is followed.
    pub(crate) fn stage(&mut self, followed: Followed, stage: Stage, detail: u32, reason: u8) {
        self.stage_at(followed, stage, detail, reason, moment_ns());
    }

    /// Notes a stage, with the moment it was reached.
    pub(crate) fn stage_at(&mut self, followed: Followed, stage: Stage, detail: u32, reason: u8, time_ns: u64) {
        let watches = self.by_slot.get_mut(followed.traced as usize);
        if let Some(watch) = watches.and_then(|watches| watches.iter_mut().find(|watch| watch.id == followed.id)) {
            watch.stage(stage, followed.number, detail, reason, time_ns);
            self.has_news = true;
        }
    }

    /// A followed frame was copied for a receiver, who is to be told later.
    pub(crate) fn await_news(&mut self, followed: Followed, to: PortSlot, port: PortId) {
        let Followed { traced, id, number } = followed;
        if self.pending.len() < PENDING_MAX {
            self.pending.push(Pending { traced, id, number, to, port });
        }
    }

    /// A receiver was given, or told of, everything it was sent.
    pub(crate) fn told(&mut self, to: PortSlot, stage: Stage) {
        if self.pending.is_empty() {
            return;
        }
        let time_ns = moment_ns();
        let is_over = matches!(stage, Stage::Rung | Stage::Spared);
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain(|&Pending { traced, id, number, to: slot, port }| {
            if slot == to {
                self.stage_at(Followed { traced, id, number }, stage, port.0 as u32, 0, time_ns);
            }
            slot != to || !is_over
        });
        self.pending = pending;
    }

    /// Tells readers that sleep.
    pub(crate) fn tell(&mut self, ringer: &Ringer) {
        self.has_news = false;
        for watch in self.by_slot.iter_mut().flatten() {
            watch.tell(ringer);
        }
    }
}

impl Watch {
    fn is_following(&self) -> bool {
        matches!(self.purpose, Purpose::Trace(frames) if self.traced < frames) && !self.is_blocked
    }
}

fn now_ns(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn moment_ns() -> u64 {
    now_ns(rustix::time::ClockId::Monotonic)
}
