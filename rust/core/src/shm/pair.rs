//! A signal pair that stands alone in a guest's RAM: the two directions of a shm-signal, beside something else's memory.
//!
//! Who writes what: the guest lays it out before it shows it; from then on each word has the one writer that
//! [`super::signal`] says. The host believes place, magic and version once, and the words never.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::layout::{LINE_PAIR, RAM_HEADER_BYTES, SIGNAL_MAGIC, SIGNAL_PAIR_BYTES, SIGNAL_VERSION, SignalPair};
use super::region::Ram;
use super::signal::{Listener, Notifier, SignalMemory};
use crate::error::{Error, Fault, Result};

/// A signal pair in mapped memory.
#[derive(Clone)]
pub(crate) struct PairMemory {
    pair: NonNull<SignalPair>,
    ram: Arc<Ram>,
}

// SAFETY: the pair is atomics only, mapped for as long as `ram` is held.
unsafe impl Send for PairMemory {}
// SAFETY: as above.
unsafe impl Sync for PairMemory {}

impl PairMemory {
    /// Lays a pair out at `offset` of memory that is ours.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the place is misaligned or outside the region.
    pub(crate) fn format(ram: &Arc<Ram>, offset: u32) -> Result<Self> {
        let pair = place(ram, offset).map_err(|fault| Error::Usage(fault.to_string()))?;
        // SAFETY: `place` checked alignment and bounds; nobody else knows of this pair yet.
        unsafe { pair.write(SignalPair::new()) };
        Ok(Self { pair, ram: ram.clone() })
    }

    /// Whether a pair could lie at `offset` at all.
    ///
    /// # Errors
    ///
    /// The guest's fault: it is misaligned, or not in the region.
    pub(crate) fn check_place(ram: &Ram, offset: u32) -> std::result::Result<(), Fault> {
        place(ram, offset).map(drop)
    }

    /// Believes a pair that a guest laid out.
    ///
    /// # Errors
    ///
    /// The guest's fault: place, magic or version cannot be.
    pub(crate) fn attach(ram: &Arc<Ram>, offset: u32) -> std::result::Result<Self, Fault> {
        let pair = place(ram, offset)?;
        // SAFETY: `place` checked alignment and bounds; the pair is atomics only.
        let words = unsafe { pair.as_ref() };
        let expect = |what, found: u32, expected: u32| {
            let (found, expected) = (found.into(), expected.into());
            if found == expected { Ok(()) } else { Err(Fault::BadHeader { what, found, expected }) }
        };
        expect("signal magic", words.magic.load(Ordering::Relaxed), SIGNAL_MAGIC)?;
        expect("signal version", words.version.load(Ordering::Relaxed), SIGNAL_VERSION)?;
        Ok(Self { pair, ram: ram.clone() })
    }

    /// Its host's ends: what hears kicks, and what calls.
    pub(crate) fn host_ends(&self) -> (Listener, Notifier) {
        (Listener::new(self.half(|pair| &pair.kick)), Notifier::new(self.half(|pair| &pair.call)))
    }

    /// Its guest's ends: what hears calls, and what kicks.
    pub(crate) fn guest_ends(&self) -> (Listener, Notifier) {
        (Listener::new(self.half(|pair| &pair.call)), Notifier::new(self.half(|pair| &pair.kick)))
    }

    fn half(&self, choose: impl FnOnce(&SignalPair) -> &super::layout::SignalWords) -> SignalMemory {
        // SAFETY: as checked when this was made; the words live as long as `ram`.
        unsafe { SignalMemory::new(NonNull::from(choose(self.pair.as_ref())), self.ram.clone()) }
    }
}

fn place(ram: &Ram, offset: u32) -> std::result::Result<NonNull<SignalPair>, Fault> {
    if !(offset as usize).is_multiple_of(LINE_PAIR) {
        let limit = LINE_PAIR as u64;
        return Err(Fault::BadSize { what: "offset of a signal, a multiple", found: offset.into(), limit });
    }
    if offset < RAM_HEADER_BYTES {
        let length = SIGNAL_PAIR_BYTES as u32;
        return Err(Fault::OverlapsControl { offset, length, start: 0, end: RAM_HEADER_BYTES });
    }
    Ok(ram.at(offset, SIGNAL_PAIR_BYTES)?.cast())
}
