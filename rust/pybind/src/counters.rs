//! Counters in shared memory: written by their owner, read by anybody.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vbnet_core::exposition;
use vbnet_core::shm::{counters, histogram, labels};

use crate::errors::{OrRaise, raise_plain};

type Snapshot = (String, String, u64, Vec<u64>);

fn plain(blocks: Vec<counters::BlockSnapshot>) -> Vec<Snapshot> {
    blocks.into_iter().map(|block| (block.kind, block.labels, block.generation, block.values)).collect()
}

/// A file of counter blocks, made by this process.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct CounterFile {
    pub(crate) inner: Arc<counters::CounterFile>,
}

#[pymethods]
impl CounterFile {
    #[staticmethod]
    #[pyo3(signature = (path = None, size = 1_048_576))]
    fn create(py: Python<'_>, path: Option<PathBuf>, size: usize) -> PyResult<Self> {
        let file = counters::CounterFile::create(path.as_deref(), size).or_raise(py)?;
        Ok(Self { inner: Arc::new(file) })
    }

    fn allocate(&self, py: Python<'_>, kind: &str, labels: &str, count: usize) -> PyResult<CounterBlock> {
        let block = self.inner.allocate(kind, labels, count).or_raise(py)?;
        Ok(CounterBlock { inner: Mutex::new(Some(block)) })
    }

    fn read(&self) -> Vec<Snapshot> {
        plain(self.inner.reader().blocks())
    }
}

/// One owner's row of counters.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct CounterBlock {
    inner: Mutex<Option<counters::Block>>,
}

impl CounterBlock {
    fn with<T>(&self, py: Python<'_>, each: impl FnOnce(&counters::Block) -> T) -> PyResult<T> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.as_ref().map(each).ok_or_else(|| raise_plain(py, "ClosedError", "this counter block is closed"))
    }
}

#[pymethods]
impl CounterBlock {
    #[pyo3(signature = (index, amount = 1))]
    fn add(&self, py: Python<'_>, index: usize, amount: u64) -> PyResult<()> {
        self.with(py, |block| block.add(index, amount))
    }

    fn set(&self, py: Python<'_>, index: usize, amount: u64) -> PyResult<()> {
        self.with(py, |block| block.set(index, amount))
    }

    fn load(&self, py: Python<'_>, index: usize) -> PyResult<u64> {
        self.with(py, |block| block.load(index))
    }

    fn close(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Every live block in the counters file at `path`.
#[pyfunction]
pub(crate) fn read_counters(py: Python<'_>, path: PathBuf) -> PyResult<Vec<Snapshot>> {
    py.detach(|| counters::CounterFile::open(&path).map(|reader| plain(reader.blocks()))).or_raise(py)
}

/// Labels as the text of a counters block.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "converted from Python")]
pub(crate) fn counter_labels(labels: Vec<(String, String)>) -> String {
    let pairs: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    labels::text(&pairs)
}

/// The labels that a block's text says.
#[pyfunction]
pub(crate) fn parse_counter_labels(text: &str) -> Vec<(String, String)> {
    labels::parse(text)
}

/// Value at or below which the given share of a histogram's values lie.
#[pyfunction]
pub(crate) fn histogram_quantile(words: Vec<u64>, quantile: f64) -> u64 {
    histogram::quantile(&words, quantile)
}

/// Upper bound of every bucket of a histogram, in order.
#[pyfunction]
pub(crate) fn histogram_bounds() -> Vec<u64> {
    (0..histogram::BUCKETS).map(histogram::upper_bound).collect()
}

/// What one file says: its blocks, its size, how much of it is used, and why it was skipped (empty: it was not).
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "converted from Python")]
pub(crate) fn scan_counters(py: Python<'_>, path: PathBuf) -> (Vec<Snapshot>, u64, u64, &'static str) {
    py.detach(|| match counters::CounterFile::open(&path) {
        Ok(reader) => {
            let scan = reader.scan();
            (plain(scan.blocks), scan.bytes, scan.used_bytes, "")
        }
        Err(error) => (Vec::new(), 0, 0, counters::SkipReason::from(&error).word()),
    })
}

type PlainValue = (usize, Vec<(String, String)>, String, u64, String, Vec<String>, Vec<(String, usize)>);

/// A compiled catalogue of metrics, which turns counters files into the text that Prometheus reads.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Exposition {
    inner: exposition::Exposition,
}

#[pymethods]
impl Exposition {
    /// `families`: name, header of the text format, header of OpenMetrics. `blocks`: kind, shown labels, values; a value
    /// is its family's position, fixed labels, kind, words per unit, label that shows it, states, buckets.
    #[new]
    fn new(
        py: Python<'_>,
        families: Vec<(String, String, String)>,
        blocks: Vec<(String, Vec<String>, Vec<PlainValue>)>,
    ) -> PyResult<Self> {
        let families =
            families.into_iter().map(|(name, text, open)| exposition::Family { name, headers: [text, open] });
        let mut plans = Vec::new();
        for (kind, labels, values) in blocks {
            let values = values.into_iter().map(|value| value_of(py, value)).collect::<PyResult<_>>()?;
            plans.push(exposition::BlockPlan { kind, labels, values });
        }
        Ok(Self { inner: exposition::Exposition::new(families.collect(), plans) })
    }

    /// The text of all files together, and of each its size, how much is used, and why it was skipped.
    fn render<'py>(&self, py: Python<'py>, paths: Vec<PathBuf>, openmetrics: bool) -> PyResult<Rendered<'py>> {
        let format = if openmetrics { exposition::Format::OpenMetrics } else { exposition::Format::Text };
        let (text, files) = py.detach(|| {
            let mut blocks = Vec::new();
            let mut files = Vec::new();
            for path in &paths {
                match counters::CounterFile::open(path) {
                    Ok(reader) => {
                        let scan = reader.scan();
                        blocks.extend(scan.blocks);
                        files.push((scan.bytes, scan.used_bytes, ""));
                    }
                    Err(error) => files.push((0, 0, counters::SkipReason::from(&error).word())),
                }
            }
            (self.inner.render(blocks, format), files)
        });
        let whole = PyBytes::new_with(py, text.len(), |mut room| {
            for piece in text.pieces() {
                let (place, rest) = room.split_at_mut(piece.len());
                place.copy_from_slice(piece);
                room = rest;
            }
            Ok(())
        })?;
        Ok((whole, files))
    }
}

type Rendered<'py> = (Bound<'py, PyBytes>, Vec<(u64, u64, &'static str)>);

fn value_of(py: Python<'_>, value: PlainValue) -> PyResult<exposition::Value> {
    let (family, fixed, kind, per_unit, label, states, buckets) = value;
    let shape = match kind.as_str() {
        "counter" | "gauge" => exposition::Shape::Number(per_unit),
        "info" => exposition::Shape::Info(label),
        "state" => exposition::Shape::States(label, states),
        "histogram" => exposition::Shape::Histogram(per_unit, buckets),
        other => return Err(raise_plain(py, "UsageError", &format!("{other:?} is no kind of metric"))),
    };
    Ok(exposition::Value { family, fixed, shape })
}
