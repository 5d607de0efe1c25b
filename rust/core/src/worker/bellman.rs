//! Ringing doorbells for code that must never block: an event loop, above all.
//!
//! ```text
//!   caller   ring(bell, key, owner) ─▶ queue, one entry a key ─┐                       ┌─▶ take_blocked() ─▶ caller
//!   bellman                                                    └─▶ Ringer::ring ─ blocked ─┘ fault bell
//! ```
//!
//! A guest shares the open file of its doorbells and can make any write to them block; what frees a thread from that is
//! the watchdog's signal, and a thread that takes it takes no other. So the ringing is done by a thread of its own, and
//! callers never touch a guest's doorbell. A doorbell that blocked holds up those behind it for one watchdog's limit. Its
//! owner, who holds others and would block each in turn, is then reported and not rung again: whatever waits for it leaves
//! the queue, and forgetting a doorbell while it blocks pardons nobody. Only when the owner itself is forgotten does its
//! number mean somebody new.
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
    queue: VecDeque<Waiting>,
    /// The keys in the queue.
    queued: HashSet<u64>,
    /// Whose doorbell is being rung, and its key, unless the owner was forgotten meanwhile.
    in_hand: Option<Blocked>,
    /// Owners of whose doorbells one blocked, and who were not forgotten.
    blocked: HashSet<u64>,
    /// Those of them that nobody took yet, oldest first.
    untold: Vec<Blocked>,
    is_over: bool,
}

/// A doorbell in the queue.
struct Waiting {
    key: u64,
    owner: u64,
    bell: Doorbell,
}

/// A doorbell that blocked, by its key, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocked {
    /// Who made it block; none of its doorbells is rung any more.
    pub owner: u64,
    /// Which one it was. It may have been forgotten since.
    pub key: u64,
}

impl Book {
    /// Takes what `is_unwanted` finds out of the queue.
    fn drop_waiting(&mut self, is_unwanted: impl Fn(&Waiting) -> bool) {
        let Self { queue, queued, .. } = self;
        queue.retain(|waiting| {
            let is_kept = !is_unwanted(waiting);
            if !is_kept {
                queued.remove(&waiting.key);
            }
            is_kept
        });
    }
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

    fn ring(&self, bell: BorrowedFd<'_>, key: u64, owner: u64) -> Result<bool> {
        let mut book = self.book();
        if book.queued.contains(&key) || book.blocked.contains(&owner) {
            return Ok(true);
        }
        if book.queue.len() >= QUEUE_MAX {
            return Ok(false);
        }
        let copy = bell.try_clone_to_owned().map_err(|error| Error::machine("copy a doorbell", error))?;
        book.queue.push_back(Waiting { key, owner, bell: Doorbell::from_fd(copy) });
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

    /// Has `bell` of `owner` rung soon, and returns at once. A key that waits to be rung is not queued again, nor is any of
    /// an owner of whose doorbells one blocked.
    ///
    /// `false`: [`QUEUE_MAX`] other keys wait already; this ring is lost, which the caller counts.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: the descriptor cannot be copied.
    pub fn ring(&self, bell: BorrowedFd<'_>, key: u64, owner: u64) -> Result<bool> {
        self.shared.ring(bell, key, owner)
    }

    /// The owners who made a doorbell block since the last call, oldest first, without those forgotten since.
    #[must_use]
    pub fn take_blocked(&self) -> Vec<Blocked> {
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

    /// Lets go of a key: if it waits, it is not rung, and it may be used anew. Its owner stays what it is.
    pub fn forget(&self, key: u64) {
        let mut book = self.shared.book();
        if book.queued.contains(&key) {
            book.drop_waiting(|waiting| waiting.key == key);
        }
    }

    /// Lets go of everything known of an owner: what waits is not rung, what blocked is not told, and the number may be
    /// used anew.
    pub fn forget_owner(&self, owner: u64) {
        let mut book = self.shared.book();
        book.drop_waiting(|waiting| waiting.owner == owner);
        book.in_hand = book.in_hand.filter(|in_hand| in_hand.owner != owner);
        if book.blocked.remove(&owner) {
            book.untold.retain(|told| told.owner != owner);
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
        // Nothing in hand: its owner was forgotten while it rang, and whoever has that number now did not make us wait.
        let Some(blocked) = book.in_hand.take() else { continue };
        if answer.is_err() {
            book.drop_waiting(|waiting| waiting.owner == blocked.owner);
            book.blocked.insert(blocked.owner);
            book.untold.push(blocked);
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
        if let Some(Waiting { key, owner, bell }) = book.queue.pop_front() {
            book.queued.remove(&key);
            book.in_hand = Some(Blocked { owner, key });
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

    /// Waits for an owner who made a doorbell block.
    fn told(bellman: &Bellman) -> Vec<Blocked> {
        assert!(bellman.fault_bell().wait(Some(PATIENCE)).unwrap(), "nothing was told");
        bellman.take_blocked()
    }

    /// Waits until the thread is inside a ring.
    fn wait_in_hand(bellman: &Bellman, key: u64) {
        let start = Instant::now();
        while bellman.shared.book().in_hand.is_none_or(|in_hand| in_hand.key != key) {
            assert!(start.elapsed() < PATIENCE, "key {key} was never rung");
            thread::yield_now();
        }
    }

    #[test]
    fn blocked_doorbell_is_told_and_those_of_others_ring() {
        let bellman = Bellman::start().unwrap();
        let (blocked, fine) = (blocked_bell(), Doorbell::create().unwrap());

        let asked = [bellman.ring(blocked.as_fd(), 1, 10).unwrap(), bellman.ring(fine.as_fd(), 2, 20).unwrap()];

        assert_eq!([true, true], asked);
        assert_eq!(vec![Blocked { owner: 10, key: 1 }], told(&bellman));
        assert!(fine.wait(Some(PATIENCE)).unwrap());
    }

    #[test]
    fn owner_of_many_blocked_doorbells_holds_others_up_once() {
        let bellman = Bellman::start().unwrap();
        let (blocked, fine) = (blocked_bell(), Doorbell::create().unwrap());

        for key in 0..100 {
            bellman.ring(blocked.as_fd(), key, 10).unwrap();
        }
        bellman.ring(fine.as_fd(), 100, 20).unwrap();
        assert!(fine.wait(Some(PATIENCE)).unwrap());

        // Those behind the first one left the queue with it, so all that blocked has been told when others ring.
        assert_eq!(vec![Blocked { owner: 10, key: 0 }], bellman.take_blocked());
        assert!(bellman.shared.book().queued.is_empty());
    }

    #[test]
    fn owner_that_blocked_is_not_rung_again_until_it_is_forgotten() {
        let bellman = Bellman::start().unwrap();
        let (blocked, fine) = (blocked_bell(), Doorbell::create().unwrap());
        bellman.ring(blocked.as_fd(), 1, 10).unwrap();
        told(&bellman);

        bellman.forget(1);
        bellman.ring(fine.as_fd(), 1, 10).unwrap();
        let is_queued = bellman.shared.book().queued.contains(&1);
        bellman.forget_owner(10);
        bellman.ring(fine.as_fd(), 1, 10).unwrap();

        assert!(!is_queued);
        assert!(fine.wait(Some(PATIENCE)).unwrap());
        assert_eq!(Vec::<Blocked>::new(), bellman.take_blocked());
    }

    #[test]
    fn doorbell_that_is_forgotten_while_it_blocks_still_tells_on_its_owner() {
        let bellman = Bellman::start().unwrap();
        let blocked = blocked_bell();
        bellman.ring(blocked.as_fd(), 1, 10).unwrap();
        wait_in_hand(&bellman, 1);

        bellman.forget(1);

        assert_eq!(vec![Blocked { owner: 10, key: 1 }], told(&bellman));
    }

    #[test]
    fn owner_that_is_forgotten_while_its_doorbell_blocks_is_not_told() {
        let bellman = Bellman::start().unwrap();
        let (blocked, other, fine) = (blocked_bell(), blocked_bell(), Doorbell::create().unwrap());
        bellman.ring(blocked.as_fd(), 1, 10).unwrap();
        wait_in_hand(&bellman, 1);

        bellman.forget_owner(10);
        bellman.ring(fine.as_fd(), 1, 10).unwrap();
        bellman.ring(other.as_fd(), 2, 20).unwrap();

        assert_eq!(vec![Blocked { owner: 20, key: 2 }], told(&bellman));
        assert!(fine.wait(Some(PATIENCE)).unwrap());
    }

    #[test]
    fn doorbell_that_is_forgotten_while_it_waits_is_not_rung() {
        let shared = Arc::new(Shared::new().unwrap());
        let bellman = Bellman { shared: shared.clone(), thread: None, _watchdog: Watchdog::start().unwrap() };
        let bell = Doorbell::create().unwrap();
        shared.ring(bell.as_fd(), 1, 10).unwrap();
        shared.ring(bell.as_fd(), 2, 10).unwrap();

        bellman.forget(1);

        assert_eq!(vec![2], shared.book().queue.iter().map(|waiting| waiting.key).collect::<Vec<_>>());
        assert_eq!(HashSet::from([2]), shared.book().queued);
    }

    #[test]
    fn rings_of_a_key_that_waits_are_one() {
        let shared = Shared::new().unwrap();
        let bell = Doorbell::create().unwrap();

        let answers = [(); 3].map(|()| shared.ring(bell.as_fd(), 1, 10).unwrap());

        assert_eq!([true; 3], answers);
        assert_eq!(1, shared.book().queue.len());
    }

    #[test]
    fn full_queue_loses_the_ring_and_says_so() {
        let shared = Shared::new().unwrap();
        let bell = Doorbell::create().unwrap();
        let limit = QUEUE_MAX as u64;

        let lost = (0..=limit).find(|&key| !shared.ring(bell.as_fd(), key, 10).unwrap());
        let is_rung_already = shared.ring(bell.as_fd(), 0, 10).unwrap();

        assert_eq!((Some(limit), true), (lost, is_rung_already));
    }

    #[test]
    fn drop_ends_the_thread_even_inside_a_doorbell_that_blocks() {
        let bellman = Bellman::start().unwrap();
        let blocked = blocked_bell();
        bellman.ring(blocked.as_fd(), 1, 10).unwrap();
        wait_in_hand(&bellman, 1);
        let shared = Arc::downgrade(&bellman.shared);

        drop(bellman);

        assert_eq!(0, shared.strong_count());
    }
}
