//! The driver of a device that gives or takes bytes in order: entropy, a console.
//!
//! ```text
//!   receive queue   every buffer is posted; what comes back is read, then posted again
//!   transmit queue  a buffer is filled and made available; it is free when it comes back
//! ```
//!
//! Whoever reads waits outside of the lock that a caller holds around this: [`Stream::poll_read`], [`Stream::arm_read`], then
//! the doorbell. The danger: the device says how much it wrote, and is believed only up to what the buffer holds.
//! Source: virtio 1.2 §5.3, §5.4.

use std::fmt;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

use super::arena::{Arena, RamHal};
use super::disk::{Patience, driver_error};
use super::transport::{BusTransport, Registers, Waker};
use crate::error::{Error, Fault, Result};
use crate::shm::doorbell::Doorbell;

const QUEUE_SIZE: usize = 16;
const BUFFER_BYTES: usize = 1024;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const WANTED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A buffer of a queue, and the token under which the device has it.
struct Buffer {
    place: NonNull<u8>,
    token: Option<u16>,
    /// Bytes that were made available.
    bytes: usize,
}

/// One queue with buffers of its own.
struct Lane {
    index: u16,
    queue: VirtQueue<RamHal, QUEUE_SIZE>,
    buffers: Vec<Buffer>,
}

impl Lane {
    fn new(transport: &mut BusTransport, arena: &Arena, index: u16, has_event_index: bool) -> Result<Self> {
        let queue = VirtQueue::new(transport, index, false, has_event_index);
        transport.failure().take()?;
        let small = || Error::Usage("the block of memory for a virtio driver is too small".into());
        let buffers = (0..QUEUE_SIZE).map(|_| {
            let offset = arena.allocate(BUFFER_BYTES as u32, 64).ok_or_else(small)?;
            let place = arena.at(offset, BUFFER_BYTES).ok_or_else(small)?;
            Ok(Buffer { place, token: None, bytes: 0 })
        });
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        Ok(Self { index, queue: queue.map_err(driver_error)?, buffers })
    }

    /// Makes a buffer available: to be written, or with `bytes` bytes to be read.
    fn offer(&mut self, number: usize, bytes: usize, transport: &mut BusTransport) -> Result<()> {
        let buffer = &mut self.buffers[number];
        // SAFETY: the buffer is ours until the device is shown it, and this slice is gone by then.
        let content = unsafe { slice::from_raw_parts_mut(buffer.place.as_ptr(), bytes) };
        // SAFETY: it lies in the arena, and is not touched until the queue gives the token back.
        let token = unsafe {
            if self.index == RECEIVE {
                self.queue.add(&[], &mut [content])
            } else {
                self.queue.add(&[content], &mut [])
            }
        };
        buffer.token = Some(token.map_err(driver_error)?);
        buffer.bytes = bytes;
        // [VQ-4 kick or see] our index before the device's wish; the crate leaves that to who uses its queue.
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            transport.notify(self.index);
            transport.failure().take()?;
        }
        Ok(())
    }

    /// The next buffer that came back, and how many bytes of it were written.
    fn reap(&mut self) -> Result<Option<(usize, usize)>> {
        let Some(token) = self.queue.peek_used() else { return Ok(None) };
        let Some(number) = self.buffers.iter().position(|buffer| buffer.token == Some(token)) else {
            return Err(Fault::IndexOutOfRange { index: token.into(), limit: QUEUE_SIZE as u32 }.into());
        };
        let buffer = &mut self.buffers[number];
        // SAFETY: the same bytes as were offered under this token.
        let written = unsafe {
            let content = slice::from_raw_parts_mut(buffer.place.as_ptr(), buffer.bytes);
            if self.index == RECEIVE {
                self.queue.pop_used(token, &[], &mut [content])
            } else {
                self.queue.pop_used(token, &[content], &mut [])
            }
        };
        buffer.token = None;
        let written = written.map_err(driver_error)? as usize;
        if self.index == RECEIVE && written > buffer.bytes {
            let (found, limit) = (written as u64, buffer.bytes as u64);
            return Err(Fault::BadSize { what: "bytes written to a buffer", found, limit }.into());
        }
        Ok(Some((number, written)))
    }
}

/// Bytes to and from a device.
pub struct Stream {
    arena: Arc<Arena>,
    transport: BusTransport,
    /// Taken when the driver ends, within its arena.
    lanes: Option<(Lane, Option<Lane>)>,
    /// The buffer that is being read: its number, what was read of it, what it holds.
    current: Option<(usize, usize, usize)>,
}

// SAFETY: the buffers' places lie in the arena's memory, which this holds; they have no thread affinity.
unsafe impl Send for Stream {}

impl Stream {
    /// Starts the driver of an open device, an entropy device or a console, in an arena of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: it is none of these, or the arena is too small. Otherwise what `registers` ran into.
    pub fn start(registers: Arc<dyn Registers>, arena: &Arc<Arena>) -> Result<Self> {
        arena.enter(|| Self::start_within(registers, arena))
    }

    fn start_within(registers: Arc<dyn Registers>, arena: &Arc<Arena>) -> Result<Self> {
        let mut transport = BusTransport::open(registers, arena)?;
        let has_transmit = match transport.device_type() {
            DeviceType::EntropySource => false,
            DeviceType::Console => true,
            other => return Err(Error::Usage(format!("this is no stream but a {other:?}"))),
        };
        let features = transport.agree(WANTED)?;
        let has_event_index = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let receive = Lane::new(&mut transport, arena, RECEIVE, has_event_index)?;
        let transmit =
            if has_transmit { Some(Lane::new(&mut transport, arena, TRANSMIT, has_event_index)?) } else { None };
        let mut stream = Self { arena: arena.clone(), transport, lanes: Some((receive, transmit)), current: None };
        stream.transport.set_status(DeviceStatus::from_bits_retain(super::transport::ALIVE));
        stream.transport.failure().take()?;
        for number in 0..QUEUE_SIZE {
            stream.post(number)?;
        }
        Ok(stream)
    }

    fn post(&mut self, number: usize) -> Result<()> {
        let Some((receive, _)) = &mut self.lanes else { return Err(Error::Closed("this stream")) };
        receive.offer(number, BUFFER_BYTES, &mut self.transport)
    }

    /// Ends waits when the host is gone.
    #[must_use]
    pub fn waker(&self) -> Arc<Waker> {
        self.transport.waker()
    }

    /// What rings when there is something to read, after [`Self::arm_read`] said so.
    #[must_use]
    pub fn bell(&self) -> Option<Arc<Doorbell>> {
        self.transport.bell(RECEIVE)
    }

    /// Hands up to `limit` bytes that are there to `take`: how many.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: the device answered what cannot be. [`Error::PeerGone`].
    pub fn poll_read(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> Result<usize> {
        let arena = self.arena.clone();
        arena.enter(|| {
            self.transport.waker().check()?;
            let mut total = 0;
            while total < limit {
                let (number, at, end) = match self.current.take() {
                    Some(current) => current,
                    None => {
                        let Some((receive, _)) = &mut self.lanes else { return Err(Error::Closed("this stream")) };
                        let Some((number, length)) = receive.reap()? else { break };
                        (number, 0, length)
                    }
                };
                let length = (end - at).min(limit - total);
                if let Some((receive, _)) = &self.lanes {
                    // SAFETY: the device gave the buffer back, which holds at least `end` bytes.
                    take(unsafe { slice::from_raw_parts(receive.buffers[number].place.as_ptr().add(at), length) });
                }
                total += length;
                if at + length < end {
                    self.current = Some((number, at + length, end));
                } else {
                    self.post(number)?;
                }
            }
            Ok(total)
        })
    }

    /// Asks for the doorbell. `true`: there is nothing to read now, wait for [`Self::bell`].
    ///
    /// # Errors
    ///
    /// [`Error::PeerGone`].
    pub fn arm_read(&mut self) -> Result<bool> {
        self.transport.waker().check()?;
        let Some((receive, _)) = &self.lanes else { return Err(Error::Closed("this stream")) };
        Ok(self.transport.arm(RECEIVE, || receive.queue.can_pop()))
    }

    /// Makes `content` available to the device, as much as there is time for: how many bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: it takes none. Otherwise as [`Self::poll_read`].
    pub fn write(&mut self, content: &[u8], patience: Patience) -> Result<usize> {
        let arena = self.arena.clone();
        arena.enter(|| {
            let Some((_, transmit)) = &mut self.lanes else { return Err(Error::Closed("this stream")) };
            let Some(lane) = transmit else { return Err(Error::Usage("this device takes no bytes".into())) };
            let mut done = 0;
            for chunk in content.chunks(BUFFER_BYTES) {
                let number = loop {
                    while lane.reap()?.is_some() {}
                    if let Some(number) = lane.buffers.iter().position(|buffer| buffer.token.is_none()) {
                        break number;
                    }
                    if !self.transport.wait(TRANSMIT, patience.spin, patience.deadline, || lane.queue.can_pop())? {
                        return Ok(done);
                    }
                };
                // SAFETY: the buffer is free, and no shorter than a chunk.
                unsafe { lane.buffers[number].place.as_ptr().copy_from(chunk.as_ptr(), chunk.len()) };
                lane.offer(number, chunk.len(), &mut self.transport)?;
                done += chunk.len();
            }
            Ok(done)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let lanes = self.lanes.take();
        self.arena.enter(|| drop(lanes));
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("transport", &self.transport).finish_non_exhaustive()
    }
}
