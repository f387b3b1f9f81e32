//! Any order of what may happen to a spool, against a list of what it was told.

use super::super::survey::survey;
use super::super::Opened;
use super::fault::{FaultDisk, Faults, World};
use super::rig::*;
use crate::usage::record::Outcome;
use crate::usage::source::Source;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;

type Disk = FaultDisk<()>;

#[derive(Debug, Clone, Copy)]
enum Step {
    Open,
    Note,
    /// The end of one of those in flight.
    Close(usize),
    Commit,
    /// A reporter reads so many and is done with a part of them.
    Deliver(usize, usize, usize),
    Keep,
    /// The disk fails for so many operations; then it is tried again.
    Fail(usize, usize),
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Open),
        1 => Just(Step::Note),
        4 => (0..9_usize).prop_map(Step::Close),
        4 => Just(Step::Commit),
        3 => (0..2_usize, 1..9_usize, 0..9_usize).prop_map(|(r, n, m)| Step::Deliver(r, n, m)),
        2 => Just(Step::Keep),
        1 => (0..5_usize, 1..9_usize).prop_map(|(skip, count)| Step::Fail(skip, count)),
        1 => Just(Step::Kill),
    ]
}

/// What the spool was told, and what each reporter has.
#[derive(Default)]
struct Model {
    /// In flight.
    open: Vec<u32>,
    begun: u32,
    /// All that ended, in order.
    closed: Vec<u32>,
    /// How many of these each reporter was done with.
    done: [usize; 2],
    /// How many of these each reporter has read since the start.
    read: [usize; 2],
    /// The sequences of those.
    sequences: [Vec<u64>; 2],
}

impl Model {
    /// The process has ended, and the next start has aborted the requests in flight. In which
    /// order is not promised.
    fn kill(&mut self, disk: &Disk) {
        let mut aborted = Vec::new();
        let records = survey(disk, |_, _, record| {
            if self.open.contains(&id_of(record)) {
                assert_eq!(record.outcome, Outcome::Aborted);
                aborted.push(id_of(record));
            }
            Ok(())
        });
        assert_eq!(records.unwrap().open, 0);
        assert_eq!(aborted.len(), self.open.len(), "{aborted:?} of {:?}", self.open);
        self.closed.append(&mut aborted);
        self.open.clear();
        self.read = self.done;
        self.sequences = [Vec::new(), Vec::new()];
    }

    fn deliver(&mut self, spool: &mut Opened, reporter: usize, (max, part): (usize, usize)) {
        let some = spool.cursors[reporter].read_owned(max);
        for delivery in some {
            let expected = self.closed.get(self.read[reporter]).copied();
            assert_eq!(Some(id_of(&delivery.record)), expected, "reporter {reporter}");
            let aborted = delivery.record.outcome == Outcome::Aborted;
            assert_eq!(aborted, delivery.record.status_code == 0);
            self.read[reporter] += 1;
            self.sequences[reporter].push(delivery.seq);
        }
        let count = part.min(self.sequences[reporter].len());
        if let Some(last) = self.sequences[reporter].drain(..count).next_back() {
            spool.cursors[reporter].done(last);
            self.done[reporter] += count;
        }
    }
}

fn run(steps: &[Step]) {
    let mut disk = Disk::new(World::default());
    let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
    let mut model = Model::default();
    for step in steps {
        match *step {
            Step::Open => {
                spool.open(model.begun);
                model.open.push(model.begun);
                model.begun += 1;
            }
            Step::Note => {
                if let Some(id) = model.open.last() {
                    spool.note(*id, 3);
                }
            }
            Step::Close(nth) if !model.open.is_empty() => {
                let id = model.open.remove(nth % model.open.len());
                spool.close(id);
                model.closed.push(id);
            }
            Step::Close(_) => {}
            Step::Commit => spool.writer.commit(),
            Step::Deliver(reporter, max, part) => {
                spool.writer.commit();
                model.deliver(&mut spool, reporter, (max, part));
            }
            Step::Keep => spool.keeper.turn(),
            Step::Fail(skip, count) => {
                let from = disk.operations() + skip;
                disk.fail(Some(Faults::of_all(from, count, ErrorKind::Other)));
                for id in model.begun..model.begun + 4 {
                    spool.open(id);
                    spool.writer.commit();
                    spool.close(id);
                    spool.keeper.turn();
                    model.closed.push(id);
                }
                model.begun += 4;
                spool.writer.commit();
                model.deliver(&mut spool, 0, (9, 3));
                disk.fail(None);
                (0..2).for_each(|_| spool.retry());
                spool.keeper.turn();
            }
            Step::Kill => {
                spool.writer.commit();
                disk = Disk::new(disk.world());
                spool = opened(Arc::new(disk.clone()), options(EVERY));
                model.kill(&disk);
            }
        }
    }
    spool.writer.commit();
    for reporter in 0..2 {
        let backlog = spool.cursors[reporter].backlog() as usize;
        assert_eq!(backlog, model.closed.len() - model.done[reporter], "backlog");
        model.deliver(&mut spool, reporter, (usize::MAX, usize::MAX));
        assert_eq!(model.done[reporter], model.closed.len(), "reporter {reporter}");
        assert_eq!(
            (spool.cursors[reporter].backlog(), spool.cursors[reporter].oldest()),
            (0, None)
        );
    }
    let unique: BTreeSet<u32> = model.closed.iter().copied().collect();
    assert_eq!(unique.len(), model.closed.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Catches: any order of writes, deliveries, failures and kills that loses, repeats or
    /// reorders a record, or counts a backlog that is not there.
    #[test]
    fn the_spool_is_a_list(steps in proptest::collection::vec(step(), 0..80)) {
        run(&steps);
    }
}
