//! The runtime of one worker: the best ring that this kernel grants, else epoll.

use monoio::time::TimeDriver;
use monoio::{FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};
use rustix::io::Errno;
use std::future::Future;
use std::io;

/// Submission entries of a ring. 256, 1024 and 4096 measured alike at 512 connections; a wave of
/// cancels (10 000 connections timing out together) wants room.
const RING_ENTRIES: u32 = 4096;
/// Completion entries: two per submission, so that a burst does not overflow into kernel memory.
const RING_COMPLETIONS: u32 = RING_ENTRIES * 2;

/// The driver where no ring is granted.
pub const EPOLL: &str = "epoll";
/// A variable of monoio's that asks for epoll.
const FORCE_EPOLL: &str = "MONOIO_FORCE_LEGACY_DRIVER";

/// Why there is no ring, in words. It asks once more: the worker knows only that it has none.
pub fn why_epoll() -> String {
    let forced = std::env::var(FORCE_EPOLL).unwrap_or_default().to_ascii_lowercase();
    if matches!(forced.as_str(), "1" | "true" | "yes") {
        return format!("asked for by {FORCE_EPOLL}");
    }
    match io_uring::IoUring::new(RING_ENTRIES) {
        Err(error) => why_refused(&error).into(),
        Ok(_) => {
            "this kernel's io_uring lacks operations that are needed (Linux 5.7 has them)".into()
        }
    }
}

fn why_refused(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => {
            "io_uring is denied: by the seccomp profile of a container, or by the setting \
             kernel.io_uring_disabled"
        }
        Some(Errno::NOMEM) => {
            "too little memory may be locked for rings (ulimit -l, LimitMEMLOCK=)"
        }
        Some(Errno::NOSYS) => "this kernel has no io_uring (it came with Linux 5.1)",
        Some(Errno::MFILE | Errno::NFILE) => "no file descriptor was left for a ring (ulimit -n)",
        _ => "this kernel refuses the ring that is asked for",
    }
}

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
        if monoio::utils::detect_uring() {
            for (driver, set_flags) in LADDER {
                let mut builder = io_uring::IoUring::builder();
                set_flags(builder.setup_cqsize(RING_COMPLETIONS));
                let built = RuntimeBuilder::<IoUringDriver>::new()
                    .with_entries(RING_ENTRIES)
                    .uring_builder(builder)
                    .enable_timer()
                    .build();
                if let Ok(runtime) = built {
                    return Ok(Ring { runtime: FusionRuntime::Uring(runtime), driver });
                }
            }
        }
        let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
        Ok(Ring { runtime: FusionRuntime::Legacy(runtime), driver: EPOLL })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: an errno where the reader of a log wants to know what to do.
    #[test]
    fn a_refused_ring_is_explained() {
        for (errno, word) in [
            (Errno::PERM, "seccomp"),
            (Errno::NOMEM, "ulimit -l"),
            (Errno::NOSYS, "Linux 5.1"),
            (Errno::MFILE, "ulimit -n"),
            (Errno::INVAL, "refuses"),
        ] {
            let told = why_refused(&errno.into());
            assert!(told.contains(word), "{errno:?}: {told}");
        }
    }
}
