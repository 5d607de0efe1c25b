//! The driver half of a virtio network card: how it is made. What it does is in [`crate::nic`].

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use vbnet_core::guest::fastcall::FastCaller;
use vbnet_core::guest::virtio::arena::Arena;
use vbnet_core::guest::virtio::net as core;
use vbnet_core::guest::virtio::registers::FastRegisters;
use vbnet_core::guest::virtio::transport::{Registers, Tally};
use vbnet_core::net::frame::MacAddress;
use vbnet_core::shm::doorbell::Doorbell;

use crate::errors::OrRaise;
use crate::fastcall::FastSlot;
use crate::memory::{Ram, duplicate};
use crate::nic::NicDriver;
use crate::pieces::features;
use crate::virtio::{PythonRegisters, better};

/// The driver half of a virtio network card.
#[pyclass(extends = NicDriver, subclass, frozen, module = "vbnet._native")]
pub(crate) struct VirtioNet {
    mac: MacAddress,
    mtu: u32,
    tally: Arc<Tally>,
}

/// Bytes of the guest's memory that such a driver needs, in one block of whole pages.
#[pyfunction]
#[pyo3(signature = (mtu, slots, *, has_offloads = false))]
pub(crate) fn virtio_net_bytes(py: Python<'_>, mtu: u32, slots: u32, has_offloads: bool) -> PyResult<u32> {
    core::block_bytes(mtu, slots, has_offloads).or_raise(py)
}

#[pymethods]
impl VirtioNet {
    /// Starts it on an open device, in `length` bytes at `offset` of the guest's RAM. Not on the loop's own thread. With
    /// `fast`, the number of the device and two slots, each half reaches registers through one of them. It asks for `wanted`,
    /// by their names, each way.
    #[new]
    #[pyo3(signature = (ram, offset, length, call, share, *, slots = 256, fast = None, wanted = Vec::new()))]
    #[expect(clippy::too_many_arguments, reason = "a Python call's keyword arguments")]
    fn new(
        py: Python<'_>,
        ram: &Ram,
        offset: u32,
        length: u32,
        call: Py<PyAny>,
        share: Py<PyAny>,
        slots: u32,
        fast: Option<(u32, Bound<'_, FastSlot>, Bound<'_, FastSlot>)>,
        wanted: Vec<String>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let wanted = features(py, &wanted)?;
        let region = ram.region(py)?;
        let arena = Arena::new(&region, offset, length).or_raise(py)?;
        let raised = Arc::new(Mutex::new(None));
        let slow: Arc<dyn Registers> = Arc::new(PythonRegisters { call, share, raised: raised.clone() });
        let does_trap = fast.is_some();
        let halves = match fast {
            None => [slow.clone(), slow.clone()],
            Some((device, first, second)) => {
                let by = |caller: Arc<FastCaller>| -> Arc<dyn Registers> {
                    Arc::new(FastRegisters::new(caller, device, slow.clone()))
                };
                [by(first.get().caller(py)?), by(second.get().caller(py)?)]
            }
        };
        let started = py.detach(|| core::start(slow, halves, &arena, slots, wanted));
        let core::Started { sender, receiver, mac, mtu, tally } = better(py, &raised, started)?;
        let wake =
            |bell: Option<&Doorbell>| bell.map(|bell| duplicate(py, bell.raw()).map(Doorbell::from_fd)).transpose();
        let wakes = (wake(sender.call_bell())?, wake(receiver.call_bell())?);
        let driver = NicDriver::new(region, mtu, sender, receiver);
        let driver = if does_trap { driver.trapping() } else { driver };
        if let (Some(for_sender), Some(for_receiver)) = wakes {
            driver.set_wakes(for_sender, for_receiver);
        }
        Ok(PyClassInitializer::from(driver).add_subclass(Self { mac: MacAddress::new(mac), mtu, tally }))
    }

    /// The card's address, as it says.
    #[getter]
    fn hardware_address(&self) -> String {
        self.mac.to_string()
    }

    /// Largest packet, as it says.
    #[getter]
    const fn mtu_told(&self) -> u32 {
        self.mtu
    }

    /// What the transport did: register accesses, kicks asked for, doorbells rung, sleeps.
    fn tally(&self) -> (u64, u64, u64, u64) {
        let Tally { accesses, kicks, rings, sleeps } = &*self.tally;
        let load = |word: &std::sync::atomic::AtomicU64| word.load(Ordering::Relaxed);
        (load(accesses), load(kicks), load(rings), load(sleeps))
    }
}
