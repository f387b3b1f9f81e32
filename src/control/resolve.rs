//! Names of backends become addresses here, off the workers: at start, and again and again. An
//! error keeps the last good set.

use crate::config::plan::Endpoint;
use crate::state::board::{Board, View};
use crate::state::member::{Member, MemberId};
use crossbeam_channel::{bounded, RecvTimeoutError, Sender};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two resolutions of all names.
const REFRESH: Duration = Duration::from_secs(30);
/// The same while a name has no address at all.
const REFRESH_UNRESOLVED: Duration = Duration::from_secs(1);

/// A name that goes on failing is told again after so long, then after twice as long, and so on.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The thread that resolves names. It lives as long as the last of these.
#[derive(Clone)]
pub struct Resolver {
    asks: Sender<Ask>,
}

/// A wish to resolve the names of a view now, before the first request goes there.
struct Ask {
    view: Arc<View>,
    /// Hears when all of them were tried.
    tried: Sender<()>,
}

impl Resolver {
    /// Starts the thread, which sees to the names of whatever view hangs on the board.
    ///
    /// # Errors
    /// It could not be created.
    pub fn start(board: Arc<Board>) -> io::Result<Resolver> {
        let (asks, asked) = bounded::<Ask>(1);
        std::thread::Builder::new().name("resolver".into()).spawn(move || {
            let mut names = Names::default();
            let mut wait = Some(Duration::ZERO);
            loop {
                let ask = match wait {
                    Some(wait) => asked.recv_timeout(wait),
                    // There is no name: nothing to do until there is one.
                    None => asked.recv().map_err(RecvTimeoutError::from),
                };
                let ask = match ask {
                    Ok(ask) => Some(ask),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                wait = Some(REFRESH_UNRESOLVED);
                super::survive("resolver", || {
                    let view = ask.as_ref().map_or_else(|| board.view(), |ask| ask.view.clone());
                    wait = names.resolve_all(view.members(), ask_system);
                });
                if let Some(ask) = ask {
                    let _ = ask.tried.try_send(());
                }
            }
        })?;
        Ok(Resolver { asks })
    }

    /// Resolves the names of a view, for at most so long: what takes longer is used when it comes.
    pub fn prepare(&self, view: &Arc<View>, wait: Duration) {
        let (tried, done) = bounded(1);
        let ask = Ask { view: Arc::clone(view), tried };
        if self.asks.send_timeout(ask, wait).is_ok() {
            let _ = done.recv_timeout(wait);
        }
    }
}

/// The names that were asked for, by the backend that has them.
#[derive(Default)]
struct Names(HashMap<MemberId, Name>);

impl Names {
    /// Resolves the name of each of these backends, and forgets all other names. Gives when to do
    /// that again; `None` when there are no names.
    fn resolve_all(
        &mut self,
        members: &[Arc<Member>],
        look_up: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>>,
    ) -> Option<Duration> {
        self.0.retain(|id, _| members.iter().any(|member| member.id() == *id));
        let (mut count, mut missing) = (0, 0);
        for member in members {
            let Endpoint::Tcp { host, port } = &member.plan.endpoint else { continue };
            if host.parse::<IpAddr>().is_ok() {
                continue;
            }
            let new = || Name { host: host.clone(), port: *port, failing: None };
            let name = self.0.entry(member.id()).or_insert_with(new);
            count += 1;
            missing += usize::from(!resolve(member, name, Instant::now(), &look_up));
        }
        let wait = if missing > 0 { REFRESH_UNRESOLVED } else { REFRESH };
        (count > 0).then_some(wait)
    }
}

/// A name of a backend.
struct Name {
    host: String,
    port: u16,
    /// Since it does not resolve.
    failing: Option<Failing>,
}

/// A name that does not resolve is told at once, and again after pauses that double.
struct Failing {
    since: Instant,
    told: Instant,
    pause: Duration,
}

/// Resolves one name; true when the backend has an address afterwards.
fn resolve(
    member: &Member,
    name: &mut Name,
    now: Instant,
    look_up: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> bool {
    let known = !member.addresses().is_empty();
    let host = &name.host;
    match look_up(host, name.port) {
        Ok(found) if !found.is_empty() => {
            if let Some(failing) = name.failing.take() {
                let away_s = now.saturating_duration_since(failing.since).as_secs();
                tracing::info!(%host, away_s, "the name resolves again");
            }
            if **member.addresses() != found {
                let list: Vec<String> = found.iter().map(SocketAddr::to_string).collect();
                tracing::info!(%host, addresses = list.join(", "), "resolved");
                member.set_addresses(found);
            }
            true
        }
        Ok(_) => {
            name.fail(now, known, "the name server knows no address for it");
            known
        }
        Err(error) => {
            name.fail(now, known, &error.to_string());
            known
        }
    }
}

impl Name {
    /// Tells a failure, unless it was told lately.
    fn fail(&mut self, now: Instant, stale: bool, why: &str) {
        let Some(again_in) = self.is_news(now) else { return };
        let (host, next_line_s) = (&self.host, again_in.as_secs());
        tracing::warn!(%host, %why, stale, next_line_s, "the name does not resolve");
    }

    /// When a failure is to be told now: after which pause the next one will be.
    fn is_news(&mut self, now: Instant) -> Option<Duration> {
        match &mut self.failing {
            None => {
                self.failing = Some(Failing { since: now, told: now, pause: FIRST_PAUSE });
                Some(FIRST_PAUSE)
            }
            Some(failing) if now.saturating_duration_since(failing.told) >= failing.pause => {
                failing.told = now;
                failing.pause = (failing.pause * 2).min(LONGEST_PAUSE);
                Some(failing.pause)
            }
            Some(_) => None,
        }
    }
}

/// Blocks for as long as the system's resolver takes.
fn ask_system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (host, port).to_socket_addrs().map(Vec::from_iter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::Backend;
    use std::cell::RefCell;

    /// The addresses of a backend that had `before`, once its name was looked up with this outcome,
    /// and what `resolve` said.
    fn after(before: &[&str], answer: Result<&[&str], io::ErrorKind>) -> (Vec<String>, bool) {
        let parse = |text: &[&str]| text.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        let member = Member::new(Backend::sample("gpu.test"), None);
        member.set_addresses(parse(before));
        let resolved = resolve(&member, &mut name(), Instant::now(), |host, port| {
            assert_eq!((host, port), ("gpu.test", 8000));
            answer.map(parse).map_err(io::Error::from)
        });
        (member.addresses().iter().map(SocketAddr::to_string).collect(), resolved)
    }

    fn name() -> Name {
        Name { host: "gpu.test".into(), port: 8000, failing: None }
    }

    /// Catches: a line each second for as long as a name server is away.
    #[test]
    fn a_failure_is_told_at_once_and_then_after_growing_pauses() {
        let (mut name, start) = (name(), Instant::now());
        let told = (0..=1_000)
            .filter(|second| name.is_news(start + Duration::from_secs(*second)).is_some());
        assert_eq!(told.collect::<Vec<_>>(), [0, 60, 180, 420, 900]);
        let mut last = start + Duration::from_secs(1_000);
        for _ in 0..10 {
            last += LONGEST_PAUSE;
            assert!(name.is_news(last).is_some_and(|pause| pause <= LONGEST_PAUSE));
        }
        name.failing = None;
        assert_eq!(name.is_news(last), Some(FIRST_PAUSE), "it resolved in between");
    }

    const OLD: &str = "192.0.2.1:8000";
    const NEW: [&str; 2] = ["192.0.2.2:8000", "[2001:db8::2]:8000"];

    #[test]
    fn what_is_found_replaces_what_was_known() {
        for before in [&[OLD][..], &[], &[OLD, NEW[0]], &NEW] {
            let (addresses, resolved) = after(before, Ok(&NEW));
            assert_eq!((addresses.as_slice(), resolved), (&NEW.map(String::from)[..], true));
        }
    }

    /// A name server that is away, or that has lost a name, must not take the backends with it.
    #[test]
    fn a_failure_and_an_empty_answer_keep_what_was_known() {
        for answer in [Err(io::ErrorKind::TimedOut), Ok(&[][..])] {
            assert_eq!(after(&[OLD], answer), (vec![OLD.to_owned()], true));
            // Never known: the caller asks again soon.
            assert_eq!(after(&[], answer), (vec![], false));
        }
    }

    /// Catches: a name that is looked up for ever though its backend is gone, addresses that are
    /// asked for, and a thread that wakes up though there is no name.
    #[test]
    fn only_names_are_looked_up_and_only_those_of_the_backends() {
        let asked = RefCell::new(Vec::new());
        let look_up = |host: &str, _| {
            asked.borrow_mut().push(host.to_owned());
            Err(io::ErrorKind::NotFound.into())
        };
        let member = |host| Arc::new(Member::new(Backend::sample(host), None));
        let (a, b, literal) = (member("a.test"), member("b.test"), member("192.0.2.1"));
        assert_eq!(literal.addresses().as_slice(), ["192.0.2.1:8000".parse().unwrap()]);
        let mut names = Names::default();
        let all = [a.clone(), literal.clone()];
        assert_eq!(names.resolve_all(&all, look_up), Some(REFRESH_UNRESOLVED));
        assert_eq!(names.resolve_all(&[b, literal.clone()], look_up), Some(REFRESH_UNRESOLVED));
        assert_eq!(asked.take(), ["a.test", "b.test"]);
        assert_eq!((names.resolve_all(&[literal], look_up), names.0.len()), (None, 0));
    }
}
