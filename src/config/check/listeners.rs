//! `server.listeners`: places for clients beside `server.listen`.

use crate::base::limits::CLIENT_LISTENERS_MAX;
use crate::config::plan::{ClientListener, ListenPlace, Server};
use crate::config::section::Section;
use crate::config::value;
use std::net::SocketAddr;

/// Bytes of the name of a Unix socket: what the kernel takes.
const UNIX_NAME_BYTES_MAX: usize = 107;
/// Who may connect to a Unix socket, unless the file says: its owner and group.
const MODE: u32 = 0o660;

/// Further listeners. `server` has all else.
pub fn listeners(s: &mut Section, server: &Server) -> Vec<ClientListener> {
    let mut all: Vec<ClientListener> = Vec::new();
    let mut taken = server.listen.clone();
    taken.extend(server.tls.as_ref().and_then(|tls| tls.acme.as_ref()?.http_listen));
    for mut one in s.sections("listeners") {
        let Some(listen) = one.required_parsed("listen", listen_place) else { continue };
        let tls = one.parsed("tls", value::boolean);
        let mode = one.parsed("mode", mode);
        match &listen {
            ListenPlace::Unix(_) if all.iter().any(|other| other.listen == listen) => {
                one.error("listen", format!("{listen} is there twice"));
            }
            ListenPlace::Unix(_) => {}
            ListenPlace::Tcp(address) => see_address(&one, *address, &mut taken),
        }
        if tls == Some(true) && server.tls.is_none() && !one.desk.has_errors() {
            one.error("tls", "needs the certificates of server.tls");
        }
        let has_file = listen.file().is_some();
        if mode.is_some() && !has_file {
            one.error("mode", "is for Unix sockets that have a file");
        }
        let is_unix = matches!(listen, ListenPlace::Unix(_));
        let tls = tls.or(is_unix.then_some(false));
        all.push(ClientListener { listen, tls, mode: has_file.then(|| mode.unwrap_or(MODE)) });
    }
    if all.len() > CLIENT_LISTENERS_MAX {
        s.error("listeners", format!("must be {CLIENT_LISTENERS_MAX} at most"));
    }
    if server.listen.is_empty() && all.is_empty() && !s.desk.has_errors() {
        s.error("listeners", "must name at least one place, such as {listen: \":8000\"}");
    }
    all
}

/// An address beside those that are taken already.
fn see_address(one: &Section, address: SocketAddr, taken: &mut Vec<SocketAddr>) {
    if let Some(other) = taken.iter().find(|other| value::overlap(**other, address)) {
        one.error("listen", format!("{address} is taken by the listener on {other}"));
    }
    taken.push(address);
}

fn listen_place(text: &str) -> Result<ListenPlace, String> {
    let Some(name) = text.strip_prefix("unix:") else {
        return value::listen(text).map(ListenPlace::Tcp);
    };
    // Processes tell it to each other, and to whoever reads the log, as one word.
    let is_word = !name.contains(|c: char| c.is_whitespace() || c.is_control());
    let is_path = name.starts_with('/') && !name.ends_with(['/', '.']);
    let is_abstract = name.starts_with('@') && name.len() > 1;
    match is_word && (is_path || is_abstract) && name.len() <= UNIX_NAME_BYTES_MAX {
        true => Ok(ListenPlace::Unix(name.to_owned())),
        false => Err(format!(
            "{} must be unix: and an absolute path, or @ and a name, of {UNIX_NAME_BYTES_MAX} \
             bytes at most and without spaces",
            value::quoted(text)
        )),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| format!("{} must be octal digits, such as \"0660\"", value::quoted(text)))
}
