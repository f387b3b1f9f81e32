//! Providers of API keys that are asked: over a network, or the store in a file of our own.
//!
//! *Takes:* the providers of a plan, and questions of workers about keys. *Gives:* for each such
//! provider a service that workers can ask, and an answer to every question: what is known of the
//! key, that it is unknown, that it is denied, or that the look-up failed. *Runs on:* a few threads
//! for each provider. *May:* block, up to the provider's own time limit. *Never:* lets a key pass
//! that it did not understand, says a key in a log, asks a provider that does not answer again and
//! again.
//!
//! Threads end when the last view that has their service is gone. A provider whose configuration is
//! as before keeps its service, with its connections, across a reload.

#[cfg(feature = "sql")]
mod builtin;
mod circuit;
#[cfg(feature = "sql")]
mod database;
mod quota;
mod redis;
mod webhook;

use crate::base::limits::{
    KEY_METADATA_RECORDED_BYTES_MAX, LIMIT_CONCURRENT_MAX, LOOKUPS_WAITING_MAX,
    LOOKUP_KEY_BYTES_MAX, LOOKUP_THREADS_MAX,
};
use crate::config::plan::{KeyState, Plan, Provider, ProviderKind, QuotaStorage, KEYS_DB_PATH};
use crate::keys::facts::KeyFacts;
use crate::keys::fields::{self, Fields};
use crate::state::ask;
use crate::state::board::View;
use crate::state::counters::shared::Counters;
use crate::state::lookup::{KeyAnswer, KeyQuestion, KeyService, LookupNumbers};
use crate::store::Trouble;
use circuit::Circuit;
use quota::QuotaBook;
use serde_json::Value;
use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is told once of a provider, beside fields that cannot be understood.
const LARGE_METADATA: &str = "metadata too large for records";

/// So many keys of a provider are told whose `max_concurrent` is more than can be counted. The last
/// one says so, and of further ones nothing is told.
const LOWERED_TOLD_MAX: usize = 1000;

/// At the end it is waited so long until all is written down.
const END_WAIT: Duration = Duration::from_secs(1);

/// Finds keys at one provider; one thread has it.
trait KeySource: Send {
    /// What the provider says of a key. Ends about when its time does.
    fn find(&mut self, question: &KeyQuestion, until: Instant) -> Result<FoundKey, Trouble>;

    /// Looks whether the provider can be asked, without a key.
    fn probe(&mut self, until: Instant) -> Result<(), Trouble>;

    /// When it wants to do something else than to answer; `None`: it does not.
    fn chore(&self) -> Option<Instant> {
        None
    }

    /// Does that, since it is time. What is counted of it goes into `numbers`.
    fn tend(&mut self, _numbers: &LookupNumbers) {}

    /// Does all that is left, since the process ends.
    fn end(&mut self) {}
}

/// What a provider says of a key.
#[derive(PartialEq)]
enum FoundKey {
    /// It has the key, with these fields.
    Fields(Fields),
    /// It has the key, and knows the facts.
    #[cfg_attr(not(feature = "sql"), allow(dead_code, reason = "the store is SQL"))]
    Facts(Box<KeyFacts>),
    /// It has something under the key that says nothing; what that is.
    Unclear(&'static str),
    /// It has no such key.
    Unknown,
    /// It says that the key may not be used.
    Denied(Option<Arc<str>>),
}

impl fmt::Debug for FoundKey {
    /// Without the fields: the key itself may be one of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FoundKey::Fields(_) => f.write_str("Fields"),
            FoundKey::Facts(_) => f.write_str("Facts"),
            FoundKey::Unclear(what) => f.debug_tuple("Unclear").field(what).finish(),
            FoundKey::Unknown => f.write_str("Unknown"),
            FoundKey::Denied(message) => f.debug_tuple("Denied").field(message).finish(),
        }
    }
}

/// What it takes to ask a provider.
struct Opened {
    /// Where it is, without credentials.
    place: String,
    /// What one look-up may take.
    patience: Duration,
    /// So many of them connect before the first question.
    ready: u32,
    /// One for each thread.
    sources: Vec<Box<dyn KeySource>>,
}

/// The services of a plan, one for each provider of `auth.pipeline`. Those of `before` go on where
/// the provider is as it was; for others threads
/// start. What is used of quotas stands in `counters`.
///
/// # Errors
/// A provider cannot be asked as it is configured, or there is no thread; a line for a person.
pub fn services(
    plan: &Plan,
    before: Option<&View>,
    counters: Option<&Arc<Counters>>,
) -> Result<Vec<Option<KeyService>>, String> {
    let Some(auth) = &plan.auth else { return Ok(Vec::new()) };
    let service = |provider: &Provider| {
        if let Some(kept) = before.and_then(|view| service_of(view, provider, plan)) {
            return Ok(Some(kept));
        }
        let opened = match &provider.kind {
            #[cfg(feature = "sql")]
            ProviderKind::Builtin => {
                Ok(Some(builtin::open(db_path(plan), provider.script.is_some())))
            }
            ProviderKind::Redis { redis } => {
                let shared = auth.quota_storage == QuotaStorage::Redis;
                let book = counters.filter(|_| shared).map(|all| Arc::new(QuotaBook::new(all)));
                redis::open(redis, book.as_ref().map(|book| (book, auth))).map(Some)
            }
            kind => open(kind),
        };
        let Some(opened) = opened.transpose() else { return Ok(None) };
        let named = |error: String| format!("auth.pipeline: provider {}: {error}", provider.name);
        let started = opened.and_then(|opened| {
            start(provider, opened).map_err(|error| format!("a thread cannot be started: {error}"))
        });
        started.map(Some).map_err(named)
    };
    auth.pipeline.iter().map(service).collect()
}

/// The workers are done: what is still to be written down of their look-ups is written. It is no
/// more than a remark, so nobody waits long for it.
pub fn finish(view: &View) {
    let due = Instant::now() + END_WAIT;
    let pipeline = view.plan.auth.iter().flat_map(|auth| &auth.pipeline);
    let tells =
        |kind: &ProviderKind| matches!(kind, ProviderKind::Builtin | ProviderKind::Redis { .. });
    let stores = pipeline.zip(&view.services).filter(|(it, _)| tells(&it.kind));
    let last: Vec<_> = stores.filter_map(|(_, service)| service.as_ref()?.end()).collect();
    for done in last {
        let _ = done.recv_deadline(due);
    }
}

/// True for a provider that has to be reached.
pub fn is_elsewhere(provider: &Provider) -> bool {
    matches!(
        provider.kind,
        ProviderKind::Redis { .. } | ProviderKind::Database { .. } | ProviderKind::Webhook { .. }
    )
}

/// Tries once to reach a provider, for at most so long. Blocks.
///
/// # Errors
/// What is in the way, in words for a person, without a secret.
pub fn probe(provider: &Provider, limit: Duration) -> Result<(), String> {
    let until = Instant::now() + limit;
    let Some(mut opened) = open(&provider.kind)? else { return Ok(()) };
    let Some(source) = opened.sources.first_mut() else { return Ok(()) };
    let tried = source.probe(until).map_err(Trouble::into_words);
    tried.map_err(|why| format!("{}: {why}", opened.place))
}

/// The service that a view has for exactly this provider.
fn service_of(view: &View, provider: &Provider, plan: &Plan) -> Option<KeyService> {
    let pipeline = &view.plan.auth.as_ref()?.pipeline;
    let is_same = |old: &Provider| {
        // What scripts get is only made where there is one.
        let scripts = [old, provider].map(|p| p.script.is_some());
        // The periods of quotas that are counted there.
        let quotas = [&view.plan, plan]
            .map(|plan| plan.auth.as_ref().map(|auth| (auth.quota_storage, &auth.quota_timezone)));
        let is_redis = matches!(provider.kind, ProviderKind::Redis { .. });
        let is_there = old.kind != ProviderKind::Builtin || db_path(&view.plan) == db_path(plan);
        old.name == provider.name
            && old.kind == provider.kind
            && scripts[0] == scripts[1]
            && (!is_redis || quotas[0] == quotas[1])
            && is_there
    };
    view.services.get(pipeline.iter().position(is_same)?)?.clone()
}

/// The file of the store inside the gateway.
fn db_path(plan: &Plan) -> &Path {
    plan.admin.as_ref().map_or(Path::new(KEYS_DB_PATH), |admin| &admin.db_path)
}

/// `None`: its keys are here, or its script decides alone.
fn open(kind: &ProviderKind) -> Result<Option<Opened>, String> {
    match kind {
        ProviderKind::Redis { redis } => redis::open(redis, None).map(Some),
        #[cfg(feature = "sql")]
        ProviderKind::Database { database } => database::open(database).map(Some),
        #[cfg(not(feature = "sql"))]
        ProviderKind::Database { .. } | ProviderKind::Builtin => {
            Err("this program was built without SQL (feature `sql`)".to_owned())
        }
        ProviderKind::Webhook { webhook } => Ok(Some(webhook::open(webhook))),
        #[cfg(feature = "sql")]
        ProviderKind::Builtin => Ok(None),
        ProviderKind::File | ProviderKind::Static { .. } | ProviderKind::Lua { .. } => Ok(None),
    }
}

/// Threads for a pool of so many connections.
fn threads(connections: u32) -> u32 {
    connections.clamp(1, LOOKUP_THREADS_MAX)
}

fn start(provider: &Provider, opened: Opened) -> std::io::Result<KeyService> {
    let (ask, questions) = ask::queue(LOOKUPS_WAITING_MAX);
    let questions = Arc::new(questions.shared());
    let service = KeyService::new(ask, opened.patience);
    let answering = Arc::new(Answering {
        name: provider.name.clone(),
        has_script: provider.script.is_some(),
        patience: opened.patience,
        circuit: Circuit::new(&provider.name, opened.place),
        told: Mutex::default(),
        lowered: Mutex::default(),
        numbers: Arc::clone(&service.numbers),
    });
    for (number, mut source) in (0..).zip(opened.sources) {
        let (questions, answering) = (Arc::clone(&questions), Arc::clone(&answering));
        let changes = service.watch_changes();
        std::thread::Builder::new().name("keys".into()).spawn(move || {
            if number < opened.ready {
                super::survive("keys", || answering.look_first(source.as_mut()));
            }
            let mut goes_on = true;
            while goes_on {
                super::survive("keys", || {
                    goes_on = questions.answer_until(
                        source.chore(),
                        || changes.count(),
                        |question| answering.answer(source.as_mut(), question),
                    );
                    if let Some(done) = changes.ends() {
                        source.end();
                        let _ = done.try_send(());
                    }
                    if source.chore().is_some_and(|due| due <= Instant::now()) {
                        source.tend(&answering.numbers);
                    }
                });
            }
        })?;
    }
    Ok(service)
}

/// What the threads of one provider share.
struct Answering {
    name: String,
    has_script: bool,
    patience: Duration,
    circuit: Circuit,
    /// What is told once: fields that some key had and that could not be understood, and the like.
    told: Mutex<HashSet<&'static str>>,
    /// Ids of keys with a limit that is more than can be counted: each is told once.
    lowered: Mutex<HashSet<u64>>,
    numbers: Arc<LookupNumbers>,
}

impl Answering {
    /// Whoever starts is told at once what their first client would find out.
    fn look_first(&self, source: &mut dyn KeySource) {
        if let Err(trouble) = source.probe(Instant::now() + self.patience) {
            self.circuit.note_failure(Instant::now(), &trouble.into_words());
        }
    }

    fn answer(&self, source: &mut dyn KeySource, question: &KeyQuestion) -> KeyAnswer {
        let began = Instant::now();
        let answer = self.look_up(source, question, began);
        self.numbers.note(&answer, began.elapsed());
        answer
    }

    fn look_up(
        &self,
        source: &mut dyn KeySource,
        question: &KeyQuestion,
        now: Instant,
    ) -> KeyAnswer {
        if !is_possible(question.key.reveal()) {
            return KeyAnswer::Unknown;
        }
        if !self.circuit.lets_through(now, self.patience) {
            return KeyAnswer::Failed;
        }
        match source.find(question, now + self.patience) {
            Ok(found) => {
                self.circuit.note_answer();
                self.judge(question, found)
            }
            Err(Trouble::Later(why)) => {
                let why = without(&why, question.key.reveal());
                self.circuit.note_failure(Instant::now(), &why);
                KeyAnswer::Failed
            }
            // It is there, and what it said is of no use.
            Err(Trouble::Data(why)) => {
                let why = without(&why, question.key.reveal());
                self.circuit.note_answer();
                self.circuit.tell_odd(Instant::now(), &why);
                KeyAnswer::Failed
            }
        }
    }

    fn judge(&self, question: &KeyQuestion, found: FoundKey) -> KeyAnswer {
        match found {
            FoundKey::Unknown => KeyAnswer::Unknown,
            FoundKey::Denied(message) => KeyAnswer::Denied(message),
            FoundKey::Facts(facts) => self.known(question, *facts),
            FoundKey::Unclear(what) => {
                self.tell_unclear(what);
                let facts = KeyFacts::new(question.digest);
                KeyAnswer::Known(Arc::new(KeyFacts { status: KeyState::Disabled, ..facts }))
            }
            FoundKey::Fields(found) => {
                let (mut facts, unclear) = fields::read(question.digest, &found);
                unclear.into_iter().for_each(|field| self.tell_unclear(field));
                facts.data = self.has_script.then_some(Value::Object(found));
                self.known(question, facts)
            }
        }
    }

    fn known(&self, question: &KeyQuestion, mut facts: KeyFacts) -> KeyAnswer {
        if let Some(wanted) = facts.limits.max_concurrent.filter(|n| *n > LIMIT_CONCURRENT_MAX) {
            facts.limits.max_concurrent = Some(LIMIT_CONCURRENT_MAX);
            self.tell_lowered(&facts, wanted);
        }
        if !facts.metadata.tell_records(question.key.reveal()) && self.is_news(LARGE_METADATA) {
            let provider = &self.name;
            tracing::warn!(
                %provider,
                bytes_max = KEY_METADATA_RECORDED_BYTES_MAX,
                "the metadata of a key is too large for records, which say null; said once"
            );
        }
        KeyAnswer::Known(Arc::new(facts))
    }

    /// Tells once of a key that is held to less than its provider says.
    fn tell_lowered(&self, facts: &KeyFacts, wanted: u32) {
        let mut told = self.lowered.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= LOWERED_TOLD_MAX || !told.insert(facts.digest.label()) {
            return;
        }
        let (provider, key_id) = (&self.name, format!("{:016x}", facts.digest.label()));
        tracing::warn!(
            %provider,
            key_id,
            max_concurrent = wanted,
            used = LIMIT_CONCURRENT_MAX,
            is_last = told.len() == LOWERED_TOLD_MAX,
            "more requests at one time than are counted: the key is held to what is"
        );
    }

    /// True the first time.
    fn is_news(&self, what: &'static str) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(what)
    }

    fn tell_unclear(&self, field: &'static str) {
        if self.is_news(field) {
            let provider = &self.name;
            tracing::warn!(
                %provider,
                field,
                "what it says of a key cannot be understood: such keys count as disabled; \
                 said once for this field"
            );
        }
    }
}

/// True for what somebody may have been given as a key. Some databases answer a letter that their
/// alphabet does not have with an error: it must not look as if they were down.
fn is_possible(key: &str) -> bool {
    (1..=LOOKUP_KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic())
}

/// A message without the key, should a server ever repeat it.
fn without(message: &str, key: &str) -> String {
    message.replace(key, "***")
}

#[cfg(test)]
mod tests;
