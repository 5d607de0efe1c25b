//! The ground: structures two processes share, and the rules by which they do.
//!
//! ```text
//!   guest RAM (one sealed memfd)
//!   ┌────────────┬──────────────────────┬──────────────────────┬───────────────────────────────┐
//!   │ RAM header │ TX ring              │ RX ring              │ buffers                       │
//!   │ 4 KiB      │ indices·signal·slots │ indices·signal·slots │ frames, wherever the guest    │
//!   │            │                      │                      │ likes: descriptors say where  │
//!   └────────────┴──────────────────────┴──────────────────────┴───────────────────────────────┘
//! ```
//!
//! The guest ("north") makes, owns and lays out the memory and is the producer of every ring in it; the host
//! ("south") maps it and is the consumer. Frames to the host travel in published slots; frames to the guest are
//! written into buffers that the guest published empty, and completed in place.

#[cfg(not(loom))]
pub mod capture;
#[cfg(not(loom))]
pub mod counters;
#[cfg(not(loom))]
pub mod doorbell;
pub mod fastcall;
#[cfg(not(loom))]
pub mod histogram;
#[cfg_attr(loom, allow(dead_code))]
pub mod intc;
#[cfg(not(loom))]
pub mod labels;
pub mod layout;
#[cfg(not(loom))]
pub mod line;
#[cfg(not(loom))]
pub mod page;
#[cfg(not(loom))]
pub(crate) mod pair;
#[cfg(not(loom))]
pub mod pool;
#[cfg(not(loom))]
pub mod region;
pub mod ring;
#[cfg_attr(loom, allow(dead_code))]
pub mod sched;
pub mod signal;
#[cfg_attr(loom, allow(dead_code))]
pub mod stamp;
pub mod state;
pub mod timer;
