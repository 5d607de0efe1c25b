//! Every interleaving of a call and its answer: what is seen is whole, and nobody sleeps on it without a doorbell.
//! Run by `tools/loom.sh`; each `VBNET_MUTANT` weakens one ordering and must make a model fail.
#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used, clippy::undocumented_unsafe_blocks)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use vbnet_core::shm::fastcall::{Answer, DATA_BYTES, Request, STATUS_DONE, Waiting, pair_on_heap};

const ASKED: [u8; 8] = [1; 8];
const ANSWERED: [u8; 8] = [2; 8];

#[test]
fn a_request_that_is_seen_is_whole() {
    loom::model(|| {
        let (mut caller, mut server) = pair_on_heap();

        let calling = thread::spawn(move || {
            let _ = caller.begin(7, 9, &ASKED);
        });
        let mut data = [0; DATA_BYTES];
        let taken = server.take(&mut data).unwrap();

        calling.join().unwrap();
        if let Some(request) = taken {
            assert_eq!(Request { device: 7, function: 9, length: 8 }, request);
            assert_eq!(ASKED, data[..8]);
        }
    });
}

#[test]
fn an_answer_that_is_seen_is_whole() {
    loom::model(|| {
        let (mut caller, mut server) = pair_on_heap();
        let _ = caller.begin(7, 9, &ASKED);

        let answering = thread::spawn(move || {
            server.take(&mut [0; DATA_BYTES]).unwrap().unwrap();
            let _ = server.answer(STATUS_DONE, 3, &ANSWERED);
        });
        let mut data = [0; DATA_BYTES];
        let answered = caller.poll(&mut data).unwrap();

        answering.join().unwrap();
        if let Some(answer) = answered {
            assert_eq!(Answer { status: STATUS_DONE, trap_ns: 3, length: 8 }, answer);
            assert_eq!(ANSWERED, data[..8]);
        }
    });
}

#[test]
fn a_service_falling_asleep_sees_the_call_or_is_rung() {
    loom::model(|| {
        let (mut caller, mut server) = pair_on_heap();
        let bell = Arc::new(AtomicBool::new(false));
        let ringing = bell.clone();

        let calling = thread::spawn(move || {
            if caller.begin(7, 9, &ASKED) {
                ringing.store(true, Ordering::Relaxed);
            }
        });
        let sleeps = server.arm();

        calling.join().unwrap();
        if sleeps {
            assert!(bell.load(Ordering::Relaxed), "asleep, a call under way, and no bell");
        } else {
            assert!(server.take(&mut [0; DATA_BYTES]).unwrap().is_some());
        }
    });
}

#[test]
fn a_caller_falling_asleep_sees_the_answer_or_is_rung() {
    loom::model(|| {
        let (mut caller, mut server) = pair_on_heap();
        let _ = caller.begin(7, 9, &ASKED);
        let bell = Arc::new(AtomicBool::new(false));
        let ringing = bell.clone();

        let answering = thread::spawn(move || {
            server.take(&mut [0; DATA_BYTES]).unwrap().unwrap();
            if server.answer(STATUS_DONE, 0, &ANSWERED) {
                ringing.store(true, Ordering::Relaxed);
            }
        });
        let mut data = [0; DATA_BYTES];
        let waiting = caller.arm(&mut data).unwrap();

        answering.join().unwrap();
        match waiting {
            Waiting::Asleep => assert!(bell.load(Ordering::Relaxed), "asleep, answered, and no bell"),
            Waiting::Again => assert!(caller.poll(&mut data).unwrap().is_some()),
            Waiting::Over(_) => assert_eq!(ANSWERED, data[..8]),
        }
    });
}
