//! Nothing that is in a file makes the loader panic, and what it accepts prints and loads again.

use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;

/// A YAML value of few and near-right keys, so that readers are reached.
fn value() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..100_000).prop_map(Value::from),
        any::<f64>().prop_map(|f| serde_json::json!(f)),
        "[a-z0-9:/*.${}\\-]{0,12}".prop_map(Value::from),
        Just(Value::from("http://a:1/b")),
        Just(Value::from("redis")),
        Just(Value::from("10s")),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        let keys = prop_oneof![4 => prop::sample::select(KEYS.as_slice()), 1 => "[a-z_<]{1,6}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(keys, inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Every key of the example, by its last name. The strategy asks for them at each of its levels.
static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let known = load_with_keys("t", &example::uncommented(), &env).unwrap().1;
    let last = known.iter().filter_map(|path| path.rsplit('.').next());
    last.map(str::to_owned).collect()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = load_text("t.yaml", &text, &env);
    }

    #[test]
    fn random_lines_get_an_answer(text in "([a-z]{1,4}: |- |\\[|\\{|&a |\\*a|<<: |\"|'|#|, |\n  |\n|x|\\}|\\]){0,40}") {
        let _ = load_text("t.yaml", &text, &env);
    }

    #[test]
    fn random_configurations_get_an_answer(value in value()) {
        let text = value.to_string();
        match load_text("t.yaml", &text, &env) {
            Ok(Loaded { plan, .. }) => {
                let printed = super::super::print(&plan).unwrap();
                if !printed.contains("***") {
                    prop_assert_eq!(print::meant(&plan, &printed).plan, plan);
                }
            }
            Err(report) => {
                prop_assert!(report.has_errors());
                let told = |f: &Finding| f.position.is_some() || f.class == Class::Warning;
                prop_assert!(report.findings.iter().all(told), "{}", report);
            }
        }
    }

    #[test]
    fn a_broken_example_gets_an_answer(at in 0usize..12_000, with in "[ -~\n]{0,3}", cut in 0usize..8) {
        let mut text = example::uncommented();
        let floor = |text: &str, mut at: usize| {
            at = at.min(text.len());
            while !text.is_char_boundary(at) { at -= 1; }
            at
        };
        let start = floor(&text, at);
        let end = floor(&text, start + cut).max(start);
        text.replace_range(start..end, &with);
        let _ = load_text("t.yaml", &text, &env);
    }
}
