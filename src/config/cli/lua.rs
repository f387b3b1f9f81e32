//! `llmproxy lua`: a script, and what it is told.

use super::Command;
use crate::config::value;
use clap::Subcommand;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "\
Exit codes:
  0  the script allows the key
  1  it denies it, or failed, or took longer or more than it may: the client
     would get a 403
  2  the script or its data cannot be read, or the script is no Lua, or the
     command line is wrong";

/// One run of a script.
#[derive(Debug, Clone, PartialEq)]
pub struct LuaTest {
    /// Its file.
    pub script: PathBuf,
    /// A file with the JSON object that is `data`; `None`: an empty one.
    pub data: Option<PathBuf>,
    /// `api_key`.
    pub key: String,
    /// `request.headers`, name and value.
    pub headers: Vec<(String, String)>,
    /// `request.client_ip`.
    pub ip: IpAddr,
    /// `request.method`.
    pub method: String,
    /// `request.path`.
    pub path: String,
    /// Processor time that it may take.
    pub timeout: Duration,
}

#[derive(Subcommand)]
pub(super) enum LuaSub {
    /// Run a script once, and print what it decides as JSON
    #[command(after_help = EXIT_CODES)]
    Test {
        /// The script
        script: PathBuf,
        /// File with what its provider knows of the key, a JSON object: `data` of the script
        #[arg(long, value_name = "FILE")]
        data: Option<PathBuf>,
        /// The key: `api_key` of the script
        #[arg(long, value_name = "KEY", default_value = "sk-test")]
        key: String,
        /// A field of the request, such as 'X-Team: red'; may be repeated
        #[arg(long, value_name = "FIELD", value_parser = field)]
        header: Vec<(String, String)>,
        /// Address of the client
        #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
        ip: IpAddr,
        /// Method of the request
        #[arg(long, default_value = "POST")]
        method: String,
        /// Path of the request
        #[arg(long, default_value = "/v1/chat/completions")]
        path: String,
        /// Processor time that it may take
        #[arg(long, default_value = "1ms", value_parser = value::duration)]
        timeout: Duration,
    },
}

fn field(text: &str) -> Result<(String, String), String> {
    let Some((name, value)) = text.split_once(':') else {
        return Err("must be a name and a value, such as 'X-Team: red'".to_owned());
    };
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub(super) fn command(task: LuaSub) -> Command {
    let LuaSub::Test { script, data, key, header: headers, ip, method, path, timeout } = task;
    Command::Lua(LuaTest { script, data, key, headers, ip, method, path, timeout })
}
