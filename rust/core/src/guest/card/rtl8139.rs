//! The driver of an RTL8139: four slots to send from, and a buffer that is a ring to receive from.
//!
//! ```text
//!   start ┌────────────────────────────────┬───────────────┬──────────────┐
//!         │ receive ring, and room behind it│ 4 send buffers│ held frames  │ start + bytes
//!         └────────────────────────────────┴───────────────┴──────────────┘
//! ```
//!
//! Nothing of this card's state is in memory but the header of a received frame: each frame sent is a write of its slot and
//! later a read of it, each frame received a read of CR and a write of CAPR. That is what drivers of this card do, and why it
//! is slow where a trap is dear. A frame that somebody holds is copied out of the ring, which cannot wait.
//! Source: see [`crate::nic::rtl8139`].

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Chip, Port, ROOM_SPIN, Registers};
use crate::error::{Error, Fault, Result};
use crate::guest::nic::{ETHERNET_HEADER, Held, MTU_MIN, Stage, Totals, frame_limit};
use crate::net::frame::MacAddress;
use crate::nic::CHECK_SEQUENCE_BYTES;
use crate::nic::rtl8139::{
    CAPR_LAG, CR_BUFE, CR_RE, CR_RST, CR_TE, HEADER, RCR_AAP, RCR_AB, RCR_APM, RCR_LENGTH_SHIFT, RCR_WRAP,
    SLOT_BYTES_MAX, SLOTS, TSD_OWN, cause, register as at,
};
use crate::shm::doorbell::Doorbell;
use crate::shm::layout::RAM_HEADER_BYTES;
use crate::shm::pool::BufferPool;
use crate::shm::region::Ram;

/// Largest MTU: Ethernet's.
pub const MTU_MAX: u32 = 1500;
/// The receive ring: 32 KiB, the largest that frames may go on behind the end of.
const RING_BYTES: u32 = 32 << 10;
const RING_CODE: u32 = 2;
/// Behind its end: a frame more, and the sixteen bytes that the card wants.
const RING_ROOM: u32 = 2048;
/// Room for one frame.
const BUFFER_BYTES: u32 = 2048;
/// Frames that may be held at once.
const HELD_MAX: u32 = 64;
const MSR_LINK_DOWN: u32 = 0x04;
/// Transmit and receive bursts as large as the bus takes.
const BURSTS: u32 = 7 << 8;

/// Where the parts of one card's driver lie in the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtl8139Layout {
    /// Largest MTU.
    pub mtu: u32,
    /// First byte of the receive ring.
    pub ring_offset: u32,
    /// First byte of the send buffers.
    pub send_offset: u32,
    /// First byte of the room for frames that are held.
    pub held_offset: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Rtl8139Layout {
    /// Lays a driver out from byte `start` on.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the MTU is not 68 to 1500, or 4 GiB are exceeded.
    pub fn plan(start: u32, mtu: u32) -> Result<Self> {
        if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
            return Err(Error::Usage(format!("the MTU of an rtl8139 is {MTU_MIN} to {MTU_MAX}; got {mtu}")));
        }
        let ring_offset = u64::from(start.max(RAM_HEADER_BYTES)).next_multiple_of(128);
        let send_offset = ring_offset + u64::from(RING_BYTES + RING_ROOM);
        let held_offset = send_offset + u64::from(SLOTS * BUFFER_BYTES);
        let end = held_offset + u64::from(HELD_MAX * BUFFER_BYTES);
        let narrow = |value: u64| {
            u32::try_from(value).map_err(|_| Error::Usage("a card's driver lies in the first 4 GiB of RAM".into()))
        };
        Ok(Self {
            mtu,
            ring_offset: narrow(ring_offset)?,
            send_offset: narrow(send_offset)?,
            held_offset: narrow(held_offset)?,
            end: narrow(end)?,
        })
    }
}

struct Realtek;

impl Chip for Realtek {
    const CAUSES: [u32; 2] = [cause::TOK | cause::TER, cause::ROK | cause::RXOVW];

    fn take_causes(registers: &dyn Registers) -> Result<u32> {
        let causes = registers.read(at::ISR, 2)?;
        if causes != 0 {
            registers.write(at::ISR, 2, causes)?;
        }
        Ok(causes)
    }

    fn set_mask(registers: &dyn Registers, _before: u32, after: u32) -> Result<()> {
        registers.write(at::IMR, 2, after)
    }
}

/// Resets the card, reads its address and sets both directions up: the address, and both halves. Promiscuous: frames for any
/// station are taken.
///
/// # Errors
///
/// [`Error::Usage`]: the layout does not fit into `ram`. [`Error::Peer`]: the card does not come out of its reset. Otherwise
/// what `registers` ran into.
pub fn open(
    ram: &Arc<Ram>,
    layout: Rtl8139Layout,
    registers: [Box<dyn Registers>; 2],
    line: Doorbell,
    is_promiscuous: bool,
) -> Result<(MacAddress, Sender, Receiver)> {
    if layout.end as usize > ram.size() {
        return Err(Error::Usage(format!(
            "the card's driver needs {} bytes of guest RAM, there are {}; give the guest more",
            layout.end,
            ram.size()
        )));
    }
    let [transmit, receive] = Port::<Realtek>::pair(registers, line)?;
    let port = &receive;
    port.write(at::CR, 1, CR_RST)?;
    port.await_register(at::CR, 1, |value| value & CR_RST == 0)?;
    let [a, b, c, d] = port.read(at::IDR0, 4)?.to_le_bytes();
    let [e, f, ..] = port.read(at::IDR0 + 4, 4)?.to_le_bytes();
    let mac = MacAddress::new([a, b, c, d, e, f]);
    port.write(at::RBSTART, 4, layout.ring_offset)?;
    for slot in 0..SLOTS {
        port.write(at::TSAD0 + 4 * slot, 4, layout.send_offset + slot * BUFFER_BYTES)?;
    }
    port.write(at::IMR, 2, 0)?;
    port.write(at::CR, 1, CR_TE | CR_RE)?;
    let unfiltered = if is_promiscuous { RCR_AAP } else { 0 };
    let setup = RCR_APM | RCR_AB | RCR_WRAP | RING_CODE << RCR_LENGTH_SHIFT | BURSTS | unfiltered;
    port.write(at::RCR, 4, setup)?;
    port.write(at::TCR, 4, BURSTS)?;
    let words = ram.at(layout.ring_offset, (RING_BYTES + RING_ROOM) as usize)?;
    let limit = frame_limit(layout.mtu);
    let receiver = Receiver {
        ram: ram.clone(),
        ring: words,
        read: 0,
        ring_offset: layout.ring_offset,
        pool: BufferPool::new(layout.held_offset, BUFFER_BYTES, BUFFER_BYTES, HELD_MAX),
        port: receive,
        totals: Totals::default(),
    };
    let sender = Sender {
        ram: ram.clone(),
        start: layout.send_offset,
        limit,
        limit_max: limit,
        lengths: [0; SLOTS as usize],
        next: 0,
        shown: 0,
        dirty: 0,
        port: transmit,
        totals: Totals::default(),
    };
    Ok((mac, sender, receiver))
}

/// The sending half. Slots are counted without end; the number modulo four is the slot's.
#[derive(Debug)]
pub struct Sender {
    ram: Arc<Ram>,
    start: u32,
    limit: u32,
    limit_max: u32,
    lengths: [u32; SLOTS as usize],
    /// The next slot to fill, the first that the card was not shown, the first that it has not returned.
    next: u32,
    shown: u32,
    dirty: u32,
    port: Port<Realtek>,
    totals: Totals,
}

const fn slot_register(slot: u32) -> u32 {
    at::TSD0 + 4 * (slot % SLOTS)
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

    fn is_done(port: &Port<Realtek>, slot: u32) -> Result<bool> {
        Ok(port.read(slot_register(slot), 4)? & TSD_OWN != 0)
    }

    /// Takes back what the card is done with: a trap for each slot that is looked at. `true`: something came back.
    fn reclaim(&mut self) -> Result<bool> {
        let before = self.dirty;
        while self.dirty != self.shown && Self::is_done(&self.port, self.dirty)? {
            self.dirty = self.dirty.wrapping_add(1);
        }
        Ok(self.dirty != before)
    }

    const fn has_room(&self) -> bool {
        self.next.wrapping_sub(self.dirty) < SLOTS
    }

    /// Claims room for one frame and tells where. `None`: no room now.
    ///
    /// # Errors
    ///
    /// As [`Stage::stage_with`].
    pub fn claim(&mut self, length: usize) -> Result<Option<u32>> {
        if !(ETHERNET_HEADER as usize..=self.limit as usize).contains(&length) {
            return Err(Error::Usage(format!(
                "a frame here is {ETHERNET_HEADER} to {} bytes, header included; got {length}",
                self.limit
            )));
        }
        if !self.has_room() && !self.reclaim()? {
            return Ok(None);
        }
        Ok(Some(self.start + self.next % SLOTS * BUFFER_BYTES))
    }

    /// Stages the piece claimed last, as a frame of `length` bytes; it is where its slot is.
    pub fn commit(&mut self, _offset: u32, length: u32) {
        self.lengths[(self.next % SLOTS) as usize] = length.min(SLOT_BYTES_MAX);
        self.next = self.next.wrapping_add(1);
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

    /// Shows the card everything staged: a trap a frame.
    ///
    /// # Errors
    ///
    /// The register cannot be reached.
    pub fn flush(&mut self) -> Result<()> {
        while self.shown != self.next {
            self.port.write(slot_register(self.shown), 4, self.lengths[(self.shown % SLOTS) as usize])?;
            self.shown = self.shown.wrapping_add(1);
            self.totals.kicks += 1;
        }
        Ok(())
    }

    /// Asks for the interrupt when a slot comes back. `true`: none has, wait for it.
    ///
    /// # Errors
    ///
    /// A register cannot be reached.
    pub fn arm(&mut self) -> Result<bool> {
        if self.reclaim()? {
            return Ok(false);
        }
        let (port, dirty) = (&self.port, self.dirty);
        port.arm(|| Self::is_done(port, dirty))
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
        let dirty = self.dirty;
        self.port.wait(ROOM_SPIN, timeout, |port| Self::is_done(port, dirty))
    }

    /// Frames the card has not taken yet, as of now.
    ///
    /// # Errors
    ///
    /// A register cannot be reached.
    pub fn pending(&mut self) -> Result<u32> {
        self.reclaim()?;
        Ok(self.in_flight())
    }

    /// Frames shown that the card has not returned yet, as last seen.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.shown.wrapping_sub(self.dirty)
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
    ring: NonNull<u8>,
    /// Bytes from the start of the ring to the next frame.
    read: u32,
    ring_offset: u32,
    pool: BufferPool,
    port: Port<Realtek>,
    totals: Totals,
}

// SAFETY: the place leads into a mapping that `ram` keeps, and only the one owner of this half reads there.
unsafe impl Send for Receiver {}

impl Receiver {
    /// Whether a frame is there: a trap.
    fn is_ready(port: &Port<Realtek>) -> Result<bool> {
        Ok(port.read(at::CR, 1)? & CR_BUFE == 0)
    }

    /// The next frame that came, if one did: where it is in RAM, and its length as checked.
    fn returned(&mut self) -> Result<Option<(u32, u32)>> {
        if !Self::is_ready(&self.port)? {
            return Ok(None);
        }
        // SAFETY: `read` is a multiple of 4 below the ring's length, all of which is mapped.
        let header = unsafe { AtomicU32::from_ptr(self.ring.as_ptr().add(self.read as usize).cast()) };
        // The trap that found the ring not empty came behind what the card wrote.
        let header = header.load(Ordering::Relaxed);
        let (state, length) = (header & 0xffff, header >> 16);
        let least = ETHERNET_HEADER + CHECK_SEQUENCE_BYTES as u32;
        if state & 1 == 0 || !(least..=SLOT_BYTES_MAX).contains(&length) {
            let offset = self.ring_offset + self.read;
            let (posted_offset, posted_length) = (self.ring_offset, RING_BYTES);
            return Err(Fault::ForeignCompletion { offset, length, posted_offset, posted_length }.into());
        }
        Ok(Some((self.ring_offset + self.read + HEADER, length - CHECK_SEQUENCE_BYTES as u32)))
    }

    /// The frame was read: a trap.
    fn consume(&mut self, length: u32) -> Result<()> {
        let taken = (HEADER + length + CHECK_SEQUENCE_BYTES as u32).next_multiple_of(4);
        self.read = (self.read + taken) % RING_BYTES;
        self.totals.frames += 1;
        self.totals.bytes += u64::from(length);
        self.totals.kicks += 1;
        self.port.write(at::CAPR, 2, self.read.wrapping_sub(CAPR_LAG) & 0xffff)
    }

    /// Hands up to `max` waiting frames to `each`, oldest first; how many there were.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the card says what cannot be; frames before that were handed over. Otherwise a register cannot be
    /// reached.
    pub fn receive(&mut self, max: u32, mut each: impl FnMut(&[u8])) -> Result<u32> {
        let mut frames = 0;
        while frames < max
            && let Some((offset, length)) = self.returned()?
        {
            let place = self.ram.at(offset, length as usize)?;
            // SAFETY: in bounds; the card does not write there before it is told that the frame was read. A host that does
            // changes bytes that we hand on, never our bookkeeping.
            each(unsafe { std::slice::from_raw_parts(place.as_ptr(), length as usize) });
            frames += 1;
            self.consume(length)?;
        }
        Ok(frames)
    }

    /// Takes up to `max` waiting frames out of the ring. Their buffers are the caller's until [`Self::give_back`].
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub fn hold(&mut self, max: u32, held: &mut Vec<Held>) -> Result<u32> {
        let mut frames = 0;
        while frames < max
            && self.pool.available() != 0
            && let Some((from, length)) = self.returned()?
            && let Some(buffer) = self.pool.take()
        {
            let offset = self.pool.offset(buffer);
            let (source, target) = (self.ram.at(from, length as usize)?, self.ram.at(offset, length as usize)?);
            // SAFETY: both in bounds and apart: the layout puts held frames behind the ring.
            unsafe { source.copy_to_nonoverlapping(target, length as usize) };
            held.push(Held { buffer, offset, length });
            frames += 1;
            self.consume(length)?;
        }
        Ok(frames)
    }

    /// Returns a held buffer.
    ///
    /// # Errors
    ///
    /// None; as of drivers that post buffers.
    pub fn give_back(&mut self, buffer: u32) -> Result<()> {
        self.pool.give_back(buffer);
        Ok(())
    }

    /// Asks for the interrupt when a frame arrives. `true`: none has, wait for it. `false`: frames are waiting.
    ///
    /// # Errors
    ///
    /// A register cannot be reached.
    pub fn arm(&mut self) -> Result<bool> {
        let port = &self.port;
        port.arm(|| Self::is_ready(port))
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
        self.port.wait(spin, timeout, Self::is_ready)
    }

    /// Whether the link is up: a trap.
    ///
    /// # Errors
    ///
    /// The register cannot be reached.
    pub fn is_link_up(&self) -> Result<bool> {
        Ok(self.port.read(at::MSR, 1)? & MSR_LINK_DOWN == 0)
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
        f.debug_struct("Receiver").field("read", &self.read).field("totals", &self.totals).finish_non_exhaustive()
    }
}
