//! Messages of the domain name system (RFC 1035, RFC 2782): a question is written, an answer read.
//! Pure: bytes in, records out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a message: its length has two bytes where it goes by TCP.
pub const MESSAGE_BYTES_MAX: usize = u16::MAX as usize;
/// Bytes of a name, RFC 1035 section 2.3.4.
const NAME_BYTES_MAX: usize = 255;
/// Bytes of the part of a message before its question.
const HEADER_BYTES: usize = 12;
/// Class "Internet".
const IN: u16 = 1;

/// A kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// IPv4 addresses.
    A = 1,
    /// IPv6 addresses.
    Aaaa = 28,
    /// Hosts and ports of a service.
    Srv = 33,
}

/// What an answer says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsRecords {
    /// Addresses of the name.
    pub addresses: Vec<IpAddr>,
    /// Hosts of the service.
    pub services: Vec<Srv>,
    /// Addresses that came along, each with its host in lower case.
    pub along: Vec<(String, IpAddr)>,
}

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// Those with the lowest come first.
    pub priority: u16,
    /// Share among those of one priority.
    pub weight: u16,
    /// Port.
    pub port: u16,
    /// Host, in lower case, without a final dot.
    pub target: String,
}

/// Why a message is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRead {
    /// It belongs to another question.
    Foreign,
    /// It says that more of it can be had by TCP.
    Truncated,
    /// The name does not exist.
    NoSuchName,
    /// The server says, by this code, that it cannot answer.
    Refused(u8),
    /// It is damaged.
    Malformed,
}

/// What a code means.
pub fn code_name(code: u8) -> String {
    match code {
        1 => "FORMERR".into(),
        2 => "SERVFAIL".into(),
        4 => "NOTIMP".into(),
        5 => "REFUSED".into(),
        code => format!("code {code}"),
    }
}

/// The question for the records of a name; `None` when it is no name.
pub fn question(id: u16, name: &str, kind: RecordKind) -> Option<Vec<u8>> {
    let mut bytes = id.to_be_bytes().to_vec();
    // Recursion is desired; one question, no records.
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&(kind as u16).to_be_bytes());
    bytes.extend_from_slice(&IN.to_be_bytes());
    (bytes.len() <= HEADER_BYTES + NAME_BYTES_MAX + 4).then_some(bytes)
}

/// Reads the answer to a question. Whatever an alias in between is called, the addresses and
/// services of the answer are those of the name.
pub fn answer(bytes: &[u8], question: &[u8]) -> Result<DnsRecords, NotRead> {
    let at = |index: usize| bytes.get(index).copied().unwrap_or_default();
    let asked = question.get(HEADER_BYTES..).ok_or(NotRead::Malformed)?;
    let is_answer = at(2) & 0x80 != 0;
    let is_ours = bytes.get(..2) == question.get(..2) && bytes.len() >= HEADER_BYTES;
    if !is_answer || !is_ours {
        return Err(NotRead::Foreign);
    }
    match at(3) & 0x0f {
        0 => {}
        3 => return Err(NotRead::NoSuchName),
        code => return Err(NotRead::Refused(code)),
    }
    let mut walk = Walk { bytes, at: HEADER_BYTES };
    let echoed = walk.take(asked.len()).ok_or(NotRead::Malformed)?;
    if (at(4), at(5)) != (0, 1) || !echoed.eq_ignore_ascii_case(asked) {
        return Err(NotRead::Foreign);
    }
    if at(2) & 0x02 != 0 {
        return Err(NotRead::Truncated);
    }
    let count = |index| u16::from_be_bytes([at(index), at(index + 1)]);
    let (answers, authorities, additional) = (count(6), count(8), count(10));
    let mut records = DnsRecords::default();
    for _ in 0..answers {
        let (_, record) = walk.record().ok_or(NotRead::Malformed)?;
        match record {
            Record::Address(ip) => records.addresses.push(ip),
            Record::Service(srv) => records.services.push(srv),
            Record::Other => {}
        }
    }
    for _ in 0..authorities {
        walk.record().ok_or(NotRead::Malformed)?;
    }
    for _ in 0..additional {
        if let (owner, Record::Address(ip)) = walk.record().ok_or(NotRead::Malformed)? {
            records.along.push((owner, ip));
        }
    }
    Ok(records)
}

enum Record {
    Address(IpAddr),
    Service(Srv),
    Other,
}

/// A place in a message.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    /// One record, with the name that it is of.
    fn record(&mut self) -> Option<(String, Record)> {
        let owner = self.name()?;
        let (kind, class) = (self.number()?, self.number()?);
        let _ttl = self.take(4)?;
        let length = usize::from(self.number()?);
        let end = self.at + length;
        let data = self.bytes.get(self.at..end)?;
        let record = match (class, kind) {
            (IN, kind) if kind == RecordKind::A as u16 => {
                Record::Address(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into())
            }
            (IN, kind) if kind == RecordKind::Aaaa as u16 => {
                Record::Address(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into())
            }
            (IN, kind) if kind == RecordKind::Srv as u16 => self.service(end)?,
            _ => Record::Other,
        };
        self.at = end;
        Some((owner, record))
    }

    fn service(&mut self, end: usize) -> Option<Record> {
        let (priority, weight, port) = (self.number()?, self.number()?, self.number()?);
        // Its name may be shortened by pointers: RFC 2782 forbids it, and servers do it.
        let target = self.name().filter(|_| self.at == end)?;
        // The root stands for "no such service here".
        if target.is_empty() {
            return Some(Record::Other);
        }
        let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let is_usable = port > 0 && target.bytes().all(is_host);
        is_usable.then_some(Record::Service(Srv { priority, weight, port, target }))
    }

    /// A name in lower case, its labels joined by dots. Pointers lead to what stands before them
    /// and nowhere else, so that none leads in a circle.
    fn name(&mut self) -> Option<String> {
        let mut name: Vec<u8> = Vec::new();
        let (mut here, mut after) = (Walk { bytes: self.bytes, at: self.at }, None);
        loop {
            let began = here.at;
            let length = usize::from(here.take(1)?.first().copied()?);
            match length >> 6 {
                0 if length == 0 => break,
                0 => {
                    if !name.is_empty() {
                        name.push(b'.');
                    }
                    name.extend(here.take(length)?.iter().map(u8::to_ascii_lowercase));
                    if name.len() > NAME_BYTES_MAX {
                        return None;
                    }
                }
                3 => {
                    let low = usize::from(here.take(1)?.first().copied()?);
                    after.get_or_insert(here.at);
                    let target = (length & 0x3f) << 8 | low;
                    if target >= began {
                        return None;
                    }
                    // What is read from there on must stay before where we came from.
                    here = Walk { bytes: here.bytes.get(..began)?, at: target };
                }
                _ => return None,
            }
        }
        self.at = after.unwrap_or(here.at);
        Some(String::from_utf8_lossy(&name).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [RecordKind; 3] = [RecordKind::A, RecordKind::Aaaa, RecordKind::Srv];

    /// An answer to a question, with these records: sections, then bytes.
    fn answer_to(question: &[u8], flags: [u8; 2], counts: [u16; 3], records: &[u8]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[2..4].copy_from_slice(&flags);
        for (section, count) in counts.into_iter().enumerate() {
            bytes[6 + 2 * section..8 + 2 * section].copy_from_slice(&count.to_be_bytes());
        }
        [&bytes, records].concat()
    }

    const FINE: [u8; 2] = [0x81, 0x80];

    /// The head of a record of the name of the question.
    fn of_name(kind: RecordKind, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 30];
        bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        [&bytes, data].concat()
    }

    #[test]
    fn a_question_is_as_the_standard_writes_it() {
        let bytes = question(0x1234, "a.test", RecordKind::Aaaa).unwrap();
        let mut wanted = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        wanted.extend_from_slice(b"\x01a\x04test\x00\x00\x1c\x00\x01");
        assert_eq!(bytes, wanted);
        for bad in ["", "a..b", ".", &"a".repeat(64), &"abc.".repeat(70)] {
            assert!(question(1, bad, RecordKind::A).is_none(), "{bad}");
        }
    }

    #[test]
    fn addresses_and_services_are_read() {
        let asked = question(7, "x.test", RecordKind::A).unwrap();
        let mut records = of_name(RecordKind::A, &[192, 0, 2, 1]);
        // An alias, which is passed over, and another address.
        records.extend_from_slice(b"\xc0\x0c\x00\x05\x00\x01\0\0\0\x1e\x00\x02\xc0\x0c");
        records.extend(of_name(RecordKind::A, &[192, 0, 2, 2]));
        let found = answer(&answer_to(&asked, FINE, [3, 0, 0], &records), &asked).unwrap();
        let wanted = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(found.addresses, wanted);
        let asked = question(7, "X.test", RecordKind::Srv).unwrap();
        // `gpu-1` and a pointer to `test` of the question.
        let mut records = of_name(RecordKind::Srv, b"\x00\x0a\x00\x05\x1f\x40\x05GPU-1\xc0\x0e");
        records.extend_from_slice(b"\x05gpu-1\xc0\x0e\x00\x1c\x00\x01\0\0\0\x1e\x00\x10");
        records.extend_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        let found = answer(&answer_to(&asked, FINE, [1, 0, 1], &records), &asked).unwrap();
        let target = "gpu-1.test".to_owned();
        assert_eq!(found.along, [(target.clone(), "2001:db8::1".parse().unwrap())]);
        assert_eq!(found.services, [Srv { priority: 10, weight: 5, port: 8000, target }]);
    }

    /// Catches: an answer to another question that is taken, a part of an answer for the whole, and
    /// names that lead in a circle.
    #[test]
    fn what_is_no_answer_is_told_from_one() {
        let asked = question(7, "x.test", RecordKind::A).unwrap();
        let record = of_name(RecordKind::A, &[192, 0, 2, 1]);
        let with = |flags, count, records: &[u8]| {
            answer(&answer_to(&asked, flags, [count, 0, 0], records), &asked)
        };
        assert!(with(FINE, 1, &record).is_ok());
        assert_eq!(with([0x01, 0], 1, &record), Err(NotRead::Foreign), "a question");
        assert_eq!(with([0x83, 0x80], 1, &record), Err(NotRead::Truncated));
        assert_eq!(with([0x81, 0x83], 0, &[]), Err(NotRead::NoSuchName));
        assert_eq!(with([0x81, 0x82], 0, &[]), Err(NotRead::Refused(2)));
        assert_eq!(with(FINE, 2, &record), Err(NotRead::Malformed));
        assert_eq!(with(FINE, 1, &record[..record.len() - 1]), Err(NotRead::Malformed));
        let short = of_name(RecordKind::A, &[192, 0, 2]);
        assert_eq!(with(FINE, 1, &short), Err(NotRead::Malformed));
        let mut circle = record.clone();
        circle[1] = asked.len() as u8;
        assert_eq!(with(FINE, 1, &circle), Err(NotRead::Malformed));
        for other in ["y.test", "x.test.x"] {
            let other = question(7, other, RecordKind::A).unwrap();
            let foreign = answer_to(&other, FINE, [1, 0, 0], &record);
            assert_ne!(answer(&foreign, &asked).ok(), Some(DnsRecords::default()), "{other:?}");
            assert!(answer(&foreign, &asked).is_err());
        }
        let other = question(8, "x.test", RecordKind::A).unwrap();
        assert_eq!(answer(&answer_to(&other, FINE, [0; 3], &[]), &asked), Err(NotRead::Foreign));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(
            kind in 0usize..3,
            counts in any::<[u8; 3]>(),
            records in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let asked = question(7, "x.test", KINDS[kind]).unwrap();
            let _ = answer(&records, &asked);
            let counts = counts.map(u16::from);
            let _ = answer(&answer_to(&asked, FINE, counts, &records), &asked);
        }

        /// Names that point about in each other.
        #[test]
        fn pointers_end(pointers in proptest::collection::vec((192u8..=192, 0u8..120), 0..100)) {
            let asked = question(7, "x.test", RecordKind::A).unwrap();
            let records: Vec<u8> = pointers.into_iter().flat_map(|(a, b)| [a, b]).collect();
            let _ = answer(&answer_to(&asked, FINE, [9, 0, 0], &records), &asked);
        }

        #[test]
        fn what_is_written_is_read(ips in proptest::collection::vec(any::<[u8; 4]>(), 0..20)) {
            let asked = question(7, "x.test", RecordKind::A).unwrap();
            let records: Vec<u8> =
                ips.iter().flat_map(|ip| of_name(RecordKind::A, ip)).collect();
            let whole = answer_to(&asked, FINE, [ips.len() as u16, 0, 0], &records);
            let found = answer(&whole, &asked).unwrap().addresses;
            let wanted: Vec<IpAddr> = ips.into_iter().map(|ip| Ipv4Addr::from(ip).into()).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
