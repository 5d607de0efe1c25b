//! Registers as processors reach them: virtio-mmio's and virtio-pci's, each access a trap.
//!
//! They lead to the same device as bus calls do, and exist to be compared with them: what virtio costs where each register
//! access leaves the guest. Source: virtio 1.2 §4.2.2 (MMIO register layout), §4.1.4 (PCI capability structures; here all
//! four lie in one BAR, at the offsets below).

use std::sync::atomic::Ordering;

use super::device::{Device, State, Transport};
use crate::error::{Error, Result};

/// Registers that choose what others are about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traps {
    device_features: u32,
    driver_features: u32,
    queue: u32,
}

/// `virt`, which every virtio-mmio device has in front.
const MMIO_MAGIC: u32 = u32::from_le_bytes(*b"virt");
const MMIO_VERSION: u32 = 2;
const MMIO_CONFIG: u32 = 0x100;
/// Where the capability structures are in the one BAR.
const PCI_ISR: u32 = 0x1000;
const PCI_NOTIFY: u32 = 0x2000;
const PCI_CONFIG: u32 = 0x3000;
/// Distance of two queues' notification registers.
const PCI_NOTIFY_STEP: u32 = 4;
const NO_VECTOR: u64 = 0xffff;

const fn half(value: u64, which: u32) -> u64 {
    match which {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    }
}

/// `value` with one of its halves replaced.
const fn with_half(value: u64, which: u32, new: u64) -> u64 {
    match which {
        0 => (value & !0xffff_ffff) | (new & 0xffff_ffff),
        1 => (value & 0xffff_ffff) | (new << 32),
        _ => value,
    }
}

/// Which field of a queue a register is about.
#[derive(Clone, Copy)]
enum Ring {
    Descriptors,
    Available,
    Used,
}

fn no_register(offset: u32, bytes: u32) -> Error {
    Error::Usage(format!("there is no register of {bytes} bytes at {offset:#x}"))
}

impl State {
    fn config_value(&self, offset: u32, bytes: u32) -> Result<u64> {
        if !matches!(bytes, 1 | 2 | 4 | 8) {
            return Err(no_register(offset, bytes));
        }
        let mut value = [0; 8];
        value[..bytes as usize].copy_from_slice(self.config(offset, bytes)?);
        Ok(u64::from_le_bytes(value))
    }

    fn ring(&mut self, ring: Ring) -> Option<&mut u64> {
        let queue = self.queues.get_mut(self.traps.queue as usize)?;
        Some(match ring {
            Ring::Descriptors => &mut queue.descriptors,
            Ring::Available => &mut queue.available,
            Ring::Used => &mut queue.used,
        })
    }
}

impl Device {
    /// Reads a register.
    pub(super) fn trap_read(&self, state: &State, offset: u32, bytes: u32) -> Result<u64> {
        match state.transport {
            Transport::Mmio => self.mmio_read(state, offset, bytes),
            _ => self.pci_read(state, offset, bytes),
        }
    }

    /// Writes a register.
    pub(super) fn trap_write(&self, state: &mut State, offset: u32, bytes: u32, value: u64) -> Result<()> {
        match state.transport {
            Transport::Mmio => self.mmio_write(state, offset, bytes, value),
            _ => self.pci_write(state, offset, bytes, value),
        }
    }

    fn mmio_read(&self, state: &State, offset: u32, bytes: u32) -> Result<u64> {
        if offset >= MMIO_CONFIG {
            return state.config_value(offset - MMIO_CONFIG, bytes);
        }
        let chosen = state.traps.queue as usize;
        let value: u64 = match (offset, bytes) {
            (0x000, 4) => MMIO_MAGIC.into(),
            (0x004, 4) => MMIO_VERSION.into(),
            (0x008, 4) => state.offer.device_id.into(),
            (0x00c, 4) => 0,
            (0x0fc, 4) => state.generation.into(),
            (0x010, 4) => half(state.offer.features, state.traps.device_features),
            (0x034, 4) => state.offer.queue_sizes.get(chosen).copied().unwrap_or(0).into(),
            (0x044, 4) => state.queues.get(chosen).is_some_and(|queue| queue.is_ready).into(),
            (0x060, 4) => state.interrupt.load(Ordering::Relaxed).into(),
            (0x070, 4) => self.status().into(),
            _ => return Err(no_register(offset, bytes)),
        };
        Ok(value)
    }

    fn mmio_write(&self, state: &mut State, offset: u32, bytes: u32, value: u64) -> Result<()> {
        let word = value as u32;
        if bytes != 4 || value >> 32 != 0 {
            return Err(no_register(offset, bytes));
        }
        match offset {
            0x014 => state.traps.device_features = word,
            0x020 => {
                let features = with_half(state.features, state.traps.driver_features, value);
                self.set_features(state, features)?;
            }
            0x024 => state.traps.driver_features = word,
            0x030 => state.traps.queue = word,
            0x038 => {
                let queue = state.traps.queue;
                self.check_configurable(state, queue)?;
                state.queues[queue as usize].size = word;
            }
            0x044 => {
                let queue = state.traps.queue;
                if word == 1 { self.enable(state, queue) } else { self.disable(state, queue) }?;
            }
            0x050 => Self::notify(state, word)?,
            0x064 => {
                state.interrupt.fetch_and(!word, Ordering::Relaxed);
            }
            0x070 => self.set_status(state, word)?,
            0x080 | 0x084 => self.set_ring(state, Ring::Descriptors, (offset - 0x080) / 4, value)?,
            0x090 | 0x094 => self.set_ring(state, Ring::Available, (offset - 0x090) / 4, value)?,
            0x0a0 | 0x0a4 => self.set_ring(state, Ring::Used, (offset - 0x0a0) / 4, value)?,
            _ => return Err(no_register(offset, bytes)),
        }
        Ok(())
    }

    fn set_ring(&self, state: &mut State, ring: Ring, which: u32, value: u64) -> Result<()> {
        self.check_configurable(state, state.traps.queue)?;
        if let Some(address) = state.ring(ring) {
            *address = with_half(*address, which, value);
        }
        Ok(())
    }

    fn pci_read(&self, state: &State, offset: u32, bytes: u32) -> Result<u64> {
        if offset >= PCI_CONFIG {
            return state.config_value(offset - PCI_CONFIG, bytes);
        }
        let chosen = state.traps.queue as usize;
        let value: u64 = match (offset, bytes) {
            (0x00, 4) => state.traps.device_features.into(),
            (0x04, 4) => half(state.offer.features, state.traps.device_features),
            (0x08, 4) => state.traps.driver_features.into(),
            (0x0c, 4) => half(state.features, state.traps.driver_features),
            (0x10 | 0x1a, 2) => NO_VECTOR,
            (0x12, 2) => state.offer.queue_sizes.len() as u64,
            (0x14, 1) => u64::from(self.status() & 0xff),
            (0x15, 1) => u64::from(state.generation & 0xff),
            (0x16, 2) => state.traps.queue.into(),
            (0x18, 2) => state.offer.queue_sizes.get(chosen).copied().unwrap_or(0).into(),
            (0x1c, 2) => state.queues.get(chosen).is_some_and(|queue| queue.is_ready).into(),
            (0x1e, 2) => chosen as u64,
            // Reading it acknowledges.
            (PCI_ISR, 1) => state.interrupt.swap(0, Ordering::Relaxed).into(),
            _ => return Err(no_register(offset, bytes)),
        };
        Ok(value)
    }

    fn pci_write(&self, state: &mut State, offset: u32, bytes: u32, value: u64) -> Result<()> {
        let word = value as u32;
        match (offset, bytes) {
            (0x00, 4) => state.traps.device_features = word,
            (0x08, 4) => state.traps.driver_features = word,
            (0x0c, 4) => {
                let features = with_half(state.features, state.traps.driver_features, value);
                self.set_features(state, features)?;
            }
            (0x14, 1) => self.set_status(state, word & 0xff)?,
            (0x16, 2) => state.traps.queue = word & 0xffff,
            (0x18, 2) => {
                let queue = state.traps.queue;
                self.check_configurable(state, queue)?;
                state.queues[queue as usize].size = word & 0xffff;
            }
            (0x1c, 2) => {
                let queue = state.traps.queue;
                if word == 1 { self.enable(state, queue) } else { self.disable(state, queue) }?;
            }
            (0x20 | 0x24, 4) => self.set_ring(state, Ring::Descriptors, (offset - 0x20) / 4, value)?,
            (0x28 | 0x2c, 4) => self.set_ring(state, Ring::Available, (offset - 0x28) / 4, value)?,
            (0x30 | 0x34, 4) => self.set_ring(state, Ring::Used, (offset - 0x30) / 4, value)?,
            (PCI_NOTIFY..PCI_CONFIG, 2) => Self::notify(state, (offset - PCI_NOTIFY) / PCI_NOTIFY_STEP)?,
            _ => return Err(no_register(offset, bytes)),
        }
        Ok(())
    }
}
