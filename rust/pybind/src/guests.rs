//! Guests whose work is native: small IP hosts, and traffic.
//!
//! They take both halves of a `NicDriver` and run it on threads of their own; Python only asks and is told.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vbnet_core::error::{Error, Result};
use vbnet_core::guest::imix::Sizes;
use vbnet_core::guest::nic::{Receiver, Sender};
use vbnet_core::guest::row::Row;
use vbnet_core::guest::stack::{StackConfig, StackGuests as Stacks, StackOptions};
use vbnet_core::guest::stack_client::PingRequest;
use vbnet_core::guest::stack_config::StackStats;
use vbnet_core::guest::traffic::arrivals::{self as core_arrivals, RATE_MAX};
use vbnet_core::guest::traffic::frame::Route;
use vbnet_core::guest::traffic::{
    ClosedConfig, ClosedLoop, Interrupted, Reflector, Running, SinkConfig, SinkStats, SourceStats, Streams,
    TrafficConfig, TrafficSink, TrafficSource,
};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::shm::{histogram, labels};

use crate::counters::CounterFile;
use crate::errors::{OrRaise, raise, raise_plain};
use crate::nic::NicDriver;

fn mac_bytes(text: &str) -> Result<[u8; 6]> {
    let mac: MacAddress = text
        .parse()
        .map_err(|_| Error::Usage(format!("{text:?} is no MAC address; write six bytes like 02:00:00:00:00:01")))?;
    Ok(mac.bytes())
}

fn network(text: &str) -> Result<(Ipv4Addr, u8)> {
    text.split_once('/')
        .and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)))
        .filter(|&(_, prefix)| prefix <= 32)
        .ok_or_else(|| Error::Usage(format!("{text:?} is no IPv4 address with prefix; write 10.0.0.1/24")))
}

fn address<A: std::str::FromStr>(text: &str) -> Result<A> {
    text.parse().map_err(|_| Error::Usage(format!("{text:?} is no IP address")))
}

fn time(what: &str, seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| Error::Usage(format!("{what} is 0 or more seconds; got {seconds}")))
}

fn named<'py>(py: Python<'py>, names: &[&str], row: &Row) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    for (index, name) in names.iter().enumerate() {
        fields.set_item(name, row.load(index))?;
    }
    Ok(fields)
}

fn quantiles<'py>(py: Python<'py>, words: &[u64]) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    let count = words.first().copied().unwrap_or_default();
    fields.set_item("count", count)?;
    for (name, quantile) in [("p50_ns", 0.5), ("p90_ns", 0.9), ("p99_ns", 0.99), ("p999_ns", 0.999)] {
        fields.set_item(name, histogram::quantile(words, quantile))?;
    }
    fields.set_item("max_ns", words.get(3).copied().unwrap_or_default())?;
    Ok(fields)
}

/// Small IP hosts, many on one native thread.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct StackGuests {
    inner: Stacks,
}

#[pymethods]
impl StackGuests {
    #[new]
    #[pyo3(signature = (spin = 20e-6))]
    fn new(py: Python<'_>, spin: f64) -> PyResult<Self> {
        let spin = time("spin", spin).or_raise(py)?;
        let inner = Stacks::new(StackOptions { spin, ..StackOptions::default() }).or_raise(py)?;
        Ok(Self { inner })
    }

    /// Runs a host on this device: its number.
    #[pyo3(signature = (name, device, *, mac, ip = None, gateway = None, mtu = 1500, counters = None))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn add(
        &self,
        py: Python<'_>,
        name: &str,
        device: &Bound<'_, NicDriver>,
        mac: &str,
        ip: Option<&str>,
        gateway: Option<&str>,
        mtu: u32,
        counters: Option<&CounterFile>,
    ) -> PyResult<u32> {
        let ipv4 = ip.map(network).transpose().or_raise(py)?;
        let mut config = StackConfig::new(name, mac_bytes(mac).or_raise(py)?, ipv4);
        config.gateway = gateway.map(address).transpose().or_raise(py)?;
        config.mtu = mtu;
        let block = counters
            .map(|file| file.inner.allocate("stack", &labels::text(&[("guest", name)]), StackStats::WORDS))
            .transpose()
            .or_raise(py)?;
        let (sender, receiver) = device.get().take_halves(py)?;
        py.detach(|| self.inner.add(config, sender, receiver, block)).or_raise(py)
    }

    fn remove(&self, py: Python<'_>, guest: u32) -> PyResult<()> {
        py.detach(|| self.inner.remove(guest)).or_raise(py)
    }

    /// Takes a host's device away: when this returns nothing of it is used. The host waits for another.
    fn detach(&self, py: Python<'_>, guest: u32) -> PyResult<()> {
        py.detach(|| self.inner.detach(guest)).or_raise(py)
    }

    /// Gives a host another device, instead of the one it may have.
    fn attach(&self, py: Python<'_>, guest: u32, device: &Bound<'_, NicDriver>) -> PyResult<()> {
        let (sender, receiver) = device.get().take_halves(py)?;
        py.detach(|| self.inner.attach(guest, sender, receiver)).or_raise(py)
    }

    fn set_link(&self, py: Python<'_>, guest: u32, is_up: bool) -> PyResult<()> {
        py.detach(|| self.inner.set_link(guest, is_up)).or_raise(py)
    }

    fn stats<'py>(&self, py: Python<'py>, guest: u32) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.inner.stats(guest).or_raise(py)?;
        let fields = PyDict::new(py);
        for (name, value) in StackStats::NAMES.iter().zip(stats.words()) {
            fields.set_item(name, value)?;
        }
        Ok(fields)
    }

    fn guests(&self) -> Vec<(u32, String)> {
        self.inner.guests()
    }

    /// Pings from one of the hosts: round trips in seconds, `None` for each that got no reply in time.
    #[pyo3(signature = (guest, to, count = 4, interval = 1.0, timeout = 1.0, size = 56))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn ping(
        &self,
        py: Python<'_>,
        guest: u32,
        to: &str,
        count: u32,
        interval: f64,
        timeout: f64,
        size: usize,
    ) -> PyResult<Vec<Option<f64>>> {
        let request = PingRequest {
            to: address::<IpAddr>(to).or_raise(py)?,
            count,
            interval: time("interval", interval).or_raise(py)?,
            timeout: time("timeout", timeout).or_raise(py)?,
            bytes: size,
        };
        let report = py.detach(|| self.inner.ping(guest, request)).or_raise(py)?;
        Ok(report.rtts_ns.into_iter().map(|rtt| rtt.map(|ns| ns as f64 / 1e9)).collect())
    }

    /// Readable while `take_faults` has something.
    fn fault_fd(&self) -> RawFd {
        self.inner.fault_bell().raw()
    }

    /// Hosts that lost their device, or ended, without being asked to: `guest`, `name`, `rule`, `text`.
    fn take_faults<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.inner
            .take_faults()
            .into_iter()
            .map(|fault| {
                let row = PyDict::new(py);
                row.set_item("guest", fault.guest)?;
                row.set_item("name", fault.name)?;
                row.set_item("rule", fault.reason)?;
                row.set_item("text", fault.message)?;
                Ok(row)
            })
            .collect()
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.close()).or_raise(py)
    }
}

/// What a generator is asked to send.
fn sizes(py: Python<'_>, size: &Bound<'_, PyAny>) -> PyResult<Sizes> {
    if let Ok(number) = size.extract::<u32>() {
        return Ok(Sizes::Fixed(number));
    }
    if let Ok(list) = size.extract::<Vec<u32>>() {
        return Ok(Sizes::List(list));
    }
    match size.extract::<String>().as_deref() {
        Ok("imix") => Ok(Sizes::Imix),
        _ => Err(raise_plain(py, "UsageError", "a size is a number of bytes, a list of them, or \"imix\"")),
    }
}

fn frames_per_second(rate: f64) -> Result<u64> {
    if (1.0..=RATE_MAX as f64).contains(&rate) {
        return Ok(rate.round() as u64);
    }
    Err(Error::Usage(format!("a rate is 1 to {RATE_MAX} frames a second; got {rate}")))
}

/// When frames are due.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Arrivals {
    inner: core_arrivals::Arrivals,
}

impl Arrivals {
    fn checked(py: Python<'_>, inner: core_arrivals::Arrivals) -> PyResult<Self> {
        inner.check().or_raise(py)?;
        Ok(Self { inner })
    }
}

#[pymethods]
impl Arrivals {
    #[staticmethod]
    const fn flood() -> Self {
        Self { inner: core_arrivals::Arrivals::Flood }
    }

    #[staticmethod]
    fn constant(py: Python<'_>, rate: f64) -> PyResult<Self> {
        let rate = frames_per_second(rate).or_raise(py)?;
        Self::checked(py, core_arrivals::Arrivals::Constant { rate })
    }

    #[staticmethod]
    fn ramp(py: Python<'_>, first: f64, last: f64, over: f64) -> PyResult<Self> {
        let (from, to) = (frames_per_second(first).or_raise(py)?, frames_per_second(last).or_raise(py)?);
        Self::checked(py, core_arrivals::Arrivals::Ramp { from, to, over: time("a ramp's time", over).or_raise(py)? })
    }

    #[staticmethod]
    fn burst(py: Python<'_>, frames: u32, every: f64) -> PyResult<Self> {
        let every = time("the time from burst to burst", every).or_raise(py)?;
        Self::checked(py, core_arrivals::Arrivals::Burst { frames, every })
    }

    #[staticmethod]
    fn poisson(py: Python<'_>, rate: f64, seed: u64) -> PyResult<Self> {
        let rate = frames_per_second(rate).or_raise(py)?;
        Self::checked(py, core_arrivals::Arrivals::Poisson { rate, seed })
    }

    #[staticmethod]
    fn on_off(py: Python<'_>, rate: f64, on: f64, off: f64) -> PyResult<Self> {
        let rate = frames_per_second(rate).or_raise(py)?;
        let (on, off) = (time("the time on", on).or_raise(py)?, time("the time off", off).or_raise(py)?);
        Self::checked(py, core_arrivals::Arrivals::OnOff { rate, on, off })
    }

    /// Nanoseconds from each frame to the next, over and over.
    #[staticmethod]
    fn gaps(py: Python<'_>, gaps: Vec<u64>) -> PyResult<Self> {
        Self::checked(py, core_arrivals::Arrivals::Gaps(gaps.into()))
    }
}

/// One half of a device while no thread has it.
type Half<T> = Arc<Mutex<Option<T>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A traffic generator and sink on one device, each on a native thread; or, instead of both, a reflector or a closed loop.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct TrafficGuest {
    mac: [u8; 6],
    sender: Half<Sender>,
    receiver: Half<Receiver>,
    /// What was being sent, and the streams that were known, when there was a device last.
    left: Half<Interrupted>,
    known: Half<Streams>,
    sending: Mutex<Option<Running>>,
    receiving: Mutex<Option<Running>>,
    sent: Arc<Row>,
    received: Arc<Row>,
}

impl TrafficGuest {
    fn take<T>(py: Python<'_>, half: &Half<T>) -> PyResult<T> {
        locked(half)
            .take()
            .ok_or_else(|| raise_plain(py, "BusyError", "this guest is busy already, or was closed; stop it first"))
    }

    /// Ends one of the threads, which puts back what it had.
    fn end(py: Python<'_>, thread: &Mutex<Option<Running>>) -> PyResult<()> {
        let running = locked(thread).take();
        running.map_or(Ok(()), |mut running| py.detach(|| running.stop())).or_raise(py)
    }

    /// Nothing of what was sent or known waits for another device.
    fn forget(&self) {
        locked(&self.left).take();
        locked(&self.known).take();
    }

    /// Sends on a thread of its own, which puts back what it had when it ends.
    fn send(&self, mut source: TrafficSource) -> Result<()> {
        let (half, rest) = (self.sender.clone(), self.left.clone());
        let work = move |stop: &AtomicBool| {
            let outcome = source.run(stop);
            let (sender, left) = source.interrupt();
            *locked(&rest) = Some(left);
            *locked(&half) = Some(sender);
            outcome
        };
        *locked(&self.sending) = Some(Running::start("vbnet-source", work)?);
        Ok(())
    }

    /// Counts what arrives on a thread of its own, which puts back what it had when it ends.
    fn receive(&self, py: Python<'_>, config: SinkConfig, streams: Streams) -> PyResult<()> {
        let receiver = Self::take(py, &self.receiver)?;
        let mut sink = TrafficSink::new(receiver, config, self.received.clone()).knowing(streams);
        let (half, known) = (self.receiver.clone(), self.known.clone());
        let work = move |stop: &AtomicBool| {
            let outcome = sink.run(stop);
            let (receiver, streams) = sink.interrupt();
            *locked(&known) = Some(streams);
            *locked(&half) = Some(receiver);
            outcome
        };
        *locked(&self.receiving) = Some(Running::start("vbnet-sink", work).or_raise(py)?);
        Ok(())
    }

    fn routes(&self, py: Python<'_>, to: &Bound<'_, PyAny>, stream: u32) -> PyResult<Vec<Route>> {
        let receivers = match to.extract::<String>() {
            Ok(one) => vec![one],
            Err(_) => to.extract::<Vec<String>>()?,
        };
        let route = |to: String| Ok(Route { to: mac_bytes(&to)?, from: self.mac, stream });
        receivers.into_iter().map(route).collect::<Result<_>>().or_raise(py)
    }
}

fn positive(py: Python<'_>, batch: u32) -> PyResult<u32> {
    if batch == 0 {
        return Err(raise_plain(py, "UsageError", "a batch is one frame at least; got 0"));
    }
    Ok(batch)
}

/// A moment of the monotonic clock, in seconds.
fn moment(py: Python<'_>, at: Option<f64>) -> PyResult<Option<u64>> {
    let at = at.map(|at| time("a moment", at)).transpose().or_raise(py)?;
    Ok(at.map(|at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)))
}

#[pymethods]
impl TrafficGuest {
    #[new]
    #[pyo3(signature = (device, *, mac, counters = None, name = ""))]
    fn new(
        py: Python<'_>,
        device: &Bound<'_, NicDriver>,
        mac: &str,
        counters: Option<&CounterFile>,
        name: &str,
    ) -> PyResult<Self> {
        let mac = mac_bytes(mac).or_raise(py)?;
        let row = |kind, words| {
            let block =
                counters.map(|file| file.inner.allocate(kind, &labels::text(&[("guest", name)]), words)).transpose()?;
            Row::new(block, words).map(Arc::new)
        };
        let sent = row("traffic_source", SourceStats::WORDS).or_raise(py)?;
        let received = row("traffic_sink", SinkStats::WORDS).or_raise(py)?;
        let (sender, receiver) = device.get().take_halves(py)?;
        let guest = Self {
            mac,
            sender: Arc::new(Mutex::new(Some(sender))),
            receiver: Arc::new(Mutex::new(Some(receiver))),
            left: Arc::default(),
            known: Arc::default(),
            sending: Mutex::new(None),
            receiving: Mutex::new(None),
            sent,
            received,
        };
        guest.listen(py, SinkConfig::default().batch, false)?;
        Ok(guest)
    }

    /// Begins to send; `BusyError` while an earlier start still sends.
    #[pyo3(signature = (to, *, size, arrivals = None, duration = None, frames = None, stream = 0, at = None, recorded = None, batch = 32, does_copy = false))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn start(
        &self,
        py: Python<'_>,
        to: &Bound<'_, PyAny>,
        size: &Bound<'_, PyAny>,
        arrivals: Option<&Arrivals>,
        duration: Option<f64>,
        frames: Option<u64>,
        stream: u32,
        at: Option<f64>,
        recorded: Option<Vec<Vec<u8>>>,
        batch: u32,
        does_copy: bool,
    ) -> PyResult<()> {
        let routes = self.routes(py, to, stream)?;
        let Some(&first) = routes.first() else {
            return Err(raise_plain(py, "UsageError", "traffic goes to one receiver at least; got an empty list"));
        };
        let config = TrafficConfig {
            routes,
            sizes: sizes(py, size)?,
            arrivals: arrivals.map_or(core_arrivals::Arrivals::Flood, |arrivals| arrivals.inner.clone()),
            start_ns: moment(py, at)?,
            frames,
            duration: duration.map(|seconds| time("duration", seconds)).transpose().or_raise(py)?,
            recorded: recorded.map(|frames| frames.into_iter().map(Vec::into_boxed_slice).collect()),
            batch: positive(py, batch)?,
            does_copy,
            ..TrafficConfig::new(first, 64)
        };
        let sender = Self::take(py, &self.sender)?;
        // The core checks too, but would keep the half it refuses.
        if let Err(error) = config.cycle(&sender) {
            *locked(&self.sender) = Some(sender);
            return Err(raise(py, error));
        }
        TrafficSource::new(sender, config, self.sent.clone()).and_then(|source| self.send(source)).or_raise(py)
    }

    /// Begins to ask a reflector, so many requests under way; `BusyError` while this guest sends or reflects.
    #[pyo3(signature = (to, *, size, window = 1, timeout = 1.0, duration = None, stream = 0, at = None))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn ask(
        &self,
        py: Python<'_>,
        to: &str,
        size: &Bound<'_, PyAny>,
        window: u32,
        timeout: f64,
        duration: Option<f64>,
        stream: u32,
        at: Option<f64>,
    ) -> PyResult<()> {
        let config = ClosedConfig {
            route: Route { to: mac_bytes(to).or_raise(py)?, from: self.mac, stream },
            sizes: sizes(py, size)?,
            window,
            timeout: time("timeout", timeout).or_raise(py)?,
            start_ns: moment(py, at)?,
            duration: duration.map(|seconds| time("duration", seconds)).transpose().or_raise(py)?,
            spin: SinkConfig::default().spin,
        };
        let sender = Self::take(py, &self.sender)?;
        if let Err(error) = config.check(&sender) {
            *locked(&self.sender) = Some(sender);
            return Err(raise(py, error));
        }
        Self::end(py, &self.receiving)?;
        let receiver = Self::take(py, &self.receiver)?;
        let (sent, received) = (self.sent.clone(), self.received.clone());
        let mut asking = ClosedLoop::new(sender, receiver, config, sent, received).or_raise(py)?;
        self.forget();
        let halves = (self.sender.clone(), self.receiver.clone());
        let work = move |stop: &AtomicBool| {
            let outcome = asking.run(stop);
            let (sender, receiver) = asking.into_halves();
            *locked(&halves.1) = Some(receiver);
            *locked(&halves.0) = Some(sender);
            outcome
        };
        *locked(&self.sending) = Some(Running::start("vbnet-asking", work).or_raise(py)?);
        Ok(())
    }

    /// Sends every test frame back from now on, instead of counting it; `BusyError` while this guest sends.
    fn reflect(&self, py: Python<'_>) -> PyResult<()> {
        let sender = Self::take(py, &self.sender)?;
        Self::end(py, &self.receiving)?;
        let receiver = Self::take(py, &self.receiver)?;
        let row = Arc::new(Row::in_memory(Reflector::WORDS));
        let mut reflector = Reflector::new(sender, receiver, false, row).station(self.mac);
        self.forget();
        let halves = (self.sender.clone(), self.receiver.clone());
        let work = move |stop: &AtomicBool| {
            let outcome = reflector.run(stop);
            let (sender, receiver) = reflector.into_halves();
            *locked(&halves.1) = Some(receiver);
            *locked(&halves.0) = Some(sender);
            outcome
        };
        *locked(&self.receiving) = Some(Running::start("vbnet-reflector", work).or_raise(py)?);
        Ok(())
    }

    /// Counts what arrives from now on, knowing no stream: what a new guest does.
    #[pyo3(signature = (batch = 32, *, does_copy = false))]
    fn listen(&self, py: Python<'_>, batch: u32, does_copy: bool) -> PyResult<()> {
        let config =
            SinkConfig { batch: positive(py, batch)?, does_copy, mac: Some(self.mac), ..SinkConfig::default() };
        Self::end(py, &self.receiving)?;
        self.receive(py, config, Streams::default())
    }

    /// Ends what is being sent.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let ended = Self::end(py, &self.sending);
        locked(&self.left).take();
        ended
    }

    #[getter]
    fn is_sending(&self) -> bool {
        locked(&self.sending).as_ref().is_some_and(|running| !running.has_ended())
    }

    /// Everything counted so far: `sent`, `received` and `latency`, each by name.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let fields = PyDict::new(py);
        fields.set_item("sent", named(py, &SourceStats::NAMES, &self.sent)?)?;
        fields.set_item("received", named(py, &SinkStats::NAMES, &self.received)?)?;
        fields.set_item("latency", quantiles(py, &SinkStats::latency(&self.received))?)?;
        Ok(fields)
    }

    /// Takes another device into use after `detach` or `close`, because the one before left the bus; counts go on. After
    /// `detach` so does what was being sent, and what arrives is of the streams that were known.
    fn attach(&self, py: Python<'_>, device: &Bound<'_, NicDriver>) -> PyResult<()> {
        if locked(&self.sender).is_some() || locked(&self.receiving).is_some() {
            return Err(raise_plain(py, "BusyError", "this guest has a device; close it first"));
        }
        let (sender, receiver) = device.get().take_halves(py)?;
        *locked(&self.receiver) = Some(receiver);
        let config = SinkConfig { mac: Some(self.mac), ..SinkConfig::default() };
        let (known, left) = (locked(&self.known).take(), locked(&self.left).clone());
        self.receive(py, config, known.unwrap_or_default())?;
        let Some(left) = left else {
            *locked(&self.sender) = Some(sender);
            return Ok(());
        };
        let sent = TrafficSource::resume(left, sender, self.sent.clone()).and_then(|source| self.send(source));
        if sent.is_err() {
            self.detach(py);
        }
        sent.or_raise(py)
    }

    /// Ends both threads, and forgets what they did. A device whose host is gone ends quietly.
    fn close(&self, py: Python<'_>) {
        self.detach(py);
        self.forget();
    }

    /// Ends both threads: when this returns nothing of the device is used. What is asked of a reflector, or reflected, is
    /// over; what is sent, and what is known of arrivals, waits for another device.
    fn detach(&self, py: Python<'_>) {
        let (sending, receiving) = (locked(&self.sending).take(), locked(&self.receiving).take());
        py.detach(|| {
            for mut running in [sending, receiving].into_iter().flatten() {
                let _ = running.stop();
            }
        });
        locked(&self.sender).take();
        locked(&self.receiver).take();
    }
}
