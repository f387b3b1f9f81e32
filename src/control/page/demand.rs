//! What a visitor asks for, as far as it was heard: by whoever serves it, or would put it out.
//! Nobody who has shown that it may ask leaves because that was not read yet.

use super::{text, Offer};
use crate::base::limits::HEAD_BYTES_MAX;
use crate::control::admin_door::AdminAnswer;
use crate::http::head::Parse;
use crate::http::request::RequestHead;
use crate::rt::buffer::Buffer;
use crate::rt::patrol::{Alarm, Post};
use crate::state::scrape::Page;
use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

/// What is to be done for a visitor.
pub enum VisitAsked {
    /// Nothing: it hears this.
    Refused(AdminAnswer),
    /// Something of the admin API. Whether that may be a change, and the bytes of its head.
    Api(bool, usize),
    /// A page, if there is one where it looks.
    Page(Option<Page>),
}

/// What a visitor has sent.
pub struct Hearing {
    pub bytes: Buffer,
    pub head: RequestHead,
    pub asked: Option<VisitAsked>,
}

/// See above.
pub struct Demand {
    pub post: Post,
    peer: IpAddr,
    pub offer: Rc<Offer>,
    /// `None`: it is being answered.
    hearing: RefCell<Option<Hearing>>,
}

impl Demand {
    /// Of one who comes.
    pub fn new(post: Post, peer: IpAddr, offer: Rc<Offer>) -> Demand {
        let hearing = Hearing { bytes: Buffer::take(), head: RequestHead::default(), asked: None };
        Demand { post, peer, offer, hearing: RefCell::new(Some(hearing)) }
    }

    /// Reads what has come. True when it is known what is asked.
    ///
    /// # Errors
    /// The visitor is gone.
    pub fn hear(&self) -> Result<bool, Alarm> {
        let mut hearing = self.hearing.borrow_mut();
        let Some(Hearing { bytes, head, asked: asked @ None }) = hearing.as_mut() else {
            return Ok(true);
        };
        loop {
            match head.parse(bytes, HEAD_BYTES_MAX) {
                Err(refusal) => {
                    let mut answer = text(refusal.status, "");
                    // A 405 names the methods that there are.
                    let field = refusal.field.map(|(name, value)| (*name, (*value).to_owned()));
                    answer.fields.extend(field);
                    *asked = Some(VisitAsked::Refused(answer));
                }
                Ok(Parse::Done { len }) => *asked = Some(self.judge(head, bytes, len)),
                Ok(Parse::Partial) => {}
            }
            if asked.is_some() {
                return Ok(true);
            }
            if bytes.len() == bytes.capacity() {
                bytes.reserve(HEAD_BYTES_MAX);
            }
            match self.post.socket().try_recv(bytes) {
                Ok(1..) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Ok(0) | Err(_) => return Err(Alarm::Gone),
            }
        }
    }

    fn judge(&self, head: &RequestHead, bytes: &[u8], len: usize) -> VisitAsked {
        match &self.offer.door {
            Some(door) if door.is_for(head.path(bytes)) => {
                match door.check(self.peer, head, bytes) {
                    Ok(may_change) => VisitAsked::Api(may_change, len),
                    Err(refused) => VisitAsked::Refused(refused),
                }
            }
            _ => VisitAsked::Page((self.offer.page_of)(head.path.of(bytes), head.query.of(bytes))),
        }
    }

    /// Whether it has shown by now that it may ask.
    pub fn may_ask(&self) -> bool {
        let is_heard = self.hear().unwrap_or(false);
        let hearing = self.hearing.borrow();
        let asked = hearing.as_ref().and_then(|hearing| hearing.asked.as_ref());
        is_heard && !matches!(asked, Some(VisitAsked::Refused(_)))
    }

    /// What was heard, for whoever answers.
    pub fn take(&self) -> Option<Hearing> {
        self.hearing.take()
    }
}
