//! A snapshot in words: the lines that stand above the table of backends, and its cells.

use super::super::figures::{aligned, cut, span};
use super::sight::{Flow, Spread, TopBackend, TopJournal, TopSnapshot};
use crate::base::line::for_terminal;
use crate::control::roster::Condition;

/// Titles of the table, the most important ones first.
pub const TITLES: [&str; 7] =
    ["BACKEND", "STATE", "IN FLIGHT", "TRIES/S", "FAILED/S", "FIRST TOKEN", "WEIGHT"];
/// Columns of numbers, which end below each other.
pub const NUMBERS: std::ops::RangeInclusive<usize> = 2..=6;

/// As text, for a file or a program that reads lines.
pub fn text(snapshot: &TopSnapshot) -> String {
    let mut text = lines(snapshot, usize::MAX).join("\n");
    text.push_str("\n\n");
    if snapshot.backends.is_empty() {
        text.push_str("no backends\n");
        return text;
    }
    let head = TITLES.map(str::to_owned);
    let rows = snapshot.backends.iter().map(|it| cells(it).map(|cell| cut(&cell)));
    let rows: Vec<_> = std::iter::once(head).chain(rows).map(Vec::from).collect();
    text + &aligned(&rows, NUMBERS)
}

/// The lines above the table, with so many reasons of refusals at most.
pub fn lines(it: &TopSnapshot, reasons_max: usize) -> Vec<String> {
    let drivers: Vec<String> = it.workers.keys().cloned().collect();
    let workers: u64 = it.workers.values().sum();
    let silent = match it.workers_silent {
        0 => String::new(),
        n => format!(", {n} silent"),
    };
    let lines = [
        format!(
            "llmproxy {}, process {}, up {}, workers {workers} ({}){silent}",
            it.llmproxy,
            it.pid,
            span(it.uptime_s),
            drivers.join(" "),
        ),
        format!("connections {}, in flight {}, queued {}", it.connections, it.inflight, it.queued),
        format!("requests     {}", flow(it.requests)),
        format!("tokens       in {}, out {}", flow(it.prompt_tokens), flow(it.completion_tokens)),
        format!(
            "first token  {}; between tokens {}",
            spread(it.first_token_ms),
            spread(it.inter_token_ms)
        ),
        format!("refused      {}", refused(it, reasons_max)),
        format!("journal      {}", journal(&it.journal)),
    ];
    lines.iter().map(|line| for_terminal(line)).collect()
}

/// So many per second, and since the start.
fn flow(flow: Flow) -> String {
    format!("{}/s ({})", rate(flow.per_second), amount(flow.total as f64))
}

fn rate(per_second: Option<f64>) -> String {
    match per_second {
        None => "-".to_owned(),
        Some(few) if few > 0.0 && few < 99.95 => format!("{few:.1}"),
        Some(many) => amount(many),
    }
}

/// In four digits at most.
fn amount(number: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let (mut number, mut unit) = (number, 0);
    while number >= 9_999.5 && unit + 1 < UNITS.len() {
        (number, unit) = (number / 1000.0, unit + 1);
    }
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    match unit {
        "" => format!("{number:.0}"),
        _ if number < 99.95 => format!("{number:.1}{unit}"),
        _ => format!("{number:.0}{unit}"),
    }
}

fn spread(Spread { p50, p95 }: Spread) -> String {
    format!("p50 {}, p95 {}", ms(p50), ms(p95))
}

fn ms(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms < 9.95 => format!("{ms:.1} ms"),
        Some(ms) if ms < 9_999.5 => format!("{ms:.0} ms"),
        Some(ms) => format!("{:.1} s", ms / 1e3),
    }
}

/// The reasons with the most refusals lately, and before.
fn refused(it: &TopSnapshot, reasons_max: usize) -> String {
    let total: u64 = it.refused.values().map(|flow| flow.total).sum();
    let per_second = it.interval_s.map(|_| {
        let rates = it.refused.values().filter_map(|flow| flow.per_second);
        rates.sum()
    });
    let mut reasons: Vec<_> = it.refused.iter().filter(|(_, flow)| flow.total > 0).collect();
    let most = |flow: &Flow| (flow.per_second.unwrap_or_default(), flow.total as f64);
    reasons.sort_by(|(_, a), (_, b)| {
        most(b).partial_cmp(&most(a)).unwrap_or(std::cmp::Ordering::Equal)
    });
    let shown = reasons.iter().take(reasons_max);
    let named: Vec<String> = shown.map(|(why, of)| format!("{why} {}", flow(**of))).collect();
    let more = match reasons.len().saturating_sub(reasons_max) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let colon = if named.is_empty() { "" } else { ": " };
    format!("{}{colon}{}{more}", flow(Flow { total, per_second }), named.join(", "))
}

fn journal(it: &TopJournal) -> String {
    let mut text = format!("{} records wait", amount(it.waiting as f64));
    if it.oldest_s > 0 {
        text += &format!(", the oldest for {}", span(it.oldest_s as f64));
    }
    if it.failing {
        text += "; THE DISK TAKES NONE";
    }
    if !it.away.is_empty() {
        text += &format!("; away: {}", it.away.join(", "));
    }
    text
}

/// A row of the table.
pub fn cells(it: &TopBackend) -> [String; TITLES.len()] {
    let inflight = match it.max_concurrent {
        0 => it.inflight.to_string(),
        most => format!("{} of {most}", it.inflight),
    };
    let weight = match it.weight_now < f64::from(it.weight) {
        true => format!("{} of {}", it.weight_now, it.weight),
        false => it.weight.to_string(),
    };
    [
        for_terminal(&it.name),
        state(it.state).to_owned(),
        inflight,
        rate(it.tries.per_second),
        rate(it.failed.per_second),
        ms(it.first_token_ms.p50),
        weight,
    ]
}

fn state(state: Condition) -> &'static str {
    match state {
        Condition::Up => "up",
        Condition::Starting => "starting",
        Condition::Full => "full",
        Condition::Ejected => "ejected",
        Condition::Unhealthy => "unhealthy",
        Condition::Drained => "drained",
        Condition::Leaving => "leaving",
        Condition::Other => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::super::sight::tests::busy;
    use super::*;

    /// Catches: a figure under the wrong name, a column that stands elsewhere, and a name that
    /// writes elsewhere on the terminal.
    #[test]
    fn a_snapshot_is_understood_at_first_look() {
        let wanted = "\
llmproxy 1.2.3, process 7, up 2h 5m, workers 4 (io_uring)
connections 12, in flight 3, queued 1
requests     5.0/s (110)
tokens       in 50.0/s (1100), out 125/s (2250)
first token  p50 15 ms, p95 20 ms; between tokens p50 15 ms, p95 20 ms
refused      1.5/s (13): rate_limited 1.0/s (4), backends_full 0.5/s (9)
journal      8 records wait, the oldest for 1m 30s; away: ho\u{fffd}k

BACKEND  STATE    IN FLIGHT  TRIES/S  FAILED/S  FIRST TOKEN     WEIGHT
gpu-1    up         3 of 16      4.0         0        15 ms         10
gpu\u{fffd}[2J  ejected          0      1.0       0.5            -  2.5 of 10
";
        assert_eq!(text(&busy()), wanted);
    }

    /// Catches: figures that break the line they stand in.
    #[test]
    fn figures_stay_short() {
        let amounts = [0.0, 9_999.0, 10_000.0, 123_456.0, 9_999_600.0, 1e18].map(amount);
        assert_eq!(amounts, ["0", "9999", "10.0k", "123k", "10.0M", "1000000T"]);
        let rates = [Some(0.0), Some(0.04), Some(99.9), Some(100.4), None].map(rate);
        assert_eq!(rates, ["0", "0.0", "99.9", "100", "-"]);
        let times = [Some(0.5), Some(12.4), Some(59_900.0), None].map(ms);
        assert_eq!(times, ["0.5 ms", "12 ms", "59.9 s", "-"]);
    }

    /// Catches: a terminal's line full of reasons, of which the ones that count now are not seen.
    #[test]
    fn of_many_reasons_those_of_now_come_first() {
        let mut snapshot = busy();
        let flow = |total, rate| Flow { total, per_second: Some(rate) };
        let of =
            [("a", flow(900, 0.0)), ("b", flow(1, 2.0)), ("c", flow(5, 0.0)), ("d", flow(0, 0.0))];
        snapshot.refused = of.map(|(why, flow)| (why.to_owned(), flow)).into();
        assert_eq!(refused(&snapshot, 2), "2.0/s (906): b 2.0/s (1), a 0/s (900) and 1 more");
        snapshot.refused.clear();
        snapshot.interval_s = None;
        assert_eq!(refused(&snapshot, 2), "-/s (0)");
    }
}
