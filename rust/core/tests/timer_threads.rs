//! Timers with a real timekeeper and a real guest: two mappings of one memory, two threads, doorbells between them.
#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::undocumented_unsafe_blocks)]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vbnet_core::error::{Error, Fault};
use vbnet_core::guest::timer::{Arming, ForLoop, Side, Timers, TimersLayout};
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::timer::{Expiry, Keeper, TimerMemory};
use vbnet_core::timer::{Timekeeper, TimerPage, now_ns};

const PATIENCE_NS: u64 = 10_000_000_000;
const LONG_NS: u64 = 3_600_000_000_000;

struct Lab {
    keeper: Timekeeper,
    timers: Arc<Timers>,
    host_ram: Arc<Ram>,
    id: u64,
    calls: Vec<Doorbell>,
}

fn copy(bell: &Doorbell) -> Doorbell {
    Doorbell::from_fd(bell.as_fd().try_clone_to_owned().unwrap())
}

impl Lab {
    /// A guest with timers of priorities 0 to 2.
    fn new(lead_max_ns: u64) -> Self {
        let layout = TimersLayout::plan(0, 1024).unwrap();
        let ram = Ram::create("vbnet-test", layout.end.into()).unwrap();
        let timers = Arc::new(Timers::open(&ram, layout).unwrap());
        let host_ram = Ram::open(ram.as_fd().try_clone_to_owned().unwrap(), 1 << 32).unwrap();
        let keeper = Timekeeper::start(Arc::new(CounterFile::create(None, 1 << 20).unwrap())).unwrap();
        let kick = Doorbell::create().unwrap();
        let page = TimerPage {
            ram: host_ram.clone(),
            place: (layout.page_offset, layout.page_bytes),
            kick: copy(&kick),
            slots_max: 1024,
            lead_max_ns,
        };
        let id = keeper.attach(page, "guest=test").unwrap();
        timers.connect(kick, lead_max_ns);
        let mut lab = Self { keeper, timers, host_ram, id, calls: Vec::new() };
        for priority in 0..3 {
            lab.connect(priority);
        }
        lab
    }

    fn connect(&mut self, priority: u8) {
        let layout = self.timers.layout();
        let call = Doorbell::create().unwrap();
        let place = (layout.signal_offset(priority), layout.signal_bytes);
        self.keeper.connect(self.id, priority, &self.host_ram, place, copy(&call).into()).unwrap();
        self.timers.connect_priority(priority, copy(&call)).unwrap();
        self.calls.push(call);
    }
}

fn once(deadline_ns: u64) -> Arming {
    Arming { deadline_ns, period_ns: 0, priority: 0, side: Side::Thread }
}

fn patience() -> Option<u64> {
    Some(now_ns() + PATIENCE_NS)
}

#[test]
fn timer_expires_once_and_never_early() {
    for lead_max_ns in [0, 200_000] {
        let lab = Lab::new(lead_max_ns);
        let deadline_ns = now_ns() + 2_000_000;

        let id = lab.timers.arm(once(deadline_ns)).unwrap();
        let tick = lab.timers.wait(id, patience()).unwrap().unwrap();
        let now = now_ns();

        assert_eq!((id, 1, deadline_ns, 0), (tick.id, tick.number, tick.deadline_ns, tick.missed));
        assert!(now >= deadline_ns);
        assert_eq!(None, lab.timers.wait(id, patience()).unwrap());
    }
}

#[test]
fn deadline_in_the_past_expires_at_once_and_once() {
    let lab = Lab::new(0);

    let id = lab.timers.arm(once(1)).unwrap();
    let tick = lab.timers.wait(id, patience()).unwrap().unwrap();

    assert_eq!((1, 1, 0), (tick.number, tick.deadline_ns, tick.missed));
    assert_eq!(None, lab.timers.wait(id, Some(0)).unwrap());
}

#[test]
fn periodic_timer_stays_on_its_grid() {
    for lead_max_ns in [0, 200_000] {
        let lab = Lab::new(lead_max_ns);
        let (first_ns, period_ns) = (now_ns() + 1_000_000, 500_000);

        let id = lab.timers.arm(Arming { period_ns, ..once(first_ns) }).unwrap();
        let ticks: Vec<_> = (0..20).map(|_| lab.timers.wait(id, patience()).unwrap().unwrap()).collect();

        let mut number = 0;
        for tick in ticks {
            assert_eq!(number + 1 + tick.missed, tick.number);
            assert_eq!(first_ns + (tick.number - 1) * period_ns, tick.deadline_ns);
            number = tick.number;
        }
        assert!(lab.timers.cancel(id));
    }
}

#[test]
fn periods_that_nobody_waited_for_are_counted_as_missed() {
    let lab = Lab::new(0);
    let start_ns = now_ns();

    let id = lab.timers.arm(Arming { period_ns: 1_000_000, ..once(start_ns - 10_500_000) }).unwrap();
    let tick = lab.timers.wait(id, patience()).unwrap().unwrap();

    assert!(tick.missed >= 10, "missed {}", tick.missed);
    assert_eq!(tick.number, tick.missed + 1);
}

#[test]
fn earlier_timer_behind_a_later_one_is_kicked_for() {
    let lab = Lab::new(0);
    let far = lab.timers.arm(once(now_ns() + LONG_NS)).unwrap();

    let near = lab.timers.arm(once(now_ns() + 1_000_000)).unwrap();
    let tick = lab.timers.wait(near, patience()).unwrap();

    assert!(tick.is_some());
    assert!(lab.timers.cancel(far));
    assert!(!lab.timers.cancel(far));
}

#[test]
fn moving_later_is_not_told_and_still_kept() {
    let lab = Lab::new(0);
    let id = lab.timers.arm(once(now_ns() + 5_000_000)).unwrap();
    let kicks = lab.timers.totals().kicks;

    let deadline_ns = now_ns() + 20_000_000;
    let moved = lab.timers.rearm(id, once(deadline_ns)).unwrap();
    let kicks_after = lab.timers.totals().kicks;
    let tick = lab.timers.wait(moved, patience()).unwrap().unwrap();

    assert_eq!(deadline_ns, tick.deadline_ns);
    assert!(now_ns() >= deadline_ns);
    assert!(kicks_after <= kicks + 1, "the host sleeps until the earlier deadline, unless it was awake");
}

#[test]
fn thread_that_waits_for_a_cancelled_timer_comes_back() {
    let lab = Lab::new(0);
    let id = lab.timers.arm(once(now_ns() + LONG_NS)).unwrap();
    let timers = lab.timers.clone();

    let waiting = thread::spawn(move || timers.wait(id, patience()).unwrap());
    lab.timers.cancel(id);

    assert_eq!(None, waiting.join().unwrap());
}

#[test]
fn many_threads_each_get_their_own_timer() {
    let lab = Lab::new(100_000);
    let start_ns = now_ns();

    let waiting: Vec<_> = (0..8u64)
        .map(|index| {
            let timers = lab.timers.clone();
            thread::spawn(move || {
                let priority = (index % 3) as u8;
                let deadline_ns = start_ns + (8 - index) * 1_000_000;
                let id = timers.arm(Arming { priority, ..once(deadline_ns) }).unwrap();
                timers.wait(id, patience()).unwrap().map(|tick| (tick.id == id, tick.deadline_ns == deadline_ns))
            })
        })
        .collect();

    for thread in waiting {
        assert_eq!(Some((true, true)), thread.join().unwrap());
    }
}

#[test]
fn whoever_waits_hears_that_the_host_is_gone_or_that_it_was_closed() {
    for is_gone in [true, false] {
        let lab = Lab::new(0);
        let id = lab.timers.arm(once(now_ns() + LONG_NS)).unwrap();
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let timers = lab.timers.clone();
                thread::spawn(move || timers.wait(id, None))
            })
            .collect();

        if is_gone {
            lab.timers.abandon();
        } else {
            lab.timers.close();
        }

        for thread in waiting {
            let error = thread.join().unwrap().unwrap_err();
            assert_eq!((is_gone, !is_gone), (matches!(error, Error::PeerGone(_)), matches!(error, Error::Closed(_))));
        }
        assert!(lab.timers.arm(once(1)).is_err());
    }
}

/// Sleeps on the loop's descriptor, as an event loop does, until there are ticks.
fn loop_ticks(timers: &Timers) -> Vec<u64> {
    loop {
        match timers.take_for_loop().unwrap() {
            ForLoop::Ticks(ticks) => return ticks.iter().map(|tick| tick.deadline_ns).collect(),
            ForLoop::Sleep(_) => {
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(timers.loop_fd()) };
                let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
                assert_eq!(1, poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap(), "no wake-up");
            }
        }
    }
}

#[test]
fn loop_and_thread_wait_side_by_side() {
    let lab = Lab::new(100_000);
    let base_ns = now_ns() + 1_000_000;
    let for_loop = |step: u64| Arming { side: Side::Loop, ..once(base_ns + step * 2_000_000) };
    let timers = lab.timers.clone();

    let waiting = thread::spawn(move || {
        let id = timers.arm(Arming { period_ns: 1_000_000, ..once(base_ns) }).unwrap();
        (0..10).filter(|_| timers.wait(id, patience()).unwrap().is_some()).count()
    });
    let mut heard = Vec::new();
    for step in 0..5 {
        lab.timers.arm(for_loop(step)).unwrap();
        heard.extend(loop_ticks(&lab.timers));
    }

    assert_eq!((0..5).map(|step| for_loop(step).deadline_ns).collect::<Vec<_>>(), heard);
    assert_eq!(10, waiting.join().unwrap());
}

#[test]
fn priority_that_is_connected_late_tells_what_expired_before() {
    let mut lab = Lab::new(0);
    let id = lab.timers.arm(Arming { priority: 7, ..once(1) }).unwrap();
    let timers = lab.timers.clone();

    let waiting = thread::spawn(move || timers.wait(id, patience()).unwrap());
    lab.connect(7);

    assert!(waiting.join().unwrap().is_some());
}

#[test]
fn more_timers_than_slots_are_refused_until_one_is_cancelled() {
    let lab = Lab::new(0);
    let ids: Vec<_> = (0..1024).map(|_| lab.timers.arm(once(now_ns() + LONG_NS)).unwrap()).collect();

    let refused = lab.timers.arm(once(1));
    lab.timers.cancel(ids[7]);

    assert!(matches!(refused, Err(Error::Busy(_))));
    assert!(lab.timers.arm(once(now_ns() + LONG_NS)).is_ok());
}

#[test]
fn guest_that_blocks_its_doorbell_loses_its_timers_and_the_others_keep_theirs() {
    let (bad, good) = (Lab::new(0), Lab::new(0));
    rustix::io::write(bad.calls[0].as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
    rustix::fs::fcntl_setfl(bad.calls[0].as_fd(), rustix::fs::OFlags::RDWR).unwrap();
    // Asks for the doorbell, and expires.
    assert!(matches!(bad.timers.take_for_loop().unwrap(), ForLoop::Sleep(None)));
    bad.timers.arm(once(1)).unwrap();

    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(bad.keeper.fault_fd()) };
    let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
    let told = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
    let faults = bad.keeper.take_faults();
    let id = good.timers.arm(once(now_ns())).unwrap();

    assert_eq!(1, told);
    assert!(matches!(faults[..], [(id, Fault::DoorbellBlocked { .. })] if id == bad.id));
    assert!(good.timers.wait(id, patience()).unwrap().is_some());
    assert!(matches!(bad.keeper.set_lead(bad.id, 0), Err(Error::NotFound(_))));
}

#[test]
fn detached_page_is_touched_no_more() {
    let lab = Lab::new(0);

    lab.keeper.detach(lab.id).unwrap();
    let id = lab.timers.arm(once(now_ns())).unwrap();
    let again = lab.keeper.detach(lab.id);

    assert!(matches!(again, Ok(()) | Err(Error::PeerGone(_))));
    assert_eq!(None, lab.timers.wait(id, Some(now_ns() + 1)).unwrap());
    assert_eq!(1, Arc::strong_count(&lab.host_ram));
}

impl Lab {
    /// The page goes from one keeper to another; what `meanwhile` does happens when nobody keeps it.
    fn hand_over(&mut self, lead_max_ns: u64, meanwhile: impl FnOnce(&Timers)) {
        let layout = self.timers.layout();
        self.keeper.detach(self.id).unwrap();
        self.timers.hand_over();
        meanwhile(&self.timers);
        let keeper = Timekeeper::start(Arc::new(CounterFile::create(None, 1 << 20).unwrap())).unwrap();
        let kick = Doorbell::create().unwrap();
        let page = TimerPage {
            ram: self.host_ram.clone(),
            place: (layout.page_offset, layout.page_bytes),
            kick: copy(&kick),
            slots_max: 1024,
            lead_max_ns,
        };
        self.id = keeper.attach(page, "guest=test").unwrap();
        self.keeper = keeper;
        for (priority, call) in self.calls.iter().enumerate() {
            let place = (layout.signal_offset(priority as u8), layout.signal_bytes);
            self.keeper.connect(self.id, priority as u8, &self.host_ram, place, copy(call).into()).unwrap();
        }
        self.timers.connect(kick, lead_max_ns);
    }
}

#[test]
fn timers_handed_from_keeper_to_keeper_tick_once_each_under_the_names_they_have() {
    for lead_max_ns in [0, 1_000_000] {
        let mut lab = Lab::new(lead_max_ns);
        let (first_ns, period_ns) = (now_ns() + 1_000_000, 200_000);
        let periodic = lab.timers.arm(Arming { period_ns, ..once(first_ns) }).unwrap();
        let timers = lab.timers.clone();

        let waiting = thread::spawn(move || {
            let mut ticks = Vec::new();
            while let Some(tick) = timers.wait(periodic, patience()).unwrap() {
                ticks.push(tick);
            }
            ticks
        });
        for step in 0..40u64 {
            let deadline_ns = now_ns() + (step % 4) * 400_000;
            let before = lab.timers.arm(once(deadline_ns)).unwrap();
            let mut during = None;
            lab.hand_over(lead_max_ns, |timers| during = Some(timers.arm(once(deadline_ns)).unwrap()));
            for id in [before, during.unwrap()] {
                let tick = lab.timers.wait(id, patience()).unwrap().unwrap();
                assert_eq!((id, 1, deadline_ns, 0), (tick.id, tick.number, tick.deadline_ns, tick.missed));
                assert_eq!(None, lab.timers.wait(id, Some(0)).unwrap());
            }
        }
        assert!(lab.timers.cancel(periodic));

        let mut number = 0;
        for tick in waiting.join().unwrap() {
            assert_eq!((periodic, number + 1 + tick.missed), (tick.id, tick.number));
            assert_eq!(first_ns + (tick.number - 1) * period_ns, tick.deadline_ns);
            number = tick.number;
        }
        assert!(number > 40);
    }
}

#[test]
fn periods_between_two_keepers_are_counted_and_told_once() {
    let mut lab = Lab::new(0);
    let first_ns = now_ns();
    let id = lab.timers.arm(Arming { period_ns: 1_000_000, ..once(first_ns) }).unwrap();
    let before = lab.timers.wait(id, patience()).unwrap().unwrap();

    lab.hand_over(0, |_| {
        while now_ns() < before.deadline_ns + 10_000_000 {
            std::hint::spin_loop();
        }
    });
    let after = lab.timers.wait(id, patience()).unwrap().unwrap();

    assert_eq!(before.number + after.missed + 1, after.number);
    assert!(after.missed >= 9, "missed {}", after.missed);
    assert_eq!(after.missed + before.missed, lab.timers.totals().missed);
}

#[test]
fn loop_that_sleeps_hears_of_what_expired_before_the_next_keeper_had_a_doorbell() {
    let mut lab = Lab::new(0);
    lab.timers.arm(Arming { side: Side::Loop, ..once(now_ns() + LONG_NS) }).unwrap();
    assert!(matches!(lab.timers.take_for_loop().unwrap(), ForLoop::Sleep(None)));

    lab.hand_over(0, |timers| assert!(timers.arm(Arming { side: Side::Loop, ..once(1) }).is_ok()));

    assert_eq!(vec![1], loop_ticks(&lab.timers));
}

#[test]
fn keeper_that_tells_less_than_it_told_before_tells_nothing() {
    let layout = TimersLayout::plan(0, 64).unwrap();
    let ram = Ram::create("vbnet-test", layout.end.into()).unwrap();
    let timers = Timers::open(&ram, layout).unwrap();
    let keeper = Keeper::new(TimerMemory::attach(&ram, layout.page_offset, layout.page_bytes, 64).unwrap());
    // Expiry 3 is due, and expiry 4 not for as long again as the machine runs.
    let arming = Arming { period_ns: now_ns() / 2 - 1, side: Side::Loop, ..once(1) };
    timers.arm(arming).unwrap();

    let heard = [3, 2].map(|times| {
        let _ = keeper.expire(0, 0, Expiry { generation: 1, times });
        timers.take_for_loop().unwrap()
    });

    assert!(matches!(&heard[0], ForLoop::Ticks(ticks) if ticks.len() == 1 && ticks[0].number == 3));
    assert_eq!(ForLoop::Sleep(None), heard[1]);
}

#[test]
fn doorbell_that_was_replaced_wakes_nobody() {
    let mut lab = Lab::new(0);
    let former = copy(&lab.calls[0]);
    lab.connect(0);
    assert!(matches!(lab.timers.take_for_loop().unwrap(), ForLoop::Sleep(None)));

    former.ring().unwrap();

    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(lab.timers.loop_fd()) };
    let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(0, poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&at_once)).unwrap());
}

#[test]
fn timers_of_three_hours_and_of_the_end_of_time_are_kept() {
    let lab = Lab::new(0);
    let never = lab.timers.arm(once(u64::MAX)).unwrap();
    let periodic = lab.timers.arm(Arming { period_ns: u64::MAX, ..once(1) }).unwrap();

    let first = lab.timers.wait(periodic, patience()).unwrap();
    let near = lab.timers.arm(once(now_ns() + 1_000_000)).unwrap();

    assert_eq!(Some(1), first.map(|tick| tick.number));
    assert!(lab.timers.wait(near, patience()).unwrap().is_some());
    assert_eq!(None, lab.timers.wait(never, Some(now_ns() + Duration::from_millis(1).as_nanos() as u64)).unwrap());
    assert!(lab.timers.cancel(never) && lab.timers.cancel(periodic));
}
