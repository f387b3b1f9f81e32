use super::*;
use crate::config::plan::OnSpoolFailure;
use crate::usage::record::tests::record;

/// The ends of one worker that may have so many records waiting.
pub fn ends(capacity: usize) -> (Outbox, Inbox) {
    let spool = Arc::new(SpoolState::new(OnSpoolFailure::Serve, &[]));
    let Ends { mut workers, inbox, .. } =
        with_capacity(&[], 1, (&spool, &Arc::default()), capacity);
    (workers.remove(0), inbox)
}

fn counter(outbox: &Outbox, pick: fn(&UsageCounters) -> &AtomicU64) -> u64 {
    pick(&outbox.counters).load(Relaxed)
}

/// Says to the worker that all up to this ticket is written.
pub fn written(inbox: &mut Inbox, ticket: u64) {
    inbox.acknowledge.acknowledge(0, ticket);
}

/// Requests that went on late.
pub fn late(inbox: &Inbox) -> u64 {
    inbox.acknowledge.counters.late.load(Relaxed)
}

/// All that was sent so far, as the journal gets it.
pub fn taken(inbox: &Inbox) -> Vec<Turn> {
    inbox.turns.try_iter().collect()
}

#[test]
fn a_record_is_filled_again_and_its_body_counts_once() {
    let (outbox, mut inbox) = ends(2);
    let with_body = || UsageRecord { request_body: Some(vec![b'a'; 10]), ..record() };
    assert!(outbox.offer(with_body()));
    let first = taken(&inbox).remove(0);
    let place: *const Queued = &*first[0];
    assert_eq!(counter(&outbox, |c| &c.body_bytes), 10);
    inbox.acknowledge.spare(first);
    assert_eq!(counter(&outbox, |c| &c.body_bytes), 0);
    let mut seen = None;
    let ticket = outbox.offer_with(Kind::Note, |again| {
        seen = again.model.clone();
        assert!(again.request_body.is_none());
        again.request_body = Some(vec![b'b'; 7]);
    });
    assert_eq!(ticket, Some(2));
    assert_eq!(seen.as_deref(), Some("org/m"), "what it had allocated is still there");
    outbox.flush();
    let again = taken(&inbox).remove(0).remove(0);
    assert_eq!((again.kind, again.ticket), (Kind::Note, 2));
    assert_eq!(&*again as *const Queued, place);
    assert_eq!(counter(&outbox, |c| &c.body_bytes), 7);
    drop(again);
    assert_eq!(counter(&outbox, |c| &c.body_bytes), 0);
}

/// Catches: a record that the journal gets before its turn is over, one that it never gets, a
/// turn in another order, and an allocation for each turn.
#[test]
fn a_turn_goes_together_and_comes_back() {
    let (outbox, mut inbox) = ends(1000);
    let mut rooms = Vec::new();
    for turn in 0..10_u64 {
        (0..3).for_each(|_| assert!(outbox.offer_with(Kind::Open, |_| {}).is_some()));
        assert!(outbox.has_more() && inbox.turns.is_empty());
        outbox.flush();
        assert!(!outbox.has_more());
        let got = taken(&inbox);
        let tickets: Vec<u64> = got[0].iter().map(|queued| queued.ticket).collect();
        assert_eq!(tickets, [3 * turn + 1, 3 * turn + 2, 3 * turn + 3]);
        assert_eq!((got.len(), counter(&outbox, |c| &c.waiting)), (1, 3));
        rooms.push(got[0].as_ptr());
        got.into_iter().for_each(|turn| inbox.acknowledge.spare(turn));
        assert_eq!(counter(&outbox, |c| &c.waiting), 0);
    }
    assert_eq!(rooms[2..8], rooms[4..], "two turns' room is all that is used");
    outbox.flush();
    assert!(inbox.turns.is_empty(), "there is no empty turn");
}

#[test]
fn spare_records_are_given_up() {
    let (outbox, mut inbox) = ends(1000);
    (0..OUTBOX_TURNS_MAX + 3).for_each(|_| assert!(outbox.offer(record())));
    assert!(outbox.has_more(), "there is no room for so many turns");
    let turns = taken(&inbox);
    assert_eq!(turns.len(), OUTBOX_TURNS_MAX);
    turns.into_iter().for_each(|turn| inbox.acknowledge.spare(turn));
    outbox.flush();
    let last = taken(&inbox).remove(0);
    assert_eq!(last.len(), 3, "they waited for the next turn");
    inbox.acknowledge.spare(last);
    let idle = || outbox.spares.len() + outbox.idle.borrow().len();
    assert!(idle() >= OUTBOX_TURNS_MAX);
    let mut sweeps = 0;
    while !outbox.is_settled() {
        outbox.sweep();
        sweeps += 1;
    }
    assert!((16..100).contains(&sweeps), "in {sweeps} sweeps");
    assert_eq!(idle(), OUTBOX_SPARES_MIN, "some stay");
}

#[test]
fn a_full_outbox_drops_and_counts() {
    let (outbox, mut inbox) = ends(2);
    assert!(outbox.offer(record()) && outbox.offer(record()));
    assert!(!outbox.offer(record()));
    assert_eq!(counter(&outbox, |c| &c.outbox_dropped), 1);
    taken(&inbox).into_iter().for_each(|turn| inbox.acknowledge.spare(turn));
    assert!(outbox.offer_with(Kind::Close, |_| {}).is_some());
    assert!(outbox.offer_with(Kind::Close, |_| {}).is_some());
    assert_eq!(outbox.offer_with(Kind::Close, |_| {}), None, "this turn's count as well");
    drop(inbox);
    outbox.flush();
    assert_eq!(counter(&outbox, |c| &c.outbox_dropped), 4, "the journal has ended");
    assert_eq!(counter(&outbox, |c| &c.waiting), 0);
}

/// Catches: a worker that ends and takes the last records with it, because the journal is behind.
#[test]
fn what_is_left_goes_when_the_worker_ends() {
    let (outbox, inbox) = ends(1000);
    (0..OUTBOX_TURNS_MAX + 3).for_each(|_| assert!(outbox.offer(record())));
    let records = std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let first = inbox.turns.recv().unwrap();
            first.len() + inbox.turns.iter().map(|turn| turn.len()).sum::<usize>()
        });
        drop(outbox);
        slow.join().unwrap()
    });
    assert_eq!(records, OUTBOX_TURNS_MAX + 3);
}

/// Catches: records that find no room at the end, and of which nobody hears.
#[test]
fn what_finds_no_room_at_the_end_is_counted() {
    let (outbox, inbox) = ends(1000);
    (0..OUTBOX_TURNS_MAX + 3).for_each(|_| assert!(outbox.offer(record())));
    outbox.finish();
    assert_eq!(counter(&outbox, |c| &c.outbox_dropped), 3);
    assert_eq!(counter(&outbox, |c| &c.waiting), OUTBOX_TURNS_MAX as u64);
    assert_eq!(taken(&inbox).len(), OUTBOX_TURNS_MAX);
}

/// Catches: a ticket that was dropped and that somebody would wait for, or one given twice.
#[test]
fn tickets_are_of_one_worker_and_without_gaps() {
    let spool = Arc::new(SpoolState::new(OnSpoolFailure::Serve, &[]));
    let Ends { workers, mut inbox, .. } = with_capacity(&[], 2, (&spool, &Arc::default()), 4);
    let offer = |worker: usize| {
        let ticket = workers[worker].offer_with(Kind::Open, |_| {});
        workers[worker].flush();
        ticket
    };
    assert_eq!([offer(0), offer(1), offer(0)], [Some(1), Some(1), Some(2)]);
    assert_eq!(offer(1), None, "the last quarter is for ends");
    let turns = taken(&inbox);
    let seen: Vec<_> = turns.iter().flatten().map(|q| (q.worker, q.ticket)).collect();
    assert_eq!(seen, [(0, 1), (1, 1), (0, 2)]);
    turns.into_iter().for_each(|turn| inbox.acknowledge.spare(turn));
    assert_eq!(offer(1), Some(2));
    inbox.acknowledge.acknowledge(0, 2);
    assert_eq!((workers[0].desk().written(), workers[1].desk().written()), (2, 0));
}

#[test]
fn bodies_beyond_the_limit_stay_behind_and_the_record_goes() {
    let (outbox, inbox) = ends(8);
    let large = || {
        let body = vec![b'a'; (OUTBOX_BODY_BYTES_MAX / 2) as usize];
        UsageRecord { request_body: Some(body), ..record() }
    };
    assert!(outbox.offer(large()) && outbox.offer(large()) && outbox.offer(large()));
    assert_eq!(counter(&outbox, |c| &c.bodies_dropped), 1);
    let turns = taken(&inbox);
    let bodies: Vec<bool> =
        turns.iter().flatten().map(|queued| queued.record.request_body.is_some()).collect();
    assert_eq!(bodies, [true, true, false]);
    drop(turns);
    assert_eq!(counter(&outbox, |c| &c.body_bytes), 0, "given back with the records");
}
