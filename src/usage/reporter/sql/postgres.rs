//! PostgreSQL: what a table is like, and rows for it.

use super::columns::{FoundColumn, Key, Layout, Letters, Row, Unusable, Width};
use super::statement::{insert, quoted, runs};
use super::{refused, Database};
use crate::config::plan::SqlDriver;
use crate::store::sql::postgres::Postgres;
use crate::store::Trouble;
use crate::usage::record::borrowed::RecordRef;
use std::time::Instant;
use tokio_postgres::types::ToSql;

/// What of a table's columns matters. A `varchar(n)` has `n + 4` as its modifier, be it that of the
/// column or of the domain that it is of. The type `"char"` has one letter.
const COLUMNS: &str = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), \
     CASE WHEN COALESCE(b.typname, t.typname) IN ('varchar', 'bpchar') \
               AND GREATEST(a.atttypmod, t.typtypmod) > 4 \
          THEN GREATEST(a.atttypmod, t.typtypmod) - 4 \
          WHEN COALESCE(b.typname, t.typname) = 'char' THEN 1 END, \
     a.attnotnull, a.atthasdef OR a.attidentity <> '', \
     a.attgenerated <> '' OR a.attidentity = 'a' \
     FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
     LEFT JOIN pg_type b ON b.oid = t.typbasetype \
     WHERE a.attrelid = to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped \
     ORDER BY a.attnum";

/// The indexes that begin with a column and have all rows: is each a unique one of it alone?
const INDEXES: &str = "SELECT i.indisunique AND i.indnkeyatts = 1 AND i.indimmediate \
     FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
     WHERE i.indrelid = to_regclass($1::text) AND a.attname = $2::text AND i.indisvalid \
     AND i.indpred IS NULL";

/// Unique indexes of a part of the rows by a column alone, and of expressions that it stands in.
const UNUSABLE: &str = "SELECT c.relname::text, i.indkey[0] = a.attnum \
     FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
     JOIN pg_attribute a ON a.attrelid = i.indrelid \
     WHERE i.indrelid = to_regclass($1::text) AND a.attname = $2::text AND i.indisunique \
     AND (i.indkey[0] = a.attnum AND i.indnkeyatts = 1 AND i.indpred IS NOT NULL \
          OR i.indexprs IS NOT NULL AND a.attnum <> ALL (i.indkey) AND EXISTS \
          (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
           AND d.objid = i.indexrelid AND d.refclassid = 'pg_class'::regclass \
           AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum))";

impl Database for Postgres {
    fn columns(&mut self, table: &str, until: Instant) -> Result<Vec<FoundColumn>, Trouble> {
        let table = quoted(SqlDriver::Postgres, table);
        let rows = self
            .ask(until, |session| async move { session.client.query(COLUMNS, &[&table]).await })?;
        let found = rows.iter().map(|row| {
            Ok(FoundColumn {
                name: row.try_get(0)?,
                type_name: row.try_get(1)?,
                width: row
                    .try_get::<_, Option<i32>>(2)?
                    .and_then(|letters| usize::try_from(letters).ok())
                    .map(Width::Letters),
                letters: Letters::All,
                required: row.try_get(3)?,
                filled: row.try_get(4)?,
                computed: row.try_get(5)?,
                ..FoundColumn::default()
            })
        });
        let found: Result<_, tokio_postgres::Error> = found.collect();
        found.map_err(|error| self.trouble(&error))
    }

    fn key(&mut self, table: &str, column: &str, until: Instant) -> Result<Key, Trouble> {
        let quoted = quoted(SqlDriver::Postgres, table);
        let (indexes, unusable) = self.ask(until, |session| async move {
            let asked: [&(dyn ToSql + Sync); 2] = [&quoted, &column];
            let indexes = session.client.query(INDEXES, &asked).await?;
            Ok((indexes, session.client.query(UNUSABLE, &asked).await?))
        })?;
        let key = Key::of_indexes(indexes.iter().filter_map(|row| row.try_get(0).ok()));
        let unusable = unusable
            .iter()
            .map(|row| Ok(Unusable { index: row.try_get(0)?, is_partial: row.try_get(1)? }));
        let unusable: Result<Vec<Unusable>, tokio_postgres::Error> = unusable.collect();
        let unusable = unusable.map_err(|error| self.trouble(&error))?;
        refused(table, column, key, &unusable)
    }

    fn make(&mut self, statements: &[String], until: Instant) -> Result<(), Trouble> {
        // Statements of one message are one transaction.
        let all = statements.join(";\n");
        self.ask(until, |session| async move { session.client.batch_execute(&all).await })
    }

    fn insert(
        &mut self,
        layout: &Layout,
        records: &[RecordRef<'_>],
        until: Instant,
    ) -> Result<(), Trouble> {
        let rows: Vec<Row> = records.iter().map(|record| layout.row(record)).collect();
        // The text of the statement is the same for any number of rows.
        let runs = runs(&rows, &[]);
        self.ask(until, |session| async move {
            let statement = session.prepare(insert(layout, 0)).await?;
            let transaction = session.client.transaction().await?;
            for rows in runs {
                let columns: Vec<Vec<Option<&str>>> = (0..layout.columns.len())
                    .map(|index| {
                        rows.iter().map(|row| row.get(index).and_then(Option::as_deref)).collect()
                    })
                    .collect();
                let values: Vec<&(dyn ToSql + Sync)> =
                    columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
                transaction.execute(&statement, &values).await?;
            }
            transaction.commit().await
        })
    }
}
