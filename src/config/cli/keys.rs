//! `llmproxy keys`: what is asked of the store of keys.

use super::{Command, Printout, UNUSABLE};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{json, Map, Value};
use std::path::PathBuf;

/// What `llmproxy keys` was told.
#[derive(Debug, Clone, PartialEq)]
pub struct KeysAsk {
    /// The configuration that names the store, and whose gateways are asked when they run.
    pub config: PathBuf,
    /// The file of the store, which is opened instead.
    pub db: Option<PathBuf>,
    /// The admin socket of a gateway, which is asked instead.
    pub socket: Option<PathBuf>,
    /// Print the answer as it is, in JSON.
    pub json: bool,
    /// What to do.
    pub task: KeysTask,
}

/// What `llmproxy keys` does.
#[derive(Debug, Clone, PartialEq)]
pub enum KeysTask {
    /// Make a key.
    Create {
        /// What is to be known of it, as the admin API takes it.
        settings: Map<String, Value>,
        /// Its text is the first line of standard input.
        stdin: bool,
    },
    /// List keys: parameters of the admin API.
    List(Vec<(&'static str, String)>),
    /// List how much of their quotas keys have used: the same parameters.
    Usage(Vec<(&'static str, String)>),
    /// Show one.
    Show(String),
    /// Change one.
    Set {
        /// Which one.
        key: String,
        /// What changes.
        settings: Map<String, Value>,
    },
    /// Take one away.
    Revoke(String),
    /// Give one a new text.
    Rotate {
        /// Which one.
        key: String,
        /// For how long the old text is good.
        grace_period: Option<String>,
    },
    /// Put many in, from a file (`-`: standard input).
    Import {
        /// The file.
        file: PathBuf,
        /// `fail`, `skip` or `replace`.
        on_conflict: &'static str,
    },
    /// Print all.
    Export,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  not done: there is no such key, it is there already, or the store or the
     gateway cannot be used
  2  a value is wrong, the configuration cannot be read or has no `admin`, or
     the command line is wrong";

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct KeysArguments {
    /// Configuration file: its `admin.db_path` is the store
    #[arg(short, long, value_name = "FILE", default_value = "config.yaml", global = true)]
    config: PathBuf,
    /// The store itself, without any configuration and past a gateway that runs
    #[arg(long, value_name = "PATH", global = true, conflicts_with = "socket")]
    db: Option<PathBuf>,
    /// The admin socket of the gateway, instead of any file
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    task: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Make a key and print it: this is the only time that it is shown
    Create {
        #[command(flatten)]
        settings: Settings,
        /// Take the first line of standard input for the key, instead of a random one
        #[arg(long)]
        stdin: bool,
    },
    /// List keys
    List(Listed),
    /// List how much of its quota each key has used, and when that starts again
    Usage(Listed),
    /// Show a key, and how much of its quota is used
    Show {
        /// Its id
        id: String,
    },
    /// Change what is known of a key
    Set {
        /// Its id
        id: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// Take a key away (`set ID --status disabled` keeps it)
    Revoke {
        /// Its id
        id: String,
    },
    /// Give a key a new text and print it; the old one is good for a while yet
    Rotate {
        /// Its id
        id: String,
        /// For how long: 0 for not at all [default: 24h]
        #[arg(long, value_name = "TIME")]
        grace: Option<String>,
    },
    /// Put keys in: a JSON object in each line, with `key`, its `sha256`, or as export prints it
    Import {
        /// The file; - for standard input
        file: PathBuf,
        /// What to do with keys that are there
        #[arg(long, value_enum, default_value = "fail")]
        on_conflict: Conflict,
    },
    /// Print all keys by their digests, a JSON object in each line
    Export,
}

#[derive(Args)]
struct Listed {
    /// Keys of this user
    #[arg(long, value_name = "ID")]
    user_id: Option<String>,
    /// Keys with this status
    #[arg(long)]
    status: Option<String>,
    /// Keys with this name
    #[arg(long)]
    name: Option<String>,
    /// So many at most
    #[arg(long, value_name = "N", default_value = "100")]
    limit: u32,
    /// Those behind this one
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

impl Listed {
    fn parameters(self) -> Vec<(&'static str, String)> {
        let parameters = [
            ("user_id", self.user_id),
            ("status", self.status),
            ("name", self.name),
            ("after", self.after),
            ("limit", Some(self.limit.to_string())),
        ];
        parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Conflict {
    /// Import nothing
    Fail,
    /// Leave them
    Skip,
    /// Make them what the file says
    Replace,
}

#[derive(Args)]
struct Settings {
    /// Label for people
    #[arg(long)]
    name: Option<String>,
    /// Whom records and limits of users name
    #[arg(long, value_name = "ID")]
    user_id: Option<String>,
    /// active or disabled
    #[arg(long)]
    status: Option<String>,
    /// Tokens per period; 0 for unlimited
    #[arg(long, value_name = "TOKENS")]
    total_quota: Option<u64>,
    /// never, daily, weekly or monthly
    #[arg(long, value_name = "PERIOD")]
    quota_reset_period: Option<String>,
    /// A model that it may use, or its beginning and a `*`; may be repeated
    #[arg(long = "allowed-model", value_name = "MODEL")]
    allowed_models: Vec<String>,
    /// An address, or a range, from which it may be used; may be repeated
    #[arg(long = "allowed-ip", value_name = "RANGE")]
    allowed_ips: Vec<String>,
    /// First moment: RFC 3339, or a date in UTC
    #[arg(long, value_name = "TIME")]
    starts_at: Option<String>,
    /// First moment after its life; a date counts to its end
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Anything else that the admin API takes: '{"rate_limit": {"requests_per_minute": 60}}'
    #[arg(long, value_name = "JSON", value_parser = object)]
    settings: Option<Map<String, Value>>,
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("no JSON object: {error}"))
}

impl Settings {
    fn object(self) -> Map<String, Value> {
        let mut object = self.settings.unwrap_or_default();
        let texts = [
            ("name", self.name),
            ("user_id", self.user_id),
            ("status", self.status),
            ("quota_reset_period", self.quota_reset_period),
            ("starts_at", self.starts_at),
            ("expires_at", self.expires_at),
        ];
        let given = texts.into_iter().filter_map(|(name, text)| Some((name, json!(text?))));
        let lists = [("allowed_models", self.allowed_models), ("allowed_ips", self.allowed_ips)];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let quota = self.total_quota.map(|quota| ("total_quota", json!(quota)));
        let all = given.chain(lists.map(|(name, list)| (name, json!(list)))).chain(quota);
        object.extend(all.map(|(name, value)| (name.to_owned(), value)));
        object
    }
}

pub(super) fn command(arguments: KeysArguments) -> Command {
    let KeysArguments { config, db, socket, json, task } = arguments;
    let task = match task {
        Sub::Create { settings, stdin } => KeysTask::Create { settings: settings.object(), stdin },
        Sub::List(listed) => KeysTask::List(listed.parameters()),
        Sub::Usage(listed) => KeysTask::Usage(listed.parameters()),
        Sub::Show { id } => KeysTask::Show(id),
        Sub::Set { id, settings } => {
            let settings = settings.object();
            if settings.is_empty() {
                let stderr = "llmproxy keys: set: nothing is to be changed\n".to_owned();
                return Command::Print(Printout { stdout: String::new(), stderr, code: UNUSABLE });
            }
            KeysTask::Set { key: id, settings }
        }
        Sub::Revoke { id } => KeysTask::Revoke(id),
        Sub::Rotate { id, grace } => KeysTask::Rotate { key: id, grace_period: grace },
        Sub::Import { file, on_conflict } => {
            let on_conflict = match on_conflict {
                Conflict::Fail => "fail",
                Conflict::Skip => "skip",
                Conflict::Replace => "replace",
            };
            KeysTask::Import { file, on_conflict }
        }
        Sub::Export => KeysTask::Export,
    };
    Command::Keys(KeysAsk { config, db, socket, json, task })
}
