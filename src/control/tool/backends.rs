//! `llmproxy backends`: asks the gateways that run with a configuration, by their admin sockets,
//! how their backends are.

use super::socket::{has_socket, is_nobody, named, places, Asked};
use crate::base::limits::ROSTER_BYTES_MAX;
use crate::config::cli::{BackendsAsk, Printout, FINE, UNUSABLE, WOULD_NOT_START};
use crate::config::load_file;
use crate::config::origin::{of_this_process, Refused};
use crate::control::roster::{Roster, ROSTER_VERSION};
use crate::http::request::Method;
use serde::de::IgnoredAny;
use std::io;
use std::path::Path;

mod table;

/// Does it, and says what was found: what answers is shown also where another one does not.
pub fn run(ask: &BackendsAsk) -> Printout {
    let (answers, silent) = match heard(ask) {
        Ok(heard) => heard,
        Err(Refused { lines, code }) => {
            return Printout { stdout: String::new(), stderr: lines, code };
        }
    };
    let (stdout, unread) = match shown(ask, &answers) {
        Ok(stdout) => (stdout, String::new()),
        Err(Refused { lines, .. }) => (String::new(), lines),
    };
    let stderr = silent + &unread;
    let code = if stderr.is_empty() { FINE } else { WOULD_NOT_START };
    Printout { stdout, stderr, code }
}

/// What gateways answer, and lines about those that do not.
fn heard(ask: &BackendsAsk) -> Result<(Vec<String>, String), Refused> {
    match &ask.socket {
        None => of_a_configuration(&ask.config),
        Some(socket) => match fetch(socket) {
            Ok(answer) => Ok((vec![answer], String::new())),
            Err(error) => Err(failed(&named(socket, &error))),
        },
    }
}

fn shown(ask: &BackendsAsk, answers: &[String]) -> Result<String, Refused> {
    if ask.json {
        // Who put a socket there is not known for sure: a terminal gets no control characters.
        let is_json = answers.iter().all(|json| serde_json::from_str::<IgnoredAny>(json).is_ok());
        return if is_json { Ok(answers.concat()) } else { Err(failed("the answer is no JSON")) };
    }
    let tables = answers.iter().map(|json| Ok(table::table(&read(json)?)));
    Ok(tables.collect::<Result<Vec<_>, Refused>>()?.join("\n"))
}

fn read(json: &str) -> Result<Roster, Refused> {
    let roster = serde_json::from_str::<Roster>(json).map_err(|error| error.to_string());
    let known = roster.and_then(|roster| match roster.version {
        ROSTER_VERSION => Ok(roster),
        newer => Err(format!("it has the form {newer}, and this program knows {ROSTER_VERSION}")),
    });
    known.map_err(|error| failed(&format!("the answer cannot be read (try --json): {error}")))
}

/// What all gateways say that run with a configuration, one at least; and lines about those that
/// run and say nothing.
fn of_a_configuration(config: &Path) -> Result<(Vec<String>, String), Refused> {
    let loaded = load_file(config, &of_this_process).map_err(|report| {
        let lines: String = report.lines(false).iter().map(|line| format!("{line}\n")).collect();
        // It may need variables that the gateway has, and this shell does not.
        let hint = "llmproxy backends: without the file, name the admin socket: --socket PATH\n";
        Refused { lines: lines + hint, code: UNUSABLE }
    })?;
    let file = config.display();
    let places = places(&loaded.plan).map_err(|error| failed(&error.to_string()))?;
    let (mut answers, mut silent) = (Vec::new(), String::new());
    for socket in &places {
        match fetch(socket) {
            Ok(answer) => answers.push(answer),
            // There is none, or its process is gone and had no time to take it away.
            Err(error) if is_nobody(&error) => {}
            Err(error) => silent += &failed(&named(socket, &error)).lines,
        }
    }
    match (answers.is_empty() && silent.is_empty(), has_socket(&loaded.plan)) {
        (false, _) => Ok((answers, silent)),
        (true, true) => Err(failed(&format!("no gateway runs with {file}"))),
        (true, false) => Err(failed(&format!(
            "a gateway that runs with {file} has no admin socket: it is made beside \
             `server.pid_file`, or, where usage is reported, in the spool; name one of them"
        ))),
    }
}

fn failed(message: &str) -> Refused {
    Refused { lines: format!("llmproxy backends: {message}\n"), code: WOULD_NOT_START }
}

/// Asks at a socket.
fn fetch(path: &Path) -> io::Result<String> {
    let question = Asked { method: Method::Get, target: "/backends", body: b"" };
    let (status, body) = question.at(path, ROSTER_BYTES_MAX)?;
    match status {
        200 => Ok(body),
        status => Err(io::Error::other(format!("status {status}: {}", body.trim_end()))),
    }
}
