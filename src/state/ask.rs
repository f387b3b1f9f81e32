//! Questions of threads that must not block to one that may: a bounded queue, and an answer for
//! each question. Equal questions that wait at the same time are answered once, for all who asked.

use crossbeam_channel::{bounded, Receiver, Sender};
use futures_channel::oneshot;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

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
}

/// Makes a queue in which so many questions can wait.
pub fn queue<Q, A>(waiting_max: usize) -> (Ask<Q, A>, Questions<Q, A>) {
    let (questions, waiting) = bounded(waiting_max);
    let ask = Ask { questions, turned_away: Arc::default() };
    (ask, Questions { waiting, taken: Vec::new(), waiting_max })
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
}
