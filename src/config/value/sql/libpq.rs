//! Addresses of PostgreSQL, in both forms of libpq: `key = value` and URLs. Each becomes a list of
//! keys and values, and what they mean is decided in one place.

use super::{by_authority, distinct, percent_decoded, SqlAddress, SqlPlace, SqlServer};
use crate::base::secret::Secret;

const PORT: u16 = 5432;

/// Reads a `dsn`.
///
/// # Errors
/// A line for a person. It repeats nothing of the text, which holds a password.
pub fn postgres(dsn: &str) -> Result<SqlAddress, String> {
    let pairs = match dsn.split_once("://") {
        Some(("postgres" | "postgresql", rest)) => by_url(rest),
        Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => None,
        _ => by_keys(dsn),
    };
    server(pairs.ok_or(
        "must look like postgres://user:password@host:5432/database?option=value, or like \
         host=h port=5432 user=u password='p' dbname=d",
    )?)
}

type Pairs = Vec<(String, String)>;

/// `key = value key='a \'value\''`: blanks around `=` do not matter, and a backslash takes what is
/// behind it as it is.
fn by_keys(text: &str) -> Option<Pairs> {
    let mut pairs = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, behind) = rest.split_once('=')?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        let behind = behind.trim_start();
        let (value, behind) = match behind.strip_prefix('\'') {
            Some(quoted) => value_up_to(quoted, |letter| letter == '\'', true)?,
            None => value_up_to(behind, char::is_whitespace, false)?,
        };
        pairs.push((key.to_owned(), value));
        rest = behind.trim_start();
    }
    (!pairs.is_empty()).then_some(pairs)
}

/// A value, and what is behind its end.
fn value_up_to(
    text: &str,
    is_end: impl Fn(char) -> bool,
    must_end: bool,
) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => value.push(letters.next()?),
            _ if is_end(letter) => return Some((value, letters.as_str())),
            _ => value.push(letter),
        }
    }
    (!must_end).then_some((value, ""))
}

/// `user:password@host:port,host:port/database?key=value`, each part percent-encoded.
fn by_url(rest: &str) -> Option<Pairs> {
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = before.split_once('/').unwrap_or((before, ""));
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = by_authority(host)?;
        names.push(percent_decoded(name)?);
        ports.push(port.to_owned());
    }
    let mut pairs: Pairs = Vec::new();
    let given = [
        ("user", percent_decoded(user)?),
        ("password", percent_decoded(password)?),
        ("dbname", percent_decoded(database)?),
        ("host", names.join(",")),
        ("port", ports.join(",")),
    ];
    for (key, value) in given {
        if !value.trim_matches(',').is_empty() {
            pairs.push((key.to_owned(), value));
        }
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        pairs.push((percent_decoded(key)?, percent_decoded(value)?));
    }
    Some(pairs)
}

/// The server that the keys describe. Of one that is given twice the last counts, as with libpq:
/// `postgres://h/d?host=/run/postgresql`.
fn server(pairs: Pairs) -> Result<SqlAddress, String> {
    let mut options = Vec::new();
    let [mut host, mut address, mut ports] = [String::new(), String::new(), String::new()];
    let [mut user, mut password, mut database] = [String::new(), String::new(), String::new()];
    for (key, value) in pairs {
        match key.as_str() {
            "host" => host = value,
            "hostaddr" => address = value,
            "port" => ports = value,
            "user" => user = value,
            "password" => password = value,
            "dbname" | "database" => database = value,
            _ => options.push((key, value)),
        }
    }
    if !distinct(&options) {
        return Err("names an option twice".to_owned());
    }
    if !host.is_empty() && !address.is_empty() {
        return Err("gives host and hostaddr: give one of them".to_owned());
    }
    let database = if database.is_empty() { user.clone() } else { database };
    if database.is_empty() {
        return Err("must name a database".to_owned());
    }
    let host = if host.is_empty() { address } else { host };
    let mut places = places(&host, &ports)?.into_iter();
    let place = places.next().ok_or("must name a host")?;
    let (others, password) = (places.collect(), Secret::new(password));
    let server = SqlServer { place, others, user, password, database, options };
    Ok(SqlAddress::Server(Box::new(server)))
}

/// Where it may be: several hosts are tried in their order.
fn places(hosts: &str, ports: &str) -> Result<Vec<SqlPlace>, String> {
    let hosts: Vec<&str> = hosts.split(',').map(str::trim).collect();
    let ports: Vec<&str> = ports.split(',').map(str::trim).collect();
    if ports.len() != 1 && ports.len() != hosts.len() {
        return Err(format!("names {} hosts and {} ports", hosts.len(), ports.len()));
    }
    let place = |(index, host): (usize, &&str)| {
        let port = match ports.get(index).or(ports.first()) {
            None | Some(&"") => PORT,
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or("has a wrong port")?,
        };
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
        match *host {
            "" => Ok(SqlPlace::Tcp { host: "localhost".to_owned(), port }),
            folder if folder.starts_with('/') && hosts.len() > 1 => {
                Err("has a socket among several hosts: give it alone".to_owned())
            }
            // libpq names the folder of the socket.
            folder if folder.starts_with('/') => {
                Ok(SqlPlace::Unix(format!("{folder}/.s.PGSQL.{port}").into()))
            }
            name if name.bytes().all(fine) => Ok(SqlPlace::Tcp { host: name.to_owned(), port }),
            _ => Err("has a host that is no name and no address".to_owned()),
        }
    };
    hosts.iter().enumerate().map(place).collect()
}
