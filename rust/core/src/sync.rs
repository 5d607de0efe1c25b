//! The atomics everything here is built on: the real ones, or loom's when a model is being checked.
//!
//! Each ordering that something depends on goes by a name, through [`ordering`], [`half_fence`] or [`full_fence`], so
//! that models can be run with any one of them weakened: `VBNET_MUTANT=ring_publish`, which is looked at only in a build
//! for loom or with `--cfg vbnet_mutants`. Everywhere else the names cost nothing, not even a byte. `tools/loom.sh
//! mutants` goes through all of them.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Whether the ordering of this name is to be weakened.
#[cfg(any(loom, vbnet_mutants))]
fn is_mutant(name: &str) -> bool {
    static MUTANT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    MUTANT.get_or_init(|| std::env::var("VBNET_MUTANT").ok()).as_deref() == Some(name)
}

#[cfg(not(any(loom, vbnet_mutants)))]
#[inline(always)]
const fn is_mutant(_name: &str) -> bool {
    false
}

/// `order`; its mutant: `Relaxed`.
#[inline(always)]
pub(crate) fn ordering(name: &str, order: Ordering) -> Ordering {
    if is_mutant(name) { Ordering::Relaxed } else { order }
}

/// `fence(order)`; its mutant: none.
#[inline(always)]
pub(crate) fn half_fence(name: &str, order: Ordering) {
    if !is_mutant(name) {
        fence(order);
    }
}

/// `fence(SeqCst)`: every store before it is visible before any load behind it is made. Its mutant: `fence(Release)`.
///
/// JUSTIFY: the compiler's form on x86-64, `mfence`, also waits for loads and costs two to three times as much as a
/// locked instruction on memory that is ours anyway, which orders the same (Intel SDM volume 3, 9.2.3: "reads or writes
/// cannot be reordered with locked instructions"). This fence is on the path of every publish.
#[inline(always)]
pub(crate) fn full_fence(name: &str) {
    if is_mutant(name) {
        // Too weak for [SG-1 sleep or see], and for whatever else calls this.
        fence(Ordering::Release);
        return;
    }
    #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
    // SAFETY: adds nothing to a word of our own stack; touches no flag that is not declared changed.
    unsafe {
        std::arch::asm!("lock or dword ptr [rsp], 0", options(nostack));
    }
    // [SG-1 sleep or see] both ends of it call this; they are named where they do.
    #[cfg(not(all(target_arch = "x86_64", not(loom), not(miri))))]
    fence(Ordering::SeqCst);
}
