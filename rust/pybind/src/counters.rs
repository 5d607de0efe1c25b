//! Counters in shared memory: written by their owner, read by anybody.

use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vbnet_core::exposition;
use vbnet_core::shm::{counters, histogram, labels};

use crate::errors::{OrRaise, raise_plain};
use crate::memory::{fill_buffer, place_length};

type Snapshot = (String, String, u64, Vec<u64>);

/// What a reader finds, and how full its file is.
fn read(reader: &counters::CounterReader) -> (Vec<Snapshot>, counters::Extent) {
    let mut blocks = Vec::new();
    let extent = reader.each(|block| {
        blocks.push((block.kind.into(), block.labels.into(), block.generation, block.values.into()));
    });
    (blocks, extent)
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
        read(&self.inner.reader()).0
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
    py.detach(|| counters::CounterFile::open(&path).map(|reader| read(&reader).0)).or_raise(py)
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
    labels::parse(text).into_iter().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
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
            let (blocks, extent) = read(&reader);
            (blocks, extent.bytes, extent.used_bytes, "")
        }
        Err(error) => (Vec::new(), 0, 0, counters::SkipReason::from(&error).word()),
    })
}

type PlainValue = (usize, Vec<(String, String)>, String, u64, String, Vec<String>, Vec<(String, usize)>);
/// Name, help, unit, kind, header of the text format, header of OpenMetrics.
type PlainFamily = (String, String, String, String, String, String);
/// Name, help, unit, kind, and of each sample its labels and value.
type PlainSamples = (String, String, String, String, Vec<(Vec<(String, String)>, f64)>);
/// Size, how much is used, and why it was skipped.
type ReadFile = (u64, u64, &'static str);

/// A compiled catalogue of metrics, which turns counters files into what Prometheus reads.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Exposition {
    inner: Arc<exposition::Exposition>,
}

#[pymethods]
impl Exposition {
    /// `families`: name, help, unit, kind, header of the text format, header of OpenMetrics. `blocks`: kind, shown labels,
    /// values; a value is its family's position, fixed labels, kind, words per unit, label that shows it, states, buckets.
    #[new]
    fn new(
        py: Python<'_>,
        families: Vec<PlainFamily>,
        blocks: Vec<(String, Vec<String>, Vec<PlainValue>)>,
    ) -> PyResult<Self> {
        let family = |(name, help, unit, kind, text, open): PlainFamily| {
            Ok(exposition::Family { name, help, unit, kind: kind_of(py, &kind)?, headers: [text, open] })
        };
        let families = families.into_iter().map(family).collect::<PyResult<_>>()?;
        let mut plans = Vec::new();
        for (kind, labels, values) in blocks {
            let values = values.into_iter().map(|value| value_of(py, value)).collect::<PyResult<_>>()?;
            plans.push(exposition::BlockPlan { kind, labels, values });
        }
        Ok(Self { inner: Arc::new(exposition::Exposition::new(families, plans)) })
    }

    /// What the counters files at `paths` count, in a form, `text`, `openmetrics` or `protobuf`: pieces to be sent one after
    /// the other, and of each file its size, how much is used, and why it was skipped.
    #[expect(clippy::needless_pass_by_value, reason = "converted from Python")]
    fn render(
        &self,
        py: Python<'_>,
        paths: Vec<PathBuf>,
        form: &str,
    ) -> PyResult<(Vec<ExpositionPiece>, Vec<ReadFile>)> {
        let format = match form {
            "text" => exposition::Format::Text,
            "openmetrics" => exposition::Format::OpenMetrics,
            "protobuf" => exposition::Format::Protobuf,
            other => return Err(raise_plain(py, "UsageError", &format!("{other:?} is no form of metrics"))),
        };
        let (pieces, files) = py.detach(|| {
            let mut gathering = self.inner.gather(format);
            let files = paths.iter().map(|path| gather(path, &mut gathering)).collect();
            (Arc::new(gathering.render()), files)
        });
        let said = (0..pieces.count()).filter(|&place| !pieces.get(place).is_empty());
        Ok((said.map(|place| ExpositionPiece { pieces: pieces.clone(), place }).collect(), files))
    }
}

/// Bytes of an exposition, read through `memoryview(piece)`: they lie where they were written.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct ExpositionPiece {
    pieces: Arc<exposition::Pieces>,
    place: usize,
}

#[pymethods]
impl ExpositionPiece {
    fn __len__(&self) -> usize {
        self.pieces.get(self.place).len()
    }

    /// # Safety
    ///
    /// Called by the interpreter with a buffer to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let bytes = slf.get().pieces.get(slf.get().place);
        let (start, length) = (bytes.as_ptr().cast_mut(), place_length(bytes.len())?);
        // SAFETY: passed on from the interpreter; the piece owns the bytes, and a view that cannot be written to owns it.
        unsafe { fill_buffer(slf.clone().into_any(), view, flags, start, length, true) }
    }
}

/// Families that no file counts, as protocol buffers.
#[pyfunction]
pub(crate) fn protobuf_families<'py>(py: Python<'py>, families: Vec<PlainSamples>) -> PyResult<Bound<'py, PyBytes>> {
    let plain = |(name, help, unit, kind, samples): PlainSamples| {
        let headers = Default::default();
        Ok((exposition::Family { name, help, unit, kind: kind_of(py, &kind)?, headers }, samples))
    };
    let families = families.into_iter().map(plain).collect::<PyResult<Vec<_>>>()?;
    Ok(PyBytes::new(py, &exposition::encode_plain(&families)))
}

fn gather(path: &Path, gathering: &mut exposition::Gathering) -> ReadFile {
    match counters::CounterFile::open(path) {
        Ok(reader) => {
            let extent = reader.each(|block| gathering.add(&block));
            (extent.bytes, extent.used_bytes, "")
        }
        Err(error) => (0, 0, counters::SkipReason::from(&error).word()),
    }
}

fn kind_of(py: Python<'_>, kind: &str) -> PyResult<exposition::Kind> {
    match kind {
        "counter" => Ok(exposition::Kind::Counter),
        "gauge" | "info" | "state" => Ok(exposition::Kind::Gauge),
        "histogram" => Ok(exposition::Kind::Histogram),
        other => Err(no_kind(py, other)),
    }
}

fn no_kind(py: Python<'_>, kind: &str) -> PyErr {
    raise_plain(py, "UsageError", &format!("{kind:?} is no kind of metric"))
}

fn value_of(py: Python<'_>, value: PlainValue) -> PyResult<exposition::Value> {
    let (family, fixed, kind, per_unit, label, states, buckets) = value;
    let shape = match kind.as_str() {
        "counter" | "gauge" => exposition::Shape::Number(per_unit),
        "info" => exposition::Shape::Info(label),
        "state" => exposition::Shape::States(label, states),
        "histogram" => exposition::Shape::Histogram(exposition::Buckets::new(per_unit, buckets)),
        other => return Err(no_kind(py, other)),
    };
    Ok(exposition::Value { family, fixed, shape })
}
