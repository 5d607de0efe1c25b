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
//! Sending and receiving are two types, so that two threads can do them without a lock. Frames in several pieces, and those
//! with requests, are in [`long`]. Source: venet, `docs/wire/venet.md`.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Fault, Result};
use crate::guest::clock::monotonic_ns;
pub use crate::guest::nic::{BURST_MAX, ETHERNET_HEADER, Held, MTU_MAX, MTU_MIN, Stage, Totals, VLAN_TAG, frame_limit};
use crate::guest::nic::{copy_frame, look_for};
use crate::guest::pieces::no_views;
use crate::net::grant::{DESCRIPTION_BYTES, Grant, LONG_BYTES_MAX, REQUEST_BYTES};
use crate::net::offload::{Features, NO_REQUEST, OFFLOAD_HEADER_BYTES};
use crate::shm::doorbell::Doorbell;
use crate::shm::layout::{CACHE_LINE, LINE_PAIR, RAM_HEADER_BYTES, ring_bytes};
use crate::shm::line;
use crate::shm::pool::{BufferPool, Run, SendArena};
use crate::shm::region::Ram;
use crate::shm::ring::{Descriptor, Producer, RingMemory};

mod long;

pub use crate::guest::pieces::Part;

/// Most posted buffers that the host is not shown at once.
const ANNOUNCE_MAX: u32 = 32;
/// How far ahead of the frame being written the lines of later ones are asked for: enough for the transfers between two
/// cores to overlap, little enough to stay in the first cache.
const ASK_AHEAD_BYTES: u32 = 512;
/// Least length of buffers that one frame may fill several of.
const MERGED_BUFFER_BYTES: u32 = 4096;

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
    /// Bytes of each.
    pub buffer_bytes: u32,
    /// First byte of the descriptions of frames in several pieces, one for each slot of TX.
    pub pool_offset: Option<u32>,
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
        Self::plan_long(start, mtu, tx_slots, rx_slots, &Grant::default(), false)
    }

    /// As [`Self::plan`], with room for what was granted; `has_pool`: also for descriptions.
    ///
    /// # Errors
    ///
    /// As [`Self::plan`].
    pub fn plan_long(
        start: u32,
        mtu: u32,
        tx_slots: u32,
        rx_slots: u32,
        grant: &Grant,
        has_pool: bool,
    ) -> Result<Self> {
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
        let least = if grant.transmit_limit(limit) > limit { 2 * LONG_BYTES_MAX.next_multiple_of(line) } else { 0 };
        let arena_bytes = (u64::from(tx_slots) * u64::from(limit.next_multiple_of(line))).max(least.into());
        let buffers_offset = arena_offset + arena_bytes;
        let buffer_bytes = limit + if grant.gives.is_empty() { 0 } else { REQUEST_BYTES };
        let buffer_bytes = if grant.is_merged { buffer_bytes.max(MERGED_BUFFER_BYTES) } else { buffer_bytes };
        let pool_offset = buffers_offset + u64::from(buffers) * u64::from(BufferPool::stride_for(buffer_bytes));
        let end = pool_offset + if has_pool { u64::from(tx_slots) * u64::from(DESCRIPTION_BYTES) } else { 0 };
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
            buffer_bytes,
            pool_offset: has_pool.then(|| narrow(pool_offset)).transpose()?,
            end: narrow(end)?,
        })
    }

    /// Byte offset and length of the descriptions.
    #[must_use]
    pub fn pool(&self) -> Option<(u32, u32)> {
        self.pool_offset.map(|offset| (offset, self.tx_slots * DESCRIPTION_BYTES))
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
    let arena_base = ram.at(layout.arena_offset, layout.arena_bytes as usize)?.as_ptr();
    let sender = Sender {
        arena_base,
        warm_end: arena_base,
        run: None,
        run_end: arena_base,
        broken: None,
        ram: ram.clone(),
        grant: Grant::default(),
        ring: Producer::new(tx),
        arena: SendArena::new(layout.arena_offset, layout.arena_bytes, layout.tx_slots),
        limit,
        limit_max: limit,
        bells: None,
        totals: Totals::default(),
    };
    let (buffer_bytes, stride) = (layout.buffer_bytes, BufferPool::stride_for(layout.buffer_bytes));
    let mut receiver = Receiver {
        ram: ram.clone(),
        ring: Producer::new(rx),
        pool: BufferPool::new(layout.buffers_offset, stride, buffer_bytes, layout.buffers),
        posted: vec![0; layout.rx_slots as usize].into_boxed_slice(),
        owed: 0,
        broken: None,
        receive_flags: 0,
        gives: Features::NONE,
        merged: Vec::new(),
        limit: buffer_bytes,
        bells: None,
        totals: Totals::default(),
    };
    receiver.refill();
    receiver.ring.publish();
    Ok((sender, receiver))
}

/// Where a burst goes on.
enum Next {
    /// In a run that begins there.
    Run(*mut u8),
    NoRoom,
    /// The host broke the ring.
    Broken,
}

/// The sending half.
pub struct Sender {
    ram: Arc<Ram>,
    grant: Grant,
    ring: Producer,
    arena: SendArena,
    /// The arena's first byte.
    arena_base: *mut u8,
    /// End of that part of it that frames of the current size go round in.
    warm_end: *mut u8,
    /// The run that a burst is filling, and one past its last byte: here, as a burst has no register left for it.
    run: Option<Run>,
    run_end: *mut u8,
    /// How the host broke the ring, until somebody is told.
    broken: Option<Fault>,
    limit: u32,
    /// What the buffers were made for.
    limit_max: u32,
    bells: Option<Bells>,
    totals: Totals,
}

// SAFETY: the place leads into a mapping that `ram` keeps, and only the one owner of this half writes there.
unsafe impl Send for Sender {}

impl Sender {
    /// Gives the half its doorbells. Without them it never wakes the host: right while the host polls.
    pub fn connect(&mut self, bells: Bells) {
        self.bells = Some(bells);
    }

    /// Stamps nothing from now on: for measuring what stamps cost.
    pub fn stop_stamping(&mut self) {
        self.ring.stop_stamping();
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
    fn reclaim(&mut self) -> std::result::Result<bool, Fault> {
        let count = self.ring.completed()?;
        self.ring.reap(count);
        self.arena.free(count);
        Ok(count != 0)
    }

    /// Room for up to `most` frames of `length` bytes, not taken yet. Looks for what the host has returned only when there
    /// is none.
    #[inline]
    fn plan(&mut self, length: u32, most: u32) -> std::result::Result<Option<Run>, Fault> {
        loop {
            let room = self.ring.room();
            if room != 0
                && let Some(run) = self.arena.plan(length, most.min(room))
            {
                return Ok(Some(run));
            }
            if !self.reclaim()? {
                return Ok(None);
            }
        }
    }

    /// Lets `work` stage frames, about `expected` of them; what it staged stays so whatever it answers, and is seen by the
    /// host after [`Self::flush`].
    #[inline(always)]
    pub fn burst<T>(&mut self, expected: u32, work: impl FnOnce(&mut Burst<'_>) -> T) -> T {
        if self.ring.unpublished() == 0 {
            self.ring.prepare();
        }
        self.run_end = self.arena_base;
        let (place, slot) = (self.arena_base, self.ring.next_index());
        let mut burst = Burst { sender: self, expected, step: 0, place, slot, bytes: 0 };
        let done = work(&mut burst);
        let (slot, bytes) = (burst.slot, burst.bytes);
        self.settle(slot, bytes);
        done
    }

    /// Stages all slots before `slot`, which are filled with `bytes` bytes of the run that was planned last.
    #[inline]
    fn settle(&mut self, slot: u32, bytes: u64) {
        let filled = slot.wrapping_sub(self.ring.next_index());
        if let Some(run) = self.run.take() {
            self.arena.take_run(run, filled);
        }
        self.ring.stage_filled(filled);
        self.totals.frames += u64::from(filled);
        self.totals.bytes += bytes;
    }

    /// Ends a burst's run and plans its next one. Out of the way of its loop, so that nothing there is kept in memory for
    /// this.
    #[cold]
    #[inline(never)]
    fn next_run(&mut self, slot: u32, bytes: u64, length: u32, expected: u32) -> Next {
        self.settle(slot, bytes);
        match self.plan(length, expected) {
            Ok(Some(run)) => {
                self.run = Some(run);
                self.warm_end = self.arena_place(self.arena.warm_end(length));
                let place = self.arena_place(run.offset);
                self.run_end = place.wrapping_add((run.step * run.count) as usize);
                Next::Run(place)
            }
            Ok(None) => Next::NoRoom,
            Err(fault) => {
                self.broken = Some(fault);
                Next::Broken
            }
        }
    }

    /// Why a frame of `length` bytes was not staged.
    #[cold]
    fn why(&mut self, outcome: Outcome, length: usize) -> Error {
        match self.broken.take() {
            Some(fault) if outcome == Outcome::Broken => fault.into(),
            _ => self.no_frame(length),
        }
    }

    /// Which byte of the memory a place in the arena is.
    #[inline(always)]
    fn arena_offset(&self, place: *const u8) -> u32 {
        (place as usize - self.arena_base as usize) as u32 + self.arena.start()
    }

    /// Where byte `offset` of the memory is, which lies in the arena or one past its end.
    #[inline(always)]
    fn arena_place(&self, offset: u32) -> *mut u8 {
        self.arena_base.wrapping_add((offset - self.arena.start()) as usize)
    }

    /// Claims room for one frame of `length` bytes, lets `fill` write it, and stages it. The host sees it after
    /// [`Self::flush`]. `false`: there is no room now, nothing happened.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: no Ethernet frame has this length; [`Error::Peer`]: the host broke the ring.
    #[inline]
    pub fn stage_with(&mut self, length: usize, fill: impl FnOnce(&mut [u8])) -> Result<bool> {
        let bytes = self.check(length)?;
        let Some(run) = self.plan(bytes, 1)? else { return Ok(false) };
        let place = self.arena_place(run.offset);
        let warm_end = self.arena_place(self.arena.warm_end(bytes));
        ask_ahead(place, run.step, warm_end);
        // SAFETY: the piece lies in the arena, which `open` found to be in bounds, and is lent to us alone until its slot
        // comes back.
        fill(unsafe { std::slice::from_raw_parts_mut(place, length) });
        self.arena.take_run(run, 1);
        self.ring.fill(self.ring.next_index(), Descriptor::new(run.offset, bytes));
        self.ring.stage_filled(1);
        self.totals.frames += 1;
        self.totals.bytes += u64::from(bytes);
        Ok(true)
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

    #[inline(always)]
    fn verdict(&mut self, outcome: Outcome, length: usize) -> Result<bool> {
        match outcome {
            Outcome::Staged => Ok(true),
            Outcome::NoRoom => Ok(false),
            outcome => Err(self.why(outcome, length)),
        }
    }

    /// Claims room for one frame and tells where: write there, then [`Self::commit`] or [`Self::cancel`] it, before
    /// anything else is staged. `None`: no room now.
    ///
    /// # Errors
    ///
    /// As [`Self::stage_with`].
    pub fn claim(&mut self, length: usize) -> Result<Option<u32>> {
        let length = self.check(length)?;
        let Some(run) = self.plan(length, 1)? else { return Ok(None) };
        self.arena.take_run(run, 1);
        Ok(Some(run.offset))
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
        self.ring.stamp(monotonic_ns);
        self.ring.publish();
        if self.ring.notify()
            && let Some(bells) = &self.bells
        {
            self.ring.ringing(monotonic_ns());
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
    #[inline]
    pub fn send<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) -> Result<usize> {
        let frames = frames.into_iter();
        let expected = frames.size_hint().0.clamp(1, BURST_MAX as usize) as u32;
        let before = self.ring.next_index();
        let refused = self.burst(expected, |burst| {
            for frame in frames {
                match burst.put(frame.len(), |room| copy_frame(room, frame)) {
                    Outcome::Staged => {}
                    Outcome::NoRoom => break,
                    outcome => return Some((outcome, frame.len())),
                }
            }
            None
        });
        let sent = self.ring.next_index().wrapping_sub(before);
        self.flush()?;
        match refused {
            None => Ok(sent as usize),
            Some((outcome, length)) => Err(self.why(outcome, length)),
        }
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
        self.ring.wake(monotonic_ns);
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

    /// What wakes us, when connected.
    #[must_use]
    pub fn call_bell(&self) -> Option<&Doorbell> {
        self.bells.as_ref().map(|bells| &bells.call)
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

/// Frames of one [`Sender`] on their way into the ring.
///
/// Stores become visible in order and a processor keeps some dozens of them waiting: while the line of one frame comes
/// from the host's core, the frames behind it wait there with everything that is stored for them. What a frame changes
/// is therefore kept in here, in registers once everything is inlined, and goes to memory once for the whole burst; a
/// frame costs its bytes, and one store for its slot (`docs/performance.md` has what that is worth). Frames lie in runs of
/// equal pieces, of which only those that were filled are taken from the arena, when the run ends.
pub struct Burst<'a> {
    sender: &'a mut Sender,
    /// Frames expected when the run was taken; a guess that sizes it.
    expected: u32,
    /// Room for each frame of this run.
    step: u32,
    /// Where the next frame goes, and into which slot. These three are all that changes with a frame.
    place: *mut u8,
    slot: u32,
    bytes: u64,
}

/// What became of a frame. Small, unlike an [`Error`]: it travels in a register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Staged,
    NoRoom,
    /// No Ethernet frame has this length.
    Refused,
    /// The host broke the ring; `Sender::broken` says how.
    Broken,
}

impl Stage for Burst<'_> {
    #[inline(always)]
    fn stage_with(&mut self, length: usize, fill: impl FnOnce(&mut [u8])) -> Result<bool> {
        let outcome = self.put(length, fill);
        self.sender.verdict(outcome, length)
    }
}

impl Burst<'_> {
    #[inline(always)]
    fn put(&mut self, length: usize, fill: impl FnOnce(&mut [u8])) -> Outcome {
        if length < ETHERNET_HEADER as usize || length > self.sender.limit as usize {
            return Outcome::Refused;
        }
        let step = (length as u32).next_multiple_of(CACHE_LINE as u32);
        if self.place == self.sender.run_end || step != self.step {
            match self.sender.next_run(self.slot, self.bytes, length as u32, self.expected) {
                Next::Run(place) => (self.step, self.place, self.bytes) = (step, place, 0),
                Next::NoRoom => {
                    (self.place, self.bytes) = (self.sender.run_end, 0);
                    return Outcome::NoRoom;
                }
                Next::Broken => {
                    (self.place, self.bytes) = (self.sender.run_end, 0);
                    return Outcome::Broken;
                }
            }
        }
        ask_ahead(self.place, step, self.sender.warm_end);
        // SAFETY: the piece lies in the arena, which `open` found to be in bounds, and is lent to us alone until its slot
        // comes back.
        fill(unsafe { std::slice::from_raw_parts_mut(self.place, length) });
        let offset = self.sender.arena_offset(self.place);
        self.sender.ring.fill(self.slot, Descriptor::new(offset, length as u32));
        self.place = self.place.wrapping_add(step as usize);
        self.slot = self.slot.wrapping_add(1);
        self.bytes += length as u64;
        Outcome::Staged
    }
}

/// Asks for the lines of frames to come, which the host has read last.
#[inline(always)]
fn ask_ahead(place: *mut u8, step: u32, warm_end: *mut u8) {
    let ahead = place.wrapping_add(step.max(ASK_AHEAD_BYTES) as usize);
    if let Some(ahead) = NonNull::new(ahead)
        && ahead.as_ptr() < warm_end
    {
        line::fetch_to_write(ahead, step as usize);
    }
}

/// The receiving half.
pub struct Receiver {
    ram: Arc<Ram>,
    ring: Producer,
    pool: BufferPool,
    /// Buffer posted in each slot.
    posted: Box<[u32]>,
    /// Slots reaped last whose buffers are not posted again yet.
    owed: u32,
    /// How the host broke the ring, until somebody is told.
    broken: Option<Fault>,
    /// Flags that the host may set, and where a frame that does not lie together is put together.
    receive_flags: u8,
    gives: Features,
    merged: Vec<u8>,
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

    /// Posts the buffers of the slots that were reaped last again, in their order. Not one by one: a slot lies on the line
    /// of those that the host fills next, and who waits for a frame would wait for that line to go there and back as well.
    #[inline]
    fn post_again(&mut self) {
        let count = std::mem::take(&mut self.owed);
        let (from, to) = (self.ring.reap_index().wrapping_sub(count), self.ring.next_index());
        let mask = self.posted.len() - 1;
        for number in 0..count {
            let buffer = self.posted[from.wrapping_add(number) as usize & mask];
            let slot = to.wrapping_add(number);
            self.ring.fill(slot, Descriptor::new(self.pool.offset(buffer), self.limit));
            self.posted[slot as usize & mask] = buffer;
        }
        self.ring.stage_filled(count);
    }

    fn refill(&mut self) {
        while self.ring.room() != 0
            && let Some(buffer) = self.pool.take()
        {
            self.post(buffer);
        }
    }

    /// The frame in the `ahead`-th returned slot, checked against what was posted there. `None`: the host broke the ring,
    /// and `broken` says how. Small, unlike a [`Fault`]: a loop over frames keeps it in registers. `lonely`: what
    /// [`Self::lonely`] said, if it is the only one.
    #[inline(always)]
    fn returned(&mut self, ahead: u32, lonely: Option<Descriptor>) -> Option<Held> {
        let slot = self.ring.reap_index().wrapping_add(ahead) as usize & (self.posted.len() - 1);
        let buffer = self.posted[slot];
        let offset = self.pool.offset(buffer);
        let found = lonely.unwrap_or_else(|| self.ring.peek(ahead));
        if found.offset != offset || found.length > self.limit || found.flags != 0 {
            self.refuse(found, offset);
            return None;
        }
        Some(Held { buffer, offset, length: found.length })
    }

    /// What the only one of `ready` returned slots says, if its line need not be fetched for that.
    #[inline]
    fn lonely(&self, ready: u32) -> Option<Descriptor> {
        if ready == 1 { self.ring.peek_newest() } else { None }
    }

    #[cold]
    #[inline(never)]
    fn refuse(&mut self, found: Descriptor, posted_offset: u32) {
        self.broken = Some(Fault::ForeignCompletion {
            offset: found.offset,
            length: found.length,
            posted_offset,
            posted_length: self.limit,
        });
    }

    /// Returned slots. What the host stamped is on the line of its index, so it is looked at together with that.
    #[inline]
    fn ready(&mut self) -> std::result::Result<u32, Fault> {
        let does_look = self.ring.knows_of_none();
        let ready = self.ring.completed()?;
        if does_look && ready != 0 {
            self.ring.watch_returns();
        }
        Ok(ready)
    }

    /// Hands up to `max` waiting frames to `each`, oldest first, and posts their buffers again; how many there were. What a
    /// frame asks for is not told.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the host broke the ring; frames before the broken slot were handed over; [`Error::Machine`]: the
    /// doorbell is broken.
    #[inline]
    pub fn receive(&mut self, max: u32, mut each: impl FnMut(&[u8])) -> Result<u32> {
        self.receive_long(max, |frame, _| each(frame))
    }

    /// As [`Self::receive`], with the `virtio_net_hdr` of each frame: all zeroes unless something is left to be done.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    #[inline]
    pub fn receive_long(&mut self, max: u32, mut each: impl FnMut(&[u8], &[u8; OFFLOAD_HEADER_BYTES])) -> Result<u32> {
        let ready = self.ready()?.min(max);
        if ready == 0 {
            return Ok(0);
        }
        // One more than is taken now: for who takes them one at a time, the next is on its way meanwhile.
        for ahead in 0..self.ring.completed()?.min(ready + 1) {
            let slot = self.ring.reap_index().wrapping_add(ahead) as usize & (self.posted.len() - 1);
            prefetch(&self.ram, self.pool.offset(self.posted[slot]));
        }
        let (mut done, mut frames, mut bytes) = (0, 0, 0);
        self.ring.answer(ready, monotonic_ns);
        let lonely = self.lonely(ready);
        while done < ready {
            // Frames before a lie were handed over: they must not come up again.
            let Some(held) = self.returned(done, lonely) else {
                let Some(merged) = self.merge(done) else { break };
                each(&self.merged[merged.range()], &merged.asked);
                bytes += merged.range().len() as u64;
                frames += 1;
                done += merged.slots;
                continue;
            };
            // A buffer that comes back empty was flushed, not received into.
            if held.length != 0 {
                let place = self.ram.at(held.offset, held.length as usize)?;
                // SAFETY: in bounds; the host returned this buffer and we have not posted it again. A host that keeps
                // writing changes bytes we hand to the user, never our bookkeeping.
                each(unsafe { std::slice::from_raw_parts(place.as_ptr(), held.length as usize) }, &NO_REQUEST);
                frames += 1;
                bytes += u64::from(held.length);
            }
            done += 1;
        }
        self.ring.reap(done);
        self.owed += done;
        self.totals.bytes += bytes;
        self.totals.frames += u64::from(frames);
        self.announce()?;
        match self.broken.take() {
            None => Ok(frames),
            Some(fault) => Err(fault.into()),
        }
    }

    /// Takes up to `max` waiting frames without copying them. Their buffers are the caller's until
    /// [`Self::give_back`]; while too many are held, fewer can be received into.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`]; [`Error::Usage`]: frames may come in several buffers or with requests here.
    pub fn hold(&mut self, max: u32, held: &mut Vec<Held>) -> Result<u32> {
        if self.receive_flags != 0 {
            return Err(no_views());
        }
        self.post_again();
        let ready = self.ready()?.min(max);
        self.ring.answer(ready, monotonic_ns);
        let mut frames = 0;
        let lonely = self.lonely(ready);
        for _ in 0..ready {
            let Some(frame) = self.returned(0, lonely) else { break };
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
        match self.broken.take() {
            None => Ok(frames),
            Some(fault) => Err(fault.into()),
        }
    }

    /// Returns a held buffer and posts it again.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the doorbell is broken.
    pub fn give_back(&mut self, buffer: u32) -> Result<()> {
        self.post_again();
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
        let waiting = self.owed + self.ring.unpublished();
        if waiting >= enough || (self.ring.in_flight() < slots / 2 && waiting != 0) {
            self.post_again();
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

    /// No more doorbells until the next [`Self::arm`]. If one ended a sleep, the host learns how long that took.
    pub fn mask(&self) {
        self.ring.wake(monotonic_ns);
    }

    /// Waits for a frame: first by looking for `spin`, then asleep until `timeout` has passed in all. `false`: the time
    /// was up, or a signal interrupted.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] without doorbells; otherwise as [`Self::arm`].
    pub fn wait(&mut self, spin: Duration, timeout: Option<Duration>) -> Result<bool> {
        let start = Instant::now();
        let spin = timeout.map_or(spin, |limit| spin.min(limit));
        if look_for(spin, || Ok(self.ring.completed()? != 0))? || !self.arm()? {
            return Ok(true);
        }
        let Some(bells) = &self.bells else { return Err(no_bells()) };
        self.totals.sleeps += 1;
        let rung = bells.call.wait(timeout.map(|limit| limit.saturating_sub(start.elapsed())))?;
        self.ring.wake(monotonic_ns);
        Ok(rung)
    }

    /// The doorbells, when connected.
    #[must_use]
    pub const fn bells(&self) -> Option<&Bells> {
        self.bells.as_ref()
    }

    /// What wakes us, when connected.
    #[must_use]
    pub fn call_bell(&self) -> Option<&Doorbell> {
        self.bells.as_ref().map(|bells| &bells.call)
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
