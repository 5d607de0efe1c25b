//! Doorbells of guests, rung by a thread that a guest may block for a moment.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use vbnet_core::worker::bellman as core;

use crate::errors::{OrRaise, raise_plain};

/// Rings doorbells for an event loop.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Bellman {
    inner: Mutex<Option<Arc<core::Bellman>>>,
}

impl Bellman {
    fn bellman(&self, py: Python<'_>) -> PyResult<Arc<core::Bellman>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clone().ok_or_else(|| raise_plain(py, "ClosedError", "this bellman is closed"))
    }
}

#[pymethods]
impl Bellman {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let inner = py.detach(core::Bellman::start).or_raise(py)?;
        Ok(Self { inner: Mutex::new(Some(Arc::new(inner))) })
    }

    /// Has a doorbell rung soon. `False`: too many wait; this ring is lost.
    fn ring(&self, py: Python<'_>, fd: RawFd, key: u64, owner: u64) -> PyResult<bool> {
        if fd < 0 {
            return Err(raise_plain(py, "UsageError", &format!("a file descriptor is not negative; got {fd}")));
        }
        // SAFETY: borrowed for the length of this call only; a number that is no descriptor makes the copy fail cleanly.
        let bell = unsafe { BorrowedFd::borrow_raw(fd) };
        self.bellman(py)?.ring(bell, key, owner).or_raise(py)
    }

    /// Owner and key of each doorbell that blocked.
    fn take_blocked(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        Ok(self.bellman(py)?.take_blocked().iter().map(|blocked| (blocked.owner, blocked.key)).collect())
    }

    fn fault_fd(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.bellman(py)?.fault_fd())
    }

    fn forget(&self, py: Python<'_>, key: u64) -> PyResult<()> {
        self.bellman(py)?.forget(key);
        Ok(())
    }

    fn forget_owner(&self, py: Python<'_>, owner: u64) -> PyResult<()> {
        self.bellman(py)?.forget_owner(owner);
        Ok(())
    }

    fn close(&self, py: Python<'_>) {
        let bellman = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(move || drop(bellman));
    }
}
