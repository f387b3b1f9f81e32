//! Quotas that several gateways count together, beside the keys in Redis.
//!
//! *Takes:* the keys that were looked up, and what requests have used of their quotas here.
//! *Gives:* what all gateways have used, which the counters of this one hold from then on.
//! *Runs on:* the threads of a Redis provider: with each look-up, and on one of them now and then.
//! *May:* block, as look-ups do. *Never:* holds up a request that needs no look-up, creates a key,
//! loses what was used: that stands in the table of the counters until it was told, and counts once
//! however often it is told.

use crate::base::clock::unix_ms;
use crate::base::limits::{
    QUOTA_ASK_EVERY, QUOTA_KEYS_IDLE, QUOTA_KEYS_KEPT, QUOTA_KEYS_TOLD_MAX, QUOTA_TELL_EVERY,
    QUOTA_TOLD_KEYS_MAX,
};
use crate::base::secret::Secret;
use crate::config::plan::{Auth, ResetPeriod};
use crate::keys::facts::KeyFacts;
use crate::state::counters::ids;
use crate::state::counters::shared::Counters;
use crate::state::counters::table::{EntryPlace, TablePart};
use crate::state::lookup::LookupNumbers;
use crate::state::quota_clock::QuotaClock;
use crate::store::redis::{Call, RedisServer, StoredScript};
use crate::store::Trouble;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("script.lua");
/// What stands beside a key begins with it.
const BESIDE: &str = "llmproxy:quota:";
/// For so many seconds it is kept where periods end: longer than the longest of them.
const BESIDE_LIFE_S: u64 = 40 * 24 * 3600;
/// Lines about outages come no more often than this.
const LINE_PAUSE: Duration = Duration::from_secs(10);

/// What the threads of a provider know of the quotas of its keys.
pub struct QuotaBook {
    counters: Arc<Counters>,
    /// What this gateway is called there: who has the same counters has the same name.
    me: String,
    lines: Mutex<HashMap<u128, Line>>,
    state: Mutex<State>,
    calls: [AtomicU64; 2],
    left_out: AtomicU64,
}

#[derive(Default)]
struct State {
    is_down: bool,
    last_line: Option<Instant>,
    told: HashSet<&'static str>,
}

/// A key.
#[derive(Clone)]
struct Line {
    /// What it is called in Redis; the key is a part of it.
    name: Secret,
    /// Of which the quota counts.
    facts: Arc<KeyFacts>,
    /// When it was looked up last.
    asked: Instant,
    /// Period and tokens that Redis knows of, and since when; `None`: not known.
    told: Option<((u16, u64), Instant)>,
}

impl QuotaBook {
    /// Of the counters of this gateway.
    pub fn new(counters: &Arc<Counters>) -> QuotaBook {
        QuotaBook {
            counters: Arc::clone(counters),
            me: format!("{:016x}", counters.table().shape().seed),
            lines: Mutex::default(),
            state: Mutex::default(),
            calls: Default::default(),
            left_out: AtomicU64::new(0),
        }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<u128, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, told: Result<(), &Trouble>, place: &str) {
        let [good, failed] = &self.calls;
        if told.is_ok() { good } else { failed }.fetch_add(1, Relaxed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Ok(()) if std::mem::take(&mut state.is_down) => {
                tracing::info!(%place, "quotas are counted together again");
            }
            Ok(()) => {}
            Err(Trouble::Later(why) | Trouble::Data(why)) => {
                let now = Instant::now();
                let recently = |last: Instant| now.saturating_duration_since(last) < LINE_PAUSE;
                let is_news = !std::mem::replace(&mut state.is_down, true);
                if is_news && !state.last_line.is_some_and(recently) {
                    state.last_line = Some(now);
                    let message = "quotas cannot be counted together: each gateway counts what \
                                   is used with it, and tells it later";
                    tracing::warn!(%place, %why, "{message}");
                }
            }
        }
    }

    fn tell_odd(&self, place: &str, what: &'static str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.told.insert(what) {
            tracing::warn!(%place, what, "the quota of a key is not counted together; said once");
        }
    }

    /// For the metrics: since the last time.
    fn hand_over(&self, numbers: &LookupNumbers) {
        let calls = self.calls.each_ref().map(|count| count.swap(0, Relaxed));
        numbers.note_quotas(calls, self.left_out.swap(0, Relaxed));
    }
}

/// One thread's way to tell.
pub struct QuotaTeller {
    book: Arc<QuotaBook>,
    clock: QuotaClock,
    script: StoredScript,
    call: Call,
    /// When this thread looks what is to be told; `None`: another one does.
    look: Option<Instant>,
}

impl QuotaTeller {
    /// One of the threads `looks` what is to be told.
    pub fn new(book: &Arc<QuotaBook>, auth: &Auth, looks: bool) -> QuotaTeller {
        QuotaTeller {
            book: Arc::clone(book),
            clock: QuotaClock::of(Some(auth)),
            script: StoredScript::new(SCRIPT),
            call: Call::new(),
            look: looks.then(Instant::now),
        }
    }

    /// A key was looked up. What was used of its quota is known before the answer is.
    pub fn meet(&mut self, server: &mut RedisServer, name: &str, facts: KeyFacts, until: Instant) {
        if facts.total_quota == 0 {
            return;
        }
        let id = ids::of_key(&facts.digest);
        let line = {
            let mut lines = self.book.lines();
            let told = lines.get(&id).and_then(|line| line.told);
            if told.is_none() && lines.len() >= QUOTA_KEYS_TOLD_MAX && !lines.contains_key(&id) {
                self.book.left_out.fetch_add(1, Relaxed);
                return;
            }
            let (facts, asked) = (Arc::new(facts), Instant::now());
            let line = Line { name: Secret::new(name.to_owned()), facts, asked, told };
            lines.insert(id, line.clone());
            line
        };
        self.tell(server, (&[(id, line)], true), until);
    }

    /// When [`QuotaTeller::look`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.look
    }

    /// Tells what was used since, and asks what others have used of keys that are in use.
    pub fn look(&mut self, server: &mut RedisServer, patience: Duration, numbers: &LookupNumbers) {
        let Some(look) = &mut self.look else { return };
        let now = Instant::now();
        if now < *look {
            return;
        }
        *look = now + QUOTA_TELL_EVERY;
        self.tell_due(server, now, patience);
        self.book.hand_over(numbers);
    }

    /// Tells what was used and not told yet; and what is due beside that.
    pub fn tell_due(&mut self, server: &mut RedisServer, now: Instant, patience: Duration) {
        let due = self.take_due(now);
        for some in due.chunks(QUOTA_TOLD_KEYS_MAX) {
            if !self.tell(server, (some, false), now + patience) {
                break;
            }
        }
    }

    fn take_due(&self, now: Instant) -> Vec<(u128, Line)> {
        let mut due = Vec::new();
        self.book.lines().retain(|id, line| {
            let since = |then: Instant| now.saturating_duration_since(then);
            let used = self.used_here(*id, line).map(|(_, used, _)| used);
            let is_known = line.told.is_some_and(|(told, _)| Some(told) == used);
            let is_old = line.told.is_none_or(|(_, at)| since(at) >= QUOTA_ASK_EVERY);
            if line.told.is_some_and(|(told, _)| Some(told) != used) {
                line.asked = now;
            }
            let is_in_use = since(line.asked) < QUOTA_KEYS_IDLE;
            if !is_known || (is_old && is_in_use) {
                due.push((*id, line.clone()));
            }
            !is_known || since(line.asked) < QUOTA_KEYS_KEPT
        });
        due
    }

    /// Where a key counts, and period and tokens that were used here.
    fn used_here(&self, id: u128, line: &Line) -> Option<(EntryPlace, (u16, u64), u64)> {
        let counters = &self.book.counters;
        let terms = self.clock.terms(&line.facts, unix_ms())?;
        let now = counters.at(Instant::now());
        let (place, is_own) = counters.find(id, TablePart::Known, now);
        let quota = counters.quota(place).filter(|_| is_own)?;
        quota.meet(terms);
        Some((place, (terms.window.number_of_kind(), quota.used_here(terms)), terms.first))
    }

    /// True: it was heard. `is_fresh`: the keys were read just now.
    fn tell(
        &mut self,
        server: &mut RedisServer,
        (some, is_fresh): (&[(u128, Line)], bool),
        until: Instant,
    ) -> bool {
        let of = |(id, line): &(u128, Line)| Some((*id, line.clone(), self.used_here(*id, line)?));
        let all: Vec<_> = some.iter().filter_map(of).collect();
        if all.is_empty() {
            return true;
        }
        let call = &mut self.call;
        call.clear();
        call.number(2 * all.len() as u64);
        for (id, line, _) in &all {
            call.text(line.name.reveal());
            call.texts([BESIDE, &format!("{id:032x}")]);
        }
        call.text(&self.book.me);
        for (_, line, (_, (window, own), first)) in &all {
            let ends = line.facts.quota_reset_period != ResetPeriod::Never;
            let life = if ends { BESIDE_LIFE_S } else { 0 };
            let is_over = is_fresh && *first == 0 && line.facts.used_quota > 0;
            for number in [u64::from(*window), *own, *first, u64::from(is_over), life] {
                call.number(number);
            }
        }
        let called = server.run(&self.script, call, until);
        let place = server.place();
        let heard = called.and_then(|answer| {
            let numbers = answer.numbers().filter(|numbers| numbers.len() == all.len());
            numbers.ok_or_else(|| Trouble::Data("it answered what is of no use".to_owned()))
        });
        self.book.note(heard.as_ref().map(drop), &place);
        let Ok(numbers) = heard else { return false };
        for ((id, line, used), number) in all.iter().zip(numbers) {
            self.heard((*id, line), *used, (number, &place));
        }
        true
    }

    fn heard(
        &self,
        (id, line): (u128, &Line),
        (place, told, _): (EntryPlace, (u16, u64), u64),
        (number, server): (i64, &str),
    ) {
        match u64::try_from(number) {
            Ok(all) => {
                let terms = self.clock.terms(&line.facts, unix_ms());
                // A period may have ended meanwhile.
                let terms = terms.filter(|terms| terms.window.number_of_kind() == told.0);
                if let (Some(terms), Some(quota)) = (terms, self.book.counters.quota(place)) {
                    quota.mirror(terms, all, told.1);
                }
                if let Some(line) = self.book.lines().get_mut(&id) {
                    line.told = Some((told, Instant::now()));
                }
            }
            // Whoever looks it up again is told that it is gone.
            Err(_) if number == -1 => drop(self.book.lines().remove(&id)),
            // It is told again after a while: it may be mended by then.
            Err(_) => {
                if let Some(line) = self.book.lines().get_mut(&id) {
                    line.told = Some((told, Instant::now()));
                }
                self.book.tell_odd(
                    server,
                    match number {
                        -2 => "another gateway is in a later period",
                        _ => "used_quota is no whole number",
                    },
                );
            }
        }
    }
}
