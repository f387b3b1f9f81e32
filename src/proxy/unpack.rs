//! A request body that came packed is unpacked before anything is decided by it, and goes on
//! unpacked: bytes can be one thing packed and another one plain, and only so is what we read what
//! the engine reads.

use super::client::{no_memory, Client};
use super::receive::Request;
use crate::base::limits::UNPACKED_RATIO_MAX;
use crate::base::panic_point;
use crate::base::refusal::Refusal;
use crate::config::plan::Server;
use crate::llm::inflate::Coding;
use crate::llm::unpack::{BodyUnpacking, UnpackFault};
use crate::rt::buffer::Buffer;
use crate::rt::turns::Turns;

/// Puts what the body stands for in its place. In steps, between which all other connections of
/// the worker go on.
pub async fn unpack(
    (turns, server): (&Turns, &Server),
    client: &mut Client,
    request: &mut Request,
    coding: Coding,
) -> Result<(), Refusal> {
    if request.body(client.bytes()).is_empty() {
        return Ok(());
    }
    client.post.arm(server.body_timeout);
    let _turn = client.wait_for(turns.take()).await?;
    let bytes_max = server.max_body_size;
    let refused = |fault| refusal(fault, bytes_max);
    let mut unpacked = Buffer::take();
    let most = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    let mut unpacking =
        BodyUnpacking::new(coding, request.body(client.bytes()), bytes_max).map_err(refused)?;
    loop {
        panic_point::pass("unpacking");
        let (piece, is_last) = unpacking.step().map_err(refused)?;
        if !unpacked.append(piece, most) {
            return Err(no_memory());
        }
        if is_last {
            break;
        }
        client.pause().await?;
    }
    drop(unpacking);
    request.replace_body(client, unpacked);
    Ok(())
}

fn refusal(fault: UnpackFault, bytes_max: u64) -> Refusal {
    match fault {
        UnpackFault::Broken => Refusal::new(
            400,
            "bad_content_encoding",
            "The body is not what its Content-Encoding says, or not one whole.",
        ),
        UnpackFault::TooLarge => Refusal::new(413, "body_too_large", "").with_message(format!(
            "The request body is larger than the limit of {bytes_max} bytes \
             (server.max_body_size) when it is unpacked, or needs too much memory for that."
        )),
        UnpackFault::TooDense => Refusal::new(413, "body_too_dense", "").with_message(format!(
            "The request body becomes more than {UNPACKED_RATIO_MAX} times as large when it is \
             unpacked."
        )),
    }
}
