//! One small IP host on one venet device: answers ARP, pings, UDP and TCP echo, serves a page about itself.
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

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crossbeam_channel::Sender as Channel;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, IpAddress,
    IpCidr, IpEndpoint, IpProtocol, Ipv4Cidr, Ipv4Packet, Ipv6Packet, TcpPacket,
};

use super::clock::SECOND_NS;
use super::http::{self, Facts, Parsed, Response};
use super::row::Row;
use super::stack_client::{Exchange, ExchangeReport, ExchangeRequest, PingReport, PingRequest, Pinger, Step};
use super::stack_device::{Tally, Wire};
use super::stack_udp::{self, Verdict};
use super::venet::{Bells, ETHERNET_HEADER, MTU_MAX, MTU_MIN, Receiver, Sender};
use crate::error::{Error, Result};

/// Frames taken in one poll.
pub const BATCH: u32 = 32;
/// Rounds of sending in one poll; each sends at most one segment a connection.
const ROUNDS: u32 = 64;
/// Most clients (pings and exchanges) at a time.
const CLIENTS_MAX: usize = 16;
/// A connection on which nothing happens for so long is reset.
const IDLE_NS: u64 = 120 * SECOND_NS;
/// Keeps the reasons of a stuck egress from being asked for without pause.
const PATIENCE_NS: u64 = 1_000_000;
/// A peer that says nothing at all for so long is gone, whether in a handshake or later.
const SILENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(25);
/// Silence after which a peer is asked whether it lives; twice before it is given up.
const KEEP_ALIVE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(10);
/// Smallest MTU at which IPv6 may be spoken.
const IPV6_MTU_MIN: u32 = 1280;

/// What a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Shown on its page.
    pub name: String,
    /// Its address on the wire: unicast.
    pub mac: [u8; 6],
    /// Its address and the length of its network's prefix. Without, only IPv6 link-local is spoken.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// Where packets for other networks go.
    pub gateway: Option<Ipv4Addr>,
    /// Largest IP packet in bytes, as the device was laid out for.
    pub mtu: u32,
    /// Most TCP connections at a time.
    pub connections_max: usize,
}

impl HostConfig {
    fn check(&self) -> Result<()> {
        let usage = |text: String| Err(Error::Usage(format!("stack guest {}: {text}", self.name)));
        if !EthernetAddress(self.mac).is_unicast() {
            return usage(format!("its MAC must be a unicast address; got {}", EthernetAddress(self.mac)));
        }
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return usage(format!("its MTU is {MTU_MIN} to {MTU_MAX}; got {}", self.mtu));
        }
        let Some((address, prefix)) = self.ipv4 else {
            return match self.gateway {
                None => Ok(()),
                Some(gateway) => usage(format!("gateway {gateway} is of no use without an IPv4 address")),
            };
        };
        if prefix > 32 {
            return usage(format!("a prefix has 0 to 32 bits; got {prefix}"));
        }
        let network = Ipv4Cidr::new(address, prefix);
        let is_host = |address: Ipv4Addr| {
            !(address.is_unspecified()
                || address.is_broadcast()
                || address.is_multicast()
                || network.broadcast() == Some(address))
        };
        if !is_host(address) {
            return usage(format!("{address}/{prefix} is no address of a host"));
        }
        match self.gateway {
            Some(gateway) if !is_host(gateway) || !network.contains_addr(&gateway) || gateway == address => {
                usage(format!("gateway {gateway} is no other host of its network, {address}/{prefix}"))
            }
            _ => Ok(()),
        }
    }
}

/// What a host has counted. Names and order: [`StackStats::NAMES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Replies dropped because the ring was full.
    pub tx_drops_no_room: u64,
    /// Echo requests answered.
    pub pings_answered: u64,
    /// UDP datagrams echoed or discarded.
    pub udp_datagrams: u64,
    /// TCP connections accepted so far.
    pub tcp_connections: u64,
    /// TCP connections there are now.
    pub tcp_open: u64,
    /// TCP connections refused because there were too many.
    pub tcp_refused: u64,
    /// Bytes echoed, discarded or sunk.
    pub tcp_bytes: u64,
    /// Requests answered, whatever the status.
    pub http_requests: u64,
}

impl StackStats {
    /// Names of the counters, in the order of a host's [`Row`].
    pub const NAMES: [&'static str; 12] = [
        "rx_frames",
        "rx_bytes",
        "tx_frames",
        "tx_bytes",
        "tx_drops_no_room",
        "pings_answered",
        "udp_datagrams",
        "tcp_connections",
        "tcp_open",
        "tcp_refused",
        "tcp_bytes",
        "http_requests",
    ];

    /// Counters of a row.
    pub const WORDS: usize = Self::NAMES.len();

    /// The counters, in the order of [`Self::NAMES`].
    #[must_use]
    pub const fn words(&self) -> [u64; Self::WORDS] {
        [
            self.rx_frames,
            self.rx_bytes,
            self.tx_frames,
            self.tx_bytes,
            self.tx_drops_no_room,
            self.pings_answered,
            self.udp_datagrams,
            self.tcp_connections,
            self.tcp_open,
            self.tcp_refused,
            self.tcp_bytes,
            self.http_requests,
        ]
    }

    /// What a host's row says now.
    #[must_use]
    pub fn read(row: &Row) -> Self {
        Self {
            rx_frames: row.load(0),
            rx_bytes: row.load(1),
            tx_frames: row.load(2),
            tx_bytes: row.load(3),
            tx_drops_no_room: row.load(4),
            pings_answered: row.load(5),
            udp_datagrams: row.load(6),
            tcp_connections: row.load(7),
            tcp_open: row.load(8),
            tcp_refused: row.load(9),
            tcp_bytes: row.load(10),
            http_requests: row.load(11),
        }
    }
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Echo,
    Discard,
    Http,
    /// A client's connection that says goodbye.
    Farewell,
}

impl Service {
    const fn of(port: u16) -> Option<Self> {
        match port {
            stack_udp::ECHO => Some(Self::Echo),
            stack_udp::DISCARD | 5001 => Some(Self::Discard),
            80 => Some(Self::Http),
            _ => None,
        }
    }

    /// Bytes of receive and send buffer: what the service needs, and two segments at least of what it moves.
    const fn buffers(self, mtu: u32) -> (usize, usize) {
        const fn most(one: usize, other: usize) -> usize {
            if one > other { one } else { other }
        }
        let two = 2 * mtu as usize;
        match self {
            Self::Echo => (most(16 << 10, two), most(16 << 10, two)),
            Self::Discard => (most(64 << 10, two), 64),
            Self::Http | Self::Farewell => (http::HEAD_MAX, most(64 << 10, two)),
        }
    }
}

/// An HTTP conversation.
#[derive(Debug, Default)]
struct Page {
    head: Vec<u8>,
    response: Vec<u8>,
    /// Bytes of the response already sent.
    sent: usize,
    /// Bytes of the pattern still to send, and its next byte.
    stream: u64,
    pattern: u8,
    /// Nothing more will be asked or answered.
    is_over: bool,
}

#[derive(Debug)]
struct Connection {
    handle: SocketHandle,
    service: Service,
    page: Option<Box<Page>>,
    active_ns: u64,
}

/// One host.
pub struct Host {
    config: HostConfig,
    mac: EthernetAddress,
    interface: Interface,
    sockets: SocketSet<'static>,
    sender: Sender,
    receiver: Receiver,
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

/// The IPv6 link-local address of a MAC. Source: RFC 4291, appendix A.
#[must_use]
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

impl Host {
    /// Makes a host of a driver. Its link is down.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: MAC, MTU, address, prefix or gateway cannot be, or the device's frames are shorter than the MTU.
    pub fn new(
        config: HostConfig,
        sender: Sender,
        receiver: Receiver,
        row: Arc<Row>,
        seed: u64,
        now_ns: u64,
    ) -> Result<Self> {
        config.check()?;
        if config.mtu + ETHERNET_HEADER > sender.limit() {
            return Err(Error::Usage(format!(
                "stack guest {}: MTU {} does not fit its device's frames of {} bytes",
                config.name,
                config.mtu,
                sender.limit()
            )));
        }
        let mac = EthernetAddress(config.mac);
        let mut sender = sender;
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
            sender,
            receiver,
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

    /// Doorbells of the sending and of the receiving half, when both are connected.
    #[must_use]
    pub fn bells(&self) -> Option<(&Bells, &Bells)> {
        self.sender.bells().zip(self.receiver.bells())
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
        let Some((address, _)) = self.config.ipv4 else { return };
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
        self.tally.send(&mut self.sender, &bytes);
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
    /// The driver's: the host broke a ring, or a doorbell is broken. The guest is of no use any more.
    pub fn poll(&mut self, now_ns: u64, scratch: &mut Scratch) -> Result<Progress> {
        let sent_before = self.tally.frames_out;
        if !self.is_link_up {
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
        self.sender.flush()?;
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
        if !self.is_link_up {
            self.receiver.mask();
            return Ok(true);
        }
        if self.tally.is_blocked && !self.sender.arm()? {
            return Ok(false);
        }
        self.receiver.arm()
    }

    /// No doorbells while we poll anyway.
    pub fn unpark(&self) {
        self.receiver.mask();
    }

    /// Gives up to [`BATCH`] received frames to the stack.
    fn take_in(&mut self, now_ns: u64, scratch: &mut Scratch) -> Result<u32> {
        let now = instant(now_ns);
        let Self { receiver, sender, interface, sockets, connections, tally, stats, config, mac, .. } = self;
        let Scratch { frame: copy, draft, .. } = scratch;
        receiver.receive(BATCH, |frame| {
            copy.clear();
            copy.extend_from_slice(frame);
            match stack_udp::serve(copy, *mac, |address| interface.has_ip_addr(address)) {
                Verdict::Answer(length) => {
                    stats.udp_datagrams += 1;
                    tally.send(sender, &copy[..length]);
                    return;
                }
                Verdict::Taken => {
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
                    let page = (service == Service::Http).then(Box::default);
                    connections.push(Connection { handle, service, page, active_ns: now_ns });
                }
            }
        })
    }

    /// Moves bytes of every connection.
    fn serve(&mut self, now_ns: u64, scratch: &mut Scratch) {
        let mut connections = std::mem::take(&mut self.connections);
        for connection in &mut connections {
            let moved = match (connection.service, &mut connection.page) {
                (Service::Http, Some(page)) => self.serve_page(now_ns, connection.handle, page),
                (Service::Echo, _) => {
                    let socket = self.sockets.get_mut::<tcp::Socket>(connection.handle);
                    let moved = echo(socket, &mut scratch.bytes);
                    self.stats.tcp_bytes += moved;
                    moved
                }
                _ => {
                    let socket = self.sockets.get_mut::<tcp::Socket>(connection.handle);
                    let moved = discard(socket);
                    self.stats.tcp_bytes += moved;
                    moved
                }
            };
            let socket = self.sockets.get_mut::<tcp::Socket>(connection.handle);
            if moved != 0 {
                connection.active_ns = now_ns;
            } else if now_ns.saturating_sub(connection.active_ns) >= IDLE_NS {
                socket.abort();
            }
        }
        self.connections = connections;
    }

    /// Answers requests of one connection; bytes that moved.
    fn serve_page(&mut self, now_ns: u64, handle: SocketHandle, page: &mut Page) -> u64 {
        let mut moved = 0;
        loop {
            let socket = self.sockets.get_mut::<tcp::Socket>(handle);
            moved += page.send(socket);
            if page.has_more() {
                return moved;
            }
            if page.is_over {
                moved += discard(socket);
                socket.close();
                return moved;
            }
            moved += page.read(socket);
            let response = match http::parse(&page.head) {
                Parsed::Incomplete => {
                    close_behind(socket);
                    return moved;
                }
                Parsed::Refused(status) => Response::refusal(status),
                Parsed::Request(request) => {
                    page.head.drain(..request.bytes);
                    http::respond(&request, &self.facts(now_ns))
                }
            };
            self.stats.http_requests += 1;
            page.answer(response);
        }
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
                let (handle, service) = (exchange.handle(), Service::Farewell);
                connections.push(Connection { handle, service, page: None, active_ns: now_ns });
                false
            }
        });
        first
    }

    fn send_out(&mut self, now_ns: u64, scratch: &mut Scratch) {
        let now = instant(now_ns);
        let Self { sender, interface, sockets, tally, config, .. } = self;
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
            let is_over = match sockets.get::<tcp::Socket>(connection.handle).state() {
                // A handshake that is reset goes back to listening, where nobody needs it.
                tcp::State::Closed | tcp::State::Listen => true,
                // Stragglers of our own clients find no one: their ports are not used again soon.
                tcp::State::TimeWait => connection.service == Service::Farewell,
                _ => false,
            };
            if is_over {
                sockets.remove(connection.handle);
            }
            !is_over
        });
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
        Some(if first > now_ns || has_worked { first } else { now_ns + PATIENCE_NS })
    }

    fn current(&self) -> StackStats {
        let received = self.receiver.totals();
        StackStats {
            rx_frames: received.frames,
            rx_bytes: received.bytes,
            tx_frames: self.tally.frames_out,
            tx_bytes: self.tally.bytes_out,
            tx_drops_no_room: self.tally.drops_no_room,
            pings_answered: self.tally.pings_answered,
            tcp_open: self.connections.len() as u64,
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

/// The port and the sender of a frame that asks one of our services for a connection.
fn connection_request(frame: &[u8], mac: EthernetAddress, interface: &Interface) -> Option<(u16, IpEndpoint)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.dst_addr() != mac {
        return None;
    }
    let (from, to, payload) = match frame.ethertype() {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
            if packet.next_header() != IpProtocol::Tcp || packet.frag_offset() != 0 {
                return None;
            }
            (IpAddress::Ipv4(packet.src_addr()), IpAddress::Ipv4(packet.dst_addr()), packet.payload())
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
            if packet.next_header() != IpProtocol::Tcp {
                return None;
            }
            (IpAddress::Ipv6(packet.src_addr()), IpAddress::Ipv6(packet.dst_addr()), packet.payload())
        }
        _ => return None,
    };
    let segment = TcpPacket::new_checked(payload).ok()?;
    let asks = segment.syn() && !segment.ack() && interface.has_ip_addr(to);
    asks.then(|| (segment.dst_port(), IpEndpoint::new(from, segment.src_port())))
}

/// Makes a socket that will take the connection request from `from`, unless one of ours already does.
fn listen(
    config: &HostConfig,
    stats: &mut StackStats,
    connections: &mut Vec<Connection>,
    sockets: &mut SocketSet<'static>,
    port: u16,
    from: IpEndpoint,
) -> Option<(SocketHandle, Service)> {
    let service = Service::of(port)?;
    let known = connections.iter().position(|connection| {
        let socket = sockets.get::<tcp::Socket>(connection.handle);
        socket.remote_endpoint() == Some(from) && socket.local_endpoint().is_some_and(|local| local.port == port)
    });
    let is_waiting =
        |connection: &Connection| sockets.get::<tcp::Socket>(connection.handle).state() == tcp::State::TimeWait;
    // A connection that only waits for stragglers makes room: for its successor, or when there are too many.
    let leaving = match known {
        Some(index) if is_waiting(&connections[index]) => Some(index),
        Some(_) => return None,
        None if connections.len() < config.connections_max => None,
        None => match connections.iter().position(is_waiting) {
            Some(index) => Some(index),
            None => {
                stats.tcp_refused += 1;
                return None;
            }
        },
    };
    if let Some(index) = leaving {
        sockets.remove(connections.swap_remove(index).handle);
    }
    let (rx_bytes, tx_bytes) = service.buffers(config.mtu);
    let mut socket =
        tcp::Socket::new(tcp::SocketBuffer::new(vec![0; rx_bytes]), tcp::SocketBuffer::new(vec![0; tx_bytes]));
    socket.set_timeout(Some(SILENCE));
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    // A fresh socket listens on any port but 0, which no service has.
    socket.listen(port).ok()?;
    Some((sockets.add(socket), service))
}

/// Closes our direction when the other side has closed its own and everything of it was read.
fn close_behind(socket: &mut tcp::Socket<'_>) {
    if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
        socket.close();
    }
}

fn echo(socket: &mut tcp::Socket<'_>, bytes: &mut Vec<u8>) -> u64 {
    let mut moved = 0;
    while socket.can_recv() && socket.can_send() {
        let room = (socket.send_capacity() - socket.send_queue()).min(socket.recv_queue());
        bytes.resize(room, 0);
        let took = socket.recv_slice(bytes).unwrap_or(0);
        let gave = socket.send_slice(&bytes[..took]).unwrap_or(0);
        debug_assert_eq!(took, gave);
        moved += gave as u64;
    }
    close_behind(socket);
    moved
}

fn discard(socket: &mut tcp::Socket<'_>) -> u64 {
    let mut moved = 0;
    while socket.can_recv() {
        match socket.recv(|data| (data.len(), data.len())) {
            Ok(length) if length != 0 => moved += length as u64,
            _ => break,
        }
    }
    close_behind(socket);
    moved
}

impl Page {
    const fn has_more(&self) -> bool {
        self.sent < self.response.len() || self.stream != 0
    }

    fn answer(&mut self, response: Response) {
        self.is_over = !response.keeps_alive;
        self.response = response.bytes;
        self.sent = 0;
        self.stream = response.stream;
        self.pattern = 0;
    }

    fn read(&mut self, socket: &mut tcp::Socket<'_>) -> u64 {
        let room = http::HEAD_MAX.saturating_sub(self.head.len());
        let head = &mut self.head;
        let mut moved = 0;
        while socket.can_recv() && (moved as usize) < room {
            let took = socket.recv(|data| {
                let take = data.len().min(room - moved as usize);
                head.extend_from_slice(&data[..take]);
                (take, take)
            });
            match took {
                Ok(length) if length != 0 => moved += length as u64,
                _ => break,
            }
        }
        moved
    }

    fn send(&mut self, socket: &mut tcp::Socket<'_>) -> u64 {
        let mut moved = 0;
        while self.has_more() && socket.can_send() {
            let sent = if self.sent < self.response.len() {
                let sent = socket.send_slice(&self.response[self.sent..]).unwrap_or(0);
                self.sent += sent;
                sent
            } else {
                let (left, start) = (self.stream, self.pattern);
                let sent = socket.send(|room| {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
                    for (index, byte) in room[..length].iter_mut().enumerate() {
                        *byte = start.wrapping_add(index as u8);
                    }
                    (length, length)
                });
                let sent = sent.unwrap_or(0);
                self.pattern = start.wrapping_add(sent as u8);
                self.stream -= sent as u64;
                sent
            };
            if sent == 0 {
                break;
            }
            moved += sent as u64;
        }
        moved
    }
}
