//! What a driver may do to its queue and we with it, step by step: how tests search for a way out of the driver's memory.
//!
//! Property tests ([`super::queue`]) make steps of numbers at which something changes; fuzz targets (`rust/fuzz`) make them of
//! bytes, guided by what code these reach. Nothing but tests and fuzz targets is built with this.
//!
//! Who writes what: here one thread is the driver and the device, for what both do at once others look at
//! (`descriptor_that_changes_while_it_is_read_never_leads_outside`).

#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;

use arbitrary::{Arbitrary, Result, Unstructured};

use super::queue::{Ahead, CHAIN_MAX, Chain, Checked, Direction, PIECES_MAX, Queue, QueueAt, Segment, Used};
use super::test_memory::{BYTES, END, GUEST, TestMemory, USER};

/// Rings lie one behind the other, and tables behind them.
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
pub(super) const TABLES: u64 = 0x1000;
/// Longest queue here, and most steps of bytes.
const SIZE_MAX: u32 = 32;
const STEPS_MAX: usize = 200;

/// One thing that a driver writes, or that we do.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A descriptor or an entry of a table: its place, address, length, and two words.
    Describe(u64, u64, u32, [u16; 2]),
    /// A word of the rings.
    Write(u64, u16),
    /// How far the driver is, counted from where we are.
    Offer(u16),
    Look(usize),
    Complete(usize),
    Rewind,
    Arm,
    /// The next chain as one of both directions; only of a split queue, with nothing looked at.
    Request,
}

/// A queue and what happens to it.
#[derive(Clone, Debug)]
pub struct Walk {
    pub(super) size: u32,
    pub(super) direction: Direction,
    pub(super) steps: Vec<Step>,
}

impl Walk {
    /// Walks a split queue, whose size is a power of two.
    pub fn split(&self) {
        self.run(self.size.next_power_of_two(), false);
    }

    /// Walks a packed queue.
    pub fn packed(&self) {
        self.run(self.size, true);
    }

    /// Does one step after the other, and looks at every chain that is found. A queue is left alone after its first fault.
    fn run(&self, size: u32, is_packed: bool) {
        let memory = TestMemory::new();
        let at = QueueAt {
            size,
            descriptors: USER,
            available: USER + AVAILABLE,
            used: USER + USED,
            has_event_index: size.is_multiple_of(2),
            has_indirect: true,
            is_packed,
        };
        let mut queue = Queue::new(memory.whole(), &at, 0x8000, None).unwrap();
        let mut ahead = Ahead::default();
        for step in &self.steps {
            let outcome = self.take(step, &memory, &mut queue, &mut ahead);
            for chain in &ahead.chains {
                if chain.pieces == 0 {
                    assert!(memory.holds(chain.place.as_ptr(), chain.bytes), "{chain:?}");
                    continue;
                }
                assert_eq!(u64::from(chain.bytes), checked(&memory, ahead.pieces_of(chain)).min(u32::MAX.into()));
            }
            if outcome.is_err() {
                return;
            }
        }
    }

    fn take(&self, step: &Step, memory: &TestMemory, queue: &mut Queue, ahead: &mut Ahead) -> Checked<()> {
        match *step {
            Step::Describe(at, address, length, words) => memory.describe(at, address, length, words),
            Step::Write(at, value) => memory.word(at).store(value, Ordering::Relaxed),
            Step::Offer(count) => {
                let next = (queue.position() as u16).wrapping_add(count);
                memory.word(AVAILABLE + 2).store(next, Ordering::Relaxed);
            }
            Step::Look(wanted) => {
                let (chains, pieces) = (ahead.chains.len(), ahead.pieces.len());
                let found = queue.look(self.direction, wanted, ahead);
                assert!(found.is_ok_and(|found| found <= wanted) || found.is_err());
                assert_eq!(chains + found.unwrap_or(0), ahead.chains.len());
                assert!(ahead.chains.len() <= queue.size() as usize);
                assert!(ahead.pieces.len() < pieces + PIECES_MAX + 2 * CHAIN_MAX as usize);
                found?;
            }
            Step::Complete(count) => {
                let count = count.min(ahead.chains.len());
                if count != 0 {
                    let used = |chain: Chain| Used { written: chain.bytes, ..chain.used };
                    queue.complete(ahead.chains.drain(..count).map(used));
                }
            }
            Step::Rewind => {
                queue.rewind();
                ahead.clear();
            }
            Step::Arm => {
                queue.arm()?;
            }
            Step::Request => request(memory, queue, ahead)?,
        }
        Ok(())
    }
}

/// Takes the next chain of a split queue as a request, and completes it.
fn request(memory: &TestMemory, queue: &mut Queue, ahead: &Ahead) -> Checked<()> {
    let Queue::Split(queue) = queue else { return Ok(()) };
    if !ahead.chains.is_empty() || queue.refresh()? == 0 {
        return Ok(());
    }
    let (mut from, mut to) = (Vec::new(), Vec::new());
    let used = queue.request(&mut from, &mut to)?;
    assert!(from.len() + to.len() < 2 * CHAIN_MAX as usize);
    checked(memory, &from);
    checked(memory, &to);
    queue.complete(std::iter::once(used));
    Ok(())
}

/// Bytes of pieces, each of which is there.
fn checked(memory: &TestMemory, pieces: &[Segment]) -> u64 {
    assert!(pieces.iter().all(|piece| piece.bytes != 0 && memory.holds(piece.place.as_ptr(), piece.bytes)));
    pieces.iter().map(|piece| u64::from(piece.bytes)).sum()
}

impl<'a> Arbitrary<'a> for Walk {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let size = bytes.int_in_range(1..=SIZE_MAX)?;
        let direction = if bytes.arbitrary()? { Direction::FromDriver } else { Direction::ToDriver };
        let mut steps = Vec::new();
        while !bytes.is_empty() && steps.len() < STEPS_MAX {
            steps.push(Step::arbitrary(bytes)?);
        }
        Ok(Self { size, direction, steps })
    }
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match bytes.int_in_range(0..=9_u8)? {
            0..=2 => {
                let entry = bytes.int_in_range(0..=0x5f_u64)?;
                // The queue's own table, or one of the indirect ones.
                let at = if entry < 0x20 { 16 * entry } else { TABLES + 16 * (entry - 0x20) };
                Self::Describe(at, address(bytes)?, length(bytes)?, bytes.arbitrary()?)
            }
            3 => Self::Write(2 * bytes.int_in_range(0..=0x5ff_u64)?, bytes.arbitrary()?),
            4 => Self::Offer(bytes.int_in_range(0..=40)?),
            5 => Self::Look(bytes.int_in_range(0..=8)?),
            6 => Self::Complete(bytes.int_in_range(0..=8)?),
            7 => Self::Rewind,
            8 => Self::Arm,
            _ => Self::Request,
        })
    }
}

fn address(bytes: &mut Unstructured<'_>) -> Result<u64> {
    let edges = [0, GUEST - 1, GUEST, GUEST + BYTES - 1, GUEST + BYTES, END - 16, END - 1, END, u64::MAX - 15];
    match bytes.int_in_range(0..=3_u8)? {
        0 => bytes.choose(&edges).copied(),
        1 => Ok(GUEST + TABLES + 16 * bytes.int_in_range(0..=0x3f_u64)?),
        2 => Ok(GUEST + bytes.int_in_range(0..=2 * BYTES)?),
        _ => bytes.arbitrary(),
    }
}

fn length(bytes: &mut Unstructured<'_>) -> Result<u32> {
    match bytes.int_in_range(0..=3_u8)? {
        0 => bytes.choose(&[0, 1, 0x8000, 0x1_0000, u32::MAX]).copied(),
        1 => Ok(16 * bytes.int_in_range(0..=70)?),
        2 => Ok(bytes.int_in_range(1..=300)?),
        _ => bytes.arbitrary(),
    }
}
