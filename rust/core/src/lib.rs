//! The parts of vbnet that must be fast or exact, without any Python in them.
//!
//! * [`shm`] is the ground: sealed memory regions, the descriptor ring, the shm-signal, buffer pools, counters and
//!   histograms that live in shared memory.
//! * [`net`] is what an Ethernet switch knows: frames, MAC addresses, forwarding.
//! * [`nic`] are network cards as hypervisors emulate them, whose registers guests reach by traps.
//! * [`port`] joins the switch to a ring, a card, a TAP device or itself.
//! * [`signals`] are what devices and others raise: named lines, routed at will to guests and eventfds.
//! * [`fastcall`] serves synchronous calls of guests through shared memory.
//! * [`sched`] gives guests' threads the processor time that they publish they need, within limits.
//! * [`worker`] runs ports to completion on a thread of its own.
//! * [`timer`] keeps the timers of all guests on one thread.
//! * [`watch`] lets others see what passes a port: captures, filters, traces.
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
//! | tag | orders | one end | other end |
//! | --- | --- | --- | --- |
//! | `RG-1 slots visible` | descriptor and payload before `tail` | `Producer::publish` | `Consumer::available` |
//! | `RG-2 slots returned` | completion and payload before `head` | `Consumer::release` | `Producer::completed` |
//! | `SG-1 sleep or see` | `dirty` before `enabled` / `enabled` before `dirty` | `Notifier::inject` | `Listener::arm` |
//! | `SG-2 seen means drained` | the work before its mark `dirty` | `Notifier::inject` | `Listener::acknowledge` |
//! | `IC-1 raised means visible` | the work before its pending bit | `Raiser::raise` | `Taker::take` |
//! | `IC-2 summary means look` | a pending bit before its summary bit | `Raiser::raise` | `Taker::take` |
//! | `IC-3 masked or seen` | `pending` before `mask` / `mask` before `pending` | `Raiser::raise` | `Gate::unmask` |
//! | `LN-1 latched or routed` | `latched` before `target` / `target` before `latched` | `Line::deliver` | `Line::route` |
//! | `LN-2 queued means raised` | the work before a request to raise | `Line::enqueue` | `Line::dequeue` |
//! | `FC-1 request visible` | a fastcall's request before its sequence | `Caller::begin` | `Server::take` |
//! | `FC-2 answer visible` | a fastcall's answer before its sequence | `Server::answer` | `Caller::poll` |
//! | `ST-1 slot untouched` | a state's count before the next values of its other slot | `Publisher::publish` | `Sampler::sample` |
//! | `ST-2 values before count` | a state's values before the count that names them | `Publisher::publish` | `Sampler::sample` |
//! | `RO-1 page before roll` | a record's page, laid out and frozen, before its generation | `Roll::enter` | `RollReader::look` |
//! | `CT-1 block published` | a counter block's labels before its state | `CounterFile::allocate` | `CounterReader::blocks` |
//! | `CT-2 file ready` | a counter file's version and size before its magic | `CounterFile::create` | `CounterFile::open` |
//! | `CT-3 block freed` | the old owner's stores before the block's reuse | `Block::drop` | `CounterFile::allocate` |
//! | `CT-5 clock stopped` | a counter before the word that lets it run, or ends that | `Block::start`, `Block::stop` | `CounterReader::blocks` |
//! | `CT-4 whose values` | a block's generation before and after its values | `CounterFile::allocate` | `CounterReader::blocks` |
//! | `TM-1 whole setting` | a timer's values between two looks at its control word | `Setter::set` | `Keeper::read` |
//! | `TM-2 marked slots` | what is said of a timer before its mark | `Setter::set`, `Keeper::expire` | `Keeper::take_changed`, `Taker::take` |
//! | `TM-3 sleep or see` | marks before `waiting_for` / `waiting_for` before marks | `Setter::set` | `Keeper::sleep_until` |
//! | `SC-1 words before even` | a record's words before its even number | `Record::publish` | `Record::sample` |
//! | `SC-2 whole or again` | an odd number before the words / the words before the second look | `Record::publish` | `Record::sample` |
//! | `CP-1 record visible` | a captured frame before `tail` | `CaptureRing::push` | `CaptureReader::refresh` |
//! | `CP-2 room returned` | the reader's copies before `head` | `CaptureReader::give_back` | `CaptureRing::has_room` |
//! | `VQ-1 chains visible` | a driver's chains before its index or flags | the driver | `SplitQueue::refresh`, `PackedQueue::available`, `PackedQueue::slots` |
//! | `VQ-2 used visible` | used entries and buffers before our index or flags | `complete` of both queues, `PackedQueue::mend` | the driver |
//! | `VQ-3 call or see` | our index or flags before the driver's wish / its wish before them | `complete` of both queues | the driver |
//! | `VQ-4 kick or see` | our wish before the driver's index or flags / those before our wish | `arm` of both queues | the driver |
//! | `VQ-5 trail beside ring` | descriptors shown before a position is settled | `Trail::note_packed` | `Trail::resume`, after a crash |
//! | `VQ-6 written then dirty` | a page's bytes before its bit in a log | `DirtyLog::mark` | the front end |
//! | `NC-1 descriptor done` | a card's buffer before its descriptor's state | `RamDma::publish` | `Ring::state` of a driver |
//! | `SB-1 range whole` | a guarded range's end before its start | `Guarded::watch` | the SIGBUS handler |
//! | `WD-1 ring or sleep` | a worker's note that it rings, before the watchdog sleeps | `Ringer::ring` | `Watchdog` |

#[cfg(not(loom))]
pub mod bench;
pub mod error;
#[cfg(not(loom))]
pub mod exposition;
#[cfg(not(loom))]
pub mod fabric;
#[cfg(not(loom))]
pub mod fastcall;
#[cfg(not(loom))]
pub mod guest;
#[cfg(not(loom))]
pub mod net;
#[cfg(not(loom))]
pub mod nic;
#[cfg(not(loom))]
pub mod port;
#[cfg(not(loom))]
pub mod sched;
pub mod shm;
#[cfg(not(loom))]
pub mod signals;
pub(crate) mod sync;
#[cfg(not(loom))]
pub mod timer;
#[cfg(not(loom))]
pub mod vhost_user;
#[cfg(not(loom))]
pub mod virtio;
#[cfg(not(loom))]
pub mod watch;
#[cfg(not(loom))]
pub mod worker;
