//! `llmproxy check --connect`: tries every backend, every reporter, every provider of keys, the
//! receiver of spans and the server of shared limits of a plan once. Nothing is asked of an engine,
//! no record is sent, and no key is looked up.

use crate::base::tls_fault;
use crate::config::circle;
use crate::config::cli::{Printout, FINE, WOULD_NOT_START};
use crate::config::plan::{Backend, Endpoint, LimitStorage, Plan};
use crate::control::{keys, shared_limits, tls};
use crate::state::member::MemberTls;
use crate::store::http::HttpService;
use crate::store::Trouble;
use crate::usage::reporter;
use crossbeam_channel::bounded;
use rustls::ClientConnection;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

/// For one destination, from its name to the end of the handshake or the login.
const LIMIT: Duration = Duration::from_secs(5);
/// So much longer is waited for the words of a try that has used up its time.
const GRACE: Duration = Duration::from_secs(1);
/// Destinations that are tried at the same time, each on a thread.
const AT_ONCE: usize = 32;

type Try = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// What `check` said of the file, and a line for each destination behind it. A destination that
/// was not reached makes the exit code [`WOULD_NOT_START`]. Blocks for [`LIMIT`] and a little for
/// each [`AT_ONCE`] destinations at most.
pub fn answer(plan: &Plan, said: Printout) -> Printout {
    let Printout { stdout, mut stderr, mut code } = said;
    let mut tries = tries(plan).into_iter().peekable();
    while tries.peek().is_some() {
        for (name, found) in all(tries.by_ref().take(AT_ONCE), LIMIT + GRACE) {
            match found {
                Ok(()) => stderr.push_str(&format!("{name}: reached\n")),
                Err(why) => {
                    stderr.push_str(&format!("{name}: not reached: {why}\n"));
                    code = if code == FINE { WOULD_NOT_START } else { code };
                }
            }
        }
    }
    Printout { stdout, stderr, code }
}

/// How to try each destination, in the order of the plan.
fn tries(plan: &Plan) -> Vec<(String, Try)> {
    let mut tries: Vec<(String, Try)> = Vec::new();
    let mut system_roots = None;
    for backend in &plan.backends {
        let backend = backend.clone();
        let settings = backend.tls.as_ref();
        let config = settings.map(|tls| tls::settings_of(&backend, tls, &mut system_roots));
        let name = format!("backend {} ({})", backend.name, backend.url);
        let ours = plan.server.addresses();
        tries.push((name, Box::new(move || reach(&backend, config.transpose()?, &ours, LIMIT))));
    }
    for reporter in &plan.usage.reporters {
        let reporter = reporter.clone();
        let name = format!("reporter {}", reporter.name);
        tries.push((name, Box::new(move || reporter::probe(&reporter, LIMIT))));
    }
    for provider in plan.auth.iter().flat_map(|auth| &auth.pipeline) {
        if keys::is_elsewhere(provider) {
            let provider = provider.clone();
            let name = format!("provider {}", provider.name);
            tries.push((name, Box::new(move || keys::probe(&provider, LIMIT))));
        }
    }
    if let Some(otlp) = &plan.tracing {
        let service = HttpService::new(&otlp.endpoint);
        let try_it = move || service.probe(Instant::now() + LIMIT).map_err(Trouble::into_words);
        tries.push(("tracing.otlp".to_owned(), Box::new(try_it)));
    }
    let limits = plan.rate_limit.as_ref().map(|limits| &limits.storage);
    if let Some(LimitStorage::Redis { redis, .. }) = limits {
        let redis = redis.clone();
        let try_it = move || shared_limits::probe(&redis, LIMIT);
        tries.push(("rate_limit.redis".to_owned(), Box::new(try_it)));
    }
    tries
}

/// Does these at the same time. One that takes longer than `wait` is left behind: name servers and
/// disks can block for as long as they like, and the process ends soon.
fn all(
    tries: impl Iterator<Item = (String, Try)>,
    wait: Duration,
) -> Vec<(String, Result<(), String>)> {
    let until = Instant::now() + wait;
    let started = tries.map(|(name, attempt)| {
        let (tell, told) = bounded(1);
        // The receiver is gone when it did not wait for this.
        let thread = thread::Builder::new().spawn(move || drop(tell.send(attempt())));
        (name, thread.map(|_| told))
    });
    let started = started.collect::<Vec<_>>().into_iter();
    let results = started.map(|(name, told)| match told {
        Err(error) => (name, Err(format!("no thread to try it on: {error}"))),
        Ok(told) => {
            let late = |_| Err(format!("no answer within {} s", wait.as_secs_f64()));
            (name, told.recv_deadline(until).unwrap_or_else(late))
        }
    });
    results.collect()
}

/// Connects to a backend, with the TLS handshake where it has TLS. Blocks for `limit`, and for as
/// long as the name server takes.
fn reach(
    backend: &Backend,
    tls: Option<MemberTls>,
    ours: &[SocketAddr],
    limit: Duration,
) -> Result<(), String> {
    let until = Instant::now() + limit;
    match &backend.endpoint {
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path)
                .map_err(|error| format!("no connection to {}: {error}", path.display()))?;
            stream.set_read_timeout(Some(left(until))).map_err(|error| error.to_string())?;
            shake_hands(tls, stream)
        }
        Endpoint::Tcp { host, port } => {
            let stream = connect(host, *port, ours, until)?;
            stream.set_read_timeout(Some(left(until))).map_err(|error| error.to_string())?;
            shake_hands(tls, stream)
        }
    }
}

/// To the first address of a name that takes the connection. None may be one of `ours`.
fn connect(
    host: &str,
    port: u16,
    ours: &[SocketAddr],
    until: Instant,
) -> Result<TcpStream, String> {
    let found = (host, port).to_socket_addrs();
    let addresses = found.map_err(|error| format!("{host} does not resolve: {error}"))?;
    let addresses = addresses.collect::<Vec<_>>();
    if let Some(own) = circle::leads_back(ours, &addresses) {
        return Err(format!("it is this proxy itself, which listens on {own}"));
    }
    // Each gets its share, so that one that drops packets cannot use up the time of all.
    let share = left(until) / addresses.len().max(1) as u32;
    let mut failed = format!("{host} has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, share) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = format!("no connection to {address}: {error}"),
        }
    }
    Err(failed)
}

fn shake_hands(tls: Option<MemberTls>, mut stream: impl Read + Write) -> Result<(), String> {
    let Some(MemberTls { config, name }) = tls else { return Ok(()) };
    let mut session = ClientConnection::new(config, name).map_err(|error| error.to_string())?;
    while session.is_handshaking() {
        session.complete_io(&mut stream).map_err(|error| why_tls_failed(&error))?;
    }
    Ok(())
}

fn why_tls_failed(error: &io::Error) -> String {
    match error.kind() {
        // What a socket says when its time to read is over.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            "connected, but no answer to the TLS handshake in time".into()
        }
        _ => match tls_fault::told(error) {
            Some(why) => format!("connected, but {why}"),
            None => format!("connected, but the TLS handshake failed: {error}"),
        },
    }
}

/// Never nothing: a socket takes a time of zero for no limit at all.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(attempt: Try, wait: Duration) -> Result<(), String> {
        let found = all([("gpu".to_owned(), attempt)].into_iter(), wait);
        let [(name, found)] = found.try_into().unwrap();
        assert_eq!(name, "gpu");
        found
    }

    /// Catches: a destination that hangs, and with it the whole command.
    #[test]
    fn what_hangs_is_left_behind() {
        let (hold, held) = bounded::<()>(0);
        let hangs: Try = Box::new(move || held.recv().map_err(|_| "let go".into()));
        let found = tried(hangs, Duration::from_millis(10));
        drop(hold);
        assert_eq!(found, Err("no answer within 0.01 s".into()));
        let long = Duration::from_secs(600);
        assert_eq!(tried(Box::new(|| Ok(())), long), Ok(()));
        assert_eq!(tried(Box::new(|| Err("no".into())), long), Err("no".into()));
    }
}
