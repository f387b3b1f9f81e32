//! Of the flight recorder, and what it shares with traces.

/// Stories of requests that a worker may keep: some 80 MB.
pub const FLIGHT_STORIES_MAX: u32 = 65_536;
/// Stories that are told at a time, the newest ones.
pub const FLIGHT_LISTED_MAX: usize = 1000;
/// Bytes of such an answer that the command line takes.
pub const FLIGHT_PAGE_BYTES_MAX: usize = 16 << 20;
/// Tries of one request that are noted, for its span and its story. Beyond: their number alone.
pub const SPAN_TRIES_MAX: usize = 16;
