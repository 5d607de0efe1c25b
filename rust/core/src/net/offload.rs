//! What a sender leaves to others: checksums to complete, and segments to cut.
//!
//! ```text
//!   virtio_net_hdr, copied once ┐                              ┌ can do it ──▶ gets the frame whole, and a header of ours
//!   the frame, private          ┴─ Request::parse ─▶ receiver ─┤
//!                                     └─▶ Unfit: dropped       └ cannot ─────▶ complete() or segment(), then plain frames
//! ```
//!
//! A frame that asks for something lies in memory of ours before it is looked at, so that what was checked is what is sent.
//! [`Request`] says only what was found in the frame's own headers: lengths that a sender merely claims are not kept.
//!
//! The danger: every word of the header and of the frame is a stranger's. Nothing is indexed that was not compared with the
//! frame's length, loops over extension headers are bounded, and so is the number of segments that one frame can become.
//! Source: virtio 1.2 §5.1.6.2 and §5.1.6.4 (`virtio_net_hdr`); RFC 9293 and RFC 3168 §6.1 (which flags go where).

use std::fmt;

use super::frame::HEADER_BYTES as ETHERNET_BYTES;

/// `virtio_net_hdr` without `num_buffers`.
pub const OFFLOAD_HEADER_BYTES: usize = 10;
/// What a header asks for that asks for nothing.
pub const NO_REQUEST: [u8; OFFLOAD_HEADER_BYTES] = [0; OFFLOAD_HEADER_BYTES];
/// Most segments of one frame: what the longest makes with the smallest segment size that TCP stacks use, 48 bytes.
pub const SEGMENTS_MAX: u32 = 65535_u32.div_ceil(48);

/// Most bytes of headers that every segment has: what bounds the work that copying them makes.
const HEADERS_MAX: u16 = 512;

const NEEDS_CHECKSUM: u8 = 1;
/// Whoever gets the frame need not look at its checksum: a stranger's word for it, which is not passed on.
const DATA_VALID: u8 = 2;

const KIND_NONE: u8 = 0;
const KIND_TCP4: u8 = 1;
const KIND_TCP6: u8 = 4;
const KIND_UDP: u8 = 5;
const KIND_ECN: u8 = 0x80;

const VLAN_BYTES: usize = 4;
const TYPE_VLAN: u16 = 0x8100;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// IPv6 extension headers that leave the pseudo-header alone: hop-by-hop options and destination options.
const OPTIONS: [u8; 2] = [0, 60];
const EXTENSIONS_MAX: usize = 4;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// Where TCP and UDP keep their checksums.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
const TCP_FLAGS: usize = 13;
/// FIN and PSH belong to the last segment, CWR to the first.
const LAST_ONLY: u8 = 0x01 | 0x08;
const FIRST_ONLY: u8 = 0x80;

/// What a receiver can be left with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u8);

impl Features {
    /// Nothing: it wants frames as they are on a wire.
    pub const NONE: Self = Self(0);
    /// Frames whose checksum is to be completed.
    pub const CHECKSUM: Self = Self(1);
    /// Frames of TCP over IPv4 that are longer than its MTU.
    pub const TCP4: Self = Self(2);
    /// The same over IPv6.
    pub const TCP6: Self = Self(4);
    /// The two above also with CWR set.
    pub const ECN: Self = Self(8);
    /// Frames of several UDP datagrams.
    pub const UDP: Self = Self(16);
    /// Everything there is.
    pub const ALL: Self = Self(31);

    const NAMES: [(Self, &'static str); 5] = [
        (Self::CHECKSUM, "checksum"),
        (Self::TCP4, "tso4"),
        (Self::TCP6, "tso6"),
        (Self::ECN, "ecn"),
        (Self::UDP, "uso"),
    ];

    /// As [`Self::bits`] gave them.
    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// Both together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Everything in `other` is in here.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Nothing is in it.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Frames longer than an MTU are among it.
    #[must_use]
    pub const fn cuts(self) -> bool {
        self.0 & (Self::TCP4.0 | Self::TCP6.0 | Self::UDP.0) != 0
    }

    /// What is in both.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// It without what lacks its foundation: everything needs checksums, ECN needs segments of TCP.
    #[must_use]
    pub const fn founded(self) -> Self {
        match self {
            _ if !self.contains(Self::CHECKSUM) => Self::NONE,
            _ if self.0 & (Self::TCP4.0 | Self::TCP6.0) == 0 => Self(self.0 & !Self::ECN.0),
            _ => self,
        }
    }

    /// It without frames that are longer than an MTU.
    #[must_use]
    pub const fn uncut(self) -> Self {
        self.common(Self::CHECKSUM)
    }

    /// Whether a header, whatever frame it is in front of, asks for nothing but these: what a receiver may be given.
    #[must_use]
    pub const fn covers(self, header: &[u8; OFFLOAD_HEADER_BYTES]) -> bool {
        let [flags, kind, ..] = *header;
        let ecn = if kind & KIND_ECN == 0 { Self::NONE } else { Self::ECN };
        let needed = match kind & !KIND_ECN {
            KIND_NONE => Self::NONE,
            KIND_TCP4 => Self::TCP4,
            KIND_TCP6 => Self::TCP6,
            KIND_UDP => Self::UDP,
            _ => return false,
        };
        let checksum = if flags == 0 { Self::NONE } else { Self::CHECKSUM };
        flags & !(NEEDS_CHECKSUM | DATA_VALID) == 0 && self.contains(needed.with(ecn).with(checksum))
    }

    /// Those of these names; a name that there is not is an `Err`.
    ///
    /// # Errors
    ///
    /// The first name that there is not.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        names.into_iter().try_fold(Self::NONE, |all, wanted| {
            let found = Self::NAMES.into_iter().find(|&(_, name)| name == wanted);
            found.map(|(feature, _)| all.with(feature)).ok_or(wanted)
        })
    }

    /// Their names, for listings.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |&(feature, _)| self.contains(feature)).map(|(_, name)| name)
    }
}

/// Why a request is not done. Each is a reason under which the frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// A flag that nobody offered.
    Flag,
    /// A kind of segmentation that there is not.
    Kind,
    /// The checksum is outside the frame, not where the protocol has it, or not asked for together with segmentation.
    Checksum,
    /// Segments of no bytes, too many of them, or headers longer than the frame.
    Size,
    /// The frame's headers are not of the kind that was asked for, are cut off, or disagree with its length.
    Headers,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Nothing,
    /// Drop it for this reason.
    Refused(Unfit),
    Checksum,
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

/// What is to be done with one frame, checked against that frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    kind: Kind,
    has_ecn: bool,
    /// Where the IP header begins; only of segmentation.
    network: u8,
    /// The checksum covers the frame from here on; of segmentation: where the TCP or UDP header begins.
    checksum_start: u16,
    /// Where it belongs, counted from there.
    checksum_offset: u16,
    /// All headers of every segment, and most bytes behind them; only of segmentation.
    header_bytes: u16,
    segment_bytes: u16,
}

impl Request {
    /// Send it as it is.
    pub const NOTHING: Self = Self {
        kind: Kind::Nothing,
        has_ecn: false,
        network: 0,
        checksum_start: 0,
        checksum_offset: 0,
        header_bytes: 0,
        segment_bytes: 0,
    };

    /// Of a frame that is to be dropped, and why.
    pub(crate) const fn refused(unfit: Unfit) -> Self {
        Self { kind: Kind::Refused(unfit), ..Self::NOTHING }
    }

    /// Why the frame is to be dropped, if it is.
    pub(crate) const fn unfit(&self) -> Option<Unfit> {
        match self.kind {
            Kind::Refused(unfit) => Some(unfit),
            _ => None,
        }
    }

    /// Reads the header of a frame. Both must be private: they are read more than once.
    ///
    /// # Errors
    ///
    /// Why it cannot be done, the sender's fault.
    #[inline]
    pub fn parse(header: &[u8; OFFLOAD_HEADER_BYTES], frame: &[u8]) -> Result<Self, Unfit> {
        if header[0] & !DATA_VALID == 0 && header[1] == KIND_NONE {
            Ok(Self::NOTHING)
        } else {
            Self::check(header, frame)
        }
    }

    #[cold]
    fn check(header: &[u8; OFFLOAD_HEADER_BYTES], frame: &[u8]) -> Result<Self, Unfit> {
        let [flags, kind, a, b, c, d, e, f, g, h] = *header;
        let word = |low, high| u16::from_le_bytes([low, high]);
        let (claimed_header, segment_bytes, start, offset) = (word(a, b), word(c, d), word(e, f), word(g, h));
        if flags & !(NEEDS_CHECKSUM | DATA_VALID) != 0 {
            return Err(Unfit::Flag);
        }
        if !matches!(kind & !KIND_ECN, KIND_NONE | KIND_TCP4 | KIND_TCP6 | KIND_UDP) {
            return Err(Unfit::Kind);
        }
        if kind & KIND_ECN != 0 && !matches!(kind & !KIND_ECN, KIND_TCP4 | KIND_TCP6) {
            return Err(Unfit::Kind);
        }
        let end = usize::from(start) + usize::from(offset) + 2;
        if flags & NEEDS_CHECKSUM == 0 || u32::from(start) < ETHERNET_BYTES || end > frame.len() {
            return Err(Unfit::Checksum);
        }
        let checksum = Self { kind: Kind::Checksum, checksum_start: start, checksum_offset: offset, ..Self::NOTHING };
        if kind == KIND_NONE {
            return Ok(checksum);
        }
        if segment_bytes == 0 || usize::from(claimed_header) > frame.len() {
            return Err(Unfit::Size);
        }
        let found = Headers::find(frame).ok_or(Unfit::Headers)?;
        let (kind, protocol, place) = match (kind & !KIND_ECN, found.is_ipv6) {
            (KIND_TCP4, false) => (Kind::Tcp4, TCP, TCP_CHECKSUM),
            (KIND_TCP6, true) => (Kind::Tcp6, TCP, TCP_CHECKSUM),
            (KIND_UDP, false) => (Kind::Udp4, UDP, UDP_CHECKSUM),
            (KIND_UDP, true) => (Kind::Udp6, UDP, UDP_CHECKSUM),
            _ => return Err(Unfit::Headers),
        };
        if found.protocol != protocol {
            return Err(Unfit::Headers);
        }
        let header_bytes = u16::try_from(found.end).ok().filter(|&bytes| bytes <= HEADERS_MAX).ok_or(Unfit::Headers)?;
        if usize::from(start) != found.transport || offset != place {
            return Err(Unfit::Checksum);
        }
        let payload = (frame.len() - found.end) as u32;
        if payload.div_ceil(segment_bytes.into()) > SEGMENTS_MAX {
            return Err(Unfit::Size);
        }
        if payload <= segment_bytes.into() {
            return Ok(checksum);
        }
        Ok(Self {
            kind,
            has_ecn: header[1] & KIND_ECN != 0,
            network: found.network as u8,
            header_bytes,
            segment_bytes,
            ..checksum
        })
    }

    /// Nothing is to be done.
    #[inline]
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        matches!(self.kind, Kind::Nothing)
    }

    /// Several frames are to be made of it.
    #[inline]
    #[must_use]
    pub const fn is_segmentation(&self) -> bool {
        self.segment_bytes != 0
    }

    /// What a receiver must be capable of to get the frame as it is.
    #[must_use]
    pub const fn needs(&self) -> Features {
        let ecn = if self.has_ecn { Features::ECN } else { Features::NONE };
        let kind = match self.kind {
            Kind::Nothing | Kind::Refused(_) => return Features::NONE,
            Kind::Checksum => Features::NONE,
            Kind::Tcp4 => Features::TCP4,
            Kind::Tcp6 => Features::TCP6,
            Kind::Udp4 | Kind::Udp6 => Features::UDP,
        };
        Features::CHECKSUM.with(kind).with(ecn)
    }

    /// Bytes of the longest frame that a frame of `length` bytes becomes on a wire: what an MTU is held against.
    #[inline]
    #[must_use]
    pub const fn longest(&self, length: u32) -> u32 {
        if self.is_segmentation() { self.header_bytes as u32 + self.segment_bytes as u32 } else { length }
    }

    /// Frames that a frame of `length` bytes becomes on a wire.
    #[must_use]
    pub const fn frames(&self, length: u32) -> u32 {
        let payload = length.saturating_sub(self.header_bytes as u32);
        if self.is_segmentation() { payload.div_ceil(self.segment_bytes as u32) } else { 1 }
    }

    /// The header for a receiver that can do it: nothing in it but what was found in the frame.
    #[must_use]
    pub const fn header(&self) -> [u8; OFFLOAD_HEADER_BYTES] {
        let kind = match self.kind {
            Kind::Nothing | Kind::Refused(_) => return [0; OFFLOAD_HEADER_BYTES],
            Kind::Checksum => KIND_NONE,
            Kind::Tcp4 => KIND_TCP4,
            Kind::Tcp6 => KIND_TCP6,
            Kind::Udp4 | Kind::Udp6 => KIND_UDP,
        };
        let ecn = if self.has_ecn { KIND_ECN } else { 0 };
        let [a, b] = self.header_bytes.to_le_bytes();
        let [c, d] = self.segment_bytes.to_le_bytes();
        let [e, f] = self.checksum_start.to_le_bytes();
        let [g, h] = self.checksum_offset.to_le_bytes();
        [NEEDS_CHECKSUM, kind | ecn, a, b, c, d, e, f, g, h]
    }

    /// Completes the checksum of a frame that is not to be segmented: the field has the pseudo-header's sum already.
    /// `false`: it is not the frame that was checked.
    pub fn complete(&self, frame: &mut [u8]) -> bool {
        let start = usize::from(self.checksum_start);
        let place = start + usize::from(self.checksum_offset);
        let Some(covered) = frame.get(start..) else { return false };
        let found = checksum(sum(covered));
        put(frame, place, &found).is_some()
    }

    /// Writes segment `index` of a frame into `out`: its length. `None`: there is no such segment, no room for it, or it is
    /// not the frame that was checked.
    pub fn segment(&self, frame: &[u8], index: u32, out: &mut [u8]) -> Option<usize> {
        let (head, step) = (usize::from(self.header_bytes), usize::from(self.segment_bytes));
        let payload = frame.get(head..)?;
        let from = step.checked_mul(index as usize)?;
        let part = payload.get(from..payload.len().min(from.checked_add(step)?)).filter(|part| !part.is_empty())?;
        let is_last = from + part.len() == payload.len();
        let length = head + part.len();
        let out = out.get_mut(..length)?;
        out.get_mut(..head)?.copy_from_slice(&frame[..head]);
        out.get_mut(head..)?.copy_from_slice(part);

        let (network, transport) = (usize::from(self.network), usize::from(self.checksum_start));
        let behind = u16::try_from(length - transport).ok()?;
        let addresses = if matches!(self.kind, Kind::Tcp4 | Kind::Udp4) {
            put(out, network + 2, &u16::try_from(length - network).ok()?.to_be_bytes())?;
            let id = word(out, network + 4)?.wrapping_add(index as u16);
            put(out, network + 4, &id.to_be_bytes())?;
            put(out, network + 10, &[0, 0])?;
            let found = checksum(sum(out.get(network..)?.get(..usize::from(*out.get(network)? & 0xf) * 4)?));
            put(out, network + 10, &found)?;
            network + 12..network + 20
        } else {
            put(out, network + 4, &u16::try_from(length - network - IPV6_BYTES).ok()?.to_be_bytes())?;
            network + 8..network + 40
        };
        let is_tcp = matches!(self.kind, Kind::Tcp4 | Kind::Tcp6);
        if is_tcp {
            let number: [u8; 4] = out.get(transport + 4..transport + 8)?.try_into().ok()?;
            put(out, transport + 4, &u32::from_be_bytes(number).wrapping_add(from as u32).to_be_bytes())?;
            let flags = out.get_mut(transport + TCP_FLAGS)?;
            *flags &= !((if index == 0 { 0 } else { FIRST_ONLY }) | (if is_last { 0 } else { LAST_ONLY }));
        } else {
            put(out, transport + 4, &behind.to_be_bytes())?;
        }
        let place = transport + usize::from(self.checksum_offset);
        put(out, place, &[0, 0])?;
        let [high, low] = behind.to_be_bytes();
        let pseudo = sum(out.get(addresses)?) + sum(&[0, if is_tcp { TCP } else { UDP }, high, low]);
        let found = checksum(pseudo + sum(out.get(transport..)?));
        put(out, place, &found)?;
        Some(length)
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "a flag that nobody offered",
            Self::Kind => "a kind of segmentation that there is not",
            Self::Checksum => "a checksum at a place where none can be",
            Self::Size => "segments of a size that cannot be",
            Self::Headers => "headers that are not those of the frame",
        })
    }
}

/// Where a frame's headers are.
#[derive(Debug)]
struct Headers {
    is_ipv6: bool,
    protocol: u8,
    network: usize,
    transport: usize,
    /// Where the payload begins.
    end: usize,
}

impl Headers {
    /// `None`: it is no whole packet of TCP or UDP over IP, exactly as long as it says.
    fn find(frame: &[u8]) -> Option<Self> {
        let mut network = ETHERNET_BYTES as usize;
        let mut ether_type = word(frame, network - 2)?;
        if ether_type == TYPE_VLAN {
            network += VLAN_BYTES;
            ether_type = word(frame, network - 2)?;
        }
        let packet = frame.get(network..)?;
        let (protocol, bytes) = match ether_type {
            TYPE_IPV4 => ipv4(packet)?,
            TYPE_IPV6 => ipv6(packet)?,
            _ => return None,
        };
        let transport = network + bytes;
        let segment = frame.get(transport..)?;
        let bytes = match protocol {
            TCP => usize::from(*segment.get(12)? >> 4) * 4,
            UDP if usize::from(word(segment, 4)?) == segment.len() => UDP_BYTES,
            _ => return None,
        };
        let is_whole = bytes <= segment.len() && (protocol == UDP || bytes >= TCP_BYTES);
        is_whole.then_some(Self {
            is_ipv6: ether_type == TYPE_IPV6,
            protocol,
            network,
            transport,
            end: transport + bytes,
        })
    }
}

/// Protocol and header length of an IPv4 packet that is not fragmented.
fn ipv4(packet: &[u8]) -> Option<(u8, usize)> {
    let first = *packet.first()?;
    let bytes = usize::from(first & 0xf) * 4;
    let is_whole = word(packet, 6)? & 0x3fff == 0;
    let fits = first >> 4 == 4 && bytes >= IPV4_BYTES && bytes <= packet.len();
    (fits && is_whole && usize::from(word(packet, 2)?) == packet.len()).then_some((*packet.get(9)?, bytes))
}

/// Protocol, and bytes of all headers in front of it, of an IPv6 packet that is not fragmented.
fn ipv6(packet: &[u8]) -> Option<(u8, usize)> {
    let is_ipv6 = *packet.first()? >> 4 == 6;
    if !is_ipv6 || usize::from(word(packet, 4)?) + IPV6_BYTES != packet.len() {
        return None;
    }
    let mut next = *packet.get(6)?;
    let mut bytes = IPV6_BYTES;
    for _ in 0..EXTENSIONS_MAX {
        if !OPTIONS.contains(&next) {
            break;
        }
        next = *packet.get(bytes)?;
        bytes += (usize::from(*packet.get(bytes + 1)?) + 1) * 8;
    }
    (bytes <= packet.len()).then_some((next, bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) -> Option<()> {
    bytes.get_mut(at..at + what.len())?.copy_from_slice(what);
    Some(())
}

/// Adds 16-bit words as they lie in memory; one's-complement addition is the same in either byte order.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let total = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_ne_bytes(last))
}

/// The checksum of what was summed up, as it lies in memory; never 0, which UDP takes for none.
fn checksum(mut sum: u64) -> [u8; 2] {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let found = !(sum as u16);
    (if found == 0 { 0xffff } else { found }).to_ne_bytes()
}
