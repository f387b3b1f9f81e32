//! The change of a body by which usage is asked for.

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

    /// The changed body, in three pieces that are to be sent one after the other. `body` is the one
    /// that was scanned.
    pub fn of(self, body: &[u8]) -> [&[u8]; 3] {
        let at = self.at as usize;
        let before = body.get(..at).unwrap_or_default();
        let after = body.get(at + self.removed()..).unwrap_or_default();
        [before, self.inserted(), after]
    }
}
