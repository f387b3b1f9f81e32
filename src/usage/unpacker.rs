//! The thread that unpacks copies of packed answers for all workers. It takes a worker's time for
//! nothing: unpacking costs far more than a look at plain bytes, and a tenth of a second for the
//! longest answer.

use crate::base::limits::UNPACK_QUEUE_MAX;
use crate::llm::inflate::{InflateFault, Packed};
use crate::llm::usage::UsageScan;
use atomic_waker::AtomicWaker;
use crossbeam_channel::{bounded, Receiver, Sender, TryRecvError};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;

/// What is in a packed answer: a scan that has seen all of it.
pub type Unpacked = Result<Box<UsageScan>, InflateFault>;

/// A worker's end of the queue. Cloned for each worker; the thread ends with the last one.
#[derive(Debug, Clone)]
pub struct Unpacker {
    queue: Sender<Job>,
}

#[derive(Debug)]
struct Job {
    packed: Box<Packed>,
    answer: Sender<Unpacked>,
    waiting: Arc<AtomicWaker>,
}

impl Unpacker {
    /// Starts the thread.
    ///
    /// # Errors
    /// It could not be created.
    pub fn start() -> io::Result<Unpacker> {
        Unpacker::start_with(Packed::read)
    }

    /// Starts it with another way to read what it is given: tests have it wait.
    ///
    /// # Errors
    /// As [`Unpacker::start`].
    pub(crate) fn start_with(
        read: impl Fn(&Packed) -> Unpacked + Send + 'static,
    ) -> io::Result<Unpacker> {
        let (queue, jobs) = bounded::<Job>(UNPACK_QUEUE_MAX);
        let work = move || {
            for Job { packed, answer, waiting } in jobs {
                // Whoever asked may be gone.
                let _ = answer.send(read(&packed));
                waiting.wake();
            }
        };
        thread::Builder::new().name("unpacker".to_owned()).spawn(work)?;
        Ok(Unpacker { queue })
    }

    /// Hands a copy over; `None` when too many wait, and it is dropped.
    pub fn unpack(&self, packed: Box<Packed>) -> Option<Box<Unpacking>> {
        let (answer, unpacked) = bounded(1);
        let waiting = Arc::<AtomicWaker>::default();
        let job = Job { packed, answer, waiting: Arc::clone(&waiting) };
        self.queue.try_send(job).ok()?;
        Some(Box::new(Unpacking { unpacked, waiting }))
    }
}

/// A copy that is being unpacked: a future of what is in it. To be dropped once it is ready.
#[derive(Debug)]
pub struct Unpacking {
    unpacked: Receiver<Unpacked>,
    waiting: Arc<AtomicWaker>,
}

impl Future for Unpacking {
    type Output = Unpacked;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Unpacked> {
        self.waiting.register(cx.waker());
        match self.unpacked.try_recv() {
            Ok(unpacked) => Poll::Ready(unpacked),
            Err(TryRecvError::Empty) => Poll::Pending,
            // The thread is gone: it panicked outside of a decoder.
            Err(TryRecvError::Disconnected) => Poll::Ready(Err(InflateFault::Broken)),
        }
    }
}
