//! Where a request comes from: its client's address, and the origin of the page that it is for.

use crate::config::plan::{IpRange, ListenerSpeech};
use crate::http::forwarded;
use crate::http::head::Field;
use std::net::{IpAddr, Ipv4Addr};

/// A field of an answer, for pages of other origins.
pub type CorsField<'a> = (&'static str, &'a str);

/// Where the requests of one connection come from. Boxed where it is kept: a stream has little
/// room. One for each connection, which allocates nothing for its requests.
#[derive(Debug, Clone)]
pub struct Whence {
    /// Who is connected to us: the client, or a proxy before us.
    peer: IpAddr,
    /// The client of the request, as far as anybody trustworthy says.
    client: IpAddr,
    text: String,
    /// What clients speak where it comes from.
    speech: ListenerSpeech,
    /// Version and cipher of a connection that is TLS.
    seal: Option<&'static str>,
    /// A proxy before us whose word counts.
    is_told: bool,
    /// The origin of a page that may read the answer; empty: none.
    origin: String,
}

impl Whence {
    /// Of a peer.
    pub fn new(peer: IpAddr, speech: ListenerSpeech) -> Whence {
        let peer = peer.to_canonical();
        let mut text = String::new();
        write(&mut text, peer);
        Whence {
            peer,
            client: peer,
            text,
            speech,
            seal: None,
            is_told: false,
            origin: String::new(),
        }
    }

    /// A balancer says whose connection it is; `None`: its own.
    pub fn hear(&mut self, source: Option<IpAddr>) {
        // That of our own Unix sockets is nobody's to say.
        self.peer = source.filter(|ip| !ip.is_unspecified()).unwrap_or(self.peer);
        self.set_client(self.peer);
    }

    /// True for a peer that is one of these.
    pub fn is_of(&self, trusted: &[IpRange]) -> bool {
        trusted.iter().any(|range| range.contains(self.peer))
    }

    /// The next request of the connection, of which nothing is known.
    pub fn reset(&mut self) {
        self.origin.clear();
        self.is_told = false;
        self.set_client(self.peer);
    }

    /// Looks at what the proxies before us say.
    pub fn see(&mut self, fields: &[Field], bytes: &[u8], trusted: &[IpRange]) {
        if trusted.is_empty() {
            return;
        }
        let is_trusted = |ip| trusted.iter().any(|range| range.contains(ip));
        self.is_told = self.is_of(trusted);
        self.set_client(forwarded::client(self.peer, fields, bytes, is_trusted));
    }

    fn set_client(&mut self, client: IpAddr) {
        if client != self.client {
            self.client = client;
            self.text.clear();
            write(&mut self.text, client);
        }
    }

    /// What clients speak where it comes from.
    pub fn speech(&self) -> ListenerSpeech {
        self.speech
    }

    /// The connection is TLS, with this version and cipher, from its first request on.
    pub fn set_sealed(&mut self, seal: &'static str) {
        self.seal = Some(seal);
    }

    /// Version and cipher of a connection that is TLS.
    pub fn seal(&self) -> Option<&'static str> {
        self.seal
    }

    /// `https` where the connection is TLS, else `http`.
    pub fn scheme(&self) -> &'static str {
        match self.seal {
            Some(_) => "https",
            None => "http",
        }
    }

    /// A page of this origin may read the answer.
    pub fn set_origin(&mut self, origin: &str) {
        self.origin.push_str(origin);
    }

    /// The origin of a page that may read the answer.
    pub fn origin(&self) -> Option<&str> {
        (!self.origin.is_empty()).then_some(&self.origin)
    }

    /// The client's address.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// The same in the usual form.
    pub fn client_text(&self) -> &str {
        &self.text
    }

    /// Who is connected to us, where that is a proxy whose word counts.
    pub fn trusted_peer(&self) -> Option<String> {
        self.is_told.then(|| {
            let mut text = String::new();
            write(&mut text, self.peer);
            text
        })
    }
}

/// An address; of a client of a Unix socket, which has none, what nginx calls it.
fn write(text: &mut String, client: IpAddr) {
    use std::fmt::Write;
    match client {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => text.push_str("unix:"),
        // Nothing fails that writes to a text.
        client => drop(write!(text, "{client}")),
    }
}
