//! A worker's sign of life, and the way to call it while it sleeps. Where nothing is open a worker
//! runs no timer: it sleeps until a client comes, or until another thread calls it.

use atomic_waker::AtomicWaker;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::task::Poll;

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const FINISHED: u8 = 2;

/// Shared by one worker, which beats and sleeps, and the threads that look at it and call it.
#[derive(Default)]
pub struct Pulse {
    beats: AtomicU64,
    state: AtomicU8,
    called: AtomicBool,
    sleeper: AtomicWaker,
}

/// What somebody who looks after a worker sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It should beat: so many beats until now.
    Awake(u64),
    /// It has nothing open and beats only when it is called: so many beats until now.
    Asleep(u64),
    /// It has ended, and stands still for good.
    Finished,
}

impl Pulse {
    /// The worker lives.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// The worker ends.
    pub fn finish(&self) {
        self.state.store(FINISHED, Ordering::Relaxed);
    }

    /// The state now.
    pub fn look(&self) -> Look {
        let beats = self.beats.load(Ordering::Relaxed);
        match self.state.load(Ordering::Relaxed) {
            AWAKE => Look::Awake(beats),
            ASLEEP => Look::Asleep(beats),
            _ => Look::Finished,
        }
    }

    /// Wakes the worker if it sleeps, or keeps it from its next sleep: what was stored before the
    /// call is seen by the worker behind it. From any thread.
    pub fn call(&self) {
        self.called.store(true, Ordering::Release);
        self.sleeper.wake();
    }

    /// Sleeps until a call. May be dropped; then [`Pulse::wake_up`] says that the sleep is over.
    pub async fn sleep(&self) {
        self.state.store(ASLEEP, Ordering::Relaxed);
        poll_fn(|cx| {
            // Before the look: a call in between is heard by the one or the other.
            self.sleeper.register(cx.waker());
            match self.called.swap(false, Ordering::AcqRel) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        self.wake_up();
    }

    /// The worker is awake from now on. True when it was asleep.
    pub fn wake_up(&self) -> bool {
        // Written by the worker alone.
        let slept = self.state.load(Ordering::Relaxed) == ASLEEP;
        if slept {
            self.state.store(AWAKE, Ordering::Relaxed);
        }
        slept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Wake, Waker};

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Catches: a call that is lost because it came before the sleep, or that ends two sleeps.
    #[test]
    fn a_call_ends_one_sleep_whether_it_comes_before_or_in_it() {
        let pulse = Pulse::default();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        pulse.call();
        assert!(pin!(pulse.sleep()).poll(&mut cx).is_ready());
        assert_eq!(pulse.look(), Look::Awake(0));
        let mut sleep = pin!(pulse.sleep());
        assert!(sleep.as_mut().poll(&mut cx).is_pending());
        assert_eq!(pulse.look(), Look::Asleep(0));
        std::thread::scope(|scope| {
            scope.spawn(|| pulse.call());
        });
        assert!(woken.0.load(Ordering::Relaxed), "the sleeper is woken");
        assert!(sleep.as_mut().poll(&mut cx).is_ready());
        pulse.beat();
        assert_eq!(pulse.look(), Look::Awake(1));
    }

    /// Catches: a worker that a client woke, and that still counts as asleep.
    #[test]
    fn a_sleep_that_is_dropped_is_over_when_its_worker_says_so() {
        let pulse = Pulse::default();
        {
            let mut sleep = pin!(pulse.sleep());
            assert!(sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        assert!(pulse.wake_up() && !pulse.wake_up());
        assert_eq!(pulse.look(), Look::Awake(0));
        pulse.finish();
        assert!(!pulse.wake_up());
        assert_eq!(pulse.look(), Look::Finished);
    }
}
