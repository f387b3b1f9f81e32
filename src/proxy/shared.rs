//! What the connections of one worker share. Nothing here is shared with another worker but what
//! `state` holds.

use super::client::Client;
use super::drains::Drains;
use super::pass::SpareBoxes;
use super::retry_budget::RetryBudget;
use super::shelf::Shelf;
use super::slices::Slices;
use super::upstreams::Upstreams;
use super::view::WorkerView;
use crate::base::limits::MODEL_LIST_TIME;
use crate::rt;
use crate::rt::guard::guarded;
use crate::rt::patrol::Patrol;
use crate::rt::turns::Turns;
use crate::state::admin_desk::AdminDesk;
use crate::state::connections::Connections;
use crate::state::model_list::{AskModels, ModelList};
use crate::state::scrape::{AskPage, Page};
use crate::state::stop::{Phase, Stop};
use crate::usage::access::AccessQueue;
use crate::usage::flight::FlightLane;
use crate::usage::outbox::Outbox;
use crate::usage::spans::SpanQueue;
use crate::usage::unpacker::Unpacker;
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A metrics page that is not there in time is refused.
const PAGE_WAIT: Duration = Duration::from_secs(3);
/// And a list of models. The engines have less time than that.
const MODELS_WAIT: Duration = Duration::from_secs(5);
const _: () = assert!(MODELS_WAIT.as_secs() > MODEL_LIST_TIME.as_secs());

/// Of one worker.
pub struct Shared {
    /// Meters, ids, clock, log.
    pub shelf: Shelf,
    /// The configuration in use, and its backends.
    pub upstreams: Upstreams,
    /// Watches the clients.
    pub patrol: Rc<Patrol>,
    /// Request bodies that are being unpacked.
    pub unpacking: Turns,
    /// Request bodies that are being read.
    pub slices: Slices,
    /// Where usage records go.
    pub usage: Option<Outbox>,
    /// Where access records go.
    pub access: Option<AccessQueue>,
    /// Where spans go, if requests are traced.
    pub spans: Option<SpanQueue>,
    /// Where stories of requests are kept, if any are.
    pub flight: Option<Arc<FlightLane>>,
    /// Where copies of packed answers go.
    pub unpacker: Unpacker,
    /// Answers that are not done with though their clients are.
    pub drains: Rc<Drains>,
    /// Client connections of all workers together, and how many there may be.
    pub connections: Arc<Connections>,
    /// How many requests may be sent once more.
    pub retries: RetryBudget,
    /// How the process ends.
    pub stop: Arc<Stop>,
    /// Where the metrics page is asked for.
    pub pages: AskPage,
    /// Where the admin API is asked, if it is on the listeners of the clients.
    pub admin_desk: Option<AdminDesk>,
    /// Where the list of models is asked for.
    pub models: AskModels,
    /// Connections that are open.
    pub live: Cell<usize>,
    /// What requests that are over held their things in.
    pub spare_boxes: SpareBoxes,
    /// Requests that are active.
    pub active: Rc<Cell<usize>>,
}

impl Shared {
    /// The configuration in use now.
    pub fn view(&self) -> Rc<WorkerView> {
        self.upstreams.view()
    }

    /// Runs a task of which a panic ends nothing but itself.
    pub fn spawn_guarded(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let w = Rc::clone(self);
        rt::spawn(async move {
            if !guarded(task).await {
                w.shelf.meters.borrow_mut().panics += 1;
                tracing::error!("a connection panicked and was closed; please report this");
            }
        });
    }

    /// False from the first signal on: whoever sends us clients should stop. Not so where another
    /// process has our place: who asks over a connection that it had before means that place.
    pub fn is_staying(&self) -> bool {
        self.stop.phase() == Phase::Running || self.stop.is_succeeded()
    }

    /// Nine tenths of the connections or more are in use: answers close their connections.
    pub fn is_crowded(&self) -> bool {
        self.connections.are_crowded()
    }

    /// The rendered metrics page, made by the control plane.
    pub async fn metrics_page(&self, client: &Client) -> Option<Arc<[u8]>> {
        let page = self.pages.ask(Page::Metrics)?;
        client.post.arm(PAGE_WAIT);
        client.post.within(page).await.ok()?.ok()
    }

    /// The models of all backends, as the control plane knows them; `None`: of no backend any.
    pub async fn model_list(&self, client: &Client) -> Option<Arc<ModelList>> {
        let list = self.models.ask(())?;
        client.post.arm(MODELS_WAIT);
        client.post.within(list).await.ok()?.ok()?
    }

    /// Counts a request as active until the guard is dropped.
    pub fn enter_request(&self) -> Active {
        self.active.set(self.active.get() + 1);
        Active(Rc::clone(&self.active))
    }

    /// Counts a connection until the guard is dropped.
    pub fn enter_live(self: &Rc<Self>) -> Live {
        self.live.set(self.live.get() + 1);
        self.connections.enter();
        Live(Rc::clone(self))
    }
}

/// Counts a request for as long as it is active.
pub struct Active(Rc<Cell<usize>>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Counts a connection for as long as it lives.
pub struct Live(Rc<Shared>);

impl Live {
    /// What it shares with others.
    pub fn shared(&self) -> &Rc<Shared> {
        &self.0
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get().saturating_sub(1));
        self.0.connections.leave();
    }
}
