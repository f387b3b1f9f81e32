//! Backends that discovery finds. Each is read and checked by the code that reads those of the
//! file, and by itself: a bad one is left out with a line that names it, and the rest applies.

use super::check;
use super::desk::{Desk, Note};
use super::path::Path;
use super::plan::{Backend, CommonParts, Endpoint, Routing};
use super::raw::{self, MapEntry, Node, ValueKind};
use super::report::Class;
use super::{cure, nesting, value};
use crate::base::limits::{
    DISCOVERY_ANSWER_BYTES_MAX, DISCOVERY_BACKENDS_MAX, DISCOVERY_MODELS_MAX,
};
use crate::base::line::is_unshown;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};

/// Characters of the name of a found backend: it is a label of metrics. Beyond: left out.
const NAME_CHARS_MAX: usize = 200;

/// Where lists of backends stand in an answer that is no list itself.
const LISTS: [&str; 2] = ["backends", "services"];

/// What is read of a row of a service; its other members are its own matter. Whoever runs such a
/// service says where engines are, and not with which credentials we go there.
const ROW_KEYS: [&str; 12] = [
    "name",
    "id",
    "url",
    "weight",
    "status",
    "models",
    "region",
    "backup",
    "engine",
    "metrics",
    "max_concurrent",
    "slow_start",
];

/// What a source says: a row for each backend, not checked yet.
#[derive(Debug)]
pub struct FoundRows {
    rows: Vec<Node>,
    /// They come from a service, which may not send us to files of this machine.
    is_remote: bool,
}

/// What came of the rows of a source.
#[derive(Debug, Default, PartialEq)]
pub struct FoundBackends {
    /// Those that can be used, by name. The order in which a source names them means nothing:
    /// name servers change it with each answer.
    pub backends: Vec<Backend>,
    /// A line for each row, or key of a row, that is ignored.
    pub faults: Vec<String>,
    /// Rows that are switched off by their `status`.
    pub disabled: usize,
}

impl FoundRows {
    /// The rows of an answer in JSON: an array, or an object with one under `backends` or
    /// `services`.
    ///
    /// # Errors
    /// It is something else, or too long; a line for a person.
    pub fn of_json(bytes: &[u8]) -> Result<FoundRows, String> {
        if bytes.len() > DISCOVERY_ANSWER_BYTES_MAX {
            return Err(too_long());
        }
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| format!("is no JSON: {error}"))?;
        let (place, rows) = match value {
            Value::Array(rows) => (Path::root(), rows),
            Value::Object(mut map) => {
                let mut lists = LISTS.iter().filter_map(|key| Some((key, map.remove(*key)?)));
                match lists.next() {
                    Some((key, Value::Array(rows))) => (Path::root().key(key), rows),
                    _ => return Err(NO_LIST.into()),
                }
            }
            _ => return Err(NO_LIST.into()),
        };
        let row = |(index, row)| node(place.index(index), known_members(row));
        FoundRows { rows: rows.into_iter().enumerate().map(row).collect(), is_remote: true }
            .bounded()
    }

    /// The rows of a file: YAML or JSON, a list in the shape of `backends`, or a section that has
    /// one under `backends` or `services`.
    ///
    /// # Errors
    /// It is something else, or too long; a line for a person.
    pub fn of_file(bytes: Vec<u8>) -> Result<FoundRows, String> {
        if bytes.len() > DISCOVERY_ANSWER_BYTES_MAX {
            return Err(too_long());
        }
        let text = cure::text_of(bytes)?;
        if nesting::too_deep(&text).is_some() {
            return Err(nesting::line());
        }
        let root = raw::parse(&text).map_err(|error| match error.position {
            Some(at) => format!("{}:{}: {}", at.line, at.column, error.message),
            None => error.message,
        })?;
        let rows = match root.kind {
            ValueKind::List(rows) => rows,
            ValueKind::Map(entries) => {
                match entries.into_iter().find(|e| LISTS.contains(&e.key.as_str())) {
                    Some(MapEntry { value: Node { kind: ValueKind::List(rows), .. }, .. }) => rows,
                    _ => return Err(NO_LIST.into()),
                }
            }
            ValueKind::Null => Vec::new(),
            ValueKind::Text(_) => return Err(NO_LIST.into()),
        };
        FoundRows { rows, is_remote: false }.bounded()
    }

    /// Rows that we make ourselves of what another protocol says, in the shape of `backends`.
    ///
    /// # Errors
    /// There are too many; a line for a person.
    pub fn of_values(rows: Vec<Value>) -> Result<FoundRows, String> {
        let row = |(index, row)| node(Path::root().index(index), row);
        FoundRows { rows: rows.into_iter().enumerate().map(row).collect(), is_remote: true }
            .bounded()
    }

    fn bounded(self) -> Result<FoundRows, String> {
        match self.rows.len() {
            0..=DISCOVERY_BACKENDS_MAX => Ok(self),
            n => Err(format!("has {n} backends, at most {DISCOVERY_BACKENDS_MAX} are taken")),
        }
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// Checks each row as a backend of the file, with what all of the source have in common. `env`
    /// gives the variables that a row may name: none to a source that is not ours, which could have
    /// them sent to it.
    pub fn check(
        self,
        (routing, common): (&Routing, &CommonParts),
        env: &dyn Fn(&str) -> Option<String>,
    ) -> FoundBackends {
        let mut found = FoundBackends::default();
        for mut row in self.rows {
            let place = row.path.to_string();
            let label = label(&row);
            let fault = |what: &str| format!("{place}{label}: {what}");
            match is_enabled(&mut row) {
                Ok(true) => {}
                Ok(false) => {
                    found.disabled += 1;
                    continue;
                }
                Err(what) => {
                    found.faults.push(fault(what));
                    continue;
                }
            }
            let said = row.keys();
            let desk = Desk::new(env);
            let backend = check::found_backend(&desk, row, routing).filter(|_| !desk.has_errors());
            let backend = backend.map(|mut backend| {
                common.give_to(&mut backend, &said);
                backend
            });
            let is_usable = backend.is_some();
            for Note { class, path, message, .. } in desk.notes.into_inner() {
                if !is_usable && class != Class::Error {
                    continue;
                }
                found.faults.push(format!("{path}{label}: {message}"));
            }
            match backend.map(|backend| (unfit(&backend, self.is_remote), backend)) {
                Some((Some(what), _)) => found.faults.push(fault(&what)),
                Some((None, backend)) => found.backends.push(backend),
                None => {}
            }
        }
        found.backends.sort_by(|a, b| (&a.name, &a.url).cmp(&(&b.name, &b.url)));
        found
    }
}

const NO_LIST: &str = "is neither a list of backends nor an object with one under `backends`";

fn too_long() -> String {
    format!("has more than {DISCOVERY_ANSWER_BYTES_MAX} bytes")
}

/// How a row calls itself, for a line about it.
fn label(row: &Node) -> String {
    let ValueKind::Map(entries) = &row.kind else { return String::new() };
    let text = |key: &str| match &entries.iter().find(|e| e.key == key)?.value.kind {
        ValueKind::Text(text) => Some(value::quoted(text)),
        _ => None,
    };
    ["name", "id", "url"].into_iter().find_map(text).map(|t| format!(" ({t})")).unwrap_or_default()
}

/// Takes `status` out of a row: only what is `enabled` or `active`, or does not say, is used.
fn is_enabled(row: &mut Node) -> Result<bool, &'static str> {
    let ValueKind::Map(entries) = &mut row.kind else {
        return Err("is no section (`name: ...`, `url: ...`)");
    };
    let Some(at) = entries.iter().position(|entry| entry.key == "status") else {
        return Ok(true);
    };
    match entries.remove(at).value.kind {
        ValueKind::Null => Ok(true),
        ValueKind::Text(text) => {
            Ok(["enabled", "active"].iter().any(|on| text.eq_ignore_ascii_case(on)))
        }
        _ => Err("status: must be a single value"),
    }
}

/// Why a backend that is valid cannot be used all the same.
fn unfit(backend: &Backend, is_remote: bool) -> Option<String> {
    let name = &backend.name;
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(is_unshown) {
        return Some("name: is too long, or has characters that cannot be shown".into());
    }
    if is_remote && matches!(backend.endpoint, Endpoint::Unix(_)) {
        return Some("url: a service may not name a socket of this machine".into());
    }
    None
}

/// Of a row of a service what is ours to read.
fn known_members(mut row: Value) -> Value {
    if let Value::Object(map) = &mut row {
        // An `id` is the name of what has no other.
        let has_name = map.contains_key("name");
        map.retain(|key, _| ROW_KEYS.contains(&key.as_str()) && !(has_name && key == "id"));
    }
    row
}

/// A value of JSON as the node that the reader of files would have made of it.
fn node(path: Path, value: Value) -> Node {
    let kind = match value {
        Value::Null => ValueKind::Null,
        Value::Bool(on) => ValueKind::Text(on.to_string()),
        Value::Number(number) => ValueKind::Text(number.to_string()),
        Value::String(text) => ValueKind::Text(text),
        Value::Array(items) => {
            let items = items.into_iter().enumerate();
            ValueKind::List(items.map(|(index, item)| node(path.index(index), item)).collect())
        }
        Value::Object(map) => {
            let entry = |(key, value): (String, Value)| {
                let value = node(path.key(&key), value);
                MapEntry { key, key_id: 0, value }
            };
            ValueKind::Map(map.into_iter().map(entry).collect())
        }
    };
    Node { id: 0, path, kind }
}

/// The backends of the file, and behind them those that were found, and how many found ones are
/// beyond [`DISCOVERY_BACKENDS_MAX`] or [`DISCOVERY_MODELS_MAX`]. One that has the place of an
/// earlier one is left out; one that has its name gets its own host and port behind it.
pub fn merge(
    configured: &[Backend],
    found: impl IntoIterator<Item = Backend>,
) -> (Vec<Backend>, usize) {
    let mut places: HashSet<String> = configured.iter().map(place).collect();
    let mut names: HashSet<String> = configured.iter().map(|b| b.name.clone()).collect();
    let mut all = configured.to_vec();
    let (mut beyond, mut models) = (0, BTreeSet::new());
    for mut backend in found {
        if !places.insert(place(&backend)) {
            continue;
        }
        let further = backend.models.iter().filter(|model| !models.contains(*model)).count();
        let is_beyond = all.len() >= configured.len() + DISCOVERY_BACKENDS_MAX;
        if is_beyond || models.len() + further > DISCOVERY_MODELS_MAX {
            beyond += 1;
            continue;
        }
        models.extend(backend.models.iter().cloned());
        if names.contains(&backend.name) {
            let long = match &backend.endpoint {
                Endpoint::Tcp { host, port } => format!("{}/{host}:{port}", backend.name),
                Endpoint::Unix(path) => format!("{}{}", backend.name, path.display()),
            };
            let numbered = (2..).map(|n| format!("{long}#{n}"));
            let free = std::iter::once(long.clone()).chain(numbered).find(|n| !names.contains(n));
            backend.name = free.unwrap_or(long);
        }
        names.insert(backend.name.clone());
        all.push(backend);
    }
    (all, beyond)
}

/// What two backends have in common that are one: where they are, whatever their URLs look like.
fn place(backend: &Backend) -> String {
    let tls = backend.tls.is_some();
    match &backend.endpoint {
        Endpoint::Tcp { host, port } => {
            format!("{tls} {} {port} {}", host.to_ascii_lowercase(), backend.base_path)
        }
        Endpoint::Unix(path) => format!("{} {}", path.display(), backend.base_path),
    }
}

#[cfg(test)]
mod tests;
