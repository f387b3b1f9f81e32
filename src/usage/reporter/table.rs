//! Destinations that are tables, as the rest of the room asks for them. In a build without SQL
//! `no_table` says instead that there are none.

use super::builtin::{Builtin, TABLE};
use super::probe::writable;
use super::sql::{self, SqlTable};
use super::{Reporter, Shape};
use crate::config::plan::{self, ReporterKind, SqlAddress};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Makes the writer of a table; connects to nothing yet.
///
/// # Errors
/// The address asks for something that is not done here; or there is no thread.
pub fn open(plan: &plan::Reporter) -> io::Result<Box<dyn Reporter>> {
    match &plan.kind {
        ReporterKind::Database(database) => Ok(Box::new(sql::open(&plan.name, database)?)),
        ReporterKind::Builtin(store) => Ok(Box::new(Builtin::open(&plan.name, store)?)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// How a table wants to be called.
pub fn shape() -> Shape {
    sql::shape()
}

/// Reads the files that the writer reads.
///
/// # Errors
/// One cannot be read, or holds nothing of use.
pub fn readable(plan: &plan::Reporter) -> Result<(), String> {
    match &plan.kind {
        ReporterKind::Database(database) => {
            sql::open(&plan.name, database).map(drop).map_err(|error| error.to_string())
        }
        _ => Ok(()),
    }
}

/// Tries to reach the table for at most so long. Blocks.
///
/// # Errors
/// What is in the way, in words for a person, without a secret.
pub fn probe(plan: &plan::Reporter, limit: Duration) -> Result<(), String> {
    match &plan.kind {
        ReporterKind::Builtin(store) => {
            in_file(&store.path, sql::open_file(&plan.name, &store.path, TABLE), limit)
        }
        ReporterKind::Database(database) => {
            let mut table = sql::open(&plan.name, database).map_err(|error| error.to_string())?;
            match &database.sql.address {
                SqlAddress::File(path) => in_file(path, table, limit),
                SqlAddress::Server(_) => table.probe(limit),
            }
        }
        _ => Ok(()),
    }
}

fn in_file(path: &Path, mut table: SqlTable, limit: Duration) -> Result<(), String> {
    writable(path)?;
    match path.exists() {
        true => table.probe(limit),
        // It is made with the first record.
        false => Ok(()),
    }
}
