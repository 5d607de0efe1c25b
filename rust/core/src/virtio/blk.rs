//! A disk: a file of the operator's, as a virtio block device.
//!
//! ```text
//!   chain:   header (16 bytes, read) · data (read or written) · status (1 byte, written)
//!   serve:   copy the header ─▶ check ─▶ preadv / pwritev between the file and the driver's own buffers ─▶ status
//! ```
//!
//! Data goes between file and guest memory without a copy of ours. The header is copied once and the copy is what counts.
//! Everything a request names is checked against the capacity, which was read when the file came and never changes: a file that
//! shrinks later answers errors, one that grows is no larger for the guest.
//!
//! The danger: a request may take as long as the file system likes; it holds up this device's thread and nobody else's. A
//! malformed request is answered as far as it has a place for an answer, and counted under its reason.
//! Source: virtio 1.2 §5.2 (block device).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::fs::{self, FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::Errno;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::device::{Kind, Model, Offer};
use super::queue::Segment;
use super::server::{Request, length_of, within};
use crate::error::{Error, Result};
use crate::net::counters::counters;
use crate::shm::counters::{Block, CounterFile};
use crate::shm::histogram::{self, Recorder};

/// Number of the device in the specification.
pub const DEVICE_ID: u32 = 2;
/// Bytes of a sector, the unit of every address.
pub const SECTOR: u64 = 512;
/// Most bytes that one request reads or writes.
pub const REQUEST_BYTES_MAX: u64 = 16 << 20;
/// Entries of the queue.
pub const QUEUE_SIZE: u32 = 256;

const HEADER_BYTES: u64 = 16;
/// Most data buffers of a request.
const SEGMENTS_MAX: u32 = 254;
/// Bytes of one range of a discard or of zeroes, and how many of them a request may have.
const RANGE_BYTES: usize = 16;
const RANGES_MAX: u32 = 16;
const RANGE_SECTORS_MAX: u32 = 1 << 22;
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;
/// What zeroes are written from where a file system cannot make them.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

counters! {
    /// What is counted for every disk that a guest has open. Behind these: three histograms.
    pub enum BlkCounter {
        /// Reads done.
        Reads = "reads",
        /// Their bytes.
        ReadBytes = "read_bytes",
        /// Writes done.
        Writes = "writes",
        /// Their bytes.
        WriteBytes = "write_bytes",
        /// Flushes done.
        Flushes = "flushes",
        /// Discards done.
        Discards = "discards",
        /// Requests for zeroes done.
        Zeroes = "zeroes",
        /// Requests for the serial number.
        Ids = "ids",
        /// Requests that the machine refused.
        ErrorIo = "error_io",
        /// Requests for sectors that are not there.
        ErrorRange = "error_out_of_range",
        /// Requests for parts of sectors.
        ErrorAlignment = "error_partial_sector",
        /// Requests to change what may only be read.
        ErrorReadOnly = "error_read_only",
        /// Requests of a kind that is not known.
        ErrorUnsupported = "error_unsupported",
        /// Requests without header or without a place for their status.
        ErrorMalformed = "error_malformed",
        /// Requests for more than may be asked at once.
        ErrorTooLong = "error_too_long",
    }
}

/// What is timed, from the chain's taking to its status: histograms behind the counters.
#[derive(Clone, Copy, Debug)]
enum Timed {
    Read = 0,
    Write = 1,
    Flush = 2,
}

const TIMED: usize = 3;

/// A disk, as the operator gave it.
#[derive(Debug)]
pub struct Disk {
    file: File,
    is_read_only: bool,
    sectors: u64,
    serial: [u8; ID_BYTES],
}

impl Disk {
    /// Takes a file, or a block device, that the operator opened. What it holds now is its size for good.
    ///
    /// `serial` is cut at 20 bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: it is neither, is not open for what is wanted, or is open in a way that cannot work.
    /// [`Error::Machine`]: it cannot be looked at.
    pub fn new(file: File, is_read_only: bool, serial: &str) -> Result<Self> {
        let status = fs::fstat(&file).map_err(|errno| Error::machine("inspect a disk image", errno))?;
        let kind = FileType::from_raw_mode(status.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            return Err(Error::Usage("a disk image is a regular file or a block device".into()));
        }
        let mode = fs::fcntl_getfl(&file).map_err(|errno| Error::machine("inspect a disk image", errno))?;
        if mode.intersects(OFlags::PATH | OFlags::APPEND | OFlags::DIRECT) {
            return Err(Error::Usage("a disk image must not be open with O_PATH, O_APPEND or O_DIRECT".into()));
        }
        let is_fit = match mode & OFlags::RWMODE {
            OFlags::RDWR => true,
            OFlags::RDONLY => is_read_only,
            _ => false,
        };
        if !is_fit {
            let wanted = if is_read_only { "reading" } else { "reading and writing" };
            return Err(Error::Usage(format!("a disk image must be open for {wanted}")));
        }
        let bytes = fs::seek(&file, SeekFrom::End(0)).map_err(|errno| Error::machine("measure a disk image", errno))?;
        let mut id = [0; ID_BYTES];
        let length = serial.floor_char_boundary(ID_BYTES);
        id[..length].copy_from_slice(&serial.as_bytes()[..length]);
        Ok(Self { file, is_read_only, sectors: bytes / SECTOR, serial: id })
    }

    /// Sectors.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        always
            | if self.is_read_only {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    /// The configuration, as the specification lays it out.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |offset: usize, value: u32| config[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        put(0, self.sectors as u32);
        put(4, (self.sectors >> 32) as u32);
        put(12, SEGMENTS_MAX);
        put(20, SECTOR as u32);
        if !self.is_read_only {
            put(36, RANGE_SECTORS_MAX);
            put(40, RANGES_MAX);
            put(44, 1);
            put(48, RANGE_SECTORS_MAX);
            put(52, RANGES_MAX);
            put(56, 1);
        }
        config
    }
}

/// One guest's use of a disk.
#[derive(Debug)]
pub struct BlkKind {
    disk: Option<Arc<Disk>>,
    block: Arc<Mutex<Block>>,
}

impl BlkKind {
    /// A disk, or a drive without one, counted under `labels`.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no room for counters.
    pub fn new(disk: Option<Arc<Disk>>, counters: &CounterFile, labels: &str) -> Result<Self> {
        let words = BlkCounter::COUNT + TIMED * histogram::WORDS;
        let block = Arc::new(Mutex::new(counters.allocate("virtio_blk", labels, words)?));
        Ok(Self { disk, block })
    }
}

impl Kind for BlkKind {
    fn offer(&self) -> Offer {
        let (features, config) = self
            .disk
            .as_ref()
            .map_or_else(|| (1 << VIRTIO_BLK_F_RO, vec![0; 60]), |disk| (disk.features(), disk.config()));
        Offer { device_id: DEVICE_ID, features, config, queue_sizes: vec![QUEUE_SIZE] }
    }

    fn model(&self, features: u64) -> Result<Box<dyn Model>> {
        Ok(Box::new(BlkModel {
            disk: self.disk.clone(),
            is_write_through: features & 1 << VIRTIO_BLK_F_FLUSH == 0,
            block: self.block.clone(),
            pieces: Vec::new(),
            vectors: Vec::new(),
        }))
    }
}

/// Why a request was not done.
type Failed = (BlkCounter, u32);

const fn failed(reason: BlkCounter) -> Failed {
    (reason, VIRTIO_BLK_S_IOERR)
}

struct BlkModel {
    disk: Option<Arc<Disk>>,
    /// The driver knows no flushes: what it wrote must be on the disk when it hears of it.
    is_write_through: bool,
    block: Arc<Mutex<Block>>,
    pieces: Vec<Segment>,
    vectors: Vec<libc::iovec>,
}

// SAFETY: places in `pieces` and `vectors` are used within one call of `serve` and never after it.
unsafe impl Send for BlkModel {}

impl Model for BlkModel {
    fn serve(&mut self, _queue: usize, request: &Request<'_>) -> Option<u32> {
        let start = Instant::now();
        let room = length_of(request.to);
        let Some(status_at) = room.checked_sub(1) else {
            self.count(BlkCounter::ErrorMalformed, 1);
            return Some(0);
        };
        let mut header = [0; HEADER_BYTES as usize];
        let outcome = if request.read(0, &mut header) < header.len() {
            Err(failed(BlkCounter::ErrorMalformed))
        } else {
            let [kind, _, low, high] = [0, 4, 8, 12]
                .map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
            self.run(kind, u64::from(low) | u64::from(high) << 32, request, status_at)
        };
        let (status, written) = match outcome {
            Ok((written, timed)) => {
                self.time(timed, start);
                (VIRTIO_BLK_S_OK, written)
            }
            Err((reason, status)) => {
                self.count(reason, 1);
                (status, 0)
            }
        };
        request.write(status_at, &[status as u8]);
        // The status lies behind all data, so where something was written in front of it, all of it counts.
        Some(if written == 0 { 1 } else { u32::try_from(room).unwrap_or(u32::MAX) })
    }
}

impl BlkModel {
    fn words(&self) -> MutexGuard<'_, Block> {
        self.block.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, counter: BlkCounter, amount: u64) {
        self.words().add(counter as usize, amount);
    }

    fn time(&self, timed: Option<Timed>, start: Instant) {
        let Some(timed) = timed else { return };
        let block = self.words();
        let first = BlkCounter::COUNT + timed as usize * histogram::WORDS;
        if let Some(recorder) = block.values().get(first..).and_then(Recorder::new) {
            recorder.record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX), 1);
        }
    }

    /// Does a request: how many bytes were written in front of its status, and what it counts as.
    fn run(
        &mut self,
        kind: u32,
        sector: u64,
        request: &Request<'_>,
        room: u64,
    ) -> std::result::Result<(u64, Option<Timed>), Failed> {
        let Some(disk) = self.disk.clone() else { return Err(failed(BlkCounter::ErrorRange)) };
        match kind {
            VIRTIO_BLK_T_IN => {
                self.check_data(&disk, sector, room)?;
                within(request.to, 0, room, &mut self.pieces);
                self.transfer(&disk, Way::FromFile, sector * SECTOR, room)?;
                self.count(BlkCounter::Reads, 1);
                self.count(BlkCounter::ReadBytes, room);
                Ok((room, Some(Timed::Read)))
            }
            VIRTIO_BLK_T_OUT => {
                let bytes = length_of(request.from) - HEADER_BYTES;
                check_writable(&disk)?;
                self.check_data(&disk, sector, bytes)?;
                within(request.from, HEADER_BYTES, bytes, &mut self.pieces);
                self.transfer(&disk, Way::ToFile, sector * SECTOR, bytes)?;
                if self.is_write_through {
                    flush(&disk)?;
                }
                self.count(BlkCounter::Writes, 1);
                self.count(BlkCounter::WriteBytes, bytes);
                Ok((0, Some(Timed::Write)))
            }
            VIRTIO_BLK_T_FLUSH => {
                if !disk.is_read_only {
                    flush(&disk)?;
                }
                self.count(BlkCounter::Flushes, 1);
                Ok((0, Some(Timed::Flush)))
            }
            VIRTIO_BLK_T_GET_ID => {
                let length = ID_BYTES.min(usize::try_from(room).unwrap_or(ID_BYTES));
                request.write(0, &disk.serial[..length]);
                self.count(BlkCounter::Ids, 1);
                Ok((length as u64, None))
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                check_writable(&disk)?;
                let is_discard = kind == VIRTIO_BLK_T_DISCARD;
                change_ranges(&disk, request, is_discard)?;
                if self.is_write_through {
                    flush(&disk)?;
                }
                self.count(if is_discard { BlkCounter::Discards } else { BlkCounter::Zeroes }, 1);
                Ok((0, None))
            }
            _ => Err((BlkCounter::ErrorUnsupported, VIRTIO_BLK_S_UNSUPP)),
        }
    }

    fn check_data(&self, disk: &Disk, sector: u64, bytes: u64) -> std::result::Result<(), Failed> {
        if bytes == 0 {
            return Err(failed(BlkCounter::ErrorMalformed));
        }
        if !bytes.is_multiple_of(SECTOR) {
            return Err(failed(BlkCounter::ErrorAlignment));
        }
        if bytes > REQUEST_BYTES_MAX {
            return Err(failed(BlkCounter::ErrorTooLong));
        }
        check_range(disk, sector, bytes / SECTOR)
    }

    /// Moves `bytes` bytes between the file, from byte `offset` on, and the pieces in hand.
    fn transfer(&mut self, disk: &Disk, way: Way, mut offset: u64, bytes: u64) -> std::result::Result<(), Failed> {
        self.vectors.clear();
        self.vectors.extend(
            self.pieces
                .iter()
                .map(|piece| libc::iovec { iov_base: piece.place.as_ptr().cast(), iov_len: piece.bytes as usize }),
        );
        let mut first = 0;
        let mut left = bytes;
        while left != 0 {
            let vectors = &self.vectors[first..];
            let count = i32::try_from(vectors.len().min(libc::UIO_MAXIOV as usize)).unwrap_or(i32::MAX);
            let (fd, at) = (disk.file.as_fd().as_raw_fd(), i64::try_from(offset).unwrap_or(i64::MAX));
            // SAFETY: every vector is memory of the guest that is mapped while this device has it; the kernel copies, and
            // whatever the guest does to it meanwhile is its own loss.
            let done = unsafe {
                match way {
                    Way::FromFile => libc::preadv(fd, vectors.as_ptr(), count, at),
                    Way::ToFile => libc::pwritev(fd, vectors.as_ptr(), count, at),
                }
            };
            match u64::try_from(done) {
                // The file ends before its size of old.
                Ok(0) => return Err(failed(BlkCounter::ErrorIo)),
                Ok(done) => {
                    offset += done;
                    left = left.saturating_sub(done);
                    first += advance(&mut self.vectors[first..], done as usize);
                }
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(failed(BlkCounter::ErrorIo)),
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Way {
    FromFile,
    ToFile,
}

/// Takes `done` bytes off the front of `vectors`: how many of them are empty now.
fn advance(vectors: &mut [libc::iovec], mut done: usize) -> usize {
    for (index, vector) in vectors.iter_mut().enumerate() {
        if done < vector.iov_len {
            vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(done).cast();
            vector.iov_len -= done;
            return index;
        }
        done -= vector.iov_len;
    }
    vectors.len()
}

fn check_writable(disk: &Disk) -> std::result::Result<(), Failed> {
    if disk.is_read_only { Err(failed(BlkCounter::ErrorReadOnly)) } else { Ok(()) }
}

fn check_range(disk: &Disk, sector: u64, sectors: u64) -> std::result::Result<(), Failed> {
    let is_inside = sector.checked_add(sectors).is_some_and(|end| end <= disk.sectors);
    if is_inside { Ok(()) } else { Err(failed(BlkCounter::ErrorRange)) }
}

fn flush(disk: &Disk) -> std::result::Result<(), Failed> {
    fs::fdatasync(&disk.file).map_err(|_| failed(BlkCounter::ErrorIo))
}

/// Discards ranges, or fills them with zeroes: all are checked before the first is touched.
fn change_ranges(disk: &Disk, request: &Request<'_>, is_discard: bool) -> std::result::Result<(), Failed> {
    let bytes = length_of(request.from) - HEADER_BYTES;
    if bytes == 0 || !bytes.is_multiple_of(RANGE_BYTES as u64) {
        return Err(failed(BlkCounter::ErrorMalformed));
    }
    if bytes / RANGE_BYTES as u64 > u64::from(RANGES_MAX) {
        return Err(failed(BlkCounter::ErrorTooLong));
    }
    let mut copy = [0; RANGE_BYTES * RANGES_MAX as usize];
    let length = request.read(HEADER_BYTES, &mut copy[..bytes as usize]);
    let mut ranges = Vec::with_capacity(RANGES_MAX as usize);
    for range in copy[..length].chunks_exact(RANGE_BYTES) {
        let word = |at: usize| u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]]);
        let (sector, sectors, flags) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8), word(12));
        let allowed = if is_discard { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        if flags & !allowed != 0 {
            return Err((BlkCounter::ErrorUnsupported, VIRTIO_BLK_S_UNSUPP));
        }
        if sectors > RANGE_SECTORS_MAX {
            return Err(failed(BlkCounter::ErrorTooLong));
        }
        check_range(disk, sector, sectors.into())?;
        if sectors != 0 {
            ranges.push((sector * SECTOR, u64::from(sectors) * SECTOR, flags != 0));
        }
    }
    for (offset, bytes, may_unmap) in ranges {
        if is_discard {
            discard(disk, offset, bytes)?;
        } else {
            fill(disk, offset, bytes, may_unmap)?;
        }
    }
    Ok(())
}

fn discard(disk: &Disk, offset: u64, bytes: u64) -> std::result::Result<(), Failed> {
    match fs::fallocate(&disk.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, bytes) {
        // A discard is a hint: where it cannot be followed, nothing needs to be done.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(_) => Err(failed(BlkCounter::ErrorIo)),
    }
}

fn fill(disk: &Disk, offset: u64, bytes: u64, may_unmap: bool) -> std::result::Result<(), Failed> {
    let flags = if may_unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
    match fs::fallocate(&disk.file, flags | FallocateFlags::KEEP_SIZE, offset, bytes) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(_) => return Err(failed(BlkCounter::ErrorIo)),
    }
    let (mut offset, end) = (offset, offset + bytes);
    while offset < end {
        let length = ZEROES.len().min(usize::try_from(end - offset).unwrap_or(ZEROES.len()));
        match rustix::io::pwrite(&disk.file, &ZEROES[..length], offset) {
            Ok(0) => return Err(failed(BlkCounter::ErrorIo)),
            Ok(done) => offset += done as u64,
            Err(Errno::INTR) => {}
            Err(_) => return Err(failed(BlkCounter::ErrorIo)),
        }
    }
    Ok(())
}
