//! The host half of a venet device: a guest's two rings and the frames they point at.
//!
//! ```text
//!   TX ring   guest publishes full buffers   ─▶ load: check, remember where ─▶ (switch) ─▶ return slots, maybe call
//!   RX ring   guest publishes empty buffers  ─▶ claim: check, complete in place ─▶ fill ─▶ return slots, maybe call
//! ```
//!
//! Who writes what: the guest owns all of this memory and may write any of it at any time. The host writes only ring
//! indices and signal words that are its own, slots it completes, and buffers the guest posted. A descriptor is read in
//! one load and believed after `GuestMemory::place`: inside the region, not in its header, not in either ring. A slot with
//! flags goes another way, out of that of plain frames: see [`long`].
//! The danger: two places of one guest may overlap, so bytes move as with `memmove`. Source: vbus venet (`TX`, `RX`).

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use self::long::Long;
use super::Refusal;
use super::batch::{Batch, prefetch_read, prefetch_write};
use super::latency::{Latencies, PortLatency};
use crate::error::{Error, Fault, Result};
use crate::guest::clock::monotonic_ns;
use crate::net::frame::{FRAME_BYTES_MAX, HEADER_BYTES, MTU_MAX, MTU_MIN, MacAddress, START_BYTES, frame_limit};
use crate::net::grant::Grant;
use crate::shm::doorbell::Doorbell;
use crate::shm::intc::PRIORITIES;
use crate::shm::layout::{CACHE_LINE, RAM_HEADER_BYTES, RING_HEADER_BYTES};
use crate::shm::region::Ram;
use crate::shm::ring::{Consumer, Descriptor, RingMemory};
use crate::shm::stamp::Age;
use crate::signals::Caller;
use crate::worker::watchdog::Ringer;

pub(crate) mod long;

/// Slots of a ring on one cache line.
const SLOTS_A_LINE: u32 = (CACHE_LINE / 8) as u32;
/// How far ahead slots that will be completed are asked for. Closer to the guest's end of the ring they are not: it is
/// writing there.
const SLOTS_AHEAD: u32 = 2 * SLOTS_A_LINE;

/// Where a guest put its rings, and how to reach it.
#[derive(Debug)]
pub struct VenetQueues {
    /// The guest's name, for counters; empty: nobody's.
    pub guest: String,
    /// The guest's memory.
    pub ram: Arc<Ram>,
    /// Byte offset and length of the ring of frames from the guest.
    pub tx: (u32, u32),
    /// Byte offset and length of the ring of buffers for the guest.
    pub rx: (u32, u32),
    /// Rung by the guest when it published frames and we sleep. Never read.
    pub tx_kick: Doorbell,
    /// Rung by us when frames were taken and the guest sleeps.
    pub tx_call: Caller,
    /// Rung by the guest when it posted buffers; nobody waits for that, frames without a buffer are dropped.
    pub rx_kick: Doorbell,
    /// Rung by us when frames arrived and the guest sleeps.
    pub rx_call: Caller,
}

/// What can be chosen for a venet port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VenetParams {
    /// The port's own address; all zeroes for none.
    pub mac: MacAddress,
    /// Longest payload of a frame, 68 to 65535 bytes.
    pub mtu: u32,
    /// Returned frames after which a guest that sleeps is told, even if more are waiting; 0 = after every batch.
    pub tx_mitigation: u32,
    /// How long at most the port is polled after its last frame, in µs; 0 = it sleeps at once.
    pub burst_threshold_us: u32,
    /// Frames one turn may take, at least 1.
    pub budget: u32,
    /// 0 to 7: ports of a higher priority get a turn before each turn of one with a lower.
    pub priority: u32,
    /// How long at most the port holds up whoever sends to it while its guest has no room, in µs; 0 = never.
    pub hold_us: u32,
    /// What was agreed on with the driver beyond plain frames; only of venet.
    pub grant: Grant,
}

impl Default for VenetParams {
    fn default() -> Self {
        Self {
            mac: MacAddress::default(),
            mtu: 1500,
            tx_mitigation: 10,
            burst_threshold_us: 50,
            budget: 128,
            priority: 0,
            hold_us: 500,
            grant: Grant::default(),
        }
    }
}

impl VenetParams {
    /// Refuses values that cannot work.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] names the value and its range.
    pub fn check(&self) -> Result<()> {
        if self.mac.is_multicast() {
            return Err(Error::Usage(format!("{} is the address of a group, not of a port", self.mac)));
        }
        check_mtu(self.mtu)?;
        check_budget(self.budget)?;
        check_priority(self.priority)?;
        check_hold(self.hold_us)?;
        check_burst_threshold(self.burst_threshold_us)
    }
}

pub(crate) fn check_mtu(mtu: u32) -> Result<()> {
    if (MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Ok(());
    }
    Err(Error::Usage(format!("an MTU is {MTU_MIN} to {MTU_MAX} bytes; got {mtu}")))
}

pub(crate) fn check_priority(priority: u32) -> Result<()> {
    if priority < PRIORITIES {
        return Ok(());
    }
    Err(Error::Usage(format!("a port's priority is 0 to {}; got {priority}", PRIORITIES - 1)))
}

pub(crate) fn check_budget(budget: u32) -> Result<()> {
    if (1..=BUDGET_MAX).contains(&budget) {
        return Ok(());
    }
    Err(Error::Usage(format!("a port's budget is 1 to {BUDGET_MAX} frames a turn; got {budget}")))
}

pub(crate) fn check_hold(hold_us: u32) -> Result<()> {
    if hold_us <= HOLD_MAX_US {
        return Ok(());
    }
    Err(Error::Usage(format!("a port holds its senders up for at most {HOLD_MAX_US} µs; got {hold_us}")))
}

pub(crate) fn check_burst_threshold(burst_threshold_us: u32) -> Result<()> {
    if burst_threshold_us <= BURST_THRESHOLD_MAX_US {
        return Ok(());
    }
    Err(Error::Usage(format!("a burst threshold is at most {BURST_THRESHOLD_MAX_US} µs; got {burst_threshold_us}")))
}

/// Most frames a turn may take.
pub const BUDGET_MAX: u32 = 4096;
/// Longest a port may hold up whoever sends to it.
pub const HOLD_MAX_US: u32 = 10_000;
/// Longest a port may be polled after its last frame.
pub const BURST_THRESHOLD_MAX_US: u32 = 100_000;

/// A guest's memory and what in it no descriptor may point at.
struct GuestMemory {
    base: NonNull<u8>,
    size: u64,
    /// Both rings and whatever lies between them: the quick test.
    hull: Range<u64>,
    rings: [Range<u32>; 2],
    _ram: Arc<Ram>,
}

// SAFETY: the mapping lives as long as `_ram`, and is accessed by raw copies and atomics only.
unsafe impl Send for GuestMemory {}

impl GuestMemory {
    fn new(ram: &Arc<Ram>, rings: [Range<u32>; 2]) -> std::result::Result<Self, Fault> {
        let [tx, rx] = &rings;
        if tx.start < rx.end && rx.start < tx.end {
            return Err(Fault::OverlapsControl {
                offset: tx.start,
                length: tx.end - tx.start,
                start: rx.start,
                end: rx.end,
            });
        }
        let hull = u64::from(tx.start.min(rx.start))..u64::from(tx.end.max(rx.end));
        Ok(Self { base: ram.at(0, ram.size())?, size: ram.size() as u64, hull, rings, _ram: ram.clone() })
    }

    /// Where a piece of memory named by the guest is mapped.
    #[inline]
    fn place(&self, offset: u32, length: u32) -> std::result::Result<NonNull<u8>, Fault> {
        let start = u64::from(offset);
        let end = start + u64::from(length);
        let is_inside = start >= u64::from(RAM_HEADER_BYTES) && end <= self.size;
        let is_clear = end <= self.hull.start || start >= self.hull.end;
        if !(is_inside && is_clear) {
            self.look_closer(offset, length)?;
        }
        // SAFETY: offset and length were just found to lie inside the mapping.
        Ok(unsafe { self.base.add(offset as usize) })
    }

    #[cold]
    fn look_closer(&self, offset: u32, length: u32) -> std::result::Result<(), Fault> {
        let end = u64::from(offset) + u64::from(length);
        if end > self.size {
            return Err(Fault::OutsideRegion { offset, length, limit: self.size });
        }
        let [tx, rx] = &self.rings;
        for control in [&(0..RAM_HEADER_BYTES), tx, rx] {
            if u64::from(control.start) < end && offset < control.end {
                return Err(Fault::OverlapsControl { offset, length, start: control.start, end: control.end });
            }
        }
        Ok(())
    }
}

/// One guest's rings, worked on by one worker.
pub(crate) struct VenetPort {
    tx: Consumer,
    rx: Consumer,
    memory: GuestMemory,
    /// First slot of the RX ring and the number of the next one to claim: where to fetch ahead.
    rx_slots: NonNull<u64>,
    rx_next: u32,
    /// Longest frame.
    frame_limit: u32,
    is_up: bool,
    tx_mitigation: u32,
    /// Frames returned since the guest was last told.
    uncalled: u32,
    /// It sleeps, and was not rung for what came back.
    wants_call: bool,
    /// Bytes given since the last release, and slots that frames took beyond one each.
    rx_bytes: u64,
    rx_more: u32,
    /// There unless only plain frames were agreed on.
    long: Option<Box<Long>>,
    tx_fault: Option<Fault>,
    rx_fault: Option<Fault>,
    latencies: Latencies,
    tx_kick: Doorbell,
    tx_call: Caller,
    rx_call: Caller,
    _rx_kick: Doorbell,
}

// SAFETY: `rx_slots` is only used to fetch ahead, which touches no memory.
unsafe impl Send for VenetPort {}

impl VenetPort {
    /// Takes the consuming ends of both rings.
    ///
    /// # Errors
    ///
    /// The guest's fault: a ring is not where or what it says.
    pub(crate) fn attach(queues: VenetQueues, params: &VenetParams) -> std::result::Result<Self, Fault> {
        let VenetQueues { guest: _, ram, tx, rx, tx_kick, tx_call, rx_kick, rx_call } = queues;
        let tx_ring = RingMemory::attach(&ram, tx.0, tx.1)?;
        let rx_ring = RingMemory::attach(&ram, rx.0, rx.1)?;
        // Attaching found both inside a region of at most 4 GiB; what ends at 4 GiB is cut by the one byte that cannot
        // be said, and descriptors are bounded by the region anyway.
        let range = |(offset, length): (u32, u32)| offset..offset.saturating_add(length);
        let memory = GuestMemory::new(&ram, [range(tx), range(rx)])?;
        let rx_slots = ram.at(rx.0, RING_HEADER_BYTES)?.cast::<u64>();
        // SAFETY: attaching found the header, and at least one slot behind it, inside the region.
        let rx_slots = unsafe { rx_slots.add(RING_HEADER_BYTES / 8) };
        Ok(Self {
            rx_slots,
            rx_next: 0,
            tx: Consumer::new(tx_ring),
            rx: Consumer::new(rx_ring),
            memory,
            frame_limit: frame_limit(params.mtu),
            is_up: true,
            tx_mitigation: params.tx_mitigation,
            uncalled: 0,
            wants_call: false,
            rx_bytes: 0,
            rx_more: 0,
            long: Long::new(&ram, &params.grant)?,
            tx_fault: None,
            rx_fault: None,
            latencies: Latencies::default(),
            tx_kick,
            tx_call,
            rx_call,
            _rx_kick: rx_kick,
        })
    }

    /// Slots of the TX and the RX ring, and how many of each are in use as far as was looked.
    pub(crate) const fn occupancy(&self) -> [(u32, u32); 2] {
        [(self.tx.slots(), self.tx.known()), (self.rx.slots(), self.rx.known())]
    }

    /// Where it records latencies from now on.
    pub(crate) fn set_latencies(&mut self, latencies: Latencies) {
        self.latencies = latencies;
    }

    pub(crate) const fn set_mtu(&mut self, mtu: u32) {
        self.frame_limit = frame_limit(mtu);
    }

    pub(crate) const fn set_tx_mitigation(&mut self, frames: u32) {
        self.tx_mitigation = frames;
    }

    pub(crate) const fn set_up(&mut self, is_up: bool) {
        self.is_up = is_up;
    }

    pub(crate) const fn kick_bell(&self) -> &Doorbell {
        &self.tx_kick
    }

    /// Wakes the guest, which waits for its slots. What it answered to the last time is recorded.
    pub(crate) fn call_tx<const COUNTS: bool>(&self, ringer: &Ringer) -> std::result::Result<(), Fault> {
        if COUNTS {
            self.latencies.record(PortLatency::GuestWakeup, self.tx.ringing(monotonic_ns()));
        }
        self.tx_call.call(ringer)
    }

    /// Wakes the guest, which waits for frames. As [`Self::call_tx`].
    pub(crate) fn call_rx<const COUNTS: bool>(&self, ringer: &Ringer) -> std::result::Result<(), Fault> {
        if COUNTS {
            self.latencies.record(PortLatency::GuestWakeup, self.rx.ringing(monotonic_ns()));
        }
        self.rx_call.call(ringer)
    }

    /// The guest's doorbell was heard while the port slept.
    pub(crate) fn wake(&self) {
        self.latencies.record(PortLatency::HostWakeup, self.tx.woken_after(monotonic_ns));
    }

    /// Records what the guest has answered meanwhile: before a sleep, after which it may be long until somebody looks.
    fn collect(&mut self) {
        let now_ns = monotonic_ns();
        self.latencies.record(PortLatency::ReceiveResidence, self.rx.reaped_after(now_ns));
        self.latencies.record(PortLatency::GuestWakeup, self.rx.heard_after(now_ns));
        self.latencies.record(PortLatency::GuestWakeup, self.tx.heard_after(now_ns));
    }

    pub(crate) const fn tx_fault(&self) -> Option<Fault> {
        self.tx_fault
    }

    pub(crate) const fn rx_fault(&self) -> Option<Fault> {
        self.rx_fault
    }

    pub(crate) fn break_tx(&mut self, fault: Fault) {
        self.tx_fault.get_or_insert(fault);
    }

    pub(crate) fn break_rx(&mut self, fault: Fault) {
        self.rx_fault.get_or_insert(fault);
    }

    /// Looks at up to `wanted` frames from the guest; they stay in their slots until [`Self::give_back`]. A descriptor
    /// that breaks a rule ends the queue; the frames before it are still good.
    #[inline]
    pub(crate) fn load<const COUNTS: bool>(&mut self, batch: &mut Batch, wanted: usize) -> usize {
        if self.tx_fault.is_some() {
            return 0;
        }
        let mut ready = match self.tx.available() {
            Ok(known) if (known as usize) < wanted => self.refresh_tx::<COUNTS>(),
            known => known,
        }
        .unwrap_or_else(|fault| {
            self.tx_fault = Some(fault);
            0
        }) as usize;
        ready = ready.min(wanted);
        if COUNTS {
            let age = self.tx.published_before(ready as u32, monotonic_ns);
            self.latencies.record(PortLatency::TransmitResidence, age);
        }
        let lonely = if ready == 1 { self.tx.peek_newest() } else { None };
        for (ahead, piece) in batch.pieces.iter_mut().enumerate().take(ready) {
            let descriptor = lonely.unwrap_or_else(|| self.tx.peek(ahead as u32));
            match self.check_tx(descriptor) {
                Ok(source) => {
                    prefetch_read(source.as_ptr());
                    let is_oversize = descriptor.length > self.frame_limit;
                    piece.length = if is_oversize { 0 } else { descriptor.length };
                    piece.source = source.as_ptr();
                }
                Err(fault) => return self.load_long(batch, (ahead, wanted), fault),
            }
        }
        ready
    }

    /// A loaded frame once more, as its descriptor says now: for who looks at what is not forwarded.
    pub(crate) fn loaded(&self, index: u32) -> Option<(*const u8, u32)> {
        if let Some(long) = &self.long
            && let Some(found) = long.loaded(index)
        {
            return Some(found);
        }
        let descriptor = self.tx.peek(index);
        let source = self.check_tx(descriptor).ok()?;
        Some((source.as_ptr().cast_const(), descriptor.length))
    }

    #[inline]
    fn refresh_tx<const COUNTS: bool>(&mut self) -> std::result::Result<u32, Fault> {
        let ready = self.tx.refresh()?;
        if COUNTS && ready != 0 && !self.tx.watch_publishes() {
            self.latencies.record(PortLatency::TransmitResidence, Age::Impossible);
        }
        Ok(ready)
    }

    #[inline]
    fn check_tx(&self, descriptor: Descriptor) -> std::result::Result<NonNull<u8>, Fault> {
        let Descriptor { offset, length, flags } = descriptor;
        if flags != 0 || !(HEADER_BYTES..=FRAME_BYTES_MAX).contains(&length) {
            return Err(wrong_frame(descriptor));
        }
        self.memory.place(offset, length)
    }

    /// Returns the oldest `count` loaded frames to the guest; [`Self::take_wants_call`] tells whether it wants to hear of that.
    #[inline]
    pub(crate) fn give_back(&mut self, count: u32) {
        let slots = self.long.as_deref_mut().map_or(count, |long| long.slots_of(count));
        self.tx.advance(slots);
        self.tx.release();
        self.uncalled += count;
        // Whoever sleeps until slots come back is told at the end of a backlog in any case.
        if self.uncalled < self.tx_mitigation && self.tx.available().is_ok_and(|waiting| waiting != 0) {
            return;
        }
        self.uncalled = 0;
        self.wants_call |= self.tx.notify();
    }

    /// The guest sleeps until frames come back, and some have: ring. Once for each time.
    #[inline]
    pub(crate) const fn take_wants_call(&mut self) -> bool {
        std::mem::replace(&mut self.wants_call, false)
    }

    /// Takes the next posted buffer for a frame of `length` bytes: where to write it. At least 64 bytes may be written.
    #[inline]
    pub(crate) fn claim(&mut self, length: u32) -> std::result::Result<NonNull<u8>, Refusal> {
        if !self.is_up || self.rx_fault.is_some() {
            return Err(if self.rx_fault.is_some() { Refusal::Quarantined } else { Refusal::LinkDown });
        }
        if length > self.frame_limit {
            return Err(Refusal::Oversize);
        }
        let descriptor = match self.rx.available() {
            Ok(0) => return Err(Refusal::NoRoom),
            Ok(posted) => {
                self.fetch_ahead(posted);
                self.rx.peek(0)
            }
            Err(fault) => return Err(self.refuse_rx(fault)),
        };
        let target = match self.check_rx(descriptor) {
            Ok(target) => target,
            Err(fault) => return Err(self.refuse_rx(fault)),
        };
        if descriptor.length < length {
            return Err(Refusal::BufferTooSmall);
        }
        self.rx.complete(0, Descriptor::new(descriptor.offset, length));
        self.rx.advance(1);
        self.rx_next = self.rx_next.wrapping_add(1);
        self.rx_bytes += u64::from(length);
        Ok(target)
    }

    /// Asks for slots that will be completed soon, for writing: once instead of for reading first.
    #[inline]
    fn fetch_ahead(&self, posted: u32) {
        if self.rx_next.is_multiple_of(SLOTS_A_LINE) && posted > SLOTS_AHEAD + SLOTS_A_LINE {
            let ahead = self.rx_next.wrapping_add(SLOTS_AHEAD) & (self.rx.slots() - 1);
            prefetch_write(self.rx_slots.as_ptr().wrapping_add(ahead as usize).cast());
        }
    }

    #[inline]
    fn check_rx(&self, descriptor: Descriptor) -> std::result::Result<NonNull<u8>, Fault> {
        let Descriptor { offset, length, flags } = descriptor;
        if flags != 0 || (length as usize) < START_BYTES {
            return Err(wrong_buffer(descriptor));
        }
        self.memory.place(offset, length)
    }

    #[cold]
    fn refuse_rx(&mut self, fault: Fault) -> Refusal {
        self.break_rx(fault);
        Refusal::Quarantined
    }

    /// Frames and bytes claimed since the last [`Self::release_rx`].
    pub(crate) const fn unreleased(&self) -> (u64, u64) {
        ((self.rx.held() - self.rx_more) as u64, self.rx_bytes)
    }

    /// Gives the claimed buffers to the guest, filled. `true`: it sleeps, ring.
    #[inline]
    pub(crate) fn release_rx<const COUNTS: bool>(&mut self) -> bool {
        let held = self.rx.held();
        if held == 0 {
            return false;
        }
        (self.rx_bytes, self.rx_more) = (0, 0);
        if COUNTS && self.rx.is_stamp_due() {
            self.stamp_rx();
        }
        self.rx.release();
        let wants_call = self.rx.notify();
        if held == 1 {
            self.expect_one();
        }
        wants_call
    }

    /// Asks for the first line of the buffer that the next frame goes into, while there is time.
    #[inline]
    fn expect_one(&self) {
        if self.rx.known() != 0
            && let Ok(target) = self.check_rx(self.rx.peek(0))
        {
            prefetch_write(target.as_ptr());
        }
    }

    #[cold]
    fn stamp_rx(&mut self) {
        let age = self.rx.stamp(monotonic_ns());
        self.latencies.record(PortLatency::ReceiveResidence, age);
    }

    /// Returns every posted buffer with length 0 and without a signal: how many.
    pub(crate) fn flush_rx(&mut self) -> u32 {
        if self.rx_fault.is_some() {
            return 0;
        }
        let posted = self.rx.refresh().unwrap_or_else(|fault| {
            self.rx_fault = Some(fault);
            0
        });
        for ahead in 0..posted {
            let descriptor = self.rx.peek(ahead);
            self.rx.complete(ahead, Descriptor::new(descriptor.offset, 0));
        }
        self.rx.advance(posted);
        self.rx_next = self.rx_next.wrapping_add(posted);
        self.rx.release();
        posted
    }

    /// Asks the guest to kick. `true`: there is nothing to do now, or never again.
    pub(crate) fn arm<const COUNTS: bool>(&mut self) -> bool {
        if self.tx_fault.is_some() {
            return true;
        }
        if COUNTS {
            self.collect();
        }
        self.tx.arm().unwrap_or_else(|fault| {
            self.tx_fault = Some(fault);
            true
        })
    }

    /// No more kicks wanted: the port is polled.
    pub(crate) fn disarm(&self) {
        self.tx.listener().mask();
    }
}

impl fmt::Debug for VenetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VenetPort")
            .field("tx", &self.tx)
            .field("rx", &self.rx)
            .field("tx_fault", &self.tx_fault)
            .field("rx_fault", &self.rx_fault)
            .finish_non_exhaustive()
    }
}

#[cold]
fn wrong_frame(descriptor: Descriptor) -> Fault {
    let Descriptor { offset, length, flags } = descriptor;
    if flags != 0 {
        Fault::UnknownFlags { flags }
    } else if length == 0 {
        Fault::ZeroLength { offset }
    } else if length < HEADER_BYTES {
        Fault::TooShort { length, limit: HEADER_BYTES }
    } else {
        Fault::TooLong { length, limit: FRAME_BYTES_MAX }
    }
}

#[cold]
fn wrong_buffer(descriptor: Descriptor) -> Fault {
    let Descriptor { offset, length, flags } = descriptor;
    if flags != 0 {
        Fault::UnknownFlags { flags }
    } else if length == 0 {
        Fault::ZeroLength { offset }
    } else {
        Fault::TooShort { length, limit: START_BYTES as u32 }
    }
}
