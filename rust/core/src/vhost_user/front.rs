//! The other side of the protocol: a port that is the front end of somebody else's back end, on one connection to it.
//!
//! ```text
//!   features ─▶ our memory, queues, eventfds ─▶ enabled ─▶ queues to the worker ─▶ (frames) ─▶ it hangs up ─▶ queues back
//! ```
//!
//! Every connection begins with empty queues in memory of its own, so nothing that one back end wrote is seen by the next, and
//! what was under way in them is lost with it. Split queues, one pair, without offloads: the switch cuts segments and completes
//! checksums before.
//! The danger: a back end may answer anything, or nothing. The `vhost` crate holds answers to what was asked; all of
//! them together have a deadline. Whatever comes unasked ends the connection, as no channel for it was agreed on. A back end may write all of the
//! memory that it was given, which holds frames and queues of this port and nothing else.
//! Source: the vhost-user protocol, as in QEMU's `docs/interop/vhost-user.rst`; messages by the `vhost` crate.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Error as Refused, Frontend, VhostUserFrontend};
use vhost::{Error as Failed, VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::EventFd;

use super::server::VhostUserCounter;
use super::session::PROTOCOL_FEATURES;
use crate::error::{Error, Result};
use crate::port::PortId;
use crate::port::driver::{DriverRings, GUEST, Half};
use crate::shm::counters::Block;
use crate::shm::doorbell::Doorbell;
use crate::virtio::net::bit;
use crate::worker::{Command, WorkerDoor};

/// How long a back end may take to have queues set up.
const SET_UP_DEADLINE: Duration = Duration::from_secs(2);
const QUEUES: u64 = 2;
/// Number of the queue for frames to us, and of the one for frames from us.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Why a connection to a back end ended: under which reason it is counted, and what there is to say.
pub(super) type Ended = (VhostUserCounter, String);

/// What the front end of one connection needs.
pub(super) struct FrontParams<'a> {
    pub port: PortId,
    pub mtu: u32,
    pub door: &'a WorkerDoor,
    pub block: &'a Block,
}

/// Sets queues up, has the worker use them until the back end hangs up, and takes them back. `Ok`: it hung up.
pub(super) fn serve(stream: &UnixStream, params: &FrontParams<'_>) -> std::result::Result<(), Ended> {
    let front = stream
        .try_clone()
        .map(|stream| Frontend::from_stream(stream, QUEUES))
        .map_err(|error| (VhostUserCounter::RefusedMachine, error.to_string()))?;
    let rings = match within_deadline(stream, || set_up(front, params)) {
        Ok(rings) => rings,
        Err(Stopped::HungUp) => return Ok(()),
        Err(Stopped::Refused(counter, text)) => return Err((counter, text)),
    };
    exchange(params, Some(rings)).map_err(|error| (VhostUserCounter::RefusedMachine, error.to_string()))?;
    let outcome = watch(stream);
    // Who cannot be asked any more has ended, and its queues with it.
    let _ = exchange(params, None);
    outcome
}

/// Runs `work`, which waits for answers without a limit of its own, and hangs up when it takes too long.
fn within_deadline<T>(
    stream: &UnixStream,
    work: impl FnOnce() -> std::result::Result<T, Stopped>,
) -> std::result::Result<T, Stopped> {
    let (done, is_done) = crossbeam_channel::bounded::<()>(0);
    thread::scope(|scope| {
        let late = scope.spawn(move || {
            let is_late = is_done.recv_timeout(SET_UP_DEADLINE) == Err(RecvTimeoutError::Timeout);
            // A connection that is gone already needs no hanging up.
            is_late && stream.shutdown(Shutdown::Both).is_ok()
        });
        let outcome = work();
        drop(done);
        match outcome {
            Err(_) if late.join().unwrap_or(false) => Err(Stopped::Refused(
                VhostUserCounter::RefusedMessage,
                format!("it did not answer within {} s: is a back end there?", SET_UP_DEADLINE.as_secs()),
            )),
            outcome => outcome,
        }
    })
}

fn exchange(params: &FrontParams<'_>, rings: Option<Box<DriverRings>>) -> Result<()> {
    params.door.ask(|reply| Command::SetDriver(params.port, rings, reply))?.map(drop)
}

/// Why queues were not set up.
enum Stopped {
    HungUp,
    Refused(VhostUserCounter, String),
}

impl From<Failed> for Stopped {
    fn from(failed: Failed) -> Self {
        let Failed::VhostUserProtocol(refused) = failed else {
            return Self::Refused(VhostUserCounter::RefusedMessage, failed.to_string());
        };
        match refused {
            Refused::Disconnected | Refused::SocketBroken(_) => Self::HungUp,
            Refused::PartialMessage => Self::Refused(VhostUserCounter::RefusedPartial, refused.to_string()),
            Refused::BackendInternalError => {
                Self::Refused(VhostUserCounter::RefusedContent, "it refused what it was asked".into())
            }
            _ => Self::Refused(VhostUserCounter::RefusedMessage, refused.to_string()),
        }
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Refused(VhostUserCounter::RefusedMachine, error.to_string())
    }
}

fn set_up(mut front: Frontend, params: &FrontParams<'_>) -> std::result::Result<Box<DriverRings>, Stopped> {
    front.set_owner()?;
    let offered = front.get_features()?;
    if offered & bit(VIRTIO_F_VERSION_1) == 0 {
        let text = format!("it does not offer virtio 1.0 (features {offered:#x})");
        return Err(Stopped::Refused(VhostUserCounter::RefusedContent, text));
    }
    let has_protocol = offered & PROTOCOL_FEATURES != 0;
    if has_protocol {
        let found = front.get_protocol_features()?;
        front.set_protocol_features(found & VhostUserProtocolFeatures::REPLY_ACK)?;
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    let features = offered & (bit(VIRTIO_F_VERSION_1) | bit(VIRTIO_RING_F_EVENT_IDX) | PROTOCOL_FEATURES);
    front.set_features(features)?;
    let rings = Box::new(DriverRings::new(params.mtu, features & bit(VIRTIO_RING_F_EVENT_IDX) != 0)?);
    let ram = rings.ram();
    front.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: GUEST,
        memory_size: ram.size() as u64,
        userspace_addr: GUEST,
        mmap_offset: 0,
        mmap_handle: ram.as_fd().as_raw_fd(),
    }])?;
    for (queue, half) in [(RECEIVE, &rings.from_device), (TRANSMIT, &rings.to_device)] {
        start_queue(&front, queue, half)?;
    }
    if has_protocol {
        for queue in [RECEIVE, TRANSMIT] {
            front.set_vring_enable(queue, true)?;
        }
    }
    params.block.add(VhostUserCounter::Messages as usize, 1);
    Ok(rings)
}

fn start_queue(front: &Frontend, queue: usize, half: &Half) -> std::result::Result<(), Stopped> {
    front.set_vring_num(queue, half.slots as u16)?;
    front.set_vring_addr(
        queue,
        &VringConfigData {
            queue_max_size: half.slots as u16,
            queue_size: half.slots as u16,
            flags: 0,
            desc_table_addr: GUEST + u64::from(half.places.descriptors),
            used_ring_addr: GUEST + u64::from(half.places.used),
            avail_ring_addr: GUEST + u64::from(half.places.available),
            log_addr: None,
        },
    )?;
    front.set_vring_base(queue, 0)?;
    front.set_vring_call(queue, &eventfd(&half.call)?)?;
    front.set_vring_kick(queue, &eventfd(&half.kick)?)?;
    Ok(())
}

/// A doorbell as the crate wants it.
fn eventfd(bell: &Doorbell) -> Result<EventFd> {
    let file = bell.as_fd().try_clone_to_owned().map_err(|error| Error::machine("duplicate a doorbell", error))?;
    // SAFETY: a descriptor of an eventfd, which nobody else closes.
    Ok(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}

/// Waits until the back end hangs up, or says something that nobody asked for.
fn watch(stream: &UnixStream) -> std::result::Result<(), Ended> {
    loop {
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], None) {
            Err(Errno::INTR) => continue,
            Err(errno) => return Err((VhostUserCounter::RefusedMachine, errno.to_string())),
            Ok(_) => {}
        }
        let mut byte = [0_u8; 1];
        return match recv(stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Ok((0, _)) | Err(_) => Ok(()),
            Ok(_) => Err((VhostUserCounter::RefusedMessage, "it says what nobody asked for".into())),
        };
    }
}
