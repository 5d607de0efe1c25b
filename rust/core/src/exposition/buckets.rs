//! A histogram of ours as Prometheus has them: classic buckets at chosen edges, and native ones of a fixed growth.
//!
//! The classic edges lie on those of our own buckets, so their counts are exact. Native buckets grow by 2^(1/8), which is
//! nobody's edge in nanoseconds: each of our buckets counts whole in the native one that its middle lies in. Ours are at
//! most 1/16 wide, so a value is told wrong by its neighbour's bucket at most, and a quantile by 1/32 more than the width
//! of a native bucket. Source: Prometheus' native histograms, standard schema 3.

use crate::shm::histogram;

/// Native buckets a power of two: 2 to this.
pub const SCHEMA: i32 = 3;

/// The upper edge of a classic bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// As text.
    pub text: String,
    /// In units.
    pub value: f64,
    /// How many of our own buckets lie below.
    below: usize,
}

/// How the words of a histogram become buckets.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets {
    per_unit: u64,
    edges: Vec<Edge>,
    /// The native bucket of each of ours; `None`: that of zero.
    places: Vec<Option<i32>>,
}

impl Buckets {
    /// `per_unit`: how much of what the words count makes one unit. `edges`: each as text, and how many of the words' own
    /// buckets lie below; what is no number is left out.
    #[must_use]
    pub fn new(per_unit: u64, edges: Vec<(String, usize)>) -> Self {
        let per_unit = per_unit.max(1);
        let edge = |(text, below): (String, usize)| text.parse().ok().map(|value| Edge { text, value, below });
        let places = (0..histogram::BUCKETS).map(|bucket| place(bucket, per_unit)).collect();
        Self { per_unit, edges: edges.into_iter().filter_map(edge).collect(), places }
    }

    /// How much of what the words count makes one unit.
    #[must_use]
    pub const fn per_unit(&self) -> u64 {
        self.per_unit
    }

    /// The upper edges of the classic buckets but the last, which is infinite.
    #[must_use]
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// How many values lie below each of the edges. `filled`: our own buckets that have values, and how many, in order.
    pub fn classic(&self, filled: &[[u64; 2]]) -> impl Iterator<Item = (&Edge, u64)> {
        let (mut rest, mut sum) = (filled.iter().peekable(), 0u64);
        self.edges.iter().map(move |edge| {
            while let Some([_, count]) = rest.next_if(|[bucket, _]| *bucket < edge.below as u64) {
                sum = sum.wrapping_add(*count);
            }
            (edge, sum)
        })
    }

    /// How many values are zeroes, and into `found` the native buckets of the others: which, and how many, in order.
    pub fn native(&self, filled: &[[u64; 2]], found: &mut Vec<(i32, u64)>) -> u64 {
        let mut zeroes = 0u64;
        found.clear();
        for &[bucket, count] in filled {
            match (self.places.get(bucket as usize).copied().flatten(), found.last_mut()) {
                (None, _) => zeroes = zeroes.wrapping_add(count),
                (Some(place), Some((last, sum))) if place == *last => *sum = sum.wrapping_add(count),
                (Some(place), _) => found.push((place, count)),
            }
        }
        zeroes
    }
}

/// How many values there are in all.
pub fn count(filled: &[[u64; 2]]) -> u64 {
    filled.iter().fold(0, |sum, [_, count]| sum.wrapping_add(*count))
}

/// The native bucket that the middle of one of ours lies in: the one that ends at 2^(place / 2^SCHEMA).
fn place(bucket: usize, per_unit: u64) -> Option<i32> {
    let first = bucket.checked_sub(1).map_or(0, |before| histogram::upper_bound(before) + 1);
    let middle = (first as f64 + histogram::upper_bound(bucket) as f64) / 2.0;
    (middle > 0.0).then(|| ((middle / per_unit as f64).log2() * f64::from(1 << SCHEMA)).ceil() as i32)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Nanoseconds, shown in seconds.
    fn seconds() -> Buckets {
        Buckets::new(1_000_000_000, Vec::new())
    }

    /// The native buckets of these values.
    fn native(values: &[u64]) -> (u64, Vec<(i32, u64)>) {
        let mut counts = BTreeMap::new();
        values.iter().for_each(|&value| *counts.entry(histogram::bucket_of(value) as u64).or_default() += 1);
        let filled: Vec<_> = counts.into_iter().map(|(bucket, count)| [bucket, count]).collect();
        let mut found = vec![(9, 9)];
        (seconds().native(&filled, &mut found), found)
    }

    /// The value that a native bucket ends at, in seconds.
    fn end(place: i32) -> f64 {
        (f64::from(place) / f64::from(1 << SCHEMA)).exp2()
    }

    #[test]
    fn zeroes_have_a_bucket_of_their_own() {
        assert_eq!((2, Vec::new()), native(&[0, 0]));
    }

    #[test]
    fn edges_that_are_out_of_order_count_no_value_twice() {
        let buckets = Buckets::new(
            1,
            [("8", 8), ("x", 9), ("2", 2), ("16", 16)].map(|(text, below)| (text.into(), below)).into(),
        );

        let found: Vec<_> = buckets.classic(&[[1, 5], [8, 6]]).map(|(edge, count)| (edge.value, count)).collect();

        assert_eq!(vec![(8.0, 5), (2.0, 5), (16.0, 11)], found);
    }

    proptest! {
        /// Every value is in the bucket that holds it, or so near to its edge that our own buckets cannot tell.
        #[test]
        fn values_are_where_native_buckets_want_them(value in 1u64..1 << 40) {
            let (zeroes, found) = native(&[value]);

            prop_assert_eq!((0, 1), (zeroes, found.len()));
            let (place, count) = found[0];
            prop_assert_eq!(1, count);
            let (value, slack) = (value as f64 / 1e9, 1.0 + 1.0 / 32.0);
            prop_assert!(value <= end(place) * slack, "{} ends at {}", value, end(place));
            prop_assert!(value * slack >= end(place - 1), "{} begins at {}", value, end(place - 1));
        }

        #[test]
        fn native_buckets_are_in_order_and_lose_nothing(values in prop::collection::vec(0u64..1 << 41, 1..200)) {
            let (zeroes, found) = native(&values);

            prop_assert!(found.is_sorted_by(|(before, _), (after, _)| before < after));
            prop_assert_eq!(values.len() as u64, zeroes + found.iter().map(|(_, count)| count).sum::<u64>());
        }
    }
}
