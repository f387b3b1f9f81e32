//! One worker: a thread on a CPU of its own, a ring, a listener, and all that its connections
//! share. Nothing here is shared with another worker but what `state` holds.

use super::drains::Drains;
use super::ledger::Ledger;
use super::repute;
use super::slices::Slices;
use super::sparing::Sparing;
use super::turns::Turns;
use super::upstream::pool::LocalMember;
use super::view::WorkerView;
use crate::base::clock::unix_ms;
use crate::base::id::{RequestId, RequestIds};
use crate::base::limits::UNPACKING_MAX;
use crate::rt;
use crate::rt::budget::Budget;
use crate::rt::buffer::Buffer;
use crate::rt::guard::guarded;
use crate::rt::listen::accept_loop;
use crate::rt::patrol::Patrol;
use crate::rt::ring::Ring;
use crate::state::board::Board;
use crate::state::connections::Connections;
use crate::state::meters::Meters;
use crate::state::pulse::Pulse;
use crate::state::scrape::{Mailbox, PageRequest};
use crate::state::stop::{Phase, Stop};
use crate::usage::access::AccessQueue;
use crate::usage::outbox::Outbox;
use crate::usage::unpacker::Unpacker;
use crossbeam_channel::Sender;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod counting;
mod taking;

pub use counting::Active;
pub use taking::Live;

/// After the drain deadline, connections get so long to settle before the worker leaves them.
const END_GRACE: Duration = Duration::from_secs(2);

/// What a worker is started with.
pub struct Start {
    /// Number of the worker, from 0.
    pub index: usize,
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Where the configuration in use hangs.
    pub board: Arc<Board>,
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
    /// Number of the worker, from 0.
    index: usize,
    board: Arc<Board>,
    /// The configuration in use, for requests that begin now.
    view: RefCell<Rc<WorkerView>>,
    /// Backends that are not in it any more, and that requests of this worker may still use.
    leaving: RefCell<Vec<Rc<LocalMember>>>,
    /// Watches the clients.
    pub patrol: Rc<Patrol>,
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
        index: start.index,
        view: RefCell::new(Rc::new(WorkerView::new(start.board.view(), &[], start.index))),
        leaving: RefCell::default(),
        board: start.board,
        unpacking: Turns::new(UNPACKING_MAX),
        slices: Slices::default(),
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

impl Worker {
    /// The coarse clock of the worker: deadlines, idle connections, scrapes, the end.
    async fn keep_house(&self, mailbox: &Mailbox) -> bool {
        let mut ending: Option<Instant> = None;
        loop {
            self.patrol.next_sweep(self.may_rest(), self.pulse.sleep()).await;
            self.look_at_the_clock();
            self.pulse.beat();
            self.look_at_the_board();
            let view = self.view();
            repute::see_departures(&view, |backend| self.patrol.call_off(backend.number()));
            self.patrol.set_crowded(self.connections.are_crowded() || Buffer::are_scarce());
            Buffer::sweep();
            self.sparing.borrow_mut().sweep(Instant::now());
            self.usage.iter().for_each(Ledger::sweep);
            let idled: u64 = view.members.iter().map(|m| m.sweep(self.patrol.now())).sum();
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
            view.members.iter().for_each(|member| member.clear());
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
            && self.idle_upstream() == 0
            && self.leaving.borrow().is_empty()
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

    /// The configuration in use now.
    pub fn view(&self) -> Rc<WorkerView> {
        Rc::clone(&self.view.borrow())
    }

    /// Takes in a new view, if there is one, and lets go of backends that it does not have.
    fn look_at_the_board(&self) {
        let old = self.view();
        if !self.board.shows(&old.shared) {
            self.take_view(&old);
        }
        if !self.leaving.borrow().is_empty() {
            self.let_go();
        }
    }

    fn take_view(&self, old: &Rc<WorkerView>) {
        let mut leaving = self.leaving.borrow_mut();
        let known: Vec<_> = old.members.iter().chain(leaving.iter()).cloned().collect();
        let new = WorkerView::new(self.board.view(), &known, self.index);
        new.members.iter().for_each(|member| member.revive());
        let is_gone = |old: &Rc<LocalMember>| new.member(old.id()).is_none();
        leaving.retain(is_gone);
        leaving.extend(old.members.iter().filter(|old| is_gone(old)).cloned());
        leaving.iter().for_each(|gone| gone.retire());
        self.view.replace(Rc::new(new));
    }

    /// What was counted of a backend that is gone is forgotten when the last request there is over,
    /// or goes on under its name.
    fn let_go(&self) {
        let view = self.view();
        self.leaving.borrow_mut().retain(|gone| {
            let is_used = LocalMember::is_used_beside(gone);
            if !is_used {
                let heir = view.members.iter().find(|member| member.name == gone.name);
                self.meters.borrow_mut().hand_over(gone.id(), heir.map(|member| member.id()));
            }
            is_used
        });
    }

    /// Idle connections to backends.
    fn idle_upstream(&self) -> usize {
        self.view.borrow().members.iter().map(|member| member.idle()).sum()
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

    /// False from the first signal on: whoever sends us clients should stop.
    pub fn is_staying(&self) -> bool {
        self.stop.phase() == Phase::Running
    }

    /// Nine tenths of the connections or more are in use: answers close their connections.
    pub fn is_crowded(&self) -> bool {
        self.connections.are_crowded()
    }
}
