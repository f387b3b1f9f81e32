//! Which columns of a table a record fills, and with what. Pure: a description of a table and a
//! record in, texts out. Every database takes numbers and times as text and reads them by the type
//! of the column, so that a row is texts and NULLs whatever the product.

use crate::base::id::REQUEST_ID_BYTES_MAX;
use crate::base::limits::SQL_JSON_DEPTH_MAX;
use crate::config::plan::SqlDriver;
use crate::usage::record::borrowed::RecordRef;
use jiff::tz::TimeZone;
use jiff::Timestamp;
use std::borrow::Cow;

/// Letters of the id of a record.
pub const ID_LETTERS: usize = 32;

/// The values of one row, in the order of the columns; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// A column as a database describes it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its type, in small letters: for PostgreSQL whole, so that a value can be cast to it.
    pub type_name: String,
    /// How much fits, where that is limited.
    pub width: Option<Width>,
    /// Which letters fit.
    pub letters: Letters,
    /// NOT NULL.
    pub required: bool,
    /// The database has a value for it when none is given.
    pub filled: bool,
    /// The database computes it: it cannot be given.
    pub computed: bool,
}

/// How much text fits into a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// So many letters.
    Letters(usize),
    /// So many bytes.
    Bytes(usize),
}

/// Which letters fit into a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Letters {
    /// All of Unicode.
    #[default]
    All,
    /// Those of up to three bytes in UTF-8: MySQL's old `utf8`.
    ThreeBytes,
    /// ASCII, which every character set holds.
    Ascii,
}

/// What of a record a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    RequestId,
    ClientRequestId,
    Timestamp,
    CreatedAt,
    ApiKey,
    UserId,
    Model,
    Method,
    Path,
    Backend,
    BackendUrl,
    StatusCode,
    Status,
    Error,
    IsStream,
    LatencyMs,
    TtftMs,
    FirstByteMs,
    AudioSeconds,
    UsageWarnings,
    EngineError,
    PromptTokens,
    CompletionTokens,
    TotalTokens,
    CachedTokens,
    ReasoningTokens,
    UsageSource,
    UsageMissingReason,
    RetryCount,
    FallbackUsed,
    UpstreamId,
    RequestBytes,
    ResponseBytes,
    Events,
    RequestBody,
}

/// The names of columns that are known, those of tables of others among them.
const FIELDS: &[(&str, Field)] = &[
    ("request_id", Field::RequestId),
    ("client_request_id", Field::ClientRequestId),
    ("timestamp", Field::Timestamp),
    ("created_at", Field::CreatedAt),
    ("api_key", Field::ApiKey),
    ("user_id", Field::UserId),
    ("model", Field::Model),
    ("method", Field::Method),
    ("path", Field::Path),
    ("endpoint", Field::Path),
    ("backend", Field::Backend),
    ("backend_url", Field::BackendUrl),
    ("status_code", Field::StatusCode),
    ("status", Field::Status),
    ("error", Field::Error),
    ("is_stream", Field::IsStream),
    ("streaming", Field::IsStream),
    ("latency_ms", Field::LatencyMs),
    ("ttft_ms", Field::TtftMs),
    ("first_byte_ms", Field::FirstByteMs),
    ("audio_seconds", Field::AudioSeconds),
    ("usage_warnings", Field::UsageWarnings),
    ("engine_error", Field::EngineError),
    ("prompt_tokens", Field::PromptTokens),
    ("completion_tokens", Field::CompletionTokens),
    ("total_tokens", Field::TotalTokens),
    ("cached_tokens", Field::CachedTokens),
    ("reasoning_tokens", Field::ReasoningTokens),
    ("usage_source", Field::UsageSource),
    ("usage_missing_reason", Field::UsageMissingReason),
    ("retry_count", Field::RetryCount),
    ("fallback_used", Field::FallbackUsed),
    ("upstream_id", Field::UpstreamId),
    ("request_bytes", Field::RequestBytes),
    ("response_bytes", Field::ResponseBytes),
    ("events", Field::Events),
    ("request_body", Field::RequestBody),
];

/// How a column wants its values written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// A whole number of up to 64 bits.
    Long,
    /// A whole number of up to 32 bits: no milliseconds since 1970 fit.
    Short,
    Fraction,
    Truth,
    Date,
    /// A point in time that the database reads with its zone, or as UTC.
    Time,
    /// A point in time without a zone, in the zone that the table is kept in.
    LocalTime,
}

/// A column that is filled.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name, as the table has it.
    pub name: String,
    /// Its type, as the database says it.
    pub type_name: String,
    field: Field,
    kind: Kind,
    width: Option<Width>,
    letters: Letters,
    required: bool,
}

impl Column {
    /// Whether it holds the id that a record is known by.
    pub fn is_request_id(&self) -> bool {
        self.field == Field::RequestId
    }
}

/// How the id of a record is found in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// It has a unique index of its own: the database ignores duplicates.
    Unique,
    /// It has an index that is not unique: it can be asked for before it is written.
    Indexed,
    /// To ask for it would read the whole table; duplicates stay.
    Absent,
}

/// A table, and how records are written into it.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The product.
    pub driver: SqlDriver,
    /// Its name, as configured.
    pub table: String,
    /// The columns that are filled.
    pub columns: Vec<Column>,
    /// How duplicates are known.
    pub key: Key,
    /// Zone of times that are written without one.
    pub zone: TimeZone,
    /// Bytes of a request body that are kept: more would not fit into a packet.
    pub body_max: usize,
}

/// Chooses the columns that are filled, of those that a table has.
///
/// # Errors
/// A line for a person: the table wants something that no record has, or is no table of usage.
pub fn choose(driver: SqlDriver, found: &[Found]) -> Result<Vec<Column>, String> {
    let timed = found.iter().any(|column| column.name.eq_ignore_ascii_case("timestamp"));
    let mut columns = Vec::new();
    let mut unknown = Vec::new();
    for column in found.iter().filter(|column| !column.computed) {
        let known = FIELDS.iter().find(|(name, _)| column.name.eq_ignore_ascii_case(name));
        let Some((_, field)) = known else {
            if column.required && !column.filled {
                unknown.push(column.name.as_str());
            }
            continue;
        };
        // When the row was written is the database's to say, unless it is the only time there.
        if *field == Field::CreatedAt && column.filled && timed {
            continue;
        }
        let kind = kind(driver, &column.type_name);
        let number = matches!(kind, Kind::Long | Kind::Short | Kind::Fraction);
        columns.push(Column {
            name: column.name.clone(),
            type_name: column.type_name.clone(),
            // Some keep the number under the shorter name.
            field: if *field == Field::Status && number { Field::StatusCode } else { *field },
            kind,
            width: column.width,
            letters: column.letters,
            required: column.required,
        });
    }
    if !unknown.is_empty() {
        return Err(format!(
            "its columns must be given and are not known here: {} (allow NULL, or add a DEFAULT)",
            unknown.join(", ")
        ));
    }
    let telling =
        [Field::RequestId, Field::PromptTokens, Field::CompletionTokens, Field::TotalTokens];
    if !columns.iter().any(|column| telling.contains(&column.field)) {
        return Err("it has no column for a request id or for tokens".to_owned());
    }
    columns.iter().filter(|column| column.is_request_id()).try_for_each(keeps_ids)?;
    Ok(columns)
}

/// A column that does not hold a whole id would take one record for another, and keep but one.
fn keeps_ids(column: &Column) -> Result<(), String> {
    let (name, type_name) = (&column.name, &column.type_name);
    let cure = format!("make it a VARCHAR({REQUEST_ID_BYTES_MAX})");
    match column.width {
        Some(Width::Letters(most) | Width::Bytes(most)) if most < ID_LETTERS => Err(format!(
            "its column {name} holds {most} letters, and a request id has {ID_LETTERS}: records \
             would be taken for one another ({cure})"
        )),
        _ if column.kind != Kind::Text => Err(format!(
            "its column {name} is of type {type_name}, and a request id is a text ({cure})"
        )),
        _ => Ok(()),
    }
}

fn kind(driver: SqlDriver, type_name: &str) -> Kind {
    let lower = type_name.to_ascii_lowercase();
    let base = lower.split('(').next().unwrap_or_default().trim();
    match base.split_whitespace().next().unwrap_or_default() {
        // SQLite's INTEGER has 64 bits.
        "int" | "integer" if driver == SqlDriver::Sqlite => Kind::Long,
        "bigint" | "int8" | "bigserial" => Kind::Long,
        "int" | "integer" | "int4" | "mediumint" | "smallint" | "int2" | "tinyint" | "bit" => {
            Kind::Short
        }
        "real" | "double" | "float" | "float4" | "float8" | "decimal" | "numeric" => Kind::Fraction,
        "bool" | "boolean" => Kind::Truth,
        "date" => Kind::Date,
        "datetime" if driver == SqlDriver::Mysql => Kind::LocalTime,
        "datetime" | "timestamp" | "timestamptz" => Kind::Time,
        _ => Kind::Text,
    }
}

/// A value before it is written for its column.
enum Plain<'a> {
    Text(&'a str),
    Body(&'a [u8]),
    Number(u64),
    Truth(bool),
    Time(u64),
}

impl Key {
    /// By the indexes that begin with the column: whether each is a unique one of it alone.
    pub fn of_indexes(unique: impl IntoIterator<Item = bool>) -> Key {
        match unique.into_iter().max() {
            Some(true) => Key::Unique,
            Some(false) => Key::Indexed,
            None => Key::Absent,
        }
    }
}

/// A unique index that refuses a record that is sent twice, and by which it cannot be known first:
/// the database takes it neither for ON CONFLICT nor to look for an id. Each such record would
/// become a dead letter.
#[derive(Debug)]
pub struct Unusable {
    /// Its name.
    pub index: String,
    /// It is of the column itself, but has only the rows that meet its condition.
    pub is_partial: bool,
}

impl Unusable {
    /// What is to be said of the first one that stands in the way of `key`. Beside a unique index
    /// of the whole column none does harm: the database looks there first.
    pub fn why(found: &[Unusable], key: Key, column: &str) -> Option<String> {
        let Unusable { index, is_partial } = found.first().filter(|_| key != Key::Unique)?;
        let what = match is_partial {
            true => format!("is of {column} and has a condition"),
            false => format!("is of an expression that has {column}"),
        };
        Some(format!(
            "its unique index {index} {what}, so that a record that is sent twice cannot be known \
             by it (make a unique index of {column} alone in its place)"
        ))
    }
}

impl Layout {
    /// The place of the request id among the columns.
    pub fn id(&self) -> Option<usize> {
        self.columns.iter().position(Column::is_request_id)
    }

    /// What the statement of one row takes: its values, and behind them the request id once more
    /// where it is asked for first. (PostgreSQL takes columns.)
    pub fn values<'a>(&self, row: &'a Row) -> impl Iterator<Item = &'a Option<String>> {
        let asked = self.id().filter(|_| self.key == Key::Indexed);
        row.iter().chain(asked.and_then(|id| row.get(id)))
    }

    /// The row of a record.
    pub fn row(&self, record: &RecordRef<'_>) -> Row {
        self.columns.iter().map(|column| self.cell(column, record)).collect()
    }

    fn cell(&self, column: &Column, record: &RecordRef<'_>) -> Option<String> {
        let written = self.plain(column.field, record).map(|plain| self.written(column, plain));
        match written {
            None if column.required => Some(self.nothing(column)),
            written => written,
        }
    }

    /// What stands for "not known" where NULL cannot.
    fn nothing(&self, column: &Column) -> String {
        match column.kind {
            Kind::Text if column.field == Field::RequestBody => "null".to_owned(),
            Kind::Text => String::new(),
            _ => "0".to_owned(),
        }
    }

    fn plain<'a>(&self, field: Field, r: &RecordRef<'a>) -> Option<Plain<'a>> {
        let text = |text: &'a str| Some(Plain::Text(text));
        let number = |number: u64| Some(Plain::Number(number));
        match field {
            Field::RequestId => text(r.request_id),
            Field::ClientRequestId => r.client_request_id.and_then(text),
            Field::Timestamp | Field::CreatedAt => Some(Plain::Time(r.timestamp_ms)),
            Field::ApiKey => r.api_key.and_then(text),
            Field::UserId => r.user_id.and_then(text),
            Field::Model => r.model.and_then(text),
            Field::Method => text(r.method),
            Field::Path => text(r.path),
            Field::Backend => r.backend.and_then(text),
            Field::BackendUrl => r.backend_url.and_then(text),
            Field::StatusCode => number(r.status_code.into()),
            Field::Status => text(r.outcome.as_str()),
            Field::Error => r.error.and_then(text),
            Field::IsStream => Some(Plain::Truth(r.is_stream)),
            Field::LatencyMs => number(r.latency_ms),
            Field::TtftMs => r.ttft_ms.and_then(number),
            Field::FirstByteMs => r.first_byte_ms.and_then(number),
            Field::AudioSeconds => r.audio_seconds.and_then(number),
            Field::UsageWarnings => r.oddities.words().and_then(text),
            Field::EngineError => r.engine_error.and_then(text),
            Field::PromptTokens => r.usage.and_then(|u| number(u.prompt_tokens)),
            Field::CompletionTokens => r.completion_tokens().and_then(number),
            Field::TotalTokens => r.usage.and_then(|u| number(u.total_tokens)),
            Field::CachedTokens => r.usage.and_then(|u| u.cached_tokens).and_then(number),
            Field::ReasoningTokens => r.usage.and_then(|u| u.reasoning_tokens).and_then(number),
            Field::UsageSource => text(r.usage_source()),
            Field::UsageMissingReason => r.usage_missing_reason.and_then(text),
            Field::RetryCount => number(r.retry_count.into()),
            Field::FallbackUsed => Some(Plain::Truth(r.fallback_used)),
            Field::UpstreamId => r.upstream_id.and_then(text),
            Field::RequestBytes => number(r.request_bytes),
            Field::ResponseBytes => number(r.response_bytes),
            Field::Events => number(r.events),
            Field::RequestBody => r.request_body.map(Plain::Body),
        }
    }

    fn written(&self, column: &Column, plain: Plain) -> String {
        match plain {
            Plain::Text(text) => fit(text, column.width, column.letters),
            Plain::Body(body) => {
                let longest = match column.width {
                    Some(Width::Letters(most) | Width::Bytes(most)) => most.min(self.body_max),
                    None => self.body_max,
                };
                // Cut it would be no JSON any more. Other letters stand only inside its strings.
                fit(&json(body, longest), None, column.letters)
            }
            // Beyond what 64 bits with a sign hold no count ever was; a lie would be worse.
            Plain::Number(number) => number.min(i64::MAX.unsigned_abs()).to_string(),
            Plain::Truth(truth) if column.kind == Kind::Text => truth.to_string(),
            Plain::Truth(truth) => u8::from(truth).to_string(),
            Plain::Time(ms) => {
                let text = self.time(column.kind, ms);
                if column.kind == Kind::Text {
                    fit(&text, column.width, column.letters)
                } else {
                    text
                }
            }
        }
    }

    fn time(&self, kind: Kind, ms: u64) -> String {
        let (seconds, rest) = (ms / 1000, ms % 1000);
        match kind {
            Kind::Long => return ms.to_string(),
            Kind::Short | Kind::Truth => return seconds.to_string(),
            Kind::Fraction => return format!("{seconds}.{rest:03}"),
            _ => {}
        }
        let signed = i64::try_from(ms).unwrap_or_default();
        let time = Timestamp::from_millisecond(signed).unwrap_or_default();
        let zone = if kind == Kind::LocalTime { self.zone.clone() } else { TimeZone::UTC };
        let zoned = time.to_zoned(zone);
        let form = match (kind, self.driver) {
            (Kind::Date, _) => "%Y-%m-%d",
            (Kind::Time | Kind::LocalTime, SqlDriver::Mysql) => "%Y-%m-%d %H:%M:%S%.3f",
            // As the Go programs before us wrote it, so that old and new rows sort together.
            (Kind::Time, SqlDriver::Sqlite) => "%Y-%m-%d %H:%M:%S%.3f+00:00",
            _ => "%Y-%m-%dT%H:%M:%S%.3fZ",
        };
        zoned.strftime(form).to_string()
    }
}

/// A request body as JSON that every database takes: as it was sent, or as a JSON string where it
/// is no JSON, is too long, or is JSON that one of them refuses. A client must not be able to keep
/// its record out of a table by what it sends.
fn json(body: &[u8], longest: usize) -> Cow<'_, str> {
    let plain = std::str::from_utf8(body).ok().filter(|text| {
        // PostgreSQL's JSONB has no NUL, and the parser refuses what others cannot hold: numbers
        // beyond a double, halves of surrogates.
        body.len() <= longest
            && !text.contains("\\u0000")
            && serde_json::from_str::<serde_json::Value>(text).is_ok_and(|v| is_flat(&v, 0))
    });
    if let Some(text) = plain {
        return Cow::Borrowed(text);
    }
    // Written as a string, a byte may become six, and there are the quotes.
    let kept = body.get(..body.len().min(longest.saturating_sub(2) / 6)).unwrap_or_default();
    let text = String::from_utf8_lossy(kept).replace('\0', "\u{fffd}");
    Cow::Owned(serde_json::to_string(&text).unwrap_or_else(|_| "null".to_owned()))
}

fn is_flat(value: &serde_json::Value, depth: usize) -> bool {
    let inside = |value| depth < SQL_JSON_DEPTH_MAX && is_flat(value, depth + 1);
    match value {
        serde_json::Value::Array(items) => items.iter().all(inside),
        serde_json::Value::Object(members) => members.values().all(inside),
        _ => true,
    }
}

/// A text as its column can hold it: without NUL, without letters that its character set has not,
/// and cut to its width.
fn fit(text: &str, width: Option<Width>, letters: Letters) -> String {
    let (most, bytes) = match width {
        Some(Width::Letters(most)) => (most, usize::MAX),
        Some(Width::Bytes(bytes)) => (usize::MAX, bytes),
        None => (usize::MAX, usize::MAX),
    };
    let mut fitted = String::with_capacity(text.len().min(bytes).saturating_add(4));
    for letter in text.chars().take(most) {
        let letter = match letters {
            Letters::Ascii if !letter.is_ascii() || letter == '\0' => '?',
            _ if letter == '\0' => '\u{fffd}',
            Letters::ThreeBytes if letter.len_utf8() > 3 => '\u{fffd}',
            _ => letter,
        };
        if fitted.len() + letter.len_utf8() > bytes {
            break;
        }
        fitted.push(letter);
    }
    fitted
}

#[cfg(test)]
mod tests;
