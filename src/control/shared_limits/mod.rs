//! Limits that several gateways hold together (`rate_limit.storage: redis`): the thread that asks
//! the server and tells it.
//!
//! *Takes:* what requests need, and what they give back. *Gives:* what the server lends, or how
//! long to wait. *Runs on:* a thread of its own. *May:* block on the server. *Never:* makes a
//! worker wait longer than the time limits of the server.

mod ledger;
mod lender;

use crate::base::limits::{LOANS_RETURNED_MAX, LOANS_WAITING_MAX};
use crate::config::plan::{LimitStorage, RateLimit, Redis};
use crate::state::ask;
use crate::state::board::View;
use crate::state::loans::{LoanBook, SharedLimits};
use crate::store::redis::{self, RedisServer};
use crate::store::Trouble;
use lender::Lender;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// At the end it is waited so long until all is given back.
const END_WAIT: Duration = Duration::from_secs(1);

/// Gives a view the shared limits that its plan asks for: those of the view before it, where the
/// server is the same. To be called when the view has its counters.
///
/// # Errors
/// They cannot be held as they are configured; a line for a person.
pub fn equip(view: &mut View, before: Option<&View>) -> Result<(), String> {
    let storage = view.plan.rate_limit.as_ref().map(|RateLimit { storage, .. }| storage);
    let (Some(LimitStorage::Redis { redis, lease }), Some(counters)) = (storage, &view.counters)
    else {
        return Ok(());
    };
    let terms = (redis.clone(), *lease);
    let kept = before.and_then(|view| view.shared_limits.as_ref());
    if let Some(kept) = kept.filter(|kept| kept.terms == terms) {
        view.shared_limits = Some(kept.clone());
        return Ok(());
    }
    redis::readable(redis).map_err(|error| format!("rate_limit.redis: {error}"))?;
    let entries = counters.table().shape().entries();
    let told = |error| format!("rate_limit.redis: {error}");
    let (changes, changed) = crossbeam_channel::bounded(LOANS_RETURNED_MAX);
    let book = Arc::new(LoanBook::new(entries, changes).map_err(told)?);
    let (ask, questions) = ask::queue(LOANS_WAITING_MAX);
    let pool = &redis.pool;
    let patience = pool.dial_timeout.saturating_add(pool.write_timeout);
    let patience = patience.saturating_add(pool.read_timeout);
    let lender = Lender::new(redis, (*lease, patience), (Arc::clone(&book), changed));
    let body = move || lender.run(&questions);
    std::thread::Builder::new().name("limits-redis".into()).spawn(body).map_err(told)?;
    view.shared_limits = Some(SharedLimits { book, ask, patience, terms });
    Ok(())
}

/// The workers are done: what was lent and not used is given back, and what was used is told.
/// Nobody waits long for it: the server takes what it does not hear of for given back.
pub fn finish(view: &View) {
    let Some(shared) = view.shared_limits.as_ref().filter(|shared| shared.book.is_up()) else {
        return;
    };
    let Some(done) = shared.book.end() else { return };
    // A question about nothing wakes who is to do it.
    if shared.ask.ask(Vec::new()).is_some() {
        let _ = done.recv_timeout(END_WAIT);
    }
}

/// Tries once to reach the server, for at most so long. Blocks.
///
/// # Errors
/// What is in the way, in words for a person, without a secret.
pub fn probe(redis: &Redis, limit: Duration) -> Result<(), String> {
    redis::readable(redis)?;
    let mut server = RedisServer::new(redis.clone());
    let tried = server.probe(Instant::now() + limit).map_err(Trouble::into_words);
    tried.map_err(|why| format!("{}: {why}", server.place()))
}
