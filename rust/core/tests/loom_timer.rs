//! Every interleaving of setting timers, of the host going to sleep, and of telling what expired.
//! Run by `tools/loom.sh`; each `VBNET_MUTANT` weakens one ordering and must make a model fail.
#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used, clippy::undocumented_unsafe_blocks)]

use loom::thread;
use vbnet_core::shm::timer::{Expiry, Keeper, PERIOD_MIN_NS, Reading, Setter, Setting, Taker, TimerMemory};

const NEVER: u64 = u64::MAX;
/// How often the host looks before it gives up and the model looks at what is left.
const LOOKS: u32 = 2;

fn armed(generation: u32, deadline_ns: u64) -> Setting {
    Setting { deadline_ns, period_ns: PERIOD_MIN_NS * deadline_ns, priority: 0, generation, is_armed: true }
}

/// The guest arms these slots one after the other; the host falls asleep meanwhile, waiting for the earliest it saw.
fn nobody_sleeps_past_a_deadline(settings: &'static [(u32, Setting)]) {
    loom::model(move || {
        let page = TimerMemory::on_heap(64);
        let (mut setter, mut keeper) = (Setter::new(page.clone()), Keeper::new(page));

        let guest = thread::spawn(move || settings.iter().map(|&(slot, setting)| setter.set(slot, setting)).max());

        let mut earliest = NEVER;
        let mut waits_for = None;
        for _ in 0..LOOKS {
            let mut changed = Vec::new();
            keeper.take_changed(64, &mut changed);
            for slot in changed {
                if let Reading::Set(setting) = keeper.read(slot) {
                    earliest = earliest.min(setting.deadline_ns);
                }
            }
            if keeper.sleep_until(earliest) {
                waits_for = Some(earliest);
                break;
            }
        }

        let is_kicked = guest.join().unwrap().unwrap();
        let armed = settings.iter().map(|(_, setting)| setting.deadline_ns).min().unwrap();
        if let Some(waits_for) = waits_for {
            assert!(is_kicked || waits_for <= armed, "asleep until {waits_for}, {armed} was armed and no kick");
        }
    });
}

#[test]
fn one_timer_armed_while_the_host_falls_asleep_is_seen_or_kicks() {
    const SETTINGS: &[(u32, Setting)] =
        &[(0, Setting { deadline_ns: 5, period_ns: 0, priority: 0, generation: 1, is_armed: true })];
    nobody_sleeps_past_a_deadline(SETTINGS);
}

#[test]
fn two_timers_armed_while_the_host_falls_asleep_are_seen_or_kick() {
    const SETTINGS: &[(u32, Setting)] = &[
        (0, Setting { deadline_ns: 9, period_ns: 0, priority: 0, generation: 1, is_armed: true }),
        (1, Setting { deadline_ns: 5, period_ns: 0, priority: 0, generation: 1, is_armed: true }),
    ];
    nobody_sleeps_past_a_deadline(SETTINGS);
}

#[test]
fn a_setting_is_read_whole_or_not_at_all() {
    loom::model(|| {
        let page = TimerMemory::on_heap(64);
        let (mut setter, keeper) = (Setter::new(page.clone()), Keeper::new(page));
        let settings = [armed(1, 10), armed(2, 20)];
        let _ = setter.set(0, settings[0]);

        let guest = thread::spawn(move || {
            let _ = setter.set(0, settings[1]);
        });

        if let Reading::Set(found) = keeper.read(0) {
            assert!(settings.contains(&found), "torn: {found:?}");
        }
        guest.join().unwrap();
    });
}

#[test]
fn a_first_setting_is_read_whole_or_not_at_all() {
    loom::model(|| {
        let page = TimerMemory::on_heap(64);
        let (mut setter, keeper) = (Setter::new(page.clone()), Keeper::new(page));

        let guest = thread::spawn(move || {
            let _ = setter.set(0, armed(1, 10));
        });

        if let Reading::Set(found) = keeper.read(0) {
            assert!(!found.is_armed || found == armed(1, 10), "torn: {found:?}");
        }
        guest.join().unwrap();
    });
}

#[test]
fn a_mark_that_is_taken_shows_the_setting_and_none_is_lost() {
    loom::model(|| {
        let page = TimerMemory::on_heap(64);
        let (mut setter, keeper) = (Setter::new(page.clone()), Keeper::new(page));

        let guest = thread::spawn(move || {
            for slot in 0..2 {
                let _ = setter.set(slot, armed(1, 10));
            }
        });

        let mut marked = Vec::new();
        keeper.take_changed(1, &mut marked);
        for &slot in &marked {
            assert_eq!(Reading::Set(armed(1, 10)), keeper.read(slot));
        }
        guest.join().unwrap();
        keeper.take_changed(2, &mut marked);
        marked.sort_unstable();
        marked.dedup();
        assert_eq!(vec![0, 1], marked);
    });
}

#[test]
fn an_expiry_that_is_marked_is_found_with_its_word() {
    loom::model(|| {
        let page = TimerMemory::on_heap(64);
        let (keeper, taker) = (Keeper::new(page.clone()), Taker::new(page));

        let host = thread::spawn(move || {
            for slot in 0..2 {
                let _ = keeper.expire(slot, 3, Expiry { generation: 1, times: 1 });
            }
        });

        let mut expired = Vec::new();
        taker.take(3, &mut expired);
        for &slot in &expired {
            assert_eq!(Expiry { generation: 1, times: 1 }, taker.expiry(slot));
        }
        host.join().unwrap();
        taker.take(3, &mut expired);
        expired.sort_unstable();
        assert_eq!(vec![0, 1], expired);
    });
}
