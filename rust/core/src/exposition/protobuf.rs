//! Prometheus' client data model, as protocol buffers: what carries native histograms.
//!
//! A response is `MetricFamily` after `MetricFamily`, each behind its length. A histogram has both its forms in one
//! message, classic and native, and the scraper takes the one it wants. Field numbers are those of `metrics.proto`.
//!
//! Messages put behind one another are one message, with the fields of both: so labels are encoded once a block, and a
//! family's metrics one by one as they come, its name and help in front of them at the end.
//! Source: `io.prometheus.client.MetricFamily`, `application/vnd.google.protobuf; encoding=delimited`.

use prost::Message;

use super::{Buckets, Exposition, Family, Kind, Shape, Value};
use crate::exposition::buckets::SCHEMA;
use crate::shm::counters::BlockSnapshot;

/// Series that no block counts: a family, and the labels and value of each.
pub type Plain = (Family, Vec<(Vec<(String, String)>, f64)>);

/// The key of `MetricFamily.metric`: field 4, of bytes behind their length.
const METRIC: u8 = 4 << 3 | 2;

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

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Number>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Histogram>,
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

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
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

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    upper_bound: Option<f64>,
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

impl Metric {
    fn number(kind: Kind, value: f64) -> Self {
        let number = Some(Number { value: Some(value) });
        match kind {
            Kind::Counter => Self { counter: number, ..Self::default() },
            _ => Self { gauge: number, ..Self::default() },
        }
    }
}

/// Labels as the part of a metric that they are.
fn encoded<'a>(labels: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<u8> {
    let pair = |(name, value): (&String, &String)| LabelPair { name: Some(name.clone()), value: Some(value.clone()) };
    Metric { label: labels.map(pair).collect(), ..Metric::default() }.encode_to_vec()
}

/// Puts a metric with these labels behind those of its family.
fn push(metrics: &mut Vec<u8>, labels: [&[u8]; 3], metric: &Metric) {
    let length = labels.iter().map(|labels| labels.len()).sum::<usize>() + metric.encoded_len();
    metrics.push(METRIC);
    // A vector has room for whatever comes.
    let _ = prost::encode_length_delimiter(length, metrics);
    labels.iter().for_each(|labels| metrics.extend_from_slice(labels));
    let _ = metric.encode(metrics);
}

/// What comes before the metrics of a family: how long it is, and its head.
fn head(family: &Family, metrics: &[u8]) -> Vec<u8> {
    let head = FamilyHead::of(family);
    let mut bytes = Vec::new();
    let _ = prost::encode_length_delimiter(head.encoded_len() + metrics.len(), &mut bytes);
    let _ = head.encode(&mut bytes);
    bytes
}

impl Exposition {
    /// What `blocks` count, as protocol buffers; in pieces, so that whoever sends them puts them together once.
    #[must_use]
    pub fn protobuf(&self, blocks: Vec<BlockSnapshot>) -> Vec<Vec<u8>> {
        let mut metrics = vec![Vec::new(); self.families.len()];
        for ((plan, values), words) in self.merge(blocks) {
            let plan = &self.plans[plan];
            let labels = encoded(plan.block.labels.iter().zip(&values));
            for (value, _, words) in plan.shown(&words) {
                let (Some(family), Some(metrics)) = (self.families.get(value.family), metrics.get_mut(value.family))
                else {
                    continue;
                };
                show(metrics, family.kind, &labels, value, words);
            }
        }
        let shown = self.families.iter().zip(metrics).filter(|(_, metrics)| !metrics.is_empty());
        shown.flat_map(|(family, metrics)| [head(family, &metrics), metrics]).collect()
    }
}

/// Series that no block counts, as protocol buffers; families without any are left out.
#[must_use]
pub fn encode_plain(families: &[Plain]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (family, samples) in families.iter().filter(|(_, samples)| !samples.is_empty()) {
        let mut metrics = Vec::new();
        for (labels, value) in samples {
            let labels = encoded(labels.iter().map(|(name, value)| (name, value)));
            push(&mut metrics, [&labels, &[], &[]], &Metric::number(family.kind, *value));
        }
        bytes.extend(head(family, &metrics));
        bytes.extend(metrics);
    }
    bytes
}

fn show(metrics: &mut Vec<u8>, kind: Kind, labels: &[u8], value: &Value, words: &[u64]) {
    let word = words.first().copied().unwrap_or_default();
    let fixed = encoded(value.fixed.iter().map(|(name, value)| (name, value)));
    let own = |name, value| encoded(std::iter::once((name, value)));
    match &value.shape {
        Shape::Number(per_unit) => {
            push(metrics, [labels, &fixed, &[]], &Metric::number(kind, scaled(word, *per_unit)));
        }
        Shape::Info(name) => {
            push(metrics, [labels, &fixed, &own(name, &word.to_string())], &Metric::number(kind, 1.0));
        }
        Shape::States(name, states) => {
            for (state, at) in states.iter().zip(0..) {
                push(metrics, [labels, &fixed, &own(name, state)], &Metric::number(kind, f64::from(word == at)));
            }
        }
        Shape::Histogram(buckets) => {
            if let Some(histogram) = histogram(buckets, words) {
                push(metrics, [labels, &fixed, &[]], &Metric { histogram: Some(histogram), ..Metric::default() });
            }
        }
    }
}

fn histogram(buckets: &Buckets, words: &[u64]) -> Option<Histogram> {
    let counted = buckets.count(words)?;
    let classic = buckets
        .edges()
        .iter()
        .zip(&counted.below)
        .map(|(edge, &below)| Bucket { cumulative_count: Some(below), upper_bound: Some(edge.value) });
    let (zeroes, native) = buckets.native(words);
    let (positive_span, positive_delta) = spans(&native);
    Some(Histogram {
        sample_count: Some(counted.all),
        sample_sum: Some(scaled(counted.sum, buckets.per_unit())),
        bucket: classic.collect(),
        schema: Some(SCHEMA),
        zero_threshold: Some(0.0),
        zero_count: Some(zeroes),
        positive_span,
        positive_delta,
    })
}

/// Buckets as they are told: which follow one another, and by how much each has more than the one before.
fn spans(native: &[(i32, u64)]) -> (Vec<BucketSpan>, Vec<i64>) {
    let (mut spans, mut deltas) = (Vec::<BucketSpan>::new(), Vec::with_capacity(native.len()));
    let (mut next, mut before) = (0, 0);
    for &(place, count) in native {
        match spans.last_mut() {
            Some(span) if place == next => span.length = Some(span.length() + 1),
            _ => spans.push(BucketSpan { offset: Some(place - next), length: Some(1) }),
        }
        deltas.push(count.wrapping_sub(before).cast_signed());
        (next, before) = (place + 1, count);
    }
    (spans, deltas)
}

fn scaled(word: u64, per_unit: u64) -> f64 {
    word as f64 / per_unit.max(1) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::exposition::BlockPlan;
    use crate::shm::histogram::{WORDS, bucket_of};

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

    fn exposition() -> Exposition {
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
        Exposition::new(families, vec![BlockPlan { kind: "nic".into(), labels: vec!["guest".into()], values }])
    }

    fn decoded(bytes: &[u8]) -> Vec<MetricFamily> {
        let (mut rest, mut found) = (bytes, Vec::new());
        while !rest.is_empty() {
            found.push(MetricFamily::decode_length_delimited(&mut rest).unwrap());
        }
        found
    }

    fn shown(labels: &[LabelPair]) -> Vec<(&str, &str)> {
        labels.iter().map(|pair| (pair.name(), pair.value())).collect()
    }

    #[test]
    fn families_are_one_message_each_with_all_their_labels() {
        let block =
            BlockSnapshot { kind: "nic".into(), labels: "guest=g\\,1".into(), generation: 1, values: vec![3, 1] };

        let found = decoded(&exposition().protobuf(vec![block]).concat());

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
        let block = BlockSnapshot { kind: "nic".into(), labels: "guest=g".into(), generation: 1, values };

        let found = decoded(&exposition().protobuf(vec![block]).concat());

        let told = found[2].metric[0].histogram.as_ref().unwrap();
        assert_eq!((4, 1.000_002), (told.sample_count(), told.sample_sum()));
        assert_eq!((3, 1e-6), (told.bucket[0].cumulative_count(), told.bucket[0].upper_bound()));
        assert_eq!((SCHEMA, 1, 0.0), (told.schema(), told.zero_count(), told.zero_threshold()));
        // 2^(-159/8) and 2^(0/8) seconds are the buckets' ends.
        let spans: Vec<_> = told.positive_span.iter().map(|span| (span.offset(), span.length())).collect();
        assert_eq!((vec![(-159, 1), (158, 1)], vec![2, -1]), (spans, told.positive_delta.clone()));
    }

    #[test]
    fn buckets_that_follow_one_another_are_one_span() {
        let (spans, deltas) = spans(&[(-3, 5), (-2, 4), (1, 9)]);

        let spans: Vec<_> = spans.iter().map(|span| (span.offset(), span.length())).collect();
        assert_eq!((vec![(-3, 2), (2, 1)], vec![5, -1, 5]), (spans, deltas));
    }

    #[test]
    fn what_no_block_counts_is_told_alike() {
        let up: Plain = (family("up", Kind::Gauge, ""), vec![(vec![("lab".into(), "a".into())], 1.0)]);

        let found = decoded(&encode_plain(&[up, (family("none_total", Kind::Counter, ""), Vec::new())]));

        assert_eq!(1, found.len());
        assert_eq!(vec![("lab", "a")], shown(&found[0].metric[0].label));
    }
}
