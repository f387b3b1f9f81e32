//! Any cut of the bytes gives the same result; what we write reads back as it was meant.

use llmproxy::base::limits::HEAD_BYTES_MAX;
use llmproxy::http::chunked::{ChunkDecoder, Piece};
use llmproxy::http::framing::{Framing, ResponseFraming};
use llmproxy::http::head::{Parse, Version};
use llmproxy::http::request::{Method, RequestHead};
use llmproxy::http::response::ResponseHead;
use llmproxy::http::write::{self, ForwardResponse, OutFraming};
use proptest::prelude::*;

use crate::readback::leak;
use crate::relay::{relay, End};

/// Pieces of requests, good and bad, in any order: most sequences come close to a request.
fn request_text() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        8 => Just("POST /v1/x HTTP/1.1\r\n"),
        4 => Just("GET http://h:1/a?b HTTP/1.1\r\n"),
        1 => Just("GET / HTTP/1.0\r\n"),
        1 => Just("GET /\r\n"),
        1 => Just("get / HTTP/1.1\r\n"),
    ];
    let field = prop_oneof![
        8 => "[A-Za-z-]{1,8}:[ \t]{0,2}[ -~]{0,8}\r\n",
        3 => Just("Content-Length: 5\r\n".to_owned()),
        3 => Just("Transfer-Encoding: chunked\r\n".to_owned()),
        2 => Just("Connection: keep-alive, x-a\r\n".to_owned()),
        1 => Just("Connection: close\r\n".to_owned()),
        1 => Just("X-A: 1\r\n".to_owned()),
        1 => Just(" folded\r\n".to_owned()),
        1 => Just("a: b\n".to_owned()),
        1 => Just("\r\n".to_owned()),
        1 => "[\\x00-\\xff]{1,3}\r\n",
    ];
    let body = prop_oneof![
        Just(""),
        Just("hello"),
        Just("5\r\nhello\r\n0\r\n\r\n"),
        Just("5\r\nhello\r\n0\r\nT: u\r\n\r\n"),
        Just("5;x=y\r\nhel"),
    ];
    let one = (line, prop::collection::vec(field, 0..5), body).prop_map(|(line, fields, body)| {
        format!("{line}Host: h\r\n{}\r\n{body}", fields.concat()).into_bytes()
    });
    prop::collection::vec(one, 1..4).prop_map(|requests| requests.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A result that depended on where a read ended would be a lever to smuggle with.
    #[test]
    fn the_cut_of_the_reads_changes_nothing(text in request_text(), step in 1usize..50) {
        let (whole, end) = relay(&text, text.len());
        let (cut, cut_end) = relay(&text, step);
        prop_assert_eq!(&whole, &cut);
        // Which of two faults is named may depend on what arrived first; that there is one, not.
        match (&end, &cut_end) {
            (End::Refused(..), End::Refused(..)) => {}
            _ => prop_assert_eq!(&end, &cut_end),
        }
        for request in &whole {
            prop_assert_eq!(leak(request), None);
        }
    }

    /// No bytes at all may panic, and none may make the parsers loop or run past their input.
    #[test]
    fn any_bytes_are_survived(text in prop::collection::vec(any::<u8>(), 0..200)) {
        relay(&text, 7);
        let head = [b"POST / HTTP/1.1\r\nHost: h\r\n".as_slice(), &text].concat();
        relay(&head, 11);
        let status = [b"HTTP/1.1 200 OK\r\n".as_slice(), &text].concat();
        for method in [Method::Get, Method::Head] {
            let _ = ResponseHead::default().parse(&status, method, HEAD_BYTES_MAX);
        }
        let mut decoder = ChunkDecoder::new(64);
        let mut at = 0;
        while let Ok(Piece::Data { start, end }) = decoder.decode(&text[at..]) {
            prop_assert!(start < end && end <= text.len() - at);
            at += end;
        }
    }

    /// Chunks that we write decode to what went in, however they are cut.
    #[test]
    fn chunks_round_trip(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..6),
        step in 1usize..64,
    ) {
        let mut wire = Vec::new();
        for part in &parts {
            wire.extend_from_slice(write::chunk_header(&mut [0; 18], part.len()));
            wire.extend_from_slice(part);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(write::LAST_CHUNK);
        let mut decoder = ChunkDecoder::new(0);
        let mut data = Vec::new();
        for read in wire.chunks(step) {
            let mut at = 0;
            while at < read.len() {
                match decoder.decode(&read[at..]).unwrap() {
                    Piece::Data { start, end } => {
                        data.extend_from_slice(&read[at + start..at + end]);
                        at += end;
                    }
                    Piece::NeedMore => break,
                    Piece::End { consumed } => at += consumed,
                }
            }
        }
        prop_assert!(decoder.is_done());
        prop_assert_eq!(data, parts.concat());
    }

    /// A response means to the client what it meant to us, with exactly one framing.
    #[test]
    fn responses_round_trip(
        status in prop_oneof![Just(200u16), Just(204), Just(304), Just(404), 200..600u16],
        reason in "[ -~]{0,12}",
        fields in prop::collection::vec(
            ("[A-Za-z]{1,8}-[a-z]{1,4}", "[!-~]([ -~]{0,12}[!-~])?"),
            0..6,
        ),
        out in prop_oneof![
            any::<u32>().prop_map(|n| OutFraming::Length(u64::from(n))),
            Just(OutFraming::Chunked), Just(OutFraming::UntilClose), Just(OutFraming::None),
        ],
        close: bool,
        step in 1usize..80,
    ) {
        let lines: String = fields.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        let sent = format!("HTTP/1.1 {status} {reason}\r\n{lines}Content-Length: 7\r\n\r\n");
        let mut head = ResponseHead::default();
        let parsed = head.parse(sent.as_bytes(), Method::Post, HEAD_BYTES_MAX);
        prop_assume!(parsed.is_ok());
        let mut wire = Vec::new();
        let how = ForwardResponse {
            client: Version::Http11,
            framing: out,
            close,
            request_id: "r",
            fields: &[],
            at_ours: &|_| None,
        };
        write::response(&mut wire, &head, sent.as_bytes(), &how);

        let mut again = ResponseHead::default();
        let mut cuts = (step..wire.len()).step_by(step).chain([wire.len()]);
        let len = loop {
            let cut = cuts.next().unwrap();
            match again.parse(&wire[..cut], Method::Post, HEAD_BYTES_MAX).unwrap() {
                Parse::Done { len } => break len,
                Parse::Partial => prop_assert!(cut < wire.len()),
            }
        };
        prop_assert_eq!(len, wire.len());
        prop_assert_eq!(again.status, status);
        prop_assert_eq!(again.reason.of(&wire), reason.as_bytes());
        let wanted = match out {
            _ if matches!(status, 204 | 304) => ResponseFraming::None,
            OutFraming::Length(n) => ResponseFraming::Length(n),
            OutFraming::Chunked => ResponseFraming::Chunked,
            OutFraming::UntilClose | OutFraming::None => ResponseFraming::UntilClose,
        };
        prop_assert_eq!(again.framing, wanted);
        let field = |f: &llmproxy::http::head::Field, bytes: &[u8]| {
            (f.name.of(bytes).to_vec(), f.value.of(bytes).to_vec())
        };
        let travels = |f: &&llmproxy::http::head::Field| !f.stays;
        let ended: Vec<_> =
            head.fields.iter().filter(travels).map(|f| field(f, sent.as_bytes())).collect();
        let kept: Vec<_> =
            again.fields.iter().filter(travels).map(|f| field(f, &wire)).collect();
        prop_assert_eq!(&kept[..kept.len() - 1], ended.as_slice());
        prop_assert_eq!(&kept[kept.len() - 1], &(b"x-request-id".to_vec(), b"r".to_vec()));
    }
}

/// Every corpus case again, cut at every single byte, must end as it does whole.
#[test]
fn every_corpus_case_cut_at_every_byte() {
    let mut runs = 0;
    for text in crate::gunicorn::all().into_iter().chain(crate::guardian::all()) {
        let (whole, end) = relay(&text, text.len());
        // Long cases are long in one field or body; their first and last bytes are what matters.
        let cuts = (1..text.len()).filter(|at| *at < 600 || at + 600 > text.len());
        for cut in cuts {
            let (parts, cut_end) = crate::relay::relay_reads([&text[..cut], &text[cut..]]);
            let refused = |end: &End| matches!(end, End::Refused(..));
            assert!(
                refused(&end) && refused(&cut_end) || end == cut_end,
                "{cut}: {end:?} {cut_end:?}"
            );
            assert_eq!(whole, parts, "{cut}");
            runs += 1;
        }
    }
    println!("corpora cut in two at every byte: {runs} runs, 0 differences");
    assert!(runs > 50_000);
}

/// A slow head costs no more than a fast one: each call looks at what is new.
#[test]
fn a_head_byte_by_byte_is_not_quadratic() {
    let fields: String = (0..90).map(|n| format!("x-{n}: {}\r\n", "v".repeat(500))).collect();
    let text = format!("POST /v1/x HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: 0\r\n\r\n");
    let before = cpu_ticks();
    let mut head = RequestHead::default();
    for end in 1..text.len() {
        assert_eq!(head.parse(&text.as_bytes()[..end], HEAD_BYTES_MAX).unwrap(), Parse::Partial);
    }
    let done = head.parse(text.as_bytes(), HEAD_BYTES_MAX).unwrap();
    assert_eq!((done, head.framing), (Parse::Done { len: text.len() }, Framing::Length(0)));
    // 47 000 calls that each looked at all bytes would look at 10^9.
    let used = cpu_ticks() - before;
    assert!(used < 500, "{used} hundredths of a second of processor time");
}

/// Processor time of this thread, in hundredths of a second: how busy the machine is does not
/// change it.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // Behind the name, which may hold anything: fields 14 and 15 of proc_pid_stat(5).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..=12].iter().map(|field| field.parse::<u64>().unwrap()).sum()
}
