//! Reading Rust source just well enough: comments, strings and test code are told apart from the
//! product's code, and `crate::…` / `super::…` paths are resolved to rooms.

/// One file, in the forms that the rules look at. All forms have the same line numbers.
pub struct Source {
    /// Path from the repository root, with `/`.
    pub path: String,
    /// The file as it is.
    pub text: String,
    /// Comments and the insides of strings replaced by blanks.
    pub code: String,
    /// `code` without what is compiled for tests only.
    pub product: String,
    /// The file without the insides of strings: how wide a line would be for a reader.
    pub width: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let (code, width) = split_literals(text);
        let is_test_file = path.ends_with("/tests.rs") || path.contains("/tests/");
        let product = if is_test_file { blank(&code) } else { without_test_items(&code) };
        Source { path: path.to_owned(), text: text.to_owned(), code, product, width }
    }

    /// Module path of a file under `src/`: `src/a/b.rs` and `src/a/b/mod.rs` are `[a, b]`; the
    /// roots `lib.rs` and `main.rs` are `[lib]` and `[main]`.
    pub fn module(&self) -> Option<Vec<&str>> {
        let inner = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        Some(inner.strip_suffix("/mod").unwrap_or(inner).split('/').collect())
    }

    /// Every path of our own that the product's code of this file names: (line, segments from the
    /// crate root). A glob ends in `*`.
    pub fn own_paths(&self) -> Vec<(usize, Vec<String>)> {
        let module = self.module().unwrap_or_default();
        let code: Vec<char> = self.product.chars().collect();
        let mut found = Vec::new();
        let mut at = 0;
        while at < code.len() {
            let Some(word) = word_at(&code, at) else {
                at += 1;
                continue;
            };
            let after = at + word.chars().count();
            let root: Option<Vec<String>> = match word.as_str() {
                // A nested `super` was already resolved from the head of its path.
                _ if preceded_by(&code, at, "super::") => None,
                "crate" | "llmproxy" => Some(Vec::new()),
                "super" => {
                    let up = module.len().saturating_sub(1);
                    Some(module.iter().take(up).map(|s| (*s).to_owned()).collect())
                }
                _ => None,
            };
            if let (Some(root), true) = (root, followed_by(&code, after, "::")) {
                let line = 1 + code.iter().take(at).filter(|c| **c == '\n').count();
                let mut paths = Vec::new();
                read_tree(&code, after + 2, root, &mut paths);
                found.extend(paths.into_iter().map(|path| (line, path)));
            }
            at = after;
        }
        found
    }

    /// Lines on which `token` stands in `form` as whole words.
    pub fn lines_with(form: &str, token: &str) -> Vec<usize> {
        let wordy = |c: char| c.is_alphanumeric() || c == '_';
        let hit = |line: &str| {
            line.match_indices(token).any(|(at, _)| {
                let (before, from) = line.split_at(at);
                let before = before.chars().next_back();
                let after = from.chars().nth(token.chars().count());
                let cut = |edge: Option<char>, side: Option<char>| {
                    edge.is_some_and(wordy) && side.is_some_and(wordy)
                };
                !cut(token.chars().next(), before) && !cut(token.chars().next_back(), after)
            })
        };
        form.lines().enumerate().filter(|(_, l)| hit(l)).map(|(i, _)| i + 1).collect()
    }
}

/// Reads the tree after `crate::`: `a::b`, `a::{b, c::d}`, `*`, in a `use` or in an expression.
/// Returns the position behind it.
fn read_tree(code: &[char], from: usize, prefix: Vec<String>, out: &mut Vec<Vec<String>>) -> usize {
    let mut at = skip_blanks(code, from);
    match code.get(at) {
        Some('{') => loop {
            at = skip_blanks(code, at + 1);
            if code.get(at) != Some(&'}') {
                at = skip_blanks(code, read_tree(code, at, prefix.clone(), out));
            }
            match code.get(at) {
                Some(',') => {}
                Some('}') => return at + 1,
                // `as name` and whatever else may follow an entry.
                Some(_) => {
                    while !matches!(code.get(at), None | Some(',' | '}')) {
                        at += 1;
                    }
                    if code.get(at) != Some(&',') {
                        return at + 1;
                    }
                }
                None => return at,
            }
        },
        Some('*') => {
            out.push([prefix, vec!["*".to_owned()]].concat());
            at + 1
        }
        _ => {
            let Some(word) = word_at(code, at) else {
                out.push(prefix); // `crate::<…>` or a macro fragment: the prefix is what is known
                return at;
            };
            let after = at + word.chars().count();
            let mut path = prefix;
            match word.as_str() {
                "self" => {}
                "super" => drop(path.pop()),
                _ => path.push(word),
            }
            if followed_by(code, after, "::") && code.get(after + 2) != Some(&'<') {
                read_tree(code, after + 2, path, out)
            } else {
                out.push(path);
                after
            }
        }
    }
}

fn word_at(code: &[char], at: usize) -> Option<String> {
    let wordy = |c: &char| c.is_alphanumeric() || *c == '_';
    if at > 0 && code.get(at - 1).is_some_and(wordy) {
        return None;
    }
    let word: String = code.iter().skip(at).take_while(|c| wordy(c)).collect();
    (!word.is_empty()).then_some(word)
}

fn skip_blanks(code: &[char], from: usize) -> usize {
    from + code.iter().skip(from).take_while(|c| c.is_whitespace()).count()
}

fn followed_by(code: &[char], at: usize, what: &str) -> bool {
    what.chars().enumerate().all(|(i, c)| code.get(at + i) == Some(&c))
}

fn preceded_by(code: &[char], at: usize, what: &str) -> bool {
    at.checked_sub(what.len()).is_some_and(|start| followed_by(code, start, what))
}

/// What the next characters of a file are.
#[derive(Clone, Copy)]
enum Lexeme {
    Code,
    LineComment,
    BlockComment { depth: u32 },
    Text { hashes: Option<usize> },
}

/// Returns the code with comments and strings blanked, and the file without insides of strings.
fn split_literals(text: &str) -> (String, String) {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut width) = (String::new(), String::new());
    let mut now = Lexeme::Code;
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let mut step = 1;
        let started = now;
        match now {
            Lexeme::Code if followed_by(&chars, at, "//") => now = Lexeme::LineComment,
            Lexeme::Code if followed_by(&chars, at, "/*") => {
                (now, step) = (Lexeme::BlockComment { depth: 1 }, 2);
            }
            Lexeme::Code => {
                if let Some((len, hashes)) = string_start(&chars, at) {
                    (now, step) = (Lexeme::Text { hashes }, len);
                } else if let Some(len) = char_literal(&chars, at) {
                    code.push_str(&" ".repeat(len));
                    width.push_str(&" ".repeat(len));
                    at += len;
                    continue;
                }
            }
            Lexeme::LineComment if c == '\n' => now = Lexeme::Code,
            Lexeme::BlockComment { depth } if followed_by(&chars, at, "*/") => {
                step = 2;
                now = match depth {
                    1 => Lexeme::Code,
                    _ => Lexeme::BlockComment { depth: depth - 1 },
                };
            }
            Lexeme::BlockComment { depth } if followed_by(&chars, at, "/*") => {
                (now, step) = (Lexeme::BlockComment { depth: depth + 1 }, 2);
            }
            Lexeme::Text { hashes: None } if c == '\\' => step = 2,
            Lexeme::Text { hashes } if c == '"' => {
                let close = "#".repeat(hashes.unwrap_or(0));
                if followed_by(&chars, at + 1, &close) {
                    (now, step) = (Lexeme::Code, 1 + close.len());
                }
            }
            _ => {}
        }
        for &c in chars.iter().skip(at).take(step) {
            let delimiter = matches!((started, now), (Lexeme::Code, Lexeme::Text { .. }))
                || matches!((started, now), (Lexeme::Text { .. }, Lexeme::Code));
            let is_code = matches!((started, now), (Lexeme::Code, Lexeme::Code)) || delimiter;
            let in_text = matches!((started, now), (Lexeme::Text { .. }, Lexeme::Text { .. }));
            code.push(if c == '\n' || is_code { c } else { ' ' });
            if c == '\n' || !in_text {
                width.push(c);
            }
        }
        at += step;
    }
    (code, width)
}

/// Length of `"`, `b"`, `r#"` … at `at`, and the number of hashes of a raw string.
fn string_start(chars: &[char], at: usize) -> Option<(usize, Option<usize>)> {
    let prefix = ["\"", "b\"", "c\""].iter().find(|p| followed_by(chars, at, p));
    let inside_word = at > 0 && chars.get(at - 1).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    if let Some(prefix) = prefix {
        return (!inside_word || prefix.len() == 1).then_some((prefix.len(), None));
    }
    let raw = ["r", "br", "cr"].iter().find(|p| followed_by(chars, at, p) && !inside_word)?;
    let hashes = chars.iter().skip(at + raw.len()).take_while(|c| **c == '#').count();
    let len = raw.len() + hashes;
    (chars.get(at + len) == Some(&'"')).then_some((len + 1, Some(hashes)))
}

/// Length of a character literal at `at`; `None` for a lifetime.
fn char_literal(chars: &[char], at: usize) -> Option<usize> {
    if chars.get(at) != Some(&'\'') {
        return None;
    }
    if chars.get(at + 1) == Some(&'\\') {
        // The escaped character itself may be a quote.
        return chars.iter().skip(at + 3).position(|c| *c == '\'').map(|n| n + 4);
    }
    (chars.get(at + 2) == Some(&'\'')).then_some(3)
}

/// Blanks every item that follows a `#[cfg(test)]`.
fn without_test_items(code: &str) -> String {
    let mut chars: Vec<char> = code.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        if !followed_by(&chars, at, "#[cfg(") {
            at += 1;
            continue;
        }
        let condition: String = chars.iter().skip(at).take_while(|c| **c != ']').collect();
        let for_tests = !Source::lines_with(&condition, "test").is_empty();
        if !for_tests || condition.contains("not(") {
            at += 1;
            continue;
        }
        let end = item_end(&chars, at);
        for c in chars.iter_mut().take(end).skip(at).filter(|c| **c != '\n') {
            *c = ' ';
        }
        at = end;
    }
    chars.into_iter().collect()
}

/// The position behind the item that starts at `from`: its `;`, or its closing brace.
fn item_end(chars: &[char], from: usize) -> usize {
    let (mut braces, mut others) = (0_u32, 0_u32);
    for (at, c) in chars.iter().enumerate().skip(from) {
        match c {
            '(' | '[' => others += 1,
            ')' | ']' => others = others.saturating_sub(1),
            '{' => braces += 1,
            '}' if braces <= 1 => return at + 1,
            '}' => braces -= 1,
            ';' if braces == 0 && others == 0 => return at + 1,
            _ => {}
        }
    }
    chars.len()
}

fn blank(code: &str) -> String {
    code.chars().map(|c| if c == '\n' { c } else { ' ' }).collect()
}
