//! What Linux knows and does about a thread's scheduling: asked for and set by its number.
//!
//! The danger: a number means another thread once the first has ended. So a thread is its number *and* the time it
//! started, and is looked at again right before it is changed. What is left of the race is the time between two system
//! calls, in which a thread would have to end and all other numbers be used up.
//! Source: sched_setattr(2), sched_setaffinity(2), proc_pid_stat(5), sched(7).

use std::io;
use std::path::Path;

use super::group::{Group, Groups};
use super::policy::AFFINITY_WORDS;

/// `SCHED_FLAG_RESET_ON_FORK`: children of a raised thread begin as ordinary ones.
const RESET_ON_FORK: u64 = 1;
/// Bytes of the first version of `struct sched_attr`.
const ATTR_BYTES: u32 = 48;
/// Fields of `/proc/PID/task/TID/stat` behind the name: the thread's state is the first, its start the twentieth.
const START_FIELD: usize = 19;

/// Bits of processors.
pub type Processors = [u64; AFFINITY_WORDS];

/// How a thread is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// A share by nice value; `slice_ns` 0: the kernel's own.
    Fair {
        /// `SCHED_BATCH` where true: never preempts when it wakes.
        is_batch: bool,
        /// -20 to 19.
        nice: i32,
        /// Time it runs at a stretch, ns; a shorter one is served sooner.
        slice_ns: u64,
    },
    /// Only when nobody else wants to; the nice value is kept for later.
    Idle {
        /// -20 to 19.
        nice: i32,
    },
    /// Before all others.
    Realtime {
        /// Until it blocks, or in turns with its equals.
        is_fifo: bool,
        /// 1 to 99.
        priority: u32,
    },
    /// So much time in each period, before its deadline.
    Deadline {
        /// ns.
        runtime_ns: u64,
        /// ns.
        deadline_ns: u64,
        /// ns.
        period_ns: u64,
    },
}

impl Schedule {
    /// Whether only a privileged host gives it, so that a thread's children must not inherit it.
    #[must_use]
    pub const fn raises_privilege(&self) -> bool {
        match self {
            Self::Realtime { .. } | Self::Deadline { .. } => true,
            Self::Fair { nice, .. } => *nice < 0,
            Self::Idle { .. } => false,
        }
    }
}

/// Everything that is put back when a thread is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// How it was scheduled.
    pub schedule: Schedule,
    /// Whether its children begin as ordinary threads.
    pub is_reset_on_fork: bool,
    /// Where it may run.
    pub affinity: Processors,
}

/// The kernel, or what a test puts in its place.
pub trait Kernel: Send {
    /// When the thread `tid` of the process `pid` started. `None`: that process has no such thread.
    fn started(&self, pid: u32, tid: u32) -> Option<u64>;
    /// How a thread is scheduled now.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn setting(&self, tid: u32) -> io::Result<Setting>;
    /// Changes how a thread is scheduled.
    ///
    /// # Errors
    ///
    /// The kernel refused: EPERM for want of privilege, EBUSY when there is no such bandwidth.
    fn schedule(&self, tid: u32, schedule: Schedule, is_reset_on_fork: bool) -> io::Result<()>;
    /// Changes where a thread may run.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn pin(&self, tid: u32, affinity: &Processors) -> io::Result<()>;
    /// Processor time it has used, ns.
    fn used_ns(&self, pid: u32, tid: u32) -> Option<u64>;
    /// The control group of a process, if there is one that may be weighed.
    fn group(&self, pid: u32) -> Option<Group>;
    /// What a group weighs now.
    ///
    /// # Errors
    ///
    /// It is gone.
    fn weight(&self, group: &Group) -> io::Result<u32>;
    /// Gives a group another weight.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn set_weight(&self, group: &Group, weight: u32) -> io::Result<()>;
}

#[repr(C)]
#[derive(Default)]
struct Attr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Linux itself.
#[derive(Clone, Debug, Default)]
pub struct Linux {
    /// The slice a thread has that never asked for one; reported like one that was asked for.
    usual_slice_ns: u64,
    groups: Option<Groups>,
}

impl Linux {
    /// Learns what the usual slice is from the calling thread, which must not have asked for one.
    #[must_use]
    pub fn new() -> Self {
        let usual_slice_ns = get(0).map_or(0, |attr| attr.runtime);
        Self { usual_slice_ns, groups: Groups::find(Path::new("/proc")) }
    }

    /// Whether there are control groups that can be weighed.
    #[must_use]
    pub const fn has_groups(&self) -> bool {
        self.groups.is_some()
    }
}

fn get(tid: u32) -> io::Result<Attr> {
    let mut attr = Attr::default();
    // SAFETY: the kernel writes at most `ATTR_BYTES` bytes, which is what an `Attr` has.
    let answer = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, ATTR_BYTES, 0) };
    if answer == 0 { Ok(attr) } else { Err(io::Error::last_os_error()) }
}

/// Numbers of the policies, as the kernel has them.
fn policy(number: libc::c_int) -> u32 {
    number.cast_unsigned()
}

impl Kernel for Linux {
    fn started(&self, pid: u32, tid: u32) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
        // The name is in brackets and may contain any, so what counts is the last closing one.
        let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        fields.nth(START_FIELD - 1)?.parse().ok()
    }

    fn setting(&self, tid: u32) -> io::Result<Setting> {
        let attr = get(tid)?;
        let slice_ns = if attr.runtime == self.usual_slice_ns { 0 } else { attr.runtime };
        let schedule = match attr.policy {
            number if number == policy(libc::SCHED_BATCH) => {
                Schedule::Fair { is_batch: true, nice: attr.nice, slice_ns }
            }
            number if number == policy(libc::SCHED_IDLE) => Schedule::Idle { nice: attr.nice },
            number if number == policy(libc::SCHED_FIFO) => {
                Schedule::Realtime { is_fifo: true, priority: attr.priority }
            }
            number if number == policy(libc::SCHED_RR) => {
                Schedule::Realtime { is_fifo: false, priority: attr.priority }
            }
            number if number == policy(libc::SCHED_DEADLINE) => {
                Schedule::Deadline { runtime_ns: attr.runtime, deadline_ns: attr.deadline, period_ns: attr.period }
            }
            _ => Schedule::Fair { is_batch: false, nice: attr.nice, slice_ns },
        };
        let mut affinity = [0; AFFINITY_WORDS];
        // SAFETY: the kernel writes at most the bytes it is told of.
        let answer =
            unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, size_of::<Processors>(), affinity.as_mut_ptr()) };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Setting { schedule, is_reset_on_fork: attr.flags & RESET_ON_FORK != 0, affinity })
    }

    fn schedule(&self, tid: u32, schedule: Schedule, is_reset_on_fork: bool) -> io::Result<()> {
        let mut attr = Attr { size: ATTR_BYTES, ..Attr::default() };
        attr.flags = if is_reset_on_fork { RESET_ON_FORK } else { 0 };
        match schedule {
            Schedule::Fair { is_batch, nice, slice_ns } => {
                attr.policy = policy(if is_batch { libc::SCHED_BATCH } else { libc::SCHED_OTHER });
                attr.nice = nice;
                attr.runtime = slice_ns;
            }
            Schedule::Idle { nice } => {
                attr.policy = policy(libc::SCHED_IDLE);
                attr.nice = nice;
            }
            Schedule::Realtime { is_fifo, priority } => {
                attr.policy = policy(if is_fifo { libc::SCHED_FIFO } else { libc::SCHED_RR });
                attr.priority = priority;
            }
            Schedule::Deadline { runtime_ns, deadline_ns, period_ns } => {
                attr.policy = policy(libc::SCHED_DEADLINE);
                (attr.runtime, attr.deadline, attr.period) = (runtime_ns, deadline_ns, period_ns);
            }
        }
        // SAFETY: reads `size` bytes of an `Attr` of ours.
        let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn pin(&self, tid: u32, affinity: &Processors) -> io::Result<()> {
        // SAFETY: reads the bytes it is told of, which are ours.
        let answer =
            unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of::<Processors>(), affinity.as_ptr()) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn used_ns(&self, pid: u32, tid: u32) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
        stat.split(' ').next()?.parse().ok()
    }

    fn group(&self, pid: u32) -> Option<Group> {
        self.groups.as_ref()?.of(pid)
    }

    fn weight(&self, group: &Group) -> io::Result<u32> {
        group.weight()
    }

    fn set_weight(&self, group: &Group, weight: u32) -> io::Result<()> {
        group.set_weight(weight)
    }
}
