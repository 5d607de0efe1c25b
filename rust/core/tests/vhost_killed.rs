//! A host that is killed at any instruction, and front ends that go on with the next one.
//!
//! ```text
//!   parent: two front ends, memory and queues of their own       child: the host, a switch with two ports
//!           a ── numbered frames ──▶ port a ▶ switch ▶ port b ──▶ b          killed -9 while they run, started again
//! ```
//!
//! Queues lose no chain and get none back twice; frames arrive in order and none twice. What the host had taken from one
//! and not yet shown to the other when it was killed is lost with it: less than it takes in one round.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod switch_guest;
mod vhost_front;

use std::io::{BufRead, BufReader};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Signal, set_parent_process_death_signal};
use switch_guest::{Lab, SWITCH, eventually, frame, mac};
use vbnet_core::fabric::VenetParams;
use vbnet_core::net::frame::MacAddress;
use vhost_front::{FEATURES, FrontEnd, GUEST, HEADER, Inflight, PACKED, SIZE, socket_path};

const KILLS: u32 = 8;
/// Frames that are sent for each host.
const FRAMES: u32 = 4000;
/// Most frames of one round: a port's budget.
const ROUND: u32 = 256;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, a, b] = &arguments[..]
        && flag == "--host"
    {
        return host(Path::new(a), Path::new(b));
    }
    let tests: [(&str, fn()); 4] = [
        ("frames_of_split_queues_survive_a_host_that_is_killed", || survive(FEATURES, true)),
        ("frames_of_packed_queues_survive_a_host_that_is_killed", || survive(FEATURES | PACKED, true)),
        ("frames_of_split_queues_survive_without_a_region_for_chains_in_flight", || survive(FEATURES, false)),
        ("frames_of_packed_queues_survive_without_a_region_for_chains_in_flight", || survive(FEATURES | PACKED, false)),
    ];
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = tests.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|part| name.contains(*part)));
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let mut failed = 0;
    for (name, test) in chosen {
        let is_fine = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if is_fine { "ok" } else { "FAILED" });
        failed += u32::from(!is_fine);
    }
    assert_eq!(0, failed, "tests failed");
}

/// The child: serves both ports until it is killed.
fn host(a: &Path, b: &Path) {
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let lab = Lab::new(0);
    for (name, path) in [("a", a), ("b", b)] {
        lab.fabric.port_add_vhost_user(SWITCH, name, path, VenetParams::default()).unwrap();
    }
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn start_host(sockets: &[PathBuf; 2]) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("--host")
        .args(sockets)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test runs itself");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!("ready\n", line);
    child
}

fn numbered(number: u32) -> Vec<u8> {
    let mut bytes = frame(MacAddress::BROADCAST, mac(1), 64, 0);
    bytes[14..18].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The sending front end: what it posted and has not got back.
struct Sender {
    front: FrontEnd,
    next: u32,
    is_out: [bool; SIZE as usize],
}

impl Sender {
    /// Takes back what is used: how many.
    fn reap(&mut self) -> u32 {
        let Self { front: FrontEnd { memory, tx, .. }, is_out, .. } = self;
        let mut returned = 0;
        while let Some((head, _)) = tx.used(memory) {
            assert!(std::mem::take(&mut is_out[usize::from(head)]), "a chain that came back twice");
            returned += 1;
        }
        returned
    }

    /// Sends frames below `end`, as many as there are places.
    fn send(&mut self, end: u32) {
        let Self { front: FrontEnd { memory, tx, .. }, next, is_out } = self;
        for index in 0..SIZE {
            if *next >= end || is_out[usize::from(index)] {
                continue;
            }
            let place = tx.buffer(index);
            memory.write(place, &[&[0; HEADER][..], &numbered(*next)].concat());
            tx.describe(memory, index, (GUEST + place, (HEADER + 64) as u32, 0, 0));
            tx.offer(memory, index);
            is_out[usize::from(index)] = true;
            *next += 1;
        }
        tx.kick_if_wanted(memory);
    }
}

/// How front ends join: what they agree to, and whether they have a region for chains in flight. Without, they say, as QEMU
/// does, that queues are at their beginning.
#[derive(Clone, Copy)]
struct Manner {
    features: u64,
    is_tracked: bool,
}

fn join(front: Option<FrontEnd>, path: &Path, manner: Manner, region: &mut Option<Inflight>) -> FrontEnd {
    let mut front = match front {
        Some(front) => front.rejoin(path),
        None => FrontEnd::bare(path, manner.features),
    };
    if manner.is_tracked {
        let region = region.get_or_insert_with(|| front.track());
        front.hand_over(region);
    } else {
        front.rx.is_lost = true;
        front.tx.is_lost = true;
    }
    front.start();
    front
}

/// The numbers of frames that came in.
fn numbers(receiver: &mut FrontEnd) -> Vec<u32> {
    receiver.received().iter().map(|bytes| u32::from_le_bytes(bytes[14..18].try_into().unwrap())).collect()
}

fn survive(features: u64, is_tracked: bool) {
    let manner = Manner { features, is_tracked };
    let sockets = [socket_path(), socket_path()];
    let mut regions = [None, None];
    let mut fronts: Option<(Sender, FrontEnd)> = None;
    let mut received = Vec::new();
    let (mut returned, mut lost) = (0, 0);
    for kill in 0..=KILLS {
        let mut child = start_host(&sockets);
        let [a, b] = &mut regions;
        let (mut sender, mut receiver) = match fronts.take() {
            None => {
                let mut receiver = join(None, &sockets[1], manner, b);
                receiver.post(SIZE);
                (
                    Sender { front: join(None, &sockets[0], manner, a), next: 0, is_out: [false; SIZE as usize] },
                    receiver,
                )
            }
            Some((sender, receiver)) => {
                let receiver = join(Some(receiver), &sockets[1], manner, b);
                (Sender { front: join(Some(sender.front), &sockets[0], manner, a), ..sender }, receiver)
            }
        };
        let end = (kill + 1) * FRAMES;
        // The last host is not killed before everything is through.
        let enough = if kill == KILLS { end } else { end - FRAMES + 500 + 397 * kill };
        eventually(|| {
            returned += sender.reap();
            received.extend(numbers(&mut receiver));
            // Never more under way than the receiver has buffers for: what is lost is lost with a host.
            sender.send(end.min(received.len() as u32 + lost + u32::from(SIZE)));
            returned >= enough && (kill < KILLS || received.len() as u32 + lost == end)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        returned += sender.reap();
        received.extend(numbers(&mut receiver));
        let now = returned - received.len() as u32;
        assert!(now - lost <= ROUND, "{} frames lost at once", now - lost);
        lost = now;
        fronts = Some((sender, receiver));
    }

    let (sender, _receiver) = fronts.unwrap();
    assert_eq!((KILLS + 1) * FRAMES, returned);
    assert!(sender.is_out.iter().all(|is_out| !is_out));
    let order = received.windows(2).find(|pair| pair[0] >= pair[1]);
    assert_eq!(None, order, "frames out of order, or twice");
    println!("{lost} of {returned} frames were lost with {KILLS} hosts");
    for path in sockets {
        let _ = std::fs::remove_file(path);
    }
}
