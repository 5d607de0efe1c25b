//! Ringing doorbells for code that must never block: an event loop, above all.
//!
//! ```text
//!   caller   ring(bell, key) ─▶ queue, one entry a key ─┐                       ┌─▶ take_blocked() ─▶ caller
//!   bellman                                             └─▶ Ringer::ring ─ blocked ─┘ fault bell
//! ```
//!
//! A guest shares the open file of its doorbells and can make any write to them block; what frees a thread from that is
//! the watchdog's signal, and a thread that takes it takes no other. So the ringing is done by a thread of its own, and
//! callers never touch a guest's doorbell. A doorbell that blocked holds up those behind it for one watchdog's limit; its
//! key is then reported, and not rung again until it is forgotten.
//!
//! The queue is the only thing shared with the thread, and its lock is never held while a doorbell is rung. Each entry
//! holds a copy of the descriptor, so the caller may close its own at any time. Source: eventfd(2).

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};
use crate::shm::doorbell::Doorbell;
use crate::worker::watchdog::{Ringer, Watchdog};

/// How many keys may wait to be rung; each holds a file descriptor.
pub const QUEUE_MAX: usize = 1024;

/// What the callers and the thread know of each other.
#[derive(Default)]
struct Book {
    queue: VecDeque<(u64, Doorbell)>,
    /// The keys in the queue.
    queued: HashSet<u64>,
    /// The key that is being rung, unless it was forgotten meanwhile.
    in_hand: Option<u64>,
    /// Keys that blocked and were not forgotten.
    blocked: HashSet<u64>,
    /// Those of them that nobody took yet, oldest first.
    untold: Vec<u64>,
    is_over: bool,
}

struct Shared {
    book: Mutex<Book>,
    work: Condvar,
    fault_bell: Doorbell,
}

impl Shared {
    fn new() -> Result<Self> {
        Ok(Self { book: Mutex::default(), work: Condvar::new(), fault_bell: Doorbell::create()? })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, bell: BorrowedFd<'_>, key: u64) -> Result<bool> {
        let mut book = self.book();
        if book.queued.contains(&key) || book.blocked.contains(&key) {
            return Ok(true);
        }
        if book.queue.len() >= QUEUE_MAX {
            return Ok(false);
        }
        let copy = bell.try_clone_to_owned().map_err(|error| Error::machine("copy a doorbell", error))?;
        book.queue.push_back((key, Doorbell::from_fd(copy)));
        book.queued.insert(key);
        drop(book);
        self.work.notify_one();
        Ok(true)
    }
}

/// A thread that rings doorbells. Dropping it ends the thread; what waits then is not rung.
pub struct Bellman {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _watchdog: Watchdog,
}

impl Bellman {
    /// Starts the thread, and the watchdog that frees it.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no thread, descriptor or signal number is free.
    pub fn start() -> Result<Self> {
        let watchdog = Watchdog::start()?;
        let handle = watchdog.handle();
        let shared = Arc::new(Shared::new()?);
        let served = shared.clone();
        let (started, outcome) = crossbeam_channel::bounded(1);
        let run = move || match handle.enlist() {
            Ok(ringer) => {
                let _ = started.send(Ok(()));
                serve(&served, &ringer);
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        };
        let thread = thread::Builder::new()
            .name("vbnet-bellman".into())
            .spawn(run)
            .map_err(|error| Error::machine("start the bellman", error))?;
        let bellman = Self { shared, thread: Some(thread), _watchdog: watchdog };
        outcome.recv().map_err(|_| Error::PeerGone("the bellman"))??;
        Ok(bellman)
    }

    /// Has `bell` rung soon, and returns at once. A key that waits to be rung, or that blocked, is not queued again.
    ///
    /// `false`: [`QUEUE_MAX`] other keys wait already; this ring is lost, which the caller counts.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the descriptor cannot be copied.
    pub fn ring(&self, bell: BorrowedFd<'_>, key: u64) -> Result<bool> {
        self.shared.ring(bell, key)
    }

    /// The keys whose doorbell blocked since the last call, oldest first, without those forgotten since.
    #[must_use]
    pub fn take_blocked(&self) -> Vec<u64> {
        self.shared.fault_bell.quiet();
        std::mem::take(&mut self.shared.book().untold)
    }

    /// Readable while [`Self::take_blocked`] has something to tell. Belongs to the bellman: do not read or close it.
    #[must_use]
    pub fn fault_bell(&self) -> &Doorbell {
        &self.shared.fault_bell
    }

    /// The number of [`Self::fault_bell`], for somebody else's event loop.
    #[must_use]
    pub fn fault_fd(&self) -> RawFd {
        self.shared.fault_bell.raw()
    }

    /// Lets go of everything known of a key: what waits is not rung, what blocked is not told, and it may be used anew.
    pub fn forget(&self, key: u64) {
        let mut book = self.shared.book();
        if book.queued.remove(&key) {
            book.queue.retain(|(queued, _)| *queued != key);
        }
        if book.in_hand == Some(key) {
            book.in_hand = None;
        }
        if book.blocked.remove(&key) {
            book.untold.retain(|told| *told != key);
        }
    }
}

impl Drop for Bellman {
    fn drop(&mut self) {
        self.shared.book().is_over = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Bellman {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bellman").finish_non_exhaustive()
    }
}

fn serve(shared: &Shared, ringer: &Ringer) {
    while let Some(bell) = next(shared) {
        let answer = ringer.ring(&bell);
        let mut book = shared.book();
        // Nothing in hand: it was forgotten while it rang, and whatever its key means now is not what we rang.
        let Some(key) = book.in_hand.take() else { continue };
        if answer.is_err() {
            // A ring asked for meanwhile would block again.
            if book.queued.remove(&key) {
                book.queue.retain(|(queued, _)| *queued != key);
            }
            book.blocked.insert(key);
            book.untold.push(key);
            drop(book);
            // Ours alone and never blocking; it cannot fail.
            let _ = shared.fault_bell.ring();
        }
    }
}

/// Waits for something to ring. `None`: it is over.
fn next(shared: &Shared) -> Option<Doorbell> {
    let mut book = shared.book();
    loop {
        if book.is_over {
            return None;
        }
        if let Some((key, bell)) = book.queue.pop_front() {
            book.queued.remove(&key);
            book.in_hand = Some(key);
            return Some(bell);
        }
        book = shared.work.wait(book).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use rustix::fs::{OFlags, fcntl_setfl};
    use rustix::io::write;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// What a hostile holder does: the counter as full as it gets, and a blocking description.
    fn blocked_bell() -> Doorbell {
        let bell = Doorbell::create().unwrap();
        write(bell.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
        fcntl_setfl(bell.as_fd(), OFlags::RDWR).unwrap();
        bell
    }

    /// Waits for a key that blocked.
    fn told(bellman: &Bellman) -> Vec<u64> {
        assert!(bellman.fault_bell().wait(Some(PATIENCE)).unwrap(), "nothing was told");
        bellman.take_blocked()
    }

    /// Waits until the thread is inside a ring.
    fn wait_in_hand(bellman: &Bellman, key: u64) {
        let start = Instant::now();
        while bellman.shared.book().in_hand != Some(key) {
            assert!(start.elapsed() < PATIENCE, "key {key} was never rung");
            thread::yield_now();
        }
    }

    #[test]
    fn blocked_doorbell_is_told_and_the_others_ring() {
        let bellman = Bellman::start().unwrap();
        let (blocked, fine) = (blocked_bell(), Doorbell::create().unwrap());

        let asked = [bellman.ring(blocked.as_fd(), 1).unwrap(), bellman.ring(fine.as_fd(), 2).unwrap()];

        assert_eq!([true, true], asked);
        assert_eq!(vec![1], told(&bellman));
        assert!(fine.wait(Some(PATIENCE)).unwrap());
    }

    #[test]
    fn key_that_blocked_is_not_rung_again_until_it_is_forgotten() {
        let bellman = Bellman::start().unwrap();
        let (blocked, fine) = (blocked_bell(), Doorbell::create().unwrap());
        bellman.ring(blocked.as_fd(), 1).unwrap();
        told(&bellman);

        bellman.ring(fine.as_fd(), 1).unwrap();
        let is_queued = bellman.shared.book().queued.contains(&1);
        bellman.forget(1);
        bellman.ring(fine.as_fd(), 1).unwrap();

        assert!(!is_queued);
        assert!(fine.wait(Some(PATIENCE)).unwrap());
        assert_eq!(Vec::<u64>::new(), bellman.take_blocked());
    }

    #[test]
    fn key_that_is_forgotten_while_it_blocks_is_not_told() {
        let bellman = Bellman::start().unwrap();
        let (blocked, other, fine) = (blocked_bell(), blocked_bell(), Doorbell::create().unwrap());
        bellman.ring(blocked.as_fd(), 1).unwrap();
        wait_in_hand(&bellman, 1);

        bellman.forget(1);
        bellman.ring(fine.as_fd(), 1).unwrap();
        bellman.ring(other.as_fd(), 2).unwrap();

        assert_eq!(vec![2], told(&bellman));
        assert!(fine.wait(Some(PATIENCE)).unwrap());
    }

    #[test]
    fn rings_of_a_key_that_waits_are_one() {
        let shared = Shared::new().unwrap();
        let bell = Doorbell::create().unwrap();

        let answers = [(); 3].map(|()| shared.ring(bell.as_fd(), 1).unwrap());

        assert_eq!([true; 3], answers);
        assert_eq!(1, shared.book().queue.len());
    }

    #[test]
    fn full_queue_loses_the_ring_and_says_so() {
        let shared = Shared::new().unwrap();
        let bell = Doorbell::create().unwrap();
        let limit = QUEUE_MAX as u64;

        let lost = (0..=limit).find(|&key| !shared.ring(bell.as_fd(), key).unwrap());
        let is_rung_already = shared.ring(bell.as_fd(), 0).unwrap();

        assert_eq!((Some(limit), true), (lost, is_rung_already));
    }

    #[test]
    fn drop_ends_the_thread_even_inside_a_doorbell_that_blocks() {
        let bellman = Bellman::start().unwrap();
        let blocked = blocked_bell();
        bellman.ring(blocked.as_fd(), 1).unwrap();
        wait_in_hand(&bellman, 1);
        let shared = Arc::downgrade(&bellman.shared);

        drop(bellman);

        assert_eq!(0, shared.strong_count());
    }
}
