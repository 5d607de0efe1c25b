//! The parts of vbnet that must be fast or exact, without any Python in them.
//!
//! * [`shm`] is the ground: sealed memory regions, the descriptor ring, the shm-signal, buffer pools, counters and
//!   histograms that live in shared memory.
//! * [`net`] is what an Ethernet switch knows: frames, MAC addresses, forwarding.
//! * [`port`] joins the switch to a ring, a TAP device or itself.
//! * [`worker`] runs ports to completion on a thread of its own.
//! * [`guest`] is the other side: the driver of a venet device, a small IP host, a traffic generator.
//!
//! # Who is trusted
//!
//! Whoever maps a region with us is hostile and mortal. Every shared word is copied once, checked, and never read
//! again; what a peer breaks is a [`error::Fault`], which costs the peer that queue and nobody anything else.
//!
//! # Sync points
//!
//! Every release store, acquire load and fence carries a tag; the same tag marks its partner.
//!
//! | tag | orders | writer | reader |
//! | --- | --- | --- | --- |
//! | `RG-1 slots visible` | descriptor and payload before `tail` | `Producer::publish` | `Consumer::available` |
//! | `RG-2 slots returned` | completion and payload before `head` | `Consumer::release` | `Producer::completed` |
//! | `SG-1 sleep or see` | `dirty` before `enabled` / `enabled` before `dirty` | `Notifier::inject` | `Listener::arm` |
//! | `SG-2 seen means drained` | `dirty` cleared before the queue is read | `Listener::acknowledge` | `Notifier::inject` |
//! | `CT-1 block published` | a counter block's labels before its state | `CounterFile::allocate` | `CounterFile::blocks` |

#[cfg(not(loom))]
pub mod bench;
pub mod error;
#[cfg(not(loom))]
pub mod guest;
pub mod shm;
pub(crate) mod sync;
