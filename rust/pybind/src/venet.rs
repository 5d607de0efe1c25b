//! The driver half of a venet device: how it is made. What it does is in [`crate::nic`].

use std::os::fd::RawFd;

use pyo3::prelude::*;
use vbnet_core::guest::nic::{Receiver, Sender};
use vbnet_core::guest::venet as core;
use vbnet_core::net::grant::Grant;
use vbnet_core::shm::doorbell::Doorbell;

use crate::errors::OrRaise;
use crate::memory::{Ram, duplicate};
use crate::nic::NicDriver;
use crate::pieces::NicGrant;

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
        grant: Option<NicGrant>,
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
    layout: core::VenetLayout,
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
        grant: Option<NicGrant>,
        has_pool: bool,
    ) -> PyResult<PyClassInitializer<Self>> {
        let grant = grant.map(|grant| grant.inner).unwrap_or_default();
        let layout = core::VenetLayout::plan_long(start, mtu, tx_slots, rx_slots, &grant, has_pool).or_raise(py)?;
        let ram = ram.region(py)?;
        let (mut sender, mut receiver) = core::open(&ram, layout).or_raise(py)?;
        let grant = Grant { pool: layout.pool(), ..grant };
        sender.set_grant(grant).or_raise(py)?;
        receiver.set_grant(&grant);
        let driver = NicDriver::new(ram, layout.mtu, sender, receiver);
        Ok(PyClassInitializer::from(driver).add_subclass(Self { layout }))
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
}
