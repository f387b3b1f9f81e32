//! PostgreSQL, which writes a row as JSON itself.

use super::{Fields, KeyTable};
use crate::store::sql::postgres::Postgres;
use crate::store::Trouble;
use std::time::Instant;

impl KeyTable for Postgres {
    fn is_connected(&self) -> bool {
        Postgres::is_connected(self)
    }

    fn rows(&mut self, statement: &str, key: &str, until: Instant) -> Result<Vec<Fields>, Trouble> {
        let statement = statement.to_owned();
        let rows = self.ask(until, |session| async move {
            let statement = session.prepare(statement).await?;
            session.client.query(&statement, &[&key]).await
        })?;
        let fields = |row: &tokio_postgres::Row| {
            let json: &str = row.try_get(0).map_err(|error| self.trouble(&error))?;
            serde_json::from_str(json).map_err(|_| Trouble::Data("a row is no JSON".to_owned()))
        };
        rows.iter().map(fields).collect()
    }
}
