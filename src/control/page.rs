//! The thread that makes metrics pages, and, where the configuration gives the page an address of
//! its own, the listener that serves it.

use super::metrics::{render, Facts};
use crate::base::limits::HEAD_BYTES_MAX;
use crate::http::head::{Parse, Version};
use crate::http::request::{Method, RequestHead};
use crate::http::write::{self, OwnResponse};
use crate::rt::buffer::Buffer;
use crate::rt::guard::guarded;
use crate::rt::listen::{accept_loop, Arrival};
use crate::rt::patrol::{Alarm, Gone, Patrol, Post};
use crate::state::ask::Questions;
use crate::state::board::Board;
use crate::state::scrape::{AskPage, PAGE_CONTENT_TYPE};
use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Scrapers at a time; their descriptors are those that are reserved. Beyond: closed.
const SCRAPERS_MAX: usize = 16;
/// A scraper sends its request and takes its page within so long.
const SCRAPE_TIME: Duration = Duration::from_secs(10);

/// Starts the thread that makes the page for all who ask. It ends when nobody can ask any more.
pub fn start(
    mut questions: Questions<(), Arc<[u8]>>,
    mut collect: impl FnMut() -> Facts + Send + 'static,
) -> io::Result<()> {
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        let mut goes_on = true;
        while goes_on {
            super::survive("metrics", || {
                goes_on = questions.answer_next(|()| render(collect()).into_bytes().into());
            });
        }
    })?;
    Ok(())
}

/// Serves the page on a listener of its own, on the current ring, for as long as the ring runs.
pub async fn serve(listener: OwnedFd, patrol: Rc<Patrol>, board: Arc<Board>, pages: AskPage) {
    let live = Rc::new(Cell::new(0));
    accept_loop(listener, &patrol, |arrival| {
        let Arrival::Client(socket, _) = arrival else { return };
        if live.get() == SCRAPERS_MAX {
            return tracing::warn!("too many scrapers at a time: one was turned away");
        }
        let Ok(post) = patrol.watch(socket, Gone::AtFin) else { return };
        let (pages, live) = (pages.clone(), Rc::clone(&live));
        let path = board.view().plan.metrics.as_ref().map(|page| page.path.clone());
        let path = path.unwrap_or_default();
        live.set(live.get() + 1);
        crate::rt::spawn(async move {
            let fine = guarded(async move {
                post.arm(SCRAPE_TIME);
                // Whatever the end is, the connection closes: scrapes are rare.
                let _ = one_scrape(&post, &path, &pages).await;
            });
            if !fine.await {
                tracing::error!("a scrape panicked; please report this");
            }
            live.set(live.get() - 1);
        });
    })
    .await;
}

async fn one_scrape(post: &Post, path: &str, pages: &AskPage) -> Result<(), Alarm> {
    let mut bytes = Buffer::take();
    let mut head = RequestHead::default();
    let (status, body) = loop {
        match head.parse(&bytes, HEAD_BYTES_MAX) {
            Err(refusal) => break (refusal.status, Arc::default()),
            Ok(Parse::Done { .. }) => break answer(post, &head, &bytes, path, pages).await?,
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
        content_type: if status == 200 { PAGE_CONTENT_TYPE } else { "text/plain" },
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

async fn answer(
    post: &Post,
    head: &RequestHead,
    bytes: &[u8],
    path: &str,
    pages: &AskPage,
) -> Result<(u16, Arc<[u8]>), Alarm> {
    if head.path.of(bytes) != path.as_bytes() {
        return Ok((404, (*b"not here\n").into()));
    }
    if !matches!(head.method, Method::Get | Method::Head) {
        return Ok((405, (*b"GET and HEAD only\n").into()));
    }
    let Some(page) = pages.ask(()) else {
        return Ok((503, (*b"too many scrapes at a time\n").into()));
    };
    match post.attended(page).await? {
        Ok(page) => Ok((200, page)),
        Err(_) => Ok((503, (*b"stopping\n").into())),
    }
}
