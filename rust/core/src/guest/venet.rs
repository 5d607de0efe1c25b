//! The driver half of a venet device: puts frames into the guest's own memory and takes frames out of it.
//!
//! ```text
//!   start ┌─────────┬─────────┬─────────────────────┬───────────────────────────┐
//!         │ TX ring │ RX ring │ send arena          │ receive buffers           │
//!         └─────────┴─────────┴─────────────────────┴───────────────────────────┘ start + bytes
//! ```
//!
//! Who writes what: the guest is the producer of both rings and owns all of this memory. A frame to send is written
//! into the arena and published; its bytes belong to the host until its slot comes back. Receive buffers are published
//! empty, the host fills them and completes the slot in place. Completions are checked against what was posted: a host
//! that lies costs us the device, not our memory.
//!
//! Sending and receiving are two types, so that two threads can do them without a lock. Source: venet, `docs/wire/venet.md`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Fault, Result};
use crate::shm::doorbell::Doorbell;
use crate::shm::layout::{CACHE_LINE, LINE_PAIR, RAM_HEADER_BYTES, ring_bytes};
use crate::shm::line;
use crate::shm::pool::{BufferPool, SendArena};
use crate::shm::region::Ram;
use crate::shm::ring::{Descriptor, Producer, RingMemory};

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: u32 = 14;
/// Bytes a VLAN tag adds.
pub const VLAN_TAG: u32 = 4;
/// Largest MTU.
pub const MTU_MAX: u32 = 65_535;
/// Most posted buffers that the host is not shown at once.
const ANNOUNCE_MAX: u32 = 32;
/// How far ahead of the frame being written the lines of later ones are asked for: enough for the transfers between two
/// cores to overlap, little enough to stay in the first cache.
const ASK_AHEAD_BYTES: u32 = 512;
/// Smallest MTU: what IPv4 demands.
pub const MTU_MIN: u32 = 68;

/// Longest frame a device of this MTU carries.
#[must_use]
pub const fn frame_limit(mtu: u32) -> u32 {
    mtu + ETHERNET_HEADER + VLAN_TAG
}

/// Where the parts of one venet device lie in the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VenetLayout {
    /// Largest MTU the buffers are made for.
    pub mtu: u32,
    /// Slots of the TX ring.
    pub tx_slots: u32,
    /// Slots of the RX ring.
    pub rx_slots: u32,
    /// First byte of the TX ring.
    pub tx_offset: u32,
    /// First byte of the RX ring.
    pub rx_offset: u32,
    /// First byte of the send arena.
    pub arena_offset: u32,
    /// Bytes of the send arena.
    pub arena_bytes: u32,
    /// First byte of the receive buffers.
    pub buffers_offset: u32,
    /// Receive buffers: one a slot, and some that may be held as views.
    pub buffers: u32,
    /// One past the last byte.
    pub end: u32,
}

impl VenetLayout {
    /// Lays a device out from byte `start` on (0: right behind the RAM header).
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the MTU is not 68 to 65535, slots are no power of two up to 32768, or 4 GiB are exceeded.
    pub fn plan(start: u32, mtu: u32, tx_slots: u32, rx_slots: u32) -> Result<Self> {
        if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
            return Err(Error::Usage(format!("a venet device's MTU is {MTU_MIN} to {MTU_MAX}; got {mtu}")));
        }
        for slots in [tx_slots, rx_slots] {
            if !slots.is_power_of_two() || slots > crate::shm::layout::RING_SLOTS_MAX {
                return Err(Error::Usage(format!("a ring has a power of two of slots, at most 32768; got {slots}")));
            }
        }
        let limit = frame_limit(mtu);
        let line = CACHE_LINE as u32;
        let buffers = rx_slots + (rx_slots / 4).max(1);
        let tx_offset = u64::from(start.max(RAM_HEADER_BYTES)).next_multiple_of(LINE_PAIR as u64);
        let rx_offset = (tx_offset + ring_bytes(tx_slots) as u64).next_multiple_of(LINE_PAIR as u64);
        let arena_offset = (rx_offset + ring_bytes(rx_slots) as u64).next_multiple_of(RAM_HEADER_BYTES.into());
        let arena_bytes = u64::from(tx_slots) * u64::from(limit.next_multiple_of(line));
        let buffers_offset = arena_offset + arena_bytes;
        let end = buffers_offset + u64::from(buffers) * u64::from(BufferPool::stride_for(limit));
        let narrow = |value: u64| {
            u32::try_from(value).map_err(|_| {
                Error::Usage(format!(
                    "MTU {mtu} with {tx_slots}+{rx_slots} slots needs {end} bytes of RAM; take fewer slots"
                ))
            })
        };
        Ok(Self {
            mtu,
            tx_slots,
            rx_slots,
            tx_offset: narrow(tx_offset)?,
            rx_offset: narrow(rx_offset)?,
            arena_offset: narrow(arena_offset)?,
            arena_bytes: narrow(arena_bytes)?,
            buffers_offset: narrow(buffers_offset)?,
            buffers,
            end: narrow(end)?,
        })
    }

    /// Bytes of the TX ring.
    #[must_use]
    pub const fn tx_bytes(&self) -> u32 {
        ring_bytes(self.tx_slots) as u32
    }

    /// Bytes of the RX ring.
    #[must_use]
    pub const fn rx_bytes(&self) -> u32 {
        ring_bytes(self.rx_slots) as u32
    }

    /// Bytes of a RAM that holds this device and nothing behind it.
    #[must_use]
    pub const fn ram_bytes(&self) -> u64 {
        (self.end as u64).next_multiple_of(RAM_HEADER_BYTES as u64)
    }
}

/// The two eventfds of one ring.
#[derive(Debug)]
pub struct Bells {
    /// Wakes the host.
    pub kick: Doorbell,
    /// Wakes us.
    pub call: Doorbell,
}

/// What a half has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames sent or received.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Times the host was woken.
    pub kicks: u64,
    /// Times we slept.
    pub sleeps: u64,
}

/// Makes both halves of a driver: formats the rings in `ram` and posts the receive buffers.
///
/// # Errors
///
/// [`Error::Usage`]: the layout does not fit into `ram`.
pub fn open(ram: &Arc<Ram>, layout: VenetLayout) -> Result<(Sender, Receiver)> {
    if layout.end as usize > ram.size() {
        return Err(Error::Usage(format!(
            "the device needs {} bytes of guest RAM, there are {}; give the guest more or take fewer slots",
            layout.end,
            ram.size()
        )));
    }
    let limit = frame_limit(layout.mtu);
    let tx = RingMemory::format(ram, layout.tx_offset, layout.tx_slots)?;
    let rx = RingMemory::format(ram, layout.rx_offset, layout.rx_slots)?;
    let sender = Sender {
        ram: ram.clone(),
        ring: Producer::new(tx),
        arena: SendArena::new(layout.arena_offset, layout.arena_bytes, layout.tx_slots),
        limit,
        limit_max: limit,
        bells: None,
        totals: Totals::default(),
    };
    let stride = BufferPool::stride_for(limit);
    let mut receiver = Receiver {
        ram: ram.clone(),
        ring: Producer::new(rx),
        pool: BufferPool::new(layout.buffers_offset, stride, limit, layout.buffers),
        posted: vec![0; layout.rx_slots as usize].into_boxed_slice(),
        limit,
        bells: None,
        totals: Totals::default(),
    };
    receiver.refill();
    receiver.ring.publish();
    Ok((sender, receiver))
}

/// The sending half.
pub struct Sender {
    ram: Arc<Ram>,
    ring: Producer,
    arena: SendArena,
    limit: u32,
    /// What the buffers were made for.
    limit_max: u32,
    bells: Option<Bells>,
    totals: Totals,
}

impl Sender {
    /// Gives the half its doorbells. Without them it never wakes the host: right while the host polls.
    pub fn connect(&mut self, bells: Bells) {
        self.bells = Some(bells);
    }

    /// Longest frame, in bytes.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Lowers or restores the longest frame to that of `mtu`, at most what the buffers were made for.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.limit = frame_limit(mtu.min(MTU_MAX)).min(self.limit_max);
    }

    /// Refuses what no Ethernet carries, before any memory is touched.
    #[inline]
    fn check(&self, length: usize) -> Result<u32> {
        match u32::try_from(length) {
            Ok(length) if (ETHERNET_HEADER..=self.limit).contains(&length) => Ok(length),
            _ => Err(self.no_frame(length)),
        }
    }

    #[cold]
    fn no_frame(&self, length: usize) -> Error {
        Error::Usage(format!(
            "a frame here is {ETHERNET_HEADER} to {} bytes, header included; got {length}",
            self.limit
        ))
    }

    /// Makes room by taking back what the host is done with. `true`: some came back.
    fn reclaim(&mut self) -> Result<bool> {
        let count = self.ring.completed()?;
        self.ring.reap(count);
        self.arena.free(count);
        Ok(count != 0)
    }

    #[inline]
    fn reserve(&mut self, length: u32) -> Result<Option<u32>> {
        if self.ring.room() != 0
            && let Some(offset) = self.arena.take(length)
        {
            return Ok(Some(offset));
        }
        self.reserve_after_reclaim(length)
    }

    #[cold]
    #[inline(never)]
    fn reserve_after_reclaim(&mut self, length: u32) -> Result<Option<u32>> {
        while self.reclaim()? {
            if self.ring.room() != 0
                && let Some(offset) = self.arena.take(length)
            {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    /// Claims room for one frame of `length` bytes, lets `fill` write it, and stages it. The host sees it after
    /// [`Self::flush`]. `false`: there is no room now, nothing happened.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: no Ethernet frame has this length; [`Error::Peer`]: the host broke the ring.
    #[inline]
    pub fn stage_with(&mut self, length: usize, fill: impl FnOnce(&mut [u8])) -> Result<bool> {
        let length = self.check(length)?;
        if self.ring.unpublished() == 0 {
            self.ring.prepare();
        }
        let Some(offset) = self.reserve(length)? else { return Ok(false) };
        let place = self.ram.at(offset, length as usize)?;
        self.ask_ahead(offset, length);
        // SAFETY: in bounds; the arena lends this piece to us alone until the slot staged below comes back.
        fill(unsafe { std::slice::from_raw_parts_mut(place.as_ptr(), length as usize) });
        let staged = self.ring.stage(Descriptor::new(offset, length));
        debug_assert!(staged);
        self.totals.frames += 1;
        self.totals.bytes += u64::from(length);
        Ok(true)
    }

    /// Asks for the lines of the frame some way behind the one at `offset`: the host has read them last.
    #[inline]
    fn ask_ahead(&self, offset: u32, length: u32) {
        let bytes = length.next_multiple_of(CACHE_LINE as u32);
        let ahead = self.arena.ahead(offset, bytes.max(ASK_AHEAD_BYTES), bytes);
        if let Ok(place) = self.ram.at(ahead, bytes as usize) {
            line::fetch_to_write(place, bytes as usize);
        }
    }

    /// Says that frames are about to be staged and flushed, while there is still something else to do: what the host
    /// has looked at last comes back meanwhile. Costs two instructions and promises nothing.
    #[inline]
    pub fn expect(&self) {
        self.ring.ask_ahead();
    }

    /// Stages a copy of `frame`. `false`: no room now.
    ///
    /// # Errors
    ///
    /// As [`Self::stage_with`].
    #[inline]
    pub fn stage(&mut self, frame: &[u8]) -> Result<bool> {
        self.stage_with(frame.len(), |room| copy_frame(room, frame))
    }

    /// Claims room for one frame and tells where: write there, then [`Self::commit`] or [`Self::cancel`] it, before
    /// anything else is staged. `None`: no room now.
    ///
    /// # Errors
    ///
    /// As [`Self::stage_with`].
    pub fn claim(&mut self, length: usize) -> Result<Option<u32>> {
        let length = self.check(length)?;
        self.reserve(length)
    }

    /// Stages the piece claimed last, as a frame of `length` bytes at `offset`.
    pub fn commit(&mut self, offset: u32, length: u32) {
        let staged = self.ring.stage(Descriptor::new(offset, length));
        debug_assert!(staged);
        self.totals.frames += 1;
        self.totals.bytes += u64::from(length);
    }

    /// Gives the piece claimed last back.
    pub fn cancel(&mut self) {
        self.arena.undo();
    }

    /// Shows the host everything staged, and wakes it if it sleeps.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the doorbell is broken.
    #[inline]
    pub fn flush(&mut self) -> Result<()> {
        if self.ring.unpublished() == 0 {
            return Ok(());
        }
        self.ring.publish();
        if self.ring.notify()
            && let Some(bells) = &self.bells
        {
            self.totals.kicks += 1;
            bells.kick.ring()?;
        }
        Ok(())
    }

    /// Sends as many of `frames` as there is room for now, in order; how many that were.
    ///
    /// # Errors
    ///
    /// As [`Self::stage_with`]; frames before the refused one are sent.
    pub fn send<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) -> Result<usize> {
        let mut sent = 0;
        for frame in frames {
            match self.stage(frame) {
                Ok(true) => sent += 1,
                Ok(false) => break,
                Err(error) => {
                    self.flush()?;
                    return Err(error);
                }
            }
        }
        self.flush()?;
        Ok(sent)
    }

    /// Asks for the doorbell when slots come back. `true`: none has, wait for it. `false`: there is room already.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the host broke the ring.
    pub fn arm(&mut self) -> Result<bool> {
        self.ring.listener().acknowledge();
        if self.reclaim()? {
            return Ok(false);
        }
        Ok(self.ring.listener().arm())
    }

    /// Waits until there may be room for another frame. `false`: the time was up, or a signal interrupted.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] without doorbells; otherwise as [`Self::arm`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        if self.ring.in_flight() == 0 || !self.arm()? {
            return Ok(true);
        }
        let Some(bells) = &self.bells else { return Err(no_bells()) };
        self.totals.sleeps += 1;
        let rung = bells.call.wait(timeout)?;
        self.ring.listener().mask();
        Ok(rung)
    }

    /// Frames the host has not taken yet, as of now.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the host broke the ring.
    pub fn pending(&mut self) -> Result<u32> {
        while self.reclaim()? {}
        Ok(self.ring.in_flight())
    }

    /// Frames published that the host has not returned yet, as last seen.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.ring.in_flight()
    }

    /// The doorbells, when connected.
    #[must_use]
    pub const fn bells(&self) -> Option<&Bells> {
        self.bells.as_ref()
    }

    /// What was sent so far.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        self.totals
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("ring", &self.ring).field("totals", &self.totals).finish_non_exhaustive()
    }
}

/// A received frame that stays in its buffer until it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which buffer; for [`Receiver::give_back`].
    pub buffer: u32,
    /// Where the frame is.
    pub offset: u32,
    /// Its bytes.
    pub length: u32,
}

/// The receiving half.
pub struct Receiver {
    ram: Arc<Ram>,
    ring: Producer,
    pool: BufferPool,
    /// Buffer posted in each slot.
    posted: Box<[u32]>,
    limit: u32,
    bells: Option<Bells>,
    totals: Totals,
}

impl Receiver {
    /// Gives the half its doorbells. Without them it can poll, not wait.
    pub fn connect(&mut self, bells: Bells) {
        self.bells = Some(bells);
    }

    fn post(&mut self, buffer: u32) {
        let slot = self.ring.next_index() as usize & (self.posted.len() - 1);
        if self.ring.stage(Descriptor::new(self.pool.offset(buffer), self.limit)) {
            self.posted[slot] = buffer;
        } else {
            self.pool.give_back(buffer);
        }
    }

    fn refill(&mut self) {
        while self.ring.room() != 0
            && let Some(buffer) = self.pool.take()
        {
            self.post(buffer);
        }
    }

    /// The frame in the `ahead`-th returned slot, checked against what was posted there.
    #[inline]
    fn returned(&self, ahead: u32) -> std::result::Result<Held, Fault> {
        let slot = self.ring.reap_index().wrapping_add(ahead) as usize & (self.posted.len() - 1);
        let buffer = self.posted[slot];
        let offset = self.pool.offset(buffer);
        let found = self.ring.peek(ahead);
        if found.offset != offset || found.length > self.limit || found.flags != 0 {
            return Err(Fault::ForeignCompletion {
                offset: found.offset,
                length: found.length,
                posted_offset: offset,
                posted_length: self.limit,
            });
        }
        Ok(Held { buffer, offset, length: found.length })
    }

    /// Hands up to `max` waiting frames to `each`, oldest first, and posts their buffers again; how many there were.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the host broke the ring; frames before the broken slot were handed over; [`Error::Machine`]: the
    /// doorbell is broken.
    #[inline]
    pub fn receive(&mut self, max: u32, mut each: impl FnMut(&[u8])) -> Result<u32> {
        let ready = self.ring.completed()?.min(max);
        if ready == 0 {
            return Ok(0);
        }
        // One more than is taken now: for who takes them one at a time, the next is on its way meanwhile.
        for ahead in 0..self.ring.completed()?.min(ready + 1) {
            let slot = self.ring.reap_index().wrapping_add(ahead) as usize & (self.posted.len() - 1);
            prefetch(&self.ram, self.pool.offset(self.posted[slot]));
        }
        let (mut done, mut frames) = (0, 0);
        let mut verdict = Ok(());
        while done < ready {
            let held = match self.returned(done) {
                Ok(held) => held,
                Err(fault) => {
                    // Frames before the lie were handed over: they must not come up again.
                    verdict = Err(fault);
                    break;
                }
            };
            // A buffer that comes back empty was flushed, not received into.
            if held.length != 0 {
                let place = self.ram.at(held.offset, held.length as usize)?;
                // SAFETY: in bounds; the host returned this buffer and we have not posted it again. A host that keeps
                // writing changes bytes we hand to the user, never our bookkeeping.
                each(unsafe { std::slice::from_raw_parts(place.as_ptr(), held.length as usize) });
                frames += 1;
                self.totals.bytes += u64::from(held.length);
            }
            done += 1;
        }
        for _ in 0..done {
            let slot = self.ring.reap_index() as usize & (self.posted.len() - 1);
            let buffer = self.posted[slot];
            self.ring.reap(1);
            self.post(buffer);
        }
        self.totals.frames += u64::from(frames);
        self.announce()?;
        verdict?;
        Ok(frames)
    }

    /// Takes up to `max` waiting frames without copying them. Their buffers are the caller's until
    /// [`Self::give_back`]; while too many are held, fewer can be received into.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub fn hold(&mut self, max: u32, held: &mut Vec<Held>) -> Result<u32> {
        let ready = self.ring.completed()?.min(max);
        let mut frames = 0;
        for _ in 0..ready {
            let frame = self.returned(0)?;
            self.ring.reap(1);
            if frame.length == 0 {
                self.post(frame.buffer);
                continue;
            }
            frames += 1;
            self.totals.frames += 1;
            self.totals.bytes += u64::from(frame.length);
            held.push(frame);
        }
        self.refill();
        self.announce()?;
        Ok(frames)
    }

    /// Returns a held buffer and posts it again.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the doorbell is broken.
    pub fn give_back(&mut self, buffer: u32) -> Result<()> {
        self.pool.give_back(buffer);
        self.refill();
        self.announce()
    }

    /// Shows the host the buffers posted again, a few at a time while most are out there: with every single frame the
    /// line of the index would go to the host and back, and the signal's fence would wait for it.
    #[inline]
    fn announce(&mut self) -> Result<()> {
        let slots = self.ring.slots();
        let enough = (slots / 8).clamp(1, ANNOUNCE_MAX);
        if self.ring.unpublished() >= enough || (self.ring.in_flight() < slots / 2 && self.ring.unpublished() != 0) {
            return self.announce_all();
        }
        Ok(())
    }

    fn announce_all(&mut self) -> Result<()> {
        self.ring.publish();
        if self.ring.notify()
            && let Some(bells) = &self.bells
        {
            self.totals.kicks += 1;
            bells.kick.ring()?;
        }
        Ok(())
    }

    /// Asks for the doorbell when a frame arrives. `true`: none has, wait for it. `false`: frames are waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the host broke the ring.
    pub fn arm(&mut self) -> Result<bool> {
        self.ring.listener().acknowledge();
        if self.ring.completed()? != 0 {
            return Ok(false);
        }
        Ok(self.ring.listener().arm())
    }

    /// No more doorbells until the next [`Self::arm`].
    pub fn mask(&self) {
        self.ring.listener().mask();
    }

    /// Waits for a frame: first by looking for `spin`, then asleep until `timeout` has passed in all. `false`: the time
    /// was up, or a signal interrupted.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] without doorbells; otherwise as [`Self::arm`].
    pub fn wait(&mut self, spin: Duration, timeout: Option<Duration>) -> Result<bool> {
        if self.ring.completed()? != 0 {
            return Ok(true);
        }
        let start = Instant::now();
        let spin = timeout.map_or(spin, |limit| spin.min(limit));
        while start.elapsed() < spin {
            for _ in 0..16 {
                if self.ring.completed()? != 0 {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
        }
        if !self.arm()? {
            return Ok(true);
        }
        let Some(bells) = &self.bells else { return Err(no_bells()) };
        self.totals.sleeps += 1;
        let rung = bells.call.wait(timeout.map(|limit| limit.saturating_sub(start.elapsed())))?;
        self.ring.listener().mask();
        Ok(rung)
    }

    /// The doorbells, when connected.
    #[must_use]
    pub const fn bells(&self) -> Option<&Bells> {
        self.bells.as_ref()
    }

    /// What was received so far.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        self.totals
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("ring", &self.ring).field("totals", &self.totals).finish_non_exhaustive()
    }
}

/// Copies a frame into its room, which is as long. Short ones line by line, here and now: calling the library costs more.
#[inline]
fn copy_frame(room: &mut [u8], frame: &[u8]) {
    const LINE: usize = CACHE_LINE;
    if (LINE..=4 * LINE).contains(&frame.len()) && room.len() == frame.len() {
        let mut at = 0;
        while at + LINE <= frame.len() {
            room[at..at + LINE].copy_from_slice(&frame[at..at + LINE]);
            at += LINE;
        }
        // What is left ends with the frame; some of it is copied twice.
        let last = frame.len() - LINE;
        room[last..].copy_from_slice(&frame[last..last + LINE]);
    } else {
        room.copy_from_slice(frame);
    }
}

fn no_bells() -> Error {
    Error::Usage("this half has no doorbells yet: connect it before waiting".to_owned())
}

/// Fetches the first line of a frame while others are being looked at.
#[inline]
fn prefetch(ram: &Ram, offset: u32) {
    #[cfg(target_arch = "x86_64")]
    if let Ok(place) = ram.at(offset, 1) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing the program can see; the address is mapped anyway.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (ram, offset);
}
