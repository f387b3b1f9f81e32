//! What a backend's own answers say about it. Everybody who was sent there tells how it went; a
//! backend that fails several in a row is ejected for a while, and then one request at a time tries
//! whether it is back. Pure: the caller brings the time. `state::member` keeps one [`Repute`] for
//! each backend in an atomic that all workers share.
//!
//! The rules are those of Envoy's outlier detection and linkerd's failure accrual, with numbers for
//! engines: see `base/limits.rs`.

use crate::base::fault::Fault;
use crate::base::limits::{
    EJECTION_FORGOTTEN, EJECTION_MAX, EJECTION_STEP, FAILED_ANSWERS_MAX, FAILED_CONNECTS_MAX,
    STREAM_ALIVE,
};
use std::time::Duration;

/// Time since the backend was first seen, in tenths of a second: it fits beside the rest in one
/// atomic, for 13 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tenths(pub u32);

impl Tenths {
    /// A duration, rounded down.
    pub fn of(time: Duration) -> Tenths {
        Tenths(u32::try_from(time.as_millis() / 100).unwrap_or(u32::MAX))
    }

    /// Later by so much.
    pub fn plus(self, time: Duration) -> Tenths {
        Tenths(self.0.saturating_add(Tenths::of(time).0))
    }
}

/// How the body of an answer comes. An engine may fail in one form and serve the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyForm {
    /// As events, or lines.
    Stream = 0,
    /// As a whole.
    Whole = 1,
}

/// What one request found out about its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// An answer of a backend that works, be it a refusal of this request. Of a stream that is its
    /// head, which says little: see below.
    Good,
    /// The same, to a request for which the backend was picked then.
    GoodSince(Tenths),
    /// A body of status 200 in which its model spoke, or that came well to its end.
    GoodInside(BodyForm),
    /// A body of status 200 that told of an error, for which this status stands.
    BadInside(BodyForm, u16),
    /// No connection could be made.
    NoConnection(Fault),
    /// A connection was made, and no answer came of it, or half of one.
    NoAnswer(Fault),
    /// An answer that says that the backend cannot answer: 5xx, 508 among them (it leads back to
    /// where the request came from).
    BadGateway(u16),
}

impl Evidence {
    /// What a fault says about the backend; `None` where it says nothing. A kept connection that
    /// was closed under us is no fault of the engine.
    pub fn of_fault(fault: Fault) -> Option<Evidence> {
        match fault {
            Fault::Unresolved
            | Fault::ConnectFailed
            | Fault::ConnectTimeout
            | Fault::TlsFailed(_) => Some(Evidence::NoConnection(fault)),
            Fault::BackendClosed
            | Fault::BackendClosedReused
            | Fault::FirstByteTimeout
            | Fault::ForeignAnswer
            | Fault::BadResponse(_)
            | Fault::BackendIdleTimeout
            | Fault::BackendBroke => Some(Evidence::NoAnswer(fault)),
            // The status is heard for itself; an ejection proves nothing that was not known.
            Fault::BackendLoading
            | Fault::BackendLoops
            | Fault::BackendEjected
            | Fault::BackendFull => None,
            // Its own time was not over.
            Fault::RetryTimeout => None,
            Fault::ReuseRace
            | Fault::ClientLeft
            | Fault::ClientWriteTimeout
            | Fault::QuotaExhausted
            | Fault::ShuttingDown
            | Fault::Panicked => None,
        }
    }

    /// What the status of an answer says. A 503 that says that the backend is full, for which it is
    /// left alone for a while, is no illness; one that does not is not left alone either, and so it
    /// counts. 4xx is about the request, and so are 501 and 505. A 500 may be, but an engine whose
    /// core has died answers nothing else.
    pub fn of_status(status: u16, is_full: bool) -> Evidence {
        match status {
            501 | 505 => Evidence::Good,
            503 if is_full => Evidence::Good,
            500..=599 => Evidence::BadGateway(status),
            _ => Evidence::Good,
        }
    }

    /// Whether it is likely that who waits at the backend waits in vain: it is not there, or does
    /// not answer. One that answers, however badly, may be at work for them.
    pub fn is_of_death(self) -> bool {
        matches!(self, Evidence::NoConnection(_) | Evidence::NoAnswer(_))
    }

    /// In words, for the log.
    pub fn words(self) -> String {
        match self {
            Evidence::Good | Evidence::GoodSince(_) | Evidence::GoodInside(_) => "an answer".into(),
            Evidence::BadInside(BodyForm::Stream, status) => {
                format!("a stream with an error inside ({status})")
            }
            Evidence::BadInside(BodyForm::Whole, status) => {
                format!("an answer of status 200 with an error inside ({status})")
            }
            Evidence::BadGateway(status) => format!("an answer with status {status}"),
            Evidence::NoConnection(fault) | Evidence::NoAnswer(fault) => {
                fault.refusal().message.trim_end_matches('.').to_owned()
            }
        }
    }
}

// Three bits each.
const _: () = assert!(FAILED_ANSWERS_MAX <= 7 && FAILED_CONNECTS_MAX <= 7);
// A tenth of the longest, in tenths of a second.
const _: () = assert!(EJECTION_MAX.as_secs() <= u8::MAX as u64);

/// How a backend stands with those who were sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repute {
    /// Connections in a row that could not be made.
    connects: u8,
    /// Answers in a row that were none.
    answers: u8,
    /// Answers in a row that told of an error inside, by their [`BodyForm`]. Counted apart: their
    /// heads are good answers, and so may be all of the other form.
    inside: [u8; 2],
    /// Ejections since it last was well for a while: how long the next one is.
    ejections: u8,
    is_out: bool,
    /// One request was sent to see whether it is back.
    is_tried: bool,
    /// By how many tenths of a second this ejection is longer than those before it would have it.
    spread: u8,
    /// While ejected: when the next request may try, or when the one that tries was sent there.
    /// Otherwise: since when it is in.
    at: Tenths,
}

/// What became of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was ejected, for so long.
    Ejected(Duration),
    /// Whoever tried it failed; it stays out for so long. Nobody needs to be told.
    StaysOut(Duration),
    /// It is back.
    Back,
}

impl Repute {
    /// True when nothing was ever said against it, or all of it is forgotten.
    pub fn is_spotless(self) -> bool {
        self == Repute::default()
    }

    /// True while it is ejected.
    pub fn is_out(self) -> bool {
        self.is_out
    }

    /// Of one that is ejected: when a request may try it; `None`: one does.
    pub fn next_try(self) -> Option<Tenths> {
        (self.is_out && !self.is_tried).then_some(self.at)
    }

    /// What evidence makes of it. `alive`: when an answer of it last grew. `jitter`, any number,
    /// spreads the end of ejections, so that proxies beside each other do not try in step.
    pub fn hear(
        self,
        evidence: Evidence,
        now: Tenths,
        alive: Option<Tenths>,
        jitter: u32,
    ) -> (Repute, Option<Change>) {
        let mut next = self;
        let is_full = match evidence {
            Evidence::Good => return self.hear_good(now, None),
            Evidence::GoodSince(picked) => return self.hear_good(now, Some(picked)),
            Evidence::GoodInside(form) => {
                next.set_inside(form, 0);
                return (next, None);
            }
            // Those that were sent before it was ejected still fail, and prove nothing new.
            _ if self.is_out && !self.is_tried => return (self, None),
            Evidence::NoConnection(_) => {
                next.connects = self.connects.saturating_add(1);
                u32::from(next.connects) >= FAILED_CONNECTS_MAX
            }
            // A backend from which others get their tokens is slow, and not dead.
            Evidence::NoAnswer(fault)
                if fault.is_timeout()
                    && alive.is_some_and(|alive| now <= alive.plus(STREAM_ALIVE)) =>
            {
                return (self, None);
            }
            Evidence::NoAnswer(_) | Evidence::BadGateway(_) => {
                next.answers = self.answers.saturating_add(1);
                u32::from(next.answers) >= FAILED_ANSWERS_MAX
            }
            Evidence::BadInside(form, _) => {
                let count = next.set_inside(form, self.inside_of(form).saturating_add(1));
                u32::from(count) >= FAILED_ANSWERS_MAX
            }
        };
        if !is_full && !self.is_out {
            return (next, None);
        }
        let (next, time) = next.ejected(now, jitter);
        let change = if self.is_out { Change::StaysOut(time) } else { Change::Ejected(time) };
        (next, Some(change))
    }

    fn hear_good(self, now: Tenths, picked: Option<Tenths>) -> (Repute, Option<Change>) {
        if self.is_out {
            // What was sent there before it was ejected proves nothing new, be it good or bad; nor
            // does what was sent before the one that tries it (a tenth is lost in rounding).
            let is_old = match self.is_tried {
                true => picked.is_some_and(|picked| picked.0 + 1 < self.at.0),
                false => picked.is_none_or(|picked| picked <= self.out_at()),
            };
            if is_old {
                return (self, None);
            }
            let back = Repute { ejections: self.ejections, at: now, ..self.with_inside() };
            return (back, Some(Change::Back));
        }
        if self.ejections > 0 && now < self.at.plus(EJECTION_FORGOTTEN) {
            return (Repute { connects: 0, answers: 0, ..self }, None);
        }
        (self.with_inside(), None)
    }

    /// All is forgotten but what bodies said: neither a head nor an answer that is none says
    /// anything of that. So a backend that was ejected for its streams and is back is ejected by
    /// the next one that fails.
    fn with_inside(self) -> Repute {
        Repute { inside: self.inside, ..Repute::default() }
    }

    fn inside_of(self, form: BodyForm) -> u8 {
        self.inside.get(form as usize).copied().unwrap_or_default()
    }

    /// Sets how many of a form failed in a row; gives it.
    fn set_inside(&mut self, form: BodyForm, count: u8) -> u8 {
        let count = count.min(FAILED_ANSWERS_MAX as u8);
        if let Some(slot) = self.inside.get_mut(form as usize) {
            *slot = count;
        }
        count
    }

    /// When it was ejected, or later.
    fn out_at(self) -> Tenths {
        let time = Tenths::of(pause(self.ejections)).0 + u32::from(self.spread);
        Tenths(self.at.0.saturating_sub(time))
    }

    /// Ejected once more, and for how long.
    fn ejected(self, now: Tenths, jitter: u32) -> (Repute, Duration) {
        let ejections = self.ejections.saturating_add(1);
        let time = pause(ejections);
        // Up to a tenth more.
        let time = time + time.mul_f64(f64::from(jitter % 101) / 1000.0);
        let spread = (Tenths::of(time).0 - Tenths::of(pause(ejections)).0) as u8;
        let at = now.plus(time);
        let out = Repute { ejections, is_out: true, at, spread, ..self.with_inside() };
        (out, time)
    }

    /// Whether a request may go there. Of an ejected backend, one may when its time is over, and
    /// nobody else until that one is answered; when it is not within `patience`, it has failed, and
    /// `Some` change says so.
    pub fn admit(
        self,
        now: Tenths,
        jitter: u32,
        patience: Duration,
    ) -> (Repute, bool, Option<Change>) {
        if !self.is_out {
            return (self, true, None);
        }
        let until = if self.is_tried { self.at.plus(patience) } else { self.at };
        if now < until {
            return (self, false, None);
        }
        if self.is_tried {
            let (next, time) = self.ejected(now, jitter);
            return (next, false, Some(Change::StaysOut(time)));
        }
        (Repute { is_tried: true, at: now, ..self }, true, None)
    }

    /// Whoever tried it left before there was anything to learn: the next one may try at once.
    pub fn untried(self, now: Tenths) -> Repute {
        match self.is_out && self.is_tried {
            true => Repute { is_tried: false, at: now, ..self },
            false => self,
        }
    }

    /// Something else says that it is back: the next request may try it.
    pub fn due(self, now: Tenths) -> Repute {
        match self.is_out {
            true => Repute { is_tried: false, at: now, ..self },
            false => self,
        }
    }

    /// In one word for an atomic.
    pub fn pack(self) -> u64 {
        let flags = u64::from(self.is_out) | u64::from(self.is_tried) << 1;
        let [streams, wholes] = self.inside.map(u64::from);
        let flags = flags | streams << 2 | wholes << 5;
        let failed = self.connects.min(15) << 4 | self.answers.min(15);
        let counts = [failed, self.spread, self.ejections];
        let counts = counts.into_iter().fold(0, |word, count| word << 8 | u64::from(count));
        u64::from(self.at.0) << 32 | counts << 8 | flags
    }

    /// From such a word.
    pub fn unpack(word: u64) -> Repute {
        let byte = |shift: u32| (word >> shift) as u8;
        Repute {
            connects: byte(24) >> 4,
            answers: byte(24) & 15,
            spread: byte(16),
            ejections: byte(8),
            inside: [byte(0) >> 2 & 7, byte(0) >> 5],
            is_out: word & 1 == 1,
            is_tried: word & 2 == 2,
            at: Tenths((word >> 32) as u32),
        }
    }
}

/// How long the ejection of this number lasts, in a row of them.
fn pause(ejections: u8) -> Duration {
    (EJECTION_STEP * u32::from(ejections)).min(EJECTION_MAX)
}

#[cfg(test)]
mod tests;
