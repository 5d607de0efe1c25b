//! The measuring loops of `vbnet bench`: one call, one list of samples. All of them let go of the interpreter.

use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

use pyo3::prelude::*;
use vbnet_core::bench::bare::{self, Layout, Transfer};
use vbnet_core::bench::duo::Cores;
use vbnet_core::bench::exchange::{Exchange, Waiting};
use vbnet_core::bench::irq::{self, Ending, Flood};
use vbnet_core::bench::pingpong::{self, Sleep};
use vbnet_core::bench::probe::{self, Placement};
use vbnet_core::bench::{Windows, fastcall, ring, state, timer};
use vbnet_core::guest::nic::{Receiver, Sender};

use crate::errors::{OrRaise, raise_plain};
use crate::nic::NicDriver;
use crate::signals::IntcLevel;

/// How long to measure: a warm-up, then `count` windows.
#[pyclass(frozen, from_py_object, module = "vbnet._native")]
#[derive(Clone, Copy)]
pub(crate) struct BenchWindows {
    inner: Windows,
}

impl BenchWindows {
    pub(crate) fn inner(self) -> Windows {
        self.inner
    }
}

#[pymethods]
impl BenchWindows {
    #[new]
    #[pyo3(signature = (warm_up_seconds, window_seconds, count))]
    fn new(py: Python<'_>, warm_up_seconds: f64, window_seconds: f64, count: u32) -> PyResult<Self> {
        let window = length(py, window_seconds)?;
        if window.is_zero() || !(1..=1000).contains(&count) {
            return Err(raise_plain(
                py,
                "UsageError",
                &format!("take 1 to 1000 windows longer than 0; got {count} of {window_seconds} s"),
            ));
        }
        Ok(Self { inner: Windows { warm_up: length(py, warm_up_seconds)?, window, count } })
    }
}

fn length(py: Python<'_>, seconds: f64) -> PyResult<Duration> {
    if !(0.0..=60.0).contains(&seconds) {
        return Err(raise_plain(py, "UsageError", &format!("a measurement takes 0 to 60 seconds; got {seconds}")));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn cores(pair: (usize, usize)) -> Cores {
    Cores { near: pair.0, far: pair.1 }
}

/// Nanoseconds a cache line takes from the first core to the second and back, one sample every 500 round trips.
#[pyfunction]
#[pyo3(signature = (cores, seconds = 0.05))]
pub(crate) fn bench_probe(py: Python<'_>, cores: (usize, usize), seconds: f64) -> PyResult<Vec<f64>> {
    let seconds = length(py, seconds)?;
    py.detach(|| probe::line_round_trips_ns(self::cores(cores), seconds)).or_raise(py)
}

/// What a cache-line round trip of so many nanoseconds tells about two cores.
#[pyfunction]
pub(crate) fn bench_placement(round_trip_ns: f64) -> &'static str {
    Placement::of(round_trip_ns).label()
}

#[allow(clippy::too_many_arguments)] // keywords of one measurement, each with its own meaning
/// Frames a second through a bare ring of this layout, one sample a window.
#[pyfunction]
#[pyo3(signature = (layout, frame_bytes, cores, windows, slots = 1024, batch = 32, ahead = 0))]
pub(crate) fn bench_bare(
    py: Python<'_>,
    layout: &str,
    frame_bytes: u32,
    cores: (usize, usize),
    windows: BenchWindows,
    slots: u32,
    batch: u32,
    ahead: u32,
) -> PyResult<Vec<f64>> {
    let layout = Layout::named(layout).ok_or_else(|| unknown(py, "layout", layout, &Layout::ALL.map(Layout::label)))?;
    let transfer = Transfer { frame_bytes, slots, batch, ahead };
    py.detach(|| bare::frames_per_second(layout, transfer, self::cores(cores), windows.inner())).or_raise(py)
}

/// Frames a second from a guest process to a host process through vbnet's ring, one sample a window.
#[pyfunction]
#[pyo3(signature = (frame_bytes, cores, windows, slots = 1024, batch = 32))]
pub(crate) fn bench_ring(
    py: Python<'_>,
    frame_bytes: u32,
    cores: (usize, usize),
    windows: BenchWindows,
    slots: u32,
    batch: u32,
) -> PyResult<Vec<f64>> {
    let transfer = Transfer { frame_bytes, slots, batch, ahead: 0 };
    py.detach(|| ring::frames_per_second(transfer, self::cores(cores), windows.inner())).or_raise(py)
}

/// Nanoseconds a frame takes there and back between two spinning processes, one sample a window.
#[pyfunction]
pub(crate) fn bench_polled(
    py: Python<'_>,
    frame_bytes: u32,
    cores: (usize, usize),
    windows: BenchWindows,
) -> PyResult<Vec<f64>> {
    py.detach(|| pingpong::polled_ns(frame_bytes, self::cores(cores), windows.inner())).or_raise(py)
}

/// Nanoseconds one publish into a state record takes, one sample a window.
#[pyfunction]
pub(crate) fn bench_state_publish(
    py: Python<'_>,
    value_bytes: u32,
    with_clock: bool,
    cores: (usize, usize),
    windows: BenchWindows,
) -> PyResult<Vec<f64>> {
    py.detach(|| state::publish_ns(value_bytes, with_clock, self::cores(cores), windows.inner())).or_raise(py)
}

/// Nanoseconds one sample of a state record takes, one a window; `pause` spins apart another process publishes, if any.
#[pyfunction]
pub(crate) fn bench_state_sample(
    py: Python<'_>,
    value_bytes: u32,
    pause: Option<u32>,
    cores: (usize, usize),
    windows: BenchWindows,
) -> PyResult<Vec<f64>> {
    let traffic = pause.map_or(state::Traffic::Still, |pause| state::Traffic::Published { pause });
    py.detach(|| state::sample_ns(value_bytes, traffic, self::cores(cores), windows.inner())).or_raise(py)
}

/// Nanoseconds two sleeping processes take to wake each other in turn, one sample a window.
#[pyfunction]
pub(crate) fn bench_asleep(
    py: Python<'_>,
    way: &str,
    cores: (usize, usize),
    windows: BenchWindows,
) -> PyResult<Vec<f64>> {
    let way = Sleep::named(way).ok_or_else(|| unknown(py, "way to sleep", way, &Sleep::ALL.map(Sleep::label)))?;
    py.detach(|| pingpong::asleep_ns(way, self::cores(cores), windows.inner())).or_raise(py)
}

/// Nanoseconds from a fastcall until its answer, one sample a window.
#[pyfunction]
#[pyo3(signature = (data_bytes, cores, windows, is_asleep = false))]
pub(crate) fn bench_fastcall(
    py: Python<'_>,
    data_bytes: u32,
    cores: (usize, usize),
    windows: BenchWindows,
    is_asleep: bool,
) -> PyResult<Vec<f64>> {
    py.detach(|| fastcall::round_trip_ns(data_bytes, is_asleep, self::cores(cores), windows.inner())).or_raise(py)
}

/// Fastcalls a second of so many slots at once, one sample a window.
#[pyfunction]
pub(crate) fn bench_fastcalls(
    py: Python<'_>,
    callers: u32,
    data_bytes: u32,
    cores: (usize, usize),
    windows: BenchWindows,
) -> PyResult<Vec<f64>> {
    py.detach(|| fastcall::calls_per_second(callers, data_bytes, self::cores(cores), windows.inner())).or_raise(py)
}

/// Nanoseconds it takes to move a timer to a later deadline, one sample a window.
#[pyfunction]
pub(crate) fn bench_timer_arm(py: Python<'_>, cores: (usize, usize), windows: BenchWindows) -> PyResult<Vec<f64>> {
    py.detach(|| timer::arm_ns(self::cores(cores), windows.inner())).or_raise(py)
}

/// Nanoseconds each of a thousand expiries a second came late, with so many timers armed and this lead.
#[pyfunction]
#[pyo3(signature = (cores, windows, armed = 1, lead_ns = 100_000))]
pub(crate) fn bench_timer_late(
    py: Python<'_>,
    cores: (usize, usize),
    windows: BenchWindows,
    armed: u32,
    lead_ns: u64,
) -> PyResult<Vec<f64>> {
    py.detach(|| timer::late_ns(self::cores(cores), windows.inner(), armed, lead_ns)).or_raise(py)
}

/// The same for one thread that sleeps on a timerfd of its own.
#[pyfunction]
pub(crate) fn bench_timer_bare(py: Python<'_>, cores: (usize, usize), windows: BenchWindows) -> PyResult<Vec<f64>> {
    py.detach(|| timer::bare_late_ns(self::cores(cores), windows.inner())).or_raise(py)
}

/// A guest that sends to another of the same process, through whatever the host put between them.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct BenchExchange {
    inner: Mutex<Exchange>,
    /// The halves that do nothing; dropping them would end their rings.
    _idle: Mutex<(Receiver, Sender)>,
}

impl BenchExchange {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        each: impl FnOnce(&mut Exchange) -> vbnet_core::error::Result<T> + Send,
    ) -> PyResult<T> {
        let mut inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => {
                return Err(raise_plain(py, "BusyError", "another thread is measuring with these guests"));
            }
        };
        let exchange = &mut *inner;
        py.detach(move || each(exchange)).or_raise(py)
    }
}

#[pymethods]
impl BenchExchange {
    /// Takes both devices over, for good.
    #[new]
    #[pyo3(signature = (sending, receiving, *, does_stamp = true))]
    fn new(py: Python<'_>, sending: &NicDriver, receiving: &NicDriver, does_stamp: bool) -> PyResult<Self> {
        let (mut sender, idle_receiver) = sending.take_halves(py)?;
        let (idle_sender, receiver) = receiving.take_halves(py)?;
        if !does_stamp {
            sender.stop_stamping();
        }
        Ok(Self { inner: Mutex::new(Exchange { sender, receiver }), _idle: Mutex::new((idle_receiver, idle_sender)) })
    }

    /// Frames a second that arrive, one sample a window; `rare` is sent instead of `frame` once in a thousand.
    #[pyo3(signature = (frame, windows, batch = 32, under_way = 256, rare = None))]
    fn frames_per_second(
        &self,
        py: Python<'_>,
        frame: &[u8],
        windows: BenchWindows,
        batch: u32,
        under_way: u32,
        rare: Option<Vec<u8>>,
    ) -> PyResult<Vec<f64>> {
        let frame = frame.to_vec();
        self.with(py, move |exchange| {
            exchange.frames_per_second(&frame, rare.as_deref(), batch, under_way, windows.inner())
        })
    }

    /// Nanoseconds until a frame arrives that was sent alone, one sample a window.
    #[pyo3(signature = (frame, windows, is_asleep = false))]
    fn round_trip_ns(
        &self,
        py: Python<'_>,
        frame: &[u8],
        windows: BenchWindows,
        is_asleep: bool,
    ) -> PyResult<Vec<f64>> {
        let frame = frame.to_vec();
        let waiting = if is_asleep { Waiting::Asleep } else { Waiting::Polled };
        self.with(py, move |exchange| exchange.round_trip_ns(&frame, waiting, windows.inner()))
    }
}

fn unknown(py: Python<'_>, what: &str, found: &str, known: &[&str]) -> PyErr {
    raise_plain(py, "UsageError", &format!("there is no {what} {found:?}; there are {}", known.join(", ")))
}

/// Nanoseconds of each raise until its handler ran, while `flooders` guests raise signals of priority 0.
#[pyfunction]
#[pyo3(signature = (cores, flooders, is_prioritised, pause_seconds, seconds))]
pub(crate) fn bench_signal_latency(
    py: Python<'_>,
    cores: (usize, usize),
    flooders: u32,
    is_prioritised: bool,
    pause_seconds: f64,
    seconds: f64,
) -> PyResult<Vec<u64>> {
    let (pause, seconds) = (length(py, pause_seconds)?, length(py, seconds)?);
    let flood = Flood { guests: flooders.min(64), is_prioritised };
    py.detach(|| irq::latencies_ns(self::cores(cores), flood, pause, seconds)).or_raise(py)
}

/// Nanoseconds of a raise of what is pending already (`"pending"`), or of an eventfd write (`"eventfd"`).
#[pyfunction]
pub(crate) fn bench_signal_raise(
    py: Python<'_>,
    what: &str,
    cores: (usize, usize),
    windows: BenchWindows,
) -> PyResult<Vec<f64>> {
    let (cores, windows) = (self::cores(cores), windows.inner());
    match what {
        "pending" => py.detach(|| irq::raise_pending_ns(cores, windows)).or_raise(py),
        "eventfd" => py.detach(|| irq::eventfd_write_ns(cores, windows)).or_raise(py),
        _ => Err(raise_plain(py, "UsageError", &format!("a raise is measured as pending or eventfd; got {what:?}"))),
    }
}

/// Doorbells rung for so many raises of so many signals in turn, while whoever serves them sleeps.
#[pyfunction]
pub(crate) fn bench_signal_wakeups(py: Python<'_>, raises: u64, signals: u32) -> PyResult<u64> {
    py.detach(|| irq::wakeups_of(raises, signals.clamp(1, 4096))).or_raise(py)
}

/// What events cost that are ended in shared memory, or trapped: events, handled, wake-ups, traps, system calls, seconds.
#[pyfunction]
pub(crate) fn bench_signal_end(
    py: Python<'_>,
    cores: (usize, usize),
    is_trapped: bool,
    rate: u64,
    seconds: f64,
) -> PyResult<(u64, u64, u64, u64, u64, f64)> {
    let seconds = length(py, seconds)?;
    let ending = if is_trapped { Ending::Trapped } else { Ending::Shared };
    let cost = py.detach(|| irq::end_cost(self::cores(cores), ending, rate, seconds)).or_raise(py)?;
    Ok((cost.events, cost.handled, cost.wakeups, cost.traps, cost.system_calls, cost.seconds))
}

/// Where latencies of Python handlers are taken: a host, flooding guests, and levels for threads of Python to serve.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct BenchRange {
    inner: Mutex<Option<irq::Range>>,
    board: std::sync::Arc<irq::Board>,
}

#[pymethods]
impl BenchRange {
    #[new]
    fn new(py: Python<'_>, cores: (usize, usize), flooders: u32, is_prioritised: bool) -> PyResult<Self> {
        let flood = Flood { guests: flooders.min(64), is_prioritised };
        let range = py.detach(|| irq::Range::new(self::cores(cores), flood)).or_raise(py)?;
        Ok(Self { board: range.board().clone(), inner: Mutex::new(Some(range)) })
    }

    /// A level for one thread to serve.
    fn level(&self, py: Python<'_>, priority: u32) -> PyResult<IntcLevel> {
        self.with(py, |range| range.level(priority)).map(IntcLevel::wrap)
    }

    /// The handler of vector 0 runs.
    fn handled(&self) {
        self.board.handled();
    }

    /// Raises vector 0, one at a time; nanoseconds each took.
    fn pace(&self, py: Python<'_>, pause_seconds: f64, seconds: f64) -> PyResult<Vec<u64>> {
        let (pause, seconds) = (length(py, pause_seconds)?, length(py, seconds)?);
        self.with(py, |range| range.pace(pause, seconds))
    }

    /// Ends the flood.
    fn close(&self, py: Python<'_>) {
        let range = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(move || drop(range));
    }
}

impl BenchRange {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&irq::Range) -> vbnet_core::error::Result<T> + Send,
    ) -> PyResult<T> {
        let done = py.detach(|| {
            let range = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            range.as_ref().map(work)
        });
        done.ok_or_else(|| raise_plain(py, "ClosedError", "this range is closed"))?.or_raise(py)
    }
}
