//! Keys in Redis: under a name that holds the key, a hash of fields or a JSON object as a text.

use super::quota::{QuotaBook, QuotaTeller};
use super::{threads, FoundKey, KeySource, Opened};
use crate::config::plan::{Auth, RedisKeys};
use crate::keys::fields;
use crate::state::lookup::{KeyQuestion, LookupNumbers};
use crate::store::redis::{self, RedisServer, RedisValue};
use crate::store::Trouble;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What stands for the key in a pattern.
const PLACE: &str = "{api_key}";
/// What separates the parts of names in Redis, and what commands with patterns give a meaning. A
/// key with one of them could be the name of something else, such as `KEY:usage`.
const NOT_IN_KEYS: &[u8] = b":{}*?[]\\^\"'";

struct RedisSource {
    server: RedisServer,
    pattern: String,
    /// Counts quotas together with other gateways.
    quotas: Option<QuotaTeller>,
    patience: Duration,
}

/// Connects to nothing yet. `quotas`: they are counted there.
pub fn open(plan: &RedisKeys, quotas: Option<(&Arc<QuotaBook>, &Auth)>) -> Result<Opened, String> {
    redis::readable(&plan.server)?;
    let pool = &plan.server.pool;
    let patience = pool.dial_timeout.saturating_add(pool.write_timeout);
    let patience = patience.saturating_add(pool.read_timeout);
    let source = |number: u32| -> Box<dyn KeySource> {
        let server = RedisServer::new(plan.server.clone());
        let pattern = plan.key_pattern.clone();
        let quotas = quotas.map(|(book, auth)| QuotaTeller::new(book, auth, number == 0));
        Box::new(RedisSource { server, pattern, quotas, patience })
    };
    Ok(Opened {
        place: RedisServer::new(plan.server.clone()).place(),
        patience,
        ready: pool.min_idle_conns.max(1),
        sources: (0..threads(pool.pool_size)).map(source).collect(),
    })
}

impl KeySource for RedisSource {
    fn probe(&mut self, until: Instant) -> Result<(), Trouble> {
        self.server.probe(until)
    }

    fn find(&mut self, question: &KeyQuestion, until: Instant) -> Result<FoundKey, Trouble> {
        let key = question.key.reveal();
        if !is_plain(key) {
            return Ok(FoundKey::Unknown);
        }
        let name = self.pattern.replace(PLACE, key);
        let found = match self.server.value_of(&name, until)? {
            RedisValue::Nothing => FoundKey::Unknown,
            RedisValue::Hash(fields) => {
                let fields = fields.into_iter().map(|(name, text)| (name, Value::String(text)));
                FoundKey::Fields(fields.collect())
            }
            RedisValue::Text(text) => match serde_json::from_str(&text) {
                Ok(fields) => FoundKey::Fields(fields),
                Err(_) => FoundKey::Unclear("a text that is no JSON object"),
            },
            RedisValue::Other => FoundKey::Unclear("neither a hash nor a text"),
        };
        if let (FoundKey::Fields(fields), Some(quotas)) = (&found, &mut self.quotas) {
            let (facts, _) = fields::read(question.digest, fields);
            // Whether or not it can be told: the gateway's own count decides.
            quotas.meet(&mut self.server, &name, facts, until);
        }
        Ok(found)
    }

    fn chore(&self) -> Option<Instant> {
        self.quotas.as_ref().and_then(QuotaTeller::due)
    }

    fn tend(&mut self, numbers: &LookupNumbers) {
        if let Some(quotas) = &mut self.quotas {
            quotas.look(&mut self.server, self.patience, numbers);
        }
    }

    fn end(&mut self) {
        if let Some(quotas) = &mut self.quotas {
            quotas.tell_due(&mut self.server, Instant::now(), self.patience);
        }
    }
}

/// True for a key that can only be a part of the name that the pattern gives it.
fn is_plain(key: &str) -> bool {
    !key.bytes().any(|byte| NOT_IN_KEYS.contains(&byte))
}
