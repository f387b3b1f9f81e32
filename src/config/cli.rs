//! The command line: what the user typed becomes something to run, or something to print.

use super::origin::{of_this_process, ConfigSource, Origin, Terms};
use super::plan::Plan;
use super::value::{instant, End};
use super::{load_file, Loaded};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

mod explain;
mod health;
mod keys;
mod lua;
mod manual;
mod models;
mod top;
mod upgrade;
mod usage;
pub(super) mod verdict;
pub use explain::{ExplainAsk, WhichRequests};
pub use health::HealthAsk;
pub use keys::{KeysAsk, KeysTask};
pub use lua::LuaTest;
pub use top::{TopAsk, TopForm};
pub use upgrade::UpgradeAsk;
pub use usage::{By, Form, UsageQuestion};

/// What `main` has to do.
#[derive(Debug)]
pub enum Command {
    /// Start with this plan, after the report's lines went to standard error.
    Run {
        /// The plan, nothing in it is unbuilt; and what is to be said about it.
        loaded: Box<Loaded>,
        /// What a reload reads.
        origin: Origin,
    },
    /// Ask a process that runs to read its configuration anew.
    Reload(ReloadAsk),
    /// Ask a process that runs to give its place to what is on the disk.
    Upgrade(UpgradeAsk),
    /// Ask processes that run how their backends are.
    Backends(BackendsAsk),
    /// Watch processes that run.
    Top(TopAsk),
    /// Ask processes that run what became of requests.
    Explain(ExplainAsk),
    /// Ask a process that runs whether it lives.
    Health(HealthAsk),
    /// Make, change or show keys of the embedded store.
    Keys(KeysAsk),
    /// Answer from the builtin store, and end.
    Usage(UsageQuestion),
    /// Run a script once, and end.
    Lua(LuaTest),
    /// Print and end.
    Print(Printout),
    /// Try all that a valid configuration names, print and end.
    Connect {
        /// Its backends and reporters are tried.
        plan: Box<Plan>,
        /// What `check` says of the file; what was found comes behind it.
        said: Printout,
    },
    /// Look at a spool, or change what is delivered of it.
    Spool {
        /// Its folder.
        dir: PathBuf,
        /// What to do.
        task: SpoolTask,
    },
}

/// What `llmproxy reload` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadAsk {
    /// The process; `None` = the one that the pid file of the configuration names.
    pub pid: Option<u32>,
    /// The configuration; `None` = the one that the process runs with.
    pub config: Option<PathBuf>,
}

/// What `llmproxy backends` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendsAsk {
    /// The configuration whose gateways are asked.
    pub config: PathBuf,
    /// The admin socket that is asked instead.
    pub socket: Option<PathBuf>,
    /// As the gateway says it, in JSON, a line for each.
    pub json: bool,
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
    Export(SpoolSpan),
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
pub struct SpoolSpan {
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
pub struct Printout {
    /// For standard output; lines end with a line feed.
    pub stdout: String,
    /// For standard error; lines end with a line feed.
    pub stderr: String,
    /// Exit code: [`FINE`], [`WOULD_NOT_START`] or [`UNUSABLE`].
    pub code: u8,
}

/// The configuration is valid and would start.
pub const FINE: u8 = 0;
/// It is valid and would not start: it asks for something that is not built, has no backends, has
/// the proxy itself for one, or `--strict` found a warning, or `--connect` did not reach what it
/// names.
pub const WOULD_NOT_START: u8 = 1;
/// It has errors, cannot be read, or the command line is wrong.
pub const UNUSABLE: u8 = 2;

const EXIT_CODES: &str = "\
Exit codes of `check`, and of a start that fails:
  0  valid, and it would start
  1  valid, but it would not start: it uses something that is not built yet,
     has no backends (--allow-empty starts without), has the proxy itself for a
     backend, names a file of certificates that cannot be read, or --strict
     found a warning; or check --connect did not reach a backend, a reporter or
     a provider of keys
  2  it has errors or cannot be read, or the command line is wrong";

const RELOAD_EXIT_CODES: &str = "\
Exit codes:
  0  the file is valid and the process was told to read it; what became of it
     is in its log, and in llmproxy_config_reload_success_total and
     llmproxy_config_reload_failure_total
  1  nothing was sent: there is no such process, it is no llmproxy that serves,
     or it would not take the file (see `llmproxy check`)
  2  nothing was sent: the file has errors or cannot be read, or the command
     line is wrong";

const BACKENDS_EXIT_CODES: &str = "\
Exit codes:
  0  there is an answer
  1  no such gateway runs, or it does not answer
  2  the file has errors or cannot be read, or the command line is wrong";

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
    #[command(flatten)]
    terms: Terms,
}

#[derive(Subcommand)]
enum Sub {
    /// Say whether a configuration is valid and would start, and who serves which model
    #[command(after_help = EXIT_CODES)]
    Check {
        /// Configuration file
        #[arg(default_value = "config.yaml")]
        file: PathBuf,
        /// Print all that it means to standard output, as YAML, secrets masked
        #[arg(long)]
        print: bool,
        /// Print what a reload would change that replaces this file by the other one, and what of
        /// it needs a restart
        #[arg(long, value_name = "OLD_FILE", conflicts_with = "print")]
        against: Option<PathBuf>,
        /// Try to reach every backend and every reporter, for a few seconds each. No request is
        /// sent, and to a webhook no more than a connection is made
        #[arg(long)]
        connect: bool,
        #[command(flatten)]
        terms: Terms,
    },
    /// Have the running proxy read its configuration anew, once that is found to be valid
    #[command(after_help = RELOAD_EXIT_CODES)]
    Reload {
        /// Number of the process [default: the one in `server.pid_file` of the configuration]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        pid: Option<u32>,
        /// Configuration file [default: the one that process N was started with, or config.yaml]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Start the program on the disk in the place of the running proxy, without cutting a request
    #[command(after_help = upgrade::EXIT_CODES)]
    Upgrade(upgrade::Arguments),
    /// Show how the backends of the running proxy are: who gets requests, who does not, and why
    #[command(after_help = BACKENDS_EXIT_CODES)]
    Backends {
        /// Configuration file that the proxy runs with
        #[arg(short, long, value_name = "FILE", default_value = "config.yaml")]
        config: PathBuf,
        /// Its admin socket, instead of any file
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
        /// As JSON, a line for each process
        #[arg(long)]
        json: bool,
    },
    /// Watch the running proxy: requests, tokens, times, refusals, records and backends, live
    #[command(after_help = top::EXIT_CODES)]
    Top(top::Arguments),
    /// Tell what became of a request, or of the last ones: who was asked and why, what failed, when
    #[command(after_help = explain::EXIT_CODES)]
    Explain(explain::Arguments),
    /// Ask the running proxy whether it lives: the health check of a container
    #[command(after_help = health::EXIT_CODES)]
    Health(health::Arguments),
    /// Make, list, change and take away keys of the embedded store (`admin.db_path`)
    Keys(Box<keys::KeysArguments>),
    /// Sum up the usage records of the builtin reporter
    Usage(usage::Arguments),
    /// Try a script that decides about keys
    Lua {
        #[command(subcommand)]
        task: lua::LuaSub,
    },
    /// Look at the usage records that wait on the disk, or deliver some again
    Spool {
        #[command(flatten)]
        place: SpoolPlace,
        #[command(subcommand)]
        task: SpoolSub,
    },
    /// Print what a shell needs to complete the words of this command line
    Completions {
        /// The shell
        shell: manual::Completing,
    },
    /// Print the manual page, for `man -l -`
    Man,
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
    /// Let a reporter have records again; may run beside the proxy
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

/// Looks at the files that a plan names: a line for each reason why it would not start.
pub type Files = fn(&Plan) -> FilesSeen;

/// What a start would find in the files that a plan names.
#[derive(Debug, Default)]
pub struct FilesSeen {
    /// Why they keep it from starting: a line for each key.
    pub unusable: Vec<String>,
    /// What there is to know of those that can be used.
    pub told: Vec<String>,
}

/// Reads the arguments of this process and what they name. Ends the process itself for `--help`,
/// `--version` and a wrong command line, as clap does.
/// `files` is asked by `check` why the files that a plan names keep it from starting.
pub fn parse(files: Files) -> Command {
    command(Cli::parse(), files)
}

fn command(cli: Cli, files: Files) -> Command {
    match cli.command {
        Some(Sub::Check { file, print, against, connect, terms }) => {
            let wanted = verdict::CheckTask { plan: print, against: against.as_deref() };
            match verdict::check(&file, &wanted, terms, files) {
                (said, Some(plan)) if connect => Command::Connect { plan, said },
                (said, _) => Command::Print(said),
            }
        }
        Some(Sub::Reload { pid, config }) => Command::Reload(ReloadAsk { pid, config }),
        Some(Sub::Upgrade(arguments)) => upgrade::command(arguments),
        Some(Sub::Backends { config, socket, json }) => {
            Command::Backends(BackendsAsk { config, socket, json })
        }
        Some(Sub::Top(arguments)) => top::command(arguments),
        Some(Sub::Explain(arguments)) => explain::command(arguments),
        Some(Sub::Health(arguments)) => health::command(arguments),
        Some(Sub::Keys(arguments)) => keys::command(*arguments),
        Some(Sub::Usage(arguments)) => usage::command(arguments),
        Some(Sub::Lua { task }) => lua::command(task),
        Some(Sub::Spool { place, task }) => spool(place, task),
        Some(Sub::Completions { shell }) => manual::completions(shell),
        Some(Sub::Man) => manual::man(),
        None => start(cli.start),
    }
}

fn spool(place: SpoolPlace, task: SpoolSub) -> Command {
    let dir = match place.dir {
        Some(dir) => dir,
        None => match load_file(&place.config, &of_this_process) {
            Ok(Loaded { plan, .. }) => plan.usage.spool.dir,
            Err(report) => {
                let stderr = verdict::lines(&report, false);
                return Command::Print(Printout { stdout: String::new(), stderr, code: UNUSABLE });
            }
        },
    };
    let task = match task {
        SpoolSub::Inspect { json } => SpoolTask::Inspect { json },
        SpoolSub::Export { from, to } => SpoolTask::Export(SpoolSpan { from: from.start(), to }),
        SpoolSub::Replay { reporter, from, .. } => {
            SpoolTask::Replay { reporter, from: from.start() }
        }
    };
    Command::Spool { dir, task }
}

fn start(arguments: StartArgs) -> Command {
    let origin = arguments.origin();
    match origin.load() {
        Ok(loaded) => Command::Run { loaded: Box::new(loaded), origin },
        Err(refused) => {
            let (stderr, code) = (refused.lines, refused.code);
            Command::Print(Printout { stdout: String::new(), stderr, code })
        }
    }
}

impl StartArgs {
    fn origin(self) -> Origin {
        let StartArgs { config, backend, listen, terms } = self;
        let source = match backend.is_empty() {
            true => ConfigSource::File(config),
            false => ConfigSource::CommandLine { backends: backend, listen },
        };
        Origin { source, terms }
    }
}

/// What a process serves with, by its own command line; `None` when it serves nobody.
pub fn origin_of(command_line: impl IntoIterator<Item = OsString>) -> Option<Origin> {
    let cli = Cli::try_parse_from(command_line).ok()?;
    cli.command.is_none().then(|| cli.start.origin())
}

#[cfg(test)]
mod tests;
