//! Bytes that changed or went missing behind the spool's back.

use super::super::scan::{marker_of, ReadWindow, Scan, Step};
use super::super::segment::{self, first_of, Kind, HEADER_BYTES};
use super::fault::{FaultDisk, World};
use super::rig::*;
use crate::config::plan::Fsync;
use crate::usage::source::Source;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

type Disk = FaultDisk<()>;

/// A folder whose one segment has these records, and the segment's name.
fn one_segment(count: u32) -> (World, String) {
    let disk = Disk::new(World::default());
    let mut spool = opened(Arc::new(disk.clone()), options(Fsync::Off));
    (0..count).for_each(|id| spool.close(id));
    spool.writer.commit();
    let world = disk.world();
    let name = world.names().into_iter().find(|name| first_of(name).is_some()).unwrap();
    (world, name)
}

/// Catches: one wrong byte that hides more than the entry it is in, or is not counted.
#[test]
fn one_wrong_byte_costs_one_record() {
    let (world, name) = one_segment(8);
    let len = world.clone().file(&name).len();
    let all = set(0..8);
    for at in 0..len {
        for flip in [0x01, 0x80, 0xff] {
            let mut world = world.clone();
            world.file(&name)[at] ^= flip;
            let mut spool = opened(Arc::new(Disk::new(world)), options(Fsync::Off));
            let found = set(ids(&mut spool.cursors[0]));
            let lost = all.difference(&found).count();
            let most = usize::from(at >= HEADER_BYTES);
            assert!(lost <= most && found.is_subset(&all), "byte {at}: {found:?}");
            let state = &spool.state;
            let seen = state.damaged_places.load(Relaxed) + state.torn_tails.load(Relaxed);
            assert_eq!(seen, 1, "byte {at}");
            assert_eq!(ids(&mut spool.cursors[1]).len(), found.len());
            let again = state.damaged_places.load(Relaxed) + state.torn_tails.load(Relaxed);
            assert_eq!(again, 1, "byte {at}: counted again by a reporter");
        }
    }
}

/// Catches: an end whose bytes are as they were written, and no record, that is passed over in
/// silence, ends the walk, or stays in the backlog.
#[test]
fn an_end_that_is_no_record_is_damage() {
    let (mut world, name) = one_segment(3);
    let file = world.file(&name);
    let marker = *file[12..].first_chunk().unwrap();
    for (sequence, payload) in [(4, b"\x03\xffcut".as_slice()), (5, b"")] {
        let fill = |into: &mut Vec<u8>| into.extend_from_slice(payload);
        segment::push(file, marker, (sequence, Kind::Close), fill);
    }
    let mut spool = opened(Arc::new(Disk::new(world)), options(Fsync::Off));
    for reporter in 0..2 {
        let cursor = &mut spool.cursors[reporter];
        let found = cursor.read_owned(100);
        let seqs: Vec<u64> = found.iter().map(|delivery| delivery.seq).collect();
        assert_eq!(seqs, [1, 2, 3, 5], "an empty record is one");
        assert_eq!(cursor.backlog(), 4);
        cursor.done(5);
        assert_eq!(cursor.backlog(), 0);
    }
    assert_eq!(spool.state.damaged_places.load(Relaxed), 1);
    assert_eq!(spool.state.damaged_bytes.load(Relaxed), (segment::ENTRY_BYTES + 5) as u64);
}

/// Catches: an end that is cut anywhere and hides what lies before it, or spoils what comes after.
#[test]
fn a_cut_end_costs_what_was_cut() {
    let (world, name) = one_segment(6);
    let whole = world.clone().file(&name).clone();
    let mut most = 0;
    for len in 0..whole.len() {
        let mut world = world.clone();
        world.file(&name).truncate(len);
        let disk = Disk::new(world);
        let mut spool = opened(Arc::new(disk.clone()), options(Fsync::Off));
        let found = deliver_all(&mut spool.cursors[0]);
        assert_eq!(found, (0..found.len() as u32).collect::<Vec<_>>(), "cut at {len}");
        assert!(found.len() >= most, "cut at {len}");
        most = found.len();
        spool.close(100);
        spool.writer.commit();
        assert_eq!(deliver_all(&mut spool.cursors[0]), [100], "cut at {len}");
        drop(spool);
        let mut spool = opened(Arc::new(disk), options(Fsync::Off));
        let after: Vec<u32> = found.iter().copied().chain([100]).collect();
        assert_eq!(ids(&mut spool.cursors[1]), after, "cut at {len}");
        let damaged = spool.state.damaged_places.load(Relaxed);
        assert!(damaged == 0 || len < HEADER_BYTES + 4, "cut at {len}: {damaged} places");
    }
    assert_eq!(most, 5);
}

/// Catches: a walk that ends, or goes astray, where an entry is longer than what is read at a time.
#[test]
fn long_entries_and_damage_between_them() {
    let disk = Disk::new(World::default());
    let big = super::super::Options { segment_bytes: 1 << 20, ..options(Fsync::Off) };
    let mut spool = opened(Arc::new(disk.clone()), big);
    for id in 0..6 {
        let body = Some(vec![b'x'; 65_000 * (id as usize % 3)]);
        let record = crate::usage::record::UsageRecord { request_body: body, ..named(id) };
        spool.writer.append(super::super::segment::Kind::Close, &record);
    }
    spool.writer.commit();
    assert_eq!(ids(&mut spool.cursors[0]), [0, 1, 2, 3, 4, 5]);
    let mut world = disk.world();
    let name = world.names().into_iter().find(|name| first_of(name).is_some()).unwrap();
    let len = world.file(&name).len();
    // Inside the long ones.
    world.file(&name)[len / 3] ^= 1;
    world.file(&name)[2 * len / 3 + 9000] ^= 1;
    let mut spool = opened(Arc::new(Disk::new(world)), big);
    let found = ids(&mut spool.cursors[0]);
    assert_eq!(found.len(), 4, "{found:?}");
}

/// Catches: bytes of a client, in a request body, that are taken for an entry behind damage.
#[test]
fn a_request_body_cannot_forge_an_entry() {
    let (mut world, name) = one_segment(3);
    let bytes = world.file(&name).clone();
    let disk = Disk::new(World::default());
    let mut spool = opened(Arc::new(disk.clone()), options(Fsync::Off));
    let body = Some(bytes[HEADER_BYTES..].to_vec());
    let record = crate::usage::record::UsageRecord { request_body: body, ..named(7) };
    spool.writer.append(super::super::segment::Kind::Close, &record);
    spool.writer.commit();
    let mut world = disk.world();
    let name = world.names().into_iter().find(|name| first_of(name).is_some()).unwrap();
    // The length of the entry with the body.
    world.file(&name)[HEADER_BYTES + 4] ^= 1;
    let mut spool = opened(Arc::new(Disk::new(world)), options(Fsync::Off));
    assert_eq!(ids(&mut spool.cursors[0]), Vec::<u32>::new());
}

/// Catches: what a window holds of a file that was read before, taken for the next one's bytes.
#[test]
fn a_window_that_was_used_says_only_what_was_read() {
    let marker = [7, 8, 9, 10];
    let mut bytes = Vec::new();
    for sequence in 0..20 {
        segment::push(&mut bytes, marker, (sequence, Kind::Close), |out| out.extend([1; 300]));
    }
    let end = bytes.len() as u64;
    let mut window = ReadWindow::default();
    // The second file is cut in its sixth entry, and nobody was told.
    for (len, whole) in [(20, 20), (5, 5), (20, 20)] {
        let kept = if len == 20 { bytes.len() } else { bytes.len() * len / 20 + 100 };
        let file = super::super::memory::MemoryFile::holding(bytes[..kept].to_vec());
        let mut scan = Scan::with(&file, marker, (0, end), window);
        let (mut entries, mut damage) = (0, 0);
        while let Some(step) = scan.step().unwrap() {
            match step {
                Step::Entry(entry) => {
                    assert_eq!((entry.sequence, entry.payload), (entries, [1; 300].as_slice()));
                    entries += 1;
                }
                Step::Damage(len) => damage += len,
            }
        }
        assert_eq!((entries, damage), (whole, end - whole * end / 20));
        window = scan.into_window();
    }
}

proptest::proptest! {
    /// Catches: a panic or an endless walk on bytes that nobody wrote as a segment.
    #[test]
    fn any_bytes_can_be_walked(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let file = super::super::memory::MemoryFile::holding(bytes.clone());
        let end = bytes.len() as u64;
        let _ = marker_of(&file, end, &[[0; 4], [1; 4]]);
        let mut scan = Scan::new(&file, [bytes.first().copied().unwrap_or(0); 4], (0, end));
        let mut walked = 0;
        while let Some(step) = scan.step().unwrap() {
            walked += match step {
                Step::Entry(entry) => entry.size() as u64,
                Step::Damage(len) => len,
            };
        }
        proptest::prop_assert_eq!(walked, end);
    }
}
