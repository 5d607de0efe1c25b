//! The two text formats.
//!
//! Samples are written into one buffer a family, so that a family's are together whatever the order of the blocks. What of
//! their lines is the same for every block is put together once, when the catalogue is compiled.

use std::io::Write as _;

use super::buckets::count;
use super::rows::{self, Kept};
use super::{Gathering, Piece, Shape, Value};

/// What is written for a value whatever block it is of.
#[derive(Debug)]
pub(super) struct Said {
    /// Of a histogram: buckets, count and sum. Of all others one.
    series: Vec<Series>,
}

/// Lines of one name.
#[derive(Debug)]
struct Series {
    /// What they begin with, up to the labels of the block.
    before: Vec<u8>,
    /// What each has between those labels and its number.
    behind: Vec<Vec<u8>>,
    /// What each has behind its number, up to the end of the line.
    closing: &'static [u8],
}

impl Said {
    /// `name` is the family's; `shown` are the labels of its block that are shown.
    pub(super) fn of(name: &str, shown: &[String], value: &Value) -> Self {
        let mut fixed = Vec::new();
        value.fixed.iter().for_each(|(name, value)| push_label(&mut fixed, name, value));
        let with = |name: &str, value: &str| {
            let mut labels = fixed.clone();
            push_label(&mut labels, name, value);
            labels
        };
        let series = |suffix: &str, own: Vec<Vec<u8>>| Series::of([name, suffix], !shown.is_empty(), own);
        let series = match &value.shape {
            Shape::Number(_) => vec![series("", vec![fixed])],
            Shape::Info(label) => vec![series("", vec![with(label, "")]).with_number_in_label()],
            Shape::States(label, states) => {
                vec![series("", states.iter().map(|state| with(label, state)).collect())]
            }
            Shape::Histogram(buckets) => {
                let edges = buckets.edges().iter().map(|edge| edge.text.as_str()).chain(["+Inf"]);
                let buckets = edges.map(|edge| with("le", edge)).collect();
                vec![series("_bucket", buckets), series("_count", vec![fixed.clone()]), series("_sum", vec![fixed])]
            }
        };
        Self { series }
    }
}

impl Series {
    /// `own`: the labels that each line adds to those of the block, if that `is_labelled`.
    fn of(name: [&str; 2], is_labelled: bool, own: Vec<Vec<u8>>) -> Self {
        let is_opened = is_labelled || own.iter().any(|own| !own.is_empty());
        let behind = own.into_iter().map(|own| {
            let comma: &[u8] = if is_labelled && !own.is_empty() { b"," } else { b"" };
            [comma, &own, if is_opened { b"} " } else { b" " }].concat()
        });
        let before = [name.concat().as_bytes(), if is_opened { b"{" } else { b"" }].concat();
        Self { before, behind: behind.collect(), closing: b"" }
    }

    /// The number is said by the last label, which was empty, and the lines themselves say 1.
    fn with_number_in_label(mut self) -> Self {
        const CLOSING: &[u8] = b"\"} ";
        self.behind.iter_mut().for_each(|behind| behind.truncate(behind.len() - CLOSING.len()));
        Self { closing: b"\"} 1", ..self }
    }

    /// Writes a line for each number.
    fn write(&self, labels: &[u8], numbers: impl IntoIterator<Item = u64>, text: &mut Vec<u8>) {
        let start = text.len();
        let begin = start..start + self.before.len() + labels.len();
        for (behind, number) in self.behind.iter().zip(numbers) {
            if text.len() == start {
                text.extend_from_slice(&self.before);
                text.extend_from_slice(labels);
            } else {
                text.extend_from_within(begin.clone());
            }
            text.extend_from_slice(behind);
            text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            text.extend_from_slice(self.closing);
            text.push(b'\n');
        }
    }

    /// Writes a line of a number that is `word` divided by `per_unit`.
    fn write_scaled(&self, labels: &[u8], word: u64, per_unit: u64, text: &mut Vec<u8>) {
        if per_unit == 1 {
            return self.write(labels, [word], text);
        }
        for behind in &self.behind {
            [&self.before, labels, behind].into_iter().for_each(|part| text.extend_from_slice(part));
            // Writing to a vector cannot fail.
            let _ = writeln!(text, "{}", word as f64 / per_unit.max(1) as f64);
        }
    }
}

impl Gathering {
    /// Writes what the blocks count to their families' pieces, each behind its header of that number.
    pub(super) fn text(&self, header: usize, pieces: &mut [Piece]) {
        for (plan, labels, row) in self.told() {
            let values = &plan.block.values;
            for ((value, said), kept) in values.iter().zip(&plan.text).zip(rows::kept(values, row)) {
                let (Some(family), Some(Piece { memory: text, .. })) =
                    (self.exposition.families.get(value.family), pieces.get_mut(value.family))
                else {
                    continue;
                };
                let start = text.len();
                if start == 0 {
                    text.extend_from_slice(family.headers.get(header).map(String::as_bytes).unwrap_or_default());
                }
                let headed = text.len();
                show(value, said, labels, kept, text);
                if text.len() == headed {
                    text.truncate(start);
                }
            }
        }
    }
}

fn show(value: &Value, said: &Said, labels: &[u8], Kept { word, filled }: Kept<'_>, text: &mut Vec<u8>) {
    match (&value.shape, said.series.as_slice()) {
        (Shape::Number(per_unit), [series]) => series.write_scaled(labels, word, *per_unit, text),
        (Shape::Info(_), [series]) => series.write(labels, [word], text),
        (Shape::States(..), [series]) => series.write(labels, (0..).map(|at| u64::from(word == at)), text),
        // Ports have several histograms each, and most ports of a large host are idle: their series begin with the first
        // value.
        (Shape::Histogram(buckets), [below, all, sum]) if !filled.is_empty() => {
            let count = count(filled);
            below.write(labels, buckets.classic(filled).map(|(_, below)| below).chain([count]), text);
            all.write(labels, [count], text);
            sum.write_scaled(labels, word, buckets.per_unit(), text);
        }
        _ => {}
    }
}

/// Puts `name="value"` behind other labels.
pub(super) fn push_label(labels: &mut Vec<u8>, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(b',');
    }
    labels.extend_from_slice(name.as_bytes());
    labels.extend_from_slice(b"=\"");
    for &byte in value.as_bytes() {
        match byte {
            b'\\' => labels.extend_from_slice(b"\\\\"),
            b'"' => labels.extend_from_slice(b"\\\""),
            b'\n' => labels.extend_from_slice(b"\\n"),
            _ => labels.push(byte),
        }
    }
    labels.push(b'"');
}
