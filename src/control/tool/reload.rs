//! `llmproxy reload`: checks the configuration of a process that runs, and has the process read it.

use crate::config::cli::{Printout, ReloadAsk, FINE, UNUSABLE, WOULD_NOT_START};
use crate::config::load_file;
use crate::config::origin::{of_this_process, ConfigSource, Origin, Refused};
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
    let default = || ask.config.clone().unwrap_or_else(|| PathBuf::from("config.yaml"));
    let process = match ask.pid {
        Some(pid) => Serving::find(pid).map_err(not_found)?,
        None => by_pid_file(&default())?,
    };
    let origin = match (process.origin(), &ask.config) {
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
            Origin { source: ConfigSource::File(asked.clone()), terms: Default::default() }
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
    process.hang_up().map_err(not_found)?;
    let (pid, file) = (process.number(), &loaded.report.file);
    Ok(format!("{file} is valid: process {pid} was told to read it; its log says what changes\n"))
}

/// The process whose number stands where a configuration says.
fn by_pid_file(config: &Path) -> Result<Serving, Refused> {
    let loaded = load_file(config, &of_this_process).map_err(|report| Refused {
        lines: report.lines(false).iter().map(|line| format!("{line}\n")).collect(),
        code: UNUSABLE,
    })?;
    let Some(path) = loaded.plan.server.pid_file else {
        let message = format!("{} names no server.pid_file: give --pid", config.display());
        return Err(not_found(message));
    };
    let number = pid_file::read(&path).map_err(|why| {
        let why = match why {
            Unread::NotThere => "there is no such file: no llmproxy runs with it".to_owned(),
            Unread::NoNumber => "is no pid file".to_owned(),
            Unread::Io(error) => error.to_string(),
        };
        not_found(format!("{}: {why}", path.display()))
    })?;
    Serving::find(number).map_err(|why| not_found(format!("{}: {why}", path.display())))
}

fn not_found(message: String) -> Refused {
    Refused { lines: format!("llmproxy reload: {message}\n"), code: WOULD_NOT_START }
}
