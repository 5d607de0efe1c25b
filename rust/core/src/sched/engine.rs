//! The coordinator's book: who wants what, what each thread had before, and what it has now.
//!
//! A turn of the engine is bounded: records of a page, tries of a copy, acts a second of a guest. What a guest publishes
//! faster than that is looked at later, and only its last word counts, so nothing is lost by waiting. Whatever leads to
//! a thread's end, leaving included, goes through `release`, which puts everything back that can be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CString;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::boost::{Board, Booster, Caller, Target};
use super::group::{Group, weigh};
use super::kernel::{Kernel, Processors, Schedule, Setting};
use super::policy::{
    Abilities, Class, Limits, Refusal, Room, Step, Wish, affinity, boosted, check, giving_way, ladder,
};
use super::{SchedCounter, ThreadInfo};
use crate::shm::counters::Block;
use crate::shm::sched::{HostPage, Record, Verdict};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// How often realtime threads are looked at for what they used.
const WATCH_NS: u64 = 100 * MS;
/// How long a thread that used too much is an ordinary one.
const PENALTY_NS: u64 = SECOND;
/// When a guest that was too quick, or a record that was not whole, is looked at again.
const AGAIN_NS: u64 = 5 * MS;
/// Least number of acts a guest may have saved up.
const BURST_MIN: u64 = 16;
/// How often a page is looked through before the host sleeps on it.
const LOOKS: u32 = 4;
const WHOLE_PPM: u64 = 1_000_000;
const NICE_MAX: i32 = 19;

/// Threads that some coordinator of this process has in hand: nobody else puts back what another applied.
static CLAIMED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Groups that some coordinator of this process weighs.
static WEIGHED: Mutex<BTreeSet<Group>> = Mutex::new(BTreeSet::new());

fn claim(tid: u32) -> bool {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).insert(tid)
}

fn disclaim(tid: u32) {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).remove(&tid);
}

#[derive(Clone, Copy)]
struct Boost {
    until_ns: u64,
    /// What the thread's turns said when it was raised.
    at_turns: u32,
}

struct Thread {
    wish: Wish,
    started: u64,
    before: Setting,
    schedule: Schedule,
    affinity: Processors,
    class: Option<Class>,
    is_running: bool,
    since_ns: u64,
    boost: Option<Boost>,
    penalty_until_ns: Option<u64>,
    /// Processor time used, and when that was.
    watched: Option<(u64, u64)>,
}

/// A guest's control group.
struct Weighed {
    group: Group,
    before: u32,
    now: u32,
}

/// A guest's page, and what came of it.
pub(super) struct Client {
    guest: String,
    pid: u32,
    page: HostPage,
    records: Vec<Record>,
    seen: Vec<u32>,
    refused: Vec<Option<Refusal>>,
    threads: BTreeMap<usize, Thread>,
    weighed: Option<Weighed>,
    acts: u64,
    filled_ns: u64,
    again_ns: Option<u64>,
    booster: Arc<Booster>,
}

impl Client {
    pub(super) fn booster(&self) -> Arc<Booster> {
        self.booster.clone()
    }
}

/// Everything a coordinator decides with.
pub(super) struct Engine<K: Kernel> {
    pub(super) kernel: K,
    pub(super) abilities: Abilities,
    limits: Limits,
    processors: u64,
    clients: HashMap<u64, Client>,
    caller: Arc<Caller>,
    block: Block,
    /// Boosts of clients that left.
    past_boosts: u64,
    /// The coordinator's own thread, which no guest may touch.
    own_tid: u32,
}

impl<K: Kernel> Engine<K> {
    pub(super) fn new(
        kernel: K,
        abilities: Abilities,
        limits: Limits,
        processors: u64,
        caller: Arc<Caller>,
        block: Block,
        own_tid: u32,
    ) -> Self {
        let clients = HashMap::new();
        Self { kernel, abilities, limits, processors, clients, caller, block, past_boosts: 0, own_tid }
    }

    fn count(&self, counter: SchedCounter, amount: u64) {
        self.block.add(counter as usize, amount);
    }

    pub(super) fn gauge(&self, counter: SchedCounter, value: u64) {
        self.block.set(counter as usize, value);
    }

    fn refuse(&mut self, id: u64, slot: usize, refusal: Refusal) {
        self.block.add(SchedCounter::COUNT + refusal as usize, 1);
        if let Some(client) = self.clients.get_mut(&id) {
            client.refused[slot] = Some(refusal);
        }
    }

    pub(super) fn join(&mut self, id: u64, guest: String, pid: u32, page: HostPage, now_ns: u64) -> Arc<Booster> {
        let records = page.records();
        for record in &records {
            record.tell(Verdict::default());
        }
        let booster = Arc::new(Booster::new(self.caller.clone(), self.limits.boost_from));
        let client = Client {
            guest,
            pid,
            seen: vec![0; records.len()],
            refused: vec![None; records.len()],
            page,
            records,
            threads: BTreeMap::new(),
            weighed: self.claim_group(pid),
            acts: self.burst(),
            filled_ns: now_ns,
            again_ns: None,
            booster: booster.clone(),
        };
        self.clients.insert(id, client);
        self.block.set(SchedCounter::Guests as usize, self.clients.len() as u64);
        self.serve(id, now_ns);
        booster
    }

    /// A guest goes: every thread of it that still lives gets back what it had.
    pub(super) fn leave(&mut self, id: u64) {
        self.release_all(id);
        if let Some(client) = self.clients.remove(&id) {
            if let Some(weighed) = client.weighed {
                disclaim_group(&weighed.group);
            }
            self.past_boosts += client.booster.board().boosts;
        }
        self.block.set(SchedCounter::Guests as usize, self.clients.len() as u64);
    }

    pub(super) fn leave_all(&mut self) {
        for id in self.ids() {
            self.leave(id);
        }
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.clients.keys().copied().collect()
    }

    pub(super) fn client(&self, id: u64) -> Option<&Client> {
        self.clients.get(&id)
    }

    /// New limits: everything is put back, then looked at anew under them.
    pub(super) fn limit(&mut self, limits: Limits, now_ns: u64) {
        self.limits = limits;
        for id in self.ids() {
            self.release_all(id);
            if let Some(client) = self.clients.get_mut(&id) {
                client.seen.fill(1);
                client.acts = client.acts.max(client.records.len() as u64);
                client.booster.board().from = limits.boost_from;
            }
        }
        for id in self.ids() {
            self.serve(id, now_ns);
        }
    }

    fn burst(&self) -> u64 {
        (u64::from(self.limits.rate) / 10).max(BURST_MIN)
    }

    /// Looks through a guest's page, as far as it may act now, and sleeps on it again.
    pub(super) fn serve(&mut self, id: u64, now_ns: u64) {
        self.refill(id, now_ns);
        for _ in 0..LOOKS {
            let Some(client) = self.clients.get_mut(&id) else { return };
            client.again_ns = None;
            if !self.limits.is_enabled {
                client.page.kick.mask();
                return;
            }
            client.page.kick.acknowledge();
            for slot in 0..client.records.len() {
                self.look(id, slot, now_ns);
            }
            let Some(client) = self.clients.get_mut(&id) else { return };
            if client.again_ns.is_some() {
                // Rings are of no use before then.
                client.page.kick.mask();
                return;
            }
            if client.page.kick.arm() {
                return;
            }
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.again_ns = Some(now_ns + AGAIN_NS);
        }
    }

    fn refill(&mut self, id: u64, now_ns: u64) {
        let (rate, burst) = (u64::from(self.limits.rate.max(1)), self.burst());
        let Some(client) = self.clients.get_mut(&id) else { return };
        let earned = (now_ns.saturating_sub(client.filled_ns)).min(SECOND) * rate / SECOND;
        if earned > 0 {
            client.acts = (client.acts + earned).min(burst.max(client.records.len() as u64));
            client.filled_ns = now_ns;
        }
    }

    /// Looks at one record. Costs a load where nothing changed.
    fn look(&mut self, id: u64, slot: usize, now_ns: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let record = client.records[slot].clone();
        let is_new = record.sequence() != client.seen[slot];
        let has_turned = client.threads.get(&slot).is_some_and(|thread| thread.has_turned(record.turns()));
        if !is_new && !has_turned {
            return;
        }
        if client.acts == 0 {
            client.again_ns = Some(now_ns + AGAIN_NS);
            self.refuse(id, slot, Refusal::TooOften);
            return;
        }
        client.acts -= 1;
        if !is_new {
            self.turn(id, slot, now_ns);
            self.weigh(id);
            return;
        }
        self.count(SchedCounter::Samples, 1);
        match record.sample() {
            None => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.again_ns = Some(now_ns + AGAIN_NS);
                }
                self.refuse(id, slot, Refusal::Unstable);
            }
            Some((sequence, wanted)) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.seen[slot] = sequence;
                    client.refused[slot] = None;
                }
                let outcome = if wanted.tid == 0 {
                    self.release(id, slot);
                    Ok(())
                } else {
                    check(&wanted, &self.limits).and_then(|wish| self.adopt(id, slot, wish, now_ns))
                };
                if let Err(refusal) = outcome {
                    self.release(id, slot);
                    self.refuse(id, slot, refusal);
                }
                self.weigh(id);
                self.tell(id, slot);
            }
        }
    }

    /// Takes a thread in hand, or its new wish.
    fn adopt(&mut self, id: u64, slot: usize, wish: Wish, now_ns: u64) -> Result<(), Refusal> {
        let Some(client) = self.clients.get(&id) else { return Ok(()) };
        let pid = client.pid;
        if client.threads.get(&slot).is_some_and(|thread| thread.wish.tid != wish.tid) {
            self.release(id, slot);
        }
        if wish.tid == self.own_tid {
            return Err(Refusal::ForgedThread);
        }
        let started = self.kernel.started(pid, wish.tid).ok_or(Refusal::ForgedThread)?;
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        if client.threads.get(&slot).is_some_and(|thread| thread.started != started) {
            self.release(id, slot);
        }
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        if let Some(thread) = client.threads.get_mut(&slot) {
            let wanted = affinity(&wish.affinity, &thread.before.affinity)?;
            if let Some(target) = take_target(&mut client.booster.board(), &thread.wish)
                && target.boosted_at.is_some()
            {
                thread.schedule = target.schedule;
            }
            thread.wish = wish;
            thread.penalty_until_ns = None;
            return self.apply(id, slot, wanted, now_ns);
        }
        if !claim(wish.tid) {
            return Err(Refusal::TakenThread);
        }
        let before = match self.kernel.setting(wish.tid) {
            Ok(before) => before,
            Err(error) => {
                disclaim(wish.tid);
                return Err(why(&error));
            }
        };
        let is_running = client.records[slot].is_running();
        let thread = Thread {
            wish,
            started,
            before,
            schedule: before.schedule,
            affinity: before.affinity,
            class: None,
            is_running,
            since_ns: now_ns,
            boost: None,
            penalty_until_ns: None,
            watched: None,
        };
        client.threads.insert(slot, thread);
        self.count_threads();
        let wanted = affinity(&wish.affinity, &before.affinity)?;
        self.apply(id, slot, wanted, now_ns)
    }

    /// The group of a guest's process, if it has one that nobody weighs yet.
    fn claim_group(&self, pid: u32) -> Option<Weighed> {
        let group = self.kernel.group(pid)?;
        let before = self.kernel.weight(&group).ok()?;
        let is_free = WEIGHED.lock().unwrap_or_else(PoisonError::into_inner).insert(group.clone());
        is_free.then_some(Weighed { group, before, now: before })
    }

    /// Gives a guest's group the weight that its most urgent thread is worth; one that polls while idle is the least.
    fn weigh(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.threads.is_empty() {
            return self.unweigh(id);
        }
        let Some(weighed) = &mut client.weighed else { return };
        let Some(steps) = client.threads.values().filter_map(Thread::steps).max() else { return };
        let wanted = weigh(weighed.before, steps);
        if wanted == weighed.now {
            return;
        }
        if self.kernel.set_weight(&weighed.group, wanted).is_ok() {
            weighed.now = wanted;
            self.count(SchedCounter::Weighed, 1);
            return;
        }
        self.count(SchedCounter::WeighFailed, 1);
        // Left alone from now on, with what it had before if that can be.
        self.unweigh(id);
        if let Some(weighed) = self.clients.get_mut(&id).and_then(|client| client.weighed.take()) {
            disclaim_group(&weighed.group);
        }
    }

    /// Puts back what a guest's group weighed, unless it is gone or somebody else has weighed it meanwhile.
    fn unweigh(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(weighed) = &mut client.weighed else { return };
        if weighed.now == weighed.before || self.kernel.weight(&weighed.group).ok() != Some(weighed.now) {
            return;
        }
        let is_done = self.kernel.set_weight(&weighed.group, weighed.before).is_ok();
        weighed.now = weighed.before;
        let counter = if is_done { SchedCounter::PutBack } else { SchedCounter::PutBackFailed };
        self.block.add(counter as usize, 1);
    }

    fn count_threads(&self) {
        let threads: usize = self.clients.values().map(|client| client.threads.len()).sum();
        self.block.set(SchedCounter::Threads as usize, threads as u64);
    }

    /// A thread went idle, or began to run.
    fn turn(&mut self, id: u64, slot: usize, now_ns: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let turns = client.records[slot].turns();
        let Some(thread) = client.threads.get_mut(&slot) else { return };
        let ends_boost = thread.ends_boost(turns);
        let has_changed = thread.is_running != (turns % 2 == 1);
        thread.is_running = turns % 2 == 1;
        if ends_boost {
            thread.boost = None;
        }
        let gives_way = has_changed && thread.wish.polls_when_idle && thread.boost.is_none();
        if !ends_boost && !gives_way {
            return;
        }
        let wanted = thread.affinity;
        if let Err(refusal) = self.apply(id, slot, wanted, now_ns) {
            self.refuse(id, slot, refusal);
        }
        self.tell(id, slot);
    }

    /// What is still to be given away when this thread's own part is not counted.
    fn room(&self, id: u64, slot: usize) -> Room {
        let others = self.clients.iter().flat_map(|(&client_id, client)| {
            let is_other = move |number: usize| client_id != id || number != slot;
            client.threads.iter().filter(move |&(&number, _)| is_other(number)).map(|(_, thread)| thread)
        });
        let (mut realtime, mut taken_ppm) = (0, 0);
        for thread in others {
            match thread.class {
                Some(Class::Realtime) => realtime += 1,
                Some(Class::Deadline) => taken_ppm += thread.wish.ppm(),
                _ => {}
            }
        }
        let all_ppm = self.processors * u64::from(self.limits.rt_share_permille) * WHOLE_PPM / 1000;
        Room { realtime: realtime < self.limits.rt_threads_max, deadline_ppm: all_ppm.saturating_sub(taken_ppm) }
    }

    /// Gives a thread the best there is for it now, if it has not got that.
    fn apply(&mut self, id: u64, slot: usize, wanted: Processors, now_ns: u64) -> Result<(), Refusal> {
        let room = self.room(id, slot);
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        let booster = client.booster.clone();
        // Held to the end: no signal boosts the thread between our decision and our act.
        let mut board = booster.board();
        let Some(thread) = client.threads.get_mut(&slot) else { return Ok(()) };
        if let Some(target) = take_target(&mut board, &thread.wish)
            && target.boosted_at.is_some()
        {
            thread.schedule = target.schedule;
        }
        thread.boost = None;
        let abilities = match thread.penalty_until_ns {
            Some(_) => Abilities { realtime: false, deadline: false, ..self.abilities },
            None => self.abilities,
        };
        let (steps, refusal) = if thread.wish.polls_when_idle && !thread.is_running {
            (vec![(Class::Idle, giving_way(&thread.before, abilities))], None)
        } else {
            ladder(&thread.wish, &thread.before, abilities, &self.limits, room)
        };
        let refusal = if thread.penalty_until_ns.is_some() { Some(Refusal::Overran) } else { refusal };
        let (first, outcome) = descend(&self.kernel, thread, &steps, &wanted);
        let mut acts = 0;
        if let Some((class, schedule, changes)) = first {
            acts = changes;
            thread.since_ns = if changes > 0 { now_ns } else { thread.since_ns };
            (thread.class, thread.schedule, thread.affinity) = (Some(class), schedule, wanted);
            let is_watched = matches!(schedule, Schedule::Realtime { .. });
            thread.watched = match (is_watched, thread.watched) {
                (true, None) => self.kernel.used_ns(client.pid, thread.wish.tid).map(|used| (used, now_ns)),
                (true, before) => before,
                (false, _) => None,
            };
        }
        if let (Some(vcpu), Some(schedule)) = (thread.wish.vcpu, boosted(&thread.before, self.abilities, &self.limits))
            && thread.class.is_some_and(|class| class < Class::Realtime)
            && let Ok(place) = CString::new(format!("/proc/{}/task/{}", client.pid, thread.wish.tid))
        {
            let record = client.records[slot].clone();
            let target = Target { tid: thread.wish.tid, place, schedule, record, boosted_at: None };
            board.targets.insert(vcpu, target);
        }
        drop(board);
        self.count(if acts > 0 { SchedCounter::Applied } else { SchedCounter::NoOps }, acts.max(1));
        match (first, outcome.or(refusal)) {
            (None, reason) => Err(reason.unwrap_or(Refusal::Machine)),
            (Some(_), Some(reason)) => {
                self.refuse(id, slot, reason);
                Ok(())
            }
            (Some(_), None) => Ok(()),
        }
    }

    fn tell(&self, id: u64, slot: usize) {
        let Some(client) = self.clients.get(&id) else { return };
        let thread = client.threads.get(&slot);
        let class = thread.and_then(|thread| thread.class);
        // Held to the end: a boost from now on tells of itself after this.
        let board = client.booster.board();
        let is_boosted = thread.is_some_and(|thread| board.is_boosted(thread.wish.tid));
        client.records[slot].tell(Verdict {
            applied: class.map_or(0, |class| class as u32 + 1),
            boosted: is_boosted.into(),
            refusal: client.refused[slot].map_or(0, |refusal| refusal as u32 + 1),
        });
    }

    /// Lets go of a thread and puts back what it had, if it still lives.
    fn release(&mut self, id: u64, slot: usize) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(thread) = client.threads.remove(&slot) else { return };
        let tid = thread.wish.tid;
        let mut board = client.booster.board();
        board.targets.retain(|_, target| target.tid != tid);
        if self.kernel.started(client.pid, tid) == Some(thread.started) {
            let Setting { schedule, is_reset_on_fork, affinity } = thread.before;
            // Out of a deadline first, which allows no processors of one's own; into one last.
            let is_deadline = matches!(schedule, Schedule::Deadline { .. });
            let pinned = if is_deadline { self.kernel.pin(tid, &affinity) } else { Ok(()) };
            let scheduled = self.kernel.schedule(tid, schedule, is_reset_on_fork);
            let is_done = pinned.and(scheduled).and(self.kernel.pin(tid, &affinity)).is_ok();
            let counter = if is_done { SchedCounter::PutBack } else { SchedCounter::PutBackFailed };
            self.block.add(counter as usize, 1);
        }
        drop(board);
        disclaim(tid);
        self.count_threads();
    }

    fn release_all(&mut self, id: u64) {
        let Some(client) = self.clients.get(&id) else { return };
        for slot in client.threads.keys().copied().collect::<Vec<_>>() {
            self.release(id, slot);
            self.tell(id, slot);
        }
        self.unweigh(id);
    }

    /// Does what time brings: ends boosts, watches realtime threads, looks again at who was too quick.
    pub(super) fn tick(&mut self, now_ns: u64) {
        for id in self.ids() {
            let Some(client) = self.clients.get(&id) else { continue };
            let is_due = client.again_ns.is_some_and(|again_ns| again_ns <= now_ns);
            let due: Vec<usize> =
                client.threads.iter().filter(|(_, thread)| thread.is_due(now_ns)).map(|(&slot, _)| slot).collect();
            for slot in due {
                self.attend(id, slot, now_ns);
            }
            if is_due {
                self.serve(id, now_ns);
            }
        }
        let boosts: u64 = self.clients.values().map(|client| client.booster.board().boosts).sum();
        self.block.set(SchedCounter::Boosts as usize, self.past_boosts + boosts);
    }

    /// Notes who was boosted since the last look.
    pub(super) fn gather_boosts(&mut self, now_ns: u64) {
        let until_ns = now_ns + u64::from(self.limits.boost_ms) * MS;
        *self.caller.is_called.lock().unwrap_or_else(PoisonError::into_inner) = false;
        for client in self.clients.values_mut() {
            let board = client.booster.board();
            for target in board.targets.values() {
                let found = client.threads.values_mut().find(|thread| thread.wish.tid == target.tid);
                if let (Some(at_turns), Some(thread)) = (target.boosted_at, found)
                    && thread.boost.is_none()
                {
                    thread.boost = Some(Boost { until_ns, at_turns });
                    thread.schedule = target.schedule;
                    if thread.ends_boost(target.record.turns()) {
                        // It has run already: its doorbell may have been heard before it was known to be boosted.
                        thread.boost = Some(Boost { until_ns: now_ns, at_turns });
                    }
                }
            }
        }
    }

    /// Whose time is up.
    fn attend(&mut self, id: u64, slot: usize, now_ns: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let pid = client.pid;
        let Some(thread) = client.threads.get_mut(&slot) else { return };
        if self.kernel.started(pid, thread.wish.tid) != Some(thread.started) {
            self.release(id, slot);
            self.tell(id, slot);
            return;
        }
        let mut is_changed = false;
        if thread.boost.is_some_and(|boost| boost.until_ns <= now_ns) {
            is_changed = true;
        }
        if thread.penalty_until_ns.is_some_and(|until_ns| until_ns <= now_ns) {
            thread.penalty_until_ns = None;
            is_changed = true;
            client.refused[slot] = None;
        }
        if let Some((used_before, at_ns)) = thread.watched
            && now_ns >= at_ns + WATCH_NS
            && let Some(used) = self.kernel.used_ns(pid, thread.wish.tid)
        {
            let granted = (now_ns - at_ns) * u64::from(self.limits.rt_share_permille) / 1000;
            thread.watched = Some((used, now_ns));
            if used.saturating_sub(used_before) > granted {
                thread.penalty_until_ns = Some(now_ns + PENALTY_NS);
                is_changed = true;
            }
        }
        if is_changed {
            let wanted = thread.affinity;
            if let Err(refusal) = self.apply(id, slot, wanted, now_ns) {
                self.refuse(id, slot, refusal);
            }
            self.weigh(id);
            self.tell(id, slot);
        }
    }

    /// When [`Self::tick`] has something to do next.
    pub(super) fn due_ns(&self) -> Option<u64> {
        let threads = self.clients.values().flat_map(|client| client.threads.values().filter_map(Thread::due_ns));
        threads.chain(self.clients.values().filter_map(|client| client.again_ns)).min()
    }

    /// Every thread in hand or refused, for people.
    pub(super) fn threads(&self, now_ns: u64) -> Vec<ThreadInfo> {
        let mut rows: Vec<ThreadInfo> = Vec::new();
        for client in self.clients.values() {
            for (slot, refusal) in client.refused.iter().enumerate() {
                let thread = client.threads.get(&slot);
                if thread.is_none() && refusal.is_none() {
                    continue;
                }
                rows.push(ThreadInfo {
                    guest: client.guest.clone(),
                    pid: client.pid,
                    record: slot,
                    tid: thread.map_or(0, |thread| thread.wish.tid),
                    wanted: thread.map_or("", |thread| thread.wish.class.name()),
                    applied: thread.and_then(|thread| thread.class).map_or("", Class::name),
                    is_running: thread.is_some_and(|thread| thread.is_running),
                    is_boosted: thread.is_some_and(|thread| thread.boost.is_some()),
                    age_ns: thread.map_or(0, |thread| now_ns.saturating_sub(thread.since_ns)),
                    weight: client.weighed.as_ref().map_or(0, |weighed| weighed.now),
                    refusal: refusal.map_or("", |refusal| Refusal::NAMES[refusal as usize]),
                });
            }
        }
        rows.sort_by(|a, b| (&a.guest, a.record).cmp(&(&b.guest, b.record)));
        rows
    }
}

impl Thread {
    /// By how many nice values it is more urgent than before. `None`: it does not run by weight.
    fn steps(&self) -> Option<i32> {
        nice_of(&self.before.schedule).zip(nice_of(&self.schedule)).map(|(before, now)| before - now)
    }

    /// Whether there is something to decide now that its turns say `turns`.
    fn has_turned(&self, turns: u32) -> bool {
        self.is_running != (turns % 2 == 1) || self.ends_boost(turns)
    }

    /// Whether it has been idle again since it was raised: also when it was idle then, and has run.
    fn ends_boost(&self, turns: u32) -> bool {
        turns.is_multiple_of(2) && self.boost.is_some_and(|boost| boost.at_turns != turns)
    }

    fn due_ns(&self) -> Option<u64> {
        let watch_ns = self.watched.map(|(_, at_ns)| at_ns + WATCH_NS);
        [self.boost.map(|boost| boost.until_ns), self.penalty_until_ns, watch_ns].into_iter().flatten().min()
    }

    fn is_due(&self, now_ns: u64) -> bool {
        self.due_ns().is_some_and(|due_ns| due_ns <= now_ns)
    }
}

fn disclaim_group(group: &Group) {
    WEIGHED.lock().unwrap_or_else(PoisonError::into_inner).remove(group);
}

/// What counts among ordinary threads; who runs only when nobody else wants to is the least of them.
const fn nice_of(schedule: &Schedule) -> Option<i32> {
    match schedule {
        Schedule::Fair { nice, .. } => Some(*nice),
        Schedule::Idle { .. } => Some(NICE_MAX),
        Schedule::Realtime { .. } | Schedule::Deadline { .. } => None,
    }
}

/// Takes a thread off the board, if it is on it.
fn take_target(board: &mut Board, wish: &Wish) -> Option<Target> {
    let vcpu = wish.vcpu?;
    if board.targets.get(&vcpu)?.tid == wish.tid { board.targets.remove(&vcpu) } else { None }
}

type Reached = (Class, Schedule, u64);

/// Takes the first step that the kernel grants; tells how many changes that took, and why a better one was not granted.
fn descend<K: Kernel>(
    kernel: &K,
    thread: &Thread,
    steps: &[Step],
    wanted: &Processors,
) -> (Option<Reached>, Option<Refusal>) {
    let tid = thread.wish.tid;
    let mut refusal = None;
    let mut pinned = thread.affinity;
    let mut changes = 0;
    let pin = |pinned: &mut Processors| -> io::Result<u64> {
        if pinned == wanted {
            return Ok(0);
        }
        kernel.pin(tid, wanted)?;
        *pinned = *wanted;
        Ok(1)
    };
    for &(class, schedule) in steps {
        let outcome = (|| -> io::Result<u64> {
            let mut done = 0;
            if matches!(schedule, Schedule::Deadline { .. }) {
                done += pin(&mut pinned)?;
            }
            if schedule != thread.schedule {
                kernel.schedule(tid, schedule, schedule.raises_privilege() || thread.before.is_reset_on_fork)?;
                done += 1;
            }
            Ok(done + pin(&mut pinned)?)
        })();
        match outcome {
            Ok(done) => return (Some((class, schedule, changes + done)), refusal),
            Err(error) => {
                changes += 1;
                refusal.get_or_insert(why(&error));
            }
        }
    }
    (None, refusal)
}

fn why(error: &io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Refusal::NotPermitted,
        Some(libc::EBUSY) => Refusal::NotAdmitted,
        Some(libc::ESRCH) => Refusal::ForgedThread,
        _ => Refusal::Machine,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::thread;

    use super::*;
    use crate::sched::COUNTERS;
    use crate::shm::counters::CounterFile;
    use crate::shm::doorbell::Doorbell;
    use crate::shm::region::Ram;
    use crate::shm::sched::{Declaration, FLAG_IDLE_POLLS, GuestPage, NO_VCPU, Publisher, sched_page_bytes};

    const PID: u32 = 100;
    const HOST: u32 = 99;
    const OFFSET: u32 = 4096;
    const RECORDS: u32 = 4;
    const ALL: Abilities = Abilities { realtime: true, deadline: true, nice: true, slice: true, weight: true };
    const ORDINARY: Setting = Setting {
        schedule: Schedule::Fair { is_batch: false, nice: 0, slice_ns: 0 },
        is_reset_on_fork: false,
        affinity: [0b11, 0, 0, 0],
    };

    /// Threads that exist nowhere else; every test has numbers of its own, for claims are the process's.
    #[derive(Default)]
    struct World {
        threads: BTreeMap<u32, (u32, u64, Setting)>,
        used_ns: u64,
        /// Each process's group, and what groups weigh.
        groups: BTreeMap<u32, Group>,
        weights: BTreeMap<Group, u32>,
        /// The one weight that no group gets.
        refused_weight: Option<u32>,
        changes: u32,
        /// Answer to every change.
        errno: i32,
    }

    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<World>>);

    impl Fake {
        fn world<T>(&self, with: impl FnOnce(&mut World) -> T) -> T {
            with(&mut self.0.lock().unwrap())
        }

        fn spawn(&self, tid: u32) {
            self.world(|world| world.threads.insert(tid, (PID, 1, ORDINARY)));
        }

        fn now(&self, tid: u32) -> Setting {
            self.world(|world| world.threads[&tid].2)
        }

        fn change(&self, tid: u32, change: impl FnOnce(&mut Setting)) -> io::Result<()> {
            self.world(|world| {
                if world.errno != 0 {
                    return Err(io::Error::from_raw_os_error(world.errno));
                }
                world.changes += 1;
                let found = world.threads.get_mut(&tid).ok_or(io::Error::from_raw_os_error(libc::ESRCH))?;
                change(&mut found.2);
                Ok(())
            })
        }
    }

    impl Kernel for Fake {
        fn started(&self, pid: u32, tid: u32) -> Option<u64> {
            self.world(|world| world.threads.get(&tid).filter(|found| found.0 == pid).map(|found| found.1))
        }

        fn setting(&self, tid: u32) -> io::Result<Setting> {
            Ok(self.now(tid))
        }

        fn schedule(&self, tid: u32, schedule: Schedule, is_reset_on_fork: bool) -> io::Result<()> {
            self.change(tid, |now| (now.schedule, now.is_reset_on_fork) = (schedule, is_reset_on_fork))
        }

        fn pin(&self, tid: u32, affinity: &Processors) -> io::Result<()> {
            self.change(tid, |now| now.affinity = *affinity)
        }

        fn used_ns(&self, _pid: u32, _tid: u32) -> Option<u64> {
            Some(self.world(|world| world.used_ns))
        }

        fn group(&self, pid: u32) -> Option<Group> {
            self.world(|world| world.groups.get(&pid).cloned())
        }

        fn weight(&self, group: &Group) -> io::Result<u32> {
            self.world(|world| world.weights.get(group).copied().ok_or_else(|| io::ErrorKind::NotFound.into()))
        }

        fn set_weight(&self, group: &Group, weight: u32) -> io::Result<()> {
            self.world(|world| {
                if world.errno != 0 {
                    return Err(io::Error::from_raw_os_error(world.errno));
                }
                if world.refused_weight == Some(weight) {
                    return Err(io::ErrorKind::PermissionDenied.into());
                }
                let found = world.weights.get_mut(group).ok_or(io::ErrorKind::NotFound)?;
                *found = weight;
                Ok(())
            })
        }
    }

    struct Scene {
        fake: Fake,
        engine: Engine<Fake>,
        file: CounterFile,
        records: Vec<Publisher>,
        ram: Arc<Ram>,
        now_ns: u64,
    }

    impl Scene {
        fn new(limits: Limits) -> Self {
            Self::of(Fake::default(), limits)
        }

        /// A scene in a world that has something in it already.
        fn of(fake: Fake, limits: Limits) -> Self {
            let ram = Ram::create("test", 1 << 16).unwrap();
            let page = Arc::new(GuestPage::create(ram.clone(), OFFSET, RECORDS).unwrap());
            let records = (0..RECORDS).map(|index| page.publisher(index).unwrap()).collect();
            let file = CounterFile::create(None, 1 << 16).unwrap();
            let block = file.allocate("sched", "", COUNTERS).unwrap();
            let bell = Arc::new(Doorbell::create().unwrap());
            let caller = Arc::new(Caller { is_called: Mutex::new(false), bell });
            let mut engine = Engine::new(fake.clone(), ALL, limits, 1, caller, block, HOST);
            let shown = HostPage::open(ram.clone(), OFFSET, sched_page_bytes(RECORDS)).unwrap();
            engine.join(1, "guest".into(), PID, shown, 0);
            Self { fake, engine, file, records, ram, now_ns: 0 }
        }

        fn declare(&mut self, record: usize, declaration: &Declaration) {
            let _ = self.records[record].declare(declaration);
            self.engine.serve(1, self.now_ns);
        }

        fn pass(&mut self, ns: u64) {
            self.now_ns += ns;
            self.engine.gather_boosts(self.now_ns);
            self.engine.tick(self.now_ns);
        }

        fn counted(&self, counter: SchedCounter) -> u64 {
            self.file.reader().blocks()[0].values[counter as usize]
        }

        fn refused(&self, refusal: Refusal) -> u64 {
            self.file.reader().blocks()[0].values[SchedCounter::COUNT + refusal as usize]
        }
    }

    fn wants(tid: u32, class: Class) -> Declaration {
        Declaration { tid, class: class as u32, vcpu: NO_VCPU, ..Declaration::default() }
    }

    fn realtime(priority: u32) -> Schedule {
        Schedule::Realtime { is_fifo: false, priority }
    }

    #[test]
    fn thread_gets_what_it_wants_and_has_what_it_had_when_its_guest_leaves() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.spawn(1001);

        scene.declare(0, &Declaration { affinity: [0b10, 0, 0, 0], ..wants(1001, Class::Realtime) });
        let given = scene.fake.now(1001);
        scene.engine.leave(1);

        assert_eq!(Setting { schedule: realtime(1), is_reset_on_fork: true, affinity: [0b10, 0, 0, 0] }, given);
        assert_eq!(ORDINARY, scene.fake.now(1001));
        assert_eq!((1, 0), (scene.counted(SchedCounter::PutBack), scene.counted(SchedCounter::Threads)));
    }

    fn scene_with_group(path: &str) -> (Scene, Group) {
        let group = Group(path.into());
        let world = Fake::default();
        world.world(|world| {
            world.groups.insert(PID, group.clone());
            world.weights.insert(group.clone(), 200);
        });
        (Scene::of(world, Limits::default()), group)
    }

    #[test]
    fn group_of_a_guest_weighs_what_its_most_urgent_thread_is_worth() {
        //! Ten nice values more are worth 9.3 times. A thread that polls while idle counts least, and with the last
        //! thread goes the weight.
        let (mut scene, group) = scene_with_group("/weighed/most-urgent");
        for (record, (tid, class)) in [(2001, Class::Batch), (2002, Class::Interactive)].into_iter().enumerate() {
            scene.fake.spawn(tid);
            scene.declare(record, &wants(tid, class));
        }
        let weight = |scene: &Scene| scene.fake.world(|world| world.weights[&group]);
        let both = weight(&scene);
        scene.declare(1, &Declaration { flags: FLAG_IDLE_POLLS, ..wants(2002, Class::Interactive) });
        let one_idles = weight(&scene);
        let must_ring = scene.records[1].running();
        scene.engine.serve(1, 0);
        let told = scene.engine.threads(0)[0].weight;
        for record in 0..2 {
            scene.declare(record, &Declaration::default());
        }

        assert_eq!((true, [1863, 66, 1863, 200]), (must_ring, [both, one_idles, told, weight(&scene)]));
        assert_eq!(4, scene.counted(SchedCounter::Weighed));
    }

    #[test]
    fn group_gets_back_what_it_weighed_unless_somebody_else_weighed_it() {
        for (other, expected) in [(None, 200), (Some(300), 300)] {
            let (mut scene, group) = scene_with_group(&format!("/weighed/back/{expected}"));
            scene.fake.spawn(2011);
            scene.declare(0, &wants(2011, Class::Interactive));
            if let Some(weight) = other {
                scene.fake.world(|world| world.weights.insert(group.clone(), weight));
            }

            scene.engine.leave(1);

            assert_eq!(expected, scene.fake.world(|world| world.weights[&group]));
        }
    }

    #[test]
    fn group_is_weighed_by_one_guest_and_free_again_when_it_leaves() {
        let (mut first, group) = scene_with_group("/weighed/shared");
        let (mut second, _) = scene_with_group("/weighed/shared");
        let tids = [2021, 2022];
        for (scene, tid) in [&mut first, &mut second].into_iter().zip(tids) {
            scene.fake.spawn(tid);
            scene.declare(0, &wants(tid, Class::Interactive));
        }
        let told = [first.engine.threads(0)[0].weight, second.engine.threads(0)[0].weight];
        first.engine.leave(1);
        let (third, _) = scene_with_group("/weighed/shared");

        assert_eq!([1863, 0], told);
        assert!(third.engine.client(1).is_some_and(|client| client.weighed.is_some()));
        assert_eq!(200, second.fake.world(|world| world.weights[&group]));
    }

    #[test]
    fn group_that_cannot_be_weighed_any_more_gets_back_what_it_had() {
        let (mut scene, group) = scene_with_group("/weighed/once");
        scene.fake.spawn(2041);
        scene.declare(0, &wants(2041, Class::Batch));
        scene.fake.world(|world| world.refused_weight = Some(1863));

        scene.declare(0, &wants(2041, Class::Interactive));

        assert_eq!(200, scene.fake.world(|world| world.weights[&group]));
        assert_eq!((1, 0), (scene.counted(SchedCounter::WeighFailed), scene.engine.threads(0)[0].weight));
    }

    #[test]
    fn group_that_cannot_be_weighed_is_told_and_left_alone() {
        let (mut scene, group) = scene_with_group("/weighed/refused");
        scene.fake.spawn(2031);
        scene.fake.world(|world| world.weights.remove(&group));

        scene.declare(0, &wants(2031, Class::Interactive));

        let counted = [SchedCounter::Weighed, SchedCounter::WeighFailed].map(|counter| scene.counted(counter));
        assert_eq!(([0, 1], 0), (counted, scene.engine.threads(0)[0].weight));
    }

    #[test]
    fn same_wish_again_changes_nothing() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.spawn(1011);
        scene.declare(0, &wants(1011, Class::Batch));
        let before = scene.fake.world(|world| world.changes);

        scene.declare(0, &Declaration { rt_priority: 3, ..wants(1011, Class::Batch) });

        assert_eq!((before, 1), (scene.fake.world(|world| world.changes), scene.counted(SchedCounter::NoOps)));
    }

    #[test]
    fn thread_of_another_process_or_of_the_host_is_refused() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.world(|world| world.threads.insert(1021, (PID + 1, 1, ORDINARY)));
        scene.fake.world(|world| world.threads.insert(HOST, (PID, 1, ORDINARY)));

        scene.declare(0, &wants(1021, Class::Idle));
        scene.declare(1, &wants(HOST, Class::Idle));
        scene.declare(2, &wants(u32::MAX, Class::Idle));

        assert_eq!((3, 0), (scene.refused(Refusal::ForgedThread), scene.fake.world(|world| world.changes)));
        assert_eq!(Refusal::ForgedThread as u32 + 1, scene.records[0].verdict().refusal);
    }

    #[test]
    fn number_that_was_given_to_another_thread_meanwhile_is_not_touched() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.spawn(1031);
        scene.declare(0, &wants(1031, Class::Idle));
        scene.fake.world(|world| world.threads.insert(1031, (PID, 2, ORDINARY)));

        scene.engine.leave(1);

        assert_eq!((ORDINARY, 0), (scene.fake.now(1031), scene.counted(SchedCounter::PutBack)));
    }

    #[test]
    fn thread_that_is_in_hand_is_nobody_elses() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.spawn(1041);
        scene.declare(0, &wants(1041, Class::Batch));

        scene.declare(1, &wants(1041, Class::Realtime));

        assert_eq!(1, scene.refused(Refusal::TakenThread));
        assert_eq!(Schedule::Fair { is_batch: true, nice: 5, slice_ns: 0 }, scene.fake.now(1041).schedule);
    }

    #[test]
    fn thread_that_polls_when_idle_gives_way_until_it_runs() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.spawn(1051);
        scene.declare(0, &Declaration { flags: FLAG_IDLE_POLLS, ..wants(1051, Class::Realtime) });
        let idle = scene.fake.now(1051).schedule;

        let must_ring = scene.records[0].running();
        scene.engine.serve(1, 0);

        assert_eq!((Schedule::Idle { nice: 0 }, true), (idle, must_ring));
        assert_eq!(realtime(1), scene.fake.now(1051).schedule);
    }

    #[test]
    fn turns_that_change_nothing_need_no_doorbell() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.spawn(1061);
        scene.declare(0, &wants(1061, Class::Realtime));

        let rings = [scene.records[0].running(), scene.records[0].idle(), scene.records[0].running()];

        assert_eq!([false; 3], rings);
    }

    #[test]
    fn realtime_thread_that_takes_more_than_its_share_is_an_ordinary_one_for_a_while() {
        let mut scene = Scene::new(Limits { rt_share_permille: 500, ..Limits::default() });
        scene.fake.spawn(1071);
        scene.declare(0, &wants(1071, Class::Realtime));

        scene.fake.world(|world| world.used_ns += WATCH_NS * 6 / 10);
        scene.pass(WATCH_NS);
        let punished = scene.fake.now(1071).schedule;
        scene.pass(PENALTY_NS);

        assert!(matches!(punished, Schedule::Fair { .. }), "{punished:?}");
        assert_eq!((1, realtime(1)), (scene.refused(Refusal::Overran), scene.fake.now(1071).schedule));
    }

    #[test]
    fn guest_that_never_stops_changing_is_acted_on_so_often_and_no_more() {
        let mut scene = Scene::new(Limits { rate: 100, ..Limits::default() });
        scene.fake.spawn(1081);

        for turn in 0..1000 {
            scene.declare(0, &wants(1081, if turn % 2 == 0 { Class::Idle } else { Class::Batch }));
        }
        let acted = scene.counted(SchedCounter::Samples);
        scene.pass(SECOND);

        assert_eq!(BURST_MIN, acted);
        assert_eq!(Schedule::Fair { is_batch: true, nice: 5, slice_ns: 0 }, scene.fake.now(1081).schedule);
        assert!(scene.refused(Refusal::TooOften) > 0);
    }

    #[test]
    fn record_left_half_written_is_given_up_and_looked_at_again() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.spawn(1091);
        let view = scene.ram.at(OFFSET + 0x300, 4).unwrap().cast::<std::sync::atomic::AtomicU32>();
        // SAFETY: the sequence of the first record, in a region this test holds.
        unsafe { view.as_ref() }.store(3, std::sync::atomic::Ordering::Relaxed);

        scene.engine.serve(1, 0);
        let refused = scene.refused(Refusal::Unstable);
        let _ = scene.records[0].declare(&wants(1091, Class::Batch));
        scene.pass(AGAIN_NS);

        assert_eq!(
            (1, 5),
            (
                refused,
                match scene.fake.now(1091).schedule {
                    Schedule::Fair { nice, .. } => nice,
                    _ => -1,
                }
            )
        );
    }

    #[test]
    fn switched_off_puts_everything_back_and_on_applies_it_again() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.spawn(1101);
        scene.declare(0, &wants(1101, Class::Realtime));

        scene.engine.limit(Limits { is_enabled: false, ..Limits::default() }, 0);
        let off = scene.fake.now(1101);
        scene.engine.limit(Limits::default(), 0);

        assert_eq!((ORDINARY, realtime(1)), (off, scene.fake.now(1101).schedule));
    }

    #[test]
    fn kernel_that_refuses_everything_is_told_and_the_thread_let_go() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.spawn(1111);
        scene.fake.world(|world| world.errno = libc::EPERM);

        scene.declare(0, &wants(1111, Class::Deadline));
        scene.declare(0, &wants(1111, Class::Interactive));

        assert_eq!(1, scene.refused(Refusal::NotPermitted));
        assert_eq!((0, 0), (scene.records[0].verdict().applied, scene.counted(SchedCounter::Threads)));
    }

    #[test]
    fn deadlines_together_take_no_more_than_their_share() {
        let mut scene = Scene::new(Limits { rt_share_permille: 500, ..Limits::default() });
        scene.fake.spawn(1121);
        scene.fake.spawn(1122);
        let part = |tid| Declaration { runtime_ns: 300_000, deadline_ns: 1_000_000, ..wants(tid, Class::Deadline) };

        scene.declare(0, &part(1121));
        scene.declare(1, &part(1122));

        assert!(matches!(scene.fake.now(1121).schedule, Schedule::Deadline { .. }));
        assert_eq!((realtime(1), 1), (scene.fake.now(1122).schedule, scene.refused(Refusal::RealtimeShare)));
    }

    #[test]
    fn urgent_signal_raises_the_thread_that_serves_it_until_it_has_run_and_is_idle() {
        let mut scene = Scene::new(Limits::default());
        let (tids, tid) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let sleeper = thread::spawn(move || {
            // SAFETY: a plain question about ourselves.
            tids.send(unsafe { libc::gettid() }.cast_unsigned()).unwrap();
            let _ = stopped.recv();
        });
        let tid = tid.recv().unwrap();
        let pid = std::process::id();
        scene.fake.world(|world| world.threads.insert(tid, (pid, 1, ORDINARY)));
        scene.engine.clients.get_mut(&1).unwrap().pid = pid;
        scene.declare(0, &Declaration { vcpu: 2, ..wants(tid, Class::Normal) });
        let booster = scene.engine.client(1).unwrap().booster();
        // Gentle enough that it needs no privilege.
        booster.board().targets.get_mut(&2).unwrap().schedule = ORDINARY.schedule;

        let boosts = [booster.boost(2, 5), booster.boost(3, 7), booster.boost(2, 6), booster.boost(2, 7)];
        scene.pass(0);
        let raised = scene.engine.threads(0);
        let rings = [scene.records[0].running(), scene.records[0].idle()];
        scene.engine.serve(1, 0);
        stop.send(()).unwrap();
        sleeper.join().unwrap();

        assert_eq!(([false, false, true, false], [false, true]), (boosts, rings));
        assert_eq!((true, false), (raised[0].is_boosted, scene.engine.threads(0)[0].is_boosted));
        assert_eq!(1, scene.counted(SchedCounter::Boosts));
    }

    #[test]
    fn boost_is_over_at_once_whose_thread_ran_and_was_heard_before_anybody_knew_of_it() {
        let mut scene = Scene::new(Limits::default());
        scene.fake.spawn(1151);
        scene.declare(0, &Declaration { vcpu: 0, ..wants(1151, Class::Normal) });
        let booster = scene.engine.client(1).unwrap().booster();
        booster.board().targets.get_mut(&0).unwrap().boosted_at = Some(0);
        let _ = [scene.records[0].running(), scene.records[0].idle()];
        scene.engine.serve(1, 0);

        scene.pass(0);

        let board = booster.board();
        assert_eq!((false, None), (scene.engine.threads(0)[0].is_boosted, board.targets[&0].boosted_at));
    }

    #[test]
    fn boost_that_the_guest_does_not_end_is_over_after_its_time() {
        let mut scene = Scene::new(Limits { boost_ms: 20, ..Limits::default() });
        scene.fake.spawn(1141);
        scene.declare(0, &Declaration { vcpu: 0, ..wants(1141, Class::Normal) });
        let booster = scene.engine.client(1).unwrap().booster();
        booster.board().targets.get_mut(&0).unwrap().boosted_at = Some(0);

        scene.pass(0);
        let during = scene.engine.threads(0)[0].is_boosted;
        scene.pass(20 * MS);

        assert_eq!((true, false), (during, scene.engine.threads(0)[0].is_boosted));
    }
}
