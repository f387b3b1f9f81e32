//! The client's side of TLS over a socket of [`net`](crate::net). It takes any certificate: what is
//! tested is a listener of our own, whose certificate was made a moment ago.

use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{ring, verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

/// Bytes that are taken before the socket has taken those of before.
const AHEAD_MAX: usize = 64 << 10;

/// One session.
pub struct Session(ClientConnection);

impl Session {
    /// One that has not said anything.
    ///
    /// # Errors
    /// The library's.
    pub fn new() -> io::Result<Self> {
        static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
        let config = match CONFIG.get() {
            Some(config) => config,
            None => {
                let made = Arc::new(config().map_err(io::Error::other)?);
                CONFIG.get_or_init(|| made)
            }
        };
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        Ok(Session(session))
    }

    /// The peer has not shown yet who it is.
    pub fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Something waits for the socket.
    pub fn wants_write(&self) -> bool {
        self.0.wants_write()
    }

    /// Bytes are here that can be read without the socket.
    pub fn has_read(&mut self) -> bool {
        self.0.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
    }

    /// Takes what the socket has, and understands it.
    ///
    /// # Errors
    /// The socket's, `WouldBlock` among them, and what is no TLS.
    pub fn receive(&mut self, socket: &mut dyn Read) -> io::Result<()> {
        self.0.read_tls(socket)?;
        self.0.process_new_packets().map(drop).map_err(io::Error::other)
    }

    /// Gives the socket what waits for it.
    ///
    /// # Errors
    /// The socket's; `WouldBlock`: some waits on.
    pub fn send(&mut self, socket: &mut dyn Write) -> io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(socket)?;
        }
        Ok(())
    }

    /// Reads what is there; `WouldBlock` when nothing is, 0 at the peer's end.
    ///
    /// # Errors
    /// The socket's, and `UnexpectedEof` where the connection ends without the peer's word.
    pub fn read(&mut self, socket: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.reader().read(into) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.receive(socket)?,
                read => return read,
            }
        }
    }

    /// Takes what there is room for, and gives the socket what it takes; `WouldBlock` when there is
    /// none.
    ///
    /// # Errors
    /// The socket's.
    pub fn write(&mut self, socket: &mut dyn Write, bytes: &[u8]) -> io::Result<usize> {
        self.send(socket)?;
        let taken = bytes.get(..AHEAD_MAX.min(bytes.len())).unwrap_or_default();
        let taken = self.0.writer().write(taken)?;
        match self.send(socket) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
            _ => Ok(taken),
        }
    }
}

fn config() -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(config)
}

/// Trusts whoever holds the key of the certificate that it shows.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
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
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
