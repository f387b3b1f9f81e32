//! *Takes:* facts from both planes. *Gives:* them to the other plane. *Runs on:* every thread.
//! *May:* use atomics and swap pointers. *Never:* makes a reader wait, allocates for a reader.

pub mod admin_desk;
pub mod ask;
pub mod certificates;
pub mod connections;
pub mod engine_cache;
pub mod counters;
pub mod member;
pub mod board;
pub mod fullness;
pub mod hash;
pub mod hop;
mod key_tables;
pub mod latency;
pub mod loans;
pub mod lookup;
pub mod meters;
pub mod token_sizes;
pub mod models;
pub mod prefixes;
pub mod model_list;
pub mod queues;
pub mod quota_clock;
pub mod reported;
pub mod repute;
pub mod scrape;
pub mod pulse;
pub mod stop;
pub mod wish;
