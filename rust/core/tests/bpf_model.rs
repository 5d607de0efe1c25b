//! The filter machine against a plain one: any program is refused by both, or answered by both alike.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use vbnet_core::net::frame::FrameStart;
use vbnet_core::watch::bpf::{Instruction, Packet, Program};

/// What the machine should do, written from the paper: bytes by bytes, one `match` on class and mode.
fn model(program: &[Instruction], frame: &[u8]) -> Option<u32> {
    let (mut a, mut x, mut scratch, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
    let load = |at: u64, bytes: u64| -> Option<u32> {
        let mut value = 0;
        for offset in at..at + bytes {
            value = value << 8 | u32::from(*frame.get(usize::try_from(offset).ok()?)?);
        }
        Some(value)
    };
    let width = |code: u16| match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        _ => 1,
    };
    loop {
        let Instruction { code, jump_true, jump_false, k } = program[at];
        at += 1;
        match code & 7 {
            0 => {
                a = match code & 0xe0 {
                    0x00 => k,
                    0x20 => load(k.into(), width(code))?,
                    0x40 => load(u64::from(x) + u64::from(k), width(code))?,
                    0x60 => scratch[k as usize],
                    _ => frame.len() as u32,
                }
            }
            1 => {
                x = match code & 0xe0 {
                    0x00 => k,
                    0x60 => scratch[k as usize],
                    0x80 => frame.len() as u32,
                    _ => 4 * (load(k.into(), 1)? % 16),
                }
            }
            2 => scratch[k as usize] = a,
            3 => scratch[k as usize] = x,
            4 => {
                let (wide, b) = (u64::from(a), u64::from(if code & 8 == 0 { k } else { x }));
                let answer = match code & 0xf0 {
                    0x00 => wide + b,
                    0x10 => wide + (1 << 32) - b,
                    0x20 => wide * b,
                    0x30 => wide.checked_div(b)?,
                    0x40 => wide | b,
                    0x50 => wide & b,
                    0x60 => {
                        if b > 31 {
                            0
                        } else {
                            wide << b
                        }
                    }
                    0x70 => {
                        if b > 31 {
                            0
                        } else {
                            wide >> b
                        }
                    }
                    0x80 => (1 << 32) - wide,
                    0x90 => wide.checked_rem(b)?,
                    _ => wide ^ b,
                };
                a = (answer % (1 << 32)) as u32;
            }
            5 => {
                let b = if code & 8 == 0 { k } else { x };
                at += match code & 0xf0 {
                    0x00 => k as usize,
                    0x10 if a == b => jump_true.into(),
                    0x20 if a > b => jump_true.into(),
                    0x30 if a >= b => jump_true.into(),
                    0x40 if a & b != 0 => jump_true.into(),
                    _ => usize::from(jump_false),
                }
            }
            6 => return Some(if code & 0x10 == 0 { k } else { a }),
            _ => {
                if code & 0x80 == 0 {
                    x = a;
                } else {
                    a = x;
                }
            }
        }
    }
}

const CODES: [u16; 52] = [
    0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x00, 0x60, 0x80, 0x01, 0x61, 0x81, 0xb1, 0x02, 0x03, 0x04, 0x0c, 0x14, 0x1c,
    0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, 0x84, 0x94, 0x9c, 0xa4, 0xac, 0x05, 0x15,
    0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d, 0x06, 0x16, 0x07, 0x87, 0x28, 0x30, 0x15,
];

fn constants() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..20u32, 3 => 50..80u32, 1 => any::<u32>(), 1 => Just(0x0800)]
}

fn instruction() -> impl Strategy<Value = Instruction> {
    (prop::sample::select(&CODES[..]), 0..4u8, 0..4u8, constants())
        .prop_map(|(code, yes, no, k)| Instruction::new(code, yes, no, k))
}

fn programs() -> impl Strategy<Value = Vec<Instruction>> {
    (prop::collection::vec(instruction(), 0..40), any::<bool>(), any::<u32>()).prop_map(|(mut program, whole, k)| {
        program.push(Instruction::new(if whole { 0x16 } else { 0x06 }, 0, 0, k));
        // Most programs shall pass the check, so what would be refused is bent to fit.
        let count = program.len();
        for (at, instruction) in program.iter_mut().enumerate() {
            let behind = count - at - 1;
            if instruction.code & 7 == 5 && behind != 0 {
                let farthest = (behind - 1).min(255) as u8;
                instruction.jump_true = instruction.jump_true.min(farthest);
                instruction.jump_false = instruction.jump_false.min(farthest);
                if instruction.code == 0x05 {
                    instruction.k %= behind as u32;
                }
            }
            if matches!(instruction.code, 0x60 | 0x61 | 0x02 | 0x03) {
                instruction.k %= 16;
            }
        }
        program
    })
}

/// Loads, masks and comparisons, as filters are made of them, over frames with few different bytes: so that many frames
/// pass many tests.
fn filters() -> impl Strategy<Value = Vec<Instruction>> {
    let load = (prop::sample::select(vec![0x20u16, 0x28, 0x30, 0x28, 0x30]), 0..70u32)
        .prop_map(|(code, place)| Instruction::new(code, 0, 0, place));
    let mask = prop::sample::select(vec![0xffu32, 0x1, 0x2, 0x101, 0xff00, 0x0303_0303, 0]);
    let mask = mask.prop_map(|k| Instruction::new(0x54, 0, 0, k));
    let constant = prop::sample::select(vec![0u32, 1, 2, 0x100, 0x101, 0x102, 0x200, 0x201, 0x0001_0002, 0x0100_0201]);
    let test =
        (prop::sample::select(vec![0x15u16, 0x15, 0x15, 0x45, 0x45, 0x25, 0x35, 0x1d]), 0..6u8, 0..6u8, constant)
            .prop_map(|(code, yes, no, k)| Instruction::new(code, yes, no, k));
    let other = prop::sample::select(vec![0xb1u16, 0x07, 0x87, 0x02, 0x60, 0x48, 0x80, 0x04, 0x06, 0x05])
        .prop_map(|code| Instruction::new(code, 0, 0, 0));
    let step = prop_oneof![6 => load, 2 => mask, 6 => test, 1 => other];
    (prop::collection::vec(step, 0..24), any::<bool>()).prop_map(|(mut program, ends_well)| {
        let (first, second) = if ends_well { (9, 0) } else { (0, 9) };
        program.extend([first, second].map(|kept| Instruction::new(0x06, 0, 0, kept)));
        let count = program.len();
        for (at, instruction) in program.iter_mut().enumerate() {
            let farthest = (count - at).saturating_sub(2).min(255) as u8;
            instruction.jump_true = instruction.jump_true.min(farthest);
            instruction.jump_false = instruction.jump_false.min(farthest);
        }
        program
    })
}

proptest! {
    #[test]
    fn checked_program_answers_as_the_model_does(
        program in programs(),
        frame in prop::collection::vec(any::<u8>(), 14..130),
    ) {
        if let Ok(checked) = Program::check(&program) {
            let start = FrameStart::of(&frame);
            // SAFETY: the frame outlives the packet.
            let packet = unsafe { Packet::new(&start, frame.as_ptr(), frame.len() as u32) };
            prop_assert_eq!(model(&program, &frame).unwrap_or(0), checked.run(&packet));
        }
    }

    #[test]
    fn program_that_begins_with_a_test_answers_as_the_model_does(
        (size, bytes) in prop::sample::select(vec![(0x20u16, 4usize), (0x28, 2), (0x30, 1)]),
        place in 0..80usize,
        is_equal in any::<bool>(),
        (yes, no) in (0..2u8, 0..2u8),
        frame in prop::collection::vec(any::<u8>(), 14..90),
    ) {
        let word = frame.get(place..place + bytes).unwrap_or_default();
        let constant = word.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)) ^ u32::from(!is_equal);
        let program = [
            Instruction::new(size, 0, 0, place as u32),
            Instruction::new(0x15, yes, no, constant),
            Instruction::new(0x06, 0, 0, 9),
            Instruction::new(0x06, 0, 0, 0),
        ];
        let start = FrameStart::of(&frame);
        // SAFETY: the frame outlives the packet.
        let packet = unsafe { Packet::new(&start, frame.as_ptr(), frame.len() as u32) };
        let checked = Program::check(&program).unwrap();
        prop_assert_eq!(model(&program, &frame).unwrap_or(0), checked.run(&packet));
    }

    #[test]
    fn batch_is_told_apart_as_frames_one_by_one_are(
        program in filters(),
        frames in prop::collection::vec(prop::collection::vec(0..3u8, 14..80), 0..=64),
    ) {
        let checked = Program::check(&program).unwrap();
        let starts: Vec<_> = frames.iter().map(|frame| FrameStart::of(frame)).collect();

        let candidates = checked.candidates(&starts);

        for (index, (frame, start)) in frames.iter().zip(&starts).enumerate() {
            // SAFETY: the frame outlives the packet.
            let packet = unsafe { Packet::new(start, frame.as_ptr(), frame.len() as u32) };
            let is_candidate = candidates >> index & 1 == 1;
            let found = if is_candidate { checked.judge(&packet) } else { 0 };
            prop_assert_eq!(model(&program, frame).unwrap_or(0), found, "frame {}", index);
            prop_assert_eq!(found, checked.run(&packet), "frame {}", index);
        }
        prop_assert_eq!(0, candidates.checked_shr(frames.len() as u32).unwrap_or(0), "only frames that there are");
    }

    #[test]
    fn any_words_are_refused_or_answer(
        words in prop::collection::vec((any::<u16>(), any::<u8>(), any::<u8>(), any::<u32>()), 0..20),
        frame in prop::collection::vec(any::<u8>(), 14..80),
    ) {
        let program: Vec<_> =
            words.into_iter().map(|(code, yes, no, k)| Instruction::new(code, yes, no, k)).collect();
        if let Ok(checked) = Program::check(&program) {
            let start = FrameStart::of(&frame);
            // SAFETY: the frame outlives the packet.
            let packet = unsafe { Packet::new(&start, frame.as_ptr(), frame.len() as u32) };
            prop_assert_eq!(model(&program, &frame).unwrap_or(0), checked.run(&packet));
        }
    }
}
