//! The subject with a switch in between: one guest sends, another receives, and a host moves the frames.
//!
//! Both guests are run by one thread, in turn, so that generator and sink share one core and the host has the other.
//! Everything goes through the driver half of venet as it is. The generator writes whole frames; the sink looks at the
//! first bytes of each, as a peer's would. Frames under way are bounded, so that none is dropped for want of a buffer;
//! frames that do get lost are given up after a while.

use std::iter;
use std::time::{Duration, Instant};

use super::{Meter, Windows, look_every};
use crate::error::{Error, Result};
use crate::guest::nic::{Receiver, Sender};

/// How long nothing may arrive before frames under way count as lost, or the measurement as failed.
const LOST_AFTER: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);
const SPINS_A_LOOK: u32 = 1 << 12;
/// A rare frame is the first of each so many batches: with batches of 32 one frame in 992.
pub const RARE_BATCHES: u32 = 31;

/// One guest's sending half and another's receiving half, behind the same switch or the same loop.
#[derive(Debug)]
pub struct Exchange {
    /// Of the guest that sends.
    pub sender: Sender,
    /// Of the guest that receives.
    pub receiver: Receiver,
}

/// How to spend the time until a frame is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Looking for it all the time.
    Polled,
    /// Asleep until the doorbell rings.
    Asleep,
}

impl Exchange {
    /// Frames a second that arrive, one sample a window: `batch` sent, what came received, and so on. `rare`, if there is
    /// one, is sent instead of `frame` once in [`RARE_BATCHES`].
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: `frame` is none, or `batch` is not 1 to `under_way`; [`Error::PeerGone`]: nothing arrives;
    /// [`Error::Peer`]: the host broke a ring.
    pub fn frames_per_second(
        &mut self,
        frame: &[u8],
        rare: Option<&[u8]>,
        batch: u32,
        under_way: u32,
        windows: Windows,
    ) -> Result<Vec<f64>> {
        if !(1..=under_way).contains(&batch) {
            return Err(Error::Usage(format!("a batch is 1 to {under_way} frames, those under way; got {batch}")));
        }
        let mut meter = Meter::start(windows, look_every(frame.len() as u32));
        let mut outstanding = 0;
        let mut batches = 0u32;
        let mut idle_rounds = 0;
        let mut waits_since = None;
        loop {
            if outstanding + batch <= under_way {
                let many = batch as usize;
                let frame = std::hint::black_box(frame);
                outstanding += match rare.filter(|_| batches.is_multiple_of(RARE_BATCHES)) {
                    Some(rare) => self.sender.send(iter::once(rare).chain(iter::repeat_n(frame, many - 1)))?,
                    None => self.sender.send(iter::repeat_n(frame, many))?,
                } as u32;
                batches = batches.wrapping_add(1);
            }
            let received = self.receiver.receive(under_way, |frame| {
                std::hint::black_box(frame.first_chunk::<8>());
            })?;
            if received != 0 {
                outstanding = outstanding.saturating_sub(received);
                idle_rounds = 0;
                waits_since = None;
                if !meter.count(received) {
                    self.drain();
                    return Ok(meter.into_rates());
                }
                continue;
            }
            idle_rounds += 1;
            if idle_rounds == SPINS_A_LOOK {
                idle_rounds = 0;
                let waited = waits_since.get_or_insert_with(Instant::now).elapsed();
                if waited > PATIENCE {
                    return Err(Error::PeerGone("a switch that is measured"));
                }
                if waited > LOST_AFTER {
                    outstanding = 0;
                }
            }
        }
    }

    /// Nanoseconds until a frame arrives that was sent alone, one sample a window.
    ///
    /// # Errors
    ///
    /// As [`Self::frames_per_second`].
    pub fn round_trip_ns(&mut self, frame: &[u8], waiting: Waiting, windows: Windows) -> Result<Vec<f64>> {
        let look_every = match waiting {
            Waiting::Polled => 256,
            Waiting::Asleep => 8,
        };
        let mut meter = Meter::start(windows, look_every);
        self.drain();
        loop {
            if !self.sender.stage(frame)? {
                return Err(Error::PeerGone("a round trip"));
            }
            self.sender.flush()?;
            match waiting {
                Waiting::Polled => self.spin_for_one()?,
                Waiting::Asleep => self.sleep_for_one()?,
            }
            if !meter.count(1) {
                return Ok(meter.into_nanoseconds());
            }
        }
    }

    fn take(&mut self) -> Result<bool> {
        let received = self.receiver.receive(1, |frame| {
            std::hint::black_box(frame.first_chunk::<8>());
        })?;
        Ok(received != 0)
    }

    fn spin_for_one(&mut self) -> Result<()> {
        for _ in 0..SPINS_A_LOOK {
            if self.take()? {
                return Ok(());
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.take()? {
                return Ok(());
            }
        }
        Err(Error::PeerGone("a round trip"))
    }

    fn sleep_for_one(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.take()? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::PeerGone("a round trip"));
            }
            self.receiver.wait(Duration::ZERO, Some(left))?;
        }
        Ok(())
    }

    /// Lets what is still under way arrive, so that the next measurement starts with nothing in between.
    fn drain(&mut self) {
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(1) {
            if self.receiver.receive(u32::MAX, |_frame| {}).is_ok_and(|received| received != 0) {
                last = Instant::now();
            }
        }
    }
}
