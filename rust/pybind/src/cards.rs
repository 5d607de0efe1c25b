//! Emulated network cards: the host's half, and the drivers of a guest.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vbnet_core::error::Error;
use vbnet_core::fastcall::FastHandler as CoreFastHandler;
use vbnet_core::guest::card::{Registers, Trapped, e1000, rtl8139};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::nic::card::{Card, CardCounter, Traps};
use vbnet_core::nic::e1000::E1000 as E1000Model;
use vbnet_core::nic::rtl8139::Rtl8139 as Rtl8139Model;
use vbnet_core::nic::{Model, RamDma};
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::fastcall::DATA_BYTES;
use vbnet_core::shm::labels;
use vbnet_core::shm::region;

use crate::counters::CounterFile;
use crate::errors::{OrRaise, raise_plain};
use crate::fastcall::{FastHandler, FastSlot};
use crate::memory::{Ram, duplicate};
use crate::nic::{NicDriver, Wake};
use crate::signals::Apics;

/// How long an access to a register may take before the card counts as gone.
const REGISTER_DEADLINE: Duration = Duration::from_secs(5);

// ---- the host --------------------------------------------------------------------------------------------------------

/// An emulated card in a guest's memory.
#[pyclass(frozen, module = "vbnet._native")]
pub(crate) struct EmulatedCard {
    pub(crate) card: Arc<Card>,
    pub(crate) model: &'static str,
    traps: Arc<Traps>,
}

#[pymethods]
impl EmulatedCard {
    /// A card of the model `e1000` or `rtl8139`, with this address in its EEPROM.
    #[new]
    #[pyo3(signature = (model, mac, ram, counters, *, guest = "", device = ""))]
    fn new(
        py: Python<'_>,
        model: &str,
        mac: &str,
        ram: &Ram,
        counters: &CounterFile,
        guest: &str,
        device: &str,
    ) -> PyResult<Self> {
        let address = mac.parse::<MacAddress>().or_raise(py)?;
        let made: Box<dyn Model> = match model {
            "e1000" => Box::new(E1000Model::new(address)),
            "rtl8139" => Box::new(Rtl8139Model::new(address)),
            _ => {
                return Err(raise_plain(
                    py,
                    "UsageError",
                    &format!("{model:?} is no card; there are e1000 and rtl8139"),
                ));
            }
        };
        let model = made.name();
        let text = labels::text(&[("guest", guest), ("device", device), ("model", model)]);
        let block = counters.inner.allocate("nic", &text, CardCounter::COUNT).or_raise(py)?;
        let card = Card::new(made, Box::new(RamDma::new(ram.region(py)?)), block).or_raise(py)?;
        Ok(Self { traps: Arc::new(Traps::new(card.clone())), card, model })
    }

    /// Emulates the controller that its line is to be led to, and that rings `call_fd`.
    fn connect(&self, py: Python<'_>, call_fd: RawFd) -> PyResult<Apics> {
        Ok(Apics { inner: self.traps.connect(Doorbell::from_fd(duplicate(py, call_fd)?)) })
    }

    /// Answers traps without Python.
    fn fast(&self) -> FastHandler {
        FastHandler { inner: self.traps.clone() }
    }

    /// Answers one here and now.
    fn call<'py>(&self, py: Python<'py>, function: u32, data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let mut answer = [0; DATA_BYTES];
        let outcome = self.traps.call(function, data, &mut answer);
        let length = outcome.map_err(|refusal| raise_plain(py, "UsageError", &refusal.text))?;
        Ok(PyBytes::new(py, answer.get(..length).unwrap_or_default()))
    }
}

// ---- the guest -------------------------------------------------------------------------------------------------------

/// How a driver reaches its card: two slots that were shown to the host, one a half, and the doorbell of its line.
struct Reach {
    registers: [Box<dyn Registers>; 2],
    line: Doorbell,
}

impl Reach {
    fn new(py: Python<'_>, slots: (&FastSlot, &FastSlot), device: u32, line_fd: RawFd) -> PyResult<Self> {
        let trapped = |slot: &FastSlot| -> PyResult<Box<dyn Registers>> {
            Ok(Box::new(Trapped::new(slot.caller(py)?, device, REGISTER_DEADLINE)))
        };
        Ok(Self { registers: [trapped(slots.0)?, trapped(slots.1)?], line: Doorbell::from_fd(duplicate(py, line_fd)?) })
    }
}

/// Where somebody waits for a half, and what wakes them.
macro_rules! wake_of {
    ($half:expr) => {
        Ok::<_, Error>(Wake { waited: $half.waited().copy()?, rung: Some($half.own_bell().copy()?) })
    };
}

/// The driver half of an e1000.
#[pyclass(extends = NicDriver, subclass, frozen, module = "vbnet._native")]
pub(crate) struct E1000 {
    mac: MacAddress,
}

#[pymethods]
impl E1000 {
    /// Resets the card and starts its driver in the guest's memory from byte `start` on: some hundreds of traps.
    #[new]
    #[pyo3(signature = (
        ram, slots, device, line_fd, *, mtu = 1500, tx_slots = 256, rx_slots = 256, start = 0, interrupts_per_second = 0,
        is_promiscuous = false
    ))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn new(
        py: Python<'_>,
        ram: &Ram,
        slots: (PyRef<'_, FastSlot>, PyRef<'_, FastSlot>),
        device: u32,
        line_fd: RawFd,
        mtu: u32,
        tx_slots: u32,
        rx_slots: u32,
        start: u32,
        interrupts_per_second: u32,
        is_promiscuous: bool,
    ) -> PyResult<PyClassInitializer<Self>> {
        let ram = ram.region(py)?;
        let reach = Reach::new(py, (&slots.0, &slots.1), device, line_fd)?;
        let setup = e1000::E1000Setup { is_promiscuous, interrupts_per_second };
        let opened = py.detach(|| {
            let layout = e1000::E1000Layout::plan(start, mtu, tx_slots, rx_slots)?;
            let (mac, sender, receiver) = e1000::open(&ram, layout, reach.registers, reach.line, setup)?;
            let wakes = (wake_of!(sender)?, wake_of!(receiver)?);
            Ok::<_, Error>((mac, sender, receiver, wakes))
        });
        let (mac, sender, receiver, wakes) = opened.or_raise(py)?;
        Ok(made(ram, mtu, sender, receiver, wakes).add_subclass(Self { mac }))
    }

    /// Bytes of a guest's memory behind `start` that its driver uses.
    #[staticmethod]
    #[pyo3(signature = (mtu = 1500, tx_slots = 256, rx_slots = 256, start = 0))]
    fn end_of(py: Python<'_>, mtu: u32, tx_slots: u32, rx_slots: u32, start: u32) -> PyResult<u32> {
        Ok(e1000::E1000Layout::plan(start, mtu, tx_slots, rx_slots).or_raise(py)?.end)
    }

    /// The address that its EEPROM has.
    #[getter]
    fn station(&self) -> String {
        self.mac.to_string()
    }
}

/// The driver half of an rtl8139.
#[pyclass(extends = NicDriver, subclass, frozen, module = "vbnet._native")]
pub(crate) struct Rtl8139 {
    mac: MacAddress,
}

#[pymethods]
impl Rtl8139 {
    /// Resets the card and starts its driver in the guest's memory from byte `start` on: some dozens of traps.
    #[new]
    #[pyo3(signature = (ram, slots, device, line_fd, *, mtu = 1500, start = 0, is_promiscuous = false))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn new(
        py: Python<'_>,
        ram: &Ram,
        slots: (PyRef<'_, FastSlot>, PyRef<'_, FastSlot>),
        device: u32,
        line_fd: RawFd,
        mtu: u32,
        start: u32,
        is_promiscuous: bool,
    ) -> PyResult<PyClassInitializer<Self>> {
        let ram = ram.region(py)?;
        let reach = Reach::new(py, (&slots.0, &slots.1), device, line_fd)?;
        let opened = py.detach(|| {
            let layout = rtl8139::Rtl8139Layout::plan(start, mtu)?;
            let (mac, sender, receiver) = rtl8139::open(&ram, layout, reach.registers, reach.line, is_promiscuous)?;
            let wakes = (wake_of!(sender)?, wake_of!(receiver)?);
            Ok::<_, Error>((mac, sender, receiver, wakes))
        });
        let (mac, sender, receiver, wakes) = opened.or_raise(py)?;
        Ok(made(ram, mtu, sender, receiver, wakes).add_subclass(Self { mac }))
    }

    /// Bytes of a guest's memory behind `start` that its driver uses.
    #[staticmethod]
    #[pyo3(signature = (mtu = 1500, start = 0))]
    fn end_of(py: Python<'_>, mtu: u32, start: u32) -> PyResult<u32> {
        Ok(rtl8139::Rtl8139Layout::plan(start, mtu).or_raise(py)?.end)
    }

    /// The address that its EEPROM has.
    #[getter]
    fn station(&self) -> String {
        self.mac.to_string()
    }
}

/// What both models have in common, for Python.
fn made(
    ram: Arc<region::Ram>,
    mtu: u32,
    sender: impl Into<vbnet_core::guest::nic::Sender>,
    receiver: impl Into<vbnet_core::guest::nic::Receiver>,
    (transmit, receive): (Wake, Wake),
) -> PyClassInitializer<NicDriver> {
    let driver = NicDriver::new(ram, mtu, sender, receiver).trapping();
    driver.set_wakes(transmit, receive);
    PyClassInitializer::from(driver)
}
