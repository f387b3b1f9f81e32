//! What can go wrong once a request is on its way: whose fault it is, what it is called, and
//! whether it may be tried again. The decision travels with the error; nobody guesses later.

use super::refusal::Refusal;
use super::tls_fault::TlsFault;

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client left or stalled.
    Client,
    /// The engine, or the way to it.
    Backend,
    /// This process.
    Us,
}

/// Whether the request may be tried again, as long as the client got no byte of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retryable {
    /// No: the engine may be working on it, or have been. Only who says so in the configuration
    /// (`routing.retry.retry_on`, which goes by the status) may take that risk.
    Never,
    /// Once, at the same backend on a fresh connection: the kept one was closed under us.
    Fresh,
    /// At any other backend: this one never saw the request, or has nothing to do with it any
    /// more.
    Any,
}

/// A named fault. The name is the `code` of the answer and of the log's line, and the label `kind`
/// of `llmproxy_faults_total`. (`reason` labels `llmproxy_rejected_total`: refusals, not faults.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The backend's name has no address.
    Unresolved,
    /// Connection refused, unreachable, no such socket.
    ConnectFailed,
    /// `connect_timeout` passed.
    ConnectTimeout,
    /// The TLS handshake failed; why.
    TlsFailed(TlsFault),
    /// A kept connection was closed while the request was on its way, before any byte of an answer.
    ReuseRace,
    /// The connection broke before the head of an answer was complete.
    BackendClosed,
    /// The same on a kept connection, without a byte of an answer: it may have been closed under
    /// us, but so late, or behind so much, that the engine may have worked on the request.
    BackendClosedReused,
    /// `first_byte_timeout` passed.
    FirstByteTimeout,
    /// `routing.retry.timeout` passed during a further try, before the backend's own time was over.
    RetryTimeout,
    /// The backend was taken out of service while the request waited there for a first byte.
    BackendEjected,
    /// The request was to be sent there once more, and others have taken its place meanwhile.
    BackendFull,
    /// The engine answered that it is still loading its model.
    BackendLoading,
    /// The backend leads back to this process, which refused the request there.
    BackendLoops,
    /// The answer is that to another request.
    ForeignAnswer,
    /// The answer is not HTTP as we accept it; why.
    BadResponse(&'static str),
    /// `idle_timeout` passed between two reads of an answer's body.
    BackendIdleTimeout,
    /// The connection broke, or the framing did, inside the body of an answer.
    BackendBroke,
    /// The client closed its connection.
    ClientLeft,
    /// `write_timeout` passed without one byte taken by the client.
    ClientWriteTimeout,
    /// The key's quota has no more for the stream, which ends in order there.
    QuotaExhausted,
    /// The drain deadline passed.
    ShuttingDown,
    /// A panic of ours ended the connection.
    Panicked,
}

/// How a connection to an engine closed, or broke, before the head of a final answer was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EarlyClose {
    /// It was kept from an earlier request.
    pub is_reused: bool,
    /// All of the request was handed over.
    pub sent_whole: bool,
    /// Something came, be it an interim answer.
    pub heard: bool,
    /// It closed within a moment ([`crate::base::limits::REUSE_RACE_MAX`]).
    pub at_once: bool,
}

impl EarlyClose {
    /// What it means. An engine closes idle connections without a word, and may do so as a request
    /// comes: then it never read it. It did if it has said something, or had time to work; and a
    /// connection that was made for the request was not idle. What was not sent whole on a kept one
    /// goes once more whatever came: an engine needs all of the body to generate anything.
    pub fn fault(self) -> Fault {
        match self {
            EarlyClose { is_reused: false, .. } => Fault::BackendClosed,
            EarlyClose { sent_whole: false, .. } => Fault::ReuseRace,
            EarlyClose { heard: true, .. } => Fault::BackendClosed,
            EarlyClose { at_once: true, .. } => Fault::ReuseRace,
            _ => Fault::BackendClosedReused,
        }
    }
}

impl Fault {
    /// The stable name.
    pub fn code(self) -> &'static str {
        match self {
            Fault::Unresolved => "backend_unresolved",
            Fault::ConnectFailed => "connect_failed",
            Fault::ConnectTimeout => "connect_timeout",
            Fault::TlsFailed(why) => why.code(),
            Fault::ReuseRace => "reuse_race",
            Fault::BackendClosed => "backend_closed",
            Fault::BackendClosedReused => "backend_closed_reused",
            Fault::FirstByteTimeout => "first_byte_timeout",
            Fault::RetryTimeout => "retry_timeout",
            Fault::BackendEjected => "backend_ejected",
            Fault::BackendFull => "backends_full",
            Fault::BackendLoading => "backend_loading",
            Fault::BackendLoops => "loop_detected",
            Fault::ForeignAnswer => "foreign_answer",
            Fault::BadResponse(_) => "bad_response",
            Fault::BackendIdleTimeout => "backend_idle_timeout",
            Fault::BackendBroke => "backend_broke",
            Fault::ClientLeft => "client_left",
            Fault::ClientWriteTimeout => "client_write_timeout",
            Fault::QuotaExhausted => "quota_exhausted",
            Fault::ShuttingDown => "shutting_down",
            Fault::Panicked => "internal_error",
        }
    }

    /// What a log says besides, where the name alone does not tell what to do.
    pub fn detail(self) -> Option<&'static str> {
        match self {
            Fault::TlsFailed(why) => Some(why.words()),
            Fault::BadResponse(why) => Some(why),
            _ => None,
        }
    }

    /// Whose fault it is.
    pub fn side(self) -> Side {
        match self {
            Fault::ClientLeft | Fault::ClientWriteTimeout => Side::Client,
            Fault::QuotaExhausted | Fault::ShuttingDown | Fault::Panicked => Side::Us,
            _ => Side::Backend,
        }
    }

    /// Whether it may be tried again before the first byte went to the client.
    pub fn retry(self) -> Retryable {
        match self {
            Fault::Unresolved
            | Fault::ConnectFailed
            | Fault::ConnectTimeout
            | Fault::TlsFailed(_)
            | Fault::BackendEjected
            | Fault::BackendLoading
            | Fault::BackendLoops => Retryable::Any,
            Fault::ReuseRace => Retryable::Fresh,
            _ => Retryable::Never,
        }
    }

    /// True when a deadline passed.
    pub fn is_timeout(self) -> bool {
        matches!(
            self,
            Fault::ConnectTimeout
                | Fault::FirstByteTimeout
                | Fault::RetryTimeout
                | Fault::BackendIdleTimeout
                | Fault::ClientWriteTimeout
        )
    }

    /// The answer for a client that got no byte yet. 499 (nginx's number for a client that left)
    /// is never sent; it stands in records and metrics.
    pub fn refusal(self) -> Refusal {
        let code = self.code();
        match self {
            Fault::Unresolved | Fault::ConnectFailed => {
                Refusal::new(502, code, "The backend could not be reached.")
            }
            Fault::TlsFailed(why) => Refusal::new(502, code, "The backend could not be reached.")
                .with_message(format!("The backend could not be reached: {}.", why.words())),
            Fault::ConnectTimeout => {
                Refusal::new(504, code, "The backend did not accept a connection in time.")
            }
            Fault::ReuseRace | Fault::BackendClosed => {
                Refusal::new(502, code, "The backend closed the connection without an answer.")
            }
            Fault::BackendBroke => {
                Refusal::new(502, code, "The backend's connection broke inside its answer.")
            }
            Fault::BackendClosedReused => Refusal::new(
                502,
                code,
                "The backend closed a connection that it had kept, without an answer; whether it \
                 worked on the request is not known.",
            ),
            Fault::FirstByteTimeout => {
                Refusal::new(504, code, "The backend did not begin to answer in time.")
            }
            Fault::RetryTimeout => {
                Refusal::new(504, code, "No backend began to answer within routing.retry.timeout.")
            }
            Fault::BackendEjected => {
                Refusal::new(503, code, "The backend went out of service before it answered.")
            }
            Fault::BackendFull => {
                Refusal::new(429, code, "All backends have as many requests as they may.")
                    .with_retry_after(1)
            }
            Fault::BackendLoading => {
                Refusal::new(503, code, "The backend is still loading its model.")
            }
            Fault::BackendLoops => Refusal::new(508, code, "The backend leads back to this proxy."),
            Fault::ForeignAnswer => Refusal::new(
                502,
                code,
                "The backend answered with what belongs to another request.",
            ),
            Fault::BackendIdleTimeout => {
                Refusal::new(504, code, "The backend went silent inside its answer.")
            }
            Fault::BadResponse(why) => {
                Refusal::new(502, code, "The backend's answer is not valid HTTP: ")
                    .with_message(format!("The backend's answer is not valid HTTP: {why}."))
            }
            Fault::ClientLeft => Refusal::closing(499, code, "The client closed the connection."),
            Fault::ClientWriteTimeout => {
                Refusal::closing(408, code, "The client took no byte of the answer in time.")
            }
            Fault::QuotaExhausted => Refusal::new(429, code, "The quota of the key is used up."),
            Fault::ShuttingDown => Refusal::closing(503, code, "The proxy is shutting down."),
            Fault::Panicked => Refusal::closing(500, code, "The proxy failed; please report this."),
        }
    }
}
