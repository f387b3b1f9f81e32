//! Addresses of SQL databases: the Go MySQL form of the seeds, URLs, `key=value` of libpq, files.
//! Whatever reads one, `check` or a reporter, reads it here.

mod libpq;
pub mod options;

use super::quoted;
use crate::base::secret::Secret;
use std::fmt;
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
    Server(Box<SqlServer>),
    /// A SQLite file, made when it is not there.
    File(PathBuf),
}

/// A database server and who asks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlServer {
    /// Where it listens.
    pub place: SqlPlace,
    /// Where it may be if not there, in the order in which they are tried; PostgreSQL only.
    pub others: Vec<SqlPlace>,
    /// User name; may be empty.
    pub user: String,
    /// Password; may be empty.
    pub password: Secret,
    /// Database name.
    pub database: String,
    /// Options after the `?`, decoded.
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

impl fmt::Display for SqlPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SqlPlace::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            SqlPlace::Tcp { host, port } => write!(f, "{host}:{port}"),
            SqlPlace::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Reads the `dsn` of a driver. Messages never repeat it: it holds a password.
pub fn sql_address(driver: SqlDriver, dsn: &str) -> Result<SqlAddress, String> {
    match driver {
        SqlDriver::Sqlite => {
            sqlite(dsn).ok_or_else(|| format!("{} must be the path of a file", quoted(dsn)))
        }
        SqlDriver::Mysql => match dsn.strip_prefix("mysql://") {
            Some(rest) => mysql_url(rest),
            None => go_mysql(dsn),
        }
        .ok_or_else(|| {
            "must look like user:password@tcp(host:3306)/database?option=value".to_owned()
        }),
        SqlDriver::Postgres => libpq::postgres(dsn),
    }
}

/// The hosts of a list, `a:1,b:2`; one without a port has the given one.
pub fn sql_hosts(list: &str, port: u16) -> Result<Vec<SqlPlace>, String> {
    let place = |host: &str| host_and_port(host.trim(), "localhost", port);
    let places: Option<Vec<SqlPlace>> = list.split(',').map(place).collect();
    places.ok_or_else(|| "must be hosts, each perhaps with its port: a,b:5433".to_owned())
}

/// What is to be said of an address before anybody connects: options without effect, by name.
///
/// # Errors
/// It asks for something that is not done here; a line for a person, without a secret.
pub fn sql_remarks(driver: SqlDriver, address: &SqlAddress) -> Result<Vec<String>, String> {
    match (address, driver) {
        (SqlAddress::File(_), _) => Ok(Vec::new()),
        (SqlAddress::Server(server), SqlDriver::Mysql) => Ok(options::mysql(server)?.remarks),
        (SqlAddress::Server(server), _) => {
            let options = options::postgres(server)?;
            match options.roots.filter(|path| !path.is_file()) {
                Some(path) => Err(format!("sslrootcert: there is no file {}", path.display())),
                None => Ok(options.remarks),
            }
        }
    }
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
    let others = Vec::new();
    let server = SqlServer { place, others, user, password, database, options };
    Some(SqlAddress::Server(Box::new(server)))
}

/// `user:password@host:port/database?a=b`, each part percent-encoded.
fn mysql_url(rest: &str) -> Option<SqlAddress> {
    let (before, database) = rest.split_once('/')?;
    let (database, options) = database_and_options(database)?;
    let (login, address) = before.rsplit_once('@').unwrap_or(("", before));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let place = host_and_port(address, "localhost", 3306)?;
    let (user, password) = (percent_decoded(user)?, Secret::new(percent_decoded(password)?));
    let others = Vec::new();
    let server = SqlServer { place, others, user, password, database, options };
    Some(SqlAddress::Server(Box::new(server)))
}

fn database_and_options(text: &str) -> Option<(String, Vec<(String, String)>)> {
    let (database, query) = text.split_once('?').unwrap_or((text, ""));
    let mut options = Vec::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        options.push((percent_decoded(key)?, percent_decoded(&value.replace('+', " "))?));
    }
    let database = percent_decoded(database)?;
    (!database.is_empty() && distinct(&options)).then_some((database, options))
}

/// An option given twice would have two meanings.
fn distinct(options: &[(String, String)]) -> bool {
    let mut names: Vec<&str> = options.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).all(|pair| pair.first() != pair.last())
}

fn host_and_port(address: &str, host: &str, default: u16) -> Option<SqlPlace> {
    let (given, port) = by_authority(address)?;
    let port = match port {
        "" => default,
        port => port.parse().ok().filter(|port| *port > 0)?,
    };
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    let host = if given.is_empty() { host } else { given };
    host.bytes().all(fine).then(|| SqlPlace::Tcp { host: host.to_owned(), port })
}

/// The two parts of `host:port`, either of which may be missing; the host perhaps in brackets.
fn by_authority(address: &str) -> Option<(&str, &str)> {
    let (host, after) = match address.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?,
        None => address.split_at(address.find(':').unwrap_or(address.len())),
    };
    match after.strip_prefix(':') {
        Some(port) => Some((host, port)),
        None => after.is_empty().then_some((host, "")),
    }
}

pub(super) fn percent_decoded(text: &str) -> Option<String> {
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
        assert_eq!(pg("postgres://h:/my%20db?user=a%26b"), want("h", 5432, "a&b", "", "my db", 0));
        assert_eq!(pg("postgresql://u@/"), want("localhost", 5432, "u", "", "u", 0));
        assert_eq!(pg("postgres://?dbname=d&host=x&port=7"), want("x", 7, "", "", "d", 0));
        assert_eq!(
            pg("host = h  user\t=\tu\npassword = 'it\\'s \\\\ p@ss' dbname = a\\ b sslmode= disable "),
            want("h", 5432, "u", "it's \\ p@ss", "a b", 1)
        );
        let url_in_password = "host=h password=p://x user=u dbname=d";
        assert_eq!(pg(url_in_password), want("h", 5432, "u", "p://x", "d", 0));
        for dsn in [
            "postgres:///u?host=/sock&port=6",
            "postgres://%2Fsock:6/u",
            "host=/sock port=6 dbname=u",
        ] {
            let SqlAddress::Server(server) = sql_address(SqlDriver::Postgres, dsn).unwrap() else {
                panic!("{dsn}")
            };
            assert_eq!(server.place, SqlPlace::Unix("/sock/.s.PGSQL.6".into()), "{dsn}");
        }
        for dsn in ["postgres://a:1,b:2/d", "host=a,b port=1,2 dbname=d", "host=a,b port=9 user=d"]
        {
            let SqlAddress::Server(server) = sql_address(SqlDriver::Postgres, dsn).unwrap() else {
                panic!("{dsn}")
            };
            let SqlPlace::Tcp { host, port } = &server.others[0] else { panic!("{dsn}") };
            assert!(host == "b" && [2, 9].contains(port), "{dsn}");
        }
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
        for bad in [
            "",
            "hunter2",
            "host",
            "mysql://h/x",
            "port=0 user=hunter2",
            "user=u password='hunter2",
            "user=u password=hunter2\\",
            "host=a,b port=1,2,3 user=hunter2",
            "host=a,/sock user=hunter2",
            "host=a hostaddr=1.2.3.4 dbname=hunter2",
            "user=hunter2 host=a/b",
            "password=hunter2",
            "sslmode=disable sslmode=require user=hunter2",
            "postgres://hunter2@h/%zz",
            "postgres://hunter2@h:x/d",
        ] {
            let said = sql_address(SqlDriver::Postgres, bad).unwrap_err();
            assert!(!said.contains("hunter2"), "{bad}: {said}");
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
        fn a_libpq_dsn_keeps_its_password(password in "[ -~]{1,16}") {
            let quoted = password.replace('\\', "\\\\").replace('\'', "\\'");
            let got = tcp(SqlDriver::Postgres, &format!("password = '{quoted}' host=h user=u"));
            proptest::prop_assert_eq!(got, want("h", 5432, "u", &password, "u", 0));
        }

        #[test]
        fn a_go_dsn_keeps_its_password(password in "[ -~]{0,16}") {
            let got = tcp(SqlDriver::Mysql, &format!("u:{password}@tcp(h:1)/d"));
            proptest::prop_assert_eq!(got, want("h", 1, "u", &password, "d", 0));
        }
    }
}
