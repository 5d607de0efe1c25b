//! A learning switch: where a frame goes, decided from its first bytes.
//!
//! ```text
//!   frame ─▶ source: learn it here ─▶ destination known? ─▶ that port
//!                                     a group or unknown  ─▶ every port but the sender's (flood)
//!                                     on the sender's own port, or a forged source ─▶ nowhere, counted
//! ```
//!
//! A switch lives on one worker with all its ports. Each port carries a [`RouteCache`]: the last source and the last
//! destination with the stamp (table generation and second) under which they were looked up. A stream of frames
//! between the same two stations is forwarded without touching the table.

use std::fmt;

use super::frame::FrameStart;
use super::mac_table::{ENTRIES_A_PORT_MAX, ENTRIES_MAX, Learned, MacTable, PortSlot, Tick};
use crate::net::counters::counters;
use crate::shm::counters::Block;

counters! {
    /// What is counted for every switch.
    pub enum SwitchCounter {
        /// Frames that went to every port but their own.
        FloodedFrames = "flooded_frames",
        /// Stations learned.
        LearnedStations = "learned_stations",
        /// Stations that were heard on another port than before.
        MovedStations = "moved_stations",
        /// Stations not learned because the table, or the port's share of it, was full.
        TableFull = "table_full",
        /// Frames whose source belongs to another port for good.
        ForgedSources = "forged_sources",
        /// Entries in the table now.
        Stations = "stations",
        /// Ports attached now.
        Ports = "ports",
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// To every port but its own.
    #[default]
    Flood,
    /// To one port.
    To(PortSlot),
    /// It is there already: the station is on the sender's own port.
    SamePort,
    /// Nowhere: it pretends to come from another port's own address.
    ForgedSource,
}

/// What a port remembers of its last frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteCache {
    source: u64,
    source_stamp: u64,
    destination: u64,
    destination_stamp: u64,
    verdict: Verdict,
}

/// One switch.
pub struct Switch {
    table: MacTable,
    members: Vec<PortSlot>,
    block: Block,
}

impl Switch {
    /// A switch without ports that counts into `block`.
    #[must_use]
    pub fn new(ageing_s: u32, block: Block) -> Self {
        Self { table: MacTable::new(ENTRIES_MAX, ENTRIES_A_PORT_MAX, ageing_s), members: Vec::new(), block }
    }

    /// Its ports.
    #[inline]
    #[must_use]
    pub fn members(&self) -> &[PortSlot] {
        &self.members
    }

    /// Its table.
    #[must_use]
    pub const fn table(&self) -> &MacTable {
        &self.table
    }

    /// Its table, to pin or forget addresses.
    pub const fn table_mut(&mut self) -> &mut MacTable {
        &mut self.table
    }

    /// Adds a port.
    pub fn join(&mut self, port: PortSlot) {
        self.members.push(port);
        self.block.set(SwitchCounter::Ports as usize, self.members.len() as u64);
    }

    /// Removes a port and all that was learned on it.
    pub fn leave(&mut self, port: PortSlot) {
        self.members.retain(|&member| member != port);
        self.table.forget(port, true);
        self.block.set(SwitchCounter::Ports as usize, self.members.len() as u64);
        self.block.set(SwitchCounter::Stations as usize, self.table.used() as u64);
    }

    /// Learns where a frame comes from and says where it goes.
    #[inline]
    pub fn route(&mut self, cache: &mut RouteCache, from: PortSlot, start: &FrameStart, now: Tick) -> Verdict {
        let stamp = self.stamp(now);
        let source = start.source_key();
        if (source ^ cache.source) | (stamp ^ cache.source_stamp) != 0 && !self.hear(cache, from, source, now) {
            return Verdict::ForgedSource;
        }
        let stamp = self.stamp(now);
        let destination = start.destination_key();
        if (destination ^ cache.destination) | (stamp ^ cache.destination_stamp) != 0 {
            cache.verdict = self.find(from, destination, now);
            cache.destination = destination;
            cache.destination_stamp = self.stamp(now);
        }
        cache.verdict
    }

    /// Counts frames that were flooded.
    pub fn count_flooded(&self, frames: u64) {
        self.block.add(SwitchCounter::FloodedFrames as usize, frames);
    }

    /// Never 0, so that an empty cache matches nothing.
    const fn stamp(&self, now: Tick) -> u64 {
        (self.table.generation() as u64) << 32 | (now as u64 + 1)
    }

    /// `false`: the source belongs to somebody else.
    #[cold]
    fn hear(&mut self, cache: &mut RouteCache, from: PortSlot, source: u64, now: Tick) -> bool {
        // Groups and nobody cannot send; such frames are forwarded but teach nothing.
        let learned = if source & 1 != 0 || source == 0 { Learned::Known } else { self.table.learn(source, from, now) };
        let counter = match learned {
            Learned::Known => None,
            Learned::Added => Some(SwitchCounter::LearnedStations),
            Learned::Moved => Some(SwitchCounter::MovedStations),
            Learned::Full => Some(SwitchCounter::TableFull),
            Learned::Refused => Some(SwitchCounter::ForgedSources),
        };
        if let Some(counter) = counter {
            self.block.add(counter as usize, 1);
            self.block.set(SwitchCounter::Stations as usize, self.table.used() as u64);
        }
        if learned == Learned::Refused {
            return false;
        }
        cache.source = source;
        cache.source_stamp = self.stamp(now);
        true
    }

    #[cold]
    fn find(&mut self, from: PortSlot, destination: u64, now: Tick) -> Verdict {
        if destination & 1 != 0 {
            return Verdict::Flood;
        }
        match self.table.lookup(destination, now) {
            None => Verdict::Flood,
            Some(port) if port == from => Verdict::SamePort,
            Some(port) => Verdict::To(port),
        }
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch").field("members", &self.members).field("table", &self.table).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::net::frame::MacAddress;
    use crate::shm::counters::CounterFile;

    fn switch(ageing_s: u32) -> Switch {
        let counters = CounterFile::create(None, 4096).unwrap();
        let mut switch =
            Switch::new(ageing_s, counters.allocate("switch", "switch=lan", SwitchCounter::COUNT).unwrap());
        (0..3).for_each(|port| switch.join(port));
        switch
    }

    fn station(number: u8) -> MacAddress {
        MacAddress::new([2, 0, 0, 0, 0, number])
    }

    fn frame(destination: MacAddress, source: MacAddress) -> FrameStart {
        FrameStart::of(&[destination.bytes(), source.bytes()].concat())
    }

    /// A port's cache must never change an answer: every route is asked with a used and with an empty one.
    fn route(
        switch: &mut Switch,
        caches: &mut [RouteCache; 3],
        from: PortSlot,
        start: &FrameStart,
        now: Tick,
    ) -> Verdict {
        let cached = switch.route(&mut caches[from as usize], from, start, now);
        assert_eq!(cached, switch.route(&mut RouteCache::default(), from, start, now));
        cached
    }

    #[test]
    fn unknown_destination_floods_until_it_speaks() {
        let (mut switch, mut caches) = (switch(300), Default::default());
        let there = frame(station(2), station(1));
        let back = frame(station(1), station(2));

        assert_eq!(Verdict::Flood, route(&mut switch, &mut caches, 0, &there, 0));
        assert_eq!(Verdict::To(0), route(&mut switch, &mut caches, 1, &back, 0));
        assert_eq!(Verdict::To(1), route(&mut switch, &mut caches, 0, &there, 0));
    }

    #[test]
    fn groups_always_flood() {
        let (mut switch, mut caches) = (switch(300), Default::default());
        for group in [MacAddress::BROADCAST, MacAddress::new([1, 0, 0x5e, 0, 0, 1])] {
            assert_eq!(Verdict::Flood, route(&mut switch, &mut caches, 0, &frame(group, station(1)), 0));
            assert_eq!(Verdict::Flood, route(&mut switch, &mut caches, 0, &frame(group, group), 0));
        }
        assert_eq!(1, switch.table().used());
    }

    #[test]
    fn frame_for_its_own_port_goes_nowhere() {
        let (mut switch, mut caches) = (switch(300), Default::default());
        let _ = route(&mut switch, &mut caches, 0, &frame(station(9), station(1)), 0);

        assert_eq!(Verdict::SamePort, route(&mut switch, &mut caches, 0, &frame(station(1), station(2)), 0));
    }

    #[test]
    fn station_that_moved_is_followed_at_once() {
        let (mut switch, mut caches) = (switch(300), Default::default());
        let _ = route(&mut switch, &mut caches, 1, &frame(station(9), station(2)), 0);
        let to_it = frame(station(2), station(1));
        assert_eq!(Verdict::To(1), route(&mut switch, &mut caches, 0, &to_it, 0));

        let _ = route(&mut switch, &mut caches, 2, &frame(station(9), station(2)), 0);

        assert_eq!(Verdict::To(2), route(&mut switch, &mut caches, 0, &to_it, 0));
        assert_eq!(1, switch.block.load(SwitchCounter::MovedStations as usize));
    }

    #[test]
    fn silent_station_is_forgotten_though_a_cache_remembers_it() {
        let (mut switch, mut caches) = (switch(5), Default::default());
        let _ = route(&mut switch, &mut caches, 1, &frame(station(9), station(2)), 0);
        let to_it = frame(station(2), station(1));

        assert_eq!(Verdict::To(1), route(&mut switch, &mut caches, 0, &to_it, 5));
        assert_eq!(Verdict::Flood, route(&mut switch, &mut caches, 0, &to_it, 6));
    }

    #[test]
    fn speaking_station_stays_known_though_its_cache_answers() {
        let (mut switch, mut caches) = (switch(5), Default::default());
        let from_it = frame(station(9), station(2));
        for now in 0..20 {
            let _ = route(&mut switch, &mut caches, 1, &from_it, now);
        }

        assert_eq!(Verdict::To(1), route(&mut switch, &mut caches, 0, &frame(station(2), station(1)), 24));
    }

    #[test]
    fn forged_source_goes_nowhere_and_takes_nothing_over() {
        let (mut switch, mut caches) = (switch(300), Default::default());
        assert!(switch.table_mut().pin(station(2), 1, 0));

        assert_eq!(Verdict::ForgedSource, route(&mut switch, &mut caches, 0, &frame(station(3), station(2)), 0));

        assert_eq!(Verdict::To(1), route(&mut switch, &mut caches, 2, &frame(station(2), station(3)), 0));
        assert_eq!(2, switch.block.load(SwitchCounter::ForgedSources as usize));
    }

    #[test]
    fn port_that_left_is_forgotten() {
        let (mut switch, mut caches) = (switch(300), Default::default());
        assert!(switch.table_mut().pin(station(2), 1, 0));
        let to_it = frame(station(2), station(1));
        assert_eq!(Verdict::To(1), route(&mut switch, &mut caches, 0, &to_it, 0));

        switch.leave(1);

        assert_eq!(Verdict::Flood, route(&mut switch, &mut caches, 0, &to_it, 0));
        assert_eq!([0, 2].as_slice(), switch.members());
    }
}
