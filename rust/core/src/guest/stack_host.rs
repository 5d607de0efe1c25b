//! One small IP host on one network card: answers ARP, pings, UDP and TCP echo, serves a page about itself.
//!
//! | port | service |
//! | --- | --- |
//! | TCP 7, UDP 7 | echo |
//! | TCP 9, UDP 9 | discard |
//! | TCP 80 | HTTP: `/` a page, `/stats` the same as JSON, `/bytes/N` a stream of N bytes |
//! | TCP 5001 | sink, for throughput: as discard |
//!
//! No thread, no clock: whoever owns a host calls [`Host::poll`] with the time and [`Host::park`] before sleeping. No
//! socket listens: one is made for each connection request that arrives and gone when the connection is, so a host that
//! nobody talks to has no buffers. Connections are bounded in number, in idle time and in the time a handshake may take.
//! Its card may be taken away and another put in: connections outlive that as they do a cable that was pulled.

use std::net::IpAddr;
use std::sync::Arc;

use crossbeam_channel::Sender as Channel;
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, IpAddress,
    IpCidr,
};

use super::clock::SECOND_NS;
use super::http::Facts;
use super::nic::{ETHERNET_HEADER, Receiver, Sender, Totals};
use super::row::Row;
use super::stack_client::{Exchange, ExchangeReport, ExchangeRequest, PingReport, PingRequest, Pinger, Step};
use super::stack_config::{HostConfig, IPV6_MTU_MIN, StackStats, link_local};
use super::stack_device::{Tally, Wire};
use super::stack_echo::{self, Verdict};
use super::stack_service::{Connection, IDLE_NS, Service, connection_request, listen};
use crate::error::{Error, Result};
use crate::shm::doorbell::Doorbell;

/// Frames taken in one poll.
pub const BATCH: u32 = 32;
/// Rounds of sending in one poll; each sends at most one segment a connection.
const ROUNDS: u32 = 64;
/// Most clients (pings and exchanges) at a time.
const CLIENTS_MAX: usize = 16;
/// Keeps what wants to be sent now and cannot from being tried without pause: for want of anything, or of room, which
/// the host announces by the doorbell.
const PATIENCE_NS: u64 = 1_000_000;
const BLOCKED_NS: u64 = 100_000_000;

/// Memory hosts of one thread share while they are polled.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The frame that came in.
    frame: Vec<u8>,
    /// The frame going out.
    draft: Vec<u8>,
    /// Bytes on their way through an echo.
    bytes: Vec<u8>,
}

/// What one poll did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Frames moved, or there is more to do: poll again.
    pub has_worked: bool,
    /// Poll again at this time at the latest, in nanoseconds.
    pub deadline_ns: Option<u64>,
}

/// The driver of its card.
struct Card {
    sender: Sender,
    receiver: Receiver,
}

/// One host.
pub struct Host {
    config: HostConfig,
    mac: EthernetAddress,
    interface: Interface,
    sockets: SocketSet<'static>,
    card: Option<Card>,
    /// What was received by cards that it has no more.
    received_before: Totals,
    connections: Vec<Connection>,
    pingers: Vec<Pinger>,
    exchanges: Vec<Exchange>,
    next_ident: u16,
    next_port: u16,
    is_link_up: bool,
    /// Something changed that the next poll must look at, frames or not.
    is_dirty: bool,
    deadline_ns: Option<u64>,
    start_ns: u64,
    tally: Tally,
    stats: StackStats,
    row: Arc<Row>,
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1000).unwrap_or(i64::MAX))
}

impl HostConfig {
    /// Refuses a driver whose frames are too short.
    fn check_card(&self, sender: &Sender) -> Result<()> {
        if self.mtu + ETHERNET_HEADER > sender.limit() {
            return Err(Error::Usage(format!(
                "stack guest {}: MTU {} does not fit its device's frames of {} bytes",
                self.name,
                self.mtu,
                sender.limit()
            )));
        }
        Ok(())
    }
}

impl Host {
    /// Makes a host of a driver. Its link is down.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: MAC, MTU, address, prefix or gateway cannot be, or the device's frames are shorter than the MTU.
    pub fn new(
        config: HostConfig,
        sender: impl Into<Sender>,
        receiver: impl Into<Receiver>,
        row: Arc<Row>,
        seed: u64,
        now_ns: u64,
    ) -> Result<Self> {
        config.check()?;
        let (mut sender, receiver) = (sender.into(), receiver.into());
        config.check_card(&sender)?;
        let mac = EthernetAddress(config.mac);
        let mut tally = Tally::default();
        let mut settings = Config::new(HardwareAddress::Ethernet(mac));
        settings.random_seed = seed;
        let mut wire =
            Wire { frame: None, sender: &mut sender, tally: &mut tally, draft: &mut Vec::new(), mtu: config.mtu };
        let mut interface = Interface::new(settings, &mut wire, instant(now_ns));
        interface.update_ip_addrs(|addresses| {
            // Two fit: an interface of smoltcp has room for two addresses.
            if let Some((address, prefix)) = config.ipv4 {
                let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(address), prefix));
            }
            if config.mtu >= IPV6_MTU_MIN {
                let _ = addresses.push(IpCidr::new(IpAddress::Ipv6(link_local(config.mac)), 64));
            }
        });
        if let Some(gateway) = config.gateway {
            // The first route always fits.
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
        Ok(Self {
            config,
            mac,
            interface,
            sockets: SocketSet::new(Vec::new()),
            card: Some(Card { sender, receiver }),
            received_before: Totals::default(),
            connections: Vec::new(),
            pingers: Vec::new(),
            exchanges: Vec::new(),
            next_ident: seed as u16,
            next_port: seed as u16,
            is_link_up: false,
            is_dirty: false,
            deadline_ns: None,
            start_ns: now_ns,
            tally,
            stats: StackStats::default(),
            row,
        })
    }

    /// What wakes the sending and the receiving half, when both are connected.
    #[must_use]
    pub fn call_bells(&self) -> Option<[&Doorbell; 2]> {
        let Card { sender, receiver } = self.card.as_ref()?;
        sender.call_bell().zip(receiver.call_bell()).map(|(tx, rx)| [tx, rx])
    }

    /// Takes its card away: when this returns nothing of it is used. Connections wait for another, pings go unanswered.
    pub fn detach(&mut self) {
        let Some(card) = self.card.take() else { return };
        let (before, last) = (&mut self.received_before, card.receiver.totals());
        (before.frames, before.bytes) = (before.frames + last.frames, before.bytes + last.bytes);
        (self.tally.is_blocked, self.tally.error) = (false, None);
        self.is_dirty = true;
    }

    /// Puts another card in, instead of the one it may have, and announces the host's address through it.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the device's frames are shorter than the MTU; the host then has no card.
    pub fn attach(&mut self, sender: impl Into<Sender>, receiver: impl Into<Receiver>) -> Result<()> {
        self.detach();
        let (sender, receiver) = (sender.into(), receiver.into());
        self.config.check_card(&sender)?;
        self.card = Some(Card { sender, receiver });
        if self.is_link_up {
            self.announce();
        }
        self.is_dirty = true;
        Ok(())
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Takes the link up, and announces the host's address; or down: nothing is sent or received until it is up again.
    pub fn set_link(&mut self, is_up: bool) {
        if is_up && !self.is_link_up {
            self.announce();
        }
        self.is_link_up = is_up;
        self.is_dirty = true;
    }

    /// Sends a gratuitous ARP, so that the switch learns where we are and neighbours forget who had our address.
    fn announce(&mut self) {
        let (Some((address, _)), Some(card)) = (self.config.ipv4, self.card.as_mut()) else { return };
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: self.mac,
            source_protocol_addr: address,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: address,
        };
        let mut bytes = vec![0; EthernetFrame::<&[u8]>::buffer_len(arp.buffer_len())];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        frame.set_src_addr(self.mac);
        frame.set_dst_addr(EthernetAddress::BROADCAST);
        frame.set_ethertype(EthernetProtocol::Arp);
        arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        self.tally.send(&mut card.sender, &bytes);
    }

    /// Begins a series of pings; the report goes into `channel`, a refusal at once.
    pub fn ping(&mut self, request: PingRequest, channel: Channel<Result<PingReport>>, now_ns: u64) {
        let reply = channel.clone();
        let begun = self.may_ask(request.to).and_then(|()| {
            while self.pingers.iter().any(|pinger| pinger.ident() == self.next_ident) {
                self.next_ident = self.next_ident.wrapping_add(1);
            }
            let ident = self.next_ident;
            self.next_ident = ident.wrapping_add(1);
            Pinger::new(request, self.config.mtu, ident, now_ns, &mut self.sockets, channel)
        });
        match begun {
            Ok(pinger) => self.pingers.push(pinger),
            // Whoever asked may have given up waiting.
            Err(error) => drop(reply.send(Err(error))),
        }
        self.is_dirty = true;
    }

    /// Begins an exchange; the report goes into `channel`, a refusal at once.
    pub fn exchange(&mut self, request: ExchangeRequest, channel: Channel<Result<ExchangeReport>>, now_ns: u64) {
        let reply = channel.clone();
        let begun = self.may_ask(request.to.ip()).and_then(|()| {
            self.next_port = self.next_port.wrapping_add(1) | 0xc000;
            let (mtu, port) = (self.config.mtu, self.next_port);
            Exchange::new(request, mtu, port, now_ns, &mut self.interface, &mut self.sockets, channel)
        });
        match begun {
            Ok(exchange) => self.exchanges.push(exchange),
            // Whoever asked may have given up waiting.
            Err(error) => drop(reply.send(Err(error))),
        }
        self.is_dirty = true;
    }

    fn may_ask(&self, to: IpAddr) -> Result<()> {
        let speaks = match to {
            IpAddr::V4(_) => self.config.ipv4.is_some(),
            IpAddr::V6(_) => self.config.mtu >= IPV6_MTU_MIN,
        };
        let name = &self.config.name;
        if !speaks {
            return Err(Error::Usage(format!("stack guest {name} has no address from which {to} can be reached")));
        }
        if self.pingers.len() + self.exchanges.len() >= CLIENTS_MAX {
            return Err(Error::Busy(format!("stack guest {name}: {CLIENTS_MAX} pings and exchanges are under way")));
        }
        Ok(())
    }

    /// Receives, serves and sends what can be.
    ///
    /// # Errors
    ///
    /// The driver's: the host broke a ring, a doorbell is broken, or the device is gone. The card is of no use any more.
    pub fn poll(&mut self, now_ns: u64, scratch: &mut Scratch) -> Result<Progress> {
        let sent_before = self.tally.frames_out;
        if !self.is_link_up || self.card.is_none() {
            // Nothing moves, but whoever waits for an answer hears that there is none.
            self.is_dirty = false;
            self.deadline_ns = self.poll_clients(now_ns);
            return Ok(Progress { has_worked: false, deadline_ns: self.deadline_ns });
        }
        let received = self.take_in(now_ns, scratch)?;
        let is_due = self.deadline_ns.is_some_and(|deadline| now_ns >= deadline);
        if received == 0 && !is_due && !self.is_dirty && !self.tally.is_blocked {
            return Ok(Progress { has_worked: false, deadline_ns: self.deadline_ns });
        }
        self.is_dirty = false;
        self.tally.is_blocked = false;
        self.serve(now_ns, scratch);
        let client_ns = self.poll_clients(now_ns);
        self.send_out(now_ns, scratch);
        self.reap();
        if let Some(card) = &mut self.card {
            card.sender.flush()?;
        }
        if let Some(error) = self.tally.error.take() {
            return Err(error);
        }
        let has_worked = received != 0 || self.tally.frames_out != sent_before || self.is_dirty;
        self.deadline_ns = self.next_deadline(now_ns, client_ns, has_worked);
        self.count();
        Ok(Progress { has_worked, deadline_ns: self.deadline_ns })
    }

    /// Asks for the doorbells before sleeping. `false`: there is work already, poll again.
    ///
    /// # Errors
    ///
    /// The host broke a ring.
    pub fn park(&mut self) -> Result<bool> {
        let Some(Card { sender, receiver }) = &mut self.card else { return Ok(true) };
        if !self.is_link_up {
            receiver.mask();
            return Ok(true);
        }
        if self.tally.is_blocked && !sender.arm()? {
            return Ok(false);
        }
        receiver.arm()
    }

    /// No doorbells while we poll anyway.
    pub fn unpark(&self) {
        if let Some(card) = &self.card {
            card.receiver.mask();
        }
    }

    /// Gives up to [`BATCH`] received frames to the stack.
    fn take_in(&mut self, now_ns: u64, scratch: &mut Scratch) -> Result<u32> {
        let now = instant(now_ns);
        let Self { card, interface, sockets, connections, tally, stats, config, mac, .. } = self;
        let Some(Card { sender, receiver }) = card else { return Ok(0) };
        let Scratch { frame: copy, draft, .. } = scratch;
        receiver.receive(BATCH, |frame| {
            copy.clear();
            copy.extend_from_slice(frame);
            match stack_echo::serve(copy, *mac, |address| interface.has_ip_addr(address)) {
                Verdict::Echo => {
                    stats.udp_datagrams += 1;
                    tally.send(sender, copy);
                    return;
                }
                Verdict::Pong => {
                    tally.send(sender, copy);
                    return;
                }
                Verdict::Swallow => {
                    stats.udp_datagrams += 1;
                    return;
                }
                Verdict::Pass => {}
            }
            let listener = connection_request(copy, *mac, interface)
                .and_then(|(port, from)| listen(config, stats, connections, sockets, port, from));
            let mut wire = Wire { frame: Some(copy), sender, tally, draft, mtu: config.mtu };
            interface.poll_ingress_single(now, &mut wire, sockets);
            if let Some((handle, service)) = listener {
                if sockets.get::<tcp::Socket>(handle).is_listening() {
                    // The request was not valid after all.
                    sockets.remove(handle);
                } else {
                    stats.tcp_connections += 1;
                    connections.push(Connection::new(handle, service, now_ns));
                }
            }
        })
    }

    /// Moves bytes of every connection.
    fn serve(&mut self, now_ns: u64, scratch: &mut Scratch) {
        self.stats.tcp_open = self.connections.len() as u64;
        let mut connections = std::mem::take(&mut self.connections);
        let mut sockets = std::mem::replace(&mut self.sockets, SocketSet::new(Vec::new()));
        for connection in &mut connections {
            let moved = connection.serve(now_ns, &mut sockets, &mut scratch.bytes, || self.facts(now_ns));
            self.stats.tcp_bytes += moved.bytes;
            self.stats.http_requests += moved.requests;
        }
        self.connections = connections;
        self.sockets = sockets;
    }

    fn facts(&self, now_ns: u64) -> Facts {
        Facts {
            name: self.config.name.clone(),
            mac: self.config.mac.map(|byte| format!("{byte:02x}")).join(":"),
            addresses: self.interface.ip_addrs().iter().map(ToString::to_string).collect(),
            mtu: self.config.mtu,
            uptime_s: now_ns.saturating_sub(self.start_ns) / SECOND_NS,
            counters: StackStats::NAMES.into_iter().zip(self.current().words()).collect(),
        }
    }

    /// Polls pings and exchanges; when the first of them wants to be polled again.
    fn poll_clients(&mut self, now_ns: u64) -> Option<u64> {
        let mut first = None;
        let mut wants = |at: u64| first = Some(first.map_or(at, |other: u64| other.min(at)));
        let sockets = &mut self.sockets;
        self.pingers.retain_mut(|pinger| match pinger.poll(now_ns, sockets) {
            Step::Waits(at) => {
                wants(at);
                true
            }
            Step::Done | Step::Leaves => {
                sockets.remove(pinger.handle());
                false
            }
        });
        let connections = &mut self.connections;
        self.exchanges.retain_mut(|exchange| match exchange.poll(now_ns, sockets) {
            Step::Waits(at) => {
                wants(at);
                true
            }
            Step::Done => {
                sockets.remove(exchange.handle());
                false
            }
            Step::Leaves => {
                connections.push(Connection::new(exchange.handle(), Service::Farewell, now_ns));
                false
            }
        });
        first
    }

    fn send_out(&mut self, now_ns: u64, scratch: &mut Scratch) {
        let now = instant(now_ns);
        let Self { card, interface, sockets, tally, config, .. } = self;
        let Some(Card { sender, .. }) = card else { return };
        for _ in 0..ROUNDS {
            let mut wire = Wire { frame: None, sender, tally, draft: &mut scratch.draft, mtu: config.mtu };
            if interface.poll_egress(now, &mut wire, sockets) == PollResult::None {
                return;
            }
        }
        self.is_dirty = true;
    }

    /// Removes connections that are over.
    fn reap(&mut self) {
        let sockets = &mut self.sockets;
        self.connections.retain(|connection| {
            let is_over = connection.is_over(sockets);
            if is_over {
                sockets.remove(connection.handle);
            }
            !is_over
        });
        self.stats.tcp_open = self.connections.len() as u64;
        if self.connections.is_empty() {
            // A guest nobody talks to any more costs what it did before.
            self.connections = Vec::new();
            if self.pingers.is_empty() && self.exchanges.is_empty() {
                self.sockets = SocketSet::new(Vec::new());
            }
        }
    }

    fn next_deadline(&mut self, now_ns: u64, client_ns: Option<u64>, has_worked: bool) -> Option<u64> {
        let stack_ns = self
            .interface
            .poll_at(instant(now_ns), &self.sockets)
            .map(|at| u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000));
        let idle_ns = self.connections.iter().map(|connection| connection.active_ns + IDLE_NS).min();
        let first = [stack_ns, client_ns, idle_ns].into_iter().flatten().min()?;
        let patience_ns = if self.tally.is_blocked { BLOCKED_NS } else { PATIENCE_NS };
        Some(if first > now_ns || has_worked { first } else { now_ns + patience_ns })
    }

    fn current(&self) -> StackStats {
        let (before, now) = (self.received_before, self.card.as_ref().map(|card| card.receiver.totals()));
        let now = now.unwrap_or_default();
        StackStats {
            rx_frames: before.frames + now.frames,
            rx_bytes: before.bytes + now.bytes,
            tx_frames: self.tally.frames_out,
            tx_bytes: self.tally.bytes_out,
            tx_drops_no_room: self.tally.drops_no_room,
            pings_answered: self.tally.pings_answered,
            ..self.stats
        }
    }

    fn count(&self) {
        for (index, word) in self.current().words().into_iter().enumerate() {
            self.row.set(index, word);
        }
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("config", &self.config).field("stats", &self.current()).finish_non_exhaustive()
    }
}
