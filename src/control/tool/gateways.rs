//! The gateways that run with a configuration, asked all by their admin sockets, or one by its own.

use super::socket::{has_socket, is_nobody, named, places, Asked};
use crate::base::line::for_terminal;
use crate::config::cli::{UNUSABLE, WOULD_NOT_START};
use crate::config::load_file;
use crate::config::origin::{of_this_process, Refused};
use crate::http::request::Method;
use std::io;
use std::path::Path;

/// What they are asked.
pub struct GatewayQuestion<'a> {
    /// The command that asks.
    pub command: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// An answer that is longer is an error.
    pub bytes_max: usize,
}

impl GatewayQuestion<'_> {
    /// What gateways answer, one at least, and lines about those that run and say nothing.
    ///
    /// # Errors
    /// Nobody runs, or the configuration cannot be read.
    pub fn put(
        &self,
        config: &Path,
        socket: Option<&Path>,
    ) -> Result<(Vec<String>, String), Refused> {
        match socket {
            None => self.put_to_all(config),
            Some(socket) => match self.fetch(socket) {
                Ok(answer) => Ok((vec![answer], String::new())),
                Err(error) => Err(self.failed(&named(socket, &error))),
            },
        }
    }

    fn put_to_all(&self, config: &Path) -> Result<(Vec<String>, String), Refused> {
        let command = self.command;
        let loaded = load_file(config, &of_this_process).map_err(|report| {
            let lines = report.lines(false);
            let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
            // It may need variables that the gateway has, and this shell does not.
            let hint = "without the file, name the admin socket: --socket PATH";
            Refused { lines: format!("{lines}llmproxy {command}: {hint}\n"), code: UNUSABLE }
        })?;
        let file = config.display();
        let places = places(&loaded.plan).map_err(|error| self.failed(&error.to_string()))?;
        let (mut answers, mut silent) = (Vec::new(), String::new());
        for socket in &places {
            match self.fetch(socket) {
                Ok(answer) => answers.push(answer),
                // There is none, or its process is gone and had no time to take it away.
                Err(error) if is_nobody(&error) => {}
                Err(error) => silent += &self.failed(&named(socket, &error)).lines,
            }
        }
        match (answers.is_empty() && silent.is_empty(), has_socket(&loaded.plan)) {
            (false, _) => Ok((answers, silent)),
            (true, true) => Err(self.failed(&format!("no gateway runs with {file}"))),
            (true, false) => Err(self.failed(&format!(
                "a gateway that runs with {file} has no admin socket: it is made beside \
                 `server.pid_file`, or, where usage is reported, in the spool; name one of them"
            ))),
        }
    }

    /// The line for a person.
    pub fn failed(&self, message: &str) -> Refused {
        let lines = format!("llmproxy {}: {message}\n", self.command);
        Refused { lines, code: WOULD_NOT_START }
    }

    /// Asks at a socket.
    fn fetch(&self, path: &Path) -> io::Result<String> {
        let question = Asked { method: Method::Get, target: self.target, body: b"" };
        let (status, body) = question.at(path, self.bytes_max)?;
        match status {
            200 => Ok(body),
            status => {
                Err(io::Error::other(format!("status {status}: {}", for_terminal(body.trim_end()))))
            }
        }
    }
}
