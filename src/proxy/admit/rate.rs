//! Rate limits: whether a request may go on now. Whom it is counted for is known when its head is
//! there, and its model when its body was read; all that it takes until then it gives back when a
//! limit or a quota refuses it later. Refused for another reason it keeps that: whoever sends what
//! nobody can serve is held to the limits too.

use crate::base::refusal::Refusal;
use crate::config::plan::Limits;
use crate::llm::dialect::Dialect;
use crate::llm::media::{media_in, Media};
use crate::proxy::rules::{Buckets, LimitKind, Rules, Scope};
use crate::proxy::takings::{Estimate, Limited, Takings};
use crate::state::counters::bucket::Wait;
use crate::state::counters::ids;
use crate::state::counters::shared::{Counters, COMMON};
use crate::state::counters::table::TablePart;
use crate::state::loans::Counted;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a prompt that count as one token before its engine has counted them.
pub const BYTES_PER_TOKEN: u64 = 4;
/// Tokens that a picture or a recording is taken for: models make some hundreds to some thousands
/// of one, by its size.
const MEDIA_TOKENS: u64 = 1024;

/// Whom a request is counted for.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// What its key, or else its address, counts under; and whether somebody checked the key.
    pub key: (u128, TablePart),
    /// What its user counts under.
    pub user: Option<u128>,
    /// Limits of its own, over those of all keys; without any, it has none.
    pub own: Limits,
}

/// The head is there, and it is known whose it is.
///
/// # Errors
/// A limit is reached.
pub fn by_head(
    takings: &mut Takings,
    (rules, counters): (&Rules, &Arc<Counters>),
    asker: impl FnOnce() -> Option<Asker>,
    now: Instant,
) -> Result<(), Refusal> {
    let moment = counters.at(now);
    let mut add = |scope, id, part, buckets: Buckets| {
        takings.begin(counters);
        takings.add(scope, counted(counters, (id, part), moment), buckets);
    };
    if let Some(buckets) = rules.global {
        add(Scope::Global, ids::GLOBAL, TablePart::Known, buckets);
    }
    if let Some(Asker { key: (id, part), user, own }) = asker() {
        let own = (!own.is_none()).then(|| Buckets::from(&own));
        if let Some(buckets) = own.or(rules.per_key) {
            add(Scope::Key, id, part, buckets);
        }
        if let (Some(user), Some(buckets)) = (user, rules.per_user) {
            add(Scope::User, user, TablePart::Known, buckets);
        }
    }
    takings.take_request(now).map_err(refusal)
}

/// The body was read: for which model it is, by the client's name for it and by that of the
/// engines, and what it may cost.
///
/// # Errors
/// A limit is reached; then nothing was taken from any.
pub fn by_body(
    takings: &mut Takings,
    (rules, counters): (&Rules, &Arc<Counters>),
    (model, tokens): ([&str; 2], u64),
    now: Instant,
) -> Result<(), Refusal> {
    if let Some((id, buckets)) = rules.of_model(model) {
        takings.begin(counters);
        let whose = counted(counters, (id, TablePart::Known), counters.at(now));
        takings.add(Scope::Model, whose, buckets);
        takings.take_request(now).map_err(refusal)?;
    }
    takings.take_tokens(now, tokens).map_err(refusal)
}

/// Where somebody is counted.
fn counted(counters: &Counters, (id, part): (u128, TablePart), moment: u64) -> Counted {
    match counters.find(id, part, moment) {
        (place, true) => Counted::new(id, part, place),
        (place, false) => Counted::new(COMMON, TablePart::Known, place),
    }
}

/// What a request may cost: its prompt, by its bytes, and as many tokens as it lets its model
/// write.
pub fn estimate(dialect: Dialect, body: &[u8], max_tokens: Option<u64>) -> Estimate {
    let prompt = match dialect {
        // The body is a recording, which becomes tokens when it is heard.
        Dialect::Transcriptions => 0,
        _ => {
            let Media { items, bytes } = media_in(body);
            let text = (body.len() as u64).saturating_sub(bytes);
            text.div_ceil(BYTES_PER_TOKEN).saturating_add(items * MEDIA_TOKENS)
        }
    };
    Estimate { prompt, tokens: prompt.saturating_add(max_tokens.unwrap_or(0)) }
}

/// What the client hears.
pub fn refusal(limited: Limited) -> Refusal {
    let (code, message, wait) = match limited {
        Limited::Concurrent(scope) => {
            let message = match scope {
                Scope::Global => "Too many requests at one time.",
                Scope::Key => "Too many requests at one time with this key, or from this address.",
                Scope::User => "Too many requests at one time of this user.",
                Scope::Model => "Too many requests at one time for this model.",
            };
            ("concurrent_limit_exceeded", message, Wait(0))
        }
        Limited::Rate(scope, LimitKind::Tokens, wait) => {
            let message = match scope {
                Scope::Global => "Too many tokens per minute.",
                Scope::Key => "Too many tokens per minute with this key, or from this address.",
                Scope::User => "Too many tokens per minute of this user.",
                Scope::Model => "Too many tokens per minute for this model.",
            };
            ("token_rate_limit_exceeded", message, wait)
        }
        Limited::Rate(scope, _, wait) => {
            let message = match scope {
                Scope::Global => "Global rate limit exceeded.",
                Scope::Key => "Rate limit exceeded with this key, or from this address.",
                Scope::User => "Rate limit exceeded of this user.",
                Scope::Model => "Rate limit exceeded for this model.",
            };
            ("rate_limit_exceeded", message, wait)
        }
    };
    Refusal::new(429, code, message).with_retry_after(wait.seconds())
}
