//! The vhost-user back end: front ends set up the queues of their network cards over a socket each.
//!
//! ```text
//!   QEMU, DPDK ──messages──▶ session: a thread a socket ──rings, whole──▶ worker: port::virtqueues
//!              ◀─replies────          ▲                 ◀─rings, back───
//!                                     └ server: listens, one front end after the other, for as long as the port is there
//! ```
//!
//! A port can be on the other side as well: `front` sets queues up for somebody else's device, which the worker drives
//! ([`crate::port::driver`]).
//!
//! Nothing here is on the way of a frame. A session owns what the front end said; rings that run belong to the worker. What
//! changes one of them is done on rings that were taken back, so memory is never unmapped under a worker.
//! Source: the vhost-user protocol, as in QEMU's `docs/interop/vhost-user.rst`; messages by the `vhost` crate.

mod early;
mod front;
pub(crate) mod server;
pub(crate) mod session;

pub use crate::virtio::memory::{GuestMemory, RegionAt};
