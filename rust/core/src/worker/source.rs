//! What a port's turn needs of whatever is behind the port, and what is told when its guest has been given frames.
//!
//! Rings of venet, virtqueues of either end and emulated cards are turned to in one manner: look at a batch, move it on,
//! give back what was moved, and at the end note how the queues are. Each kind says here how it does that; which kind a port
//! is of is asked once a turn, and what follows is compiled for it. TAP devices have no queue to look into, so their turn is
//! their own ([`super::forward`]).

use super::forward::{End, Turn, count_long, note, note_card, tally, tell_card};
use super::watchdog::Ringer;
use crate::port::PortCounter;
use crate::port::batch::Batch;
use crate::port::driver::DriverPort;
use crate::port::nic::NicPort;
use crate::port::venet::VenetPort;
use crate::port::virtqueues::VirtqueuePort;
use crate::shm::counters::Block;

/// What a look found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loaded {
    /// Frames that are in the batch now.
    pub frames: usize,
    /// Frames before them that are none, and were let go.
    pub runts: u32,
}

impl From<usize> for Loaded {
    fn from(frames: usize) -> Self {
        Self { frames, runts: 0 }
    }
}

/// Whatever frames are taken from, a batch at a time.
pub(super) trait Source {
    /// What is behind a port, if it is of this kind.
    fn of(end: &mut End) -> Option<&mut Self>;

    /// Looks at up to `wanted` frames; they stay where they are until [`Self::hand_back`].
    fn look<const COUNTS: bool>(&mut self, batch: &mut Batch, wanted: usize) -> Loaded;

    /// Whether a turn that found nothing has nothing else to tell, so that it ends here.
    fn is_quiet(&self) -> bool {
        false
    }

    /// Returns the oldest `count` loaded frames to who sent them. `true`: the sender was told, by a doorbell.
    fn hand_back(&mut self, count: u32, ringer: &Ringer) -> bool;

    /// Ends a turn: notes how the queues are, and tells the sender what it has not been told. `true`: something broke.
    fn settle<const COUNTS: bool>(&mut self, turn: Turn, block: &Block, ringer: &Ringer) -> bool;
}

impl Source for VenetPort {
    #[inline]
    fn of(end: &mut End) -> Option<&mut Self> {
        if let End::Venet(venet) = end { Some(venet) } else { None }
    }

    #[inline]
    fn look<const COUNTS: bool>(&mut self, batch: &mut Batch, wanted: usize) -> Loaded {
        self.load::<COUNTS>(batch, wanted).into()
    }

    /// Most turns of a port that is polled find nothing: whatever they take, a frame that comes meanwhile waits for.
    #[inline]
    fn is_quiet(&self) -> bool {
        self.tx_fault().is_none()
    }

    /// Its doorbell is rung once a turn.
    #[inline]
    fn hand_back(&mut self, count: u32, _ringer: &Ringer) -> bool {
        self.give_back(count);
        false
    }

    #[inline]
    fn settle<const COUNTS: bool>(&mut self, _turn: Turn, block: &Block, ringer: &Ringer) -> bool {
        let [(_, waiting), _] = self.occupancy();
        note::<COUNTS>(block, PortCounter::TransmitSlotsUsed, waiting.into());
        if let Some(counts) = self.take_counts() {
            count_long::<COUNTS>(block, counts);
        }
        if self.take_wants_call() {
            tally::<COUNTS>(block, PortCounter::CallsRung, 1);
            if let Err(fault) = self.call_tx::<COUNTS>(ringer) {
                self.break_tx(fault);
            }
        }
        self.tx_fault().is_some()
    }
}

impl Source for NicPort {
    #[inline]
    fn of(end: &mut End) -> Option<&mut Self> {
        if let End::Nic(nic) = end { Some(nic) } else { None }
    }

    #[inline]
    fn look<const COUNTS: bool>(&mut self, batch: &mut Batch, wanted: usize) -> Loaded {
        let (frames, runts) = self.load(batch, wanted);
        Loaded { frames, runts }
    }

    /// Its interrupt is raised once a turn.
    #[inline]
    fn hand_back(&mut self, count: u32, _ringer: &Ringer) -> bool {
        self.give_back(count);
        false
    }

    #[inline]
    fn settle<const COUNTS: bool>(&mut self, turn: Turn, block: &Block, ringer: &Ringer) -> bool {
        if turn.frames != 0 {
            note_card::<COUNTS>(block, self);
        }
        tell_card::<COUNTS>(block, self, ringer);
        self.has_news()
    }
}

/// Virtqueues, of either end, that frames were put into.
pub(super) trait Target {
    /// Frames and bytes since the last [`Self::show`].
    fn filled(&self) -> (u64, u64);

    /// Shows them. `true`: by a doorbell.
    fn show(&mut self, ringer: &Ringer) -> bool;

    /// Places for frames that are left.
    fn places(&self) -> u32;

    /// Something broke that nobody was told of.
    fn is_broken(&mut self) -> bool;
}

/// Virtqueues say the same of themselves whichever end of them is ours.
macro_rules! virtqueues {
    ($($port:ident in $end:ident),*) => {$(
        impl Source for $port {
            #[inline]
            fn of(end: &mut End) -> Option<&mut Self> {
                if let End::$end(port) = end { Some(port) } else { None }
            }

            #[inline]
            fn look<const COUNTS: bool>(&mut self, batch: &mut Batch, wanted: usize) -> Loaded {
                self.load(batch, wanted).into()
            }

            #[inline]
            fn hand_back(&mut self, count: u32, ringer: &Ringer) -> bool {
                self.give_back(count, ringer)
            }

            #[inline]
            fn settle<const COUNTS: bool>(&mut self, _turn: Turn, block: &Block, _ringer: &Ringer) -> bool {
                let [(_, waiting), _] = self.occupancy();
                note::<COUNTS>(block, PortCounter::TransmitSlotsUsed, waiting.into());
                self.has_news()
            }
        }

        impl Target for $port {
            fn filled(&self) -> (u64, u64) {
                self.given()
            }

            fn show(&mut self, ringer: &Ringer) -> bool {
                self.release(ringer)
            }

            fn places(&self) -> u32 {
                self.occupancy()[1].1
            }

            fn is_broken(&mut self) -> bool {
                self.has_news()
            }
        }
    )*};
}

virtqueues!(VirtqueuePort in Virtqueues, DriverPort in Driver);
