//! The conventions of this repository, kept by a program so that reviews are about ideas:
//! who may use whom, how long things may be, which calls are banned where.
//!
//! Every rule has a test below it that shows it failing on a bad sample.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops loudly")]

#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use names::Names;
use source::Source;
use std::path::{Path, PathBuf};

/// THE TABLE: a room, and what it may use of ours. Data flows down the list. `main` may use all.
const LAYERS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("http", &["base"]),
    ("llm", &["base"]),
    ("config", &["base", "http"]),
    ("rt", &["base"]),
    ("keys", &["base", "config::plan"]),
    ("script", &["base", "config::plan"]),
    ("state", &["base", "config::plan", "keys", "rt::sys::mapping", "script::ScriptText"]),
    ("store", &["base", "config::plan"]),
    ("usage", &["base", "config::plan", "llm", "rt::sys::mapping", "store"]),
    (
        "proxy",
        &[
            "base",
            "http",
            "llm",
            "keys",
            "script",
            "rt",
            "config::plan",
            "state",
            "usage::record",
            "usage::outbox",
            "usage::access",
            "usage::spans",
            "usage::flight",
            "usage::key_form",
            "usage::unpacker",
        ],
    ),
    (
        "control",
        &["base", "http", "llm", "keys", "script", "config", "state", "store", "usage", "rt"],
    ),
    ("cli", &["base", "config"]),
    ("lib", &[]),
];

/// The steps of a request. They do not know each other: what one returns is what the next takes.
const STEPS: &[&str] = &["admit", "route", "upstream", "relay"];

/// The only files of `proxy` that call steps: the room itself, the story and its end, and the
/// worker with its views, which makes what a step keeps between requests (pools, cursors).
const STEP_CALLERS: &[&str] = &["connection", "settle", "worker", "view", "upstreams"];

/// The worker, and what it lends to its connections as a whole.
const WORKERS_OWN: &[&str] = &["worker", "shared", "pass", "connection"];

#[test]
fn the_tree_is_tidy() {
    let mut faults = Vec::new();
    let (mut long, mut names) = (Vec::new(), Names::default());
    for (path, text) in tree(Path::new(env!("CARGO_MANIFEST_DIR"))) {
        faults.extend(rules::machine_paths(&path, &text));
        if !path.ends_with(".rs") {
            continue;
        }
        let source = Source::new(&path, &text);
        names.read(&source);
        for rule in RULES {
            faults.extend(rule(&source));
        }
        if text.lines().count() > rules::FILE_LINES_AIM {
            long.push(format!("{path}: {} lines", text.lines().count()));
        }
    }
    faults.extend(names.faults());
    if !long.is_empty() {
        println!("over the aim of {} lines:\n{}", rules::FILE_LINES_AIM, long.join("\n"));
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

const RULES: &[fn(&Source) -> Vec<String>] =
    &[layers, steps, rules::banned_words, rules::size, rules::room_header, rules::unsafe_is_denied];

/// A room uses only what the table gives it.
fn layers(source: &Source) -> Vec<String> {
    let module = source.module().unwrap_or_default();
    let Some(room) = module.first().filter(|room| **room != "main") else {
        return Vec::new();
    };
    let Some((_, may_use)) = LAYERS.iter().find(|(name, _)| name == room) else {
        return vec![format!("{}:1: the room `{room}` is not in the layer table", source.path)];
    };
    let fine = |path: &[String]| {
        let path = path.join("::");
        std::iter::once(room)
            .chain(may_use.iter())
            .any(|ours| path == *ours || path.starts_with(&format!("{ours}::")))
    };
    source
        .own_paths()
        .into_iter()
        .filter(|(_, path)| !fine(path))
        .map(|(line, path)| {
            format!("{}:{line}: `{room}` may not use `{}`", source.path, path.join("::"))
        })
        .collect()
}

/// Inside `proxy`, a step is called by the story only, and knows nothing of the worker: it is given
/// what it needs.
fn steps(source: &Source) -> Vec<String> {
    let module = source.module().unwrap_or_default();
    let (Some(&"proxy"), Some(here)) = (module.first(), module.get(1)) else {
        return Vec::new();
    };
    if STEP_CALLERS.contains(here) {
        return Vec::new();
    }
    let other_step = |path: &[String]| {
        let step = path.get(1).map(String::as_str).unwrap_or_default();
        let is_forbidden = STEPS.contains(&step)
            || step == "*"
            || STEPS.contains(here) && WORKERS_OWN.contains(&step);
        path.first().is_some_and(|room| room == "proxy") && step != *here && is_forbidden
    };
    source
        .own_paths()
        .into_iter()
        .filter(|(_, path)| other_step(path))
        .map(|(line, path)| {
            format!("{}:{line}: `{here}` may not use the step `{}`", source.path, path.join("::"))
        })
        .collect()
}

/// Every text file of the repository: (path from its root, text). Build output is left out.
fn tree(root: &Path) -> Vec<(String, String)> {
    const SKIPPED: &[&str] = &["target", ".git", "node_modules", "corpus", "artifacts"];
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                let path = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                files.push((path, text));
            }
        }
    }
    files.sort();
    assert!(files.iter().any(|(path, _)| path == "src/lib.rs"), "the tree was not found");
    files
}

mod each_rule_can_fail {
    use super::*;

    /// Asserts that `rule` finds exactly `count` faults in a file.
    fn finds(rule: impl Fn(&Source) -> Vec<String>, path: &str, text: &str, count: usize) {
        let faults = rule(&Source::new(path, text));
        assert_eq!(faults.len(), count, "{path}: {text}\n{faults:#?}");
    }

    #[test]
    fn a_use_against_the_table() {
        for (path, text, count) in [
            ("src/http/head.rs", "use crate::base::limits;", 0),
            ("src/http/head.rs", "use crate::proxy::worker;", 1),
            ("src/http/head.rs", "use crate::{base::id, rt, llm::{sse, usage as u}};", 3),
            ("src/http/head.rs", "fn f() { let x = crate::state::board::Board::new(); }", 1),
            ("src/http/head.rs", "use super::super::state::board;", 1),
            ("src/http/head.rs", "use super::{framing, super::rt};", 1),
            ("src/http/head/field.rs", "use super::super::state;", 0),
            ("src/http/mod.rs", "use super::config;", 1),
            ("src/http/head.rs", "use crate::*;", 1),
            ("src/http/head.rs", "use llmproxy::control;", 1),
            ("src/state/board.rs", "use crate::config::plan::Plan;", 0),
            ("src/state/board.rs", "use crate::config::{plan::Plan, raw};", 1),
            ("src/proxy/a.rs", "use crate::usage::{record::R, outbox, deliver};", 1),
            ("src/proxy/a.rs", "use crate::control::health;", 1),
            ("src/control/a.rs", "use crate::proxy::worker;", 1),
            ("src/base/id.rs", "use crate::http::head;", 1),
            ("src/cache/mod.rs", "", 1),
            ("src/main.rs", "use llmproxy::{proxy, control};", 0),
            // Words in comments, strings and tests are not uses.
            (
                "src/http/a.rs",
                "// crate::rt\n/* crate::rt /* */ */ const A: &str = \"crate::rt\";",
                0,
            ),
            ("src/http/a.rs", "const A: char = '\"'; use crate::rt; const B: char = '\\'';", 1),
            ("src/http/a.rs", "const A: &str = r#\"\"crate::rt\"#; use crate::rt;", 1),
            ("src/http/a.rs", "#[cfg(test)]\nmod tests { use crate::rt; fn f() {} }", 0),
            ("src/http/a.rs", "#[cfg(test)] use crate::rt;\nuse crate::rt;", 1),
            ("src/http/a.rs", "#[cfg(not(test))] use crate::rt;", 1),
            ("src/http/a.rs", "fn f<'a>(x: &'a str) { crate::rt::now::<'a>() }", 1),
        ] {
            finds(layers, path, text, count);
        }
    }

    #[test]
    fn a_step_that_knows_another_step() {
        for (path, text, count) in [
            ("src/proxy/relay/tap.rs", "use crate::proxy::relay::copy;", 0),
            ("src/proxy/relay/tap.rs", "use crate::proxy::route;", 1),
            ("src/proxy/relay/tap.rs", "use super::super::upstream::Lease;", 1),
            ("src/proxy/receive.rs", "use super::admit::Pass;", 1),
            ("src/proxy/receive.rs", "use super::*;", 1),
            ("src/proxy/receive.rs", "use super::answer;", 0),
            ("src/proxy/relay/copy.rs", "use crate::proxy::shelf::Shelf;", 0),
            ("src/proxy/relay/copy.rs", "use crate::proxy::worker::Worker;", 1),
            ("src/proxy/admit/path.rs", "use crate::proxy::{shared, pass};", 2),
            ("src/proxy/settle.rs", "use super::pass::Pass;", 0),
            ("src/proxy/connection/mod.rs", "use super::{admit, route, upstream, relay};", 0),
            ("src/proxy/connection/tries.rs", "use crate::proxy::{admit, route, relay};", 0),
            ("src/control/health.rs", "use crate::proxy::route;", 0),
        ] {
            finds(steps, path, text, count);
        }
    }

    #[test]
    fn a_name_of_two_types() {
        let faults = |files: &[(&str, &str)]| {
            let mut names = Names::default();
            files.iter().for_each(|(path, text)| names.read(&Source::new(path, text)));
            names.faults()
        };
        let ours = ("src/http/head.rs", "/// A.\npub struct Head<'a>(&'a str);\nstruct Own;");
        assert!(!faults(&[ours, ("src/http/a.rs", "pub enum Head {}")]).is_empty(), "one room");
        let pair = |room: &str| {
            let files = ["a", "b"].map(|file| format!("src/{room}/{file}.rs"));
            faults(&files.each_ref().map(|path| (path.as_str(), "pub enum Phase {}")))
        };
        assert!(pair("state").is_empty() && !pair("http").is_empty(), "a pair that is known");
        assert!(faults(&[ours, ("src/llm/a.rs", "pub enum Own {}")]).is_empty(), "one is private");
        assert!(faults(&[ours, ("src/llm/a.rs", "pub enum HeadOf {}")]).is_empty());
        let test = "#[cfg(test)]\nmod tests {\n pub struct Head;\n}";
        assert!(faults(&[ours, ("src/llm/a.rs", test)]).is_empty(), "a test's own");
        let found = faults(&[ours, ("src/llm/a.rs", "pub enum Head {}")]);
        let wanted = "several types have the name `Head`: src/http/head.rs:2, src/llm/a.rs:1";
        assert_eq!(found, [wanted]);
    }

    #[test]
    fn a_banned_word() {
        let test = |body: &str| format!("#[cfg(test)]\nmod tests {{ {body} }}");
        for (path, text, count) in [
            ("src/rt/a.rs", "fn f() { todo!() }".to_owned(), 1),
            ("src/rt/a.rs", test("fn f() { todo!() }"), 1),
            ("tests/e2e/main.rs", "#[ignore] fn f() {}".to_owned(), 1),
            ("src/rt/a.rs", "println!();".to_owned(), 1),
            ("src/rt/a.rs", test("println!();"), 0),
            ("src/main.rs", "println!();".to_owned(), 0),
            ("src/proxy/a.rs", "unsafe { f() }".to_owned(), 1),
            ("src/proxy/a.rs", "#![deny(unsafe_code)] // unsafe".to_owned(), 0),
            ("src/rt/a.rs", "unsafe { f() }".to_owned(), 1),
            ("src/rt/a.rs", test("unsafe { f() }"), 1),
            ("src/rt/a.rs", "#![allow(unsafe_code, reason = \"\")]".to_owned(), 1),
            ("src/rt/sys/descriptor.rs", "unsafe { f() }".to_owned(), 0),
            ("src/http/a.rs", "a.unwrap(); b.expect(\"why\"); c.expect(b':')?;".to_owned(), 2),
            ("src/http/a.rs", test("a.unwrap();"), 0),
            ("src/control/a.rs", "std::time::SystemTime::now();".to_owned(), 1),
            ("src/base/clock.rs", "SystemTime::now();".to_owned(), 0),
            ("src/http/a.rs", "Instant::now();".to_owned(), 1),
            ("src/proxy/a.rs", "use std::sync::{Arc, Mutex}; std::fs::read(p);".to_owned(), 3),
            ("src/control/a.rs", "use std::sync::Mutex;".to_owned(), 0),
            ("src/proxy/a.rs", "monoio::spawn(f);".to_owned(), 1),
            ("src/proxy/a.rs", "let offs = xfs::y;".to_owned(), 0),
        ] {
            finds(rules::banned_words, path, &text, count);
        }
    }

    #[test]
    fn a_file_or_a_line_that_is_too_long() {
        let wide = |n: usize| "x".repeat(n);
        for (text, count) in [
            ("\n".repeat(rules::FILE_LINES_MAX), 0),
            ("\n".repeat(rules::FILE_LINES_MAX + 1), 1),
            (wide(rules::LINE_CHARS_MAX), 0),
            (wide(rules::LINE_CHARS_MAX + 1), 1),
            (format!("// {}", wide(rules::LINE_CHARS_MAX)), 1),
            (format!("// see https://{}", wide(rules::LINE_CHARS_MAX)), 0),
            (format!("let a = \"{}\";", wide(rules::LINE_CHARS_MAX)), 0),
        ] {
            finds(rules::size, "src/a.rs", &text, count);
        }
    }

    #[test]
    fn a_room_without_its_header() {
        let whole = "//! *Takes:* a. *Gives:* b.\n//! *Runs on:* c. *May:* d. *Never:* e.\n";
        finds(rules::room_header, "src/a/mod.rs", whole, 0);
        finds(rules::room_header, "src/a/mod.rs", &whole.replace("*Never", "Never"), 1);
        finds(rules::room_header, "src/a/mod.rs", "//! (under construction)", 1);
        finds(rules::room_header, "src/a/b.rs", "//! A file of a room.", 0);
    }

    #[test]
    fn a_root_that_lets_unsafe_in() {
        finds(rules::unsafe_is_denied, "src/lib.rs", "#![deny(unsafe_code)]", 0);
        finds(rules::unsafe_is_denied, "src/lib.rs", "// #![deny(unsafe_code)]", 1);
        finds(rules::unsafe_is_denied, "src/main.rs", "fn main() {}", 1);
    }

    #[test]
    fn a_path_of_one_machine() {
        let bad = format!("see /{}/shared/x", "work");
        assert_eq!(rules::machine_paths("README.md", &bad).len(), 1);
        assert_eq!(rules::machine_paths("README.md", "see docs/works/x").len(), 0);
    }

    #[test]
    fn the_tree_is_read() {
        let files = tree(Path::new(env!("CARGO_MANIFEST_DIR")));
        for path in ["README.md", "tests/tidy/source.rs", "src/base/limits.rs", ".ci/run"] {
            assert!(files.iter().any(|(p, _)| p == path), "{path} was not looked at");
        }
    }
}
