use super::*;
use crate::base::limits::{PREFIX_BYTES_MAX, PREFIX_BYTES_MIN, SESSION_SPAN_BYTES_MAX};
use crate::llm::request::BodyScan;
use proptest::prelude::*;

const KEY: FoldKey = FoldKey::of([0x1234_5678_9abc_def1, 0x7f4a_7c15_f39c, 0x2545_f491_4f6c, 77]);

fn spans(body: &str) -> PromptSpans {
    let mut scan = BodyScan::new(body.as_bytes()).with_prompt();
    while scan.step(usize::MAX).is_none() {}
    *scan.prompt().unwrap()
}

fn milestones(body: &str) -> Milestones {
    spans(body).milestones(body.as_bytes(), "m", &KEY)
}

/// Bytes of the longest beginning that both have.
fn agree(a: &str, b: &str) -> u32 {
    let (a, b) = (milestones(a), milestones(b));
    let is_shared = |one: &&Milestone| b.all().contains(one);
    a.all().iter().filter(is_shared).map(|one| one.bytes).max().unwrap_or_default()
}

fn message(role: &str, text: &str) -> String {
    format!(r#"{{"role":"{role}","content":"{text}"}}"#)
}

fn chat(messages: &[String]) -> String {
    format!(r#"{{"model":"m","messages":[{}],"stream":true}}"#, messages.join(","))
}

/// Catches: a conversation that is not found again in its next request, or is not told from another
/// one that begins with the same long words of the system.
#[test]
fn each_request_of_a_conversation_goes_on_from_the_one_before() {
    let system = message("system", &"You are a helpful assistant. ".repeat(130));
    let hello = message("user", "hello");
    let mut messages = vec![system.clone(), hello];
    for turn in 0..40 {
        let before = chat(&messages);
        messages.push(message("assistant", &format!("answer {turn}")));
        messages.push(message("user", &format!("question {turn}")));
        let all = milestones(&before).bytes();
        assert_eq!(agree(&before, &chat(&messages)), all, "turn {turn}");
    }
    let other = chat(&[system.clone(), message("user", "good morning"), messages[2].clone()]);
    let first = chat(&messages[..2]);
    // With the bracket before them.
    assert_eq!(agree(&other, &first) as usize, 1 + system.len(), "the system's words alone");
    assert!(agree(&chat(&messages[1..]), &chat(&messages)) == 0, "the beginning counts");
}

/// Catches: a request that is sent where its prompt was read, and an engine that is taken to have
/// lost it, because of a request for which no engine uses its cache.
#[test]
fn who_wants_to_know_of_the_prompt_itself_uses_no_cache() {
    let is_read_anew = |members: &str| {
        let body = format!(r#"{{"prompt":"hello",{members}}}"#);
        spans(&body).is_read_anew(body.as_bytes())
    };
    for members in [
        r#""cache_prompt":false"#,
        r#""prompt_logprobs":0"#,
        r#""echo":true,"logprobs":1"#,
        r#""logprobs":true,"echo":"yes""#,
        r#""return_logprob":true,"logprob_start_len":0"#,
    ] {
        assert!(is_read_anew(members), "{members}");
    }
    for members in [
        r#""cache_prompt":true"#,
        r#""cache_prompt":"false""#,
        r#""prompt_logprobs":null"#,
        r#""echo":true"#,
        r#""echo":true,"logprobs":null"#,
        r#""echo":false,"logprobs":5"#,
        r#""logprobs":true,"top_logprobs":5"#,
        r#""return_logprob":true"#,
        r#""return_logprob":true,"logprob_start_len":-1"#,
        r#""options":{"cache_prompt":false}"#,
    ] {
        assert!(!is_read_anew(members), "{members}");
    }
}

/// Catches: a prompt of one long text that is only found again as a whole.
#[test]
fn a_long_text_is_found_again_to_a_fifth_of_its_length() {
    let text = "0123456789abcdef".repeat(20_000);
    for shared in [600, 5_000, 40_000, 200_000] {
        let ask = |question: &str| {
            let text = text.get(..shared).unwrap();
            format!(r#"{{"prompt":"{text}{question}","model":"m"}}"#)
        };
        let agree = agree(&ask("why?"), &ask("since when?")) as usize;
        assert!(agree <= shared + 1 && agree >= shared * 4 / 5, "{agree} of {shared}");
    }
}

/// Catches: an end of a message that is found only if nothing else stands in the body, or that
/// is looked for beyond what is looked at; white space and other lists that are taken for messages.
#[test]
fn the_ends_of_messages_are_found_wherever_they_stand() {
    let long = message("user", &"x".repeat(600));
    let turns = |body: &str| {
        let fixed = |one: &&Milestone| !one.bytes.is_multiple_of(512);
        milestones(body).all().iter().filter(fixed).count()
    };
    let three = [&long, &long, &long].map(String::as_str).join(" , ");
    assert_eq!(turns(&format!(r#"{{"messages": [ {three} ] ,"n":[[1,2],{{"a":[3]}}]}}"#)), 3);
    assert_eq!(turns(&format!(r#"{{"stop":["a","b"],"input":[{three}],"user":"u"}}"#)), 3);
    assert_eq!(turns(&format!(r#"{{"messages":[{long}],"messages":[{three}]}}"#)), 3);
    assert_eq!(turns(&format!(r#"{{"system":[{three}]}}"#)), 1, "one part");
    let image = message("user", &"x".repeat(2 * PREFIX_BYTES_MAX));
    let with_image = |rest: &str| format!(r#"{{"messages":[{long},{image}{rest}]}}"#);
    let (short, longer) = (with_image(""), with_image(&format!(",{long}")));
    assert_eq!(agree(&short, &longer), milestones(&short).bytes());
    assert!(milestones(&short).bytes() > 200_000, "nobody looks at the end of it");
}

#[test]
fn short_prompts_have_no_milestones_and_long_ones_have_few() {
    assert_eq!(milestones(&chat(&[message("user", "hello")])).all(), []);
    let long = chat(&vec![message("user", &"x".repeat(100)); 5_000]);
    let found = milestones(&long);
    assert!((30..=43).contains(&found.all().len()), "{}", found.all().len());
    assert!(found.bytes() as usize <= PREFIX_BYTES_MAX && found.bytes() > 200_000);
    assert!(found.all().is_sorted_by_key(|one| one.bytes));
}

/// Catches: an order of the keys that decides; a part that is not read; a salt that is not one.
#[test]
fn tools_and_system_come_first_wherever_they_stand() {
    let tools = format!(r#""tools":[{{"name":"{}"}}]"#, "t".repeat(700));
    let with = |first: &str, text: &str, last: &str| {
        format!(r#"{{{first}"messages":[{}]{last}}}"#, message("user", &text.repeat(300)))
    };
    let (before, behind) = (format!("{tools},"), format!(",{tools}"));
    let (a, b) = (with(&before, "abc", ""), with("", "abc", &behind));
    assert_eq!(agree(&a, &b), milestones(&a).bytes());
    assert!(agree(&a, &with("", "xyz", &behind)) > 700, "the tools alone");
    assert_eq!(agree(&a, &with("", "abc", "")), 0, "they are before the messages");
    for salt in [
        r#","cache_salt":"x""#,
        r#","lora":[{"id":0,"scale":0.5}]"#,
        r#","chat_template_kwargs":{"enable_thinking":false}"#,
        r#","reasoning_effort":"low""#,
    ] {
        assert_eq!(agree(&with("", "abc", ""), &with("", "abc", salt)), 0, "{salt}");
        assert!(agree(&with("", "abc", salt), &with("", "abc", salt)) > 0, "{salt}");
    }
    let long = "y".repeat(700);
    for body in [
        format!(r#"{{"prompt":"{long}"}}"#),
        format!(r#"{{"prompt":["{long}"]}}"#),
        format!(r#"{{"input":"{long}","instructions":"be brief"}}"#),
        format!(r#"{{"input":[{{"role":"user","content":"{long}"}}]}}"#),
        format!(r#"{{"system":[{{"type":"text","text":"{long}"}}],"messages":[]}}"#),
        format!(r#"{{"inputs":"{long}"}}"#),
        format!(r#"{{"text":"{long}"}}"#),
        format!(r#"{{"images":["{long}"]}}"#),
    ] {
        assert!(!milestones(&body).all().is_empty(), "{body}");
    }
    let of = |model| spans(&a).milestones(a.as_bytes(), model, &KEY).all()[0];
    assert_ne!(of("m"), of("n"), "another model has another cache");
    let other_key = FoldKey::random();
    assert_ne!(of("m"), spans(&a).milestones(a.as_bytes(), "m", &other_key).all()[0]);
}

/// Catches: the system's words alone, which all have, taken for a conversation that ended there; a
/// prompt of which only the beginning was looked at.
#[test]
fn a_turn_ends_where_more_than_one_message_was_said() {
    let (long, user) = ("y".repeat(700), message("user", "why?"));
    let system = message("system", &long);
    let huge = message("user", &"x".repeat(2 * PREFIX_BYTES_MAX));
    for (body, is_turn, is_whole) in [
        (chat(std::slice::from_ref(&system)), false, true),
        (chat(&[system.clone(), user.clone()]), true, true),
        (format!(r#"{{"system":"{long}","messages":[{user}]}}"#), true, true),
        (format!(r#"{{"tools":["{long}"],"messages":[{user}]}}"#), false, true),
        (format!(r#"{{"instructions":"{long}","input":"why?"}}"#), true, true),
        (format!(r#"{{"instructions":"{long}"}}"#), false, true),
        (format!(r#"{{"prompt":"{long}"}}"#), false, true),
        (chat(&[system.clone(), huge.clone()]), false, false),
        (chat(&[system, huge, user]), false, false),
    ] {
        let found = milestones(&body);
        let short = body.get(..200).unwrap_or(&body);
        assert_eq!((found.ends_a_turn(), found.is_whole()), (is_turn, is_whole), "{short}");
    }
}

#[test]
fn a_session_is_named_by_what_was_asked_for() {
    let body = r#"{"user":"ann","session_id":17,"metadata":{"a":{"user_id":"no"},"user_id":"bob"},
        "prompt_cache_key":"","safety_identifier":null}"#;
    let of = |by| spans(body).session(body.as_bytes(), by).map(|name| name.to_vec());
    assert_eq!(of("user").as_deref(), Some(&b"ann"[..]));
    assert_eq!(of("session_id").as_deref(), Some(&b"17"[..]));
    assert_eq!(of("metadata.user_id").as_deref(), Some(&b"bob"[..]));
    assert_eq!(of("prompt_cache_key"), None);
    assert_eq!(of("safety_identifier"), None);
    let long = format!(r#"{{"user":"{}","metadata":[1]}}"#, "x".repeat(SESSION_BYTES_MAX + 1));
    assert_eq!(spans(&long).session(long.as_bytes(), "user"), None);
    assert_eq!(spans(&long).session(long.as_bytes(), "metadata.user_id"), None);
}

/// Catches: a client that holds the worker with one member, all of which is walked in one go.
#[test]
fn a_session_is_not_looked_for_in_a_member_of_any_length() {
    for bytes in [SESSION_SPAN_BYTES_MAX, SESSION_SPAN_BYTES_MAX + 1] {
        let (open, close) = (r#"{"a":""#, r#"","user_id":"bob"}"#);
        let filler = "x".repeat(bytes - open.len() - close.len());
        let body = format!(r#"{{"metadata":{open}{filler}{close}}}"#);
        let name = spans(&body).session(body.as_bytes(), "metadata.user_id");
        assert_eq!(name.is_some(), bytes <= SESSION_SPAN_BYTES_MAX, "{bytes}");
    }
}

proptest! {
    /// Catches: a beginning that counts as shared and is not, or the reverse.
    #[test]
    fn prompts_agree_as_far_as_their_messages_do(
        shared in prop::collection::vec("[a-z]{0,400}", 0..8),
        ours in prop::collection::vec("[a-m]{1,400}", 0..8),
        theirs in prop::collection::vec("[n-z]{1,400}", 0..8),
    ) {
        let messages = |more: &[String]| {
            let all = shared.iter().chain(more);
            chat(&all.map(|text| message("user", text)).collect::<Vec<_>>())
        };
        // Each with the bracket or comma before it.
        let same: usize = shared.iter().map(|text| 1 + message("user", text).len()).sum();
        // All have what stands before the text of the next message.
        let found = agree(&messages(&ours), &messages(&theirs)) as usize;
        let begun = 1 + message("user", "").len();
        prop_assert!(found <= same + begun, "{found} of {same}");
        prop_assert!(found + 1 > same || same < PREFIX_BYTES_MIN, "{found} of {same}");
    }

    /// Catches: a panic, or an endless walk, on any JSON.
    #[test]
    fn any_value_may_stand_anywhere(
        values in prop::collection::vec("[\\[\\]{}\",:0a]{0,20}", KEYS),
    ) {
        let names = SALTS.into_iter().chain(PARTS).chain(SESSIONS);
        let members: Vec<_> = names.zip(&values).map(|(k, v)| format!("\"{k}\":{v}")).collect();
        let body = format!("{{{}}}", members.join(","));
        // Whether or not it is JSON: the spans are those of what was walked so far.
        let mut scan = BodyScan::new(body.as_bytes()).with_prompt();
        while scan.step(usize::MAX).is_none() {}
        let spans = scan.prompt().unwrap();
        spans.milestones(body.as_bytes(), "m", &KEY);
        for by in ["user", "session_id", "metadata.user_id"] {
            spans.session(body.as_bytes(), by);
        }
    }
}
