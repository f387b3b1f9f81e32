//! `llmproxy usage`: what is asked of the builtin store.

use super::{verdict, Command, Printout, UNUSABLE};
use crate::base::clock::unix_ms;
use crate::config::load_file;
use crate::config::origin::of_this_process;
use crate::config::plan::ReporterKind;
use crate::config::value::{duration, instant, quoted, End};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// A question to the builtin store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageQuestion {
    /// Its file.
    pub db: PathBuf,
    /// A configuration names it: where it is not, no record was kept yet. A file that the command
    /// line names may be misspelt.
    pub may_be_missing: bool,
    /// What makes a row.
    pub by: By,
    /// Records of this time and later, milliseconds since 1970 UTC.
    pub since_ms: Option<u64>,
    /// Records before this time.
    pub until_ms: Option<u64>,
    /// How the answer is written.
    pub form: Form,
}

/// What the rows of an answer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// API keys, in the form that was recorded.
    Key,
    /// Users.
    User,
    /// Models.
    Model,
    /// Days, in UTC.
    Day,
    /// Backends.
    Backend,
    /// How requests ended.
    Status,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Aligned columns.
    Table,
    /// An array of objects.
    Json,
    /// With a line of names.
    Csv,
}

#[derive(Args)]
pub(super) struct Arguments {
    /// Configuration file, whose builtin reporter is asked
    #[arg(short, long, value_name = "FILE", default_value = "config.yaml")]
    config: PathBuf,
    /// The database itself, without any configuration
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    db: Option<PathBuf>,
    /// What makes a row
    #[arg(long, value_enum, default_value = "key")]
    by: By,
    /// From then on: 24h, 7d, 2026-01-31 (UTC) or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Before then, in the same forms; a date counts to its end
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV
    #[arg(long)]
    csv: bool,
}

pub(super) fn command(arguments: Arguments) -> Command {
    match question(arguments) {
        Ok(question) => Command::Usage(question),
        Err(stderr) => Command::Print(Printout { stdout: String::new(), stderr, code: UNUSABLE }),
    }
}

fn question(arguments: Arguments) -> Result<UsageQuestion, String> {
    let Arguments { config, db, by, since, until, json, csv } = arguments;
    let time = |name: &str, text: Option<String>, end| match text {
        None => Ok(None),
        Some(text) => match moment(&text, end, unix_ms()) {
            Ok(ms) => Ok(Some(ms)),
            Err(message) => Err(format!("llmproxy usage: --{name}: {message}\n")),
        },
    };
    Ok(UsageQuestion {
        since_ms: time("since", since, End::First)?,
        until_ms: time("until", until, End::AfterLast)?,
        by,
        form: match (json, csv) {
            (true, _) => Form::Json,
            (_, true) => Form::Csv,
            _ => Form::Table,
        },
        may_be_missing: db.is_none(),
        db: match db {
            Some(db) => db,
            None => database_of(&config)?,
        },
    })
}

/// Where the first builtin reporter of a configuration keeps its records.
fn database_of(config: &Path) -> Result<PathBuf, String> {
    let loaded =
        load_file(config, &of_this_process).map_err(|report| verdict::lines(&report, false))?;
    let mut kinds = loaded.plan.usage.reporters.into_iter().map(|reporter| reporter.kind);
    let path = kinds.find_map(|kind| match kind {
        ReporterKind::Builtin(store) => Some(store.path),
        _ => None,
    });
    path.ok_or_else(|| {
        format!(
            "llmproxy usage: {} has no reporter of type builtin; add one to usage.reporters, or \
             name its database with --db\n",
            config.display()
        )
    })
}

/// A point in time, or so long before now.
fn moment(text: &str, end: End, now_ms: u64) -> Result<u64, String> {
    if let Ok(time) = instant(text, end) {
        return Ok(u64::try_from(time.as_millisecond()).unwrap_or_default());
    }
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    let ms = match days {
        Some(days) => days.saturating_mul(24 * 3600 * 1000),
        None => {
            let ago = duration(text).map_err(|_| {
                format!("{} must be like 24h, 7d, 2026-12-31 or 2026-12-31T23:59:59Z", quoted(text))
            })?;
            u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)
        }
    };
    Ok(now_ms.saturating_sub(ms))
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::Parser;

    fn asked(arguments: &[&str]) -> Result<Command, clap::Error> {
        let all = ["llmproxy", "usage"].iter().chain(arguments);
        Cli::try_parse_from(all).map(|cli| super::super::command(cli, |_| Default::default()))
    }

    /// Catches: an option that is read and forgotten, two forms at once.
    #[test]
    fn a_question_is_what_was_asked() {
        let arguments = ["--db", "/x.db", "--by", "day", "--json", "--until", "2026-01-14"];
        let Command::Usage(question) = asked(&arguments).unwrap() else { panic!() };
        let wanted = UsageQuestion {
            db: "/x.db".into(),
            may_be_missing: false,
            by: By::Day,
            since_ms: None,
            until_ms: Some(1_768_435_200_000),
            form: Form::Json,
        };
        assert_eq!(question, wanted);
        assert!(asked(&["--json", "--csv"]).is_err());
        assert!(asked(&["--db", "/x.db", "--config", "y"]).is_err());
        assert!(asked(&["--by", "moon"]).is_err());
    }

    /// Catches: a configuration without a store that gives an answer, or another one's.
    #[test]
    fn a_configuration_must_have_the_store() {
        let name = format!("llmproxy-usage-{}.yaml", std::process::id());
        let file = std::env::temp_dir().join(name);
        let with = |reporter: &str| {
            let text =
                format!("backends: [{{url: 'http://a'}}]\nusage: {{reporters: [{reporter}]}}\n");
            std::fs::write(&file, text).unwrap();
            asked(&["--config", &file.to_string_lossy()]).unwrap()
        };
        let found = with("{type: builtin, builtin: {path: /s.db}}");
        assert!(
            matches!(&found, Command::Usage(q) if q.db == Path::new("/s.db") && q.may_be_missing),
            "{found:?}"
        );
        let none = with("{type: webhook, webhook: {url: 'http://w'}}");
        let Command::Print(output) = none else { panic!("{none:?}") };
        assert!(output.code == UNUSABLE && output.stderr.contains("type builtin"), "{output:?}");
        std::fs::remove_file(&file).unwrap();
        let Command::Print(output) = asked(&["-c", "/nonexistent.yaml"]).unwrap() else { panic!() };
        assert!(output.code == UNUSABLE && output.stderr.contains("nonexistent"), "{output:?}");
    }

    /// Catches: a time that is read as another one, or nonsense that is read as one.
    #[test]
    fn times_are_read_in_all_forms() {
        let now = 1_768_386_600_007;
        let of = |text| moment(text, End::First, now);
        assert_eq!(of("24h"), Ok(now - 86_400_000));
        assert_eq!(of("7d"), Ok(now - 7 * 86_400_000));
        assert_eq!(of("2026-01-14"), Ok(1_768_348_800_000));
        assert_eq!(of("2026-01-14T10:30:00.007Z"), Ok(now));
        assert_eq!(moment("2026-01-14", End::AfterLast, now), Ok(1_768_435_200_000));
        assert_eq!(of("99999999999999d"), Ok(0));
        for bad in ["", "x", "-1d", "2026-13-01", "1 year"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
