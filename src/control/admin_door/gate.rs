//! The gate of the admin API on the main port: workers ask here whether somebody may ask. A thread
//! of its own, which never waits for anything else: one guard for all workers, without a lock.

use super::{AdminNumbers, Guard};
use crate::base::limits::ADMIN_WAITING_MAX;
use crate::control::survive;
use crate::state::admin_desk::{Stranger, Verdict};
use crate::state::ask::{self, Ask, Questions};
use crate::state::board::Board;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// It looks so often whether anybody who could ask is left.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Starts the thread, which ends with the last who can ask.
///
/// # Errors
/// There can be no thread.
pub fn open(board: &Arc<Board>, numbers: &Arc<AdminNumbers>) -> io::Result<Ask<Stranger, Verdict>> {
    let (gate, strangers) = ask::queue(ADMIN_WAITING_MAX);
    let (board, numbers) = (Arc::clone(board), Arc::clone(numbers));
    let body = move || {
        let guard = Guard::new(board, numbers);
        let mut next = ControlFlow::Continue(());
        while next.is_continue() {
            survive("admin", || next = judge_some(&guard, &strangers));
        }
    };
    std::thread::Builder::new().name("admin-gate".into()).spawn(body)?;
    Ok(gate)
}

/// Judges those who wait. A break: nobody can ask any more.
fn judge_some(guard: &Guard, strangers: &Questions<Stranger, Verdict>) -> ControlFlow<()> {
    let Some(taken) = strangers.take(Instant::now() + LOOK_EVERY, ADMIN_WAITING_MAX) else {
        return ControlFlow::Break(());
    };
    for (Stranger { peer, shown }, reply) in taken {
        let shown: Vec<&[u8]> = shown.iter().map(Vec::as_slice).collect();
        // Whoever has left misses nothing.
        let _ = reply.send(guard.check_shown(peer, &shown));
    }
    ControlFlow::Continue(())
}
