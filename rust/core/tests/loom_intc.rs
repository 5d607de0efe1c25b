//! Every interleaving of raising, taking, masking and going to sleep: no signal is lost, and nobody sleeps on one.
//! Run by `tools/loom.sh`; each `VBNET_MUTANT` weakens one ordering and must make a model fail.
#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;
use vbnet_core::shm::intc::{LevelMemory, Raised, Raiser, Taker, Way};

/// How often the taker looks before it gives up and the model looks at what is left.
const LOOKS: u32 = 2;

struct Level {
    raiser: Arc<Raiser>,
    taker: Taker,
}

fn level() -> Level {
    let memory = LevelMemory::on_heap();
    Level { raiser: Arc::new(Raiser::new(memory.clone(), Way::ToGuest)), taker: Taker::new(memory, Way::ToGuest) }
}

/// Takes until it may sleep or has looked often enough: what was found as bits, and whether it sleeps.
fn drain(taker: &mut Taker) -> (u64, bool) {
    let mut seen = 0;
    for _ in 0..LOOKS {
        taker.take(u32::MAX, |vector| seen |= 1 << (vector % 64));
        if taker.arm() {
            return (seen, true);
        }
    }
    (seen, false)
}

#[test]
fn raise_while_falling_asleep_is_taken_or_rings() {
    loom::model(|| {
        let Level { raiser, mut taker } = level();
        let bell = Arc::new(AtomicBool::new(false));
        let ringing = bell.clone();

        let sender = thread::spawn(move || {
            if raiser.raise(1) == Raised::Asleep {
                ringing.store(true, Ordering::Relaxed);
            }
        });
        let (seen, is_asleep) = drain(&mut taker);

        sender.join().unwrap();
        assert!(!is_asleep || seen != 0 || bell.load(Ordering::Relaxed), "asleep on a signal and no bell");
    });
}

#[test]
fn two_raisers_lose_nothing_and_ring_once_an_arming() {
    loom::model(|| {
        let Level { raiser, mut taker } = level();
        let rings = Arc::new(AtomicU32::new(0));
        assert_eq!(0, taker.take(u32::MAX, |_| {}));
        assert!(taker.arm());

        let other = {
            let (raiser, rings) = (raiser.clone(), rings.clone());
            thread::spawn(move || {
                if raiser.raise(1) == Raised::Asleep {
                    rings.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        if raiser.raise(2) == Raised::Asleep {
            rings.fetch_add(1, Ordering::Relaxed);
        }

        other.join().unwrap();
        let mut seen = 0;
        taker.take(u32::MAX, |vector| seen |= 1 << vector);
        assert_eq!((0b110, 1), (seen, rings.load(Ordering::Relaxed)));
    });
}

#[test]
fn work_behind_a_raise_is_visible_to_who_takes_it() {
    loom::model(|| {
        let Level { raiser, mut taker } = level();
        let work = Arc::new(AtomicU32::new(0));
        let done = work.clone();

        let sender = thread::spawn(move || {
            done.store(1, Ordering::Relaxed);
            let _ = raiser.raise(0);
            done.store(2, Ordering::Relaxed);
            // Pending already, or taken in between: both must show the second piece of work to the last take.
            let _ = raiser.raise(0);
        });
        let mut first = None;
        taker.take(1, |_| first = Some(work.load(Ordering::Relaxed)));

        assert!(first.is_none_or(|seen| seen >= 1), "taken before the work was there");
        sender.join().unwrap();
    });
}

#[test]
fn raise_of_what_is_pending_shows_its_work_to_the_take() {
    loom::model(|| {
        let Level { raiser, mut taker } = level();
        let work = Arc::new(AtomicU32::new(0));
        let _ = raiser.raise(0);
        let (done, second) = (work.clone(), raiser.clone());

        let sender = thread::spawn(move || {
            done.store(1, Ordering::Relaxed);
            second.raise(0) == Raised::Pending
        });
        let mut seen = 0;
        taker.take(1, |_| seen = work.load(Ordering::Relaxed));
        let is_left = {
            let was_pending = sender.join().unwrap();
            let mut again = false;
            taker.take(1, |_| again = true);
            assert!(was_pending || again, "a raise was neither coalesced nor left for the next take");
            again
        };

        // Whoever coalesced its raise into the one that was taken had its work seen by that take.
        assert!(is_left || seen == 1, "coalesced work was not visible");
    });
}

#[test]
fn raise_under_a_mask_that_goes_is_taken_or_told() {
    loom::model(|| {
        let Level { raiser, mut taker } = level();
        let gate = taker.gate();
        gate.mask(1);
        assert_eq!(0, taker.take(u32::MAX, |_| {}));
        assert!(taker.arm());

        let sender = thread::spawn(move || raiser.raise(1) == Raised::Asleep);
        let is_told = gate.unmask(1);

        let is_rung = sender.join().unwrap();
        assert!(is_told || is_rung, "raised and unmasked, and nobody wakes the taker");
        let mut seen = 0;
        taker.take(u32::MAX, |vector| seen |= 1 << vector);
        assert_eq!(0b10, seen);
    });
}

#[test]
fn raises_while_the_taker_takes_are_found_by_this_take_or_a_later_one() {
    loom::model(|| {
        let Level { raiser, mut taker } = level();
        let _ = raiser.raise(0);

        let sender = {
            let raiser = raiser.clone();
            thread::spawn(move || {
                let _ = raiser.raise(1);
                let _ = raiser.raise(64);
            })
        };
        let (mut low, mut high) = (0, 0);
        let mut note = |vector: u32| if vector < 64 { low |= 1 << vector } else { high |= 1 << (vector - 64) };
        taker.take(u32::MAX, &mut note);
        sender.join().unwrap();
        taker.take(u32::MAX, &mut note);

        assert_eq!((0b11, 0b1), (low, high));
    });
}
