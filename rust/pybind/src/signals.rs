//! Signals of a host node, and the guest's half of an interrupt controller.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vbnet_core::error::Error;
use vbnet_core::guest::intc as guest;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::intc::{LevelMemory, PRIORITIES};
use vbnet_core::signals::{self as core, LevelPart, LineCounter, LineId, Route, SignalEvent, WakeHook};

use crate::counters::CounterFile;
use crate::errors::{OrRaise, raise_plain};
use crate::fastcall::FastHandler;
use crate::memory::{Ram, duplicate};
use crate::sched::SchedCoordinator;
use crate::turnstile::{Inside, Turnstile};

/// A level as Python names it: offset and length in guest RAM, and the doorbell that wakes whoever serves it.
type LevelPlace = (u32, u32, RawFd);

/// Every signal of one host node.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Signals {
    pub(crate) inner: Arc<core::SignalTable>,
}

#[pymethods]
impl Signals {
    #[new]
    fn new(py: Python<'_>, counters: &CounterFile) -> PyResult<Self> {
        let inner = core::SignalTable::new(counters.inner.clone()).or_raise(py)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    #[pyo3(signature = (guest, device, name, priority = 0))]
    fn create(&self, py: Python<'_>, guest: &str, device: &str, name: &str, priority: u32) -> PyResult<u64> {
        Ok(py.detach(|| self.inner.create(guest, device, name, priority)).or_raise(py)?.id().0)
    }

    fn destroy(&self, py: Python<'_>, line: u64) -> PyResult<()> {
        py.detach(|| self.inner.destroy(LineId(line))).or_raise(py)
    }

    fn route_to_fd(&self, py: Python<'_>, line: u64, fd: RawFd) -> PyResult<()> {
        let bell = Doorbell::from_fd(duplicate(py, fd)?);
        py.detach(|| self.inner.route_to_bell(LineId(line), bell)).or_raise(py)
    }

    fn route_to_vector(&self, py: Python<'_>, line: u64, controller: u64, vcpu: u32, vector: u32) -> PyResult<()> {
        py.detach(|| self.inner.route_to_vector(LineId(line), controller, vcpu, vector)).or_raise(py)
    }

    fn route_to_apic(&self, py: Python<'_>, line: u64, apics: &Apics, vcpu: usize, vector: u32) -> PyResult<()> {
        let apic = apics.inner.vcpu(vcpu);
        let apic = apic.ok_or_else(|| raise_plain(py, "NotFoundError", &format!("there is no vCPU {vcpu}")))?;
        py.detach(|| self.inner.route_to_apic(LineId(line), apic, vector)).or_raise(py)
    }

    /// Emulates controllers of a guest, one vCPU for each doorbell.
    fn apics(&self, py: Python<'_>, guest: &str, call_fds: Vec<RawFd>) -> PyResult<Apics> {
        let bell = |fd| duplicate(py, fd).map(Doorbell::from_fd);
        let bells = call_fds.into_iter().map(bell).collect::<PyResult<Vec<_>>>()?;
        Ok(Apics { inner: Arc::new(self.inner.apics(guest, bells)) })
    }

    fn route_nowhere(&self, py: Python<'_>, line: u64) -> PyResult<()> {
        py.detach(|| self.inner.route_nowhere(LineId(line))).or_raise(py)
    }

    fn set_priority(&self, py: Python<'_>, line: u64, priority: u32) -> PyResult<()> {
        py.detach(|| self.inner.set_priority(LineId(line), priority)).or_raise(py)
    }

    fn set_masked(&self, py: Python<'_>, line: u64, is_masked: bool) -> PyResult<()> {
        py.detach(|| self.inner.set_masked(LineId(line), is_masked)).or_raise(py)
    }

    fn raise_soon(&self, py: Python<'_>, line: u64) -> PyResult<()> {
        py.detach(|| self.inner.raise_soon(LineId(line))).or_raise(py)
    }

    fn list<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let lines = py.detach(|| self.inner.list()).or_raise(py)?;
        lines.into_iter().map(|line| describe(py, line)).collect()
    }

    /// Takes a controller into use: for each vCPU the places of its levels, in the order of priorities.
    fn controller_attach(
        &self,
        py: Python<'_>,
        guest: &str,
        ram: &Ram,
        vcpus: Vec<[LevelPlace; PRIORITIES as usize]>,
    ) -> PyResult<u64> {
        let ram = ram.region(py)?;
        let part = |(offset, length, fd): LevelPlace| -> PyResult<LevelPart> {
            let memory = LevelMemory::attach(&ram, offset, length).or_raise(py)?;
            Ok(LevelPart { memory, bell: Doorbell::from_fd(duplicate(py, fd)?) })
        };
        let mut parts = Vec::with_capacity(vcpus.len());
        for levels in vcpus {
            let found = levels.into_iter().map(part).collect::<PyResult<Vec<_>>>()?;
            let found = <[LevelPart; PRIORITIES as usize]>::try_from(found)
                .map_err(|_| raise_plain(py, "UsageError", "a vCPU has eight levels"))?;
            parts.push(found);
        }
        py.detach(|| self.inner.controller_attach(guest, parts)).or_raise(py)
    }

    /// Has a guest's urgent signals raise the threads that serve them; no coordinator: no more.
    #[pyo3(signature = (controller, coordinator = None, member = 0))]
    fn controller_boost(
        &self,
        py: Python<'_>,
        controller: u64,
        coordinator: Option<&SchedCoordinator>,
        member: u64,
    ) -> PyResult<()> {
        py.detach(|| {
            let hook = coordinator.map(|found| found.inner.booster(member)).transpose()?;
            self.inner.controller(controller)?.set_hook(hook.map(|hook| hook as Arc<dyn WakeHook>));
            Ok::<(), Error>(())
        })
        .or_raise(py)
    }

    fn controller_detach(&self, py: Python<'_>, controller: u64) -> PyResult<()> {
        py.detach(|| self.inner.controller_detach(controller)).or_raise(py)
    }

    fn controller_status<'py>(&self, py: Python<'py>, controller: u64) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let status = py.detach(|| self.inner.controller(controller).map(|found| found.status())).or_raise(py)?;
        status
            .into_iter()
            .map(|level| {
                let row = PyDict::new(py);
                row.set_item("vcpu", level.vcpu)?;
                row.set_item("priority", level.priority)?;
                row.set_item("pending", level.now.pending)?;
                row.set_item("masked_pending", level.now.masked_pending)?;
                row.set_item("in_service", level.now.in_service)?;
                row.set_item("since_ns", level.now.since_ns)?;
                row.set_item("is_held", level.now.is_held)?;
                row.set_item("is_asleep", level.now.is_asleep)?;
                row.set_item("served", level.now.served)?;
                row.set_item("spurious", level.now.spurious)?;
                Ok(row)
            })
            .collect()
    }

    fn source_attach(&self, py: Python<'_>, line: u64, fd: RawFd) -> PyResult<u64> {
        let file = duplicate(py, fd)?;
        py.detach(|| self.inner.source_attach(LineId(line), file)).or_raise(py)
    }

    fn source_detach(&self, py: Python<'_>, source: u64) -> PyResult<()> {
        py.detach(|| self.inner.source_detach(source)).or_raise(py)
    }

    fn outbox_attach(
        &self,
        py: Python<'_>,
        guest: &str,
        ram: &Ram,
        offset: u32,
        length: u32,
        kick_fd: RawFd,
    ) -> PyResult<u64> {
        let memory = LevelMemory::attach(&ram.region(py)?, offset, length).or_raise(py)?;
        let kick = Doorbell::from_fd(duplicate(py, kick_fd)?);
        py.detach(|| self.inner.outbox_attach(guest, memory, kick)).or_raise(py)
    }

    fn outbox_detach(&self, py: Python<'_>, outbox: u64) -> PyResult<()> {
        py.detach(|| self.inner.outbox_detach(outbox)).or_raise(py)
    }

    fn grant(&self, py: Python<'_>, outbox: u64, number: u32, line: u64) -> PyResult<()> {
        py.detach(|| self.inner.grant(outbox, number, LineId(line))).or_raise(py)
    }

    fn revoke(&self, py: Python<'_>, outbox: u64, number: u32) -> PyResult<()> {
        py.detach(|| self.inner.revoke(outbox, number)).or_raise(py)
    }

    fn take_events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.inner
            .take_events()
            .into_iter()
            .map(|event| {
                let row = PyDict::new(py);
                match event {
                    SignalEvent::Blocked { line, guest, fault } => {
                        row.set_item("event", "blocked")?;
                        row.set_item("line", line.0)?;
                        row.set_item("guest", guest)?;
                        row.set_item("rule", fault.reason())?;
                        row.set_item("text", fault.to_string())?;
                    }
                    SignalEvent::SourceGone { source, line } => {
                        row.set_item("event", "source_gone")?;
                        row.set_item("line", line.0)?;
                        row.set_item("source", source)?;
                    }
                }
                Ok(row)
            })
            .collect()
    }

    fn events_fd(&self) -> RawFd {
        self.inner.events_fd()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

fn describe(py: Python<'_>, line: core::LineInfo) -> PyResult<Bound<'_, PyDict>> {
    let row = PyDict::new(py);
    row.set_item("id", line.id.0)?;
    row.set_item("name", line.name)?;
    row.set_item("guest", line.guest)?;
    row.set_item("device", line.device)?;
    row.set_item("priority", line.priority)?;
    let (route, to, vcpu, vector) = match line.route {
        Route::Nowhere => ("nowhere", None, None, None),
        Route::Bell => ("eventfd", None, None, None),
        Route::Apic { vector } => ("apic", None, None, Some(vector)),
        Route::Vector { guest, vcpu, vector } => ("vector", Some(guest), Some(vcpu), Some(vector)),
    };
    row.set_item("route", route)?;
    row.set_item("to", to)?;
    row.set_item("vcpu", vcpu)?;
    row.set_item("vector", vector)?;
    row.set_item("is_masked", line.is_masked)?;
    row.set_item("is_latched", line.is_latched)?;
    row.set_item("is_blocked", line.is_blocked)?;
    for (name, count) in LineCounter::NAMES.iter().zip(line.counts) {
        row.set_item(name, count)?;
    }
    Ok(row)
}

/// The emulated controllers of one guest's vCPUs, whose registers are on the host.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Apics {
    pub(crate) inner: Arc<core::Apics>,
}

#[pymethods]
impl Apics {
    /// Has urgent signals raise the threads that serve them; no coordinator: no more.
    #[pyo3(signature = (coordinator = None, member = 0))]
    fn boost(&self, py: Python<'_>, coordinator: Option<&SchedCoordinator>, member: u64) -> PyResult<()> {
        py.detach(|| {
            let hook = coordinator.map(|found| found.inner.booster(member)).transpose()?;
            self.inner.set_hook(hook.map(|hook| hook as Arc<dyn WakeHook>).as_ref());
            Ok::<(), Error>(())
        })
        .or_raise(py)
    }

    /// What answers acknowledge and end.
    fn handler(&self) -> FastHandler {
        FastHandler { inner: self.inner.clone() }
    }
}

/// One priority of one vCPU, for the thread of the guest that serves it.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct IntcLevel {
    level: Turnstile<guest::Level>,
    hand: guest::LevelHand,
    fd: RawFd,
}

impl IntcLevel {
    pub(crate) fn wrap(level: guest::Level) -> Self {
        let fd = level.bell().as_raw_fd();
        Self { hand: level.hand(), level: Turnstile::new(level), fd }
    }

    fn enter(&self, py: Python<'_>) -> PyResult<Inside<'_, guest::Level>> {
        self.level
            .enter(py)
            .ok_or_else(|| raise_plain(py, "BusyError", "another thread serves this priority; each has one"))
    }
}

#[pymethods]
impl IntcLevel {
    /// Takes the serving end of a level that `format_level` laid out at `offset`.
    #[new]
    fn new(py: Python<'_>, ram: &Ram, offset: u32, call_fd: RawFd) -> PyResult<Self> {
        let length = vbnet_core::shm::intc::LEVEL_BYTES as u32;
        let memory = LevelMemory::attach(&ram.region(py)?, offset, length).or_raise(py)?;
        Ok(Self::wrap(guest::Level::new(memory, Doorbell::from_fd(duplicate(py, call_fd)?))))
    }

    /// Waits for pending signals, without the interpreter; an empty list when the time was up or somebody nudged.
    #[pyo3(signature = (budget = 64, timeout = None, spin = 0.0))]
    fn wait(&self, py: Python<'_>, budget: u32, timeout: Option<f64>, spin: f64) -> PyResult<Vec<u32>> {
        let timeout = timeout.map(|seconds| seconds_of(py, seconds)).transpose()?;
        let spin = seconds_of(py, spin)?;
        let budget = budget.clamp(1, guest::BUDGET_MAX);
        let mut level = self.enter(py)?;
        let level = &mut *level;
        let mut found = Vec::new();
        py.detach(|| level.wait(budget, spin, timeout, |vector| found.push(vector))).or_raise(py)?;
        py.check_signals()?;
        Ok(found)
    }

    /// Takes what is pending, without waiting.
    #[pyo3(signature = (budget = 64))]
    fn take(&self, py: Python<'_>, budget: u32) -> PyResult<Vec<u32>> {
        let mut level = self.enter(py)?;
        let mut found = Vec::new();
        level.quiet();
        level.take(budget.clamp(1, guest::BUDGET_MAX), |vector| found.push(vector));
        Ok(found)
    }

    /// Asks for the doorbell. `False`: something is pending already.
    fn arm(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.enter(py)?.arm())
    }

    fn begin(&self, py: Python<'_>, vector: u32) -> PyResult<()> {
        self.enter(py)?.begin(vector);
        Ok(())
    }

    fn end(&self, py: Python<'_>) -> PyResult<()> {
        self.enter(py)?.end();
        Ok(())
    }

    fn mask(&self, vector: u32) {
        self.hand.mask(vector);
    }

    fn unmask(&self, py: Python<'_>, vector: u32) -> PyResult<()> {
        self.hand.unmask(vector).or_raise(py)
    }

    fn hold(&self, py: Python<'_>, is_held: bool) -> PyResult<()> {
        self.hand.set_held(is_held).or_raise(py)
    }

    #[getter]
    fn is_held(&self) -> bool {
        self.hand.is_held()
    }

    /// Ends the wait of the thread that serves this level.
    fn nudge(&self, py: Python<'_>) -> PyResult<()> {
        self.hand.nudge().or_raise(py)
    }

    fn fileno(&self) -> RawFd {
        self.fd
    }
}

/// The doorbells a guest raises for others.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct IntcOutbox {
    inner: Mutex<guest::Outbox>,
}

#[pymethods]
impl IntcOutbox {
    /// Takes the raising end of an outbox that `format_level` laid out at `offset`.
    #[new]
    fn new(py: Python<'_>, ram: &Ram, offset: u32, kick_fd: RawFd) -> PyResult<Self> {
        let length = vbnet_core::shm::intc::LEVEL_BYTES as u32;
        let memory = LevelMemory::attach(&ram.region(py)?, offset, length).or_raise(py)?;
        let kick = Doorbell::from_fd(duplicate(py, kick_fd)?);
        Ok(Self { inner: Mutex::new(guest::Outbox::new(memory, kick)) })
    }

    /// Raises a number that the host granted. `True`: the host slept and was woken.
    fn raise_number(&self, py: Python<'_>, number: u32) -> PyResult<bool> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).raise(number).or_raise(py)
    }
}

/// Lays an empty level or outbox out in guest RAM.
#[pyfunction]
pub(crate) fn format_level(py: Python<'_>, ram: &Ram, offset: u32) -> PyResult<()> {
    LevelMemory::format(&ram.region(py)?, offset).or_raise(py)?;
    Ok(())
}

fn seconds_of(py: Python<'_>, seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| raise_plain(py, "UsageError", &format!("a time is 0 or more seconds; got {seconds}")))
}
