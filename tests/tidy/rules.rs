//! The rules that look at one file. Each takes a file and gives the faults it found, as
//! `path:line: what is wrong`.

use super::source::Source;

/// Lines of a file. A file of more is two ideas.
pub const FILE_LINES_MAX: usize = 600;
/// Lines of a file from which on it is named in the test's output.
pub const FILE_LINES_AIM: usize = 400;
/// Characters of a line.
pub const LINE_CHARS_MAX: usize = 100;

/// A word that must not stand in some rooms.
struct Ban {
    /// The words; whole words only.
    words: &'static [&'static str],
    /// Where it holds: path prefixes.
    within: &'static [&'static str],
    /// Where it does not hold after all: path prefixes.
    except: &'static [&'static str],
    /// Tests may use it.
    tests_may: bool,
    why: &'static str,
}

const EVERYWHERE: &[&str] = &["src/", "loadtest/", "bench/", "fuzz/", "tests/"];

const BANS: &[Ban] = &[
    Ban {
        words: &["todo!", "unimplemented!", "dbg!"],
        within: EVERYWHERE,
        except: &[],
        tests_may: false,
        why: "unfinished work is not committed",
    },
    Ban {
        words: &["#[ignore"],
        within: EVERYWHERE,
        except: &[],
        tests_may: false,
        why: "a test that does not run proves nothing",
    },
    Ban {
        words: &["println!", "eprintln!", "print!", "eprint!"],
        within: &["src/"],
        except: &["src/main.rs", "src/cli"],
        tests_may: true,
        why: "events go through tracing; only the command line prints",
    },
    Ban {
        words: &["unsafe", "allow(unsafe_code", "expect(unsafe_code"],
        within: EVERYWHERE,
        except: &[
            "src/rt/sys/",
            "loadtest/src/sys.rs",
            "bench/floor/ring.rs",
            "bench/tests/counting/mod.rs",
        ],
        tests_may: false,
        why: "all unsafe code of the product is in src/rt/sys, of the tools in one file each",
    },
    Ban {
        words: &[".unwrap()", ".expect(\""],
        within: &["src/"],
        except: &[],
        tests_may: true,
        why: "what arrived by network or file must not panic: say what happens instead",
    },
    Ban {
        words: &["SystemTime"],
        within: &["src/"],
        except: &["src/base/clock.rs"],
        tests_may: true,
        why: "wall-clock time is read in base::clock",
    },
    Ban {
        words: &["Instant::now", "SystemTime", "unix_ms"],
        within: &["src/http/", "src/llm/"],
        except: &[],
        tests_may: true,
        why: "a pure room has no clock: take `now` as an argument",
    },
    Ban {
        words: &["thread::sleep", "fs::", "std::fs", "Mutex", "RwLock", "Condvar", "ureq"],
        within: &["src/proxy/"],
        except: &[],
        tests_may: true,
        why: "a worker never blocks: its other requests would wait too",
    },
    Ban {
        words: &["monoio", "io_uring"],
        within: &["src/"],
        except: &["src/rt/"],
        tests_may: true,
        why: "the ring is used through rt only",
    },
];

/// Words that some rooms must not contain.
pub fn banned_words(source: &Source) -> Vec<String> {
    let starts = |list: &[&str]| list.iter().any(|p| source.path.starts_with(p));
    let mut faults = Vec::new();
    for ban in BANS.iter().filter(|ban| starts(ban.within) && !starts(ban.except)) {
        let form = if ban.tests_may { &source.product } else { &source.code };
        for word in ban.words {
            for line in Source::lines_with(form, word) {
                faults.push(format!("{}:{line}: `{word}`: {}", source.path, ban.why));
            }
        }
    }
    faults
}

/// Files and lines that are too long. The inside of a string does not count: bytes of a protocol
/// stay as they are.
pub fn size(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    let mut faults = Vec::new();
    if lines > FILE_LINES_MAX {
        faults.push(format!("{}:1: {lines} lines, at most {FILE_LINES_MAX}", source.path));
    }
    for (i, line) in source.width.lines().enumerate() {
        let chars = line.trim_end().chars().count();
        // An address cannot be broken.
        if chars > LINE_CHARS_MAX && !line.contains("://") {
            faults.push(format!(
                "{}:{}: {chars} characters, at most {LINE_CHARS_MAX}",
                source.path,
                i + 1
            ));
        }
    }
    faults
}

/// The first sentences of a room say what a line in it may do.
pub fn room_header(source: &Source) -> Vec<String> {
    let is_tests = source.path.ends_with("/tests/mod.rs");
    if !source.path.starts_with("src/") || !source.path.ends_with("/mod.rs") || is_tests {
        return Vec::new();
    }
    let header: Vec<&str> = source.text.lines().take_while(|l| l.starts_with("//!")).collect();
    let header = header.join(" ").to_lowercase();
    let missing: Vec<&str> = ["*takes", "gives", "*runs on", "*may", "*never"]
        .into_iter()
        .filter(|word| !header.contains(word))
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    vec![format!("{}:1: the room's header lacks {}", source.path, missing.join(" "))]
}

/// The compiler itself keeps `unsafe` out.
pub fn unsafe_is_denied(source: &Source) -> Vec<String> {
    let is_root = source.path == "src/lib.rs" || source.path == "src/main.rs";
    let denied = ["#![deny(unsafe_code)]", "#![forbid(unsafe_code)]"]
        .iter()
        .any(|attribute| source.code.contains(attribute));
    if !is_root || denied {
        return Vec::new();
    }
    vec![format!("{}:1: `#![deny(unsafe_code)]` or `forbid` is missing", source.path)]
}

/// Any text file: no path of the machine on which it was written.
pub fn machine_paths(path: &str, text: &str) -> Vec<String> {
    // Put together here, so that this file does not accuse itself.
    let roots = ["work", "farm", "root", "tmp/wt"].map(|name| format!("/{name}/"));
    let mut faults = Vec::new();
    for (i, line) in text.lines().enumerate() {
        for root in roots.iter().filter(|root| line.contains(root.as_str())) {
            faults.push(format!("{path}:{}: a path of one machine: {root}", i + 1));
        }
    }
    faults
}
