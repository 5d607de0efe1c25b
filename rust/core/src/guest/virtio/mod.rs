//! The guest's side of virtio devices: the `virtio-drivers` crate's queues and drivers over a transport of ours.
//!
//! ```text
//!   a driver (Disk here, or one of the crate's) ─▶ VirtQueue ─▶ arena: memory that the host can reach
//!                                              └─▶ transport: registers are bus calls or traps, kicks are signals
//! ```

pub mod arena;
pub mod disk;
pub mod net;
pub mod registers;
pub mod stream;
pub mod transport;
