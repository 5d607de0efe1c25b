//! Ringing a doorbell that its holder may have blocked.
//!
//! ```text
//!   worker    ringing = odd ─ fence ─ write(eventfd) ─ ringing = even
//!                                     ▲ blocks when the guest filled the counter and cleared O_NONBLOCK
//!   watchdog  looks every 20 ms while somebody rings: the same odd number twice? ─▶ stuck = it, signal the thread
//!   worker    write answers EINTR, and stuck is what we are doing ─▶ Fault::DoorbellBlocked
//! ```
//!
//! File flags belong to the open file, which the guest shares, so no flag and no look beforehand can promise that a
//! write will not block. What can be promised is that it ends: a signal without SA_RESTART interrupts it, and the
//! watchdog repeats the signal until the worker has moved on, so it does not matter if one came too early.
//!
//! While nobody rings, the watchdog sleeps without a timer. The first ring after a quiet time wakes it; from then on it
//! looks by itself until it has seen a quiet 20 ms. `WD-1 ring or sleep` in the fences below pairs the worker's "I
//! ring, is it awake?" with the watchdog's "I sleep, does anybody ring?"; whatever else the two tell each other may come
//! late, for the watchdog looks again. Source: eventfd(2), signal(7).

use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use rustix::io::{Errno, write};

use crate::error::{Error, Fault, Result};
use crate::shm::doorbell::Doorbell;

/// How long a doorbell may block at least; twice this at most.
const LIMIT: Duration = Duration::from_millis(20);
const LIMIT_MS: u32 = 20;

const ASLEEP: u32 = 0;
const AWAKE: u32 = 1;

/// What a worker and the watchdog know of each other.
#[derive(Debug, Default)]
struct Watched {
    /// Counts up with every ring begun and every ring ended: odd = inside one.
    ringing: AtomicU64,
    /// The ring that the watchdog found to last too long.
    stuck: AtomicU64,
}

#[derive(Debug)]
struct Ward {
    watched: Arc<Watched>,
    process: libc::pid_t,
    thread: libc::pid_t,
    /// What it was doing at the last look.
    seen: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: AtomicU32,
    is_over: AtomicBool,
    wards: Mutex<Vec<Ward>>,
    thread: OnceLock<Thread>,
}

impl Shared {
    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// The thread that frees workers from blocked doorbells. Dropping it ends the thread.
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no thread, or no signal number, is free.
    pub(crate) fn start() -> Result<Self> {
        let signal = interrupting_signal()?;
        let shared = Arc::new(Shared::default());
        let watching = shared.clone();
        let thread = thread::Builder::new()
            .name("vbnet-watchdog".into())
            .spawn(move || watch(&watching, signal))
            .map_err(|error| Error::machine("start the watchdog", error))?;
        let _ = shared.thread.set(thread.thread().clone());
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What a worker needs to be watched.
    pub(crate) fn handle(&self) -> WatchdogHandle {
        WatchdogHandle { shared: self.shared.clone() }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").finish_non_exhaustive()
    }
}

/// Lets a thread put itself under the watchdog's eyes.
#[derive(Clone, Debug)]
pub(crate) struct WatchdogHandle {
    shared: Arc<Shared>,
}

impl WatchdogHandle {
    /// From now on the calling thread rings through the answer, and takes the watchdog's signal but no other.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the signal cannot be set up.
    pub(crate) fn enlist(self) -> Result<Ringer> {
        let signal = interrupting_signal()?;
        take_only(signal)?;
        let watched = Arc::new(Watched::default());
        // SAFETY: plain questions about ourselves.
        let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
        let ward = Ward { watched: watched.clone(), process, thread, seen: 0 };
        self.shared.wards.lock().unwrap_or_else(PoisonError::into_inner).push(ward);
        Ok(Ringer { watched, shared: self.shared })
    }
}

/// Rings doorbells for one thread, which must be the one that enlisted.
#[derive(Debug)]
pub(crate) struct Ringer {
    watched: Arc<Watched>,
    shared: Arc<Shared>,
}

impl Ringer {
    /// Wakes whoever waits on `bell`. A full counter means it is awake already.
    ///
    /// # Errors
    ///
    /// The doorbell blocked, and went on blocking until the watchdog came.
    pub(crate) fn ring(&self, bell: &Doorbell) -> std::result::Result<(), Fault> {
        let turn = self.watched.ringing.load(Ordering::Relaxed) + 1;
        self.watched.ringing.store(turn, Ordering::Relaxed);
        // [WD-1 ring or sleep] store of ringing before load of state; partner in watch().
        fence(Ordering::SeqCst);
        if self.shared.state.load(Ordering::Relaxed) == ASLEEP {
            self.shared.wake();
        }
        let answer = loop {
            match write(bell.as_fd(), &1u64.to_ne_bytes()) {
                Err(Errno::INTR) if self.watched.stuck.load(Ordering::Relaxed) == turn => {
                    break Err(Fault::DoorbellBlocked { limit_ms: LIMIT_MS });
                }
                Err(Errno::INTR) => {}
                _ => break Ok(()),
            }
        };
        self.watched.ringing.store(turn + 1, Ordering::Relaxed);
        answer
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        // Under the lock, so that no signal is sent to a thread that has ended.
        let mut wards = self.shared.wards.lock().unwrap_or_else(PoisonError::into_inner);
        wards.retain(|ward| !Arc::ptr_eq(&ward.watched, &self.watched));
    }
}

fn watch(shared: &Shared, signal: libc::c_int) {
    while !shared.is_over.load(Ordering::Relaxed) {
        shared.state.store(ASLEEP, Ordering::Relaxed);
        // [WD-1 ring or sleep] store of state before loads of ringing; partner in Ringer::ring.
        fence(Ordering::SeqCst);
        if !look(shared, signal) {
            thread::park();
        }
        shared.state.store(AWAKE, Ordering::Relaxed);
        while pause(shared) && look(shared, signal) {}
    }
}

/// Lets the limit pass, however often we are woken. `false`: it is over.
fn pause(shared: &Shared) -> bool {
    let start = Instant::now();
    loop {
        if shared.is_over.load(Ordering::Relaxed) {
            return false;
        }
        match LIMIT.checked_sub(start.elapsed()) {
            Some(rest) if !rest.is_zero() => thread::park_timeout(rest),
            _ => return true,
        }
    }
}

/// Frees who is stuck. `true`: somebody rang since the last look.
fn look(shared: &Shared, signal: libc::c_int) -> bool {
    let mut wards = shared.wards.lock().unwrap_or_else(PoisonError::into_inner);
    let mut is_lively = false;
    for ward in wards.iter_mut() {
        let ringing = ward.watched.ringing.load(Ordering::Relaxed);
        if ringing % 2 == 1 && ringing == ward.seen {
            ward.watched.stuck.store(ringing, Ordering::Relaxed);
            // SAFETY: the thread lives, for it cannot leave the list while we hold the lock.
            unsafe { libc::syscall(libc::SYS_tgkill, ward.process, ward.thread, signal) };
        }
        is_lively |= ringing % 2 == 1 || ringing != ward.seen;
        ward.seen = ringing;
    }
    is_lively
}

extern "C" fn interrupted(_signal: libc::c_int) {}

/// A real-time signal that nobody else in this process uses, with a handler that does nothing but interrupt.
fn interrupting_signal() -> Result<libc::c_int> {
    static CHOSEN: Mutex<Option<libc::c_int>> = Mutex::new(None);
    let mut chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(signal) = *chosen {
        return Ok(signal);
    }
    let mut signal = libc::SIGRTMAX();
    while signal >= libc::SIGRTMIN() {
        let mut present = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: only asks; all zeroes is a valid sigaction.
        let present = unsafe {
            libc::sigaction(signal, ptr::null(), present.as_mut_ptr());
            present.assume_init()
        };
        if present.sa_sigaction == libc::SIG_DFL {
            // SAFETY: all zeroes is a valid sigaction: no flags (so no SA_RESTART), nothing masked.
            let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
            action.sa_sigaction = interrupted as *const () as usize;
            // SAFETY: the handler does nothing, so it is safe at any moment.
            if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } == 0 {
                *chosen = Some(signal);
                return Ok(signal);
            }
        }
        signal -= 1;
    }
    Err(Error::machine("find a signal for the watchdog", Errno::BUSY))
}

/// Every signal but `signal`, and those that report our own mistakes, goes to other threads.
fn take_only(signal: libc::c_int) -> Result<()> {
    let mut blocked = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: a full set is made first, then thinned out and set for this thread only.
    let failed = unsafe {
        libc::sigfillset(blocked.as_mut_ptr());
        for kept in [signal, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            libc::sigdelset(blocked.as_mut_ptr(), kept);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, blocked.as_ptr(), ptr::null_mut())
    };
    if failed == 0 {
        Ok(())
    } else {
        Err(Error::machine("set up a worker's signals", Errno::from_raw_os_error(failed)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    /// What a hostile holder does: the counter as full as it gets, and a blocking description.
    fn block(bell: &Doorbell) {
        write(bell.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
        fcntl_setfl(bell.as_fd(), OFlags::RDWR).unwrap();
    }

    #[test]
    fn blocked_doorbell_is_given_up_and_the_next_one_rings() {
        let watchdog = Watchdog::start().unwrap();
        let handle = watchdog.handle();
        let (blocked, fine) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
        block(&blocked);

        let answers = thread::spawn(move || {
            let ringer = handle.enlist().unwrap();
            let answers = [ringer.ring(&blocked), ringer.ring(&fine), ringer.ring(&blocked)];
            (answers, fine.wait(Some(Duration::ZERO)).unwrap())
        });

        let blocked = Err(Fault::DoorbellBlocked { limit_ms: LIMIT_MS });
        assert_eq!(([blocked, Ok(()), blocked], true), answers.join().unwrap());
    }

    #[test]
    fn full_doorbell_that_does_not_block_counts_as_rung() {
        let watchdog = Watchdog::start().unwrap();
        let bell = Doorbell::create().unwrap();
        write(bell.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let handle = watchdog.handle();

        let answer = thread::spawn(move || handle.enlist().unwrap().ring(&bell)).join().unwrap();

        assert_eq!(Ok(()), answer);
    }

    #[test]
    fn watchdog_sleeps_again_after_a_quiet_time_and_still_frees() {
        let watchdog = Watchdog::start().unwrap();
        let handle = watchdog.handle();
        let shared = watchdog.shared.clone();
        let (blocked, fine) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
        block(&blocked);

        let answer = thread::spawn(move || {
            let ringer = handle.enlist().unwrap();
            ringer.ring(&fine).unwrap();
            let start = Instant::now();
            while shared.state.load(Ordering::Relaxed) != ASLEEP {
                assert!(start.elapsed() < Duration::from_secs(10), "the watchdog never slept");
                thread::yield_now();
            }
            ringer.ring(&blocked)
        });

        assert_eq!(Err(Fault::DoorbellBlocked { limit_ms: LIMIT_MS }), answer.join().unwrap());
    }
}
