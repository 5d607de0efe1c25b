//! Where frames live: the send arena against a map of its cache lines, the buffer pool against a stack.
//!
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour pool_model` looks longer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::{HashSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::shm::pool::{BufferPool, SendArena};

const LINE: u32 = 64;
const START: u32 = 4096;

/// One thing the sending half does with its arena.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A run of pieces: how long each, how many at most, and how many of those that were planned stay.
    Take(u32, u32, u32),
    Free(u32),
    Undo,
}

/// A piece in flight: the lines skipped before it and its own, counted from the arena's first.
struct Piece {
    before: usize,
    skipped: std::ops::Range<usize>,
    lines: std::ops::Range<usize>,
}

/// The arena as a row of lines, each free or not.
struct Model {
    is_used: Vec<bool>,
    position: usize,
    pieces: VecDeque<Piece>,
}

impl Model {
    fn new(lines: usize) -> Self {
        Self { is_used: vec![false; lines], position: 0, pieces: VecDeque::new() }
    }

    fn is_free(&self, lines: std::ops::Range<usize>) -> bool {
        lines.end <= self.is_used.len() && self.is_used[lines].iter().all(|is_used| !is_used)
    }

    /// Whether `count` lines fit in one piece, behind the newest piece or, all behind it free, at the beginning.
    fn has_room(&self, count: usize) -> bool {
        let end = self.is_used.len();
        let position = self.position % end;
        self.is_free(position..position + count) || (self.is_free(position..end) && self.is_free(0..count))
    }

    fn mark(&mut self, piece: &Piece, is_used: bool) {
        for line in piece.skipped.clone().chain(piece.lines.clone()) {
            assert_ne!(is_used, self.is_used[line], "line {line} lent twice or freed twice");
            self.is_used[line] = is_used;
        }
    }

    fn put(&mut self, first: usize, count: usize) {
        let end = self.is_used.len();
        let position = self.position % end;
        let skipped = if first == position { position..position } else { position..end };
        assert!(first == position || first == 0, "a piece begins behind the newest one or at the beginning");
        let piece = Piece { before: self.position, skipped, lines: first..first + count };
        self.mark(&piece, true);
        self.pieces.push_back(piece);
        self.position = first + count;
    }

    fn free(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.mark(&piece, false);
        }
        self.start_over_when_empty();
    }

    fn undo(&mut self) {
        if let Some(piece) = self.pieces.pop_back() {
            self.mark(&piece, false);
            self.position = piece.before;
        }
        self.start_over_when_empty();
    }

    fn start_over_when_empty(&mut self) {
        if self.pieces.is_empty() {
            self.position = 0;
        }
    }
}

fn step(longest: u32) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..=longest, 0..4u32, 0..4u32).prop_map(|(length, most, kept)| Step::Take(length, most, kept)),
        2 => (0..=130u32, 0..9u32, 0..9u32).prop_map(|(length, most, kept)| Step::Take(length, most, kept)),
        3 => (0..5u32).prop_map(Step::Free),
        1 => Just(Step::Undo),
    ]
}

proptest! {
    /// Pieces never overlap, never leave the arena, are freed in order, and are refused only when there is no room.
    #[test]
    fn arena_lends_every_line_once(lines in 1..80u32, slots in 1..12u32, steps in vec(step(700), 0..300)) {
        let mut arena = SendArena::new(START, lines * LINE, slots);
        let mut model = Model::new(lines as usize);
        for step in steps {
            match step {
                Step::Take(length, most, kept) => {
                    let lines_each = length.max(1).div_ceil(LINE);
                    match arena.plan(length, most) {
                        Some(run) => {
                            prop_assert_eq!(lines_each * LINE, run.step);
                            prop_assert!((1..=most.max(1)).contains(&run.count));
                            let kept = kept.min(run.count);
                            arena.take_run(run, kept);
                            for offset in (0..kept).map(|number| run.offset + number * run.step) {
                                prop_assert!(offset >= START && offset.is_multiple_of(LINE));
                                prop_assert!(u64::from(offset) + u64::from(length) <= u64::from(START + lines * LINE));
                                model.put(((offset - START) / LINE) as usize, lines_each as usize);
                            }
                        }
                        None => prop_assert!(
                            model.pieces.len() == slots.next_power_of_two() as usize
                                || !model.has_room(lines_each as usize)
                        ),
                    }
                }
                Step::Free(count) => {
                    arena.free(count);
                    (0..count).for_each(|_| model.free());
                }
                Step::Undo => {
                    arena.undo();
                    model.undo();
                }
            }
            prop_assert_eq!(model.pieces.len(), arena.pieces());
        }
    }

    /// An arena whose pieces all came back takes the longest piece again, whatever happened before.
    #[test]
    fn empty_arena_takes_its_longest_piece(takes in vec(1..1500u32, 0..40)) {
        let mut arena = SendArena::new(START, 1536, 4);
        for length in takes {
            while arena.take(length).is_none() {
                arena.free(1);
            }
        }
        arena.free(100);

        prop_assert_eq!((Some(START), 1), (arena.take(1536), arena.pieces()));
    }

    /// As many of the longest frames as there are slots fit at once, round after round.
    #[test]
    fn arena_of_slots_times_length_always_fills_its_slots(
        slots in 1..20u32, lines in 1..30u32, rounds in vec(1..20u32, 1..20),
    ) {
        let mut arena = SendArena::new(START, slots * lines * LINE, slots);
        for round in rounds {
            let freed = round.min(arena.pieces() as u32);
            arena.free(freed);
            while arena.pieces() < slots as usize {
                prop_assert!(arena.take(lines * LINE).is_some());
            }
            prop_assert_eq!(None, arena.take(1));
        }
    }

    /// The pool lends each buffer to one borrower at a time, the one that came back last first, all inside their place.
    #[test]
    fn pool_is_a_stack_of_buffers(count in 1..20u32, length in 1..3000u32, steps in vec(any::<(bool, u8)>(), 0..100)) {
        let stride = BufferPool::stride_for(length);
        let mut pool = BufferPool::new(START, stride, length, count);
        let mut free: Vec<u32> = (0..count).rev().collect();
        let mut lent = Vec::new();
        for (takes, which) in steps {
            if takes {
                let expected = free.pop();
                prop_assert_eq!(expected, pool.take());
                lent.extend(expected);
            } else if !lent.is_empty() {
                let index = lent.swap_remove(usize::from(which) % lent.len());
                free.push(index);
                pool.give_back(index);
            }
            prop_assert_eq!((free.len() as u32, length), (pool.available(), pool.buffer_bytes()));
        }
        let starts: HashSet<_> = (0..count).map(|index| pool.offset(index)).collect();
        prop_assert_eq!(count as usize, starts.len());
        let end = START + count * stride;
        prop_assert!(starts.iter().all(|start| (START..end).contains(start) && (start - START).is_multiple_of(stride)));
    }

    /// Buffers are an odd number of whole lines apart, the fewest that hold the frame.
    #[test]
    fn stride_is_the_least_odd_number_of_lines_that_holds_the_frame(length in 0..100_000u32) {
        let stride = BufferPool::stride_for(length);

        prop_assert!(stride >= length && stride % (2 * LINE) == LINE);
        prop_assert!(stride == LINE || stride - 2 * LINE < length);
    }
}

/// Small frames stay in the lines that as many of them as there are slots need, although the arena is larger.
#[test]
fn small_frames_turn_back_early() {
    const SLOTS: u32 = 4;
    let mut arena = SendArena::new(START, SLOTS * 1536, SLOTS);
    let mut touched = HashSet::new();
    for _ in 0..1000 {
        if arena.pieces() == SLOTS as usize {
            arena.free(1);
        }
        touched.insert(arena.take(60).unwrap());
    }

    assert_eq!((0..SLOTS).map(|line| START + line * LINE).collect::<HashSet<_>>(), touched);
}

/// A piece given back unused is lent again at once, also when it had turned back to the beginning.
#[test]
fn undone_piece_is_lent_again() {
    let mut arena = SendArena::new(START, 4 * LINE, 8);
    assert_eq!((Some(START), Some(START + 2 * LINE)), (arena.take(2 * LINE), arena.take(LINE)));
    arena.free(1);
    assert_eq!(Some(START), arena.take(2 * LINE));
    arena.undo();
    assert_eq!(Some(START + 3 * LINE), arena.take(1));
    assert_eq!((Some(START), None), (arena.take(2 * LINE), arena.take(1)));
}

/// An arena emptied by giving its last piece back unused takes the longest piece at once.
#[test]
fn arena_emptied_by_undoing_takes_its_longest_piece() {
    let mut arena = SendArena::new(START, 4 * LINE, 8);
    assert_eq!((Some(START), Some(START + LINE)), (arena.take(1), arena.take(1)));
    arena.free(1);
    arena.undo();

    assert_eq!(Some(START), arena.take(4 * LINE));
}

/// More is never freed than was taken.
#[test]
fn freeing_more_than_was_taken_frees_what_there_is() {
    let mut arena = SendArena::new(START, 4 * LINE, 8);
    arena.take(1);
    arena.free(1000);
    arena.undo();
    assert_eq!((0, Some(START)), (arena.pieces(), arena.take(4 * LINE)));
    assert_eq!(None, arena.take(1));
}
