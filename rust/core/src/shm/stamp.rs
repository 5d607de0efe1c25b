//! Stamps: one word that says what happened and when, so that the other side can tell how long ago that was.
//!
//! ```text
//!   63            40 39                                       0
//!   ┌───────────────┬─────────────────────────────────────────┐     stamp:  what was published or rung for, and when
//!   │ tag, 24 bits  │ nanoseconds, modulo 2^40 (18 minutes)   │     answer: the same tag, and how long it took
//!   └───────────────┴─────────────────────────────────────────┘     0: none
//! ```
//!
//! The tag is the low part of a slot's index or of an arming's number. One word is stored and loaded whole, so no
//! ordering is needed: a stamp that comes too early or too late names something that is not there, and is passed over.
//!
//! Who writes what: see `docs/wire/ring.md` and `signal.md`; the words lie on lines that their writer writes anyway. The
//! danger: a peer can write any of it. A stamp is only ever compared, and its age counted if it can be one; no index and
//! no address comes from it. Both sides need one CLOCK_MONOTONIC: in another time namespace stamps are wrong, and counted
//! as such.

/// Bits of the time.
const TIME_BITS: u32 = 40;
const TIME: u64 = (1 << TIME_BITS) - 1;
/// Bits of the tag.
const TAG_BITS: u32 = u64::BITS - TIME_BITS;
const TAG: u32 = (1 << TAG_BITS) - 1;

/// Older than this, in nanoseconds, no stamp is believed.
pub const AGE_MAX_NS: u64 = 10_000_000_000;

/// Published slots between two stamps, as long as the other side is awake.
pub const STAMP_EVERY: u32 = 1024;

/// What a stamp was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// There is none, or it was seen before.
    Unknown,
    /// So many nanoseconds.
    Nanoseconds(u64),
    /// It says what cannot be.
    Impossible,
}

/// Says that `what` happened at `now_ns` of CLOCK_MONOTONIC; of an answer: that it took so long.
#[must_use]
pub const fn stamp(what: u32, now_ns: u64) -> u64 {
    (what as u64) << TIME_BITS | now_ns & TIME
}

/// What a word is about: the low part of an index or a number.
#[must_use]
pub const fn tag(word: u64) -> u32 {
    (word >> TIME_BITS) as u32
}

/// Whether a word is about `what`.
#[must_use]
pub const fn is_about(word: u64, what: u32) -> bool {
    word != 0 && tag(word) == what & TAG
}

/// How long before `now_ns` a stamp was made.
#[must_use]
pub const fn age(word: u64, now_ns: u64) -> Age {
    // A stamp of the future is nearly 2^40 ns old.
    let age_ns = now_ns.wrapping_sub(word) & TIME;
    if age_ns <= AGE_MAX_NS { Age::Nanoseconds(age_ns) } else { Age::Impossible }
}

/// How long the other side says it took: never longer than since we asked.
#[must_use]
pub const fn answered(word: u64, asked_ns: u64, now_ns: u64) -> Age {
    let answer_ns = word & TIME;
    if answer_ns <= now_ns.saturating_sub(asked_ns) && answer_ns <= AGE_MAX_NS {
        Age::Nanoseconds(answer_ns)
    } else {
        Age::Impossible
    }
}

/// What one side of a ring knows of the other's stamps.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: u64,
    /// Stamp of a slot that lies in the ring; 0 = none.
    waiting: u64,
}

impl Watch {
    /// Looks at the other side's stamp, right after its index: slots from `next` on were found, up to `end`, in a ring of
    /// `slots`. `false`: it names a slot that cannot be.
    #[inline]
    pub(crate) fn look(&mut self, word: u64, next: u32, end: u32, slots: u32) -> bool {
        word == self.seen || self.waiting != 0 || self.note(word, next, end, slots)
    }

    #[cold]
    #[inline(never)]
    fn note(&mut self, word: u64, next: u32, end: u32, slots: u32) -> bool {
        let ahead = distance(next, tag(word));
        if (0..i64::from(end.wrapping_sub(next))).contains(&ahead) {
            self.waiting = word;
        }
        // Published behind our back: its index is on its way.
        let is_early = ahead >= 0 && self.waiting == 0 && ahead < i64::from(slots);
        if !is_early {
            self.seen = word;
        }
        ahead.abs() <= i64::from(slots)
    }

    /// The stamp that lies within the `count` slots taken from `next` on, once.
    #[inline]
    pub(crate) fn take(&mut self, next: u32, count: u32) -> Option<u64> {
        if self.waiting == 0 { None } else { self.find(next, count) }
    }

    #[cold]
    #[inline(never)]
    fn find(&mut self, next: u32, count: u32) -> Option<u64> {
        let ahead = distance(next, tag(self.waiting));
        (ahead < i64::from(count)).then(|| std::mem::take(&mut self.waiting))
    }
}

/// How far a tag is ahead of an index; less than 2^23 either way.
const fn distance(index: u32, tag: u32) -> i64 {
    let unused = u32::BITS - TAG_BITS;
    (tag.wrapping_sub(index) << unused).cast_signed() as i64 >> unused
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn age_is_how_long_ago_it_was_stamped_also_across_the_end_of_the_bits() {
        let stamped_ns = (7 << TIME_BITS) - 3;

        let found = age(stamp(9, stamped_ns), stamped_ns + 1000);

        assert_eq!(Age::Nanoseconds(1000), found);
    }

    #[test]
    fn stamp_of_the_future_and_one_that_is_too_old_are_impossible() {
        let now_ns = 5_000_000_000_000;

        let found = [now_ns + 1, now_ns - AGE_MAX_NS - 1].map(|made_ns| age(stamp(9, made_ns), now_ns));

        assert_eq!([Age::Impossible; 2], found);
    }

    #[test]
    fn answer_cannot_have_taken_longer_than_since_it_was_asked_for() {
        let (asked_ns, now_ns) = (1_000, 1_500);

        let found = [500, 501].map(|took_ns| answered(stamp(3, took_ns), asked_ns, now_ns));

        assert_eq!([Age::Nanoseconds(500), Age::Impossible], found);
    }

    #[test]
    fn stamp_waits_until_its_slot_is_taken_and_is_given_once() {
        let mut watch = Watch::default();
        let word = stamp(105, 77);

        let is_fine = watch.look(word, 100, 110, 64);
        let early = watch.take(100, 5);
        let due = watch.take(105, 1);
        let again = (watch.look(word, 106, 110, 64), watch.take(106, 4));

        assert_eq!((true, None, Some(word), (true, None)), (is_fine, early, due, again));
    }

    #[test]
    fn stamp_that_came_before_its_index_is_found_with_it() {
        let mut watch = Watch::default();
        let word = stamp(3, 77);

        let before = (watch.look(word, 0, 2, 64), watch.take(0, 2));
        let with_it = (watch.look(word, 2, 4, 64), watch.take(2, 2));

        assert_eq!(((true, None), (true, Some(word))), (before, with_it));
    }

    #[test]
    fn stamp_of_a_slot_taken_already_is_passed_over() {
        let mut watch = Watch::default();

        let found = (watch.look(stamp(7, 77), 8, 12, 64), watch.take(8, 4));

        assert_eq!((true, None), found);
    }

    proptest! {
        /// Whatever the other side writes, a stamp that is taken names a slot that is taken, and what is called impossible
        /// is farther away than the ring is long.
        #[test]
        fn prop_hostile_words_give_a_slot_of_ours_or_nothing(
            words in prop::collection::vec((any::<u64>(), 0u32..64, 0u32..64), 1..50),
            start: u32,
        ) {
            let mut watch = Watch::default();
            let mut next = start;
            for (word, known, wanted) in words {
                let end = next.wrapping_add(known);
                let is_fine = watch.look(word, next, end, 64);
                let far = distance(next, tag(word)).abs();
                prop_assert!(is_fine || far > 64);
                let count = wanted.min(known);
                if let Some(taken) = watch.take(next, count) {
                    let ahead = distance(next, tag(taken));
                    prop_assert!((0..i64::from(count)).contains(&ahead), "{ahead} of {count}");
                }
                next = next.wrapping_add(count);
            }
        }

        /// An age is never more than is believed, whatever the word and the time.
        #[test]
        fn prop_ages_are_bounded(word: u64, asked_ns: u64, now_ns: u64) {
            for found in [age(word, now_ns), answered(word, asked_ns, now_ns)] {
                if let Age::Nanoseconds(age_ns) = found {
                    prop_assert!(age_ns <= AGE_MAX_NS);
                }
            }
        }
    }
}
