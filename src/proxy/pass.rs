//! What a request has from the moment in which its head is there until it is settled.

use super::shared::{Active, Shared};
use super::view::WorkerView;
use std::rc::Rc;

/// Made once for each request, and consumed by `settle`.
pub struct Pass {
    /// What it shares with the other requests of its worker.
    pub w: Rc<Shared>,
    /// The configuration, and the backends, that the request goes by from its first to its last
    /// byte, whatever is configured meanwhile.
    pub view: Rc<WorkerView>,
    active: Option<Active>,
}

impl Pass {
    /// Of a request that begins now, by the configuration that is in use now.
    pub fn new(w: &Rc<Shared>) -> Pass {
        w.upstreams.look_at_the_board();
        Pass { w: Rc::clone(w), view: w.view(), active: Some(w.enter_request()) }
    }

    /// The request is over for its client, though it is not settled: it is not active any more.
    pub fn end_for_client(&mut self) {
        self.active = None;
    }
}
