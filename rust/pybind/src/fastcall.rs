//! Fastcalls: the host's service, and a guest's slots.

use std::borrow::Cow;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vbnet_core::fastcall::{self as core, Echo, Refusal, SlotId, SlotParams, SlotParts};
use vbnet_core::guest::fastcall::FastCaller;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::fastcall::{Caller, DATA_BYTES};

use crate::counters::CounterFile;
use crate::errors::{OrRaise, raise_plain};
use crate::memory::{Ram, duplicate};

fn bell(py: Python<'_>, fd: RawFd) -> PyResult<Doorbell> {
    Ok(Doorbell::from_fd(duplicate(py, fd)?))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handler without Python in it; other native parts make them.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct FastHandler {
    pub(crate) inner: Arc<dyn core::FastHandler>,
}

#[pymethods]
impl FastHandler {
    /// Gives back what it is sent.
    #[staticmethod]
    fn echo() -> Self {
        Self { inner: Arc::new(Echo) }
    }

    /// Runs a function here and now: an errno number or 0, and the data or a sentence.
    fn __call__<'py>(&self, py: Python<'py>, function: u32, data: &[u8]) -> PyResult<(u32, Bound<'py, PyBytes>)> {
        if data.len() > DATA_BYTES {
            let message = format!("a fastcall carries at most {DATA_BYTES} bytes; got {}", data.len());
            return Err(raise_plain(py, "UsageError", &message));
        }
        let mut answer = [0; DATA_BYTES];
        Ok(match self.inner.call(function, data, &mut answer) {
            Ok(length) => (0, PyBytes::new(py, &answer[..length.min(DATA_BYTES)])),
            Err(refusal) => (refusal.code(), PyBytes::new(py, refusal.text.as_bytes())),
        })
    }
}

/// A handler in Python: called with function and data, it answers an errno number or 0, and the data or a sentence.
struct PythonHandler(Py<PyAny>);

impl core::FastHandler for PythonHandler {
    fn call(&self, function: u32, data: &[u8], answer: &mut [u8]) -> Result<usize, Refusal> {
        let failed = || Refusal::from_code(0, "the device failed to answer");
        let outcome = Python::try_attach(|py| {
            let found = self.0.call1(py, (function, PyBytes::new(py, data)))?;
            found.extract::<(u32, Cow<'_, [u8]>)>(py).map(|(code, data)| (code, data.into_owned()))
        });
        let Some(Ok((code, data))) = outcome else { return Err(failed()) };
        if code != 0 {
            return Err(Refusal::from_code(code, String::from_utf8_lossy(&data).into_owned()));
        }
        answer.get_mut(..data.len()).ok_or_else(failed)?.copy_from_slice(&data);
        Ok(data.len())
    }
}

/// Answers guests' fastcalls, on a thread of its own.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct FastcallService {
    pub(crate) inner: Arc<core::Service>,
}

#[pymethods]
impl FastcallService {
    #[new]
    fn new(py: Python<'_>, counters: &CounterFile) -> PyResult<Self> {
        let counters = counters.inner.clone();
        Ok(Self { inner: Arc::new(py.detach(|| core::Service::start(counters)).or_raise(py)?) })
    }

    /// Serves a slot of a session; its number.
    #[pyo3(signature = (
        session, ram, offset, length, bells, *, labels = "", is_enabled = true, spin_us = 50, trap_ns = 0
    ))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn attach(
        &self,
        py: Python<'_>,
        session: u64,
        ram: &Ram,
        offset: u32,
        length: u32,
        bells: (RawFd, RawFd),
        labels: &str,
        is_enabled: bool,
        spin_us: u32,
        trap_ns: u32,
    ) -> PyResult<u64> {
        let (kick, call) = (bell(py, bells.0)?, bell(py, bells.1)?);
        let parts = SlotParts { ram: ram.region(py)?, offset, length, kick, call };
        let params = SlotParams { is_enabled, spin_us, trap_ns };
        Ok(py.detach(|| self.inner.attach(session, parts, params, labels)).or_raise(py)?.0)
    }

    fn detach(&self, py: Python<'_>, slot: u64) -> PyResult<()> {
        py.detach(|| self.inner.detach(SlotId(slot))).or_raise(py)
    }

    #[pyo3(signature = (slot, *, is_enabled, spin_us, trap_ns))]
    fn set(&self, py: Python<'_>, slot: u64, is_enabled: bool, spin_us: u32, trap_ns: u32) -> PyResult<()> {
        let params = SlotParams { is_enabled, spin_us, trap_ns };
        py.detach(|| self.inner.set(SlotId(slot), params)).or_raise(py)
    }

    /// Has a `FastHandler`, or anything callable, answer for one open device.
    fn register(&self, py: Python<'_>, session: u64, device: u32, handler: &Bound<'_, PyAny>) -> PyResult<()> {
        let handler: Arc<dyn core::FastHandler> = match handler.cast::<FastHandler>() {
            Ok(native) => native.get().inner.clone(),
            Err(_) if handler.is_callable() => Arc::new(PythonHandler(handler.clone().unbind())),
            Err(_) => return Err(raise_plain(py, "UsageError", "a fast handler can be called")),
        };
        py.detach(|| self.inner.register(session, device, handler)).or_raise(py)
    }

    /// Takes a handler away. `False`: there was none.
    fn unregister(&self, py: Python<'_>, session: u64, device: u32) -> PyResult<bool> {
        py.detach(|| self.inner.unregister(session, device)).or_raise(py)
    }

    fn fault_fd(&self) -> RawFd {
        self.inner.fault_fd()
    }

    /// Slots that are not served any more since the last call: number, rule, sentence.
    fn take_faults(&self) -> Vec<(u64, &'static str, String)> {
        self.inner.take_faults().into_iter().map(|event| (event.slot.0, event.reason, event.text)).collect()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

impl Drop for FastcallService {
    /// The thread may be waiting for the interpreter, which whoever drops us holds.
    fn drop(&mut self) {
        if Python::try_attach(|py| py.detach(|| self.inner.close())).is_none() {
            self.inner.close();
        }
    }
}

enum SlotState {
    Formatted(Caller),
    Connected(Arc<FastCaller>),
    Closed,
}

/// A guest's slot: one call at a time.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct FastSlot {
    state: Mutex<SlotState>,
}

#[pymethods]
impl FastSlot {
    /// Lays it out; show it to the host, then connect.
    #[new]
    fn new(py: Python<'_>, ram: &Ram, offset: u32) -> PyResult<Self> {
        let caller = FastCaller::format(&ram.region(py)?, offset).or_raise(py)?;
        Ok(Self { state: Mutex::new(SlotState::Formatted(caller)) })
    }

    #[pyo3(signature = (kick_fd, call_fd, spin_us = 50))]
    fn connect(&self, py: Python<'_>, kick_fd: RawFd, call_fd: RawFd, spin_us: u32) -> PyResult<()> {
        let (kick, call) = (bell(py, kick_fd)?, bell(py, call_fd)?);
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, SlotState::Closed) {
            SlotState::Formatted(caller) => {
                *state = SlotState::Connected(Arc::new(FastCaller::new(caller, kick, call, spin_us)));
                Ok(())
            }
            other => {
                *state = other;
                Err(raise_plain(py, "UsageError", "this slot was connected before"))
            }
        }
    }

    /// Calls and waits: the status and the data. `None`: no answer in time.
    #[pyo3(signature = (device, function, data, timeout = 5.0))]
    fn call<'py>(
        &self,
        py: Python<'py>,
        device: u32,
        function: u32,
        data: &[u8],
        timeout: f64,
    ) -> PyResult<Option<(u32, Bound<'py, PyBytes>)>> {
        let deadline = Duration::try_from_secs_f64(timeout)
            .map_err(|error| raise_plain(py, "UsageError", &format!("a timeout of {timeout} s: {error}")))?;
        let caller = self.caller(py)?;
        let mut answer = [0; DATA_BYTES];
        let found = py.detach(|| caller.call(device, function, data, &mut answer, deadline)).or_raise(py)?;
        Ok(found.map(|found| (found.status, PyBytes::new(py, &answer[..found.length as usize]))))
    }

    /// The host is gone: whoever waits gets `PeerGone`.
    fn abandon(&self) {
        if let SlotState::Connected(caller) = &*lock(&self.state) {
            caller.abandon();
        }
    }

    /// Lets go of the memory; raises `BusyError` while another thread is calling.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let mut state = lock(&self.state);
        if let SlotState::Connected(caller) = &*state
            && Arc::strong_count(caller) > 1
        {
            return Err(raise_plain(py, "BusyError", "another thread is calling through this slot"));
        }
        *state = SlotState::Closed;
        Ok(())
    }
}

impl FastSlot {
    pub(crate) fn caller(&self, py: Python<'_>) -> PyResult<Arc<FastCaller>> {
        match &*lock(&self.state) {
            SlotState::Connected(caller) => Ok(caller.clone()),
            SlotState::Formatted(_) => Err(raise_plain(py, "UsageError", "connect this slot first")),
            SlotState::Closed => Err(raise_plain(py, "ClosedError", "this fastcall slot is closed")),
        }
    }
}
