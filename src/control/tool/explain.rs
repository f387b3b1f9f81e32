//! `llmproxy explain`: asks the gateways that run with a configuration, by their admin sockets,
//! what became of a request, or of the last ones.

use super::gateways::GatewayQuestion;
use crate::base::id::RequestId;
use crate::base::limits::FLIGHT_PAGE_BYTES_MAX;
use crate::base::line::for_terminal;
use crate::config::cli::{ExplainAsk, Printout, WhichRequests, FINE, WOULD_NOT_START};
use crate::config::origin::Refused;
use crate::control::stories::{StoryPage, STORIES_VERSION};
use crate::usage::flight::story::FlightStory;

mod telling;

/// Does it, and says what was found: what one gateway tells is shown also where another one does
/// not answer.
pub fn run(ask: &ExplainAsk) -> Printout {
    let target = match &ask.which {
        WhichRequests::Last(most) => format!("/requests?limit={most}"),
        WhichRequests::Id(id) => format!("/requests/{id}"),
    };
    let question =
        GatewayQuestion { command: "explain", target: &target, bytes_max: FLIGHT_PAGE_BYTES_MAX };
    match found(ask, &question) {
        Ok((stories, silent)) => {
            let code = if silent.is_empty() { FINE } else { WOULD_NOT_START };
            Printout { stdout: shown(ask, &stories), stderr: silent, code }
        }
        Err(Refused { lines, code }) => Printout { stdout: String::new(), stderr: lines, code },
    }
}

/// The stories, the newest first, and lines about gateways that do not answer.
fn found(
    ask: &ExplainAsk,
    question: &GatewayQuestion<'_>,
) -> Result<(Vec<FlightStory>, String), Refused> {
    if let WhichRequests::Id(id) = &ask.which {
        if !RequestId::is_one(id.as_bytes()) {
            let message = format!("`{}` is no id that a request can have", for_terminal(id));
            return Err(question.failed(&message));
        }
    }
    let (answers, silent) = question.put(&ask.config, ask.socket.as_deref())?;
    let pages = answers.iter().map(|json| read(json, question));
    let pages = pages.collect::<Result<Vec<_>, Refused>>()?;
    let kept = pages.iter().map(|page| page.kept_per_worker).max().unwrap_or(0);
    let mut stories: Vec<_> = pages.into_iter().flat_map(|page| page.requests).collect();
    if stories.is_empty() {
        let Refused { lines, code } = question.failed(&not_found(&ask.which, kept));
        return Err(Refused { lines: silent + &lines, code });
    }
    // Each gateway tells its own in this order: by when they were over.
    stories.sort_by_key(|story| std::cmp::Reverse(ended_ms(story)));
    if let WhichRequests::Last(most) = ask.which {
        stories.truncate(most.into());
    }
    Ok((stories, silent))
}

/// When its request was over, milliseconds since 1970.
fn ended_ms(story: &FlightStory) -> i64 {
    let began = story.timestamp.parse().map_or(0, jiff::Timestamp::as_millisecond);
    began.saturating_add(i64::try_from(story.latency_ms).unwrap_or(i64::MAX))
}

fn read(json: &str, question: &GatewayQuestion<'_>) -> Result<StoryPage, Refused> {
    let page = serde_json::from_str::<StoryPage>(json).map_err(|error| error.to_string());
    let known = page.and_then(|page| match page.version {
        STORIES_VERSION => Ok(page),
        newer => Err(format!("it has the form {newer}, and this program knows {STORIES_VERSION}")),
    });
    known.map_err(|error| question.failed(&format!("the answer cannot be read: {error}")))
}

fn not_found(which: &WhichRequests, kept: u64) -> String {
    match (which, kept) {
        (_, 0) => "no stories of requests are kept here: `log.flight_recorder` is 0".to_owned(),
        (WhichRequests::Last(_), _) => "no request is over since the start".to_owned(),
        (WhichRequests::Id(id), kept) => format!(
            "there is no story of a request {id}, or it is no longer kept: each worker keeps the \
             last {kept} since its start (`log.flight_recorder`), and of a request that is under \
             way nothing is told yet"
        ),
    }
}

fn shown(ask: &ExplainAsk, stories: &[FlightStory]) -> String {
    let line = |story| serde_json::to_string(story).unwrap_or_default() + "\n";
    match ask.json {
        true => stories.iter().map(line).collect(),
        false => stories.iter().map(telling::told).collect::<Vec<_>>().join("\n"),
    }
}
