use super::*;
use crate::base::secret::Secret;
use crate::config::load_text;
use crate::keys::digest::KeyDigest;
use serde_json::json;
use std::collections::VecDeque;
use std::sync::mpsc;

/// A provider that says what a test tells it to.
struct Scripted(VecDeque<Result<FoundKey, Trouble>>);

impl KeySource for Scripted {
    fn find(&mut self, _: &KeyQuestion, _: Instant) -> Result<FoundKey, Trouble> {
        self.0.pop_front().expect("it is not asked so often")
    }

    fn probe(&mut self, _: Instant) -> Result<(), Trouble> {
        Ok(())
    }
}

fn question(key: &str) -> KeyQuestion {
    KeyQuestion { digest: KeyDigest::of(key.as_bytes()), key: Secret::new(key) }
}

fn answering(has_script: bool) -> Answering {
    Answering {
        name: "p".into(),
        has_script,
        patience: Duration::from_secs(5),
        circuit: Circuit::new("p", String::new()),
        told: Mutex::default(),
        lowered: Mutex::default(),
        numbers: Arc::default(),
    }
}

fn fields(value: Value) -> Result<FoundKey, Trouble> {
    let Value::Object(fields) = value else { panic!("{value}") };
    Ok(FoundKey::Fields(fields))
}

fn known(answer: KeyAnswer) -> Arc<KeyFacts> {
    match answer {
        KeyAnswer::Known(facts) => facts,
        other => panic!("{other:?}"),
    }
}

/// Catches: a key that is let in because what is said of it was not understood, data that is made
/// for nobody, a result that is not counted.
#[test]
fn what_a_provider_says_becomes_an_answer() {
    for has_script in [false, true] {
        let answering = answering(has_script);
        let said = json!({"status": "active", "user_id": "u", "balance": "1"});
        let mut source = Scripted(VecDeque::from([
            fields(said.clone()),
            fields(json!({"status": "maybe"})),
            Ok(FoundKey::Unclear("a text")),
            Ok(FoundKey::Unknown),
            Ok(FoundKey::Denied(Some("no".into()))),
            Err(Trouble::Data("odd".into())),
        ]));
        let mut ask = || answering.answer(&mut source, &question("k"));
        let facts = known(ask());
        assert_eq!((facts.status, facts.user_id.as_str()), (KeyState::Active, "u"));
        assert_eq!(facts.data, has_script.then_some(said));
        assert_eq!(known(ask()).status, KeyState::Disabled);
        assert_eq!(known(ask()).status, KeyState::Disabled);
        assert!(matches!(ask(), KeyAnswer::Unknown));
        assert!(matches!(ask(), KeyAnswer::Denied(Some(why)) if &*why == "no"));
        assert!(matches!(ask(), KeyAnswer::Failed));
        assert_eq!(answering.numbers.results(), [3, 1, 1, 1]);
        assert_eq!(answering.numbers.times().count(), 6);
        let unclear = answering.told.lock().unwrap();
        assert_eq!(*unclear, HashSet::from(["status", "a text"]));
    }
}

/// Catches: a limit beyond what is counted that is used as it is, one within that is changed, a
/// line of the log for each look-up, and a list of keys that grows with what a provider says.
#[test]
fn a_limit_beyond_what_is_counted_is_lowered_and_told_once() {
    let answering = answering(false);
    let limited = |key: &str, most: u32| {
        let said = fields(json!({"max_concurrent": most}));
        let facts = known(answering.answer(&mut Scripted([said].into()), &question(key)));
        facts.limits.max_concurrent
    };
    let told = || answering.lowered.lock().unwrap().len();
    assert_eq!(limited("k", LIMIT_CONCURRENT_MAX), Some(LIMIT_CONCURRENT_MAX));
    assert_eq!(told(), 0);
    for _ in 0..2 {
        assert_eq!(limited("k", LIMIT_CONCURRENT_MAX + 1), Some(LIMIT_CONCURRENT_MAX));
        assert_eq!(told(), 1);
    }
    for n in 0..2 * LOWERED_TOLD_MAX {
        assert_eq!(limited(&format!("k{n}"), u32::MAX), Some(LIMIT_CONCURRENT_MAX));
    }
    assert_eq!(told(), LOWERED_TOLD_MAX);
}

/// Catches: a key in a log or a panic, since its provider says it too and that is shown.
#[test]
fn nothing_that_shows_an_answer_shows_the_key() {
    let key = "sk-shown-nowhere";
    let said =
        || fields(json!({"api_key": key, "name": key, "user_id": key, "metadata": {"k": key}}));
    assert_eq!(format!("{:?}", said()), "Ok(Fields)");
    let answer = answering(true).answer(&mut Scripted([said()].into()), &question(key));
    let mut shown = format!("{answer:?}");
    let facts = known(answer);
    assert!(facts.data.is_some());
    shown += &format!("{:?}", FoundKey::Facts(Box::new((*facts).clone())));
    assert!(shown.contains("Active") && !shown.contains(key), "{shown}");
}

/// Catches: a provider that is asked for a key that nobody can have.
#[test]
fn an_impossible_key_is_unknown_without_a_question() {
    let (answering, mut nobody) = (answering(false), Scripted(VecDeque::new()));
    let long = "k".repeat(LOOKUP_KEY_BYTES_MAX + 1);
    for key in ["", &long, "a b", "a\r\nb", "a\0", "é"] {
        assert!(matches!(answering.answer(&mut nobody, &question(key)), KeyAnswer::Unknown));
    }
}

/// Catches: a provider that is down and that every question waits for.
#[test]
fn after_a_few_failures_nobody_asks_for_a_while() {
    let answering = answering(false);
    let down = || Err(Trouble::Later("it holds k3y!".into()));
    let mut source = Scripted(VecDeque::from([down(), down(), down()]));
    for _ in 0..10 {
        assert!(matches!(answering.answer(&mut source, &question("k3y!")), KeyAnswer::Failed));
    }
    assert_eq!(without("it holds k3y! here", "k3y!"), "it holds *** here");
}

fn plan(pipeline: &str) -> Plan {
    let text = format!("backends: [{{url: 'http://a'}}]\nauth: {{pipeline: [{pipeline}]}}");
    load_text("test", &text, &|_| None).unwrap().plan
}

fn view(plan: Plan, before: Option<&View>) -> View {
    let services = services(&plan, before, None).unwrap();
    let mut view = View::new(Arc::new(plan), vec![None], before);
    view.services = services;
    view
}

/// Catches: a reload that drops the connections of a provider that is as it was, or one that keeps
/// asking at the old place.
#[test]
fn a_provider_that_is_as_before_keeps_its_service() {
    let hook = |url: &str, more: &str| {
        format!("{{name: h, type: webhook, webhook: {{url: 'http://{url}'}}{more}}}")
    };
    let first = view(plan(&format!("{{type: file}}, {}", hook("a", ""))), None);
    assert!(first.services[0].is_none() && first.services.len() == 2);
    let is_kept = |second: &View, place: usize| {
        let numbers = |view: &View, place: usize| {
            Arc::as_ptr(&view.services[place].as_ref().unwrap().numbers)
        };
        numbers(&first, 1) == numbers(second, place)
    };
    let moved =
        view(plan(&format!("{}, {{type: file}}", hook("a", ", on_error: deny"))), Some(&first));
    assert!(is_kept(&moved, 0) && moved.services[1].is_none());
    let script = ", script: {script: 'return true'}";
    for other in [hook("b", ""), hook("a", script), hook("a", "").replace("name: h", "name: i")] {
        assert!(!is_kept(&view(plan(&other), Some(&first)), 0), "{other}");
    }
}

/// Catches: threads that stay when nobody can ask any more, an answer that does not arrive.
#[test]
fn threads_answer_and_end_with_their_service() {
    struct Echo(#[allow(dead_code, reason = "its end is what is awaited")] mpsc::Sender<()>);
    impl KeySource for Echo {
        fn find(&mut self, question: &KeyQuestion, _: Instant) -> Result<FoundKey, Trouble> {
            assert_ne!(question.key.reveal(), "panic", "on purpose");
            fields(json!({"user_id": question.key.reveal()}))
        }

        fn probe(&mut self, _: Instant) -> Result<(), Trouble> {
            panic!("on purpose")
        }
    }
    let (alive, ended) = mpsc::channel::<()>();
    let sources = (0..3).map(|_| Box::new(Echo(alive.clone())) as Box<dyn KeySource>).collect();
    drop(alive);
    let patience = Duration::from_secs(5);
    let opened = Opened { place: String::new(), patience, ready: 1, sources };
    let plan = plan("{name: h, type: webhook, webhook: {url: 'http://a'}}");
    let service = start(&plan.auth.as_ref().unwrap().pipeline[0], opened).unwrap();
    let answer = |key: &str| {
        let mut reply = service.ask.ask(question(key)).unwrap();
        loop {
            match reply.try_recv() {
                Ok(None) => std::thread::yield_now(),
                Ok(Some(answer)) => return Some(answer),
                Err(_) => return None,
            }
        }
    };
    for key in ["a", "b", "a"] {
        assert_eq!(known(answer(key).unwrap()).user_id, key);
    }
    assert!(answer("panic").is_none());
    assert_eq!(known(answer("c").unwrap()).user_id, "c");
    drop(service);
    assert_eq!(
        ended.recv_timeout(Duration::from_secs(60)),
        Err(mpsc::RecvTimeoutError::Disconnected)
    );
}
