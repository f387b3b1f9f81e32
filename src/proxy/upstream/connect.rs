//! A fresh connection to a backend, TLS included, within a time limit.

use crate::base::fault::Fault;
use crate::base::panic_point;
use crate::base::tls_fault::TlsFault;
use crate::config::plan::Endpoint;
use crate::proxy::client::Client;
use crate::proxy::shelf::Shelf;
use crate::rt;
use crate::rt::patrol::Alarm;
use crate::rt::socket::Socket;
use crate::rt::tls::Link;
use crate::state::member::{Member, MemberTls};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connects. The whole of it takes so long at most, and it ends when the client leaves.
pub async fn connect(
    shelf: &Shelf,
    client: &Client,
    (member, limit): (&Member, Duration),
) -> Result<Link, Fault> {
    let plan = &member.plan;
    let (started, tick) = (Instant::now(), client.post.now());
    let socket = match &plan.endpoint {
        Endpoint::Unix(path) => {
            client.post.arm(limit);
            attended(client, rt::connect::unix(path)).await?
        }
        Endpoint::Tcp { .. } => any_address(client, member, limit).await?,
    };
    client.post.arm(limit.saturating_sub(client.post.since(tick)));
    let link = secure(client, member, socket).await?;
    panic_point::pass("connecting");
    let mut meters = shelf.meters.borrow_mut();
    meters.connect.record(started.elapsed());
    meters.upstream[0] += 1;
    Ok(link)
}

/// Tries the addresses of a name in turn; each gets its share of the time, so that one that drops
/// packets cannot use it up.
async fn any_address(client: &Client, member: &Member, limit: Duration) -> Result<Socket, Fault> {
    let addresses = member.addresses().to_vec();
    let share = limit / addresses.len().max(1) as u32;
    let mut fault = Fault::Unresolved;
    for address in addresses {
        client.post.arm(share);
        match attended(client, rt::connect::tcp(address)).await {
            Ok(socket) => return Ok(socket),
            Err(Fault::ConnectFailed) => fault = Fault::ConnectFailed,
            Err(Fault::ConnectTimeout) => fault = Fault::ConnectTimeout,
            Err(other) => return Err(other),
        }
    }
    Err(fault)
}

async fn secure(client: &Client, member: &Member, socket: Socket) -> Result<Link, Fault> {
    let Some(MemberTls { config, name }) = &member.tls else { return Ok(Link::plain(socket)) };
    let handshake = async {
        // Its failure is an outcome here, so that its reason is not lost.
        let done = Link::handshake(socket, Arc::clone(config), name.clone()).await;
        Ok(done.map_err(|error| {
            tracing::debug!(%error, "TLS handshake failed");
            Fault::TlsFailed(TlsFault::of(&error))
        }))
    };
    attended(client, handshake).await?
}

/// Waits for a step of the connect. Boxed by `exchange`: connects are rare, streams are long.
async fn attended<T>(
    client: &Client,
    step: impl std::future::Future<Output = std::io::Result<T>>,
) -> Result<T, Fault> {
    match client.post.attended(step).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            tracing::debug!(%error, "connect failed");
            Err(Fault::ConnectFailed)
        }
        Err(Alarm::Expired) => Err(Fault::ConnectTimeout),
        Err(Alarm::Gone) => Err(Fault::ClientLeft),
        Err(Alarm::Ended) => Err(Fault::ShuttingDown),
        Err(Alarm::CalledOff) => Err(Fault::BackendEjected),
    }
}
