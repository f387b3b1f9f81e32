//! Certificates from an authority that speaks ACME (RFC 8555), such as Let's Encrypt: fetched
//! before there are any, and renewed in time.
//!
//! *Takes:* `server.tls.acme` of the plan, and what is on the disk. *Gives:* certificates to the
//! TLS listener, files, figures. *Runs on:* two threads of its own: `acme`, which orders one
//! certificate after the other, and `acme-http`, which answers the authority's questions. *May:*
//! block, connect, write files, wait for minutes. *Never:* runs on a worker, takes a certificate
//! away that is in use, says a key.
//!
//! Several instances may share the folder, over a network too. Whoever orders holds its lock; the
//! others find the certificate there. Tokens of challenges lie there as well, so that whichever
//! instance the authority asks can answer.

#[cfg(feature = "acme")]
mod advice;
#[cfg(feature = "acme")]
mod challenge;
#[cfg(feature = "acme")]
mod folder;
#[cfg(feature = "acme")]
mod http;
#[cfg(feature = "acme")]
mod keeper;
#[cfg(not(feature = "acme"))]
mod none;
mod numbers;
#[cfg(feature = "acme")]
mod order;
#[cfg(feature = "acme")]
mod pair;
#[cfg(feature = "acme")]
mod pause;
#[cfg(feature = "acme")]
mod web;

#[cfg(feature = "acme")]
pub use keeper::{look, start, AcmeRun};
#[cfg(not(feature = "acme"))]
pub use none::{look, start, NoAcme as AcmeRun};
pub use numbers::AcmeNumbers;
