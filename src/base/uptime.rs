//! A clock for what is kept in a few bytes, and what threads tell each other: the time since this
//! process first asked for it.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The time since this was first asked.
pub fn uptime() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// A moment, in milliseconds of [`uptime`]. It begins anew after 49 days, so only ages of less can
/// be told.
#[derive(Debug, Clone, Copy)]
pub struct Uptime(u32);

impl Uptime {
    /// Now.
    pub fn now() -> Uptime {
        Uptime(uptime().as_millis() as u32)
    }

    /// The time since then, rounded to milliseconds.
    pub fn age(self) -> Duration {
        let age = Uptime::now().0.wrapping_sub(self.0);
        Duration::from_millis(age.into())
    }
}
