use super::router::ROUTES;
use super::*;
use crate::http::request::Method;
use serde_json::{json, Value};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

mod schema;

/// An API on a store of its own, without a gateway.
struct Bench {
    api: AdminApi,
    folder: PathBuf,
    document: Value,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Bench {
    fn new(name: &str) -> Bench {
        let folder =
            std::env::temp_dir().join(format!("llmproxy-api-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let store = KeyStore::open(&folder.join("keys.db")).unwrap();
        let document = serde_json::from_str(include_str!("openapi.json")).unwrap();
        Bench { api: AdminApi::of_store(Arc::new(store)), folder, document }
    }

    /// Asks, and holds the answer against the document.
    fn raw(&self, method: Method, target: &str, body: &str, may_change: bool) -> (u16, String) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (path, query) = (path.to_owned(), query.to_owned());
        let request =
            AdminRequest { method: method.as_str(), path, query, body: body.into(), may_change };
        let found = router::route(&request).map(|(route, _)| route.path);
        let answer = self.api.answer(&request);
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        if let Ok(path) = found {
            schema::check_answer(&self.document, (method, path), answer.status, &text);
        }
        (answer.status, text)
    }

    fn ask(&self, method: Method, target: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, text) = self.raw(method, target, &body, true);
        (status, serde_json::from_str(&text).unwrap())
    }

    fn old(&self, call: &str, body: Value) -> (u16, Value) {
        self.ask(Method::Post, &format!("/admin/keys/{call}"), body)
    }
}

const KEYS: &str = "/admin/api-keys";
const GIVEN: &str = "sk-llmproxy-given/key%41?x=1&y#z";

/// Catches: a document that tells of what is not there, or not of what is.
#[test]
fn the_document_has_all_routes() {
    let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
    let told = document["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().keys();
        methods.map(move |method| (method.to_uppercase(), path.clone()))
    });
    let told: BTreeSet<_> = told.collect();
    let ours = ROUTES.iter().map(|it| (it.method.as_str().to_owned(), it.path.to_owned()));
    assert_eq!(told, ours.collect());
    assert_eq!(document["openapi"], "3.1.0");
}

/// Catches: an answer without what it is for, a key that is shown twice, one that is not the one
/// that was made.
#[test]
fn a_key_has_a_life() {
    let bench = Bench::new("life");
    let input = json!({"name": "team-a", "user_id": "u1", "total_quota": 1000,
        "quota_reset_period": "monthly", "allowed_models": ["llama-3-*"],
        "expires_at": "2026-12-31T23:59:59Z"});
    let (status, made) = bench.ask(Method::Post, KEYS, input);
    assert_eq!((status, &made["name"]), (201, &json!("team-a")));
    let key = made["key"].as_str().unwrap();
    assert!(key.starts_with("sk-llmproxy-") && made["created_at"].is_string(), "{made}");
    let one = format!("{KEYS}/{}", made["id"].as_str().unwrap());
    let (status, shown) = bench.ask(Method::Get, &one, Value::Null);
    assert_eq!((status, &shown["expires_at"]), (200, &json!("2026-12-31T23:59:59Z")));
    let (_, list) = bench.ask(Method::Get, &format!("{KEYS}?user_id=u1"), Value::Null);
    assert_eq!((&list["total"], &list["data"][0]["id"]), (&json!(1), &made["id"]));
    let (_, export) = bench.raw(Method::Get, &format!("{KEYS}/export"), "", true);
    for text in [shown.to_string(), list.to_string(), export] {
        assert!(!text.contains(key), "{text}");
    }
    let (status, changed) = bench.ask(Method::Patch, &one, json!({"used_quota": 250}));
    assert_eq!((status, &changed["used_quota"]), (200, &json!(250)));
    let (_, usage) = bench.ask(Method::Get, &format!("{one}/usage"), Value::Null);
    assert_eq!(
        (&usage["remaining_quota"], &usage["usage_percentage"]),
        (&json!(750), &json!(25.0))
    );
    // Nobody counts, and nobody knows the zone of its calendar.
    assert_eq!(
        (&usage["used_quota_source"], &usage["quota_resets_at"]),
        (&json!("store"), &Value::Null)
    );
    let (status, turned) =
        bench.ask(Method::Post, &format!("{one}/rotate"), json!({"grace_period": "1h"}));
    assert!(status == 200 && turned["key"] != made["key"] && turned["id"] == made["id"]);
    let (status, gone) = bench.ask(Method::Delete, &one, Value::Null);
    assert_eq!((status, &gone["deleted"]), (200, &json!(true)));
    let (status, none) = bench.ask(Method::Get, &one, Value::Null);
    assert_eq!((status, &none["error"]["code"]), (404, &json!("key_not_found")));
}

/// Catches: a list of what is used that leaves a key out between two pages, or names another one's
/// figures, and a filter that is passed over.
#[test]
fn what_all_keys_have_used_is_told_page_by_page() {
    let bench = Bench::new("usage");
    for n in 0..5 {
        let user = if n < 3 { "u" } else { "v" };
        let input = json!({"name": format!("k{n}"), "user_id": user, "used_quota": n * 10,
            "total_quota": if n == 4 { 0 } else { 100 }, "quota_reset_period": "daily"});
        assert_eq!(bench.ask(Method::Post, KEYS, input).0, 201);
    }
    let page = |query: &str| {
        let (status, page) = bench.ask(Method::Get, &format!("/admin/usage{query}"), Value::Null);
        assert_eq!(status, 200, "{page}");
        page
    };
    let (mut after, mut found) = (String::new(), Vec::new());
    loop {
        let page = page(&format!("?limit=2{after}"));
        assert_eq!(page["total"], 5);
        found.extend(page["data"].as_array().unwrap().clone());
        if page["has_more"] == false {
            break;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
    let used: Vec<_> = found.iter().map(|it| (&it["name"], &it["used_quota"])).collect();
    let wanted: Vec<_> = (0..5).map(|n| (json!(format!("k{n}")), json!(n * 10))).collect();
    assert_eq!(used, wanted.iter().map(|(name, used)| (name, used)).collect::<Vec<_>>());
    for it in &found {
        let one = format!("{KEYS}/{}/usage", it["id"].as_str().unwrap());
        assert_eq!(&bench.ask(Method::Get, &one, Value::Null).1, it, "as it is told of it alone");
    }
    assert_eq!(
        (&found[3]["remaining_quota"], &found[4]["remaining_quota"]),
        (&json!(70), &Value::Null)
    );
    assert_eq!((&page("?user_id=u")["total"], &page("?name=k4")["total"]), (&json!(3), &json!(1)));
    assert_eq!(bench.ask(Method::Get, "/admin/usage?limit=101", Value::Null).0, 400);
    assert_eq!(bench.ask(Method::Get, "/admin/usage?key=k", Value::Null).0, 400);
    assert_eq!(bench.ask(Method::Post, "/admin/usage", json!({})).0, 405);
}

/// Catches: a key in a path that is taken for a part of the path, or for another key.
#[test]
fn a_key_may_stand_in_a_path() {
    let bench = Bench::new("path");
    let (status, made) = bench.ask(Method::Post, KEYS, json!({"key": GIVEN, "name": "it"}));
    assert_eq!((status, made["key"].as_str()), (201, Some(GIVEN)));
    let whole: String = GIVEN.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let (status, shown) = bench.ask(Method::Get, &format!("{KEYS}/{whole}"), Value::Null);
    assert_eq!((status, &shown["name"]), (200, &json!("it")));
    for (path, wanted) in [
        (format!("{KEYS}/{GIVEN}"), 404),
        (format!("{KEYS}/{whole}%"), 400),
        (format!("{KEYS}/{whole}%zz"), 400),
        (format!("{KEYS}/%ff"), 400),
        (format!("{KEYS}/{whole}/"), 404),
        (format!("{KEYS}//"), 404),
        (format!("{KEYS}/"), 404),
        (format!("/{KEYS}"), 404),
        ("/admin/./api-keys".into(), 404),
        ("/admin/x/../api-keys".into(), 404),
        ("/admin/%61pi-keys".into(), 404),
        ("/ADMIN/api-keys".into(), 404),
        ("/admin".into(), 404),
        ("".into(), 404),
        (format!("{KEYS}/..%2fexport"), 404),
        (format!("{KEYS}/%2e%2e"), 404),
    ] {
        let (status, told) = bench.ask(Method::Get, &path, Value::Null);
        assert_eq!(status, wanted, "{path}: {told}");
        assert!(!told.to_string().contains("given"), "{told}");
    }
    // A name of ours is not taken for a key.
    for path in [KEYS, "/admin/api-keys/export", "/admin/api-keys/import"] {
        assert_eq!(bench.ask(Method::Delete, path, Value::Null).0, 405, "{path}");
    }
}

/// Catches: something misspelt that is passed over, or whose name is not said; an error that has
/// another shape, or repeats a key.
#[test]
fn what_is_wrong_is_named() {
    let bench = Bench::new("wrong");
    let made = |key: &str| bench.ask(Method::Post, KEYS, json!({"key": key})).0;
    assert_eq!((made(GIVEN), made(GIVEN)), (201, 409));
    let one =
        format!("{KEYS}/{}", bench.ask(Method::Post, KEYS, json!({})).1["id"].as_str().unwrap());
    let rotate = format!("{one}/rotate");
    for (method, path, body, param) in [
        (Method::Post, KEYS, "{\"nmae\": \"x\"}", Some("nmae")),
        (Method::Post, KEYS, "{\"name\": 5}", Some("name")),
        (Method::Post, KEYS, "{\"key\": \"planted-secret\"}", Some("key")),
        (Method::Post, KEYS, "{\"key\": \"planted secret planted secret\"}", Some("key")),
        (Method::Post, KEYS, "{\"key\": 7}", Some("key")),
        (Method::Post, KEYS, "{\"name\": \"a\", \"name\": \"b\"}", None),
        (Method::Post, KEYS, "", None),
        (Method::Post, KEYS, "[]", None),
        (Method::Post, KEYS, "\"planted-secret\"", None),
        (Method::Post, KEYS, "{\"key\": planted-secret}", None),
        (Method::Post, KEYS, "{} {}", None),
        (Method::Post, "/admin/api-keys?name=x", "{}", Some("name")),
        (Method::Get, "/admin/api-keys?limit=101", "", Some("limit")),
        (Method::Get, "/admin/api-keys?limit=-1", "", Some("limit")),
        (Method::Get, "/admin/api-keys?limit=5&limit=6", "", Some("limit")),
        (Method::Get, "/admin/api-keys?after=x&offset=5", "", Some("after")),
        (Method::Get, "/admin/api-keys?status=off", "", Some("status")),
        (Method::Get, "/admin/api-keys?usr=off", "", Some("usr")),
        (Method::Get, "/admin/api-keys/export?limit=1001", "", Some("limit")),
        (Method::Post, "/admin/api-keys/import", "", None),
        (Method::Post, "/admin/api-keys/import", "{\"key\": \"planted-secret\"}\n", Some("key")),
        (Method::Post, "/admin/api-keys/import?on_conflict=x", "{}\n", Some("on_conflict")),
        (Method::Patch, &one, "{\"key\": \"planted-secret-planted\"}", Some("key")),
        (Method::Patch, &one, "{\"id\": \"x\"}", Some("id")),
        (Method::Post, &rotate, "{\"grace_period\": \"soon\"}", Some("grace_period")),
        (Method::Post, &rotate, "{\"grace_period\": -1}", Some("grace_period")),
        (Method::Post, &rotate, "{\"grace_period\": 31536001}", Some("grace_period")),
        (Method::Post, &rotate, "{\"grace\": 5}", Some("grace")),
    ] {
        let (status, text) = bench.raw(method, path, body, true);
        let told: Value = serde_json::from_str(&text).unwrap();
        let error = &told["error"];
        assert_eq!((status, error["param"].as_str()), (400, param), "{path} {body}: {told}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().len() > 10, "{told}");
        assert!(!text.contains("planted"), "{text}");
    }
    let (_, list) = bench.ask(Method::Get, KEYS, Value::Null);
    assert_eq!(list["total"], 2, "nothing of it was made");
}

/// Catches: a change where nothing may be changed, a question that is refused there.
#[test]
fn readers_change_nothing() {
    let bench = Bench::new("readers");
    for route in ROUTES {
        let path = route.path.replace("{key}", "x").replace("{name}", "x");
        let (status, text) = bench.raw(route.method, &path, "{}", false);
        assert_eq!(status == 403, route.changes, "{path}: {status} {text}");
        let reads = matches!(route.method, Method::Get | Method::Head)
            || ["/admin/keys/get", "/admin/keys/list"].contains(&route.path);
        assert_eq!(route.changes, !reads, "{path}");
    }
}

/// Catches: a program of the first implementation that is not understood, or is answered in
/// another envelope; a full sync that takes all keys away by mistake.
#[test]
fn the_old_calls_are_as_they_were() {
    let bench = Bench::new("old");
    let (one, two) = ("old-key-number-one", "old-key-number-two");
    let input = json!({"key": one, "name": "n", "user_id": "u", "status": 1,
        "starts_at": "2026-01-01T00:00:00Z", "expires_at": ""});
    let (status, made) = bench.old("create", input.clone());
    assert_eq!((status, &made["success"], &made["data"]["status"]), (200, &json!(true), &json!(1)));
    let (status, again) = bench.old("create", input);
    assert_eq!(
        (status, &again["success"], &again["error"]),
        (409, &json!(false), &json!("key_exists"))
    );
    let (status, changed) = bench.old("update", json!({"key": one, "status": 0, "starts_at": ""}));
    assert_eq!((status, &changed["data"]["starts_at"]), (200, &Value::Null));
    let (_, got) = bench.old("get", json!({"key": one}));
    assert_eq!((&got["data"]["status"], &got["data"]["name"]), (&json!(0), &json!("n")));
    for (call, body, wanted) in [
        ("create", json!({}), 400),
        ("create", json!({"key": "short"}), 400),
        ("update", json!({"key": "no-such-key-at-all"}), 404),
        ("update", json!({"key": one, "statsu": 1}), 400),
        ("delete", json!({"key": one, "name": "x"}), 400),
        ("get", json!({"key": ""}), 400),
        ("list", json!({"page": 1}), 400),
        ("list", json!({"limit": "x"}), 400),
        ("sync", json!({"keys": []}), 400),
        ("sync", json!({"keys": [], "mode": "full"}), 400),
        ("sync", json!({"keys": [], "mode": "all"}), 400),
        ("sync", json!({"keys": [{"key": "short"}], "mode": "incremental"}), 400),
        ("sync", json!({"keys": [7], "mode": "incremental"}), 400),
        ("nothing", json!({}), 404),
    ] {
        let (status, told) = bench.old(call, body);
        assert_eq!((status, &told["success"]), (wanted, &json!(false)), "{call}: {told}");
    }
    let list = || bench.old("list", Value::Null).1["data"].clone();
    assert_eq!(list()["total"], 1);
    let (status, synced) =
        bench.old("sync", json!({"mode": "incremental", "keys": [{"key": two, "name": "two"}]}));
    assert_eq!((status, &synced["data"]["created"]), (200, &json!(1)));
    let all = json!({"mode": "full", "keys": [{"key": two, "name": "second"}]});
    let (_, synced) = bench.old("sync", all);
    assert_eq!((&synced["data"]["updated"], &synced["data"]["deleted"]), (&json!(1), &json!(1)));
    assert_eq!(list()["keys"][0]["name"], "second");
    assert_eq!(bench.old("delete", json!({"key": two})).0, 200);
    let (status, _) = bench.old("sync", json!({"mode": "full", "keys": [], "confirm": true}));
    assert_eq!((status, &list()["total"]), (200, &json!(0)));
}

/// Catches: what the document does not allow and the API takes, for any member of a key.
#[test]
fn nothing_is_taken_that_the_document_forbids() {
    let bench = Bench::new("document");
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(3),
        json!(1.5),
        json!(1e300),
        json!(""),
        json!("active"),
        json!("monthly"),
        json!("2030-01-01"),
        json!("10.0.0.0/8"),
        json!("x".repeat(300)),
        json!([]),
        json!(["10.0.0.0/8"]),
        json!([1]),
        json!({}),
        json!({"requests_per_minute": 5}),
        json!({"a": 1}),
        json!(9_223_372_036_854_775_808_u64),
    ];
    let names = crate::control::key_store::form::SETTINGS.iter().copied();
    let mut taken = 0;
    for name in names.chain(["key", "id", "created_at", "other"]) {
        for value in &values {
            let input = json!({name: value});
            let (status, told) = bench.ask(Method::Post, KEYS, input.clone());
            let schema = &bench.document["components"]["schemas"]["KeyInput"];
            let fits = schema::fits(&bench.document, schema, &input);
            assert!(status == 400 || fits, "{input} is taken and not allowed: {told}");
            taken += usize::from(status == 201);
        }
    }
    assert!(taken > 40, "{taken}");
}
