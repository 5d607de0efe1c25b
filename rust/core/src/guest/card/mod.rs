//! Drivers of emulated network cards: what an operating system does with registers, rings and an interrupt.
//!
//! ```text
//!   send      fill a buffer, write its descriptor ─ trap ─▶ the card's tail, or a slot's register
//!   interrupt doorbell ─▶ acknowledge, read causes, mask them, end: each a trap ─▶ bell of the half they are for
//!   receive   descriptors that are done, or the ring behind its header ─ trap ─▶ the card's tail, or CAPR
//! ```
//!
//! Both halves of a driver share one interrupt. Whoever waits and hears it does what the service routine would: it tells the
//! other half by a bell of the guest's own. While a half is polled, its causes are masked, as drivers with polling do
//! (Linux' NAPI). Each half has a fastcall slot of its own, so registers need no lock.
//!
//! Who writes what: rings and buffers are the guest's RAM; the host fills buffers that were posted and marks descriptors. What
//! it marks is checked before it is believed: a host that lies costs the card, not memory. Source: see [`crate::nic`].

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::fastcall::FastCaller;
use super::nic::Stage;
use crate::error::{Error, Fault, Result};
use crate::nic::card::function;
use crate::shm::doorbell::Doorbell;
use crate::shm::fastcall::{DATA_BYTES, STATUS_DONE, STATUS_UNSERVED};
use crate::shm::region::Ram;
use crate::signals::apic::{ACKNOWLEDGE, END};

pub mod e1000;
pub mod rtl8139;

/// Waits for a register that changes soon.
const REGISTER_TRIES: u32 = 1000;
/// Interrupts served at one go before others have their turn.
const SERVICES: u32 = 64;
/// Polls between two looks at the clock, of memory. Each poll of a register is a trap, and looks by itself.
const POLLS_A_LOOK: u32 = 16;
/// How long a sender looks for room before it waits for the interrupt: the host takes frames at once, unless it sleeps.
const ROOM_SPIN: Duration = Duration::from_micros(20);

/// A card's registers, and its line's controller.
pub trait Registers: Send + Sync {
    /// Reads a register of 1, 2 or 4 bytes.
    ///
    /// # Errors
    ///
    /// It cannot be reached.
    fn read(&self, offset: u32, bytes: u32) -> Result<u32>;

    /// Writes one.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    fn write(&self, offset: u32, bytes: u32, value: u32) -> Result<()>;

    /// Takes the next interrupt into service. `false`: there is none.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    fn acknowledge(&self) -> Result<bool>;

    /// Ends the interrupt in service. `true`: another is requested.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    fn end(&self) -> Result<bool>;
}

/// Registers behind a fastcall slot: each access a trap.
#[derive(Debug)]
pub struct Trapped {
    caller: Arc<FastCaller>,
    device: u32,
    deadline: Duration,
}

impl Trapped {
    /// Those of the open device `device`; an access that is not answered within `deadline` fails.
    #[must_use]
    pub const fn new(caller: Arc<FastCaller>, device: u32, deadline: Duration) -> Self {
        Self { caller, device, deadline }
    }

    fn call(&self, function: u32, data: &[u8], expected: usize) -> Result<[u8; 8]> {
        let mut answer = [0; DATA_BYTES];
        let found = self.caller.call(self.device, function, data, &mut answer, self.deadline)?;
        let found = found.ok_or(Error::PeerGone("a network card's registers"))?;
        if found.status == STATUS_UNSERVED {
            // Nobody answers for it any more: it is closed, or unplugged, and we are about to hear of that.
            return Err(Error::PeerGone("a network card"));
        }
        let length = found.length as usize;
        if found.status != STATUS_DONE {
            let text = String::from_utf8_lossy(&answer[..length.min(DATA_BYTES)]).into_owned();
            return Err(Error::Usage(format!("the card refused function {function}: {text}")));
        }
        if length != expected && length != 0 {
            let (found, limit) = (u64::from(found.length), expected as u64);
            return Err(Fault::BadSize { what: "answer of a network card", found, limit }.into());
        }
        let mut start = [0; 8];
        start[..length.min(8)].copy_from_slice(&answer[..length.min(8)]);
        // Nothing is in service where nothing was answered; elsewhere zeroes are what an absent card reads as.
        start[7] = (length != 0).into();
        Ok(start)
    }
}

fn words<const N: usize>(values: [u32; N]) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

impl Registers for Trapped {
    fn read(&self, offset: u32, bytes: u32) -> Result<u32> {
        let [a, b, c, d, ..] = self.call(function::READ, &words([offset, bytes]), 4)?;
        Ok(u32::from_le_bytes([a, b, c, d]))
    }

    fn write(&self, offset: u32, bytes: u32, value: u32) -> Result<()> {
        self.call(function::WRITE, &words([offset, bytes, value]), 0).map(drop)
    }

    fn acknowledge(&self) -> Result<bool> {
        Ok(self.call(ACKNOWLEDGE, &words([0]), 8)?[7] != 0)
    }

    fn end(&self) -> Result<bool> {
        Ok(self.call(END, &words([0]), 1)?[0] != 0)
    }
}

/// Stages frames while there is room, and shows them; how many.
fn send<'a, S: Stage>(
    frames: impl IntoIterator<Item = &'a [u8]>,
    sender: &mut S,
    flush: impl FnOnce(&mut S) -> Result<()>,
) -> Result<usize> {
    let mut sent = 0;
    let mut refused = Ok(true);
    for frame in frames {
        refused = sender.stage(frame);
        if !matches!(refused, Ok(true)) {
            break;
        }
        sent += 1;
    }
    flush(sender)?;
    refused.map(|_| sent)
}

/// Which half of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Frames to the card.
    Transmit = 0,
    /// Frames from it.
    Receive = 1,
}

/// How a chip tells causes of its interrupts.
pub(crate) trait Chip: Send + Sync {
    /// Causes of each half.
    const CAUSES: [u32; 2];

    /// What there is, which is acknowledged by that.
    fn take_causes(registers: &dyn Registers) -> Result<u32>;

    /// Changes which causes interrupt, from `before` to `after`.
    fn set_mask(registers: &dyn Registers, before: u32, after: u32) -> Result<()>;
}

/// What both halves share: one line, a bell for each half, and which causes interrupt.
#[derive(Debug)]
struct Shared {
    line: Doorbell,
    bells: [Doorbell; 2],
    enabled: Mutex<u32>,
}

/// One half's way to its card: registers, and waiting.
pub(crate) struct Port<C> {
    half: Half,
    registers: Box<dyn Registers>,
    shared: Arc<Shared>,
    /// An epoll set as a doorbell: readable when the line or this half's bell rang.
    waited: Doorbell,
    sleeps: u64,
    chip: PhantomData<C>,
}

impl<C: Chip> Port<C> {
    /// Both halves' of one card; `line` is what it interrupts by, and each half has registers of its own.
    pub(crate) fn pair(registers: [Box<dyn Registers>; 2], line: Doorbell) -> Result<[Self; 2]> {
        let bells = [Doorbell::create()?, Doorbell::create()?];
        let shared = Arc::new(Shared { line, bells, enabled: Mutex::new(0) });
        let [transmit, receive] = registers;
        let make = |half: Half, registers| {
            let waited = Doorbell::from_fd(either(&shared.line, &shared.bells[half as usize])?);
            Ok::<_, Error>(Self { half, registers, shared: shared.clone(), waited, sleeps: 0, chip: PhantomData })
        };
        Ok([make(Half::Transmit, transmit)?, make(Half::Receive, receive)?])
    }

    pub(crate) fn read(&self, offset: u32, bytes: u32) -> Result<u32> {
        self.registers.read(offset, bytes)
    }

    pub(crate) fn write(&self, offset: u32, bytes: u32, value: u32) -> Result<()> {
        self.registers.write(offset, bytes, value)
    }

    /// Reads a register until `is_fine`.
    pub(crate) fn await_register(&self, offset: u32, bytes: u32, is_fine: impl Fn(u32) -> bool) -> Result<u32> {
        for _ in 0..REGISTER_TRIES {
            let value = self.read(offset, bytes)?;
            if is_fine(value) {
                return Ok(value);
            }
        }
        Err(Fault::BadHeader { what: "a register that should change", found: offset.into(), expected: 0 }.into())
    }

    /// What wakes whoever waits for this half.
    pub(crate) const fn call_bell(&self) -> &Doorbell {
        &self.waited
    }

    /// What ends a wait from outside: rung by whoever knows that the card is gone.
    pub(crate) fn own_bell(&self) -> &Doorbell {
        &self.shared.bells[self.half as usize]
    }

    pub(crate) const fn sleeps(&self) -> u64 {
        self.sleeps
    }

    fn enabled(&self) -> MutexGuard<'_, u32> {
        self.shared.enabled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells each half what is for it, and masks that.
    fn dispatch(&self, enabled: &mut u32, causes: u32) -> Result<()> {
        let before = *enabled;
        for (bell, of_half) in self.shared.bells.iter().zip(C::CAUSES) {
            if causes & of_half != 0 && before & of_half != 0 {
                *enabled &= !of_half;
                bell.ring()?;
            }
        }
        if *enabled != before { C::set_mask(&*self.registers, before, *enabled) } else { Ok(()) }
    }

    /// Serves the interrupt if the line rang.
    pub(crate) fn serve(&self) -> Result<()> {
        let mut enabled = self.enabled();
        if !self.shared.line.wait(Some(Duration::ZERO))? {
            return Ok(());
        }
        for _ in 0..SERVICES {
            // Also with nothing requested there: the line may have been led past the controller.
            let is_requested = self.registers.acknowledge()?;
            let causes = C::take_causes(&*self.registers)?;
            self.dispatch(&mut enabled, causes)?;
            if !is_requested || !self.registers.end()? {
                return Ok(());
            }
        }
        // More is requested, and nobody will ring for it: later.
        self.shared.line.ring()
    }

    /// Asks to be woken. `true`: `is_ready` still says no, sleep now.
    pub(crate) fn arm(&self, is_ready: impl FnOnce() -> Result<bool>) -> Result<bool> {
        self.own_bell().quiet();
        self.serve()?;
        let mut enabled = self.enabled();
        // Causes from before are looked for below; left there they would interrupt at once, or, where whoever was woken did
        // not come by the line, keep it asserted and so silent.
        let causes = C::take_causes(&*self.registers)?;
        self.dispatch(&mut enabled, causes & !C::CAUSES[self.half as usize])?;
        let wanted = *enabled | C::CAUSES[self.half as usize];
        if *enabled != wanted {
            C::set_mask(&*self.registers, *enabled, wanted)?;
            *enabled = wanted;
        }
        drop(enabled);
        Ok(!is_ready()?)
    }

    /// Asks not to be woken: the half is polled.
    pub(crate) fn disarm(&self) -> Result<()> {
        self.serve()?;
        let mut enabled = self.enabled();
        let wanted = *enabled & !C::CAUSES[self.half as usize];
        if *enabled != wanted {
            C::set_mask(&*self.registers, *enabled, wanted)?;
            *enabled = wanted;
        }
        Ok(())
    }

    /// Waits until `is_ready`, first by looking for `spin`, then asleep, until `timeout` has passed in all. `false`: the time
    /// was up, or a signal interrupted. Somebody who rings this half's own bell ends the wait as well.
    pub(crate) fn wait(
        &mut self,
        spin: Duration,
        timeout: Option<Duration>,
        mut is_ready: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<bool> {
        let start = Instant::now();
        let spin = timeout.map_or(spin, |limit| spin.min(limit));
        loop {
            for _ in 0..POLLS_A_LOOK {
                if is_ready(self)? {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= spin {
                break;
            }
        }
        loop {
            if !self.arm(|| is_ready(self))? {
                return Ok(true);
            }
            self.sleeps += 1;
            if !self.waited.wait(timeout.map(|limit| limit.saturating_sub(start.elapsed())))? {
                return Ok(false);
            }
            self.serve()?;
            if self.own_bell().wait(Some(Duration::ZERO))? {
                return Ok(true);
            }
        }
    }
}

impl<C> fmt::Debug for Port<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("half", &self.half).finish_non_exhaustive()
    }
}

/// An epoll set that is readable when one of two doorbells rang.
fn either(one: &Doorbell, two: &Doorbell) -> Result<std::os::fd::OwnedFd> {
    let failed = |errno| Error::machine("wait for two doorbells", errno);
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
    for bell in [one, two] {
        epoll::add(&set, bell, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(failed)?;
    }
    Ok(set)
}

/// A ring of descriptors of 16 bytes in the guest's RAM: an address, and a word that the card writes when it is done.
pub(crate) struct Ring {
    place: NonNull<[AtomicU64; 2]>,
    size: u32,
    _ram: Arc<Ram>,
}

// SAFETY: the descriptors are atomics in a mapping that `_ram` keeps.
unsafe impl Send for Ring {}

impl Ring {
    /// Lays `size` empty descriptors out at `offset`.
    pub(crate) fn format(ram: &Arc<Ram>, offset: u32, size: u32) -> Result<Self> {
        let place = ram
            .at(offset, size as usize * size_of::<[AtomicU64; 2]>())
            .map_err(|fault| Error::Usage(fault.to_string()))?;
        let place = place.cast::<[AtomicU64; 2]>();
        if !place.is_aligned() {
            return Err(Error::Usage(format!("a ring of descriptors lies at a multiple of 16; got {offset:#x}")));
        }
        let ring = Self { place, size, _ram: ram.clone() };
        (0..size).for_each(|index| ring.give(index, 0, 0));
        Ok(ring)
    }

    fn descriptor(&self, index: u32) -> &[AtomicU64; 2] {
        // SAFETY: `format` found all descriptors inside the mapping; the number is taken modulo their count.
        unsafe { self.place.add((index % self.size) as usize).as_ref() }
    }

    /// Writes a descriptor. The card sees it after a trap.
    pub(crate) fn give(&self, index: u32, address: u64, word: u64) {
        let [place, state] = self.descriptor(index);
        place.store(address, Ordering::Relaxed);
        state.store(word, Ordering::Relaxed);
    }

    /// What the card made of a descriptor.
    pub(crate) fn state(&self, index: u32) -> u64 {
        let [_, state] = self.descriptor(index);
        // [NC-1 descriptor done] acquire: a descriptor's state before its buffer; partner in RamDma::publish.
        state.load(Ordering::Acquire)
    }

    pub(crate) const fn size(&self) -> u32 {
        self.size
    }

    /// The descriptor behind `index`.
    pub(crate) const fn after(&self, index: u32) -> u32 {
        (index + 1) % self.size
    }

    /// How far `to` is ahead of `from`.
    pub(crate) const fn distance(&self, from: u32, to: u32) -> u32 {
        (to + self.size - from) % self.size
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("size", &self.size).finish_non_exhaustive()
    }
}
