//! What a driver and its host agreed on beyond plain frames, and how that looks in a ring of venet.
//!
//! ```text
//!   slot   ─ flags 0 ──────────▶ a frame
//!          ─ REQUEST ──────────▶ a request header of 16 bytes, the frame behind it
//!          ─ MORE ─────────────▶ a piece; the next slot goes on with the same frame
//!          ─ POOLED ───────────▶ a description in the pool: one word a piece, each like a slot
//! ```
//!
//! Whoever writes a frame also writes its flags: the guest those of TX, the host those of RX. Both ends check what the other
//! one wrote against the [`Grant`], which does not change while the link exists.
//! Source: `docs/wire/venet.md`; vbus venet (`venet_sg`, PMTD, L4RO), whose descriptors these words stand for.

use super::frame::{FRAME_BYTES_MAX, HEADER_BYTES};
use super::offload::{Features, OFFLOAD_HEADER_BYTES};

/// The frame goes on in the next slot.
pub const FLAG_MORE: u8 = 0x01;
/// A request header is in front of the frame.
pub const FLAG_REQUEST: u8 = 0x02;
/// The slot names a description in the pool, not the frame.
pub const FLAG_POOLED: u8 = 0x04;

/// Bytes of a request header: a `virtio_net_hdr` and zeroes, so that the frame behind it keeps its place in a cache line.
pub const REQUEST_BYTES: u32 = 16;
/// Most pieces of one frame, and most buffers that one is received into.
pub const PIECES_MAX: usize = 64;
/// Bytes of one piece's word in a description.
pub const PIECE_BYTES: u32 = 8;
/// Bytes of the longest description.
pub const DESCRIPTION_BYTES: u32 = PIECES_MAX as u32 * PIECE_BYTES;
/// Longest frame with a request header.
pub const LONG_BYTES_MAX: u32 = FRAME_BYTES_MAX + REQUEST_BYTES;

/// What was granted; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// What the guest may leave to the host.
    pub takes: Features,
    /// What the host may leave to the guest.
    pub gives: Features,
    /// Frames from the guest may be in several pieces.
    pub is_scattered: bool,
    /// Frames to the guest may be in several buffers.
    pub is_merged: bool,
    /// Byte offset and length of the pool of descriptions.
    pub pool: Option<(u32, u32)>,
}

impl Grant {
    /// Plain frames.
    pub const NOTHING: Self =
        Self { takes: Features::NONE, gives: Features::NONE, is_scattered: false, is_merged: false, pool: None };

    /// Flags that the guest may set.
    #[must_use]
    pub const fn transmit_flags(&self) -> u8 {
        (if self.is_scattered { FLAG_MORE } else { 0 })
            | (if self.takes.is_empty() { 0 } else { FLAG_REQUEST })
            | (if self.pool.is_some() { FLAG_POOLED } else { 0 })
    }

    /// Flags that the host may set.
    #[must_use]
    pub const fn receive_flags(&self) -> u8 {
        (if self.is_merged { FLAG_MORE } else { 0 }) | (if self.gives.is_empty() { 0 } else { FLAG_REQUEST })
    }

    /// Longest frame from the guest of a device whose frames are at most `limit` bytes: what will be cut may be longer.
    #[must_use]
    pub fn transmit_limit(&self, limit: u32) -> u32 {
        if self.takes.cuts() { FRAME_BYTES_MAX } else { limit }
    }
}

/// A header in front of a frame, as it crosses a ring.
#[must_use]
pub fn request_header(asked: &[u8; OFFLOAD_HEADER_BYTES]) -> [u8; REQUEST_BYTES as usize] {
    let mut header = [0; REQUEST_BYTES as usize];
    header[..OFFLOAD_HEADER_BYTES].copy_from_slice(asked);
    header
}

/// What a header in front of a frame asks for. `None`: its last bytes are not 0.
#[must_use]
pub fn asked(header: &[u8; REQUEST_BYTES as usize]) -> Option<[u8; OFFLOAD_HEADER_BYTES]> {
    let (asked, rest) = header.split_first_chunk()?;
    rest.iter().all(|&byte| byte == 0).then_some(*asked)
}

const _: () = assert!(LONG_BYTES_MAX > HEADER_BYTES && REQUEST_BYTES as usize > OFFLOAD_HEADER_BYTES);
