//! The changes that are made to a body before an engine gets it: usage is asked for, and a model
//! has another name. All other bytes stay as the client wrote them, and none of them is copied.

use std::ops::Range;

/// What stands in the body instead of some of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit<'a> {
    /// The bytes of the body that are left out; none where something is put in between.
    pub at: Range<usize>,
    /// What stands in their place.
    pub with: &'a [u8],
}

/// The body with these changes, which do not overlap, in pieces that are to be sent one after the
/// other. Pieces that are not needed are empty and stand at the end.
pub fn edited<'a>(body: &'a [u8], edits: [Option<Edit<'a>>; 2]) -> [&'a [u8]; 5] {
    let (first, second) = match edits {
        [Some(a), Some(b)] if b.at.start < a.at.start => (b, Some(a)),
        [Some(a), b] => (a, b),
        [None, Some(b)] => (b, None),
        [None, None] => return [body, &[], &[], &[], &[]],
    };
    let before = body.get(..first.at.start).unwrap_or_default();
    let Some(second) = second else {
        return [before, first.with, body.get(first.at.end..).unwrap_or_default(), &[], &[]];
    };
    let between = body.get(first.at.end..second.at.start).unwrap_or_default();
    [before, first.with, between, second.with, body.get(second.at.end..).unwrap_or_default()]
}

/// A change of a request body that asks for usage and touches nothing else: bytes are put in, at
/// most a value that said no is taken out; order and spacing stay as the client wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageSplice {
    at: u32,
    form: SpliceForm,
}

/// What stands in the body where usage is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpliceForm {
    /// No `stream_options`: the key follows the value of `stream`.
    NoOptions,
    /// `stream_options` is null.
    NullOptions,
    /// `stream_options` is an empty object.
    EmptyOptions,
    /// `stream_options` has members, and `include_usage` is none of them.
    OtherOptions,
    /// `include_usage` is null, or no in one of the ways that engines take; in so many bytes.
    No(u8),
}

impl UsageSplice {
    /// One of a form at a byte of the body; the inverse of [`UsageSplice::at`] and
    /// [`UsageSplice::form`], for who keeps the two apart.
    pub fn new(at: u32, form: SpliceForm) -> UsageSplice {
        UsageSplice { at, form }
    }

    /// The byte of the body where it begins.
    pub fn at(self) -> u32 {
        self.at
    }

    /// Its form.
    pub fn form(self) -> SpliceForm {
        self.form
    }

    /// Bytes of the body that are left out.
    fn removed(self) -> usize {
        match self.form {
            SpliceForm::NullOptions => b"null".len(),
            SpliceForm::No(len) => len.into(),
            SpliceForm::NoOptions | SpliceForm::EmptyOptions | SpliceForm::OtherOptions => 0,
        }
    }

    /// The bytes that are put in their place.
    fn inserted(self) -> &'static [u8] {
        match self.form {
            SpliceForm::NoOptions => br#","stream_options":{"include_usage":true}"#,
            SpliceForm::NullOptions => br#"{"include_usage":true}"#,
            SpliceForm::EmptyOptions => br#""include_usage":true"#,
            SpliceForm::OtherOptions => br#""include_usage":true,"#,
            SpliceForm::No(_) => b"true",
        }
    }

    /// The change of the body that was scanned.
    pub fn edit(self) -> Edit<'static> {
        let at = self.at as usize;
        Edit { at: at..at + self.removed(), with: self.inserted() }
    }
}
