//! Which columns of a table a record fills, and with what. Pure: a description of a table and a
//! record in, values out. Every database takes numbers and times as text and reads them by the type
//! of the column, so that a row is texts and NULLs whatever the product; SQLite, which has the row
//! in this process, gets numbers as numbers.

use super::cells::{fit, json, Cell, Short};
use crate::base::id::REQUEST_ID_BYTES_MAX;
use crate::base::utc::Stamp;
use crate::config::plan::SqlDriver;
use crate::usage::record::borrowed::RecordRef;
use crate::usage::record::key_id_text;
use jiff::tz::TimeZone;
use jiff::Timestamp;
use std::borrow::Cow;

/// Letters of the id of a record.
pub const ID_LETTERS: usize = 32;

/// The values of one row as texts, in the order of the columns; `None` is NULL.
pub type Row<'a> = Vec<Option<Cow<'a, str>>>;

/// A column as a database describes it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FoundColumn {
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
    /// That value is the time of writing, in the form in which we would give it.
    pub filled_with_now: bool,
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
    Written,
    ApiKey,
    UserId,
    KeyName,
    KeyId,
    KeyMetadata,
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
    QuotaTokens,
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
    ("key_name", Field::KeyName),
    ("key_id", Field::KeyId),
    ("key_metadata", Field::KeyMetadata),
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
    ("quota_tokens", Field::QuotaTokens),
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
    /// What it stores is the same, whether it is given a number or the number as a text.
    numbers: bool,
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
    /// When the rows are written, milliseconds since 1970 UTC.
    pub now_ms: u64,
}

/// Chooses the columns that are filled, of those that a table has.
///
/// # Errors
/// A line for a person: the table wants something that no record has, or is no table of usage.
pub fn choose(driver: SqlDriver, found: &[FoundColumn]) -> Result<Vec<Column>, String> {
    let timed = found.iter().any(|column| column.name.eq_ignore_ascii_case("timestamp"));
    let mut columns = Vec::new();
    let mut unknown = Vec::new();
    for column in found.iter().filter(|column| !column.computed) {
        // Elsewhere a column of that name may be the number of a row.
        let is_text = kind(driver, &column.type_name) == Kind::Text;
        let known = FIELDS
            .iter()
            .find(|(name, _)| column.name.eq_ignore_ascii_case(name))
            .filter(|(_, field)| *field != Field::KeyId || is_text);
        let Some((_, field)) = known else {
            if column.required && !column.filled {
                unknown.push(column.name.as_str());
            }
            continue;
        };
        // When the row was written is the database's to say, unless it is the only time there. The
        // clock of SQLite is ours; to have it look there for each row is a quarter of a row's time.
        let field = match field {
            Field::CreatedAt if timed && column.filled_with_now => &Field::Written,
            Field::CreatedAt if timed && column.filled => continue,
            field => field,
        };
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
            numbers: driver != SqlDriver::Sqlite || takes_numbers(&column.type_name),
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

/// Whether a column of SQLite makes a number of a text that is one, or a text of every number: by
/// the rules for the affinity of a column's type. Without one a value keeps the type that it came
/// with. That of fractions is left out, since large numbers would be rounded in another way.
fn takes_numbers(type_name: &str) -> bool {
    let lower = type_name.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    match () {
        () if has(&["int", "char", "clob", "text"]) => true,
        // In a strict table ANY is a type of its own, that of all values.
        () if lower.is_empty() || lower == "any" => false,
        () => !has(&["blob", "real", "floa", "doub"]),
    }
}

/// A value before it is written for its column.
enum Plain<'a> {
    Text(&'a str),
    Body(&'a [u8]),
    Number(u64),
    KeyId(u64),
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

    /// The place of the request id in a row where it is asked for first: the statement of one row
    /// takes it once more behind all values. (PostgreSQL takes columns.)
    pub fn asked(&self) -> Option<usize> {
        self.id().filter(|_| self.key == Key::Indexed)
    }

    /// The row of a record, as texts.
    pub fn row<'a>(&self, record: &RecordRef<'a>) -> Row<'a> {
        self.columns.iter().map(|column| self.cell(column, record).into_text()).collect()
    }

    /// What a column gets of a record.
    pub fn cell<'a>(&self, column: &Column, record: &RecordRef<'a>) -> Cell<'a> {
        let plain = match column.field {
            Field::Written => Some(Plain::Time(self.now_ms)),
            field => plain(field, record),
        };
        match plain {
            Some(plain) => self.written(column, plain),
            None if column.required => nothing(column),
            None => Cell::Null,
        }
    }

    fn written<'a>(&self, column: &Column, plain: Plain<'a>) -> Cell<'a> {
        match plain {
            Plain::Text(text) => Cell::Text(fit(text.into(), column.width, column.letters)),
            Plain::KeyId(id) => {
                Cell::Text(fit(key_id_text(id).into(), column.width, column.letters))
            }
            Plain::Body(body) => {
                let longest = match column.width {
                    Some(Width::Letters(most) | Width::Bytes(most)) => most.min(self.body_max),
                    None => self.body_max,
                };
                // Cut it would be no JSON any more. Other letters stand only inside its strings.
                Cell::Text(fit(json(body, longest), None, column.letters))
            }
            // Beyond what 64 bits with a sign hold no count ever was; a lie would be worse.
            Plain::Number(number) => whole(column, i64::try_from(number).unwrap_or(i64::MAX)),
            Plain::Truth(truth) if column.kind == Kind::Text => {
                Cell::Text(if truth { "true" } else { "false" }.into())
            }
            Plain::Truth(truth) => whole(column, truth.into()),
            Plain::Time(ms) => self.time(column, ms),
        }
    }

    fn time(&self, column: &Column, ms: u64) -> Cell<'static> {
        let (seconds, rest) = (ms / 1000, ms % 1000);
        let number = |number: u64| match i64::try_from(number) {
            Ok(number) => whole(column, number),
            Err(_) => Cell::Text(number.to_string().into()),
        };
        match column.kind {
            Kind::Long => return number(ms),
            Kind::Short | Kind::Truth => return number(seconds),
            Kind::Fraction => return Cell::Text(format!("{seconds}.{rest:03}").into()),
            Kind::LocalTime if self.zone != TimeZone::UTC => {
                let signed = i64::try_from(ms).unwrap_or_default();
                let time = Timestamp::from_millisecond(signed).unwrap_or_default();
                let time = time.to_zoned(self.zone.clone());
                return Cell::Text(time.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string().into());
            }
            Kind::Text | Kind::Date | Kind::Time | Kind::LocalTime => {}
        }
        let stamp = Stamp::of(ms).unwrap_or_default();
        match (column.kind, self.driver) {
            (Kind::Date, _) => Cell::Short(Short::of([stamp.day()])),
            (Kind::Time | Kind::LocalTime, SqlDriver::Mysql) => {
                Cell::Short(Short::of([stamp.day(), " ", stamp.time()]))
            }
            // As the Go programs before us wrote it, so that old and new rows sort together.
            (Kind::Time, SqlDriver::Sqlite) => {
                Cell::Short(Short::of([stamp.day(), " ", stamp.time(), "+00:00"]))
            }
            (Kind::Text, _) if column.width.is_some() => {
                let text = stamp.as_str().to_owned();
                Cell::Text(fit(text.into(), column.width, column.letters))
            }
            _ => Cell::Short(Short::of([stamp.as_str()])),
        }
    }
}

/// A number, for a column that may want to have it as a text.
fn whole(column: &Column, number: i64) -> Cell<'static> {
    match column.numbers {
        true => Cell::Int(number),
        false => Cell::Text(number.to_string().into()),
    }
}

/// What stands for "not known" where NULL cannot.
fn nothing(column: &Column) -> Cell<'static> {
    match column.kind {
        Kind::Text if matches!(column.field, Field::RequestBody | Field::KeyMetadata) => {
            Cell::Text("null".into())
        }
        Kind::Text => Cell::Text("".into()),
        _ => whole(column, 0),
    }
}

fn plain<'a>(field: Field, r: &RecordRef<'a>) -> Option<Plain<'a>> {
    let text = |text: &'a str| Some(Plain::Text(text));
    let number = |number: u64| Some(Plain::Number(number));
    match field {
        Field::RequestId => text(r.request_id),
        Field::ClientRequestId => r.client_request_id.and_then(text),
        Field::Timestamp | Field::CreatedAt => Some(Plain::Time(r.timestamp_ms)),
        // It is no record's.
        Field::Written => None,
        Field::ApiKey => r.api_key.and_then(text),
        Field::UserId => r.user_id.and_then(text),
        Field::KeyName => r.key_name.and_then(text),
        Field::KeyId => r.key_id.map(Plain::KeyId),
        Field::KeyMetadata => {
            let json = r.key_metadata.filter(|text| !text.is_empty());
            json.map(|text| Plain::Body(text.as_bytes()))
        }
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
        Field::QuotaTokens => r.quota_tokens.and_then(number),
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

#[cfg(test)]
mod tests;
