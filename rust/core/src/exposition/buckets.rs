//! A histogram of ours as Prometheus has them: classic buckets at chosen edges, and native ones of a fixed growth.
//!
//! The classic edges lie on those of our own buckets, so their counts are exact. Native buckets grow by 2^(1/8), which is
//! nobody's edge in nanoseconds: each of our buckets counts whole in the native one that its middle lies in. Ours are at
//! most 1/16 wide, so a value is told wrong by its neighbour's bucket at most, and a quantile by 1/32 more than the width
//! of a native bucket. Source: Prometheus' native histograms, standard schema 3.

use crate::shm::histogram;

/// Native buckets a power of two: 2 to this.
pub const SCHEMA: i32 = 3;
const HEADER_WORDS: usize = 4;
const SUM: usize = 1;

/// The upper edge of a classic bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// The label that says so in text: `le="0.5"`.
    pub label: String,
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

/// What classic buckets count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Up to each edge.
    pub below: Vec<u64>,
    /// In all.
    pub all: u64,
    /// The sum of all values, in the words' own unit.
    pub sum: u64,
}

/// Native buckets with values in them, in order: which, and how many.
pub type Native = (u64, Vec<(i32, u64)>);

impl Buckets {
    /// `per_unit`: how much of what the words count makes one unit. `edges`: each as text, and how many of the words' own
    /// buckets lie below; what is no number is left out.
    #[must_use]
    pub fn new(per_unit: u64, edges: Vec<(String, usize)>) -> Self {
        let per_unit = per_unit.max(1);
        let edge = |(text, below): (String, usize)| {
            text.parse().ok().map(|value| Edge { label: format!("le=\"{text}\""), value, below })
        };
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

    /// What the words count; `None`: nothing. Ports have several histograms each, and most ports of a large host are idle:
    /// their series begin with the first value.
    #[must_use]
    pub fn count(&self, words: &[u64]) -> Option<Counted> {
        let counts = counts(words)?;
        let (mut seen, mut sum) = (0, 0u64);
        let mut sum_below = |below: usize| {
            let below = below.clamp(seen, counts.len());
            sum = counts[seen..below].iter().fold(sum, |sum, &count| sum.wrapping_add(count));
            seen = below;
            sum
        };
        let below = self.edges.iter().map(|edge| sum_below(edge.below)).collect();
        Some(Counted { below, all: sum_below(counts.len()), sum: words[SUM] })
    }

    /// What native buckets count: zeroes, and the buckets that have something.
    #[must_use]
    pub fn native(&self, words: &[u64]) -> Native {
        let (mut zeroes, mut found) = (0u64, Vec::<(i32, u64)>::new());
        let counts = counts(words).unwrap_or_default();
        for (&count, place) in counts.iter().zip(&self.places).filter(|(count, _)| **count != 0) {
            match (place, found.last_mut()) {
                (None, _) => zeroes = zeroes.wrapping_add(count),
                (Some(place), Some((last, sum))) if last == place => *sum = sum.wrapping_add(count),
                (Some(place), _) => found.push((*place, count)),
            }
        }
        (zeroes, found)
    }
}

/// `None`: they are none of a histogram, or all 0.
fn counts(words: &[u64]) -> Option<&[u64]> {
    words.get(HEADER_WORDS..histogram::WORDS).filter(|counts| counts.iter().any(|&count| count != 0))
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
    use proptest::prelude::*;

    use super::*;

    /// Nanoseconds, shown in seconds.
    fn seconds() -> Buckets {
        Buckets::new(1_000_000_000, Vec::new())
    }

    fn words(values: &[u64]) -> Vec<u64> {
        let mut words = vec![0; histogram::WORDS];
        for &value in values {
            words[HEADER_WORDS + histogram::bucket_of(value)] += 1;
        }
        words
    }

    /// The value that a native bucket ends at, in seconds.
    fn end(place: i32) -> f64 {
        (f64::from(place) / f64::from(1 << SCHEMA)).exp2()
    }

    #[test]
    fn zeroes_have_a_bucket_of_their_own() {
        assert_eq!((2, Vec::new()), seconds().native(&words(&[0, 0])));
    }

    #[test]
    fn words_of_no_histogram_count_nothing() {
        assert_eq!((0, Vec::new()), seconds().native(&[1, 2, 3]));
        assert_eq!(None, seconds().count(&[1, 2, 3]));
    }

    proptest! {
        /// Every value is in the bucket that holds it, or so near to its edge that our own buckets cannot tell.
        #[test]
        fn values_are_where_native_buckets_want_them(value in 1u64..1 << 40) {
            let (zeroes, found) = seconds().native(&words(&[value]));

            prop_assert_eq!((0, 1), (zeroes, found.len()));
            let (place, count) = found[0];
            prop_assert_eq!(1, count);
            let (value, slack) = (value as f64 / 1e9, 1.0 + 1.0 / 32.0);
            prop_assert!(value <= end(place) * slack, "{} ends at {}", value, end(place));
            prop_assert!(value * slack >= end(place - 1), "{} begins at {}", value, end(place - 1));
        }

        #[test]
        fn native_buckets_are_in_order_and_lose_nothing(values in prop::collection::vec(0u64..1 << 41, 1..200)) {
            let (zeroes, found) = seconds().native(&words(&values));

            prop_assert!(found.is_sorted_by(|(before, _), (after, _)| before < after));
            prop_assert_eq!(values.len() as u64, zeroes + found.iter().map(|(_, count)| count).sum::<u64>());
        }
    }
}
