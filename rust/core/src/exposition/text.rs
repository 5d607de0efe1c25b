//! The two text formats.
//!
//! Samples are written into one buffer a family, so that a family's are together whatever the order of the blocks.

use std::fmt::Write as _;
use std::sync::PoisonError;

use super::{Buckets, Exposition, Shape};
use crate::shm::counters::BlockSnapshot;

/// Which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`.
    Text,
    /// `application/openmetrics-text; version=1.0.0`, without its last line.
    OpenMetrics,
}

/// Text in pieces, so that whoever sends it puts it together once, where it is needed.
#[derive(Debug)]
pub struct Rendered<'a> {
    exposition: &'a Exposition,
    texts: Vec<String>,
    format: Format,
}

impl Rendered<'_> {
    /// The pieces, in order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let shown = self.exposition.families.iter().zip(&self.texts).filter(|(_, text)| !text.is_empty());
        shown.flat_map(|(family, text)| [family.headers[self.format as usize].as_bytes(), text.as_bytes()])
    }

    /// All of it in one piece.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.pieces().flatten().copied().collect()
    }
}

impl Drop for Rendered<'_> {
    fn drop(&mut self) {
        self.texts.iter_mut().for_each(String::clear);
        *self.exposition.spare.lock().unwrap_or_else(PoisonError::into_inner) = std::mem::take(&mut self.texts);
    }
}

impl Exposition {
    /// What `blocks` count, as text.
    #[must_use]
    pub fn render(&self, blocks: Vec<BlockSnapshot>, format: Format) -> Rendered<'_> {
        let mut texts = std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner));
        texts.resize(self.families.len(), String::new());
        for ((plan, values), words) in self.merge(blocks) {
            let plan = &self.plans[plan];
            let labels = label_text(plan.block.labels.iter().zip(&values));
            let mut begin = String::new();
            for (value, fixed, words) in plan.shown(&words) {
                let (Some(family), Some(text)) = (self.families.get(value.family), texts.get_mut(value.family)) else {
                    continue;
                };
                Lines { name: &family.name, labels: [&labels, fixed], begin: &mut begin, text }
                    .show(&value.shape, words);
            }
        }
        Rendered { exposition: self, texts, format }
    }
}

/// The lines of one value.
struct Lines<'a> {
    name: &'a str,
    labels: [&'a str; 2],
    /// What the lines that are being written begin with, up to their own label.
    begin: &'a mut String,
    text: &'a mut String,
}

impl Lines<'_> {
    fn show(&mut self, shape: &Shape, words: &[u64]) {
        let word = words.first().copied().unwrap_or_default();
        match shape {
            Shape::Number(per_unit) => {
                self.begin("");
                self.number("", word, *per_unit);
            }
            Shape::Info(name) => {
                self.begin("");
                self.number(&label(name, &word.to_string()), 1, 1);
            }
            Shape::States(name, states) => {
                self.begin("");
                for (state, at) in states.iter().zip(0..) {
                    self.number(&label(name, state), u64::from(word == at), 1);
                }
            }
            Shape::Histogram(buckets) => self.histogram(words, buckets),
        }
    }

    fn histogram(&mut self, words: &[u64], buckets: &Buckets) {
        let Some(counted) = buckets.count(words) else { return };
        self.begin("_bucket");
        for (edge, below) in buckets.edges().iter().zip(&counted.below) {
            self.number(&edge.label, *below, 1);
        }
        self.number("le=\"+Inf\"", counted.all, 1);
        self.begin("_count");
        self.number("", counted.all, 1);
        self.begin("_sum");
        self.number("", counted.sum, buckets.per_unit());
    }

    /// Lines from here on are of the name with this behind it.
    fn begin(&mut self, suffix: &str) {
        self.begin.clear();
        self.begin.push_str(self.name);
        self.begin.push_str(suffix);
        let mut opened = false;
        for labels in self.labels.into_iter().filter(|labels| !labels.is_empty()) {
            self.begin.push(if opened { ',' } else { '{' });
            self.begin.push_str(labels);
            opened = true;
        }
    }

    fn number(&mut self, own: &str, word: u64, per_unit: u64) {
        let is_opened = self.labels.iter().any(|labels| !labels.is_empty());
        self.text.push_str(self.begin);
        if !own.is_empty() {
            self.text.push(if is_opened { ',' } else { '{' });
            self.text.push_str(own);
        }
        self.text.push_str(if is_opened || !own.is_empty() { "} " } else { " " });
        if per_unit == 1 {
            self.text.push_str(itoa::Buffer::new().format(word));
            self.text.push('\n');
        } else {
            // Writing to a string cannot fail.
            let _ = writeln!(self.text, "{}", word as f64 / per_unit.max(1) as f64);
        }
    }
}

fn label(name: &str, value: &str) -> String {
    let mut text = String::new();
    push_label(&mut text, name, value);
    text
}

/// Labels that a value adds to its block's, as text.
pub(super) fn fixed(labels: &[(String, String)]) -> String {
    label_text(labels.iter().map(|(name, value)| (name, value)))
}

fn label_text<'a>(labels: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        push_label(&mut text, name, value);
    }
    text
}

fn push_label(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push_str("=\"");
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            _ => text.push(letter),
        }
    }
    text.push('"');
}
