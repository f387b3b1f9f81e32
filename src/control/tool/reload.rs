//! `llmproxy reload`: checks the configuration of a process that runs, and has the process read it.

use crate::config::cli::{Printout, ReloadAsk, FINE, UNUSABLE, WOULD_NOT_START};
use crate::config::origin::{of_this_process, ConfigSource, Origin, Refused};
use crate::config::{load_file, Loaded};
use crate::control::pid_file::{self, Unread};
use crate::control::process::{is_same_file, Serving};
use std::path::{Path, PathBuf};

/// Does it, and says what was done.
pub fn run(ask: &ReloadAsk) -> Printout {
    match reload(ask) {
        Ok(stdout) => Printout { stdout, stderr: String::new(), code: FINE },
        Err(Refused { lines, code }) => Printout { stdout: String::new(), stderr: lines, code },
    }
}

fn reload(ask: &ReloadAsk) -> Result<String, Refused> {
    let process = find(ask)?;
    let file = valid(&process, ask.config.as_deref())?.report.file;
    process.hang_up().map_err(not_found)?;
    let pid = process.number();
    Ok(format!("{file} is valid: process {pid} was told to read it; its log says what changes\n"))
}

/// The process that is meant.
fn find(ask: &ReloadAsk) -> Result<Serving, Refused> {
    match ask.pid {
        Some(pid) => Serving::find(pid).map_err(not_found),
        None => {
            let default = || PathBuf::from("config.yaml");
            let config = ask.config.clone().unwrap_or_else(default);
            let path = pid_file_of(&config)?;
            by_pid_file(&path).map_err(not_found)
        }
    }
}

/// What a process reads at a reload, if it would take it; `asked` is the file that it is said to
/// run with.
pub(super) fn valid(process: &Serving, asked: Option<&Path>) -> Result<Loaded, Refused> {
    let origin = match (process.origin(), asked) {
        (Some(theirs), asked) => {
            if let (Some(file), Some(asked)) = (theirs.file(), asked) {
                if !is_same_file(file, asked) {
                    let (pid, file) = (process.number(), file.display());
                    return Err(not_found(format!("process {pid} runs with {file}")));
                }
            }
            theirs
        }
        (None, Some(asked)) => {
            Origin { source: ConfigSource::File(asked.to_owned()), terms: Default::default() }
        }
        (None, None) => {
            let pid = process.number();
            let message = format!("what process {pid} runs with cannot be read: give --config");
            return Err(not_found(message));
        }
    };
    let variables = process.variables();
    // It reads the file with the variables that it was started with.
    let env = |name: &str| match &variables {
        None => of_this_process(name),
        Some(theirs) => {
            let value = theirs.iter().find(|(theirs, _)| theirs == name).map(|(_, value)| value);
            value.and_then(|value| value.to_str()).map(str::to_owned)
        }
    };
    let loaded = origin.load_again(&env)?;
    let unusable = super::files::unusable(&loaded.plan);
    if !unusable.is_empty() {
        let line = |reason: &String| format!("{}: cannot be used: {reason}\n", loaded.report.file);
        let lines = unusable.iter().map(line).collect();
        return Err(Refused { lines, code: WOULD_NOT_START });
    }
    Ok(loaded)
}

/// `server.pid_file` of a configuration.
pub(super) fn pid_file_of(config: &Path) -> Result<PathBuf, Refused> {
    let loaded = load_file(config, &of_this_process).map_err(|report| Refused {
        lines: report.lines(false).iter().map(|line| format!("{line}\n")).collect(),
        code: UNUSABLE,
    })?;
    loaded.plan.server.pid_file.ok_or_else(|| {
        not_found(format!("{} names no server.pid_file: give --pid", config.display()))
    })
}

/// The process whose number stands there.
pub(super) fn by_pid_file(path: &Path) -> Result<Serving, String> {
    let number = pid_file::read(path).map_err(|why| {
        let why = match why {
            Unread::NotThere => "there is no such file: no llmproxy runs with it".to_owned(),
            Unread::NoNumber => "is no pid file".to_owned(),
            Unread::Io(error) => error.to_string(),
        };
        format!("{}: {why}", path.display())
    })?;
    Serving::find(number).map_err(|why| format!("{}: {why}", path.display()))
}

/// Nothing is sent, and this is why.
pub(super) fn not_found(message: String) -> Refused {
    Refused { lines: format!("llmproxy: {message}\n"), code: WOULD_NOT_START }
}
