//! Which port a station was last heard on: open addressing, bounded, aged by a coarse clock.
//!
//! ```text
//!   bucket  ┌ key: address | OCCUPIED | PINNED ┐┌ port ┐┌ heard at tick ┐      16 bytes, 4 a cache line
//!   chain   home bucket, next, next, …, first empty bucket; removal closes the gap by moving later ones back
//! ```
//!
//! Learned entries die when nothing was heard for the ageing time; they are found dead when somebody looks, so an idle
//! table costs nothing. Pinned entries belong to a port's own address: they neither age nor move, so no neighbour can
//! draw a guest's traffic to itself by sending in its name. Every change of an answer raises the generation, which is
//! what callers' one-entry caches are checked against.
//!
//! The danger: senders choose addresses. Entries are bounded in total and a port, and the hash is keyed by a secret, so
//! that nobody can fill the table alone or build long chains on purpose. Source: IEEE 802.1D §7.9 (filtering database).

use std::fmt;
use std::hash::{BuildHasher, Hasher};

use super::frame::MacAddress;

/// What a port is called inside its worker.
pub type PortSlot = u32;
/// Whole seconds since some beginning.
pub type Tick = u32;

/// Most entries of one switch.
pub const ENTRIES_MAX: usize = 16384;
/// Most entries learned on one port.
pub const ENTRIES_A_PORT_MAX: usize = 2048;

const OCCUPIED: u64 = 1 << 63;
const PINNED: u64 = 1 << 62;
const KEY_MASK: u64 = (1 << 48) - 1;

#[derive(Clone, Copy, Default)]
struct Bucket {
    /// 0 = empty.
    key: u64,
    port: PortSlot,
    heard: Tick,
}

impl Bucket {
    const fn is_empty(&self) -> bool {
        self.key == 0
    }

    const fn is_pinned(&self) -> bool {
        self.key & PINNED != 0
    }

    const fn is_for(&self, key: u64) -> bool {
        self.key & !PINNED == key | OCCUPIED
    }
}

/// What became of hearing a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It was known to be there.
    Known,
    /// It is new.
    Added,
    /// It was on another port until now.
    Moved,
    /// The address belongs to another port for good.
    Refused,
    /// The table, or this port's share of it, is full: frames to the station will be flooded.
    Full,
}

/// One line of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// The station.
    pub mac: MacAddress,
    /// Where it is.
    pub port: PortSlot,
    /// Seconds since it was last heard; 0 for a pinned one.
    pub age_s: u32,
    /// It is the port's own address.
    pub is_pinned: bool,
}

/// The table of one switch.
pub struct MacTable {
    buckets: Box<[Bucket]>,
    mask: usize,
    shift: u32,
    secret: u64,
    used: usize,
    entries_max: usize,
    entries_a_port_max: usize,
    /// Learned entries of every port slot.
    shares: Vec<u32>,
    ageing_s: u32,
    generation: u32,
    /// When dead entries were last looked for.
    swept: Option<Tick>,
}

impl MacTable {
    /// A table of at most `entries_max` stations, `entries_a_port_max` learned on one port. Learned ones die after
    /// `ageing_s` seconds of silence; 0 means never.
    #[must_use]
    pub fn new(entries_max: usize, entries_a_port_max: usize, ageing_s: u32) -> Self {
        // Half empty at worst keeps chains short.
        let count = (entries_max.max(2) * 2).next_power_of_two();
        let secret = std::hash::RandomState::new().build_hasher().finish() | 1;
        Self {
            buckets: vec![Bucket::default(); count].into_boxed_slice(),
            mask: count - 1,
            shift: 64 - count.trailing_zeros(),
            secret,
            used: 0,
            entries_max,
            entries_a_port_max,
            shares: Vec::new(),
            ageing_s,
            generation: 0,
            swept: None,
        }
    }

    /// Goes up whenever an answer of [`Self::lookup`] may have changed for another reason than time.
    #[inline]
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Entries held, dead ones that nobody looked at included.
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }

    /// Changes after how many seconds of silence learned entries die; 0 means never.
    pub fn set_ageing(&mut self, ageing_s: u32) {
        self.ageing_s = ageing_s;
        self.swept = None;
        self.changed();
    }

    /// Where a station is, if that is known.
    #[must_use]
    pub fn lookup(&mut self, key: u64, now: Tick) -> Option<PortSlot> {
        let index = self.find(key & KEY_MASK).ok()?;
        let bucket = self.buckets[index];
        if self.is_dead(&bucket, now) {
            self.remove(index);
            return None;
        }
        Some(bucket.port)
    }

    /// Remembers that a station was heard on a port. The key must be of one station, not of a group.
    pub fn learn(&mut self, key: u64, port: PortSlot, now: Tick) -> Learned {
        let key = key & KEY_MASK;
        if let Ok(index) = self.find(key) {
            let bucket = self.buckets[index];
            if bucket.is_pinned() {
                return if bucket.port == port { Learned::Known } else { Learned::Refused };
            }
            if !self.is_dead(&bucket, now) {
                if bucket.port == port {
                    self.buckets[index].heard = now;
                    return Learned::Known;
                }
                if !self.has_share(port, now) {
                    return Learned::Full;
                }
                // Looking for a share may have swept others away and moved this one.
                if let Ok(index) = self.find(key) {
                    self.remove(index);
                }
                self.insert(key | OCCUPIED, port, now);
                return Learned::Moved;
            }
            self.remove(index);
        }
        if !self.has_share(port, now) || !self.has_room(now) {
            return Learned::Full;
        }
        self.insert(key | OCCUPIED, port, now);
        Learned::Added
    }

    /// Makes an address a port's own. `false`: it is another port's own, or the table is full of such.
    #[must_use = "false means the address was not taken"]
    pub fn pin(&mut self, mac: MacAddress, port: PortSlot, now: Tick) -> bool {
        if let Ok(index) = self.find(mac.key()) {
            let bucket = self.buckets[index];
            if bucket.is_pinned() {
                return bucket.port == port;
            }
            self.remove(index);
        }
        if !self.has_room(now) {
            return false;
        }
        self.insert(mac.key() | OCCUPIED | PINNED, port, now);
        true
    }

    /// Forgets what was learned on a port; with `pinned` also its own address.
    pub fn forget(&mut self, port: PortSlot, pinned: bool) {
        self.remove_if(|bucket| bucket.port == port && (pinned || !bucket.is_pinned()));
    }

    /// Every living entry.
    #[must_use]
    pub fn entries(&self, now: Tick) -> Vec<TableEntry> {
        let living = self.buckets.iter().filter(|bucket| !bucket.is_empty() && !self.is_dead(bucket, now));
        living
            .map(|bucket| TableEntry {
                mac: MacAddress::from_key(bucket.key),
                port: bucket.port,
                age_s: if bucket.is_pinned() { 0 } else { now.saturating_sub(bucket.heard) },
                is_pinned: bucket.is_pinned(),
            })
            .collect()
    }

    fn changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    const fn is_dead(&self, bucket: &Bucket, now: Tick) -> bool {
        self.ageing_s != 0 && !bucket.is_pinned() && now.saturating_sub(bucket.heard) > self.ageing_s
    }

    const fn home(&self, key: u64) -> usize {
        ((key & KEY_MASK).wrapping_mul(self.secret) >> self.shift) as usize
    }

    /// `Ok`: the bucket of this key. `Err`: the empty bucket at the end of its chain.
    fn find(&self, key: u64) -> Result<usize, usize> {
        let mut index = self.home(key);
        loop {
            let bucket = &self.buckets[index];
            if bucket.is_for(key) {
                return Ok(index);
            }
            if bucket.is_empty() {
                return Err(index);
            }
            index = (index + 1) & self.mask;
        }
    }

    fn insert(&mut self, marked: u64, port: PortSlot, now: Tick) {
        if let Err(index) = self.find(marked & KEY_MASK) {
            self.buckets[index] = Bucket { key: marked, port, heard: now };
            self.used += 1;
            if marked & PINNED == 0 {
                *self.share(port) += 1;
            }
            self.changed();
        }
    }

    fn remove(&mut self, index: usize) {
        let gone = self.buckets[index];
        if !gone.is_pinned() {
            *self.share(gone.port) -= 1;
        }
        self.used -= 1;
        self.changed();
        // Move back whatever would no longer be reached from its home.
        let mut gap = index;
        let mut next = index;
        loop {
            next = (next + 1) & self.mask;
            let bucket = self.buckets[next];
            if bucket.is_empty() {
                break;
            }
            let distance = next.wrapping_sub(self.home(bucket.key)) & self.mask;
            if distance >= next.wrapping_sub(gap) & self.mask {
                self.buckets[gap] = bucket;
                gap = next;
            }
        }
        self.buckets[gap] = Bucket::default();
    }

    fn remove_if(&mut self, mut condemned: impl FnMut(&Bucket) -> bool) {
        let keys: Vec<u64> = self
            .buckets
            .iter()
            .filter(|bucket| !bucket.is_empty() && condemned(bucket))
            .map(|bucket| bucket.key & KEY_MASK)
            .collect();
        for key in keys {
            if let Ok(index) = self.find(key) {
                self.remove(index);
            }
        }
    }

    /// Looks for dead entries, at most once a tick: none can die within one.
    fn sweep(&mut self, now: Tick) {
        if self.ageing_s == 0 || self.swept == Some(now) {
            return;
        }
        self.swept = Some(now);
        let ageing_s = self.ageing_s;
        self.remove_if(|bucket| !bucket.is_pinned() && now.saturating_sub(bucket.heard) > ageing_s);
    }

    fn has_room(&mut self, now: Tick) -> bool {
        if self.used >= self.entries_max {
            self.sweep(now);
        }
        self.used < self.entries_max
    }

    fn has_share(&mut self, port: PortSlot, now: Tick) -> bool {
        if *self.share(port) as usize >= self.entries_a_port_max {
            self.sweep(now);
        }
        (*self.share(port) as usize) < self.entries_a_port_max
    }

    fn share(&mut self, port: PortSlot) -> &mut u32 {
        let index = port as usize;
        if index >= self.shares.len() {
            self.shares.resize(index + 1, 0);
        }
        &mut self.shares[index]
    }
}

impl fmt::Debug for MacTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MacTable")
            .field("used", &self.used)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The obvious table: a map that forgets the dead before every step.
    struct Model {
        map: BTreeMap<u64, (PortSlot, Tick, bool)>,
        entries_max: usize,
        entries_a_port_max: usize,
        ageing_s: u32,
    }

    impl Model {
        fn bury(&mut self, now: Tick) {
            let ageing_s = self.ageing_s;
            self.map.retain(|_, &mut (_, heard, is_pinned)| is_pinned || ageing_s == 0 || now - heard <= ageing_s);
        }

        fn share(&self, port: PortSlot) -> usize {
            self.map.values().filter(|&&(owner, _, is_pinned)| owner == port && !is_pinned).count()
        }

        fn learn(&mut self, key: u64, port: PortSlot, now: Tick) -> Learned {
            self.bury(now);
            let learned = match self.map.get(&key) {
                Some(&(owner, _, true)) => {
                    return if owner == port { Learned::Known } else { Learned::Refused };
                }
                Some(&(owner, _, false)) if owner == port => Learned::Known,
                _ if self.share(port) >= self.entries_a_port_max => return Learned::Full,
                Some(_) => Learned::Moved,
                None if self.map.len() >= self.entries_max => return Learned::Full,
                None => Learned::Added,
            };
            self.map.insert(key, (port, now, false));
            learned
        }

        fn pin(&mut self, key: u64, port: PortSlot, now: Tick) -> bool {
            self.bury(now);
            match self.map.get(&key) {
                Some(&(owner, _, true)) => return owner == port,
                Some(_) => {}
                None if self.map.len() >= self.entries_max => return false,
                None => {}
            }
            self.map.insert(key, (port, now, true));
            true
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Learn(u64, PortSlot),
        Lookup(u64),
        Pin(u64, PortSlot),
        Forget(PortSlot, bool),
        SetAgeing(u32),
        Wait(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Few stations and ports, so that they meet.
        let station = (1u64..24).prop_map(|number| number << 1);
        let step = prop_oneof![
            8 => (station.clone(), 0u32..4).prop_map(|(key, port)| Step::Learn(key, port)),
            8 => station.clone().prop_map(Step::Lookup),
            1 => (station, 0u32..4).prop_map(|(key, port)| Step::Pin(key, port)),
            1 => (0u32..4, any::<bool>()).prop_map(|(port, pinned)| Step::Forget(port, pinned)),
            1 => (0u32..6).prop_map(Step::SetAgeing),
            4 => (1u32..4).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn table_answers_as_the_obvious_one(steps in steps()) {
            let mut table = MacTable::new(12, 5, 3);
            let mut model = Model { map: BTreeMap::new(), entries_max: 12, entries_a_port_max: 5, ageing_s: 3 };
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Learn(key, port) => prop_assert_eq!(model.learn(key, port, now), table.learn(key, port, now)),
                    Step::Lookup(key) => {
                        model.bury(now);
                        prop_assert_eq!(model.map.get(&key).map(|entry| entry.0), table.lookup(key, now));
                    }
                    Step::Pin(key, port) => {
                        prop_assert_eq!(model.pin(key, port, now), table.pin(MacAddress::from_key(key), port, now));
                    }
                    Step::Forget(port, pinned) => {
                        model.map.retain(|_, entry| entry.0 != port || (entry.2 && !pinned));
                        table.forget(port, pinned);
                    }
                    Step::SetAgeing(ageing_s) => {
                        model.bury(now);
                        table.sweep(now);
                        model.ageing_s = ageing_s;
                        table.set_ageing(ageing_s);
                    }
                    Step::Wait(ticks) => now += ticks,
                }
                model.bury(now);
                let mut entries: Vec<_> =
                    table.entries(now).iter().map(|entry| (entry.mac.key(), entry.port, entry.is_pinned)).collect();
                entries.sort_unstable();
                let expected: Vec<_> =
                    model.map.iter().map(|(&key, &(port, _, is_pinned))| (key, port, is_pinned)).collect();
                prop_assert_eq!(expected, entries);
                let shares: u32 = table.shares.iter().sum();
                let pinned = table.buckets.iter().filter(|bucket| bucket.is_pinned()).count();
                prop_assert_eq!(table.used, shares as usize + pinned);
            }
        }
    }

    fn station(number: u64) -> u64 {
        2 | number << 8
    }

    #[test]
    fn full_table_takes_nobody_until_somebody_dies() {
        let mut table = MacTable::new(2, 2, 10);
        assert_eq!(Learned::Added, table.learn(station(1), 0, 0));
        assert_eq!(Learned::Added, table.learn(station(2), 1, 5));

        assert_eq!(Learned::Full, table.learn(station(3), 2, 10));
        assert_eq!(Learned::Added, table.learn(station(3), 2, 11));

        assert_eq!(None, table.lookup(station(1), 11));
        assert_eq!(Some(1), table.lookup(station(2), 11));
    }

    #[test]
    fn one_port_cannot_take_more_than_its_share() {
        let mut table = MacTable::new(100, 3, 0);

        let learned: Vec<_> = (1..=4).map(|number| table.learn(station(number), 7, 0)).collect();

        assert_eq!([Learned::Added, Learned::Added, Learned::Added, Learned::Full].as_slice(), learned);
        assert_eq!(Learned::Added, table.learn(station(4), 8, 0));
    }

    #[test]
    fn generation_changes_with_every_move_and_not_with_a_refresh() {
        let mut table = MacTable::new(8, 8, 10);
        assert_eq!(Learned::Added, table.learn(station(1), 0, 0));
        let before = table.generation();

        assert_eq!(Learned::Known, table.learn(station(1), 0, 1));
        assert_eq!(before, table.generation());
        assert_eq!(Learned::Moved, table.learn(station(1), 1, 1));

        assert_ne!(before, table.generation());
    }

    #[test]
    fn own_address_of_a_port_cannot_be_taken_over() {
        let mut table = MacTable::new(8, 8, 1);
        assert!(table.pin(MacAddress::from_key(station(1)), 0, 0));

        assert_eq!(Learned::Refused, table.learn(station(1), 1, 0));
        assert!(!table.pin(MacAddress::from_key(station(1)), 1, 0));

        assert_eq!(Some(0), table.lookup(station(1), 1000));
    }
}
