//! Arguments → plan → control plane → workers → wait for the end.

#![forbid(unsafe_code)]

use llmproxy::base::limits::{
    CONNECTIONS_OVER_MAX, FDS_PER_REPORTER, FDS_RESERVED, GUESTS_MAX, PIPES_MAX,
};
use llmproxy::config::cli::{self, Command, Printout, SpoolTask};
use llmproxy::config::origin::Origin;
use llmproxy::config::plan::{LogOutput, Plan};
use llmproxy::config::Loaded;
use llmproxy::control::discovery::{Finders, News};
use llmproxy::control::log::{Logging, Reopen};
use llmproxy::control::pid_file::PidFile;
use llmproxy::control::reload::{self, Reloader, Reloads};
use llmproxy::control::signals::{self, Delays, Heard};
use llmproxy::control::supervisor::{self, Control, Supervisor};
use llmproxy::control::{circle, log, tool, watchdog};
use llmproxy::proxy::worker;
use llmproxy::rt::listen::{self, Place};
use llmproxy::rt::ring::{self, EPOLL};
use llmproxy::state::connections::Connections;
use llmproxy::state::stop::Stop;
use llmproxy::usage::unpacker::Unpacker;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// It gives memory back to the system that a burst left behind; the C library's does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// All requests were finished.
const DRAINED: u8 = 0;
/// The proxy could not start.
const CANNOT_START: u8 = 1;
/// An address that is in use is looked at again for so long, and so often.
const FREE_WAIT: Duration = Duration::from_secs(2);
const FREE_LOOK: Duration = Duration::from_millis(10);
/// A reload that runs when the last worker is done gets so long to finish.
const RELOAD_WAIT: Duration = Duration::from_secs(1);

/// Requests were cut at the drain deadline.
const CUT: u8 = 3;

fn main() -> ExitCode {
    let (Loaded { plan, report }, origin) = match cli::parse(tool::files::unusable) {
        Command::Run { loaded, origin } => (*loaded, origin),
        Command::Reload(ask) => return print(&tool::reload::run(&ask)),
        Command::Backends(ask) => return print(&tool::backends::run(&ask)),
        Command::Health(ask) => return print(&tool::health::run(&ask)),
        Command::Keys(ask) => return print(&tool::keys::run(&ask)),
        Command::Usage(question) => return print(&tool::usage::answer(&question)),
        Command::Lua(test) => return print(&tool::lua::run(&test)),
        Command::Print(output) => return print(&output),
        Command::Connect { plan, said } => return print(&tool::connect::answer(&plan, said)),
        Command::Spool { dir, task } => return spool(&dir, &task),
    };
    let plan = Arc::new(plan);
    let reopen = (Reopen::default(), Reopen::default());
    let log = match log::start(&plan.log, reopen.0.clone()) {
        Ok(log) => log,
        Err(error) => return cannot_start(&error),
    };
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, config = %report.file, sha256 = %report.sha256, "starting");
    for line in report.lines(false) {
        tracing::warn!("{line}");
    }
    if plan.backends.is_empty() && plan.discovery.is_none() {
        tracing::warn!("no backends: every request is answered 503 no_backend");
    }
    let reloads = Arc::new(Reloads::new(&report.sha256));
    match serve(&plan, &log, reopen, (origin, reloads)) {
        Ok(true) => ExitCode::from(DRAINED),
        Ok(false) => ExitCode::from(CUT),
        Err(error) => {
            // Said once where both go to the same terminal or collector.
            if matches!(plan.log.output, LogOutput::File(_)) {
                tracing::error!(%error, "cannot start");
            }
            cannot_start(&error)
        }
    }
}

#[allow(clippy::print_stderr, clippy::print_stdout, reason = "what was asked for on a terminal")]
fn print(output: &Printout) -> ExitCode {
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    ExitCode::from(output.code)
}

/// `llmproxy spool`.
#[allow(clippy::print_stderr, reason = "what was asked for on a terminal")]
fn spool(dir: &Path, task: &SpoolTask) -> ExitCode {
    match tool::spool::run(dir, task, &mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("llmproxy spool: {error}");
            ExitCode::from(CANNOT_START)
        }
    }
}

#[allow(clippy::print_stderr, reason = "the log may be a file: whoever started us reads this")]
fn cannot_start(error: &str) -> ExitCode {
    eprintln!("llmproxy: cannot start: {error}");
    ExitCode::from(CANNOT_START)
}

/// Runs until the workers are done. True when nothing was cut.
fn serve(
    plan: &Arc<Plan>,
    log: &Logging,
    (event_log, access_log): (Reopen, Reopen),
    (origin, reloads): (Origin, Arc<Reloads>),
) -> Result<bool, String> {
    let connections = Arc::new(Connections::new(connections_that_fit(plan)?));
    let connections_max = reload::limit(&connections, plan.server.max_connections);
    let (listeners, addresses) = bind_all(&plan.server.listen, plan.server.workers)?;
    let metrics = plan.metrics.as_ref().and_then(|metrics| metrics.listen);
    let metrics = bind_own(metrics, "metrics")?;
    let api = bind_own(plan.admin.as_ref().map(|admin| admin.listen), "admin API")?;
    let stop = Arc::new(Stop::default());
    let delays = Arc::new(Mutex::new(Delays::of(&plan.server)));
    let (to_supervisor, events) = supervisor::events();
    signals::start(Heard {
        stop: Arc::clone(&stop),
        delays: Arc::clone(&delays),
        reopen: vec![event_log, access_log.clone()],
        supervisor: to_supervisor.clone(),
        last: log.last.clone(),
    })
    .map_err(|e| format!("signals: {e}"))?;
    let pid_file = plan.server.pid_file.as_deref().map(PidFile::write).transpose()?;
    let mut control = supervisor::start(
        plan,
        &stop,
        (metrics, api),
        (log, access_log),
        (&reloads, to_supervisor.clone()),
    )?;
    circle::check(&control.board.view(), &addresses)?;
    let watch = match plan.server.watch_config {
        true => reload::watch(&origin, &reloads.sha256(), &to_supervisor)?,
        false => None,
    };
    let mut reloader = Reloader {
        origin,
        configured: plan.backends.clone(),
        discovery: Finders::default(),
        finders: Arc::clone(&control.finders),
        news: News::to(to_supervisor.clone()),
        board: Arc::clone(&control.board),
        resolver: control.resolver.clone(),
        ours: addresses.clone(),
        style: log.style.clone(),
        reloads,
        delays,
        connections: Arc::clone(&connections),
        budget: Arc::clone(&control.budget),
        events: to_supervisor.clone(),
        watch,
    };
    reloader.find_first()?;
    let workers = start_workers(plan, &mut control, &stop, listeners, &connections)?;
    let supervisor = Supervisor::start(reloader, (to_supervisor, events), stop)
        .map_err(|e| format!("supervisor: {e}"))?;
    for addr in addresses {
        tracing::info!(%addr, workers = plan.server.workers, connections_max, "listening");
    }
    let mut drained = true;
    for worker in workers {
        // A worker that panicked outside a connection leaves a listener that nobody serves.
        drained &= worker.join().unwrap_or_else(|_| std::process::abort());
    }
    supervisor.stop(RELOAD_WAIT);
    tracing::info!(drained, "stopped");
    control.finish();
    drop(pid_file);
    Ok(drained)
}

/// Binds to an address of the control plane's own, if there is one.
fn bind_own(wanted: Option<SocketAddr>, whose: &str) -> Result<Option<OwnedFd>, String> {
    let Some(wanted) = wanted else { return Ok(None) };
    let (mut bound, addresses) = bind_all(&[wanted], 1)?;
    addresses.iter().for_each(|addr| tracing::info!(%addr, "{whose}"));
    Ok(bound.pop().and_then(|mut listeners| listeners.pop()))
}

fn start_workers(
    plan: &Arc<Plan>,
    control: &mut Control,
    stop: &Arc<Stop>,
    listeners: Vec<Vec<OwnedFd>>,
    connections: &Arc<Connections>,
) -> Result<Vec<JoinHandle<bool>>, String> {
    let (ready, started) = crossbeam_channel::bounded(listeners.len());
    let mailboxes = std::mem::take(&mut control.mailboxes);
    let mut outboxes = std::mem::take(&mut control.usage).into_iter();
    let unpacker = Unpacker::start().map_err(|e| format!("unpacker: {e}"))?;
    let mut threads = Vec::new();
    let ends = listeners.into_iter().zip(mailboxes).zip(&control.pulses);
    for (index, ((listeners, mailbox), pulse)) in ends.enumerate() {
        let cpus = &plan.server.cpu_affinity;
        let start = worker::WorkerStart {
            index,
            cpu: cpus.get(index % cpus.len().max(1)).copied(),
            board: Arc::clone(&control.board),
            listeners,
            connections: Arc::clone(connections),
            stop: Arc::clone(stop),
            mailbox,
            pages: control.pages.clone(),
            models: control.models.clone(),
            pulse: Arc::clone(pulse),
            budget: Arc::clone(&control.budget),
            usage: outboxes.next(),
            access: control.access.clone(),
            spans: control.spans.clone(),
            unpacker: unpacker.clone(),
            seed: getrandom::u64().map_err(|e| format!("no randomness: {e}"))?,
            ready: ready.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        let thread = thread.spawn(move || worker::run(start));
        threads.push(thread.map_err(|e| format!("worker {index}: {e}"))?);
    }
    let mut drivers = Vec::new();
    for _ in &threads {
        let driver = started.recv().map_err(|_| "a worker died at start".to_owned())?;
        drivers.push(driver.map_err(|e| format!("a worker cannot start: {e}"))?);
    }
    let driver = drivers.first().copied().unwrap_or_default();
    if drivers.contains(&EPOLL) {
        let why = ring::why_epoll();
        tracing::warn!(driver = EPOLL, %why, "io_uring is not in use: running on epoll");
    }
    tracing::info!(driver, workers = drivers.len(), "workers run");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if plan.server.leaves_cpus(cpus) {
        let workers = threads.len();
        tracing::info!(workers, cpus, "server.workers: auto takes at most so many of the CPUs");
    }
    let _ = control.drivers.set(drivers);
    watchdog::start(control.pulses.clone()).map_err(|e| format!("watchdog: {e}"))?;
    Ok(threads)
}

/// Waits for an address for a moment: the kernel ends the ring of a process that was killed, and
/// with it the listeners, some time after the process itself is gone. Whoever starts us again at
/// once should not have to try twice.
fn await_free(wanted: Place) -> std::io::Result<()> {
    let since = Instant::now();
    loop {
        match listen::check_free(wanted) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && since.elapsed() < FREE_WAIT => {
                std::thread::park_timeout(FREE_LOOK);
            }
            result => return result,
        }
    }
}

/// Binds to all addresses, and again for each of so many workers: the listeners of each worker, and
/// the addresses. With port 0 all workers share the port that the first got.
fn bind_all(
    wanted: &[SocketAddr],
    workers: usize,
) -> Result<(Vec<Vec<OwnedFd>>, Vec<SocketAddr>), String> {
    let mut listeners: Vec<Vec<OwnedFd>> = (0..workers).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for mut place in Place::all(wanted) {
        let asked = place.address;
        let named = |e: std::io::Error| format!("listen on {asked}: {e}");
        await_free(place).map_err(named)?;
        for (index, own) in listeners.iter_mut().enumerate() {
            let listener = listen::bind(place).map_err(named)?;
            if index == 0 {
                place = place.on_port_of(&listener).map_err(named)?;
            }
            own.push(listener);
        }
        addresses.push(place.address);
    }
    Ok((listeners, addresses))
}

/// Raises the limit of open files to what is allowed, and derives from it how many clients fit:
/// each may need a second descriptor towards a backend, and a quarter as many answers are read on
/// for clients that have left.
fn connections_that_fit(plan: &Plan) -> Result<usize, String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
            tracing::warn!(%error, "the limit of open files stays as it is");
        }
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20) as usize;
    let workers = plan.server.workers;
    let receivers = plan.usage.reporters.len() + usize::from(plan.tracing.is_some());
    let reporters = receivers * FDS_PER_REPORTER;
    let beyond = 2 * CONNECTIONS_OVER_MAX + GUESTS_MAX;
    let of_workers = workers * (2 * PIPES_MAX + plan.server.listen.len());
    let reserved = FDS_RESERVED + beyond + of_workers + reporters;
    let fit = files.saturating_sub(reserved) * 4 / 9;
    match fit {
        0 => Err(format!("the limit of open files ({files}) is too low")),
        fit => Ok(fit),
    }
}
