//! What a receiver of guest RAM checks before it maps and believes it: kind of file, access, seals, size, header.
//!
//! The sender is played with bare system calls and a header encoded here, byte by byte as `docs/wire/ram.md` has it.
//! `PROPTEST_CASES=20000 cargo test -p vbnet-core --test region_trust` looks longer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{self, FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use vbnet_core::error::{Error, Fault};
use vbnet_core::shm::region::Ram;

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;
const NO_QUOTA: u64 = u64::MAX;
const RAM_MAX: u64 = 1 << 32;
const SHRINK_GROW_SEAL: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

fn header(magic: &[u8; 8], version: u32, header_bytes: u32, size: u64) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(magic);
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    bytes[12..16].copy_from_slice(&header_bytes.to_le_bytes());
    bytes[16..].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// A guest that makes its RAM with care, except where a test tells it otherwise.
struct Sender {
    size: u64,
    header: [u8; 24],
    seals: SealFlags,
    allocates: bool,
}

impl Sender {
    fn of(size: u64) -> Self {
        Self { size, header: header(b"VBNETRAM", 1, 4096, size), seals: SHRINK_GROW_SEAL, allocates: true }
    }

    fn memfd(&self) -> OwnedFd {
        let file = fs::memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        fs::ftruncate(&file, self.size).unwrap();
        if self.allocates && self.size != 0 {
            fs::fallocate(&file, FallocateFlags::empty(), 0, self.size).unwrap();
        }
        if self.size >= 24 {
            rustix::io::pwrite(&file, &self.header, 0).unwrap();
        }
        fs::fcntl_add_seals(&file, self.seals).unwrap();
        file
    }
}

/// The fault for which `file` is refused.
fn fault(file: OwnedFd) -> Option<Fault> {
    match Ram::open(file, NO_QUOTA) {
        Err(Error::Peer(fault)) => Some(fault),
        _ => None,
    }
}

fn not_memfd(file: OwnedFd) -> bool {
    matches!(fault(file), Some(Fault::NotMemfd { .. }))
}

/// Opens what is behind `file` once more, in another mode.
fn reopened(file: &OwnedFd, mode: OFlags) -> OwnedFd {
    fs::open(format!("/proc/self/fd/{}", file.as_raw_fd()), mode | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// What a careful stranger makes, by the documented bytes alone, is accepted.
#[test]
fn region_made_by_the_book_is_accepted() {
    let ram = Ram::open(Sender::of(4 * PAGE).memfd(), 4 * PAGE).unwrap();

    assert_eq!(4 * PAGE, ram.size() as u64);
}

/// A region of ours has its pages, all three seals and a right header from the start.
#[test]
fn created_region_is_allocated_sealed_and_headed() {
    let ram = Ram::create("guest", 3 * PAGE + 1).unwrap();

    let status = fs::fstat(&*ram).unwrap();
    let mut written = [0; 24];
    rustix::io::pread(&*ram, &mut written, 0).unwrap();
    assert_eq!((4 * PAGE as i64, 4 * PAGE as usize), (status.st_size, ram.size()));
    assert!(status.st_blocks as u64 * 512 >= 4 * PAGE);
    assert_eq!(SHRINK_GROW_SEAL, fs::fcntl_get_seals(&*ram).unwrap());
    assert_eq!(header(b"VBNETRAM", 1, 4096, 4 * PAGE), written);
}

/// Both sides see the same bytes: what the creator writes the receiver reads, and the other way round.
#[test]
fn opened_region_is_the_created_one() {
    let created = Ram::create("guest", 2 * PAGE).unwrap();
    let opened = Ram::open(rustix::io::dup(&*created).unwrap(), NO_QUOTA).unwrap();

    // SAFETY: one byte within bounds; nobody else uses this region.
    unsafe { created.at(5000, 1).unwrap().write_volatile(42) };

    // SAFETY: as above.
    assert_eq!(42, unsafe { opened.at(5000, 1).unwrap().read_volatile() });
}

/// A region without one of the seals could be cut short or grown under us, or lose its seals: refused.
#[test]
fn each_missing_seal_is_refused() {
    let all = [SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL];
    for missing in 0..3 {
        let mut sender = Sender::of(2 * PAGE);
        sender.seals = all.iter().enumerate().filter(|&(at, _)| at != missing).map(|(_, &seal)| seal).collect();

        let expected = Fault::NotSealed { found: sender.seals.bits(), expected: SHRINK_GROW_SEAL.bits() };
        assert_eq!(Some(expected), fault(sender.memfd()), "{:?}", all[missing]);
    }
}

/// A memfd made without seals at all, and one that cannot take any, is refused.
#[test]
fn unsealed_memfd_is_refused() {
    let mut sender = Sender::of(2 * PAGE);
    sender.seals = SealFlags::empty();
    assert!(matches!(fault(sender.memfd()), Some(Fault::NotSealed { found: 0, .. })));

    let sealless = fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    fs::ftruncate(&sealless, 2 * PAGE).unwrap();
    assert!(matches!(fault(sealless), Some(Fault::NotSealed { .. })));
}

/// Files of other kinds are refused by their kind, before their size or content is looked at.
#[test]
fn descriptor_that_is_no_memfd_is_refused() {
    let regular = fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let (pipe_end, other_pipe_end) = rustix::pipe::pipe().unwrap();
    let (socket, _peer) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let mut strangers = vec![
        regular,
        pipe_end,
        other_pipe_end,
        socket.into(),
        eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
        fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap(),
        fs::open("/dev/zero", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap(),
        fs::open("/proc", OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty()).unwrap(),
    ];
    // Kernels without huge pages cannot make this one, and so cannot be handed it.
    let huge = fs::memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB);
    strangers.extend(huge.inspect(|file| fs::fcntl_add_seals(file, SHRINK_GROW_SEAL).unwrap()));
    for stranger in strangers {
        let description = format!("{stranger:?}");
        let found = Ram::open(stranger, NO_QUOTA);
        assert!(
            matches!(found, Err(Error::Peer(Fault::NotMemfd { .. } | Fault::NotSealed { .. }))),
            "{description}: {found:?}"
        );
    }
}

/// A region we could not write to is the sender's mistake, whether by its mode or by its seals.
#[test]
fn region_that_cannot_be_written_is_the_senders_fault() {
    let memfd = Sender::of(2 * PAGE).memfd();
    assert!(not_memfd(reopened(&memfd, OFlags::RDONLY)));
    assert!(not_memfd(reopened(&memfd, OFlags::WRONLY)));
    assert!(not_memfd(reopened(&memfd, OFlags::PATH)));

    for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
        let mut sender = Sender::of(2 * PAGE);
        sender.seals |= seal;
        assert!(not_memfd(sender.memfd()), "{seal:?}");
    }
}

/// Sizes that cannot be are faults: below the least, above what 32-bit offsets reach, or not whole pages.
#[test]
fn impossible_size_is_refused() {
    for size in [0, 1, 24, PAGE, 2 * PAGE - 1, 2 * PAGE + 1, 3 * PAGE - 8] {
        let expected = Fault::BadSize { what: "region size", found: size, limit: RAM_MAX };
        assert_eq!(Some(expected), fault(Sender::of(size).memfd()), "{size}");
    }
    for size in [RAM_MAX + 1, RAM_MAX + PAGE, 1 << 40] {
        let sender = Sender { allocates: false, ..Sender::of(size) };
        let expected = Fault::BadSize { what: "region size", found: size, limit: RAM_MAX };
        assert_eq!(Some(expected), fault(sender.memfd()), "{size}");
    }
}

/// The quota is the host's own rule: a region of exactly the quota passes, a page more does not.
#[test]
fn region_above_the_quota_is_refused() {
    assert!(Ram::open(Sender::of(4 * PAGE).memfd(), 4 * PAGE).is_ok());
    assert!(matches!(Ram::open(Sender::of(5 * PAGE).memfd(), 4 * PAGE), Err(Error::Usage(_))));
}

/// Our own side hears at once when it asks for a size that cannot be.
#[test]
fn region_of_impossible_size_is_not_created() {
    for size in [0, PAGE, 2 * PAGE - 1, RAM_MAX + 1, u64::MAX] {
        assert!(matches!(Ram::create("guest", size), Err(Error::Usage(_))), "{size}");
    }
}

/// Every word of the header is compared; the fault says which one was wrong and what it was.
#[test]
fn wrong_header_word_is_refused_by_name() {
    let size = 2 * PAGE;
    let magic = u64::from_le_bytes(*b"VBNETRAM");
    let bad = |what, found, expected| Fault::BadHeader { what, found, expected };
    let cases = [
        (header(&[0; 8], 1, 4096, size), bad("region magic", 0, magic)),
        (header(b"VBNETRAN", 1, 4096, size), bad("region magic", u64::from_le_bytes(*b"VBNETRAN"), magic)),
        (header(b"VBNETRAM", 0, 4096, size), bad("region version", 0, 1)),
        (header(b"VBNETRAM", 2, 4096, size), bad("region version", 2, 1)),
        (header(b"VBNETRAM", 1, 8192, size), bad("region header bytes", 8192, 4096)),
        (header(b"VBNETRAM", 1, 4096, size - PAGE), bad("region size", size - PAGE, size)),
        (header(b"VBNETRAM", 1, 4096, u64::MAX), bad("region size", u64::MAX, size)),
    ];
    for (header, expected) in cases {
        assert_eq!(Some(expected), fault(Sender { header, ..Sender::of(size) }.memfd()));
    }
}

/// A file with holes could run out of memory under us: refused, whether never filled or punched before hand-over.
#[test]
fn region_with_holes_is_refused() {
    let never_filled = Sender { allocates: false, ..Sender::of(16 * PAGE) }.memfd();
    let expected = Fault::BadSize { what: "region bytes not allocated", found: 15 * PAGE, limit: 0 };
    assert_eq!(Some(expected), fault(never_filled));

    let punched = Sender::of(16 * PAGE).memfd();
    fs::fallocate(&punched, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 8 * PAGE, PAGE).unwrap();
    let expected = Fault::BadSize { what: "region bytes not allocated", found: PAGE, limit: 0 };
    assert_eq!(Some(expected), fault(punched));
}

/// Kilobytes of the mapping at `base` that the kernel maps by huge pages.
fn huge_kilobytes(base: usize) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mapping = maps.split_once(&format!("{base:x}-")).unwrap().1;
    let line = mapping.lines().find(|line| line.starts_with("ShmemPmdMapped:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Whether this kernel puts pages of a memfd together when it is asked to.
fn kernel_gathers() -> bool {
    let file = Sender::of(2 * HUGE_PAGE).memfd();
    let ram = Ram::open(file, NO_QUOTA).unwrap();
    let base = ram.at(0, 0).unwrap().as_ptr();
    // SAFETY: a request about memory that is ours and mapped.
    unsafe { libc::madvise(base.cast(), HUGE_PAGE as usize, libc::MADV_COLLAPSE) == 0 }
}

/// As it does in every mapping of a region then: two levels of page tables instead of three. The kernel may have no huge
/// page left for a moment.
#[test]
fn pages_of_a_large_region_are_huge_where_the_kernel_makes_them() {
    let is_huge = || {
        let ram = Ram::create("guest", 2 * HUGE_PAGE).unwrap();
        let shown = Ram::open(ram.as_fd().try_clone_to_owned().unwrap(), NO_QUOTA).unwrap();
        [&ram, &shown].iter().all(|ram| huge_kilobytes(ram.at(0, 0).unwrap().as_ptr() as usize) == 4096)
    };

    assert_eq!(kernel_gathers(), (0..10).any(|_| is_huge()));
}

/// To whole huge pages where that costs little, to pages otherwise; and it begins where one could.
#[test]
fn size_is_rounded_up_to_pages_or_huge_ones() {
    for (asked, made) in [
        (2 * PAGE + 1, 3 * PAGE),
        (HUGE_PAGE / 2, HUGE_PAGE / 2),
        (HUGE_PAGE - PAGE, HUGE_PAGE),
        (HUGE_PAGE + PAGE, HUGE_PAGE + PAGE),
        (2 * HUGE_PAGE - 3 * PAGE, 2 * HUGE_PAGE),
    ] {
        let ram = Ram::create("guest", asked).unwrap();

        let base = ram.at(0, 0).unwrap().as_ptr() as u64;
        assert_eq!(made, ram.size() as u64, "of {asked}");
        assert!(made < HUGE_PAGE || base.is_multiple_of(HUGE_PAGE), "{asked} bytes at {base:x}");
    }
}

/// Neither the region nor the room around it that was set aside to find its place.
#[test]
fn dropped_region_leaves_no_mapping() {
    let count = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains("vbnet-mapping-test") || line.contains("---p")).count()
    };
    let kept = Ram::create("vbnet-mapping-test", HUGE_PAGE + PAGE).unwrap();
    let before = count();

    for _ in 0..100 {
        drop(Ram::create("vbnet-mapping-test", HUGE_PAGE + PAGE).unwrap());
    }

    assert!(before + 10 > count(), "{before} mappings became {}", count());
    drop(kept);
}

/// After hand-over neither side can change the size or take the seals' protection away.
#[test]
fn size_cannot_change_after_hand_over() {
    let guest = Sender::of(4 * PAGE).memfd();
    let ram = Ram::open(rustix::io::dup(&guest).unwrap(), NO_QUOTA).unwrap();

    for size in [0, PAGE, 3 * PAGE, 5 * PAGE] {
        assert_eq!(Err(Errno::PERM), fs::ftruncate(&guest, size));
    }
    assert_eq!(Err(Errno::PERM), fs::fallocate(&guest, FallocateFlags::empty(), 4 * PAGE, PAGE));
    assert_eq!(Err(Errno::PERM), fs::fcntl_add_seals(&guest, SealFlags::WRITE));
    assert_eq!(4 * PAGE as i64, fs::fstat(ram.as_fd()).unwrap().st_size);
}

/// A page the guest gives back to the kernel afterwards reads as zeroes; it does not bring us down.
#[test]
fn hole_punched_after_hand_over_reads_as_zeroes() {
    let guest = Sender::of(4 * PAGE).memfd();
    let ram = Ram::open(rustix::io::dup(&guest).unwrap(), NO_QUOTA).unwrap();
    rustix::io::pwrite(&guest, &[7], 2 * PAGE).unwrap();

    fs::fallocate(&guest, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4 * PAGE).unwrap();

    // SAFETY: one byte within bounds.
    assert_eq!(0, unsafe { ram.at(2 * PAGE as u32, 1).unwrap().read_volatile() });
}

proptest! {
    /// Any header at all: accepted if it is the right one, a fault otherwise, nothing else.
    #[test]
    fn header_of_any_bytes_is_judged(at in 0..24usize, byte in any::<u8>()) {
        let right = header(b"VBNETRAM", 1, 4096, 2 * PAGE);
        let mut header = right;
        header[at] = byte;

        let found = Ram::open(Sender { header, ..Sender::of(2 * PAGE) }.memfd(), NO_QUOTA);

        if header == right {
            prop_assert!(found.is_ok());
        } else {
            prop_assert!(matches!(found, Err(Error::Peer(Fault::BadHeader { .. }))), "{:?}", found);
        }
    }

    /// A place is given out when it ends inside the region, and refused with its values otherwise.
    #[test]
    fn place_is_given_out_only_inside(offset in prop_oneof![0..9000u32, any::<u32>()],
                                      bytes in prop_oneof![0..9000u32, any::<u32>()]) {
        let ram = Ram::create("guest", 2 * PAGE).unwrap();

        let found = ram.at(offset, bytes as usize);

        if u64::from(offset) + u64::from(bytes) <= 2 * PAGE {
            let base = ram.at(0, 0).unwrap().as_ptr() as usize;
            prop_assert_eq!(Ok(base + offset as usize), found.map(|place| place.as_ptr() as usize));
        } else {
            prop_assert_eq!(Err(Fault::OutsideRegion { offset, length: bytes, limit: 2 * PAGE }), found);
        }
    }
}
