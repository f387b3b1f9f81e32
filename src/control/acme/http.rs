//! The listener for those who come without TLS: an authority that asks for a token gets it, a
//! browser is sent to `https`, and nobody else gets anything. One thread for all: who has been
//! there longest goes where somebody new finds no place, so that those who say nothing keep no
//! authority out.

use super::folder::AcmeFolder;
use crate::http::head::Parse;
use crate::http::request::{Method, RequestHead};
use crate::state::stop::{Phase, Stop};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Those who ask at a time. Beyond: see above.
const VISITORS_MAX: usize = 64;
/// Whoever asks sends the request, and takes the answer, within so long.
const VISIT_TIME: Duration = Duration::from_secs(10);
/// Bytes of a request.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Accepting stops for so long when it fails, as it does without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// At least so often it is looked whose time is over, and whether that of the listener is.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Where authorities ask (RFC 8555 section 8.3).
const TOKEN_PATH: &[u8] = b"/.well-known/acme-challenge/";

/// What is to be had there.
pub struct PlainDoor {
    /// Where tokens lie.
    pub folder: AcmeFolder,
    /// Names whose visitors are sent to `https`.
    pub names: Vec<String>,
}

/// Starts the thread. It lets nobody in any more once the process drains, or another one serves in
/// its place, which has the same listener; it ends when those who are there have been served.
pub fn start(listener: OwnedFd, door: PlainDoor, stop: Arc<Stop>) -> io::Result<()> {
    let listener = TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let mut listener = Some(listener);
    let body = move || {
        let mut visits = Vec::new();
        while listener.is_some() || !visits.is_empty() {
            if !matches!(stop.phase(), Phase::Running | Phase::Leaving) {
                listener = None;
            }
            let listener = listener.as_ref();
            crate::control::survive("acme-http", || turn(listener, &door, &mut visits));
        }
    };
    std::thread::Builder::new().name("acme-http".into()).spawn(body).map(drop)
}

/// Somebody who came.
struct Visit {
    stream: TcpStream,
    since: Instant,
    said: Vec<u8>,
    /// What is still to be sent; empty while it speaks.
    answer: Vec<u8>,
    /// It has all of it, and closes when it likes.
    is_served: bool,
}

/// Waits until somebody comes or speaks, and goes on with all of them.
fn turn(listener: Option<&TcpListener>, door: &PlainDoor, visits: &mut Vec<Visit>) {
    let mut fds = Vec::new();
    for visit in visits.iter() {
        let wanted = if visit.answer.is_empty() { PollFlags::IN } else { PollFlags::OUT };
        fds.push(PollFd::from_borrowed_fd(visit.stream.as_fd(), wanted));
    }
    fds.extend(listener.map(|listener| PollFd::new(listener, PollFlags::IN)));
    if poll(&mut fds, Some(&LOOK_EVERY)).is_err() {
        return;
    }
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    drop(fds);
    let mut ready_of = ready.iter();
    let (now, spoken_for) = (Instant::now(), visits.len());
    visits.retain_mut(|visit| {
        let is_ready = ready_of.next().copied().unwrap_or_default();
        now.duration_since(visit.since) < VISIT_TIME && (!is_ready || visit.go_on(door))
    });
    if let (Some(listener), Some(true)) = (listener, ready.get(spoken_for).copied()) {
        accept(listener, visits);
    }
}

fn accept(listener: &TcpListener, visits: &mut Vec<Visit>) {
    match listener.accept() {
        Ok((stream, _)) => {
            if stream.set_nonblocking(true).is_err() {
                return;
            }
            if visits.len() >= VISITORS_MAX {
                visits.remove(0);
            }
            let (said, answer) = (Vec::new(), Vec::new());
            visits.push(Visit { stream, since: Instant::now(), said, answer, is_served: false });
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        // Not at once again: it would fail a million times a second.
        Err(_) => std::thread::park_timeout(ACCEPT_PAUSE),
    }
}

impl Visit {
    /// Reads or writes what is possible. False: it is over.
    fn go_on(&mut self, door: &PlainDoor) -> bool {
        let mut bytes = [0; 2048];
        if self.answer.is_empty() {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                // What it says behind its request is taken: a reset might overtake the answer.
                Ok(_) if self.is_served => return true,
                Ok(n) => self.said.extend_from_slice(bytes.get(..n).unwrap_or_default()),
                Err(error) => return waits(&error),
            }
            match answer(&self.said, door) {
                None => return true,
                Some(answer) => self.answer = answer,
            }
        }
        match self.stream.write(&self.answer) {
            Ok(n) => drop(self.answer.drain(..n)),
            Err(error) => return waits(&error),
        }
        if self.answer.is_empty() {
            self.is_served = true;
            return self.stream.shutdown(Shutdown::Write).is_ok();
        }
        true
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The answer to a request; `None`: it is not whole yet.
fn answer(said: &[u8], door: &PlainDoor) -> Option<Vec<u8>> {
    let mut head = RequestHead::default();
    match head.parse(said, REQUEST_BYTES_MAX) {
        Err(refusal) => return Some(text(refusal.status, "", "")),
        Ok(Parse::Partial) => return None,
        Ok(Parse::Done { .. }) => {}
    }
    let path = head.path(said);
    if !matches!(head.method, Method::Get | Method::Head) {
        // Not sent on: a client would send its key in the clear once more, each time.
        return Some(text(403, "", "https only\n"));
    }
    if let Some(token) = path.strip_prefix(TOKEN_PATH) {
        return Some(match door.folder.token(token) {
            Some(answer) => text(200, "", &answer),
            None => text(404, "", "no such token\n"),
        });
    }
    let host = head.host.map(|span| span.of(said)).unwrap_or_default();
    let host = std::str::from_utf8(host).unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default();
    let ours = door.names.iter().find(|name| name.eq_ignore_ascii_case(host));
    let target = std::str::from_utf8(head.target().of(said)).unwrap_or("/");
    Some(match ours {
        Some(name) => {
            let slash = if target.starts_with('/') { "" } else { "/" };
            text(308, &format!("Location: https://{name}{slash}{target}\r\n"), "")
        }
        // Where to is not ours to say.
        None => text(404, "", "not here\n"),
    })
}

/// `fields`: whole lines.
fn text(status: u16, fields: &str, body: &str) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        308 => "Permanent Redirect",
        403 => "Forbidden",
        404 => "Not Found",
        _ => "Error",
    };
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         Connection: close\r\n{fields}\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::folder::tests::ScratchFolder;
    use super::*;

    fn door(scratch: &ScratchFolder) -> PlainDoor {
        PlainDoor { folder: scratch.folder(), names: vec!["a.example".to_owned()] }
    }

    fn said_to(door: &PlainDoor, request: &str) -> String {
        String::from_utf8(answer(request.as_bytes(), door).unwrap()).unwrap()
    }

    /// Catches: an authority that does not get its token, a redirect to wherever somebody likes, a
    /// key that a client goes on to send in the clear.
    #[test]
    fn an_authority_gets_its_token_and_a_browser_is_sent_on() {
        let scratch = ScratchFolder::new("door");
        let door = door(&scratch);
        let turn = door.folder.take_turn().unwrap().unwrap();
        let _laid = door.folder.lay_token("tok", "tok.thumb", &turn).unwrap();
        let get = |path: &str, host: &str| {
            said_to(&door, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
        };
        let got = get("/.well-known/acme-challenge/tok", "whatever:80");
        assert!(got.starts_with("HTTP/1.1 200 ") && got.ends_with("\r\n\r\ntok.thumb"), "{got}");
        assert!(get("/.well-known/acme-challenge/no", "a.example").starts_with("HTTP/1.1 404 "));
        let sent = get("/v1/models?a=b", "A.example:80");
        assert!(sent.starts_with("HTTP/1.1 308 "), "{sent}");
        assert!(sent.contains("\r\nLocation: https://a.example/v1/models?a=b\r\n"), "{sent}");
        assert!(get("/", "evil.example").starts_with("HTTP/1.1 404 "));
        let post = "POST /v1/models HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n";
        assert!(said_to(&door, post).starts_with("HTTP/1.1 403 "));
        assert!(said_to(&door, "rubbish\r\n\r\n").starts_with("HTTP/1.1 "));
        assert!(answer(b"GET / HTTP/1.1\r\nHost: a.exam", &door).is_none());
    }

    /// Catches: silent ones, as many as there are places, that keep an authority out.
    #[test]
    fn who_says_nothing_makes_room() {
        let scratch = ScratchFolder::new("room");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        start(listener.into(), door(&scratch), Arc::default()).unwrap();
        let mut silent: Vec<_> =
            (0..VISITORS_MAX).map(|_| TcpStream::connect(to).unwrap()).collect();
        let mut asks = TcpStream::connect(to).unwrap();
        asks.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").unwrap();
        let mut got = String::new();
        asks.read_to_string(&mut got).unwrap();
        assert!(got.starts_with("HTTP/1.1 308 "), "{got}");
        // The first of them was put out for it.
        assert_eq!(silent[0].read(&mut [0; 1]).unwrap(), 0);
    }

    /// Catches: a listener that goes on in a process that drains, or whose place another one has,
    /// and one that forgets who is there.
    #[test]
    fn nobody_comes_in_once_the_process_leaves() {
        for phase in [Phase::Succeeded, Phase::Draining, Phase::Ending] {
            let scratch = ScratchFolder::new(&format!("leaves-{phase:?}"));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let to = listener.local_addr().unwrap();
            let stop = Arc::<Stop>::default();
            start(listener.into(), door(&scratch), Arc::clone(&stop)).unwrap();
            stop.advance(Phase::Leaving);
            let mut asks = TcpStream::connect(to).unwrap();
            asks.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            // Who comes behind it is served: so it was let in.
            let mut behind = TcpStream::connect(to).unwrap();
            behind.write_all(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n").unwrap();
            assert!(behind.read(&mut [0; 1]).unwrap() > 0);
            stop.advance(phase);
            let due = Instant::now() + VISIT_TIME;
            while TcpStream::connect(to).is_ok() {
                assert!(Instant::now() < due, "{phase:?}: it still listens");
                std::thread::park_timeout(ACCEPT_PAUSE);
            }
            asks.write_all(b"Host: a.example\r\n\r\n").unwrap();
            let mut got = String::new();
            asks.read_to_string(&mut got).unwrap();
            assert!(got.starts_with("HTTP/1.1 308 "), "{phase:?}: {got}");
        }
    }
}
