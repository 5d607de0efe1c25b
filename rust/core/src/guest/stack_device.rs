//! How smoltcp reaches the driver of a network card: one received frame at a time in, replies and segments out.
//!
//! A [`Wire`] lives for one call into smoltcp. Frames are private copies in both directions: smoltcp reads headers more
//! than once, and a host that rewrites one in between must not be able to contradict itself. smoltcp cannot report
//! errors of a device, so they are noted in [`Tally`], and its owner looks there after each call.

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::nic::{ETHERNET_HEADER, Sender};
use crate::error::Error;

/// What went over a wire, and what went wrong.
#[derive(Debug, Default)]
pub struct Tally {
    /// Frames staged to send.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Echo replies among them.
    pub pings_answered: u64,
    /// Replies that found no room in the ring and were dropped.
    pub drops_no_room: u64,
    /// Something waits until the host returns slots.
    pub is_blocked: bool,
    /// The first failure of the driver: it ends the guest.
    pub error: Option<Error>,
}

impl Tally {
    /// Sends a copy of `frame`. Without room, or after a failure, it is dropped and counted.
    pub fn send(&mut self, sender: &mut Sender, frame: &[u8]) {
        if self.error.is_some() {
            return;
        }
        match sender.stage(frame) {
            Ok(true) => {
                self.frames_out += 1;
                self.bytes_out += frame.len() as u64;
                self.pings_answered += u64::from(is_echo_reply(frame));
            }
            // A frame of a length the device does not carry is dropped like one without room.
            Ok(false) | Err(Error::Usage(_)) => self.drops_no_room += 1,
            Err(error) => self.error = Some(error),
        }
    }
}

/// Whether a frame is an ICMP echo reply, of IPv4 without options or IPv6 without extensions, as we send them.
fn is_echo_reply(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23) == Some(&1) && frame.get(34) == Some(&0),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&58) && frame.get(54) == Some(&129),
        _ => false,
    }
}

/// A driver, for the length of one call into smoltcp.
#[derive(Debug)]
pub struct Wire<'a> {
    /// The frame to be received, if any.
    pub frame: Option<&'a [u8]>,
    /// Where frames go.
    pub sender: &'a mut Sender,
    /// What is noted.
    pub tally: &'a mut Tally,
    /// Memory for the frame being made.
    pub draft: &'a mut Vec<u8>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
}

/// The frame in.
#[derive(Debug)]
pub struct FrameIn<'a>(&'a [u8]);

/// A place for a frame out.
#[derive(Debug)]
pub struct FrameOut<'a> {
    sender: &'a mut Sender,
    tally: &'a mut Tally,
    draft: &'a mut Vec<u8>,
}

impl RxToken for FrameIn<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl TxToken for FrameOut<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        if self.draft.len() < length {
            self.draft.resize(length, 0);
        }
        let answer = fill(&mut self.draft[..length]);
        self.tally.send(self.sender, &self.draft[..length]);
        answer
    }
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = FrameIn<'t>
    where
        Self: 't;
    type TxToken<'t>
        = FrameOut<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(FrameIn<'_>, FrameOut<'_>)> {
        let frame = self.frame.take()?;
        Some((FrameIn(frame), FrameOut { sender: self.sender, tally: self.tally, draft: self.draft }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<FrameOut<'_>> {
        if self.tally.error.is_some() {
            return None;
        }
        match self.sender.claim(self.sender.limit() as usize) {
            Ok(Some(_)) => {
                self.sender.cancel();
                Some(FrameOut { sender: self.sender, tally: self.tally, draft: self.draft })
            }
            Ok(None) => {
                self.tally.is_blocked = true;
                None
            }
            Err(error) => {
                self.tally.error = Some(error);
                None
            }
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = (self.mtu + ETHERNET_HEADER) as usize;
        capabilities
    }
}
