//! MySQL and MariaDB: what a table is like, and rows for it.

use super::columns::{FoundColumn, Key, Layout, Letters, Row, Width, ID_LETTERS};
use super::statement::{insert, runs, schema_and_name, ROWS};
use super::Database;
use crate::store::sql::mysql::Mysql;
use crate::store::sql::Connect;
use crate::store::Trouble;
use crate::usage::record::borrowed::RecordRef;
use jiff::tz::TimeZone;
use mysql::prelude::Queryable;
use mysql::Value;
use std::borrow::Cow;
use std::time::Instant;

const COLUMNS: &str = "SELECT column_name, data_type, character_maximum_length, \
     character_octet_length, character_set_name, is_nullable = 'NO', \
     column_default IS NOT NULL OR extra LIKE '%auto_increment%', \
     extra LIKE '%GENERATED%' AND extra NOT LIKE '%DEFAULT_GENERATED%' \
     FROM information_schema.columns \
     WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? ORDER BY ordinal_position";

/// The indexes that begin with a column; whether each is a unique one of all of it alone.
const INDEXES: &str = "SELECT s.non_unique = 0 AND s.sub_part IS NULL AND NOT EXISTS \
     (SELECT 1 FROM information_schema.statistics o WHERE o.table_schema = s.table_schema \
      AND o.table_name = s.table_name AND o.index_name = s.index_name AND o.seq_in_index = 2) \
     FROM information_schema.statistics s \
     WHERE s.table_schema = COALESCE(?, DATABASE()) AND s.table_name = ? AND s.column_name = ? \
     AND s.seq_in_index = 1";

/// Unique indexes that have only the beginning of a column, less than so many letters.
const PREFIXES: &str = "SELECT index_name, sub_part FROM information_schema.statistics \
     WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND column_name = ? \
     AND non_unique = 0 AND sub_part < ?";

/// Columns of unique indexes other than this one, expressions (which have no name) among them, and
/// other than a row's number.
const OTHER_KEYS: &str = "SELECT COUNT(*) FROM information_schema.statistics s \
     WHERE s.table_schema = COALESCE(?, DATABASE()) AND s.table_name = ? \
     AND NOT s.column_name <=> ? AND s.non_unique = 0 AND NOT EXISTS \
     (SELECT 1 FROM information_schema.columns c WHERE c.table_schema = s.table_schema \
      AND c.table_name = s.table_name AND c.column_name = s.column_name \
      AND c.extra LIKE '%auto_increment%')";

impl Database for Mysql {
    fn columns(&mut self, table: &str, until: Instant) -> Result<Vec<FoundColumn>, Trouble> {
        type Description =
            (String, String, Option<u64>, Option<u64>, Option<String>, bool, bool, bool);
        let place = schema_and_name(table);
        let rows: Vec<Description> = self.ask(until, |conn| conn.exec(COLUMNS, place))?;
        Ok(rows.into_iter().map(found).collect())
    }

    fn key(&mut self, table: &str, column: &str, until: Instant) -> Result<Key, Trouble> {
        let (schema, name) = schema_and_name(table);
        let asked = (schema, name, column);
        let narrow = (schema, name, column, ID_LETTERS);
        let prefix: Option<(String, u64)> =
            self.ask(until, |conn| conn.exec_first(PREFIXES, narrow))?;
        if let Some((index, letters)) = prefix {
            return Err(Trouble::Later(format!(
                "table {table}: its unique index {index} has only the first {letters} letters of \
                 {column}, and a request id has {ID_LETTERS}: records would be taken for one \
                 another"
            )));
        }
        let unique: Vec<bool> = self.ask(until, |conn| conn.exec(INDEXES, asked))?;
        let others: Option<u64> = self.ask(until, |conn| conn.exec_first(OTHER_KEYS, asked))?;
        Ok(match Key::of_indexes(unique) {
            // ON DUPLICATE KEY would take a row that another key refuses for one that is there.
            Key::Unique if others != Some(0) => Key::Indexed,
            key => key,
        })
    }

    fn make(&mut self, statements: &[String], until: Instant) -> Result<(), Trouble> {
        for statement in statements {
            self.ask(until, |conn| conn.query_drop(statement))?;
        }
        Ok(())
    }

    fn insert(
        &mut self,
        layout: &Layout,
        records: &[RecordRef<'_>],
        until: Instant,
    ) -> Result<(), Trouble> {
        self.connect(until)?;
        let rows: Vec<Row> = records.iter().map(|record| layout.row(record)).collect();
        let asked = layout.asked();
        let sizes = if asked.is_some() { &[1] } else { ROWS };
        let statements = runs(&rows, sizes).into_iter().map(|rows| {
            let values =
                rows.iter().flat_map(|row| row.iter().chain(asked.and_then(|id| row.get(id))));
            (insert(layout, rows.len()), values.map(value).collect())
        });
        self.transact(until, statements)
    }

    fn zone(&self) -> TimeZone {
        Mysql::zone(self)
    }

    /// The rest of a row is a few kilobytes.
    fn body_max(&self) -> usize {
        self.packet_max() / 2
    }
}

#[allow(clippy::type_complexity, reason = "the row of one query")]
fn found(
    (name, type_name, letters, bytes, set, required, filled, computed): (
        String,
        String,
        Option<u64>,
        Option<u64>,
        Option<String>,
        bool,
        bool,
        bool,
    ),
) -> FoundColumn {
    let type_name = type_name.to_ascii_lowercase();
    let size = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    // A TEXT is limited by its bytes, a VARCHAR by its letters.
    let width = match type_name.ends_with("char") {
        true => letters.map(|letters| Width::Letters(size(letters))),
        false => bytes.map(|bytes| Width::Bytes(size(bytes))),
    };
    let letters = match set.as_deref() {
        None | Some("utf8mb4" | "utf16" | "utf32" | "binary" | "gb18030") => Letters::All,
        Some("utf8" | "utf8mb3" | "ucs2") => Letters::ThreeBytes,
        Some(_) => Letters::Ascii,
    };
    FoundColumn {
        name,
        type_name,
        width,
        letters,
        required,
        filled,
        computed,
        ..FoundColumn::default()
    }
}

fn value(cell: &Option<Cow<'_, str>>) -> Value {
    cell.as_ref().map_or(Value::NULL, |text| Value::Bytes(text.as_bytes().to_vec()))
}
