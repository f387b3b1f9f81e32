//! Where a configuration comes from and on what terms it is used: what the start knew, and what
//! every reload goes by.

use super::cli::verdict;
use super::report::Report;
use super::{
    failed, load_backends, load_file, load_regular, open_regular, read, sha256_of, Loaded,
};
use clap::Args;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// On what terms a configuration may be used.
#[derive(Args, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// Take every warning for a reason not to start
    #[arg(long)]
    pub strict: bool,
    /// Start without backends: every request is answered 503 no_backend
    #[arg(long)]
    pub allow_empty: bool,
}

/// Where a configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// What it is read from.
    pub source: ConfigSource,
    /// On what terms it is used.
    pub terms: Terms,
}

/// What a configuration is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSource {
    /// A file.
    File(PathBuf),
    /// `--backend` and `--listen`.
    CommandLine {
        /// URLs.
        backends: Vec<String>,
        /// Addresses.
        listen: Vec<String>,
    },
}

/// Why a configuration is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What was found, and why it is not used: lines that end with a line feed.
    pub lines: String,
    /// The exit code of a start with it.
    pub code: u8,
}

impl Origin {
    /// The file, if there is one.
    pub fn file(&self) -> Option<&PathBuf> {
        match &self.source {
            ConfigSource::File(file) => Some(file),
            ConfigSource::CommandLine { .. } => None,
        }
    }

    /// The hash of the file as it is now, as a report has it of the file that was loaded; `None`
    /// when there is no file, or none that can be read for the moment.
    ///
    /// # Errors
    /// It is no regular file, and not read.
    pub fn sha256(&self) -> std::io::Result<Option<String>> {
        let Some(file) = self.file() else { return Ok(None) };
        match read_regular(file) {
            Ok(bytes) => Ok(Some(sha256_of(&bytes))),
            Err(error) if error.kind() == ErrorKind::InvalidInput => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Reads it for a start.
    pub fn load(&self) -> Result<Loaded, Refused> {
        self.accept(match &self.source {
            ConfigSource::File(file) => load_file(file, &of_this_process),
            ConfigSource::CommandLine { backends, listen } => load_backends(backends, listen),
        })
    }

    /// Reads it once more for a process that runs, with the variables `env`. Beside what keeps a
    /// start from using it, a file is refused that says nothing (most often it is being written),
    /// and whatever is no file: a pipe would be waited for.
    pub fn load_again(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Refused> {
        let ConfigSource::File(file) = &self.source else {
            let message = "there is no file to read anew: the backends are those of --backend";
            return self.accept(Err(failed("command line", message.into())));
        };
        let name = file.display().to_string();
        self.accept(load_regular(file, env).and_then(|loaded| match loaded.report.is_blank {
            true => Err(failed(&name, "says nothing: it may just be being written".into())),
            false => Ok(loaded),
        }))
    }

    fn accept(&self, loaded: Result<Loaded, Report>) -> Result<Loaded, Refused> {
        let strict = self.terms.strict;
        let loaded = loaded.map_err(|report| Refused {
            lines: verdict::lines(&report, strict),
            code: super::cli::UNUSABLE,
        })?;
        let obstacles = verdict::obstacles(&loaded.plan, &loaded.report, self.terms);
        match obstacles.is_empty() {
            true => Ok(loaded),
            false => Err(Refused {
                lines: verdict::lines(&loaded.report, strict) + &obstacles,
                code: super::cli::WOULD_NOT_START,
            }),
        }
    }
}

/// All of a regular file, and of one that is too long for a configuration as much as shows that.
/// Waits for no pipe.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn read_regular(file: &Path) -> std::io::Result<Vec<u8>> {
    open_regular(file).and_then(read)
}

/// The variables of this process.
pub fn of_this_process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::super::cli::{UNUSABLE, WOULD_NOT_START};
    use super::*;

    fn origin(file: &Path, allow_empty: bool) -> Origin {
        let terms = Terms { strict: false, allow_empty };
        Origin { source: ConfigSource::File(file.to_owned()), terms }
    }

    /// Catches: a reload that waits for a pipe for ever, or that takes all backends away because
    /// an editor has just emptied the file.
    #[test]
    fn what_is_not_a_whole_file_is_refused_once_more() {
        let folder = std::env::temp_dir().join(format!("llmproxy-origin-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("config.yaml");
        let with = |text: &str, allow_empty| {
            std::fs::write(&file, text).unwrap();
            origin(&file, allow_empty).load_again(&of_this_process).map_err(|no| no.code)
        };
        let good = "backends: [{url: 'http://a'}]\n";
        assert_eq!(with(good, false).unwrap().plan.backends.len(), 1);
        assert!(with("backends: []\n", true).unwrap().plan.backends.is_empty());
        assert_eq!(with("backends: []\n", false).err(), Some(WOULD_NOT_START));
        let huge = format!("{good}# {}", "x".repeat(2 << 20));
        for text in ["", "\n# nothing yet\n", "backends: [{url: 'ht", huge.as_str()] {
            assert_eq!(with(text, true).err(), Some(UNUSABLE), "{}", text.len());
        }
        std::fs::write(&file, "").unwrap();
        assert!(origin(&file, true).load().is_ok(), "a start asked for it");
        let away = origin(&folder.join("away"), true).load_again(&of_this_process);
        assert!(away.unwrap_err().lines.contains("there is no such file"));
        let pipe = folder.join("pipe");
        let made = rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into());
        made.unwrap();
        for file in [Path::new("/dev/zero"), &pipe] {
            let none = origin(file, true).load_again(&of_this_process);
            assert!(none.unwrap_err().lines.contains("is not a regular file"));
            assert!(origin(file, true).sha256().is_err());
        }
        // A start waits for what comes out of a pipe.
        let writer = std::thread::spawn(move || std::fs::write(pipe, good));
        let piped = origin(&folder.join("pipe"), false).load().unwrap();
        assert_eq!(piped.plan.backends.len(), 1);
        writer.join().unwrap().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_variable_may_be_another_process_s() {
        let name = format!("llmproxy-origin-{}.yaml", std::process::id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, "backends: [{name: '${OF_IT}', url: 'http://a'}]\n").unwrap();
        let named = |env: &dyn Fn(&str) -> Option<String>| origin(&file, false).load_again(env);
        let of_it = named(&|name| (name == "OF_IT").then(|| "it".to_owned())).unwrap();
        assert_eq!(of_it.plan.backends[0].name, "it");
        assert!(named(&of_this_process).is_err());
        std::fs::remove_file(&file).unwrap();
    }
}
