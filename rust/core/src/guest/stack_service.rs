//! The TCP services of a stack guest: echo, discard, and its page; and how a connection to one of them begins.
//!
//! A connection request is seen before the stack sees it, and a socket made that will take it. So buffers exist for as
//! long as their connection, and nobody's requests can use up what others' connections need: their number is bounded.
//! A connection ends when either side closes it, when its peer is silent for 25 s, or when nothing moves for two minutes.

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpEndpoint, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket,
};

use super::clock::SECOND_NS;
use super::http::{self, Facts, Parsed, Response};
use super::stack_config::{HostConfig, StackStats};
use super::stack_echo;

/// A connection on which nothing moves for so long is reset.
pub(super) const IDLE_NS: u64 = 120 * SECOND_NS;
/// A peer that says nothing at all for so long is gone, whether in a handshake or later.
const SILENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(25);
/// Silence after which a peer is asked whether it lives; twice before it is given up.
const KEEP_ALIVE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(10);
/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Echo,
    Discard,
    Http,
    /// A client's connection that says goodbye.
    Farewell,
}

impl Service {
    /// The service of a TCP port.
    const fn of(port: u16) -> Option<Self> {
        match port {
            stack_echo::ECHO => Some(Self::Echo),
            stack_echo::DISCARD | 5001 => Some(Self::Discard),
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
pub(super) struct Page {
    /// What was read and not yet answered.
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

/// One TCP connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub handle: SocketHandle,
    pub service: Service,
    /// The conversation, of HTTP only.
    page: Option<Box<Page>>,
    /// When bytes moved last.
    pub active_ns: u64,
}

impl Connection {
    pub fn new(handle: SocketHandle, service: Service, now_ns: u64) -> Self {
        let page = (service == Service::Http).then(Box::default);
        Self { handle, service, page, active_ns: now_ns }
    }

    /// Moves bytes and answers requests, and resets a connection that has been silent for too long.
    pub fn serve(
        &mut self,
        now_ns: u64,
        sockets: &mut SocketSet<'static>,
        bytes: &mut Vec<u8>,
        facts: impl FnMut() -> Facts,
    ) -> Moved {
        let socket = sockets.get_mut::<tcp::Socket>(self.handle);
        let (all, moved) = match (&mut self.page, self.service) {
            (Some(page), _) => page.serve(socket, facts),
            (None, Service::Echo) => {
                let echoed = echo(socket, bytes);
                (echoed, Moved { bytes: echoed, requests: 0 })
            }
            (None, _) => {
                let discarded = discard(socket);
                (discarded, Moved { bytes: discarded, requests: 0 })
            }
        };
        if all != 0 {
            self.active_ns = now_ns;
        } else if now_ns.saturating_sub(self.active_ns) >= IDLE_NS {
            socket.abort();
        }
        moved
    }

    /// Whether its socket can be removed.
    pub fn is_over(&self, sockets: &SocketSet<'static>) -> bool {
        match sockets.get::<tcp::Socket>(self.handle).state() {
            // A handshake that is reset goes back to listening, where nobody needs it.
            tcp::State::Closed | tcp::State::Listen => true,
            // Stragglers of our own clients find no one: their ports are not used again soon.
            tcp::State::TimeWait => self.service == Service::Farewell,
            _ => false,
        }
    }
}

/// What a connection did that is counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    /// Bytes echoed or discarded.
    pub bytes: u64,
    /// HTTP requests answered.
    pub requests: u64,
}

/// The port and the sender of a frame that asks one of our services for a connection.
pub(super) fn connection_request(
    frame: &[u8],
    mac: EthernetAddress,
    interface: &Interface,
) -> Option<(u16, IpEndpoint)> {
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
pub(super) fn listen(
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
    /// Reads requests and sends responses; bytes that moved, and what is counted.
    fn serve(&mut self, socket: &mut tcp::Socket<'_>, mut facts: impl FnMut() -> Facts) -> (u64, Moved) {
        let (mut all, mut moved) = (0, Moved::default());
        loop {
            all += self.send(socket);
            if self.has_more() {
                return (all, moved);
            }
            if self.is_over {
                all += discard(socket);
                socket.close();
                return (all, moved);
            }
            all += self.read(socket);
            let response = match http::parse(&self.head) {
                Parsed::Incomplete => {
                    close_behind(socket);
                    return (all, moved);
                }
                Parsed::Refused(status) => Response::refusal(status),
                Parsed::Request(request) => {
                    self.head.drain(..request.bytes);
                    http::respond(&request, &facts())
                }
            };
            moved.requests += 1;
            self.answer(response);
        }
    }

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
