//! Keeps this process alive when memory of a virtual machine ends under it.
//!
//! ```text
//!   guard.watch(range) ──▶ table of ranges ◀── SIGBUS handler: whose is the address?
//!                                               ours     ─▶ private zeroes in its place, mark it gone, go on
//!                                               nobody's ─▶ whoever handled SIGBUS before
//! ```
//!
//! The danger: a front end hands over files that it can cut short, or whose huge pages run out; touching what is no longer
//! there is SIGBUS, which ends a process. Seals would exclude it, but neither DPDK nor every QEMU sets them. So the fault
//! itself is handled: the whole range becomes private zeroes, the access is repeated and finds them, and
//! [`Guarded::is_gone`] tells the worker, which quarantines the rings.
//!
//! Who writes what: `claim` and `drop` write a slot under the lock; the handler only reads ranges, and sets `is_gone`. It
//! calls nothing but `mmap`, and keeps errno. Source: mmap(2), sigaction(2); the way Wayland compositors guard `wl_shm`.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::{Error, Result};

/// Ranges that can be guarded at once in one process.
pub(crate) const RANGES_MAX: usize = 4096;

/// One guarded range; `start` is 0 while the slot is free.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    is_gone: AtomicBool,
}

static SLOTS: [Slot; RANGES_MAX] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), is_gone: AtomicBool::new(false) } };
        RANGES_MAX];
/// Slots that were ever used: as far as the handler looks.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Ranges that ended, ever: whoever saw the same number before has nothing to look for.
static GONE: AtomicUsize = AtomicUsize::new(0);
static CLAIMS: Mutex<()> = Mutex::new(());
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Memory that may end without ending us. Dropping it ends the watch; the range must not be touched after that.
#[derive(Debug)]
pub(crate) struct Guarded {
    slot: usize,
}

impl Guarded {
    /// Watches `bytes` bytes at `start`, a mapping of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`]: [`RANGES_MAX`] are watched. [`Error::Machine`]: the handler cannot be set.
    pub(crate) fn watch(start: usize, bytes: usize) -> Result<Self> {
        install()?;
        let _claim = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
        let free = SLOTS.iter().position(|slot| slot.start.load(Ordering::Relaxed) == 0);
        let Some(free) = free else {
            return Err(Error::Busy(format!("{RANGES_MAX} memory regions of front ends are mapped; close some")));
        };
        SLOTS[free].end.store(start + bytes, Ordering::Relaxed);
        SLOTS[free].is_gone.store(false, Ordering::Relaxed);
        // [SB-1 range whole] release: its end before its start, by which the handler finds it.
        SLOTS[free].start.store(start, Ordering::Release);
        USED.fetch_max(free + 1, Ordering::Relaxed);
        Ok(Self { slot: free })
    }

    /// The range has ended: what is read there is zero, what is written there nobody sees.
    pub(crate) fn is_gone(&self) -> bool {
        SLOTS[self.slot].is_gone.load(Ordering::Relaxed)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        SLOTS[self.slot].start.store(0, Ordering::Relaxed);
    }
}

/// How many ranges have ended in this process, ever.
#[inline]
pub(crate) fn gone_so_far() -> usize {
    GONE.load(Ordering::Relaxed)
}

fn install() -> Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut is_done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if *is_done {
        return Ok(());
    }
    // SAFETY: all zeroes is a valid sigaction.
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks first, so that the handler finds whom to pass a signal on to as soon as it is set.
    let failed = unsafe {
        libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) != 0 || {
            let _ = BEFORE.set(before.assume_init());
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) != 0
        }
    };
    if failed {
        return Err(Error::machine("guard memory of front ends", std::io::Error::last_os_error()));
    }
    *is_done = true;
    Ok(())
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid description of the fault.
    let address = unsafe { (*info).si_addr() } as usize;
    // SAFETY: errno is this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let kept = unsafe { *errno };
    if !replace(address) {
        pass_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *errno = kept };
}

/// Puts zeroes in the place of the range that `address` is in. `false`: it is in none.
fn replace(address: usize) -> bool {
    let used = USED.load(Ordering::Relaxed).min(RANGES_MAX);
    for slot in &SLOTS[..used] {
        // [SB-1 range whole] acquire: pairs with the release in watch. Looked at twice, for the slot may change hands between.
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Acquire);
        if start == 0 || !(start..end).contains(&address) || slot.start.load(Ordering::Relaxed) != start {
            continue;
        }
        // SAFETY: exactly a mapping that its owner has not unmapped: it ends the watch before it does. No Rust object lies
        // there, and whoever copies from or to it expects any bytes.
        let place = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                end - start,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return false;
        }
        slot.is_gone.store(true, Ordering::Relaxed);
        GONE.fetch_add(1, Ordering::Relaxed);
        return true;
    }
    false
}

/// A fault that is not ours goes where it would have gone without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(before) = BEFORE.get() else { return };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: sets what was set before; the access is repeated and has its usual end.
            unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever set it with SA_SIGINFO gave a function of this type.
            let handler = unsafe {
                std::mem::transmute::<usize, extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void)>(
                    handler,
                )
            };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: whoever set it without SA_SIGINFO gave a function of this type.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}
