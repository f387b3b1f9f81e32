//! The worker's side of the journal: hands over what happens to requests, and lets a request wait,
//! for a bounded time, until the kernel has what it handed over.
//!
//! One task of the worker, the usher, stands between the two. It runs behind the requests that are
//! ready in the same turn of the loop, and sends what all of them handed over to the journal at
//! once. The journal's thread wakes it for each batch that it has written, and it wakes the
//! requests that waited for that. So a turn costs one wake in each direction, however many requests
//! it has.

use crate::rt;
use crate::usage::outbox::{Kind, Outbox};
use crate::usage::record::UsageRecord;
use std::cell::{Cell, RefCell};
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A request that waits is freed, late, by the second of these ticks: after 25 to 50 ms.
const TICK: Duration = Duration::from_millis(25);

/// What a request handed over, to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

impl Ticket {
    /// Nothing was handed over: there is nothing to wait for.
    pub const NONE: Ticket = Ticket(0);
}

/// A worker's side of the journal.
pub struct Ledger {
    outbox: Outbox,
    waiting: RefCell<Vec<Waiting>>,
    /// The usher, while it sleeps.
    usher: RefCell<Option<Waker>>,
    /// Ticks in which somebody waited.
    ticks: Cell<u64>,
    /// Up to here waits are over, whether or not it is written.
    excused: Cell<u64>,
    /// [`TICK`], but in tests that the load of the machine must not touch.
    tick: Duration,
}

/// A request that waits.
struct Waiting {
    ticket: u64,
    since: u64,
    waker: Waker,
}

impl Ledger {
    /// One on which nobody waits yet.
    pub fn new(outbox: Outbox) -> Ledger {
        Ledger::with_tick(outbox, TICK)
    }

    fn with_tick(outbox: Outbox, tick: Duration) -> Ledger {
        Ledger {
            tick,
            outbox,
            waiting: RefCell::default(),
            usher: RefCell::default(),
            ticks: Cell::new(0),
            excused: Cell::new(0),
        }
    }

    /// Hands a record over, which `fill` writes. When there is no room, that is counted, and there
    /// is nothing to wait for.
    pub fn hand_over(&self, kind: Kind, fill: impl FnOnce(&mut UsageRecord)) -> Ticket {
        let ticket = self.outbox.offer_with(kind, fill);
        self.call_usher();
        ticket.map_or(Ticket::NONE, Ticket)
    }

    /// Sends what is left, when the worker ends: now it may wait for a moment.
    pub fn finish(&self) {
        self.outbox.finish();
        // Of a task that holds the worker, which holds this: neither would ever be freed.
        self.usher.take();
        self.waiting.take();
    }

    fn call_usher(&self) {
        if let Some(usher) = self.usher.borrow_mut().take() {
            usher.wake();
        }
    }

    /// True when no request may be admitted: its record could not be kept.
    pub fn refuses(&self) -> bool {
        self.outbox.spool().refuses()
    }

    /// True when a request must not go on for which this is the ticket: it is none, and nobody is
    /// to be served without a record.
    pub fn rules_out(&self, ticket: Ticket) -> bool {
        ticket == Ticket::NONE && self.outbox.spool().is_strict()
    }

    /// True while records are kept in memory, because the spool fails.
    pub fn is_failing(&self) -> bool {
        self.outbox.spool().fails(Instant::now())
    }

    /// Gives memory back that a burst left.
    pub fn sweep(&self) {
        self.outbox.sweep();
    }

    /// True when [`Ledger::sweep`] has nothing left to give back.
    pub fn is_settled(&self) -> bool {
        self.outbox.is_settled()
    }

    /// Sends what is handed over, and frees those who wait, for as long as the worker runs.
    pub async fn usher(&self) {
        let desk = self.outbox.desk();
        let mut tick = Instant::now();
        loop {
            poll_fn(|cx| self.poll_work(cx)).await;
            self.outbox.flush();
            // The journal is far behind: trying again at once would help nobody.
            let is_stuck = self.outbox.has_more();
            // By the clock, and not by a pause of the journal: one that moves may still be slow.
            let now = Instant::now();
            if now >= tick {
                self.excuse();
                tick = now + self.tick;
            }
            let seen = desk.written();
            self.free(seen);
            if self.waiting.borrow().is_empty() && !is_stuck {
                continue;
            }
            let news = poll_fn(|cx| {
                desk.register(cx.waker());
                *self.usher.borrow_mut() = Some(cx.waker().clone());
                if desk.written() > seen || (self.outbox.has_more() && !is_stuck) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            });
            let _ = rt::timeout(tick.saturating_duration_since(now), news).await;
        }
    }

    fn poll_work(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting.borrow().is_empty() && !self.outbox.has_more() {
            *self.usher.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Wakes who waited for a ticket up to this one.
    fn free(&self, written: u64) {
        self.waiting.borrow_mut().retain(|waiting| {
            let is_free = waiting.ticket <= written;
            if is_free {
                waiting.waker.wake_by_ref();
            }
            !is_free
        });
    }

    /// The journal is slow, or stands: who waited through a whole tick goes on without it.
    fn excuse(&self) {
        let tick = self.ticks.get();
        self.ticks.set(tick + 1);
        let late = self.waiting.borrow().iter().filter(|w| w.since < tick).map(|w| w.ticket).max();
        if let Some(late) = late {
            self.excused.set(late.max(self.excused.get()));
            self.free(late);
        }
    }
}

/// A wait until the kernel has what was handed over, of 50 ms at most. Beyond, it is counted.
#[must_use = "nobody waits unless it is awaited"]
pub struct Written<'a> {
    ledger: Option<&'a Ledger>,
    ticket: Ticket,
    is_waiting: bool,
}

impl<'a> Written<'a> {
    /// A wait for what was handed over to this ledger; without one there is nothing to wait for.
    pub fn of(ledger: &'a Option<Ledger>, ticket: Ticket) -> Written<'a> {
        Written { ledger: ledger.as_ref(), ticket, is_waiting: false }
    }
}

impl Future for Written<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(ledger), Ticket(ticket)) = (self.ledger, self.ticket) else {
            return Poll::Ready(());
        };
        if ledger.outbox.desk().written() >= ticket {
            return Poll::Ready(());
        }
        if ledger.excused.get() >= ticket {
            ledger.outbox.count_late();
            return Poll::Ready(());
        }
        if !self.is_waiting {
            self.is_waiting = true;
            let (since, waker) = (ledger.ticks.get(), cx.waker().clone());
            ledger.waiting.borrow_mut().push(Waiting { ticket, since, waker });
            ledger.call_usher();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::{OUTBOX_TURNS_MAX, OUTBOX_TURN_RECORDS_MAX};
    use crate::rt::ring::Ring;
    use crate::usage::outbox::tests::{ends, late, taken, written};
    use crate::usage::outbox::Inbox;
    use std::rc::Rc;

    /// A tick that does not come while a test runs, however busy the machine is.
    const NEVER: Duration = Duration::from_secs(3600);

    /// Runs beside the usher of a ledger.
    fn with_usher<F: Future>(
        tick: Duration,
        test: impl FnOnce(Rc<Option<Ledger>>, Inbox) -> F,
    ) -> F::Output {
        Ring::build().unwrap().block_on(async {
            let (outbox, inbox) = ends(1 << 20);
            let ledger = Rc::new(Some(Ledger::with_tick(outbox, tick)));
            let usher = ledger.clone();
            rt::spawn(async move { usher.as_ref().as_ref().unwrap().usher().await });
            test(ledger, inbox).await
        })
    }

    fn hand_over(ledger: &Option<Ledger>) -> Ticket {
        ledger.as_ref().unwrap().hand_over(Kind::Open, |_| {})
    }

    /// Lets the usher, and all that is ready, run.
    async fn a_turn() {
        rt::sleep(Duration::ZERO).await;
    }

    /// Catches: requests that are freed by the tick only, or not by the acknowledgement of a later
    /// ticket; a turn that goes in pieces.
    #[test]
    fn one_acknowledgement_frees_all_of_a_turn() {
        with_usher(NEVER, |ledger, mut inbox| async move {
            let tickets: Vec<Ticket> = (0..9).map(|_| hand_over(&ledger)).collect();
            let freed = Rc::new(Cell::new(0));
            for ticket in tickets {
                let (ledger, freed) = (ledger.clone(), freed.clone());
                rt::spawn(async move {
                    Written::of(&ledger, ticket).await;
                    freed.set(freed.get() + 1);
                });
            }
            a_turn().await;
            assert_eq!(taken(&inbox).iter().map(Vec::len).collect::<Vec<_>>(), [9]);
            written(&mut inbox, 4);
            while freed.get() < 4 {
                a_turn().await;
            }
            assert_eq!(freed.get(), 4);
            written(&mut inbox, 9);
            while freed.get() < 9 {
                a_turn().await;
            }
            assert_eq!(late(&inbox), 0);
            Written::of(&ledger, Ticket::NONE).await;
        });
    }

    /// Catches: a request that waits for ever for a journal that stands, or does not wait at all;
    /// one that goes on late and is not counted.
    #[test]
    fn a_journal_that_stands_holds_nobody_for_long() {
        with_usher(TICK, |ledger, mut inbox| async move {
            let begun = Instant::now();
            let ticket = hand_over(&ledger);
            Written::of(&ledger, ticket).await;
            assert!(begun.elapsed() >= TICK, "{:?}", begun.elapsed());
            assert_eq!(late(&inbox), 1);
            let next = hand_over(&ledger);
            written(&mut inbox, 2);
            Written::of(&ledger, next).await;
            assert_eq!(late(&inbox), 1);
        });
    }

    /// Catches: an usher that spins while the journal takes nothing (this would never end), turns
    /// that are lost or out of order then.
    #[test]
    fn what_finds_no_room_goes_later_and_in_order() {
        with_usher(NEVER, |ledger, mut inbox| async move {
            let count = OUTBOX_TURNS_MAX + 10;
            for _ in 0..count {
                hand_over(&ledger);
                a_turn().await;
            }
            assert_eq!(inbox.turns.len(), OUTBOX_TURNS_MAX);
            let last = hand_over(&ledger);
            assert_eq!(taken(&inbox).iter().flatten().count(), OUTBOX_TURNS_MAX);
            written(&mut inbox, OUTBOX_TURNS_MAX as u64);
            let rest = loop {
                a_turn().await;
                let rest = taken(&inbox);
                if !rest.is_empty() {
                    break rest;
                }
            };
            assert_eq!(rest.iter().map(Vec::len).collect::<Vec<_>>(), [11]);
            assert_eq!(last, Ticket(count as u64 + 1));
            written(&mut inbox, last.0);
            Written::of(&ledger, last).await;
            (0..OUTBOX_TURN_RECORDS_MAX).for_each(|_| {
                hand_over(&ledger);
            });
            assert_eq!(inbox.turns.len(), 1, "a full turn goes at once");
        });
    }
}
