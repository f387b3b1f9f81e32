//! A certificate with its key, as it lies on the disk and as TLS shows it, and how long it lives.

use crate::control::tls::{served, WrongPair};
use crate::state::certificates::ServedCertificate;
use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;
use std::sync::Arc;
use zeroize::Zeroizing;

/// From when and until when a certificate counts, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateLife {
    /// Its first second.
    pub from_s: u64,
    /// Its last second.
    pub until_s: u64,
}

impl CertificateLife {
    /// Of a certificate. Some have begun before 1970, as far as anybody can tell.
    pub fn of(certificate: &ServedCertificate) -> CertificateLife {
        let facts = &certificate.facts;
        let [from_s, until_s] =
            [facts.not_before, facts.not_after].map(|at| u64::try_from(at).unwrap_or(0));
        CertificateLife { from_s, until_s }
    }

    /// How long that is.
    pub fn seconds(self) -> u64 {
        self.until_s.saturating_sub(self.from_s)
    }
}

/// The text of a file that holds both: one file, so that no reader ever finds the key of another
/// certificate.
pub fn text(key_pem: &str, chain_pem: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{}\n{}\n", key_pem.trim_end(), chain_pem.trim_end()))
}

/// What a certificate for a name is known by.
pub fn label(name: &str) -> String {
    format!("acme:{name}")
}

/// Reads such a text.
///
/// # Errors
/// It is none, its parts do not go together, or it is not for this name: why.
pub fn read(name: &str, text: &str) -> Result<Arc<ServedCertificate>, String> {
    let (bytes, provider) = (text.as_bytes(), ring::default_provider());
    let pair = served(label(name), bytes, bytes, &provider).map_err(|wrong| match wrong {
        WrongPair::Certificate(why) => format!("it {why}"),
        WrongPair::Key(why) => format!("its key: {why}"),
        WrongPair::Both(why) => format!("its key and its certificate: {why}"),
    })?;
    let first = pair.key.cert.first().ok_or("it holds no certificate")?;
    let parsed = ParsedCertificate::try_from(first).map_err(|error| error.to_string())?;
    let wanted = ServerName::try_from(name).map_err(|error| error.to_string())?;
    verify_server_name(&parsed, &wanted).map_err(|_| format!("it is not for {name}"))?;
    Ok(pair)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rcgen::{date_time_ymd, CertificateParams, KeyPair};

    /// A pair for a name, as the text of its file. It lives from the first day to the second.
    pub(in crate::control::acme) fn made(name: &str, from_to: [(i32, u8, u8); 2]) -> String {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let [from, until] = from_to.map(|(year, month, day)| date_time_ymd(year, month, day));
        (params.not_before, params.not_after) = (from, until);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        text(&key.serialize_pem(), &certificate.pem()).to_string()
    }

    const DATES: [(i32, u8, u8); 2] = [(2026, 1, 31), (2055, 12, 1)];

    /// Catches: a file of another name, another key or of rubbish that clients are shown.
    #[test]
    fn what_does_not_go_together_is_no_pair() {
        let (one, other) = (made("a.example", DATES), made("a.example", DATES));
        let lifetime = CertificateLife { from_s: 1_769_817_600, until_s: 2_711_232_000 };
        assert_eq!(CertificateLife::of(&read("a.example", &one).unwrap()), lifetime);
        let split = |text: &str| {
            let at = text.find("-----BEGIN CERTIFICATE").unwrap();
            let (key, chain) = text.split_at(at);
            (key.to_owned(), chain.to_owned())
        };
        let mixed = split(&one).0 + &split(&other).1;
        let why = |text: &str| read("a.example", text).err().unwrap();
        assert!(why(&mixed).contains("its key and its certificate"), "{}", why(&mixed));
        assert!(why(&made("b.example", DATES)).contains("not for a.example"));
        assert!(why(&split(&one).0).contains("no certificate"));
        assert!(why(&split(&one).1).contains("its key"));
        assert!(!why("").is_empty());
        assert!(!why(one.split_at(one.len() / 2).0).is_empty());
    }
}
