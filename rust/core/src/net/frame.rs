//! Ethernet frames as the switch sees them: a private copy of the first cache line, and addresses.
//!
//! The danger: a sender may change a frame while it is being forwarded. Every decision is therefore made on
//! [`FrameStart`], a copy taken once, and the receiver gets exactly the bytes the decision was made on. What lies behind
//! them is copied straight through and never looked at. Source: IEEE 802.3 clause 3.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::error::Error;

/// Destination, source and type.
pub const HEADER_BYTES: u32 = 14;
/// What a VLAN tag adds in front of the type.
pub const VLAN_TAG_BYTES: u32 = 4;
/// Largest MTU a port can have.
pub const MTU_MAX: u32 = 65535;
/// Smallest MTU a port can have: what IPv4 asks of every link.
pub const MTU_MIN: u32 = 68;
/// Longest frame there can be.
pub const FRAME_BYTES_MAX: u32 = MTU_MAX + HEADER_BYTES + VLAN_TAG_BYTES;
/// Bytes of [`FrameStart`], and the least length of a buffer that a frame is received into.
pub const START_BYTES: usize = 64;
/// Words of eight bytes in it.
pub(crate) const START_WORDS: usize = START_BYTES / size_of::<u64>();

const KEY_MASK: u64 = (1 << 48) - 1;

/// Longest frame a port with this MTU takes: header and one VLAN tag come on top.
#[must_use]
pub const fn frame_limit(mtu: u32) -> u32 {
    mtu + HEADER_BYTES + VLAN_TAG_BYTES
}

/// The address of an Ethernet station, or of a group of them.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address with these bytes, in the order they are sent.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Its bytes, in the order they are sent.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The address in the low 48 bits of a word, first byte lowest: what the switch compares.
    #[must_use]
    pub const fn key(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// The address a key stands for; bits above 48 are ignored.
    #[must_use]
    pub const fn from_key(key: u64) -> Self {
        let [a, b, c, d, e, f, _, _] = key.to_le_bytes();
        Self([a, b, c, d, e, f])
    }

    /// It names a group: broadcast is one of them.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// It names everybody.
    #[must_use]
    pub const fn is_broadcast(self) -> bool {
        self.key() == KEY_MASK
    }

    /// It can be the address of one station: neither a group nor all zeroes.
    #[must_use]
    pub const fn is_station(self) -> bool {
        !self.is_multicast() && self.key() != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Usage(format!("a MAC address looks like 02:00:00:00:00:01; got {text:?}"));
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

/// The first 64 bytes of a frame, private; zeroes behind the end of a shorter one.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct FrameStart([u8; START_BYTES]);

impl Default for FrameStart {
    fn default() -> Self {
        Self([0; START_BYTES])
    }
}

impl From<[u8; START_BYTES]> for FrameStart {
    fn from(bytes: [u8; START_BYTES]) -> Self {
        Self(bytes)
    }
}

impl FrameStart {
    /// The start of a frame that is private already. Anything behind 64 bytes is left out.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        let mut start = Self::default();
        let length = frame.len().min(START_BYTES);
        start.0[..length].copy_from_slice(&frame[..length]);
        start
    }

    /// Copies the start of a frame of `length` bytes out of memory that somebody else may be writing, once.
    ///
    /// # Safety
    ///
    /// `length` bytes at `frame` are mapped, readable, and at least [`HEADER_BYTES`].
    #[inline]
    pub unsafe fn fetch(&mut self, frame: *const u8, length: u32) {
        let to = self.0.as_mut_ptr();
        let length = length as usize;
        // SAFETY: source bytes as promised by the caller; never more than START_BYTES are written. Two halves that
        // overlap cover every length from 32 to 63 with copies of a fixed size.
        unsafe {
            if length >= START_BYTES {
                frame.copy_to_nonoverlapping(to, START_BYTES);
            } else {
                self.0 = [0; START_BYTES];
                if length >= START_BYTES / 2 {
                    frame.copy_to_nonoverlapping(to, START_BYTES / 2);
                    let rest = length - START_BYTES / 2;
                    frame.add(rest).copy_to_nonoverlapping(to.add(rest), START_BYTES / 2);
                } else {
                    frame.copy_to_nonoverlapping(to, length);
                }
            }
        }
        // The compiler must not fetch these bytes a second time from where they came.
        compiler_fence(Ordering::SeqCst);
    }

    /// Writes all 64 bytes to where the receiver wants them.
    ///
    /// # Safety
    ///
    /// 64 bytes at `to` are mapped and writable.
    #[inline]
    pub unsafe fn store(&self, to: *mut u8) {
        // SAFETY: as promised by the caller; the private copy overlaps nothing shared.
        unsafe { self.0.as_ptr().copy_to_nonoverlapping(to, START_BYTES) }
    }

    /// All 64 bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; START_BYTES] {
        &self.0
    }

    /// Eight of its bytes, as they lie there: word 1 has bytes 8 to 15. Words are counted modulo [`START_WORDS`].
    #[inline]
    pub(crate) const fn word(&self, at: usize) -> u64 {
        let (words, _) = self.0.as_chunks();
        u64::from_ne_bytes(words[at % START_WORDS])
    }

    /// [`MacAddress::key`] of the destination.
    #[inline]
    #[must_use]
    pub const fn destination_key(&self) -> u64 {
        let [a, b, c, d, e, f, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// [`MacAddress::key`] of the source.
    #[inline]
    #[must_use]
    pub const fn source_key(&self) -> u64 {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// Where it goes.
    #[must_use]
    pub const fn destination(&self) -> MacAddress {
        MacAddress::from_key(self.destination_key())
    }

    /// Where it comes from.
    #[must_use]
    pub const fn source(&self) -> MacAddress {
        MacAddress::from_key(self.source_key())
    }

    /// What it carries, or the type of its VLAN tag.
    #[must_use]
    pub const fn ether_type(&self) -> u16 {
        u16::from_be_bytes([self.0[12], self.0[13]])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn address_survives_text_and_key() {
        let address = MacAddress::new([0x02, 0x00, 0xab, 0xcd, 0xef, 0x01]);

        assert_eq!("02:00:ab:cd:ef:01", address.to_string());
        assert_eq!(address, "02:00:ab:cd:ef:01".parse().unwrap());
        assert_eq!(address, MacAddress::from_key(address.key()));
    }

    #[test]
    fn text_that_is_no_address_is_refused() {
        for text in
            ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "2:0:0:0:0:1", "02-00-00-00-00-01", "zz:00:00:00:00:01"]
        {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn groups_and_nobody_are_no_stations() {
        assert!(MacAddress::BROADCAST.is_broadcast() && MacAddress::BROADCAST.is_multicast());
        assert!(MacAddress::new([0x33, 0x33, 0, 0, 0, 1]).is_multicast());
        assert!(!MacAddress::new([0x33, 0x33, 0, 0, 0, 1]).is_station());
        assert!(!MacAddress::default().is_station());
        assert!(MacAddress::new([2, 0, 0, 0, 0, 1]).is_station());
    }

    #[test]
    fn start_holds_what_the_frame_holds_and_zeroes_behind_it() {
        let memory: Vec<u8> = (1..=200).collect();
        for length in HEADER_BYTES..=200 {
            let mut start = FrameStart([0xee; START_BYTES]);

            // SAFETY: `memory` has at least `length` bytes.
            unsafe { start.fetch(memory.as_ptr(), length) };

            let mut expected = [0; START_BYTES];
            let kept = (length as usize).min(START_BYTES);
            expected[..kept].copy_from_slice(&memory[..kept]);
            assert_eq!(&expected, start.bytes(), "{length}");
            assert_eq!(MacAddress::new([1, 2, 3, 4, 5, 6]), start.destination());
            assert_eq!(MacAddress::new([7, 8, 9, 10, 11, 12]), start.source());
            assert_eq!(0x0d0e, start.ether_type());
        }
    }
}
