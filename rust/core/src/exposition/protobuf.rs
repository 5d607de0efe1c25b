//! Prometheus' client data model, as protocol buffers: what carries native histograms.
//!
//! A response is `MetricFamily` after `MetricFamily`, each behind its length. A histogram has both its forms in one
//! message, classic and native, and the scraper takes the one it wants. Field numbers are those of `metrics.proto`.
//!
//! Messages put behind one another are one message, with the fields of both: so labels are encoded once a block, and a
//! family's metrics one by one as they come, its name and help in front of them at the end. What there is most of,
//! labels, numbers and classic buckets, is written as it goes, and read back by tests with the messages declared whole.
//! Source: `io.prometheus.client.MetricFamily`, `application/vnd.google.protobuf; encoding=delimited`.

use prost::encoding::{encode_varint, encoded_len_varint};
use prost::{Message, length_delimiter_len};

use super::buckets::{SCHEMA, count};
use super::rows::{self, Kept};
use super::{Buckets, Family, Gathering, Kind, Piece, Shape, Value};

/// Series that no block counts: a family, and the labels and value of each.
pub type Plain = (Family, Vec<(Vec<(String, String)>, f64)>);

/// Keys of what there is most of, which is written by hand: the field's number and how long it is.
const METRIC: u8 = key(4, BEHIND_LENGTH);
const LABEL: u8 = key(1, BEHIND_LENGTH);
const NAME: u8 = key(1, BEHIND_LENGTH);
const VALUE: u8 = key(2, BEHIND_LENGTH);
const GAUGE: u8 = key(2, BEHIND_LENGTH);
const COUNTER: u8 = key(3, BEHIND_LENGTH);
const HISTOGRAM: u8 = key(7, BEHIND_LENGTH);
const NUMBER: u8 = key(1, EIGHT_BYTES);
const BUCKET: u8 = key(3, BEHIND_LENGTH);
const BUCKET_COUNT: u8 = key(1, VARINT);
const BUCKET_EDGE: u8 = key(2, EIGHT_BYTES);
const VARINT: u8 = 0;
const EIGHT_BYTES: u8 = 1;
const BEHIND_LENGTH: u8 = 2;

const fn key(field: u8, length: u8) -> u8 {
    field << 3 | length
}

/// Labels that are written for a value whatever block it is of.
#[derive(Debug)]
pub(super) struct Said {
    /// Those that it adds to its block's.
    fixed: Vec<u8>,
    /// Of a value with states, that of each.
    states: Vec<Vec<u8>>,
}

impl Said {
    pub(super) fn of(value: &Value) -> Self {
        let mut fixed = Vec::new();
        value.fixed.iter().for_each(|(name, value)| push_label(&mut fixed, name, value));
        let written = |name: &str, value: &str| {
            let mut label = Vec::new();
            push_label(&mut label, name, value);
            label
        };
        let states = match &value.shape {
            Shape::States(name, states) => states.iter().map(|state| written(name, state)).collect(),
            _ => Vec::new(),
        };
        Self { fixed, states }
    }
}

/// All of a family but its metrics.
#[derive(Clone, PartialEq, Message)]
struct FamilyHead {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    help: Option<String>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
    #[prost(string, optional, tag = "5")]
    unit: Option<String>,
}

/// All of a histogram but its classic buckets.
#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    sample_sum: Option<f64>,
    #[prost(sint32, optional, tag = "5")]
    schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "13")]
    positive_delta: Vec<i64>,
}

/// Buckets that follow one another.
#[derive(Clone, Copy, PartialEq, Message)]
struct BucketSpan {
    /// Of the first: its number; of the others: how many empty ones lie before it.
    #[prost(sint32, optional, tag = "1")]
    offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    length: Option<u32>,
}

impl Kind {
    /// As `MetricType` numbers it.
    const fn number(self) -> i32 {
        match self {
            Self::Counter => 0,
            Self::Gauge => 1,
            Self::Histogram => 4,
        }
    }
}

impl FamilyHead {
    fn of(family: &Family) -> Self {
        Self {
            name: Some(family.name.clone()),
            help: Some(family.help.clone()),
            kind: Some(family.kind.number()),
            unit: (!family.unit.is_empty()).then(|| family.unit.clone()),
        }
    }
}

/// Puts a label behind others, as the part of a metric that it is.
pub(super) fn push_label(labels: &mut Vec<u8>, name: &str, value: &str) {
    let texts = [(NAME, name), (VALUE, value)];
    let length = |text: &str| 1 + length_delimiter_len(text.len()) + text.len();
    labels.push(LABEL);
    put_length(texts.iter().map(|(_, text)| length(text)).sum(), labels);
    for (key, text) in texts {
        labels.push(key);
        put_length(text.len(), labels);
        labels.extend_from_slice(text.as_bytes());
    }
}

fn put_length(length: usize, bytes: &mut Vec<u8>) {
    encode_varint(length as u64, bytes);
}

/// Puts a metric with these labels behind those of its family: `key` says as what, and `message` how much.
fn push(metrics: &mut Vec<u8>, labels: [&[u8]; 3], key: u8, message: &[u8]) {
    let head = 1 + length_delimiter_len(message.len());
    metrics.push(METRIC);
    put_length(labels.iter().map(|labels| labels.len()).sum::<usize>() + head + message.len(), metrics);
    labels.iter().for_each(|labels| metrics.extend_from_slice(labels));
    metrics.push(key);
    put_length(message.len(), metrics);
    metrics.extend_from_slice(message);
}

fn push_number(metrics: &mut Vec<u8>, labels: [&[u8]; 3], kind: Kind, value: f64) {
    let mut message = [NUMBER; 9];
    message[1..].copy_from_slice(&value.to_le_bytes());
    push(metrics, labels, if kind == Kind::Counter { COUNTER } else { GAUGE }, &message);
}

/// Room in front of a family's metrics for what can only be said once they are there.
fn head_room(head: &FamilyHead) -> usize {
    length_delimiter_len(usize::MAX) + head.encoded_len()
}

/// Puts what comes before the metrics of a family, how long it is and its head, to the end of the room before them, which
/// is where the piece begins then.
fn put_head(head: &FamilyHead, piece: &mut Piece) {
    let (room, length) = (head_room(head), head.encoded_len());
    let all = length + piece.memory.len() - room;
    piece.start = room - length - length_delimiter_len(all);
    let mut place = &mut piece.memory[piece.start..room];
    // It was just found to be as long as that.
    let _ = prost::encode_length_delimiter(all, &mut place);
    let _ = head.encode(&mut place);
}

/// Room that is used for one histogram after the other.
#[derive(Default)]
struct Scratch {
    message: Vec<u8>,
    native: Vec<(i32, u64)>,
    rest: Histogram,
}

impl Gathering {
    /// Writes what the blocks count to their families' pieces, as protocol buffers.
    pub(super) fn protobuf(&self, pieces: &mut [Piece]) {
        let heads: Vec<FamilyHead> = self.exposition.families.iter().map(FamilyHead::of).collect();
        let mut scratch = Scratch::default();
        for (plan, labels, row) in self.told() {
            let values = &plan.block.values;
            for ((value, said), kept) in values.iter().zip(&plan.protobuf).zip(rows::kept(values, row)) {
                let (Some(family), Some(Piece { memory: metrics, .. })) =
                    (self.exposition.families.get(value.family), pieces.get_mut(value.family))
                else {
                    continue;
                };
                if metrics.is_empty() {
                    metrics.resize(head_room(&heads[value.family]), 0);
                }
                show(metrics, family.kind, labels, (value, said, kept), &mut scratch);
            }
        }
        for (head, piece) in heads.iter().zip(pieces) {
            // Histograms without a value are not told: then there is nothing but the room.
            if piece.memory.len() <= head_room(head) { piece.clear() } else { put_head(head, piece) }
        }
    }
}

/// Series that no block counts, as protocol buffers; families without any are left out.
#[must_use]
pub fn encode_plain(families: &[Plain]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (family, samples) in families.iter().filter(|(_, samples)| !samples.is_empty()) {
        let head = FamilyHead::of(family);
        let mut piece = Piece { memory: vec![0; head_room(&head)], start: 0 };
        for (labels, value) in samples {
            let mut pairs = Vec::new();
            labels.iter().for_each(|(name, value)| push_label(&mut pairs, name, value));
            push_number(&mut piece.memory, [&pairs, &[], &[]], family.kind, *value);
        }
        put_head(&head, &mut piece);
        bytes.extend_from_slice(piece.bytes());
    }
    bytes
}

fn show(
    metrics: &mut Vec<u8>,
    kind: Kind,
    labels: &[u8],
    (value, said, Kept { word, filled }): (&Value, &Said, Kept<'_>),
    scratch: &mut Scratch,
) {
    let fixed = said.fixed.as_slice();
    match &value.shape {
        Shape::Number(per_unit) => push_number(metrics, [labels, fixed, &[]], kind, scaled(word, *per_unit)),
        Shape::Info(name) => {
            let mut own = Vec::new();
            push_label(&mut own, name, itoa::Buffer::new().format(word));
            push_number(metrics, [labels, fixed, &own], kind, 1.0);
        }
        Shape::States(..) => {
            for (own, at) in said.states.iter().zip(0..) {
                push_number(metrics, [labels, fixed, own], kind, f64::from(word == at));
            }
        }
        Shape::Histogram(_) if filled.is_empty() => {}
        Shape::Histogram(buckets) => {
            scratch.write(buckets, word, filled);
            push(metrics, [labels, fixed, &[]], HISTOGRAM, &scratch.message);
        }
    }
}

impl Scratch {
    /// Writes the message of a histogram.
    fn write(&mut self, buckets: &Buckets, sum: u64, filled: &[[u64; 2]]) {
        let Self { message, native, rest } = self;
        message.clear();
        for (edge, below) in buckets.classic(filled) {
            message.push(BUCKET);
            put_length(1 + encoded_len_varint(below) + 9, message);
            message.push(BUCKET_COUNT);
            encode_varint(below, message);
            message.push(BUCKET_EDGE);
            message.extend_from_slice(&edge.value.to_le_bytes());
        }
        rest.sample_count = Some(count(filled));
        rest.sample_sum = Some(scaled(sum, buckets.per_unit()));
        rest.schema = Some(SCHEMA);
        rest.zero_threshold = Some(0.0);
        rest.zero_count = Some(buckets.native(filled, native));
        rest.put_spans(native);
        // A vector has room for whatever comes.
        let _ = rest.encode(message);
    }
}

impl Histogram {
    /// Puts buckets as they are told: which follow one another, and by how much each has more than the one before.
    fn put_spans(&mut self, native: &[(i32, u64)]) {
        let Self { positive_span: spans, positive_delta: deltas, .. } = self;
        spans.clear();
        deltas.clear();
        let (mut next, mut before) = (0, 0);
        for &(place, count) in native {
            match spans.last_mut() {
                Some(span) if place == next => span.length = Some(span.length() + 1),
                _ => spans.push(BucketSpan { offset: Some(place - next), length: Some(1) }),
            }
            deltas.push(count.wrapping_sub(before).cast_signed());
            (next, before) = (place + 1, count);
        }
    }
}

fn scaled(word: u64, per_unit: u64) -> f64 {
    word as f64 / per_unit.max(1) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::exposition::{BlockPlan, Exposition, Format};
    use crate::shm::counters::BlockView;
    use crate::shm::histogram::{WORDS, bucket_of};

    #[derive(Clone, PartialEq, Message)]
    struct Metric {
        #[prost(message, repeated, tag = "1")]
        label: Vec<LabelPair>,
        #[prost(message, optional, tag = "2")]
        gauge: Option<Number>,
        #[prost(message, optional, tag = "3")]
        counter: Option<Number>,
        /// To be read as [`Histogram`], and as [`Classic`].
        #[prost(bytes = "vec", optional, tag = "7")]
        histogram: Option<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct LabelPair {
        #[prost(string, optional, tag = "1")]
        name: Option<String>,
        #[prost(string, optional, tag = "2")]
        value: Option<String>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Number {
        #[prost(double, optional, tag = "1")]
        value: Option<f64>,
    }

    /// What of a histogram is written by hand.
    #[derive(Clone, PartialEq, Message)]
    struct Classic {
        #[prost(message, repeated, tag = "3")]
        bucket: Vec<Bucket>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Bucket {
        #[prost(uint64, optional, tag = "1")]
        cumulative_count: Option<u64>,
        #[prost(double, optional, tag = "2")]
        upper_bound: Option<f64>,
    }

    /// A family as those read it who have no reason to take it apart.
    #[derive(Clone, PartialEq, Message)]
    struct MetricFamily {
        #[prost(string, optional, tag = "1")]
        name: Option<String>,
        #[prost(int32, optional, tag = "3")]
        kind: Option<i32>,
        #[prost(message, repeated, tag = "4")]
        metric: Vec<Metric>,
        #[prost(string, optional, tag = "5")]
        unit: Option<String>,
    }

    fn family(name: &str, kind: Kind, unit: &str) -> Family {
        Family { name: name.into(), help: "Help.".into(), unit: unit.into(), kind, headers: Default::default() }
    }

    fn exposition() -> Arc<Exposition> {
        let families = vec![
            family("drop_total", Kind::Counter, "packets"),
            family("state", Kind::Gauge, ""),
            family("late_seconds", Kind::Histogram, "seconds"),
        ];
        let value = |family, fixed, shape| Value { family, fixed, shape };
        let values = vec![
            value(0, vec![("reason".into(), "a \"b\"".into())], Shape::Number(1)),
            value(1, Vec::new(), Shape::States("state".into(), vec!["up".into(), "down".into()])),
            value(2, Vec::new(), Shape::Histogram(Buckets::new(1_000_000_000, vec![("1e-06".into(), 112)]))),
        ];
        Arc::new(Exposition::new(
            families,
            vec![BlockPlan { kind: "nic".into(), labels: vec!["guest".into()], values }],
        ))
    }

    fn decoded(bytes: &[u8]) -> Vec<MetricFamily> {
        let (mut rest, mut found) = (bytes, Vec::new());
        while !rest.is_empty() {
            found.push(MetricFamily::decode_length_delimited(&mut rest).unwrap());
        }
        found
    }

    /// What is told of one block.
    fn told(labels: &str, values: &[u64]) -> Vec<MetricFamily> {
        let mut gathering = exposition().gather(Format::Protobuf);
        gathering.add(&BlockView { kind: "nic", labels, generation: 1, values });
        decoded(&gathering.render().concat())
    }

    fn shown(labels: &[LabelPair]) -> Vec<(&str, &str)> {
        labels.iter().map(|pair| (pair.name(), pair.value())).collect()
    }

    #[test]
    fn families_are_one_message_each_with_all_their_labels() {
        let found = told("guest=g\\,1", &[3, 1]);

        assert_eq!(["drop_total", "state"].as_slice(), found.iter().map(|family| family.name()).collect::<Vec<_>>());
        assert_eq!((Some(0), "packets"), (found[0].kind, found[0].unit()));
        assert_eq!(vec![("guest", "g,1"), ("reason", "a \"b\"")], shown(&found[0].metric[0].label));
        assert_eq!(Some(3.0), found[0].metric[0].counter.as_ref().unwrap().value);
        let states: Vec<_> = found[1].metric.iter().map(|metric| metric.gauge.as_ref().unwrap().value()).collect();
        assert_eq!(vec![0.0, 1.0], states);
    }

    /// A microsecond and what lies next to it share a bucket or are neighbours; a second is far from both.
    #[test]
    fn histograms_have_both_forms_and_their_counts_agree() {
        let mut values = vec![0; 2 + WORDS];
        for value in [0, 1_000, 1_000, 1_000_000_000] {
            values[2 + 4 + bucket_of(value)] += 1;
        }
        values[2 + 1] = 1_000_002_000;

        let found = told("guest=g", &values);

        let bytes = found[2].metric[0].histogram.as_deref().unwrap();
        let (told, classic) = (Histogram::decode(bytes).unwrap(), Classic::decode(bytes).unwrap());
        assert_eq!((4, 1.000_002), (told.sample_count(), told.sample_sum()));
        assert_eq!(1, classic.bucket.len());
        assert_eq!((3, 1e-6), (classic.bucket[0].cumulative_count(), classic.bucket[0].upper_bound()));
        assert_eq!((SCHEMA, 1, 0.0), (told.schema(), told.zero_count(), told.zero_threshold()));
        // 2^(-159/8) and 2^(0/8) seconds are the buckets' ends.
        let spans: Vec<_> = told.positive_span.iter().map(|span| (span.offset(), span.length())).collect();
        assert_eq!((vec![(-159, 1), (158, 1)], vec![2, -1]), (spans, told.positive_delta.clone()));
    }

    #[test]
    fn buckets_that_follow_one_another_are_one_span() {
        let mut told = Histogram::default();
        told.put_spans(&[(-3, 5), (-2, 4), (1, 9)]);

        let spans: Vec<_> = told.positive_span.iter().map(|span| (span.offset(), span.length())).collect();
        assert_eq!((vec![(-3, 2), (2, 1)], vec![5, -1, 5]), (spans, told.positive_delta));
    }

    #[test]
    fn what_no_block_counts_is_told_alike() {
        let up: Plain = (family("up", Kind::Gauge, ""), vec![(vec![("lab".into(), "a".into())], 1.0)]);

        let found = decoded(&encode_plain(&[up, (family("none_total", Kind::Counter, ""), Vec::new())]));

        assert_eq!(1, found.len());
        assert_eq!(vec![("lab", "a")], shown(&found[0].metric[0].label));
    }
}
