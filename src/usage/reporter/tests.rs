//! What docs/journal.md says of how records go out.

use super::*;
use crate::base::secret::Secret;
use crate::config::plan::{FileReporter, RecordFormat, RedisPool, RedisReporter, WebhookBatch};

const JOURNAL: &str = include_str!("../../../docs/journal.md");

fn webhook(batch: WebhookBatch) -> ReporterKind {
    ReporterKind::Webhook(plan::Webhook {
        url: Secret::new("http://h"),
        method: "POST".into(),
        timeout: Duration::from_millis(1234),
        retry: 0,
        headers: Vec::new(),
        hmac_secret: Secret::default(),
        batch,
        batch_size: 77,
        concurrency: 1,
        format: RecordFormat::Full,
    })
}

fn redis() -> ReporterKind {
    let pool = RedisPool {
        pool_size: 1,
        min_idle_conns: 0,
        dial_timeout: Duration::from_millis(1),
        read_timeout: Duration::from_millis(20),
        write_timeout: Duration::from_millis(300),
    };
    let (username, password, ca_file) = (String::new(), Secret::default(), None);
    let redis =
        plan::Redis { addr: "h:1".into(), username, password, db: 0, tls: false, ca_file, pool };
    ReporterKind::Redis(RedisReporter {
        redis,
        stream: "s".into(),
        max_len: 0,
        counters: String::new(),
    })
}

fn file() -> ReporterKind {
    ReporterKind::File(FileReporter {
        path: "/x".into(),
        max_size: 1,
        max_age: None,
        max_files: 0,
        format: RecordFormat::Full,
    })
}

/// Catches: records that gather for longer than operators are told, or not long enough to be worth
/// a call; batches of another size, and tries that take another time.
#[test]
fn records_go_out_as_the_documentation_says() {
    let batches = "`webhook`, `batch: array` or `ndjson`";
    let named = ("`timeout`", 1234);
    let mut rows = vec![
        (file(), "`file`", ("10 s", 10_000), ("4096", 4096)),
        (redis(), "`redis`", ("the sum of its pool's timeouts", 321), ("500", 500)),
        (webhook(WebhookBatch::Array), batches, named, ("`batch_size`", 77)),
        (webhook(WebhookBatch::Ndjson), batches, named, ("`batch_size`", 77)),
        (webhook(WebhookBatch::Single), "`webhook`, `batch: single`", named, ("1", 1)),
    ];
    if cfg!(feature = "sql") {
        let builtin = ReporterKind::Builtin(plan::BuiltinReporter::default());
        rows.push((builtin, "`builtin`, `database`", ("10 s", 10_000), ("500", 500)));
    }
    for (kind, name, (limit, limit_ms), (most, batch)) in rows {
        let plan = plan::Reporter { name: "n".into(), api_key: plan::KeyForm::None, kind };
        let shape = shape(&plan);
        assert_eq!((shape.batch, shape.timeout.as_millis()), (batch, limit_ms), "{name}");
        let row = format!("| {name} | {} ms | {limit} | {most}", shape.gather.as_millis());
        assert!(JOURNAL.contains(&row), "no row begins {row:?}");
    }
}
