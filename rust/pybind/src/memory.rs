//! Guest RAM and views of it.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use vbnet_core::shm::region;

use crate::errors::{OrRaise, raise_plain};

/// Copies a descriptor somebody passed as a number, so that each side closes its own.
pub(crate) fn duplicate(py: Python<'_>, fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(raise_plain(py, "UsageError", &format!("a file descriptor is not negative; got {fd}")));
    }
    // SAFETY: borrowed for the length of this call only; a number that is no descriptor makes the copy fail cleanly.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(borrowed.try_clone_to_owned()?)
}

/// A guest's RAM: one sealed memfd, mapped.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Ram {
    inner: Mutex<Option<Arc<region::Ram>>>,
}

impl Ram {
    fn wrap(ram: Arc<region::Ram>) -> Self {
        Self { inner: Mutex::new(Some(ram)) }
    }

    /// The region, unless it was closed.
    pub(crate) fn region(&self, py: Python<'_>) -> PyResult<Arc<region::Ram>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clone().ok_or_else(|| raise_plain(py, "ClosedError", "this guest RAM is closed"))
    }
}

#[pymethods]
impl Ram {
    #[staticmethod]
    #[pyo3(signature = (size, name = "vbnet-ram"))]
    fn create(py: Python<'_>, size: u64, name: &str) -> PyResult<Self> {
        Ok(Self::wrap(py.detach(|| region::Ram::create(name, size)).or_raise(py)?))
    }

    #[staticmethod]
    #[pyo3(signature = (fd, quota = 4_294_967_296))]
    fn open(py: Python<'_>, fd: RawFd, quota: u64) -> PyResult<Self> {
        let file = duplicate(py, fd)?;
        Ok(Self::wrap(py.detach(|| region::Ram::open(file, quota)).or_raise(py)?))
    }

    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.region(py)?.size())
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.region(py)?.as_fd().as_raw_fd())
    }

    fn view(&self, py: Python<'_>, offset: u32, length: usize) -> PyResult<View> {
        let ram = self.region(py)?;
        ram.at(offset, length).or_raise(py)?;
        Ok(View { ram, offset, length })
    }

    fn close(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    #[getter]
    fn closed(&self) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// A window into guest RAM: give it to `memoryview`. Keeps the mapping alive.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct View {
    ram: Arc<region::Ram>,
    offset: u32,
    length: usize,
}

#[pymethods]
impl View {
    fn __len__(&self) -> usize {
        self.length
    }

    /// # Safety
    ///
    /// Called by the interpreter with a buffer structure of its own.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let place = slf.get();
        let start = place.ram.at(place.offset, place.length).or_raise(slf.py())?;
        // SAFETY: passed on from the interpreter; the view owns the mapping the bytes are in.
        unsafe { fill_buffer(slf.clone().into_any(), view, flags, start.as_ptr(), place_length(place.length)?, false) }
    }
}

pub(crate) fn place_length(length: usize) -> PyResult<isize> {
    isize::try_from(length).map_err(|_| PyBufferError::new_err(format!("{length} bytes are too many for one view")))
}

/// Describes `length` bytes at `start` to the interpreter.
///
/// # Safety
///
/// `view` comes from the interpreter; the bytes live as long as `owner`.
pub(crate) unsafe fn fill_buffer(
    owner: Bound<'_, PyAny>,
    view: *mut ffi::Py_buffer,
    flags: c_int,
    start: *mut u8,
    length: isize,
    readonly: bool,
) -> PyResult<()> {
    // SAFETY: as promised by the caller; on failure the interpreter has set its error.
    let answer = unsafe {
        ffi::PyBuffer_FillInfo(view, owner.as_ptr(), start.cast::<c_void>(), length, c_int::from(readonly), flags)
    };
    if answer == 0 { Ok(()) } else { Err(PyErr::fetch(owner.py())) }
}

/// Every word of every shared structure: `(structure, field, byte offset, byte size)`.
#[pyfunction]
pub(crate) fn wire_table() -> Vec<(&'static str, &'static str, usize, usize)> {
    vbnet_core::shm::layout::wire_table()
}
