//! The thread that makes pages (the metrics, how the backends are), and the control plane's own
//! listeners that serve them: the address of the metrics, if it has one, and the admin socket.

use super::admin_door::{AdminAnswer, AdminResult, ApiDoor};
use super::metrics::{render, Facts};
use super::{roster, stories};
use crate::http::head::Version;
use crate::http::request::Method;
use crate::http::write::{self, OwnResponse};
use crate::rt::buffer::Buffer;
use crate::rt::guard::guarded;
use crate::rt::listen::{accept_loop, Arrival};
use crate::rt::patrol::{Alarm, Gone, Patrol, Post};
use crate::rt::socket::Socket;
use crate::state::ask::Questions;
use crate::state::scrape::{AskPage, Page};
use crate::usage::flight::FlightRecorder;
use demand::{Demand, Hearing, VisitAsked};
use lobby::{Lobby, Visitor};
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod demand;
mod lobby;
#[cfg(test)]
mod tests;

/// Scrapers at a time; their descriptors are those that are reserved. Beyond: whoever has not said
/// yet what it wants, or does not take its page, is put out, else the new one is turned away.
pub const SCRAPERS_MAX: usize = 16;
/// Whoever asks for a page sends the request and takes the page within so long.
const PAGE_TIME: Duration = Duration::from_secs(10);
/// From one line of the log about those who were turned away to the next.
const WARNING_PAUSE: Duration = Duration::from_secs(1);
/// Bytes that are taken, and thrown away, of whoever still sends when the answer is out: a reset
/// might overtake the answer.
const UNREAD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Starts the thread that makes the page for all who ask. It ends when nobody can ask any more.
pub fn start(
    mut questions: Questions<Page, Arc<[u8]>>,
    flight: Arc<FlightRecorder>,
    mut collect: impl FnMut() -> Facts + Send + 'static,
) -> io::Result<()> {
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        let mut goes_on = true;
        while goes_on {
            super::survive("metrics", || {
                goes_on = questions.answer_next(|page| match page {
                    Page::Metrics => render(collect()).into_bytes().into(),
                    Page::Backends => roster::render(collect()).into(),
                    Page::Requests(most) => {
                        let newest = stories::newest(&flight, usize::from(*most));
                        stories::render(&flight, newest).into()
                    }
                    Page::RequestsOf(id) => {
                        let found = stories::of_id(&flight, id.as_str());
                        stories::render(&flight, found).into()
                    }
                });
            });
        }
    })?;
    Ok(())
}

/// Says which page is to be had under a path, with this query.
type PageOf = dyn Fn(&[u8], &[u8]) -> Option<Page>;

/// A listener at which pages are to be had.
pub struct Outlet {
    /// The listener.
    pub listener: OwnedFd,
    /// Those who ask at a time. Beyond: the oldest who has not shown that it may is put out; where
    /// all have, the new one is turned away.
    pub visitors_max: usize,
    /// The page that is to be had under a path.
    pub page_of: Box<PageOf>,
    /// The way to the admin API, if it is to be had here.
    pub door: Option<ApiDoor>,
}

/// What is to be had at a listener.
struct Offer {
    page_of: Box<PageOf>,
    door: Option<ApiDoor>,
    pages: AskPage,
}

/// Serves pages on a listener of their own, on the current ring, for as long as the ring runs. One
/// request for each connection: whatever the end is, it closes.
pub async fn serve(outlet: Outlet, patrol: Rc<Patrol>, pages: AskPage) {
    let Outlet { listener, visitors_max, page_of, door } = outlet;
    let (lobby, offer) = (Lobby::new(visitors_max), Rc::new(Offer { page_of, door, pages }));
    let mut turned_away = TurnedAway::default();
    accept_loop(listener, &patrol, |arrival| {
        let Arrival::Client(socket, peer) = arrival else { return };
        let Ok(post) = patrol.watch(socket, Gone::AtFin) else { return };
        let demand = Rc::new(Demand::new(post, peer, Rc::clone(&offer)));
        let heard = Rc::clone(&demand);
        let Some((visitor, has_put_out)) = lobby.enter(Rc::new(move || heard.may_ask())) else {
            offer.note_no_place(AdminResult::TurnedAway);
            if let Some(closed) = turned_away.note(Instant::now()) {
                tracing::warn!(visitors_max, closed, "too many ask for pages at a time");
            }
            return turn_away(demand.post.socket());
        };
        if has_put_out {
            offer.note_no_place(AdminResult::PutOut);
        }
        crate::rt::spawn(async move {
            let fine = guarded(async move {
                demand.post.arm(PAGE_TIME);
                let leaves = visitor.leaves();
                let _ = leaves.unless(one_visit(&demand, &visitor)).await;
            });
            if !fine.await {
                tracing::error!("whoever serves a page panicked; please report this");
            }
        });
    })
    .await;
}

impl Offer {
    /// One was not served for want of a place.
    fn note_no_place(&self, result: AdminResult) {
        match &self.door {
            Some(door) => door.numbers.note(result),
            None => drop(self.pages.turned_away().fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// Says to a new one, who may not have sent anything yet, that there is no place.
fn turn_away(socket: &Socket) {
    let full = AdminAnswer::error(503, "overloaded", "too many ask at a time");
    // It fits into what the kernel takes of a new connection, or the client is gone.
    let _ = socket.try_send(&[IoSlice::new(&written(Method::Get, &full))]);
    socket.shutdown(Shutdown::Write);
    // What has come and is not read would become a reset, which might overtake the answer.
    let _ = socket.try_recv(&mut Buffer::take());
}

/// Those who were closed because too many ask. Whoever comes again and again must not fill the log.
#[derive(Default)]
struct TurnedAway {
    told: Option<Instant>,
    untold: u64,
}

impl TurnedAway {
    /// One more; how many are to be told of now, once a second at most.
    fn note(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < WARNING_PAUSE) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

async fn one_visit(demand: &Demand, visitor: &Visitor) -> Result<(), Alarm> {
    let Demand { post, offer, .. } = demand;
    while !demand.hear()? {
        post.attended(post.socket().readable()).await?.map_err(|_| Alarm::Gone)?;
    }
    let Some(Hearing { bytes, head, asked: Some(asked) }) = demand.take() else {
        return Ok(());
    };
    let is_page = matches!(asked, VisitAsked::Page(_));
    let answer = match (asked, &offer.door) {
        (VisitAsked::Refused(refused), _) => refused,
        (VisitAsked::Api(may_change, len), Some(door)) => {
            visitor.let_in();
            door.visit((post, may_change), &head, &bytes, len).await?
        }
        // It was asked through that door.
        (VisitAsked::Api(..), None) => return Ok(()),
        (VisitAsked::Page(page), _) => {
            visitor.let_in();
            answer(post, head.method, page, &offer.pages).await?
        }
    };
    // Whoever showed a token may read as slowly as it likes.
    send((post, is_page.then_some(visitor)), head.method, &answer).await?;
    visitor.is_served();
    take_the_rest(post).await
}

/// The bytes of an answer.
fn written(method: Method, answer: &AdminAnswer) -> Buffer {
    let mut out = Buffer::take();
    let fields: Vec<_> =
        answer.fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let own = OwnResponse {
        status: answer.status,
        content_type: answer.content_type,
        body_len: answer.body.len() as u64,
        fields: &fields,
        client: Version::Http11,
        close: true,
        request_id: "",
    };
    write::own(&mut out, &own);
    if method != Method::Head {
        out.extend_from_slice(&answer.body);
    }
    out
}

/// Sends it. A visitor that is given here makes room for others while it does not read.
async fn send(
    (post, visitor): (&Post, Option<&Visitor>),
    method: Method,
    answer: &AdminAnswer,
) -> Result<(), Alarm> {
    let out = written(method, answer);
    let mut rest = out.as_slice();
    while !rest.is_empty() {
        match post.socket().try_send(&[IoSlice::new(rest)]) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                visitor.iter().for_each(|visitor| visitor.is_slow());
                post.attended(post.socket().writable()).await?.map_err(|_| Alarm::Gone)?;
                visitor.iter().for_each(|visitor| visitor.let_in());
            }
            Err(_) => return Err(Alarm::Gone),
        }
    }
    Ok(())
}

/// Takes what a client still sends whose answer did not wait for all of it.
async fn take_the_rest(post: &Post) -> Result<(), Alarm> {
    post.socket().shutdown(Shutdown::Write);
    let (mut bytes, mut taken) = (Buffer::take(), 0);
    while taken < UNREAD_BYTES_MAX {
        post.within(post.socket().readable()).await?.map_err(|_| Alarm::Gone)?;
        bytes.clear();
        match post.socket().try_recv(&mut bytes) {
            Ok(0) => break,
            Ok(n) => taken += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    Ok(())
}

const TEXT: &str = "text/plain";

fn text(status: u16, text: &str) -> AdminAnswer {
    let (content_type, body) = (TEXT, text.as_bytes().into());
    AdminAnswer { status, content_type, fields: Vec::new(), body }
}

async fn answer(
    post: &Post,
    method: Method,
    page: Option<Page>,
    pages: &AskPage,
) -> Result<AdminAnswer, Alarm> {
    let Some(page) = page else { return Ok(text(404, "not here\n")) };
    if !matches!(method, Method::Get | Method::Head) {
        let mut answer = text(405, "GET and HEAD only\n");
        answer.fields.push(("Allow", "GET, HEAD".to_owned()));
        return Ok(answer);
    }
    let Some(reply) = pages.ask(page) else {
        return Ok(text(503, "too many ask at a time\n"));
    };
    match post.attended(reply).await? {
        Ok(body) => {
            let content_type = page.content_type();
            Ok(AdminAnswer { status: 200, content_type, fields: Vec::new(), body })
        }
        Err(_) => Ok(text(503, "stopping\n")),
    }
}
