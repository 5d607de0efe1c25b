//! Entropy: the machine's own random numbers, as a virtio entropy device.
//!
//! The danger: a guest that asks without end has this thread busy, and nobody else's. Source: virtio 1.2 §5.4.

use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::device::{Kind, Model, Offer};
use super::server::{Request, length_of};
use crate::error::Result;
use crate::net::counters::counters;
use crate::shm::counters::{Block, CounterFile};

/// Number of the device in the specification.
pub const DEVICE_ID: u32 = 4;
/// Most bytes that one request is given.
pub const REQUEST_BYTES_MAX: u64 = 64 << 10;
const QUEUE_SIZE: u32 = 64;

counters! {
    /// What is counted for every entropy device that a guest has open.
    pub enum RngCounter {
        /// Requests answered.
        Requests = "requests",
        /// Bytes given.
        Bytes = "bytes",
        /// Requests without a place for an answer, or that the machine could not answer.
        Errors = "errors",
    }
}

/// One guest's use of the machine's entropy.
#[derive(Debug)]
pub struct RngKind {
    block: Arc<Mutex<Block>>,
}

impl RngKind {
    /// Entropy, counted under `labels`.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::Machine`]: no room for counters.
    pub fn new(counters: &CounterFile, labels: &str) -> Result<Self> {
        Ok(Self { block: Arc::new(Mutex::new(counters.allocate("virtio_rng", labels, RngCounter::COUNT)?)) })
    }
}

impl Kind for RngKind {
    fn offer(&self) -> Offer {
        Offer { device_id: DEVICE_ID, features: 0, config: Vec::new(), queue_sizes: vec![QUEUE_SIZE] }
    }

    fn model(&self, _features: u64) -> Result<Box<dyn Model>> {
        Ok(Box::new(RngModel { block: self.block.clone() }))
    }
}

struct RngModel {
    block: Arc<Mutex<Block>>,
}

impl Model for RngModel {
    fn serve(&mut self, _queue: usize, request: &Request<'_>) -> Option<u32> {
        let wanted = length_of(request.to).min(REQUEST_BYTES_MAX);
        let mut done = 0;
        let mut numbers = [0; 256];
        while done < wanted {
            let length = numbers.len().min((wanted - done) as usize);
            match getrandom(&mut numbers[..length], GetRandomFlags::empty()) {
                Ok(found) => done += request.write(done, &numbers[..found]) as u64,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        let block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = if done == 0 { RngCounter::Errors } else { RngCounter::Requests };
        block.add(counter as usize, 1);
        block.add(RngCounter::Bytes as usize, done);
        Some(done as u32)
    }
}
