//! The frame by which somebody else says for a station where it is: a request of reverse ARP that nobody answers.
//!
//! Switches learn the station behind the port it comes out of. Source: RFC 903; QEMU's `announce_self_create`.

use super::frame::MacAddress;

/// The shortest frame of Ethernet, without its checksum.
const BYTES: usize = 60;
const ETHER_TYPE: [u8; 2] = [0x80, 0x35];
/// Ethernet and IPv4, with addresses of 6 and 4 bytes; a request.
const KIND: [u8; 8] = [0, 1, 0x08, 0, 6, 4, 0, 3];

/// To everybody, in the name of `station`.
pub(crate) fn announcement(station: MacAddress) -> [u8; BYTES] {
    let mut frame = [0; BYTES];
    let own = station.bytes();
    // The station is both whom it is asked of and who asks; its IP address is what a real one would want to know.
    let parts: [(usize, &[u8]); 6] =
        [(0, &MacAddress::BROADCAST.bytes()), (6, &own), (12, &ETHER_TYPE), (14, &KIND), (22, &own), (32, &own)];
    for (start, bytes) in parts {
        frame[start..start + bytes.len()].copy_from_slice(bytes);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_asks_everybody_for_the_address_of_the_station() {
        let frame = announcement(MacAddress::new([2, 0, 0, 0, 0, 9]));

        let expected: [&[u8]; 7] = [
            &[0xff; 6],
            &[2, 0, 0, 0, 0, 9, 0x80, 0x35],
            &[0, 1, 8, 0, 6, 4, 0, 3],
            &[2, 0, 0, 0, 0, 9, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 9, 0, 0, 0, 0],
            &[0; 9],
            &[0; 9],
        ];
        assert_eq!(expected.concat(), frame);
    }
}
