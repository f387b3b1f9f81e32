use super::*;
use proptest::prelude::*;

fn fed(pieces: &[&[u8]]) -> (u64, bool, bool) {
    let mut scan = SseScan::default();
    pieces.iter().for_each(|piece| scan.feed(piece));
    (scan.events(), scan.at_boundary(), scan.done())
}

#[test]
fn counts_events_and_knows_boundaries() {
    for (stream, expected) in [
        ("", (0, true, false)),
        ("data: {}\n\n", (1, true, false)),
        ("data:{}\n\n", (1, true, false)),
        ("data\n\n", (1, true, false)),
        ("data: {}\r\n\r\ndata: {}\r\n\r\n", (2, true, false)),
        ("data: {}\r\rdata: {}\r\r", (2, true, false)),
        ("data: a\ndata: b\n\n", (1, true, false)),
        ("event: error\ndata: {}\n\n", (1, true, false)),
        ("data: {}\n\ndata: [DONE]\n\n", (1, true, true)),
        ("data: {}\n\ndata:[DONE]\n\n", (1, true, true)),
        ("data: [DONE] \n\n", (1, true, false)),
        ("data:  [DONE]\n\n", (1, true, false)),
        ("data: {\"c\":\"data: [DONE]\"}\n\n", (1, true, false)),
        (": ping\n\n", (0, true, false)),
        (": ping - 2026-01-01\r\n\r\n", (0, true, false)),
        ("database: x\n\n", (0, true, false)),
        (" data: x\n\n", (0, true, false)),
        ("\n\n\n", (0, true, false)),
        // Not at a boundary: an event of ours would be merged with what stands here.
        ("d", (0, false, false)),
        ("data: {}", (0, false, false)),
        ("data: {}\n", (0, false, false)),
        ("data: {}\r\n", (0, false, false)),
        ("data: {}\n\nevent: x\n", (1, false, false)),
        ("data: {}\n\ndata: [DONE]", (1, false, false)),
    ] {
        assert_eq!(fed(&[stream.as_bytes()]), expected, "{stream:?}");
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(fed(&bytes), expected, "{stream:?} byte by byte");
        for cut in 0..stream.len() {
            let (a, b) = stream.as_bytes().split_at(cut);
            assert_eq!(fed(&[a, b]), expected, "{stream:?} cut at {cut}");
        }
    }
}

#[test]
fn the_middle_of_a_crlf_that_ends_an_event_is_a_boundary() {
    // A CR alone ends a line, so the event is over; a LF that still comes is a blank line more.
    assert_eq!(fed(&[b"data: x\r\n\r"]), (1, true, false));
    assert_eq!(fed(&[b"data: x\r\n\r", b"\n"]), (1, true, false));
    assert_eq!(fed(&[b"data: x\r", b"\n"]), (0, false, false));
}

/// The standard's algorithm on the whole text: split into lines, then into events.
fn by_the_book(stream: &str) -> (u64, bool, bool) {
    let text = stream.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines: Vec<&str> = text.split('\n').collect();
    let unfinished = lines.pop().unwrap_or("");
    let (mut events, mut done, mut data, mut inside) = (0, false, false, false);
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        match (line, name) {
            ("", _) => {
                events += u64::from(data);
                (data, inside) = (false, false);
                continue;
            }
            (_, "data") if value.strip_prefix(' ').unwrap_or(value) == "[DONE]" => done = true,
            (_, "data") => data = true,
            _ => {}
        }
        inside = true;
    }
    (events, !inside && unfinished.is_empty(), done)
}

proptest! {
    #[test]
    fn agrees_with_the_book_at_every_cut(
        parts in prop::collection::vec(prop::sample::select(vec![
            "\n", "\r", "\r\n", "\n\n", "data", "data:", "data: ", "[DONE]", "data: [DONE]", "{}",
            ":", "event: x", " ", "data: {\"a long line\": \"of more than the head\"}",
        ]), 0..30),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let stream = parts.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> =
            cuts.windows(2).map(|pair| &stream.as_bytes()[pair[0]..pair[1]]).collect();
        prop_assert_eq!(fed(&pieces), by_the_book(&stream));
    }
}
