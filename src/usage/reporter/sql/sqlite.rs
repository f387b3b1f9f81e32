//! SQLite: what a table is like, and rows for it.

use super::cells::Cell;
use super::columns::{FoundColumn, Key, Layout, Letters, Unusable};
use super::statement::{insert, schema_and_name, SQLITE_NOW};
use super::{refused, Database};
use crate::store::sql::sqlite::{trouble, Sqlite};
use crate::store::{left, Trouble};
use crate::usage::record::borrowed::RecordRef;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, ToSql};
use std::time::Instant;

/// SQLite's name of the schema that is meant where none is said.
const MAIN: &str = "main";

/// The indexes that begin with a column and have all rows: is each a unique one of it alone?
const INDEXES: &str = "SELECT l.\"unique\" AND \
     (SELECT count(*) FROM pragma_index_info(l.name, ?2)) = 1 \
     FROM pragma_index_list(?1, ?2) AS l, pragma_index_info(l.name, ?2) AS i \
     WHERE i.seqno = 0 AND lower(i.name) = lower(?3) AND NOT l.partial";

/// Unique indexes of a part of the rows by a column alone, and of expressions without a column of
/// this name, with the statement that each was made with: SQLite tells no more of an expression.
const UNUSABLE: &str = "SELECT name, is_own, sql FROM \
     (SELECT l.name, s.sql, \
             l.partial AND (SELECT group_concat(lower(i.name)) \
                            FROM pragma_index_info(l.name, ?2) AS i) = lower(?3) AS is_own, \
             EXISTS (SELECT 1 FROM pragma_index_info(l.name, ?2) AS i WHERE i.name IS NULL) \
             AND NOT EXISTS (SELECT 1 FROM pragma_index_info(l.name, ?2) AS i \
                             WHERE lower(i.name) = lower(?3)) AS has_expression \
      FROM pragma_index_list(?1, ?2) AS l \
      JOIN sqlite_schema AS s ON s.type = 'index' AND s.name = l.name \
      WHERE l.\"unique\" AND s.sql IS NOT NULL) \
     WHERE coalesce(is_own, 0) OR has_expression";

impl Database for Sqlite {
    fn columns(&mut self, table: &str, until: Instant) -> Result<Vec<FoundColumn>, Trouble> {
        let connection = self.connection(until)?;
        let (schema, bare) = schema_and_name(table);
        let text = "SELECT name, type, \"notnull\", dflt_value, pk, hidden \
                    FROM pragma_table_xinfo(?1, ?2)";
        let mut statement = connection.prepare(text).map_err(trouble)?;
        let found = statement.query_map([bare, schema.unwrap_or(MAIN)], |row| {
            let type_name = row.get::<_, String>(1)?.to_ascii_lowercase();
            // That one is the row's number, under another name.
            let automatic = row.get::<_, i64>(4)? > 0 && type_name == "integer";
            let default: Option<String> = row.get(3)?;
            Ok(FoundColumn {
                name: row.get(0)?,
                width: None,
                letters: Letters::All,
                required: row.get::<_, i64>(2)? != 0,
                filled: automatic || default.is_some(),
                filled_with_now: default.as_deref() == Some(SQLITE_NOW),
                computed: row.get::<_, i64>(5)? != 0,
                type_name,
            })
        });
        found.and_then(Iterator::collect).map_err(trouble)
    }

    fn key(&mut self, table: &str, column: &str, until: Instant) -> Result<Key, Trouble> {
        let connection = self.connection(until)?;
        let (schema, bare) = schema_and_name(table);
        let asked = [bare, schema.unwrap_or(MAIN), column];
        let mut statement = connection.prepare(INDEXES).map_err(trouble)?;
        let found = statement.query_map(asked, |row| row.get::<_, bool>(0));
        let unique: Vec<bool> = found.and_then(Iterator::collect).map_err(trouble)?;
        let mut statement = connection.prepare(UNUSABLE).map_err(trouble)?;
        let found = statement.query_map(asked, |row| {
            let is_partial = row.get::<_, Option<bool>>(1)?.unwrap_or_default();
            let is_of_it = is_partial || is_indexed(&row.get::<_, String>(2)?, column);
            Ok(is_of_it.then_some(Unusable { index: row.get(0)?, is_partial }))
        });
        let found: Vec<Option<Unusable>> = found.and_then(Iterator::collect).map_err(trouble)?;
        let unusable: Vec<Unusable> = found.into_iter().flatten().collect();
        refused(table, column, Key::of_indexes(unique), &unusable)
    }

    fn make(&mut self, statements: &[String], until: Instant) -> Result<(), Trouble> {
        let connection = self.connection(until)?;
        let all = statements.join(";\n");
        connection.execute_batch(&format!("BEGIN;\n{all};\nCOMMIT;")).map_err(trouble)
    }

    fn insert(
        &mut self,
        layout: &Layout,
        records: &[RecordRef<'_>],
        until: Instant,
    ) -> Result<(), Trouble> {
        let connection = self.connection(until)?;
        let transaction = connection.transaction().map_err(trouble)?;
        let statement = transaction.prepare_cached(&insert(layout, 1)).map_err(trouble)?;
        let mut rows = Rows { statement, bound: Vec::new() };
        for record in records {
            left(until)?;
            // There is no way to a server that many rows would share.
            rows.write(layout, record).map_err(trouble)?;
        }
        drop(rows);
        transaction.commit().map_err(trouble)
    }
}

/// Writes rows one after the other.
struct Rows<'a, 'r> {
    statement: CachedStatement<'a>,
    /// The values that its parameters have: those of the last row.
    bound: Vec<Cell<'r>>,
}

impl<'r> Rows<'_, 'r> {
    fn write(&mut self, layout: &Layout, record: &RecordRef<'r>) -> rusqlite::Result<usize> {
        let asked = layout.asked().and_then(|id| layout.columns.get(id));
        let columns = layout.columns.iter().chain(asked);
        // Parameters that nobody has set are NULL.
        self.bound.resize(columns.clone().count(), Cell::Null);
        for ((place, column), bound) in (1..).zip(columns).zip(&mut self.bound) {
            // To give SQLite a value, which it copies, takes longer than to see that it has it:
            // method, path, model and backend are often those of the last record.
            let cell = layout.cell(column, record);
            if *bound != cell {
                self.statement.raw_bind_parameter(place, &cell)?;
                *bound = cell;
            }
        }
        self.statement.raw_execute()
    }
}

impl ToSql for Cell<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Cell::Null => ValueRef::Null,
            Cell::Int(number) => ValueRef::Integer(*number),
            Cell::Text(text) => ValueRef::Text(text.as_bytes()),
            Cell::Short(text) => ValueRef::Text(text.as_str().as_bytes()),
        }))
    }
}

/// Whether a column stands among what an index is of: in the parentheses of the statement that it
/// was made with. Names of the index and of the table, the condition, texts and comments do not
/// count.
fn is_indexed(statement: &str, column: &str) -> bool {
    let (mut rest, mut depth) = (statement, 0_usize);
    while let Some(first) = rest.chars().next() {
        let (token, name) = token(rest, first);
        match first {
            '(' => depth += 1,
            ')' if depth <= 1 => return false,
            ')' => depth -= 1,
            _ if depth > 0 && name.eq_ignore_ascii_case(column) => return true,
            _ => {}
        }
        rest = rest.get(token.len()..).unwrap_or_default();
    }
    false
}

/// The token at the beginning of a statement, and the name that it is, or nothing. (A quoted name
/// that has its quotes inside is taken for two.)
fn token(text: &str, first: char) -> (&str, &str) {
    let until = |end: &str| {
        let inner = text.get(end.len()..).unwrap_or_default();
        let inner = inner.split(end).next().unwrap_or_default();
        (text.get(..inner.len() + 2 * end.len()).unwrap_or(text), inner)
    };
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || "_$".contains(c) || !c.is_ascii();
    match first {
        '"' => until("\""),
        '`' => until("`"),
        '[' => until("]"),
        '\'' => (until("'").0, ""),
        '/' if text.starts_with("/*") => (until("*/").0, ""),
        '-' if text.starts_with("--") => (text.split('\n').next().unwrap_or(text), ""),
        _ if is_of_word(first) => {
            let word = text.split(|c| !is_of_word(c)).next().unwrap_or(text);
            (word, word)
        }
        _ => (text.get(..first.len_utf8()).unwrap_or(text), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::is_indexed;

    /// Catches: a name that only has the column's name in it, or that is none of a column, taken
    /// for the column; and a column that is not seen in its quotes or in other letters.
    #[test]
    fn a_column_is_known_by_its_whole_name() {
        let is_in = |columns: &str, column| {
            let names = "CREATE UNIQUE INDEX \"i (id)\" ON request_id -- (id\n ";
            is_indexed(&format!("{names}{columns}"), column)
        };
        for columns in [
            "(lower(request_id))",
            "(model, substr(\"Request_ID\", 1, 8))",
            "(lower([request_id]))",
            "('('||`request_id`)",
            "(/* ( */ request_id||'')",
        ] {
            assert!(is_in(columns, "request_id"), "{columns}");
            assert!(!is_in(columns, "id"), "{columns}");
        }
        for columns in [
            "(api_key, coalesce(client_request_id, ''))",
            "(lower(model)) WHERE lower(request_id) > ''",
            "(lower(model)||'request_id') /* (request_id) */",
            "(lower(idx_request_id), request_id2, \"a request_id\")",
            "",
        ] {
            assert!(!is_in(columns, "request_id") && !is_in(columns, "id"), "{columns}");
        }
        assert!(is_in("(lower(id))", "id"));
    }
}
