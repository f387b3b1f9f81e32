//! Any bytes can be walked as a segment, to their end, and entries among them are found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::usage::spool::memory::MemoryFile;
use llmproxy::usage::spool::scan::{marker_of, Scan, Step};
use llmproxy::usage::spool::segment::{push, Kind};

fuzz_target!(|input: ([u8; 4], &[u8], &[u8])| {
    let (marker, before, behind) = input;
    let mut bytes = before.to_vec();
    push(&mut bytes, marker, (7, Kind::Close), |into| into.extend_from_slice(b"payload"));
    bytes.extend_from_slice(behind);
    let end = bytes.len() as u64;
    let file = MemoryFile::holding(bytes);
    let _ = marker_of(&file, end, &[marker]);
    let mut scan = Scan::new(&file, marker, (0, end));
    let (mut walked, mut found) = (0, false);
    while let Some(step) = scan.step().expect("memory can be read") {
        walked += match step {
            Step::Entry(entry) => {
                found |= entry.sequence == 7;
                entry.size() as u64
            }
            Step::Damage(len) => len,
        };
    }
    assert_eq!(walked, end);
    // One that is part of another's payload is none.
    assert!(found || before.windows(4).any(|four| four == marker));
});
