//! How later counts change earlier ones, which are added, and what is no count.

use super::*;
use crate::llm::usage::number::Odd;

fn usage(members: &str) -> String {
    format!("{{\"usage\":{{{members}}}}}")
}

/// Catches: a count that is lost to a null, an absent member or a later zero, and an early zero
/// that stays.
#[test]
fn the_last_count_of_each_name_counts() {
    for (events, expected) in [
        (&[r#""prompt_tokens":39"#, r#""completion_tokens":7"#][..], (39, 7, 46, None, None)),
        (
            &[r#""prompt_tokens":0"#, r#""prompt_tokens":39,"completion_tokens":1"#],
            (39, 1, 40, None, None),
        ),
        (
            &[
                r#""prompt_tokens":39,"completion_tokens":7"#,
                r#""prompt_tokens":0,"completion_tokens":0"#,
            ],
            (39, 7, 46, None, None),
        ),
        (&[r#""prompt_tokens":39,"completion_tokens":7"#, ""], (39, 7, 46, None, None)),
        (
            &[r#""prompt_tokens":39,"completion_tokens":7"#, r#""prompt_tokens":null"#],
            (39, 7, 46, None, None),
        ),
        (
            &[
                r#""prompt_tokens":39,"completion_tokens":7,"total_tokens":46"#,
                r#""completion_tokens":9"#,
            ],
            (39, 9, 48, None, None),
        ),
        (
            &[
                r#""prompt_tokens":39,"completion_tokens":7"#,
                r#""prompt_tokens_details":{"cached_tokens":5}"#,
            ],
            (39, 7, 46, Some(5), None),
        ),
        (
            &[
                r#""completion_tokens_details":{"reasoning_tokens":3}"#,
                r#""prompt_tokens":39,"completion_tokens":7"#,
            ],
            (39, 7, 46, None, Some(3)),
        ),
        (&[r#""prompt_tokens":9,"prompt_tokens":5,"completion_tokens":1"#], (5, 1, 6, None, None)),
        (
            &[r#""prompt_tokens":9,"completion_tokens":1},"usage":{"prompt_tokens":5"#],
            (5, 1, 6, None, None),
        ),
    ] {
        let events: Vec<String> = events.iter().map(|members| usage(members)).collect();
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        assert_eq!(chat(&events), Some(expected), "{events:?}");
        let with_null = [&events[..], &["{\"usage\":null}", "{\"usage\":[]}", "{}"]].concat();
        assert_eq!(chat(&with_null), Some(expected), "{events:?}");
    }
    let zeros = usage(r#""prompt_tokens":0,"completion_tokens":0,"total_tokens":0"#);
    assert_eq!(chat(&[&zeros]), None, "Ollama's early events");
}

/// Catches: counts that are kept although something is strange, and nobody is told.
#[test]
fn what_is_strange_is_told() {
    let names = |events: &[&str]| {
        let stream: String = events.iter().map(|data| format!("data: {data}\n\n")).collect();
        let scan = read(Dialect::OpenAi, EVENTS, &stream);
        scan.facts().oddities().names().collect::<Vec<_>>()
    };
    let count = usage(r#""prompt_tokens":39,"completion_tokens":7"#);
    let zero = usage(r#""prompt_tokens":0,"completion_tokens":0"#);
    let cached = usage(
        r#""prompt_tokens":3,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":4}"#,
    );
    let total = usage(r#""prompt_tokens":39,"completion_tokens":7,"total_tokens":47"#);
    assert_eq!(chat(&[&total]), Some((39, 7, 47, None, None)), "as the engine said it");
    assert_eq!(names(&[&total]), ["total_differs"]);
    assert_eq!(names(&[&total.replace("47", "46")]), [""; 0]);
    assert_eq!(names(&[&count]), [""; 0]);
    assert_eq!(names(&[&zero, &count]), [""; 0]);
    assert_eq!(names(&[&count, &zero]), ["zero_after_count"]);
    assert_eq!(names(&[&cached]), ["cached_exceeds_prompt"]);
}

/// Catches: what is no number of tokens and becomes a bill, or passes for zero.
#[test]
fn what_is_no_count_is_no_usage_and_says_why() {
    for (value, odd) in [
        ("\"12\"", Odd::NotANumber),
        ("true", Odd::NotANumber),
        ("[12]", Odd::NotANumber),
        ("{\"a\":12}", Odd::NotANumber),
        ("NaN", Odd::NotANumber),
        ("007", Odd::NotANumber),
        ("-1", Odd::Negative),
        ("1.5", Odd::Fraction),
        ("9007199254740993", Odd::TooLarge),
        ("99999999999999999999999", Odd::TooLarge),
    ] {
        for name in ["prompt_tokens", "completion_tokens", "cached_tokens"] {
            let event = usage(&format!("\"total_tokens\":3,\"{name}\":{value},\"x\":1"));
            let scan = read(Dialect::OpenAi, EVENTS, &format!("data: {event}\n\n"));
            assert_eq!((scan.usage(), scan.facts().fault()), (None, Some(odd)), "{event}");
            let scan = read(Dialect::OpenAi, None, &event);
            assert_eq!((scan.usage(), scan.facts().fault()), (None, Some(odd)), "{event}");
        }
        let line = format!("{{\"done\":true,\"eval_count\":{value},\"prompt_eval_count\":2}}\n");
        let scan = read(Dialect::Ollama, Some(EventFraming::Lines), &line);
        assert_eq!((scan.usage(), scan.facts().fault()), (None, Some(odd)), "{line}");
    }
    // What is not looked at, since others tell, spoils nothing.
    let timed = "{\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":2},\
                 \"timings\":{\"prompt_n\":-1,\"predicted_n\":2}}";
    let scan = read(Dialect::OpenAi, None, timed);
    let told = scan.usage().map(|usage| (usage.prompt_tokens, usage.completion_tokens));
    assert_eq!((told, scan.facts().fault()), (Some((8, 2)), None));
    // The last word counts here too.
    let good = usage(r#""prompt_tokens":3,"completion_tokens":1"#);
    assert_eq!(chat(&[&usage(r#""prompt_tokens":"3""#), &good]), Some((3, 1, 4, None, None)));
    assert_eq!(chat(&[&good, &usage(r#""prompt_tokens":"3""#)]), None);
    let whole = usage(r#""prompt_tokens":12.0,"completion_tokens":1.5e1"#);
    assert_eq!(chat(&[&whole]), Some((12, 15, 27, None, None)));
}

/// Catches: half a usage whose other half is billed as zero tokens.
#[test]
fn what_lacks_a_count_is_no_usage_and_says_so() {
    let said = |dialect: Dialect, framing, answer: &str| {
        let scan = read(dialect, framing, answer);
        (scan.usage().map(tokens), scan.facts().fault())
    };
    let missing = (None, Some(Odd::Missing));
    for half in [
        r#""prompt_tokens":39"#,
        r#""completion_tokens":7"#,
        r#""total_tokens":46"#,
        r#""prompt_tokens":39,"total_tokens":46"#,
        r#""prompt_tokens":null,"completion_tokens":7"#,
        r#""prompt_tokens":39,"completion_tokens":null"#,
        r#""input_tokens":39"#,
        r#""input_tokens":null,"cache_read_input_tokens":3,"output_tokens":7"#,
    ] {
        for dialect in [
            Dialect::OpenAi,
            Dialect::Responses,
            Dialect::Messages,
            Dialect::Transcriptions,
            Dialect::LlamaCpp,
        ] {
            let answer = usage(half);
            assert_eq!(said(dialect, None, &answer), missing, "{dialect:?} {answer}");
        }
        let stream = format!("data: {}\n\n", usage(half));
        assert_eq!(said(Dialect::OpenAi, EVENTS, &stream), missing, "{half}");
    }
    let native = r#"{"text":"a","meta_info":{"prompt_tokens":3}}"#;
    assert_eq!(said(Dialect::Generate, None, native), missing);
    assert_eq!(said(Dialect::LlamaCpp, None, r#"{"tokens_predicted":3}"#), missing);
    // A stream of Messages that has only begun lacks nothing yet, one that has ended does.
    let start = "data: {\"message\":{\"usage\":{\"input_tokens\":20}}}\n\n";
    let stop = format!("{start}data: {{\"type\":\"message_stop\"}}\n\n");
    assert_eq!(said(Dialect::Messages, EVENTS, start), (None, None));
    assert_eq!(said(Dialect::Messages, EVENTS, &stop), missing);
    // Where nothing is generated there is nothing to be missed.
    for (members, prompt) in [
        (r#""prompt_tokens":8"#, 8),
        (r#""prompt_tokens":8,"completion_tokens":null,"total_tokens":8"#, 8),
        (r#""total_tokens":8"#, 8),
    ] {
        let told = said(Dialect::Embeddings, None, &usage(members));
        assert_eq!(told, (Some((prompt, 0, prompt, None, None)), None), "{members}");
    }
    assert_eq!(said(Dialect::Embeddings, None, &usage(r#""completion_tokens":8"#)), missing);
}

/// Catches: sums that are no longer exact in every JSON parser.
#[test]
fn sums_are_held_to_the_limit_of_each_count() {
    let most = 1_u64 << 53;
    let too_large = |dialect: Dialect, answer: &str| {
        let scan = read(dialect, None, answer);
        assert_eq!((scan.usage(), scan.facts().fault()), (None, Some(Odd::TooLarge)), "{answer}");
    };
    too_large(
        Dialect::OpenAi,
        &usage(&format!("\"prompt_tokens\":{most},\"completion_tokens\":1,\"total_tokens\":1")),
    );
    too_large(
        Dialect::Messages,
        &usage(&format!(
            "\"input_tokens\":{most},\"cache_read_input_tokens\":{most},\"output_tokens\":0"
        )),
    );
    let timings = format!("{{\"prompt_n\":{most},\"cache_n\":1,\"predicted_n\":0}}");
    too_large(Dialect::OpenAi, &format!("{{\"timings\":{timings}}}"));
    too_large(Dialect::Ollama, &format!("{{\"prompt_eval_count\":{most},\"eval_count\":1}}"));
    let one = format!("{{\"stop\":true,\"tokens_evaluated\":{most},\"tokens_predicted\":0}}");
    assert!(read(Dialect::LlamaCpp, None, &one).usage().is_some());
    too_large(Dialect::LlamaCpp, &format!("[{one},{}]", one.replace(&most.to_string(), "1")));
}

/// Catches: a placeholder that is billed, and an estimate that outlives the count.
#[test]
fn what_a_message_begins_with_is_no_count() {
    let start = |usage: &str| {
        format!("data: {{\"type\":\"message_start\",\"message\":{{\"usage\":{usage}}}}}\n\n")
    };
    let delta = |usage: &str| format!("data: {{\"type\":\"message_delta\",\"usage\":{usage}}}\n\n");
    let read = |stream: String| read(Dialect::Messages, EVENTS, &stream).usage().map(tokens);
    let early = start(r#"{"input_tokens":20,"output_tokens":1}"#);
    assert_eq!(read(early.clone()), None);
    assert_eq!(
        read(early.clone() + &delta(r#"{"output_tokens":7}"#)),
        Some((20, 7, 27, None, None))
    );
    let lower = early.clone() + &delta(r#"{"input_tokens":7,"output_tokens":3}"#);
    assert_eq!(read(lower), Some((7, 3, 10, None, None)), "Ollama's estimate");
    let zero = early.clone() + &delta(r#"{"input_tokens":0,"output_tokens":3}"#);
    assert_eq!(read(zero), Some((20, 3, 23, None, None)));
    let cached = start(
        r#"{"input_tokens":10,"cache_read_input_tokens":90,"cache_creation_input_tokens":5}"#,
    );
    assert_eq!(
        read(cached + &delta(r#"{"output_tokens":7}"#)),
        Some((105, 7, 112, Some(90), None))
    );
    assert_eq!(read(early + &delta("{}")), None);
}

/// Catches: choices of llama.cpp that are recorded as one, or counts so far that are added up.
#[test]
fn what_is_done_for_each_choice_is_added() {
    let event = |choices: &str, completion: u64, more: &str| {
        format!(
            "{{\"choices\":[{choices}],\"usage\":{{\"prompt_tokens\":4,\
             \"completion_tokens\":{completion}}},\"id\":\"a\"{more}}}"
        )
    };
    let timings = ",\"timings\":{\"prompt_n\":4,\"predicted_n\":5}";
    let done =
        |index: u64| format!("{{\"index\":{index},\"text\":\"\",\"finish_reason\":\"stop\"}}");
    let running =
        |index: u64| format!("{{\"index\":{index},\"text\":\"a\",\"finish_reason\":null}}");
    let (one, two) = (event(&done(0), 5, timings), event(&done(1), 4, timings));
    assert_eq!(chat(&[&one, &two]), Some((8, 9, 17, None, None)), "llama.cpp's completions");
    let (one, two) = (event("", 5, timings), event("", 4, timings));
    assert_eq!(chat(&[&one, &two]), Some((8, 9, 17, None, None)), "llama.cpp's chat");
    let three = event("", 1, timings);
    assert_eq!(chat(&[&one, &two, &three]), Some((12, 10, 22, None, None)));
    // How far each of two is.
    let so_far: Vec<String> = (1..4).map(|n| event(&running(n % 2), n, timings)).collect();
    let so_far: Vec<&str> = so_far.iter().map(String::as_str).collect();
    assert_eq!(chat(&so_far), Some((8, 5, 13, None, None)));
    let (one, two) = (event(&done(0), 5, ""), event(&done(1), 4, ""));
    let sum = event("", 9, "");
    assert_eq!(chat(&[&one, &two, &sum]), Some((4, 9, 13, None, None)), "vLLM, continuous");
    // The last one is of another kind: whoever sends that, sends counts so far.
    assert_eq!(chat(&[&event("", 5, timings), &sum]), Some((4, 9, 13, None, None)));
}

/// Catches: choices of which the last one alone is billed when a stream is cut off, or a prompt
/// that is billed once for each of its choices.
#[test]
fn what_each_choice_has_so_far_is_added() {
    let event = |index: u64, prompt: u64, completion: u64| {
        format!(
            "{{\"choices\":[{{\"index\":{index},\"text\":\"a\",\"finish_reason\":null}}],\"usage\":\
             {{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion}}}}}"
        )
    };
    let sum = |events: &[(u64, u64, u64)]| {
        let events: Vec<String> = events.iter().map(|(i, p, c)| event(*i, *p, *c)).collect();
        chat(&events.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(sum(&[(0, 4, 0), (1, 4, 0), (0, 4, 3), (1, 4, 2)]), Some((4, 5, 9, None, None)));
    assert_eq!(sum(&[(0, 4, 3), (1, 4, 2), (0, 4, 4)]), Some((4, 6, 10, None, None)));
    assert_eq!(sum(&[(1, 4, 2), (7, 4, 1), (1, 4, 5)]), Some((4, 6, 10, None, None)));
    // Two prompts, of two choices each.
    let two = [(0, 4, 1), (1, 4, 2), (2, 9, 3), (3, 9, 4)];
    assert_eq!(sum(&two), Some((13, 10, 23, None, None)));
    // Of choices beyond those that are told apart the last one counts, as does one choice alone.
    assert_eq!(sum(&[(0, 4, 1), (31, 4, 2), (70, 4, 5)]), Some((4, 6, 10, None, None)));
    assert_eq!(sum(&[(5, 4, 1), (5, 4, 2)]), Some((4, 2, 6, None, None)));
    // What is told of the whole counts alone, and zeros of it tell nothing.
    let (one, two) = (event(0, 4, 3), event(1, 4, 2));
    let whole = r#"{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":7}}"#;
    let zeros = r#"{"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}"#;
    assert_eq!(chat(&[&one, &two, whole]), Some((4, 7, 11, None, None)));
    assert_eq!(chat(&[&one, &two, zeros]), Some((4, 5, 9, None, None)));
    let odd = event(1, 4, 2).replace(":2}", ":\"2\"}");
    assert_eq!(chat(&[&one, &odd]), None, "a part of a sum is no sum");
    assert_eq!(chat(&[&one, &odd, whole]), Some((4, 7, 11, None, None)));
    // Engines' own forms say in the event which one it is.
    let native = |dialect: Dialect, events: &[&str]| {
        let stream: String = events.iter().map(|data| format!("data: {data}\n\n")).collect();
        read(dialect, EVENTS, &stream).usage().map(tokens)
    };
    let task = |index: u64, n: u64| {
        format!(
            "{{\"index\":{index},\"content\":\"a\",\"stop\":false,\"tokens_predicted\":{n},\
             \"tokens_evaluated\":4}}"
        )
    };
    let events = [task(0, 1), task(1, 1), task(0, 2), task(1, 2), task(0, 3)];
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    assert_eq!(native(Dialect::LlamaCpp, &events), Some((8, 5, 13, None, None)));
    let of = |index: u64, n: u64| {
        format!(
            "{{\"text\":\"a\",\"meta_info\":{{\"finish_reason\":null,\"prompt_tokens\":4,\
             \"completion_tokens\":{n}}},\"index\":{index}}}"
        )
    };
    let events = [of(0, 1), of(1, 1), of(0, 2)];
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    assert_eq!(native(Dialect::Generate, &events), Some((8, 3, 11, None, None)));
}

/// Catches: a stream of llama.cpp that was not asked for usage and is not billed, or twice.
#[test]
fn timings_tell_when_nothing_else_does() {
    let timed = |reason: &str, timings: &str| {
        format!(
            "{{\"choices\":[{{\"index\":0,\"finish_reason\":{reason}}}],\"timings\":{timings}}}"
        )
    };
    let all = r#"{"cache_n":8,"prompt_n":4,"predicted_n":3}"#;
    let found = Some((12, 3, 15, Some(8), None));
    assert_eq!(chat(&[&timed("\"stop\"", all)]), found);
    assert_eq!(chat(&[&timed("null", all)]), found, "how far it is");
    assert_eq!(
        chat(&[&timed("\"stop\"", all), &timed("\"stop\"", all)]),
        Some((24, 6, 30, Some(16), None))
    );
    assert_eq!(chat(&[&timed("\"stop\"", all), &timed("null", all)]), found);
    let older = r#"{"prompt_n":4,"predicted_n":3}"#;
    assert_eq!(chat(&[&timed("\"stop\"", older)]), None, "what was cached is not known");
    let counted = r#"{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3}}"#;
    assert_eq!(chat(&[&timed("\"stop\"", all), counted]), Some((12, 3, 15, None, None)));
}

/// Catches: seconds of audio that are lost, or taken for tokens.
#[test]
fn audio_is_paid_by_the_second() {
    let seconds = |dialect: Dialect, answer: &str| {
        let scan = read(dialect, None, answer);
        (scan.usage(), scan.facts().seconds(), scan.facts().fault())
    };
    let answer =
        |n: &str| format!("{{\"text\":\"a\",\"usage\":{{\"type\":\"duration\",\"seconds\":{n}}}}}");
    assert_eq!(seconds(Dialect::Transcriptions, &answer("37")), (None, Some(37), None));
    assert_eq!(seconds(Dialect::Transcriptions, &answer("36.1")), (None, Some(37), None));
    let odd = (None, None, Some(Odd::Negative));
    assert_eq!(seconds(Dialect::Transcriptions, &answer("-1")), odd);
    assert_eq!(seconds(Dialect::OpenAi, &answer("37")), (None, None, None));
}

/// Catches: an answer read in the dialect of the one before it on its connection.
#[test]
fn of_an_answer_after_another_nothing_is_known() {
    let mut scan = scan(
        Dialect::Ollama,
        Some(EventFraming::Lines),
        [&b"{\"done\":true,\"eval_count\":3}\n{"[..]],
    );
    assert!(scan.usage().is_some() && scan.facts().native_end());
    scan.reset();
    assert!(scan.usage().is_none() && !scan.facts().native_end());
    scan.feed(b"{\"id\":\"x\",\"usage\":{\"prompt_tokens\":1}}");
    assert_eq!(
        (scan.usage().map(|usage| usage.total_tokens), scan.upstream_id()),
        (Some(1), Some("x"))
    );
    scan.expect(Dialect::OpenAi, EVENTS);
    assert_eq!((scan.usage(), scan.upstream_id()), (None, None));
}
