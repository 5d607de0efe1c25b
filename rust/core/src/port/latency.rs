//! How long frames lie in a port's rings, and how long its doorbells take to be heard.
//!
//! ```text
//!   TX: guest stamps what it publishes ─▶ worker takes it: now − stamp                        transmit_residence
//!   RX: worker stamps what it returns ─▶ guest takes it, answers how long that took          receive_residence
//!   kick: guest stamps the ring ─▶ worker looks at the port: now − stamp                     host_wakeup
//!   call: worker stamps the ring ─▶ guest is awake, answers how long that took               guest_wakeup
//!   turn: worker begins to look ─▶ has told the receivers of what it found                   service
//! ```
//!
//! Only venet has words for stamps. What lies in the kernel's queue of a TAP or in the rings of a front end has none, and
//! neither has the kernel's waking of the worker: such ports have `service` alone, both of whose ends are the worker's.
//!
//! One block a port, written by its worker: the histograms one after the other, then what could not be believed. Samples,
//! not sums: one slot in [`STAMP_EVERY`](crate::shm::stamp::STAMP_EVERY) is stamped while the other side is awake, and
//! every publish that wakes it. Source: [`crate::shm::stamp`]; `docs/decisions/0019-one-word-stamps.md`.

use std::sync::Arc;

use crate::shm::counters::Block;
use crate::shm::histogram::{self, Recorder};
use crate::shm::stamp::Age;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortLatency {
    /// From a guest's publish to the worker's taking of the frame.
    TransmitResidence,
    /// From the worker's return of a buffer to the guest's taking of the frame in it.
    ReceiveResidence,
    /// From a guest's ring to the worker's first look.
    HostWakeup,
    /// From the worker's ring to the guest's first look.
    GuestWakeup,
    /// From the beginning of a turn that found frames until their receivers were told.
    Service,
}

impl PortLatency {
    /// Names of what is in a block, in their order: histograms, and a count of impossible stamps.
    pub const NAMES: [&'static str; 6] =
        ["transmit_residence", "receive_residence", "host_wakeup", "guest_wakeup", "service", "impossible"];
    /// Where the count of impossible stamps is, behind the histograms.
    pub const IMPOSSIBLE: usize = (Self::NAMES.len() - 1) * histogram::WORDS;
    /// Words of a block.
    pub const WORDS: usize = Self::IMPOSSIBLE + 1;

    /// Where its histogram begins in a block.
    #[must_use]
    pub const fn start(self) -> usize {
        self as usize * histogram::WORDS
    }
}

/// The block of one port, for its worker; without one, nothing is recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Option<Arc<Block>>);

impl Latencies {
    /// Records into a block of [`PortLatency::WORDS`] words.
    pub(crate) fn new(block: Block) -> Self {
        Self(Some(Arc::new(block)))
    }

    pub(crate) fn record(&self, what: PortLatency, age: Age) {
        let Some(block) = &self.0 else { return };
        match age {
            Age::Unknown => {}
            Age::Nanoseconds(age_ns) => {
                if let Some(recorder) = block.values().get(what.start()..).and_then(Recorder::new) {
                    recorder.record(age_ns, 1);
                }
            }
            Age::Impossible => block.add(PortLatency::IMPOSSIBLE, 1),
        }
    }
}
