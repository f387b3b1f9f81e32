//! A packed answer passes as it is. What the tap would have seen in it is found in a copy, which
//! another thread unpacks once the answer is whole.

use crate::llm::inflate::{InflateFault, NoCopy, Packed};
use crate::llm::usage::UsageScan;
use crate::usage::unpacker::{Unpacker, Unpacking};

/// The copy of a packed answer, from its first byte until it is known what is in it.
pub enum Copy {
    /// Its bytes are kept as they come.
    Kept(Box<Packed>),
    /// It is being unpacked.
    Handed(Box<Unpacking>),
    /// All of it was seen.
    Read,
    /// Nothing is known of it, and never will be.
    Lost(Lost),
}

/// Why nothing is known of a packed answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// It is nothing that is read, packed or not.
    Unread,
    /// How it is packed is not known.
    Unknown,
    /// It, or what it unpacks to, is too long.
    TooLarge,
    /// All copies together are too long, or too many wait.
    NoRoom,
    /// It is not what it is said to be, or not all of it came.
    Broken,
    /// It was not unpacked in time.
    Late,
}

impl Copy {
    /// Keeps a slice.
    pub fn keep(&mut self, bytes: &[u8]) {
        if let Copy::Kept(packed) = self {
            if let Err(why) = packed.keep(bytes) {
                *self = Copy::Lost(why.into());
            }
        }
    }

    /// The answer is whole: hands its copy over to be unpacked.
    pub fn hand_over(&mut self, unpacker: &Unpacker) {
        match std::mem::replace(self, Copy::Lost(Lost::NoRoom)) {
            Copy::Kept(packed) => {
                if let Some(unpacking) = unpacker.unpack(packed) {
                    *self = Copy::Handed(unpacking);
                }
            }
            other => *self = other,
        }
    }

    /// Waits until it is unpacked, if it is on its way, and gives a scan that has seen it. A wait
    /// that is given up may be taken up again.
    pub async fn unpacked(&mut self) -> Option<Box<UsageScan>> {
        let Copy::Handed(unpacking) = self else { return None };
        match unpacking.await {
            Ok(scan) => {
                *self = Copy::Read;
                Some(scan)
            }
            Err(InflateFault::Broken) => {
                *self = Copy::Lost(Lost::Broken);
                None
            }
            Err(InflateFault::TooLarge) => {
                *self = Copy::Lost(Lost::TooLarge);
                None
            }
        }
    }

    /// Nobody waits any longer for what is being unpacked.
    pub fn give_up(&mut self) {
        if let Copy::Handed(_) = self {
            *self = Copy::Lost(Lost::Late);
        }
    }

    /// Why nothing is known of the answer.
    pub fn why_lost(&self) -> Option<Lost> {
        match self {
            Copy::Read | Copy::Handed(_) => None,
            // The answer broke before it was whole.
            Copy::Kept(_) => Some(Lost::Broken),
            Copy::Lost(why) => Some(*why),
        }
    }
}

impl Lost {
    /// The reason in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Lost::Unread | Lost::Unknown => "packed_unknown",
            Lost::TooLarge => "packed_too_large",
            Lost::NoRoom => "packed_dropped",
            Lost::Broken => "packed_broken",
            Lost::Late => "packed_late",
        }
    }
}

impl From<NoCopy> for Lost {
    fn from(why: NoCopy) -> Lost {
        match why {
            NoCopy::TooLarge => Lost::TooLarge,
            NoCopy::NoRoom => Lost::NoRoom,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::dialect::Dialect;
    use crate::llm::inflate::Coding;
    use crate::rt::ring::Ring;
    use crate::state::meters::UNPACKED;

    /// Catches: a copy that nobody unpacks, or of which nobody is told what became of it.
    #[test]
    fn what_became_of_a_copy_is_told() {
        let unpacker = Unpacker::start().unwrap();
        let kept = |bytes: &[u8]| {
            let packed = Packed::new(Coding::Gzip, Dialect::OpenAi, None);
            let mut copy = Copy::Kept(Box::new(packed));
            copy.keep(bytes);
            copy
        };
        assert_eq!(kept(b"x").why_lost(), Some(Lost::Broken), "the answer was never whole");
        let mut broken = kept(b"no gzip");
        broken.hand_over(&unpacker);
        Ring::build().unwrap().block_on(async {
            assert!(broken.unpacked().await.is_none());
            assert!(broken.unpacked().await.is_none(), "it is over");
        });
        assert_eq!(broken.why_lost(), Some(Lost::Broken));
        let mut late = kept(b"no gzip");
        late.hand_over(&unpacker);
        assert_eq!(late.why_lost(), None);
        late.give_up();
        assert_eq!(late.why_lost(), Some(Lost::Late));
    }

    /// Catches: a reason that stands in records and has no place on the metrics page.
    #[test]
    fn each_reason_is_counted() {
        use Lost::{Broken, Late, NoRoom, TooLarge, Unknown};
        for why in [Unknown, TooLarge, NoRoom, Broken, Late] {
            assert!(UNPACKED.contains(&why.as_str()), "{why:?}");
        }
    }
}
