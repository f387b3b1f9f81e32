//! Who may come in: the providers of keys, asked one after the other, and what their answers come
//! to. It waits for nobody: whoever has the answers brings them.

use super::credential::{Ambiguous, KeyFields};
use super::identity::IdentityFields;
use super::key_cache::KeyCache;
use crate::base::limits::LOOKUP_KEY_BYTES_MAX;
use crate::base::refusal::Refusal;
use crate::config::plan::{
    self, AuthMode, KeyState, LookupCache, OnError, ProviderKind, StatusCode,
};
use crate::http::head::Field;
use crate::keys::check::{self, Circumstances, Denial};
use crate::keys::digest::KeyDigest;
use crate::keys::facts::KeyFacts;
use crate::keys::table::KeyTable;
use crate::state::board::View;
use crate::state::lookup::{KeyAnswer, KeyService};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Seconds until a client may try again when nobody could say whether its key is good: a restart of
/// a database takes some.
const UNAVAILABLE_S: u32 = 5;

/// How the keys of requests are judged by one view.
pub struct Gate {
    fields: KeyFields,
    mode: AuthMode,
    skip_paths: Vec<String>,
    status_codes: Vec<(KeyState, StatusCode)>,
    providers: Vec<Provider>,
    /// How engines are told whose a request is, if they are.
    pub identity: Option<IdentityFields>,
    /// What is said to a client without a key.
    no_key: String,
}

/// One of the providers.
struct Provider {
    /// Its keys, when they are in the configuration.
    table: Option<Arc<KeyTable>>,
    /// How it is asked, when they are not, and what it said lately.
    asked: Option<Asked>,
    on_error: OnError,
    /// It is a script alone.
    is_script: bool,
}

/// A provider that is asked.
#[derive(Clone)]
struct Asked {
    service: KeyService,
    cache: Rc<KeyCache>,
}

/// A request on its way past the providers.
#[derive(Debug, Default)]
pub struct Tour {
    /// The provider that is asked next.
    pub place: usize,
    is_known: bool,
    has_failed: bool,
}

/// What is to be done after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Ask the next provider.
    GoOn,
    /// The request is let in.
    In,
}

impl Gate {
    /// Of a view; `None`: everybody may come in. What providers have said to the gate `before` is
    /// remembered, if they are the same.
    pub fn of(view: &View, before: Option<&Gate>) -> Option<Gate> {
        let auth = view.plan.auth.as_ref()?;
        let provider = |(place, plan): (usize, &plan::Provider)| Provider {
            table: view.key_tables.get(place).cloned().flatten(),
            asked: view.services.get(place).and_then(|service| {
                Some(Asked::new(service.as_ref()?, plan.cache.clone()?, before))
            }),
            on_error: plan.on_error,
            is_script: matches!(plan.kind, ProviderKind::Lua { .. }),
        };
        let fields = KeyFields::new(&auth.header_names);
        let no_key = said_without_key(&auth.header_names);
        Some(Gate {
            fields,
            mode: auth.mode,
            skip_paths: auth.skip_paths.clone(),
            status_codes: auth.status_codes.clone(),
            providers: auth.pipeline.iter().enumerate().map(provider).collect(),
            identity: auth.forward_identity.as_ref().map(IdentityFields::new),
            no_key,
        })
    }

    /// The fields that may carry a key.
    pub fn fields(&self) -> &KeyFields {
        &self.fields
    }

    /// Whether a normal path needs no key.
    pub fn skips(&self, path: &[u8]) -> bool {
        let covers = |skip: &String| match skip.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix.as_bytes()),
            None => path == skip.as_bytes(),
        };
        self.skip_paths.iter().any(covers)
    }

    /// The key that a request presents.
    ///
    /// # Errors
    /// It presents none, or none that could be one.
    pub fn credential<'a>(&self, fields: &[Field], bytes: &'a [u8]) -> Result<&'a str, Refusal> {
        let key = match self.fields.find(fields, bytes) {
            Ok(Some(key)) => key,
            Ok(None) => return Err(NO_KEY.with_message(self.no_key.clone())),
            Err(Ambiguous) => return Err(TWO_KEYS),
        };
        // What nobody could have been given is not asked about.
        let could_be = key.len() <= LOOKUP_KEY_BYTES_MAX && key.iter().all(u8::is_ascii_graphic);
        let text = std::str::from_utf8(key).ok().filter(|_| could_be);
        text.ok_or_else(|| self.refuse(Denial::Unknown))
    }

    /// Whether the provider at this place is a script alone.
    pub fn is_script(&self, place: usize) -> bool {
        self.providers.get(place).is_some_and(|provider| provider.is_script)
    }

    /// The keys of the provider at this place; `None`: there is none, or it has to be asked.
    pub fn table(&self, place: usize) -> Option<&KeyTable> {
        self.providers.get(place)?.table.as_deref()
    }

    /// What the provider at this place said of a key not long ago.
    pub fn remembered(&self, place: usize, digest: &KeyDigest, now: Instant) -> Option<KeyAnswer> {
        let Asked { service, cache } = self.providers.get(place)?.asked.as_ref()?;
        cache.find(digest, service.changes(), now)
    }

    /// How the provider at this place is asked; `None`: it cannot be.
    pub fn service(&self, place: usize) -> Option<&KeyService> {
        Some(&self.providers.get(place)?.asked.as_ref()?.service)
    }

    /// Remembers an answer of the provider at this place, whose keys had been changed so often when
    /// it was asked.
    pub fn keep(
        &self,
        place: usize,
        digest: KeyDigest,
        (answer, changes): (&KeyAnswer, u64),
        now: Instant,
    ) {
        if let Some(asked) = self.providers.get(place).and_then(|it| it.asked.as_ref()) {
            asked.cache.keep(digest, answer, changes, now);
        }
    }

    /// What an answer of the provider whose turn it is comes to. `at` tells in which circumstances
    /// a key of these facts is used.
    ///
    /// # Errors
    /// The request is refused.
    pub fn hear(
        &self,
        tour: &mut Tour,
        answer: &KeyAnswer,
        at: impl FnOnce(&KeyFacts) -> Circumstances,
    ) -> Result<Ruling, Refusal> {
        let on_error = self.providers.get(tour.place).map_or(OnError::Deny, |p| p.on_error);
        tour.place += 1;
        match (answer, self.mode, on_error) {
            (KeyAnswer::Known(facts), mode, _) => {
                check::check(facts, &at(facts)).map_err(|denial| self.refuse(denial))?;
                tour.is_known = true;
                if mode == AuthMode::FirstMatch {
                    return Ok(Ruling::In);
                }
            }
            (KeyAnswer::Denied(message), _, _) => return Err(denied(message.as_deref())),
            (KeyAnswer::Unknown, AuthMode::All, _) => return Err(self.refuse(Denial::Unknown)),
            (KeyAnswer::Unknown, AuthMode::FirstMatch, _) => {}
            (KeyAnswer::Failed, _, OnError::Deny) => return Err(unavailable()),
            (KeyAnswer::Failed, _, OnError::Next) => tour.has_failed = true,
        }
        match tour.place < self.providers.len() {
            true => Ok(Ruling::GoOn),
            false => self.end(tour),
        }
    }

    /// Every provider was asked. One that could not answer may be the one that knows the key, so
    /// without it nobody is told that the key is none.
    fn end(&self, tour: &Tour) -> Result<Ruling, Refusal> {
        match (tour.is_known, tour.has_failed) {
            (true, _) => Ok(Ruling::In),
            (false, true) => Err(unavailable()),
            (false, false) => Err(self.refuse(Denial::Unknown)),
        }
    }

    /// What becomes of a request that no provider can be asked about, because there is none.
    ///
    /// # Errors
    /// It is refused.
    pub fn begin(&self) -> Result<Tour, Refusal> {
        match self.providers.is_empty() {
            true => Err(self.refuse(Denial::Unknown)),
            false => Ok(Tour::default()),
        }
    }

    /// The answer for a key whose quota has too little left for a request.
    pub fn refuse_quota(&self) -> Refusal {
        self.refuse(Denial::Quota)
    }

    /// The answer for a key that may not be used, as `auth.status_codes` has it.
    fn refuse(&self, denial: Denial) -> Refusal {
        let mut refusal = usual(denial);
        let state = denial.state();
        let own = self.status_codes.iter().find(|(of, _)| Some(*of) == state);
        if let Some((_, own)) = own {
            refusal.status = own.http_code.unwrap_or(refusal.status);
            if !own.message.is_empty() {
                refusal = refusal.with_message(own.message.clone());
            }
        }
        refusal
    }
}

impl Asked {
    /// With what was known before, if it is the same provider and remembers in the same way.
    fn new(service: &KeyService, how: LookupCache, before: Option<&Gate>) -> Asked {
        let known = before.into_iter().flat_map(|gate| &gate.providers);
        let mut known = known.filter_map(|provider| provider.asked.as_ref());
        let is_it = |asked: &&Asked| asked.service.is_same(service) && *asked.cache.how() == how;
        let cache = match known.find(is_it) {
            Some(asked) => Rc::clone(&asked.cache),
            None => Rc::new(KeyCache::new(how)),
        };
        Asked { service: service.clone(), cache }
    }
}

/// How a client can present its key, in the words of the configuration.
fn said_without_key(names: &[String]) -> String {
    let way = |name: &String| match name.eq_ignore_ascii_case("authorization") {
        true => format!("`{name}: Bearer KEY`"),
        false => format!("`{name}: KEY`"),
    };
    let ways: Vec<String> = names.iter().map(way).collect();
    format!("No API key was sent. Send yours in the field {}.", ways.join(" or "))
}

/// The usual answer for a key that may not be used. What engines and OpenAI call these things.
fn usual(denial: Denial) -> Refusal {
    match denial {
        Denial::Unknown => Refusal::new(401, "invalid_api_key", "The API key is not known here.")
            .with_field(&CHALLENGE),
        Denial::Disabled => Refusal::new(403, "key_disabled", "The API key is switched off."),
        Denial::NotActive => Refusal::new(403, "key_not_active", "The API key is not valid yet."),
        Denial::Expired => Refusal::new(403, "key_expired", "The API key has expired."),
        Denial::Address => Refusal::new(
            403,
            "ip_not_allowed",
            "The API key may not be used from the address of this client.",
        ),
        Denial::Quota => USED_UP,
        Denial::Balance => Refusal {
            message: std::borrow::Cow::Borrowed("The balance of the API key is used up."),
            ..USED_UP
        },
    }
}

/// A provider that knows the key said no.
fn denied(message: Option<&str>) -> Refusal {
    let refusal = Refusal::new(403, "access_denied", "The API key may not be used.");
    match message.filter(|message| !message.is_empty()) {
        Some(message) => refusal.with_message(message.to_owned()),
        None => refusal,
    }
}

/// Nobody could say whether the key is good.
fn unavailable() -> Refusal {
    Refusal::new(
        503,
        "auth_unavailable",
        "The API key cannot be checked at the moment; it may be good. Try again.",
    )
    .with_retry_after(UNAVAILABLE_S)
}

/// RFC 9110 section 15.5.2: a 401 says how to do better.
const CHALLENGE: (&str, &str) = ("WWW-Authenticate", "Bearer");
const NO_KEY: Refusal =
    Refusal::new(401, "missing_api_key", "No API key was sent.").with_field(&CHALLENGE);
const TWO_KEYS: Refusal = Refusal::new(
    401,
    "missing_api_key",
    "The field that carries the API key is there more than once, with different values, so none \
     of them counts. Send it once.",
)
.with_field(&CHALLENGE);
/// The clients of OpenAI go by this field: to try again cannot help.
const NO_RETRY: (&str, &str) = ("x-should-retry", "false");
const USED_UP: Refusal =
    Refusal::new(429, "insufficient_quota", "The quota of the API key is used up.")
        .with_field(&NO_RETRY);

#[cfg(test)]
mod tests;
