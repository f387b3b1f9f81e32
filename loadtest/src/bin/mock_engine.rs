//! `mock-engine`: an LLM engine that answers at once, or exactly as badly as it is told to.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use loadtest::mock::knobs::{Knobs, NAMES};
use loadtest::mock::server::{run, Options};
use loadtest::net::Address;
use loadtest::script::Dialect;
use loadtest::sys;

fn main() -> ExitCode {
    let matches = command().get_matches();
    let started = options(&matches).and_then(|options| {
        sys::raise_file_limit().map_err(|e| format!("file limit: {e}"))?;
        run(options, announce).map_err(|e| e.to_string())
    });
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("mock-engine: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The first line of output, which scripts wait for.
fn announce(address: &Address) {
    println!("listening on {address}");
    let _ = std::io::stdout().flush();
}

fn command() -> Command {
    let value = |name: &'static str, help: &'static str| Arg::new(name).long(name).help(help);
    let mut command = Command::new("mock-engine")
        .about("An LLM engine that answers at once, or exactly as badly as it is told to.")
        .arg(value("listen", "HOST:PORT (port 0 = any) or unix:/path").default_value("127.0.0.1:0"))
        .arg(value("dialect", "vllm, sglang, tgi, llamacpp or ollama").default_value("vllm"))
        .arg(value("threads", "worker threads").default_value("1"))
        .arg(value("log", "requests kept in GET /mock/log; 0 = none").default_value("10000"))
        .arg(value("models", "names that /v1/models lists, with commas").default_value("m"))
        .arg(value("idle-close-ms", "close idle connections; 0 = never [the dialect's]"))
        .arg(value("max-requests", "requests per connection; 0 = any number [the dialect's]"))
        .arg(value("health", "status of the health paths").default_value("200"))
        .arg(
            Arg::new("unhealthy")
                .long("unhealthy")
                .action(ArgAction::SetTrue)
                .help("the same as --health 503"),
        );
    for (name, help) in NAMES {
        command = command.arg(value(name, help).help_heading("Knobs, also headers x-mock-NAME"));
    }
    command
}

fn options(matches: &ArgMatches) -> Result<Options, String> {
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let number = |name: &str| -> Result<Option<u64>, String> {
        text(name).map(|value| value.parse().map_err(|_| format!("--{name} {value}"))).transpose()
    };
    let mut knobs = Knobs::default();
    for (name, _) in NAMES {
        if let Some(value) = text(name) {
            knobs.set(name, value).map_err(|why| format!("--{name}: {why}"))?;
        }
    }
    let dialect: Dialect = text("dialect").unwrap_or("vllm").parse()?;
    // uvicorn and cpp-httplib close after 5 s, cpp-httplib also after 100 requests.
    let (idle, most) = match dialect {
        Dialect::Vllm | Dialect::Sglang => (5000, 0),
        Dialect::Llamacpp => (5000, 100),
        Dialect::Tgi | Dialect::Ollama => (0, 0),
    };
    let idle = number("idle-close-ms")?.unwrap_or(idle);
    let most = number("max-requests")?.unwrap_or(most);
    let health = if matches.get_flag("unhealthy") { 503 } else { number("health")?.unwrap_or(200) };
    Ok(Options {
        dialect,
        listen: text("listen").unwrap_or("127.0.0.1:0").parse()?,
        threads: number("threads")?.unwrap_or(1) as usize,
        idle_close: (idle > 0).then(|| Duration::from_millis(idle)),
        requests_per_connection: (most > 0).then_some(most as u32),
        log: number("log")?.unwrap_or(10_000) as usize,
        models: text("models").unwrap_or("m").split(',').map(str::to_string).collect(),
        health: health as u16,
        knobs,
    })
}
