//! A disk that is full: what the two policies do then, and that all goes on when there is room.

use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, pause, skip, Config, Engine, Proxy, SOON};
use crate::load::CHAT;
use crate::receiver::Receiver;
use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A file system of 16 MiB.
struct SmallDisk {
    scratch: Scratch,
}

impl SmallDisk {
    /// `None` where nothing may be mounted.
    fn mount() -> Option<SmallDisk> {
        let scratch = Scratch::new();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "llmproxy-test"])
            .arg(scratch.path())
            .output();
        mount.is_ok_and(|ran| ran.status.success()).then_some(SmallDisk { scratch })
    }

    fn remount(&self, how: &str) {
        let how = format!("remount,{how}");
        let mut mount = Command::new("mount");
        let ran = mount.args(["-o", &how]).arg(self.scratch.path()).status();
        assert!(ran.is_ok_and(|status| status.success()), "{how}");
    }

    fn filler(&self) -> PathBuf {
        self.scratch.file("filler")
    }

    /// Leaves no byte.
    fn fill(&self) {
        let mut filler = std::fs::File::create(self.filler()).unwrap();
        for size in [1 << 20, 4096, 1] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.scratch.path()).status();
    }
}

fn config(disk: &SmallDisk, engine: &Engine, receiver: &Receiver, policy: &str) -> Config {
    Config::backend_at(engine.url()).section(format!(
        "usage: {{spool: {{dir: \"{}\", on_spool_failure: {policy}}}, reporters: [{{name: hook, \
         type: webhook, webhook: {{url: \"{}\"}}}}]}}",
        disk.scratch.file("spool").display(),
        receiver.url()
    ))
}

fn start(disk: &SmallDisk, engine: &Engine, receiver: &Receiver, policy: &str) -> Proxy {
    config(disk, engine, receiver, policy).start()
}

/// Catches: requests that fail, or records that are lost, because the spool's disk is full, and a
/// proxy that must be started again when it is not any more.
#[test]
fn with_serve_a_full_disk_costs_nobody_anything() {
    let Some(disk) = SmallDisk::mount() else { return skip("may not mount") };
    let (engine, receiver) = (Engine::start(&[]), Receiver::start());
    let proxy = start(&disk, &engine, &receiver, "serve");
    let mut asked = HashSet::new();
    let ask = |asked: &mut HashSet<String>| {
        let answer = proxy.post("/v1/chat/completions", CHAT);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        asked.insert(answer.head.get("x-request-id").unwrap().to_owned());
    };
    ask(&mut asked);
    receiver.set_down(true);
    disk.fill();
    await_until("the spool fails", SOON, || {
        ask(&mut asked);
        proxy.metric("llmproxy_journal_failing", &[]) == 1.0
    });
    (0..20).for_each(|_| ask(&mut asked));
    assert!(proxy.get("/ready").text().contains("warning"), "{}", proxy.get("/ready").text());
    assert_eq!(proxy.get("/ready").status(), 200);
    disk.free();
    proxy.await_metric("llmproxy_journal_failing", &[], 0.0);
    (0..5).for_each(|_| ask(&mut asked));
    receiver.set_down(false);
    await_until("all records", Duration::from_secs(30), || {
        let seen = receiver.seen();
        asked.iter().all(|id| seen.contains_key(id))
    });
    assert_eq!(proxy.metric("llmproxy_journal_dropped_total", &[]), 0.0);
}

/// Catches: service without billing where that was ruled out, and a refusal that does not end.
#[test]
fn with_refuse_a_full_disk_refuses_until_there_is_room() {
    let Some(disk) = SmallDisk::mount() else { return skip("may not mount") };
    let (engine, receiver) = (Engine::start(&[]), Receiver::start());
    let proxy = start(&disk, &engine, &receiver, "refuse");
    let ask = || proxy.post("/v1/chat/completions", CHAT);
    assert_eq!(ask().status(), 200);
    disk.fill();
    await_until("requests are refused", SOON, || ask().status() == 503);
    ask().assert_refused(503, "usage_unavailable");
    let engine_had = engine.posts().len();
    assert_eq!(proxy.get("/ready").status(), 503);
    (0..5).for_each(|_| assert_eq!(ask().status(), 503));
    assert_eq!(engine.posts().len(), engine_had, "an engine was asked");
    disk.free();
    await_until("requests are served again", SOON, || {
        pause(Duration::from_millis(20));
        ask().status() == 200
    });
    // Those that were served have their records, also those of the moment it became full.
    let served = engine.posts().len();
    await_until("all records", Duration::from_secs(30), || receiver.seen().len() >= served);
    assert_eq!(receiver.seen().len(), served);
}

/// Catches: a start that a read-only disk prevents although memory stands in for it, and a proxy
/// that does not use the disk when it can.
#[test]
fn with_serve_a_read_only_disk_prevents_no_start() {
    let Some(disk) = SmallDisk::mount() else { return skip("may not mount") };
    let (engine, receiver) = (Engine::start(&[]), Receiver::start());
    receiver.set_down(true);
    disk.remount("ro");
    let proxy = start(&disk, &engine, &receiver, "serve");
    let ask = || proxy.post("/v1/chat/completions", CHAT);
    assert_eq!((ask().status(), ask().status()), (200, 200));
    assert_eq!(proxy.metric("llmproxy_journal_failing", &[]), 1.0);
    assert_eq!(proxy.metric("llmproxy_usage_rings_volatile", &[]), 1.0);
    disk.remount("rw");
    proxy.await_metric("llmproxy_journal_failing", &[], 0.0);
    await_until("it serves", SOON, || ask().status() == 200);
    receiver.set_down(false);
    let served = engine.posts().len();
    await_until("all records", Duration::from_secs(30), || receiver.seen().len() >= served);
}

/// Catches: service with rings that a kill would lose, where nobody is to be served without a
/// record.
#[test]
fn with_refuse_rings_that_cannot_be_made_prevent_a_start() {
    let Some(disk) = SmallDisk::mount() else { return skip("may not mount") };
    let (engine, receiver) = (Engine::start(&[]), Receiver::start());
    let (scratch, config) = (Scratch::new(), config(&disk, &engine, &receiver, "refuse"));
    let file = scratch.write("config.yaml", config.yaml());
    for how in ["ro", "rw,size=4m"] {
        disk.remount(how);
        let args = ["--config", &*file.to_string_lossy()];
        let ran = llmproxy(&args);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let why = "usage.spool.ring_dir: the journal's rings cannot be made, and with \
                   on_spool_failure: refuse nobody is served without them";
        assert!(ran.stderr.contains(why), "{}", ran.stderr);
    }
}
