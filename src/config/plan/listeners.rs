//! The places where clients come, and what they speak there.

use super::{print, Server};
use serde::Serialize;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

/// What stands before the name of a Unix socket.
const UNIX: &str = "unix:";

/// One of `server.listeners`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientListener {
    /// Where.
    pub listen: ListenPlace,
    /// Whether TLS is spoken there; `None` = where `server.tls` is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// Who may connect to the file of a Unix socket, as `chmod` has it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::mode")]
    pub mode: Option<u32>,
}

/// An address, or the name of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenPlace {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket: the absolute path of its file, or `@` and a name of the kernel's own.
    Unix(String),
}

impl ListenPlace {
    /// The file of a Unix socket that has one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            ListenPlace::Unix(name) if !name.starts_with('@') => Some(Path::new(name)),
            _ => None,
        }
    }
}

impl fmt::Display for ListenPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenPlace::Tcp(address) => address.fmt(f),
            ListenPlace::Unix(name) => write!(f, "{UNIX}{name}"),
        }
    }
}

/// Reads what the other direction writes; no more forms than that.
impl FromStr for ListenPlace {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<ListenPlace, Self::Err> {
        match text.strip_prefix(UNIX) {
            Some(name) => Ok(ListenPlace::Unix(name.to_owned())),
            None => text.parse().map(ListenPlace::Tcp),
        }
    }
}

impl Serialize for ListenPlace {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What clients speak at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerSpeech {
    /// TLS where `server.tls` is on.
    AsServer,
    /// Clear text.
    Plain,
    /// TLS; nothing where `server.tls` is off.
    Tls,
}

impl ListenerSpeech {
    /// All there are.
    pub const ALL: [ListenerSpeech; 3] =
        [ListenerSpeech::AsServer, ListenerSpeech::Plain, ListenerSpeech::Tls];
}

impl ClientListener {
    /// What clients speak there.
    pub fn speech(&self) -> ListenerSpeech {
        match self.tls {
            None => ListenerSpeech::AsServer,
            Some(false) => ListenerSpeech::Plain,
            Some(true) => ListenerSpeech::Tls,
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        match &self.listen {
            ListenPlace::Tcp(address) => Some(*address),
            ListenPlace::Unix(_) => None,
        }
    }
}

impl Server {
    /// The addresses at which clients come that speak so.
    pub fn addresses_of(&self, speech: ListenerSpeech) -> Vec<SocketAddr> {
        let short = self.listen.iter().copied().filter(|_| speech == ListenerSpeech::AsServer);
        let more = self.listeners.iter().filter(|listener| listener.speech() == speech);
        short.chain(more.filter_map(ClientListener::address)).collect()
    }

    /// All addresses at which clients come.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let more = self.listeners.iter().filter_map(ClientListener::address);
        self.listen.iter().copied().chain(more).collect()
    }

    /// The listeners that are Unix sockets.
    pub fn unix_listeners(&self) -> impl Iterator<Item = &ClientListener> {
        self.listeners.iter().filter(|one| matches!(one.listen, ListenPlace::Unix(_)))
    }
}
