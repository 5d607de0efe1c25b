//! The fastcall service with real threads and doorbells: who is answered, who is not, and who cannot hurt whom.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so by panicking")]

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, write};
use vbnet_core::error::Error;
use vbnet_core::fastcall::{
    Echo, FastHandler, FastcallCounter, FaultEvent, Refusal, SPIN_US_MAX, Service, ServiceCounter, SlotId, SlotParams,
    SlotParts, TRAP_NS_MAX,
};
use vbnet_core::guest::fastcall::FastCaller;
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::fastcall::{Answer, DATA_BYTES, STATUS_DONE, STATUS_UNSERVED};
use vbnet_core::shm::region::{RAM_MAX, Ram};

const PATIENCE: Duration = Duration::from_secs(10);
/// How long a service that sleeps is watched for looking around.
const QUIET_WHILE: Duration = Duration::from_millis(5);
const SLOT_BYTES: u32 = 0x600;
const REQUEST_SEQUENCE: u32 = 0x80;
const REQUEST_LENGTH: u32 = 0x8c;
const DEVICE: u32 = 5;

struct Host {
    service: Service,
    counters: Arc<CounterFile>,
}

impl Host {
    fn new() -> Self {
        let counters = Arc::new(CounterFile::create(None, 1 << 16).unwrap());
        Self { service: Service::start(counters.clone()).unwrap(), counters }
    }

    fn count(&self, guest: &Guest, counter: FastcallCounter) -> u64 {
        let labels = format!("slot={}", guest.session);
        let blocks = self.counters.reader().blocks();
        blocks.iter().find(|block| block.kind == "fastcall" && block.labels == labels).unwrap().values[counter as usize]
    }

    fn service_count(&self, counter: ServiceCounter) -> u64 {
        let blocks = self.counters.reader().blocks();
        blocks.iter().find(|block| block.kind == "fastcall_service").unwrap().values[counter as usize]
    }
}

/// One guest with one slot.
struct Guest {
    session: u64,
    ram: Arc<Ram>,
    caller: FastCaller,
    kick: Doorbell,
    call: Doorbell,
    slot: SlotId,
}

impl Guest {
    fn new(host: &Host, session: u64, params: SlotParams) -> Self {
        let ram = Ram::create("guest", 3 * 4096).unwrap();
        let caller = FastCaller::format(&ram, 4096).unwrap();
        let (kick, call) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
        let copy = |bell: &Doorbell| Doorbell::from_fd(bell.as_fd().try_clone_to_owned().unwrap());
        let parts = SlotParts {
            ram: Ram::open(ram.as_fd().try_clone_to_owned().unwrap(), RAM_MAX).unwrap(),
            offset: 4096,
            length: SLOT_BYTES,
            kick: copy(&kick),
            call: copy(&call),
        };
        let slot = host.service.attach(session, parts, params, &format!("slot={session}")).unwrap();
        let (own_kick, own_call) = (copy(&kick), copy(&call));
        let caller = FastCaller::new(caller, kick, call, 0);
        Self { session, ram, caller, kick: own_kick, call: own_call, slot }
    }

    fn call(&self, function: u32, data: &[u8]) -> (u32, Vec<u8>) {
        self.call_device(DEVICE, function, data)
    }

    fn call_device(&self, device: u32, function: u32, data: &[u8]) -> (u32, Vec<u8>) {
        let (answer, data) = self.whole_call(device, function, data);
        (answer.status, data)
    }

    fn whole_call(&self, device: u32, function: u32, data: &[u8]) -> (Answer, Vec<u8>) {
        let mut room = [0; DATA_BYTES];
        let answer = self.caller.call(device, function, data, &mut room, PATIENCE).unwrap().unwrap();
        (answer, room[..answer.length as usize].to_vec())
    }

    fn scribble(&self, field: u32, value: u32) {
        let place = self.ram.at(4096 + field, 4).unwrap();
        // SAFETY: in bounds, aligned, accessed by atomics only, and borrowed from the region that maps it.
        unsafe { place.cast::<AtomicU32>().as_ref() }.store(value, Ordering::SeqCst);
    }
}

fn host_with_echo(sessions: u64) -> (Host, Vec<Guest>) {
    let host = Host::new();
    let guests = (1..=sessions)
        .map(|session| {
            host.service.register(session, DEVICE, Arc::new(Echo)).unwrap();
            Guest::new(&host, session, SlotParams::default())
        })
        .collect();
    (host, guests)
}

/// Waits for the first faults that are told.
fn faults(host: &Host) -> Vec<FaultEvent> {
    let mut told = Vec::new();
    wait_until("a fault", || {
        told.extend(host.service.take_faults());
        !told.is_empty()
    });
    told
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::yield_now();
    }
}

/// Does what its function number says.
struct Odd;

impl FastHandler for Odd {
    fn call(&self, function: u32, data: &[u8], answer: &mut [u8]) -> Result<usize, Refusal> {
        match function {
            0 => Err(Refusal::new(Errno::BUSY, "not now")),
            1 => panic!("a bug of the device"),
            2 => Ok(answer.len() + 1),
            _ => Ok(data.len()),
        }
    }
}

/// A call reaches the handler of its own session, and its answer the caller.
#[test]
fn call_is_answered_with_what_the_handler_says() {
    let (host, guests) = host_with_echo(1);

    let answers = [&b""[..], b"8 bytes!", &[9; DATA_BYTES]].map(|data| guests[0].call(3, data));

    assert_eq!([(0, vec![]), (0, b"8 bytes!".to_vec()), (0, vec![9; DATA_BYTES])], answers);
    assert_eq!(3, host.count(&guests[0], FastcallCounter::Calls));
}

/// A handle of another session, and one that was never given, reach nobody.
#[test]
fn handles_of_another_session_reach_nobody() {
    let host = Host::new();
    host.service.register(1, DEVICE, Arc::new(Echo)).unwrap();
    let stranger = Guest::new(&host, 2, SlotParams::default());

    let answer = stranger.call(0, b"mine?");

    assert_eq!((STATUS_UNSERVED, vec![]), answer);
    assert_eq!(1, host.count(&stranger, FastcallCounter::UnservedNoHandler));
}

/// What a handler refuses comes with its number and sentence.
#[test]
fn refusal_comes_with_its_number_and_sentence() {
    let host = Host::new();
    host.service.register(1, DEVICE, Arc::new(Odd)).unwrap();
    let guest = Guest::new(&host, 1, SlotParams::default());

    let answer = guest.call(0, b"");

    assert_eq!((Errno::BUSY.raw_os_error() as u32, b"not now".to_vec()), answer);
    assert_eq!(1, host.count(&guest, FastcallCounter::Refused));
}

/// A handler that panics, or says it wrote more than there is room for, costs its own call only.
#[test]
fn handler_that_fails_costs_its_own_call_only() {
    let host = Host::new();
    host.service.register(1, DEVICE, Arc::new(Odd)).unwrap();
    let guest = Guest::new(&host, 1, SlotParams::default());

    let statuses = [1, 2, 3].map(|function| guest.call(function, b"x").0);

    assert_eq!([Errno::IO.raw_os_error() as u32, Errno::IO.raw_os_error() as u32, STATUS_DONE], statuses);
    assert_eq!(2, host.count(&guest, FastcallCounter::Failed));
}

/// A handler that was taken away is not called any more, not even by a slot that called it a moment ago.
#[test]
fn unregistered_handler_is_not_called_any_more() {
    let (host, guests) = host_with_echo(1);
    guests[0].call(0, b"");

    let outcomes = [host.service.unregister(1, DEVICE).unwrap(), host.service.unregister(1, DEVICE).unwrap()];
    let answer = guests[0].call(0, b"");

    assert_eq!(([true, false], STATUS_UNSERVED), (outcomes, answer.0));
}

/// One device has one handler.
#[test]
fn second_handler_of_a_device_is_refused() {
    let (host, _guests) = host_with_echo(1);

    let outcome = host.service.register(1, DEVICE, Arc::new(Odd));

    assert!(matches!(outcome, Err(Error::Exists(_))));
}

/// Switched off, every call is sent the ordinary way; switched on, it is served again. The cost on top comes along.
#[test]
fn slot_can_be_switched_off_and_made_dearer_while_it_runs() {
    let (host, guests) = host_with_echo(1);
    let off = SlotParams { is_enabled: false, ..SlotParams::default() };
    let dear = SlotParams { trap_ns: 777, ..SlotParams::default() };

    host.service.set(guests[0].slot, off).unwrap();
    let while_off = guests[0].call(0, b"");
    host.service.set(guests[0].slot, dear).unwrap();
    let (answer, _) = guests[0].whole_call(DEVICE, 0, b"");

    assert_eq!((STATUS_UNSERVED, STATUS_DONE, 777), (while_off.0, answer.status, answer.trap_ns));
    assert_eq!(1, host.count(&guests[0], FastcallCounter::UnservedDisabled));
}

/// Numbers out of range are refused before anything changes.
#[test]
fn impossible_parameters_are_refused() {
    let (host, guests) = host_with_echo(1);
    let wrong = [
        SlotParams { spin_us: SPIN_US_MAX + 1, ..SlotParams::default() },
        SlotParams { trap_ns: TRAP_NS_MAX + 1, ..SlotParams::default() },
    ];

    for params in wrong {
        assert!(matches!(host.service.set(guests[0].slot, params), Err(Error::Usage(_))));
    }
    assert!(matches!(host.service.set(SlotId(99), SlotParams::default()), Err(Error::NotFound(_))));
}

/// A length that is longer than a slot is refused, and nothing behind the slot is read.
#[test]
fn request_longer_than_its_slot_is_refused() {
    let (host, guests) = host_with_echo(1);
    let guest = &guests[0];

    guest.scribble(REQUEST_LENGTH, u32::MAX);
    guest.scribble(REQUEST_SEQUENCE, 1);
    write(&guest.kick, &1u64.to_ne_bytes()).unwrap();

    wait_until("the refusal", || host.count(guest, FastcallCounter::RefusedTooLong) == 1);
    assert_eq!(0, host.count(guest, FastcallCounter::Calls));
}

/// A guest whose count jumps loses that slot, which is told; others are served on.
#[test]
fn slot_whose_count_jumps_is_ended_and_told_and_others_go_on() {
    let (host, guests) = host_with_echo(2);

    guests[0].scribble(REQUEST_SEQUENCE, 77);
    write(&guests[0].kick, &1u64.to_ne_bytes()).unwrap();
    let told: Vec<_> = faults(&host).into_iter().map(|event| (event.slot, event.reason)).collect();

    assert_eq!(1, host.count(&guests[0], FastcallCounter::Faults));
    assert_eq!(vec![(guests[0].slot, "bad_size")], told);
    assert_eq!((STATUS_DONE, b"on".to_vec()), guests[1].call(0, b"on"));
    assert_eq!((), host.service.detach(guests[0].slot).unwrap());
}

/// A guest that makes its own doorbell block loses its slot; others are answered.
#[test]
fn doorbell_that_blocks_costs_its_own_slot_only() {
    let (host, guests) = host_with_echo(2);
    write(&guests[0].call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(&guests[0].call, OFlags::RDWR).unwrap();
    guests[0].scribble(0x500, 1);

    let told = thread::scope(|scope| {
        scope.spawn(|| {
            // Its answer comes; the doorbell that should tell of it does not.
            guests[0].scribble(REQUEST_LENGTH, 0);
            guests[0].scribble(REQUEST_SEQUENCE, 1);
            write(&guests[0].kick, &1u64.to_ne_bytes()).unwrap();
        });
        faults(&host)
    });

    assert_eq!(1, host.count(&guests[0], FastcallCounter::Faults));
    assert_eq!(vec!["doorbell_blocked"], told.iter().map(|event| event.reason).collect::<Vec<_>>());
    assert_eq!(STATUS_DONE, guests[1].call(0, b"").0);
}

/// Guests that call without end get their turns; so does the one that calls now and then.
#[test]
fn guest_that_calls_now_and_then_is_served_beside_those_that_never_stop() {
    let (host, guests) = host_with_echo(4);
    let is_over = AtomicBool::new(false);

    let answers = thread::scope(|scope| {
        for guest in &guests[1..] {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    guest.call(0, b"again");
                }
            });
        }
        let answers: Vec<_> = (0..100u8).map(|number| guests[0].call(0, &[number]).1).collect();
        is_over.store(true, Ordering::Relaxed);
        answers
    });

    assert_eq!((0..100u8).map(|number| vec![number]).collect::<Vec<_>>(), answers);
    assert_eq!(100, host.count(&guests[0], FastcallCounter::Calls));
}

/// A service nobody calls sleeps: every slot is parked and nothing is polled.
#[test]
fn idle_service_polls_nothing() {
    let (host, guests) = host_with_echo(3);
    guests.iter().for_each(|guest| assert_eq!(STATUS_DONE, guest.call(0, b"").0));

    // Parked is not asleep yet: between the two it looks around a few times more, and on a busy machine that takes as long
    // as it takes. One that polls has never a quiet while.
    wait_until("sleep", || {
        let rounds = host.service_count(ServiceCounter::IdleRounds);
        let end = Instant::now() + QUIET_WHILE;
        while Instant::now() < end {
            thread::yield_now();
        }
        rounds == host.service_count(ServiceCounter::IdleRounds)
            && host.service_count(ServiceCounter::ActiveSlots) == 0
            && host.service_count(ServiceCounter::Sleeps) > 0
    });

    assert_eq!(3, host.service_count(ServiceCounter::Slots));
}

/// A caller that waits for a host that will never answer is freed when the host is known to be gone.
#[test]
fn abandoned_caller_stops_waiting() {
    let (host, guests) = host_with_echo(1);
    host.service.close();
    let guest = &guests[0];

    let outcome = thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.caller.call(DEVICE, 0, b"", &mut [0; DATA_BYTES], PATIENCE));
        guest.caller.abandon();
        waiting.join().unwrap()
    });

    assert!(matches!(outcome, Err(Error::PeerGone(_))));
}

/// A call that nobody answers ends at its deadline, and leaves its slot busy.
#[test]
fn call_without_answer_ends_at_its_deadline() {
    let (host, guests) = host_with_echo(1);
    host.service.close();
    let caller = &guests[0].caller;

    let first = caller.call(DEVICE, 0, b"", &mut [0; DATA_BYTES], Duration::from_millis(1)).unwrap();
    let second = caller.call(DEVICE, 0, b"", &mut [0; DATA_BYTES], Duration::from_millis(1));

    assert_eq!(None, first);
    assert!(matches!(second, Err(Error::Busy(_))));
}

/// Keeps the service's thread until it is let go.
struct Stuck {
    entered: mpsc::SyncSender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl FastHandler for Stuck {
    fn call(&self, _function: u32, _data: &[u8], _answer: &mut [u8]) -> Result<usize, Refusal> {
        self.entered.send(()).unwrap();
        let _ = self.go_on.lock().unwrap().recv_timeout(PATIENCE);
        Ok(0)
    }
}

/// What was asked for while a handler kept the thread is refused, and not done later behind the asker's back.
#[test]
fn command_that_was_given_up_is_not_done_later() {
    let host = Host::new();
    let (enter, entered) = mpsc::sync_channel(1);
    let (go_on, gone_on) = mpsc::channel();
    host.service.register(1, DEVICE, Arc::new(Stuck { entered: enter, go_on: Mutex::new(gone_on) })).unwrap();
    let guest = Guest::new(&host, 1, SlotParams::default());

    let (while_stuck, status) = thread::scope(|scope| {
        let calling = scope.spawn(|| guest.call(0, b"").0);
        entered.recv_timeout(PATIENCE).unwrap();
        let while_stuck = host.service.register(2, DEVICE, Arc::new(Echo));
        go_on.send(()).unwrap();
        (while_stuck, calling.join().unwrap())
    });
    let afterwards = host.service.register(2, DEVICE, Arc::new(Echo));

    assert!(matches!(while_stuck, Err(Error::Busy(_))));
    assert!(afterwards.is_ok(), "{afterwards:?}");
    assert_eq!(STATUS_DONE, status);
}

/// After the end nothing works any more, and says so.
#[test]
fn closed_service_says_so() {
    let host = Host::new();
    host.service.close();

    let outcomes = [
        host.service.register(1, 1, Arc::new(Echo)).is_err_and(|error| matches!(error, Error::Closed(_))),
        host.service.detach(SlotId(1)).is_err_and(|error| matches!(error, Error::Closed(_))),
    ];

    assert_eq!([true, true], outcomes);
}
