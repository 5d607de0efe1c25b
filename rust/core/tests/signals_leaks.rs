//! Nothing leaks: a hundred thousand lines, with devices, sources and routes of their own, leave what was there before.
//!
//! Alone in its file, because other tests of one process open files and take memory at the same time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::signals::SignalTable;

const LINES: u32 = 100_000;
/// What an allocator may keep for itself.
const SLACK_BYTES: u64 = 8 << 20;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn cycle(table: &SignalTable, number: u32) {
    let line = table.create("g", &format!("device-{number}-{}", "x".repeat(100)), "n", number % 8).unwrap();
    let bell = Doorbell::create().unwrap();
    if number.is_multiple_of(128) {
        let source: OwnedFd = rustix::io::dup(&bell).unwrap();
        table.source_attach(line.id(), source).unwrap();
        bell.ring().unwrap();
    }
    if number.is_multiple_of(3) {
        table.raise_soon(line.id()).unwrap();
    }
    table.route_to_bell(line.id(), bell).unwrap();
    table.destroy(line.id()).unwrap();
}

#[test]
fn files_memory_and_counters_are_the_same_after_a_hundred_thousand_lines() {
    let counters = Arc::new(CounterFile::create(None, 1 << 16).unwrap());
    let files = open_files();
    let table = SignalTable::new(counters.clone()).unwrap();
    (0..1_000).for_each(|number| cycle(&table, number));
    let before = resident_bytes();

    (0..LINES).for_each(|number| cycle(&table, number));

    let now = resident_bytes();
    assert!(now < before + SLACK_BYTES, "{before} bytes before, {now} after");
    // The signal thread may still hold the line it was asked to raise last.
    drop(table);
    assert_eq!((files, 0), (open_files(), counters.reader().blocks().len()));
}
