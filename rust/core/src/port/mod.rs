//! What a switch is joined to: a guest's rings, a virtual machine's, a kernel TAP device, or itself.
//!
//! ```text
//!                    ┌ Venet: two rings in guest RAM         ┐
//!                    │ Virtqueues: a front end's, a guest's  │
//!   worker ─── Port ─┤ Tap: a device of the kernel           ├── each: take frames from it · give frames to it · park it
//!                    │ Driver: queues in front of a back end │
//!                    └ Venet looped: its own sink            ┘
//! ```
//!
//! A port belongs to one worker thread. Everything it counts it counts in its own block, seen from the device: *transmit*
//! is what came out of the guest, *receive* what went into it. What a peer breaks ends that queue and is reported
//! once; the port stays attached so that its owner can look at it and remove it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::Fault;
use crate::net::counters::counters;
use crate::net::offload::{Features, Unfit};

pub(crate) mod batch;
pub(crate) mod driver;
pub mod latency;
pub mod nic;
mod spread;
pub mod tap;
pub mod venet;
pub mod virtqueues;

/// A port's name in the fabric: never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u64);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A guest's rings.
    Venet,
    /// A guest's rings, joined to themselves.
    Loopback,
    /// An emulated card, which its guest reaches by registers.
    Nic,
    /// A TAP device of the kernel.
    Tap,
    /// Virtqueues of a virtual machine or a DPDK application, set up over a socket.
    VhostUser,
    /// Virtqueues of a guest on a bus.
    VirtioNet,
    /// Virtqueues of ours that somebody else's device serves, set up over a socket.
    FrontEnd,
}

impl PortKind {
    /// Its label in counters and listings.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Venet => "venet",
            Self::Loopback => "loopback",
            Self::Nic => "nic",
            Self::Tap => "tap",
            Self::VhostUser => "vhost-user",
            Self::VirtioNet => "virtio-net",
            Self::FrontEnd => "front-end",
        }
    }
}

counters! {
    /// What is counted for every port, seen from the device: receive = into the guest, transmit = out of it.
    pub enum PortCounter {
        /// Frames given to the guest.
        ReceiveFrames = "receive_frames",
        /// Their bytes.
        ReceiveBytes = "receive_bytes",
        /// Frames taken from the guest.
        TransmitFrames = "transmit_frames",
        /// Their bytes.
        TransmitBytes = "transmit_bytes",
        /// Not given: the guest had posted no buffer, or the device's queue was full.
        ReceiveDropNoRoom = "receive_drop_no_room",
        /// Not given: the posted buffer is smaller than the frame.
        ReceiveDropBufferTooSmall = "receive_drop_buffer_too_small",
        /// Not given: the frame is longer than the port's MTU allows.
        ReceiveDropOversize = "receive_drop_oversize",
        /// Not given: the port's link is down.
        ReceiveDropLinkDown = "receive_drop_link_down",
        /// Not given: the queue is quarantined or its device gone.
        ReceiveDropQuarantined = "receive_drop_quarantined",
        /// Not given: the kernel refused the frame.
        ReceiveDropRefused = "receive_drop_refused",
        /// Not given: the card's receiver is switched off.
        ReceiveDropDisabled = "receive_drop_disabled",
        /// Not given: by the card's filters it is for another station.
        ReceiveDropFiltered = "receive_drop_filtered",
        /// Not taken on: the frame is longer than the port's MTU allows.
        TransmitDropOversize = "transmit_drop_oversize",
        /// Not taken on: the port's link is down.
        TransmitDropLinkDown = "transmit_drop_link_down",
        /// Not taken on: the station it is for is on this very port.
        TransmitDropSamePort = "transmit_drop_same_port",
        /// Not taken on: its source is another port's own address.
        TransmitDropForgedSource = "transmit_drop_forged_source",
        /// Not taken on: shorter than an Ethernet header.
        TransmitDropRunt = "transmit_drop_runt",
        /// Not taken on: it asks for an offload by a flag that nobody offered.
        TransmitDropOffloadFlag = "transmit_drop_offload_flag",
        /// As above: for a kind of segmentation that there is not.
        TransmitDropOffloadKind = "transmit_drop_offload_kind",
        /// As above: for a checksum at a place where none can be.
        TransmitDropOffloadChecksum = "transmit_drop_offload_checksum",
        /// As above: for segments of no bytes, or too many of them.
        TransmitDropOffloadSize = "transmit_drop_offload_size",
        /// As above: its headers are not of the kind it says, or disagree with its length.
        TransmitDropOffloadHeaders = "transmit_drop_offload_headers",
        /// Frames taken with a checksum to complete or segments to cut.
        TransmitOffloads = "transmit_offloads",
        /// Frames given with such a request, for the guest to do.
        ReceiveOffloads = "receive_offloads",
        /// Frames that were cut into segments for this port, whose guest cannot.
        SegmentedFrames = "segmented_frames",
        /// Checksums that were completed for this port, whose guest cannot; those of segments not counted.
        CompletedChecksums = "completed_checksums",
        /// Frames taken from the guest in several pieces.
        GatheredFrames = "gathered_frames",
        /// Frames given to the guest in several buffers.
        MergedFrames = "merged_frames",
        /// Those buffers.
        MergedBuffers = "merged_buffers",
        /// Times whoever sent to the guest was held up, because it had no room.
        ReceiveHolds = "receive_holds",
        /// How long that was.
        ReceiveHeldNanoseconds = "receive_held_nanoseconds",
        /// Doorbells heard from the guest.
        Kicks = "kicks",
        /// Doorbells rung for the guest.
        CallsRung = "calls_rung",
        /// Doorbells spared because the guest was awake.
        CallsSuppressed = "calls_suppressed",
        /// Times the port fell asleep.
        Parks = "parks",
        /// Times it woke.
        Wakeups = "wakeups",
        /// Turns that ended with more to do.
        BudgetExhausted = "budget_exhausted",
        /// A fault of this reason ended a queue; the rest of the list follows [`Fault::REASONS`].
        FaultTailOutOfRange = "fault_tail_out_of_range",
        /// As above.
        FaultHeadOutOfRange = "fault_head_out_of_range",
        /// As above.
        FaultOutsideRegion = "fault_outside_region",
        /// As above.
        FaultOverlapsControl = "fault_overlaps_control",
        /// As above.
        FaultZeroLength = "fault_zero_length",
        /// As above.
        FaultTooLong = "fault_too_long",
        /// As above.
        FaultTooShort = "fault_too_short",
        /// As above.
        FaultUnknownFlags = "fault_unknown_flags",
        /// As above.
        FaultForeignCompletion = "fault_foreign_completion",
        /// As above.
        FaultBadHeader = "fault_bad_header",
        /// As above.
        FaultBadSize = "fault_bad_size",
        /// As above.
        FaultNotSealed = "fault_not_sealed",
        /// As above.
        FaultNotMemfd = "fault_not_memfd",
        /// As above.
        FaultDoorbellBlocked = "fault_doorbell_blocked",
        /// As above.
        FaultIndexOutOfRange = "fault_index_out_of_range",
        /// As above.
        FaultOutsideMemory = "fault_outside_memory",
        /// As above.
        FaultChainTooLong = "fault_chain_too_long",
        /// As above.
        FaultWrongDirection = "fault_wrong_direction",
        /// As above.
        FaultBadIndirect = "fault_bad_indirect",
        /// As above.
        FaultMemoryGone = "fault_memory_gone",
        /// As above.
        FaultChainUnfinished = "fault_chain_unfinished",
        /// Slots of the ring of frames from the guest.
        TransmitSlots = "transmit_slots",
        /// Of those, how many hold frames, when a worker last looked.
        TransmitSlotsUsed = "transmit_slots_used",
        /// Slots of the ring of buffers for the guest.
        ReceiveSlots = "receive_slots",
        /// Of those, how many hold buffers, when a worker last looked.
        ReceiveSlotsUsed = "receive_slots_used",
    }
}

impl PortCounter {
    /// As records of captures have it: 1 and up, 0 is no reason.
    pub(crate) const fn reason(self) -> u8 {
        self as u8 + 1
    }

    /// Why a request is not done.
    #[must_use]
    pub const fn of_unfit(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Flag => Self::TransmitDropOffloadFlag,
            Unfit::Kind => Self::TransmitDropOffloadKind,
            Unfit::Checksum => Self::TransmitDropOffloadChecksum,
            Unfit::Size => Self::TransmitDropOffloadSize,
            Unfit::Headers => Self::TransmitDropOffloadHeaders,
        }
    }

    /// The position at which a fault is counted.
    #[must_use]
    pub const fn of_fault(fault: &Fault) -> usize {
        Self::FaultTailOutOfRange as usize + fault.reason_index()
    }
}

/// Why a port did not take a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No posted buffer, or the device's queue is full.
    NoRoom,
    /// The posted buffer is smaller than the frame. It stays posted.
    BufferTooSmall,
    /// Longer than the MTU allows.
    Oversize,
    /// The link is down.
    LinkDown,
    /// The queue broke, now or earlier.
    Quarantined,
    /// The kernel refused this frame.
    Refused,
    /// The card's receiver is switched off.
    Disabled,
    /// By the card's filters it is for another station.
    Filtered,
}

impl Refusal {
    /// The counter of this reason.
    #[must_use]
    pub const fn counter(self) -> PortCounter {
        match self {
            Self::NoRoom => PortCounter::ReceiveDropNoRoom,
            Self::BufferTooSmall => PortCounter::ReceiveDropBufferTooSmall,
            Self::Oversize => PortCounter::ReceiveDropOversize,
            Self::LinkDown => PortCounter::ReceiveDropLinkDown,
            Self::Quarantined => PortCounter::ReceiveDropQuarantined,
            Self::Refused => PortCounter::ReceiveDropRefused,
            Self::Disabled => PortCounter::ReceiveDropDisabled,
            Self::Filtered => PortCounter::ReceiveDropFiltered,
        }
    }
}

/// The part of a port that can break by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortPart {
    /// What comes out of the guest.
    Transmit,
    /// What goes into it.
    Receive,
    /// The device behind it.
    Device,
    /// The messages by which it is set up.
    Control,
}

impl PortPart {
    /// Its label in events and listings.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Transmit => "transmit",
            Self::Receive => "receive",
            Self::Device => "device",
            Self::Control => "control",
        }
    }
}

/// Something ended: what the owner of the port has to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortEvent {
    /// Which port.
    pub port: PortId,
    /// Its name.
    pub name: Arc<str>,
    /// What of it ended.
    pub part: PortPart,
    /// The reason, as it is counted: one of [`Fault::REASONS`], or `device_gone`.
    pub reason: &'static str,
    /// The whole story, with values.
    pub text: String,
}

/// What others may know of a port while a worker runs it.
#[derive(Debug, Default)]
pub struct PortStatus {
    is_up: AtomicU32,
    /// Reasons plus one, 0 = works.
    transmit_fault: AtomicU32,
    receive_fault: AtomicU32,
    is_gone: AtomicU32,
    is_served: AtomicU32,
    offloads: AtomicU32,
}

impl PortStatus {
    /// The link is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed) != 0
    }

    /// The device behind the port has ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed) != 0
    }

    /// Why a part of the port is quarantined, if it is.
    #[must_use]
    pub fn fault(&self, part: PortPart) -> Option<&'static str> {
        let word = match part {
            PortPart::Transmit => &self.transmit_fault,
            PortPart::Receive => &self.receive_fault,
            PortPart::Device => return self.is_gone().then_some("device_gone"),
            PortPart::Control => return None,
        };
        let reason = word.load(Ordering::Relaxed).checked_sub(1)?;
        Fault::REASONS.get(reason as usize).copied()
    }

    pub(crate) fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up.into(), Ordering::Relaxed);
    }

    pub(crate) fn set_gone(&self) {
        self.is_gone.store(1, Ordering::Relaxed);
    }

    pub(crate) fn set_fault(&self, part: PortPart, fault: &Fault) {
        let reason = fault.reason_index() as u32 + 1;
        match part {
            PortPart::Transmit => self.transmit_fault.store(reason, Ordering::Relaxed),
            PortPart::Receive => self.receive_fault.store(reason, Ordering::Relaxed),
            PortPart::Device => self.is_gone.store(1, Ordering::Relaxed),
            PortPart::Control => {}
        }
    }

    /// The rings were set up anew: what was wrong with the old ones is over.
    pub(crate) fn clear_faults(&self) {
        self.transmit_fault.store(0, Ordering::Relaxed);
        self.receive_fault.store(0, Ordering::Relaxed);
    }

    /// Somebody has set rings up; only for ports that wait for such.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.is_served.load(Ordering::Relaxed) != 0
    }

    /// What its guest can be left with.
    #[must_use]
    pub fn offloads(&self) -> Features {
        Features::from_bits(self.offloads.load(Ordering::Relaxed) as u8)
    }

    pub(crate) fn set_offloads(&self, features: Features) {
        self.offloads.store(features.bits().into(), Ordering::Relaxed);
    }

    pub(crate) fn set_served(&self, is_served: bool) {
        self.is_served.store(is_served.into(), Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_a_fault_has_its_counter() {
        let first = PortCounter::FaultTailOutOfRange as usize;
        for (index, reason) in Fault::REASONS.iter().enumerate() {
            assert_eq!(format!("fault_{reason}"), PortCounter::NAMES[first + index]);
        }
        assert_eq!(PortCounter::TransmitSlots as usize, first + Fault::REASONS.len());
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = PortCounter::NAMES.into_iter().collect();

        assert_eq!(PortCounter::COUNT, names.len());
    }
}
