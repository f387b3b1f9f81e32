//! What was tried for a request, and what follows a try: the whole of what may be sent again, and
//! where to. Pure.

use super::TriedMembers;
use crate::base::fault::{Fault, Retryable};
use crate::base::limits::CONNECT_TRIES_MAX;
use crate::state::member::MemberId;

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryEnd {
    /// The head of an answer is there for the client.
    Answered,
    /// The engine refused a wish of ours, not the client's request.
    WishRefused,
    /// There is no answer, or none for the client.
    Failed(Fault),
}

/// What follows a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// The client gets the answer.
    Answer,
    /// The same backend is asked once more.
    Again,
    /// Another backend is asked, if there is one.
    Other,
    /// The client hears how this try failed.
    Stop,
}

/// The tries of one request.
#[derive(Debug, Default)]
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
    /// A backend gets the next try.
    pub fn begin(&mut self, backend: MemberId) {
        self.tried.add(backend);
        self.is_fresh = false;
    }

    /// What follows a try of this backend.
    pub fn next(&mut self, backend: MemberId, end: TryEnd) -> Follow {
        let fault = match end {
            TryEnd::Answered => return Follow::Answer,
            TryEnd::WishRefused => return Follow::Again,
            TryEnd::Failed(fault) => fault,
        };
        match fault.retry() {
            Retryable::Fresh if !self.is_fresh => {
                self.is_fresh = true;
                Follow::Again
            }
            Retryable::Any => {
                if fault == Fault::BackendEjected {
                    // Those that were tried before may be well again.
                    (self.tried, self.is_moved) = (TriedMembers::only(backend), true);
                }
                match self.tried.len() < CONNECT_TRIES_MAX {
                    true => Follow::Other,
                    false => Follow::Stop,
                }
            }
            Retryable::Fresh | Retryable::Never => Follow::Stop,
        }
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
    use Follow::{Again, Answer, Other, Stop};
    use TryEnd::{Answered, Failed, WishRefused};

    fn id() -> MemberId {
        Member::new(Backend::sample("engine"), None).id()
    }

    /// Catches: a request that an engine may have worked on sent twice, and one given up though no
    /// engine ever saw it.
    #[test]
    fn what_follows_each_end_of_a_first_try() {
        for (end, follows) in [
            (Answered, Answer),
            (WishRefused, Again),
            (Failed(Fault::Unresolved), Other),
            (Failed(Fault::ConnectFailed), Other),
            (Failed(Fault::ConnectTimeout), Other),
            (Failed(Fault::TlsFailed(TlsFault::Other)), Other),
            (Failed(Fault::BackendEjected), Other),
            (Failed(Fault::BackendLoading), Other),
            (Failed(Fault::BackendLoops), Other),
            (Failed(Fault::ReuseRace), Again),
            (Failed(Fault::BackendClosed), Stop),
            (Failed(Fault::BackendClosedReused), Stop),
            (Failed(Fault::FirstByteTimeout), Stop),
            (Failed(Fault::ForeignAnswer), Stop),
            (Failed(Fault::BadResponse("x")), Stop),
            (Failed(Fault::ClientLeft), Stop),
            (Failed(Fault::ShuttingDown), Stop),
        ] {
            let (mut tries, backend) = (Tries::default(), id());
            tries.begin(backend);
            assert_eq!(tries.next(backend, end), follows, "{end:?}");
            assert_eq!(tries.is_fresh(), end == Failed(Fault::ReuseRace), "{end:?}");
            assert_eq!(tries.may_move(), end != Failed(Fault::BackendEjected), "{end:?}");
        }
    }

    /// Catches: a backend that closes each connection, and is asked for ever; one whose fresh
    /// connection is denied to it because another backend had one.
    #[test]
    fn a_fresh_connection_is_tried_once_at_each_backend() {
        let (mut tries, first, second) = (Tries::default(), id(), id());
        for backend in [first, second] {
            tries.begin(backend);
            assert!(!tries.is_fresh());
            assert_eq!(tries.next(backend, Failed(Fault::ReuseRace)), Again);
            assert_eq!(tries.next(backend, WishRefused), Again);
            assert!(tries.is_fresh());
        }
        assert_eq!(tries.next(second, Failed(Fault::ReuseRace)), Stop);
        assert!(tries.is_fallback());
    }

    /// Catches: a request that goes round a dead fleet, and one that may not come back to a backend
    /// that it had tried before the one that was taken from under it.
    #[test]
    fn there_are_so_many_tries_and_a_move_begins_them_anew() {
        let (mut tries, backends) = (Tries::default(), [(); CONNECT_TRIES_MAX].map(|()| id()));
        for (n, backend) in backends.iter().enumerate() {
            tries.begin(*backend);
            let is_last = n + 1 == CONNECT_TRIES_MAX;
            let follows = tries.next(*backend, Failed(Fault::ConnectFailed));
            assert_eq!(follows, if is_last { Stop } else { Other });
        }
        let last = backends[CONNECT_TRIES_MAX - 1];
        assert_eq!(tries.next(last, Failed(Fault::BackendEjected)), Other);
        assert!(tries.tried().len() == 1 && tries.is_fallback() && !tries.may_move());
    }
}
