//! Names of backends become addresses here, off the workers: at start, and again and again. An
//! error keeps the last good set.

use crate::config::plan::Endpoint;
use crate::state::board::{Board, View};
use crate::state::member::{Member, MemberId};
use crossbeam_channel::{bounded, RecvTimeoutError, Sender};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
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
    asked: Arc<Mutex<Option<Ask>>>,
    /// Wakes the thread, which then looks at what is asked.
    wake: Sender<()>,
}

/// A wish to resolve the names of a view now, before the first request goes there. A newer one
/// takes the place of one that still waits.
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
        Resolver::with(board, ask_system)
    }

    fn with(board: Arc<Board>, look_up: impl LookUp + Send + 'static) -> io::Result<Resolver> {
        let (wake, woken) = bounded(1);
        let asked = Arc::<Mutex<Option<Ask>>>::default();
        let resolver = Resolver { asked: Arc::clone(&asked), wake };
        std::thread::Builder::new().name("resolver".into()).spawn(move || {
            let mut names = Names::default();
            let mut wait = Some(Duration::ZERO);
            loop {
                let is_over = match wait {
                    Some(wait) => woken.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected),
                    // There is no name: nothing to do until there is one.
                    None => woken.recv().is_err(),
                };
                if is_over {
                    return;
                }
                let ask = asked.lock().unwrap_or_else(PoisonError::into_inner).take();
                wait = Some(REFRESH_UNRESOLVED);
                super::survive("resolver", || {
                    let view = ask.as_ref().map_or_else(|| board.view(), |ask| ask.view.clone());
                    // A view that is asked for may never be in use, or not for a while: until then
                    // the names in use go on.
                    let in_use = board.view();
                    let all = || view.members().iter().chain(in_use.members());
                    names.forget_all_but(all());
                    names.resolve_all(view.members(), &look_up);
                    wait = wait_of(all());
                });
                if let Some(ask) = ask {
                    let _ = ask.tried.try_send(());
                }
            }
        })?;
        Ok(resolver)
    }

    /// Resolves the names of a view, for at most so long: what takes longer is used when it comes.
    pub fn prepare(&self, view: &Arc<View>, wait: Duration) {
        let (tried, done) = bounded(1);
        let ask = Ask { view: Arc::clone(view), tried };
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(ask);
        // Where one waits to be woken already, it finds this.
        let _ = self.wake.try_send(());
        let _ = done.recv_timeout(wait);
    }
}

/// What gives the addresses of a name.
trait LookUp: Fn(&str, u16) -> io::Result<Vec<SocketAddr>> {}
impl<F: Fn(&str, u16) -> io::Result<Vec<SocketAddr>>> LookUp for F {}

/// The name and the port of a backend that has a name and no address.
fn name_of(member: &Member) -> Option<(&str, u16)> {
    match &member.plan.endpoint {
        Endpoint::Tcp { host, port } if host.parse::<IpAddr>().is_err() => Some((host, *port)),
        _ => None,
    }
}

/// When the names of these are to be resolved again; `None` when there are none.
fn wait_of<'a>(members: impl Iterator<Item = &'a Arc<Member>>) -> Option<Duration> {
    let named = members.filter(|member| name_of(member).is_some());
    let wait = |member: &Arc<Member>| match member.addresses().is_empty() {
        true => REFRESH_UNRESOLVED,
        false => REFRESH,
    };
    named.map(wait).min()
}

/// The names that were asked for, by the backend that has them.
#[derive(Default)]
struct Names(HashMap<MemberId, Name>);

impl Names {
    fn forget_all_but<'a>(&mut self, members: impl Iterator<Item = &'a Arc<Member>>) {
        let ids: HashSet<MemberId> = members.map(|member| member.id()).collect();
        self.0.retain(|id, _| ids.contains(id));
    }

    /// Resolves the name of each of these backends.
    fn resolve_all(&mut self, members: &[Arc<Member>], look_up: impl LookUp) {
        for member in members {
            let Some((host, port)) = name_of(member) else { continue };
            let new = || Name { host: host.to_owned(), port, failing: None };
            let name = self.0.entry(member.id()).or_insert_with(new);
            resolve(member, name, Instant::now(), &look_up);
        }
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

/// Resolves one name.
fn resolve(member: &Member, name: &mut Name, now: Instant, look_up: impl LookUp) {
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
        }
        Ok(_) => name.fail(now, known, "the name server knows no address for it"),
        Err(error) => name.fail(now, known, &error.to_string()),
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
    use crate::config::load_backends;
    use crate::config::plan::Backend;
    use crossbeam_channel::{unbounded, Receiver};
    use std::cell::RefCell;

    /// The addresses of a backend that had `before`, once its name was looked up with this outcome,
    /// and when it is looked up again.
    fn after(
        before: &[&str],
        answer: Result<&[&str], io::ErrorKind>,
    ) -> (Vec<String>, Option<Duration>) {
        let parse = |text: &[&str]| text.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        let member = Arc::new(Member::new(Backend::sample("gpu.test"), None));
        member.set_addresses(parse(before));
        resolve(&member, &mut name(), Instant::now(), |host, port| {
            assert_eq!((host, port), ("gpu.test", 8000));
            answer.map(parse).map_err(io::Error::from)
        });
        let addresses = member.addresses().iter().map(SocketAddr::to_string).collect();
        (addresses, wait_of([&member].into_iter()))
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
            assert_eq!(after(before, Ok(&NEW)), (NEW.map(String::from).into(), Some(REFRESH)));
        }
    }

    /// A name server that is away, or that has lost a name, must not take the backends with it.
    #[test]
    fn a_failure_and_an_empty_answer_keep_what_was_known() {
        for answer in [Err(io::ErrorKind::TimedOut), Ok(&[][..])] {
            assert_eq!(after(&[OLD], answer), (vec![OLD.to_owned()], Some(REFRESH)));
            // Never known: the caller asks again soon.
            assert_eq!(after(&[], answer), (vec![], Some(REFRESH_UNRESOLVED)));
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
        for members in [vec![a.clone(), literal.clone()], vec![b, literal.clone()]] {
            names.forget_all_but(members.iter());
            names.resolve_all(&members, look_up);
            assert_eq!((names.0.len(), wait_of(members.iter())), (1, Some(REFRESH_UNRESOLVED)));
        }
        assert_eq!(asked.take(), ["a.test", "b.test"]);
        assert_eq!(wait_of([&literal].into_iter()), None);
        a.set_addresses(vec!["192.0.2.1:8000".parse().unwrap()]);
        assert_eq!(wait_of([&literal, &a].into_iter()), Some(REFRESH));
    }

    fn view(host: &str) -> Arc<View> {
        let plan = load_backends(&[format!("http://{host}:8000")], &[]).unwrap().plan;
        Arc::new(View::new(Arc::new(plan), vec![None], None))
    }

    /// A resolver that tells which names it looks up, and goes on once it is let.
    fn told(in_use: &Arc<View>) -> (Resolver, Receiver<String>, Sender<()>) {
        let board = Arc::new(Board::new(View::new(in_use.plan.clone(), vec![None], None)));
        let ((tell, told), (go, going)) = (unbounded(), unbounded());
        let look_up = move |host: &str, _| {
            let _ = tell.send(host.to_owned());
            let _ = going.recv();
            Err(io::ErrorKind::NotFound.into())
        };
        (Resolver::with(board, look_up).unwrap(), told, go)
    }

    /// No test waits so long.
    const SOON: Duration = Duration::from_secs(60);

    /// Catches: names in use that nobody looks up any more because a view without names was asked
    /// for and never came.
    #[test]
    fn the_names_in_use_go_on_whatever_view_is_asked_for() {
        let (resolver, told, go) = told(&view("in-use.test"));
        drop(go);
        assert_eq!(told.recv_timeout(SOON).as_deref(), Ok("in-use.test"));
        resolver.prepare(&view("192.0.2.1"), SOON);
        while told.try_recv().is_ok() {}
        assert_eq!(told.recv_timeout(SOON).as_deref(), Ok("in-use.test"));
    }

    /// Catches: a view that is in use and whose names were never looked up, because another wish
    /// was waiting.
    #[test]
    fn the_last_view_that_is_asked_for_is_the_one_that_counts() {
        let (resolver, told, go) = told(&view("in-use.test"));
        assert_eq!(told.recv_timeout(SOON).as_deref(), Ok("in-use.test"));
        resolver.prepare(&view("first.test"), Duration::ZERO);
        resolver.prepare(&view("second.test"), Duration::ZERO);
        go.send(()).unwrap();
        assert_eq!(told.recv_timeout(SOON).as_deref(), Ok("second.test"));
    }
}
