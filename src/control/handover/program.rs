//! How this process was started: what its successor is started by.

use super::activation;
use crate::control::notify::WATCHDOG_PROCESS;
use rustix::fs::{access, Access};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The program and its command line.
pub struct Program {
    /// As it was called.
    name: OsString,
    arguments: Vec<OsString>,
    /// Where it was at the start of this process: by the path that it was called by, which leads to
    /// another file once that, or a link on its way, is another one.
    path: Option<PathBuf>,
}

impl Program {
    /// Of this process. To be called before it changes its working directory, which it never does.
    pub fn of_this_process() -> Program {
        let mut words = std::env::args_os();
        let name = words.next().unwrap_or_default();
        let path = match name.as_bytes().contains(&b'/') {
            true => std::path::absolute(&name).ok(),
            // A shell found it on its PATH, and so would we.
            false => None,
        };
        Program { name, arguments: words.collect(), path }
    }

    /// Starts what is there now, with `end` as its standard input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, end: OwnedFd, variable: &str) -> io::Result<Child> {
        let path = self.path.clone().or_else(|| on_path(Path::new(&self.name)));
        let path = path.ok_or_else(|| {
            let name = self.name.display();
            io::Error::new(io::ErrorKind::NotFound, format!("no `{name}` on the PATH"))
        })?;
        let mut command = Command::new(&path);
        command.arg0(&self.name).args(&self.arguments).stdin(Stdio::from(end));
        // What was meant for this process alone.
        for meant in activation::VARIABLES.into_iter().chain([WATCHDOG_PROCESS]) {
            command.env_remove(meant);
        }
        command.env(variable, std::process::id().to_string());
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        command.spawn().map_err(named)
    }
}

/// The first of this name on the PATH that may be run.
fn on_path(name: &Path) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let places = std::env::split_paths(&folders).map(|folder| folder.join(name));
    let mut fitting =
        places.filter(|place| place.is_file() && access(place, Access::EXEC_OK).is_ok());
    fitting.next().and_then(|place| std::path::absolute(place).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_path_is_looked_for() {
        assert!(on_path(Path::new("sh")).is_some_and(|path| path.ends_with("sh")));
        assert_eq!(on_path(Path::new("no-such-program-at-all")), None);
    }

    /// Catches: a successor that takes the variables of its predecessor for its own, or another
    /// command line.
    #[test]
    fn it_is_started_as_this_one_was() {
        let (name, path) = ("llmproxy".into(), Some("/bin/sh".into()));
        let script = "test $0 = llmproxy && test -z \"$LISTEN_PID$LISTEN_FDS$WATCHDOG_PID\" \
                      && test $ASK = $PPID && read line && test \"$line\" = hello";
        let arguments = ["-c", script].map(OsString::from).into();
        let program = Program { name, arguments, path };
        let (reader, mut writer) = io::pipe().unwrap();
        let mut child = program.start(reader.into(), "ASK").unwrap();
        io::Write::write_all(&mut writer, b"hello\n").unwrap();
        // sh -c's $0 is the shell's own name, which is the one that it was called by.
        assert!(child.wait().unwrap().success());
        let nowhere = Program { path: Some("/nonexistent/llmproxy".into()), ..program };
        let refused = nowhere.start(io::pipe().unwrap().0.into(), "ASK").err().unwrap();
        assert!(refused.to_string().starts_with("/nonexistent/llmproxy: "), "{refused}");
    }
}
