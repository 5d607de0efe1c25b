//! What a stack guest is, and what it counts.

use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{EthernetAddress, Ipv4Cidr};

use super::nic::{MTU_MAX, MTU_MIN};
use super::row::Row;
use crate::error::{Error, Result};

/// Smallest MTU at which IPv6 may be spoken.
pub(super) const IPV6_MTU_MIN: u32 = 1280;

/// The IPv6 link-local address of a MAC. Source: RFC 4291, appendix A.
#[must_use]
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// What a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Shown on its page.
    pub name: String,
    /// Its address on the wire: unicast.
    pub mac: [u8; 6],
    /// Its address and the length of its network's prefix. Without, only IPv6 link-local is spoken.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// Where packets for other networks go.
    pub gateway: Option<Ipv4Addr>,
    /// Largest IP packet in bytes, as the device was laid out for.
    pub mtu: u32,
    /// Most TCP connections at a time.
    pub connections_max: usize,
}

impl HostConfig {
    /// # Errors
    ///
    /// [`Error::Usage`]: MAC, MTU, address, prefix or gateway cannot be.
    pub(super) fn check(&self) -> Result<()> {
        let usage = |text: String| Err(Error::Usage(format!("stack guest {}: {text}", self.name)));
        if !EthernetAddress(self.mac).is_unicast() {
            return usage(format!("its MAC must be a unicast address; got {}", EthernetAddress(self.mac)));
        }
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return usage(format!("its MTU is {MTU_MIN} to {MTU_MAX}; got {}", self.mtu));
        }
        let Some((address, prefix)) = self.ipv4 else {
            return match self.gateway {
                None => Ok(()),
                Some(gateway) => usage(format!("gateway {gateway} is of no use without an IPv4 address")),
            };
        };
        if prefix > 32 {
            return usage(format!("a prefix has 0 to 32 bits; got {prefix}"));
        }
        let network = Ipv4Cidr::new(address, prefix);
        let is_host = |address: Ipv4Addr| {
            !(address.is_unspecified()
                || address.is_broadcast()
                || address.is_multicast()
                || network.broadcast() == Some(address))
        };
        if !is_host(address) {
            return usage(format!("{address}/{prefix} is no address of a host"));
        }
        match self.gateway {
            Some(gateway) if !is_host(gateway) || !network.contains_addr(&gateway) || gateway == address => {
                usage(format!("gateway {gateway} is no other host of its network, {address}/{prefix}"))
            }
            _ => Ok(()),
        }
    }
}

/// What a host has counted. Names and order: [`StackStats::NAMES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Replies dropped because the ring was full.
    pub tx_drops_no_room: u64,
    /// Echo requests answered.
    pub pings_answered: u64,
    /// UDP datagrams echoed or discarded.
    pub udp_datagrams: u64,
    /// TCP connections accepted so far.
    pub tcp_connections: u64,
    /// TCP connections there are now.
    pub tcp_open: u64,
    /// TCP connections refused because there were too many.
    pub tcp_refused: u64,
    /// Bytes echoed, discarded or sunk.
    pub tcp_bytes: u64,
    /// Requests answered, whatever the status.
    pub http_requests: u64,
}

impl StackStats {
    /// Names of the counters, in the order of a host's [`Row`].
    pub const NAMES: [&'static str; 12] = [
        "rx_frames",
        "rx_bytes",
        "tx_frames",
        "tx_bytes",
        "tx_drops_no_room",
        "pings_answered",
        "udp_datagrams",
        "tcp_connections",
        "tcp_open",
        "tcp_refused",
        "tcp_bytes",
        "http_requests",
    ];

    /// Counters of a row.
    pub const WORDS: usize = Self::NAMES.len();

    /// The counters, in the order of [`Self::NAMES`].
    #[must_use]
    pub const fn words(&self) -> [u64; Self::WORDS] {
        [
            self.rx_frames,
            self.rx_bytes,
            self.tx_frames,
            self.tx_bytes,
            self.tx_drops_no_room,
            self.pings_answered,
            self.udp_datagrams,
            self.tcp_connections,
            self.tcp_open,
            self.tcp_refused,
            self.tcp_bytes,
            self.http_requests,
        ]
    }

    /// What a host's row says now.
    #[must_use]
    pub fn read(row: &Row) -> Self {
        Self {
            rx_frames: row.load(0),
            rx_bytes: row.load(1),
            tx_frames: row.load(2),
            tx_bytes: row.load(3),
            tx_drops_no_room: row.load(4),
            pings_answered: row.load(5),
            udp_datagrams: row.load(6),
            tcp_connections: row.load(7),
            tcp_open: row.load(8),
            tcp_refused: row.load(9),
            tcp_bytes: row.load(10),
            http_requests: row.load(11),
        }
    }
}
