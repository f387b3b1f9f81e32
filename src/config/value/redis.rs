//! Addresses of Redis servers: `host:port`, the URLs that clients know, paths of sockets.

use super::sql::percent_decoded;
use super::{http_url, quoted, Url};
use crate::base::secret::Secret;

/// What an address says; what it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisAddress {
    /// `host:port`, or the path of a Unix socket.
    pub addr: String,
    /// TLS is asked for, or expressly not.
    pub tls: Option<bool>,
    /// User of the access control list.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Number of the database.
    pub db: Option<u32>,
}

/// Reads `host:port`, `redis[s]://[user[:password]@]host[:port][/db]` or `[redis+]unix:///path`.
///
/// # Errors
/// A line for a person. Of a URL it repeats nothing, since it may hold a password.
pub fn redis_address(text: &str) -> Result<RedisAddress, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        let is_whole = |path: &str| path.starts_with('/') && !path.contains('\0');
        return match text.strip_prefix("unix:").unwrap_or(text) {
            path if is_whole(path) => Ok(socket(path)),
            _ => Ok(RedisAddress { addr: host_and_port(text)?, ..RedisAddress::default() }),
        };
    };
    let tls = match scheme {
        "redis" => false,
        "rediss" => true,
        "unix" | "redis+unix" if rest.starts_with('/') && !rest.contains(['?', '\0']) => {
            return Ok(socket(rest));
        }
        _ => return Err(FORMS.to_owned()),
    };
    by_url(rest, tls).ok_or_else(|| FORMS.to_owned())
}

const FORMS: &str =
    "must be host:port, redis://user:password@host:port/db, rediss://... (TLS), or \
                     unix:///path; other options are keys of their own";

fn socket(path: &str) -> RedisAddress {
    RedisAddress { addr: path.to_owned(), ..RedisAddress::default() }
}

fn by_url(rest: &str, tls: bool) -> Option<RedisAddress> {
    let (authority, db) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let host = if has_port { host.to_owned() } else { format!("{host}:6379") };
    let (username, password) = login.split_once(':').unwrap_or((login, ""));
    let text = |text: &str| Some(percent_decoded(text)?).map(|t| (!t.is_empty()).then_some(t));
    Some(RedisAddress {
        addr: host_and_port(&host).ok()?,
        tls: Some(tls),
        username: text(username)?,
        password: text(password)?.map(Secret::new),
        db: if db.is_empty() { None } else { Some(db.parse().ok()?) },
    })
}

/// `host:port`, the host a name, an address, or an IPv6 address in brackets.
///
/// # Errors
/// It is something else; a line for a person.
pub fn host_and_port(text: &str) -> Result<String, String> {
    match http_url(&format!("http://{text}")) {
        Ok(Url::Http { port, authority, path, query: None, .. })
            if path.is_empty() && authority.ends_with(&format!(":{port}")) =>
        {
            Ok(authority)
        }
        _ if text.contains('@') => Err(FORMS.to_owned()),
        _ => Err(format!("{} must be host:port, such as localhost:6379", quoted(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (String, Option<bool>, String, String, Option<u32>) {
        let a = redis_address(text).unwrap();
        let password = a.password.map(|p| p.reveal().to_owned()).unwrap_or_default();
        (a.addr, a.tls, a.username.unwrap_or_default(), password, a.db)
    }

    /// Catches: a form that clients of Redis know and that is read as something else.
    #[test]
    fn forms_of_clients_are_read() {
        let is = |addr: &str, tls, user: &str, password: &str, db| {
            (addr.to_owned(), tls, user.to_owned(), password.to_owned(), db)
        };
        assert_eq!(read("h:6379"), is("h:6379", None, "", "", None));
        assert_eq!(read("[::1]:7"), is("[::1]:7", None, "", "", None));
        assert_eq!(read("redis://h"), is("h:6379", Some(false), "", "", None));
        assert_eq!(read("rediss://[::1]/3"), is("[::1]:6379", Some(true), "", "", Some(3)));
        let whole = "rediss://us%40er:p%3Aa:s@h:7/0";
        assert_eq!(read(whole), is("h:7", Some(true), "us@er", "p:a:s", Some(0)));
        assert_eq!(read("redis://:pw@h"), is("h:6379", Some(false), "", "pw", None));
        for socket in ["/run/r.sock", "unix:/run/r.sock", "unix:///run/r.sock"] {
            assert_eq!(read(socket), is("/run/r.sock", None, "", "", None));
        }
    }

    /// Catches: a password in a message, and an option that is dropped in silence.
    #[test]
    fn what_is_none_is_refused_without_its_password() {
        for text in [
            "redis://u:hunter2@h/x",
            "redis://u:hunter2@h:0/1",
            "redis://u:hunter2@h/1?protocol=resp3",
            "http://u:hunter2@h",
            "u:hunter2@h:1",
            "rediss://u:hunter2%zz@h",
            "redis+unix:///s?pass=hunter2",
        ] {
            let said = redis_address(text).unwrap_err();
            assert!(!said.contains("hunter2"), "{text}: {said}");
        }
        assert!(redis_address("h").is_err() && redis_address("").is_err());
    }
}
