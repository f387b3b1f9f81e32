//! What a reload would change: two plans, key by key, as the file calls the keys.

use super::plan::{compared, shown, Backend, Plan};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// A value longer than this is cut where it is shown.
const SHOWN_CHARS_MAX: usize = 80;

/// The difference between two plans.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Backends that come, go or are called otherwise.
    pub backends: Vec<BackendChange>,
    /// Keys with another value, in the order of their names.
    pub keys: Vec<KeyChange>,
}

/// What becomes of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendChange {
    /// It is new.
    Added {
        /// Its name.
        name: String,
        /// Its URL.
        url: String,
    },
    /// It gets no new requests; those that it has end.
    Removed {
        /// Its name.
        name: String,
        /// Its URL.
        url: String,
    },
    /// One that goes and one that comes have the same URL.
    Renamed {
        /// The name that it had.
        from: String,
        /// The name that it has.
        to: String,
    },
}

/// A key with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// The key, such as `routing.load_balance` or `backends[gpu-1].weight`.
    pub key: String,
    /// How the value changes. No secret is in it.
    pub what: String,
    /// Only a restart changes it: a reload keeps the value that is in use.
    pub needs_restart: bool,
}

/// Compares what is in use with what a file asks for.
pub fn compare(old: &Plan, new: &Plan) -> Changes {
    let kept = new.clone().keep_boot_of(old);
    let mut changes = Changes { backends: backends(&old.backends, &new.backends), keys: vec![] };
    let (old_values, new_values) =
        (values(&changes.with_new_names(old)), values(&without_consequences(old, new)));
    let all: BTreeMap<&String, ()> =
        old_values.keys().chain(new_values.keys()).map(|key| (key, ())).collect();
    for key in all.into_keys() {
        let (before, after) = (old_values.get(key), new_values.get(key));
        if before == after || changes.is_of_another_backend(key) {
            continue;
        }
        let is_in = |kept: &&str| key.strip_prefix(*kept).is_some_and(is_end_of_key);
        let what = difference(before, after);
        let needs_restart = kept.iter().any(is_in);
        changes.keys.push(KeyChange { key: key.clone(), what, needs_restart });
    }
    changes
}

impl Changes {
    /// True when a reload would change nothing.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty() && self.keys.is_empty()
    }

    /// Keys that only a restart changes.
    pub fn restart_keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().filter(|change| change.needs_restart).map(|change| change.key.as_str())
    }

    /// A line for each change.
    pub fn lines(&self) -> Vec<String> {
        let backends = self.backends.iter().map(BackendChange::to_string);
        backends.chain(self.keys.iter().map(KeyChange::to_string)).collect()
    }

    /// The old plan with the new names: what else changes of a renamed backend is told under them.
    fn with_new_names(&self, old: &Plan) -> Plan {
        let mut plan = old.clone();
        for change in &self.backends {
            let BackendChange::Renamed { from, to } = change else { continue };
            let renamed = plan.backends.iter_mut().find(|backend| backend.name == *from);
            renamed.into_iter().for_each(|backend| backend.name.clone_from(to));
        }
        plan
    }

    /// True for a key of a backend that comes or goes: one line tells that already.
    fn is_of_another_backend(&self, key: &str) -> bool {
        let Some(rest) = key.strip_prefix("backends[") else { return false };
        let is_of = |name: &str| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(']'));
        self.backends.iter().any(|change| match change {
            BackendChange::Added { name, .. } | BackendChange::Removed { name, .. } => is_of(name),
            BackendChange::Renamed { .. } => false,
        })
    }
}

impl Display for BackendChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendChange::Added { name, url } => write!(f, "backend {name} ({url}): added"),
            BackendChange::Removed { name, url } => write!(f, "backend {name} ({url}): removed"),
            BackendChange::Renamed { from, to } => write!(f, "backend {from}: renamed to {to}"),
        }
    }
}

impl Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let restart = if self.needs_restart { " (needs a restart)" } else { "" };
        write!(f, "{}: {}{restart}", self.key, self.what)
    }
}

/// The new plan without what changes only because another key does: nobody asked for that.
fn without_consequences(old: &Plan, new: &Plan) -> Plan {
    let mut plan = new.clone();
    if plan.server.cpu_affinity_auto && old.server.cpu_affinity_auto {
        plan.server.cpu_affinity.clone_from(&old.server.cpu_affinity);
    }
    plan
}

fn is_end_of_key(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with(['.', '['])
}

/// Backends are told apart by their names.
fn backends(old: &[Backend], new: &[Backend]) -> Vec<BackendChange> {
    let is_in = |list: &[Backend], one: &Backend| list.iter().any(|b| b.name == one.name);
    let mut gone: Vec<&Backend> = old.iter().filter(|one| !is_in(new, one)).collect();
    let mut changes = Vec::new();
    for one in new.iter().filter(|one| !is_in(old, one)) {
        changes.push(match gone.iter().position(|other| other.url == one.url) {
            Some(at) => {
                BackendChange::Renamed { from: gone.remove(at).name.clone(), to: one.name.clone() }
            }
            None => BackendChange::Added { name: one.name.clone(), url: one.url.clone() },
        });
    }
    let removed = gone.into_iter();
    changes.extend(
        removed.map(|b| BackendChange::Removed { name: b.name.clone(), url: b.url.clone() }),
    );
    changes
}

/// Every value of a plan by its key. Secrets are stood for by marks that tell them apart.
fn values(plan: &Plan) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    // A path that is no UTF-8 cannot be printed; no file brings one.
    flatten("", compared(plan), &mut values);
    values
}

fn flatten(key: &str, value: Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            for (name, value) in entries {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(&key, value, into);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            let names: Vec<String> = items.iter().map(name_of).collect();
            let is_name = |name: &String| {
                !name.is_empty() && names.iter().filter(|n| *n == name).count() == 1
            };
            for (index, item) in items.into_iter().enumerate() {
                let name = names.get(index).filter(|name| is_name(name)).cloned();
                let name = name.unwrap_or_else(|| index.to_string());
                flatten(&format!("{key}[{name}]"), item, into);
            }
        }
        value => drop(into.insert(key.to_owned(), value)),
    }
}

fn name_of(item: &Value) -> String {
    item.get("name").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn difference(before: Option<&Value>, after: Option<&Value>) -> String {
    if let (Some(Value::Array(before)), Some(Value::Array(after))) = (before, after) {
        return difference_of_lists(before, after);
    }
    let (before, after) = (text(before), text(after));
    match before == after {
        true => format!("{after}, changed"),
        false => format!("{before} -> {after}"),
    }
}

/// What comes and what goes; nobody reads two long lists to find that out.
fn difference_of_lists(before: &[Value], after: &[Value]) -> String {
    let without = |list: &[Value], other: &[Value], sign: &str| -> Vec<String> {
        let only = list.iter().filter(|item| !other.contains(item));
        only.map(|item| format!("{sign}{}", text(Some(item)))).collect()
    };
    let mut parts = without(before, after, "-");
    parts.extend(without(after, before, "+"));
    match parts.is_empty() {
        true => "in another order".into(),
        false => cut(&parts.join(" ")),
    }
}

fn text(value: Option<&Value>) -> String {
    match value {
        None => "unset".into(),
        Some(Value::String(text)) => cut(&shown(text)),
        Some(value) => cut(&shown(&value.to_string())),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()),
    }
}
