//! How much a run may take. Time is processor time of the thread: a worker that the system lets
//! wait in the middle of a run has not spent any, and denies nobody for that.

use rustix::time::{clock_gettime, ClockId};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Work that is done between two looks at the clock: some ten microseconds.
const WORK_PER_LOOK: usize = 4096;
/// A run that has been looked at less often has done next to nothing, and yet its time is over:
/// the machine stood still, which the clock of a virtual one counts as work. It gets its time once
/// more.
const LOOKS_MIN: u32 = 64;

/// The budget of the run that is under way. Each VM has one.
#[derive(Debug)]
pub(super) struct Budget {
    timeout: Cell<Duration>,
    /// The wall clock, which costs nothing to read: while that says that there is time, there is.
    begun: Cell<Instant>,
    begun_on_cpu: Cell<Duration>,
    work_left: Cell<usize>,
    looks: Cell<u32>,
    is_over: Cell<bool>,
    bytes: Cell<usize>,
}

impl Budget {
    pub(super) fn new() -> Budget {
        Budget {
            timeout: Cell::new(Duration::MAX),
            begun: Cell::new(Instant::now()),
            begun_on_cpu: Cell::new(Duration::ZERO),
            work_left: Cell::new(0),
            looks: Cell::new(0),
            is_over: Cell::new(false),
            bytes: Cell::new(0),
        }
    }

    /// A run begins.
    pub(super) fn begin(&self, timeout: Duration, bytes: usize) {
        self.timeout.set(timeout);
        self.bytes.set(bytes);
        self.work_left.set(WORK_PER_LOOK);
        self.looks.set(0);
        self.is_over.set(false);
        self.start_clock();
    }

    fn start_clock(&self) {
        self.begun.set(Instant::now());
        self.begun_on_cpu.set(cpu_time());
    }

    /// Looks at the clock. False: the run must end.
    pub(super) fn has_time(&self) -> bool {
        if self.is_over.get() {
            return false;
        }
        let looks = self.looks.get().saturating_add(1);
        self.looks.set(looks);
        let timeout = self.timeout.get();
        if self.begun.get().elapsed() <= timeout
            || cpu_time().saturating_sub(self.begun_on_cpu.get()) <= timeout
        {
            return true;
        }
        if looks < LOOKS_MIN {
            self.looks.set(LOOKS_MIN);
            self.start_clock();
            return true;
        }
        self.is_over.set(true);
        false
    }

    /// So much work was done, which looks at the clock now and then. False: the run must end.
    pub(super) fn spend(&self, work: usize) -> bool {
        match self.work_left.get().checked_sub(work) {
            Some(left) => {
                self.work_left.set(left);
                !self.is_over.get()
            }
            None => {
                self.work_left.set(WORK_PER_LOOK);
                self.has_time()
            }
        }
    }

    /// True when the run was ended for its time.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// The most bytes of a text that is made outside of Lua's memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
}
