//! Stack guests talk to each other through a fake host, under a clock that the test turns.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::support::{FakeHost, mac};
use crossbeam_channel::{Receiver as Answers, bounded};
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
};
use vbnet_core::error::{Error, Result};
use vbnet_core::guest::http::{self, HEAD_MAX, Parsed};
use vbnet_core::guest::row::Row;
use vbnet_core::guest::stack_client::{
    ExchangeEnd, ExchangeReport, ExchangeRequest, PingReport, PingRequest, Transport,
};
use vbnet_core::guest::stack_config::{HostConfig, StackStats, link_local};
use vbnet_core::guest::stack_host::{Host, Scratch};

const START_NS: u64 = 1_000_000_000;
const MILLISECOND_NS: u64 = 1_000_000;

/// Guests 0, 1, … at 10.0.0.1, 10.0.0.2, …, all on one fake host.
struct World {
    fake: FakeHost,
    hosts: Vec<Host>,
    rows: Vec<Arc<Row>>,
    scratch: Scratch,
    now_ns: u64,
}

fn config(number: u8, mtu: u32) -> HostConfig {
    HostConfig {
        name: format!("guest-{number}"),
        mac: mac(number),
        ipv4: Some((Ipv4Addr::new(10, 0, 0, number + 1), 24)),
        gateway: None,
        mtu,
        connections_max: 8,
    }
}

impl World {
    fn new(guests: u8, mtu: u32) -> Self {
        let mut world = Self {
            fake: FakeHost::default(),
            hosts: Vec::new(),
            rows: Vec::new(),
            scratch: Scratch::default(),
            now_ns: START_NS,
        };
        for number in 0..guests {
            world.add(config(number, mtu));
        }
        world.settle();
        world
    }

    fn add(&mut self, config: HostConfig) {
        let (sender, receiver) = self.fake.attach(config.mtu, 256);
        let row = Arc::new(Row::in_memory(StackStats::WORDS));
        let mut host = Host::new(config, sender, receiver, row.clone(), self.hosts.len() as u64, self.now_ns).unwrap();
        host.set_link(true);
        self.hosts.push(host);
        self.rows.push(row);
    }

    /// One round of everybody; whether anything moved.
    fn round(&mut self) -> bool {
        let mut has_moved = false;
        for host in &mut self.hosts {
            has_moved |= host.poll(self.now_ns, &mut self.scratch).unwrap().has_worked;
        }
        has_moved | (self.fake.pump() != 0)
    }

    /// Goes on until nothing moves.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.round() {
                return;
            }
        }
        panic!("the guests never come to rest");
    }

    /// Goes on until an answer is there; when nothing moves, time does.
    fn answer<T>(&mut self, answers: &Answers<Result<T>>) -> Result<T> {
        for _ in 0..1_000_000 {
            if let Ok(answer) = answers.try_recv() {
                return answer;
            }
            if !self.round() {
                self.now_ns += MILLISECOND_NS;
            }
        }
        panic!("no answer within a million rounds");
    }

    fn ping(&mut self, from: usize, request: PingRequest) -> Result<PingReport> {
        let (channel, answers) = bounded(1);
        self.hosts[from].ping(request, channel, self.now_ns);
        self.answer(&answers)
    }

    fn begin(&mut self, from: usize, request: ExchangeRequest) -> Answers<Result<ExchangeReport>> {
        let (channel, answers) = bounded(1);
        self.hosts[from].exchange(request, channel, self.now_ns);
        answers
    }

    fn exchange(&mut self, from: usize, request: ExchangeRequest) -> ExchangeReport {
        let answers = self.begin(from, request);
        self.answer(&answers).unwrap()
    }

    fn http(&mut self, from: usize, to: u8, text: &str) -> String {
        let report = self.exchange(from, tcp(to, 80, text.as_bytes(), usize::MAX >> 40));
        String::from_utf8(report.bytes).unwrap()
    }

    fn stats(&self, index: usize) -> StackStats {
        StackStats::read(&self.rows[index])
    }
}

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number + 1).into()
}

fn pings(to: IpAddr, count: u32, bytes: usize) -> PingRequest {
    let (interval, timeout) = (Duration::from_millis(10), Duration::from_secs(1));
    PingRequest { to, count, interval, timeout, bytes }
}

fn tcp(to: u8, port: u16, request: &[u8], want: usize) -> ExchangeRequest {
    ExchangeRequest {
        transport: Transport::Tcp,
        to: SocketAddr::new(address(to), port),
        request: request.to_vec(),
        want,
        timeout: Duration::from_secs(60),
    }
}

fn udp(to: u8, port: u16, request: &[u8]) -> ExchangeRequest {
    ExchangeRequest { transport: Transport::Udp, want: 65_535, ..tcp(to, port, request, 0) }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 256) as u8).collect()
}

#[test]
fn pings_between_guests_are_all_answered() {
    //! ARP resolves on the first ping, and every request finds its reply.
    let mut world = World::new(2, 1500);

    let report = world.ping(0, pings(address(1), 20, 56)).unwrap();

    assert_eq!((20, 20), (report.sent, report.received));
    assert_eq!(20, report.rtts_ns.iter().flatten().count());
    assert_eq!(20, world.stats(1).pings_answered);
}

#[test]
fn the_largest_ping_of_the_mtu_is_answered_and_a_larger_one_refused() {
    //! 1500 bytes of IP carry 1472 bytes of ping; one more cannot be sent without fragments.
    let mut world = World::new(2, 1500);

    let largest = world.ping(0, pings(address(1), 1, 1472)).unwrap();
    let larger = world.ping(0, pings(address(1), 1, 1473));

    assert_eq!(1, largest.received);
    assert!(matches!(larger, Err(Error::Usage(_))), "{larger:?}");
}

#[test]
fn pings_to_nobody_are_reported_as_unanswered() {
    //! An address nobody has costs its pings and nothing else.
    let mut world = World::new(2, 1500);

    let report = world.ping(0, pings(address(77), 3, 56)).unwrap();

    assert_eq!(PingReport { sent: 3, received: 0, rtts_ns: vec![None; 3] }, report);
}

#[test]
fn ipv6_link_local_pings_are_answered() {
    //! Neighbours are found by solicitation, without any address having been configured.
    let mut world = World::new(2, 1500);

    let report = world.ping(0, pings(link_local(mac(1)).into(), 3, 56)).unwrap();

    assert_eq!((3, 3), (report.sent, report.received));
    assert_eq!(3, world.stats(1).pings_answered);
}

#[test]
fn udp_echo_returns_every_size() {
    //! A datagram comes back as it was sent, up to the largest of the MTU.
    let mut world = World::new(2, 1500);

    for length in [1, 2, 17, 512, 1472] {
        let report = world.exchange(0, udp(1, 7, &pattern(length)));

        assert_eq!((ExchangeEnd::Complete, pattern(length)), (report.end, report.bytes));
    }
    assert_eq!(5, world.stats(1).udp_datagrams);
}

#[test]
fn udp_discard_answers_nothing() {
    //! Port 9 takes a datagram and says nothing, not even that the port is closed.
    let mut world = World::new(2, 1500);
    world.ping(0, pings(address(1), 1, 8)).unwrap();
    let sent_before = world.stats(1).tx_frames;

    let report = world.exchange(0, ExchangeRequest { timeout: Duration::from_secs(1), ..udp(1, 9, b"gone") });

    assert_eq!((ExchangeEnd::TimedOut, 1), (report.end, world.stats(1).udp_datagrams));
    assert_eq!(sent_before, world.stats(1).tx_frames);
}

/// An Ethernet frame around a packet.
fn frame(to: [u8; 6], from: [u8; 6], kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind, packet].concat()
}

/// A ping of IPv4, or its answer.
fn ping_packet(from: [u8; 4], to: [u8; 4], kind: IcmpKind) -> Vec<u8> {
    let (ident, seq_no, data) = (7, 1, b"who is there".as_slice());
    let message = match kind {
        IcmpKind::Request => Icmpv4Repr::EchoRequest { ident, seq_no, data },
        IcmpKind::Reply => Icmpv4Repr::EchoReply { ident, seq_no, data },
    };
    let header = Ipv4Repr {
        src_addr: from.into(),
        dst_addr: to.into(),
        next_header: IpProtocol::Icmp,
        payload_len: message.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; header.buffer_len() + message.buffer_len()];
    header.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    message.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[20..]), &ChecksumCapabilities::default());
    bytes
}

/// The same of IPv6.
fn ping6_packet(from: Ipv6Addr, to: Ipv6Addr, kind: IcmpKind) -> Vec<u8> {
    let (ident, seq_no, data) = (7, 1, b"who is there".as_slice());
    let message = match kind {
        IcmpKind::Request => Icmpv6Repr::EchoRequest { ident, seq_no, data },
        IcmpKind::Reply => Icmpv6Repr::EchoReply { ident, seq_no, data },
    };
    let header = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; header.buffer_len() + message.buffer_len()];
    header.emit(&mut Ipv6Packet::new_unchecked(&mut bytes));
    let mut behind = Icmpv6Packet::new_unchecked(&mut bytes[40..]);
    message.emit(&from, &to, &mut behind, &ChecksumCapabilities::default());
    bytes
}

#[derive(Clone, Copy)]
enum IcmpKind {
    Request,
    Reply,
}

#[test]
fn the_first_ping_of_a_stranger_is_answered_at_once() {
    //! A guest that came back is still known to its neighbours: they ping without asking for its address first, and it
    //! does not know theirs. The answer goes where the ping came from, behind a router too.
    let mut world = World::new(0, 1500);
    world.add(config(0, 1500));
    world.hosts[0].poll(START_NS, &mut Scratch::default()).unwrap();
    world.fake.take(0);
    let (own, neighbour, far) = ([10, 0, 0, 1], [10, 0, 0, 9], [172, 16, 3, 4]);
    let (own6, neighbour6) = (link_local(mac(0)), link_local(mac(9)));
    let requests = [
        frame(mac(0), mac(9), [0x08, 0x00], &ping_packet(neighbour, own, IcmpKind::Request)),
        frame(mac(0), mac(9), [0x08, 0x00], &ping_packet(far, own, IcmpKind::Request)),
        frame(mac(0), mac(9), [0x86, 0xdd], &ping6_packet(neighbour6, own6, IcmpKind::Request)),
    ];

    for request in &requests {
        world.fake.deliver(0, request);
    }
    world.hosts[0].poll(START_NS, &mut Scratch::default()).unwrap();

    let replies = [
        frame(mac(9), mac(0), [0x08, 0x00], &ping_packet(own, neighbour, IcmpKind::Reply)),
        frame(mac(9), mac(0), [0x08, 0x00], &ping_packet(own, far, IcmpKind::Reply)),
        frame(mac(9), mac(0), [0x86, 0xdd], &ping6_packet(own6, neighbour6, IcmpKind::Reply)),
    ];
    assert_eq!(replies.as_slice(), world.fake.take(0));
    assert_eq!(3, world.stats(0).pings_answered);
}

#[test]
fn a_ping_that_is_not_whole_or_not_ours_is_not_answered() {
    //! A broken checksum, another address, a sender that is everybody: silence.
    let mut world = World::new(0, 1500);
    world.add(config(0, 1500));
    world.hosts[0].poll(START_NS, &mut Scratch::default()).unwrap();
    world.fake.take(0);
    let whole = ping_packet([10, 0, 0, 9], [10, 0, 0, 1], IcmpKind::Request);
    let mut broken = whole.clone();
    *broken.last_mut().unwrap() ^= 1;
    let others = ping_packet([10, 0, 0, 9], [10, 0, 0, 2], IcmpKind::Request);
    let everybody = ping_packet([255, 255, 255, 255], [10, 0, 0, 1], IcmpKind::Request);
    let own = ping_packet([10, 0, 0, 1], [10, 0, 0, 1], IcmpKind::Request);

    for packet in [&broken, &others, &everybody, &own] {
        world.fake.deliver(0, &frame(mac(0), mac(9), [0x08, 0x00], packet));
    }
    world.fake.deliver(0, &frame(mac(0), [0xff; 6], [0x08, 0x00], &whole));
    world.fake.deliver(0, &frame(mac(1), mac(9), [0x08, 0x00], &whole));
    world.hosts[0].poll(START_NS, &mut Scratch::default()).unwrap();

    assert_eq!(0, world.stats(0).pings_answered);
}

#[test]
fn an_echo_to_an_echo_service_is_not_answered() {
    //! Two echo services would never stop talking to each other.
    let mut world = World::new(1, 1500);
    let (sender, receiver) = world.fake.attach(1500, 64);
    let mut frame = vec![0u8; 14 + 20 + 8 + 4];
    frame[0..6].copy_from_slice(&mac(0));
    frame[6..12].copy_from_slice(&mac(9));
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1]);
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame[34..42].copy_from_slice(&[0, 7, 0, 7, 0, 12, 0, 0]);
    let sent_before = world.stats(0).tx_frames;

    world.fake.deliver(0, &frame);
    world.settle();

    assert_eq!((1, sent_before), (world.stats(0).udp_datagrams, world.stats(0).tx_frames));
    drop((sender, receiver));
}

#[test]
fn tcp_echo_returns_more_than_its_buffers_hold() {
    //! Three hundred kilobytes pass through buffers of sixteen, in order and unchanged.
    let mut world = World::new(2, 1500);
    let bytes = pattern(300_000);

    let report = world.exchange(0, tcp(1, 7, &bytes, bytes.len()));

    assert_eq!(ExchangeEnd::Complete, report.end);
    assert!(bytes == report.bytes);
    assert_eq!((1, 300_000), (world.stats(1).tcp_connections, world.stats(1).tcp_bytes));
}

#[test]
fn tcp_echo_survives_a_network_that_loses_frames() {
    //! Every thirteenth frame is lost; what arrives is still whole.
    let mut world = World::new(2, 1500);
    let mut count = 0;
    world.fake.set_hook(move |frame| {
        count += 1;
        if count % 13 == 0 { Vec::new() } else { vec![frame.to_vec()] }
    });
    let bytes = pattern(60_000);

    let report = world.exchange(0, tcp(1, 7, &bytes, bytes.len()));

    assert_eq!(ExchangeEnd::Complete, report.end);
    assert!(bytes == report.bytes);
}

#[test]
fn jumbo_frames_carry_tcp() {
    //! A device with the largest MTU works like any other.
    let mut world = World::new(2, 65_535);
    let bytes = pattern(400_000);

    let report = world.exchange(0, tcp(1, 7, &bytes, bytes.len()));

    assert_eq!(ExchangeEnd::Complete, report.end);
    assert!(bytes == report.bytes);
}

#[test]
fn the_sink_counts_what_it_swallows() {
    //! Port 5001 takes bytes and sends none.
    let mut world = World::new(2, 1500);

    let report = world.exchange(0, tcp(1, 5001, &pattern(200_000), 0));
    world.settle();

    assert_eq!((ExchangeEnd::Complete, 0), (report.end, report.bytes.len()));
    assert_eq!(200_000, world.stats(1).tcp_bytes);
}

#[test]
fn a_closed_port_refuses() {
    //! Nobody serves port 81, and the client hears so at once.
    let mut world = World::new(2, 1500);

    let report = world.exchange(0, tcp(1, 81, b"x", 1));

    assert_eq!(ExchangeEnd::Refused, report.end);
}

#[test]
fn the_page_names_its_guest_and_escapes_the_name() {
    //! A name is text from a user: it must not become markup.
    let mut world = World::new(1, 1500);
    world.add(HostConfig { name: "<b>&\"x\"</b>".to_owned(), ..config(1, 1500) });

    let page = world.http(0, 1, "GET / HTTP/1.0\r\n\r\n");

    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(page.contains("<h1>&lt;b&gt;&amp;&quot;x&quot;&lt;/b&gt;</h1>"), "{page}");
    assert!(page.contains("02:76:62:00:00:01"), "{page}");
    assert!(page.contains("10.0.0.2/24"), "{page}");
}

#[test]
fn one_connection_answers_many_requests() {
    //! Keep-alive with pipelining: three requests in one segment, three responses, then the end.
    let mut world = World::new(2, 1500);
    let text = "GET /stats HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\n\r\nGET /none HTTP/1.1\r\nConnection: close\r\n\r\n";

    let answer = world.http(0, 1, text);

    assert_eq!(2, answer.matches("HTTP/1.1 200 OK").count(), "{answer}");
    assert_eq!(1, answer.matches("HTTP/1.1 404 Not Found").count(), "{answer}");
    assert!(answer.contains("\"name\": \"guest-1\""), "{answer}");
    assert_eq!((1, 3), (world.stats(1).tcp_connections, world.stats(1).http_requests));
}

#[test]
fn bytes_are_streamed_as_a_pattern() {
    //! `/bytes/N` is N bytes counting up, however large N is.
    let mut world = World::new(2, 1500);

    let report = world.exchange(0, tcp(1, 80, b"GET /bytes/1000000 HTTP/1.0\r\n\r\n", 2_000_000));

    let body = report.bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let expected: Vec<u8> = (0..1_000_000).map(|index: u32| index as u8).collect();
    assert_eq!(ExchangeEnd::Closed, report.end);
    assert!(expected == report.bytes[body..]);
}

#[test]
fn bad_requests_end_with_the_status_that_says_why() {
    //! Nonsense is answered once and then nothing more is read.
    let mut world = World::new(2, 1500);
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(5000));

    for (text, status) in [
        ("POST / HTTP/1.1\r\n\r\n", "405"),
        ("GET / HTTP/2.0\r\n\r\n", "505"),
        ("nonsense\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "413"),
        ("GET /bytes/99999999999999999999 HTTP/1.0\r\n\r\n", "404"),
        (endless.as_str(), "431"),
    ] {
        let answer = world.http(0, 1, text);

        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{text}: {answer}");
        assert_eq!(1, answer.matches("HTTP/1.1").count(), "{answer}");
    }
}

#[test]
fn connections_are_bounded_and_come_back() {
    //! The ninth of eight connections is refused; when they end, there is room again.
    let mut world = World::new(2, 1500);
    let waiting: Vec<_> = (0..8).map(|_| world.begin(0, tcp(1, 80, b"GET", 1))).collect();
    world.settle();

    let ninth = world.exchange(0, tcp(1, 80, b"GET", 1));
    assert_eq!((8, ExchangeEnd::Refused), (world.stats(1).tcp_open, ninth.end));
    assert_eq!(1, world.stats(1).tcp_refused);

    for answers in waiting {
        assert_eq!(ExchangeEnd::TimedOut, world.answer(&answers).unwrap().end);
    }
    world.settle();
    let after = world.exchange(0, tcp(1, 7, b"again", 5));
    assert_eq!((ExchangeEnd::Complete, b"again".to_vec()), (after.end, after.bytes));
}

#[test]
fn a_silent_connection_is_reset_after_two_minutes() {
    //! A peer that lives and says nothing does not keep its buffers for ever.
    let mut world = World::new(2, 1500);
    let request = ExchangeRequest { timeout: Duration::from_secs(600), ..tcp(1, 80, b"GET /", 100) };
    let answers = world.begin(0, request);

    let report = world.answer(&answers).unwrap();
    world.settle();

    assert_eq!((ExchangeEnd::Refused, 0), (report.end, world.stats(1).tcp_open));
    assert!((119_000..130_000).contains(&(report.elapsed_ns / MILLISECOND_NS)), "{}", report.elapsed_ns);
}

#[test]
fn a_link_that_comes_up_announces_its_address() {
    //! The first frame is a gratuitous ARP: who has 10.0.0.1, tell 10.0.0.1, to everybody.
    let mut world = World::new(0, 1500);
    world.add(config(0, 1500));
    let mut expected = vec![0xff; 6];
    expected.extend(mac(0));
    expected.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    expected.extend(mac(0));
    expected.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);

    world.hosts[0].poll(START_NS, &mut Scratch::default()).unwrap();

    assert_eq!(vec![expected], world.fake.take(0));
}

#[test]
fn nothing_passes_a_link_that_is_down() {
    //! Pings through it time out, frames to it are not answered, and after it is up again all is well.
    let mut world = World::new(2, 1500);
    world.hosts[1].set_link(false);

    assert_eq!(0, world.ping(0, pings(address(1), 2, 8)).unwrap().received);
    assert_eq!(0, world.ping(1, pings(address(0), 2, 8)).unwrap().received);

    world.hosts[1].set_link(true);
    assert_eq!(2, world.ping(0, pings(address(1), 2, 8)).unwrap().received);
}

#[test]
fn garbage_frames_hurt_nobody() {
    //! Random bytes behind plausible headers: no panic, no answer storm, and the guest still answers.
    let mut world = World::new(2, 1500);
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..20_000u32 {
        let length = 14 + (random() % 200) as usize;
        let mut frame: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        frame[0..6].copy_from_slice(&mac(1));
        frame[6..12].copy_from_slice(&mac(9));
        let kind: [u8; 2] = [[0x08, 0x06], [0x08, 0x00], [0x86, 0xdd]][round as usize % 3];
        frame[12..14].copy_from_slice(&kind);
        if kind == [0x08, 0x00] && length >= 54 {
            // A valid header, so that what is behind it is looked at.
            let total = (length - 14) as u16;
            let protocol = [1, 6, 17][random() as usize % 3];
            let header =
                [0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
            frame[14..34].copy_from_slice(&header);
            let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
            let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
            if protocol == 6 {
                frame[36..38].copy_from_slice(&[0, 80]);
                frame[46] = 0x50;
            }
        }
        world.fake.deliver(1, &frame);
        if round % 32 == 0 {
            world.settle();
        }
    }
    world.settle();

    assert_eq!(0, world.stats(1).tcp_open);
    assert_eq!(5, world.ping(0, pings(address(1), 5, 56)).unwrap().received);
}

#[test]
fn a_connection_outlives_the_card_it_was_made_through() {
    //! A server's card is taken away in the middle of an exchange and another put in: not a byte is missing.
    let mut world = World::new(2, 1500);
    let request: Vec<u8> = (0..300_000u32).map(|index| (index / 7) as u8).collect();
    let answers = world.begin(0, tcp(1, 7, &request, request.len()));
    for _ in 0..20 {
        world.round();
    }
    let before = world.hosts[1].call_bells().is_some();
    world.hosts[1].detach();
    for _ in 0..20 {
        world.round();
    }
    let without = world.hosts[1].call_bells().is_some();
    let (sender, receiver) = world.fake.attach(1500, 256);
    world.hosts[1].attach(sender, receiver).unwrap();

    let report = world.answer(&answers).unwrap();

    assert_eq!((true, false), (before, without));
    assert_eq!(ExchangeEnd::Complete, report.end);
    assert!(request == report.bytes);
    assert_eq!(1, world.stats(1).tcp_connections);
}

#[test]
fn impossible_configurations_are_refused() {
    //! Each impossible field is the caller's mistake, found before anything runs.
    let base = || config(0, 1500);
    let bad = [
        HostConfig { mac: [1, 0, 0, 0, 0, 0], ..base() },
        HostConfig { ipv4: Some((Ipv4Addr::new(10, 0, 0, 255), 24)), ..base() },
        HostConfig { ipv4: Some((Ipv4Addr::new(224, 0, 0, 1), 24)), ..base() },
        HostConfig { ipv4: Some((Ipv4Addr::UNSPECIFIED, 24)), ..base() },
        HostConfig { ipv4: Some((Ipv4Addr::new(10, 0, 0, 1), 33)), ..base() },
        HostConfig { gateway: Some(Ipv4Addr::new(10, 0, 1, 1)), ..base() },
        HostConfig { gateway: Some(Ipv4Addr::new(10, 0, 0, 1)), ..base() },
        HostConfig { ipv4: None, gateway: Some(Ipv4Addr::new(10, 0, 0, 2)), ..base() },
        HostConfig { mtu: 67, ..base() },
        HostConfig { mtu: 9000, ..base() },
    ];
    for config in bad {
        let (sender, receiver) = FakeHost::default().attach(1500, 64);
        let row = Arc::new(Row::in_memory(StackStats::WORDS));

        let made = Host::new(config.clone(), sender, receiver, row, 0, START_NS);

        assert!(matches!(made, Err(Error::Usage(_))), "{config:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_request_or_refused_within_the_longest_head(
        bytes in prop::collection::vec(prop::sample::select(b"GET / HTTP/1.10:\r\n\r\n\xff\0a".to_vec()), 0..5000)
    ) {
        match http::parse(&bytes) {
            Parsed::Incomplete => prop_assert!(bytes.len() < HEAD_MAX),
            Parsed::Request(request) => prop_assert!(request.bytes <= bytes.len().min(HEAD_MAX)),
            Parsed::Refused(_) => {}
        }
    }

    #[test]
    fn a_request_in_pieces_is_the_request_whole(cut in 0usize..60) {
        let whole = b"HEAD /stats?x=1 HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\nGET";
        let cut = cut.min(whole.len());
        let head = whole.len() - 3;

        let expected = http::Request { is_head: true, path: "/stats".to_owned(), keeps_alive: true, bytes: head };
        let parsed = http::parse(&whole[..cut]);

        prop_assert_eq!(if cut < head { Parsed::Incomplete } else { Parsed::Request(expected) }, parsed);
    }
}
