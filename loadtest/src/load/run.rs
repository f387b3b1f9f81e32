//! Threads, phases and the progress line: ramp, warm-up, measure, drain.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::time::{sleep, sleep_until};

use super::client::{self, Context, Progress};
use super::gate::Gate;
use super::plan::Plan;
use super::stats::Stats;
use crate::sys;

/// monoio's timers wake at whole milliseconds, rounded up.
const TIMER_TICK: Duration = Duration::from_millis(2);

/// What a run brought.
pub struct Outcome {
    /// Everything, the drain included
    pub all: Stats,
    /// Counts at the end of the measured time, for rates
    pub measured: Counts,
}

/// Counts within the measured time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Its length in seconds
    pub seconds: f64,
    /// Answers complete
    pub ok: u64,
    /// Events received
    pub events: u64,
    /// Body bytes received
    pub bytes: u64,
}

/// Runs the plan on its threads and gathers the results.
///
/// # Errors
/// When a thread cannot start or has no ring.
pub fn run(plan: &Plan) -> io::Result<Outcome> {
    let progress = Arc::new(Progress::default());
    let is_over = Arc::new(AtomicBool::new(false));
    let line = show_progress(plan, progress.clone(), is_over.clone());
    let mut threads = Vec::new();
    for index in 0..plan.threads.max(1) {
        let (share, progress) = (plan.share(index), progress.clone());
        let work = move || sys::block_on(thread(share, index, progress));
        threads.push(std::thread::Builder::new().name("load".into()).spawn(work)?);
    }
    let mut all = Stats::new().map_err(io::Error::other)?;
    let mut measured = Counts::default();
    for thread in threads {
        let result = thread.join().map_err(|_| io::Error::other("a thread panicked"))?;
        let (stats, counts) = result??;
        all.add(&stats);
        measured.seconds = measured.seconds.max(counts.seconds);
        measured.ok += counts.ok;
        measured.events += counts.events;
        measured.bytes += counts.bytes;
    }
    is_over.store(true, Relaxed);
    if let Some(line) = line {
        let _ = line.join();
    }
    Ok(Outcome { all, measured })
}

async fn thread(plan: Plan, thread: usize, progress: Arc<Progress>) -> io::Result<(Stats, Counts)> {
    let requests = plan.requests.unwrap_or(u64::MAX);
    let gate = match plan.rate {
        Some(_) => Gate::open_loop(requests),
        None => Gate::closed_loop(plan.active(), requests),
    };
    let begun = Instant::now();
    let ramp = Duration::from_secs_f64(plan.ramp_seconds());
    let measured_from = begun + ramp + Duration::from_secs_f64(plan.warmup);
    let cx = Rc::new(Context {
        gate,
        stats: RefCell::new(Stats::new().map_err(io::Error::other)?),
        progress,
        requests: plan.prepare(),
        measured_from: Cell::new(measured_from),
        running: Cell::new(0),
        busy: Cell::new(0),
        open: Cell::new(0),
        next: Cell::new(0),
        thread,
        scratch: RefCell::new(vec![0; 256 << 10]),
        watched: RefCell::default(),
        plan,
    });
    monoio::spawn(watchdog(cx.clone()));
    if let Some(rate) = cx.plan.rate {
        monoio::spawn(pacer(cx.clone(), rate));
    }
    connect_all(&cx, begun, ramp).await;
    if measured_from > begun {
        sleep_until(measured_from.into()).await;
        // The timer was late; what began meanwhile is not measured.
        cx.measured_from.set(Instant::now());
        cx.stats.borrow_mut().reset_but_errors();
    }
    let counts = measure(&cx, cx.measured_from.get()).await;
    drain(&cx).await;
    let stats = cx.stats.borrow().clone();
    Ok((stats, counts))
}

async fn connect_all(cx: &Rc<Context>, begun: Instant, ramp: Duration) {
    // In the open loop the pacer opens what it needs.
    let count = if cx.plan.rate.is_some() { 0 } else { cx.plan.connections };
    for index in 0..count {
        let due = begun + ramp.mul_f64(index as f64 / count as f64);
        if due > Instant::now() {
            sleep_until(due.into()).await;
        }
        start_connection(cx);
    }
}

fn start_connection(cx: &Rc<Context>) {
    let index = cx.running.get();
    cx.running.set(index + 1);
    monoio::spawn(client::run(cx.clone(), index));
}

/// Puts starts into the gate at `rate` a second. A late tick puts in all that it missed, each
/// with the moment it was meant for.
async fn pacer(cx: Rc<Context>, rate: f64) {
    let begun = Instant::now();
    let mut number = 0_u64;
    while !cx.gate.is_over() {
        let due = begun + Duration::from_secs_f64(number as f64 / rate);
        if due > Instant::now() {
            sleep_until(due.into()).await;
        }
        // A tick late is this timer's doing, not the target's; what is later is counted as wait.
        let now = Instant::now();
        let start = if now < due + TIMER_TICK { now } else { due };
        if !cx.gate.put(start) && cx.running.get() < cx.plan.connections {
            start_connection(&cx);
        }
        number += 1;
    }
}

async fn watchdog(cx: Rc<Context>) {
    let limit = Duration::from_millis(cx.plan.timeout_ms);
    loop {
        sleep(Duration::from_millis(250)).await;
        for watched in cx.watched.borrow().iter() {
            watched.check(limit);
        }
    }
}

/// Waits until the measured time is over, or all requests are answered.
async fn measure(cx: &Context, from: Instant) -> Counts {
    let until = from + Duration::from_secs_f64(cx.plan.duration);
    while Instant::now() < until && !(cx.gate.is_over() && cx.running.get() == 0) {
        sleep_until(until.min(Instant::now() + Duration::from_millis(5)).into()).await;
    }
    let stats = cx.stats.borrow();
    let seconds = from.elapsed().as_secs_f64();
    let counts = Counts { seconds, ok: stats.ok, events: stats.events, bytes: stats.bytes };
    cx.gate.close();
    counts
}

async fn drain(cx: &Context) {
    let until = Instant::now() + Duration::from_secs_f64(cx.plan.drain);
    while cx.running.get() > 0 && Instant::now() < until {
        sleep(Duration::from_millis(5)).await;
    }
    cx.stats.borrow_mut().unfinished = cx.busy.get();
}

/// A line on the terminal, where there is one; it says how far the run is and how fast.
fn show_progress(
    plan: &Plan,
    progress: Arc<Progress>,
    is_over: Arc<AtomicBool>,
) -> Option<std::thread::JoinHandle<()>> {
    if plan.quiet || !io::stderr().is_terminal() {
        return None;
    }
    let whole = plan.ramp_seconds() + plan.warmup + plan.duration;
    std::thread::Builder::new()
        .name("progress".into())
        .spawn(move || {
            let begun = Instant::now();
            let mut before = 0;
            while !is_over.load(Relaxed) {
                #[allow(
                    clippy::disallowed_methods,
                    reason = "a picture for the eye needs no more"
                )]
                std::thread::sleep(Duration::from_millis(200));
                let ok = progress.ok.load(Relaxed);
                let (events, failed) =
                    (progress.events.load(Relaxed), progress.failed.load(Relaxed));
                let part = (begun.elapsed().as_secs_f64() / whole).min(1.0);
                let bar = "#".repeat((part * 30.0) as usize);
                let rate = (ok - before) * 5;
                eprint!("\r[{bar:<30}] {rate:>8}/s  {ok} ok  {events} events  {failed} failed ");
                let _ = io::stderr().flush();
                before = ok;
            }
            eprintln!();
        })
        .ok()
}
