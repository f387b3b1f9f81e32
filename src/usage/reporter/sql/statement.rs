//! The SQL of the reporters: making the table and inserting rows. Pure: texts out.
//!
//! Names come from the configuration or from the database itself and are always quoted; values are
//! never part of a text.

use super::columns::{Key, Layout, Row};
use crate::base::limits::SQL_STATEMENT_BYTES_MAX;
use crate::config::plan::SqlDriver;

/// Rows of one statement. A text is prepared once for each of these, not for each count.
pub const ROWS: &[usize] = &[256, 32, 4, 1];

/// Type of a column in the three products.
struct Type {
    mysql: &'static str,
    postgres: &'static str,
    sqlite: &'static str,
}

const fn same(name: &'static str) -> Type {
    Type { mysql: name, postgres: name, sqlite: name }
}

const COUNT: Type = Type { mysql: "BIGINT", postgres: "BIGINT", sqlite: "INTEGER" };
const SMALL: Type = Type { mysql: "INT", postgres: "INTEGER", sqlite: "INTEGER" };
const TRUTH: Type = Type { mysql: "BOOLEAN", postgres: "BOOLEAN", sqlite: "INTEGER" };
const ID: Type = Type {
    mysql: "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY",
    postgres: "BIGSERIAL PRIMARY KEY",
    sqlite: "INTEGER PRIMARY KEY",
};
/// In SQLite a text that sorts as times do.
const TIME: Type = Type {
    mysql: "DATETIME(3) NOT NULL",
    postgres: "TIMESTAMPTZ NOT NULL",
    sqlite: "TEXT NOT NULL",
};
/// Not JSONB: that would change what was sent.
const BODY: Type = Type { mysql: "JSON", postgres: "JSON", sqlite: "TEXT" };
/// What SQLite makes of the default of our column with the time of writing.
pub const SQLITE_NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";
const CREATED: Type = Type {
    mysql: "DATETIME(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3)",
    postgres: "TIMESTAMPTZ NOT NULL DEFAULT now()",
    sqlite: "TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
};

/// The columns of a table that we make.
const TABLE: &[(&str, Type)] = &[
    ("id", ID),
    ("request_id", same("VARCHAR(64) NOT NULL UNIQUE")),
    ("client_request_id", same("VARCHAR(64)")),
    ("timestamp", TIME),
    ("api_key", same("VARCHAR(128)")),
    ("user_id", same("VARCHAR(64)")),
    ("key_name", same("VARCHAR(128)")),
    ("key_id", same("VARCHAR(16)")),
    ("key_metadata", BODY),
    ("model", same("VARCHAR(256)")),
    ("method", same("VARCHAR(32) NOT NULL")),
    ("path", same("VARCHAR(256) NOT NULL")),
    ("endpoint", same("VARCHAR(256) NOT NULL")),
    ("backend", same("VARCHAR(256)")),
    ("backend_url", same("VARCHAR(256)")),
    ("status_code", SMALL),
    ("status", same("VARCHAR(32) NOT NULL")),
    ("error", same("VARCHAR(128)")),
    ("engine_error", same("VARCHAR(64)")),
    ("is_stream", TRUTH),
    ("latency_ms", COUNT),
    ("ttft_ms", COUNT),
    ("first_byte_ms", COUNT),
    ("prompt_tokens", COUNT),
    ("completion_tokens", COUNT),
    ("total_tokens", COUNT),
    ("cached_tokens", COUNT),
    ("reasoning_tokens", COUNT),
    ("audio_seconds", COUNT),
    ("quota_tokens", COUNT),
    ("usage_source", same("VARCHAR(16) NOT NULL")),
    ("usage_missing_reason", same("VARCHAR(32)")),
    ("usage_warnings", same("VARCHAR(64)")),
    ("retry_count", SMALL),
    ("fallback_used", TRUTH),
    ("upstream_id", same("VARCHAR(128)")),
    ("request_bytes", COUNT),
    ("response_bytes", COUNT),
    ("events", COUNT),
    ("request_body", BODY),
    ("created_at", CREATED),
];

/// The columns by which people look for rows.
pub const INDEXED: &[&str] = &["api_key", "timestamp", "user_id", "model"];

/// The name of a table (perhaps with its schema) or of a column, in quotes.
pub fn quoted(driver: SqlDriver, name: &str) -> String {
    name.split('.').map(|part| column(driver, part)).collect::<Vec<_>>().join(".")
}

/// The two parts of `schema.table`.
pub fn schema_and_name(table: &str) -> (Option<&str>, &str) {
    match table.split_once('.') {
        Some((schema, name)) => (Some(schema), name),
        None => (None, table),
    }
}

/// The name of a column: a point in it is a letter like any other.
fn column(driver: SqlDriver, name: &str) -> String {
    let mark = if driver == SqlDriver::Mysql { '`' } else { '"' };
    let doubled: String = [mark, mark].iter().collect();
    format!("{mark}{}{mark}", name.replace(mark, &doubled))
}

/// The statements that make a table with indexes of these columns.
pub fn create(driver: SqlDriver, table: &str, indexed: &[&str]) -> Vec<String> {
    let mut parts: Vec<String> = TABLE
        .iter()
        .map(|(name, of)| {
            let of = match driver {
                SqlDriver::Mysql => of.mysql,
                SqlDriver::Postgres => of.postgres,
                SqlDriver::Sqlite => of.sqlite,
            };
            format!("{} {of}", column(driver, name))
        })
        .collect();
    let name = quoted(driver, table);
    if driver == SqlDriver::Mysql {
        parts.extend(indexed.iter().map(|column| format!("INDEX `ix_{column}` (`{column}`)")));
        // Keys and models that differ in case are different, and hold any letter.
        let of = "ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin";
        return vec![format!("CREATE TABLE IF NOT EXISTS {name} ({}) {of}", parts.join(", "))];
    }
    let mut all = vec![format!("CREATE TABLE IF NOT EXISTS {name} ({})", parts.join(", "))];
    let (schema, bare) = schema_and_name(table);
    all.extend(indexed.iter().map(|of| {
        // The column first: PostgreSQL cuts long names at their end.
        let index = column(driver, &format!("ix_{of}_{bare}"));
        match (driver, schema) {
            // SQLite wants the schema at the index, PostgreSQL at the table.
            (SqlDriver::Sqlite, Some(schema)) => format!(
                "CREATE INDEX IF NOT EXISTS {}.{index} ON {} (\"{of}\")",
                column(driver, schema),
                column(driver, bare)
            ),
            _ => format!("CREATE INDEX IF NOT EXISTS {index} ON {name} (\"{of}\")"),
        }
    }));
    all
}

/// The statement that inserts so many rows, each value a parameter, row by row. For PostgreSQL the
/// count does not matter: each parameter is the array of a whole column.
pub fn insert(layout: &Layout, rows: usize) -> String {
    let driver = layout.driver;
    let table = quoted(driver, &layout.table);
    let names: Vec<String> = layout.columns.iter().map(|c| column(driver, &c.name)).collect();
    let id = layout.id();
    let id_name = id.and_then(|index| names.get(index)).map(String::as_str).unwrap_or_default();
    let head = format!("INSERT INTO {table} ({})", names.join(", "));
    if driver == SqlDriver::Postgres {
        return postgres(layout, &head, &table, id, id_name);
    }
    let marks = vec!["?"; names.len()].join(", ");
    if layout.key == Key::Indexed {
        let from = if driver == SqlDriver::Mysql { " FROM DUAL" } else { "" };
        let absent = format!("NOT EXISTS (SELECT 1 FROM {table} WHERE {id_name} = ?)");
        return format!("{head} SELECT {marks}{from} WHERE {absent}");
    }
    let values = vec![format!("({marks})"); rows.max(1)].join(", ");
    let duplicates = match (layout.key, driver) {
        (Key::Unique, SqlDriver::Mysql) => {
            format!(" ON DUPLICATE KEY UPDATE {id_name} = {id_name}")
        }
        (Key::Unique, _) => format!(" ON CONFLICT ({id_name}) DO NOTHING"),
        _ => String::new(),
    };
    format!("{head} VALUES {values}{duplicates}")
}

fn postgres(layout: &Layout, head: &str, table: &str, id: Option<usize>, id_name: &str) -> String {
    let numbers = 1..=layout.columns.len();
    let typed = |(n, c): (usize, &super::columns::Column)| format!("r.c{n}::{}", c.type_name);
    let values: Vec<String> = numbers.clone().zip(&layout.columns).map(typed).collect();
    let arrays: Vec<String> = numbers.clone().map(|n| format!("${n}::text[]")).collect();
    let fields: Vec<String> = numbers.map(|n| format!("c{n}")).collect();
    let rows = format!(
        "SELECT {} FROM unnest({}) AS r({})",
        values.join(", "),
        arrays.join(", "),
        fields.join(", ")
    );
    let duplicates = match (layout.key, id) {
        (Key::Unique, _) => format!(" ON CONFLICT ({id_name}) DO NOTHING"),
        (Key::Indexed, Some(id)) => format!(
            " WHERE NOT EXISTS (SELECT 1 FROM {table} AS t WHERE t.{id_name} = r.c{})",
            id + 1
        ),
        _ => String::new(),
    };
    format!("{head} {rows}{duplicates}")
}

/// Splits rows into statements of these sizes (any size where there are none), each of a bounded
/// number of bytes unless one row has more.
pub fn runs<'a, 'b>(rows: &'a [Row<'b>], sizes: &[usize]) -> Vec<&'a [Row<'b>]> {
    let bytes = |row: &Row| row.iter().flatten().map(|text| text.len()).sum::<usize>();
    let fits = |rows: &[Row]| rows.iter().map(bytes).sum::<usize>() <= SQL_STATEMENT_BYTES_MAX;
    let mut runs = Vec::new();
    let mut rest = rows;
    while !rest.is_empty() {
        let mut size = rest.len();
        if let Some(found) = sizes
            .iter()
            .find(|size| rest.get(..**size).is_some_and(|some| **size == 1 || fits(some)))
        {
            size = *found;
        } else {
            while size > 1 && !rest.get(..size).is_some_and(fits) {
                size /= 2;
            }
        }
        let (run, behind) = rest.split_at(size.min(rest.len()));
        runs.push(run);
        rest = behind;
    }
    runs
}

#[cfg(test)]
mod tests;
