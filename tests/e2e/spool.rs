//! One directory for the spools of several processes: side by side, after each other, killed.

use crate::harness::config::SPOOL;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Config, Engine, Proxy, Webhook, SOON};
use crate::rig::{CHAT, CHATS, STREAM};
use rustix::process::Signal;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;

/// The folders of a spool, oldest first.
pub fn folders(spool: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(spool).into_iter().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
}

/// A file of this name in one of them.
pub fn in_a_folder(spool: &Path, name: &str) -> Option<PathBuf> {
    folders(spool).into_iter().map(|folder| folder.join(name)).find(|file| file.exists())
}

/// A directory, and what writes there.
struct Stage {
    scratch: Scratch,
    engine: Engine,
    hook: Webhook,
    /// The receiver takes nothing.
    is_away: Arc<AtomicBool>,
}

impl Stage {
    fn new() -> Stage {
        let is_away = Arc::new(AtomicBool::new(false));
        let away = Arc::clone(&is_away);
        let hook = Webhook::scripted(move |_, _| if away.load(SeqCst) { 503 } else { 204 });
        Stage { scratch: Scratch::new(), engine: Engine::start(&[]), hook, is_away }
    }

    fn spool(&self) -> PathBuf {
        self.scratch.file("spool")
    }

    fn start(&self) -> Proxy {
        let yaml = Config::backend_at(self.engine.url()).webhook(&self.hook.url(), "").yaml();
        let yaml = yaml.replace(SPOOL, &self.spool().display().to_string());
        let file = self.scratch.write("config.yaml", yaml).to_string_lossy().into_owned();
        Proxy::start_with(&["--config", &file], Scratch::new())
    }

    /// Each of these ids is delivered, soon.
    fn await_ids(&self, what: &str, ids: &[String]) {
        await_until(what, SOON, || {
            let records = self.hook.records();
            ids.iter().all(|id| records.iter().any(|record| record["request_id"] == **id))
        });
    }

    fn times(&self, id: &str) -> usize {
        let taken = self.hook.deliveries().into_iter().filter_map(|delivery| {
            let record: Value = serde_json::from_slice(&delivery.body).ok()?;
            (record["request_id"] == id).then_some(())
        });
        taken.count()
    }
}

fn ask(proxy: &Proxy) -> String {
    let answer = proxy.post(CHATS, CHAT);
    assert_eq!(answer.status(), 200);
    answer.head.get("x-request-id").unwrap().to_owned()
}

/// Catches: a second process that is refused, or writes into the folder of the first; one that is
/// killed and whose records wait for its own restart; what is delivered by both.
#[test]
fn two_processes_share_a_directory_and_one_takes_over() {
    let stage = Stage::new();
    stage.is_away.store(true, SeqCst);
    let (one, two) = (stage.start(), stage.start());
    assert_eq!(folders(&stage.spool()).len(), 2);
    let of_one = [ask(&one), ask(&one)];
    let mut client = one.connect();
    client.start_post(CHATS, "x-mock-gap-ms: 50\r\nx-mock-tokens: 1000\r\n", STREAM);
    let in_flight = client.head().get("x-request-id").unwrap().to_owned();
    client.read_until("data: ");
    let of_two = ask(&two);
    one.process.signal(Signal::KILL);
    one.process.wait(SOON);
    two.await_metric("llmproxy_journal_folders_adopted", &[], 1.0);
    two.await_metric("llmproxy_reporter_queue", &[("reporter", "hook")], 4.0);
    stage.is_away.store(false, SeqCst);
    let all = [&of_one[..], &[in_flight.clone(), of_two]].concat();
    stage.await_ids("what the dead one left", &all);
    let aborted = stage.hook.records();
    let aborted = aborted.iter().find(|record| record["request_id"] == *in_flight).unwrap();
    assert_eq!(aborted["status"], json!("aborted"));
    two.await_metric("llmproxy_journal_folders_adopted", &[], 0.0);
    assert_eq!(folders(&stage.spool()).len(), 1, "the folder of the dead one is removed");
    two.await_metric("llmproxy_reporter_queue", &[("reporter", "hook")], 0.0);
    let before: Vec<usize> = all.iter().map(|id| stage.times(id)).collect();
    two.process.signal(Signal::TERM);
    two.process.wait(SOON);
    let three = stage.start();
    assert_eq!(folders(&stage.spool()).len(), 1, "a restart goes on in its folder");
    stage.await_ids("what comes next", &[ask(&three)]);
    assert_eq!(before, all.iter().map(|id| stage.times(id)).collect::<Vec<_>>(), "again");
}

/// Catches: a successor that takes a folder in which its predecessor still ends its streams, and
/// one that leaves what the predecessor could not deliver.
#[test]
fn a_predecessor_drains_beside_its_successor() {
    let stage = Stage::new();
    stage.is_away.store(true, SeqCst);
    let old = stage.start();
    let first = ask(&old);
    let mut client = old.connect();
    client.start_post(CHATS, "x-mock-gap-ms: 20\r\nx-mock-tokens: 60\r\n", STREAM);
    let stream = client.head().get("x-request-id").unwrap().to_owned();
    client.read_until("data: ");
    let new = stage.start();
    old.process.signal(Signal::TERM);
    let second = ask(&new);
    client.read_until("[DONE]");
    old.process.wait(SOON);
    stage.is_away.store(false, SeqCst);
    stage.await_ids("all of both", &[first, second, stream.clone()]);
    let records = stage.hook.records();
    let record = records.iter().find(|record| record["request_id"] == *stream).unwrap();
    assert_eq!(record["status"], json!("complete"), "{record}");
    await_until("one folder is left", SOON, || folders(&stage.spool()).len() == 1);
}

/// Catches: a folder that is deleted under a running proxy, whose records then go nowhere.
#[test]
fn a_deleted_folder_is_made_anew() {
    let stage = Stage::new();
    stage.is_away.store(true, SeqCst);
    let proxy = stage.start();
    let before = ask(&proxy);
    std::fs::remove_dir_all(stage.spool()).unwrap();
    let mut ids = vec![before];
    await_until("it is noticed", SOON, || {
        ids.push(ask(&proxy));
        proxy.metric("llmproxy_journal_folders_lost_total", &[]) == 1.0
    });
    proxy.await_event("an alarm", |event| {
        event["level"] == "ERROR" && event.to_string().contains("deleted, moved or emptied")
    });
    proxy.await_metric("llmproxy_journal_failing", &[], 0.0);
    ids.push(ask(&proxy));
    // Its rings went with the folder: until the spool has it, a record is lost by a kill.
    let dir = stage.spool().display().to_string();
    await_until("all are in the spool", SOON, || {
        let ran = crate::harness::proxy::llmproxy(&["spool", "export", "--dir", &dir]);
        ids.iter().all(|id| ran.stdout.contains(id.as_str()))
    });
    proxy.process.signal(Signal::KILL);
    proxy.process.wait(SOON);
    stage.is_away.store(false, SeqCst);
    let _proxy = stage.start();
    stage.await_ids("all of them, after a kill", &ids);
}

/// Catches: commands that see one folder of several, or mix up their sequences.
#[test]
fn commands_know_all_folders() {
    let stage = Stage::new();
    stage.is_away.store(true, SeqCst);
    let (one, two) = (stage.start(), stage.start());
    let ids = [ask(&one), ask(&two)];
    let dir = stage.spool().display().to_string();
    let run = |args: &[&str]| crate::harness::proxy::llmproxy(&[&["spool"], args].concat());
    await_until("both are there", SOON, || {
        let lines = run(&["export", "--dir", &dir]).stdout;
        ids.iter().all(|id| lines.contains(id.as_str()))
    });
    let seen = run(&["inspect", "--json", "--dir", &dir]).stdout;
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!((&seen["reporters"][0]["backlog"], &seen["open"]), (&json!(2), &json!(0)));
    for folder in seen["folders"].as_array().unwrap() {
        assert!(folder["in_rings"].is_u64(), "{folder}");
        assert_eq!(
            (&folder["in_use"], &folder["reporters"][0]["backlog"]),
            (&json!(true), &json!(1))
        );
    }
    let text = run(&["inspect", "--dir", &dir]).stdout;
    assert_eq!(text.matches("(in use)").count(), 2, "{text}");
    let which = run(&["export", "--from", "1", "--dir", &dir]);
    assert!(which.code == Some(1) && which.stderr.contains("--dir"), "{which:?}");
    let folder = folders(&stage.spool())[1].display().to_string();
    let lines = run(&["export", "--from", "1", "--dir", &folder]).stdout;
    assert!(lines.contains(&ids[1]) && !lines.contains(&ids[0]), "{lines}");
    drop((one, two));
}
