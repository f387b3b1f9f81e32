//! The last bytes of an answer: they stay here while the record of it goes ahead.

use super::framing::Sections;
use super::strip::StrippedPart;
use crate::rt::buffer::Buffer;
use std::cell::RefCell;

/// Ends of answers that a worker keeps when they are not in use.
const LASTS_SPARE_MAX: usize = 256;

thread_local! {
    /// Not in use: every answer needs one for a moment, and none should allocate it.
    #[allow(clippy::vec_box, reason = "what is kept is the box")]
    static SPARE: RefCell<Vec<Box<LastBytes>>> = const { RefCell::new(Vec::new()) };
}

/// The last bytes of an answer. Boxed: it is large, and a stream that runs for minutes should not
/// carry the room for it.
#[derive(Default)]
pub struct LastBytes {
    /// The head, when it was not sent yet.
    pub(super) head: Option<Buffer>,
    pub(super) bytes: Option<Buffer>,
    /// Where the undecoded end stands in `bytes`.
    pub(super) from: usize,
    pub(super) body: Sections,
}

impl LastBytes {
    /// An empty one.
    pub(super) fn take() -> Box<LastBytes> {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// With bytes that stand nowhere else.
    pub(super) fn of(head: Option<Buffer>, part: StrippedPart) -> LastBytes {
        LastBytes { head, bytes: Some(part.bytes), from: 0, body: part.sections }
    }

    /// Gives it back.
    pub(super) fn let_go(mut self: Box<Self>) {
        *self = LastBytes::default();
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < LASTS_SPARE_MAX {
                spare.push(self);
            }
        });
    }

    /// Bytes of the body among them.
    pub fn data_len(&self) -> u64 {
        self.body.data_len()
    }
}

/// The end of a body in what one read brought.
pub(super) struct End {
    pub from: usize,
    pub body: Sections,
    /// What goes out instead of it.
    pub part: Option<Box<StrippedPart>>,
    pub head_is_out: bool,
}

impl End {
    /// With the buffers that it stands in; the input of the decoder began at `start`.
    pub fn of(self, head: Option<Buffer>, bytes: Option<Buffer>, start: usize) -> Box<LastBytes> {
        let head = head.filter(|_| !self.head_is_out);
        let mut last = LastBytes::take();
        *last = match self.part {
            None => LastBytes { head, bytes, from: start + self.from, body: self.body },
            Some(part) => LastBytes::of(head, *part),
        };
        last
    }
}
