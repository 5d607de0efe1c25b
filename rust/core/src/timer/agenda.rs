//! One guest's timers as the host keeps them: what is armed, what comes next, what is due. No thread, no clock of its own.
//!
//! ```text
//!   turn(now):  changed slots ─▶ heap of deadlines ─▶ due by now + lead? expiry word, mark ─▶ priorities to raise
//!               └ at most CHANGES_A_TURN            └ at most EXPIRIES_A_TURN       rest: sleep until, or again
//! ```
//!
//! A turn is bounded, so that a guest with a hundred thousand timers at one instant delays another guest by one turn. A
//! periodic timer stays on its grid: what went by is counted, not made up for. With a *lead* the guest is told before the
//! deadline and waits the rest itself (`guest::timer`); a periodic timer is told at most half a period ahead, so that one
//! telling is never two expiries ahead. What a guest says is copied by [`Keeper::read`] and kept here; a setting that
//! cannot be is counted and its timer disarmed.

use std::sync::Arc;

use super::heap::DeadlineHeap;
use crate::net::counters::counters;
use crate::shm::counters::Block;
use crate::shm::histogram::Recorder;
use crate::shm::timer::{Expiry, Keeper, Reading, Setting, TIMES};

/// Changed slots looked at in one turn.
const CHANGES_A_TURN: usize = 512;
/// Timers expired in one turn.
const EXPIRIES_A_TURN: usize = 256;
/// Longest lead anybody is granted.
pub const LEAD_MAX_NS: u64 = 1_000_000;

counters! {
    /// What is counted for every guest that uses timers.
    pub enum TimerCounter {
        /// Timers armed or moved, as far as the host looked.
        Arms = "arms",
        /// Timers cancelled, as far as the host looked.
        Cancels = "cancels",
        /// Kicks heard.
        Kicks = "kicks",
        /// Expiries told.
        Expiries = "expiries",
        /// Periods that went by without one of their own.
        Missed = "missed",
        /// Expiries told before their deadline, because the guest asked for a lead.
        Early = "early",
        /// Doorbells rung.
        Rings = "rings",
        /// Turns with expiries whose doorbell was spared: the guest was awake, or had yet to look.
        RingsSpared = "rings_spared",
        /// Turns taken.
        Turns = "turns",
        /// Turns that ended with more to do.
        BudgetExhausted = "budget_exhausted",
        /// Timers armed now.
        Armed = "armed",
        /// Marks that named no timer.
        ForgedSlots = "forged_slots",
        /// Control words with bits that mean nothing; the timer was disarmed.
        ForgedControls = "forged_controls",
        /// Periods too short to keep; the timer was disarmed.
        RefusedPeriods = "refused_periods",
    }
}

/// What the host does after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Sleep until this time; `u64::MAX`: until it is kicked.
    Until(u64),
    /// Take another turn after everybody else had theirs.
    Again,
}

/// How a turn went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Bit `p`: the guest may not know of something that expired at priority `p`.
    pub raise: u8,
    /// What comes after it.
    pub rest: Rest,
}

#[derive(Clone, Copy, Debug, Default)]
struct Armed {
    period_ns: u64,
    times: u64,
    generation: u32,
    priority: u8,
}

/// One guest's timers.
#[derive(Debug)]
pub struct Agenda {
    keeper: Keeper,
    heap: DeadlineHeap,
    armed: Vec<Armed>,
    changed: Vec<u32>,
    lead_max_ns: u64,
    block: Block,
    /// How late the host was, in nanoseconds: the words of a histogram, written by the thread that takes turns.
    late: Arc<Block>,
}

impl Agenda {
    /// Takes the host's end of a page. `block` has a value for each [`TimerCounter`], `late` the words of a histogram.
    #[must_use]
    pub fn new(keeper: Keeper, lead_max_ns: u64, block: Block, late: Arc<Block>) -> Self {
        let lead_max_ns = lead_max_ns.min(LEAD_MAX_NS);
        Self { keeper, heap: DeadlineHeap::default(), armed: Vec::new(), changed: Vec::new(), lead_max_ns, block, late }
    }

    /// Grants another lead from the next turn on.
    pub fn set_lead_max(&mut self, lead_max_ns: u64) {
        self.lead_max_ns = lead_max_ns.min(LEAD_MAX_NS);
    }

    /// Counts for this guest.
    pub fn count(&self, counter: TimerCounter, amount: u64) {
        self.block.add(counter as usize, amount);
    }

    /// What was counted.
    #[must_use]
    pub fn counted(&self, counter: TimerCounter) -> u64 {
        self.block.load(counter as usize)
    }

    /// Looks at what changed, tells what is due at `now_ns`, and says how long there is nothing more to do.
    pub fn turn(&mut self, now_ns: u64) -> Turn {
        self.count(TimerCounter::Turns, 1);
        self.keeper.awake();
        self.take_changes();
        let lead_ns = self.keeper.lead_ns().min(self.lead_max_ns);
        let raise = self.expire(now_ns, lead_ns);
        self.block.set(TimerCounter::Armed as usize, self.heap.len() as u64);
        Turn { raise, rest: self.rest(now_ns, lead_ns) }
    }

    fn rest(&mut self, now_ns: u64, lead_ns: u64) -> Rest {
        let (deadline_ns, wake_ns) = self
            .heap
            .first()
            .map_or((u64::MAX, u64::MAX), |(at_ns, slot)| (at_ns, at_ns.saturating_sub(self.lead(slot, lead_ns))));
        if wake_ns > now_ns && self.keeper.sleep_until(deadline_ns) {
            return Rest::Until(wake_ns);
        }
        self.count(TimerCounter::BudgetExhausted, 1);
        Rest::Again
    }

    fn take_changes(&mut self) {
        let mut changed = std::mem::take(&mut self.changed);
        let forged = self.keeper.take_changed(CHANGES_A_TURN, &mut changed);
        self.count(TimerCounter::ForgedSlots, forged);
        for slot in changed.drain(..) {
            match self.keeper.read(slot) {
                Reading::Set(setting) => self.apply(slot, setting),
                Reading::InHand => {}
                Reading::ForgedControl => self.refuse(slot, TimerCounter::ForgedControls),
                Reading::PeriodTooShort => self.refuse(slot, TimerCounter::RefusedPeriods),
            }
        }
        self.changed = changed;
    }

    fn apply(&mut self, slot: u32, setting: Setting) {
        let Setting { deadline_ns, period_ns, priority, generation, is_armed } = setting;
        if !is_armed {
            self.count(TimerCounter::Cancels, 1);
            self.heap.remove(slot);
            return;
        }
        self.count(TimerCounter::Arms, 1);
        if slot as usize >= self.armed.len() {
            self.armed.resize(slot as usize + 1, Armed::default());
        }
        self.armed[slot as usize] = Armed { period_ns, times: 0, generation, priority };
        self.heap.set(slot, deadline_ns);
    }

    fn refuse(&mut self, slot: u32, reason: TimerCounter) {
        self.count(reason, 1);
        self.heap.remove(slot);
    }

    /// How long before its deadline a timer is told.
    fn lead(&self, slot: u32, lead_ns: u64) -> u64 {
        match self.armed[slot as usize].period_ns {
            0 => lead_ns,
            period_ns => lead_ns.min(period_ns / 2),
        }
    }

    fn expire(&mut self, now_ns: u64, lead_ns: u64) -> u8 {
        let mut raise = 0;
        for _ in 0..EXPIRIES_A_TURN {
            let Some((deadline_ns, slot)) = self.heap.first() else { break };
            if deadline_ns.saturating_sub(self.lead(slot, lead_ns)) > now_ns {
                break;
            }
            let priority = self.expire_one(deadline_ns, slot, now_ns);
            raise |= priority.map_or(0, |priority| 1 << priority);
        }
        raise
    }

    /// Tells one expiry. Gives the priority to raise, if the guest may not know of it.
    fn expire_one(&mut self, deadline_ns: u64, slot: u32, now_ns: u64) -> Option<u8> {
        let armed = &mut self.armed[slot as usize];
        let late_ns = now_ns.saturating_sub(deadline_ns);
        let missed = late_ns.checked_div(armed.period_ns).unwrap_or(0);
        armed.times = (armed.times + missed % TIMES + 1) % TIMES;
        let Armed { period_ns, times, generation, priority } = *armed;
        let is_told = self.keeper.expire(slot, priority, Expiry { generation, times });
        // The next grid point after now; beyond the end of time there is none.
        let next_ns = period_ns.checked_mul(missed + 1).and_then(|ahead_ns| deadline_ns.checked_add(ahead_ns));
        match next_ns {
            Some(next_ns) if period_ns != 0 => self.heap.set(slot, next_ns),
            _ => self.heap.remove(slot),
        }
        self.count(TimerCounter::Expiries, 1);
        self.count(TimerCounter::Missed, missed);
        if deadline_ns > now_ns {
            self.count(TimerCounter::Early, 1);
        } else if let Some(late) = Recorder::new(self.late.values()) {
            late.record(late_ns, 1);
        }
        is_told.then_some(priority)
    }
}
