//! Counters for Prometheus: a compiled catalogue and the blocks of some files become bytes.
//!
//! ```text
//!   catalogue   family ◀── value ── block kind          (compiled once, from the declarations)
//!   blocks      kind · labels · words                   (shown by readers of counters files, kept as rows)
//!   text        # HELP … # TYPE … name{labels} value    (one piece a family)
//!   protobuf    MetricFamily, each behind its length    (the same, with native histograms)
//! ```
//!
//! A thousand devices are told in tens of megabytes, so nothing is put together that is only to be sent: see [`Pieces`].
//!
//! Two blocks of one kind and the same labels are added up, so no series comes twice whatever is in a file; a kind that
//! nobody declared is left out. The Python form of the same is `vbnet/telemetry/families.py`, which tests compare.
//! Source: the text formats of Prometheus (0.0.4) and OpenMetrics (1.0), Prometheus' client data model (protobuf).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use indexmap::IndexMap;
use indexmap::map::Entry;

pub use self::buckets::Buckets;
pub use self::protobuf::{Plain, encode_plain};
use crate::shm::counters::BlockView;
use crate::shm::{histogram, labels};

mod buckets;
mod protobuf;
mod rows;
mod text;

/// In which form metrics are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`.
    Text,
    /// `application/openmetrics-text; version=1.0.0`, without its last line.
    OpenMetrics,
    /// `application/vnd.google.protobuf; encoding=delimited`.
    Protobuf,
}

/// How the values of a family move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Up.
    Counter,
    /// Up and down.
    Gauge,
    /// Many at once.
    Histogram,
}

/// All series of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// With `_total` for a counter.
    pub name: String,
    /// What it says.
    pub help: String,
    /// Its unit, or nothing.
    pub unit: String,
    /// How its values move.
    pub kind: Kind,
    /// What comes before its samples, in either text.
    pub headers: [String; 2],
}

/// How a value is shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// As a number, divided by how many make one unit.
    Number(u64),
    /// As 1, the value in a label of this name.
    Info(String),
    /// As 1 for the state that it numbers and 0 for the others: the label's name, and the states.
    States(String, Vec<String>),
    /// As a histogram.
    Histogram(Buckets),
}

impl Shape {
    const fn words(&self) -> usize {
        match self {
            Self::Histogram(_) => histogram::WORDS,
            _ => 1,
        }
    }

    /// Words of two blocks can be added.
    const fn is_sum(&self) -> bool {
        matches!(self, Self::Number(_) | Self::Histogram(_))
    }
}

/// What one word of a block, or one histogram in it, means.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Its family, by position.
    pub family: usize,
    /// Labels that it adds to its block's.
    pub fixed: Vec<(String, String)>,
    /// How it is shown.
    pub shape: Shape,
}

/// What the words of a kind of block mean.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockPlan {
    /// The kind.
    pub kind: String,
    /// Labels that are shown.
    pub labels: Vec<String>,
    /// Its values, in order.
    pub values: Vec<Value>,
}

/// A compiled catalogue.
#[derive(Debug)]
pub struct Exposition {
    families: Vec<Family>,
    plans: Vec<Plan>,
    by_kind: HashMap<String, usize>,
    /// Memory of what was told before: pages that are fresh from the system cost as much as what is written there.
    spare: Mutex<Vec<Piece>>,
}

/// What is told, a piece a family, in order. Its memory goes back to where it was told.
#[derive(Debug)]
pub struct Pieces {
    exposition: Arc<Exposition>,
    families: Vec<Piece>,
}

/// What is told of a family.
#[derive(Clone, Debug, Default)]
struct Piece {
    memory: Vec<u8>,
    /// Where in the memory it begins.
    start: usize,
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..).unwrap_or_default()
    }

    fn clear(&mut self) {
        self.memory.clear();
        self.start = 0;
    }
}

impl Pieces {
    /// How many there are, empty ones too.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.families.len()
    }

    /// The one at `place`; nothing where there is none.
    #[must_use]
    pub fn get(&self, place: usize) -> &[u8] {
        self.families.get(place).map(Piece::bytes).unwrap_or_default()
    }

    /// All of them in one.
    #[must_use]
    pub fn concat(&self) -> Vec<u8> {
        self.families.iter().map(Piece::bytes).collect::<Vec<_>>().concat()
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.families.iter_mut().for_each(Piece::clear);
        *self.exposition.spare.lock().unwrap_or_else(PoisonError::into_inner) = std::mem::take(&mut self.families);
    }
}

/// Blocks that are read to be told, in the order of the first of each.
#[derive(Debug)]
pub struct Gathering {
    exposition: Arc<Exposition>,
    format: Format,
    /// By their kind's plan and the labels that are shown, as the format writes them.
    blocks: IndexMap<(usize, Vec<u8>), Row>,
    rows: Vec<u64>,
}

/// Where a block's words are.
#[derive(Debug)]
enum Row {
    /// Among the rows.
    Kept(Range<usize>),
    /// Of several blocks, added up: here, so that one more costs no more than its own words.
    Sum(Vec<u64>),
}

#[derive(Debug)]
struct Plan {
    block: BlockPlan,
    /// For each value, what a form writes for it whatever block it is of.
    text: Vec<text::Said>,
    protobuf: Vec<protobuf::Said>,
}

impl Exposition {
    /// Compiles; values of families that are not there are left out.
    #[must_use]
    pub fn new(families: Vec<Family>, blocks: Vec<BlockPlan>) -> Self {
        let name = |value: &Value| families.get(value.family).map_or("", |family| &family.name);
        let plans: Vec<Plan> = blocks
            .into_iter()
            .map(|block| Plan {
                text: block.values.iter().map(|value| text::Said::of(name(value), &block.labels, value)).collect(),
                protobuf: block.values.iter().map(protobuf::Said::of).collect(),
                block,
            })
            .collect();
        let by_kind = plans.iter().enumerate().map(|(at, plan)| (plan.block.kind.clone(), at)).collect();
        Self { families, plans, by_kind, spare: Mutex::default() }
    }

    /// Begins to tell: of no block yet.
    #[must_use]
    pub fn gather(self: &Arc<Self>, format: Format) -> Gathering {
        Gathering { exposition: self.clone(), format, blocks: IndexMap::new(), rows: Vec::new() }
    }
}

impl Gathering {
    /// Keeps what `block` counts.
    pub fn add(&mut self, block: &BlockView<'_>) {
        let Some(&kind) = self.exposition.by_kind.get(block.kind) else { return };
        let BlockPlan { labels, values, .. } = &self.exposition.plans[kind].block;
        let write = if self.format == Format::Protobuf { protobuf::push_label } else { text::push_label };
        match self.blocks.entry((kind, shown_labels(labels, block.labels, write))) {
            Entry::Vacant(place) => {
                place.insert(Row::Kept(rows::push(values, block.values, &mut self.rows)));
            }
            Entry::Occupied(mut row) => {
                if let Row::Kept(row_of_first) = row.get() {
                    let words = rows::words(values, &self.rows[row_of_first.clone()]);
                    row.insert(Row::Sum(words));
                }
                if let Row::Sum(words) = row.get_mut() {
                    add(values, words, block.values);
                }
            }
        }
    }

    /// What the blocks count.
    #[must_use]
    pub fn render(mut self) -> Pieces {
        self.keep_sums();
        let exposition = self.exposition.clone();
        let mut families = std::mem::take(&mut *exposition.spare.lock().unwrap_or_else(PoisonError::into_inner));
        families.resize(exposition.families.len(), Piece::default());
        match self.format {
            Format::Text => self.text(0, &mut families),
            Format::OpenMetrics => self.text(1, &mut families),
            Format::Protobuf => self.protobuf(&mut families),
        }
        Pieces { exposition, families }
    }

    fn keep_sums(&mut self) {
        for ((plan, _), row) in &mut self.blocks {
            if let Row::Sum(words) = row {
                *row = Row::Kept(rows::push(&self.exposition.plans[*plan].block.values, words, &mut self.rows));
            }
        }
    }

    /// Each block's plan, its labels and its row.
    fn told(&self) -> impl Iterator<Item = (&Plan, &[u8], &[u64])> {
        self.blocks.iter().filter_map(|((plan, labels), row)| match row {
            Row::Kept(row) => Some((&self.exposition.plans[*plan], labels.as_slice(), &self.rows[row.clone()])),
            Row::Sum(_) => None,
        })
    }
}

/// Adds the words of another block of the same labels to those of the first.
fn add(values: &[Value], words: &mut Vec<u64>, more: &[u64]) {
    let shared = words.len().min(more.len());
    let mut place = 0;
    for Value { shape, .. } in values {
        let end = (place + shape.words()).min(shared);
        for at in place.min(end)..end {
            words[at] = if shape.is_sum() { words[at].wrapping_add(more[at]) } else { more[at] };
        }
        place += shape.words();
    }
    words.extend_from_slice(&more[shared..]);
}

/// The labels of a block that are shown, in their order; one that it does not have is empty, of two of a name the last one
/// counts.
fn shown_labels(shown: &[String], text: &str, write: fn(&mut Vec<u8>, &str, &str)) -> Vec<u8> {
    let found = labels::parse(text);
    let mut written = Vec::with_capacity(2 * text.len());
    for name in shown {
        let value = found.iter().rfind(|(known, _)| known == name).map_or("", |(_, value)| value);
        write(&mut written, name, value);
    }
    written
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn exposition() -> Arc<Exposition> {
        let family = |name: &str| Family {
            name: name.into(),
            help: String::new(),
            unit: String::new(),
            kind: Kind::Gauge,
            headers: [format!("# {name}\n"), format!("#o {name}\n")],
        };
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
        let late = value(4, &[], Shape::Histogram(Buckets::new(1, vec![("8".into(), 8)])));
        let plan = |kind: &str, labels: &[&str], values| BlockPlan {
            kind: kind.into(),
            labels: labels.iter().map(|&label| label.into()).collect(),
            values,
        };
        Arc::new(Exposition::new(families, vec![plan("nic", &["guest"], nic), plan("late", &[], vec![late])]))
    }

    const fn block<'a>(kind: &'a str, labels: &'a str, values: &'a [u64]) -> BlockView<'a> {
        BlockView { kind, labels, generation: 1, values }
    }

    fn text(blocks: &[BlockView<'_>]) -> String {
        let mut gathering = exposition().gather(Format::Text);
        blocks.iter().for_each(|block| gathering.add(block));
        String::from_utf8(gathering.render().concat()).unwrap()
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
    fn histograms_of_the_same_labels_are_added_up_however_many_words_they_have() {
        let mut words = vec![0; histogram::WORDS + 1];
        (words[1], words[4 + 2], words[4 + 8]) = (10, 1, 1);
        let mut more = vec![0; 4 + 3];
        (more[1], more[4 + 1], more[4 + 2]) = (3, 1, 1);

        let found = text(&[block("late", "", &words), block("late", "", &more), block("late", "", &words)]);

        let wanted = "# late\nlate_bucket{le=\"8\"} 4\nlate_bucket{le=\"+Inf\"} 6\nlate_count 6\nlate_sum 23\n";
        assert_eq!(wanted, found);
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
