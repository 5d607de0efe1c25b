//! The time guests live by: nanoseconds of `CLOCK_MONOTONIC`, the same in every process of the machine.
//!
//! Nothing but a thread's outermost loop reads it: everything below is told what time it is, so tests decide.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds in a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// Now, in nanoseconds since the machine started. Cost: about 20 ns, no system call.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs().wrapping_mul(SECOND_NS).wrapping_add(now.tv_nsec.unsigned_abs())
}
