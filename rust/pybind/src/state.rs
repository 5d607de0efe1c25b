//! Pages and state records for Python: values by their schema in, tuples out.
//!
//! No call here waits: publishing is a few stores, sampling a bounded number of looks. The interpreter is kept, since
//! letting go of it costs more than either.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use vbnet_core::shm::page;
use vbnet_core::shm::region::Mapped;
use vbnet_core::shm::state::{
    Publisher, Roll, RollReader, Sampled, Sampler, Standing, StateLayout, StatePage, monotonic_ns,
};

use crate::errors::{OrRaise, raise_plain};
use crate::memory::{Ram, duplicate};

/// No Python code runs while such a lock is held: it could let go of the interpreter for somebody who waits for the lock.
fn locked<T>(inner: &Mutex<T>) -> MutexGuard<'_, T> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory that the host makes and lends.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct Page {
    inner: Mutex<Option<Arc<page::Page>>>,
}

impl Page {
    fn wrap(page: Arc<page::Page>) -> Self {
        Self { inner: Mutex::new(Some(page)) }
    }

    fn page(&self, py: Python<'_>) -> PyResult<Arc<page::Page>> {
        locked(&self.inner).clone().ok_or_else(|| raise_plain(py, "ClosedError", "this page is closed"))
    }
}

#[pymethods]
impl Page {
    #[staticmethod]
    #[pyo3(signature = (size, name = "vbnet-page"))]
    fn create(py: Python<'_>, size: usize, name: &str) -> PyResult<Self> {
        Ok(Self::wrap(page::Page::create(name, size).or_raise(py)?))
    }

    #[staticmethod]
    fn open(py: Python<'_>, fd: RawFd) -> PyResult<Self> {
        let file = duplicate(py, fd)?;
        Ok(Self::wrap(page::Page::open(file).or_raise(py)?))
    }

    fn freeze(&self, py: Python<'_>) -> PyResult<()> {
        self.page(py)?.freeze().or_raise(py)
    }

    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.page(py)?.size())
    }

    #[getter]
    fn is_writable(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.page(py)?.is_writable())
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.page(py)?.as_fd().as_raw_fd())
    }

    fn close(&self) {
        locked(&self.inner).take();
    }

    #[getter]
    fn closed(&self) -> bool {
        locked(&self.inner).is_none()
    }
}

/// A number in a value: what it is.
#[derive(Clone, Copy)]
enum Kind {
    Unsigned,
    Signed,
    Float,
    Bool,
}

/// A number in a value: what it is and where.
struct Field {
    name: Py<pyo3::types::PyString>,
    kind: Kind,
    offset: usize,
    bytes: usize,
}

fn unsigned(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

impl Field {
    fn read<'py>(&self, py: Python<'py>, value: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let raw = unsigned(&value[self.offset..self.offset + self.bytes]);
        Ok(match self.kind {
            Kind::Unsigned => raw.into_pyobject(py)?.into_any(),
            Kind::Signed => {
                let unused = 64 - 8 * self.bytes;
                ((raw << unused).cast_signed() >> unused).into_pyobject(py)?.into_any()
            }
            Kind::Float if self.bytes == 4 => f64::from(f32::from_bits(raw as u32)).into_pyobject(py)?.into_any(),
            Kind::Float => f64::from_bits(raw).into_pyobject(py)?.into_any(),
            Kind::Bool => (raw != 0).into_pyobject(py)?.to_owned().into_any(),
        })
    }

    fn write(&self, py: Python<'_>, value: &mut [u8], given: &Bound<'_, PyAny>) -> PyResult<()> {
        let bits = 8 * self.bytes;
        let raw = match self.kind {
            Kind::Unsigned => {
                let number: u64 = given.extract().map_err(|_| self.refuse(py, given))?;
                if bits < 64 && number >> bits != 0 {
                    return Err(self.refuse(py, given));
                }
                number
            }
            Kind::Signed => {
                let number: i64 = given.extract().map_err(|_| self.refuse(py, given))?;
                let unused = 64 - bits;
                if (number << unused) >> unused != number {
                    return Err(self.refuse(py, given));
                }
                number.cast_unsigned()
            }
            Kind::Float => {
                let number: f64 = given.extract().map_err(|_| self.refuse(py, given))?;
                if self.bytes == 4 { u64::from((number as f32).to_bits()) } else { number.to_bits() }
            }
            Kind::Bool => u64::from(given.is_truthy()?),
        };
        value[self.offset..self.offset + self.bytes].copy_from_slice(&raw.to_le_bytes()[..self.bytes]);
        Ok(())
    }

    fn refuse(&self, py: Python<'_>, given: &Bound<'_, PyAny>) -> PyErr {
        raise_plain(py, "UsageError", &format!("{} does not fit the field {:?}", given, self.name.to_string()))
    }
}

/// What a record's values mean: fields one behind the other, without gaps, little-endian.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct StateCodec {
    fields: Vec<Field>,
    value_bytes: usize,
}

#[pymethods]
impl StateCodec {
    /// Fields by name and letter of the struct module: `BHIQbhiqfd?`.
    #[new]
    fn new(py: Python<'_>, fields: Vec<(Py<pyo3::types::PyString>, char)>) -> PyResult<Self> {
        let mut offset = 0;
        let mut known = Vec::with_capacity(fields.len());
        for (name, letter) in fields {
            let (kind, bytes) = match letter {
                'B' | 'H' | 'I' | 'Q' => (Kind::Unsigned, 1 << "BHIQ".find(letter).unwrap_or(0)),
                'b' | 'h' | 'i' | 'q' => (Kind::Signed, 1 << "bhiq".find(letter).unwrap_or(0)),
                'f' => (Kind::Float, 4),
                'd' => (Kind::Float, 8),
                '?' => (Kind::Bool, 1),
                _ => return Err(raise_plain(py, "UsageError", &format!("{letter:?} is no type of a field"))),
            };
            known.push(Field { name, kind, offset, bytes });
            offset += bytes;
        }
        let value_bytes = offset.next_multiple_of(8);
        StateLayout::plan(1, u32::try_from(value_bytes).unwrap_or(u32::MAX)).or_raise(py)?;
        Ok(Self { fields: known, value_bytes })
    }

    #[getter]
    fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    #[pyo3(signature = (*values, **named))]
    fn pack<'py>(
        &self,
        py: Python<'py>,
        values: &Bound<'py, PyTuple>,
        named: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let mut bytes = vec![0; self.value_bytes];
        self.fill(py, &mut bytes, values, named)?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn unpack<'py>(&self, py: Python<'py>, value: &[u8]) -> PyResult<Bound<'py, PyTuple>> {
        if value.len() != self.value_bytes {
            let message = format!("a value has {} bytes; got {}", self.value_bytes, value.len());
            return Err(raise_plain(py, "UsageError", &message));
        }
        let fields: Vec<_> = self.fields.iter().map(|field| field.read(py, value)).collect::<PyResult<_>>()?;
        PyTuple::new(py, fields)
    }
}

impl StateCodec {
    fn fill(
        &self,
        py: Python<'_>,
        bytes: &mut [u8],
        values: &Bound<'_, PyTuple>,
        named: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        if values.len() > self.fields.len() {
            let message = format!("{} values for {} fields", values.len(), self.fields.len());
            return Err(raise_plain(py, "UsageError", &message));
        }
        for (field, value) in self.fields.iter().zip(values.iter_borrowed()) {
            field.write(py, bytes, &value)?;
        }
        for (name, value) in named.into_iter().flatten() {
            let found = self
                .fields
                .iter()
                .find(|field| field.name.is(&name))
                .map_or_else(|| self.fields.iter().find(|field| name.eq(field.name.bind(py)).unwrap_or(false)), Some);
            let Some(field) = found else {
                return Err(raise_plain(py, "UsageError", &format!("there is no field {name:?}")));
            };
            field.write(py, bytes, &value)?;
        }
        Ok(())
    }
}

#[derive(FromPyObject)]
pub(crate) enum Memory<'py> {
    Page(PyRef<'py, Page>),
    Ram(PyRef<'py, Ram>),
}

impl Memory<'_> {
    fn attach(&self, py: Python<'_>, offset: u32, schema: u64) -> PyResult<StatePage> {
        match self {
            Self::Page(page) => {
                let page = page.page(py)?;
                StatePage::attach(&page, offset, page.size().saturating_sub(offset as usize), schema)
            }
            Self::Ram(ram) => {
                let ram = ram.region(py)?;
                StatePage::attach(&ram, offset, ram.size().saturating_sub(offset as usize), schema)
            }
        }
        .or_raise(py)
    }
}

/// Bytes of a page of so many records.
#[pyfunction]
pub(crate) fn state_page_bytes(py: Python<'_>, records: u32, value_bytes: u32) -> PyResult<usize> {
    Ok(StateLayout::plan(records, value_bytes).or_raise(py)?.bytes())
}

/// Lays an empty page out in memory that is ours.
#[pyfunction]
#[pyo3(signature = (memory, records, value_bytes, schema, offset = 0))]
pub(crate) fn state_format(
    py: Python<'_>,
    memory: Memory<'_>,
    records: u32,
    value_bytes: u32,
    schema: u64,
    offset: u32,
) -> PyResult<()> {
    let layout = StateLayout::plan(records, value_bytes).or_raise(py)?;
    match memory {
        Memory::Page(page) => StatePage::format(&page.page(py)?, offset, layout, schema),
        Memory::Ram(ram) => StatePage::format(&ram.region(py)?, offset, layout, schema),
    }
    .or_raise(py)?;
    Ok(())
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(unsigned)
}

struct Publishing {
    publisher: Publisher,
    bytes: Vec<u8>,
    words: Vec<u64>,
}

impl Publishing {
    fn publish(&mut self, bytes: &[u8], published_ns: u64) {
        self.bytes.copy_from_slice(bytes);
        for (word, value) in self.words.iter_mut().zip(words(&self.bytes)) {
            *word = value;
        }
        self.publisher.publish(published_ns, &self.words);
    }
}

/// The writing end of a record.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct StatePublisher {
    codec: Py<StateCodec>,
    inner: Mutex<Option<Publishing>>,
}

impl StatePublisher {
    fn with<T>(&self, py: Python<'_>, each: impl FnOnce(&mut Publishing) -> PyResult<T>) -> PyResult<T> {
        match locked(&self.inner).as_mut() {
            Some(inner) => each(inner),
            None => Err(raise_plain(py, "ClosedError", "this publisher is closed")),
        }
    }
}

#[pymethods]
impl StatePublisher {
    #[new]
    #[pyo3(signature = (memory, codec, schema, record = 0, offset = 0))]
    fn new(
        py: Python<'_>,
        memory: Memory<'_>,
        codec: Py<StateCodec>,
        schema: u64,
        record: u32,
        offset: u32,
    ) -> PyResult<Self> {
        let page = memory.attach(py, offset, schema)?;
        let publisher = page.publisher(record).or_raise(py)?;
        fits(py, &codec, publisher.values())?;
        let mut latest = vec![0; publisher.values()];
        page.sampler(record).or_raise(py)?.sample(&mut latest);
        let bytes = latest.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(Self { codec, inner: Mutex::new(Some(Publishing { publisher, bytes, words: latest })) })
    }

    #[pyo3(signature = (*values, **named))]
    fn publish(&self, py: Python<'_>, values: &Bound<'_, PyTuple>, named: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        let mut bytes = self.with(py, |inner| Ok(inner.bytes.clone()))?;
        self.codec.get().fill(py, &mut bytes, values, named)?;
        self.publish_raw(py, &bytes, None)
    }

    #[pyo3(signature = (value, published_ns = None))]
    fn publish_raw(&self, py: Python<'_>, value: &[u8], published_ns: Option<u64>) -> PyResult<()> {
        self.with(py, |inner| {
            if value.len() != inner.bytes.len() {
                let message = format!("a value has {} bytes; got {}", inner.bytes.len(), value.len());
                return Err(raise_plain(py, "UsageError", &message));
            }
            inner.publish(value, published_ns.unwrap_or_else(monotonic_ns));
            Ok(())
        })
    }

    #[getter]
    fn count(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |inner| Ok(inner.publisher.count()))
    }

    fn close(&self) {
        locked(&self.inner).take();
    }
}

fn fits(py: Python<'_>, codec: &Py<StateCodec>, values: usize) -> PyResult<()> {
    let bytes = codec.get().value_bytes;
    if 8 * values == bytes {
        return Ok(());
    }
    Err(raise_plain(py, "UsageError", &format!("the schema takes {bytes} bytes, the record has {}", 8 * values)))
}

struct Sampling {
    sampler: Option<Sampler>,
    generation: u64,
    told: u64,
    is_closed: bool,
    busy: u64,
    words: Vec<u64>,
}

/// What one look found, and who is behind it.
struct Found {
    value: Vec<u8>,
    published_ns: u64,
    is_alive: bool,
}

/// A reading end of a record, wherever the host says the record is now.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct StateSampler {
    codec: Py<StateCodec>,
    /// Makes what `sample` gives of a tuple.
    make: Py<PyAny>,
    roll: Option<(RollReader, u32)>,
    /// Called with the new generation when the record is somewhere else.
    on_moved: Option<Py<PyAny>>,
    inner: Mutex<Sampling>,
}

impl StateSampler {
    fn look(&self, py: Python<'_>) -> PyResult<Option<Found>> {
        let mut inner = locked(&self.inner);
        if inner.is_closed {
            drop(inner);
            return Err(raise_plain(py, "ClosedError", "this sampler is closed"));
        }
        let standing = match &self.roll {
            Some((roll, record)) => roll.look(*record).or_raise(py)?,
            None => Standing { generation: inner.generation, is_owned: true },
        };
        let is_moved = standing.generation != inner.generation;
        let is_news = is_moved && standing.generation != inner.told;
        inner.told = standing.generation;
        let Sampling { sampler, words, .. } = &mut *inner;
        let sampled = sampler.as_ref().map_or(Sampled::Empty, |sampler| sampler.sample(words));
        let found = match sampled {
            Sampled::Empty => Ok(None),
            Sampled::Busy => Err(()),
            Sampled::Value { published_ns, .. } => {
                let value = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                Ok(Some(Found { value, published_ns, is_alive: standing.is_owned && !is_moved }))
            }
        };
        inner.busy += u64::from(found.is_err());
        drop(inner);
        if let Some(on_moved) = self.on_moved.as_ref().filter(|_| is_news) {
            on_moved.call1(py, (standing.generation,))?;
        }
        found.map_err(|()| raise_plain(py, "BusyError", "the record changed during every look at it; try again"))
    }
}

#[pymethods]
impl StateSampler {
    #[new]
    #[pyo3(signature = (codec, make, roll = None, record = 0, on_moved = None))]
    fn new(
        py: Python<'_>,
        codec: Py<StateCodec>,
        make: Py<PyAny>,
        roll: Option<PyRef<'_, Page>>,
        record: u32,
        on_moved: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let roll = match roll {
            Some(page) => {
                let reader = RollReader::attach(&page.page(py)?).or_raise(py)?;
                reader.look(record).or_raise(py)?;
                Some((reader, record))
            }
            None => None,
        };
        let words = vec![0; codec.get().value_bytes / 8];
        let inner = Sampling { sampler: None, generation: 0, told: 0, is_closed: false, busy: 0, words };
        Ok(Self { codec, make, roll, on_moved, inner: Mutex::new(inner) })
    }

    /// Samples this place from now on.
    #[pyo3(signature = (memory, schema, generation = 1, record = 0, offset = 0))]
    fn move_to(
        &self,
        py: Python<'_>,
        memory: Memory<'_>,
        schema: u64,
        generation: u64,
        record: u32,
        offset: u32,
    ) -> PyResult<()> {
        let sampler = memory.attach(py, offset, schema)?.sampler(record).or_raise(py)?;
        fits(py, &self.codec, sampler.values())?;
        let mut inner = locked(&self.inner);
        if !inner.is_closed {
            inner.sampler = Some(sampler);
            inner.generation = generation;
            inner.told = generation;
        }
        Ok(())
    }

    /// What the roll says: generation, whether somebody owns the record.
    #[getter]
    fn standing(&self, py: Python<'_>) -> PyResult<(u64, bool)> {
        Ok(match &self.roll {
            Some((roll, record)) => {
                let standing = roll.look(*record).or_raise(py)?;
                (standing.generation, standing.is_owned)
            }
            None => (locked(&self.inner).generation, true),
        })
    }

    fn sample(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(found) = self.look(py)? else { return Ok(None) };
        let mut fields = Vec::with_capacity(self.codec.get().fields.len() + 2);
        for field in &self.codec.get().fields {
            fields.push(field.read(py, &found.value)?);
        }
        fields.push(found.published_ns.into_pyobject(py)?.into_any());
        fields.push(found.is_alive.into_pyobject(py)?.to_owned().into_any());
        Ok(Some(self.make.call1(py, (PyTuple::new(py, fields)?,))?))
    }

    fn sample_raw<'py>(&self, py: Python<'py>) -> PyResult<Option<(Bound<'py, PyBytes>, u64, bool)>> {
        let found = self.look(py)?;
        Ok(found.map(|found| (PyBytes::new(py, &found.value), found.published_ns, found.is_alive)))
    }

    #[getter]
    fn busy(&self) -> u64 {
        locked(&self.inner).busy
    }

    fn close(&self) {
        let mut inner = locked(&self.inner);
        inner.sampler = None;
        inner.is_closed = true;
    }
}

/// The host's word on each record.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct StateRoll {
    inner: Mutex<Roll>,
}

#[pymethods]
impl StateRoll {
    #[new]
    fn new(py: Python<'_>, page: PyRef<'_, Page>, records: u32) -> PyResult<Self> {
        Ok(Self { inner: Mutex::new(Roll::format(&page.page(py)?, records).or_raise(py)?) })
    }

    fn enter(&self, py: Python<'_>, record: u32, generation: u64, is_owned: bool) -> PyResult<()> {
        locked(&self.inner).enter(record, Standing { generation, is_owned }).or_raise(py)
    }

    #[staticmethod]
    fn bytes(py: Python<'_>, records: u32) -> PyResult<usize> {
        StateLayout::plan(records, 8).or_raise(py)?;
        Ok(vbnet_core::shm::layout::roll_bytes(records))
    }
}
