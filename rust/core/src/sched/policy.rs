//! What a thread gets of what it wants: checks and choices, without touching anything.
//!
//! ```text
//!   Declaration ── check ──▶ Wish ── ladder ──▶ deadline ▸ realtime ▸ interactive ▸ normal ▸ batch ▸ idle
//!   (a copy of what      or a        (abilities,   first step that is possible here; what stood in the way
//!    the guest wrote)    Refusal      limits, room)  of the wish itself is told as its refusal
//! ```
//!
//! Two rules hold everywhere. Nothing is done that could not be put back: without privilege a thread can be made nicer
//! but never less nice again, so it is not made nicer. And a guest can only narrow where its threads may run, never
//! leave what its operator gave them. Source: sched(7), sched_setattr(2).

pub use crate::shm::sched::AFFINITY_WORDS;
use crate::shm::sched::{Declaration, FLAG_FIFO, FLAG_IDLE_POLLS, NO_VCPU};

use super::kernel::{Processors, Schedule, Setting};

/// Least runtime of a deadline that the kernel takes, ns.
const RUNTIME_MIN_NS: u64 = 1_024;
/// Least period, ns.
const PERIOD_MIN_NS: u64 = 100_000;
/// Longest period, ns.
const PERIOD_MAX_NS: u64 = 4_000_000_000;
/// Priorities of realtime threads.
const RT_PRIORITY_MAX: u32 = 99;
/// vCPUs that can be named.
const VCPUS: u32 = 64;
/// Slice of an interactive thread, ns: short, so that it is served soon.
const INTERACTIVE_SLICE_NS: u64 = 300_000;
/// Nice value of a class before the thread's own is added.
const INTERACTIVE_NICE: i32 = -10;
const BATCH_NICE: i32 = 5;
/// Millionths.
const WHOLE_PPM: u64 = 1_000_000;

/// What a thread asks to be, from the most patient to the most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Class {
    /// When nobody else wants to.
    Idle,
    /// In no hurry.
    Batch,
    /// As the kernel does it.
    Normal,
    /// Soon.
    Interactive,
    /// Before all of the above.
    Realtime,
    /// So much in each period.
    Deadline,
}

impl Class {
    /// Names in the order of their numbers.
    pub const NAMES: [&'static str; 6] = ["idle", "batch", "normal", "interactive", "realtime", "deadline"];

    /// By number.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Idle,
            1 => Self::Batch,
            2 => Self::Normal,
            3 => Self::Interactive,
            4 => Self::Realtime,
            5 => Self::Deadline,
            _ => return None,
        })
    }

    /// By name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let number = Self::NAMES.iter().position(|&known| known == name)?;
        Self::from_number(u32::try_from(number).ok()?)
    }

    /// Of this class.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $refusal:ident = $name:literal,)+) => {
        /// Why a thread did not get what it wants.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Refusal { $($(#[$doc])* $refusal,)+ }

        impl Refusal {
            /// Names in the order of their numbers.
            pub const NAMES: [&'static str; [$($name,)+].len()] = [$($name,)+];
        }
    };
}

refusals! {
    /// No thread of the guest's process has this number.
    ForgedThread = "forged_thread",
    /// Somebody declared this thread before.
    TakenThread = "taken_thread",
    /// There is no such class.
    ClassOutOfRange = "class_out_of_range",
    /// The operator grants no class as high.
    ClassNotGranted = "class_not_granted",
    /// A nice value outside -20..=19.
    NiceOutOfRange = "nice_out_of_range",
    /// A realtime priority above 99.
    PriorityOutOfRange = "priority_out_of_range",
    /// A vCPU above 63.
    VcpuOutOfRange = "vcpu_out_of_range",
    /// A flag that nobody knows.
    UnknownFlags = "unknown_flags",
    /// Not runtime <= deadline <= period, or outside what the kernel takes.
    ContradictoryDeadline = "contradictory_deadline",
    /// None of the processors is one that the thread may use.
    AffinityOutOfRange = "affinity_out_of_range",
    /// A deadline is kept on every processor or not at all.
    AffinityWithDeadline = "affinity_with_deadline",
    /// The record changed through all tries.
    Unstable = "unstable",
    /// As many realtime threads as there may be are there.
    RealtimeThreads = "realtime_threads",
    /// The share of all processors that realtime and deadlines may have is given away.
    RealtimeShare = "realtime_share",
    /// A realtime thread used more than its share, and is an ordinary one for a while.
    Overran = "overran",
    /// This host lacks the privilege.
    NotPermitted = "not_permitted",
    /// The kernel has no such bandwidth left.
    NotAdmitted = "not_admitted",
    /// It could not be put back.
    NoWayBack = "no_way_back",
    /// The kernel refused for another reason.
    Machine = "machine",
    /// The guest changed its mind faster than the host acts; the last word counts, later.
    TooOften = "too_often",
}

/// What the operator grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Off: everything is put back, and nothing applied.
    pub is_enabled: bool,
    /// Highest class a guest may have.
    pub highest: Class,
    /// Highest priority of a guest's realtime thread; the host's own is higher.
    pub rt_priority_max: u32,
    /// Realtime threads of all guests together.
    pub rt_threads_max: u32,
    /// Share of one processor that a realtime thread may use, and of all that deadlines may reserve, 1 to 950 ‰.
    pub rt_share_permille: u32,
    /// Least nice value.
    pub nice_min: i32,
    /// Signals of this priority and above boost; 8: none does.
    pub boost_from: u32,
    /// How long a boost lasts that the guest does not end, ms.
    pub boost_ms: u32,
    /// Times a second that the host acts on a guest's transitions.
    pub rate: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            is_enabled: true,
            highest: Class::Deadline,
            rt_priority_max: 40,
            rt_threads_max: 4,
            rt_share_permille: 500,
            nice_min: -15,
            boost_from: 6,
            boost_ms: 20,
            rate: 2_000,
        }
    }
}

/// What this host can do, as it found out by trying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// `SCHED_FIFO` and `SCHED_RR`.
    pub realtime: bool,
    /// `SCHED_DEADLINE`.
    pub deadline: bool,
    /// Less nice than before, and so any nice value, for the way back is open.
    pub nice: bool,
    /// A slice of one's own for an ordinary thread.
    pub slice: bool,
    /// Weights of control groups.
    pub weight: bool,
}

/// What is still to be given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// There may be one more realtime thread.
    pub realtime: bool,
    /// Millionths of a processor for deadlines.
    pub deadline_ppm: u64,
}

/// A declaration that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The thread.
    pub tid: u32,
    /// What it asks to be.
    pub class: Class,
    /// Added to the class's nice value.
    pub nice: i32,
    /// Of realtime.
    pub rt_priority: u32,
    /// Until it blocks.
    pub is_fifo: bool,
    /// Gives way while idle.
    pub polls_when_idle: bool,
    /// Whose interrupts it serves.
    pub vcpu: Option<u32>,
    /// Of deadline, ns.
    pub runtime_ns: u64,
    /// ns.
    pub deadline_ns: u64,
    /// ns.
    pub period_ns: u64,
    /// Where it wants to run; all zero: anywhere it may.
    pub affinity: Processors,
}

impl Wish {
    /// Share of a processor that its deadline reserves, millionths, rounded up.
    #[must_use]
    pub fn ppm(&self) -> u64 {
        if self.class == Class::Deadline && self.period_ns != 0 {
            (self.runtime_ns * WHOLE_PPM).div_ceil(self.period_ns)
        } else {
            0
        }
    }
}

/// Makes sense of a declaration.
///
/// # Errors
///
/// What is wrong with it.
pub fn check(wanted: &Declaration, limits: &Limits) -> Result<Wish, Refusal> {
    let class = Class::from_number(wanted.class).ok_or(Refusal::ClassOutOfRange)?;
    if class > limits.highest {
        return Err(Refusal::ClassNotGranted);
    }
    if wanted.flags & !(FLAG_FIFO | FLAG_IDLE_POLLS) != 0 {
        return Err(Refusal::UnknownFlags);
    }
    if !(-20..=19).contains(&wanted.nice) {
        return Err(Refusal::NiceOutOfRange);
    }
    if wanted.rt_priority > RT_PRIORITY_MAX {
        return Err(Refusal::PriorityOutOfRange);
    }
    if wanted.vcpu != NO_VCPU && wanted.vcpu >= VCPUS {
        return Err(Refusal::VcpuOutOfRange);
    }
    let period_ns = if wanted.period_ns == 0 { wanted.deadline_ns } else { wanted.period_ns };
    let is_in_order = RUNTIME_MIN_NS <= wanted.runtime_ns
        && wanted.runtime_ns <= wanted.deadline_ns
        && wanted.deadline_ns <= period_ns
        && (PERIOD_MIN_NS..=PERIOD_MAX_NS).contains(&period_ns);
    if class == Class::Deadline && !is_in_order {
        return Err(Refusal::ContradictoryDeadline);
    }
    Ok(Wish {
        tid: wanted.tid,
        class,
        nice: wanted.nice,
        rt_priority: wanted.rt_priority.clamp(1, limits.rt_priority_max.max(1)),
        is_fifo: wanted.flags & FLAG_FIFO != 0,
        polls_when_idle: wanted.flags & FLAG_IDLE_POLLS != 0,
        vcpu: (wanted.vcpu != NO_VCPU).then_some(wanted.vcpu),
        runtime_ns: wanted.runtime_ns,
        deadline_ns: wanted.deadline_ns,
        period_ns,
        affinity: wanted.affinity,
    })
}

/// Where a thread may run: what it wants, of what it had.
///
/// # Errors
///
/// Nothing is left.
pub fn affinity(wanted: &Processors, before: &Processors) -> Result<Processors, Refusal> {
    if wanted.iter().all(|&bits| bits == 0) {
        return Ok(*before);
    }
    let mut both = *wanted;
    for (bits, had) in both.iter_mut().zip(before) {
        *bits &= had;
    }
    if both.iter().all(|&bits| bits == 0) { Err(Refusal::AffinityOutOfRange) } else { Ok(both) }
}

/// One way to schedule a thread, and the class it amounts to.
pub type Step = (Class, Schedule);

/// The ways to fulfil a wish, best first, each possible as far as can be known; the last always is. With them what
/// stands in the way of the wish itself.
#[must_use]
pub fn ladder(
    wish: &Wish,
    before: &Setting,
    abilities: Abilities,
    limits: &Limits,
    room: Room,
) -> (Vec<Step>, Option<Refusal>) {
    let mut steps = Vec::with_capacity(4);
    let mut refusal = None;
    let mut note = |reason| {
        refusal.get_or_insert(reason);
    };
    if wish.class == Class::Deadline {
        if !abilities.deadline {
            note(Refusal::NotPermitted);
        } else if wish.affinity.iter().any(|&bits| bits != 0) {
            note(Refusal::AffinityWithDeadline);
        } else if wish.ppm() > room.deadline_ppm {
            note(Refusal::RealtimeShare);
        } else {
            let (runtime_ns, deadline_ns, period_ns) = (wish.runtime_ns, wish.deadline_ns, wish.period_ns);
            steps.push((Class::Deadline, Schedule::Deadline { runtime_ns, deadline_ns, period_ns }));
        }
    }
    if wish.class >= Class::Realtime {
        if !abilities.realtime {
            note(Refusal::NotPermitted);
        } else if !room.realtime {
            note(Refusal::RealtimeThreads);
        } else {
            let (is_fifo, priority) = (wish.is_fifo, wish.rt_priority);
            steps.push((Class::Realtime, Schedule::Realtime { is_fifo, priority }));
        }
    }
    let had = nice_of(before.schedule);
    let nice = |base: i32| {
        let wanted = (base + wish.nice).clamp(limits.nice_min, 19);
        if abilities.nice || wanted == had { Ok(wanted) } else { Err(had) }
    };
    let mut fair = |class: Class, base: i32, slice_ns: u64, is_batch: bool| {
        let nice = nice(base).unwrap_or_else(|had| {
            note(Refusal::NoWayBack);
            had
        });
        steps.push((class, Schedule::Fair { is_batch, nice, slice_ns }));
    };
    if wish.class >= Class::Interactive {
        let slice_ns = if abilities.slice { INTERACTIVE_SLICE_NS } else { 0 };
        fair(Class::Interactive, INTERACTIVE_NICE, slice_ns, false);
    }
    match wish.class {
        Class::Idle if abilities.nice => steps.push((Class::Idle, Schedule::Idle { nice: had })),
        Class::Idle => {
            fair(Class::Batch, had, 0, true);
            note(Refusal::NoWayBack);
        }
        Class::Batch => fair(Class::Batch, BATCH_NICE, 0, true),
        Class::Normal => fair(Class::Normal, 0, 0, false),
        Class::Interactive | Class::Realtime | Class::Deadline => {}
    }
    (steps, refusal)
}

/// How a thread waits for work by polling: only when nobody else wants the processor.
#[must_use]
pub fn giving_way(before: &Setting, abilities: Abilities) -> Schedule {
    let nice = nice_of(before.schedule);
    if abilities.nice { Schedule::Idle { nice } } else { Schedule::Fair { is_batch: true, nice, slice_ns: 0 } }
}

/// How a thread is scheduled for which an urgent signal waits.
#[must_use]
pub fn boosted(before: &Setting, abilities: Abilities, limits: &Limits) -> Option<Schedule> {
    let nice = if abilities.nice { limits.nice_min } else { nice_of(before.schedule) };
    if abilities.realtime {
        Some(Schedule::Realtime { is_fifo: false, priority: limits.rt_priority_max.max(1) })
    } else if abilities.nice || abilities.slice {
        let slice_ns = if abilities.slice { INTERACTIVE_SLICE_NS } else { 0 };
        Some(Schedule::Fair { is_batch: false, nice, slice_ns })
    } else {
        None
    }
}

const fn nice_of(schedule: Schedule) -> i32 {
    match schedule {
        Schedule::Fair { nice, .. } | Schedule::Idle { nice } => nice,
        Schedule::Realtime { .. } | Schedule::Deadline { .. } => 0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Abilities = Abilities { realtime: true, deadline: true, nice: true, slice: true, weight: false };
    const ROOM: Room = Room { realtime: true, deadline_ppm: 500_000 };

    fn before() -> Setting {
        Setting {
            schedule: Schedule::Fair { is_batch: false, nice: 0, slice_ns: 0 },
            is_reset_on_fork: false,
            affinity: [0b11, 0, 0, 0],
        }
    }

    fn wanted(class: Class) -> Declaration {
        let is_deadline = class == Class::Deadline;
        Declaration {
            tid: 7,
            class: class as u32,
            vcpu: NO_VCPU,
            runtime_ns: if is_deadline { 100_000 } else { 0 },
            deadline_ns: if is_deadline { 1_000_000 } else { 0 },
            ..Declaration::default()
        }
    }

    fn classes(class: Class, abilities: Abilities, room: Room) -> (Vec<Class>, Option<Refusal>) {
        let wish = check(&wanted(class), &Limits::default()).unwrap();
        let (steps, refusal) = ladder(&wish, &before(), abilities, &Limits::default(), room);
        (steps.into_iter().map(|(class, _)| class).collect(), refusal)
    }

    #[test]
    fn able_host_offers_the_wish_first_and_falls_back_step_by_step() {
        let expected = vec![Class::Deadline, Class::Realtime, Class::Interactive];

        assert_eq!((expected, None), classes(Class::Deadline, ALL, ROOM));
    }

    #[test]
    fn host_without_privilege_does_what_it_can_put_back() {
        let slice_alone = Abilities { slice: true, ..Abilities::default() };

        let wish = check(&wanted(Class::Realtime), &Limits::default()).unwrap();
        let answer = ladder(&wish, &before(), slice_alone, &Limits::default(), ROOM);

        let short = Schedule::Fair { is_batch: false, nice: 0, slice_ns: INTERACTIVE_SLICE_NS };
        assert_eq!((vec![(Class::Interactive, short)], Some(Refusal::NotPermitted)), answer);
    }

    #[test]
    fn thread_is_not_made_idle_where_it_could_not_be_made_normal_again() {
        assert_eq!((vec![Class::Batch], Some(Refusal::NoWayBack)), classes(Class::Idle, Abilities::default(), ROOM));
        assert_eq!((vec![Class::Idle], None), classes(Class::Idle, ALL, ROOM));
    }

    #[test]
    fn full_house_is_told_and_the_thread_gets_the_next_best() {
        let full = Room { realtime: false, deadline_ppm: 99_999 };

        assert_eq!((vec![Class::Interactive], Some(Refusal::RealtimeThreads)), classes(Class::Realtime, ALL, full));
        assert_eq!((vec![Class::Interactive], Some(Refusal::RealtimeShare)), classes(Class::Deadline, ALL, full));
    }

    #[test]
    fn processors_are_only_ever_fewer_than_before() {
        assert_eq!(Ok([0b11, 0, 0, 0]), affinity(&[0; 4], &before().affinity));
        assert_eq!(Ok([0b10, 0, 0, 0]), affinity(&[0b110, 0, 0, 0], &before().affinity));
        assert_eq!(Err(Refusal::AffinityOutOfRange), affinity(&[0b100, 0, 0, 1], &before().affinity));
    }

    #[test]
    fn each_senseless_declaration_is_refused_for_its_reason() {
        let deadline = |runtime_ns, deadline_ns, period_ns| Declaration {
            runtime_ns,
            deadline_ns,
            period_ns,
            ..wanted(Class::Deadline)
        };
        let cases = [
            (Declaration { class: 6, ..wanted(Class::Normal) }, Refusal::ClassOutOfRange),
            (Declaration { flags: 4, ..wanted(Class::Normal) }, Refusal::UnknownFlags),
            (Declaration { nice: 20, ..wanted(Class::Normal) }, Refusal::NiceOutOfRange),
            (Declaration { nice: i32::MIN, ..wanted(Class::Normal) }, Refusal::NiceOutOfRange),
            (Declaration { rt_priority: 100, ..wanted(Class::Realtime) }, Refusal::PriorityOutOfRange),
            (Declaration { vcpu: 64, ..wanted(Class::Normal) }, Refusal::VcpuOutOfRange),
            (deadline(2_000_000, 1_000_000, 3_000_000), Refusal::ContradictoryDeadline),
            (deadline(100_000, 3_000_000, 2_000_000), Refusal::ContradictoryDeadline),
            (deadline(0, 0, 0), Refusal::ContradictoryDeadline),
            (deadline(u64::MAX, u64::MAX, u64::MAX), Refusal::ContradictoryDeadline),
        ];

        for (declaration, refusal) in cases {
            assert_eq!(Err(refusal), check(&declaration, &Limits::default()), "{declaration:?}");
        }
    }

    #[test]
    fn class_above_what_is_granted_is_refused() {
        let limits = Limits { highest: Class::Interactive, ..Limits::default() };

        assert_eq!(Err(Refusal::ClassNotGranted), check(&wanted(Class::Realtime), &limits));
    }

    #[test]
    fn priority_stays_below_the_hosts() {
        let greedy = Declaration { rt_priority: 99, ..wanted(Class::Realtime) };

        assert_eq!(Ok(40), check(&greedy, &Limits::default()).map(|wish| wish.rt_priority));
    }

    #[test]
    fn deadline_without_a_period_has_its_deadline_for_one() {
        let wish = check(&wanted(Class::Deadline), &Limits::default()).unwrap();

        assert_eq!((1_000_000, 100_000), (wish.period_ns, wish.ppm()));
    }

    proptest! {
        /// Whatever a guest writes, the answer keeps to the limits and to what can be put back.
        #[test]
        fn prop_whatever_is_declared_stays_within_the_limits(
            words in prop::array::uniform6(any::<u32>()),
            times in prop::array::uniform3(prop_oneof![any::<u64>(), 0_u64..5_000_000_000]),
            able in prop::array::uniform4(any::<bool>()),
            room in (any::<bool>(), 0_u64..2_000_000),
        ) {
            let declaration = Declaration {
                tid: words[0],
                class: words[1] % 8,
                flags: words[2] % 8,
                nice: words[3].cast_signed() % 32,
                rt_priority: words[4] % 128,
                vcpu: words[5] % 128,
                runtime_ns: times[0],
                deadline_ns: times[1],
                period_ns: times[2],
                affinity: [0; AFFINITY_WORDS],
            };
            let limits = Limits::default();
            let abilities = Abilities { realtime: able[0], deadline: able[1], nice: able[2], slice: able[3], weight: false };
            let room = Room { realtime: room.0, deadline_ppm: room.1 };
            if let Ok(wish) = check(&declaration, &limits) {
                let (steps, _) = ladder(&wish, &before(), abilities, &limits, room);
                prop_assert!(!steps.is_empty());
                for (class, schedule) in steps {
                    prop_assert!(class <= wish.class.max(Class::Batch));
                    match schedule {
                        Schedule::Fair { nice, .. } => {
                            prop_assert!(nice >= limits.nice_min && nice <= 19);
                            prop_assert!(able[2] || nice == 0);
                        }
                        Schedule::Idle { .. } => prop_assert!(able[2]),
                        Schedule::Realtime { priority, .. } => {
                            prop_assert!(able[0] && room.realtime && (1..=40).contains(&priority));
                        }
                        Schedule::Deadline { .. } => {
                            prop_assert!(able[1] && wish.ppm() <= room.deadline_ppm);
                        }
                    }
                }
            }
        }
    }
}
