//! The driver half of a network card of any model, as Python holds it.
//!
//! Sending and receiving lock separately: one thread may wait for frames while another sends. Two threads doing the
//! same thing at once get `BusyError` instead of waiting for each other under the interpreter's lock.

use std::ffi::c_int;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::buffer::PyBuffer;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use vbnet_core::guest::nic::{self as core, Stage};
use vbnet_core::net::grant::Grant;
use vbnet_core::net::offload::{NO_REQUEST, OFFLOAD_HEADER_BYTES};
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::region;

use crate::errors::{OrRaise, raise_plain};
use crate::memory::fill_buffer;
use crate::pieces::{self, HeldPiece, NicGrant, asked};
use crate::turnstile::{Inside, Turnstile};

/// What one half of a device has done so far.
#[pyclass(frozen, get_all, module = "vbnet._native")]
pub(crate) struct NicTotals {
    frames: u64,
    bytes: u64,
    kicks: u64,
    sleeps: u64,
}

impl From<core::Totals> for NicTotals {
    fn from(totals: core::Totals) -> Self {
        Self { frames: totals.frames, bytes: totals.bytes, kicks: totals.kicks, sleeps: totals.sleeps }
    }
}

/// The receiving half and what views of it need to come back.
struct Receiving {
    half: Turnstile<Option<core::Receiver>>,
    /// Buffers whose views ended while somebody else was receiving.
    returned: Mutex<Vec<u32>>,
    /// Wakes a receiver that waits without a single buffer posted.
    wake: Mutex<Option<Wake>>,
}

impl Receiving {
    fn give_back(&self, py: Python<'_>, buffer: u32) {
        if let Some(mut half) = self.half.enter(py)
            && let Some(receiver) = half.as_mut()
        {
            // A doorbell that fails here fails for the next receive too, and is reported there.
            let _ = receiver.give_back(buffer);
            return;
        }
        self.returned.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        if let Some(wake) = self.wake.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let _ = wake.ring();
        }
    }

    fn collect(&self, receiver: &mut core::Receiver) -> vbnet_core::error::Result<()> {
        let returned = std::mem::take(&mut *self.returned.lock().unwrap_or_else(PoisonError::into_inner));
        returned.into_iter().try_for_each(|buffer| receiver.give_back(buffer))
    }
}

/// Where somebody waits for one half of a driver, and what wakes them from here.
pub(crate) struct Wake {
    /// Readable when the half has something, or was woken.
    pub(crate) waited: Doorbell,
    /// Another doorbell that makes it readable, where it cannot be rung itself.
    pub(crate) rung: Option<Doorbell>,
}

impl Wake {
    fn ring(&self) -> vbnet_core::error::Result<()> {
        self.rung.as_ref().unwrap_or(&self.waited).ring()
    }
}

impl From<Doorbell> for Wake {
    fn from(waited: Doorbell) -> Self {
        Self { waited, rung: None }
    }
}

/// The driver half of a network card. Each model has a class of its own, which makes it.
#[pyclass(subclass, frozen, module = "vbnet._native")]
pub(crate) struct NicDriver {
    ram: Arc<region::Ram>,
    mtu_max: u32,
    grant: Grant,
    sending: Arc<Turnstile<Option<core::Sender>>>,
    receiving: Arc<Receiving>,
    gone: AtomicBool,
    closed: Arc<AtomicBool>,
    /// Wakes a sender that waits for room.
    wake: Mutex<Option<Wake>>,
    poll_ns: AtomicU64,
    /// A kick waits for an answer: the interpreter is let go of meanwhile.
    does_trap: bool,
}

/// Shows the host what was staged, outside the interpreter if that waits for somebody.
#[inline]
fn flush(py: Python<'_>, sender: &mut core::Sender, does_trap: bool) -> PyResult<()> {
    if does_trap { py.detach(|| sender.flush()) } else { sender.flush() }.or_raise(py)
}

fn in_use(py: Python<'_>, what: &str) -> PyErr {
    raise_plain(py, "BusyError", &format!("another thread is {what} on this device; use one thread for each direction"))
}

/// Why a half is not there although the device is open.
fn lent(py: Python<'_>) -> PyErr {
    raise_plain(
        py,
        "BusyError",
        "this half of the device is lent: commit or cancel the claim, or ask the native guest that runs it",
    )
}

#[inline]
fn held<'a, T>(py: Python<'_>, half: &'a Turnstile<Option<T>>, what: &str) -> PyResult<Inside<'a, Option<T>>> {
    half.enter(py).ok_or_else(|| in_use(py, what))
}

fn seconds(py: Python<'_>, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| {
        raise_plain(py, "UsageError", &format!("a timeout is 0 or more seconds, or None to wait; got {value}"))
    })
}

/// How long a call may wait. The clock is read only once there is something to wait for.
struct Patience {
    limit: Option<Duration>,
    end: Option<Instant>,
}

impl Patience {
    fn new(py: Python<'_>, timeout: Option<f64>) -> PyResult<Self> {
        let limit =
            timeout.map(|value| if value == 0.0 { Ok(Duration::ZERO) } else { seconds(py, value) }).transpose()?;
        Ok(Self { limit, end: None })
    }

    /// Time left; `None` waits for ever.
    fn left(&mut self) -> Option<Duration> {
        let limit = self.limit?;
        let now = Instant::now();
        Some(self.end.get_or_insert_with(|| now + limit).saturating_duration_since(now))
    }

    fn is_over(&mut self) -> bool {
        match self.limit {
            None => false,
            Some(Duration::ZERO) => true,
            Some(_) => self.left() == Some(Duration::ZERO),
        }
    }
}

impl NicDriver {
    /// The two halves of a driver in this memory, whose buffers are made for packets of `mtu_max` bytes.
    pub(crate) fn new(
        ram: Arc<region::Ram>,
        mtu_max: u32,
        sender: impl Into<core::Sender>,
        receiver: impl Into<core::Receiver>,
    ) -> Self {
        let sender = sender.into();
        Self {
            ram,
            mtu_max,
            grant: *sender.grant(),
            sending: Arc::new(Turnstile::new(Some(sender))),
            receiving: Arc::new(Receiving {
                half: Turnstile::new(Some(receiver.into())),
                returned: Mutex::default(),
                wake: Mutex::default(),
            }),
            gone: AtomicBool::new(false),
            closed: Arc::default(),
            wake: Mutex::default(),
            poll_ns: AtomicU64::new(0),
            does_trap: false,
        }
    }

    /// A driver whose kicks wait for an answer.
    pub(crate) fn trapping(self) -> Self {
        Self { does_trap: true, ..self }
    }

    /// What wakes who waits for room, and who waits for frames; the descriptors become ours.
    pub(crate) fn set_wakes(&self, sender: impl Into<Wake>, receiver: impl Into<Wake>) {
        *self.wake.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.into());
        *self.receiving.wake.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver.into());
    }

    /// Does something with both halves, which must be here.
    pub(crate) fn with_halves<T>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut core::Sender, &mut core::Receiver) -> T,
    ) -> PyResult<T> {
        self.alive(py)?;
        let mut sending = held(py, &self.sending, "sending")?;
        let mut receiving = held(py, &self.receiving.half, "receiving")?;
        match (sending.as_mut(), receiving.as_mut()) {
            (Some(sender), Some(receiver)) => Ok(work(sender, receiver)),
            _ => Err(lent(py)),
        }
    }

    fn alive(&self, py: Python<'_>) -> PyResult<()> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(raise_plain(py, "PeerGone", "the device or its host node has ended; its frames are lost"));
        }
        if self.closed.load(Ordering::Relaxed) {
            return Err(raise_plain(py, "ClosedError", "this device is closed"));
        }
        Ok(())
    }

    /// Whoever waits looks again at whether the device is alive.
    fn wake_all(&self) {
        for wake in [&self.wake, &self.receiving.wake] {
            if let Some(wake) = wake.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                let _ = wake.ring();
            }
        }
    }

    /// The descriptor to wait for outside. It stays open for as long as this object lives, so that an event loop that
    /// still waits for it when the device is closed hears of that, and can take it out of its set.
    fn waited_for(&self, py: Python<'_>, wake: &Mutex<Option<Wake>>) -> PyResult<RawFd> {
        self.alive(py)?;
        let wake = wake.lock().unwrap_or_else(PoisonError::into_inner);
        wake.as_ref()
            .map(|wake| wake.waited.raw())
            .ok_or_else(|| raise_plain(py, "UsageError", "connect the device first"))
    }

    fn poll(&self) -> Duration {
        Duration::from_nanos(self.poll_ns.load(Ordering::Relaxed))
    }

    /// Hands both halves to native code that runs the device from now on.
    pub(crate) fn take_halves(&self, py: Python<'_>) -> PyResult<(core::Sender, core::Receiver)> {
        let mut sending = held(py, &self.sending, "sending")?;
        let mut receiving = held(py, &self.receiving.half, "receiving")?;
        match (sending.take(), receiving.take()) {
            (Some(sender), Some(receiver)) => Ok((sender, receiver)),
            (sender, receiver) => {
                *sending = sender;
                *receiving = receiver;
                Err(lent(py))
            }
        }
    }

    /// Sends frames, `expected` or more, waiting for room outside the interpreter; how many that were until the time was up.
    fn send_all<'py>(
        &self,
        py: Python<'py>,
        sender: &mut core::Sender,
        expected: usize,
        mut frames: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
        patience: &mut Patience,
    ) -> PyResult<usize> {
        let mut sent = 0;
        let mut waiting = None;
        let outcome = loop {
            let expected = expected.saturating_sub(sent).clamp(1, core::BURST_MAX as usize) as u32;
            let staged = sender.burst(expected, All { frames: &mut frames, waiting: &mut waiting, sent: &mut sent });
            flush(py, sender, self.does_trap)?;
            match staged {
                Err(error) => break Err(error),
                Ok(()) if waiting.is_none() => break Ok(()),
                Ok(()) => {}
            }
            if !self.wait_room(py, sender, patience)? {
                break Ok(());
            }
        };
        outcome.map(|()| sent)
    }

    /// Waits for room outside the interpreter. `false`: the time is up.
    fn wait_room(&self, py: Python<'_>, sender: &mut core::Sender, patience: &mut Patience) -> PyResult<bool> {
        if patience.is_over() {
            return Ok(false);
        }
        let left = patience.left();
        py.detach(|| sender.wait(left)).or_raise(py)?;
        py.check_signals()?;
        self.alive(py)?;
        Ok(true)
    }

    /// Waits for frames outside the interpreter. `false`: the time is up.
    fn wait_frames(&self, py: Python<'_>, receiver: &mut core::Receiver, patience: &mut Patience) -> PyResult<bool> {
        if patience.is_over() {
            return Ok(false);
        }
        let poll = self.poll();
        let left = patience.left();
        py.detach(|| receiver.wait(poll, left)).or_raise(py)?;
        py.check_signals()?;
        self.alive(py)?;
        self.receiving.collect(receiver).or_raise(py)?;
        Ok(true)
    }
}

/// Stages one frame from any object with bytes in it. `false`: no room now.
#[inline(always)]
fn stage(burst: &mut impl Stage, frame: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Ok(bytes) = frame.cast::<PyBytes>() {
        return burst.stage(bytes.as_bytes()).or_raise(frame.py());
    }
    stage_buffer(burst, frame)
}

#[cold]
fn stage_buffer(burst: &mut impl Stage, frame: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = frame.py();
    let buffer = PyBuffer::<u8>::get(frame)?;
    let length = buffer.len_bytes();
    let mut copied = Ok(());
    let staged = burst.stage_with(length, |room| copied = buffer.copy_to_slice(py, room)).or_raise(py)?;
    copied?;
    Ok(staged)
}

/// Stages frames until there is no room for the next, which then waits.
struct All<'a, 'py, I> {
    frames: &'a mut I,
    waiting: &'a mut Option<PyResult<Bound<'py, PyAny>>>,
    sent: &'a mut usize,
}

impl<'py, I: Iterator<Item = PyResult<Bound<'py, PyAny>>>> core::Load for All<'_, 'py, I> {
    type Answer = PyResult<()>;

    #[inline(always)]
    fn load(self, burst: &mut impl Stage) -> PyResult<()> {
        while let Some(frame) = self.waiting.take().or_else(|| self.frames.next()) {
            let frame = frame?;
            if !stage(burst, &frame)? {
                *self.waiting = Some(Ok(frame));
                break;
            }
            *self.sent += 1;
        }
        Ok(())
    }
}

/// Stages one frame.
struct One<'a, 'py>(&'a Bound<'py, PyAny>);

impl core::Load for One<'_, '_> {
    type Answer = PyResult<bool>;

    #[inline(always)]
    fn load(self, burst: &mut impl Stage) -> PyResult<bool> {
        stage(burst, self.0)
    }
}

#[pymethods]
impl NicDriver {
    /// Seconds to look for frames before going to sleep.
    #[getter]
    fn poll_seconds(&self) -> f64 {
        self.poll().as_secs_f64()
    }

    #[pyo3(name = "set_poll_seconds")]
    fn set_poll(&self, py: Python<'_>, value: f64) -> PyResult<()> {
        self.alive(py)?;
        let poll = seconds(py, value)?;
        self.poll_ns.store(u64::try_from(poll.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(())
    }

    fn set_mtu(&self, py: Python<'_>, mtu: u32) -> PyResult<()> {
        self.alive(py)?;
        if !(core::MTU_MIN..=self.mtu_max).contains(&mtu) {
            return Err(raise_plain(
                py,
                "UsageError",
                &format!("the MTU can be {} to {} here; got {mtu}", core::MTU_MIN, self.mtu_max),
            ));
        }
        held(py, &self.sending, "sending")?.as_mut().ok_or_else(|| lent(py))?.set_mtu(mtu);
        Ok(())
    }

    #[pyo3(signature = (frames, timeout = None))]
    fn send(&self, py: Python<'_>, frames: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<usize> {
        self.alive(py)?;
        let mut guard = held(py, &self.sending, "sending")?;
        let sender = guard.as_mut().ok_or_else(|| lent(py))?;
        sender.expect();
        let mut patience = Patience::new(py, timeout)?;
        if let Ok(list) = frames.cast::<PyList>() {
            return self.send_all(py, sender, list.len(), list.iter().map(Ok), &mut patience);
        }
        self.send_all(py, sender, 1, frames.try_iter()?, &mut patience)
    }

    #[pyo3(signature = (frame, timeout = None))]
    fn send_frame(&self, py: Python<'_>, frame: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<bool> {
        self.alive(py)?;
        let mut guard = held(py, &self.sending, "sending")?;
        let sender = guard.as_mut().ok_or_else(|| lent(py))?;
        sender.expect();
        let mut patience = Patience::new(py, timeout)?;
        while !sender.burst(1, One(frame))? {
            if !self.wait_room(py, sender, &mut patience)? {
                return Ok(false);
            }
        }
        flush(py, sender, self.does_trap)?;
        Ok(true)
    }

    #[pyo3(signature = (length, timeout = None))]
    fn claim(&self, py: Python<'_>, length: u32, timeout: Option<f64>) -> PyResult<Option<FrameClaim>> {
        self.alive(py)?;
        let mut guard = held(py, &self.sending, "sending")?;
        let sender = guard.as_mut().ok_or_else(|| lent(py))?;
        let mut patience = Patience::new(py, timeout)?;
        loop {
            if let Some(offset) = sender.claim(length as usize).or_raise(py)? {
                // The half goes with the claim: nothing else can be staged before it is committed or cancelled.
                let sender = guard.take();
                return Ok(Some(FrameClaim {
                    ram: self.ram.clone(),
                    sending: self.sending.clone(),
                    closed: self.closed.clone(),
                    does_trap: self.does_trap,
                    offset,
                    length,
                    sender: Mutex::new(sender),
                }));
            }
            if !self.wait_room(py, sender, &mut patience)? {
                return Ok(None);
            }
        }
    }

    #[pyo3(signature = (max = 32, timeout = None))]
    fn recv<'py>(&self, py: Python<'py>, max: u32, timeout: Option<f64>) -> PyResult<Bound<'py, PyList>> {
        self.alive(py)?;
        let mut guard = held(py, &self.receiving.half, "receiving")?;
        let receiver = guard.as_mut().ok_or_else(|| lent(py))?;
        let mut frames = Vec::with_capacity(max.min(256) as usize);
        let mut patience = Patience::new(py, timeout)?;
        loop {
            receiver.receive(max, |frame| frames.push(PyBytes::new(py, frame))).or_raise(py)?;
            if !frames.is_empty() {
                break;
            }
            if !self.wait_frames(py, receiver, &mut patience)? {
                break;
            }
        }
        PyList::new(py, frames)
    }

    #[pyo3(signature = (timeout = None))]
    fn recv_frame<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        self.alive(py)?;
        let mut guard = held(py, &self.receiving.half, "receiving")?;
        let receiver = guard.as_mut().ok_or_else(|| lent(py))?;
        let mut found = None;
        let mut patience = Patience::new(py, timeout)?;
        loop {
            receiver.receive(1, |frame| found = Some(PyBytes::new(py, frame))).or_raise(py)?;
            if found.is_some() {
                return Ok(found);
            }
            if !self.wait_frames(py, receiver, &mut patience)? {
                return Ok(None);
            }
        }
    }

    #[pyo3(signature = (max = 32, timeout = None))]
    fn recv_views(&self, py: Python<'_>, max: u32, timeout: Option<f64>) -> PyResult<Vec<FrameView>> {
        self.alive(py)?;
        let mut guard = held(py, &self.receiving.half, "receiving")?;
        let receiver = guard.as_mut().ok_or_else(|| lent(py))?;
        let mut patience = Patience::new(py, timeout)?;
        let mut frames = Vec::new();
        loop {
            self.receiving.collect(receiver).or_raise(py)?;
            receiver.hold(max, &mut frames).or_raise(py)?;
            if !frames.is_empty() || !self.wait_frames(py, receiver, &mut patience)? {
                break;
            }
        }
        Ok(frames
            .into_iter()
            .map(|frame| FrameView {
                ram: self.ram.clone(),
                receiving: self.receiving.clone(),
                frame,
                returned: AtomicBool::new(false),
                exports: AtomicU64::new(0),
            })
            .collect())
    }

    /// What was agreed on beyond plain frames.
    #[getter]
    const fn grant(&self) -> NicGrant {
        NicGrant { inner: self.grant }
    }

    /// Sends one frame that lies in several pieces, what is left to be done with it first.
    #[pyo3(signature = (pieces, request = None, timeout = None))]
    fn send_pieces(
        &self,
        py: Python<'_>,
        pieces: Vec<Bound<'_, PyAny>>,
        request: Option<&[u8]>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        self.alive(py)?;
        let asked = request.map(|request| asked(py, request)).transpose()?;
        let pieces = pieces::hold(py, &self.ram, &pieces)?;
        let parts: Vec<_> = pieces.iter().map(HeldPiece::part).collect();
        let mut guard = held(py, &self.sending, "sending")?;
        let sender = guard.as_mut().ok_or_else(|| lent(py))?;
        let mut patience = Patience::new(py, timeout)?;
        while !sender.stage_long(asked, &parts).or_raise(py)? {
            if !self.wait_room(py, sender, &mut patience)? {
                return Ok(false);
            }
        }
        flush(py, sender, self.does_trap)?;
        Ok(true)
    }

    /// Receives as `recv`, with what is left to be done with each frame: empty when nothing is.
    #[pyo3(signature = (max = 32, timeout = None))]
    fn recv_requests<'py>(
        &self,
        py: Python<'py>,
        max: u32,
        timeout: Option<f64>,
    ) -> PyResult<Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>> {
        self.alive(py)?;
        let mut guard = held(py, &self.receiving.half, "receiving")?;
        let receiver = guard.as_mut().ok_or_else(|| lent(py))?;
        let mut frames = Vec::with_capacity(max.min(256) as usize);
        let mut patience = Patience::new(py, timeout)?;
        loop {
            let each = |frame: &[u8], asked: &[u8; OFFLOAD_HEADER_BYTES]| {
                let asked = if *asked == NO_REQUEST { &[][..] } else { &asked[..] };
                frames.push((PyBytes::new(py, frame), PyBytes::new(py, asked)));
            };
            receiver.receive_long(max, each).or_raise(py)?;
            if !frames.is_empty() || !self.wait_frames(py, receiver, &mut patience)? {
                return Ok(frames);
            }
        }
    }

    /// Asks for the doorbell when a frame arrives. `False`: frames are waiting already.
    fn arm_receive(&self, py: Python<'_>) -> PyResult<bool> {
        self.alive(py)?;
        let mut guard = held(py, &self.receiving.half, "receiving")?;
        let receiver = guard.as_mut().ok_or_else(|| lent(py))?;
        self.receiving.collect(receiver).or_raise(py)?;
        if let Some(bell) = receiver.call_bell() {
            bell.quiet();
        }
        receiver.arm().or_raise(py)
    }

    /// Asks for the doorbell when there is room to send. `False`: there is room already.
    fn arm_send(&self, py: Python<'_>) -> PyResult<bool> {
        self.alive(py)?;
        let mut guard = held(py, &self.sending, "sending")?;
        let sender = guard.as_mut().ok_or_else(|| lent(py))?;
        if sender.in_flight() == 0 {
            return Ok(false);
        }
        if let Some(bell) = sender.call_bell() {
            bell.quiet();
        }
        sender.arm().or_raise(py)
    }

    /// Frames sent that the host has not taken yet.
    fn pending(&self, py: Python<'_>) -> PyResult<u32> {
        self.alive(py)?;
        let mut guard = held(py, &self.sending, "sending")?;
        guard.as_mut().ok_or_else(|| lent(py))?.pending().or_raise(py)
    }

    /// Readable when a frame arrived after `arm_receive`.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.waited_for(py, &self.receiving.wake)
    }

    /// Readable when there is room to send after `arm_send`.
    fn send_fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.waited_for(py, &self.wake)
    }

    /// What was sent and what was received so far.
    fn totals(&self, py: Python<'_>) -> PyResult<(NicTotals, NicTotals)> {
        self.alive(py)?;
        let sending = held(py, &self.sending, "sending")?;
        let receiving = held(py, &self.receiving.half, "receiving")?;
        let sent = sending.as_ref().ok_or_else(|| lent(py))?.totals();
        let received = receiving.as_ref().ok_or_else(|| lent(py))?.totals();
        Ok((sent.into(), received.into()))
    }

    /// The device or the host has ended: whoever waits wakes up and gets `PeerGone`, and so does every later call.
    fn abandon(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.wake_all();
    }

    /// Ends the device on this side: whoever waits wakes up and gets `ClosedError`; views stay readable. `BusyError`:
    /// somebody was waiting and is on the way out; the memory is in use until a later `close` succeeds.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.closed.store(true, Ordering::Relaxed);
        self.wake_all();
        let (mut sending, mut receiving) =
            (held(py, &self.sending, "sending")?, held(py, &self.receiving.half, "receiving")?);
        sending.take();
        receiving.take();
        Ok(())
    }
}

/// Room for one frame in shared memory: write through `memoryview(claim)`, then `commit()`.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct FrameClaim {
    ram: Arc<region::Ram>,
    sending: Arc<Turnstile<Option<core::Sender>>>,
    /// The device was closed: its memory may be another's by now.
    closed: Arc<AtomicBool>,
    does_trap: bool,
    offset: u32,
    length: u32,
    sender: Mutex<Option<core::Sender>>,
}

impl FrameClaim {
    fn finish(&self, py: Python<'_>, each: impl FnOnce(&mut core::Sender)) -> Option<()> {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        each(&mut sender);
        // Nobody stays there while the half is away: they find nothing and leave before another thread runs.
        *self.sending.enter(py)? = Some(sender);
        Some(())
    }
}

#[pymethods]
impl FrameClaim {
    fn __len__(&self) -> usize {
        self.length as usize
    }

    /// Sends the first `length` bytes of it, all by default.
    #[pyo3(signature = (length = None))]
    fn commit(&self, py: Python<'_>, length: Option<u32>) -> PyResult<()> {
        let length = length.unwrap_or(self.length);
        if !(core::ETHERNET_HEADER..=self.length).contains(&length) {
            let message =
                format!("commit {} to {} bytes of this claim; got {length}", core::ETHERNET_HEADER, self.length);
            return Err(raise_plain(py, "UsageError", &message));
        }
        let mut flushed = Ok(());
        self.finish(py, |sender| {
            sender.commit(self.offset, length);
            flushed = flush(py, sender, self.does_trap);
        })
        .ok_or_else(|| {
            raise_plain(py, "ClosedError", "this claim was committed or cancelled before, or its device was closed")
        })?;
        flushed
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Sends the frame, or gives the room back when an exception passes.
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if self.sender.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Ok(());
        }
        if kind.is_none() { self.commit(py, None) } else { self.cancel(py) }
    }

    /// Gives the room back unused.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.finish(py, core::Sender::cancel)
            .ok_or_else(|| raise_plain(py, "ClosedError", "this claim was committed or cancelled before"))
    }

    /// # Safety
    ///
    /// Called by the interpreter with a buffer structure of its own.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let claim = slf.get();
        let py = slf.py();
        if claim.sender.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(raise_plain(py, "ClosedError", "this claim was committed or cancelled before"));
        }
        let start = claim.ram.at(claim.offset, claim.length as usize).or_raise(py)?;
        // SAFETY: passed on from the interpreter; the claim owns the mapping.
        unsafe { fill_buffer(slf.clone().into_any(), view, flags, start.as_ptr(), claim.length as isize, false) }
    }
}

impl Drop for FrameClaim {
    fn drop(&mut self) {
        Python::try_attach(|py| self.finish(py, core::Sender::cancel));
    }
}

/// A received frame that still lies in shared memory: read it through `memoryview(view)`, then `release()`.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct FrameView {
    ram: Arc<region::Ram>,
    receiving: Arc<Receiving>,
    frame: core::Held,
    returned: AtomicBool,
    /// Live `memoryview`s of it.
    exports: AtomicU64,
}

#[pymethods]
impl FrameView {
    fn __len__(&self) -> usize {
        self.frame.length as usize
    }

    /// Gives the buffer back to be received into again.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        if self.exports.load(Ordering::Relaxed) != 0 {
            return Err(raise_plain(py, "BusyError", "a memoryview of this frame is still in use; release that first"));
        }
        if !self.returned.swap(true, Ordering::Relaxed) {
            self.receiving.give_back(py, self.frame.buffer);
        }
        Ok(())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.release(py)
    }

    /// # Safety
    ///
    /// Called by the interpreter with a buffer structure of its own.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let held = slf.get();
        let py = slf.py();
        if held.returned.load(Ordering::Relaxed) {
            return Err(raise_plain(
                py,
                "ClosedError",
                "this frame was released; its buffer belongs to the device again",
            ));
        }
        let start = held.ram.at(held.frame.offset, held.frame.length as usize).or_raise(py)?;
        held.exports.fetch_add(1, Ordering::Relaxed);
        let length = held.frame.length as isize;
        // SAFETY: passed on from the interpreter; the view owns the mapping.
        let filled = unsafe { fill_buffer(slf.clone().into_any(), view, flags, start.as_ptr(), length, true) };
        if filled.is_err() {
            held.exports.fetch_sub(1, Ordering::Relaxed);
        }
        filled
    }

    /// # Safety
    ///
    /// Called by the interpreter with a buffer this object filled.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.exports.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for FrameView {
    fn drop(&mut self) {
        if !self.returned.swap(true, Ordering::Relaxed) {
            Python::try_attach(|py| self.receiving.give_back(py, self.frame.buffer));
        }
    }
}
