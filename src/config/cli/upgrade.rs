//! `llmproxy upgrade`.

use super::Command;
use clap::Args;
use std::path::PathBuf;

/// What `llmproxy upgrade` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeAsk {
    /// The process; `None` = the one that a pid file names.
    pub pid: Option<u32>,
    /// The pid file; `None` = that of the configuration.
    pub pid_file: Option<PathBuf>,
    /// The configuration; `None` = the one that the process runs with.
    pub config: Option<PathBuf>,
}

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  another process serves, and the one before it finishes what it has
  1  nothing has changed, and the process serves on: there is no such process, it
     is no llmproxy that serves, or its successor did not start, and why; see
     its log
  2  nothing was sent: the file has errors or cannot be read, or the command
     line is wrong";

#[derive(Args)]
pub(super) struct Arguments {
    /// Number of the process [default: the one in the pid file]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// File with its number [default: `server.pid_file` of the configuration]
    #[arg(long, value_name = "FILE", conflicts_with = "pid")]
    pid_file: Option<PathBuf>,
    /// Configuration file [default: the one that process N was started with, or config.yaml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn command(arguments: Arguments) -> Command {
    let Arguments { pid, pid_file, config } = arguments;
    Command::Upgrade(UpgradeAsk { pid, pid_file, config })
}
