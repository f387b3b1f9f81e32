//! The model that a form of several parts names (`multipart/form-data`: audio, images), wherever
//! its part stands.
//!
//! The engine reads the same bytes with another parser, and parsers differ in what they forgive:
//! line ends, spaces behind a boundary, a part that has two names. Whatever two of them could read
//! in two ways is a fault here, so that no client is routed by one name and served by another.
//! Forms as browsers, curl and the SDKs write them have no such fault.

use super::request::ScanFault;
use crate::base::limits::{FORM_BOUNDARY_BYTES_MAX, FORM_HEAD_BYTES_MAX, MODEL_NAME_BYTES_MAX};
use crate::base::refusal::Refusal;
use memchr::memmem::{self, Finder};
use std::ops::Range;

/// Why a form is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormFault {
    /// Parsers could read it in two ways; what of it.
    Doubtful(&'static str),
    /// As in a JSON body: the part stands twice, the name is too long.
    Model(ScanFault),
}

impl FormFault {
    /// The answer to the client: a 400, after which the connection goes on.
    pub fn refusal(self) -> Refusal {
        match self {
            FormFault::Doubtful(what) => Refusal::new(400, "bad_multipart", "")
                .with_message(format!("The form can be read in more than one way: {what}.")),
            FormFault::Model(fault) => fault.refusal(),
        }
    }
}

/// The model of a form, and where its name stands in the body; `None`: the form names none.
pub type FormModel<'a> = Option<(&'a str, Range<usize>)>;

/// A scan in steps.
pub struct FormScan<'a> {
    body: &'a [u8],
    /// Finds `--` and the boundary, which stand at the beginning of the body and between all parts.
    finder: Finder<'a>,
    is_plain: bool,
    /// So far the body was read.
    at: usize,
    /// The part that is read.
    part: Option<Part>,
    is_named: bool,
    model: FormModel<'a>,
}

#[derive(Clone, Copy)]
struct Part {
    /// First byte of what it holds.
    start: usize,
    is_model: bool,
}

impl<'a> FormScan<'a> {
    /// Of a whole body, which begins with `--` and the boundary of this content type.
    pub fn new(content_type: &[u8], boundary: &[u8], body: &'a [u8]) -> FormScan<'a> {
        let mark = body.get(..2 + boundary.len()).unwrap_or_default();
        FormScan {
            body,
            finder: Finder::new(mark),
            is_plain: is_plain(content_type, boundary),
            at: 0,
            part: None,
            is_named: false,
            model: None,
        }
    }

    /// Reads about so many bytes more; `None`: there is still more to be read.
    pub fn step(&mut self, bytes: usize) -> Option<Result<FormModel<'a>, FormFault>> {
        if !self.is_plain {
            return Some(doubt("its Content-Type"));
        }
        let stop = self.at.saturating_add(bytes);
        while self.at < stop {
            let mark = self.finder.needle().len();
            let end = stop.saturating_add(mark).min(self.body.len());
            let window = self.body.get(self.at..end).unwrap_or_default();
            let Some(found) = self.finder.find(window) else {
                if end == self.body.len() {
                    return Some(doubt("it has no end"));
                }
                self.at = stop;
                break;
            };
            match self.pass_mark(self.at + found, mark) {
                Ok(false) => {}
                Ok(true) => return Some(Ok(self.model.take())),
                Err(fault) => return Some(Err(fault)),
            }
        }
        None
    }

    /// Ends the part before a mark, and begins the one behind it; true: there is none.
    fn pass_mark(&mut self, found: usize, mark: usize) -> Result<bool, FormFault> {
        if let Some(part) = self.part {
            // The line end before a mark belongs to it; what is before that, to the part.
            let end = found.checked_sub(2).filter(|end| *end >= part.start);
            let place = end.map(|end| part.start..end);
            let place = place.filter(|place| self.body.get(place.end..found) == Some(b"\r\n"));
            let place = place.ok_or(FormFault::Doubtful("the boundary stands within a line"))?;
            if part.is_model {
                self.keep(place)?;
            }
        }
        let behind = found + mark;
        match self.body.get(behind..).unwrap_or_default() {
            [b'-', b'-'] | [b'-', b'-', b'\r', b'\n'] => Ok(true),
            [b'-', b'-', ..] => doubt("something stands behind its end"),
            [b'\r', b'\n', ..] => {
                let part = self.head(behind + 2)?;
                (self.at, self.part) = (part.start, Some(part));
                Ok(false)
            }
            _ => doubt("a boundary is no line of its own"),
        }
    }

    fn keep(&mut self, place: Range<usize>) -> Result<(), FormFault> {
        if std::mem::replace(&mut self.is_named, true) {
            return Err(FormFault::Model(ScanFault::Duplicate("model")));
        }
        let name = self.body.get(place.clone()).unwrap_or_default();
        if name.len() > MODEL_NAME_BYTES_MAX {
            return Err(FormFault::Model(ScanFault::ModelTooLong));
        }
        match std::str::from_utf8(name) {
            Ok(name) if name.contains(char::is_control) => doubt("the name of its model"),
            Ok(name) => {
                self.model = Some((name, place));
                Ok(())
            }
            Err(_) => doubt("the name of its model is not UTF-8"),
        }
    }

    /// Reads the head of a part.
    fn head(&self, start: usize) -> Result<Part, FormFault> {
        let rest = self.body.get(start..).unwrap_or_default();
        let rest = rest.get(..FORM_HEAD_BYTES_MAX).unwrap_or(rest);
        let (mut at, mut found, mut is_coded) = (0, None, false);
        loop {
            let line = rest.get(at..).unwrap_or_default();
            let end = memmem::find(line, b"\r\n");
            let end = end.ok_or(FormFault::Doubtful("the head of a part is too long"))?;
            let line = line.get(..end).unwrap_or_default();
            at += end + 2;
            if line.is_empty() {
                break;
            }
            // A line end of another kind, or the second line of a field.
            let is_odd = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
            let (name, value) = split(line, b':').unwrap_or_default();
            if line.iter().any(is_odd) || !is_token(name) {
                return doubt("the head of a part");
            }
            if name.eq_ignore_ascii_case(b"content-disposition") {
                let said = Disposition::read(value.trim_ascii())?;
                if found.replace(said).is_some() {
                    return doubt("a part has two names");
                }
            } else if name.eq_ignore_ascii_case(b"content-transfer-encoding") {
                let plain = [&b"7bit"[..], b"8bit", b"binary"];
                is_coded |= !plain.iter().any(|p| p.eq_ignore_ascii_case(value.trim_ascii()));
            }
        }
        if self.finder.find(rest.get(..at).unwrap_or_default()).is_some() {
            return doubt("a boundary stands in the head of a part");
        }
        let Some(Disposition { name, is_file }) = found else { return doubt("a part has no name") };
        let is_model = name == b"model";
        if is_model && (is_file || is_coded) {
            return doubt("its model is a file, or encoded");
        }
        if name == b"_charset_" {
            return doubt("it names a character set");
        }
        Ok(Part { start: start + at, is_model })
    }
}

fn doubt<T>(what: &'static str) -> Result<T, FormFault> {
    Err(FormFault::Doubtful(what))
}

/// What a part says of itself.
struct Disposition<'a> {
    name: &'a [u8],
    is_file: bool,
}

impl<'a> Disposition<'a> {
    /// Reads `form-data; name="model"`. A backslash is an escape to some and a letter to others, a
    /// parameter with a `*` a name in another spelling to some and nothing to others (`filename*`
    /// is the one that clients send).
    fn read(value: &'a [u8]) -> Result<Disposition<'a>, FormFault> {
        const ODD: FormFault = FormFault::Doubtful("the name of a part");
        let (kind, mut rest) = value.split_at_checked(FORM_DATA.len()).ok_or(ODD)?;
        let (mut name, mut is_file) = (None, [false, false]);
        if !kind.eq_ignore_ascii_case(FORM_DATA) {
            return Err(ODD);
        }
        while let [b';', behind @ ..] = rest {
            let (key, behind) = split(behind.trim_ascii_start(), b'=').ok_or(ODD)?;
            let (text, behind) = match behind {
                [b'"', quoted @ ..] => split(quoted, b'"').ok_or(ODD)?,
                bare => {
                    let end = bare.iter().position(|byte| !is_token(&[*byte]));
                    bare.split_at_checked(end.unwrap_or(bare.len())).ok_or(ODD)?
                }
            };
            if text.contains(&b'\\') || !is_token(key) {
                return Err(ODD);
            }
            let is_first = match key {
                b"name" => name.replace(text).is_none(),
                b"filename" => !std::mem::replace(&mut is_file[0], true),
                b"filename*" => !std::mem::replace(&mut is_file[1], true),
                _ => {
                    let is_name = |name: &&[u8]| key.eq_ignore_ascii_case(name);
                    !key.contains(&b'*') && ![&b"name"[..], b"filename"].iter().any(is_name)
                }
            };
            if !is_first {
                return Err(ODD);
            }
            rest = behind;
        }
        let name = name.filter(|_| rest.is_empty()).ok_or(ODD)?;
        Ok(Disposition { name, is_file: is_file != [false, false] })
    }
}

const FORM_DATA: &[u8] = b"form-data";

/// Whether all parsers find this boundary in the content type, and read the parts as UTF-8.
fn is_plain(content_type: &[u8], boundary: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_-./:=?".contains(byte);
    let is_word = boundary.len() <= FORM_BOUNDARY_BYTES_MAX && boundary.iter().all(fits);
    let parameters = || content_type.split(|byte| *byte == b';').skip(1).map(<[u8]>::trim_ascii);
    let begins = |parameter: &&[u8], with: &[u8]| {
        parameter.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    let utf8 = |parameter: &&[u8]| {
        [&b"charset=utf-8"[..], b"charset=\"utf-8\""]
            .iter()
            .any(|p| p.eq_ignore_ascii_case(parameter))
    };
    let count = parameters().filter(|parameter| begins(parameter, b"boundary=")).count();
    let is_known = |parameter: &[u8]| begins(&parameter, b"boundary=") || utf8(&parameter);
    is_word && count == 1 && parameters().all(is_known)
}

/// What stands before a byte, and behind it.
fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = memchr::memchr(at, bytes)?;
    Some((bytes.get(..place)?, bytes.get(place + 1..)?))
}

fn is_token(bytes: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(fits)
}

#[cfg(test)]
mod tests;
