//! Filters: classic BPF programs, checked once and then run over frames.
//!
//! ```text
//!   'udp port 53' ──libpcap──▶ instructions ──check──▶ Program ──run(frame)──▶ bytes to keep, 0 = not wanted
//!   (the capturing command)                 (the host, which believes nothing)
//! ```
//!
//! The danger: the program comes from outside, and the frame may lie in memory that a guest is writing. A checked program
//! jumps forward only, within itself, and ends with an answer, so it ends; every load is checked against the frame's
//! length. The first line of a frame is read from the private copy that the switch decided on; a guest that changes what
//! is behind it while a filter looks changes what the filter says of that frame, and nothing else.
//!
//! Source: McCanne and Jacobson, "The BSD Packet Filter" (1993); `docs/wire/capture.md` lists what is accepted. Loads of
//! the kernel's ancillary data (negative offsets) are not.

use std::{fmt, slice};

use super::prefilter::{FRAMES, Prefilter};
use crate::error::{Error, Result};
use crate::net::frame::{FrameStart, START_BYTES};

/// Most instructions of a program.
pub const INSTRUCTIONS_MAX: usize = 448;
/// Bytes of one instruction.
pub const INSTRUCTION_BYTES: usize = 8;
/// Words of scratch memory.
const SCRATCH: usize = 16;

/// One instruction as libpcap has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Class, size, mode, operation and source in one number.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// Offset, constant or scratch word.
    pub k: u32,
}

impl Instruction {
    /// An instruction with these parts.
    #[must_use]
    pub const fn new(code: u16, jump_true: u8, jump_false: u8, k: u32) -> Self {
        Self { code, jump_true, jump_false, k }
    }

    /// Reads instructions of 8 little-endian bytes each: code, both jumps, k.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the bytes end within an instruction.
    pub fn parse(bytes: &[u8]) -> Result<Vec<Self>> {
        let (whole, rest) = bytes.as_chunks::<INSTRUCTION_BYTES>();
        if !rest.is_empty() {
            let length = bytes.len();
            return Err(Error::Usage(format!("a filter's instructions have 8 bytes each; got {length} bytes")));
        }
        let read = |&[a, b, jump_true, jump_false, k @ ..]: &[u8; INSTRUCTION_BYTES]| {
            Self::new(u16::from_le_bytes([a, b]), jump_true, jump_false, u32::from_le_bytes(k))
        };
        Ok(whole.iter().map(read).collect())
    }
}

/// A frame to look at: its private first line, and where the rest is.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    start: &'a FrameStart,
    frame: *const u8,
    length: u32,
}

impl<'a> Packet<'a> {
    /// A frame of `length` bytes whose first line was copied to `start`.
    ///
    /// # Safety
    ///
    /// `length` bytes at `frame` stay mapped and readable for as long as the packet is used; others may write them.
    #[must_use]
    pub const unsafe fn new(start: &'a FrameStart, frame: *const u8, length: u32) -> Self {
        Self { start, frame, length }
    }

    /// Bytes of the frame.
    #[must_use]
    pub const fn length(&self) -> u32 {
        self.length
    }

    /// Copies the first `count` bytes, or all there are.
    ///
    /// # Safety
    ///
    /// As many bytes at `to` are writable and nobody else's.
    pub(crate) unsafe fn copy_to(&self, to: *mut u8, count: u32) {
        let count = count.min(self.length) as usize;
        let first = count.min(START_BYTES);
        // SAFETY: the first line is private; the rest is readable as promised to `new`, and `to` as promised by the
        // caller.
        unsafe {
            to.copy_from_nonoverlapping(self.start.bytes().as_ptr(), first);
            if count > first {
                to.add(first).copy_from_nonoverlapping(self.frame.add(first), count - first);
            }
        }
    }

    #[inline]
    fn load<const BYTES: usize>(&self, at: u32) -> Option<[u8; BYTES]> {
        let end = at.checked_add(BYTES as u32)?;
        if end > self.length {
            return None;
        }
        let at = at as usize;
        if let Some(bytes) = self.start.bytes().get(at..at + BYTES) {
            return bytes.try_into().ok();
        }
        // SAFETY: at + BYTES is not behind the frame's end. One volatile copy: its owner may be writing.
        Some(unsafe { self.frame.add(at).cast::<[u8; BYTES]>().read_volatile() })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Word,
    Half,
    Byte,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Or,
    And,
    ShiftLeft,
    ShiftRight,
    Mod,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
    AnyBit,
}

/// An instruction whose numbers were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Most filters begin with these two, so they are one: load at a fixed place, compare with a constant.
    LoadAndTest(Size, u32, Test, Jumps),
    Load(Size, u32),
    LoadIndexed(Size, u32),
    LoadConstant(u32),
    LoadScratch(usize),
    LoadLength,
    IndexConstant(u32),
    IndexScratch(usize),
    IndexLength,
    /// Four times the low half of a byte: the length of an IPv4 header.
    IndexHeader(u32),
    Store(usize),
    StoreIndex(usize),
    Compute(Arithmetic, u32),
    ComputeIndex(Arithmetic),
    Negate,
    Jump(u32),
    Test(Test, Jumps),
    TestIndex(Test, Jumps),
    Accept(u32),
    AcceptAccumulator,
    ToIndex,
    FromIndex,
}

/// Where a comparison goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Jumps {
    pub constant: u32,
    pub holds: u8,
    pub fails: u8,
}

/// A checked filter.
#[derive(Clone, PartialEq, Eq)]
pub struct Program {
    steps: Box<[Step]>,
    prefilter: Option<Prefilter>,
    has_scratch: bool,
}

impl Program {
    /// Checks instructions and makes them ready to run.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] names the first instruction that cannot be, and why.
    pub fn check(instructions: &[Instruction]) -> Result<Self> {
        let count = instructions.len();
        if !(1..=INSTRUCTIONS_MAX).contains(&count) {
            return Err(Error::Usage(format!("a filter has 1 to {INSTRUCTIONS_MAX} instructions; got {count}")));
        }
        let mut steps: Vec<Step> = Vec::with_capacity(count);
        for (at, &instruction) in instructions.iter().enumerate() {
            let step = decode(instruction, count - at - 1).map_err(|why| {
                let Instruction { code, jump_true, jump_false, k } = instruction;
                Error::Usage(format!(
                    "instruction {at} of the filter, ({code:#06x}, {jump_true}, {jump_false}, {k:#x}), is refused: {why}"
                ))
            })?;
            steps.push(step);
        }
        if !matches!(steps.last(), Some(Step::Accept(_) | Step::AcceptAccumulator)) {
            return Err(Error::Usage(format!("instruction {} of the filter is the last and no return", count - 1)));
        }
        fuse(&mut steps);
        let has_scratch = steps.iter().any(|step| matches!(step, Step::LoadScratch(_) | Step::IndexScratch(_)));
        Ok(Self { prefilter: Prefilter::of(&steps), steps: steps.into(), has_scratch })
    }

    /// Runs the filter: how many bytes of the frame are wanted; 0 = the frame is not.
    #[must_use]
    #[inline]
    pub fn run(&self, packet: &Packet<'_>) -> u32 {
        if self.candidates(slice::from_ref(packet.start)) == 0 { 0 } else { self.judge(packet) }
    }

    /// Which of up to 64 frames are worth being judged: a bit for each, the lowest for the first. The others are
    /// not wanted, as far as their first lines tell.
    #[must_use]
    #[inline]
    pub fn candidates(&self, starts: &[FrameStart]) -> u64 {
        match &self.prefilter {
            Some(prefilter) => prefilter.candidates(starts),
            None => every(starts.len()),
        }
    }

    /// [`Self::run`] for a frame that is worth it.
    #[must_use]
    pub fn judge(&self, packet: &Packet<'_>) -> u32 {
        // A step that cannot be done means that the frame is not wanted.
        if self.has_scratch { self.answer(packet, &mut [0; SCRATCH]) } else { self.answer(packet, &mut []) }
            .unwrap_or(0)
    }

    fn answer<const WORDS: usize>(&self, packet: &Packet<'_>, scratch: &mut [u32; WORDS]) -> Option<u32> {
        let (mut a, mut x) = (0u32, 0u32);
        let mut at = 0;
        loop {
            // Every step goes forward, and the check saw that the last one returns.
            let step = self.steps.get(at)?;
            at += 1;
            match *step {
                Step::LoadAndTest(size, place, test, jumps) => {
                    a = load(packet, size, place)?;
                    // The comparison itself is skipped.
                    at += 1 + jumps.after(test.holds(a, jumps.constant));
                }
                Step::Load(size, place) => a = load(packet, size, place)?,
                Step::LoadIndexed(size, place) => a = load(packet, size, x.checked_add(place)?)?,
                Step::LoadConstant(k) => a = k,
                Step::LoadScratch(word) => a = scratch.get(word).copied()?,
                Step::LoadLength => a = packet.length,
                Step::IndexConstant(k) => x = k,
                Step::IndexScratch(word) => x = scratch.get(word).copied()?,
                Step::IndexLength => x = packet.length,
                Step::IndexHeader(place) => x = (load(packet, Size::Byte, place)? & 0xf) * 4,
                // What nobody loads is stored nowhere.
                Step::Store(word) => scratch.get_mut(word).into_iter().for_each(|place| *place = a),
                Step::StoreIndex(word) => scratch.get_mut(word).into_iter().for_each(|place| *place = x),
                Step::Compute(arithmetic, k) => a = arithmetic.of(a, k)?,
                Step::ComputeIndex(arithmetic) => a = arithmetic.of(a, x)?,
                Step::Negate => a = a.wrapping_neg(),
                Step::Jump(skip) => at += skip as usize,
                Step::Test(test, jumps) => at += jumps.after(test.holds(a, jumps.constant)),
                Step::TestIndex(test, jumps) => at += jumps.after(test.holds(a, x)),
                Step::Accept(bytes) => return Some(bytes),
                Step::AcceptAccumulator => return Some(a),
                Step::ToIndex => x = a,
                Step::FromIndex => a = x,
            }
        }
    }
}

/// A bit for each of so many frames.
#[inline]
pub(super) const fn every(frames: usize) -> u64 {
    if frames < FRAMES { (1 << frames) - 1 } else { u64::MAX }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("steps", &self.steps.len()).finish()
    }
}

impl Jumps {
    #[inline]
    const fn after(self, holds: bool) -> usize {
        if holds { self.holds as usize } else { self.fails as usize }
    }
}

impl Test {
    #[inline]
    const fn holds(self, a: u32, b: u32) -> bool {
        match self {
            Self::Equal => a == b,
            Self::Greater => a > b,
            Self::GreaterOrEqual => a >= b,
            Self::AnyBit => a & b != 0,
        }
    }
}

impl Arithmetic {
    /// Modulo 2^32; `None`: divided by 0.
    #[inline]
    const fn of(self, a: u32, b: u32) -> Option<u32> {
        Some(match self {
            Self::Add => a.wrapping_add(b),
            Self::Sub => a.wrapping_sub(b),
            Self::Mul => a.wrapping_mul(b),
            Self::Div => return a.checked_div(b),
            Self::Mod => return a.checked_rem(b),
            Self::Or => a | b,
            Self::And => a & b,
            Self::Xor => a ^ b,
            Self::ShiftLeft => shifted(a.checked_shl(b)),
            Self::ShiftRight => shifted(a.checked_shr(b)),
        })
    }
}

/// All bits are gone after 32 places.
const fn shifted(value: Option<u32>) -> u32 {
    match value {
        Some(value) => value,
        None => 0,
    }
}

#[inline]
fn load(packet: &Packet<'_>, size: Size, at: u32) -> Option<u32> {
    Some(match size {
        Size::Word => u32::from_be_bytes(packet.load(at)?),
        Size::Half => u16::from_be_bytes(packet.load(at)?).into(),
        Size::Byte => u8::from_be_bytes(packet.load(at)?).into(),
    })
}

/// Puts a load and the comparison behind it into one step. The comparison stays where it is, for those who jump to it.
fn fuse(steps: &mut [Step]) {
    for at in 1..steps.len() {
        if let (Step::Load(size, place), Step::Test(test, jumps)) = (steps[at - 1], steps[at]) {
            steps[at - 1] = Step::LoadAndTest(size, place, test, jumps);
        }
    }
}

/// One instruction with `behind` more behind it.
fn decode(instruction: Instruction, behind: usize) -> std::result::Result<Step, &'static str> {
    const UNKNOWN: &str = "there is no such instruction";
    let Instruction { code, jump_true, jump_false, k } = instruction;
    let word = || if (k as usize) < SCRATCH { Ok(k as usize) } else { Err("scratch memory has 16 words") };
    let place = || if k <= i32::MAX as u32 { Ok(k) } else { Err("it loads what is no part of a frame") };
    let jumps = || {
        let farthest = usize::from(jump_true.max(jump_false));
        let jumps = Jumps { constant: k, holds: jump_true, fails: jump_false };
        if farthest < behind { Ok(jumps) } else { Err("it jumps out of the filter") }
    };
    Ok(match code {
        0x20 => Step::Load(Size::Word, place()?),
        0x28 => Step::Load(Size::Half, place()?),
        0x30 => Step::Load(Size::Byte, place()?),
        0x40 => Step::LoadIndexed(Size::Word, place()?),
        0x48 => Step::LoadIndexed(Size::Half, place()?),
        0x50 => Step::LoadIndexed(Size::Byte, place()?),
        0x00 => Step::LoadConstant(k),
        0x60 => Step::LoadScratch(word()?),
        0x80 => Step::LoadLength,
        0x01 => Step::IndexConstant(k),
        0x61 => Step::IndexScratch(word()?),
        0x81 => Step::IndexLength,
        0xb1 => Step::IndexHeader(place()?),
        0x02 => Step::Store(word()?),
        0x03 => Step::StoreIndex(word()?),
        0x84 => Step::Negate,
        0x06 => Step::Accept(k),
        0x16 => Step::AcceptAccumulator,
        0x07 => Step::ToIndex,
        0x87 => Step::FromIndex,
        0x05 if (k as usize) < behind => Step::Jump(k),
        0x05 => return Err("it jumps out of the filter"),
        _ if code & !0xf8 == 4 => {
            let arithmetic = arithmetic(code & 0xf0).ok_or(UNKNOWN)?;
            match (code & 8 == 0, arithmetic) {
                (true, Arithmetic::Div | Arithmetic::Mod) if k == 0 => return Err("it divides by 0"),
                (true, Arithmetic::ShiftLeft | Arithmetic::ShiftRight) if k > 31 => {
                    return Err("it shifts by more than 31");
                }
                (true, _) => Step::Compute(arithmetic, k),
                (false, _) => Step::ComputeIndex(arithmetic),
            }
        }
        _ if code & !0xf8 == 5 => {
            let test = match code & 0xf0 {
                0x10 => Test::Equal,
                0x20 => Test::Greater,
                0x30 => Test::GreaterOrEqual,
                0x40 => Test::AnyBit,
                _ => return Err(UNKNOWN),
            };
            if code & 8 == 0 { Step::Test(test, jumps()?) } else { Step::TestIndex(test, jumps()?) }
        }
        _ => return Err(UNKNOWN),
    })
}

const fn arithmetic(operation: u16) -> Option<Arithmetic> {
    Some(match operation {
        0x00 => Arithmetic::Add,
        0x10 => Arithmetic::Sub,
        0x20 => Arithmetic::Mul,
        0x30 => Arithmetic::Div,
        0x40 => Arithmetic::Or,
        0x50 => Arithmetic::And,
        0x60 => Arithmetic::ShiftLeft,
        0x70 => Arithmetic::ShiftRight,
        0x90 => Arithmetic::Mod,
        0xa0 => Arithmetic::Xor,
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn run(instructions: &[(u16, u8, u8, u32)], frame: &[u8]) -> u32 {
        let instructions: Vec<_> =
            instructions.iter().map(|&(code, yes, no, k)| Instruction::new(code, yes, no, k)).collect();
        let start = FrameStart::of(frame);
        // SAFETY: the frame lives longer than the packet.
        let packet = unsafe { Packet::new(&start, frame.as_ptr(), frame.len() as u32) };
        Program::check(&instructions).unwrap().run(&packet)
    }

    fn why_refused(instructions: &[(u16, u8, u8, u32)]) -> String {
        let instructions: Vec<_> =
            instructions.iter().map(|&(code, yes, no, k)| Instruction::new(code, yes, no, k)).collect();
        Program::check(&instructions).unwrap_err().to_string()
    }

    /// `udp` as libpcap compiles it for Ethernet.
    const UDP: [(u16, u8, u8, u32); 10] = [
        (0x28, 0, 0, 12),
        (0x15, 0, 3, 0x86dd),
        (0x30, 0, 0, 20),
        (0x15, 4, 0, 17),
        (0x06, 0, 0, 0),
        (0x15, 0, 3, 0x0800),
        (0x30, 0, 0, 23),
        (0x15, 0, 1, 17),
        (0x06, 0, 0, 262_144),
        (0x06, 0, 0, 0),
    ];

    #[test]
    fn filter_for_a_protocol_takes_that_protocol_only() {
        let mut frame = [0; 60];
        frame[12..14].copy_from_slice(&[8, 0]);

        frame[23] = 17;
        assert_eq!(262_144, run(&UDP, &frame));
        frame[23] = 6;
        assert_eq!(0, run(&UDP, &frame));
        frame[12] = 9;
        assert_eq!(0, run(&UDP, &frame));
    }

    #[test]
    fn load_behind_the_end_means_not_wanted() {
        for (size, bytes) in [(0x20, 4), (0x28, 2), (0x30, 1)] {
            for length in 14..140_u32 {
                let frame = vec![0; length as usize];
                let last = length - bytes;
                assert_eq!(7, run(&[(size, 0, 0, last), (6, 0, 0, 7)], &frame), "{size:#x} {last} of {length}");
                assert_eq!(0, run(&[(size, 0, 0, last + 1), (6, 0, 0, 7)], &frame), "{size:#x} of {length}");
            }
        }
    }

    #[test]
    fn word_across_the_private_first_line_is_one_word() {
        let frame: Vec<u8> = (0..128).collect();

        for at in 56..72_u8 {
            let expected = u32::from_be_bytes([at, at + 1, at + 2, at + 3]);
            assert_eq!(expected, run(&[(0x20, 0, 0, at.into()), (0x16, 0, 0, 0)], &frame));
        }
    }

    #[test]
    fn what_is_no_program_is_refused_with_its_reason() {
        let end = (6, 0, 0, 1);
        for (instructions, expected) in [
            (vec![], "1 to 448 instructions; got 0"),
            (vec![end; 449], "1 to 448 instructions; got 449"),
            (vec![(0x00, 0, 0, 1)], "is the last and no return"),
            (vec![(0x05, 0, 0, 1), end], "jumps out"),
            (vec![(0x05, 0, 0, u32::MAX), end], "jumps out"),
            (vec![(0x15, 0, 1, 1), end], "jumps out"),
            (vec![(0x15, 255, 0, 1), end], "jumps out"),
            (vec![(0x60, 0, 0, 16), end], "16 words"),
            (vec![(0x02, 0, 0, u32::MAX), end], "16 words"),
            (vec![(0x34, 0, 0, 0), end], "divides by 0"),
            (vec![(0x94, 0, 0, 0), end], "divides by 0"),
            (vec![(0x64, 0, 0, 32), end], "more than 31"),
            (vec![(0x28, 0, 0, 0xffff_f000), end], "no part of a frame"),
            (vec![(0xffff, 0, 0, 0), end], "no such instruction"),
            (vec![(0x85, 0, 0, 0), end], "no such instruction"),
            (vec![(0x0e, 0, 0, 0)], "no such instruction"),
        ] {
            let refusal = why_refused(&instructions);
            assert!(refusal.contains(expected), "{refusal} lacks {expected}");
        }
    }

    #[test]
    fn division_by_an_index_of_0_means_not_wanted() {
        assert_eq!(0, run(&[(0x01, 0, 0, 0), (0x3c, 0, 0, 0), (6, 0, 0, 9)], &[0; 60]));
        assert_eq!(0, run(&[(0x01, 0, 0, 0), (0x9c, 0, 0, 0), (6, 0, 0, 9)], &[0; 60]));
    }

    #[test]
    fn bytes_that_end_within_an_instruction_are_refused() {
        assert_eq!(
            vec![Instruction::new(0x15, 1, 2, 0x0800)],
            Instruction::parse(&[0x15, 0, 1, 2, 0, 8, 0, 0]).unwrap()
        );
        assert!(Instruction::parse(&[0; 12]).is_err());
    }
}
