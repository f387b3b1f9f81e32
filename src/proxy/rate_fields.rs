//! How the tightest limits of a request stand, as fields of its answer: those that gateways have
//! (`X-RateLimit-*`), those of the IETF (draft-ietf-httpapi-ratelimit-headers), and OpenAI's.
//! Written without allocation.

use super::takings::Level;
use crate::state::counters::bucket::TICKS_PER_NS;

/// Fields that there may be.
const FIELDS_MAX: usize = 11;
/// Bytes of all values: each number has 20 digits at most, and there are fewer than 24 of them.
const BYTES_MAX: usize = 640;

/// Name and value of each field.
pub struct RateFields {
    text: [u8; BYTES_MAX],
    len: usize,
    fields: [(&'static str, usize, usize); FIELDS_MAX],
    count: usize,
}

/// Names and values, and how many of them there are.
pub type FieldList<'a> = ([(&'a str, &'a str); FIELDS_MAX], usize);

const SECOND: u64 = 1_000_000_000 * TICKS_PER_NS;

impl RateFields {
    /// Of the limits of requests, and of tokens.
    pub fn new([requests, tokens]: [Option<Level>; 2]) -> RateFields {
        let mut fields =
            RateFields { text: [0; BYTES_MAX], len: 0, fields: [("", 0, 0); FIELDS_MAX], count: 0 };
        let seconds = |ticks: u64| ticks.div_ceil(SECOND);
        // The general ones can tell of one: that of requests, if there is one.
        if let Some(Level { size, left, missing, .. }) = requests.or(tokens) {
            fields.number("X-RateLimit-Limit", size);
            fields.number("X-RateLimit-Remaining", left);
            fields.number("X-RateLimit-Reset", seconds(missing));
        }
        let named = [("requests", requests), ("tokens", tokens)];
        let named = named.into_iter().filter_map(|(name, level)| Some((name, level?)));
        if requests.is_some() || tokens.is_some() {
            fields.write("RateLimit-Policy", |out| {
                for (at, (name, level)) in named.clone().enumerate() {
                    out.text(if at > 0 { ", \"" } else { "\"" }).text(name).text("\";q=");
                    out.decimal(level.size).text(";w=").decimal(seconds(level.whole).max(1));
                }
            });
            fields.write("RateLimit", |out| {
                for (at, (name, level)) in named.clone().enumerate() {
                    out.text(if at > 0 { ", \"" } else { "\"" }).text(name).text("\";r=");
                    out.decimal(level.left).text(";t=").decimal(seconds(level.missing));
                }
            });
        }
        let names = [
            [
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
            ],
            [
                "x-ratelimit-limit-tokens",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
            ],
        ];
        for ([limit, remaining, reset], level) in names.into_iter().zip([requests, tokens]) {
            let Some(Level { size, left, missing, .. }) = level else { continue };
            fields.number(limit, size);
            fields.number(remaining, left);
            fields.write(reset, |out| out.duration(missing.div_ceil(1_000_000 * TICKS_PER_NS)));
        }
        fields
    }

    /// Them, as the writer of heads takes them.
    pub fn list(&self) -> FieldList<'_> {
        let text = |from: usize, to: usize| {
            let bytes = self.text.get(from..to).unwrap_or_default();
            std::str::from_utf8(bytes).unwrap_or_default()
        };
        (self.fields.map(|(name, from, to)| (name, text(from, to))), self.count)
    }

    fn number(&mut self, name: &'static str, value: u64) {
        self.write(name, |out| {
            out.decimal(value);
        });
    }

    fn write(&mut self, name: &'static str, value: impl FnOnce(&mut Self)) {
        let from = self.len;
        value(self);
        if let Some(field) = self.fields.get_mut(self.count) {
            *field = (name, from, self.len);
            self.count += 1;
        }
    }

    fn text(&mut self, text: &str) -> &mut Self {
        let to = self.len + text.len();
        if let Some(place) = self.text.get_mut(self.len..to) {
            place.copy_from_slice(text.as_bytes());
            self.len = to;
        }
        self
    }

    fn decimal(&mut self, mut value: u64) -> &mut Self {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            if let Some(digit) = digits.get_mut(at) {
                *digit = b'0' + (value % 10) as u8;
            }
            value /= 10;
            if value == 0 || at == 0 {
                break;
            }
        }
        let digits = digits.get(at..).unwrap_or_default();
        self.text(std::str::from_utf8(digits).unwrap_or_default())
    }

    /// As OpenAI writes it: `1s`, `6m0s`, `120ms`.
    fn duration(&mut self, ms: u64) {
        let (minutes, rest) = (ms / 60_000, ms % 60_000);
        if minutes > 0 {
            self.decimal(minutes).text("m").decimal(rest.div_ceil(1000)).text("s");
        } else if rest % 1000 == 0 {
            self.decimal(rest / 1000).text("s");
        } else if rest < 1000 {
            self.decimal(rest).text("ms");
        } else {
            let (seconds, ms) = (rest / 1000, rest % 1000);
            self.decimal(seconds).text(".");
            self.text(if ms < 10 {
                "00"
            } else if ms < 100 {
                "0"
            } else {
                ""
            });
            self.decimal(ms).text("s");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(levels: [Option<Level>; 2]) -> Vec<String> {
        let fields = RateFields::new(levels);
        let (list, count) = fields.list();
        list[..count].iter().map(|(name, value)| format!("{name}: {value}")).collect()
    }

    /// Catches: a field that is wrong, missing, or does not fit.
    #[test]
    fn fields_tell_how_limits_stand() {
        let requests = Level { size: 20, whole: 2 * SECOND, left: 19, missing: SECOND / 10 };
        let tokens = Level { size: 6000, whole: 60 * SECOND, left: 0, missing: 361 * SECOND };
        assert_eq!(written([None, None]), [""; 0]);
        assert_eq!(
            written([Some(requests), Some(tokens)]),
            [
                "X-RateLimit-Limit: 20",
                "X-RateLimit-Remaining: 19",
                "X-RateLimit-Reset: 1",
                "RateLimit-Policy: \"requests\";q=20;w=2, \"tokens\";q=6000;w=60",
                "RateLimit: \"requests\";r=19;t=1, \"tokens\";r=0;t=361",
                "x-ratelimit-limit-requests: 20",
                "x-ratelimit-remaining-requests: 19",
                "x-ratelimit-reset-requests: 100ms",
                "x-ratelimit-limit-tokens: 6000",
                "x-ratelimit-remaining-tokens: 0",
                "x-ratelimit-reset-tokens: 6m1s",
            ]
        );
        let only = written([None, Some(Level { missing: SECOND * 7 / 5, ..tokens })]);
        assert_eq!(only[0], "X-RateLimit-Limit: 6000");
        assert_eq!(only.last().unwrap(), "x-ratelimit-reset-tokens: 1.400s");
        let huge = Level { size: u64::MAX, whole: u64::MAX, left: u64::MAX, missing: u64::MAX };
        let all = written([Some(huge), Some(huge)]);
        assert!(all.len() == FIELDS_MAX && all.iter().all(|field| !field.ends_with(": ")));
        assert!(RateFields::new([Some(huge); 2]).len < BYTES_MAX - 20);
    }
}
