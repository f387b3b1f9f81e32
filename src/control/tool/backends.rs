//! `llmproxy backends`: asks the gateways that run with a configuration, by their admin sockets,
//! how their backends are.

use crate::base::limits::{HEAD_BYTES_MAX, ROSTER_BYTES_MAX};
use crate::config::cli::{BackendsAsk, Printout, FINE, UNUSABLE, WOULD_NOT_START};
use crate::config::load_file;
use crate::config::origin::{of_this_process, Refused};
use crate::config::plan::Plan;
use crate::control::admin;
use crate::control::roster::{Roster, ROSTER_VERSION};
use crate::http::head::Parse;
use crate::http::request::Method;
use crate::http::response::ResponseHead;
use crate::usage::spool::folders::root::folders_in;
use serde::de::IgnoredAny;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

mod table;

/// A gateway answers within so long: it asks its workers, which may be busy for a second.
const ANSWER_TIME: Duration = Duration::from_secs(5);

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
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
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

/// Whether a gateway with this configuration makes a socket.
fn has_socket(plan: &Plan) -> bool {
    let has_spool = plan.usage.spool.enabled && !plan.usage.reporters.is_empty();
    has_spool || plan.server.pid_file.is_some()
}

/// Where the sockets of gateways with this configuration are, if they run.
fn places(plan: &Plan) -> io::Result<Vec<PathBuf>> {
    let spool = &plan.usage.spool.dir;
    let mut folders =
        folders_in(spool).map_err(|error| io::Error::new(error.kind(), named(spool, &error)))?;
    folders.sort_unstable();
    let in_spool = folders.iter().map(|folder| spool.join(folder).join(admin::NAME));
    Ok(in_spool.chain(plan.server.pid_file.as_deref().map(admin::beside)).collect())
}

fn named(path: &Path, error: &io::Error) -> String {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => ": run this as the user that runs the gateway",
        _ => "",
    };
    format!("{}: {error}{hint}", path.display())
}

fn failed(message: &str) -> Refused {
    Refused { lines: format!("llmproxy backends: {message}\n"), code: WOULD_NOT_START }
}

/// Asks at a socket.
fn fetch(path: &Path) -> io::Result<String> {
    let mut socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    // For connecting too, which would wait for as long as the queue is full.
    socket.set_write_timeout(Some(ANSWER_TIME))?;
    socket.set_read_timeout(Some(ANSWER_TIME))?;
    socket.connect(&SockAddr::unix(path)?)?;
    let request = b"GET /backends HTTP/1.1\r\nHost: llmproxy\r\nConnection: close\r\n\r\n";
    // Whoever is turned away finds the connection closed, be it before or after this.
    let is_closed = |error: &io::Error| {
        matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
    };
    socket
        .write_all(request)
        .or_else(|error| if is_closed(&error) { Ok(()) } else { Err(error) })?;
    let since = Instant::now();
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let got = match socket.read(&mut piece) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(late()),
            Err(error) if is_closed(&error) => break,
            Err(error) => return Err(error),
        };
        bytes.extend_from_slice(piece.get(..got).unwrap_or_default());
        if bytes.len() > ROSTER_BYTES_MAX {
            return Err(io::Error::other("the answer is too long"));
        }
        if since.elapsed() > ANSWER_TIME {
            return Err(late());
        }
    }
    body(&bytes)
}

fn late() -> io::Error {
    io::Error::other("the gateway does not answer: it is stopped, or too many ask at a time")
}

/// The body of an answer that ended with its connection.
fn body(bytes: &[u8]) -> io::Result<String> {
    if bytes.is_empty() {
        return Err(io::Error::other("too many ask at a time"));
    }
    let mut head = ResponseHead::default();
    let bad = || io::Error::other("the answer is none of a gateway");
    let Ok(Parse::Done { len }) = head.parse(bytes, Method::Get, HEAD_BYTES_MAX) else {
        return Err(bad());
    };
    let body = bytes.get(len..).and_then(|body| std::str::from_utf8(body).ok()).ok_or_else(bad)?;
    match head.status {
        200 => Ok(body.to_owned()),
        status => Err(io::Error::other(format!("status {status}: {}", body.trim_end()))),
    }
}
