//! Fuzz target: a packed virtqueue in memory that says anything leads into that memory or to a fault.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vbnet_core::virtio::walk::Walk;

fuzz_target!(|walk: Walk| walk.packed());
