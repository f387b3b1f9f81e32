//! The same receivers by both ways: what is sent straight, and what has a place in the window
//! before. There are no waits, so that all that happens follows from the script alone.

use super::*;
use crate::config::plan::{self, FileReporter, RecordFormat, ReporterKind};
use crate::usage::counters::{ReporterCounters, UsageCounters};
use crate::usage::deliver::backoff::Waits;
use crate::usage::deliver::lane::{LaneStop, Log};
use crate::usage::deliver::sender::{Hand, Senders};
use crate::usage::deliver::tests::Shelf;
use crate::usage::deliver::window::Window;
use crate::usage::key_form::key_as;
use crate::usage::record::{tests::record, UsageRecord};
use crate::usage::reporter::Reporter;
use proptest::prelude::*;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

const NO_WAITS: Waits = Waits { least: Duration::ZERO, most: Duration::ZERO };
const PLAIN: &str = "sk-llmproxy-0123456789";

/// A try: what the reporter saw, and what it said.
type Try = (Vec<(String, Option<String>)>, Tried);

/// A receiver that takes nothing but bad records has no end: it changes its mind after so many.
const TRIES_MAX: usize = 200;

/// Says what the script has; then it takes all but what holds a bad record.
#[derive(Clone, Default)]
struct Scripted {
    script: Arc<Mutex<VecDeque<Tried>>>,
    bad: HashMap<String, Tried>,
    panics: bool,
    tries: Arc<Mutex<Vec<Try>>>,
}

impl Reporter for Scripted {
    fn send(&mut self, records: &[RecordRef<'_>], _limit: Duration) -> Tried {
        let said = self.script.lock().unwrap().pop_front();
        let is_bad = |record: &RecordRef<'_>| self.bad.get(record.request_id).cloned();
        let has_end = self.tries.lock().unwrap().len() < TRIES_MAX;
        let bad = || records.iter().find_map(is_bad).filter(|_| has_end);
        let tried = said.or_else(bad).unwrap_or(Tried::Delivered);
        let seen = |r: &RecordRef<'_>| (r.request_id.to_owned(), r.api_key.map(str::to_owned));
        self.tries.lock().unwrap().push((records.iter().map(seen).collect(), tried.clone()));
        assert!(!self.panics, "of this test");
        tried
    }

    fn place(&self) -> String {
        String::new()
    }
}

fn plan(path: &Path) -> plan::Reporter {
    let file = FileReporter {
        path: path.to_owned(),
        max_size: u64::MAX,
        max_age: None,
        max_files: 0,
        format: RecordFormat::Full,
    };
    plan::Reporter { name: "test".into(), api_key: KeyForm::Masked, kind: ReporterKind::File(file) }
}

/// A lane that never ran, and what its source is told.
struct Stage {
    lane: Lane,
    shelf: Shelf,
    counters: Arc<UsageCounters>,
}

impl Stage {
    fn new(plan: &plan::Reporter, reporter: Scripted, batch: usize, goes_straight: bool) -> Stage {
        let (gather, timeout) = (Duration::ZERO, Duration::from_secs(60));
        let shape = Shape { batch, gather, concurrency: 1, retries: 2, timeout };
        let shelf = Shelf::new();
        let counters = Arc::new(UsageCounters::new(std::slice::from_ref(plan)));
        let hand = Hand::with(plan, Box::new(reporter));
        let lane = Lane {
            source: Box::new(shelf.clone()),
            window: Window::new(shape, NO_WAITS, 7),
            senders: Senders::Own(Box::new(hand)),
            road: if goes_straight { Road::Straight } else { Road::Window },
            rooms: Rooms::default(),
            batch,
            timeout,
            gather,
            key_form: plan.api_key,
            counters: (Arc::clone(&counters), 0),
            stop: LaneStop {
                signal: crossbeam_channel::never(),
                deadline: Arc::new(OnceLock::new()),
            },
            more: true,
            quiet_until: Instant::now(),
            silent: false,
            stopping: false,
            done: 0,
            unburied: VecDeque::new(),
            bury_at: Instant::now(),
            log: Log::new(plan.name.clone(), String::new()),
        };
        Stage { lane, shelf, counters }
    }

    /// These come, and all is done that can be.
    fn deliver(&mut self, records: &[(u64, UsageRecord)]) {
        self.shelf.put(records);
        self.lane.more = true;
        self.lane.read();
        self.lane.bury();
        self.lane.send();
    }

    /// delivered, failed, buried, retried, batches, down
    fn counts(&self) -> [u64; 6] {
        let reporter = &self.counters.reporters[0];
        let ReporterCounters { delivered, failed, buried, retried, batches, down, .. } = reporter;
        let [delivered, failed, buried, retried, batches] =
            [delivered, failed, buried, retried, batches].map(|counter| counter.load(Relaxed));
        [delivered, failed, buried, retried, batches, u64::from(down.load(Relaxed))]
    }
}

fn id(number: u64) -> String {
    format!("r{number}")
}

/// A record with a place, a key of a few or none, and the form in which it is written.
fn numbered(number: u64, key: u8, form: u8) -> (u64, UsageRecord) {
    let request_id = crate::base::id::RequestId::from_client(id(number).as_bytes()).unwrap();
    let forms = [KeyForm::Plain, KeyForm::Masked, KeyForm::Sha256, KeyForm::None];
    let key_form = forms[usize::from(form) % forms.len()];
    let api_key = (key > 0).then(|| format!("{PLAIN}{key}"));
    (2 * number, UsageRecord { request_id, api_key, key_form, ..record() })
}

fn said() -> impl Strategy<Value = Tried> {
    prop_oneof![
        3 => Just(Tried::Delivered),
        1 => Just(Tried::Again("again".into())),
        1 => Just(Tried::Later("later".into(), Duration::from_secs(1))),
        1 => Just(Tried::Failed("failed".into())),
        1 => Just(Tried::Refused("refused".into())),
    ]
}

prop_compose! {
    /// Groups of records, each of which comes when the one before is done with.
    fn groups()(
        sizes in proptest::collection::vec(1..30_usize, 1..5),
        marks in proptest::collection::vec((0..4_u8, 0..6_u8), 120),
    ) -> Vec<Vec<(u64, UsageRecord)>> {
        let mut marks = (1..).zip(marks).map(|(number, (key, form))| numbered(number, key, form));
        sizes.into_iter().map(|size| marks.by_ref().take(size).collect()).collect()
    }
}

proptest! {
    /// Catches: a first outcome that is lost on the way into the window, or counts for more or
    /// less than one; an order, a blame, a burial or a figure that depends on the way.
    #[test]
    fn both_ways_are_one(
        groups in groups(),
        script in proptest::collection::vec(said(), 0..12),
        bad in proptest::collection::vec((1..60_u64, any::<bool>()), 0..4),
        batch in 1..12_usize,
    ) {
        let bad: HashMap<String, Tried> = bad
            .into_iter()
            .map(|(number, refused)| {
                let why = "bad".to_owned();
                (id(number), if refused { Tried::Refused(why) } else { Tried::Failed(why) })
            })
            .collect();
        let ways = [true, false].map(|goes_straight| {
            let script = Arc::new(Mutex::new(script.iter().cloned().collect()));
            let reporter = Scripted { script, bad: bad.clone(), ..Scripted::default() };
            let tries = Arc::clone(&reporter.tries);
            let plan = plan(Path::new("/nowhere"));
            let mut stage = Stage::new(&plan, reporter, batch, goes_straight);
            let mut dones = Vec::new();
            for group in &groups {
                stage.deliver(group);
                dones.push((stage.shelf.done(), stage.lane.window.unfinished()));
            }
            let tries = std::mem::take(&mut *tries.lock().unwrap());
            (tries, stage.counts(), stage.shelf.buried(), dones)
        });
        let (tries, counts, buried, dones) = &ways[0];
        prop_assert_eq!(tries, &ways[1].0);
        prop_assert_eq!((counts, buried, dones), (&ways[1].1, &ways[1].2, &ways[1].3));
        // And the figures are what the reporter saw.
        let not_taken = tries.iter().filter(|(_, tried)| *tried != Tried::Delivered).count();
        prop_assert_eq!([counts[1], counts[4]], [not_taken as u64, tries.len() as u64]);
        let all: HashMap<String, &UsageRecord> =
            groups.iter().flatten().map(|(_, r)| (r.request_id.as_str().to_owned(), r)).collect();
        for (seen, _) in tries {
            for (id, key) in seen {
                let record = all[id];
                let shown = record.api_key.as_deref();
                let shown = shown.and_then(|k| key_as(record.key_form, KeyForm::Masked, k));
                prop_assert_eq!(key, &shown);
            }
        }
    }
}

/// Catches: a healthy lane whose records have a place in the window all the same, and one that
/// never comes back from there.
#[test]
fn a_healthy_lane_needs_no_window() {
    let reporter = Scripted::default();
    let (script, tries) = (Arc::clone(&reporter.script), Arc::clone(&reporter.tries));
    let mut stage = Stage::new(&plan(Path::new("/nowhere")), reporter, 10, true);
    let group = |from: u64| (from..from + 25).map(|n| numbered(n, 1, 0)).collect::<Vec<_>>();
    stage.deliver(&group(1));
    let sizes: Vec<usize> = tries.lock().unwrap().iter().map(|(seen, _)| seen.len()).collect();
    assert_eq!((sizes, stage.shelf.done()), (vec![10, 10, 5], 50));
    assert_eq!(stage.lane.window.launch(Vec::new()).id, 1, "nothing was launched before");
    stage.lane.window.settle(
        1,
        crate::usage::deliver::window::BatchOutcome::Delivered,
        Instant::now(),
    );
    script.lock().unwrap().push_back(Tried::Again("away".into()));
    stage.deliver(&group(26));
    assert_eq!((stage.shelf.done(), stage.lane.window.is_clear()), (100, true));
    let launched = stage.lane.window.launch(Vec::new()).id;
    stage.lane.window.settle(
        launched,
        crate::usage::deliver::window::BatchOutcome::Delivered,
        Instant::now(),
    );
    stage.deliver(&group(51));
    assert_eq!(stage.lane.window.launch(Vec::new()).id, launched + 1, "it is straight again");
    assert_eq!(stage.counts(), [75, 1, 0, 10, 10, 0]);
}

/// Catches: several connections of which one gets all though more waits than it takes, or of which
/// each record has a place in the window though there is nothing to share.
#[test]
fn several_connections_share_what_is_more_than_a_batch() {
    let reporter = Scripted::default();
    let (script, tries) = (Arc::clone(&reporter.script), Arc::clone(&reporter.tries));
    let mut stage = Stage::new(&plan(Path::new("/nowhere")), reporter, 10, true);
    stage.lane.road = Road::StraightIfAll;
    let group = |from: u64, to: u64| (from..=to).map(|n| numbered(n, 1, 0)).collect::<Vec<_>>();
    let launched = |stage: &mut Stage| {
        let id = stage.lane.window.launch(Vec::new()).id;
        let delivered = crate::usage::deliver::window::BatchOutcome::Delivered;
        stage.lane.window.settle(id, delivered, Instant::now());
        id
    };
    stage.deliver(&group(1, 25));
    assert_eq!((stage.shelf.done(), launched(&mut stage)), (50, 4), "three batches are shared");
    stage.deliver(&group(26, 30));
    assert_eq!((stage.shelf.done(), launched(&mut stage)), (60, 5), "one needs no window");
    script.lock().unwrap().push_back(Tried::Again("away".into()));
    stage.deliver(&group(31, 35));
    assert_eq!((stage.shelf.done(), stage.lane.window.is_clear()), (70, true));
    let sizes: Vec<usize> = tries.lock().unwrap().iter().map(|(seen, _)| seen.len()).collect();
    assert_eq!(sizes[..5], [10, 10, 5, 5, 5]);
    let seen: Vec<String> = {
        let tries = tries.lock().unwrap();
        let taken = tries.iter().filter(|(_, tried)| *tried == Tried::Delivered);
        taken.flat_map(|(seen, _)| seen.iter().map(|(id, _)| id.clone())).collect()
    };
    assert_eq!(seen, (1..=35).map(id).collect::<Vec<_>>(), "in order");
}

/// Catches: a panic on the straight road that costs more than its try.
#[test]
fn a_panic_on_the_straight_road_is_one_try() {
    let folder = std::env::temp_dir().join(format!("llmproxy-straight-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let plan = plan(&folder.join("usage.jsonl"));
    let reporter = Scripted { panics: true, ..Scripted::default() };
    // What stands in for it afterwards is the file.
    let mut stage = Stage::new(&plan, reporter, 4, true);
    let group: Vec<_> = (1..=6).map(|number| numbered(number, 0, 0)).collect();
    stage.deliver(&group);
    assert_eq!((stage.shelf.done(), stage.shelf.buried()), (12, Vec::new()));
    let [delivered, failed, buried, retried, _, down] = stage.counts();
    assert_eq!([delivered, failed, buried, retried, down], [6, 1, 0, 4, 0]);
    let lines = std::fs::read_to_string(folder.join("usage.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 6);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Catches: a record after a pause that waits for others, those behind it that do not, and a stop
/// that waits for the end of that.
#[test]
fn what_follows_the_first_gathers_until_a_stop() {
    let mut stage = Stage::new(&plan(Path::new("/nowhere")), Scripted::default(), 10, true);
    let (running, signal) = crossbeam_channel::bounded(0);
    (stage.lane.gather, stage.lane.stop.signal) = (Duration::from_secs(3600), signal);
    let deadline = Arc::clone(&stage.lane.stop.deadline);
    let Stage { lane, shelf, counters } = stage;
    let thread = std::thread::spawn(move || lane.run());
    let start = Instant::now();
    let wait = |is_there: &dyn Fn() -> bool| {
        while !is_there() {
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
    };
    // It has found nothing, and listens to the bell.
    wait(&|| shelf.reads() > 0);
    shelf.fill(1, &["a".to_owned()]);
    wait(&|| shelf.done() == 1);
    shelf.fill(2, &["b".to_owned()]);
    shelf.fill(3, &["c".to_owned()]);
    deadline.set(Instant::now() + Duration::from_secs(20)).unwrap();
    drop(running);
    assert_eq!((thread.join().unwrap(), shelf.done()), (0, 3));
    assert_eq!(counters.reporters[0].batches.load(Relaxed), 2);
}
