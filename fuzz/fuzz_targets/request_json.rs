//! What the request reader accepts, an independent parser accepts and reads in the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::base::fold::FoldKey;
use llmproxy::llm::request::{scan, BodyScan};
use serde::de::IgnoredAny;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    walk_the_prompt(body);
    let Ok(facts) = scan(body) else { return };
    let mark = b"\xEF\xBB\xBF";
    let has = |word: &[u8]| body.windows(word.len()).any(|window| window == word);
    // Python's parser takes these, the one that is compared with does not.
    if body.starts_with(mark) || has(b"NaN") || has(b"Infinity") {
        return;
    }
    assert!(serde_json::from_slice::<IgnoredAny>(body).is_ok());
    // A tree cannot hold half a surrogate pair or a number beyond a float: no comparison then.
    let Ok(tree) = serde_json::from_slice::<Value>(body) else { return };
    assert_eq!(facts.model.as_deref(), tree["model"].as_str());
    if let Some(stream) = tree["stream"].as_bool() {
        assert_eq!(facts.stream, Some(stream));
    }
    assert_eq!(facts.include_usage, tree["stream_options"]["include_usage"] == true);
    if let Some(span) = facts.model_span {
        assert_eq!(serde_json::from_slice::<Value>(&body[span]).ok(), Some(tree["model"].clone()));
    }
});

/// Whether or not it is JSON to its end: milestones come in order and none is beyond the prompt.
fn walk_the_prompt(body: &[u8]) {
    let mut scan = BodyScan::new(body).with_prompt();
    while scan.step(4096).is_none() {}
    let Some(spans) = scan.prompt() else { return };
    let found = spans.milestones(body, "m", &FoldKey::of([1, 2, 3, 4]));
    assert!(found.all().is_sorted_by(|a, b| a.bytes < b.bytes));
    assert!(found.all().last().is_none_or(|last| last.bytes <= found.bytes()));
    for name in ["user", "metadata.user_id"] {
        spans.session(body, name);
    }
}
