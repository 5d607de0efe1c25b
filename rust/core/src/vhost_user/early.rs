//! Messages at which the `vhost` crate ends the connection, although front ends send them and the protocol has them.
//!
//! QEMU's network card switches its first pair on when it is made, long before its machine agrees on anything; the crate wants
//! that after `VHOST_USER_F_PROTOCOL_FEATURES` was agreed on. It does not know `VHOST_USER_SET_LOG_FD`, by which a front end
//! may be told that a page was marked; nobody tells it, for front ends look at the log when they like, and the descriptor is
//! closed. Nor does it know `VHOST_USER_SEND_RARP`, by which a machine that has moved is announced. So the next message is looked
//! at before the crate reads it, and these are done here; all others are left to it.
//!
//! The danger: a message may come in parts, or not be whole ever. One that is not there whole is left to the crate too. Only
//! this thread reads, so what was looked at is what is read.
//! Source: vhost-user protocol, "Message header", `VHOST_USER_SET_VRING_ENABLE`, `VHOST_USER_SET_LOG_FD`,
//! `VHOST_USER_SEND_RARP`; QEMU's `vhost_set_vring_enable`.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recv, recvmsg};
use vhost::vhost_user::{Error as Refused, Result as Answer, VhostUserBackendReqHandler};

use super::session::Session;
use crate::net::frame::MacAddress;

/// Header: request, flags, bytes of the body.
const HEADER_BYTES: usize = 12;
/// Header and body (queue and number, or an address) of the longest of these messages.
const MESSAGE_BYTES: usize = 20;
const SET_LOG_FD: u32 = 7;
const SET_VRING_ENABLE: u32 = 18;
const SEND_RARP: u32 = 19;
const VERSION: u32 = 1;
const IS_REPLY: u32 = 4;
const NEEDS_REPLY: u32 = 8;

/// Waits for the next message and does it, if it is one of those; `None`: it is for the crate.
pub(super) fn serve(stream: &mut UnixStream, session: &Session) -> Option<Answer<()>> {
    let (has_agreed, logs, announces) = (session.has_agreed(), session.logs(), session.announces());
    if has_agreed && !logs && !announces {
        return None;
    }
    let mut bytes = [0; MESSAGE_BYTES];
    let (_, length) = recv(&*stream, &mut bytes, RecvFlags::PEEK).ok()?;
    let [request, flags, size, queue, number] = words(&bytes);
    if length < HEADER_BYTES || flags & !NEEDS_REPLY != VERSION {
        return None;
    }
    let done = match (request, size, length) {
        (SET_VRING_ENABLE, 8, MESSAGE_BYTES) if !has_agreed => take(stream, MESSAGE_BYTES, 0).map(|()| match number {
            0 | 1 => session.set_vring_enable(queue, number == 1),
            _ => Err(Refused::InvalidParam),
        }),
        (SEND_RARP, 8, MESSAGE_BYTES) if announces => {
            take(stream, MESSAGE_BYTES, 0).map(|()| session.announce(address([queue, number])))
        }
        (SET_LOG_FD, 0, _) if logs => take(stream, HEADER_BYTES, 1).map(Ok),
        _ => return None,
    };
    Some(done.and_then(|outcome| reply(stream, session, (request, flags), outcome)))
}

/// Reads a message that was looked at, and closes the descriptors that came with it: as many as it says.
fn take(stream: &UnixStream, bytes: usize, descriptors: usize) -> Answer<()> {
    let mut message = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(&mut message[..bytes])];
    let read = recvmsg(stream, buffers, &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL)
        .map_err(|errno| Refused::SocketBroken(errno.into()))?;
    let found: usize = control
        .drain()
        .map(|message| if let RecvAncillaryMessage::ScmRights(files) = message { files.count() } else { 0 })
        .sum();
    if read.bytes != bytes {
        return Err(Refused::PartialMessage);
    }
    if found == descriptors { Ok(()) } else { Err(Refused::IncorrectFds) }
}

/// Tells the front end, if it wants to know.
fn reply(stream: &mut UnixStream, session: &Session, (request, flags): (u32, u32), outcome: Answer<()>) -> Answer<()> {
    if flags & NEEDS_REPLY != 0 && session.answers_all() {
        let reply = [request, VERSION | IS_REPLY, 8, u32::from(outcome.is_err()), 0];
        stream.write_all(reply.map(u32::to_ne_bytes).as_flattened()).map_err(Refused::SocketBroken)?;
    }
    outcome
}

/// The address in the first six bytes of a body.
fn address(body: [u32; 2]) -> MacAddress {
    let [a, b, c, d] = body[0].to_ne_bytes();
    let [e, f, ..] = body[1].to_ne_bytes();
    MacAddress::new([a, b, c, d, e, f])
}

fn words(bytes: &[u8; MESSAGE_BYTES]) -> [u32; 5] {
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|index| u32::from_ne_bytes(words[index]))
}
