//! Connections to stores outside the gateway. The file may name them under `storage` and refer to
//! the names; in the plan every user of a store has the connection itself.

use super::print;
use crate::base::secret::Secret;
use crate::config::value::{print_duration, SqlAddress, SqlDriver, SqlPlace};
use serde::ser::{SerializeMap, Serializer};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// A SQL database.
#[derive(Debug, Clone, PartialEq)]
pub struct Sql {
    /// The product.
    pub driver: SqlDriver,
    /// Where and who.
    pub address: SqlAddress,
    /// How connections are kept.
    pub pool: SqlPool,
}

/// How connections to a database are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct SqlPool {
    /// Most connections at one time.
    pub max_open_conns: u32,
    /// Most connections kept while unused.
    pub max_idle_conns: u32,
    /// A connection is replaced after so long.
    pub conn_max_lifetime: Duration,
    /// A connection is closed after so long without use.
    pub conn_max_idle_time: Duration,
}

/// Printed without the password, as the parts of `storage.databases[]`.
impl Serialize for Sql {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let driver = match self.driver {
            SqlDriver::Mysql => "mysql",
            SqlDriver::Postgres => "postgres",
            SqlDriver::Sqlite => "sqlite",
        };
        map.serialize_entry("driver", driver)?;
        match &self.address {
            SqlAddress::File(path) => map.serialize_entry("path", path)?,
            SqlAddress::Server(server) => {
                match &server.place {
                    // As a list, each with its port.
                    place if !server.others.is_empty() => {
                        let places = std::iter::once(place).chain(&server.others);
                        let places: Vec<String> = places.map(SqlPlace::to_string).collect();
                        map.serialize_entry("host", &places.join(","))?;
                    }
                    SqlPlace::Tcp { host, port } => {
                        map.serialize_entry("host", host)?;
                        map.serialize_entry("port", port)?;
                    }
                    SqlPlace::Unix(socket) => map.serialize_entry("socket", socket)?,
                }
                map.serialize_entry("user", &server.user)?;
                map.serialize_entry("password", &print::mask(&server.password))?;
                map.serialize_entry("database", &server.database)?;
                map.serialize_entry("options", &print::Pairs(&server.options))?;
            }
        }
        map.serialize_entry("max_open_conns", &self.pool.max_open_conns)?;
        map.serialize_entry("max_idle_conns", &self.pool.max_idle_conns)?;
        let lifetime = print_duration(self.pool.conn_max_lifetime);
        map.serialize_entry("conn_max_lifetime", &lifetime)?;
        let idle = print_duration(self.pool.conn_max_idle_time);
        map.serialize_entry("conn_max_idle_time", &idle)?;
        map.end()
    }
}

/// A Redis server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Redis {
    /// `host:port`, or the path of a Unix socket.
    pub addr: String,
    /// User of the access control list; empty = the default one.
    pub username: String,
    /// Password; may be empty.
    #[serde(serialize_with = "print::secret")]
    pub password: Secret,
    /// Number of the database.
    pub db: u32,
    /// The connection is encrypted, and the server's certificate checked.
    pub tls: bool,
    /// Authorities that it may be of; `None` = those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// How connections are kept.
    #[serde(flatten)]
    pub pool: RedisPool,
}

/// How connections to Redis are kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RedisPool {
    /// Most connections at one time.
    pub pool_size: u32,
    /// Connections kept open without use.
    pub min_idle_conns: u32,
    /// To an established connection.
    #[serde(serialize_with = "print::duration")]
    pub dial_timeout: Duration,
    /// Of one answer.
    #[serde(serialize_with = "print::duration")]
    pub read_timeout: Duration,
    /// Of one command on its way out.
    #[serde(serialize_with = "print::duration")]
    pub write_timeout: Duration,
}
