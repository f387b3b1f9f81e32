//! *Takes:* a file (or `--backend` URLs). *Gives:* a [`plan::Plan`] that cannot be wrong, and a
//! report of what was ignored or assumed. *Runs on:* the main thread, before any worker starts.
//! *May:* read files and environment. *Never:* is asked again by a room that got its plan.

/// What the user typed behind `llmproxy`.
pub mod cli;
/// Backends that are this proxy itself.
pub mod circle;
/// What a reload would change.
pub mod change;
/// Backends that discovery finds.
pub mod found;
/// Where a configuration comes from.
pub mod origin;
mod path;
mod nesting;
mod raw;
mod cure;
mod desk;
mod alias;
mod expand;
mod section;
mod value;
mod check;
#[cfg(test)]
mod tests;
/// What a configuration means: the types that every other room reads.
pub mod plan;
/// What a load has to say to the user.
pub mod report;

use crate::base::limits::CONFIG_FILE_BYTES_MAX;
use desk::{Desk, Note};
use plan::Plan;
use report::{Class, Finding, Report};
use rustix::fs::OFlags;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A configuration that can be used, with what is to be said about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the file means.
    pub plan: Plan,
    /// Warnings, in the order of the file.
    pub report: Report,
}

/// Loads a file; `env` gives the variables. The error is a report that holds at least one error.
pub fn load_file(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Report> {
    load_opened(path, open(path), env)
}

/// The same of a regular file alone: a pipe is not waited for.
fn load_regular(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Report> {
    load_opened(path, open_regular(path), env)
}

fn load_opened(
    path: &Path,
    file: io::Result<File>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    let read = file.and_then(read).map_err(|error| {
        let message = match error.kind() {
            ErrorKind::NotFound => "there is no such file; `--backend URL` runs without any".into(),
            ErrorKind::IsADirectory => "is a folder: name a file in it".into(),
            ErrorKind::PermissionDenied => "this user may not read it".into(),
            _ => error.to_string(),
        };
        failed(&name, message)
    })?;
    if read.len() > CONFIG_FILE_BYTES_MAX {
        return Err(failed(&name, raw::too_long()));
    }
    let sha256 = sha256_of(&read);
    let text = cure::text_of(read).map_err(|message| failed(&name, message))?;
    let mut loaded = load_text(&name, &text, env)?;
    loaded.report.sha256 = sha256;
    Ok(loaded)
}

fn sha256_of(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens a file for a start, which may be given a pipe (`--config <(decrypt FILE)`) and waits for
/// what comes out of it.
fn open(path: &Path) -> io::Result<File> {
    match std::fs::metadata(path)?.is_file() {
        true => open_regular(path),
        false => File::open(path),
    }
}

/// Opens a regular file and nothing else. It is looked at once it is open, and the opening waits
/// for nobody: what stands at the path may be another one from moment to moment.
///
/// # Errors
/// `InvalidInput` when it is no regular file, `IsADirectory` when it is a folder, those of opening.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    match (found.is_file(), found.is_dir()) {
        (true, _) => Ok(file),
        (_, true) => Err(ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(ErrorKind::InvalidInput, "is not a regular file")),
    }
}

/// All of a file, and of one that is too long as much as shows that.
fn read(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(CONFIG_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The configuration of `--backend URL …` without any file: all defaults.
pub fn load_backends(urls: &[String], listen: &[String]) -> Result<Loaded, Report> {
    // JSON is YAML, and quotes every character that would mean something.
    let backends: Vec<_> = urls.iter().map(|url| serde_json::json!({ "url": url })).collect();
    let mut root = serde_json::json!({ "backends": backends });
    if !listen.is_empty() {
        root["server"] = serde_json::json!({ "listen": listen });
    }
    load_text("command line", &root.to_string(), &origin::of_this_process)
}

/// Loads a text. `name` stands for it in messages; `env` gives the variables.
pub fn load_text(
    name: &str,
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Report> {
    load_with_keys(name, text, env).map(|(loaded, _)| loaded)
}

/// The plan as YAML in the canonical schema, secrets masked. Fails only for a path that is not
/// UTF-8, which no file can bring.
pub fn print(plan: &Plan) -> Result<String, String> {
    serde_yaml::to_string(plan).map_err(|error| error.to_string())
}

/// Loads a text and tells, besides, every key that was looked for (canonical paths).
fn load_with_keys(
    name: &str,
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Loaded, BTreeSet<String>), Report> {
    if let Some(position) = nesting::too_deep(text) {
        let mut report = failed(name, nesting::line());
        report.findings.iter_mut().for_each(|finding| finding.position = Some(position));
        return Err(report);
    }
    let mut root = raw::parse(text).map_err(|error| {
        // Who is told what to do has no use for what the parser stumbled over.
        let cure = cure::of(text, &error.message);
        let mut report = failed(name, cure.unwrap_or(error.message));
        for finding in &mut report.findings {
            finding.path.clone_from(&error.path);
            finding.position = error.position;
        }
        report
    })?;
    if let raw::ValueKind::Text(_) | raw::ValueKind::List(_) = root.kind {
        let message = "must be a section (`key: value` lines)";
        let cure = cure::of(text, message).unwrap_or_default();
        let mut report = failed(name, format!("{message}: {cure}"));
        report.findings.iter_mut().for_each(|f| f.position = raw::locate(text, root.id));
        return Err(report);
    }
    let is_blank = matches!(root.kind, raw::ValueKind::Null);
    let desk = Desk::new(env);
    alias::canonical(&desk, &mut root);
    let plan = check::plan(&desk, &root);
    let mut report = located(name, text, desk.notes.into_inner());
    report.is_blank = is_blank;
    match plan {
        Some(plan) if !report.has_errors() => {
            Ok((Loaded { plan, report }, desk.known.into_inner()))
        }
        _ => Err(report),
    }
}

/// Turns notes into findings: their positions are asked from the parser, and they stand in the
/// order of the file.
fn located(name: &str, text: &str, mut notes: Vec<Note>) -> Report {
    notes.sort_by_key(|note| note.id.unwrap_or(u32::MAX));
    let mut report = Report::new(name);
    for note in notes {
        let mut finding =
            Finding { class: note.class, path: note.path, position: None, message: note.message };
        if !report.has_room_for(&finding) {
            report.omitted += 1;
            continue;
        }
        finding.position = note.id.and_then(|id| raw::locate(text, id));
        if let Some(at) = note.other.and_then(|id| raw::locate(text, id)) {
            finding.message.push_str(&format!(" (the other at {}:{})", at.line, at.column));
        }
        report.findings.push(finding);
    }
    report
}

fn failed(name: &str, message: String) -> Report {
    let mut report = Report::new(name);
    report.findings.push(Finding {
        class: Class::Error,
        path: String::new(),
        position: None,
        message,
    });
    report
}
