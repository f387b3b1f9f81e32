//! Where a lane's records come from: the seam between what keeps records and what delivers them.

use super::record::borrowed::RecordRef;
use super::record::UsageRecord;
use crate::base::limits::{LANE_BYTES_KEPT, LANE_RECORDS_MIN};
use crossbeam_channel::Receiver;
use std::io;

/// The bytes of records that were read together, one behind the other. Used again for the next
/// ones, so that reading allocates nothing.
#[derive(Default)]
pub struct Parcel {
    bytes: Vec<u8>,
    /// The place of each in the order of the source, and where its bytes end.
    ends: Vec<(u64, usize)>,
}

/// Records that were read together, in order; their texts lie in a [`Parcel`].
#[derive(Default)]
pub struct Read<'p> {
    /// The place of each in the order of its source: rises from record to record, and may skip
    /// numbers.
    pub seqs: Vec<u64>,
    /// What happened.
    pub records: Vec<RecordRef<'p>>,
}

/// The records that wait for one reporter. Belongs to one lane.
pub trait Source: Send {
    /// Adds up to `max` records behind those read before, in order, and uses `room` for their
    /// texts; none when there is nothing more now. True when there may be more. Never blocks.
    fn read<'p>(&mut self, max: usize, room: &'p mut Parcel, into: &mut Read<'p>) -> bool;

    /// All up to and including `through` are done with: a restart goes on behind it.
    fn done(&mut self, through: u64);

    /// Rings (`bounded(1)`) when there may be more to read.
    fn bell(&self) -> &Receiver<()>;

    /// Parks a record that the destination refuses for good, with the reason.
    ///
    /// # Errors
    /// There is no room for it, or the disk does not take it: it is still the lane's to keep.
    fn bury(&mut self, record: &UsageRecord, reason: &str) -> io::Result<()>;

    /// Nothing came for a while: gives back the memory that a burst took.
    fn rest(&mut self) {}

    /// Up to `max` records that own their texts.
    #[cfg(test)]
    fn read_owned(&mut self, max: usize) -> Vec<Delivery> {
        let mut all = Vec::new();
        let mut is_more = true;
        while is_more && all.len() < max {
            let (mut room, mut read) = (Parcel::default(), Read::default());
            is_more = self.read(max - all.len(), &mut room, &mut read);
            let records = read.records.iter().map(RecordRef::to_record);
            all.extend(
                read.seqs.iter().zip(records).map(|(seq, record)| Delivery { seq: *seq, record }),
            );
        }
        all
    }
}

/// A record and its place in the order of its source.
#[cfg(test)]
pub struct Delivery {
    /// Rises from record to record; may skip numbers.
    pub seq: u64,
    /// What happened.
    pub record: UsageRecord,
}

impl Parcel {
    /// Makes room for other records.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Adds a record's bytes.
    pub fn push(&mut self, seq: u64, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push((seq, self.bytes.len()));
    }

    /// Gives back the memory that a burst took.
    pub fn rest(&mut self) {
        self.bytes.shrink_to(LANE_BYTES_KEPT);
        self.ends.shrink_to(LANE_RECORDS_MIN);
    }

    /// Records in it.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The records in order: the place of each, and its bytes.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut from = 0;
        self.ends.iter().map(move |(seq, end)| {
            let bytes = self.bytes.get(from..*end).unwrap_or_default();
            from = *end;
            (*seq, bytes)
        })
    }
}

/// An empty vector in the memory of another one, whose elements have the same size.
pub fn emptied<A, B>(from: Vec<A>) -> Vec<B> {
    // One that is collected from another takes over its memory.
    from.into_iter().filter_map(|_| None).collect()
}

impl<'p> Read<'p> {
    /// Adds a record.
    pub fn push(&mut self, seq: u64, record: RecordRef<'p>) {
        self.seqs.push(seq);
        self.records.push(record);
    }

    /// Its memory, empty, for what lies in another room.
    pub fn emptied<'q>(mut self) -> Read<'q> {
        self.seqs.clear();
        Read { seqs: self.seqs, records: emptied(self.records) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: memory that is allocated anew for each batch.
    #[test]
    fn what_is_emptied_keeps_its_memory() {
        let mut read = Read::default();
        (0..100).for_each(|seq| read.push(seq, RecordRef::default()));
        let (seqs, records) = (read.seqs.as_ptr(), read.records.as_ptr().cast::<u8>());
        let emptied = read.emptied();
        assert_eq!((emptied.seqs.len(), emptied.records.len()), (0, 0));
        assert!(emptied.seqs.capacity() >= 100 && emptied.records.capacity() >= 100);
        assert_eq!(emptied.seqs.as_ptr(), seqs);
        assert_eq!(emptied.records.as_ptr().cast::<u8>(), records);
    }

    /// Catches: a burst whose memory stays.
    #[test]
    fn a_burst_gives_its_memory_back() {
        let mut parcel = Parcel::default();
        (0..100_000).for_each(|seq| parcel.push(seq, b"0123456789"));
        parcel.clear();
        parcel.rest();
        assert!(parcel.bytes.capacity() <= LANE_BYTES_KEPT);
        assert!(parcel.ends.capacity() <= LANE_RECORDS_MIN);
    }

    /// Catches: bytes of one record that are taken for those of its neighbour.
    #[test]
    fn packed_bytes_come_out_as_they_went_in() {
        let mut parcel = Parcel::default();
        for round in 0..2 {
            parcel.clear();
            let all: [(u64, &[u8]); 4] = [(2, b"a"), (5, b""), (6, b"bcd"), (9 + round, b"e")];
            all.iter().for_each(|(seq, bytes)| parcel.push(*seq, bytes));
            assert_eq!((parcel.len(), parcel.bytes()), (4, 5));
            assert_eq!(parcel.iter().collect::<Vec<_>>(), all);
        }
    }
}
