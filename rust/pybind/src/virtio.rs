//! Virtio devices: the host's halves, and the drivers of a guest.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vbnet_core::error::{Error, Result as CoreResult};
use vbnet_core::fastcall::FastHandler as CoreFastHandler;
use vbnet_core::guest::virtio::arena::Arena;
use vbnet_core::guest::virtio::disk as guest;
use vbnet_core::guest::virtio::stream::Stream;
use vbnet_core::guest::virtio::transport::{Registers, Tally, Waker};
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::signals::{Caller, LineId};
use vbnet_core::virtio::blk::{BlkKind, Disk};
use vbnet_core::virtio::console::{ConsoleKind, Terminal};
use vbnet_core::virtio::device::{self as core, Kind, Params, QueueRegion, Transport};
use vbnet_core::virtio::net::{CONFIG_STATUS, NetKind, NetParams, link_status};

use vbnet_core::virtio::rng::RngKind;

use crate::counters::CounterFile;
use crate::errors::{OrRaise, raise_plain};
use crate::fabric::{NetPort, parse_mac};
use crate::fastcall::FastHandler;
use crate::memory::{Ram, duplicate};
use crate::signals::Signals;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- the host --------------------------------------------------------------------------------------------------------

/// An open file of the operator's, as a disk.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct DiskImage {
    inner: Arc<Disk>,
}

#[pymethods]
impl DiskImage {
    #[new]
    #[pyo3(signature = (fd, *, is_read_only = false, serial = ""))]
    fn new(py: Python<'_>, fd: RawFd, is_read_only: bool, serial: &str) -> PyResult<Self> {
        let file = File::from(duplicate(py, fd)?);
        let disk = py.detach(|| Disk::new(file, is_read_only, serial)).or_raise(py)?;
        Ok(Self { inner: Arc::new(disk) })
    }

    #[getter]
    fn sectors(&self) -> u64 {
        self.inner.sectors()
    }
}

/// A pseudo terminal of the host, for a console.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct ConsoleTerminal {
    inner: Arc<Terminal>,
}

#[pymethods]
impl ConsoleTerminal {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self { inner: Arc::new(py.detach(Terminal::create).or_raise(py)?) })
    }

    /// Path of its terminal end.
    #[getter]
    fn name(&self) -> &str {
        self.inner.name()
    }
}

/// What the virtio devices of a host share.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct VirtioHost {
    inner: Arc<core::VirtioHost>,
}

#[pymethods]
impl VirtioHost {
    #[new]
    fn new(py: Python<'_>, counters: &CounterFile) -> PyResult<Self> {
        let counters = counters.inner.clone();
        Ok(Self { inner: Arc::new(py.detach(|| core::VirtioHost::start(counters)).or_raise(py)?) })
    }

    /// Opens a disk, or a drive without one, for a guest.
    #[pyo3(signature = (ram, image, *, name, labels = "", transport = "vbus", spin_us = 50, trap_cost_ns = 0))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn open_disk(
        &self,
        py: Python<'_>,
        ram: &Ram,
        image: Option<&DiskImage>,
        name: &str,
        labels: &str,
        transport: &str,
        spin_us: u32,
        trap_cost_ns: u32,
    ) -> PyResult<VirtioDevice> {
        let disk = image.map(|image| image.inner.clone());
        let kind = BlkKind::new(disk, self.inner.counters(), labels).or_raise(py)?;
        self.open(py, Arc::new(kind), ram, name, labels, how(py, transport, spin_us, trap_cost_ns)?)
    }

    /// Opens an entropy device for a guest.
    #[pyo3(signature = (ram, *, name, labels = "", transport = "vbus", spin_us = 50, trap_cost_ns = 0))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn open_rng(
        &self,
        py: Python<'_>,
        ram: &Ram,
        name: &str,
        labels: &str,
        transport: &str,
        spin_us: u32,
        trap_cost_ns: u32,
    ) -> PyResult<VirtioDevice> {
        let kind = RngKind::new(self.inner.counters(), labels).or_raise(py)?;
        self.open(py, Arc::new(kind), ram, name, labels, how(py, transport, spin_us, trap_cost_ns)?)
    }

    /// Opens a console for a guest; `log_fd` stays the caller's.
    #[pyo3(signature = (ram, terminal, log_fd, *, name, labels = "", transport = "vbus", spin_us = 50, trap_cost_ns = 0))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn open_console(
        &self,
        py: Python<'_>,
        ram: &Ram,
        terminal: &ConsoleTerminal,
        log_fd: Option<RawFd>,
        name: &str,
        labels: &str,
        transport: &str,
        spin_us: u32,
        trap_cost_ns: u32,
    ) -> PyResult<VirtioDevice> {
        let log = log_fd.map(|fd| duplicate(py, fd)).transpose()?.map(|file| Arc::new(File::from(file)));
        let kind = ConsoleKind::new(terminal.inner.clone(), log, self.inner.counters(), labels).or_raise(py)?;
        self.open(py, Arc::new(kind), ram, name, labels, how(py, transport, spin_us, trap_cost_ns)?)
    }

    /// Opens a network card for a guest, whose queues the port gets.
    #[pyo3(signature = (
        ram, port, *, mac, mtu, pairs = 1, has_offloads = true, name, labels = "", transport = "vbus", spin_us = 50, trap_cost_ns = 0
    ))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn open_net(
        &self,
        py: Python<'_>,
        ram: &Ram,
        port: &NetPort,
        mac: &str,
        mtu: u32,
        pairs: usize,
        has_offloads: bool,
        name: &str,
        labels: &str,
        transport: &str,
        spin_us: u32,
        trap_cost_ns: u32,
    ) -> PyResult<VirtioDevice> {
        let params = NetParams { mac: parse_mac(mac).or_raise(py)?, mtu, pairs, has_offloads };
        let kind = NetKind::new(port.inner.clone(), params).or_raise(py)?;
        self.open(py, Arc::new(kind), ram, name, labels, how(py, transport, spin_us, trap_cost_ns)?)
    }

    fn fault_fd(&self) -> RawFd {
        self.inner.fault_fd()
    }

    /// Queues that are not served any more since the last call: number of the device, rule, sentence.
    fn take_faults(&self) -> Vec<(u64, &'static str, String)> {
        let told =
            |event: core::FaultEvent| (event.device, event.reason, format!("queue {}: {}", event.queue, event.text));
        self.inner.take_faults().into_iter().map(told).collect()
    }
}

/// How a device is to be reached, by its words.
fn how(py: Python<'_>, transport: &str, spin_us: u32, trap_cost_ns: u32) -> PyResult<Params> {
    let known = Transport::ALL.iter().find(|(_, known)| *known == transport);
    let Some((transport, _)) = known else {
        return Err(raise_plain(py, "UsageError", &format!("{transport:?} is no transport of virtio devices")));
    };
    Ok(Params { transport: *transport, spin_us, trap_cost_ns, ..Params::default() })
}

impl VirtioHost {
    fn open(
        &self,
        py: Python<'_>,
        kind: Arc<dyn Kind>,
        ram: &Ram,
        name: &str,
        labels: &str,
        params: Params,
    ) -> PyResult<VirtioDevice> {
        let device = self.inner.open(kind, &ram.region(py)?, params, name, labels).or_raise(py)?;
        Ok(VirtioDevice { inner: Arc::new(device) })
    }
}

/// One guest's use of a virtio device.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct VirtioDevice {
    inner: Arc<core::Device>,
}

#[pymethods]
impl VirtioDevice {
    /// Its number, by which faults name it.
    #[getter]
    fn number(&self) -> u64 {
        self.inner.id
    }

    /// Its status, as its driver reads it.
    #[getter]
    fn status(&self) -> u32 {
        self.inner.status()
    }

    /// Says in a network card's configuration whether its link is up; the driver hears of that from the bus.
    fn set_link(&self, is_up: bool) {
        self.inner.set_config(CONFIG_STATUS, &link_status(is_up));
    }

    /// Shows the memory of one queue, its signal in it.
    #[pyo3(signature = (queue, place, signal_offset, bells, *, signals = None, line = None))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn show(
        &self,
        py: Python<'_>,
        queue: u32,
        place: (u32, u32),
        signal_offset: u32,
        bells: (RawFd, RawFd),
        signals: Option<&Signals>,
        line: Option<u64>,
    ) -> PyResult<()> {
        let bell = |fd| Ok::<_, PyErr>(Doorbell::from_fd(duplicate(py, fd)?));
        let call = match (signals, line) {
            (Some(signals), Some(line)) => Caller::Line(signals.inner.line(LineId(line)).or_raise(py)?),
            _ => Caller::Bell(bell(bells.1)?),
        };
        let (offset, length) = place;
        let region = QueueRegion { offset, length, signal_offset, kick: bell(bells.0)?, call };
        py.detach(|| self.inner.show(queue, region)).or_raise(py)
    }

    fn call<'py>(&self, py: Python<'py>, function: u32, data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let mut answer = Vec::new();
        py.detach(|| core::Device::call(&self.inner, function, data, &mut answer)).or_raise(py)?;
        Ok(PyBytes::new(py, &answer))
    }

    /// Answers fastcalls without Python.
    fn fast(&self) -> FastHandler {
        let inner: Arc<dyn CoreFastHandler> = self.inner.clone();
        FastHandler { inner }
    }

    /// Lets go of the guest's memory; raises `BusyError` when a request takes too long.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.close()).or_raise(py)
    }
}

// ---- the guest -------------------------------------------------------------------------------------------------------

/// Registers by two functions of Python: `call(function, data)`, and `share(id, offset, length, signal_offset)`, which
/// gives two descriptors that stay Python's.
pub(crate) struct PythonRegisters {
    pub(crate) call: Py<PyAny>,
    pub(crate) share: Py<PyAny>,
    /// What Python raised, which is better than what can be said of it here.
    pub(crate) raised: Arc<Mutex<Option<PyErr>>>,
}

impl PythonRegisters {
    fn kept<T>(&self, outcome: PyResult<T>) -> CoreResult<T> {
        outcome.map_err(|raised| {
            lock(&self.raised).get_or_insert(raised);
            Error::PeerGone("a virtio device")
        })
    }
}

impl Registers for PythonRegisters {
    fn call(&self, function: u32, data: &[u8]) -> CoreResult<Vec<u8>> {
        let ask = |py: Python<'_>| self.call.call1(py, (function, PyBytes::new(py, data)))?.extract::<Vec<u8>>(py);
        self.kept(Python::attach(ask))
    }

    fn share(&self, id: u32, offset: u32, length: u32, signal_offset: u32) -> CoreResult<(OwnedFd, OwnedFd)> {
        let ask = |py: Python<'_>| {
            let answer = self.share.call1(py, (id, offset, length, signal_offset))?;
            let (kick, call) = answer.extract::<(RawFd, RawFd)>(py)?;
            Ok((duplicate(py, kick)?, duplicate(py, call)?))
        };
        self.kept(Python::attach(ask))
    }
}

/// The driver of a disk: one operation at a time, others wait.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct VirtioDisk {
    disk: Arc<Mutex<Option<guest::Disk>>>,
    waker: Arc<Waker>,
    tally: Arc<Tally>,
    raised: Arc<Mutex<Option<PyErr>>>,
    spin: Duration,
    size: u64,
    is_read_only: bool,
    has_discard: bool,
}

#[pymethods]
impl VirtioDisk {
    /// Starts it on an open device, in `length` bytes at `offset` of the guest's RAM. Not on the loop's own thread.
    #[new]
    #[pyo3(signature = (ram, offset, length, call, share, *, spin_us = 50))]
    fn new(
        py: Python<'_>,
        ram: &Ram,
        offset: u32,
        length: u32,
        call: Py<PyAny>,
        share: Py<PyAny>,
        spin_us: u32,
    ) -> PyResult<Self> {
        let arena = Arena::new(&ram.region(py)?, offset, length).or_raise(py)?;
        let raised = Arc::new(Mutex::new(None));
        let registers = Arc::new(PythonRegisters { call, share, raised: raised.clone() });
        let started = py.detach(|| guest::Disk::start(registers, &arena));
        let disk = better(py, &raised, started)?;
        Ok(Self {
            waker: disk.waker(),
            tally: disk.tally(),
            raised,
            spin: Duration::from_micros(spin_us.into()),
            size: disk.sectors() * guest::SECTOR,
            is_read_only: disk.is_read_only(),
            has_discard: disk.has_discard(),
            disk: Arc::new(Mutex::new(Some(disk))),
        })
    }

    /// Bytes of the disk.
    #[getter]
    fn size(&self) -> u64 {
        self.size
    }

    #[getter]
    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    #[getter]
    fn has_discard(&self) -> bool {
        self.has_discard
    }

    /// What the transport did: register accesses, kicks, doorbells rung, sleeps.
    fn tally(&self) -> (u64, u64, u64, u64) {
        let load = |word: &std::sync::atomic::AtomicU64| word.load(std::sync::atomic::Ordering::Relaxed);
        let Tally { accesses, kicks, rings, sleeps } = &*self.tally;
        (load(accesses), load(kicks), load(rings), load(sleeps))
    }

    /// Fills `buffer` with what lies from byte `offset` on.
    fn read_into(&self, py: Python<'_>, offset: u64, buffer: PyBuffer<u8>, timeout: f64) -> PyResult<()> {
        if buffer.readonly() || !buffer.is_c_contiguous() {
            return Err(raise_plain(py, "UsageError", "a disk reads into contiguous memory that can be written"));
        }
        let (place, bytes) = (buffer.buf_ptr() as usize, buffer.len_bytes());
        self.run(py, timeout, |disk, patience| {
            disk.read_at(offset, bytes as u64, patience, |at, chunk| {
                // SAFETY: `buffer` keeps its memory for the length of this call, and the driver hands out pieces that lie
                // within the bytes that were asked for. Who else writes there meanwhile spoils its own data.
                unsafe { (place as *mut u8).add(at).copy_from(chunk.as_ptr(), chunk.len()) };
            })
        })
    }

    /// Writes `buffer` from byte `offset` on.
    fn write_from(&self, py: Python<'_>, offset: u64, buffer: PyBuffer<u8>, timeout: f64) -> PyResult<()> {
        if !buffer.is_c_contiguous() {
            return Err(raise_plain(py, "UsageError", "a disk writes contiguous memory"));
        }
        let (place, bytes) = (buffer.buf_ptr() as usize, buffer.len_bytes());
        self.run(py, timeout, |disk, patience| {
            disk.write_at(offset, bytes as u64, patience, |at, chunk| {
                // SAFETY: as above, the other way.
                unsafe { (place as *const u8).add(at).copy_to(chunk.as_mut_ptr(), chunk.len()) };
            })
        })
    }

    /// Has what was written on the disk for good.
    fn sync(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        self.run(py, timeout, guest::Disk::flush)
    }

    /// Says that whole sectors are of no use any more, or that they are zeroes.
    fn trim(&self, py: Python<'_>, offset: u64, length: u64, is_zero: bool, timeout: f64) -> PyResult<()> {
        self.run(py, timeout, |disk, patience| disk.discard(offset, length, is_zero, patience))
    }

    fn read_serial(&self, py: Python<'_>, timeout: f64) -> PyResult<String> {
        let mut found = String::new();
        self.run(py, timeout, |disk, patience| {
            let serial = disk.serial(patience)?;
            let is_done = serial.is_some();
            found = serial.unwrap_or_default();
            Ok(is_done)
        })?;
        Ok(found)
    }

    /// The host is gone: whoever waits gets `PeerGone`.
    fn abandon(&self) {
        self.waker.abandon();
    }

    /// Lets go of the memory; raises `BusyError` while another thread is inside.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let Ok(mut disk) = self.disk.try_lock() else {
            return Err(raise_plain(py, "BusyError", "another thread is using this disk"));
        };
        let ended = disk.take();
        drop(disk);
        py.detach(|| drop(ended));
        Ok(())
    }
}

impl VirtioDisk {
    fn run(
        &self,
        py: Python<'_>,
        timeout: f64,
        work: impl FnOnce(&mut guest::Disk, guest::Patience) -> CoreResult<bool> + Send,
    ) -> PyResult<()> {
        let limit = limit_of(py, timeout)?;
        let outcome = py.detach(|| {
            let mut disk = lock(&self.disk);
            let Some(disk) = disk.as_mut() else {
                self.waker.check()?;
                return Err(Error::Closed("this disk"));
            };
            work(disk, guest::Patience { deadline: Instant::now() + limit, spin: self.spin })
        });
        if better(py, &self.raised, outcome)? {
            return Ok(());
        }
        Err(raise_plain(py, "DeadlineError", &format!("the disk did not answer within {timeout} s")))
    }
}

/// The driver of a device of bytes in order: entropy, a console. One thread may read while another writes.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct VirtioStream {
    stream: Mutex<Option<Stream>>,
    waker: Arc<Waker>,
    bell: Arc<Doorbell>,
    raised: Arc<Mutex<Option<PyErr>>>,
    spin: Duration,
}

#[pymethods]
impl VirtioStream {
    /// Starts it on an open device, in `length` bytes at `offset` of the guest's RAM. Not on the loop's own thread.
    #[new]
    #[pyo3(signature = (ram, offset, length, call, share, *, spin_us = 50))]
    fn new(
        py: Python<'_>,
        ram: &Ram,
        offset: u32,
        length: u32,
        call: Py<PyAny>,
        share: Py<PyAny>,
        spin_us: u32,
    ) -> PyResult<Self> {
        let arena = Arena::new(&ram.region(py)?, offset, length).or_raise(py)?;
        let raised = Arc::new(Mutex::new(None));
        let registers = Arc::new(PythonRegisters { call, share, raised: raised.clone() });
        let started = py.detach(|| Stream::start(registers, &arena));
        let stream = better(py, &raised, started)?;
        let bell =
            stream.bell().ok_or_else(|| raise_plain(py, "UsageError", "the device has no queue to read from"))?;
        let spin = Duration::from_micros(spin_us.into());
        Ok(Self { waker: stream.waker(), bell, raised, spin, stream: Mutex::new(Some(stream)) })
    }

    /// Up to `limit` bytes that are there, or the first to come in time; none: the time was up. `None` waits for ever.
    #[pyo3(signature = (limit, timeout = None))]
    fn read<'py>(&self, py: Python<'py>, limit: usize, timeout: Option<f64>) -> PyResult<Bound<'py, PyBytes>> {
        let end = timeout.map(|timeout| limit_of(py, timeout)).transpose()?.map(|wait| Instant::now() + wait);
        let outcome = py.detach(|| {
            let mut found = Vec::new();
            loop {
                let is_asleep = {
                    let mut stream = lock(&self.stream);
                    let stream = self.held(&mut stream)?;
                    if stream.poll_read(limit, |bytes| found.extend_from_slice(bytes))? != 0 {
                        return Ok(found);
                    }
                    stream.arm_read()?
                };
                let left = end.map(|end| end.saturating_duration_since(Instant::now()));
                if left.is_some_and(|left| left.is_zero()) {
                    return Ok(found);
                }
                if is_asleep {
                    self.bell.wait(left)?;
                }
            }
        });
        Ok(PyBytes::new(py, &better(py, &self.raised, outcome)?))
    }

    /// Writes what there is time for: how many bytes.
    fn write(&self, py: Python<'_>, content: PyBuffer<u8>, timeout: f64) -> PyResult<usize> {
        let content = content.to_vec(py)?;
        let limit = limit_of(py, timeout)?;
        let outcome = py.detach(|| {
            let patience = guest::Patience { deadline: Instant::now() + limit, spin: self.spin };
            self.held(&mut lock(&self.stream))?.write(&content, patience)
        });
        better(py, &self.raised, outcome)
    }

    /// The host is gone: whoever waits gets `PeerGone`.
    fn abandon(&self) {
        self.waker.abandon();
    }

    /// Lets go of the memory.
    fn release(&self, py: Python<'_>) {
        py.detach(|| drop(lock(&self.stream).take()));
    }
}

impl VirtioStream {
    fn held<'a>(&self, stream: &'a mut Option<Stream>) -> CoreResult<&'a mut Stream> {
        self.waker.check()?;
        stream.as_mut().ok_or(Error::Closed("this device"))
    }
}

fn limit_of(py: Python<'_>, timeout: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(timeout)
        .map_err(|error| raise_plain(py, "UsageError", &format!("a timeout of {timeout} s: {error}")))
}

/// The value, or what Python raised on the way to the error, or else the error.
pub(crate) fn better<T>(py: Python<'_>, raised: &Mutex<Option<PyErr>>, outcome: CoreResult<T>) -> PyResult<T> {
    match (outcome, lock(raised).take()) {
        (Ok(value), _) => Ok(value),
        (Err(_), Some(raised)) => Err(raised),
        (Err(error), None) => Err(error).or_raise(py),
    }
}
