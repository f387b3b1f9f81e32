//! What a worker counts, and who asks it for that.

use super::Worker;
use crate::base::fault::Fault;
use crate::proxy::client::Client;
use crate::proxy::repute;
use crate::proxy::upstream::pool::LocalMember;
use crate::rt::buffer::Buffer;
use crate::rt::pipe::Pipe;
use crate::state::meters::{Gauges, Meters, Phase};
use std::rc::Rc;
use std::time::Duration;

/// A metrics page that is not there in time is refused.
const PAGE_WAIT: Duration = Duration::from_secs(3);

impl Worker {
    /// Counts a request as active until the guard is dropped.
    pub fn enter_request(self: &Rc<Self>) -> Active {
        self.active.set(self.active.get() + 1);
        Active(Rc::clone(self))
    }

    /// Counts a fault, and holds it against the backend where it says something about that.
    pub fn count_fault(&self, backend: Option<&LocalMember>, fault: Fault) {
        backend.into_iter().for_each(|backend| repute::hear_fault(backend, fault));
        let whose = backend.map(|backend| backend.id());
        *self.meters.borrow_mut().faults.entry((whose, fault.code())).or_default() += 1;
    }

    /// Counts a client that left.
    pub fn count_abort(&self, phase: Phase) {
        *self.meters.borrow_mut().client_aborts.entry(phase).or_default() += 1;
    }

    /// The rendered metrics page, made by the control plane.
    pub async fn metrics_page(&self, client: &Client) -> Option<Vec<u8>> {
        let (reply, page) = futures_channel::oneshot::channel();
        self.pages.try_send(reply).ok()?;
        client.post.arm(PAGE_WAIT);
        client.post.within(page).await.ok()?.ok()
    }

    /// All of it as it is now.
    pub(super) fn copy_meters(&self) -> Meters {
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
            upstream_idle: self.idle_upstream() as u64,
        };
        copy
    }
}

/// Counts a request for as long as it is active.
pub struct Active(Rc<Worker>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
    }
}
