//! shm-signal: how one side tells the other that there is work, without a system call while the other is awake.
//!
//! ```text
//!            sender (Notifier)                        receiver (Listener)
//!   inject:  dirty = 1                       acknowledge: dirty = 0
//!            ── fence [SG-1] ──                           ── fence [SG-2] ──        then drain the queue
//!            enabled and not pending?        arm:         pending = 0; enabled = 1
//!              pending = 1, ring the bell                 ── fence [SG-1] ──
//!                                                         dirty? then enabled = 0 and drain again, else sleep
//! ```
//!
//! Who writes what: the receiver writes `enabled`; the sender sets `dirty` and `pending`, the receiver clears them.
//! Spurious wake-ups are allowed, lost ones are not: whichever of the two fences `SG-1` comes second in the total order
//! of fences sees the other side's store, so either the sender sees `enabled` or the receiver sees `dirty`. The
//! original used store barriers there, which order neither; `tests/loom_signal.rs` shows what that loses.
//! A peer that scribbles over these words delays its own wake-ups and nobody else's.
//!
//! Source: vbus shm-signal (inject, wakeup, enable, disable); `docs/wire/signal.md` has the bytes.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::layout::SignalWords;
use crate::sync::{Ordering, fence};

/// Keeps mapped memory alive for as long as something points into it.
pub(crate) type Owner = Arc<dyn Any + Send + Sync>;

/// One direction of a signal, wherever its words are.
#[derive(Clone)]
pub(crate) struct SignalMemory {
    words: NonNull<SignalWords>,
    _owner: Owner,
}

// SAFETY: the words are atomics, reachable for as long as `_owner` lives, and every access goes through them.
unsafe impl Send for SignalMemory {}

impl SignalMemory {
    /// # Safety
    ///
    /// `words` must stay valid and be accessed by atomics only for as long as `owner` lives.
    pub(crate) unsafe fn new(words: NonNull<SignalWords>, owner: Owner) -> Self {
        Self { words, _owner: owner }
    }

    fn words(&self) -> &SignalWords {
        // SAFETY: valid for the life of `_owner`, as promised to `new`.
        unsafe { self.words.as_ref() }
    }
}

/// The sending half of one direction.
pub struct Notifier {
    memory: SignalMemory,
}

impl Notifier {
    pub(crate) const fn new(memory: SignalMemory) -> Self {
        Self { memory }
    }

    /// Marks that something happened. `true`: the receiver sleeps, ring its doorbell now.
    ///
    /// Call it after the work itself was published. Cost: one store, one fence, one load.
    #[must_use = "true means the receiver sleeps until its doorbell is rung"]
    pub fn inject(&self) -> bool {
        let words = self.memory.words();
        words.sender.dirty.store(1, Ordering::Relaxed);
        // [SG-1 sleep or see] store of dirty before load of enabled; partner in Listener::arm. It also orders what was
        // published before against the receiver's [SG-2 seen means drained].
        #[cfg(not(vbnet_mutant = "signal_inject"))]
        fence(Ordering::SeqCst);
        #[cfg(vbnet_mutant = "signal_inject")]
        fence(Ordering::Release);
        if words.enabled.0.load(Ordering::Relaxed) == 0 || words.sender.pending.load(Ordering::Relaxed) != 0 {
            return false;
        }
        words.sender.pending.store(1, Ordering::Relaxed);
        true
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier").field("words", self.memory.words()).finish()
    }
}

/// The receiving half of one direction.
pub struct Listener {
    memory: SignalMemory,
}

impl Listener {
    pub(crate) const fn new(memory: SignalMemory) -> Self {
        Self { memory }
    }

    /// Forgets what was signalled so far. Call it before draining the queue, never after.
    pub fn acknowledge(&self) {
        self.memory.words().sender.dirty.store(0, Ordering::Relaxed);
        // [SG-2 seen means drained] store of dirty before the loads that drain the queue; partner in Notifier::inject.
        #[cfg(not(vbnet_mutant = "signal_acknowledge"))]
        fence(Ordering::SeqCst);
        #[cfg(vbnet_mutant = "signal_acknowledge")]
        fence(Ordering::Release);
    }

    /// Asks for the doorbell. `true`: nothing came in since [`Self::acknowledge`], sleep now. `false`: something did,
    /// the signal is masked again; acknowledge, drain and try once more.
    #[must_use = "false means there is work and no doorbell will ring for it"]
    pub fn arm(&self) -> bool {
        let words = self.memory.words();
        words.sender.pending.store(0, Ordering::Relaxed);
        words.enabled.0.store(1, Ordering::Relaxed);
        // [SG-1 sleep or see] store of enabled before load of dirty; partner in Notifier::inject.
        #[cfg(not(vbnet_mutant = "signal_arm"))]
        fence(Ordering::SeqCst);
        #[cfg(vbnet_mutant = "signal_arm")]
        fence(Ordering::Release);
        if words.sender.dirty.load(Ordering::Relaxed) == 0 {
            return true;
        }
        self.mask();
        false
    }

    /// No more doorbells: the receiver is awake and polls. What happens meanwhile is kept in `dirty`.
    pub fn mask(&self) {
        self.memory.words().enabled.0.store(0, Ordering::Relaxed);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("words", self.memory.words()).finish()
    }
}
