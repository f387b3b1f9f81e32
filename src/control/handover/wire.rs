//! What a process and its successor say to each other: lines over a pair of sockets that keeps each
//! message whole, some of them with listeners. Both may be of different versions: what one does not
//! know it steps over.

use super::listeners::{ListenGroup, ListenPurpose};
use rustix::io::Errno;
use rustix::net::{
    recvmsg, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use socket2::{Domain, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// A side that does not take what it is sent is waited for so long.
const SEND_WAIT: Duration = Duration::from_secs(5);
/// Sockets in one message: the kernel takes 253. Beyond: in several.
const HANDED_PER_MESSAGE_MAX: usize = 64;
/// Bytes of a message.
const BYTES_MAX: usize = 1024;

/// One message.
#[derive(Debug)]
pub enum HandoverWord {
    /// To the successor: listeners of one address, or some of them.
    Sockets(ListenGroup),
    /// That were all.
    NoMore,
    /// From it: everything has started but the workers.
    Ready,
    /// To it: it takes our place.
    Go,
    /// From it: its workers take clients in.
    Serving,
    /// From it: it cannot start, and why.
    Failed(String),
    /// Of another version.
    Unknown,
}

/// One end of the pair.
pub struct Wire(Socket);

impl Wire {
    /// Both ends; the second is for another process.
    pub fn pair() -> io::Result<(Wire, OwnedFd)> {
        let (own, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        Ok((Wire::new(own)?, other.into()))
    }

    /// An end that another process made; `None`: it is something else.
    pub fn of(descriptor: OwnedFd) -> Option<Wire> {
        let socket = Socket::from(descriptor);
        let is_one = socket.r#type().is_ok_and(|kind| kind == Type::SEQPACKET);
        Wire::new(socket).ok().filter(|_| is_one)
    }

    fn new(socket: Socket) -> io::Result<Wire> {
        socket.set_write_timeout(Some(SEND_WAIT))?;
        Ok(Wire(socket))
    }

    /// Says something. A group of many sockets is several messages.
    pub fn send(&self, word: &HandoverWord) -> io::Result<()> {
        let HandoverWord::Sockets(group) = word else {
            return self.send_one(&line(word), &[]);
        };
        let sockets = group.sockets.chunks(HANDED_PER_MESSAGE_MAX);
        sockets.into_iter().try_for_each(|some| self.send_one(&line(word), some))
    }

    fn send_one(&self, text: &str, sockets: &[OwnedFd]) -> io::Result<()> {
        let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let bytes = text.as_bytes();
        let slices = [IoSlice::new(bytes.get(..BYTES_MAX).unwrap_or(bytes))];
        sendmsg(&self.0, &slices, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Hears something, within so long; `None`: nothing came.
    ///
    /// # Errors
    /// The other process has closed its end, by its own end at the latest.
    pub fn hear(&self, wait: Duration) -> io::Result<Option<HandoverWord>> {
        let due = Instant::now() + wait;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            // Zero would be for ever.
            self.0.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut bytes = [0; BYTES_MAX];
            let mut space = [MaybeUninit::uninit(); SPACE];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let got = recvmsg(&self.0, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC);
            let len = match got {
                Ok(got) if got.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                // A socket that is left out would take its clients with it.
                Ok(got) if got.flags.contains(ReturnFlags::CTRUNC) => {
                    return Err(io::Error::other("there is no room for all sockets"));
                }
                Ok(got) => got.bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let sockets = control.drain().flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(sockets) => sockets.collect(),
                _ => Vec::new(),
            });
            let sockets = sockets.collect();
            let text = String::from_utf8_lossy(bytes.get(..len).unwrap_or_default());
            return Ok(Some(read(&text, sockets)));
        }
    }
}

const SPACE: usize = rustix::cmsg_space!(ScmRights(HANDED_PER_MESSAGE_MAX));

fn line(word: &HandoverWord) -> String {
    match word {
        HandoverWord::Sockets(group) => {
            let purpose = match group.purpose {
                None => "any",
                Some(ListenPurpose::Clients) => "clients",
                Some(ListenPurpose::Metrics) => "metrics",
                Some(ListenPurpose::Admin) => "admin",
                Some(ListenPurpose::PlainHttp) => "plain_http",
            };
            let lent = if group.is_lent { " lent" } else { "" };
            let file = group.file.map_or(String::new(), |(dev, ino)| format!(" file={dev}:{ino}"));
            format!("sockets {purpose} {} {}{lent}{file}", group.asked, group.address)
        }
        HandoverWord::NoMore => "no-more".into(),
        HandoverWord::Ready => "ready".into(),
        HandoverWord::Go => "go".into(),
        HandoverWord::Serving => "serving".into(),
        HandoverWord::Failed(why) => format!("failed {why}"),
        HandoverWord::Unknown => "nothing".into(),
    }
}

fn read(text: &str, sockets: Vec<OwnedFd>) -> HandoverWord {
    let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
    match name {
        "sockets" => read_group(rest, sockets).unwrap_or(HandoverWord::Unknown),
        "no-more" => HandoverWord::NoMore,
        "ready" => HandoverWord::Ready,
        "go" => HandoverWord::Go,
        "serving" => HandoverWord::Serving,
        "failed" => HandoverWord::Failed(rest.to_owned()),
        _ => HandoverWord::Unknown,
    }
}

fn read_group(text: &str, sockets: Vec<OwnedFd>) -> Option<HandoverWord> {
    let mut words = text.split(' ');
    let purpose = match words.next()? {
        "any" => None,
        "clients" => Some(ListenPurpose::Clients),
        "metrics" => Some(ListenPurpose::Metrics),
        "admin" => Some(ListenPurpose::Admin),
        "plain_http" => Some(ListenPurpose::PlainHttp),
        _ => return None,
    };
    let (asked, address) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let (mut is_lent, mut file) = (false, None);
    for word in words {
        is_lent |= word == "lent";
        file = file.or_else(|| file_of(word));
    }
    let group = ListenGroup { purpose, asked, address, sockets, is_lent, file };
    (!group.sockets.is_empty()).then_some(HandoverWord::Sockets(group))
}

fn file_of(word: &str) -> Option<(u64, u64)> {
    let (dev, ino) = word.strip_prefix("file=")?.split_once(':')?;
    Some((dev.parse().ok()?, ino.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::ListenPlace;
    use std::net::TcpListener;

    const SOON: Duration = Duration::from_secs(10);

    fn ends() -> (Wire, Wire) {
        let (own, other) = Wire::pair().unwrap();
        (own, Wire::of(other).unwrap())
    }

    /// Catches: listeners that are lost on the way because there are many, or that come as others
    /// than those that were sent.
    #[test]
    fn all_listeners_arrive() {
        let (own, other) = ends();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = listener.local_addr().unwrap();
        let count = HANDED_PER_MESSAGE_MAX + 1;
        let purpose = Some(ListenPurpose::Metrics);
        let names = [("[::1]:0", bound.to_string()), ("unix:@a", "unix:/run/ä.sock".into())];
        for (asked, address) in names {
            let sockets = (0..count).map(|_| listener.try_clone().unwrap().into()).collect();
            let [asked, address] = [asked, address.as_str()].map(|name| name.parse().unwrap());
            let is_lent = matches!(address, ListenPlace::Unix(_));
            let file = is_lent.then_some((u64::MAX, 7));
            let group = ListenGroup { purpose, asked, address, sockets, is_lent, file };
            let (asked, address) = (group.asked.clone(), group.address.clone());
            own.send(&HandoverWord::Sockets(group)).unwrap();
            own.send(&HandoverWord::NoMore).unwrap();
            let mut came = 0;
            while let HandoverWord::Sockets(group) = other.hear(SOON).unwrap().unwrap() {
                assert_eq!((group.purpose, group.is_lent, group.file), (purpose, is_lent, file));
                assert_eq!((&group.asked, &group.address), (&asked, &address));
                for socket in group.sockets {
                    assert_eq!(TcpListener::from(socket).local_addr().unwrap(), bound);
                    came += 1;
                }
            }
            assert_eq!(came, count);
        }
    }

    /// Catches: an end that waits for ever for a process that is gone, or takes what it does not
    /// know for something that it does.
    #[test]
    fn words_are_heard_and_so_is_the_end() {
        let (own, other) = ends();
        assert!(other.hear(Duration::from_millis(1)).unwrap().is_none());
        own.send(&HandoverWord::Failed("because of\nthis".into())).unwrap();
        let heard = other.hear(SOON).unwrap().unwrap();
        assert!(matches!(heard, HandoverWord::Failed(why) if why == "because of\nthis"));
        for text in ["", " ", "newer words", "sockets clients 127.0.0.1:1 127.0.0.1:1", "sockets"] {
            assert!(matches!(read(text, Vec::new()), HandoverWord::Unknown), "{text}");
        }
        own.send(&HandoverWord::Failed("x".repeat(2 * BYTES_MAX))).unwrap();
        assert!(matches!(other.hear(SOON).unwrap().unwrap(), HandoverWord::Failed(_)));
        drop(own);
        assert_eq!(other.hear(SOON).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(Wire::of(std::fs::File::open("/dev/null").unwrap().into()).is_none());
    }
}
