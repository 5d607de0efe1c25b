//! A front end that says and writes anything, step by step, and a port that hears it while others are served on.
//!
//! Property tests (`vhost_fuzz.rs`) make the steps of numbers at which something changes; a fuzz target (`rust/fuzz`) makes
//! them of bytes, guided by what code these reach.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use arbitrary::{Arbitrary, Result, Unstructured};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::shm::doorbell::Doorbell;

use crate::switch_guest::{Lab, frame, mac};
use crate::vhost_front::{
    EVENT_INDEX, FEATURES, GUEST, LOG_ALL, MEMORY, Memory, PACKED, SET_FEATURES, SET_INFLIGHT_FD, SET_LOG_BASE,
    SET_MEM_TABLE, SET_PROTOCOL_FEATURES, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE,
    SET_VRING_KICK, SET_VRING_NUM, USER, Wire, add_port, inflight, longs, memfd, table, wait_until_alone, words,
};

/// Most steps that are made of bytes.
const STEPS_MAX: usize = 40;

/// One thing that a front end does.
#[derive(Clone, Debug)]
pub enum Step {
    /// Anything, with any of its descriptors.
    Say(u32, u32, Vec<u8>, Vec<usize>),
    /// Bytes that are no message.
    Noise(Vec<u8>),
    Agree(u64),
    Share(u64),
    /// A queue set up whole: index, size, base, where its rings are.
    Queue(u32, u32, u32, u64),
    Track(u16, u16, u64, u64),
    /// A log for so many bytes from there on, and of one queue's rings by an address.
    Log(u64, u64, u32, u64),
    /// Words written into the memory, wherever queues may be, then a kick.
    Write(Vec<(u64, u64)>),
}

/// All that one front end does.
#[derive(Clone, Debug)]
pub struct Speech {
    /// It begins as an honest one does.
    pub is_set_up: bool,
    pub steps: Vec<Step>,
}

struct Speaker {
    wire: Wire,
    memory: Memory,
    kick: Doorbell,
    call: Doorbell,
    region: File,
}

impl Speaker {
    fn act(&self, step: &Step) {
        let files = [self.memory.file.as_fd(), self.kick.as_fd(), self.region.as_fd()];
        let send = |request, body: &[u8], files: &[BorrowedFd<'_>]| self.wire.send(request, 0, body, files);
        match step {
            Step::Say(request, flags, body, with) => {
                let with: Vec<BorrowedFd<'_>> = with.iter().map(|&file| files[file]).collect();
                self.wire.send(*request, *flags, body, &with);
            }
            Step::Noise(bytes) => self.wire.raw(bytes, &[]),
            Step::Agree(features) => {
                send(SET_PROTOCOL_FEATURES, &longs(&[1 | 2 | 4 | 8 | 0x200 | 0x1000 | 0x2000 | 0x8000]), &[]);
                send(SET_FEATURES, &longs(&[*features]), &[]);
            }
            Step::Share(bytes) => send(SET_MEM_TABLE, &table(&[[GUEST, *bytes, USER, 0]]), &files[..1]),
            Step::Queue(index, size, base, at) => {
                send(SET_VRING_NUM, &words(&[*index, *size]), &[]);
                send(SET_VRING_BASE, &words(&[*index, *base]), &[]);
                let rings = longs(&[USER + at, USER + at + 0x1800, USER + at + 0x1000, 0]);
                send(SET_VRING_ADDR, &[words(&[*index, 0]), rings].concat(), &[]);
                send(SET_VRING_CALL, &longs(&[u64::from(*index)]), &[self.call.as_fd()]);
                send(SET_VRING_KICK, &longs(&[u64::from(*index)]), &[self.kick.as_fd()]);
                send(SET_VRING_ENABLE, &words(&[*index, 1]), &[]);
            }
            Step::Track(queues, size, bytes, offset) => {
                send(SET_INFLIGHT_FD, &inflight(*bytes, *offset, *queues, *size), &files[2..]);
            }
            Step::Log(bytes, offset, index, address) => {
                send(SET_LOG_BASE, &longs(&[*bytes, *offset]), &files[2..]);
                let rings = longs(&[USER, USER + 0x1800, USER + 0x1000, *address]);
                send(SET_VRING_ADDR, &[words(&[*index, 1]), rings].concat(), &[]);
            }
            Step::Write(entries) => {
                for &(at, word) in entries {
                    self.memory.write(at & !7, &word.to_le_bytes());
                }
                let _ = self.kick.ring();
            }
        }
    }
}

/// A port that front ends come to one after the other, and two guests beside it.
pub struct Stage {
    lab: Lab,
    path: PathBuf,
}

impl Stage {
    pub fn new() -> Self {
        let lab = Lab::new(2);
        let path = add_port(&lab, "vm");
        Self { lab, path }
    }

    /// Lets a front end do all that it does, with frames for it meanwhile; when it has gone, a frame passes between the guests.
    pub fn hear(&mut self, speech: &Speech) {
        let Self { lab, path } = self;
        let speaker = Speaker {
            wire: Wire::connect(path),
            memory: Memory::new(),
            kick: Doorbell::create().unwrap(),
            call: Doorbell::create().unwrap(),
            region: memfd(0x2_0000),
        };
        let start = [Step::Agree(FEATURES), Step::Share(MEMORY)];
        let start = start.iter().filter(|_| speech.is_set_up);
        start.chain(&speech.steps).for_each(|step| speaker.act(step));
        lab.guests[0].send(&frame(MacAddress::BROADCAST, mac(9), 200, 1));
        lab.guests[0].drain();
        let _ = speaker.wire.0.shutdown(Shutdown::Write);
        let _ = (&speaker.wire.0).read_to_end(&mut Vec::new());
        wait_until_alone(lab, "vm");
        lab.barrier();
        let _ = lab.fabric.take_faults();
        let _ = lab.guests[1].received();
        lab.guests[1].refill();
        lab.assert_passes(0, 1);
        let _ = lab.guests[1].received();
        lab.guests[1].refill();
    }
}

impl<'a> Arbitrary<'a> for Speech {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let is_set_up = bytes.arbitrary()?;
        let mut steps = Vec::new();
        while !bytes.is_empty() && steps.len() < STEPS_MAX {
            steps.push(Step::arbitrary(bytes)?);
        }
        Ok(Self { is_set_up, steps })
    }
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match bytes.int_in_range(0..=10_u8)? {
            0 | 1 => {
                let request = bytes.int_in_range(0..=49)?;
                let flags = *bytes.choose(&[0, 8, 4, 12])?;
                let numbers = bytes.int_in_range(0..=5_usize)?;
                let body = (0..numbers).map(|_| number(bytes)).collect::<Result<Vec<_>>>()?;
                let mut body = longs(&body);
                body.truncate(body.len() - bytes.int_in_range(0..=body.len().min(4))?);
                let files = bytes.int_in_range(0..=2_usize)?;
                let files = (0..files).map(|_| bytes.int_in_range(0..=2)).collect::<Result<_>>()?;
                Self::Say(request, flags, body, files)
            }
            2 => {
                let length = bytes.int_in_range(1..=39_usize)?.min(bytes.len());
                Self::Noise(bytes.bytes(length)?.to_vec())
            }
            3 => {
                let kinds = [FEATURES, FEATURES | PACKED, FEATURES | EVENT_INDEX, FEATURES | PACKED | EVENT_INDEX, 0];
                Self::Agree(*bytes.choose(&kinds)? | *bytes.choose(&[0, LOG_ALL])?)
            }
            4 => Self::Share(if bytes.arbitrary()? { MEMORY } else { bytes.int_in_range(1..=MEMORY + 1)? }),
            5 | 6 => Self::Queue(
                bytes.int_in_range(0..=4)?,
                *bytes.choose(&[64, 1, 2, 4, 256, 3])?,
                if bytes.arbitrary()? { *bytes.choose(&[0, 0x8000])? } else { bytes.arbitrary()? },
                *bytes.choose(&[0, 0x2000, 0x4000, 0x1_0000])?,
            ),
            7 => Self::Track(
                bytes.int_in_range(0..=4)?,
                *bytes.choose(&[0, 1, 64, 256])?,
                *bytes.choose(&[0, 64, 0x1000, 0x2_0000])?,
                number(bytes)?,
            ),
            8 => Self::Log(
                *bytes.choose(&[0, 1, 0x1000, 0x2_0000, 0x2_0001])?,
                number(bytes)?,
                bytes.int_in_range(0..=4)?,
                if bytes.arbitrary()? { GUEST } else { number(bytes)? },
            ),
            _ => {
                let count = bytes.int_in_range(1..=16_usize)?;
                let entry = |bytes: &mut Unstructured<'_>| Ok((bytes.int_in_range(0..=0xcfff)?, ring_word(bytes)?));
                Self::Write((0..count).map(|_| entry(bytes)).collect::<Result<_>>()?)
            }
        })
    }
}

/// A number at which something may change.
fn number(bytes: &mut Unstructured<'_>) -> Result<u64> {
    let edges = [0, 1, 2, 8, 16, 64, 65, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_0000, u64::MAX, u64::MAX - 7];
    let places = [USER, USER + 0x1000, USER + 0x2000, GUEST, GUEST + MEMORY - 8, GUEST + MEMORY, USER + MEMORY - 16];
    match bytes.int_in_range(0..=3_u8)? {
        0 => bytes.choose(&edges).copied(),
        1 => bytes.choose(&places).copied(),
        2 => bytes.int_in_range(0..=299),
        _ => bytes.arbitrary(),
    }
}

/// Half a descriptor, or another word of a ring.
fn ring_word(bytes: &mut Unstructured<'_>) -> Result<u64> {
    match bytes.int_in_range(0..=3_u8)? {
        0 | 1 => {
            let length = *bytes.choose(&[64_u32, 0, 1, 11, 12, 26, 1500, 4096, 0x1_0000, u32::MAX])?;
            Ok(u64::from(length) | u64::from(bytes.arbitrary::<u32>()?) << 32)
        }
        2 => Ok(GUEST + bytes.int_in_range(0..=MEMORY + 63)?),
        _ => number(bytes),
    }
}
