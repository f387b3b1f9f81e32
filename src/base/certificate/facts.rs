//! What a certificate says of itself: whom it is for, and from when to when. rustls and webpki look
//! at the dates only when they verify, which nobody does with a certificate of one's own.

use super::{common_name, element};
use rustls::pki_types::CertificateDer;
use std::net::IpAddr;

/// subjectAltName, 2.5.29.17, RFC 5280 section 4.2.1.6.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
/// authorityKeyIdentifier, 2.5.29.35, RFC 5280 section 4.2.1.1.
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];
/// Of the fields of a certificate and of its names: their types in DER.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const KEY_IDENTIFIER: u8 = 0x80;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

const DAY_SECONDS: i64 = 24 * 3600;

/// Whom a certificate is for, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Names in small letters, perhaps with `*.` before them, and addresses. Where it lists none,
    /// the common name of its subject.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl CertificateFacts {
    /// Reads them. `None`: it is no certificate of X.509, or is longer than any should be.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<CertificateFacts> {
        let mut body = body(certificate)?;
        if body.first() == Some(&VERSION) {
            element(&mut body)?;
        }
        for _ in ["serial", "algorithm", "issuer"] {
            element(&mut body)?;
        }
        let mut validity = element(&mut body)?;
        let not_before = time(&mut validity)?;
        let not_after = time(&mut validity)?;
        let mut names = alternative_names(body).unwrap_or_default();
        if names.is_empty() {
            names.extend(common_name(certificate).map(|name| name.to_ascii_lowercase()));
        }
        Some(CertificateFacts { names, not_before, not_after })
    }
}

/// What is signed of a certificate.
fn body<'a>(certificate: &'a CertificateDer<'_>) -> Option<&'a [u8]> {
    let mut whole = certificate.as_ref();
    let mut certificate = element(&mut whole)?;
    element(&mut certificate)
}

/// What tells a certificate from all others: the key that signed it, as that is called, and its
/// number. `None`: it is none, or does not say who signed it.
pub fn issuer_and_serial<'a>(certificate: &'a CertificateDer<'_>) -> Option<(&'a [u8], &'a [u8])> {
    let mut body = body(certificate)?;
    if body.first() == Some(&VERSION) {
        element(&mut body)?;
    }
    let serial = element(&mut body)?;
    let mut value = extension(body, AUTHORITY_KEY)?;
    let mut parts = element(&mut value)?;
    let is_key = parts.first() == Some(&KEY_IDENTIFIER);
    let issuer = element(&mut parts).filter(|_| is_key)?;
    Some((issuer, serial))
}

/// The value of an extension. `rest` begins behind the serial number, or later.
fn extension<'a>(mut rest: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    while *rest.first()? != EXTENSIONS {
        element(&mut rest)?;
    }
    let mut wrapped = element(&mut rest)?;
    let mut extensions = element(&mut wrapped)?;
    while !extensions.is_empty() {
        let mut extension = element(&mut extensions)?;
        if element(&mut extension)? != wanted {
            continue;
        }
        // Whether it is critical may stand before its value, which is the last.
        let mut value = element(&mut extension)?;
        if !extension.is_empty() {
            value = element(&mut extension)?;
        }
        return Some(value);
    }
    None
}

/// The names and addresses that stand for the subject. `rest` begins behind the dates.
fn alternative_names(rest: &[u8]) -> Option<Vec<String>> {
    let mut value = extension(rest, ALTERNATIVE_NAMES)?;
    let (mut names, mut found) = (element(&mut value)?, Vec::new());
    while let Some(kind) = names.first().copied() {
        let name = element(&mut names)?;
        match kind {
            DNS_NAME if name.is_ascii() => {
                found.push(String::from_utf8_lossy(name).to_ascii_lowercase());
            }
            IP_ADDRESS => {
                let v4 = <[u8; 4]>::try_from(name).map(IpAddr::from);
                let any = v4.or_else(|_| <[u8; 16]>::try_from(name).map(IpAddr::from));
                found.extend(any.map(|address| address.to_string()));
            }
            _ => {}
        }
    }
    Some(found)
}

/// A date as RFC 5280 section 4.1.2.5 has it: with or without the century, always in UTC and with
/// seconds.
fn time(der: &mut &[u8]) -> Option<i64> {
    let kind = *der.first()?;
    let text = std::str::from_utf8(element(der)?).ok()?.strip_suffix('Z')?;
    let number = |from: usize, len: usize| text.get(from..from + len)?.parse::<i64>().ok();
    let (year, at) = match kind {
        UTC_TIME => match number(0, 2)? {
            short @ 0..50 => (2000 + short, 2),
            short => (1900 + short, 2),
        },
        GENERALIZED_TIME => (number(0, 4)?, 4),
        _ => return None,
    };
    let (month, day) = (number(at, 2)?, number(at + 2, 2)?);
    let (hour, minute, second) = (number(at + 4, 2)?, number(at + 6, 2)?, number(at + 8, 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    Some(days(year, month, day) * DAY_SECONDS + hour * 3600 + minute * 60 + second)
}

/// Days from 1970 to a day of the Gregorian calendar. Years are counted from March here, so that
/// the day that some of them have more is their last one.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{date_time_ymd, CertificateParams, DnType, KeyPair};

    fn facts(params: &CertificateParams) -> CertificateFacts {
        let key = KeyPair::generate().unwrap();
        CertificateFacts::of(params.self_signed(&key).unwrap().der()).unwrap()
    }

    /// Catches: a certificate whose names or dates are read wrongly, in either form of a date.
    #[test]
    fn names_and_dates_are_those_of_the_certificate() {
        let names = ["LLM.example.com", "*.example.org", "192.0.2.7", "2001:db8::1"];
        let mut params = CertificateParams::new(names.map(str::to_owned).to_vec()).unwrap();
        params.not_before = date_time_ymd(1999, 12, 31);
        params.not_after = date_time_ymd(2096, 2, 29);
        let found = facts(&params);
        let named = ["llm.example.com", "*.example.org", "192.0.2.7", "2001:db8::1"];
        assert_eq!(found.names, named);
        assert_eq!((found.not_before, found.not_after), (946_598_400, 3_981_312_000));
    }

    /// Catches: a certificate without alternative names, as old ones are, that is for nobody.
    #[test]
    fn without_names_it_is_for_its_subject() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "Gateway");
        assert_eq!(facts(&params).names, ["gateway"]);
    }

    #[test]
    fn what_is_no_certificate_has_no_facts() {
        for bytes in [&b""[..], b"\x30\x03\x02\x01\x01", &[0x30; 64]] {
            assert_eq!(CertificateFacts::of(&CertificateDer::from(bytes)), None);
        }
        for (mut bad, why) in [
            (&b"\x17\x0d990230000000+"[..], "no zone"),
            (b"\x17\x0d991330000000Z", "no month"),
            (b"\x17\x03990", "cut"),
            (b"\x02\x01\x00", "no date"),
        ] {
            assert_eq!(time(&mut bad), None, "{why}");
        }
        assert_eq!(time(&mut &b"\x18\x0f20500101000000Z"[..]), Some(2_524_608_000));
        assert_eq!(time(&mut &b"\x17\x0d491231235959Z"[..]), Some(2_524_607_999));
    }
}
