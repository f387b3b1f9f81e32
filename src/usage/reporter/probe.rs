//! Whether a destination can be reached: looked at before the first record is there. Nothing is
//! sent or made; a webhook is only connected to.

use super::{redis, sql};
use crate::base::certificate;
use crate::config::plan::{self, ReporterKind, SqlAddress};
use crate::store::{names, Trouble};
use std::fs::{self, OpenOptions};
use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Reads the files that a reporter reads, and connects to nothing.
///
/// # Errors
/// One cannot be read, or holds nothing of use; in words that name the reporter and the file.
pub fn readable(plan: &plan::Reporter) -> Result<(), String> {
    match &plan.kind {
        ReporterKind::Redis(redis) => match &redis.redis.ca_file {
            Some(file) => certificate::read(file)
                .map(drop)
                .map_err(|error| format!("reporter {}: ca_file {error}", plan.name)),
            None => Ok(()),
        },
        ReporterKind::Database(database) => {
            sql::open(&plan.name, database).map(drop).map_err(|error| error.to_string())
        }
        ReporterKind::Webhook(_) | ReporterKind::File(_) | ReporterKind::Builtin(_) => Ok(()),
    }
}

/// Tries to reach the destination of a reporter for at most so long. Blocks.
///
/// # Errors
/// What is in the way, in words for a person, without a secret.
pub fn probe(plan: &plan::Reporter, limit: Duration) -> Result<(), String> {
    match &plan.kind {
        ReporterKind::Webhook(webhook) => connect(webhook.url.reveal(), limit),
        ReporterKind::Redis(redis) => redis::Stream::new(redis.clone()).probe(limit),
        ReporterKind::File(file) => writable(&file.path),
        ReporterKind::Builtin(store) => {
            let table = sql::open_file(&plan.name, &store.path, super::builtin::TABLE);
            file_table(&store.path, table, limit)
        }
        ReporterKind::Database(database) => {
            let table = sql::open(&plan.name, database).map_err(|error| error.to_string())?;
            match &database.sql.address {
                SqlAddress::File(path) => file_table(path, table, limit),
                SqlAddress::Server(_) => {
                    let mut table = table;
                    table.probe(limit)
                }
            }
        }
    }
}

fn file_table(path: &Path, mut table: sql::SqlTable, limit: Duration) -> Result<(), String> {
    writable(path)?;
    match path.exists() {
        true => table.probe(limit),
        // It is made with the first record.
        false => Ok(()),
    }
}

/// A connection to the host of a URL.
fn connect(url: &str, limit: Duration) -> Result<(), String> {
    let until = Instant::now() + limit;
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let default = if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 };
    let bare = authority.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    let (host, port) = match bare {
        Some((host, port)) => (host, port.parse().unwrap_or(default)),
        None => (authority, default),
    };
    let addresses = names::addresses(host.trim_matches(['[', ']']), port, limit);
    let addresses = addresses.map_err(Trouble::into_words)?;
    let mut failed = "its host has no address".to_owned();
    for address in addresses {
        let left = until.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1))) {
            Ok(_) => return Ok(()),
            Err(error) => failed = format!("no connection to {address}: {error}"),
        }
    }
    Err(failed)
}

/// Whether a file can be written, or made: what has to be made for that is removed again.
fn writable(path: &Path) -> Result<(), String> {
    let said = |error: io::Error| format!("{}: {error}", path.display());
    if path.exists() {
        return OpenOptions::new().append(true).open(path).map(drop).map_err(said);
    }
    let folders = path.ancestors().skip(1);
    let folders = folders.map(|f| if f.as_os_str().is_empty() { Path::new(".") } else { f });
    let folder = folders.into_iter().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let trial = folder.join(format!(".llmproxy-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create(true).truncate(false).open(&trial);
    made.map_err(said)?;
    fs::remove_file(&trial).map_err(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Catches: a destination that is not there and of which nothing is said, and words that
    /// nobody understands.
    #[test]
    fn what_is_in_the_way_is_said_in_words() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(connect(&format!("http://u:hunter2@127.0.0.1:{port}/x?hunter2"), LIMIT), Ok(()));
        drop(listener);
        let refused = connect(&format!("http://u:hunter2@127.0.0.1:{port}/hunter2"), LIMIT);
        let refused = refused.unwrap_err();
        assert!(
            refused.contains("Connection refused") && !refused.contains("hunter2"),
            "{refused}"
        );
        let unknown = connect("https://no-such-host.invalid/", LIMIT).unwrap_err();
        assert!(unknown.contains("no-such-host.invalid"), "{unknown}");
    }

    /// Catches: a file that cannot be written, found out by the first record; and a trace of the
    /// look at it.
    #[test]
    fn a_file_is_tried_and_left_as_it_is() {
        let folder = std::env::temp_dir().join(format!("llmproxy-probe-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(writable(&folder.join("new/er/file")), Ok(()));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::write(folder.join("old"), "x").unwrap();
        assert_eq!(writable(&folder.join("old")), Ok(()));
        let said = writable(&folder).unwrap_err();
        assert!(said.contains("Is a directory"), "{said}");
        let said = writable(&folder.join("old/file")).unwrap_err();
        assert!(said.contains("Not a directory"), "{said}");
        assert_eq!(fs::read(folder.join("old")).unwrap(), b"x");
        fs::remove_dir_all(&folder).unwrap();
    }
}
