//! What became of numbered frames: lost, reordered, duplicated, counted exactly within a window.
//!
//! ```text
//!        older: stale      │            window, one bit a number           │ next    not yet sent
//!   ───────────────────────┼───────────────────────────────────────────────┼──────────────────────── numbers
//!                        next - 65472                                      next
//! ```
//!
//! A number below `next` is late: its bit tells whether it was missing (reordered, no longer lost) or seen before (a
//! duplicate). Numbers older than the window are counted as stale, because nobody remembers which of the two they are.
//! The definitions are those of RFC 4737 (reordering) and RFC 5560 (duplication).

const WORDS: usize = 1024;

/// Numbers remembered behind the newest: all words but the one in which the newest is.
pub const WINDOW: u64 = (WORDS as u64 - 1) * 64;

/// How one arrival relates to those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The next number.
    InOrder,
    /// One further ahead: so many before it are missing.
    Ahead(u64),
    /// Late, and missing until now.
    Reordered,
    /// Seen before.
    Duplicate,
    /// Too late to tell.
    Stale,
}

/// The numbers of one stream.
pub struct Sequence {
    next: u64,
    missing: u64,
    seen: Box<[u64; WORDS]>,
}

impl Default for Sequence {
    fn default() -> Self {
        Self::new()
    }
}

impl Sequence {
    /// A stream that begins with number 0.
    #[must_use]
    pub fn new() -> Self {
        Self { next: 0, missing: 0, seen: Box::new([0; WORDS]) }
    }

    /// One past the largest number seen.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Numbers below [`Self::next`] that have not arrived.
    #[must_use]
    pub const fn missing(&self) -> u64 {
        self.missing
    }

    /// Notes that `number` arrived. The largest possible number is never in order: nothing can follow it.
    #[inline]
    pub fn arrive(&mut self, number: u64) -> Arrival {
        if number != self.next {
            return self.arrive_out_of_order(number);
        }
        let (word, bit) = ((number / 64) as usize % WORDS, 1 << (number % 64));
        // The word was used by numbers one window ago; its first number in order starts it over.
        let kept = if number.is_multiple_of(64) { 0 } else { self.seen[word] };
        self.seen[word] = kept | bit;
        self.next = number.saturating_add(1);
        Arrival::InOrder
    }

    #[cold]
    fn arrive_out_of_order(&mut self, number: u64) -> Arrival {
        let (word, bit) = ((number / 64) as usize % WORDS, 1 << (number % 64));
        if number > self.next {
            let skipped = number - self.next;
            self.skip_to(number);
            self.seen[word] |= bit;
            self.next = number.saturating_add(1);
            return Arrival::Ahead(skipped);
        }
        if self.next - number > WINDOW {
            return Arrival::Stale;
        }
        if self.seen[word] & bit != 0 {
            return Arrival::Duplicate;
        }
        self.seen[word] |= bit;
        self.missing -= 1;
        Arrival::Reordered
    }

    /// Marks everything from `next` up to `number` as missing, clearing the words that come into use.
    fn skip_to(&mut self, number: u64) {
        self.missing += number - self.next;
        let first = self.next.div_ceil(64);
        let last = number / 64;
        if last >= first {
            for word in 0..(last - first + 1).min(WORDS as u64) {
                self.seen[((last - word) as usize) % WORDS] = 0;
            }
        }
    }
}

impl std::fmt::Debug for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sequence").field("next", &self.next).field("missing", &self.missing).finish_non_exhaustive()
    }
}
