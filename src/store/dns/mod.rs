//! A name server: one question, by UDP, and by TCP where the answer is too long for that.
//!
//! *Takes:* servers, a name, a kind of record, a time limit. *Gives:* the records, or a
//! [`Trouble`]. *Runs on:* threads that may block. *May:* block until the limit. *Never:*
//! remembers an answer: who asks again has its own interval.
//!
//! The system's own way of looking names up gives addresses only, from servers of its own choice.

mod message;

pub use message::{DnsRecords, RecordKind, Srv};

use super::{left, Trouble};
use message::{NotRead, MESSAGE_BYTES_MAX};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Times that each server is asked within the limit.
const TRIES: u32 = 3;
/// Servers of the system that are asked, as many as its own resolver asks.
const SERVERS_MAX: usize = 3;
/// Where the system says who they are.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The name servers of this machine.
///
/// # Errors
/// It names none.
pub fn system_servers() -> Result<Vec<SocketAddr>, Trouble> {
    let text = std::fs::read_to_string(RESOLV_CONF)
        .map_err(|error| Trouble::Later(format!("{RESOLV_CONF}: {error}")))?;
    let servers = servers_of(&text);
    match servers.is_empty() {
        true => Err(Trouble::Later(format!("{RESOLV_CONF} names no name server"))),
        false => Ok(servers),
    }
}

fn servers_of(resolv_conf: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let ip = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        Some(SocketAddr::new(ip.parse::<IpAddr>().ok()?, 53))
    };
    resolv_conf.lines().filter_map(address).take(SERVERS_MAX).collect()
}

/// Asks for the records of a name, each server in turn until one answers.
///
/// # Errors
/// None did in time, or it said that it cannot.
pub fn ask(
    servers: &[SocketAddr],
    name: &str,
    kind: RecordKind,
    until: Instant,
) -> Result<DnsRecords, Trouble> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|error| Trouble::Later(format!("no randomness: {error}")))?;
    let question = message::question(u16::from_be_bytes(id), name, kind)
        .ok_or_else(|| Trouble::Data(format!("{name} is no name")))?;
    let tries = TRIES * servers.len() as u32;
    let mut last = Trouble::late();
    for (number, server) in (0..tries).zip(servers.iter().cycle()) {
        // Each of those that follow must have its share.
        let share = left(until)? / (tries - number);
        match exchange(*server, &question, Instant::now() + share, until) {
            Ok(records) => return Ok(records),
            Err(trouble @ Trouble::Data(_)) => return Err(trouble),
            Err(trouble) => last = trouble,
        }
    }
    Err(last)
}

/// One question to one server: `share` is how long a datagram is waited for, `until` all of it.
fn exchange(
    server: SocketAddr,
    question: &[u8],
    share: Instant,
    until: Instant,
) -> Result<DnsRecords, Trouble> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            Trouble::Later(format!("the name server {server} did not answer in time"))
        }
        _ => Trouble::Later(format!("the name server {server}: {error}")),
    };
    let socket = udp_towards(server).map_err(failed)?;
    socket.send(question).map_err(failed)?;
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let wait = share.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(wait)).map_err(failed)?;
        let n = socket.recv(&mut buffer).map_err(failed)?;
        match message::answer(buffer.get(..n).unwrap_or_default(), question) {
            // Whatever else comes to this port is waited past, until the share is over.
            Err(NotRead::Foreign) if Instant::now() < share => {}
            Err(NotRead::Foreign) => return Err(failed(ErrorKind::TimedOut.into())),
            Err(NotRead::Truncated) => break,
            other => return other.map_err(|what| said(server, what)),
        }
    }
    let whole = by_tcp(server, question, until).map_err(failed)?;
    message::answer(&whole, question).map_err(|what| said(server, what))
}

/// A socket that takes datagrams of this server alone.
fn udp_towards(server: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = match server.is_ipv4() {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    Ok(socket)
}

fn by_tcp(server: SocketAddr, question: &[u8], until: Instant) -> std::io::Result<Vec<u8>> {
    let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&server, left())?;
    stream.set_write_timeout(Some(left()))?;
    let mut framed = u16::try_from(question.len()).unwrap_or_default().to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed)?;
    let mut read = |into: &mut [u8]| {
        let mut at = 0;
        while let Some(rest) = into.get_mut(at..).filter(|rest| !rest.is_empty()) {
            // Each read gets what is left of the time: a server that drips is given up too.
            if Instant::now() >= until {
                return Err(std::io::Error::from(ErrorKind::TimedOut));
            }
            stream.set_read_timeout(Some(left()))?;
            match stream.read(rest)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                n => at += n,
            }
        }
        Ok(())
    };
    let mut length = [0; 2];
    read(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    read(&mut bytes)?;
    Ok(bytes)
}

fn said(server: SocketAddr, what: NotRead) -> Trouble {
    match what {
        NotRead::NoSuchName => Trouble::Data("the name does not exist".into()),
        NotRead::Refused(code) => Trouble::Later(format!(
            "the name server {server} answered {}",
            message::code_name(code)
        )),
        NotRead::Foreign | NotRead::Truncated | NotRead::Malformed => {
            Trouble::Later(format!("the name server {server} gave an answer that cannot be read"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_of_the_system_are_read() {
        let text = "# nameserver 192.0.2.9\nsearch x\nnameserver 192.0.2.1\n\
                    nameserver\t2001:db8::1 # two\nnameserver x\nnameserver 192.0.2.3\n\
                    nameserver 192.0.2.4\n";
        let servers: Vec<String> = servers_of(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.3:53"]);
    }

    /// Catches: a server that is away and is waited for beyond the limit.
    #[test]
    fn a_silent_server_takes_no_longer_than_the_limit() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let servers = [silent.local_addr().unwrap()];
        let until = Instant::now() + Duration::from_millis(300);
        let trouble = ask(&servers, "a.test", RecordKind::A, until).unwrap_err();
        assert!(Instant::now() >= until && trouble.into_words().contains("in time"));
        let mut bytes = [0; 512];
        let asked = || silent.recv(&mut bytes).is_ok();
        silent.set_nonblocking(true).unwrap();
        assert_eq!(std::iter::repeat_with(asked).take_while(|asked| *asked).count(), 3);
    }
}
