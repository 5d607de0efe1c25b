//! The driver of a disk: requests over the crate's queue, with deadlines, several under way at once.
//!
//! ```text
//!   read_at, write_at, … ─▶ whole sectors, in chunks ─▶ a slot each: header · data · status ─▶ queue ─▶ used, in any order
//! ```
//!
//! The crate's own block driver waits for ever for some of its requests and knows neither discards nor zeroes; its queue does
//! all that is needed here. Slots lie in the arena from the start, so nothing is allocated or shared while it works.
//!
//! A request whose time is up keeps its slot until the device answers after all; what it answers then is dropped, but a write
//! may still be done. The danger: the device may answer what was never asked, and that ends the driver.
//! Source: virtio 1.2 §5.2.

use std::fmt;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_drivers::Error as VirtioError;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

use super::arena::{Arena, RamHal};
use super::transport::{ALIVE, BusTransport, Failure, Registers, Tally, Waker};
use crate::error::{Error, Fault, Result};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Requests under way at most: each takes up to three descriptors.
const SLOTS_MAX: usize = 8;
const QUEUE: u16 = 0;
const QUEUE_SIZE: usize = 32;
const HEADER_BYTES: usize = 16;
/// Header, and a status on a cache line of its own.
const CONTROL_BYTES: u32 = 128;
const STATUS_AT: usize = 64;
/// What a slot has for data: at least a page, at most this.
const CHUNK_BYTES_MAX: u32 = 256 << 10;
/// Sectors that one range of a discard or of zeroes names at most.
const RANGE_SECTORS: u64 = 1 << 22;

const WANTED: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_BLK_F_RO
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

/// Until when to wait, and how long of it awake.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// When to give up.
    pub deadline: Instant,
    /// How long to spin before going to sleep.
    pub spin: Duration,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    token: u16,
    kind: u32,
    /// Which operation it belongs to: one that was given up is not answered to any more.
    operation: u64,
    /// Where its data is in what the operation is about.
    at: u64,
    bytes: u32,
}

#[derive(Debug)]
struct Slot {
    control: NonNull<u8>,
    data: NonNull<u8>,
    under_way: Option<UnderWay>,
}

/// A disk of a guest.
pub struct Disk {
    arena: Arc<Arena>,
    transport: BusTransport,
    /// Taken when the driver ends, within its arena.
    queue: Option<VirtQueue<RamHal, QUEUE_SIZE>>,
    failure: Arc<Failure>,
    slots: Vec<Slot>,
    chunk_bytes: u32,
    sectors: u64,
    features: u64,
    operation: u64,
    fault: Option<Fault>,
}

// SAFETY: the slots' places lie in the arena's memory, which this holds; they have no thread affinity.
unsafe impl Send for Disk {}

pub(super) fn driver_error(error: VirtioError) -> Error {
    match error {
        VirtioError::DmaError => Error::Usage("the block of memory for a virtio driver is too small".into()),
        other => Error::Usage(format!("the virtio driver refused: {other}")),
    }
}

impl Disk {
    /// Starts the driver of an open device, in an arena of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: it is no disk, or the arena is too small. [`Error::Peer`]: it answered what cannot be. Otherwise what
    /// `registers` ran into.
    pub fn start(registers: Arc<dyn Registers>, arena: &Arc<Arena>) -> Result<Self> {
        arena.enter(|| Self::start_within(registers, arena))
    }

    fn start_within(registers: Arc<dyn Registers>, arena: &Arc<Arena>) -> Result<Self> {
        let mut transport = BusTransport::open(registers, arena)?;
        if transport.device_type() != DeviceType::Block {
            return Err(Error::Usage(format!("this is no disk but a {:?}", transport.device_type())));
        }
        let failure = transport.failure();
        let features = transport.agree(WANTED)?;
        if transport.config_bytes() < 8 {
            let found = transport.config_bytes() as u64;
            return Err(Fault::BadSize { what: "configuration of a disk", found, limit: 8 }.into());
        }
        let sectors = transport.read_config_space::<u64>(0).map_err(driver_error);
        failure.take()?;
        let has_event_index = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queue = VirtQueue::new(&mut transport, QUEUE, false, has_event_index);
        failure.take()?;
        let mut disk = Self {
            arena: arena.clone(),
            transport,
            queue: Some(queue.map_err(driver_error)?),
            failure,
            slots: Vec::new(),
            chunk_bytes: 0,
            sectors: sectors?,
            features,
            operation: 0,
            fault: None,
        };
        disk.lay_out()?;
        disk.transport.set_status(DeviceStatus::from_bits_retain(ALIVE));
        disk.failure.take()?;
        Ok(disk)
    }

    /// Divides what is left of the arena into slots.
    fn lay_out(&mut self) -> Result<()> {
        let small = || Error::Usage("the block of memory for a disk's driver is too small".into());
        let room = self.arena.room() / SLOTS_MAX as u32;
        self.chunk_bytes = (room.saturating_sub(CONTROL_BYTES) / 4096 * 4096).min(CHUNK_BYTES_MAX);
        if self.chunk_bytes == 0 {
            return Err(small());
        }
        for _ in 0..SLOTS_MAX {
            let place = |bytes: u32, align| {
                let offset = self.arena.allocate(bytes, align).ok_or_else(small)?;
                self.arena.at(offset, bytes as usize).ok_or_else(small)
            };
            let (data, control) = (place(self.chunk_bytes, 64)?, place(CONTROL_BYTES, 64)?);
            self.slots.push(Slot { control, data, under_way: None });
        }
        Ok(())
    }

    /// Sectors.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// It cannot be written to.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.features & 1 << VIRTIO_BLK_F_RO != 0
    }

    /// It takes discards.
    #[must_use]
    pub const fn has_discard(&self) -> bool {
        self.features & 1 << VIRTIO_BLK_F_DISCARD != 0
    }

    /// Ends waits when the host is gone.
    #[must_use]
    pub fn waker(&self) -> Arc<Waker> {
        self.transport.waker()
    }

    /// What its transport did so far.
    #[must_use]
    pub fn tally(&self) -> Arc<Tally> {
        self.transport.tally()
    }

    // ---- what it does ------------------------------------------------------------------------------------------------

    /// Reads `bytes` bytes from byte `offset` on, handing each piece to `take` with where it belongs. `false`: the time was up.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: it does not lie on the disk. [`Error::Machine`]: the disk failed. [`Error::PeerGone`].
    pub fn read_at(
        &mut self,
        offset: u64,
        bytes: u64,
        patience: Patience,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<bool> {
        self.check_place(offset, bytes)?;
        let (first, end) = (offset / SECTOR, (offset + bytes).div_ceil(SECTOR));
        let from = first * SECTOR;
        self.transfer(VIRTIO_BLK_T_IN, first, (end - first) * SECTOR, patience, |at, chunk| {
            let start = (from + at).max(offset);
            let stop = (from + at + chunk.len() as u64).min(offset + bytes);
            if start < stop {
                let within = (start - from - at) as usize..(stop - from - at) as usize;
                take((start - offset) as usize, &chunk[within]);
            }
        })
    }

    /// Writes `bytes` bytes from byte `offset` on, as `give` fills them in. Sectors that are written in part are read before.
    /// `false`: the time was up, and any part of it may have been written, or may be yet.
    ///
    /// # Errors
    ///
    /// As [`Self::read_at`].
    pub fn write_at(
        &mut self,
        offset: u64,
        bytes: u64,
        patience: Patience,
        mut give: impl FnMut(usize, &mut [u8]),
    ) -> Result<bool> {
        self.check_place(offset, bytes)?;
        if self.is_read_only() {
            return Err(Error::machine("write to a disk", Errno::ROFS));
        }
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let inside = at % SECTOR;
            let whole = (end - at) / SECTOR * SECTOR;
            let length = if inside != 0 || whole == 0 { (SECTOR - inside).min(end - at) } else { whole };
            let done = (at - offset) as usize;
            let is_done = if length < SECTOR {
                self.patch(at, length, patience, |part| give(done, part))?
            } else {
                self.transfer(VIRTIO_BLK_T_OUT, at / SECTOR, length, patience, |from, chunk| {
                    give(done + from as usize, chunk);
                })?
            };
            if !is_done {
                return Ok(false);
            }
            at += length;
        }
        Ok(true)
    }

    /// Replaces a part of one sector.
    fn patch(&mut self, at: u64, bytes: u64, patience: Patience, give: impl FnOnce(&mut [u8])) -> Result<bool> {
        let mut sector = [0; SECTOR as usize];
        let read = |_: u64, chunk: &mut [u8]| sector.copy_from_slice(chunk);
        if !self.transfer(VIRTIO_BLK_T_IN, at / SECTOR, SECTOR, patience, read)? {
            return Ok(false);
        }
        let inside = (at % SECTOR) as usize;
        give(&mut sector[inside..inside + bytes as usize]);
        self.transfer(VIRTIO_BLK_T_OUT, at / SECTOR, SECTOR, patience, |_, chunk| chunk.copy_from_slice(&sector))
    }

    /// Has everything that was written on the disk for good.
    ///
    /// # Errors
    ///
    /// As [`Self::read_at`].
    pub fn flush(&mut self, patience: Patience) -> Result<bool> {
        if self.features & 1 << VIRTIO_BLK_F_FLUSH == 0 {
            return Ok(true);
        }
        self.run_one(VIRTIO_BLK_T_FLUSH, 0, patience, |_| ())
    }

    /// The serial number.
    ///
    /// # Errors
    ///
    /// As [`Self::read_at`].
    pub fn serial(&mut self, patience: Patience) -> Result<Option<String>> {
        let mut found = [0; VIRTIO_BLK_ID_BYTES as usize];
        let is_done =
            self.run_one(VIRTIO_BLK_T_GET_ID, found.len() as u32, patience, |data| found.copy_from_slice(data))?;
        let length = found.iter().position(|byte| *byte == 0).unwrap_or(found.len());
        Ok(is_done.then(|| String::from_utf8_lossy(&found[..length]).into_owned()))
    }

    /// Says that whole sectors are of no use any more (`is_zero`: that they are zeroes from now on).
    ///
    /// # Errors
    ///
    /// As [`Self::read_at`]; and [`Error::Machine`]: the disk takes none.
    pub fn discard(&mut self, offset: u64, bytes: u64, is_zero: bool, patience: Patience) -> Result<bool> {
        self.check_place(offset, bytes)?;
        if !offset.is_multiple_of(SECTOR) || !bytes.is_multiple_of(SECTOR) {
            return Err(Error::Usage(format!("only whole sectors of {SECTOR} bytes; got {bytes} bytes at {offset}")));
        }
        let (feature, kind, flags) = if is_zero {
            (VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
        } else {
            (VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_T_DISCARD, 0)
        };
        if self.features & 1 << feature == 0 {
            return Err(Error::machine("discard sectors of a disk", Errno::OPNOTSUPP));
        }
        let (mut sector, end) = (offset / SECTOR, (offset + bytes) / SECTOR);
        while sector < end {
            let count = (end - sector).min(RANGE_SECTORS);
            let is_done = self.run_one(kind, 16, patience, |range| {
                range[..8].copy_from_slice(&sector.to_le_bytes());
                range[8..12].copy_from_slice(&(count as u32).to_le_bytes());
                range[12..].copy_from_slice(&flags.to_le_bytes());
            })?;
            if !is_done {
                return Ok(false);
            }
            sector += count;
        }
        Ok(true)
    }

    fn check_place(&self, offset: u64, bytes: u64) -> Result<()> {
        let size = self.sectors.saturating_mul(SECTOR);
        if offset.checked_add(bytes).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(Error::Usage(format!("the disk has {size} bytes; {bytes} at {offset} end behind it")))
    }

    // ---- requests ----------------------------------------------------------------------------------------------------

    /// One request with `bytes` bytes of data, which `touch` fills in before, or sees afterwards.
    fn run_one(&mut self, kind: u32, bytes: u32, patience: Patience, touch: impl FnMut(&mut [u8])) -> Result<bool> {
        let mut touch = touch;
        self.run(kind, 0, bytes.into(), bytes, patience, |_, data| touch(data))
    }

    /// Reads or writes whole sectors in chunks, several at once.
    fn transfer(
        &mut self,
        kind: u32,
        sector: u64,
        bytes: u64,
        patience: Patience,
        touch: impl FnMut(u64, &mut [u8]),
    ) -> Result<bool> {
        if bytes == 0 {
            return Ok(true);
        }
        self.run(kind, sector, bytes, self.chunk_bytes, patience, touch)
    }

    fn run(
        &mut self,
        kind: u32,
        sector: u64,
        total: u64,
        chunk: u32,
        patience: Patience,
        mut touch: impl FnMut(u64, &mut [u8]),
    ) -> Result<bool> {
        if let Some(fault) = self.fault {
            return Err(fault.into());
        }
        let arena = self.arena.clone();
        arena.enter(|| {
            self.operation += 1;
            let mut next = 0;
            let mut is_begun = false;
            let mut outcome = Ok(());
            loop {
                while outcome.is_ok() && (next < total || !is_begun) {
                    let Some(index) = self.slots.iter().position(|slot| slot.under_way.is_none()) else { break };
                    let bytes = u64::from(chunk).min(total - next) as u32;
                    if to_device(kind) && bytes != 0 {
                        // SAFETY: the slot is free, so nobody else has its data; a chunk is no longer than that.
                        touch(next, unsafe {
                            slice::from_raw_parts_mut(self.slots[index].data.as_ptr(), bytes as usize)
                        });
                    }
                    self.submit(index, kind, sector + next / SECTOR, next, bytes)?;
                    is_begun = true;
                    next += u64::from(bytes);
                }
                let mine = |slot: &Slot| slot.under_way.is_some_and(|way| way.operation == self.operation);
                if !self.slots.iter().any(mine) && (outcome.is_err() || (is_begun && next >= total)) {
                    return outcome.map(|()| true);
                }
                let Some((index, way, status)) = self.reap(patience)? else { return Ok(false) };
                if way.operation != self.operation {
                    continue;
                }
                if status != VIRTIO_BLK_S_OK {
                    let errno = if status == VIRTIO_BLK_S_UNSUPP { Errno::OPNOTSUPP } else { Errno::IO };
                    outcome = outcome.and(Err(Error::machine("use a disk", errno)));
                } else if !to_device(kind) && way.bytes != 0 {
                    // SAFETY: the device gave the slot back, so nobody else has its data.
                    touch(way.at, unsafe {
                        slice::from_raw_parts_mut(self.slots[index].data.as_ptr(), way.bytes as usize)
                    });
                }
            }
        })
    }

    fn submit(&mut self, index: usize, kind: u32, sector: u64, at: u64, bytes: u32) -> Result<()> {
        let slot = &mut self.slots[index];
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        // SAFETY: the slot is free, and its control has room for header and status.
        unsafe {
            slot.control.cast::<[u8; HEADER_BYTES]>().write(header);
            slot.control.add(STATUS_AT).write(0xff);
        }
        let Some(queue) = &mut self.queue else { return Err(Error::Closed("this disk")) };
        // SAFETY: the buffers lie in the slot, which is not touched until the queue gives the token back.
        let token = unsafe { with_buffers(slot, kind, bytes, |inputs, outputs| queue.add(inputs, outputs)) };
        let token = token.map_err(driver_error)?;
        slot.under_way = Some(UnderWay { token, kind, operation: self.operation, at, bytes });
        // [VQ-4 kick or see] our index before the device's wish; the crate leaves that to who uses its queue.
        fence(Ordering::SeqCst);
        if queue.should_notify() {
            self.transport.notify(QUEUE);
            self.failure.take()?;
        }
        Ok(())
    }

    /// Waits for the next answer: its slot, what it was, and its status. `None`: the time was up.
    fn reap(&mut self, patience: Patience) -> Result<Option<(usize, UnderWay, u32)>> {
        let Some(queue) = &mut self.queue else { return Err(Error::Closed("this disk")) };
        if !self.transport.wait(QUEUE, patience.spin, patience.deadline, || queue.can_pop())? {
            return Ok(None);
        }
        let Some(token) = queue.peek_used() else { return Ok(None) };
        let is_it = |slot: &Slot| slot.under_way.is_some_and(|way| way.token == token);
        let found = self.slots.iter().position(is_it);
        let Some((index, way)) = found.and_then(|index| Some((index, self.slots[index].under_way?))) else {
            let fault = Fault::IndexOutOfRange { index: token.into(), limit: QUEUE_SIZE as u32 };
            self.fault = Some(fault);
            return Err(fault.into());
        };
        let slot = &mut self.slots[index];
        // SAFETY: the same buffers as were added under this token.
        let popped = unsafe {
            with_buffers(slot, way.kind, way.bytes, |inputs, outputs| queue.pop_used(token, inputs, outputs))
        };
        popped.map_err(driver_error)?;
        slot.under_way = None;
        // SAFETY: within the slot's control; the device may write it once more, and one copy is what counts.
        let status = unsafe { slot.control.add(STATUS_AT).as_ptr().read_volatile() };
        Ok(Some((index, way, status.into())))
    }
}

/// Whether a request's data is the driver's.
const fn to_device(kind: u32) -> bool {
    !matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID)
}

/// Calls `work` with a request's buffers, as a chain has them.
///
/// # Safety
///
/// Nobody else has the slot's memory while `work` runs.
unsafe fn with_buffers<T>(
    slot: &Slot,
    kind: u32,
    bytes: u32,
    work: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> T,
) -> T {
    // SAFETY: as the caller promises; header, data and status lie apart from each other.
    let (header, data, status) = unsafe {
        (
            slice::from_raw_parts(slot.control.as_ptr(), HEADER_BYTES),
            slice::from_raw_parts_mut(slot.data.as_ptr(), bytes as usize),
            slice::from_raw_parts_mut(slot.control.add(STATUS_AT).as_ptr(), 1),
        )
    };
    match (bytes, to_device(kind)) {
        (0, _) => work(&[header], &mut [status]),
        (_, true) => work(&[header, data], &mut [status]),
        (_, false) => work(&[header], &mut [data, status]),
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The host lets go of the memory when the device is closed, which whoever owns it does before.
        let queue = self.queue.take();
        self.arena.enter(|| drop(queue));
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("sectors", &self.sectors).field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}
