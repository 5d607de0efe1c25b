//! Virtual queues as virtio has them, seen from the device, in memory that belongs to somebody else.
//!
//! ```text
//!   front end's files ──▶ memory: regions, each mapped, each address looked up ──▶ split: one queue
//!                         guard:  what happens when a file is cut short
//! ```

pub(crate) mod guard;
pub(crate) mod memory;
pub(crate) mod split;
