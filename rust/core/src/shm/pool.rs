//! Where a guest's frames live: a stack of equal buffers to receive into, and a byte ring to send from.
//!
//! Both are bookkeeping of one side only; nothing here is shared. [`BufferPool`] lends fixed buffers in any order
//! (received frames may be held for a while). [`SendArena`] lays frames one behind the other and frees them in order,
//! as the ring returns them: small frames fill whole cache lines in sequence, which the prefetchers follow.

use std::collections::VecDeque;

use super::layout::CACHE_LINE;

/// Equal buffers, lent last-in first-out so that the warmest comes next.
#[derive(Debug)]
pub struct BufferPool {
    start: u32,
    stride: u32,
    length: u32,
    free: Vec<u32>,
    count: u32,
}

impl BufferPool {
    /// `count` buffers of `length` bytes, the first at byte `start`, each `stride` bytes behind the one before.
    #[must_use]
    pub fn new(start: u32, stride: u32, length: u32, count: u32) -> Self {
        debug_assert!(length <= stride);
        Self { start, stride, length, free: (0..count).rev().collect(), count }
    }

    /// Distance between buffers that hold `length` bytes: whole cache lines, an odd number of them, so that the first
    /// lines of neighbours fall into different sets of the caches.
    #[must_use]
    pub const fn stride_for(length: u32) -> u32 {
        let line = CACHE_LINE as u32;
        (length.div_ceil(line) | 1) * line
    }

    /// Bytes of one buffer.
    #[must_use]
    pub const fn buffer_bytes(&self) -> u32 {
        self.length
    }

    /// Buffers nobody holds.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.free.len() as u32
    }

    /// Borrows a buffer: its index, to be given back.
    pub fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Gives a buffer back. An index that was never lent, or came back already, is the caller's mistake.
    pub fn give_back(&mut self, index: u32) {
        debug_assert!(index < self.count && !self.free.contains(&index));
        self.free.push(index);
    }

    /// Byte offset of a buffer.
    #[must_use]
    pub const fn offset(&self, index: u32) -> u32 {
        self.start + index * self.stride
    }
}

/// Memory for frames on their way out, freed in the order it was taken.
#[derive(Debug)]
pub struct SendArena {
    start: u32,
    size: u32,
    /// Most pieces in flight at once.
    slots: u32,
    /// Bytes ever taken and ever freed; their difference is what is in use, padding included.
    taken: u64,
    freed: u64,
    /// What each piece in flight used, oldest first.
    pieces: VecDeque<u32>,
}

impl SendArena {
    /// `size` bytes at byte `start`, both multiples of a cache line, for at most `slots` pieces at a time.
    #[must_use]
    pub const fn new(start: u32, size: u32, slots: u32) -> Self {
        Self { start, size, slots, taken: 0, freed: 0, pieces: VecDeque::new() }
    }

    /// Takes `length` bytes in one piece: their byte offset, or `None` when there is no room now.
    pub fn take(&mut self, length: u32) -> Option<u32> {
        let rounded = length.max(1).next_multiple_of(CACHE_LINE as u32);
        let position = (self.taken % u64::from(self.size)) as u32;
        let room = u64::from(self.size) - (self.taken - self.freed);
        // A piece never wraps: the rest of the arena is skipped and counted as part of this piece. Small frames turn
        // back early, where as many of them as can be in flight fit: what is not touched needs no place in a cache.
        let enough = self.slots.saturating_mul(rounded).min(self.size);
        let rest = self.size - position;
        let turns_back = position >= enough && u64::from(rest) + u64::from(rounded) <= room;
        let skipped = if rounded > rest || turns_back { rest } else { 0 };
        let used = u64::from(skipped) + u64::from(rounded);
        if used > room {
            return None;
        }
        self.pieces.push_back(skipped + rounded);
        self.taken += used;
        Some(self.start + if skipped == 0 { position } else { 0 })
    }

    /// Frees the oldest `count` pieces.
    pub fn free(&mut self, count: u32) {
        for _ in 0..count {
            if let Some(used) = self.pieces.pop_front() {
                self.freed += u64::from(used);
            }
        }
        if self.pieces.is_empty() {
            // Start over at the warm end.
            self.taken = 0;
            self.freed = 0;
        }
    }

    /// Gives the newest piece back unused.
    pub fn undo(&mut self) {
        if let Some(used) = self.pieces.pop_back() {
            self.taken -= u64::from(used);
        }
    }

    /// Pieces taken and not freed.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }
}
