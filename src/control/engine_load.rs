//! Engines' own figures of their load, for backends whose `metrics` say so: a task for each on the
//! control plane's ring, which reads a page once a second; where there are many, they take turns.
//! An engine that hangs, or answers with something else, is asked less and less often, and is
//! balanced by our own requests alone.

use super::health::in_between;
use super::visit;
use crate::base::limits::{
    ENGINE_LOADS_READ_MAX, ENGINE_LOAD_BYTES_MAX, ENGINE_LOAD_INTERVAL, ENGINE_LOAD_INTERVAL_MAX,
};
use crate::config::plan::{Engine, EngineMetrics};
use crate::http::request::Method;
use crate::llm::engine_load::{self, EngineLoad};
use crate::rt;
use crate::rt::guard::guarded;
use crate::rt::turns::Turns;
use crate::state::board::{Board, View};
use crate::state::member::{now, Member, MemberId};
use crate::state::reported::Shown;
use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The readers that run, on the current ring.
pub struct LoadReaders {
    board: Arc<Board>,
    running: Rc<RefCell<HashSet<MemberId>>>,
    turns: Rc<Turns>,
    /// The view that was looked at last. Does not keep it: what a view holds goes with it.
    seen: RefCell<Weak<View>>,
}

impl LoadReaders {
    /// None yet.
    pub fn new(board: Arc<Board>) -> LoadReaders {
        LoadReaders {
            board,
            running: Rc::default(),
            turns: Rc::new(Turns::new(ENGINE_LOADS_READ_MAX)),
            seen: RefCell::default(),
        }
    }

    /// To be called when there may be another view. Starts a task for each backend of the view
    /// that is to be read and has none. It ends when the backend is in none, or not to be read.
    pub fn look(&self) {
        let view = self.board.view();
        if std::ptr::eq(self.seen.borrow().as_ptr(), Arc::as_ptr(&view)) {
            return;
        }
        self.seen.replace(Arc::downgrade(&view));
        for id in view.members().iter().map(|member| member.id()) {
            if to_read(&view, id).is_some() && self.running.borrow_mut().insert(id) {
                let (board, turns) = (Arc::clone(&self.board), Rc::clone(&self.turns));
                let running = Rc::clone(&self.running);
                rt::spawn(async move {
                    // Those that begin together are not to go on in step.
                    rt::sleep(in_between(Duration::ZERO, ENGINE_LOAD_INTERVAL)).await;
                    while !guarded(follow(&board, &turns, id)).await {
                        tracing::error!("a reader of engines' figures panicked and starts again");
                        rt::sleep(ENGINE_LOAD_INTERVAL).await;
                    }
                    running.borrow_mut().remove(&id);
                });
            }
        }
    }
}

/// The backend, if it is to be read.
fn to_read(view: &View, id: MemberId) -> Option<Arc<Member>> {
    let member = view.in_use(id)?;
    (member.plan.metrics != EngineMetrics::Off).then(|| Arc::clone(member))
}

async fn follow(board: &Board, turns: &Turns, id: MemberId) {
    let (mut failures, mut is_told) = (0, false);
    while let Some(member) = to_read(&board.view(), id) {
        let began = Instant::now();
        // Who waits for one has not failed.
        let turn = turns.take().await;
        let (read, backend) = (read(&member).await, &*member.name);
        drop(turn);
        match read {
            None => failures = u32::MAX,
            Some(Ok(())) => {
                failures = 0;
                if std::mem::take(&mut is_told) {
                    tracing::info!(backend, "the engine's figures of its load can be read");
                }
            }
            Some(Err(why)) => {
                failures = failures.saturating_add(1);
                if !std::mem::replace(&mut is_told, true) {
                    let message = "the engine's figures of its load cannot be read";
                    tracing::warn!(backend, %why, "{message}");
                }
            }
        }
        drop(member);
        rt::sleep(pause(failures).saturating_sub(began.elapsed())).await;
    }
}

/// From the beginning of one reading to that of the next, after so many that failed in a row.
fn pause(failures: u32) -> Duration {
    let doubled = ENGINE_LOAD_INTERVAL.saturating_mul(1 << failures.min(10));
    doubled.min(ENGINE_LOAD_INTERVAL_MAX)
}

/// Reads once. `None`: it is an engine that has no figures.
async fn read(member: &Member) -> Option<Result<(), String>> {
    let path = match &member.plan.metrics {
        EngineMetrics::Off => return None,
        EngineMetrics::Auto if member.engine() == Engine::Ollama => return None,
        EngineMetrics::Auto => EngineMetrics::PATH,
        EngineMetrics::Path(path) => path,
    };
    // Those that come and go while it counts count as ours.
    let ours = member.inflight();
    let read = rt::await_peer(ENGINE_LOAD_INTERVAL, fetch(member, path)).await;
    let read = read.unwrap_or_else(|| Err("no answer within a second".into()));
    let reported = member.reported();
    Some(match read {
        Ok(EngineLoad { running, waiting, cache }) => {
            let ours = ours.max(member.inflight());
            reported.hear(Shown { running, waiting, cache }, ours, now());
            Ok(())
        }
        Err(why) => {
            reported.hear_nothing();
            Err(why)
        }
    })
}

async fn fetch(member: &Member, path: &str) -> Result<EngineLoad, String> {
    let mut link = visit::open(member, ENGINE_LOAD_INTERVAL).await?;
    visit::send(&mut link, member, ("GET", path), "metrics").await?;
    let mut bytes = Vec::new();
    let head = visit::read_head(&mut link, Method::Get, &mut bytes).await?;
    match head.status {
        200 if head.encoded => return Err("the answer is packed, unasked".into()),
        200 => {}
        501 => {
            return Err("status 501 (llama.cpp has figures when it is run with --metrics)".into())
        }
        status => return Err(format!("status {status}")),
    }
    let page = visit::read_body(&mut link, &head, bytes, ENGINE_LOAD_BYTES_MAX).await?;
    engine_load::read(&page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: an engine without figures that is asked once a second for ever; a wait that grows
    /// beyond all measure.
    #[test]
    fn what_fails_is_tried_less_often() {
        let waits = [0, 1, 2, 4, 5, 40, u32::MAX].map(|failures| pause(failures).as_secs());
        assert_eq!(waits, [1, 2, 4, 16, 30, 30, 30]);
    }
}
