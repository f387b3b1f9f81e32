//! Which events are written and in which form. A reload changes both; whoever logs reads two
//! atomics, so that a worker takes no lock.

use crate::config::plan::{Log, LogFormat};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// From the least to the most that is written.
const LEVELS: [LevelFilter; 5] = [
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// Level and form of events, shared by all that log.
#[derive(Clone)]
pub struct Style {
    now: Arc<Now>,
    json: Format<Json>,
    text: Format<Full>,
}

struct Now {
    /// Index in [`LEVELS`].
    level: AtomicU8,
    is_json: AtomicBool,
}

impl Style {
    /// As the configuration has it.
    pub fn new(log: &Log) -> Result<Style, String> {
        let format = || Format::default().with_target(false);
        let now = Now { level: AtomicU8::default(), is_json: AtomicBool::default() };
        let style = Style {
            now: Arc::new(now),
            json: format().json().flatten_event(true),
            text: format().with_ansi(false),
        };
        style.set(log).map(|()| style)
    }

    /// Changes both, for the next event on.
    pub fn set(&self, log: &Log) -> Result<(), String> {
        let known = |level: &LevelFilter| level.to_string() == log.level;
        let level = LEVELS.iter().position(known);
        let level = level.ok_or_else(|| format!("log.level: there is no level {}", log.level))?;
        self.now.is_json.store(log.format == LogFormat::Json, Ordering::Relaxed);
        self.now.level.store(level as u8, Ordering::Relaxed);
        // What each line of code knows of whether it is wanted is asked anew.
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }

    fn level(&self) -> LevelFilter {
        let index = usize::from(self.now.level.load(Ordering::Relaxed));
        LEVELS.get(index).copied().unwrap_or(LevelFilter::INFO)
    }

    fn wants(&self, event: &Metadata<'_>) -> bool {
        *event.level() <= self.level()
    }
}

impl<S: Subscriber> Layer<S> for Style {
    fn register_callsite(&self, event: &'static Metadata<'static>) -> Interest {
        match self.wants(event) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, event: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(event)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level())
    }
}

impl<S, N> FormatEvent<S, N> for Style
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self.now.is_json.load(Ordering::Relaxed) {
            true => self.json.format_event(context, writer, event),
            false => self.text.format_event(context, writer, event),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::LogOutput;
    use std::io::{self, Write};
    use std::sync::Mutex;
    use tracing_subscriber::fmt::{layer, MakeWriter};
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Written;
        fn make_writer(&self) -> Written {
            self.clone()
        }
    }

    fn log(level: &str, format: LogFormat) -> Log {
        let output = LogOutput::Stdout;
        let (access, request, flight_recorder) = (None, None, 0);
        Log { level: level.into(), format, output, flight_recorder, access, request }
    }

    /// Catches: a level that is kept by the lines of code that have logged before.
    #[test]
    fn level_and_form_change_while_it_runs() {
        let style = Style::new(&log("warn", LogFormat::Json)).unwrap();
        let written = Written::default();
        let lines = layer().with_ansi(false).event_format(style.clone());
        let all = tracing_subscriber::registry().with(lines.with_writer(written.clone()));
        tracing::subscriber::with_default(all.with(style.clone()), || {
            let say = |n: u32| {
                tracing::warn!(n, "loud");
                tracing::debug!(n, "quiet");
            };
            say(1);
            style.set(&log("debug", LogFormat::Text)).unwrap();
            say(2);
            style.set(&log("error", LogFormat::Text)).unwrap();
            say(3);
            assert!(style.set(&log("loud", LogFormat::Json)).is_err());
            style.set(&log("info", LogFormat::Json)).unwrap();
            say(4);
        });
        let bytes = written.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].contains("\"message\":\"loud\",\"n\":1"), "{text}");
        assert!(lines[1].ends_with("WARN loud n=2") && lines[2].ends_with("DEBUG quiet n=2"));
        assert!(lines[3].contains("\"n\":4"), "{text}");
    }
}
