//! Offload requests against smoltcp: what is cut here is whole there, and what a stranger asks for breaks nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::offload_harness::{assert_harmless, cut};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use smoltcp::wire::{
    EthernetFrame, IpAddress, IpProtocol, Ipv4Address, Ipv4Packet, Ipv6Address, Ipv6Packet, TcpPacket, UdpPacket,
};
use vbnet_core::net::offload::{Features, OFFLOAD_HEADER_BYTES, Request, Unfit};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// One long packet, written byte by byte as the RFCs have it.
#[derive(Clone, Debug)]
struct Long {
    is_ipv6: bool,
    is_tcp: bool,
    has_vlan: bool,
    /// Words of 4 bytes behind the IPv4 and the TCP header; blocks of 8 bytes in front of IPv6's payload.
    options: (u8, u8),
    flags: u8,
    id: u16,
    sequence: u32,
    payload: Vec<u8>,
    segment_bytes: u16,
}

impl Long {
    fn network(&self) -> usize {
        if self.has_vlan { 18 } else { 14 }
    }

    fn transport(&self) -> usize {
        let options = usize::from(self.options.0);
        self.network() + if self.is_ipv6 { 40 + options * 8 } else { 20 + options * 4 }
    }

    fn headers(&self) -> usize {
        self.transport() + if self.is_tcp { 20 + usize::from(self.options.1) * 4 } else { 8 }
    }

    fn frame(&self) -> Vec<u8> {
        let behind = (self.headers() - self.transport() + self.payload.len()) as u16;
        let protocol = if self.is_tcp { 6 } else { 17 };
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if self.has_vlan {
            frame.extend([0x81, 0x00, 0x20, 0x07]);
        }
        let addresses = if self.is_ipv6 {
            let extension = usize::from(self.options.0) * 8;
            let total = behind + extension as u16;
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, (total >> 8) as u8, total as u8]);
            frame.extend([if extension == 0 { protocol } else { 60 }, 64]);
            let from = frame.len();
            frame.extend([0xfd; 16].into_iter().chain([0xfe; 16]));
            if extension != 0 {
                // PadN: all of it but the first four bytes.
                frame.extend([protocol, self.options.0 - 1, 1, extension as u8 - 4]);
                frame.extend(vec![0; extension - 4]);
            }
            from..from + 32
        } else {
            let words = 5 + self.options.0;
            let total = behind + u16::from(words) * 4;
            frame.extend([0x08, 0x00, 0x40 | words, 0x02, (total >> 8) as u8, total as u8]);
            frame.extend([(self.id >> 8) as u8, self.id as u8, 0x40, 0, 64, protocol, 0xde, 0xad]);
            let from = frame.len();
            frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            frame.extend(vec![1; usize::from(self.options.0) * 4]);
            from..from + 8
        };
        let pseudo = sum(&frame[addresses]) + u32::from(protocol) + u32::from(behind);
        let pseudo = fold(pseudo).to_be_bytes();
        frame.extend([0x12, 0x34, 0x00, 0x50]);
        if self.is_tcp {
            frame.extend(self.sequence.to_be_bytes());
            frame.extend([0, 0, 0, 9, (5 + self.options.1) << 4, self.flags, 1, 0, pseudo[0], pseudo[1], 0, 0]);
            frame.extend(vec![1; usize::from(self.options.1) * 4]);
        } else {
            frame.extend([(behind >> 8) as u8, behind as u8, pseudo[0], pseudo[1]]);
        }
        frame.extend(&self.payload);
        frame
    }

    fn header(&self) -> [u8; OFFLOAD_HEADER_BYTES] {
        let kind = match (self.is_tcp, self.is_ipv6) {
            (true, false) => 1,
            (true, true) => 4,
            (false, _) => 5,
        };
        let ecn = if self.is_tcp && self.flags & CWR != 0 { 0x80 } else { 0 };
        let place = if self.is_tcp { 16 } else { 6 };
        header(1, kind | ecn, [self.headers() as u16, self.segment_bytes, self.transport() as u16, place])
    }

    fn segments(&self) -> Vec<Vec<u8>> {
        let frame = self.frame();
        let request = Request::parse(&self.header(), &frame).unwrap();
        cut(&request, &frame)
    }
}

fn header(flags: u8, kind: u8, words: [u16; 4]) -> [u8; OFFLOAD_HEADER_BYTES] {
    let bytes: Vec<u8> = [flags, kind].into_iter().chain(words.into_iter().flat_map(u16::to_le_bytes)).collect();
    bytes.try_into().unwrap()
}

/// RFC 1071, big-endian words one after the other.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Protocol and transport part of a frame, as smoltcp reads it, its checksums right.
fn opened(frame: &[u8], has_vlan: bool) -> (IpAddress, IpAddress, IpProtocol, Vec<u8>) {
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    let packet = &ethernet.payload()[if has_vlan { 4 } else { 0 }..];
    if packet[0] >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        assert!(ip.verify_checksum());
        assert_eq!(usize::from(ip.total_len()), packet.len());
        let ends = (ip.src_addr(), ip.dst_addr());
        return (IpAddress::from(ends.0 as Ipv4Address), ends.1.into(), ip.next_header(), ip.payload().to_vec());
    }
    let ip = Ipv6Packet::new_checked(packet).unwrap();
    assert_eq!(usize::from(ip.payload_len()) + 40, packet.len());
    let ends = (ip.src_addr(), ip.dst_addr());
    let (next, rest) = match ip.next_header() {
        IpProtocol::Ipv6Opts => {
            let extension = ip.payload();
            (IpProtocol::from(extension[0]), extension[(usize::from(extension[1]) + 1) * 8..].to_vec())
        }
        next => (next, ip.payload().to_vec()),
    };
    (IpAddress::from(ends.0 as Ipv6Address), ends.1.into(), next, rest)
}

fn long() -> impl Strategy<Value = Long> {
    let shape = (any::<bool>(), any::<bool>(), any::<bool>(), (0..=3u8, 0..=10u8));
    let fields = (any::<u8>(), any::<u16>(), any::<u32>());
    (shape, fields, vec(any::<u8>(), 2..5000), any::<Index>()).prop_map(|(shape, fields, payload, size)| Long {
        is_ipv6: shape.0,
        is_tcp: shape.1,
        has_vlan: shape.2,
        options: shape.3,
        flags: fields.0,
        id: fields.1,
        sequence: fields.2,
        segment_bytes: (payload.len() / 100 + 1 + size.index(payload.len() - payload.len() / 100 - 1)) as u16,
        payload,
    })
}

proptest! {
    /// Every segment is a packet that smoltcp finds in order, and together they are what was sent.
    #[test]
    fn prop_segments_are_whole_packets_and_lose_nothing(long in long()) {
        let frame = long.frame();
        let segments = long.segments();
        let count = segments.len();
        prop_assert_eq!(long.payload.len().div_ceil(long.segment_bytes.into()), count);
        let mut payload = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            prop_assert!(segment.len() <= long.headers() + usize::from(long.segment_bytes));
            prop_assert_eq!(&frame[..long.network()], &segment[..long.network()]);
            let (source, destination, protocol, rest) = opened(segment, long.has_vlan);
            if !long.is_ipv6 {
                let ip = Ipv4Packet::new_unchecked(&segment[long.network()..]);
                prop_assert_eq!(long.id.wrapping_add(index as u16), ip.ident());
                prop_assert!(ip.dont_frag() && ip.hop_limit() == 64);
            }
            if long.is_tcp {
                prop_assert_eq!(IpProtocol::Tcp, protocol);
                let tcp = TcpPacket::new_checked(&rest).unwrap();
                prop_assert!(tcp.verify_checksum(&source, &destination));
                prop_assert_eq!(long.sequence.wrapping_add(payload.len() as u32) as i32, tcp.seq_number().0);
                let kept = !((if index == 0 { 0 } else { CWR }) | (if index + 1 == count { 0 } else { FIN | PSH }));
                prop_assert_eq!(long.flags & kept, rest[13]);
                prop_assert_eq!((0x1234, 80, 9), (tcp.src_port(), tcp.dst_port(), tcp.ack_number().0));
                payload.extend(tcp.payload());
            } else {
                prop_assert_eq!(IpProtocol::Udp, protocol);
                let udp = UdpPacket::new_checked(&rest).unwrap();
                prop_assert!(udp.checksum() != 0 && udp.verify_checksum(&source, &destination));
                prop_assert_eq!(rest.len(), usize::from(udp.len()));
                payload.extend(udp.payload());
            }
        }
        prop_assert_eq!(long.payload, payload);
    }

    /// A checksum that was left open is completed so that smoltcp finds it right.
    #[test]
    fn prop_completed_checksum_is_right(long in long()) {
        let mut frame = long.frame();
        let mut header = long.header();
        header[1] = 0;
        let request = Request::parse(&header, &frame).unwrap();
        prop_assert_eq!(Features::CHECKSUM, request.needs());

        prop_assert!(request.complete(&mut frame));

        // Without segmentation the IP header is left as it is, whose checksum these packets have wrong.
        let network = long.network();
        if !long.is_ipv6 {
            Ipv4Packet::new_unchecked(&mut frame[network..]).fill_checksum();
        }
        let (source, destination, _, rest) = opened(&frame, long.has_vlan);
        let is_right = if long.is_tcp {
            TcpPacket::new_checked(&rest).unwrap().verify_checksum(&source, &destination)
        } else {
            UdpPacket::new_checked(&rest).unwrap().verify_checksum(&source, &destination)
        };
        prop_assert!(is_right);
    }

    /// What a receiver is told is what was asked for, with the headers' true length.
    #[test]
    fn prop_header_for_a_capable_receiver_asks_for_the_same(long in long(), claimed in any::<Index>()) {
        let frame = long.frame();
        let mut asked = long.header();
        asked[2..4].copy_from_slice(&(claimed.index(frame.len() + 1) as u16).to_le_bytes());
        let request = Request::parse(&asked, &frame).unwrap();
        let told = request.header();

        let is_cut = long.payload.len() > long.segment_bytes.into();
        prop_assert_eq!(is_cut, request.is_segmentation());
        if is_cut {
            prop_assert_eq!(long.header(), told);
        } else {
            prop_assert_eq!(header(1, 0, [0, 0, long.transport() as u16, if long.is_tcp { 16 } else { 6 }]), told);
        }
        prop_assert_eq!(Ok(request), Request::parse(&told, &frame));
    }

    /// Any header on any bytes is refused, or is work of a bounded size that stays inside the frame.
    #[test]
    fn prop_hostile_header_does_no_harm(
        header in prop::array::uniform10(any::<u8>()),
        tame in (select(&[0u8, 1, 2, 3][..]), select(&[0u8, 1, 4, 5, 0x81, 0x84, 0x85][..]), any::<bool>()),
        long in long(),
        changes in vec((any::<Index>(), any::<u8>()), 0..6),
        length in any::<Index>(),
        is_cut_off in any::<bool>(),
    ) {
        let mut frame = long.frame();
        if is_cut_off {
            frame.truncate(length.index(frame.len() + 1));
        }
        // Changes that hit headers are those that matter.
        let reach = frame.len().min(140);
        for (place, byte) in changes.iter().filter(|_| reach != 0) {
            frame[place.index(reach)] = *byte;
        }
        let mut asked = header;
        if tame.2 {
            asked = long.header();
            (asked[0], asked[1]) = (tame.0, tame.1);
        }
        assert_harmless(&asked, &frame);
    }
}

fn tcp() -> Long {
    Long {
        is_ipv6: false,
        is_tcp: true,
        has_vlan: false,
        options: (0, 3),
        flags: 0x10 | PSH | CWR,
        id: 65535,
        sequence: u32::MAX - 10,
        payload: vec![7; 3000],
        segment_bytes: 1448,
    }
}

fn refusal(asked: [u8; OFFLOAD_HEADER_BYTES], frame: &[u8]) -> Unfit {
    Request::parse(&asked, frame).unwrap_err()
}

#[test]
fn header_that_asks_for_nothing_is_nothing_whatever_else_it_says() {
    for flags in [0, 2] {
        let request = Request::parse(&header(flags, 0, [9, 9, 9, 9]), &tcp().frame()).unwrap();
        assert!(request.is_nothing());
        assert_eq!([0; OFFLOAD_HEADER_BYTES], request.header());
        assert_eq!((Features::NONE, 1, 900), (request.needs(), request.frames(900), request.longest(900)));
    }
}

#[test]
fn each_hostile_header_is_refused_by_name() {
    let long = tcp();
    let (frame, good) = (long.frame(), long.header());
    let [at, end] = [34, frame.len() as u16];
    let cases = [
        (header(4, 0, [0, 0, at, 16]), Unfit::Flag),
        (header(1, 2, [66, 1448, at, 16]), Unfit::Kind),
        (header(1, 3, [66, 1448, at, 16]), Unfit::Kind),
        (header(1, 0x80, [66, 1448, at, 16]), Unfit::Kind),
        (header(1, 0x85, [66, 1448, at, 16]), Unfit::Kind),
        (header(0, 1, [66, 1448, at, 16]), Unfit::Checksum),
        (header(1, 0, [0, 0, end, 0]), Unfit::Checksum),
        (header(1, 0, [0, 0, end - 1, 0]), Unfit::Checksum),
        (header(1, 0, [0, 0, at, u16::MAX]), Unfit::Checksum),
        (header(1, 0, [0, 0, u16::MAX, u16::MAX]), Unfit::Checksum),
        (header(1, 0, [0, 0, 13, 0]), Unfit::Checksum),
        (header(1, 1, [66, 1448, at + 2, 16]), Unfit::Checksum),
        (header(1, 1, [66, 1448, at, 6]), Unfit::Checksum),
        (header(1, 1, [66, 0, at, 16]), Unfit::Size),
        (header(1, 1, [66, 1, at, 16]), Unfit::Size),
        (header(1, 1, [end + 1, 1448, at, 16]), Unfit::Size),
        (header(1, 4, [66, 1448, at, 16]), Unfit::Headers),
        (header(1, 5, [66, 1448, at, 6]), Unfit::Headers),
    ];
    assert!(Request::parse(&good, &frame).is_ok());
    for (asked, reason) in cases {
        assert_eq!(reason, refusal(asked, &frame), "{asked:?}");
    }
}

#[test]
fn frame_whose_headers_lie_is_refused() {
    let long = tcp();
    let changed = |at: usize, byte: u8| {
        let mut frame = long.frame();
        frame[at] = byte;
        refusal(long.header(), &frame)
    };
    // Not IP, version 5, header of 4 words, more fragments, a fragment's offset, another protocol, a TCP header of 4 words.
    for (at, byte) in [(12, 9), (14, 0x55), (14, 0x44), (20, 0x20), (21, 1), (23, 17), (46, 0x40)] {
        assert_eq!(Unfit::Headers, changed(at, byte), "{at}");
    }
    let mut frame = long.frame();
    frame.push(0);
    assert_eq!(Unfit::Headers, refusal(long.header(), &frame));
    frame.truncate(60);
    assert_eq!(Unfit::Size, refusal(long.header(), &frame));
    let mut asked = long.header();
    asked[2] = 0;
    assert_eq!(Unfit::Headers, refusal(asked, &frame));
}

#[test]
fn endless_extension_headers_are_refused() {
    let mut long = Long { is_ipv6: true, options: (3, 0), ..tcp() };
    // Destination options that say destination options follow, for as long as the packet lasts.
    long.payload.iter_mut().step_by(8).for_each(|byte| *byte = 60);
    let mut frame = long.frame();
    let network = 14;
    for at in (network + 40..frame.len() - 8).step_by(8) {
        frame[at..at + 2].copy_from_slice(&[60, 0]);
    }

    assert_eq!(Unfit::Headers, refusal(long.header(), &frame));
}

#[test]
fn request_that_makes_one_segment_is_only_a_checksum() {
    let long = Long { payload: vec![7; 1448], ..tcp() };
    let request = Request::parse(&long.header(), &long.frame()).unwrap();

    assert!(!request.is_segmentation() && !request.is_nothing());
    assert_eq!(Features::CHECKSUM, request.needs());
}

#[test]
fn each_kind_needs_its_feature() {
    let all = Features::CHECKSUM.with(Features::TCP4).with(Features::TCP6).with(Features::ECN).with(Features::UDP);
    assert_eq!(all, Features::ALL);
    assert_eq!(vec!["checksum", "tso4", "tso6", "ecn", "uso"], Features::ALL.names().collect::<Vec<_>>());
    let needs = |long: Long| Request::parse(&long.header(), &long.frame()).unwrap().needs();
    let quiet = Long { flags: 0x10, ..tcp() };
    let checksum = Features::CHECKSUM;
    assert_eq!(checksum.with(Features::TCP4), needs(quiet.clone()));
    assert_eq!(checksum.with(Features::TCP4).with(Features::ECN), needs(tcp()));
    assert_eq!(checksum.with(Features::TCP6), needs(Long { is_ipv6: true, ..quiet.clone() }));
    assert_eq!(checksum.with(Features::UDP), needs(Long { is_tcp: false, ..quiet.clone() }));
    assert_eq!(checksum.with(Features::UDP), needs(Long { is_tcp: false, is_ipv6: true, ..quiet }));
}

#[test]
fn numbers_wrap_where_the_protocols_let_them() {
    let segments = tcp().segments();

    let numbers: Vec<_> = segments.iter().map(|frame| u32::from_be_bytes(frame[38..42].try_into().unwrap())).collect();
    assert_eq!(vec![u32::MAX - 10, 1437, 2885], numbers);
    let ids: Vec<_> = segments.iter().map(|frame| u16::from_be_bytes(frame[18..20].try_into().unwrap())).collect();
    assert_eq!(vec![65535, 0, 1], ids);
    assert_eq!(vec![0x90, 0x10, 0x18], segments.iter().map(|frame| frame[47]).collect::<Vec<_>>());
}

/// Headers and frames that a search guided by coverage once found new ways with.
#[test]
fn headers_of_earlier_searches_do_no_harm() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/offload_header");
    for seed in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(seed.unwrap().path()).unwrap();
        if let Some((header, frame)) = bytes.split_first_chunk() {
            assert_harmless(header, frame);
        }
    }
}

/// Every set of features.
fn subsets() -> impl Iterator<Item = Features> {
    let each = [Features::CHECKSUM, Features::TCP4, Features::TCP6, Features::ECN, Features::UDP];
    (0..1 << each.len()).map(move |bits| {
        let chosen = each.into_iter().enumerate().filter(|(number, _)| bits >> number & 1 == 1);
        chosen.fold(Features::NONE, |all, (_, feature)| all.with(feature))
    })
}

#[test]
fn header_is_covered_by_what_it_asks_for_and_by_nothing_less() {
    let tcp = Features::CHECKSUM.with(Features::TCP4);
    let cases = [
        ((0, 0), Features::NONE),
        ((1, 0), Features::CHECKSUM),
        ((2, 0), Features::CHECKSUM),
        ((1, 1), tcp),
        ((1, 4), Features::CHECKSUM.with(Features::TCP6)),
        ((1, 5), Features::CHECKSUM.with(Features::UDP)),
        ((1, 0x81), tcp.with(Features::ECN)),
    ];
    for ((flags, kind), needed) in cases {
        let asked = header(flags, kind, [54, 1400, 34, 16]);
        for offered in subsets() {
            assert_eq!(offered.contains(needed), offered.covers(&asked), "{flags} {kind} {offered:?}");
        }
    }
    for (flags, kind) in [(4, 0), (1, 2), (1, 3), (1, 0x40), (0x80, 0)] {
        assert!(!Features::ALL.covers(&header(flags, kind, [0; 4])), "{flags} {kind}");
    }
}

#[test]
fn nothing_is_agreed_on_without_its_foundation() {
    let tcp = Features::CHECKSUM.with(Features::TCP6);
    assert_eq!(Features::NONE, Features::TCP4.with(Features::ECN).founded());
    assert_eq!(Features::CHECKSUM, Features::CHECKSUM.with(Features::ECN).founded());
    assert_eq!(tcp.with(Features::ECN), tcp.with(Features::ECN).founded());
    assert_eq!(Features::ALL, Features::ALL.founded());
    assert_eq!(Features::CHECKSUM, Features::ALL.uncut());
}
