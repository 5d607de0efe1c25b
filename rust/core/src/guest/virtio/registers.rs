//! Registers by fastcalls, without anybody in between: each access is a request in shared memory, and a wait for its answer.
//!
//! What has no fast handler, or a slot that is still waiting for an answer, goes the other way.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::transport::Registers;
use crate::error::{Error, Result};
use crate::guest::fastcall::FastCaller;
use crate::shm::fastcall::{DATA_BYTES, STATUS_DONE, STATUS_UNSERVED};

/// How long a register may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// The way to one open device through one slot.
pub struct FastRegisters {
    caller: Arc<FastCaller>,
    device: u32,
    otherwise: Arc<dyn Registers>,
}

impl FastRegisters {
    /// Reaches the device of this number through `caller`, and by `otherwise` what cannot go there.
    #[must_use]
    pub fn new(caller: Arc<FastCaller>, device: u32, otherwise: Arc<dyn Registers>) -> Self {
        Self { caller, device, otherwise }
    }
}

impl Registers for FastRegisters {
    fn call(&self, function: u32, data: &[u8]) -> Result<Vec<u8>> {
        let mut answer = [0; DATA_BYTES];
        let found = match self.caller.call(self.device, function, data, &mut answer, DEADLINE) {
            Ok(Some(found)) => found,
            Ok(None) => return Err(Error::machine("wait for a register", Errno::TIMEDOUT)),
            Err(Error::Busy(_)) => return self.otherwise.call(function, data),
            Err(error) => return Err(error),
        };
        let content = answer.get(..found.length as usize).unwrap_or(&answer);
        match found.status {
            STATUS_DONE => Ok(content.to_vec()),
            STATUS_UNSERVED => self.otherwise.call(function, data),
            _ => Err(Error::Usage(String::from_utf8_lossy(content).into_owned())),
        }
    }

    fn share(&self, id: u32, offset: u32, length: u32, signal_offset: u32) -> Result<(OwnedFd, OwnedFd)> {
        self.otherwise.share(id, offset, length, signal_offset)
    }
}

impl fmt::Debug for FastRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FastRegisters").field("device", &self.device).finish_non_exhaustive()
    }
}
