//! Raising the thread for which an urgent signal waits, on the path that makes a system call for it anyway.
//!
//! ```text
//!   raiser       boost(vcpu, priority) ─▶ board: is it this urgent, is the thread lower? ─▶ sched_setattr, once a wake
//!                                                                           first of several: ring the coordinator
//!   coordinator  thread idle, or its time is up ─▶ what it had before the boost
//! ```
//!
//! The board is the only thing raisers and coordinator share. It is locked for a system call or two at most, also while
//! the coordinator applies something to a thread that is on it, so that a boost is never half undone. A thread on the
//! board is looked for among those of its process right before it is raised. Source: priority inheritance, as in vbus
//! between a guest's interrupts and the host's threads.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::kernel::{Kernel, Linux, Schedule};
use crate::shm::doorbell::Doorbell;
use crate::shm::sched::Record;
use crate::signals::WakeHook;

/// A thread that signals may raise.
pub(super) struct Target {
    pub(super) tid: u32,
    /// Exists as long as the thread is one of its process.
    pub(super) place: CString,
    pub(super) schedule: Schedule,
    pub(super) record: Record,
    /// What the thread's turns said when it was raised; `None`: it is not.
    pub(super) boosted_at: Option<u32>,
}

/// What raisers and coordinator know of a guest's vCPUs.
#[derive(Default)]
pub(super) struct Board {
    pub(super) targets: HashMap<u32, Target>,
    /// Signals of this priority and above boost.
    pub(super) from: u32,
    /// Boosts so far.
    pub(super) boosts: u64,
}

impl Board {
    /// Whether a signal raised this thread and nobody has put it back.
    pub(super) fn is_boosted(&self, tid: u32) -> bool {
        self.targets.values().any(|target| target.tid == tid && target.boosted_at.is_some())
    }
}

/// Whether the coordinator knows that somebody is boosted, and its doorbell.
pub(super) struct Caller {
    pub(super) is_called: Mutex<bool>,
    pub(super) bell: Arc<Doorbell>,
}

/// Raises the threads of one guest; hold it where signals are raised.
pub struct Booster {
    board: Mutex<Board>,
    caller: Arc<Caller>,
    kernel: Linux,
}

impl Booster {
    pub(super) fn new(caller: Arc<Caller>, from: u32) -> Self {
        let board = Mutex::new(Board { from, ..Board::default() });
        Self { board, caller, kernel: Linux::default() }
    }

    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A signal of this priority is about to wake the thread that serves this vCPU. `true`: it was raised for it.
    ///
    /// Cost: two system calls for the first signal of a wake, else a lock that nobody holds for long.
    pub fn boost(&self, vcpu: u32, priority: u32) -> bool {
        let mut board = self.board();
        if priority < board.from {
            return false;
        }
        let Some(target) = board.targets.get_mut(&vcpu) else { return false };
        if target.boosted_at.is_some() {
            return false;
        }
        // SAFETY: a string of ours that ends in a zero.
        let is_there = unsafe { libc::access(target.place.as_ptr(), libc::F_OK) } == 0;
        let turns = target.record.turns();
        let is_raised = target.schedule.raises_privilege();
        if !is_there || self.kernel.schedule(target.tid, target.schedule, is_raised).is_err() {
            return false;
        }
        target.boosted_at = Some(turns);
        target.record.tell_boosted(true);
        board.boosts += 1;
        drop(board);
        let mut is_called = self.caller.is_called.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_called {
            *is_called = true;
            // The coordinator's own doorbell: it never blocks.
            let _ = self.caller.bell.ring();
        }
        true
    }
}

impl WakeHook for Booster {
    fn waking(&self, vcpu: u32, priority: u32) {
        self.boost(vcpu, priority);
    }
}

impl fmt::Debug for Booster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Booster").finish_non_exhaustive()
    }
}
