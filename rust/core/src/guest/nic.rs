//! A network card of a guest, whatever its model: what guest programs send through and receive from.
//!
//! ```text
//!   python · stack · traffic · bridge ─▶ Sender, Receiver ─▶ which model? asked once a batch ─▶ a driver
//!                                        Load: what is done for each frame of a batch, made anew for each driver
//! ```
//!
//! A driver has two halves, so that two threads can send and receive without a lock. Each model is a variant of both halves,
//! and of the line in [`each`]; nothing else here knows it. What is done for each frame is generic ([`Load`], closures), so
//! that no frame asks which model it is for: its loop is inlined into the driver's, as if there were only this one.
//!
//! Who writes what: as the driver says. A driver owns the guest's memory that it lays out, and checks what the host says.

use std::time::{Duration, Instant};

use super::card::{e1000, rtl8139};
use super::pieces::{Part, stage_together};
use super::venet;
use super::virtio::net as virtio;
use crate::error::Result;
use crate::net::grant::Grant;
use crate::net::offload::{NO_REQUEST, OFFLOAD_HEADER_BYTES};
use crate::shm::doorbell::Doorbell;
use crate::shm::layout::CACHE_LINE;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: u32 = 14;
/// Bytes a VLAN tag adds.
pub const VLAN_TAG: u32 = 4;
/// Largest MTU.
pub const MTU_MAX: u32 = 65_535;
/// Smallest MTU: what IPv4 demands.
pub const MTU_MIN: u32 = 68;
/// Looks between two looks at the clock.
const LOOKS: u32 = 16;
/// Most frames that room is taken for at once.
pub const BURST_MAX: u32 = 256;

/// Longest frame a device of this MTU carries.
#[must_use]
pub const fn frame_limit(mtu: u32) -> u32 {
    mtu + ETHERNET_HEADER + VLAN_TAG
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

/// A received frame that stays in its buffer until it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which buffer; for [`Receiver::give_back`].
    pub buffer: u32,
    /// Where the frame is in the guest's memory.
    pub offset: u32,
    /// Its bytes.
    pub length: u32,
}

/// Frames on their way into a driver: what is staged is seen by the host after [`Sender::flush`].
pub trait Stage {
    /// Claims room for one frame of `length` bytes, lets `fill` write it, and stages it. `false`: there is no room now,
    /// nothing happened.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Usage`]: no Ethernet frame has this length; [`crate::error::Error::Peer`]: the host broke the
    /// queue.
    fn stage_with(&mut self, length: usize, fill: impl FnOnce(&mut [u8])) -> Result<bool>;

    /// Stages a copy of `frame`. `false`: no room now.
    ///
    /// # Errors
    ///
    /// As [`Self::stage_with`].
    #[inline(always)]
    fn stage(&mut self, frame: &[u8]) -> Result<bool> {
        self.stage_with(frame.len(), |room| copy_frame(room, frame))
    }
}

/// What is done to fill a burst.
pub trait Load {
    /// What comes of it.
    type Answer;

    /// Stages frames. Implementations are `#[inline(always)]`: a burst keeps what a frame changes in registers.
    fn load(self, burst: &mut impl Stage) -> Self::Answer;
}

/// Stages one frame.
struct One<F> {
    length: usize,
    fill: F,
}

impl<F: FnOnce(&mut [u8])> Load for One<F> {
    type Answer = Result<bool>;

    #[inline(always)]
    fn load(self, burst: &mut impl Stage) -> Result<bool> {
        burst.stage_with(self.length, self.fill)
    }
}

/// The sending half of a driver.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the common model is in one piece with who has it")]
pub enum Sender {
    /// Two rings of the bus.
    Venet(venet::Sender),
    /// Two virtqueues.
    Virtio(Box<virtio::Sender>),
    /// An emulated Intel 82540EM.
    E1000(Box<e1000::Sender>),
    /// An emulated RTL8139.
    Rtl8139(Box<rtl8139::Sender>),
}

/// The receiving half of a driver.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the common model is in one piece with who has it")]
pub enum Receiver {
    /// Two rings of the bus.
    Venet(venet::Receiver),
    /// Two virtqueues.
    Virtio(Box<virtio::Receiver>),
    /// An emulated Intel 82540EM.
    E1000(Box<e1000::Receiver>),
    /// An emulated RTL8139.
    Rtl8139(Box<rtl8139::Receiver>),
}

/// Does the same with whichever driver a half is of. Models are named here, and below where cards that are granted nothing
/// need nothing of their own.
macro_rules! each {
    ($half:expr, $driver:ident => $work:expr) => {
        match $half {
            Self::Venet($driver) => $work,
            Self::Virtio($driver) => $work,
            Self::E1000($driver) => $work,
            Self::Rtl8139($driver) => $work,
        }
    };
}

impl From<venet::Sender> for Sender {
    fn from(half: venet::Sender) -> Self {
        Self::Venet(half)
    }
}

impl From<venet::Receiver> for Receiver {
    fn from(half: venet::Receiver) -> Self {
        Self::Venet(half)
    }
}

impl From<virtio::Sender> for Sender {
    fn from(half: virtio::Sender) -> Self {
        Self::Virtio(Box::new(half))
    }
}

impl From<virtio::Receiver> for Receiver {
    fn from(half: virtio::Receiver) -> Self {
        Self::Virtio(Box::new(half))
    }
}

impl From<e1000::Sender> for Sender {
    fn from(half: e1000::Sender) -> Self {
        Self::E1000(Box::new(half))
    }
}

impl From<rtl8139::Sender> for Sender {
    fn from(half: rtl8139::Sender) -> Self {
        Self::Rtl8139(Box::new(half))
    }
}

impl From<e1000::Receiver> for Receiver {
    fn from(half: e1000::Receiver) -> Self {
        Self::E1000(Box::new(half))
    }
}

impl From<rtl8139::Receiver> for Receiver {
    fn from(half: rtl8139::Receiver) -> Self {
        Self::Rtl8139(Box::new(half))
    }
}

impl Sender {
    /// Longest frame, in bytes.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        each!(self, driver => driver.limit())
    }

    /// Lowers or restores the longest frame to that of `mtu`, at most what the buffers were made for.
    pub fn set_mtu(&mut self, mtu: u32) {
        each!(self, driver => driver.set_mtu(mtu));
    }

    /// Lets `work` stage frames, about `expected` of them; what it staged stays so whatever it answers, and is seen by the
    /// host after [`Self::flush`].
    #[inline(always)]
    pub fn burst<L: Load>(&mut self, expected: u32, work: L) -> L::Answer {
        each!(self, driver => driver.burst(expected, |burst| work.load(burst)))
    }

    /// As [`Stage::stage_with`], for one frame.
    ///
    /// # Errors
    ///
    /// As [`Stage::stage_with`].
    #[inline]
    pub fn stage_with(&mut self, length: usize, fill: impl FnOnce(&mut [u8])) -> Result<bool> {
        match self {
            // Its answer comes in a register: from memory, it would wait there behind the frame's own bytes.
            Self::Venet(driver) => driver.stage_with(length, fill),
            Self::Virtio(_) | Self::E1000(_) | Self::Rtl8139(_) => self.burst(1, One { length, fill }),
        }
    }

    /// Stages a copy of `frame`. `false`: no room now.
    ///
    /// # Errors
    ///
    /// As [`Stage::stage_with`].
    #[inline]
    pub fn stage(&mut self, frame: &[u8]) -> Result<bool> {
        self.stage_with(frame.len(), |room| copy_frame(room, frame))
    }

    /// What was agreed on beyond plain frames.
    #[must_use]
    pub const fn grant(&self) -> &Grant {
        match self {
            Self::Venet(driver) => driver.grant(),
            Self::Virtio(driver) => driver.grant(),
            Self::E1000(_) | Self::Rtl8139(_) => &Grant::NOTHING,
        }
    }

    /// Stages one frame of several pieces, `request` (a `virtio_net_hdr`) with it. The host sees it after [`Self::flush`].
    /// `false`: there is no room now, nothing happened. A card that was granted no pieces has them put together.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Usage`]: no frame has this length here, it has too many pieces, a place is outside the RAM, or
    /// requests were not granted; [`crate::error::Error::Peer`]: the host broke the queue.
    pub fn stage_long(&mut self, request: Option<&[u8; OFFLOAD_HEADER_BYTES]>, parts: &[Part<'_>]) -> Result<bool> {
        match self {
            Self::Venet(driver) => driver.stage_long(request, parts),
            Self::Virtio(driver) => driver.stage_long(request, parts),
            Self::E1000(card) => {
                let (limit, ram) = (card.limit(), card.ram().clone());
                stage_together(card.as_mut(), request.is_some(), parts, limit, &ram)
            }
            Self::Rtl8139(card) => {
                let (limit, ram) = (card.limit(), card.ram().clone());
                stage_together(card.as_mut(), request.is_some(), parts, limit, &ram)
            }
        }
    }

    /// Says that frames are about to be staged and flushed, while there is still something else to do.
    #[inline]
    pub fn expect(&self) {
        each!(self, driver => driver.expect());
    }

    /// Claims room for one frame and tells where in the guest's memory: write there, then [`Self::commit`] or
    /// [`Self::cancel`] it, before anything else is staged. `None`: no room now.
    ///
    /// # Errors
    ///
    /// As [`Stage::stage_with`].
    pub fn claim(&mut self, length: usize) -> Result<Option<u32>> {
        each!(self, driver => driver.claim(length))
    }

    /// Stages the piece claimed last, as a frame of `length` bytes at `offset`.
    pub fn commit(&mut self, offset: u32, length: u32) {
        each!(self, driver => driver.commit(offset, length));
    }

    /// Gives the piece claimed last back.
    pub fn cancel(&mut self) {
        each!(self, driver => driver.cancel());
    }

    /// Shows the host everything staged, and wakes it if it sleeps.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Machine`]: the doorbell is broken. [`crate::error::Error::PeerGone`]: a register cannot be
    /// reached.
    #[inline]
    pub fn flush(&mut self) -> Result<()> {
        each!(self, driver => driver.flush())
    }

    /// Sends as many of `frames` as there is room for now, in order; how many that were.
    ///
    /// # Errors
    ///
    /// As [`Stage::stage_with`]; frames before the refused one are sent.
    #[inline]
    pub fn send<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) -> Result<usize> {
        each!(self, driver => driver.send(frames))
    }

    /// Asks for the doorbell when room comes back. `true`: none has, wait for it. `false`: there is room already.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Peer`]: the host broke the queue.
    pub fn arm(&mut self) -> Result<bool> {
        each!(self, driver => driver.arm())
    }

    /// Waits until there may be room for another frame. `false`: the time was up, or a signal interrupted.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Usage`] without doorbells; otherwise as [`Self::arm`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        each!(self, driver => driver.wait(timeout))
    }

    /// Frames the host has not taken yet, as of now.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Peer`]: the host broke the queue.
    pub fn pending(&mut self) -> Result<u32> {
        each!(self, driver => driver.pending())
    }

    /// Frames published that the host has not returned yet, as last seen.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        each!(self, driver => driver.in_flight())
    }

    /// What wakes whoever waits for room, when connected.
    #[must_use]
    pub fn call_bell(&self) -> Option<&Doorbell> {
        each!(self, driver => driver.call_bell())
    }

    /// Stamps nothing from now on, where the model stamps: for measuring what stamps cost.
    pub fn stop_stamping(&mut self) {
        each!(self, driver => driver.stop_stamping());
    }

    /// What was sent so far.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        each!(self, driver => driver.totals())
    }
}

impl Receiver {
    /// Hands up to `max` waiting frames to `each`, oldest first, and posts their buffers again; how many there were.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Peer`]: the host broke the queue; frames before that were handed over.
    /// [`crate::error::Error::Machine`]: the doorbell is broken.
    #[inline]
    pub fn receive(&mut self, max: u32, each: impl FnMut(&[u8])) -> Result<u32> {
        each!(self, driver => driver.receive(max, each))
    }

    /// As [`Self::receive`], with the `virtio_net_hdr` of each frame: all zeroes unless something is left to be done.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    #[inline]
    pub fn receive_long(&mut self, max: u32, mut each: impl FnMut(&[u8], &[u8; OFFLOAD_HEADER_BYTES])) -> Result<u32> {
        match self {
            Self::Venet(driver) => driver.receive_long(max, each),
            Self::Virtio(driver) => driver.receive_long(max, each),
            Self::E1000(card) => card.receive(max, |frame| each(frame, &NO_REQUEST)),
            Self::Rtl8139(card) => card.receive(max, |frame| each(frame, &NO_REQUEST)),
        }
    }

    /// Takes up to `max` waiting frames without copying them. Their buffers are the caller's until
    /// [`Self::give_back`]; while too many are held, fewer can be received into.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub fn hold(&mut self, max: u32, held: &mut Vec<Held>) -> Result<u32> {
        each!(self, driver => driver.hold(max, held))
    }

    /// Returns a held buffer and posts it again.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Machine`]: the doorbell is broken.
    pub fn give_back(&mut self, buffer: u32) -> Result<()> {
        each!(self, driver => driver.give_back(buffer))
    }

    /// Asks for the doorbell when a frame arrives. `true`: none has, wait for it. `false`: frames are waiting.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Peer`]: the host broke the queue.
    pub fn arm(&mut self) -> Result<bool> {
        each!(self, driver => driver.arm())
    }

    /// No more doorbells until the next [`Self::arm`]: the half is polled.
    pub fn mask(&self) {
        each!(self, driver => driver.mask());
    }

    /// Waits for a frame: first by looking for `spin`, then asleep until `timeout` has passed in all. `false`: the time
    /// was up, or a signal interrupted.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Usage`] without doorbells; otherwise as [`Self::arm`].
    pub fn wait(&mut self, spin: Duration, timeout: Option<Duration>) -> Result<bool> {
        each!(self, driver => driver.wait(spin, timeout))
    }

    /// What wakes whoever waits for frames, when connected.
    #[must_use]
    pub fn call_bell(&self) -> Option<&Doorbell> {
        each!(self, driver => driver.call_bell())
    }

    /// What was received so far.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        each!(self, driver => driver.totals())
    }
}

/// Looks until there is something, or for `spin`. `true`: there is.
///
/// # Errors
///
/// Those of `look`.
pub(super) fn look_for(spin: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<bool> {
    if look()? {
        return Ok(true);
    }
    let start = Instant::now();
    while start.elapsed() < spin {
        for _ in 0..LOOKS {
            if look()? {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
    }
    Ok(false)
}

/// Copies a frame into its room, which is as long. Up to a line here and now: calling the library costs more, also for
/// the loop around it. No byte is stored twice if the frame fills its line: a processor has room for a few dozen
/// stores that wait for their lines.
#[inline(always)]
pub(super) fn copy_frame(room: &mut [u8], frame: &[u8]) {
    const PART: usize = CACHE_LINE / 4;
    let length = frame.len();
    if room.len() != length || !(2 * PART..=CACHE_LINE).contains(&length) {
        return copy_any(room, frame);
    }
    for at in [0, PART, length - 2 * PART, length - PART] {
        // SAFETY: each part lies within `length`, at least two parts; both slices are that long and do not overlap.
        unsafe {
            let part = frame.as_ptr().add(at).cast::<[u8; PART]>().read();
            room.as_mut_ptr().add(at).cast::<[u8; PART]>().write(part);
        }
    }
}

#[cold]
#[inline(never)]
fn copy_any(room: &mut [u8], frame: &[u8]) {
    room.copy_from_slice(frame);
}
