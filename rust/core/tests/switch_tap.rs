//! A TAP device of the kernel on the switch, in a network namespace of the test's own.
//!
//! Needs root, as the tests of network devices do everywhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io;
use std::mem::{size_of_val, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::Instant;

use crate::switch_guest::{DEADLINE, Guest, LONG_PAYLOAD_BYTES, Lab, SWITCH, frame, long_frame, mac};
use smoltcp::wire::{Ipv4Address, Ipv4Packet, TcpPacket};
use vbnet_core::error::Error;
use vbnet_core::net::frame::MacAddress;
use vbnet_core::port::latency::PortLatency;
use vbnet_core::port::{PortCounter, PortPart};
use vbnet_core::shm::doorbell::Doorbell;

/// What `frame` puts into a frame: for local experiments, so that the kernel's own chatter is told apart.
const ETHER_TYPE: u16 = 0x88b5;

fn checked(answer: libc::c_int) -> libc::c_int {
    assert!(answer >= 0, "{}", io::Error::last_os_error());
    answer
}

/// One device, and a raw socket on the kernel's side of it.
struct Tap {
    file: OwnedFd,
    socket: OwnedFd,
    index: libc::c_int,
    /// Its name, for questions about it.
    request: libc::ifreq,
}

fn open_tun(flags: libc::c_int) -> (OwnedFd, libc::ifreq) {
    let file: OwnedFd = File::options().read(true).write(true).open("/dev/net/tun").unwrap().into();
    // SAFETY: all zeroes is a valid ifreq; TUNSETIFF reads and fills one.
    let request = unsafe {
        let mut request: libc::ifreq = zeroed();
        request.ifr_ifru.ifru_flags = flags as i16;
        checked(libc::ioctl(file.as_raw_fd(), 0x4004_54ca, &raw mut request));
        request
    };
    (file, request)
}

fn any_socket() -> OwnedFd {
    // SAFETY: makes a socket, which is ours.
    unsafe { OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))) }
}

fn set_up(mut request: libc::ifreq, is_up: bool) {
    request.ifr_ifru.ifru_flags = if is_up { libc::IFF_UP as i16 } else { 0 };
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    checked(unsafe { libc::ioctl(any_socket().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) });
}

/// The kernel's side of a device that is up: sees and sends what the tests send.
fn raw_socket(index: libc::c_int, ether_type: u16) -> OwnedFd {
    // SAFETY: a socket, its address and its option, each with its own type.
    unsafe {
        let socket = checked(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0));
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_ll = zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ether_type.to_be();
        address.sll_ifindex = index;
        checked(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32));
        let patience = libc::timeval { tv_sec: DEADLINE.as_secs() as i64, tv_usec: 0 };
        let (option, size) = ((&raw const patience).cast(), size_of_val(&patience) as u32);
        checked(libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, option, size));
        socket
    }
}

impl Tap {
    /// Runs `test` in a thread with a network namespace of its own.
    fn in_namespace(test: impl FnOnce(Self) + Send + 'static) {
        Self::alone(|| test(Self::new(0)));
    }

    /// As above, with a header in front of each frame.
    fn in_namespace_with_headers(test: impl FnOnce(Self) + Send + 'static) {
        Self::alone(|| test(Self::new(libc::IFF_VNET_HDR)));
    }

    fn alone(test: impl FnOnce() + Send + 'static) {
        let run = move || {
            // SAFETY: only this thread moves.
            checked(unsafe { libc::unshare(libc::CLONE_NEWNET) });
            test();
        };
        thread::spawn(run).join().unwrap();
    }

    fn new(flags: libc::c_int) -> Self {
        let (file, request) = open_tun(libc::IFF_TAP | libc::IFF_NO_PI | flags);
        set_up(request, true);
        let mut asked = request;
        // SAFETY: SIOCGIFINDEX fills in one ifreq.
        let index = unsafe {
            checked(libc::ioctl(any_socket().as_raw_fd(), libc::SIOCGIFINDEX, &raw mut asked));
            asked.ifr_ifru.ifru_ifindex
        };
        Self { file, socket: raw_socket(index, ETHER_TYPE), index, request }
    }

    /// What the host is handed: the same device, on a description that blocks.
    fn shared(&self) -> OwnedFd {
        rustix::io::dup(&self.file).unwrap()
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(frame.len(), rustix::io::write(&self.socket, frame).unwrap());
    }

    fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70000];
        let length = rustix::io::read(&self.socket, &mut bytes).unwrap();
        bytes.truncate(length);
        bytes
    }

    /// Deletes the device under everybody who has it open.
    fn delete(&self) {
        let mut message = Vec::new();
        message.extend(32u32.to_ne_bytes());
        message.extend(libc::RTM_DELLINK.to_ne_bytes());
        message.extend((libc::NLM_F_REQUEST as u16 | libc::NLM_F_ACK as u16).to_ne_bytes());
        message.extend([0; 12]);
        message.extend(self.index.to_ne_bytes());
        message.extend([0; 8]);
        // SAFETY: a netlink socket, one message to the kernel and its answer.
        unsafe {
            let socket =
                checked(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE));
            let socket = OwnedFd::from_raw_fd(socket);
            rustix::io::write(&socket, &message).unwrap();
            let mut answer = [0; 1024];
            assert!(rustix::io::read(&socket, &mut answer).unwrap() >= 20);
            assert_eq!(0, i32::from_ne_bytes(answer[16..20].try_into().unwrap()));
        }
    }
}

/// The next frame that is the test's own and not the kernel's.
fn receive_own(guest: &mut Guest) -> Vec<u8> {
    loop {
        let frame = guest.receive();
        guest.post(1);
        if frame[12..14] == ETHER_TYPE.to_be_bytes() {
            return frame;
        }
    }
}

fn frames_cross_unchanged(tap: &Tap) {
    let mut lab = Lab::new(1);
    lab.fabric.port_add_tap(SWITCH, "tap", "", tap.shared(), 1500).unwrap();
    for length in [14, 15, 60, 63, 64, 65, 66, 127, 128, 129, 1000, 1514] {
        let up = frame(mac(9), mac(1), length, length as u8);
        lab.guests[0].send(&up);
        assert_eq!(up, tap.receive(), "{length}");

        let down = frame(mac(1), mac(9), length, !length as u8);
        tap.send(&down);
        assert_eq!(down, receive_own(&mut lab.guests[0]), "{length}");
    }
}

#[test]
fn frames_cross_between_kernel_and_guest_unchanged() {
    Tap::in_namespace(|tap| frames_cross_unchanged(&tap));
}

#[test]
fn frames_cross_unchanged_with_headers_in_front() {
    Tap::in_namespace_with_headers(|tap| frames_cross_unchanged(&tap));
}

#[test]
fn device_that_is_asleep_wakes_the_worker_every_time() {
    Tap::in_namespace(|tap| {
        let mut lab = Lab::new(1);
        lab.fabric.port_add_tap(SWITCH, "tap", "", tap.shared(), 1500).unwrap();
        for index in 0..500u32 {
            let sent = frame(mac(1), mac(9), 64, index as u8);
            tap.send(&sent);
            assert_eq!(sent, receive_own(&mut lab.guests[0]));
        }
    });
}

#[test]
fn turns_of_a_device_are_timed_though_its_queue_is_not() {
    Tap::in_namespace(|tap| {
        let mut lab = Lab::new(1);
        lab.fabric.port_add_tap(SWITCH, "tap", "", tap.shared(), 1500).unwrap();
        let start = Instant::now();
        let samples = |lab: &Lab| {
            let blocks = lab.counters.reader().blocks();
            let is_taps = |labels: &str| labels.contains("device=tap,");
            let block = blocks.iter().find(|block| block.kind == "port_latency" && is_taps(&block.labels)).unwrap();
            [PortLatency::Service, PortLatency::TransmitResidence, PortLatency::HostWakeup]
                .map(|what| (block.values[what.start()], block.values[what.start() + 3]))
        };

        while samples(&lab)[0].0 < 3 {
            tap.send(&frame(mac(1), mac(9), 64, 7));
            receive_own(&mut lab.guests[0]);
        }

        let [(_, longest_ns), residence, wakeup] = samples(&lab);
        assert!((1..=start.elapsed().as_nanos() as u64).contains(&longest_ns), "{longest_ns} ns");
        assert_eq!(((0, 0), (0, 0)), (residence, wakeup));
    });
}

#[test]
fn burst_from_the_kernel_arrives_whole_and_in_order() {
    Tap::in_namespace(|tap| {
        let mut lab = Lab::new(1);
        lab.fabric.port_add_tap(SWITCH, "tap", "", tap.shared(), 1500).unwrap();
        let sent: Vec<_> = (0..40).map(|index| frame(mac(1), mac(9), 100, index)).collect();

        sent.iter().for_each(|frame| tap.send(frame));

        let received: Vec<_> = (0..40).map(|_| receive_own(&mut lab.guests[0])).collect();
        assert_eq!(sent, received);
    });
}

#[test]
fn frame_longer_than_the_ports_mtu_is_dropped_and_counted() {
    Tap::in_namespace(|tap| {
        let mut lab = Lab::new(1);
        lab.fabric.port_add_tap(SWITCH, "tap", "", tap.shared(), 500).unwrap();
        let fits = frame(mac(1), mac(9), 518, 1);

        tap.send(&frame(mac(1), mac(9), 519, 0));
        tap.send(&fits);
        assert_eq!(fits, receive_own(&mut lab.guests[0]));
        lab.guests[0].send(&frame(mac(9), mac(1), 519, 2));
        lab.settle();

        assert_eq!(1, lab.count_of("tap", PortCounter::TransmitDropOversize));
        assert_eq!(1, lab.count_of("tap", PortCounter::ReceiveDropOversize));
    });
}

#[test]
fn deleted_device_is_reported_once_and_neighbours_go_on() {
    Tap::in_namespace(|tap| {
        let mut lab = Lab::new(2);
        let id = lab.fabric.port_add_tap(SWITCH, "tap", "", tap.shared(), 1500).unwrap();

        tap.delete();

        let event = lab.fault();
        assert_eq!((id, PortPart::Device, "device_gone"), (event.port, event.part, event.reason));
        assert!(lab.fabric.ports().unwrap().into_iter().any(|port| port.id == id && port.is_gone));
        lab.assert_passes(0, 1);
        lab.assert_passes(1, 0);
        assert!(lab.fabric.take_faults().is_empty());
        assert!(lab.count_of("tap", PortCounter::ReceiveDropQuarantined) >= 2);
        lab.fabric.port_remove(id).unwrap();
    });
}

#[test]
fn device_that_is_set_down_drops_and_comes_back() {
    Tap::in_namespace(|tap| {
        let mut lab = Lab::new(1);
        lab.fabric.port_add_tap(SWITCH, "tap", "", tap.shared(), 1500).unwrap();
        set_up(tap.request, false);
        lab.guests[0].send(&frame(mac(9), mac(1), 64, 0));
        lab.settle();
        assert_eq!(1, lab.count_of("tap", PortCounter::ReceiveDropRefused));

        set_up(tap.request, true);
        // A socket that saw the device go down reports that first.
        let tap = Tap { socket: raw_socket(tap.index, ETHER_TYPE), ..tap };
        let sent = frame(MacAddress::BROADCAST, mac(1), 64, 1);
        lab.guests[0].send(&sent);

        assert_eq!(sent, tap.receive());
        assert!(lab.fabric.take_faults().is_empty());
    });
}

#[test]
fn descriptor_that_is_no_tap_device_is_refused() {
    Tap::in_namespace(|_tap| {
        let lab = Lab::new(0);
        let regular = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let bell = rustix::io::dup(Doorbell::create().unwrap().as_fd()).unwrap();
        let unattached: OwnedFd = File::options().read(true).write(true).open("/dev/net/tun").unwrap().into();
        let tun = open_tun(libc::IFF_TUN | libc::IFF_NO_PI).0;
        for file in [regular, bell, tun] {
            let answer = lab.fabric.port_add_tap(SWITCH, "wrong", "", file, 1500);
            assert!(matches!(answer, Err(Error::Usage(_))), "{answer:?}");
        }
        let answer = lab.fabric.port_add_tap(SWITCH, "wrong", "", unattached, 1500);
        assert!(matches!(answer, Err(Error::Machine { .. })), "{answer:?}");
    });
}

const IPV4: u16 = 0x0800;
/// A socket that sends and receives with headers in front.
fn socket_with_headers(tap: &Tap) -> OwnedFd {
    let socket = raw_socket(tap.index, IPV4);
    let (yes, size) = (1 as libc::c_int, size_of::<libc::c_int>() as u32);
    // SAFETY: the option takes an int.
    checked(unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const yes).cast(), size)
    });
    socket
}

#[test]
fn long_frame_from_the_kernel_reaches_a_guest_in_segments() {
    Tap::in_namespace_with_headers(|tap| {
        let mut lab = Lab::new(1);
        lab.fabric.port_add_tap(SWITCH, "tap", "", tap.shared(), 1500).unwrap();
        let (header, long) = long_frame(mac(1), mac(9));

        rustix::io::write(socket_with_headers(&tap), &[header, long.clone()].concat()).unwrap();

        let mut payload = Vec::new();
        while payload.len() < LONG_PAYLOAD_BYTES {
            let frame = lab.guests[0].receive();
            lab.guests[0].post(1);
            if frame[12..14] == IPV4.to_be_bytes() {
                let tcp = TcpPacket::new_checked(&frame[34..]).unwrap();
                let ends = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| Ipv4Address::from(ip).into());
                assert!(tcp.verify_checksum(&ends[0], &ends[1]));
                assert!(Ipv4Packet::new_checked(&frame[14..]).unwrap().verify_checksum());
                assert_eq!(1 + payload.len() as i32, tcp.seq_number().0);
                payload.extend(tcp.payload());
            }
        }
        assert_eq!(long[54..], payload);
        lab.settle();
        assert_eq!(1, lab.count_of("tap", PortCounter::TransmitOffloads));
        assert_eq!(1, lab.count(0, PortCounter::SegmentedFrames));
    });
}

#[test]
fn long_frame_between_two_devices_stays_whole() {
    Tap::in_namespace_with_headers(|tap| {
        let lab = Lab::new(0);
        let other = Tap::new(libc::IFF_VNET_HDR);
        lab.fabric.port_add_tap(SWITCH, "tap", "", tap.shared(), 1500).unwrap();
        lab.fabric.port_add_tap(SWITCH, "other", "", other.shared(), 1500).unwrap();
        let (header, long) = long_frame(mac(2), mac(9));
        let (near, far) = (socket_with_headers(&tap), socket_with_headers(&other));
        let sent = [header, long].concat();

        rustix::io::write(&near, &sent).unwrap();

        let mut received = vec![0; 70000];
        let length = rustix::io::read(&far, &mut received).unwrap();
        // The kernel tells of its own how much of the frame lies together.
        assert_eq!(sent[..2], received[..2]);
        assert_eq!(sent[4..], received[4..length]);
        lab.barrier();
        assert_eq!(1, lab.count_of("other", PortCounter::ReceiveOffloads));
        assert_eq!(0, lab.count_of("other", PortCounter::SegmentedFrames));
    });
}

#[test]
fn headers_resized_behind_our_back_spoil_only_their_own_frames() {
    Tap::in_namespace_with_headers(|tap| {
        let mut lab = Lab::new(2);
        lab.fabric.port_add_tap(SWITCH, "tap", "", tap.shared(), 1500).unwrap();
        let (header, long) = long_frame(mac(1), mac(9));
        let sent = [header, long].concat();
        let socket = socket_with_headers(&tap);
        for bytes in [11 as libc::c_int, 12, 64, 1000] {
            // SAFETY: TUNSETVNETHDRSZ reads one int.
            checked(unsafe { libc::ioctl(tap.file.as_raw_fd(), 0x4004_54d8, &raw const bytes) });
            rustix::io::write(&socket, &sent).unwrap();
            tap.send(&frame(MacAddress::BROADCAST, mac(9), 1000, 1));
            // Whole frames of a guest pass amid those that the kernel and the device understand differently.
            for (from, to) in [(0, 1), (1, 0)] {
                let sent = frame(MacAddress::BROADCAST, mac(0xf0 + from as u8), 200, bytes as u8);
                lab.guests[to].refill();
                lab.guests[from].send(&sent);
                while lab.guests[to].receive() != sent {}
            }
        }
        assert!(lab.fabric.take_faults().is_empty());
    });
}
