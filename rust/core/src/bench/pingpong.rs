//! The limit of latency: one frame there and one back, with the waiting side spinning or asleep.
//!
//! * polled: two bare rings of one slot each, 64-byte frames copied in and out on both sides;
//! * eventfd: each side sleeps in read(2) until the other writes: what a doorbell costs when nobody spins;
//! * futex: the same with FUTEX_WAIT and FUTEX_WAKE on a shared word;
//! * pipe: one byte through a pipe each way.
//!
//! The sides are two processes. Asleep, a round trip is two wake-ups of a sleeper on another core (or on the same one,
//! when both cores are the same): on a virtual machine that is two inter-processor interrupts and two leaves of halt.
//! Source: eventfd(2), futex(2).

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, read, write};
use rustix::thread::futex;

use super::bare::FRAME_BYTES_MAX;
use super::duo::{self, Control, Cores, Isolation};
use super::{Meter, Windows};
use crate::error::{Error, Result};
use crate::shm::layout::{LINE_PAIR, RAM_HEADER_BYTES};
use crate::shm::region::Ram;

const PATIENCE: Duration = Duration::from_secs(5);
/// Round trips between two looks at the clock.
const LOOK_EVERY_POLLED: u32 = 256;
const LOOK_EVERY_ASLEEP: u32 = 8;

/// How a side sleeps until the other has something for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// In read(2) of an eventfd.
    Eventfd,
    /// In poll(2) on an eventfd, then read(2): what an event loop does.
    EventfdPoll,
    /// In FUTEX_WAIT on a shared word.
    Futex,
    /// In read(2) of a pipe.
    Pipe,
}

impl Sleep {
    /// Every way, in the order of the tables.
    pub const ALL: [Self; 4] = [Self::Eventfd, Self::EventfdPoll, Self::Futex, Self::Pipe];

    /// The word by which it is asked for.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Eventfd => "eventfd",
            Self::EventfdPoll => "eventfd-poll",
            Self::Futex => "futex",
            Self::Pipe => "pipe",
        }
    }

    /// The way a word asks for.
    #[must_use]
    pub fn named(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.label() == label)
    }
}

/// Nanoseconds from sending a frame until it came back, both sides spinning; one sample a window.
///
/// # Errors
///
/// [`Error::Usage`]: the frame is empty or too long, or both cores are one; [`Error::Machine`]: no memory, process or
/// core; [`Error::PeerGone`]: the other side did not answer in time.
pub fn polled_ns(frame_bytes: u32, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    if !(1..=FRAME_BYTES_MAX).contains(&frame_bytes) {
        return Err(Error::Usage(format!("frames have 1 to {FRAME_BYTES_MAX} bytes; got {frame_bytes}")));
    }
    if cores.near == cores.far {
        return Err(Error::Usage(format!("spinning sides need two cores; got core {} twice", cores.near)));
    }
    let there = &Slot::new(frame_bytes)?;
    let back = &Slot::new(frame_bytes)?;
    let mut own = vec![0x5a; frame_bytes as usize];
    let mut echo = own.clone();
    duo::run(
        cores,
        Isolation::Process,
        windows.total() + PATIENCE,
        |control| {
            let mut turn = 1;
            while there.receive(control, turn, &mut echo).is_some() {
                back.send(turn, &echo);
                turn = turn.wrapping_add(1);
            }
        },
        |control| {
            let mut meter = Meter::start(windows, LOOK_EVERY_POLLED);
            let mut turn = 1u32;
            while meter.count(1) {
                there.send(turn, &own);
                back.receive(control, turn, &mut own).ok_or(Error::PeerGone("a polled round trip"))?;
                turn = turn.wrapping_add(1);
            }
            Ok(meter.into_nanoseconds())
        },
    )
}

/// A ring of one slot: the turn says whether the frame is there.
struct Slot {
    turn: NonNull<AtomicU32>,
    frame: NonNull<u8>,
    bytes: usize,
    _ram: Arc<Ram>,
}

// SAFETY: the turn is an atomic in a shared mapping; the frame is touched by the side whose turn it is.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    fn new(frame_bytes: u32) -> Result<Self> {
        let frame = RAM_HEADER_BYTES + LINE_PAIR as u32;
        let ram = Ram::create("vbnet-bench", u64::from(RAM_HEADER_BYTES + frame + frame_bytes))?;
        Ok(Self {
            turn: ram.at(RAM_HEADER_BYTES, 4)?.cast(),
            frame: ram.at(frame, frame_bytes as usize)?,
            bytes: frame_bytes as usize,
            _ram: ram,
        })
    }

    fn turn(&self) -> &AtomicU32 {
        // SAFETY: in the mapping, aligned, an atomic for both sides.
        unsafe { self.turn.as_ref() }
    }

    fn send(&self, turn: u32, own: &[u8]) {
        // SAFETY: `bytes` long both, and the frame is the sender's until the turn is stored.
        unsafe { std::ptr::copy_nonoverlapping(own.as_ptr(), self.frame.as_ptr(), self.bytes.min(own.len())) };
        self.turn().store(turn, Ordering::Release);
    }

    fn receive(&self, control: &Control, turn: u32, own: &mut [u8]) -> Option<()> {
        control.spin_until(|| (self.turn().load(Ordering::Acquire) == turn).then_some(()))?;
        // SAFETY: `bytes` long both, and the frame is the receiver's until it answers.
        unsafe { std::ptr::copy_nonoverlapping(self.frame.as_ptr(), own.as_mut_ptr(), self.bytes.min(own.len())) };
        std::hint::black_box(own);
        Some(())
    }
}

/// Nanoseconds from waking the other side until it woke us, both asleep in between; one sample a window.
///
/// Both cores may be the same one: then it is a switch from one process to the other and back.
///
/// # Errors
///
/// [`Error::Machine`]: no descriptor, process or core; [`Error::PeerGone`]: the other side did not answer in time.
pub fn asleep_ns(way: Sleep, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    match way {
        Sleep::Eventfd => asleep_through(&EventfdBell::new(false)?, &EventfdBell::new(false)?, cores, windows),
        Sleep::EventfdPoll => asleep_through(&EventfdBell::new(true)?, &EventfdBell::new(true)?, cores, windows),
        Sleep::Futex => asleep_through(&FutexBell::new()?, &FutexBell::new()?, cores, windows),
        Sleep::Pipe => asleep_through(&PipeBell::new()?, &PipeBell::new()?, cores, windows),
    }
}

/// Something that can be rung, and slept on until it is.
trait Bell: Sync {
    fn ring(&self) -> std::result::Result<(), Errno>;
    /// Sleeps until rung. May return early; never later than the other side's ring.
    fn wait(&self) -> std::result::Result<(), Errno>;
}

/// A blocking read knows no deadline, so a third thread, asleep all the while, rings once when time is up.
fn asleep_through<B: Bell>(there: &B, back: &B, cores: Cores, windows: Windows) -> Result<Vec<f64>> {
    let patience = windows.total() + PATIENCE;
    duo::run(
        cores,
        Isolation::Process,
        patience,
        |_control| while there.wait().is_ok() && back.ring().is_ok() {},
        |control| {
            std::thread::scope(|scope| {
                let (done, is_done) = crossbeam_channel::bounded::<()>(0);
                scope.spawn(move || {
                    if is_done.recv_timeout(patience).is_err_and(|error| error.is_timeout()) {
                        control.say_stop();
                        let _nobody_left_to_tell = back.ring();
                    }
                });
                let found = bounce(there, back, control, windows);
                drop(done);
                found
            })
        },
    )
}

fn bounce<B: Bell>(there: &B, back: &B, control: &Control, windows: Windows) -> Result<Vec<f64>> {
    let mut meter = Meter::start(windows, LOOK_EVERY_ASLEEP);
    while meter.count(1) {
        there.ring().map_err(|errno| Error::machine("wake the far side", errno))?;
        back.wait().map_err(|errno| Error::machine("sleep until woken", errno))?;
        if control.is_stopped() {
            return Err(Error::PeerGone("a round trip asleep"));
        }
    }
    Ok(meter.into_nanoseconds())
}

struct EventfdBell {
    file: OwnedFd,
    polls: bool,
}

impl EventfdBell {
    fn new(polls: bool) -> Result<Self> {
        let file = eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| Error::machine("create an eventfd", errno))?;
        Ok(Self { file, polls })
    }
}

impl Bell for EventfdBell {
    fn ring(&self) -> std::result::Result<(), Errno> {
        write(&self.file, &1u64.to_ne_bytes()).map(drop)
    }

    fn wait(&self) -> std::result::Result<(), Errno> {
        if self.polls {
            poll(&mut [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN)], None)?;
        }
        read(&self.file, &mut [0u8; 8]).map(drop)
    }
}

struct PipeBell {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl PipeBell {
    fn new() -> Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| Error::machine("create a pipe", errno))?;
        Ok(Self { reader, writer })
    }
}

impl Bell for PipeBell {
    fn ring(&self) -> std::result::Result<(), Errno> {
        write(&self.writer, &[1]).map(drop)
    }

    fn wait(&self) -> std::result::Result<(), Errno> {
        read(&self.reader, &mut [0u8; 1]).map(drop)
    }
}

struct FutexBell {
    word: NonNull<AtomicU32>,
    _ram: Arc<Ram>,
}

// SAFETY: the word is an atomic in a shared mapping.
unsafe impl Send for FutexBell {}
// SAFETY: as above.
unsafe impl Sync for FutexBell {}

impl FutexBell {
    fn new() -> Result<Self> {
        let ram = Ram::create("vbnet-bench", u64::from(2 * RAM_HEADER_BYTES))?;
        Ok(Self { word: ram.at(RAM_HEADER_BYTES, 4)?.cast(), _ram: ram })
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: in the mapping, aligned, an atomic for both sides.
        unsafe { self.word.as_ref() }
    }
}

impl Bell for FutexBell {
    fn ring(&self) -> std::result::Result<(), Errno> {
        self.word().store(1, Ordering::Release);
        futex::wake(self.word(), futex::Flags::empty(), 1).map(drop)
    }

    fn wait(&self) -> std::result::Result<(), Errno> {
        while self.word().load(Ordering::Acquire) == 0 {
            match futex::wait(self.word(), futex::Flags::empty(), 0, None) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.word().store(0, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SHORT: Windows = Windows { warm_up: Duration::ZERO, window: Duration::from_micros(100), count: 2 };

    /// Every way to sleep wakes the other side up again and answers one sample a window.
    #[test]
    fn every_way_to_sleep_wakes_up_again() {
        let Some(cores) = duo::tests::two_cores() else { return };

        for way in Sleep::ALL {
            for cores in [cores, Cores { near: cores.near, far: cores.near }] {
                let samples = asleep_ns(way, cores, SHORT).unwrap();

                assert_eq!(2, samples.len(), "{way:?} {cores:?}");
            }
        }
    }

    /// A frame that is spun for comes back.
    #[test]
    fn a_polled_frame_comes_back() {
        let Some(cores) = duo::tests::two_cores() else { return };

        let samples = polled_ns(64, cores, SHORT).unwrap();

        assert_eq!(2, samples.len());
    }

    /// Frames of no length and of more than the limit are refused.
    #[test]
    fn impossible_frames_are_refused() {
        for frame_bytes in [0, FRAME_BYTES_MAX + 1] {
            let outcome = polled_ns(frame_bytes, Cores { near: 0, far: 1 }, SHORT);

            assert!(matches!(outcome, Err(Error::Usage(_))));
        }
    }
}
