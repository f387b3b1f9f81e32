//! The admin API of the real binary: who may ask, what is answered, and what becomes of it.

use crate::clients;
use crate::harness::client::Response;
use crate::harness::process::run;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Backend, Config, Conn, Proxy, SOON};
use crate::rig::{CHAT, CHATS, OK};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::{json, Value};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The token of each desk.
pub const TOKEN: &str = "planted-admin-token";
const SCHEMATHESIS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/schemathesis.toml");
/// Where its keys are.
pub const KEYS: &str = "/admin/api-keys";
/// An answer of thirty tokens.
const WITH_USAGE: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                          content-length: 71\r\n\r\n\
                          {\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":20,\"total_tokens\":30}}";

/// A gateway with the admin API.
pub struct Desk {
    /// The gateway.
    pub proxy: Proxy,
    address: SocketAddr,
}

/// The section of a gateway with this store, with further properties in flow form.
pub fn section(db: &Path, more: &str) -> String {
    format!(
        "admin: {{enabled: true, token: {TOKEN}, listen: \"127.0.0.1:0\", db_path: \"{}\"{more}}}",
        db.display()
    )
}

/// A gateway of this configuration, which has such a section.
pub fn desk_of(config: &Config) -> Desk {
    let proxy = config.start();
    let event = proxy.await_event("its address", |event| event["message"] == "admin API");
    let address = event["addr"].as_str().unwrap().parse().unwrap();
    Desk { proxy, address }
}

impl Desk {
    /// With further properties of the section in flow form, before a backend.
    fn start(scratch: &Scratch, backend: &Backend, more: &str) -> Desk {
        let section = section(&scratch.file("keys.db"), more);
        desk_of(&Config::new().backend(backend.url(), "name: engine").section(section))
    }

    fn send(&self, method: &str, path: &str, fields: &str, body: &str) -> Response {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: {length}\r\n\r\n"
        );
        Conn::open(self.address).send(head + body).response()
    }

    /// Asks with the token: status and answer.
    pub fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let fields = format!("Authorization: Bearer {TOKEN}\r\n");
        let answer = self.send(method, path, &fields, &body);
        assert_eq!(answer.head.get("content-type"), Some("application/json"), "{}", answer.text());
        (answer.status(), answer.json())
    }

    /// Nothing of this is in the log of the gateway.
    fn assert_unsaid(&self, secrets: &[&str]) {
        let log = self.proxy.process.stdout.all().concat();
        secrets.iter().for_each(|secret| assert!(!log.contains(secret), "{secret} is in the log"));
    }
}

/// Catches: a client without the token who learns or changes something, a token or a key in the
/// log, an address that may guess for ever, a refusal in another shape.
#[test]
fn only_who_shows_the_token_is_answered() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let desk = Desk::start(&scratch, &backend, "");
    let refused = |path: &str, fields: &str, body: &str, status: u16| {
        let answer = desk.send("POST", path, fields, body);
        assert_eq!(answer.status(), status, "{path} {fields}: {}", answer.text());
        assert!(answer.json()["error"]["code"].is_string(), "{}", answer.text());
        answer
    };
    for fields in ["", "X-API-Key: planted-admin-token\r\n"] {
        let answer = refused(KEYS, fields, "{}", 401);
        assert_eq!(answer.head.get("www-authenticate"), Some("Bearer"));
    }
    for path in ["/", "/metrics", "/backends", "/admin/keys/list", "/admin/openapi.json", "/x"] {
        refused(path, "", "{}", 401);
    }
    let (status, made) = desk.ask("POST", KEYS, json!({"name": "n"}));
    assert_eq!(status, 201);
    let with_other_name = format!("X-Admin-Token: {TOKEN}\r\n");
    assert_eq!(desk.send("GET", KEYS, &with_other_name, "").status(), 200);
    let wrong = "Authorization: Bearer planted-guess\r\n";
    await_until("it has to wait", SOON, || {
        let answer = desk.send("GET", KEYS, wrong, "");
        assert!([401, 429].contains(&answer.status()), "{}", answer.text());
        answer.status() == 429
    });
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    let waits = desk.send("GET", KEYS, &right, "");
    assert_eq!(waits.status(), 429, "nobody tries on between wrong ones");
    assert!(waits.head.get("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    desk.proxy.await_event("who guessed", |event| {
        event["message"].as_str().is_some_and(|text| text.contains("a wrong token"))
    });
    assert_eq!(desk.proxy.post(CHATS, CHAT).status(), 200);
    desk.assert_unsaid(&[TOKEN, "planted-guess", made["key"].as_str().unwrap()]);
}

/// Catches: a quota that shows what was used long ago, and one that an administrator gives back and
/// that stays used up.
#[test]
fn a_quota_shows_what_is_counted_and_is_set() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(WITH_USAGE));
    let config = Config::new()
        .backend(backend.url(), "name: engine")
        .section(section(&scratch.file("keys.db"), ""))
        .section("auth: {pipeline: [{type: builtin, cache: {ttl: 0s, negative_ttl: 0s}}]}");
    let desk = desk_of(&config);
    let settings = json!({"name": "n", "total_quota": 1000, "used_quota": 100});
    let (status, made) = desk.ask("POST", KEYS, settings);
    assert_eq!(status, 201, "{made}");
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    let (one, usage) = (format!("{KEYS}/{id}"), format!("{KEYS}/{id}/usage"));
    let send = || {
        let field = format!("Authorization: Bearer {key}\r\n");
        desk.proxy.connect().post(CHATS, &field, CHAT).status()
    };
    let used = |path: &str| desk.ask("GET", path, Value::Null).1["used_quota"].clone();
    assert_eq!(used(&usage), json!(100), "it was not met yet");
    let page = desk.ask("GET", &usage, Value::Null).1;
    assert_eq!(
        (&page["used_quota_source"], &page["quota_resets_at"]),
        (&json!("gateway"), &Value::Null)
    );
    let daily = json!({"quota_reset_period": "daily"});
    assert_eq!(desk.ask("PATCH", &one, daily).0, 200);
    let before = Timestamp::now();
    let page = desk.ask("GET", &usage, Value::Null).1;
    let resets: Timestamp = page["quota_resets_at"].as_str().unwrap().parse().unwrap();
    assert!(resets > before && resets.as_second() % 86_400 == 0, "{page}");
    assert_eq!(desk.ask("PATCH", &one, json!({"quota_reset_period": null})).0, 200);
    assert_eq!(send(), 200);
    await_until("it is debited", SOON, || used(&usage) == json!(130));
    assert_eq!(used(&one), json!(130));
    assert_eq!(desk.ask("GET", KEYS, Value::Null).1["data"][0]["used_quota"], json!(130));
    let all = desk.ask("GET", "/admin/usage", Value::Null).1;
    assert_eq!(all["data"], json!([desk.ask("GET", &usage, Value::Null).1]));
    assert_eq!((&all["total"], &all["data"][0]["used_quota"]), (&json!(1), &json!(130)));
    let old = desk.ask("POST", "/admin/keys/get", json!({"key": key})).1;
    assert_eq!(old["data"]["used_quota"], json!(130), "{old}");
    let (status, changed) = desk.ask("PATCH", &one, json!({"used_quota": 1000}));
    assert_eq!((status, &changed["used_quota"]), (200, &json!(1000)));
    assert_eq!(send(), 429);
    // What is changed beside it is no reason to begin anew.
    desk.ask("PATCH", &one, json!({"name": "other"}));
    assert_eq!(send(), 429);
    let told = desk.ask("POST", "/admin/keys/update", json!({"key": key, "used_quota": 0})).1;
    assert_eq!(told["data"]["used_quota"], json!(0), "{told}");
    assert_eq!(send(), 200);
    await_until("it is debited again", SOON, || used(&usage) == json!(30));
}

/// Catches: a listener that anybody keeps busy, or that a body makes large; an answer that is lost
/// because a client still sends.
#[test]
fn whoever_sends_too_much_or_too_slowly_holds_nobody_up() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let desk = Desk::start(&scratch, &backend, "");
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    let large = "x".repeat(2 * 1024 * 1024);
    let answer = desk.send("POST", KEYS, &right, &large);
    assert_eq!(answer.json()["error"]["code"], "body_too_large");
    assert_eq!(desk.send("POST", KEYS, "", &large).status(), 401, "nothing of it is read");
    let chunked =
        format!("POST {KEYS} HTTP/1.1\r\nHost: a\r\n{right}Transfer-Encoding: chunked\r\n\r\n");
    let open = |bytes: String| {
        let mut conn = Conn::open(desk.address);
        conn.send(bytes);
        conn
    };
    let name = "n".repeat(100);
    let body = format!("{{\"name\": \"{name}\"}}");
    let whole = format!("{chunked}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(open(whole).response().json()["name"], name);
    assert_eq!(open(format!("{chunked}zz\r\n")).response().status(), 400);
    let piece = format!("10000\r\n{}\r\n", "y".repeat(0x10000));
    let mut endless = open(chunked.clone());
    while endless.try_send(&piece) {}
    for garbage in ["\0\r\n\r\n", "GET\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n"] {
        let status = open(garbage.to_owned()).response().status();
        assert!((400..=505).contains(&status), "{garbage}: {status}");
    }
    let expecting = format!("POST {KEYS} HTTP/1.1\r\nHost: a\r\n{right}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    let mut conn = open(expecting.clone());
    assert_eq!(conn.any_head().unwrap().status(), 100);
    assert_eq!(conn.send("{}").response().status(), 201);
    let stranger = expecting.replace(TOKEN, "wrong");
    assert_eq!(open(stranger).any_head().unwrap().status(), 401, "its body is not asked for");
    let mut slow =
        open(format!("POST {KEYS} HTTP/1.1\r\nHost: a\r\n{right}Content-Length: 5\r\n\r\n{{"));
    slow.assert_closes();
}

/// Catches: connections that send nothing, or show no token, and lock out whoever has one; one that
/// may ask and is put out for them; a place that is lost; somebody without a place who is told
/// nothing; refusals that nobody counts.
#[test]
fn silent_visitors_lock_nobody_out() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let desk = Desk::start(&scratch, &backend, "");
    let count = |result: &str| {
        desk.proxy.metric("llmproxy_admin_requests_total", &[("result", result)]) as u64
    };
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    let open = |bytes: &str| {
        let mut conn = Conn::open(desk.address);
        conn.send(bytes);
        conn
    };
    let mut silent: Vec<Conn> = (0..40)
        .map(|n| open(["", "GET ", "GET /admin/stats HTTP/1.1\r\nHost: a\r\n\r\n"][n % 3]))
        .collect();
    for _ in 0..3 {
        assert_eq!(desk.ask("GET", KEYS, Value::Null).0, 200);
    }
    silent[0].assert_closes();
    assert!(count("put_out") >= 20, "{}", count("put_out"));
    assert_eq!((count("answered"), count("turned_away")), (3, 0));
    let expecting = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: a\r\n{right}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    );
    let mut held: Vec<Conn> = Vec::new();
    for _ in 0..16 {
        let mut conn = open(&expecting);
        assert_eq!(conn.any_head().unwrap().status(), 100, "it may ask");
        held.push(conn);
    }
    assert_eq!(Conn::open(desk.address).any_head().unwrap().status(), 503);
    assert_eq!(count("turned_away"), 1);
    for mut conn in held {
        assert_eq!(conn.send("{}").response().status(), 201, "nobody takes its place");
    }
    assert_eq!(desk.ask("GET", KEYS, Value::Null).0, 200);
    assert_eq!(desk.send("GET", KEYS, "X-Admin-Token: planted-guess\r\n", "").status(), 401);
    assert_eq!(desk.send("GET", KEYS, "", "").status(), 401);
    assert_eq!((count("invalid_token"), count("answered")), (1, 20));
    assert!(count("missing_token") >= 1);
    await_until("it has to wait", SOON, || {
        desk.send("GET", KEYS, "X-Admin-Token: planted-guess\r\n", "").status() == 429
    });
    assert!(count("throttled") >= 1);
    assert_eq!(desk.proxy.post(CHATS, CHAT).status(), 200);
}

/// Catches: a change in spite of `read_only`, an address that may ask in spite of `allowed_ips`,
/// and a token that is good after a reload took it away.
#[test]
fn what_a_reload_says_holds_at_once() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let db = scratch.file("keys.db");
    let with = |more: &str| {
        Config::new().backend(backend.url(), "name: engine").section(section(&db, more))
    };
    let desk = desk_of(&with(""));
    assert_eq!(desk.ask("POST", KEYS, json!({"name": "n"})).0, 201);
    assert!(desk.proxy.reload_with(&with(", read_only: true")));
    let (status, told) = desk.ask("POST", KEYS, json!({}));
    assert_eq!((status, &told["error"]["code"]), (403, &json!("read_only")));
    for (method, path) in [
        ("POST", "/admin/backends/engine/drain"),
        ("POST", "/admin/config/reload"),
        ("POST", "/admin/keys/sync"),
        ("DELETE", "/admin/api-keys/x"),
    ] {
        assert_eq!(desk.ask(method, path, Value::Null).0, 403, "{path}");
    }
    assert_eq!(desk.ask("GET", KEYS, Value::Null).1["total"], 1);
    assert_eq!(desk.ask("POST", "/admin/keys/list", Value::Null).0, 200);
    assert!(desk.proxy.reload_with(&with(", allowed_ips: [192.0.2.0/24]")));
    let (status, told) = desk.ask("GET", KEYS, Value::Null);
    assert_eq!((status, &told["error"]["code"]), (403, &json!("ip_not_allowed")));
    let other = with("").yaml().replace(TOKEN, "another-token");
    desk.proxy.rewrite(&other);
    assert!(desk.proxy.reload());
    assert_eq!(desk.ask("GET", KEYS, Value::Null).0, 401);
    let fields = "Authorization: Bearer another-token\r\n";
    assert_eq!(desk.send("GET", KEYS, fields, "").status(), 200);
    assert!(desk.proxy.reload_with(&Config::backend_at(backend.url())));
    assert_eq!(desk.send("GET", KEYS, fields, "").status(), 404, "it is off");
}

/// Catches: a backend that gets requests though an administrator took it out, one that does not
/// get them back, a state that nobody is told of, a path that is another backend's.
#[test]
fn backends_are_drained_and_weighed() {
    let (scratch, one, two) = (Scratch::new(), Backend::answering(OK), Backend::answering(OK));
    let config = Config::new()
        .backend(one.url(), "name: \"gpu/1\"")
        .backend(two.url(), "name: two")
        .section("routing: {load_balance: round_robin}")
        .section("health_check: {enabled: false}")
        .section(section(&scratch.file("keys.db"), ""));
    let desk = desk_of(&config);
    let picked =
        |name: &str| desk.proxy.metric("llmproxy_backend_picked_total", &[("backend", name)]);
    let chats = |count: usize| {
        let before = [picked("gpu/1"), picked("two")];
        (0..count).for_each(|_| assert_eq!(desk.proxy.post(CHATS, CHAT).status(), 200));
        [picked("gpu/1") - before[0], picked("two") - before[1]]
    };
    let (status, told) = desk.ask("POST", "/admin/backends/gpu%2f1/drain", Value::Null);
    assert_eq!((status, &told["drained"]), (200, &json!(true)));
    assert_eq!(chats(6), [0.0, 6.0]);
    let (_, roster) = desk.ask("GET", "/admin/backends", Value::Null);
    assert_eq!(
        (&roster["backends"][0]["state"], &roster["backends"][1]["state"]),
        (&json!("drained"), &json!("up"))
    );
    assert_eq!(desk.ask("POST", "/admin/backends/two/drain", Value::Null).0, 200);
    assert_eq!(desk.proxy.post(CHATS, CHAT).status(), 503, "there is nobody left");
    assert_eq!(desk.proxy.get("/ready").status(), 503);
    assert!(desk.proxy.reload(), "what an administrator said outlives a reload");
    assert_eq!(desk.proxy.post(CHATS, CHAT).status(), 503);
    for path in ["/admin/backends/gpu%2f1/undrain", "/admin/backends/two/undrain"] {
        assert_eq!(desk.ask("POST", path, Value::Null).1["drained"], false);
    }
    assert_eq!(chats(6), [3.0, 3.0]);
    let (status, told) = desk.ask("PATCH", "/admin/backends/two/weight", json!({"weight": 3}));
    assert_eq!((status, &told["weight"], &told["configured_weight"]), (200, &json!(3), &json!(1)));
    let weighed = chats(40);
    assert!(weighed[1] > 2.0 * weighed[0], "{weighed:?}");
    assert_eq!(
        desk.ask("PATCH", "/admin/backends/two/weight", json!({"weight": null})).1["weight"],
        1
    );
    for (method, path, body, status) in [
        ("POST", "/admin/backends/none/drain", Value::Null, 404),
        ("POST", "/admin/backends/gpu/1/drain", Value::Null, 404),
        ("POST", "/admin/backends/two/drain", json!({"now": true}), 400),
        ("PATCH", "/admin/backends/two/weight", json!({"weight": 0}), 400),
        ("PATCH", "/admin/backends/two/weight", json!({"weight": 1.5}), 400),
        ("PATCH", "/admin/backends/two/weight", json!({}), 400),
        ("PATCH", "/admin/backends/two/weight", json!({"weight": 1, "x": 1}), 400),
        ("GET", "/admin/backends/two/drain", Value::Null, 405),
    ] {
        assert_eq!(desk.ask(method, path, body).0, status, "{path}");
    }
}

/// Catches: figures that are none of this process, a secret in the configuration that is shown, a
/// reload that is told to have happened and has not, or that is not told.
#[test]
fn the_gateway_tells_of_itself() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let desk = Desk::start(&scratch, &backend, "");
    desk.ask("POST", KEYS, json!({"status": "disabled"}));
    desk.ask("POST", KEYS, json!({}));
    assert_eq!(desk.proxy.post(CHATS, CHAT).status(), 200);
    let (status, stats) = desk.ask("GET", "/admin/stats", Value::Null);
    assert_eq!((status, &stats["pid"]), (200, &json!(desk.proxy.process.pid())));
    assert_eq!(stats["keys"], json!({"total": 2, "by_status": {"active": 1, "disabled": 1}}));
    assert_eq!((&stats["requests"]["picked"], &stats["backends"]["up"]), (&json!(1), &json!(1)));
    let (_, config) = desk.ask("GET", "/admin/config", Value::Null);
    assert_eq!(
        (&config["config"]["backends"][0]["name"], &config["sha256"]),
        (&json!("engine"), &stats["config_sha256"])
    );
    assert!(
        config["config"]["admin"].is_object() && !config.to_string().contains(TOKEN),
        "{config}"
    );
    let (status, document) = desk.ask("GET", "/admin/openapi.json", Value::Null);
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    let (status, told) = desk.ask("POST", "/admin/config/reload", Value::Null);
    assert_eq!((status, &told["reloaded"], &told["changes"]), (200, &json!(true), &json!([])));
    let text = std::fs::read_to_string(desk.proxy.config_file()).unwrap();
    std::fs::write(
        desk.proxy.config_file(),
        text.replace("name: engine", "name: engine, weight: 7"),
    )
    .unwrap();
    let (_, told) = desk.ask("POST", "/admin/config/reload", json!({}));
    assert!(told["changes"].to_string().contains("weight: 1 -> 7"), "{told}");
    std::fs::write(desk.proxy.config_file(), text + "\nnonsense: {\n").unwrap();
    let (status, told) = desk.ask("POST", "/admin/config/reload", Value::Null);
    assert_eq!((status, &told["error"]["code"]), (422, &json!("config_not_usable")));
    assert_eq!(
        desk.ask("GET", "/admin/stats", Value::Null).1["reloads"],
        json!({"succeeded": 2, "failed": 1})
    );
}

/// Asks for a key on a connection of its own: true when it was answered that it is made.
fn is_made(address: SocketAddr, body: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let length = body.len();
    let head = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: a\r\nX-Admin-Token: {TOKEN}\r\nContent-Length: {length}\r\n\r\n"
    );
    let sent = stream.write_all((head + body).as_bytes());
    let mut answer = Vec::new();
    sent.is_ok() && stream.read_to_end(&mut answer).is_ok() && answer.starts_with(b"HTTP/1.1 201 ")
}

/// Catches: a key that was answered for and is gone after the process was killed, two of one
/// text, a store that does not open after that.
#[test]
fn what_was_answered_outlives_a_kill() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let mut answered: Vec<String> = Vec::new();
    for round in 0..3 {
        let desk = Desk::start(&scratch, &backend, "");
        let enough = AtomicUsize::new(0);
        let made: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|writer| {
                    let (desk, enough) = (&desk, &enough);
                    scope.spawn(move || {
                        let mut made = Vec::new();
                        for n in 0.. {
                            let body = json!({"name": format!("{round}-{writer}-{n}")}).to_string();
                            if !is_made(desk.address, &body) {
                                break;
                            }
                            made.push(format!("{round}-{writer}-{n}"));
                            if enough.fetch_add(1, Ordering::Relaxed) == 30 {
                                desk.proxy.process.signal(Signal::KILL);
                            }
                        }
                        made
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert!(made.len() > 30, "{made:?}");
        answered.extend(made);
    }
    let desk = Desk::start(&scratch, &backend, "");
    let right = format!("X-Admin-Token: {TOKEN}\r\n");
    let export = desk.send("GET", "/admin/api-keys/export", &right, "").text();
    for name in &answered {
        assert!(
            export.contains(&format!("\"name\":\"{name}\"")),
            "{name} was answered and is gone"
        );
    }
    let text = json!({"key": "sk-llmproxy-the-same-for-all"});
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| desk.ask("POST", KEYS, text.clone()).0)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [201, 409].contains(status)), "{statuses:?}");
}

/// Catches: a command that goes past the gateway that runs, or that fails because none does.
#[test]
fn the_command_asks_the_gateway_that_runs() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let pid_file = scratch.file("a.pid");
    let config = Config::new()
        .backend(backend.url(), "name: engine")
        .server(format!("pid_file: \"{}\"", pid_file.display()))
        .section(section(&scratch.file("keys.db"), ", read_only: true"));
    let desk = desk_of(&config);
    let file = desk.proxy.config_file().to_string_lossy().into_owned();
    let keys = |args: &[&str]| {
        let ran = llmproxy(&[&["keys", "--config", &file], args].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.stdout
    };
    let key = keys(&["create", "--name", "by the command"]);
    let event = desk.proxy.await_event("the gateway did it", |event| {
        event["message"] == "admin: a key was made" && event["name"] == "by the command"
    });
    let id = event["id"].as_str().unwrap();
    let (_, list) = desk.ask("GET", KEYS, Value::Null);
    assert_eq!((&list["total"], &list["data"][0]["id"]), (&json!(1), &json!(id)));
    let lines: String =
        (0..9000).map(|n| format!("{{\"key\": \"{n:0128}\", \"user_id\": \"many\"}}\n")).collect();
    let many = scratch.write("many.jsonl", lines);
    let imported = keys(&["import", &many.to_string_lossy()]);
    assert_eq!(imported, "created 9000, replaced 0, skipped 0\n");
    assert_eq!(keys(&["export"]).lines().count(), 9001);
    assert!(keys(&["list", "--user-id", "many", "--limit", "5"]).contains("9000 in all"));
    assert!(keys(&["usage", "--user-id", "many", "--limit", "5"]).contains("9000 in all"));
    desk.assert_unsaid(&[key.trim_end(), TOKEN]);
    desk.proxy.process.signal(Signal::TERM);
    assert!(desk.proxy.process.wait(SOON).success());
    assert!(keys(&["show", id]).contains("by the command"), "on the store itself");
    assert_eq!(keys(&["revoke", id]), format!("{id} is revoked\n"));
}

/// Catches: a store that cannot be used and a gateway that starts all the same, with no keys at
/// all.
#[test]
fn a_broken_store_keeps_it_from_starting() {
    let scratch = Scratch::new();
    let db = scratch.write("keys.db", "no database at all");
    let yaml = Config::backend_at("http://127.0.0.1:1").section(section(&db, "")).yaml();
    let config = scratch.write("config.yaml", yaml);
    let ran = llmproxy(&["--config", &config.to_string_lossy()]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("admin.db_path") && ran.stderr.contains("keys.db"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&db).unwrap(), "no database at all");
}

/// Catches: what the description of the API allows and the API answers in a way that it does not
/// describe, an error without a body, a request that breaks it. What is left out: calls without the
/// right token (ten of them put the address out), values that the description cannot tell from good
/// ones, and an import, whose lines the program cannot write.
#[test]
fn the_api_is_as_it_is_described() {
    let name = "the_api_is_as_it_is_described";
    let Some(folder) = clients::folder(name) else { return };
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let desk = Desk::start(&scratch, &backend, "");
    let url = format!("http://{}/admin/openapi.json", desk.address);
    let fields = [format!("Authorization: Bearer {TOKEN}"), format!("X-Admin-Token: {TOKEN}")];
    let program = folder.join("schemathesis/bin/schemathesis");
    let (program, at) = (program.display().to_string(), scratch.file("").display().to_string());
    // It leaves folders where it runs.
    let told = [
        &["-C", &at, &program][..],
        &["--config-file", SCHEMATHESIS, "run", &url, "-H", &fields[0], "-H", &fields[1]],
        &["--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1"],
        &["--exclude-checks", "ignored_auth,positive_data_acceptance"],
        &["--exclude-path", "/admin/api-keys/import", "--workers", "1", "--no-color"],
    ];
    let ran = run(Path::new("env"), &told.concat(), SOON * 4);
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("Tested: 2"), "{}", ran.stdout);
}
