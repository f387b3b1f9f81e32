//! What an auditor of TLS looks at: versions and ciphers that must not be spoken are not, whoever
//! asks for them, and those that must be are.

use crate::clients::is_there;
use crate::harness::tls::Pki;
use crate::harness::{Backend, Config, Proxy, SOON};
use crate::rig::OK;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

const TLS_1_0: u16 = 0x0301;
const TLS_1_1: u16 = 0x0302;
const TLS_1_2: u16 = 0x0303;

fn serving(pki: &Pki) -> (Backend, Proxy) {
    let backend = Backend::answering(OK);
    let mut proxy = Config::backend_at(backend.url()).server(pki.server_line("")).start();
    proxy.tls = Some(pki.client());
    (backend, proxy)
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// The first message of a client that knows one version, up to 1.2, and these ciphers.
fn hello(version: u16, ciphers: &[u16]) -> Vec<u8> {
    let ciphers: Vec<u8> = ciphers.iter().flat_map(|cipher| cipher.to_be_bytes()).collect();
    let groups = [0, 4, 0, 0x1d, 0, 0x17];
    let schemes = [0, 6, 4, 3, 8, 4, 4, 1];
    let extensions = [
        [&[0, 10][..], &with_length(&groups)].concat(),
        [&[0, 11][..], &with_length(&[1, 0])].concat(),
        [&[0, 13][..], &with_length(&schemes)].concat(),
        [&[0, 23][..], &with_length(&[])].concat(),
    ]
    .concat();
    let body = [
        &version.to_be_bytes()[..],
        &[7; 32],
        &[0],
        &with_length(&ciphers),
        &[1, 0],
        &with_length(&extensions),
    ]
    .concat();
    let message = [&[1, 0][..], &with_length(&body)].concat();
    [&[22, 3, 1][..], &with_length(&message)].concat()
}

/// What the gateway says first: the type of its record, and of the message in it.
fn answer(proxy: &Proxy, hello: &[u8]) -> [u8; 2] {
    let mut tcp = TcpStream::connect(proxy.addr()).unwrap();
    tcp.set_read_timeout(Some(SOON)).unwrap();
    tcp.write_all(hello).unwrap();
    let mut head = [0; 6];
    tcp.read_exact(&mut head).unwrap();
    [head[0], head[5]]
}

/// A handshake goes on with ServerHello; what is refused gets a fatal alert.
const GOES_ON: [u8; 2] = [22, 2];
const REFUSED: [u8; 2] = [21, 2];

/// Catches: a version or a cipher that is broken, or gives up what was recorded once a key leaks,
/// and that is spoken with whoever asks; and one of those that clients need that is not.
#[test]
fn what_is_broken_is_not_spoken() {
    const GOOD: u16 = 0xc02b; // ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    let pki = Pki::new();
    let (_backend, proxy) = serving(&pki);
    for good in [GOOD, 0xc02c, 0xcca9] {
        assert_eq!(answer(&proxy, &hello(TLS_1_2, &[good])), GOES_ON, "{good:#x}");
    }
    for (bad, name) in [
        (0xc007, "ECDHE_ECDSA_WITH_RC4_128_SHA"),
        (0x0005, "RSA_WITH_RC4_128_SHA"),
        (0xc008, "ECDHE_ECDSA_WITH_3DES_EDE_CBC_SHA"),
        (0x000a, "RSA_WITH_3DES_EDE_CBC_SHA"),
        (0xc006, "ECDHE_ECDSA_WITH_NULL_SHA"),
        (0x0002, "RSA_WITH_NULL_SHA"),
        (0x0003, "RSA_EXPORT_WITH_RC4_40_MD5"),
        (0x0014, "DHE_RSA_EXPORT_WITH_DES40_CBC_SHA"),
        (0xc018, "ECDH_anon_WITH_AES_128_CBC_SHA"),
        (0x009c, "RSA_WITH_AES_128_GCM_SHA256: no forward secrecy"),
        (0xc009, "ECDHE_ECDSA_WITH_AES_128_CBC_SHA"),
        (0xc023, "ECDHE_ECDSA_WITH_AES_128_CBC_SHA256"),
    ] {
        assert_eq!(answer(&proxy, &hello(TLS_1_2, &[bad])), REFUSED, "{name}");
        // Beside a good one it is not chosen; the choice is made by who serves.
        assert_eq!(answer(&proxy, &hello(TLS_1_2, &[bad, GOOD])), GOES_ON, "{name}");
    }
    for old in [TLS_1_0, TLS_1_1] {
        assert_eq!(answer(&proxy, &hello(old, &[GOOD, 0xc009, 0x002f])), REFUSED, "{old:#x}");
    }
    // SSL 2.0 had another form of record, and is not even TLS.
    let mut tcp = TcpStream::connect(proxy.addr()).unwrap();
    tcp.write_all(&[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80]).unwrap();
    let mut got = Vec::new();
    let _ = tcp.read_to_end(&mut got);
    assert_ne!(got.first(), Some(&22), "{got:?}");
}

/// Runs `openssl s_client`, which says this once it is connected.
fn s_client(pki: &Pki, proxy: &Proxy, more: &[&str], said: &str) -> String {
    let (address, authority) = (format!("localhost:{}", proxy.addr().port()), pki.path("ca.pem"));
    let mut child = Command::new("timeout")
        .args(["60", "openssl", "s_client", "-connect", &address, "-CAfile", &authority])
        .args(["-verify_return_error", "-servername", "localhost"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(said.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
}

/// Catches: a certificate or a handshake that OpenSSL, with which most clients are built, does not
/// take; one handshake more inside a connection, which has been a way to take over others'
/// requests.
#[test]
fn openssl_agrees() {
    if !is_there("openssl_agrees", Path::new("/usr/bin/openssl").exists()) {
        return;
    }
    let pki = Pki::new();
    let (_backend, proxy) = serving(&pki);
    let request = "GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let more = [version, "-ign_eof", "-alpn", "http/1.1", "-crlf"];
        let text = s_client(&pki, &proxy, &more, &request.replace("\r\n", "\n"));
        assert!(text.contains(&format!("New, {name}, Cipher is ")), "{text}");
        assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
        assert!(text.contains("ALPN protocol: http/1.1"), "{text}");
        assert!(text.contains("HTTP/1.1 200 OK"), "{text}");
    }
    // `R` alone in a line asks for a handshake within the connection.
    let text = s_client(&pki, &proxy, &["-tls1_2"], "R\n");
    assert!(text.contains("RENEGOTIATING"), "{text}");
    let refused = ["no renegotiation", "alert", "unexpected message", "closed"];
    let behind = text.split("RENEGOTIATING").nth(1).unwrap();
    assert!(refused.iter().any(|word| behind.contains(word)), "{text}");
}
