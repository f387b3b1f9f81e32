//! What the process needs from the kernel before any work: file descriptors and a ring.

#![allow(unsafe_code, reason = "the one room for it: calls that std does not wrap")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

/// Raises the soft limit of open files to the hard one and gives the new soft limit.
///
/// # Errors
/// What getrlimit or setrlimit answered.
pub fn raise_file_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live, writable rlimit of this frame.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to a live, initialised rlimit of this frame.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// The descriptor of a socket of monoio's, whose types predate `AsFd`.
pub fn borrow_fd<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: `owner` keeps the descriptor open for as long as the result borrows it.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// Milliseconds since the Unix epoch, with microseconds behind the point: two processes of one
/// machine compare these.
#[allow(clippy::disallowed_methods, reason = "this is where the clock is read")]
pub fn unix_ms() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_micros() as f64 / 1000.0
}

/// Runs `main` on this thread, on io_uring with the cheapest flags that the kernel takes, else on
/// epoll.
///
/// # Errors
/// When neither driver can be built.
pub fn block_on<F: std::future::Future>(main: F) -> io::Result<F::Output> {
    if monoio::utils::detect_uring() {
        // Old kernels refuse the newer flags with EINVAL, so they are tried one set at a time.
        let sets: [fn(&mut io_uring::Builder); 3] = [
            |b| {
                b.setup_single_issuer().setup_defer_taskrun();
            },
            |b| {
                b.setup_coop_taskrun();
            },
            |_| (),
        ];
        for set in sets {
            let mut flags = io_uring::IoUring::builder();
            set(flags.setup_cqsize(8192));
            let builder = RuntimeBuilder::<IoUringDriver>::new().with_entries(1024);
            if let Ok(mut ring) = builder.uring_builder(flags).enable_timer().build() {
                return Ok(ring.block_on(main));
            }
        }
    }
    Ok(RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.block_on(main))
}
