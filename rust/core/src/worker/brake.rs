//! How often a peer may have something done that costs others a little each time it is.
//!
//! Counted in windows: a window begins with the first time after the last one was over. What becomes of a peer that is over its limit
//! is for who asks: one with a thread of its own waits there; one that calls where others wait for their turn is refused for now.

use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);

/// Counts for one peer.
#[derive(Debug)]
pub(crate) struct Brake {
    limit: u32,
    since: Option<Instant>,
    times: u32,
}

impl Brake {
    /// One that lets through `limit` times a second.
    pub(crate) const fn new(limit: u32) -> Self {
        Self { limit, since: None, times: 0 }
    }

    /// Counts one more time. `false`: it was too often.
    pub(crate) fn lets(&mut self, now: Instant) -> bool {
        let is_over = self.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW);
        if is_over {
            (self.since, self.times) = (Some(now), 0);
        }
        self.times = self.times.saturating_add(1);
        self.times <= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_holds_until_the_window_is_over_and_then_anew() {
        let mut brake = Brake::new(3);
        let start = Instant::now();
        let times = |brake: &mut Brake, now| (0..5).filter(|_| brake.lets(now)).count();

        let found = [0, 999, 1000, 1999, 2000, 60_000].map(|ms| times(&mut brake, start + Duration::from_millis(ms)));

        assert_eq!([3, 0, 3, 0, 3, 3], found);
    }
}
