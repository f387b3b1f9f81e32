//! The same, read from a tree that serde_json builds: slow, and hard to get wrong.

use super::*;
use proptest::prelude::*;
use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Names that matter somewhere, so that they stand where they do not matter too.
const NAMES: &[&str] = &[
    "usage",
    "response",
    "message",
    "choices",
    "delta",
    "content",
    "text",
    "finish_reason",
    "tool_calls",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "prompt_tokens_details",
    "input_tokens_details",
    "cached_tokens",
    "reasoning_tokens",
    "metadata",
    "a\"}{[]:,\\",
    "\u{1f600}\n",
];

const COUNTS: &[&str] = &[
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cached_tokens",
    "reasoning_tokens",
];

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..50u64).prop_map(Value::from),
        "[a-z\"\\\\{}\\[\\]\n,:\u{e9}]{0,70}".prop_map(Value::from),
        code().prop_map(Value::from),
    ]
}

/// A long text with many escapes, and names that matter in it.
fn code() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => "[a-z ]{1,30}",
        4 => prop::sample::select(&["\n", "\"", "\\", "\\\\\"", "{", "}", "]", "\"usage\":{"])
            .prop_map(str::to_owned),
        1 => "[\"\\\\]{60,70}",
        1 => "[a-z]{100,200}",
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

/// Many small objects, as of log probabilities.
fn logprobs() -> impl Strategy<Value = Value> {
    let token = prop_oneof![
        6 => "[a-z ]{1,9}",
        1 => "[\"\\\\{}\\[\\]\n]{1,4}",
    ];
    let one = (token, prop::collection::vec(0..256u64, 0..9)).prop_map(|(token, bytes)| {
        json!({"token": token, "logprob": -0.125, "bytes": bytes, "usage": {"prompt_tokens": 7}})
    });
    prop::collection::vec(one, 0..60).prop_map(|list| json!({"content": list}))
}

fn any_json() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            object(inner),
        ]
    })
}

fn object(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    let name = prop::sample::select(NAMES).prop_map(str::to_owned);
    prop::collection::btree_map(name, inner, 0..6)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

/// Counts as an engine writes them, or not.
fn usage() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(&NAMES[9..19]).prop_map(str::to_owned);
    let counts = prop::collection::btree_map(name, (0..90u64).prop_map(Value::from), 0..5)
        .prop_map(|map| Value::Object(map.into_iter().collect()));
    prop_oneof![4 => counts, 1 => Just(Value::Null), 1 => any_json()]
}

fn event() -> impl Strategy<Value = Value> {
    let other = prop_oneof![3 => any_json(), 1 => logprobs()];
    let places = (usage(), object(any_json()), object(any_json()), other, 0..5u8);
    places.prop_map(|(usage, mut inner, mut event, choices, place)| {
        let members = event.as_object_mut().unwrap();
        if choices.is_object() {
            let said = json!({"logprobs": choices, "text": "a"});
            members.insert("choices".to_owned(), json!([said, {"text": ""}]));
        }
        members.insert("metadata".to_owned(), choices.clone());
        match place {
            0 => {}
            1 | 2 => {
                members.insert("usage".to_owned(), usage);
            }
            _ => {
                inner.as_object_mut().unwrap().insert("usage".to_owned(), usage);
                let name = if place == 3 { "response" } else { "message" };
                members.insert(name.to_owned(), inner);
            }
        }
        event
    })
}

/// Counts by their names, of one event or of all so far.
#[derive(Default)]
struct Told {
    counts: BTreeMap<&'static str, u64>,
    odd: BTreeSet<&'static str>,
    kept_zero: bool,
}

impl Told {
    fn set(&mut self, name: &'static str, of: &Value) {
        match of {
            Value::Null => {}
            Value::Number(number) => {
                let number = number.as_u64().unwrap();
                if number == 0 && self.counts.get(name).is_some_and(|had| *had > 0) {
                    self.kept_zero = true;
                } else {
                    self.counts.insert(name, number);
                    self.odd.remove(name);
                }
            }
            _ => {
                self.odd.insert(name);
            }
        }
    }

    fn usage(&mut self, usage: &Value, is_early: bool) {
        let Value::Object(usage) = usage else { return };
        // In the order in which the members stand, which is that of their names.
        for (name, value) in usage {
            let details = matches!(&**name, "input_tokens_details" | "prompt_tokens_details");
            if let Some(name) = COUNTS.iter().find(|other| *other == name) {
                if !is_early || *name != "output_tokens" {
                    self.set(name, value);
                }
            } else if let Some(cached) = value.get("cached_tokens").filter(|_| details) {
                self.set("cached_tokens", cached);
            }
        }
    }

    fn merge(&mut self, later: Told) {
        let has = |name: &&str| later.counts.contains_key(name);
        let counted = ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"];
        if counted.iter().any(has) && !has(&"total_tokens") {
            self.counts.remove("total_tokens");
        }
        for (name, number) in later.counts {
            self.set(name, &json!(number));
        }
        self.odd.extend(later.odd);
        self.kept_zero |= later.kept_zero;
    }

    fn tokens(&self) -> Option<Tokens> {
        let get = |name: &str| self.counts.get(name).copied();
        let of = |name: &str| get(name).unwrap_or(0);
        if !self.odd.is_empty() {
            return None;
        }
        let input = get("input_tokens").map(|n| n + of("cache_read_input_tokens"));
        let prompt = get("prompt_tokens").or(input)?;
        let completion = get("completion_tokens").or(get("output_tokens"))?;
        let total = get("total_tokens").filter(|_| !self.kept_zero);
        let total = total.unwrap_or(prompt + completion);
        let cached = get("cached_tokens").or(get("cache_read_input_tokens"));
        let all = (prompt, completion, total, cached, get("reasoning_tokens"));
        (total + prompt + completion > 0).then_some(all)
    }
}

#[derive(Default)]
struct Reference {
    told: Told,
    content: u64,
}

impl Reference {
    fn event(&mut self, dialect: Dialect, event: &Value) {
        let filled = |value: &Value| match value {
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => false,
        };
        let any = |map: &Value, names: &[&str]| names.iter().any(|name| filled(&map[*name]));
        let mut now = Told::default();
        // In the order in which the members stand.
        for (name, value) in event.as_object().unwrap_or(&Map::new()) {
            match (dialect, name.as_str()) {
                (_, "usage") => now.usage(value, false),
                (Dialect::Responses, "response") => now.usage(&value["usage"], false),
                (Dialect::Messages, "message") => now.usage(&value["usage"], true),
                _ => {}
            }
        }
        self.told.merge(now);
        let content = match dialect {
            Dialect::Responses => any(event, &["delta"]),
            Dialect::Messages => {
                event["delta"].is_object()
                    && matches!(&event["delta"]["text"], Value::String(text) if !text.is_empty())
                    || filled(&event["delta"]["text"]) && event["delta"].is_object()
            }
            _ => event["choices"].as_array().is_some_and(|choices| {
                choices.iter().any(|choice| {
                    let delta = &choice["delta"];
                    choice.is_object()
                        && (any(choice, &["text"])
                            || delta.is_object() && any(delta, &["content", "tool_calls"]))
                })
            }),
        };
        self.content += u64::from(content);
    }
}

proptest! {
    /// Catches: a walk that loses its place.
    #[test]
    fn agrees_with_a_tree(
        events in prop::collection::vec(event(), 1..5),
        dialect in prop::sample::select(vec![
            Dialect::OpenAi,
            Dialect::Responses,
            Dialect::Messages,
        ]),
        pretty in any::<bool>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut reference = Reference::default();
        let mut stream = String::new();
        for event in &events {
            reference.event(dialect, event);
            let text = match pretty {
                true => serde_json::to_string_pretty(event).unwrap().replace('\n', "\r\ndata: "),
                false => event.to_string(),
            };
            stream += &format!("event: x\ndata: {text}\n\n");
        }
        let bytes = stream.as_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
        let expected = (reference.told.tokens(), reference.content);
        for scan in [scan(dialect, EVENTS, [bytes]), scan(dialect, EVENTS, pieces)] {
            let found = (scan.usage().map(tokens), scan.facts().content_events());
            prop_assert_eq!(&found, &expected, "{}", stream);
        }
    }

    /// Catches: an event that is taken for the one before it and is not like it.
    #[test]
    fn what_is_like_the_last_event_says_the_same(
        texts in prop::collection::vec("[a-z\"\\\\{}\n\u{e9}]{0,5}", 1..9),
        odd in prop::collection::vec((any::<prop::sample::Index>(), 0..6usize), 0..4),
        end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
    ) {
        let mut stream = String::new();
        let mut content = 0;
        for (at, text) in texts.iter().enumerate() {
            let choice = json!({"delta": {"content": text}, "finish_reason": null});
            let mut event = json!({"id": "a", "choices": [choice]});
            let (mut before, mut behind) = (String::new(), String::new());
            for (_, kind) in odd.iter().filter(|(index, _)| index.index(texts.len()) == at) {
                match kind {
                    0 => event["usage"] = json!({"prompt_tokens": 3, "completion_tokens": at + 1}),
                    1 => event["choices"][0]["finish_reason"] = json!("stop"),
                    2 => event["id"] = json!("other"),
                    // What stands behind a whole object is none of it.
                    3 => behind = format!("data: 1{end}"),
                    4 => before = format!("event: x{end}"),
                    _ => event["choices"][0]["delta"]["content"] = Value::Null,
                }
            }
            let said = event["choices"][0]["delta"]["content"].as_str();
            content += u64::from(said.is_some_and(|text| !text.is_empty()));
            stream += &format!("{before}data: {event}{end}{behind}{end}");
        }
        let scans = [
            scan(Dialect::OpenAi, EVENTS, [stream.as_bytes()]),
            scan(Dialect::OpenAi, EVENTS, stream.as_bytes().chunks(1)),
        ];
        let said = scans.map(|scan| {
            let facts = scan.facts();
            (scan.usage(), facts.content_events(), facts.choices())
        });
        prop_assert_eq!(said[0], said[1]);
        prop_assert_eq!(said[0].1, content);
    }
}
