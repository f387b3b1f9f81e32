//! Asking engines for the usage of streams whose clients did not ask: when, and what their answers
//! teach. Records, quotas and token limits need it; most engines do not tell unasked.

use super::receive::Request;
use super::settle::Story;
use super::shelf::Shelf;
use crate::base::fault::{Fault, Retryable};
use crate::config::plan::{Plan, StreamUsage};
use crate::state::member::Member;
use crate::state::wish::UsageWish;
use std::time::Instant;

/// Whether a try asks for usage on its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Asking {
    /// It goes as the client sent it.
    #[default]
    No,
    /// It asks.
    Yes,
    /// It asks an engine of which nobody knows whether it takes that: any refusal may mean the
    /// wish.
    Trial,
    /// It goes as the client sent it, because it was refused with the wish; the refusal named it,
    /// or not.
    Without {
        /// It did.
        is_named: bool,
    },
}

impl Asking {
    /// How a request goes to a backend.
    pub fn of(plan: &Plan, request: &Request, backend: &Member) -> Asking {
        let dialect = request.dialect_at(&backend.plan.base_path);
        // The other dialects tell without being asked.
        if request.usage_splice().is_none() || !dialect.takes_wish() {
            return Asking::No;
        }
        match backend.plan.stream_usage {
            StreamUsage::Always => Asking::Yes,
            StreamUsage::Auto if plan.usage.wants_stream_usage() => {
                match backend.usage_wishes().at(request.served_model(), Instant::now()) {
                    UsageWish::Unknown => Asking::Trial,
                    UsageWish::Taken => Asking::Yes,
                    UsageWish::Refused | UsageWish::Needless => Asking::No,
                }
            }
            StreamUsage::Auto | StreamUsage::Never => Asking::No,
        }
    }

    /// True when the wish is spliced into the body. Such a request must be in hand until the head
    /// of the answer is there: it may have to go once more without.
    pub fn is_spliced(self) -> bool {
        matches!(self, Asking::Yes | Asking::Trial)
    }

    /// True when an answer of this status may be about the wish.
    pub fn may_be_refused(self, status: u16) -> bool {
        self.is_spliced() && matches!(status, 400 | 422)
    }

    /// Learns from the status of an answer; `is_named`: it is a refusal that names the wish.
    /// `Some`: the request is to be sent once more, so, and the answer is dropped.
    ///
    /// Only success proves anything. A request that is refused both ways was wrong by itself, and
    /// one that met another obstacle the second time says nothing about the first.
    pub fn learn(
        self,
        shelf: &Shelf,
        (backend, model): (&Member, &str),
        status: u16,
        is_named: bool,
    ) -> Option<Asking> {
        let known = backend.usage_wishes();
        let now = Instant::now();
        match (self, status) {
            (Asking::Yes | Asking::Trial, 400 | 422) if is_named => {
                return Some(Asking::Without { is_named });
            }
            (Asking::Trial, 400 | 422) if known.at(model, now) == UsageWish::Unknown => {
                return Some(Asking::Without { is_named });
            }
            (Asking::Yes | Asking::Trial, 200..=299) => {
                known.learn(model, UsageWish::Taken, now);
            }
            (Asking::Without { is_named }, 200..=299) => {
                let is_clear = is_named || known.at(model, now) == UsageWish::Unknown;
                let is_asked = backend.plan.stream_usage == StreamUsage::Always;
                let is_news = is_clear && !is_asked;
                let is_news = is_news && known.learn(model, UsageWish::Refused, now);
                if is_news && shelf.may_log("stream_usage_refused") {
                    tracing::info!(
                        backend = %backend.name,
                        model,
                        "the engine refuses stream_options.include_usage and is not asked for a \
                         while: streams whose clients do not ask for usage are recorded without"
                    );
                }
            }
            _ => {}
        }
        None
    }
}

/// A try failed: a backend that cannot be reached may be another engine when it is back.
pub fn hear_failure(backend: &Member, fault: Fault) {
    if fault.retry() == Retryable::Any {
        backend.usage_wishes().forget();
    }
}

/// A stream of a client that did not ask is over, to its end if `is_whole`. `is_timed`: the engine
/// told by itself what usage would; `is_told`: there was usage, in whatever form.
pub fn hear_stream(
    request: &Request,
    story: &Story,
    (is_whole, is_timed, is_told): (bool, bool, bool),
) {
    let backend = story.backend.as_ref();
    let (Some(backend), Some(_), true) = (backend, request.usage_splice(), story.event_stream)
    else {
        return;
    };
    let (known, now) = (backend.usage_wishes(), Instant::now());
    let model = request.served_model();
    if is_timed {
        known.learn(model, UsageWish::Needless, now);
    } else if is_whole
        && !is_told
        && !story.asked_usage
        && known.at(model, now) == UsageWish::Needless
    {
        // It was thought to tell by itself, and does not.
        known.forget_model(model);
    }
}
