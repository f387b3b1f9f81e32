//! Reads a request: its head, then, once it is admitted, its body. The only caller of the `http`
//! parsers on the client's side. Every wait has a deadline that names itself.

use super::client::{no_memory, Client};
use super::pace::Pace;
use super::trace::TraceNotes;
use super::whence::Whence;
use crate::base::fault::Fault;
use crate::base::id::RequestId;
use crate::base::limits::{BODY_BYTES_MAX, BUFFER_BYTES, HEAD_BYTES_MAX};
use crate::base::refusal::Refusal;
use crate::config::plan::Server;
use crate::http::chunked::{ChunkDecoder, Piece};
use crate::http::framing::Framing;
use crate::http::head::Parse;
use crate::http::proxy_protocol::{self, ProxyHeader};
use crate::http::request::{Method, RequestHead};
use crate::http::write;
use crate::llm::dialect::Dialect;
use crate::llm::request::{edited, Edit, SpliceForm, UsageSplice};
use crate::rt::buffer::Buffer;
use crate::rt::patrol::{Alarm, Part};
use crate::usage::access::Said;
use std::io::IoSlice;
use std::ops::Range;
use std::time::{Duration, Instant};

/// What a client said of itself, and what is known of it, kept because its head is gone when the
/// request is settled.
#[derive(Default)]
pub struct Presented {
    /// Its key, in the form that records keep it in; empty when it presented none.
    pub key: String,
    /// What engines are told of whose it is, as lines of a head; empty: nothing.
    pub identity: Vec<u8>,
    /// What a line of the combined log wants; `None` where none is written.
    pub said: Option<Box<Said>>,
    /// Its id of the request, when it sent a harmless one.
    pub id: Option<RequestId>,
    /// Where it stands in a trace; `None`: it is not traced. Boxed: few are.
    pub trace: Option<Box<TraceNotes>>,
}

/// Another name that the model of a request has at the engines. Kept beside the view that it comes
/// from: a request goes by one name to its end, whatever is configured meanwhile.
#[derive(Default)]
struct Renamed {
    /// Empty: it has no other name.
    served: String,
    /// The bytes that stand for it in the body.
    written: Vec<u8>,
    /// The bytes of the body in whose place they stand.
    at: Range<usize>,
}

/// One request and what is known of it. One per connection, used again for each request, so that
/// a kept connection allocates nothing for its heads.
pub struct Request {
    /// The head; its spans point into the client's inbox.
    pub head: RequestHead,
    /// Bytes of the head in the inbox: four, as all that is kept here is kept for each stream.
    head_len: u32,
    /// The body was read (or there is none).
    pub body_read: bool,
    /// Bytes of the inbox that belong to this request, head included; four, as above. No inbox is
    /// longer.
    wire_len: u32,
    /// Our own, unique id: the key of records.
    pub unique_id: RequestId,
    /// Label of the path in metrics and records, from a fixed set.
    pub path_label: &'static str,
    /// The form of the answers that path and body ask for, at a backend without a base path.
    pub dialect: Dialect,
    /// Where it comes from. Boxed: a stream has little room.
    pub from: Box<Whence>,
    /// Decoded bytes of the body.
    pub body_len: u64,
    /// Path without its query (a query may carry a key), in its plainest spelling.
    pub path: String,
    /// The method, for records; `None` when the head could not be read.
    pub method: Option<Method>,
    /// The model asked for, by the client's name for it; empty when the request has none that we
    /// read.
    pub model: String,
    /// What the engines call it, where that is another name. Boxed, and kept for its capacity.
    renamed: Option<Box<Renamed>>,
    /// The client asked for a stream.
    pub stream: bool,
    /// It asked for counts in each event.
    pub wants_counts: bool,
    /// When the head was complete.
    pub started: Instant,
    /// What the client said of itself, as far as a record or a log wants it. Boxed, and kept for
    /// its capacity: a stream has little room.
    pub presented: Option<Box<Presented>>,
    /// The body, where it did not arrive as it is. Boxed: that is rare.
    decoded: Option<Box<Buffer>>,
    // The two halves of a `UsageSplice`, apart: together they would not fit between the others.
    splice_at: u32,
    splice_form: Option<SpliceForm>,
}

impl Request {
    /// Bytes of the head in the inbox.
    fn head_len(&self) -> usize {
        self.head_len as usize
    }

    /// The client's id of the request, when it sent a harmless one.
    pub fn client_id(&self) -> Option<&RequestId> {
        self.presented.as_ref()?.id.as_ref()
    }

    /// Where it stands in a trace; `None`: it is not traced.
    pub fn trace(&self) -> Option<&TraceNotes> {
        self.presented.as_ref()?.trace.as_deref()
    }

    /// Bytes of the inbox that belong to this request.
    fn wire_len(&self) -> usize {
        self.wire_len as usize
    }

    /// Bytes of the inbox that came behind the head.
    pub fn bytes_behind_head(&self, inbox: &[u8]) -> usize {
        inbox.len().saturating_sub(self.head_len())
    }

    /// An empty one, of a client that is connected to us from somewhere.
    pub fn new(id: RequestId, from: Box<Whence>) -> Request {
        Request {
            from,
            body_len: 0,
            head: RequestHead::default(),
            head_len: 0,
            body_read: true,
            wire_len: 0,
            unique_id: id,
            path_label: "",
            dialect: Dialect::Other,
            path: String::new(),
            method: None,
            model: String::new(),
            renamed: None,
            stream: false,
            wants_counts: false,
            started: Instant::now(),
            presented: None,
            decoded: None,
            splice_at: 0,
            splice_form: None,
        }
    }

    fn reset(&mut self) {
        self.head.reset();
        self.from.reset();
        self.head_len = 0;
        self.wire_len = 0;
        self.path_label = "other";
        self.dialect = Dialect::Other;
        self.method = None;
        self.path.clear();
        self.model.clear();
        if let Some(renamed) = &mut self.renamed {
            renamed.served.clear();
        }
        self.stream = false;
        self.wants_counts = false;
        self.body_len = 0;
        self.decoded = None;
        if let Some(Presented { key, identity, said, id, trace }) = self.presented.as_deref_mut() {
            *id = None;
            *trace = None;
            identity.clear();
            key.clear();
            *said = None;
        }
        self.splice_form = None;
    }

    /// The form of the answers at a backend with this base path.
    pub fn dialect_at(&self, base_path: &str) -> Dialect {
        match base_path {
            "" => self.dialect,
            base => Dialect::behind(base, self.path.as_bytes()).unwrap_or(self.dialect),
        }
    }

    /// Gives the model the name that engines know it by; `written` stands in the body at `at`.
    pub fn rename_model(&mut self, served: &str, written: &[u8], at: Range<usize>) {
        let renamed = self.renamed.get_or_insert_default();
        renamed.served.clear();
        renamed.served.push_str(served);
        renamed.written.clear();
        renamed.written.extend_from_slice(written);
        renamed.at = at;
    }

    fn renamed(&self) -> Option<&Renamed> {
        self.renamed.as_deref().filter(|renamed| !renamed.served.is_empty())
    }

    /// The model by the name that engines know: that which is routed, and which they are asked for.
    pub fn served_model(&self) -> &str {
        self.renamed().map_or(&self.model, |renamed| &renamed.served)
    }

    /// The body as engines get it, in pieces that are sent one after the other: what the client
    /// sent, but for the name of the model and, if `with_wish`, the wish for usage. `inbox` is the
    /// client's.
    pub fn pieces<'a>(&'a self, inbox: &'a [u8], with_wish: bool) -> [&'a [u8]; 5] {
        let wish = self.usage_splice().filter(|_| with_wish).map(UsageSplice::edit);
        let name =
            self.renamed().map(|renamed| Edit { at: renamed.at.clone(), with: &renamed.written });
        edited(self.body(inbox), [name, wish])
    }

    /// How its body can ask for the usage of the stream; `None` where there is nothing to ask for.
    pub fn usage_splice(&self) -> Option<UsageSplice> {
        self.splice_form.map(|form| UsageSplice::new(self.splice_at, form))
    }

    /// Keeps what [`Request::usage_splice`] gives.
    pub fn set_usage_splice(&mut self, splice: Option<UsageSplice>) {
        self.splice_at = splice.map_or(0, UsageSplice::at);
        self.splice_form = splice.map(UsageSplice::form);
    }

    /// The id that travels as `x-request-id`: the client's own, or else ours.
    pub fn id(&self) -> &RequestId {
        self.client_id().unwrap_or(&self.unique_id)
    }

    /// The decoded body. `inbox` is the client's.
    pub fn body<'a>(&'a self, inbox: &'a [u8]) -> &'a [u8] {
        match &self.decoded {
            Some(decoded) => decoded,
            None => inbox.get(self.head_len()..self.wire_len()).unwrap_or_default(),
        }
    }

    /// Puts what a packed body stands for in its place.
    pub fn replace_body(&mut self, client: &mut Client, body: Buffer) {
        if let Some(inbox) = client.inbox.as_mut() {
            // Nothing when the body was decoded from chunks.
            let end = self.wire_len().min(inbox.len());
            inbox.drain(self.head_len()..end);
        }
        self.wire_len = self.head_len;
        self.body_len = body.len() as u64;
        self.decoded = Some(Box::new(body));
    }

    /// True when the request has a body, be it of no bytes.
    pub fn has_body(&self) -> bool {
        self.head.framing != Framing::None
    }

    /// True while all of it is in hand, so that it can be sent (again).
    pub fn is_in_hand(&self) -> bool {
        self.wire_len > 0
    }

    /// Gives up what only the exchange needed: a stream that runs for minutes holds no prompt.
    pub fn release_body(&mut self, client: &mut Client) {
        self.decoded = None;
        client.consume(self.wire_len());
        self.wire_len = 0;
    }

    /// Gives up the fields of the head, whose capacity is kept from request to request else.
    pub fn release_head(&mut self) {
        self.head.fields = Vec::new();
    }
}

/// What became of a read.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// All of it is there.
    Whole,
    /// The client closed or the worker ends; there is nobody to answer.
    Closed,
    /// Nothing came for `idle_timeout`.
    Idled,
}

/// What bounds the wait for a head, and the head.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    idle_timeout: Duration,
    header_timeout: Duration,
    max_header_bytes: usize,
}

impl HeadLimits {
    /// Those of the configuration.
    pub fn of(server: &Server) -> HeadLimits {
        HeadLimits {
            idle_timeout: server.idle_timeout,
            header_timeout: server.header_timeout,
            max_header_bytes: server.max_header_bytes,
        }
    }
}

/// Reads what a balancer says of a connection before its client says anything. False: it says what
/// is no header of the PROXY protocol, or nothing for so long, or has left.
pub async fn proxy_header(client: &mut Client, from: &mut Whence, time: Duration) -> bool {
    client.post.arm(time);
    loop {
        match proxy_protocol::parse(client.bytes()) {
            Ok(ProxyHeader::Whole { len, source }) => {
                client.consume(len);
                from.hear(source);
                return true;
            }
            Ok(ProxyHeader::Partial) => {}
            Err(_) => return false,
        }
        if !matches!(client.read_more(0).await, Ok(n) if n > 0) {
            return false;
        }
    }
}

/// Reads the next request's head. An idle connection waits here without a buffer.
pub async fn head(
    client: &mut Client,
    request: &mut Request,
    limits: HeadLimits,
) -> Result<Received, Refusal> {
    request.reset();
    if client.inbox.is_none() {
        client.post.arm(limits.idle_timeout);
        client.post.set_idle();
        let got = client.read_more(0).await;
        client.post.set_busy();
        match got {
            Ok(n) if n > 0 => {}
            Err(Alarm::Expired) => return Ok(Received::Idled),
            _ => return Ok(Received::Closed),
        }
    } else {
        // A train of small requests in one buffer must not be answered in one turn.
        client.post.skip_wait();
        client.post.take_turns().await;
    }
    // Of a head that never becomes whole, this is all that is known of its time.
    request.started = Instant::now();
    // From the first byte on: a deadline for the whole head, not one for each read of it.
    client.post.arm(limits.header_timeout);
    let limit = limits.max_header_bytes.min(HEAD_BYTES_MAX);
    let mut reads = 0;
    loop {
        if let Parse::Done { len } = request.head.parse(client.bytes(), limit)? {
            request.head_len = u32::try_from(len).unwrap_or(u32::MAX);
            request.wire_len = u32::try_from(len).unwrap_or(u32::MAX);
            request.body_read = !request.has_body();
            if reads > 0 {
                request.started = Instant::now();
                client.post.set_busy();
            }
            return Ok(Received::Whole);
        }
        if reads == 0 {
            client.post.set_receiving(Part::Head);
        }
        client.make_room(limit)?;
        match client.read_more(0).await {
            Ok(0) | Err(Alarm::Gone) => return Ok(Received::Closed),
            Ok(_) => reads += 1,
            Err(Alarm::Expired) => return Err(HEADER_TIMEOUT),
            Err(Alarm::Ended | Alarm::CalledOff) => return Err(Fault::ShuttingDown.refusal()),
        }
    }
}

/// Reads the body that the head announces, decoded bytes at most `max_body_size`.
pub async fn body(
    client: &mut Client,
    request: &mut Request,
    server: &Server,
) -> Result<Received, Refusal> {
    match request.head.framing {
        Framing::None => return Ok(Received::Whole),
        Framing::Length(n) if n > server.max_body_size => return Err(too_large(server)),
        _ if Buffer::is_budget_spent() => return Err(no_memory()),
        _ => {}
    }
    if request.head.expect_continue && client.bytes().len() <= request.head_len() {
        let mut go_on = [IoSlice::new(write::CONTINUE)];
        if client.send(&mut go_on).await.is_err() {
            return Ok(Received::Closed);
        }
    }
    match request.head.framing {
        Framing::Length(n) => counted(client, request, server, n).await,
        _ => chunked(client, request, server).await,
    }
}

/// A body with a Content-Length stays where it was read, behind its head.
async fn counted(
    client: &mut Client,
    request: &mut Request,
    server: &Server,
    length: u64,
) -> Result<Received, Refusal> {
    // The limit was checked, and it fits in memory by configuration.
    let whole = request.head_len().saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
    let mut pace = None;
    while client.bytes().len() < whole {
        let missing = whole - client.bytes().len();
        client.make_room(missing)?;
        let pace = pace.get_or_insert_with(|| begin_wait(client));
        match read_paced(client, server, pace, small(missing)).await? {
            Received::Whole => {}
            ended => return Ok(ended),
        }
    }
    if pace.is_some() {
        client.post.set_busy();
    }
    request.wire_len = u32::try_from(whole).unwrap_or(u32::MAX);
    request.body_read = true;
    request.body_len = length;
    Ok(Received::Whole)
}

/// A chunked body is decoded into a vector of its own; what follows it stays in the inbox.
async fn chunked(
    client: &mut Client,
    request: &mut Request,
    server: &Server,
) -> Result<Received, Refusal> {
    let mut decoder = ChunkDecoder::new(HEAD_BYTES_MAX);
    let mut decoded = Buffer::take();
    let most = usize::try_from(server.max_body_size).unwrap_or(usize::MAX);
    let mut pace = None;
    loop {
        let mut at = request.head_len();
        let finished = loop {
            let input = client.bytes().get(at..).unwrap_or_default();
            match decoder.decode(input).map_err(|bad| bad_chunk(bad.0))? {
                Piece::Data { start, end } => {
                    let data = input.get(start..end).unwrap_or_default();
                    if decoded.len() as u64 + data.len() as u64 > server.max_body_size {
                        return Err(too_large(server));
                    }
                    if !decoded.append(data, most) {
                        return Err(no_memory());
                    }
                    at += end;
                }
                Piece::NeedMore => break false,
                Piece::End { consumed } => {
                    at += consumed;
                    break true;
                }
            }
        };
        if let Some(inbox) = client.inbox.as_mut() {
            // Chunks that were taken in make room, so that the inbox stays small.
            let upto = if finished { at } else { inbox.len() };
            inbox.drain(request.head_len()..upto);
        }
        if finished {
            if pace.is_some() {
                client.post.set_busy();
            }
            request.body_len = decoded.len() as u64;
            request.decoded = Some(Box::new(decoded));
            request.body_read = true;
            return Ok(Received::Whole);
        }
        client.make_room(BUFFER_BYTES)?;
        let pace = pace.get_or_insert_with(|| begin_wait(client));
        pace.beside = decoded.capacity();
        match read_paced(client, server, pace, 0).await? {
            Received::Whole => {}
            ended => return Ok(ended),
        }
    }
}

/// Nearly all bodies are there with their heads, and need no clock. This one does.
fn begin_wait(client: &Client) -> Box<Pace> {
    client.post.set_receiving(Part::Body);
    Box::default()
}

const _: () = assert!(BODY_BYTES_MAX <= u32::MAX as u64);

/// Bytes of a body as the future of a stream carries them: it stays small.
fn small(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Reads more of a body, of which so many bytes are known to be missing.
async fn read_paced(
    client: &mut Client,
    server: &Server,
    pace: &mut Pace,
    missing: u32,
) -> Result<Received, Refusal> {
    loop {
        // It looks around now and then: what it holds may be needed elsewhere.
        let left = server.body_timeout.saturating_sub(client.post.silence());
        client.post.arm(left.min(LOOK_AROUND));
        let bytes = match client.read_more(missing).await {
            Ok(0) | Err(Alarm::Gone) => return Ok(Received::Closed),
            Ok(n) => n,
            Err(Alarm::Expired) if client.post.silence() >= server.body_timeout => {
                return Err(BODY_TIMEOUT)
            }
            Err(Alarm::Expired) => 0,
            Err(Alarm::Ended | Alarm::CalledOff) => return Err(Fault::ShuttingDown.refusal()),
        };
        pace.note(client.post.stage_age().as_secs(), bytes);
        let held = pace.beside + client.inbox.as_ref().map_or(0, |inbox| inbox.capacity());
        let is_too_slow = bytes > 0 && pace.is_too_slow();
        if is_too_slow || (client.post.is_crowded() && pace.is_too_slow_for(held)) {
            return Err(BODY_TOO_SLOW);
        }
        if bytes > 0 {
            return Ok(Received::Whole);
        }
    }
}

/// A body that does not come looks so often whether it should give way.
const LOOK_AROUND: Duration = Duration::from_secs(1);
const HEADER_TIMEOUT: Refusal =
    Refusal::closing(408, "header_timeout", "The request head did not arrive in time.");
const BODY_TIMEOUT: Refusal =
    Refusal::closing(408, "body_timeout", "The request body stopped arriving.");
const BODY_TOO_SLOW: Refusal =
    Refusal::closing(408, "body_too_slow", "The request body arrived too slowly.");

fn too_large(server: &Server) -> Refusal {
    Refusal::closing(413, "body_too_large", "").with_message(format!(
        "The request body is larger than the limit of {} bytes (server.max_body_size).",
        server.max_body_size
    ))
}

fn bad_chunk(why: &'static str) -> Refusal {
    Refusal::closing(400, "bad_chunk", "")
        .with_message(format!("The chunked request body is malformed: {why}."))
}
