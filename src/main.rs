//! Arguments → plan → control plane → workers → wait for the end.

#![forbid(unsafe_code)]

use crossbeam_channel::Sender;
use llmproxy::base::limits::{
    CONNECTIONS_OVER_MAX, FDS_PER_REPORTER, FDS_RESERVED, GUESTS_MAX, PIPES_MAX,
};
use llmproxy::config::cli::{self, Command, Printout, SpoolTask};
use llmproxy::config::origin::Origin;
use llmproxy::config::plan::{ListenPlace, ListenerSpeech, LogOutput, Plan};
use llmproxy::config::Loaded;
use llmproxy::control::discovery::{Finders, News};
use llmproxy::control::handover::activation;
use llmproxy::control::handover::listeners::{
    ListenGroup, ListenPurpose, OpeningListeners, Spares,
};
use llmproxy::control::handover::predecessor::{self, Inheritance, Predecessor};
use llmproxy::control::handover::program::Program;
use llmproxy::control::handover::upgrades::Upgrades;
use llmproxy::control::log::{Logging, Reopen};
use llmproxy::control::notify::Notifier;
use llmproxy::control::pid_file::PidFile;
use llmproxy::control::reload::{self, Reloader, Reloads};
use llmproxy::control::signals::{self, Delays, DelaysInUse, Heard};
use llmproxy::control::socket_file::SocketFile;
use llmproxy::control::supervisor::{self, Control, ControlDoors, Event, Supervisor};
use llmproxy::control::{circle, counters, keys, log, shared_limits, tool, watchdog};
use llmproxy::proxy::worker;
use llmproxy::rt::ring::{self, EPOLL};
use llmproxy::state::connections::Connections;
use llmproxy::state::stop::Stop;
use llmproxy::usage::unpacker::Unpacker;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// It gives memory back to the system that a burst left behind; the C library's does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// All requests were finished.
const DRAINED: u8 = 0;
/// The proxy could not start.
const CANNOT_START: u8 = 1;
/// The process that took the place of this one ended first: a service manager is to start another.
const NOBODY_LEFT: u8 = 1;
/// A reload that runs when the last worker is done gets so long to finish.
const RELOAD_WAIT: Duration = Duration::from_secs(1);

/// Requests were cut at the drain deadline.
const CUT: u8 = 3;

fn main() -> ExitCode {
    let (Loaded { plan, report }, origin) = match cli::parse(tool::files::seen) {
        Command::Run { loaded, origin } => (*loaded, origin),
        Command::Reload(ask) => return print(&tool::reload::run(&ask)),
        Command::Upgrade(ask) => return print(&tool::upgrade::run(&ask)),
        Command::Backends(ask) => return print(&tool::backends::run(&ask)),
        Command::Top(ask) => return print(&tool::top::run(&ask)),
        Command::Explain(ask) => return print(&tool::explain::run(&ask)),
        Command::Health(ask) => return print(&tool::health::run(&ask)),
        Command::Keys(ask) => return print(&tool::keys::run(&ask)),
        Command::Usage(question) => return print(&tool::usage::answer(&question)),
        Command::Lua(test) => return print(&tool::lua::run(&test)),
        Command::Print(output) => return print(&output),
        Command::Connect { plan, said } => return print(&tool::connect::answer(&plan, said)),
        Command::Spool { dir, task } => return spool(&dir, &task),
    };
    let taken = activation::take();
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
    let ended = predecessor::inherit(taken).and_then(|Inheritance { groups, predecessor }| {
        let heritage = (groups, predecessor.as_ref());
        serve(&plan, &log, reopen, (origin, reloads), heritage)
            .inspect_err(|error| predecessor.iter().for_each(|one| one.tell_failed(error)))
    });
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Said once where both go to the same terminal or collector.
            if matches!(plan.log.output, LogOutput::File(_)) {
                tracing::error!(%error, "cannot start");
            }
            cannot_start(&error)
        }
    }
}

#[allow(clippy::print_stderr, reason = "what was asked for on a terminal")]
fn print(output: &Printout) -> ExitCode {
    // Whoever reads may have had enough.
    let _ = std::io::stdout().lock().write_all(output.stdout.as_bytes());
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

/// Where clients come, and others.
struct Front {
    of_workers: Vec<Vec<(OwnedFd, ListenerSpeech)>>,
    places: Vec<ListenPlace>,
    files: Vec<SocketFile>,
    doors: ControlDoors,
    spares: Arc<Spares>,
}

/// Listens wherever the plan says, with what was handed to this process as far as that goes.
fn listen(plan: &Plan, groups: Vec<ListenGroup>, is_successor: bool) -> Result<Front, String> {
    let mut opening = OpeningListeners::new(groups);
    let (mut of_workers, mut places, mut files) = (Vec::new(), Vec::new(), Vec::new());
    of_workers.resize_with(plan.server.workers, Vec::new);
    let mut share_out = |opened: Vec<Vec<OwnedFd>>, speech: ListenerSpeech| {
        for (all, own) in of_workers.iter_mut().zip(opened) {
            all.extend(own.into_iter().map(|socket| (socket, speech)));
        }
    };
    for speech in ListenerSpeech::ALL {
        let wanted = plan.server.addresses_of(speech);
        let (opened, found) = opening.clients(&wanted, plan.server.workers)?;
        share_out(opened, speech);
        places.extend(found.into_iter().map(ListenPlace::Tcp));
    }
    for listener in plan.server.unix_listeners() {
        let (opened, file) = opening.unix(listener, plan.server.workers)?;
        share_out(opened, listener.speech());
        places.push(listener.listen.clone());
        files.extend(file);
    }
    let metrics = plan.metrics.as_ref().and_then(|metrics| metrics.listen);
    let metrics = opening.own(metrics, ListenPurpose::Metrics)?;
    let api = opening
        .own(plan.admin.as_ref().and_then(|admin| admin.listen.own()), ListenPurpose::Admin)?;
    let acme = plan.server.tls.as_ref().and_then(|tls| tls.acme.as_ref());
    let plain = acme.and_then(|acme| acme.http_listen);
    let plain = opening.own(plain, ListenPurpose::PlainHttp)?;
    let doors = ControlDoors { metrics, api, plain, replaces_socket: is_successor };
    Ok(Front { of_workers, places, files, doors, spares: Arc::new(opening.finish()) })
}

/// The addresses among the places.
fn addresses(places: &[ListenPlace]) -> Vec<SocketAddr> {
    let address = |place: &ListenPlace| match place {
        ListenPlace::Tcp(address) => Some(*address),
        ListenPlace::Unix(_) => None,
    };
    places.iter().filter_map(address).collect()
}

/// Runs until the workers are done. Gives the exit code.
fn serve(
    plan: &Arc<Plan>,
    log: &Logging,
    (event_log, access_log): (Reopen, Reopen),
    (origin, reloads): (Origin, Arc<Reloads>),
    (groups, predecessor): (Vec<ListenGroup>, Option<&Predecessor>),
) -> Result<u8, String> {
    let connections = Arc::new(Connections::new(connections_that_fit(plan)?));
    let connections_max = reload::limit(&connections, plan.server.max_connections);
    let Front { of_workers, places, mut files, doors, spares } =
        listen(plan, groups, predecessor.is_some())?;
    let ours = addresses(&places);
    let stop = Arc::new(Stop::default());
    let delays = Arc::new(Mutex::new(Delays::of(&plan.server)));
    let (to_supervisor, events) = supervisor::events();
    let ends = Ends { stop: Arc::clone(&stop), delays: Arc::clone(&delays), spares };
    let reopen = vec![event_log, access_log.clone()];
    let (upgrades, notifier) = hear_signals(plan, ends, (reopen, log), to_supervisor.clone())?;
    let path = plan.server.pid_file.as_deref();
    let mut pid_file = None;
    match predecessor {
        None => pid_file = path.map(|path| PidFile::write(path, None)).transpose()?,
        Some(_) => counters::have_place(plan)?,
    }
    let mut control = supervisor::start(
        plan,
        &stop,
        doors,
        (log, access_log),
        (&reloads, upgrades.failures(), to_supervisor.clone()),
    )?;
    circle::check(&control.board.view(), &ours)?;
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
        ours,
        style: log.style.clone(),
        reloads,
        delays,
        connections: Arc::clone(&connections),
        budget: Arc::clone(&control.budget),
        events: to_supervisor.clone(),
        watch,
        notifier: Arc::clone(&notifier),
        tls_watch: None,
    };
    reloader.find_first(predecessor.is_some())?;
    predecessor.map_or(Ok(()), Predecessor::await_go)?;
    let workers = start_workers(plan, &mut control, (&stop, &notifier), of_workers, &connections)?;
    upgrades.allow();
    if let Some(predecessor) = predecessor {
        pid_file = take_place(predecessor, path, &mut files);
    }
    let supervisor = Supervisor::start(reloader, (to_supervisor, events), stop)
        .map_err(|e| format!("supervisor: {e}"))?;
    for addr in &places {
        tracing::info!(%addr, workers = plan.server.workers, connections_max, "listening");
    }
    if predecessor.is_none() {
        notifier.ready(&places);
    }
    let code = await_end(workers, supervisor, &upgrades);
    keys::finish(&control.board.view());
    shared_limits::finish(&control.board.view());
    take_away(files, &upgrades);
    control.finish();
    drop(pid_file);
    Ok(code)
}

/// What signals end, and when.
struct Ends {
    stop: Arc<Stop>,
    delays: DelaysInUse,
    spares: Arc<Spares>,
}

/// Hears signals from now on.
fn hear_signals(
    plan: &Plan,
    Ends { stop, delays, spares }: Ends,
    (reopen, log): (Vec<Reopen>, &Logging),
    supervisor: Sender<Event>,
) -> Result<(Arc<Upgrades>, Arc<Notifier>), String> {
    let notifier = Arc::new(Notifier::of_this_process());
    let upgrades = Arc::new(Upgrades::new(
        Program::of_this_process(),
        Arc::clone(&spares),
        (Arc::clone(&stop), Arc::clone(&delays)),
        (Arc::clone(&notifier), plan.server.pid_file.clone()),
    ));
    let (told, asked) = (Arc::clone(&notifier), Arc::clone(&upgrades));
    let last = log.last.clone();
    let heard =
        Heard { stop, spares, upgrades: asked, notifier: told, delays, reopen, supervisor, last };
    signals::start(heard).map_err(|e| format!("signals: {e}"))?;
    Ok((upgrades, notifier))
}

/// The workers serve, and this process has the place of the one before it.
fn take_place(
    predecessor: &Predecessor,
    path: Option<&Path>,
    files: &mut [SocketFile],
) -> Option<PidFile> {
    for file in files {
        if let Err(error) = file.take() {
            tracing::error!("{}: {error}", file.path().display());
        }
    }
    let number = Some(predecessor.process);
    let written = path.map(|path| PidFile::write(path, number)).transpose();
    predecessor.tell_serving();
    // Clients are served: no reason to end.
    written.inspect_err(|error| tracing::error!("{error}")).unwrap_or_default()
}

/// Sockets' files go with the process that has their listeners.
fn take_away(mut files: Vec<SocketFile>, upgrades: &Upgrades) {
    if upgrades.have_given_place() {
        files.iter_mut().for_each(SocketFile::leave);
    }
}

/// Waits until the workers are done. Gives the exit code.
fn await_end(
    workers: Vec<JoinHandle<bool>>,
    supervisor: Supervisor,
    upgrades: &Arc<Upgrades>,
) -> u8 {
    let mut drained = true;
    for worker in workers {
        // A worker that panicked outside a connection leaves a listener that nobody serves.
        drained &= worker.join().unwrap_or_else(|_| std::process::abort());
    }
    upgrades.await_end();
    supervisor.stop(RELOAD_WAIT);
    tracing::info!(drained, "stopped");
    match (upgrades.has_lost_successor(), drained) {
        (true, _) => NOBODY_LEFT,
        (false, true) => DRAINED,
        (false, false) => CUT,
    }
}

fn start_workers(
    plan: &Arc<Plan>,
    control: &mut Control,
    (stop, notifier): (&Arc<Stop>, &Arc<Notifier>),
    listeners: Vec<Vec<(OwnedFd, ListenerSpeech)>>,
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
            admin_desk: control.admin_desk.clone(),
            models: control.models.clone(),
            pulse: Arc::clone(pulse),
            budget: Arc::clone(&control.budget),
            usage: outboxes.next(),
            access: control.access.clone(),
            spans: control.spans.clone(),
            flight: control.flight.of_worker(index),
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
    let watching = watchdog::start(control.pulses.clone(), Arc::clone(notifier));
    watching.map_err(|e| format!("watchdog: {e}"))?;
    Ok(threads)
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
    let of_workers =
        workers * (2 * PIPES_MAX + 2 * (plan.server.listen.len() + plan.server.listeners.len()));
    let reserved = FDS_RESERVED + beyond + of_workers + reporters;
    let fit = files.saturating_sub(reserved) * 4 / 9;
    match fit {
        0 => Err(format!("the limit of open files ({files}) is too low")),
        fit => Ok(fit),
    }
}
