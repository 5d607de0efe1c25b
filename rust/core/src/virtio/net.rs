//! virtio-net: what a network card offers and agrees to, and one that a guest of a bus has open.
//!
//! ```text
//!   Device: registers, features, queues ──DRIVER_OK──▶ NetKind::forward ─▶ Rings ─▶ a worker's port (port/virtqueues.rs)
//!                                                      control queue ─▶ Control, on a thread of the device's own
//! ```
//!
//! Offers and agreements are the same for a front end of vhost-user and for a guest of a bus, and so are the port and how
//! frames pass it: only how queues are set up differs. The control queue, which takes a request when a driver starts, is
//! served like other devices' queues.
//!
//! Who writes what: as [`super::split`] says; the port's worker has the queues from DRIVER_OK until reset. The danger: a queue
//! that breaks a rule ends and its device needs a reset; the worker goes on. Source: virtio 1.2 §5.1.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_OK, VIRTIO_NET_S_LINK_UP,
};

use super::device::{Forwarding, Kind, Offer};
use super::memory::GuestMemory;
use super::server::{Around, Model, QueueParts, Request};
use crate::error::{Error, Result};
use crate::net::frame::MacAddress;
use crate::net::grant::Grant;
use crate::net::offload::Features;
use crate::port::PortId;
use crate::port::virtqueues::{BusEnds, Ends, LONG_HEADER, Ring, Rings, SHORT_HEADER};
use crate::virtio::queue::Queue;
use crate::worker::{Command, WorkerDoor};

/// Its number in the specification.
pub const DEVICE_ID: u32 = 1;
/// Most pairs of queues of one port.
pub const PAIRS_MAX: usize = 8;
/// Largest size of a queue that is offered to a guest of a bus.
const QUEUE_SIZE: u32 = 1024;
const CONTROL_SIZE: u32 = 16;
/// Where the configuration says whether the link is up.
pub const CONFIG_STATUS: usize = 6;
const CONFIG_BYTES: usize = 12;

pub(crate) const fn bit(number: u32) -> u64 {
    1 << number
}

/// What a driver may leave to us, and what we may leave to it, by the bits under which that is agreed on.
const TAKES: [(u64, Features); 5] = [
    (bit(VIRTIO_NET_F_CSUM), Features::CHECKSUM),
    (bit(VIRTIO_NET_F_HOST_TSO4), Features::TCP4),
    (bit(VIRTIO_NET_F_HOST_TSO6), Features::TCP6),
    (bit(VIRTIO_NET_F_HOST_ECN), Features::ECN),
    (bit(VIRTIO_NET_F_HOST_USO), Features::UDP),
];
const GIVES: [(u64, Features); 5] = [
    (bit(VIRTIO_NET_F_GUEST_CSUM), Features::CHECKSUM),
    (bit(VIRTIO_NET_F_GUEST_TSO4), Features::TCP4),
    (bit(VIRTIO_NET_F_GUEST_TSO6), Features::TCP6),
    (bit(VIRTIO_NET_F_GUEST_ECN), Features::ECN),
    (bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6), Features::UDP),
];

/// All bits of both tables.
pub(crate) const OFFLOADS: u64 = {
    let (mut bits, mut index) = (0, 0);
    while index < TAKES.len() {
        bits |= TAKES[index].0 | GIVES[index].0;
        index += 1;
    }
    bits
};

/// What of `table` was agreed on; without checksums there is nothing else.
fn agreed(features: u64, table: &[(u64, Features)]) -> Features {
    let found = table.iter().filter(|(bits, _)| features & bits == *bits);
    let found = found.fold(Features::NONE, |all, &(_, feature)| all.with(feature));
    if found.contains(Features::CHECKSUM) { found } else { Features::NONE }
}

/// The bits of `table` under which these are agreed on.
fn bits_of(wanted: Features, table: &[(u64, Features)]) -> u64 {
    table.iter().filter(|&&(_, feature)| wanted.contains(feature)).fold(0, |all, &(bits, _)| all | bits)
}

/// What a driver that wants these, each way, takes of what a device offers: nothing without what it needs. Frames to the driver
/// are left uncut only where they may fill several buffers.
pub(crate) fn offload_bits(offered: u64, wanted: Features) -> u64 {
    let mergeable = offered & if wanted.is_empty() { 0 } else { bit(VIRTIO_NET_F_MRG_RXBUF) };
    let found = |table: &[(u64, Features)]| agreed(offered, table).common(wanted).founded();
    let gives = if mergeable == 0 { found(&GIVES).uncut() } else { found(&GIVES) };
    mergeable | bits_of(found(&TAKES), &TAKES) | bits_of(gives, &GIVES)
}

/// What a driver may do by these features beyond plain frames. Whether it has frames in pieces is its own affair.
pub(crate) fn grant_of(features: u64) -> Grant {
    Grant {
        takes: agreed(features, &TAKES),
        gives: agreed(features, &GIVES),
        is_merged: features & bit(VIRTIO_NET_F_MRG_RXBUF) != 0,
        ..Grant::NOTHING
    }
}

/// Rings without queues yet, for what was agreed on.
pub(crate) fn rings_for(features: u64, memory: Arc<GuestMemory>) -> Rings {
    let is_mergeable = features & bit(VIRTIO_NET_F_MRG_RXBUF) != 0;
    let is_long = features & bit(VIRTIO_F_VERSION_1) != 0 || is_mergeable;
    Rings {
        tx: Vec::new(),
        rx: Vec::new(),
        header: if is_long { LONG_HEADER } else { SHORT_HEADER },
        is_mergeable,
        takes: agreed(features, &TAKES),
        gives: agreed(features, &GIVES),
        log: None,
        pairs: None,
        memory,
    }
}

/// `virtio_net_config`: address, link, pairs, and the MTU where it is told.
pub(crate) fn config_space(mac: MacAddress, pairs: usize, mtu: Option<u32>) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    space[..6].copy_from_slice(&mac.bytes());
    space[CONFIG_STATUS..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
    space[8..10].copy_from_slice(&(pairs as u16).to_le_bytes());
    space[10..].copy_from_slice(&u16::try_from(mtu.unwrap_or(0)).unwrap_or(u16::MAX).to_le_bytes());
    space
}

/// The word of the configuration that says whether the link is up.
#[must_use]
pub fn link_status(is_up: bool) -> [u8; 2] {
    (if is_up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 }).to_le_bytes()
}

/// A port of the fabric that takes a device's queues.
#[derive(Clone, Debug)]
pub struct NetPort {
    pub(crate) id: PortId,
    pub(crate) door: WorkerDoor,
}

impl NetPort {
    /// Its number.
    #[must_use]
    pub const fn id(&self) -> PortId {
        self.id
    }
}

/// What an operator chooses for a card.
#[derive(Clone, Copy, Debug)]
pub struct NetParams {
    /// Its address.
    pub mac: MacAddress,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Pairs of queues that a driver may use, 1 to [`PAIRS_MAX`].
    pub pairs: usize,
    /// Drivers may leave checksums and segments to the host, and be left with them.
    pub has_offloads: bool,
}

/// A network card.
#[derive(Debug)]
pub struct NetKind {
    port: NetPort,
    params: NetParams,
    /// Pairs in use; frames to the driver are spread over so many queues.
    pairs: Arc<AtomicU32>,
}

impl NetKind {
    /// A card behind this port.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the number of pairs cannot be.
    pub fn new(port: NetPort, params: NetParams) -> Result<Self> {
        if !(1..=PAIRS_MAX).contains(&params.pairs) {
            return Err(Error::Usage(format!(
                "a network card has 1 to {PAIRS_MAX} pairs of queues; got {}",
                params.pairs
            )));
        }
        Ok(Self { port, params, pairs: Arc::new(AtomicU32::new(1)) })
    }

    /// Where the control queue is for what was agreed on.
    const fn control_queue(&self, features: u64) -> usize {
        if features & bit(VIRTIO_NET_F_MQ) != 0 { 2 * self.params.pairs } else { 2 }
    }
}

impl Kind for NetKind {
    fn offer(&self) -> Offer {
        let NetParams { mac, mtu, pairs, has_offloads } = self.params;
        let mut features = if has_offloads { OFFLOADS } else { 0 }
            | bit(VIRTIO_NET_F_MAC)
            | bit(VIRTIO_NET_F_STATUS)
            | bit(VIRTIO_NET_F_MTU)
            | bit(VIRTIO_NET_F_MRG_RXBUF)
            | bit(VIRTIO_F_RING_PACKED);
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs];
        if pairs > 1 {
            features |= bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_MQ);
            queue_sizes.push(CONTROL_SIZE);
        }
        Offer { device_id: DEVICE_ID, features, config: config_space(mac, pairs, Some(mtu)).to_vec(), queue_sizes }
    }

    fn model(&self, _features: u64) -> Result<Box<dyn Model>> {
        self.pairs.store(1, Ordering::Relaxed);
        Ok(Box::new(Control { pairs: self.pairs.clone(), most: self.params.pairs as u32 }))
    }

    fn forwards(&self, queue: usize, features: u64) -> bool {
        let has_control = features & bit(VIRTIO_NET_F_CTRL_VQ) != 0;
        !(has_control && queue == self.control_queue(features))
    }

    fn forward(&self, parts: Vec<QueueParts>, features: u64, around: &Around) -> Result<Option<Box<dyn Forwarding>>> {
        let mut rings = rings_for(features, around.memory.clone());
        rings.pairs = Some(self.pairs.clone());
        self.pairs.store(1, Ordering::Relaxed);
        let kicks = parts.iter().map(|parts| (parts.index, parts.kick.clone())).collect();
        for parts in parts {
            let QueueParts { index, at, base, pair, kick, call } = parts;
            let queue = Queue::new(around.memory.clone(), &at, base, None)?;
            let (listener, notifier) = pair.host_ends();
            let (interrupt, status) = (around.interrupt.clone(), around.status.clone());
            let ends = Ends::Bus(BusEnds { listener, notifier, call, interrupt, status });
            let ring = Ring::new(index, queue, kick, ends);
            if index % 2 == 0 { rings.rx.push(ring) } else { rings.tx.push(ring) }
        }
        let port = self.port.clone();
        port.door.ask(|reply| Command::SetRings(port.id, Some(Box::new(rings)), reply))??;
        Ok(Some(Box::new(Handed { port, kicks })))
    }
}

/// Queues that a port has.
struct Handed {
    port: NetPort,
    kicks: Vec<(usize, Arc<crate::shm::doorbell::Doorbell>)>,
}

impl Forwarding for Handed {
    fn look(&self, queue: usize) -> Result<()> {
        match self.kicks.iter().find(|(index, _)| *index == queue) {
            Some((_, kick)) => kick.ring(),
            None => Ok(()),
        }
    }

    fn stop(&mut self) -> Result<Vec<(usize, u32)>> {
        let rings = match self.port.door.ask(|reply| Command::SetRings(self.port.id, None, reply)) {
            // The port is gone, and its rings with it.
            Err(Error::Closed(_) | Error::PeerGone(_)) | Ok(Err(Error::Closed(_))) => None,
            outcome => outcome??,
        };
        let rings = rings.into_iter().flat_map(|rings| rings.tx.into_iter().chain(rings.rx));
        Ok(rings.map(|ring| (ring.index, ring.queue.position())).collect())
    }
}

/// What serves the control queue.
struct Control {
    pairs: Arc<AtomicU32>,
    most: u32,
}

impl Control {
    fn obey(&self, request: &Request<'_>) -> bool {
        let mut asked = [0; 4];
        let is_whole = request.read(0, &mut asked) == asked.len();
        let [class, command, low, high] = asked;
        let pairs = u32::from(u16::from_le_bytes([low, high]));
        let is_known = u32::from(class) == VIRTIO_NET_CTRL_MQ && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
        if !(is_whole && is_known && (1..=self.most).contains(&pairs)) {
            return false;
        }
        self.pairs.store(pairs, Ordering::Relaxed);
        true
    }
}

impl Model for Control {
    fn serve(&mut self, _queue: usize, request: &Request<'_>) -> Option<u32> {
        let answer = if self.obey(request) { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
        Some(request.write(0, &[answer as u8]) as u32)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("pairs", &self.pairs).finish_non_exhaustive()
    }
}
