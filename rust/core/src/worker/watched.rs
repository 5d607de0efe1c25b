//! Forwarding while somebody looks: the passes of [`super::forward`], with a look at each frame in between.
//!
//! Decisions, copies and counts are those of the plain way, made by the same functions. What is added: the reason of each
//! drop is kept beside the frame, captures are shown what came out of a port and what went into others, and a frame that
//! is traced is moved on alone, so that the time between two stamps is its own.

use super::forward::{End, Plane, port_at};
use crate::net::frame::FrameStart;
use crate::net::mac_table::PortSlot;
use crate::net::switch::Verdict;
use crate::port::batch::{BATCH, Piece};
use crate::port::{PortCounter, PortId, Refusal};
use crate::watch::bpf::Packet;
use crate::watch::{Followed, Stage, Watches, Way, moment_ns};

impl<const COUNTS: bool> Plane<COUNTS> {
    /// [`Self::move_on`] for a worker one of whose ports is watched.
    #[cold]
    #[inline(never)]
    pub(super) fn move_on_watched(&mut self, slot: PortSlot, loaded: usize, budget: u32) -> (usize, u32) {
        let taken_ns = if self.watches.follows(slot) { Some(moment_ns()) } else { None };
        let is_down = port_at(&mut self.ports, slot).is_some_and(|port| !port.is_up);
        if is_down {
            for index in 0..loaded {
                self.show_dropped(slot, index, PortCounter::TransmitDropLinkDown.reason(), taken_ns);
            }
            if let Some(port) = port_at(&mut self.ports, slot) {
                port.count::<COUNTS>(PortCounter::TransmitDropLinkDown, loaded as u64);
            }
            return (loaded, loaded as u32);
        }
        self.decide(slot, loaded);
        let decided_ns = taken_ns.map(|_| moment_ns());
        let mut done = 0;
        let mut cost = 0;
        while done < loaded && cost < budget {
            let followed = taken_ns.and_then(|taken_ns| self.follow(slot, done, taken_ns, decided_ns));
            if self.floods(done) {
                self.show_sent(slot, done);
                self.watches.flooded = followed;
                cost += self.flood(slot, done);
                self.watches.flooded = None;
                done += 1;
                continue;
            }
            let wanted = match taken_ns {
                Some(_) => done + 1,
                None => (done + 1..loaded).find(|&index| self.floods(index)).unwrap_or(loaded),
            };
            self.batch.reasons[done..wanted].fill(0);
            // What is followed goes on: its way is not told twice.
            let can_wait = self.can_wait;
            self.can_wait &= followed.is_none();
            let (end, more) = self.claim_any(slot, done, wanted);
            self.can_wait = can_wait;
            cost += more;
            let claimed_ns = followed.map(|_| moment_ns());
            self.copy(done, end);
            if end != done {
                self.show_stretch(slot, done, end);
            }
            if let (Some(followed), Some(claimed_ns)) = (followed, claimed_ns) {
                self.went(followed, slot, done, claimed_ns);
            }
            cost += (end - done) as u32;
            done = end;
            if end != wanted {
                break;
            }
        }
        (done, cost)
    }

    /// Shows frames that were moved on or dropped to whoever looks at their sender and at their receivers.
    fn show_stretch(&mut self, slot: PortSlot, first: usize, end: usize) {
        let Self { watches, batch, .. } = self;
        let is_plain = |index: usize| match batch.verdicts[index] {
            Verdict::To(to) => to != slot && batch.pieces[index].length != 0,
            _ => false,
        };
        // A frame that ended at its own port has a reason; without any, one look at where they go is enough.
        let is_smooth = batch.reasons[first..end].iter().fold(0, |any, &reason| any | reason) == 0;
        if !(if is_smooth { is_plain(first) } else { (first..end).all(is_plain) }) {
            (first..end).for_each(|index| self.show(slot, index));
            return;
        }
        watches.see_all(slot, batch, (first, end), Way::Transmit, &[0; BATCH]);
        if !watches.is_on_beside(slot) {
            return;
        }
        let mut start = first;
        while let Some(&verdict) = batch.verdicts[..end].get(start) {
            let same = batch.verdicts[start..end].iter().take_while(|&&other| other == verdict).count();
            if let Verdict::To(to) = verdict {
                watches.see_all(to, batch, (start, start + same), Way::Receive, &batch.reasons);
            }
            start += same;
        }
    }

    /// Shows a frame that was moved on, or dropped, to whoever looks at its sender and at its receiver.
    fn show(&mut self, slot: PortSlot, index: usize) {
        let Self { watches, batch, .. } = self;
        let piece = batch.pieces[index];
        let reason = batch.reasons[index];
        let to = match batch.verdicts[index] {
            Verdict::To(to) if piece.length != 0 => to,
            _ => {
                self.show_dropped(slot, index, reason, None);
                return;
            }
        };
        // SAFETY: loaded in this turn, its slot not returned.
        let packet = unsafe { Packet::new(&batch.starts[index], piece.source, piece.length) };
        watches.see(slot, &packet, Way::Transmit, 0);
        watches.see(to, &packet, Way::Receive, reason);
    }

    /// Shows a frame that will be flooded to whoever looks at its sender.
    fn show_sent(&mut self, slot: PortSlot, index: usize) {
        let Self { watches, batch, .. } = self;
        let piece = batch.pieces[index];
        // SAFETY: loaded in this turn, its slot not returned.
        let packet = unsafe { Packet::new(&batch.starts[index], piece.source, piece.length) };
        watches.see(slot, &packet, Way::Transmit, 0);
    }

    /// Shows a frame that went no further than its own port.
    fn show_dropped(&mut self, slot: PortSlot, index: usize, reason: u8, taken_ns: Option<u64>) {
        if !self.watches.is_watched(slot) {
            return;
        }
        let Some((start, source, length)) = self.whole(slot, index) else { return };
        // SAFETY: checked just now; its slot is not returned in this turn.
        let packet = unsafe { Packet::new(&start, source, length) };
        self.watches.see(slot, &packet, Way::Transmit, reason);
        let Some(taken_ns) = taken_ns else { return };
        let own = self.id_of(slot);
        if let Some(followed) = self.watches.follow(slot, &packet, taken_ns) {
            self.watches.stage(followed, Stage::Dropped, own, reason);
        }
    }

    /// A loaded frame, also one whose length was struck out because it is too long.
    fn whole(&mut self, slot: PortSlot, index: usize) -> Option<(FrameStart, *const u8, u32)> {
        let mut piece = self.batch.pieces[index];
        if piece.length == 0 {
            (piece.source, piece.length) = match &port_at(&mut self.ports, slot)?.end {
                End::Venet(venet) => venet.loaded(index as u32)?,
                End::Virtqueues(vhost) => vhost.loaded(index as u32)?,
                End::Nic(nic) => nic.loaded(index as u32)?,
                End::Driver(driver) => driver.loaded(index as u32)?,
                End::Tap(_) => return None,
            };
        }
        let mut start = FrameStart::default();
        // SAFETY: loaded in this turn, or checked just now, and not shorter than a header.
        unsafe { start.fetch(piece.source, piece.length) };
        Some((start, piece.source, piece.length))
    }

    /// Shows a frame of a device that was not even looked up.
    #[cold]
    pub(super) fn show_refused(&mut self, slot: PortSlot, length: u32, reason: PortCounter) {
        let Self { ports, watches, .. } = self;
        let Some(End::Tap(tap)) = port_at(ports, slot).map(|port| &port.end) else { return };
        let frame = tap.frame(length);
        let start = FrameStart::of(frame);
        // SAFETY: the device's private buffer, which nobody else writes.
        let packet = unsafe { Packet::new(&start, frame.as_ptr(), frame.len() as u32) };
        watches.see(slot, &packet, Way::Transmit, reason.reason());
    }

    fn id_of(&mut self, slot: PortSlot) -> u32 {
        port_at(&mut self.ports, slot).map_or(0, |port| port.id.0 as u32)
    }

    /// Begins to follow a frame, if a trace of its port wants it.
    fn follow(&mut self, slot: PortSlot, index: usize, taken_ns: u64, decided_ns: Option<u64>) -> Option<Followed> {
        let (start, source, length) = self.whole(slot, index)?;
        // SAFETY: loaded in this turn, its slot not returned.
        let packet = unsafe { Packet::new(&start, source, length) };
        let followed = self.watches.follow(slot, &packet, taken_ns)?;
        let ports = match self.batch.verdicts[index] {
            _ if self.batch.pieces[index].length == 0 => return Some(followed),
            Verdict::To(_) => 1,
            Verdict::Flood => {
                let switch = port_at(&mut self.ports, slot).and_then(|port| port.switch);
                let switch = switch.and_then(|switch| self.switch(switch));
                switch.map_or(0, |switch| switch.members().len().saturating_sub(1))
            }
            Verdict::SamePort | Verdict::ForgedSource => 0,
        };
        self.watches.stage_at(followed, Stage::Decided, ports as u32, 0, decided_ns.unwrap_or(taken_ns));
        Some(followed)
    }

    /// Notes how a followed frame that was not flooded went on.
    fn went(&mut self, followed: Followed, slot: PortSlot, index: usize, claimed_ns: u64) {
        let piece = self.batch.pieces[index];
        match (self.batch.verdicts[index], self.batch.reasons[index]) {
            (Verdict::To(to), 0) => {
                let port = PortId(self.id_of(to).into());
                note_given(&mut self.watches, followed, to, port, piece.target.is_null(), claimed_ns);
            }
            (Verdict::To(to), reason) if piece.length != 0 => {
                let port = self.id_of(to);
                self.watches.stage(followed, Stage::Dropped, port, reason);
            }
            (_, reason) => {
                let port = self.id_of(slot);
                self.watches.stage(followed, Stage::Dropped, port, reason);
            }
        }
    }
}

/// Shows a copy of a flooded frame to whoever looks at its receiver, and to a trace that follows it.
#[cold]
pub(super) fn show_flooded(
    watches: &mut Watches,
    to: PortSlot,
    port: PortId,
    (start, piece): (&FrameStart, &Piece),
    outcome: Result<*mut u8, Refusal>,
) {
    let reason = outcome.err().map_or(0, |refusal| refusal.counter().reason());
    // SAFETY: loaded in this turn, its slot not returned.
    let packet = unsafe { Packet::new(start, piece.source, piece.length) };
    watches.see(to, &packet, Way::Receive, reason);
    let Some(followed) = watches.flooded else { return };
    match outcome {
        Ok(target) => note_given(watches, followed, to, port, target.is_null(), moment_ns()),
        Err(_) => watches.stage(followed, Stage::Dropped, port.0 as u32, reason),
    }
}

fn note_given(watches: &mut Watches, followed: Followed, to: PortSlot, port: PortId, is_sent: bool, claimed_ns: u64) {
    let id = port.0 as u32;
    if is_sent {
        watches.stage(followed, Stage::Sent, id, 0);
        return;
    }
    watches.stage_at(followed, Stage::Claimed, id, 0, claimed_ns);
    watches.stage(followed, Stage::Copied, id, 0);
    watches.await_news(followed, to, port);
}
