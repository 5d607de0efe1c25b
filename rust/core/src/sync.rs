//! The atomics everything here is built on: the real ones, or loom's when a model is being checked.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// `fence(SeqCst)`: every store before it is visible before any load behind it is made.
///
/// JUSTIFY: the compiler's form on x86-64, `mfence`, also waits for loads and costs two to three times as much as a
/// locked instruction on memory that is ours anyway, which orders the same (Intel SDM volume 3, 9.2.3: "reads or writes
/// cannot be reordered with locked instructions"). This fence is on the path of every publish.
#[inline(always)]
pub(crate) fn full_fence() {
    #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
    // SAFETY: adds nothing to a word of our own stack; touches no flag that is not declared changed.
    unsafe {
        std::arch::asm!("lock or dword ptr [rsp], 0", options(nostack));
    }
    // [SG-1 sleep or see] both ends of it call this; they are named where they do.
    #[cfg(not(all(target_arch = "x86_64", not(loom), not(miri))))]
    fence(Ordering::SeqCst);
}
