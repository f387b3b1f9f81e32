//! The ring against a model: a queue with a limit.

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Push { kind: u8, parts: Vec<Vec<u8>>, is_end: bool },
    Take,
    Release,
}

fn act() -> impl Strategy<Value = Act> {
    let part = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        1 => prop::collection::vec(any::<u8>(), 0..300),
    ];
    let parts = prop::collection::vec(part, 0..3);
    prop_oneof![
        6 => (1_u8..5, parts, any::<bool>())
            .prop_map(|(kind, parts, is_end)| Act::Push { kind, parts, is_end }),
        2 => Just(Act::Take),
        1 => Just(Act::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..<_>::default() })]

    /// Catches: an entry that is lost, doubled, changed or out of order, at whatever place of a lap
    /// it falls; one refused though there is room, or taken though there is none; one that is gone
    /// before it was released, as the bytes of the file show.
    #[test]
    fn it_is_a_queue_with_a_limit(acts in prop::collection::vec(act(), 0..200)) {
        let folder = Folder::new("model");
        let ring = Arc::new(RingFile::create(folder.path(), 0, 2048).unwrap());
        let (mut producer, mut consumer) =
            (Producer::new(ring.clone()), Consumer::new(ring.clone()));
        // What was put in and not taken, and what was taken and not released.
        let (mut waiting, mut held) = (VecDeque::new(), VecDeque::new());
        let mut head = 0_u64;
        let mut tail = 0_u64;
        for act in acts {
            match act {
                Act::Push { kind, parts, is_end } => {
                    let payload = parts.concat();
                    let size = entry::size(payload.len()) as u64;
                    let left = 2048 - head % 2048;
                    let skipped = if size > left { left } else { 0 };
                    let most = if is_end { 2048 } else { 1536 };
                    let fits = size <= 512 && head - tail + skipped + size <= most;
                    let room = if is_end { Room::All } else { Room::Spare(512) };
                    // The last part lies elsewhere, as a request body does.
                    let last = parts.last().map(Vec::as_slice).unwrap_or_default();
                    let mut draft = draft(&payload[..payload.len() - last.len()]);
                    let pushed = producer.push((kind, NO_OPEN), (&mut draft, last), room);
                    prop_assert_eq!(pushed, fits.then_some(head + skipped));
                    if fits {
                        head += skipped + size;
                        waiting.push_back((kind, payload));
                    }
                }
                Act::Take => {
                    let (all, is_damaged) = taken(&mut consumer);
                    prop_assert!(!is_damaged);
                    prop_assert_eq!(&all, &Vec::from(waiting.clone()));
                    held.append(&mut waiting);
                }
                Act::Release => {
                    consumer.release();
                    tail = ring.tail();
                    held.clear();
                }
            }
            prop_assert_eq!(consumer.has_more(), !waiting.is_empty());
        }
        let bytes = fs::read(folder.path().join("ring-0")).unwrap();
        let kept: Vec<_> = held.into_iter().chain(waiting).collect();
        let count = kept.len() as u64;
        prop_assert_eq!(read(&bytes), (kept, Found { entries: count, damaged: 0 }));
    }
}
