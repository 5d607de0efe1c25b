//! The bytes of a test frame: a header that numbers and times it, and a payload that follows from the header.
//!
//! ```text
//!    0        6        12     14  15  16      20      24         32               40
//!   ┌────────┬────────┬──────┬───┬───┬───────┬───────┬──────────┬────────────────┬──────────────────┐
//!   │ to     │ from   │ 88b5 │ 1 │ f │ stream│ check │ number   │ scheduled, ns  │ pattern …        │   little-endian
//!   └────────┴────────┴──────┴───┴───┴───────┴───────┴──────────┴────────────────┴──────────────────┘
//! ```
//!
//! `check` and every word of the pattern are computed from stream, number, time, length and flags, so that a receiver
//! knows each bit behind the addresses that it should have got: any change of header, payload or length is noticed. A
//! *light* frame has no pattern and a check of 0; its payload is whatever lay there. The ethertype is the one for local
//! experiments (IEEE 802, `0x88b5`). Times are `CLOCK_MONOTONIC`, so both ends must be on one machine.

/// Shortest frame: Ethernet's 64 bytes without the checksum that no ring carries.
pub const FRAME_MIN: u32 = 60;
/// Longest frame: what a device of the largest MTU carries.
pub const FRAME_MAX: u32 = 65_549;

const HEADER: usize = 40;
const VERSION: u8 = 1;
const KIND: [u8; 3] = [0x88, 0xb5, VERSION];
const LIGHT: u8 = 1;
const REPLY: u8 = 2;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Who sends test frames to whom, and as which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination MAC.
    pub to: [u8; 6],
    /// Source MAC.
    pub from: [u8; 6],
    /// Tells the streams at one sink apart.
    pub stream: u32,
}

/// What a test frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its stream.
    pub stream: u32,
    /// Its number in the stream, from 0.
    pub number: u64,
    /// When it was meant to be sent, in nanoseconds; 0: nobody said.
    pub scheduled_ns: u64,
    /// It has no pattern.
    pub is_light: bool,
    /// A reflector has turned it round.
    pub is_reply: bool,
}

/// What a received frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A test frame, as it was sent.
    Intact(Stamp),
    /// A test frame that was changed on its way.
    Corrupted,
    /// Something else.
    Foreign,
}

/// From what the pattern of a frame follows. Flags that a reflector changes are left out.
const fn seed(stream: u32, number: u64, scheduled_ns: u64, length: usize) -> u64 {
    let mut mixed = number.wrapping_mul(STEP) ^ scheduled_ns.rotate_left(32) ^ (length as u64) << 48 ^ stream as u64;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

const fn check_of(seed: u64) -> u32 {
    (seed >> 32) as u32 ^ seed as u32
}

/// Writes a frame into `room`, at least [`FRAME_MIN`] bytes; a shorter one is left alone.
#[inline]
pub fn write(room: &mut [u8], route: &Route, number: u64, scheduled_ns: u64, is_light: bool) {
    let length = room.len();
    let Some((head, pattern)) = room.split_first_chunk_mut::<HEADER>() else { return };
    let seed = if is_light { 0 } else { seed(route.stream, number, scheduled_ns, length) };
    // In whole words: each store waits in a queue until its line is there, and that queue is short.
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (route.to, route.from);
    let [m, n, o] = KIND;
    let flags = if is_light { LIGHT } else { 0 };
    let words = [
        u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        u64::from_le_bytes([i, j, k, l, m, n, o, flags]),
        u64::from(route.stream) | u64::from(check_of(seed)) << 32,
        number,
        scheduled_ns,
    ];
    for (place, word) in head.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    if is_light {
        return;
    }
    let (words, rest) = pattern.as_chunks_mut::<8>();
    let mut word = seed;
    for place in words {
        *place = word.to_le_bytes();
        word = word.wrapping_add(STEP);
    }
    let last = word.to_le_bytes();
    let count = rest.len();
    rest.copy_from_slice(&last[..count]);
}

/// Writes a recorded frame, as long as `room`, with the addresses of a route.
pub fn write_recorded(room: &mut [u8], route: &Route, recorded: &[u8]) {
    if room.len() != recorded.len() || recorded.len() < 12 {
        return;
    }
    room.copy_from_slice(recorded);
    room[..6].copy_from_slice(&route.to);
    room[6..12].copy_from_slice(&route.from);
}

/// Whether a frame is for one station, and that is another than `mac`: a switch that does not know it floods.
#[inline]
#[must_use]
pub fn is_for_another(frame: &[u8], mac: [u8; 6]) -> bool {
    frame.first_chunk::<6>().is_some_and(|to| *to != mac && to[0] & 1 == 0)
}

/// Reads a frame.
#[inline]
#[must_use]
pub fn read(frame: &[u8]) -> Found {
    let Some((head, pattern)) = frame.split_first_chunk::<HEADER>() else { return Found::Foreign };
    if head[12..14] != KIND[..2] {
        return Found::Foreign;
    }
    if head[14] != VERSION || head[15] & !(LIGHT | REPLY) != 0 || frame.len() < FRAME_MIN as usize {
        return Found::Corrupted;
    }
    let word = |start: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[start..start + 8]);
        u64::from_le_bytes(bytes)
    };
    let stream_and_check = word(16);
    let stamp = Stamp {
        stream: stream_and_check as u32,
        number: word(24),
        scheduled_ns: word(32),
        is_light: head[15] & LIGHT != 0,
        is_reply: head[15] & REPLY != 0,
    };
    let check = (stream_and_check >> 32) as u32;
    if stamp.is_light {
        return if check == 0 { Found::Intact(stamp) } else { Found::Corrupted };
    }
    let seed = seed(stamp.stream, stamp.number, stamp.scheduled_ns, frame.len());
    if check == check_of(seed) && is_pattern(pattern, seed) { Found::Intact(stamp) } else { Found::Corrupted }
}

/// Whether every byte is what [`write`] wrote. Looks at all of them, so that the loop can be vectorised.
fn is_pattern(pattern: &[u8], seed: u64) -> bool {
    let (words, rest) = pattern.as_chunks::<8>();
    let mut word = seed;
    let mut differences = 0;
    for found in words {
        differences |= u64::from_le_bytes(*found) ^ word;
        word = word.wrapping_add(STEP);
    }
    differences == 0 && *rest == word.to_le_bytes()[..rest.len()]
}

/// Whether a reflector answers this frame: a test frame to one station, not a reply itself.
#[must_use]
pub fn is_request(frame: &[u8]) -> bool {
    // Group addresses are not answered: everybody would.
    frame.len() >= HEADER && frame[12..15] == KIND && frame[15] & REPLY == 0 && frame[0] & 1 == 0
}

/// Turns a frame of which [`is_request`] is true round: addresses swapped, marked as a reply.
pub fn turn_round(frame: &mut [u8]) {
    if let Some(head) = frame.first_chunk_mut::<HEADER>() {
        head[15] |= REPLY;
        let (to, from) = head[..12].split_at_mut(6);
        to.swap_with_slice(from);
    }
}
