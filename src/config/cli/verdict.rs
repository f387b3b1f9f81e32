//! Whether a configuration would start, and `llmproxy check`, which says so.

use super::models;
use super::{Files, Printout, FINE, UNUSABLE, WOULD_NOT_START};
use crate::config::change::compare;
use crate::config::origin::{of_this_process, Terms};
use crate::config::plan::Plan;
use crate::config::report::{Class, Report};
use crate::config::{circle, load_file, print, Loaded};
use std::path::Path;

/// `llmproxy check`: first whether the file is valid, then each finding, on standard error. The
/// plan goes to standard output when it is asked for, so that it can be kept as a file; else what
/// stands there is who serves which model. A valid file's plan comes with it.
pub fn check(
    file: &Path,
    wanted: &CheckTask,
    terms: Terms,
    files: Files,
) -> (Printout, Option<Box<Plan>>) {
    match load_file(file, &of_this_process) {
        Ok(Loaded { plan, report }) => {
            let seen = files(&plan);
            let obstacles = obstacles(&plan, &report, terms) + &told_of(&report, &seen.unusable);
            let mut output = valid(&report, terms.strict, &obstacles);
            let told = seen.told.iter().map(|line| format!("{}: {line}\n", report.file));
            output.stderr.extend(told);
            output.add(wanted, &plan, &report.file);
            (output, Some(plan.into()))
        }
        Err(report) => {
            let (errors, warnings) = counts(&report);
            let told = told(&[number(errors, "error"), number(warnings, "warning")]);
            let first = format!("{}: not valid: {told}\n", report.file);
            let stderr = first + &lines(&report, terms.strict);
            (Printout { stdout: String::new(), stderr, code: UNUSABLE }, None)
        }
    }
}

/// What `check` prints beside its verdict.
pub struct CheckTask<'a> {
    /// The plan.
    pub plan: bool,
    /// What a reload would change that replaces this file.
    pub against: Option<&'a Path>,
}

fn valid(report: &Report, strict: bool, obstacles: &str) -> Printout {
    let (_, warnings) = counts(report);
    let mut first = format!("{}: valid", report.file);
    if warnings > 0 {
        first.push_str(&format!(", with {}", told(&[number(warnings, "warning")])));
    }
    first.push_str(if obstacles.is_empty() { "\n" } else { ", but it would not start\n" });
    let stderr = first + &lines(report, strict) + obstacles;
    let code = if obstacles.is_empty() { FINE } else { WOULD_NOT_START };
    Printout { stdout: String::new(), stderr, code }
}

impl Printout {
    /// Adds what was asked for of a plan that is valid.
    fn add(&mut self, wanted: &CheckTask, plan: &Plan, file: &str) {
        if wanted.plan {
            match print(plan) {
                Ok(text) => self.stdout = text,
                Err(error) => {
                    self.stderr.push_str(&format!("{file}: cannot be printed: {error}\n"));
                    self.code = UNUSABLE;
                }
            }
        }
        match wanted.against.map(|file| load_file(file, &of_this_process)) {
            None if wanted.plan => {}
            None => self.stdout = models::table(plan) + &fetched(plan),
            Some(Ok(old)) => self.stdout = changes(&old.plan, plan),
            Some(Err(report)) => {
                self.stderr.push_str(&lines(&report, false));
                self.code = UNUSABLE;
            }
        }
    }
}

/// Which certificates would be fetched, from whom; nothing where none would.
fn fetched(plan: &Plan) -> String {
    let Some(acme) = plan.server.tls.as_ref().and_then(|tls| tls.acme.as_ref()) else {
        return String::new();
    };
    let names = acme.domains.join(", ");
    let (directory, storage) = (&acme.directory, acme.storage.display());
    format!("certificates of {names} from {directory}, kept in {storage}\n")
}

/// A line for each change that a reload makes, and what it cannot do.
fn changes(old: &Plan, new: &Plan) -> String {
    let changes = compare(old, new);
    let mut text: String = changes.lines().iter().map(|line| format!("{line}\n")).collect();
    let restarts = changes.restart_keys().count();
    text.push_str(&match (changes.is_empty(), restarts) {
        (true, _) => "a reload would change nothing\n".to_owned(),
        (_, 0) => "a reload applies all of it\n".to_owned(),
        (_, n) => {
            let keys = number(n, "key").unwrap_or_default();
            format!("a reload applies all but the {keys} that a restart is needed for\n")
        }
    });
    text
}

/// Why a valid configuration does not start: a line for each reason. Empty = it starts.
pub fn obstacles(plan: &Plan, report: &Report, terms: Terms) -> String {
    let mut reasons = plan.unbuilt.clone();
    reasons.extend(circle::by_url(plan));
    if plan.backends.is_empty() && plan.discovery.is_none() && !terms.allow_empty {
        reasons.push(
            "no backends: list one under `backends`, or give --allow-empty to answer every \
             request with 503 no_backend"
                .into(),
        );
    }
    let (_, warnings) = counts(report);
    if terms.strict && warnings > 0 {
        reasons.push(format!("--strict: {}", told(&[number(warnings, "warning")])));
    }
    told_of(report, &reasons)
}

fn told_of(report: &Report, reasons: &[String]) -> String {
    reasons.iter().map(|reason| format!("{}: cannot start: {reason}\n", report.file)).collect()
}

/// The findings, a line each.
pub fn lines(report: &Report, strict: bool) -> String {
    report.lines(strict).iter().map(|line| format!("{line}\n")).collect()
}

/// Errors and warnings.
fn counts(report: &Report) -> (usize, usize) {
    let errors = report.findings.iter().filter(|f| f.class == Class::Error).count();
    (errors, report.findings.len() - errors + report.omitted)
}

fn number(count: usize, what: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ => Some(format!("{count} {what}s")),
    }
}

fn told(parts: &[Option<String>]) -> String {
    let parts: Vec<&str> = parts.iter().flatten().map(String::as_str).collect();
    parts.join(", ")
}
