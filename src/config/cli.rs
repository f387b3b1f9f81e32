//! The command line: what the user typed becomes something to run, or something to print.

use super::plan::Plan;
use super::report::Report;
use super::value::{instant, End};
use super::{load_backends, load_file, print, Loaded};
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};

mod usage;
pub use usage::{By, Form, UsageQuestion};

/// What `main` has to do.
#[derive(Debug)]
pub enum Command {
    /// Start with this plan, after the report's lines went to standard error.
    Run {
        /// The plan; nothing in it is unbuilt.
        plan: Box<Plan>,
        /// What is to be said about it.
        report: Report,
    },
    /// Answer from the builtin store, and end.
    Usage(UsageQuestion),
    /// Print and end.
    Print(Output),
    /// Look at a spool, or change what is delivered of it.
    Spool {
        /// Its folder.
        dir: PathBuf,
        /// What to do.
        task: SpoolTask,
    },
}

/// What `llmproxy spool` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolTask {
    /// Print what is there.
    Inspect {
        /// As one JSON object.
        json: bool,
    },
    /// Print records as JSON lines.
    Export(Span),
    /// Let a reporter have records again.
    Replay {
        /// Its name.
        reporter: String,
        /// Which ones; `None` = its dead letters.
        from: Option<Start>,
    },
}

/// Records of a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The first; `None` = the oldest that is there.
    pub from: Option<Start>,
    /// The last sequence.
    pub to: Option<u64>,
}

/// Where to begin in a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With this sequence.
    Sequence(u64),
    /// With the first request that arrived at this time or later, milliseconds since 1970.
    Since(u64),
}

/// A text for each stream, and how the process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// For standard output; lines end with a line feed.
    pub stdout: String,
    /// For standard error; lines end with a line feed.
    pub stderr: String,
    /// Exit code: [`FINE`], [`WOULD_NOT_START`] or [`UNUSABLE`].
    pub code: u8,
}

/// The configuration is valid and would start.
pub const FINE: u8 = 0;
/// It is valid and would not start: it asks for something that is not built, or `--strict` found
/// an ignored key.
pub const WOULD_NOT_START: u8 = 1;
/// It has errors, cannot be read, or the command line is wrong.
pub const UNUSABLE: u8 = 2;

const EXIT_CODES: &str = "\
Exit codes of `check`, and of a start that fails:
  0  valid, and it would start
  1  valid, but it would not start: it uses something that is not built yet,
     or --strict found an unknown or unsupported key
  2  it has errors or cannot be read, or the command line is wrong";

#[derive(Parser)]
#[command(name = "llmproxy", version, about = "The gateway for self-hosted LLM inference")]
#[command(after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Sub>,
    #[command(flatten)]
    start: StartArgs,
}

#[derive(Args)]
struct StartArgs {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = "config.yaml")]
    config: PathBuf,
    /// Backend to forward to, instead of any file; may be repeated
    #[arg(short, long, value_name = "URL", conflicts_with = "config")]
    backend: Vec<String>,
    /// Address to listen on, together with --backend; may be repeated [default: :8000]
    #[arg(short, long, value_name = "ADDR", requires = "backend")]
    listen: Vec<String>,
    /// Refuse unknown and unsupported keys instead of warning
    #[arg(long)]
    strict: bool,
}

#[derive(Subcommand)]
enum Sub {
    /// Check a configuration and print the plan that it means, secrets masked
    #[command(after_help = EXIT_CODES)]
    Check {
        /// Configuration file
        #[arg(default_value = "config.yaml")]
        file: PathBuf,
        /// Count unknown and unsupported keys as errors
        #[arg(long)]
        strict: bool,
    },
    /// Sum up the usage records of the builtin reporter
    Usage(usage::Arguments),
    /// Look at the usage records that wait on the disk, or deliver some again
    Spool {
        #[command(flatten)]
        place: SpoolPlace,
        #[command(subcommand)]
        task: SpoolSub,
    },
}

#[derive(Args)]
struct SpoolPlace {
    /// Configuration file that names the spool
    #[arg(short, long, value_name = "FILE", default_value = "config.yaml", global = true)]
    config: PathBuf,
    /// Folder of the spool, instead of any file
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum SpoolSub {
    /// Print segments, entries, damage, and how far each reporter is
    Inspect {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print records as JSON lines; may run beside the proxy
    Export {
        #[command(flatten)]
        from: SpoolFrom,
        /// Last sequence
        #[arg(long, value_name = "SEQ")]
        to: Option<u64>,
    },
    /// Let a reporter have records again; the proxy must not run
    Replay {
        /// Name of the reporter
        #[arg(long)]
        reporter: String,
        #[command(flatten)]
        from: SpoolFrom,
        /// The records that its receiver had refused
        #[arg(long, conflicts_with_all = ["from", "since"])]
        #[arg(required_unless_present_any = ["from", "since"])]
        dead_letters: bool,
    },
}

#[derive(Args)]
struct SpoolFrom {
    /// First sequence
    #[arg(long, value_name = "SEQ", conflicts_with = "since")]
    from: Option<u64>,
    /// Requests that arrived then or later: RFC 3339, or a date in UTC
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<u64>,
}

impl SpoolFrom {
    fn start(&self) -> Option<Start> {
        self.from.map(Start::Sequence).or(self.since.map(Start::Since))
    }
}

/// Milliseconds since 1970.
fn moment(text: &str) -> Result<u64, String> {
    let time = instant(text, End::First)?;
    u64::try_from(time.as_millisecond()).map_err(|_| "must not lie before 1970".to_owned())
}

/// Reads the arguments of this process and what they name. Ends the process itself for `--help`,
/// `--version` and a wrong command line, as clap does.
pub fn parse() -> Command {
    command(Cli::parse())
}

fn command(cli: Cli) -> Command {
    match cli.command {
        Some(Sub::Check { file, strict }) => Command::Print(check(&file, strict)),
        Some(Sub::Usage(arguments)) => usage::command(arguments),
        Some(Sub::Spool { place, task }) => spool(place, task),
        None => start(&cli.start),
    }
}

fn spool(place: SpoolPlace, task: SpoolSub) -> Command {
    let dir = match place.dir {
        Some(dir) => dir,
        None => match load_file(&place.config) {
            Ok(Loaded { plan, .. }) => plan.usage.spool.dir,
            Err(report) => {
                let stderr = lines(&report, false, &[]);
                return Command::Print(Output { stdout: String::new(), stderr, code: UNUSABLE });
            }
        },
    };
    let task = match task {
        SpoolSub::Inspect { json } => SpoolTask::Inspect { json },
        SpoolSub::Export { from, to } => SpoolTask::Export(Span { from: from.start(), to }),
        SpoolSub::Replay { reporter, from, .. } => {
            SpoolTask::Replay { reporter, from: from.start() }
        }
    };
    Command::Spool { dir, task }
}

fn start(start: &StartArgs) -> Command {
    let loaded = if start.backend.is_empty() {
        load_file(&start.config)
    } else {
        load_backends(&start.backend, &start.listen)
    };
    let refusal = |report: &Report, more: &[String], code| {
        let stderr = lines(report, start.strict, more);
        Command::Print(Output { stdout: String::new(), stderr, code })
    };
    match loaded {
        Err(report) => refusal(&report, &[], UNUSABLE),
        Ok(Loaded { plan, report }) if !starts(&plan, &report, start.strict) => {
            refusal(&report, &plan.unbuilt, WOULD_NOT_START)
        }
        Ok(Loaded { plan, report }) => Command::Run { plan: Box::new(plan), report },
    }
}

/// `llmproxy check`: the plan to standard output, everything else to standard error.
pub fn check(file: &Path, strict: bool) -> Output {
    match load_file(file) {
        Err(report) => {
            Output { stdout: String::new(), stderr: lines(&report, strict, &[]), code: UNUSABLE }
        }
        Ok(Loaded { plan, report }) => {
            let code = if starts(&plan, &report, strict) { FINE } else { WOULD_NOT_START };
            let stderr = lines(&report, strict, &plan.unbuilt);
            match print(&plan) {
                Ok(stdout) => Output { stdout, stderr, code },
                Err(error) => {
                    let stderr = format!("{stderr}{}: cannot be printed: {error}\n", report.file);
                    Output { stdout: String::new(), stderr, code: UNUSABLE }
                }
            }
        }
    }
}

fn starts(plan: &Plan, report: &Report, strict: bool) -> bool {
    plan.unbuilt.is_empty() && !(strict && report.has_ignored_keys())
}

fn lines(report: &Report, strict: bool, unbuilt: &[String]) -> String {
    let mut lines = report.lines(strict);
    lines.extend(unbuilt.iter().map(|line| format!("{}: cannot start: {line}", report.file)));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Command, clap::Error> {
        let all = std::iter::once("llmproxy").chain(arguments.iter().copied());
        Cli::try_parse_from(all).map(command)
    }

    fn printed(arguments: &[&str]) -> Output {
        match run(arguments).unwrap() {
            Command::Print(output) => output,
            Command::Run { .. } | Command::Usage(_) => panic!("starts: {arguments:?}"),
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    /// A file with this text, gone with the guard.
    struct File(PathBuf);

    fn file(name: &str, text: &str) -> File {
        let name = format!("llmproxy-cli-{}-{name}.yaml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        File(path)
    }

    impl File {
        fn name(&self) -> &str {
            self.0.to_str().unwrap()
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn check_prints_the_plan_and_exits_by_what_it_is_worth() {
        let good = file("good", "backends: [{url: 'http://a', api_key: hunter2}]\n");
        let output = printed(&["check", "--strict", good.name()]);
        assert_eq!((output.code, output.stderr.as_str()), (FINE, ""));
        assert!(output.stdout.contains("url: http://a") && !output.stdout.contains("hunter2"));

        let typo = file("typo", "backends: [{url: 'http://a', wieght: 2}]\n");
        assert_eq!(printed(&["check", typo.name()]).code, FINE);
        let output = printed(&["check", "--strict", typo.name()]);
        assert_eq!(output.code, WOULD_NOT_START);
        assert!(output.stderr.contains("yaml:1:30: error: backends[0].wieght: unknown key"));

        let early = file("early", "backends: [{url: 'http://a'}]\nauth: {storage: file}\n");
        let output = printed(&["check", early.name()]);
        assert_eq!(output.code, WOULD_NOT_START);
        assert!(output.stderr.contains("cannot start: auth: authentication: not built yet"));
        assert!(output.stdout.contains("pipeline:"), "the plan is printed all the same");

        let bad = file("bad", "backends: [{url: a}]\n");
        let output = printed(&["check", bad.name()]);
        assert_eq!((output.code, output.stdout.as_str()), (UNUSABLE, ""));
        assert_eq!(printed(&["check", "/nonexistent.yaml"]).code, UNUSABLE);
    }

    #[test]
    fn a_start_refuses_what_check_refuses() {
        let good = file("start", "backends: [{url: 'http://a', wieght: 2}]\n");
        let Ok(Command::Run { plan, report }) = run(&["--config", good.name()]) else { panic!() };
        assert_eq!((plan.backends.len(), report.findings.len()), (1, 1));
        assert_eq!(printed(&["--strict", "--config", good.name()]).code, WOULD_NOT_START);
        let early = file(
            "unbuilt",
            "backends: [{url: 'http://a'}]\nrate_limit: {global: {requests_per_second: 1}}\n",
        );
        let output = printed(&["--config", early.name()]);
        assert_eq!(output.code, WOULD_NOT_START);
        assert!(output.stderr.contains("cannot start: rate_limit"));
        assert_eq!(printed(&["--config", "/nonexistent.yaml"]).code, UNUSABLE);
    }

    #[test]
    fn backends_on_the_command_line_need_no_file() {
        let arguments = ["--backend", "http://a:1", "--backend", "unix:/x", "--listen", ":9"];
        let Ok(Command::Run { plan, .. }) = run(&arguments) else { panic!() };
        let names: Vec<_> = plan.backends.iter().map(|b| b.name.as_str()).collect();
        assert_eq!((names, plan.server.listen[0].port()), (vec!["a:1", "unix:/x"], 9));
        let output = printed(&["--backend", "a"]);
        assert_eq!(output.code, UNUSABLE);
        assert!(output.stderr.contains("backends[0].url"), "{}", output.stderr);
    }

    #[test]
    fn a_wrong_command_line_is_refused() {
        for wrong in [
            &["--backend", "http://a", "--config", "x"][..],
            &["--listen", ":1"],
            &["--bogus"],
            &["check", "a", "b"],
            &["--config", "x", "check"],
        ] {
            assert_eq!(run(wrong).err().map(|e| e.exit_code()), Some(2), "{wrong:?}");
        }
    }

    /// Catches: a wrong folder, and a replay that does not say of what.
    #[test]
    fn a_spool_is_named_by_its_folder_or_a_file() {
        let text = "backends: [{url: 'http://a'}]\nusage: {spool: {dir: /x/y}}\n";
        let good = file("spool", text);
        let Ok(Command::Spool { dir, task }) = run(&["spool", "inspect", "-c", good.name()]) else {
            panic!()
        };
        assert_eq!((dir, task), ("/x/y".into(), SpoolTask::Inspect { json: false }));
        let all = ["spool", "--dir", "/z", "export", "--since", "1970-01-02", "--to", "7"];
        let Ok(Command::Spool { dir, task }) = run(&all) else { panic!() };
        let span = Span { from: Some(Start::Since(86_400_000)), to: Some(7) };
        assert_eq!((dir, task), ("/z".into(), SpoolTask::Export(span)));
        for wrong in [&["replay"][..], &["replay", "--reporter", "a"], &["export", "--since", "x"]]
        {
            let all = [&["spool", "--dir", "/z"], wrong].concat();
            assert_eq!(run(&all).err().map(|e| e.exit_code()), Some(2), "{wrong:?}");
        }
        assert_eq!(printed(&["spool", "inspect", "-c", "/nonexistent.yaml"]).code, UNUSABLE);
    }
}
