//! The command line: what the user typed becomes something to run, or something to print.

use super::plan::Plan;
use super::report::Report;
use super::{load_backends, load_file, Loaded};
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};

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
    /// Print and end.
    Print(Output),
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
    start: Start,
}

#[derive(Args)]
struct Start {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = "config.yaml")]
    config: PathBuf,
    /// Backend to forward to, instead of any file; may be repeated
    #[arg(short, long, value_name = "URL", conflicts_with = "config")]
    backend: Vec<String>,
    /// Address to listen on, together with --backend [default: :8000]
    #[arg(short, long, value_name = "ADDR", requires = "backend")]
    listen: Option<String>,
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
}

/// Reads the arguments of this process and what they name. Ends the process itself for `--help`,
/// `--version` and a wrong command line, as clap does.
pub fn parse() -> Command {
    command(Cli::parse())
}

fn command(cli: Cli) -> Command {
    match cli.command {
        Some(Sub::Check { file, strict }) => Command::Print(check(&file, strict)),
        None => start(&cli.start),
    }
}

fn start(start: &Start) -> Command {
    let loaded = if start.backend.is_empty() {
        load_file(&start.config)
    } else {
        load_backends(&start.backend, start.listen.as_deref())
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
            match serde_yaml::to_string(&plan) {
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
