//! Requests that wait because everybody who could take them has as many as they may: in which order
//! they come, over all workers, without a lock.
//!
//! The order is that of start-time fair queueing (Goyal, Vin, Cheng 1996): the start tag of a
//! request is the service that had been given when it came, or what its key had been promised by
//! then, whichever is more, and what it is likely to cost is promised to its key. The smallest tag
//! is next. So whoever sends much waits behind its own requests, and whoever sends little comes in
//! between. Each worker keeps its own waiting requests, and shows the first of them here.

use super::member::MemberId;
use crate::base::limits::QUEUE_KEYS;
use arc_swap::ArcSwapOption;
use atomic_waker::AtomicWaker;
use std::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::task::Waker;

/// A place in the order, in estimated tokens of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StartTag(u64);

/// No request has it.
const NOBODY: u64 = u64::MAX;

/// What all queues of the process share. It goes from view to view.
pub struct Queues {
    /// The largest tag of a request that was let in.
    given: AtomicU64,
    /// What keys were promised, found by a hash: two keys may share one.
    promised: Box<[AtomicU64]>,
    waiting: AtomicU32,
    numbers: AtomicU64,
    /// Those of the view in use.
    current: ArcSwapOption<Vec<Arc<FairQueue>>>,
}

impl Default for Queues {
    fn default() -> Queues {
        Queues {
            given: AtomicU64::new(0),
            promised: (0..QUEUE_KEYS).map(|_| AtomicU64::new(0)).collect(),
            waiting: AtomicU32::new(0),
            numbers: AtomicU64::new(0),
            current: ArcSwapOption::empty(),
        }
    }
}

impl Queues {
    /// The tag of a request of a key, that is likely to cost so many tokens.
    pub fn tag(&self, key: u64, tokens: u32) -> StartTag {
        let given = self.given.load(Ordering::Relaxed);
        let mut start = given;
        let promise = |before: u64| {
            start = before.max(given);
            Some(start.saturating_add(u64::from(tokens.max(1))).min(NOBODY - 1))
        };
        if let Some(promised) = self.promised.get(key as usize % QUEUE_KEYS) {
            // It cannot fail: there always is a next value.
            let _ = promised.fetch_update(Ordering::Relaxed, Ordering::Relaxed, promise);
        }
        StartTag(start)
    }

    /// A request with this tag was let in.
    pub fn give(&self, tag: StartTag) {
        self.given.fetch_max(tag.0, Ordering::Relaxed);
    }

    /// One that no other request has: of those with one tag, the smaller one comes first.
    pub fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Requests that wait, of all groups and workers.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// One more waits, if no more than so many do.
    pub fn enter(&self, max: u32) -> bool {
        let one_more = |now: u32| (now < max).then(|| now + 1);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// One of them does not wait any more.
    pub fn leave(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// These are the queues from now on.
    pub fn set_current(&self, queues: Vec<Arc<FairQueue>>) {
        self.current.store(Some(Arc::new(queues)));
    }

    /// A request left a backend: whoever is next among those that wait for it is called.
    pub fn note_room(&self, at: MemberId) {
        // Pairs with the fence of `show`: either we see who waits, or they see the room.
        fence(Ordering::SeqCst);
        if self.waiting() == 0 {
            return;
        }
        let current = self.current.load();
        let queues = current.iter().flat_map(|queues| queues.iter());
        queues.filter(|queue| queue.members.contains(&at)).for_each(|queue| queue.call_first());
    }
}

/// The queue for one group of backends.
pub struct FairQueue {
    members: Vec<MemberId>,
    waiting: AtomicU32,
    /// One for each worker.
    fronts: Box<[Front]>,
}

/// The first of those that wait at one worker. In cache lines of its own.
#[repr(align(128))]
struct Front {
    tag: AtomicU64,
    waker: AtomicWaker,
}

impl FairQueue {
    /// For these backends, of a process with so many workers.
    pub fn new(members: Vec<MemberId>, workers: usize) -> FairQueue {
        let front = |_| Front { tag: AtomicU64::new(NOBODY), waker: AtomicWaker::new() };
        let fronts = (0..workers.max(1)).map(front).collect();
        FairQueue { members, waiting: AtomicU32::new(0), fronts }
    }

    /// Requests that wait here, of all workers.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// One more waits, or one less.
    pub fn count(&self, is_more: bool) {
        match is_more {
            true => self.waiting.fetch_add(1, Ordering::Relaxed),
            false => self.waiting.fetch_sub(1, Ordering::Relaxed),
        };
    }

    /// The first of a worker's requests, and whom to wake for it; `None`: none of them waits.
    /// Whoever looks for room after this misses none: either it is there, or a call comes.
    pub fn show(&self, worker: usize, first: Option<(StartTag, &Waker)>) {
        let Some(front) = self.fronts.get(worker) else { return };
        if let Some((_, waker)) = first {
            front.waker.register(waker);
        }
        let tag = first.map_or(NOBODY, |(tag, _)| tag.0);
        front.tag.store(tag, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Whether nobody's first request comes before this worker's.
    pub fn is_first(&self, worker: usize) -> bool {
        self.first().is_none_or(|first| first == worker)
    }

    /// The worker whose request is next.
    fn first(&self) -> Option<usize> {
        let tags = self.fronts.iter().map(|front| front.tag.load(Ordering::Acquire));
        let waiting = tags.zip(0..).filter(|(tag, _)| *tag != NOBODY);
        waiting.min().map(|(_, worker)| worker)
    }

    /// Calls whoever is next, if anybody waits.
    pub fn call_first(&self) {
        if let Some(front) = self.first().and_then(|worker| self.fronts.get(worker)) {
            front.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a key that sends much and makes others wait for all of it; promises that are held
    /// against a key for ever; a newcomer before everybody because it never had anything.
    #[test]
    fn whoever_sends_much_waits_behind_itself() {
        let queues = Queues::default();
        let hog: Vec<_> = (0..5).map(|_| queues.tag(1, 100)).collect();
        assert_eq!(hog, [0, 100, 200, 300, 400].map(StartTag));
        queues.give(hog[1]);
        // Behind what was given, and before what was only promised.
        let other = queues.tag(2, 10);
        assert!(other == StartTag(100) && other < hog[2]);
        queues.give(hog[4]);
        queues.give(other);
        assert_eq!(queues.tag(3, 1), StartTag(400), "nobody saves up what it did not use");
        assert_eq!((queues.tag(1, 0), queues.tag(1, 1)), (StartTag(500), StartTag(501)));
    }

    /// Catches: more that wait than may, a count that is not given back.
    #[test]
    fn so_many_wait_and_no_more() {
        let queues = Queues::default();
        assert_eq!((0..5).filter(|_| queues.enter(3)).count(), 3);
        queues.leave();
        assert!(queues.enter(3) && !queues.enter(3) && queues.waiting() == 3);
    }

    /// Catches: a call to a worker whose request is not the next one, or to nobody; room at a
    /// backend that wakes those who wait for others.
    #[test]
    fn the_smallest_tag_of_all_workers_is_called() {
        use std::task::Wake;
        struct Calls(AtomicU32);
        impl Wake for Calls {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let calls = [(); 2].map(|()| Arc::new(Calls(AtomicU32::new(0))));
        let [one, two] = [&calls[0], &calls[1]].map(|calls| Waker::from(Arc::clone(calls)));
        let counts = || [0, 1].map(|n: usize| calls[n].0.load(Ordering::Relaxed));
        let board = crate::state::board::Board::sample(2).view();
        let [a, b] = [0, 1].map(|n: usize| board.members()[n].id());
        let (queues, queue) = (Queues::default(), Arc::new(FairQueue::new(vec![a], 2)));
        queues.set_current(vec![Arc::clone(&queue)]);
        queue.call_first();
        queue.show(0, Some((StartTag(7), &one)));
        queue.show(1, Some((StartTag(5), &two)));
        assert!(queue.is_first(1) && !queue.is_first(0));
        queues.note_room(a);
        assert_eq!(counts(), [0, 0], "nobody counts as waiting");
        assert!(queues.enter(9));
        queues.note_room(b);
        assert_eq!(counts(), [0, 0]);
        queues.note_room(a);
        assert_eq!(counts(), [0, 1]);
        queue.show(1, None);
        queues.note_room(a);
        assert_eq!(counts(), [1, 1]);
        assert!(queue.is_first(0));
    }
}
