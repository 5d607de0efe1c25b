//! A place that one thread at a time may be in, guarded by the interpreter's lock instead of a lock of its own.
//!
//! JUSTIFY: a mutex costs two locked instructions a call, each of which waits until the stores of the call before are
//! visible to the other core; for frames sent one at a time that is a fifth of the whole. Whoever enters holds the
//! interpreter's lock, so looking and taking cannot be torn apart, and the module says that it needs that lock.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::Python;

/// The place and what is in it.
pub(crate) struct Turnstile<T> {
    is_taken: AtomicBool,
    inside: UnsafeCell<T>,
}

// SAFETY: `enter` lets in one thread at a time, so what is inside is used by one thread at a time.
unsafe impl<T: Send> Sync for Turnstile<T> {}

impl<T> Turnstile<T> {
    pub(crate) const fn new(inside: T) -> Self {
        Self { is_taken: AtomicBool::new(false), inside: UnsafeCell::new(inside) }
    }

    /// Goes in; `None`: somebody is there. The interpreter may be let go of while inside.
    #[inline]
    pub(crate) fn enter(&self, _py: Python<'_>) -> Option<Inside<'_, T>> {
        // [TS-1 one at a time] acquire: what the last one did inside is seen; partner in Inside::drop. Not one
        // instruction with the store below: only the holder of the interpreter's lock gets here.
        if self.is_taken.load(Ordering::Acquire) {
            return None;
        }
        self.is_taken.store(true, Ordering::Relaxed);
        Some(Inside { place: self, not_send: PhantomData })
    }
}

/// Being inside. Leaving needs no lock.
pub(crate) struct Inside<'a, T> {
    place: &'a Turnstile<T>,
    not_send: PhantomData<*const ()>,
}

impl<T> Deref for Inside<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: nobody else is inside.
        unsafe { &*self.place.inside.get() }
    }
}

impl<T> DerefMut for Inside<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: nobody else is inside, and we are borrowed mutably.
        unsafe { &mut *self.place.inside.get() }
    }
}

impl<T> Drop for Inside<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // [TS-1 one at a time] release: what we did inside is seen by the next; partner in Turnstile::enter.
        self.place.is_taken.store(false, Ordering::Release);
    }
}
