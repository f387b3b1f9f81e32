use super::*;
use crate::base::id::RequestId;
use crate::config::plan::RecordFormat;
use crate::usage::record::{tests::record, UsageRecord};

/// A folder that goes away with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let name = format!("llmproxy-file-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        Scratch(path)
    }

    /// One folder deeper than what is there.
    fn file(&self) -> PathBuf {
        self.0.join("deep").join("usage.jsonl")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn reporter(path: PathBuf, max_size: u64, max_files: u32) -> LinesFile {
    let format = RecordFormat::Full;
    LinesFile::new(plan::FileReporter { path, max_size, max_age: None, max_files, format })
}

fn with_id(id: &str) -> UsageRecord {
    UsageRecord { request_id: RequestId::from_client(id.as_bytes()).unwrap(), ..record() }
}

fn send(file: &mut LinesFile, ids: &[&str]) -> Tried {
    let records: Vec<UsageRecord> = ids.iter().map(|id| with_id(id)).collect();
    file.send(
        &records.iter().map(UsageRecord::borrowed).collect::<Vec<_>>(),
        Duration::from_secs(1),
    )
}

/// The ids in the lines that are JSON; of others the line.
fn ids(path: &Path) -> Vec<String> {
    let id = |line: &str| match serde_json::from_str::<serde_json::Value>(line) {
        Ok(json) => json["request_id"].as_str().unwrap().to_owned(),
        Err(_) => line.to_owned(),
    };
    fs::read_to_string(path).unwrap().lines().map(id).collect()
}

/// Catches: lines of two writes in one, a file that others can read, one that is begun anew.
#[test]
fn records_are_lines_that_a_restart_goes_on_with() {
    let scratch = Scratch::new("lines");
    assert_eq!(send(&mut reporter(scratch.file(), 1 << 20, 0), &["a", "b"]), Tried::Delivered);
    assert_eq!(send(&mut reporter(scratch.file(), 1 << 20, 0), &["c"]), Tried::Delivered);
    assert_eq!(ids(&scratch.file()), ["a", "b", "c"]);
    assert_eq!(fs::metadata(scratch.file()).unwrap().mode() & 0o777, MODE);
}

/// Catches: half a line of a killed process that swallows the record behind it.
#[test]
fn a_torn_line_gets_its_end() {
    let scratch = Scratch::new("torn");
    fs::create_dir_all(scratch.file().parent().unwrap()).unwrap();
    fs::write(scratch.file(), "{\"request_id\":\"a\"}\n{\"requ").unwrap();
    let mut file = reporter(scratch.file(), 1 << 20, 0);
    assert_eq!(send(&mut file, &["b"]), Tried::Delivered);
    assert_eq!(send(&mut file, &["c"]), Tried::Delivered);
    assert_eq!(ids(&scratch.file()), ["a", "{\"requ", "b", "c"]);
}

/// Catches: a file beyond its size, rotated files that are lost or too many, foreign files removed.
#[test]
fn a_full_file_is_moved_and_the_oldest_go() {
    let scratch = Scratch::new("size");
    let line = with_id("a").to_json(RecordFormat::Full).len() as u64 + 1;
    let mut file = reporter(scratch.file(), 2 * line, 2);
    for id in ["a", "b", "c", "d", "e", "f", "g"] {
        assert_eq!(send(&mut file, &[id]), Tried::Delivered);
    }
    for foreign in ["usage.jsonl.gz", "usage.jsonl.2026-01-01", "other.2026-01-01T00-00-00.000Z"] {
        fs::write(scratch.file().with_file_name(foreign), "x").unwrap();
    }
    let mut old = rotated(&scratch.file()).unwrap();
    old.sort();
    let old: Vec<_> = old.iter().map(|path| ids(path)).collect();
    assert_eq!(old, [["c", "d"], ["e", "f"]]);
    assert_eq!(ids(&scratch.file()), ["g"]);
    assert_eq!(send(&mut file, &["h", "i", "j"]), Tried::Delivered, "a batch larger than a file");
    assert_eq!(ids(&scratch.file()), ["h", "i", "j"]);
    assert_eq!(rotated(&scratch.file()).unwrap().len(), 2);
    assert_eq!(fs::read_dir(scratch.file().parent().unwrap()).unwrap().count(), 6);
}

/// Catches: names of one millisecond that overwrite each other.
#[test]
fn files_of_one_moment_have_names_of_their_own() {
    let path = Path::new("/x/usage.jsonl");
    let time = "2026-11-21T12-00-00.123Z";
    let names: Vec<String> = (0..3).map(|n| beside(path, time, n).display().to_string()).collect();
    assert_eq!(names[0], "/x/usage.jsonl.2026-11-21T12-00-00.123Z");
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    assert!(is_time(time) && is_time(&format!("{time}-001")));
    for other in ["", "gz", "2026-11-21T12-00-00.123Z.gz", "2026-11-21T12:00:00.123Z"] {
        assert!(!is_time(other), "{other}");
    }
}

/// Catches: an old file that is written for ever.
#[test]
fn an_old_file_is_moved() {
    let scratch = Scratch::new("age");
    let mut file = reporter(scratch.file(), 1 << 20, 0);
    file.plan.max_age = Some(Duration::from_secs(3600));
    assert_eq!(send(&mut file, &["a"]), Tried::Delivered);
    assert_eq!(send(&mut file, &["b"]), Tried::Delivered);
    file.open.as_mut().unwrap().age = Duration::from_secs(3600);
    assert_eq!(send(&mut file, &["c"]), Tried::Delivered);
    assert_eq!(send(&mut file, &["d"]), Tried::Delivered);
    assert_eq!(ids(&scratch.file()), ["c", "d"]);
    assert_eq!(ids(&rotated(&scratch.file()).unwrap()[0]), ["a", "b"]);
}

/// Catches: records that follow a file which a log rotator took away, or cut.
#[test]
fn a_file_that_was_moved_or_cut_is_followed() {
    let scratch = Scratch::new("moved");
    let mut file = reporter(scratch.file(), 1 << 20, 0);
    assert_eq!(send(&mut file, &["a"]), Tried::Delivered);
    let moved = scratch.file().with_extension("1");
    fs::rename(scratch.file(), &moved).unwrap();
    assert_eq!(send(&mut file, &["b"]), Tried::Delivered);
    assert_eq!((ids(&moved), ids(&scratch.file())), (vec!["a".into()], vec!["b".into()]));
    File::options().write(true).open(scratch.file()).unwrap().set_len(0).unwrap();
    assert_eq!(send(&mut file, &["c"]), Tried::Delivered);
    assert_eq!(ids(&scratch.file()), ["c"]);
}

/// Catches: a full disk that counts as the fault of a record.
#[test]
fn a_full_disk_may_have_room_later() {
    let mut file = reporter("/dev/full".into(), 1 << 20, 0);
    for _ in 0..2 {
        assert_eq!(
            send(&mut file, &["a"]),
            Tried::Again("No space left on device (os error 28)".into())
        );
    }
    let scratch = Scratch::new("rights");
    fs::write(&scratch.0, "a file where a folder should be").unwrap();
    let tried = send(&mut reporter(scratch.file(), 1 << 20, 0), &["a"]);
    assert!(matches!(tried, Tried::Again(_)), "{tried:?}");
    fs::remove_file(&scratch.0).unwrap();
}

/// Catches: a line that is written behind one that another process was killed in, and lost with it;
/// a file in which two write at a time, so that one cuts off what the other has written.
#[test]
fn a_file_of_several_processes_has_one_writer_at_a_time() {
    let scratch = Scratch::new("several");
    let mut ours = reporter(scratch.file(), 1 << 20, 0);
    assert_eq!(send(&mut ours, &["a"]), Tried::Delivered);
    let mut other = File::options().append(true).open(scratch.file()).unwrap();
    other.write_all(b"{\"request_id\":\"torn").unwrap();
    assert_eq!(send(&mut ours, &["b"]), Tried::Delivered);
    assert_eq!(ids(&scratch.file()), ["a", "{\"request_id\":\"torn", "b"]);
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    let record = with_id("c");
    let tried = ours.send(&[record.borrowed()], Duration::from_millis(20));
    assert!(matches!(tried, Tried::Again(_)), "{tried:?}");
    drop(other);
    assert_eq!(send(&mut ours, &["c"]), Tried::Delivered);
    // It is free between two batches.
    let mut second = reporter(scratch.file(), 1 << 20, 0);
    assert_eq!(send(&mut second, &["d"]), Tried::Delivered);
    assert_eq!(send(&mut ours, &["e"]), Tried::Delivered);
    let all = ids(&scratch.file());
    assert_eq!(all[2..], ["b", "c", "d", "e"]);
}

/// Catches: two processes that rotate one file, of which one moves away what the other has begun,
/// or writes into what was moved.
#[test]
fn a_file_of_several_processes_is_rotated_once() {
    let scratch = Scratch::new("rotated-together");
    let line = with_id("0-00").borrowed().to_line(RecordFormat::Full).len() as u64;
    let write = |process: usize| {
        let path = scratch.file();
        std::thread::spawn(move || {
            let mut file = reporter(path, 3 * line, 0);
            for n in 0..40 {
                let id = format!("{process}-{n:02}");
                assert_eq!(send(&mut file, &[&id]), Tried::Delivered);
            }
        })
    };
    let threads: Vec<_> = (0..3).map(write).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut files = rotated(&scratch.file()).unwrap();
    assert_eq!(files.len(), 39, "each but the last is full");
    files.push(scratch.file());
    let mut all: Vec<String> = files.iter().flat_map(|file| ids(file)).collect();
    all.sort();
    let wanted: Vec<String> =
        (0..3).flat_map(|process| (0..40).map(move |n| format!("{process}-{n:02}"))).collect();
    assert_eq!(all, wanted);
}

/// Catches: a lane that looks for ever for a file that somebody replaces again and again, and a
/// record that counts as written into what is not there any more.
#[test]
fn a_file_that_is_another_at_each_look_is_tried_later() {
    let scratch = Scratch::new("replaced");
    let mut file = reporter(scratch.file(), 1 << 20, 0);
    assert_eq!(send(&mut file, &["a"]), Tried::Delivered);
    let (path, new) = (scratch.file(), scratch.file().with_extension("new"));
    let patience = Instant::now() + Duration::from_secs(20);
    file.before_look = Some(Box::new(move || {
        assert!(Instant::now() < patience, "the time of a try is over, and it looks on");
        fs::write(&new, "").unwrap();
        fs::rename(&new, &path).unwrap();
    }));
    let record = with_id("b");
    let tried = file.send(&[record.borrowed()], Duration::from_millis(20));
    assert_eq!(tried, Tried::Again("another file stands there at each look".into()));
    file.before_look = None;
    assert_eq!(send(&mut file, &["b"]), Tried::Delivered);
    assert_eq!(ids(&scratch.file()), ["b"]);
}
