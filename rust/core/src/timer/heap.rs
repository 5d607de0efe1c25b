//! Deadlines of numbered timers, the earliest first.
//!
//! A heap of four children a node, with the position of each timer beside it, so that one can be moved or taken out
//! where it stands. Nothing is left behind by a timer that moves: however often a guest changes its mind, the heap holds
//! one entry a timer. A wheel would round deadlines to its ticks or cascade; a library's keyed heap would hash what is a
//! plain number here.

/// Children of a node: two levels of a binary heap on one cache line.
const ARITY: usize = 4;
const NOWHERE: u32 = u32::MAX;

/// Which timer expires first.
#[derive(Debug, Default)]
pub(crate) struct DeadlineHeap {
    /// Deadline and number of each timer; a child is never earlier than its parent.
    entries: Vec<(u64, u32)>,
    /// Where in `entries` each number is.
    positions: Vec<u32>,
}

impl DeadlineHeap {
    /// Deadline and number of the earliest.
    pub(crate) fn first(&self) -> Option<(u64, u32)> {
        self.entries.first().copied()
    }

    pub(crate) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Puts a timer in, or moves it.
    pub(crate) fn set(&mut self, number: u32, deadline_ns: u64) {
        let index = number as usize;
        if index >= self.positions.len() {
            self.positions.resize(index + 1, NOWHERE);
        }
        let mut at = self.positions[index] as usize;
        if self.positions[index] == NOWHERE {
            at = self.entries.len();
            self.entries.push((deadline_ns, number));
            self.positions[index] = at as u32;
        }
        self.entries[at].0 = deadline_ns;
        let at = self.rise(at);
        self.sink(at);
    }

    /// Takes a timer out; harmless when it is not there.
    pub(crate) fn remove(&mut self, number: u32) {
        let Some(position) = self.positions.get_mut(number as usize) else { return };
        let at = std::mem::replace(position, NOWHERE) as usize;
        if at >= self.entries.len() {
            return;
        }
        self.entries.swap_remove(at);
        if let Some(&(_, moved)) = self.entries.get(at) {
            self.positions[moved as usize] = at as u32;
            let at = self.rise(at);
            self.sink(at);
        }
    }

    fn rise(&mut self, mut at: usize) -> usize {
        while at > 0 {
            let parent = (at - 1) / ARITY;
            if self.entries[parent].0 <= self.entries[at].0 {
                break;
            }
            self.exchange(at, parent);
            at = parent;
        }
        at
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let children = at * ARITY + 1..(at * ARITY + 1 + ARITY).min(self.entries.len());
            let Some(least) = children.min_by_key(|&child| self.entries[child].0) else { return };
            if self.entries[at].0 <= self.entries[least].0 {
                return;
            }
            self.exchange(at, least);
            at = least;
        }
    }

    fn exchange(&mut self, one: usize, other: usize) {
        self.entries.swap(one, other);
        for at in [one, other] {
            self.positions[self.entries[at].1 as usize] = at as u32;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prop_earliest_is_that_of_a_sorted_map(
            changes in prop::collection::vec((0u32..24, prop::option::of(0u64..40)), 1..200)
        ) {
            let mut heap = DeadlineHeap::default();
            let mut map = BTreeMap::new();

            for (number, deadline_ns) in changes {
                match deadline_ns {
                    Some(deadline_ns) => {
                        heap.set(number, deadline_ns);
                        map.insert(number, deadline_ns);
                    }
                    None => {
                        heap.remove(number);
                        map.remove(&number);
                    }
                }

                prop_assert_eq!(map.values().min().copied(), heap.first().map(|(deadline_ns, _)| deadline_ns));
                prop_assert_eq!(map.len(), heap.len());
                if let Some((deadline_ns, number)) = heap.first() {
                    prop_assert_eq!(Some(&deadline_ns), map.get(&number));
                }
            }
        }
    }
}
