//! Asking engines for the usage of streams whose clients did not ask: when, and what their answers
//! teach. Records, quotas and token limits need it; most engines do not tell unasked.

use super::receive::Request;
use super::worker::Worker;
use crate::config::plan::StreamUsage;
use crate::llm::dialect::Dialect;
use crate::state::fleet::UsageWish;

/// Whether a try asks for usage on its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Asking {
    /// It goes as the client sent it.
    #[default]
    No,
    /// It asks, and an answer is an answer.
    Yes,
    /// It asks an engine of which nobody knows whether it takes that: a refusal may mean the wish.
    Trial,
    /// It goes as the client sent it, because a trial was refused.
    Without,
}

impl Asking {
    /// How a request goes to a backend.
    pub fn of(w: &Worker, request: &Request, backend: u32) -> Asking {
        let plan = w.backend(backend);
        let dialect = plan.map(|plan| request.dialect_at(&plan.base_path));
        // The other dialects tell without being asked.
        if request.usage_splice().is_none() || dialect != Some(Dialect::OpenAi) {
            return Asking::No;
        }
        let wish = w.fleet.get(backend as usize).map(|member| member.usage_wish());
        match (plan.map(|plan| plan.stream_usage), wish) {
            (Some(StreamUsage::Always), _) => Asking::Yes,
            (Some(StreamUsage::Auto), Some(wish)) if w.plan.usage.wants_stream_usage() => {
                match wish {
                    UsageWish::Unknown => Asking::Trial,
                    UsageWish::Taken => Asking::Yes,
                    UsageWish::Refused => Asking::No,
                }
            }
            _ => Asking::No,
        }
    }

    /// True when the wish is spliced into the body.
    pub fn is_spliced(self) -> bool {
        matches!(self, Asking::Yes | Asking::Trial)
    }

    /// True when the body must be in hand until the head of the answer is there.
    pub fn keeps_body(self) -> bool {
        self == Asking::Trial
    }

    /// Learns from the status of an answer. `Some`: the request is to be sent once more, so, and
    /// the answer is dropped.
    ///
    /// Only success proves anything. A request that is refused both ways was wrong by itself, and
    /// one that met another obstacle the second time says nothing about the first.
    pub fn learn(self, w: &Worker, backend: u32, status: u16) -> Option<Asking> {
        let member = w.fleet.get(backend as usize)?;
        match (self, status) {
            (Asking::Trial, 400 | 422) if member.usage_wish() != UsageWish::Taken => {
                return Some(Asking::Without);
            }
            (Asking::Trial | Asking::Yes, 200..=299) => {
                member.learn_usage_wish(UsageWish::Taken);
            }
            (Asking::Without, 200..=299) if member.learn_usage_wish(UsageWish::Refused) => {
                let backend = w.backend(backend).map_or("", |plan| plan.name.as_str());
                tracing::info!(
                    backend,
                    "the engine refuses stream_options.include_usage and is asked no more: \
                     streams whose clients do not ask for usage are recorded without"
                );
            }
            _ => {}
        }
        None
    }
}
