//! The file of the store.

use super::form::{apply, settings, state_name};
use super::import::TEXTS_MAX;
use super::{
    Imported, KeyFilter, KeyRef, KeySpan, KeyText, OnConflict, StoreFault, StoredKey, EXPORTED_MAX,
    LISTED_MAX,
};
use crate::keys::digest::KeyDigest;
use crate::keys::facts::KeyFacts;
use jiff::Timestamp;
use rusqlite::types::Value as Cell;
use rusqlite::TransactionBehavior::Immediate;
use rusqlite::{params, params_from_iter, Connection, OptionalExtension, Row, Transaction};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

mod file;

const COLUMNS: &str =
    "number, id, identity, prefix, settings, created_ms, updated_ms, last_used_ms";

/// The store, open. All threads of a process share one; several processes may have one file.
pub struct KeyStore {
    path: PathBuf,
    /// Device and number of the file that is open.
    file: (u64, u64),
    writer: Mutex<Connection>,
    /// Readers do not wait for the writer.
    reader: Mutex<Connection>,
    changes: AtomicU64,
}

type Done<T> = Result<T, StoreFault>;
type Sql<T> = rusqlite::Result<T>;

impl KeyStore {
    /// Opens the store in a file. Where there is none, and nothing that is left of one, an empty
    /// one is made.
    ///
    /// # Errors
    /// The file cannot be used; a sentence that names it.
    pub fn open(path: &Path) -> Result<KeyStore, String> {
        let named = |error: String| format!("{}: {error}", path.display());
        file::make_if_missing(path).map_err(named)?;
        let (writer, reader) = (
            file::open(path).map_err(named)?,
            file::connect(path).map_err(|error| named(error.to_string()))?,
        );
        Ok(KeyStore {
            path: path.to_owned(),
            file: file::id(path).map_err(named)?,
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
            changes: AtomicU64::new(0),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How often keys were changed by way of this.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// What is known of the key that has this text now.
    ///
    /// # Errors
    /// The store cannot be read, or the key cannot: nobody may take that for leave.
    pub fn find(&self, text: &KeyDigest, now_ms: i64) -> Done<Option<KeyFacts>> {
        let connection = lock(&self.reader);
        let found = self.said(found_by_text(&connection, text, now_ms))?;
        drop(connection);
        let Some((key, until_ms)) = found else { return Ok(None) };
        let mut facts = key?.facts;
        // Whoever keeps the facts for a while must not keep an old text alive by that.
        let until = until_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        facts.expires_at = facts.expires_at.into_iter().chain(until).min();
        Ok(Some(facts))
    }

    /// Writes down when keys were last used, in milliseconds since 1970: by their identities. What
    /// is there already is not replaced by an earlier moment.
    ///
    /// # Errors
    /// The store cannot be written: nothing of it is.
    pub fn note_uses(&self, uses: &[(KeyDigest, i64)]) -> Done<()> {
        self.transaction(|transaction| {
            let text = "UPDATE keys SET last_used_ms = max(coalesce(last_used_ms, ?2), ?2) \
                        WHERE identity = ?1";
            let mut statement = transaction.prepare_cached(text)?;
            for (identity, ms) in uses {
                statement.execute(params![identity.as_bytes(), ms])?;
            }
            Ok(Ok(()))
        })
    }

    /// One key.
    ///
    /// # Errors
    /// There is none, or the store cannot be read.
    pub fn get(&self, key: &KeyRef) -> Done<StoredKey> {
        let connection = lock(&self.reader);
        self.said(one(&connection, key))??.ok_or(StoreFault::NotFound)
    }

    /// Keys in the order in which they were made, and how many there are without the span.
    ///
    /// # Errors
    /// The store cannot be read, or there is no key behind which the span would begin.
    pub fn list(
        &self,
        filter: &KeyFilter,
        span: &KeySpan,
        limit: usize,
    ) -> Done<(Vec<StoredKey>, i64)> {
        let connection = lock(&self.reader);
        self.said(listed(&connection, filter, span, limit.min(EXPORTED_MAX)))?
    }

    /// How many keys there are, by status.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn count(&self) -> Done<Vec<(String, i64)>> {
        let connection = lock(&self.reader);
        let text = "SELECT status, count(*) FROM keys GROUP BY status ORDER BY status";
        let counted = connection.prepare(text).and_then(|mut statement| {
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        });
        self.said(counted)
    }

    /// Puts a key in.
    ///
    /// # Errors
    /// It is there already, under any of its texts, or the store cannot be written.
    pub fn create(&self, key: &StoredKey) -> Done<()> {
        self.write(|transaction| match taken(transaction, key)?.first() {
            Some(id) => Ok(Err(StoreFault::Conflict(id.clone()))),
            None => insert(transaction, key).map(Ok),
        })
    }

    /// Changes the facts of a key, and gives it as it is then. Whatever `change` says, nobody else
    /// changes it meanwhile.
    ///
    /// # Errors
    /// There is none, `change` refuses, or the store cannot be written.
    pub fn change<E: From<StoreFault>>(
        &self,
        key: &KeyRef,
        now_ms: i64,
        change: impl FnOnce(&mut KeyFacts) -> Result<(), E>,
    ) -> Result<StoredKey, E> {
        let mut refused = None;
        let done = self.write(|transaction| {
            let mut found = match one(transaction, key)? {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(Err(StoreFault::NotFound)),
                Err(fault) => return Ok(Err(fault)),
            };
            if let Err(error) = change(&mut found.facts) {
                refused = Some(error);
                return Ok(Err(StoreFault::Refused(String::new())));
            }
            found.updated_ms = now_ms;
            update(transaction, &found).map(|()| Ok(found))
        });
        match refused {
            Some(error) => Err(error),
            None => Ok(done?),
        }
    }

    /// Takes a key away, and gives it as it was.
    ///
    /// # Errors
    /// There is none, or the store cannot be written.
    pub fn delete(&self, key: &KeyRef) -> Done<StoredKey> {
        self.write(|transaction| match one(transaction, key)? {
            Ok(Some(found)) => remove(transaction, &found.id).map(|()| Ok(found)),
            Ok(None) => Ok(Err(StoreFault::NotFound)),
            Err(fault) => Ok(Err(fault)),
        })
    }

    /// Gives a key a new text. Those that it has are good until `old_until_ms`.
    ///
    /// # Errors
    /// There is no such key, the new text is taken, too many old ones are still good, or the store
    /// cannot be written.
    pub fn rotate(
        &self,
        key: &KeyRef,
        (text, prefix): (KeyDigest, String),
        (now_ms, old_until_ms): (i64, i64),
    ) -> Done<StoredKey> {
        self.write(|transaction| {
            let mut found = match one(transaction, key)? {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(Err(StoreFault::NotFound)),
                Err(fault) => return Ok(Err(fault)),
            };
            let fresh = StoredKey::new(text, prefix, now_ms);
            if let Some(id) = taken(transaction, &fresh)?.first() {
                return Ok(Err(StoreFault::Conflict(id.clone())));
            }
            for old in &mut found.texts {
                old.until_ms = Some(old.until_ms.unwrap_or(i64::MAX).min(old_until_ms));
            }
            found.texts.retain(|old| old.until_ms.is_none_or(|until| until > now_ms));
            if found.texts.len() >= TEXTS_MAX {
                let why = format!("{} old texts of this key are still good", found.texts.len());
                return Ok(Err(StoreFault::Refused(why)));
            }
            found.texts.extend(fresh.texts);
            (found.prefix, found.updated_ms) = (fresh.prefix, now_ms);
            update(transaction, &found)?;
            put_texts(transaction, &found)?;
            Ok(Ok(found))
        })
    }

    /// Puts many keys in: all or none. `is_all`: every other key is taken away.
    ///
    /// # Errors
    /// One is there and must not be, one has texts of several others, or the store cannot be
    /// written.
    pub fn import(
        &self,
        keys: &[StoredKey],
        on_conflict: OnConflict,
        is_all: bool,
    ) -> Done<Imported> {
        self.write(|transaction| {
            let mut done = Imported::default();
            transaction
                .execute_batch("CREATE TEMP TABLE IF NOT EXISTS kept (id TEXT PRIMARY KEY)")?;
            transaction.execute("DELETE FROM kept", [])?;
            for key in keys {
                let there = taken(transaction, key)?;
                let id = there.first().unwrap_or(&key.id);
                transaction.execute("INSERT OR IGNORE INTO kept VALUES (?1)", [id])?;
                match (there.as_slice(), on_conflict) {
                    ([], _) => {
                        insert(transaction, key)?;
                        done.created += 1;
                    }
                    ([_], OnConflict::Skip) => done.skipped += 1,
                    ([id], OnConflict::Replace) => {
                        replace(transaction, id, key)?;
                        done.replaced += 1;
                    }
                    ([id, ..], _) => return Ok(Err(StoreFault::Conflict(id.clone()))),
                }
            }
            if is_all {
                let rest = "SELECT number FROM keys WHERE id NOT IN (SELECT id FROM kept)";
                transaction.execute(&format!("DELETE FROM texts WHERE number IN ({rest})"), [])?;
                done.deleted = transaction
                    .execute(&format!("DELETE FROM keys WHERE number IN ({rest})"), [])?;
            }
            Ok(Ok(done))
        })
    }

    fn write<T>(&self, step: impl FnOnce(&Transaction<'_>) -> Sql<Done<T>>) -> Done<T> {
        let done = self.transaction(step)?;
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(done)
    }

    /// All of it, or nothing.
    fn transaction<T>(&self, step: impl FnOnce(&Transaction<'_>) -> Sql<Done<T>>) -> Done<T> {
        // What is written to a file that has lost its name is lost with this process.
        if file::id(&self.path).ok() != Some(self.file) {
            let path = self.path.display();
            let why =
                format!("{path}: the file is gone, or another one is there: restart llmproxy");
            return Err(StoreFault::Unavailable(why));
        }
        let mut connection = lock(&self.writer);
        let all = || -> Sql<Done<T>> {
            let transaction = connection.transaction_with_behavior(Immediate)?;
            let done = step(&transaction)?;
            if done.is_ok() {
                transaction.commit()?;
            }
            Ok(done)
        };
        self.said(all())?
    }

    fn said<T>(&self, result: Sql<T>) -> Done<T> {
        let path = self.path.display();
        result.map_err(|error| StoreFault::Unavailable(format!("{path}: {error}")))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn found_by_text(
    connection: &Connection,
    text: &KeyDigest,
    now_ms: i64,
) -> Sql<Option<(Done<StoredKey>, Option<i64>)>> {
    let select = "SELECT number, until_ms FROM texts WHERE digest = ?1 \
                  AND (until_ms IS NULL OR until_ms > ?2)";
    let mut statement = connection.prepare_cached(select)?;
    let found = statement.query_row(params![text.as_bytes(), now_ms], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?))
    });
    let Some((number, until_ms)) = found.optional()? else { return Ok(None) };
    let select = format!("SELECT {COLUMNS} FROM keys WHERE number = ?1");
    let mut statement = connection.prepare_cached(&select)?;
    let key = statement.query_row([number], |row| Ok(read(row))).optional()?;
    Ok(key.map(|key| (key.map(|(_, key)| key), until_ms)))
}

/// The key that is meant, with its texts.
fn one(connection: &Connection, key: &KeyRef) -> Sql<Done<Option<StoredKey>>> {
    let (id, text) = key.parts();
    let select = format!(
        "SELECT {COLUMNS} FROM keys WHERE id = ?1 UNION ALL \
         SELECT {COLUMNS} FROM keys WHERE number = (SELECT number FROM texts WHERE digest = ?2) \
         LIMIT 1"
    );
    let mut statement = connection.prepare_cached(&select)?;
    let asked = params![id, text.as_bytes()];
    let found = statement.query_row(asked, |row| Ok(read(row))).optional()?;
    let (number, mut key) = match found {
        None => return Ok(Ok(None)),
        Some(Err(fault)) => return Ok(Err(fault)),
        Some(Ok(found)) => found,
    };
    key.texts = texts_of(connection, number)?;
    Ok(Ok(Some(key)))
}

fn texts_of(connection: &Connection, number: i64) -> Sql<Vec<KeyText>> {
    let select = "SELECT digest, until_ms FROM texts WHERE number = ?1 ORDER BY until_ms, digest";
    let mut statement = connection.prepare_cached(select)?;
    let rows = statement.query_map([number], |row| {
        Ok(KeyText { digest: KeyDigest::from_bytes(row.get(0)?), until_ms: row.get(1)? })
    })?;
    rows.collect()
}

fn listed(
    connection: &Connection,
    filter: &KeyFilter,
    span: &KeySpan,
    limit: usize,
) -> Sql<Done<(Vec<StoredKey>, i64)>> {
    let (mut terms, mut values) = (vec!["TRUE"], Vec::<Cell>::new());
    let filters = [
        ("user_id = ?", &filter.user_id),
        ("status = ?", &filter.status),
        ("name = ?", &filter.name),
    ];
    for (term, wanted) in filters {
        if let Some(wanted) = wanted {
            terms.push(term);
            values.push(Cell::Text(wanted.clone()));
        }
    }
    let all = format!("SELECT count(*) FROM keys WHERE {}", terms.join(" AND "));
    let total = connection.query_row(&all, params_from_iter(&values), |row| row.get(0))?;
    let mut offset = 0;
    match span {
        KeySpan::Offset(first) => offset = *first,
        KeySpan::After(id) => {
            let select = "SELECT number FROM keys WHERE id = ?1";
            let number = connection.query_row(select, [id], |row| row.get(0)).optional()?;
            let Some(number) = number else { return Ok(Err(StoreFault::NotFound)) };
            terms.push("number > ?");
            values.push(Cell::Integer(number));
        }
    }
    let (terms, limit) = (terms.join(" AND "), limit as u64);
    let select = format!(
        "SELECT {COLUMNS} FROM keys WHERE {terms} ORDER BY number LIMIT {limit} OFFSET {offset}"
    );
    let mut statement = connection.prepare(&select)?;
    let rows = statement.query_map(params_from_iter(&values), |row| Ok(read(row)))?;
    let mut keys = Vec::new();
    for row in rows {
        match row? {
            Ok((number, mut key)) => {
                key.texts = texts_of(connection, number)?;
                keys.push(key);
            }
            Err(fault) => return Ok(Err(fault)),
        }
    }
    Ok(Ok((keys, total)))
}

/// A row, with its number and without its texts. One that somebody else wrote and that cannot be
/// understood is a fault: half of what it says would be a key with fewer limits.
fn read(row: &Row<'_>) -> Done<(i64, StoredKey)> {
    let cells = || -> Sql<(i64, StoredKey, String)> {
        let mut key = StoredKey::new(KeyDigest::from_bytes(row.get(2)?), row.get(3)?, row.get(5)?);
        key.texts.clear();
        key.id = row.get(1)?;
        key.updated_ms = row.get(6)?;
        key.last_used_ms = row.get(7)?;
        Ok((row.get(0)?, key, row.get(4)?))
    };
    let (number, mut key, settings) = cells()
        .map_err(|error| StoreFault::Unavailable(format!("a key cannot be read: {error}")))?;
    let fault = |why: String| StoreFault::Unavailable(format!("key {}: {why}", key.id));
    let object = serde_json::from_str(&settings).map_err(|error| fault(error.to_string()))?;
    let mut facts = key.facts.clone();
    apply(&mut facts, &object, &[])
        .map_err(|bad| fault(format!("{}: {}", bad.param, bad.message)))?;
    key.facts = facts;
    Ok((number, key))
}

/// The ids of keys that have this identity or one of these texts.
fn taken(connection: &Connection, key: &StoredKey) -> Sql<Vec<String>> {
    let select = "SELECT id FROM keys WHERE identity = ?1 OR id = ?2 OR number = \
                  (SELECT number FROM texts WHERE digest = ?1)";
    let mut statement = connection.prepare_cached(select)?;
    let mut ids = Vec::new();
    let texts = key.texts.iter().map(|text| &text.digest);
    for digest in std::iter::once(&key.facts.digest).chain(texts) {
        let rows = statement.query_map(params![digest.as_bytes(), key.id], |row| row.get(0))?;
        for id in rows {
            let id: String = id?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}

fn insert(transaction: &Transaction<'_>, key: &StoredKey) -> Sql<()> {
    let text = "INSERT INTO keys (id, identity, prefix, settings, name, user_id, status, \
                created_ms, updated_ms, last_used_ms) VALUES (?1, ?2, '', '{}', '', '', '', ?3, \
                ?3, ?4)";
    let identity = key.facts.digest.as_bytes();
    let values = params![key.id, identity, key.created_ms, key.last_used_ms];
    transaction.prepare_cached(text)?.execute(values)?;
    update(transaction, key)?;
    put_texts(transaction, key)
}

fn update(transaction: &Transaction<'_>, key: &StoredKey) -> Sql<()> {
    let text = "UPDATE keys SET prefix = ?2, settings = ?3, name = ?4, user_id = ?5, status = ?6, \
                updated_ms = ?7 WHERE id = ?1";
    let facts = &key.facts;
    let settings = serde_json::Value::Object(settings(facts)).to_string();
    let status = state_name(facts.status);
    let values =
        params![key.id, key.prefix, settings, facts.name, facts.user_id, status, key.updated_ms];
    transaction.prepare_cached(text)?.execute(values).map(drop)
}

fn put_texts(transaction: &Transaction<'_>, key: &StoredKey) -> Sql<()> {
    let number = "(SELECT number FROM keys WHERE id = ?1)";
    transaction.execute(&format!("DELETE FROM texts WHERE number = {number}"), [&key.id])?;
    let text = format!("INSERT INTO texts (digest, number, until_ms) VALUES (?2, {number}, ?3)");
    let mut statement = transaction.prepare_cached(&text)?;
    for text in &key.texts {
        statement.execute(params![key.id, text.digest.as_bytes(), text.until_ms])?;
    }
    Ok(())
}

/// Makes the key with this id what `key` says. It keeps its identity, and, unless that is the same,
/// its texts.
fn replace(transaction: &Transaction<'_>, id: &str, key: &StoredKey) -> Sql<()> {
    update(transaction, &StoredKey { id: id.to_owned(), ..key.clone() })?;
    match id == key.id {
        true => put_texts(transaction, key),
        false => Ok(()),
    }
}

fn remove(transaction: &Transaction<'_>, id: &str) -> Sql<()> {
    let number = "(SELECT number FROM keys WHERE id = ?1)";
    transaction.execute(&format!("DELETE FROM texts WHERE number = {number}"), [id])?;
    transaction.execute("DELETE FROM keys WHERE id = ?1", [id]).map(drop)
}

/// As many as the API lists at a time fit into what is read at a time.
const _: () = assert!(LISTED_MAX <= EXPORTED_MAX);
