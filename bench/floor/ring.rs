//! The ring and its buffers. All `unsafe` of the benchmarks is here.

#![allow(unsafe_code, reason = "the one file for it: a ring's memory is shared with the kernel")]

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{cqueue, opcode, squeue, IoUring};
use std::alloc::{alloc_zeroed, handle_alloc_error, Layout};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

const ENTRIES: u32 = 1024;
/// A power of two, as the kernel asks.
const BUFFERS: u16 = 2048;
const BUFFER_BYTES: usize = 16 * 1024;
const GROUP: u16 = 0;

/// Bytes that were received, in a buffer of the ring; not to be lost, or the buffer is.
pub struct Filled {
    id: u16,
    from: u32,
    to: u32,
}

/// What the kernel has done.
pub enum Event {
    /// A client is here.
    Accepted(OwnedFd),
    /// A receive has something to say.
    Received {
        /// Of the receive.
        key: u32,
        got: Got,
        /// More will come without another call.
        armed: bool,
    },
    /// A send is over.
    Sent {
        /// Of the send.
        key: u32,
        /// What was not taken yet.
        rest: Option<Filled>,
        failed: bool,
    },
}

/// What a receive brought.
pub enum Got {
    Bytes(Filled),
    /// There was no free buffer.
    Starved,
    /// The end, or an error.
    End,
}

/// What a completion belongs to: it travels through the kernel as the number `user_data`.
#[derive(Clone, Copy)]
struct Ticket {
    kind: u8,
    key: u32,
    buffer: u16,
}

const ACCEPT: u8 = 0;
const RECEIVE: u8 = 1;
const SEND: u8 = 2;

impl Ticket {
    fn pack(self) -> u64 {
        u64::from(self.key) | u64::from(self.buffer) << 32 | u64::from(self.kind) << 48
    }
    fn unpack(data: u64) -> Ticket {
        Ticket { key: data as u32, buffer: (data >> 32) as u16, kind: (data >> 48) as u8 }
    }
}

/// The ring of one thread.
pub struct Ring {
    uring: IoUring,
    buffers: Buffers,
    /// What of each buffer is being sent.
    sending: Vec<(u32, u32)>,
}

impl Ring {
    /// Linux 6.1 or newer.
    pub fn new() -> io::Result<Ring> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(ENTRIES * 8)
            .build(ENTRIES)?;
        let buffers = Buffers::new();
        // SAFETY: the entries are `BUFFERS` long, page-aligned, and never freed.
        unsafe {
            uring.submitter().register_buf_ring(buffers.entries as u64, BUFFERS, GROUP)?;
        }
        Ok(Ring { uring, buffers, sending: vec![(0, 0); BUFFERS.into()] })
    }

    /// Accepts clients from now on.
    pub fn accept(&mut self, listener: &impl AsRawFd) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build();
        self.push(entry, Ticket { kind: ACCEPT, key: 0, buffer: 0 })
    }

    /// Receives from a socket until an event says otherwise.
    pub fn receive(&mut self, socket: &impl AsRawFd, key: u32) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build();
        self.push(entry, Ticket { kind: RECEIVE, key, buffer: 0 })
    }

    /// Sends a buffer, which is free again when all of it was taken.
    pub fn send(&mut self, socket: &impl AsRawFd, key: u32, filled: Filled) -> io::Result<()> {
        let Filled { id, from, to } = filled;
        self.sending[usize::from(id)] = (from, to);
        let bytes = self.buffers.address(id).wrapping_add(from as usize);
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), bytes, to - from);
        // A client that is gone must not end the process.
        let entry = entry.flags(libc::MSG_NOSIGNAL).build();
        self.push(entry, Ticket { kind: SEND, key, buffer: id })
    }

    /// Frees a buffer that will not be sent.
    pub fn give_back(&mut self, filled: Filled) {
        self.buffers.free(filled.id);
    }

    /// Whether a receive would find a buffer.
    pub fn has_buffers(&self) -> bool {
        self.buffers.available > 0
    }

    /// Submits what was asked for and waits for something to happen.
    pub fn wait(&mut self) -> io::Result<Vec<Event>> {
        match self.uring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let mut events = Vec::with_capacity(64);
        for entry in self.uring.completion() {
            let ticket = Ticket::unpack(entry.user_data());
            let result = entry.result();
            let key = ticket.key;
            events.push(match ticket.kind {
                // SAFETY: a positive result of accept is a new descriptor, and nobody else's.
                ACCEPT if result >= 0 => Event::Accepted(unsafe { OwnedFd::from_raw_fd(result) }),
                ACCEPT => return Err(io::Error::from_raw_os_error(-result)),
                RECEIVE => {
                    let armed = cqueue::more(entry.flags());
                    let got = match cqueue::buffer_select(entry.flags()) {
                        Some(id) => {
                            self.buffers.available -= 1;
                            Got::Bytes(Filled { id, from: 0, to: result.max(0) as u32 })
                        }
                        None if result == -libc::ENOBUFS => Got::Starved,
                        None => Got::End,
                    };
                    Event::Received { key, got, armed }
                }
                _ => {
                    let (from, to) = self.sending[usize::from(ticket.buffer)];
                    let from = from + result.max(0) as u32;
                    let rest =
                        (result > 0 && from < to).then_some(Filled { id: ticket.buffer, from, to });
                    if rest.is_none() {
                        self.buffers.free(ticket.buffer);
                    }
                    Event::Sent { key, rest, failed: result < 0 }
                }
            });
        }
        Ok(events)
    }

    fn push(&mut self, entry: squeue::Entry, ticket: Ticket) -> io::Result<()> {
        let entry = entry.user_data(ticket.pack());
        loop {
            // SAFETY: what the entries point to are buffers, which live for ever, and the kernel
            // holds a reference of its own to every socket with an operation under way.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.uring.submit()?;
        }
    }
}

/// The buffers that the kernel takes from, and the ring of entries by which it gets them. Neither
/// is ever freed: there is one for the life of the process.
struct Buffers {
    entries: *mut BufRingEntry,
    bytes: *mut u8,
    tail: u16,
    /// Entries that the kernel has not used, as far as its events have told.
    available: usize,
}

impl Buffers {
    fn new() -> Buffers {
        let entries = forever(usize::from(BUFFERS) * size_of::<BufRingEntry>());
        let bytes = forever(usize::from(BUFFERS) * BUFFER_BYTES);
        let mut buffers = Buffers { entries: entries.cast(), bytes, tail: 0, available: 0 };
        (0..BUFFERS).for_each(|id| buffers.free(id));
        buffers
    }

    fn address(&self, id: u16) -> *const u8 {
        self.bytes.wrapping_add(usize::from(id) * BUFFER_BYTES)
    }

    /// Hands a buffer to the kernel.
    fn free(&mut self, id: u16) {
        let address = self.address(id) as u64;
        // SAFETY: the index is below `BUFFERS`, so the entry is inside the allocation, and the
        // kernel does not read it before the tail below has passed it.
        let entry = unsafe { &mut *self.entries.add(usize::from(self.tail % BUFFERS)) };
        entry.set_addr(address);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.available += 1;
        // SAFETY: the tail lies inside the first entry and is written by this thread alone, here.
        let tail = unsafe { &*BufRingEntry::tail(self.entries).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Zeroed memory on pages of its own, never freed.
fn forever(bytes: usize) -> *mut u8 {
    let Ok(layout) = Layout::from_size_align(bytes, 4096) else { return std::ptr::null_mut() };
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory
}
