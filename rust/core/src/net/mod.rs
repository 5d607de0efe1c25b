//! What an Ethernet switch knows: frames, addresses, and where they were last seen.
//!
//! Everything here belongs to one worker thread and takes no lock. Nothing here touches shared memory: decisions are
//! made on private copies of a frame's first bytes.

pub(crate) mod counters;
pub mod frame;
pub mod grant;
pub mod mac_table;
pub mod offload;
pub(crate) mod rarp;
pub mod switch;
