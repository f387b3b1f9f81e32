//! One worker: a thread on a CPU of its own, a ring, listeners. It takes clients in and sees to
//! what is due; what its connections share is [`Shared`].

use super::pass::SpareBoxes;
use super::retry_budget::RetryBudget;
use super::shared::Shared;
use super::shelf::Shelf;
use super::slices::Slices;
use super::upstreams::Upstreams;
use crate::base::limits::UNPACKING_MAX;
use crate::config::plan::ListenerSpeech;
use crate::rt;
use crate::rt::budget::Budget;
use crate::rt::buffer::Buffer;
use crate::rt::listen::accept_loop;
use crate::rt::patrol::Patrol;
use crate::rt::pipe::Pipe;
use crate::rt::ring::Ring;
use crate::rt::turns::Turns;
use crate::state::admin_desk::AdminDesk;
use crate::state::board::Board;
use crate::state::connections::Connections;
use crate::state::meters::{Gauges, Meters};
use crate::state::model_list::AskModels;
use crate::state::pulse::Pulse;
use crate::state::scrape::{AskPage, Mailbox};
use crate::state::stop::{Phase, Stop};
use crate::usage::access::AccessQueue;
use crate::usage::flight::FlightLane;
use crate::usage::outbox::Outbox;
use crate::usage::spans::SpanQueue;
use crate::usage::unpacker::Unpacker;
use crossbeam_channel::Sender;
use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod taking;

/// After the drain deadline, connections get so long to settle before the worker leaves them.
const END_GRACE: Duration = Duration::from_secs(2);

/// What a worker is started with.
pub struct WorkerStart {
    /// Number of the worker, from 0.
    pub index: usize,
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Where the configuration in use hangs.
    pub board: Arc<Board>,
    /// Its own listeners: one for each place, and what clients speak there.
    pub listeners: Vec<(OwnedFd, ListenerSpeech)>,
    /// Client connections of all workers together, and how many there may be.
    pub connections: Arc<Connections>,
    /// When to end.
    pub stop: Arc<Stop>,
    /// Requests for a copy of its meters.
    pub mailbox: Mailbox,
    /// Where the metrics page is asked for.
    pub pages: AskPage,
    /// Where the admin API is asked, if it is on the listeners of the clients.
    pub admin_desk: Option<AdminDesk>,
    /// Where the list of models is asked for.
    pub models: AskModels,
    /// Beats with each sweep; a watchdog looks at it, and whoever wants something calls by it.
    pub pulse: Arc<Pulse>,
    /// What the buffers of all workers may hold together.
    pub budget: Arc<Budget>,
    /// Where usage records go.
    pub usage: Option<Outbox>,
    /// Where access records go.
    pub access: Option<AccessQueue>,
    /// Where spans go, if requests are traced.
    pub spans: Option<SpanQueue>,
    /// Where its stories of requests are kept, if any are.
    pub flight: Option<Arc<FlightLane>>,
    /// Where copies of packed answers go.
    pub unpacker: Unpacker,
    /// Random; makes request ids unique.
    pub seed: u64,
    /// Told the driver's name once the worker serves.
    pub ready: Sender<io::Result<&'static str>>,
}

/// A worker that serves.
struct Worker {
    shared: Rc<Shared>,
    pulse: Arc<Pulse>,
}

/// Runs a worker on the current thread until it has drained. True when every connection ended by
/// itself, false when some were cut.
pub fn run(start: WorkerStart) -> bool {
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

async fn serve(start: WorkerStart, driver: &'static str) -> bool {
    let patrol = match Patrol::start() {
        Ok(patrol) => patrol,
        Err(error) => {
            let _ = start.ready.send(Err(error));
            return false;
        }
    };
    let WorkerStart { listeners, mailbox, ready, .. } = start;
    let workers = start.board.view().plan.server.workers;
    let shared = Rc::new(Shared {
        shelf: Shelf::new(start.seed),
        upstreams: Upstreams::new(start.board, start.index),
        patrol,
        unpacking: Turns::new(UNPACKING_MAX),
        slices: Slices::default(),
        usage: start.usage,
        access: start.access,
        spans: start.spans,
        flight: start.flight,
        unpacker: start.unpacker,
        drains: Rc::default(),
        connections: start.connections,
        retries: RetryBudget::new(workers, Instant::now()),
        stop: start.stop,
        pages: start.pages,
        admin_desk: start.admin_desk,
        models: start.models,
        live: Cell::new(0),
        spare_boxes: SpareBoxes::default(),
        active: Rc::default(),
    });
    let w = Rc::new(Worker { shared, pulse: start.pulse });
    for (listener, speech) in listeners {
        let accepting = Rc::clone(&w);
        rt::spawn(async move {
            accept_loop(listener, &accepting.shared.patrol, |arrival| {
                accepting.arrive(arrival, speech);
            })
            .await;
        });
    }
    let _ = ready.send(Ok(driver));
    w.keep_house(&mailbox).await
}

impl Worker {
    /// The coarse clock of the worker: deadlines, idle connections, scrapes, the end.
    async fn keep_house(&self, mailbox: &Mailbox) -> bool {
        let w = &*self.shared;
        let mut ending: Option<Instant> = None;
        loop {
            w.patrol.next_sweep(self.may_rest(), self.pulse.sleep()).await;
            self.pulse.wake_up();
            self.pulse.beat();
            self.sweep();
            mailbox.answer(|| Box::new(self.copy_meters()));
            let was_parting = w.patrol.is_parting();
            match w.stop.phase() {
                Phase::Running | Phase::Leaving => continue,
                Phase::Succeeded => w.patrol.part(),
                Phase::Draining => w.patrol.drain(),
                Phase::Ending => {
                    w.patrol.drain();
                    w.patrol.end_all();
                    ending.get_or_insert_with(Instant::now);
                }
            }
            w.upstreams.clear();
            let out_of_time = ending.is_some_and(|since| since.elapsed() > END_GRACE);
            // One more tick after that began: the accept loop empties the kernel's queue.
            if (self.is_vacant() && was_parting) || out_of_time {
                w.shelf.finish();
                mailbox.leave(Box::new(self.copy_meters()));
                self.pulse.finish();
                return ending.is_none();
            }
        }
    }

    /// What is to be seen to at each tick.
    fn sweep(&self) {
        let w = &*self.shared;
        w.shelf.look_at_the_clock();
        w.upstreams.look_at_the_board();
        w.upstreams.let_go(&w.shelf.meters);
        w.upstreams.see_departures(&w.patrol);
        w.patrol.set_crowded(w.connections.are_crowded() || Buffer::are_scarce());
        Buffer::sweep();
        w.shelf.sweep();
        let idled = w.upstreams.sweep(w.patrol.now());
        w.shelf.meters.borrow_mut().idle_closed[1] += idled;
    }

    /// True when nothing is left that a sweep would have to see to: the worker may sleep, without
    /// a timer, until a client comes or somebody calls.
    fn may_rest(&self) -> bool {
        let w = &*self.shared;
        self.is_vacant()
            && w.upstreams.is_settled()
            && Buffer::is_settled()
            && w.shelf.is_settled()
            && matches!(w.stop.phase(), Phase::Running | Phase::Leaving)
    }

    /// True when it has no client, and reads no engine for one that has left.
    fn is_vacant(&self) -> bool {
        self.shared.live.get() == 0 && self.shared.drains.count() == 0
    }

    /// What was counted, with what is counted elsewhere and the gauges, as it is now.
    fn copy_meters(&self) -> Meters {
        let w = &*self.shared;
        let (buffers_in_use, buffers_idle) = Buffer::counts();
        let mut copy = w.shelf.meters.borrow().clone();
        let [silent, idle, head] = w.patrol.crowded_closed();
        copy.crowded_closed = [silent, idle, head, copy.crowded_closed[3]];
        match w.patrol.pipelined_too_much() {
            0 => {}
            n => drop(copy.rejected.insert("pipelined_too_much", n)),
        }
        copy.bodies_waited = [w.slices.turns.waited(), w.unpacking.waited()];
        copy.spilled = w.upstreams.spilled();
        copy.picked = w.upstreams.picked();
        copy.affinity = w.view().affinity();
        copy.large_denied = [Buffer::large_denied(), Pipe::denied()];
        copy.gauges = Gauges {
            connections_open: w.live.get() as u64,
            drains: w.drains.count() as u64,
            requests_active: w.active.get() as u64,
            buffers_in_use: buffers_in_use as u64,
            buffers_idle: buffers_idle as u64,
            upstream_idle: w.upstreams.idle() as u64,
        };
        copy
    }
}
