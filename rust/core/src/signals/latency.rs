//! How long doorbells of signals take to be heard: histograms of a counters file, written by whoever learns it.
//!
//! ```text
//!   level     host stamps the ring  ─▶ guest is awake, answers how long that took          priority of the level
//!   apic      host rings the line   ─▶ guest's acknowledge comes to the host               priority of the raise
//!   outbox    guest stamps the ring ─▶ signal thread looks at the outbox: now − stamp      one for all numbers
//! ```
//!
//! Both ends of an emulated controller's figure are moments of the host, so no guest can spoil it; it has the way of the
//! acknowledge in it, which is a call to the host. Source: [`crate::shm::stamp`].

use std::sync::{Mutex, PoisonError};

use crate::shm::counters::Block;
use crate::shm::histogram::{self, Recorder};
use crate::shm::intc::PRIORITIES;
use crate::shm::stamp::Age;

/// How long a guest's vCPUs took to be woken: one histogram a priority, over all vCPUs, then what cannot be believed.
#[derive(Debug)]
pub struct WakeupLatency;

impl WakeupLatency {
    /// Names of what is in a block, in their order: a histogram a priority, and a count of impossible answers.
    pub const NAMES: [&'static str; 9] = [
        "priority_0",
        "priority_1",
        "priority_2",
        "priority_3",
        "priority_4",
        "priority_5",
        "priority_6",
        "priority_7",
        "impossible",
    ];
    /// Words of a block.
    pub const WORDS: usize = PRIORITIES as usize * histogram::WORDS + 1;
}

/// How long the host took to hear a guest's outbox.
#[derive(Debug)]
pub struct OutboxLatency;

impl OutboxLatency {
    /// Names of what is in a block, in their order: a histogram, and a count of impossible stamps.
    pub const NAMES: [&'static str; 2] = ["wakeup", "impossible"];
    /// Words of a block.
    pub const WORDS: usize = histogram::WORDS + 1;
}

/// Histograms one behind the other, then the count of what could not be believed. Any thread records, one at a time;
/// without a block, nothing is recorded.
#[derive(Debug, Default)]
pub(crate) struct WakeupTimes(Mutex<Option<Block>>);

impl WakeupTimes {
    pub(crate) fn new(block: Option<Block>) -> Self {
        Self(Mutex::new(block))
    }

    /// Lets go of the block: its guest has left, though a line may still lead to what holds this.
    pub(crate) fn close(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Records into the histogram of that number.
    pub(crate) fn record(&self, number: u32, age: Age) {
        if age == Age::Unknown {
            return;
        }
        let block = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(block) = &*block else { return };
        let Some((_, histograms)) = block.values().split_last() else { return };
        match age {
            Age::Nanoseconds(age_ns) => {
                let words = histograms.get(number as usize * histogram::WORDS..);
                if let Some(recorder) = words.and_then(Recorder::new) {
                    recorder.record(age_ns, 1);
                }
            }
            _ => block.add(histograms.len(), 1),
        }
    }
}
