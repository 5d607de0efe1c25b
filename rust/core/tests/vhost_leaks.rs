//! Descriptors that front ends of vhost-user hand over are closed, whatever else becomes of them.
//!
//! Apart from other tests, for these count the descriptors of the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod switch_guest;
mod vhost_front;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use switch_guest::{Lab, eventually};
use vbnet_core::fabric::VhostUserCounter;
use vhost_front::{
    FEATURES, FrontEnd, GET_FEATURES, GUEST, MEMORY, SET_INFLIGHT_FD, SET_MEM_TABLE, SET_OWNER, SET_VRING_ERR,
    SET_VRING_KICK, SET_VRING_NUM, USER, add_port, counted, longs, memfd, table, wait_until_alone,
};

/// One test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Threats 1 and 18: front ends that vanish at any point of their set-up leave nothing behind.
#[test]
fn front_end_that_vanishes_during_set_up_leaves_nothing_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::new(0);
    let path = add_port(&lab, "vm");
    drop(FrontEnd::new(&path));
    wait_until_alone(&lab, "vm");
    let before = descriptors();

    for step in 0..4 {
        let mut front = FrontEnd::bare(&path, FEATURES);
        match step {
            0 => {}
            1 => front.start_queue(0),
            2 => front.wire.raw(&[1, 2, 3], &[]),
            _ => front.start(),
        }
        drop(front);
        eventually(|| counted(&lab, "vm", VhostUserCounter::Connections) == step + 2);
        wait_until_alone(&lab, "vm");
    }

    assert_eq!(before, descriptors());
    assert_eq!(1, counted(&lab, "vm", VhostUserCounter::RefusedPartial));
}

/// CVE-2019-14818 and CVE-2022-0669: surplus descriptors end the connection, and are closed.
#[test]
fn surplus_descriptors_are_refused_and_closed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let file = memfd(0x1000);
    let lab = Lab::new(0);
    let path = add_port(&lab, "vm");
    drop(FrontEnd::new(&path));
    wait_until_alone(&lab, "vm");
    let before = descriptors();

    for (number, count) in [1, 2, 31, 32, 33, 40].into_iter().enumerate() {
        for request in [GET_FEATURES, SET_OWNER, SET_VRING_KICK, SET_VRING_NUM, SET_MEM_TABLE] {
            let front = FrontEnd::bare(&path, FEATURES);
            let files: Vec<BorrowedFd<'_>> = std::iter::repeat_n(file.as_fd(), count).collect();
            let body = if request == SET_VRING_KICK || request == SET_VRING_NUM { longs(&[0]) } else { vec![] };
            front.wire.send(request, 0, &body, &files);
            // Whatever comes next finds the connection ended, or what is left of a message that was not read whole.
            front.wire.raw(&[0xee; 64], &[]);
            front.wire.assert_hung_up();
        }
        let expected = 1 + 5 * (number as u64 + 1);
        eventually(|| counted(&lab, "vm", VhostUserCounter::Connections) == expected);
        wait_until_alone(&lab, "vm");
    }

    assert_eq!(before, descriptors());
}

/// CVE-2020-10726, CVE-2022-0669: regions for chains in flight that are asked for and handed over without end, and with
/// descriptors to spare.
#[test]
fn region_for_chains_in_flight_holds_nothing_more_when_it_is_repeated() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::new(0);
    let path = add_port(&lab, "vm");
    let mut front = FrontEnd::new(&path);
    let region = front.track();
    front.hand_over(&region);
    let before = descriptors();

    for _ in 0..200 {
        let again = front.track();
        front.hand_over(&again);
    }
    let after = descriptors();
    let files = [region.file.as_fd(), region.file.as_fd()];
    front.wire.send(SET_INFLIGHT_FD, 0, &region.body, &files);
    front.wire.assert_hung_up();
    wait_until_alone(&lab, "vm");

    assert_eq!(before, after);
    assert_eq!(1, counted(&lab, "vm", VhostUserCounter::RefusedMessage));
}

/// CVE-2019-14818: what is said again and again is held once.
#[test]
fn message_that_is_repeated_holds_nothing_more() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::new(0);
    let mut front = FrontEnd::new(&add_port(&lab, "vm"));
    let before = descriptors();

    for _ in 0..50 {
        let body = table(&[[GUEST, MEMORY, USER, 0]]);
        front.wire.done(SET_MEM_TABLE, &body, &[front.memory.file.as_fd()]);
        front.start();
        front.wire.done(SET_VRING_ERR, &longs(&[0]), &[front.rx.call.as_fd()]);
    }

    assert_eq!(before, descriptors());
}
