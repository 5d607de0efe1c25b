//! The thread that serves the queues of one device: I/O that may be slow, kept from everybody else's.
//!
//! ```text
//!   kick (eventfd) ─┐
//!   stop (eventfd) ─┼─▶ epoll ─▶ each queue: take a chain ─▶ Model::serve ─▶ used entry ─▶ call, if the driver listens
//!   Model::input   ─┘
//! ```
//!
//! Two things spare doorbells: the ring's own suppression (its flags, or its event index) says whether the driver wants to
//! hear at all, and the shm-signal beside it says whether it sleeps. Both are armed before the thread sleeps, the ring
//! first: whoever finds the ring armed marks the signal, and whoever finds the signal asleep rings.
//!
//! Who writes what: as [`super::split`] says. The danger: a chain that breaks a rule ends its queue and no other; what a model
//! does with a chain may block this thread, and so nobody but this device.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rustix::event::epoll;

use super::device::{NEEDS_RESET, Sink, VirtioCounter};
use super::memory::GuestMemory;
use super::queue::{QueueAt, Segment, Used};
use super::split::SplitQueue;
use crate::error::{Error, Fault, Result};
use crate::shm::counters::Block;
use crate::shm::doorbell::Doorbell;
use crate::shm::pair::PairMemory;
use crate::shm::signal::{Listener, Notifier};
use crate::signals::Caller;
use crate::worker::parking::Parking;
use crate::worker::watchdog::{Ringer, WatchdogHandle};

/// Chains of one queue that are served before the next queue has its turn.
const BUDGET: usize = 64;
/// Interrupt status: a queue has used entries.
pub(crate) const QUEUE_INTERRUPT: u32 = 1;
const STOP_TOKEN: u64 = u64::MAX;
const INPUT_TOKEN: u64 = u64::MAX - 1;

/// What a driver made available: first what it wrote, then what it wants to be written.
#[derive(Debug)]
pub struct Request<'a> {
    /// Pieces to be read.
    pub(crate) from: &'a [Segment],
    /// Pieces to be written.
    pub(crate) to: &'a [Segment],
}

/// Bytes of all pieces.
pub(crate) fn length_of(pieces: &[Segment]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.bytes)).sum()
}

/// The pieces of `pieces` that hold `length` bytes behind the first `skip`; fewer where they end.
pub(crate) fn within(pieces: &[Segment], mut skip: u64, mut length: u64, found: &mut Vec<Segment>) {
    found.clear();
    for piece in pieces {
        let bytes = u64::from(piece.bytes);
        if skip >= bytes {
            skip -= bytes;
            continue;
        }
        let here = (bytes - skip).min(length);
        if here == 0 {
            return;
        }
        // SAFETY: `skip` is less than the bytes that lie there.
        found.push(Segment { place: unsafe { piece.place.add(skip as usize) }, bytes: here as u32 });
        (skip, length) = (0, length - here);
    }
}

impl Request<'_> {
    /// Copies what the driver wrote, from its byte `skip` on: how much of `target` was filled.
    pub(crate) fn read(&self, skip: u64, target: &mut [u8]) -> usize {
        let mut done = 0;
        let mut at = 0;
        for piece in self.from {
            let bytes = u64::from(piece.bytes);
            let start = skip.saturating_sub(at).min(bytes);
            let here = ((bytes - start) as usize).min(target.len() - done);
            // SAFETY: `start + here` bytes lie there, and `here` are left of the target. The driver may write meanwhile:
            // each byte is copied once, and the copy is what counts.
            unsafe {
                piece.place.add(start as usize).as_ptr().copy_to(target.as_mut_ptr().add(done), here);
            }
            done += here;
            at += bytes;
        }
        done
    }

    /// Writes `source` into what the driver posted, from its byte `skip` on: how much of it went there.
    pub(crate) fn write(&self, skip: u64, source: &[u8]) -> usize {
        let mut done = 0;
        let mut at = 0;
        for piece in self.to {
            let bytes = u64::from(piece.bytes);
            let start = skip.saturating_sub(at).min(bytes);
            let here = ((bytes - start) as usize).min(source.len() - done);
            // SAFETY: as above, the other way.
            unsafe {
                piece.place.add(start as usize).as_ptr().copy_from(source.as_ptr().add(done), here);
            }
            done += here;
            at += bytes;
        }
        done
    }
}

/// What a kind of device does with chains.
pub trait Model: Send {
    /// Serves a chain of queue `queue`: how many bytes were written into it. `None`: not now; it stays available until
    /// [`Model::input`] is readable.
    fn serve(&mut self, queue: usize, request: &Request<'_>) -> Option<u32>;

    /// What becomes readable when there is something for chains that could not be served.
    fn input(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

/// One queue, ready to run.
pub struct QueueParts {
    pub(crate) index: usize,
    pub(crate) at: QueueAt,
    /// Where a packed queue goes on.
    pub(crate) base: u32,
    pub(crate) pair: PairMemory,
    pub(crate) kick: Arc<Doorbell>,
    pub(crate) call: Arc<Caller>,
}

struct Running {
    index: usize,
    queue: SplitQueue,
    listener: Listener,
    notifier: Notifier,
    kick: Arc<Doorbell>,
    call: Arc<Caller>,
    works: bool,
    /// Its first chain waits for input.
    waits: bool,
}

/// What a server needs beside its queues.
pub struct Around {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) watchdog: WatchdogHandle,
    pub(crate) block: Arc<Mutex<Block>>,
    pub(crate) status: Arc<AtomicU32>,
    /// What a driver reads to learn why it was called.
    pub(crate) interrupt: Arc<AtomicU32>,
    pub(crate) sink: Sink,
    pub(crate) name: String,
    /// How long at most the thread stays awake after a chain, in µs.
    pub(crate) spin_us: u32,
}

/// A thread at work. Dropping it ends the thread when it is done with its chain.
#[derive(Debug)]
pub(crate) struct Server {
    bell: Arc<Doorbell>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
}

impl Server {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]: a ring is not where the driver said. [`Error::Machine`]: no thread or descriptor is left.
    pub(crate) fn start(queues: Vec<QueueParts>, model: Box<dyn Model>, around: Around) -> Result<Self> {
        let bell = Arc::new(Doorbell::create()?);
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::machine("create an epoll set", errno))?;
        let wait = |fd: std::os::fd::BorrowedFd<'_>, token, flags| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(token), flags)
                .map_err(|errno| Error::machine("wait for a queue", errno))
        };
        wait(bell.as_fd(), STOP_TOKEN, epoll::EventFlags::IN)?;
        let mut running = Vec::with_capacity(queues.len());
        for parts in queues {
            let queue = SplitQueue::new(around.memory.clone(), &parts.at, None)?;
            wait(parts.kick.as_fd(), parts.index as u64, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
            let (listener, notifier) = parts.pair.host_ends();
            running.push(Running {
                index: parts.index,
                queue,
                listener,
                notifier,
                kick: parts.kick,
                call: parts.call,
                works: true,
                waits: false,
            });
        }
        if let Some(input) = model.input() {
            wait(input, INPUT_TOKEN, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let (started, outcome) = crossbeam_channel::bounded(1);
        let (ending, ended) = crossbeam_channel::bounded(1);
        let (over, stop) = (is_over.clone(), bell.clone());
        let name = around.name.clone();
        let run = move || match around.watchdog.enlist() {
            Ok(ringer) => {
                let _ = started.send(Ok(()));
                let Around { block, status, interrupt, sink, spin_us, .. } = around;
                let parking = Parking::new(spin_us);
                let mut runner = Runner {
                    queues: running,
                    model,
                    epoll,
                    ringer,
                    block,
                    status,
                    interrupt,
                    sink,
                    parking,
                    over,
                    stop,
                };
                runner.run();
                drop(runner);
                let _ = ending.send(());
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        };
        let thread = thread::Builder::new()
            .name(name)
            .spawn(run)
            .map_err(|error| Error::machine("start a device's thread", error))?;
        outcome.recv().map_err(|_| Error::PeerGone("a device's thread"))??;
        Ok(Self { bell, is_over, thread: Some(thread), ended })
    }

    /// Ends the thread: when this returns `Ok`, nobody touches the guest's memory any more.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`]: a chain takes longer than `patience`. The thread ends when it is done with it; ask again.
    pub(crate) fn stop(&mut self, patience: Duration) -> Result<()> {
        self.ask();
        if self.ended.recv_timeout(patience).is_err_and(|error| error.is_timeout()) {
            return Err(Error::Busy(format!("a request takes the device's thread more than {patience:?}")));
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        Ok(())
    }

    /// Has the queues looked at: for transports whose kicks are not doorbells of the guest.
    pub(crate) fn look(&self) {
        // Ours alone and never blocking.
        let _ = self.bell.ring();
    }

    fn ask(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.look();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ask();
    }
}

struct Runner {
    queues: Vec<Running>,
    model: Box<dyn Model>,
    epoll: OwnedFd,
    ringer: Ringer,
    block: Arc<Mutex<Block>>,
    status: Arc<AtomicU32>,
    interrupt: Arc<AtomicU32>,
    sink: Sink,
    parking: Parking,
    over: Arc<AtomicBool>,
    stop: Arc<Doorbell>,
}

impl Runner {
    fn run(&mut self) {
        let (mut from, mut to) = (Vec::new(), Vec::new());
        let start = Instant::now();
        let now_ns = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        while !self.over.load(Ordering::Relaxed) {
            let mut is_busy = false;
            for index in 0..self.queues.len() {
                match self.turn(index, &mut from, &mut to) {
                    Ok(has_worked) => is_busy |= has_worked,
                    Err(fault) => self.end(index, fault),
                }
            }
            if is_busy {
                self.parking.work();
            } else if !self.parking.is_due(now_ns()) {
                std::hint::spin_loop();
            } else if !self.has_more() {
                self.sleep();
                self.parking.wake(now_ns());
            }
        }
    }

    fn count(&self, counter: VirtioCounter, amount: u64) {
        self.block.lock().unwrap_or_else(PoisonError::into_inner).add(counter as usize, amount);
    }

    /// Serves chains of one queue. `true`: there were some.
    fn turn(
        &mut self,
        index: usize,
        from: &mut Vec<Segment>,
        to: &mut Vec<Segment>,
    ) -> std::result::Result<bool, Fault> {
        let Self { queues, model, ringer, over, interrupt, .. } = self;
        let running = &mut queues[index];
        if !running.works {
            return Ok(false);
        }
        running.listener.acknowledge();
        running.queue.refresh()?;
        running.waits = false;
        let (mut served, mut rung) = (0, 0);
        while served < BUDGET && running.queue.known() != 0 && !over.load(Ordering::Relaxed) {
            from.clear();
            to.clear();
            let used = running.queue.request(from, to)?;
            let Some(written) = model.serve(running.index, &Request { from, to }) else {
                running.queue.rewind();
                running.waits = true;
                break;
            };
            served += 1;
            // One by one: the driver may have use for this one while the next takes its time.
            let wants_call = running.queue.complete(std::iter::once(Used { written, ..used }));
            if wants_call && running.notifier.inject() {
                interrupt.fetch_or(QUEUE_INTERRUPT, Ordering::Relaxed);
                running.call.call(ringer)?;
                rung += 1;
            }
        }
        if served != 0 {
            self.count(VirtioCounter::Chains, served as u64);
            self.count(VirtioCounter::CallsRung, rung);
            self.count(VirtioCounter::CallsSuppressed, served as u64 - rung);
        }
        Ok(served != 0)
    }

    /// A queue is not looked at again.
    #[cold]
    fn end(&mut self, index: usize, fault: Fault) {
        let running = &mut self.queues[index];
        running.works = false;
        let _ = epoll::delete(&self.epoll, &*running.kick);
        let queue = running.index;
        self.status.fetch_or(NEEDS_RESET, Ordering::Relaxed);
        self.block.lock().unwrap_or_else(PoisonError::into_inner).add(VirtioCounter::COUNT + fault.reason_index(), 1);
        self.sink.tell(queue, &fault);
    }

    /// Asks to be kicked. `true`: there is something to do already.
    fn has_more(&mut self) -> bool {
        let mut has_more = false;
        for index in 0..self.queues.len() {
            let running = &mut self.queues[index];
            if !running.works {
                continue;
            }
            // A chain that waits for input is no news, and neither are those behind it.
            let is_idle = running.queue.arm().map(|is_empty| is_empty || running.waits);
            match is_idle {
                Ok(is_idle) => has_more |= !(running.listener.arm() && is_idle),
                Err(fault) => self.end(index, fault),
            }
        }
        has_more
    }

    fn sleep(&mut self) {
        self.count(VirtioCounter::Parks, 1);
        let mut events = Vec::with_capacity(8);
        // A wait that was interrupted has heard nothing, and looking once more is harmless.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None);
        let kicks = events.iter().filter(|event| event.data.u64() < INPUT_TOKEN).count();
        self.count(VirtioCounter::Kicks, kicks as u64);
        self.count(VirtioCounter::Wakeups, 1);
        if events.iter().any(|event| event.data.u64() == STOP_TOKEN) {
            self.stop.quiet();
        }
        for running in self.queues.iter().filter(|running| running.works) {
            running.listener.mask();
            running.queue.disarm();
        }
    }
}
