//! `loadgen`: sends chat requests, open or closed loop, and measures the answers.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use loadtest::load::plan::Plan;
use loadtest::load::{report, run};
use loadtest::sys;

/// 0: every answer was right. 1: some were not. 2: the run itself failed.
fn main() -> ExitCode {
    let plan = Plan::parse();
    match measure(&plan) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("loadgen: {why}");
            ExitCode::from(2)
        }
    }
}

fn measure(plan: &Plan) -> std::io::Result<bool> {
    sys::raise_file_limit()?;
    let outcome = run::run(plan)?;
    let json = report::to_json(plan, &outcome).to_string() + "\n";
    match plan.json.as_deref() {
        Some("-") => std::io::stdout().write_all(json.as_bytes())?,
        Some(path) => std::fs::write(path, json)?,
        None => {}
    }
    if !plan.quiet && plan.json.as_deref() != Some("-") {
        std::io::stdout().write_all(report::to_table(&outcome).as_bytes())?;
    }
    Ok(outcome.all.failed() == 0)
}
