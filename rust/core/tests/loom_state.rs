//! Every interleaving of publishing and sampling: what a sampler gets is one value, whole, and never an older one than
//! it had. Run by `tools/loom.sh`; each `VBNET_MUTANT` weakens one ordering and must make a model fail.
#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use loom::thread;
use vbnet_core::shm::state::{Sampled, record_on_heap};

fn samples_are_whole_and_in_order(published: u64, samples: u32) {
    loom::model(move || {
        let (mut publisher, sampler) = record_on_heap(2);

        let writer = thread::spawn(move || {
            for value in 1..=published {
                publisher.publish(value, &[value, value]);
            }
        });

        let mut newest = 0;
        for _ in 0..samples {
            let mut values = [0; 2];
            if let Sampled::Value { count, published_ns } = sampler.sample(&mut values) {
                assert_eq!([count; 3], [published_ns, values[0], values[1]], "torn");
                assert!(count >= newest, "an older value than before");
                newest = count;
            }
        }
        writer.join().unwrap();

        let mut values = [0; 2];
        assert_eq!(Sampled::Value { count: published, published_ns: published }, sampler.sample(&mut values));
        assert_eq!([published; 2], values);
    });
}

#[test]
fn first_value_is_seen_whole_or_not_at_all() {
    samples_are_whole_and_in_order(1, 2);
}

#[test]
fn slot_that_is_written_anew_while_it_is_read_is_not_believed() {
    samples_are_whole_and_in_order(3, 1);
}
