//! Starts the control plane and ends it: the board, resolver, probes, pages, logs, reporters. And
//! the one thread that changes the configuration in use, one event after the other.

use super::acme::{self, AcmeRun};
use super::admin::{self, Door, SocketKeeper};
use super::admin_api;
use super::admin_door::{open_gate, AdminNumbers, AdminQuestion, ApiDoor, Gateway, Guard};
use super::delivery::{self, Delivery};
use super::discovery::FindersInUse;
use super::engine_load::LoadReaders;
use super::health::Probers;
use super::log::{Logging, Reopen};
use super::memory::Memory;
use super::metrics::Facts;
use super::page::{Outlet, SCRAPERS_MAX};
use super::reload::{Cause, Reloader, Reloads};
use super::resolve::Resolver;
use super::traces::SpanExporter;
use super::{access, counters, keys, models, page, scripts, shared_limits, tls, traces};
use crate::base::limits::METRICS_PAGES_WAITING_MAX;
use crate::config::plan::{AdminListen, Plan};
use crate::rt::budget::Budget;
use crate::rt::patrol::Patrol;
use crate::rt::ring::Ring;
use crate::state::admin_desk::AdminDesk;
use crate::state::ask;
use crate::state::board::{Board, View};
use crate::state::model_list::AskModels;
use crate::state::pulse::Pulse;
use crate::state::scrape::{mailboxes, AskPage, Mailbox, Page};
use crate::state::stop::{Phase, Stop};
use crate::usage::access::{self as access_queue, AccessQueue};
use crate::usage::flight::FlightRecorder;
use crate::usage::outbox::Outbox;
use crate::usage::spans::SpanQueue;
use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The start waits so long for names to resolve for the first time; then it serves with what is
/// known.
const FIRST_RESOLVE_WAIT: Duration = Duration::from_secs(1);
/// Wishes that wait for the supervisor. Beyond: a reload is not asked for, since one that waits
/// will read what is there by then.
const EVENTS_MAX: usize = 8;
/// Those who ask the admin API at a time. Beyond: closed.
const ADMINS_MAX: usize = 16;

/// What the supervisor is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Read the configuration anew.
    Reload(Cause),
    /// Discovery found other backends.
    Discovered,
    /// A file of `server.tls` is another one.
    TlsFiles,
    /// No more of it: the process ends.
    Stop,
}

impl Event {
    /// Tells the supervisor. Where so many wait, this one is left out.
    pub fn tell(self, supervisor: &Sender<Event>) {
        let _ = supervisor.try_send(self);
    }
}

/// The way to the supervisor.
pub fn events() -> (Sender<Event>, Receiver<Event>) {
    bounded(EVENTS_MAX)
}

/// The thread that changes the configuration in use.
pub struct Supervisor {
    events: Sender<Event>,
    /// Closes when the thread ends.
    running: Receiver<()>,
}

impl Supervisor {
    /// Starts the thread that does what it is told, until it is told to stop.
    pub fn start(
        mut reloader: Reloader,
        (to_it, events): (Sender<Event>, Receiver<Event>),
        stop: Arc<Stop>,
    ) -> std::io::Result<Supervisor> {
        Supervisor::run((to_it, events), move |event| match (event, stop.phase()) {
            (Event::Reload(cause), Phase::Running) => reloader.reload(cause),
            (Event::Reload(cause), _) => reloader.refuse(cause),
            (Event::Discovered, Phase::Running) => reloader.take_found(),
            // Whoever ends has the backends that it needs.
            (Event::TlsFiles, Phase::Running | Phase::Leaving) => reloader.renew_client_tls(),
            (Event::Discovered | Event::TlsFiles | Event::Stop, _) => {}
        })
    }

    fn run(
        (to_it, events): (Sender<Event>, Receiver<Event>),
        mut follow: impl FnMut(Event) + Send + 'static,
    ) -> std::io::Result<Supervisor> {
        let (until_end, running) = bounded(0);
        let body = move || {
            let _until_end: Sender<()> = until_end;
            for event in events {
                match event {
                    Event::Stop => return,
                    event => follow(event),
                }
            }
        };
        std::thread::Builder::new().name("supervisor".into()).spawn(body)?;
        Ok(Supervisor { events: to_it, running })
    }

    /// Lets it finish the reload that it is at. One that takes longer than `wait` (a slow disk, a
    /// name server that does not answer) ends with the process, which gains nothing from it.
    pub fn stop(self, wait: Duration) {
        let due = Instant::now() + wait;
        let _ = self.events.send_deadline(Event::Stop, due);
        if self.running.recv_deadline(due) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a reload is not done yet: it ends with the process");
        }
    }
}

/// The control plane, running.
pub struct Control {
    /// Where the configuration in use hangs, with its backends.
    pub board: Arc<Board>,
    /// Where the metrics page is asked for.
    pub pages: AskPage,
    /// Where workers ask the admin API, if it is on the listeners of the clients.
    pub admin_desk: Option<AdminDesk>,
    /// Where the list of models is asked for.
    pub models: AskModels,
    /// A mailbox for each worker.
    pub mailboxes: Vec<Mailbox>,
    /// What the buffers of all workers may hold.
    pub budget: Arc<Budget>,
    /// A pulse for each worker.
    pub pulses: Vec<Arc<Pulse>>,
    /// Where workers put usage records: an end for each; empty when no records are made.
    pub usage: Vec<Outbox>,
    /// Where workers put access records.
    pub access: Option<AccessQueue>,
    /// Where workers put spans.
    pub spans: Option<SpanQueue>,
    /// Where workers keep stories of requests.
    pub flight: Arc<FlightRecorder>,
    /// The drivers of the workers, once they are known.
    pub drivers: Arc<OnceLock<Vec<&'static str>>>,
    /// Resolves the names of a view before it is hung up.
    pub resolver: Resolver,
    /// The finders of discovery, as the metrics page shows them.
    pub finders: Arc<FindersInUse>,
    delivery: Option<Delivery>,
    /// Its socket goes away at the end.
    admin: Option<SocketKeeper>,
    access_writer: Option<access::AccessWriter>,
    span_exporter: Option<SpanExporter>,
    /// Ends with this.
    _acme: Option<AcmeRun>,
}

fn first_view(plan: &Arc<Plan>) -> Result<View, String> {
    let mut view = View::new(Arc::clone(plan), tls::client_configs(plan)?, None);
    view.client_tls = tls::client_tls(plan, &view.given_certificates)?;
    view.counters = counters::of(plan, None);
    view.services = keys::services(plan, None, view.counters.as_ref())?;
    view.scripts = scripts::read(plan)?;
    shared_limits::equip(&mut view, None)?;
    Ok(view)
}

/// The listeners of the control plane.
#[derive(Default)]
pub struct ControlDoors {
    /// The page's own, if it has one.
    pub metrics: Option<OwnedFd>,
    /// Of the admin API.
    pub api: Option<OwnedFd>,
    /// For those who come without TLS where certificates are fetched.
    pub plain: Option<OwnedFd>,
    /// The admin socket of the process in whose place this one starts is replaced.
    pub replaces_socket: bool,
}

/// Starts everything that is not a worker.
/// An error is a line for a person.
pub fn start(
    plan: &Arc<Plan>,
    stop: &Arc<Stop>,
    mut doors: ControlDoors,
    (log, reopen): (&Logging, Reopen),
    (reloads, failed_upgrades, supervisor): (&Arc<Reloads>, Arc<AtomicU64>, Sender<Event>),
) -> Result<Control, String> {
    let board = Arc::new(Board::new(first_view(plan)?));
    let acme = acme::start(&board.view(), stop, doors.plain.take())?;
    let acme_numbers = acme.as_ref().map(AcmeRun::numbers);
    let resolver = Resolver::start(Arc::clone(&board)).map_err(thread_error)?;
    let pulses = pulses(plan, stop);
    let (mut scraper, mailboxes) = mailboxes(&pulses);
    let (usage, gauge, delivery) = delivery::start(plan)?;
    let (access, access_writer) = start_access(plan, reopen)?.unzip();
    let (spans, span_exporter) = traces::start(plan.tracing.as_ref())?.unzip();
    let budget = Arc::new(Budget::new(buffered_bytes_max(plan)));
    let (pages, page_questions) = ask::queue(METRICS_PAGES_WAITING_MAX);
    let (drivers, finders) = (Arc::new(OnceLock::new()), Arc::<FindersInUse>::default());
    let flight = flight_recorder(plan)?;
    let gateway = Gateway::new((&board, &flight), &pages, reloads, supervisor);
    let collect = {
        let admin_numbers = Arc::clone(&gateway.numbers);
        let (board, drivers) = (Arc::clone(&board), Arc::clone(&drivers));
        let (access, log) = (access.clone(), log.dropped.clone());
        let traced = spans.as_ref().map(|queue| Arc::clone(queue.counters())).unwrap_or_default();
        let (budget, reloads) = (Arc::clone(&budget), Arc::clone(reloads));
        let (finders, turned_away) = (Arc::clone(&finders), pages.turned_away());
        move || {
            let (meters, silent_workers) = scraper.collect();
            Facts {
                meters,
                silent_workers,
                budget: Arc::clone(&budget),
                reloads: Arc::clone(&reloads),
                upgrade_failures: failed_upgrades.load(Ordering::Relaxed),
                finders: finders.numbers(),
                drivers: drivers.get().cloned().unwrap_or_default(),
                view: board.view(),
                usage: gauge.clone(),
                log_dropped: log.dropped_lines() as u64,
                access_dropped: access.as_ref().map_or(0, AccessQueue::dropped),
                spans: Arc::clone(&traced),
                pages_turned_away: turned_away.load(Ordering::Relaxed),
                admin: Arc::clone(&admin_numbers),
                acme: acme_numbers.clone(),
            }
        }
    };
    page::start(page_questions, Arc::clone(&flight), collect).map_err(thread_error)?;
    let home = delivery.as_ref().and_then(Delivery::home);
    let (control_pulse, admin, admin_desk) =
        start_pages(&board, stop, (doors, home), (pages.clone(), gateway))?;
    board.calls(pulses.iter().cloned().chain([control_pulse]).collect());
    // Not an error when it takes longer: names that come later are used when they come.
    resolver.prepare(&board.view(), FIRST_RESOLVE_WAIT);
    Ok(Control {
        models: models::start(&board).map_err(thread_error)?,
        board,
        resolver,
        finders,
        pages,
        admin_desk,
        mailboxes,
        budget,
        pulses,
        usage,
        access,
        spans,
        flight,
        drivers,
        delivery,
        admin,
        access_writer,
        span_exporter,
        _acme: acme,
    })
}

/// One for each worker, which the end of the process calls.
fn pulses(plan: &Plan, stop: &Stop) -> Vec<Arc<Pulse>> {
    let pulses: Vec<Arc<Pulse>> = (0..plan.server.workers).map(|_| Arc::default()).collect();
    pulses.iter().for_each(|pulse| stop.calls(pulse));
    pulses
}

/// Where workers keep stories of requests.
fn flight_recorder(plan: &Plan) -> Result<Arc<FlightRecorder>, String> {
    let recorder = FlightRecorder::new(plan.server.workers, plan.log.flight_recorder);
    recorder.map(Arc::new).map_err(|error| format!("log.flight_recorder: {error}"))
}

/// Starts the access log of a plan that has one.
fn start_access(
    plan: &Plan,
    reopen: Reopen,
) -> Result<Option<(AccessQueue, access::AccessWriter)>, String> {
    let Some(log) = &plan.log.access else { return Ok(None) };
    let (queue, lines) = access_queue::open(log.format);
    Ok(Some((queue, access::start(log, lines, reopen)?)))
}

/// What the buffers of all workers may hold: what the plan says, or a share of the memory.
pub(super) fn buffered_bytes_max(plan: &Plan) -> u64 {
    if let Some(bytes) = plan.server.max_buffered_bytes {
        return bytes as u64;
    }
    let Some(memory) = Memory::find() else {
        tracing::warn!("how much memory there is cannot be told: server.max_buffered_bytes is off");
        return u64::MAX;
    };
    let (bytes, max_body_size) = (memory.for_buffers(), plan.server.max_body_size);
    let (memory, of) = (memory.bytes, memory.of);
    tracing::info!(bytes, memory, of, "bodies and answers in memory are limited");
    if Budget::max_for_large(bytes) < max_body_size {
        tracing::warn!(
            bytes,
            max_body_size,
            "server.max_buffered_bytes is less than one body may have"
        );
    }
    bytes
}

/// What is said of a thread that there cannot be.
pub(super) fn thread_error(error: std::io::Error) -> String {
    format!("a thread cannot be started: {error}")
}

/// The pulse of the control plane's ring, what keeps the admin socket, and the way to the admin API
/// for workers.
type PagesStarted = (Arc<Pulse>, Option<SocketKeeper>, Option<AdminDesk>);

/// Starts the control plane's ring, what keeps its admin socket, which stands in `home` if that is
/// somewhere, and those who answer for the admin API.
fn start_pages(
    board: &Arc<Board>,
    stop: &Arc<Stop>,
    (doors, home): (ControlDoors, Option<&Path>),
    (pages, gateway): (AskPage, Gateway),
) -> Result<PagesStarted, String> {
    let view = board.view();
    let numbers = Arc::clone(&gateway.numbers);
    let questions = admin_api::start(&view.plan, gateway)?;
    let admin_desk = questions.as_ref().and_then(|all| open_desk(board, &numbers, all)).transpose();
    let admin_desk = admin_desk.map_err(thread_error)?;
    let ControlDoors { metrics, api, plain: _, replaces_socket } = doors;
    let (admin, file) = admin::open_for(&view.plan, home, replaces_socket).unzip();
    let (renew, renewed) = bounded(1);
    let listeners = Listeners { metrics, admin, api, questions, numbers, renewed };
    let pulse = start_ring(board, stop, listeners, pages)?;
    let keeper = file.and_then(|file| admin::keep(file, renew, Arc::clone(&pulse)));
    Ok((pulse, keeper, admin_desk))
}

/// The way to the admin API for workers, where it is on the listeners of the clients.
fn open_desk(
    board: &Arc<Board>,
    numbers: &Arc<AdminNumbers>,
    questions: &Sender<AdminQuestion>,
) -> Option<std::io::Result<AdminDesk>> {
    let view = board.view();
    let is_main = view.plan.admin.as_ref().is_some_and(|it| it.listen == AdminListen::Main);
    is_main.then(|| {
        let (questions, numbers) = (questions.clone(), Arc::clone(numbers));
        Ok(AdminDesk { gate: open_gate(board, &numbers)?, questions, numbers })
    })
}

/// The listeners of the control plane's ring.
struct Listeners {
    /// Of the metrics.
    metrics: Option<OwnedFd>,
    /// The admin socket.
    admin: Option<OwnedFd>,
    /// Of the admin API.
    api: Option<OwnedFd>,
    /// Who answers for that.
    questions: Option<Sender<AdminQuestion>>,
    /// What became of those who asked.
    numbers: Arc<AdminNumbers>,
    /// Others of the admin socket, when it was made anew.
    renewed: Receiver<OwnedFd>,
}

/// The listener of the admin API.
fn api_outlet(
    (listener, questions): (OwnedFd, Sender<AdminQuestion>),
    numbers: &Arc<AdminNumbers>,
    board: &Arc<Board>,
) -> Outlet {
    let guard = Some(Guard::new(Arc::clone(board), Arc::clone(numbers)));
    let door = Some(ApiDoor { questions, guard, numbers: Arc::clone(numbers) });
    Outlet { listener, visitors_max: ADMINS_MAX, page_of: Box::new(|_, _| None), door }
}

/// The control plane's own ring: probes, and the listeners of pages: of the metrics, and the admin
/// socket.
fn start_ring(
    board: &Arc<Board>,
    stop: &Arc<Stop>,
    listeners: Listeners,
    pages: AskPage,
) -> Result<Arc<Pulse>, String> {
    let (board, stop) = (Arc::clone(board), Arc::clone(stop));
    let (ready, started): (Sender<Result<(), String>>, Receiver<_>) = bounded(1);
    let pulse = Arc::<Pulse>::default();
    stop.calls(&pulse);
    let heard = Arc::clone(&pulse);
    let body = move || {
        let ring = Ring::build().map_err(|e| format!("no ring for the control plane: {e}"));
        let mut ring = match ring {
            Ok(ring) => ring,
            Err(error) => return drop(ready.send(Err(error))),
        };
        ring.block_on(async move {
            let patrol = match Patrol::start() {
                Ok(patrol) => patrol,
                Err(error) => return drop(ready.send(Err(error.to_string()))),
            };
            let probers = Probers::new(Arc::clone(&board));
            let load_readers = LoadReaders::new(Arc::clone(&board));
            let Listeners { metrics, admin, api, questions, numbers, renewed } = listeners;
            let metrics = metrics.map(|listener| metrics_outlet(listener, Arc::clone(&board)));
            let api = api.zip(questions.clone());
            let api = api.map(|api| api_outlet(api, &numbers, &board));
            for outlet in metrics.into_iter().chain(api) {
                crate::rt::spawn(page::serve(outlet, Rc::clone(&patrol), pages.clone()));
            }
            let (mut door, mut admin) = (Door::new(questions, numbers), admin);
            let _ = ready.send(Ok(()));
            // Draining is when an operator wants to see the page: it ends with the process.
            while stop.phase() != Phase::Ending {
                if stop.is_succeeded() {
                    // Whoever asks means the process in our place, which has the same listeners.
                    patrol.part();
                }
                probers.look();
                load_readers.look();
                for listener in admin.take().into_iter().chain(renewed.try_iter()) {
                    door.serve(listener, &patrol, &pages);
                }
                patrol.next_sweep(true, pulse.sleep()).await;
            }
        });
    };
    std::thread::Builder::new().name("control".into()).spawn(body).map_err(thread_error)?;
    started.recv().unwrap_or_else(|_| Err("the control plane did not start".into()))?;
    Ok(heard)
}

fn metrics_outlet(listener: OwnedFd, board: Arc<Board>) -> Outlet {
    let page_of = move |path: &[u8], _: &[u8]| {
        let view = board.view();
        let wanted = view.plan.metrics.as_ref().map(|page| page.path.as_bytes());
        (wanted == Some(path)).then_some(Page::Metrics)
    };
    Outlet { listener, visitors_max: SCRAPERS_MAX, page_of: Box::new(page_of), door: None }
}

impl Control {
    /// Ends the control plane after the workers are done: what is queued is delivered and written.
    pub fn finish(mut self) {
        drop(self.admin);
        self.span_exporter.iter_mut().for_each(SpanExporter::stop);
        if let Some(writer) = self.access_writer {
            writer.finish();
        }
        if let Some(delivery) = self.delivery {
            delivery.finish();
        }
        if let Some(exporter) = self.span_exporter {
            exporter.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a process that never ends because a reload takes for ever, and others wait behind
    /// it.
    #[test]
    fn the_end_does_not_wait_for_a_reload_without_limit() {
        let (began, begins) = bounded(1);
        let (go, going) = bounded::<()>(0);
        let (to_it, events) = events();
        let reload = move |_| {
            let _ = (began.send(()), going.recv());
        };
        let supervisor = Supervisor::run((to_it.clone(), events), reload).unwrap();
        Event::Reload(Cause::Signal).tell(&to_it);
        begins.recv().unwrap();
        (0..EVENTS_MAX).for_each(|_| Event::Reload(Cause::Signal).tell(&to_it));
        supervisor.stop(Duration::from_millis(20));
        drop(go);
    }

    #[test]
    fn a_supervisor_that_has_nothing_to_do_ends() {
        let (to_it, events) = events();
        let supervisor = Supervisor::run((to_it, events), |_| {}).unwrap();
        let running = supervisor.running.clone();
        supervisor.stop(Duration::from_secs(60));
        assert!(running.recv().is_err());
    }
}
