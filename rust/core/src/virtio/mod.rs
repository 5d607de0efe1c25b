//! Virtual queues as virtio has them, seen from the device, in memory that belongs to somebody else.
//!
//! ```text
//!   front end's files ──▶ memory: regions, each mapped, each address looked up ──▶ queue: one of either kind
//!   guest's RAM ────────▶         guard: what happens when a file is cut short      split · packed
//!                               inflight: where each queue is, for whoever is next     ▼   └▶ whereabouts: where a ring is
//!                               dirty: which pages were written, for who moves a guest
//!   registers (bus calls, or traps) ──▶ device: features, status, set-up ──▶ server: a thread ──▶ blk, …: a model
//!                                                                          └▶ net: queues for a port of the switch
//!   driver: the other end of a queue, for guests' cards and for ports in front of somebody else's device
//! ```

pub mod blk;
pub mod console;
pub mod device;
pub(crate) mod dirty;
pub(crate) mod driver;
pub(crate) mod guard;
pub(crate) mod inflight;
pub(crate) mod memory;
pub mod net;
pub(crate) mod packed;
pub(crate) mod queue;
pub mod rng;
pub mod server;
pub(crate) mod split;
#[cfg(any(test, fuzzing))]
mod test_memory;
mod traps;
#[cfg(any(test, fuzzing))]
pub mod walk;
pub(crate) mod whereabouts;
