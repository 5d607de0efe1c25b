//! The driver half of a venet device against a host played with bare ring ends: an ordinary one and a lying one.
//!
//! The host maps the region a second time, from its file, as a real one does. Descriptors, frames and places are made
//! up and checked here; nothing of the host node's code takes part.
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test behaviour venet_driver` looks longer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so by panicking")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vbnet_core::error::{Error, Fault};
use vbnet_core::guest::venet::{self, Bells, Held, Receiver, Sender, VenetLayout, frame_limit};
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::region::Ram;
use vbnet_core::shm::ring::{Consumer, Descriptor, RingMemory};

/// Longest any test waits for anything.
const DEADLINE: Duration = Duration::from_secs(10);
const HEAD: u32 = 0x100;

/// The other side: consumer of both rings, in a mapping of its own.
struct Host {
    ram: Arc<Ram>,
    layout: VenetLayout,
    tx: Consumer,
    rx: Consumer,
}

impl Host {
    fn bytes(&self, offset: u32, length: u32) -> Vec<u8> {
        let place = self.ram.at(offset, length as usize).unwrap();
        // SAFETY: in bounds; these tests have one thread in the region at a time.
        unsafe { std::slice::from_raw_parts(place.as_ptr(), length as usize) }.to_vec()
    }

    fn write(&self, offset: u32, bytes: &[u8]) {
        let place = self.ram.at(offset, bytes.len()).unwrap();
        // SAFETY: as in `bytes`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.as_ptr(), bytes.len()) };
    }

    /// Takes up to `most` published frames and returns their slots.
    fn take(&mut self, most: u32) -> Vec<Vec<u8>> {
        let frames = self.look(most);
        self.tx.advance(frames.len() as u32);
        self.tx.release();
        frames
    }

    /// Reads up to `most` published frames without returning anything.
    fn look(&mut self, most: u32) -> Vec<Vec<u8>> {
        let count = self.tx.refresh().unwrap().min(most);
        (0..count)
            .map(|ahead| {
                let Descriptor { offset, length, flags } = self.tx.peek(ahead);
                assert_eq!(0, flags);
                self.bytes(offset, length)
            })
            .collect()
    }

    /// Completes the next posted buffer with `answer` of its descriptor, without returning it.
    fn complete(&mut self, answer: impl FnOnce(Descriptor) -> Descriptor) {
        assert_ne!(0, self.rx.available().unwrap(), "no buffer is posted");
        let posted = self.rx.peek(0);
        self.rx.complete(0, answer(posted));
        self.rx.advance(1);
    }

    /// Writes a frame into the next posted buffer; `false` when none is posted.
    fn deliver(&mut self, frame: &[u8]) -> bool {
        if self.rx.refresh().unwrap() == 0 {
            return false;
        }
        let posted = self.rx.peek(0);
        assert!(frame.len() as u32 <= posted.length);
        self.write(posted.offset, frame);
        self.complete(|posted| Descriptor::new(posted.offset, frame.len() as u32));
        true
    }

    /// Stores a made-up `head` into one of the rings.
    fn scribble_head(&self, ring: u32, head: u32) {
        let place = self.ram.at(ring + HEAD, 4).unwrap();
        // SAFETY: in bounds, aligned, accessed by atomics only.
        unsafe { place.cast::<AtomicU32>().as_ref() }.store(head, Ordering::SeqCst);
    }

    /// Buffers posted right now, in order; each must lie in the receive buffers, none twice.
    fn posted(&mut self) -> Vec<u32> {
        let count = self.rx.refresh().unwrap();
        let offsets: Vec<_> = (0..count).map(|ahead| self.rx.peek(ahead).offset).collect();
        let mut distinct = offsets.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), offsets.len(), "a buffer is posted twice");
        assert!(offsets.iter().all(|offset| (self.layout.buffers_offset..self.layout.end).contains(offset)));
        offsets
    }
}

fn device(mtu: u32, tx_slots: u32, rx_slots: u32) -> (Sender, Receiver, Host) {
    let layout = VenetLayout::plan(0, mtu, tx_slots, rx_slots).unwrap();
    let ram = Ram::create("guest", layout.ram_bytes()).unwrap();
    let (sender, receiver) = venet::open(&ram, layout).unwrap();
    let theirs = Ram::open(rustix::io::dup(&*ram).unwrap(), layout.ram_bytes()).unwrap();
    let tx = Consumer::new(RingMemory::attach(&theirs, layout.tx_offset, layout.tx_bytes()).unwrap());
    let rx = Consumer::new(RingMemory::attach(&theirs, layout.rx_offset, layout.rx_bytes()).unwrap());
    (sender, receiver, Host { ram: theirs, layout, tx, rx })
}

/// A frame of this length that no other number has.
fn frame(length: usize, number: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|at| (at * 7 + number * 13 + length) as u8).collect();
    for (byte, number) in bytes.iter_mut().zip((number as u32).to_be_bytes()) {
        *byte = number;
    }
    bytes
}

fn received(receiver: &mut Receiver) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let count = receiver.receive(u32::MAX, |frame| frames.push(frame.to_vec())).unwrap();
    assert_eq!(count as usize, frames.len());
    frames
}

fn fault<T: std::fmt::Debug>(found: Result<T, Error>) -> Fault {
    match found {
        Err(Error::Peer(fault)) => fault,
        other => panic!("a fault of the host was expected; got {other:?}"),
    }
}

/// Frames of every length an Ethernet of this MTU has reach the host unchanged, in order.
#[test]
fn frame_of_every_length_is_sent_unchanged() {
    let (mut sender, _receiver, mut host) = device(1500, 8, 8);
    for length in 14..=frame_limit(1500) as usize {
        let sent = frame(length, length);

        assert!(sender.stage(&sent).unwrap());
        sender.flush().unwrap();

        assert_eq!(vec![sent], host.take(1), "{length}");
    }
}

/// Frames of every length are received unchanged, copied out and as views.
#[test]
fn frame_of_every_length_is_received_unchanged() {
    let (_sender, mut receiver, mut host) = device(1500, 8, 8);
    for length in 14..=frame_limit(1500) as usize {
        let sent = frame(length, length);
        assert!(host.deliver(&sent));
        host.rx.release();
        assert_eq!(vec![sent.clone()], received(&mut receiver), "{length}");

        assert!(host.deliver(&sent));
        host.rx.release();
        let mut held = Vec::new();
        assert_eq!(1, receiver.hold(8, &mut held).unwrap());
        assert_eq!(sent, host.bytes(held[0].offset, held[0].length), "{length}");
        receiver.give_back(held[0].buffer).unwrap();
    }
}

/// The largest MTU works at both ends of its range of lengths.
#[test]
fn largest_mtu_carries_its_shortest_and_longest_frame() {
    let (mut sender, mut receiver, mut host) = device(65_535, 2, 2);
    for length in [14, 65_553] {
        let sent = frame(length, 1);
        assert_eq!(1, sender.send([sent.as_slice()]).unwrap());
        assert_eq!(vec![sent.clone()], host.take(1));
        assert!(host.deliver(&sent));
        host.rx.release();
        assert_eq!(vec![sent], received(&mut receiver));
    }
}

/// Lengths no Ethernet has are refused before anything happens; frames before the refused one are sent.
#[test]
fn impossible_length_is_refused_and_earlier_frames_are_sent() {
    let (mut sender, _receiver, mut host) = device(1500, 8, 8);
    for length in [0, 1, 13, 1519, 1 << 20] {
        assert!(matches!(sender.stage(&vec![0; length]), Err(Error::Usage(_))), "{length}");
        assert!(matches!(sender.claim(length), Err(Error::Usage(_))), "{length}");
    }
    let good = frame(60, 1);
    let batch = [good.as_slice(), &[0; 13], good.as_slice()];

    assert!(matches!(sender.send(batch), Err(Error::Usage(_))));

    assert_eq!(vec![good], host.take(8));
    assert_eq!((1, 60), (sender.totals().frames, sender.totals().bytes));
}

/// A lower MTU refuses longer frames, and no MTU is accepted beyond what the buffers were made for.
#[test]
fn mtu_is_lowered_and_restored_but_not_exceeded() {
    let (mut sender, _receiver, mut host) = device(1500, 8, 8);
    sender.set_mtu(100);
    assert!(matches!(sender.stage(&frame(119, 0)), Err(Error::Usage(_))));
    assert!(sender.stage(&frame(118, 0)).unwrap());
    for mtu in [1500, 1501, u32::MAX] {
        sender.set_mtu(mtu);
        assert_eq!(1518, sender.limit());
    }
    assert!(matches!(sender.stage(&frame(1519, 0)), Err(Error::Usage(_))));
    sender.flush().unwrap();
    assert_eq!(vec![frame(118, 0)], host.take(8));
}

/// No room is an answer, not an error: a short count or `false`, and room again as soon as slots come back.
#[test]
fn full_ring_is_a_short_count() {
    let (mut sender, _receiver, mut host) = device(1500, 8, 8);
    let frames: Vec<_> = (0..20).map(|number| frame(1518, number)).collect();

    assert_eq!(8, sender.send(frames.iter().map(Vec::as_slice)).unwrap());
    assert_eq!(0, sender.send(frames.iter().map(Vec::as_slice)).unwrap());
    assert!(!sender.stage(&frames[8]).unwrap());
    assert_eq!(None, sender.claim(60).unwrap());

    assert_eq!(frames[..3], host.take(3));
    assert_eq!(3, sender.send(frames[8..].iter().map(Vec::as_slice)).unwrap());
    assert_eq!(frames[3..11], host.take(20));
}

/// A ring of a single slot works in both directions.
#[test]
fn device_with_one_slot_each_way_works() {
    let (mut sender, mut receiver, mut host) = device(1500, 1, 1);
    for number in 0..100 {
        let sent = frame(14 + number * 15, number);
        assert_eq!(1, sender.send([sent.as_slice(), sent.as_slice()]).unwrap());
        assert_eq!(vec![sent.clone()], host.take(4));
        assert!(host.deliver(&sent));
        assert!(!host.deliver(&sent));
        host.rx.release();
        assert_eq!(vec![sent], received(&mut receiver));
    }
}

/// A frame written in place is sent like any other; one given up leaves no trace.
#[test]
fn claimed_room_is_committed_or_cancelled() {
    let (mut sender, _receiver, mut host) = device(1500, 2, 8);
    for number in 0..50 {
        let given_up = sender.claim(1500).unwrap().unwrap();
        sender.cancel();
        let offset = sender.claim(1518).unwrap().unwrap();
        assert_eq!(given_up, offset);
        host.write(offset, &frame(1000, number));
        sender.commit(offset, 1000);
        sender.flush().unwrap();
        assert_eq!(vec![frame(1000, number)], host.take(2));
    }
    assert_eq!(50, sender.totals().frames);
}

/// Nothing is seen by the host before the flush.
#[test]
fn staged_frames_are_invisible_before_the_flush() {
    let (mut sender, _receiver, mut host) = device(1500, 8, 8);
    assert!(sender.stage(&frame(60, 1)).unwrap());
    assert_eq!(Vec::<Vec<u8>>::new(), host.look(8));
    sender.flush().unwrap();
    assert_eq!(vec![frame(60, 1)], host.look(8));
}

/// Every posted buffer is long enough, inside the receive buffers and posted once, from the beginning on.
#[test]
fn receive_buffers_are_posted_from_the_start() {
    let (_sender, _receiver, mut host) = device(1500, 8, 64);
    let posted = host.posted();
    assert_eq!((64, 1518), (posted.len(), host.rx.peek(0).length));
}

/// A completion that does not fit what was posted is a fault that carries both, however the frames are taken.
#[test]
fn foreign_completion_is_a_fault() {
    let lies: [fn(Descriptor) -> Descriptor; 8] = [
        |posted| Descriptor { offset: posted.offset + 64, ..posted },
        |posted| Descriptor { offset: posted.offset - 1, ..posted },
        |posted| Descriptor { offset: 0, length: 60, ..posted },
        |posted| Descriptor { offset: u32::MAX, length: 60, ..posted },
        |posted| Descriptor { length: posted.length + 1, ..posted },
        |posted| Descriptor { length: 0x00ff_ffff, ..posted },
        |posted| Descriptor { length: 60, flags: 1, ..posted },
        |posted| Descriptor { length: 0, flags: 0x80, ..posted },
    ];
    for lie in lies {
        for holds in [false, true] {
            let (_sender, mut receiver, mut host) = device(1500, 8, 8);
            let posted = host.rx.refresh().map(|_| host.rx.peek(0)).unwrap();
            let Descriptor { offset, length, .. } = lie(posted);
            host.complete(lie);
            host.rx.release();
            let expected =
                Fault::ForeignCompletion { offset, length, posted_offset: posted.offset, posted_length: 1518 };
            for _ in 0..3 {
                let found = if holds {
                    receiver.hold(8, &mut Vec::new())
                } else {
                    receiver.receive(8, |_| panic!("a frame was made of a lie"))
                };
                assert_eq!(expected, fault(found));
            }
        }
    }
}

/// A lie in the middle of a batch: the frames before it are handed over once, the fault is told, and told again.
#[test]
fn frames_before_a_foreign_completion_are_handed_over_once() {
    for holds in [false, true] {
        let (_sender, mut receiver, mut host) = device(1500, 8, 8);
        assert!(host.deliver(&frame(60, 1)) && host.deliver(&frame(70, 2)));
        host.complete(|posted| Descriptor { flags: 1, ..posted });
        assert!(host.deliver(&frame(80, 3)));
        host.rx.release();

        let mut lengths = Vec::new();
        for _ in 0..2 {
            let mut held = Vec::new();
            let found = if holds {
                receiver.hold(8, &mut held)
            } else {
                receiver.receive(8, |frame| lengths.push(frame.len()))
            };
            assert!(matches!(fault(found), Fault::ForeignCompletion { .. }));
            lengths.extend(held.iter().map(|held| held.length as usize));
        }

        assert_eq!((vec![60, 70], 2, 130), (lengths, receiver.totals().frames, receiver.totals().bytes));
    }
}

/// A completion sent twice names a buffer that was posted elsewhere meanwhile: a fault.
#[test]
fn replayed_completion_is_a_fault() {
    let (_sender, mut receiver, mut host) = device(1500, 8, 8);
    let first = host.rx.refresh().map(|_| host.rx.peek(0)).unwrap();
    assert!(host.deliver(&frame(60, 1)));
    host.rx.release();
    assert_eq!(1, received(&mut receiver).len());

    host.complete(|_| Descriptor::new(first.offset, 60));
    host.rx.release();

    assert!(matches!(fault(receiver.receive(8, |_| ())), Fault::ForeignCompletion { .. }));
}

/// A host that returns more than was published is found out by both halves, on every call.
#[test]
fn head_beyond_what_was_published_is_a_fault() {
    for head in [9, 100, u32::MAX, 1 << 31] {
        let (mut sender, mut receiver, host) = device(1500, 8, 8);
        sender.send([frame(60, 1).as_slice()]).unwrap();
        host.scribble_head(host.layout.tx_offset, head);
        host.scribble_head(host.layout.rx_offset, head);
        for _ in 0..2 {
            assert_eq!(Fault::HeadOutOfRange { head, reaped: 0, tail: 1 }, fault(sender.arm()));
            assert!(matches!(fault(sender.wait(Some(DEADLINE))), Fault::HeadOutOfRange { .. }));
            let expected = Fault::HeadOutOfRange { head, reaped: 0, tail: 8 };
            assert_eq!(expected, fault(receiver.receive(8, |_| ())));
            assert_eq!(expected, fault(receiver.hold(8, &mut Vec::new())));
            assert_eq!(expected, fault(receiver.arm()));
            assert_eq!(expected, fault(receiver.wait(Duration::ZERO, Some(DEADLINE))));
        }
        (0..7).for_each(|_| assert!(sender.stage(&frame(60, 1)).unwrap()));
        assert!(matches!(fault(sender.stage(&frame(60, 1))), Fault::HeadOutOfRange { .. }));
    }
}

/// A host may write nonsense into slots of sent frames: the sender never reads them back.
#[test]
fn sender_does_not_believe_what_comes_back_in_its_slots() {
    let (mut sender, _receiver, mut host) = device(1500, 2, 8);
    for number in 0..50 {
        let sent = frame(600, number);
        assert_eq!(1, sender.send([sent.as_slice()]).unwrap());
        assert_eq!(vec![sent], host.look(1));
        host.tx.complete(0, Descriptor { offset: u32::MAX, length: 0x00ff_ffff, flags: 0xff });
        host.tx.advance(1);
        host.tx.release();
    }
}

/// Buffers that come back empty were flushed: they are posted again and reported to nobody.
#[test]
fn flushed_buffers_are_posted_again_and_not_reported() {
    for holds in [false, true] {
        let (_sender, mut receiver, mut host) = device(1500, 8, 8);
        let mut frames = Vec::new();
        for number in 0..40 {
            host.complete(|posted| Descriptor::new(posted.offset, 0));
            assert!(host.deliver(&frame(60, number)));
            host.complete(|posted| Descriptor::new(posted.offset, 0));
            host.rx.release();
            if holds {
                let mut held = Vec::new();
                assert_eq!(1, receiver.hold(8, &mut held).unwrap());
                frames.push(host.bytes(held[0].offset, held[0].length));
                receiver.give_back(held[0].buffer).unwrap();
            } else {
                frames.extend(received(&mut receiver));
            }
            assert_eq!(8, host.posted().len());
        }
        assert_eq!((0..40).map(|number| frame(60, number)).collect::<Vec<_>>(), frames);
        assert_eq!((40, 2400), (receiver.totals().frames, receiver.totals().bytes));
    }
}

/// Views keep their bytes while other frames are received; without spare buffers fewer are posted, never the held ones.
#[test]
fn held_views_keep_their_bytes_while_others_are_received() {
    let (_sender, mut receiver, mut host) = device(1500, 8, 8);
    let buffers = host.layout.buffers as usize;
    let mut held: Vec<Held> = Vec::new();
    for number in 0..buffers {
        assert!(host.deliver(&frame(60 + number, number)));
        host.rx.release();
        assert_eq!(1, receiver.hold(8, &mut held).unwrap());
        let posted = host.posted();
        assert_eq!((buffers - held.len()).min(8), posted.len());
        assert!(held.iter().all(|held| !posted.contains(&held.offset)));
    }
    assert!(!host.deliver(&frame(60, 0)), "every buffer is held");
    for (number, held) in held.iter().enumerate() {
        assert_eq!(frame(60 + number, number), host.bytes(held.offset, held.length));
    }

    held.drain(..).for_each(|held| receiver.give_back(held.buffer).unwrap());
    for number in 0..3 * buffers {
        assert!(host.deliver(&frame(99, number)));
        host.rx.release();
        assert_eq!(vec![frame(99, number)], received(&mut receiver));
    }
    assert_eq!(8, host.posted().len());
}

/// At most as many frames are taken as were asked for; the rest waits.
#[test]
fn no_more_frames_are_taken_than_asked_for() {
    let (_sender, mut receiver, mut host) = device(1500, 8, 8);
    (0..8).for_each(|number| assert!(host.deliver(&frame(60, number))));
    host.rx.release();
    let mut frames = Vec::new();
    assert_eq!(3, receiver.receive(3, |frame| frames.push(frame.to_vec())).unwrap());
    assert_eq!(0, receiver.receive(0, |_| panic!("none was asked for")).unwrap());
    frames.extend(received(&mut receiver));

    assert_eq!((0..8).map(|number| frame(60, number)).collect::<Vec<_>>(), frames);
}

/// A layout that cannot work is refused with what to do about it.
#[test]
fn impossible_layouts_are_refused() {
    let impossible = [(0, 64, 64), (67, 64, 64), (65_536, 64, 64), (u32::MAX, 64, 64), (1500, 0, 64), (1500, 64, 0)];
    let unsound = [(1500, 3, 64), (1500, 64, 65), (1500, 1 << 16, 64), (1500, 64, u32::MAX), (65_535, 32_768, 32_768)];
    for (mtu, tx_slots, rx_slots) in impossible.into_iter().chain(unsound) {
        let found = VenetLayout::plan(0, mtu, tx_slots, rx_slots);
        assert!(matches!(found, Err(Error::Usage(_))), "{mtu} {tx_slots} {rx_slots}");
    }
    assert!(matches!(VenetLayout::plan(u32::MAX - 100_000, 1500, 64, 64), Err(Error::Usage(_))));
}

/// A RAM a page too small for the device is refused before anything is written.
#[test]
fn ram_that_is_too_small_is_refused() {
    let layout = VenetLayout::plan(0, 1500, 64, 64).unwrap();
    let ram = Ram::create("small", layout.ram_bytes() - 4096).unwrap();

    assert!(matches!(venet::open(&ram, layout), Err(Error::Usage(_))));

    // SAFETY: in bounds; nobody else has this region.
    assert_eq!(0, unsafe { ram.at(layout.tx_offset, 4).unwrap().cast::<u32>().read() });
}

/// Waiting without doorbells is the caller's mistake; with nothing to wait for it ends at once.
#[test]
fn waiting_without_doorbells_is_refused_only_when_there_is_something_to_wait_for() {
    let (mut sender, mut receiver, mut host) = device(1500, 1, 8);
    assert!(sender.wait(Some(DEADLINE)).unwrap());
    sender.send([frame(60, 1).as_slice()]).unwrap();
    assert!(matches!(sender.wait(Some(DEADLINE)), Err(Error::Usage(_))));
    assert!(matches!(receiver.wait(Duration::ZERO, Some(DEADLINE)), Err(Error::Usage(_))));
    host.take(1);
    assert!(host.deliver(&frame(60, 1)));
    host.rx.release();
    assert!(sender.wait(Some(DEADLINE)).unwrap() && receiver.wait(Duration::ZERO, Some(DEADLINE)).unwrap());
}

fn bells() -> (Bells, Bells) {
    let (kick, call) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
    let shared = |bell: &Doorbell| Doorbell::from_fd(rustix::io::dup(bell).unwrap());
    let theirs = Bells { kick: shared(&kick), call: shared(&call) };
    (Bells { kick, call }, theirs)
}

/// With nothing happening a wait ends after its time and says so, again and again.
#[test]
fn wait_without_traffic_ends_after_its_time() {
    let (mut sender, mut receiver, mut host) = device(1500, 1, 8);
    let ((tx, _their_tx), (rx, _their_rx)) = (bells(), bells());
    sender.connect(tx);
    receiver.connect(rx);
    sender.send([frame(60, 1).as_slice()]).unwrap();
    for _ in 0..3 {
        assert!(!sender.wait(Some(Duration::from_millis(1))).unwrap());
        assert!(!receiver.wait(Duration::ZERO, Some(Duration::from_millis(1))).unwrap());
    }
    assert_eq!((3, 3), (sender.totals().sleeps, receiver.totals().sleeps));
    assert_eq!((Ok(1), Ok(8)), (host.tx.available(), host.rx.available()));
}

/// A host that sleeps is kicked once for the next frames, and one that is awake never.
#[test]
fn host_is_kicked_only_while_it_sleeps() {
    let (mut sender, _receiver, mut host) = device(1500, 8, 8);
    let (ours, theirs) = bells();
    sender.connect(ours);
    sender.send([frame(60, 1).as_slice()]).unwrap();
    assert_eq!((1, 0), (host.take(8).len(), sender.totals().kicks));

    assert!(host.tx.arm().unwrap());
    for _ in 0..3 {
        sender.send([frame(60, 2).as_slice()]).unwrap();
    }

    assert_eq!(1, sender.totals().kicks);
    assert!(theirs.kick.wait(Some(DEADLINE)).unwrap());
    assert_eq!(3, host.take(8).len());
}

/// Both halves asleep are woken by a host in another thread, for each of many frames, and lose none.
#[test]
fn sleeping_halves_are_woken_for_every_frame() {
    const FRAMES: usize = 2000;
    let (mut sender, mut receiver, mut host) = device(1500, 2, 2);
    let ((tx, their_tx), (rx, their_rx)) = (bells(), bells());
    sender.connect(tx);
    receiver.connect(rx);
    let echoing = thread::spawn(move || {
        let mut waiting = VecDeque::new();
        let mut echoed = 0;
        while echoed < FRAMES {
            waiting.extend(host.take(2));
            if host.tx.notify() {
                their_tx.call.ring().unwrap();
            }
            let Some(next) = waiting.front() else {
                if host.tx.arm().unwrap() {
                    assert!(their_tx.kick.wait(Some(DEADLINE)).unwrap(), "nothing to echo");
                    host.tx.listener().mask();
                }
                continue;
            };
            if host.deliver(next) {
                host.rx.release();
                waiting.pop_front();
                echoed += 1;
                if host.rx.notify() {
                    their_rx.call.ring().unwrap();
                }
            } else if host.rx.arm().unwrap() {
                assert!(their_rx.kick.wait(Some(DEADLINE)).unwrap(), "no buffer to echo into");
                host.rx.listener().mask();
            }
        }
    });
    let receiving = thread::spawn(move || {
        let mut frames = Vec::new();
        while frames.len() < FRAMES {
            frames.extend(received(&mut receiver));
            assert!(frames.len() == FRAMES || receiver.wait(Duration::ZERO, Some(DEADLINE)).unwrap(), "no frame came");
        }
        frames
    });

    let sent: Vec<_> = (0..FRAMES).map(|number| frame(14 + number % 1500, number)).collect();
    let mut done = 0;
    while done < FRAMES {
        done += sender.send(sent[done..].iter().map(Vec::as_slice)).unwrap();
        assert!(done == FRAMES || sender.wait(Some(DEADLINE)).unwrap(), "no slot came back");
    }

    echoing.join().unwrap();
    assert_eq!(sent, receiving.join().unwrap());
}

/// One thing that guest or host does.
#[derive(Clone, Debug)]
enum Step {
    Send(Vec<usize>),
    Claim(usize),
    HostTakes(u32),
    HostDelivers(usize),
    HostFlushes,
    HostReleases,
    Receive(u32),
    Hold(u32),
    GiveBack(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        vec(14..=218usize, 0..5).prop_map(Step::Send),
        (14..=218usize).prop_map(Step::Claim),
        (0..6u32).prop_map(Step::HostTakes),
        (14..=218usize).prop_map(Step::HostDelivers),
        Just(Step::HostFlushes),
        Just(Step::HostReleases),
        (0..6u32).prop_map(Step::Receive),
        (0..4u32).prop_map(Step::Hold),
        (0..8usize).prop_map(Step::GiveBack),
    ]
}

proptest! {
    /// Whatever the order of steps, each direction is a plain queue: frames whole, in order, none lost or invented, and
    /// every buffer is in exactly one place.
    #[test]
    fn device_is_two_plain_queues(tx_slots in (0..4u32).prop_map(|exponent| 1 << exponent),
                                  rx_slots in (0..4u32).prop_map(|exponent| 1 << exponent),
                                  steps in vec(step(), 0..150)) {
        let (mut sender, mut receiver, mut host) = device(200, tx_slots, rx_slots);
        let (mut on_the_way, mut delivered, mut released) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let mut held: Vec<(Held, Vec<u8>)> = Vec::new();
        let mut number = 0;
        let mut next_frame = |length| {
            number += 1;
            frame(length, number)
        };
        for step in steps {
            match step {
                Step::Send(lengths) => {
                    let frames: Vec<_> = lengths.into_iter().map(&mut next_frame).collect();
                    let sent = sender.send(frames.iter().map(Vec::as_slice)).unwrap();
                    prop_assert!(sent == frames.len() || on_the_way.len() + sent > 0, "an empty ring has room");
                    on_the_way.extend(frames.into_iter().take(sent));
                }
                Step::Claim(length) => {
                    if let Some(offset) = sender.claim(length).unwrap() {
                        let frame = next_frame(length);
                        host.write(offset, &frame);
                        sender.commit(offset, length as u32);
                        sender.flush().unwrap();
                        on_the_way.push_back(frame);
                    }
                }
                Step::HostTakes(most) => {
                    for frame in host.take(most) {
                        prop_assert_eq!(on_the_way.pop_front(), Some(frame));
                    }
                }
                Step::HostDelivers(length) => {
                    let frame = next_frame(length);
                    if host.deliver(&frame) {
                        delivered.push_back(Some(frame));
                    }
                }
                Step::HostFlushes => {
                    if host.rx.refresh().unwrap() != 0 {
                        host.complete(|posted| Descriptor::new(posted.offset, 0));
                        delivered.push_back(None);
                    }
                }
                Step::HostReleases => {
                    host.rx.release();
                    released.append(&mut delivered);
                }
                Step::Receive(most) => {
                    let mut found = VecDeque::new();
                    receiver.receive(most, |frame| found.push_back(frame.to_vec())).unwrap();
                    while let Some(frame) = found.pop_front() {
                        while released.front() == Some(&None) {
                            released.pop_front();
                        }
                        prop_assert_eq!(released.pop_front().flatten(), Some(frame));
                    }
                }
                Step::Hold(most) => {
                    let mut found = Vec::new();
                    receiver.hold(most, &mut found).unwrap();
                    for view in found {
                        while released.front() == Some(&None) {
                            released.pop_front();
                        }
                        let frame = released.pop_front().flatten().unwrap();
                        held.push((view, frame));
                    }
                }
                Step::GiveBack(which) => {
                    if !held.is_empty() {
                        let (view, _) = held.swap_remove(which % held.len());
                        receiver.give_back(view.buffer).unwrap();
                    }
                }
            }
            let posted = host.posted();
            for (view, frame) in &held {
                prop_assert!(!posted.contains(&view.offset));
                prop_assert_eq!(frame, &host.bytes(view.offset, view.length));
            }
        }
    }

    /// A host that answers with any words at all gets a fault or frames within the posted buffers, and never a panic.
    #[test]
    fn any_words_in_the_slots_are_judged(words in vec(any::<u64>(), 1..8), honest in vec(any::<bool>(), 8)) {
        let (_sender, mut receiver, mut host) = device(200, 8, 8);
        let mut is_fair = true;
        for (word, honest) in words.iter().zip(honest) {
            let lie = Descriptor::from_word(*word);
            host.complete(|posted| {
                let truth = Descriptor::new(posted.offset, lie.length % 219);
                let answer = if honest { truth } else { lie };
                is_fair &= answer.offset == posted.offset && answer.length <= 218 && answer.flags == 0;
                answer
            });
        }
        host.rx.release();

        let found = receiver.receive(8, |frame| assert!((1..=218).contains(&frame.len())));

        if is_fair {
            prop_assert!(found.is_ok());
        } else {
            prop_assert!(matches!(fault(found), Fault::ForeignCompletion { .. }), "a lie was believed");
        }
    }

    /// Parts of a planned device never overlap, are aligned, and lie behind the RAM header and below its end.
    #[test]
    fn planned_parts_do_not_overlap(start in 0..1_000_000u32, mtu in 68..=9000u32,
                                    tx in (0..10u32).prop_map(|exponent| 1 << exponent),
                                    rx in (0..10u32).prop_map(|exponent| 1 << exponent)) {
        let layout = VenetLayout::plan(start, mtu, tx, rx).unwrap();

        let parts = [
            (start.max(4096), 0),
            (layout.tx_offset, 0x400 + 8 * tx),
            (layout.rx_offset, 0x400 + 8 * rx),
            (layout.arena_offset, layout.arena_bytes),
            (layout.buffers_offset, layout.buffers * (mtu + 18)),
            (layout.end, 0),
        ];
        for pair in parts.windows(2) {
            prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{:?} overlaps {:?}", pair[0], pair[1]);
        }
        prop_assert!(layout.tx_offset.is_multiple_of(128) && layout.rx_offset.is_multiple_of(128));
        prop_assert!(layout.arena_offset.is_multiple_of(64) && layout.buffers_offset.is_multiple_of(64));
        prop_assert!(layout.arena_bytes >= tx * (mtu + 18) && layout.buffers > rx);
        prop_assert_eq!((0x400 + 8 * tx, 0x400 + 8 * rx), (layout.tx_bytes(), layout.rx_bytes()));
        prop_assert!(layout.ram_bytes() >= u64::from(layout.end) && layout.ram_bytes().is_multiple_of(4096));
    }
}
