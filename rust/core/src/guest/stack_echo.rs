//! Echo without sockets: UDP echo (port 7) and discard (port 9), and pings. The reply is the request, its ends swapped.
//!
//! Swapping addresses and ports leaves the checksum as it was, so a request is answered in place, whatever its length,
//! without a buffer a guest would have to keep. The reply goes to the station the request came from, so none is lost
//! because that station's address must be asked for first: smoltcp drops a ping it cannot answer at once, and asks for
//! one address a second. Only whole, valid requests to the guest's own addresses are touched; smoltcp sees the others.
//! An echo to another echo service is not answered: the two would never stop. Source: RFC 792, RFC 862, RFC 863, RFC
//! 4443.

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet,
    IpAddress, IpProtocol, Ipv4Packet, Ipv6Address, Ipv6Packet, UdpPacket,
};

/// Echo, of UDP and TCP.
pub const ECHO: u16 = 7;
/// Discard, of UDP and TCP.
pub const DISCARD: u16 = 9;

const HEADER: usize = 14;
const HOPS: u8 = 64;

/// What is to be done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours: give it to the stack.
    Pass,
    /// A datagram that gets no answer.
    Swallow,
    /// A datagram; the frame is its echo now.
    Echo,
    /// A ping; the frame is its answer now.
    Pong,
}

/// Where the parts of a whole IP packet without options lie in its frame.
#[derive(Clone, Copy)]
struct Ends {
    from: IpAddress,
    to: IpAddress,
    /// Where the two addresses are, the sender's first.
    addresses: usize,
    /// Where what the packet carries begins, and the packet ends.
    start: usize,
    end: usize,
    carries: IpProtocol,
}

impl Ends {
    /// Of a frame to this station, from one.
    fn of(frame: &[u8], mac: EthernetAddress) -> Option<Self> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        if ethernet.dst_addr() != mac || !ethernet.src_addr().is_unicast() {
            return None;
        }
        match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
                let is_whole = !packet.more_frags() && packet.frag_offset() == 0;
                let is_plain = packet.version() == 4 && packet.header_len() == 20;
                (is_plain && is_whole && packet.verify_checksum()).then(|| Self {
                    from: IpAddress::Ipv4(packet.src_addr()),
                    to: IpAddress::Ipv4(packet.dst_addr()),
                    addresses: HEADER + 12,
                    start: HEADER + 20,
                    end: HEADER + usize::from(packet.total_len()),
                    carries: packet.next_header(),
                })
            }
            EthernetProtocol::Ipv6 => {
                let packet = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
                (packet.version() == 6).then(|| Self {
                    from: IpAddress::Ipv6(packet.src_addr()),
                    to: IpAddress::Ipv6(packet.dst_addr()),
                    addresses: HEADER + 8,
                    start: HEADER + 40,
                    end: HEADER + packet.total_len(),
                    carries: packet.next_header(),
                })
            }
            _ => None,
        }
    }

    /// Turns the frame around: what it carries goes back where it came from.
    fn turn(&self, frame: &mut [u8]) {
        swap(frame, 0, 6);
        match self.from {
            IpAddress::Ipv4(_) => {
                swap(frame, self.addresses, 4);
                let mut packet = Ipv4Packet::new_unchecked(&mut frame[HEADER..]);
                packet.set_hop_limit(HOPS);
                packet.fill_checksum();
            }
            IpAddress::Ipv6(_) => {
                swap(frame, self.addresses, 16);
                Ipv6Packet::new_unchecked(&mut frame[HEADER..]).set_hop_limit(HOPS);
            }
        }
    }
}

/// Looks at a frame for the host with these addresses, and turns it into its answer when it is an echo request.
pub fn serve(frame: &mut Vec<u8>, mac: EthernetAddress, is_own: impl Fn(IpAddress) -> bool) -> Verdict {
    let Some(ends) = Ends::of(frame, mac) else { return Verdict::Pass };
    if !is_own(ends.to) || !ends.from.is_unicast() || is_own(ends.from) {
        return Verdict::Pass;
    }
    let Some(carried) = frame.get_mut(ends.start..ends.end) else { return Verdict::Pass };
    let verdict = match (ends.carries, ends.from, ends.to) {
        (IpProtocol::Udp, from, to) => serve_udp(carried, from, to),
        (IpProtocol::Icmp, IpAddress::Ipv4(_), _) => serve_ping(carried),
        (IpProtocol::Icmpv6, IpAddress::Ipv6(from), IpAddress::Ipv6(to)) => serve_ping6(carried, from, to),
        _ => Verdict::Pass,
    };
    if matches!(verdict, Verdict::Echo | Verdict::Pong) {
        ends.turn(frame);
        frame.truncate(ends.end);
    }
    verdict
}

/// Of a datagram.
fn serve_udp(bytes: &mut [u8], from: IpAddress, to: IpAddress) -> Verdict {
    let Ok(datagram) = UdpPacket::new_checked(&*bytes) else { return Verdict::Pass };
    let port = datagram.dst_port();
    if !matches!(port, ECHO | DISCARD) {
        return Verdict::Pass;
    }
    let may_lack_checksum = matches!(from, IpAddress::Ipv4(_));
    if (datagram.checksum() == 0 && !may_lack_checksum) || !datagram.verify_checksum(&from, &to) {
        return Verdict::Swallow;
    }
    if port == DISCARD || matches!(datagram.src_port(), 0 | ECHO) {
        return Verdict::Swallow;
    }
    swap(bytes, 0, 2);
    Verdict::Echo
}

/// Of an ICMP message.
fn serve_ping(bytes: &mut [u8]) -> Verdict {
    let Ok(mut message) = Icmpv4Packet::new_checked(bytes) else { return Verdict::Pass };
    if message.msg_type() != Icmpv4Message::EchoRequest || message.msg_code() != 0 || !message.verify_checksum() {
        return Verdict::Pass;
    }
    message.set_msg_type(Icmpv4Message::EchoReply);
    message.fill_checksum();
    Verdict::Pong
}

/// Of an ICMPv6 message.
fn serve_ping6(bytes: &mut [u8], from: Ipv6Address, to: Ipv6Address) -> Verdict {
    let Ok(mut message) = Icmpv6Packet::new_checked(bytes) else { return Verdict::Pass };
    let is_request = message.msg_type() == Icmpv6Message::EchoRequest && message.msg_code() == 0;
    if !is_request || !message.verify_checksum(&from, &to) {
        return Verdict::Pass;
    }
    message.set_msg_type(Icmpv6Message::EchoReply);
    message.fill_checksum(&to, &from);
    Verdict::Pong
}

/// Exchanges the two neighbouring fields of `bytes` bytes at `start`, which lie within the frame.
fn swap(frame: &mut [u8], start: usize, bytes: usize) {
    let (first, second) = frame[start..start + 2 * bytes].split_at_mut(bytes);
    first.swap_with_slice(second);
}
