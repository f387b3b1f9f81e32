//! The thread that makes pages (the metrics, how the backends are), and the control plane's own
//! listeners that serve them: the address of the metrics, if it has one, and the admin socket.

use super::metrics::{render, Facts};
use super::roster;
use crate::base::limits::HEAD_BYTES_MAX;
use crate::http::head::{Parse, Version};
use crate::http::request::{Method, RequestHead};
use crate::http::write::{self, OwnResponse};
use crate::rt::buffer::Buffer;
use crate::rt::guard::guarded;
use crate::rt::listen::{accept_loop, Arrival};
use crate::rt::patrol::{Alarm, Gone, Patrol, Post};
use crate::state::ask::Questions;
use crate::state::scrape::{AskPage, Page};
use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Scrapers at a time; their descriptors are those that are reserved. Beyond: closed.
pub const SCRAPERS_MAX: usize = 16;
/// Whoever asks for a page sends the request and takes the page within so long.
const PAGE_TIME: Duration = Duration::from_secs(10);
/// From one line of the log about those who were turned away to the next.
const WARNING_PAUSE: Duration = Duration::from_secs(1);

/// Starts the thread that makes the page for all who ask. It ends when nobody can ask any more.
pub fn start(
    mut questions: Questions<Page, Arc<[u8]>>,
    mut collect: impl FnMut() -> Facts + Send + 'static,
) -> io::Result<()> {
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        let mut goes_on = true;
        while goes_on {
            super::survive("metrics", || {
                goes_on = questions.answer_next(|page| match page {
                    Page::Metrics => render(collect()).into_bytes().into(),
                    Page::Backends => roster::render(collect()).into(),
                });
            });
        }
    })?;
    Ok(())
}

/// Says which page is to be had under a path.
type PageOf = dyn Fn(&[u8]) -> Option<Page>;

/// A listener at which pages are to be had.
pub struct Outlet {
    /// The listener.
    pub listener: OwnedFd,
    /// Those who ask at a time. Beyond: closed.
    pub visitors_max: usize,
    /// The page that is to be had under a path.
    pub page_of: Box<PageOf>,
}

/// Serves pages on a listener of their own, on the current ring, for as long as the ring runs. One
/// request for each connection: whatever the end is, it closes.
pub async fn serve(outlet: Outlet, patrol: Rc<Patrol>, pages: AskPage) {
    let Outlet { listener, visitors_max, page_of } = outlet;
    let (live, page_of) = (Rc::new(Cell::new(0)), Rc::new(page_of));
    let mut turned_away = TurnedAway::default();
    accept_loop(listener, &patrol, |arrival| {
        let Arrival::Client(socket, _) = arrival else { return };
        if live.get() == visitors_max {
            if let Some(closed) = turned_away.note(Instant::now()) {
                tracing::warn!(visitors_max, closed, "too many ask for pages at a time");
            }
            return;
        }
        let Ok(post) = patrol.watch(socket, Gone::AtFin) else { return };
        let (pages, live, page_of) = (pages.clone(), Rc::clone(&live), Rc::clone(&page_of));
        live.set(live.get() + 1);
        crate::rt::spawn(async move {
            let fine = guarded(async move {
                post.arm(PAGE_TIME);
                let _ = one_visit(&post, &**page_of, &pages).await;
            });
            if !fine.await {
                tracing::error!("whoever serves a page panicked; please report this");
            }
            live.set(live.get() - 1);
        });
    })
    .await;
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

async fn one_visit(post: &Post, page_of: &PageOf, pages: &AskPage) -> Result<(), Alarm> {
    let mut bytes = Buffer::take();
    let mut head = RequestHead::default();
    let (status, content_type, body) = loop {
        match head.parse(&bytes, HEAD_BYTES_MAX) {
            Err(refusal) => break (refusal.status, TEXT, Arc::default()),
            Ok(Parse::Done { .. }) => {
                let page = page_of(head.path.of(&bytes));
                break answer(post, head.method, page, pages).await?;
            }
            Ok(Parse::Partial) => {}
        }
        post.attended(post.socket().readable()).await?.map_err(|_| Alarm::Gone)?;
        if bytes.len() == bytes.capacity() {
            bytes.reserve(HEAD_BYTES_MAX);
        }
        match post.socket().try_recv(&mut bytes) {
            Ok(0) => return Err(Alarm::Gone),
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(Alarm::Gone),
            _ => {}
        }
    };
    let mut out = Buffer::take();
    let own = OwnResponse {
        status,
        content_type,
        body_len: body.len() as u64,
        fields: &[],
        client: Version::Http11,
        close: true,
        request_id: "",
    };
    write::own(&mut out, &own);
    if head.method != Method::Head {
        out.extend_from_slice(&body);
    }
    let mut rest = out.as_slice();
    while !rest.is_empty() {
        match post.socket().try_send(&[IoSlice::new(rest)]) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                post.attended(post.socket().writable()).await?.map_err(|_| Alarm::Gone)?;
            }
            Err(_) => return Err(Alarm::Gone),
        }
    }
    Ok(())
}

const TEXT: &str = "text/plain";

async fn answer(
    post: &Post,
    method: Method,
    page: Option<Page>,
    pages: &AskPage,
) -> Result<(u16, &'static str, Arc<[u8]>), Alarm> {
    let Some(page) = page else { return Ok((404, TEXT, (*b"not here\n").into())) };
    if !matches!(method, Method::Get | Method::Head) {
        return Ok((405, TEXT, (*b"GET and HEAD only\n").into()));
    }
    let Some(reply) = pages.ask(page) else {
        return Ok((503, TEXT, (*b"too many ask at a time\n").into()));
    };
    match post.attended(reply).await? {
        Ok(body) => Ok((200, page.content_type(), body)),
        Err(_) => Ok((503, TEXT, (*b"stopping\n").into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a line of the log for each of thousands, and some of which nobody ever hears.
    #[test]
    fn those_who_are_turned_away_are_told_of_once_a_second() {
        let (mut turned_away, start) = (TurnedAway::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let told: Vec<_> = [0, 1, 999, 1_000, 1_001, 5_000]
            .into_iter()
            .map(|ms| turned_away.note(at(ms)))
            .collect();
        assert_eq!(told, [Some(1), None, None, Some(3), None, Some(2)]);
    }
}
