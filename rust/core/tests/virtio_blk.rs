//! A disk from end to end: our driver, and the crate's own, over every transport.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::os::unix::fs::FileExt;

use crate::virtio_bench::{Bench, patience};
use vbnet_core::error::Error;
use vbnet_core::guest::virtio::arena::RamHal;
use vbnet_core::guest::virtio::disk::Disk;
use vbnet_core::guest::virtio::transport::BusTransport;
use vbnet_core::virtio::device::Transport;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::Transport as _;

const BYTES: usize = 1 << 20;

fn disks() -> impl Iterator<Item = (&'static str, Bench, Disk)> {
    Transport::ALL.into_iter().map(|(transport, name)| {
        let bench = Bench::new(BYTES, false, transport);
        let disk = Disk::start(bench.registers(), &bench.arena).unwrap();
        (name, bench, disk)
    })
}

fn read(disk: &mut Disk, offset: u64, bytes: usize) -> Vec<u8> {
    let mut found = vec![0; bytes];
    let take = |at: usize, chunk: &[u8]| found[at..at + chunk.len()].copy_from_slice(chunk);
    assert!(disk.read_at(offset, bytes as u64, patience(), take).unwrap());
    found
}

fn write(disk: &mut Disk, offset: u64, content: &[u8]) {
    let give = |at: usize, chunk: &mut [u8]| chunk.copy_from_slice(&content[at..at + chunk.len()]);
    assert!(disk.write_at(offset, content.len() as u64, patience(), give).unwrap());
}

/// Whole, in part, across chunks, and at both ends.
#[test]
fn what_is_read_is_what_the_file_holds() {
    for (name, bench, mut disk) in disks() {
        for (offset, bytes) in [(0, 512), (0, BYTES), (1, 1), (511, 2), (700, 100_000), (BYTES as u64 - 3, 3)] {
            let mut expected = vec![0; bytes];
            bench.file.read_exact_at(&mut expected, offset).unwrap();

            assert_eq!(expected, read(&mut disk, offset, bytes), "{name} {offset} {bytes}");
        }
    }
}

#[test]
fn what_is_written_is_in_the_file_and_nothing_else_is() {
    for (name, bench, mut disk) in disks() {
        let mut expected = vec![0; BYTES];
        bench.file.read_exact_at(&mut expected, 0).unwrap();
        for (offset, bytes, value) in [(0, 512, 1), (100, 50, 2), (500, 30, 3), (4096, 300_000, 4), (BYTES - 1, 1, 5)] {
            let content = vec![value; bytes];
            write(&mut disk, offset as u64, &content);
            expected[offset..offset + bytes].copy_from_slice(&content);
        }
        assert!(disk.flush(patience()).unwrap());

        let mut found = vec![0; BYTES];
        bench.file.read_exact_at(&mut found, 0).unwrap();
        assert!(expected == found, "{name}");
    }
}

#[test]
fn serial_and_size_are_those_of_the_disk() {
    for (name, _bench, mut disk) in disks() {
        let serial = disk.serial(patience()).unwrap();
        assert_eq!((Some("serial-1".into()), BYTES as u64 / 512), (serial, disk.sectors()), "{name}");
    }
}

#[test]
fn zeroes_and_discards_reach_the_file() {
    let bench = Bench::new(BYTES, false, Transport::Vbus);
    let mut disk = Disk::start(bench.registers(), &bench.arena).unwrap();

    assert!(disk.discard(65536, 65536, true, patience()).unwrap());
    assert!(disk.discard(0, 4096, false, patience()).unwrap());

    assert_eq!(vec![0; 65536], read(&mut disk, 65536, 65536));
    assert_eq!(vec![0; 4096], read(&mut disk, 0, 4096));
    assert_eq!(BYTES as u64, bench.file.metadata().unwrap().len());
}

#[test]
fn place_behind_the_end_is_refused_before_anything_is_sent() {
    let bench = Bench::new(BYTES, false, Transport::Vbus);
    let mut disk = Disk::start(bench.registers(), &bench.arena).unwrap();
    let end = BYTES as u64;

    for (offset, bytes) in [(end, 1), (end - 1, 2), (u64::MAX, 2), (0, u64::MAX)] {
        assert!(matches!(disk.read_at(offset, bytes, patience(), |_, _| ()), Err(Error::Usage(_))));
        assert!(matches!(disk.write_at(offset, bytes, patience(), |_, _| ()), Err(Error::Usage(_))));
    }
    assert!(matches!(disk.discard(1, 512, false, patience()), Err(Error::Usage(_))));
}

#[test]
fn disk_that_may_only_be_read_stays_as_it_is() {
    let bench = Bench::new(BYTES, true, Transport::Vbus);
    let mut disk = Disk::start(bench.registers(), &bench.arena).unwrap();

    assert!(disk.is_read_only());
    assert!(matches!(disk.write_at(0, 512, patience(), |_, _| ()), Err(Error::Machine { .. })));
    assert_eq!(vec![0; 512], read(&mut disk, 0, 512));
}

/// A file that shrank under its disk answers errors where it is missing, and goes on elsewhere.
#[test]
fn file_that_shrank_fails_where_it_is_missing() {
    let bench = Bench::new(BYTES, false, Transport::Vbus);
    let mut disk = Disk::start(bench.registers(), &bench.arena).unwrap();
    bench.file.set_len(4096).unwrap();

    let missing = disk.read_at(8192, 512, patience(), |_, _| ());

    assert!(matches!(missing, Err(Error::Machine { .. })), "{missing:?}");
    assert_eq!(vec![7; 512], read(&mut disk, 7 * 512, 512));
}

/// The crate's block driver, as it is, over every transport.
#[test]
fn driver_of_the_crate_runs_unchanged() {
    for (transport, name) in Transport::ALL {
        let bench = Bench::new(BYTES, false, transport);
        bench.arena.enter(|| {
            let transport = BusTransport::open(bench.registers(), &bench.arena).unwrap();
            let failure = transport.failure();
            let mut blk = VirtIOBlk::<RamHal, _>::new(transport).unwrap();
            let mut id = [0; 20];
            let length = blk.device_id(&mut id).unwrap();
            let mut sectors = [0; 1024];
            blk.read_blocks(5, &mut sectors).unwrap();
            blk.write_blocks(9, &[0xab; 512]).unwrap();
            blk.flush().unwrap();

            assert_eq!((b"serial-1".as_slice(), BYTES as u64 / 512), (&id[..length], blk.capacity()), "{name}");
            assert_eq!((5, 6), (sectors[0], sectors[1023]), "{name}");
            drop(blk);
            failure.take().unwrap();
        });
        let mut found = [0; 512];
        bench.file.read_exact_at(&mut found, 9 * 512).unwrap();
        assert_eq!([0xab; 512], found, "{name}");
    }
}

/// Disks one after the other in one arena: what a driver took is there again when it ended.
#[test]
fn driver_starts_again_after_a_reset() {
    let bench = Bench::new(BYTES, false, Transport::Vbus);
    bench.arena.enter(|| {
        let room = bench.arena.room();
        for _ in 0..3 {
            let mut transport = BusTransport::open(bench.registers(), &bench.arena).unwrap();
            transport.set_status(virtio_drivers::transport::DeviceStatus::empty());
            drop(transport);
            assert_eq!(room, bench.arena.room());
        }
    });
}
