//! A TAP device of the kernel as a port: frames cross by system call, one each, long ones uncut.
//!
//! ```text
//!   kernel ──preadv2(NOWAIT)──▶ header · private buffer ──▶ (switch) ──▶ receiver's buffer
//!   header · sender's buffer: first line from its private copy, rest in place ──pwritev2(NOWAIT)──▶ kernel
//! ```
//!
//! A device that was opened with `IFF_VNET_HDR` has a header in front of each frame, by which the kernel leaves checksums and
//! segments to us, and we to it: 64 KiB of TCP cross in one system call instead of 45 ([`crate::net::offload`]).
//!
//! The danger: the descriptor may come from a guest, which keeps a copy of it and can change its flags, and might hand
//! over anything at all. So it is believed after the kernel's own description of it says it is a TAP device
//! ([`describe`]), and every read and write carries its own `RWF_NOWAIT` instead of trusting `O_NONBLOCK`. Whoever changes
//! the header's size afterwards garbles its own frames; a header is believed as little as one from a virtual machine.
//! Source: Linux `tuntap.rst`, preadv2(2), proc(5) on fdinfo.

use std::ffi::CStr;
use std::fmt;
use std::fs;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::Refusal;
use super::batch::Piece;
use crate::error::{Error, Result};
use crate::net::frame::{FRAME_BYTES_MAX, FrameStart, HEADER_BYTES, START_BYTES, frame_limit};
use crate::net::offload::{Features, OFFLOAD_HEADER_BYTES, Request, Unfit};

const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;

/// What the kernel may leave to us: checksums, TCP over IPv4 and IPv6, with ECN.
const TUN_F_TCP: libc::c_ulong = 0x01 | 0x02 | 0x04 | 0x08;
/// Datagrams of UDP over either; unknown to kernels before 6.2.
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;

/// A device as it was found.
#[derive(Debug)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// It has headers in front of frames.
    pub has_headers: bool,
}

/// The network device behind a descriptor, after checking that it is a TAP device we can use.
///
/// # Errors
///
/// [`Error::Usage`]: it is something else. [`Error::Machine`]: its device is gone.
pub fn describe(file: BorrowedFd<'_>) -> Result<Description> {
    // The kernel writes this description by itself. Asking the file (fstat, ioctl) comes after, for behind an unknown
    // descriptor may be a file system whose server is hostile and never answers.
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))
        .map_err(|error| Error::machine("inspect a TAP descriptor", error))?;
    if !info.lines().any(|line| line.starts_with("iff:")) {
        return Err(Error::Usage("the descriptor is not /dev/net/tun".into()));
    }
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // SAFETY: TUNGETIFF on a tun file fills one ifreq.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNGETIFF, &raw mut request) } != 0 {
        return Err(Error::machine("ask a TAP descriptor for its device", io::Error::last_os_error()));
    }
    // SAFETY: the flags are what TUNGETIFF filled in.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    let name: Vec<u8> = request.ifr_name.iter().map(|&byte| byte as u8).chain([0]).collect();
    let name = CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if flags & libc::IFF_TAP == 0 {
        return Err(Error::Usage(format!("{name} is no TAP device (IFF_TAP is not set)")));
    }
    // IFF_NO_PI cannot be asked for: its bit reads as IFF_NOFILTER. A device with packet information garbles its own frames.
    Ok(Description { name, has_headers: flags & libc::IFF_VNET_HDR != 0 })
}

/// Has the kernel leave to us what it can, or nothing when there are no headers to say so: the device may have been set up
/// otherwise by whoever had it before.
///
/// # Errors
///
/// [`Error::Machine`]: the kernel refused.
pub fn set_offloads(file: BorrowedFd<'_>, has_headers: bool) -> Result<()> {
    let set = |number: libc::c_ulong, value: libc::c_ulong| {
        // SAFETY: of these, TUNSETOFFLOAD takes its argument by value.
        unsafe { libc::ioctl(file.as_raw_fd(), number, value) == 0 }
    };
    let set_word = |number: libc::c_ulong, value: libc::c_int| {
        // SAFETY: these read one int.
        unsafe { libc::ioctl(file.as_raw_fd(), number, &raw const value) == 0 }
    };
    let is_set = if has_headers {
        set_word(TUNSETVNETHDRSZ, OFFLOAD_HEADER_BYTES as libc::c_int)
            && set_word(TUNSETVNETLE, 1)
            && (set(TUNSETOFFLOAD, TUN_F_TCP | TUN_F_USO) || set(TUNSETOFFLOAD, TUN_F_TCP))
    } else {
        set(TUNSETOFFLOAD, 0)
    };
    if is_set { Ok(()) } else { Err(Error::machine("set up offloads of a TAP device", io::Error::last_os_error())) }
}

/// What a read found.
#[derive(Debug)]
pub(crate) enum Received {
    /// A frame of so many bytes, in the private buffer, and what is to be done with it.
    Frame(u32, Request),
    /// One with a request that cannot be done.
    Unfit(u32, Unfit),
    /// A frame longer than the MTU allows.
    Oversize(u32),
    /// A frame shorter than a header.
    Runt(u32),
    /// Nothing now.
    Nothing,
    /// The device has ended.
    Gone(io::Error),
}

/// A TAP device, worked on by one worker.
pub(crate) struct TapPort {
    file: OwnedFd,
    buffer: Box<[u8]>,
    /// There is a header in front of each frame: the one last read.
    has_headers: bool,
    header: [u8; OFFLOAD_HEADER_BYTES],
    frame_limit: u32,
    is_up: bool,
    /// Set when the device has ended, until it was reported.
    gone: Option<io::Error>,
    is_gone: bool,
    /// Frames and bytes written since they were last counted.
    written: (u64, u64),
}

impl TapPort {
    pub(crate) fn new(file: OwnedFd, mtu: u32, has_headers: bool) -> Self {
        // One byte more than any frame tells a frame that was cut from one that fits.
        let buffer = vec![0; FRAME_BYTES_MAX as usize + 1].into_boxed_slice();
        Self {
            file,
            buffer,
            has_headers,
            header: [0; OFFLOAD_HEADER_BYTES],
            frame_limit: frame_limit(mtu),
            is_up: true,
            gone: None,
            is_gone: false,
            written: (0, 0),
        }
    }

    /// What the kernel takes on.
    pub(crate) const fn features(&self) -> Features {
        if self.has_headers { Features::ALL } else { Features::NONE }
    }

    pub(crate) const fn set_mtu(&mut self, mtu: u32) {
        self.frame_limit = frame_limit(mtu);
    }

    pub(crate) const fn set_up(&mut self, is_up: bool) {
        self.is_up = is_up;
    }

    pub(crate) const fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Why the device ended, once.
    pub(crate) const fn take_end(&mut self) -> Option<io::Error> {
        self.gone.take()
    }

    /// Notes that the device has ended.
    pub(crate) fn end(&mut self, error: io::Error) {
        if !self.is_gone {
            self.is_gone = true;
            self.gone = Some(error);
        }
    }

    /// The frame last read.
    pub(crate) fn frame(&self, length: u32) -> &[u8] {
        self.buffer.get(..length as usize).unwrap_or_default()
    }

    /// Frames and bytes written since the last call.
    pub(crate) fn take_written(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.written)
    }

    /// Reads one frame from the kernel.
    pub(crate) fn receive(&mut self) -> Received {
        if self.is_gone {
            return Received::Nothing;
        }
        loop {
            let pieces = [
                libc::iovec { iov_base: self.header.as_mut_ptr().cast(), iov_len: OFFLOAD_HEADER_BYTES },
                libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() },
            ];
            let pieces = &pieces[usize::from(!self.has_headers)..];
            let count = pieces.len() as libc::c_int;
            // SAFETY: one or two pieces, private memory of these lengths.
            let got = unsafe { libc::preadv2(self.raw(), pieces.as_ptr(), count, -1, libc::RWF_NOWAIT) };
            if let Ok(length) = u32::try_from(got) {
                return self.look_at(length);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Received::Nothing,
                _ => return Received::Gone(error),
            }
        }
    }

    fn look_at(&self, read: u32) -> Received {
        let header = if self.has_headers { OFFLOAD_HEADER_BYTES as u32 } else { 0 };
        let length = read.saturating_sub(header);
        if length < HEADER_BYTES {
            return Received::Runt(length);
        }
        let request =
            if self.has_headers { Request::parse(&self.header, self.frame(length)) } else { Ok(Request::NOTHING) };
        match request {
            Ok(request) if request.longest(length) > self.frame_limit => Received::Oversize(length),
            Ok(request) => Received::Frame(length, request),
            Err(unfit) => Received::Unfit(length, unfit),
        }
    }

    /// Gives one frame to the kernel: its first line from `start`, the rest from where the sender has it. The kernel must be
    /// able to do what is requested.
    ///
    /// # Safety
    ///
    /// The frame of `piece` is mapped and readable.
    pub(crate) unsafe fn send(
        &mut self,
        start: &FrameStart,
        piece: &Piece,
        request: &Request,
    ) -> std::result::Result<(), Refusal> {
        let Piece { source: frame, length, .. } = *piece;
        if self.is_gone || !self.is_up {
            return Err(if self.is_gone { Refusal::Quarantined } else { Refusal::LinkDown });
        }
        if request.longest(length) > self.frame_limit {
            return Err(Refusal::Oversize);
        }
        let header = request.header();
        let first = (length as usize).min(START_BYTES);
        let pieces = [
            libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: OFFLOAD_HEADER_BYTES },
            libc::iovec { iov_base: start.bytes().as_ptr().cast_mut().cast(), iov_len: first },
            libc::iovec { iov_base: frame.wrapping_add(first).cast_mut().cast(), iov_len: length as usize - first },
        ];
        let pieces = &pieces[usize::from(!self.has_headers)..];
        let count = pieces.len() as libc::c_int;
        loop {
            // SAFETY: header and first line are private, the rest lies within what the caller promised; all are only read.
            let put = unsafe { libc::pwritev2(self.raw(), pieces.as_ptr(), count, -1, libc::RWF_NOWAIT) };
            if put >= 0 {
                self.written.0 += 1;
                self.written.1 += u64::from(length);
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::ENOBUFS) => return Err(Refusal::NoRoom),
                Some(libc::EBADFD | libc::ENODEV) => {
                    self.end(error);
                    return Err(Refusal::Quarantined);
                }
                // EIO is what a device answers that is merely set down.
                _ => return Err(Refusal::Refused),
            }
        }
    }

    fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for TapPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Debug for TapPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TapPort").field("file", &self.file).field("is_gone", &self.is_gone).finish_non_exhaustive()
    }
}

const _: () = assert!(size_of::<libc::ifreq>() == 40);
