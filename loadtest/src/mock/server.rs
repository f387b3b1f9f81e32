//! Threads, listeners and what they share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::connection;
use super::knobs::Knobs;
use super::log::Log;
use super::message::Message;
use crate::net::{Address, Listener};
use crate::script::{Ask, Dialect};
use crate::sys;

/// How an engine is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose bytes
    pub dialect: Dialect,
    /// Where to listen
    pub listen: Address,
    /// Worker threads, each with its own listener
    pub threads: usize,
    /// Idle keep-alive connections close after this; None = never
    pub idle_close: Option<Duration>,
    /// Requests a connection serves; None = any number
    pub requests_per_connection: Option<u32>,
    /// Requests kept in the log; 0 = no log
    pub log: usize,
    /// Model names that /v1/models lists
    pub models: Vec<String>,
    /// Status of the health paths
    pub health: u16,
    /// Defaults of the knobs
    pub knobs: Knobs,
}

/// What all threads of an engine share.
pub struct Shared {
    /// See [`Options`]
    pub options: Options,
    /// The log and the counters
    pub log: Log,
    /// Status of the health paths now
    pub health: AtomicU16,
    knobs: Mutex<Knobs>,
    knobs_version: AtomicU64,
    next_connection: AtomicU64,
}

impl Shared {
    /// Changes the defaults of the knobs; every thread sees it with its next request.
    ///
    /// # Errors
    /// What the change answered; nothing is changed then.
    pub fn change_knobs(
        &self,
        change: impl FnOnce(&mut Knobs) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut guard = self.knobs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut next = guard.clone();
        change(&mut next)?;
        *guard = next;
        self.knobs_version.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Puts knobs, health, log and counters back to what they were at the start.
    pub fn reset(&self) {
        let start = self.options.knobs.clone();
        let _ = self.change_knobs(|knobs| {
            *knobs = start;
            Ok(())
        });
        self.health.store(self.options.health, Relaxed);
        self.log.reset();
    }
}

/// Rendered answers of one thread are forgotten together when there are more.
const RENDERED_MAX: usize = 256;
const RENDERED_BYTES_MAX: usize = 64 << 20;

/// One thread of an engine.
pub struct Worker {
    /// What it shares with the others
    pub shared: Arc<Shared>,
    knobs: RefCell<(u64, Rc<Knobs>)>,
    rendered: RefCell<(usize, HashMap<Key, Rc<Message>>)>,
}

/// What a rendered answer depends on, besides knobs that are marked as uncached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The body
    pub ask: Ask,
    /// `Connection: close`
    pub closes: bool,
    /// Joined writes
    pub merged: bool,
    /// The head leaves early, late, or as the dialect does
    pub head: u8,
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Self {
        let knobs = Rc::new(shared.options.knobs.clone());
        Worker {
            shared,
            // The version before the first: the first request looks at what is current.
            knobs: RefCell::new((u64::MAX, knobs)),
            rendered: RefCell::default(),
        }
    }

    /// The defaults of the knobs as they stand now.
    pub fn knobs(&self) -> Rc<Knobs> {
        let mut mine = self.knobs.borrow_mut();
        let version = self.shared.knobs_version.load(Relaxed);
        if mine.0 != version {
            let current = self.shared.knobs.lock().unwrap_or_else(|p| p.into_inner());
            *mine = (version, Rc::new(current.clone()));
        }
        mine.1.clone()
    }

    /// The rendered answer for `key`, made once.
    pub fn rendered(&self, key: Key, render: impl FnOnce(&Key) -> Message) -> Rc<Message> {
        let mut guard = self.rendered.borrow_mut();
        if let Some(found) = guard.1.get(&key) {
            return found.clone();
        }
        let message = Rc::new(render(&key));
        let (bytes, known) = &mut *guard;
        *bytes += message.bytes.len();
        if known.len() >= RENDERED_MAX || *bytes > RENDERED_BYTES_MAX {
            known.clear();
            *bytes = message.bytes.len();
        }
        known.insert(key, message.clone());
        message
    }
}

/// Binds, tells `bound` the address, and serves until the process ends.
///
/// # Errors
/// What bind, listen or the ring answered.
pub fn run(options: Options, bound: impl FnOnce(&Address)) -> io::Result<()> {
    let (first, address) = Listener::bind(&options.listen)?;
    let mut listeners = Vec::new();
    for _ in 1..options.threads.max(1) {
        listeners.push(match &address {
            Address::Tcp(_) | Address::Tls(_) => Listener::bind(&address)?.0,
            // Unix sockets know no SO_REUSEPORT, so all threads accept from one queue.
            Address::Unix(_) => first.share()?,
        });
    }
    let shared = Arc::new(Shared {
        log: Log::new(options.log),
        health: AtomicU16::new(options.health),
        knobs: Mutex::new(options.knobs.clone()),
        knobs_version: AtomicU64::new(0),
        next_connection: AtomicU64::new(1),
        options,
    });
    for listener in listeners {
        let shared = shared.clone();
        std::thread::Builder::new().name("mock".into()).spawn(move || serve(listener, shared))?;
    }
    bound(&address);
    serve(first, shared)
}

fn serve(listener: Listener, shared: Arc<Shared>) -> io::Result<()> {
    sys::block_on(async move {
        let worker = Rc::new(Worker::new(shared));
        listener
            .accept_loop(|socket| {
                let number = worker.shared.next_connection.fetch_add(1, Relaxed);
                monoio::spawn(connection::serve(socket, number, worker.clone()));
            })
            .await
    })?
}
