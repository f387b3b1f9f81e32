//! Providers of keys, asked as workers ask them.

use super::{await_some, SOON};
use llmproxy::base::secret::Secret;
use llmproxy::config::load_text;
use llmproxy::config::plan::Plan;
use llmproxy::control::keys;
use llmproxy::keys::digest::KeyDigest;
use llmproxy::keys::facts::KeyFacts;
use llmproxy::state::ask::Reply;
use llmproxy::state::lookup::{KeyAnswer, KeyQuestion, KeyService};
use std::sync::Arc;

/// The service of one provider.
pub struct KeyAsker(pub KeyService);

impl KeyAsker {
    /// Of a provider as it stands in `auth.pipeline`, in flow form without its braces.
    pub fn start(provider: &str) -> KeyAsker {
        let mut services = keys::services(&plan(provider), None, None).unwrap();
        KeyAsker(services.remove(0).unwrap())
    }

    /// What `llmproxy check --connect` finds of such a provider.
    pub fn probe(provider: &str) -> Result<(), String> {
        let plan = plan(provider);
        let provider = &plan.auth.as_ref().unwrap().pipeline[0];
        assert!(keys::is_elsewhere(provider));
        keys::probe(provider, SOON)
    }
    /// Asks, and does not wait.
    pub fn begin(&self, key: &str) -> Reply<KeyAnswer> {
        let question = KeyQuestion { digest: KeyDigest::of(key.as_bytes()), key: Secret::new(key) };
        self.0.ask.ask(question).expect("there is room")
    }

    /// Asks, and waits for the answer.
    pub fn ask(&self, key: &str) -> KeyAnswer {
        answer(self.begin(key))
    }

    /// Asks, and expects the provider to know the key.
    pub fn known(&self, key: &str) -> Arc<KeyFacts> {
        match self.ask(key) {
            KeyAnswer::Known(facts) => facts,
            other => panic!("{key}: {other:?}"),
        }
    }

    /// Asks until the provider knows the key.
    pub fn await_known(&self, key: &str) -> Arc<KeyFacts> {
        await_some("the provider knows the key", SOON, || match self.ask(key) {
            KeyAnswer::Known(facts) => Some(facts),
            _ => None,
        })
    }

    /// Asserts that the provider has no such key.
    pub fn assert_unknown(&self, key: &str) {
        let answer = self.ask(key);
        assert!(matches!(answer, KeyAnswer::Unknown), "{key}: {answer:?}");
    }

    /// Asserts that the look-up fails.
    pub fn assert_fails(&self, key: &str) {
        let answer = self.ask(key);
        assert!(matches!(answer, KeyAnswer::Failed), "{key}: {answer:?}");
    }
}

fn plan(provider: &str) -> Plan {
    let text = format!("backends: [{{url: 'http://a'}}]\nauth: {{pipeline: [{{{provider}}}]}}");
    load_text("test", &text, &|_| None).unwrap_or_else(|e| panic!("{e}")).plan
}

/// Waits for an answer.
pub fn answer(mut reply: Reply<KeyAnswer>) -> KeyAnswer {
    await_some("an answer", SOON, || reply.try_recv().expect("it is answered"))
}
