//! The floor: what the machine asks of anybody who moves these bytes. A relay of one thread on
//! bare io_uring (multishot accept and receive, a ring of provided buffers) that connects each
//! client to one upstream and copies both ways. It knows nothing of HTTP, of limits, of timeouts
//! or of time, so nothing that does can be cheaper; `bench/compare` divides by it.
//!
//! `floor LISTEN UPSTREAM`, both `HOST:PORT`. First line of output: `listening on HOST:PORT`.

mod ring;

use ring::{Event, Filled, Got, Ring};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut address = || -> io::Result<SocketAddr> {
        let given = arguments.next().unwrap_or_default();
        given.parse().map_err(|_| io::Error::other("usage: floor HOST:PORT HOST:PORT"))
    };
    let (listen, upstream) = (address()?, address()?);
    let listener = TcpListener::bind(listen)?;
    let mut out = io::stdout();
    writeln!(out, "listening on {}", listener.local_addr()?)?;
    out.flush()?;

    let mut relay = Relay { ring: Ring::new()?, upstream, pairs: Vec::new(), starved: Vec::new() };
    relay.ring.accept(&listener)?;
    loop {
        for event in relay.ring.wait()? {
            relay.handle(event)?;
        }
        // Whoever found no buffer tries again now that some came back.
        if relay.ring.has_buffers() {
            for key in std::mem::take(&mut relay.starved) {
                relay.receive(key)?;
            }
        }
    }
}

struct Relay {
    ring: Ring,
    upstream: SocketAddr,
    pairs: Vec<Option<Pair>>,
    /// Keys whose receive ended for want of a buffer.
    starved: Vec<u32>,
}

/// A client (side 0), its upstream (side 1), and the way that begins at each.
struct Pair {
    sockets: [TcpStream; 2],
    ways: [Way; 2],
}

/// Bytes on their way from one socket to the other.
#[derive(Default)]
struct Way {
    /// Received and not yet sent. One send at a time, because two could overtake each other.
    queue: VecDeque<Filled>,
    sending: bool,
    receiving: bool,
    ended: bool,
}

impl Relay {
    fn handle(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Accepted(client) => self.open(client.into()),
            Event::Received { key, got, armed } => {
                let Some(pair) = pair_of(&mut self.pairs, key) else { return Ok(()) };
                let way = &mut pair.ways[side(key)];
                way.receiving = armed;
                match got {
                    Got::Bytes(filled) => {
                        way.queue.push_back(filled);
                        if !armed {
                            self.receive(key)?;
                        }
                    }
                    Got::Starved => self.starved.push(key),
                    Got::End => way.ended = true,
                }
                self.pump(key)
            }
            Event::Sent { key, rest, failed } => {
                let Some(pair) = pair_of(&mut self.pairs, key) else { return Ok(()) };
                let way = &mut pair.ways[side(key)];
                way.sending = false;
                way.ended |= failed;
                if let Some(rest) = rest {
                    way.queue.push_front(rest);
                }
                self.pump(key)
            }
        }
    }

    fn open(&mut self, client: TcpStream) -> io::Result<()> {
        // Waits: an upstream on this machine answers at once, and connections are kept.
        let Ok(upstream) = TcpStream::connect(self.upstream) else { return Ok(()) };
        client.set_nodelay(true)?;
        upstream.set_nodelay(true)?;
        let free = self.pairs.iter().position(Option::is_none);
        let at = free.unwrap_or(self.pairs.len());
        if free.is_none() {
            self.pairs.push(None);
        }
        self.pairs[at] = Some(Pair { sockets: [client, upstream], ways: Default::default() });
        self.receive(2 * at as u32)?;
        self.receive(2 * at as u32 + 1)
    }

    fn receive(&mut self, key: u32) -> io::Result<()> {
        let Some(pair) = pair_of(&mut self.pairs, key) else { return Ok(()) };
        pair.ways[side(key)].receiving = true;
        self.ring.receive(&pair.sockets[side(key)], key)
    }

    /// Sends what waits; at the end of a way, ends both and forgets the pair when the kernel has
    /// let go of it.
    fn pump(&mut self, key: u32) -> io::Result<()> {
        let Some(pair) = pair_of(&mut self.pairs, key) else { return Ok(()) };
        let way = &mut pair.ways[side(key)];
        if way.sending {
            return Ok(());
        }
        if let Some(filled) = way.queue.pop_front() {
            way.sending = true;
            return self.ring.send(&pair.sockets[1 - side(key)], key, filled);
        }
        if !way.ended {
            return Ok(());
        }
        for socket in &pair.sockets {
            // An error says that it is shut already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        if pair.ways.iter().all(|way| !way.sending && !way.receiving) {
            for way in &mut pair.ways {
                way.queue.drain(..).for_each(|filled| self.ring.give_back(filled));
            }
            self.starved.retain(|starved| starved / 2 != key / 2);
            self.pairs[key as usize / 2] = None;
        }
        Ok(())
    }
}

fn pair_of(pairs: &mut [Option<Pair>], key: u32) -> Option<&mut Pair> {
    pairs.get_mut(key as usize / 2)?.as_mut()
}

fn side(key: u32) -> usize {
    key as usize % 2
}
