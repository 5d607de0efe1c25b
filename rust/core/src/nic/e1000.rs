//! Intel's 82540EM, the card of many hypervisors: its registers, legacy descriptors, filters, statistics and throttling.
//!
//! ```text
//!   TX   TDBAL ─▶ │addr, length, cmd, status│…   head (ours) ─▶ … ◀─ tail (the driver's): frames to send
//!   RX   RDBAL ─▶ │addr, length, status     │…   head (ours) ─▶ … ◀─ tail (the driver's): empty buffers
//!   ICR & IMS ─▶ line, at most every ITR × 256 ns
//! ```
//!
//! Only registers that a driver of legacy descriptors uses do something; others that exist keep what was written; the rest
//! reads as zero. Descriptors that ask for checksums, VLAN tags or another format end the transmitter: nobody offered them.
//! `docs/wire/nics.md` lists what there is. Source: Intel, PCI/PCI-X Family of Gigabit Ethernet Controllers Software
//! Developer's Manual (8254x), chapters 3 (descriptors), 5 (EEPROM), 13 (registers).

use super::{CHECK_SEQUENCE_BYTES, Dma, FRAME_BYTES_MAX, Half, Missed, Model, Sent, WIRE_BYTES_MIN};
use crate::error::Fault;
use crate::net::frame::{HEADER_BYTES, MacAddress};

/// Registers, by their offsets in bytes.
pub mod register {
    #![allow(missing_docs)]
    pub const CTRL: u32 = 0x0000;
    pub const STATUS: u32 = 0x0008;
    pub const EECD: u32 = 0x0010;
    pub const EERD: u32 = 0x0014;
    pub const MDIC: u32 = 0x0020;
    pub const ICR: u32 = 0x00c0;
    pub const ITR: u32 = 0x00c4;
    pub const ICS: u32 = 0x00c8;
    pub const IMS: u32 = 0x00d0;
    pub const IMC: u32 = 0x00d8;
    pub const RCTL: u32 = 0x0100;
    pub const TCTL: u32 = 0x0400;
    pub const RDBAL: u32 = 0x2800;
    pub const RDBAH: u32 = 0x2804;
    pub const RDLEN: u32 = 0x2808;
    pub const RDH: u32 = 0x2810;
    pub const RDT: u32 = 0x2818;
    pub const TDBAL: u32 = 0x3800;
    pub const TDBAH: u32 = 0x3804;
    pub const TDLEN: u32 = 0x3808;
    pub const TDH: u32 = 0x3810;
    pub const TDT: u32 = 0x3818;
    pub const STATISTICS: u32 = 0x4000;
    pub const MPC: u32 = 0x4010;
    pub const GPRC: u32 = 0x4074;
    pub const BPRC: u32 = 0x4078;
    pub const MPRC: u32 = 0x407c;
    pub const GPTC: u32 = 0x4080;
    pub const GORCL: u32 = 0x4088;
    pub const GORCH: u32 = 0x408c;
    pub const GOTCL: u32 = 0x4090;
    pub const GOTCH: u32 = 0x4094;
    pub const RNBC: u32 = 0x40a0;
    pub const ROC: u32 = 0x40ac;
    pub const TORL: u32 = 0x40c0;
    pub const TORH: u32 = 0x40c4;
    pub const TOTL: u32 = 0x40c8;
    pub const TOTH: u32 = 0x40cc;
    pub const TPR: u32 = 0x40d0;
    pub const TPT: u32 = 0x40d4;
    pub const MPTC: u32 = 0x40f0;
    pub const BPTC: u32 = 0x40f4;
    pub const MTA: u32 = 0x5200;
    pub const RAL: u32 = 0x5400;
    pub const RAH: u32 = 0x5404;
}
use register as at;

/// Causes of interrupts, as ICR, ICS, IMS and IMC have them.
pub mod cause {
    /// A descriptor that asked for it was sent.
    pub const TXDW: u32 = 1 << 0;
    /// The transmit ring ran empty.
    pub const TXQE: u32 = 1 << 1;
    /// The carrier came or went.
    pub const LSC: u32 = 1 << 2;
    /// Few receive buffers are left.
    pub const RXDMT0: u32 = 1 << 4;
    /// A frame found no buffer.
    pub const RXO: u32 = 1 << 6;
    /// A frame came.
    pub const RXT0: u32 = 1 << 7;
    /// All that there are.
    pub(super) const ALL: u32 = 0x0001_f6df;
}
use cause::{LSC, RXDMT0, RXO, RXT0, TXDW, TXQE};

/// CTRL: reset everything.
pub const CTRL_RST: u32 = 1 << 26;
/// CTRL: the driver wants the link up.
pub const CTRL_SLU: u32 = 1 << 6;
const CTRL_PHY_RST: u32 = 1 << 31;
/// STATUS: the link is up.
pub const STATUS_LU: u32 = 1 << 1;
const STATUS_FULL_DUPLEX: u32 = 1;
const STATUS_SPEED_1000: u32 = 2 << 6;
/// EERD: read the word whose number is in bits 8 to 15.
pub const EERD_START: u32 = 1;
/// EERD: it was read, and is in the upper half.
pub const EERD_DONE: u32 = 1 << 4;
const EECD_PRESENT: u32 = 1 << 8;
const EECD_GRANT: u32 = 1 << 7;
const EECD_REQUEST: u32 = 1 << 6;
const MDIC_READ: u32 = 2 << 26;
const MDIC_OPERATION: u32 = 3 << 26;
const MDIC_READY: u32 = 1 << 28;
const MDIC_ERROR: u32 = 1 << 30;

/// RCTL: receive.
pub const RCTL_EN: u32 = 1 << 1;
/// RCTL: frames for any station.
pub const RCTL_UPE: u32 = 1 << 3;
/// RCTL: frames for any group.
pub const RCTL_MPE: u32 = 1 << 4;
/// RCTL: frames longer than Ethernet's.
pub const RCTL_LPE: u32 = 1 << 5;
/// RCTL: broadcasts.
pub const RCTL_BAM: u32 = 1 << 15;
/// RCTL: leave the check sequence out.
pub const RCTL_SECRC: u32 = 1 << 26;
const RCTL_SIZE_EXTENSION: u32 = 1 << 25;
/// TCTL: transmit.
pub const TCTL_EN: u32 = 1 << 1;
/// TCTL: fill short frames up.
pub const TCTL_PSP: u32 = 1 << 3;
/// RAH: the pair holds an address.
pub const RAH_AV: u32 = 1 << 31;

/// Command of a transmit descriptor: the last of its frame.
pub const CMD_EOP: u8 = 0x01;
/// As above: append a check sequence.
pub const CMD_IFCS: u8 = 0x02;
/// As above: say when it is done.
pub const CMD_RS: u8 = 0x08;
/// Interrupts may wait: every one here waits for the throttle and nothing else.
const CMD_IDE: u8 = 0x80;
const CMD_RPS: u8 = 0x10;
/// Status of either kind of descriptor: done.
pub const STATE_DD: u8 = 0x01;
/// Status of a receive descriptor: the last of its frame.
pub const STATE_EOP: u8 = 0x02;
/// As above: no checksum was looked at.
const STATE_IXSM: u8 = 0x04;
/// As above: it passed by the hashed filter only.
const STATE_PIF: u8 = 0x80;

/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: u64 = 16;
/// Rings have a multiple of these descriptors.
pub const RING_STEP: u32 = 8;
/// Most descriptors of a ring.
pub const RING_MAX: u32 = 65_528;
/// Most descriptors that one frame is taken from.
const PIECES_MAX: u32 = 64;
/// Longest frame without RCTL.LPE, its check sequence left out.
const SHORT_LIMIT: usize = 1518;
/// One unit of ITR.
const THROTTLE_UNIT_NS: u64 = 256;

const EEPROM_WORDS: usize = 64;
/// Sum of all words of the EEPROM.
const EEPROM_SUM: u16 = 0xbaba;
const STATISTICS: usize = 64;
const ADDRESSES: usize = 16;
const TABLE: usize = 128;

/// Registers that keep what is written to them and do nothing else here: flow control, timers that would delay interrupts
/// beyond the throttle, thresholds, LEDs, the sizes of a FIFO that is none, VLAN types, power management.
const KEPT: [u32; 25] = [
    0x0018, 0x0028, 0x002c, 0x0030, 0x0038, 0x0170, 0x0178, 0x0410, 0x0458, 0x0e00, 0x1000, 0x2160, 0x2168, 0x2820,
    0x2828, 0x282c, 0x2c00, 0x3000, 0x3820, 0x3828, 0x382c, 0x3830, 0x5000, 0x5800, 0x5820,
];

/// A ring as its registers describe it.
#[derive(Clone, Copy, Debug, Default)]
struct Ring {
    base: u64,
    bytes: u32,
    head: u32,
    tail: u32,
}

impl Ring {
    const fn size(&self) -> u32 {
        self.bytes / DESCRIPTOR_BYTES as u32
    }

    /// How many descriptors the driver has given; indices outside of the ring are its fault.
    const fn given(&self) -> Result<u32, Fault> {
        let size = self.size();
        if size == 0 {
            return Ok(0);
        }
        let further = if self.head > self.tail { self.head } else { self.tail };
        if further >= size {
            return Err(Fault::IndexOutOfRange { index: further, limit: size });
        }
        Ok((self.tail + size - self.head) % size)
    }

    /// Where the descriptor at the head is.
    const fn place(&self, ahead: u32) -> u64 {
        // Only called after `given`: the ring is not empty. A base near the end of all addresses wraps, and is nowhere.
        self.base.wrapping_add(((self.head + ahead) % self.size()) as u64 * DESCRIPTOR_BYTES)
    }

    const fn advance(&mut self, count: u32) {
        self.head = (self.head + count) % self.size();
    }

    fn write(&mut self, register: u32, value: u32) {
        match register & 0xff {
            0x00 => self.base = (self.base & !0xffff_ffff) | u64::from(value & !0xf),
            0x04 => self.base = (self.base & 0xffff_ffff) | u64::from(value) << 32,
            0x08 => self.bytes = value & 0x000f_ff80,
            0x10 => self.head = value & 0xffff,
            0x18 => self.tail = value & 0xffff,
            _ => {}
        }
    }

    const fn read(&self, register: u32) -> u32 {
        match register & 0xff {
            0x00 => self.base as u32,
            0x04 => (self.base >> 32) as u32,
            0x08 => self.bytes,
            0x10 => self.head,
            0x18 => self.tail,
            _ => 0,
        }
    }
}

/// Counters that are cleared by being read and stop at their end. The upper half of a wide one clears both.
#[derive(Debug)]
struct Statistics([u32; STATISTICS]);

impl Statistics {
    /// Lower halves of the wide ones.
    const WIDE: [u32; 4] = [at::GORCL, at::GOTCL, at::TORL, at::TOTL];

    const fn index(register: u32) -> usize {
        ((register - at::STATISTICS) / 4) as usize
    }

    fn add(&mut self, register: u32, amount: u32) {
        if let Some(value) = self.0.get_mut(Self::index(register)) {
            *value = value.saturating_add(amount);
        }
    }

    fn add_wide(&mut self, register: u32, amount: u64) {
        let low = Self::index(register);
        if let Some([low, high]) = self.0.get_mut(low..low + 2) {
            let value = (u64::from(*high) << 32 | u64::from(*low)).saturating_add(amount);
            (*low, *high) = (value as u32, (value >> 32) as u32);
        }
    }

    fn take(&mut self, register: u32) -> u32 {
        let index = Self::index(register);
        let is_low = Self::WIDE.contains(&register);
        let Some(value) = self.0.get_mut(index) else { return 0 };
        if is_low {
            return *value;
        }
        let found = std::mem::take(value);
        if Self::WIDE.iter().any(|&low| low + 4 == register) {
            self.0[index - 1] = 0;
        }
        found
    }

    /// A frame of `bytes`, check sequence included, by the histogram that begins at `register`.
    fn add_size(&mut self, register: u32, bytes: usize) {
        let class = [64, 127, 255, 511, 1023].iter().position(|&limit| bytes <= limit).unwrap_or(5);
        self.add(register + 4 * class as u32, 1);
    }
}

/// Histograms by size.
const RECEIVED_BY_SIZE: u32 = 0x405c;
const SENT_BY_SIZE: u32 = 0x40d8;

/// One card.
#[derive(Debug)]
pub struct E1000 {
    eeprom: [u16; EEPROM_WORDS],
    ctrl: u32,
    eecd: u32,
    eerd: u32,
    mdic: u32,
    icr: u32,
    ims: u32,
    itr: u32,
    rctl: u32,
    tctl: u32,
    tx: Ring,
    rx: Ring,
    addresses: [u32; 2 * ADDRESSES],
    groups: [u32; TABLE],
    vlans: [u32; TABLE],
    kept: [u32; KEPT.len()],
    statistics: Statistics,
    has_carrier: bool,
    is_acknowledged: bool,
    /// The frame that descriptors are being taken for, and how many were.
    partial: Vec<u8>,
    pieces: u32,
    transmit_fault: Option<Fault>,
    receive_fault: Option<Fault>,
    resets: u64,
}

impl E1000 {
    /// A card with this address in its EEPROM, as it is after power came: its link is up when its carrier is.
    #[must_use]
    pub fn new(mac: MacAddress) -> Self {
        let mut eeprom = [0; EEPROM_WORDS];
        let [a, b, c, d, e, f] = mac.bytes();
        for (word, pair) in eeprom.iter_mut().zip([[a, b], [c, d], [e, f]]) {
            *word = u16::from_le_bytes(pair);
        }
        // Subsystem, vendor and device: Intel's 82540EM.
        (eeprom[0x0b], eeprom[0x0c], eeprom[0x0d], eeprom[0x0e]) = (0x001e, 0x8086, 0x100e, 0x8086);
        let sum = eeprom.iter().fold(0u16, |sum, word| sum.wrapping_add(*word));
        eeprom[EEPROM_WORDS - 1] = EEPROM_SUM.wrapping_sub(sum);
        let mut card = Self {
            eeprom,
            ctrl: 0,
            eecd: 0,
            eerd: 0,
            mdic: 0,
            icr: 0,
            ims: 0,
            itr: 0,
            rctl: 0,
            tctl: 0,
            tx: Ring::default(),
            rx: Ring::default(),
            addresses: [0; 2 * ADDRESSES],
            groups: [0; TABLE],
            vlans: [0; TABLE],
            kept: [0; KEPT.len()],
            statistics: Statistics([0; STATISTICS]),
            has_carrier: true,
            is_acknowledged: false,
            partial: Vec::new(),
            pieces: 0,
            transmit_fault: None,
            receive_fault: None,
            resets: 0,
        };
        card.set_defaults();
        card
    }

    /// As after a reset. What ended a half ended it for good; EEPROM and carrier stay.
    fn set_defaults(&mut self) {
        self.ctrl = 1;
        (self.eecd, self.eerd, self.mdic) = (EECD_PRESENT, 0, MDIC_READY);
        (self.icr, self.ims, self.itr, self.rctl, self.tctl) = (0, 0, 0, 0, 0);
        (self.tx, self.rx) = (Ring::default(), Ring::default());
        (self.groups, self.vlans) = ([0; TABLE], [0; TABLE]);
        self.kept = [0; KEPT.len()];
        self.statistics = Statistics([0; STATISTICS]);
        self.partial.clear();
        self.pieces = 0;
        self.addresses = [0; 2 * ADDRESSES];
        let word = |index: usize| u32::from(self.eeprom[index]);
        (self.addresses[0], self.addresses[1]) = (word(0) | word(1) << 16, word(2) | RAH_AV);
    }

    const fn is_link_up(&self) -> bool {
        self.has_carrier && self.ctrl & CTRL_SLU != 0
    }

    const fn status(&self) -> u32 {
        let link = if self.is_link_up() { STATUS_LU } else { 0 };
        STATUS_FULL_DUPLEX | STATUS_SPEED_1000 | link
    }

    fn set_ctrl(&mut self, value: u32) {
        if value & CTRL_RST != 0 {
            self.resets += 1;
            self.set_defaults();
            return;
        }
        let was_up = self.is_link_up();
        self.ctrl = value & !(CTRL_RST | CTRL_PHY_RST);
        if self.is_link_up() != was_up {
            self.icr |= LSC;
        }
    }

    fn read_eeprom(&mut self, value: u32) {
        if value & EERD_START == 0 {
            self.eerd = value & 0xff00;
            return;
        }
        let address = value >> 8 & 0xff;
        let word = self.eeprom.get(address as usize).copied().unwrap_or(0);
        self.eerd = u32::from(word) << 16 | address << 8 | EERD_DONE;
    }

    /// The transceiver: nothing there can be configured, and it says how the link is.
    fn ask_transceiver(&mut self, value: u32) {
        let (register, transceiver) = (value >> 16 & 0x1f, value >> 21 & 0x1f);
        let mut answer = value & !(0xffff | MDIC_READY | MDIC_ERROR) | MDIC_READY;
        if transceiver != 1 {
            answer |= MDIC_ERROR;
        } else if value & MDIC_OPERATION == MDIC_READ {
            answer |= match register {
                0 => 0x1140,
                1 => 0x7949 | if self.has_carrier { 0x24 } else { 0 },
                2 => 0x0141,
                3 => 0x0c20,
                4 => 0x0de1,
                5 => 0x45e1,
                _ => 0,
            };
        } else {
            answer |= value & 0xffff;
        }
        self.mdic = answer;
    }

    /// Bytes of a receive buffer.
    const fn buffer_bytes(&self) -> usize {
        let size = 2048 >> (self.rctl >> 16 & 3);
        // The extension makes all but the first sixteen times as large; with the first it is reserved.
        if self.rctl & RCTL_SIZE_EXTENSION != 0 && size != 2048 { size * 16 } else { size }
    }

    /// Whether a frame passes the filters; `Some(true)`: by a hash only.
    fn admits(&self, frame: &[u8]) -> Option<bool> {
        let destination = frame.first_chunk::<6>()?;
        self.admits_vlan(frame)?;
        let is_group = destination[0] & 1 != 0;
        let is_promiscuous = self.rctl & if is_group { RCTL_MPE } else { RCTL_UPE } != 0;
        let is_broadcast = *destination == [0xff; 6] && self.rctl & RCTL_BAM != 0;
        if is_promiscuous || is_broadcast || self.has_address(*destination) {
            return Some(false);
        }
        (is_group && self.has_group(*destination)).then_some(true)
    }

    fn has_address(&self, [a, b, c, d, e, f]: [u8; 6]) -> bool {
        let (low, high) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0]));
        let (pairs, _) = self.addresses.as_chunks::<2>();
        pairs.iter().any(|&[known_low, known_high]| known_low == low && known_high & (RAH_AV | 0xffff) == high | RAH_AV)
    }

    /// Whether the table of hashes has a group's.
    fn has_group(&self, [.., e, f]: [u8; 6]) -> bool {
        let upper = u32::from(u16::from_le_bytes([e, f]));
        let hash = upper >> [4, 3, 2, 0][(self.rctl >> 12 & 3) as usize] & 0xfff;
        self.groups[(hash >> 5) as usize] >> (hash & 31) & 1 != 0
    }

    /// Nothing, if VLAN filtering refuses the frame.
    fn admits_vlan(&self, frame: &[u8]) -> Option<()> {
        const FILTER: u32 = 1 << 18;
        let tag = frame.get(12..16).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        let Some([0x81, 0x00, high, low]) = tag.filter(|_| self.rctl & FILTER != 0) else { return Some(()) };
        let number = u16::from_be_bytes([high, low]) & 0xfff;
        (self.vlans[usize::from(number >> 5)] >> (number & 31) & 1 != 0).then_some(())
    }

    /// Takes the next descriptor of the transmit ring.
    fn take_piece(&mut self, memory: &dyn Dma, frame: &mut Vec<u8>) -> Result<Sent, Fault> {
        if self.tctl & TCTL_EN == 0 || self.tx.given()? == 0 {
            return Ok(Sent::Nothing);
        }
        let place = self.tx.place(0);
        let mut copy = [0; DESCRIPTOR_BYTES as usize];
        memory.read(place, &mut copy)?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, .., command, _, _, _, _] = copy;
        let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        let known = CMD_EOP | CMD_IFCS | CMD_RS | CMD_RPS | CMD_IDE;
        if command & !known != 0 {
            return Err(Fault::UnknownFlags { flags: command & !known });
        }
        self.pieces += 1;
        if self.pieces > PIECES_MAX {
            return Err(Fault::ChainTooLong { limit: PIECES_MAX });
        }
        let start = self.partial.len();
        if start + length > FRAME_BYTES_MAX {
            return Err(Fault::TooLong { length: (start + length) as u32, limit: FRAME_BYTES_MAX as u32 });
        }
        self.partial.resize(start + length, 0);
        memory.read(address, &mut self.partial[start..]).inspect_err(|_| self.partial.truncate(start))?;
        if command & (CMD_RS | CMD_RPS) != 0 {
            let state =
                u64::from_le_bytes([l0, l1, copy[10], command, copy[12] | STATE_DD, copy[13], copy[14], copy[15]]);
            memory.publish(place + 8, state)?;
            self.icr |= TXDW;
        }
        self.tx.advance(1);
        if self.tx.head == self.tx.tail {
            self.icr |= TXQE;
        }
        if command & CMD_EOP == 0 {
            return Ok(Sent::Piece);
        }
        self.pieces = 0;
        Ok(self.finish(frame))
    }

    /// The frame is whole.
    fn finish(&mut self, frame: &mut Vec<u8>) -> Sent {
        std::mem::swap(frame, &mut self.partial);
        self.partial.clear();
        if frame.len() < HEADER_BYTES as usize {
            let is_empty = frame.is_empty();
            frame.clear();
            return if is_empty { Sent::Piece } else { Sent::Runt };
        }
        if self.tctl & TCTL_PSP != 0 && frame.len() < WIRE_BYTES_MIN {
            frame.resize(WIRE_BYTES_MIN, 0);
        }
        let bytes = frame.len() + CHECK_SEQUENCE_BYTES;
        for register in [at::GPTC, at::TPT] {
            self.statistics.add(register, 1);
        }
        for register in [at::GOTCL, at::TOTL] {
            self.statistics.add_wide(register, bytes as u64);
        }
        self.statistics.add_size(SENT_BY_SIZE, bytes);
        if let Some(register) = kind_of(frame, at::BPTC, at::MPTC) {
            self.statistics.add(register, 1);
        }
        Sent::Frame
    }

    /// Writes a frame into as many buffers as it needs.
    fn put(&mut self, memory: &dyn Dma, frame: &[u8], is_inexact: bool) -> Result<(), Missed> {
        let mut given = self.rx.given().map_err(|fault| self.end_receiver(fault))?;
        let size = self.buffer_bytes();
        let on_wire = frame.len().max(WIRE_BYTES_MIN);
        let kept = on_wire + if self.rctl & RCTL_SECRC != 0 { 0 } else { CHECK_SEQUENCE_BYTES };
        let wanted = kept.div_ceil(size) as u32;
        if wanted > given {
            self.icr |= RXO;
            self.statistics.add(at::MPC, 1);
            self.statistics.add(at::RNBC, 1);
            return Err(Missed::NoRoom);
        }
        for index in 0..wanted {
            let skip = index as usize * size;
            let bytes = size.min(kept - skip);
            self.put_piece(memory, index, frame, skip, bytes, (index + 1 == wanted, is_inexact))
                .map_err(|fault| self.end_receiver(fault))?;
        }
        self.rx.advance(wanted);
        let threshold = self.rx.size() >> (1 + (self.rctl >> 8 & 3).min(2));
        let was_above = given > threshold;
        given -= wanted;
        self.icr |= RXT0 | if was_above && given <= threshold { RXDMT0 } else { 0 };
        self.count_received(frame, on_wire + CHECK_SEQUENCE_BYTES);
        Ok(())
    }

    /// Fills the buffer of the descriptor `ahead` of the head with `bytes` of the frame and the zeroes behind it, from `skip`
    /// on.
    fn put_piece(
        &self,
        memory: &dyn Dma,
        ahead: u32,
        frame: &[u8],
        skip: usize,
        bytes: usize,
        (is_last, is_inexact): (bool, bool),
    ) -> Result<(), Fault> {
        const ZEROES: [u8; WIRE_BYTES_MIN + CHECK_SEQUENCE_BYTES] = [0; WIRE_BYTES_MIN + CHECK_SEQUENCE_BYTES];
        let place = self.rx.place(ahead);
        let mut address = [0; 8];
        memory.read(place, &mut address)?;
        let address = u64::from_le_bytes(address);
        let piece = &frame[skip.min(frame.len())..(skip + bytes).min(frame.len())];
        memory.write(address, piece)?;
        memory.write(address.wrapping_add(piece.len() as u64), &ZEROES[..bytes - piece.len()])?;
        let mut state = STATE_DD | STATE_IXSM;
        if is_last {
            state |= STATE_EOP | if is_inexact { STATE_PIF } else { 0 };
        }
        let [low, high] = (bytes as u16).to_le_bytes();
        memory.publish(place.wrapping_add(8), u64::from_le_bytes([low, high, 0, 0, state, 0, 0, 0]))
    }

    fn count_received(&mut self, frame: &[u8], bytes: usize) {
        self.statistics.add(at::GPRC, 1);
        self.statistics.add_wide(at::GORCL, bytes as u64);
        self.statistics.add_size(RECEIVED_BY_SIZE, bytes);
        if let Some(register) = kind_of(frame, at::BPRC, at::MPRC) {
            self.statistics.add(register, 1);
        }
    }

    fn end_receiver(&mut self, fault: Fault) -> Missed {
        self.receive_fault.get_or_insert(fault);
        Missed::Broken
    }
}

/// The register that counts frames to everybody or to groups, if this is one.
fn kind_of(frame: &[u8], broadcast: u32, group: u32) -> Option<u32> {
    match frame.first_chunk::<6>()? {
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => Some(broadcast),
        [first, ..] if first & 1 != 0 => Some(group),
        _ => None,
    }
}

impl Model for E1000 {
    fn name(&self) -> &'static str {
        "e1000"
    }

    fn read(&mut self, offset: u32, bytes: u32) -> u32 {
        if bytes != 4 || !offset.is_multiple_of(4) {
            return 0;
        }
        match offset {
            at::CTRL | 0x0004 => self.ctrl,
            at::STATUS => self.status(),
            at::EECD => self.eecd,
            at::EERD => self.eerd,
            at::MDIC => self.mdic,
            at::ICR => {
                self.is_acknowledged = true;
                std::mem::take(&mut self.icr)
            }
            at::ITR => self.itr,
            at::IMS => self.ims,
            at::RCTL => self.rctl,
            at::TCTL => self.tctl,
            0x2800..=0x2818 => self.rx.read(offset),
            0x3800..=0x3818 => self.tx.read(offset),
            0x4000..=0x40fc => self.statistics.take(offset),
            0x5200..=0x53fc => self.groups[((offset - 0x5200) / 4) as usize],
            0x5400..=0x547c => self.addresses[((offset - 0x5400) / 4) as usize],
            0x5600..=0x57fc => self.vlans[((offset - 0x5600) / 4) as usize],
            _ => KEPT.iter().position(|&known| known == offset).map_or(0, |index| self.kept[index]),
        }
    }

    fn write(&mut self, offset: u32, bytes: u32, value: u32) {
        if bytes != 4 || !offset.is_multiple_of(4) {
            return;
        }
        match offset {
            at::CTRL | 0x0004 => self.set_ctrl(value),
            at::EECD => {
                let granted = if value & EECD_REQUEST != 0 { EECD_GRANT } else { 0 };
                self.eecd = value & EECD_REQUEST | granted | EECD_PRESENT;
            }
            at::EERD => self.read_eeprom(value),
            at::MDIC => self.ask_transceiver(value),
            at::ICR => {
                self.is_acknowledged = true;
                self.icr &= !value;
            }
            at::ITR => self.itr = value & 0xffff,
            at::ICS => self.icr |= value & cause::ALL,
            at::IMS => self.ims |= value & cause::ALL,
            at::IMC => self.ims &= !value,
            at::RCTL => self.rctl = value & 0x0fff_fffe,
            at::TCTL => self.tctl = value,
            0x2800..=0x2818 => self.rx.write(offset, value),
            0x3800..=0x3818 => self.tx.write(offset, value),
            0x5200..=0x53fc => self.groups[((offset - 0x5200) / 4) as usize] = value,
            0x5400..=0x547c => self.addresses[((offset - 0x5400) / 4) as usize] = value,
            0x5600..=0x57fc => self.vlans[((offset - 0x5600) / 4) as usize] = value,
            _ => {
                if let Some(index) = KEPT.iter().position(|&known| known == offset) {
                    self.kept[index] = value;
                }
            }
        }
    }

    fn transmit(&mut self, memory: &dyn Dma, frame: &mut Vec<u8>) -> Sent {
        if self.transmit_fault.is_some() {
            return Sent::Nothing;
        }
        self.take_piece(memory, frame).unwrap_or_else(|fault| {
            self.transmit_fault = Some(fault);
            Sent::Nothing
        })
    }

    fn receive(&mut self, memory: &dyn Dma, frame: &[u8]) -> Result<(), Missed> {
        if self.receive_fault.is_some() {
            return Err(Missed::Broken);
        }
        if self.rctl & RCTL_EN == 0 {
            return Err(Missed::Disabled);
        }
        self.statistics.add(at::TPR, 1);
        let on_wire = frame.len().max(WIRE_BYTES_MIN) + CHECK_SEQUENCE_BYTES;
        self.statistics.add_wide(at::TORL, on_wire as u64);
        let is_inexact = self.admits(frame).ok_or(Missed::Filtered)?;
        let limit = if self.rctl & RCTL_LPE != 0 { FRAME_BYTES_MAX } else { SHORT_LIMIT };
        if frame.len() > limit {
            self.statistics.add(at::ROC, 1);
            return Err(Missed::Oversize);
        }
        self.put(memory, frame, is_inexact)
    }

    fn has_work(&self) -> bool {
        // Indices that cannot be are found when the ring is looked at.
        self.transmit_fault.is_none() && self.tctl & TCTL_EN != 0 && self.tx.given() != Ok(0)
    }

    fn is_asserted(&self) -> bool {
        self.icr & self.ims != 0
    }

    fn take_acknowledged(&mut self) -> bool {
        std::mem::take(&mut self.is_acknowledged)
    }

    fn throttle_ns(&self) -> u64 {
        u64::from(self.itr) * THROTTLE_UNIT_NS
    }

    fn set_link(&mut self, is_up: bool) {
        let was_up = self.is_link_up();
        self.has_carrier = is_up;
        if self.is_link_up() != was_up {
            self.icr |= LSC;
        }
    }

    fn occupancy(&self) -> [(u32, u32); 2] {
        [self.tx, self.rx].map(|ring| (ring.size(), ring.given().unwrap_or(0)))
    }

    fn fault(&self, half: Half) -> Option<Fault> {
        match half {
            Half::Transmit => self.transmit_fault,
            Half::Receive => self.receive_fault,
        }
    }

    fn resets(&self) -> u64 {
        self.resets
    }
}
