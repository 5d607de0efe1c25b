//! The driver of an 82540EM: two rings of legacy descriptors, one write of a tail for a batch of frames.
//!
//! ```text
//!   start ┌─────────┬─────────┬──────────────┬─────────────────┐
//!         │ TX ring │ RX ring │ send buffers │ receive buffers │ start + bytes
//!         └─────────┴─────────┴──────────────┴─────────────────┘
//! ```
//!
//! Done descriptors are seen in memory; only tails, causes and masks are traps. A receive buffer is as large as the longest
//! frame, so a frame has one descriptor. Source: see [`crate::nic::e1000`]; the order of writes at start is its chapter 14.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Chip, Port, ROOM_SPIN, Registers, Ring};
use crate::error::{Error, Fault, Result};
use crate::guest::nic::{ETHERNET_HEADER, Held, MTU_MIN, Stage, Totals, frame_limit};
use crate::net::frame::MacAddress;
use crate::nic::e1000::{
    CMD_EOP, CMD_IFCS, CMD_RS, CTRL_RST, CTRL_SLU, EERD_DONE, EERD_START, RAH_AV, RCTL_BAM, RCTL_EN, RCTL_LPE,
    RCTL_SECRC, RCTL_UPE, RING_MAX, RING_STEP, STATE_DD, STATE_EOP, STATUS_LU, TCTL_EN, TCTL_PSP, cause,
    register as at,
};
use crate::shm::doorbell::Doorbell;
use crate::shm::layout::RAM_HEADER_BYTES;
use crate::shm::pool::BufferPool;
use crate::shm::region::Ram;

/// Largest MTU: what fits into 16 KiB with header, tag and check sequence.
pub const MTU_MAX: u32 = 16_106;
/// Filled receive buffers that are given back to the card at once: each time is a trap.
const RETURN_AT_ONCE: u32 = 16;
/// Collision threshold and distance, as the manual has them for full duplex.
const TCTL_COLLISIONS: u32 = 0x0f << 4 | 0x40 << 12;

/// Where the parts of one card's driver lie in the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E1000Layout {
    /// Largest MTU the buffers are made for.
    pub mtu: u32,
    /// Descriptors of the transmit ring.
    pub tx_slots: u32,
    /// Descriptors of the receive ring.
    pub rx_slots: u32,
    /// First byte of the transmit ring.
    pub tx_offset: u32,
    /// First byte of the receive ring.
    pub rx_offset: u32,
    /// First byte of the send buffers, one a descriptor.
    pub send_offset: u32,
    /// First byte of the receive buffers: one a descriptor, and some that may be held as views.
    pub receive_offset: u32,
    /// Bytes of each buffer.
    pub buffer_bytes: u32,
    /// One past the last byte.
    pub end: u32,
}

impl E1000Layout {
    /// Lays a driver out from byte `start` on.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the MTU is not 68 to 16106, slots are no multiple of 8 up to 65528, or 4 GiB are exceeded.
    pub fn plan(start: u32, mtu: u32, tx_slots: u32, rx_slots: u32) -> Result<Self> {
        if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
            return Err(Error::Usage(format!("the MTU of an e1000 is {MTU_MIN} to {MTU_MAX}; got {mtu}")));
        }
        for slots in [tx_slots, rx_slots] {
            if slots == 0 || !slots.is_multiple_of(RING_STEP) || slots > RING_MAX {
                return Err(Error::Usage(format!(
                    "its rings have a multiple of 8 slots, 8 to {RING_MAX}; got {slots}"
                )));
            }
        }
        let buffer_bytes = frame_limit(mtu).next_power_of_two().max(2048);
        let tx_offset = u64::from(start.max(RAM_HEADER_BYTES)).next_multiple_of(128);
        let rx_offset = tx_offset + u64::from(tx_slots) * 16;
        let send_offset = (rx_offset + u64::from(rx_slots) * 16).next_multiple_of(2048);
        let receive_offset = send_offset + u64::from(tx_slots) * u64::from(buffer_bytes);
        let end = receive_offset + u64::from(buffers(rx_slots)) * u64::from(buffer_bytes);
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
            send_offset: narrow(send_offset)?,
            receive_offset: narrow(receive_offset)?,
            buffer_bytes,
            end: narrow(end)?,
        })
    }
}

/// Receive buffers of a ring.
const fn buffers(slots: u32) -> u32 {
    slots + slots / 4
}

/// How the card is to be set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct E1000Setup {
    /// Take frames for any station.
    pub is_promiscuous: bool,
    /// Most interrupts a second; 0: as they come.
    pub interrupts_per_second: u32,
}

struct Intel;

impl Chip for Intel {
    const CAUSES: [u32; 2] = [cause::TXDW | cause::TXQE, cause::RXT0 | cause::RXDMT0 | cause::RXO];

    fn take_causes(registers: &dyn Registers) -> Result<u32> {
        registers.read(at::ICR, 4)
    }

    fn set_mask(registers: &dyn Registers, before: u32, after: u32) -> Result<()> {
        if before & !after != 0 {
            registers.write(at::IMC, 4, before & !after)?;
        }
        if after & !before != 0 {
            registers.write(at::IMS, 4, after & !before)?;
        }
        Ok(())
    }
}

/// Resets the card, reads its address and sets both rings up: the address, and both halves.
///
/// # Errors
///
/// [`Error::Usage`]: the layout does not fit into `ram`. [`Error::Peer`]: the card does not come out of its reset. Otherwise
/// what `registers` ran into.
pub fn open(
    ram: &Arc<Ram>,
    layout: E1000Layout,
    registers: [Box<dyn Registers>; 2],
    line: Doorbell,
    setup: E1000Setup,
) -> Result<(MacAddress, Sender, Receiver)> {
    if layout.end as usize > ram.size() {
        return Err(Error::Usage(format!(
            "the card's driver needs {} bytes of guest RAM, there are {}; give the guest more or take fewer slots",
            layout.end,
            ram.size()
        )));
    }
    let [transmit, receive] = Port::<Intel>::pair(registers, line)?;
    let port = &receive;
    port.write(at::IMC, 4, u32::MAX)?;
    port.write(at::CTRL, 4, CTRL_RST)?;
    port.await_register(at::CTRL, 4, |value| value & CTRL_RST == 0)?;
    port.write(at::IMC, 4, u32::MAX)?;
    port.read(at::ICR, 4)?;
    let mac = read_address(port)?;
    port.write(at::CTRL, 4, CTRL_SLU | 1)?;
    let [a, b, c, d, e, f] = mac.bytes();
    port.write(at::RAL, 4, u32::from_le_bytes([a, b, c, d]))?;
    port.write(at::RAH, 4, u32::from_le_bytes([e, f, 0, 0]) | RAH_AV)?;
    for index in 0..128 {
        port.write(at::MTA + 4 * index, 4, 0)?;
    }
    // The unit is 256 ns.
    let throttle = 3_906_250u32.checked_div(setup.interrupts_per_second).unwrap_or(0).min(0xffff);
    port.write(at::ITR, 4, throttle)?;
    let (tx, rx) =
        (Ring::format(ram, layout.tx_offset, layout.tx_slots)?, Ring::format(ram, layout.rx_offset, layout.rx_slots)?);
    for (base, offset, slots) in [(at::TDBAL, layout.tx_offset, tx.size()), (at::RDBAL, layout.rx_offset, rx.size())] {
        // The upper half of the address, the length, head and tail are at the same distances in both.
        for (step, value) in [(0x00, offset), (0x04, 0), (0x08, slots * 16), (0x10, 0), (0x18, 0)] {
            port.write(base + step, 4, value)?;
        }
    }
    let limit = frame_limit(layout.mtu);
    let mut receiver = Receiver {
        ram: ram.clone(),
        posted: vec![0; layout.rx_slots as usize].into_boxed_slice(),
        pool: BufferPool::new(
            layout.receive_offset,
            layout.buffer_bytes,
            layout.buffer_bytes,
            buffers(layout.rx_slots),
        ),
        buffer_bytes: layout.buffer_bytes,
        ring: rx,
        next: 0,
        free: 0,
        unreturned: 0,
        port: receive,
        totals: Totals::default(),
    };
    receiver.refill()?;
    receiver.give()?;
    let is_jumbo = if limit > frame_limit(1500) { RCTL_LPE } else { 0 };
    let unfiltered = if setup.is_promiscuous { RCTL_UPE } else { 0 };
    let size = match layout.buffer_bytes {
        2048 => 0,
        4096 => 3 << 16 | 1 << 25,
        8192 => 2 << 16 | 1 << 25,
        _ => 1 << 16 | 1 << 25,
    };
    receiver.port.write(at::RCTL, 4, RCTL_EN | RCTL_BAM | RCTL_SECRC | is_jumbo | unfiltered | size)?;
    receiver.port.write(at::TCTL, 4, TCTL_EN | TCTL_PSP | TCTL_COLLISIONS)?;
    let sender = Sender {
        ram: ram.clone(),
        start: layout.send_offset,
        buffer_bytes: layout.buffer_bytes,
        limit,
        limit_max: limit,
        ring: tx,
        next: 0,
        shown: 0,
        dirty: 0,
        port: transmit,
        totals: Totals::default(),
    };
    Ok((mac, sender, receiver))
}

fn read_address(port: &Port<Intel>) -> Result<MacAddress> {
    let mut bytes = [0; 6];
    let (pairs, _) = bytes.as_chunks_mut::<2>();
    for (number, pair) in (0..).zip(pairs) {
        port.write(at::EERD, 4, number << 8 | EERD_START)?;
        let word = port.await_register(at::EERD, 4, |value| value & EERD_DONE != 0)? >> 16;
        *pair = (word as u16).to_le_bytes();
    }
    Ok(MacAddress::new(bytes))
}

/// The sending half.
#[derive(Debug)]
pub struct Sender {
    ram: Arc<Ram>,
    start: u32,
    buffer_bytes: u32,
    limit: u32,
    limit_max: u32,
    ring: Ring,
    /// The next descriptor to fill, the first that the card was not shown, the first that it has not returned.
    next: u32,
    shown: u32,
    dirty: u32,
    port: Port<Intel>,
    totals: Totals,
}

impl Sender {
    /// Longest frame, in bytes.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Lowers or restores the longest frame to that of `mtu`, at most what the buffers were made for.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.limit = frame_limit(mtu.min(MTU_MAX)).min(self.limit_max);
    }

    fn check(&self, length: usize) -> Result<u32> {
        match u32::try_from(length) {
            Ok(length) if (ETHERNET_HEADER..=self.limit).contains(&length) => Ok(length),
            _ => Err(Error::Usage(format!(
                "a frame here is {ETHERNET_HEADER} to {} bytes, header included; got {length}",
                self.limit
            ))),
        }
    }

    /// Takes back what the card is done with. `true`: something came back.
    fn reclaim(&mut self) -> bool {
        let before = self.dirty;
        while self.dirty != self.shown && self.is_done() {
            self.dirty = self.ring.after(self.dirty);
        }
        self.dirty != before
    }

    /// Whether the oldest frame that was shown was sent.
    fn is_done(&self) -> bool {
        self.ring.state(self.dirty) >> 32 & u64::from(STATE_DD) != 0
    }

    const fn has_room(&self) -> bool {
        self.ring.after(self.next) != self.dirty
    }

    fn find_room(&mut self) -> bool {
        self.has_room() || (self.reclaim() && self.has_room())
    }

    const fn offset(&self) -> u32 {
        self.start + self.next * self.buffer_bytes
    }

    /// Claims room for one frame and tells where. `None`: no room now.
    ///
    /// # Errors
    ///
    /// As [`Stage::stage_with`].
    pub fn claim(&mut self, length: usize) -> Result<Option<u32>> {
        self.check(length)?;
        Ok(self.find_room().then(|| self.offset()))
    }

    /// Stages the piece claimed last, as a frame of `length` bytes at `offset`.
    pub fn commit(&mut self, offset: u32, length: u32) {
        let word = u64::from(length & 0xffff) | u64::from(CMD_EOP | CMD_IFCS | CMD_RS) << 24;
        self.ring.give(self.next, offset.into(), word);
        self.next = self.ring.after(self.next);
        self.totals.frames += 1;
        self.totals.bytes += u64::from(length);
    }

    /// Gives the piece claimed last back.
    pub const fn cancel(&mut self) {}

    /// Lets `work` stage frames; the card sees them after [`Self::flush`].
    pub fn burst<T>(&mut self, _expected: u32, work: impl FnOnce(&mut Self) -> T) -> T {
        work(self)
    }

    /// The guest's memory.
    pub(crate) const fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Says that frames are about to be staged: of no use here.
    pub const fn expect(&self) {}

    /// Nothing is stamped here.
    pub const fn stop_stamping(&mut self) {}

    /// Sends as many of `frames` as there is room for now, in order; how many that were.
    ///
    /// # Errors
    ///
    /// As [`Stage::stage_with`]; frames before the refused one are sent.
    pub fn send<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) -> Result<usize> {
        super::send(frames, self, Self::flush)
    }

    /// Shows the card everything staged: one trap.
    ///
    /// # Errors
    ///
    /// The register cannot be reached.
    pub fn flush(&mut self) -> Result<()> {
        if self.shown == self.next {
            return Ok(());
        }
        self.port.write(at::TDT, 4, self.next)?;
        self.totals.kicks += 1;
        self.shown = self.next;
        Ok(())
    }

    /// Asks for the interrupt when room comes back. `true`: none has, wait for it.
    ///
    /// # Errors
    ///
    /// A register cannot be reached.
    pub fn arm(&mut self) -> Result<bool> {
        if self.reclaim() {
            return Ok(false);
        }
        let Self { port, ring, dirty, .. } = self;
        port.arm(|| Ok(ring.state(*dirty) >> 32 & u64::from(STATE_DD) != 0))
    }

    /// Waits until there may be room for another frame. `false`: the time was up, or a signal interrupted.
    ///
    /// # Errors
    ///
    /// As [`Self::arm`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        if self.dirty == self.shown {
            return Ok(true);
        }
        let Self { port, ring, dirty, .. } = self;
        port.wait(ROOM_SPIN, timeout, |_| Ok(ring.state(*dirty) >> 32 & u64::from(STATE_DD) != 0))
    }

    /// Frames the card has not taken yet, as of now.
    ///
    /// # Errors
    ///
    /// None; as of drivers whose queues can break.
    pub fn pending(&mut self) -> Result<u32> {
        self.reclaim();
        Ok(self.in_flight())
    }

    /// Frames shown that the card has not returned yet, as last seen.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.ring.distance(self.dirty, self.shown)
    }

    /// What wakes whoever waits for room.
    #[must_use]
    pub const fn call_bell(&self) -> Option<&Doorbell> {
        Some(self.port.call_bell())
    }

    /// The same, which is always there: an epoll set, which cannot be rung.
    #[must_use]
    pub const fn waited(&self) -> &Doorbell {
        self.port.call_bell()
    }

    /// What ends a wait when the card is gone.
    #[must_use]
    pub fn own_bell(&self) -> &Doorbell {
        self.port.own_bell()
    }

    /// What was sent so far.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        Totals { sleeps: self.port.sleeps(), ..self.totals }
    }
}

impl Stage for Sender {
    fn stage_with(&mut self, length: usize, fill: impl FnOnce(&mut [u8])) -> Result<bool> {
        let Some(offset) = self.claim(length)? else { return Ok(false) };
        let place = self.ram.at(offset, length)?;
        // SAFETY: in bounds; the buffer is ours alone until the card is shown it.
        fill(unsafe { std::slice::from_raw_parts_mut(place.as_ptr(), length) });
        self.commit(offset, length as u32);
        Ok(true)
    }
}

/// The receiving half.
pub struct Receiver {
    ram: Arc<Ram>,
    /// Buffer of each descriptor.
    posted: Box<[u32]>,
    pool: BufferPool,
    buffer_bytes: u32,
    ring: Ring,
    /// The next descriptor to come back, and the first without a buffer.
    next: u32,
    free: u32,
    /// Descriptors with buffers that the card was not shown.
    unreturned: u32,
    port: Port<Intel>,
    totals: Totals,
}

impl Receiver {
    /// Puts a buffer into the first descriptor that has none.
    fn post(&mut self, buffer: u32) {
        if let Some(posted) = self.posted.get_mut(self.free as usize) {
            *posted = buffer;
        }
        self.ring.give(self.free, self.pool.offset(buffer).into(), 0);
        self.free = self.ring.after(self.free);
        self.unreturned += 1;
    }

    /// Posts buffers of the pool in all descriptors but one: a full ring looks like an empty one.
    fn refill(&mut self) -> Result<()> {
        while self.ring.after(self.free) != self.next
            && self.pool.available() != 0
            && let Some(buffer) = self.pool.take()
        {
            self.post(buffer);
        }
        if self.unreturned >= RETURN_AT_ONCE.min(self.ring.size() / 2) { self.give() } else { Ok(()) }
    }

    /// Shows the card what was posted: one trap.
    fn give(&mut self) -> Result<()> {
        if self.unreturned != 0 {
            self.port.write(at::RDT, 4, self.free)?;
            self.totals.kicks += 1;
            self.unreturned = 0;
        }
        Ok(())
    }

    /// Whether a frame is there.
    fn is_ready(ring: &Ring, next: u32, free: u32) -> bool {
        next != free && ring.state(next) >> 32 & u64::from(STATE_DD) != 0
    }

    /// The next frame that came, if one did: its buffer, and its length as checked.
    fn returned(&mut self) -> Result<Option<Held>> {
        if !Self::is_ready(&self.ring, self.next, self.free) {
            return Ok(None);
        }
        let state = self.ring.state(self.next);
        let length = (state & 0xffff) as u32;
        let buffer = self.posted.get(self.next as usize).copied().unwrap_or(0);
        let offset = self.pool.offset(buffer);
        let is_whole = state >> 32 & u64::from(STATE_EOP) != 0;
        if !is_whole || length > self.buffer_bytes {
            let posted_length = self.buffer_bytes;
            return Err(Fault::ForeignCompletion { offset, length, posted_offset: offset, posted_length }.into());
        }
        self.next = self.ring.after(self.next);
        self.totals.frames += 1;
        self.totals.bytes += u64::from(length);
        Ok(Some(Held { buffer, offset, length }))
    }

    /// Hands up to `max` waiting frames to `each`, oldest first, and posts their buffers again; how many there were.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the card says what cannot be; frames before that were handed over. Otherwise a register cannot be
    /// reached.
    pub fn receive(&mut self, max: u32, mut each: impl FnMut(&[u8])) -> Result<u32> {
        let mut frames = 0;
        while frames < max
            && let Some(held) = self.returned()?
        {
            let place = self.ram.at(held.offset, held.length as usize)?;
            // SAFETY: in bounds; the card returned this buffer and it is not posted. A host that keeps writing changes bytes
            // that we hand on, never our bookkeeping.
            each(unsafe { std::slice::from_raw_parts(place.as_ptr(), held.length as usize) });
            frames += 1;
            self.pool.give_back(held.buffer);
            self.refill()?;
        }
        Ok(frames)
    }

    /// Takes up to `max` waiting frames without copying them. Their buffers are the caller's until [`Self::give_back`].
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub fn hold(&mut self, max: u32, held: &mut Vec<Held>) -> Result<u32> {
        let mut frames = 0;
        while frames < max
            && let Some(frame) = self.returned()?
        {
            held.push(frame);
            frames += 1;
            self.refill()?;
        }
        Ok(frames)
    }

    /// Returns a held buffer and posts it again.
    ///
    /// # Errors
    ///
    /// A register cannot be reached.
    pub fn give_back(&mut self, buffer: u32) -> Result<()> {
        self.pool.give_back(buffer);
        self.refill()
    }

    /// Asks for the interrupt when a frame arrives. `true`: none has, wait for it. `false`: frames are waiting.
    ///
    /// # Errors
    ///
    /// A register cannot be reached.
    pub fn arm(&mut self) -> Result<bool> {
        // The card has to have what it can get before nobody looks any more.
        if self.ring.distance(self.next, self.free) - self.unreturned < self.ring.size() / 4 {
            self.give()?;
        }
        let Self { port, ring, next, free, .. } = self;
        port.arm(|| Ok(Self::is_ready(ring, *next, *free)))
    }

    /// No more interrupts until the next [`Self::arm`].
    pub fn mask(&self) {
        // A register that cannot be reached fails for whoever polls next, and is told there.
        let _ = self.port.disarm();
    }

    /// Waits for a frame: first by looking for `spin`, then asleep until `timeout` has passed in all. `false`: the time was
    /// up, or a signal interrupted.
    ///
    /// # Errors
    ///
    /// As [`Self::arm`].
    pub fn wait(&mut self, spin: Duration, timeout: Option<Duration>) -> Result<bool> {
        if Self::is_ready(&self.ring, self.next, self.free) {
            return Ok(true);
        }
        self.give()?;
        let Self { port, ring, next, free, .. } = self;
        port.wait(spin, timeout, |_| Ok(Self::is_ready(ring, *next, *free)))
    }

    /// Whether the link is up: a trap.
    ///
    /// # Errors
    ///
    /// The register cannot be reached.
    pub fn is_link_up(&self) -> Result<bool> {
        Ok(self.port.read(at::STATUS, 4)? & STATUS_LU != 0)
    }

    /// What wakes whoever waits for frames.
    #[must_use]
    pub const fn call_bell(&self) -> Option<&Doorbell> {
        Some(self.port.call_bell())
    }

    /// The same, which is always there: an epoll set, which cannot be rung.
    #[must_use]
    pub const fn waited(&self) -> &Doorbell {
        self.port.call_bell()
    }

    /// What ends a wait when the card is gone.
    #[must_use]
    pub fn own_bell(&self) -> &Doorbell {
        self.port.own_bell()
    }

    /// What was received so far.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        Totals { sleeps: self.port.sleeps(), ..self.totals }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("ring", &self.ring).field("totals", &self.totals).finish_non_exhaustive()
    }
}
