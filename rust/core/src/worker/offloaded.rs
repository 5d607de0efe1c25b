//! Forwarding frames that ask for something: whole to ports that can do it, done here for those that cannot.
//!
//! ```text
//!   frame with a request ─▶ receiver can do it ─▶ one offer, with the request
//!                           cannot ─▶ segment, segment, … or checksum completed ─▶ scratch ─▶ plain offers
//! ```
//!
//! Batches in which no frame asks for anything never come here. A segment costs as much of a turn's budget as a frame.
//! The danger: none that [`crate::net::offload`] has not dealt with; such frames lie in private memory.

use std::slice;

use super::forward::{Plane, Port, copy_frame, port_at, touch, why_not_taken};
use crate::net::frame::{FRAME_BYTES_MAX, FrameStart, START_BYTES};
use crate::net::mac_table::PortSlot;
use crate::net::offload::Request;
use crate::net::switch::Verdict;
use crate::port::batch::Piece;
use crate::port::{PortCounter, Refusal};

/// Where segments are made, one after the other.
pub(super) type Scratch = [u8; (FRAME_BYTES_MAX as usize).next_multiple_of(START_BYTES)];

/// Room for segments.
pub(super) fn scratch() -> Box<Scratch> {
    // Made on the heap at once: it is too large for some stacks.
    vec![0; size_of::<Scratch>()].into_boxed_slice().try_into().unwrap_or_else(|_| Box::new([0; size_of::<Scratch>()]))
}

impl<const COUNTS: bool> Plane<COUNTS> {
    /// As [`Plane::claim`], for a batch with requests: also how many copies it cost beyond one a frame.
    #[cold]
    #[inline(never)]
    pub(super) fn claim_requested(&mut self, slot: PortSlot, start: usize, end: usize) -> (usize, u32) {
        let Self { ports, batch, touched, scratch, .. } = self;
        let mut more = 0;
        for index in start..end {
            let piece = &mut batch.pieces[index];
            piece.target = std::ptr::null_mut();
            let to = match batch.verdicts[index] {
                Verdict::To(to) if piece.length != 0 => to,
                verdict => {
                    let unfit = batch.requests[index].unfit();
                    let reason = unfit.map_or_else(|| why_not_taken(verdict, piece), PortCounter::of_unfit);
                    if let Some(port) = port_at(ports, slot) {
                        port.count::<COUNTS>(reason, 1);
                    }
                    batch.reasons[index] = reason.reason();
                    continue;
                }
            };
            let Some(port) = port_at(ports, to) else { continue };
            touch(port, to, touched);
            let (cost, outcome) = give::<COUNTS>(port, &batch.starts[index], piece, &batch.requests[index], scratch);
            more += cost - 1;
            match outcome {
                Ok(target) => piece.target = target,
                Err(refusal) => batch.reasons[index] = refusal.counter().reason(),
            }
        }
        (end, more)
    }
}

/// Gives a frame with a request to a port and counts what it refuses: what that cost, at least 1, and where the frame is
/// still to be copied to, if it is.
pub(super) fn give<const COUNTS: bool>(
    port: &mut Port,
    start: &FrameStart,
    piece: &Piece,
    request: &Request,
    scratch: &mut Scratch,
) -> (u32, Result<*mut u8, Refusal>) {
    let outcome = if request.is_nothing() || port.features().contains(request.needs()) {
        // SAFETY: the piece was loaded in this turn.
        let outcome = unsafe { port.offer_requested(start, piece, request) };
        if outcome.is_ok() && !request.is_nothing() {
            port.count::<COUNTS>(PortCounter::ReceiveOffloads, 1);
        }
        outcome
    } else {
        // SAFETY: a frame with a request lies in private memory, which nobody writes in this turn.
        let frame = unsafe { slice::from_raw_parts(piece.source, piece.length as usize) };
        if request.is_segmentation() {
            return give_segments::<COUNTS>(port, frame, request, scratch);
        }
        give_completed::<COUNTS>(port, frame, request, scratch)
    };
    if let Err(refusal) = outcome {
        port.count::<COUNTS>(refusal.counter(), 1);
    }
    (1, outcome)
}

fn give_completed<const COUNTS: bool>(
    port: &mut Port,
    frame: &[u8],
    request: &Request,
    scratch: &mut Scratch,
) -> Result<*mut u8, Refusal> {
    let whole = scratch.get_mut(..frame.len()).ok_or(Refusal::Oversize)?;
    whole.copy_from_slice(frame);
    if !request.complete(whole) {
        return Err(Refusal::Refused);
    }
    give_plain(port, whole)?;
    port.count::<COUNTS>(PortCounter::CompletedChecksums, 1);
    Ok(std::ptr::null_mut())
}

/// Segments go out until one is refused; it and those behind it are counted as dropped.
fn give_segments<const COUNTS: bool>(
    port: &mut Port,
    frame: &[u8],
    request: &Request,
    scratch: &mut Scratch,
) -> (u32, Result<*mut u8, Refusal>) {
    let count = request.frames(frame.len() as u32);
    for index in 0..count {
        let given = match request.segment(frame, index, scratch) {
            Some(length) => give_plain(port, &scratch[..length]),
            None => Err(Refusal::Refused),
        };
        if let Err(refusal) = given {
            port.count::<COUNTS>(refusal.counter(), (count - index).into());
            return (index + 1, Err(refusal));
        }
    }
    port.count::<COUNTS>(PortCounter::SegmentedFrames, 1);
    (count.max(1), Ok(std::ptr::null_mut()))
}

/// Gives a frame of ours that asks for nothing, and copies it.
fn give_plain(port: &mut Port, frame: &[u8]) -> Result<(), Refusal> {
    let start = FrameStart::of(frame);
    let mut piece = Piece { source: frame.as_ptr(), target: std::ptr::null_mut(), length: frame.len() as u32 };
    // SAFETY: the piece is private and there.
    piece.target = unsafe { port.offer(&start, &piece) }?;
    if !piece.target.is_null() {
        // SAFETY: the target was checked just now, for this length and for at least 64 bytes.
        unsafe { copy_frame(&start, &piece) };
    }
    Ok(())
}
