//! A card in use: one model, shared by the thread that answers its driver's traps and the worker that moves its frames.
//!
//! ```text
//!   fastcall thread   READ, WRITE ─▶ lock ─▶ Model ─▶ work or an interrupt for a port that sleeps? ring its bell
//!   worker            take, give  ─▶ lock ─▶ Model ─▶ settle: raise the line now · later, by the clock · not at all
//! ```
//!
//! The line is one of a level: it is raised when the model asserts it, and anew when its driver acknowledged some causes and
//! others are left. Only a worker raises it, because only a worker may ring. Throttling is by a timerfd that wakes the
//! worker, so that an interrupt that had to wait costs no polling.
//!
//! Who writes what: everything in here is the host's own. Counters are written under the lock.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::{Dma, Half, Missed, Model, Sent};
use crate::error::{Error, Fault, Result};
use crate::fastcall::{FastHandler, Refusal};
use crate::guest::clock::SECOND_NS;
use crate::net::counters::counters;
use crate::shm::counters::Block;
use crate::shm::doorbell::Doorbell;
use crate::signals::apic::{ACKNOWLEDGE, Apics, END};
use crate::signals::latency::WakeupTimes;

counters! {
    /// What is counted for every card.
    pub enum CardCounter {
        /// Registers read: traps.
        Reads = "reads",
        /// Registers written: traps.
        Writes = "writes",
        /// Interrupts acknowledged at the emulated controller: traps.
        Acknowledges = "acknowledges",
        /// Ends of interrupt there: traps.
        Ends = "ends",
        /// Calls that are no access to a register.
        Refused = "refused",
        /// Interrupts raised.
        Interrupts = "interrupts",
        /// Of those, how many had to wait for the throttle.
        Throttled = "throttled",
        /// Resets by the driver.
        Resets = "resets",
    }
}

/// Functions of the bus that a driver calls. The numbers are the wire's; those of the interrupt controller follow it.
pub mod function {
    /// Which model, and how it is configured.
    pub const INFO: u32 = 0;
    /// Reads a register: offset, bytes; answered with its value.
    pub const READ: u32 = 1;
    /// Writes a register: offset, bytes, value.
    pub const WRITE: u32 = 2;
}

/// What others need of a card beside its model.
struct State {
    model: Box<dyn Model>,
    memory: Box<dyn Dma>,
    /// Its port sleeps, and wants to be rung for work.
    is_parked: bool,
    /// The line was asserted when it was last looked at.
    was_asserted: bool,
    /// It is to be raised.
    is_due: bool,
    /// When it may be raised next.
    allowed_ns: u64,
    /// The clock will ring for it.
    is_waiting: bool,
    block: Block,
}

impl State {
    fn count(&self, counter: CardCounter) {
        self.block.add(counter as usize, 1);
    }

    /// Looks how the line is, after whatever may have changed it.
    fn watch_line(&mut self) {
        if self.model.take_acknowledged() {
            self.was_asserted = false;
        }
        let is_asserted = self.model.is_asserted();
        self.is_due = is_asserted && (self.is_due || !self.was_asserted);
        self.was_asserted = is_asserted;
    }
}

/// What a worker is to do about a card's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Nothing.
    Quiet,
    /// Raise it.
    Raise,
    /// Nothing yet: the clock will ring when it may be raised. Said once.
    Later,
}

/// One card.
pub struct Card {
    state: Mutex<State>,
    bell: Doorbell,
    clock: OwnedFd,
}

impl Card {
    /// A card of this model, in a guest's memory; it counts into `block`, which has [`CardCounter::COUNT`] values.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no descriptor is left.
    pub fn new(model: Box<dyn Model>, memory: Box<dyn Dma>, block: Block) -> Result<Arc<Self>> {
        let clock = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(|errno| Error::machine("create a clock", errno))?;
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                model,
                memory,
                is_parked: false,
                was_asserted: false,
                is_due: false,
                allowed_ns: 0,
                is_waiting: false,
                block,
            }),
            bell: Doorbell::create()?,
            clock,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- the thread that answers traps -------------------------------------------------------------------------------

    /// The driver reads a register.
    pub fn read(&self, offset: u32, bytes: u32) -> u32 {
        let mut state = self.state();
        state.count(CardCounter::Reads);
        let value = state.model.read(offset, bytes);
        self.wake(&mut state);
        value
    }

    /// The driver writes a register.
    pub fn write(&self, offset: u32, bytes: u32, value: u32) {
        let mut state = self.state();
        state.count(CardCounter::Writes);
        state.model.write(offset, bytes, value);
        let resets = state.model.resets();
        state.block.set(CardCounter::Resets as usize, resets);
        self.wake(&mut state);
    }

    /// Rings for the port if it sleeps and there is something for it to do.
    fn wake(&self, state: &mut State) {
        state.watch_line();
        let is_wanted = state.model.has_work() || (state.is_due && !state.is_waiting);
        if state.is_parked && is_wanted {
            state.is_parked = false;
            // Ours alone and never blocking; it cannot fail.
            let _ = self.bell.ring();
        }
    }

    // ---- the worker --------------------------------------------------------------------------------------------------

    /// Looks at up to `looks` of what the driver gave the card to send, and hands each frame that comes of it to `each`,
    /// which says whether it has room for more. Answers how many frames were too short to be any.
    pub(crate) fn take(&self, looks: u32, mut each: impl FnMut(&[u8]) -> bool) -> u32 {
        let mut state = self.state();
        let State { model, memory, .. } = &mut *state;
        let mut frame = Vec::new();
        let mut runts = 0;
        for _ in 0..looks {
            frame.clear();
            match model.transmit(&**memory, &mut frame) {
                Sent::Frame if !each(&frame) => break,
                Sent::Frame | Sent::Piece => {}
                Sent::Runt => runts += 1,
                Sent::Nothing => break,
            }
        }
        state.watch_line();
        runts
    }

    /// Gives the card a frame.
    ///
    /// # Errors
    ///
    /// Why it did not take it.
    pub(crate) fn give(&self, frame: &[u8]) -> std::result::Result<(), Missed> {
        let mut state = self.state();
        let State { model, memory, .. } = &mut *state;
        let outcome = model.receive(&**memory, frame);
        state.watch_line();
        outcome
    }

    /// Says what to do about the line, at the time `now_ns` of CLOCK_MONOTONIC.
    pub fn settle(&self, now_ns: u64) -> Settled {
        let mut state = self.state();
        if !state.is_due {
            state.is_waiting = false;
            return Settled::Quiet;
        }
        if now_ns >= state.allowed_ns {
            state.allowed_ns = now_ns.saturating_add(state.model.throttle_ns());
            state.is_due = false;
            state.count(CardCounter::Interrupts);
            if std::mem::take(&mut state.is_waiting) {
                state.count(CardCounter::Throttled);
            }
            return Settled::Raise;
        }
        if state.is_waiting {
            return Settled::Quiet;
        }
        // Without a clock the port is polled until then.
        state.is_waiting = self.set_clock(state.allowed_ns);
        Settled::Later
    }

    fn set_clock(&self, at_ns: u64) -> bool {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = Timespec { tv_sec: (at_ns / SECOND_NS) as i64, tv_nsec: (at_ns % SECOND_NS) as i64 };
        let once = Itimerspec { it_interval: zero, it_value: at };
        timerfd_settime(&self.clock, TimerfdTimerFlags::ABSTIME, &once).is_ok()
    }

    /// The port sleeps from now on. `false`: there is something to do.
    pub(crate) fn park(&self) -> bool {
        let mut state = self.state();
        state.is_parked = !state.model.has_work() && (!state.is_due || state.is_waiting);
        state.is_parked
    }

    /// The port is polled from now on.
    pub(crate) fn unpark(&self) {
        self.state().is_parked = false;
    }

    /// Whether the driver rang, and not the clock; forgets it.
    pub(crate) fn was_rung(&self) -> bool {
        self.bell.wait(Some(std::time::Duration::ZERO)).unwrap_or(false)
    }

    /// What is waited for while the port sleeps.
    pub(crate) fn wakers(&self) -> [BorrowedFd<'_>; 2] {
        [self.bell.as_fd(), self.clock.as_fd()]
    }

    /// The carrier came or went.
    pub(crate) fn set_link(&self, is_up: bool) {
        let mut state = self.state();
        state.model.set_link(is_up);
        state.watch_line();
    }

    /// As [`Model::occupancy`].
    pub(crate) fn occupancy(&self) -> [(u32, u32); 2] {
        self.state().model.occupancy()
    }

    /// As [`Model::fault`].
    #[must_use]
    pub fn fault(&self, half: Half) -> Option<Fault> {
        self.state().model.fault(half)
    }
}

impl fmt::Debug for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Card").finish_non_exhaustive()
    }
}

/// What a driver's fastcalls reach: registers, and the controller that the card's line leads to.
#[derive(Debug)]
pub struct Traps {
    card: Arc<Card>,
    apics: OnceLock<Arc<Apics>>,
}

impl Traps {
    /// The traps of one card.
    #[must_use]
    pub const fn new(card: Arc<Card>) -> Self {
        Self { card, apics: OnceLock::new() }
    }

    /// Emulates a controller of one vCPU, which rings `bell` and which the card's line is to lead to; the first counts.
    pub fn connect(&self, bell: Doorbell) -> Arc<Apics> {
        self.apics.get_or_init(|| Arc::new(Apics::new([bell], WakeupTimes::default()))).clone()
    }

    /// The card behind them.
    #[must_use]
    pub const fn card(&self) -> &Arc<Card> {
        &self.card
    }

    fn control(&self, function: u32, data: &[u8], answer: &mut [u8]) -> std::result::Result<usize, Refusal> {
        let counter = if function == END { CardCounter::Ends } else { CardCounter::Acknowledges };
        self.card.state().count(counter);
        match self.apics.get() {
            Some(apics) => apics.call(function, data, answer),
            None => Err(Refusal::new(Errno::INVAL, "this card's line leads to no interrupt controller yet")),
        }
    }
}

fn words<const N: usize>(data: &[u8]) -> Option<[u32; N]> {
    let (words, rest) = data.as_chunks::<4>();
    let words = <&[[u8; 4]; N]>::try_from(words).ok().filter(|_| rest.is_empty())?;
    Some(words.map(u32::from_le_bytes))
}

impl FastHandler for Traps {
    fn call(&self, function: u32, data: &[u8], answer: &mut [u8]) -> std::result::Result<usize, Refusal> {
        match function {
            function::READ => {
                if let (Some([offset, bytes]), Some(room)) = (words(data), answer.first_chunk_mut::<4>()) {
                    *room = self.card.read(offset, bytes).to_le_bytes();
                    return Ok(room.len());
                }
            }
            function::WRITE => {
                if let Some([offset, bytes, value]) = words(data) {
                    self.card.write(offset, bytes, value);
                    return Ok(0);
                }
            }
            ACKNOWLEDGE | END => return self.control(function, data, answer),
            _ => {}
        }
        self.card.state().count(CardCounter::Refused);
        Err(Refusal::new(
            Errno::INVAL,
            "a card's registers are read by offset and bytes, and written by those and a value",
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::RamDma;
    use super::super::e1000::{self, E1000, cause, register};
    use super::super::rtl8139::{self, Rtl8139};
    use super::*;
    use crate::net::frame::MacAddress;
    use crate::shm::counters::CounterFile;
    use crate::shm::region::Ram;

    const UNIT_NS: u64 = 256;

    fn card_of(model: Box<dyn Model>) -> (Arc<Card>, Arc<CounterFile>) {
        let file = Arc::new(CounterFile::create(None, 1 << 16).unwrap());
        let block = file.allocate("nic", "", CardCounter::COUNT).unwrap();
        let ram = Ram::create("card", 1 << 16).unwrap();
        (Card::new(model, Box::new(RamDma::new(ram)), block).unwrap(), file)
    }

    fn e1000() -> Arc<Card> {
        card_of(Box::new(E1000::new(MacAddress::new([2, 0, 0, 0, 0, 1])))).0
    }

    fn raise(card: &Card, causes: u32) {
        card.write(register::ICS, 4, causes);
    }

    #[test]
    fn cause_that_is_not_wanted_raises_nothing_until_it_is() {
        let card = e1000();
        raise(&card, cause::RXT0);

        let before = card.settle(0);
        card.write(register::IMS, 4, cause::RXT0);

        assert_eq!((Settled::Quiet, Settled::Raise), (before, card.settle(1)));
    }

    #[test]
    fn asserted_line_is_raised_once_until_its_causes_are_read() {
        let card = e1000();
        card.write(register::IMS, 4, cause::RXT0 | cause::TXDW);
        raise(&card, cause::RXT0);
        let first = card.settle(0);
        raise(&card, cause::TXDW);
        let second = card.settle(0);

        let causes = card.read(register::ICR, 4);
        raise(&card, cause::TXDW);

        assert_eq!((Settled::Raise, Settled::Quiet, cause::RXT0 | cause::TXDW), (first, second, causes));
        assert_eq!(Settled::Raise, card.settle(0));
    }

    #[test]
    fn line_with_causes_left_after_an_acknowledgement_is_raised_again() {
        let card = e1000();
        card.write(register::IMS, 4, cause::RXT0 | cause::TXDW);
        raise(&card, cause::RXT0 | cause::TXDW);
        let first = card.settle(0);

        card.write(register::ICR, 4, cause::RXT0);

        assert_eq!((Settled::Raise, Settled::Raise), (first, card.settle(0)));
    }

    #[test]
    fn interrupt_withdrawn_before_it_was_raised_is_not() {
        let card = e1000();
        card.write(register::IMS, 4, cause::RXT0);
        raise(&card, cause::RXT0);

        card.write(register::IMC, 4, cause::RXT0);

        assert_eq!(Settled::Quiet, card.settle(0));
    }

    #[test]
    fn throttled_interrupt_waits_for_its_time_and_the_clock_rings_then() {
        let card = e1000();
        card.write(register::ITR, 4, 1000);
        card.write(register::IMS, 4, cause::RXT0);
        raise(&card, cause::RXT0);
        let first = card.settle(5);
        let _ = card.read(register::ICR, 4);
        raise(&card, cause::RXT0);

        let early = card.settle(5 + 1000 * UNIT_NS - 1);
        let [_, clock] = card.wakers();
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(clock, rustix::event::PollFlags::IN)];
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        let is_ringing = rustix::event::poll(&mut fds, Some(&limit)).unwrap();

        assert_eq!((Settled::Raise, Settled::Later, 1), (first, early, is_ringing));
        assert_eq!(Settled::Raise, card.settle(5 + 1000 * UNIT_NS));
    }

    #[test]
    fn port_that_sleeps_is_rung_once_for_work() {
        let card = e1000();
        let slept = card.park();

        card.write(register::TCTL, 4, e1000::TCTL_EN);
        let idle = card.was_rung();
        for (offset, value) in [(register::TDBAL, 0x2000), (register::TDLEN, 128), (register::TDT, 1)] {
            card.write(offset, 4, value);
        }

        assert_eq!((true, false), (slept, idle));
        assert_eq!((true, false), (card.was_rung(), card.park()));
    }

    #[test]
    fn traps_that_are_no_register_access_are_refused_and_counted() {
        let (card, file) = card_of(Box::new(Rtl8139::new(MacAddress::new([2, 0, 0, 0, 0, 1]))));
        let traps = Traps::new(card);
        let mut answer = [0; 16];

        let outcomes = [
            traps.call(function::READ, &[0; 7], &mut answer).is_err(),
            traps.call(function::WRITE, &[0; 8], &mut answer).is_err(),
            traps.call(99, &[], &mut answer).is_err(),
            traps.call(ACKNOWLEDGE, &0u32.to_le_bytes(), &mut answer).is_err(),
        ];

        let counted = file.reader().blocks()[0].values.clone();
        assert_eq!([true; 4], outcomes);
        assert_eq!((3, 1), (counted[CardCounter::Refused as usize], counted[CardCounter::Acknowledges as usize]));
    }

    /// Accesses of a driver: mostly to registers that do something, with values that mean something or not.
    fn access() -> impl Strategy<Value = (bool, u32, u32, u32)> {
        let known = prop_oneof![
            Just(register::RCTL),
            Just(register::TCTL),
            Just(register::TDT),
            Just(register::TDLEN),
            Just(register::RDT),
            Just(register::RDLEN),
            Just(register::TDBAL),
            Just(register::RDBAL),
            Just(register::TDH),
            Just(register::RDH),
            Just(register::IMS),
            Just(register::ICS),
            Just(register::ITR),
            Just(register::CTRL),
            Just(rtl8139::register::CR),
            Just(rtl8139::register::RCR),
            Just(rtl8139::register::TSD0),
            Just(rtl8139::register::TSAD0),
            Just(rtl8139::register::RBSTART),
            Just(rtl8139::register::CAPR),
            Just(rtl8139::register::IMR),
            Just(rtl8139::register::ISR),
        ];
        let offset = prop_oneof![8 => known, 1 => 0u32..0x6000, 1 => any::<u32>()];
        let value = prop_oneof![0u32..512, 0u32..0x2_0000, any::<u32>(), Just(0x0f00), Just(0x2000)];
        (any::<bool>(), offset, prop_oneof![6 => Just(4u32), 1 => Just(2), 1 => Just(1), 1 => any::<u32>()], value)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever a driver writes to registers and memory, calls end and nothing panics; a turn takes what it was told at
        /// most.
        #[test]
        fn prop_hostile_driver_gets_bounded_work_and_no_panic(
            is_intel in any::<bool>(),
            noise in proptest::collection::vec(any::<u8>(), 4096),
            steps in proptest::collection::vec((access(), 0u32..8, 14usize..4000), 1..120),
        ) {
            let mac = MacAddress::new([2, 0, 0, 0, 0, 1]);
            let model: Box<dyn Model> = if is_intel { Box::new(E1000::new(mac)) } else { Box::new(Rtl8139::new(mac)) };
            let ram = Ram::create("noise", 1 << 16).unwrap();
            let memory = RamDma::new(ram);
            for page in 1..16u64 {
                memory.write(page * 4096, &noise).unwrap();
            }
            let file = CounterFile::create(None, 1 << 16).unwrap();
            let block = file.allocate("nic", "", CardCounter::COUNT).unwrap();
            let card = Card::new(model, Box::new(memory), block).unwrap();
            for (number, ((is_read, offset, bytes, value), what, length)) in steps.into_iter().enumerate() {
                if is_read { card.read(offset, bytes); } else { card.write(offset, bytes, value); }
                let mut taken = 0;
                match what {
                    0 => { card.take(16, |frame| { taken += 1; assert!(frame.len() <= super::super::FRAME_BYTES_MAX); true }); }
                    1 => { let _ = card.give(&vec![0xff; length]); }
                    2 => { let _ = card.settle(number as u64 * 1000); }
                    3 => { let _ = card.park(); card.occupancy(); }
                    _ => {}
                }
                prop_assert!(taken <= 16);
            }
        }
    }
}
