//! The command line: what it prints, how it exits, and that it never starts half-understood.

use crate::harness::process::Ran;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::services::free_port;
use crate::harness::tls::Authority;
use crate::harness::{Backend, Config, Engine, Proxy, Webhook};
use rustix::process::Signal;
use std::net::TcpListener;

const CHAT: &str = r#"{"model":"m","messages":[]}"#;
const SOUND: &str = "backends:\n  - {url: \"http://127.0.0.1:8001\"}\n";

/// Runs `llmproxy ARGS… FILE` on a file with this text. The path is `FILE` in what it says.
fn on_file(args: &[&str], text: &str) -> Ran {
    let scratch = Scratch::new();
    let path = scratch.write("config.yaml", text).to_string_lossy().into_owned();
    let mut ran = llmproxy(&[args, &[path.as_str()]].concat());
    ran.stdout = ran.stdout.replace(&path, "FILE");
    ran.stderr = ran.stderr.replace(&path, "FILE");
    ran
}

/// Catches: a version or a help that is missing, goes to the wrong stream, or starts a server.
#[test]
fn version_and_help_are_printed() {
    let version = llmproxy(&["--version"]);
    assert_eq!(version.code, Some(0));
    assert_eq!(version.stdout, format!("llmproxy {}\n", env!("CARGO_PKG_VERSION")));
    let help = llmproxy(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    for word in ["--config", "--backend", "--strict", "check", "config.yaml", "Exit codes"] {
        assert!(help.stdout.contains(word), "{word}: {}", help.stdout);
    }
    let check = llmproxy(&["check", "--help"]);
    assert_eq!(check.code, Some(0));
    assert!(check.stdout.contains("--strict"), "{}", check.stdout);
}

/// Catches: a mistyped command line that is half understood.
#[test]
fn a_wrong_command_line_is_refused() {
    for args in [
        &["--confg", "x"][..],
        &["start"],
        &["check", "a", "b"],
        &["--config"],
        &["--config", "a.yaml", "--backend", "http://a:1"],
        &["--listen", ":1"],
    ] {
        let ran = llmproxy(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert_eq!(ran.stdout, "", "{args:?}");
        assert!(ran.stderr.contains("error:"), "{args:?}: {}", ran.stderr);
    }
}

/// Catches: a sound file that is refused, a plan that is not printed, or secrets in it.
#[test]
fn check_prints_the_plan_of_a_sound_file_with_secrets_masked() {
    let text =
        "backends:\n  - {url: \"http://gpu-1:8000\", weight: 3, api_key: sk-verysecret,\n     \
                headers: {X-Token: verysecret}}\n\
                usage: {reporters: [{name: b, type: webhook,\n  \
                webhook: {url: \"https://b.test/x?token=verysecret\"}}]}\n";
    let ran = on_file(&["check"], text);
    let table = "any model  gpu-1:8000 (3)\n";
    assert_eq!((ran.code, &*ran.stdout, &*ran.stderr), (Some(0), table, "FILE: valid\n"));
    let ran = on_file(&["check", "--print"], text);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for word in ["gpu-1:8000", "weight: 3", "/v1/chat/completions", "header_timeout"] {
        assert!(ran.stdout.contains(word), "{word}: {}", ran.stdout);
    }
    assert!(!format!("{ran:?}").contains("verysecret"), "{}", ran.stdout);
    assert_eq!(on_file(&["check", "--strict"], text).code, Some(0));
}

/// Catches: the plan that `check` prints and that does not mean the same when it is loaded again.
#[test]
fn a_printed_plan_is_a_configuration() {
    let first = on_file(&["check", "--print"], SOUND);
    let again = on_file(&["check", "--strict", "--print"], &first.stdout);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(again.stdout, first.stdout);
}

/// Catches: a mistake without its place, one that hides the next one, a file with a mistake that
/// is started all the same.
#[test]
fn mistakes_are_shown_with_their_places() {
    let text = "server:\n  header_timeout: soon\nbackends:\n  - {url: \"ftp://x\", weight: many}\n";
    for args in [&["check"][..], &["--config"]] {
        let ran = on_file(args, text);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert_eq!(ran.stdout, "", "{args:?}");
        for (place, key) in [
            ("FILE:2:19: error: ", "server.header_timeout"),
            ("FILE:4:11: error: ", "backends[0].url"),
            ("FILE:4:30: error: ", "backends[0].weight"),
        ] {
            let has = |line: &str| line.starts_with(place) && line.contains(key);
            assert!(ran.stderr.lines().any(has), "{place}{key}:\n{}", ran.stderr);
        }
    }
}

/// Catches: YAML that is none, or a file that is not there, that is not named with its place.
#[test]
fn an_unreadable_file_is_refused() {
    let ran = on_file(&["check"], "server:\n  listen: [\n");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.starts_with("FILE:"), "{}", ran.stderr);
    for args in [&["check", "/nonexistent/c.yaml"][..], &["--config", "/nonexistent/c.yaml"]] {
        let ran = llmproxy(args);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        let told = "/nonexistent/c.yaml: error: there is no such file";
        assert!(ran.stderr.lines().any(|line| line.starts_with(told)), "{}", ran.stderr);
    }
}

/// Catches: a misspelt key that is dropped without a word, or that `--strict` lets pass.
#[test]
fn an_unknown_key_is_a_warning_and_strictly_an_error() {
    let text = format!("{SOUND}server:\n  idle_timeot: 5s\n");
    let ran = on_file(&["check"], &text);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let warned = |line: &str| {
        line.starts_with("FILE:4:3: warning: server.idle_timeot") && line.contains("idle_timeout")
    };
    assert!(ran.stderr.lines().any(warned), "{}", ran.stderr);
    for args in [&["check", "--strict"][..], &["--strict", "--config"]] {
        let ran = on_file(args, &text);
        assert_eq!(ran.code, Some(1), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains("FILE:4:3: error: server.idle_timeot"), "{}", ran.stderr);
    }
}

/// Catches: two names of one setting that disagree, of which one silently wins.
#[test]
fn aliases_that_disagree_are_refused() {
    let text = format!("{SOUND}listen: \":8000\"\nserver: {{listen: \":9000\"}}\n");
    let ran = on_file(&["check"], &text);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let named = |line: &str| line.contains("listen") && line.contains("server.listen");
    assert!(ran.stderr.lines().any(named), "{}", ran.stderr);
}

/// Catches: a limit or a login that is configured and that nobody enforces: what is not built yet
/// loads, is listed, and refuses to start with one clear line each.
#[test]
fn what_is_not_built_refuses_to_start() {
    let section = "hooks: {on_request: {enabled: true, script: 'return {}'}}\n\
                   admin: {enabled: true, token: verysecret}\n";
    let text = format!("{SOUND}{section}");
    for args in [&["--config"][..], &["check"]] {
        let ran = on_file(args, &text);
        assert_eq!(ran.code, Some(1), "{args:?}: {ran:?}");
        let is_line = |line: &&str| line.starts_with("FILE: cannot start: ");
        let lines: Vec<&str> = ran.stderr.lines().filter(is_line).collect();
        assert_eq!(lines.len(), 1, "{}", ran.stderr);
        assert!(lines[0].contains("hooks") && lines[0].contains("not built yet"), "{}", lines[0]);
        assert!(!format!("{ran:?}").contains("verysecret"), "{ran:?}");
    }
    // Switched off, the same section is none.
    let off = format!("{SOUND}rate_limit: {{enabled: false}}\n");
    assert_eq!(on_file(&["check", "--strict"], &off).code, Some(0));
}

/// Catches: a section that protects, is not switched on, and a proxy that serves without it.
#[test]
fn a_protection_that_nobody_switched_on_never_starts() {
    for (section, word) in [
        ("server: {tls: {cert_file: a.pem, key_file: b.pem}}\n", "server.tls"),
        ("admin: {token: verysecret}\n", "admin"),
        ("api_keys: []\n", "api_keys"),
        ("auht: {storage: file}\n", "auht"),
    ] {
        let text = format!("{SOUND}{section}");
        for args in [&["--config"][..], &["--strict", "--config"], &["check"]] {
            let ran = on_file(args, &text);
            assert_eq!(ran.code, Some(2), "{args:?} {section}: {ran:?}");
            let told = |line: &str| line.contains(&format!(": error: {word}"));
            assert!(ran.stderr.lines().any(told), "{section}: {}", ran.stderr);
        }
    }
}

/// Catches: `--backend` that needs a file, takes only one URL, or does not serve.
#[test]
fn backends_can_be_named_without_a_file() {
    let (one, two) = (Engine::start(&[]), Engine::start(&[]));
    let (a, b) = (one.url(), two.url());
    let args = ["--backend", &a, "--backend", &b, "--listen", "127.0.0.1:0"];
    let proxy = Proxy::start_with(&args, Scratch::new());
    for _ in 0..8 {
        assert_eq!(proxy.post("/v1/chat/completions", CHAT).status(), 200);
    }
    // Each worker takes turns of its own.
    assert_eq!(one.posts().len() + two.posts().len(), 8);
    assert!(one.posts().len().min(two.posts().len()) > 0);
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(crate::harness::SOON).code(), Some(0));
    let bad = llmproxy(&["--backend", "not a url"]);
    assert_eq!(bad.code, Some(2), "{bad:?}");
}

/// Catches: an address in use that is shared with a stranger or reported as something else.
#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ran = llmproxy(&["--backend", "http://127.0.0.1:1", "--listen", &address]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let said = ran.stderr.lines().last().unwrap_or_default();
    assert!(said.starts_with("llmproxy: cannot start: ") && said.contains(&address), "{ran:?}");
    let both = format!("{}{}", ran.stdout, ran.stderr);
    assert_eq!(both.matches("cannot start").count(), 1, "once: {ran:?}");
}

/// Catches: a variable that is not replaced, or one that is missing and becomes nothing.
#[test]
fn variables_are_replaced() {
    let url = "backends:\n  - {url: \"http://${NO_SUCH_VARIABLE_9:-gpu-7}:8000\"}\n";
    let ran = on_file(&["check", "--print"], url);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("gpu-7:8000"), "{}", ran.stdout);
    let missing = "backends:\n  - {url: \"http://${NO_SUCH_VARIABLE_9}:8000\"}\n";
    let ran = on_file(&["check"], missing);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("NO_SUCH_VARIABLE_9"), "{}", ran.stderr);
}

/// Catches: warnings about a configuration that only `check` tells and a start does not.
#[test]
fn a_start_logs_the_warnings_of_its_configuration() {
    let proxy = Config::backend_at("http://127.0.0.1:1").section("nonsense: 1").start();
    proxy.await_event("a warning names the key", |event| {
        event["level"] == "WARN"
            && event["message"].as_str().is_some_and(|m| m.contains("nonsense"))
    });
}

/// Catches: a file that a start reads and `check` does not, so that it says "valid" of what does
/// not start.
#[test]
fn check_reads_the_files_that_a_start_reads() {
    let scratch = Scratch::new();
    let good = scratch.write("good.pem", Authority::new().pem());
    let empty = scratch.write("empty.pem", "");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let broken = scratch.write("broken.pem", broken);
    let spool = scratch.file("spool").display().to_string();
    let reporter = |kind: &str| {
        format!(
            "{SOUND}server: {{listen: '127.0.0.1:0'}}\n\
             usage: {{spool: {{dir: '{spool}'}}, reporters: [{{name: bill, type: {kind}}}]}}\n"
        )
    };
    let dsn = "postgres://u@127.0.0.1:1/d?sslmode=verify-full&sslrootcert=FILE";
    let keys = [
        (
            "backends: [{name: gpu, url: 'https://127.0.0.1:1', tls: {ca_file: 'FILE'}}]\n".into(),
            "ca_file",
            "gpu",
        ),
        (
            reporter("redis, redis: {addr: 'rediss://127.0.0.1:1', ca_file: 'FILE'}"),
            "ca_file",
            "bill",
        ),
        (
            reporter(&format!("database, database: {{driver: postgres, dsn: '{dsn}'}}")),
            "sslrootcert",
            "reporters[0]",
        ),
    ];
    for (text, key, whose) in keys {
        let of = |path: &std::path::Path| text.replace("FILE", &path.display().to_string());
        let ran = on_file(&["check"], &of(&good));
        assert_eq!(ran.code, Some(0), "{ran:?}");
        for path in [scratch.file("missing.pem"), empty.clone(), broken.clone()] {
            let ran = on_file(&["check"], &of(&path));
            let file = path.display().to_string();
            assert!(ran.code.is_some_and(|code| code > 0), "{ran:?}");
            let named = |line: &str| [key, &file, whose].iter().all(|word| line.contains(word));
            assert!(ran.stderr.lines().any(named), "{ran:?}");
            assert!(!ran.stderr.starts_with("FILE: valid\n"), "{ran:?}");
            let started = on_file(&["--config"], &of(&path));
            assert_eq!(started.code, ran.code, "{started:?}");
            assert!(started.stderr.contains(&file), "{started:?}");
        }
    }
}

/// Catches: a destination that `check --connect` does not try, of which it does not say what is in
/// the way, or that the exit code leaves out; and a request or a file that trying leaves behind.
#[test]
fn check_tries_all_destinations_when_asked() {
    let (scratch, hook) = (Scratch::new(), Webhook::start());
    let (tcp, unix) = (Engine::start(&[]), Engine::start_unix(&[]));
    let (ours, theirs) = (Authority::new(), Authority::new());
    let ca_file = scratch.write("ca.pem", ours.pem()).display().to_string();
    let behind = |authority: &Authority| {
        Backend::start_tls(authority.server(&["127.0.0.1"]), |served| drop(served.request()))
    };
    let (trusted, foreign, other) = (behind(&ours), behind(&theirs), behind(&ours));
    let tls = |name: &str, of: &Backend, ca_file: &str| {
        let url = of.url_as("https", "127.0.0.1");
        format!("  - {{name: {name}, url: '{url}', tls: {{ca_file: '{ca_file}'}}}}\n")
    };
    let plain = |name: &str, url: &str| format!("  - {{name: {name}, url: '{url}'}}\n");
    let file = |name: &str, path: String| {
        format!("    - {{name: {name}, type: file, file: {{path: '{path}'}}}}\n")
    };
    let made = scratch.file("new.jsonl");
    let good =
        [plain("tcp", &tcp.url()), plain("unix", &unix.url()), tls("trusted", &trusted, &ca_file)];
    let reporters = [
        format!("    - {{name: hook, type: webhook, webhook: {{url: '{}'}}}}\n", hook.url()),
        file("lines", made.display().to_string()),
    ];
    let text = |good: &str, bad: &str, reporters: &str, more: &str| {
        format!("backends:\n{good}{bad}usage:\n  reporters:\n{reporters}{more}")
    };
    let (good, reporters) = (good.concat(), reporters.concat());
    let ran = on_file(&["check", "--connect"], &text(&good, "", &reporters, ""));
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!((ran.code, lines[0], lines.len()), (Some(0), "FILE: valid", 6), "{ran:?}");
    for name in
        ["backend tcp", "backend unix", "backend trusted", "reporter hook", "reporter lines"]
    {
        let reached = |line: &&str| line.starts_with(name) && line.ends_with(": reached");
        assert!(lines.iter().any(reached), "{name}: {}", ran.stderr);
    }
    assert!(tcp.posts().is_empty() && hook.deliveries().is_empty() && !made.exists());

    let dead = free_port();
    let bad = plain("dead", &format!("http://127.0.0.1:{dead}"))
        + &plain("name", "http://no-such-host.invalid:8000")
        + &plain("socket", "unix:///nonexistent/engine.sock")
        + &tls("foreign", &foreign, &ca_file)
        + &tls("pem", &other, "/nonexistent/ca.pem");
    let below = scratch.file("ca.pem").join("usage.jsonl").display().to_string();
    let more = file("path", below)
        + &format!("    - {{name: port, type: redis, redis: {{addr: '127.0.0.1:{dead}'}}}}\n");
    let spans = format!("tracing: {{otlp: {{endpoint: 'http://127.0.0.1:{dead}'}}}}\n");
    let text = text(&good, &bad, &reporters, &more) + &spans;
    let ran = on_file(&["check", "--connect"], &text);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    let first = "FILE: valid, but it would not start";
    assert_eq!((ran.code, lines[0], lines.len()), (Some(1), first, 15), "{ran:?}");
    assert!(lines[1].contains("backends[7].tls: backend pem: ca_file"), "{}", lines[1]);
    for (name, why) in [
        ("backend dead", "Connection refused"),
        ("backend name", "no-such-host.invalid does not resolve"),
        ("backend socket", "No such file"),
        ("backend foreign", "signed by another key than that of the authority it names"),
        ("backend pem", "ca_file /nonexistent/ca.pem"),
        ("reporter path", "Not a directory"),
        ("reporter port", "refused"),
        ("tracing.otlp", "Connection refused"),
    ] {
        let told = |line: &&str| {
            line.starts_with(name) && line.contains(": not reached: ") && line.contains(why)
        };
        assert_eq!(lines.iter().filter(|line| told(line)).count(), 1, "{name}: {}", ran.stderr);
    }
    assert_eq!(lines.iter().filter(|line| line.ends_with(": reached")).count(), 5, "{ran:?}");
}

/// Catches: the commonest mistakes with certificates told in the words of a library's debug output.
#[test]
fn check_tells_in_words_why_a_certificate_will_not_do() {
    let scratch = Scratch::new();
    let authority = Authority::new();
    let ca_file = scratch.write("ca.pem", authority.pem()).display().to_string();
    let (own, by_openssl) = crate::harness::tls::by_openssl();
    let own = scratch.write("own.pem", own).display().to_string();
    let names = ["gpu-1.test", "192.0.2.7"];
    let start = |server| Backend::start_tls(server, |served| drop(served.request()));
    let (lone, named) = (start(by_openssl), start(authority.server(&names)));
    let bare = start(authority.server(&[]));
    let (lone, named, bare) = (
        lone.url_as("https", "localhost"),
        named.url_as("https", "127.0.0.1"),
        bare.url_as("https", "127.0.0.1"),
    );
    for (url, ca_file, why) in [
        (&lone, &ca_file, "its certificate is self-signed: to trust it, put it into a `ca_file`"),
        (&named, &ca_file, "its certificate is for other names: gpu-1.test, 192.0.2.7"),
        (&bare, &ca_file, "its certificate is for no name: it has no subjectAltName"),
        (
            &lone.replace("localhost", "127.0.0.1"),
            &own,
            "its certificate is for other names: localhost",
        ),
    ] {
        let text =
            format!("backends: [{{name: gpu, url: '{url}', tls: {{ca_file: '{ca_file}'}}}}]\n");
        let ran = on_file(&["check", "--connect"], &text);
        let line = format!("backend gpu ({url}): not reached: connected, but {why}");
        assert_eq!(ran.stderr.lines().last(), Some(line.as_str()), "{ran:?}");
    }
}

/// Catches: a `check` that connects unasked, or that tries what a file with errors names.
#[test]
fn check_tries_nothing_unasked_or_of_an_invalid_file() {
    let dead = format!("backends: [{{url: 'http://127.0.0.1:{}'}}]\n", free_port());
    let ran = on_file(&["check"], &dead);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), "FILE: valid\n"));
    let ran = on_file(&["check", "--connect"], &format!("{dead}server: 7\n"));
    assert!(ran.code == Some(2) && !ran.stderr.contains("reached"), "{ran:?}");
}
