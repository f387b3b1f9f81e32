//! Where log lines go. Events are written by a thread of their own: a worker never waits for a
//! terminal or a disk.

use crate::base::line::one_line;
use crate::config::plan::{Log, LogOutput};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;

mod style;
pub use style::Style;

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
    /// Which events are written, and in which form.
    pub style: Style,
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
    let style = Style::new(log)?;
    let output = Output::open(&log.output, reopen)
        .map_err(|e| format!("log.output: {}: {e}", name_of(&log.output)))?;
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(EVENTS_MAX).finish(output);
    let dropped = writer.error_counter();
    let lines =
        fmt::layer().with_ansi(false).event_format(style.clone()).with_writer(Lines(writer));
    // Not `try_init`: that may take in what libraries say by way of `log`, URLs and secrets in it.
    let all = tracing_subscriber::registry().with(lines).with(style.clone());
    let set = tracing::subscriber::set_global_default(all);
    set.map_err(|e| format!("logging cannot start: {e}"))?;
    Ok(Logging { last: Last(Arc::new(Mutex::new(Some(guard)))), dropped, style })
}

/// Makes each event one line. What a server says of an error, say, may have line ends of its own.
#[derive(Clone)]
struct Lines<W>(W);

impl<W: Write + Clone> MakeWriter<'_> for Lines<W> {
    type Writer = Lines<W>;

    fn make_writer(&self) -> Lines<W> {
        self.clone()
    }
}

impl<W: Write> Write for Lines<W> {
    /// An event comes in one piece, its line end at its end.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        let (mut line, _) = one_line(text.to_vec());
        line.push(b'\n');
        self.0.write_all(&line).map(|()| event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Display;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Catches: an event that is two lines, or that somebody else wrote.
    #[test]
    fn an_event_is_one_line_in_either_form() {
        let said: &dyn Display = &"no\nINFO all is well\u{85}\u{2028}\r";
        let lines = |is_json: bool| {
            let written = Written::default();
            let builder = tracing_subscriber::fmt().with_writer(Lines(written.clone()));
            let emit = || {
                tracing::warn!(error = %said, model = "m\u{2029}\n", "failed");
                tracing::warn!("{said}");
            };
            match is_json {
                true => tracing::subscriber::with_default(builder.json().finish(), emit),
                false => tracing::subscriber::with_default(builder.finish(), emit),
            }
            let bytes = written.0.lock().unwrap().clone();
            String::from_utf8(bytes).unwrap()
        };
        for is_json in [false, true] {
            let text = lines(is_json);
            let ends = "\r\u{85}\u{2028}\u{2029}";
            assert_eq!(text.matches('\n').count(), 2, "{text}");
            assert!(text.ends_with('\n') && !text.contains(|c| ends.contains(c)), "{text}");
        }
    }
}
