//! What was tried for a request, and what follows a try: the whole of what may be sent again, and
//! where to. Pure.

use super::TriedMembers;
use crate::base::fault::{Fault, Retryable, Side};
use crate::base::limits::{CONNECT_TRIES_MAX, TRIED_MAX};
use crate::config::plan::{Fallback, Retry, RetryOn, Routing};
use crate::state::member::MemberId;
use std::time::Duration;

/// How a try ended that brought no answer, or none that is certainly for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryEnd {
    /// The engine refused a wish of ours, not the client's request.
    WishRefused,
    /// There is no answer.
    Failed(Fault),
    /// There is one, of this status, of which the client has nothing yet. The engine may have said
    /// for how long it is not to be asked again.
    Status(u16, Option<Duration>),
}

/// What is done instead of giving the client what came of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Further<B> {
    /// The same backend is asked once more.
    Again,
    /// This other one is asked, at once.
    Other(B),
    /// All were tried: after so long they are asked anew.
    Wait(Duration),
}

/// A try that is over.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<O> {
    /// How it ended.
    pub end: TryEnd,
    /// All of the request is in hand, so that it can be sent once more.
    pub is_in_hand: bool,
    /// Picks who is asked that was not tried yet. Called only when that one is asked at once: who
    /// is picked counts as one that has had the request.
    pub other: O,
    /// There may be one more retry of what an engine may have worked on.
    pub has_budget: bool,
    /// Since the first try began.
    pub elapsed: Duration,
    /// Between 0 and 1, at random: waits of many requests are not to end at the same moment.
    pub spread: f64,
}

/// What the configuration says of tries.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a> {
    /// `routing.retry`; `None`: nothing is sent twice that an engine may have worked on.
    pub retry: Option<&'a Retry>,
    /// The rule of the backend that was picked first, if there is one and it failed.
    pub rule: Option<&'a Fallback>,
}

impl<'a> Policy<'a> {
    /// What the configuration says, with this rule.
    pub fn of(routing: &'a Routing, rule: Option<&'a Fallback>) -> Policy<'a> {
        Policy { retry: routing.retry.as_ref(), rule }
    }

    /// Tries of one request, the first among them.
    fn tries_max(&self) -> u32 {
        let has_no_retry = self.retry.is_none();
        let own = self.rule.and_then(|rule| {
            // No fewer than without a rule.
            let named = (rule.fallback.len() as u32).max(CONNECT_TRIES_MAX as u32 - 1);
            rule.retry.or(has_no_retry.then_some(named))
        });
        let after_first = own.or(self.retry.map(|retry| retry.max_retries));
        after_first.map_or(CONNECT_TRIES_MAX as u32, |n| n.saturating_add(1))
    }

    /// Whether an answer of this status is one to retry; `has_rule`: there is a rule.
    pub fn names(&self, status: u16, has_rule: bool) -> bool {
        let is_named = |on: &RetryOn| match on {
            RetryOn::Status(named) => *named == status,
            RetryOn::ServerError => status >= 500,
            RetryOn::Timeout => status == 504,
            RetryOn::ConnectFailure => false,
        };
        match self.retry {
            Some(retry) => retry.retry_on.iter().any(is_named),
            // A list of others to ask is of no use if it is not used when its backend fails.
            None => has_rule && matches!(status, 502..=504),
        }
    }

    /// How many milliseconds a try may take that is about to begin, of all tries that have taken so
    /// long; `u32::MAX`: as long as its backend may take.
    pub fn time_left(&self, tries: &Tries, elapsed: Duration) -> u32 {
        let Some(retry) = self.retry.filter(|_| tries.count > 1) else { return u32::MAX };
        let left = retry.timeout.saturating_sub(elapsed).as_millis();
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// Whether a try that ended so is one to retry although an engine may have worked on it. A
    /// fault counts as the status that the client would get for it.
    pub fn covers(&self, end: TryEnd) -> bool {
        let status = match end {
            TryEnd::WishRefused => return true,
            TryEnd::Failed(fault) if fault.side() != Side::Backend => return false,
            TryEnd::Failed(fault) => fault.refusal().status,
            TryEnd::Status(status, _) => status,
        };
        self.names(status, self.rule.is_some())
    }
}

/// Whether no engine can have worked on a request whose try ended so: it is sent to another one
/// whatever the configuration says.
pub fn is_harmless(end: TryEnd) -> bool {
    matches!(end, TryEnd::Failed(fault) if fault.retry() == Retryable::Any)
}

/// The tries of one request.
#[derive(Debug, Clone)]
pub struct Tries {
    /// Backends that are not asked again.
    tried: TriedMembers,
    first: MemberId,
    /// When the first one began, in ticks of the caller's clock.
    began: u32,
    /// Milliseconds after which the backends that were tried want to be asked again.
    wished: u32,
    /// Tries that were made, or are under way.
    count: u8,
    /// Waits that are over.
    waits: u8,
    /// The backend in hand has closed a kept connection under us: it gets a fresh one.
    is_fresh: bool,
    /// A backend went out of service under the request. That moves it once: who goes on waiting is
    /// not called off again.
    is_moved: bool,
    /// Another backend than the first has it.
    is_fallback: bool,
}

impl Tries {
    /// The first one is at this backend, and begins at this tick.
    pub fn begin(first: MemberId, tick: u32) -> Tries {
        Tries {
            tried: TriedMembers::only(first),
            first,
            began: tick,
            wished: 0,
            count: 1,
            waits: 0,
            is_fresh: false,
            is_moved: false,
            is_fallback: false,
        }
    }

    /// The tick in which the first one began.
    pub fn began(&self) -> u32 {
        self.began
    }

    /// Waits that are over.
    pub fn waits(&self) -> u8 {
        self.waits
    }

    /// True while no other backend than the first was asked.
    pub fn is_first(&self) -> bool {
        self.tried.len() == 1 && self.waits == 0 && !self.is_fallback
    }

    /// A backend gets the next try.
    pub fn move_to(&mut self, backend: MemberId) {
        self.tried.add(backend);
        self.count = self.count.saturating_add(1);
        self.is_fresh = false;
        self.is_fallback = self.is_moved || backend != self.first;
    }

    /// The backend in hand went out of service while the request waited there: it begins anew
    /// elsewhere, since those that were tried before may be well again.
    pub fn call_off(&mut self, backend: MemberId) {
        (self.tried, self.is_moved, self.count) = (TriedMembers::only(backend), true, 1);
    }

    /// All backends may be asked anew, after a wait.
    pub fn begin_anew(&mut self) {
        self.tried = TriedMembers::default();
        self.wished = 0;
        self.note_wait();
    }

    /// A wait is over, and somebody else is asked who was not tried yet.
    pub fn note_wait(&mut self) {
        self.waits = self.waits.saturating_add(1);
    }

    /// What is done after a try; `None`: the client gets what came of it.
    pub fn next<B, O>(&mut self, attempt: Attempt<O>, policy: &Policy) -> Option<Further<B>>
    where
        O: FnOnce(&TriedMembers) -> Option<B>,
    {
        let is_wish = attempt.end == TryEnd::WishRefused;
        if let TryEnd::Status(_, Some(wished)) = attempt.end {
            let until = attempt.elapsed.saturating_add(wished).as_millis();
            self.wished = self.wished.max(u32::try_from(until).unwrap_or(u32::MAX));
        }
        let further = self.further(attempt, policy);
        self.is_fresh |= matches!(further, Some(Further::Again)) && !is_wish;
        further
    }

    fn further<B, O>(&self, attempt: Attempt<O>, policy: &Policy) -> Option<Further<B>>
    where
        O: FnOnce(&TriedMembers) -> Option<B>,
    {
        let Attempt { end, is_in_hand, other, has_budget, elapsed, spread } = attempt;
        if !is_in_hand {
            return None;
        }
        match end {
            TryEnd::WishRefused => return Some(Further::Again),
            TryEnd::Failed(fault) if fault.retry() == Retryable::Fresh && !self.is_fresh => {
                return Some(Further::Again);
            }
            _ if is_harmless(end) || (has_budget && policy.covers(end)) => {}
            _ => return None,
        }
        let deadline = policy.retry.map_or(Duration::MAX, |retry| retry.timeout);
        let tries_max = match is_harmless(end) {
            true => policy.tries_max().max(CONNECT_TRIES_MAX as u32),
            false => policy.tries_max(),
        };
        if u32::from(self.count) >= tries_max || elapsed >= deadline {
            return None;
        }
        let may_be_other = self.tried.len() < TRIED_MAX;
        if let Some(other) = may_be_other.then(|| other(&self.tried)).flatten() {
            return Some(Further::Other(other));
        }
        // A second round costs budget where engines may have worked in the first.
        let retry = policy.retry.filter(|_| has_budget || is_harmless(end))?;
        let wished = Duration::from_millis(self.wished.into()).saturating_sub(elapsed);
        let wait = retry.wait(self.waits.into(), spread).max(wished);
        let is_in_time = wished <= retry.max_wait && elapsed.saturating_add(wait) < deadline;
        is_in_time.then_some(Further::Wait(wait))
    }

    /// Backends that are not asked again.
    pub fn tried(&self) -> &TriedMembers {
        &self.tried
    }

    /// A kept connection must not be used.
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// True when the request may be called off from where it waits, because another backend would
    /// do.
    pub fn may_move(&self) -> bool {
        !self.is_moved
    }

    /// True when another backend than the first one picked has the request.
    pub fn is_fallback(&self) -> bool {
        self.is_fallback
    }
}

#[cfg(test)]
mod tests;
