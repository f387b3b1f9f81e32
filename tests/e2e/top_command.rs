//! `llmproxy top`: as text, and on a terminal.

use crate::harness::process::Ran;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::terminal::Terminal;
use crate::harness::{await_until, Config, Proxy, SOON};
use crate::rig::{Rig, CHAT, CHATS, STREAM};
use rustix::process::Signal;
use serde_json::{json, Value};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const KNOBS: &str = "x-mock-usage: 31,17\r\n";

/// What it prints once about the gateways of a configuration.
fn once(config: &Path, more: &[&str]) -> Ran {
    llmproxy(&[&["top", "--once", "--config", &config.to_string_lossy()], more].concat())
}

fn snapshot(ran: &Ran) -> Value {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

/// How many there were in the interval.
fn lately(it: &Value, count: &Value) -> f64 {
    count["per_second"].as_f64().unwrap() * it["interval_s"].as_f64().unwrap()
}

/// Catches: figures that are not those of the gateway, and rates of what was long ago, or of
/// nothing while there is load.
#[test]
fn a_snapshot_has_the_figures_of_the_gateway() {
    let rig = Rig::with("name: gpu-1, weight: 4", |config| config);
    for body in [CHAT, STREAM, CHAT, STREAM] {
        assert_eq!(rig.proxy.connect().post(CHATS, KNOBS, body).status(), 200);
    }
    assert_eq!(rig.proxy.get("/nowhere").status(), 404);
    rig.hook.await_records(4, SOON);
    rig.proxy.await_metric("llmproxy_reporter_queue", &[], 0.0);
    rig.assert_quiet();
    let config = rig.proxy.config_file();
    let it = snapshot(&once(&config, &["--json", "--interval", "100ms"]));
    assert_eq!(it["pid"], rig.proxy.process.pid());
    let page = rig.proxy.metrics();
    assert_eq!(it["requests"]["total"].as_f64(), Some(page.sum("llmproxy_requests_total", &[])));
    let none = |total: u64| json!({"total": total, "per_second": 0.0});
    assert_eq!((&it["prompt_tokens"], &it["completion_tokens"]), (&none(124), &none(68)));
    assert_eq!(it["workers"].as_object().unwrap().values().collect::<Vec<_>>(), [&json!(1)]);
    assert_eq!((&it["inflight"], &it["workers_silent"]), (&json!(0), &json!(0)));
    let refused = it["refused"].as_object().unwrap().values();
    assert_eq!(refused.collect::<Vec<_>>(), [&none(1)], "{it}");
    let wanted = json!({"waiting": 0, "oldest_s": 0, "away": [], "failing": false});
    assert_eq!(it["journal"], wanted);
    let backend = &it["backends"][0];
    assert_eq!((&backend["name"], &backend["state"]), (&json!("gpu-1"), &json!("up")));
    assert_eq!((&backend["tries"], &backend["failed"]), (&none(4), &none(0)));
    assert_eq!((&backend["weight"], &backend["first_token_ms"]["p50"]), (&json!(4), &Value::Null));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(rig.proxy.connect().post(CHATS, KNOBS, STREAM).status(), 200);
            }
        });
        await_until("load is seen", SOON, || {
            let it = snapshot(&once(&config, &["--json", "--interval", "500ms"]));
            let (requests, first) = (lately(&it, &it["requests"]), &it["first_token_ms"]);
            // Whole ones, each with its tokens.
            assert!((requests - requests.round()).abs() < 1e-6, "{it}");
            requests > 0.0 && lately(&it, &it["prompt_tokens"]) > 0.0 && first["p50"].is_number()
        });
        over.store(true, Ordering::Relaxed);
    });
    let plain = once(&config, &["--interval", "100ms"]);
    assert!(plain.stdout.contains("\nBACKEND  STATE "), "{plain:?}");
    assert!(plain.stdout.contains("\nrefused      0/s (1): "), "{plain:?}");
}

/// A socket at which a gateway seems to answer, with these pages of metrics one after the other.
fn pretend(listener: UnixListener, pages: Vec<String>) {
    let opinion = json!({"well": true, "since_s": 1.0, "why": null});
    let backend = json!({"name": "gpu\u{1b}[2J", "url": "http://a", "addresses": [], "models": [],
        "region": "", "backup": false, "state": "dreaming", "probes": opinion,
        "requests": opinion, "next_try_s": null, "full_s": null, "weight": 1, "weight_now": 1.0,
        "inflight": 0, "max_concurrent": 0, "picked": 0, "failed": 0,
        "first_token_median_ms": null, "first_token_lately_ms": null});
    let roster = json!({"version": 1, "llmproxy": "9\u{1b}[2J", "pid": 7, "uptime_s": 1.0,
        "config_sha256": "", "load_balance": "", "region": "", "backends": [backend]});
    let mut pages = pages.into_iter();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let (mut head, mut reader) = (String::new(), BufReader::new(stream.try_clone().unwrap()));
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0);
        }
        let body = match head.starts_with("GET /metrics ") {
            true => pages.next().unwrap(),
            false => roster.to_string(),
        };
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + &body).as_bytes()).unwrap();
        if pages.len() == 0 {
            return;
        }
    }
}

/// Catches: a count of another time than the one that it is divided by; a gateway, or whoever sits
/// at its socket, that writes on the terminal.
#[test]
fn what_happened_between_two_readings_is_counted() {
    let scratch = Scratch::new();
    let (socket, page) = (scratch.file("a.sock"), |requests: u32, slow: u32| {
        format!(
            "llmproxy_requests_total{{path=\"a\"}} {requests}\nllmproxy_ttft_ms_bucket\
             {{le=\"10.0\"}} 3\nllmproxy_ttft_ms_bucket{{le=\"20.0\"}} {slow}\n\
             llmproxy_ttft_ms_bucket{{le=\"+Inf\"}} {slow}\n\
             llmproxy_rejected_total{{reason=\"\u{1b}[2J\"}} 1\n"
        )
    });
    let ask = |form: &[&str]| {
        let _ = std::fs::remove_file(&socket);
        let (listener, pages) =
            (UnixListener::bind(&socket).unwrap(), vec![page(100, 3), page(117, 9)]);
        let gateway = std::thread::spawn(move || pretend(listener, pages));
        let at = socket.to_string_lossy();
        let ran = llmproxy(&[&["top", "--once", "-i", "200ms", "--socket", &at], form].concat());
        gateway.join().unwrap();
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.stdout
    };
    let it: Value = serde_json::from_str(&ask(&["--json"])).unwrap();
    assert!(it["interval_s"].as_f64().unwrap() >= 0.2, "{it}");
    assert!((lately(&it, &it["requests"]) - 17.0).abs() < 1e-6, "{it}");
    assert_eq!(it["first_token_ms"], json!({"p50": 15.0, "p95": 19.5}));
    let text = ask(&[]);
    assert!(!text.contains('\u{1b}') && text.contains("first token  p50 15 ms"), "{text}");
}

/// Catches: a script that takes nothing for a gateway at rest, an operator who is not told what to
/// do, a file full of a terminal's commands.
#[test]
fn where_there_is_nothing_to_see_it_says_so() {
    let rig = Rig::new();
    let config = rig.proxy.config_file();
    let piped = llmproxy(&["top", "--config", &config.to_string_lossy()]);
    assert!(piped.code == Some(2) && piped.stderr.contains("--once"), "{piped:?}");
    assert_eq!(piped.stdout, "");
    rig.proxy.process.signal(Signal::TERM);
    rig.proxy.process.wait(SOON);
    let gone = once(&config, &[]);
    assert!(gone.code == Some(1) && gone.stderr.contains("no gateway runs with"), "{gone:?}");
    let scratch = Scratch::new();
    let none = scratch.write("none.yaml", Config::backend_at("http://127.0.0.1:1").yaml());
    let told = once(&none, &[]);
    assert!(told.code == Some(2) && told.stderr.contains("`server.pid_file`"), "{told:?}");
    let broken = once(&scratch.write("broken.yaml", "backends: 7\n"), &[]);
    assert!(broken.code == Some(2) && broken.stderr.contains("--socket PATH"), "{broken:?}");
}

fn watch(proxy: &Proxy) -> Terminal {
    Terminal::start(&["top", "-i", "100ms", "--config", &proxy.config_file().to_string_lossy()])
}

/// Catches: a terminal that somebody has to reset after the view was ended, by a key or a signal.
#[test]
fn the_terminal_is_as_it_was_when_the_view_ends() {
    let rig = Rig::with("name: gpu-1", |config| config);
    let ends: [fn(&mut Terminal); 5] = [
        |it| it.type_keys("q"),
        |it| it.type_keys("\u{1b}"),
        |it| it.type_keys("\u{3}"),
        |it| it.process.signal(Signal::TERM),
        |it| it.process.signal(Signal::HUP),
    ];
    for end in ends {
        let mut terminal = watch(&rig.proxy);
        terminal.await_text("gpu-1");
        assert!(!terminal.is_cooked() && terminal.text().contains("\u{1b}[?1049h"));
        end(&mut terminal);
        assert!(terminal.process.wait(SOON).success(), "{}", terminal.text());
        terminal.assert_restored();
        assert!(terminal.is_cooked());
    }
}

/// Catches: a view that shows a gateway for alive that is gone, and that has to be started again
/// for the next one.
#[test]
fn an_end_and_a_new_start_are_seen() {
    let rig = Rig::with("name: gpu-1", |config| config);
    let config = rig.proxy.config_file().to_string_lossy().into_owned();
    let mut terminal = watch(&rig.proxy);
    terminal.await_text("gpu-1");
    rig.proxy.process.signal(Signal::TERM);
    rig.proxy.process.wait(SOON);
    terminal.await_text("no gateway runs with");
    let next = Proxy::start_with(&["--config", &config], Scratch::new());
    terminal.await_text(&format!("process {} is shown now", next.process.pid()));
    terminal.type_keys("q");
    assert!(terminal.process.wait(SOON).success());
    terminal.assert_restored();
}
