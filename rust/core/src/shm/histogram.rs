//! A log-bucket histogram in a row of words: exact counts, values within 1/16, constant memory.
//!
//! Values below 16 have a bucket each; above, every power of two is cut into 16 equal parts. Buckets end at 2^40 (18
//! minutes in nanoseconds); larger values count in the last. One writer; readers may look at any time and see counts
//! that are each correct, though not all of one instant. Words: `[count, sum, min, max, buckets…]`.

use crate::sync::{AtomicU64, Ordering};

const SUB_BITS: u32 = 4;
const SUB: usize = 1 << SUB_BITS;
const TOP_BIT: u32 = 40;
/// Number of buckets.
pub const BUCKETS: usize = SUB + (TOP_BIT - SUB_BITS) as usize * SUB;
/// Words a histogram occupies.
pub const WORDS: usize = 4 + BUCKETS;

/// Bucket a value falls into.
#[must_use]
pub const fn bucket_of(value: u64) -> usize {
    if value < SUB as u64 {
        return value as usize;
    }
    let exponent = 63 - value.leading_zeros();
    if exponent >= TOP_BIT {
        return BUCKETS - 1;
    }
    let part = (value >> (exponent - SUB_BITS)) as usize & (SUB - 1);
    SUB + (exponent - SUB_BITS) as usize * SUB + part
}

/// Largest value that falls into a bucket.
#[must_use]
pub const fn upper_bound(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let exponent = (bucket - SUB) / SUB;
    let part = (bucket - SUB) % SUB;
    (((SUB + part + 1) as u64) << exponent) - 1
}

/// The writing end. One per row of words.
#[derive(Debug)]
pub struct Recorder<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Recorder<'a> {
    /// Writes into `words`, at least [`WORDS`] of them; `None` when there are fewer.
    #[must_use]
    pub fn new(words: &'a [AtomicU64]) -> Option<Self> {
        (words.len() >= WORDS).then_some(Self { words })
    }

    /// Counts `value` `times` times.
    pub fn record(&self, value: u64, times: u64) {
        if times == 0 {
            return;
        }
        let add = |index: usize, amount: u64| {
            let word = &self.words[index];
            word.store(word.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        };
        if self.words[0].load(Ordering::Relaxed) == 0 || value < self.words[2].load(Ordering::Relaxed) {
            self.words[2].store(value, Ordering::Relaxed);
        }
        if value > self.words[3].load(Ordering::Relaxed) {
            self.words[3].store(value, Ordering::Relaxed);
        }
        add(4 + bucket_of(value), times);
        add(1, value.wrapping_mul(times));
        add(0, times);
    }
}

/// Value below or at which `quantile` (0 to 1) of all counted values lie, from the words of a histogram. Words that no
/// recorder wrote give a meaningless value, nothing worse.
#[must_use]
pub fn quantile(words: &[u64], quantile: f64) -> u64 {
    let Some(buckets) = words.get(4..WORDS) else { return 0 };
    let total = buckets.iter().fold(0u64, |total, &count| total.saturating_add(count));
    if total == 0 {
        return 0;
    }
    let rank = ((quantile.clamp(0.0, 1.0) * total as f64).ceil() as u64).max(1);
    let mut seen = 0u64;
    for (bucket, &count) in buckets.iter().enumerate() {
        seen = seen.saturating_add(count);
        if seen >= rank {
            return upper_bound(bucket).min(words[3]);
        }
    }
    words[3]
}
