//! `llmproxy usage`: sums over the builtin store. Reads only, beside a gateway that writes.

use crate::base::line::for_terminal;
use crate::config::cli::{By, Form, Printout, UsageQuestion, FINE, UNUSABLE, WOULD_NOT_START};
use crate::store::sql::sqlite::open_existing;
use crate::usage::reporter::builtin::TABLE;
use rusqlite::types::Value;
use rusqlite::{params_from_iter, Connection};
use serde_json::json;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// A reader waits so long while the file is locked: at its making, and at the end of its writer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is summed up, behind the name of the row. A client that left is no error of ours, whatever
/// status it had got or would have.
const SUMS: &[(&str, &str)] = &[
    ("requests", "count(*)"),
    (
        "errors",
        "count(*) FILTER (WHERE status <> 'client_left' AND \
      (status <> 'complete' OR status_code >= 400))",
    ),
    // An engine worked for these, and nobody knows how much: a sum of tokens says nothing of them.
    // Of what costs none (`/tokenize`), whole answers have no reason why it is missing.
    (
        "without_usage",
        "count(*) FILTER (WHERE usage_source <> 'engine' AND method = 'POST' AND \
      (status = 'client_left' OR status_code < 400 AND \
       (usage_missing_reason IS NOT NULL OR status <> 'complete')))",
    ),
    ("prompt_tokens", "coalesce(sum(prompt_tokens), 0)"),
    ("completion_tokens", "coalesce(sum(completion_tokens), 0)"),
    ("total_tokens", "coalesce(sum(total_tokens), 0)"),
    ("cached_tokens", "coalesce(sum(cached_tokens), 0)"),
    ("avg_latency_ms", "coalesce(cast(round(avg(latency_ms)) AS INTEGER), 0)"),
];

/// A row: what it is about (`None` = requests that name none), and its sums.
struct Line {
    name: Option<String>,
    sums: Vec<i64>,
}

impl Line {
    /// The total of no records.
    fn none() -> Line {
        Line { name: Some("total".to_owned()), sums: vec![0; SUMS.len()] }
    }
}

/// Answers a question.
pub fn answer(question: &UsageQuestion) -> Printout {
    let db = question.db.display();
    let is_to_come = question.may_be_missing && matches!(question.db.try_exists(), Ok(false));
    let (found, stderr) = match is_to_come {
        true => (Ok((Vec::new(), Line::none())), format!("llmproxy usage: no records yet: {db}\n")),
        false => (ask(question), String::new()),
    };
    match found {
        Ok((lines, total)) => {
            let stdout = match question.form {
                Form::Table => table(question.by, &lines, &total),
                Form::Json => json(question.by, &lines),
                Form::Csv => csv(question.by, &lines),
            };
            Printout { stdout, stderr, code: FINE }
        }
        Err((code, message)) => {
            let stderr = format!("llmproxy usage: {db}: {message}\n");
            Printout { stdout: String::new(), stderr, code }
        }
    }
}

fn ask(question: &UsageQuestion) -> Result<(Vec<Line>, Line), (u8, String)> {
    let connection = open(&question.db)?;
    let said = |error: rusqlite::Error| match error.to_string() {
        message if message.contains("no such column") || message.contains("no such table") => {
            (UNUSABLE, format!("{message}: it is no store of this version"))
        }
        message => (WOULD_NOT_START, message),
    };
    let (mut conditions, mut times) = (Vec::new(), Vec::new());
    for (limit, sign) in [(question.since_ms, ">="), (question.until_ms, "<")] {
        if let Some(ms) = limit {
            conditions.push(format!("timestamp {sign} ?"));
            times.push(Value::Text(time(ms)));
        }
    }
    let within = match conditions.is_empty() {
        true => String::new(),
        false => format!(" WHERE {}", conditions.join(" AND ")),
    };
    let sums: Vec<&str> = SUMS.iter().map(|(_, sum)| *sum).collect();
    let (sums, name) = (sums.join(", "), column(&connection, question.by).map_err(said)?);
    let order = if question.by == By::Day { "1" } else { "requests DESC, 1" };
    let rows = format!("SELECT {name}, {sums} FROM {TABLE}{within} GROUP BY 1 ORDER BY {order}");
    let rows = rows.replacen("count(*),", "count(*) AS requests,", 1);
    let total = format!("SELECT 'total', {sums} FROM {TABLE}{within}");
    let mut answers = Vec::new();
    // One snapshot for both, while the gateway goes on writing.
    let transaction = connection.unchecked_transaction().map_err(said)?;
    for text in [&rows, &total] {
        let mut statement = transaction.prepare(text).map_err(said)?;
        let lines = statement.query_map(params_from_iter(&times), line);
        answers.push(lines.and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(said)?);
    }
    let total = answers.pop().and_then(|mut lines| lines.pop());
    Ok((answers.pop().unwrap_or_default(), total.unwrap_or_else(Line::none)))
}

fn line(row: &rusqlite::Row) -> rusqlite::Result<Line> {
    let sums = (1..=SUMS.len()).map(|index| row.get(index)).collect::<Result<_, _>>()?;
    Ok(Line { name: row.get(0)?, sums })
}

fn open(path: &Path) -> Result<Connection, (u8, String)> {
    if !path.exists() {
        let message = "there is no such file: the builtin reporter makes it with its first record";
        return Err((UNUSABLE, message.to_owned()));
    }
    open_existing(path, false, PATIENCE).map_err(|error| (WOULD_NOT_START, error.to_string()))
}

fn column(connection: &Connection, by: By) -> rusqlite::Result<&'static str> {
    Ok(match by {
        By::Key => "api_key",
        By::User => "user_id",
        By::Model => "model",
        By::Day => "substr(timestamp, 1, 10)",
        // A store that an earlier version made has no names.
        By::Backend if !connection.column_exists(None, TABLE, "backend")? => "backend_url",
        By::Backend => "coalesce(backend, backend_url)",
        By::Status => "status",
    })
}

fn title(by: By) -> &'static str {
    match by {
        By::Key => "api_key",
        By::User => "user_id",
        By::Model => "model",
        By::Day => "day",
        By::Backend => "backend",
        By::Status => "status",
    }
}

/// As the rows have it, so that texts sort as times do.
fn time(ms: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX));
    time.map_or_else(|_| "9999".to_owned(), |time| format!("{time:.3}"))
}

fn json(by: By, lines: &[Line]) -> String {
    let object = |line: &Line| {
        let sums = SUMS.iter().zip(&line.sums).map(|((name, _), sum)| ((*name).into(), json!(sum)));
        let named = std::iter::once((title(by).to_owned(), json!(line.name)));
        named.chain(sums).collect::<serde_json::Map<_, _>>()
    };
    let all: Vec<_> = lines.iter().map(object).collect();
    serde_json::to_string_pretty(&all).map(|text| text + "\n").unwrap_or_default()
}

fn csv(by: By, lines: &[Line]) -> String {
    let names = SUMS.iter().map(|(name, _)| *name);
    let head: Vec<&str> = std::iter::once(title(by)).chain(names).collect();
    let mut text = head.join(",") + "\n";
    for line in lines {
        let name = line.name.as_deref().unwrap_or_default();
        match name.contains(['"', ',', '\n', '\r']) {
            true => text.push_str(&format!("\"{}\"", name.replace('"', "\"\""))),
            false => text.push_str(name),
        }
        for sum in &line.sums {
            // Nothing fails that writes to a text.
            let _ = write!(text, ",{sum}");
        }
        text.push('\n');
    }
    text
}

/// Names to the left, numbers to the right.
fn table(by: By, lines: &[Line], total: &Line) -> String {
    let names = SUMS.iter().map(|(name, _)| (*name).to_owned());
    let mut cells: Vec<Vec<String>> =
        vec![std::iter::once(title(by).to_owned()).chain(names).collect()];
    for line in lines.iter().chain(std::iter::once(total)) {
        let name = line.name.as_deref().unwrap_or("-");
        // What a client calls its model must not move the cursor of whoever reads this.
        let name = for_terminal(name);
        let sums = line.sums.iter().map(i64::to_string);
        cells.push(std::iter::once(name).chain(sums).collect());
    }
    let widths: Vec<usize> = (0..=SUMS.len())
        .map(|index| {
            let width = |row: &Vec<String>| row.get(index).map_or(0, |cell| cell.chars().count());
            cells.iter().map(width).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in &cells {
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            match index {
                0 => text.push_str(&format!("{cell}{padding}")),
                _ => text.push_str(&format!("  {padding}{cell}")),
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
