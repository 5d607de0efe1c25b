//! The two text formats.
//!
//! Samples are written into one buffer a family, so that a family's are together whatever the order of the blocks.

use std::io::Write as _;

use super::{Buckets, Exposition, Said, Shape, Value};
use crate::shm::counters::BlockSnapshot;

/// Where [`super::Plan::said`] has what is said as text.
const FORM: usize = 0;

impl Exposition {
    /// Writes what `blocks` count to their families' pieces, each behind its header of that number.
    pub(super) fn text(&self, blocks: Vec<BlockSnapshot>, header: usize, pieces: &mut [Vec<u8>]) {
        let mut begin = Vec::new();
        for ((plan, labels), words) in self.merge(blocks, push_label) {
            for (value, said, words) in self.plans[plan].shown(FORM, &words) {
                let (Some(family), Some(text)) = (self.families.get(value.family), pieces.get_mut(value.family)) else {
                    continue;
                };
                let header = family.headers.get(header).map(String::as_bytes).unwrap_or_default();
                let labels = [labels.as_slice(), &said.fixed];
                Lines { name: &family.name, header, labels, begin: &mut begin, text }.show(value, said, words);
            }
        }
    }
}

/// The lines of one value.
struct Lines<'a> {
    name: &'a str,
    /// Of the family, in front of its first line.
    header: &'a [u8],
    labels: [&'a [u8]; 2],
    /// What the lines that are being written begin with, up to their own label.
    begin: &'a mut Vec<u8>,
    text: &'a mut Vec<u8>,
}

impl Lines<'_> {
    fn show(&mut self, value: &Value, said: &Said, words: &[u64]) {
        let word = words.first().copied().unwrap_or_default();
        match &value.shape {
            Shape::Number(per_unit) => {
                self.begin("");
                self.number(&[], word, *per_unit);
            }
            Shape::Info(name) => {
                let mut own = Vec::new();
                push_label(&mut own, name, itoa::Buffer::new().format(word));
                self.begin("");
                self.number(&own, 1, 1);
            }
            Shape::States(..) => {
                self.begin("");
                for (own, at) in said.states.iter().zip(0..) {
                    self.number(own, u64::from(word == at), 1);
                }
            }
            Shape::Histogram(buckets) => self.histogram(words, buckets),
        }
    }

    fn histogram(&mut self, words: &[u64], buckets: &Buckets) {
        let Some(counted) = buckets.count(words) else { return };
        self.begin("_bucket");
        for (edge, below) in buckets.edges().iter().zip(&counted.below) {
            self.number(edge.label.as_bytes(), *below, 1);
        }
        self.number(b"le=\"+Inf\"", counted.all, 1);
        self.begin("_count");
        self.number(&[], counted.all, 1);
        self.begin("_sum");
        self.number(&[], counted.sum, buckets.per_unit());
    }

    /// Lines from here on are of the name with this behind it.
    fn begin(&mut self, suffix: &str) {
        if self.text.is_empty() {
            self.text.extend_from_slice(self.header);
        }
        self.begin.clear();
        self.begin.extend_from_slice(self.name.as_bytes());
        self.begin.extend_from_slice(suffix.as_bytes());
        let mut opened = false;
        for labels in self.labels.into_iter().filter(|labels| !labels.is_empty()) {
            self.begin.push(if opened { b',' } else { b'{' });
            self.begin.extend_from_slice(labels);
            opened = true;
        }
    }

    fn number(&mut self, own: &[u8], word: u64, per_unit: u64) {
        let is_opened = self.labels.iter().any(|labels| !labels.is_empty());
        self.text.extend_from_slice(self.begin);
        if !own.is_empty() {
            self.text.push(if is_opened { b',' } else { b'{' });
            self.text.extend_from_slice(own);
        }
        self.text.extend_from_slice(if is_opened || !own.is_empty() { b"} " } else { b" " });
        if per_unit == 1 {
            self.text.extend_from_slice(itoa::Buffer::new().format(word).as_bytes());
            self.text.push(b'\n');
        } else {
            // Writing to a vector cannot fail.
            let _ = writeln!(self.text, "{}", word as f64 / per_unit.max(1) as f64);
        }
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
