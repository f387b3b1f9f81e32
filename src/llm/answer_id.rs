//! The id that an engine gave its answer (`chatcmpl-...`): what a record and the engine's own log
//! have in common.

/// Bytes of the longest id that is kept.
const ID_BYTES_MAX: usize = 128;

/// Keeps the first id that is told.
#[derive(Debug, Default)]
pub struct AnswerId {
    state: State,
    /// The id, or what came of it. Kept from answer to answer for its capacity.
    bytes: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// There was none that is fit for a record.
    #[default]
    Sought,
    Found,
}

impl AnswerId {
    /// Forgets the last answer, keeps capacity.
    pub fn reset(&mut self) {
        self.begin();
        self.state = State::Sought;
    }

    /// True until there is one.
    pub fn is_sought(&self) -> bool {
        self.state == State::Sought
    }

    /// One begins.
    pub fn begin(&mut self) {
        self.bytes.clear();
    }

    /// It goes on. Of one that is too long no more is kept than tells that.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = ID_BYTES_MAX + 1 - self.bytes.len().min(ID_BYTES_MAX + 1);
        self.bytes.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    /// It ends. It counts when it is fit for a record: visible ASCII, and not empty as TGI's is.
    pub fn end(&mut self) {
        let is_visible = self.bytes.iter().all(|byte| matches!(byte, b'!'..=b'~'));
        if is_visible && (1..=ID_BYTES_MAX).contains(&self.bytes.len()) {
            self.state = State::Found;
        }
    }

    /// The id, when there was one.
    pub fn get(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok().filter(|_| self.state == State::Found)
    }
}
