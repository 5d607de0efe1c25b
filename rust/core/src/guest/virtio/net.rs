//! The driver half of a virtio network card: two split virtqueues, in batches, of whole frames.
//!
//! ```text
//!   block ┌ TX queue ┬ RX queue ┬ TX buffers, one a descriptor ┬ RX buffers, one a descriptor ┐
//!         └──────────┴──────────┴──── … 12 bytes header, frame ┴──────────────────────────────┘
//!   send     length into a free descriptor · its number into the available ring · index once a batch · kick if wanted
//!   receive  used entries, checked · frame handed over · number into the available ring again
//! ```
//!
//! Registers go through the crate's transport ([`super::transport`]); the queue is our own. The crate's shows the device each
//! buffer by itself, with an index store and a fence, and shares it by looking it up in the arena; its network driver waits
//! for every frame it sends. Here a descriptor has its buffer for good, so a frame costs one length and one number, and a
//! batch one index and one fence.
//!
//! A frame begins on a cache line, with its header right before it. Headers of TX buffers are zero, and so they are again when
//! a frame that left something to the device has come back: see [`long`], which has all that is not one plain frame in one
//! buffer. Only a driver that asked for it gets there.
//!
//! Who writes what: the guest all of this memory but used rings and posted buffers, which are the device's. Used entries are
//! checked against what was posted; a device that lies costs us the card, not our memory.
//! Source: virtio 1.2 §2.7, §5.1.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_drivers::PAGE_SIZE;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

use super::arena::Arena;
use super::disk::driver_error;
use super::transport::{ALIVE, BusTransport, QueueEnds, Registers, Tally};
use crate::error::{Error, Fault, Result};
use crate::guest::nic::{ETHERNET_HEADER, Held, MTU_MAX, MTU_MIN, Stage, Totals, frame_limit, look_for};
use crate::guest::pieces::no_views;
use crate::net::frame::FRAME_BYTES_MAX;
use crate::net::grant::Grant;
use crate::net::offload::{Features, NO_REQUEST, OFFLOAD_HEADER_BYTES};
use crate::shm::doorbell::Doorbell;
use crate::shm::layout::CACHE_LINE;
use crate::shm::line;
use crate::virtio::driver::{DriverBuffers, DriverRing, FRAME_AT, HEADER, RingPlaces, WRITE};
use crate::virtio::net::{grant_of, offload_bits};

mod long;

use long::Merging;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Most buffers posted again that the device is not shown at once.
const ANNOUNCE_MAX: u16 = 32;

const WANTED: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_STATUS;

/// Least room of buffers that one frame may take several of: with what is before it, a page.
const LONG_ROOM: u32 = PAGE_SIZE as u32 - FRAME_AT;

/// Bytes of a frame that one buffer has room for. Half of the buffers of a driver that asks for offloads hold any frame.
fn buffer_room(mtu: u32, slots: u32, has_offloads: bool) -> u32 {
    let limit = frame_limit(mtu);
    let half = FRAME_BYTES_MAX.div_ceil(slots / 2);
    if has_offloads { limit.max(LONG_ROOM).max(half) } else { limit }
}

/// Bytes of a block for a card of this MTU, whole pages; `has_offloads`: of a driver that asks for any.
///
/// # Errors
///
/// [`Error::Usage`]: MTU or slots cannot be, or they need 4 GiB.
pub fn block_bytes(mtu: u32, slots: u32, has_offloads: bool) -> Result<u32> {
    if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Err(Error::Usage(format!("a network card's MTU is {MTU_MIN} to {MTU_MAX}; got {mtu}")));
    }
    if !slots.is_power_of_two() || !(2..=SLOTS_MAX).contains(&slots) {
        return Err(Error::Usage(format!("a virtqueue has a power of two of slots, 2 to {SLOTS_MAX}; got {slots}")));
    }
    let stride = DriverBuffers::stride(buffer_room(mtu, slots, has_offloads));
    let buffers = (u64::from(slots) * u64::from(stride)).next_multiple_of(PAGE_SIZE as u64);
    u32::try_from(2 * (buffers + u64::from(RingPlaces::bytes(slots))))
        .map_err(|_| Error::Usage(format!("MTU {mtu} with {slots} slots needs more than 4 GiB; take fewer slots")))
}

/// Most slots of a queue.
pub const SLOTS_MAX: u32 = 1024;

/// A driver that was started.
#[derive(Debug)]
pub struct Started {
    /// Its sending half.
    pub sender: Sender,
    /// Its receiving half.
    pub receiver: Receiver,
    /// The card's address.
    pub mac: [u8; 6],
    /// Largest packet.
    pub mtu: u32,
    /// What its transport did and does.
    pub tally: Arc<Tally>,
}

/// Starts the driver of an open device, in an arena of its own, with `slots` entries in each queue. Each half reaches
/// registers by its own way, for they may run on two threads. `wanted` is what the driver wants to leave to the device, and to
/// be left with; with any of it come frames in pieces, each way.
///
/// # Errors
///
/// [`Error::Usage`]: it is no network card, or the arena is too small. [`Error::Peer`]: it answered what cannot be. Otherwise
/// what registers ran into.
pub fn start(
    registers: Arc<dyn Registers>,
    halves: [Arc<dyn Registers>; 2],
    arena: &Arc<Arena>,
    slots: u32,
    wanted: Features,
) -> Result<Started> {
    let mut transport = BusTransport::open(registers, arena)?;
    if transport.device_type() != DeviceType::Network {
        return Err(Error::Usage(format!("this is no network card but a {:?}", transport.device_type())));
    }
    let failure = transport.failure();
    let features = transport.agree_on(|offered| WANTED | offload_bits(offered, wanted))?;
    if transport.config_bytes() < HEADER as usize {
        let found = transport.config_bytes() as u64;
        return Err(Fault::BadSize { what: "configuration of a network card", found, limit: HEADER.into() }.into());
    }
    let low = transport.read_config_space::<u32>(0);
    let high = transport.read_config_space::<u16>(4);
    let mtu = transport.read_config_space::<u16>(10);
    failure.take()?;
    let (low, high) = (low.map_err(driver_error)?.to_le_bytes(), high.map_err(driver_error)?.to_le_bytes());
    let mtu = match u32::from(mtu.map_err(driver_error)?) {
        _ if features & 1 << VIRTIO_NET_F_MTU == 0 => 1500,
        mtu if (MTU_MIN..=MTU_MAX).contains(&mtu) => mtu,
        found => {
            return Err(
                Fault::BadSize { what: "MTU of a network card", found: found.into(), limit: MTU_MAX.into() }.into()
            );
        }
    };
    block_bytes(mtu, slots, !wanted.is_empty())?;
    let room = buffer_room(mtu, slots, !wanted.is_empty());
    let grant = Grant { is_scattered: !wanted.is_empty(), ..grant_of(features) };
    let has_event_index = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
    let mut rings = Vec::with_capacity(2);
    for queue in [RECEIVE, TRANSMIT] {
        rings.push(lay_out(arena, &mut transport, queue, slots, has_event_index)?);
        failure.take()?;
    }
    let buffers = [take_buffers(arena, room, slots)?, take_buffers(arena, room, slots)?];
    transport.set_status(DeviceStatus::from_bits_retain(ALIVE));
    failure.take()?;
    let tally = transport.tally();
    let [for_sender, for_receiver] = halves;
    let mut ends = |queue, registers| {
        transport.take_ends(queue, registers).ok_or_else(|| Error::Usage("a virtqueue has no signal".into()))
    };
    let (rx_ends, tx_ends) = (ends(RECEIVE, for_receiver)?, ends(TRANSMIT, for_sender)?);
    let (tx, rx) = (rings.pop(), rings.pop());
    let (Some(tx), Some(rx)) = (tx, rx) else { return Err(Error::Usage("a network card has two queues".into())) };
    let [tx_buffers, rx_buffers] = buffers;
    let limit = frame_limit(mtu);
    let mut sender = Sender {
        ring: tx,
        buffers: tx_buffers,
        free: (0..slots as u16).rev().collect(),
        lent: vec![Lent::No; slots as usize].into_boxed_slice(),
        chained: vec![None; slots as usize].into_boxed_slice(),
        under_way: 0,
        claimed: None,
        grant,
        limit,
        limit_max: limit,
        ends: tx_ends,
        totals: Totals::default(),
    };
    sender.prepare();
    let mut receiver = Receiver {
        ring: rx,
        buffers: rx_buffers,
        is_posted: vec![false; slots as usize].into_boxed_slice(),
        posted: 0,
        room,
        merging: Merging::new(&grant),
        ends: rx_ends,
        totals: Totals::default(),
    };
    receiver.prepare();
    receiver.announce_all()?;
    Ok(Started { sender, receiver, mac: [low[0], low[1], low[2], low[3], high[0], high[1]], mtu, tally })
}

/// Takes a ring from the arena and tells the device where it is.
fn lay_out(
    arena: &Arc<Arena>,
    transport: &mut BusTransport,
    queue: u16,
    slots: u32,
    has_event_index: bool,
) -> Result<DriverRing> {
    let most = transport.max_queue_size(queue);
    if most < slots {
        return Err(Error::Usage(format!("queue {queue} of this device has {most} slots at most; {slots} are wanted")));
    }
    let start = arena.allocate(RingPlaces::bytes(slots), PAGE_SIZE as u32).ok_or_else(too_small)?;
    let ring = DriverRing::new(arena.ram(), start, slots, has_event_index)?;
    let RingPlaces { descriptors, available, used } = RingPlaces::at(start, slots);
    transport.queue_set(queue, slots, descriptors.into(), available.into(), used.into());
    Ok(ring)
}

/// Takes buffers from the arena.
fn take_buffers(arena: &Arc<Arena>, room: u32, slots: u32) -> Result<DriverBuffers> {
    let bytes = DriverBuffers::stride(room) * slots;
    let offset = arena.allocate(bytes, CACHE_LINE as u32).ok_or_else(too_small)?;
    Ok(DriverBuffers::new(arena.ram(), offset, room, slots)?)
}

#[cold]
fn too_small() -> Error {
    Error::Usage("the block of memory for a network card's driver is too small".into())
}

/// The sending half.
#[derive(Debug)]
pub struct Sender {
    ring: DriverRing,
    buffers: DriverBuffers,
    /// Descriptors that nobody has, the last one returned on top: its buffer is warm.
    free: Vec<u16>,
    /// Which the device has, or will have with the next flush.
    lent: Box<[Lent]>,
    /// The next descriptor of the same chain: our own notes, which no device can change.
    chained: Box<[Option<u16>]>,
    /// Shown and not returned, as last seen.
    under_way: u16,
    claimed: Option<u16>,
    grant: Grant,
    limit: u32,
    limit_max: u32,
    ends: QueueEnds,
    totals: Totals,
}

/// What the device has of a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Lent {
    /// Nothing, or it is no head.
    #[default]
    No,
    /// A plain frame in its buffer.
    Plain,
    /// The head of a chain, or a header that asks for something.
    Long,
}

/// How many frames ahead the lines of a buffer are asked for.
const ASK_AHEAD: usize = 4;

impl Sender {
    /// Describes every buffer for good.
    fn prepare(&mut self) {
        for id in 0..self.ring.size {
            self.restore(id);
        }
        self.ring.disarm();
    }

    /// Describes the buffer of a descriptor that the device does not have, with a header that asks for nothing.
    fn restore(&self, id: u16) {
        let address = u64::from(self.buffers.offset(id) - HEADER);
        self.ring.describe(id, address, HEADER, 0, 0);
        // SAFETY: the header's bytes before a frame that lies in our buffers.
        unsafe { self.buffers.frame(id).sub(HEADER as usize).write_bytes(0, HEADER as usize) };
    }

    pub(crate) const fn limit(&self) -> u32 {
        self.limit
    }

    pub(crate) fn set_mtu(&mut self, mtu: u32) {
        self.limit = frame_limit(mtu.min(MTU_MAX)).min(self.limit_max);
    }

    #[inline]
    fn check(&self, length: usize) -> Result<u32> {
        match u32::try_from(length) {
            Ok(length) if (ETHERNET_HEADER..=self.limit).contains(&length) => Ok(length),
            _ => Err(no_frame(length, self.limit)),
        }
    }

    /// Takes back what the device is done with. `true`: some came back.
    fn reclaim(&mut self) -> std::result::Result<bool, Fault> {
        let ready = self.ring.ready(self.under_way)?;
        for _ in 0..ready {
            let (id, _) = self.ring.take()?;
            match std::mem::take(&mut self.lent[usize::from(id)]) {
                Lent::Plain => self.free.push(id),
                Lent::Long => self.unchain(id),
                Lent::No => return Err(Fault::IndexOutOfRange { index: id.into(), limit: self.ring.size.into() }),
            }
            self.under_way -= 1;
        }
        Ok(ready != 0)
    }

    /// A descriptor that nobody has.
    #[inline]
    fn take(&mut self) -> std::result::Result<Option<u16>, Fault> {
        if self.free.is_empty() && !self.reclaim()? {
            return Ok(None);
        }
        Ok(self.free.pop())
    }

    fn put(&mut self, id: u16, length: u32) {
        self.ring.set_length(id, HEADER + length);
        self.ring.put(id);
        self.lent[usize::from(id)] = Lent::Plain;
        self.totals.frames += 1;
        self.totals.bytes += u64::from(length);
    }

    #[inline(always)]
    pub(crate) fn burst<T>(&mut self, _expected: u32, work: impl FnOnce(&mut Burst<'_>) -> T) -> T {
        work(&mut Burst { sender: self })
    }

    pub(crate) fn send<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) -> Result<usize> {
        let mut sent = 0;
        let outcome = self.burst(1, |burst| {
            for frame in frames {
                if !burst.stage(frame)? {
                    break;
                }
                sent += 1;
            }
            Ok(())
        });
        self.flush()?;
        outcome.map(|()| sent)
    }

    #[expect(clippy::unused_self, reason = "as every driver has it")]
    pub(crate) const fn expect(&self) {}

    #[expect(clippy::unused_self, reason = "as every driver has it")]
    pub(crate) const fn stop_stamping(&self) {}

    pub(crate) fn claim(&mut self, length: usize) -> Result<Option<u32>> {
        self.check(length)?;
        self.claimed = self.take()?;
        Ok(self.claimed.map(|id| self.buffers.offset(id)))
    }

    pub(crate) fn commit(&mut self, _offset: u32, length: u32) {
        if let Some(id) = self.claimed.take() {
            self.put(id, length);
        }
    }

    pub(crate) fn cancel(&mut self) {
        self.free.extend(self.claimed.take());
    }

    #[inline]
    pub(crate) fn flush(&mut self) -> Result<()> {
        let unshown = self.ring.unshown();
        if unshown == 0 {
            return Ok(());
        }
        self.under_way += unshown;
        if self.ring.show() && self.ends.kick()? {
            self.totals.kicks += 1;
        }
        Ok(())
    }

    pub(crate) fn arm(&mut self) -> Result<bool> {
        self.ends.acknowledge();
        let is_idle = !self.reclaim()? && self.ring.arm(self.under_way)? && self.ends.arm();
        if !is_idle {
            self.ring.disarm();
        }
        Ok(is_idle)
    }

    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        if self.under_way == 0 || !self.arm()? {
            return Ok(true);
        }
        self.totals.sleeps += 1;
        let rung = self.ends.wait(timeout)?;
        self.ring.disarm();
        Ok(rung)
    }

    pub(crate) fn pending(&mut self) -> Result<u32> {
        while self.reclaim()? {}
        Ok(self.in_flight())
    }

    pub(crate) const fn in_flight(&self) -> u32 {
        self.under_way as u32
    }

    /// What wakes this half; always there.
    #[must_use]
    pub fn call_bell(&self) -> Option<&Doorbell> {
        Some(self.ends.bell())
    }

    pub(crate) const fn totals(&self) -> Totals {
        self.totals
    }
}

#[cold]
fn no_frame(length: usize, limit: u32) -> Error {
    Error::Usage(format!("a frame here is {ETHERNET_HEADER} to {limit} bytes, header included; got {length}"))
}

/// Frames of one [`Sender`] on their way into the queue.
pub struct Burst<'a> {
    sender: &'a mut Sender,
}

impl Stage for Burst<'_> {
    #[inline(always)]
    fn stage_with(&mut self, length: usize, fill: impl FnOnce(&mut [u8])) -> Result<bool> {
        let Self { sender } = self;
        let bytes = sender.check(length)?;
        let Some(id) = sender.take()? else { return Ok(false) };
        if let Some(&ahead) = sender.free.get(sender.free.len().wrapping_sub(ASK_AHEAD))
            && let Some(place) = NonNull::new(sender.buffers.frame(ahead))
        {
            line::fetch_to_write(place, length);
        }
        // SAFETY: the buffer has room for the longest frame, and is ours until the device was shown its descriptor.
        fill(unsafe { std::slice::from_raw_parts_mut(sender.buffers.frame(id), length) });
        sender.put(id, bytes);
        Ok(true)
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    ring: DriverRing,
    buffers: DriverBuffers,
    is_posted: Box<[bool]>,
    posted: u16,
    /// Bytes that each buffer has room for behind a header.
    room: u32,
    merging: Merging,
    ends: QueueEnds,
    totals: Totals,
}

impl Receiver {
    /// Describes every buffer for good, and posts it.
    fn prepare(&mut self) {
        for id in 0..self.ring.size {
            let address = u64::from(self.buffers.offset(id) - HEADER);
            self.ring.describe(id, address, HEADER + self.room, WRITE, 0);
            self.post(id);
        }
        self.ring.disarm();
    }

    fn post(&mut self, id: u16) {
        self.ring.put(id);
        self.is_posted[usize::from(id)] = true;
        self.posted += 1;
    }

    /// The next buffer that came back, checked against what was posted, and the bytes written to it.
    #[inline]
    fn used(&mut self) -> std::result::Result<(u16, u32), Fault> {
        let (id, written) = self.ring.take()?;
        if !std::mem::take(&mut self.is_posted[usize::from(id)]) {
            return Err(Fault::IndexOutOfRange { index: id.into(), limit: self.ring.size.into() });
        }
        self.posted -= 1;
        let limit = HEADER + self.room;
        if written > limit { Err(Fault::TooLong { length: written, limit }) } else { Ok((id, written)) }
    }

    /// The next frame that came, or its beginning: its buffer, and its bytes behind a header.
    #[inline]
    fn next(&mut self) -> std::result::Result<(u16, u32), Fault> {
        let (id, written) = self.used()?;
        match written.checked_sub(HEADER) {
            Some(length) => Ok((id, length)),
            None => Err(Fault::TooShort { length: written, limit: HEADER }),
        }
    }

    /// Asks for the first lines of frames that are about to be looked at.
    #[inline]
    fn ask_ahead(&self, ready: u16) {
        for ahead in 0..ready {
            let index = usize::from(self.ring.seen.wrapping_add(ahead) & (self.ring.size - 1));
            let id = self.ring.peek(index);
            if id < self.ring.size.into()
                && let Some(place) = NonNull::new(self.buffers.frame(id as u16))
            {
                line::fetch_to_read(place, 1);
            }
        }
    }

    #[inline]
    pub(crate) fn receive(&mut self, max: u32, mut each: impl FnMut(&[u8])) -> Result<u32> {
        if self.merging.is_on() {
            return self.receive_merging(max, |frame, _| each(frame));
        }
        let ready = u32::from(self.ring.ready(self.posted)?).min(max) as u16;
        if ready == 0 {
            return Ok(0);
        }
        self.ask_ahead(ready);
        let mut frames = 0;
        for _ in 0..ready {
            let (id, length) = self.next()?;
            if length != 0 {
                // SAFETY: within the buffer, which the device gave back and which is not posted. A host that writes there
                // all the same changes bytes that we hand to the user, never our bookkeeping.
                each(unsafe { std::slice::from_raw_parts(self.buffers.frame(id), length as usize) });
                frames += 1;
                self.totals.bytes += u64::from(length);
            }
            self.post(id);
        }
        self.totals.frames += u64::from(frames);
        self.announce()?;
        Ok(frames)
    }

    /// As [`Self::receive`], with what is left to be done with each frame.
    #[inline]
    pub(crate) fn receive_long(
        &mut self,
        max: u32,
        mut each: impl FnMut(&[u8], &[u8; OFFLOAD_HEADER_BYTES]),
    ) -> Result<u32> {
        if self.merging.is_on() {
            return self.receive_merging(max, each);
        }
        self.receive(max, |frame| each(frame, &NO_REQUEST))
    }

    pub(crate) fn hold(&mut self, max: u32, held: &mut Vec<Held>) -> Result<u32> {
        if self.merging.is_on() {
            return Err(no_views());
        }
        let ready = u32::from(self.ring.ready(self.posted)?).min(max);
        let mut frames = 0;
        for _ in 0..ready {
            let (id, length) = self.next()?;
            if length == 0 {
                self.post(id);
                continue;
            }
            frames += 1;
            self.totals.frames += 1;
            self.totals.bytes += u64::from(length);
            held.push(Held { buffer: id.into(), offset: self.buffers.offset(id), length });
        }
        self.announce()?;
        Ok(frames)
    }

    pub(crate) fn give_back(&mut self, buffer: u32) -> Result<()> {
        let is_held = self.is_posted.get(buffer as usize) == Some(&false);
        if is_held {
            self.post(buffer as u16);
        }
        self.announce()
    }

    /// Shows the device the buffers posted again, a few at a time while most are out there.
    #[inline]
    fn announce(&mut self) -> Result<()> {
        let enough = (self.ring.size / 8).clamp(1, ANNOUNCE_MAX);
        let unshown = self.ring.unshown();
        let has_few = self.posted - unshown < self.ring.size / 2;
        if unshown >= enough || (has_few && unshown != 0) { self.announce_all() } else { Ok(()) }
    }

    fn announce_all(&mut self) -> Result<()> {
        if self.ring.show() && self.ends.kick()? {
            self.totals.kicks += 1;
        }
        Ok(())
    }

    pub(crate) fn arm(&mut self) -> Result<bool> {
        self.ends.acknowledge();
        let is_idle = self.ring.arm(self.posted)? && self.ends.arm();
        if !is_idle {
            self.ring.disarm();
        }
        Ok(is_idle)
    }

    pub(crate) fn mask(&self) {
        self.ring.disarm();
        // Who cannot reach its registers finds out with its next kick.
        let _ = self.ends.wake();
    }

    pub(crate) fn wait(&mut self, spin: Duration, timeout: Option<Duration>) -> Result<bool> {
        let start = Instant::now();
        let spin = timeout.map_or(spin, |limit| spin.min(limit));
        let posted = self.posted;
        if look_for(spin, || Ok(self.ring.ready(posted)? != 0))? || !self.arm()? {
            return Ok(true);
        }
        self.totals.sleeps += 1;
        let rung = self.ends.wait(timeout.map(|limit| limit.saturating_sub(start.elapsed())))?;
        self.ring.disarm();
        Ok(rung)
    }

    /// What wakes this half; always there.
    #[must_use]
    pub fn call_bell(&self) -> Option<&Doorbell> {
        Some(self.ends.bell())
    }

    pub(crate) const fn totals(&self) -> Totals {
        self.totals
    }
}
