use super::*;
use crate::base::id::RequestId;
use crate::config::plan::Spool;
use crate::usage::source::Source;
use crate::usage::spool::{open_planned, Opened};
use crossbeam_channel::unbounded;

/// A piece of a worker.
struct Said(Kind, UsageRecord, usize, u64);

impl Piece for Said {
    fn kind(&self) -> Kind {
        self.0
    }
    fn record(&mut self) -> &UsageRecord {
        assert_ne!(self.1.request_id.as_str(), "panic", "as asked");
        &self.1
    }
    fn ticket(&self) -> (usize, u64) {
        (self.2, self.3)
    }
}

struct Told {
    tickets: Sender<(usize, u64)>,
    spares: Sender<Said>,
}

impl Ends<Said> for Told {
    fn acknowledge(&mut self, worker: usize, ticket: u64) {
        self.tickets.send((worker, ticket)).unwrap();
    }
    fn spare(&mut self, piece: Said) {
        self.spares.send(piece).unwrap();
    }
}

fn said(kind: Kind, id: &str, worker: usize, ticket: u64) -> Said {
    let request_id = RequestId::from_client(id.as_bytes()).unwrap();
    Said(kind, UsageRecord { request_id, ..UsageRecord::default() }, worker, ticket)
}

/// Catches: a ticket that is told before its record can be read, a worker that is never told, a
/// box that does not come back, and a panic that ends the thread.
#[test]
fn what_is_acknowledged_can_be_read() {
    let plan = Spool { enabled: false, ..Spool::default() };
    let names = ["a".to_owned()];
    let Opened { writer, keeper, mut cursors, state } = open_planned(&plan, &names).unwrap();
    let cursor = &mut cursors[0];
    let (inbox, pieces) = unbounded();
    let ((tickets, told), (spares, spared)) = (unbounded(), unbounded());
    let journal = Journal::start(pieces, writer, keeper, Told { tickets, spares }).unwrap();
    inbox.send(said(Kind::Open, "x", 3, 1)).unwrap();
    assert_eq!(told.recv().unwrap(), (3, 1));
    assert!(cursor.read(9).is_empty(), "it has no end yet");
    inbox.send(said(Kind::Close, "x", 3, 2)).unwrap();
    assert_eq!(told.recv().unwrap(), (3, 2));
    let read = cursor.read(9);
    assert_eq!(read.len(), 1);
    cursor.done(read[0].seq);
    inbox.send(said(Kind::Close, "panic", 4, 1)).unwrap();
    assert_eq!(told.recv().unwrap(), (4, 1), "nobody waits for it in vain");
    for ticket in 3..503 {
        inbox.send(said(Kind::Close, "y", (ticket % 2) as usize, ticket)).unwrap();
    }
    journal.stop();
    let last = |worker| told.try_iter().filter(|(w, _)| *w == worker).map(|(_, t)| t).last();
    assert_eq!(last(0), Some(502), "all that was handed over before the stop");
    assert_eq!(cursor.read(1000).len(), 500);
    assert_eq!(spared.len(), 502, "all but the one that panicked");
    assert_eq!(state.dropped.load(std::sync::atomic::Ordering::Relaxed), 0);
}
