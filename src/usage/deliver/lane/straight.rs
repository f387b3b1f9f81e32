//! The straight road: while a receiver takes what it gets, a batch goes from the bytes that were
//! read to its reporter. No record owns its texts, and none has a place in the window.
//!
//! What is not delivered there goes on in the window, as if it had been sent from there: the rules
//! for tries, waits and order stand in one place.

use super::super::sender::Ended;
use super::Lane;
use crate::base::limits::{
    BATCH_BODY_BYTES_MAX, LANE_BYTES_KEPT, LANE_READ_RECORDS, LANE_RECORDS_MIN,
};
use crate::config::plan::KeyForm;
use crate::usage::counters::count;
use crate::usage::key_form::{way, write_key, Way};
use crate::usage::record::borrowed::RecordRef;
use crate::usage::reporter::{Shape, Tried};
use crate::usage::source::{emptied, Parcel, Read};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// When a batch goes from the bytes that were read to the reporter, as long as that is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Road {
    /// Each does: there is one connection.
    Straight,
    /// When it is all that waits. Of more, each of several connections gets a part.
    StraightIfAll,
    /// Never: there are several connections for one record at a time, and one that is slow would
    /// hold up what comes next.
    Window,
}

impl Road {
    /// To a reporter that wants to be called so.
    pub(super) fn of(shape: &Shape) -> Road {
        match (shape.concurrency, shape.batch) {
            (..=1, _) => Road::Straight,
            (_, 2..) => Road::StraightIfAll,
            _ => Road::Window,
        }
    }
}

/// The memory of a batch, used for one after the other.
#[derive(Default)]
pub(super) struct Rooms {
    parcel: Parcel,
    read: Read<'static>,
    /// The keys of the records, as they were read.
    keys: Vec<Option<&'static str>>,
    /// Those that the reporter sees in another form, one behind the other.
    forms: String,
    /// Where each of these ends.
    ends: Vec<usize>,
}

impl Rooms {
    /// Gives back what a burst took.
    pub(super) fn rest(&mut self) {
        self.parcel.rest();
        self.read.seqs.shrink_to(LANE_RECORDS_MIN);
        self.read.records.shrink_to(LANE_RECORDS_MIN);
        self.keys.shrink_to(LANE_RECORDS_MIN);
        self.forms.shrink_to(LANE_BYTES_KEPT);
        self.ends.shrink_to(LANE_RECORDS_MIN);
    }
}

impl Lane {
    /// Takes what the source has: straight to the reporter while that takes it, else into the
    /// window as far as there is room.
    pub(super) fn read(&mut self) {
        while self.more {
            let limit = self.straight();
            let most = match limit {
                Some(_) => self.batch,
                None => self.window.room().min(LANE_READ_RECORDS),
            };
            if most == 0 {
                return;
            }
            self.read_once(most, limit);
        }
    }

    /// The time for a batch that goes straight; `None` while it must not.
    fn straight(&self) -> Option<Duration> {
        let is_free =
            self.road != Road::Window && self.unburied.is_empty() && self.window.is_clear();
        is_free.then(|| self.stop.within(self.timeout)).flatten()
    }

    fn read_once(&mut self, most: usize, limit: Option<Duration>) {
        let Rooms { mut parcel, mut read, mut keys, mut forms, mut ends } =
            std::mem::take(&mut self.rooms);
        self.more = self.source.read(most, &mut parcel, &mut read);
        write_forms(&read.records, self.key_form, &mut forms, &mut ends);
        show(&mut read.records, self.key_form, (&forms, &ends), &mut keys);
        let is_straight = self.road == Road::Straight || !self.more;
        match limit {
            Some(limit) if is_straight && fits(&read.records) => {
                self.send_straight(&read, &keys, limit)
            }
            _ => self.hold(&read, &keys),
        }
        let (read, keys) = (read.emptied(), emptied(keys));
        self.rooms = Rooms { parcel, read, keys, forms, ends };
    }

    fn send_straight(&mut self, read: &Read<'_>, keys: &[Option<&str>], limit: Duration) {
        let Some(last) = read.seqs.last() else { return };
        self.counted(|counters| count(&counters.batches));
        match self.senders.own().send(&read.records, limit) {
            Tried::Delivered => {
                self.window.passed(*last);
                self.note(read.seqs.len() as u64, None);
                self.tell_done();
            }
            tried => {
                // What else is there tells whose fault that is: the window knows it before.
                self.hold(read, keys);
                self.read();
                let id = self.window.launch(read.seqs.clone()).id;
                self.settle(Ended { id, tried });
            }
        }
    }

    /// Gives records a place in the window.
    fn hold(&mut self, read: &Read<'_>, keys: &[Option<&str>]) {
        for ((seq, record), key) in read.seqs.iter().zip(&read.records).zip(keys) {
            // The key orders the records whatever the reporter sees of it.
            let order = key.map(|key| {
                let mut hasher = DefaultHasher::new();
                key.hash(&mut hasher);
                hasher.finish()
            });
            self.window.add(*seq, order, Arc::new(record.to_record()));
        }
    }
}

/// Writes the keys that the reporter is to see in another form.
fn write_forms(
    records: &[RecordRef<'_>],
    want: KeyForm,
    forms: &mut String,
    ends: &mut Vec<usize>,
) {
    forms.clear();
    ends.clear();
    for record in records {
        // By what the record says of itself: it may be older than the configuration.
        if let (Some(key), Way::Written) = (record.api_key, way(record.key_form, want)) {
            write_key(want, key, forms);
            ends.push(forms.len());
        }
    }
}

/// Puts the keys as the reporter is to see them in the place of those that were read, which go
/// into `keys`.
fn show<'a>(
    records: &mut [RecordRef<'a>],
    want: KeyForm,
    (forms, ends): (&'a str, &[usize]),
    keys: &mut Vec<Option<&'a str>>,
) {
    let (mut from, mut ends) = (0, ends.iter());
    for record in records {
        keys.push(record.api_key);
        record.api_key = match way(record.key_form, want) {
            Way::Never => None,
            Way::AsItIs => record.api_key,
            Way::Written if record.api_key.is_none() => None,
            Way::Written => {
                let end = ends.next().copied().unwrap_or(from);
                let form = forms.get(from..end);
                from = end;
                form
            }
        };
        record.key_form = want;
    }
}

/// True for records that may go together as they are.
fn fits(records: &[RecordRef<'_>]) -> bool {
    let body = |record: &RecordRef<'_>| record.request_body.map_or(0, <[u8]>::len);
    records.len() <= 1 || records.iter().map(body).sum::<usize>() <= BATCH_BODY_BYTES_MAX
}

#[cfg(test)]
mod tests;
