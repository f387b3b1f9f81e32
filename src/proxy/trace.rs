//! Where a request stands in a trace: read from its head, told to the engine, and kept for the span
//! that is made of it when it is settled. Where traces are off nothing of this exists, and what a
//! client says of its trace goes on as it came.

use super::receive::Request;
use super::shared::Shared;
use super::view::WorkerView;
use crate::base::span_id::is_in_share;
use crate::http::head::Field;
use crate::http::traceparent::TraceParent;
use crate::http::write::TraceField;

/// Of a request that is traced.
pub struct TraceNotes {
    /// Our span, which is the parent of the engine's.
    pub ours: TraceParent,
    /// The client's span; `None`: the trace begins here.
    pub parent: Option<TraceParent>,
}

impl TraceNotes {
    /// What the engine is told.
    pub fn field(&self) -> TraceField {
        TraceField { value: self.ours.value(), is_new: self.parent.is_none() }
    }
}

/// Decides whether a request is traced: as its client did, or else whether its trace is one of the
/// share of all that is wanted.
pub fn begin(w: &Shared, view: &WorkerView, bytes: &[u8], request: &mut Request) {
    let (Some(plan), Some(_)) = (&view.plan.tracing, &w.spans) else { return };
    let mut ids = w.shelf.span_ids.borrow_mut();
    let parent = parent_of(&request.head.fields, bytes);
    let ours = match parent {
        Some(parent) if parent.is_sampled() => parent.with_span(ids.span_id()),
        Some(_) => return,
        None => {
            let trace_id = ids.trace_id();
            if !is_in_share(&trace_id, plan.sample_ratio) {
                return;
            }
            TraceParent::root(trace_id, ids.span_id())
        }
    };
    let notes = TraceNotes { ours, parent };
    request.presented.get_or_insert_default().trace = Some(Box::new(notes));
}

/// The client's span, if it names exactly one (Trace Context, sections 3.2.2 and 4.3).
fn parent_of(fields: &[Field], bytes: &[u8]) -> Option<TraceParent> {
    let is_one =
        |field: &&Field| !field.stays && field.name.of(bytes).eq_ignore_ascii_case(b"traceparent");
    let mut all = fields.iter().filter(is_one);
    match (all.next(), all.next()) {
        (Some(one), None) => TraceParent::parse(one.value.of(bytes)),
        _ => None,
    }
}
