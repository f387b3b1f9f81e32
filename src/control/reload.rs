//! Reads the configuration anew while the process runs. All of it is read, checked and built first;
//! then it is in use at once, for what begins from now on. Or nothing changes, and it is said why.

use super::discovery::{Finders, FindersInUse, News};
use super::log::Style;
use super::next::Builder;
use super::notify::Notifier;
use super::resolve::Resolver;
use super::signals::{Delays, DelaysInUse};
use super::supervisor::{buffered_bytes_max, Event};
use super::watch::{self, ConfigWatch};
use crate::base::clock::unix_ms;
use crate::config::change::{compare, Changes};
use crate::config::found;
use crate::config::origin::{of_this_process, Origin};
use crate::config::plan::{Backend, Plan};
use crate::config::Loaded;
use crate::rt::budget::Budget;
use crate::state::board::{Board, View};
use crate::state::connections::Connections;
use crossbeam_channel::{bounded, Receiver, Sender};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

mod client_tls;
pub use client_tls::TlsWatch;

/// Sources of discovery that are new get so long to answer before what they find is used.
const FIND_WAIT: Duration = Duration::from_secs(1);
/// The same for a process that starts in the place of one that serves until then.
const SUCCESSOR_FIND_WAIT: Duration = Duration::from_secs(10);
/// Lines that are logged of one reload, of what changes or of what is wrong. Beyond: counted.
const LINES_MAX: usize = 100;

/// Why a reload is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// SIGHUP, which `llmproxy reload` sends too.
    Signal,
    /// `server.watch_config`.
    FileChanged,
    /// The admin API.
    Admin,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Signal => "SIGHUP",
            Cause::FileChanged => "the file changed",
            Cause::Admin => "the admin API",
        })
    }
}

/// What reloads came to, for the metrics page.
#[derive(Debug)]
pub struct Reloads {
    succeeded: AtomicU64,
    failed: AtomicU64,
    is_last_good: AtomicBool,
    last_success_ms: AtomicU64,
    sha256: Mutex<String>,
    /// Who wants to know what becomes of the next one.
    curious: Mutex<Vec<Sender<ReloadOutcome>>>,
}

/// What became of a reload, for whoever asked for it.
#[derive(Debug, Clone)]
pub struct ReloadOutcome {
    /// The configuration is in use.
    pub succeeded: bool,
    /// What changed, or what is wrong.
    pub lines: Vec<String>,
    /// Keys whose change needs a restart.
    pub restart_keys: Vec<String>,
}

impl Reloads {
    /// None yet: a start has succeeded with a configuration of this hash.
    pub fn new(sha256: &str) -> Reloads {
        Reloads {
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            is_last_good: AtomicBool::new(true),
            last_success_ms: AtomicU64::new(unix_ms()),
            sha256: Mutex::new(sha256.to_owned()),
            curious: Mutex::default(),
        }
    }

    /// Where it comes what becomes of the next reload: of one that begins after this.
    pub fn told_of_next(&self) -> Receiver<ReloadOutcome> {
        let (tell, told) = bounded(1);
        self.curious.lock().unwrap_or_else(PoisonError::into_inner).push(tell);
        told
    }

    fn take_curious(&self) -> Vec<Sender<ReloadOutcome>> {
        std::mem::take(&mut *self.curious.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note_success(&self, sha256: &str) {
        sha256.clone_into(&mut self.sha256.lock().unwrap_or_else(PoisonError::into_inner));
        self.last_success_ms.store(unix_ms(), Ordering::Relaxed);
        self.is_last_good.store(true, Ordering::Relaxed);
        self.succeeded.fetch_add(1, Ordering::Relaxed);
    }

    fn note_failure(&self) {
        self.is_last_good.store(false, Ordering::Relaxed);
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Reloads that succeeded, and that failed.
    pub fn counts(&self) -> [u64; 2] {
        [&self.succeeded, &self.failed].map(|count| count.load(Ordering::Relaxed))
    }

    /// True unless the last reload failed.
    pub fn is_last_good(&self) -> bool {
        self.is_last_good.load(Ordering::Relaxed)
    }

    /// When the configuration in use was read, seconds since 1970.
    pub fn last_success_s(&self) -> f64 {
        self.last_success_ms.load(Ordering::Relaxed) as f64 / 1e3
    }

    /// SHA-256 of the file in use; empty without a file.
    pub fn sha256(&self) -> String {
        self.sha256.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All that a reload needs.
pub struct Reloader {
    /// What is read.
    pub origin: Origin,
    /// Where the configuration in use hangs.
    pub board: Arc<Board>,
    /// The backends of the file: what is in use has those that were found behind them.
    pub configured: Vec<Backend>,
    /// What looks for other backends.
    pub discovery: Finders,
    /// The finders, as the metrics page shows them.
    pub finders: Arc<FindersInUse>,
    /// The way by which finders tell us.
    pub news: News,
    /// Finds the addresses of new backends before they are in use.
    pub resolver: Resolver,
    /// Where we listen: a backend there would be ourselves.
    pub ours: Vec<SocketAddr>,
    /// Level and form of log lines.
    pub style: Style,
    /// What becomes of it.
    pub reloads: Arc<Reloads>,
    /// How long the end may take.
    pub delays: DelaysInUse,
    /// How many clients there may be.
    pub connections: Arc<Connections>,
    /// What the buffers of all workers may hold.
    pub budget: Arc<Budget>,
    /// Where the watch on the file asks for a reload.
    pub events: Sender<Event>,
    /// The watch on the file, while `server.watch_config` is on.
    pub watch: Option<ConfigWatch>,
    /// Told when a reload begins, and what came of it.
    pub notifier: Arc<Notifier>,
    /// The watch on the files of `server.tls`, once they are watched.
    pub tls_watch: Option<TlsWatch>,
}

impl Reloader {
    /// Reads the configuration anew, and logs and counts what came of it.
    pub fn reload(&mut self, cause: Cause) {
        let curious = self.reloads.take_curious();
        self.notifier.reloading();
        let mut result = Err(vec!["panicked; please report this".to_owned()]);
        super::survive("reload", || result = self.attempt());
        let outcome = match result {
            Ok((changes, sha256)) => {
                self.reloads.note_success(&sha256);
                let lines = changes.lines();
                tracing::info!(%cause, %sha256, changes = lines.len(), "configuration reloaded");
                let lines = at_most(lines);
                for line in &lines {
                    tracing::info!("reload: {line}");
                }
                let keys: Vec<&str> = changes.restart_keys().take(LINES_MAX).collect();
                let restart_keys = keys.iter().map(|key| (*key).to_owned()).collect();
                if !keys.is_empty() {
                    let keys = keys.join(", ");
                    tracing::warn!(%keys, "what changed there needs a restart; all else is in use");
                }
                ReloadOutcome { succeeded: true, lines, restart_keys }
            }
            Err(lines) => {
                self.reloads.note_failure();
                tracing::error!(%cause, "configuration not reloaded: nothing changes");
                let lines = at_most(lines);
                for line in &lines {
                    tracing::error!("reload: {line}");
                }
                ReloadOutcome { succeeded: false, lines, restart_keys: Vec::new() }
            }
        };
        self.notifier.reloaded(outcome.succeeded);
        // Whoever waits no more misses nothing.
        curious.iter().for_each(|tell| drop(tell.try_send(outcome.clone())));
    }

    /// Logs and counts a reload that comes too late: the process is ending.
    pub fn refuse(&self, cause: Cause) {
        self.reloads.note_failure();
        tracing::error!(%cause, "configuration not reloaded: the process is draining");
        let lines = vec!["the process is draining".to_owned()];
        let outcome = ReloadOutcome { succeeded: false, lines, restart_keys: Vec::new() };
        self.reloads.take_curious().iter().for_each(|tell| drop(tell.try_send(outcome.clone())));
    }

    /// Sets the limits that workers share.
    fn resize(&self, before: &Plan, now: &Plan) {
        let (before, server) = (&before.server, &now.server);
        if server.max_connections != before.max_connections {
            limit(&self.connections, server.max_connections);
        }
        if server.max_buffered_bytes != before.max_buffered_bytes {
            self.budget.set_max(buffered_bytes_max(now));
        }
    }

    /// What changed, and the hash of the file; or what is wrong, a line each.
    fn attempt(&mut self) -> Result<(Changes, String), Vec<String>> {
        let Loaded { plan, report } = self
            .origin
            .load_again(&of_this_process)
            .map_err(|refused| refused.lines.lines().map(str::to_owned).collect::<Vec<_>>())?;
        let before = self.board.view();
        let one = |error: String| vec![error];
        let watch = match (plan.server.watch_config, &self.watch) {
            (true, None) => watch(&self.origin, &report.sha256, &self.events).map_err(one)?,
            _ => None,
        };
        let discovery = self.discovery.next(&plan, &self.news).map_err(one)?;
        discovery.await_first(FIND_WAIT);
        let configured = plan.backends.clone();
        let asked = plan.clone();
        let mut kept = plan;
        kept.keep_boot_of(&before.plan);
        let view = self.builder(&before, true).view(kept, discovery.found()).map_err(one)?;
        let changes =
            compare(&before.plan, &Plan { backends: view.plan.backends.clone(), ..asked });
        // From here on nothing can fail.
        self.resize(&before.plan, &view.plan);
        for line in report.lines(false) {
            tracing::warn!("{line}");
        }
        if let Err(error) = self.style.set(&view.plan.log) {
            tracing::warn!("{error}");
        }
        match view.plan.server.watch_config {
            true => self.watch = watch.or(self.watch.take()),
            false => self.watch = None,
        }
        *self.delays.lock().unwrap_or_else(PoisonError::into_inner) = Delays::of(&view.plan.server);
        self.configured = configured;
        self.follow(discovery);
        self.board.swap(view);
        self.watch_client_tls();
        Ok((changes, report.sha256))
    }

    fn follow(&mut self, discovery: Finders) {
        self.finders.show(&discovery);
        self.discovery = discovery;
    }

    fn builder<'a>(&'a self, before: &'a View, all_anew: bool) -> Builder<'a> {
        let (resolver, ours) = (&self.resolver, self.ours.as_slice());
        Builder { before, resolver, ours, all_anew, client_tls: None }
    }

    /// Starts to look for backends, and at the files of certificates, for a process that starts:
    /// what is found at once is in use when the first client comes. A process in whose place
    /// another one serves meanwhile has more time.
    ///
    /// # Errors
    /// A line for a person.
    pub fn find_first(&mut self, is_successor: bool) -> Result<(), String> {
        let discovery = self.discovery.next(&self.board.view().plan, &self.news)?;
        discovery.await_first(if is_successor { SUCCESSOR_FIND_WAIT } else { FIND_WAIT });
        self.follow(discovery);
        self.take_found();
        self.watch_client_tls();
        let view = self.board.view();
        if view.plan.discovery.is_some() && view.members().is_empty() {
            tracing::warn!(
                "no backends yet: requests are answered 503 no_backend until discovery finds one"
            );
        }
        Ok(())
    }

    /// Puts what discovery has found by now behind the backends of the file. Where that is what is
    /// in use, nothing changes.
    pub fn take_found(&mut self) {
        super::survive("discovery", || self.put_found());
    }

    fn put_found(&mut self) {
        self.news.heard();
        let before = self.board.view();
        let found = self.discovery.found();
        if found::merge(&self.configured, found.clone()).0 == before.plan.backends {
            return;
        }
        let plan = Plan { backends: self.configured.clone(), ..Plan::clone(&before.plan) };
        match self.builder(&before, false).view(plan, found) {
            Ok(view) if view.plan.backends == before.plan.backends => {}
            Ok(view) => {
                let changes = compare(&before.plan, &view.plan).lines();
                self.board.swap(view);
                for line in at_most(changes) {
                    tracing::info!("discovery: {line}");
                }
            }
            Err(error) => tracing::error!(%error, "discovery: what was found is not used"),
        }
    }
}

/// Sets `server.max_connections`, as far as open files allow. Gives how many that is.
pub fn limit(connections: &Connections, asked: Option<usize>) -> usize {
    let max = connections.limit(asked);
    if let Some(asked) = asked.filter(|asked| *asked > max) {
        tracing::warn!(asked, fit = max, "max_connections is cut to what the open files allow");
    }
    max
}

/// Watches the file that a configuration comes from, if it comes from one. `sha256` is the hash of
/// the file in use: one that has changed before it was watched is read anew at once.
///
/// # Errors
/// A line for a person.
pub fn watch(
    origin: &Origin,
    sha256: &str,
    supervisor: &Sender<Event>,
) -> Result<Option<ConfigWatch>, String> {
    let Some(file) = origin.file() else { return Ok(None) };
    let own = supervisor.clone();
    let changed = move || Event::Reload(Cause::FileChanged).tell(&own);
    let named = |e: io::Error| format!("server.watch_config: {}: {e}", file.display());
    let watch = watch::start(file, changed).map_err(named)?;
    if origin.sha256().map_err(named)?.is_some_and(|now| now != sha256) {
        Event::Reload(Cause::FileChanged).tell(supervisor);
    }
    Ok(Some(watch))
}

fn at_most(mut lines: Vec<String>) -> Vec<String> {
    let beyond = lines.len().saturating_sub(LINES_MAX);
    lines.truncate(LINES_MAX);
    if beyond > 0 {
        lines.push(format!("and {beyond} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::supervisor::events;
    use super::*;
    use crate::config::origin::{ConfigSource, Terms};

    /// Catches: a file that changes between its load and its watch, and that nobody reads.
    #[test]
    fn a_file_that_has_changed_already_is_read_anew() {
        let name = format!("llmproxy-reload-{}.yaml", std::process::id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, "backends: [{url: 'http://a'}]\n").unwrap();
        let origin = Origin { source: ConfigSource::File(file.clone()), terms: Terms::default() };
        let in_use = origin.load().unwrap().report.sha256;
        let (supervisor, told) = events();
        let watched = watch(&origin, &in_use, &supervisor).unwrap();
        assert!(watched.is_some() && told.try_recv().is_err());
        drop(watched);
        let _watched = watch(&origin, "another", &supervisor).unwrap();
        assert_eq!(told.try_recv(), Ok(Event::Reload(Cause::FileChanged)));
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn what_is_logged_of_a_reload_is_bounded() {
        assert_eq!(at_most(vec!["x".into(); LINES_MAX]).len(), LINES_MAX);
        let lines = at_most(vec!["x".into(); LINES_MAX + 7]);
        assert_eq!((lines.len(), lines.last().unwrap().as_str()), (LINES_MAX + 1, "and 7 more"));
    }
}
