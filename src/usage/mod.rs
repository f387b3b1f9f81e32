//! stub
pub mod record;
pub mod outbox;
pub mod deliver;
