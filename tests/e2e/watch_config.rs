//! `server.watch_config`: a file that is replaced while the process runs, in each way that editors,
//! Kubernetes and scripts have.

use crate::harness::config::PLAIN;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, pause, Backend, Config, Proxy, SOON};
use crate::rig::OK;
use rustix::fs::{mkfifoat, CWD};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

fn yaml(backend: &Backend, name: &str) -> String {
    let config = Config::new().section("health_check: {enabled: false}");
    let config = config.backend(backend.url(), &format!("name: {name}"));
    // Written as it stands here, past what gives all others TLS.
    config.server("watch_config: true").server(PLAIN).yaml()
}

/// Waits until the backend with this name is the one in use.
fn await_name(proxy: &Proxy, name: &str) {
    let label = format!("{{backend=\"{name}\"}}");
    await_until(name, SOON, || proxy.metrics().text.contains(&label));
}

/// Catches: a way of writing that is not seen, a file that is read half written.
#[test]
fn a_file_is_read_anew_however_it_is_replaced() {
    let a = Backend::answering(OK);
    let proxy = Proxy::start(&yaml(&a, "start"));
    let file = proxy.config_file();
    proxy.rewrite(&yaml(&a, "renamed"));
    await_name(&proxy, "renamed");
    fs::write(&file, yaml(&a, "in-place")).unwrap();
    await_name(&proxy, "in-place");
    // As some editors do it: the old one is put aside, and the file is away for a moment.
    fs::rename(&file, file.with_extension("bak")).unwrap();
    pause(Duration::from_millis(150));
    fs::write(&file, yaml(&a, "put-aside")).unwrap();
    await_name(&proxy, "put-aside");
    assert_eq!(proxy.metric("llmproxy_config_reload_failure_total", &[]), 0.0);
    fs::write(&file, "backends: {").unwrap();
    proxy.await_metric("llmproxy_config_reload_failure_total", &[], 1.0);
    await_name(&proxy, "put-aside");
    fs::remove_file(&file).unwrap();
    proxy.await_metric("llmproxy_config_reload_failure_total", &[], 2.0);
    fs::write(&file, yaml(&a, "back")).unwrap();
    await_name(&proxy, "back");
}

/// Catches: a ConfigMap that is swapped and not seen.
#[test]
fn the_swap_of_a_mounted_folder_is_seen() {
    let (a, scratch) = (Backend::answering(OK), Scratch::new());
    let folder = scratch.path().to_owned();
    let put = |version: &str| {
        let new = folder.join(version);
        fs::create_dir(&new).unwrap();
        fs::write(new.join("config.yaml"), yaml(&a, version)).unwrap();
        symlink(version, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    put("v1");
    symlink("..data/config.yaml", scratch.file("config.yaml")).unwrap();
    let path = scratch.file("config.yaml").display().to_string();
    let proxy = Proxy::start_with(&["--config", &path], scratch);
    for (new, old) in [("v2", "v1"), ("v3", "v2")] {
        put(new);
        fs::remove_dir_all(folder.join(old)).unwrap();
        await_name(&proxy, new);
    }
    assert_eq!(proxy.metric("llmproxy_config_reload_failure_total", &[]), 0.0);
}

/// Catches: a burst of writes that is as many reloads, a watch that a reload cannot turn on or off.
#[test]
fn a_burst_is_few_reloads_and_the_watch_can_be_turned_off() {
    let a = Backend::answering(OK);
    let off = |name: &str| yaml(&a, name).replace("watch_config: true", "watch_config: false");
    let proxy = Proxy::start(&off("start"));
    proxy.rewrite(&yaml(&a, "on"));
    assert!(proxy.reload());
    (0..200).for_each(|n| proxy.rewrite(&yaml(&a, &format!("n{n}"))));
    await_name(&proxy, "n199");
    let (burst, _) = proxy.reloads();
    assert!(burst < 50, "{burst} reloads");
    proxy.rewrite(&off("last"));
    await_name(&proxy, "last");
    let (before, _) = proxy.reloads();
    proxy.rewrite(&yaml(&a, "unseen"));
    // What would be seen is seen within this.
    pause(Duration::from_millis(1500));
    assert_eq!(proxy.reloads().0, before);
}

/// Catches: a start that waits for ever for a pipe that was read once already.
#[test]
fn a_pipe_is_not_watched() {
    let (a, scratch) = (Backend::answering(OK), Scratch::new());
    let pipe = scratch.file("config.yaml");
    mkfifoat(CWD, &pipe, 0o600.into()).unwrap();
    let writer = std::thread::spawn({
        let (pipe, yaml) = (pipe.clone(), yaml(&a, "a"));
        move || fs::write(pipe, yaml)
    });
    let ran = llmproxy(&["-c", pipe.to_str().unwrap()]);
    writer.join().unwrap().unwrap();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("is not a regular file"), "{ran:?}");
}
