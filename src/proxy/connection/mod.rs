//! The story of one client connection: receive, admit, route, exchange, relay, settle; then the
//! next request of the same connection. Whatever happens to a request, it is settled exactly once,
//! also when a panic of ours ends it.
//!
//! *Takes:* a client's socket. *Gives:* an answer to each of its requests, settled. *Runs on:*
//! workers. *May:* call the steps of a request, which nobody else may; wait on both sockets.
//! *Never:* knows how a step works, lets the future of a stream grow: its size is stated below.
//!
//! The files stand in the order in which a request comes by; `ours` serves them all.

mod incoming;
mod facts;
mod tries;
mod delivery;
mod parting;
mod ours;

use super::client::Client;
use super::pass::Pass;
use super::receive::Request;
use super::relay::framing::Inbound;
use super::relay::tap::Tap;
use super::settle::{settle, Ending, Story};
use super::shared::{Live, Shared};
use super::upstream::exchange::Exchange;
use crate::base::fault::Fault;
use crate::base::panic_point;
use crate::config::plan::HalfClose;
use crate::http::response::ResponseHead;
use crate::rt::patrol::{Gone, Rank};
use crate::rt::socket::Socket;
use delivery::deliver;
use incoming::{admit, receive_head};
use std::future::Future;
use std::net::IpAddr;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use tries::forward;

/// What becomes of the connection after a request.
enum Next {
    /// It carries another.
    Request,
    /// It closes at once: nobody reads it any more, or its answer must be seen to be incomplete.
    Close,
    /// It closes after the client had time to read the last answer.
    CloseGently,
    /// It closes at once, and its engine's answer is read to the end.
    Drain,
}

/// What a connection keeps from request to request. Boxed: the future of a stream stays small.
struct Talk {
    /// Of the request that is under way; `None` between two of them.
    pass: Option<Pass>,
    request: Request,
    /// The head of the answer; kept from request to request for its capacity.
    response: ResponseHead,
    story: Story,
    exchange: Option<Exchange>,
    inbound: Inbound,
    tap: Tap,
}

impl Talk {
    /// Of a client that has said nothing yet.
    fn new(request: Request) -> Talk {
        Talk {
            pass: None,
            request,
            response: ResponseHead::default(),
            story: Story::default(),
            exchange: None,
            inbound: Inbound::Length(0),
            tap: Tap::default(),
        }
    }

    /// The end of the request that is under way. Without a pass it is settled already.
    fn settle(&mut self) {
        panic_point::pass("settling");
        if let Some(pass) = self.pass.take() {
            settle(pass, (&self.request, &self.tap), &mut self.story);
        }
    }
}

impl Drop for Talk {
    /// A request that is under way still: a panic of ours ended its connection.
    fn drop(&mut self) {
        if self.pass.is_some() {
            self.story.ending = Ending::Fault(Fault::Panicked);
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
    peer: IpAddr,
    is_guest: bool,
) -> Option<impl Future<Output = ()>> {
    let w = live.shared();
    let view = w.view();
    let gone = match view.plan.server.half_close {
        HalfClose::Abort => Gone::AtFin,
        HalfClose::Serve => Gone::AtReset,
    };
    let post = w.patrol.watch(socket, gone).ok()?;
    if is_guest {
        post.set_rank(Rank::Guest);
    }
    let write_timeout = view.plan.server.write_timeout;
    let client = Box::new(Client { post, write_timeout, inbox: None });
    let request = Request::new(w.shelf.next_id(), peer.to_string().into());
    Some(converse(live, client, Box::new(Talk::new(request))))
}

async fn converse(live: Live, mut client: Box<Client>, mut talk: Box<Talk>) {
    let w = live.shared();
    loop {
        talk.tap.reset();
        talk.story = Story::default();
        // All that comes before an answer is one step, which leaves nothing behind: a stream that
        // runs for minutes stands two calls deep and carries what these two need.
        let next = match ask(w, &mut client, &mut talk).await {
            Ok(()) => deliver(w, &mut client, &mut talk).await,
            Err(next) => next,
        };
        match next {
            Next::Request if w.patrol.is_draining() => return,
            Next::Request => {}
            Next::Close => return,
            Next::CloseGently => return client.close_gently().await,
            Next::Drain => {
                drop(client);
                return Box::pin(parting::spare(live, &mut talk)).await;
            }
        }
    }
}

/// From the first byte of a request to the head of an engine's answer. `Err`: there is none, and
/// the client has been told.
async fn ask(w: &Rc<Shared>, client: &mut Client, talk: &mut Talk) -> Result<(), Next> {
    receive_head(w, client, talk).await?;
    panic_point::pass("head");
    admit(w, client, talk).await?;
    panic_point::pass("admission");
    forward(w, client, talk).await
}

#[cfg(test)]
mod tests;
