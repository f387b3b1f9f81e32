//! What a request has from the moment in which its head is there until it is settled.

use super::flight::FlightNotes;
use super::rules::Rules;
use super::shared::{Active, Shared};
use super::takings::Takings;
use super::view::WorkerView;
use crate::base::refusal::Refusal;
use crate::keys::facts::KeyFacts;
use crate::state::counters::shared::Counters;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// What a worker keeps for the requests that come next, of boxes that nobody needs. Beyond: they
/// go back to the system.
const SPARE_BOXES_MAX: usize = 1024;

/// Made once for each request, and consumed by `settle`. What the request holds is given back when
/// it is dropped.
pub struct Pass {
    /// What it shares with the other requests of its worker.
    pub w: Rc<Shared>,
    /// The configuration, and the backends, that the request goes by from its first to its last
    /// byte, whatever is configured meanwhile.
    pub view: Rc<WorkerView>,
    /// There until it is dropped.
    held: Option<Box<Holdings>>,
}

/// What a request holds. Apart from the pass, because what is kept there is kept in each
/// connection; the boxes are used again.
#[derive(Default)]
pub struct Holdings {
    active: Option<Active>,
    /// Whose request it is: what the providers that let it in know of its key, in their order.
    /// Empty where no key is asked for.
    keys: Vec<Arc<KeyFacts>>,
    /// What a provider knows of its key, that is not let in all the same.
    refused: Option<Arc<KeyFacts>>,
    /// What it has taken from limits.
    takings: Takings,
    /// What is noted of its way, for its story and its trace.
    notes: FlightNotes,
}

/// Boxes that requests gave back, for those to come.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "the boxes themselves are what is used again")]
pub struct SpareBoxes(RefCell<Vec<Box<Holdings>>>);

impl SpareBoxes {
    fn take(&self) -> Box<Holdings> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    fn give(&self, mut held: Box<Holdings>) {
        // Whatever is held is given back here. The list of keys stays, for its room.
        let mut keys = std::mem::take(&mut held.keys);
        keys.clear();
        *held = Holdings { keys, ..Holdings::default() };
        let mut spare = self.0.borrow_mut();
        if spare.len() < SPARE_BOXES_MAX {
            spare.push(held);
        }
    }
}

impl Pass {
    /// Of a request that begins now, by the configuration that is in use now.
    pub fn new(w: &Rc<Shared>) -> Pass {
        w.upstreams.look_at_the_board();
        let mut held = w.spare_boxes.take();
        held.active = Some(w.enter_request());
        Pass { w: Rc::clone(w), view: w.view(), held: Some(held) }
    }

    /// The request is over for its client, though it is not settled: it is not active any more, and
    /// its place is free.
    pub fn end_for_client(&mut self) {
        if let Some(held) = &mut self.held {
            held.active = None;
            held.takings.leave();
        }
    }

    /// The limits of the configuration, whose request it is, and what it has taken; `None`: there
    /// are no limits.
    ///
    /// # Errors
    /// They cannot be counted.
    pub fn limits(&mut self) -> Result<Option<LimitsInUse<'_>>, Refusal> {
        let Some((rules, counters)) = self.view.limits()? else { return Ok(None) };
        let Some(Holdings { keys, takings, .. }) = self.held.as_deref_mut() else {
            return Ok(None);
        };
        Ok(Some(LimitsInUse { rules, counters, keys, takings }))
    }

    /// Whether it has to ask for what several gateways count together.
    pub fn has_to_ask(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.takings.has_to_ask())
    }

    /// What it has taken from limits.
    pub fn takings(&self) -> Option<&Takings> {
        self.held.as_ref().map(|held| &held.takings).filter(|takings| takings.is_any())
    }

    /// The same, to be settled.
    pub fn take_takings(&mut self) -> Takings {
        self.held.as_mut().map(|held| std::mem::take(&mut held.takings)).unwrap_or_default()
    }

    /// What is noted of its way.
    pub fn notes(&self) -> Option<&FlightNotes> {
        self.held.as_ref().map(|held| &held.notes)
    }

    /// A provider let the request in, which knows this of its key.
    pub fn add_key(&mut self, facts: Arc<KeyFacts>) {
        self.held.iter_mut().for_each(|held| held.keys.push(Arc::clone(&facts)));
    }

    /// What the providers that let the request in know of its key; empty where none is asked for.
    pub fn keys(&self) -> &[Arc<KeyFacts>] {
        self.held.as_ref().map_or(&[], |held| &held.keys)
    }

    /// It is not let in after all.
    pub fn forget_keys(&mut self) {
        self.held.iter_mut().for_each(|held| held.keys.clear());
    }

    /// A provider knows its key, and it is not let in all the same.
    pub fn note_refused(&mut self, facts: Arc<KeyFacts>) {
        self.held.iter_mut().for_each(|held| held.refused = Some(Arc::clone(&facts)));
    }

    /// Who showed the key, for the log: also of a request that was not let in.
    pub fn who(&self) -> &[Arc<KeyFacts>] {
        let refused = || self.held.as_ref().map_or(&[][..], |held| held.refused.as_slice());
        Some(self.keys()).filter(|keys| !keys.is_empty()).unwrap_or_else(refused)
    }

    /// What the first provider that let the request in knows of its key.
    pub fn identity(&self) -> Option<&KeyFacts> {
        self.keys().first().map(|facts| &**facts)
    }
}

/// Limits as a request meets them.
pub struct LimitsInUse<'a> {
    /// What they are.
    pub rules: &'a Rules,
    /// Where they are counted.
    pub counters: &'a Arc<Counters>,
    /// What is known of its key, by each provider that let it in; empty: it has none that was
    /// checked.
    pub keys: &'a [Arc<KeyFacts>],
    /// What the request has taken.
    pub takings: &'a mut Takings,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.held.take().into_iter().for_each(|held| self.w.spare_boxes.give(held));
    }
}
