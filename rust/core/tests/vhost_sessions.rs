//! The life of vhost-user front ends: they come, stop and go in any order, say what cannot be, and break their rings.
//!
//! Each test of bad input ends with a frame between others: whatever a front end does, it does to itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::switch_guest::{Guest, Lab, SWITCH, Shape, eventually, frame, mac};
use crate::vhost_front::verdict::{CONTENT, MESSAGE, assert_quarantined, assert_quarantined_of, assert_refused, told};
use crate::vhost_front::{
    ADD_MEM_REG, Entry, FEATURES, FrontEnd, GET_CONFIG, GET_FEATURES, GET_INFLIGHT_FD, GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM, GET_VRING_BASE, GUEST, HEADER, INDIRECT, INDIRECT_DESCRIPTORS, KINDS, MEMORY, Memory, NEXT, PACKED,
    PROTOCOL, REM_MEM_REG, RESET_DEVICE, SEND_RARP, SET_FEATURES, SET_INFLIGHT_FD, SET_MEM_TABLE,
    SET_PROTOCOL_FEATURES, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_ERR,
    SET_VRING_KICK, SET_VRING_NUM, SIZE, USER, WRITE, Wire, add_port, addresses, counted, describe, inflight, longs,
    memfd, socket_path, table, wait_until_alone, words,
};
use rustix::fs::{OFlags, fcntl_setfl, ftruncate};
use vbnet_core::error::Error;
use vbnet_core::fabric::{VenetParams, VhostUserCounter};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::{PortCounter, PortPart};
use vbnet_core::shm::doorbell::Doorbell;

// ---- coming and going ----------------------------------------------------------------------------------------------

#[test]
fn front_ends_come_and_go_without_limit_and_frames_pass_again() {
    let mut lab = Lab::new(1);
    let path = add_port(&lab, "vm");

    for number in 0..20 {
        let mut front = FrontEnd::new(&path);
        let there = frame(MacAddress::BROADCAST, mac(1), 64, number);
        front.send(&there);
        assert_eq!(there, lab.guests[0].receive());
        lab.guests[0].refill();
        let back = frame(mac(1), mac(2), 64, number);
        lab.guests[0].send(&back);
        assert_eq!(back, front.receive());
        drop(front);
        wait_until_alone(&lab, "vm");
    }

    assert_eq!(20, counted(&lab, "vm", VhostUserCounter::Connections));
    assert_eq!(0, lab.fabric.take_faults().len());
}

/// The second waits in the socket's queue until the first has gone.
#[test]
fn second_front_end_waits_for_the_first() {
    let lab = Lab::new(0);
    let path = add_port(&lab, "vm");
    let first = FrontEnd::new(&path);
    let mut second = Wire::connect(&path);
    second.send(GET_FEATURES, 0, &[], &[]);
    assert_eq!(1, counted(&lab, "vm", VhostUserCounter::Connections));
    assert_eq!(Some(true), lab.fabric.ports().unwrap().pop().unwrap().has_waiting);

    drop(first);

    assert_eq!(FEATURES, FEATURES & u64::from_le_bytes(second.reply().try_into().unwrap()));
    assert_eq!(Some(false), lab.fabric.ports().unwrap().pop().unwrap().has_waiting);
}

/// Stopped and started over and over, with frames under way both ways: none is lost, none comes twice.
#[test]
fn stopped_queue_goes_on_where_it_was() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), features);
        let mut sent = 0_u8;
        let mut received = Vec::new();

        for round in 0..20 {
            for _ in 0..5 {
                front.send(&frame(MacAddress::BROADCAST, mac(1), 64, sent));
                sent += 1;
            }
            let base = front.stop_queue(1);
            // What is made available now is for later.
            front.send(&frame(MacAddress::BROADCAST, mac(1), 64, sent));
            sent += 1;
            lab.barrier();
            while front.tx.used(&front.memory).is_some() {}
            // Of a packed queue told twice: what is looked at next, and what is used next.
            let told = if front.tx.packed.is_some() { base & 0xffff } else { base };
            assert_eq!(told, front.tx.base());
            assert!(front.tx.packed.is_none() || base >> 16 == base & 0xffff);
            front.start_queue(1);
            front.drain();
            lab.barrier();
            received.extend(lab.guests[0].received());
            lab.guests[0].refill();
            assert_eq!((round + 1) * 6, received.len());
        }

        let expected: Vec<Vec<u8>> = (0..sent).map(|seed| frame(MacAddress::BROADCAST, mac(1), 64, seed)).collect();
        assert_eq!(expected, received);
    }
}

/// A front end that restarts with the memory and the queues it had goes on where the used rings say.
#[test]
fn reconnected_front_end_loses_and_doubles_nothing() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let path = add_port(&lab, "vm");
        let mut front = FrontEnd::with(&path, features);
        for seed in 0..7 {
            front.send(&frame(MacAddress::BROADCAST, mac(1), 64, seed));
        }
        front.drain();

        let FrontEnd { wire, memory, rx, tx, .. } = front;
        drop(wire);
        let back = frame(mac(1), mac(2), 64, 99);
        let mut front = FrontEnd { memory, rx, tx, ..FrontEnd::bare(&path, features) };
        let body = table(&[[GUEST, MEMORY, USER, 0]]);
        front.wire.done(SET_MEM_TABLE, &body, &[front.memory.file.as_fd()]);
        front.send(&frame(MacAddress::BROADCAST, mac(1), 64, 7));
        front.start();
        front.drain();
        lab.barrier();
        lab.guests[0].send(&back);

        let expected: Vec<Vec<u8>> = (0..8).map(|seed| frame(MacAddress::BROADCAST, mac(1), 64, seed)).collect();
        assert_eq!(expected, lab.guests[0].received());
        assert_eq!(back, front.receive());
    }
}

/// A front end that listens is connected to, whether it was there first or not, and again when it comes back.
#[test]
fn front_end_that_listens_is_connected_to_again_and_again() {
    let mut lab = Lab::new(1);
    let path = socket_path();
    lab.fabric.port_join_vhost_user(SWITCH, "vm", &path, VenetParams::default()).unwrap();

    for number in 0..3 {
        let listener = UnixListener::bind(&path).unwrap();
        let mut front = FrontEnd::over(listener.accept().unwrap().0, FEATURES);
        front.start();
        front.post(SIZE);
        let there = frame(MacAddress::BROADCAST, mac(1), 64, number);
        front.send(&there);
        assert_eq!(there, lab.guests[0].receive());
        lab.guests[0].refill();
        let back = frame(mac(1), mac(2), 64, number);
        lab.guests[0].send(&back);
        assert_eq!(back, front.receive());
        drop((front, listener));
        fs::remove_file(&path).unwrap();
        wait_until_alone(&lab, "vm");
    }

    let id = lab.fabric.ports().unwrap().iter().find(|port| port.name == "vm").unwrap().id;
    lab.fabric.port_remove(id).unwrap();
}

/// Where a packed queue is nobody tells but the region: its host goes on there, whatever base it is told.
#[test]
fn queue_goes_on_where_the_region_for_chains_in_flight_says() {
    for features in KINDS {
        let mut lab = Lab::new(1);
        let path = add_port(&lab, "vm");
        let mut front = FrontEnd::bare(&path, features);
        let region = front.track();
        front.hand_over(&region);
        front.start();
        front.post(SIZE);
        for seed in 0..70 {
            front.send(&frame(MacAddress::BROADCAST, mac(1), 64, seed));
            assert_eq!(1, lab.guests[0].receive().len() / 64);
            lab.guests[0].refill();
        }
        front.drain();
        let mut front = front.rejoin(&path);
        front.hand_over(&region);
        let truth = front.tx.base();
        front.start();
        front.wire.done(SET_VRING_BASE, &words(&[1, 0]), &[]);

        front.send(&frame(MacAddress::BROADCAST, mac(1), 64, 70));

        assert_eq!(frame(MacAddress::BROADCAST, mac(1), 64, 70), lab.guests[0].receive());
        front.drain();
        let before = if features & PACKED == 0 { truth + 1 } else { (truth & !0x3f) | ((truth + 1) & 0x3f) };
        assert_eq!(before, front.stop_queue(1) & 0xffff);
    }
}

#[test]
fn memory_table_is_replaced_while_queues_run() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::new(&add_port(&lab, "vm"));
    let more = memfd(0x10000);
    let far = GUEST + (1 << 32);

    for regions in 1..=2 {
        let all = [[GUEST, MEMORY, USER, 0], [far, 0x10000, USER + (1 << 32), 0]];
        let files = [front.memory.file.as_fd(), more.as_fd()];
        front.wire.done(SET_MEM_TABLE, &table(&all[..regions]), &files[..regions]);
        let sent = frame(MacAddress::BROADCAST, mac(1), 64, regions as u8);
        front.send(&sent);
        assert_eq!(sent, lab.guests[0].receive());
    }
    let sent = [&[0; HEADER][..], &frame(MacAddress::BROADCAST, mac(1), 64, 9)].concat();
    rustix::io::pwrite(&more, &sent, 0x1000).unwrap();
    front.tx.describe(&front.memory, 0, (far + 0x1000, sent.len() as u32, 0, 0));
    front.offer_tx(0);

    assert_eq!(sent[HEADER..], lab.guests[0].receive());
}

#[test]
fn device_that_is_reset_is_set_up_anew() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::new(&add_port(&lab, "vm"));

    front.wire.done(RESET_DEVICE, &[], &[]);
    front.send(&frame(MacAddress::BROADCAST, mac(1), 64, 1));
    lab.barrier();
    let while_reset = lab.guests[0].received().len();
    front.wire.done(SET_FEATURES, &longs(&[FEATURES]), &[]);
    front.start();

    assert_eq!(0, while_reset);
    assert_eq!(frame(MacAddress::BROADCAST, mac(1), 64, 1), lab.guests[0].receive());
}

#[test]
fn port_that_is_removed_hangs_up_and_takes_its_socket_along() {
    let lab = Lab::new(0);
    let path = add_port(&lab, "vm");
    let id = lab.fabric.ports().unwrap()[0].id;
    let front = FrontEnd::new(&path);
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;

    lab.fabric.port_remove(id).unwrap();

    front.wire.assert_hung_up();
    assert_eq!((0o600, false), (mode, path.exists()));
}

/// The fabric closes although a front end has stopped in the middle of a message.
#[test]
fn front_end_that_hangs_holds_nobody_up() {
    let lab = Lab::new(0);
    let wire = Wire::connect(&add_port(&lab, "vm"));
    wire.raw(&words(&[SET_FEATURES, 1]), &[]);
    eventually(|| counted(&lab, "vm", VhostUserCounter::IsConnected) == 1);

    lab.fabric.close();

    wire.assert_hung_up();
}

/// Threats 68 and 69: what is at the path is left alone, unless it is a socket that nobody listens on.
#[test]
fn path_that_is_taken_is_left_alone() {
    let lab = Lab::new(0);
    let add = |path: &Path| lab.fabric.port_add_vhost_user(SWITCH, "vm", path, VenetParams::default());
    let (file, link, live, dead) = (socket_path(), socket_path(), socket_path(), socket_path());
    fs::write(&file, "kept").unwrap();
    std::os::unix::fs::symlink("/nowhere", &link).unwrap();
    let listener = UnixListener::bind(&live).unwrap();
    drop(UnixListener::bind(&dead).unwrap());

    for taken in [&file, &link, &live] {
        assert!(matches!(add(taken), Err(Error::Exists(_))), "{}", taken.display());
    }
    assert!(matches!(add(Path::new("relative.sock")), Err(Error::Usage(_))));
    let long = format!("/tmp/{}", "x".repeat(120));
    assert!(matches!(add(Path::new(&long)), Err(Error::Usage(_))));
    let replaced = add(&dead);

    assert!(replaced.is_ok());
    assert_eq!("kept", fs::read_to_string(&file).unwrap());
    drop(listener);
    [file, link, live].iter().for_each(|path| fs::remove_file(path).unwrap());
}

// ---- what is offered -----------------------------------------------------------------------------------------------

#[test]
fn address_and_pairs_are_told_in_the_configuration() {
    let lab = Lab::new(0);
    let path = socket_path();
    let params = VenetParams { mac: mac(0x77), ..VenetParams::default() };
    lab.fabric.port_add_vhost_user(SWITCH, "vm", &path, params).unwrap();
    let mut wire = Wire::connect(&path);
    let features = wire.ask_u64(GET_FEATURES);
    wire.ask_u64(GET_PROTOCOL_FEATURES);
    wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[1 | 8 | 0x200]), &[]);

    let pairs = wire.ask_u64(GET_QUEUE_NUM);
    let config = wire.ask(GET_CONFIG, &[words(&[0, 10, 0]), vec![0; 10]].concat());

    assert_ne!(0, features & 1 << 5);
    assert_eq!(8, pairs);
    assert_eq!([&mac(0x77).bytes()[..], &[1, 0, 8, 0]].concat(), config[12..]);
}

/// The switch knows a port's own address before anything came out of it, and believes nobody else who uses it.
#[test]
fn address_of_a_port_is_its_own() {
    let mut lab = Lab::new(2);
    let path = socket_path();
    let params = VenetParams { mac: mac(0x77), ..VenetParams::default() };
    lab.fabric.port_add_vhost_user(SWITCH, "vm", &path, params).unwrap();
    let mut front = FrontEnd::new(&path);

    lab.guests[0].send(&frame(mac(0x77), mac(1), 64, 1));
    lab.guests[1].send(&frame(mac(1), mac(0x77), 64, 2));
    lab.settle();

    assert_eq!(frame(mac(0x77), mac(1), 64, 1), front.receive());
    assert_eq!(0, lab.guests[1].received().len());
    assert_eq!(1, lab.count(1, PortCounter::TransmitDropForgedSource));
}

// ---- messages that cannot be ---------------------------------------------------------------------------------------

#[test]
fn message_that_is_none_is_refused() {
    let cases: [(&str, Vec<u8>); 9] = [
        ("request 0", words(&[0, 1, 0])),
        ("request 0xffffffff", words(&[u32::MAX, 1, 0])),
        ("version 0", words(&[GET_FEATURES, 0, 0])),
        ("version 2", words(&[GET_FEATURES, 2, 0])),
        ("reserved flags", words(&[GET_FEATURES, 0x11, 0])),
        ("size beyond all messages", words(&[SET_FEATURES, 1, 0x1001])),
        ("size of all the address space", words(&[SET_FEATURES, 1, u32::MAX])),
        ("a reply that nobody asked for", words(&[GET_FEATURES, 5, 0])),
        ("body of the wrong size", words(&[SET_FEATURES, 1, 4, 0])),
    ];
    for (name, bytes) in cases {
        assert_refused(name, MESSAGE, |front| front.wire.raw(&bytes, &[]));
    }
}

#[test]
fn message_of_what_was_not_agreed_on_is_refused() {
    for (name, request, body) in [
        ("SET_LOG_BASE, CVE-2020-10722", 6, longs(&[u64::MAX, u64::MAX])),
        ("GET_INFLIGHT_FD, CVE-2020-10726", 31, vec![0; 24]),
        ("SET_INFLIGHT_FD without a descriptor, CVE-2021-3839", 32, vec![0xff; 24]),
        ("SET_STATUS", 39, longs(&[0xf])),
        ("POSTCOPY_ADVISE", 28, vec![]),
        ("IOTLB", 22, vec![0; 32]),
        ("NET_SET_MTU", 20, longs(&[9000])),
        ("GET_SHMEM_CONFIG", 44, vec![]),
    ] {
        assert_refused(name, MESSAGE, |front| front.wire.send(request, 0, &body, &[]));
    }
}

/// CVE-2020-10723, snabb 574: a queue that is not there, in every message that names one.
#[test]
fn queue_that_is_not_there_is_refused() {
    let bell = Doorbell::create().unwrap();
    for index in [16_u32, 255, 0x10000, u32::MAX] {
        for request in [SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE] {
            let name = format!("{request} {index}");
            assert_refused(&name, CONTENT, |front| front.wire.send(request, 0, &words(&[index, 1]), &[]));
        }
        let name = format!("address of {index}");
        assert_refused(&name, CONTENT, |front| {
            front.wire.send(SET_VRING_ADDR, 0, &[words(&[index, 0]), longs(&[USER; 4])].concat(), &[]);
        });
    }
    for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        assert_refused(&format!("{request}"), CONTENT, |front| {
            front.wire.send(request, 0, &longs(&[16]), &[bell.as_fd()]);
        });
    }
}

#[test]
fn queue_that_cannot_be_is_refused() {
    for size in [0, 3, 65, 65536, u32::MAX] {
        assert_refused(&format!("size {size}"), CONTENT, |front| {
            front.wire.send(SET_VRING_NUM, 0, &words(&[0, size]), &[]);
        });
    }
    let fine = [USER, USER + 0x1000, USER + 0x800];
    for (name, at, address, expected) in [
        ("descriptors unaligned", 0, USER + 8, MESSAGE),
        ("used ring unaligned", 1, USER + 0x1002, MESSAGE),
        ("available ring unaligned", 2, USER + 0x801, MESSAGE),
        ("descriptors nowhere", 0, 0, CONTENT),
        ("descriptors at a guest address", 0, GUEST, CONTENT),
        ("used ring past the end", 1, USER + MEMORY - 16, CONTENT),
        ("available ring at the last address", 2, u64::MAX - 1, CONTENT),
    ] {
        assert_refused(name, expected, |front| {
            let mut rings = fine;
            rings[at] = address;
            let body = [words(&[0, 0]), longs(&rings), longs(&[0])].concat();
            front.wire.send(SET_VRING_ADDR, 0, &body, &[]);
        });
    }
}

/// QEMU work item 3879: features that were never offered.
#[test]
fn features_that_were_not_offered_are_refused() {
    for bit in [3, 10, 17, 25, 37, 63] {
        assert_refused(&format!("feature {bit}"), CONTENT, |front| {
            front.wire.send(SET_FEATURES, 0, &longs(&[FEATURES | 1 << bit]), &[]);
        });
    }
    assert_refused("protocol feature", CONTENT, |front| {
        front.wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[1 << 5]), &[]);
    });
}

/// CVE-2026-86561: sizes of 0, past the file, and such that a sum overflows; regions that overlap; too few descriptors.
#[test]
fn memory_table_that_cannot_be_is_refused() {
    let file = memfd(0x4000);
    for (name, regions, expected) in [
        ("size 0", vec![[0, 0, USER, 0]], MESSAGE),
        ("past the file", vec![[0, 0x5000, USER, 0]], CONTENT),
        ("offset past the file", vec![[0, 0x1000, USER, 0x4000]], CONTENT),
        ("huge", vec![[0, 1 << 60, USER, 0]], CONTENT),
        ("offset overflows", vec![[0, 0x1000, USER, u64::MAX]], MESSAGE),
        ("guest address overflows", vec![[u64::MAX, 0x1000, USER, 0]], MESSAGE),
        ("user address overflows", vec![[0, 0x1000, u64::MAX, 0]], MESSAGE),
        ("overlap", vec![[0, 0x2000, USER, 0], [0x1000, 0x1000, USER + 0x10000, 0]], CONTENT),
        ("rings no longer in it", vec![[GUEST, 0x1000, USER, 0]], CONTENT),
    ] {
        assert_refused(name, expected, |front| {
            let files: Vec<BorrowedFd<'_>> = regions.iter().map(|_| file.as_fd()).collect();
            front.wire.send(SET_MEM_TABLE, 0, &table(&regions), &files);
        });
    }
    let body = table(&[[0, 0x1000, USER, 0], [0x10000, 0x1000, USER + 0x10000, 0]]);
    for count in [0, 1, 3] {
        let files: Vec<BorrowedFd<'_>> = std::iter::repeat_n(file.as_fd(), count).collect();
        assert_refused("wrong number of descriptors", MESSAGE, |front| {
            front.wire.send(SET_MEM_TABLE, 0, &body, &files);
        });
    }
    for count in [0, 33, u32::MAX] {
        assert_refused("impossible count", MESSAGE, |front| {
            front.wire.send(SET_MEM_TABLE, 0, &words(&[count, 0]), &[file.as_fd()]);
        });
    }
}

/// CVE-2021-3839 (a region shorter than what it is said to be for), QEMU work items 3675 (sizes beyond 32 bits) and 3974
/// (entries in flight), CVE-2026-86565 (a queue made longer afterwards), places that are in no ring.
#[test]
fn region_for_chains_in_flight_that_cannot_be_is_refused() {
    for (queues, size) in [(17, 64), (u16::MAX, 64), (2, 32769), (2, u16::MAX)] {
        assert_refused(&format!("GET {queues} {size}"), CONTENT, |front| {
            front.wire.send(GET_INFLIGHT_FD, 0, &inflight(0, 0, queues, size), &[]);
        });
    }
    let file = memfd(0x4000);
    for (name, bytes, offset, queues, size) in [
        ("shorter than two queues", 0x800, 0, 2, 64),
        ("no bytes at all", 0, 0, 2, 64),
        ("past the file", 0x5000, 0, 2, 64),
        ("offset past the file", 0x1000, 0x4000, 2, 64),
        ("beyond 32 bits", 1 << 32, 0, 2, 64),
        ("all there is", u64::MAX, 0, 2, 64),
        ("offset and bytes overflow", 0x1000, u64::MAX - 0xfff, 2, 64),
        ("more queues than it holds", 0x4000, 0, 16, 1024),
        ("more queues than there are", 0x4000, 0, 17, 1),
        ("for shorter queues, CVE-2026-86565", 0x4000, 0, 2, 32),
        ("begins at no word", 0x1000, 3, 2, 64),
    ] {
        assert_refused(name, CONTENT, |front| {
            front.wire.send(SET_INFLIGHT_FD, 0, &inflight(bytes, offset, queues, size), &[file.as_fd()]);
        });
    }
    let (reader, _writer) = std::io::pipe().unwrap();
    assert_refused("a pipe", CONTENT, |front| {
        front.wire.send(SET_INFLIGHT_FD, 0, &inflight(0x4000, 0, 2, 64), &[reader.as_fd()]);
    });
    for at in [16, 16 + 63 * 16] {
        rustix::io::pwrite(&file, &[1], at).unwrap();
        assert_refused("a chain in flight, QEMU 3974", CONTENT, |front| {
            front.wire.send(SET_INFLIGHT_FD, 0, &inflight(0x4000, 0, 2, 64), &[file.as_fd()]);
        });
        rustix::io::pwrite(&file, &[0], at).unwrap();
    }
    for place in [[64_u8, 0, 0, 0], [0, 0, 0xff, 0xff]] {
        let lab = Lab::new(0);
        let mut front = FrontEnd::with(&add_port(&lab, "vm"), FEATURES | PACKED);
        let region = front.track();
        rustix::io::pwrite(&region.file, &[1, 0], 8).unwrap();
        rustix::io::pwrite(&region.file, &place, 16).unwrap();
        front.wire.send(SET_INFLIGHT_FD, 0, &region.body, &[region.file.as_fd()]);
        front.wire.assert_hung_up();
        assert_eq!("refused_content", told(&lab, PortPart::Control).reason);
    }
}

/// CVE-2026-86565: a queue that is made longer than its region is for.
#[test]
fn queue_longer_than_its_region_for_chains_in_flight_is_refused() {
    assert_refused("longer", CONTENT, |front| {
        let (body, file) = front.wire.ask_for_file(GET_INFLIGHT_FD, &inflight(0, 0, 2, SIZE));
        front.wire.done(SET_INFLIGHT_FD, &body, &[file.as_fd()]);
        front.wire.send(SET_VRING_NUM, 0, &words(&[0, 2 * u32::from(SIZE)]), &[]);
    });
}

/// Descriptors that are not what they should be: a page fault or a write could wait for whoever is behind them.
#[test]
fn descriptor_of_the_wrong_kind_is_refused() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let program = fs::File::open("/proc/self/exe").unwrap();
    let memory = memfd(0x1000);
    for (name, file) in [("pipe", reader.as_fd()), ("file of a disk", program.as_fd()), ("memfd", memory.as_fd())] {
        for request in [SET_VRING_KICK, SET_VRING_CALL] {
            assert_refused(name, CONTENT, |front| front.wire.send(request, 0, &longs(&[0]), &[file]));
        }
    }
    let bell = Doorbell::create().unwrap();
    for file in [reader.as_fd(), program.as_fd(), bell.as_fd()] {
        assert_refused("as memory", CONTENT, |front| {
            front.wire.send(SET_MEM_TABLE, 0, &table(&[[GUEST, 0x1000, USER, 0]]), &[file]);
        });
    }
    assert_refused("kick without a descriptor", MESSAGE, |front| {
        front.wire.send(SET_VRING_KICK, 0, &longs(&[0]), &[]);
    });
    assert_refused("kick that would be polled for", CONTENT, |front| {
        front.wire.send(SET_VRING_KICK, 0, &longs(&[0x100]), &[]);
    });
}

/// A stream of bytes that only looks like messages: any end but a served frame of others is a failure.
#[test]
fn noise_ends_in_refusal() {
    let mut lab = Lab::new(1);
    let path = add_port(&lab, "vm");
    let memory = Memory::new();
    let bell = Doorbell::create().unwrap();
    let mut seed = 7_u32;
    let mut random = |limit: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % limit
    };

    for _ in 0..150 {
        let wire = Wire::connect(&path);
        wire.send(GET_FEATURES, 0, &[], &[]);
        wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[1 | 8 | 0x200 | 0x2000 | 0x8000]), &[]);
        wire.send(SET_FEATURES, 0, &longs(&[FEATURES]), &[]);
        for _ in 0..random(20) {
            let request = random(46);
            let size = [0, 4, 8, 12, 20, 24, 32, 40, 48, 72][random(10) as usize];
            let body: Vec<u8> = (0..size).map(|_| [0, 0, 0, 1, 2, 16, 255][random(7) as usize]).collect();
            let files = [memory.file.as_fd(), bell.as_fd()];
            let (from, to) = (random(2) as usize, random(3) as usize);
            wire.send(request, random(2) * 8, &body, files.get(from..to).unwrap_or_default());
        }
        drop(wire);
    }
    eventually(|| counted(&lab, "vm", VhostUserCounter::Connections) == 150);
    wait_until_alone(&lab, "vm");

    let mut front = FrontEnd::new(&path);
    let sent = frame(MacAddress::BROADCAST, mac(1), 64, 1);
    front.send(&sent);
    assert_eq!(sent, lab.guests[0].receive());
}

// ---- rings that break a rule ---------------------------------------------------------------------------------------

#[test]
fn queue_of_frames_that_breaks_a_rule_is_quarantined() {
    let header = HEADER as u32;
    let cases: [(&str, &str, Entry); 9] = [
        ("no header", "too_short", (GUEST + 0x10_0000, 1, 0, 0)),
        ("a header and nothing else, CVE-2022-2132", "too_short", (GUEST + 0x10_0000, header, 0, 0)),
        ("a runt", "too_short", (GUEST + 0x10_0000, header + 13, 0, 0)),
        ("longer than any frame, CVE-2016-7422", "too_long", (GUEST + 0x10_0000, 0x2_0000, 0, 0)),
        ("outside of memory", "outside_memory", (0, 100, 0, 0)),
        ("length 0", "zero_length", (GUEST, 0, 0, 0)),
        ("a buffer to write", "wrong_direction", (GUEST + 0x10_0000, 100, WRITE, 0)),
        ("next outside of the table", "index_out_of_range", (GUEST + 0x10_0000, 100, NEXT, SIZE)),
        ("a loop", "chain_too_long", (GUEST + 0x10_0000, 100, NEXT, 0)),
    ];
    for (name, reason, entry) in cases {
        assert_quarantined(name, reason, PortPart::Transmit, |front, _| {
            front.tx.describe(&front.memory, 0, entry);
            front.offer_tx(0);
        });
    }
    assert_quarantined("indirect with next", "bad_indirect", PortPart::Transmit, |front, _| {
        front.tx.describe(&front.memory, 0, (GUEST, 32, INDIRECT | NEXT, 1));
        front.offer_tx(0);
    });
    assert_quarantined("head outside of the table", "index_out_of_range", PortPart::Transmit, |front, _| {
        front.offer_tx(SIZE);
    });
    assert_quarantined("index ahead, vm-virtio 196", "tail_out_of_range", PortPart::Transmit, |front, _| {
        front.tx.available = front.tx.available.wrapping_add(SIZE);
        front.offer_tx(0);
    });
}

/// Packed rings: what a descriptor says is checked as in split ones, and a chain may be as long as the ring.
#[test]
fn packed_queue_that_breaks_a_rule_is_quarantined() {
    let header = HEADER as u32;
    let cases: [(&str, &str, Entry); 8] = [
        ("no header", "too_short", (GUEST + 0x10_0000, 1, 0, 0)),
        ("a header and nothing else, CVE-2022-2132", "too_short", (GUEST + 0x10_0000, header, 0, 0)),
        ("longer than any frame, CVE-2016-7422", "too_long", (GUEST + 0x10_0000, 0x2_0000, 0, 0)),
        ("outside of memory, CVE-2018-1059", "outside_memory", (GUEST + MEMORY - 10, 100, 0, 0)),
        ("length 0, CVE-2020-10725", "zero_length", (GUEST, 0, 0, 0)),
        ("a buffer to write", "wrong_direction", (GUEST + 0x10_0000, 100, WRITE, 0)),
        ("a table of half an entry", "bad_indirect", (GUEST, 24, INDIRECT, 0)),
        ("a table too long, CVE-2011-2212", "chain_too_long", (GUEST, 16 * 1025, INDIRECT, 0)),
    ];
    for (name, reason, entry) in cases {
        assert_quarantined_of(FEATURES | PACKED, name, reason, PortPart::Transmit, |front, _| {
            front.tx.describe(&front.memory, 0, entry);
            front.offer_tx(0);
        });
    }
    assert_quarantined_of(FEATURES | PACKED, "a chain all round", "chain_too_long", PortPart::Transmit, |front, _| {
        for index in (0..SIZE).rev() {
            let ring = front.tx.descriptors();
            describe(&front.memory, ring, index, (GUEST + 0x10_0000, 100, 0, 0x80 | NEXT));
        }
        front.tx.kick_if_wanted(&front.memory);
    });
    for (name, reason, entry) in [
        ("shorter than a header, CVE-2026-86566", "too_short", (GUEST + 0x10_0000, 11, WRITE, 0)),
        ("to read", "wrong_direction", (GUEST + 0x10_0000, 2000, 0, 0)),
    ] {
        assert_quarantined_of(FEATURES | PACKED, name, reason, PortPart::Receive, |front, lab| {
            let FrontEnd { rx, memory, .. } = front;
            for index in 0..SIZE {
                let flags = entry.2 | 0x80;
                describe(memory, rx.descriptors(), index, (entry.0, entry.1, index, flags));
            }
            lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(9), 1000, 1));
        });
    }
}

/// A base that is in no ring of that size; a size that only a packed ring may have, for another.
#[test]
fn base_or_size_of_a_packed_queue_that_cannot_be_is_refused() {
    for base in [0x8000 + u32::from(SIZE), 0x7fff, u32::MAX] {
        let lab = Lab::new(0);
        let path = add_port(&lab, "vm");
        let mut front = FrontEnd::bare(&path, FEATURES | PACKED);
        front.start();
        front.wire.send(SET_VRING_BASE, 0, &words(&[0, base]), &[]);
        front.wire.assert_hung_up();
        assert_eq!("refused_content", told(&lab, PortPart::Control).reason);
    }
    let lab = Lab::new(0);
    let mut front = FrontEnd::bare(&add_port(&lab, "vm"), FEATURES | PACKED);
    front.wire.done(SET_VRING_NUM, &words(&[0, 48]), &[]);
}

/// An offload that was never agreed on (CVE-2024-11614 and others): flags, then a kind of segmentation.
#[test]
fn offload_that_was_not_agreed_on_is_quarantined() {
    for (at, value) in [(0, 1), (1, 1), (1, 0x80)] {
        assert_quarantined("offload", "unknown_flags", PortPart::Transmit, |front, _| {
            let mut bytes = [&[0; HEADER][..], &frame(mac(2), mac(1), 64, 0)].concat();
            bytes[at] = value;
            front.memory.write(front.tx.buffer(0), &bytes);
            let entry = (GUEST + front.tx.buffer(0), bytes.len() as u32, 0, 0);
            front.tx.describe(&front.memory, 0, entry);
            front.offer_tx(0);
        });
    }
}

#[test]
fn queue_of_buffers_that_breaks_a_rule_is_quarantined() {
    let cases: [(&str, &str, Entry); 5] = [
        ("shorter than a header, CVE-2026-86566", "too_short", (GUEST + 0x10_0000, 11, WRITE, 0)),
        ("to read", "wrong_direction", (GUEST + 0x10_0000, 2000, 0, 0)),
        ("outside of memory", "outside_memory", (GUEST + MEMORY - 100, 2000, WRITE, 0)),
        ("length 0", "zero_length", (GUEST, 0, WRITE, 0)),
        ("a loop", "chain_too_long", (GUEST + 0x10_0000, 1, WRITE | NEXT, 0)),
    ];
    for (name, reason, entry) in cases {
        assert_quarantined(name, reason, PortPart::Receive, |front, lab| {
            (0..SIZE).for_each(|index| front.rx.describe(&front.memory, index, entry));
            lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(9), 1000, 1));
        });
    }
}

/// Memory that is cut short while queues run: nothing is touched that could end the host.
#[test]
fn memory_that_is_cut_short_is_quarantined() {
    let mut lab = Lab::new(2);
    let path = add_port(&lab, "vm");
    let mut front = FrontEnd::new(&path);
    front.send(&frame(MacAddress::BROADCAST, mac(1), 64, 1));
    front.drain();
    lab.barrier();

    ftruncate(&front.memory.file, 0).unwrap();
    lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(9), 64, 1));
    let event = lab.fault();

    assert_eq!("memory_gone", event.reason, "{}", event.text);
    lab.assert_passes(0, 1);
    // Its own mapping would end the test; the other side does not need it.
    std::mem::forget(front);
}

/// An eventfd that is filled up and blocks: the watchdog frees the worker, and that queue is quarantined.
#[test]
fn call_that_blocks_is_quarantined() {
    assert_quarantined("blocked call", "doorbell_blocked", PortPart::Receive, |front, lab| {
        rustix::io::write(&front.rx.call, &(u64::MAX - 1).to_ne_bytes()).unwrap_or(0);
        front.rx.call.quiet();
        rustix::io::write(&front.rx.call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        fcntl_setfl(front.rx.call.as_fd(), OFlags::RDWR).unwrap();
        lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(9), 64, 1));
    });
}

/// With the bits of what front ends may leave out, there is nothing that a later message would wait for.
#[test]
fn protocol_features_may_be_left_out() {
    let mut lab = Lab::new(1);
    let path = add_port(&lab, "vm");
    let mut front = FrontEnd::bare(&path, FEATURES & !PROTOCOL);
    front.start();
    let sent = frame(MacAddress::BROADCAST, mac(1), 64, 1);

    front.send(&sent);

    assert_eq!(sent, lab.guests[0].receive());
}

/// QEMU's card switches its first pair on when it is made, and agrees on features when its machine's driver does.
#[test]
fn queues_may_be_switched_on_before_features_are_agreed_on() {
    let mut lab = Lab::new(1);
    let path = add_port(&lab, "vm");
    let mut wire = Wire::connect(&path);
    wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[8]), &[]);
    wire.send(SET_VRING_ENABLE, 0, &words(&[0, 1]), &[]);
    wire.done(SET_VRING_ENABLE, &words(&[1, 1]), &[]);
    let mut front = FrontEnd::agree(wire, FEATURES);
    // So that starting does not switch them on again.
    front.features = FEATURES & !PROTOCOL;
    front.start();
    let sent = frame(MacAddress::BROADCAST, mac(1), 64, 1);

    front.send(&sent);

    assert_eq!(sent, lab.guests[0].receive());
}

/// The same message in every way in which it can be wrong.
#[test]
fn early_switching_that_cannot_be_is_refused() {
    for (name, index, number, reason) in
        [("queue that is not there", 16, 1, CONTENT), ("neither on nor off", 0, 2, MESSAGE)]
    {
        let lab = Lab::new(0);
        let wire = Wire::connect(&add_port(&lab, "vm"));
        wire.send(SET_VRING_ENABLE, 0, &words(&[index, number]), &[]);
        wire.assert_hung_up();
        assert_eq!(reason, told(&lab, PortPart::Control).reason, "{name}");
    }
}

/// The body of the message that announces a machine.
fn announced(station: MacAddress) -> Vec<u8> {
    [&station.bytes()[..], &[0; 2]].concat()
}

#[test]
fn machine_that_has_moved_is_announced_to_everybody_and_found_where_it_is() {
    let mut lab = Lab::new(2);
    let mut front = FrontEnd::new(&add_port(&lab, "vm"));
    front.wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[4 | 8]), &[]);
    lab.guests[1].send(&frame(MacAddress::BROADCAST, mac(9), 64, 1));
    lab.settle();
    lab.guests[0].refill();

    front.wire.done(SEND_RARP, &announced(mac(9)), &[]);
    let told = lab.guests[0].receive();
    let sent = frame(mac(9), mac(1), 64, 2);
    lab.guests[0].send(&sent);

    assert_eq!([MacAddress::BROADCAST.bytes(), mac(9).bytes()].concat(), told[..12]);
    assert_eq!([0x80, 0x35], told[12..14]);
    // What the station said where it was before comes first.
    while front.receive() != sent {}
}

#[test]
fn announcement_in_the_name_of_another_port_changes_nothing() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::new(&add_port(&lab, "vm"));
    front.wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[4 | 8]), &[]);
    let own = VenetParams { mac: mac(9), ..VenetParams::default() };
    let mut owner = Guest::new(Shape::SMALL);
    owner.post(8);
    lab.fabric.port_add_venet(SWITCH, "owner", owner.queues(), own).unwrap();

    front.wire.done(SEND_RARP, &announced(mac(9)), &[]);
    let sent = frame(mac(9), mac(1), 64, 2);
    lab.guests[0].send(&sent);

    assert_eq!(sent, owner.receive());
    assert_eq!(1, lab.count_of("vm", PortCounter::TransmitDropForgedSource));
}

#[test]
fn announcement_that_cannot_be_is_refused() {
    for station in [MacAddress::BROADCAST, MacAddress::default(), MacAddress::new([1, 0, 0x5e, 0, 0, 1])] {
        assert_refused(&format!("{station}"), CONTENT, |front| {
            front.wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[4 | 8]), &[]);
            front.wire.send(SEND_RARP, 0, &announced(station), &[]);
        });
    }
    assert_refused("never agreed on", MESSAGE, |front| front.wire.send(SEND_RARP, 0, &announced(mac(9)), &[]));
    assert_refused("without an address", MESSAGE, |front| {
        front.wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[4 | 8]), &[]);
        front.wire.send(SEND_RARP, 0, &[], &[]);
    });
}

/// QEMU 7.2 says each change of its memory once for every pair of queues.
#[test]
fn memory_may_be_added_and_removed_twice() {
    let mut lab = Lab::new(1);
    let mut front = FrontEnd::bare(&add_port(&lab, "vm"), FEATURES);
    front.wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[8 | 0x8000]), &[]);
    let region = longs(&[0, GUEST, MEMORY, USER, 0]);
    let memory = front.memory.file.try_clone().unwrap();
    for (request, files) in [
        (ADD_MEM_REG, vec![memory.as_fd()]),
        (REM_MEM_REG, vec![]),
        (REM_MEM_REG, vec![]),
        (ADD_MEM_REG, vec![memory.as_fd()]),
        (ADD_MEM_REG, vec![memory.as_fd()]),
    ] {
        front.wire.done(request, &region, &files);
    }
    front.start();
    let sent = frame(MacAddress::BROADCAST, mac(1), 64, 1);

    front.send(&sent);

    assert_eq!(sent, lab.guests[0].receive());
}

/// QEMU hands over no memory where none can be shared, and sets its queues up as if it had.
#[test]
fn queues_without_memory_are_refused_and_the_reason_says_what_helps() {
    let lab = Lab::new(0);
    let mut front = FrontEnd::agree(Wire::connect(&add_port(&lab, "vm")), FEATURES);
    front.wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[8 | 0x8000]), &[]);
    front.wire.done(REM_MEM_REG, &longs(&[0, GUEST, MEMORY, USER, 0]), &[]);
    let crate::vhost_front::Queue { index, kick, .. } = &front.rx;
    front.wire.done(SET_VRING_NUM, &words(&[*index, SIZE.into()]), &[]);
    front.wire.done(SET_VRING_ADDR, &[words(&[*index, 0]), longs(&[USER, USER, USER, 0])].concat(), &[]);
    front.wire.done(SET_VRING_ENABLE, &words(&[*index, 1]), &[]);
    front.wire.send(SET_VRING_KICK, 0, &longs(&[(*index).into()]), &[kick.as_fd()]);
    front.wire.assert_hung_up();

    let event = told(&lab, PortPart::Control);
    assert_eq!(CONTENT, event.reason);
    assert!(event.text.contains("share=on"), "{}", event.text);
}

/// One frame waits in a packed ring whose last chain had the same id, of a driver that may as well have made one chain of both; and
/// the front end does not know. Nothing is guessed, and who does know is believed.
#[test]
fn packed_queue_whose_place_is_lost_is_refused_and_the_reason_says_what_helps() {
    let mut lab = Lab::new(1);
    let path = add_port(&lab, "vm");
    let mut front = FrontEnd::bare(&path, FEATURES & !INDIRECT_DESCRIPTORS | PACKED);
    let sent = frame(MacAddress::BROADCAST, mac(1), 64, 1);
    let entry = (GUEST + front.tx.buffer(0), (HEADER + 64) as u32, 0, 0);
    front.memory.write(front.tx.buffer(0), &[&[0; HEADER][..], &sent].concat());
    front.tx.describe(&front.memory, 0, entry);
    front.start();
    front.offer_tx(0);
    assert_eq!(sent, lab.guests[0].receive());
    front.drain();
    let mut front = front.rejoin(&path);
    front.tx.offer(&front.memory, 0);

    front.wire.done(SET_VRING_NUM, &words(&[1, SIZE.into()]), &[]);
    front.wire.done(SET_VRING_BASE, &words(&[1, 0x8000]), &[]);
    front.wire.done(SET_VRING_ADDR, &addresses(&front.tx, None), &[]);
    front.wire.done(SET_VRING_KICK, &longs(&[1]), &[front.tx.kick.as_fd()]);
    front.wire.send(SET_VRING_ENABLE, 0, &words(&[1, 1]), &[]);

    let event = told(&lab, PortPart::Control);
    wait_until_alone(&lab, "vm");
    assert_eq!(CONTENT, event.reason);
    assert!(event.text.contains("reset the card in the machine"), "{}", event.text);
    let mut front = front.rejoin(&path);
    lab.guests[0].refill();
    front.start_queue(1);
    assert_eq!(sent, lab.guests[0].receive());
    front.drain();
}
