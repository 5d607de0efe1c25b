//! The timer page: a guest's timers as words that it writes and the host looks at.
//!
//! ```text
//!            guest (Setter, Taker)                            host (Keeper)
//!   arm:     setting = deadline, period, control      sleep:  waiting_for = earliest deadline  (sleeps += 1)
//!            changed |= slot                                  ── fence [TM-3] ──
//!            ── fence [TM-3] ──                               changed? then awake again, else sleep
//!            earlier than waiting_for? kick           awake:  changed → 0, each slot named there is read
//!   take:    expired → 0, each slot named there      expire:  expiry = generation, times
//!            is looked up in `expiry`                         expired |= slot
//! ```
//!
//! A bitmap has three levels of words, each bit saying that the word below may have something: looking at all of it is
//! one load, and finding one slot of 131072 takes three swaps. A setter that finds a word in use leaves the words above
//! alone: whoever set its first bit said so there, and the taker, who goes from above to below, has yet to come by.
//!
//! Who writes what: the guest `lead_ns` and settings, the host `waiting_for_ns`, `sleeps` and expiries; both change the
//! bitmaps, one only setting bits, the other only clearing them. A later deadline and a cancelled timer are not told
//! to the host: it wakes at the old deadline, finds the change and sleeps again. The danger: a guest may write anything
//! here at any time. Every word is copied once; a setting is believed only if its control word was the same before and
//! after, and what cannot be is counted under its reason. A guest that scribbles spoils its own timers.
//! Source: paravirtual clock-event devices and timing wheels' lazy cancelling; `docs/wire/timer.md` has the bytes.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::layout::{TIMER_PRIORITIES, TIMER_SLOTS_MAX, TIMER_SLOTS_MIN, TimerHeader, TimerSetting};
use super::signal::Owner;
use crate::sync::{AtomicU64, Ordering, full_fence, half_fence, ordering};
#[cfg(not(loom))]
use crate::{
    error::{Error, Fault, Result},
    shm::{
        layout::{
            LINE_PAIR, RAM_HEADER_BYTES, SIGNAL_MAGIC, SIGNAL_PAIR_BYTES, SIGNAL_VERSION, SignalPair,
            TIMER_HEADER_BYTES, TIMER_MAGIC, TIMER_SETTING_BYTES, TIMER_VERSION,
        },
        region::Ram,
        signal::{Listener, Notifier, SignalMemory},
    },
};

/// Bits of a bitmap's word.
const WORD_BITS: u32 = 64;
/// Generations of a slot are counted modulo this.
pub const GENERATIONS: u32 = 1 << 24;
/// Expiries of a generation are counted modulo this.
pub const TIMES: u64 = 1 << TIMES_BITS;
const TIMES_BITS: u32 = 40;
/// Shortest period that the host keeps.
pub const PERIOD_MIN_NS: u64 = 10_000;

const PRIORITY_SHIFT: u32 = 24;
const ARMED: u64 = 1 << 27;
/// The guest is between two stores: do not believe what stands beside.
const IN_HAND: u64 = 1 << 28;
const CONTROL_MASK: u64 = (1 << 29) - 1;

/// What a timer is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// When it expires, in nanoseconds of CLOCK_MONOTONIC.
    pub deadline_ns: u64,
    /// How long after that again and again, at least [`PERIOD_MIN_NS`]; 0 = once.
    pub period_ns: u64,
    /// 0 to 7, 7 the most urgent.
    pub priority: u8,
    /// Which arming of the slot this is, below [`GENERATIONS`].
    pub generation: u32,
    /// It runs; otherwise it was cancelled.
    pub is_armed: bool,
}

impl Setting {
    fn control(self) -> u64 {
        let armed = if self.is_armed { ARMED } else { 0 };
        u64::from(self.generation % GENERATIONS) | (u64::from(self.priority & 7) << PRIORITY_SHIFT) | armed
    }
}

/// What the host found in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Something it can keep.
    Set(Setting),
    /// The guest is writing: its mark comes after.
    InHand,
    /// Bits in the control word that mean nothing.
    ForgedControl,
    /// A period that nobody could keep.
    PeriodTooShort,
}

/// Where a bitmap's words are: `top` names words of `summary`, those name `words`.
#[derive(Clone, Copy)]
struct Bitmap {
    top: NonNull<AtomicU64>,
    summary: NonNull<AtomicU64>,
    words: NonNull<AtomicU64>,
    slots: u32,
}

impl Bitmap {
    fn top(&self) -> &AtomicU64 {
        // SAFETY: valid for as long as the page's owner, which whoever holds this bitmap holds too.
        unsafe { self.top.as_ref() }
    }

    fn summary(&self, index: u32) -> &AtomicU64 {
        debug_assert!(index < summary_words(self.slots));
        // SAFETY: as above; the index is below the number of summary words, as every caller makes sure.
        unsafe { self.summary.add(index as usize).as_ref() }
    }

    fn word(&self, index: u32) -> &AtomicU64 {
        debug_assert!(index < bitmap_words(self.slots));
        // SAFETY: as above; the index is below the number of words, as every caller makes sure.
        unsafe { self.words.add(index as usize).as_ref() }
    }

    /// Marks a slot, below `slots`. `true`: its word was empty, so the words above were told.
    ///
    /// One thread at a time.
    #[inline]
    fn set(&self, slot: u32) -> bool {
        let (word, summary) = (slot / WORD_BITS, slot / (WORD_BITS * WORD_BITS));
        // [TM-2 marked slots] release: what is said about the slot before its mark; partner in take(). A word in use is
        // changed all the same: only that orders what we wrote before the taker's swap.
        let order = ordering("timer_mark", Ordering::Release);
        if self.word(word).fetch_or(bit(slot), order) != 0 {
            return false;
        }
        // [TM-2 marked slots] release, too: each word before the one above; partner in take().
        if self.summary(summary).fetch_or(bit(word), order) == 0 {
            self.top().fetch_or(bit(summary), order);
        }
        true
    }

    /// Nothing is marked, as far as this thread can see.
    fn is_empty(&self) -> bool {
        self.top().load(Ordering::Relaxed) == 0
    }

    /// Takes marked slots until `limit` were taken, at most 63 more. Gives how many bits named no slot.
    fn take(&self, limit: usize, found: &mut Vec<u32>) -> u64 {
        let end = found.len() + limit;
        let mut forged = 0;
        // [TM-2 marked slots] acquire: the mark before what it stands for; partner in set().
        let order = ordering("timer_take", Ordering::Acquire);
        if self.is_empty() {
            return 0;
        }
        let mut tops = self.top().swap(0, order);
        while tops != 0 && found.len() < end {
            let summary = lowest(&mut tops);
            if summary >= summary_words(self.slots) {
                forged += 1;
                continue;
            }
            let mut summaries = self.summary(summary).swap(0, order);
            while summaries != 0 && found.len() < end {
                let word = summary * WORD_BITS + lowest(&mut summaries);
                if word >= bitmap_words(self.slots) {
                    forged += 1;
                    continue;
                }
                let mut slots = self.word(word).swap(0, order);
                while slots != 0 {
                    found.push(word * WORD_BITS + lowest(&mut slots));
                }
            }
            if summaries != 0 {
                // [TM-2 marked slots] release: what is left is marked again from below to above, as in set().
                self.summary(summary).fetch_or(summaries, Ordering::Release);
                tops |= bit(summary);
            }
        }
        if tops != 0 {
            // [TM-2 marked slots] release: as above.
            self.top().fetch_or(tops, Ordering::Release);
        }
        forged
    }
}

/// Takes the lowest bit off.
fn lowest(word: &mut u64) -> u32 {
    let index = word.trailing_zeros();
    *word &= *word - 1;
    index
}

const fn bit(index: u32) -> u64 {
    1 << (index % WORD_BITS)
}

const fn bitmap_words(slots: u32) -> u32 {
    slots / WORD_BITS
}

const fn summary_words(slots: u32) -> u32 {
    bitmap_words(slots).div_ceil(WORD_BITS)
}

/// Where the parts of a page are, in bytes from its start.
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerLayout {
    /// Number of timers.
    pub slots: u32,
    /// First byte of the first bitmap: that of changed timers, then those of expired ones by priority. Each is its
    /// summary words, then its words.
    pub bitmaps: usize,
    /// Bytes from one bitmap to the next.
    pub bitmap_bytes: usize,
    /// First byte of the settings.
    pub settings: usize,
    /// First byte of the expiries.
    pub expiries: usize,
    /// Bytes of the page.
    pub bytes: usize,
}

#[cfg(not(loom))]
impl TimerLayout {
    /// Lays out a page of `slots` timers; `None`: not a power of two from 64 to 131072.
    #[must_use]
    pub const fn plan(slots: u32) -> Option<Self> {
        if !slots.is_power_of_two() || slots < TIMER_SLOTS_MIN || slots > TIMER_SLOTS_MAX {
            return None;
        }
        let bitmap_bytes = (8 * (summary_words(slots) + bitmap_words(slots)) as usize).next_multiple_of(LINE_PAIR);
        let settings = TIMER_HEADER_BYTES + bitmap_bytes * (1 + TIMER_PRIORITIES);
        let expiries = settings + TIMER_SETTING_BYTES * slots as usize;
        let bytes = (expiries + 8 * slots as usize).next_multiple_of(LINE_PAIR);
        Some(Self { slots, bitmaps: TIMER_HEADER_BYTES, bitmap_bytes, settings, expiries, bytes })
    }
}

/// Where a page is, checked once: what both sides need is copied from the shared header here.
#[derive(Clone)]
pub struct TimerMemory {
    header: NonNull<TimerHeader>,
    changed: Bitmap,
    expired: [Bitmap; TIMER_PRIORITIES],
    settings: NonNull<TimerSetting>,
    expiries: NonNull<AtomicU64>,
    slots: u32,
    _owner: Owner,
}

// SAFETY: all of the page is atomics, reachable for as long as `_owner` lives, and accessed as atomics only.
unsafe impl Send for TimerMemory {}
// SAFETY: as above; that each end is one thread's is kept by their taking `&mut self`, or by a lock around them.
unsafe impl Sync for TimerMemory {}

struct HeapBitmap {
    summary: Box<[AtomicU64]>,
    words: Box<[AtomicU64]>,
}

struct HeapPage {
    header: TimerHeader,
    bitmaps: Vec<HeapBitmap>,
    settings: Box<[TimerSetting]>,
    expiries: Box<[AtomicU64]>,
}

impl TimerMemory {
    /// A page in this process's own memory, for models and tests. Anything but a power of two up to 131072 is rounded up
    /// to one.
    #[must_use]
    pub fn on_heap(slots: u32) -> Self {
        let slots = slots.clamp(TIMER_SLOTS_MIN, TIMER_SLOTS_MAX).next_power_of_two();
        let row = |count: u32| (0..count).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>();
        // A model uses the first few slots only, and pays for every word.
        let kept = if cfg!(loom) { 2 } else { slots };
        let page = Arc::new(HeapPage {
            header: TimerHeader::new(slots),
            bitmaps: (0..=TIMER_PRIORITIES)
                .map(|_| HeapBitmap { summary: row(summary_words(slots)), words: row(bitmap_words(slots)) })
                .collect(),
            settings: (0..kept).map(|_| TimerSetting::new()).collect(),
            expiries: row(kept),
        });
        let bitmap = |index: usize, top: &AtomicU64| {
            let HeapBitmap { summary, words } = &page.bitmaps[index];
            Bitmap { top: top.into(), summary: (&summary[0]).into(), words: (&words[0]).into(), slots }
        };
        Self {
            header: (&page.header).into(),
            changed: bitmap(0, &page.header.changed_top.0),
            expired: std::array::from_fn(|priority| bitmap(1 + priority, &page.header.expired_tops.0[priority])),
            settings: (&page.settings[0]).into(),
            expiries: (&page.expiries[0]).into(),
            slots,
            _owner: page,
        }
    }

    /// Lays an empty page out at `offset` of memory that is ours, for the guest's side.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: `slots` is not a power of two from 64 to 131072, or the place is misaligned or outside the region.
    #[cfg(not(loom))]
    pub fn format(ram: &Arc<Ram>, offset: u32, slots: u32) -> Result<Self> {
        let layout = TimerLayout::plan(slots).ok_or_else(|| {
            Error::Usage(format!(
                "a timer page has a power of two of slots, {TIMER_SLOTS_MIN} to {TIMER_SLOTS_MAX}; got {slots}"
            ))
        })?;
        let start = place(ram, offset, layout.bytes).map_err(|fault| Error::Usage(fault.to_string()))?;
        // SAFETY: `place` checked bounds; nobody else knows of this page yet, and all zeroes is a valid value of it all.
        unsafe {
            start.write_bytes(0, layout.bytes);
            start.cast::<TimerHeader>().write(TimerHeader::new(slots));
            Ok(Self::at(ram, start, layout))
        }
    }

    /// Believes a page that a guest laid out in `length` bytes at `offset`, after checking all of it.
    ///
    /// # Errors
    ///
    /// The guest's fault: place, magic, version or number of slots cannot be.
    #[cfg(not(loom))]
    pub fn attach(ram: &Arc<Ram>, offset: u32, length: u32, slots_max: u32) -> std::result::Result<Self, Fault> {
        let start = place(ram, offset, (length as usize).max(TIMER_HEADER_BYTES))?;
        // SAFETY: `place` checked alignment and bounds; the header is atomics only.
        let header = unsafe { start.cast::<TimerHeader>().as_ref() };
        expect("timer magic", header.magic.load(Ordering::Relaxed), TIMER_MAGIC)?;
        expect("timer version", header.version.load(Ordering::Relaxed), TIMER_VERSION)?;
        let slots = header.slots.load(Ordering::Relaxed);
        let limit = u64::from(slots_max.min(TIMER_SLOTS_MAX));
        let layout = TimerLayout::plan(slots).filter(|_| u64::from(slots) <= limit).ok_or(Fault::BadSize {
            what: "timer slots",
            found: slots.into(),
            limit,
        })?;
        if layout.bytes != length as usize {
            let limit = layout.bytes as u64;
            return Err(Fault::BadSize { what: "timer page length", found: length.into(), limit });
        }
        // SAFETY: the length just checked covers the whole page.
        Ok(unsafe { Self::at(ram, start, layout) })
    }

    /// # Safety
    ///
    /// `layout.bytes` bytes from `start` on, aligned to two cache lines, are inside `ram`.
    #[cfg(not(loom))]
    unsafe fn at(ram: &Arc<Ram>, start: NonNull<u8>, layout: TimerLayout) -> Self {
        let header = start.cast::<TimerHeader>();
        // SAFETY: as promised by the caller; the header is atomics only.
        let words = unsafe { header.as_ref() };
        let bitmap = |index: usize, top: &AtomicU64| {
            // SAFETY: inside the page, as the layout was made; aligned to words.
            let summary = unsafe { start.add(layout.bitmaps + index * layout.bitmap_bytes) }.cast::<AtomicU64>();
            // SAFETY: as above.
            let words = unsafe { summary.add(summary_words(layout.slots) as usize) };
            Bitmap { top: top.into(), summary, words, slots: layout.slots }
        };
        Self {
            header,
            changed: bitmap(0, &words.changed_top.0),
            expired: std::array::from_fn(|priority| bitmap(1 + priority, &words.expired_tops.0[priority])),
            // SAFETY: inside the page, as the layout was made.
            settings: unsafe { start.add(layout.settings) }.cast(),
            // SAFETY: as above.
            expiries: unsafe { start.add(layout.expiries) }.cast(),
            slots: layout.slots,
            _owner: ram.clone(),
        }
    }

    /// Number of timers.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// Something expired that nobody took, as far as this thread can see.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.expired.iter().any(|expired| !expired.is_empty())
    }

    fn header(&self) -> &TimerHeader {
        // SAFETY: valid for the life of `_owner`.
        unsafe { self.header.as_ref() }
    }

    fn setting(&self, slot: u32) -> &TimerSetting {
        debug_assert!(slot < self.slots);
        // SAFETY: slots are a power of two, so the mask keeps the index below their number.
        unsafe { self.settings.add((slot & (self.slots - 1)) as usize).as_ref() }
    }

    fn expiry(&self, slot: u32) -> &AtomicU64 {
        debug_assert!(slot < self.slots);
        // SAFETY: as above.
        unsafe { self.expiries.add((slot & (self.slots - 1)) as usize).as_ref() }
    }
}

impl fmt::Debug for TimerMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimerMemory").field("slots", &self.slots).finish_non_exhaustive()
    }
}

#[cfg(not(loom))]
fn expect(what: &'static str, found: u32, expected: u32) -> std::result::Result<(), Fault> {
    if found == expected {
        Ok(())
    } else {
        Err(Fault::BadHeader { what, found: found.into(), expected: expected.into() })
    }
}

#[cfg(not(loom))]
fn place(ram: &Arc<Ram>, offset: u32, bytes: usize) -> std::result::Result<NonNull<u8>, Fault> {
    if !(offset as usize).is_multiple_of(LINE_PAIR) {
        return Err(Fault::BadSize { what: "timer page alignment", found: offset.into(), limit: LINE_PAIR as u64 });
    }
    if offset < RAM_HEADER_BYTES {
        let length = u32::try_from(bytes).unwrap_or(u32::MAX);
        return Err(Fault::OverlapsControl { offset, length, start: 0, end: RAM_HEADER_BYTES });
    }
    ram.at(offset, bytes)
}

/// The guest's end that sets timers. One a page; the caller keeps that promise.
#[derive(Debug)]
pub struct Setter {
    memory: TimerMemory,
    /// The host's sleep that was kicked last.
    kicked: u64,
}

impl Setter {
    /// Takes the end that sets timers.
    #[must_use]
    pub const fn new(memory: TimerMemory) -> Self {
        Self { memory, kicked: 0 }
    }

    /// Sets a slot, below the page's number of them. `true`: the host would sleep past it, kick.
    ///
    /// Cost: a few stores, one to three atomic ORs, one fence, one or two loads.
    #[must_use = "true means the host sleeps past this deadline until it is kicked"]
    #[inline]
    pub fn set(&mut self, slot: u32, setting: Setting) -> bool {
        let words = self.memory.setting(slot);
        words.control.store(IN_HAND, Ordering::Relaxed);
        // [TM-1 whole setting] release: the mark that it is in hand before the values; partner in Keeper::read.
        half_fence("timer_in_hand", Ordering::Release);
        words.deadline_ns.store(setting.deadline_ns, Ordering::Relaxed);
        words.period_ns.store(setting.period_ns, Ordering::Relaxed);
        // [TM-1 whole setting] release: the values before the word that makes them good; partner in Keeper::read.
        words.control.store(setting.control(), ordering("timer_set", Ordering::Release));
        self.memory.changed.set(slot);
        if !setting.is_armed {
            return false;
        }
        // [TM-3 sleep or see] marks before loads of waiting_for; partner in Keeper::sleep_until.
        full_fence("timer_arm");
        let sleep = &self.memory.header().sleep;
        if setting.deadline_ns >= sleep.waiting_for_ns.load(Ordering::Relaxed) {
            return false;
        }
        let sleeps = sleep.sleeps.load(Ordering::Relaxed);
        if sleeps == self.kicked {
            return false;
        }
        self.kicked = sleeps;
        true
    }

    /// Asks to be woken `lead_ns` before each deadline; the host may grant less.
    pub fn set_lead(&self, lead_ns: u64) {
        self.memory.header().lead_ns.0.store(lead_ns, Ordering::Relaxed);
    }
}

/// How often a timer has expired, by the word the host wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The arming it belongs to.
    pub generation: u32,
    /// Expiries of it so far, those that went by unnoticed counted in; modulo [`TIMES`].
    pub times: u64,
}

/// The guest's end that finds out what expired. One a page; the caller keeps that promise.
#[derive(Debug)]
pub struct Taker {
    memory: TimerMemory,
}

impl Taker {
    /// Takes the end that finds out what expired.
    #[must_use]
    pub const fn new(memory: TimerMemory) -> Self {
        Self { memory }
    }

    /// Takes all slots of this priority, 0 to 7, that expired since the last call.
    pub fn take(&self, priority: usize, found: &mut Vec<u32>) {
        if let Some(expired) = self.memory.expired.get(priority) {
            expired.take(self.memory.slots as usize, found);
        }
    }

    /// What the host says about a slot, below the page's number of them.
    #[must_use]
    pub fn expiry(&self, slot: u32) -> Expiry {
        let word = self.memory.expiry(slot).load(Ordering::Relaxed);
        Expiry { generation: (word >> TIMES_BITS) as u32, times: word & (TIMES - 1) }
    }
}

/// The host's end. One a page; the caller keeps that promise.
#[derive(Debug)]
pub struct Keeper {
    memory: TimerMemory,
    sleeps: u64,
}

impl Keeper {
    /// Takes the host's end, awake.
    #[must_use]
    pub fn new(memory: TimerMemory) -> Self {
        let keeper = Self { sleeps: memory.header().sleep.sleeps.load(Ordering::Relaxed), memory };
        keeper.awake();
        keeper
    }

    /// Number of timers.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.memory.slots
    }

    /// Says that the host is awake: no kick is needed. Call it before looking at what changed.
    pub fn awake(&self) {
        self.memory.header().sleep.waiting_for_ns.store(0, Ordering::Relaxed);
    }

    /// Says that the host sleeps until `deadline_ns`. `true`: so be it. `false`: something changed, the host is awake.
    #[must_use = "false means that settings changed for which no kick will come"]
    pub fn sleep_until(&mut self, deadline_ns: u64) -> bool {
        self.sleeps = self.sleeps.wrapping_add(1);
        let sleep = &self.memory.header().sleep;
        sleep.sleeps.store(self.sleeps, Ordering::Relaxed);
        sleep.waiting_for_ns.store(deadline_ns, Ordering::Relaxed);
        // [TM-3 sleep or see] stores of waiting_for and sleeps before the load of marks; partner in Setter::set.
        full_fence("timer_sleep");
        if self.memory.changed.is_empty() {
            return true;
        }
        self.awake();
        false
    }

    /// Takes slots that changed until there are `limit` of them, at most 63 more. Gives how many marks named no slot.
    pub fn take_changed(&self, limit: usize, found: &mut Vec<u32>) -> u64 {
        self.memory.changed.take(limit, found)
    }

    /// Reads what a slot, below the page's number of them, is set to.
    #[must_use]
    pub fn read(&self, slot: u32) -> Reading {
        let words = self.memory.setting(slot);
        // [TM-1 whole setting] acquire: the control word before the values; partner in Setter::set.
        let control = words.control.load(ordering("timer_read", Ordering::Acquire));
        let deadline_ns = words.deadline_ns.load(Ordering::Relaxed);
        let period_ns = words.period_ns.load(Ordering::Relaxed);
        // [TM-1 whole setting] acquire: the values before the second look; partner in Setter::set.
        half_fence("timer_reread", Ordering::Acquire);
        if control == IN_HAND || words.control.load(Ordering::Relaxed) != control {
            return Reading::InHand;
        }
        if control & !CONTROL_MASK != 0 || control & IN_HAND != 0 {
            return Reading::ForgedControl;
        }
        let is_armed = control & ARMED != 0;
        if is_armed && period_ns != 0 && period_ns < PERIOD_MIN_NS {
            return Reading::PeriodTooShort;
        }
        Reading::Set(Setting {
            deadline_ns,
            period_ns,
            priority: (control >> PRIORITY_SHIFT) as u8 & 7,
            generation: control as u32 % GENERATIONS,
            is_armed,
        })
    }

    /// How long before its deadlines the guest wants to be woken.
    #[must_use]
    pub fn lead_ns(&self) -> u64 {
        self.memory.header().lead_ns.0.load(Ordering::Relaxed)
    }

    /// Says that a slot, below the page's number of them, expired. `true`: the guest may not know, raise its signal.
    #[must_use = "true means that the guest may sleep until it is told"]
    pub fn expire(&self, slot: u32, priority: u8, expiry: Expiry) -> bool {
        let word = (u64::from(expiry.generation % GENERATIONS) << TIMES_BITS) | (expiry.times % TIMES);
        self.memory.expiry(slot).store(word, Ordering::Relaxed);
        self.memory.expired[usize::from(priority & 7)].set(slot)
    }
}

/// Lays the signal of one priority out at `offset` of memory that is ours: the guest's end of its `call` half.
///
/// # Errors
///
/// [`Error::Usage`]: the place is misaligned or outside the region.
#[cfg(not(loom))]
pub fn format_signal(ram: &Arc<Ram>, offset: u32) -> Result<Listener> {
    let start = place(ram, offset, SIGNAL_PAIR_BYTES).map_err(|fault| Error::Usage(fault.to_string()))?;
    let pair = start.cast::<SignalPair>();
    // SAFETY: `place` checked alignment and bounds; nobody else knows of this signal yet. The words live as long as `ram`.
    Ok(Listener::new(unsafe {
        pair.write(SignalPair::new());
        SignalMemory::new(NonNull::from(&pair.as_ref().call), ram.clone())
    }))
}

/// Believes a signal that a guest laid out in `length` bytes at `offset`: the host's end of its `call` half.
///
/// # Errors
///
/// The guest's fault: place, length, magic or version cannot be.
#[cfg(not(loom))]
pub fn attach_signal(ram: &Arc<Ram>, offset: u32, length: u32) -> std::result::Result<Notifier, Fault> {
    let start = place(ram, offset, (length as usize).max(SIGNAL_PAIR_BYTES))?;
    if length as usize != SIGNAL_PAIR_BYTES {
        let limit = SIGNAL_PAIR_BYTES as u64;
        return Err(Fault::BadSize { what: "signal length", found: length.into(), limit });
    }
    // SAFETY: `place` checked alignment and bounds; the pair is atomics only.
    let pair = unsafe { start.cast::<SignalPair>().as_ref() };
    expect("signal magic", pair.magic.load(Ordering::Relaxed), SIGNAL_MAGIC)?;
    expect("signal version", pair.version.load(Ordering::Relaxed), SIGNAL_VERSION)?;
    // SAFETY: the words live as long as `ram`.
    Ok(Notifier::new(unsafe { SignalMemory::new(NonNull::from(&pair.call), ram.clone()) }))
}
