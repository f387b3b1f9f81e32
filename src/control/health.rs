//! Active probes: one task per backend on the control plane's own ring. What they find is a flag
//! in the member that workers read without waiting.

use super::engine::Guess;
use super::visit;
use crate::config::plan::{Engine, HealthCheck};
use crate::http::request::Method;
use crate::rt;
use crate::rt::guard::guarded;
use crate::rt::moment::Moment;
use crate::state::board::{Board, View};
use crate::state::member::{Member, MemberId, Witness};
use std::cell::RefCell;
use std::collections::HashSet;
use std::future::{poll_fn, Future};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

/// While a backend is in doubt, a probe begins so long after the last one began, whether or not
/// that is over: a hung engine takes the whole timeout for each, and its clients wait as long.
const DOUBT_INTERVAL: Duration = Duration::from_secs(1);
/// Probes of one backend at a time.
const PROBES_AT_ONCE_MAX: u32 = 8;

/// The probes that run, on the current ring.
pub struct Probers {
    board: Arc<Board>,
    running: Rc<RefCell<HashSet<MemberId>>>,
    news: Rc<News>,
}

impl Probers {
    /// None yet.
    pub fn new(board: Arc<Board>) -> Probers {
        if let Some(check) = &board.view().plan.health_check {
            tracing::info!(
                path = check.path.as_deref().unwrap_or(HealthCheck::PATH),
                interval_s = check.interval.as_secs_f64(),
                "backends are probed; `health_check: {{enabled: false}}` turns that off"
            );
        }
        Probers { board, running: Rc::default(), news: Rc::default() }
    }

    /// To be called when there may be another view. Starts a task for each backend of the view that
    /// has none, and wakes those that sleep. A task goes by whatever view is there, and ends when
    /// the backend is in none, or probes are off.
    pub fn look(&self) {
        let view = self.board.view();
        if !self.news.is_of(&view) {
            return;
        }
        for id in view.members().iter().map(|member| member.id()) {
            if to_probe(&view, id).is_some() && self.running.borrow_mut().insert(id) {
                let (board, running) = (Arc::clone(&self.board), Rc::clone(&self.running));
                let news = Rc::clone(&self.news);
                rt::spawn(async move {
                    // A panic ends one round of probes, not all probes for ever.
                    while !guarded(watch(&board, &news, id)).await {
                        tracing::error!("a prober panicked and starts again");
                        rt::sleep(DOUBT_INTERVAL).await;
                    }
                    running.borrow_mut().remove(&id);
                });
            }
        }
    }
}

/// Tells those who sleep that there is another view.
#[derive(Default)]
struct News {
    /// Does not keep it: what a view holds goes with it.
    last: RefCell<Weak<View>>,
    next: RefCell<Rc<Moment>>,
}

impl News {
    /// True once for each view; then all who wait for the next one are woken.
    fn is_of(&self, view: &Arc<View>) -> bool {
        let is_known = std::ptr::eq(self.last.borrow().as_ptr(), Arc::as_ptr(view));
        if !is_known {
            self.last.replace(Arc::downgrade(view));
            self.next.take().come();
        }
        !is_known
    }

    /// Comes with the next view.
    fn next(&self) -> Rc<Moment> {
        Rc::clone(&self.next.borrow())
    }
}

async fn watch(board: &Board, news: &News, id: MemberId) {
    let (mut judge, mut guess) = (Judge::default(), Guess::default());
    while let Some((member, check)) = to_probe(&board.view(), id) {
        let (began, backend) = (Instant::now(), &*member.name);
        let most = judge.may_fail(&check).min(PROBES_AT_ONCE_MAX);
        let pause = check.interval.min(DOUBT_INTERVAL);
        let found = first_good(most, pause, || one_probe(&check, &member)).await;
        let is_changed = match &found {
            Ok(_) => judge.hear(true, &check).is_some(),
            // No more than it takes.
            Err(bad) => bad.iter().any(|_| judge.hear(false, &check).is_some()),
        };
        let why = found.as_ref().err().and_then(|bad| bad.last());
        if is_changed {
            match why {
                None => tracing::info!(backend, "backend is healthy"),
                Some(why) => tracing::warn!(backend, %why, "backend is unhealthy"),
            }
            let why = why.map_or("it answered a probe", String::as_str);
            member.remark(Witness::Probes, why.to_owned());
        }
        // Probes may have been off meanwhile, which makes it well: so each verdict is said again.
        member.set_passes_probes(judge.verdict.unwrap_or(true));
        match &found {
            // Only where it matters what it is.
            Ok(server) if chosen(&check, &member).is_none() => {
                guess.hear_well(&member, server.as_deref()).await;
            }
            Err(_) if judge.verdict == Some(false) => guess.hear_down(&member),
            _ => {}
        }
        drop(member);
        await_next(board, news, id, began, judge.is_in_doubt()).await;
    }
}

/// A probe, with its time limit.
async fn one_probe(check: &HealthCheck, member: &Member) -> Result<Option<Vec<u8>>, String> {
    let limit = check.timeout;
    let found = rt::await_peer(limit, probe(check, member)).await;
    found.unwrap_or_else(|| Err(format!("no answer within {} s", limit.as_secs_f64())))
}

/// Tries until one is good, or until none is under way. While there is no result, another try
/// begins beside the others after each pause, `most` in all.
///
/// # Errors
/// What each said, if none was good.
async fn first_good<T, F: Future<Output = Result<T, String>>>(
    most: u32,
    pause: Duration,
    mut begin: impl FnMut() -> F,
) -> Result<T, Vec<String>> {
    let (mut open, mut bad) = (vec![Box::pin(begin())], Vec::new());
    let mut begun = 1;
    while !open.is_empty() {
        let any = poll_fn(|cx| {
            let polled = open.iter_mut().enumerate().find_map(|(at, one)| {
                if let Poll::Ready(result) = one.as_mut().poll(cx) {
                    return Some((at, result));
                }
                None
            });
            polled.map_or(Poll::Pending, Poll::Ready)
        });
        let result = match begun < most {
            true => rt::timeout(pause, any).await.ok(),
            false => Some(any.await),
        };
        match result {
            None => {
                open.push(Box::pin(begin()));
                begun += 1;
            }
            Some((_, Ok(good))) => return Ok(good),
            Some((at, Err(why))) => {
                drop(open.swap_remove(at));
                bad.push(why);
            }
        }
    }
    Err(bad)
}

/// Sleeps until the next probe is due by the view that is there by then, or until there is nothing
/// to probe any more.
async fn await_next(board: &Board, news: &News, id: MemberId, began: Instant, is_in_doubt: bool) {
    loop {
        let another_view = news.next();
        let Some((_, check)) = to_probe(&board.view(), id) else { return };
        let interval = interval(check.interval, is_in_doubt);
        let sleep = rt::sleep(interval.saturating_sub(began.elapsed()));
        if another_view.unless(sleep).await.is_some() {
            return;
        }
    }
}

/// The backend and how it is probed, if it is. What probes said of it before they were turned off
/// holds no more.
fn to_probe(view: &View, id: MemberId) -> Option<(Arc<Member>, HealthCheck)> {
    let member = Arc::clone(view.in_use(id)?);
    let check = view.plan.health_check.clone();
    if check.is_none() {
        member.set_passes_probes(true);
    }
    Some((member, check?))
}

/// From the beginning of one probe to that of the next.
fn interval(usual: Duration, is_in_doubt: bool) -> Duration {
    match is_in_doubt {
        true => usual.min(DOUBT_INTERVAL),
        false => jittered(usual),
    }
}

/// ±10 %, so that a fleet of proxies does not probe in step.
pub(super) fn jittered(interval: Duration) -> Duration {
    in_between(interval.mul_f64(0.9), interval.mul_f64(1.1))
}

/// Any time between these two.
pub(super) fn in_between(least: Duration, most: Duration) -> Duration {
    let mut random = [0u8; 1];
    // Without randomness those who wait are merely in step.
    let _ = getrandom::fill(&mut random);
    least + (most - least).mul_f64(f64::from(random[0]) / 255.0)
}

/// One probe: connect, ask, read the head of the answer. Gives what that calls its server.
async fn probe(check: &HealthCheck, member: &Member) -> Result<Option<Vec<u8>>, String> {
    let mut link = visit::open(member, check.timeout).await?;
    let (path, needs) = place(check, member);
    visit::send(&mut link, member, (check.method.as_str(), path), "health").await?;
    let method = if check.method == "HEAD" { Method::Head } else { Method::Get };
    let (status, server) = visit::read_status(&mut link, method).await?;
    match (is_well(status, needs, &check.expected_status), status, member.engine()) {
        (true, ..) => Ok(server),
        (_, 503, Engine::LlamaCpp) => Err("status 503: it is loading its model".into()),
        _ => Err(format!("status {status}")),
    }
}

/// What the answer to a probe must be, unless `expected_status` says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// 2xx: the path is known to be there.
    Good,
    /// The same, or 404: older versions of the engine do not have the path.
    GoodOrMissing,
    /// Below 500: nobody chose the path, and the engine may not have it, or may want a key for it;
    /// it says so because it is alive.
    Life,
}

/// Where a backend is probed, if the configuration says that.
fn chosen<'a>(check: &'a HealthCheck, member: &'a Member) -> Option<&'a str> {
    member.plan.health_path.as_deref().or(check.path.as_deref())
}

/// Where a backend is probed: where the configuration says, or else where its engine tells how it
/// is (docs/health.md).
fn place<'a>(check: &'a HealthCheck, member: &'a Member) -> (&'a str, Needs) {
    if let Some(chosen) = chosen(check, member) {
        return (chosen, Needs::Good);
    }
    let (path, needs) = match member.engine() {
        // Its `/health` generates a token, which takes a second and a place in the batch.
        Engine::Sglang => ("/ready", Needs::GoodOrMissing),
        Engine::Ollama => ("/api/version", Needs::Good),
        Engine::Vllm | Engine::Tgi | Engine::LlamaCpp => (HealthCheck::PATH, Needs::Good),
        Engine::Auto => (HealthCheck::PATH, Needs::Life),
    };
    // Something before the engine may keep the path of a guess from us.
    let is_given = member.plan.engine != Engine::Auto;
    (path, if is_given { needs } else { Needs::Life })
}

/// Whether a status speaks for a backend; `expected` is empty where nobody said which do.
fn is_well(status: u16, needs: Needs, expected: &[u16]) -> bool {
    match (expected, needs) {
        ([], Needs::Good) => (200..300).contains(&status),
        ([], Needs::GoodOrMissing) => (200..300).contains(&status) || status == 404,
        ([], Needs::Life) => status < 500,
        (listed, _) => listed.contains(&status),
    }
}

/// Counts probes in a row. Pure: tells only when the verdict changes.
#[derive(Debug, Default)]
struct Judge {
    verdict: Option<bool>,
    against: u32,
}

impl Judge {
    /// The last probe spoke against the verdict, and alone does not change it. Or the backend is
    /// out, and may be back at any moment: it does nothing that a probe could disturb.
    fn is_in_doubt(&self) -> bool {
        self.against > 0 || self.verdict == Some(false)
    }

    /// So many bad probes change the verdict; 1 where none would.
    fn may_fail(&self, check: &HealthCheck) -> u32 {
        match self.verdict {
            Some(true) => check.unhealthy_threshold.saturating_sub(self.against).max(1),
            Some(false) | None => 1,
        }
    }

    /// Hears one probe; `Some` when the backend changes sides. The very first probe decides
    /// alone: traffic should not find out about a backend that was never there.
    fn hear(&mut self, good: bool, check: &HealthCheck) -> Option<bool> {
        let Some(verdict) = self.verdict else {
            self.verdict = Some(good);
            return Some(good);
        };
        if verdict == good {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if good { check.healthy_threshold } else { check.unhealthy_threshold };
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.verdict = Some(good);
        Some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A [`Judge`] under thresholds of 2 and 3.
    struct Court(Judge, HealthCheck);

    impl Court {
        fn hear(&mut self, good: bool) -> Option<bool> {
            self.0.hear(good, &self.1)
        }

        fn is_in_doubt(&self) -> bool {
            self.0.is_in_doubt()
        }
    }

    fn judge() -> Court {
        let text = "backends: [{url: 'http://192.0.2.1:8000'}]\nhealth_check: {healthy_threshold: 2, unhealthy_threshold: 3}";
        let loaded = crate::config::load_text("test", text, &|_| None).unwrap();
        let check = loaded.plan.health_check.unwrap();
        assert_eq!((check.healthy_threshold, check.unhealthy_threshold), (2, 3));
        Court(Judge::default(), check)
    }

    #[test]
    fn thresholds_count_probes_in_a_row() {
        let mut judge = judge();
        assert_eq!(judge.hear(true), Some(true), "the first probe decides");
        assert_eq!(judge.hear(false), None);
        assert_eq!(judge.hear(false), None);
        assert_eq!(judge.hear(true), None, "a good one starts the count anew");
        assert_eq!(judge.hear(false), None);
        assert_eq!(judge.hear(false), None);
        assert_eq!(judge.hear(false), Some(false));
        assert_eq!(judge.hear(true), None);
        assert_eq!(judge.hear(true), Some(true));
    }

    #[test]
    fn a_backend_that_was_never_there_is_out_at_once() {
        assert_eq!(judge().hear(false), Some(false));
    }

    /// Catches: an engine without `/health` that is taken for dead; one that answers a path that
    /// was chosen with 404 and is taken for well; a loading one taken for ready.
    #[test]
    fn a_path_that_nobody_chose_may_be_missing() {
        for (status, life, good, older) in [
            (200, true, true, true),
            (404, true, false, true),
            (401, true, false, false),
            (503, false, false, false),
        ] {
            assert_eq!(is_well(status, Needs::Life, &[]), life, "{status}");
            assert_eq!(is_well(status, Needs::Good, &[]), good, "{status}");
            assert_eq!(is_well(status, Needs::GoodOrMissing, &[]), older, "{status}");
            assert!(!is_well(status, Needs::Life, &[204]), "{status}");
        }
        assert!(is_well(204, Needs::Good, &[204]));
    }

    /// Catches: an engine that is asked where it does not tell, a path of the configuration that
    /// does not count, and a guess that makes a probe stricter.
    #[test]
    fn each_engine_is_asked_where_it_tells() {
        let load = |text: &str| crate::config::load_text("test", text, &|_| None).unwrap().plan;
        let asked = |backend: &str, check: &str, found: Engine| {
            let text = format!(
                "backends: [{{url: 'http://192.0.2.1'{backend}}}]\nhealth_check: {{{check}}}"
            );
            let plan = load(&text);
            let member = Member::new(plan.backends[0].clone(), None);
            member.set_engine(found);
            let (path, needs) = place(plan.health_check.as_ref().unwrap(), &member);
            (path.to_owned(), needs)
        };
        use Engine::{Auto, Ollama, Sglang, Vllm};
        use Needs::{Good, GoodOrMissing, Life};
        for (backend, check, found, path, needs) in [
            ("", "", Auto, "/health", Life),
            ("", "", Vllm, "/health", Life),
            ("", "", Sglang, "/ready", Life),
            ("", "", Ollama, "/api/version", Life),
            (", engine: vllm", "", Auto, "/health", Good),
            (", engine: sglang", "", Ollama, "/ready", GoodOrMissing),
            (", engine: tgi", "", Auto, "/health", Good),
            (", engine: llamacpp", "", Auto, "/health", Good),
            (", engine: ollama", "", Auto, "/api/version", Good),
            (", engine: ollama", "path: /x", Auto, "/x", Good),
            (", engine: ollama, health_path: /y", "path: /x", Auto, "/y", Good),
        ] {
            assert_eq!(
                asked(backend, check, found),
                (path.to_owned(), needs),
                "{backend} {found:?}"
            );
        }
    }

    /// Catches: a backend in doubt that is left alone for a whole interval, one that is probed more
    /// often than is needed, or beside a probe that decides alone.
    #[test]
    fn a_backend_in_doubt_is_asked_again_at_once() {
        let (usual, often) = (Duration::from_secs(10), Duration::from_millis(300));
        let mut judge = judge();
        let needed = |judge: &Court| judge.0.may_fail(&judge.1);
        assert_eq!(needed(&judge), 1, "the first decides alone");
        judge.hear(true);
        assert_eq!(needed(&judge), 3);
        judge.hear(false);
        assert_eq!(needed(&judge), 2);
        assert_eq!(interval(usual, judge.is_in_doubt()), DOUBT_INTERVAL);
        judge.hear(false);
        assert_eq!(judge.hear(false), Some(false));
        assert_eq!((needed(&judge), interval(usual, judge.is_in_doubt())), (1, DOUBT_INTERVAL));
        judge.hear(true);
        assert_eq!(interval(usual, judge.is_in_doubt()), DOUBT_INTERVAL, "it may be back");
        assert_eq!(interval(often, true), often, "never less often than usual");
    }

    /// What `first_good` makes of tries that end so, each as soon as so many have begun; and how
    /// many began.
    fn tried(most: u32, ends: &[(usize, bool)]) -> (Result<usize, usize>, usize) {
        let begun = Cell::new(0);
        let begin = || {
            let number = begun.replace(begun.get() + 1);
            let (when, good) = ends[number];
            let begun = &begun;
            poll_fn(move |_| match begun.get() >= when {
                true => Poll::Ready(if good { Ok(number) } else { Err(format!("{number}")) }),
                false => Poll::Pending,
            })
        };
        let tries = first_good(most, Duration::from_millis(5), begin);
        let result = crate::rt::ring::Ring::build().unwrap().block_on(tries);
        (result.map_err(|bad| bad.len()), begun.get())
    }

    /// Catches: probes of a hung engine that wait for one another, a good answer that is not heard
    /// because of those that have none, a second probe beside one that has failed at once.
    #[test]
    fn further_tries_begin_while_there_is_no_result() {
        const NEVER: usize = usize::MAX;
        assert_eq!(tried(3, &[(1, false)]), (Err(1), 1));
        assert_eq!(tried(3, &[(3, false); 3]), (Err(3), 3));
        assert_eq!(tried(3, &[(NEVER, false), (NEVER, false), (1, true)]), (Ok(2), 3));
        assert_eq!(tried(8, &[(2, true), (NEVER, true)]), (Ok(0), 2));
    }

    /// Catches: a backend that counts as sick for ever: it was when it was taken out, and is back
    /// before its last request is over, when nobody probes any more.
    #[test]
    fn nobody_is_sick_where_nobody_probes() {
        let view = |text: &str, before: Option<&View>| {
            let plan = crate::config::load_text("test", text, &|_| None).unwrap().plan;
            let tls = plan.backends.iter().map(|_| None).collect();
            View::new(Arc::new(plan), tls, before)
        };
        const A: &str = "{name: a, url: 'http://192.0.2.1'}";
        const B: &str = "{name: b, url: 'http://192.0.2.2'}";
        let both = format!("backends: [{A}, {B}]\nhealth_check: {{enabled: false}}");
        let board = Arc::new(Board::new(view(&both, None)));
        board.view().members()[1].set_passes_probes(false);
        board.swap(Arc::new(view(&format!("backends: [{A}]"), Some(&board.view()))));
        board.swap(Arc::new(view(&both, Some(&board.view()))));
        assert!(!board.view().members()[1].passes_probes());
        Probers::new(Arc::clone(&board)).look();
        assert!(board.view().members()[1].passes_probes());
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..100 {
            let wait = jittered(Duration::from_secs(10));
            assert!((9.0..=11.0).contains(&wait.as_secs_f64()), "{wait:?}");
        }
    }
}
