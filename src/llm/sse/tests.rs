use super::*;
use proptest::prelude::*;

fn fed(pieces: &[&[u8]]) -> (u64, bool) {
    let mut scan = SseScan::default();
    pieces.iter().for_each(|piece| scan.feed(piece));
    (scan.events(), scan.at_boundary())
}

#[test]
fn counts_events_and_knows_boundaries() {
    for (stream, expected) in [
        ("", (0, true)),
        ("data: {}\n\n", (1, true)),
        ("data:{}\n\n", (1, true)),
        ("data\n\n", (1, true)),
        ("data: {}\r\n\r\ndata: {}\r\n\r\n", (2, true)),
        ("data: {}\r\rdata: {}\r\r", (2, true)),
        ("data: a\ndata: b\n\n", (1, true)),
        ("\u{feff}data: {}\n\n", (1, true)),
        ("\u{feff}\u{feff}data: {}\n\n", (0, true)),
        ("data: {}\n\n\u{feff}data: {}\n\n", (1, true)),
        ("\u{fefe}data: {}\n\n", (0, true)),
        ("event: error\ndata: {}\n\n", (1, true)),
        ("data: {}\n\ndata: [DONE]\n\n", (1, true)),
        ("data: {}\n\ndata:[DONE]\n\n", (1, true)),
        ("data: [DONE] \n\n", (1, true)),
        ("data:  [DONE]\n\n", (1, true)),
        ("data: {\"c\":\"data: [DONE]\"}\n\n", (1, true)),
        (": ping\n\n", (0, true)),
        (": ping - 2026-01-01\r\n\r\n", (0, true)),
        ("database: x\n\n", (0, true)),
        (" data: x\n\n", (0, true)),
        ("\n\n\n", (0, true)),
        // Not at a boundary: an event of ours would be merged with what stands here.
        ("d", (0, false)),
        ("data: {}", (0, false)),
        ("data: {}\n", (0, false)),
        ("data: {}\r\n", (0, false)),
        ("data: {}\n\nevent: x\n", (1, false)),
        ("data: {}\n\ndata: [DONE]", (1, false)),
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
    assert_eq!(fed(&[b"data: x\r\n\r"]), (1, true));
    assert_eq!(fed(&[b"data: x\r\n\r", b"\n"]), (1, true));
    assert_eq!(fed(&[b"data: x\r", b"\n"]), (0, false));
}

/// The standard's algorithm on the whole text: split into lines, then into events.
fn by_the_book(stream: &str) -> (u64, bool) {
    let text = stream.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines: Vec<&str> = text.split('\n').collect();
    let unfinished = lines.pop().unwrap_or("");
    let (mut events, mut data, mut inside) = (0, false, false);
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        match (line, name) {
            ("", _) => {
                events += u64::from(data);
                (data, inside) = (false, false);
                continue;
            }
            (_, "data") if value.strip_prefix(' ').unwrap_or(value) == "[DONE]" => {}
            (_, "data") => data = true,
            _ => {}
        }
        inside = true;
    }
    (events, !inside && unfinished.is_empty())
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

/// Catches: lines of JSON that are counted as server-sent events, and an error of ours put into
/// the middle of one.
#[test]
fn a_line_of_json_is_an_event() {
    for (stream, events, boundary) in [
        ("", 0, true),
        ("{}", 0, false),
        ("{}\n", 1, true),
        ("{}\r\n{}\n", 2, true),
        ("{}\n\n \n{}\n", 2, true),
        ("{}\n{\"data\":1", 1, false),
    ] {
        for cut in 0..=stream.len() {
            let (a, b) = stream.as_bytes().split_at(cut);
            let mut scan = SseScan::new(EventFraming::Lines);
            scan.feed(a);
            scan.feed(b);
            assert_eq!((scan.events(), scan.at_boundary()), (events, boundary), "{stream:?}");
            assert!(scan.is_ndjson());
        }
    }
}

#[test]
fn the_media_type_tells_the_framing() {
    for (field, framing) in [
        ("text/event-stream", Some(EventFraming::Events)),
        ("Text/Event-Stream; charset=utf-8", Some(EventFraming::Events)),
        ("application/x-ndjson", Some(EventFraming::Lines)),
        ("application/x-ndjson;charset=utf-8", Some(EventFraming::Lines)),
        ("application/jsonl", Some(EventFraming::Lines)),
        ("application/json", None),
        ("text/event-streams", None),
        ("", None),
    ] {
        assert_eq!(EventFraming::of(field.as_bytes()), framing, "{field}");
    }
}
