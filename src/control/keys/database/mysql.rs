//! MySQL and MariaDB. Times come in UTC, which the connection has asked for.

use super::{text, Fields, KeyTable};
use crate::store::sql::mysql::Mysql;
use crate::store::Trouble;
use mysql::consts::ColumnType;
use mysql::prelude::Queryable;
use mysql::{Row, Value as Cell};
use serde_json::Value;
use std::time::Instant;

impl KeyTable for Mysql {
    fn is_connected(&self) -> bool {
        Mysql::is_connected(self)
    }

    fn rows(&mut self, statement: &str, key: &str, until: Instant) -> Result<Vec<Fields>, Trouble> {
        let rows: Vec<Row> = self.ask(until, |conn| {
            // The connection keeps what it has prepared, by the text.
            let statement = conn.prep(statement)?;
            conn.exec(statement, (key,))
        })?;
        Ok(rows.iter().map(fields).collect())
    }
}

fn fields(row: &Row) -> Fields {
    let column = |(place, column): (usize, &mysql::Column)| {
        let is_date = column.column_type() == ColumnType::MYSQL_TYPE_DATE;
        let cell = row.as_ref(place).unwrap_or(&Cell::NULL);
        (column.name_str().into_owned(), value(cell, is_date))
    };
    row.columns_ref().iter().enumerate().map(column).collect()
}

fn value(cell: &Cell, is_date: bool) -> Value {
    match cell {
        Cell::NULL => Value::Null,
        Cell::Bytes(bytes) => text(bytes),
        Cell::Int(number) => (*number).into(),
        Cell::UInt(number) => (*number).into(),
        Cell::Float(number) => f64::from(*number).into(),
        Cell::Double(number) => (*number).into(),
        Cell::Date(year, month, day, ..) if is_date => {
            format!("{year:04}-{month:02}-{day:02}").into()
        }
        Cell::Date(year, month, day, hour, minute, second, micros) => {
            format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}")
                .into()
        }
        // A time of day, which no field of a key is.
        Cell::Time(..) => Value::String("a time of day".to_owned()),
    }
}
