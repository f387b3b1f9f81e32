//! The files that a start reads, for `llmproxy check`: who changes one and restarts should not have
//! to find out then.

use crate::base::clock::unix_ms;
use crate::base::utc::Stamp;
use crate::config::cli::FilesSeen;
use crate::config::plan::Plan;
use crate::control::{acme, scripts, tls};
use crate::state::certificates::{ClientTls, ServedCertificate};
use crate::usage::reporter;
use std::sync::Arc;

/// A certificate that ends sooner is warned of.
const ENDS_SOON_DAYS: i64 = 14;
const DAY_SECONDS: i64 = 24 * 3600;

/// Why they keep this plan from starting, and which certificates clients would be shown. Blocks.
pub fn seen(plan: &Plan) -> FilesSeen {
    let mut system_roots = None;
    let client_tls = tls::client_tls(plan, &Arc::default());
    let told = client_tls.as_ref().ok().and_then(Option::as_ref).map(told_of).unwrap_or_default();
    let mut found: Vec<String> = client_tls.err().into_iter().collect();
    if let Some(acme) = plan.server.tls.as_ref().and_then(|tls| tls.acme.as_ref()) {
        found.extend(acme::look(acme).err());
    }
    for (index, backend) in plan.backends.iter().enumerate() {
        let config =
            backend.tls.as_ref().map(|it| tls::settings_of(backend, it, &mut system_roots));
        if let Some(Err(error)) = config {
            found.push(format!("backends[{index}].tls: backend {}: {error}", backend.name));
        }
    }
    for (index, reporter) in plan.usage.reporters.iter().enumerate() {
        if let Err(error) = reporter::readable(reporter) {
            found.push(format!("usage.reporters[{index}]: {error}"));
        }
    }
    found.extend(scripts::read(plan).err());
    FilesSeen { unusable: found, told }
}

/// The first of these alone.
pub fn unusable(plan: &Plan) -> Vec<String> {
    seen(plan).unusable
}

fn told_of(tls: &ClientTls) -> Vec<String> {
    let now = (unix_ms() / 1000).cast_signed();
    tls.files.all().iter().map(|certificate| line_of(certificate, now)).collect()
}

fn line_of(certificate: &ServedCertificate, now: i64) -> String {
    let (file, facts) = (&certificate.label, &certificate.facts);
    let day = |at: i64| {
        let stamp = Stamp::of(u64::try_from(at).unwrap_or(0).saturating_mul(1000));
        stamp.map_or_else(|| "later than 9999".to_owned(), |stamp| stamp.day().to_owned())
    };
    let names = match facts.names.is_empty() {
        true => "no name".to_owned(),
        false => facts.names.join(", "),
    };
    let (left, until) = (facts.not_after - now, day(facts.not_after));
    let told = format!("server.tls: certificate {file}: for {names}; until {until}");
    match left.div_euclid(DAY_SECONDS) {
        ..0 => format!("warning: {told}: it has expired"),
        _ if facts.not_before > now => {
            format!("warning: {told}: it is not valid before {}", day(facts.not_before))
        }
        days @ ..ENDS_SOON_DAYS => format!("warning: {told}: it ends in {days} days"),
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::certificate::CertificateFacts;
    use rustls::crypto::ring;
    use rustls::sign::CertifiedKey;

    fn line(not_before: i64, not_after: i64, names: &[&str]) -> String {
        let key = rcgen::KeyPair::generate().unwrap().serialize_der();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key).unwrap();
        let key = ring::sign::any_supported_type(&key).unwrap();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let facts = CertificateFacts { names, not_before, not_after };
        let (label, key) = ("/tls.crt".to_owned(), Arc::new(CertifiedKey::new(Vec::new(), key)));
        line_of(&ServedCertificate { label, facts, key }, 1_000 * DAY_SECONDS)
    }

    /// Catches: a certificate that is about to end, has ended or has not begun, and nobody says so.
    #[test]
    fn who_checks_is_told_how_long_a_certificate_lasts() {
        let day = |n: i64| n * DAY_SECONDS;
        let fine = line(0, day(1_014), &["a.example", "*.b.example"]);
        let shown =
            "server.tls: certificate /tls.crt: for a.example, *.b.example; until 1972-10-11";
        assert_eq!(fine, shown);
        let soon = line(0, day(1_014) - 1, &["a"]);
        assert!(soon.starts_with("warning: ") && soon.ends_with("it ends in 13 days"), "{soon}");
        assert!(
            line(0, day(1_000) - 1, &[]).ends_with("for no name; until 1972-09-26: it has expired")
        );
        let early = line(day(1_001), day(2_000), &["a"]);
        assert!(early.ends_with("it is not valid before 1972-09-28"), "{early}");
    }
}
