//! A fastcall slot: what one end writes is what the other reads, and what cannot be is a fault of whoever wrote it.
//!
//! The peer is played by raw stores at the byte offsets of `docs/wire/fastcall.md`, written down here a second time.
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour fastcall_slot` looks longer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::error::{Error, Fault};
use vbnet_core::shm::fastcall::{
    Answer, Caller, DATA_BYTES, Request, STATUS_DONE, Server, SlotMemory, Waiting, pair_on_heap, pair_starting_at,
};
use vbnet_core::shm::region::Ram;

const SLOT: u32 = 4096;
const SLOT_BYTES: u32 = 0x600;
const MAGIC: u32 = 0;
const VERSION: u32 = 4;
const REQUEST_SEQUENCE: u32 = 0x80;
const REQUEST_LENGTH: u32 = 0x8c;
const ANSWER_SEQUENCE: u32 = 0x200;
const ANSWER_LENGTH: u32 = 0x20c;
const SIGNAL_MAGIC: u32 = 0x380;
const SIGNAL_VERSION: u32 = 0x384;

fn ram() -> Arc<Ram> {
    Ram::create("fastcall", 3 * 4096).unwrap()
}

fn scribble(ram: &Arc<Ram>, field: u32, value: u32) {
    let place = ram.at(SLOT + field, 4).unwrap();
    // SAFETY: in bounds, aligned, accessed by atomics only, and borrowed from the region that maps it.
    unsafe { place.cast::<AtomicU32>().as_ref() }.store(value, Ordering::SeqCst);
}

/// Both ends of a slot in guest RAM, as guest and host have them.
fn ends(ram: &Arc<Ram>) -> (Caller, Server) {
    let caller = Caller::new(SlotMemory::format(ram, SLOT).unwrap());
    (caller, Server::new(SlotMemory::attach(ram, SLOT, SLOT_BYTES).unwrap()))
}

fn bad_size(what: &'static str, found: u64, limit: u64) -> Fault {
    Fault::BadSize { what, found, limit }
}

proptest! {
    #[test]
    fn prop_calls_and_answers_come_through_whole(
        first in prop_oneof![Just(0), Just(u32::MAX - 1), any::<u32>()],
        calls in vec((any::<u32>(), any::<u32>(), vec(any::<u8>(), 0..=DATA_BYTES), vec(any::<u8>(), 0..=DATA_BYTES)), 1..6),
    ) {
        let (mut caller, mut server) = pair_starting_at(first);
        let mut data = [0; DATA_BYTES];

        for (device, function, asked, answered) in calls {
            prop_assert_eq!(Ok(None), server.take(&mut data));
            let _ = caller.begin(device, function, &asked);
            let length = asked.len() as u32;
            prop_assert_eq!(Ok(Some(Request { device, function, length })), server.take(&mut data));
            prop_assert_eq!(&asked[..], &data[..asked.len()]);
            prop_assert_eq!(Ok(None), caller.poll(&mut data));
            let _ = server.answer(5, 6, &answered);
            let length = answered.len() as u32;
            prop_assert_eq!(Ok(Some(Answer { status: 5, trap_ns: 6, length })), caller.poll(&mut data));
            prop_assert_eq!(&answered[..], &data[..answered.len()]);
            prop_assert!(!caller.is_under_way());
        }
    }

    #[test]
    fn prop_only_the_next_sequence_is_a_request(taken in any::<u32>(), found in any::<u32>()) {
        let ram = ram();
        SlotMemory::format(&ram, SLOT).unwrap();
        let mut server = Server::starting_at(SlotMemory::attach(&ram, SLOT, SLOT_BYTES).unwrap(), taken);
        let next = taken.wrapping_add(1);

        scribble(&ram, REQUEST_SEQUENCE, found);
        let outcome = server.take(&mut [0; DATA_BYTES]);

        match outcome {
            Ok(None) => prop_assert_eq!(taken, found),
            Ok(Some(_)) => prop_assert_eq!(next, found),
            Err(fault) => prop_assert_eq!(bad_size("fastcall sequence", found.into(), next.into()), fault),
        }
    }

    #[test]
    fn prop_request_of_any_length_is_taken_without_reading_beyond(length in any::<u32>()) {
        let ram = ram();
        let (mut caller, mut server) = ends(&ram);
        let _ = caller.begin(1, 2, &[7; DATA_BYTES]);
        scribble(&ram, REQUEST_LENGTH, length);
        let mut data = [0; DATA_BYTES];

        let request = server.take(&mut data).unwrap().unwrap();

        prop_assert_eq!(Request { device: 1, function: 2, length }, request);
        let copied = if length as usize > DATA_BYTES { 0 } else { length as usize };
        prop_assert!(data[..copied].iter().all(|&byte| byte == 7));
    }

    #[test]
    fn prop_answer_that_cannot_be_is_the_hosts_fault(sequence in any::<u32>(), length in any::<u32>()) {
        let ram = ram();
        let (mut caller, _server) = ends(&ram);
        let _ = caller.begin(1, 2, &[]);
        scribble(&ram, ANSWER_SEQUENCE, sequence);
        scribble(&ram, ANSWER_LENGTH, length);

        let outcome = caller.poll(&mut [0; DATA_BYTES]);

        let expected = match sequence {
            0 => Ok(None),
            1 if length as usize <= DATA_BYTES => Ok(Some(Answer { status: STATUS_DONE, trap_ns: 0, length })),
            1 => Err(bad_size("fastcall answer length", length.into(), DATA_BYTES as u64)),
            _ => Err(bad_size("fastcall answer sequence", sequence.into(), 1)),
        };
        prop_assert_eq!(expected, outcome);
    }
}

/// A sleeping host is rung for the first call only; a sleeping caller for its answer.
#[test]
fn sleepers_are_rung_once_and_those_awake_never() {
    let (mut caller, mut server) = pair_on_heap();
    let mut data = [0; DATA_BYTES];

    let is_asleep = server.arm();
    let rings_host = caller.begin(1, 2, &[]);
    let is_caller_asleep = caller.arm(&mut data).unwrap();
    server.disarm();
    server.take(&mut data).unwrap().unwrap();
    let rings_caller = server.answer(STATUS_DONE, 0, &[]);
    caller.disarm();
    caller.poll(&mut data).unwrap().unwrap();
    let rings_awake = caller.begin(1, 2, &[]);

    assert_eq!((true, true, Waiting::Asleep), (is_asleep, rings_host, is_caller_asleep));
    assert_eq!((true, false), (rings_caller, rings_awake));
}

/// Data that changes after the request was taken changes nothing any more.
#[test]
fn request_that_changes_during_the_call_was_copied_before() {
    let ram = ram();
    let (mut caller, mut server) = ends(&ram);
    let _ = caller.begin(1, 2, b"first");
    let mut data = [0; DATA_BYTES];

    let request = server.take(&mut data).unwrap().unwrap();
    scribble(&ram, REQUEST_LENGTH, u32::MAX);
    scribble(&ram, REQUEST_LENGTH + 4, 0);

    assert_eq!((5, &b"first"[..]), (request.length, &data[..5]));
}

/// Wherever a slot cannot be, and whatever its head says otherwise, the host refuses it.
#[test]
fn slots_that_cannot_be_are_refused() {
    let ram = ram();
    SlotMemory::format(&ram, SLOT).unwrap();
    let outcome = |offset, length| SlotMemory::attach(&ram, offset, length).map(drop);

    let wrong = [outcome(SLOT + 64, SLOT_BYTES), outcome(0, SLOT_BYTES), outcome(3 * 4096 - 128, SLOT_BYTES)];
    let lengths = [0, SLOT_BYTES - 1, SLOT_BYTES + 1, u32::MAX].map(|length| outcome(SLOT, length));
    let heads = [MAGIC, VERSION, SIGNAL_MAGIC, SIGNAL_VERSION].map(|field| {
        SlotMemory::format(&ram, SLOT).unwrap();
        scribble(&ram, field, 0xdead);
        outcome(SLOT, SLOT_BYTES)
    });

    assert!(matches!(
        wrong,
        [Err(Fault::BadSize { .. }), Err(Fault::OverlapsControl { .. }), Err(Fault::OutsideRegion { .. })]
    ));
    assert!(lengths.iter().all(|outcome| matches!(outcome, Err(Fault::BadSize { .. }))));
    assert!(heads.iter().all(|outcome| matches!(outcome, Err(Fault::BadHeader { .. }))));
    assert!(matches!(SlotMemory::format(&ram, SLOT + 64), Err(Error::Usage(_))));
}
