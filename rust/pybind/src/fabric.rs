//! Switches, ports and workers, as the host node holds them.

use std::os::fd::{IntoRawFd, RawFd};
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vbnet_core::error::Error;
use vbnet_core::fabric as core;
use vbnet_core::net::frame::MacAddress;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::signals::{Caller, LineId};
use vbnet_core::virtio::net::NetPort as CoreNetPort;
use vbnet_core::watch::Purpose;
use vbnet_core::watch::bpf::Instruction;

use crate::cards::EmulatedCard;
use crate::counters::CounterFile;
use crate::errors::{OrRaise, raise_plain};
use crate::memory::{Ram, duplicate};
use crate::pieces::NicGrant;
use crate::signals::Signals;

pub(crate) fn parse_mac(text: &str) -> Result<MacAddress, Error> {
    text.parse()
        .map_err(|_| Error::Usage(format!("{text:?} is no MAC address; write six bytes like 02:00:00:00:00:01")))
}

fn parse_number(key: &str, value: &str) -> Result<u32, Error> {
    value.parse().map_err(|_| Error::Usage(format!("{key} is a number from 0 on; got {value:?}")))
}

/// A port that takes the queues of a guest's network card.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct NetPort {
    pub(crate) inner: CoreNetPort,
}

#[pymethods]
impl NetPort {
    /// Its number.
    #[getter]
    const fn id(&self) -> u64 {
        self.inner.id().0
    }
}

/// The data path of a host node.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Fabric {
    inner: core::Fabric,
}

#[pymethods]
impl Fabric {
    #[new]
    #[pyo3(signature = (counters, workers = 1, *, does_count = true))]
    fn new(py: Python<'_>, counters: &CounterFile, workers: usize, does_count: bool) -> PyResult<Self> {
        let counters = counters.inner.clone();
        let start = if does_count { core::Fabric::new } else { core::Fabric::without_counting };
        let inner = py.detach(|| start(counters, workers)).or_raise(py)?;
        Ok(Self { inner })
    }

    /// The file it counts into.
    #[getter]
    fn counters(&self) -> CounterFile {
        CounterFile { inner: self.inner.counters().clone() }
    }

    #[pyo3(signature = (name, ageing_s = 300.0))]
    fn switch_create(&self, py: Python<'_>, name: &str, ageing_s: f64) -> PyResult<()> {
        if !(0.0..=f64::from(u32::MAX)).contains(&ageing_s) {
            let message = format!("ageing is 0 (never) to {} seconds; got {ageing_s}", u32::MAX);
            return Err(raise_plain(py, "UsageError", &message));
        }
        // Less than a second is still a wish to forget; the core counts whole seconds.
        py.detach(|| self.inner.switch_create(name, ageing_s.ceil() as u32)).or_raise(py)
    }

    fn switch_delete(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        py.detach(|| self.inner.switch_delete(name)).or_raise(py)
    }

    fn switches(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let switches = py.detach(|| self.inner.switches()).or_raise(py)?;
        Ok(switches.into_iter().map(|(name, _)| name).collect())
    }

    fn macs<'py>(&self, py: Python<'py>, switch: &str) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let entries = py.detach(|| self.inner.macs(switch)).or_raise(py)?;
        entries
            .into_iter()
            .map(|entry| {
                let row = PyDict::new(py);
                row.set_item("mac", entry.mac.to_string())?;
                row.set_item("port", entry.port.0)?;
                row.set_item("age_s", entry.age_s)?;
                row.set_item("is_pinned", entry.is_pinned)?;
                Ok(row)
            })
            .collect()
    }

    /// Joins a guest's rings to a switch, or to themselves when `switch` is empty.
    #[pyo3(signature = (
        switch, name, ram, tx, rx, bells, *, mac, mtu = 1500, tx_mitigation = 10, burst_threshold_us = 50, budget = 256,
        priority = 0, signals = None, lines = None, guest = "", grant = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn port_add_venet(
        &self,
        py: Python<'_>,
        switch: &str,
        name: &str,
        ram: &Ram,
        tx: (u32, u32),
        rx: (u32, u32),
        bells: (RawFd, RawFd, RawFd, RawFd),
        mac: &str,
        mtu: u32,
        tx_mitigation: u32,
        burst_threshold_us: u32,
        budget: u32,
        priority: u32,
        signals: Option<&Signals>,
        lines: Option<(u64, u64)>,
        guest: &str,
        grant: Option<NicGrant>,
    ) -> PyResult<u64> {
        let bell = |fd| Ok::<_, PyErr>(Doorbell::from_fd(duplicate(py, fd)?));
        let caller = |fd, line: Option<u64>| match (signals, line) {
            (Some(signals), Some(line)) => Ok(Caller::Line(signals.inner.line(LineId(line)).or_raise(py)?)),
            _ => bell(fd).map(Caller::Bell),
        };
        let queues = core::VenetQueues {
            guest: guest.into(),
            ram: ram.region(py)?,
            tx,
            rx,
            tx_kick: bell(bells.0)?,
            tx_call: caller(bells.1, lines.map(|(tx, _)| tx))?,
            rx_kick: bell(bells.2)?,
            rx_call: caller(bells.3, lines.map(|(_, rx)| rx))?,
        };
        let mac = parse_mac(mac).or_raise(py)?;
        let grant = grant.map(|grant| grant.inner).unwrap_or_default();
        let params = core::VenetParams {
            mac,
            mtu,
            tx_mitigation,
            burst_threshold_us,
            budget,
            priority,
            grant,
            ..core::VenetParams::default()
        };
        let port = py.detach(|| {
            if switch.is_empty() {
                self.inner.port_add_loopback(name, queues, params)
            } else {
                self.inner.port_add_venet(switch, name, queues, params)
            }
        });
        Ok(port.or_raise(py)?.0)
    }

    /// Joins an emulated card to a switch; `line` of `signals` is what it interrupts by.
    #[pyo3(signature = (
        switch, name, card, signals, line, *, mac, mtu = 1500, burst_threshold_us = 50, budget = 256, guest = ""
    ))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn port_add_nic(
        &self,
        py: Python<'_>,
        switch: &str,
        name: &str,
        card: &EmulatedCard,
        signals: &Signals,
        line: u64,
        mac: &str,
        mtu: u32,
        burst_threshold_us: u32,
        budget: u32,
        guest: &str,
    ) -> PyResult<u64> {
        let line = Caller::Line(signals.inner.line(LineId(line)).or_raise(py)?);
        let parts = core::NicParts { guest: guest.into(), model: card.model, card: card.card.clone(), line };
        let mac = parse_mac(mac).or_raise(py)?;
        let params = core::VenetParams { mac, mtu, burst_threshold_us, budget, ..core::VenetParams::default() };
        Ok(py.detach(|| self.inner.port_add_nic(switch, name, parts, params)).or_raise(py)?.0)
    }

    #[pyo3(signature = (switch, name, fd, mtu = 1500, *, guest = ""))]
    fn port_add_tap(
        &self,
        py: Python<'_>,
        switch: &str,
        name: &str,
        fd: RawFd,
        mtu: u32,
        guest: &str,
    ) -> PyResult<u64> {
        let file = duplicate(py, fd)?;
        Ok(py.detach(|| self.inner.port_add_tap(switch, name, guest, file, mtu)).or_raise(py)?.0)
    }

    /// Listens on a socket for front ends of vhost-user, whose network card is a port of a switch, or connects to theirs; with
    /// `is_front_end` the port is the front end, of whatever back end is there.
    #[pyo3(signature = (
        switch, name, socket, *, mac = "00:00:00:00:00:00", mtu = 1500, burst_threshold_us = 50, budget = 256,
        does_connect = false, is_front_end = false
    ))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn port_add_vhost_user(
        &self,
        py: Python<'_>,
        switch: &str,
        name: &str,
        socket: PathBuf,
        mac: &str,
        mtu: u32,
        burst_threshold_us: u32,
        budget: u32,
        does_connect: bool,
        is_front_end: bool,
    ) -> PyResult<u64> {
        let mac = parse_mac(mac).or_raise(py)?;
        let params = core::VenetParams { mac, mtu, burst_threshold_us, budget, ..core::VenetParams::default() };
        if is_front_end {
            let place = (socket.as_path(), !does_connect);
            return Ok(py.detach(|| self.inner.port_add_front_end(switch, name, place, params)).or_raise(py)?.0);
        }
        let add = if does_connect { core::Fabric::port_join_vhost_user } else { core::Fabric::port_add_vhost_user };
        let port = py.detach(|| add(&self.inner, switch, name, &socket, params));
        Ok(port.or_raise(py)?.0)
    }

    /// Makes a port for a virtio network card of a guest on a bus.
    #[pyo3(signature = (switch, name, *, mac, mtu = 1500, burst_threshold_us = 50, budget = 256, priority = 0, guest = ""))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn port_add_virtio_net(
        &self,
        py: Python<'_>,
        switch: &str,
        name: &str,
        mac: &str,
        mtu: u32,
        burst_threshold_us: u32,
        budget: u32,
        priority: u32,
        guest: &str,
    ) -> PyResult<NetPort> {
        let mac = parse_mac(mac).or_raise(py)?;
        let params =
            core::VenetParams { mac, mtu, burst_threshold_us, budget, priority, ..core::VenetParams::default() };
        let inner = py.detach(|| self.inner.port_add_virtio_net(switch, name, guest, params)).or_raise(py)?;
        Ok(NetPort { inner })
    }

    fn port_remove(&self, py: Python<'_>, port: u64) -> PyResult<()> {
        py.detach(|| self.inner.port_remove(core::PortId(port))).or_raise(py)
    }

    /// Changes `mtu`, `tx_mitigation`, `burst_threshold_us`, `budget`, `priority`, `hold_us`, `parks` or `link` (0 or 1) of a
    /// running port.
    fn port_set(&self, py: Python<'_>, port: u64, key: &str, value: &str) -> PyResult<()> {
        let number = parse_number(key, value).or_raise(py)?;
        let port = core::PortId(port);
        let param = match key {
            "link" if number <= 1 => return py.detach(|| self.inner.port_link(port, number == 1)).or_raise(py),
            "mtu" => core::Param::Mtu(number),
            "tx_mitigation" => core::Param::TxMitigation(number),
            "burst_threshold_us" => core::Param::BurstThresholdUs(number),
            "budget" => core::Param::Budget(number),
            "priority" => core::Param::Priority(number),
            "hold_us" => core::Param::HoldUs(number),
            "parks" if number <= 1 => core::Param::Parks(number == 1),
            _ => {
                let known = "mtu, tx_mitigation, burst_threshold_us, budget, priority, hold_us, parks, link (0 or 1)";
                let message = format!("a port has no {key} = {value}; there are {known}");
                return Err(raise_plain(py, "UsageError", &message));
            }
        };
        py.detach(|| self.inner.port_set(port, param)).or_raise(py)
    }

    /// Returns every posted buffer empty; how many.
    fn port_flush_rx(&self, py: Python<'_>, port: u64) -> PyResult<u32> {
        py.detach(|| self.inner.port_flush_rx(core::PortId(port))).or_raise(py)
    }

    fn ports<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let ports = py.detach(|| self.inner.ports()).or_raise(py)?;
        ports
            .into_iter()
            .map(|port| {
                let row = PyDict::new(py);
                row.set_item("id", port.id.0)?;
                row.set_item("name", port.name)?;
                row.set_item("switch", port.switch)?;
                row.set_item("kind", port.kind.label())?;
                row.set_item("worker", port.worker)?;
                row.set_item("mac", port.mac.map(|mac| mac.to_string()))?;
                row.set_item("device", port.device)?;
                row.set_item("mtu", port.mtu)?;
                row.set_item("tx_mitigation", port.tx_mitigation)?;
                row.set_item("burst_threshold_us", port.burst_threshold_us)?;
                row.set_item("budget", port.budget)?;
                row.set_item("priority", port.priority)?;
                row.set_item("hold_us", port.hold_us)?;
                row.set_item("is_up", port.is_up)?;
                row.set_item("transmit_fault", port.transmit_fault)?;
                row.set_item("receive_fault", port.receive_fault)?;
                row.set_item("is_gone", port.is_gone)?;
                row.set_item("is_served", port.is_served)?;
                row.set_item("offloads", port.offloads.names().collect::<Vec<_>>())?;
                row.set_item("has_waiting", port.has_waiting)?;
                Ok(row)
            })
            .collect()
    }

    /// Looks at a port: its number, and the descriptors of ring and doorbell, which are the caller's to close. Frames that
    /// `program` wants are captured, or so many of them traced.
    #[pyo3(signature = (port, program, *, snap_bytes = 65535, ring_bytes = 1 << 22, trace_frames = None))]
    fn watch_add(
        &self,
        py: Python<'_>,
        port: &str,
        program: &[u8],
        snap_bytes: u32,
        ring_bytes: u32,
        trace_frames: Option<u32>,
    ) -> PyResult<(u64, RawFd, RawFd)> {
        let filter = Instruction::parse(program).or_raise(py)?;
        let purpose = trace_frames.map_or(Purpose::Capture, Purpose::Trace);
        let params = core::WatchParams { port, purpose, filter: &filter, snap_bytes, ring_bytes };
        let ends = py.detach(|| self.inner.watch_add(&params)).or_raise(py)?;
        Ok((ends.id.0, ends.memory.into_raw_fd(), ends.bell.into_raw_fd()))
    }

    fn watch_remove(&self, py: Python<'_>, watch: u64) -> PyResult<()> {
        py.detach(|| self.inner.watch_remove(core::WatchId(watch))).or_raise(py)
    }

    fn fault_fd(&self) -> RawFd {
        self.inner.fault_fd()
    }

    fn take_faults<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.inner
            .take_faults()
            .into_iter()
            .map(|event| {
                let row = PyDict::new(py);
                row.set_item("port", event.port.0)?;
                row.set_item("name", event.name.as_ref())?;
                row.set_item("part", event.part.label())?;
                row.set_item("rule", event.reason)?;
                row.set_item("text", event.text)?;
                Ok(row)
            })
            .collect()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}
