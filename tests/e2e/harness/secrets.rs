//! What a proxy must not tell: every secret of its configuration is searched for in all that it
//! says, for every proxy of every test.

use super::process::{Lines, Process};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Properties that hold secrets.
const PROPERTIES: [&str; 6] = ["password", "token", "secret", "api_key", "hmac_key", "key"];
/// A shorter one may well stand anywhere by chance.
const BYTES_MIN: usize = 7;

/// What ends a value in a configuration.
const ENDS: [char; 6] = ['"', '\'', ',', '}', ' ', '\n'];

/// The secrets that a configuration holds in plain text.
pub fn secrets_of(yaml: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for property in PROPERTIES {
        let parts: Vec<&str> = yaml.split(&format!("{property}:")).collect();
        for (before, value) in parts.iter().zip(parts.iter().skip(1)) {
            if before.chars().next_back().is_none_or(|c| "{ ,\n\"'".contains(c)) {
                let value = value.trim_start_matches(' ').trim_start_matches(['"', '\'']);
                found.extend(value.split(ENDS).next().map(str::to_owned));
            }
        }
    }
    for rest in yaml.split("://").skip(1) {
        let authority = rest.split('/').next().and_then(|rest| rest.split(ENDS).next());
        let user = authority.and_then(|authority| authority.rsplit_once('@'));
        found.extend(user.and_then(|(user, _)| Some(user.split_once(':')?.1.to_owned())));
    }
    // Names of files, of variables and of other properties are none.
    found.retain(|secret| secret.len() >= BYTES_MIN && !secret.contains(['/', '$', '{', '@', '[']));
    found
}

/// Watches one proxy until it goes away.
pub struct SecretWatch {
    secrets: Mutex<BTreeSet<String>>,
    log: [Lines; 2],
    folder: PathBuf,
    /// What the test itself put there.
    given: BTreeSet<PathBuf>,
}

impl SecretWatch {
    /// Of a proxy with these arguments, whose files are in this folder.
    pub fn new(process: &Process, args: &[&str], folder: &Path, given: BTreeSet<PathBuf>) -> Self {
        let configs = args.iter().filter_map(|arg| std::fs::read_to_string(arg).ok());
        let secrets = Mutex::new(configs.flat_map(|yaml| secrets_of(&yaml)).collect());
        let log = [process.stdout.clone(), process.stderr.clone()];
        SecretWatch { secrets, log, folder: folder.to_owned(), given }
    }

    /// It has another configuration.
    pub fn add(&self, yaml: &str) {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).extend(secrets_of(yaml));
    }

    /// Panics when one of the secrets is in there.
    pub fn assert_none_in(&self, what: &str, bytes: &[u8]) {
        let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        for secret in secrets.iter() {
            let found = bytes.windows(secret.len()).position(|part| part == secret.as_bytes());
            if let Some(at) = found {
                let near = &bytes[at.saturating_sub(200)..bytes.len().min(at + 100)];
                let near = String::from_utf8_lossy(near).into_owned();
                drop(secrets);
                panic!("a secret of the configuration is in {what}: {near}");
            }
        }
    }

    fn is_config(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("config.yaml"))
    }
}

impl Drop for SecretWatch {
    fn drop(&mut self) {
        let is_none = self.secrets.get_mut().is_ok_and(|secrets| secrets.is_empty());
        if is_none || std::thread::panicking() {
            return;
        }
        for lines in &self.log {
            self.assert_none_in("the log", lines.text().as_bytes());
        }
        for path in files_in(&self.folder) {
            if !self.given.contains(&path) && !Self::is_config(&path) {
                // One that is gone by now says nothing.
                let bytes = std::fs::read(&path).unwrap_or_default();
                self.assert_none_in(&path.display().to_string(), &bytes);
            }
        }
    }
}

/// All files of a folder, and of those in it.
pub fn files_in(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(files_in(&entry.path())),
            Ok(kind) if kind.is_file() => drop(files.insert(entry.path())),
            _ => {}
        }
    }
    files
}
