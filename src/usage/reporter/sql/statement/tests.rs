use super::*;
use crate::usage::reporter::sql::columns::{choose, FoundColumn};
use jiff::tz::TimeZone;

fn layout(driver: SqlDriver, key: Key) -> Layout {
    let found = |name: &str| FoundColumn {
        name: name.into(),
        type_name: if name == "model" { "character varying(9)" } else { "text" }.into(),
        ..FoundColumn::default()
    };
    Layout {
        driver,
        table: "meter.usage".into(),
        columns: choose(driver, &[found("model"), found("request_id")]).unwrap(),
        key,
        zone: TimeZone::UTC,
        body_max: 1,
        now_ms: 0,
    }
}

/// Catches: the clause for duplicates of another product, a name without quotes.
#[test]
fn inserts_are_written_for_each_product() {
    let text = |driver, key, rows| insert(&layout(driver, key), rows);
    assert_eq!(
        text(SqlDriver::Mysql, Key::Unique, 2),
        "INSERT INTO `meter`.`usage` (`model`, `request_id`) VALUES (?, ?), (?, ?) \
         ON DUPLICATE KEY UPDATE `request_id` = `request_id`"
    );
    assert_eq!(
        text(SqlDriver::Mysql, Key::Indexed, 1),
        "INSERT INTO `meter`.`usage` (`model`, `request_id`) SELECT ?, ? FROM DUAL \
         WHERE NOT EXISTS (SELECT 1 FROM `meter`.`usage` WHERE `request_id` = ?)"
    );
    assert_eq!(
        text(SqlDriver::Sqlite, Key::Unique, 1),
        "INSERT INTO \"meter\".\"usage\" (\"model\", \"request_id\") VALUES (?, ?) \
         ON CONFLICT (\"request_id\") DO NOTHING"
    );
    assert_eq!(
        text(SqlDriver::Sqlite, Key::Absent, 1),
        "INSERT INTO \"meter\".\"usage\" (\"model\", \"request_id\") VALUES (?, ?)"
    );
    let rows = "INSERT INTO \"meter\".\"usage\" (\"model\", \"request_id\") \
                SELECT r.c1::character varying(9), r.c2::text \
                FROM unnest($1::text[], $2::text[]) AS r(c1, c2)";
    assert_eq!(text(SqlDriver::Postgres, Key::Absent, 7), rows);
    assert_eq!(
        text(SqlDriver::Postgres, Key::Unique, 7),
        format!("{rows} ON CONFLICT (\"request_id\") DO NOTHING")
    );
    assert_eq!(
        text(SqlDriver::Postgres, Key::Indexed, 7),
        format!(
            "{rows} WHERE NOT EXISTS \
             (SELECT 1 FROM \"meter\".\"usage\" AS t WHERE t.\"request_id\" = r.c2)"
        )
    );
}

/// Catches: a quote in a column's name that ends the name.
#[test]
fn names_cannot_leave_their_quotes() {
    assert_eq!(column(SqlDriver::Mysql, "a`b.c"), "`a``b.c`");
    assert_eq!(column(SqlDriver::Postgres, "a\"b"), "\"a\"\"b\"");
    assert_eq!(quoted(SqlDriver::Postgres, "a.b"), "\"a\".\"b\"");
}

/// Catches: a column that we make and do not fill.
#[test]
fn every_column_that_is_made_is_known() {
    for driver in [SqlDriver::Mysql, SqlDriver::Postgres, SqlDriver::Sqlite] {
        let found: Vec<FoundColumn> = TABLE
            .iter()
            .map(|(name, _)| FoundColumn {
                name: (*name).into(),
                required: true,
                filled: ["id", "created_at"].contains(name),
                ..FoundColumn::default()
            })
            .collect();
        assert_eq!(choose(driver, &found).unwrap().len(), TABLE.len() - 2);
    }
}

fn rows(sizes: &[usize]) -> Vec<Row<'static>> {
    sizes.iter().map(|size| vec![Some("x".repeat(*size).into()), None]).collect()
}

/// Catches: a statement for each count of rows, which would be prepared anew each time.
#[test]
fn batches_are_split_into_few_sizes() {
    let sizes = |count| {
        let rows = rows(&vec![1; count]);
        runs(&rows, ROWS).into_iter().map(<[Row]>::len).collect::<Vec<_>>()
    };
    assert_eq!(sizes(1), [1]);
    assert_eq!(sizes(300), [256, 32, 4, 4, 4]);
    assert_eq!(runs(&rows(&[1; 300]), &[]), [rows(&[1; 300])]);
}

/// Catches: a batch of large bodies that the server's packet cannot hold.
#[test]
fn large_rows_get_statements_of_their_own() {
    let large = SQL_STATEMENT_BYTES_MAX;
    let some = rows(&[1, large, 1, 1, 1, 1, 2 * large]);
    let all: [&[usize]; 2] = [ROWS, &[]];
    for sizes in all {
        let runs = runs(&some, sizes);
        let many = runs.iter().filter(|run| run.len() > 1);
        assert!(many.clone().count() > 0);
        for run in many {
            assert!(run.iter().all(|row| row[0].as_ref().unwrap().len() == 1));
        }
    }
}

proptest::proptest! {
    /// Catches: a row that is left out, written twice, or out of order.
    #[test]
    fn every_row_is_in_one_run(
        sizes in proptest::collection::vec(
            proptest::prop_oneof![0_usize..9, SQL_STATEMENT_BYTES_MAX / 3..SQL_STATEMENT_BYTES_MAX],
            0..40,
        ),
        any in proptest::prelude::any::<bool>(),
    ) {
        let rows = rows(&sizes);
        let runs = runs(&rows, if any { &[] } else { ROWS });
        proptest::prop_assert!(runs.iter().all(|run| !run.is_empty()));
        // The same rows, not others that are equal.
        let all = runs.into_iter().flatten();
        proptest::prop_assert!(all.map(std::ptr::from_ref).eq(rows.iter().map(std::ptr::from_ref)));
    }
}
