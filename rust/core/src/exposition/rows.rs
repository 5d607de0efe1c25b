//! The words of a block as they are kept until it is told: of a histogram only what is filled.
//!
//! ```text
//!   row         how many values it has whole │ number │ histogram │ … │ other words, as they are
//!   number      word
//!   histogram   its sum · how many buckets are filled │ bucket · count │ …
//! ```
//!
//! A histogram has six hundred words, of which most are 0, and a large host has thousands of histograms: whole, they would
//! be written to memory and read from there again, where this much stays in a processor's caches.

use std::ops::Range;

use super::{Shape, Value};
use crate::shm::histogram;

const HEADER_WORDS: usize = 4;
const SUM: usize = 1;
/// How many words are looked at together for one that is not 0.
const STEP: usize = 16;
const _: () = assert!(histogram::BUCKETS.is_multiple_of(STEP));

/// A value that a row has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept<'a> {
    /// The number, or a histogram's sum.
    pub(super) word: u64,
    /// Of a histogram, each bucket that is filled and its count, in order.
    pub(super) filled: &'a [[u64; 2]],
}

/// Puts the words of a block that has these values behind other rows; where they are.
pub(super) fn push(values: &[Value], words: &[u64], rows: &mut Vec<u64>) -> Range<usize> {
    let start = rows.len();
    rows.push(0);
    let mut rest = words;
    for value in values {
        let Some((own, behind)) = rest.split_at_checked(value.shape.words()) else { break };
        rest = behind;
        rows[start] += 1;
        match own {
            [word] => rows.push(*word),
            own => push_histogram(own, rows),
        }
    }
    rows.extend_from_slice(rest);
    start..rows.len()
}

fn push_histogram(words: &[u64], rows: &mut Vec<u64>) {
    rows.extend([words[SUM], 0]);
    let start = rows.len();
    for (counts, first) in words[HEADER_WORDS..].as_chunks::<STEP>().0.iter().zip((0..).step_by(STEP)) {
        if counts.iter().fold(0, |any, count| any | count) != 0 {
            let filled = counts.iter().zip(first..).filter(|(count, _)| **count != 0);
            rows.extend(filled.flat_map(|(&count, bucket)| [bucket, count]));
        }
    }
    rows[start - 1] = (rows.len() - start) as u64 / 2;
}

/// The values that a row has whole.
pub(super) fn kept<'a>(values: &[Value], row: &'a [u64]) -> impl Iterator<Item = Kept<'a>> {
    let (whole, mut rest) = split(row);
    values.iter().take(whole).map_while(move |value| take(value, &mut rest))
}

/// The words that a row was made of; those of a histogram that are not kept are 0.
pub(super) fn words(values: &[Value], row: &[u64]) -> Vec<u64> {
    let mut words = Vec::new();
    let (whole, mut rest) = split(row);
    for value in values.iter().take(whole) {
        let Some(Kept { word, filled }) = take(value, &mut rest) else { break };
        let start = words.len();
        words.resize(start + value.shape.words(), 0);
        match &mut words[start..] {
            [own] => *own = word,
            own => {
                own[SUM] = word;
                filled.iter().for_each(|&[bucket, count]| own[HEADER_WORDS + bucket as usize] = count);
            }
        }
    }
    words.extend_from_slice(rest);
    words
}

fn split(row: &[u64]) -> (usize, &[u64]) {
    row.split_first().map_or((0, row), |(&whole, rest)| (whole as usize, rest))
}

fn take<'a>(value: &Value, rest: &mut &'a [u64]) -> Option<Kept<'a>> {
    let (&word, mut behind) = rest.split_first()?;
    let mut filled: &[u64] = &[];
    if let Shape::Histogram(_) = value.shape {
        let (&buckets, words) = behind.split_first()?;
        (filled, behind) = words.split_at_checked(2 * buckets as usize)?;
    }
    *rest = behind;
    Some(Kept { word, filled: filled.as_chunks().0 })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::exposition::Buckets;

    fn value(shape: Shape) -> Value {
        Value { family: 0, fixed: Vec::new(), shape }
    }

    /// A number, a histogram, a number.
    fn values() -> [Value; 3] {
        [Shape::Number(1), Shape::Histogram(Buckets::new(1, Vec::new())), Shape::Number(1)].map(value)
    }

    #[test]
    fn of_a_histogram_the_sum_and_what_is_filled_are_kept() {
        let mut words = vec![0; 2 + histogram::WORDS];
        words[..5].copy_from_slice(&[7, 99, 10, 2, 8]);
        words[1 + HEADER_WORDS + 2] = 3;
        words[1 + histogram::WORDS - 1] = 4;
        words[1 + histogram::WORDS] = 9;
        let mut row = Vec::new();
        push(&values(), &words, &mut row);

        let number = |word| Kept { word, filled: &[] };
        let last = histogram::BUCKETS as u64 - 1;
        let found: Vec<_> = kept(&values(), &row).collect();
        assert_eq!(vec![number(7), Kept { word: 10, filled: &[[2, 3], [last, 4]] }, number(9)], found);
    }

    proptest! {
        /// Rows of blocks of any length, also of fewer words than are declared or of more, say all their words but those
        /// of a histogram that nobody is told.
        #[test]
        fn rows_lose_nothing_that_is_told(
            mut words in vec(prop_oneof![4 => Just(0), 1 => any::<u64>()], 0..histogram::WORDS + 9),
        ) {
            let mut row = Vec::new();
            push(&values(), &words, &mut row);

            let found = super::words(&values(), &row);

            if words.len() > histogram::WORDS {
                [1, 3, 4].into_iter().for_each(|unused| words[unused] = 0);
            }
            prop_assert_eq!(words, found);
        }
    }
}
