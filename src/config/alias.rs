//! Rewrites what earlier versions and the documents of the seeds allow into the canonical schema,
//! on the tree, before anything is read. The table of the aliases is [`canonical`] itself. Two
//! names of one setting with different values are an error that names both; equal is fine.

use super::desk::{Desk, Note};
use super::path::Path;
use super::raw::{MapEntry, Node, ValueKind};
use super::report::Class;

type Map = Vec<MapEntry>;

/// Moves every alias to its canonical place. What is neither stays where it is and is reported
/// by the readers.
pub fn canonical(desk: &Desk, root: &mut Node) {
    let Some(map) = map_of(root) else { return };
    let alias = Alias { desk };
    alias.move_into(map, "listen", "server", "listen");
    alias.move_into(map, "load_balance_strategy", "routing", "load_balance");
    alias.rename(map, "rate_limits", "rate_limit");
    alias.rename(map, "usage_hook", "usage");
    if let Some(auth) = child(map, "auth") {
        let admin = take(auth, "admin");
        if let Some(admin) = admin {
            alias.put(map, "admin", admin);
        }
    }
    let within = |map: &mut Map, key: &str, rewrite: &dyn Fn(&mut Map)| {
        if let Some(section) = child(map, key) {
            rewrite(section);
        }
    };
    within(map, "server", &|s| alias.server(s));
    within(map, "log", &|s| alias.log(s));
    within(map, "routing", &|s| alias.routing(s));
    within(map, "auth", &|s| alias.auth(s));
    within(map, "usage", &|s| alias.usage(s));
    within(map, "admin", &|s| alias.admin(s));
    each(map, "backends", |b| alias.backend(b));
    each(map, "api_keys", |k| alias.api_key(k));
    if let Some(discovery) = child(map, "discovery") {
        each(discovery, "sources", |source| {
            if let Some(list) = child(source, "static") {
                each(list, "backends", |b| alias.backend(b));
            }
        });
    }
}

struct Alias<'a> {
    desk: &'a Desk<'a>,
}

impl Alias<'_> {
    /// `read_timeout` was one deadline for head and body; it gives both unless they are given.
    fn server(&self, server: &mut Map) {
        let Some(entry) = take(server, "read_timeout") else { return };
        for key in ["header_timeout", "body_timeout"] {
            if !has(server, key) {
                self.put(server, key, entry.clone());
            }
        }
    }

    fn log(&self, log: &mut Map) {
        if let Some(file) = child(log, "file") {
            self.rename(file, "max_size_mb", "max_size");
        }
    }

    fn backend(&self, backend: &mut Map) {
        self.rename(backend, "id", "name");
        self.rename(backend, "timeout", "first_byte_timeout");
    }

    fn routing(&self, routing: &mut Map) {
        self.rename(routing, "load_balance_strategy", "load_balance");
        self.rename(routing, "strategy", "load_balance");
    }

    /// `storage: redis` stands for a pipeline of one provider. Its address stays at `auth.redis`,
    /// which is where the limiter looks for one, too.
    fn auth(&self, auth: &mut Map) {
        if let Some(storage) = take(auth, "storage") {
            if has(auth, "pipeline") {
                let message = "ignored, since `auth.pipeline` is given: name the provider there";
                self.desk.warn(&storage.value, message);
            } else {
                let (id, path) = (storage.value.id, storage.value.path.clone());
                let mut provider = storage.clone();
                provider.key = "type".into();
                let item = Node { id, path: path.clone(), kind: ValueKind::Map(vec![provider]) };
                let value = Node { id, path, kind: ValueKind::List(vec![item]) };
                auth.push(MapEntry { key: "pipeline".into(), key_id: storage.key_id, value });
            }
        }
        each(auth, "pipeline", |provider| {
            self.rename(provider, "lua_script", "script");
            for key in ["lua_script_file", "script_file"] {
                self.move_into(provider, key, "script", "path");
            }
            if let Some(list) = child(provider, "static") {
                each(list, "keys", |k| self.api_key(k));
            }
        });
    }

    fn api_key(&self, key: &mut Map) {
        self.rename(key, "quota", "total_quota");
        // A number alone counts requests per minute.
        if let Some(MapEntry { value, .. }) = key.iter_mut().find(|e| e.key == "rate_limit") {
            if !matches!(value.kind, ValueKind::Map(_) | ValueKind::Null) {
                let number = value.clone();
                let key = "requests_per_minute".into();
                value.kind =
                    ValueKind::Map(vec![MapEntry { key, key_id: number.id, value: number }]);
            }
        }
    }

    /// The flat form (`url` in the section itself) is one webhook named `default`; fields of a
    /// webhook may stand in its reporter; `retry` beside `reporters` is the default of theirs.
    fn usage(&self, usage: &mut Map) {
        if has(usage, "url") {
            let mut webhook = Map::new();
            let (mut id, mut path) = (0, Path::root());
            for key in WEBHOOK {
                let Some(entry) = take(usage, key) else { continue };
                (id, path) = (entry.value.id, entry.value.path.clone());
                webhook.push(entry);
            }
            let node = |kind| Node { id, path: path.clone(), kind };
            let entry = |key: &str, value| MapEntry { key: key.into(), key_id: id, value };
            let reporter = node(ValueKind::Map(vec![
                entry("name", node(ValueKind::Text("default".into()))),
                entry("webhook", node(ValueKind::Map(webhook))),
            ]));
            match usage.iter_mut().find(|e| e.key == "reporters") {
                Some(MapEntry { value: Node { kind: ValueKind::List(items), .. }, .. }) => {
                    items.push(reporter)
                }
                _ => usage.push(entry("reporters", node(ValueKind::List(vec![reporter])))),
            }
        }
        let retry = if has(usage, "reporters") { take(usage, "retry") } else { None };
        each(usage, "reporters", |reporter| {
            if !is_webhook(reporter) {
                return;
            }
            for key in WEBHOOK {
                self.move_into(reporter, key, "webhook", key);
            }
            let Some(webhook) = child(reporter, "webhook") else { return };
            if let Some(retry) = retry.as_ref().filter(|_| !has(webhook, "retry")) {
                webhook.push(retry.clone());
            }
        });
    }

    fn admin(&self, admin: &mut Map) {
        let Some(auth) = child(admin, "auth") else { return };
        let (token, enabled) = (take(auth, "token"), take(auth, "enabled"));
        // What is left in `auth` has no meaning and is reported; an empty rest is gone.
        if auth.is_empty() {
            take(admin, "auth");
        }
        for (key, entry) in [("token", token), ("enabled", enabled)] {
            if let Some(entry) = entry {
                self.put(admin, key, entry);
            }
        }
    }

    /// Moves a key within its section.
    fn rename(&self, map: &mut Map, from: &str, to: &str) {
        if let Some(entry) = take(map, from) {
            self.put(map, to, entry);
        }
    }

    /// Moves a key of `map` into a section of it, which is made when it is not there.
    fn move_into(&self, map: &mut Map, from: &str, section: &str, to: &str) {
        if from == section || !has(map, from) {
            return;
        }
        let there = map.iter().find(|e| e.key == section).map(|e| &e.value.kind);
        if !matches!(there, None | Some(ValueKind::Null | ValueKind::Map(_))) {
            // The reader of the section says what is wrong with it; the alias stays and is named.
            return;
        }
        let Some(entry) = take(map, from) else { return };
        if !has(map, section) {
            let value = Node { kind: ValueKind::Null, ..entry.value.clone() };
            map.push(MapEntry { key: section.into(), key_id: entry.key_id, value });
        }
        if let Some(section) = child(map, section) {
            self.put(section, to, entry);
        }
    }

    /// Adds an entry under its canonical key. When the key is there already, two sections are
    /// united and two equal values are one; anything else is a conflict.
    fn put(&self, map: &mut Map, key: &str, mut entry: MapEntry) {
        let Some(there) = map.iter_mut().find(|e| e.key == key) else {
            entry.key = key.into();
            map.push(entry);
            return;
        };
        if same(&there.value, &entry.value) {
            return;
        }
        if let (ValueKind::Map(old), ValueKind::Map(new)) =
            (&mut there.value.kind, &mut entry.value.kind)
        {
            for entry in std::mem::take(new) {
                let key = entry.key.clone();
                self.put(old, &key, entry);
            }
            return;
        }
        let message =
            format!("is another name of `{}`, and the two say different things", there.value.path);
        self.desk.notes.borrow_mut().push(Note {
            class: Class::Error,
            id: Some(entry.value.id),
            path: entry.value.path.to_string(),
            message,
            other: Some(there.value.id),
        });
    }
}

/// Fields of a webhook that may stand outside its own section.
const WEBHOOK: [&str; 5] = ["url", "timeout", "retry", "method", "headers"];

fn is_webhook(reporter: &Map) -> bool {
    match reporter.iter().find(|e| e.key == "type").map(|e| &e.value.kind) {
        None => true,
        Some(ValueKind::Text(kind)) => kind == "webhook",
        Some(_) => false,
    }
}

fn map_of(node: &mut Node) -> Option<&mut Map> {
    // A section without any line in it is present and empty.
    if matches!(node.kind, ValueKind::Null) {
        node.kind = ValueKind::Map(Map::new());
    }
    match &mut node.kind {
        ValueKind::Map(map) => Some(map),
        _ => None,
    }
}

fn child<'m>(map: &'m mut Map, key: &str) -> Option<&'m mut Map> {
    map.iter_mut().find(|e| e.key == key).and_then(|e| map_of(&mut e.value))
}

/// Every mapping of the list under a key.
fn each(map: &mut Map, key: &str, rewrite: impl Fn(&mut Map)) {
    let Some(entry) = map.iter_mut().find(|e| e.key == key) else { return };
    let ValueKind::List(items) = &mut entry.value.kind else { return };
    items.iter_mut().filter_map(map_of).for_each(rewrite);
}

fn has(map: &Map, key: &str) -> bool {
    map.iter().any(|e| e.key == key)
}

fn take(map: &mut Map, key: &str) -> Option<MapEntry> {
    let at = map.iter().position(|e| e.key == key)?;
    Some(map.remove(at))
}

/// Equal values, wherever they stand.
fn same(a: &Node, b: &Node) -> bool {
    match (&a.kind, &b.kind) {
        (ValueKind::Null, ValueKind::Null) => true,
        (ValueKind::Text(a), ValueKind::Text(b)) => a == b,
        (ValueKind::List(a), ValueKind::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (ValueKind::Map(a), ValueKind::Map(b)) => {
            a.len() == b.len()
                && a.iter().all(|x| b.iter().any(|y| x.key == y.key && same(&x.value, &y.value)))
        }
        _ => false,
    }
}
