use super::*;
use crate::config::load_text;
use crate::config::plan::{Engine, EngineMetrics, SourceKind};
use proptest::prelude::*;

fn routing(text: &str) -> Routing {
    load_text("t", text, &|_| None).unwrap().plan.routing
}

fn check(rows: FoundRows) -> FoundBackends {
    let routing = routing("routing: {timeout: 77s}");
    rows.check((&routing, &CommonParts::default()), &|name| (name == "KEY").then(|| "k1".into()))
}

fn json(text: &str) -> FoundBackends {
    check(FoundRows::of_json(text.as_bytes()).unwrap())
}

fn names(found: &FoundBackends) -> Vec<&str> {
    found.backends.iter().map(|backend| backend.name.as_str()).collect()
}

/// Catches: a shape of answer that is documented and not read, a default that is not inherited,
/// and a set that is another one because its order is.
#[test]
fn each_documented_shape_is_read() {
    let rows = r#"[{"name":"b","url":"http://b:1","weight":3,"id":7,"gpu":{"x":[1]}},
                   {"name":"a","url":"http://a:1","weight":null,"status":"Active"}]"#;
    let plain = json(rows);
    assert_eq!((names(&plain), plain.faults.len(), plain.disabled), (vec!["a", "b"], 0, 0));
    assert_eq!((plain.backends[0].weight, plain.backends[1].weight), (1, 3));
    assert_eq!(plain.backends[0].first_byte_timeout.as_secs(), 77);
    for key in LISTS {
        assert_eq!(json(&format!("{{\"page\":1,\"{key}\":{rows}}}")), plain);
    }
    let yaml = "- {name: b, url: 'http://b:1', weight: 3}\n- {id: a, url: 'http://a:1'}\n";
    for text in [yaml.to_owned(), format!("backends:\n{yaml}")] {
        assert_eq!(check(FoundRows::of_file(text.into_bytes()).unwrap()), plain);
    }
    assert_eq!(FoundRows::of_json(b"[]").unwrap().count(), 0);
    assert_eq!(FoundRows::of_file(b"# nothing\n".to_vec()).unwrap().count(), 0);
}

/// Catches: one bad row that takes the others with it, or that is left out without a word.
#[test]
fn a_bad_row_is_named_and_the_rest_applies() {
    let found = json(
        r#"{"backends":[{"name":"good","url":"http://g:1"},
            {"name":"heavy","url":"http://h:1","weight":99999},
            {"name":"no-url"}, "http://bare:1", 7, null,
            {"name":"odd","url":"ftp://x"},
            {"name":"a\nb","url":"http://n:1"},
            {"name":"file","url":"unix:/run/docker.sock"},
            {"name":"env","url":"http://${KEY}"},
            {"name":"off","url":"http://o:1","status":"disabled"},
            {"name":"list","url":"http://l:1","status":["enabled"]}]}"#,
    );
    // A service is not given variables: this check stands for one that was.
    assert_eq!(names(&found), ["env", "good"]);
    assert_eq!(found.disabled, 1);
    let faults = found.faults.join("\n");
    for part in [
        "backends[1].weight (`heavy`): ",
        "backends[2].url (`no-url`): is required",
        "backends[3]: is no section",
        "backends[4]: is no section",
        "backends[5]: is no section",
        "backends[6].url (`odd`): ",
        "backends[7] (`a\\nb`): name: ",
        "backends[8] (`file`): url: a service may not",
        "backends[11] (`list`): status: ",
    ] {
        assert!(faults.contains(part), "{part}\n{faults}");
    }
    assert_eq!(found.faults.len(), 9, "{faults}");
}

/// Catches: a service that has the environment of this process sent to itself.
#[test]
fn a_service_learns_no_variable() {
    let rows = FoundRows::of_json(br#"[{"name":"x","url":"http://evil/${KEY}"}]"#).unwrap();
    let found = rows.check((&routing(""), &CommonParts::default()), &|_| None);
    assert!(found.backends.is_empty() && found.faults[0].contains("KEY is not set"), "{found:?}");
    let file = b"[{url: 'http://a:1', api_key: '${KEY}'}]".to_vec();
    let ours = check(FoundRows::of_file(file).unwrap());
    assert_eq!(ours.backends[0].headers[0].1.reveal(), "Bearer k1");
}

/// Catches: a source whose engines cannot be asked for lack of a key or an authority, and one that
/// overrides what a row says.
#[test]
fn what_a_source_has_in_common_fills_what_rows_leave_open() {
    let text = "discovery: {enabled: true, sources: [{type: file, file: {path: /x}, common: \
                {api_key: k, headers: {X-A: '1'}, ca_file: /ca}}]}";
    let plan = load_text("t", text, &|_| None).unwrap().plan;
    let common = &plan.discovery.as_ref().unwrap().sources[0].common;
    let rows = "[{name: a, url: 'https://a', headers: {x-a: '2'}, tls: {ca_file: /own}}, \
                 {name: b, url: 'https://b', api_key: own}, {name: c, url: 'http://c'}]";
    let rows = FoundRows::of_file(rows.as_bytes().to_vec()).unwrap();
    let found = rows.check((&plan.routing, common), &|_| None).backends;
    let parts = |backend: &Backend| {
        let mut fields: Vec<String> =
            backend.headers.iter().map(|(k, v)| format!("{k}={}", v.reveal())).collect();
        fields.sort();
        let ca = backend.tls.as_ref().and_then(|tls| tls.ca_file.as_ref());
        format!("{} {}", fields.join(" "), ca.map_or("-".into(), |ca| ca.display().to_string()))
    };
    assert_eq!(
        found.iter().map(parts).collect::<Vec<_>>(),
        [
            "Authorization=Bearer k x-a=2 /own",
            "Authorization=Bearer own X-A=1 /ca",
            "Authorization=Bearer k X-A=1 -"
        ]
    );
}

/// Catches: an answer without end that is taken, and a text that is no list taken for an empty one.
#[test]
fn what_is_no_list_is_refused() {
    for text in ["", "{}", "7", "{\"backends\":{}}", "{\"backends\":null}", "<html>", "[{]"] {
        assert!(FoundRows::of_json(text.as_bytes()).is_err(), "{text}");
    }
    for text in ["a: b", "backends: 7", "just words", "- {url: 'http://half", "[[[[", "\u{0}"] {
        assert!(FoundRows::of_file(text.as_bytes().to_vec()).is_err(), "{text}");
    }
    let rows = |n: usize| format!("[{}{{}}]", "{},".repeat(n - 1));
    assert!(FoundRows::of_json(rows(DISCOVERY_BACKENDS_MAX).as_bytes()).is_ok());
    let many = rows(DISCOVERY_BACKENDS_MAX + 1);
    assert!(FoundRows::of_json(many.as_bytes()).unwrap_err().contains("1025 backends"));
    assert!(FoundRows::of_file(many.into_bytes()).is_err());
    let huge = format!("[{}]", " ".repeat(DISCOVERY_ANSWER_BYTES_MAX));
    assert!(FoundRows::of_json(huge.as_bytes()).unwrap_err().contains("more than"));
    assert!(FoundRows::of_file(huge.into_bytes()).is_err());
    assert!(FoundRows::of_json("[".repeat(100_000).as_bytes()).is_err());
}

fn at(name: &str, url: &str) -> Backend {
    let row = serde_json::json!({ "name": name, "url": url });
    check(FoundRows::of_values(vec![row]).unwrap()).backends.remove(0)
}

/// Catches: an engine that gets twice its share because two sources name it, and two engines whose
/// numbers are one because their names are.
#[test]
fn the_first_of_a_place_counts_and_the_second_of_a_name_gets_another() {
    let configured = [at("a", "http://one:8000")];
    let found = [
        at("b", "http://ONE:8000/"),
        at("a", "http://two:8000"),
        at("a", "http://two:8000/base"),
        at("a", "https://one:8000"),
        at("c", "http://[::1]:80"),
        at("d", "http://[::1]"),
    ];
    let (all, beyond) = merge(&configured, found);
    let names: Vec<&str> = all.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!(names, ["a", "a/two:8000", "a/two:8000#2", "a/one:8000", "c"]);
    assert_eq!(beyond, 0);
    let many = (0..DISCOVERY_BACKENDS_MAX + 3).map(|n| Backend::sample(&format!("h{n}")));
    let (all, beyond) = merge(&configured, many);
    assert_eq!((all.len(), beyond), (1 + DISCOVERY_BACKENDS_MAX, 3));
}

proptest! {
    #[test]
    fn any_bytes_give_rows_or_a_line(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = FoundRows::of_json(&bytes).map(check);
        let _ = FoundRows::of_file(bytes).map(check);
    }

    #[test]
    fn anything_that_looks_like_rows_gives_rows_or_a_line(
        text in "[\\[{](\"?(name|id|url|weight|status|models|backends)\"?: ?\
                 (\"http://[a-z]{1,3}:[0-9]{1,5}\"|[0-9]{1,6}|null|true|\\[\\]|\\{\\}|enabled)[,}{\\] ]{0,3}){0,6}"
    ) {
        let _ = FoundRows::of_json(text.as_bytes()).map(check);
        let _ = FoundRows::of_file(text.into_bytes()).map(check);
    }

    /// Whatever sources name: names and places are unique, and those of the file come first.
    #[test]
    fn what_is_merged_is_unique(picks in proptest::collection::vec((0usize..4, 0usize..6), 0..20)) {
        let all: Vec<Backend> = picks
            .iter()
            .map(|(name, place)| {
                let mut backend = Backend::sample(&format!("h{place}"));
                backend.name = format!("n{name}");
                backend
            })
            .collect();
        let (configured, _) = merge(&[], all.iter().take(3).cloned());
        let (merged, _) = merge(&configured, all.iter().cloned());
        prop_assert_eq!(&merged[..configured.len()], &configured[..]);
        let names: HashSet<&String> = merged.iter().map(|backend| &backend.name).collect();
        let places: HashSet<String> = merged.iter().map(place).collect();
        prop_assert_eq!((names.len(), places.len()), (merged.len(), merged.len()));
        let wanted: HashSet<String> = all.iter().map(place).collect();
        prop_assert_eq!(places, wanted);
    }
}

/// Catches: a source that gives workers so many groups of backends to look through that they stand
/// still.
#[test]
fn the_models_of_what_is_found_are_bounded() {
    use crate::config::plan::ModelPattern;
    let serving = |n: usize, models: std::ops::Range<usize>| Backend {
        models: models.map(|m| ModelPattern::parse(&format!("m{m}")).unwrap()).collect(),
        ..Backend::sample(&format!("engine-{n}"))
    };
    let half = DISCOVERY_MODELS_MAX / 2;
    let found = [
        serving(0, 0..half),
        serving(1, 0..half),
        serving(2, half..2 * DISCOVERY_MODELS_MAX),
        serving(3, half..DISCOVERY_MODELS_MAX),
        serving(4, DISCOVERY_MODELS_MAX..DISCOVERY_MODELS_MAX + 1),
    ];
    let (all, beyond) = merge(&[], found);
    let names: Vec<_> = all.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!((names, beyond), (vec!["engine-0", "engine-1", "engine-3"], 2));
}

/// Catches: a row that says that its engine is not to be read, or limited, and is all the same.
#[test]
fn a_row_may_say_what_is_the_default_anyhow() {
    let text = "discovery: {enabled: true, sources: [{type: file, file: {path: /x}, common: \
                {engine: vllm, metrics: auto, max_concurrent: 9, slow_start: 8s}}]}";
    let plan = load_text("t", text, &|_| None).unwrap().plan;
    let common = &plan.discovery.as_ref().unwrap().sources[0].common;
    let rows = "[{name: a, url: 'http://a', engine: auto, metrics: off, max_concurrent: 0, \
                 slow_start: 0s}, {name: b, url: 'http://b', engine: null}]";
    let rows = FoundRows::of_file(rows.as_bytes().to_vec()).unwrap();
    let found = rows.check((&plan.routing, common), &|_| None);
    assert!(found.faults.is_empty(), "{:?}", found.faults);
    let parts = |backend: &Backend| {
        let (engine, metrics) = (backend.engine, backend.metrics.clone());
        (engine, metrics, backend.max_concurrent, backend.slow_start.as_secs())
    };
    let parts: Vec<_> = found.backends.iter().map(parts).collect();
    let own = (Engine::Auto, EngineMetrics::Off, 0, 0);
    assert_eq!(parts, [own, (Engine::Vllm, EngineMetrics::Auto, 9, 8)]);
    let text = "discovery: {enabled: true, sources: [{type: static, common: {metrics: auto}, \
                static: {backends: [{url: 'http://a', metrics: off}, {url: 'http://b'}]}}]}";
    let plan = load_text("t", text, &|_| None).unwrap().plan;
    let SourceKind::Static { list } = &plan.discovery.unwrap().sources[0].kind else { panic!() };
    let metrics: Vec<_> = list.backends.iter().map(|backend| backend.metrics.clone()).collect();
    assert_eq!(metrics, [EngineMetrics::Off, EngineMetrics::Auto]);
}
