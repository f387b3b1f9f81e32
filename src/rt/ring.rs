//! The runtime of one worker: the best ring that this kernel grants, else epoll.

use monoio::time::TimeDriver;
use monoio::{FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};
use std::future::Future;
use std::io;

/// Submission entries of a ring. 256, 1024 and 4096 measured alike at 512 connections; a wave of
/// cancels (10 000 connections timing out together) wants room.
const RING_ENTRIES: u32 = 4096;
/// Completion entries: two per submission, so that a burst does not overflow into kernel memory.
const RING_COMPLETIONS: u32 = RING_ENTRIES * 2;

/// A runtime, built on the thread that will run it.
pub struct Ring {
    runtime: FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>,
    driver: &'static str,
}

type Ladder = [(&'static str, fn(&mut io_uring::Builder)); 3];

/// Set-up flags, best first. Measured: the first two save up to 20 % of CPU per request.
const LADDER: Ladder = [
    // Linux 6.1: completions are handled when we ask for them, never in an interrupt of our work.
    ("io_uring+defer_taskrun", |b| {
        b.setup_single_issuer().setup_defer_taskrun();
    }),
    // Linux 5.19
    ("io_uring+coop_taskrun", |b| {
        b.setup_coop_taskrun();
    }),
    ("io_uring", |_| ()),
];

impl Ring {
    /// Builds the runtime. Must be called on the worker's own thread, after it was pinned
    /// (`SINGLE_ISSUER` binds the ring to the thread).
    ///
    /// Tries each rung of the ladder, then epoll. `MONOIO_FORCE_LEGACY_DRIVER=1` forces epoll.
    pub fn build() -> io::Result<Ring> {
        let mut refused = None;
        if monoio::utils::detect_uring() {
            for (driver, set_flags) in LADDER {
                let mut builder = io_uring::IoUring::builder();
                set_flags(builder.setup_cqsize(RING_COMPLETIONS));
                let built = RuntimeBuilder::<IoUringDriver>::new()
                    .with_entries(RING_ENTRIES)
                    .uring_builder(builder)
                    .enable_timer()
                    .build();
                match built {
                    Ok(runtime) => {
                        return Ok(Ring { runtime: FusionRuntime::Uring(runtime), driver })
                    }
                    // EINVAL: older kernel; ENOMEM: memlock limit; EPERM: denied.
                    Err(error) => refused = Some(error),
                }
            }
        }
        match refused {
            Some(error) => tracing::warn!(%error, "io_uring is not granted: running on epoll"),
            None => tracing::warn!("io_uring is not available: running on epoll"),
        }
        let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
        Ok(Ring { runtime: FusionRuntime::Legacy(runtime), driver: "epoll" })
    }

    /// Which driver was granted, for the log and the metrics.
    pub fn driver(&self) -> &'static str {
        self.driver
    }

    /// Runs a future, and all that it spawns, until it is done.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}
