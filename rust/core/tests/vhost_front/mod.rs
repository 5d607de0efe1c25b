//! A front end of vhost-user for tests: messages, memory and queues of both kinds made byte by byte.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod verdict;

use std::collections::HashMap;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use vbnet_core::fabric::{VenetParams, VhostUserCounter};
use vbnet_core::shm::doorbell::Doorbell;

use crate::switch_guest::{DEADLINE, Lab, SWITCH, eventually};

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_LOG_FD: u32 = 7;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SEND_RARP: u32 = 19;
pub const GET_CONFIG: u32 = 24;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const RESET_DEVICE: u32 = 34;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

pub const MERGEABLE: u64 = 1 << 15;
pub const LOG_ALL: u64 = 1 << 26;
pub const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
pub const EVENT_INDEX: u64 = 1 << 29;
pub const PROTOCOL: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
pub const PACKED: u64 = 1 << 34;
pub const IN_ORDER: u64 = 1 << 35;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const HEADER: usize = 12;
/// Entries of a queue.
pub const SIZE: u16 = 64;
/// Where descriptors begin to count, and where the front end says that it has the same bytes.
pub const GUEST: u64 = 0x4000_0000;
pub const USER: u64 = 0x7fff_0000_0000;
pub const MEMORY: u64 = 4 << 20;

/// A descriptor: address, length, flags, next.
pub type Entry = (u64, u32, u16, u16);

const QUEUE_BYTES: u64 = 0x2000;
const BUFFERS: u64 = 0x10_0000;
const BUFFER_BYTES: u64 = 4096;

static SOCKETS: AtomicU32 = AtomicU32::new(0);

/// A path for a socket that no other test has.
pub fn socket_path() -> PathBuf {
    let number = SOCKETS.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("vbnet-vhost-{}-{number}.sock", std::process::id()))
}

/// Adds a port that waits for front ends: where.
pub fn add_port(lab: &Lab, name: &str) -> PathBuf {
    let path = socket_path();
    lab.fabric.port_add_vhost_user(SWITCH, name, &path, VenetParams::default()).unwrap();
    path
}

/// What was counted for the socket of a port.
pub fn counted(lab: &Lab, port: &str, counter: VhostUserCounter) -> u64 {
    let wanted = format!("device={port},");
    let blocks = lab.counters.reader().blocks();
    let block = blocks.iter().find(|block| block.kind == "vhost_user" && block.labels.contains(&wanted)).unwrap();
    block.values[counter as usize]
}

/// Waits until no front end is connected to a port.
pub fn wait_until_alone(lab: &Lab, port: &str) {
    eventually(|| counted(lab, port, VhostUserCounter::IsConnected) == 0);
}

/// The wire: framing as the protocol has it, and nothing that keeps a test from sending nonsense.
pub struct Wire(pub UnixStream);

impl Wire {
    pub fn connect(path: &Path) -> Self {
        Self::of(UnixStream::connect(path).unwrap())
    }

    pub fn of(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self(stream)
    }

    /// Sends bytes with descriptors attached. What the other side closed meanwhile is no mistake of the test.
    pub fn raw(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(files)));
        }
        let _ = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    }

    pub fn send(&self, request: u32, flags: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        let head = [request, 1 | flags, body.len() as u32].map(u32::to_le_bytes).concat();
        self.raw(&[head, body.to_vec()].concat(), files);
    }

    /// The body of a reply.
    pub fn reply(&mut self) -> Vec<u8> {
        let mut head = [0; 12];
        self.0.read_exact(&mut head).unwrap();
        let size = u32::from_le_bytes(head[8..].try_into().unwrap());
        let mut body = vec![0; size as usize];
        self.0.read_exact(&mut body).unwrap();
        body
    }

    pub fn ask(&mut self, request: u32, body: &[u8]) -> Vec<u8> {
        self.send(request, 0, body, &[]);
        self.reply()
    }

    /// As [`Self::ask`], of what is answered with a descriptor besides.
    pub fn ask_for_file(&mut self, request: u32, body: &[u8]) -> (Vec<u8>, File) {
        self.send(request, 0, body, &[]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let read = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty()).unwrap();
        let file = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        (bytes[12..read.bytes].to_vec(), File::from(file.unwrap()))
    }

    pub fn ask_u64(&mut self, request: u32) -> u64 {
        u64::from_le_bytes(self.ask(request, &[]).try_into().unwrap())
    }

    /// Sends a request and waits for word that it was done.
    pub fn done(&mut self, request: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        self.send(request, 8, body, files);
        assert_eq!(0_u64.to_le_bytes(), self.reply()[..], "request {request}");
    }

    /// Waits until the other side has hung up.
    pub fn assert_hung_up(mut self) {
        let mut rest = Vec::new();
        // A reset is what is left of a connection that was closed before everything was read.
        let _ = self.0.read_to_end(&mut rest);
    }
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_le_bytes).collect()
}

pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().copied().flat_map(u64::to_le_bytes).collect()
}

/// The body of SET_MEM_TABLE: guest address, size, user address, offset of each region.
pub fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let head = words(&[regions.len() as u32, 0]);
    [head, regions.iter().flat_map(|region| longs(region)).collect()].concat()
}

pub fn memfd(bytes: u64) -> File {
    let file = memfd_create("front-end", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, bytes).unwrap();
    File::from(file)
}

/// Memory of the front end, mapped here.
pub struct Memory {
    pub file: File,
    base: *mut u8,
}

// SAFETY: plain shared memory; tests touch it through raw copies.
unsafe impl Send for Memory {}

impl Memory {
    pub fn new() -> Self {
        let file = memfd(MEMORY);
        // SAFETY: a fresh mapping.
        let base = unsafe {
            let (length, rights) = (MEMORY as usize, ProtFlags::READ | ProtFlags::WRITE);
            mmap(std::ptr::null_mut(), length, rights, MapFlags::SHARED, &file, 0).unwrap()
        };
        Self { file, base: base.cast() }
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= MEMORY);
        // SAFETY: within the mapping, as just checked.
        unsafe { bytes.as_ptr().copy_to_nonoverlapping(self.base.add(offset as usize), bytes.len()) };
    }

    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        assert!(offset + length as u64 <= MEMORY);
        let mut bytes = vec![0; length];
        // SAFETY: within the mapping, as just checked.
        unsafe { self.base.add(offset as usize).copy_to_nonoverlapping(bytes.as_mut_ptr(), length) };
        bytes
    }

    pub fn word(&self, offset: u64) -> &AtomicU16 {
        assert!(offset + 2 <= MEMORY && offset.is_multiple_of(2));
        // SAFETY: within the mapping and aligned, as just checked.
        unsafe { AtomicU16::from_ptr(self.base.add(offset as usize).cast()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped.
        unsafe { munmap(self.base.cast(), MEMORY as usize).unwrap() };
    }
}

/// The ring of a packed queue, as its driver has it.
#[derive(Default)]
pub struct PackedRing {
    /// Descriptors offered and seen, ever: place and wrap counter in one.
    offered: u32,
    seen: u32,
    /// What tests described, until they offer it.
    entries: HashMap<u16, Entry>,
    /// Descriptors of each chain that is under way.
    taken: HashMap<u16, u32>,
}

const fn place(count: u32) -> (u16, bool) {
    let size = SIZE as u32;
    ((count % size) as u16, (count / size).is_multiple_of(2))
}

impl PackedRing {
    fn offer(&mut self, memory: &Memory, ring: u64, head: u16) {
        let mut index = head;
        let mut first = None;
        let start = self.offered;
        loop {
            let (address, length, flags, next) = self.entries[&index];
            let (at, wrap) = place(self.offered);
            let flags = flags | if wrap { 0x80 } else { 0x8000 };
            // Its head is written last, and the flags after all else; only the last id counts, and here all are the same.
            let bytes = [&address.to_le_bytes()[..], &length.to_le_bytes(), &head.to_le_bytes()].concat();
            memory.write(ring + 16 * u64::from(at), &bytes);
            let word = memory.word(ring + 16 * u64::from(at) + 14);
            if first.is_none() {
                first = Some((word, flags));
            } else {
                word.store(flags, Ordering::Relaxed);
            }
            self.offered = self.offered.wrapping_add(1);
            if flags & NEXT == 0 {
                break;
            }
            index = next;
        }
        self.taken.insert(head, self.offered.wrapping_sub(start));
        let (word, flags) = first.unwrap();
        word.store(flags, Ordering::Release);
    }

    fn used(&mut self, memory: &Memory, ring: u64) -> Option<(u16, u32)> {
        let (at, wrap) = place(self.seen);
        let flags = memory.word(ring + 16 * u64::from(at) + 14).load(Ordering::Acquire);
        if (flags & 0x80 != 0) != wrap || (flags & 0x8000 != 0) != wrap {
            return None;
        }
        let bytes = memory.read(ring + 16 * u64::from(at) + 8, 6);
        let id = u16::from_le_bytes([bytes[4], bytes[5]]);
        self.seen = self.seen.wrapping_add(self.taken.remove(&id).expect("a chain that was offered"));
        Some((id, u32::from_le_bytes(bytes[..4].try_into().unwrap())))
    }

    /// As a front end tells it: the place of what is used next, for both.
    fn base(&self) -> u32 {
        let (at, wrap) = place(self.seen);
        u32::from(at) | u32::from(wrap) << 15
    }
}

/// One queue as its driver has it.
pub struct Queue {
    pub index: u32,
    pub kick: Doorbell,
    pub call: Doorbell,
    /// Chains offered and seen, ever.
    pub available: u16,
    pub seen: u16,
    pub packed: Option<PackedRing>,
    /// Its front end has not heard where the device was, and says that it is at the beginning.
    pub is_lost: bool,
}

impl Queue {
    /// A queue of the kind that was agreed on.
    pub fn new(index: u32, features: u64) -> Self {
        let [kick, call] = [(); 2].map(|()| Doorbell::create().unwrap());
        let packed = (features & PACKED != 0).then(PackedRing::default);
        Self { index, kick, call, available: 0, seen: 0, packed, is_lost: false }
    }

    pub fn descriptors(&self) -> u64 {
        u64::from(self.index) * QUEUE_BYTES
    }

    /// Of a packed queue: where the driver says when it wants to be called.
    pub fn available_ring(&self) -> u64 {
        self.descriptors() + 0x800
    }

    /// Of a packed queue: where the device says when it wants to be kicked.
    pub fn used_ring(&self) -> u64 {
        self.descriptors() + 0x1000
    }

    /// Offset of the buffer that descriptor `index` has unless a test says otherwise.
    pub fn buffer(&self, index: u16) -> u64 {
        BUFFERS + u64::from(self.index) * u64::from(SIZE) * BUFFER_BYTES + u64::from(index) * BUFFER_BYTES
    }

    pub fn describe(&mut self, memory: &Memory, index: u16, entry: Entry) {
        match &mut self.packed {
            Some(ring) => drop(ring.entries.insert(index, entry)),
            None => describe(memory, self.descriptors(), index, entry),
        }
    }

    /// Writes an entry of an indirect table.
    pub fn describe_in(&self, memory: &Memory, table: u64, index: u16, (address, length, flags, next): Entry) {
        let words = if self.packed.is_some() { (next, flags) } else { (flags, next) };
        describe(memory, table, index, (address, length, words.0, words.1));
    }

    /// Makes a chain available.
    pub fn offer(&mut self, memory: &Memory, head: u16) {
        let (descriptors, place) =
            (self.descriptors(), self.available_ring() + 4 + 2 * u64::from(self.available % SIZE));
        self.available = self.available.wrapping_add(1);
        if let Some(ring) = &mut self.packed {
            ring.offer(memory, descriptors, head);
        } else {
            memory.word(place).store(head, Ordering::Relaxed);
            memory.word(self.available_ring() + 2).store(self.available, Ordering::Release);
        }
    }

    /// Kicks, as drivers do that agreed on no event index and find that kicks are wanted.
    pub fn kick_if_wanted(&self, memory: &Memory) {
        fence(Ordering::SeqCst);
        let wish = self.used_ring() + if self.packed.is_some() { 2 } else { 0 };
        if memory.word(wish).load(Ordering::Relaxed) & 1 == 0 {
            self.kick.ring().unwrap();
        }
    }

    /// The oldest chain that came back and was not seen: its head and the bytes written to it.
    pub fn used(&mut self, memory: &Memory) -> Option<(u16, u32)> {
        if let Some(ring) = &mut self.packed {
            let found = ring.used(memory, u64::from(self.index) * QUEUE_BYTES)?;
            self.seen = self.seen.wrapping_add(1);
            return Some(found);
        }
        if memory.word(self.used_ring() + 2).load(Ordering::Acquire) == self.seen {
            return None;
        }
        let entry = memory.read(self.used_ring() + 4 + 8 * u64::from(self.seen % SIZE), 8);
        self.seen = self.seen.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        Some((word(0) as u16, word(4)))
    }

    /// Where the device goes on, as front ends say it.
    pub fn base(&self) -> u32 {
        match &self.packed {
            Some(_) if self.is_lost => PackedRing::default().base(),
            Some(ring) => ring.base(),
            None if self.is_lost => 0,
            None => self.seen.into(),
        }
    }
}

/// Writes a descriptor into the table at `table`.
pub fn describe(memory: &Memory, table: u64, index: u16, (address, length, flags, next): Entry) {
    let bytes = [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
    memory.write(table + 16 * u64::from(index), &bytes);
}

/// A region for chains in flight, as the host made it.
pub struct Inflight {
    pub body: Vec<u8>,
    pub file: File,
}

/// The body of messages about such a region.
pub fn inflight(bytes: u64, offset: u64, queues: u16, size: u16) -> Vec<u8> {
    [longs(&[bytes, offset]), words(&[u32::from(queues) | u32::from(size) << 16, 0])].concat()
}

/// A front end with one pair of queues: 0 takes frames in, 1 sends them.
pub struct FrontEnd {
    pub wire: Wire,
    pub memory: Memory,
    pub features: u64,
    pub rx: Queue,
    pub tx: Queue,
}

pub const FEATURES: u64 = VERSION_1 | IN_ORDER | MERGEABLE | INDIRECT_DESCRIPTORS | PROTOCOL;
/// What is agreed on for each kind of queue.
pub const KINDS: [u64; 2] = [FEATURES, FEATURES | PACKED];

impl FrontEnd {
    /// Connects, agrees, sets up both queues and posts every buffer.
    pub fn new(path: &Path) -> Self {
        Self::with(path, FEATURES)
    }

    /// As [`Self::new`], with other features.
    pub fn with(path: &Path, features: u64) -> Self {
        let mut front = Self::bare(path, features);
        front.start();
        front.post(SIZE);
        front
    }

    /// Connects, agrees and hands its memory over.
    pub fn bare(path: &Path, features: u64) -> Self {
        Self::agree(Wire::connect(path), features)
    }

    /// As [`Self::bare`], over a connection that is there.
    pub fn over(stream: UnixStream, features: u64) -> Self {
        Self::agree(Wire::of(stream), features)
    }

    /// Agrees over a connection and hands its memory over.
    pub fn agree(mut wire: Wire, features: u64) -> Self {
        wire.send(SET_OWNER, 0, &[], &[]);
        assert_eq!(features, features & wire.ask_u64(GET_FEATURES));
        assert_eq!(8, 8 & wire.ask_u64(GET_PROTOCOL_FEATURES));
        wire.send(SET_PROTOCOL_FEATURES, 0, &longs(&[1 | 2 | 8 | 0x200 | 0x1000 | 0x2000]), &[]);
        wire.done(SET_FEATURES, &longs(&[features]), &[]);
        let [rx, tx] = [0, 1].map(|index| Queue::new(index, features));
        let front = Self { wire, memory: Memory::new(), features, rx, tx };
        front.share_memory()
    }

    fn share_memory(mut self) -> Self {
        let body = table(&[[GUEST, MEMORY, USER, 0]]);
        self.wire.done(SET_MEM_TABLE, &body, &[self.memory.file.as_fd()]);
        self
    }

    /// Connects anew, with the memory and the queues it had.
    pub fn rejoin(self, path: &Path) -> Self {
        let Self { wire, memory, rx, tx, features } = self;
        // The next one waits until this one has gone.
        drop(wire);
        Self { memory, rx, tx, ..Self::bare(path, features) }.share_memory()
    }

    /// Has the host make a region for chains in flight of both queues.
    pub fn track(&mut self) -> Inflight {
        let (body, file) = self.wire.ask_for_file(GET_INFLIGHT_FD, &inflight(0, 0, 2, SIZE));
        Inflight { body, file }
    }

    /// Hands such a region over.
    pub fn hand_over(&mut self, region: &Inflight) {
        self.wire.done(SET_INFLIGHT_FD, &region.body, &[region.file.as_fd()]);
    }

    /// Sets both queues up.
    pub fn start(&mut self) {
        self.start_queue(0);
        self.start_queue(1);
    }

    pub fn start_queue(&mut self, index: u32) {
        let Self { wire, rx, tx, features, .. } = self;
        let queue = if index == 0 { rx } else { tx };
        start_queue(wire, queue, *features);
    }

    /// Stops a queue: where it was.
    pub fn stop_queue(&mut self, index: u32) -> u32 {
        let answer = self.wire.ask(GET_VRING_BASE, &words(&[index, 0]));
        u32::from_le_bytes(answer[4..].try_into().unwrap())
    }

    /// Posts `count` buffers of 4096 bytes to receive into, from descriptor 0 on.
    pub fn post(&mut self, count: u16) {
        (0..count).for_each(|index| self.post_one(index, BUFFER_BYTES as u32));
    }

    pub fn post_one(&mut self, index: u16, length: u32) {
        let address = GUEST + self.rx.buffer(index);
        self.rx.describe(&self.memory, index, (address, length, WRITE, 0));
        self.rx.offer(&self.memory, index);
    }

    /// Sends a frame in one buffer, with an empty header in front of it.
    pub fn send(&mut self, frame: &[u8]) {
        let index = self.tx.available % SIZE;
        eventually(|| self.drain_once() || self.tx.available.wrapping_sub(self.tx.seen) < SIZE);
        let place = self.tx.buffer(index);
        let bytes = [&[0; HEADER][..], frame].concat();
        self.memory.write(place, &bytes);
        self.tx.describe(&self.memory, index, (GUEST + place, bytes.len() as u32, 0, 0));
        self.offer_tx(index);
    }

    /// Makes a chain available and kicks.
    pub fn offer_tx(&mut self, head: u16) {
        self.tx.offer(&self.memory, head);
        self.tx.kick_if_wanted(&self.memory);
    }

    fn drain_once(&mut self) -> bool {
        self.tx.used(&self.memory).is_some()
    }

    /// Waits until every frame sent was taken.
    pub fn drain(&mut self) {
        eventually(|| {
            while self.drain_once() {}
            self.tx.seen == self.tx.available
        });
    }

    /// What came in, header and all; the buffer is posted again.
    pub fn receive_whole_nowait(&mut self) -> Option<Vec<u8>> {
        let (head, written) = self.rx.used(&self.memory)?;
        let bytes = self.memory.read(self.rx.buffer(head), written as usize);
        self.rx.offer(&self.memory, head);
        Some(bytes)
    }

    pub fn receive_whole(&mut self) -> Vec<u8> {
        let mut found = None;
        eventually(|| {
            found = self.receive_whole_nowait();
            found.is_some()
        });
        found.unwrap()
    }

    /// A frame that came in in one buffer.
    pub fn receive(&mut self) -> Vec<u8> {
        let bytes = self.receive_whole();
        assert_eq!([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], bytes[..HEADER], "the header");
        bytes[HEADER..].to_vec()
    }

    /// Frames that came in so far. A buffer that came back empty is none.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        let came = std::iter::from_fn(|| self.receive_whole_nowait());
        came.filter(|bytes| !bytes.is_empty()).map(|bytes| bytes[HEADER..].to_vec()).collect()
    }
}

/// The body of SET_VRING_ADDR; `log`: where writes to the used ring are to be marked.
pub fn addresses(queue: &Queue, log: Option<u64>) -> Vec<u8> {
    let rings = [USER + queue.descriptors(), USER + queue.used_ring(), USER + queue.available_ring(), log.unwrap_or(0)];
    [words(&[queue.index, log.is_some().into()]), longs(&rings)].concat()
}

pub fn start_queue(wire: &mut Wire, queue: &Queue, features: u64) {
    let index = queue.index;
    wire.done(SET_VRING_NUM, &words(&[index, SIZE.into()]), &[]);
    wire.done(SET_VRING_BASE, &words(&[index, queue.base()]), &[]);
    wire.done(SET_VRING_ADDR, &addresses(queue, None), &[]);
    wire.done(SET_VRING_CALL, &longs(&[index.into()]), &[queue.call.as_fd()]);
    wire.done(SET_VRING_KICK, &longs(&[index.into()]), &[queue.kick.as_fd()]);
    if features & PROTOCOL != 0 {
        wire.done(SET_VRING_ENABLE, &words(&[index, 1]), &[]);
    }
}
