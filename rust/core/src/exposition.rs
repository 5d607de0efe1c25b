//! Counters as text for Prometheus: a compiled catalogue and the blocks of some files become bytes.
//!
//! ```text
//!   catalogue   family ◀── value ── block kind          (compiled once, from the declarations)
//!   blocks      kind · labels · words                   (copied from counters files)
//!   text        # HELP … # TYPE … name{labels} value    (one buffer a family, put together at the end)
//! ```
//!
//! Two blocks of one kind and the same labels are added up, so no series comes twice whatever is in a file; a kind that
//! nobody declared is left out. The Python form of the same is `vbnet/telemetry/families.py`, which tests compare.
//! Source: the text formats of Prometheus (0.0.4) and OpenMetrics (1.0).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use crate::shm::counters::BlockSnapshot;
use crate::shm::{histogram, labels};

/// All series of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// With `_total` for a counter.
    pub name: String,
    /// What comes before its samples, in each [`Format`].
    pub headers: [String; 2],
}

/// How a value is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As a number, divided by how many make one unit.
    Number(u64),
    /// As 1, the value in a label of this name.
    Info(String),
    /// As 1 for the state that it numbers and 0 for the others: the label's name, and the states.
    States(String, Vec<String>),
    /// As a histogram: nanoseconds or whatever a unit has this many of; for each bucket its edge as text, and how many
    /// of the words' own buckets lie below.
    Histogram(u64, Vec<(String, usize)>),
}

impl Shape {
    const fn words(&self) -> usize {
        match self {
            Self::Histogram(..) => histogram::WORDS,
            _ => 1,
        }
    }

    /// Words of two blocks can be added.
    const fn is_sum(&self) -> bool {
        matches!(self, Self::Number(_) | Self::Histogram(..))
    }
}

/// What one word of a block, or one histogram in it, means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its family, by position.
    pub family: usize,
    /// Labels that it adds to its block's.
    pub fixed: Vec<(String, String)>,
    /// How it is shown.
    pub shape: Shape,
}

/// What the words of a kind of block mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockPlan {
    /// The kind.
    pub kind: String,
    /// Labels that are shown.
    pub labels: Vec<String>,
    /// Its values, in order.
    pub values: Vec<Value>,
}

/// Which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`.
    Text,
    /// `application/openmetrics-text; version=1.0.0`, without its last line.
    OpenMetrics,
}

/// A compiled catalogue.
#[derive(Debug)]
pub struct Exposition {
    families: Vec<Family>,
    plans: Vec<Plan>,
    by_kind: HashMap<String, usize>,
    /// Memory of the text before: pages that are fresh from the system cost as much as what is written there.
    spare: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Plan {
    block: BlockPlan,
    /// For each value, `name="text"` of its fixed labels.
    fixed: Vec<String>,
}

struct Merged {
    plan: usize,
    labels: String,
    words: Vec<u64>,
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
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let shown = self.exposition.families.iter().zip(&self.texts).filter(|(_, text)| !text.is_empty());
        shown.flat_map(|(family, text)| [family.headers[self.format as usize].as_bytes(), text.as_bytes()])
    }

    /// How many bytes they have together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }

    /// Nothing counts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
    /// Compiles; values of families that are not there are left out.
    #[must_use]
    pub fn new(families: Vec<Family>, blocks: Vec<BlockPlan>) -> Self {
        let plans: Vec<Plan> = blocks
            .into_iter()
            .map(|block| Plan { fixed: block.values.iter().map(|value| label_text(&value.fixed)).collect(), block })
            .collect();
        let by_kind = plans.iter().enumerate().map(|(at, plan)| (plan.block.kind.clone(), at)).collect();
        Self { families, plans, by_kind, spare: Mutex::default() }
    }

    /// What `blocks` count, as text.
    #[must_use]
    pub fn render(&self, blocks: Vec<BlockSnapshot>, format: Format) -> Rendered<'_> {
        let mut texts = std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner));
        texts.resize(self.families.len(), String::new());
        for Merged { plan, labels, words } in self.merge(blocks) {
            let Plan { block, fixed } = &self.plans[plan];
            let mut place = 0;
            for (value, fixed) in block.values.iter().zip(fixed) {
                let Some(words) = words.get(place..place + value.shape.words()) else { break };
                place += words.len();
                let (Some(family), Some(text)) = (self.families.get(value.family), texts.get_mut(value.family)) else {
                    continue;
                };
                Line { name: &family.name, labels: [&labels, fixed] }.show(text, &value.shape, words);
            }
        }
        Rendered { exposition: self, texts, format }
    }

    fn merge(&self, blocks: Vec<BlockSnapshot>) -> Vec<Merged> {
        let mut merged: Vec<Merged> = Vec::with_capacity(blocks.len());
        let mut places: HashMap<(usize, String), usize> = HashMap::with_capacity(blocks.len());
        for block in blocks {
            let Some(&plan) = self.by_kind.get(&block.kind) else { continue };
            let labels = shown_labels(&self.plans[plan].block.labels, &block.labels);
            match places.entry((plan, labels.clone())) {
                Entry::Occupied(place) => self.add(plan, &mut merged[*place.get()].words, &block.values),
                Entry::Vacant(place) => {
                    place.insert(merged.len());
                    merged.push(Merged { plan, labels, words: block.values });
                }
            }
        }
        merged
    }

    fn add(&self, plan: usize, words: &mut Vec<u64>, more: &[u64]) {
        let shared = words.len().min(more.len());
        let mut place = 0;
        for Value { shape, .. } in &self.plans[plan].block.values {
            let end = (place + shape.words()).min(shared);
            for at in place.min(end)..end {
                words[at] = if shape.is_sum() { words[at].wrapping_add(more[at]) } else { more[at] };
            }
            place += shape.words();
        }
        words.extend_from_slice(&more[shared..]);
    }
}

/// What the lines of one value begin with.
struct Line<'a> {
    name: &'a str,
    labels: [&'a str; 2],
}

impl Line<'_> {
    fn show(&self, text: &mut String, shape: &Shape, words: &[u64]) {
        let word = words.first().copied().unwrap_or_default();
        match shape {
            Shape::Number(per_unit) => self.number(text, "", None, word, *per_unit),
            Shape::Info(label) => self.number(text, "", Some((label, &word.to_string())), 1, 1),
            Shape::States(label, states) => {
                for (state, at) in states.iter().zip(0..) {
                    self.number(text, "", Some((label, state)), u64::from(word == at), 1);
                }
            }
            Shape::Histogram(per_unit, edges) => self.histogram(text, words, *per_unit, edges),
        }
    }

    fn histogram(&self, text: &mut String, words: &[u64], per_unit: u64, edges: &[(String, usize)]) {
        let counts = words.get(4..histogram::WORDS).unwrap_or_default();
        // Ports have several each, and most ports of a large host are idle: their series begin with the first value.
        if counts.iter().all(|&count| count == 0) {
            return;
        }
        let (mut seen, mut sum) = (0, 0u64);
        let mut sum_below = |below: usize| {
            let below = below.clamp(seen, counts.len());
            sum = counts[seen..below].iter().fold(sum, |sum, &count| sum.wrapping_add(count));
            seen = below;
            sum
        };
        for (edge, below) in edges {
            self.number(text, "_bucket", Some(("le", edge)), sum_below(*below), 1);
        }
        let whole = sum_below(counts.len());
        self.number(text, "_bucket", Some(("le", "+Inf")), whole, 1);
        self.number(text, "_count", None, whole, 1);
        self.number(text, "_sum", None, words.get(1).copied().unwrap_or_default(), per_unit);
    }

    fn number(&self, text: &mut String, suffix: &str, own: Option<(&str, &str)>, word: u64, per_unit: u64) {
        text.push_str(self.name);
        text.push_str(suffix);
        let mut opened = false;
        for labels in self.labels {
            if !labels.is_empty() {
                text.push(if opened { ',' } else { '{' });
                text.push_str(labels);
                opened = true;
            }
        }
        if let Some((name, value)) = own {
            text.push(if opened { ',' } else { '{' });
            push_label(text, name, value);
            opened = true;
        }
        text.push_str(if opened { "} " } else { " " });
        if per_unit == 1 {
            text.push_str(itoa::Buffer::new().format(word));
            text.push('\n');
        } else {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", word as f64 / per_unit.max(1) as f64);
        }
    }
}

fn shown_labels(shown: &[String], text: &str) -> String {
    let found = labels::parse(text);
    let value = |name: &str| found.iter().rev().find(|(known, _)| known == name).map_or("", |(_, value)| value);
    let mut labels = String::new();
    for name in shown {
        if !labels.is_empty() {
            labels.push(',');
        }
        push_label(&mut labels, name, value(name));
    }
    labels
}

fn label_text(labels: &[(String, String)]) -> String {
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn exposition() -> Exposition {
        let family =
            |name: &str| Family { name: name.into(), headers: [format!("# {name}\n"), format!("#o {name}\n")] };
        let value = |family, fixed: &[(&str, &str)], shape| Value {
            family,
            fixed: fixed.iter().map(|&(name, value)| (name.into(), value.into())).collect(),
            shape,
        };
        let nic = vec![
            value(0, &[("reason", "a")], Shape::Number(1)),
            value(1, &[], Shape::Number(1_000)),
            value(0, &[("reason", "b")], Shape::Number(1)),
            value(2, &[], Shape::States("state".into(), vec!["up".into(), "down".into()])),
            value(3, &[], Shape::Info("priority".into())),
        ];
        let families = ["drops", "seconds", "state", "info", "late"].map(family).to_vec();
        let late = value(4, &[], Shape::Histogram(1, vec![("8".into(), 8)]));
        let plan = |kind: &str, labels: &[&str], values| BlockPlan {
            kind: kind.into(),
            labels: labels.iter().map(|&label| label.into()).collect(),
            values,
        };
        Exposition::new(families, vec![plan("nic", &["guest"], nic), plan("late", &[], vec![late])])
    }

    fn block(kind: &str, labels: &str, values: &[u64]) -> BlockSnapshot {
        BlockSnapshot { kind: kind.into(), labels: labels.into(), generation: 1, values: values.to_vec() }
    }

    fn text(blocks: &[BlockSnapshot]) -> String {
        String::from_utf8(exposition().render(blocks.to_vec(), Format::Text).to_vec()).unwrap()
    }

    #[test]
    fn members_of_a_family_are_together_below_its_header() {
        let found = text(&[block("nic", "guest=a,id=7", &[1, 2500, 3]), block("novelty", "", &[9])]);

        let wanted = "# drops\ndrops{guest=\"a\",reason=\"a\"} 1\ndrops{guest=\"a\",reason=\"b\"} 3\n\
                      # seconds\nseconds{guest=\"a\"} 2.5\n";
        assert_eq!(wanted, found);
    }

    #[test]
    fn blocks_of_the_same_labels_are_added_up_and_their_states_are_the_last_ones() {
        let found =
            text(&[block("nic", "guest=a", &[1, 0, 3, 0, 5]), block("nic", "guest=a,id=2", &[1, 1000, 0, 1, 6])]);

        for line in
            ["drops{guest=\"a\",reason=\"a\"} 2\n", "seconds{guest=\"a\"} 1\n", "state{guest=\"a\",state=\"up\"} 0\n"]
        {
            assert!(found.contains(line), "{line} in {found}");
        }
        assert!(found.ends_with("# info\ninfo{guest=\"a\",priority=\"6\"} 1\n"), "{found}");
    }

    #[test]
    fn odd_label_values_are_escaped() {
        assert!(text(&[block("nic", "guest=\"\\\\\n\\,=", &[1])]).contains(r#"{guest="\"\\\n,=",reason="a"} 1"#));
    }

    #[test]
    fn histogram_is_cumulative_and_its_count_is_its_last_bucket() {
        let mut words = vec![0; histogram::WORDS];
        words[..4].copy_from_slice(&[99, 10, 2, 8]);
        words[4 + 2] = 1;
        words[4 + 8] = 1;

        let wanted = "# late\nlate_bucket{le=\"8\"} 1\nlate_bucket{le=\"+Inf\"} 2\nlate_count 2\nlate_sum 10\n";
        assert_eq!(wanted, text(&[block("late", "", &words)]));
        assert_eq!("", text(&[block("late", "", &words[1..])]));
    }
}
