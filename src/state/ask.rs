//! Questions of threads that must not block to one that may: a bounded queue, and an answer for
//! each question. Equal questions that wait at the same time are answered once, for all who asked.

use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use futures_channel::oneshot;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Where the answer to a question comes. It is cancelled when the answering end is gone, or gives
/// no answer. Whoever waits for it does so under a deadline of its own.
pub type Reply<A> = oneshot::Receiver<A>;

/// The end that asks; there may be many.
pub struct Ask<Q, A> {
    questions: Sender<Question<Q, A>>,
    turned_away: Arc<AtomicU64>,
}

struct Question<Q, A> {
    about: Q,
    reply: oneshot::Sender<A>,
}

/// The end that answers.
pub struct Questions<Q, A> {
    waiting: Receiver<Question<Q, A>>,
    /// Taken from the queue, and not answered yet; no more than can wait there.
    taken: Vec<Question<Q, A>>,
    waiting_max: usize,
    turned_away: Arc<AtomicU64>,
}

/// The end that answers, for several threads at a time. A question that equals one that a thread is
/// at is not asked again: it gets the same answer.
pub struct SharedQuestions<Q, A> {
    waiting: Receiver<Question<Q, A>>,
    under_way: Mutex<AllUnderWay<Q, A>>,
    /// So many may wait for one answer. Beyond: turned away.
    waiters_max: usize,
    turned_away: Arc<AtomicU64>,
}

/// What all threads are at.
struct AllUnderWay<Q, A> {
    list: Vec<UnderWay<Q, A>>,
    /// Each question has a number of its own.
    next: u64,
}

/// A question that a thread is at.
struct UnderWay<Q, A> {
    about: Q,
    /// State of the source when the answering began.
    version: u64,
    waiters: Vec<oneshot::Sender<A>>,
    number: u64,
}

/// Makes a queue in which so many questions can wait.
pub fn queue<Q, A>(waiting_max: usize) -> (Ask<Q, A>, Questions<Q, A>) {
    let (questions, waiting) = bounded(waiting_max);
    let turned_away = Arc::<AtomicU64>::default();
    let ask = Ask { questions, turned_away: Arc::clone(&turned_away) };
    (ask, Questions { waiting, taken: Vec::new(), waiting_max, turned_away })
}

impl<Q, A> Clone for Ask<Q, A> {
    fn clone(&self) -> Self {
        Ask { questions: self.questions.clone(), turned_away: Arc::clone(&self.turned_away) }
    }
}

impl<Q, A> Ask<Q, A> {
    /// Asks, without waiting. `None`: as many wait as may, or nobody answers any more; counted.
    pub fn ask(&self, about: Q) -> Option<Reply<A>> {
        let (reply, answer) = oneshot::channel();
        match self.questions.try_send(Question { about, reply }) {
            Ok(()) => Some(answer),
            Err(_) => {
                self.turned_away.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Counts the questions that there was no room for.
    pub fn turned_away(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.turned_away)
    }
}

impl<Q, A> Questions<Q, A> {
    /// Makes it the end of several threads.
    pub fn shared(self) -> SharedQuestions<Q, A> {
        SharedQuestions {
            waiting: self.waiting,
            under_way: Mutex::new(AllUnderWay { list: Vec::new(), next: 0 }),
            waiters_max: self.waiting_max,
            turned_away: self.turned_away,
        }
    }
}

/// Questions, each with the way for its answer.
pub type TakenQuestions<Q, A> = Vec<(Q, oneshot::Sender<A>)>;

impl<Q, A> Questions<Q, A> {
    /// Waits for questions until a moment, and takes those that are there: so many at most, each
    /// for itself. `None`: all who could ask are gone. Blocks: control plane only.
    pub fn take(&self, until: Instant, most: usize) -> Option<TakenQuestions<Q, A>> {
        let first = match self.waiting.recv_deadline(until) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => return Some(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return None,
        };
        let rest = self.waiting.try_iter().take(most.saturating_sub(1));
        let all = std::iter::once(first).chain(rest);
        // Whoever gave up meanwhile needs no answer.
        let all = all.filter(|question| !question.reply.is_canceled());
        Some(all.map(|Question { about, reply }| (about, reply)).collect())
    }
}

impl<Q: PartialEq + Clone, A: Clone> SharedQuestions<Q, A> {
    /// Waits for a question and has it answered, for all who ask the same meanwhile. `version` is
    /// the state of what is asked: who asks after a change does not get an answer that was begun
    /// before it. False: all who could ask are gone. Blocks: control plane only.
    pub fn answer_next(&self, version: impl Fn() -> u64, answer: impl FnOnce(&Q) -> A) -> bool {
        self.answer_until(None, version, answer)
    }

    /// The same for whoever has something else to do at a moment: it does not wait longer than
    /// that. A question that is there already is answered first.
    pub fn answer_until(
        &self,
        until: Option<Instant>,
        version: impl Fn() -> u64,
        answer: impl FnOnce(&Q) -> A,
    ) -> bool {
        let question = match until {
            None => self.waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => self.waiting.recv_deadline(until),
        };
        let Question { about, reply } = match question {
            Ok(question) => question,
            Err(error) => return error == RecvTimeoutError::Timeout,
        };
        // Whoever gave up meanwhile needs no answer.
        if reply.is_canceled() {
            return true;
        }
        let Some(number) = self.begin(&about, version(), reply) else { return true };
        // If answering panics, those who wait are told at once that there is no answer.
        let mut ends = EndsWith { shared: self, number };
        let answer = answer(&about);
        for waiter in ends.take_waiters() {
            // One who has given up by now misses nothing.
            let _ = waiter.send(answer.clone());
        }
        true
    }

    /// The number of a question that is to be answered now; `None`: another thread is at it.
    fn begin(&self, about: &Q, version: u64, reply: oneshot::Sender<A>) -> Option<u64> {
        let mut all = self.lock();
        let equal = |other: &&mut UnderWay<Q, A>| other.version == version && other.about == *about;
        if let Some(other) = all.list.iter_mut().find(equal) {
            if other.waiters.len() < self.waiters_max {
                other.waiters.push(reply);
            } else {
                self.turned_away.fetch_add(1, Ordering::Relaxed);
            }
            return None;
        }
        let number = all.next;
        all.next += 1;
        all.list.push(UnderWay { about: about.clone(), version, waiters: vec![reply], number });
        Some(number)
    }
}

impl<Q, A> SharedQuestions<Q, A> {
    fn lock(&self) -> MutexGuard<'_, AllUnderWay<Q, A>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a question from those that are under way when it goes.
struct EndsWith<'a, Q, A> {
    shared: &'a SharedQuestions<Q, A>,
    number: u64,
}

impl<Q, A> EndsWith<'_, Q, A> {
    fn take_waiters(&mut self) -> Vec<oneshot::Sender<A>> {
        let mut all = self.shared.lock();
        let place = all.list.iter().position(|one| one.number == self.number);
        place.map(|place| all.list.swap_remove(place).waiters).unwrap_or_default()
    }
}

impl<Q, A> Drop for EndsWith<'_, Q, A> {
    fn drop(&mut self) {
        drop(self.take_waiters());
    }
}

impl<Q: PartialEq, A: Clone> Questions<Q, A> {
    /// Waits for a question and has it answered, once for all who ask the same by now. False: all
    /// who could ask are gone. Blocks: control plane only.
    pub fn answer_next(&mut self, answer: impl FnOnce(&Q) -> A) -> bool {
        if self.taken.is_empty() {
            let Ok(first) = self.waiting.recv() else { return false };
            self.taken.push(first);
        }
        let room = self.waiting_max.saturating_sub(self.taken.len());
        self.taken.extend(self.waiting.try_iter().take(room));
        // Whoever gave up meanwhile needs no answer.
        self.taken.retain(|question| !question.reply.is_canceled());
        if self.taken.is_empty() {
            return true;
        }
        let Question { about, reply } = self.taken.remove(0);
        let answer = answer(&about);
        for equal in self.taken.extract_if(.., |other| other.about == about) {
            // One who has given up by now misses nothing.
            let _ = equal.reply.send(answer.clone());
        }
        let _ = reply.send(answer);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a queue that grows, a question that waits unanswered, and one that is answered
    /// twice though nothing came between.
    #[test]
    fn equal_questions_are_answered_once_and_others_in_their_order() {
        let (ask, mut questions) = queue::<&str, usize>(4);
        let other = ask.clone();
        let mut replies: Vec<_> =
            ["a", "b", "a", "a"].into_iter().map(|about| ask.ask(about).unwrap()).collect();
        assert!(other.ask("c").is_none());
        assert_eq!(ask.turned_away().load(Ordering::Relaxed), 1);
        drop(replies.pop());
        let mut answered = Vec::new();
        for n in 0..2 {
            assert!(questions.answer_next(|about| {
                answered.push(*about);
                n
            }));
        }
        assert_eq!(answered, ["a", "b"]);
        let got = replies.iter_mut().map(|reply| reply.try_recv().unwrap());
        assert_eq!(got.collect::<Vec<_>>(), [Some(0), Some(1), Some(0)]);
    }

    /// Catches: a batch that is too large, one with somebody who has left, an end that nobody sees.
    #[test]
    fn questions_are_taken_together() {
        let (ask, questions) = queue::<u8, u8>(8);
        let mut replies: Vec<_> = (0..4).map(|n| ask.ask(n).unwrap()).collect();
        drop(replies.remove(1));
        let soon = || Instant::now() + std::time::Duration::from_millis(1);
        let taken = questions.take(soon(), 3).unwrap();
        assert_eq!(taken.iter().map(|(about, _)| *about).collect::<Vec<_>>(), [0, 2]);
        taken.into_iter().for_each(|(about, reply)| reply.send(about + 1).unwrap());
        assert_eq!(replies[1].try_recv(), Ok(Some(3)));
        assert_eq!(questions.take(soon(), 3).unwrap().len(), 1);
        assert!(questions.take(soon(), 3).is_some_and(|none| none.is_empty()));
        drop(ask);
        assert!(questions.take(soon(), 3).is_none());
    }

    /// Catches: questions that pile up where nobody counts them.
    #[test]
    fn what_is_taken_and_not_answered_counts_as_waiting() {
        let (ask, mut questions) = queue::<u32, ()>(4);
        let mut replies = Vec::new();
        for about in 0..40 {
            replies.extend(ask.ask(about));
            if about % 4 == 3 {
                assert!(questions.answer_next(|_| {}));
            }
            assert!(questions.taken.len() + questions.waiting.len() <= 8);
        }
        assert!(ask.turned_away().load(Ordering::Relaxed) > 0);
    }

    /// Catches: work for somebody who has left, an end that nobody sees.
    #[test]
    fn who_gave_up_is_not_answered_and_the_end_is_seen() {
        let (ask, mut questions) = queue::<(), ()>(2);
        drop(ask.ask(()));
        assert!(questions.answer_next(|()| panic!("nobody wants to know")));
        let mut kept = ask.ask(()).unwrap();
        drop(ask);
        assert!(questions.answer_next(|()| {}));
        assert!(!questions.answer_next(|()| panic!("nobody can ask")));
        assert_eq!(kept.try_recv(), Ok(Some(())));
    }

    /// Catches: an asker that waits for ever because answering failed.
    #[test]
    fn an_answer_that_panics_is_no_answer() {
        let (ask, mut questions) = queue::<(), ()>(2);
        let mut reply = ask.ask(()).unwrap();
        let answering = std::panic::AssertUnwindSafe(|| questions.answer_next(|()| panic!()));
        assert!(std::panic::catch_unwind(answering).is_err());
        assert!(reply.try_recv().is_err());
        let mut again = ask.ask(()).unwrap();
        assert!(questions.answer_next(|()| {}));
        assert_eq!(again.try_recv(), Ok(Some(())));
    }

    /// Catches: a question that is asked of a slow source again and again while it is at it, one
    /// that gets what was read before a change, a waiter that is forgotten, a list that grows.
    #[test]
    fn who_asks_the_same_meanwhile_gets_the_same_answer() {
        let (ask, questions) = queue::<u8, u8>(2);
        let shared = Arc::new(questions.shared());
        let (begun, begins) = bounded(1);
        let (go, waits) = bounded(1);
        let mut first = ask.ask(1).unwrap();
        let slow = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            slow.answer_next(
                || 0,
                |about| {
                    begun.send(()).unwrap();
                    waits.recv().unwrap();
                    *about + 10
                },
            )
        });
        begins.recv().unwrap();
        let mut same = ask.ask(1).unwrap();
        assert!(shared.answer_next(|| 0, |_| panic!("it is being answered")));
        let mut beyond = ask.ask(1).unwrap();
        assert!(shared.answer_next(|| 0, |_| panic!("it is being answered")));
        assert!(beyond.try_recv().is_err(), "no more wait for one answer than may");
        let mut other = ask.ask(2).unwrap();
        assert!(shared.answer_next(|| 0, |about| *about + 20));
        assert_eq!(other.try_recv(), Ok(Some(22)));
        let mut changed = ask.ask(1).unwrap();
        assert!(shared.answer_next(|| 1, |about| *about + 30));
        assert_eq!(changed.try_recv(), Ok(Some(31)));
        go.send(()).unwrap();
        assert!(thread.join().unwrap());
        assert_eq!((first.try_recv(), same.try_recv()), (Ok(Some(11)), Ok(Some(11))));
        assert_eq!(ask.turned_away().load(Ordering::Relaxed), 1);
        assert!(shared.lock().list.is_empty());
    }

    /// Catches: a question that can never be asked again since its answering panicked, a thread
    /// that outlives all who could ask.
    #[test]
    fn a_shared_end_outlives_a_panic_and_ends_with_those_who_ask() {
        let (ask, questions) = queue::<u8, u8>(2);
        let shared = questions.shared();
        let mut lost = ask.ask(1).unwrap();
        let answering =
            std::panic::AssertUnwindSafe(|| shared.answer_next(|| 0, |_| panic!("on purpose")));
        assert!(std::panic::catch_unwind(answering).is_err());
        assert!(lost.try_recv().is_err());
        let mut again = ask.ask(1).unwrap();
        assert!(shared.answer_next(|| 0, |about| *about));
        assert_eq!(again.try_recv(), Ok(Some(1)));
        drop(ask.ask(1));
        assert!(shared.answer_next(|| 0, |_| panic!("nobody wants to know")));
        drop(ask);
        assert!(!shared.answer_next(|| 0, |_| panic!("nobody can ask")));
    }

    /// Catches: a thread with other work that waits for a question for ever, that takes the end of
    /// its patience for the end of all who ask, or that leaves a question for its work.
    #[test]
    fn who_has_other_work_waits_for_questions_until_then() {
        let (ask, questions) = queue::<u8, u8>(2);
        let (shared, now) = (questions.shared(), Some(Instant::now()));
        assert!(shared.answer_until(now, || 0, |_| panic!("nobody asked")));
        let mut asked = ask.ask(1).unwrap();
        assert!(shared.answer_until(now, || 0, |about| about + 1));
        assert_eq!(asked.try_recv(), Ok(Some(2)));
        drop(ask);
        assert!(!shared.answer_until(now, || 0, |_| panic!("nobody can ask")));
    }

    /// Catches: a thread that, done with its own question, ends that of another.
    #[test]
    fn no_thread_ends_the_question_of_another() {
        let (ask, questions) = queue::<u32, u32>(64);
        let shared = Arc::new(questions.shared());
        let answering: Vec<_> = (0..4)
            .map(|_| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || while shared.answer_next(|| 0, |about| *about) {})
            })
            .collect();
        for round in 0..5_000 {
            let asked: Vec<_> = (0..4).map(|n| (round + n, ask.ask(round + n).unwrap())).collect();
            for (about, mut reply) in asked {
                while reply.try_recv().expect("it is answered").is_none_or(|got| got != about) {
                    std::thread::yield_now();
                }
            }
        }
        drop(ask);
        answering.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
