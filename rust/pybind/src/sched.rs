//! The scheduler coordinator for host nodes, and a guest's page for its threads.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vbnet_core::sched::policy::{Class, Limits};
use vbnet_core::sched::{self as core};
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::sched::{AFFINITY_WORDS, Declaration, GuestPage, NO_VCPU, Publisher};

use crate::counters::CounterFile;
use crate::errors::{OrRaise, raise_plain};
use crate::memory::{Ram, duplicate};

/// Applies what guests' threads publish; one for each device.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct SchedCoordinator {
    pub(crate) inner: core::Coordinator,
}

#[pymethods]
impl SchedCoordinator {
    #[new]
    #[pyo3(signature = (counters = None, labels = ""))]
    fn new(py: Python<'_>, counters: Option<&CounterFile>, labels: &str) -> PyResult<Self> {
        let counters = counters.map(|file| file.inner.clone());
        let inner = py.detach(|| core::Coordinator::start(Limits::default(), counters, labels)).or_raise(py)?;
        Ok(Self { inner })
    }

    /// What this host can do: realtime, deadline, nice, slice, weight.
    fn abilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let abilities = self.inner.abilities();
        let row = PyDict::new(py);
        row.set_item("realtime", abilities.realtime)?;
        row.set_item("deadline", abilities.deadline)?;
        row.set_item("nice", abilities.nice)?;
        row.set_item("slice", abilities.slice)?;
        row.set_item("weight", abilities.weight)?;
        Ok(row)
    }

    #[allow(clippy::too_many_arguments)] // keywords in Python
    #[pyo3(signature = (*, enabled, highest, rt_priority, rt_threads, rt_share_permille, nice_min, boost_from,
                        boost_ms, rate))]
    fn limit(
        &self,
        py: Python<'_>,
        enabled: bool,
        highest: &str,
        rt_priority: u32,
        rt_threads: u32,
        rt_share_permille: u32,
        nice_min: i32,
        boost_from: u32,
        boost_ms: u32,
        rate: u32,
    ) -> PyResult<()> {
        let highest = Class::from_name(highest)
            .ok_or_else(|| raise_plain(py, "UsageError", &format!("there is no class {highest:?}")))?;
        let limits = Limits {
            is_enabled: enabled,
            highest,
            rt_priority_max: rt_priority.min(core::GUEST_PRIORITY_MAX),
            rt_threads_max: rt_threads,
            rt_share_permille,
            nice_min,
            boost_from,
            boost_ms,
            rate,
        };
        py.detach(|| self.inner.limit(limits)).or_raise(py)
    }

    /// Lets a guest take part; gives the number to leave by.
    fn join(
        &self,
        py: Python<'_>,
        guest: &str,
        pid: u32,
        ram: &Ram,
        place: (u32, usize),
        kick: RawFd,
    ) -> PyResult<u64> {
        let (ram, kick) = (ram.region(py)?, duplicate(py, kick)?);
        py.detach(|| self.inner.join(guest, pid, ram, place, kick)).or_raise(py)
    }

    fn leave(&self, py: Python<'_>, member: u64) -> PyResult<()> {
        py.detach(|| self.inner.leave(member)).or_raise(py)
    }

    /// Raises the thread that serves a vCPU, as a signal of this priority would. `False`: nothing was to be done.
    fn boost(&self, py: Python<'_>, member: u64, vcpu: u32, priority: u32) -> PyResult<bool> {
        py.detach(|| self.inner.booster(member).map(|booster| booster.boost(vcpu, priority))).or_raise(py)
    }

    fn threads<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let threads = py.detach(|| self.inner.threads()).or_raise(py)?;
        threads
            .into_iter()
            .map(|thread| {
                let row = PyDict::new(py);
                row.set_item("guest", thread.guest)?;
                row.set_item("pid", thread.pid)?;
                row.set_item("record", thread.record)?;
                row.set_item("tid", thread.tid)?;
                row.set_item("wanted", thread.wanted)?;
                row.set_item("applied", thread.applied)?;
                row.set_item("is_running", thread.is_running)?;
                row.set_item("is_boosted", thread.is_boosted)?;
                row.set_item("age_s", thread.age_ns as f64 / 1e9)?;
                row.set_item("weight", thread.weight)?;
                row.set_item("refusal", thread.refusal)?;
                Ok(row)
            })
            .collect()
    }

    /// What was counted so far, in the order of `SCHED_COUNTERS`.
    fn counts(&self, py: Python<'_>) -> Vec<u64> {
        py.detach(|| self.inner.counts())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

/// A guest's page of records, a record for each of its threads.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct SchedPage {
    inner: Arc<GuestPage>,
    kick: Mutex<Option<Arc<Doorbell>>>,
}

#[pymethods]
impl SchedPage {
    #[new]
    fn new(py: Python<'_>, ram: &Ram, offset: u32, records: u32) -> PyResult<Self> {
        let inner = Arc::new(GuestPage::create(ram.region(py)?, offset, records).or_raise(py)?);
        Ok(Self { inner, kick: Mutex::new(None) })
    }

    /// Takes the doorbell that the host waits on; a copy of it.
    fn connect(&self, py: Python<'_>, kick: RawFd) -> PyResult<()> {
        let bell = Arc::new(Doorbell::from_fd(duplicate(py, kick)?));
        *self.kick.lock().unwrap_or_else(PoisonError::into_inner) = Some(bell);
        Ok(())
    }

    /// The place of one thread. Each record once.
    fn record(&self, py: Python<'_>, index: u32) -> PyResult<SchedRecord> {
        let publisher = self.inner.publisher(index).or_raise(py)?;
        let kick = self.kick.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(SchedRecord { publisher: Mutex::new(publisher), kick })
    }
}

/// What one thread of a guest publishes of itself.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct SchedRecord {
    publisher: Mutex<Publisher>,
    kick: Option<Arc<Doorbell>>,
}

impl SchedRecord {
    fn with(&self, py: Python<'_>, change: impl FnOnce(&mut Publisher) -> bool) -> PyResult<()> {
        let must_ring = change(&mut self.publisher.lock().unwrap_or_else(PoisonError::into_inner));
        match &self.kick {
            Some(kick) if must_ring => kick.ring().or_raise(py),
            _ => Ok(()),
        }
    }
}

#[pymethods]
impl SchedRecord {
    #[allow(clippy::too_many_arguments)] // keywords in Python
    #[pyo3(signature = (tid, cls, *, flags = 0, nice = 0, rt_priority = 0, vcpu = None, runtime_ns = 0,
                        deadline_ns = 0, period_ns = 0, processors = Vec::new()))]
    fn declare(
        &self,
        py: Python<'_>,
        tid: u32,
        cls: u32,
        flags: u32,
        nice: i32,
        rt_priority: u32,
        vcpu: Option<u32>,
        runtime_ns: u64,
        deadline_ns: u64,
        period_ns: u64,
        processors: Vec<usize>,
    ) -> PyResult<()> {
        let mut affinity = [0; AFFINITY_WORDS];
        for processor in processors {
            let word = affinity.get_mut(processor / 64).ok_or_else(|| {
                let message = format!("processors are 0..{}; got {processor}", AFFINITY_WORDS * 64 - 1);
                raise_plain(py, "UsageError", &message)
            })?;
            *word |= 1 << (processor % 64);
        }
        let wanted = Declaration {
            tid,
            class: cls,
            flags,
            nice,
            rt_priority,
            vcpu: vcpu.unwrap_or(NO_VCPU),
            runtime_ns,
            deadline_ns,
            period_ns,
            affinity,
        };
        self.with(py, |publisher| publisher.declare(&wanted))
    }

    /// The thread asks for nothing any more.
    fn withdraw(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |publisher| publisher.declare(&Declaration::default()))
    }

    fn running(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, Publisher::running)
    }

    fn idle(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, Publisher::idle)
    }

    /// Class in force plus one, whether it is boosted, number of the last refusal plus one; 0 for none.
    fn verdict(&self) -> (u32, bool, u32) {
        let verdict = self.publisher.lock().unwrap_or_else(PoisonError::into_inner).verdict();
        (verdict.applied, verdict.boosted != 0, verdict.refusal)
    }
}
