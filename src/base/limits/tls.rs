//! Of TLS towards clients.

/// Bytes that a client sends in its TLS handshake, certificates included. Beyond: it is closed.
pub const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;
/// TLS handshakes of a worker at one time. Beyond: the one that has said nothing for longest gives
/// way, or the newcomer is closed; either is counted.
pub const HANDSHAKES_MAX: usize = 1024;
/// Entries of `server.listeners`, each with a listener of each worker or one for all. Beyond: the
/// configuration is refused.
pub const CLIENT_LISTENERS_MAX: usize = 64;
/// Certificates that a configuration may name for its clients. Beyond: refused.
pub const CERTIFICATES_MAX: usize = 1000;
/// Names for which certificates are fetched, each with a certificate of its own. Beyond: the
/// configuration is refused.
pub const ACME_DOMAINS_MAX: usize = 100;
/// Names that an authority looks at by TLS at one time. Beyond: the oldest are forgotten.
pub const CHALLENGES_MAX: usize = 100;
