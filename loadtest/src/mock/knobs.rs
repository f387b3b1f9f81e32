//! Every adjustable property of an answer, by one name: `--NAME` on the command line sets it for
//! all requests, the header `x-mock-NAME` for one, `POST /mock/knobs?NAME=VALUE` from then on.

use super::bad;
use super::pack::Packing;
use crate::script::Usage;

/// When the head of a stream leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadTime {
    /// As the dialect does
    Dialect,
    /// At once
    Early,
    /// With the first event
    Late,
}

/// How writes are cut or joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// As the dialect's HTTP stack does
    Exact,
    /// Everything due at the same time leaves in one write
    Merged,
    /// Every byte is a write
    Bytes,
    /// Every write becomes this many
    Parts(u32),
}

/// Where a failing generation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorAt {
    /// As an event of the stream, after `error-after` events
    InStream,
    /// After `[DONE]`: the body never ends, the connection does
    After,
}

/// How the connection ends after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// It stays open
    Never,
    /// `Connection: close`, then closed
    Header,
    /// The same, and the body is delimited by the close alone
    Delimited,
}

/// All knobs; what is absent follows the dialect or the request.
#[derive(Debug, Clone, PartialEq)]
pub struct Knobs {
    /// Content events; absent = 16, or less if the request's `max_tokens` says so
    pub tokens: Option<u32>,
    /// Milliseconds before the first event
    pub ttft_ms: f64,
    /// Milliseconds between content events
    pub gap_ms: f64,
    /// Characters of content in an event
    pub event_bytes: u32,
    /// Bytes of an unstreamed body; 0 = the text of the stream
    pub answer_bytes: u32,
    /// Microseconds added before the first event for each KiB of the request's body
    pub prefill_us_per_kb: f64,
    /// Answer this status with the dialect's error body
    pub status: Option<u16>,
    /// Answer this status to requests with `stream_options`
    pub refuse_options: Option<u16>,
    /// The engine was started so that it tells usage without being asked
    pub force_usage: bool,
    /// Steps of `gap-ms` between the end of the text and the usage event
    pub usage_steps: u32,
    /// Fail the generation here
    pub error: Option<ErrorAt>,
    /// Events before the in-stream error
    pub error_after: u32,
    /// Cut the connection after this many events
    pub die_after: Option<u32>,
    /// Cut by FIN instead of RST
    pub die_by_fin: bool,
    /// Cut the connection without a byte
    pub die_before_head: bool,
    /// Go silent after this many events
    pub stall_after: Option<u32>,
    /// Go silent before the head
    pub stall_before_head: bool,
    /// How writes are cut
    pub split: Split,
    /// Milliseconds between the parts of a split write
    pub split_ms: f64,
    /// How the connection ends
    pub close: Close,
    /// Adds `Retry-After` (seconds) to the answer
    pub retry_after: Option<u32>,
    /// What the answer reports; absent = 12 prompt tokens and one per event
    pub usage: Option<Usage>,
    /// Cached prompt tokens to report
    pub cached: Option<u64>,
    /// A named way to break HTTP
    pub bad: Option<String>,
    /// Bytes for those `bad` kinds that have a size
    pub bad_bytes: usize,
    /// Answer the received request back as JSON
    pub echo: bool,
    /// Pack the body of a good answer
    pub encoding: Option<Packing>,
    /// Decides the text of the answer
    pub seed: u64,
    /// When the head leaves
    pub head: HeadTime,
    /// Content that fools careless readers
    pub tricky: bool,
    /// Milliseconds of silence after which the stream carries a comment; absent = the dialect's
    pub comment_ms: Option<u64>,
    /// Requests that run and that wait, by its metrics page
    pub load: (u32, u32),
}

impl Default for Knobs {
    fn default() -> Self {
        Knobs {
            tokens: None,
            ttft_ms: 0.0,
            gap_ms: 0.0,
            event_bytes: 6,
            answer_bytes: 0,
            prefill_us_per_kb: 0.0,
            status: None,
            refuse_options: None,
            force_usage: false,
            usage_steps: 0,
            error: None,
            error_after: 0,
            die_after: None,
            die_by_fin: false,
            die_before_head: false,
            stall_after: None,
            stall_before_head: false,
            split: Split::Exact,
            split_ms: 0.0,
            close: Close::Never,
            retry_after: None,
            usage: None,
            cached: None,
            bad: None,
            bad_bytes: 1 << 20,
            echo: false,
            encoding: None,
            seed: 0,
            head: HeadTime::Dialect,
            tricky: false,
            comment_ms: None,
            load: (0, 0),
        }
    }
}

/// Name and meaning of every knob, for the command line's help.
pub const NAMES: [(&str, &str); 32] = [
    ("tokens", "content events of a stream [16, or the request's max_tokens if that is less]"),
    ("ttft-ms", "milliseconds before the first event or the whole answer [0]"),
    ("gap-ms", "milliseconds between content events [0]"),
    ("event-bytes", "characters of content in an event [6]"),
    ("answer-bytes", "bytes of an unstreamed body; 0 = the text of the stream [0]"),
    ("prefill-us-per-kb", "microseconds added to ttft per KiB of request body [0]"),
    ("status", "answer this status with the dialect's error body; 0 = off"),
    ("refuse-stream-options", "answer this status to requests with stream_options; 0 = off"),
    ("force-usage", "tell usage unasked, as vLLM and SGLang can be started to; 1 or 0"),
    ("usage-steps", "steps of gap-ms between the finish event and the usage event [0]"),
    ("error", "in-stream: an error event after error-after events; after: cut after [DONE]; off"),
    ("error-after", "events before the in-stream error [0]"),
    ("die-after", "cut the connection after N events; off"),
    ("die-with", "rst or fin [rst]"),
    ("die-before-head", "cut the connection without a byte, after ttft; 1 or 0"),
    ("stall-after", "go silent after N events; off"),
    ("stall-before-head", "go silent without a byte; 1 or 0"),
    ("split", "exact, merged (what is due together is one write), byte, or N parts a write"),
    ("split-ms", "pause between the parts of a split write [0]"),
    ("close", "never, header (Connection: close) or delimited (and no length) [never]"),
    ("retry-after", "seconds in a Retry-After header; 0 = none"),
    ("usage", "PROMPT,COMPLETION[,CACHED] to report; off = 12 and one per event"),
    ("cached", "cached prompt tokens to report, where the dialect does; off"),
    ("bad", "break HTTP: see the README for the names; off"),
    ("bad-bytes", "size of the bad thing, where it has one [1048576]"),
    ("echo", "headers: answer the request's head and body checksum as JSON; off"),
    ("encoding", "pack the answer: gzip, deflate or zstd; off"),
    ("seed", "decides the text of the answer [0]"),
    ("head", "when a stream's head leaves: early, late or dialect [dialect]"),
    ("text", "plain, or tricky (escaped quotes, a fake usage, non-ASCII) [plain]"),
    ("comment-ms", "silence after which a comment is sent; 0 = never; dialect [dialect]"),
    ("load", "RUNNING,WAITING: requests, by the page at /metrics [0,0]"),
];

impl Knobs {
    /// Sets one knob by its name.
    ///
    /// # Errors
    /// An unknown name, or a value that cannot be read, in words.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let value = value.trim();
        match name {
            "tokens" => self.tokens = Some(number(value)?),
            "ttft-ms" => self.ttft_ms = number(value)?,
            "gap-ms" => self.gap_ms = number(value)?,
            "event-bytes" => self.event_bytes = number(value)?,
            "answer-bytes" => self.answer_bytes = number(value)?,
            "prefill-us-per-kb" => self.prefill_us_per_kb = number(value)?,
            "status" => self.status = Some(number(value)?).filter(|status| *status != 0),
            "refuse-stream-options" => {
                self.refuse_options = Some(number(value)?).filter(|status| *status != 0);
            }
            "force-usage" => self.force_usage = flag(value)?,
            "usage-steps" => self.usage_steps = number(value)?,
            "error-after" => self.error_after = number(value)?,
            "die-after" => self.die_after = optional(value)?,
            "die-before-head" => self.die_before_head = flag(value)?,
            "stall-after" => self.stall_after = optional(value)?,
            "stall-before-head" => self.stall_before_head = flag(value)?,
            "split-ms" => self.split_ms = number(value)?,
            "retry-after" => self.retry_after = Some(number(value)?).filter(|n| *n != 0),
            "cached" => self.cached = optional(value)?,
            "bad" if value == "off" => self.bad = None,
            "bad" if bad::NAMES.contains(&value) => self.bad = Some(value.to_string()),
            "bad-bytes" => self.bad_bytes = number(value)?,
            "seed" => self.seed = number(value)?,
            "usage" => self.usage = usage(value)?,
            "load" => {
                let (running, waiting) = value.split_once(',').unwrap_or((value, "0"));
                self.load = (number(running)?, number(waiting)?);
            }
            "comment-ms" => {
                self.comment_ms = if value == "dialect" { None } else { Some(number(value)?) };
            }
            _ => self.set_word(name, value)?,
        }
        Ok(())
    }

    /// The knobs whose values are words.
    fn set_word(&mut self, name: &str, value: &str) -> Result<(), String> {
        match (name, value) {
            ("error", "off") => self.error = None,
            ("error", "in-stream") => self.error = Some(ErrorAt::InStream),
            ("error", "after") => self.error = Some(ErrorAt::After),
            ("die-with", "rst") => self.die_by_fin = false,
            ("die-with", "fin") => self.die_by_fin = true,
            ("split", "exact") => self.split = Split::Exact,
            ("split", "merged") => self.split = Split::Merged,
            ("split", "byte") => self.split = Split::Bytes,
            ("split", parts) => self.split = Split::Parts(number(parts)?),
            ("close", "never" | "0") => self.close = Close::Never,
            ("close", "header" | "1") => self.close = Close::Header,
            ("close", "delimited") => self.close = Close::Delimited,
            ("echo", "off" | "0") => self.echo = false,
            ("echo", "headers" | "1") => self.echo = true,
            ("encoding", "off") => self.encoding = None,
            ("encoding", "gzip") => self.encoding = Some(Packing::Gzip),
            ("encoding", "deflate") => self.encoding = Some(Packing::Deflate),
            ("encoding", "zstd") => self.encoding = Some(Packing::Zstd),
            ("head", "early") => self.head = HeadTime::Early,
            ("head", "late") => self.head = HeadTime::Late,
            ("head", "dialect") => self.head = HeadTime::Dialect,
            ("text", "plain") => self.tricky = false,
            ("text", "tricky") => self.tricky = true,
            _ => return Err(format!("knob {name}: {value:?} is not understood")),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{value:?} is not such a number"))
}

fn optional<T: std::str::FromStr>(value: &str) -> Result<Option<T>, String> {
    if value == "off" {
        return Ok(None);
    }
    number(value).map(Some)
}

fn flag(value: &str) -> Result<bool, String> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("{value:?} is not 0 or 1")),
    }
}

fn usage(value: &str) -> Result<Option<Usage>, String> {
    if value == "off" {
        return Ok(None);
    }
    let counts: Result<Vec<u64>, String> = value.split(',').map(|n| number(n.trim())).collect();
    match counts?.as_slice() {
        [prompt, completion] => {
            Ok(Some(Usage { prompt: *prompt, completion: *completion, cached: None }))
        }
        [prompt, completion, cached] => {
            Ok(Some(Usage { prompt: *prompt, completion: *completion, cached: Some(*cached) }))
        }
        _ => Err(format!("{value:?} is not PROMPT,COMPLETION[,CACHED]")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_the_help_is_a_knob() {
        for (name, _) in NAMES {
            let values = ["1", "off", "plain", "rst", "exact", "early", "1,2"];
            let mut knobs = Knobs::default();
            let is_known = values.iter().any(|value| knobs.set(name, value).is_ok());
            assert!(is_known, "{name} takes none of {values:?}");
            assert!(knobs.set(name, "?").is_err(), "{name} takes anything");
        }
        assert!(Knobs::default().set("no-such", "1").is_err());
    }

    /// Catches: a knob that the README does not have, or one that it gives another default.
    #[test]
    fn the_readme_has_every_knob_with_its_default() {
        let readme = include_str!("../../README.md");
        let (_, table) = readme.split_once("### Knobs").expect("the chapter");
        let (table, _) = table.split_once("An event is").expect("its end");
        let cell = |text: &str| text.trim().trim_matches('`').to_owned();
        let rows: Vec<(String, String)> = table
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| {
                let mut cells = line.trim_matches('|').split('|');
                let name = cells.next().map(cell).expect("a name");
                (name, cells.next_back().map(cell).expect("a default"))
            })
            .collect();
        let mut listed: Vec<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
        let mut known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known);
        for (name, default) in &rows {
            let mut knobs = Knobs::default();
            assert_eq!(knobs.set(name, default), Ok(()), "{name}");
            // The number of tokens is set, or follows the request.
            knobs.tokens = knobs.tokens.filter(|tokens| *tokens != 16);
            assert_eq!(knobs, Knobs::default(), "{name}: {default}");
        }
    }

    #[test]
    fn every_bad_name_has_an_answer() {
        for name in bad::NAMES {
            assert!(Knobs::default().set("bad", name).is_ok());
            assert!(bad::answer(name, 10, b"{}").is_some(), "{name}");
        }
    }

    #[test]
    fn usage_reads_two_or_three_counts() {
        let mut knobs = Knobs::default();
        knobs.set("usage", "5, 6,7").expect("three counts");
        assert_eq!(knobs.usage, Some(Usage { prompt: 5, completion: 6, cached: Some(7) }));
        knobs.set("usage", "off").expect("off");
        assert_eq!(knobs.usage, None);
        assert!(knobs.set("usage", "5").is_err());
    }
}
