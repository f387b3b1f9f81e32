//! One source of discovery, asked again and again on a thread of its own. A bad answer keeps the
//! last good one.

use super::consul::ConsulInquiry;
use super::dns::DnsInquiry;
use super::file::{FileInquiry, Woken};
use super::http::HttpInquiry;
use super::News;
use crate::base::clock::unix_ms;
use crate::config::found::{FoundBackends, FoundRows};
use crate::config::plan::{Backend, DiscoverySource, Routing, SourceKind};
use crate::control::health::jittered;
use crate::control::survive;
use crossbeam_channel::{bounded, never, select, Receiver, Sender, TryRecvError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After a failure a source is asked again so soon, then after twice as long, and so on up to its
/// interval.
const FIRST_AGAIN: Duration = Duration::from_secs(1);
/// Lines about rows that are left out, at one time. Beyond: counted.
const FAULTS_TOLD_MAX: usize = 20;

/// All on which it depends what a finder does. A source with the same goes on over a reload.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    source: DiscoverySource,
    interval: Duration,
    /// Has the defaults of what is found.
    routing: Routing,
}

impl Spec {
    /// `None` for a source that is not read: the configuration says so in a warning.
    pub fn of(source: &DiscoverySource, usual: Duration, routing: &Routing) -> Option<Spec> {
        let is_read = !matches!(
            source.kind,
            SourceKind::Kubernetes { .. } | SourceKind::Etcd { .. } | SourceKind::Database { .. }
        );
        let interval = source.interval(usual);
        // What else there is of it says nothing of backends, and may change without a new search.
        let routing = Routing {
            model_mapping: Vec::new(),
            fallback: Vec::new(),
            response_headers: Vec::new(),
            retry: None,
            sse_keepalive: Duration::ZERO,
            hold_preamble: Duration::ZERO,
            ..routing.clone()
        };
        is_read.then(|| Spec { source: source.clone(), interval, routing })
    }
}

/// A way of looking at a source.
pub trait Inquiry {
    /// Looks once. Blocks for as long as the source's time limit, and no longer.
    ///
    /// # Errors
    /// There is no answer that can be read; a line for a person.
    fn look(&mut self) -> Result<FoundRows, String>;

    /// Whether rows may name variables of the environment: those of our own files.
    fn is_ours(&self) -> bool {
        false
    }
}

/// How a source has been doing, for the metrics page and for its thread.
#[derive(Debug)]
pub struct FinderNumbers {
    /// The source's name.
    pub name: String,
    succeeded: AtomicU64,
    failed: AtomicU64,
    last_success_ms: AtomicU64,
    found: Mutex<Option<Arc<Vec<Backend>>>>,
}

impl FinderNumbers {
    /// Answers that were good, and that were not.
    pub fn counts(&self) -> [u64; 2] {
        [&self.succeeded, &self.failed].map(|count| count.load(Ordering::Relaxed))
    }

    /// When the last good answer came, in whole seconds since 1970; 0 before that.
    pub fn last_success_s(&self) -> u64 {
        self.last_success_ms.load(Ordering::Relaxed) / 1000
    }

    /// Backends of the last good answer.
    pub fn backends(&self) -> usize {
        self.found().map_or(0, |found| found.len())
    }

    fn found(&self) -> Option<Arc<Vec<Backend>>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_success(&self, backends: Vec<Backend>) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(backends));
        self.last_success_ms.store(unix_ms(), Ordering::Relaxed);
        self.succeeded.fetch_add(1, Ordering::Relaxed);
    }
}

/// A source that is asked for as long as this lives.
pub struct Finder {
    spec: Spec,
    numbers: Arc<FinderNumbers>,
    /// Closes once the source was asked for the first time.
    asked: Receiver<()>,
    /// The thread sees when this goes. A list has none.
    _alive: Sender<()>,
}

impl Finder {
    /// Starts to ask. What a list names is known at once, without a thread.
    ///
    /// # Errors
    /// There is no thread; a line for a person.
    pub fn start(spec: Spec, news: News) -> Result<Finder, String> {
        let numbers = Arc::new(FinderNumbers {
            name: spec.source.name.clone(),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            last_success_ms: AtomicU64::new(0),
            found: Mutex::default(),
        });
        let (until_asked, asked) = bounded(0);
        let (alive, gone) = bounded(0);
        let mut woken = never();
        let way: Box<dyn Inquiry + Send> = match &spec.source.kind {
            SourceKind::Http { http } => Box::new(HttpInquiry::new(http)),
            SourceKind::File { file } => {
                let (way, changes): (_, Woken) = FileInquiry::new(file);
                woken = changes;
                Box::new(way)
            }
            SourceKind::Dns { dns } => Box::new(DnsInquiry::new(dns)),
            SourceKind::Consul { consul } => Box::new(ConsulInquiry::new(consul)),
            SourceKind::Static { list } => {
                numbers.note_success(list.backends.clone());
                return Ok(Finder { spec, numbers, asked, _alive: alive });
            }
            kind => return Err(format!("{}: {kind:?} is not read", spec.source.name)),
        };
        let thread = Thread {
            numbers: Arc::clone(&numbers),
            spec: spec.clone(),
            way,
            news,
            heard: Heard::default(),
        };
        let body = move || thread.run(&gone, woken, until_asked);
        let named = |e| format!("discovery: a thread cannot be started: {e}");
        std::thread::Builder::new().name("discovery".into()).spawn(body).map_err(named)?;
        Ok(Finder { spec, numbers, asked, _alive: alive })
    }

    /// Whether this asks just so.
    pub fn is_for(&self, spec: &Spec) -> bool {
        self.spec == *spec
    }

    /// How it has been doing.
    pub fn numbers(&self) -> Arc<FinderNumbers> {
        Arc::clone(&self.numbers)
    }

    /// What the last good answer named; `None` before the first.
    pub fn found(&self) -> Option<Arc<Vec<Backend>>> {
        self.numbers.found()
    }

    /// Waits until it was asked once.
    pub fn await_asked(&self, due: Instant) {
        let _ = self.asked.recv_deadline(due);
    }
}

struct Thread {
    numbers: Arc<FinderNumbers>,
    spec: Spec,
    way: Box<dyn Inquiry + Send>,
    news: News,
    heard: Heard,
}

impl Thread {
    /// Asks until `gone` closes, at intervals and whenever it is `woken`.
    fn run(mut self, gone: &Receiver<()>, mut woken: Receiver<()>, until_asked: Sender<()>) {
        let mut until_asked = Some(until_asked);
        let mut failures = 0;
        loop {
            let mut answer = Err("panicked; please report this".to_owned());
            survive("discovery", || answer = self.find());
            // What was asked for a configuration that is gone meanwhile is nobody's matter.
            if gone.try_recv() == Err(TryRecvError::Disconnected) {
                return;
            }
            failures = if answer.is_ok() { 0 } else { failures + 1 };
            if self.hear(answer) {
                self.news.tell();
            }
            until_asked.take();
            select! {
                recv(gone) -> _ => return,
                recv(woken) -> word => if word.is_err() {
                    // Nobody wakes us any more; a closed channel would do so all the time.
                    woken = never();
                },
                default(jittered(pause(self.spec.interval, failures))) => {}
            }
        }
    }

    fn find(&mut self) -> Result<FoundBackends, String> {
        let rows = self.way.look()?;
        let count = rows.count();
        let env = |name: &str| std::env::var(name).ok();
        let all = (&self.spec.routing, &self.spec.source.common);
        let found = match self.way.is_ours() {
            true => rows.check(all, &env),
            false => rows.check(all, &|_| None),
        };
        if !found.backends.is_empty() {
            return Ok(found);
        }
        Err(match found.faults.first() {
            _ if count == 0 => "names no backend".into(),
            Some(first) => format!("names no backend that can be used; the first fault: {first}"),
            None => "names no backend that is enabled".into(),
        })
    }

    /// Takes an answer in; true when it names other backends than the last good one.
    fn hear(&mut self, answer: Result<FoundBackends, String>) -> bool {
        let source = &*self.numbers.name;
        match answer {
            Ok(FoundBackends { backends, faults, disabled }) => {
                let known = self.numbers.found();
                let is_new = known.is_none_or(|known| *known != backends);
                if is_new || self.heard.was_bad {
                    let count = backends.len();
                    tracing::info!(source, backends = count, disabled, "discovery: backends found");
                }
                self.heard.was_bad = false;
                if faults != self.heard.faults {
                    tell_faults(source, &faults);
                    self.heard.faults = faults;
                }
                self.numbers.note_success(backends);
                is_new
            }
            Err(why) => {
                self.numbers.failed.fetch_add(1, Ordering::Relaxed);
                if std::mem::replace(&mut self.heard.was_bad, true) {
                    tracing::debug!(source, %why, "discovery: the source fails still");
                } else {
                    let kept = self.numbers.backends();
                    tracing::warn!(source, %why, kept, "discovery: the source fails");
                }
                false
            }
        }
    }
}

/// What was said of the last answers, so that it is not said again with each.
#[derive(Default)]
struct Heard {
    was_bad: bool,
    faults: Vec<String>,
}

fn tell_faults(source: &str, faults: &[String]) {
    for fault in faults.iter().take(FAULTS_TOLD_MAX) {
        tracing::warn!(source, "discovery: {fault}");
    }
    if let Some(more) = faults.len().checked_sub(FAULTS_TOLD_MAX).filter(|more| *more > 0) {
        tracing::warn!(source, more, "discovery: there are more of such rows");
    }
}

/// How long to wait after so many failures in a row.
fn pause(interval: Duration, failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => interval,
        Some(doublings) => interval.min(FIRST_AGAIN * 2u32.saturating_pow(doublings.min(16))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a source that was away at the start and is missed for a whole interval, and one
    /// that is asked without a pause for as long as it is away.
    #[test]
    fn failures_are_followed_by_growing_pauses() {
        let minute = Duration::from_secs(60);
        let pauses = [0, 1, 2, 3, 7, 8, 1000].map(|failures| pause(minute, failures).as_secs());
        assert_eq!(pauses, [60, 1, 2, 4, 60, 60, 60]);
        assert_eq!(pause(Duration::from_millis(200), 5), Duration::from_millis(200));
    }
}
