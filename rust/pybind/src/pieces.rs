//! Frames in several pieces and with requests, and what a driver was granted of them: whatever the model of the card.
//!
//! Pieces that lie in the guest's own RAM are named where they lie; all others are held, or copied, until the frame is staged.

use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vbnet_core::guest::pieces::Part;
use vbnet_core::net::grant::{Grant, PIECES_MAX};
use vbnet_core::net::offload::{Features, OFFLOAD_HEADER_BYTES};
use vbnet_core::shm::region;

use crate::errors::{OrRaise, raise_plain};

/// Offloads by their names.
pub(crate) fn features(py: Python<'_>, names: &[String]) -> PyResult<Features> {
    Features::named(names.iter().map(String::as_str))
        .map_err(|name| raise_plain(py, "UsageError", &format!("there is no offload {name:?}")))
}

/// What a driver and its host agreed on beyond plain frames.
#[pyclass(frozen, from_py_object, module = "vbnet._native")]
#[derive(Clone, Copy)]
pub(crate) struct NicGrant {
    pub(crate) inner: Grant,
}

#[pymethods]
impl NicGrant {
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
        let (takes, gives) = (features(py, &takes)?, features(py, &gives)?);
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

/// A piece of a frame that is about to be sent.
pub(crate) enum HeldPiece<'py> {
    Bytes(Bound<'py, PyBytes>),
    Place { offset: u32, length: u32 },
    Copy(Vec<u8>),
}

impl HeldPiece<'_> {
    pub(crate) fn part(&self) -> Part<'_> {
        match self {
            Self::Bytes(bytes) => Part::Bytes(bytes.as_bytes()),
            Self::Place { offset, length } => Part::Place { offset: *offset, length: *length },
            Self::Copy(bytes) => Part::Bytes(bytes),
        }
    }
}

/// Holds the pieces of a frame: bytes, memory of the guest's RAM where it lies, or a copy of anything else.
pub(crate) fn hold<'py>(
    py: Python<'py>,
    ram: &Arc<region::Ram>,
    pieces: &[Bound<'py, PyAny>],
) -> PyResult<Vec<HeldPiece<'py>>> {
    if pieces.len() > PIECES_MAX {
        let message = format!("a frame has at most {PIECES_MAX} pieces; got {}", pieces.len());
        return Err(raise_plain(py, "UsageError", &message));
    }
    pieces.iter().map(|piece| hold_one(ram, piece)).collect()
}

fn hold_one<'py>(ram: &Arc<region::Ram>, piece: &Bound<'py, PyAny>) -> PyResult<HeldPiece<'py>> {
    if let Ok(bytes) = piece.cast::<PyBytes>() {
        return Ok(HeldPiece::Bytes(bytes.clone()));
    }
    let py = piece.py();
    let buffer = PyBuffer::<u8>::get(piece)?;
    let base = ram.at(0, ram.size()).or_raise(py)?.as_ptr() as usize;
    let place = (buffer.buf_ptr() as usize).wrapping_sub(base);
    let length = buffer.len_bytes();
    if buffer.is_c_contiguous() && place < ram.size() && length <= ram.size() - place {
        return Ok(HeldPiece::Place { offset: place as u32, length: length as u32 });
    }
    Ok(HeldPiece::Copy(buffer.to_vec(py)?))
}

/// A request as bytes, which are as many as it has.
pub(crate) fn asked<'a>(py: Python<'_>, request: &'a [u8]) -> PyResult<&'a [u8; OFFLOAD_HEADER_BYTES]> {
    request.try_into().map_err(|_| {
        let message = format!("a request has {OFFLOAD_HEADER_BYTES} bytes; got {}", request.len());
        raise_plain(py, "UsageError", &message)
    })
}
