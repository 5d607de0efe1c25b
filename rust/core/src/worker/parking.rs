//! When to stop polling a port: how long to wait for more before going to sleep.
//!
//! ```text
//!   kick soon after the last frame      ─▶ polling a little longer would have caught it: double the patience
//!   kick long after                     ─▶ patience was wasted: halve it; an isolated kick is served and re-armed
//! ```
//!
//! Patience lies between nothing and the port's burst threshold, so that a guest in a burst is polled and costs no
//! wake-ups, and a guest that speaks once a second costs no polling. Source: vbus venet `burstthresh`.

/// Patience below this is none.
const PATIENCE_MIN_NS: u64 = 2_000;

/// A port's state between polled and asleep.
#[derive(Debug)]
pub(crate) struct Parking {
    /// It is polled; otherwise it sleeps and its doorbell wakes it.
    pub is_active: bool,
    /// It had something to do since the clock was last looked at.
    has_worked: bool,
    last_work_ns: u64,
    patience_ns: u64,
    threshold_ns: u64,
}

impl Parking {
    /// A port that was just attached: active, and parked as soon as it has nothing to do.
    pub(crate) const fn new(burst_threshold_us: u32) -> Self {
        Self {
            is_active: false,
            has_worked: false,
            last_work_ns: 0,
            patience_ns: 0,
            threshold_ns: burst_threshold_us as u64 * 1000,
        }
    }

    pub(crate) fn set_threshold(&mut self, burst_threshold_us: u32) {
        self.threshold_ns = u64::from(burst_threshold_us) * 1000;
        self.patience_ns = self.patience_ns.min(self.threshold_ns);
    }

    /// It had something to do.
    #[inline]
    pub(crate) const fn work(&mut self) {
        self.has_worked = true;
    }

    /// Its doorbell rang while it slept.
    pub(crate) fn wake(&mut self, now_ns: u64) {
        let silence_ns = now_ns.saturating_sub(self.last_work_ns);
        self.patience_ns = if silence_ns <= self.threshold_ns {
            (self.patience_ns * 2).max(PATIENCE_MIN_NS).min(self.threshold_ns)
        } else if self.patience_ns / 2 < PATIENCE_MIN_NS {
            0
        } else {
            self.patience_ns / 2
        };
        self.last_work_ns = now_ns;
    }

    /// It has been idle for longer than its patience. Never right after work: its last turn found nothing.
    pub(crate) fn is_due(&mut self, now_ns: u64) -> bool {
        if self.has_worked {
            self.has_worked = false;
            self.last_work_ns = now_ns;
            return false;
        }
        now_ns.saturating_sub(self.last_work_ns) >= self.patience_ns
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const THRESHOLD_NS: u64 = 50_000;

    /// Wakes the port `times` times, each `silence_ns` after its last work; answers the time.
    fn wake_often(parking: &mut Parking, mut now_ns: u64, silence_ns: u64, times: u32) -> u64 {
        for _ in 0..times {
            now_ns += silence_ns;
            parking.wake(now_ns);
            parking.work();
            let _ = parking.is_due(now_ns);
        }
        now_ns
    }

    #[test]
    fn isolated_kick_is_served_and_parked_at_once() {
        let mut parking = Parking::new(50);
        parking.wake(1_000_000);
        parking.work();

        assert!(!parking.is_due(1_000_100));
        assert!(parking.is_due(1_000_100));
    }

    #[test]
    fn kicks_in_a_row_make_it_patient_up_to_the_threshold() {
        let mut parking = Parking::new(50);
        let now_ns = wake_often(&mut parking, 0, 10_000, 20);

        assert!(!parking.is_due(now_ns + THRESHOLD_NS - 1));
        assert!(parking.is_due(now_ns + THRESHOLD_NS));
    }

    #[test]
    fn lonely_kicks_make_it_impatient_again() {
        let mut parking = Parking::new(50);
        let now_ns = wake_often(&mut parking, 0, 10_000, 20);

        let now_ns = wake_often(&mut parking, now_ns, 1_000_000, 10);

        assert!(parking.is_due(now_ns));
    }

    #[test]
    fn threshold_of_zero_never_waits() {
        let mut parking = Parking::new(0);
        let now_ns = wake_often(&mut parking, 0, 1, 20);

        assert!(parking.is_due(now_ns));
    }

    #[test]
    fn lower_threshold_applies_at_once() {
        let mut parking = Parking::new(50);
        let now_ns = wake_often(&mut parking, 0, 10_000, 20);

        parking.set_threshold(5);

        assert!(parking.is_due(now_ns + 5_000));
    }
}
