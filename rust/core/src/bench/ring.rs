//! The subject: frames from a guest's memory to a host's through vbnet's own ring, with everything a real one does.
//!
//! The guest's side is the driver half of a venet device as it is: room from the send arena, copy, descriptor, publish a
//! batch, ask whether the host sleeps, take back what it is done with. The host's side maps the memory a second time,
//! as a port does: it reads each descriptor once, checks it, copies the frame out, returns the slots and asks whether
//! the guest sleeps. The two are processes of their own. Nobody sleeps: `rtt.asleep` measures that.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::bare::{MEMORY_MAX, Transfer};
use super::duo::{self, Control, Cores, Isolation};
use super::{Meter, Windows, look_every};
use crate::error::{Error, Fault, Result};
use crate::guest::venet::{self, ETHERNET_HEADER, MTU_MAX, MTU_MIN, Sender, VLAN_TAG, VenetLayout};
use crate::shm::line;
use crate::shm::region::Ram;
use crate::shm::ring::{Consumer, Descriptor, RingMemory};

/// Slots of the receiving ring, which nothing uses here.
const RX_SLOTS: u32 = 2;

/// Frames a second from a guest process on the near core to a host process on the far one, one sample a window.
///
/// # Errors
///
/// [`Error::Usage`]: a number is out of range or the memory would exceed [`MEMORY_MAX`]; [`Error::Machine`]: no memory,
/// process or core; [`Error::PeerGone`]: the other side did not come up or stood still.
pub fn frames_per_second(transfer: Transfer, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    let transfer = transfer.checked()?;
    let mtu = transfer.frame_bytes.saturating_sub(ETHERNET_HEADER + VLAN_TAG).clamp(MTU_MIN, MTU_MAX);
    let layout = VenetLayout::plan(0, mtu, transfer.slots, RX_SLOTS)?;
    if layout.ram_bytes() > MEMORY_MAX {
        return Err(Error::Usage(format!(
            "{} slots of {} bytes take {} bytes, more than {MEMORY_MAX}",
            transfer.slots,
            transfer.frame_bytes,
            layout.ram_bytes()
        )));
    }
    let guest_ram = Ram::create("vbnet-bench", layout.ram_bytes())?;
    let (mut sender, _receiver) = venet::open(&guest_ram, layout)?;
    let handed_over =
        guest_ram.as_fd().try_clone_to_owned().map_err(|source| Error::machine("hand a memory region over", source))?;
    let ram = Ram::open(handed_over, MEMORY_MAX)?;
    let consumer = Consumer::new(RingMemory::attach(&ram, layout.tx_offset, layout.tx_bytes())?);
    let frame = vec![0xa5; transfer.frame_bytes as usize];
    let mut host = Host { received: vec![0; frame.len()], ram, consumer, control_end: layout.arena_offset };
    // The reader is the near side of the pair, so that what was read is what is counted.
    duo::run(
        Cores { near: cores.far, far: cores.near },
        Isolation::Process,
        windows.total() + Duration::from_secs(5),
        // A fault of the host's ends this process; the reader then tells that nothing more comes.
        |control| drop(send(&mut sender, &frame, transfer.batch, control)),
        |control| host.receive(transfer.batch, control, windows),
    )
}

fn send(sender: &mut Sender, frame: &[u8], batch: u32, control: &Control) -> Result<()> {
    let frames = vec![frame; batch as usize];
    loop {
        let mut sent = 0;
        let all = control.spin_until(|| {
            let answer = sender.send(std::hint::black_box(&frames)[sent..].iter().copied());
            sent += *answer.as_ref().unwrap_or(&0);
            (answer.is_err() || sent == frames.len()).then_some(answer)
        });
        let Some(answer) = all else { return Ok(()) };
        answer?;
    }
}

/// The consuming side, as a port of the host is.
struct Host {
    ram: Arc<Ram>,
    consumer: Consumer,
    /// No frame begins before this byte.
    control_end: u32,
    received: Vec<u8>,
}

impl Host {
    fn receive(&mut self, batch: u32, control: &Control, windows: Windows) -> Result<Vec<f64>> {
        let mut meter = Meter::start(windows, look_every(self.received.len() as u32));
        loop {
            let mut answer = Ok(0);
            control
                .spin_until(|| {
                    answer = self.consumer.available();
                    (!matches!(answer, Ok(0))).then_some(())
                })
                .ok_or(Error::PeerGone("the ring"))?;
            let count = answer?.min(batch);
            for ahead in 0..count {
                let place = self.check(self.consumer.peek(ahead))?;
                line::fetch_to_read(place, 1);
            }
            for ahead in 0..count {
                let descriptor = self.consumer.peek(ahead);
                let place = self.check(descriptor)?;
                // SAFETY: `check` held the place against the region and the length against `received`.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        place.as_ptr(),
                        self.received.as_mut_ptr(),
                        descriptor.length as usize,
                    );
                }
                std::hint::black_box(self.received.as_mut_ptr());
            }
            self.consumer.advance(count);
            self.consumer.release();
            let _guest_sleeps = self.consumer.notify();
            if !meter.count(count) {
                return Ok(meter.into_rates());
            }
        }
    }

    /// What the host checks of a copied descriptor before it follows it.
    #[inline]
    fn check(&self, descriptor: Descriptor) -> std::result::Result<std::ptr::NonNull<u8>, Fault> {
        let Descriptor { offset, length, flags } = descriptor;
        let limit = self.received.len() as u32;
        if flags != 0 {
            return Err(Fault::UnknownFlags { flags });
        }
        if length < ETHERNET_HEADER {
            return Err(Fault::TooShort { length, limit: ETHERNET_HEADER });
        }
        if length > limit {
            return Err(Fault::TooLong { length, limit });
        }
        if offset < self.control_end {
            return Err(Fault::OverlapsControl { offset, length, start: 0, end: self.control_end });
        }
        self.ram.at(offset, length as usize)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Frames of every size reach the host's side, one rate a window.
    #[test]
    fn frames_of_every_size_arrive() {
        let Some(cores) = duo::tests::two_cores() else { return };
        let windows = Windows { warm_up: Duration::ZERO, window: Duration::from_millis(1), count: 2 };

        for frame_bytes in [64, 1500, 65_536] {
            let transfer = Transfer { frame_bytes, slots: 64, batch: 32, ahead: 0 };

            let rates = frames_per_second(transfer, cores, windows).unwrap();

            assert_eq!(2, rates.len());
            assert!(rates.iter().all(|rate| *rate > 0.0), "{rates:?}");
        }
    }
}
