use super::*;
use crate::usage::record::tests::record;
use proptest::prelude::*;

fn bytes_of(record: &UsageRecord) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&record.borrowed(), &mut bytes);
    bytes
}

/// Records differ when any field does.
fn same(one: &UsageRecord, other: &UsageRecord) -> bool {
    format!("{one:?}") == format!("{other:?}")
}

fn usage() -> impl Strategy<Value = Usage> {
    let counts = (any::<u64>(), any::<u64>(), any::<u64>());
    (counts, any::<Option<u64>>(), any::<Option<u64>>()).prop_map(|(counts, cached, reasoning)| {
        Usage {
            prompt_tokens: counts.0,
            completion_tokens: counts.1,
            total_tokens: counts.2,
            cached_tokens: cached,
            reasoning_tokens: reasoning,
        }
    })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    (0..6_u64).prop_map(outcome_of)
}

prop_compose! {
    fn any_record()(
        id in "[a-zA-Z0-9._-]{1,64}",
        client in proptest::option::of("[a-zA-Z0-9._-]{1,64}"),
        texts in proptest::collection::vec(proptest::option::of(".{0,40}"), 11),
        (method, path) in ("[A-Z]{1,9}", "/.{0,40}"),
        numbers in proptest::array::uniform5(any::<u64>()),
        (status, retries) in any::<(u16, u32)>(),
        (stream, fallback) in any::<(bool, bool)>(),
        (counted, ttft) in any::<(Option<u64>, Option<u64>)>(),
        (first_byte, seconds, debited) in any::<(Option<u64>, Option<u64>, Option<u64>)>(),
        oddities in any::<u8>(),
        usage in proptest::option::of(usage()),
        outcome in outcome(),
        body in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
    ) -> UsageRecord {
        let text = |index: usize| texts[index].clone();
        UsageRecord {
            request_id: RequestId::from_client(id.as_bytes()).unwrap(),
            client_request_id: client.and_then(|id| RequestId::from_client(id.as_bytes())),
            timestamp_ms: numbers[0],
            user_id: text(0),
            key_name: text(9),
            key_metadata: text(10),
            key_id: counted,
            api_key: text(1),
            key_form: [KeyForm::None, KeyForm::Plain, KeyForm::Masked, KeyForm::Sha256]
                [numbers[1] as usize % 4],
            model: text(2),
            method: method.into(),
            path,
            backend: text(7).map(Into::into),
            backend_url: text(3).map(Into::into),
            status_code: status,
            is_stream: stream,
            usage,
            counted,
            usage_missing_reason: text(4).map(Into::into),
            latency_ms: numbers[1],
            ttft_ms: ttft,
            first_byte_ms: first_byte,
            audio_seconds: seconds,
            quota_tokens: debited,
            oddities: Oddities::from_bits(oddities),
            engine_error: text(8),
            retry_count: retries,
            fallback_used: fallback,
            outcome,
            error: text(5).map(Into::into),
            upstream_id: text(6),
            request_bytes: numbers[2],
            response_bytes: numbers[3],
            events: numbers[4],
            request_body: body,
        }
    }
}

proptest! {
    /// Catches: a field that is not written, or comes back as another.
    #[test]
    fn a_record_comes_back_as_it_was(record in any_record()) {
        let bytes = bytes_of(&record);
        let back = decode(&bytes).unwrap();
        prop_assert!(same(&record, &back), "{record:?}\n{back:?}");
        prop_assert_eq!(request_id_of(&bytes), Some(record.request_id.as_str()));
        let mut bare = Vec::new();
        encode_bare(&record.borrowed(), &mut bare);
        let bare = decode(&bare).unwrap();
        let stripped = UsageRecord { request_body: None, ..record };
        prop_assert!(same(&stripped, &bare));
    }

    /// Catches: a reader that stops at what a newer version added.
    #[test]
    fn unknown_fields_are_stepped_over(
        record in any_record(),
        number in any::<u64>(),
        text in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = Vec::new();
        let mut numbers = Numbers::default();
        numbers.number(120, number);
        numbers.end(&mut bytes);
        bytes.extend(bytes_of(&record));
        Out { into: &mut bytes }.bytes(121, &text);
        prop_assert!(same(&record, &decode(&bytes).unwrap()));
    }

    /// Catches: a panic, or a length that is believed.
    #[test]
    fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Some(record) = decode(&bytes) {
            prop_assert!(same(&record, &decode(&bytes_of(&record)).unwrap()));
        }
        let _ = request_id_of(&bytes);
    }

    /// Catches: a borrowed record that cannot be owned as it is, or takes what no record is.
    #[test]
    fn a_borrowed_record_says_what_the_owned_one_does(
        record in any_record(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut bytes = bytes_of(&record);
        for (place, bits) in &flips {
            let place = place.index(bytes.len());
            bytes[place] ^= bits;
        }
        let borrowed = decode_ref(&bytes);
        if flips.is_empty() {
            let back = borrowed.map(|record| record.to_record()).unwrap();
            prop_assert!(same(&record, &back), "{record:?}\n{back:?}");
        }
        if let Some(borrowed) = borrowed {
            let owned = borrowed.to_record();
            prop_assert_eq!(format!("{borrowed:?}"), format!("{:?}", owned.borrowed()));
        }
    }

    /// Catches: a text of the record before in place of its own, or bytes taken for a text.
    #[test]
    fn a_record_says_the_same_behind_any_other(
        (one, other) in (any_record(), any_record()),
        shared in any::<u8>(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
    ) {
        let is_shared = |bit: u8| shared >> bit & 1 == 1;
        let mut second = other;
        if is_shared(0) { second.user_id.clone_from(&one.user_id); }
        if is_shared(0) { second.key_metadata.clone_from(&one.key_metadata); }
        if is_shared(0) { second.key_name.clone_from(&one.key_name); }
        if is_shared(1) { second.api_key.clone_from(&one.api_key); }
        if is_shared(2) { second.model.clone_from(&one.model); }
        if is_shared(3) { second.method.clone_from(&one.method); }
        if is_shared(4) { second.path.clone_from(&one.path); }
        if is_shared(5) { second.backend.clone_from(&one.backend); }
        if is_shared(6) { second.backend_url.clone_from(&one.backend_url); }
        let (first, mut bytes) = (bytes_of(&one), bytes_of(&second));
        for (place, bits) in &flips {
            let place = place.index(bytes.len());
            bytes[place] ^= bits;
        }
        let before = decode_ref(&first).unwrap();
        let (alone, behind) = (decode_ref(&bytes), decode_after(&bytes, &before));
        prop_assert_eq!(format!("{alone:?}"), format!("{behind:?}"));
    }

    /// Catches: a cut in the middle of a field that is taken for its end.
    #[test]
    fn a_cut_record_is_none_or_lacks_whole_fields(record in any_record()) {
        let bytes = bytes_of(&record);
        let decoded = (0..bytes.len()).filter(|cut| decode(&bytes[..*cut]).is_some()).count();
        prop_assert!(decoded <= 35, "cut at {decoded} places");
    }
}

/// Catches: an encoding that grew so far that the journal writes what it need not.
#[test]
fn a_usual_record_is_small() {
    let len = bytes_of(&record()).len();
    assert!(len < 170, "{len} bytes");
}

/// Catches: usage of zero tokens that comes back as missing, and the other way round.
#[test]
fn no_usage_and_zero_usage_differ() {
    let zero = UsageRecord { usage: Some(Usage::default()), ..record() };
    assert_eq!(decode(&bytes_of(&zero)).unwrap().usage, Some(Usage::default()));
    let none = UsageRecord { usage: None, ..record() };
    assert_eq!(decode(&bytes_of(&none)).unwrap().usage, None);
}

/// Catches: an ending of a newer version that is billed as a whole answer.
#[test]
fn an_unknown_ending_is_no_whole_answer() {
    let mut bytes = bytes_of(&UsageRecord { outcome: Outcome::Complete, ..record() });
    let mut numbers = Numbers::default();
    numbers.number(field::OUTCOME, 99);
    numbers.end(&mut bytes);
    assert_eq!(decode(&bytes).unwrap().outcome, Outcome::Aborted);
}

/// Catches: numbers of more than 64 bits that wrap around.
#[test]
fn numbers_have_64_bits() {
    for value in [0, 1, 127, 128, 16_383, 16_384, u64::MAX - 1, u64::MAX] {
        let mut bytes = Vec::new();
        write_number(&mut bytes, value);
        let mut rest = bytes.as_slice();
        assert_eq!((read_number(&mut rest), rest.len()), (Some(value), 0));
    }
    let mut long = [0xff_u8; 11].as_slice();
    assert_eq!(read_number(&mut long), None);
    let mut wide = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2_u8].as_slice();
    assert_eq!(read_number(&mut wide), None);
}
