//! What an outage of a provider costs: the first few questions wait for its time limit, and then it
//! is left alone for a moment, in which all questions fail at once. After that one question tries
//! it again. The log tells of the beginning and of the end.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many failures with no answer between them are an outage. One alone may be the matter of one
/// key: who can make a provider hang with a key of their own must not take it from all others.
const FAILURES_MAX: u32 = 3;
/// A provider that is out is left alone for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// Lines about failures come no more often than this.
const LINE_PAUSE: Duration = Duration::from_secs(10);

/// Whether one provider can be asked.
pub struct Circuit {
    provider: String,
    place: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Since the last answer.
    failures: u32,
    /// Nobody asks before this.
    closed_until: Option<Instant>,
    /// An outage that was told: since when.
    told: Option<Instant>,
    last_line: Option<Instant>,
}

impl State {
    fn may_tell(&mut self, now: Instant) -> bool {
        let recently = |last: Instant| now.saturating_duration_since(last) < LINE_PAUSE;
        let may = !self.last_line.is_some_and(recently);
        if may {
            self.last_line = Some(now);
        }
        may
    }
}

impl Circuit {
    /// Of a provider that has not been asked yet.
    pub fn new(provider: &str, place: String) -> Circuit {
        Circuit { provider: provider.to_owned(), place, state: Mutex::default() }
    }

    /// Whether a question may be asked now. In an outage one may, once after each pause; the next
    /// one when that has had its answer, or its time.
    pub fn lets_through(&self, now: Instant, patience: Duration) -> bool {
        let mut state = self.lock();
        match state.closed_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                state.closed_until = Some(now + patience + PAUSE);
                true
            }
        }
    }

    /// It answered, whatever it said.
    pub fn note_answer(&self) {
        let mut state = self.lock();
        (state.failures, state.closed_until) = (0, None);
        if let Some(since) = state.told.take() {
            let (provider, place) = (&self.provider, &self.place);
            let seconds = since.elapsed().as_secs();
            tracing::info!(%provider, %place, seconds, "the provider of keys answers again");
        }
    }

    /// It could not be asked.
    pub fn note_failure(&self, now: Instant, why: &str) {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES_MAX {
            state.closed_until = Some(now + PAUSE);
        }
        if state.told.is_none() && state.may_tell(now) {
            state.told = Some(now);
            let (provider, place) = (&self.provider, &self.place);
            tracing::warn!(%provider, %place, %why, "the provider of keys cannot be asked");
        }
    }

    /// It answered what is of no use.
    pub fn tell_odd(&self, now: Instant, why: &str) {
        if self.lock().may_tell(now) {
            let (provider, place) = (&self.provider, &self.place);
            tracing::warn!(%provider, %place, %why, "the provider of keys gave no usable answer");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// Catches: an outage in which every question waits for the time limit, a provider that is
    /// never tried again, a crowd that tries it at once.
    #[test]
    fn in_an_outage_one_question_tries_after_each_pause() {
        let circuit = Circuit::new("p", "redis://h".into());
        let now = Instant::now();
        let lets = |after: Duration| circuit.lets_through(now + after, PATIENCE);
        for _ in 0..FAILURES_MAX {
            assert!(lets(Duration::ZERO));
            circuit.note_failure(now, "gone");
        }
        let almost = PAUSE - Duration::from_millis(1);
        assert!(!lets(Duration::ZERO) && !lets(almost));
        assert!(lets(PAUSE), "one may try");
        assert!(!lets(PAUSE) && !lets(PAUSE + PATIENCE), "and no other, until it has its answer");
        circuit.note_failure(now + PAUSE, "gone");
        assert!(!lets(PAUSE + almost) && lets(PAUSE * 2));
        // Of one that never says what became of it (it panicked) the time is over some day.
        assert!(lets(PAUSE * 3 + PATIENCE));
        circuit.note_answer();
        assert!(lets(Duration::ZERO) && lets(Duration::ZERO));
    }

    /// Catches: a single key that takes a provider from all others.
    #[test]
    fn failures_between_answers_are_no_outage() {
        let circuit = Circuit::new("p", String::new());
        let now = Instant::now();
        for _ in 0..10 * FAILURES_MAX {
            circuit.note_failure(now, "odd");
            assert!(circuit.lets_through(now, PATIENCE));
            circuit.note_answer();
        }
    }
}
