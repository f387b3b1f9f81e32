//! What was tried for a request, and what follows a try: the whole of what may be sent again, and
//! where to. Pure.

use super::TriedMembers;
use crate::base::fault::{Fault, Retryable};
use crate::base::limits::CONNECT_TRIES_MAX;
use crate::state::member::MemberId;

/// How a try ended that brought no answer for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryEnd {
    /// The engine refused a wish of ours, not the client's request.
    WishRefused,
    /// There is no answer, or none for the client.
    Failed(Fault),
}

/// What follows such a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// The same backend is asked once more.
    Again,
    /// Another backend is asked, if there is one; else the client hears of this.
    Other(Fault),
    /// The client hears of this.
    Stop(Fault),
}

/// A try that is over.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    /// How it ended.
    end: TryEnd,
    /// Backends that were tried, this one among them.
    tried: usize,
    /// No kept connection was used for it.
    is_fresh: bool,
    /// All of the request is in hand, so that it can be sent once more.
    is_in_hand: bool,
}

/// What follows a try.
fn next(attempt: &Attempt) -> Follow {
    let fault = match attempt.end {
        TryEnd::WishRefused => return Follow::Again,
        TryEnd::Failed(fault) => fault,
    };
    match fault.retry() {
        _ if !attempt.is_in_hand => Follow::Stop(fault),
        Retryable::Fresh if !attempt.is_fresh => Follow::Again,
        Retryable::Any if attempt.tried < CONNECT_TRIES_MAX => Follow::Other(fault),
        _ => Follow::Stop(fault),
    }
}

/// The tries of one request.
#[derive(Debug)]
pub struct Tries {
    /// Backends that are not asked again.
    tried: TriedMembers,
    /// The backend in hand has closed a kept connection under us: it gets a fresh one.
    is_fresh: bool,
    /// A backend went out of service under the request. That moves it once: who goes on waiting is
    /// not called off again.
    is_moved: bool,
}

impl Tries {
    /// The first one is at this backend.
    pub fn begin(first: MemberId) -> Tries {
        Tries { tried: TriedMembers::only(first), is_fresh: false, is_moved: false }
    }

    /// Another backend gets the next try.
    pub fn move_to(&mut self, backend: MemberId) {
        self.tried.add(backend);
        self.is_fresh = false;
    }

    /// What follows the try of this backend, which ended so.
    pub fn next(&mut self, backend: MemberId, end: TryEnd, is_in_hand: bool) -> Follow {
        if end == TryEnd::Failed(Fault::BackendEjected) {
            // Those that were tried before may be well again.
            (self.tried, self.is_moved) = (TriedMembers::only(backend), true);
        }
        let attempt = Attempt { end, tried: self.tried.len(), is_fresh: self.is_fresh, is_in_hand };
        let follow = next(&attempt);
        self.is_fresh |= follow == Follow::Again && end != TryEnd::WishRefused;
        follow
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
        self.tried.len() > 1 || self.is_moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tls_fault::TlsFault;
    use crate::config::plan::Backend;
    use crate::state::member::Member;
    use Follow::{Again, Other, Stop};
    use TryEnd::{Failed, WishRefused};

    fn id() -> MemberId {
        Member::new(Backend::sample("engine"), None).id()
    }

    /// Catches: a request that an engine may have worked on sent twice, and one given up though no
    /// engine ever saw it.
    #[test]
    fn what_follows_each_end_of_a_first_try() {
        let other: fn(Fault) -> Follow = Other;
        for (fault, follows) in [
            (Fault::Unresolved, other),
            (Fault::ConnectFailed, Other),
            (Fault::ConnectTimeout, Other),
            (Fault::TlsFailed(TlsFault::Other), Other),
            (Fault::BackendEjected, Other),
            (Fault::BackendLoading, Other),
            (Fault::BackendLoops, Other),
            (Fault::ReuseRace, |_| Again),
            (Fault::BackendClosed, Stop),
            (Fault::BackendClosedReused, Stop),
            (Fault::FirstByteTimeout, Stop),
            (Fault::ForeignAnswer, Stop),
            (Fault::BadResponse("x"), Stop),
            (Fault::ClientLeft, Stop),
            (Fault::ShuttingDown, Stop),
        ] {
            let backend = id();
            let mut tries = Tries::begin(backend);
            let unsent = Tries::begin(backend).next(backend, Failed(fault), false);
            assert_eq!(unsent, Stop(fault), "what is not in hand is not sent again");
            assert_eq!(tries.next(backend, Failed(fault), true), follows(fault), "{fault:?}");
            assert_eq!(tries.is_fresh(), fault == Fault::ReuseRace, "{fault:?}");
            assert_eq!(tries.may_move(), fault != Fault::BackendEjected, "{fault:?}");
        }
    }

    /// Catches: a backend that closes each connection, and is asked for ever; one whose fresh
    /// connection is denied to it because another backend had one.
    #[test]
    fn a_fresh_connection_is_tried_once_at_each_backend() {
        let (first, second) = (id(), id());
        let mut tries = Tries::begin(first);
        for backend in [first, second] {
            if backend == second {
                tries.move_to(second);
            }
            assert!(!tries.is_fresh());
            assert_eq!(tries.next(backend, Failed(Fault::ReuseRace), true), Again);
            assert_eq!(tries.next(backend, WishRefused, true), Again);
            assert!(tries.is_fresh());
        }
        assert_eq!(tries.next(second, Failed(Fault::ReuseRace), true), Stop(Fault::ReuseRace));
        assert!(tries.is_fallback());
    }

    /// Catches: a request that goes round a dead fleet, and one that may not come back to a backend
    /// that it had tried before the one that was taken from under it.
    #[test]
    fn there_are_so_many_tries_and_a_move_begins_them_anew() {
        let backends = [(); CONNECT_TRIES_MAX].map(|()| id());
        let mut tries = Tries::begin(backends[0]);
        for (n, backend) in backends.iter().enumerate() {
            if n > 0 {
                tries.move_to(*backend);
            }
            let is_last = n + 1 == CONNECT_TRIES_MAX;
            let follows = tries.next(*backend, Failed(Fault::ConnectFailed), true);
            let wanted = if is_last { Stop } else { Other };
            assert_eq!(follows, wanted(Fault::ConnectFailed));
        }
        let last = backends[CONNECT_TRIES_MAX - 1];
        assert_eq!(
            tries.next(last, Failed(Fault::BackendEjected), true),
            Other(Fault::BackendEjected)
        );
        assert!(tries.tried().len() == 1 && tries.is_fallback() && !tries.may_move());
    }
}
