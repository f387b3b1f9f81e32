//! What a request body says: all of it at once, or in slices.

use crate::base::panic_point;
use crate::base::refusal::Refusal;
use crate::keys::facts::KeyFacts;
use crate::llm::request::{BodyScan, RequestFacts, UsageSplice};
use crate::proxy::admit::body::Reading;
use crate::proxy::admit::model;
use crate::proxy::admit::path::OTHER;
use crate::proxy::client::Client;
use crate::proxy::pass::Pass;
use crate::proxy::receive::Request;
use crate::proxy::shared::Shared;
use crate::proxy::view::WorkerView;
use crate::state::board::View;
use std::ops::Range;
use std::sync::Arc;

/// Takes from the body what the way of the request depends on, if that can be done in one go, and
/// gives how many tokens it asks for at most; `None`: it is one for [`in_slices`].
pub(super) fn at_once(
    pass: &Pass,
    client: &Client,
    request: &mut Request,
) -> Option<Result<Option<u64>, Refusal>> {
    let (w, view) = (&*pass.w, &*pass.view.shared);
    if !w.slices.takes(w.patrol.now(), request.body(client.bytes()).len()) {
        return None;
    }
    // Empty since the reset; its capacity is used again.
    let mut model = std::mem::take(&mut request.model);
    let mut reading = reading(pass, client, request);
    let found = reading.step(usize::MAX)?.map(|facts| Found::of(&facts, &mut model));
    let prompt = reading.prompt().copied();
    request.model = model;
    let kept = found.and_then(|found| found.keep(request, (view, pass.keys())));
    if kept.is_ok() && pass.view.wants_lead() {
        pass.view.take_lead(request, client.bytes(), prompt.as_ref());
    }
    Some(kept)
}

/// The same of a large body, while others run.
pub(super) async fn in_slices(
    pass: &Pass,
    client: &Client,
    request: &mut Request,
) -> Result<Option<u64>, Refusal> {
    let (w, view) = (&*pass.w, &*pass.view.shared);
    client.post.arm(view.plan.server.body_timeout);
    let _turn = client.wait_for(w.slices.turns.take()).await?;
    let mut model = std::mem::take(&mut request.model);
    let mut reading = reading(pass, client, request);
    let found = loop {
        // First of all: others may have had this turn of the loop. Where nobody has, it is at once.
        client.pause().await?;
        panic_point::pass("slicing");
        if let Some(found) = reading.step(w.slices.next()) {
            break Found::of(&found?, &mut model);
        }
    };
    let prompt = reading.prompt().copied();
    request.model = model;
    let max_tokens = found.keep(request, (view, pass.keys()))?;
    if pass.view.wants_lead() {
        // A slice of its own. After it nothing waits until a backend is picked.
        client.pause().await?;
        pass.view.take_lead(request, client.bytes(), prompt.as_ref());
    }
    Ok(max_tokens)
}

/// Takes from a request anew what tells where it is better off, for another try: what was known of
/// it is not kept that long. Of a body that would have to be read in slices nothing is taken; nor
/// are more of them read in a tick than of those that come in: when a backend goes, all its
/// requests are here at once.
pub(super) fn once_more(w: &Shared, view: &WorkerView, client: &Client, request: &Request) {
    if view.has_lead(request) || !request.is_in_hand() {
        return;
    }
    let body = request.body(client.bytes());
    let mut scan = BodyScan::new(body).with_prompt();
    let is_read = view.wants_prompt() && w.slices.takes(w.patrol.now(), body.len());
    let prompt = if is_read && scan.step(usize::MAX).is_some() { scan.prompt() } else { None };
    view.take_lead(request, client.bytes(), prompt);
}

/// What is kept of the facts, but for the model.
struct Found {
    /// Where the model stands.
    model_span: Option<Range<usize>>,
    is_form: bool,
    generates: bool,
    stream: bool,
    wants_counts: bool,
    splice: Option<UsageSplice>,
    max_tokens: Option<u64>,
}

impl Found {
    fn of(facts: &RequestFacts<'_>, model: &mut String) -> Found {
        panic_point::pass("reading facts");
        model.push_str(facts.model.as_deref().unwrap_or_default());
        Found {
            model_span: facts.model_span.clone(),
            is_form: facts.is_form,
            generates: facts.generates,
            stream: facts.stream.unwrap_or(false),
            wants_counts: facts.continuous_usage,
            splice: facts.usage_splice,
            max_tokens: facts.max_tokens,
        }
    }

    /// Keeps it, and sees to the model: what it is called by the engines, and whether any has it.
    fn keep(
        self,
        request: &mut Request,
        (view, keys): (&View, &[Arc<KeyFacts>]),
    ) -> Result<Option<u64>, Refusal> {
        request.dialect = request.dialect.with_body(request.path.as_bytes(), self.generates);
        request.stream = self.stream;
        request.wants_counts = self.wants_counts;
        request.set_usage_splice(self.splice);
        if let (Some(alias), Some(span)) = (view.models.alias(&request.model), self.model_span) {
            let written = if self.is_form { &alias.served } else { &alias.json };
            request.rename_model(&alias.served, written.as_bytes(), span);
        }
        // Before it is known whether there is such a model: whoever may not use it need not know.
        let (asked, served) = (request.model.as_str(), request.served_model());
        let names_one = !asked.is_empty() || model::asks_one(request.head.method, &request.path);
        keys.iter().filter(|_| names_one).try_for_each(|key| model::allow(key, asked, served))?;
        model::check(view, asked, served)?;
        Ok(self.max_tokens)
    }
}

fn reading<'a>(pass: &Pass, client: &'a Client, request: &'a Request) -> Reading<'a> {
    let (view, bytes) = (&pass.view, client.bytes());
    // What the path alone says, until the body was read.
    let dialect = request.dialect.with_body(request.path.as_bytes(), false);
    let is_known = request.path_label != OTHER;
    let is_limited = pass.keys().iter().any(|key| !key.allowed_models.is_empty());
    let is_ruled = is_limited || view.shared.models.is_ruled();
    let body = request.body(bytes);
    let reading = Reading::new(&request.head, bytes, body, (dialect, is_known, is_ruled));
    if view.wants_prompt() {
        return reading.with_prompt();
    }
    reading
}
