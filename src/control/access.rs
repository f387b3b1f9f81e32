//! The access log: one line a request, written by a thread of its own.

use super::log::{Output, Reopen};
use crate::config::plan::{AccessLog, LogFormat};
use crate::usage::access::{AccessLine, Said};
use crate::usage::key_form::hex;
use crate::usage::record::{key_id_text, line::line_of, UsageRecord};
use crossbeam_channel::{bounded, select, Receiver, Sender};
use serde_json::{from_str, json, Value};
use std::convert::Infallible;
use std::io::{self, BufWriter, Write};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long lines gather while there are many.
const BURST: Duration = Duration::from_millis(10);

/// The running writer.
pub struct AccessWriter {
    /// Dropped to stop; nothing is ever sent.
    running: Sender<Infallible>,
    thread: JoinHandle<()>,
}

impl AccessWriter {
    /// Writes what waits, and ends.
    pub fn finish(self) {
        drop(self.running);
        // A writer that panicked has nothing left to flush.
        let _ = self.thread.join();
    }
}

/// Starts the writer.
pub fn start(
    log: &AccessLog,
    lines: Receiver<AccessLine>,
    reopen: Reopen,
) -> Result<AccessWriter, String> {
    let place = super::log::name_of(&log.output);
    let output =
        Output::open(&log.output, reopen).map_err(|e| format!("log.access: {place}: {e}"))?;
    let format = log.format;
    let (running, stopped) = bounded(0);
    let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || {
        let mut out = BufWriter::new(output);
        let mut failing = false;
        loop {
            // Not the end of the channel: a connection that was cut may keep its sender for ever.
            let next = select! {
                recv(lines) -> line => line.ok(),
                recv(stopped) -> _ => lines.try_recv().ok(),
            };
            let Some(first) = next else { return };
            super::survive("access log", || {
                let wrote = write_burst(&mut out, format, first, &lines);
                if let (Err(error), false) = (&wrote, failing) {
                    tracing::warn!(%error, "the access log cannot be written; lines are lost");
                }
                failing = wrote.is_err();
            });
            // To wake this thread costs the worker a system call: lines come in bursts.
            let _ = stopped.recv_timeout(BURST);
        }
    });
    let thread = thread.map_err(|e| format!("access log: {e}"))?;
    Ok(AccessWriter { running, thread })
}

/// Writes a line and all that wait behind it, then flushes: a quiet proxy's lines are there at
/// once, a busy one's cost one system call for many.
fn write_burst(
    out: &mut impl Write,
    format: LogFormat,
    first: AccessLine,
    more: &Receiver<AccessLine>,
) -> io::Result<()> {
    for line in std::iter::once(first).chain(more.try_iter()) {
        match format {
            LogFormat::Json => json_line(out, &line)?,
            LogFormat::Text => text_line(out, &line)?,
        }
    }
    out.flush()
}

fn json_line(out: &mut impl Write, line: &AccessLine) -> io::Result<()> {
    let r = &line.record;
    let value = json!({
        "timestamp": time(r),
        "client": line.client,
        "tls": line.tls,
        "user_id": r.user_id,
        "key_name": r.key_name,
        "key_id": r.key_id.map(key_id_text),
        "key_metadata": r.key_metadata.as_deref().and_then(|text| from_str::<Value>(text).ok()),
        "method": r.method,
        "path": r.path,
        "status": r.status_code,
        "model": r.model,
        "stream": r.is_stream,
        "backend": r.backend.as_deref(),
        "backend_url": r.backend_url.as_deref(),
        "latency_ms": r.latency_ms,
        "ttft_ms": r.ttft_ms,
        "bytes": r.response_bytes,
        "prompt_tokens": r.usage.map(|u| u.prompt_tokens),
        "completion_tokens": r.usage.map(|u| u.completion_tokens),
        "retries": r.retry_count,
        "outcome": r.outcome.as_str(),
        "error": r.error,
        "request_id": r.request_id.as_str(),
        "trace_id": line.trace_id.as_ref().map(|id| hex(id)),
        "client_request_id": r.client_request_id.as_ref().map(|id| id.as_str()),
    });
    out.write_all(&line_of(&value))
}

/// Apache's and nginx' combined format, and nothing beside: what reads them reads this. There is no
/// query, which may hold a key. The user is that of the key, or the key's name if it has no user.
fn text_line(out: &mut impl Write, line: &AccessLine) -> io::Result<()> {
    let r = &line.record;
    let no_one = Said::default();
    let said = line.said.as_deref().unwrap_or(&no_one);
    let field = |value: &Option<Box<[u8]>>| escaped(value.as_deref().unwrap_or(b"-"));
    // A request whose head could not be read has no line.
    let request = match r.method.is_empty() {
        true => "-".to_owned(),
        false => {
            let path = escaped(r.path.as_bytes());
            format!("{} {path} {}", r.method, said.version)
        }
    };
    let (status, bytes) = (r.status_code, r.response_bytes);
    let (referer, agent) = (field(&said.referer), field(&said.user_agent));
    let who = r.user_id.as_deref().or(r.key_name.as_deref()).unwrap_or("-");
    // Here a blank would end the field.
    let who = escaped(who.as_bytes()).replace(' ', "\\x20");
    let (client, time) = (&line.client, common_time(r));
    writeln!(
        out,
        "{client} - {who} [{time}] \"{request}\" {status} {bytes} \"{referer}\" \"{agent}\""
    )
}

/// What a client chose, so that it can neither end its field nor its line: as nginx writes it.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => text.push_str(&format!("\\x{byte:02X}")),
            _ => text.push(char::from(*byte)),
        }
    }
    text
}

/// `14/Jan/2026:10:30:00 +0000`.
fn common_time(record: &UsageRecord) -> String {
    let time = timestamp(record).map(|time| time.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string());
    time.unwrap_or_else(|| "-".into())
}

fn time(record: &UsageRecord) -> String {
    timestamp(record).map_or_else(|| "-".into(), |time| format!("{time:.3}"))
}

fn timestamp(record: &UsageRecord) -> Option<jiff::Timestamp> {
    let ms = i64::try_from(record.timestamp_ms).ok()?;
    jiff::Timestamp::from_millisecond(ms).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::record::tests::record;

    /// Catches: a line of JSON that a client ends where it likes.
    #[test]
    fn a_line_of_json_is_one_line() {
        let text = "m\u{85}{}\u{2028}[]\u{2029}\r\n\u{1c}\u{b}\"";
        let record = UsageRecord { model: Some(text.into()), path: text.into(), ..record() };
        let line =
            AccessLine { record, client: "::1".into(), tls: None, trace_id: None, said: None };
        let mut out = Vec::new();
        json_line(&mut out, &line).unwrap();
        let out = String::from_utf8(out).unwrap();
        let is_end = |c: char| "\u{85}\u{2028}\u{2029}".contains(c) || c < ' ';
        assert_eq!(out.find(is_end), Some(out.len() - 1), "{out}");
        let read: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&read["model"], &read["path"]), (&text.into(), &text.into()));
    }

    /// Catches: a line that a log reader does not know, or that a client can forge.
    #[test]
    fn a_combined_line_is_that_of_nginx() {
        let mut record = record();
        record.path = "/v1/a\" 200 0 \"\n127.0.0.1 - - forged\\".into();
        let said = Said {
            version: "HTTP/1.0",
            referer: None,
            user_agent: Some(b"curl/8\r\n\xff\"".as_slice().into()),
        };
        let (client, said) = ("::1".into(), Some(Box::new(said)));
        let line = AccessLine { record, client, tls: None, trace_id: None, said };
        let mut out = Vec::new();
        text_line(&mut out, &line).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "::1 - - [14/Jan/2026:10:30:00 +0000] \"POST /v1/a\\x22 200 0 \\x22\\x0A127.0.0.1 - - \
             forged\\x5C HTTP/1.0\" 200 900 \"-\" \"curl/8\\x0D\\x0A\\xFF\\x22\"\n"
        );
        let record = UsageRecord { method: "".into(), ..UsageRecord::default() };
        let line =
            AccessLine { record, client: "::1".into(), tls: None, trace_id: None, said: None };
        let mut out = Vec::new();
        text_line(&mut out, &line).unwrap();
        let want = "::1 - - [01/Jan/1970:00:00:00 +0000] \"-\" 0 0 \"-\" \"-\"\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }
}
