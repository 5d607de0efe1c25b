//! The driver half of a venet device: how it is made. What it does is in [`crate::nic`].

use std::os::fd::RawFd;
use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vbnet_core::error::Error;
use vbnet_core::guest::nic::{Receiver, Sender};
use vbnet_core::guest::venet as core;
use vbnet_core::net::grant::{Grant, PIECES_MAX};
use vbnet_core::net::offload::{Features, OFFLOAD_HEADER_BYTES};
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::region;

use crate::errors::{OrRaise, raise_plain};
use crate::memory::{Ram, duplicate};
use crate::nic::NicDriver;

/// What a driver and its host agreed on beyond plain frames.
#[pyclass(frozen, from_py_object, module = "vbnet._native")]
#[derive(Clone, Copy)]
pub(crate) struct VenetGrant {
    pub(crate) inner: Grant,
}

#[pymethods]
impl VenetGrant {
    #[new]
    #[pyo3(signature = (takes = Vec::new(), gives = Vec::new(), *, is_scattered = false, is_merged = false, pool = None))]
    fn new(
        py: Python<'_>,
        takes: Vec<String>,
        gives: Vec<String>,
        is_scattered: bool,
        is_merged: bool,
        pool: Option<(u32, u32)>,
    ) -> PyResult<Self> {
        let features = |names: &[String]| {
            Features::named(names.iter().map(String::as_str))
                .map_err(|name| raise_plain(py, "UsageError", &format!("there is no offload {name:?}")))
        };
        let (takes, gives) = (features(&takes)?, features(&gives)?);
        Ok(Self { inner: Grant { takes, gives, is_scattered, is_merged, pool } })
    }

    #[getter]
    fn takes(&self) -> Vec<&'static str> {
        self.inner.takes.names().collect()
    }

    #[getter]
    fn gives(&self) -> Vec<&'static str> {
        self.inner.gives.names().collect()
    }

    #[getter]
    fn is_scattered(&self) -> bool {
        self.inner.is_scattered
    }

    #[getter]
    fn is_merged(&self) -> bool {
        self.inner.is_merged
    }

    #[getter]
    fn pool(&self) -> Option<(u32, u32)> {
        self.inner.pool
    }
}

/// Where the parts of one venet device lie in guest RAM.
#[pyclass(frozen, get_all, module = "vbnet._native")]
pub(crate) struct VenetLayout {
    mtu: u32,
    tx_slots: u32,
    rx_slots: u32,
    tx_offset: u32,
    tx_length: u32,
    rx_offset: u32,
    rx_length: u32,
    buffer_bytes: u32,
    pool: Option<(u32, u32)>,
    end: u32,
    ram_bytes: u64,
}

#[pymethods]
impl VenetLayout {
    #[new]
    #[pyo3(signature = (mtu = 1500, tx_slots = 256, rx_slots = 256, start = 0, grant = None, *, has_pool = false))]
    fn new(
        py: Python<'_>,
        mtu: u32,
        tx_slots: u32,
        rx_slots: u32,
        start: u32,
        grant: Option<VenetGrant>,
        has_pool: bool,
    ) -> PyResult<Self> {
        let grant = grant.map(|grant| grant.inner).unwrap_or_default();
        Ok(Self::from(core::VenetLayout::plan_long(start, mtu, tx_slots, rx_slots, &grant, has_pool).or_raise(py)?))
    }
}

impl From<core::VenetLayout> for VenetLayout {
    fn from(layout: core::VenetLayout) -> Self {
        Self {
            mtu: layout.mtu,
            tx_slots: layout.tx_slots,
            rx_slots: layout.rx_slots,
            tx_offset: layout.tx_offset,
            tx_length: layout.tx_bytes(),
            rx_offset: layout.rx_offset,
            rx_length: layout.rx_bytes(),
            buffer_bytes: layout.buffer_bytes,
            pool: layout.pool(),
            end: layout.end,
            ram_bytes: layout.ram_bytes(),
        }
    }
}

/// The driver half of a venet device.
#[pyclass(extends = NicDriver, subclass, frozen, module = "vbnet._native")]
pub(crate) struct Venet {
    ram: Arc<region::Ram>,
    layout: core::VenetLayout,
}

/// The halves of this class are venet's; nothing else can be in their place.
fn other_model() -> Error {
    Error::Usage("this network card is of another model, which has no such frames".to_owned())
}

/// A piece of a frame that is about to be sent.
enum HeldPiece<'py> {
    Bytes(Bound<'py, PyBytes>),
    Place { offset: u32, length: u32 },
    Copy(Vec<u8>),
}

impl HeldPiece<'_> {
    fn part(&self) -> core::Part<'_> {
        match self {
            Self::Bytes(bytes) => core::Part::Bytes(bytes.as_bytes()),
            Self::Place { offset, length } => core::Part::Place { offset: *offset, length: *length },
            Self::Copy(bytes) => core::Part::Bytes(bytes),
        }
    }
}

impl Venet {
    /// Holds a piece of a frame: bytes, memory of the guest's RAM where it lies, or a copy of anything else.
    fn piece<'py>(&self, piece: &Bound<'py, PyAny>) -> PyResult<HeldPiece<'py>> {
        if let Ok(bytes) = piece.cast::<PyBytes>() {
            return Ok(HeldPiece::Bytes(bytes.clone()));
        }
        let py = piece.py();
        let buffer = PyBuffer::<u8>::get(piece)?;
        let base = self.ram.at(0, self.ram.size()).or_raise(py)?.as_ptr() as usize;
        let place = (buffer.buf_ptr() as usize).wrapping_sub(base);
        let length = buffer.len_bytes();
        if buffer.is_c_contiguous() && place < self.ram.size() && length <= self.ram.size() - place {
            return Ok(HeldPiece::Place { offset: place as u32, length: length as u32 });
        }
        Ok(HeldPiece::Copy(buffer.to_vec(py)?))
    }
}

#[pymethods]
impl Venet {
    #[new]
    #[pyo3(signature = (ram, mtu = 1500, tx_slots = 256, rx_slots = 256, start = 0, grant = None, *, has_pool = false))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn new(
        py: Python<'_>,
        ram: &Ram,
        mtu: u32,
        tx_slots: u32,
        rx_slots: u32,
        start: u32,
        grant: Option<VenetGrant>,
        has_pool: bool,
    ) -> PyResult<PyClassInitializer<Self>> {
        let grant = grant.map(|grant| grant.inner).unwrap_or_default();
        let layout = core::VenetLayout::plan_long(start, mtu, tx_slots, rx_slots, &grant, has_pool).or_raise(py)?;
        let ram = ram.region(py)?;
        let (mut sender, mut receiver) = core::open(&ram, layout).or_raise(py)?;
        let grant = Grant { pool: layout.pool(), ..grant };
        sender.set_grant(grant).or_raise(py)?;
        receiver.set_grant(&grant);
        let driver = NicDriver::new(ram.clone(), layout.mtu, sender, receiver);
        Ok(PyClassInitializer::from(driver).add_subclass(Self { ram, layout }))
    }

    #[getter]
    fn layout(&self) -> VenetLayout {
        self.layout.into()
    }

    fn connect(slf: &Bound<'_, Self>, tx_kick: RawFd, tx_call: RawFd, rx_kick: RawFd, rx_call: RawFd) -> PyResult<()> {
        let py = slf.py();
        let bell = |fd| Ok::<_, PyErr>(Doorbell::from_fd(duplicate(py, fd)?));
        let tx = core::Bells { kick: bell(tx_kick)?, call: bell(tx_call)? };
        let rx = core::Bells { kick: bell(rx_kick)?, call: bell(rx_call)? };
        let (wake_sender, wake_receiver) = (bell(tx_call)?, bell(rx_call)?);
        let driver = slf.as_super().get();
        driver.with_halves(py, |sender, receiver| {
            if let (Sender::Venet(sender), Receiver::Venet(receiver)) = (sender, receiver) {
                sender.connect(tx);
                receiver.connect(rx);
            }
        })?;
        driver.set_wakes(wake_sender, wake_receiver);
        Ok(())
    }

    /// Sends one frame that lies in several pieces, what is left to be done with it first.
    #[pyo3(signature = (pieces, request = None, timeout = None))]
    fn send_pieces(
        slf: &Bound<'_, Self>,
        pieces: Vec<Bound<'_, PyAny>>,
        request: Option<&[u8]>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let py = slf.py();
        if pieces.len() > PIECES_MAX {
            let message = format!("a frame has at most {PIECES_MAX} pieces; got {}", pieces.len());
            return Err(raise_plain(py, "UsageError", &message));
        }
        let asked = request.map(|request| {
            <&[u8; OFFLOAD_HEADER_BYTES]>::try_from(request).map_err(|_| {
                let message = format!("a request has {OFFLOAD_HEADER_BYTES} bytes; got {}", request.len());
                raise_plain(py, "UsageError", &message)
            })
        });
        let asked = asked.transpose()?;
        let venet = slf.get();
        let pieces = pieces.iter().map(|piece| venet.piece(piece)).collect::<PyResult<Vec<_>>>()?;
        let parts: Vec<_> = pieces.iter().map(HeldPiece::part).collect();
        slf.as_super().get().send_one(py, timeout, |sender| {
            let Sender::Venet(sender) = sender else { return Err(other_model()) };
            sender.stage_long(asked, &parts)
        })
    }

    /// Receives as `recv`, with what is left to be done with each frame: empty when nothing is.
    #[pyo3(signature = (max = 32, timeout = None))]
    fn recv_requests<'py>(
        slf: &Bound<'py, Self>,
        max: u32,
        timeout: Option<f64>,
    ) -> PyResult<Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>> {
        let py = slf.py();
        let mut frames = Vec::with_capacity(max.min(256) as usize);
        slf.as_super().get().receive_some(py, timeout, |receiver| {
            let Receiver::Venet(receiver) = receiver else { return Err(other_model()) };
            receiver.receive_long(max, |frame, asked| {
                let asked = if asked.iter().all(|&byte| byte == 0) { &[][..] } else { &asked[..] };
                frames.push((PyBytes::new(py, frame), PyBytes::new(py, asked)));
            })
        })?;
        Ok(frames)
    }
}
