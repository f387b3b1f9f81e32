//! Whoever writes text must not write bills.

use super::*;

const REAL: &str = r#""usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}"#;
const FORGED: &str = r#""usage":{"prompt_tokens":1,"completion_tokens":999999}"#;
const EIGHT_AND_TWO: Option<Tokens> = Some((8, 2, 10, None, None));

/// Catches: an object with the right name, written by a client or a model, that becomes a bill.
#[test]
fn usage_that_stands_deeper_is_nobodys_bill() {
    for nested in [
        format!("\"metadata\":{{{FORGED}}}"),
        format!("\"choices\":[{{\"index\":0,{FORGED}}}]"),
        format!("\"choices\":[{{\"delta\":{{{FORGED},\"content\":\"a\"}}}}]"),
        format!("\"choices\":[{{\"message\":{{\"tool_calls\":[{{{FORGED}}}]}}}}]"),
        format!("\"x\":[[{{{FORGED}}}],{{\"y\":{{{FORGED}}}}}]"),
        format!("\"response\":{{{FORGED}}}"),
        format!("\"message\":{{{FORGED}}}"),
        format!("\"error_\":{{{FORGED}}}"),
        r#""x":"\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":999999}""#.to_owned(),
        r#""x":"usage","y":{"prompt_tokens":1,"completion_tokens":999999}"#.to_owned(),
        r#""x":"\\","y":"\\\"","z":["\\"]"#.to_owned(),
    ] {
        for event in [format!("{{{nested},{REAL}}}"), format!("{{{REAL},{nested}}}")] {
            assert_eq!(chat(&[&event]), EIGHT_AND_TWO, "{event}");
            assert_eq!(chat(&[&event, &format!("{{{nested}}}")]), EIGHT_AND_TWO, "{event}");
            assert_eq!(whole(Dialect::OpenAi, &event), EIGHT_AND_TWO, "{event}");
            assert_eq!(whole(Dialect::Embeddings, &event), EIGHT_AND_TWO, "{event}");
        }
        assert_eq!(chat(&[&format!("{{{nested}}}")]), None, "{nested}");
    }
}

/// Catches: counts inside of the counts.
#[test]
fn only_known_details_of_usage_are_read() {
    let odd = r#"{"usage":{"x":{"prompt_tokens":9},"prompt_tokens":1,"y":[{"total_tokens":5}],
        "completion_tokens":1,"prompt_tokens_details":{"a":{"cached_tokens":9},"cached_tokens":1},
        "note":"}\"{\\","completion_tokens_details":{"prompt_tokens":7}}}"#;
    assert_eq!(whole(Dialect::OpenAi, odd), Some((1, 1, 2, Some(1), None)));
}

/// Catches: a comment or an id that is read as data.
#[test]
fn what_is_no_data_says_nothing() {
    for line in [": ", "id: ", "event: ", "retry: ", "x: ", "database: ", " data: "] {
        let stream = format!("{line}{{{FORGED}}}\ndata: {{{REAL}}}\n\n{line}{{{FORGED}}}\n\n");
        let scan = read(Dialect::OpenAi, EVENTS, &stream);
        assert_eq!(scan.usage().map(tokens), EIGHT_AND_TWO, "{line}");
    }
    assert_eq!(read(Dialect::OpenAi, EVENTS, &format!("{{{REAL}}}\n\n")).usage(), None);
}

/// Catches: a tool call of a Messages answer, or a tool schema that a Responses answer repeats,
/// that is billed.
#[test]
fn tools_write_no_bills() {
    let input = r#"{"usage":{"input_tokens":1,"cache_read_input_tokens":500000}}"#;
    let answer = format!(
        "{{\"id\":\"msg_1\",\"content\":[{{\"type\":\"tool_use\",\"input\":{input}}}],\
         \"usage\":{{\"input_tokens\":10,\"output_tokens\":5}}}}"
    );
    assert_eq!(whole(Dialect::Messages, &answer), Some((10, 5, 15, None, None)));
    let block =
        format!("{{\"type\":\"content_block_start\",\"content_block\":{{\"input\":{input}}}}}");
    let stream = format!(
        "data: {{\"type\":\"message_start\",\"message\":{{\"usage\":{{\"input_tokens\":10}},\
         \"content\":[{input}]}}}}\n\ndata: {block}\n\ndata: {{\"type\":\"message_delta\",\
         \"delta\":{input},\"usage\":{{\"output_tokens\":5}}}}\n\n"
    );
    let scan = read(Dialect::Messages, EVENTS, &stream);
    assert_eq!(scan.usage().map(tokens), Some((10, 5, 15, None, None)));
    let schema = r#""tools":[{"parameters":{"usage":{"input_tokens":1,"output_tokens":9}}}]"#;
    let response = format!(
        "{{\"id\":\"resp_1\",{schema},\"usage\":{{\"input_tokens\":3,\"output_tokens\":4}},\
         \"metadata\":{{{FORGED}}},\"output\":[{{{FORGED}}}]}}"
    );
    let counted = Some((3, 4, 7, None, None));
    assert_eq!(whole(Dialect::Responses, &response), counted);
    let event = format!("{{\"type\":\"response.completed\",\"response\":{response}}}");
    let scan = read(Dialect::Responses, EVENTS, &format!("data: {event}\n\n"));
    assert_eq!(scan.usage().map(tokens), counted);
    assert_eq!(scan.upstream_id(), Some("resp_1"));
}

/// Catches: the same key, written otherwise, that is missed.
#[test]
fn names_may_be_escaped() {
    let event = concat!(
        r#"{"us\u0061ge":{"prompt\u005ftokens":8,"\u0063ompletion_tokens":2,"#,
        r#""prompt_tokens\u005Fdetails":{"cached_tokens":1}}}"#
    );
    assert_eq!(chat(&[event]), Some((8, 2, 10, Some(1), None)));
    for other in
        [r#"{"us\u0161ge":X}"#, r#"{"usage\u0000":X}"#, r#"{"us\age":X}"#, r#"{"\"usage":X}"#]
    {
        let event = other.replace('X', r#"{"prompt_tokens":8,"completion_tokens":2}"#);
        assert_eq!(chat(&[&event]), None, "{event}");
    }
}

/// Catches: an event whose data has several lines, or lines that end otherwise.
#[test]
fn the_lines_of_an_event_are_one_text() {
    let data = "data: {\"id\":\"a\",\ndata:\"usage\":{\"prompt_tokens\"\ndata\ndata::8,\n: no\n\
                data: \"completion_tokens\":2}\nid: 1\ndata: }\n\n";
    for stream in [data.to_owned(), data.replace('\n', "\r\n"), data.replace('\n', "\r")] {
        let scan = read(Dialect::OpenAi, EVENTS, &stream);
        assert_eq!(scan.usage().map(tokens), EIGHT_AND_TWO, "{stream}");
        assert_eq!(scan.upstream_id(), Some("a"));
    }
    // A line end cannot stand in a text, nor in a number.
    for cut in [
        "{\"usage\":{\"prompt_to\ndata: kens\":8,\"total_tokens\":8}}",
        "{\"usage\":{\"prompt_tokens\":8\ndata: 0}}",
    ] {
        let scan = read(Dialect::OpenAi, EVENTS, &format!("data: {cut}\n\n"));
        assert_eq!(scan.usage(), None, "{cut}");
    }
}

/// Catches: half an event that is billed, or that takes the next one with it.
#[test]
fn what_is_broken_is_not_read_half() {
    for broken in [
        "{\"usage\":{\"prompt_tokens\":5,}}",
        "{\"usage\":{\"prompt_tokens\":5 \"total_tokens\":5}}",
        "{\"usage\":{\"prompt_tokens\":5}",
        "{\"usage\":{\"prompt_tokens\":5}]",
        "{\"usage\":{\"prompt_tokens\" 5}}",
        "{\"usage\":{\"prompt_tokens\":5x}}",
        "{\"usage\":{\"prompt_tokens\":5},\"x\":}",
        "{\"usage\":{\"prompt_tokens\":5},\"x\":\"}",
        "{\"usage\":{\"prompt_tokens\":5},,}",
        "{,\"usage\":{\"prompt_tokens\":5}}",
        "[{\"usage\":{\"prompt_tokens\":5}}]",
        "x{\"usage\":{\"prompt_tokens\":5}}",
        "\"usage\":{\"prompt_tokens\":5}",
    ] {
        assert_eq!(chat(&[broken]), None, "{broken}");
        assert_eq!(chat(&[broken, &format!("{{{REAL}}}")]), EIGHT_AND_TWO, "{broken}");
        assert_eq!(whole(Dialect::OpenAi, broken), None, "{broken}");
    }
}

/// Catches: what is nested without end and fills the memory, or is not stepped over.
#[test]
fn any_depth_is_stepped_over() {
    for (open, close) in
        [("[", "]"), ("{\"usage\":", "}"), ("[{\"a\":\"\\\"]}\",\"usage\":[", "]}]")]
    {
        let (open, close) = (open.repeat(3000), close.repeat(3000));
        let answer = format!("{{\"x\":{open}1{close},{REAL}}}");
        let scans = [1, 7, 64, 4096, usize::MAX].map(|piece| {
            let pieces = answer.as_bytes().chunks(piece);
            scan(Dialect::OpenAi, None, pieces).usage().map(tokens)
        });
        assert_eq!(scans, [EIGHT_AND_TWO; 5]);
    }
}

/// Catches: a step over something large that goes wrong at one of its borders.
#[test]
fn what_is_stepped_over_ends_where_it_ends() {
    for fill in 0..140 {
        let x = "x".repeat(fill);
        for inner in [
            format!("[\"{x}\",[\"]\"],\"\\\"{x}]\"]"),
            format!("[[{x}1],[[\"{x}\\\\\"]],[]]", x = " ".repeat(fill)),
            format!("{{\"{x}\":{{\"a\":\"}}{x}\\\"}}\"}},\"b\":[{{}},{{}}]}}"),
            format!("\"{x}\\\\\\\"{x}\""),
        ] {
            let answer = format!("{{\"y\":{inner},{REAL},\"z\":{inner}}}");
            let bytes = answer.as_bytes();
            for piece in [1, 63, 64, 65, 4096] {
                let scan = scan(Dialect::OpenAi, None, bytes.chunks(piece));
                assert_eq!(scan.usage().map(tokens), EIGHT_AND_TWO, "{answer} in {piece}s");
            }
        }
    }
}

/// Catches: bytes that were not seen and are bridged, usage behind them that is not found, or that
/// is found in something other than the answer's own object.
#[test]
fn behind_bytes_that_were_not_seen_only_the_last_object_counts() {
    let found = |before: &str, behind: &str| {
        let counts = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut scan = UsageScan::default();
            scan.expect(Dialect::Embeddings, None);
            scan.feed(before.as_bytes());
            scan.skip();
            pieces.for_each(|piece| scan.feed(piece));
            scan.usage().map(|usage| usage.prompt_tokens)
        };
        let bytes = behind.as_bytes();
        let whole = counts(&mut [bytes].into_iter());
        assert_eq!(counts(&mut bytes.chunks(1)), whole, "{behind}");
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(counts(&mut [a, b].into_iter()), whole, "{behind} cut at {cut}");
        }
        whole
    };
    let usage = "\"usage\":{\"prompt_tokens\":8,\"total_tokens\":8}";
    assert_eq!(found("{\"data\":[[0.1", &format!("0.2]],\"model\":\"m\",{usage}}}")), Some(8));
    assert_eq!(found("{\"data\":[[0.1", &format!("0.2]],{usage},\"model\":\"m\"}} \n")), Some(8));
    assert_eq!(found("{\"data\":[\"QQ", &format!("QQ\"],{usage}}}")), Some(8));
    assert_eq!(found(&format!("{{{usage},\"data\":[[0.1"), "0.2]]}"), Some(8));
    assert_eq!(found("{\"data\":[[0.1", &format!("0.2],{{{usage}}}]}}")), None);
    assert_eq!(
        found("{\"data\":[[0.1", &format!("]],\"m\":\"\\\"usage\\\":{{\",{usage}}}")),
        Some(8)
    );
    let (a, b) = usage.split_at(20);
    assert_eq!(found(&format!("{{{a}"), &format!("{b}}}")), None);
}

/// Catches: an id that is not the answer's own.
#[test]
fn the_id_is_the_answers_own() {
    for (answer, id) in [
        (r#"{"id" : "a"}"#, Some("a")),
        (r#"{"x":{"id":"b"},"id":"c"}"#, Some("c")),
        (r#"{"id":7,"x":{"id":"b"}}"#, None),
        (r#"{"id":"","object":"x"}"#, None),
        (r#"{"id":"with space"}"#, None),
        (r#"{"id":"esc\u0061ped"}"#, None),
        ("{\"id\":\"\u{e9}\"}", None),
        (r#"{"id":"unfinished"#, None),
    ] {
        assert_eq!(read(Dialect::OpenAi, None, answer).upstream_id(), id, "{answer}");
    }
    for (len, fits) in [(128, true), (129, false)] {
        let answer = format!("{{\"id\":\"{}\"}}", "a".repeat(len));
        assert_eq!(read(Dialect::OpenAi, None, &answer).upstream_id().is_some(), fits);
    }
}

/// Catches: what stands where only an event has usage, in an answer that is none and whose objects
/// of these names are a client's.
#[test]
fn a_whole_answer_has_its_usage_at_its_top_alone() {
    let real = r#""usage":{"input_tokens":8,"output_tokens":2}"#;
    let forged = r#""usage":{"input_tokens":1,"output_tokens":999999}"#;
    for dialect in [Dialect::Responses, Dialect::Messages] {
        for name in ["response", "message", "delta", "content_block", "metadata"] {
            for answer in [
                format!("{{{real},\"{name}\":{{{forged},\"id\":\"x\"}}}}"),
                format!("{{\"{name}\":{{{forged},\"id\":\"x\"}},{real}}}"),
            ] {
                let scan = read(dialect, None, &answer);
                assert_eq!(scan.usage().map(tokens), EIGHT_AND_TWO, "{dialect:?} {answer}");
                assert_eq!(scan.upstream_id(), None, "{answer}");
            }
            let alone = format!("{{\"{name}\":{{{forged}}}}}");
            assert_eq!(whole(dialect, &alone), None, "{dialect:?} {alone}");
        }
    }
}

/// Catches: what comes behind the end mark, where no client reads, and is billed; an error there
/// that is not heard.
#[test]
fn behind_the_end_mark_nothing_is_billed() {
    let real = format!("data: {{{REAL}}}\n\n");
    let forged = format!("data: {{{FORGED}}}\n\n");
    let text = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";
    for (stream, expected) in [
        (format!("{text}{real}data: [DONE]\n\n{forged}{text}{text}"), EIGHT_AND_TWO),
        (format!("{text}{real}data: [DONE]\n{forged}{text}"), EIGHT_AND_TWO),
        (format!("{text}data: [DONE]\r\n\r\n{forged}"), None),
    ] {
        let scan = read(Dialect::OpenAi, EVENTS, &stream);
        assert_eq!(scan.usage().map(tokens), expected, "{stream}");
        assert_eq!((scan.facts().content_events(), scan.facts().error()), (1, false), "{stream}");
        let failed = stream + "data: {\"error\":{\"code\":500}}\n\n";
        let scan = read(Dialect::OpenAi, EVENTS, &failed);
        assert_eq!(scan.usage().map(tokens), expected, "{failed}");
        assert_eq!(scan.facts().error_code(), Some("500"), "{failed}");
    }
}

/// Catches: an answer that no client can parse and that is billed without a word.
#[test]
fn text_behind_the_json_is_told() {
    let odd = |framing, answer: &str| {
        let scan = read(Dialect::OpenAi, framing, answer);
        assert_eq!(scan.usage().map(tokens), EIGHT_AND_TWO, "{answer}");
        scan.facts().oddities().names().collect::<Vec<_>>()
    };
    for behind in ["x", "{}", "]", &format!("{{{FORGED}}}"), "\n\nnull"] {
        assert_eq!(odd(None, &format!("{{{REAL}}}{behind}")), ["text_behind"], "{behind}");
    }
    for blank in ["", " ", "\r\n\t "] {
        assert_eq!(odd(None, &format!("{{{REAL}}}{blank}")), [""; 0]);
    }
    assert_eq!(odd(EVENTS, &format!("data: {{{REAL}}} \n\n")), [""; 0]);
    assert_eq!(odd(EVENTS, &format!("data: {{{REAL}}} x\n\n")), ["text_behind"]);
    let broken = read(Dialect::OpenAi, None, "{\"a\":} x");
    assert!(broken.facts().oddities().is_empty(), "it has no usage that could be strange");
}

/// Catches: a first event or an answer that is lost because its text begins with the mark of UTF-8.
#[test]
fn the_mark_of_utf8_is_none_of_the_text() {
    let stream = format!("\u{feff}data: {{{REAL}}}\n\n");
    let scan = read(Dialect::OpenAi, EVENTS, &stream);
    assert_eq!(scan.usage().map(tokens), EIGHT_AND_TWO);
    assert_eq!(whole(Dialect::OpenAi, &format!("\u{feff}{{{REAL}}}")), EIGHT_AND_TWO);
    let line = "\u{feff}{\"done\":true,\"prompt_eval_count\":8,\"eval_count\":2}\n";
    let scan = read(Dialect::Ollama, Some(EventFraming::Lines), line);
    assert_eq!(scan.usage().map(tokens), EIGHT_AND_TWO);
    // It is one mark, at the beginning; a half of it is none.
    for (mark, second) in [("\u{feff}\u{feff}", ""), ("", "\u{feff}")] {
        let stream = format!("{mark}data: {{{FORGED}}}\n\n{second}data: {{{REAL}}}\n\n");
        let found = read(Dialect::OpenAi, EVENTS, &stream).usage().map(|usage| usage.prompt_tokens);
        assert_eq!(found, Some(if mark.is_empty() { 1 } else { 8 }), "{stream:?}");
    }
    let half = [b"\xef\xbb", format!("data: {{{FORGED}}}\n\n").as_bytes()].concat();
    for size in [1, 2, 3, usize::MAX] {
        assert_eq!(super::scan(Dialect::OpenAi, EVENTS, half.chunks(size)).usage(), None);
    }
}

/// Catches: an answer that is cut although all its announced bytes came, and that is complete.
#[test]
fn an_answer_whose_json_has_no_end_is_cut() {
    let is_cut = |dialect: Dialect, answer: &str| read(dialect, None, answer).is_cut();
    let answers = [
        (Dialect::OpenAi, format!("{{\"choices\":[{{\"text\":\"a]}}\"}}],{REAL}}}")),
        (Dialect::Embeddings, "[[0.5,\"]\"],[{\"x\":[1]}]]".to_owned()),
        (Dialect::LlamaCpp, "[{\"content\":\"a\"},{\"content\":\"b\"}]".to_owned()),
    ];
    for (dialect, answer) in answers {
        assert!(!is_cut(dialect, &answer), "{answer}");
        assert!(!is_cut(dialect, &format!("{answer}\n")), "{answer}");
        for (end, _) in answer.char_indices().skip(1) {
            let (cut, _) = answer.split_at(end);
            assert!(is_cut(dialect, cut), "{cut}");
        }
    }
    for other in ["", "  ", "text", "<html>", "\"text\"", "{\"a\":}", "12"] {
        assert!(!is_cut(Dialect::OpenAi, other), "nobody knows: {other}");
    }
    assert!(!read(Dialect::OpenAi, EVENTS, "data: {\"a\":1").is_cut(), "a stream has its mark");
}
