use super::*;
use crate::base::limits::JSON_DIGITS_MAX;
use proptest::prelude::*;
use serde_json::Value;

fn facts(body: &str) -> RequestFacts<'_> {
    scan(body.as_bytes()).unwrap_or_else(|fault| panic!("{fault:?}: {body}"))
}

#[test]
fn finds_the_facts_of_a_chat_request() {
    let body = r#" {"messages":[{"role":"user","content":"say \"model\": \"x\""}], "model" : "m/1",
        "stream":true,"stream_options":{"continuous_usage_stats":false,"include_usage":true},
        "metadata":{"model":"other","stream":false,"max_tokens":9},"max_tokens":100}
    "#;
    let facts = facts(body);
    assert_eq!(facts.model.as_deref(), Some("m/1"));
    assert_eq!(facts.stream, Some(true));
    assert!(facts.include_usage);
    assert_eq!(facts.max_tokens, Some(100));
    assert_eq!(body.get(facts.model_span.unwrap()).unwrap(), "\"m/1\"");
}

#[test]
fn absent_null_and_false_are_told_apart() {
    assert_eq!(facts("{}"), RequestFacts::default());
    assert_eq!(facts("[1]"), RequestFacts::default());
    let nulls = r#"{"model":null,"stream":null,"stream_options":null,"max_tokens":null}"#;
    assert_eq!(facts(nulls), RequestFacts::default());
    assert_eq!(facts(r#"{"stream":false}"#).stream, Some(false));
    assert!(!facts(r#"{"stream_options":{"include_usage":false}}"#).include_usage);
}

#[test]
fn the_token_limit_has_three_names_in_order_of_rank() {
    let max = |body| facts(body).max_tokens;
    assert_eq!(max(r#"{"max_output_tokens":1}"#), Some(1));
    assert_eq!(max(r#"{"max_output_tokens":1,"max_completion_tokens":2}"#), Some(2));
    assert_eq!(max(r#"{"max_completion_tokens":2,"max_tokens":3}"#), Some(3));
    assert_eq!(max(r#"{"max_tokens":null,"max_completion_tokens":2}"#), Some(2));
    assert_eq!(max(r#"{"max_tokens":-1}"#), None);
    assert_eq!(max(r#"{"max_tokens":99999999999999999999999}"#), Some(u64::MAX));
}

#[test]
fn what_two_parsers_could_read_in_two_ways_is_refused() {
    use ScanFault::*;
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(64), "]".repeat(64));
    let long = format!("{{\"model\":\"{}\"}}", "m".repeat(MODEL_NAME_BYTES_MAX + 1));
    let long_flag = format!("{{\"stream_options\":{{\"include_usage\":0.{}}}}}", "0".repeat(254));
    let long_escaped = format!("{{\"model\":\"{}\"}}", "\\u0041".repeat(MODEL_NAME_BYTES_MAX + 1));
    for (body, fault) in [
        (r#"{"model":"a","model":"b"}"#, Duplicate("model")),
        (r#"{"model":null,"model":"b"}"#, Duplicate("model")),
        (r#"{"stream":true,"x":1,"stream":true}"#, Duplicate("stream")),
        (r#"{"max_tokens":1,"max_tokens":1}"#, Duplicate("max_tokens")),
        (r#"{"stream_options":{},"stream_options":{}}"#, Duplicate("stream_options")),
        (
            r#"{"stream_options":{"include_usage":true,"include_usage":false}}"#,
            Duplicate("include_usage"),
        ),
        (r#"{"\u006dodel":"a"}"#, Escaped),
        (r#"{"model":"a","stre\u0061m":true}"#, Escaped),
        (r#"{"stream_options":{"include\u005fusage":true}}"#, Escaped),
        (r#"{"model":"\ud800"}"#, Escaped),
        (r#"{"model":3}"#, WrongType("model")),
        (r#"{"model":["a"]}"#, WrongType("model")),
        (&long_flag, WrongType("include_usage")),
        (r#"{"m\u006fdel":"a"}"#, Escaped),
        (r#"{"\u004dodel":"a"}"#, Escaped),
        (r#"{"Model":"a"}"#, Spelling("model")),
        (r#"{"STREAM":true}"#, Spelling("stream")),
        ("{\"\u{17f}tream\":true}", Spelling("stream")),
        ("{\"max_to\u{212a}ens\":1}", Spelling("max_tokens")),
        (r#"{"stream_options":{"Include_Usage":true}}"#, Spelling("include_usage")),
        ("\u{feff}\u{feff}{}", Malformed { offset: 3 }),
        (&deep, TooDeep),
        (&long, ModelTooLong),
        (&long_escaped, ModelTooLong),
        (r#"{"temperature":nan}"#, Malformed { offset: 15 }),
        (r#"{"model":NaN}"#, WrongType("model")),
        (r#"{"model":"a"}}"#, Trailing { offset: 13 }),
        ("{\"model\":\"a\"}\0", Trailing { offset: 13 }),
        (r#"{"model":"a"} {"model":"b"}"#, Trailing { offset: 14 }),
        (r#"{"model":"a""#, Malformed { offset: 12 }),
        ("", Malformed { offset: 0 }),
        ("{\"a\":\"\n\"}", Malformed { offset: 6 }),
    ] {
        assert_eq!(scan(body.as_bytes()), Err(fault), "{body}");
    }
    assert_eq!(scan(b"{\"a\":\"\xff\"}"), Err(NotUtf8));
    // Python reads all of these, and half a surrogate pair in UTF-8 besides.
    let wide: Vec<u8> = "{\"stream\":true}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = "{\"stream\":true}".encode_utf16().flat_map(u16::to_be_bytes).collect();
    for body in [&wide[..], &big, &[b"\xff\xfe", &wide[..]].concat(), b"{\"a\":\"\xed\xa0\x80\"}"] {
        assert_eq!(scan(body), Err(NotUtf8), "{body:?}");
    }
    // Wherever it stands, and whatever else is wrong.
    for before in 0..300 {
        let text = [b"{\"a\":\"", &vec![b'x'; before][..], b"\xe4", &[b'y'; 100]].concat();
        assert_eq!(scan(&[&text[..], b"\"}"].concat()), Err(NotUtf8), "{before}");
        assert_eq!(scan(&text), Err(NotUtf8), "{before}");
    }
}

/// Catches: a stream that an engine takes for one and we do not, which nobody would count.
#[test]
fn values_are_read_as_engines_read_them() {
    for text in [
        "true",
        "\"true\"",
        "\"True\"",
        "\"1\"",
        "1",
        "1.0",
        "\"yes\"",
        "\"ON\"",
        "\"t\"",
        "\"Y\"",
        "\"tr\\u0075e\"",
    ] {
        let body = format!("{{\"stream\":{text}}}");
        assert_eq!(facts(&body).stream, Some(true), "{text}");
        assert!(facts(&body).usage_splice.is_some(), "{text}");
    }
    for text in ["false", "\"false\"", "\"0\"", "0", "0.0", "\"no\"", "\"off\"", "\"F\"", "\"n\""] {
        assert_eq!(facts(&format!("{{\"stream\":{text}}}")).stream, Some(false), "{text}");
    }
    for text in ["null", "2", "-1", "\"\"", "\"maybe\"", "[]", "{}", "NaN", "-Infinity"] {
        let body = format!("{{\"stream\":{text}}}");
        assert_eq!((facts(&body).stream, facts(&body).usage_splice), (None, None), "{text}");
    }
    for (text, count) in [
        ("3", Some(3)),
        ("3.0", Some(3)),
        ("3e2", Some(300)),
        ("\"3\"", Some(3)),
        ("\" 3.0 \"", Some(3)),
        ("1e40", Some(u64::MAX)),
        ("-3.0", None),
        ("3.5", None),
        ("\"x\"", None),
        ("\"inf\"", None),
        ("true", None),
    ] {
        assert_eq!(facts(&format!("{{\"max_tokens\":{text}}}")).max_tokens, count, "{text}");
    }
}

/// Catches: a body that is refused although every engine, or the one that it is for, takes it.
#[test]
fn what_engines_take_is_taken() {
    for body in [
        "\u{feff}{\"stream\":true}",
        "\u{feff} {\"stream\":true}",
        r#"{"stream":true,"temperature":NaN,"top_p":-Infinity,"x":[Infinity]}"#,
        r#"{"caf\u00e9":1,"\ud800":2,"a\"b":3,"stream":true}"#,
        r#"{"Messages":1,"models":2,"streaming":3,"stream":true}"#,
    ] {
        let splice = facts(body).usage_splice.unwrap_or_else(|| panic!("{body}"));
        let made = edited(body.as_bytes(), [Some(splice.edit()), None]).concat();
        assert!(facts(std::str::from_utf8(&made).unwrap()).include_usage, "{body}");
    }
    assert!(facts(r#"{"messages":[]}"#).generates && facts(r#"{"prompt":""}"#).generates);
    assert!(!facts(r#"{"input":"x","x":{"messages":[]}}"#).generates);
    // Catches: a chat that engines see and we do not.
    for body in [
        r#"{"m\u0065ssages":[]}"#,
        r#"{"pr\u006Fmpt":""}"#,
        r#"{"prompt_embeds":""}"#,
        r#"{"prompt\u005fembeds":""}"#,
    ] {
        assert!(facts(body).generates, "{body}");
    }
}

#[test]
fn a_model_written_with_escapes_is_read_as_every_parser_reads_it() {
    // PHP's json_encode escapes slashes unless told not to.
    let body = r#"{"model":"meta-llama\/Llama-3 \u00e9"}"#;
    let facts = facts(body);
    assert_eq!(facts.model.as_deref(), Some("meta-llama/Llama-3 é"));
    assert_eq!(body.get(facts.model_span.unwrap()).unwrap(), r#""meta-llama\/Llama-3 \u00e9""#);
}

#[test]
fn refusals_name_the_key_or_the_place_and_never_the_content() {
    let refusal = scan(br#"{"model":"a","model":"b"}"#).unwrap_err().refusal();
    assert_eq!((refusal.status, refusal.code, refusal.close), (400, "duplicate_key", false));
    assert!(refusal.message.contains("`model`"));
    let refusal = scan(b"{\"secret\":x}").unwrap_err().refusal();
    assert_eq!((refusal.status, refusal.code), (400, "invalid_json"));
    assert!(refusal.message.contains("byte 10") && !refusal.message.contains("secret"));
}

/// Catches: a splice that breaks the JSON, moves a byte of the client's, or asks where it must not.
#[test]
fn usage_is_asked_for_where_it_was_not() {
    for (body, asking) in [
        (
            r#"{"model":"m","stream":true,"n":1}"#,
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"n":1}"#,
        ),
        (r#"{"stream" : true }"#, r#"{"stream" : true,"stream_options":{"include_usage":true} }"#),
        (
            "{\"stream_options\":\tnull , \"stream\":true}",
            "{\"stream_options\":\t{\"include_usage\":true} , \"stream\":true}",
        ),
        (
            r#"{"stream":true,"stream_options": { } }"#,
            r#"{"stream":true,"stream_options": {"include_usage":true } }"#,
        ),
        (
            r#"{"stream":true,"stream_options":{ "continuous_usage_stats":false}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true, "continuous_usage_stats":false}}"#,
        ),
        (
            r#"{"stream_options":{"x":[{}],"include_usage": false},"stream":true}"#,
            r#"{"stream_options":{"x":[{}],"include_usage": true},"stream":true}"#,
        ),
        (
            r#"{"stream":true,"stream_options":{"include_usage":null }}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true }}"#,
        ),
        (
            r#"{"stream":1,"stream_options":{"include_usage":0,"x":0}}"#,
            r#"{"stream":1,"stream_options":{"include_usage":true,"x":0}}"#,
        ),
        (
            r#"{"stream":"yes","stream_options":{"include_usage": "\u004eO" ,"x":0}}"#,
            r#"{"stream":"yes","stream_options":{"include_usage": true ,"x":0}}"#,
        ),
    ] {
        let splice = facts(body).usage_splice.unwrap_or_else(|| panic!("nothing for {body}"));
        let made = String::from_utf8(edited(body.as_bytes(), [Some(splice.edit()), None]).concat())
            .unwrap();
        assert_eq!(made, asking);
        assert_eq!(UsageSplice::new(splice.at(), splice.form()), splice);
    }
    for body in [
        r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":1}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":"On"}}"#,
        // What no engine takes is refused by the engine, in its own words.
        r#"{"stream":true,"stream_options":{"include_usage":2}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":"maybe"}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":[false]}}"#,
        r#"{"stream":false}"#,
        r#"{"stream":null,"stream_options":null}"#,
        r#"{"stream_options":{}}"#,
        "{}",
        "[true]",
    ] {
        assert_eq!(facts(body).usage_splice, None, "{body}");
    }
}

/// What is found in slices, and how many there were. Asserts that each is short.
fn in_slices(body: &[u8], bytes: usize) -> (Result<RequestFacts<'_>, ScanFault>, usize) {
    let mut scan = BodyScan::new(body);
    for slice in 1.. {
        let at = scan.reader.offset();
        let found = scan.step(bytes);
        let passed = scan.reader.offset() - at;
        assert!(passed <= bytes + 3 * JSON_DIGITS_MAX, "{passed} bytes in a slice");
        if let Some(found) = found {
            return (found, slice);
        }
    }
    unreachable!()
}

/// Catches: a body that keeps a worker from all its other connections for as long as it is long.
#[test]
fn no_body_is_read_in_one_slice() {
    const SLICE: usize = 64 * 1024;
    let many = |piece: &str| piece.repeat(20 * SLICE / piece.len());
    let digits = format!("{},", "1".repeat(JSON_DIGITS_MAX));
    for (body, fault) in [
        (format!("{{{}\"z\":0}}", many("\"\\n\":0,")), None),
        (format!("{{{}\"z\":0}}", many("\"é\":0,")), None),
        (format!("{{{}\"z\":0}}", many("\"m\\u006fdem\":0,")), None),
        (format!("{{\"{}\":0}}", many("k")), None),
        (format!("{{\"a\":\"{}\"}}", many("a")), None),
        (format!("{{\"a\":\"{}\"}}", many("\\u0041")), None),
        (format!("{{\"a\":\"{}\"}}", many("\\\\")), None),
        (format!("{{\"a\":\"{}\"}}", many("你")), None),
        (format!("[{}0]", many("0,")), None),
        (format!("[{}0]", many(&digits)), None),
        (format!("{{\"a\":[{}0]}}", many("[],{\"b\":0},")), None),
        (format!("{}[{}]{}", many(" "), many("\n"), many("\t")), None),
        (format!("[\"é{}", many("a")), Some(ScanFault::Malformed { offset: 4 + 20 * SLICE })),
        (format!("[{}]", many("1")), Some(ScanFault::LongNumber)),
        (format!("{{\"model\":\"{}\"}}", many("m")), Some(ScanFault::ValueTooLong("model"))),
        (
            format!("{{\"stream_options\":{{{}\"z\":0}}}}", many("\"a\":0,")),
            Some(ScanFault::ValueTooLong("stream_options")),
        ),
        (
            format!("{{\"max_tokens\":\"{}\"}}", many("1")),
            Some(ScanFault::ValueTooLong("max_tokens")),
        ),
    ] {
        let (found, slices) = in_slices(body.as_bytes(), SLICE);
        let shown = &body.as_bytes()[..20];
        assert_eq!(found.as_ref().err(), fault.as_ref(), "{shown:?}");
        // One fault is found at once.
        assert!(slices >= 19 || fault == Some(ScanFault::LongNumber), "{slices}: {shown:?}");
    }
}

/// JSON texts with white space and escapes in all places.
fn any_json() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?([eE][+-]?[0-9])?",
    ];
    let leaf = prop_oneof![
        prop::sample::select(vec!["null", "true", "false"]).prop_map(str::to_owned),
        number,
        any_string(),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let member = (any_string(), inner.clone()).prop_map(|(k, v)| format!("{k}:{v}"));
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(|v| format!("[{}]", v.join(" ,"))),
            prop::collection::vec(member, 0..4).prop_map(|v| format!("{{\n{}}}", v.join(", "))),
        ]
    })
}

fn any_string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z{}:,é你]{1,8}",
        prop::sample::select(vec!["\\n", "\\\"", "\\\\", "\\u0041", "\\ud83d\\ude00", "model"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

/// A top-level member: a watched key with a value that is often of its type, or any other.
fn any_member() -> impl Strategy<Value = (String, String)> {
    let flags = vec!["true", "false", "null", "1", "0", "\"true\"", "\"off\"", "7"];
    let flag = move || prop::sample::select(flags.clone()).prop_map(str::to_owned);
    let limit = || {
        prop_oneof![
            any::<u64>().prop_map(|n| n.to_string()),
            any::<u32>().prop_map(|n| format!("\"{n}\"")),
            Just("null".to_owned()),
        ]
    };
    let options = prop_oneof![
        flag().prop_map(|f| format!("{{ \"include_usage\" :{f}}}")),
        flag().prop_map(|f| format!("{{\"x\":[],\"include_usage\":{f} ,\"y\":1}}")),
        Just("{}".to_owned()),
    ];
    prop_oneof![
        any_string().prop_map(|v| ("\"model\"".to_owned(), v)),
        flag().prop_map(|v| ("\"stream\"".to_owned(), v)),
        options.prop_map(|v| ("\"stream_options\"".to_owned(), v)),
        limit().prop_map(|v| ("\"max_tokens\"".to_owned(), v)),
        limit().prop_map(|v| ("\"max_completion_tokens\"".to_owned(), v)),
        (any_string(), any_json()),
        ("\"[a-z_]{0,9}\"", any_json()),
    ]
}

/// What the same body means to a parser that builds a tree and lets the last key win.
fn agrees(facts: &RequestFacts<'_>, tree: &Value) {
    let whole = |n: f64| Some(n).filter(|n| *n >= 0.0 && n.fract() == 0.0).map(|n| n as u64);
    let text =
        |text: &str| text.parse::<u64>().ok().or_else(|| text.parse::<f64>().ok().and_then(whole));
    let limit = |key: &str| match &tree[key] {
        Value::String(inside) => text(inside.trim()),
        // A tree holds an integer beyond u64 as a float.
        number => number.as_u64().or_else(|| number.as_f64().and_then(whole)),
    };
    let truth = |value: &Value| match value {
        Value::String(text) => match text.to_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
            "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
            _ => None,
        },
        number if number.as_f64() == Some(1.0) => Some(true),
        number if number.as_f64() == Some(0.0) => Some(false),
        value => value.as_bool(),
    };
    assert_eq!(facts.model.as_deref(), tree["model"].as_str());
    assert_eq!(facts.stream, truth(&tree["stream"]));
    let wish = &tree["stream_options"]["include_usage"];
    assert_eq!(facts.include_usage, truth(wish) == Some(true));
    let is_sound = wish.is_null() || truth(wish) == Some(false);
    assert_eq!(facts.usage_splice.is_some(), facts.stream == Some(true) && is_sound);
    let expected =
        limit("max_tokens").or(limit("max_completion_tokens")).or(limit("max_output_tokens"));
    assert_eq!(facts.max_tokens, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What is accepted means the same to a parser that builds a tree; what is refused is refused
    /// for a reason that the tree shows.
    #[test]
    fn reads_what_a_full_parser_reads(
        members in prop::collection::vec(any_member(), 0..6),
        mutation in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let members: Vec<_> = members.iter().map(|(k, v)| format!("{k} : {v}")).collect();
        let mut body = format!("{{{}}}", members.join(",\n")).into_bytes();
        // The tree holds a long number with a fraction or an exponent by the nearest float but one.
        let mutation = mutation.filter(|(_, byte)| !b".eE".contains(byte));
        if let Some((place, byte)) = mutation {
            let place = place.index(body.len());
            body[place] = byte;
        }
        let tree = serde_json::from_slice::<Value>(&body);
        match (scan(&body), tree) {
            (Ok(facts), Ok(tree)) => agrees(&facts, &tree),
            (Ok(_), Err(error)) => {
                // Only what the grammar allows and a tree cannot hold: half a surrogate pair.
                let grammar = serde_json::from_slice::<serde::de::IgnoredAny>(&body);
                prop_assert!(grammar.is_ok(), "{}: {}", error, String::from_utf8_lossy(&body));
            }
            (Err(ScanFault::Malformed { .. } | ScanFault::NotUtf8), Ok(_)) => {
                prop_assert!(false, "refused {}", String::from_utf8_lossy(&body));
            }
            (Err(_), _) => {}
        }
    }

    /// Catches: a policy that depends on where a slice ended, and a slice that has no end.
    #[test]
    fn in_slices_it_is_the_same(
        members in prop::collection::vec(any_member(), 0..6),
        mutation in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        slice in 1..100usize,
    ) {
        let members: Vec<_> = members.iter().map(|(k, v)| format!("{k} : {v}")).collect();
        let mut body = format!("{{{}}}", members.join(",\n")).into_bytes();
        if let Some((place, byte)) = mutation {
            let place = place.index(body.len());
            body[place] = byte;
        }
        prop_assert_eq!(in_slices(&body, slice).0, scan(&body));
    }

    /// A body whose watched keys are unique and well typed is never refused.
    #[test]
    fn plain_requests_pass(model in "[a-zA-Z0-9/._-]{1,40}", stream in any::<bool>(),
        max in any::<u32>(), extra in any_json()) {
        let body = format!(
            "{{\"model\":\"{model}\",\"x\":{extra},\"stream\":{stream},\"max_tokens\":{max}}}"
        );
        let facts = scan(body.as_bytes()).unwrap();
        prop_assert_eq!(facts.model.as_deref(), Some(model.as_str()));
        prop_assert_eq!((facts.stream, facts.max_tokens), (Some(stream), Some(u64::from(max))));
    }

    /// The changed body is the client's with one thing more, for every parser.
    #[test]
    fn a_splice_adds_the_wish_and_nothing_else(
        members in prop::collection::vec((any_string(), any_json()), 0..5),
        options in prop::option::of(any_options()),
        places in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        space in "[ \t\n\r]{0,3}",
    ) {
        let mut members: Vec<String> =
            members.iter().map(|(k, v)| {
                let rest = k.strip_prefix('"').unwrap();
                format!("\"x{rest}:{space}{v}")
            }).collect();
        // A key of the client's own that is written with escapes is refused.
        members.retain(|member| scan(format!("{{{member}}}").as_bytes()).is_ok());
        members.insert(places.0.index(members.len() + 1), format!("\"stream\"{space}:true{space}"));
        if let Some(options) = options {
            let member = format!("\"stream_options\":{space}{options}{space}");
            members.insert(places.1.index(members.len() + 1), member);
        }
        let body = format!("{space}{{{space}{}}}{space}", members.join(","));
        let found = scan(body.as_bytes()).unwrap();
        let made = match found.usage_splice {
            Some(splice) => edited(body.as_bytes(), [Some(splice.edit()), None]).concat(),
            None => body.clone().into_bytes(),
        };
        let again = scan(&made).unwrap();
        prop_assert!(again.include_usage && again.usage_splice.is_none());
        if found.include_usage {
            // In the client's own words.
            prop_assert_eq!(made, body.as_bytes());
            return Ok(());
        }
        let mut tree: Value = serde_json::from_str(&body).unwrap();
        if tree["stream_options"].is_null() {
            tree["stream_options"] = serde_json::json!({});
        }
        tree["stream_options"]["include_usage"] = true.into();
        prop_assert_eq!(serde_json::from_slice::<Value>(&made).unwrap(), tree);
    }
}

/// Catches: an endpoint of Ollama's whose model we do not see, or see where Ollama sees another.
#[test]
fn the_old_name_of_the_key_counts_where_it_may() {
    let old = |body: &'static str| {
        let mut scan = BodyScan::new(body.as_bytes()).with_old_name();
        let found = scan.step(usize::MAX).unwrap();
        found.map(|facts| (facts.model.map(Cow::into_owned), facts.model_span))
    };
    let named = |name: &str, at: Range<usize>| Ok((Some(name.to_owned()), Some(at)));
    assert_eq!(old(r#"{"name":"a:1"}"#), named("a:1", 8..13));
    assert_eq!(old(r#"{"name":"a","model":"b"}"#), named("b", 20..23));
    assert_eq!(old(r#"{"model":"","name":"a"}"#), named("a", 19..22));
    assert_eq!(old(r#"{"name":null,"model":null}"#), Ok((None, None)));
    for (body, fault) in [
        (r#"{"name":"a","name":"b"}"#, ScanFault::Duplicate("name")),
        (r#"{"n\u0061me":"a"}"#, ScanFault::Escaped),
        (r#"{"Name":"a"}"#, ScanFault::Spelling("name")),
        (r#"{"name":1}"#, ScanFault::WrongType("name")),
    ] {
        assert_eq!(old(body), Err(fault), "{body}");
    }
    assert_eq!(
        facts(r#"{"name":"a","Name":1,"n\u0061me":2}"#).model,
        None,
        "elsewhere it is a word"
    );
}

proptest! {
    /// Catches: another name that breaks the JSON, moves a byte of the client's, stands in the
    /// wrong place, or meets the wish for usage.
    #[test]
    fn another_name_takes_the_place_of_the_string_and_of_nothing_else(
        before in prop::collection::vec((any_string(), any_json()), 0..3),
        after in prop::collection::vec((any_string(), any_json()), 0..3),
        asked in any_string(),
        served in any::<String>().prop_filter("a name", |name| !name.is_empty()),
        space in "[ \t\n\r]{0,3}",
        (is_first, wish) in any::<(bool, bool)>(),
    ) {
        let member = |(k, v): &(String, String)| {
            let rest = k.strip_prefix('"').unwrap();
            format!("\"x{rest}:{space}{v},")
        };
        let all = |members: &[(String, String)]| members.iter().map(member).collect::<String>();
        let stream = |is_there: bool| if is_there { "\"stream\":true," } else { "" };
        let start = format!(
            "{space}{{{}{}\"model\"{space}:{space}", all(&before), stream(is_first)
        );
        let end = format!("{space},{}{}\"z\":0}}{space}", stream(!is_first), all(&after));
        let body = format!("{start}{asked}{end}");
        let Ok(found) = scan(body.as_bytes()) else { return Ok(()) };
        let json = serde_json::to_string(&served).unwrap();
        let name = Edit { at: found.model_span.unwrap(), with: json.as_bytes() };
        let wished = found.usage_splice.filter(|_| wish).map(UsageSplice::edit);
        let made = edited(body.as_bytes(), [Some(name), wished]).concat();
        if !wish {
            prop_assert_eq!(std::str::from_utf8(&made).unwrap(), format!("{start}{json}{end}"));
        }
        let mut tree: Value = serde_json::from_str(&body).unwrap();
        tree["model"] = served.clone().into();
        if wish {
            tree["stream_options"] = serde_json::json!({"include_usage": true});
        }
        prop_assert_eq!(serde_json::from_slice::<Value>(&made).unwrap(), tree);
        if served.len() <= MODEL_NAME_BYTES_MAX {
            let again = scan(&made).unwrap();
            prop_assert_eq!(again.model.as_deref(), Some(served.as_str()));
        }
    }
}

/// Values of `stream_options`, asking or not.
fn any_options() -> impl Strategy<Value = String> {
    let flag = prop::sample::select(vec![
        "true", "false", "null", "1", "0", "0.0", "1.0", "0e5", "\"yes\"", "\"no\"", "\"T\"",
        "\"f\"",
    ]);
    prop_oneof![
        Just("null".to_owned()),
        "\\{[ \n]{0,2}\\}",
        (flag, "[ \n]{0,2}", any_json()).prop_map(|(flag, space, other)| {
            format!("{{{space}\"o\":{other},\"include_usage\" :{space}{flag}{space}}}")
        }),
        ("[ \n]{0,2}", any_json()).prop_map(|(space, other)| format!("{{{space}\"o\":{other}}}")),
    ]
}
