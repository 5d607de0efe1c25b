//! A back end for tests of ports that are front ends: it speaks the protocol, does what a test wants it to say instead, and
//! works its queues word by word.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vbnet_core::shm::doorbell::Doorbell;

use crate::switch_guest::DEADLINE;
use crate::vhost_front::{
    EVENT_INDEX, GET_FEATURES, GET_PROTOCOL_FEATURES, HEADER, PROTOCOL, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_CALL,
    SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM, VERSION_1, longs,
};

/// `VHOST_USER_PROTOCOL_F_REPLY_ACK`.
pub const REPLY_ACK: u64 = 1 << 3;
const NEED_REPLY: u32 = 8;
const REPLY: u32 = 1 | 4;

/// Numbers of the queue to the driver and of the one from it.
pub const RX: usize = 0;
pub const TX: usize = 1;

/// One request: its number, its flags, its body, and the descriptors that came with it.
pub struct Request {
    pub number: u32,
    pub flags: u32,
    pub body: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

impl Request {
    fn long(&self, index: usize) -> u64 {
        u64::from_le_bytes(self.body[8 * index..8 * index + 8].try_into().unwrap())
    }

    fn word(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.body[4 * index..4 * index + 4].try_into().unwrap())
    }
}

/// The bytes of an answer.
pub fn reply(number: u32, body: &[u8]) -> Vec<u8> {
    [[number, REPLY, body.len() as u32].map(u32::to_le_bytes).concat(), body.to_vec()].concat()
}

#[derive(Default)]
struct QueueAt {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    call: Option<Doorbell>,
    kick: Option<OwnedFd>,
    is_enabled: bool,
    taken: u16,
    done: u16,
}

/// A back end with a front end at the other end.
pub struct BackEnd {
    pub stream: UnixStream,
    base: *mut u8,
    length: usize,
    guest: u64,
    queues: [QueueAt; 2],
}

impl BackEnd {
    /// Waits for a front end and does what it asks until both queues are enabled.
    pub fn accept(listener: &UnixListener) -> Self {
        let mut back = Self::meet(listener);
        while !back.queues.iter().all(|queue| queue.is_enabled) {
            let request = back.next().expect("a request");
            back.answer(&request);
        }
        back
    }

    /// Waits for a front end.
    pub fn meet(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { stream, base: std::ptr::null_mut(), length: 0, guest: 0, queues: Default::default() }
    }

    /// The next request; none: the front end hung up.
    pub fn next(&mut self) -> Option<Request> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut head = [0; 12];
        let read = recvmsg(&self.stream, &mut [IoSliceMut::new(&mut head)], &mut control, RecvFlags::WAITALL);
        if read.map_or(0, |read| read.bytes) != head.len() {
            return None;
        }
        let files = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect(),
            _ => Vec::new(),
        });
        let files = files.collect();
        let word = |index: usize| u32::from_le_bytes(head[4 * index..4 * index + 4].try_into().unwrap());
        let mut body = vec![0; word(2) as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some(Request { number: word(0), flags: word(1), body, files })
    }

    /// What an honest back end answers; none: nothing.
    pub fn honest(request: &Request) -> Option<Vec<u8>> {
        let body = match request.number {
            GET_FEATURES => longs(&[VERSION_1 | EVENT_INDEX | PROTOCOL]),
            GET_PROTOCOL_FEATURES => longs(&[REPLY_ACK]),
            _ if request.flags & NEED_REPLY != 0 => longs(&[0]),
            _ => return None,
        };
        Some(reply(request.number, &body))
    }

    /// Does what a request asks, and answers.
    pub fn answer(&mut self, request: &Request) {
        self.note(request);
        if let Some(bytes) = Self::honest(request) {
            self.say(&bytes);
        }
    }

    /// Sends bytes. A front end that hung up meanwhile is no mistake of the test.
    pub fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    fn note(&mut self, request: &Request) {
        let number = request.body.first().map_or(0, |&byte| usize::from(byte & 1));
        match request.number {
            SET_MEM_TABLE => {
                assert_eq!(1, request.word(0));
                (self.guest, self.length) = (request.long(3), request.long(2) as usize);
                // SAFETY: a fresh mapping of what was sent.
                self.base = unsafe {
                    let rights = ProtFlags::READ | ProtFlags::WRITE;
                    mmap(std::ptr::null_mut(), self.length, rights, MapFlags::SHARED, &request.files[0], 0).unwrap()
                }
                .cast();
            }
            SET_VRING_NUM => self.queues[number].size = request.word(1) as u16,
            SET_VRING_ADDR => {
                let queue = &mut self.queues[number];
                (queue.descriptors, queue.used, queue.available) = (request.long(1), request.long(2), request.long(3));
            }
            SET_VRING_CALL => {
                self.queues[number].call = Some(Doorbell::from_fd(request.files[0].try_clone().unwrap()));
            }
            SET_VRING_KICK => self.queues[number].kick = Some(request.files[0].try_clone().unwrap()),
            SET_VRING_ENABLE => self.queues[number].is_enabled = request.word(1) == 1,
            _ => {}
        }
    }

    fn place(&self, address: u64, bytes: usize) -> *mut u8 {
        let offset = (address - self.guest) as usize;
        assert!(offset + bytes <= self.length);
        self.base.wrapping_add(offset)
    }

    fn word(&self, address: u64) -> &AtomicU16 {
        // SAFETY: within the mapping, as `place` checks, and aligned, as rings are.
        unsafe { AtomicU16::from_ptr(self.place(address, 2).cast()) }
    }

    fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        // SAFETY: within the mapping, as `place` checks.
        unsafe { self.place(address, length).copy_to_nonoverlapping(bytes.as_mut_ptr(), length) };
        bytes
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        // SAFETY: within the mapping, as `place` checks.
        unsafe { bytes.as_ptr().copy_to_nonoverlapping(self.place(address, bytes.len()), bytes.len()) };
    }

    /// Chains that are available and were not taken.
    pub fn waiting(&self, queue: usize) -> u16 {
        let QueueAt { available, taken, .. } = self.queues[queue];
        self.word(available + 2).load(Ordering::Acquire).wrapping_sub(taken)
    }

    /// Takes the next chain: its number, address and length. None: there is none.
    pub fn take(&mut self, queue: usize) -> Option<(u16, u64, u32)> {
        if self.waiting(queue) == 0 {
            return None;
        }
        let QueueAt { size, descriptors, available, taken, .. } = self.queues[queue];
        self.queues[queue].taken = taken.wrapping_add(1);
        let id = self.word(available + 4 + 2 * u64::from(taken % size)).load(Ordering::Relaxed);
        let entry = self.read(descriptors + 16 * u64::from(id % size), 12);
        let address = u64::from_le_bytes(entry[..8].try_into().unwrap());
        Some((id, address, u32::from_le_bytes(entry[8..].try_into().unwrap())))
    }

    /// Writes a used entry, and shows it.
    pub fn complete(&mut self, queue: usize, id: u32, length: u32) {
        self.complete_all(queue, &[(id, length)]);
    }

    /// Writes used entries, and shows them at once.
    pub fn complete_all(&mut self, queue: usize, entries: &[(u32, u32)]) {
        let QueueAt { size, used, mut done, .. } = self.queues[queue];
        for &(id, length) in entries {
            self.write(used + 4 + 8 * u64::from(done % size), &[id.to_le_bytes(), length.to_le_bytes()].concat());
            done = done.wrapping_add(1);
        }
        self.show(queue, done);
    }

    /// Shows so many used entries, whether there are as many or not, and calls.
    pub fn show(&mut self, queue: usize, done: u16) {
        self.word(self.queues[queue].used + 2).store(done, Ordering::Release);
        self.queues[queue].done = done;
        self.queues[queue].call.as_ref().unwrap().ring().unwrap();
    }

    /// Writes anywhere in the memory, or nothing beyond its end.
    pub fn scribble(&self, place: u64, bytes: &[u8]) {
        if place as usize + bytes.len() <= self.length {
            self.write(self.guest + place, bytes);
        }
    }

    /// The next frame from the front end, whose buffer goes back.
    pub fn frame(&mut self) -> Option<Vec<u8>> {
        let (id, address, length) = self.take(TX)?;
        let bytes = self.read(address, length as usize);
        self.complete(TX, id.into(), 0);
        assert_eq!([0; 10], bytes[..10], "a request that was not agreed on");
        Some(bytes[HEADER..].to_vec())
    }

    /// Gives a frame to the front end, with this header.
    pub fn give(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let (id, address, room) = self.take(RX).expect("a posted buffer");
        let bytes = [&header[..], frame].concat();
        assert!(bytes.len() <= room as usize);
        self.write(address, &bytes);
        self.complete(RX, id.into(), bytes.len() as u32);
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        if !self.base.is_null() {
            // SAFETY: what `note` mapped.
            unsafe { munmap(self.base.cast(), self.length).unwrap() };
        }
    }
}

/// A socket for a back end, at a path that is removed first.
pub fn listen(path: &Path) -> UnixListener {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).unwrap()
}
