//! What a stack guest can ask of others: pings, and one exchange of bytes over TCP or UDP.
//!
//! A client lives inside its host, is polled with it, and has a deadline for everything; its report goes back through a
//! channel. Round trips are measured between the polls in which a request left and its reply was found.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crossbeam_channel::Sender as Channel;
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::{icmp, tcp, udp};

use crate::error::{Error, Result};

/// Most pings of one request: what a 16-bit number tells apart.
pub const PINGS_MAX: u32 = 1 << 16;
/// Most bytes an exchange collects.
pub const EXCHANGE_MAX: usize = 64 << 20;

const ICMP_HEADER: usize = 8;
const IN_FLIGHT: usize = 16;
const TCP_BYTES: usize = 64 << 10;

/// A series of pings.
#[derive(Clone, Copy, Debug)]
pub struct PingRequest {
    /// Whom.
    pub to: IpAddr,
    /// How often, 1 to [`PINGS_MAX`].
    pub count: u32,
    /// Between two; zero sends the next when the reply to the last is there, or given up.
    pub interval: Duration,
    /// How long one reply is waited for.
    pub timeout: Duration,
    /// Bytes behind the ICMP header.
    pub bytes: usize,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Replies in time.
    pub received: u32,
    /// Round trip of each request in nanoseconds; `None`: no reply in time.
    pub rtts_ns: Vec<Option<u64>>,
}

/// Which transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A connection: the request is sent, bytes are collected.
    Tcp,
    /// One datagram out, one in.
    Udp,
}

/// One exchange.
#[derive(Clone, Debug)]
pub struct ExchangeRequest {
    /// How.
    pub transport: Transport,
    /// With whom.
    pub to: SocketAddr,
    /// What is sent.
    pub request: Vec<u8>,
    /// How many bytes are waited for, at most [`EXCHANGE_MAX`]. The other side may end earlier.
    pub want: usize,
    /// For all of it.
    pub timeout: Duration,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeEnd {
    /// All wanted bytes are there.
    Complete,
    /// The other side closed the connection first.
    Closed,
    /// The other side refused or reset the connection.
    Refused,
    /// The time was up.
    TimedOut,
}

/// What an exchange brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeReport {
    /// Bytes received.
    pub bytes: Vec<u8>,
    /// Why it ended.
    pub end: ExchangeEnd,
    /// From the request to the end, in nanoseconds.
    pub elapsed_ns: u64,
}

/// What became of a client in one poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wants to be polled at this time, or when a frame arrives.
    Waits(u64),
    /// Has reported; its socket can be removed at once.
    Done,
    /// Has reported; its connection still says goodbye.
    Leaves,
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Pings in progress.
#[derive(Debug)]
pub struct Pinger {
    handle: SocketHandle,
    request: PingRequest,
    ident: u16,
    next_ns: u64,
    /// First request that may still be answered.
    oldest: usize,
    sent_ns: Vec<u64>,
    report: PingReport,
    channel: Channel<Result<PingReport>>,
}

impl Pinger {
    /// Opens a socket for a series of pings. Requests are sent in [`Self::poll`].
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the count is out of range, or a request would not fit into the MTU.
    pub fn new(
        request: PingRequest,
        mtu: u32,
        ident: u16,
        now_ns: u64,
        sockets: &mut SocketSet<'static>,
        channel: Channel<Result<PingReport>>,
    ) -> Result<Self> {
        let header = if request.to.is_ipv4() { 20 } else { 40 };
        let most = (mtu as usize).saturating_sub(header + ICMP_HEADER);
        if !(1..=PINGS_MAX).contains(&request.count) || request.bytes > most {
            return Err(Error::Usage(format!(
                "a guest sends 1 to {PINGS_MAX} pings of at most {most} bytes; got {} of {}",
                request.count, request.bytes
            )));
        }
        if request.to.is_unspecified() || request.to.is_multicast() {
            return Err(Error::Usage(format!("a ping goes to one host; got {}", request.to)));
        }
        let room = || {
            let bytes = IN_FLIGHT * (ICMP_HEADER + request.bytes);
            icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; IN_FLIGHT], vec![0; bytes])
        };
        let mut socket = icmp::Socket::new(room(), room());
        socket.bind(icmp::Endpoint::Ident(ident)).map_err(|error| Error::Usage(format!("ping: {error}")))?;
        Ok(Self {
            handle: sockets.add(socket),
            request,
            ident,
            next_ns: now_ns,
            oldest: 0,
            sent_ns: Vec::new(),
            report: PingReport::default(),
            channel,
        })
    }

    /// The number that tells these pings from others.
    #[must_use]
    pub const fn ident(&self) -> u16 {
        self.ident
    }

    /// The socket, to be removed when the pings are over.
    #[must_use]
    pub const fn handle(&self) -> SocketHandle {
        self.handle
    }

    /// Without an interval one request is under way at a time.
    fn may_send(&self) -> bool {
        !self.request.interval.is_zero() || self.oldest == self.sent_ns.len()
    }

    /// Takes replies, sends what is due.
    pub fn poll(&mut self, now_ns: u64, sockets: &mut SocketSet<'static>) -> Step {
        let socket = sockets.get_mut::<icmp::Socket>(self.handle);
        let timeout_ns = nanoseconds(self.request.timeout);
        while let Ok((bytes, from)) = socket.recv() {
            let Some(number) = reply_number(bytes, self.ident) else { continue };
            let is_first = self.report.rtts_ns.get(number).is_some_and(Option::is_none);
            if !is_first || IpAddr::from(from) != self.request.to {
                continue;
            }
            let rtt_ns = now_ns.saturating_sub(self.sent_ns[number]);
            if rtt_ns <= timeout_ns {
                self.report.rtts_ns[number] = Some(rtt_ns);
                self.report.received += 1;
            }
        }
        while let Some(sent_ns) = self.sent_ns.get(self.oldest)
            && (self.report.rtts_ns[self.oldest].is_some() || now_ns.saturating_sub(*sent_ns) > timeout_ns)
        {
            self.oldest += 1;
        }
        while self.report.sent < self.request.count && now_ns >= self.next_ns && self.may_send() {
            let length = ICMP_HEADER + self.request.bytes;
            let Ok(room) = socket.send(length, self.request.to.into()) else { break };
            let number = self.report.sent as u16;
            room.fill(0xa5);
            let kind = if self.request.to.is_ipv4() { 8 } else { 128 };
            room[..4].copy_from_slice(&[kind, 0, 0, 0]);
            room[4..6].copy_from_slice(&self.ident.to_be_bytes());
            room[6..8].copy_from_slice(&number.to_be_bytes());
            self.report.sent += 1;
            self.report.rtts_ns.push(None);
            self.sent_ns.push(now_ns);
            self.next_ns = self.next_ns.saturating_add(nanoseconds(self.request.interval));
        }
        if self.oldest == self.request.count as usize {
            // Whoever asked may have given up waiting.
            let _ = self.channel.send(Ok(std::mem::take(&mut self.report)));
            return Step::Done;
        }
        let timeout_at = self.sent_ns.get(self.oldest).map(|sent| sent.saturating_add(timeout_ns).saturating_add(1));
        let has_next = self.report.sent < self.request.count && !self.request.interval.is_zero();
        let next_at = has_next.then_some(self.next_ns);
        Step::Waits(timeout_at.into_iter().chain(next_at).min().unwrap_or(u64::MAX))
    }
}

/// The number of our request that this ICMP message answers.
fn reply_number(bytes: &[u8], ident: u16) -> Option<usize> {
    let header: &[u8; ICMP_HEADER] = bytes.first_chunk()?;
    let is_reply = matches!(header[0], 0 | 129) && header[1] == 0;
    (is_reply && header[4..6] == ident.to_be_bytes()).then(|| u16::from_be_bytes([header[6], header[7]]).into())
}

/// An exchange in progress.
#[derive(Debug)]
pub struct Exchange {
    handle: SocketHandle,
    request: ExchangeRequest,
    sent: usize,
    was_open: bool,
    bytes: Vec<u8>,
    start_ns: u64,
    deadline_ns: u64,
    channel: Channel<Result<ExchangeReport>>,
}

impl Exchange {
    /// Opens the socket and begins.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: too much is wanted, the datagram is too long, or the address cannot be reached from here.
    pub fn new(
        request: ExchangeRequest,
        mtu: u32,
        local_port: u16,
        now_ns: u64,
        interface: &mut Interface,
        sockets: &mut SocketSet<'static>,
        channel: Channel<Result<ExchangeReport>>,
    ) -> Result<Self> {
        if request.want > EXCHANGE_MAX {
            return Err(Error::Usage(format!(
                "an exchange collects at most {EXCHANGE_MAX} bytes; got {}",
                request.want
            )));
        }
        let unreachable =
            |why: &dyn std::fmt::Display| Error::Usage(format!("{} cannot be reached: {why}", request.to));
        let handle = match request.transport {
            Transport::Tcp => {
                let mut socket = tcp::Socket::new(
                    tcp::SocketBuffer::new(vec![0; TCP_BYTES.max(2 * mtu as usize)]),
                    tcp::SocketBuffer::new(vec![0; TCP_BYTES.max(2 * mtu as usize)]),
                );
                socket.set_nagle_enabled(false);
                socket.set_ack_delay(None);
                socket.connect(interface.context(), request.to, local_port).map_err(|error| unreachable(&error))?;
                sockets.add(socket)
            }
            Transport::Udp => {
                let header = if request.to.is_ipv4() { 28 } else { 48 };
                if request.request.len() + header > mtu as usize {
                    return Err(unreachable(&format_args!("{} bytes do not fit the MTU {mtu}", request.request.len())));
                }
                let room = |bytes| udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 1], vec![0; bytes]);
                let mut socket = udp::Socket::new(room(mtu as usize), room(request.request.len().max(1)));
                socket.bind(local_port).map_err(|error| unreachable(&error))?;
                socket.send_slice(&request.request, request.to).map_err(|error| unreachable(&error))?;
                sockets.add(socket)
            }
        };
        let deadline_ns = now_ns.saturating_add(nanoseconds(request.timeout));
        Ok(Self {
            handle,
            request,
            sent: 0,
            was_open: false,
            bytes: Vec::new(),
            start_ns: now_ns,
            deadline_ns,
            channel,
        })
    }

    /// The socket.
    #[must_use]
    pub const fn handle(&self) -> SocketHandle {
        self.handle
    }

    fn ended(&mut self, sockets: &mut SocketSet<'static>) -> Option<ExchangeEnd> {
        match self.request.transport {
            Transport::Udp => {
                let socket = sockets.get_mut::<udp::Socket>(self.handle);
                while let Ok((bytes, meta)) = socket.recv() {
                    if SocketAddr::from(meta.endpoint) == self.request.to {
                        self.bytes.extend_from_slice(&bytes[..bytes.len().min(self.request.want)]);
                        return Some(ExchangeEnd::Complete);
                    }
                }
                None
            }
            Transport::Tcp => {
                let socket = sockets.get_mut::<tcp::Socket>(self.handle);
                self.was_open |= socket.may_send();
                while self.sent < self.request.request.len() && socket.can_send() {
                    self.sent += socket.send_slice(&self.request.request[self.sent..]).unwrap_or(0);
                }
                while self.bytes.len() < self.request.want && socket.can_recv() {
                    let room = self.request.want - self.bytes.len();
                    let bytes = &mut self.bytes;
                    let took = socket.recv(|data| {
                        let take = data.len().min(room);
                        bytes.extend_from_slice(&data[..take]);
                        (take, take)
                    });
                    if took.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let is_sent = self.sent == self.request.request.len();
                if self.was_open && is_sent && self.bytes.len() == self.request.want {
                    return Some(ExchangeEnd::Complete);
                }
                match socket.state() {
                    tcp::State::Closed if !self.was_open || self.bytes.is_empty() => Some(ExchangeEnd::Refused),
                    tcp::State::CloseWait | tcp::State::Closed if !socket.can_recv() => Some(ExchangeEnd::Closed),
                    _ => None,
                }
            }
        }
    }

    /// Sends and receives what can be.
    pub fn poll(&mut self, now_ns: u64, sockets: &mut SocketSet<'static>) -> Step {
        let end = match self.ended(sockets) {
            Some(end) => end,
            None if now_ns >= self.deadline_ns => ExchangeEnd::TimedOut,
            None => return Step::Waits(self.deadline_ns),
        };
        let report = ExchangeReport {
            bytes: std::mem::take(&mut self.bytes),
            end,
            elapsed_ns: now_ns.saturating_sub(self.start_ns),
        };
        // Whoever asked may have given up waiting.
        let _ = self.channel.send(Ok(report));
        match self.request.transport {
            Transport::Udp => Step::Done,
            Transport::Tcp => {
                let socket = sockets.get_mut::<tcp::Socket>(self.handle);
                if end == ExchangeEnd::TimedOut {
                    socket.abort()
                } else {
                    socket.close()
                }
                Step::Leaves
            }
        }
    }
}
