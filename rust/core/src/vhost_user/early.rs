//! Queues that are switched on or off before features were agreed on, as QEMU does.
//!
//! QEMU's network card switches its first pair on when it is made, long before its machine agrees on anything. The protocol
//! has that message after `VHOST_USER_F_PROTOCOL_FEATURES` was agreed on; the `vhost` crate ends the connection at it. So
//! the next message is looked at before the crate reads it, and this one is done here; all others are left to the crate.
//!
//! The danger: a message may come in parts, or not be whole ever. One that is not there whole is left to the crate too. Only
//! this thread reads, so what was looked at is what is read.
//! Source: vhost-user protocol, "Message header" and `VHOST_USER_SET_VRING_ENABLE`; QEMU's `vhost_set_vring_enable`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::{Error as Refused, Result as Answer, VhostUserBackendReqHandler};

use super::session::Session;

/// Header (request, flags, size of the body) and body (queue, number).
const MESSAGE_BYTES: usize = 20;
const SET_VRING_ENABLE: u32 = 18;
const VERSION: u32 = 1;
const IS_REPLY: u32 = 4;
const NEEDS_REPLY: u32 = 8;

/// Waits for the next message and does it, if it is one of those; `None`: it is for the crate.
pub(super) fn serve(stream: &mut UnixStream, session: &Session) -> Option<Answer<()>> {
    if session.has_agreed() {
        return None;
    }
    let mut bytes = [0; MESSAGE_BYTES];
    let (_, length) = recv(&*stream, &mut bytes, RecvFlags::PEEK).ok()?;
    let [request, flags, size, queue, number] = words(&bytes);
    if length != MESSAGE_BYTES || request != SET_VRING_ENABLE || flags & !NEEDS_REPLY != VERSION || size != 8 {
        return None;
    }
    Some(read_and_serve(stream, session, queue, number, flags))
}

fn read_and_serve(stream: &mut UnixStream, session: &Session, queue: u32, number: u32, flags: u32) -> Answer<()> {
    stream.read_exact(&mut [0; MESSAGE_BYTES]).map_err(Refused::SocketBroken)?;
    let outcome = match number {
        0 | 1 => session.set_vring_enable(queue, number == 1),
        _ => Err(Refused::InvalidParam),
    };
    if flags & NEEDS_REPLY != 0 && session.answers_all() {
        let reply = [SET_VRING_ENABLE, VERSION | IS_REPLY, 8, u32::from(outcome.is_err()), 0];
        stream.write_all(reply.map(u32::to_ne_bytes).as_flattened()).map_err(Refused::SocketBroken)?;
    }
    outcome
}

fn words(bytes: &[u8; MESSAGE_BYTES]) -> [u32; 5] {
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|index| u32::from_ne_bytes(words[index]))
}
