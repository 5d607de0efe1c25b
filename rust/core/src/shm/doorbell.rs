//! The eventfd that wakes a sleeper. The host makes every doorbell, so what is behind the number is certain.
//!
//! The danger: file flags belong to both holders, so a guest can fill the counter and clear O_NONBLOCK, and the host's
//! next ring would block. [`Doorbell::ring`] is therefore for doorbells nobody else holds, and for guests, who wait for no
//! one but themselves. The host rings a guest's doorbell where a watchdog ends what blocks: its workers do so themselves,
//! everyone else has [`crate::worker::bellman`] do it. The host never reads a kick doorbell at all: it waits
//! edge-triggered. Source: eventfd(2), epoll(7).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};

use crate::error::{Error, Result};

/// One eventfd.
#[derive(Debug)]
pub struct Doorbell {
    file: OwnedFd,
}

impl Doorbell {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no file descriptors left.
    pub fn create() -> Result<Self> {
        let file = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::machine("create a doorbell", errno))?;
        Ok(Self { file })
    }

    /// Takes over one that somebody made for us.
    #[must_use]
    pub const fn from_fd(file: OwnedFd) -> Self {
        Self { file }
    }

    /// The same one under another number, for somebody who closes it by themselves.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no file descriptors left.
    pub fn copy(&self) -> Result<Self> {
        let file = self.file.try_clone().map_err(|error| Error::machine("duplicate a doorbell", error))?;
        Ok(Self { file })
    }

    /// Wakes whoever waits on it. A full counter means it is awake already.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the descriptor is no eventfd.
    pub fn ring(&self) -> Result<()> {
        loop {
            match write(&self.file, &1u64.to_ne_bytes()) {
                Ok(_) | Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::machine("ring a doorbell", errno)),
            }
        }
    }

    /// Forgets the rings so far, so that the next wait waits.
    pub fn quiet(&self) {
        let mut count = [0; 8];
        while matches!(read(&self.file, &mut count), Err(Errno::INTR)) {}
    }

    /// Waits until it is rung or `timeout` has passed; `None` waits without a limit. `true`: it was rung.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the system refused to wait. An interrupting signal ends the wait as if nothing rang.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        let limit = timeout.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        });
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) | Err(Errno::INTR) => Ok(false),
            Ok(_) => {
                self.quiet();
                Ok(true)
            }
            Err(errno) => Err(Error::machine("wait for a doorbell", errno)),
        }
    }

    /// The number of the descriptor, for somebody else's event loop.
    #[must_use]
    pub fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
