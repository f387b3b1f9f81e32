use super::*;
use crossbeam_channel::{unbounded, Receiver};
use std::os::unix::fs::symlink;

const SOON: Duration = Duration::from_secs(30);

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let name = format!("llmproxy-watch-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn watching(file: &Path) -> (ConfigWatch, Receiver<Option<String>>) {
    let (told, heard) = unbounded();
    let path = file.to_owned();
    let watch = start(file, move || drop(told.send(fs::read_to_string(&path).ok())));
    (watch.unwrap(), heard)
}

/// Waits until it was told of a file with this text.
fn await_text(heard: &Receiver<Option<String>>, text: Option<&str>) {
    let deadline = Instant::now() + SOON;
    while heard.recv_deadline(deadline).unwrap_or_else(|_| panic!("{text:?}")).as_deref() != text {}
}

/// Catches: an editor's way of writing that is not heard of.
#[test]
fn each_way_to_replace_a_file_is_heard_of() {
    let folder = Folder::new("ways");
    let file = folder.write("config.yaml", "0");
    let (_watch, heard) = watching(&file);
    folder.write("config.yaml", "in place");
    await_text(&heard, Some("in place"));
    fs::rename(folder.write("config.yaml.new", "renamed"), &file).unwrap();
    await_text(&heard, Some("renamed"));
    // The one that came by renaming is the one that is watched now.
    folder.write("config.yaml", "again");
    await_text(&heard, Some("again"));
    fs::remove_file(&file).unwrap();
    await_text(&heard, None);
    folder.write("config.yaml", "back");
    await_text(&heard, Some("back"));
}

/// Catches: a mounted ConfigMap whose swap is not heard of, because no file in the folder changes.
#[test]
fn the_swap_of_a_link_above_is_heard_of() {
    let folder = Folder::new("links");
    folder.write("map/..1/config.yaml", "1");
    folder.write("map/..2/config.yaml", "2");
    folder.write("map/..3/config.yaml", "3");
    let map = folder.0.join("map");
    symlink("..1", map.join("..data")).unwrap();
    symlink("..data/config.yaml", map.join("config.yaml")).unwrap();
    symlink(map.join("config.yaml"), folder.0.join("outside.yaml")).unwrap();
    let (_watch, heard) = watching(&folder.0.join("outside.yaml"));
    for now in ["2", "3"] {
        symlink(format!("..{now}"), map.join("..data_tmp")).unwrap();
        fs::rename(map.join("..data_tmp"), map.join("..data")).unwrap();
        await_text(&heard, Some(now));
    }
    fs::remove_file(folder.0.join("outside.yaml")).unwrap();
    symlink("map/..1/config.yaml", folder.0.join("outside.yaml")).unwrap();
    await_text(&heard, Some("1"));
}

/// Catches: a reload for whatever happens beside the file, a watch that outlives its owner.
#[test]
fn what_happens_beside_the_file_is_not_told() {
    let folder = Folder::new("beside");
    let file = folder.write("config.yaml", "0");
    let (watch, heard) = watching(&file);
    (0..50).for_each(|n| drop(folder.write(&format!("log-{}", n % 3), "x")));
    folder.write("config.yaml", "1");
    let first = heard.recv_timeout(SOON).unwrap();
    assert_eq!(first.as_deref(), Some("1"), "the neighbours are no news");
    drop(watch);
    // The thread ends, and with it the sender.
    assert!(heard.recv_timeout(SOON).is_err_and(|e| !e.is_timeout()));
}

/// Catches: of several files one that nobody watches, and a word for each of those that change
/// together.
#[test]
fn several_files_are_watched_together() {
    let folder = Folder::new("several");
    let files = ["a/1.pem", "b/2.pem"].map(|name| folder.write(name, "0")).to_vec();
    let (told, heard) = unbounded();
    let texts = {
        let files = files.clone();
        move || files.iter().map(|file| fs::read_to_string(file).unwrap()).collect::<String>()
    };
    let _watch = start_all(files, move || drop(told.send(Some(texts())))).unwrap();
    folder.write("b/2.pem", "1");
    await_text(&heard, Some("01"));
    folder.write("a/1.pem", "2");
    await_text(&heard, Some("21"));
}

#[test]
fn the_folders_on_the_way_are_those_with_links() {
    let folder = Folder::new("folders");
    folder.write("a/b/real.yaml", "");
    symlink("a/b", folder.0.join("link")).unwrap();
    let root = fs::canonicalize(&folder.0).unwrap();
    let found = |path: &str| {
        let all = folders(&root.join(path));
        let names = all.iter().map(|it| it.strip_prefix(&root).unwrap().display().to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(found("a/b/real.yaml"), ["a/b"]);
    assert_eq!(found("link/real.yaml"), ["", "a/b"]);
    assert_eq!(found("link/../c.yaml"), ["", "a/b/.."]);
    assert_eq!(found("a/missing/x.yaml"), ["a"]);
    symlink("loop", folder.0.join("loop")).unwrap();
    assert_eq!(found("loop")[0], "");
    assert_eq!(folders(Path::new("x.yaml")), [Path::new(".")]);
}
