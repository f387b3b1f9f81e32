//! Keys in a real Redis: what is there, and what becomes of questions while it is not.

use crate::clients::is_there;
use crate::harness::keys::{answer, KeyAsker};
use crate::harness::Redis;
use llmproxy::config::plan::KeyState;
use llmproxy::state::lookup::KeyAnswer;
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

/// A provider with this server, and further keys of `redis`.
fn provider(server: &Redis, more: &str) -> String {
    format!("type: redis, redis: {{addr: '{}'{more}}}", server.addr())
}

fn tell(server: &Redis, command: &[&str]) {
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    redis::cmd(command[0]).arg(&command[1..]).exec(&mut connection).unwrap();
}

/// Commands of a kind that the server has run.
fn calls(server: &Redis, command: &str) -> u64 {
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let info: String = redis::cmd("INFO").arg("commandstats").query(&mut connection).unwrap();
    let line = format!("cmdstat_{command}:calls=");
    let found = info.lines().find_map(|text| text.strip_prefix(&line));
    found.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

/// Catches: a hash or a text that is not found, a key that reads what is not its own, a value that
/// is no description of a key and lets it in, a second round trip for what is found by the first.
#[test]
fn keys_are_hashes_or_json() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let server = Redis::start();
    let name = |key: &str| format!("llmproxy:key:{key}");
    for (key, fields) in [
        ("sk-hash", &["user_id", "u1", "balance", "2.5", "allowed_models", "a*, b"][..]),
        ("sk-off", &["status", "disabled"]),
        ("sk-odd", &["status", "who knows"]),
        ("sk-over", &["expires_at", "1700000000"]),
        ("sk-hash:usage", &["tokens", "7"]),
    ] {
        tell(&server, &[&["HSET", &name(key)], fields].concat());
    }
    let text = json!({"user_id": "u2", "total_quota": 100, "metadata": {"tier": 1}}).to_string();
    tell(&server, &["SET", &name("sk-json"), &text]);
    tell(&server, &["SET", &name("sk-text"), "active"]);
    tell(&server, &["RPUSH", &name("sk-list"), "active"]);
    let asker = KeyAsker::start(&provider(&server, ", pool_size: 1"));
    let facts = asker.known("sk-hash");
    assert_eq!((facts.user_id.as_str(), facts.balance), ("u1", Some(2.5)));
    assert_eq!((facts.allowed_models.len(), facts.status), (2, KeyState::Active));
    assert_eq!(asker.known("sk-over").expires_at.unwrap().as_second(), 1_700_000_000);
    for key in ["sk-off", "sk-odd", "sk-text", "sk-list"] {
        assert_eq!(asker.known(key).status, KeyState::Disabled, "{key}");
    }
    for key in
        ["sk-none", "sk-hash:usage", "*", "sk-*", "sk-hash\r\n", "sk-hash ", "{api_key}", "é"]
    {
        asker.assert_unknown(key);
    }
    let facts = asker.known("sk-json");
    assert_eq!((facts.user_id.as_str(), facts.total_quota), ("u2", 100));
    assert_eq!(facts.metadata.object()["tier"], 1);
    let before = calls(&server, "hgetall") + calls(&server, "get");
    (0..5).for_each(|_| drop(asker.known("sk-json")));
    assert_eq!(calls(&server, "hgetall") + calls(&server, "get"), before + 5);
    let counted = asker.0.numbers.results();
    assert!(counted[0] > 10 && counted[1] == 8 && counted[2..] == [0, 0], "{counted:?}");
}

/// Catches: a database or a pattern that is not the configured one.
#[test]
fn keys_are_where_the_configuration_says() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let server = Redis::start();
    let client = redis::Client::open(format!("{}/3", server.url())).unwrap();
    let mut connection = client.get_connection().unwrap();
    redis::cmd("HSET").arg(&["keys/k/info", "name", "n"]).exec(&mut connection).unwrap();
    redis::cmd("CONFIG").arg(&["SET", "requirepass", "hunter2"]).exec(&mut connection).unwrap();
    let pattern = ", db: 3, key_pattern: 'keys/{api_key}/info'";
    let right = KeyAsker::start(&provider(&server, &format!("{pattern}, password: hunter2")));
    assert_eq!(right.known("k").name, "n");
    right.assert_unknown("k2");
    for wrong in ["", ", password: hunter3"] {
        let wrong = provider(&server, &format!("{pattern}{wrong}"));
        KeyAsker::start(&wrong).assert_fails("k");
        let told = KeyAsker::probe(&wrong).unwrap_err();
        assert!(told.starts_with("redis://127.0.0.1") && !told.contains("hunter"), "{told}");
    }
    let right = provider(&server, &format!("{pattern}, password: hunter2"));
    assert_eq!(KeyAsker::probe(&right), Ok(()));
}

/// Catches: a key that is let in, or called unknown, while nobody knows; questions that wait for a
/// server that is gone; a provider that stays out when the server is back; an answer that comes
/// late and is taken for that of another key.
#[test]
fn an_outage_is_a_failure_and_ends() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let mut server = Redis::start();
    for key in ["a", "b"] {
        tell(&server, &["HSET", &format!("llmproxy:key:{key}"), "user_id", key]);
    }
    let asker = KeyAsker::start(&provider(&server, ", pool_size: 1, read_timeout: 300ms"));
    assert_eq!(asker.known("a").user_id, "a");
    server.kill();
    (0..20).for_each(|_| asker.assert_fails("a"));
    server.start_again();
    assert_eq!(asker.await_known("a").user_id, "a");
    server.freeze();
    (0..20).for_each(|_| asker.assert_fails("a"));
    server.thaw();
    assert_eq!(asker.await_known("b").user_id, "b");
    assert_eq!(asker.known("a").user_id, "a");
    // One that was restarted between two questions is asked again at once.
    server.stop();
    server.start_again();
    assert_eq!(asker.known("b").user_id, "b");
}

/// Catches: a server that is still reading its file, or that lost its master, taken for one that
/// has no such key.
#[test]
fn a_server_that_is_not_ready_has_not_said_no() {
    for words in ["LOADING Redis is loading the dataset in memory", "MASTERDOWN Link is down"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                // Each command is an array: its first line begins with a star.
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let Ok(line) = line else { break };
                    if line.starts_with('*')
                        && stream.write_all(format!("-{words}\r\n").as_bytes()).is_err()
                    {
                        break;
                    }
                }
            }
        });
        let asker = KeyAsker::start(&format!("type: redis, redis: {{addr: '{place}'}}"));
        (0..5).for_each(|_| asker.assert_fails("k"));
    }
}

/// Catches: a thundering herd on a server that is slow.
#[test]
fn one_question_serves_all_who_ask_it() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let server = Redis::start();
    tell(&server, &["HSET", "llmproxy:key:k", "user_id", "u"]);
    let more = ", pool_size: 4, read_timeout: 30s, dial_timeout: 30s";
    let asker = KeyAsker::start(&provider(&server, more));
    let before = calls(&server, "hgetall");
    server.freeze();
    let replies: Vec<_> = (0..200).map(|_| asker.begin("k")).collect();
    server.thaw();
    for reply in replies {
        assert!(matches!(answer(reply), KeyAnswer::Known(facts) if facts.user_id == "u"));
    }
    let asked = calls(&server, "hgetall") - before;
    // Those that were still in the queue when the first answer came are a question of their own.
    assert!((1..50).contains(&asked), "{asked}");
}
