//! The requests in flight, as the writer knows them: what was last said of each is repeated at the
//! beginning of a segment.

use super::codec;
use super::segment::Kind;
use crate::base::limits::{SPOOL_OPENS_MAX, SPOOL_ROOMS_MAX, SPOOL_ROOM_BYTES_MAX};
use hashbrown::hash_table::{Entry, HashTable};

/// A table of so many requests is never made smaller.
const ROOM_KEPT: usize = 1024;

/// Requests that began and have not ended. The id of one stands in its payload: a key beside it
/// would be a megabyte for ten thousand streams.
#[derive(Default)]
pub(super) struct Flights {
    open: HashTable<Open>,
    /// Room for payloads that requests had which are over: most are over in a moment.
    rooms: Vec<Vec<u8>>,
}

struct Open {
    /// Sequence behind the first that was said of it: it keeps its place among the others.
    begun: u64,
    /// Kind and payload of the last.
    kind: Kind,
    payload: Vec<u8>,
}

impl Open {
    fn id(&self) -> &[u8] {
        codec::request_id_bytes(&self.payload).unwrap_or_default()
    }
}

/// Of an id. They are made by us, so that none is chosen to meet others, and a keyed hash would
/// take four times as long. The table takes a place from the lower bits and a tag from the upper.
fn hash(id: &[u8]) -> u64 {
    u64::from(crc32c::crc32c(id)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Flights {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Takes in what is said of one, and the sequence behind it. False when there are too many.
    pub fn follow(&mut self, kind: Kind, (begun, payload): (u64, &[u8])) -> bool {
        let Some(id) = codec::request_id_bytes(payload) else { return true };
        let full = self.open.len() >= SPOOL_OPENS_MAX;
        let is_it = |open: &Open| open.id() == id;
        match self.open.entry(hash(id), is_it, |open| hash(open.id())) {
            Entry::Occupied(entry) if kind == Kind::Close => {
                let (Open { payload, .. }, _) = entry.remove();
                self.give_back(payload);
            }
            Entry::Vacant(_) if kind == Kind::Close => {}
            Entry::Occupied(mut entry) => {
                let open = entry.get_mut();
                open.kind = kind;
                open.payload.clear();
                open.payload.extend_from_slice(payload);
            }
            Entry::Vacant(_) if full => return false,
            Entry::Vacant(entry) => {
                let mut room = self.rooms.pop().unwrap_or_default();
                room.extend_from_slice(payload);
                entry.insert(Open { begun, kind, payload: room });
            }
        }
        true
    }

    fn give_back(&mut self, mut room: Vec<u8>) {
        if room.capacity() <= SPOOL_ROOM_BYTES_MAX && self.rooms.len() < SPOOL_ROOMS_MAX {
            room.clear();
            self.rooms.push(room);
        }
        // After a burst: the table alone would keep 50 bytes for each of its requests.
        if self.open.capacity() > ROOM_KEPT && self.open.len() < self.open.capacity() / 8 {
            self.open.shrink_to(self.open.len() * 2, |open| hash(open.id()));
            self.rooms.truncate(self.open.len());
        }
    }

    /// Kind and payload of what was last said of each, in the order in which they began.
    pub fn in_order(&self) -> impl Iterator<Item = (Kind, &[u8])> {
        let mut open: Vec<&Open> = self.open.iter().collect();
        open.sort_unstable_by_key(|open| open.begun);
        open.into_iter().map(|open| (open.kind, open.payload.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::RequestId;
    use crate::usage::record::UsageRecord;

    /// What is said of this one, in so many bytes of a path.
    fn payload(number: usize, path: usize) -> Vec<u8> {
        let request_id = RequestId::from_client(format!("r{number}").as_bytes()).unwrap();
        let record = UsageRecord { request_id, path: "p".repeat(path), ..UsageRecord::default() };
        let mut bytes = Vec::new();
        codec::encode(&record.borrowed(), &mut bytes);
        bytes
    }

    /// Catches: what was said last, or the order, lost when memory is given back; memory that a
    /// burst leaves for good.
    #[test]
    fn a_burst_leaves_what_is_in_flight_and_little_else() {
        let mut flights = Flights::default();
        for number in 0..20_000 {
            assert!(flights.follow(Kind::Open, (number as u64, &payload(number, 4))));
        }
        assert_eq!(flights.len(), 20_000);
        flights.follow(Kind::Note, (30_000, &payload(19_990, 9)));
        let large = flights.open.capacity();
        for number in 0..19_990 {
            flights.follow(Kind::Close, (0, &payload(number, 50)));
        }
        assert!(flights.open.capacity() <= ROOM_KEPT.max(large / 16));
        assert!(flights.rooms.len() < ROOM_KEPT);
        let said: Vec<_> = flights.in_order().map(|(kind, said)| (kind, said.to_vec())).collect();
        let mut wanted = vec![(Kind::Note, payload(19_990, 9))];
        wanted.extend((19_991..20_000).map(|number| (Kind::Open, payload(number, 4))));
        assert!(said == wanted, "each keeps its place, and what was last said of it");
    }
}
