//! How long a receiver without room may hold its senders up, before frames to it are dropped.
//!
//! ```text
//!   frame for a full ring ─▶ time left ─▶ it stays in its sender's ring, whose turn ends: a full sender sleeps, and the
//!                                         receiver gets the processor that both may share
//!                          ─▶ none left ─▶ dropped and counted, as in any switch
//!   frames taken           ─▶ time earned, up to the port's threshold
//! ```
//!
//! Without it a sender that is faster than its receiver takes processor time from it to make frames that are thrown
//! away. Time is earned by frames taken: a receiver that takes no more holds nobody up once it has spent what it saved, and
//! one that is slow, by accident or on purpose, costs its senders no more than [`EARNED_NS`] for each frame that it took.
//! Frames to others behind a held one wait as well, which is why the threshold is short. Source: pause frames of IEEE
//! 802.3x, which have both troubles without the bound.
//!
//! Emulated cards never earn any: a card of hardware counts what it missed, and drops it. Nor do devices of the kernel, which
//! have queues of their own; and what was read from one cannot be left there.

/// Time a receiver earns by each frame that it takes.
const EARNED_NS: u64 = 2_000;

/// What a receiver has left.
#[derive(Debug)]
pub(crate) struct Hold {
    most_ns: u64,
    left_ns: u64,
    /// When it was last found full, since it took a frame; 0: it was not.
    full_ns: u64,
}

impl Hold {
    /// A receiver that has taken nothing yet, and so has earned nothing.
    pub(crate) const fn new(threshold_us: u32) -> Self {
        Self { most_ns: threshold_us as u64 * 1000, left_ns: 0, full_ns: 0 }
    }

    /// Changes the threshold; 0: frames are dropped at once.
    pub(crate) fn set_threshold(&mut self, threshold_us: u32) {
        self.most_ns = u64::from(threshold_us) * 1000;
        self.left_ns = self.left_ns.min(self.most_ns);
    }

    /// It took frames.
    #[inline]
    pub(crate) const fn earn(&mut self, frames: u64) {
        let left_ns = self.left_ns.saturating_add(frames.saturating_mul(EARNED_NS));
        self.left_ns = if left_ns < self.most_ns { left_ns } else { self.most_ns };
        self.full_ns = 0;
    }

    /// It is full: for how long since the last time, when frames may wait for it once more.
    #[cold]
    pub(crate) fn wait(&mut self, clock: impl FnOnce() -> u64) -> Option<u64> {
        if self.left_ns == 0 {
            return None;
        }
        let now_ns = clock().max(1);
        let spent_ns = if self.full_ns == 0 { 0 } else { now_ns.saturating_sub(self.full_ns) };
        self.full_ns = now_ns;
        self.left_ns = self.left_ns.saturating_sub(spent_ns);
        (self.left_ns != 0).then_some(spent_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn earned(frames: u64) -> Hold {
        let mut hold = Hold::new(500);
        hold.earn(frames);
        hold
    }

    #[test]
    fn receiver_that_took_nothing_holds_nobody_up() {
        assert_eq!(None, Hold::new(500).wait(|| 1_000));
    }

    #[test]
    fn time_runs_out_while_nothing_is_taken() {
        let mut hold = earned(5);

        let found: Vec<_> = [1_000, 5_000, 10_900, 11_000, 12_000].map(|now_ns| hold.wait(|| now_ns)).into();

        assert_eq!(vec![Some(0), Some(4_000), Some(5_900), None, None], found);
    }

    #[test]
    fn time_between_two_fillings_is_free() {
        let mut hold = earned(5);
        hold.wait(|| 1_000);

        hold.earn(1);

        assert_eq!(Some(0), hold.wait(|| 900_000));
        assert_eq!(Some(11_000), hold.wait(|| 911_000));
        assert_eq!(None, hold.wait(|| 912_000));
    }

    #[test]
    fn no_more_is_saved_than_the_threshold() {
        let mut hold = earned(1_000_000);

        assert_eq!([Some(0), Some(499_999), None], [1, 500_000, 500_001].map(|now_ns| hold.wait(|| now_ns)));
    }

    #[test]
    fn threshold_of_nothing_drops_at_once() {
        let mut hold = earned(1_000);

        hold.set_threshold(0);
        assert_eq!(None, hold.wait(|| 1_000));
        hold.earn(1_000);
        assert_eq!(None, hold.wait(|| 1_000));
    }
}
