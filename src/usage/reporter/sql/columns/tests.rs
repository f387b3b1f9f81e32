use super::*;
use crate::usage::record::Outcome;
use crate::usage::record::{tests::record, UsageRecord};

fn found(name: &str, type_name: &str) -> FoundColumn {
    FoundColumn { name: name.into(), type_name: type_name.into(), ..FoundColumn::default() }
}

fn layout(driver: SqlDriver, found: &[FoundColumn]) -> Layout {
    Layout {
        driver,
        table: "t".into(),
        columns: choose(driver, found).unwrap(),
        key: Key::Unique,
        zone: TimeZone::UTC,
        body_max: 1 << 20,
        now_ms: 0,
    }
}

/// The row of a table of `request_id` and one more column.
fn cell(driver: SqlDriver, column: FoundColumn, record: &UsageRecord) -> Option<String> {
    let layout = layout(driver, &[found("request_id", "varchar"), column]);
    layout.row(&record.borrowed()).pop().unwrap().map(Cow::into_owned)
}

/// Catches: rows of tables of earlier programs that lose a field because it has another name.
#[test]
fn columns_of_others_are_filled_by_their_names() {
    let table = [
        found("ID", "bigint"),
        found("Request_ID", "varchar"),
        found("endpoint", "varchar"),
        found("streaming", "tinyint"),
        found("status", "int"),
        found("created_at", "datetime"),
        found("comment", "text"),
    ];
    let layout = layout(SqlDriver::Mysql, &table);
    let names: Vec<_> = layout.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["Request_ID", "endpoint", "streaming", "status", "created_at"]);
    let record = UsageRecord { outcome: Outcome::BackendError, status_code: 502, ..record() };
    let row = layout.row(&record.borrowed());
    let texts: Vec<_> = row[1..].iter().map(|cell| cell.as_deref().unwrap()).collect();
    assert_eq!(texts, ["/v1/chat/completions", "1", "502", "2026-01-14 10:30:00.007"]);
    let text = cell(SqlDriver::Mysql, found("status", "varchar"), &record);
    assert_eq!(text.as_deref(), Some("backend_error"));
}

/// Catches: a table that cannot be filled, found out by the first row instead of by name; and a
/// wrong table that is filled because it happens to have a `status`.
#[test]
fn a_table_that_does_not_fit_is_named() {
    let mut unknown = found("tenant", "text");
    unknown.required = true;
    let id = found("request_id", "text");
    let said = choose(SqlDriver::Postgres, &[id.clone(), unknown.clone()]).unwrap_err();
    assert!(said.contains("tenant") && !said.contains("request_id"), "{said}");
    unknown.filled = true;
    assert_eq!(choose(SqlDriver::Postgres, &[id, unknown]).unwrap().len(), 1);
    assert!(choose(SqlDriver::Mysql, &[found("status", "text")]).is_err());
}

/// Catches: a column that holds less than an id, so that of many records few are kept, in silence.
#[test]
fn a_column_that_is_too_narrow_for_ids_is_named() {
    assert_eq!(crate::base::id::RequestIds::new(1).next_id().as_str().len(), ID_LETTERS);
    for (type_name, width, fits) in [
        ("varchar", Some(Width::Letters(31)), false),
        ("binary", Some(Width::Bytes(16)), false),
        ("varchar", Some(Width::Letters(32)), true),
        ("uuid", None, true),
        ("text", None, true),
        ("bigint", None, false),
        ("timestamp", None, false),
    ] {
        let id = FoundColumn { width, ..found("Request_Id", type_name) };
        let chosen = choose(SqlDriver::Postgres, &[id, found("total_tokens", "bigint")]);
        assert_eq!(chosen.is_ok(), fits, "{type_name}");
        assert!(chosen.err().is_none_or(|said| said.contains("Request_Id")));
    }
}

/// Catches: a computed column that is written, and the time of writing that is overwritten.
#[test]
fn what_the_database_knows_is_left_to_it() {
    let computed = FoundColumn { computed: true, ..found("total_tokens", "bigint") };
    let created = FoundColumn { filled: true, ..found("created_at", "datetime") };
    let id = found("request_id", "varchar");
    let timed = [id.clone(), computed.clone(), created.clone(), found("timestamp", "datetime")];
    let names = |found: &[FoundColumn]| {
        let columns = choose(SqlDriver::Mysql, found).unwrap();
        columns.into_iter().map(|column| column.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&timed), ["request_id", "timestamp"]);
    // Without another column for it, it is the time of the request.
    assert_eq!(names(&[id, computed, created]), ["request_id", "created_at"]);
}

/// Catches: a time that is hours or factors of a thousand away.
#[test]
fn times_are_written_as_the_column_has_them() {
    let record = record();
    for (driver, type_name, wanted) in [
        (SqlDriver::Mysql, "datetime", "2026-01-14 10:30:00.007"),
        (SqlDriver::Mysql, "timestamp", "2026-01-14 10:30:00.007"),
        (SqlDriver::Mysql, "bigint", "1768386600007"),
        (SqlDriver::Mysql, "int", "1768386600"),
        (SqlDriver::Mysql, "varchar", "2026-01-14T10:30:00.007Z"),
        (SqlDriver::Mysql, "date", "2026-01-14"),
        (SqlDriver::Postgres, "timestamp with time zone", "2026-01-14T10:30:00.007Z"),
        (SqlDriver::Postgres, "timestamp(3) without time zone", "2026-01-14T10:30:00.007Z"),
        (SqlDriver::Postgres, "double precision", "1768386600.007"),
        (SqlDriver::Postgres, "text", "2026-01-14T10:30:00.007Z"),
        (SqlDriver::Sqlite, "text", "2026-01-14T10:30:00.007Z"),
        (SqlDriver::Sqlite, "datetime", "2026-01-14 10:30:00.007+00:00"),
        (SqlDriver::Sqlite, "integer", "1768386600007"),
    ] {
        let written = cell(driver, found("timestamp", type_name), &record);
        assert_eq!(written.as_deref(), Some(wanted), "{driver:?} {type_name}");
    }
    let mut shifted =
        layout(SqlDriver::Mysql, &[found("request_id", "varchar"), found("timestamp", "datetime")]);
    shifted.zone = TimeZone::get("Asia/Shanghai").unwrap();
    assert_eq!(shifted.row(&record.borrowed())[1].as_deref(), Some("2026-01-14 18:30:00.007"));
}

/// Catches: NULL where the table forbids it, zero where nothing is known.
#[test]
fn what_is_not_known_is_null_where_it_may_be() {
    let record = UsageRecord { usage: None, request_body: None, ..record() };
    for (name, type_name, required) in [
        ("prompt_tokens", "int", "0"),
        ("user_id", "varchar", ""),
        ("request_body", "json", "null"),
        ("ttft_ms", "bigint", "56"),
    ] {
        let column = FoundColumn { required: true, ..found(name, type_name) };
        let cell = cell(SqlDriver::Mysql, column, &record);
        assert_eq!(cell.as_deref(), Some(required), "{name}");
    }
    assert_eq!(cell(SqlDriver::Mysql, found("prompt_tokens", "int"), &record), None);
}

/// Catches: a client's model name or header that a database refuses, so that the request is served
/// and never billed.
#[test]
fn texts_fit_their_columns() {
    let with = |model: &str, column: FoundColumn| {
        let record = UsageRecord { model: Some(model.to_owned()), ..record() };
        cell(SqlDriver::Mysql, column, &record).unwrap()
    };
    let column = |width, letters| FoundColumn { width, letters, ..found("model", "varchar") };
    let three = Some(Width::Letters(3));
    assert_eq!(with("größer", column(three, Letters::All)), "grö");
    assert_eq!(with("größer", column(Some(Width::Bytes(3)), Letters::All)), "gr");
    assert_eq!(with("größer", column(None, Letters::Ascii)), "gr??er");
    assert_eq!(with("a🦀ö", column(None, Letters::ThreeBytes)), "a\u{fffd}ö");
    assert_eq!(with("a\0b🦀", column(None, Letters::All)), "a\u{fffd}b🦀");
}

/// Catches: a body that is cut in the middle of its JSON.
#[test]
fn a_body_fits_its_column_as_json() {
    let same = r#"{"seed": 0.70,  "a":"\u00e9🦀"}"#;
    let narrow = FoundColumn { width: Some(Width::Bytes(12)), ..found("request_body", "text") };
    let record = UsageRecord { request_body: Some(same.into()), ..record() };
    assert_eq!(cell(SqlDriver::Mysql, narrow, &record).unwrap(), "\"{\"");
}
