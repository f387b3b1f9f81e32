use super::*;
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::Compression;
use proptest::prelude::*;
use std::io::Write;

const GZ: &[u8] = include_bytes!("../../../tests/fixtures/dialects/packed/vllm_chat.sse.gz");
const ZZ: &[u8] = include_bytes!("../../../tests/fixtures/dialects/packed/vllm_chat.sse.zz");
const RAW: &[u8] = include_bytes!("../../../tests/fixtures/dialects/packed/vllm_chat.sse.deflate");
const ZST: &[u8] = include_bytes!("../../../tests/fixtures/dialects/packed/vllm_chat.sse.zst");
const BR: &[u8] = include_bytes!("../../../tests/fixtures/dialects/packed/vllm_chat.sse.br");
const ALL: [(Coding, &[u8]); 5] = [
    (Coding::Gzip, GZ),
    (Coding::Deflate, ZZ),
    (Coding::Deflate, RAW),
    (Coding::Zstd, ZST),
    (Coding::Brotli, BR),
];

/// The tokens in one of the packed streams, or in a packed answer.
fn total(coding: Coding, packed: &[u8]) -> Result<Option<u64>, InflateFault> {
    let is_stream = ALL.iter().any(|(_, stream)| stream.starts_with(packed));
    let form = (Dialect::OpenAi, is_stream.then_some(EventFraming::Events));
    read(coding, packed, form).map(|scan| scan.usage().map(|u| u.total_tokens))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Catches: a coding that engines' front ends use and that is not understood.
#[test]
fn usage_is_found_in_every_coding() {
    for (coding, packed) in ALL {
        assert_eq!(total(coding, packed), Ok(Some(15)), "{coding:?}");
    }
    assert_eq!(total(Coding::Gzip, &gzip(b"{\"choices\":[]}")), Ok(None));
    let native = gzip(b"{\"done\":true,\"eval_count\":3}");
    let form = (Dialect::Ollama, Some(EventFraming::Lines));
    let usage = read(Coding::Gzip, &native, form).unwrap().usage();
    assert_eq!(usage.map(|u| u.completion_tokens), Some(3), "in the dialect of the path");
}

/// Catches: a packed answer in several parts, of which only the first is read.
#[test]
fn parts_that_follow_each_other_are_one_answer() {
    let first = b"{\"choices\":[],\"us";
    let rest = b"age\":{\"prompt_tokens\":1,\"completion_tokens\":1}}";
    assert_eq!(total(Coding::Gzip, &[gzip(first), gzip(rest)].concat()), Ok(Some(2)));
    let frame = |bytes: &[u8]| {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(bytes, level)
    };
    let skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
    let parts = [&skipped[..], &frame(first), skipped, &frame(rest), skipped].concat();
    assert_eq!(total(Coding::Zstd, &parts), Ok(Some(2)));
}

/// Catches: half an answer that counts as a whole one, and bytes that are no such thing at all.
#[test]
fn what_is_cut_off_or_broken_is_no_usage() {
    for (coding, packed) in ALL {
        for end in 0..packed.len() {
            let cut = total(coding, &packed[..end]);
            assert_eq!(cut, Err(InflateFault::Broken), "{coding:?} cut at {end}");
        }
        assert_eq!(total(coding, b"{\"usage\":{\"prompt_tokens\":1}}"), Err(InflateFault::Broken));
    }
    let skip_too_far = b"\x50\x2a\x4d\x18\xff\xff\xff\xffabc";
    assert_eq!(total(Coding::Zstd, skip_too_far), Err(InflateFault::Broken));
}

/// Catches: a bomb, few bytes that unpack to many.
#[test]
fn what_unpacks_to_too_much_is_given_up() {
    let usage = b"{\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}";
    let filled = |bytes: usize| {
        let mut body = vec![b' '; bytes];
        body[..usage.len()].copy_from_slice(usage);
        body
    };
    assert_eq!(total(Coding::Gzip, &gzip(&filled(INFLATED_BYTES_MAX))), Ok(Some(2)));
    let bomb = filled(INFLATED_BYTES_MAX + 1);
    assert_eq!(total(Coding::Gzip, &gzip(&bomb)), Err(InflateFault::TooLarge));
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
    zlib.write_all(&bomb).unwrap();
    assert_eq!(total(Coding::Deflate, &zlib.finish().unwrap()), Err(InflateFault::TooLarge));
    // A block that repeats one byte: four bytes become 128 KiB.
    let blocks = b"\x02\0\x10 ".repeat(1 + INFLATED_BYTES_MAX / (128 * 1024));
    let zstd = [b"\x28\xb5\x2f\xfd\0\x58", &blocks[..], b"\x01\0\0"].concat();
    assert_eq!(total(Coding::Zstd, &zstd), Err(InflateFault::TooLarge));
}

/// Catches: a head of few bytes that makes a decoder reserve all memory.
#[test]
fn a_window_that_is_too_large_is_refused() {
    // Window descriptors of 8 MiB, and of more; and a frame of one segment, announced with 1 GiB.
    let empty = |descriptor: u8| [b"\x28\xb5\x2f\xfd\0", &[descriptor][..], b"\x01\0\0"].concat();
    assert_eq!(total(Coding::Zstd, &empty(0x68)), Ok(None));
    for descriptor in [0x69, 0x70, 0x88, 0xa0] {
        assert_eq!(total(Coding::Zstd, &empty(descriptor)), Err(InflateFault::TooLarge));
    }
    let announced = b"\x28\xb5\x2f\xfd\xa0\0\0\0\x40\x01\0\0";
    assert_eq!(total(Coding::Zstd, announced), Err(InflateFault::TooLarge));
    // Brotli's large windows (2^30 bytes) are no part of HTTP's `br`; its largest, 2^24, is.
    assert_eq!(total(Coding::Brotli, b"\x11\xde"), Err(InflateFault::Broken));
    assert_eq!(total(Coding::Brotli, b"\x3f"), Ok(None));
}

#[test]
fn the_field_names_the_coding() {
    for (field, coding) in [
        ("gzip", Some(Coding::Gzip)),
        ("x-gzip", Some(Coding::Gzip)),
        (" GZip ", Some(Coding::Gzip)),
        ("deflate", Some(Coding::Deflate)),
        ("zstd", Some(Coding::Zstd)),
        ("br", Some(Coding::Brotli)),
        ("identity", None),
        ("gzip, br", None),
        ("compress", None),
        ("", None),
    ] {
        assert_eq!(Coding::of(field.as_bytes()), coding, "{field}");
    }
}

proptest! {
    /// Catches: bytes that make a decoder stop the program, or never stop itself.
    #[test]
    fn any_bytes_get_an_answer(
        at in 0..ALL.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let (coding, packed) = ALL[at];
        let mut packed = [packed, &tail].concat();
        for (index, byte) in changes {
            let at = index.index(packed.len());
            packed[at] = byte;
        }
        // Not through `read`, which survives a panic: there should be none to survive.
        let _ = unpack(coding, &packed, &mut UsageScan::default());
    }
}

/// Catches: copies of packed answers that fill the memory, and room that is not given back.
#[test]
fn all_copies_together_are_bounded() {
    let one = || Packed::new(Coding::Gzip, Dialect::OpenAi, None);
    let piece = vec![0; 1024 * 1024];
    let mut large = one();
    for _ in 0..INFLATED_BYTES_MAX / piece.len() {
        assert_eq!(large.keep(&piece), Ok(()));
    }
    assert_eq!(large.keep(b"x"), Err(NoCopy::TooLarge));
    drop(large);
    let mut copies: Vec<Packed> = Vec::new();
    let refused = loop {
        let mut copy = one();
        if let Err(why) = copy.keep(&piece) {
            break why;
        }
        copies.push(copy);
        assert!(copies.len() * piece.len() <= PACKED_TOTAL_BYTES_MAX);
    };
    // Other tests may hold a little at the same time.
    let most = PACKED_TOTAL_BYTES_MAX / piece.len();
    assert_eq!((refused, copies.len() + 1 >= most), (NoCopy::NoRoom, true));
    copies.truncate(most / 2);
    assert_eq!(one().keep(&piece), Ok(()));
}
