//! UDP echo (port 7) and discard (port 9), without sockets: the reply is the request with its ends swapped.
//!
//! Swapping addresses and ports leaves the checksum as it was, so a datagram is answered in place, whatever its length,
//! without a buffer a guest would have to keep. Only whole, valid datagrams to the guest's own addresses are touched.
//! An echo to another echo service is not answered: the two would never stop. Source: RFC 862, RFC 863.

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, UdpPacket,
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
    /// Taken; nothing to send.
    Taken,
    /// Taken; the frame is the answer now, this many bytes long.
    Answer(usize),
}

/// Looks at a frame for the host with these addresses, and turns it into its answer when it is an echo request.
pub fn serve(frame: &mut [u8], mac: EthernetAddress, is_own: impl Fn(IpAddress) -> bool) -> Verdict {
    let Ok(ethernet) = EthernetFrame::new_checked(&*frame) else { return Verdict::Pass };
    if ethernet.dst_addr() != mac || !ethernet.src_addr().is_unicast() {
        return Verdict::Pass;
    }
    let (from, to, address_start, address_bytes, udp_start, end) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let Ok(packet) = Ipv4Packet::new_checked(ethernet.payload()) else { return Verdict::Pass };
            let is_whole = !packet.more_frags() && packet.frag_offset() == 0;
            if packet.version() != 4
                || packet.header_len() != 20
                || packet.next_header() != IpProtocol::Udp
                || !is_whole
                || !packet.verify_checksum()
            {
                return Verdict::Pass;
            }
            let from = IpAddress::Ipv4(packet.src_addr());
            (
                from,
                IpAddress::Ipv4(packet.dst_addr()),
                HEADER + 12,
                4,
                HEADER + 20,
                HEADER + usize::from(packet.total_len()),
            )
        }
        EthernetProtocol::Ipv6 => {
            let Ok(packet) = Ipv6Packet::new_checked(ethernet.payload()) else { return Verdict::Pass };
            if packet.version() != 6 || packet.next_header() != IpProtocol::Udp {
                return Verdict::Pass;
            }
            let from = IpAddress::Ipv6(packet.src_addr());
            (from, IpAddress::Ipv6(packet.dst_addr()), HEADER + 8, 16, HEADER + 40, HEADER + packet.total_len())
        }
        _ => return Verdict::Pass,
    };
    let Some(Ok(datagram)) = frame.get(udp_start..end).map(UdpPacket::new_checked) else { return Verdict::Pass };
    let port = datagram.dst_port();
    if !matches!(port, ECHO | DISCARD) || !is_own(to) || !from.is_unicast() || is_own(from) {
        return Verdict::Pass;
    }
    let may_lack_checksum = address_bytes == 4;
    if (datagram.checksum() == 0 && !may_lack_checksum) || !datagram.verify_checksum(&from, &to) {
        return Verdict::Taken;
    }
    if port == DISCARD || matches!(datagram.src_port(), 0 | ECHO) {
        return Verdict::Taken;
    }
    swap(frame, 0, 6);
    swap(frame, address_start, address_bytes);
    swap(frame, udp_start, 2);
    if address_bytes == 4 {
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[HEADER..]);
        packet.set_hop_limit(HOPS);
        packet.fill_checksum();
    } else {
        Ipv6Packet::new_unchecked(&mut frame[HEADER..]).set_hop_limit(HOPS);
    }
    Verdict::Answer(end)
}

/// Exchanges the two neighbouring fields of `bytes` bytes at `start`, which lie within the frame.
fn swap(frame: &mut [u8], start: usize, bytes: usize) {
    let (first, second) = frame[start..start + 2 * bytes].split_at_mut(bytes);
    first.swap_with_slice(second);
}
