//! One worker: a thread on a CPU of its own, a ring, a listener, and all that its connections
//! share. Nothing here is shared with another worker but what `state` holds.

use super::admit::path::Kind;
use super::answer::{write_refusal, Frame};
use super::connection;
use super::drains::Drains;
use super::ledger::Ledger;
use super::repute::{self, Departures};
use super::route::round_robin::RoundRobin;
use super::slices::Slices;
use super::sparing::Sparing;
use super::turns::Turns;
use super::upstream::pool::{Pool, PoolLimits};
use crate::base::clock::unix_ms;
use crate::base::fault::Fault;
use crate::base::id::{RequestId, RequestIds};
use crate::base::limits::UNPACKING_MAX;
use crate::base::refusal::Refusal;
use crate::config::plan::{Backend, KeyForm, Plan};
use crate::http::head::Version;
use crate::proxy::client::Client;
use crate::rt;
use crate::rt::budget::Budget;
use crate::rt::buffer::Buffer;
use crate::rt::guard::guarded;
use crate::rt::listen::{accept_loop, Arrival};
use crate::rt::patrol::{Patrol, Post, Rank, TICK};
use crate::rt::pipe::Pipe;
use crate::rt::ring::Ring;
use crate::rt::socket::Socket;
use crate::state::connections::Connections;
use crate::state::fleet::Fleet;
use crate::state::meters::{BackendIndex, Gauges, Meters, Phase as AbortPhase};
use crate::state::pulse::{Look, Pulse};
use crate::state::scrape::{Mailbox, PageRequest};
use crate::state::stop::{Phase, Stop};
use crate::usage::access::AccessQueue;
use crate::usage::outbox::Outbox;
use crate::usage::unpacker::Unpacker;
use crossbeam_channel::Sender;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After the drain deadline, connections get so long to settle before the worker leaves them.
const END_GRACE: Duration = Duration::from_secs(2);
/// A metrics page that is not there in time is refused.
const PAGE_WAIT: Duration = Duration::from_secs(3);

/// What a worker is started with.
pub struct Start {
    /// Number of the worker, from 0.
    pub index: usize,
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// The plan.
    pub plan: Arc<Plan>,
    /// The backends.
    pub fleet: Arc<Fleet>,
    /// Its own listeners: one for each address.
    pub listeners: Vec<OwnedFd>,
    /// Client connections of all workers together, and how many there may be.
    pub connections: Arc<Connections>,
    /// When to end.
    pub stop: Arc<Stop>,
    /// Requests for a copy of its meters.
    pub mailbox: Mailbox,
    /// Requests for the metrics page.
    pub pages: Sender<PageRequest>,
    /// Beats with each sweep; a watchdog looks at it, and whoever wants something calls by it.
    pub pulse: Arc<Pulse>,
    /// What the buffers of all workers may hold together.
    pub budget: Arc<Budget>,
    /// Where usage records go.
    pub usage: Option<Outbox>,
    /// Where access records go.
    pub access: Option<AccessQueue>,
    /// Where copies of packed answers go.
    pub unpacker: Unpacker,
    /// Random; makes request ids unique.
    pub seed: u64,
    /// Told the driver's name once the worker serves.
    pub ready: Sender<io::Result<&'static str>>,
}

/// What the connections of a worker share.
pub struct Worker {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The backends.
    pub fleet: Arc<Fleet>,
    /// Watches the clients.
    pub patrol: Rc<Patrol>,
    /// Kept connections to backends.
    pub pool: Pool,
    /// Who is next.
    pub balancer: RefCell<RoundRobin>,
    /// Request bodies that are being unpacked.
    pub unpacking: Turns,
    /// Request bodies that are being read.
    pub slices: Slices,
    /// What was counted.
    pub meters: RefCell<Meters>,
    /// Where usage records go.
    pub usage: Option<Ledger>,
    /// Where access records go.
    pub access: Option<AccessQueue>,
    /// Where copies of packed answers go.
    pub unpacker: Unpacker,
    /// Answers that are not done with though their clients are.
    pub drains: Drains,
    sparing: RefCell<Sparing>,
    departures: Departures,
    ids: RefCell<RequestIds>,
    live: Cell<usize>,
    active: Cell<usize>,
    /// The same moment by both clocks.
    wall: Cell<(Instant, u64)>,
    /// Client connections of all workers together, and how many there may be.
    pub connections: Arc<Connections>,
    stop: Arc<Stop>,
    pulse: Arc<Pulse>,
    pages: Sender<PageRequest>,
    backend_names: Vec<Arc<str>>,
    backend_urls: Vec<Arc<str>>,
    /// Models with a label of their own.
    models: HashMap<String, u32>,
    credential_fields: Vec<String>,
    /// How records keep the clients' keys.
    pub key_form: KeyForm,
}

/// Runs a worker on the current thread until it has drained. True when every connection ended by
/// itself, false when some were cut.
pub fn run(start: Start) -> bool {
    if let Some(id) = start.cpu {
        if !core_affinity::set_for_current(core_affinity::CoreId { id }) {
            tracing::warn!(worker = start.index, cpu = id, "could not pin the worker to its CPU");
        }
    }
    Buffer::count_against(&start.budget);
    // The ring is built on the pinned thread: it belongs to it.
    let mut ring = match Ring::build() {
        Ok(ring) => ring,
        Err(error) => {
            let _ = start.ready.send(Err(error));
            return false;
        }
    };
    let driver = ring.driver();
    ring.block_on(serve(start, driver))
}

async fn serve(start: Start, driver: &'static str) -> bool {
    let patrol = match Patrol::start() {
        Ok(patrol) => patrol,
        Err(error) => {
            let _ = start.ready.send(Err(error));
            return false;
        }
    };
    let Start { listeners, mailbox, ready, .. } = start;
    let w = Rc::new(Worker {
        pool: Pool::new(Arc::clone(&start.fleet), pool_limits(&start.plan)),
        unpacking: Turns::new(UNPACKING_MAX),
        slices: Slices::default(),
        balancer: RefCell::new(RoundRobin::new(
            &start.plan.backends.iter().map(|b| b.weight).collect::<Vec<_>>(),
            start.index,
        )),
        models: start.plan.labelled_models().into_iter().zip(0..).collect(),
        key_form: start.plan.usage.kept_key_form(),
        backend_names: start.plan.backends.iter().map(|b| b.name.as_str().into()).collect(),
        backend_urls: start.plan.backends.iter().map(|b| b.url.as_str().into()).collect(),
        plan: start.plan,
        departures: Departures::new(&start.fleet),
        fleet: start.fleet,
        patrol,
        meters: RefCell::default(),
        usage: start.usage.map(Ledger::new),
        access: start.access,
        unpacker: start.unpacker,
        drains: Drains::default(),
        sparing: RefCell::default(),
        ids: RefCell::new(RequestIds::new(start.seed)),
        live: Cell::new(0),
        active: Cell::new(0),
        wall: Cell::new((Instant::now(), unix_ms())),
        connections: start.connections,
        stop: start.stop,
        pulse: start.pulse,
        pages: start.pages,
        // Whether or not keys are checked here: what looks like a key of ours is not for engines.
        credential_fields: vec!["authorization".into(), "x-api-key".into()],
    });
    for listener in listeners {
        let accepting = Rc::clone(&w);
        rt::spawn(async move {
            accept_loop(listener, &accepting.patrol, |arrival| accepting.arrive(arrival)).await;
        });
    }
    let ushering = Rc::clone(&w);
    rt::spawn(async move {
        if let Some(ledger) = &ushering.usage {
            ledger.usher().await;
        }
    });
    let _ = ready.send(Ok(driver));
    w.keep_house(&mailbox).await
}

fn pool_limits(plan: &Plan) -> Vec<PoolLimits> {
    let limits = |backend: &Backend| PoolLimits {
        name: backend.name.clone(),
        idle_ticks: (backend.keepalive_timeout.as_millis() / TICK.as_millis()) as u32,
        count: backend.max_idle_conns,
    };
    plan.backends.iter().map(limits).collect()
}

impl Worker {
    /// The coarse clock of the worker: deadlines, idle connections, scrapes, the end.
    async fn keep_house(&self, mailbox: &Mailbox) -> bool {
        let mut ending: Option<Instant> = None;
        loop {
            self.patrol.next_sweep(self.may_rest(), self.pulse.sleep()).await;
            self.look_at_the_clock();
            self.pulse.beat();
            self.departures.see(&self.fleet, |backend| self.patrol.call_off(backend));
            self.patrol.set_crowded(self.connections.are_crowded() || Buffer::are_scarce());
            Buffer::sweep();
            self.sparing.borrow_mut().sweep(Instant::now());
            self.usage.iter().for_each(Ledger::sweep);
            let idled = self.pool.sweep(self.patrol.now());
            self.meters.borrow_mut().idle_closed[1] += idled;
            mailbox.answer(|| Box::new(self.copy_meters()));
            let was_draining = self.patrol.is_draining();
            match self.stop.phase() {
                Phase::Running | Phase::Leaving => continue,
                Phase::Draining => self.patrol.drain(),
                Phase::Ending => {
                    self.patrol.drain();
                    self.patrol.end_all();
                    ending.get_or_insert_with(Instant::now);
                }
            }
            self.pool.clear();
            let out_of_time = ending.is_some_and(|since| since.elapsed() > END_GRACE);
            // One more tick after the drain began: the accept loop empties the kernel's queue.
            if (self.is_vacant() && was_draining) || out_of_time {
                self.usage.iter().for_each(Ledger::finish);
                self.sparing.borrow_mut().finish();
                mailbox.leave(Box::new(self.copy_meters()));
                self.pulse.finish();
                return ending.is_none();
            }
        }
    }

    /// True when nothing is left that a sweep would have to see to: the worker may sleep, without
    /// a timer, until a client comes or somebody calls.
    fn may_rest(&self) -> bool {
        self.is_vacant()
            && self.pool.is_empty()
            && Buffer::is_settled()
            && self.sparing.borrow().is_settled()
            && self.usage.as_ref().is_none_or(Ledger::is_settled)
            && matches!(self.stop.phase(), Phase::Running | Phase::Leaving)
    }

    /// True when it has no client, and reads no engine for one that has left.
    fn is_vacant(&self) -> bool {
        self.live.get() == 0 && self.drains.count() == 0
    }

    fn look_at_the_clock(&self) {
        self.pulse.wake_up();
        self.wall.set((Instant::now(), unix_ms()));
    }

    fn arrive(self: &Rc<Self>, arrival: Arrival) {
        if matches!(self.pulse.look(), Look::Asleep(_)) {
            // What comes is measured by the clock, and from now on the watchdog expects us to beat.
            self.look_at_the_clock();
            self.departures.forget(&self.fleet);
        }
        match arrival {
            Arrival::Client(socket, peer) => self.take_in(socket, peer),
            Arrival::Exhausted => {
                self.meters.borrow_mut().accept_pauses += 1;
                if self.may_log("accept_paused") {
                    tracing::warn!("out of file descriptors or memory: accepting pauses");
                }
            }
        }
    }

    fn take_in(self: &Rc<Self>, socket: Socket, peer: IpAddr) {
        let (connections, patrol) = (&self.connections, &self.patrol);
        let ended = |rank| patrol.end_longest_waiting(rank);
        // Nobody knows yet what it wants: it takes the place of one that has not asked for an
        // engine either, or is a guest, until it asks for one.
        let has_room =
            connections.have_room() || connections.have_room_by_turns() && ended(Rank::Stranger);
        let may_stay = has_room
            || connections.have_room_for_guests()
            || connections.have_room_for_guests_by_turns() && ended(Rank::Guest);
        if !may_stay {
            let refusal = NO_ROOM.with_retry_after(1);
            let mut meters = self.meters.borrow_mut();
            meters.connections[1] += 1;
            *meters.rejected.entry(refusal.code).or_default() += 1;
            return turn_away(&socket, self.next_id(), &refusal);
        }
        self.meters.borrow_mut().connections[0] += 1;
        match connection::serve(self.enter_live(), socket, peer, !has_room) {
            // Boxed: an async block around a future by value would double it.
            Some(serving) => self.spawn_guarded(Box::pin(serving)),
            // Out of memory or epoll watches; the client sees a closed connection.
            None => self.meters.borrow_mut().connections[1] += 1,
        }
    }

    /// Finds a place for whoever asks for an engine. A guest takes that of another client, the one
    /// that has waited longest to ask; an error when all of this worker are being served. Our own
    /// pages are for guests too, and cost nobody a place: whoever looks after us must get an answer
    /// when everything is taken.
    pub fn find_place(&self, kind: Kind, post: &Post) -> Result<(), Refusal> {
        if kind != Kind::Forward {
            return Ok(());
        }
        let ended = |rank| self.patrol.end_longest_waiting(rank);
        if !post.is_guest()
            || self.connections.all_have_room()
            || ended(Rank::Stranger)
            || ended(Rank::Regular)
        {
            post.set_rank(Rank::Regular);
            return Ok(());
        }
        self.meters.borrow_mut().connections[1] += 1;
        Err(NO_ROOM.with_retry_after(1))
    }

    /// Runs a task of which a panic ends nothing but itself.
    pub fn spawn_guarded(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let w = Rc::clone(self);
        rt::spawn(async move {
            if !guarded(task).await {
                w.meters.borrow_mut().panics += 1;
                tracing::error!("a connection panicked and was closed; please report this");
            }
        });
    }

    /// True when a log line of this code may be written; else it is counted.
    pub fn may_log(&self, code: &'static str) -> bool {
        self.sparing.borrow_mut().may_log(code, Instant::now())
    }

    /// True for an id that [`Worker::next_id`] may have given.
    pub fn made_id(&self, id: &[u8]) -> bool {
        self.ids.borrow().made(id)
    }

    /// A new request id.
    pub fn next_id(&self) -> RequestId {
        self.ids.borrow_mut().next_id()
    }

    /// The plan of a backend.
    pub fn backend(&self, backend: u32) -> Option<&Backend> {
        self.plan.backends.get(backend as usize)
    }

    /// The index of a backend of the plan, which is a comparison of a few addresses.
    pub fn index_of(&self, backend: &Backend) -> BackendIndex {
        let at = self.plan.backends.iter().position(|one| std::ptr::eq(one, backend));
        at.map(|index| index as u32)
    }

    /// The name of a backend as records show it.
    pub fn backend_name(&self, backend: u32) -> Option<&Arc<str>> {
        self.backend_names.get(backend as usize)
    }

    /// The URL of a backend as records show it.
    pub fn backend_url(&self, backend: u32) -> Option<&Arc<str>> {
        self.backend_urls.get(backend as usize)
    }

    /// The label of a model, if it has one of its own.
    pub fn model_label(&self, model: &str) -> Option<u32> {
        self.models.get(model).copied()
    }

    /// Milliseconds since 1970 at an instant, by the wall clock as of the last sweep: it is not
    /// asked for each request.
    pub fn unix_ms(&self, at: Instant) -> u64 {
        let (then, unix_ms) = self.wall.get();
        let millis = |time: Duration| time.as_secs() * 1000 + u64::from(time.subsec_millis());
        match at.checked_duration_since(then) {
            Some(since) => unix_ms.saturating_add(millis(since)),
            None => unix_ms.saturating_sub(millis(then.saturating_duration_since(at))),
        }
    }

    /// Lower-case names of the client's fields that never reach a backend.
    pub fn credential_fields(&self) -> &[String] {
        match self.plan.server.forward_credentials {
            true => &[],
            false => &self.credential_fields,
        }
    }

    /// False from the first signal on: whoever sends us clients should stop.
    pub fn is_staying(&self) -> bool {
        self.stop.phase() == Phase::Running
    }

    /// Nine tenths of the connections or more are in use: answers close their connections.
    pub fn is_crowded(&self) -> bool {
        self.connections.are_crowded()
    }

    /// Counts a connection until the guard is dropped.
    pub fn enter_live(self: &Rc<Self>) -> Live {
        self.live.set(self.live.get() + 1);
        self.connections.enter();
        Live(Rc::clone(self))
    }

    /// Counts a request as active until the guard is dropped.
    pub fn enter_request(self: &Rc<Self>) -> Active {
        self.active.set(self.active.get() + 1);
        Active(Rc::clone(self))
    }

    /// Counts a fault, and holds it against the backend where it says something about that.
    pub fn count_fault(&self, backend: BackendIndex, fault: Fault) {
        repute::hear_fault(self, backend, fault);
        *self.meters.borrow_mut().faults.entry((backend, fault.code())).or_default() += 1;
    }

    /// A stream of a backend is seen to go on.
    pub fn note_alive(&self, backend: BackendIndex) {
        let member = backend.and_then(|backend| self.fleet.get(backend as usize));
        member.into_iter().for_each(|member| member.note_alive());
    }

    /// Counts a client that left.
    pub fn count_abort(&self, phase: AbortPhase) {
        *self.meters.borrow_mut().client_aborts.entry(phase).or_default() += 1;
    }

    /// The rendered metrics page, made by the control plane.
    pub async fn metrics_page(&self, client: &Client) -> Option<Vec<u8>> {
        let (reply, page) = futures_channel::oneshot::channel();
        self.pages.try_send(reply).ok()?;
        client.post.arm(PAGE_WAIT);
        client.post.within(page).await.ok()?.ok()
    }

    fn copy_meters(&self) -> Meters {
        let (buffers_in_use, buffers_idle) = Buffer::counts();
        let mut copy = self.meters.borrow().clone();
        let [silent, idle, head] = self.patrol.crowded_closed();
        copy.crowded_closed = [silent, idle, head, copy.crowded_closed[3]];
        match self.patrol.pipelined_too_much() {
            0 => {}
            n => drop(copy.rejected.insert("pipelined_too_much", n)),
        }
        copy.bodies_waited = [self.slices.turns.waited(), self.unpacking.waited()];
        copy.large_denied = [Buffer::large_denied(), Pipe::denied()];
        copy.gauges = Gauges {
            connections_open: self.live.get() as u64,
            drains: self.drains.count() as u64,
            requests_active: self.active.get() as u64,
            buffers_in_use: buffers_in_use as u64,
            buffers_idle: buffers_idle as u64,
            upstream_idle: self.pool.len() as u64,
        };
        copy
    }
}

const NO_ROOM: Refusal =
    Refusal::closing(503, "overloaded", "The proxy has no room for a connection.");

/// One more client than there is room for hears so. What fits in the socket's buffer is enough.
fn turn_away(socket: &Socket, id: RequestId, refusal: &Refusal) {
    let mut bytes = Buffer::take();
    let frame =
        Frame { request_id: id.as_str(), version: Version::Http11, close: true, head_only: false };
    write_refusal(&mut bytes, &frame, refusal);
    let _ = socket.try_send(&[IoSlice::new(&bytes)]);
    // A close with unread bytes would be a reset, and the answer lost.
    let _ = socket.try_recv(&mut Buffer::take());
    socket.shutdown(std::net::Shutdown::Write);
}

/// Counts a connection for as long as it lives.
pub struct Live(Rc<Worker>);

impl Live {
    /// Whose connection it is.
    pub fn worker(&self) -> &Rc<Worker> {
        &self.0
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get().saturating_sub(1));
        self.0.connections.leave();
    }
}

/// Counts a request for as long as it is active.
pub struct Active(Rc<Worker>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
    }
}
