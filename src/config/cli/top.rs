//! `llmproxy top`.

use super::Command;
use crate::config::value::duration;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// What `llmproxy top` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopAsk {
    /// The configuration whose gateways are watched.
    pub config: PathBuf,
    /// The admin socket that is watched instead.
    pub socket: Option<PathBuf>,
    /// How long is counted for a figure per second.
    pub interval: Duration,
    /// How what is found is shown.
    pub form: TopForm,
}

/// How what is found is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopForm {
    /// On the whole terminal, until somebody ends it.
    Live,
    /// As text, once.
    Once,
    /// The same in JSON.
    OnceJson,
}

pub(super) const EXIT_CODES: &str = "\
Keys: q, Esc and Ctrl-C end it; Tab shows the next process, where several run
with the configuration; the arrows, Page Up, Page Down, Home and End move the
list of backends.

Exit codes:
  0  there was a proxy to look at; it was ended
  1  no such proxy runs, or it does not answer (without --once it is waited for)
  2  standard output is no terminal; the file has errors or cannot be read, or
     the command line is wrong";

/// Nobody reads faster, and a page costs the workers some work.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// What is older says little of now.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

#[derive(Args)]
pub(super) struct Arguments {
    /// Configuration file that the proxy runs with
    #[arg(short, long, value_name = "FILE", default_value = "config.yaml")]
    config: PathBuf,
    /// Its admin socket, instead of any file
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How often it is read, and over how long figures per second are counted: 100ms to 1h
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print what is found once, after one interval, and end
    #[arg(long)]
    once: bool,
    /// With --once: as JSON, a line for each process
    #[arg(long, requires = "once")]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text).map_err(|_| "must be a time such as 1s or 500ms".to_owned())?;
    match (INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        true => Ok(interval),
        false => Err("must be from 100ms to 1h".to_owned()),
    }
}

pub(super) fn command(arguments: Arguments) -> Command {
    let Arguments { config, socket, interval, once, json } = arguments;
    let form = match (once, json) {
        (false, _) => TopForm::Live,
        (true, false) => TopForm::Once,
        (true, true) => TopForm::OnceJson,
    };
    Command::Top(TopAsk { config, socket, interval, form })
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::Parser;

    fn asked(arguments: &[&str]) -> Option<TopAsk> {
        let cli = Cli::try_parse_from(["llmproxy", "top"].iter().chain(arguments)).ok()?;
        match super::super::command(cli, |_| Default::default()) {
            Command::Top(ask) => Some(ask),
            other => panic!("{other:?}"),
        }
    }

    /// Catches: an option that is read and forgotten, an interval that keeps a gateway busy or in
    /// which figures would be divided by nothing.
    #[test]
    fn what_is_asked_is_what_was_typed() {
        let plain = asked(&[]).unwrap();
        assert_eq!((plain.form, plain.interval), (TopForm::Live, Duration::from_secs(1)));
        let once = asked(&["--once", "-i", "250ms", "--socket", "/s"]).unwrap();
        assert_eq!((once.form, once.interval), (TopForm::Once, Duration::from_millis(250)));
        assert_eq!(once.socket, Some("/s".into()));
        assert_eq!(asked(&["--once", "--json"]).unwrap().form, TopForm::OnceJson);
        for bad in [&["--json"][..], &["-i", "0s"], &["-i", "99ms"], &["-i", "2h"], &["-i", "x"]] {
            assert!(asked(bad).is_none(), "{bad:?}");
        }
    }
}
