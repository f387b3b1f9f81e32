use super::form::{apply, exported_key, settings, shown_key};
use super::import::imported;
use super::*;
use crate::config::plan::KeyState;
use proptest::prelude::*;
use serde_json::{json, Map, Value};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A folder that goes away with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("llmproxy-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        Folder(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.join("data/keys.db")
    }

    fn store(&self) -> KeyStore {
        KeyStore::open(&self.file()).unwrap()
    }

    /// All bytes of the store.
    fn bytes(&self) -> Vec<u8> {
        let files = fs::read_dir(self.file().parent().unwrap()).unwrap();
        files.flat_map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn digest(text: &str) -> KeyDigest {
    KeyDigest::of(text.as_bytes())
}

fn key(text: &str, more: Value) -> StoredKey {
    let mut key = StoredKey::new(digest(text), prefix_of(text), 1000);
    apply(&mut key.facts, &object(more), &[]).unwrap();
    key
}

fn named(text: &str) -> KeyRef {
    KeyRef::Text(text.to_owned())
}

const A: &str = "sk-llmproxy-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sk-llmproxy-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "sk-llmproxy-cccccccccccccccccccccccccccccccc";

/// Catches: a key that is not found, or found with other facts; one that is found after it was
/// taken away; a key in clear on the disk; a file that others may read.
#[test]
fn a_key_has_a_life() {
    let folder = Folder::new("life");
    let store = folder.store();
    let all = json!({"name": "n", "user_id": "u", "status": "disabled", "total_quota": 5,
        "used_quota": 3, "quota_reset_period": "monthly", "last_reset_at": "2026-01-01T00:00:00Z",
        "balance": 1.5, "allowed_ips": ["10.0.0.0/8"], "denied_ips": ["10.1.2.3"],
        "allowed_models": ["llama-*"], "starts_at": "2026-01-01", "expires_at": 1_800_000_000,
        "rate_limit": {"requests_per_second": 5, "max_concurrent": 2}, "metadata": {"a": [1]}});
    let made = key(A, all);
    store.create(&made).unwrap();
    assert_eq!(store.find(&digest(A), 5).unwrap().unwrap(), made.facts);
    assert_eq!(store.find(&digest(B), 5).unwrap(), None);
    for name in [A, &made.id] {
        assert_eq!(store.get(&named(name)).unwrap(), made, "{name}");
    }
    let change = |facts: &mut KeyFacts| {
        apply(facts, &object(json!({"status": "active", "total_quota": null})), &[])
            .map_err(|_| StoreFault::NotFound)
    };
    let changed = store.change(&named(&made.id), 2000, change).unwrap();
    assert_eq!((changed.facts.status, changed.facts.total_quota), (KeyState::Active, 0));
    assert_eq!((changed.created_ms, changed.updated_ms), (1000, 2000));
    assert_eq!(store.find(&digest(A), 9).unwrap().unwrap(), changed.facts);
    for (now, last) in [(9, 9), (7, 9), (11, 11)] {
        store.note_uses(&[(changed.facts.digest, now), (digest(B), now)]).unwrap();
        assert_eq!(store.get(&named(A)).unwrap().last_used_ms, Some(last));
    }
    let bytes = folder.bytes();
    let random = A.strip_prefix("sk-llmproxy-").unwrap().as_bytes();
    assert!(!bytes.windows(random.len()).any(|part| part == random), "the key is on the disk");
    assert!(bytes.windows(32).any(|part| part == digest(A).as_bytes()));
    let mode = fs::metadata(folder.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    store.delete(&named(A)).unwrap();
    assert_eq!(store.find(&digest(A), 9).unwrap(), None);
    assert_eq!(store.get(&named(&made.id)), Err(StoreFault::NotFound));
    assert_eq!(store.delete(&named(A)).unwrap_err(), StoreFault::NotFound);
    assert_eq!(store.changes(), 3);
}

/// Catches: a key that two have, by any of its texts, and a change that half happens.
#[test]
fn a_key_is_there_once() {
    let folder = Folder::new("once");
    let store = folder.store();
    let first = key(A, json!({}));
    store.create(&first).unwrap();
    let conflict = StoreFault::Conflict(first.id.clone());
    assert_eq!(store.create(&key(A, json!({}))), Err(conflict.clone()));
    store.rotate(&named(A), (digest(B), prefix_of(B)), (2000, 3000)).unwrap();
    for text in [A, B] {
        assert_eq!(store.create(&key(text, json!({}))), Err(conflict.clone()));
    }
    store.create(&key(C, json!({}))).unwrap();
    let taken = store.rotate(&named(C), (digest(B), prefix_of(B)), (2000, 3000));
    assert_eq!(taken, Err(conflict.clone()));
    assert!(store.find(&digest(C), 9000).unwrap().is_some(), "it is as it was");
    let refused = store.change(&named(C), 5, |facts| {
        facts.name = "half".into();
        Err(StoreFault::Refused("no".into()))
    });
    assert_eq!(refused, Err(StoreFault::Refused("no".into())));
    assert_eq!(store.get(&named(C)).unwrap().facts.name, "");
    // After its grace the first text is gone, and still nobody else's: what counted it would clash.
    store.rotate(&named(B), (digest("d"), prefix_of("d")), (4000, 4000)).unwrap();
    assert_eq!(store.create(&key(A, json!({}))), Err(conflict));
}

/// Catches: an old text that is good for ever, one that is not good for its time, a new text that
/// starts with a fresh quota, and grace that a second rotation makes longer.
#[test]
fn a_rotated_key_is_the_same_key() {
    let folder = Folder::new("rotate");
    let store = folder.store();
    let made = key(A, json!({"used_quota": 7, "name": "n"}));
    store.create(&made).unwrap();
    let rotated = store.rotate(&named(A), (digest(B), prefix_of(B)), (2000, 3000)).unwrap();
    assert_eq!((rotated.id.as_str(), rotated.prefix), (made.id.as_str(), prefix_of(B)));
    let old = store.find(&digest(A), 2999).unwrap().unwrap();
    assert_eq!((old.digest, old.used_quota), (made.facts.digest, 7));
    assert_eq!(old.expires_at.unwrap().as_millisecond(), 3000);
    let new = store.find(&digest(B), 2999).unwrap().unwrap();
    assert_eq!((new.digest, new.expires_at), (made.facts.digest, None));
    assert_eq!(store.find(&digest(A), 3000).unwrap(), None);
    store.rotate(&named(&made.id), (digest(C), prefix_of(C)), (2500, 9000)).unwrap();
    assert_eq!(store.find(&digest(A), 3000).unwrap(), None, "3000 stays");
    assert!(store.find(&digest(B), 8999).unwrap().is_some());
    for n in 0..7 {
        let text = format!("{n}");
        store.rotate(&named(&made.id), (digest(&text), text), (2600, 9000)).unwrap();
    }
    let more = store.rotate(&named(&made.id), (digest("x"), "x".into()), (2600, 9000));
    assert!(matches!(more, Err(StoreFault::Refused(_))), "{more:?}");
    store.rotate(&named(&made.id), (digest("x"), "x".into()), (9000, 9000)).unwrap();
}

/// Catches: a damaged store in whose place an empty one is made, that is written to, or that is
/// taken for a sound one.
#[test]
fn what_is_no_sound_store_is_left_alone() {
    let folder = Folder::new("broken");
    let store = folder.store();
    (0..2000).for_each(|n| store.create(&key(&format!("{n:020}"), json!({}))).unwrap());
    drop(store);
    let file = folder.file();
    let sound = fs::read(&file).unwrap();
    let mut torn = sound.clone();
    torn[8192..sound.len() - 4096].fill(0xaa);
    let foreign = {
        let path = folder.0.join("foreign.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        drop(connection);
        fs::read(path).unwrap()
    };
    let mut newer = sound.clone();
    newer[63] = 9;
    for (bytes, word) in [
        (b"garbage, and not a little of it".repeat(200), "cannot be used"),
        (Vec::new(), "no store of keys"),
        (sound[..5000].to_vec(), ""),
        (torn, ""),
        (foreign, "no store of keys"),
        (newer, "form 9"),
    ] {
        fs::write(&file, &bytes).unwrap();
        let error = KeyStore::open(&file).err().unwrap();
        assert!(error.contains(word) && error.contains("keys.db"), "{word}: {error}");
        assert!(fs::read(&file).unwrap() == bytes, "{word}: it was changed");
    }
    fs::remove_file(&file).unwrap();
    let log = file.with_file_name("keys.db-wal");
    fs::write(&log, "x").unwrap();
    assert!(KeyStore::open(&file).err().unwrap().contains("keys.db-wal"));
    fs::remove_file(&log).unwrap();
    fs::write(&file, &sound).unwrap();
    assert!(folder.store().find(&digest(&format!("{:020}", 7)), 0).unwrap().is_some());
    let names = fs::read_dir(file.parent().unwrap()).unwrap();
    assert!(names.flatten().all(|file| !file.file_name().to_string_lossy().contains("new")));
}

/// Catches: a process that goes on writing to a file that has lost its name, a row that somebody
/// edited and that is taken for a key without limits.
#[test]
fn what_others_did_to_the_file_is_seen() {
    let folder = Folder::new("others");
    let store = folder.store();
    store.create(&key(A, json!({}))).unwrap();
    let edit = rusqlite::Connection::open(folder.file()).unwrap();
    edit.execute("UPDATE keys SET settings = '{\"stauts\": \"disabled\"}'", []).unwrap();
    let fault = store.find(&digest(A), 0).unwrap_err();
    assert!(matches!(&fault, StoreFault::Unavailable(why) if why.contains("stauts")), "{fault:?}");
    drop(edit);
    fs::rename(folder.file(), folder.0.join("elsewhere")).unwrap();
    let gone = store.create(&key(B, json!({})));
    assert!(matches!(gone, Err(StoreFault::Unavailable(_))), "{gone:?}");
}

/// Catches: two writers of one file who both make a key, or of whom one fails because the other
/// writes; one that does not see what the other did.
#[test]
fn several_processes_share_a_file() {
    let folder = Folder::new("share");
    let stores: Vec<KeyStore> = std::thread::scope(|scope| {
        let opened: Vec<_> = (0..4).map(|_| scope.spawn(|| folder.store())).collect();
        opened.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let made: usize = std::thread::scope(|scope| {
        let threads = stores.iter().map(|store| {
            scope.spawn(|| {
                let keys = (0..25).map(|n| key(&format!("{n:020}"), json!({})));
                let made = keys.map(|key| store.create(&key));
                made.filter(|made| match made {
                    Ok(()) => true,
                    Err(StoreFault::Conflict(_)) => false,
                    Err(other) => panic!("{other}"),
                })
                .count()
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(made, 25);
    for store in &stores {
        let all = store.list(&KeyFilter::default(), &KeySpan::Offset(0), 100).unwrap();
        assert_eq!((all.0.len(), all.1), (25, 25));
    }
    stores[0].delete(&named(&format!("{:020}", 3))).unwrap();
    assert_eq!(stores[3].find(&digest(&format!("{:020}", 3)), 0).unwrap(), None);
}

/// Catches: a page that leaves keys out or shows them twice, a filter that does not hold.
#[test]
fn lists_are_paged_and_filtered() {
    let folder = Folder::new("list");
    let store = folder.store();
    for n in 0..25 {
        let user = ["anna", "ben"][n % 2];
        let status = ["active", "disabled", "active"][n % 3];
        let more = json!({"name": format!("n{n}"), "user_id": user, "status": status});
        store.create(&key(&format!("{n:020}"), more)).unwrap();
    }
    let names = |filter: &KeyFilter, span: &KeySpan, limit| {
        let (keys, total) = store.list(filter, span, limit).unwrap();
        (keys.into_iter().map(|key| key.facts.name).collect::<Vec<_>>(), total)
    };
    let all = KeyFilter::default();
    let (first, total) = names(&all, &KeySpan::Offset(0), 10);
    assert_eq!((first[0].as_str(), first.len(), total), ("n0", 10, 25));
    assert_eq!(names(&all, &KeySpan::Offset(24), 10).0, ["n24"]);
    let ninth = store.list(&all, &KeySpan::Offset(9), 1).unwrap().0.remove(0);
    assert_eq!(names(&all, &KeySpan::After(ninth.id), 2).0, ["n10", "n11"]);
    let unknown = store.list(&all, &KeySpan::After("x".into()), 2);
    assert_eq!(unknown.unwrap_err(), StoreFault::NotFound);
    let of_ben = KeyFilter { user_id: Some("ben".into()), ..all.clone() };
    assert_eq!(names(&of_ben, &KeySpan::Offset(0), 100).1, 12);
    let off = KeyFilter { status: Some("disabled".into()), ..of_ben };
    assert_eq!(names(&off, &KeySpan::Offset(0), 100).0, ["n1", "n7", "n13", "n19"]);
    let named = KeyFilter { name: Some("n4".into()), ..all };
    assert_eq!(names(&named, &KeySpan::Offset(0), 100), (vec!["n4".to_owned()], 1));
    let counts = store.count().unwrap();
    assert_eq!(counts, [("active".to_owned(), 17), ("disabled".to_owned(), 8)]);
}

/// Catches: an export that does not bring the same keys back, an import that half happens, or that
/// does with a key what nobody asked for.
#[test]
fn what_is_exported_can_be_imported() {
    let (from, to) = (Folder::new("export"), Folder::new("import"));
    let (store, other) = (from.store(), to.store());
    store.create(&key(A, json!({"name": "a", "total_quota": 7, "metadata": {"x": 1}}))).unwrap();
    store.create(&key(C, json!({"name": "c"}))).unwrap();
    let late = i64::MAX / 2_000_000;
    store.rotate(&named(A), (digest(B), prefix_of(B)), (2000, late)).unwrap();
    store.note_uses(&[(digest(A), 2500)]).unwrap();
    let listed =
        |store: &KeyStore| store.list(&KeyFilter::default(), &KeySpan::Offset(0), 100).unwrap().0;
    let text = |keys: Vec<StoredKey>| -> Vec<String> {
        keys.iter().map(|key| Value::Object(exported_key(key)).to_string()).collect()
    };
    let lines = text(listed(&store));
    assert!(!lines.concat().contains("aaaaaaaa"), "{lines:?}");
    let keys = |lines: &[String]| -> Vec<StoredKey> {
        lines
            .iter()
            .map(|line| imported(&serde_json::from_str(line).unwrap(), 9).unwrap())
            .collect()
    };
    let done = other.import(&keys(&lines), OnConflict::Fail, false).unwrap();
    assert_eq!(done, Imported { created: 2, ..Imported::default() });
    assert_eq!(text(listed(&other)), lines);
    assert!(other.find(&digest(B), 3000).unwrap().is_some());
    let fresh = || imported(&object(json!({"key": "0123456789abcdef"})), 9).unwrap();
    let again = [fresh(), keys(&lines).remove(0)];
    let failed = other.import(&again, OnConflict::Fail, false).unwrap_err();
    assert!(matches!(failed, StoreFault::Conflict(_)), "{failed}");
    assert_eq!(other.find(&digest("0123456789abcdef"), 9).unwrap(), None, "all or nothing");
    let renamed = |text: &str| imported(&object(json!({"key": text, "name": "new"})), 9).unwrap();
    let both = [renamed(B), fresh()];
    let done = other.import(&both, OnConflict::Skip, false).unwrap();
    assert_eq!((done.created, done.skipped), (1, 1));
    assert_eq!(other.get(&named(A)).unwrap().facts.name, "a");
    let done = other.import(&both, OnConflict::Replace, false).unwrap();
    assert_eq!(done.replaced, 2);
    let now = other.get(&named(A)).unwrap();
    assert_eq!((now.facts.name.as_str(), now.texts.len()), ("new", 2), "its texts stay");
    assert_eq!(now.facts.digest, digest(A));
    let done = other.import(&both, OnConflict::Replace, true).unwrap();
    assert_eq!((done.replaced, done.deleted), (2, 1));
    assert_eq!(other.find(&digest(C), 9).unwrap(), None);
    assert_eq!(listed(&other).len(), 2);
}

/// Catches: a member that is misspelt or wrong and is passed over.
#[test]
fn what_cannot_be_taken_is_named() {
    for (name, value) in [
        ("nmae", json!("x")),
        ("id", json!("x")),
        ("key", json!("x")),
        ("name", json!(7)),
        ("name", json!("a\nb")),
        ("name", json!("x".repeat(257))),
        ("status", json!("actve")),
        ("status", json!(4)),
        ("status", json!(true)),
        ("total_quota", json!(-1)),
        ("total_quota", json!(1.5)),
        ("total_quota", json!("7")),
        ("total_quota", json!(u64::MAX)),
        ("quota_reset_period", json!("hourly")),
        ("balance", json!("much")),
        ("allowed_ips", json!("10.0.0.0/8")),
        ("allowed_ips", json!(["10.0.0.1/8"])),
        ("denied_ips", json!([7])),
        ("allowed_models", json!(["a*b"])),
        ("expires_at", json!("soon")),
        ("expires_at", json!("2026-12-31T23:59:59")),
        ("expires_at", json!(-5)),
        ("expires_at", json!(1e300)),
        ("rate_limit", json!({"rpm": 5})),
        ("rate_limit", json!({"burst_size": 5})),
        ("rate_limit", json!({"max_concurrent": 65_536})),
        ("rate_limit", json!("5")),
        ("metadata", json!([])),
        ("metadata", json!({"x": "y".repeat(9000)})),
    ] {
        let mut facts = KeyFacts::new(digest(A));
        let fault = apply(&mut facts, &object(json!({name: value.clone()})), &[]).unwrap_err();
        assert_eq!(fault.param, name, "{value}");
    }
    let mut facts = KeyFacts::new(digest(A));
    let ends = object(json!({"starts_at": "2026-02-01", "expires_at": "2026-01-01"}));
    assert_eq!(apply(&mut facts, &ends, &[]).unwrap_err().param, "expires_at");
    for line in [
        json!({}),
        json!({"key": "short"}),
        json!({"key": "with a blank in it"}),
        json!({"key": "0123456789abcdef", "sha256": hex(digest(A).as_bytes())}),
        json!({"sha256": "abc"}),
        json!({"identity": hex(digest(A).as_bytes())}),
        json!({"identity": hex(digest(A).as_bytes()), "texts": []}),
    ] {
        assert!(imported(&object(line.clone()), 0).is_err(), "{line}");
    }
}

#[test]
fn times_may_be_written_in_several_ways() {
    for (value, wanted) in [
        (json!("2026-12-31T23:59:59Z"), Some("2026-12-31T23:59:59Z")),
        (json!("2026-12-31"), Some("2027-01-01T00:00:00Z")),
        (json!(1_798_761_599), Some("2026-12-31T23:59:59Z")),
        (json!(1_798_761_599_000_i64), Some("2026-12-31T23:59:59Z")),
        (json!(""), None),
        (json!(null), None),
    ] {
        let mut facts = KeyFacts::new(digest(A));
        apply(&mut facts, &object(json!({"expires_at": value.clone()})), &[]).unwrap();
        let time = facts.expires_at.map(|time| time.to_string());
        assert_eq!(time.as_deref(), wanted, "{value}");
    }
}

fn any_settings() -> impl Strategy<Value = Map<String, Value>> {
    let text = "[ -~ä-ö]{0,20}";
    let quota = 0..=i64::MAX as u64;
    let time = proptest::option::of(0_i64..4_000_000_000);
    let ips = proptest::collection::vec(any::<std::net::IpAddr>(), 0..3);
    let models = proptest::collection::vec("[a-z:/.-]{1,9}[*]?", 0..3);
    let limits = proptest::option::of((1_u32.., 0_u64..i64::MAX as u64, 0_u32..=0xffff));
    let firsts = (text, text, 0_u64..4, quota.clone(), quota, 0_usize..4);
    (firsts, time, ips, models, limits, text).prop_map(
        |((name, user, status, total, used, period), time, ips, models, limits, note)| {
            let period = ["never", "daily", "weekly", "monthly"][period];
            let limits = limits.map(|(rps, tpm, slots)| {
                json!({"requests_per_second": rps, "tokens_per_minute": tpm,
                       "max_concurrent": slots})
            });
            object(json!({"name": name, "user_id": user, "status": status, "total_quota": total,
                "used_quota": used, "quota_reset_period": period, "expires_at": time,
                "allowed_ips": ips, "allowed_models": models, "rate_limit": limits,
                "balance": (used % 1_000_000) as f64 / 100.0, "metadata": {"note": note}}))
        },
    )
}

proptest! {
    /// Catches: facts that are others once they were kept or exported.
    #[test]
    fn what_is_written_reads_the_same(input in any_settings()) {
        let mut key = StoredKey::new(digest(A), prefix_of(A), 1_700_000_000_123);
        apply(&mut key.facts, &input, &[]).unwrap();
        let mut again = KeyFacts::new(digest(A));
        let text = Value::Object(settings(&key.facts)).to_string();
        apply(&mut again, &serde_json::from_str(&text).unwrap(), &[]).unwrap();
        prop_assert_eq!(&again, &key.facts);
        let back = imported(&exported_key(&key), 5).unwrap();
        prop_assert_eq!(&back, &key);
        prop_assert!(!Value::Object(shown_key(&key)).to_string().contains("aaaaaaaa"));
    }

    /// Catches: a panic, or a member that is taken though nobody knows it.
    #[test]
    fn any_object_is_read_or_refused(name in "[a-z_]{0,12}", text in ".{0,30}", n in any::<i64>()) {
        for value in [json!(text), json!(n), json!([text]), json!({text.clone(): n})] {
            let mut facts = KeyFacts::new(digest(A));
            let read = apply(&mut facts, &object(json!({&name: value})), &[]);
            prop_assert!(read.is_err() || form::SETTINGS.contains(&name.as_str()));
        }
    }
}
