//! The access log: one line a request, written by a thread of its own.

use super::log::{Output, Reopen};
use crate::config::plan::{AccessLog, LogFormat};
use crate::usage::access::AccessLine;
use crate::usage::record::UsageRecord;
use crossbeam_channel::{bounded, select, Receiver, Sender};
use serde_json::json;
use std::convert::Infallible;
use std::io::{self, BufWriter, Write};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long lines gather while there are many.
const BURST: Duration = Duration::from_millis(10);

/// The running writer.
pub struct Writer {
    /// Dropped to stop; nothing is ever sent.
    running: Sender<Infallible>,
    thread: JoinHandle<()>,
}

impl Writer {
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
) -> Result<Writer, String> {
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
    Ok(Writer { running, thread })
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
        "time": time(r),
        "client": line.client,
        "method": r.method,
        "path": r.path,
        "status": r.status_code,
        "model": r.model,
        "stream": r.is_stream,
        "backend": r.backend_url.as_deref(),
        "latency_ms": r.latency_ms,
        "ttft_ms": r.ttft_ms,
        "bytes": r.response_bytes,
        "prompt_tokens": r.usage.map(|u| u.prompt_tokens),
        "completion_tokens": r.usage.map(|u| u.completion_tokens),
        "retries": r.retry_count,
        "outcome": r.outcome.as_str(),
        "error": r.error,
        "request_id": r.request_id.as_str(),
        "client_request_id": r.client_request_id.as_ref().map(|id| id.as_str()),
    });
    writeln!(out, "{value}")
}

/// The beginning is that of the combined log format, so that its readers find what they know.
/// What a client chose (path, model) is quoted and escaped.
fn text_line(out: &mut impl Write, line: &AccessLine) -> io::Result<()> {
    let r = &line.record;
    writeln!(
        out,
        "{} - - [{}] {:?} {} {} model={:?} stream={} backend={} latency_ms={} ttft_ms={} \
         outcome={} request_id={}",
        line.client,
        time(r),
        format!("{} {}", r.method, r.path),
        r.status_code,
        r.response_bytes,
        r.model.as_deref().unwrap_or("-"),
        r.is_stream,
        r.backend_url.as_deref().unwrap_or("-"),
        r.latency_ms,
        r.ttft_ms.map_or_else(|| "-".into(), |ms| ms.to_string()),
        r.outcome.as_str(),
        r.request_id.as_str(),
    )
}

fn time(record: &UsageRecord) -> String {
    let ms = i64::try_from(record.timestamp_ms).unwrap_or_default();
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".into(), |time| format!("{time:.3}"))
}
