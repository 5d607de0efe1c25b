//! Two sides of a measurement on two cores: threads where only cache lines matter, processes where isolation does.
//!
//! The far side runs in a forked child (or a thread), the near side in a thread of its own here, so that the caller's
//! affinity is never touched. They share one [`Control`] page: ready, stop. The child is single-threaded, allocates
//! nothing, and is killed and reaped before the call returns, whatever happened; if the caller itself is killed, the
//! kernel kills the child. Every wait ends: [`Control::patience`] says when the other side is taken for lost.
//!
//! Who writes what: the far side `ready`, the near side `stop`. Source: fork(2), prctl(2) PR_SET_PDEATHSIG.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::{self, MapFlags, ProtFlags};
use rustix::process::{self, Pid, Signal, WaitOptions};
use rustix::thread::{self, CpuSet};

use crate::error::{Error, Result};
use crate::shm::layout::PaddedU32;

/// Looks between two glances at the clock while spinning.
const SPINS_A_LOOK: u32 = 1 << 12;

/// Which core each side of a measurement runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The core of the side that produces, or asks first.
    pub near: usize,
    /// The core of the side that consumes, or answers.
    pub far: usize,
}

/// What kind of neighbour the far side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// A thread of this process.
    Thread,
    /// A process of its own.
    Process,
}

/// Keeps the calling thread on one core.
///
/// # Errors
///
/// [`Error::Usage`] when there can be no such core, [`Error::Machine`] when this process may not use it.
pub fn pin(core: usize) -> Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(Error::Usage(format!("core {core} does not exist; the highest is {}", CpuSet::MAX_CPU - 1)));
    }
    let mut set = CpuSet::new();
    set.set(core);
    thread::sched_setaffinity(None, &set).map_err(|errno| Error::machine("keep a thread on one core", errno))
}

/// The page both sides watch.
#[derive(Debug)]
pub struct Control {
    words: NonNull<ControlWords>,
    /// How long either side waits for the other before it gives up.
    patience: Duration,
}

#[repr(C)]
#[derive(Debug)]
struct ControlWords {
    ready: PaddedU32,
    stop: PaddedU32,
}

// SAFETY: the words are atomics in a mapping that lives as long as the value.
unsafe impl Send for Control {}
// SAFETY: as above.
unsafe impl Sync for Control {}

impl Control {
    fn new(patience: Duration) -> Result<Self> {
        // SAFETY: a fresh shared mapping chosen by the kernel.
        let base = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                size_of::<ControlWords>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )
        }
        .map_err(|errno| Error::machine("map a page for a measurement", errno))?;
        let words = NonNull::new(base.cast())
            .ok_or_else(|| Error::machine("map a page for a measurement", rustix::io::Errno::NOMEM))?;
        Ok(Self { words, patience })
    }

    fn words(&self) -> &ControlWords {
        // SAFETY: mapped for the life of self; the kernel zeroed it, which is a valid value of every word.
        unsafe { self.words.as_ref() }
    }

    /// How long either side waits for the other.
    #[must_use]
    pub const fn patience(&self) -> Duration {
        self.patience
    }

    /// The far side has come up.
    fn say_ready(&self) {
        self.words().ready.0.store(1, Ordering::Release);
    }

    /// The near side has seen enough.
    pub fn say_stop(&self) {
        self.words().stop.0.store(1, Ordering::Release);
    }

    /// Whether the near side has seen enough. A read of a line nobody writes: cheap.
    #[inline]
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.words().stop.0.load(Ordering::Relaxed) != 0
    }

    /// Spins until `come` answers something. `None`: stopped, or nothing came in time.
    #[inline]
    pub fn spin_until<T>(&self, mut come: impl FnMut() -> Option<T>) -> Option<T> {
        for _ in 0..SPINS_A_LOOK {
            if let Some(found) = come() {
                return Some(found);
            }
        }
        self.spin_patiently(come)
    }

    #[cold]
    fn spin_patiently<T>(&self, mut come: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + self.patience;
        while Instant::now() < deadline && !self.is_stopped() {
            for _ in 0..SPINS_A_LOOK {
                if let Some(found) = come() {
                    return Some(found);
                }
            }
        }
        None
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; both sides have ended.
        let unmapped = unsafe { mm::munmap(self.words.as_ptr().cast(), size_of::<ControlWords>()) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A forked child, killed and reaped when dropped.
struct Child(Pid);

impl Drop for Child {
    fn drop(&mut self) {
        let _already_gone = process::kill_process(self.0, Signal::KILL);
        while matches!(process::waitpid(Some(self.0), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    }
}

/// Forks. `None` in the child.
fn fork() -> Result<Option<Child>> {
    let parent = process::getpid();
    // SAFETY: the child runs only what `run` gives it: loops over memory mapped before, no locks, no allocation, and
    // ends by _exit, so no lock another thread held at this moment is ever waited for.
    match unsafe { libc::fork() } {
        -1 => Err(Error::machine("fork the far side of a measurement", std::io::Error::last_os_error())),
        0 => {
            let follows = process::set_parent_process_death_signal(Some(Signal::KILL)).is_ok();
            if !follows || process::getppid() != Some(parent) {
                leave(1);
            }
            Ok(None)
        }
        pid => Pid::from_raw(pid)
            .map(|pid| Some(Child(pid)))
            .ok_or_else(|| Error::machine("fork the far side of a measurement", rustix::io::Errno::CHILD)),
    }
}

fn leave(code: i32) -> ! {
    // SAFETY: ends this process at once; nothing of the parent's is flushed or freed twice.
    unsafe { libc::_exit(code) }
}

/// Runs `far` on one core and `near` on the other; ends both; answers what `near` found.
///
/// `near` starts when `far` is pinned. `far` must return once [`Control::is_stopped`]; in a process of its own it must
/// not allocate, lock or panic.
///
/// # Errors
///
/// [`Error::Machine`]: no process, thread or core to be had; [`Error::PeerGone`]: the far side did not come up; and
/// whatever `near` answers.
pub fn run<T: Send>(
    cores: Cores,
    isolation: Isolation,
    patience: Duration,
    far: impl FnOnce(&Control) + Send,
    near: impl FnOnce(&Control) -> Result<T> + Send,
) -> Result<T> {
    let control = &Control::new(patience)?;
    let far = move || {
        if pin(cores.far).is_ok() {
            control.say_ready();
            far(control);
        }
    };
    let measured = move || {
        pin(cores.near)?;
        wait_ready(control)?;
        let found = near(control);
        control.say_stop();
        found
    };
    std::thread::scope(|scope| {
        let side = match isolation {
            Isolation::Thread => {
                scope.spawn(far);
                scope.spawn(move || {
                    let _stop = StopOnDrop(control);
                    measured()
                })
            }
            Isolation::Process => scope.spawn(move || {
                let Some(_child) = fork()? else {
                    let outcome = catch_unwind(AssertUnwindSafe(far));
                    leave(i32::from(outcome.is_err()));
                };
                measured()
            }),
        };
        side.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Lets the far thread end even when the near side ended early.
struct StopOnDrop<'a>(&'a Control);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.say_stop();
    }
}

fn wait_ready(control: &Control) -> Result<()> {
    let ready: &AtomicU32 = &control.words().ready.0;
    let deadline = Instant::now() + control.patience();
    while ready.load(Ordering::Acquire) == 0 {
        if Instant::now() > deadline {
            return Err(Error::PeerGone("a measurement"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// Two cores this process may use, or one twice; the machine decides.
    pub(in crate::bench) fn two_cores() -> Option<Cores> {
        let set = thread::sched_getaffinity(None).ok()?;
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core));
        let near = allowed.next()?;
        Some(Cores { near, far: allowed.next()? })
    }

    fn one_core() -> Cores {
        let set = thread::sched_getaffinity(None).unwrap();
        let core = (0..CpuSet::MAX_CPU).find(|&core| set.is_set(core)).unwrap();
        Cores { near: core, far: core }
    }

    /// A far side in a process of its own is killed and reaped, even one that never stops by itself.
    #[test]
    fn a_far_process_does_not_outlive_the_measurement() {
        let (report, from_child) = rustix::pipe::pipe().unwrap();

        let far_pid = run(
            one_core(),
            Isolation::Process,
            Duration::from_secs(5),
            |_control| {
                let pid = process::getpid().as_raw_nonzero().get();
                let _ = rustix::io::write(&from_child, &pid.to_ne_bytes());
                loop {
                    std::thread::yield_now();
                }
            },
            |_control| {
                let mut pid = [0; 4];
                rustix::io::read(&report, &mut pid).unwrap();
                Ok(i32::from_ne_bytes(pid))
            },
        )
        .unwrap();

        let gone = process::test_kill_process(Pid::from_raw(far_pid).unwrap());
        assert_eq!(Err(rustix::io::Errno::SRCH), gone);
    }

    /// A far thread that watches the control page ends when the near side fails.
    #[test]
    fn a_far_thread_ends_when_the_near_side_fails() {
        let outcome: Result<()> = run(
            one_core(),
            Isolation::Thread,
            Duration::from_secs(5),
            |control| {
                while !control.is_stopped() {
                    std::thread::yield_now();
                }
            },
            |_control| Err(Error::PeerGone("a test")),
        );

        assert!(matches!(outcome, Err(Error::PeerGone("a test"))));
    }

    /// A core that cannot be is refused.
    #[test]
    fn an_impossible_core_is_refused() {
        let far_away = Cores { near: CpuSet::MAX_CPU, far: CpuSet::MAX_CPU };

        let outcome = run(far_away, Isolation::Thread, Duration::from_millis(1), |_control| {}, |_control| Ok(()));

        assert!(matches!(outcome, Err(Error::Usage(_))));
    }
}
