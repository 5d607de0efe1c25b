//! Asking for cache lines before they are needed.
//!
//! A processor asks by itself for lines that are *read* in sequence, from wherever they are. Lines that are *written*
//! it takes from the other core one after the other, because stores become visible in order: between two cores that is
//! what limits a stream of small frames, not the copying. Asking for a few lines ahead, to write, makes the transfers
//! overlap (`docs/performance.md` has what that is worth). Neither call changes what a program sees.
//! Source: PREFETCHW, Intel SDM volume 2; PRFM PSTL1KEEP, Arm ARM.

use std::ptr::NonNull;

use super::layout::CACHE_LINE;

/// Asks for the lines of `bytes` bytes at `place`, to be read soon.
#[inline(always)]
pub fn fetch_to_read(place: NonNull<u8>, bytes: usize) {
    each_line(place, bytes, |line| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing the program can see, and faults on no address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = line;
    });
}

/// Asks for the lines of `bytes` bytes at `place`, to be written soon: they leave the other core's cache.
#[inline(always)]
pub fn fetch_to_write(place: NonNull<u8>, bytes: usize) {
    each_line(place, bytes, |line| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch changes nothing the program can see, and faults on no address; processors that do not know
        // this one do nothing. The intrinsic would become a prefetch to read on the oldest target.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("prfm pstl1keep, [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = line;
    });
}

#[inline(always)]
fn each_line(place: NonNull<u8>, bytes: usize, mut ask: impl FnMut(*const u8)) {
    let mut offset = 0;
    while offset < bytes {
        ask(place.as_ptr().wrapping_add(offset).cast_const());
        offset += CACHE_LINE;
    }
}
