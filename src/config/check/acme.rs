//! `server.tls.acme`: which certificates are fetched, from whom, and where they are kept.

use crate::base::limits::ACME_DOMAINS_MAX;
use crate::base::secret::Secret;
use crate::config::plan::{AccountBinding, Acme, AcmeChallenge};
use crate::config::section::Section;
use crate::config::value::{self, quoted};
use std::net::{IpAddr, SocketAddr};

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
const STORAGE: &str = "./data/acme";
/// Where authorities come for HTTP-01, and nowhere else.
const HTTP_LISTEN: &str = ":80";

const CHALLENGES: [(&str, AcmeChallenge); 3] = [
    ("auto", AcmeChallenge::Auto),
    ("http-01", AcmeChallenge::Http01),
    ("tls-alpn-01", AcmeChallenge::TlsAlpn01),
];

/// Reads the section. `taken`: addresses on which others listen. `is_closed`: the TLS listener lets
/// nobody in who has no certificate, authorities not either.
pub fn acme(s: &mut Section, (taken, is_closed): (&[SocketAddr], bool)) -> Acme {
    let mut challenge = s.choice("challenge", &CHALLENGES, AcmeChallenge::Auto);
    if is_closed && challenge == AcmeChallenge::TlsAlpn01 {
        s.error("challenge", "cannot be tls-alpn-01 where client_auth is require: use http-01");
    }
    if is_closed && challenge == AcmeChallenge::Auto {
        challenge = AcmeChallenge::Http01;
    }
    let acme = Acme {
        domains: domains(s),
        email: s.parsed("email", email).flatten(),
        eab: s.section("eab").and_then(|mut s| binding(&mut s)),
        directory: s.parsed("directory", directory).unwrap_or_else(|| LETS_ENCRYPT.to_owned()),
        storage: s
            .text("storage")
            .filter(|path| !path.is_empty())
            .map_or(STORAGE.into(), Into::into),
        challenge,
        http_listen: http_listen(s, challenge, taken),
        ca_file: s.protecting("ca_file").map(Into::into),
    };
    if challenge == AcmeChallenge::Http01 && acme.http_listen.is_none() {
        s.error("http_listen", "must not be off where challenge is http-01: authorities ask there");
    }
    acme
}

fn domains(s: &mut Section) -> Vec<String> {
    let names = s.list("domains", domain).unwrap_or_default();
    if names.is_empty() && !s.desk.has_errors() {
        s.error("domains", "must list at least one name, such as llm.example.com");
    }
    if names.len() > ACME_DOMAINS_MAX {
        s.error("domains", format!("has more than {ACME_DOMAINS_MAX} names"));
    }
    let mut unique: Vec<String> = Vec::new();
    for name in names {
        match unique.contains(&name) {
            true => s.error("domains", format!("{} is there twice", quoted(&name))),
            false => unique.push(name),
        }
    }
    unique
}

/// A name of DNS, in lower case, as an authority takes it.
fn domain(text: &str) -> Result<String, String> {
    let shown = quoted(text);
    if text.contains('*') {
        return Err(format!(
            "{shown} is a wildcard, for which authorities want a proof by DNS (dns-01), which is \
             not here: list the names, or use cert_file and key_file"
        ));
    }
    if text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Err(format!("{shown} is an address: authorities give certificates for names"));
    }
    if !text.is_ascii() {
        return Err(format!("{shown} must be written in ASCII (xn--...)"));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let ends = label.starts_with('-') || label.ends_with('-');
        (1..=63).contains(&label.len()) && label.bytes().all(plain) && !ends
    };
    match name.len() <= 253 && name.split('.').all(is_label) {
        true => Ok(name),
        false => Err(format!("{shown} must be a name of DNS, such as llm.example.com")),
    }
}

/// Whom an authority writes to: looked at as far as one that is mistyped would not be taken.
fn email(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let parts = text.split_once('@');
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !b",?<>\"".contains(&byte));
    let fits = parts
        .is_some_and(|(who, host)| !who.is_empty() && host.contains('.') && domain(host).is_ok());
    match is_plain && fits {
        true => Ok(Some(text.to_owned())),
        false => Err(format!("{} must be a mail address, such as ops@example.com", quoted(text))),
    }
}

/// The customer's account, and the key that proves it.
fn binding(s: &mut Section) -> Option<AccountBinding> {
    let kid = s.required_parsed("kid", |text| {
        match text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"') {
            true => Ok(text.to_owned()),
            false => Err("must be the name that the authority gave: ASCII without blanks".into()),
        }
    });
    // Whether it is a key is seen at the start: a plan as it is printed has stars there.
    let hmac_key = s.required_parsed("hmac_key", |text| Ok(Secret::new(text)));
    Some(AccountBinding { kid: kid?, hmac_key: hmac_key? })
}

fn directory(text: &str) -> Result<String, String> {
    match text {
        "letsencrypt" => return Ok(LETS_ENCRYPT.to_owned()),
        "letsencrypt-staging" => return Ok(LETS_ENCRYPT_STAGING.to_owned()),
        _ => {}
    }
    if !text.starts_with("https://") {
        let shown = quoted(text);
        return Err(format!(
            "{shown} must be letsencrypt, letsencrypt-staging, or the https URL of an authority's \
             directory"
        ));
    }
    value::http_url(text).map(|_| text.to_owned())
}

/// Off where nobody asks there, unless it is given.
fn http_listen(
    s: &mut Section,
    challenge: AcmeChallenge,
    taken: &[SocketAddr],
) -> Option<SocketAddr> {
    let read = |text: &str| {
        if text == "off" {
            return Ok(None);
        }
        let address = value::listen(text).map_err(|error| format!("{error}, or off"))?;
        match taken.iter().find(|other| value::overlap(**other, address)) {
            Some(other) => Err(format!("{} is taken by the listener on {other}", quoted(text))),
            None => Ok(Some(address)),
        }
    };
    match s.parsed("http_listen", read) {
        Some(said) => said,
        None if challenge == AcmeChallenge::TlsAlpn01 => None,
        None if s.given("http_listen") => None,
        None => match read(HTTP_LISTEN) {
            Ok(address) => address,
            Err(why) => {
                s.error("http_listen", format!("{why}: give another address, or off"));
                None
            }
        },
    }
}
