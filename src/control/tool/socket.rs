//! Asks a gateway that runs, by its admin socket.

use crate::base::limits::HEAD_BYTES_MAX;
use crate::config::plan::Plan;
use crate::control::admin;
use crate::http::head::Parse;
use crate::http::request::Method;
use crate::http::response::ResponseHead;
use crate::usage::spool::folders::root::folders_in;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A gateway answers within so long: it asks its workers, which may be busy for a second.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Whether a gateway with this configuration makes a socket.
pub fn has_socket(plan: &Plan) -> bool {
    let has_spool = plan.usage.spool.enabled && !plan.usage.reporters.is_empty();
    has_spool || plan.server.pid_file.is_some() || plan.admin.is_some()
}

/// Where the sockets of gateways with this configuration are, if they run.
pub fn places(plan: &Plan) -> io::Result<Vec<PathBuf>> {
    let spool = &plan.usage.spool.dir;
    let mut folders =
        folders_in(spool).map_err(|error| io::Error::new(error.kind(), named(spool, &error)))?;
    folders.sort_unstable();
    let in_spool = folders.iter().map(|folder| spool.join(folder).join(admin::NAME));
    let beside = plan.server.pid_file.as_deref().map(admin::beside);
    let beside_store = plan.admin.as_ref().map(|admin| admin::beside_store(&admin.db_path));
    Ok(in_spool.chain(beside).chain(beside_store).collect())
}

/// An error, with its place and what to do about it.
pub fn named(path: &Path, error: &io::Error) -> String {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => ": run this as the user that runs the gateway",
        _ => "",
    };
    format!("{}: {error}{hint}", path.display())
}

/// There is no socket, or its process is gone and had no time to take it away.
pub fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// Whoever is turned away finds the connection closed, be it before or after the request is sent.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

/// A request.
pub struct Asked<'a> {
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub target: &'a str,
    /// Its body; empty: none.
    pub body: &'a [u8],
}

impl Asked<'_> {
    /// Asks at a socket; gives status and body. An answer that is longer is an error.
    pub fn at(&self, path: &Path, answer_bytes_max: usize) -> io::Result<(u16, String)> {
        let mut socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
        // For connecting too, which would wait for as long as the queue is full.
        socket.set_write_timeout(Some(ANSWER_TIME))?;
        socket.set_read_timeout(Some(ANSWER_TIME))?;
        socket.connect(&SockAddr::unix(path)?)?;
        let (method, target, length) = (self.method.as_str(), self.target, self.body.len());
        let length = match length {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: llmproxy\r\n{length}Connection: close\r\n\r\n"
        );
        socket.write_all(&[head.as_bytes(), self.body].concat()).or_else(|error| {
            if is_closed(&error) {
                Ok(())
            } else {
                Err(error)
            }
        })?;
        body(&read_all(&mut socket, answer_bytes_max)?, self.method)
    }
}

fn read_all(socket: &mut Socket, bytes_max: usize) -> io::Result<Vec<u8>> {
    let since = Instant::now();
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let got = match socket.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(late()),
            Err(error) if is_closed(&error) => return Ok(bytes),
            Err(error) => return Err(error),
        };
        bytes.extend_from_slice(piece.get(..got).unwrap_or_default());
        if bytes.len() > bytes_max {
            return Err(io::Error::other("the answer is too long"));
        }
        if since.elapsed() > ANSWER_TIME {
            return Err(late());
        }
    }
}

fn late() -> io::Error {
    io::Error::other("the gateway does not answer: it is stopped, or too many ask at a time")
}

/// Status and body of an answer that ended with its connection.
fn body(bytes: &[u8], method: Method) -> io::Result<(u16, String)> {
    if bytes.is_empty() {
        return Err(io::Error::other("too many ask at a time"));
    }
    let mut head = ResponseHead::default();
    let bad = || io::Error::other("the answer is none of a gateway");
    let Ok(Parse::Done { len }) = head.parse(bytes, method, HEAD_BYTES_MAX) else {
        return Err(bad());
    };
    let body = bytes.get(len..).and_then(|body| std::str::from_utf8(body).ok()).ok_or_else(bad)?;
    Ok((head.status, body.to_owned()))
}
