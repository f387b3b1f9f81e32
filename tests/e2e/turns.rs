//! Nothing that a client sends holds a worker for long: all its other connections have their turn.

use crate::harness::{Backend, Config, Conn};
use crate::rig::{CHATS, OK};

/// Keys with an escape, each of which must be looked at. In one go so many of them would take
/// seconds, and more than that together.
fn keys() -> String {
    const BYTES: usize = 4 << 20;
    let key = "\"\\n\":0,";
    format!("{{{}\"z\":0}}", key.repeat(BYTES / key.len()))
}

/// Catches: a worker that stands still while it reads bodies, and is taken for dead then.
#[test]
fn others_are_served_while_large_bodies_are_read() {
    let engine = Backend::answering(OK);
    let proxy = Config::backend_at(engine.url()).server("workers: 1").start();
    let body = keys();
    let mut senders: Vec<Conn> = std::iter::repeat_with(|| proxy.connect()).take(4).collect();
    for sender in &mut senders {
        sender.start_post(CHATS, "", &body);
    }
    assert_eq!(proxy.get("/health").status(), 200);
    for sender in &mut senders {
        assert_eq!(sender.response().status(), 200);
    }
    let read: Vec<_> = engine.requests().into_iter().map(|got| got.body.len()).collect();
    assert_eq!(read, [body.len(); 4]);
}
