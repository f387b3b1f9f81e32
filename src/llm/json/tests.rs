use super::*;
use proptest::prelude::*;
use serde::de::IgnoredAny;

fn accepts(bytes: &[u8]) -> Result<(), JsonFault> {
    let mut reader = Reader::new(bytes);
    reader.skip_value()?;
    reader.end()
}

#[test]
fn the_grammar_is_strict() {
    for good in [
        "0",
        "-0",
        "1.5e-3",
        "10E+2",
        "\"\"",
        "\"\\u00e9\\/\"",
        " [ ] ",
        "{}",
        "[1,[2,{}]]",
        "{\"a\" : 1 , \"b\":null}",
        "true",
        "\t\r\n false",
    ] {
        assert_eq!(accepts(good.as_bytes()), Ok(()), "{good}");
    }
    for (bad, offset) in [
        ("", 0),
        ("01", 1),
        ("-", 1),
        ("1.", 2),
        ("1e", 2),
        ("+1", 0),
        (".5", 0),
        ("nan", 0),
        ("Inf", 0),
        ("-Inf", 1),
        ("-NaN", 1),
        ("NaNs", 3),
        ("[1,]", 3),
        ("[1 2]", 3),
        ("[,1]", 1),
        ("{\"a\":1,}", 7),
        ("{a:1}", 1),
        ("{\"a\"}", 4),
        ("{\"a\":}", 5),
        ("\"a", 2),
        ("\"\\", 1),
        ("\"\\x\"", 1),
        ("\"\\u12g4\"", 1),
        ("\"\t\"", 1),
        ("tru", 0),
        ("truex", 4),
        ("{} {}", 3),
        ("[1", 2),
        ("'a'", 0),
        ("[1]]", 3),
        ("\u{a0}1", 0),
        ("/**/1", 0),
    ] {
        assert_eq!(accepts(bad.as_bytes()), Err(JsonFault::Malformed { offset }), "{bad}");
    }
}

/// Catches: a body that Python reads and that goes unread here.
#[test]
fn what_python_calls_a_number_is_a_value() {
    for good in ["NaN", "Infinity", "-Infinity", "[NaN,-Infinity]", "{\"a\":Infinity}"] {
        assert_eq!(accepts(good.as_bytes()), Ok(()), "{good}");
    }
}

#[test]
fn depth_64_is_read_and_65_is_not() {
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert_eq!(accepts(nested(JSON_DEPTH_MAX).as_bytes()), Ok(()));
    assert_eq!(accepts(nested(JSON_DEPTH_MAX + 1).as_bytes()), Err(JsonFault::TooDeep));
    // Siblings are not depth.
    let wide = format!("[{}1]", "[],{},".repeat(1000));
    assert_eq!(accepts(wide.as_bytes()), Ok(()));
    // A million brackets cost neither stack nor time.
    assert_eq!(accepts(&vec![b'['; 1 << 20]), Err(JsonFault::TooDeep));
}

/// Catches: a value that is passed over without a pause.
#[test]
fn a_number_has_an_end() {
    let digits = "1".repeat(JSON_DIGITS_MAX);
    for good in [digits.clone(), format!("{digits}.{digits}e{digits}")] {
        assert_eq!(accepts(good.as_bytes()), Ok(()));
    }
    for long in [format!("{digits}1"), format!("0.{digits}1"), format!("[1e{digits}1]")] {
        assert_eq!(accepts(long.as_bytes()), Err(JsonFault::LongNumber));
    }
}

/// The rule of RFC 8259 section 7, one byte after the other.
fn string_end_by_the_book(bytes: &[u8], start: usize) -> Result<usize, JsonFault> {
    let mut at = start;
    loop {
        match bytes.get(at) {
            Some(b'"') => return Ok(at),
            Some(b'\\') => at = escape_end(bytes, at)?,
            Some(0x20..) => at += 1,
            _ => return Err(JsonFault::Malformed { offset: at }),
        }
    }
}

/// The end of a string by the gears, which note every byte above ASCII on their way.
fn string_end_in_gears(bytes: &[u8], start: usize) -> Result<usize, JsonFault> {
    let mut non_ascii = false;
    let (end, is_end) = string_end(bytes, start, usize::MAX, &mut non_ascii)?;
    assert!(is_end);
    assert!(non_ascii || bytes[start..end].is_ascii(), "bytes above ASCII went unseen");
    Ok(end)
}

/// Every run of backslashes at every place relative to the blocks, before every byte that matters.
#[test]
fn backslashes_mean_the_same_wherever_a_block_begins() {
    for run in 0..8 {
        for byte in *b"\"nx\x01/u" {
            for before in 0..200 {
                let (plain, run) = (vec![b'a'; before], vec![b'\\'; run]);
                let bytes = [b"\"", &plain[..], &run, &[byte], &[b'b'; 150], b"\", "].concat();
                let context = (run.len(), byte as char, before);
                let by_the_book = string_end_by_the_book(&bytes, 1);
                assert_eq!(string_end_in_gears(&bytes, 1), by_the_book, "{context:?}");
            }
        }
    }
}

/// Text over the bytes that matter, with runs long enough for whole blocks.
fn string_text() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => "[a-z ]{1,90}",
        1 => "[ -!#-Z]{64,400}",
        4 => prop::sample::select(vec!["\\n", "\\\"", "\\t", "\\r", "\\\\", "\\\\n", "\\\\\\\""])
            .prop_map(str::to_owned),
        1 => prop::sample::select(vec!["\\u00e9", "\\/", "\\b", "\\\\\\\\\\\\", "\u{7f}é你"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    /// The gears of `string_end` change its speed only: valid text, cut text, and one byte of it
    /// replaced by a byte that matters.
    #[test]
    fn all_gears_agree_with_the_book(
        text in string_text(),
        place in any::<prop::sample::Index>(),
        byte in prop::sample::select(&b"\"\\\n\x00\x1fnu0\x7f\x80\xff"[..]),
    ) {
        let mut bytes = [b"\"", &text[..], b"\", \"more\""].concat();
        prop_assert_eq!(string_end_in_gears(&bytes, 1), Ok(text.len() + 1));
        let cut = &bytes[..1 + place.index(text.len() + 1)];
        prop_assert_eq!(string_end_in_gears(cut, 1), string_end_by_the_book(cut, 1));
        let place = 1 + place.index(text.len() + 1);
        bytes[place] = byte;
        prop_assert_eq!(string_end_in_gears(&bytes, 1), string_end_by_the_book(&bytes, 1));
    }

    /// Two parsers that disagree about what is JSON are a way around every policy.
    #[test]
    fn accepts_what_serde_json_accepts(
        bytes in prop::collection::vec(
            prop::sample::select(&b"{}[]:,\"\\ua0e1-+. \n\ttruefalsn"[..]), 0..12),
    ) {
        let theirs = serde_json::from_slice::<IgnoredAny>(&bytes).is_ok();
        prop_assert_eq!(accepts(&bytes).is_ok(), theirs, "{:?}", String::from_utf8_lossy(&bytes));
    }

    /// Catches: a meaning that depends on where a step ended, and a step without an end.
    #[test]
    fn any_steps_come_to_the_same(
        bytes in prop_oneof![
            prop::collection::vec(
                prop::sample::select(&b"{}[]:,\"\\ua0e1-+. \n\ttruefalsn"[..]), 0..12),
            string_text().prop_map(|text| [b"{\"", &text[..], b"\":[\"", &text[..], b"\"]}"].concat()),
        ],
        step in 1..200usize,
    ) {
        let mut reader = Reader::new(&bytes);
        let mut walk = JsonWalk::new(&reader);
        let in_steps = loop {
            let (at, stop) = (reader.offset(), reader.offset() + step);
            let met = walk.step(&mut reader, stop);
            prop_assert!(reader.offset() < stop + 2 * BLOCK_BYTES);
            match met {
                Ok(JsonStep::Paused) => prop_assert!(reader.offset() > at),
                Ok(JsonStep::Member { .. } | JsonStep::Item { .. }) => {}
                Ok(JsonStep::Whole) => break reader.end(),
                Err(fault) => break Err(fault),
            }
        };
        prop_assert_eq!(in_steps, accepts(&bytes));
    }

    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = accepts(&bytes);
    }
}
