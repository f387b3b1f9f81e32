//! *Takes / gives:* the words every room uses. *Runs on:* every thread. *May:* allocate for a
//! message that is about to be sent. *Never:* imports another room, waits, reads a clock unasked.

pub mod limits;
pub mod id;
pub mod span_id;
pub mod secret;
pub mod refusal;
pub mod fault;
pub mod clock;
pub mod utc;
pub mod word;
pub mod digits;
pub mod fnv;
pub mod fold;
pub mod line;
pub mod certificate;
pub mod tls_fault;
pub mod uptime;
pub mod panic_point;
