//! The relay loop. Events leave in the same turn in which they arrive, in one system call: whole
//! chunks as they came, other data with a chunk header of ours, from where they lie in the read
//! buffer.

mod bulk;
mod close;
mod cut;
mod finish;
mod keep_alive;

use super::framing::{Inbound, Sections};
use super::last::{End, LastBytes};
use super::parts::{Headers, Parts};
use super::strip::{Strip, StrippedPart};
use super::tap::Tap;
use crate::base::fault::Fault;
use crate::base::limits::BUFFER_BYTES;
use crate::base::panic_point;
use crate::http::write::OutFraming;
use crate::proxy::client::Client;
use crate::proxy::takings::Takings;
use crate::rt::buffer::Buffer;
use crate::rt::patrol::Alarm;
use crate::rt::tls::Link;
use crate::state::member::Member;
use crate::state::meters::Meters;
use std::cell::RefCell;
use std::io;
use std::time::Duration;

/// Sends of one read, above which reads are small again.
const BULK_SENDS_MAX: u32 = 32;
/// Small reads that follow a wait for the client. What is large would sit in its buffer, and in the
/// kernel's, where a segment that is larger than the client's window waits for a probe.
const READS_FOR_SLOW: u8 = 4;

/// Moves one answer. It lives in the future of the stream, so it is small and borrows what it can.
pub struct Relay<'a> {
    /// Meters.
    pub meters: &'a RefCell<Meters>,
    /// The client.
    pub client: &'a Client,
    /// Whose answer it is.
    pub backend: &'a Member,
    /// The engine's framing.
    pub inbound: &'a mut Inbound,
    /// Watches.
    pub tap: &'a mut Tap,
    /// The patrol's tick in which the request began to be handed to the engine.
    pub asked: u32,
    /// What the request holds of a quota.
    pub takings: Option<&'a Takings>,
    /// How long the stream is silent before its client gets a comment.
    keep_alive: Option<Duration>,
    /// Takes an event out that the client did not ask for. Boxed: few streams have one.
    strip: Option<Box<Strip>>,
    state: State,
}

/// What a relay comes to.
pub enum RelayStep {
    /// What came was sent on, and more is to come.
    Goes,
    /// The same, and the answer has gone on for so long that it should be noted.
    NoteDue,
    /// All of it is here; its last bytes are not sent yet.
    LastBytes(Box<LastBytes>),
    /// It broke.
    Broken(Fault),
}

#[derive(Default)]
struct State {
    /// The body goes out in chunks.
    chunked: bool,
    /// Its end is the end of the connection.
    until_close: bool,
    /// The engine's body is complete.
    finished: bool,
    /// The engine sent bytes behind the end of its answer.
    extra: bool,
    /// A send was given up in its middle: nothing of ours may follow.
    torn: bool,
    /// The key's quota has no more for this.
    is_exhausted: bool,
    /// The last read filled its buffer: there is more than a small one takes.
    in_bulk: bool,
    /// Small reads still to come, because the client had to be waited for.
    slow_reads: u8,
    bytes: u64,
}

impl<'a> Relay<'a> {
    /// A client that hears nothing for so long gets a comment. The answer is an event stream, and
    /// of no announced length.
    pub fn keep_alive(&mut self, every: Duration) {
        self.keep_alive = Some(every).filter(|every| !every.is_zero());
    }

    /// A relay that has moved nothing yet.
    pub fn new(
        (meters, client, backend): (&'a RefCell<Meters>, &'a Client, &'a Member),
        inbound: &'a mut Inbound,
        outbound: OutFraming,
        tap: &'a mut Tap,
        (asked, takings): (u32, Option<&'a Takings>),
    ) -> Relay<'a> {
        let state = State {
            chunked: outbound == OutFraming::Chunked,
            until_close: outbound == OutFraming::UntilClose,
            ..State::default()
        };
        Relay {
            meters,
            client,
            backend,
            inbound,
            tap,
            asked,
            takings,
            keep_alive: None,
            strip: None,
            state,
        }
    }

    /// What is there for our sake is taken out; `wants_counts`: the client asked for counts in each
    /// event. The answer is an event stream, and of no announced length.
    pub fn strip(&mut self, wants_counts: bool) {
        self.strip = Some(Box::new(Strip::new(wants_counts)));
    }

    /// Sends the head, together with what has arrived of the body, which stands in `bytes` behind
    /// `from`. Takes the buffers when this is all of the answer. [`Fault::BadResponse`]: nothing
    /// was sent, because that body is broken already.
    pub async fn begin(
        &mut self,
        head: &mut Option<Buffer>,
        bytes: &mut Option<Buffer>,
        from: usize,
    ) -> RelayStep {
        let body = bytes.as_ref().and_then(|bytes| bytes.get(from..)).unwrap_or_default();
        // A client may leave unheeded while an engine that must not be cut off prepares its answer.
        if self.client.post.is_gone() {
            self.pass_over(body);
            return RelayStep::Broken(Fault::ClientLeft);
        }
        let first = head.as_ref().map_or(&[][..], |head| head);
        match self.forward(first, body).await {
            Ok(None) if self.is_to_be_cut() => RelayStep::Broken(Fault::QuotaExhausted),
            Ok(None) if self.tap.is_note_due() => RelayStep::NoteDue,
            Ok(None) => RelayStep::Goes,
            Ok(Some(end)) => RelayStep::LastBytes(end.of(head.take(), bytes.take(), from)),
            Err(fault) => RelayStep::Broken(fault),
        }
    }

    /// Relays what comes, until there is something to be said of it.
    pub async fn advance(&mut self, link: &mut Link) -> RelayStep {
        loop {
            match self.next_read(link).await {
                RelayStep::Goes if self.is_to_be_cut() => {
                    return RelayStep::Broken(Fault::QuotaExhausted);
                }
                RelayStep::Goes if self.tap.is_note_due() => return RelayStep::NoteDue,
                RelayStep::Goes if self.tap.has_just_begun() => return RelayStep::Goes,
                RelayStep::Goes => panic_point::pass("relaying"),
                step => return step,
            }
        }
    }

    /// Body bytes that the client was sent so far.
    pub fn sent(&self) -> u64 {
        self.state.bytes
    }

    /// Waits for the engine without a buffer, reads once, forwards what came.
    async fn next_read(&mut self, link: &mut Link) -> RelayStep {
        if let Some(left) = self.strip.as_ref().and_then(|strip| strip.wait()) {
            // Boxed: it is once in a stream, if at all.
            if !Box::pin(self.is_followed(link, left)).await {
                return Box::pin(self.release())
                    .await
                    .map_or_else(RelayStep::Broken, |()| RelayStep::Goes);
            }
        }
        let post = &self.client.post;
        // Engines send the head of a stream at once, comments now and then, and the first token
        // after the prefill: until there is data, it is the first byte that is waited for.
        let (limit, silence) = match self.tap.has_begun() {
            true => (self.backend.plan.idle_timeout, Fault::BackendIdleTimeout),
            false => {
                let limit = self.backend.plan.first_byte_timeout;
                let left = limit.saturating_sub(self.client.post.since(self.asked));
                (left, Fault::FirstByteTimeout)
            }
        };
        let begun = post.now();
        loop {
            let left = limit.saturating_sub(post.since(begun));
            let wait = self.keep_alive.map_or(left, |every| every.min(left));
            post.arm(wait);
            match post.attended(link.readable()).await {
                Ok(Ok(())) => break,
                Ok(Err(_)) => return RelayStep::Broken(Fault::BackendBroke),
                Err(Alarm::Gone) => return RelayStep::Broken(Fault::ClientLeft),
                Err(Alarm::Expired) if wait == left => return RelayStep::Broken(silence),
                Err(Alarm::Expired) => {}
                Err(Alarm::Ended) => return RelayStep::Broken(Fault::ShuttingDown),
                Err(Alarm::CalledOff) => return RelayStep::Broken(Fault::BackendEjected),
            }
            // Boxed: it is rare.
            if let Err(fault) = Box::pin(self.send_comment()).await {
                return RelayStep::Broken(fault);
            }
        }
        post.take_turns().await;
        let is_slow = self.state.slow_reads > 0;
        self.state.slow_reads = self.state.slow_reads.saturating_sub(1);
        let pipe = if is_slow { None } else { self.fill_pipe(link) };
        if let Some(pipe) = pipe {
            return self.pass_on(pipe).await;
        }
        let mut buffer = match self.reads_in_bulk() && !is_slow && link.bare().is_some() {
            true => Buffer::take_large(),
            false => Buffer::take(),
        };
        let got = link.try_recv(&mut buffer);
        self.state.in_bulk = matches!(got, Ok(n) if n >= BUFFER_BYTES);
        match got {
            Ok(0) if self.inbound.ends_with_close() => {
                self.state.finished = true;
                let mut last = LastBytes::take();
                if let Some(part) = self.part(&Sections::default(), &[]) {
                    self.observe_part(&part, true);
                    *last = LastBytes::of(None, *part);
                }
                RelayStep::LastBytes(last)
            }
            Ok(0) => RelayStep::Broken(Fault::BackendBroke),
            Ok(_) => match self.forward(&[], &buffer).await {
                Ok(None) => RelayStep::Goes,
                Ok(Some(end)) => RelayStep::LastBytes(end.of(None, Some(buffer), 0)),
                Err(fault) => RelayStep::Broken(fault),
            },
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => RelayStep::Goes,
            Err(_) => RelayStep::Broken(Fault::BackendBroke),
        }
    }

    /// Decodes and sends on `input`, all but the end of a body, which it gives; `head` goes first.
    async fn forward(&mut self, mut head: &[u8], input: &[u8]) -> Result<Option<End>, Fault> {
        let mut from = 0;
        let mut body = Sections::default();
        let mut sends = 0;
        loop {
            sends += 1;
            if sends > BULK_SENDS_MAX {
                self.state.in_bulk = false;
            }
            let rest = input.get(from..).unwrap_or_default();
            let progress = self.inbound.decode(rest, self.is_chunked(), &mut body);
            if let (Some(why), false) = (progress.broken, head.is_empty()) {
                return Err(Fault::BadResponse(why));
            }
            let is_extra = progress.finished && progress.consumed < rest.len();
            if !head.is_empty() && is_extra {
                // Nobody has seen this answer yet: say what it is.
                return Err(Fault::BadResponse("bytes_behind_the_end"));
            }
            self.state.finished = progress.finished;
            self.state.extra = is_extra;
            let part = self.part(&body, rest);
            if progress.finished {
                // Seen before it is sent: what it says belongs into a record that goes ahead.
                match &part {
                    None => self.observe(&body, rest, sends == 1),
                    Some(part) => self.observe_part(part, sends == 1),
                }
                return Ok(Some(End { from, body, part, head_is_out: head.is_empty() }));
            }
            // Not all of what the decoder said is carried through the wait.
            let (behind, is_broken) = (from + progress.consumed, progress.broken.is_some());
            let sent = match &part {
                None => self.send(head, &body, rest).await,
                Some(part) => Box::pin(self.send(head, &part.sections, &part.bytes)).await,
            };
            if let Err(fault) = sent {
                if part.is_none() {
                    let rest = input.get(from..).unwrap_or_default();
                    body.for_each_data(rest, |data| self.tap.see_unsent(data));
                }
                self.pass_over(input.get(behind..).unwrap_or_default());
                return Err(fault);
            }
            head = &[];
            match part {
                None => self.observe(&body, input.get(from..).unwrap_or_default(), sends == 1),
                Some(part) => self.observe_part(&part, sends == 1),
            }
            if is_broken {
                return Err(Fault::BackendBroke);
            }
            from = behind;
            if from >= input.len() {
                return Ok(None);
            }
        }
    }

    /// Decodes what was read and will not be sent: whoever drains the engine's connection must find
    /// the decoder where the bytes are.
    fn pass_over(&mut self, mut rest: &[u8]) {
        let mut sections = Sections::default();
        // Once at least: a body of no bytes is complete with none.
        while !self.state.finished {
            let progress = self.inbound.decode(rest, true, &mut sections);
            sections.for_each_data(rest, |data| self.tap.see_unsent(data));
            if progress.broken.is_some() {
                return;
            }
            self.state.finished = progress.finished;
            rest = rest.get(progress.consumed..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
        }
        self.state.extra = !rest.is_empty();
    }

    fn is_chunked(&self) -> bool {
        self.state.chunked
    }

    /// Sends what was decoded. The parts are put together anew after each wait instead of being
    /// kept through it.
    async fn send(&mut self, head: &[u8], body: &Sections, input: &[u8]) -> Result<(), Fault> {
        let mut sent = 0;
        let result = loop {
            let (total, taken) = match self.try_send(sent, head, body, input) {
                Ok(step) => step,
                Err(fault) => break Err(fault),
            };
            sent += taken;
            self.state.torn = sent > 0 && sent < total;
            if sent == total {
                match self.client.is_out() {
                    Ok(true) => break Ok(()),
                    // Some of it waits in the session.
                    Ok(false) => self.state.torn = true,
                    Err(fault) => break Err(fault),
                }
            } else if taken > 0 {
                // What was taken in part may have filled no more than one step of the kernel's.
                continue;
            }
            self.state.slow_reads = READS_FOR_SLOW;
            if let Err(fault) = self.client.room().await {
                break Err(fault);
            }
        };
        // Of what was given up, all that was taken counts; a chunk's header among it does no harm.
        self.state.bytes += (sent.saturating_sub(head.len()) as u64).min(body.data_len());
        result
    }

    /// One send, of all but the first `skip` bytes. Gives the length of everything and how much
    /// was taken.
    fn try_send(
        &self,
        skip: usize,
        head: &[u8],
        body: &Sections,
        input: &[u8],
    ) -> Result<(usize, usize), Fault> {
        let mut headers = Headers::default();
        let last = self.state.finished;
        let mut parts = Parts::after(skip);
        parts.push(head);
        match self.is_chunked() {
            true => parts.push_chunks(body, input, last, &mut headers),
            false => parts.push_data(body, input),
        }
        let taken = match parts.list() {
            [] => 0,
            list => self.client.try_send(list)?,
        };
        Ok((parts.total, taken))
    }

    /// What goes out instead of what was decoded; `None`: all of that.
    fn part(&mut self, body: &Sections, input: &[u8]) -> Option<Box<StrippedPart>> {
        let part = self.strip.as_mut()?.part(body, input, self.state.finished)?;
        // Whether or not the client takes what goes out instead.
        body.for_each_data(input, |data| self.tap.see_unsent(data));
        Some(part)
    }

    /// Looks at what goes out instead of what was decoded, of which the usage was seen.
    fn observe_part(&mut self, part: &StrippedPart, is_first: bool) {
        self.tap.see_sent(&part.bytes);
        if is_first && !part.sections.is_empty() {
            self.tick();
        }
    }

    /// Takes the times of what one read brought.
    fn tick(&mut self) {
        let whose = Some(self.backend.id());
        self.tap.tick(self.meters.borrow_mut().inter_token.entry(whose).or_default());
        if let Some(takings) = self.takings {
            let events = self.tap.body_usage.facts().content_events();
            self.state.is_exhausted |= !takings.see(events);
        }
    }

    /// Looks at what is sent; takes the time of the first send of a read.
    fn observe(&mut self, body: &Sections, input: &[u8], is_first: bool) {
        if body.is_empty() {
            return;
        }
        body.for_each_data(input, |data| self.tap.see(data));
        if is_first {
            self.tick();
        }
    }
}
