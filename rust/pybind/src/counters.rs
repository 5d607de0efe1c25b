//! Counters in shared memory: written by their owner, read by anybody.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use vbnet_core::shm::{counters, histogram};

use crate::errors::{OrRaise, raise_plain};

type Snapshot = (String, String, u64, Vec<u64>);

fn snapshots(reader: &counters::CounterReader) -> Vec<Snapshot> {
    reader.blocks().into_iter().map(|block| (block.kind, block.labels, block.generation, block.values)).collect()
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
        snapshots(&self.inner.reader())
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
    py.detach(|| counters::CounterFile::open(&path).map(|reader| snapshots(&reader))).or_raise(py)
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
