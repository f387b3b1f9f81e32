//! Brackets in each other, as the scan before the parser counts them.

use super::*;
use crate::base::limits::{CONFIG_BRACKETS_OPEN_MAX, CONFIG_FILE_BYTES_MAX};
use crate::config::nesting::too_deep;
use proptest::prelude::*;
use serde_json::Value;

/// The most that is allowed: one more is refused, wherever the scan finds it.
fn most() -> String {
    "[".repeat(CONFIG_BRACKETS_OPEN_MAX)
}

/// True when the scan sees this text open a bracket or more that it does not close: then those that
/// are allowed alone are too many behind it.
fn is_inside(text: &str) -> bool {
    too_deep(&format!("{text}{}", most())).is_some()
}

/// Catches: a file of brackets that keeps a start, or the thread that reloads, busy for minutes.
#[test]
fn brackets_that_lie_too_deep_are_refused_before_the_parser_sees_them() {
    let huge = "[".repeat(CONFIG_FILE_BYTES_MAX - 10);
    let mixed = "{a: [".repeat(CONFIG_FILE_BYTES_MAX / 5 - 10);
    for before in [
        "backends: ",
        "# don't\nbackends:\n  - ",
        "a: it's [[ # {\nb:\n",
        "a: 'it''s' # '\nb: ",
        "a: \"\\\"\" \nb: ",
        "a: |\n  it's\nb: ",
        "a:\n- b: |\n    it's\n\n  c: ",
        "a: |\nb: ",
        "a: >-\n\nb: ",
        "---\n",
        "--- |\n it's\n---\n",
        "a: b\n  it's\nc: ",
        "? ",
        "&x ",
        "!t ",
        "",
    ] {
        for deep in [&huge, &mixed] {
            let text = format!("{before}{deep}");
            let text = text.get(..text.len().min(CONFIG_FILE_BYTES_MAX)).unwrap();
            let error = error_of(text);
            let line = before.matches('\n').count() + 1;
            assert!(error.starts_with(&format!("t.yaml:{line}:")), "{before}: {error}");
            assert!(error.contains("more than 64 brackets"), "{before}: {error}");
        }
    }
    let at = error_of(&format!("backends: {}[", most()));
    assert!(at.starts_with("t.yaml:1:75: "), "{at}");
    assert_eq!(too_deep(&most()), None);
}

/// Catches: a file that is refused for what is no bracket of YAML.
#[test]
fn what_only_looks_like_brackets_may_lie_as_deep_as_it_likes() {
    let many = "[{".repeat(CONFIG_BRACKETS_OPEN_MAX);
    for around in [
        "a: '@'",
        "a: \"@\\\"@\"",
        "a: x@",
        "a: it's\n  @\n\n  @",
        "# @",
        "a: b # @",
        "a: |\n  @\n\n  '@\nb: |2\n    @",
        "a:\n- >-\n  @\n- b: |\n    @",
        "&x a: |\n  @",
        "- - |\n   @",
        "a: [b, '@', \"@\", c # @\n]",
        "--- |\n @",
        "a: [\n\n x: y, {b: c},\n]\nd: x@",
        "%YAML 1.1\n---\na: 'x\n@'",
    ] {
        let text = around.replace('@', &many);
        assert!(serde_yaml::from_str::<serde_yaml::Value>(&text).is_ok(), "{around}");
        assert_eq!(too_deep(&text), None, "{around}");
    }
    // Many lines take the time of many lines.
    for text in ["a: b", "a: |\n x", "a: [b", "#"] {
        assert_eq!(too_deep(&format!("{text}{}", "\n".repeat(CONFIG_FILE_BYTES_MAX))), None);
    }
}

/// Catches: a document of those that we know that comes near the limit, or that ends inside of
/// something that the scan believes to be open.
#[test]
fn real_files_are_far_from_the_limit() {
    let folder = std::fs::read_dir("tests/fixtures/config").unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.push("config.yaml.example".into());
    assert!(files.len() > 18);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(too_deep(&text), None);
        assert!(!is_inside(&format!("{text}\nlast: ")), "{}", file.display());
        assert_eq!(too_deep(&example::uncommented()), None);
    }
}

fn hard_text() -> impl Strategy<Value = String> {
    "([\\[\\]{}'\"#|>:,?&*! \n-]|a){0,12}"
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![hard_text().prop_map(Value::from), Just(Value::Null)];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(hard_text(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Both forms in which values are written close what they open, whatever their texts hold.
    #[test]
    fn what_is_written_whole_leaves_nothing_open(value in value()) {
        let json = format!("a: {value}\nb: ");
        prop_assert!(!is_inside(&json), "{}", json);
        prop_assert!(is_inside(&(json + "[")));
        let indented = format!("a: {}\nb: ", serde_json::to_string_pretty(&value).unwrap());
        prop_assert!(!is_inside(&indented), "{}", indented);
        let map = serde_json::json!({"a": value, "b": null});
        let yaml = serde_yaml::to_string(&map).unwrap();
        let yaml = format!("{yaml}c: ");
        prop_assert!(!is_inside(&yaml), "{}", yaml);
        prop_assert!(is_inside(&(yaml + "[")));
    }

    /// A text that the parser takes closes what it opens, in the eyes of the scan too.
    #[test]
    fn a_text_that_loads_leaves_nothing_open(
        text in "([a-z]{1,4}: |- |\\[|\\{|&a |!t |<<: |\"|'|#| \\||>-|, |:|\n  |\n    |\n|x|\\}|\\]){0,30}"
    ) {
        let whole = format!("{text}\n---\n");
        let is_yaml = serde_yaml::from_str::<serde_yaml::Value>(&text).is_ok();
        prop_assert!(!is_yaml || !is_inside(&whole), "{}", whole);
    }
}
