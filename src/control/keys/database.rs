//! Keys in a SQL table, a row for each. A database may take letters of another case, or blanks at
//! the end, for the same text: what it finds is compared with the key itself.

mod mysql;
mod postgres;
mod sqlite;

use super::{threads, FoundKey, KeySource, Opened};
use crate::base::limits::{LOOKUP_ANSWER_BYTES_MAX, LOOKUP_ROWS_MAX};
use crate::config::plan::{DatabaseKeys, SqlAddress, SqlDriver, StoredKeyForm};
use crate::keys::digest::KeyDigest;
use crate::keys::fields::Fields;
use crate::state::lookup::KeyQuestion;
use crate::store::sql::{place, Connect, Lifetime};
use crate::store::{left, Trouble};
use crate::usage::key_form::hex;
use serde_json::Value;
use std::time::{Duration, Instant};

/// What one look-up may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The name that the column of the key has in what is read, beside its own.
const KEY: &str = "llmproxy_found_key";

/// A database of one product.
trait KeyTable: Connect {
    /// True while there is a connection, which may be broken.
    fn is_connected(&self) -> bool;

    /// The rows that the statement finds for this text.
    fn rows(&mut self, statement: &str, key: &str, until: Instant) -> Result<Vec<Fields>, Trouble>;
}

struct TableSource {
    statement: String,
    form: StoredKeyForm,
    /// The column that is left out of what was read: it holds the key.
    key_column: Option<String>,
    table: Box<dyn KeyTable>,
    lifetime: Lifetime,
}

/// Connects to nothing yet.
pub fn open(plan: &DatabaseKeys) -> Result<Opened, String> {
    let source = |_| -> Result<Box<dyn KeySource>, String> {
        let table: Box<dyn KeyTable> = match (&plan.sql.address, plan.sql.driver) {
            (SqlAddress::File(path), _) => Box::new(sqlite::SqliteKeys::new(path)),
            (SqlAddress::Server(server), SqlDriver::Mysql) => {
                Box::new(crate::store::sql::mysql::Mysql::new(server)?)
            }
            (SqlAddress::Server(server), _) => {
                Box::new(crate::store::sql::postgres::Postgres::new(server)?)
            }
        };
        let (statement, form) = (statement(plan), plan.key_form);
        let lifetime = Lifetime::new(plan.sql.pool.clone());
        // Whoever lists it wants it.
        let key_column = plan.fields.is_empty().then(|| plan.key_column.clone());
        Ok(Box::new(TableSource { statement, form, key_column, table, lifetime }))
    };
    Ok(Opened {
        place: place(plan.sql.driver, &plan.sql.address),
        patience: PATIENCE,
        ready: 1,
        sources: (0..threads(plan.sql.pool.max_open_conns))
            .map(source)
            .collect::<Result<_, _>>()?,
    })
}

/// The statement, with one parameter. All names in it were checked when the configuration was read,
/// and are quoted all the same.
fn statement(plan: &DatabaseKeys) -> String {
    let driver = plan.sql.driver;
    let name = |name: &str| {
        // SQLite takes a name in double quotes that no column has for a text: whoever showed the
        // name of a missing column as their key would be let in with the first row.
        let mark = if driver == SqlDriver::Postgres { '"' } else { '`' };
        name.split('.').map(|part| format!("{mark}{part}{mark}")).collect::<Vec<_>>().join(".")
    };
    let fields = match plan.fields.is_empty() {
        true => "*".to_owned(),
        false => plan.fields.iter().map(|field| name(field)).collect::<Vec<_>>().join(", "),
    };
    let (table, key) = (name(&plan.table), name(&plan.key_column));
    let parameter = if driver == SqlDriver::Postgres { "$1" } else { "?" };
    let rows = format!(
        "SELECT {fields}, {key} AS {KEY} FROM {table} WHERE {key} = {parameter} \
         LIMIT {LOOKUP_ROWS_MAX}"
    );
    match driver {
        // It knows how each of its types is written in JSON.
        SqlDriver::Postgres => format!("SELECT row_to_json(k)::text FROM ({rows}) k"),
        _ => rows,
    }
}

impl TableSource {
    fn rows(&mut self, key: &str, until: Instant) -> Result<Vec<Fields>, Trouble> {
        if !self.table.is_connected() {
            self.table.connect(until)?;
            self.lifetime.begin();
        }
        let rows = self.table.rows(&self.statement, key, until)?;
        self.lifetime.touch();
        Ok(rows)
    }
}

impl KeySource for TableSource {
    /// Runs the statement, so that a table or a column that is not there is found out.
    fn probe(&mut self, until: Instant) -> Result<(), Trouble> {
        self.rows("", until).map(drop).inspect_err(|_| self.table.close())
    }

    fn find(&mut self, question: &KeyQuestion, until: Instant) -> Result<FoundKey, Trouble> {
        if self.lifetime.is_over() {
            self.table.close();
        }
        let key = match self.form {
            StoredKeyForm::Plain => question.key.reveal().to_owned(),
            StoredKeyForm::Sha256 => hex(question.digest.as_bytes()),
        };
        let was_connected = self.table.is_connected();
        let mut found = self.rows(&key, until);
        // The server may have been restarted since the last question.
        if was_connected && found.is_err() && left(until).is_ok() {
            self.table.close();
            found = self.rows(&key, until);
        }
        // An answer that comes late would be taken for that of the next question.
        if found.is_err() || !self.lifetime.keeps_idle() {
            self.table.close();
        }
        let asked = KeyDigest::of(key.as_bytes());
        let mut rows = found?.into_iter().filter_map(|row| of_key(row, &asked));
        match (rows.next(), rows.next()) {
            // They may say different things, and nothing says which one counts.
            (Some(_), Some(_)) => Ok(FoundKey::Unclear("several rows of one key")),
            (Some(row), None) if size(&row) > LOOKUP_ANSWER_BYTES_MAX => {
                Err(Trouble::Data(format!("a row has more than {LOOKUP_ANSWER_BYTES_MAX} bytes")))
            }
            (Some(mut row), None) => {
                if let Some(column) = &self.key_column {
                    row.retain(|name, _| !name.eq_ignore_ascii_case(column));
                }
                Ok(FoundKey::Fields(row))
            }
            (None, _) => Ok(FoundKey::Unknown),
        }
    }
}

/// The row, if it is really of this key.
fn of_key(mut row: Fields, asked: &KeyDigest) -> Option<Fields> {
    let found = row.remove(KEY)?;
    // A column of fixed width is filled up with blanks, which no key ends with.
    let is_it = match &found {
        Value::String(text) => KeyDigest::of(text.trim_end_matches(' ').as_bytes()) == *asked,
        Value::Number(number) => KeyDigest::of(number.to_string().as_bytes()) == *asked,
        _ => false,
    };
    is_it.then_some(row)
}

fn size(row: &Fields) -> usize {
    let value = |value: &Value| match value {
        Value::String(text) => text.len(),
        Value::Array(_) | Value::Object(_) => value.to_string().len(),
        _ => 8,
    };
    row.iter().map(|(name, said)| name.len() + value(said)).sum()
}

/// Bytes of a database: text in most cases.
fn text(bytes: &[u8]) -> Value {
    Value::String(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests;
