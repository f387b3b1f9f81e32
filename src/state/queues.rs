//! Requests that wait because everybody who could take them has as many as they may: in which order
//! they come, over all workers, without a lock.
//!
//! The order is that of start-time fair queueing (Goyal, Vin, Cheng 1996): the start tag of a
//! request is the service that had been given when it came, or what its key had been promised by
//! then, whichever is more, and what it is likely to cost is promised to its key. The smallest tag
//! is next. So whoever sends much waits behind its own requests, and whoever sends little comes in
//! between. Each worker keeps its own waiting requests, and shows the first of them here.

use super::member::MemberId;
use crate::base::fnv;
use crate::base::limits::QUEUE_KEYS;
use arc_swap::ArcSwap;
use atomic_waker::AtomicWaker;
use std::collections::HashMap;
use std::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::task::Waker;

/// A place in the order, in estimated tokens of service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StartTag(u64);

/// No request has it.
const NOBODY: u64 = u64::MAX;

/// What a request has in a queue: its tag, and what was promised for it.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Its place in the order.
    pub tag: StartTag,
    /// Whose it is.
    pub key: u64,
    /// What it is likely to cost.
    pub tokens: u32,
    /// Where the promise stands.
    promise: usize,
}

/// What all queues of the process share. It goes from view to view.
pub struct Queues {
    /// The largest tag of a request that was let in.
    given: AtomicU64,
    /// What keys were promised in each group, found by a hash: two of them may share one.
    promised: Box<[AtomicU64]>,
    waiting: AtomicU32,
    numbers: AtomicU64,
    /// Those of the view in use, by the backends that they are for.
    current: ArcSwap<HashMap<MemberId, Vec<Arc<FairQueue>>>>,
}

impl Default for Queues {
    fn default() -> Queues {
        Queues {
            given: AtomicU64::new(0),
            promised: (0..QUEUE_KEYS).map(|_| AtomicU64::new(0)).collect(),
            waiting: AtomicU32::new(0),
            numbers: AtomicU64::new(0),
            current: ArcSwap::default(),
        }
    }
}

impl Queues {
    /// The claim of a request of a key, that is likely to cost so many tokens. What is promised by
    /// that is taken back by [`Queues::take_back`] when it is not served.
    pub fn claim(&self, queue: &FairQueue, key: u64, tokens: u32) -> Claim {
        // Others may be served quicker than those who wait here: nobody starts behind all of these
        // for that.
        let floor = self.given.load(Ordering::Relaxed).min(queue.first_tag());
        let promise = fnv::hash(key.to_le_bytes().into_iter().chain(queue.group.to_le_bytes()));
        let promise = promise as usize % QUEUE_KEYS;
        let mut start = floor;
        let promised = |before: u64| {
            start = before.max(floor);
            Some(start.saturating_add(u64::from(tokens)).min(NOBODY - 1))
        };
        if let Some(word) = self.promised.get(promise) {
            // It cannot fail: there always is a next value.
            let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, promised);
        }
        Claim { tag: StartTag(start.min(NOBODY - 1)), key, tokens, promise }
    }

    /// A request was not served after all: what comes behind it from its key costs nothing for it.
    pub fn take_back(&self, claim: &Claim) {
        if let Some(word) = self.promised.get(claim.promise) {
            let less = |now: u64| Some(now.saturating_sub(u64::from(claim.tokens)));
            let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
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

    /// One more waits, for whom another one is about to leave.
    pub fn enter_for_another(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// One of them does not wait any more.
    pub fn leave(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// These are the queues from now on.
    pub fn set_current(&self, queues: &[Arc<FairQueue>]) {
        let mut current: HashMap<MemberId, Vec<Arc<FairQueue>>> = HashMap::new();
        for queue in queues {
            for member in &queue.members {
                current.entry(*member).or_default().push(Arc::clone(queue));
            }
        }
        self.current.store(Arc::new(current));
    }

    /// A request left a backend: whoever is next among those that wait for it is called.
    pub fn note_room(&self, at: MemberId) {
        // Pairs with the fence of `show`: either we see who waits, or they see the room.
        fence(Ordering::SeqCst);
        if self.waiting() > 0 {
            self.call_first(&[at]);
        }
    }

    /// A request does not wait in this queue any more, and may have been called for room that it
    /// did not take: whoever is next for the same backends is called.
    pub fn pass_on(&self, queue: &FairQueue) {
        queue.call_first();
        if self.waiting() > 0 {
            self.call_first(&queue.members);
        }
    }

    fn call_first(&self, members: &[MemberId]) {
        let current = self.current.load();
        let queues = members.iter().filter_map(|member| current.get(member)).flatten();
        let first = queues.min_by_key(|queue| queue.first_tag());
        first.into_iter().for_each(|queue| queue.call_first());
    }

    /// Whether anybody waits for a backend that this queue is for.
    pub fn is_waited(&self, queue: &FairQueue) -> bool {
        self.waiting() > 0 && {
            let current = self.current.load();
            let queues = queue.members.iter().filter_map(|member| current.get(member)).flatten();
            queue.first_tag() != NOBODY || queues.into_iter().any(|q| q.first_tag() != NOBODY)
        }
    }

    /// Backends of this queue for which somebody waits who comes before this tag, in the queue of
    /// another group: their room is not for it.
    pub fn barred(&self, queue: &FairQueue, tag: StartTag) -> Vec<MemberId> {
        let current = self.current.load();
        let is_barred = |member: &&MemberId| {
            let queues = current.get(member).into_iter().flatten();
            queues.into_iter().any(|other| other.group != queue.group && other.first_tag() < tag.0)
        };
        queue.members.iter().filter(is_barred).copied().collect()
    }
}

/// The queue for one group of backends.
pub struct FairQueue {
    members: Vec<MemberId>,
    /// Stands for the group: the same in all views.
    group: u64,
    /// One for each worker.
    fronts: Box<[Front]>,
}

/// The first of those that wait at one worker. In cache lines of its own.
#[repr(align(128))]
struct Front {
    tag: AtomicU64,
    waker: AtomicWaker,
    /// How many wait there.
    waiting: AtomicU32,
    /// How many of these are to make room for others.
    to_displace: AtomicU32,
}

impl FairQueue {
    /// For these backends, of a process with so many workers.
    pub fn new(members: Vec<MemberId>, workers: usize) -> FairQueue {
        let front = |_| Front {
            tag: AtomicU64::new(NOBODY),
            waker: AtomicWaker::new(),
            waiting: AtomicU32::new(0),
            to_displace: AtomicU32::new(0),
        };
        let group = fnv::hash(members.iter().flat_map(|member| member.number().to_le_bytes()));
        FairQueue { members, group, fronts: (0..workers.max(1)).map(front).collect() }
    }

    /// Requests that wait here, of all workers.
    pub fn waiting(&self) -> u32 {
        self.fronts.iter().map(|front| front.waiting.load(Ordering::Relaxed)).sum()
    }

    /// So many of a worker wait.
    pub fn set_waiting(&self, worker: usize, count: usize) {
        if let Some(front) = self.fronts.get(worker) {
            front.waiting.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
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
        self.first().is_none_or(|(_, first)| first == worker)
    }

    /// Workers whose first request comes before this tag, and those of which any waits.
    pub fn workers_before(&self, tag: StartTag) -> (u32, u32) {
        let tags = self.fronts.iter().map(|front| front.tag.load(Ordering::Relaxed));
        tags.filter(|first| *first != NOBODY)
            .fold((0, 0), |(before, all), first| (before + u32::from(first < tag.0), all + 1))
    }

    /// Has the worker with the most waiting requests give up its last one, which comes after all
    /// that are first. False: none waits.
    pub fn displace_another(&self) -> bool {
        let count = |front: &&Front| {
            let waiting = front.waiting.load(Ordering::Relaxed);
            waiting.saturating_sub(front.to_displace.load(Ordering::Relaxed))
        };
        let Some(most) = self.fronts.iter().max_by_key(count).filter(|most| count(most) > 0) else {
            return false;
        };
        most.to_displace.fetch_add(1, Ordering::Relaxed);
        most.waker.wake();
        true
    }

    /// How many of a worker's requests are to make room, since this was last asked.
    pub fn take_displaced(&self, worker: usize) -> u32 {
        let to_displace = self.fronts.get(worker).map(|front| &front.to_displace);
        to_displace.map_or(0, |count| match count.load(Ordering::Relaxed) {
            0 => 0,
            _ => count.swap(0, Ordering::Relaxed),
        })
    }

    /// The smallest tag, and its worker.
    fn first(&self) -> Option<(u64, usize)> {
        let tags = self.fronts.iter().map(|front| front.tag.load(Ordering::Acquire));
        tags.zip(0..).filter(|(tag, _)| *tag != NOBODY).min()
    }

    fn first_tag(&self) -> u64 {
        self.first().map_or(NOBODY, |(tag, _)| tag)
    }

    /// Calls whoever is next, if anybody waits.
    pub fn call_first(&self) {
        if let Some(front) = self.first().and_then(|(_, worker)| self.fronts.get(worker)) {
            front.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::board::Board;
    use std::task::Wake;

    fn members() -> [MemberId; 2] {
        let view = Board::sample(2).view();
        [0, 1].map(|n: usize| view.members()[n].id())
    }

    /// Catches: a key that sends much and makes others wait for all of it; a newcomer before
    /// everybody because it never had anything; promises that are kept though nobody was served.
    #[test]
    fn whoever_sends_much_waits_behind_itself() {
        let (queues, queue) = (Queues::default(), FairQueue::new(Vec::new(), 1));
        let claim = |key, tokens| queues.claim(&queue, key, tokens);
        let hog: Vec<_> = (0..5).map(|_| claim(1, 100)).collect();
        let tags: Vec<_> = hog.iter().map(|claim| claim.tag).collect();
        assert_eq!(tags, [0, 100, 200, 300, 400].map(StartTag));
        queues.give(tags[1]);
        // Behind what was given, and before what was only promised.
        let other = claim(2, 10).tag;
        assert!(other == StartTag(100) && other < tags[2]);
        queues.give(tags[4]);
        assert_eq!(claim(3, 1).tag, StartTag(400), "nobody saves up what it did not use");
        assert_eq!(claim(1, 50).tag, StartTag(500));
        queues.take_back(&hog[4]);
        assert_eq!(claim(1, 1).tag, StartTag(450), "who was not served is owed it");
    }

    /// Catches: one group that is served quickly, and pushes newcomers of another one behind all
    /// that wait there already; what a key has in one group held against it in another.
    #[test]
    fn groups_do_not_push_each_others_newcomers_back() {
        let [a, b] = members();
        let (quick, slow) = (FairQueue::new(vec![a], 1), FairQueue::new(vec![b], 1));
        let queues = Queues::default();
        let hog: Vec<_> = (0..100).map(|_| queues.claim(&slow, 1, 300).tag).collect();
        slow.show(0, Some((hog[1], Waker::noop())));
        for _ in 0..1000 {
            queues.give(queues.claim(&quick, 2, 300).tag);
        }
        let newcomer = queues.claim(&slow, 2, 300).tag;
        assert!(newcomer < hog[2], "{newcomer:?}, {:?}", hog[2]);
    }

    /// Catches: more that wait than may, a count that is not given back.
    #[test]
    fn so_many_wait_and_no_more() {
        let queues = Queues::default();
        assert_eq!((0..5).filter(|_| queues.enter(3)).count(), 3);
        queues.leave();
        assert!(queues.enter(3) && !queues.enter(3) && queues.waiting() == 3);
    }

    /// Counts how often it is woken.
    struct Calls(AtomicU32);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Catches: a call to a worker whose request is not the next one, or to nobody; room at a
    /// backend that wakes those who wait for others.
    #[test]
    fn the_smallest_tag_of_all_workers_is_called() {
        let calls = [(); 2].map(|()| Arc::new(Calls(AtomicU32::new(0))));
        let [one, two] = [&calls[0], &calls[1]].map(|calls| Waker::from(Arc::clone(calls)));
        let counts = || [0, 1].map(|n: usize| calls[n].0.load(Ordering::Relaxed));
        let [a, b] = members();
        let (queues, queue) = (Queues::default(), Arc::new(FairQueue::new(vec![a], 2)));
        queues.set_current(&[Arc::clone(&queue)]);
        queue.call_first();
        queue.show(0, Some((StartTag(7), &one)));
        queue.show(1, Some((StartTag(5), &two)));
        assert!(queue.is_first(1) && !queue.is_first(0));
        assert_eq!(queue.workers_before(StartTag(6)), (1, 2));
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

    /// Catches: a group that takes all room at a backend which it shares with another one.
    #[test]
    fn who_waits_for_a_shared_backend_comes_in_the_order_of_tags() {
        let calls = Arc::new(Calls(AtomicU32::new(0)));
        let waker = Waker::from(Arc::clone(&calls));
        let [a, b] = members();
        let both = Arc::new(FairQueue::new(vec![a, b], 1));
        let one = Arc::new(FairQueue::new(vec![b], 1));
        let queues = Queues::default();
        queues.set_current(&[Arc::clone(&both), Arc::clone(&one)]);
        assert!(queues.enter(9) && !queues.is_waited(&both));
        one.show(0, Some((StartTag(5), &waker)));
        assert!(queues.is_waited(&both), "a newcomer waits too");
        both.show(0, Some((StartTag(7), Waker::noop())));
        assert_eq!(queues.barred(&both, StartTag(7)), [b]);
        assert_eq!(queues.barred(&both, StartTag(4)), []);
        assert_eq!(queues.barred(&one, StartTag(5)), []);
        queues.note_room(b);
        assert_eq!(calls.0.load(Ordering::Relaxed), 1);
        // It looks, and there is no room any more.
        one.show(0, Some((StartTag(5), &waker)));
        both.show(0, None);
        queues.pass_on(&both);
        assert_eq!(calls.0.load(Ordering::Relaxed), 2, "who was called in vain passes it on");
    }
}
