//! A level whose guest writes whatever it likes: the host's raises and takes end, stay in bounds, and ring once an arming.
//!
//! The guest is played by raw stores at the byte offsets of `docs/wire/intc.md`, written down here a second time.
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour intc_hostile` looks longer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::error::Fault;
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::intc::{LevelMemory, Raised, Raiser, Taker, VECTORS, Way};
use vbnet_core::shm::region::Ram;
use vbnet_core::signals::{LevelPart, LineCounter, SignalTable};

const LEVEL: u32 = 4096;
const LEVEL_BYTES: u32 = 0x800;

const MAGIC: u32 = 0;
const VERSION: u32 = 4;
const SPURIOUS: u32 = 0x98;
const SUMMARY: u32 = 0x100;
const SIGNAL_MAGIC: u32 = 0x180;
const SIGNAL_VERSION: u32 = 0x184;
const CALL_ENABLED: u32 = 0x300;
const PENDING: u32 = 0x400;
const MASK: u32 = 0x600;

fn ram() -> Arc<Ram> {
    let ram = Ram::create("hostile-level", 4 * 4096).unwrap();
    LevelMemory::format(&ram, LEVEL).unwrap();
    ram
}

/// The word `field` bytes into the level, as anybody who maps the region can write it.
fn word(ram: &Arc<Ram>, field: u32) -> &AtomicU32 {
    // SAFETY: in bounds, aligned, accessed by atomics only, and borrowed from the region that maps it.
    unsafe { ram.at(LEVEL + field, 4).unwrap().cast::<AtomicU32>().as_ref() }
}

fn wide(ram: &Arc<Ram>, field: u32) -> &AtomicU64 {
    // SAFETY: as in `word`.
    unsafe { ram.at(LEVEL + field, 8).unwrap().cast::<AtomicU64>().as_ref() }
}

fn attach(ram: &Arc<Ram>) -> LevelMemory {
    LevelMemory::attach(ram, LEVEL, LEVEL_BYTES).unwrap()
}

proptest! {
    /// Garbage anywhere costs the guest its own wake-ups: no raise rings without an arming, or twice for one.
    #[test]
    fn scribbled_words_ring_at_most_once_an_arming(
        garbage in vec((0..LEVEL_BYTES / 4, prop_oneof![Just(0), Just(u32::MAX), any::<u32>()], 0..VECTORS), 1..100),
    ) {
        let ram = ram();
        let raiser = Raiser::new(attach(&ram), Way::ToGuest);
        let enabled = || word(&ram, CALL_ENABLED).load(Ordering::SeqCst);
        let mut last_rung = 0;
        for (field, value, vector) in garbage {
            word(&ram, field * 4).store(value, Ordering::SeqCst);

            for vector in [vector, vector + 1] {
                if raiser.raise(vector) == Raised::Asleep {
                    prop_assert!(enabled() != 0 && enabled() != last_rung);
                    last_rung = enabled();
                }
            }
            let _ = raiser.memory().snapshot();
        }
    }

    /// Whatever a guest leaves in its outbox, a take brings vectors that are, no more than asked for, and leaves nothing.
    #[test]
    fn scribbled_outbox_is_taken_in_bounds(
        garbage in vec((0..LEVEL_BYTES / 8, any::<u64>()), 1..100), budget in prop_oneof![Just(0), 1..100u32],
    ) {
        let ram = ram();
        let mut taker = Taker::new(attach(&ram), Way::ToHost);
        for (field, value) in garbage {
            wide(&ram, field * 8).store(value, Ordering::SeqCst);
            let mut found = Vec::new();

            let count = taker.take(budget, |vector| found.push(vector));

            prop_assert_eq!(count as usize, found.len());
            prop_assert!(count <= budget && found.iter().all(|&vector| vector < VECTORS));
            let _ = taker.arm();
        }
    }

    /// A header of any content is attached only when each of its words is right, and never panics.
    #[test]
    fn level_with_any_wrong_header_word_is_refused(field in 0..4usize, value in any::<u32>()) {
        let field = [MAGIC, VERSION, SIGNAL_MAGIC, SIGNAL_VERSION][field];
        let ram = ram();
        let right = word(&ram, field).swap(value, Ordering::SeqCst);

        prop_assert_eq!(value == right, LevelMemory::attach(&ram, LEVEL, LEVEL_BYTES).is_ok());
    }

    /// Whatever place and length a guest names, attaching answers, and accepts the one right pair only.
    #[test]
    fn level_is_attached_at_its_own_place_only(
        offset in prop_oneof![any::<u32>(), (0..200u32).prop_map(|line| line * 128)],
        length in prop_oneof![any::<u32>(), Just(LEVEL_BYTES)],
    ) {
        let ram = ram();

        let found = LevelMemory::attach(&ram, offset, length).is_ok();

        prop_assert_eq!((offset, length) == (LEVEL, LEVEL_BYTES), found);
    }
}

#[test]
fn refused_place_and_header_are_named() {
    let ram = ram();
    let attach = |offset, length| LevelMemory::attach(&ram, offset, length).unwrap_err();

    assert_eq!(Fault::BadSize { what: "level length", found: 2047, limit: 2048 }, attach(LEVEL, 2047));
    assert_eq!(Fault::BadSize { what: "level alignment", found: 4160, limit: 128 }, attach(LEVEL + 64, LEVEL_BYTES));
    assert!(matches!(attach(0, LEVEL_BYTES), Fault::OverlapsControl { offset: 0, .. }));
    word(&ram, VERSION).store(2, Ordering::SeqCst);
    assert_eq!(Fault::BadHeader { what: "level version", found: 2, expected: 1 }, attach(LEVEL, LEVEL_BYTES));
    word(&ram, VERSION).store(1, Ordering::SeqCst);
    word(&ram, SIGNAL_VERSION).store(9, Ordering::SeqCst);
    assert!(matches!(attach(LEVEL, LEVEL_BYTES), Fault::BadHeader { what: "level signal version", found: 9, .. }));
    word(&ram, MAGIC).store(0, Ordering::SeqCst);
    assert!(matches!(attach(LEVEL, LEVEL_BYTES), Fault::BadHeader { what: "level magic", found: 0, .. }));
}

#[test]
fn armings_that_count_backwards_ring_once() {
    let ram = ram();
    let raiser = Raiser::new(attach(&ram), Way::ToGuest);

    let rings = (1..=1000u32)
        .rev()
        .filter(|&arming| {
            word(&ram, CALL_ENABLED).store(arming, Ordering::SeqCst);
            wide(&ram, PENDING).store(0, Ordering::SeqCst);
            raiser.raise(0) == Raised::Asleep
        })
        .count();

    assert_eq!(1, rings);
}

/// A guest that armed for hours before this host came is rung for like any other.
#[test]
fn first_arming_rings_whatever_its_number() {
    for arming in [1, 1 << 31, u32::MAX] {
        let ram = ram();
        let raiser = Raiser::new(attach(&ram), Way::ToGuest);
        word(&ram, CALL_ENABLED).store(arming, Ordering::SeqCst);

        assert_eq!((Raised::Asleep, Raised::Awake), (raiser.raise(0), raiser.raise(1)), "{arming}");
    }
}

/// Everything is written at once while the host raises and takes: it ends, and what it finds is in bounds.
#[test]
fn memory_that_changes_all_the_time_keeps_nobody() {
    let ram = ram();
    let raiser = Raiser::new(attach(&ram), Way::ToGuest);
    let mut taker = Taker::new(attach(&ram), Way::ToHost);
    let is_over = AtomicBool::new(false);

    thread::scope(|scope| {
        scope.spawn(|| {
            let mut noise = 1u64;
            while !is_over.load(Ordering::Relaxed) {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let field = [SUMMARY, CALL_ENABLED & !7, PENDING, MASK][(noise >> 62) as usize];
                let spread = if field >= PENDING { (noise >> 40) as u32 % 64 * 8 } else { 0 };
                wide(&ram, field + spread).store(noise, Ordering::Relaxed);
            }
        });
        let raising = scope.spawn(|| {
            (0..200_000u32).for_each(|number| {
                let _ = raiser.raise(number);
            })
        });
        for _ in 0..20_000 {
            assert!(taker.take(64, |vector| assert!(vector < VECTORS)) <= 64);
        }
        raising.join().unwrap();
        is_over.store(true, Ordering::Relaxed);
    });
}

/// A guest that lies about useless wake-ups is believed one at a time, never more often than somebody looks.
#[test]
fn spurious_count_that_jumps_adds_one_a_look() {
    let ram = Ram::create("liar", 8 * 4096).unwrap();
    let part = |level: usize| {
        let memory = LevelMemory::format(&ram, LEVEL + level as u32 * LEVEL_BYTES).unwrap();
        LevelPart { memory, bell: Doorbell::create().unwrap() }
    };
    let table = SignalTable::new(Arc::new(CounterFile::create(None, 1 << 20).unwrap())).unwrap();
    let controller = table.controller_attach("liar", vec![std::array::from_fn(part)]).unwrap();
    let line = table.create("liar", "d", "n", 0).unwrap();
    table.route_to_vector(line.id(), controller, 0, 0).unwrap();
    word(&ram, CALL_ENABLED).store(1, Ordering::SeqCst);
    table.raise_soon(line.id()).unwrap();
    while line.count(LineCounter::Wakeups) == 0 {
        thread::yield_now();
    }

    for lie in [5, u64::MAX, 0, 1 << 40] {
        wide(&ram, SPURIOUS).store(lie, Ordering::SeqCst);
        table.list().unwrap();
        table.list().unwrap();
    }

    assert_eq!(4, line.count(LineCounter::Spurious));
}
