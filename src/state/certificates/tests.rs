//! Handshakes in memory, which get the certificate that they should.

use super::*;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::SignatureScheme;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConnection};

/// Takes any certificate, and says which signatures it can check.
#[derive(Debug)]
struct Anything(Vec<SignatureScheme>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

const ECDSA: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
const ED25519: SignatureScheme = SignatureScheme::ED25519;

fn certificate(label: &str, names: &[&str]) -> Arc<ServedCertificate> {
    made_with(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), label, names)
}

fn made_with(key: &KeyPair, label: &str, names: &[&str]) -> Arc<ServedCertificate> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let shown = CertificateParams::new(names).unwrap().self_signed(key).unwrap().der().clone();
    let facts = CertificateFacts::of(&shown).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = CertifiedKey::from_der(vec![shown], key, &ring::default_provider()).unwrap();
    Arc::new(ServedCertificate { label: label.to_owned(), facts, key: Arc::new(key) })
}

struct Gateway {
    config: Arc<ServerConfig>,
    given: Arc<GivenCertificates>,
    files: Vec<Arc<ServedCertificate>>,
}

impl Gateway {
    fn new(files: Vec<Arc<ServedCertificate>>) -> Gateway {
        let given = Arc::<GivenCertificates>::default();
        let table = Arc::new(CertificateTable::new(files.clone()));
        let choice = CertificateChoice { files: table, given: Arc::clone(&given) };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(choice));
        config.alpn_protocols = vec![b"http/1.1".to_vec(), CHALLENGE_PROTOCOL.to_vec()];
        Gateway { config: Arc::new(config), given, files }
    }

    /// The label of what a client is shown. `name` without a name: none is asked for.
    fn shown(&self, name: &str) -> String {
        let given = self.given.all();
        let known = self.files.iter().chain(&given);
        let shown = self.shake(name, &[ECDSA, ED25519], &[]).unwrap();
        let found = known.clone().find(|it| it.key.cert[0] == shown).unwrap();
        found.label.clone()
    }

    fn shake(
        &self,
        name: &str,
        schemes: &[SignatureScheme],
        protocols: &[&[u8]],
    ) -> Result<CertificateDer<'static>, Error> {
        let verifier = Arc::new(Anything(schemes.to_vec()));
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.enable_sni = !name.is_empty();
        config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
        let name = if name.is_empty() { "nobody" } else { name }.to_owned();
        let name = ServerName::try_from(name).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut server = ServerConnection::new(Arc::clone(&self.config)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(client.peer_certificates().unwrap()[0].clone().into_owned())
    }
}

/// Catches: a client that gets the certificate of another name, a star that stands for two levels
/// or for none, a client without a name that gets nothing.
#[test]
fn a_client_gets_the_certificate_for_its_name() {
    let gateway = Gateway::new(vec![
        certificate("first", &["a.example"]),
        certificate("stars", &["*.example", "*.b.example"]),
        certificate("second", &["c.example", "x.b.example"]),
    ]);
    for (name, label) in [
        ("a.example", "first"),
        ("A.Example", "first"),
        ("c.example", "second"),
        ("d.example", "stars"),
        ("x.b.example", "second"),
        ("y.b.example", "stars"),
        ("b.example", "stars"),
        ("z.y.b.example", "first"),
        ("example", "first"),
        ("elsewhere.test", "first"),
        ("192.0.2.1", "first"),
        ("", "first"),
    ] {
        assert_eq!(gateway.shown(name), label, "{name:?}");
    }
}

/// Catches: a certificate that came at run time and is not shown, one that hides that of a file, an
/// old one that stays beside its successor.
#[test]
fn what_comes_at_run_time_is_shown_at_once() {
    let gateway = Gateway::new(vec![certificate("file", &["a.example", "*.b.example"])]);
    gateway.given.put(&certificate("given", &["a.example", "x.b.example", "c.example"]));
    let shown = ["a.example", "x.b.example", "y.b.example", "c.example", ""];
    assert_eq!(shown.map(|it| gateway.shown(it)), ["file", "given", "file", "given", "file"]);
    let before = gateway.shake("c.example", &[ECDSA], &[]).unwrap();
    gateway.given.put(&certificate("given", &["c.example"]));
    assert_ne!(gateway.shake("c.example", &[ECDSA], &[]).unwrap(), before);
    assert_eq!((gateway.given.all().len(), gateway.shown("x.b.example")), (1, "file".into()));
    gateway.given.take_away("given");
    assert_eq!(gateway.shown("c.example"), "file");
}

/// Catches: a gateway without files that shows nothing although it has something, and one that has
/// nothing and does not say so.
#[test]
fn without_files_the_first_given_one_is_for_all() {
    let gateway = Gateway::new(Vec::new());
    assert!(gateway.shake("a.example", &[ECDSA], &[]).is_err());
    gateway.given.put(&certificate("given", &["a.example"]));
    assert_eq!([gateway.shown("elsewhere.test"), gateway.shown("")], ["given", "given"]);
}

/// Catches: a client that is shown a signature that it cannot check, though there is another.
#[test]
fn of_two_for_a_name_a_client_gets_the_one_it_can_check() {
    let new = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let new = made_with(&new, "new", &["a.example"]);
    let old = certificate("old", &["a.example"]);
    let gateway = Gateway::new(vec![Arc::clone(&new), Arc::clone(&old)]);
    for (schemes, shown) in [(&[ECDSA, ED25519][..], &new), (&[ED25519], &new), (&[ECDSA], &old)] {
        assert_eq!(gateway.shake("a.example", schemes, &[]).unwrap(), shown.key.cert[0]);
        assert_eq!(gateway.shake("", schemes, &[]).unwrap(), shown.key.cert[0], "no name");
    }
}

/// Catches: an authority that looks whether a name is ours and gets the usual certificate, a client
/// that gets what is for the authority, a challenge that stays.
#[test]
fn an_authority_is_shown_its_own_certificate() {
    let gateway = Gateway::new(vec![certificate("file", &["a.example"])]);
    let only: &[&[u8]] = &[CHALLENGE_PROTOCOL];
    let usual = gateway.shake("a.example", &[ECDSA], &[b"http/1.1"]).unwrap();
    assert!(gateway.shake("a.example", &[ECDSA], only).is_err(), "nobody asked for it");
    let proof = certificate("proof", &["a.example"]);
    gateway.given.put_challenge("A.example", &proof.key);
    assert_eq!(gateway.shake("a.example", &[ECDSA], only).unwrap(), proof.key.cert[0]);
    assert!(gateway.shake("b.example", &[ECDSA], only).is_err(), "another name");
    let http: &[u8] = b"http/1.1";
    for protocols in [&[][..], &[http], &[CHALLENGE_PROTOCOL, http]] {
        assert_eq!(gateway.shake("a.example", &[ECDSA], protocols).unwrap(), usual);
    }
    gateway.given.end_challenge("a.example");
    assert!(gateway.shake("a.example", &[ECDSA], only).is_err(), "it is over");
}

/// Catches: a table of challenges that grows without end.
#[test]
fn challenges_are_bounded() {
    let (given, proof) = (GivenCertificates::default(), certificate("proof", &["a.example"]));
    for n in 0..CHALLENGES_MAX + 5 {
        given.put_challenge(&format!("{n}.example"), &proof.key);
    }
    let challenges = given.0.load().challenges.clone();
    assert_eq!((challenges.len(), challenges[0].0.as_str()), (CHALLENGES_MAX, "5.example"));
}
