//! `storage`: named connections. Whoever uses a store either names one of these or says itself
//! where it is; the plan holds the connection in both cases.

use crate::base::secret::Secret;
use crate::config::desk::Desk;
use crate::config::plan::{Redis, RedisPool, Sql, SqlPool};
use crate::config::raw::{Node, ValueKind};
use crate::config::section::Section;
use crate::config::value::{self, RedisAddress, SqlAddress, SqlDriver, SqlPlace, SqlServer};
use std::cell::{Cell, OnceCell};
use std::path::PathBuf;
use std::time::Duration;

/// Where Redis is when nobody says so.
pub const REDIS_ADDR: &str = "localhost:6379";

/// The named connections of a file.
#[derive(Default)]
pub struct Stores<'a> {
    databases: Vec<Named<'a, Sql>>,
    /// `None` is the memory of this process.
    caches: Vec<Named<'a, Option<Redis>>>,
    /// The Redis server of `auth`, which stands in for those that are not given elsewhere.
    shared: OnceCell<Shared<'a>>,
}

struct Shared<'a> {
    redis: Redis,
    /// Where `auth.redis` stands, if it does.
    node: Option<&'a Node>,
    used: Cell<bool>,
}

struct Named<'a, T> {
    name: String,
    node: &'a Node,
    value: T,
    used: Cell<UsedBy>,
}

/// By whom a store is used; of several, what the most demanding one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum UsedBy {
    Nobody,
    /// Each of them has one connection, whatever the store says of its pool.
    Reporters,
    Pools,
}

impl<T: Clone> Named<'_, T> {
    fn take(&self, used: UsedBy) -> T {
        self.used.set(self.used.get().max(used));
        self.value.clone()
    }
}

/// Reads the section.
pub fn stores<'a>(root: &mut Section<'a>) -> Stores<'a> {
    let mut stores = Stores::default();
    let Some(mut storage) = root.section("storage") else { return stores };
    for item in storage.sections("databases") {
        let node = item.node();
        let Some((name, Some(value))) = item.switched(true, |s| (s.required("name"), own_sql(s)))
        else {
            continue;
        };
        stores.databases.push(Named { name, node, value, used: Cell::new(UsedBy::Nobody) });
    }
    for item in storage.sections("caches") {
        let node = item.node();
        let Some((name, value)) = item.switched(true, |s| (s.required("name"), cache(s))) else {
            continue;
        };
        stores.caches.push(Named { name, node, value, used: Cell::new(UsedBy::Nobody) });
    }
    let names = stores.databases.iter().map(|d| (&d.name, d.node));
    let names: Vec<_> = names.chain(stores.caches.iter().map(|c| (&c.name, c.node))).collect();
    for (i, (name, node)) in names.iter().enumerate() {
        if names.iter().take(i).any(|(earlier, _)| earlier == name) {
            storage
                .desk
                .error(node, format!("{} is also the name of another store", value::quoted(name)));
        }
    }
    stores
}

impl<'a> Stores<'a> {
    /// Makes a Redis server the one that stands in; the first that is shared stays.
    pub fn share(&self, redis: Redis, node: Option<&'a Node>) {
        self.shared.get_or_init(|| Shared { redis, node, used: Cell::new(false) });
    }

    /// The Redis server that stands in.
    pub fn shared(&self) -> Option<Redis> {
        let shared = self.shared.get()?;
        shared.used.set(true);
        Some(shared.redis.clone())
    }

    /// The cache of a name: `Some(None)` is memory, `None` is no such cache.
    pub fn cache(&self, name: &str) -> Option<Option<Redis>> {
        self.caches.iter().find(|c| c.name == name).map(|cache| cache.take(UsedBy::Pools))
    }

    /// Says which stores nobody names, and what they say that nobody heeds.
    pub fn report_unused(&self, desk: &Desk) {
        for one in self.databases.iter().filter(|d| d.used.get() == UsedBy::Reporters) {
            without_pool(desk, one.node, &one.value.pool.beyond_one());
        }
        for one in self.caches.iter().filter(|c| c.used.get() == UsedBy::Reporters) {
            let keys = one.value.as_ref().map(|redis| redis.pool.beyond_one());
            without_pool(desk, one.node, &keys.unwrap_or_default());
        }
        let databases = self.databases.iter().map(|d| (d.node, d.used.get()));
        let shared = self.shared.get().and_then(|s| Some((s.node?, &s.used)));
        if let Some((node, _)) = shared.filter(|(_, used)| !used.get()) {
            desk.warn(node, "not used: no provider and no limiter needs a Redis server");
        }
        for (node, used) in databases.chain(self.caches.iter().map(|c| (c.node, c.used.get()))) {
            if used == UsedBy::Nobody {
                desk.warn(node, "not used: no section names this store");
            }
        }
    }
}

/// The database of a user of one: `storage: name`, or its own address. `None` with an error when
/// the name is nobody's.
pub fn sql(s: &mut Section, stores: &Stores) -> Option<Sql> {
    sql_used(s, stores, UsedBy::Pools)
}

/// The same for a reporter, which has one connection, as its plan then says.
pub fn sql_of_reporter(s: &mut Section, stores: &Stores) -> Option<Sql> {
    let mut sql = sql_used(s, stores, UsedBy::Reporters)?;
    without_pool(s.desk, s.node(), &sql.pool.beyond_one());
    sql.pool.max_open_conns = 1;
    Some(sql)
}

fn sql_used(s: &mut Section, stores: &Stores, used: UsedBy) -> Option<Sql> {
    let Some(name) = s.text("storage").filter(|name| !name.is_empty()) else { return own_sql(s) };
    let found = stores.databases.iter().find(|d| d.name == name);
    if found.is_none() && !s.desk.is_off() {
        let name = value::quoted(&name);
        s.error("storage", format!("{name} is not in storage.databases, or is switched off there"));
    }
    found.map(|database| database.take(used))
}

/// Says of keys that ask for more than one connection that a reporter has one.
fn without_pool(desk: &Desk, node: &Node, keys: &[&str]) {
    let ValueKind::Map(entries) = &node.kind else { return };
    for entry in entries.iter().filter(|entry| keys.contains(&entry.key.as_str())) {
        let key = &entry.key;
        desk.warn(&entry.value, format!("`{key}` has no effect: a reporter has one connection"));
    }
}

impl SqlPool {
    /// The keys that ask for more than one connection.
    fn beyond_one(&self) -> Vec<&'static str> {
        let keys = [("max_open_conns", self.max_open_conns)];
        keys.into_iter().filter(|(_, count)| *count > 1).map(|(key, _)| key).collect()
    }
}

impl RedisPool {
    /// The keys that ask for more than one connection.
    fn beyond_one(&self) -> Vec<&'static str> {
        let keys = [("pool_size", self.pool_size), ("min_idle_conns", self.min_idle_conns)];
        keys.into_iter().filter(|(_, count)| *count > 1).map(|(key, _)| key).collect()
    }
}

/// `driver` with a `dsn`, or with the parts of one.
fn own_sql(s: &mut Section) -> Option<Sql> {
    let drivers = [
        ("mysql", SqlDriver::Mysql),
        ("postgres", SqlDriver::Postgres),
        ("sqlite", SqlDriver::Sqlite),
        ("postgresql", SqlDriver::Postgres),
        ("sqlite3", SqlDriver::Sqlite),
    ];
    if !s.given("driver") {
        s.error("driver", "is required: mysql, postgres or sqlite");
    }
    let driver = s.choice("driver", &drivers, SqlDriver::Sqlite);
    let dsn = s.parsed("dsn", |text| match text {
        "" => Ok(None),
        _ => value::sql_address(driver, text).map(Some),
    });
    let parts = parts(s, driver);
    let pool = SqlPool {
        max_open_conns: s.int("max_open_conns", 1..=1000, 4),
        max_idle_conns: s.int("max_idle_conns", 0..=1000, 2),
        conn_max_lifetime: s.duration("conn_max_lifetime", Duration::from_secs(3600)),
        conn_max_idle_time: s.duration("conn_max_idle_time", Duration::from_secs(600)),
    };
    let address = dsn.flatten().or(parts);
    if address.is_none() && !s.desk.has_errors() {
        s.error("dsn", "is required (or `host` and `database`)");
    }
    let address = address?;
    // What a reporter will do with it, so that none passes here and fails there.
    let key = if s.given("dsn") { "dsn" } else { "options" };
    match value::sql_remarks(driver, &address) {
        Ok(remarks) => remarks.iter().for_each(|remark| s.warn(key, remark.as_str())),
        Err(message) => s.error(key, message),
    }
    Some(Sql { driver, address, pool })
}

/// The address in parts; `None` when there is nothing to connect to.
fn parts(s: &mut Section, driver: SqlDriver) -> Option<SqlAddress> {
    useless_parts(s, driver);
    let port = match driver {
        SqlDriver::Postgres => 5432,
        _ => 3306,
    };
    let path = s.text("path").filter(|p| !p.is_empty());
    let host = s.text("host").filter(|h| !h.is_empty());
    let socket = s.text("socket").filter(|p| !p.is_empty());
    let port = s.int("port", 1..=65535u16, port);
    let mut others = Vec::new();
    let place = match (socket, host) {
        (Some(socket), _) => Some(SqlPlace::Unix(socket.into())),
        (None, Some(list)) if driver == SqlDriver::Postgres && list.contains(',') => {
            others = s.parsed("host", |list| value::sql_hosts(list, port)).unwrap_or_default();
            (!others.is_empty()).then(|| others.remove(0))
        }
        (None, Some(host)) => Some(SqlPlace::Tcp { host, port }),
        (None, None) => None,
    };
    let user = s.text("user").unwrap_or_default();
    let password = Secret::new(s.text("password").unwrap_or_default());
    let database = s.text("database").unwrap_or_default();
    let options = options(s);
    if driver == SqlDriver::Sqlite {
        let path = path.unwrap_or_else(|| "./data/llmproxy.db".into());
        return Some(SqlAddress::File(path.into()));
    }
    let server = |place| Box::new(SqlServer { place, others, user, password, database, options });
    place.map(server).map(SqlAddress::Server)
}

/// Parts that the driver or a `dsn` leaves without meaning are told, not dropped.
fn useless_parts(s: &mut Section, driver: SqlDriver) {
    const OF_SERVERS: [&str; 7] =
        ["host", "port", "socket", "user", "password", "database", "options"];
    let sqlite = driver == SqlDriver::Sqlite;
    for part in OF_SERVERS.iter().chain(["path"].iter()).filter(|part| s.given(part)) {
        if s.given("dsn") {
            s.error(part, "and `dsn` are both given: give the dsn, or its parts");
        } else if sqlite != (*part == "path") {
            s.warn(part, "has no meaning for this driver");
        }
    }
}

fn options(s: &mut Section) -> Vec<(String, String)> {
    let named = s.named("options");
    let value = |node: &Node| s.desk.parse(node, |text| Ok(text.to_owned()));
    named.into_iter().filter_map(|(name, node)| Some((name, value(node)?))).collect()
}

fn cache(s: &mut Section) -> Option<Redis> {
    let memory = s.choice("driver", &[("redis", false), ("memory", true)], false);
    s.unsupported(&[
        ("max_size", "a cache here only names a Redis server or this process's memory"),
        ("ttl", "a cache here only names a Redis server or this process's memory"),
    ]);
    let redis = redis(s);
    (!memory).then_some(redis)
}

/// The Redis server of a reporter: `storage: name`, or its own keys. It has one connection, as its
/// plan then says.
pub fn redis_of_reporter(s: &mut Section, stores: &Stores) -> Redis {
    let named = s.text("storage").filter(|name| !name.is_empty());
    let own = redis(s);
    without_pool(s.desk, s.node(), &own.pool.beyond_one());
    let found = named.as_ref().and_then(|name| stores.caches.iter().find(|c| c.name == *name));
    let found = found.and_then(|cache| cache.take(UsedBy::Reporters));
    if let (Some(name), None) = (&named, &found) {
        let name = value::quoted(name);
        s.error("storage", format!("{name} is no Redis server of storage.caches"));
    }
    let mut redis = found.unwrap_or(own);
    redis.pool.pool_size = 1;
    redis.pool.min_idle_conns = redis.pool.min_idle_conns.min(1);
    redis
}

/// A Redis server from its own keys.
pub fn redis(s: &mut Section) -> Redis {
    let Redis { addr, pool, .. } = default_redis();
    let said = s.parsed("addr", value::redis_address);
    let said = said.unwrap_or(RedisAddress { addr, ..RedisAddress::default() });
    let twice = [
        ("username", said.username.is_some()),
        ("password", said.password.is_some()),
        ("db", said.db.is_some()),
        ("tls", said.tls.is_some()),
    ];
    for (key, _) in twice.iter().filter(|(key, in_address)| *in_address && s.given(key)) {
        s.error(key, "is given by the URL in `addr` too: give it once");
    }
    let username = s.text("username").unwrap_or_default();
    let password = Secret::new(s.text("password").unwrap_or_default());
    let (db, tls) = (s.int("db", 0..=65_535, 0), s.boolean("tls", false));
    let ca_file = s.protecting("ca_file").map(PathBuf::from);
    let redis = Redis {
        addr: said.addr,
        username: said.username.unwrap_or(username),
        password: said.password.unwrap_or(password),
        db: said.db.unwrap_or(db),
        tls: said.tls.unwrap_or(tls),
        ca_file,
        pool: RedisPool {
            pool_size: s.int("pool_size", 1..=1000, pool.pool_size),
            min_idle_conns: s.int("min_idle_conns", 0..=1000, pool.min_idle_conns),
            dial_timeout: s.duration("dial_timeout", pool.dial_timeout),
            read_timeout: s.duration("read_timeout", pool.read_timeout),
            write_timeout: s.duration("write_timeout", pool.write_timeout),
        },
    };
    if redis.ca_file.is_some() && !redis.tls {
        s.error("ca_file", "needs TLS: `tls: true`, or an `addr` that begins with rediss://");
    }
    if redis.tls && redis.addr.starts_with('/') {
        s.error("tls", "is for the network: `addr` is a Unix socket");
    }
    if !redis.username.is_empty() && redis.password.is_empty() {
        s.error("username", "needs a password");
    }
    redis
}

/// A Redis server at its default address.
pub fn default_redis() -> Redis {
    Redis {
        addr: REDIS_ADDR.into(),
        username: String::new(),
        password: Secret::default(),
        db: 0,
        tls: false,
        ca_file: None,
        pool: RedisPool {
            pool_size: 4,
            min_idle_conns: 0,
            dial_timeout: Duration::from_secs(2),
            read_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(1),
        },
    }
}

/// The name of a table or column: it goes into SQL text, where only letters are harmless.
pub fn identifier(s: &mut Section, key: &str, default: &str) -> String {
    s.parsed(key, identifier_text).unwrap_or_else(|| default.to_owned())
}

/// Checks a name that goes into SQL text; `schema.table` is one too.
pub fn identifier_text(text: &str) -> Result<String, String> {
    let word = |part: &str| {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        part.len() <= 64
            && part.bytes().all(fine)
            && part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    };
    if text.split('.').count() <= 2 && text.split('.').all(word) {
        return Ok(text.to_owned());
    }
    Err(format!("{} must be a name of letters, digits and `_`", value::quoted(text)))
}
