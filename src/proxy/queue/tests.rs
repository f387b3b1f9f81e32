mod simulation;

use super::*;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;

/// Counts how often it is woken.
struct Calls(AtomicU32);

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Scene {
    queues: Arc<Queues>,
    workers: Vec<Rc<LocalQueue>>,
    room: Cell<u32>,
}

impl Scene {
    fn new(workers: usize) -> Scene {
        let queues = Arc::new(Queues::default());
        let shared = Arc::new(FairQueue::new(Vec::new(), workers));
        let local = |worker| Rc::new(LocalQueue::new(&shared, &queues, worker));
        let workers = (0..workers).map(local).collect();
        Scene { queues, workers, room: Cell::new(0) }
    }

    fn enter(&self, worker: usize, key: u64) -> Option<Waiter> {
        self.workers[worker].enter(self.workers[worker].claim(key, 10), 6)
    }

    fn poll(&self, waiter: &Waiter, calls: &Arc<Calls>) -> Poll<Called<()>> {
        let waker = Waker::from(Arc::clone(calls));
        let take = || self.room.replace(self.room.get().saturating_sub(1)) > 0;
        waiter.poll(&mut Context::from_waker(&waker), |_| take().then_some(()))
    }
}

fn calls() -> Arc<Calls> {
    Arc::new(Calls(AtomicU32::new(0)))
}

/// Catches: one who comes later and is served first; room that nobody is called for, because
/// who was called had left, or is of another worker.
#[test]
fn keys_take_turns_whichever_worker_has_them() {
    let scene = Scene::new(2);
    // Three of one key at worker 0, then two of another at worker 1.
    let keys = [(0, 1), (0, 1), (0, 1), (1, 2), (1, 2)];
    let mut waiting: Vec<_> = keys
        .iter()
        .zip(0..)
        .map(|((worker, key), n)| (n, scene.enter(*worker, *key).unwrap(), calls()))
        .collect();
    let mut served = Vec::new();
    waiting.iter().for_each(|(_, waiter, calls)| {
        assert!(scene.poll(waiter, calls).is_pending());
    });
    while !waiting.is_empty() {
        scene.room.set(1);
        waiting[0].1.queue.shared.call_first();
        let is_called = |calls: &Arc<Calls>| calls.0.swap(0, Ordering::Relaxed) > 0;
        let place = waiting.iter().position(|(_, _, calls)| is_called(calls)).unwrap();
        let (number, waiter, calls) = waiting.remove(place);
        assert_eq!(scene.poll(&waiter, &calls), Poll::Ready(Called::Served(())));
        drop(waiter);
        // Whoever is next was called in turn; there is no room for it.
        for (_, waiter, calls) in &waiting {
            calls.0.store(0, Ordering::Relaxed);
            assert!(scene.poll(waiter, calls).is_pending());
        }
        served.push(number);
    }
    assert_eq!(served, [0, 3, 1, 4, 2]);
    assert_eq!((scene.queues.waiting(), scene.workers[0].shared.waiting()), (0, 0));
}

/// Catches: a queue that one key has filled, and that has no room for anybody else; a count
/// that grows or shrinks by that.
#[test]
fn who_sends_little_takes_the_place_of_who_sends_much() {
    let scene = Scene::new(1);
    let hog: Vec<_> = (0..6).map(|_| scene.enter(0, 1).unwrap()).collect();
    assert!(scene.enter(0, 1).is_none(), "it would be the last one itself");
    let polite = scene.enter(0, 2).unwrap();
    let calls = calls();
    assert_eq!(scene.poll(&hog[5], &calls), Poll::Ready(Called::Displaced));
    assert!(scene.poll(&hog[4], &calls).is_pending());
    assert_eq!((scene.queues.waiting(), polite.queue.shared.waiting()), (6, 6));
    drop((hog, polite));
    assert_eq!((scene.queues.waiting(), scene.workers[0].shared.waiting()), (0, 0));
}

/// Catches: requests that wait for ever in the queue of a view that is gone, or twice.
#[test]
fn who_waits_goes_on_in_the_next_view() {
    let scene = Scene::new(1);
    let mut waiter = scene.enter(0, 1).unwrap();
    let calls = calls();
    assert!(scene.poll(&waiter, &calls).is_pending());
    scene.workers[0].close();
    assert_eq!(calls.0.load(Ordering::Relaxed), 1);
    assert_eq!(scene.poll(&waiter, &calls), Poll::Ready(Called::Moved));
    let shared = Arc::new(FairQueue::new(Vec::new(), 1));
    let next = Rc::new(LocalQueue::new(&shared, &scene.queues, 0));
    waiter.move_to(&next);
    assert_eq!((shared.waiting(), scene.workers[0].shared.waiting()), (1, 0));
    scene.room.set(1);
    assert_eq!(scene.poll(&waiter, &calls), Poll::Ready(Called::Served(())));
    drop(waiter);
    assert_eq!((scene.queues.waiting(), shared.waiting()), (0, 0));
}

/// Catches: a newcomer that is refused because another worker has all places, though it comes
/// before everybody; one more that waits for good by that.
#[test]
fn who_comes_first_finds_a_place_whichever_worker_has_them() {
    let scene = Scene::new(2);
    let hog: Vec<_> = (0..6).map(|_| scene.enter(0, 1).unwrap()).collect();
    let calls = calls();
    hog.iter().for_each(|waiter| assert!(scene.poll(waiter, &calls).is_pending()));
    assert!(scene.enter(1, 1).is_none(), "behind the first one of the other worker");
    scene.queues.give(hog[0].tag());
    let polite = scene.enter(1, 2).unwrap();
    assert_eq!(scene.queues.waiting(), 7, "until the other worker has looked");
    assert!(calls.0.load(Ordering::Relaxed) > 0, "it is called for that");
    assert!(scene.poll(&hog[0], &calls).is_pending());
    assert_eq!(scene.poll(&hog[5], &calls), Poll::Ready(Called::Displaced));
    assert_eq!(scene.queues.waiting(), 6);
    drop((hog, polite));
    assert_eq!((scene.queues.waiting(), scene.workers[0].shared.waiting()), (0, 0));
}

/// Catches: a request that waits for a backend of which the room is another group's.
#[test]
fn who_is_next_hears_whose_room_it_may_not_take() {
    let view = crate::state::board::Board::sample(2).view();
    let [a, b] = [0, 1].map(|n: usize| view.members()[n].id());
    let queues = Arc::new(Queues::default());
    let [both, one] = [vec![a, b], vec![b]].map(|members| Arc::new(FairQueue::new(members, 1)));
    queues.set_current(&[Arc::clone(&both), Arc::clone(&one)]);
    let local = |shared| Rc::new(LocalQueue::new(shared, &queues, 0));
    let (both, one) = (local(&both), local(&one));
    let first = one.enter(one.claim(1, 10), 6).unwrap();
    queues.give(queues.claim(&one.shared, 2, 10).tag);
    let poll = |waiter: &Waiter| {
        let mut barred = None;
        let polled = waiter.poll(&mut Context::from_waker(Waker::noop()), |members| {
            barred = Some(members.to_vec());
            None::<()>
        });
        assert!(polled.is_pending());
        barred.unwrap()
    };
    assert!(poll(&first).is_empty());
    assert!(both.is_waited());
    queues.give(StartTag::default());
    let second = both.enter(both.claim(1, 10), 6).unwrap();
    let third = both.enter(both.claim(1, 10), 6).unwrap();
    assert!(poll(&second).is_empty(), "it came with the same tag");
    drop(second);
    assert_eq!(poll(&third), [b]);
    drop(first);
    assert!(poll(&third).is_empty());
}

/// Catches: a newcomer who is told of a wait that has nothing to do with who waits before it.
#[test]
fn those_ahead_are_counted_over_all_workers() {
    let scene = Scene::new(3);
    let waiting = [(0, 1), (0, 1), (1, 2), (1, 2)];
    let waiting = waiting.map(|(worker, key)| scene.enter(worker, key).unwrap());
    let calls = calls();
    waiting.iter().for_each(|waiter| assert!(scene.poll(waiter, &calls).is_pending()));
    let ahead = |worker: usize, key| {
        let queue = &scene.workers[worker];
        queue.ahead(queue.claim(key, 1).tag)
    };
    assert_eq!((ahead(0, 3), ahead(2, 4)), (0, 0));
    assert_eq!(ahead(0, 1), 4, "two of ours, and as many of the other's");
    assert_eq!(ahead(2, 1), 4, "none of ours");
}
