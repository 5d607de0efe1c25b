//! The guest's side of the bus: code that runs in guest processes and trusts nobody's completions.
//!
//! * [`nic`]: a network card of any model, what everything else here sends and receives through; [`venet`] is the driver half
//!   of a venet device, [`card`] are those of emulated cards; [`pieces`] are frames that do not lie together.
//! * [`intc`]: the serving half of an interrupt controller, and the outbox for signals to others.
//! * [`stack`]: many small IP hosts on one thread, made of [`stack_host`] (one of them), [`stack_config`] (what it is
//!   and counts), [`stack_device`] (how it reaches the driver), `stack_service`, [`stack_echo`] and [`http`] (what it
//!   serves) and [`stack_client`] (what it asks others).
//! * [`fastcall`]: the calling half of a fastcall slot.
//! * [`traffic`]: generator, sink, reflector and requester for measuring, with [`imix`] and [`sequence`] under them.
//! * [`row`]: where their statistics are counted; [`clock`]: the time they live by.

pub mod card;
pub mod clock;
pub mod fastcall;
pub mod http;
pub mod imix;
pub mod intc;
pub mod nic;
pub mod pieces;
pub mod row;
pub mod sequence;
pub mod stack;
pub mod stack_client;
pub mod stack_config;
pub mod stack_device;
pub mod stack_echo;
pub mod stack_host;
mod stack_service;
pub mod timer;
pub mod traffic;
pub mod venet;
pub mod virtio;
