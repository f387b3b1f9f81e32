//! How deep the lists and mappings in brackets lie in each other, before the parser sees a text:
//! for each token it looks at all brackets that are open, so that a file of nothing but `[` keeps
//! it busy for minutes at a size that is allowed.
//!
//! This goes over the text once and tells brackets that open something from those in quotes, in
//! comments and in plain and block scalars. It takes a text that is no YAML for whatever it likes:
//! the parser refuses that one.

use super::raw::Position;
use crate::base::limits::CONFIG_BRACKETS_OPEN_MAX;

/// The first bracket that lies deeper than a file may have it.
pub fn too_deep(text: &str) -> Option<Position> {
    let mut scan = Scan { rest: text, line: 1, column: 1, open: 0, indent: 0, begin: None };
    while let Some(c) = scan.peek() {
        scan.token(c);
        if scan.open > CONFIG_BRACKETS_OPEN_MAX {
            // It was just read.
            return Some(Position { line: scan.line, column: scan.column - 1 });
        }
    }
    None
}

/// What is said of it.
pub fn line() -> String {
    format!(
        "more than {CONFIG_BRACKETS_OPEN_MAX} brackets (`[` or `{{`) are open in each other, the \
         most a file may have"
    )
}

/// A place in a text, and what it lies in. Columns count from 1, so that an indent of 0 is outside
/// of everything.
struct Scan<'a> {
    rest: &'a str,
    line: usize,
    column: usize,
    /// Brackets that are open.
    open: usize,
    /// Column of the key or the `-` that this belongs to: a scalar goes on for as long as its lines
    /// begin behind that.
    indent: usize,
    /// Column of what is a key if a `:` follows.
    begin: Option<usize>,
}

impl Scan<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// True where nothing comes, or a blank or the end of the line, behind the next character.
    fn is_blank_behind(&self) -> bool {
        self.rest.chars().nth(1).is_none_or(is_blank)
    }

    fn step(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        (self.line, self.column) = match c {
            '\n' => (self.line + 1, 1),
            _ => (self.line, self.column + 1),
        };
        Some(c)
    }

    fn skip_while(&mut self, mut goes_on: impl FnMut(char) -> bool) {
        while self.peek().is_some_and(&mut goes_on) {
            self.step();
        }
    }

    /// Passes over the token that begins with `c`, or over what is between two.
    fn token(&mut self, c: char) {
        let is_flow = self.open > 0;
        match c {
            _ if is_blank(c) => {
                self.begin = self.begin.filter(|_| c != '\n');
                self.step();
                return;
            }
            '#' => return self.skip_while(|c| !matches!(c, '\n' | '\r')),
            '%' if self.column == 1 => return self.skip_while(|c| c != '\n'),
            _ if self.column == 1 && is_mark(self.rest) => {
                (self.indent, self.begin) = (0, None);
                return self.skip_while(|c| !is_blank(c));
            }
            _ => {}
        }
        if !is_flow {
            // A line that begins before a key has left what is below that key.
            self.indent = self.indent.min(self.column);
        }
        match c {
            '-' | '?' if !is_flow && self.is_blank_behind() => {
                (self.indent, self.begin) = (self.column, None);
                self.step();
            }
            ':' if is_flow || self.is_blank_behind() => {
                if !is_flow {
                    self.indent = self.begin.take().unwrap_or(self.indent);
                }
                self.step();
            }
            '|' | '>' if !is_flow => self.block(),
            _ => {
                self.begin.get_or_insert(self.column);
                self.part_of_node(c, is_flow);
            }
        }
    }

    fn part_of_node(&mut self, c: char, is_flow: bool) {
        match c {
            '[' | '{' => {
                self.open += 1;
                self.step();
            }
            ']' | '}' => {
                self.open = self.open.saturating_sub(1);
                self.step();
            }
            '\'' | '"' => self.quoted(c),
            // The node itself comes behind its name or its tag.
            '&' | '*' | '!' => self.skip_while(|c| !is_blank(c) && !is_end(c, is_flow)),
            _ if is_end(c, is_flow) => drop(self.step()),
            _ => self.plain(is_flow),
        }
    }

    fn quoted(&mut self, quote: char) {
        self.step();
        while let Some(c) = self.step() {
            match c {
                '\\' if quote == '"' => drop(self.step()),
                // Two of `'` stand for one.
                '\'' if c == quote && self.peek() == Some('\'') => drop(self.step()),
                _ if c == quote => return,
                _ => {}
            }
        }
    }

    /// A scalar of whole lines, which `|` or `>` begins.
    fn block(&mut self) {
        self.skip_while(|c| c != '\n');
        // Its lines begin with a blank even where nothing is around it.
        self.indent = self.indent.max(1);
        while self.peek().is_some() && self.is_within() {
            self.skip_while(is_blank);
            self.skip_while(|c| c != '\n');
        }
    }

    /// A scalar without quotes.
    fn plain(&mut self, is_flow: bool) {
        let mut before = 'x';
        while let Some(c) = self.peek() {
            let is_over = match c {
                '#' => is_blank(before),
                ':' => self.is_blank_behind() || is_flow && self.is_end_behind(),
                '\n' => !is_flow && !self.is_within(),
                _ => is_end(c, is_flow),
            };
            if is_over {
                return;
            }
            match c {
                '\n' => self.skip_while(is_blank),
                _ => drop(self.step()),
            }
            before = c;
        }
    }

    /// True at the end of a line when the next one that is not empty belongs to the same scalar.
    fn is_within(&self) -> bool {
        let mut lines = self.rest.get(1..).unwrap_or_default().split('\n');
        let next = lines.find(|line| !line.chars().all(is_blank));
        next.is_none_or(|line| {
            line.len() - line.trim_start_matches(' ').len() >= self.indent && !is_mark(line)
        })
    }

    fn is_end_behind(&self) -> bool {
        self.rest.chars().nth(1).is_some_and(|c| is_end(c, true))
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// What ends a scalar within brackets.
fn is_end(c: char, is_flow: bool) -> bool {
    is_flow && matches!(c, ',' | '[' | ']' | '{' | '}')
}

/// True at a line that begins or ends a document.
fn is_mark(line: &str) -> bool {
    let behind = line.strip_prefix("---").or_else(|| line.strip_prefix("..."));
    behind.is_some_and(|rest| rest.chars().next().is_none_or(is_blank))
}
