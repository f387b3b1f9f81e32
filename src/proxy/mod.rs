//! The data plane: one thread, one ring, no lock. A request walks this list from top to bottom.
//!
//! *Takes:* a board with a view, listeners. *Gives:* answers to clients, records to the outbox,
//! meters to a scrape. *Runs on:* worker threads. *May:* wait on sockets through `rt::patrol`,
//! allocate per request. *Never:* blocks, resolves a name, opens a file, takes a lock, talks to
//! `control`.

pub mod worker;
pub mod shared;
pub mod shelf;
pub mod upstreams;
pub mod view;
pub mod rules;
pub mod takings;
mod rate_fields;
pub mod pass;
pub mod place;
pub mod connection;
pub mod client;
mod pace;
pub mod receive;
pub mod unpack;
pub mod slices;
pub mod asking;
pub mod admit;
pub mod route;
pub mod queue;
pub mod retry_budget;
pub mod repute;
pub mod upstream;
pub mod relay;
pub mod location;
pub mod told;
pub mod trace;
mod flight;
mod whence;
pub mod settle;
pub mod sparing;
mod drains;
pub mod answer;
