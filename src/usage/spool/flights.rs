//! The requests in flight, as the writer knows them: what was last said of each is repeated at the
//! beginning of a segment.

use super::segment::Kind;
use crate::base::id::RequestId;
use crate::base::limits::{SPOOL_OPENS_MAX, SPOOL_ROOMS_MAX, SPOOL_ROOM_BYTES_MAX};
use std::collections::HashMap;

/// A table of so many requests is never made smaller.
const ROOM_KEPT: usize = 1024;

/// Requests that began and have not ended.
#[derive(Default)]
pub(super) struct Flights {
    open: HashMap<RequestId, Open>,
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

impl Flights {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Takes in what is said of one, and the sequence behind it. False when there are too many.
    pub fn follow(&mut self, kind: Kind, id: RequestId, (begun, payload): (u64, &[u8])) -> bool {
        if kind == Kind::Close {
            if let Some(mut open) = self.open.remove(&id) {
                let fits = open.payload.capacity() <= SPOOL_ROOM_BYTES_MAX;
                if fits && self.rooms.len() < SPOOL_ROOMS_MAX {
                    open.payload.clear();
                    self.rooms.push(open.payload);
                }
            }
            // After a burst: the table alone would keep a hundred bytes for each of its requests.
            if self.open.capacity() > ROOM_KEPT && self.open.len() < self.open.capacity() / 8 {
                self.open.shrink_to(self.open.len() * 2);
                self.rooms.truncate(self.open.len());
            }
            return true;
        }
        if let Some(open) = self.open.get_mut(&id) {
            open.kind = kind;
            open.payload.clear();
            open.payload.extend_from_slice(payload);
            return true;
        }
        if self.open.len() >= SPOOL_OPENS_MAX {
            return false;
        }
        let mut room = self.rooms.pop().unwrap_or_default();
        room.extend_from_slice(payload);
        self.open.insert(id, Open { begun, kind, payload: room });
        true
    }

    /// Kind and payload of what was last said of each, in the order in which they began.
    pub fn in_order(&self) -> impl Iterator<Item = (Kind, &[u8])> {
        let mut open: Vec<&Open> = self.open.values().collect();
        open.sort_unstable_by_key(|open| open.begun);
        open.into_iter().map(|open| (open.kind, open.payload.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> RequestId {
        RequestId::from_client(format!("r{number}").as_bytes()).unwrap()
    }

    /// Catches: what was said last, or the order, lost when memory is given back; memory that a
    /// burst leaves for good.
    #[test]
    fn a_burst_leaves_what_is_in_flight_and_little_else() {
        let mut flights = Flights::default();
        for number in 0..20_000 {
            assert!(flights.follow(Kind::Open, id(number), (number as u64, b"open")));
        }
        flights.follow(Kind::Note, id(19_990), (30_000, b"note"));
        let large = flights.open.capacity();
        for number in 0..19_990 {
            flights.follow(Kind::Close, id(number), (0, b""));
        }
        assert!(flights.open.capacity() <= ROOM_KEPT.max(large / 16));
        assert!(flights.rooms.len() < ROOM_KEPT);
        let left: Vec<_> =
            flights.in_order().map(|(kind, payload)| (kind, payload.len())).collect();
        assert_eq!(left.len(), 10);
        assert_eq!(left[0], (Kind::Note, 4), "it keeps its place");
        assert!(left[1..].iter().all(|said| *said == (Kind::Open, 4)));
    }
}
