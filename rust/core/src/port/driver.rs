//! A port that is the front end of somebody else's network device: the switch in front of DPDK's, VPP's or another host
//! node's back end.
//!
//! ```text
//!   claim ─▶ a free TX buffer, its header empty ─▶ (copied there) ─▶ release: shown, kicked if wanted ─▶ back end
//!   back end ─▶ used RX buffers ─▶ load: checked, taken ─▶ (switch) ─▶ give_back: posted again
//! ```
//!
//! Who writes what: the memory is ours; the back end writes used rings and the buffers that it was given, and may write all of
//! it at any time. A used entry is believed once it names a buffer that the back end has. The queues are made and handed over
//! by another thread ([`crate::vhost_user::front`]); between two back ends the port has none.
//! The danger: eventfds are shared with the back end, so kicks are rung where a watchdog ends what blocks, and calls are never
//! read. A queue that was lied to is not touched again before the next back end.
//! Source: virtio 1.2 §2.7, §5.1.6.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::batch::{BATCH, Batch, Piece, prefetch_read, prefetch_write};
use super::{PortPart, Refusal};
use crate::error::{Error, Fault, Result};
use crate::net::frame::{HEADER_BYTES, frame_limit};
use crate::shm::doorbell::Doorbell;
use crate::shm::layout::RAM_HEADER_BYTES;
use crate::shm::region::Ram;
use crate::virtio::driver::{DriverBuffers, DriverRing, HEADER, RingPlaces, WRITE};
use crate::worker::watchdog::Ringer;

/// Entries of each queue; of frames longer than [`SHORT_MTU`] fewer, as each has a buffer of that size.
const SLOTS: u32 = 1024;
const LONG_SLOTS: u32 = 256;
const SHORT_MTU: u32 = 9000;

/// One queue, its buffers and its eventfds.
#[derive(Debug)]
pub(crate) struct Half {
    ring: DriverRing,
    buffers: DriverBuffers,
    /// Which buffers the back end has.
    lent: Box<[bool]>,
    /// How many it was shown.
    under_way: u16,
    /// Where its ring is.
    pub places: RingPlaces,
    /// Entries.
    pub slots: u32,
    /// Wakes the back end.
    pub kick: Doorbell,
    /// Wakes us.
    pub call: Doorbell,
    fault: Option<Fault>,
    is_told: bool,
}

impl Half {
    fn new(ram: &Arc<Ram>, start: u32, (slots, room): (u32, u32), has_event_index: bool) -> Result<Self> {
        Ok(Self {
            ring: DriverRing::new(ram, start, slots, has_event_index)?,
            buffers: DriverBuffers::new(ram, start + RingPlaces::bytes(slots), room, slots)?,
            lent: vec![false; slots as usize].into_boxed_slice(),
            under_way: 0,
            places: RingPlaces::at(start, slots),
            slots,
            kick: Doorbell::create()?,
            call: Doorbell::create()?,
            fault: None,
            is_told: false,
        })
    }

    /// Bytes of a ring and its buffers.
    fn bytes(slots: u32, room: u32) -> u64 {
        u64::from(RingPlaces::bytes(slots)) + u64::from(slots) * u64::from(DriverBuffers::stride(room))
    }

    fn end(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    /// The next buffer that came back, and the bytes written to it. None: there is none, or the queue has ended.
    #[inline]
    fn take(&mut self) -> Option<(u16, u32)> {
        if self.fault.is_some() {
            return None;
        }
        let taken = match self.ring.ready(self.under_way) {
            Ok(0) => return None,
            Ok(_) => self.ring.take(),
            Err(fault) => Err(fault),
        };
        let limit = u32::from(self.ring.size);
        let checked = taken.and_then(|(id, written)| match std::mem::take(&mut self.lent[usize::from(id)]) {
            true => Ok((id, written)),
            false => Err(Fault::IndexOutOfRange { index: id.into(), limit }),
        });
        match checked {
            Ok(found) => {
                self.under_way -= 1;
                Some(found)
            }
            Err(fault) => {
                self.end(fault);
                None
            }
        }
    }

    #[inline]
    fn put(&mut self, id: u16) {
        self.ring.put(id);
        self.lent[usize::from(id)] = true;
    }

    /// Shows the back end everything put, and kicks it if it wants that: whether it was kicked.
    fn show(&mut self, ringer: &Ringer) -> bool {
        let unshown = self.ring.unshown();
        if unshown == 0 {
            return false;
        }
        self.under_way += unshown;
        let is_wanted = self.ring.show();
        if is_wanted && let Err(fault) = ringer.ring(&self.kick) {
            self.end(fault);
        }
        is_wanted
    }
}

/// Both queues of a card whose device is somebody else's.
#[derive(Debug)]
pub(crate) struct DriverRings {
    ram: Arc<Ram>,
    /// Frames to the back end.
    pub to_device: Half,
    /// Frames from it.
    pub from_device: Half,
    /// Of the first, the buffers that it does not have; the last one returned on top, for it is warm.
    free: Vec<u16>,
    /// Frames that came and were not given back: their buffer, and their bytes.
    loaded: VecDeque<(u16, u32)>,
}

impl DriverRings {
    /// Queues for a card of this MTU, with every buffer for frames from the device posted.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no memory or descriptor is free.
    pub(crate) fn new(mtu: u32, has_event_index: bool) -> Result<Self> {
        let slots = if mtu > SHORT_MTU { LONG_SLOTS } else { SLOTS };
        let room = frame_limit(mtu);
        let each = Half::bytes(slots, room).next_multiple_of(RAM_HEADER_BYTES.into());
        let ram = Ram::create("vbnet-front", u64::from(RAM_HEADER_BYTES) + 2 * each)?;
        let second = RAM_HEADER_BYTES + u32::try_from(each).map_err(|_| Error::Usage("the MTU is too large".into()))?;
        let mut rings = Self {
            to_device: Half::new(&ram, RAM_HEADER_BYTES, (slots, room), has_event_index)?,
            from_device: Half::new(&ram, second, (slots, room), has_event_index)?,
            free: (0..slots as u16).rev().collect(),
            loaded: VecDeque::with_capacity(BATCH),
            ram,
        };
        for id in 0..slots as u16 {
            let header = |half: &Half| u64::from(half.buffers.offset(id) - HEADER) + GUEST;
            let (to, from) = (&rings.to_device, &mut rings.from_device);
            to.ring.describe(id, header(to), HEADER, 0, 0);
            from.ring.describe(id, header(from), HEADER + room, WRITE, 0);
            from.put(id);
        }
        rings.to_device.ring.disarm();
        rings.from_device.ring.disarm();
        rings.from_device.under_way = rings.from_device.ring.unshown();
        // Nobody to be kicked is there yet: whoever starts the queues sees what is available.
        rings.from_device.ring.show();
        Ok(rings)
    }

    /// The memory to share with the back end.
    pub(crate) const fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }
}

/// Where our memory begins for the back end. Not at 0, which some take for no address at all.
pub(crate) const GUEST: u64 = 1 << 32;

/// A front end, worked on by one worker.
pub(crate) struct DriverPort {
    rings: Option<Box<DriverRings>>,
    frame_limit: u32,
    is_up: bool,
    /// Frames and bytes given since the last release.
    given: (u64, u64),
}

impl DriverPort {
    pub(crate) const fn new(mtu: u32) -> Self {
        Self { rings: None, frame_limit: frame_limit(mtu), is_up: true, given: (0, 0) }
    }

    /// Works on other queues from now on, or on none: those until now. What was under way in them is lost with their back end.
    pub(crate) fn exchange(&mut self, rings: Option<Box<DriverRings>>, ringer: &Ringer) -> Option<Box<DriverRings>> {
        self.release(ringer);
        let before = std::mem::replace(&mut self.rings, rings);
        if let Some(rings) = &mut self.rings {
            // Some start a queue with its first kick.
            for half in [&mut rings.to_device, &mut rings.from_device] {
                if let Err(fault) = ringer.ring(&half.kick) {
                    half.end(fault);
                }
            }
        }
        before
    }

    /// The eventfds by which the back end says that it has frames.
    pub(crate) fn calls(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().map(|rings| rings.from_device.call.as_fd())
    }

    /// Entries of the queue from the device and of the one to it, and how many wait there or are free.
    pub(crate) fn occupancy(&self) -> [(u32, u32); 2] {
        self.rings.as_ref().map_or([(0, 0); 2], |rings| {
            [(rings.from_device.slots, rings.loaded.len() as u32), (rings.to_device.slots, rings.free.len() as u32)]
        })
    }

    pub(crate) const fn set_mtu(&mut self, mtu: u32) {
        self.frame_limit = frame_limit(mtu);
    }

    pub(crate) const fn set_up(&mut self, is_up: bool) {
        self.is_up = is_up;
    }

    /// Nothing comes out of it until the next back end.
    pub(crate) fn is_mute(&self) -> bool {
        self.rings.as_ref().is_some_and(|rings| rings.from_device.fault.is_some())
    }

    /// Something broke that was not told yet: what, once.
    pub(crate) fn take_fault(&mut self) -> Option<(PortPart, Fault)> {
        let rings = self.rings.as_mut()?;
        [(PortPart::Transmit, &mut rings.from_device), (PortPart::Receive, &mut rings.to_device)].into_iter().find_map(
            |(part, half)| {
                let fault = half.fault.filter(|_| !half.is_told)?;
                half.is_told = true;
                Some((part, fault))
            },
        )
    }

    /// Something broke and was not told.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        let is_news = |half: &Half| half.fault.is_some() && !half.is_told;
        self.rings.as_ref().is_some_and(|rings| is_news(&rings.to_device) || is_news(&rings.from_device))
    }

    // ---- frames from the back end ----------------------------------------------------------------------------------

    /// Shows up to `wanted` frames; they stay until [`Self::give_back`].
    pub(crate) fn load(&mut self, batch: &mut Batch, wanted: usize) -> usize {
        let Self { rings: Some(rings), frame_limit, .. } = self else { return 0 };
        let DriverRings { from_device: half, loaded, .. } = &mut **rings;
        while loaded.len() < wanted
            && let Some((id, written)) = half.take()
        {
            let limit = HEADER + half.buffers.room;
            if written > limit {
                half.end(Fault::TooLong { length: written, limit });
                break;
            }
            if written < HEADER + HEADER_BYTES {
                half.end(Fault::TooShort { length: written, limit: HEADER + HEADER_BYTES });
                break;
            }
            let frame = half.buffers.frame(id);
            prefetch_read(frame.wrapping_sub(HEADER as usize));
            prefetch_read(frame);
            loaded.push_back((id, written - HEADER));
        }
        let mut found = 0;
        for (piece, &(id, length)) in batch.pieces.iter_mut().zip(&*loaded).take(wanted) {
            let frame = half.buffers.frame(id);
            // SAFETY: a header lies in front of each frame of our buffers; one look.
            let [flags, kind] = unsafe { frame.sub(HEADER as usize).cast::<[u8; 2]>().read_volatile() };
            if flags | kind != 0 {
                half.end(Fault::UnknownFlags { flags: flags | kind });
                loaded.truncate(found);
                break;
            }
            piece.source = frame;
            piece.length = if length > *frame_limit { 0 } else { length };
            found += 1;
        }
        found
    }

    /// A loaded frame, also one that is too long to be forwarded.
    pub(crate) fn loaded(&self, index: u32) -> Option<(*const u8, u32)> {
        let rings = self.rings.as_ref()?;
        let &(id, length) = rings.loaded.get(index as usize)?;
        Some((rings.from_device.buffers.frame(id).cast_const(), length))
    }

    /// Posts the buffers of the oldest `count` loaded frames again: whether the back end was kicked.
    pub(crate) fn give_back(&mut self, count: u32, ringer: &Ringer) -> bool {
        let Some(rings) = &mut self.rings else { return false };
        let DriverRings { from_device: half, loaded, .. } = &mut **rings;
        for (id, _) in loaded.drain(..loaded.len().min(count as usize)) {
            half.put(id);
        }
        half.show(ringer)
    }

    /// Asks the back end to call. `true`: there is nothing to do now.
    pub(crate) fn arm(&mut self) -> bool {
        let Some(rings) = &mut self.rings else { return true };
        let DriverRings { from_device: half, loaded, .. } = &mut **rings;
        if half.fault.is_some() {
            return true;
        }
        match half.ring.arm(half.under_way) {
            Ok(is_empty) => is_empty && loaded.is_empty(),
            Err(fault) => {
                half.end(fault);
                true
            }
        }
    }

    /// No calls wanted: the port is polled.
    pub(crate) fn disarm(&self) {
        if let Some(rings) = &self.rings {
            rings.from_device.ring.disarm();
        }
    }

    // ---- frames to the back end ------------------------------------------------------------------------------------

    /// Takes a buffer for a frame: where to write it, at least 64 bytes.
    pub(crate) fn claim(&mut self, piece: &Piece) -> std::result::Result<*mut u8, Refusal> {
        let Self { rings: Some(rings), is_up: true, frame_limit, given } = self else {
            return Err(Refusal::LinkDown);
        };
        if piece.length > *frame_limit {
            return Err(Refusal::Oversize);
        }
        let DriverRings { to_device: half, free, .. } = &mut **rings;
        if free.is_empty() {
            while let Some((id, _)) = half.take() {
                prefetch_write(half.buffers.frame(id));
                free.push(id);
            }
        }
        if half.fault.is_some() {
            return Err(Refusal::Quarantined);
        }
        let id = free.pop().ok_or(Refusal::NoRoom)?;
        half.ring.set_length(id, HEADER + piece.length);
        half.put(id);
        given.0 += 1;
        given.1 += u64::from(piece.length);
        Ok(half.buffers.frame(id))
    }

    /// Frames and bytes given since the last [`Self::release`].
    pub(crate) const fn given(&self) -> (u64, u64) {
        self.given
    }

    /// Shows the back end what it was given: whether it was kicked.
    pub(crate) fn release(&mut self, ringer: &Ringer) -> bool {
        self.given = (0, 0);
        self.rings.as_mut().is_some_and(|rings| rings.to_device.show(ringer))
    }
}

impl fmt::Debug for DriverPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverPort").field("has_rings", &self.rings.is_some()).finish_non_exhaustive()
    }
}
