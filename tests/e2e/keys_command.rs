//! `llmproxy keys` on a store that no gateway uses.

use crate::harness::process::Ran;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use serde_json::Value;
use std::path::Path;

/// `llmproxy keys`, on a store.
fn keys(db: &Path, args: &[&str]) -> Ran {
    llmproxy(&[&["keys", "--db", &db.to_string_lossy()], args].concat())
}

fn done(ran: &Ran) -> &str {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    &ran.stdout
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(done(ran)).unwrap()
}

/// Catches: a key that is shown twice, or never, or with something else on standard output; a
/// command that says that it is done and is not.
#[test]
fn keys_are_made_shown_and_taken_away() {
    let scratch = Scratch::new();
    let db = scratch.file("data/keys.db");
    let none = keys(&db, &["list"]);
    assert!(none.code == Some(1) && none.stderr.contains("no store of keys yet"), "{none:?}");
    assert!(!db.exists());
    let made = keys(&db, &["create", "--name", "a b", "--user-id", "u", "--total-quota", "7"]);
    let key = done(&made).trim_end().to_owned();
    assert!(key.starts_with("sk-llmproxy-") && key.len() == 44, "{key}");
    let id = made.stderr.split([' ', ':']).nth(1).unwrap().to_owned();
    assert!(made.stderr.contains("only time") && id.len() == 16, "{made:?}");
    let listed = keys(&db, &["list"]);
    let table = done(&listed);
    assert!(table.contains(&id) && table.contains("a b") && !table.contains(&key), "{table}");
    let shown = json(&keys(&db, &["show", &id, "--json"]));
    assert_eq!((&shown["total_quota"], &shown["remaining_quota"]), (&7.into(), &7.into()));
    assert_eq!(shown["used_quota_source"], "store");
    let text = keys(&db, &["show", &id]);
    assert!(done(&text).contains("used_quota: 0 (as stored: no gateway was asked)\n"), "{text:?}");
    assert!(!shown.to_string().contains(&key[16..]), "{shown}");
    let used = keys(&db, &["usage", "--user-id", "u"]);
    let cells: Vec<&str> = done(&used).lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells, [&id, "a", "b", "u", "0", "7", "0.0", "never", "-"], "{used:?}");
    assert!(used.stderr.contains("as stored"), "{used:?}");
    assert_eq!(json(&keys(&db, &["usage", "--json"]))["data"][0]["id"], *id);
    let set = keys(&db, &["set", &id, "--allowed-model", "llama-*", "--expires-at", "2030-01-01"]);
    assert!(done(&set).contains("expires_at: 2030-01-02T00:00:00Z"), "{set:?}");
    let turned = json(&keys(&db, &["rotate", &id, "--grace", "1h", "--json"]));
    let fresh = turned["key"].as_str().unwrap();
    assert!(fresh != key && turned["id"] == *id, "{turned}");
    // By its text too, old or new.
    for text in [&key, fresh] {
        assert_eq!(json(&keys(&db, &["show", text, "--json"]))["id"], *id);
    }
    assert_eq!(done(&keys(&db, &["revoke", &id])), format!("{id} is revoked\n"));
    let gone = keys(&db, &["show", &id]);
    assert!(gone.code == Some(1) && gone.stderr.contains("no such key"), "{gone:?}");
}

/// Catches: a wrong value that is taken or whose name is not said, a store that is replaced, an
/// import that half happens.
#[test]
fn what_is_wrong_is_said() {
    let scratch = Scratch::new();
    let db = scratch.file("keys.db");
    done(&keys(&db, &["create"]));
    for (args, code, word) in [
        (&["create", "--status", "off"][..], 2, "`status`"),
        (&["create", "--settings", "{\"nmae\": \"x\"}"], 2, "`nmae`"),
        (&["create", "--expires-at", "soon"], 2, "`expires_at`"),
        (&["create", "--settings", "7"], 2, "no JSON object"),
        (&["set", "0123456789abcdef"], 2, "nothing is to be changed"),
        (&["set", "0123456789abcdef", "--name", "x"], 1, "no such key"),
        (&["rotate", "0123456789abcdef"], 1, "no such key"),
        (&["import", "/nowhere/at/all"], 2, "/nowhere/at/all"),
        (&["list", "--limit", "1000"], 2, "`limit`"),
        (&["revoke"], 2, "required"),
    ] {
        let ran = keys(&db, args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(word), "{args:?}: {ran:?}");
    }
    let good = "{\"key\": \"0123456789abcdef\", \"name\": \"x\"}\n";
    let file = scratch.write("in.jsonl", format!("{good}{{\"key\": \"short\"}}\n"));
    let ran = keys(&db, &["import", &file.to_string_lossy()]);
    assert!(ran.code == Some(2) && ran.stderr.contains("line 2"), "{ran:?}");
    assert!(!ran.stderr.contains("short"), "{ran:?}");
    let file = scratch.write("in.jsonl", good);
    let import = ["import", &file.to_string_lossy()];
    assert_eq!(done(&keys(&db, &import)), "created 1, replaced 0, skipped 0\n");
    assert_eq!(keys(&db, &import).code, Some(1), "it is there");
    let again = keys(&db, &[&import[..], &["--on-conflict", "skip"]].concat());
    assert_eq!(done(&again), "created 0, replaced 0, skipped 1\n");
    let exported = keys(&db, &["export"]);
    assert_eq!(done(&exported).lines().count(), 2);
    let file = scratch.write("out.jsonl", &exported.stdout);
    let copy = scratch.file("copy.db");
    let ran = keys(&copy, &["import", &file.to_string_lossy()]);
    assert_eq!(done(&ran), "created 2, replaced 0, skipped 0\n");
    assert_eq!(keys(&copy, &["export"]).stdout, exported.stdout);
    let broken = scratch.write("broken.db", "no database");
    let ran = keys(&broken, &["create"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("broken.db"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&broken).unwrap(), "no database");
    let config = scratch.write("config.yaml", "backends: [{url: 'http://a'}]\n");
    let ran = llmproxy(&["keys", "list", "--config", &config.to_string_lossy()]);
    assert!(ran.code == Some(2) && ran.stderr.contains("no `admin`"), "{ran:?}");
}

/// Catches: a configuration whose store is not found.
#[test]
fn the_store_is_the_one_of_the_configuration() {
    let scratch = Scratch::new();
    let db = scratch.file("of-config.db");
    let text = format!(
        "backends: [{{url: 'http://a'}}]\nadmin: {{enabled: true, token: t, db_path: '{}'}}\n",
        db.display()
    );
    let config = scratch.write("config.yaml", text).to_string_lossy().into_owned();
    let of_config = |args: &[&str]| llmproxy(&[&["keys", "--config", &config], args].concat());
    done(&of_config(&["create", "--name", "here"]));
    assert!(done(&keys(&db, &["list"])).contains("here"));
}
