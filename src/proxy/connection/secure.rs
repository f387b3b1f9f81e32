//! The TLS handshake with a client, before its first request.

use crate::base::tls_fault::TlsFault;
use crate::proxy::client::Client;
use crate::proxy::receive::Request;
use crate::proxy::shared::Shared;
use crate::rt::patrol::Alarm;
use crate::state::meters::HANDSHAKE_FAULTS;
use rustls::ServerConfig;
use std::io;
use std::sync::Arc;

/// Does the handshake within `server.header_timeout`. False: the connection closes.
pub(super) async fn secure(
    w: &Shared,
    client: &mut Client,
    request: &mut Request,
    config: Arc<ServerConfig>,
) -> bool {
    client.post.arm(w.view().plan.server.header_timeout);
    let early = client.inbox.take();
    if early.is_none() {
        // Who says nothing does not keep others from theirs.
        match client.post.within(client.post.socket().readable()).await {
            Ok(_) => {}
            Err(alarm) => return end(w, request, &alarm),
        }
    }
    let Some(place) = client.post.enter_handshake() else {
        fail(w, request, "too_many", &"too many at one time");
        return false;
    };
    let bytes = early.as_deref().map_or(&[][..], Vec::as_slice);
    let ended = client.post.shake_hands(config, bytes).await;
    drop((place, early));
    match ended {
        Ok(Ok(())) => {
            let version = usize::from(client.post.has_newest_seal());
            w.shelf.meters.borrow_mut().handshakes[version] += 1;
            client.post.seal_label().into_iter().for_each(|label| request.from.set_sealed(label));
            match client.post.is_challenge() {
                true => client.close_gently().await,
                false => return true,
            }
            false
        }
        Ok(Err(error)) => {
            let why = reason(&error);
            fail(w, request, why, &error);
            if why != "closed" {
                // What it sent behind is not read, and must not cost it the alert that says why.
                client.close_gently().await;
            }
            false
        }
        Err(alarm) => end(w, request, &alarm),
    }
}

/// It came to no end.
fn end(w: &Shared, request: &Request, alarm: &Alarm) -> bool {
    match alarm {
        Alarm::Expired => fail(w, request, "timeout", &"it took too long"),
        Alarm::Gone => fail(w, request, "closed", &"the connection ended"),
        Alarm::CalledOff => fail(w, request, "too_many", &"it was silent, and others wait"),
        // Our own doing.
        Alarm::Ended => {}
    }
    false
}

/// One of [`HANDSHAKE_FAULTS`].
fn reason(error: &io::Error) -> &'static str {
    if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
        return "closed";
    }
    match TlsFault::of(error) {
        TlsFault::NotTls => "not_tls",
        TlsFault::Alert => "alert",
        TlsFault::Other => "other",
        _ => "certificate",
    }
}

fn fail(w: &Shared, request: &Request, why: &'static str, error: &dyn std::fmt::Display) {
    let place = HANDSHAKE_FAULTS.iter().position(|known| *known == why);
    let mut meters = w.shelf.meters.borrow_mut();
    if let Some(count) = place.and_then(|place| meters.handshakes_failed.get_mut(place)) {
        *count += 1;
    }
    let peer = request.from.client_text();
    tracing::debug!(%peer, why, %error, "a TLS handshake failed");
}
