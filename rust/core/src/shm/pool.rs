//! Where a guest's frames live: a stack of equal buffers to receive into, and a byte ring to send from.
//!
//! Both are bookkeeping of one side only; nothing here is shared. [`BufferPool`] lends fixed buffers in any order
//! (received frames may be held for a while). [`SendArena`] lays frames one behind the other and frees them in order,
//! as the ring returns them: small frames fill whole cache lines in sequence, which the prefetchers follow.

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

/// Pieces of one length that lie one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Byte offset of the first.
    pub offset: u32,
    /// Bytes from one to the next: whole cache lines.
    pub step: u32,
    /// How many there are, at least one.
    pub count: u32,
    /// Bytes before the first that are skipped and come free with it.
    skipped: u32,
}

/// Memory for frames on their way out, freed in the order it was taken.
#[derive(Debug)]
pub struct SendArena {
    start: u32,
    size: u32,
    /// Next byte to be taken, counted from `start`; always below `size`.
    position: u32,
    /// Bytes in use, skipped ones included.
    used: u32,
    /// What each piece in flight used, at its number modulo their count, a power of two: most pieces at once.
    pieces: Box<[u32]>,
    /// Number of the oldest piece in flight, and one past that of the newest.
    first: u32,
    last: u32,
}

impl SendArena {
    /// `size` bytes at byte `start`, both multiples of a cache line, for at most `slots` pieces at a time (rounded up
    /// to a power of two).
    #[must_use]
    pub fn new(start: u32, size: u32, slots: u32) -> Self {
        let pieces = vec![0; slots.next_power_of_two() as usize].into_boxed_slice();
        Self { start, size, position: 0, used: 0, pieces, first: 0, last: 0 }
    }

    /// Its first byte.
    #[must_use]
    pub const fn start(&self) -> u32 {
        self.start
    }

    #[inline]
    fn slots(&self) -> u32 {
        self.pieces.len() as u32
    }

    #[inline]
    fn piece(&mut self, number: u32) -> &mut u32 {
        let place = number as usize & (self.pieces.len() - 1);
        &mut self.pieces[place]
    }

    /// Takes `length` bytes in one piece: their byte offset, or `None` when there is no room now.
    #[inline]
    pub fn take(&mut self, length: u32) -> Option<u32> {
        let run = self.plan(length, 1)?;
        self.take_run(run, 1);
        Some(run.offset)
    }

    /// Where up to `most` pieces of `length` bytes would lie, one behind the other and each in whole cache lines; `None`
    /// when there is no room for one now. Nothing is taken until [`Self::take_run`].
    #[inline]
    #[must_use]
    pub fn plan(&self, length: u32, most: u32) -> Option<Run> {
        let step = length.max(1).next_multiple_of(CACHE_LINE as u32);
        let room = self.size - self.used;
        let rest = self.size - self.position;
        // A piece never wraps: the rest of the arena is skipped and counted as part of this piece. Small frames turn
        // back early, where as many of them as can be in flight fit: what is not touched needs no place in a cache.
        let enough = self.slots().saturating_mul(step).min(self.size);
        let turns_back = self.position >= enough && u64::from(rest) + u64::from(step) <= u64::from(room);
        let skipped = if step > rest || turns_back { rest } else { 0 };
        if u64::from(skipped) + u64::from(step) > u64::from(room) || self.pieces() == self.pieces.len() {
            return None;
        }
        let place = if skipped == 0 { self.position } else { 0 };
        let count = if most <= 1 {
            1
        } else {
            // A run ends where a single piece would turn back.
            let end = if place < enough { enough } else { self.size };
            let fits = ((room - skipped) / step).min((end - place) / step);
            most.min(fits).min(self.slots() - self.pieces() as u32).max(1)
        };
        Some(Run { offset: self.start + place, step, count, skipped })
    }

    /// Takes the first `count` pieces of a run that was planned since anything else was taken.
    #[inline]
    pub fn take_run(&mut self, run: Run, count: u32) {
        debug_assert!(count <= run.count);
        let count = count.min(run.count);
        if count == 0 {
            return;
        }
        *self.piece(self.last) = run.skipped + run.step;
        for number in 1..count {
            *self.piece(self.last.wrapping_add(number)) = run.step;
        }
        self.last = self.last.wrapping_add(count);
        self.used += run.skipped + run.step * count;
        let next = run.offset - self.start + run.step * count;
        self.position = if next == self.size { 0 } else { next };
    }

    /// Takes a piece of no bytes, which comes free in its turn: for a slot whose bytes lie elsewhere. Only while there are
    /// fewer pieces than slots.
    pub fn take_nothing(&mut self) {
        debug_assert!(self.pieces() < self.pieces.len());
        *self.piece(self.last) = 0;
        self.last = self.last.wrapping_add(1);
    }

    /// One past the last byte that pieces of `length` bytes use, as long as they stay that long.
    #[must_use]
    pub fn warm_end(&self, length: u32) -> u32 {
        self.start + self.slots().saturating_mul(length.next_multiple_of(CACHE_LINE as u32)).min(self.size)
    }

    /// Frees the oldest `count` pieces.
    #[inline]
    pub fn free(&mut self, count: u32) {
        let count = count.min(self.pieces() as u32);
        let mut freed = 0;
        for number in 0..count {
            freed += *self.piece(self.first.wrapping_add(number));
        }
        self.used -= freed;
        self.first = self.first.wrapping_add(count);
        self.start_over_when_empty();
    }

    /// Gives the newest piece back unused.
    pub fn undo(&mut self) {
        if self.pieces() != 0 {
            self.last = self.last.wrapping_sub(1);
            let used = *self.piece(self.last);
            self.used -= used;
            self.position =
                if self.position >= used { self.position - used } else { self.position + (self.size - used) };
        }
        self.start_over_when_empty();
    }

    /// Nothing is in flight: the next piece goes to the warm end, where the longest fits.
    #[inline]
    const fn start_over_when_empty(&mut self) {
        if self.pieces() == 0 {
            self.position = 0;
        }
    }

    /// Pieces taken and not freed.
    #[must_use]
    pub const fn pieces(&self) -> usize {
        self.last.wrapping_sub(self.first) as usize
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Pieces lie one behind the other in whole cache lines and come free in order.
    #[test]
    fn pieces_follow_each_other_and_come_free_in_order() {
        let mut arena = SendArena::new(4096, 256, 4);

        let taken = [64, 1, 100].map(|length| arena.take(length));

        assert_eq!([Some(4096), Some(4160), Some(4224)], taken);
        assert_eq!(None, arena.take(1));
        arena.free(1);
        assert_eq!(Some(4096), arena.take(64));
    }

    /// A piece that does not fit before the end goes to the start, and what was skipped comes free with it.
    #[test]
    fn a_piece_never_wraps() {
        let mut arena = SendArena::new(0, 256, 4);
        assert_eq!([Some(0), Some(64)], [64, 128].map(|length| arena.take(length)));
        arena.free(1);

        let refused = arena.take(128);
        arena.free(1);
        let taken = [arena.take(192), arena.take(64)];

        assert_eq!(None, refused);
        assert_eq!([Some(0), Some(192)], taken);
    }

    /// Taking a piece back leaves the arena as it was, also when the piece had turned back to the start.
    #[test]
    fn undo_restores_what_was_before() {
        let mut arena = SendArena::new(0, 512, 4);
        assert_eq!([Some(0), Some(128)], [128, 128].map(|length| arena.take(length)));
        arena.free(1);
        assert_eq!(Some(256), arena.take(192));
        arena.undo();

        let taken = arena.take(256);

        assert_eq!(Some(256), taken);
        arena.undo();
        assert_eq!(Some(256), arena.take(128));
    }

    /// More pieces than the ring has slots are never in flight.
    #[test]
    fn no_more_pieces_than_slots() {
        let mut arena = SendArena::new(0, 4096, 2);

        let taken = [64, 64, 64].map(|length| arena.take(length));

        assert_eq!([Some(0), Some(64), None], taken);
        assert_eq!(2, arena.pieces());
    }
}
