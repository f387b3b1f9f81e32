//! `llmproxy health`.

use super::Command;
use clap::Args;
use std::path::PathBuf;

/// What `llmproxy health` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthAsk {
    /// The configuration whose gateway is asked.
    pub config: PathBuf,
    /// Ask whether it may be given requests, and not only whether it lives.
    pub ready: bool,
}

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  it lives; with --ready, it also has a backend that is healthy and does not
     end
  1  it does not, or nobody answers within 4 seconds
  2  the file has errors or cannot be read, or the command line is wrong";

#[derive(Args)]
pub(super) struct Arguments {
    /// Configuration file that the proxy runs with
    #[arg(short, long, value_name = "FILE", default_value = "config.yaml")]
    config: PathBuf,
    /// Ask /ready instead of /health: a backend is healthy, and the process does not end
    #[arg(long)]
    ready: bool,
}

pub(super) fn command(arguments: Arguments) -> Command {
    let Arguments { config, ready } = arguments;
    Command::Health(HealthAsk { config, ready })
}
