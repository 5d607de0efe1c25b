//! Lines, routes, sources and outboxes of a host: no raise is lost whatever changes meanwhile, and everything is counted.
//!
//! Guests are played by threads of this process, on levels that one mapping formatted and another attached.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::write;
use vbnet_core::error::{Error, Fault};
use vbnet_core::guest::clock::monotonic_ns;
use vbnet_core::guest::intc::{Level, Outbox};
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::intc::{LEVEL_BYTES, LEVEL_SIGNAL_OFFSET, LevelMemory, PRIORITIES};
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::stamp::{AGE_MAX_NS, stamp};
use vbnet_core::signals::{
    LevelPart, Line, LineCounter, LineInfo, OutboxCounter, OutboxLatency, Route, SignalEvent, SignalTable, Target,
};

/// Longest any test waits for anything.
const DEADLINE: Duration = Duration::from_secs(20);
const LEVELS: u32 = 4096;
const OUTBOX: u32 = LEVELS + PRIORITIES * LEVEL_BYTES as u32;
const KICK_ENABLED: u32 = 0x80;
const KICK_RUNG_AT: u32 = 0x108;

fn eventually(mut claim: impl FnMut() -> bool) {
    let start = Instant::now();
    while !claim() {
        assert!(start.elapsed() < DEADLINE, "it never happened");
        thread::yield_now();
    }
}

fn again(bell: &impl AsFd) -> Doorbell {
    Doorbell::from_fd(rustix::io::dup(bell).unwrap())
}

/// What a hostile holder does: the counter as full as it gets, and a blocking description.
fn block(bell: &impl AsFd) {
    write(bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(bell, OFlags::RDWR).unwrap();
}

fn is_rung(bell: &Doorbell) -> bool {
    bell.wait(Some(Duration::ZERO)).unwrap()
}

/// A table, and its counters.
struct Host {
    counters: Arc<CounterFile>,
    table: Arc<SignalTable>,
}

impl Host {
    fn new() -> Self {
        let counters = Arc::new(CounterFile::create(None, 1 << 20).unwrap());
        Self { table: Arc::new(SignalTable::new(counters.clone()).unwrap()), counters }
    }

    fn line(&self, name: &str) -> Arc<Line> {
        self.table.create("g", "device", name, 0).unwrap()
    }

    fn raise(&self, line: &Line) {
        self.table.raise_soon(line.id()).unwrap();
    }

    /// Raises, and waits until the signal thread has done it: one more outcome, when nothing else is under way.
    fn raise_now(&self, line: &Line) {
        let (raises, outcomes) = (line.count(LineCounter::Raises), self.outcomes(line));
        self.raise(line);
        eventually(|| (raises + 1, outcomes + 1) == (line.count(LineCounter::Raises), self.outcomes(line)));
    }

    /// Outcomes of raises, and of what was delivered again because the line was routed.
    fn outcomes(&self, line: &Line) -> u64 {
        OUTCOMES.iter().map(|&outcome| line.count(outcome)).sum()
    }

    fn info(&self, line: &Line) -> LineInfo {
        self.table.list().unwrap().into_iter().find(|info| info.id == line.id()).unwrap()
    }

    fn outbox(&self, guest: &Guest) -> (u64, Outbox) {
        self.outbox_by(guest, &Doorbell::create().unwrap())
    }

    fn outbox_by(&self, guest: &Guest, kick: &Doorbell) -> (u64, Outbox) {
        let seen = LevelMemory::attach(&guest.seen, OUTBOX, LEVEL_BYTES as u32).unwrap();
        let id = self.table.outbox_attach("g", seen, again(kick)).unwrap();
        (id, Outbox::new(LevelMemory::attach(&guest.ram, OUTBOX, LEVEL_BYTES as u32).unwrap(), again(kick)))
    }

    fn outbox_count(&self, counter: OutboxCounter) -> u64 {
        let blocks = self.counters.reader().blocks();
        blocks.iter().find(|block| block.kind == "outbox").unwrap().values[counter as usize]
    }

    fn event(&self) -> SignalEvent {
        let mut events = Vec::new();
        eventually(|| {
            events.extend(self.table.take_events());
            !events.is_empty()
        });
        assert_eq!(1, events.len());
        events.remove(0)
    }
}

/// What a raise can come to.
const OUTCOMES: [LineCounter; 8] = [
    LineCounter::CoalescedSignal,
    LineCounter::CoalescedDevice,
    LineCounter::CoalescedAcross,
    LineCounter::Wakeups,
    LineCounter::Masked,
    LineCounter::MaskedByGuest,
    LineCounter::Unrouted,
    LineCounter::Blocked,
];

/// A guest with one vCPU.
struct Guest {
    ram: Arc<Ram>,
    seen: Arc<Ram>,
    levels: Vec<Level>,
    bells: Vec<Doorbell>,
}

impl Guest {
    fn new() -> Self {
        let ram = Ram::create("signals", u64::from(OUTBOX) + LEVEL_BYTES as u64).unwrap();
        let seen = Ram::open(rustix::io::dup(&*ram).unwrap(), u64::MAX).unwrap();
        LevelMemory::format(&ram, OUTBOX).unwrap();
        let bells: Vec<_> = (0..PRIORITIES).map(|_| Doorbell::create().unwrap()).collect();
        let level = |(priority, bell): (u32, &Doorbell)| {
            Level::new(LevelMemory::format(&ram, LEVELS + priority * LEVEL_BYTES as u32).unwrap(), again(bell))
        };
        let levels = (0..).zip(&bells).map(level).collect();
        Self { ram, seen, levels, bells }
    }

    fn parts(&self) -> [LevelPart; PRIORITIES as usize] {
        std::array::from_fn(|priority| LevelPart {
            memory: LevelMemory::attach(&self.seen, LEVELS + (priority * LEVEL_BYTES) as u32, LEVEL_BYTES as u32)
                .unwrap(),
            bell: again(&self.bells[priority]),
        })
    }

    fn attach(&self, host: &Host, name: &str) -> u64 {
        host.table.controller_attach(name, vec![self.parts()]).unwrap()
    }

    fn take(&mut self, priority: usize) -> Vec<u32> {
        let mut found = Vec::new();
        self.levels[priority].take(u32::MAX, |vector| found.push(vector));
        found
    }

    fn doze(&mut self, priority: usize) {
        assert!(self.take(priority).is_empty());
        assert!(self.levels[priority].arm());
    }
}

#[test]
fn line_rings_the_eventfd_it_leads_to() {
    let host = Host::new();
    let bell = Doorbell::create().unwrap();
    let line = host.line("tick");
    host.table.route_to_bell(line.id(), again(&bell)).unwrap();

    host.raise(&line);

    assert!(bell.wait(Some(DEADLINE)).unwrap());
    assert_eq!(Route::Bell, host.info(&line).route);
}

#[test]
fn line_reaches_its_vector_at_the_level_of_its_priority() {
    let host = Host::new();
    let mut guest = Guest::new();
    let controller = guest.attach(&host, "g");
    let line = host.table.create("g", "device", "urgent", 5).unwrap();
    host.table.route_to_vector(line.id(), controller, 0, 4095).unwrap();

    host.raise_now(&line);

    let taken: Vec<_> = (0..8).map(|priority| guest.take(priority)).collect();
    let expected: Vec<Vec<u32>> = (0..8).map(|priority| if priority == 5 { vec![4095] } else { vec![] }).collect();
    assert_eq!(expected, taken);
}

#[test]
fn changed_priority_moves_later_raises_and_leaves_what_is_pending() {
    let host = Host::new();
    let mut guest = Guest::new();
    let controller = guest.attach(&host, "g");
    let line = host.line("moved");
    host.table.route_to_vector(line.id(), controller, 0, 9).unwrap();
    host.raise_now(&line);

    host.table.set_priority(line.id(), 7).unwrap();
    host.raise_now(&line);

    assert_eq!((vec![9], vec![9]), (guest.take(0), guest.take(7)));
}

#[test]
fn masked_line_keeps_exactly_one_raise() {
    let host = Host::new();
    let mut guest = Guest::new();
    let controller = guest.attach(&host, "g");
    let line = host.line("masked");
    host.table.route_to_vector(line.id(), controller, 0, 3).unwrap();
    host.table.set_masked(line.id(), true).unwrap();
    (0..5).for_each(|_| host.raise_now(&line));
    assert!(line.is_latched() && guest.take(0).is_empty());

    host.table.set_masked(line.id(), false).unwrap();

    let mut found = Vec::new();
    eventually(|| {
        found.extend(guest.take(0));
        !found.is_empty()
    });
    host.table.set_masked(line.id(), true).unwrap();
    host.table.set_masked(line.id(), false).unwrap();
    host.raise_now(&host.line("barrier"));
    found.extend(guest.take(0));
    assert_eq!((vec![3], 5, false), (found, line.count(LineCounter::Masked), line.is_latched()));
}

#[test]
fn line_that_leads_nowhere_delivers_one_raise_when_it_is_routed() {
    let host = Host::new();
    let bell = Doorbell::create().unwrap();
    let line = host.line("early");
    (0..3).for_each(|_| host.raise_now(&line));

    host.table.route_to_bell(line.id(), again(&bell)).unwrap();

    assert!(bell.wait(Some(DEADLINE)).unwrap());
    host.raise_now(&host.line("barrier"));
    assert_eq!((false, 3, 1), (is_rung(&bell), line.count(LineCounter::Raises), line.count(LineCounter::Wakeups)));
}

#[test]
fn masked_and_unrouted_line_delivers_only_when_both_are_over() {
    let host = Host::new();
    let bell = Doorbell::create().unwrap();
    let line = host.line("both");
    host.table.set_masked(line.id(), true).unwrap();
    host.raise_now(&line);

    host.table.route_to_bell(line.id(), again(&bell)).unwrap();
    host.raise_now(&host.line("barrier"));
    let was_rung = is_rung(&bell);
    host.table.set_masked(line.id(), false).unwrap();

    assert_eq!((false, true), (was_rung, bell.wait(Some(DEADLINE)).unwrap()));
}

#[test]
fn raise_that_meets_a_controller_whose_guest_left_is_delivered_when_the_line_is_routed_anew() {
    let host = Host::new();
    let (gone, mut next) = (Guest::new(), Guest::new());
    let old = gone.attach(&host, "g");
    let line = host.line("survivor");
    host.table.route_to_vector(line.id(), old, 0, 1).unwrap();

    host.table.controller_detach(old).unwrap();
    host.raise_now(&line);

    assert!(line.is_latched());
    let new = next.attach(&host, "g");
    host.table.route_to_vector(line.id(), new, 0, 2).unwrap();
    eventually(|| next.take(0) == [2]);
    assert!(matches!(host.table.controller(old), Err(Error::NotFound(_))));
}

/// Raises race with guests that leave and come: what was raised last is always delivered in the end.
#[test]
fn no_raise_is_lost_while_controllers_come_and_go() {
    let host = Host::new();
    let line = host.line("restless");
    let mut guest = Guest::new();
    let mut expected = 0;
    for turn in 0..300u32 {
        let controller = guest.attach(&host, "g");
        host.table.route_to_vector(line.id(), controller, 0, turn).unwrap();
        guest.take(0);
        host.raise(&line);
        host.table.controller_detach(controller).unwrap();
        expected += 1;
        eventually(|| host.outcomes(&line) == expected);

        // It reached the guest before it left, or waits for the next one.
        assert_eq!(1, guest.take(0).len() + usize::from(line.is_latched()), "turn {turn}");

        let controller = guest.attach(&host, "g");
        let is_due = line.is_latched();
        host.table.route_to_vector(line.id(), controller, 0, turn).unwrap();
        eventually(|| !is_due || !guest.take(0).is_empty());
        expected += u64::from(is_due);
        eventually(|| host.outcomes(&line) == expected);
        host.table.controller_detach(controller).unwrap();
    }
}

/// Three threads raise sixteen lines while their routes flip between two guests and an eventfd. Each line's raiser
/// numbers its raises; a place that sees the line reads the number: the last number of each line is seen somewhere.
#[test]
fn rerouting_under_load_loses_no_raise() {
    const LINES: usize = 16;
    const RAISES: u64 = 4_000;
    let host = Host::new();
    let mut guests = [Guest::new(), Guest::new()];
    let controllers = guests.each_ref().map(|guest| guest.attach(&host, "g"));
    let bells: Vec<_> = (0..LINES).map(|_| Doorbell::create().unwrap()).collect();
    let lines: Vec<_> = (0..LINES).map(|index| host.line(&format!("l{index}"))).collect();
    let raised: Vec<_> = (0..LINES).map(|_| AtomicU64::new(0)).collect();
    let seen: Vec<_> = (0..LINES).map(|_| AtomicU64::new(0)).collect();
    let (outbox_id, outbox) = host.outbox(&guests[0]);
    for (number, line) in (0..).zip(&lines) {
        host.table.grant(outbox_id, number, line.id()).unwrap();
    }
    let is_over = AtomicBool::new(false);
    // Rings before it reads the number, as a handler does: what it reads was raised before.
    let look = |index: usize| {
        let number = raised[index].load(Ordering::Acquire);
        seen[index].fetch_max(number, Ordering::AcqRel);
    };
    let route = |line: &Line, index: usize, turn: usize| match turn % 3 {
        2 => host.table.route_to_bell(line.id(), again(&bells[index])),
        which => host.table.route_to_vector(line.id(), controllers[which], 0, index as u32),
    };

    thread::scope(|scope| {
        let raisers: Vec<_> = (0..2)
            .map(|half| {
                let (raised, lines, host, outbox) = (&raised, &lines, &host, &outbox);
                scope.spawn(move || {
                    for number in 1..=RAISES {
                        for index in (half * LINES / 2)..((half + 1) * LINES / 2) {
                            raised[index].store(number, Ordering::Release);
                            if half == 0 {
                                host.raise(&lines[index]);
                            } else {
                                outbox.raise(index as u32).unwrap();
                            }
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut turn = 0;
            while !is_over.load(Ordering::Relaxed) {
                (0..LINES).for_each(|index| route(&lines[index], index, turn + index).unwrap());
                turn += 1;
            }
        });
        for guest in &mut guests {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    guest.take(0).iter().for_each(|&vector| look(vector as usize));
                    thread::yield_now();
                }
            });
        }
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                (0..LINES).filter(|&index| is_rung(&bells[index])).for_each(look);
                thread::yield_now();
            }
        });

        raisers.into_iter().for_each(|raiser| raiser.join().unwrap());
        let start = Instant::now();
        while seen.iter().any(|number| number.load(Ordering::Acquire) != RAISES) && start.elapsed() < DEADLINE {
            thread::yield_now();
        }
        is_over.store(true, Ordering::Relaxed);
    });

    let seen: Vec<_> = seen.iter().map(|number| number.load(Ordering::Relaxed)).collect();
    assert_eq!(vec![RAISES; LINES], seen);
}

#[test]
fn destroyed_line_is_raised_in_vain_and_its_name_is_free_again() {
    let host = Host::new();
    let guest = Guest::new();
    let bell = Doorbell::create().unwrap();
    let source = Doorbell::create().unwrap();
    let line = host.line("short");
    host.table.route_to_bell(line.id(), again(&bell)).unwrap();
    host.table.source_attach(line.id(), rustix::io::dup(&source).unwrap()).unwrap();
    let (outbox_id, outbox) = host.outbox(&guest);
    host.table.grant(outbox_id, 0, line.id()).unwrap();

    host.raise(&line);
    host.table.destroy(line.id()).unwrap();
    host.raise_now(&host.line("barrier"));
    is_rung(&bell);
    source.ring().unwrap();
    outbox.raise(0).unwrap();
    eventually(|| host.outbox_count(OutboxCounter::Refused) == 1);

    host.raise_now(&host.line("short"));
    assert_eq!((false, 1), (is_rung(&bell), line.count(LineCounter::Raises)));
    assert!(matches!(host.table.raise_soon(line.id()), Err(Error::NotFound(_))));
    assert!(matches!(&*line.target(), Target::Nowhere));
}

#[test]
fn each_write_to_an_eventfd_that_drives_a_line_is_a_raise() {
    let host = Host::new();
    let line = host.line("driven");
    let source = Doorbell::create().unwrap();
    let token = host.table.source_attach(line.id(), rustix::io::dup(&source).unwrap()).unwrap();

    for raises in 1..=20 {
        source.ring().unwrap();
        eventually(|| line.count(LineCounter::Raises) == raises);
    }

    host.table.source_detach(token).unwrap();
    source.ring().unwrap();
    host.raise_now(&host.line("barrier"));
    assert_eq!(20, line.count(LineCounter::Raises));
}

#[test]
fn what_was_written_before_a_source_is_let_go_of_is_a_raise() {
    const SOURCES: u64 = 2000;
    let host = Host::new();
    let line = host.line("driven");
    let busy = host.line("busy");
    let is_over = AtomicBool::new(false);

    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                host.raise(&busy);
            }
        });
        for _ in 0..SOURCES {
            let source = Doorbell::create().unwrap();
            let token = host.table.source_attach(line.id(), rustix::io::dup(&source).unwrap()).unwrap();
            source.ring().unwrap();
            host.table.source_detach(token).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });

    assert_eq!(SOURCES, line.count(LineCounter::Raises));
}

#[test]
fn socket_that_drives_a_line_is_drained() {
    let host = Host::new();
    let line = host.line("driven");
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let watched = theirs.try_clone().unwrap();
    watched.set_nonblocking(true).unwrap();
    host.table.source_attach(line.id(), theirs.into()).unwrap();

    for _ in 0..50 {
        let before = line.count(LineCounter::Raises);
        ours.write_all(&[7; 300]).unwrap();
        eventually(|| line.count(LineCounter::Raises) > before);
    }

    eventually(|| (&watched).read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
}

#[test]
fn socket_that_hangs_up_raises_for_its_last_words_and_is_let_go_of() {
    let host = Host::new();
    let line = host.line("driven");
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"last").unwrap();
    drop(ours);

    let source = host.table.source_attach(line.id(), theirs.into()).unwrap();

    assert_eq!(SignalEvent::SourceGone { source, line: line.id() }, host.event());
    assert_eq!(1, line.count(LineCounter::Raises));
    host.table.source_detach(source).unwrap();
}

#[test]
fn socket_that_hangs_up_in_silence_raises_nothing() {
    let host = Host::new();
    let line = host.line("driven");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let source = host.table.source_attach(line.id(), theirs.into()).unwrap();

    drop(ours);

    assert_eq!(SignalEvent::SourceGone { source, line: line.id() }, host.event());
    assert_eq!(0, line.count(LineCounter::Raises));
}

#[test]
fn what_is_neither_eventfd_nor_socket_drives_nothing() {
    let host = Host::new();
    let line = host.line("driven");
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let file: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();

    let refused = [pipe, file, epoll].map(|file| host.table.source_attach(line.id(), file));

    assert!(refused.iter().all(|answer| matches!(answer, Err(Error::Usage(_)))), "{refused:?}");
}

#[test]
fn blocked_doorbell_of_a_controller_is_told_once_with_its_guest_and_others_go_on() {
    let host = Host::new();
    let (mut hostile, mut honest) = (Guest::new(), Guest::new());
    let controllers = [hostile.attach(&host, "hostile"), honest.attach(&host, "honest")];
    let lines: Vec<_> =
        (0..2).map(|index| host.table.create("owner", "d", &format!("l{index}"), index).unwrap()).collect();
    for line in &lines {
        host.table.route_to_vector(line.id(), controllers[0], 0, 1).unwrap();
    }
    let fine = host.line("fine");
    host.table.route_to_vector(fine.id(), controllers[1], 0, 1).unwrap();
    hostile.doze(0);
    hostile.doze(1);
    honest.doze(0);
    block(&hostile.bells[0]);

    host.raise(&lines[0]);
    let told = host.event();
    host.raise_now(&lines[1]);
    host.raise_now(&fine);

    let SignalEvent::Blocked { line, guest, fault: Fault::DoorbellBlocked { .. } } = told else { panic!("{told:?}") };
    assert_eq!((lines[0].id(), "hostile"), (line, guest.as_str()));
    assert_eq!((1, 1), (lines[0].count(LineCounter::Blocked), lines[1].count(LineCounter::Blocked)));
    assert!(lines.iter().all(|line| host.info(line).is_blocked) && !host.info(&fine).is_blocked);
    assert!(host.table.controller(controllers[0]).unwrap().is_blocked());
    assert_eq!((vec![], vec![1]), (host.table.take_events(), honest.take(0)));
    assert!(is_rung(&honest.bells[0]) && !is_rung(&hostile.bells[1]));
}

#[test]
fn blocked_eventfd_is_told_once_and_the_line_works_again_on_a_new_route() {
    let host = Host::new();
    let (bad, good) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
    let line = host.line("unlucky");
    host.table.route_to_bell(line.id(), again(&bad)).unwrap();
    block(&bad);

    host.raise(&line);
    let told = host.event();
    host.raise_now(&line);
    let is_blocked = host.info(&line).is_blocked;
    host.table.route_to_bell(line.id(), again(&good)).unwrap();
    host.raise_now(&line);

    assert!(matches!(told, SignalEvent::Blocked { line: told, guest, .. } if told == line.id() && guest == "g"));
    assert_eq!((true, false, 2), (is_blocked, host.info(&line).is_blocked, line.count(LineCounter::Blocked)));
    assert!(is_rung(&good) && host.table.take_events().is_empty());
}

#[test]
fn coalesced_raises_are_put_down_to_signal_device_or_others() {
    let host = Host::new();
    let mut guest = Guest::new();
    let controller = guest.attach(&host, "g");
    let make = |device: &str, name: &str, vector| {
        let line = host.table.create("g", device, name, 0).unwrap();
        host.table.route_to_vector(line.id(), controller, 0, vector).unwrap();
        line
    };
    let (first, sibling, stranger) = (make("disk", "a", 0), make("disk", "b", 1), make("net", "c", 2));
    guest.doze(0);

    for line in [&first, &first, &sibling, &stranger] {
        host.raise_now(line);
    }

    let counts = |line: &Line| {
        [LineCounter::Wakeups, LineCounter::CoalescedSignal, LineCounter::CoalescedDevice, LineCounter::CoalescedAcross]
            .map(|counter| line.count(counter))
    };
    assert_eq!([1, 1, 0, 0], counts(&first));
    assert_eq!([0, 0, 1, 0], counts(&sibling));
    assert_eq!([0, 0, 0, 1], counts(&stranger));
}

#[test]
fn wakeups_that_found_nothing_are_put_down_to_the_line_they_were_made_for() {
    let host = Host::new();
    let mut guest = Guest::new();
    let controller = guest.attach(&host, "g");
    let lines: Vec<_> = (0..2).map(|index| host.line(&format!("l{index}"))).collect();
    for (vector, line) in (0..).zip(&lines) {
        host.table.route_to_vector(line.id(), controller, 0, vector).unwrap();
    }
    // A guest that takes before it hears the bell finds nothing when it does.
    for (index, rounds) in [(0, 3), (1, 1), (0, 1)] {
        for _ in 0..rounds {
            guest.doze(0);
            host.raise_now(&lines[index]);
            guest.take(0);
            let taken = guest.levels[0].wait(8, Duration::ZERO, Some(Duration::from_millis(1)), |_| {}).unwrap();
            assert_eq!(0, taken);
        }
    }

    let told = [0, 1].map(|index| host.info(&lines[index]).counts[LineCounter::Spurious as usize]);

    assert_eq!([4, 1], told);
}

#[test]
fn numbers_that_were_not_granted_are_counted_and_raise_nothing() {
    let host = Host::new();
    let guest = Guest::new();
    let line = host.line("granted");
    let (id, outbox) = host.outbox(&guest);
    host.table.grant(id, 7, line.id()).unwrap();

    for number in [7, 8, 4095] {
        outbox.raise(number).unwrap();
    }

    eventually(|| host.outbox_count(OutboxCounter::Taken) == 3);
    eventually(|| (host.outbox_count(OutboxCounter::Refused), line.count(LineCounter::Raises)) == (2, 1));
    host.table.revoke(id, 7).unwrap();
    outbox.raise(7).unwrap();
    eventually(|| host.outbox_count(OutboxCounter::Refused) == 3);
    assert_eq!(1, line.count(LineCounter::Raises));
}

#[test]
fn host_that_slept_is_timed_hearing_an_outbox_and_a_stamp_of_the_future_is_not_believed() {
    let host = Host::new();
    let guest = Guest::new();
    let kick = Doorbell::create().unwrap();
    let (id, outbox) = host.outbox_by(&guest, &kick);
    let words = || {
        let blocks = host.counters.reader().blocks();
        blocks.into_iter().find(|block| block.kind == "outbox_latency").map(|block| block.values)
    };
    let count = |at: usize| words().unwrap()[at];
    let start = Instant::now();

    eventually(|| {
        outbox.raise(7).unwrap();
        count(0) >= 3
    });
    let longest_ns = count(3);
    let honest = count(OutboxLatency::WORDS - 1);
    // What a guest can do: ring for the arming that there is, with a time of its own.
    let signal = OUTBOX + LEVEL_SIGNAL_OFFSET as u32;
    // SAFETY: words of the guest's memory, aligned, which lives as long as the guest.
    let enabled = unsafe { guest.ram.at(signal + KICK_ENABLED, 4).unwrap().cast::<AtomicU32>().as_ref() };
    // SAFETY: as above.
    let rung_at = unsafe { guest.ram.at(signal + KICK_RUNG_AT, 8).unwrap().cast::<AtomicU64>().as_ref() };
    eventually(|| {
        rung_at.store(stamp(enabled.load(Ordering::Relaxed), monotonic_ns() + 2 * AGE_MAX_NS), Ordering::Relaxed);
        kick.ring().unwrap();
        count(OutboxLatency::WORDS - 1) != 0
    });
    host.table.outbox_detach(id).unwrap();

    assert!((1..=start.elapsed().as_nanos() as u64).contains(&longest_ns), "{longest_ns} ns");
    assert_eq!((0, None), (honest, words()));
}

#[test]
fn raise_storm_of_one_guest_starves_no_other() {
    let host = Host::new();
    let (wild, calm) = (Guest::new(), Guest::new());
    let (wild_line, calm_line) = (host.line("wild"), host.line("calm"));
    let (wild_id, wild_outbox) = host.outbox(&wild);
    let (calm_id, calm_outbox) = host.outbox(&calm);
    (0..4096).for_each(|number| host.table.grant(wild_id, number, wild_line.id()).unwrap());
    host.table.grant(calm_id, 0, calm_line.id()).unwrap();
    let is_over = AtomicBool::new(false);
    let mut raises = 0;

    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                for number in 0..4096 {
                    wild_outbox.raise(number).unwrap();
                }
            }
        });
        // 200 in the storm: it may take its time to become one.
        let begin = Instant::now();
        while (raises < 200 || host.outbox_count(OutboxCounter::BudgetExhausted) == 0) && begin.elapsed() < DEADLINE {
            raises += 1;
            calm_outbox.raise(0).unwrap();
            let start = Instant::now();
            while calm_line.count(LineCounter::Raises) != raises && start.elapsed() < DEADLINE {
                thread::yield_now();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });

    assert_eq!(raises, calm_line.count(LineCounter::Raises));
    assert!(raises >= 200);
    assert!(host.outbox_count(OutboxCounter::BudgetExhausted) != 0);
}

#[test]
fn outbox_that_was_let_go_of_raises_nothing_more() {
    let host = Host::new();
    let guest = Guest::new();
    let line = host.line("past");
    let (id, outbox) = host.outbox(&guest);
    host.table.grant(id, 0, line.id()).unwrap();

    host.table.outbox_detach(id).unwrap();
    outbox.raise(0).unwrap();
    host.raise_now(&host.line("barrier"));

    assert_eq!(0, line.count(LineCounter::Raises));
    assert!(matches!(host.table.outbox_detach(id), Err(Error::NotFound(_))));
    assert!(matches!(host.table.grant(id, 1, line.id()), Err(Error::NotFound(_))));
}

#[test]
fn nobody_who_raises_soon_waits_for_a_blocked_doorbell() {
    let host = Host::new();
    let guest = Guest::new();
    let line = host.line("stuck");
    let bell = Doorbell::create().unwrap();
    host.table.route_to_bell(line.id(), again(&bell)).unwrap();
    block(&bell);
    host.raise(&line);

    // The thread is in the doorbell or was freed from it; either way these are answered, and so is what waits for it.
    let other = host.line("other");
    let (id, _outbox) = host.outbox(&guest);
    host.raise_now(&other);
    host.table.outbox_detach(id).unwrap();

    assert!(matches!(host.event(), SignalEvent::Blocked { .. }));
}

#[test]
fn names_priorities_vectors_and_numbers_that_cannot_be_are_refused() {
    let host = Host::new();
    let guest = Guest::new();
    let controller = guest.attach(&host, "g");
    let line = host.line("taken");
    let (outbox, _) = host.outbox(&guest);
    let long = "x".repeat(129);

    for name in ["", "a\nb", "a,guest=b", long.as_str()] {
        assert!(matches!(host.table.create("g", "d", name, 0), Err(Error::Usage(_))), "{name:?}");
    }
    assert!(matches!(host.table.create("g", "d", "x", 8), Err(Error::Usage(_))));
    assert!(matches!(host.table.create("g", "e", "taken", 0), Err(Error::Exists(_))));
    assert!(host.table.create("h", "device", "taken", 0).is_ok());
    assert!(matches!(host.table.set_priority(line.id(), 8), Err(Error::Usage(_))));
    assert!(matches!(host.table.route_to_vector(line.id(), controller, 0, 4096), Err(Error::Usage(_))));
    assert!(matches!(host.table.route_to_vector(line.id(), controller, 1, 0), Err(Error::NotFound(_))));
    assert!(matches!(host.table.grant(outbox, 4096, line.id()), Err(Error::Usage(_))));
    host.table.grant(outbox, 0, line.id()).unwrap();
    assert!(matches!(host.table.grant(outbox, 0, line.id()), Err(Error::Exists(_))));
    assert!(matches!(host.table.controller_attach("g", Vec::new()), Err(Error::Usage(_))));
}

#[test]
fn closed_table_refuses_everything_and_forgets_its_lines() {
    let host = Host::new();
    let guest = Guest::new();
    let controller = guest.attach(&host, "g");
    let line = host.line("last");
    host.table.route_to_vector(line.id(), controller, 0, 0).unwrap();
    let (id, _outbox) = host.outbox(&guest);
    host.table.grant(id, 0, line.id()).unwrap();

    host.table.close();
    host.table.close();

    assert!(matches!(host.table.raise_soon(line.id()), Err(Error::Closed(_))));
    assert!(matches!(host.table.create("g", "d", "n", 0), Err(Error::Closed(_))));
    assert_eq!(1, Arc::strong_count(&line));
    drop(line);
    let kinds: HashSet<_> = host.counters.reader().blocks().into_iter().map(|block| block.kind).collect();
    assert_eq!(HashSet::new(), kinds);
}
