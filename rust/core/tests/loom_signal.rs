//! Every interleaving of going to sleep and being signalled: nobody sleeps on work without a doorbell having rung.
//! Run by `tools/loom.sh`; each `VBNET_MUTANT` weakens one ordering and must make a model fail.
#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used, clippy::undocumented_unsafe_blocks)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use vbnet_core::shm::ring::{Descriptor, pair_on_heap};

/// How often the consumer looks before it gives up and the model looks at what is left.
const LOOKS: u32 = 2;

fn nobody_sleeps_on_work(frames: u32) {
    loom::model(move || {
        let (mut producer, mut consumer) = pair_on_heap(2);
        let bell = Arc::new(AtomicBool::new(false));
        let ringing = bell.clone();

        let sender = thread::spawn(move || {
            for index in 0..frames {
                assert!(producer.stage(Descriptor::new(index, 1)));
                producer.publish();
                if producer.notify() {
                    ringing.store(true, Ordering::Relaxed);
                }
            }
        });

        let mut seen = 0;
        let mut sleeps = false;
        for _ in 0..LOOKS {
            if consumer.arm().unwrap() {
                sleeps = true;
                break;
            }
            let count = consumer.available().unwrap();
            consumer.advance(count);
            consumer.release();
            seen += count;
        }

        sender.join().unwrap();
        if sleeps && seen < frames {
            assert!(
                bell.load(Ordering::Relaxed),
                "asleep with {} of {frames} frames unseen and no bell",
                frames - seen
            );
        }
    });
}

#[test]
fn one_frame_while_falling_asleep_is_seen_or_rings() {
    nobody_sleeps_on_work(1);
}

#[test]
fn two_frames_while_falling_asleep_are_seen_or_ring() {
    nobody_sleeps_on_work(2);
}

#[test]
fn the_producer_waiting_for_returned_slots_is_never_forgotten() {
    loom::model(|| {
        let (mut producer, mut consumer) = pair_on_heap(1);
        assert!(producer.stage(Descriptor::new(0, 1)));
        producer.publish();
        let bell = Arc::new(AtomicBool::new(false));
        let ringing = bell.clone();

        let returner = thread::spawn(move || {
            assert_eq!(1, consumer.available().unwrap());
            consumer.advance(1);
            consumer.release();
            if consumer.notify() {
                ringing.store(true, Ordering::Relaxed);
            }
        });

        producer.listener().acknowledge();
        let sleeps = producer.completed().unwrap() == 0 && producer.listener().arm();

        returner.join().unwrap();
        if sleeps {
            assert!(bell.load(Ordering::Relaxed), "asleep, the slot came back, and no bell");
        }
    });
}
