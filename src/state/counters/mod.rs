//! What keys, users, models and the whole have used: requests per time, tokens per time, requests
//! at one time, tokens of a period. It lies in mapped memory, so it holds across all workers,
//! across a kill, and for two processes at once during a hot restart. docs/limits.md says what
//! that promises.
//!
//! *Takes:* an id, a moment, a limit. *Gives:* yes, or how long to wait. *Runs on:* workers; at the
//! start, and now and then, a thread of the control plane. *May:* exchange words of mapped memory.
//! *Never:* locks, waits, allocates for a request, holds a pointer in what is mapped, trusts what
//! it finds there.

pub mod ids;
pub mod word;
pub mod bucket;
pub mod slots;
pub mod quota;
pub mod table;
pub mod shared;

#[cfg(test)]
mod tests;
