//! A virtio disk and its guest in one process: registers are direct calls, everything else is as between two.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use vbnet_core::error::Result;
use vbnet_core::guest::virtio::arena::Arena;
use vbnet_core::guest::virtio::disk::Patience;
use vbnet_core::guest::virtio::transport::Registers;
use vbnet_core::shm::counters::CounterFile;
use vbnet_core::shm::doorbell::Doorbell;
use vbnet_core::shm::region::Ram;
use vbnet_core::virtio::blk::{BlkKind, Disk};
use vbnet_core::virtio::device::{Device, Params, QueueRegion, Transport, VirtioHost};

pub const RAM_BYTES: u64 = 1 << 20;
pub const ARENA: (u32, u32) = (0x2000, 0x80000);
pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct Bench {
    pub host: VirtioHost,
    pub ram: Arc<Ram>,
    pub arena: Arc<Arena>,
    pub device: Arc<Device>,
    pub file: File,
}

/// A file of `bytes` bytes, each sector filled with its number.
pub fn image(bytes: usize) -> File {
    let mut file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).unwrap());
    let content: Vec<u8> = (0..bytes).map(|at| (at / 512) as u8).collect();
    file.write_all(&content).unwrap();
    file
}

impl Bench {
    pub fn new(bytes: usize, is_read_only: bool, transport: Transport) -> Self {
        let host = VirtioHost::start(Arc::new(CounterFile::create(None, 1 << 20).unwrap())).unwrap();
        let ram = Ram::create("guest", RAM_BYTES).unwrap();
        let arena = Arena::new(&ram, ARENA.0, ARENA.1).unwrap();
        let file = image(bytes);
        let disk = Disk::new(file.try_clone().unwrap(), is_read_only, "serial-1").unwrap();
        let kind = BlkKind::new(Some(Arc::new(disk)), host.counters(), "").unwrap();
        let params = Params { transport, ..Params::default() };
        let device = Arc::new(host.open(Arc::new(kind), &ram, params, "disk0", "").unwrap());
        Self { host, ram, arena, device, file }
    }

    pub fn registers(&self) -> Arc<Direct> {
        Arc::new(Direct(self.device.clone()))
    }

    /// Runs a function; what it answers.
    pub fn call(&self, function: u32, words: &[u32]) -> Result<Vec<u8>> {
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut answer = Vec::new();
        self.device.call(function, &data, &mut answer)?;
        Ok(answer)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.device.close().unwrap();
    }
}

pub fn patience() -> Patience {
    Patience { deadline: Instant::now() + DEADLINE, spin: Duration::from_micros(20) }
}

/// Registers without a bus between.
pub struct Direct(pub Arc<Device>);

impl Registers for Direct {
    fn call(&self, function: u32, data: &[u8]) -> Result<Vec<u8>> {
        let mut answer = Vec::new();
        self.0.call(function, data, &mut answer)?;
        Ok(answer)
    }

    fn share(&self, id: u32, offset: u32, length: u32, signal_offset: u32) -> Result<(OwnedFd, OwnedFd)> {
        let (kick, call) = (Doorbell::create()?, Doorbell::create()?);
        let ours = (kick.as_fd().try_clone_to_owned().unwrap(), call.as_fd().try_clone_to_owned().unwrap());
        self.0.show(id, QueueRegion { offset, length, signal_offset, kick, call: call.into() })?;
        Ok(ours)
    }
}
