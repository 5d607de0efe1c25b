//! Every interleaving of a small ring: what the consumer sees was written before, what the producer reuses was read
//! before. Run by `tools/loom.sh`; each `VBNET_MUTANT` weakens one ordering and must make a model fail.
#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used, clippy::undocumented_unsafe_blocks)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use vbnet_core::shm::ring::{Descriptor, pair_on_heap};

const SLOTS: u32 = 2;
const FRAMES: u32 = 3;

/// Payload memory beside the ring: loom reports any access that is not ordered by the ring.
struct Payload(Vec<UnsafeCell<u32>>);

// SAFETY: the ring hands each cell to one side at a time; loom checks that it does.
unsafe impl Sync for Payload {}
// SAFETY: as above.
unsafe impl Send for Payload {}

#[test]
fn payload_and_slots_are_seen_whole_and_reused_only_after_their_return() {
    loom::model(|| {
        let (mut producer, mut consumer) = pair_on_heap(SLOTS);
        let payload = Arc::new(Payload((0..SLOTS).map(|_| UnsafeCell::new(0)).collect()));
        let written = payload.clone();

        let sender = thread::spawn(move || {
            for value in 1..=FRAMES {
                while producer.room() == 0 {
                    let count = producer.completed().unwrap();
                    for _ in 0..count {
                        assert_eq!(100, producer.peek(0).length, "the consumer's completion is in the slot");
                        assert!(producer.peek_newest().is_none_or(|newest| newest == producer.peek(0)));
                        producer.reap(1);
                    }
                    thread::yield_now();
                }
                let cell = (value - 1) % SLOTS;
                written.0[cell as usize].with_mut(|place| unsafe { *place = value });
                assert!(producer.stage(Descriptor::new(cell, value)));
                producer.publish();
            }
        });

        let mut expected = 1;
        while expected <= FRAMES {
            if consumer.available().unwrap() == 0 {
                thread::yield_now();
                continue;
            }
            let descriptor = consumer.peek(0);
            assert_eq!(expected, descriptor.length);
            assert!(consumer.peek_newest().is_none_or(|newest| newest == descriptor));
            payload.0[descriptor.offset as usize].with(|place| assert_eq!(expected, unsafe { *place }));
            consumer.complete(0, Descriptor::new(descriptor.offset, 100));
            consumer.advance(1);
            consumer.release();
            expected += 1;
        }
        sender.join().unwrap();
    });
}
