//! Memory of a driver for tests of queues: two regions, each behind the other for descriptors, and nothing behind them.

#![allow(clippy::unwrap_used)]
#![cfg_attr(fuzzing, allow(dead_code, reason = "a walk needs less of it than tests do"))]

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::memory::{GuestMemory, RegionAt};
use super::queue::{Ahead, Chain};

/// The first guest address, the bytes of each region, and the address behind the second.
pub(super) const GUEST: u64 = 0x10000;
pub(super) const BYTES: u64 = 0x8000;
pub(super) const END: u64 = GUEST + 2 * BYTES;
/// Where the front end has the first region.
pub(super) const USER: u64 = 0x7f00_0000;
/// Where buffers and indirect tables are, counted from the first guest address.
pub(super) const BUFFERS: u64 = 0x1000;

/// The guest address of a buffer.
pub(super) const fn buffer(number: u64) -> u64 {
    GUEST + BUFFERS + number * 0x100
}

pub(super) struct TestMemory(Arc<GuestMemory>);

impl TestMemory {
    pub(super) fn new() -> Self {
        let memfd = || {
            let file = memfd_create("driver", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, BYTES).unwrap();
            File::from(file)
        };
        let at = |number: u64| RegionAt {
            guest: GUEST + number * BYTES,
            size: BYTES,
            user: USER + 2 * number * BYTES,
            offset: 0,
        };
        Self(Arc::new(GuestMemory::map([(at(0), memfd()), (at(1), memfd())]).unwrap()))
    }

    pub(super) fn whole(&self) -> Arc<GuestMemory> {
        self.0.clone()
    }

    /// Where the byte at `offset` from the first guest address is.
    pub(super) fn place(&self, offset: u64) -> *mut u8 {
        self.0.place(&mut 0, GUEST + offset, 1).unwrap().0.as_ptr()
    }

    /// Whether bytes are within one of the regions, where this process has them.
    pub(super) fn holds(&self, place: *const u8, bytes: u32) -> bool {
        [0, BYTES].into_iter().any(|region| {
            let start = self.place(region).addr() as u64;
            let at = place.addr() as u64;
            start <= at && at + u64::from(bytes) <= start + BYTES
        })
    }

    pub(super) fn word(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: mapped for as long as the memory is; offsets of tests are even.
        unsafe { AtomicU16::from_ptr(self.place(offset).cast()) }
    }

    pub(super) fn double_word(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: as above; offsets of tests are multiples of 4.
        unsafe { AtomicU32::from_ptr(self.place(offset).cast()) }
    }

    /// Writes a descriptor, byte by byte: address, length and two words.
    pub(super) fn describe(&self, offset: u64, address: u64, length: u32, [first, second]: [u16; 2]) {
        let bytes =
            [&address.to_le_bytes()[..], &length.to_le_bytes(), &first.to_le_bytes(), &second.to_le_bytes()].concat();
        for (at, byte) in bytes.into_iter().enumerate() {
            // SAFETY: tests keep tables within the two regions.
            unsafe { self.place(offset + at as u64).write_volatile(byte) };
        }
    }
}

/// Bytes of each piece of a chain.
pub(super) fn lengths(chain: &Chain, ahead: &Ahead) -> Vec<u32> {
    if chain.pieces == 0 {
        return vec![chain.bytes];
    }
    ahead.pieces_of(chain).iter().map(|piece| piece.bytes).collect()
}
