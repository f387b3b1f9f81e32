//! Where log lines go. Events are written by a thread of their own: a worker never waits for a
//! terminal or a disk.

use crate::config::plan::{Log, LogFormat, LogOutput};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;

/// Events that wait for the log thread; more are dropped and counted.
const EVENTS_MAX: usize = 16 * 1024;

/// Files are opened anew when this is set (by SIGUSR1), for whoever rotates them.
#[derive(Clone, Default)]
pub struct Reopen {
    flag: Arc<AtomicBool>,
}

impl Reopen {
    /// Asks one output to open its file anew before its next line.
    pub fn ask(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }
}

/// Logging of events, running.
pub struct Logging {
    /// What waits is written when this is dropped, too.
    pub last: Last,
    /// Events that were dropped because too many waited.
    pub dropped: ErrorCounter,
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.last.flush();
    }
}

/// The end of logging, for whoever ends the process.
#[derive(Clone)]
pub struct Last(Arc<Mutex<Option<WorkerGuard>>>);

impl Last {
    /// Writes what waits, for about a second at most; nothing is logged any more after it.
    pub fn flush(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Starts logging of events.
pub fn start(log: &Log, reopen: Reopen) -> Result<Logging, String> {
    let level: LevelFilter =
        log.level.parse().map_err(|_| format!("log.level: there is no level {}", log.level))?;
    let output = Output::open(&log.output, reopen)
        .map_err(|e| format!("log.output: {}: {e}", name_of(&log.output)))?;
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(EVENTS_MAX).finish(output);
    let dropped = writer.error_counter();
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(writer);
    let set = match log.format {
        LogFormat::Json => builder.json().flatten_event(true).with_target(false).try_init(),
        LogFormat::Text => builder.with_ansi(false).with_target(false).try_init(),
    };
    set.map_err(|e| format!("logging cannot start: {e}"))?;
    Ok(Logging { last: Last(Arc::new(Mutex::new(Some(guard)))), dropped })
}

/// A destination of lines.
pub struct Output {
    target: Target,
    reopen: Reopen,
}

enum Target {
    Stdout,
    Stderr,
    File { path: PathBuf, file: File },
}

impl Output {
    /// Opens a destination; a file is appended to.
    pub fn open(output: &LogOutput, reopen: Reopen) -> io::Result<Output> {
        let target = match output {
            LogOutput::Stdout => Target::Stdout,
            LogOutput::Stderr => Target::Stderr,
            LogOutput::File(path) => Target::File { path: path.clone(), file: append(path)? },
        };
        Ok(Output { target, reopen })
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// A destination as a person names it.
pub fn name_of(output: &LogOutput) -> String {
    match output {
        LogOutput::Stdout => "stdout".into(),
        LogOutput::Stderr => "stderr".into(),
        LogOutput::File(path) => path.display().to_string(),
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.target {
            Target::Stdout => io::stdout().write(bytes),
            Target::Stderr => io::stderr().write(bytes),
            Target::File { path, file } => {
                if self.reopen.flag.load(Ordering::Relaxed) {
                    // When the new file cannot be had, the old one goes on, and the next line tries
                    // again. Not an event: this may be the writer of events.
                    match append(path) {
                        Ok(fresh) => {
                            *file = fresh;
                            self.reopen.flag.store(false, Ordering::Relaxed);
                        }
                        Err(e) => {
                            let _ = writeln!(io::stderr(), "llmproxy: {}: {e}", path.display());
                        }
                    }
                }
                file.write(bytes)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.target {
            Target::Stdout => io::stdout().flush(),
            Target::Stderr => io::stderr().flush(),
            Target::File { file, .. } => file.flush(),
        }
    }
}
