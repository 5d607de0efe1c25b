//! pcapng: the bytes of a capture file, as Wireshark, tcpdump and others read them.
//!
//! ```text
//!   section header · interface description (one a port) … · enhanced packet … · interface statistics (one a port)
//! ```
//!
//! Little-endian; times in nanoseconds (if_tsresol 9). A block is whole or not there: every function adds one whole block.
//! A packet's direction is in its flags, inbound = into the guest; that it was dropped, and why, in its comment. Source:
//! draft-ietf-opsawg-pcapng.

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINK_ETHERNET: u16 = 1;
const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const NANOSECONDS: u8 = 9;

/// Which way a packet went, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the guest.
    Inbound,
    /// Out of it.
    Outbound,
}

/// One packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Position of its interface among the descriptions.
    pub interface: u32,
    /// When, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Which way it went.
    pub direction: Direction,
    /// Why it was dropped, if it was.
    pub drop_reason: Option<&'a str>,
    /// Its bytes, as many as were kept.
    pub bytes: &'a [u8],
    /// How many it had.
    pub length: u32,
}

/// What is said of an interface at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Position of the interface among the descriptions.
    pub interface: u32,
    /// When this was so, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Packets that passed the port.
    pub received: u64,
    /// Packets lost because the capture was full.
    pub dropped: u64,
    /// Packets the filter took.
    pub accepted: u64,
}

/// Adds the block every file begins with.
pub fn section_header(to: &mut Vec<u8>, application: &str) {
    block(to, SECTION_HEADER, |to| {
        to.extend(BYTE_ORDER.to_le_bytes());
        to.extend([1, 0, 0, 0]);
        to.extend(u64::MAX.to_le_bytes());
        option(to, 4, application.as_bytes());
        option(to, OPTION_END, &[]);
    });
}

/// Adds the description of the next interface: longest packet kept, its name, what it is joined to, and the filter.
pub fn interface(to: &mut Vec<u8>, snap_bytes: u32, name: &str, description: &str, filter: &str) {
    block(to, INTERFACE_DESCRIPTION, |to| {
        to.extend(LINK_ETHERNET.to_le_bytes());
        to.extend([0, 0]);
        to.extend(snap_bytes.to_le_bytes());
        option(to, 2, name.as_bytes());
        option(to, 3, description.as_bytes());
        option(to, 9, &[NANOSECONDS]);
        if !filter.is_empty() {
            // The first byte says that a filter's text follows.
            option(to, 11, &[&[0], filter.as_bytes()].concat());
        }
        option(to, OPTION_END, &[]);
    });
}

/// Adds one packet.
pub fn packet(to: &mut Vec<u8>, packet: &Packet<'_>) {
    block(to, ENHANCED_PACKET, |to| {
        to.extend(packet.interface.to_le_bytes());
        time(to, packet.time_ns);
        to.extend((packet.bytes.len() as u32).to_le_bytes());
        to.extend(packet.length.to_le_bytes());
        padded(to, packet.bytes);
        let direction: u32 = match packet.direction {
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        };
        option(to, 2, &direction.to_le_bytes());
        if let Some(reason) = packet.drop_reason {
            option(to, OPTION_COMMENT, format!("dropped: {reason}").as_bytes());
        }
        option(to, OPTION_END, &[]);
    });
}

/// Adds what became of an interface's packets.
pub fn statistics(to: &mut Vec<u8>, statistics: &Statistics) {
    block(to, INTERFACE_STATISTICS, |to| {
        to.extend(statistics.interface.to_le_bytes());
        time(to, statistics.time_ns);
        option(to, 4, &statistics.received.to_le_bytes());
        option(to, 5, &statistics.dropped.to_le_bytes());
        option(to, 6, &statistics.accepted.to_le_bytes());
        option(to, OPTION_END, &[]);
    });
}

/// A block: type, length, what `fill` adds, length again.
fn block(to: &mut Vec<u8>, kind: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.extend(kind.to_le_bytes());
    to.extend([0; 4]);
    fill(to);
    let length = (to.len() - start + 4) as u32;
    to.extend(length.to_le_bytes());
    to[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
}

fn time(to: &mut Vec<u8>, time_ns: u64) {
    to.extend(((time_ns >> 32) as u32).to_le_bytes());
    to.extend((time_ns as u32).to_le_bytes());
}

/// An option; a value longer than 65535 bytes is cut.
fn option(to: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    to.extend(code.to_le_bytes());
    to.extend(length.to_le_bytes());
    padded(to, &value[..length.into()]);
}

fn padded(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend(bytes);
    to.resize(to.len().next_multiple_of(4), 0);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn section_header_has_the_bytes_of_the_specification() {
        let mut bytes = Vec::new();

        section_header(&mut bytes, "vb");

        let expected = [
            0x0a, 0x0d, 0x0d, 0x0a, 40, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255,
            255, 4, 0, 2, 0, b'v', b'b', 0, 0, 0, 0, 0, 0, 40, 0, 0, 0,
        ];
        assert_eq!(expected.as_slice(), bytes);
    }

    #[test]
    fn dropped_packet_has_its_reason_direction_and_true_length() {
        let mut bytes = Vec::new();
        let time_ns = 0x0102_0304_0506_0708;

        packet(
            &mut bytes,
            &Packet {
                interface: 3,
                time_ns,
                direction: Direction::Inbound,
                drop_reason: Some("x"),
                bytes: &[9; 5],
                length: 60,
            },
        );

        let expected = [
            &[
                6, 0, 0, 0, 68, 0, 0, 0, 3, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5, 5, 0, 0, 0, 60, 0, 0, 0, 9, 9, 9, 9, 9, 0,
                0,
            ][..],
            &[0, 2, 0, 4, 0, 1, 0, 0, 0, 1, 0, 10, 0],
            b"dropped: x",
            &[0, 0, 0, 0, 0, 0, 68, 0, 0, 0],
        ]
        .concat();
        assert_eq!(expected, bytes);
    }

    #[test]
    fn blocks_follow_each_other_by_both_of_their_lengths() {
        let mut bytes = Vec::new();
        section_header(&mut bytes, "vbnet");
        interface(&mut bytes, 65535, "web.eth0", "guest web, switch lan", "udp");
        let figures = Statistics { interface: 0, time_ns: 1, received: 2, dropped: 3, accepted: 4 };
        statistics(&mut bytes, &figures);

        let mut kinds = Vec::new();
        let mut rest = bytes.as_slice();
        while let [a, b, c, d, e, f, g, h, ..] = *rest {
            kinds.push(u32::from_le_bytes([a, b, c, d]));
            let length = u32::from_le_bytes([e, f, g, h]) as usize;
            assert_eq!(rest[4..8], rest[length - 4..length]);
            assert!(length.is_multiple_of(4));
            rest = &rest[length..];
        }

        assert_eq!(vec![SECTION_HEADER, INTERFACE_DESCRIPTION, INTERFACE_STATISTICS], kinds);
    }
}
