//! A guest that scribbles over its timer page: defined, counted, harmless to others, and never without end.
#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::undocumented_unsafe_blocks)]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;
use vbnet_core::error::Fault;
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::histogram;
use vbnet_core::shm::layout::{RAM_HEADER_BYTES, SIGNAL_PAIR_BYTES, TIMER_MAGIC};
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::timer::{
    Keeper, PERIOD_MIN_NS, Setter, Setting, Taker, TimerLayout, TimerMemory, attach_signal, format_signal,
};
use vbnet_core::timer::agenda::{Agenda, TimerCounter};

const SLOTS: u32 = 128;
const PAGE: u32 = RAM_HEADER_BYTES;

/// A page in real shared memory, as guest and host map it.
struct Lab {
    guest: Arc<Ram>,
    agenda: Agenda,
    setter: Setter,
    taker: Taker,
    layout: TimerLayout,
}

impl Lab {
    fn new() -> Self {
        let layout = TimerLayout::plan(SLOTS).unwrap();
        let guest = Ram::create("vbnet-test", u64::from(PAGE) + layout.bytes as u64).unwrap();
        let page = TimerMemory::format(&guest, PAGE, SLOTS).unwrap();
        let host = Ram::open(guest.as_fd().try_clone_to_owned().unwrap(), 1 << 32).unwrap();
        let shown = TimerMemory::attach(&host, PAGE, layout.bytes as u32, SLOTS).unwrap();
        let counters = CounterFile::create(None, 1 << 16).unwrap();
        let block = counters.allocate("timer", "guest=test", TimerCounter::COUNT).unwrap();
        let late = Arc::new(counters.allocate("timekeeper", "", histogram::WORDS).unwrap());
        let agenda = Agenda::new(Keeper::new(shown), 100_000, block, late);
        Self { agenda, setter: Setter::new(page.clone()), taker: Taker::new(page), guest, layout }
    }

    /// A word of the page.
    fn word(&self, byte: usize) -> &AtomicU64 {
        let place = self.guest.at(PAGE + byte as u32, 8).unwrap();
        unsafe { place.cast().as_ref() }
    }

    fn counted(&self, counter: TimerCounter) -> u64 {
        self.agenda.counted(counter)
    }
}

fn armed(deadline_ns: u64) -> Setting {
    Setting { deadline_ns, period_ns: 0, priority: 0, generation: 1, is_armed: true }
}

#[test]
fn marks_beyond_the_slots_are_counted_and_the_others_served() {
    let mut lab = Lab::new();
    let summary = lab.layout.bitmaps;
    let _ = lab.setter.set(5, armed(1));
    lab.word(summary).fetch_or(u64::MAX << 2, Ordering::Relaxed);
    lab.word(0x180).fetch_or(u64::MAX << 1, Ordering::Relaxed);

    let turn = lab.agenda.turn(10);

    assert_eq!(1, turn.raise);
    assert_eq!(62 + 63, lab.counted(TimerCounter::ForgedSlots));
}

#[test]
fn control_word_without_meaning_disarms_its_timer_and_is_counted() {
    let mut lab = Lab::new();
    let _ = lab.setter.set(5, armed(1));
    let control = lab.word(lab.layout.settings + 5 * 32 + 16);
    control.fetch_or(1 << 40, Ordering::Relaxed);

    let turn = lab.agenda.turn(10);

    assert_eq!(0, turn.raise);
    assert_eq!((1, 0), (lab.counted(TimerCounter::ForgedControls), lab.counted(TimerCounter::Armed)));
}

#[test]
fn period_too_short_to_keep_is_refused_and_counted() {
    let mut lab = Lab::new();

    let _ = lab.setter.set(5, Setting { period_ns: PERIOD_MIN_NS - 1, ..armed(1) });
    let turn = lab.agenda.turn(10);

    assert_eq!(0, turn.raise);
    assert_eq!((1, 0), (lab.counted(TimerCounter::RefusedPeriods), lab.counted(TimerCounter::Armed)));
}

#[test]
fn lead_beyond_what_is_granted_is_cut() {
    let mut lab = Lab::new();
    lab.setter.set_lead(u64::MAX);

    let _ = lab.setter.set(5, armed(1_000_000));
    let raised = [899_999, 900_000].map(|now_ns| lab.agenda.turn(now_ns).raise);

    assert_eq!([0, 1], raised);
}

#[test]
fn period_that_leaves_the_end_of_time_expires_once() {
    let mut lab = Lab::new();

    let _ = lab.setter.set(5, Setting { period_ns: u64::MAX, ..armed(10) });
    let raised = [10, u64::MAX].map(|now_ns| lab.agenda.turn(now_ns).raise);

    assert_eq!([1, 0], raised);
    assert_eq!(1, lab.counted(TimerCounter::Expiries));
}

#[test]
fn page_that_changes_all_the_time_takes_bounded_turns() {
    let mut lab = Lab::new();
    let words = lab.layout.bytes / 8;
    let start = lab.guest.at(PAGE, lab.layout.bytes).unwrap().as_ptr() as usize;
    let is_over = Arc::new(AtomicBool::new(false));
    let (stop, ram) = (is_over.clone(), lab.guest.clone());

    let guest = thread::spawn(move || {
        let _kept = ram;
        let mut seed = 1u64;
        while !stop.load(Ordering::Relaxed) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let word = unsafe { &*(start as *const AtomicU64).add((seed >> 33) as usize % words) };
            word.store(seed ^ seed << 17, Ordering::Relaxed);
        }
    });
    for now_ns in (0..2000u64).map(|step| step.wrapping_mul(0x1_0000_0000_0001)) {
        lab.agenda.turn(now_ns);
    }
    is_over.store(true, Ordering::Relaxed);
    guest.join().unwrap();

    assert_eq!(2000, lab.counted(TimerCounter::Turns));
    assert!(lab.counted(TimerCounter::Armed) <= u64::from(SLOTS));
}

proptest! {
    /// Whatever the page says, a turn ends, and a timer that is set properly afterwards is kept.
    #[test]
    fn prop_any_page_is_survived_and_a_proper_timer_kept_after(
        garbage in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..300),
        now_ns in any::<u64>(),
    ) {
        let mut lab = Lab::new();
        for (index, value) in garbage {
            lab.word(index.index(lab.layout.bytes / 8) * 8).store(value, Ordering::Relaxed);
        }
        lab.agenda.turn(now_ns);

        // A guest that comes to its senses clears its bitmaps and its lead.
        for word in (0x100..lab.layout.settings).step_by(8) {
            lab.word(word).store(0, Ordering::Relaxed);
        }
        for slot in 0..SLOTS {
            let _ = lab.setter.set(slot, Setting { is_armed: false, ..armed(0) });
        }
        let _ = lab.setter.set(5, Setting { generation: 77, ..armed(now_ns) });
        let turn = lab.agenda.turn(now_ns);
        let mut found = Vec::new();
        lab.taker.take(0, &mut found);

        prop_assert_eq!(1, turn.raise);
        prop_assert_eq!(vec![5], found);
        prop_assert_eq!(77, lab.taker.expiry(5).generation);
    }
}

#[test]
fn page_that_is_none_is_refused_with_its_reason() {
    let lab = Lab::new();
    let length = lab.layout.bytes as u32;
    let attach = |offset, length, slots_max| TimerMemory::attach(&lab.guest, offset, length, slots_max).map(drop);

    let places = [attach(128, length, SLOTS), attach(PAGE + 64, length, SLOTS), attach(PAGE, 1 << 20, SLOTS)];
    let small = attach(PAGE, length, 64);
    lab.word(8).store(SLOTS as u64 + 1, Ordering::Relaxed);
    let odd = attach(PAGE, length, SLOTS);
    lab.word(0).store(u64::from(TIMER_MAGIC) | 9 << 32, Ordering::Relaxed);
    let version = attach(PAGE, length, SLOTS);
    lab.word(0).store(0, Ordering::Relaxed);
    let magic = attach(PAGE, length, SLOTS);

    let reasons: Vec<_> =
        places.into_iter().chain([small, odd, version, magic]).map(|refused| refused.unwrap_err().reason()).collect();
    let expected =
        ["overlaps_control", "bad_size", "outside_region", "bad_size", "bad_size", "bad_header", "bad_header"];
    assert_eq!(expected.to_vec(), reasons);
}

#[test]
fn signal_that_is_none_is_refused() {
    let lab = Lab::new();
    let length = SIGNAL_PAIR_BYTES as u32;

    let none = attach_signal(&lab.guest, PAGE, length).map(drop);
    let listener = format_signal(&lab.guest, PAGE).unwrap();
    let short = attach_signal(&lab.guest, PAGE, length - 1).map(drop);
    let there = attach_signal(&lab.guest, PAGE, length).map(drop);

    drop(listener);
    assert!(matches!(none, Err(Fault::BadHeader { .. })));
    assert!(matches!(short, Err(Fault::BadSize { .. })));
    assert_eq!(Ok(()), there);
}
