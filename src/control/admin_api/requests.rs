//! `/admin/requests`: what became of the last requests.

use super::fleet::no_gateway;
use super::{AdminAnswer, AdminApi, Answer, ApiFault, Call, Gateway};
use crate::base::limits::FLIGHT_LISTED_MAX;
use crate::control::stories;
use crate::usage::flight::story::FlightStory;
use serde_json::{json, Value};

/// Stories that are told where nobody says how many.
const LISTED: usize = 100;

fn gateway(api: &AdminApi) -> Result<&Gateway, ApiFault> {
    api.gateway.as_ref().ok_or_else(no_gateway)
}

fn written(story: &FlightStory) -> Result<Value, ApiFault> {
    serde_json::to_value(story)
        .map_err(|error| ApiFault::new(500, "internal_error", error.to_string()))
}

pub(super) fn list(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&["limit"])?;
    let most = call.number("limit", FLIGHT_LISTED_MAX)?.unwrap_or(LISTED);
    let recorder = &gateway(api)?.flight;
    let stories = stories::newest(recorder, most);
    let stories: Vec<Value> = stories.iter().map(written).collect::<Result<_, _>>()?;
    let list = json!({
        "kept_per_worker": recorder.kept(),
        "written": recorder.written(),
        "requests": stories,
    });
    Ok(AdminAnswer::json(200, &list))
}

pub(super) fn show(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&[])?;
    let found = stories::of_id(&gateway(api)?.flight, call.part());
    let newest = found.first().ok_or_else(|| {
        let message = "there is no story of such a request, or it is no longer kept";
        ApiFault::new(404, "request_not_found", message)
    })?;
    Ok(AdminAnswer::json(200, &written(newest)?))
}
