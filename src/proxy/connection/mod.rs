//! The story of one client connection: receive, admit, route, exchange, relay, settle; then the
//! next request of the same connection. Whatever happens to a request, it is settled exactly once,
//! also when a panic of ours ends it.
//!
//! *Takes:* a client's socket. *Gives:* an answer to each of its requests, settled. *Runs on:*
//! workers. *May:* call the steps of a request, which nobody else may; wait on both sockets.
//! *Never:* knows how a step works, lets the future of a stream grow: its size is stated below.
//!
//! The files stand in the order in which a request comes by; `ours` serves them all.

mod admin;
mod secure;
mod incoming;
mod borrowing;
mod entry;
mod facts;
mod tries;
mod waiting;
mod early;
mod retry;
mod preamble;
mod delivery;
mod parting;
mod scripted;
mod ours;

use super::client::Client;
use super::pass::Pass;
use super::receive::Request;
use super::relay::framing::Inbound;
use super::relay::tap::Tap;
use super::relay::Relayed;
use super::settle::{settle, Ending, Story};
use super::shared::{Live, Shared};
use super::upstream::exchange::Exchange;
use super::whence::Whence;
use crate::base::fault::Fault;
use crate::base::panic_point;
use crate::config::plan::{HalfClose, ListenerSpeech};
use crate::http::response::ResponseHead;
use crate::rt::patrol::{Gone, Rank};
use crate::rt::socket::Socket;
use crate::state::stop::Phase;
use delivery::deliver;
use incoming::{admit, hear_source, receive_head, Arrival};
use ours::{give_up, refuse};
use parting::{conclude, Undrained};
use rustls::ServerConfig;
use secure::secure;
use std::future::Future;
use std::net::IpAddr;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::Arc;
use tries::forward;

/// What becomes of the connection after a request.
#[derive(Clone, Copy)]
enum Next {
    /// It carries another.
    Request,
    /// It closes at once: nobody reads it any more, or its answer must be seen to be incomplete.
    Close,
    /// It closes after the client had time to read the last answer.
    CloseGently,
}

/// What is left to be done for a request whose client has what it gets.
enum Afterwards {
    /// It is settled.
    Settle,
    /// It is settled once its packed answer is unpacked. The client does not wait for that.
    Unpack(Relayed),
    /// The client has left: its connection closes at once, the engine's answer is read on, and then
    /// the request is settled.
    Drain(Box<Undrained>),
}

/// What a connection keeps from request to request. Boxed: the future of a stream stays small.
struct Talk {
    /// Of the request that is under way; `None` between two of them.
    pass: Option<Pass>,
    notes: Notes,
}

/// What is known of a request and its answer. It is used again by the next request of the
/// connection, for its capacity.
struct Notes {
    request: Request,
    /// The head of the answer.
    response: ResponseHead,
    story: Story,
    inbound: Inbound,
    tap: Tap,
}

/// The request that is under way, as its steps get it.
struct Underway<'a> {
    pass: &'a mut Pass,
    notes: &'a mut Notes,
}

impl Talk {
    /// Of a client that has said nothing yet.
    fn new(request: Request) -> Talk {
        let notes = Notes {
            request,
            response: ResponseHead::default(),
            story: Story::default(),
            inbound: Inbound::Length(0),
            tap: Tap::default(),
        };
        Talk { pass: None, notes }
    }

    /// A request begins: its head is there.
    fn begin(&mut self, w: &Rc<Shared>) -> Underway<'_> {
        let Talk { pass, notes } = self;
        Underway { pass: pass.insert(Pass::new(w)), notes }
    }

    /// The request that is under way is over.
    fn settle(&mut self) {
        panic_point::pass("settling");
        let Notes { request, story, tap, .. } = &mut self.notes;
        if let Some(pass) = self.pass.take() {
            settle(pass, (request, tap), story);
        }
    }
}

impl Drop for Talk {
    /// A request that is under way still: a panic of ours ended its connection, or the end of the
    /// process did.
    fn drop(&mut self) {
        if let Some(pass) = &self.pass {
            let is_cut = pass.w.stop.phase() == Phase::Ending;
            let fault = if is_cut { Fault::ShuttingDown } else { Fault::Panicked };
            let story = &mut self.notes.story;
            story.ending = Ending::Fault(fault);
            // Whatever it was tried for, it has not failed.
            story.backend.iter().for_each(|backend| backend.untried());
            // A second panic, here, would end the process.
            let settled = catch_unwind(AssertUnwindSafe(|| self.settle()));
            if settled.is_err() {
                tracing::error!("a request is not settled because of a panic; please report this");
            }
        }
    }
}

/// Serves one client until it or we close. `None` when it cannot be watched. What runs before the
/// future does stands outside the panic guard: it must not panic.
pub fn serve(
    live: Live,
    socket: Socket,
    (peer, speech): (IpAddr, ListenerSpeech),
    is_guest: bool,
) -> Option<impl Future<Output = ()>> {
    let w = live.shared();
    let view = w.view();
    let gone = match view.plan.server.half_close {
        HalfClose::Leave => Gone::AtFin,
        HalfClose::Serve => Gone::AtReset,
    };
    let post = w.patrol.watch(socket, gone).ok()?;
    if is_guest {
        post.set_rank(Rank::Guest);
    }
    let write_timeout = view.plan.server.write_timeout;
    let client = Box::new(Client { post, write_timeout, inbox: None });
    let request = Request::new(w.shelf.next_id(), Box::new(Whence::new(peer, speech)));
    Some(converse(live, client, Box::new(Talk::new(request))))
}

async fn converse(live: Live, mut client: Box<Client>, mut talk: Box<Talk>) {
    let w = live.shared();
    if !hear_source(w, &mut client, &mut talk.notes.request).await {
        return;
    }
    if lacks_tls(w, talk.notes.request.from.speech()) {
        return;
    }
    if let Some(config) = tls_now(w, talk.notes.request.from.speech()) {
        // Boxed: it is over before a stream begins.
        if !Box::pin(secure(w, &mut client, &mut talk.notes.request, config)).await {
            return;
        }
    }
    loop {
        talk.notes.tap.reset();
        talk.notes.story = Story::default();
        let arrival = receive_head(w, &mut client, &mut talk.notes.request).await;
        let (next, afterwards) = 'request: {
            let mut underway = match arrival {
                Arrival::Nothing => return client.post.say_goodbye(),
                Arrival::Request => talk.begin(w),
                Arrival::Refused(refusal) => {
                    let mut underway = talk.begin(w);
                    let refusing = refuse(w, &mut client, &mut underway, *refusal);
                    break 'request (Box::pin(refusing).await, Afterwards::Settle);
                }
            };
            // All that comes before an answer is one step, which leaves nothing behind: a stream
            // that runs for minutes stands two calls deep and carries what these two need.
            let mut exchange = match ask(w, &mut client, &mut underway).await {
                Ok(exchange) => exchange,
                Err(next) => break 'request (next, Afterwards::Settle),
            };
            let fault = match deliver(w, &mut client, &mut underway, &mut exchange).await {
                Ok(delivered) => break 'request conclude(w, underway, exchange, delivered),
                Err(fault) => fault,
            };
            w.shelf.count_fault(Some(exchange.lease.backend()), fault);
            // The engine first: it may still be at work.
            drop(exchange);
            let giving_up = give_up(w, &mut client, &mut underway, fault);
            (Box::pin(giving_up).await, Afterwards::Settle)
        };
        match afterwards {
            Afterwards::Settle => talk.settle(),
            Afterwards::Unpack(outcome) => parting::settle_late(w, &mut talk, outcome),
            Afterwards::Drain(undrained) => {
                drop(client);
                return Box::pin(parting::spare(live, &mut talk, *undrained)).await;
            }
        }
        match next {
            Next::Request if w.patrol.is_draining() => return client.post.say_goodbye(),
            Next::Request => {}
            Next::Close => return,
            Next::CloseGently => return client.close_gently().await,
        }
    }
}

/// How a handshake goes that begins now, where clients are served over TLS.
fn tls_now(w: &Shared, speech: ListenerSpeech) -> Option<Arc<ServerConfig>> {
    let view = w.view();
    let tls = view.shared.client_tls.as_ref().filter(|_| speech != ListenerSpeech::Plain);
    tls.map(|tls| Arc::clone(&tls.config))
}

/// True where there must be a handshake, and TLS is off meanwhile.
fn lacks_tls(w: &Shared, speech: ListenerSpeech) -> bool {
    speech == ListenerSpeech::Tls && w.view().shared.client_tls.is_none()
}

/// From the head of a request to the head of an engine's answer. `Err`: there is none, and the
/// client has been told.
async fn ask(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
) -> Result<Exchange, Next> {
    panic_point::pass("head");
    admit(w, client, underway).await?;
    panic_point::pass("admission");
    forward(w, client, underway).await
}

#[cfg(test)]
mod tests;
