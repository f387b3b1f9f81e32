//! What is most likely wrong with a file that is no YAML, and what makes it right: tabs, other
//! formats, several documents, values that need quotes.

use super::value::quoted;

/// The text of a file, or why it is none, with the cure. A mark of the byte order (an editor's) is
/// passed over.
pub fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("is UTF-16 text: save it as UTF-8".into());
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        format!("is not UTF-8 text, at byte {}: save it as UTF-8", e.utf8_error().valid_up_to())
    })?;
    if text.contains('\0') {
        return Err("holds zero bytes: it is no text file".into());
    }
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The sentence that names the cure, when the text looks like a mistake that many make. `message`
/// is the parser's.
pub fn of(text: &str, message: &str) -> Option<String> {
    if let Some((line, key)) = assignment(text) {
        return Some(format!(
            "line {line} looks like TOML ({} …), and this must be YAML: write `{key}: …`, and \
             `name:` with indented lines below it in place of `[name]`",
            quoted(format!("{key} ="))
        ));
    }
    if message.contains("more than one document") {
        // The first may begin with a mark of its own.
        let marks = text.lines().enumerate().filter(|(i, line)| *i > 0 && line.starts_with("---"));
        let line = marks.last().map_or(1, |(i, _)| i + 1);
        return Some(format!(
            "the file holds several documents: put all into one and take the `---` of line {line} \
             away"
        ));
    }
    if text.trim_start().starts_with('{') {
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
            return Some(format!("JSON is read, too, when it is valid, and this is not: {error}"));
        }
    }
    if let Some(line) = tab_indented(text) {
        return Some(format!(
            "line {line} is indented with a tab, and YAML takes blanks only: \
             `expand -i -t 2 FILE > NEW` writes a file that has them"
        ));
    }
    let known = [
        (
            "mapping values are not allowed",
            "a value with `: ` in it must stand in quotes, and the keys of one section must begin \
             in the same column",
        ),
        ("cannot start any token", "a value that begins with `@`, `%` or a backquote needs quotes"),
        ("while scanning an alias", "a value that begins with `*` must stand in quotes"),
        ("while scanning an anchor", "a value that begins with `&` must stand in quotes"),
        ("value without a tag", "a value that begins with `!` must stand in quotes"),
        ("must be a section", "a file is made of lines such as `backends:` and `  - url: …`"),
    ];
    let cure = known.iter().find(|(part, _)| message.contains(part));
    cure.map(|(_, cure)| (*cure).to_owned())
}

/// The number and the key of the first line, when it says `key = value`. Headings of TOML, comments
/// and empty lines before it are passed over; a later line may be one of a script.
fn assignment(text: &str) -> Option<(usize, &str)> {
    let is_heading = |line: &str| line.starts_with('[') && line.ends_with(']');
    let (line, number) = text
        .lines()
        .map(str::trim)
        .zip(1..)
        .find(|(line, _)| !line.is_empty() && !line.starts_with('#') && !is_heading(line))?;
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!key.is_empty() && key.chars().all(fine)).then_some((number, key))
}

fn tab_indented(text: &str) -> Option<usize> {
    let is_tabbed = |line: &str| line.trim_start_matches(' ').starts_with('\t');
    text.lines().position(is_tabbed).map(|index| index + 1)
}
