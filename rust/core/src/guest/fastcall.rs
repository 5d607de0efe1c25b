//! The guest's side of fastcalls: begin, spin a while for the answer, then sleep on the call doorbell.
//!
//! A slot carries one call at a time; a thread that wants to call while another waits has a slot of its own. Every wait
//! has a deadline. A call that was not answered in time leaves its slot behind, busy until the host answers after all;
//! whoever learns by another way that the host is gone says so by [`FastCaller::abandon`], which ends the wait at once.
//! What a call is to cost on top (`trap_ns` of its answer) is spent here, awake, as a processor that left and came back.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::fastcall::{SPIN_US_MAX, TRAP_NS_MAX};
use crate::shm::doorbell::Doorbell;
use crate::shm::fastcall::{Answer, Caller, DATA_BYTES, Data, SlotMemory, Waiting};
use crate::shm::region::Ram;

/// Polls between two looks at the clock.
const POLLS_A_LOOK: u32 = 64;

/// One slot of a guest, ready to call.
#[derive(Debug)]
pub struct FastCaller {
    caller: Mutex<Caller>,
    kick: Doorbell,
    call: Doorbell,
    spin_us: AtomicU32,
    is_gone: AtomicBool,
}

impl FastCaller {
    /// Lays a slot out at `offset` of the guest's memory, to be shown to the host before the first call.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the place is misaligned or outside the memory.
    pub fn format(ram: &Arc<Ram>, offset: u32) -> Result<Caller> {
        Ok(Caller::new(SlotMemory::format(ram, offset)?))
    }

    /// A slot that was shown to the host, which made both doorbells.
    #[must_use]
    pub fn new(caller: Caller, kick: Doorbell, call: Doorbell, spin_us: u32) -> Self {
        let spin_us = AtomicU32::new(spin_us.min(SPIN_US_MAX));
        Self { caller: Mutex::new(caller), kick, call, spin_us, is_gone: AtomicBool::new(false) }
    }

    /// How long to spin for an answer before going to sleep, in µs; more than 100 000 counts as that.
    pub fn set_spin_us(&self, spin_us: u32) {
        self.spin_us.store(spin_us.min(SPIN_US_MAX), Ordering::Relaxed);
    }

    /// Calls a function of the open device `device`; the answer's data comes in front of `answer`.
    ///
    /// `None`: no answer within `deadline`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: `data` is longer than [`DATA_BYTES`]. [`Error::Busy`]: another thread is calling through this
    /// slot, or its last call was not answered yet. [`Error::PeerGone`]: it was abandoned. [`Error::Peer`]: the host
    /// answered what cannot be.
    pub fn call(
        &self,
        device: u32,
        function: u32,
        data: &[u8],
        answer: &mut Data,
        deadline: Duration,
    ) -> Result<Option<Answer>> {
        if data.len() > DATA_BYTES {
            return Err(Error::Usage(format!("a fastcall carries at most {DATA_BYTES} bytes; got {}", data.len())));
        }
        let mut caller = match self.caller.try_lock() {
            Ok(caller) => caller,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Busy("another thread is calling through this slot".into()));
            }
        };
        self.check()?;
        if caller.is_under_way() && caller.poll(answer)?.is_none() {
            return Err(Error::Busy("the last call through this slot was not answered yet".into()));
        }
        if caller.begin(device, function, data) {
            self.kick.ring()?;
        }
        let found = self.wait(&mut caller, answer, deadline)?;
        if let Some(found) = found {
            spend(found.trap_ns);
        }
        Ok(found)
    }

    /// The host is gone: whoever waits, and whoever calls later, gets [`Error::PeerGone`].
    pub fn abandon(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
        // The guest's own copy; a full counter wakes as well. The write orders the store before the sleeper's wake-up.
        let _ = self.call.ring();
    }

    fn check(&self) -> Result<()> {
        if self.is_gone.load(Ordering::Relaxed) {
            return Err(Error::PeerGone("a fastcall slot"));
        }
        Ok(())
    }

    #[inline]
    fn wait(&self, caller: &mut Caller, answer: &mut Data, deadline: Duration) -> Result<Option<Answer>> {
        for _ in 0..POLLS_A_LOOK {
            if let Some(found) = caller.poll(answer)? {
                return Ok(Some(found));
            }
            std::hint::spin_loop();
        }
        self.wait_patiently(caller, answer, deadline)
    }

    fn wait_patiently(&self, caller: &mut Caller, answer: &mut Data, deadline: Duration) -> Result<Option<Answer>> {
        let start = Instant::now();
        let spin = Duration::from_micros(self.spin_us.load(Ordering::Relaxed).into()).min(deadline);
        while start.elapsed() < spin {
            for _ in 0..POLLS_A_LOOK {
                if let Some(found) = caller.poll(answer)? {
                    return Ok(Some(found));
                }
                std::hint::spin_loop();
            }
        }
        let outcome = self.sleep(caller, answer, start, deadline);
        caller.disarm();
        outcome
    }

    fn sleep(
        &self,
        caller: &mut Caller,
        answer: &mut Data,
        start: Instant,
        deadline: Duration,
    ) -> Result<Option<Answer>> {
        loop {
            self.check()?;
            let left = deadline.saturating_sub(start.elapsed());
            match caller.arm(answer)? {
                Waiting::Over(found) => return Ok(Some(found)),
                Waiting::Again => {}
                Waiting::Asleep if left.is_zero() => return Ok(None),
                Waiting::Asleep => {
                    self.call.wait(Some(left))?;
                }
            }
        }
    }
}

fn spend(trap_ns: u32) {
    if trap_ns == 0 {
        return;
    }
    let start = Instant::now();
    let cost = Duration::from_nanos(trap_ns.min(TRAP_NS_MAX).into());
    while start.elapsed() < cost {
        std::hint::spin_loop();
    }
}
