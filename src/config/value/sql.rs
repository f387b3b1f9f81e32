//! Addresses of SQL databases: the Go MySQL form of the seeds, URLs, `key=value` of libpq, files.

use super::quoted;
use crate::base::secret::Secret;
use std::path::PathBuf;

/// A database product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SqlDriver {
    /// MySQL and MariaDB.
    Mysql,
    /// PostgreSQL.
    Postgres,
    /// A SQLite file.
    Sqlite,
}

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SqlAddress {
    /// A server.
    Server(SqlServer),
    /// A SQLite file, made when it is not there.
    File(PathBuf),
}

/// A database server and who asks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlServer {
    /// Where it listens.
    pub place: SqlPlace,
    /// User name; may be empty.
    pub user: String,
    /// Password; may be empty.
    pub password: Secret,
    /// Database name.
    pub database: String,
    /// Options after the `?`, as written.
    pub options: Vec<(String, String)>,
}

/// Where a database server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SqlPlace {
    /// On the network.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// On a Unix socket.
    Unix(PathBuf),
}

/// Reads the `dsn` of a driver. Messages never repeat it: it holds a password.
pub fn sql_address(driver: SqlDriver, dsn: &str) -> Result<SqlAddress, String> {
    match driver {
        SqlDriver::Sqlite => sqlite(dsn),
        SqlDriver::Mysql if dsn.starts_with("mysql://") => by_url(dsn, "mysql", 3306),
        SqlDriver::Mysql => go_mysql(dsn),
        SqlDriver::Postgres if dsn.contains("://") => by_url(dsn, "postgres", 5432),
        SqlDriver::Postgres => libpq(dsn),
    }
    .ok_or_else(|| match driver {
        SqlDriver::Sqlite => format!("{} must be the path of a file", quoted(dsn)),
        SqlDriver::Mysql => {
            "must look like user:password@tcp(host:3306)/database?option=value".into()
        }
        SqlDriver::Postgres => "must look like postgres://user:password@host:5432/database".into(),
    })
}

fn sqlite(dsn: &str) -> Option<SqlAddress> {
    let path = dsn.strip_prefix("file:").unwrap_or(dsn);
    let path = path.split('?').next().unwrap_or("");
    // An in-memory database would lose records at every start: not what anybody configures here.
    if path.is_empty() || path == ":memory:" || path.contains('\0') {
        return None;
    }
    Some(SqlAddress::File(path.into()))
}

/// `[user[:password]@][tcp[(address)]|unix(/path)]/database[?a=b&c=d]`, read from the right as
/// go-sql-driver does: a password may hold `@`, `:` and `/`.
fn go_mysql(dsn: &str) -> Option<SqlAddress> {
    let (before, database) = dsn.rsplit_once('/')?;
    let (database, options) = database_and_options(database)?;
    let (user, password, net) = match before.rsplit_once('@') {
        Some((login, net)) => {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            (user, password, net)
        }
        None => ("", "", before),
    };
    let (user, password) = (user.to_owned(), Secret::new(password));
    let (kind, address) = match net.split_once('(') {
        Some((kind, address)) => (kind, address.strip_suffix(')')?),
        None => (net, ""),
    };
    let place = match kind {
        "unix" if address.starts_with('/') => SqlPlace::Unix(address.into()),
        "" | "tcp" => host_and_port(address, "127.0.0.1", 3306)?,
        _ => return None,
    };
    Some(SqlAddress::Server(SqlServer { place, user, password, database, options }))
}

/// `scheme://user:password@host:port/database?a=b`, user and password percent-encoded.
fn by_url(dsn: &str, scheme: &str, default_port: u16) -> Option<SqlAddress> {
    let (given, rest) = dsn.split_once("://")?;
    if given != scheme && !(scheme == "postgres" && given == "postgresql") {
        return None;
    }
    let (before, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (database, options) = database_and_options(database)?;
    let (login, address) = before.rsplit_once('@').unwrap_or(("", before));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let place = host_and_port(address, "localhost", default_port)?;
    let (user, password) = (percent_decoded(user)?, Secret::new(percent_decoded(password)?));
    Some(SqlAddress::Server(SqlServer { place, user, password, database, options }))
}

/// `host=db port=5432 user=u password=p dbname=d sslmode=disable`, values perhaps in quotes.
fn libpq(dsn: &str) -> Option<SqlAddress> {
    let (mut host, mut port) = ("localhost".to_owned(), 5432);
    let (mut user, mut password, mut database) = (String::new(), Secret::default(), String::new());
    let mut options = Vec::new();
    let mut rest = dsn.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (key, tail) = rest.split_once('=')?;
        let (value, tail) = match tail.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'')?,
            None => tail.split_once(' ').unwrap_or((tail, "")),
        };
        rest = tail.trim_start();
        match key.trim() {
            "host" | "hostaddr" => host = value.to_owned(),
            "port" => port = value.parse().ok().filter(|p| *p > 0)?,
            "user" => user = value.to_owned(),
            "password" => password = Secret::new(value),
            "dbname" => database = value.to_owned(),
            key if !key.is_empty() && !key.contains(' ') => {
                options.push((key.to_owned(), value.to_owned()));
            }
            _ => return None,
        }
    }
    if !distinct(&options) {
        return None;
    }
    let place = if host.starts_with('/') {
        // libpq names the folder of the socket.
        SqlPlace::Unix(format!("{host}/.s.PGSQL.{port}").into())
    } else {
        SqlPlace::Tcp { host, port }
    };
    Some(SqlAddress::Server(SqlServer { place, user, password, database, options }))
}

fn database_and_options(text: &str) -> Option<(String, Vec<(String, String)>)> {
    let (database, query) = text.split_once('?').unwrap_or((text, ""));
    let mut options = Vec::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        options.push((key.to_owned(), value.to_owned()));
    }
    (!database.is_empty() && distinct(&options)).then(|| (database.to_owned(), options))
}

/// An option given twice would have two meanings.
fn distinct(options: &[(String, String)]) -> bool {
    let mut names: Vec<&str> = options.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).all(|pair| pair.first() != pair.last())
}

fn host_and_port(address: &str, host: &str, port: u16) -> Option<SqlPlace> {
    let (given, after) = match address.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?,
        None => address.split_at(address.find(':').unwrap_or(address.len())),
    };
    let port = match after.strip_prefix(':') {
        Some(p) => p.parse().ok().filter(|p| *p > 0)?,
        None if after.is_empty() => port,
        None => return None,
    };
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    let host = if given.is_empty() { host } else { given };
    host.bytes().all(fine).then(|| SqlPlace::Tcp { host: host.to_owned(), port })
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(driver: SqlDriver, dsn: &str) -> (String, u16, String, String, String, usize) {
        match sql_address(driver, dsn).unwrap() {
            SqlAddress::Server(s) => {
                let SqlPlace::Tcp { host, port } = s.place else { panic!("{:?}", s.place) };
                (host, port, s.user, s.password.reveal().to_owned(), s.database, s.options.len())
            }
            other => panic!("{other:?}"),
        }
    }

    fn want(
        host: &str,
        port: u16,
        user: &str,
        password: &str,
        database: &str,
        options: usize,
    ) -> (String, u16, String, String, String, usize) {
        (host.into(), port, user.into(), password.into(), database.into(), options)
    }

    #[test]
    fn go_mysql_forms() {
        let my = |dsn| tcp(SqlDriver::Mysql, dsn);
        assert_eq!(
            my("user:pass@tcp(localhost:3306)/llmproxy"),
            want("localhost", 3306, "user", "pass", "llmproxy", 0)
        );
        assert_eq!(
            my("u:p@ss/w:rd@tcp(db)/x?parseTime=true&loc=UTC"),
            want("db", 3306, "u", "p@ss/w:rd", "x", 2)
        );
        assert_eq!(my("u@tcp([::1]:33)/x"), want("::1", 33, "u", "", "x", 0));
        assert_eq!(my("/x"), want("127.0.0.1", 3306, "", "", "x", 0));
        assert_eq!(my("mysql://u:p%40s@h/x"), want("h", 3306, "u", "p@s", "x", 0));
        let socket = sql_address(SqlDriver::Mysql, "u:p@unix(/run/my.sock)/x").unwrap();
        let SqlAddress::Server(server) = socket else { panic!("{socket:?}") };
        assert_eq!(server.place, SqlPlace::Unix("/run/my.sock".into()));
    }

    #[test]
    fn postgres_and_sqlite_forms() {
        let pg = |dsn| tcp(SqlDriver::Postgres, dsn);
        assert_eq!(pg("postgres://u:p@h:55/x?sslmode=disable"), want("h", 55, "u", "p", "x", 1));
        assert_eq!(
            pg("host=h user=u password='p w' dbname=x sslmode=disable"),
            want("h", 5432, "u", "p w", "x", 1)
        );
        assert_eq!(
            sql_address(SqlDriver::Sqlite, "./data/a.db"),
            Ok(SqlAddress::File("./data/a.db".into()))
        );
        assert_eq!(
            sql_address(SqlDriver::Sqlite, "file:a.db?mode=rwc"),
            Ok(SqlAddress::File("a.db".into()))
        );
    }

    #[test]
    fn a_bad_dsn_is_refused_without_repeating_it() {
        for bad in [
            "",
            "u:hunter2@tcp(h",
            "u:hunter2@tcp(h:0)/x",
            "u:hunter2@tcp(h)/",
            "u:hunter2@pipe(h)/x",
            "u:hunter2@/x?a=1&a=2",
        ] {
            assert!(!sql_address(SqlDriver::Mysql, bad).unwrap_err().contains("hunter2"), "{bad}");
        }
        for bad in ["", "hunter2", "host", "mysql://h/x", "port=0"] {
            assert!(sql_address(SqlDriver::Postgres, bad).is_err(), "{bad}");
        }
        assert!(sql_address(SqlDriver::Sqlite, ":memory:").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_an_answer(dsn in "[a-z:@()/?=&'% \\[\\]]{0,24}") {
            for driver in [SqlDriver::Mysql, SqlDriver::Postgres, SqlDriver::Sqlite] {
                let _ = sql_address(driver, &dsn);
            }
        }

        #[test]
        fn a_go_dsn_keeps_its_password(password in "[ -~]{0,16}") {
            let got = tcp(SqlDriver::Mysql, &format!("u:{password}@tcp(h:1)/d"));
            proptest::prop_assert_eq!(got, want("h", 1, "u", &password, "d", 0));
        }
    }
}
