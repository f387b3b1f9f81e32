//! `llmproxy explain`.

use super::Command;
use crate::base::limits::FLIGHT_LISTED_MAX;
use clap::Args;
use std::path::PathBuf;

/// What `llmproxy explain` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainAsk {
    /// The configuration whose gateways are asked.
    pub config: PathBuf,
    /// The admin socket that is asked instead.
    pub socket: Option<PathBuf>,
    /// Which requests.
    pub which: WhichRequests,
    /// As JSON, a line for each request.
    pub json: bool,
}

/// Requests whose stories are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhichRequests {
    /// Those with this id.
    Id(String),
    /// So many, the last ones.
    Last(u16),
}

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  what became of it is told
  1  no gateway has the story of such a request, or has it no longer, or no
     gateway runs, or one does not answer
  2  the file has errors or cannot be read, or the command line is wrong";

#[derive(Args)]
pub(super) struct Arguments {
    /// The request: `x-request-id` of its answer, or `request_id` of its record or log line
    #[arg(required_unless_present = "last", conflicts_with = "last")]
    request_id: Option<String>,
    /// The last N requests that are over, the newest first
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=FLIGHT_LISTED_MAX as i64))]
    last: Option<u16>,
    /// As JSON, a line for each request
    #[arg(long)]
    json: bool,
    /// Configuration file that the proxy runs with
    #[arg(short, long, value_name = "FILE", default_value = "config.yaml")]
    config: PathBuf,
    /// Its admin socket, instead of any file
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(super) fn command(arguments: Arguments) -> Command {
    let Arguments { request_id, last, json, config, socket } = arguments;
    let which = match last {
        Some(last) => WhichRequests::Last(last),
        None => WhichRequests::Id(request_id.unwrap_or_default()),
    };
    Command::Explain(ExplainAsk { config, socket, which, json })
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::Parser;

    fn asked(arguments: &[&str]) -> Result<Command, clap::Error> {
        let all = ["llmproxy", "explain"].iter().chain(arguments);
        Cli::try_parse_from(all).map(|cli| super::super::command(cli, |_| Default::default()))
    }

    /// Catches: a question about no request or about two things, a number that nobody answers, an
    /// option that is read and forgotten.
    #[test]
    fn a_question_is_about_one_thing() {
        let Command::Explain(ask) = asked(&["abc", "--json", "-c", "x.yaml"]).unwrap() else {
            panic!()
        };
        let which = WhichRequests::Id("abc".into());
        assert_eq!(ask, ExplainAsk { config: "x.yaml".into(), socket: None, which, json: true });
        let Command::Explain(ask) = asked(&["--last", "7", "--socket", "/s"]).unwrap() else {
            panic!()
        };
        assert_eq!((ask.which, ask.socket), (WhichRequests::Last(7), Some("/s".into())));
        for wrong in [&[][..], &["abc", "--last", "1"], &["--last", "0"], &["--last", "1001"]] {
            assert!(asked(wrong).is_err(), "{wrong:?}");
        }
    }
}
