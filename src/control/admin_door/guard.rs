//! Who may ask the admin API over the network: whoever shows the token, from an address that may.

use super::{AdminAnswer, AdminNumbers, AdminResult};
use crate::base::limits::{ADMIN_FAILED_TRIES_MAX, ADMIN_THROTTLED_MAX};
use crate::config::plan::Admin;
use crate::http::admin_token;
use crate::http::request::RequestHead;
use crate::keys::digest::KeyDigest;
use crate::state::board::Board;
use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A failed try is forgiven after so long.
const FORGIVEN_AFTER: Duration = Duration::from_secs(6);

/// It goes by the configuration in use: a reload changes the token at once.
pub struct Guard {
    board: Arc<Board>,
    throttle: RefCell<Throttle>,
    numbers: Arc<AdminNumbers>,
}

impl Guard {
    /// Of a gateway; those who are refused are counted in `numbers`.
    pub fn new(board: Arc<Board>, numbers: Arc<AdminNumbers>) -> Guard {
        Guard { board, throttle: RefCell::default(), numbers }
    }

    /// Whether a client may ask: true when it may change something too. Else the answer to it.
    pub fn check(
        &self,
        peer: IpAddr,
        head: &RequestHead,
        bytes: &[u8],
    ) -> Result<bool, AdminAnswer> {
        self.check_shown(peer, &admin_token::shown(head, bytes))
    }

    /// The same of somebody who shows this for a token.
    pub fn check_shown(&self, peer: IpAddr, shown: &[&[u8]]) -> Result<bool, AdminAnswer> {
        let view = self.board.view();
        let Some(admin) = &view.plan.admin else {
            return Err(AdminAnswer::error(404, "not_found", "the admin API is off"));
        };
        self.judge(admin, peer, shown, Instant::now())
    }

    fn judge(
        &self,
        admin: &Admin,
        peer: IpAddr,
        shown: &[&[u8]],
        now: Instant,
    ) -> Result<bool, AdminAnswer> {
        let ips = &admin.allowed_ips;
        if !ips.is_empty() && !ips.iter().any(|range| range.contains(peer)) {
            self.numbers.note(AdminResult::IpNotAllowed);
            tracing::warn!(%peer, "admin: refused, not in admin.allowed_ips");
            let message = "this address may not ask";
            return Err(AdminAnswer::error(403, "ip_not_allowed", message));
        }
        let mut throttle = self.throttle.borrow_mut();
        if let Some(wait) = throttle.wait(peer, now) {
            self.numbers.note(AdminResult::Throttled);
            let seconds = wait.as_secs().saturating_add(1).to_string();
            let message = "too many wrong tokens from this address";
            let refused = AdminAnswer::error(429, "too_many_failed_tries", message);
            return Err(refused.with("Retry-After", seconds));
        }
        let token = KeyDigest::of(admin.token.reveal().as_bytes());
        // All that are shown, so that nobody tries several at a time.
        match shown.iter().all(|shown| KeyDigest::of(shown) == token) {
            true if !shown.is_empty() => Ok(!admin.read_only),
            is_bare => {
                self.numbers.note(match is_bare {
                    true => AdminResult::MissingToken,
                    false => AdminResult::InvalidToken,
                });
                if !is_bare {
                    throttle.note_failure(peer, now);
                    tracing::warn!(%peer, "admin: refused, a wrong token");
                }
                let (code, message) = match is_bare {
                    true => ("missing_token", "an admin token is needed: Authorization: Bearer"),
                    false => ("invalid_token", "this is not the admin token"),
                };
                let refused = AdminAnswer::error(401, code, message);
                Err(refused.with("WWW-Authenticate", "Bearer"))
            }
        }
    }
}

/// Addresses that have shown wrong tokens lately.
#[derive(Default)]
struct Throttle(Vec<(IpAddr, Instant)>);

impl Throttle {
    /// How long an address must not try; `None`: it may.
    fn wait(&self, peer: IpAddr, now: Instant) -> Option<Duration> {
        let (_, forgiven) = self.0.iter().find(|(known, _)| *known == net_of(peer))?;
        let most = FORGIVEN_AFTER * (ADMIN_FAILED_TRIES_MAX - 1);
        let wait = forgiven.saturating_duration_since(now).saturating_sub(most);
        Some(wait).filter(|wait| !wait.is_zero())
    }

    fn note_failure(&mut self, peer: IpAddr, now: Instant) {
        self.0.retain(|(_, forgiven)| *forgiven > now);
        let net = net_of(peer);
        if let Some((_, forgiven)) = self.0.iter_mut().find(|(known, _)| *known == net) {
            *forgiven += FORGIVEN_AFTER;
            return;
        }
        if self.0.len() == ADMIN_THROTTLED_MAX {
            let least = self.0.iter().enumerate().min_by_key(|(_, (_, forgiven))| *forgiven);
            if let Some((at, _)) = least {
                self.0.swap_remove(at);
            }
        }
        self.0.push((net, now + FORGIVEN_AFTER));
    }
}

/// Who has one IPv6 address has a network of them.
fn net_of(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V6(address) => {
            let net = u128::from(address) >> 64 << 64;
            Ipv6Addr::from(net).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::Parse;

    const TOKEN: &str = "the-right-token";

    fn guard() -> Guard {
        let board = Board::of(&format!("admin: {{enabled: true, token: {TOKEN}}}"));
        Guard::new(Arc::new(board), Arc::default())
    }

    fn admin(more: &str) -> Admin {
        let board = Board::of(&format!("admin: {{enabled: true, token: {TOKEN}{more}}}"));
        board.view().plan.admin.clone().unwrap()
    }

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn status(found: Result<bool, AdminAnswer>) -> u16 {
        found.map_or_else(|refused| refused.status, |_| 200)
    }

    /// Catches: a request without the token, or with another one beside it, that is let in.
    #[test]
    fn only_the_token_opens() {
        let guard = guard();
        for (n, (fields, wanted)) in [
            ("Authorization: Bearer the-right-token", 200),
            ("authorization: bearer   the-right-token", 200),
            ("X-Admin-Token: the-right-token", 200),
            ("X-Admin-Token: the-right-token\r\nAuthorization: Bearer the-right-token", 200),
            ("", 401),
            ("X-API-Key: the-right-token", 401),
            ("Authorization: the-right-token-", 401),
            ("Authorization: Basic the-right-token", 401),
            ("Authorization: Bearer", 401),
            ("Authorization: Bearer the-right-token, x", 401),
            ("X-Admin-Token: the-right-toke", 401),
            ("X-Admin-Token: THE-RIGHT-TOKEN", 401),
            ("X-Admin-Token:", 401),
            ("X-Admin-Token: the-right-token\r\nX-Admin-Token: x", 401),
            ("X-Admin-Token: x\r\nAuthorization: Bearer the-right-token", 401),
        ]
        .into_iter()
        .enumerate()
        {
            let end = if fields.is_empty() { "" } else { "\r\n" };
            let bytes = format!("GET /admin/stats HTTP/1.1\r\nHost: a\r\n{fields}{end}\r\n");
            let mut head = RequestHead::default();
            let parsed = head.parse(bytes.as_bytes(), 4096).unwrap();
            assert!(matches!(parsed, Parse::Done { .. }));
            let found = guard.check(ip(n as u8), &head, bytes.as_bytes());
            assert_eq!(status(found), wanted, "{fields}");
        }
    }

    /// Catches: an address that may try for ever, one that is shut out for another's tries or for
    /// ever, the right token that is let in between wrong ones, a table that grows.
    #[test]
    fn who_guesses_has_to_wait() {
        let (guard, admin, now) = (guard(), admin(""), Instant::now());
        let with = |n, shown: &str, at| status(guard.judge(&admin, ip(n), &[shown.as_bytes()], at));
        for _ in 0..ADMIN_FAILED_TRIES_MAX {
            assert_eq!(with(1, "wrong", now), 401);
        }
        assert_eq!((with(1, "wrong", now), with(1, TOKEN, now)), (429, 429));
        assert_eq!(with(2, TOKEN, now), 200);
        let later = now + FORGIVEN_AFTER;
        assert_eq!((with(1, "wrong", later), with(1, TOKEN, later)), (401, 429));
        assert_eq!(with(1, TOKEN, later + FORGIVEN_AFTER), 200);
        let bare = guard.judge(&admin, ip(3), &[], now);
        assert_eq!(status(bare), 401);
        assert!(guard.throttle.borrow().wait(ip(3), now).is_none(), "nothing was guessed");
        let mut throttle = Throttle::default();
        for n in 0..ADMIN_THROTTLED_MAX as u128 * 3 {
            throttle.note_failure(Ipv6Addr::from(n << 64).into(), now);
        }
        assert_eq!(throttle.0.len(), ADMIN_THROTTLED_MAX);
        (0..20).for_each(|n| throttle.note_failure(Ipv6Addr::from(7_u128 << 64 | n).into(), now));
        assert!(throttle.wait(Ipv6Addr::from(7_u128 << 64 | 99).into(), now).is_some());
        let wait = throttle.wait(Ipv6Addr::from(7_u128 << 64).into(), now).unwrap();
        throttle.note_failure(ip(9), now + wait + Duration::from_secs(600));
        assert_eq!(throttle.0.len(), 1, "the others are forgiven");
    }

    #[test]
    fn addresses_and_changes_may_be_refused() {
        let guard = guard();
        let some = admin(", allowed_ips: [192.0.2.7, 198.51.100.0/24], read_only: true");
        let from =
            |ip: &str| guard.judge(&some, ip.parse().unwrap(), &[TOKEN.as_bytes()], Instant::now());
        assert_eq!(from("192.0.2.7").ok(), Some(false), "nothing is changed");
        assert_eq!(from("198.51.100.9").ok(), Some(false));
        assert_eq!(status(from("192.0.2.8")), 403);
        assert_eq!(status(from("2001:db8::1")), 403);
    }
}
