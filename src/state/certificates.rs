//! The certificates that clients are shown, and which of them a client gets: one for the name that
//! it asks for, else the first. Those of files are read with the configuration and swapped with it;
//! those that come at run time are given here, and every view has them.

use crate::base::certificate::{CertificateFacts, CHALLENGE_PROTOCOL};
use crate::base::limits::CHALLENGES_MAX;
use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::ServerConfig;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// How clients are served over TLS.
#[derive(Clone)]
pub struct ClientTls {
    /// What a handshake goes by. A connection keeps the one that it began with.
    pub config: Arc<ServerConfig>,
    /// The certificates of files.
    pub files: Arc<CertificateTable>,
    /// SHA-256 of all files that it was made of.
    pub sha256: [u8; 32],
}

/// A certificate, its key, and what it says of itself.
pub struct ServedCertificate {
    /// What people know it by: its file, or for what it was fetched.
    pub label: String,
    /// Whom it is for, and how long.
    pub facts: CertificateFacts,
    /// What is shown, and what it is signed with.
    pub key: Arc<CertifiedKey>,
}

/// Certificates, found by the names that they are for.
#[derive(Default)]
pub struct CertificateTable {
    all: Vec<Arc<ServedCertificate>>,
    /// Places of those for a name, in their order: one may have a key that a client cannot use.
    exact: HashMap<String, Vec<usize>>,
    /// The same for `*.name`, without the star and the dot.
    wild: HashMap<String, Vec<usize>>,
}

impl CertificateTable {
    /// Of these, the first of which is shown to who asks for none of their names.
    pub fn new(all: Vec<Arc<ServedCertificate>>) -> CertificateTable {
        let (mut exact, mut wild) = (HashMap::new(), HashMap::new());
        for (place, certificate) in all.iter().enumerate() {
            for name in &certificate.facts.names {
                let (table, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wild, parent),
                    None => (&mut exact, name.as_str()),
                };
                let places: &mut Vec<usize> = table.entry(name.to_owned()).or_default();
                places.push(place);
            }
        }
        CertificateTable { all, exact, wild }
    }

    /// All of them, in their order.
    pub fn all(&self) -> &[Arc<ServedCertificate>] {
        &self.all
    }

    /// One for exactly this name that `fits`.
    fn exact(&self, name: &str, fits: &Fits<'_>) -> Option<&Arc<CertifiedKey>> {
        self.first(self.exact.get(name)?, fits)
    }

    /// One for all names below that of which this is one.
    fn wild(&self, name: &str, fits: &Fits<'_>) -> Option<&Arc<CertifiedKey>> {
        let (_, parent) = name.split_once('.')?;
        self.first(self.wild.get(parent)?, fits)
    }

    fn first(&self, places: &[usize], fits: &Fits<'_>) -> Option<&Arc<CertifiedKey>> {
        let keys = places.iter().filter_map(|place| self.all.get(*place)).map(|it| &it.key);
        keys.into_iter().find(|key| fits(key))
    }

    fn any(&self, fits: &Fits<'_>) -> Option<&Arc<CertifiedKey>> {
        self.all.iter().map(|certificate| &certificate.key).find(|key| fits(key))
    }
}

type Fits<'a> = dyn Fn(&CertifiedKey) -> bool + 'a;

/// What is there at one moment of what comes at run time.
#[derive(Default, Clone)]
struct Given {
    table: Arc<CertificateTable>,
    /// What an authority is shown that looks whether a name is ours, the oldest first.
    challenges: Vec<(String, Arc<CertifiedKey>)>,
}

/// Certificates that come at run time. Who puts one here waits for nobody, and nobody for them.
#[derive(Default)]
pub struct GivenCertificates(ArcSwap<Given>);

impl GivenCertificates {
    /// Shows this one from now on, in the place of the one of the same label, if there is one.
    pub fn put(&self, certificate: &Arc<ServedCertificate>) {
        self.change(|given| {
            let mut all = given.table.all.clone();
            match all.iter_mut().find(|old| old.label == certificate.label) {
                Some(old) => old.clone_from(certificate),
                None => all.push(Arc::clone(certificate)),
            }
            given.table = Arc::new(CertificateTable::new(all));
        });
    }

    /// Shows the one of this label no more.
    pub fn take_away(&self, label: &str) {
        self.change(|given| {
            let all = given.table.all.iter().filter(|old| old.label != label).cloned();
            given.table = Arc::new(CertificateTable::new(all.collect()));
        });
    }

    /// An authority that looks by TLS whether a name is ours is shown this.
    pub fn put_challenge(&self, name: &str, key: &Arc<CertifiedKey>) {
        let name = name.to_ascii_lowercase();
        self.change(|given| {
            given.challenges.retain(|(known, _)| *known != name);
            let beyond = (given.challenges.len() + 1).saturating_sub(CHALLENGES_MAX);
            given.challenges.drain(..beyond);
            given.challenges.push((name.clone(), Arc::clone(key)));
        });
    }

    /// And is shown nothing any more.
    pub fn end_challenge(&self, name: &str) {
        self.change(|given| {
            given.challenges.retain(|(known, _)| !known.eq_ignore_ascii_case(name))
        });
    }

    /// Those that are shown now.
    pub fn all(&self) -> Vec<Arc<ServedCertificate>> {
        self.0.load().table.all.clone()
    }

    fn change(&self, change: impl Fn(&mut Given)) {
        self.0.rcu(|given| {
            let mut next = Given::clone(given);
            change(&mut next);
            next
        });
    }
}

/// Chooses for each handshake. A name that stands in a certificate comes before one that a star
/// stands for, and a file before what came at run time.
pub struct CertificateChoice {
    /// Of files.
    pub files: Arc<CertificateTable>,
    /// Of the run time.
    pub given: Arc<GivenCertificates>,
}

impl CertificateChoice {
    fn choose(&self, name: Option<&str>, fits: &Fits<'_>) -> Option<Arc<CertifiedKey>> {
        let (files, given) = (&self.files, self.given.0.load());
        let given = &given.table;
        let named = name.and_then(|name| {
            let exact = files.exact(name, fits).or_else(|| given.exact(name, fits));
            exact.or_else(|| files.wild(name, fits)).or_else(|| given.wild(name, fits))
        });
        named.or_else(|| files.any(fits)).or_else(|| given.any(fits)).cloned()
    }

    fn challenge(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let given = self.given.0.load();
        let found = given.challenges.iter().find(|(known, _)| Some(known.as_str()) == name);
        found.map(|(_, key)| Arc::clone(key))
    }
}

impl ResolvesServerCert for CertificateChoice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offers =
            |protocol: &[u8]| hello.alpn().is_some_and(|mut all| all.any(|it| it == protocol));
        if offers(CHALLENGE_PROTOCOL) && !offers(b"http/1.1") {
            return self.challenge(hello.server_name());
        }
        let schemes = hello.signature_schemes();
        let fits = |key: &CertifiedKey| key.key.choose_scheme(schemes).is_some();
        self.choose(hello.server_name(), &fits)
    }
}

impl fmt::Debug for CertificateChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.files.all.iter().map(|certificate| &certificate.label);
        f.debug_list().entries(labels).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
