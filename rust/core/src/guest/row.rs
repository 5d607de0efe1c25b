//! A row of counters with one writing thread: in this process's memory, or a block of a counters file.
//!
//! Who writes what: one thread adds; anybody reads at any time, another process too when the row lies in a file.

use std::fmt;

use crate::error::{Error, Result};
use crate::shm::counters::Block;
use crate::sync::{AtomicU64, Ordering};

/// The counters, wherever they are.
pub struct Row(Place);

enum Place {
    Memory(Box<[AtomicU64]>),
    File(Block),
}

impl Row {
    /// `words` counters in this process's own memory, all 0.
    #[must_use]
    pub fn in_memory(words: usize) -> Self {
        Self(Place::Memory((0..words).map(|_| AtomicU64::new(0)).collect()))
    }

    /// The counters of `block`, or as many in memory when there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the block has fewer than `words` counters.
    pub fn new(block: Option<Block>, words: usize) -> Result<Self> {
        match block {
            None => Ok(Self::in_memory(words)),
            Some(block) if block.values().len() >= words => Ok(Self(Place::File(block))),
            Some(block) => Err(Error::Usage(format!(
                "this row needs a block of {words} counters; got one of {}",
                block.values().len()
            ))),
        }
    }

    /// The counters.
    #[must_use]
    pub fn values(&self) -> &[AtomicU64] {
        match &self.0 {
            Place::Memory(words) => words,
            Place::File(block) => block.values(),
        }
    }

    /// Adds to counter `index`, for its one writer. An index the row does not have is ignored.
    #[inline]
    pub fn add(&self, index: usize, amount: u64) {
        if amount != 0
            && let Some(word) = self.values().get(index)
        {
            word.store(word.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        }
    }

    /// Sets counter `index`, for a value its one writer keeps elsewhere.
    #[inline]
    pub fn set(&self, index: usize, amount: u64) {
        if let Some(word) = self.values().get(index) {
            word.store(amount, Ordering::Relaxed);
        }
    }

    /// What counter `index` says; 0 for one the row does not have.
    #[must_use]
    pub fn load(&self, index: usize) -> u64 {
        self.values().get(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row").field("words", &self.values().len()).finish_non_exhaustive()
    }
}
