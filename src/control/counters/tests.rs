use super::*;
use crate::state::counters::quota::{QuotaTerms, QuotaWindow};
use std::time::Instant;

fn folder(name: &str) -> PathBuf {
    let name = format!("llmproxy-counters-{name}-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    let _ = fs::remove_dir_all(&folder);
    folder
}

const TERMS: QuotaTerms = QuotaTerms { window: QuotaWindow::new(1, 3000), total: 1000, first: 0 };

/// One request of key 5 that uses, and reserves, tokens, and stays.
fn use_it(counters: &Counters) {
    let (place, is_own) = counters.find(5 << 80, TablePart::Known, counters.at(Instant::now()));
    assert!(is_own && counters.enter(place, 10));
    let quota = counters.quota(place).unwrap();
    assert!(quota.reserve(TERMS, 100));
    quota.debit(TERMS, 70, 0);
}

/// Requests in flight, tokens used, tokens reserved of key 5.
fn seen(counters: &Counters) -> (u64, u64, u64) {
    let place = counters.seek(5 << 80, TablePart::Known).unwrap();
    let quota = counters.quota(place).unwrap();
    (counters.in_flight(place), quota.used(TERMS), quota.reserved())
}

/// Catches: two processes that do not count together; one whose requests stay when it is gone, or
/// go while it lives; used tokens that are forgotten.
#[test]
fn two_processes_count_together_and_what_a_dead_one_held_is_freed() {
    let folder = folder("two");
    let (first, first_folder) = OpenFolder::open(&folder, 1024).unwrap();
    let (second, second_folder) = OpenFolder::open(&folder, 4096).unwrap();
    assert_eq!(second.table().shape().known, 1024, "it is the table of the first");
    use_it(&first);
    use_it(&second);
    assert_eq!((seen(&first), seen(&second)), ((2, 140, 200), (2, 140, 200)));
    second_folder.look(&second);
    assert_eq!(seen(&second), (2, 140, 200), "the first one lives");
    drop((first, first_folder));
    second_folder.look(&second);
    assert_eq!(seen(&second), (1, 140, 100));
    drop((second, second_folder));
    let (third, third_folder) = OpenFolder::open(&folder, 1024).unwrap();
    assert_eq!(seen(&third), (0, 140, 0));
    let others: Vec<_> = (1..COLUMNS).map(|_| OpenFolder::open(&folder, 1024).unwrap()).collect();
    assert!(OpenFolder::open(&folder, 1024).is_err(), "there are so many columns");
    drop((others, third, third_folder));
    fs::remove_dir_all(folder).unwrap();
}

/// Catches: used tokens that are lost when the table gets another size.
#[test]
fn another_size_keeps_what_was_used() {
    let folder = folder("size");
    let (counters, open) = OpenFolder::open(&folder, 1024).unwrap();
    use_it(&counters);
    drop((counters, open));
    for entries in [8192, 2048] {
        let (counters, _open) = OpenFolder::open(&folder, entries).unwrap();
        assert_eq!(counters.table().shape().known, entries);
        assert_eq!(seen(&counters), (0, 70, 0));
        assert_eq!(counters.fill().used[0], 1);
    }
    fs::remove_dir_all(folder).unwrap();
}

/// Catches: a start that fails, or uses what it finds, when the file is damaged or not ours.
#[test]
fn a_damaged_file_is_put_aside() {
    let folder = folder("damage");
    for damage in [&b"no table"[..], &[0; 4096], &[0xff; 65536], b""] {
        fs::create_dir_all(&folder).unwrap();
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600);
        io::Write::write_all(&mut file.open(folder.join(TABLE)).unwrap(), damage).unwrap();
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let (counters, open) = OpenFolder::open(&folder, 1024).unwrap();
        use_it(&counters);
        assert_eq!(fs::read(folder.join("table.damaged")).unwrap(), damage);
        drop((counters, open));
        fs::remove_dir_all(&folder).unwrap();
    }
}

/// Catches: buckets of a machine that was started again since, and whose moments mean nothing.
#[test]
fn another_start_of_the_machine_finds_full_buckets() {
    let folder = folder("boot");
    let (counters, open) = OpenFolder::open(&folder, 1024).unwrap();
    use_it(&counters);
    let place = counters.seek(5 << 80, TablePart::Known).unwrap();
    counters.bucket(place, 1).unwrap().set(u64::MAX);
    counters.table().memory().words().get(header::BOOT).unwrap().set(1);
    drop((counters, open));
    let (counters, _open) = OpenFolder::open(&folder, 1024).unwrap();
    let place = counters.seek(5 << 80, TablePart::Known).unwrap();
    assert_eq!(counters.bucket(place, 1).unwrap().value(), 0);
    assert_eq!(seen(&counters), (0, 70, 0));
    fs::remove_dir_all(folder).unwrap();
}
