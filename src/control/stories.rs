//! What became of requests, in JSON: what the admin socket says, and what `llmproxy explain` reads.

use crate::base::limits::FLIGHT_LISTED_MAX;
use crate::usage::flight::story::FlightStory;
use crate::usage::flight::FlightRecorder;
use serde::{Deserialize, Serialize};

/// The version of the form. It stays when something is added to it.
pub const STORIES_VERSION: u32 = 1;

/// Stories of a process.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoryPage {
    /// [`STORIES_VERSION`] of whoever wrote it.
    pub version: u32,
    /// The number of the process.
    pub pid: u32,
    /// Stories that each worker keeps; 0: none.
    pub kept_per_worker: u64,
    /// Requests that were over since its start.
    pub written: u64,
    /// The newest first.
    pub requests: Vec<FlightStory>,
}

/// The newest stories, by the end of their requests: so many at most.
pub fn newest(recorder: &FlightRecorder, most: usize) -> Vec<FlightStory> {
    let most = most.min(FLIGHT_LISTED_MAX);
    let mut found: Vec<(u64, FlightStory)> = Vec::new();
    for lane in recorder.lanes() {
        found.extend(lane.newest_first().take(most).map(|words| FlightStory::read(&words)));
        // Of many workers no more is in memory than of two.
        newest_of(&mut found, most);
    }
    found.into_iter().map(|(_, story)| story).collect()
}

/// The stories of the requests with this id, the newest first: a client may give many the same.
pub fn of_id(recorder: &FlightRecorder, id: &str) -> Vec<FlightStory> {
    let all = recorder.lanes().iter().flat_map(|lane| lane.newest_first());
    let of_id = all.map(|words| FlightStory::read(&words)).filter(|(_, story)| story.is_of(id));
    let mut found: Vec<_> = of_id.collect();
    newest_of(&mut found, FLIGHT_LISTED_MAX);
    found.into_iter().map(|(_, story)| story).collect()
}

fn newest_of(found: &mut Vec<(u64, FlightStory)>, most: usize) {
    found.sort_by_key(|(ended_ms, _)| std::cmp::Reverse(*ended_ms));
    found.truncate(most);
}

/// The JSON, with a line feed behind it.
pub(super) fn render(recorder: &FlightRecorder, requests: Vec<FlightStory>) -> Vec<u8> {
    let page = StoryPage {
        version: STORIES_VERSION,
        pid: std::process::id(),
        kept_per_worker: recorder.kept(),
        written: recorder.written(),
        requests,
    };
    // Writing what has text for keys to memory cannot fail.
    let mut json = serde_json::to_vec(&page).unwrap_or_default();
    json.push(b'\n');
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::flight::picked::PickedBy;
    use crate::usage::flight::story::{tell, FlightFacts};
    use crate::usage::record::borrowed::RecordRef;

    fn write(recorder: &FlightRecorder, worker: usize, (id, ended_ms): (&str, u64)) {
        let facts = FlightFacts {
            record: RecordRef {
                request_id: &format!("{id}-{ended_ms}"),
                client_request_id: Some(id),
                timestamp_ms: ended_ms - 1,
                latency_ms: 1,
                ..RecordRef::default()
            },
            served_model: None,
            queue_wait: None,
            began: None,
            picked_by: PickedBy::default(),
            failed: &[],
        };
        recorder.of_worker(worker).unwrap().write(|pen| tell(&facts, pen));
    }

    fn ids(stories: &[FlightStory]) -> Vec<&str> {
        stories.iter().map(|story| story.request_id.as_str()).collect()
    }

    /// Catches: workers' stories that are told one worker behind the other, more of them than are
    /// asked for, one that is not found by an id that its client knows, or one that is of another.
    #[test]
    fn the_newest_of_all_workers_come_first() {
        let recorder = FlightRecorder::new(3, 4).unwrap();
        for (worker, told) in [(0, ("a", 10)), (2, ("b", 20)), (0, ("c", 30)), (2, ("a", 40))] {
            write(&recorder, worker, told);
        }
        assert_eq!(ids(&newest(&recorder, 3)), ["a-40", "c-30", "b-20"]);
        assert_eq!(ids(&newest(&recorder, 9)).len(), 4);
        assert_eq!(ids(&of_id(&recorder, "a")), ["a-40", "a-10"]);
        assert_eq!(ids(&of_id(&recorder, "b-20")), ["b-20"]);
        assert!(of_id(&recorder, "b-2").is_empty() && newest(&recorder, 0).is_empty());
        let page = render(&recorder, newest(&recorder, 1));
        let page: StoryPage = serde_json::from_slice(&page).unwrap();
        assert_eq!((page.version, page.kept_per_worker, page.written), (STORIES_VERSION, 4, 4));
        assert_eq!(ids(&page.requests), ["a-40"]);
    }
}
