//! Timers: the host's thread that keeps them, and the driver half that a guest holds.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vbnet_core::guest::timer as guest;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::signals::{Caller, LineId};
use vbnet_core::timer as core;

use crate::counters::CounterFile;
use crate::errors::{OrRaise, raise_plain};
use crate::memory::{Ram, duplicate};
use crate::signals::Signals;

/// Longest stretch outside the interpreter without asking it for signals.
const LOOK_NS: u64 = 100_000_000;

/// Keeps the timers of all guests of a host.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Timekeeper {
    inner: Mutex<Option<Arc<core::Timekeeper>>>,
}

impl Timekeeper {
    fn keeper(&self, py: Python<'_>) -> PyResult<Arc<core::Timekeeper>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clone().ok_or_else(|| raise_plain(py, "ClosedError", "this timekeeper is closed"))
    }
}

#[pymethods]
impl Timekeeper {
    #[new]
    fn new(py: Python<'_>, counters: &CounterFile) -> PyResult<Self> {
        let counters = counters.inner.clone();
        let inner = py.detach(|| core::Timekeeper::start(counters)).or_raise(py)?;
        Ok(Self { inner: Mutex::new(Some(Arc::new(inner))) })
    }

    /// Keeps the timers of a page; gives the number it is known by.
    #[pyo3(signature = (ram, page, kick, labels, *, slots_max, lead_ns))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn attach(
        &self,
        py: Python<'_>,
        ram: &Ram,
        page: (u32, u32),
        kick: RawFd,
        labels: &str,
        slots_max: u32,
        lead_ns: u64,
    ) -> PyResult<u64> {
        let kick = Doorbell::from_fd(duplicate(py, kick)?);
        let page = core::TimerPage { ram: ram.region(py)?, place: page, kick, slots_max, lead_max_ns: lead_ns };
        let keeper = self.keeper(py)?;
        py.detach(|| keeper.attach(page, labels)).or_raise(py)
    }

    /// Calls the guest for what expires at a priority: by an eventfd, or by a line of `signals` when they are given.
    #[pyo3(signature = (id, priority, ram, signal, call, signals = None))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's arguments")]
    fn connect(
        &self,
        py: Python<'_>,
        id: u64,
        priority: u8,
        ram: &Ram,
        signal: (u32, u32),
        call: u64,
        signals: Option<&Signals>,
    ) -> PyResult<()> {
        let (keeper, ram) = (self.keeper(py)?, ram.region(py)?);
        let caller = match signals {
            Some(signals) => Caller::Line(signals.inner.line(LineId(call)).or_raise(py)?),
            None => Doorbell::from_fd(duplicate(py, RawFd::try_from(call)?)?).into(),
        };
        py.detach(|| keeper.connect(id, priority, &ram, signal, caller)).or_raise(py)
    }

    fn set_lead(&self, py: Python<'_>, id: u64, lead_ns: u64) -> PyResult<()> {
        let keeper = self.keeper(py)?;
        py.detach(|| keeper.set_lead(id, lead_ns)).or_raise(py)
    }

    /// Lets go of a page; when it returns, its memory is used no more.
    fn detach(&self, py: Python<'_>, id: u64) -> PyResult<()> {
        let keeper = self.keeper(py)?;
        py.detach(|| keeper.detach(id)).or_raise(py)
    }

    /// Pages given up since the last call: number, broken rule, what happened.
    fn take_faults(&self, py: Python<'_>) -> PyResult<Vec<(u64, &'static str, String)>> {
        let faults = self.keeper(py)?.take_faults();
        Ok(faults.into_iter().map(|(id, fault)| (id, fault.reason(), fault.to_string())).collect())
    }

    /// Readable while `take_faults` has something; do not read or close it.
    fn fault_fd(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.keeper(py)?.fault_fd())
    }

    fn close(&self, py: Python<'_>) {
        let keeper = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(move || drop(keeper));
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, as deadlines have them.
#[pyfunction]
pub(crate) fn timer_now_ns() -> u64 {
    core::now_ns()
}

/// Where the parts of a timer device lie in guest RAM.
#[pyclass(frozen, get_all, module = "vbnet._native")]
pub(crate) struct TimersLayout {
    slots: u32,
    page_offset: u32,
    page_bytes: u32,
    signals_offset: u32,
    signal_bytes: u32,
    end: u32,
}

#[pymethods]
impl TimersLayout {
    #[new]
    #[pyo3(signature = (slots = 1024, start = 0))]
    fn new(py: Python<'_>, slots: u32, start: u32) -> PyResult<Self> {
        Ok(Self::from(guest::TimersLayout::plan(start, slots).or_raise(py)?))
    }
}

impl From<guest::TimersLayout> for TimersLayout {
    fn from(layout: guest::TimersLayout) -> Self {
        let guest::TimersLayout { slots, page_offset, page_bytes, signals_offset, signal_bytes, end } = layout;
        Self { slots, page_offset, page_bytes, signals_offset, signal_bytes, end }
    }
}

/// One expiry of one timer.
#[pyclass(frozen, get_all, module = "vbnet._native")]
pub(crate) struct Tick {
    id: u64,
    number: u64,
    deadline_ns: u64,
    late_ns: u64,
    missed: u64,
}

#[pymethods]
impl Tick {
    fn __repr__(&self) -> String {
        let Self { number, deadline_ns, late_ns, missed, .. } = self;
        format!("<tick {number}, due at {deadline_ns} ns, {late_ns} ns late, {missed} missed>")
    }
}

impl From<guest::Tick> for Tick {
    fn from(tick: guest::Tick) -> Self {
        let guest::Tick { id, number, deadline_ns, late_ns, missed } = tick;
        Self { id: id.0, number, deadline_ns, late_ns, missed }
    }
}

/// The driver half of a timer device.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Timers {
    pub(crate) inner: Arc<guest::Timers>,
}

fn arming(deadline_ns: u64, period_ns: u64, priority: u8, for_loop: bool) -> guest::Arming {
    let side = if for_loop { guest::Side::Loop } else { guest::Side::Thread };
    guest::Arming { deadline_ns, period_ns, priority, side }
}

#[pymethods]
impl Timers {
    #[new]
    #[pyo3(signature = (ram, slots = 1024, start = 0))]
    fn new(py: Python<'_>, ram: &Ram, slots: u32, start: u32) -> PyResult<Self> {
        let layout = guest::TimersLayout::plan(start, slots).or_raise(py)?;
        let inner = guest::Timers::open(&ram.region(py)?, layout).or_raise(py)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    #[getter]
    fn layout(&self) -> TimersLayout {
        self.inner.layout().into()
    }

    fn connect(&self, py: Python<'_>, kick: RawFd, lead_ns: u64) -> PyResult<()> {
        self.inner.connect(Doorbell::from_fd(duplicate(py, kick)?), lead_ns);
        Ok(())
    }

    /// Sets every timer anew, between one keeper and the next.
    fn hand_over(&self, py: Python<'_>) {
        py.detach(|| self.inner.hand_over());
    }

    fn connect_priority(&self, py: Python<'_>, priority: u8, call: RawFd) -> PyResult<()> {
        self.inner.connect_priority(priority, Doorbell::from_fd(duplicate(py, call)?)).or_raise(py)
    }

    #[pyo3(signature = (deadline_ns, period_ns = 0, priority = 0, for_loop = false))]
    fn arm(&self, py: Python<'_>, deadline_ns: u64, period_ns: u64, priority: u8, for_loop: bool) -> PyResult<u64> {
        Ok(self.inner.arm(arming(deadline_ns, period_ns, priority, for_loop)).or_raise(py)?.0)
    }

    #[pyo3(signature = (id, deadline_ns, period_ns = 0, priority = 0, for_loop = false))]
    fn rearm(
        &self,
        py: Python<'_>,
        id: u64,
        deadline_ns: u64,
        period_ns: u64,
        priority: u8,
        for_loop: bool,
    ) -> PyResult<u64> {
        let arming = arming(deadline_ns, period_ns, priority, for_loop);
        Ok(self.inner.rearm(guest::TimerId(id), arming).or_raise(py)?.0)
    }

    fn cancel(&self, id: u64) -> bool {
        self.inner.cancel(guest::TimerId(id))
    }

    /// The next tick of a timer that was not armed for the loop; None when the time is up or it was cancelled.
    #[pyo3(signature = (id, timeout = None))]
    fn wait(&self, py: Python<'_>, id: u64, timeout: Option<f64>) -> PyResult<Option<Tick>> {
        let until_ns = timeout.map(|seconds| until(py, seconds)).transpose()?;
        loop {
            let look_ns = core::now_ns().saturating_add(LOOK_NS);
            let this_ns = until_ns.map_or(look_ns, |until_ns| until_ns.min(look_ns));
            let answer = py.detach(|| self.inner.wait(guest::TimerId(id), Some(this_ns)));
            if let Some(tick) = answer.or_raise(py)? {
                return Ok(Some(tick.into()));
            }
            py.check_signals()?;
            if until_ns.is_some_and(|until_ns| until_ns <= this_ns) || !self.inner.is_known(guest::TimerId(id)) {
                return Ok(None);
            }
        }
    }

    /// Ticks for the loop, and when to ask again if the descriptor stays silent. An empty list: sleep until either.
    fn take_for_loop(&self, py: Python<'_>) -> PyResult<(Vec<Tick>, Option<u64>)> {
        match py.detach(|| self.inner.take_for_loop()).or_raise(py)? {
            guest::ForLoop::Ticks(ticks) => Ok((ticks.into_iter().map(Tick::from).collect(), None)),
            guest::ForLoop::Sleep(until_ns) => Ok((Vec::new(), until_ns)),
        }
    }

    /// Readable when `take_for_loop` should be called; open for as long as this object lives.
    fn fileno(&self) -> RawFd {
        self.inner.loop_fd()
    }

    fn totals<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let totals = self.inner.totals();
        let row = PyDict::new(py);
        row.set_item("arms", totals.arms)?;
        row.set_item("cancels", totals.cancels)?;
        row.set_item("kicks", totals.kicks)?;
        row.set_item("ticks", totals.ticks)?;
        row.set_item("missed", totals.missed)?;
        row.set_item("sleeps", totals.sleeps)?;
        row.set_item("lead_ns", totals.lead_ns)?;
        Ok(row)
    }

    /// The device or the host has ended: whoever waits gets `PeerGone`.
    fn abandon(&self) {
        self.inner.abandon();
    }

    /// Ends it on this side: whoever waits gets `ClosedError`.
    fn close(&self) {
        self.inner.close();
    }
}

fn until(py: Python<'_>, seconds: f64) -> PyResult<u64> {
    let wait = std::time::Duration::try_from_secs_f64(seconds).map_err(|_| {
        raise_plain(py, "UsageError", &format!("a timeout is 0 or more seconds, or None to wait; got {seconds}"))
    })?;
    Ok(core::now_ns().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
}
