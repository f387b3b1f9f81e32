//! The rules that every key is held to, whoever knows it, before any script is asked.

use super::facts::KeyFacts;
use crate::config::plan::KeyState;
use jiff::Timestamp;
use std::net::IpAddr;

/// The moment and the client of a request, and what its key has used.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// By the wall clock.
    pub now: Timestamp,
    /// Where the client is; `None` when that is not known, which no list of addresses lets in.
    pub client: Option<IpAddr>,
    /// Tokens of the quota that are used by now.
    pub used_quota: u64,
}

/// Why a key that a provider knows may not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// Somebody switched it off.
    Disabled,
    /// Its life has not begun.
    NotActive,
    /// Its life is over.
    Expired,
    /// Not from this address.
    Address,
    /// The tokens of its period are used up.
    Quota,
    /// Its prepaid money is used up.
    Balance,
    /// Its provider says that it is none.
    Unknown,
}

impl Denial {
    /// The state of the key that it stands for, by which `auth.status_codes` names an answer.
    pub fn state(self) -> Option<KeyState> {
        match self {
            Denial::Disabled => Some(KeyState::Disabled),
            Denial::Expired => Some(KeyState::Expired),
            Denial::Quota | Denial::Balance => Some(KeyState::QuotaExceeded),
            Denial::Unknown => Some(KeyState::NotFound),
            Denial::NotActive | Denial::Address => None,
        }
    }
}

/// Whether a key may be used. The first rule that it breaks is the answer: its state, its time, the
/// address of its client, its quota, its balance.
///
/// # Errors
/// It may not.
pub fn check(facts: &KeyFacts, at: &Circumstances) -> Result<(), Denial> {
    match facts.status {
        KeyState::Active => {}
        KeyState::Disabled => return Err(Denial::Disabled),
        KeyState::Expired => return Err(Denial::Expired),
        KeyState::QuotaExceeded => return Err(Denial::Quota),
        KeyState::NotFound => return Err(Denial::Unknown),
    }
    if facts.starts_at.is_some_and(|start| at.now < start) {
        return Err(Denial::NotActive);
    }
    if facts.expires_at.is_some_and(|end| at.now >= end) {
        return Err(Denial::Expired);
    }
    if !may_come_from(facts, at.client) {
        return Err(Denial::Address);
    }
    if facts.total_quota > 0 && at.used_quota >= facts.total_quota {
        return Err(Denial::Quota);
    }
    // What is no number is no money.
    if facts.balance.is_some_and(|balance| balance.is_nan() || balance <= 0.0) {
        return Err(Denial::Balance);
    }
    Ok(())
}

/// Denied addresses first; an empty list of allowed ones means all that are left.
fn may_come_from(facts: &KeyFacts, client: Option<IpAddr>) -> bool {
    if !asks_for_address(facts) {
        return true;
    }
    let Some(client) = client else { return false };
    let is_in = |list: &[crate::config::plan::IpRange]| list.iter().any(|r| r.contains(client));
    !is_in(&facts.denied_ips) && (facts.allowed_ips.is_empty() || is_in(&facts.allowed_ips))
}

/// Whether it matters where the client of a key is.
pub fn asks_for_address(facts: &KeyFacts) -> bool {
    !(facts.denied_ips.is_empty() && facts.allowed_ips.is_empty())
}

/// Whether a key may ask this model: by the name that its client uses, or by the one that engines
/// know. A request that names none has the empty name, which no list but one with `*` covers.
pub fn may_ask(facts: &KeyFacts, asked: &str, served: &str) -> bool {
    let covers = |pattern: &crate::config::plan::ModelPattern| {
        pattern.matches(asked) || pattern.matches(served)
    };
    facts.allowed_models.is_empty() || facts.allowed_models.iter().any(covers)
}

#[cfg(test)]
mod tests;
