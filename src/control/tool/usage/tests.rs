use super::*;
use std::path::PathBuf;

struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A store with six requests, of which one failed, two were left and two cost nothing.
fn store(name: &str) -> File {
    let path = std::env::temp_dir().join(format!("llmproxy-tool-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let connection = Connection::open(&path).unwrap();
    let text = format!(
        "CREATE TABLE {TABLE} (timestamp TEXT, api_key TEXT, user_id TEXT, model TEXT, \
         backend TEXT, backend_url TEXT, method TEXT, usage_source TEXT, \
         usage_missing_reason TEXT, status TEXT, \
         status_code INT, prompt_tokens INT, \
         completion_tokens INT, total_tokens INT, cached_tokens INT, latency_ms INT); \
         INSERT INTO {TABLE} VALUES \
         ('2026-01-14T10:30:00.007Z','k','u','a,\"b','gpu','http://x','POST','engine',NULL,'complete',200,1,2,3,1,10), \
         ('2026-01-15T10:30:00.007Z','k',NULL,'m','gpu','http://x','POST','engine',NULL,'backend_error',200,4,5,9,NULL,21), \
         ('2026-01-15T11:30:00.007Z','k','u','m',NULL,'http://x','POST','missing',NULL,'client_left',499,NULL,NULL,NULL,NULL,0), \
         ('2026-01-15T12:30:00.007Z','k','u','m','gpu','http://x','POST','missing',NULL,'client_left',408,NULL,NULL,NULL,NULL,0), \
         ('2026-01-15T13:30:00.007Z','k','u','m','gpu','http://x','POST','missing',NULL,'complete',400,NULL,NULL,NULL,NULL,0), \
         ('2026-01-15T13:30:00.007Z','k','u','m','gpu','http://x','POST','missing',NULL,'complete',200,NULL,NULL,NULL,NULL,0)"
    );
    connection.execute_batch(&text).unwrap();
    File(path)
}

fn ask_for(file: &File, by: By, since_ms: Option<u64>, form: Form) -> Printout {
    let db = file.0.clone();
    answer(&UsageQuestion { db, may_be_missing: true, by, since_ms, until_ms: None, form })
}

/// Catches: a sum of the wrong rows, a number under the wrong name, a name that breaks its line.
#[test]
fn sums_are_printed_in_all_forms() {
    let file = store("forms");
    let csv = ask_for(&file, By::Model, None, Form::Csv);
    assert_eq!(
        csv.stdout,
        "model,requests,errors,without_usage,prompt_tokens,completion_tokens,total_tokens,cached_tokens,\
         avg_latency_ms\nm,5,2,2,4,5,9,0,4\n\"a,\"\"b\",1,0,0,1,2,3,1,10\n"
    );
    let json = ask_for(&file, By::User, None, Form::Json);
    let rows: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(rows[0]["user_id"], "u");
    assert_eq!((&rows[1]["user_id"], &rows[1]["errors"]), (&serde_json::Value::Null, &json!(1)));
    let since = ask_for(&file, By::Day, Some(1_768_435_200_000), Form::Table);
    let lines: Vec<Vec<&str>> =
        since.stdout.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 3, "{}", since.stdout);
    assert_eq!(lines[1], ["2026-01-15", "5", "2", "2", "4", "5", "9", "0", "4"]);
    assert_eq!(lines[2][..3], ["total", "5", "2"]);
    let backends = ask_for(&file, By::Backend, None, Form::Csv).stdout;
    assert!(backends.contains("\ngpu,5,"), "{backends}");
    assert!(backends.contains("\nhttp://x,1,"), "a row without a name: {backends}");
    let widths: Vec<usize> = since.stdout.lines().map(str::len).collect();
    assert!(widths.iter().all(|width| *width == widths[0]), "{}", since.stdout);
}

/// Catches: a model name that moves the cursor of a terminal.
#[test]
fn names_cannot_control_a_terminal() {
    let name = Some("a\u{1b}[2Jb\nc".to_owned());
    let line = Line { name, sums: vec![0; SUMS.len()] };
    let total = Line { name: None, sums: vec![0; SUMS.len()] };
    let text = table(By::Model, &[line], &total);
    assert!(!text.contains('\u{1b}') && text.lines().count() == 3, "{text:?}");
}

const CSV_HEAD: &str = "api_key,requests,errors,without_usage,prompt_tokens,completion_tokens,\
                        total_tokens,cached_tokens,avg_latency_ms\n";

/// Catches: an empty answer where there is no store, which would read as "no usage"; a failure
/// where there is only no record yet.
#[test]
fn what_is_no_store_is_said() {
    let file = store("none");
    let gone = UsageQuestion {
        db: "/nonexistent/usage.db".into(),
        may_be_missing: false,
        by: By::Key,
        since_ms: None,
        until_ms: None,
        form: Form::Table,
    };
    let output = answer(&gone);
    assert_eq!((output.code, output.stdout.as_str()), (UNUSABLE, ""));
    assert!(output.stderr.contains("no such file"));
    // Where a configuration says that it will be, it is not there before the first record.
    for (form, wanted) in [(Form::Json, "[]\n"), (Form::Csv, CSV_HEAD)] {
        let output = answer(&UsageQuestion { may_be_missing: true, form, ..gone.clone() });
        assert_eq!((output.code, output.stdout.as_str()), (FINE, wanted));
        assert!(output.stderr.contains("no records yet: /nonexistent/usage.db"), "{output:?}");
    }
    let output = answer(&UsageQuestion { may_be_missing: true, ..gone });
    let lines: Vec<_> = output.stdout.lines().collect();
    assert!(output.code == FINE && lines.len() == 2, "{output:?}");
    assert!(lines[0].starts_with("api_key") && lines[1].starts_with("total"), "{output:?}");
    let connection = Connection::open(&file.0).unwrap();
    connection.execute_batch(&format!("ALTER TABLE {TABLE} DROP COLUMN status")).unwrap();
    let output = ask_for(&file, By::Key, None, Form::Table);
    assert!(output.code == UNUSABLE && output.stderr.contains("status"), "{output:?}");
}
