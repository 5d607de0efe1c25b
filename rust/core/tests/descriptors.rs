//! Nothing leaks: the process has as many open files and mappings after ten thousand refusals as before.
//!
//! Alone in its file, because other tests of one process open files at the same time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::os::fd::OwnedFd;

use rustix::fs::{self, MemfdFlags, SealFlags};
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::ring::{Consumer, Producer, RingMemory};

const CYCLES: u32 = 10_000;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Mappings of the kind this crate makes; the allocator's own come and go as it likes.
fn shared_mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains("memfd:")).count()
}

fn refused(seals: SealFlags) -> OwnedFd {
    let file = fs::memfd_create("refused", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    fs::ftruncate(&file, 8192).unwrap();
    fs::fallocate(&file, fs::FallocateFlags::empty(), 0, 8192).unwrap();
    fs::fcntl_add_seals(&file, seals).unwrap();
    file
}

/// Regions opened and refused at every stage, rings, doorbells and counters: all gone with their last owner.
#[test]
fn files_and_mappings_are_the_same_after_ten_thousand_cycles() {
    let complete = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let good = Ram::create("good", 3 * 4096).unwrap();
    let again = || rustix::io::dup(&*good).unwrap();
    let before = (open_files(), shared_mappings());

    for cycle in 0..CYCLES {
        match cycle % 5 {
            0 => assert!(Ram::open(refused(complete), u64::MAX).is_err(), "no header"),
            1 => assert!(Ram::open(refused(SealFlags::SHRINK), u64::MAX).is_err(), "seals missing"),
            2 => assert!(Ram::open(again(), 4096).is_err(), "above the quota"),
            3 => {
                let ram = Ram::open(again(), u64::MAX).unwrap();
                let ends = RingMemory::format(&ram, 4096, 16).unwrap();
                let (_producer, _consumer) = (Producer::new(ends.clone()), Consumer::new(ends));
            }
            _ => {
                let bell = Doorbell::create().unwrap();
                bell.ring().unwrap();
                let file = CounterFile::create(None, 4096).unwrap();
                let (_block, _reader) = (file.allocate("cycle", "", 4).unwrap(), file.reader());
            }
        }
    }

    assert_eq!(before, (open_files(), shared_mappings()));
}
