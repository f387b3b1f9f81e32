//! What a load has to say: errors, keys that were ignored (with the nearest key that exists), and
//! what was assumed. Nothing in a file is dropped without a line here.

use super::raw::Position;
use crate::base::limits::CONFIG_FINDINGS_MAX;
use std::fmt;

/// Everything found while one file was loaded, in the order of the file.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The file's name as given, or what stands for it.
    pub file: String,
    /// SHA-256 of the file, in hexadecimal as `sha256sum` prints it; empty without a file.
    pub sha256: String,
    /// There is nothing in the file but blanks and comments.
    pub is_blank: bool,
    /// What was found; at most [`CONFIG_FINDINGS_MAX`], the rest is counted.
    pub findings: Vec<Finding>,
    /// Findings beyond the limit.
    pub omitted: usize,
}

/// One thing to tell the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub class: Class,
    /// Dotted path of the key as the user wrote it; empty for the whole file.
    pub path: String,
    /// Where it stands.
    pub position: Option<Position>,
    /// What is wrong and what would be right.
    pub message: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The file means nothing: it is not used.
    Error,
    /// A key that no version knew; ignored. As all warnings an error under `--strict`.
    UnknownKey,
    /// A key that is known and that LLMProxy does not serve; ignored.
    UnsupportedKey,
    /// The file is used; the user should know this.
    Warning,
}

impl Report {
    /// An empty report on a file.
    pub fn new(file: impl Into<String>) -> Self {
        Report { file: file.into(), ..Report::default() }
    }

    /// False when a finding can only be counted. A first error always has room.
    pub fn has_room_for(&self, finding: &Finding) -> bool {
        self.findings.len() < CONFIG_FINDINGS_MAX
            || finding.class == Class::Error && !self.has_errors()
    }

    /// True when the file cannot be used.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|f| f.class == Class::Error)
    }

    /// True when the file has an unknown or unsupported key.
    pub fn has_ignored_keys(&self) -> bool {
        let ignored = |f: &Finding| matches!(f.class, Class::UnknownKey | Class::UnsupportedKey);
        self.findings.iter().any(ignored)
    }

    /// One line per finding: `file:line:column: error: backends[1].weight: …`. With `strict`, all
    /// are called errors.
    pub fn lines(&self, strict: bool) -> Vec<String> {
        let mut lines: Vec<String> = self.findings.iter().map(|f| self.line(f, strict)).collect();
        if self.omitted > 0 {
            lines.push(format!(
                "{}: warning: {} more findings are not shown",
                self.file, self.omitted
            ));
        }
        lines
    }

    fn line(&self, finding: &Finding, strict: bool) -> String {
        let mut line = self.file.clone();
        if let Some(Position { line: l, column }) = finding.position {
            line.push_str(&format!(":{l}:{column}"));
        }
        let word = match finding.class {
            Class::Error => "error",
            _ if strict => "error",
            _ => "warning",
        };
        line.push_str(&format!(": {word}: "));
        if !finding.path.is_empty() {
            line.push_str(&format!("{}: ", finding.path));
        }
        line.push_str(&finding.message);
        line
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines(false).join("\n"))
    }
}

/// The candidate that a misspelt key most likely means: at most a third of its letters differ.
pub fn nearest<'a>(key: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody misspells a key of more than 64 letters; the distance costs the product of lengths.
    if key.chars().count() > 64 {
        return None;
    }
    let (distance, best) = candidates.map(|c| (distance(key, c), c)).min()?;
    (distance <= (best.len() / 3).max(1)).then_some(best)
}

/// Edit distance in which two swapped neighbours count once (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let substituted = above[j] + usize::from(ca != cb);
            let mut best = substituted.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *ca == b[j - 1] && a[i - 1] == *cb {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_finds_its_key_and_a_stranger_finds_none() {
        let keys = ["weight", "url", "name", "models", "max_idle_conns"];
        for (wrong, right) in [
            ("wieght", "weight"),
            ("urll", "url"),
            ("model", "models"),
            ("max_idle_con", "max_idle_conns"),
        ] {
            assert_eq!(nearest(wrong, keys.iter().copied()), Some(right), "{wrong}");
        }
        assert_eq!(nearest("colour", keys.iter().copied()), None);
        assert_eq!(nearest(&"w".repeat(1_000_000), keys.iter().copied()), None);
    }

    #[test]
    fn findings_are_bounded_but_an_error_is_never_lost() {
        let finding =
            |class| Finding { class, path: "a".into(), position: None, message: "m".into() };
        let mut report = Report::new("f");
        report.findings = vec![finding(Class::UnknownKey); CONFIG_FINDINGS_MAX];
        assert!(!report.has_room_for(&finding(Class::Warning)));
        assert!(report.has_room_for(&finding(Class::Error)));
        report.findings.push(finding(Class::Error));
        assert!(!report.has_room_for(&finding(Class::Error)));
    }
}
