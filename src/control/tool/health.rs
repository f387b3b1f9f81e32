//! `llmproxy health`: asks the gateway that runs with a configuration, at the first address that it
//! listens on, or else the first Unix socket, whether it lives. For whoever looks after containers,
//! where no curl is.

use crate::base::certificate::{Verifier, Wanted};
use crate::base::limits::HEAD_BYTES_MAX;
use crate::config::cli::{HealthAsk, Printout, FINE, UNUSABLE, WOULD_NOT_START};
use crate::config::load_file;
use crate::config::origin::of_this_process;
use crate::config::plan::{ListenerSpeech, Server};
use crate::control::socket_file;
use crate::http::head::Parse;
use crate::http::request::Method;
use crate::http::response::ResponseHead;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{SockAddr, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For all of it. Docker kills a check after 30 s unless it is told otherwise.
const LIMIT: Duration = Duration::from_secs(4);

/// Does it, and says what was found.
pub fn run(ask: &HealthAsk) -> Printout {
    let loaded = match load_file(&ask.config, &of_this_process) {
        Ok(loaded) => loaded,
        Err(report) => {
            let stderr = report.lines(false).iter().map(|line| format!("{line}\n")).collect();
            return Printout { stdout: String::new(), stderr, code: UNUSABLE };
        }
    };
    let path = if ask.ready { "/ready" } else { "/health" };
    match status(&loaded.plan.server, path) {
        Ok(200) => Printout { stdout: format!("{path}: ok\n"), stderr: String::new(), code: FINE },
        Ok(status) => failed(&format!("{path}: status {status}")),
        Err(error) => failed(&format!("{path}: {error}")),
    }
}

fn failed(message: &str) -> Printout {
    let stderr = format!("llmproxy health: {message}\n");
    Printout { stdout: String::new(), stderr, code: WOULD_NOT_START }
}

/// What the gateway says at the place where it should be found.
fn status(server: &Server, path: &str) -> io::Result<u16> {
    let until = Instant::now() + LIMIT;
    let mut result = Err(io::Error::other("it listens nowhere"));
    let (places, speech) = first_place(server)?;
    for place in places {
        result = ask((server, speech), &place, path, until);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// The first address, or else the first Unix socket, and what is spoken there.
fn first_place(server: &Server) -> io::Result<(Vec<SockAddr>, ListenerSpeech)> {
    let first = |speech: ListenerSpeech| Some((*server.addresses_of(speech).first()?, speech));
    if let Some((address, speech)) = ListenerSpeech::ALL.into_iter().find_map(first) {
        return Ok((places(address).into_iter().map(SockAddr::from).collect(), speech));
    }
    let unix = server.unix_listeners().next().map(|one| {
        let place = socket_file::address(&one.listen)?;
        Ok((vec![place], one.speech()))
    });
    unix.unwrap_or_else(|| Ok((Vec::new(), ListenerSpeech::AsServer)))
}

/// Every address of a machine is its loopback address too.
fn places(address: SocketAddr) -> Vec<SocketAddr> {
    let loopback: &[IpAddr] = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            &[IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
        }
        _ => return vec![address],
    };
    loopback.iter().map(|ip| SocketAddr::new(*ip, address.port())).collect()
}

/// What is left of the time. At its end an error: zero would be no limit at all.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
        false => Ok(left),
    }
}

fn ask(
    (server, speech): (&Server, ListenerSpeech),
    place: &SockAddr,
    path: &str,
    until: Instant,
) -> io::Result<u16> {
    let socket = Socket::new(place.domain(), Type::STREAM.cloexec(), None)?;
    socket.connect_timeout(place, left(until)?)?;
    let ours = socket.local_addr()?.as_socket().map_or(Ipv4Addr::UNSPECIFIED.into(), |at| at.ip());
    let mut timed = Timed { socket, until };
    // Where we count as a balancer, it waits for what a balancer says first: before a handshake.
    if server.proxy_protocol && server.trusted_proxies.iter().any(|range| range.contains(ours)) {
        timed.write_all(b"PROXY UNKNOWN\r\n")?;
    }
    if server.tls.is_none() || speech == ListenerSpeech::Plain {
        return answer(&mut timed, path);
    }
    // A Unix socket has no address that could be the name.
    let name = place.as_socket().map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip());
    answer(&mut over_tls(timed, name)?, path)
}

/// The status of what is answered.
fn answer(stream: &mut (impl Read + Write), path: &str) -> io::Result<u16> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.flush()?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        let mut head = ResponseHead::default();
        let parsed = head.parse(&bytes, Method::Get, HEAD_BYTES_MAX);
        if let Parse::Done { .. } = parsed.map_err(|bad| io::Error::other(bad.0))? {
            return Ok(head.status);
        }
        match stream.read(&mut piece)? {
            0 => return Err(io::Error::other("closed without an answer")),
            got => bytes.extend_from_slice(piece.get(..got).unwrap_or_default()),
        }
    }
}

/// Whose certificate it is does not matter: we ask whoever listens at our own address.
fn over_tls(timed: Timed, name: IpAddr) -> io::Result<StreamOwned<ClientConnection, Timed>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let anybody = Arc::new(Verifier::new(provider, Wanted::Any));
    let config = builder.dangerous().with_custom_certificate_verifier(anybody);
    let config = Arc::new(config.with_no_client_auth());
    let session = ClientConnection::new(config, ServerName::from(name));
    Ok(StreamOwned::new(session.map_err(io::Error::other)?, timed))
}

/// A connection that waits for nothing beyond a moment.
struct Timed {
    socket: Socket,
    until: Instant,
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(left(self.until)?))?;
        self.socket.read(into)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(left(self.until)?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a question to `0.0.0.0`, which is no address to connect to everywhere.
    #[test]
    fn every_address_is_asked_at_the_loopback() {
        let asked = |text: &str| {
            let places = places(text.parse().unwrap());
            places.iter().map(SocketAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(asked("[::]:8000"), ["127.0.0.1:8000", "[::1]:8000"]);
        assert_eq!(asked("0.0.0.0:80"), ["127.0.0.1:80"]);
        assert_eq!(asked("10.1.2.3:8000"), ["10.1.2.3:8000"]);
    }
}
