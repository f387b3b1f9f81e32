//! Metering at work, from its start to its end: the rings of the workers, the journal behind them,
//! and a lane for each reporter.

use super::supervisor::thread_error;
use crate::config::plan::Plan;
use crate::usage::counters::UsageCounters;
use crate::usage::deliver::Lanes;
use crate::usage::journal::Journal;
use crate::usage::outbox::{Gauge, Outbox};
use crate::usage::ring::file::RingFile;
use crate::usage::ring::place;
use crate::usage::spool::folders::{FolderWatch, Folders};
use crate::usage::spool::{self, Opened, Planned, Unwritten};
use crossbeam_channel::{bounded, RecvTimeoutError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What is queued for the reporters at the end gets so long to be delivered.
const FLUSH_TIME: Duration = Duration::from_secs(3);
/// And so long where there is no spool that keeps the rest.
const LAST_TIME: Duration = Duration::from_secs(10);
/// All that ends with the journal gets so much longer: its disk may not come back from a write.
const END_WAIT: Duration = Duration::from_secs(10);

/// An end for each worker, what shows how it goes, and the rest; all of it missing where there are
/// no reporters.
pub type Metering = (Vec<Outbox>, Option<Gauge>, Option<Delivery>);

/// Starts what the reporters of a plan need, if it has any.
///
/// # Errors
/// A line for a person.
pub fn start(plan: &Plan) -> Result<Metering, String> {
    if plan.usage.reporters.is_empty() {
        return Ok((Vec::new(), None, None));
    }
    open(plan).map(|(workers, gauge, delivery)| (workers, Some(gauge), Some(delivery)))
}

/// Opens the spool of a plan that has reporters, and starts what is behind the workers' rings.
fn open(plan: &Plan) -> Result<(Vec<Outbox>, Gauge, Delivery), String> {
    let reporters = &plan.usage.reporters;
    let names: Vec<String> = reporters.iter().map(|reporter| reporter.name.clone()).collect();
    let named = |error| format!("usage.spool: {error}");
    let planned = spool::open_planned(&plan.usage.spool, &names).map_err(named)?;
    let home = planned.own.path();
    let rings = place::make(&plan.usage.spool, home.as_deref(), plan.server.workers)
        .map_err(|error| format!("usage.spool.ring_dir: {error}"))?;
    let counters = Arc::new(UsageCounters::new(reporters));
    let (doorbell, state) = (Arc::clone(&planned.own.doorbell), Arc::clone(&planned.own.state));
    let end = |ring: &Arc<RingFile>| {
        let (doorbell, state) = (Arc::clone(&doorbell), Arc::clone(&state));
        Outbox::new(Arc::clone(ring), doorbell, Arc::clone(&counters), state)
    };
    let workers = rings.iter().map(end).collect();
    let gauge = Gauge::new(counters, rings.clone(), state);
    let delivery = Delivery::start(plan, rings, planned, &gauge)?;
    Ok((workers, gauge, delivery))
}

/// Metering at work: the journal, and a lane for each reporter.
pub struct Delivery {
    journal: Journal,
    lanes: Lanes,
    /// Of the folders of other processes; `None` without a disk.
    watch: Option<FolderWatch>,
    unwritten: Unwritten,
    gauge: Gauge,
    is_kept: bool,
    /// The folder of this process, where it has one.
    home: Option<PathBuf>,
}

impl Delivery {
    fn start(
        plan: &Plan,
        rings: Vec<Arc<RingFile>>,
        planned: Planned,
        gauge: &Gauge,
    ) -> Result<Self, String> {
        let Planned { own, sources, folders } = planned;
        let (unwritten, home) = (own.unwritten(), own.path());
        let Opened { writer, keeper, doorbell, .. } = own;
        let lanes = Lanes::start(sources, &plan.usage.reporters, gauge.counters())
            .map_err(|error| error.to_string())?;
        let journal = Journal::start((rings, doorbell), writer, keeper).map_err(thread_error)?;
        let watch = folders.map(Folders::start).transpose().map_err(thread_error)?;
        let (gauge, is_kept) = (gauge.clone(), plan.usage.spool.enabled);
        Ok(Delivery { journal, lanes, watch, unwritten, gauge, is_kept, home })
    }

    /// The folder of this process, where it has one.
    pub fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// Writes what is in the rings, and delivers for a while. A disk that does not come back ends
    /// with the process: all that was promised is in the rings or on the disk.
    pub fn finish(self) {
        let time = if self.is_kept { FLUSH_TIME } else { LAST_TIME };
        self.finish_within(time + END_WAIT);
    }

    fn finish_within(self, wait: Duration) {
        let (gauge, unwritten) = (self.gauge.clone(), self.unwritten.clone());
        let (until_end, running) = bounded::<()>(0);
        let body = move || {
            let _until_end = until_end;
            self.flush();
        };
        if let Err(error) = std::thread::Builder::new().name("end".into()).spawn(body) {
            tracing::error!(%error, "usage records wait where they are: a thread cannot start");
        }
        if running.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        let (ring_bytes, lost) = (gauge.waiting(), unwritten.count());
        let what = match gauge.is_volatile() {
            true => "what is in the rings is lost, since they are memory of this process",
            false => "what is in the rings and in the spool waits for the next start",
        };
        let message = "the disk of the spool, or a receiver, does not come back: the process ends \
                       all the same";
        tracing::error!(ring_bytes, lost, what, "{message}");
    }

    fn flush(self) {
        self.journal.stop();
        let left = self.lanes.stop(if self.is_kept { FLUSH_TIME } else { LAST_TIME });
        if let Some(watch) = self.watch {
            watch.stop();
        }
        let lost = self.unwritten.count();
        match (left, self.is_kept) {
            (_, true) if lost > 0 => {
                let message = "usage records are lost: the spool fails, and they were in memory \
                               alone; what it has on the disk waits for the next start";
                tracing::error!(lost, "{message}");
            }
            (0, _) => {}
            (_, true) => tracing::info!(left, "usage records wait in the spool for the next start"),
            (_, false) => tracing::error!(left, "usage records are lost: there is no spool"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::journal::tests::Odd;
    use crate::usage::record::UsageRecord;

    /// Catches: a process that never ends because the disk of its spool does not come back.
    #[test]
    fn the_end_does_not_wait_for_a_disk_that_hangs() {
        let text = "backends: [{url: 'http://192.0.2.1'}]\n\
                    usage: {reporters: [{name: f, type: file, file: {path: /nowhere/f}}]}";
        let plan = crate::config::load_text("test", text, &|_| None).unwrap().plan;
        let (disk, names) = (Odd::default(), ["f".to_owned()]);
        let shared = disk.shared();
        let mut own =
            spool::open(Arc::new(disk), spool::Options::of(&plan.usage.spool), &names).unwrap();
        let cursors = std::mem::take(&mut own.cursors).into_iter();
        let sources = cursors.map(|cursor| Box::new(cursor) as _).collect();
        let counters = Arc::new(UsageCounters::new(&plan.usage.reporters));
        let ring = Arc::new(RingFile::anonymous(64 * 1024).unwrap());
        let (doorbell, state) = (Arc::clone(&own.doorbell), Arc::clone(&own.state));
        let outbox = Outbox::new(ring.clone(), doorbell, counters.clone(), state.clone());
        let gauge = Gauge::new(counters, vec![ring.clone()], state);
        let planned = Planned { own, sources, folders: None };
        let delivery = Delivery::start(&plan, vec![ring], planned, &gauge).unwrap();
        let shut = shared.shut();
        outbox.close(&UsageRecord::default().borrowed(), Default::default());
        delivery.finish_within(Duration::from_millis(50));
        assert!(gauge.waiting() > 0, "the disk had it");
        drop(shut);
        while gauge.waiting() > 0 {
            std::thread::yield_now();
        }
    }
}
