//! Handshakes in memory, against servers that show what they should not.

use super::*;
use crate::base::tls_fault::TlsFault;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rcgen::{DistinguishedName, DnType};
use rustls::crypto::ring;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls::{RootCertStore, SupportedProtocolVersion};

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn checks(authority: &Issuer) -> Arc<WebPkiServerVerifier> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap()
}

/// A server with a certificate for this name; it signs with the key of that, or with another one.
fn server(by: &Issuer, name: &str, honest: bool) -> Arc<ServerConfig> {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, by).unwrap().der().clone();
    let key = if honest { key } else { other };
    let key = any_supported_type(&PrivateKeyDer::try_from(key.serialize_der()).unwrap()).unwrap();
    let shown = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    Arc::new(config)
}

/// What a client that wants this, and the name `db.example`, says to a server.
fn shake(
    wanted: Wanted,
    server: &Arc<ServerConfig>,
    version: &'static SupportedProtocolVersion,
) -> Result<(), Error> {
    shake_with(Verifier::new(Arc::new(ring::default_provider()), wanted), server, version)
}

fn shake_with(
    verifier: Verifier,
    server: &Arc<ServerConfig>,
    version: &'static SupportedProtocolVersion,
) -> Result<(), Error> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let name = ServerName::try_from("db.example").unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        server.read_tls(&mut bytes.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        assert!(!bytes.is_empty(), "neither has anything to say");
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

/// Catches: a check that is left out, and one that nobody asked for.
#[test]
fn a_certificate_is_checked_as_far_as_was_asked() {
    let (ours, theirs) = (authority(), authority());
    let right = server(&ours, "db.example", true);
    let named_otherwise = server(&ours, "other.example", true);
    let of_others = server(&theirs, "db.example", true);
    for (name, wanted, fine) in [
        ("any", (|_| Wanted::Any) as fn(_) -> _, [true, true, true]),
        ("authority", Wanted::Authority, [true, true, false]),
        ("name", Wanted::Name, [true, false, false]),
    ] {
        for (server, fine) in [&right, &named_otherwise, &of_others].into_iter().zip(fine) {
            let said = shake(wanted(checks(&ours)), server, &TLS13);
            assert_eq!(said.is_ok(), fine, "{name}: {said:?}");
        }
    }
}

/// Catches: a verifier that takes any certificate and, with it, the signatures of any key: whoever
/// has seen a certificate could be its server.
#[test]
fn a_certificate_without_its_key_is_refused() {
    let ours = authority();
    for version in [&TLS12, &TLS13] {
        for (honest, fine) in [(true, true), (false, false)] {
            let said = shake(Wanted::Any, &server(&ours, "db.example", honest), version);
            assert_eq!(said.is_ok(), fine, "{version:?}: {said:?}");
        }
    }
}

/// A certificate that signed itself, for this alternative name or, where it begins with `CN=`, with
/// a common name and no other; with basic constraints of an authority or none; and a server that
/// shows it.
fn self_signed(
    name: &str,
    is_ca: IsCa,
    expired: bool,
) -> (CertificateDer<'static>, Arc<ServerConfig>) {
    let mut params = match name.strip_prefix("CN=") {
        Some(common) => {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            let mut subject = DistinguishedName::new();
            subject.push(DnType::OrganizationName, "db.example");
            subject.push(DnType::CommonName, common);
            params.distinguished_name = subject;
            params
        }
        None => CertificateParams::new(vec![name.to_owned()]).unwrap(),
    };
    params.is_ca = is_ca;
    if expired {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let key = any_supported_type(&PrivateKeyDer::try_from(key.serialize_der()).unwrap()).unwrap();
    let shown = SingleCertAndKey::from(CertifiedKey::new(vec![certificate.clone()], key));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    (certificate, Arc::new(config))
}

/// What clients of both versions say to a server, with this certificate in their file, for any name
/// or for the right one.
fn checked(
    file: &CertificateDer<'static>,
    server: &Arc<ServerConfig>,
    any_name: bool,
) -> [Result<(), Error>; 2] {
    let mut roots = RootCertStore::empty();
    roots.add(file.clone()).unwrap();
    let roots = Arc::new(roots);
    [&TLS12, &TLS13].map(|version| {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::clone(&roots);
        let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let authority = builder.build().unwrap();
        let wanted = if any_name { Wanted::Authority(authority) } else { Wanted::Name(authority) };
        shake_with(Verifier::new(provider, wanted).pinning(vec![file.clone()]), server, version)
    })
}

/// Catches: a self-signed certificate in `ca_file` that is refused, or one that is let pass though
/// it is another one, is for another name, or is too old.
#[test]
fn a_certificate_that_stands_in_the_file_will_do() {
    let ca = || IsCa::Ca(BasicConstraints::Unconstrained);
    let (theirs, server) = self_signed("db.example", ca(), false);
    let (other, _) = self_signed("db.example", ca(), false);
    let (misnamed, elsewhere) = self_signed("other.example", ca(), false);
    let (old, stale) = self_signed("db.example", ca(), true);
    let (plain, ordinary) = self_signed("db.example", IsCa::NoCa, false);
    for (file, server) in [(&theirs, &server), (&plain, &ordinary)] {
        assert!(checked(file, server, false).iter().all(Result::is_ok));
        assert!(checked(file, server, true).iter().all(Result::is_ok));
    }
    assert!(checked(&other, &server, false).iter().all(Result::is_err), "another certificate");
    assert!(checked(&misnamed, &elsewhere, true).iter().all(Result::is_ok), "for any name");
    for refused in checked(&misnamed, &elsewhere, false) {
        assert_eq!(TlsFault::of_tls(&refused.unwrap_err()), TlsFault::WrongName);
    }
    for refused in checked(&old, &stale, true) {
        assert_eq!(TlsFault::of_tls(&refused.unwrap_err()), TlsFault::Expired);
    }
}

/// Catches: a certificate with nothing but a common name, as OpenSSL makes it, that is refused; one
/// that is taken for another name, or though it is another certificate.
#[test]
fn a_certificate_in_the_file_without_names_is_for_its_common_name() {
    for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::NoCa] {
        let made = |name, expired| self_signed(name, is_ca, expired);
        let (own, server) = made("CN=DB.example", false);
        assert!(checked(&own, &server, false).iter().all(Result::is_ok));
        let (other, _) = made("CN=DB.example", false);
        assert!(checked(&other, &server, false).iter().all(Result::is_err));
        let (own, server) = made("CN=other.example", false);
        assert!(checked(&own, &server, true).iter().all(Result::is_ok), "for any name");
        for refused in checked(&own, &server, false) {
            let Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                presented,
                ..
            })) = refused
            else {
                panic!("{refused:?}");
            };
            assert_eq!(presented, ["other.example"]);
        }
        let (own, server) = made("CN=db.example", true);
        for refused in checked(&own, &server, false) {
            assert_eq!(TlsFault::of_tls(&refused.unwrap_err()), TlsFault::Expired);
        }
    }
}
