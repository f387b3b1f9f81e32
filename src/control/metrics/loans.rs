//! Limits that several gateways hold together.

use super::{labelled, one, Facts, Page, SECOND};
use crate::state::loans::LoanNumbers;
use std::fmt;
use std::sync::atomic::Ordering;

/// Upper bounds of the buckets, in seconds.
const BOUNDS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

impl Facts {
    pub(super) fn shared_limits(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(shared) = &self.view.shared_limits else { return Ok(()) };
        let (book, numbers) = (&shared.book, &shared.book.numbers);
        let help = "1 while limits are held together with other gateways; 0 while their server \
                    does not answer.";
        page.gauge("llmproxy_shared_limits_up", help, one(book.is_up().into()))?;
        let turned_away = shared.ask.turned_away().load(Ordering::Relaxed);
        let counts = LoanNumbers::RESULTS.into_iter().zip(numbers.results());
        let counts = counts.chain([("turned_away", turned_away)]);
        let results = labelled("result", counts.map(|(result, n)| (result.to_owned(), n)));
        let help = "Questions to the server of these limits. Turned away: too many waited.";
        page.counter("llmproxy_shared_limits_questions", help, results)?;
        let help = "How long a call of that server took; one call has many questions.";
        let times = numbers.times();
        let name = "llmproxy_shared_limits_call_seconds";
        page.histogram(name, help, (BOUNDS, SECOND), vec![(Vec::new(), &times)])?;
        let count = |n: &std::sync::atomic::AtomicU64| one(n.load(Ordering::Relaxed));
        let help = "Requests and tokens that were borrowed there for others to come, and not used.";
        page.counter("llmproxy_shared_limits_returned", help, count(&numbers.returned))?;
        let help = "Amounts that found no room on their way there.";
        page.counter("llmproxy_shared_limits_lost", help, count(&numbers.lost))
    }
}
