//! `llmproxy keys`: a client of the admin API, over the admin socket of a gateway that runs, or,
//! when none does, in this process on the store itself.

use super::socket::{is_nobody, named, places, Asked};
use crate::base::line::is_unshown;
use crate::config::cli::{KeysAsk, KeysTask, Printout, FINE, UNUSABLE, WOULD_NOT_START};
use crate::config::load_file;
use crate::config::origin::{of_this_process, Refused};
use crate::control::admin_api::AdminApi;
use crate::control::admin_door::AdminRequest;
use crate::control::key_store::KeyStore;
use crate::http::request::Method;
use serde_json::{json, Value};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of an answer: a page of an export.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of a part of an import that goes over a socket, and of its longest line.
const PART_BYTES_MAX: usize = 900 * 1024;
/// Bytes of a file that is imported.
const IMPORT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// What `show` takes from the page of the usage of a key.
const OF_USAGE: [&str; 5] =
    ["used_quota", "used_quota_source", "remaining_quota", "usage_percentage", "quota_resets_at"];
/// Stands behind a figure of the store where no gateway tells its own.
const STORED: &str = " (as stored: no gateway was asked)";
/// The same behind a list of them.
const OF_STORE: &str =
    "llmproxy keys: as stored, since no gateway was asked: what was used before one met the key\n";

/// Does it, and says what was done.
pub fn run(ask: &KeysAsk) -> Printout {
    let done = way(ask).and_then(|way| Task { way, json: ask.json }.run(&ask.task));
    match done {
        Ok((stdout, stderr)) => Printout { stdout, stderr, code: FINE },
        Err(Refused { lines, code }) => Printout { stdout: String::new(), stderr: lines, code },
    }
}

fn failed(code: u8, message: impl AsRef<str>) -> Refused {
    Refused { lines: format!("llmproxy keys: {}\n", message.as_ref()), code }
}

/// How the store is reached.
enum Way {
    Socket(PathBuf),
    Store(Box<AdminApi>),
}

fn way(ask: &KeysAsk) -> Result<Way, Refused> {
    if let Some(socket) = &ask.socket {
        return Ok(Way::Socket(socket.clone()));
    }
    let db = match &ask.db {
        Some(db) => db.clone(),
        None => match of_a_configuration(&ask.config)? {
            Found::Socket(socket) => return Ok(Way::Socket(socket)),
            Found::File(db) => db,
        },
    };
    let makes = matches!(ask.task, KeysTask::Create { .. } | KeysTask::Import { .. });
    if !makes && !db.exists() {
        let message = format!("{}: there is no store of keys yet", db.display());
        return Err(failed(WOULD_NOT_START, message));
    }
    let store = KeyStore::open(&db).map_err(|error| failed(WOULD_NOT_START, error))?;
    Ok(Way::Store(Box::new(AdminApi::of_store(Arc::new(store)))))
}

/// What a configuration leads to.
enum Found {
    Socket(PathBuf),
    File(PathBuf),
}

fn of_a_configuration(config: &Path) -> Result<Found, Refused> {
    let loaded = load_file(config, &of_this_process).map_err(|report| {
        let lines: String = report.lines(false).iter().map(|line| format!("{line}\n")).collect();
        // It may need variables that the gateway has, and this shell does not.
        let hint = "llmproxy keys: without the file, name the store or the admin socket: --db \
                    PATH, --socket PATH\n";
        Refused { lines: lines + hint, code: UNUSABLE }
    })?;
    let Some(admin) = &loaded.plan.admin else {
        let file = config.display();
        let message =
            format!("{file} has no `admin`, whose db_path is the store; or give --db PATH");
        return Err(failed(UNUSABLE, message));
    };
    let places = places(&loaded.plan);
    for socket in places.map_err(|error| failed(WOULD_NOT_START, error.to_string()))? {
        match UnixStream::connect(&socket) {
            Ok(_) => return Ok(Found::Socket(socket)),
            Err(error) if is_nobody(&error) => {}
            Err(error) => return Err(failed(WOULD_NOT_START, named(&socket, &error))),
        }
    }
    Ok(Found::File(admin.db_path.clone()))
}

struct Task {
    way: Way,
    json: bool,
}

/// For standard output, and for standard error.
type Said = (String, String);

impl Task {
    fn run(&self, task: &KeysTask) -> Result<Said, Refused> {
        let only = |stdout| (stdout, String::new());
        match task {
            KeysTask::Create { settings, stdin } => {
                let mut settings = settings.clone();
                if *stdin {
                    settings.insert("key".into(), json!(first_line()?));
                }
                let body = Value::Object(settings).to_string();
                let made = self.ask(Method::Post, "/admin/api-keys", body.as_bytes())?;
                Ok(self.made_key(&made, "this is the only time that the key is shown"))
            }
            KeysTask::List(parameters) => {
                let listed = self.page("/admin/api-keys", parameters)?;
                Ok(only(if self.json { line(&listed) } else { table(&listed, &COLUMNS) }))
            }
            KeysTask::Usage(parameters) => {
                let listed = self.page("/admin/usage", parameters)?;
                let is_stored = !self.json && matches!(self.way, Way::Store(_));
                let told = if is_stored { OF_STORE } else { "" };
                let shown = if self.json { line(&listed) } else { table(&listed, &USED_COLUMNS) };
                Ok((shown, told.to_owned()))
            }
            KeysTask::Show(key) => {
                let path = path_of(key);
                let mut shown = self.ask(Method::Get, &path, b"")?;
                let usage = self.ask(Method::Get, &format!("{path}/usage"), b"")?;
                for name in OF_USAGE {
                    shown[name] = usage[name].clone();
                }
                Ok(only(if self.json { line(&shown) } else { self.lines(&shown) }))
            }
            KeysTask::Set { key, settings } => {
                let body = Value::Object(settings.clone()).to_string();
                let changed = self.ask(Method::Patch, &path_of(key), body.as_bytes())?;
                Ok(only(if self.json { line(&changed) } else { self.lines(&changed) }))
            }
            KeysTask::Revoke(key) => {
                let gone = self.ask(Method::Delete, &path_of(key), b"")?;
                let told = format!("{} is revoked\n", text(&gone["id"]));
                Ok(only(if self.json { line(&gone) } else { told }))
            }
            KeysTask::Rotate { key, grace_period } => {
                let body = json!({"grace_period": grace_period}).to_string();
                let path = format!("{}/rotate", path_of(key));
                let made = self.ask(Method::Post, &path, body.as_bytes())?;
                let until = text(&made["old_key_valid_until"]);
                Ok(self.made_key(&made, &format!("the old key is good until {until}")))
            }
            KeysTask::Import { file, on_conflict } => self.import(file, on_conflict).map(only),
            KeysTask::Export => self.export().map(only),
        }
    }

    /// A key, a member in each line. What was used by the count of nobody is marked.
    fn lines(&self, object: &Value) -> String {
        let members = object.as_object().into_iter().flatten();
        let member = |(name, value): (&String, &Value)| {
            let is_stored = name == "used_quota" && matches!(self.way, Way::Store(_));
            let mark = if is_stored { STORED } else { "" };
            format!("{name}: {}{mark}\n", text(value))
        };
        members.map(member).collect()
    }

    /// A key on standard output, and on standard error what a person should know of it.
    fn made_key(&self, made: &Value, remark: &str) -> Said {
        if self.json {
            return (line(made), String::new());
        }
        let told = format!("id {}: {remark}\n", text(&made["id"]));
        (format!("{}\n", text(&made["key"])), told)
    }

    /// All or nothing of a file on a store of our own; part by part over a socket.
    fn import(&self, file: &Path, on_conflict: &str) -> Result<String, Refused> {
        let text = content(file).map_err(|error| failed(UNUSABLE, error))?;
        let parts = match self.way {
            Way::Store(_) => vec![text.as_str()],
            Way::Socket(_) => parts(&text),
        };
        let (path, mut sums) =
            (format!("/admin/api-keys/import?on_conflict={on_conflict}"), [0; 3]);
        const NAMES: [&str; 3] = ["created", "replaced", "skipped"];
        for part in parts {
            let done = self.ask(Method::Post, &path, part.as_bytes()).map_err(|refused| {
                let before: i64 = sums.iter().sum();
                let lines = match before {
                    0 => refused.lines,
                    _ => format!(
                        "{}llmproxy keys: {before} keys before that are done\n",
                        refused.lines
                    ),
                };
                Refused { lines, ..refused }
            })?;
            for (sum, name) in sums.iter_mut().zip(NAMES) {
                *sum += done[name].as_i64().unwrap_or_default();
            }
        }
        let [created, replaced, skipped] = sums;
        Ok(match self.json {
            true => line(&json!({"created": created, "replaced": replaced, "skipped": skipped})),
            false => format!("created {created}, replaced {replaced}, skipped {skipped}\n"),
        })
    }

    fn export(&self) -> Result<String, Refused> {
        let (mut all, mut after) = (String::new(), String::new());
        loop {
            let page = self.raw(Method::Get, &format!("/admin/api-keys/export{after}"), b"")?;
            let Some(last) = page.lines().next_back() else { return Ok(all) };
            let last: Value = serde_json::from_str(last)
                .map_err(|_| failed(WOULD_NOT_START, "the answer is no JSON"))?;
            after = format!("?after={}", text(&last["id"]));
            all.push_str(&page);
        }
    }

    fn page(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Refused> {
        let query = query.iter().map(|(name, value)| format!("{name}={}", encoded(value)));
        let target = format!("{path}?{}", query.collect::<Vec<_>>().join("&"));
        self.ask(Method::Get, &target, b"")
    }

    fn ask(&self, method: Method, target: &str, body: &[u8]) -> Result<Value, Refused> {
        let text = self.raw(method, target, body)?;
        serde_json::from_str(&text).map_err(|_| failed(WOULD_NOT_START, "the answer is no JSON"))
    }

    fn raw(&self, method: Method, target: &str, body: &[u8]) -> Result<String, Refused> {
        let (status, text) = match &self.way {
            Way::Socket(socket) => {
                let asked = Asked { method, target, body }.at(socket, ANSWER_BYTES_MAX);
                asked.map_err(|error| failed(WOULD_NOT_START, named(socket, &error)))?
            }
            Way::Store(api) => {
                let (path, query) = target.split_once('?').unwrap_or((target, ""));
                let (path, query) = (path.to_owned(), query.to_owned());
                let (method, body) = (method.as_str(), body.to_vec());
                let answer =
                    api.answer(&AdminRequest { method, path, query, body, may_change: true });
                (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
            }
        };
        if (200..300).contains(&status) {
            return Ok(text);
        }
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let message = json["error"]["message"]
            .as_str()
            .map_or_else(|| format!("status {status}: {}", plain(text.trim_end())), plain);
        Err(failed(if status == 400 { UNUSABLE } else { WOULD_NOT_START }, message))
    }
}

fn content(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin().lock().take(IMPORT_BYTES_MAX).read_to_string(&mut text),
        false => std::fs::File::open(file)
            .and_then(|file| file.take(IMPORT_BYTES_MAX).read_to_string(&mut text)),
    };
    match read {
        Err(error) => Err(format!("{}: {error}", file.display())),
        Ok(bytes) if bytes as u64 == IMPORT_BYTES_MAX => {
            Err(format!("{}: has more than {IMPORT_BYTES_MAX} bytes", file.display()))
        }
        Ok(_) => Ok(text),
    }
}

/// Whole lines, as many as go at a time.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let mut end = 0;
        for line in rest.split_inclusive('\n') {
            if end > 0 && end + line.len() > PART_BYTES_MAX {
                break;
            }
            end += line.len();
        }
        let (part, behind) = rest.split_at(end);
        parts.push(part);
        rest = behind;
    }
    parts
}

fn first_line() -> Result<String, Refused> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(64 * 1024).read_to_string(&mut text);
    read.map_err(|error| failed(UNUSABLE, format!("standard input: {error}")))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

fn path_of(key: &str) -> String {
    format!("/admin/api-keys/{}", encoded(key))
}

/// As it may stand in a path or a query.
fn encoded(text: &str) -> String {
    let mut encoded = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            true => encoded.push(byte),
            // Nothing fails that writes to memory.
            false => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    String::from_utf8(encoded).unwrap_or_default()
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// What somebody called a key must not move the cursor of whoever reads this.
fn plain(text: &str) -> String {
    text.chars().map(|c| if is_unshown(c) { '\u{fffd}' } else { c }).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        other => plain(&other.to_string()),
    }
}

/// Titles of a list, and of what.
type Columns = [(&'static str, &'static str)];

const COLUMNS: [(&str, &str); 7] = [
    ("ID", "id"),
    ("KEY", "prefix"),
    ("NAME", "name"),
    ("USER", "user_id"),
    ("STATUS", "status"),
    ("EXPIRES", "expires_at"),
    ("LAST USED", "last_used_at"),
];

const USED_COLUMNS: [(&str, &str); 8] = [
    ("ID", "id"),
    ("NAME", "name"),
    ("USER", "user_id"),
    ("USED", "used_quota"),
    ("OF", "total_quota"),
    ("%", "usage_percentage"),
    ("PERIOD", "quota_reset_period"),
    ("RESETS", "quota_resets_at"),
];

fn table(listed: &Value, columns: &Columns) -> String {
    let mut rows = vec![columns.iter().map(|(title, _)| (*title).to_owned()).collect::<Vec<_>>()];
    let keys = listed["data"].as_array();
    let cell = |key: &Value, name: &str| match (name, text(&key[name])) {
        // No quota.
        ("total_quota", none) if none == "0" => "-".to_owned(),
        (_, empty) if empty.is_empty() => "-".to_owned(),
        (_, cell) => cell,
    };
    let cells = |key| columns.iter().map(|(_, name)| cell(key, name)).collect();
    rows.extend(keys.into_iter().flatten().map(cells));
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| {
            let width = |row: &Vec<String>| row.get(at).map_or(0, |cell| cell.chars().count());
            rows.iter().map(width).max().unwrap_or(0)
        })
        .collect();
    let mut table = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        table.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        table.push('\n');
    }
    if listed["has_more"] == true {
        let (total, last) = (text(&listed["total"]), text(&listed["last_id"]));
        table.push_str(&format!("\n{total} in all: go on with --after {last}\n"));
    }
    table
}
