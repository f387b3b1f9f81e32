//! The thread: it takes all questions that wait, and puts them to the server in one call, together
//! with what is to be told.

use super::ledger::Ledger;
use crate::base::clock::boot_ns;
use crate::base::limits::{
    LOANED_SLOTS_LIFE, LOANS_ASKED_MAX, LOANS_PAUSE, LOANS_TICK_MAX, REDIS_LEASE_MAX,
};
use crate::config::plan::Redis;
use crate::control::survive;
use crate::state::ask::{Questions, TakenQuestions};
use crate::state::counters::bucket::Wait;
use crate::state::loans::{Counted, LoanAnswer, LoanBook, LoanChange, LoanItem, LoanOf, Loaned};
use crate::store::redis::{Call, RedisServer, StoredScript};
use crate::store::Trouble;
use crossbeam_channel::Receiver;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("script.lua");
/// The script counts in 64ths of a microsecond: so many of our ticks.
const TICKS_PER_STEP: u64 = 250;
/// From so many steps on a fraction is less than a thousandth.
const WHOLE_STEPS: u64 = 1000;
/// What all names begin with: one part of a cluster has them all.
const PREFIX: &str = "{llmproxy}:limit:";
/// Calls that give back what was lent, when nobody uses it any more.
const LAST_TURNS_MAX: u32 = 64;
/// Lines about outages come no more often than this.
const LINE_PAUSE: Duration = Duration::from_secs(10);

/// See the head of the file.
pub struct Lender {
    server: RedisServer,
    script: StoredScript,
    call: Call,
    patience: Duration,
    lease: Duration,
    book: Arc<LoanBook>,
    changed: Receiver<LoanChange>,
    ledger: Ledger,
    /// What this gateway is called on the server: no two are called the same.
    name: String,
    next_tick: Instant,
    /// It did not answer: it is not called before this.
    paused_until: Option<Instant>,
    /// The outage was told, and when the last line was.
    is_told: bool,
    last_line: Option<Instant>,
}

impl Lender {
    pub fn new(
        redis: &Redis,
        (lease, patience): (Duration, Duration),
        (book, changed): (Arc<LoanBook>, Receiver<LoanChange>),
    ) -> Lender {
        let random = || RandomState::new().hash_one(boot_ns());
        Lender {
            server: RedisServer::new(redis.clone()),
            script: StoredScript::new(SCRIPT),
            call: Call::new(),
            patience,
            lease,
            book,
            changed,
            ledger: Ledger::new(lease),
            name: format!("{:016x}{:016x}", random(), random()),
            next_tick: Instant::now(),
            // It is tried before anybody asks.
            paused_until: Some(Instant::now()),
            is_told: false,
            last_line: None,
        }
    }

    /// Goes on until nobody can ask any more.
    pub fn run(mut self, questions: &Questions<Vec<LoanItem>, LoanAnswer>) {
        let mut goes_on = true;
        while goes_on {
            survive("limits-redis", || {
                let asked = questions.take(self.next_tick, LOANS_ASKED_MAX);
                goes_on = asked.is_some();
                self.turn(asked.unwrap_or_default(), Instant::now());
                if let Some(done) = self.book.ends().cloned() {
                    self.give_all_back();
                    let _ = done.try_send(());
                }
            });
        }
        // Another server is in use, or none.
        survive("limits-redis", || self.give_all_back());
    }

    /// Nobody uses it any more: all that is not used goes back, whatever its time.
    fn give_all_back(&mut self) {
        let lost = self.ledger.sweep(&self.book, Instant::now() + REDIS_LEASE_MAX);
        self.book.numbers.lost.fetch_add(lost, Relaxed);
        for _ in 0..LAST_TURNS_MAX {
            self.next_tick = Instant::now();
            self.turn(Vec::new(), Instant::now());
            if !self.ledger.has_more() || self.paused_until.is_some() {
                break;
            }
        }
    }

    fn turn(&mut self, asked: TakenQuestions<Vec<LoanItem>, LoanAnswer>, now: Instant) {
        let mut lost = 0;
        for change in self.changed.try_iter() {
            lost += u64::from(!self.ledger.owe(&change));
        }
        let is_tick = now >= self.next_tick;
        if is_tick {
            lost += self.ledger.sweep(&self.book, now);
            self.next_tick = now + self.lease.min(LOANS_TICK_MAX);
        }
        self.book.numbers.lost.fetch_add(lost, Relaxed);
        if self.paused_until.is_some_and(|until| now < until) {
            return self.fail(asked);
        }
        let has_work = self.paused_until.is_some() || !self.ledger.is_quiet();
        if asked.is_empty() && !(is_tick && has_work) {
            return;
        }
        let told = self.prepare(&asked, now);
        let called = self.server.run(&self.script, &mut self.call, now + self.patience);
        self.book.numbers.note_time(now.elapsed());
        let numbers = called.map(|answer| answer.numbers());
        match numbers {
            Ok(Some(numbers)) => {
                self.ledger.heard(&told, now);
                if self.ledger.has_more() {
                    self.next_tick = now;
                }
                self.note_answer();
                self.answer(asked, numbers.into_iter(), now);
            }
            Ok(None) => self.note_failure("it answered what is of no use", asked),
            Err(Trouble::Later(why) | Trouble::Data(why)) => self.note_failure(&why, asked),
        }
    }

    /// Writes the call; gives the slots that it tells of.
    fn prepare(
        &mut self,
        asked: &TakenQuestions<Vec<LoanItem>, LoanAnswer>,
        now: Instant,
    ) -> Vec<(Counted, u32)> {
        let items = || asked.iter().flat_map(|(items, _)| items);
        let is_slot = |item: &&LoanItem| matches!(item.of, LoanOf::Slot(_));
        let of_slots = items().filter(is_slot).map(|item| item.whose);
        let slots = self.ledger.slots_to_tell(&self.book, of_slots, now);
        let slots_name = |whose: &Counted| name_of(whose, LoanOf::Slot(0).number());
        let amounts = self.ledger.amounts_to_tell();
        let mut names = vec![format!("{PREFIX}told:{}", self.name)];
        names.extend(amounts.iter().map(|owed| name_of(&owed.whose, owed.which)));
        names.extend(slots.iter().map(|(whose, _)| slots_name(whose)));
        names.extend(items().map(|item| name_of(&item.whose, item.of.number())));
        let call = &mut self.call;
        call.clear();
        call.number(names.len() as u64);
        names.iter().for_each(|name| call.text(name));
        let amounts = amounts.to_vec();
        call.number(self.ledger.number);
        call.text(&self.name);
        call.number(LOANED_SLOTS_LIFE.as_millis() as u64);
        call.number(amounts.len() as u64);
        for owed in &amounts {
            call.text(&steps(owed.bucket.each()));
            call.number(owed.bucket.size);
            call.text(&owed.units.to_string());
        }
        call.number(slots.len() as u64);
        slots.iter().for_each(|(_, slots)| call.number((*slots).into()));
        call.number(asked.len() as u64);
        for (items, _) in asked {
            call.number(items.len() as u64);
            for item in items {
                let (each, size) = match item.of {
                    LoanOf::Units(_, bucket) => (steps(bucket.each()), bucket.size),
                    LoanOf::Slot(limit) => ("0".to_owned(), limit.into()),
                };
                call.text(&each);
                for number in [size, item.units, self.ledger.more(item)] {
                    call.number(number);
                }
            }
        }
        slots
    }

    /// Hands out what the server has said.
    fn answer(
        &mut self,
        asked: TakenQuestions<Vec<LoanItem>, LoanAnswer>,
        mut numbers: impl Iterator<Item = i64>,
        now: Instant,
    ) {
        for (items, reply) in asked {
            let mut next = || numbers.next().unwrap_or(0);
            let answer = match next() {
                0 => {
                    for item in &items {
                        self.lend(item, next().unsigned_abs(), now);
                    }
                    LoanAnswer::Granted(Loaned::new(&self.book, items))
                }
                lacks => {
                    let which = usize::try_from(lacks.unsigned_abs()).unwrap_or(0);
                    let wait = Wait(next().unsigned_abs().saturating_mul(TICKS_PER_STEP));
                    LoanAnswer::Refused(which.saturating_sub(1), wait)
                }
            };
            self.book.numbers.note(&answer);
            // Of one who has left, what was granted comes back by itself.
            drop(reply.send(answer));
        }
    }

    fn lend(&mut self, item: &LoanItem, more: u64, now: Instant) {
        match item.of {
            LoanOf::Units(which, _) if more > 0 => self.book.fill(&item.whose, which, more),
            LoanOf::Units(..) => {}
            LoanOf::Slot(_) => self.book.lend_slot(&item.whose),
        }
        self.ledger.lent(item, more, now);
    }

    fn fail(&self, asked: TakenQuestions<Vec<LoanItem>, LoanAnswer>) {
        for (_, reply) in asked {
            self.book.numbers.note(&LoanAnswer::Failed);
            drop(reply.send(LoanAnswer::Failed));
        }
    }

    fn note_failure(&mut self, why: &str, asked: TakenQuestions<Vec<LoanItem>, LoanAnswer>) {
        let now = Instant::now();
        // Before anybody is answered: who comes next need not ask.
        self.book.set_up(false);
        self.paused_until = Some(now + LOANS_PAUSE);
        let recently = |last: Instant| now.saturating_duration_since(last) < LINE_PAUSE;
        if !self.is_told && !self.last_line.is_some_and(recently) {
            (self.is_told, self.last_line) = (true, Some(now));
            let place = self.server.place();
            tracing::warn!(%place, %why, "the limits of several gateways cannot be held together");
        }
        self.fail(asked);
    }

    fn note_answer(&mut self) {
        self.paused_until = None;
        self.book.set_up(true);
        if std::mem::take(&mut self.is_told) {
            let place = self.server.place();
            tracing::info!(%place, "the limits of several gateways are held together again");
        }
    }
}

/// A time in steps of the script, as a decimal number. A long one is rounded up: never more than
/// the limit; so many of it are exactly as much as a bucket holds. A short one has its fraction: of
/// tokens, one is little.
fn steps(ticks: u64) -> String {
    match ticks.div_ceil(TICKS_PER_STEP) {
        steps if steps >= WHOLE_STEPS => steps.to_string(),
        _ => {
            let thousandths = ticks % TICKS_PER_STEP * 1000 / TICKS_PER_STEP;
            format!("{}.{thousandths:03}", ticks / TICKS_PER_STEP)
        }
    }
}

/// Under which name somebody is counted on the server.
fn name_of(whose: &Counted, which: usize) -> String {
    let part = if whose.is_stranger { 's' } else { 'k' };
    format!("{PREFIX}{part}{:032x}:{which}", whose.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a limit that is a part larger on the server, or a small one that is rounded away.
    #[test]
    fn times_are_told_as_the_script_counts() {
        assert_eq!(steps(1), "0.004");
        assert_eq!(steps(960), "3.840");
        assert_eq!(steps(249_999), "1000");
        assert_eq!(steps(250_001), "1001");
    }
}
