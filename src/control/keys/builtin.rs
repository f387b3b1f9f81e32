//! Keys in the store inside the gateway, which the admin API and `llmproxy keys` administer.

use super::{FoundKey, KeySource, Opened};
use crate::base::clock::unix_ms;
use crate::control::key_store::{form, KeyRef, KeyStore, KeyUses, StoredKey};
use crate::keys::facts::KeyFacts;
use crate::state::lookup::{KeyQuestion, LookupNumbers};
use crate::store::Trouble;
use jiff::Timestamp;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What one look-up may take: another process may be writing.
const PATIENCE: Duration = Duration::from_secs(3);
/// That keys were used is written down so often.
const NOTE_PAUSE: Duration = Duration::from_secs(5);

struct BuiltinSource {
    path: PathBuf,
    has_script: bool,
    store: Option<KeyStore>,
    uses: KeyUses,
    /// When it is looked next what was used.
    look: Instant,
    /// It was told that this cannot be written.
    is_told: bool,
}

/// Opens nothing yet. One thread is enough: the file is beside us.
pub fn open(path: &Path, has_script: bool) -> Opened {
    let source = source(path, has_script);
    Opened {
        place: path.display().to_string(),
        patience: PATIENCE,
        ready: 1,
        sources: vec![Box::new(source)],
    }
}

fn source(path: &Path, has_script: bool) -> BuiltinSource {
    BuiltinSource {
        path: path.to_owned(),
        has_script,
        store: None,
        uses: KeyUses::default(),
        look: Instant::now() + NOTE_PAUSE,
        is_told: false,
    }
}

impl BuiltinSource {
    fn opened(&mut self) -> Result<&KeyStore, Trouble> {
        let store = match self.store.take() {
            Some(store) => store,
            None => KeyStore::open(&self.path).map_err(Trouble::Later)?,
        };
        Ok(self.store.insert(store))
    }

    fn look_up(&mut self, question: &KeyQuestion) -> Result<Option<KeyFacts>, Trouble> {
        let (has_script, now_ms) = (self.has_script, i64::try_from(unix_ms()).unwrap_or(i64::MAX));
        let store = self.opened()?;
        let said = |fault: crate::control::key_store::StoreFault| Trouble::Later(fault.to_string());
        let Some(mut facts) = store.find(&question.digest, now_ms).map_err(said)? else {
            return Ok(None);
        };
        if has_script {
            let key = question.key.reveal();
            let stored = store.get(&KeyRef::Text(key.to_owned())).map_err(said)?;
            facts.data = Some(data(key, &facts, &stored));
        }
        facts.last_use = self.uses.meet(facts.digest, now_ms);
        Ok(Some(facts))
    }

    /// Writes a part of what was used, and puts it back when that fails.
    fn write_uses(&mut self) {
        let part = self.uses.next_part();
        if part.is_empty() {
            return;
        }
        let written = match &self.store {
            Some(store) => store.note_uses(part).map_err(|fault| fault.to_string()),
            // It is opened by the next look-up, which says what is wrong.
            None => return self.uses.put_back(),
        };
        match written {
            Ok(()) => self.uses.note_written(),
            Err(_) => self.uses.put_back(),
        }
        if let (false, Err(why)) = (self.is_told, &written) {
            tracing::warn!(%why, "when keys were used cannot be written down: it is tried again");
        }
        self.is_told = written.is_err();
    }
}

impl Drop for BuiltinSource {
    /// Nobody asks any more.
    fn drop(&mut self) {
        self.end();
    }
}

impl KeySource for BuiltinSource {
    fn find(&mut self, question: &KeyQuestion, _: Instant) -> Result<FoundKey, Trouble> {
        let found = self.look_up(question);
        if found.is_err() {
            // Whatever was wrong with the file, it is looked at anew.
            self.store = None;
        }
        Ok(found?.map_or(FoundKey::Unknown, |facts| FoundKey::Facts(Box::new(facts))))
    }

    fn probe(&mut self, _: Instant) -> Result<(), Trouble> {
        self.opened().map(drop)
    }

    fn chore(&self) -> Option<Instant> {
        match (self.uses.next_part().is_empty(), self.uses.is_empty()) {
            (false, _) => Some(Instant::now()),
            (true, false) => Some(self.look),
            (true, true) => None,
        }
    }

    fn tend(&mut self, numbers: &LookupNumbers) {
        let now = Instant::now();
        if self.look <= now {
            self.look = now + NOTE_PAUSE;
            self.uses.look();
            numbers.note_uses_lost(self.uses.take_lost());
        }
        self.write_uses();
    }

    /// What cannot be written now is only a remark: nobody misses it.
    fn end(&mut self) {
        self.uses.look();
        while !self.uses.next_part().is_empty() {
            self.write_uses();
        }
    }
}

/// What scripts see: the names and the numbers of the first implementation.
fn data(key: &str, facts: &KeyFacts, stored: &StoredKey) -> Value {
    let seconds = |time: Option<Timestamp>| time.map(Timestamp::as_second);
    let mut data = form::settings(facts);
    data.extend([
        ("key".to_owned(), json!(key)),
        ("status".to_owned(), json!(form::state_number(facts.status))),
        ("starts_at".to_owned(), json!(seconds(facts.starts_at))),
        ("expires_at".to_owned(), json!(seconds(facts.expires_at))),
        ("created_at".to_owned(), json!(stored.created_ms / 1000)),
        ("updated_at".to_owned(), json!(stored.updated_ms / 1000)),
    ]);
    Value::Object(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::keys::digest::KeyDigest;

    /// Catches: a key of the store that is not found, one that was deleted and still is, a script
    /// that sees another form than before.
    #[test]
    fn a_key_of_the_store_is_found_while_it_is_there() {
        let folder = format!("llmproxy-builtin-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("keys.db");
        let store = KeyStore::open(&path).unwrap();
        let digest = KeyDigest::of(b"sk-1");
        let mut stored = StoredKey::new(digest, "sk-1".into(), 5_000);
        stored.facts.user_id = "u".into();
        stored.facts.expires_at = Some(Timestamp::from_second(4_000_000_000).unwrap());
        store.create(&stored).unwrap();
        let ask = |has_script: bool| {
            let question = KeyQuestion { digest, key: Secret::new("sk-1") };
            let mut source = open(&path, has_script).sources.remove(0);
            source.find(&question, Instant::now() + PATIENCE).unwrap()
        };
        let FoundKey::Facts(facts) = ask(false) else { panic!() };
        assert_eq!((facts.user_id.as_str(), &facts.data), ("u", &None));
        let FoundKey::Facts(facts) = ask(true) else { panic!() };
        let data = facts.data.unwrap();
        assert_eq!((&data["key"], &data["status"]), (&json!("sk-1"), &json!(0)));
        assert_eq!(
            (&data["expires_at"], &data["created_at"]),
            (&json!(4_000_000_000_u64), &json!(5))
        );
        store.delete(&KeyRef::Text("sk-1".into())).unwrap();
        assert_eq!(ask(false), FoundKey::Unknown);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// Catches: a use that is lost because the store could not be written once, a source that has
    /// nothing to do any more while something is left, or that turns round and round with nothing.
    #[test]
    fn a_use_that_could_not_be_written_is_written_later() {
        let folder = format!("llmproxy-builtin-uses-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let (path, away) = (folder.join("keys.db"), folder.join("away.db"));
        let digest = KeyDigest::of(b"sk-1");
        KeyStore::open(&path).unwrap().create(&StoredKey::new(digest, "sk".into(), 5)).unwrap();
        let last_used = || {
            let store = KeyStore::open(&path).unwrap();
            store.get(&KeyRef::Text("sk-1".into())).unwrap().last_used_ms
        };
        let mut source = source(&path, false);
        assert_eq!(source.chore(), None);
        let question = KeyQuestion { digest, key: Secret::new("sk-1") };
        let found = source.find(&question, Instant::now() + PATIENCE).unwrap();
        let FoundKey::Facts(facts) = found else { panic!() };
        let numbers = LookupNumbers::default();
        let tend = |source: &mut BuiltinSource| {
            source.look = Instant::now();
            assert!(source.chore().unwrap() <= Instant::now());
            source.tend(&numbers);
            assert!(source.chore().is_none_or(|due| due > Instant::now()), "one look, one try");
        };
        std::fs::rename(&path, &away).unwrap();
        tend(&mut source);
        assert!(source.is_told);
        std::fs::rename(&away, &path).unwrap();
        tend(&mut source);
        assert!(!source.is_told);
        assert_eq!(last_used(), facts.last_use.last_ms());
        let later = facts.last_use.last_ms().unwrap() + 5_000;
        facts.last_use.note(later);
        source.end();
        assert_eq!(last_used(), Some(later));
        drop(facts);
        tend(&mut source);
        assert_eq!(source.chore(), None, "nobody uses a key");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
