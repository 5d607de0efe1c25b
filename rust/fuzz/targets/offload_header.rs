//! Fuzz target: any offload header in front of any frame is refused, or is work that stays inside the frame.

#![no_main]

#[path = "../../core/tests/offload_harness/mod.rs"]
mod offload_harness;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((header, frame)) = bytes.split_first_chunk() {
        offload_harness::assert_harmless(header, frame);
    }
});
