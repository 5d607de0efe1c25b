//! The log-bucket histogram against a sorted list of everything that was counted.
//!
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour histogram_model` looks longer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::shm::histogram::{BUCKETS, Recorder, WORDS, bucket_of, quantile, upper_bound};

const COUNT: usize = 0;
const SUM: usize = 1;
const MIN: usize = 2;
const MAX: usize = 3;
const FIRST_BUCKET: usize = 4;
/// First value that no longer has a bucket of its own width.
const TOP: u64 = 1 << 40;

fn counted(values: impl IntoIterator<Item = (u64, u64)>) -> Vec<u64> {
    let words: Vec<_> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
    let recorder = Recorder::new(&words).unwrap();
    values.into_iter().for_each(|(value, times)| recorder.record(value, times));
    words.iter().map(|word| word.load(Ordering::Relaxed)).collect()
}

fn once(values: &[u64]) -> Vec<u64> {
    counted(values.iter().map(|&value| (value, 1)))
}

/// The same rank rule, over the values themselves.
fn exact(values: &[u64], quantile: f64) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (quantile * values.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, values.len()) - 1]
}

/// Values of every size: as many small as large ones, and those beside powers of two.
fn value(limit_bits: u32) -> impl Strategy<Value = u64> {
    let of_any_size = (0..limit_bits, any::<u64>()).prop_map(|(bits, noise)| (1 << bits) | (noise & ((1 << bits) - 1)));
    let beside_power = (1..limit_bits, 0..3u64).prop_map(|(bits, side)| (1 << bits) - 1 + side);
    prop_oneof![4 => of_any_size, 1 => beside_power, 1 => 0..40u64]
}

/// Buckets follow one another without gap or overlap: the first value behind one's end opens the next.
#[test]
fn buckets_cover_every_value_once_in_order() {
    for bucket in 0..BUCKETS - 1 {
        assert_eq!(bucket, bucket_of(upper_bound(bucket)));
        assert_eq!(bucket + 1, bucket_of(upper_bound(bucket) + 1));
        assert!(upper_bound(bucket) < upper_bound(bucket + 1));
    }
    assert_eq!((0, TOP - 1), (upper_bound(0), upper_bound(BUCKETS - 1)));
}

/// Values of 2^40 and more count in the last bucket.
#[test]
fn values_beyond_the_top_share_the_last_bucket() {
    for value in [TOP - 1, TOP, TOP + 1, 1 << 63, u64::MAX] {
        assert_eq!(BUCKETS - 1, bucket_of(value));
    }
    let words = once(&[TOP + 5, u64::MAX]);
    assert_eq!((2, TOP - 1), (words[FIRST_BUCKET + BUCKETS - 1], quantile(&words, 1.0)));
    assert_eq!(u64::MAX, words[MAX]);
}

/// Nothing counted, too few words and quantiles that make no sense have plain answers.
#[test]
fn quantile_of_nothing_is_zero_and_strange_quantiles_are_clamped() {
    assert_eq!(0, quantile(&once(&[]), 0.5));
    assert_eq!(0, quantile(&vec![1; WORDS - 1], 0.5));
    let words = once(&[3, 5, 9]);
    for (strange, expected) in [(-1.0, 3), (0.0, 3), (f64::NAN, 3), (2.0, 9), (f64::INFINITY, 9)] {
        assert_eq!(expected, quantile(&words, strange), "{strange}");
    }
}

/// A row that is too short has no writer; a longer one is used from the front.
#[test]
fn recorder_needs_all_its_words() {
    let words: Vec<_> = (0..=WORDS).map(|_| AtomicU64::new(0)).collect();
    assert!(Recorder::new(&words[..WORDS - 1]).is_none());

    Recorder::new(&words).unwrap().record(7, 1);

    assert_eq!((1, 0), (words[FIRST_BUCKET + 7].load(Ordering::Relaxed), words[WORDS].load(Ordering::Relaxed)));
}

/// Counting a value no times counts nothing, not even as least or largest.
#[test]
fn value_counted_no_times_leaves_no_trace() {
    assert_eq!(once(&[5]), counted([(1, 0), (5, 1), (900, 0), (2, 0)]));
}

proptest! {
    /// Every value lies within its bucket: above the end of the one before, at most the end of its own.
    #[test]
    fn value_lies_within_its_bucket(value in value(40)) {
        let bucket = bucket_of(value);

        if value < TOP {
            prop_assert!(value <= upper_bound(bucket));
            prop_assert!(bucket == 0 || upper_bound(bucket - 1) < value);
            prop_assert!(upper_bound(bucket) - value <= value / 16);
        } else {
            prop_assert_eq!(BUCKETS - 1, bucket);
        }
    }

    /// Larger values never fall into lower buckets, over all 64 bits.
    #[test]
    fn bucket_grows_with_the_value(one in any::<u64>(), other in any::<u64>(), shift in 0..64u32) {
        let (one, other) = (one >> shift, other >> shift);

        prop_assert!(bucket_of(one.min(other)) <= bucket_of(one.max(other)));
        prop_assert!(bucket_of(one) < BUCKETS);
    }

    /// A quantile is never below the exact one and at most a sixteenth above it.
    #[test]
    fn quantile_is_within_a_sixteenth(values in vec(value(39), 1..300), wanted in 0.0..=1.0f64) {
        let exact = exact(&values, wanted);

        let found = quantile(&once(&values), wanted);

        prop_assert!(exact <= found && found <= exact + exact / 16, "exact {exact}, found {found}");
    }

    /// Count, sum, least and largest are exact, also when a value is counted many times at once.
    #[test]
    fn totals_are_exact(values in vec((value(50), 1..1000u64), 1..50)) {
        let words = counted(values.clone());

        prop_assert_eq!(values.iter().map(|&(_, times)| times).sum::<u64>(), words[COUNT]);
        let sum = values.iter().fold(0u64, |sum, &(value, times)| sum.wrapping_add(value.wrapping_mul(times)));
        prop_assert_eq!(sum, words[SUM]);
        prop_assert_eq!(values.iter().map(|&(value, _)| value).min(), Some(words[MIN]));
        prop_assert_eq!(values.iter().map(|&(value, _)| value).max(), Some(words[MAX]));
        prop_assert_eq!(words[COUNT], words[FIRST_BUCKET..].iter().sum::<u64>());
    }

    /// The words come from shared memory: whatever is in them, reading a quantile answers.
    #[test]
    fn quantile_of_any_words_answers(
        words in vec(prop_oneof![Just(0), any::<u64>(), Just(u64::MAX)], WORDS), wanted in any::<f64>(),
    ) {
        let largest = words[MAX];

        prop_assert!(quantile(&words, wanted) <= largest.max(TOP - 1));
    }
}
