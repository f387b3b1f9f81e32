//! One try at one backend: a connection (kept or fresh), the request sent, the head of the answer
//! read.
//!
//! *Takes:* a request and a backend's index. *Gives:* an [`exchange::Exchange`] or a fault that
//! says whether another try is allowed. *Runs on:* workers. *May:* wait on sockets, always attended
//! by the client's post: a client that leaves ends the try. *Never:* picks a backend, writes to a
//! client.

pub mod connect;
pub mod exchange;
pub mod peek;
pub mod pool;
