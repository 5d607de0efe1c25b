//! Every interleaving of a thread that declares and a host that copies: a copy is whole, or none.
//! Run by `tools/loom.sh`; each `VBNET_MUTANT` weakens one ordering and must make a model fail.
#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use loom::thread;
use vbnet_core::shm::sched::{Declaration, HeapRecord};

fn declaration(number: u32) -> Declaration {
    Declaration { tid: number, class: number, ..Declaration::default() }
}

#[test]
fn copy_is_of_one_declaration() {
    loom::model(|| {
        let record = HeapRecord::new();
        let writing = record.clone();

        let writer = thread::spawn(move || {
            writing.publish(&declaration(1));
            writing.publish(&declaration(2));
        });
        let copy = record.sample();

        writer.join().unwrap();
        if let Some((sequence, copy)) = copy {
            assert_eq!(declaration(sequence / 2), copy);
        }
    });
}
