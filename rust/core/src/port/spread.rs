//! Frames that do not lie together: gathered into private memory, or spread over several buffers.
//!
//! Whose memory is written: `gather` writes the worker's own, [`Parts::fill`] a guest's buffers.
//! The danger: places must have been checked, and be good for as long as the copy lasts; that is the caller's promise.

use crate::virtio::queue::Segment;

/// Copies the `total` bytes of `pieces` to where there is room for them: where that is. `None`: there is no room left.
///
/// # Safety
///
/// Every piece is mapped and readable, and together they are `total` bytes.
#[cold]
pub(super) unsafe fn gather(pieces: &[Segment], total: usize, room: &mut &mut [u8]) -> Option<*const u8> {
    if total > room.len() {
        return None;
    }
    let (here, rest) = std::mem::take(room).split_at_mut(total);
    *room = rest;
    let mut done = 0;
    for piece in pieces {
        // SAFETY: as promised by the caller. Private memory of ours overlaps none of a guest's.
        unsafe {
            piece.place.as_ptr().copy_to_nonoverlapping(here.as_mut_ptr().add(done), piece.bytes as usize);
        }
        done += piece.bytes as usize;
    }
    Some(here.as_ptr())
}

/// A frame in a few parts, a header of ours among them, on its way into buffers of any length.
#[derive(Debug)]
pub(super) struct Parts<const N: usize> {
    parts: [(*const u8, usize); N],
    /// The part that goes on, and its bytes that are done.
    at: usize,
    done: usize,
}

impl<const N: usize> Parts<N> {
    pub(super) const fn new(parts: [(*const u8, usize); N]) -> Self {
        Self { parts, at: 0, done: 0 }
    }

    /// Fills a buffer with what comes next: how many bytes that were, fewer than it holds at the end.
    ///
    /// # Safety
    ///
    /// The buffer is mapped and writable, the parts readable. All may lie in one guest's memory.
    pub(super) unsafe fn fill(&mut self, buffer: Segment) -> u32 {
        let mut filled = 0;
        while filled < buffer.bytes
            && let Some(&(place, length)) = self.parts.get(self.at)
        {
            let count = (length - self.done).min((buffer.bytes - filled) as usize);
            // SAFETY: `count` bytes are left of the part and of the buffer. They move as if they overlapped.
            unsafe { place.add(self.done).copy_to(buffer.place.as_ptr().add(filled as usize), count) };
            filled += count as u32;
            self.done += count;
            if self.done == length {
                (self.at, self.done) = (self.at + 1, 0);
            }
        }
        filled
    }
}
