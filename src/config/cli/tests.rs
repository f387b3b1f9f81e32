use super::*;

fn run(arguments: &[&str]) -> Result<Command, clap::Error> {
    let all = std::iter::once("llmproxy").chain(arguments.iter().copied());
    Cli::try_parse_from(all).map(|cli| command(cli, |_| FilesSeen::default()))
}

fn printed(arguments: &[&str]) -> Printout {
    match run(arguments).unwrap() {
        Command::Print(output) => output,
        Command::Run { .. } | Command::Usage(_) => panic!("starts: {arguments:?}"),
        other => panic!("{arguments:?}: {other:?}"),
    }
}

/// A file with this text, gone with the guard.
struct File(PathBuf);

fn file(name: &str, text: &str) -> File {
    let name = format!("llmproxy-cli-{}-{name}.yaml", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    File(path)
}

impl File {
    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn check_prints_the_plan_and_exits_by_what_it_is_worth() {
    let good = file("good", "backends: [{url: 'http://a', api_key: hunter2}]\n");
    let output = printed(&["check", "--strict", good.name()]);
    let valid = format!("{}: valid\n", good.name());
    let table = "any model  a:80 (1)\n";
    assert_eq!((output.code, output.stdout.as_str(), output.stderr), (FINE, table, valid));
    let output = printed(&["check", "--print", good.name()]);
    assert!(output.stdout.contains("url: http://a") && !output.stdout.contains("hunter2"));

    let typo = file("typo", "backends: [{url: 'http://a', wieght: 2}]\n");
    assert_eq!(printed(&["check", typo.name()]).code, FINE);
    let output = printed(&["check", "--strict", typo.name()]);
    assert_eq!(output.code, WOULD_NOT_START);
    assert!(output.stderr.contains("yaml:1:30: error: backends[0].wieght: unknown key"));

    let hooks = "hooks: {on_request: {enabled: true, script: x}}";
    let early = file(
        "early",
        &format!("backends: [{{url: 'http://a'}}]\nauth: {{storage: file}}\n{hooks}\n"),
    );
    let output = printed(&["check", "--print", early.name()]);
    assert_eq!(output.code, WOULD_NOT_START);
    assert!(output.stderr.contains(".yaml: valid, with 1 warning, but it would not start\n"));
    assert!(output
        .stderr
        .contains("cannot start: hooks: scripts at points of a request: not built yet"));
    assert!(output.stdout.contains("pipeline:"), "the plan is printed all the same");

    let empty = file("empty", "# nothing\n");
    let output = printed(&["check", empty.name()]);
    assert_eq!(output.code, WOULD_NOT_START);
    assert!(output.stderr.contains("cannot start: no backends"), "{}", output.stderr);
    assert_eq!(printed(&["check", "--strict", "--allow-empty", empty.name()]).code, FINE);

    let bad = file("bad", "backends: [{url: a}]\n");
    let output = printed(&["check", bad.name()]);
    assert!(output.stderr.starts_with(&format!("{}: not valid: 1 error\n", bad.name())));
    assert_eq!((output.code, output.stdout.as_str()), (UNUSABLE, ""));
    assert_eq!(printed(&["check", "/nonexistent.yaml"]).code, UNUSABLE);
}

/// Catches: a check that does not say from whom certificates would be asked, and for which names.
#[test]
fn check_says_which_certificates_would_be_fetched() {
    let acme = "{domains: [A.example, b.example], directory: letsencrypt-staging}";
    let text = format!("server: {{tls: {{enabled: true, acme: {acme}}}}}\n");
    let file = file("acme", &(text + "backends: [{url: 'http://a'}]\n"));
    let output = printed(&["check", file.name()]);
    let line = "certificates of a.example, b.example from \
                https://acme-staging-v02.api.letsencrypt.org/directory, kept in ./data/acme\n";
    assert!(output.stdout.ends_with(line), "{}", output.stdout);
}

#[test]
fn a_start_refuses_what_check_refuses() {
    let good = file("start", "backends: [{url: 'http://a', wieght: 2}]\n");
    let Ok(Command::Run { loaded, .. }) = run(&["--config", good.name()]) else { panic!() };
    let Loaded { plan, report } = *loaded;
    assert_eq!((plan.backends.len(), report.findings.len()), (1, 1));
    assert_eq!(printed(&["--strict", "--config", good.name()]).code, WOULD_NOT_START);
    let early = file(
        "unbuilt",
        "backends: [{url: 'http://a'}]\nhooks: {on_request: {enabled: true, script: 'return {}'}}\n",
    );
    let output = printed(&["--config", early.name()]);
    assert_eq!(output.code, WOULD_NOT_START);
    assert!(output.stderr.contains("cannot start: hooks"));
    assert_eq!(printed(&["--config", "/nonexistent.yaml"]).code, UNUSABLE);
}

/// Catches: an empty file, or one whose list has been commented out, that starts and answers 503.
#[test]
fn nothing_to_forward_to_does_not_start_unasked() {
    for text in ["", "backends: []\n", "backends:\n#  - url: http://a\n"] {
        let empty = file("none", text);
        let output = printed(&["--config", empty.name()]);
        assert_eq!(output.code, WOULD_NOT_START);
        assert!(output.stderr.contains("--allow-empty"), "{}", output.stderr);
        let started = run(&["--allow-empty", "--strict", "--config", empty.name()]);
        assert!(matches!(started, Ok(Command::Run { .. })), "{text}");
    }
}

/// Catches: a warning of any kind that `--strict` lets pass.
#[test]
fn strict_means_every_warning() {
    let text = "backends: [{url: 'http://a', connect_timeout: 2000}]\n";
    let doubtful = file("doubtful", text);
    assert_eq!(printed(&["check", doubtful.name()]).code, FINE);
    for arguments in [["check", "--strict", doubtful.name()], ["--strict", "-c", doubtful.name()]] {
        let output = printed(&arguments);
        assert_eq!(output.code, WOULD_NOT_START);
        let told = "1:47: error: backends[0].connect_timeout: `2000` has no unit";
        assert!(output.stderr.contains(told), "{}", output.stderr);
        assert!(output.stderr.contains("cannot start: --strict: 1 warning\n"));
    }
}

#[test]
fn backends_on_the_command_line_need_no_file() {
    let arguments = ["--backend", "http://a:1", "--backend", "unix:/x", "--listen", ":9"];
    let Ok(Command::Run { loaded, .. }) = run(&arguments) else { panic!() };
    let plan = loaded.plan;
    let names: Vec<_> = plan.backends.iter().map(|b| b.name.as_str()).collect();
    assert_eq!((names, plan.server.listen[0].port()), (vec!["a:1", "unix:/x"], 9));
    let output = printed(&["--backend", "a"]);
    assert_eq!(output.code, UNUSABLE);
    assert!(output.stderr.contains("backends[0].url"), "{}", output.stderr);
}

#[test]
fn a_wrong_command_line_is_refused() {
    for wrong in [
        &["--backend", "http://a", "--config", "x"][..],
        &["--listen", ":1"],
        &["--bogus"],
        &["check", "a", "b"],
        &["--config", "x", "check"],
    ] {
        assert_eq!(run(wrong).err().map(|e| e.exit_code()), Some(2), "{wrong:?}");
    }
}

/// Catches: a wrong folder, and a replay that does not say of what.
#[test]
fn a_spool_is_named_by_its_folder_or_a_file() {
    let text = "backends: [{url: 'http://a'}]\nusage: {spool: {dir: /x/y}}\n";
    let good = file("spool", text);
    let Ok(Command::Spool { dir, task }) = run(&["spool", "inspect", "-c", good.name()]) else {
        panic!()
    };
    assert_eq!((dir, task), ("/x/y".into(), SpoolTask::Inspect { json: false }));
    let all = ["spool", "--dir", "/z", "export", "--since", "1970-01-02", "--to", "7"];
    let Ok(Command::Spool { dir, task }) = run(&all) else { panic!() };
    let span = SpoolSpan { from: Some(Start::Since(86_400_000)), to: Some(7) };
    assert_eq!((dir, task), ("/z".into(), SpoolTask::Export(span)));
    for wrong in [&["replay"][..], &["replay", "--reporter", "a"], &["export", "--since", "x"]] {
        let all = [&["spool", "--dir", "/z"], wrong].concat();
        assert_eq!(run(&all).err().map(|e| e.exit_code()), Some(2), "{wrong:?}");
    }
    assert_eq!(printed(&["spool", "inspect", "-c", "/nonexistent.yaml"]).code, UNUSABLE);
}

/// Catches: the two files taken for each other, an old one that is broken and passes.
#[test]
fn check_tells_what_a_reload_would_change() {
    let old = file("against-old", "backends: [{name: a, url: 'http://a'}]\n");
    let new = file("against-new", "backends: [{name: a, url: 'http://a', weight: 2}]\n");
    let output = printed(&["check", "--against", old.name(), new.name()]);
    assert_eq!(output.code, FINE);
    assert_eq!(output.stdout, "backends[a].weight: 1 -> 2\na reload applies all of it\n");
    let same = printed(&["check", new.name(), "--against", new.name()]);
    assert_eq!(same.stdout, "a reload would change nothing\n");
    let moved = file("against-moved", "server: {listen: ':1'}\nbackends: [{url: 'http://a'}]\n");
    let output = printed(&["check", "--against", old.name(), moved.name()]);
    assert!(output.stdout.contains("server.listen: [::]:8000 -> [::]:1 (needs a restart)\n"));
    assert!(output.stdout.ends_with("all but the 1 key that a restart is needed for\n"));
    let broken = file("against-broken", "backends: {}\n");
    for order in [[broken.name(), new.name()], [new.name(), broken.name()]] {
        let output = printed(&["check", "--against", order[0], order[1]]);
        assert_eq!((output.code, output.stdout.as_str()), (UNUSABLE, ""), "{order:?}");
    }
    let both = ["check", "--print", "--against", old.name(), new.name()];
    assert_eq!(run(&both).err().map(|e| e.exit_code()), Some(2));
}

/// Catches: a process that is taken for one that serves, options that a reload forgets.
#[test]
fn a_command_line_says_what_a_process_serves_with() {
    let of = |arguments: &[&str]| {
        let all = std::iter::once("/usr/bin/llmproxy").chain(arguments.iter().copied());
        origin_of(all.map(OsString::from))
    };
    let terms = Terms { strict: true, allow_empty: true };
    let file = |name: &str| ConfigSource::File(name.into());
    let wanted = Some(Origin { source: file("x.yaml"), terms });
    assert_eq!(of(&["--strict", "--allow-empty", "-c", "x.yaml"]), wanted);
    assert_eq!(of(&[]).unwrap().source, file("config.yaml"));
    assert_eq!(of(&["--backend", "http://a"]).unwrap().file(), None);
    for other in [&["check"][..], &["spool", "inspect"], &["--help"], &["--nonsense"]] {
        assert_eq!(of(other), None, "{other:?}");
    }
    for (arguments, pid, config) in [
        (&["reload"][..], None, None),
        (&["reload", "--pid", "7"], Some(7), None),
        (&["reload", "--pid", "7", "-c", "x"], Some(7), Some(PathBuf::from("x"))),
    ] {
        let Command::Reload(ask) = run(arguments).unwrap() else { panic!() };
        assert_eq!(ask, ReloadAsk { pid, config });
    }
    assert_eq!(run(&["reload", "--pid", "0"]).err().map(|e| e.exit_code()), Some(2));
}
