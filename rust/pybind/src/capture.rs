//! Reading captures and traces, as the capturing process does: many rings as one stream in order of time.

use std::os::fd::RawFd;
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vbnet_core::error::{Error, Result};
use vbnet_core::port::PortCounter;
use vbnet_core::shm::capture::{CaptureCounts, CaptureReader, KIND_FRAME, RecordHead};
use vbnet_core::watch::pcapng::{self, Direction};
use vbnet_core::watch::{Stage, Way};

use crate::errors::OrRaise;
use crate::memory::duplicate;

/// A frame: ring, time in nanoseconds since 1970, `"receive"` or `"transmit"`, drop reason, length, bytes.
type Frame<'py> = (usize, u64, &'static str, Option<&'static str>, u32, Bound<'py, PyBytes>);
/// A stage: ring, moment in nanoseconds, number of the frame, stage, port or ports, drop reason.
type Stamp = (usize, u64, u32, &'static str, u32, Option<&'static str>);

/// The rings of one capture, in the order of its interfaces.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct CaptureRings {
    readers: Mutex<Vec<CaptureReader>>,
}

/// Takes the oldest record of all rings, if there is any, and hands it with the number of its ring to `take`.
fn oldest(readers: &mut [CaptureReader]) -> Result<Option<(usize, RecordHead)>> {
    let mut found: Option<(usize, RecordHead)> = None;
    for (ring, reader) in readers.iter_mut().enumerate() {
        if let Some(head) = reader.peek()?
            && found.is_none_or(|(_, best)| head.time_ns < best.time_ns)
        {
            found = Some((ring, head));
        }
    }
    Ok(found)
}

fn reason(head: &RecordHead) -> Option<&'static str> {
    let at = usize::from(head.reason).checked_sub(1)?;
    Some(PortCounter::NAMES.get(at).copied().unwrap_or("unknown"))
}

impl CaptureRings {
    /// Goes through up to `records` records, oldest first, and gives their room back.
    fn drain(&self, records: usize, mut take: impl FnMut(usize, &RecordHead, &CaptureReader) -> bool) -> Result<()> {
        let mut readers = self.readers.lock().map_err(|_| Error::Closed("the capture"))?;
        readers.iter().for_each(CaptureReader::acknowledge);
        let mut taken = 0;
        let outcome = loop {
            if taken == records {
                break Ok(());
            }
            match oldest(&mut readers) {
                Ok(Some((ring, head))) => {
                    taken += usize::from(take(ring, &head, &readers[ring]));
                    readers[ring].skip(&head);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        readers.iter().for_each(CaptureReader::give_back);
        outcome
    }
}

#[pymethods]
impl CaptureRings {
    /// Takes the reading ends of rings, given the descriptors of each one's memory and doorbell, which are duplicated.
    #[new]
    fn new(py: Python<'_>, ends: Vec<(RawFd, RawFd)>) -> PyResult<Self> {
        let readers = ends
            .into_iter()
            .map(|(memory, bell)| CaptureReader::open(duplicate(py, memory)?, duplicate(py, bell)?).or_raise(py))
            .collect::<PyResult<_>>()?;
        Ok(Self { readers: Mutex::new(readers) })
    }

    /// The next frames as blocks of a pcapng file, oldest first: bytes, and how many frames.
    fn blocks<'py>(&self, py: Python<'py>, frames: usize) -> PyResult<(Bound<'py, PyBytes>, usize)> {
        let (mut blocks, mut bytes, mut taken) = (Vec::new(), Vec::new(), 0);
        py.detach(|| {
            self.drain(frames, |ring, head, reader| {
                if head.kind != KIND_FRAME {
                    return false;
                }
                bytes.clear();
                reader.copy_data(head, &mut bytes);
                let direction = if head.way == Way::Receive as u8 { Direction::Inbound } else { Direction::Outbound };
                pcapng::packet(
                    &mut blocks,
                    &pcapng::Packet {
                        interface: ring as u32,
                        time_ns: head.time_ns,
                        direction,
                        drop_reason: reason(head),
                        bytes: &bytes,
                        length: head.length,
                    },
                );
                taken += 1;
                true
            })
        })
        .or_raise(py)?;
        Ok((PyBytes::new(py, &blocks), taken))
    }

    /// The next frames, oldest first, and the stages of traced frames among them.
    fn take<'py>(&self, py: Python<'py>, records: usize) -> PyResult<(Vec<Frame<'py>>, Vec<Stamp>)> {
        let (mut frames, mut stamps, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        self.drain(records, |ring, head, reader| {
            if head.kind == KIND_FRAME {
                bytes.clear();
                reader.copy_data(head, &mut bytes);
                let way = if head.way == Way::Receive as u8 { "receive" } else { "transmit" };
                frames.push((ring, head.time_ns, way, reason(head), head.length, PyBytes::new(py, &bytes)));
            } else {
                let stage = Stage::NAMES.get(usize::from(head.way)).copied().unwrap_or("unknown");
                stamps.push((ring, head.time_ns, head.length, stage, head.detail, reason(head)));
            }
            true
        })
        .or_raise(py)?;
        Ok((frames, stamps))
    }

    /// Asks for all doorbells. False: records came in since the last look, so read on.
    fn arm(&self, py: Python<'_>) -> PyResult<bool> {
        let readers = self.readers.lock().map_err(|_| Error::Closed("the capture")).or_raise(py)?;
        // All of them, whatever the first one says.
        Ok(readers.iter().filter(|reader| !reader.arm()).count() == 0)
    }

    /// Of each ring: frames captured, not wanted by the filter, lost because it was full; and whether its port is away.
    fn counts(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64, u64, bool)>> {
        let readers = self.readers.lock().map_err(|_| Error::Closed("the capture")).or_raise(py)?;
        let plain = |CaptureCounts { captured, filtered, dropped, is_away }| (captured, filtered, dropped, is_away);
        Ok(readers.iter().map(|reader| plain(reader.counts())).collect())
    }
}

/// What a pcapng file begins with: its section, and one interface for each name and description.
#[pyfunction]
pub(crate) fn pcapng_head<'py>(
    py: Python<'py>,
    application: &str,
    snap_bytes: u32,
    filter: &str,
    interfaces: Vec<(String, String)>,
) -> Bound<'py, PyBytes> {
    let mut bytes = Vec::new();
    pcapng::section_header(&mut bytes, application);
    for (name, description) in interfaces {
        pcapng::interface(&mut bytes, snap_bytes, &name, &description, filter);
    }
    PyBytes::new(py, &bytes)
}

/// What a pcapng file ends with for one interface: frames that passed, that were lost, that the filter took.
#[pyfunction]
pub(crate) fn pcapng_statistics(
    py: Python<'_>,
    interface: u32,
    time_ns: u64,
    received: u64,
    dropped: u64,
    accepted: u64,
) -> Bound<'_, PyBytes> {
    let mut bytes = Vec::new();
    pcapng::statistics(&mut bytes, &pcapng::Statistics { interface, time_ns, received, dropped, accepted });
    PyBytes::new(py, &bytes)
}
