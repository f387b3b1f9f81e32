//! Files that are no YAML, or not one document of it: each is told with what makes it right.

use super::*;

const SOUND: &str = "server:\n  workers: 2\nbackends:\n  - url: \"http://a:1\"\n";

/// What a file with these bytes is told.
fn told(bytes: &[u8]) -> Result<Loaded, String> {
    let text = cure::text_of(bytes.to_vec())?;
    load_text("t.yaml", &text, &env).map_err(|report| report.to_string())
}

#[test]
fn line_ends_and_a_byte_order_mark_of_windows_are_fine() {
    let dos = SOUND.replace('\n', "\r\n");
    let marked = format!("\u{feff}{SOUND}");
    let json = "{\r\n\t\"server\": {\"workers\": 2},\n\t\"backends\": [\n\t\t{\"url\": \"http://a:1\"}\n\t]\n}\n";
    let want = load(SOUND).plan;
    for text in [dos, marked, json.to_owned(), format!("---\n{SOUND}"), format!("{SOUND}...\n")] {
        let loaded = told(text.as_bytes()).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(loaded.plan, want, "{text:?}");
    }
}

/// Catches: a message of the parser's that leaves its reader alone.
#[test]
fn what_is_no_yaml_is_told_with_its_cure() {
    let utf16: Vec<u8> = SOUND.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, words) in [
        ([&[0xff, 0xfe], utf16.as_slice()].concat(), "UTF-16 text: save it as UTF-8"),
        (b"a: \xe9\n".to_vec(), "at byte 3: save it as UTF-8"),
        (b"a: \0\n".to_vec(), "no text file"),
        (b"server:\n\tworkers: 2\n".to_vec(), "line 2 is indented with a tab"),
        (b"backends:\n  - url: a\n  \tname: b\n".to_vec(), "line 3 is indented with a tab"),
        (b"[server]\nlisten = \":8000\"\n".to_vec(), "line 2 looks like TOML (`listen =` …)"),
        (b"listen = \":8000\"\n".to_vec(), "write `listen: …`"),
        (b"[[backends]]\nurl = 'http://a'\n".to_vec(), "looks like TOML"),
        (b"{\"backends\": [{\"url\": \"http://a\"}]\n".to_vec(), "JSON is read, too"),
        (b"{\"server\": {} // none\n, \"log\": }\n".to_vec(), "line 1 column 15"),
        (b"a: 1\n---\nb: 2\n".to_vec(), "take the `---` of line 2 away"),
        (b"---\na: 1\n---\nb: 2\n".to_vec(), "take the `---` of line 3 away"),
        (b"server: {listen: :8000}\n a: b\n".to_vec(), "t.yaml:1:18"),
        (b"log: level: info\n".to_vec(), "must stand in quotes"),
        (b"server:\n  region: @home\n".to_vec(), "needs quotes"),
        (b"server:\n  cors: {allowed_origins: [*]}\n".to_vec(), "begins with `*`"),
        (b"a: !env HOME\n".to_vec(), "begins with `!`"),
        (b"http://127.0.0.1:8001\n".to_vec(), "such as `backends:`"),
        (b"- url: a\n".to_vec(), "such as `backends:`"),
    ] {
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let error = told(&bytes).err().unwrap_or_else(|| panic!("loads: {shown}"));
        assert!(error.contains(words), "{shown:?}: {words}\n{error}");
        // The parser's own words, where better ones are known.
        for noise in ["not supported", "while scanning", "cannot start any token", "not allowed"] {
            assert!(words.is_empty() || !error.contains(noise), "{shown:?}\n{error}");
        }
    }
}
