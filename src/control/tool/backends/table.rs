//! A roster as a table for a person.

use super::super::figures::{aligned, cut, span};
use crate::base::line::for_terminal;
use crate::control::roster::{Condition, Opinion, Roster, RosterEntry};

const COLUMNS: [&str; 12] = [
    "BACKEND",
    "STATE",
    "SINCE",
    "IN FLIGHT",
    "WEIGHT",
    "PICKED",
    "FAILED",
    "FIRST TOKEN",
    "ENGINE",
    "REGION",
    "MODELS",
    "URL",
];
/// Columns of numbers, which end below each other.
const NUMBERS: std::ops::RangeInclusive<usize> = 2..=7;

/// The whole of it: a line for the process, one for each backend, and one for each reason why a
/// backend gets no requests.
pub fn table(roster: &Roster) -> String {
    let Roster { llmproxy, pid, load_balance, region, .. } = roster;
    let up = span(roster.uptime_s);
    let place = if region.is_empty() { String::new() } else { format!(", region {region}") };
    let mut text = for_terminal(&format!(
        "llmproxy {llmproxy}, process {pid}, up {up}, {load_balance}{place}"
    ));
    text.push('\n');
    if roster.backends.is_empty() {
        text.push_str("no backends\n");
        return text;
    }
    let head = COLUMNS.map(str::to_owned);
    let rows = std::iter::once(head).chain(roster.backends.iter().map(cells));
    text.push('\n');
    text.push_str(&aligned(&rows.map(Vec::from).collect::<Vec<_>>(), NUMBERS));
    let reasons: String = roster.backends.iter().flat_map(reasons).collect();
    if !reasons.is_empty() {
        text.push('\n');
        text.push_str(&reasons);
    }
    text
}

fn cells(it: &RosterEntry) -> [String; COLUMNS.len()] {
    let full = it.full_s.map(|s| format!(" ({})", span(s))).unwrap_or_default();
    let (state, since) = match it.state {
        Condition::Up => ("up".to_owned(), last_change(it)),
        Condition::Starting => ("starting".to_owned(), last_change(it)),
        Condition::Full => (format!("full{full}"), last_change(it)),
        Condition::Ejected => ("ejected".to_owned(), it.requests.since_s),
        Condition::Unhealthy => ("unhealthy".to_owned(), it.probes.since_s),
        Condition::Drained => ("drained".to_owned(), last_change(it)),
        Condition::Leaving => ("leaving".to_owned(), last_change(it)),
        Condition::Other => ("?".to_owned(), last_change(it)),
    };
    let inflight = match it.max_concurrent {
        0 => it.inflight.to_string(),
        most => format!("{} of {most}", it.inflight),
    };
    let weight = match it.weight_now < f64::from(it.weight) {
        true => format!("{} of {}", it.weight_now, it.weight),
        false => it.weight.to_string(),
    };
    let models = if it.models.is_empty() { "all".to_owned() } else { it.models.join(" ") };
    let engine = match it.engine.as_str() {
        "auto" | "" => "-",
        known => known,
    };
    let standby = if it.backup { " (standby)" } else { "" };
    let first_token = it.first_token_median_ms.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
    [
        format!("{}{standby}", it.name),
        state,
        span(since),
        inflight,
        weight,
        it.picked.to_string(),
        it.failed.to_string(),
        first_token,
        engine.to_owned(),
        if it.region.is_empty() { "-".to_owned() } else { it.region.clone() },
        models,
        it.url.clone(),
    ]
    .map(|cell| cut(&for_terminal(&cell)))
}

/// Seconds since a witness last changed its mind.
fn last_change(it: &RosterEntry) -> f64 {
    it.probes.since_s.min(it.requests.since_s)
}

/// A line for each witness that speaks against a backend.
fn reasons(it: &RosterEntry) -> Vec<String> {
    let told = |who: &str, opinion: &Opinion, next: String| {
        let why = opinion.why.as_deref().unwrap_or("not known");
        let since = span(opinion.since_s);
        let line =
            for_terminal(&format!("{}: {who} found it dead {since} ago: {why}{next}", it.name));
        (!opinion.well).then(|| line + "\n")
    };
    let next = match it.next_try_s {
        Some(0.0) => "; the next request tries it".to_owned(),
        Some(seconds) => format!("; a request tries it in {}", span(seconds)),
        None => "; a request is trying it".to_owned(),
    };
    let probes = told("probes", &it.probes, String::new());
    probes.into_iter().chain(told("requests", &it.requests, next)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::roster::ROSTER_VERSION;

    fn well(since_s: f64) -> Opinion {
        Opinion { well: true, since_s, why: None }
    }

    fn entry(name: &str) -> RosterEntry {
        RosterEntry {
            name: name.into(),
            url: format!("http://{name}:8000"),
            addresses: Vec::new(),
            engine: "vllm".into(),
            models: Vec::new(),
            region: String::new(),
            backup: false,
            state: Condition::Up,
            probes: well(7500.0),
            requests: well(7500.0),
            next_try_s: None,
            full_s: None,
            weight: 10,
            weight_now: 10.0,
            inflight: 3,
            max_concurrent: 16,
            picked: 12345,
            failed: 0,
            first_token_median_ms: Some(120.4),
            first_token_lately_ms: None,
        }
    }

    /// Catches: columns that do not stand below each other, a reason that is not told, and a name
    /// that writes elsewhere on the terminal.
    #[test]
    fn a_table_is_understood_at_first_look() {
        let dead = |why: &str| Opinion { well: false, since_s: 12.3, why: Some(why.into()) };
        let (ejected, unhealthy) = (
            RosterEntry {
                state: Condition::Ejected,
                requests: dead("too many connections in a row failed"),
                next_try_s: Some(3.2),
                first_token_median_ms: None,
                engine: "auto".into(),
                ..entry("gpu-2")
            },
            RosterEntry {
                state: Condition::Unhealthy,
                probes: dead("status 503"),
                weight_now: 2.5,
                models: vec!["llama-3-*".into(), "m".into()],
                region: "e\u{202e}u".into(),
                backup: true,
                max_concurrent: 0,
                ..entry("gpu-three")
            },
        );
        let roster = Roster {
            version: ROSTER_VERSION,
            llmproxy: "1.2.3".into(),
            pid: 4711,
            uptime_s: 7500.0,
            config_sha256: String::new(),
            load_balance: "round_robin".into(),
            region: "eu".into(),
            backends: vec![entry("gpu-1"), ejected, unhealthy],
        };
        let wanted = "\
llmproxy 1.2.3, process 4711, up 2h 5m, round_robin, region eu

BACKEND              STATE      SINCE  IN FLIGHT     WEIGHT  PICKED  FAILED  FIRST TOKEN  ENGINE  REGION  MODELS       URL
gpu-1                up         2h 5m    3 of 16         10   12345       0       120 ms  vllm    -       all          http://gpu-1:8000
gpu-2                ejected     12 s    3 of 16         10   12345       0            -  -       -       all          http://gpu-2:8000
gpu-three (standby)  unhealthy   12 s          3  2.5 of 10   12345       0       120 ms  vllm    e\u{fffd}u     llama-3-* m  http://gpu-three:8000

gpu-2: requests found it dead 12 s ago: too many connections in a row failed; a request tries it in 3.2 s
gpu-three: probes found it dead 12 s ago: status 503
";
        assert_eq!(table(&roster), wanted);
        let none = Roster { backends: Vec::new(), ..roster };
        assert!(table(&none).ends_with("\nno backends\n"));
    }
}
