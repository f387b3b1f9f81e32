//! Other people's servers: connecting to them, and what it takes to stay connected.
//!
//! *Takes:* where a server is and who we are there, and a time limit for each call. *Gives:*
//! connections that are made when they are needed and given up when they break, and a [`Trouble`]
//! in words where something failed. *Runs on:* threads that may block: those of reporters, and of
//! other parts of the control plane. *May:* block, connect, look names up, read certificates.
//! *Never:* runs on a worker, knows what it carries, says a password.
//!
//! Who uses a connection brings the statements or the requests, and decides what an answer means.

pub mod dns;
pub mod http;
pub mod names;
pub mod redis;
#[cfg(feature = "sql")]
pub mod sql;
#[cfg(feature = "acme")]
pub mod web;

use std::time::{Duration, Instant};

/// Why a call came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Whatever was asked, it may be over later; why.
    Later(String),
    /// What was sent is at fault: the server does not take these very values; why.
    Data(String),
}

impl Trouble {
    /// There is no connection.
    pub fn closed() -> Trouble {
        Trouble::Later("it is closed".to_owned())
    }

    /// The time is over.
    pub fn late() -> Trouble {
        Trouble::Later("it did not answer in time".to_owned())
    }

    /// Why, in words for a person.
    pub fn into_words(self) -> String {
        match self {
            Trouble::Later(cause) | Trouble::Data(cause) => cause,
        }
    }
}

/// The time that is left.
///
/// # Errors
/// None is.
pub fn left(until: Instant) -> Result<Duration, Trouble> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Trouble::late());
    }
    Ok(left)
}
