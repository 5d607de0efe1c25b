//! The subject: frames from a guest's memory to a host's through vbnet's own ring, with everything a real one does.
//!
//! The guest's side takes room in its send arena, copies the frame in, stages a descriptor, publishes a batch, reaps
//! what came back and frees it, and asks after every batch whether the host sleeps. The host's side maps the memory a
//! second time, reads each descriptor once, checks it, copies the frame out, and returns the slots. The two are
//! processes of their own. Nobody sleeps: `rtt.asleep` measures that.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::bare::{MEMORY_MAX, Transfer};
use super::duo::{self, Control, Cores, Isolation};
use super::{Meter, Windows, look_every};
use crate::error::{Error, Fault, Result};
use crate::shm::layout::{self, CACHE_LINE, LINE_PAIR, RAM_HEADER_BYTES};
use crate::shm::pool::SendArena;
use crate::shm::region::Ram;
use crate::shm::ring::{Consumer, Descriptor, Producer, RingMemory};

const RING: u32 = RAM_HEADER_BYTES;

/// Frames a second from a guest process on the near core to a host process on the far one, one sample a window.
///
/// # Errors
///
/// [`Error::Usage`]: a number is out of range; [`Error::Machine`]: no memory, process or core; [`Error::PeerGone`]: the
/// other side did not come up or stood still.
pub fn frames_per_second(transfer: Transfer, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    let transfer = transfer.checked()?;
    let stride = transfer.frame_bytes.next_multiple_of(CACHE_LINE as u32);
    let ring_bytes = layout::ring_bytes(transfer.slots) as u32;
    let control_end = arena_start(ring_bytes);
    let arena_bytes = u64::from(stride) * u64::from(transfer.slots);
    let bytes = u64::from(control_end) + arena_bytes;
    if bytes > MEMORY_MAX {
        return Err(Error::Usage(format!(
            "{} slots of {} bytes take {bytes} bytes, more than {MEMORY_MAX}",
            transfer.slots, transfer.frame_bytes
        )));
    }
    let guest_ram = Ram::create("vbnet-bench", bytes)?;
    let mut producer = Producer::new(RingMemory::format(&guest_ram, RING, transfer.slots)?);
    let copy_of_fd = guest_ram
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| Error::machine("hand a memory region over", source))?;
    let host_ram = Ram::open(copy_of_fd, MEMORY_MAX)?;
    let mut consumer = Consumer::new(RingMemory::attach(&host_ram, RING, ring_bytes)?);
    let mut arena = SendArena::new(control_end, arena_bytes as u32);
    let own = vec![0xa5; transfer.frame_bytes as usize];
    let mut received = vec![0; transfer.frame_bytes as usize];
    // The reader is the near side of the pair, so that what was read is what is counted.
    duo::run(
        Cores { near: cores.far, far: cores.near },
        Isolation::Process,
        windows.total() + Duration::from_secs(5),
        |control| {
            // A fault of the host's ends the process; the reader then tells that nothing more comes.
            let _ended = send(&mut producer, &mut arena, &guest_ram, &own, transfer.batch, control);
        },
        |control| receive(&mut consumer, &host_ram, &mut received, control_end, transfer.batch, control, windows),
    )
}

const fn arena_start(ring_bytes: u32) -> u32 {
    (RING + ring_bytes).next_multiple_of(LINE_PAIR as u32)
}

fn send(
    producer: &mut Producer,
    arena: &mut SendArena,
    ram: &Arc<Ram>,
    own: &[u8],
    batch: u32,
    control: &Control,
) -> std::result::Result<(), Fault> {
    let length = own.len() as u32;
    loop {
        for _ in 0..batch {
            let Some(offset) = room_for(producer, arena, length, control)? else { return Ok(()) };
            let place = ram.at(offset, own.len())?;
            // SAFETY: `place` has `own.len()` bytes inside the region, which the arena lends to nobody else until freed.
            unsafe { std::ptr::copy_nonoverlapping(own.as_ptr(), place.as_ptr(), own.len()) };
            if !producer.stage(Descriptor::new(offset, length)) {
                return Ok(());
            }
        }
        producer.publish();
        let _host_sleeps = producer.notify();
    }
}

/// Room in ring and arena for one frame; reaps what came back when there is none. `None`: stopped.
#[inline]
fn room_for(
    producer: &mut Producer,
    arena: &mut SendArena,
    length: u32,
    control: &Control,
) -> std::result::Result<Option<u32>, Fault> {
    loop {
        if producer.room() > 0
            && let Some(offset) = arena.take(length)
        {
            return Ok(Some(offset));
        }
        let mut fault = None;
        let returned = control.spin_until(|| match producer.completed() {
            Ok(0) => None,
            Ok(count) => Some(count),
            Err(broken) => {
                fault = Some(broken);
                Some(0)
            }
        });
        match (returned, fault) {
            (_, Some(fault)) => return Err(fault),
            (None, None) => return Ok(None),
            (Some(count), None) => {
                producer.reap(count);
                arena.free(count);
            }
        }
    }
}

fn receive(
    consumer: &mut Consumer,
    ram: &Arc<Ram>,
    received: &mut [u8],
    control_end: u32,
    batch: u32,
    control: &Control,
    windows: Windows,
) -> Result<Vec<f64>> {
    let mut meter = Meter::start(windows, look_every(received.len() as u32));
    loop {
        let mut answer = Ok(0);
        control
            .spin_until(|| {
                answer = consumer.available();
                (!matches!(answer, Ok(0))).then_some(())
            })
            .ok_or(Error::PeerGone("the ring"))?;
        let count = answer?.min(batch);
        for ahead in 0..count {
            let descriptor = consumer.peek(ahead);
            let length = descriptor.length as usize;
            let place = check(ram, descriptor, control_end, received.len())?;
            // SAFETY: `check` held the place against the region and the length against `received`.
            unsafe { std::ptr::copy_nonoverlapping(place, received.as_mut_ptr(), length) };
            std::hint::black_box(received.as_mut_ptr());
        }
        consumer.advance(count);
        consumer.release();
        let _guest_sleeps = consumer.notify();
        if !meter.count(count) {
            return Ok(meter.into_rates());
        }
    }
}

/// What the host checks of a copied descriptor before it follows it.
#[inline]
fn check(
    ram: &Ram,
    descriptor: Descriptor,
    control_end: u32,
    length_max: usize,
) -> std::result::Result<*const u8, Fault> {
    let Descriptor { offset, length, flags } = descriptor;
    if flags != 0 {
        return Err(Fault::UnknownFlags { flags });
    }
    if length == 0 {
        return Err(Fault::ZeroLength { offset });
    }
    if length as usize > length_max {
        return Err(Fault::TooLong { length, limit: length_max as u32 });
    }
    if offset < control_end {
        return Err(Fault::OverlapsControl { offset, length, start: 0, end: control_end });
    }
    ram.at(offset, length as usize).map(|place| place.as_ptr().cast_const())
}
