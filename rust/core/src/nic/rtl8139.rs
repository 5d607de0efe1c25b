//! Realtek's RTL8139C: four transmit slots, one receive buffer that is a ring, and everything else in registers.
//!
//! ```text
//!   TX   TSAD0..3 addresses · TSD0..3 sizes: a write that clears OWN sends that slot, in the order 0, 1, 2, 3, 0 …
//!   RX   RBSTART │status, length│frame, check sequence│pad│status, length│…      CBR: we write here
//!                                                          CAPR + 16: the driver reads here
//!   ISR & IMR ─▶ line
//! ```
//!
//! The C+ descriptors, loopback, the timer's interrupt, early receiving and the serial lines to the EEPROM are left out; their
//! registers read as zero or keep what was written. `docs/wire/nics.md` lists what there is. Source: Realtek RTL8139C(L) data
//! sheet (registers, the layout of received packets) and programming guide (order of slots, CAPR's sixteen bytes).

use super::{CHECK_SEQUENCE_BYTES, Dma, Half, Missed, Model, Sent, WIRE_BYTES_MIN};
use crate::error::Fault;
use crate::net::frame::{HEADER_BYTES, MacAddress};

/// Registers, by their offsets in bytes.
pub mod register {
    #![allow(missing_docs)]
    pub const IDR0: u32 = 0x00;
    pub const MAR0: u32 = 0x08;
    pub const TSD0: u32 = 0x10;
    pub const TSAD0: u32 = 0x20;
    pub const RBSTART: u32 = 0x30;
    pub const CR: u32 = 0x37;
    pub const CAPR: u32 = 0x38;
    pub const CBR: u32 = 0x3a;
    pub const IMR: u32 = 0x3c;
    pub const ISR: u32 = 0x3e;
    pub const TCR: u32 = 0x40;
    pub const RCR: u32 = 0x44;
    pub const MPC: u32 = 0x4c;
    pub const CR9346: u32 = 0x50;
    pub const CONFIG0: u32 = 0x51;
    pub const CONFIG1: u32 = 0x52;
    pub const MSR: u32 = 0x58;
    pub const CONFIG3: u32 = 0x59;
    pub const CONFIG4: u32 = 0x5a;
    pub const RERID: u32 = 0x5e;
    pub const TSAD: u32 = 0x60;
    pub const BMCR: u32 = 0x62;
    pub const BMSR: u32 = 0x64;
    pub const ANAR: u32 = 0x66;
    pub const ANLPAR: u32 = 0x68;
}
use register as at;

/// CR: reset everything.
pub const CR_RST: u32 = 0x10;
/// CR: receive.
pub const CR_RE: u32 = 0x08;
/// CR: transmit.
pub const CR_TE: u32 = 0x04;
/// CR: the receive buffer is empty.
pub const CR_BUFE: u32 = 0x01;

/// TSD: the slot is the driver's.
pub const TSD_OWN: u32 = 1 << 13;
/// TSD: it was sent.
pub const TSD_TOK: u32 = 1 << 15;
/// TSD: it could not be.
pub const TSD_TABT: u32 = 1 << 30;
const TSD_SIZE: u32 = 0x1fff;
const TSD_WRITABLE: u32 = TSD_SIZE | 0x3f << 16;
/// Longest frame that a slot sends.
pub const SLOT_BYTES_MAX: u32 = 1792;
/// How many there are.
pub const SLOTS: u32 = 4;

/// Causes of interrupts, as ISR and IMR have them.
pub mod cause {
    /// A frame came.
    pub const ROK: u32 = 1 << 0;
    /// A slot was sent.
    pub const TOK: u32 = 1 << 2;
    /// A slot could not be.
    pub const TER: u32 = 1 << 3;
    /// A frame found no room in the buffer.
    pub const RXOVW: u32 = 1 << 4;
    /// The carrier came or went.
    pub const LINK: u32 = 1 << 5;
    /// All that there are.
    pub(super) const ALL: u32 = 0xe07f;
}
use cause::{LINK, ROK, RXOVW, TER, TOK};

/// RCR: frames for any station.
pub const RCR_AAP: u32 = 1 << 0;
/// RCR: frames for this station.
pub const RCR_APM: u32 = 1 << 1;
/// RCR: frames for groups, by the table of hashes.
pub const RCR_AM: u32 = 1 << 2;
/// RCR: broadcasts.
pub const RCR_AB: u32 = 1 << 3;
/// RCR: frames may go on behind the end of the buffer, where the driver has room for them.
pub const RCR_WRAP: u32 = 1 << 7;
/// RCR: where the buffer's length is said: 8, 16, 32 or 64 KiB.
pub const RCR_LENGTH_SHIFT: u32 = 11;

const STATE_OK: u16 = 1 << 0;
const STATE_BROADCAST: u16 = 1 << 13;
const STATE_MATCH: u16 = 1 << 14;
const STATE_GROUP: u16 = 1 << 15;
/// Bytes of what is in front of each received frame: state and length.
pub const HEADER: u32 = 4;
/// How far behind what the driver has read CAPR is.
pub const CAPR_LAG: u32 = 16;
/// Longest frame that is received, its check sequence left out.
const FRAME_LIMIT: usize = 1792 - CHECK_SEQUENCE_BYTES;
/// TCR: which card this is, the RTL8139C.
const TCR_VERSION: u32 = 0x7400_0000;
const TCR_WRITABLE: u32 = 0x0307_07f1;
const RCR_WRITABLE: u32 = 0x0f03_ffbf;
/// 9346CR: configuration can be written.
const UNLOCKED: u8 = 0xc0;
const MSR_LINK_DOWN: u8 = 0x04;
const BMSR_CAN: u32 = 0x7809;
const BMSR_LINK: u32 = 0x24;

/// One card.
#[derive(Debug)]
pub struct Rtl8139 {
    /// What the EEPROM has.
    own: [u8; 6],
    station: [u8; 6],
    groups: [u8; 8],
    slot_states: [u32; SLOTS as usize],
    slot_places: [u32; SLOTS as usize],
    /// The slot that is sent next.
    next_slot: usize,
    start: u32,
    command: u32,
    /// As bytes from the start, both: what the driver has read, and what was written.
    read: u32,
    written: u32,
    mask: u32,
    causes: u32,
    transmit_setup: u32,
    receive_setup: u32,
    missed: u32,
    lock: u8,
    /// CONFIG0 to CONFIG4, without CONFIG2.
    config: [u8; 4],
    control: u32,
    advertised: u32,
    has_carrier: bool,
    is_acknowledged: bool,
    transmit_fault: Option<Fault>,
    receive_fault: Option<Fault>,
    resets: u64,
}

impl Rtl8139 {
    /// A card with this address in its EEPROM, as it is after power came.
    #[must_use]
    pub const fn new(mac: MacAddress) -> Self {
        let own = mac.bytes();
        Self {
            own,
            station: own,
            groups: [0; 8],
            slot_states: [TSD_OWN; SLOTS as usize],
            slot_places: [0; SLOTS as usize],
            next_slot: 0,
            start: 0,
            command: 0,
            read: 0,
            written: 0,
            mask: 0,
            causes: 0,
            transmit_setup: 0,
            receive_setup: 0,
            missed: 0,
            lock: 0,
            config: [0, 0x0c, 0, 0],
            control: 0x1000,
            advertised: 0x05e1,
            has_carrier: true,
            is_acknowledged: false,
            transmit_fault: None,
            receive_fault: None,
            resets: 0,
        }
    }

    /// As after a reset by the driver: its address, what it configured, the carrier, and what ended a half for good stay.
    fn reset(&mut self) {
        self.resets += 1;
        self.slot_states = [TSD_OWN; SLOTS as usize];
        self.slot_places = [0; SLOTS as usize];
        (self.next_slot, self.start, self.command) = (0, 0, 0);
        (self.read, self.written, self.mask, self.causes) = (0, 0, 0, 0);
        (self.transmit_setup, self.receive_setup, self.missed) = (0, 0, 0);
    }

    /// Bytes of the receive buffer.
    const fn ring_bytes(&self) -> u32 {
        8192 << (self.receive_setup >> RCR_LENGTH_SHIFT & 3)
    }

    const fn used(&self) -> u32 {
        (self.written + self.ring_bytes() - self.read % self.ring_bytes()) % self.ring_bytes()
    }

    const fn command(&self) -> u32 {
        self.command | if self.used() == 0 { CR_BUFE } else { 0 }
    }

    fn set_command(&mut self, value: u32) {
        if value & CR_RST != 0 {
            self.reset();
            return;
        }
        if value & CR_RE != 0 && self.command & CR_RE == 0 {
            // The receiver begins at the start of its buffer.
            (self.read, self.written) = (0, 0);
        }
        self.command = value & (CR_RE | CR_TE);
    }

    fn set_slot(&mut self, index: usize, value: u32) {
        // Only a slot that is the driver's can be given, and only by clearing OWN.
        if value & TSD_OWN == 0 && self.slot_states[index] & TSD_OWN != 0 {
            self.slot_states[index] = value & TSD_WRITABLE;
        }
    }

    /// All four slots in one register: which were sent, which failed, which are the driver's.
    fn slots_summary(&self) -> u32 {
        self.slot_states.iter().enumerate().fold(0, |sum, (index, state)| {
            let bit = |flag: u32, first: usize| u32::from(state & flag != 0) << (first + index);
            sum | bit(TSD_TOK, 12) | bit(TSD_TABT, 4) | bit(TSD_OWN, 0)
        })
    }

    const fn is_unlocked(&self) -> bool {
        self.lock & UNLOCKED == UNLOCKED
    }

    fn set_lock(&mut self, value: u8) {
        const AUTO_LOAD: u8 = 0x40;
        if value & UNLOCKED == AUTO_LOAD {
            self.station = self.own;
            self.lock = 0;
        } else {
            self.lock = value & UNLOCKED;
        }
    }

    /// One byte of a register that has no side effect when it is read.
    fn byte(&self, offset: u32) -> u8 {
        let of = |word: u32, first: u32| word.to_le_bytes()[((offset - first) & 3) as usize];
        match offset {
            0x00..=0x05 => self.station[offset as usize],
            0x08..=0x0f => self.groups[(offset - 0x08) as usize],
            0x10..=0x1f => of(self.slot_states[((offset - 0x10) / 4) as usize], 0x10),
            0x20..=0x2f => of(self.slot_places[((offset - 0x20) / 4) as usize], 0x20),
            0x30..=0x33 => of(self.start, at::RBSTART),
            at::CR => self.command() as u8,
            0x38..=0x39 => of(self.read.wrapping_sub(CAPR_LAG) & 0xffff, at::CAPR),
            0x3a..=0x3b => of(self.written & 0xffff, at::CBR),
            0x3c..=0x3d => of(self.mask, at::IMR),
            0x3e..=0x3f => of(self.causes, at::ISR),
            0x40..=0x43 => of(self.transmit_setup | TCR_VERSION, at::TCR),
            0x44..=0x47 => of(self.receive_setup, at::RCR),
            0x4c..=0x4e => of(self.missed, at::MPC),
            at::CR9346 => self.lock,
            at::CONFIG0 | at::CONFIG1 => self.config[(offset - at::CONFIG0) as usize],
            at::CONFIG3 | at::CONFIG4 => self.config[(offset - at::CONFIG3) as usize + 2],
            at::MSR => 0x10 | if self.has_carrier { 0 } else { MSR_LINK_DOWN },
            at::RERID => 0x10,
            0x60..=0x61 => of(self.slots_summary(), at::TSAD),
            0x62..=0x63 => of(self.control, at::BMCR),
            0x64..=0x65 => of(BMSR_CAN | if self.has_carrier { BMSR_LINK } else { 0 }, at::BMSR),
            0x66..=0x67 => of(self.advertised, at::ANAR),
            0x68..=0x69 => of(0x45e1, at::ANLPAR),
            _ => 0,
        }
    }

    fn set_byte(&mut self, offset: u32, value: u8) {
        match offset {
            0x00..=0x05 if self.is_unlocked() => self.station[offset as usize] = value,
            0x08..=0x0f => self.groups[(offset - 0x08) as usize] = value,
            at::CR => self.set_command(value.into()),
            at::CR9346 => self.set_lock(value),
            at::CONFIG0 | at::CONFIG1 if self.is_unlocked() => self.config[(offset - at::CONFIG0) as usize] = value,
            at::CONFIG3 | at::CONFIG4 if self.is_unlocked() => self.config[(offset - at::CONFIG3) as usize + 2] = value,
            _ => {}
        }
    }

    fn set_half(&mut self, offset: u32, value: u32) {
        match offset {
            at::CAPR => self.read = value.wrapping_add(CAPR_LAG) & 0xffff,
            at::IMR => self.mask = value & cause::ALL,
            at::ISR => {
                self.is_acknowledged = true;
                self.causes &= !value;
            }
            at::BMCR => self.control = value & 0x3100,
            at::ANAR => self.advertised = value,
            _ => {
                let [low, high] = (value as u16).to_le_bytes();
                self.set_byte(offset, low);
                self.set_byte(offset + 1, high);
            }
        }
    }

    fn set_word(&mut self, offset: u32, value: u32) {
        match offset {
            0x10 | 0x14 | 0x18 | 0x1c => self.set_slot(((offset - at::TSD0) / 4) as usize, value),
            0x20 | 0x24 | 0x28 | 0x2c => self.slot_places[((offset - at::TSAD0) / 4) as usize] = value,
            at::RBSTART => self.start = value & !3,
            at::TCR => self.transmit_setup = value & TCR_WRITABLE,
            at::RCR => self.receive_setup = value & RCR_WRITABLE,
            at::MPC => self.missed = 0,
            _ => {
                self.set_half(offset, value & 0xffff);
                self.set_half(offset + 2, value >> 16);
            }
        }
    }

    /// Sends the slot whose turn it is, if the driver gave it.
    fn take_slot(&mut self, memory: &dyn Dma, frame: &mut Vec<u8>) -> Sent {
        if !self.has_work() {
            return Sent::Nothing;
        }
        let index = self.next_slot;
        let length = self.slot_states[index] & TSD_SIZE;
        if length > SLOT_BYTES_MAX {
            return self.end_transmitter(index, Fault::TooLong { length, limit: SLOT_BYTES_MAX });
        }
        frame.resize(length as usize, 0);
        if let Err(fault) = memory.read(self.slot_places[index].into(), frame) {
            frame.clear();
            return self.end_transmitter(index, fault);
        }
        self.slot_states[index] |= TSD_OWN | TSD_TOK;
        self.next_slot = (index + 1) % SLOTS as usize;
        self.causes |= TOK;
        if length < HEADER_BYTES {
            frame.clear();
            return Sent::Runt;
        }
        if frame.len() < WIRE_BYTES_MIN {
            frame.resize(WIRE_BYTES_MIN, 0);
        }
        Sent::Frame
    }

    fn end_transmitter(&mut self, index: usize, fault: Fault) -> Sent {
        self.slot_states[index] |= TSD_OWN | TSD_TABT;
        self.causes |= TER;
        self.transmit_fault = Some(fault);
        Sent::Nothing
    }

    /// What the filters say of a frame, as its header has it; nothing: it is for somebody else.
    fn admits(&self, frame: &[u8]) -> Option<u16> {
        let destination = frame.first_chunk::<6>()?;
        let wants = |bit| self.receive_setup & bit != 0;
        if *destination == [0xff; 6] {
            return wants(RCR_AB).then_some(STATE_BROADCAST);
        }
        if destination[0] & 1 != 0 {
            let hash = checksum_of(*destination) >> 26;
            let is_known = self.groups[(hash >> 3) as usize] >> (hash & 7) & 1 != 0;
            return (wants(RCR_AM) && is_known || wants(RCR_AAP)).then_some(STATE_GROUP);
        }
        if *destination == self.station {
            return wants(RCR_APM).then_some(STATE_MATCH).or_else(|| wants(RCR_AAP).then_some(0));
        }
        wants(RCR_AAP).then_some(0)
    }

    /// Writes header, frame, filling and check sequence behind what was written before.
    fn put(&mut self, memory: &dyn Dma, frame: &[u8], state: u16) -> Result<(), Missed> {
        const ZEROES: [u8; WIRE_BYTES_MIN + CHECK_SEQUENCE_BYTES] = [0; WIRE_BYTES_MIN + CHECK_SEQUENCE_BYTES];
        let length = frame.len().max(WIRE_BYTES_MIN) + CHECK_SEQUENCE_BYTES;
        let taken = (HEADER + length as u32).next_multiple_of(4);
        if self.used() + taken >= self.ring_bytes() {
            self.causes |= RXOVW;
            self.missed = (self.missed + 1).min(0x00ff_ffff);
            return Err(Missed::NoRoom);
        }
        let [s0, s1] = (state | STATE_OK).to_le_bytes();
        let [l0, l1] = (length as u16).to_le_bytes();
        let body = self.written + HEADER;
        let behind = body + frame.len() as u32;
        self.write_ring(memory, body, frame)
            .and_then(|()| self.write_ring(memory, behind, &ZEROES[..length - frame.len()]))
            .and_then(|()| self.write_ring(memory, self.written, &[s0, s1, l0, l1]))
            .map_err(|fault| {
                self.receive_fault.get_or_insert(fault);
                Missed::Broken
            })?;
        self.written = (self.written + taken) % self.ring_bytes();
        self.causes |= ROK;
        Ok(())
    }

    /// Writes into the buffer, `at` bytes from its start: behind its end if the driver said so, else round it.
    fn write_ring(&self, memory: &dyn Dma, at: u32, bytes: &[u8]) -> Result<(), Fault> {
        let size = self.ring_bytes();
        // With 64 KiB there is no going on behind the end.
        let goes_on = self.receive_setup & RCR_WRAP != 0 && size < 65_536;
        let start = u64::from(self.start);
        if goes_on {
            return memory.write(start + u64::from(at), bytes);
        }
        let at = at % size;
        let (first, rest) = bytes.split_at(bytes.len().min((size - at) as usize));
        memory.write(start + u64::from(at), first)?;
        memory.write(start, rest)
    }
}

/// The check sequence of an address, whose upper six bits choose a group's bit. Source: IEEE 802.3 clause 3.2.9.
fn checksum_of(address: [u8; 6]) -> u32 {
    let mut sum = u32::MAX;
    for byte in address {
        for bit in 0..8 {
            let carry = sum >> 31 ^ u32::from(byte >> bit & 1);
            sum = sum << 1 ^ if carry != 0 { 0x04c1_1db7 } else { 0 };
        }
    }
    sum
}

impl Model for Rtl8139 {
    fn name(&self) -> &'static str {
        "rtl8139"
    }

    fn read(&mut self, offset: u32, bytes: u32) -> u32 {
        if !matches!(bytes, 1 | 2 | 4) || !offset.is_multiple_of(bytes) || offset >= 0x100 {
            return 0;
        }
        (0..bytes).fold(0, |value, index| value | u32::from(self.byte(offset + index)) << (8 * index))
    }

    fn write(&mut self, offset: u32, bytes: u32, value: u32) {
        if offset >= 0x100 || !matches!(bytes, 1 | 2 | 4) || !offset.is_multiple_of(bytes) {
            return;
        }
        match bytes {
            1 => self.set_byte(offset, value as u8),
            2 => self.set_half(offset, value & 0xffff),
            _ => self.set_word(offset, value),
        }
    }

    fn transmit(&mut self, memory: &dyn Dma, frame: &mut Vec<u8>) -> Sent {
        self.take_slot(memory, frame)
    }

    fn receive(&mut self, memory: &dyn Dma, frame: &[u8]) -> Result<(), Missed> {
        if self.receive_fault.is_some() {
            return Err(Missed::Broken);
        }
        if self.command & CR_RE == 0 {
            return Err(Missed::Disabled);
        }
        let state = self.admits(frame).ok_or(Missed::Filtered)?;
        if frame.len() > FRAME_LIMIT {
            return Err(Missed::Oversize);
        }
        self.put(memory, frame, state)
    }

    fn has_work(&self) -> bool {
        self.transmit_fault.is_none() && self.command & CR_TE != 0 && self.slot_states[self.next_slot] & TSD_OWN == 0
    }

    fn is_asserted(&self) -> bool {
        self.causes & self.mask != 0
    }

    fn take_acknowledged(&mut self) -> bool {
        std::mem::take(&mut self.is_acknowledged)
    }

    fn throttle_ns(&self) -> u64 {
        0
    }

    fn set_link(&mut self, is_up: bool) {
        if self.has_carrier != is_up {
            self.has_carrier = is_up;
            self.causes |= LINK;
        }
    }

    fn occupancy(&self) -> [(u32, u32); 2] {
        let given = self.slot_states.iter().filter(|state| **state & TSD_OWN == 0).count() as u32;
        // The buffer has no slots: it is told in pieces of 64 bytes, the shortest frame.
        let free = (self.ring_bytes() - self.used()) / 64;
        [(SLOTS, given), (self.ring_bytes() / 64, if self.command & CR_RE != 0 { free } else { 0 })]
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
