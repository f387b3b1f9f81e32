//! What a panic leaves behind, wherever in a request it happens.

use super::super::*;
use crate::base::limits::UNPACKING_MAX;
use crate::config::plan::OnSpoolFailure;
use crate::proxy::drains::Drains;
use crate::proxy::shelf::Shelf;
use crate::proxy::slices::Slices;
use crate::proxy::turns::Turns;
use crate::proxy::upstream::pool::InFlight;
use crate::proxy::upstreams::Upstreams;
use crate::rt;
use crate::rt::guard::guarded;
use crate::rt::patrol::Patrol;
use crate::rt::ring::Ring;
use crate::state::board::Board;
use crate::state::connections::Connections;
use crate::usage::counters::UsageCounters;
use crate::usage::outbox::Outbox;
use crate::usage::record::Outcome;
use crate::usage::ring::file::RingFile;
use crate::usage::ring::spsc::{Consumer, Taken};
use crate::usage::spool::codec;
use crate::usage::spool::segment::Kind;
use crate::usage::spool::state::SpoolState;
use crate::usage::unpacker::Unpacker;
use std::cell::Cell;
use std::sync::Arc;

/// What a worker of one backend shares, and its journal ring.
fn shared() -> (Rc<Shared>, Arc<RingFile>) {
    let ring = Arc::new(RingFile::anonymous(1 << 16).unwrap());
    let state = Arc::new(SpoolState::new(OnSpoolFailure::Serve, &[]));
    let counters = Arc::new(UsageCounters::new(&[]));
    let outbox = Outbox::new(ring.clone(), Arc::default(), counters, state);
    let shared = Shared {
        shelf: Shelf::new(1),
        upstreams: Upstreams::new(Arc::new(Board::sample(1)), 0),
        patrol: Patrol::start().unwrap(),
        unpacking: Turns::new(UNPACKING_MAX),
        slices: Slices::default(),
        usage: Some(outbox),
        access: None,
        unpacker: Unpacker::start().unwrap(),
        drains: Rc::new(Drains::default()),
        connections: Arc::new(Connections::new(9)),
        stop: Arc::default(),
        pages: crossbeam_channel::bounded(1).0,
        live: Cell::new(0),
        active: Rc::default(),
    };
    (Rc::new(shared), ring)
}

/// How far a request came.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Idle,
    Admitted,
    Opened,
    Exchanging,
    Relaying,
    Closed,
    Settled,
}

/// A request that comes so far, and then panics.
async fn panics_at(w: Rc<Shared>, stage: Stage) {
    let live = w.enter_live();
    let mut talk = Talk::new(Request::new(w.shelf.next_id(), "192.0.2.7".into()));
    if stage == Stage::Idle {
        panic!("idle");
    }
    let pass = talk.pass.insert(Pass::new(&w));
    if stage == Stage::Admitted {
        panic!("admitted");
    }
    let backend = Rc::clone(&pass.view.members[0]);
    talk.story.backend = Some(Rc::clone(&backend));
    assert!(crate::proxy::settle::open(pass, &talk.request, &mut talk.story));
    let inflight = InFlight::enter(&backend);
    if matches!(stage, Stage::Opened | Stage::Exchanging) {
        panic!("exchanging");
    }
    // A borrow that is alive while the panic passes by.
    let _meters = (stage == Stage::Relaying).then(|| w.shelf.meters.borrow_mut());
    if stage == Stage::Relaying {
        panic!("relaying");
    }
    crate::proxy::settle::close(pass, (&talk.request, &talk.tap), &mut talk.story, 0);
    if stage == Stage::Closed {
        panic!("closed");
    }
    talk.settle();
    drop(inflight);
    rt::sleep(std::time::Duration::ZERO).await;
    drop(live);
    panic!("settled");
}

/// The ends that the journal finds: outcome and error.
fn ends(ring: Arc<RingFile>) -> Vec<(Outcome, Option<String>)> {
    let (mut taken, mut ring) = (Taken::default(), Consumer::new(ring));
    ring.take(&mut taken);
    let closes = taken.walk().filter(|entry| entry.header.kind == Kind::Close.byte());
    let record = |payload: &[u8]| codec::decode(payload).unwrap();
    let told = closes.map(|entry| record(entry.payload));
    told.map(|record| (record.outcome, record.error.map(|error| error.into_owned()))).collect()
}

/// Catches: a request that no record is made of, or two, because of a panic; a place, a request in
/// flight or an active one that is counted for ever.
#[test]
fn a_panic_leaves_one_record_and_holds_nothing() {
    let aborted = || vec![(Outcome::Aborted, Some("internal_error".to_owned()))];
    for (stage, wanted) in [
        (Stage::Idle, vec![]),
        (Stage::Admitted, vec![]),
        (Stage::Opened, aborted()),
        (Stage::Exchanging, aborted()),
        (Stage::Relaying, aborted()),
        (Stage::Closed, vec![(Outcome::Complete, None)]),
        (Stage::Settled, vec![(Outcome::Complete, None)]),
    ] {
        Ring::build().unwrap().block_on(async move {
            let (w, ring) = shared();
            assert!(!guarded(Box::pin(panics_at(Rc::clone(&w), stage))).await, "{stage:?}");
            assert_eq!(ends(ring), wanted, "{stage:?}");
            let inflight = w.view().members[0].inflight();
            assert_eq!((inflight, w.active.get(), w.live.get()), (0, 0, 0), "{stage:?}");
        });
    }
}
