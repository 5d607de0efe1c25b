//! Forwarding: a port's turn, from its ring to other ports' buffers, in passes over a batch.
//!
//! ```text
//!   1 load     descriptors copied and checked, first payload lines asked for          (port::venet)
//!   2 decide   first lines copied once; source learned, destination found             (net::switch)
//!   3 claim    receivers' posted buffers checked, completed, asked for                 (port::venet)
//!   4 copy     first line from the private copy, the rest straight from buffer to buffer
//!   5 return   senders get their slots back at once, receivers theirs at the end of the round
//! ```
//!
//! Passes 3 and 4 run over stretches without a flooded frame, so that frames between two ports never overtake each
//! other. A turn ends when the budget is spent, and at a frame whose receiver has no room and may be waited for
//! ([`super::hold`]); a flooded frame costs as much as it makes copies.
//!
//! The danger: pointers in the batch are good only while the ports they come from are attached and their slots not
//! returned. Both hold within a turn: ports come and go between turns, on this very thread.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::hold::Hold;
use super::offloaded::{Scratch, give, scratch};
use super::parking::Parking;
use super::source::{Loaded, Source, Target};
use super::watchdog::Ringer;
use super::watched::show_flooded;
use crate::guest::clock::monotonic_ns;
use crate::net::frame::{FrameStart, MacAddress, START_BYTES};
use crate::net::mac_table::{PortSlot, Tick};
use crate::net::offload::{Features, Request};
use crate::net::rarp;
use crate::net::switch::{RouteCache, Switch, Verdict};
use crate::nic::card::Settled;
use crate::port::batch::{BATCH, Batch, Piece};
use crate::port::driver::{DriverPort, DriverRings};
use crate::port::latency::{Latencies, PortLatency};
use crate::port::nic::NicPort;
use crate::port::tap::{Received, TapPort};
use crate::port::venet::VenetPort;
use crate::port::venet::long::LongCounts;
use crate::port::virtqueues::{Rings, VirtqueuePort};
use crate::port::{PortCounter, PortEvent, PortId, PortPart, PortStatus, Refusal};
use crate::shm::counters::Block;
use crate::shm::doorbell::Doorbell;
use crate::shm::line;
use crate::shm::stamp::Age;
use crate::watch::{Stage, Watches};

/// Bytes of every receiver's buffer that are asked for as soon as it is claimed; the rest when its turn to be copied into
/// is next, so that a batch of long frames does not push itself out of the first cache.
const FIRST_LINES: u32 = 128;

/// Turns with frames between two that are timed.
const TURNS_UNTIMED: u32 = 256;
/// So few frames at once are waited for rather than streamed.
const LONELY_FRAMES: usize = 2;

/// What is behind a port. A port is boxed as a whole, and the common kind shall be in one piece with it.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub(crate) enum End {
    Venet(VenetPort),
    Tap(Box<TapPort>),
    Virtqueues(Box<VirtqueuePort>),
    Nic(Box<NicPort>),
    Driver(Box<DriverPort>),
}

/// A port as its worker has it.
#[derive(Debug)]
pub(crate) struct Port {
    pub id: PortId,
    pub name: Arc<str>,
    pub status: Arc<PortStatus>,
    /// Position of its switch on this worker.
    pub switch: Option<u32>,
    pub is_up: bool,
    pub budget: u32,
    pub priority: u32,
    pub parking: Parking,
    /// Whether it sleeps while it has nothing to do.
    pub does_park: bool,
    pub end: End,
    pub block: Block,
    pub latencies: Latencies,
    pub hold: Hold,
    cache: RouteCache,
    /// It was given frames that it has not been told of.
    is_touched: bool,
    /// Events are sent once.
    is_tx_reported: bool,
    is_rx_reported: bool,
}

impl Port {
    pub(crate) fn new(id: PortId, name: Arc<str>, end: End, block: Block) -> Self {
        let status = Arc::new(PortStatus::default());
        status.set_up(true);
        if let End::Venet(venet) = &end {
            let [(transmit, _), (receive, _)] = venet.occupancy();
            block.set(PortCounter::TransmitSlots as usize, transmit.into());
            block.set(PortCounter::ReceiveSlots as usize, receive.into());
        }
        Self {
            id,
            name,
            status,
            switch: None,
            is_up: true,
            budget: BATCH as u32,
            priority: 0,
            parking: Parking::new(0),
            does_park: true,
            end,
            block,
            latencies: Latencies::default(),
            hold: Hold::new(0),
            cache: RouteCache::default(),
            is_touched: false,
            is_tx_reported: false,
            is_rx_reported: false,
        }
    }

    /// Counts, unless this worker is one that shows what counting costs.
    #[inline]
    pub(crate) fn count<const COUNTS: bool>(&self, counter: PortCounter, amount: u64) {
        tally::<COUNTS>(&self.block, counter, amount);
    }

    /// Its guest has no room: whether frames for it may wait where they are.
    #[cold]
    pub(super) fn holds<const COUNTS: bool>(&mut self) -> bool {
        let Some(waited_ns) = self.hold.wait(monotonic_ns) else { return false };
        self.count::<COUNTS>(PortCounter::ReceiveHeldNanoseconds, waited_ns);
        self.count::<COUNTS>(PortCounter::ReceiveHolds, u64::from(waited_ns == 0));
        true
    }

    pub(crate) fn set_up(&mut self, is_up: bool) {
        self.is_up = is_up;
        self.status.set_up(is_up);
        match &mut self.end {
            End::Venet(venet) => venet.set_up(is_up),
            End::Tap(tap) => tap.set_up(is_up),
            End::Virtqueues(queues) => queues.set_up(is_up),
            End::Nic(nic) => nic.set_up(is_up),
            End::Driver(driver) => driver.set_up(is_up),
        }
    }

    /// Nothing will come out of it any more.
    pub(crate) fn is_mute(&self) -> bool {
        match &self.end {
            End::Venet(venet) => venet.tx_fault().is_some(),
            End::Tap(tap) => tap.is_gone(),
            End::Virtqueues(queues) => queues.is_mute(),
            End::Driver(driver) => driver.is_mute(),
            // Its driver is told by registers and interrupts also when nothing more is taken from it.
            End::Nic(_) => false,
        }
    }

    /// What its guest can be left with.
    pub(crate) fn features(&self) -> Features {
        match &self.end {
            End::Tap(tap) => tap.features(),
            End::Virtqueues(queues) => queues.features(),
            End::Venet(venet) => venet.features(),
            End::Nic(_) | End::Driver(_) => Features::NONE,
        }
    }

    /// As [`Self::offer`], with a request that the guest can do.
    ///
    /// # Safety
    ///
    /// The piece was loaded in this turn.
    pub(super) unsafe fn offer_requested(
        &mut self,
        start: &FrameStart,
        piece: &Piece,
        request: &Request,
    ) -> Result<*mut u8, Refusal> {
        match &mut self.end {
            // SAFETY: as promised by the caller.
            End::Tap(tap) => unsafe { tap.send(start, piece, request) }.map(|()| std::ptr::null_mut()),
            // SAFETY: as above.
            End::Virtqueues(queues) => unsafe { queues.claim_requested(start, piece, request) },
            // SAFETY: as above.
            End::Venet(_) if request.is_nothing() => unsafe { self.offer(start, piece) },
            // SAFETY: as above.
            End::Venet(venet) => unsafe { venet.give_long(start, piece, request) }.map(|()| std::ptr::null_mut()),
            // SAFETY: as above.
            End::Nic(_) | End::Driver(_) => unsafe { self.offer(start, piece) },
        }
    }

    /// Gives one frame to whatever is behind the port. `Ok(null)`: it was sent. Otherwise: where to write it.
    #[inline(always)]
    pub(super) unsafe fn offer(&mut self, start: &FrameStart, piece: &Piece) -> Result<*mut u8, Refusal> {
        match &mut self.end {
            End::Venet(venet) => match venet.claim(piece.length) {
                Ok(target) => Ok(target.as_ptr()),
                Err(Refusal::BufferTooSmall) => {
                    // SAFETY: the piece was loaded in this turn.
                    unsafe { venet.give_long(start, piece, &Request::NOTHING) }.map(|()| std::ptr::null_mut())
                }
                Err(refusal) => Err(refusal),
            },
            // SAFETY: the piece was loaded in this turn.
            End::Tap(tap) => unsafe { tap.send(start, piece, &Request::NOTHING) }.map(|()| std::ptr::null_mut()),
            // SAFETY: as above.
            End::Virtqueues(queues) => unsafe { queues.claim(start, piece) },
            // SAFETY: as above.
            End::Nic(nic) => unsafe { nic.give(start, piece) }.map(|()| std::ptr::null_mut()),
            End::Driver(driver) => driver.claim(piece),
        }
    }
}

/// How a turn went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turn {
    /// Frames taken from the port.
    pub frames: u32,
    /// Copies made, at least one a frame.
    pub cost: u32,
    /// The device has nothing more, and will make an edge when it has: no need to ask again.
    pub is_dry: bool,
}

/// Where faults are told.
pub(crate) struct EventSink {
    pub events: Sender<PortEvent>,
    pub bell: Arc<Doorbell>,
}

/// Ports and switches of one worker, and all it needs to move frames between them. Without `COUNTS`, what it does for every
/// frame or batch is neither counted nor timed: the other side of a benchmark, and nothing else.
pub(crate) struct Plane<const COUNTS: bool> {
    pub ports: Vec<Option<Box<Port>>>,
    pub switches: Vec<Option<Box<Switch>>>,
    pub ringer: Ringer,
    pub now: Tick,
    pub watches: Watches,
    /// Few ports are busy: whoever is given a lonely frame is told at once, not when the round is over.
    pub tells_early: bool,
    pub(super) batch: Box<Batch>,
    /// Frames of the port whose turn it is can be left where they are.
    pub(super) can_wait: bool,
    pub(super) scratch: Box<Scratch>,
    /// Ports that were given frames since the last [`Self::flush`].
    pub(super) touched: Vec<PortSlot>,
    /// The turn that is timed, until its receivers have been told: whose, and when it began.
    timed: Option<(PortSlot, u64)>,
    /// Turns with frames until one is timed.
    untimed: u32,
    sink: EventSink,
}

impl<const COUNTS: bool> fmt::Debug for Plane<COUNTS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plane").field("ports", &self.ports.len()).finish_non_exhaustive()
    }
}

#[inline]
pub(crate) fn port_at(ports: &mut [Option<Box<Port>>], slot: PortSlot) -> Option<&mut Port> {
    ports.get_mut(slot as usize)?.as_deref_mut()
}

impl<const COUNTS: bool> Plane<COUNTS> {
    pub(crate) fn new(ringer: Ringer, sink: EventSink) -> Self {
        Self {
            ports: Vec::new(),
            switches: Vec::new(),
            ringer,
            now: 0,
            watches: Watches::default(),
            tells_early: false,
            batch: Batch::new(),
            can_wait: true,
            scratch: scratch(),
            touched: Vec::new(),
            timed: None,
            untimed: 0,
            sink,
        }
    }

    pub(crate) fn port(&mut self, slot: PortSlot) -> Option<&mut Port> {
        port_at(&mut self.ports, slot)
    }

    pub(crate) fn switch(&mut self, slot: u32) -> Option<&mut Switch> {
        self.switches.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Attaches a port and joins it to its switch.
    pub(crate) fn insert(&mut self, port: Box<Port>) -> PortSlot {
        let slot = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        let switch = port.switch;
        if slot == self.ports.len() {
            self.ports.push(Some(port));
            self.touched.reserve(self.ports.len());
        } else {
            self.ports[slot] = Some(port);
        }
        if let Some(switch) = switch.and_then(|switch| self.switch(switch)) {
            switch.join(slot as PortSlot);
        }
        slot as PortSlot
    }

    /// Detaches a port: from here on nothing touches its memory.
    pub(crate) fn remove(&mut self, slot: PortSlot) -> Option<Box<Port>> {
        self.flush();
        let port = self.ports.get_mut(slot as usize)?.take()?;
        drop(self.watches.clear(slot));
        if let Some(switch) = port.switch.and_then(|switch| self.switch(switch)) {
            switch.leave(slot);
        }
        Some(port)
    }

    /// Takes frames from one port and moves them to others, up to its budget.
    pub(crate) fn turn(&mut self, slot: PortSlot) -> Turn {
        if COUNTS && self.untimed == 0 && self.timed.is_none() {
            return self.turn_timed(slot);
        }
        let turn = self.turn_at(slot);
        self.untimed = self.untimed.saturating_sub(u32::from(turn.frames != 0));
        turn
    }

    /// Notes when a turn began, if somebody was given what it found.
    #[cold]
    #[inline(never)]
    fn turn_timed(&mut self, slot: PortSlot) -> Turn {
        self.timed = Some((slot, monotonic_ns()));
        let turn = self.turn_at(slot);
        if turn.frames != 0 {
            self.untimed = TURNS_UNTIMED;
        }
        if turn.frames == 0 || self.touched.is_empty() {
            self.timed = None;
        }
        turn
    }

    /// The next turn that finds frames is timed, also if it is early for that: its port has slept.
    pub(crate) const fn time_next(&mut self) {
        self.untimed = 0;
    }

    fn turn_at(&mut self, slot: PortSlot) -> Turn {
        match port_at(&mut self.ports, slot) {
            Some(Port { end: End::Venet(_), .. }) => self.turn_from::<VenetPort>(slot),
            Some(Port { end: End::Tap(_), .. }) => self.turn_tap(slot),
            Some(Port { end: End::Virtqueues(_), .. }) => self.turn_from::<VirtqueuePort>(slot),
            Some(Port { end: End::Nic(_), .. }) => self.turn_from::<NicPort>(slot),
            Some(Port { end: End::Driver(_), .. }) => self.turn_from::<DriverPort>(slot),
            None => Turn::default(),
        }
    }

    /// A turn of a port with queues to look into.
    #[inline(always)]
    fn turn_from<S: Source>(&mut self, slot: PortSlot) -> Turn {
        let mut turn = Turn::default();
        let mut bytes = 0;
        let mut budget = 1;
        while turn.cost < budget {
            let Some(port) = port_at(&mut self.ports, slot) else { break };
            budget = port.budget;
            let Some(source) = S::of(&mut port.end) else { break };
            let Loaded { frames, runts } =
                source.look::<COUNTS>(&mut self.batch, BATCH.min((budget - turn.cost) as usize));
            if frames == 0 && runts == 0 && turn.cost == 0 && source.is_quiet() {
                return turn;
            }
            if runts != 0 {
                turn.cost += runts;
                port.count::<COUNTS>(PortCounter::TransmitDropRunt, runts.into());
            }
            if frames == 0 {
                break;
            }
            let done = self.take_on(slot, frames, budget, &mut turn, &mut bytes);
            if self.batch.has_requests {
                self.count_requests(slot, done);
            }
            let Some(port) = port_at(&mut self.ports, slot) else { break };
            let Some(source) = S::of(&mut port.end) else { break };
            if source.hand_back(done, &self.ringer) {
                tally::<COUNTS>(&port.block, PortCounter::CallsRung, 1);
            }
            if done < frames as u32 {
                break;
            }
        }
        let Some(port) = port_at(&mut self.ports, slot) else { return turn };
        end_turn::<COUNTS>(port, turn, bytes, budget);
        if S::of(&mut port.end).is_some_and(|source| source.settle::<COUNTS>(turn, &port.block, &self.ringer)) {
            self.report(slot);
        }
        turn
    }

    /// Moves loaded frames on within what is left of the budget, and adds them to the turn; how many. Who is given a
    /// lonely one is told before its sender hears anything: the fence of a signal waits for all that was written before.
    #[inline(always)]
    fn take_on(&mut self, slot: PortSlot, loaded: usize, budget: u32, turn: &mut Turn, bytes: &mut u64) -> u32 {
        let (done, cost) = self.move_on(slot, loaded, budget - turn.cost);
        *bytes += self.batch.pieces[..done].iter().map(|piece| u64::from(piece.length)).sum::<u64>();
        turn.frames += done as u32;
        turn.cost += cost;
        if self.tells_early && loaded <= LONELY_FRAMES {
            self.flush();
        }
        done as u32
    }

    /// Counts how many of the first `done` frames of a batch asked for something, and is done with what they asked for.
    #[cold]
    fn count_requests(&mut self, slot: PortSlot, done: u32) {
        self.batch.has_requests = false;
        let asking = self.batch.requests[..done as usize].iter().filter(|request| !request.is_nothing()).count();
        if let Some(port) = port_at(&mut self.ports, slot) {
            port.count::<COUNTS>(PortCounter::TransmitOffloads, asking as u64);
        }
    }

    /// Is the front end of another back end from now on, or of none: the queues until now.
    pub(crate) fn exchange_driver(
        &mut self,
        slot: PortSlot,
        rings: Option<Box<DriverRings>>,
    ) -> Option<Box<DriverRings>> {
        self.flush();
        self.report(slot);
        let port = port_at(&mut self.ports, slot)?;
        let End::Driver(driver) = &mut port.end else { return rings };
        port.status.clear_faults();
        port.status.set_served(rings.is_some());
        let before = driver.exchange(rings, &self.ringer);
        let [(transmit, _), (receive, _)] = driver.occupancy();
        port.block.set(PortCounter::TransmitSlots as usize, transmit.into());
        port.block.set(PortCounter::ReceiveSlots as usize, receive.into());
        before
    }

    /// Runs other rings of a front end from now on, or none; those that ran until now.
    pub(crate) fn exchange(&mut self, slot: PortSlot, rings: Option<Box<Rings>>) -> Option<Box<Rings>> {
        self.flush();
        self.report(slot);
        let port = port_at(&mut self.ports, slot)?;
        let End::Virtqueues(queues) = &mut port.end else { return rings };
        port.status.clear_faults();
        port.status.set_served(rings.is_some());
        let before = queues.exchange(rings, &self.ringer);
        port.status.set_offloads(queues.features());
        let [(transmit, _), (receive, _)] = queues.occupancy();
        port.block.set(PortCounter::TransmitSlots as usize, transmit.into());
        port.block.set(PortCounter::ReceiveSlots as usize, receive.into());
        before
    }

    fn turn_tap(&mut self, slot: PortSlot) -> Turn {
        let mut turn = Turn::default();
        let mut bytes = 0;
        let mut budget = 1;
        while turn.cost < budget {
            let Some(port) = port_at(&mut self.ports, slot) else { break };
            budget = port.budget;
            let End::Tap(tap) = &mut port.end else { break };
            let (length, request) = match tap.receive() {
                Received::Frame(length, request) => (length, request),
                Received::Nothing => {
                    turn.is_dry = true;
                    break;
                }
                Received::Gone(error) => {
                    tap.end(error);
                    break;
                }
                Received::Oversize(length) => {
                    turn.cost += 1;
                    self.refuse(slot, length, PortCounter::TransmitDropOversize);
                    continue;
                }
                Received::Unfit(length, unfit) => {
                    turn.cost += 1;
                    self.refuse(slot, length, PortCounter::of_unfit(unfit));
                    continue;
                }
                Received::Runt(length) => {
                    turn.cost += 1;
                    self.refuse(slot, length, PortCounter::TransmitDropRunt);
                    continue;
                }
            };
            let frame = tap.frame(length);
            self.batch.pieces[0].source = frame.as_ptr();
            self.batch.pieces[0].length = length;
            self.batch.requests[0] = request;
            self.batch.has_requests = !request.is_nothing();
            if self.batch.has_requests {
                port.count::<COUNTS>(PortCounter::TransmitOffloads, 1);
            }
            self.can_wait = false;
            let (_, cost) = self.move_on(slot, 1, u32::MAX);
            self.can_wait = true;
            self.batch.has_requests = false;
            turn.frames += 1;
            turn.cost += cost;
            bytes += u64::from(length);
        }
        let Some(port) = port_at(&mut self.ports, slot) else { return turn };
        end_turn::<COUNTS>(port, turn, bytes, budget);
        if port.is_mute() {
            self.report(slot);
        }
        turn
    }

    /// Has everybody on the switch learn that a station is behind this port, by a frame that it did not send itself. Another
    /// port's own address stays where it is, and the frame is counted as forged.
    pub(crate) fn announce(&mut self, slot: PortSlot, station: MacAddress) {
        let frame = rarp::announcement(station);
        self.batch.pieces[0].source = frame.as_ptr();
        self.batch.pieces[0].length = frame.len() as u32;
        self.batch.has_requests = false;
        self.can_wait = false;
        self.move_on(slot, 1, u32::MAX);
        self.can_wait = true;
        self.flush();
    }

    /// Counts a frame of a device that is not taken on, and shows it to whoever looks.
    #[cold]
    fn refuse(&mut self, slot: PortSlot, length: u32, reason: PortCounter) {
        if let Some(port) = port_at(&mut self.ports, slot) {
            port.count::<COUNTS>(reason, 1);
        }
        if self.watches.is_on() {
            self.show_refused(slot, length, reason);
        }
    }

    /// Copies first lines and finds out where each frame goes.
    #[inline]
    pub(super) fn decide(&mut self, slot: PortSlot, loaded: usize) {
        let Batch { starts, pieces, verdicts, .. } = &mut *self.batch;
        let Some(port) = port_at(&mut self.ports, slot) else { return };
        let switch = port.switch.and_then(|switch| self.switches.get_mut(switch as usize)?.as_deref_mut());
        for ((start, piece), verdict) in starts.iter_mut().zip(&*pieces).zip(verdicts.iter_mut()).take(loaded) {
            if piece.length != 0 {
                // SAFETY: loaded in this turn and not shorter than a header.
                unsafe { start.fetch(piece.source, piece.length) };
            }
            *verdict = Verdict::To(slot);
        }
        let Some(switch) = switch else { return };
        for ((start, piece), verdict) in starts.iter().zip(&*pieces).zip(verdicts.iter_mut()).take(loaded) {
            if piece.length != 0 {
                *verdict = switch.route(&mut port.cache, slot, start, self.now);
            }
        }
    }

    /// Moves loaded frames on, in order, while `budget` lasts: how many, and what it cost.
    #[inline]
    fn move_on(&mut self, slot: PortSlot, loaded: usize, budget: u32) -> (usize, u32) {
        if self.watches.is_on() {
            return self.move_on_watched(slot, loaded, budget);
        }
        match port_at(&mut self.ports, slot) {
            Some(port) if !port.is_up => {
                port.count::<COUNTS>(PortCounter::TransmitDropLinkDown, loaded as u64);
                return (loaded, loaded as u32);
            }
            _ => self.decide(slot, loaded),
        }
        let mut done = 0;
        let mut cost = 0;
        while done < loaded && cost < budget {
            if self.floods(done) {
                cost += self.flood(slot, done);
                done += 1;
            } else {
                let wanted = (done + 1..loaded).find(|&index| self.floods(index)).unwrap_or(loaded);
                let (end, more) = self.claim_any(slot, done, wanted);
                self.copy(done, end);
                cost += more + (end - done) as u32;
                done = end;
                if end != wanted {
                    break;
                }
            }
        }
        (done, cost)
    }

    #[inline]
    pub(super) fn floods(&self, index: usize) -> bool {
        self.batch.verdicts[index] == Verdict::Flood && self.batch.pieces[index].length != 0
    }

    /// Finds a buffer for every frame from `start` to `end`, or does what is requested: up to which frame, as one may have to
    /// wait, and the copies that this took beyond one a frame.
    #[inline(always)]
    pub(super) fn claim_any(&mut self, slot: PortSlot, start: usize, end: usize) -> (usize, u32) {
        if self.batch.has_requests {
            return self.claim_requested(slot, start, end);
        }
        (self.claim(slot, start, end), 0)
    }

    /// Finds a buffer for every frame from `start` to `end`, or to the first whose receiver has no room and may be waited
    /// for: its number.
    // Not in line: what surrounds it would cost its loop registers.
    #[inline(never)]
    fn claim(&mut self, slot: PortSlot, start: usize, end: usize) -> usize {
        let Self { ports, batch, touched, can_wait, .. } = self;
        let mut current = PortSlot::MAX;
        let mut receiver: Option<&mut Port> = None;
        for index in start..end {
            let piece = &mut batch.pieces[index];
            piece.target = std::ptr::null_mut();
            let to = match batch.verdicts[index] {
                Verdict::To(to) if piece.length != 0 => to,
                verdict => {
                    current = PortSlot::MAX;
                    receiver = None;
                    let reason = why_not_taken(verdict, piece);
                    if let Some(port) = port_at(ports, slot) {
                        port.count::<COUNTS>(reason, 1);
                    }
                    batch.reasons[index] = reason.reason();
                    continue;
                }
            };
            if to != current {
                current = to;
                receiver = port_at(ports, to);
                if let Some(port) = &mut receiver {
                    touch(port, to, touched);
                }
            }
            let Some(port) = &mut receiver else { continue };
            // SAFETY: the piece was loaded in this turn.
            match unsafe { port.offer(&batch.starts[index], piece) } {
                Ok(target) => {
                    ask_for(target, piece.length.min(FIRST_LINES));
                    piece.target = target;
                }
                Err(Refusal::NoRoom) if *can_wait && port.holds::<COUNTS>() => return index,
                Err(refusal) => {
                    port.count::<COUNTS>(refusal.counter(), 1);
                    batch.reasons[index] = refusal.counter().reason();
                }
            }
        }
        end
    }

    #[inline]
    pub(super) fn copy(&mut self, first: usize, end: usize) {
        let Batch { starts, pieces, .. } = &*self.batch;
        for (index, (start, piece)) in starts[first..end].iter().zip(&pieces[first..end]).enumerate() {
            if let Some(next) = pieces[first..end].get(index + 1)
                && next.length > FIRST_LINES
                && !next.target.is_null()
            {
                ask_for(next.target.wrapping_add(FIRST_LINES as usize), next.length - FIRST_LINES);
            }
            if !piece.target.is_null() {
                // SAFETY: source and target were checked in this turn, for this length and for at least 64 bytes.
                unsafe { copy_frame(start, piece) };
            }
        }
    }

    /// Gives one frame to every port of the switch but its own: how many copies that took.
    #[cold]
    pub(super) fn flood(&mut self, slot: PortSlot, index: usize) -> u32 {
        let Self { ports, switches, batch, touched, watches, scratch, .. } = self;
        let switch = port_at(ports, slot).and_then(|port| port.switch);
        let Some(switch) = switch.and_then(|switch| switches.get(switch as usize)?.as_deref()) else { return 1 };
        let start = &batch.starts[index];
        let mut piece = batch.pieces[index];
        let request = if batch.has_requests { batch.requests[index] } else { Request::NOTHING };
        let mut copies = 0;
        for &to in switch.members().iter().filter(|&&member| member != slot) {
            let Some(port) = port_at(ports, to) else { continue };
            touch(port, to, touched);
            let (cost, outcome) = give::<COUNTS>(port, start, &piece, &request, scratch);
            copies += cost;
            if let Ok(target) = outcome
                && !target.is_null()
            {
                piece.target = target;
                // SAFETY: source and target were checked just now, for this length and for at least 64 bytes.
                unsafe { copy_frame(start, &piece) };
            }
            if watches.is_on() {
                show_flooded(watches, to, port.id, (start, &piece), outcome);
            }
        }
        switch.count_flooded(1);
        copies.max(1)
    }

    /// Frames wait to be told of.
    pub(crate) const fn is_flushed(&self) -> bool {
        self.touched.is_empty() && !self.watches.has_news()
    }

    /// Tells receivers what they were given.
    pub(crate) fn flush(&mut self) {
        while let Some(slot) = self.touched.pop() {
            let Some(port) = port_at(&mut self.ports, slot) else { continue };
            port.is_touched = false;
            let is_broken = match &mut port.end {
                End::Venet(venet) => {
                    let (frames, bytes) = venet.unreleased();
                    if frames != 0 {
                        let wants_call = venet.release_rx::<COUNTS>();
                        if self.watches.is_on() {
                            self.watches.told(slot, Stage::Published);
                        }
                        port.hold.earn(frames);
                        tally::<COUNTS>(&port.block, PortCounter::ReceiveFrames, frames);
                        tally::<COUNTS>(&port.block, PortCounter::ReceiveBytes, bytes);
                        let [_, (_, posted)] = venet.occupancy();
                        note::<COUNTS>(&port.block, PortCounter::ReceiveSlotsUsed, posted.into());
                        if let Some(counts) = venet.take_counts() {
                            count_long::<COUNTS>(&port.block, counts);
                        }
                        let outcome = if wants_call { PortCounter::CallsRung } else { PortCounter::CallsSuppressed };
                        tally::<COUNTS>(&port.block, outcome, 1);
                        if wants_call && let Err(fault) = venet.call_rx::<COUNTS>(&self.ringer) {
                            venet.break_rx(fault);
                        }
                        if self.watches.is_on() {
                            self.watches.told(slot, if wants_call { Stage::Rung } else { Stage::Spared });
                        }
                    }
                    venet.rx_fault().is_some()
                }
                End::Tap(tap) => {
                    let (frames, bytes) = tap.take_written();
                    tally::<COUNTS>(&port.block, PortCounter::ReceiveFrames, frames);
                    tally::<COUNTS>(&port.block, PortCounter::ReceiveBytes, bytes);
                    tap.is_gone()
                }
                End::Virtqueues(queues) => {
                    show::<COUNTS>(&mut **queues, slot, (&port.block, &mut port.hold), &mut self.watches, &self.ringer)
                }
                End::Driver(driver) => {
                    show::<COUNTS>(&mut **driver, slot, (&port.block, &mut port.hold), &mut self.watches, &self.ringer)
                }
                End::Nic(nic) => {
                    let (frames, bytes) = nic.take_given();
                    tally::<COUNTS>(&port.block, PortCounter::ReceiveFrames, frames);
                    tally::<COUNTS>(&port.block, PortCounter::ReceiveBytes, bytes);
                    note_card::<COUNTS>(&port.block, nic);
                    let is_called = tell_card::<COUNTS>(&port.block, nic, &self.ringer);
                    if frames != 0 && self.watches.is_on() {
                        self.watches.told(slot, Stage::Published);
                        self.watches.told(slot, if is_called { Stage::Rung } else { Stage::Spared });
                    }
                    nic.has_news()
                }
            };
            if is_broken {
                self.report(slot);
            }
        }
        if self.watches.has_news() {
            self.watches.tell(&self.ringer);
        }
        if let Some((slot, begun_ns)) = self.timed.take()
            && let Some(port) = port_at(&mut self.ports, slot)
        {
            port.latencies.record(PortLatency::Service, Age::Nanoseconds(monotonic_ns().saturating_sub(begun_ns)));
        }
    }

    /// Counts and tells what broke on a port, each part once.
    #[cold]
    pub(crate) fn report(&mut self, slot: PortSlot) {
        let Some(port) = port_at(&mut self.ports, slot) else { return };
        let (mut tx, mut rx, mut gone) = (None, None, None);
        match &mut port.end {
            End::Virtqueues(_) | End::Driver(_) => return self.report_queues(slot),
            End::Venet(venet) => {
                tx = venet.tx_fault().filter(|_| !port.is_tx_reported);
                rx = venet.rx_fault().filter(|_| !port.is_rx_reported);
                port.is_tx_reported |= tx.is_some();
                port.is_rx_reported |= rx.is_some();
            }
            End::Nic(nic) => (tx, rx) = nic.take_news(),
            End::Tap(tap) => gone = tap.take_end(),
        }
        for (part, fault) in [(PortPart::Transmit, tx), (PortPart::Receive, rx)] {
            if let Some(fault) = fault {
                port.block.add(PortCounter::of_fault(&fault), 1);
                port.status.set_fault(part, &fault);
                self.sink.tell(port, part, fault.reason(), fault.to_string());
            }
        }
        if let Some(error) = gone {
            port.status.set_gone();
            let text = format!("the device of port {} has ended: {error}", port.name);
            self.sink.tell(port, PortPart::Device, "device_gone", text);
        }
    }

    /// As [`Self::report`], for virtqueues, either end of them: each can break by itself.
    fn report_queues(&mut self, slot: PortSlot) {
        let Some(port) = port_at(&mut self.ports, slot) else { return };
        while let Some((part, fault)) = match &mut port.end {
            End::Virtqueues(queues) => queues.take_fault(),
            End::Driver(driver) => driver.take_fault(),
            _ => None,
        } {
            port.block.add(PortCounter::of_fault(&fault), 1);
            port.status.set_fault(part, &fault);
            self.sink.tell(port, part, fault.reason(), fault.to_string());
        }
    }
}

/// Shows what was put into virtqueues, and counts it. `true`: something broke.
#[inline]
fn show<const COUNTS: bool>(
    queues: &mut impl Target,
    slot: PortSlot,
    (block, hold): (&Block, &mut Hold),
    watches: &mut Watches,
    ringer: &Ringer,
) -> bool {
    let (frames, bytes) = queues.filled();
    if frames != 0 {
        let is_told = queues.show(ringer);
        hold.earn(frames);
        tally::<COUNTS>(block, PortCounter::ReceiveFrames, frames);
        tally::<COUNTS>(block, PortCounter::ReceiveBytes, bytes);
        note::<COUNTS>(block, PortCounter::ReceiveSlotsUsed, queues.places().into());
        let outcome = if is_told { PortCounter::CallsRung } else { PortCounter::CallsSuppressed };
        tally::<COUNTS>(block, outcome, 1);
        if watches.is_on() {
            watches.told(slot, Stage::Published);
            watches.told(slot, if is_told { Stage::Rung } else { Stage::Spared });
        }
    }
    queues.is_broken()
}

/// Counts what a turn did.
#[inline]
fn end_turn<const COUNTS: bool>(port: &mut Port, turn: Turn, bytes: u64, budget: u32) {
    if turn.frames != 0 {
        port.count::<COUNTS>(PortCounter::TransmitFrames, turn.frames.into());
        port.count::<COUNTS>(PortCounter::TransmitBytes, bytes);
    }
    if turn.cost != 0 {
        port.parking.work();
    }
    if turn.cost >= budget {
        port.count::<COUNTS>(PortCounter::BudgetExhausted, 1);
    }
}

impl EventSink {
    fn tell(&self, port: &Port, part: PortPart, reason: &'static str, text: String) {
        let event = PortEvent { port: port.id, name: port.name.clone(), part, reason, text };
        // Nobody listens any more once the fabric is closing.
        if self.events.send(event).is_ok() {
            let _ = self.bell.ring();
        }
    }
}

#[inline]
pub(super) fn tally<const COUNTS: bool>(block: &Block, counter: PortCounter, amount: u64) {
    if COUNTS {
        block.add(counter as usize, amount);
    }
}

/// Counts frames of a venet guest that were in several pieces or buffers.
pub(super) fn count_long<const COUNTS: bool>(block: &Block, counts: LongCounts) {
    tally::<COUNTS>(block, PortCounter::GatheredFrames, counts.gathered);
    tally::<COUNTS>(block, PortCounter::MergedFrames, counts.merged);
    tally::<COUNTS>(block, PortCounter::MergedBuffers, counts.buffers);
}

/// As [`tally`], for a value that goes up and down.
#[inline]
pub(super) fn note<const COUNTS: bool>(block: &Block, counter: PortCounter, amount: u64) {
    if COUNTS {
        block.set(counter as usize, amount);
    }
}

/// Notes how a card's rings are.
pub(super) fn note_card<const COUNTS: bool>(block: &Block, nic: &NicPort) {
    if !COUNTS {
        return;
    }
    let [(transmit, sending), (receive, posted)] = nic.occupancy();
    for (counter, value) in [
        (PortCounter::TransmitSlots, transmit),
        (PortCounter::TransmitSlotsUsed, sending),
        (PortCounter::ReceiveSlots, receive),
        (PortCounter::ReceiveSlotsUsed, posted),
    ] {
        block.set(counter as usize, value.into());
    }
}

/// Raises a card's interrupt if it is due. `true`: it was raised.
pub(super) fn tell_card<const COUNTS: bool>(block: &Block, nic: &mut NicPort, ringer: &Ringer) -> bool {
    let settled = nic.settle(ringer);
    match settled {
        Settled::Quiet => {}
        Settled::Raise => tally::<COUNTS>(block, PortCounter::CallsRung, 1),
        Settled::Later => tally::<COUNTS>(block, PortCounter::CallsSuppressed, 1),
    }
    settled == Settled::Raise
}

#[inline]
pub(super) fn touch(port: &mut Port, slot: PortSlot, touched: &mut Vec<PortSlot>) {
    if !port.is_touched {
        port.is_touched = true;
        touched.push(slot);
    }
}

#[cold]
pub(super) const fn why_not_taken(verdict: Verdict, piece: &Piece) -> PortCounter {
    match verdict {
        _ if piece.length == 0 => PortCounter::TransmitDropOversize,
        Verdict::ForgedSource => PortCounter::TransmitDropForgedSource,
        _ => PortCounter::TransmitDropSamePort,
    }
}

/// Asks for the lines of a buffer that is about to be written; null is nobody's buffer.
#[inline]
fn ask_for(target: *mut u8, bytes: u32) {
    if let Some(place) = NonNull::new(target) {
        line::fetch_to_write(place, bytes as usize);
    }
}

/// # Safety
///
/// `piece.length` bytes at its source are readable; at its target as many, and at least 64, are writable.
#[inline]
pub(super) unsafe fn copy_frame(start: &FrameStart, piece: &Piece) {
    // SAFETY: as promised by the caller. Both may lie in one guest's memory, so the rest moves as if they overlapped.
    unsafe {
        start.store(piece.target);
        let rest = (piece.length as usize).saturating_sub(START_BYTES);
        if rest != 0 {
            piece.source.add(START_BYTES).copy_to(piece.target.add(START_BYTES), rest);
        }
    }
}
