//! Prefilters: what the first line of every frame has that a filter wants, found by reading its program once.
//!
//! ```text
//!   'tcp port 80'      bytes 12..14 = 86dd, 20 = 06, 54..56 = 0050       ─┐
//!   one form for each                     ..., 56..58 = 0050              ├─▶ a batch: masked words compared, form by form
//!   way to an accept   bytes 12..14 = 0800, 20..22 & 1fff = 0, 23 = 06   ─┘   ─▶ the few frames that have one: the program
//! ```
//!
//! Each way through the program to an answer other than 0 asks certain bits of the frame to be certain values. Those in
//! the first line make a form; what a way asks beyond that (lengths, ranges, places that the frame itself names) is left
//! to the program. A frame that has none of the forms is not wanted, whatever the program would compute: so most frames
//! are told from a batch of private first lines, without a look at anything else.
//!
//! The danger: a form that asks too much would lose frames. Whatever is not understood asks for nothing, and forms are
//! only ever made weaker. `tests/bpf_model.rs` holds this against a plain machine.

use super::bpf::{Arithmetic, Jumps, Size, Step, Test};
use crate::net::frame::{FrameStart, START_BYTES, START_WORDS};

/// Forms compared with each frame, at most; where a program has more, those that are most alike are made one.
const FORMS_MAX: usize = 4;
/// Forms kept while a program is read.
const FORMS_READ_MAX: usize = 64;
/// Steps taken while a program is read: one with very many ways through it gets no prefilter.
const STEPS_MAX: usize = 4096;

/// Frames of which one call tells which may be wanted.
pub(crate) const FRAMES: usize = u64::BITS as usize;

/// What a filter's frames look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefilter {
    forms: Box<[Box<[Word]>]>,
}

/// Eight bytes of a first line, as they lie there: which bits count, and what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    at: usize,
    mask: u64,
    value: u64,
}

impl Word {
    #[inline]
    const fn is_in(self, start: &FrameStart) -> bool {
        start.word(self.at) & self.mask == self.value
    }
}

impl Prefilter {
    /// What frames look like that `steps` want; `None`: there is nothing that they all have.
    pub(crate) fn of(steps: &[Step]) -> Option<Self> {
        let mut reading = Reading { steps, left: STEPS_MAX, forms: Vec::new() };
        reading.follow(0, Form::ANY, Value::Unknown)?;
        let mut forms = reading.forms;
        shorten(&mut forms, FORMS_MAX);
        if forms.iter().any(|form| form.bits() == 0) {
            return None;
        }
        Some(Self { forms: forms.iter().map(Form::words).collect() })
    }

    /// Which of the first 64 frames may be wanted: a bit for each, the lowest for the first. The others are not.
    #[inline]
    pub(crate) fn candidates(&self, starts: &[FrameStart]) -> u64 {
        let starts = &starts[..starts.len().min(FRAMES)];
        let mut all = 0;
        for form in &self.forms {
            let Some((first, others)) = form.split_first() else { continue };
            let mut found = having_one(*first, starts);
            for &word in others {
                found = having_too(found, word, starts);
            }
            all |= found;
        }
        all
    }
}

/// The frames that have a word. The one loop that looks at every frame: what does not change is in registers, and no
/// eight frames wait for those before them.
#[inline]
fn having_one(word: Word, starts: &[FrameStart]) -> u64 {
    let bits =
        |starts: &[FrameStart]| starts.iter().rev().fold(0, |found, start| found << 1 | u64::from(word.is_in(start)));
    let (eights, rest) = starts.as_chunks::<8>();
    eights.iter().rev().fold(bits(rest), |found, eight| found << 8 | bits(eight))
}

/// Those of the frames in `found` that have another word, too.
#[inline]
fn having_too(found: u64, word: Word, starts: &[FrameStart]) -> u64 {
    let (mut left, mut having) = (found, 0);
    while left != 0 {
        let bit = left & left.wrapping_neg();
        if starts.get(left.trailing_zeros() as usize).is_some_and(|start| word.is_in(start)) {
            having |= bit;
        }
        left ^= bit;
    }
    having
}

/// Bits of a first line that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    mask: [u8; START_BYTES],
    value: [u8; START_BYTES],
}

impl Form {
    const ANY: Self = Self { mask: [0; START_BYTES], value: [0; START_BYTES] };

    fn bits(&self) -> u32 {
        self.mask.iter().map(|byte| byte.count_ones()).sum()
    }

    /// With the bits of `mask` in a field known to be `value`; `None`: they are known to be something else.
    fn with(mut self, field: Field, mask: u32, value: u32) -> Option<Self> {
        for ((at, mask), value) in (field.at..).zip(field.bytes_of(mask)).zip(field.bytes_of(value)) {
            if (self.value[at] ^ value) & self.mask[at] & mask != 0 {
                return None;
            }
            self.mask[at] |= mask;
            self.value[at] |= value & mask;
        }
        Some(self)
    }

    /// What both say.
    fn common(&self, other: &Self) -> Self {
        let mut common = Self::ANY;
        for at in 0..START_BYTES {
            common.mask[at] = self.mask[at] & other.mask[at] & !(self.value[at] ^ other.value[at]);
            common.value[at] = self.value[at] & common.mask[at];
        }
        common
    }

    /// What is to be compared, those words first that tell most.
    fn words(&self) -> Box<[Word]> {
        let [mask, value] = [self.mask, self.value].map(FrameStart::from);
        let word = |at: usize| Word { at, mask: mask.word(at), value: value.word(at) };
        let mut words: Vec<_> = (0..START_WORDS).map(word).filter(|word| word.mask != 0).collect();
        words.sort_by_key(|word| std::cmp::Reverse(word.mask.count_ones()));
        words.into()
    }
}

/// Makes the forms fewer, each time those two one that are most alike.
fn shorten(forms: &mut Vec<Form>, most: usize) {
    let mut at = 0;
    while at < forms.len() {
        // Whatever has all that one form asks for, and more, has that form.
        let form = forms[at];
        let is_implied = |(index, other): (usize, &Form)| index != at && form.common(other) == *other;
        if forms.iter().enumerate().any(is_implied) {
            forms.swap_remove(at);
        } else {
            at += 1;
        }
    }
    while forms.len() > most {
        let pairs = (1..forms.len()).flat_map(|high| (0..high).map(move |low| (low, high)));
        let likest = pairs.max_by_key(|&(low, high)| forms[low].common(&forms[high]).bits());
        let Some((low, high)) = likest else { return };
        forms[low] = forms[low].common(&forms[high]);
        forms.swap_remove(high);
    }
}

/// Bytes of the first line, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    at: usize,
    bytes: usize,
}

impl Field {
    fn of(size: Size, at: u32) -> Option<Self> {
        let bytes = match size {
            Size::Word => 4,
            Size::Half => 2,
            Size::Byte => 1,
        };
        let at = at as usize;
        (at + bytes <= START_BYTES).then_some(Self { at, bytes })
    }

    /// The bits that it has.
    const fn mask(self) -> u32 {
        u32::MAX >> (u32::BITS - 8 * self.bytes as u32)
    }

    fn bytes_of(self, number: u32) -> impl Iterator<Item = u8> {
        number.to_be_bytes().into_iter().skip(size_of::<u32>() - self.bytes)
    }
}

/// What is known of the accumulator.
#[derive(Clone, Copy, Debug)]
enum Value {
    Unknown,
    /// Bits of a field, the others 0.
    Masked(Field, u32),
}

/// A program that is being read.
struct Reading<'a> {
    steps: &'a [Step],
    left: usize,
    /// Of the ways found so far.
    forms: Vec<Form>,
}

impl Reading<'_> {
    /// Goes on at a step, having seen a form. `None`: there are too many ways.
    fn follow(&mut self, mut at: usize, form: Form, mut value: Value) -> Option<()> {
        loop {
            self.left = self.left.checked_sub(1)?;
            let step = *self.steps.get(at)?;
            at += 1;
            match step {
                Step::LoadAndTest(size, place, test, jumps) => {
                    let value = loaded(size, place);
                    // The comparison itself is skipped.
                    return self.fork(at + 1, form, value, test, jumps);
                }
                Step::Test(test, jumps) => return self.fork(at, form, value, test, jumps),
                Step::TestIndex(_, jumps) => {
                    self.follow(at + usize::from(jumps.holds), form, value)?;
                    return self.follow(at + usize::from(jumps.fails), form, value);
                }
                Step::Jump(skip) => at += skip as usize,
                Step::Accept(0) => return Some(()),
                Step::Accept(_) | Step::AcceptAccumulator => {
                    self.forms.push(form);
                    if self.forms.len() > FORMS_READ_MAX {
                        shorten(&mut self.forms, FORMS_READ_MAX / 2);
                    }
                    return Some(());
                }
                Step::Load(size, place) => value = loaded(size, place),
                Step::Compute(Arithmetic::And, bits) => {
                    if let Value::Masked(_, mask) = &mut value {
                        *mask &= bits;
                    }
                }
                Step::LoadIndexed(..)
                | Step::LoadConstant(_)
                | Step::LoadScratch(_)
                | Step::LoadLength
                | Step::Compute(..)
                | Step::ComputeIndex(_)
                | Step::Negate
                | Step::FromIndex => value = Value::Unknown,
                // They leave the accumulator as it is.
                Step::IndexConstant(_)
                | Step::IndexScratch(_)
                | Step::IndexLength
                | Step::IndexHeader(_)
                | Step::Store(_)
                | Step::StoreIndex(_)
                | Step::ToIndex => {}
            }
        }
    }

    /// Goes both ways behind a comparison, as far as a frame of this form can.
    fn fork(&mut self, at: usize, form: Form, value: Value, test: Test, jumps: Jumps) -> Option<()> {
        let (holds, fails) = match value {
            Value::Masked(field, mask) => forms_of(form, field, mask, test, jumps.constant),
            Value::Unknown => (Some(form), Some(form)),
        };
        if let Some(form) = holds {
            self.follow(at + usize::from(jumps.holds), form, value)?;
        }
        if let Some(form) = fails {
            self.follow(at + usize::from(jumps.fails), form, value)?;
        }
        Some(())
    }
}

fn loaded(size: Size, place: u32) -> Value {
    Field::of(size, place).map_or(Value::Unknown, |field| Value::Masked(field, field.mask()))
}

/// The form when a comparison of masked bits with a constant holds, and when it fails; `None`: it never does.
fn forms_of(form: Form, field: Field, mask: u32, test: Test, constant: u32) -> (Option<Form>, Option<Form>) {
    match test {
        Test::Equal => {
            let holds = if constant & !mask == 0 { form.with(field, mask, constant) } else { None };
            let is_certain = holds == Some(form);
            let fails = match mask.is_power_of_two() && holds.is_some() {
                _ if is_certain => None,
                true => form.with(field, mask, !constant),
                false => Some(form),
            };
            (holds, fails)
        }
        Test::AnyBit => {
            let bits = mask & constant;
            let fails = form.with(field, bits, 0);
            let is_certain = fails == Some(form);
            let holds = match bits.is_power_of_two() {
                _ if is_certain => None,
                true => form.with(field, bits, bits),
                false => Some(form),
            };
            (holds, fails)
        }
        Test::Greater | Test::GreaterOrEqual => (Some(form), Some(form)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::super::bpf::{Instruction, Program};
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Program {
        let instructions: Vec<_> =
            instructions.iter().map(|&(code, yes, no, k)| Instruction::new(code, yes, no, k)).collect();
        Program::check(&instructions).unwrap()
    }

    /// The start of a frame of zeroes but for some bytes.
    fn start(bytes: &[(usize, u8)]) -> FrameStart {
        let mut start = [0; START_BYTES];
        bytes.iter().for_each(|&(at, byte)| start[at] = byte);
        FrameStart::from(start)
    }

    fn are_candidates<const COUNT: usize>(program: &Program, starts: [&[(usize, u8)]; COUNT]) -> [bool; COUNT] {
        let found = program.candidates(&starts.map(start));
        std::array::from_fn(|index| found >> index & 1 == 1)
    }

    /// `tcp port 80` as libpcap compiles it for Ethernet.
    const TCP_PORT: [(u16, u8, u8, u32); 18] = [
        (0x28, 0, 0, 12),
        (0x15, 0, 6, 0x86dd),
        (0x30, 0, 0, 20),
        (0x15, 0, 13, 6),
        (0x28, 0, 0, 54),
        (0x15, 10, 0, 80),
        (0x28, 0, 0, 56),
        (0x15, 8, 9, 80),
        (0x15, 0, 8, 0x0800),
        (0x30, 0, 0, 23),
        (0x15, 0, 6, 6),
        (0x28, 0, 0, 20),
        (0x45, 4, 0, 0x1fff),
        (0xb1, 0, 0, 14),
        (0x48, 0, 0, 14),
        (0x15, 0, 1, 80),
        (0x06, 0, 0, 262_144),
        (0x06, 0, 0, 0),
    ];

    #[test]
    fn frame_with_none_of_the_forms_is_told_from_its_first_line() {
        let found = are_candidates(
            &program(&TCP_PORT),
            [
                &[(12, 0x08), (23, 6)],
                &[(12, 0x08), (23, 17)],
                &[(12, 0x08), (23, 6), (21, 1)],
                &[(12, 0x08), (23, 6), (20, 0x40)],
                &[(12, 0x86), (13, 0xdd), (20, 6), (55, 80)],
                &[(12, 0x86), (13, 0xdd), (20, 6), (57, 80)],
                &[(12, 0x86), (13, 0xdd), (20, 6), (57, 81)],
                &[(12, 0x08), (13, 0x06)],
            ],
        );

        assert_eq!([true, false, false, true, true, true, false, false], found);
    }

    #[test]
    fn masked_bits_are_compared_and_no_others() {
        let net = program(&[
            (0x20, 0, 0, 26),
            (0x54, 0, 0, 0xff00_0000),
            (0x15, 0, 1, 0x0a00_0000),
            (6, 0, 0, 9),
            (6, 0, 0, 0),
        ]);

        let found = are_candidates(&net, [&[(26, 10), (29, 7)], &[(26, 11), (29, 7)]]);

        assert_eq!([true, false], found);
    }

    #[test]
    fn program_that_wants_what_has_nothing_in_common_leaves_all_to_be_judged() {
        let longer = program(&[(0x80, 0, 0, 0), (0x25, 0, 1, 100), (6, 0, 0, 9), (6, 0, 0, 0)]);
        let other = program(&[(0x28, 0, 0, 12), (0x15, 0, 1, 0x0800), (6, 0, 0, 0), (6, 0, 0, 9)]);

        assert_eq!([true], are_candidates(&longer, [&[]]));
        assert_eq!([true], are_candidates(&other, [&[(12, 8)]]));
    }

    #[test]
    fn program_that_wants_nothing_has_no_candidates() {
        assert_eq!([false], are_candidates(&program(&[(6, 0, 0, 0)]), [&[]]));
    }

    #[test]
    fn more_forms_than_are_compared_become_fewer_that_miss_nothing() {
        let mut addresses: Vec<_> = (0..20).map(|last| (0x15, 20 - last, 0, 0x0a00_0000 + u32::from(last))).collect();
        addresses.insert(0, (0x20, 0, 0, 26));
        addresses.extend([(6, 0, 0, 0), (6, 0, 0, 9)]);

        let found = are_candidates(&program(&addresses), [&[(26, 10)], &[(26, 10), (29, 19)], &[(26, 11)]]);

        assert_eq!([true, true, false], found);
    }

    #[test]
    fn program_with_too_many_ways_through_it_leaves_all_to_be_judged() {
        let mut diamonds = vec![(0x28, 0, 0, 12)];
        diamonds.extend((0..40).flat_map(|k| [(0x25, 0, 1, k), (0x01, 0, 0, k)]));
        diamonds.extend([(0x15, 0, 1, 0x0800), (6, 0, 0, 9), (6, 0, 0, 0)]);

        assert_eq!([true], are_candidates(&program(&diamonds), [&[]]));
    }
}
