use super::*;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use flate2::Compression;
use proptest::prelude::*;
use std::io::Write;

const GZ: &[u8] = include_bytes!("../../../tests/fixtures/dialects/packed/vllm_chat.sse.gz");
const ZZ: &[u8] = include_bytes!("../../../tests/fixtures/dialects/packed/vllm_chat.sse.zz");
const RAW: &[u8] = include_bytes!("../../../tests/fixtures/dialects/packed/vllm_chat.sse.deflate");
const ZST: &[u8] = include_bytes!("../../../tests/fixtures/dialects/packed/vllm_chat.sse.zst");
const BR: &[u8] = include_bytes!("../../../tests/fixtures/dialects/packed/vllm_chat.sse.br");
const PLAIN: &[u8] = include_bytes!("../../../tests/fixtures/dialects/vllm_chat.sse");
const ALL: [(Coding, &[u8]); 5] = [
    (Coding::Gzip, GZ),
    (Coding::Deflate, ZZ),
    (Coding::Deflate, RAW),
    (Coding::Zstd, ZST),
    (Coding::Brotli, BR),
];

/// The whole of a body, and the longest piece of it.
fn unpack(coding: Coding, packed: &[u8], max: u64) -> Result<(Vec<u8>, usize), UnpackFault> {
    let mut unpacking = BodyUnpacking::new(coding, packed, max)?;
    let (mut whole, mut longest) = (Vec::new(), 0);
    loop {
        let (piece, is_last) = unpacking.step()?;
        longest = longest.max(piece.len());
        whole.extend_from_slice(piece);
        if is_last {
            return Ok((whole, longest));
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn every_coding_is_unpacked() {
    for (coding, packed) in ALL {
        let (whole, _) = unpack(coding, packed, u64::MAX).unwrap();
        assert!(whole == PLAIN, "{coding:?}");
        assert_eq!(unpack(coding, packed, PLAIN.len() as u64).map(|got| got.0), Ok(whole));
        let short = unpack(coding, packed, PLAIN.len() as u64 - 1);
        assert_eq!(short, Err(UnpackFault::TooLarge), "{coding:?}");
    }
}

/// Catches: half a body that passes for a whole one, bytes behind the end of one that are lost, and
/// bytes that are no such thing.
#[test]
fn what_is_cut_off_broken_or_followed_is_refused() {
    for (coding, packed) in ALL {
        for end in 0..packed.len() {
            let cut = unpack(coding, &packed[..end], u64::MAX);
            assert_eq!(cut, Err(UnpackFault::Broken), "{coding:?} cut at {end}");
        }
        let plain = unpack(coding, b"{\"model\":\"m\"}", u64::MAX);
        assert_eq!(plain, Err(UnpackFault::Broken), "{coding:?}");
        if coding != Coding::Brotli {
            let twice = [packed, packed].concat();
            assert_eq!(unpack(coding, &twice, u64::MAX), Err(UnpackFault::Broken), "{coding:?}");
        }
    }
}

/// Catches: a few bytes that become a body as large as the limit, and work for them.
#[test]
fn a_bomb_is_refused_early() {
    let zeros = vec![b' '; 8 << 20];
    assert_eq!(unpack(Coding::Gzip, &gzip(&zeros), u64::MAX), Err(UnpackFault::TooDense));
    assert_eq!(unpack(Coding::Zstd, &zstd(&zeros), u64::MAX), Err(UnpackFault::TooDense));
    // What is small passes, however dense it is.
    let some = &zeros[..UNPACKED_RATIO_BYTES_MIN as usize];
    assert_eq!(unpack(Coding::Gzip, &gzip(some), u64::MAX).map(|got| got.0.len()), Ok(some.len()));
    // A window of 128 MiB, announced by a frame of a few bytes.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x88, 0x01, 0, 0];
    assert_eq!(unpack(Coding::Zstd, &window, u64::MAX), Err(UnpackFault::TooLarge));
}

/// Catches: a step that takes all of a body which gives nothing.
#[test]
fn a_body_that_gives_nothing_is_taken_in_portions() {
    let blocks = b"\x00\x00\x00\xff\xff".repeat(1 << 20);
    let mut unpacking = BodyUnpacking::new(Coding::Deflate, &blocks, u64::MAX).unwrap();
    let mut steps = 0;
    while let Ok((piece, is_last)) = unpacking.step() {
        assert!(piece.is_empty() && !is_last);
        steps += 1;
    }
    assert_eq!(steps, blocks.len().div_ceil(STEP_PACKED_BYTES_MAX));
    let head = &gzip(b"")[..10];
    let mut unpacking = [head, &blocks].concat();
    unpacking.extend_from_slice(&[0; 8]);
    assert_eq!(unpack(Coding::Gzip, &unpacking, u64::MAX), Err(UnpackFault::Broken));
    // Empty raw blocks of zstd, in a frame with a window of 1 KiB.
    let frame = [&b"\x28\xb5\x2f\xfd\x00\x00"[..], &[0; 3 * 1000]].concat();
    let mut unpacking = BodyUnpacking::new(Coding::Zstd, &frame, u64::MAX).unwrap();
    assert_eq!(unpacking.step(), Ok((&[][..], false)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What was packed comes out again, and no step but the last of zstd gives more than its share.
    #[test]
    fn what_was_packed_comes_out(
        words in prop::collection::vec("[a-z]{1,9} ", 0..4000),
        times in 1usize..40,
    ) {
        let plain = words.concat().repeat(times).into_bytes();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&plain).unwrap();
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::fast());
        raw.write_all(&plain).unwrap();
        for (coding, packed) in [
            (Coding::Gzip, gzip(&plain)),
            (Coding::Deflate, zlib.finish().unwrap()),
            (Coding::Deflate, raw.finish().unwrap()),
            (Coding::Zstd, zstd(&plain)),
        ] {
            match unpack(coding, &packed, u64::MAX) {
                Ok((whole, longest)) => {
                    prop_assert!(whole == plain);
                    prop_assert!(coding == Coding::Zstd || longest <= STEP_BYTES);
                }
                Err(fault) => {
                    prop_assert_eq!(fault, UnpackFault::TooDense);
                    prop_assert!(plain.len() as u64 > UNPACKED_RATIO_BYTES_MIN);
                }
            }
        }
    }

    /// Any bytes get an answer.
    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for (coding, packed) in ALL {
            let _ = unpack(coding, &bytes, 1 << 20);
            let mut damaged = packed.to_vec();
            for (at, byte) in bytes.iter().enumerate().take(3) {
                let at = (at * 131 + usize::from(*byte)) % damaged.len();
                damaged[at] ^= byte | 1;
            }
            let _ = unpack(coding, &damaged, 1 << 20);
        }
    }
}
