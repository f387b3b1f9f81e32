//! The thread that makes the list of models: it asks the engines that are well for theirs, all at
//! the same time and under a deadline, and puts the lists together.

use super::visit;
use crate::base::clock::unix_ms;
use crate::base::limits::{
    MODEL_LISTS_WAITING_MAX, MODEL_LIST_BYTES_MAX, MODEL_LIST_ENGINES_MAX, MODEL_LIST_KEPT,
    MODEL_LIST_MODELS_MAX, MODEL_LIST_TIME, MODEL_NAME_BYTES_MAX,
};
use crate::config::plan::ModelPattern;
use crate::http::request::Method;
use crate::rt::ring::Ring;
use crate::rt::{self, await_peer};
use crate::state::ask;
use crate::state::board::{Board, View};
use crate::state::member::{Member, MemberId};
use crate::state::model_list::{AskModels, ModelList};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Starts the thread; gives where it is asked. It ends when nobody can ask any more.
pub fn start(board: &Arc<Board>) -> io::Result<AskModels> {
    let (ask, mut questions) = ask::queue(MODEL_LISTS_WAITING_MAX);
    let board = Arc::clone(board);
    std::thread::Builder::new().name("models".into()).spawn(move || {
        // A ring stays on its thread.
        let mut lists = Lists {
            board,
            created: unix_ms() / 1000,
            ring: None,
            made: None,
            failing: HashSet::new(),
        };
        let mut goes_on = true;
        while goes_on {
            super::survive("models", || {
                goes_on = questions.answer_next(|()| lists.now());
            });
        }
    })?;
    Ok(ask)
}

struct Lists {
    board: Arc<Board>,
    /// When we began to have names of our own, in Unix seconds.
    created: u64,
    /// Made when it is needed for the first time: many gateways are never asked.
    ring: Option<Ring>,
    made: Option<Made>,
    /// Backends whose list could not be had, which was told.
    failing: HashSet<MemberId>,
}

/// The last answer.
struct Made {
    at: Instant,
    /// The view that it is of.
    view: Weak<View>,
    list: Option<Arc<ModelList>>,
}

/// A model as its engine tells it: its id, and its JSON.
type Told = (String, String);

impl Lists {
    /// The list of the view that is in use.
    fn now(&mut self) -> Option<Arc<ModelList>> {
        let view = self.board.view();
        let is_new = |made: &&Made| {
            std::ptr::eq(made.view.as_ptr(), Arc::as_ptr(&view))
                && made.at.elapsed() < MODEL_LIST_KEPT
        };
        if let Some(made) = self.made.as_ref().filter(is_new) {
            return made.list.clone();
        }
        let found = self.ask_all(&view)?;
        let list = found.iter().any(Option::is_some).then(|| {
            let told = found.into_iter().flatten().flatten();
            Arc::new(ModelList::new(merged(told, &view.plan.routing.model_mapping, self.created)))
        });
        let (at, view) = (Instant::now(), Arc::downgrade(&view));
        self.made = Some(Made { at, view, list: list.clone() });
        list
    }

    /// What each backend says, in the order of the plan; `None`: nothing that could be used, or it
    /// was not asked.
    fn ask_all(&mut self, view: &Arc<View>) -> Option<Vec<Option<Vec<Told>>>> {
        // Not there while it runs: after a panic in it there is another one.
        let ring = self.ring.take().map_or_else(Ring::build, Ok);
        let mut ring =
            ring.inspect_err(|error| tracing::error!(%error, "no ring for models")).ok()?;
        let found = ring.block_on(fetch(view));
        self.ring = Some(ring);
        let here: HashSet<_> = view.members().iter().map(|member| member.id()).collect();
        self.failing.retain(|id| here.contains(id));
        let keep = |(member, found): (&Arc<Member>, Option<Result<_, String>>)| match found? {
            Ok(told) => {
                self.failing.remove(&member.id());
                Some(told)
            }
            Err(why) => {
                if self.failing.insert(member.id()) {
                    let backend = &*member.name;
                    tracing::warn!(backend, %why, "the backend's list of models is left out");
                }
                None
            }
        };
        Some(view.members().iter().zip(found).map(keep).collect())
    }
}

/// Asks the backends that are well, or all when none is: an answer beats a 503.
async fn fetch(view: &Arc<View>) -> Vec<Option<Result<Vec<Told>, String>>> {
    let members = view.members();
    let is_any_well = members.iter().any(|member| member.is_healthy());
    let asked = |place: &usize| !is_any_well || members.get(*place).is_some_and(|m| m.is_healthy());
    let queue: VecDeque<usize> = (0..members.len()).filter(asked).collect();
    let found = Rc::new(RefCell::new((0..members.len()).map(|_| None).collect::<Vec<_>>()));
    let askers = queue.len().min(MODEL_LIST_ENGINES_MAX);
    let queue = Rc::new(RefCell::new(queue));
    let due = Instant::now() + MODEL_LIST_TIME;
    let ask = |_| {
        let (view, queue, found) = (Arc::clone(view), Rc::clone(&queue), Rc::clone(&found));
        rt::spawn(async move {
            loop {
                let next = queue.borrow_mut().pop_front();
                let Some((place, member)) = next.and_then(|n| Some((n, view.members().get(n)?)))
                else {
                    return;
                };
                // Of many that hang, the last ones are not asked at all.
                let left = due.saturating_duration_since(Instant::now());
                let told = await_peer(left, told_by(member, left)).await;
                let told = told.unwrap_or_else(|| Err("no answer in time".into()));
                if let Some(slot) = found.borrow_mut().get_mut(place) {
                    *slot = Some(told);
                }
            }
        })
    };
    for asker in (0..askers).map(ask).collect::<Vec<_>>() {
        asker.await;
    }
    let found = std::mem::take(&mut *found.borrow_mut());
    found
}

/// What one backend says of its models.
async fn told_by(member: &Member, limit: Duration) -> Result<Vec<Told>, String> {
    let mut link = visit::open(member, limit).await?;
    visit::send(&mut link, member, ("GET", "/v1/models"), "models").await?;
    let mut bytes = Vec::new();
    let head = visit::read_head(&mut link, Method::Get, &mut bytes).await?;
    match head.status {
        200 if head.encoded => return Err("the answer is packed, unasked".into()),
        200 => {}
        status => return Err(format!("status {status}")),
    }
    let body = visit::read_body(&mut link, &head, bytes, MODEL_LIST_BYTES_MAX).await?;
    models_in(&body, &member.plan.models)
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// The models of an engine's list that its backend may be asked for.
fn models_in(body: &[u8], patterns: &[ModelPattern]) -> Result<Vec<Told>, String> {
    let page: Page<'_> = serde_json::from_slice(body).map_err(|e| format!("no list: {e}"))?;
    // Ollama without a model says null.
    let data: Option<Vec<&RawValue>> =
        serde_json::from_str(page.data.get()).map_err(|e| format!("no list: {e}"))?;
    let data = data.unwrap_or_default();
    if data.len() > MODEL_LIST_MODELS_MAX {
        return Err(format!("{} models, at most {MODEL_LIST_MODELS_MAX}", data.len()));
    }
    let is_asked_for = |id: &str| {
        let is_covered = patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(id));
        is_covered && !id.is_empty() && id.len() <= MODEL_NAME_BYTES_MAX
    };
    let told = |entry: &RawValue| {
        let Entry { id } = serde_json::from_str(entry.get()).ok()?;
        is_asked_for(&id).then(|| (id.into_owned(), entry.get().to_owned()))
    };
    Ok(data.into_iter().filter_map(told).collect())
}

/// One list of them all: the first backend that has a model says what it is. A name of our own
/// stands for what it is mapped to, be there a model of that name or not.
fn merged(
    told: impl Iterator<Item = Told>,
    mapping: &[(String, String)],
    created: u64,
) -> Vec<Told> {
    let aliases: HashMap<&str, &str> =
        mapping.iter().map(|(asked, served)| (asked.as_str(), served.as_str())).collect();
    let (mut ids, mut models, mut hidden) = (HashSet::new(), Vec::new(), HashSet::new());
    for (id, json) in told {
        if aliases.get(id.as_str()).is_some_and(|served| *served != id) {
            hidden.insert(id);
        } else if ids.insert(id.clone()) {
            models.push((id, json));
        }
    }
    for (asked, served) in mapping {
        let is_there = ids.contains(served) || hidden.contains(served);
        if is_there && !ids.contains(asked) {
            let id = serde_json::Value::from(asked.as_str());
            let json = format!(
                r#"{{"id":{id},"object":"model","created":{created},"owned_by":"llmproxy"}}"#
            );
            models.push((asked.clone(), json));
        }
    }
    models
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<ModelPattern> {
        texts.iter().map(|text| ModelPattern::parse(text).unwrap()).collect()
    }

    fn told(models: &[(&str, &str)]) -> Vec<Told> {
        models.iter().map(|(id, json)| ((*id).to_owned(), (*json).to_owned())).collect()
    }

    /// Catches: an entry that is not the engine's own bytes, one that its backend is not asked for,
    /// a list that breaks ours.
    #[test]
    fn a_list_is_taken_as_its_engine_wrote_it() {
        let body = br#" {"object":"list","x":[1], "data" : [ {"id":"a/1", "max_model_len":1.50},
            {"id":"\u0062"},{"id":""},{"id":7},3,{"name":"c"},{"id":"cc"} ]} "#;
        let all = models_in(body, &[]).unwrap();
        let a = ("a/1", r#"{"id":"a/1", "max_model_len":1.50}"#);
        let b = ("b", r#"{"id":"\u0062"}"#);
        assert_eq!(all, told(&[a, b, ("cc", r#"{"id":"cc"}"#)]));
        assert_eq!(models_in(body, &patterns(&["a*", "c"])).unwrap(), told(&[a]));
        assert_eq!(models_in(br#"{"data":null}"#, &[]), Ok(Vec::new()));
        for garbage in ["", "[]", "{}", r#"{"data":{}}"#, r#"{"data":[}"#, r#"{"data":[]} x"#] {
            assert!(models_in(garbage.as_bytes(), &[]).is_err(), "{garbage}");
        }
        let many = vec![r#"{"id":"a"}"#; MODEL_LIST_MODELS_MAX + 1].join(",");
        assert!(models_in(format!(r#"{{"data":[{many}]}}"#).as_bytes(), &[]).is_err());
        let long = format!(r#"{{"data":[{{"id":"{}"}}]}}"#, "m".repeat(MODEL_NAME_BYTES_MAX + 1));
        assert_eq!(models_in(long.as_bytes(), &[]), Ok(Vec::new()));
    }

    /// Catches: a model twice, another order each time, an alias that leads nowhere or is said to
    /// be the engine's model of that name.
    #[test]
    fn each_model_stands_once_and_aliases_where_their_models_are() {
        let lists = told(&[("a", "1"), ("b", "2"), ("a", "3"), ("x", "4"), ("self", "5")]);
        let names = [("n\"w", "b"), ("lost", "nowhere"), ("x", "a"), ("self", "self"), ("y", "x")];
        let names = names.map(|(asked, served)| (asked.to_owned(), served.to_owned()));
        let made = merged(lists.into_iter(), &names, 7);
        let ids: Vec<&str> = made.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "self", "n\"w", "x", "y"]);
        assert_eq!(made[0].1, "1");
        let own = r#"{"id":"n\"w","object":"model","created":7,"owned_by":"llmproxy"}"#;
        assert_eq!(made[3].1, own);
        let list = ModelList::new(made);
        assert_eq!(
            (list.model("n\"w"), list.model("b"), list.model("lost")),
            (Some(own), Some("2"), None)
        );
        assert!(
            list.page().starts_with(r#"{"object":"list","data":[1,2,5,{"id""#),
            "{}",
            list.page()
        );
        assert!(list.page().ends_with("}]}"));
        assert_eq!(ModelList::new([]).page(), r#"{"object":"list","data":[]}"#);
    }
}
