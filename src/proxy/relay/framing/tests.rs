use super::super::parts::{Headers, Parts};
use super::*;
use proptest::prelude::*;

/// What a client gets when the reads of an answer are forwarded one by one.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// Bytes of each send.
    sends: Vec<Vec<u8>>,
    /// What the tap was shown.
    data: Vec<u8>,
    /// What `data_len` said.
    data_len: u64,
    finished: bool,
    broken: Option<&'static str>,
    /// Bytes behind the end.
    extra: usize,
}

impl Seen {
    fn wire(&self) -> Vec<u8> {
        self.sends.concat()
    }
}

fn forward(reads: &[&[u8]], chunked: bool) -> Seen {
    let mut inbound = Inbound::new(ResponseFraming::Chunked);
    let (mut seen, mut body) = (Seen::default(), Sections::default());
    for read in reads {
        let mut rest = *read;
        while !rest.is_empty() && !seen.finished {
            let progress = inbound.decode(rest, chunked, &mut body);
            let mut headers = Headers::default();
            let mut parts = Parts::after(0);
            match chunked {
                true => parts.push_chunks(&body, rest, progress.finished, &mut headers),
                false => parts.push_data(&body, rest),
            }
            let send: Vec<u8> = parts.list().iter().flat_map(|part| part.to_vec()).collect();
            assert_eq!(send.len(), parts.total);
            seen.sends.push(send);
            body.for_each_data(rest, |data| seen.data.extend_from_slice(data));
            seen.data_len += body.data_len();
            seen.finished = progress.finished;
            if progress.broken.is_some() {
                seen.broken = progress.broken;
                return seen;
            }
            assert!(progress.consumed > 0, "no step without a byte");
            rest = &rest[progress.consumed..];
        }
        seen.extra += rest.len();
    }
    seen
}

/// Decodes all of it; the data, and whether it ends between two chunks or at its end.
fn decoded(wire: &[u8]) -> (Vec<u8>, bool) {
    let (mut data, mut rest) = (Vec::new(), wire);
    while let Some(chunk) = whole_chunk(rest) {
        data.extend_from_slice(&rest[chunk.start..chunk.end]);
        rest = &rest[chunk.wire_len()..];
    }
    (data, rest.is_empty())
}

#[test]
fn whole_chunks_go_out_as_they_came_in_one_part() {
    let read = b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n";
    let mut inbound = Inbound::new(ResponseFraming::Chunked);
    let mut body = Sections::default();
    let progress = inbound.decode(read, true, &mut body);
    assert_eq!(progress, Progress { consumed: read.len(), finished: true, broken: None });
    let mut headers = Headers::default();
    let mut parts = Parts::after(0);
    parts.push_chunks(&body, read, true, &mut headers);
    let list: Vec<&[u8]> = parts.list().iter().map(|part| &part[..]).collect();
    assert_eq!(list, [read]);
    assert_eq!(body.data_len(), 15);
}

#[test]
fn what_is_unusual_is_framed_anew() {
    for (read, sent) in [
        ("05\r\nhello\r\n", "5\r\nhello\r\n"),
        ("5;x=y\r\nhello\r\n", "5\r\nhello\r\n"),
        ("5\r\nhello\r\n0\r\nA: b\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("5\r\nhello\r\n00\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("5\r\nhel", "3\r\nhel\r\n"),
    ] {
        assert_eq!(forward(&[read.as_bytes()], true).wire(), sent.as_bytes(), "{read:?}");
    }
}

#[test]
fn what_came_before_a_broken_chunk_is_sent() {
    let seen = forward(&[b"5\r\nhello\r\n3\r\nabc\r\n4x\r\n"], true);
    assert_eq!(seen.wire(), b"5\r\nhello\r\n3\r\nabc\r\n");
    assert_eq!(seen.broken, Some("chunk_size_malformed"));
    let seen = forward(&[b"5\r\nhello\r\n3\r\nabcd\r\n"], true);
    assert_eq!(seen.data, b"helloabc");
    assert_eq!(seen.broken, Some("chunk_data_end"));
}

/// What comes behind a broken chunk may look like a proper end.
#[test]
fn a_broken_answer_has_no_end() {
    let mut inbound = Inbound::new(ResponseFraming::Chunked);
    let mut body = Sections::default();
    assert!(inbound.decode(b"5\r\nhelloX", true, &mut body).broken.is_some());
    assert_eq!(body.data_len(), 5);
    let progress = inbound.decode(b"\r\n0\r\n\r\n", true, &mut body);
    assert!(!progress.finished && inbound.ends_with_close());
}

#[derive(Debug, Clone)]
struct Chunk {
    data: Vec<u8>,
    zeros: usize,
    upper: bool,
    extension: &'static str,
}

fn chunk() -> impl Strategy<Value = Chunk> {
    // Line ends and digits in the data are what could be taken for framing.
    let byte = prop::sample::select(b"\r\n0aF;x".to_vec());
    let data = prop::collection::vec(byte, 1..40);
    let plain = prop_oneof![3 => Just(0usize), 1 => 1..4usize];
    let extension = prop_oneof![4 => Just(""), 1 => Just(";a=b")];
    (data, plain, any::<bool>(), extension).prop_map(|(data, zeros, upper, extension)| Chunk {
        data,
        zeros,
        upper,
        extension,
    })
}

fn body() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let end = prop_oneof![3 => Just("0\r\n\r\n"), 1 => Just("000;e\r\nA: b\r\n\r\n")];
    (prop::collection::vec(chunk(), 0..12), end).prop_map(|(chunks, end)| {
        let mut wire = Vec::new();
        for chunk in &chunks {
            let size = format!("{:x}", chunk.data.len());
            let size = if chunk.upper { size.to_uppercase() } else { size };
            wire.extend_from_slice("0".repeat(chunk.zeros).as_bytes());
            wire.extend_from_slice(format!("{size}{}\r\n", chunk.extension).as_bytes());
            wire.extend_from_slice(&chunk.data);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(end.as_bytes());
        (chunks.into_iter().flat_map(|chunk| chunk.data).collect(), wire)
    })
}

fn cut<'a>(wire: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
    at.extend([0, wire.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn any_body_in_any_reads_arrives_whole(
        (data, wire) in body(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        extra in 0..3usize,
    ) {
        let mut sent = wire.clone();
        sent.extend(std::iter::repeat_n(b'x', extra));
        let reads = cut(&sent, &cuts);
        let seen = forward(&reads, true);
        prop_assert_eq!((seen.finished, seen.broken, seen.extra), (true, None, extra));
        prop_assert_eq!(&seen.data, &data);
        prop_assert_eq!(seen.data_len, data.len() as u64);
        // An event of ours may follow any send but the last.
        let mut all = Vec::new();
        for send in &seen.sends {
            all.extend_from_slice(send);
            prop_assert!(decoded(&all).1, "not between two chunks: {:?}", all);
        }
        prop_assert_eq!(decoded(&all).0, data.clone());
        prop_assert!(all.ends_with(b"0\r\n\r\n"));

        let bare = forward(&reads, false);
        prop_assert_eq!((bare.finished, bare.extra), (true, extra));
        prop_assert_eq!(bare.wire(), data.clone());
        prop_assert_eq!(bare.data, data);
    }
}
