//! The access log: one line a request, written by a thread of its own.

use super::log::{Output, Reopen};
use crate::config::plan::{AccessLog, LogFormat, Plan};
use crate::usage::record::UsageRecord;
use crossbeam_channel::Receiver;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Starts the writer. It ends, flushed, when all senders are gone.
pub fn start(
    log: &AccessLog,
    plan: Arc<Plan>,
    records: Receiver<UsageRecord>,
    reopen: Reopen,
) -> Result<JoinHandle<()>, String> {
    let place = super::log::name_of(&log.output);
    let output =
        Output::open(&log.output, reopen).map_err(|e| format!("log.access: {place}: {e}"))?;
    let format = log.format;
    std::thread::Builder::new()
        .name("access-log".into())
        .spawn(move || {
            let mut out = BufWriter::new(output);
            while let Ok(record) = records.recv() {
                let wrote = write_burst(&mut out, format, &plan, record, &records);
                if let Err(error) = wrote {
                    tracing::warn!(%error, "the access log cannot be written");
                }
            }
        })
        .map_err(|e| format!("access log: {e}"))
}

/// Writes a record and all that wait behind it, then flushes: a quiet proxy's lines are there at
/// once, a busy one's cost one system call for many.
fn write_burst(
    out: &mut impl Write,
    format: LogFormat,
    plan: &Plan,
    first: UsageRecord,
    more: &Receiver<UsageRecord>,
) -> io::Result<()> {
    for record in std::iter::once(first).chain(more.try_iter()) {
        match format {
            LogFormat::Json => json_line(out, plan, &record)?,
            LogFormat::Text => text_line(out, plan, &record)?,
        }
    }
    out.flush()
}

fn json_line(out: &mut impl Write, plan: &Plan, record: &UsageRecord) -> io::Result<()> { let _ = plan; writeln!(out, "{record:?}") }
fn text_line(out: &mut impl Write, plan: &Plan, record: &UsageRecord) -> io::Result<()> { let _ = plan; writeln!(out, "{record:?}") }
