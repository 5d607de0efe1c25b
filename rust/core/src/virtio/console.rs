//! A console: a pseudo terminal of the host, as a virtio console device, and a file that keeps what the guest said.
//!
//! ```text
//!   transmit queue ─▶ pseudo terminal (what does not fit is let go of) ─▶ whoever attached
//!                 └─▶ log, if an operator gave a file
//!   receive queue  ◀─ pseudo terminal: chains wait until somebody types
//! ```
//!
//! Both ends of the pseudo terminal are held here, so that it stays as it is while nobody is attached, and the last of what
//! the guest said waits in it. Its terminal end is found by name (`/dev/pts/N`), by the host's own user.
//!
//! The danger: nobody may read what a guest writes. The pseudo terminal takes what it has room for, never blocks, and what it
//! does not take is counted. The log is as long as its operator lets it be. Source: virtio 1.2 §5.3 (without multiport).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::io::{Errno, read, write};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::device::{Kind, Model, Offer};
use super::server::{Request, length_of};
use crate::error::{Error, Result};
use crate::net::counters::counters;
use crate::shm::counters::{Block, CounterFile};

/// Number of the device in the specification.
pub const DEVICE_ID: u32 = 3;
/// Most bytes of one chain that are taken; the rest of it is let go of.
const CHUNK_BYTES: usize = 4096;
const QUEUE_SIZE: u32 = 64;
const RECEIVE: usize = 0;
/// Number of columns and rows, and of ports, of consoles that tell them; these do not.
const CONFIG_BYTES: usize = 12;

counters! {
    /// What is counted for every console that a guest has open.
    pub enum ConsoleCounter {
        /// Bytes that the guest said.
        TransmitBytes = "transmit_bytes",
        /// Bytes that were typed for it.
        ReceiveBytes = "receive_bytes",
        /// Bytes said while the terminal was full: nobody reads it.
        Unread = "unread_bytes",
        /// Bytes that the log's file did not take.
        Unlogged = "unlogged_bytes",
    }
}

/// A pseudo terminal that lasts.
#[derive(Debug)]
pub struct Terminal {
    main: OwnedFd,
    /// Held so that the terminal does not hang up when whoever attached leaves.
    _end: OwnedFd,
    name: String,
}

impl Terminal {
    /// Makes one that hands on every byte as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the machine has none left.
    pub fn create() -> Result<Self> {
        let failed = |errno| Error::machine("make a pseudo terminal", errno);
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map_err(failed)?;
        grantpt(&main).map_err(failed)?;
        unlockpt(&main).map_err(failed)?;
        let path = ptsname(&main, Vec::new()).map_err(failed)?;
        let end = open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let mut attributes = tcgetattr(&end).map_err(failed)?;
        attributes.make_raw();
        tcsetattr(&end, OptionalActions::Now, &attributes).map_err(failed)?;
        fcntl_setfl(&main, OFlags::NONBLOCK).map_err(failed)?;
        Ok(Self { main, _end: end, name: path.to_string_lossy().into_owned() })
    }

    /// Path of its terminal end.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// One guest's use of a console.
#[derive(Debug)]
pub struct ConsoleKind {
    terminal: Arc<Terminal>,
    log: Option<Arc<File>>,
    block: Arc<Mutex<Block>>,
}

impl ConsoleKind {
    /// A console on a terminal, with a log or without, counted under `labels`.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no room for counters.
    pub fn new(terminal: Arc<Terminal>, log: Option<Arc<File>>, counters: &CounterFile, labels: &str) -> Result<Self> {
        let block = Arc::new(Mutex::new(counters.allocate("virtio_console", labels, ConsoleCounter::COUNT)?));
        Ok(Self { terminal, log, block })
    }
}

impl Kind for ConsoleKind {
    fn offer(&self) -> Offer {
        let queue_sizes = vec![QUEUE_SIZE, QUEUE_SIZE];
        Offer { device_id: DEVICE_ID, features: 0, config: vec![0; CONFIG_BYTES], queue_sizes }
    }

    fn model(&self, _features: u64) -> Result<Box<dyn Model>> {
        Ok(Box::new(ConsoleModel { terminal: self.terminal.clone(), log: self.log.clone(), block: self.block.clone() }))
    }
}

struct ConsoleModel {
    terminal: Arc<Terminal>,
    log: Option<Arc<File>>,
    block: Arc<Mutex<Block>>,
}

impl Model for ConsoleModel {
    fn serve(&mut self, queue: usize, request: &Request<'_>) -> Option<u32> {
        if queue == RECEIVE { self.receive(request) } else { Some(self.transmit(request)) }
    }

    fn input(&self) -> Option<BorrowedFd<'_>> {
        Some(self.terminal.main.as_fd())
    }
}

impl ConsoleModel {
    fn count(&self, counter: ConsoleCounter, amount: usize) {
        self.block.lock().unwrap_or_else(PoisonError::into_inner).add(counter as usize, amount as u64);
    }

    /// Gives what was typed, if anything was.
    fn receive(&self, request: &Request<'_>) -> Option<u32> {
        let mut typed = [0; CHUNK_BYTES];
        let room = usize::try_from(length_of(request.to)).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        if room == 0 {
            return Some(0);
        }
        let length = match read(&self.terminal.main, &mut typed[..room]) {
            Ok(length) if length != 0 => length,
            Ok(_) | Err(_) => return None,
        };
        let given = request.write(0, &typed[..length]);
        self.count(ConsoleCounter::ReceiveBytes, given);
        Some(given as u32)
    }

    fn transmit(&self, request: &Request<'_>) -> u32 {
        let mut said = [0; CHUNK_BYTES];
        let (mut at, end) = (0, length_of(request.from).min(QUEUE_SIZE as u64 * CHUNK_BYTES as u64));
        while at < end {
            let length = request.read(at, &mut said);
            let mut rest = &said[..length];
            while !rest.is_empty() {
                match write(&self.terminal.main, rest) {
                    Ok(done) => rest = &rest[done..],
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
            self.count(ConsoleCounter::Unread, rest.len());
            if let Some(log) = &self.log
                && (&**log).write_all(&said[..length]).is_err()
            {
                self.count(ConsoleCounter::Unlogged, length);
            }
            self.count(ConsoleCounter::TransmitBytes, length);
            at += length as u64;
        }
        0
    }
}
