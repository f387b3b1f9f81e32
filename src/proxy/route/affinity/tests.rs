use super::*;
use crate::proxy::route::strategy::Fit;
use crate::state::latency::Latency;

/// Backends by weight (0: it does not fit) and requests in flight, and who has read how much.
struct Field {
    backends: Vec<(u64, u32)>,
    hints: Hints,
    fresh: Vec<u32>,
}

impl Candidates for Field {
    fn count(&self) -> u32 {
        self.backends.len() as u32
    }

    fn fit(&self, place: u32) -> Option<Fit> {
        let weight = self.backends[place as usize].0 * 100;
        (weight > 0).then_some(Fit { weight, is_scout: false })
    }

    fn inflight(&self, place: u32) -> u32 {
        self.backends[place as usize].1
    }

    fn latency(&self, _: u32) -> Latency {
        Latency::default()
    }

    fn now(&self) -> Tenths {
        Tenths(1)
    }

    fn fresh(&self, place: u32) -> u32 {
        self.fresh.get(place as usize).copied().unwrap_or_default()
    }

    fn hints(&self) -> &Hints {
        &self.hints
    }
}

/// Of a prompt of 10 000 bytes. `held`: place and bytes.
fn field(backends: &[(u64, u32)], held: &[(u32, u32)]) -> Field {
    let mut hints = Hints { bytes: 10_000, ..Hints::NONE };
    for (place, bytes) in held {
        hints.add(HeldPrefix { place: *place, bytes: *bytes, age: Duration::ZERO, is_end: false });
    }
    Field { backends: backends.to_vec(), hints, fresh: Vec::new() }
}

/// Everybody who is picked now and then.
fn picked(field: &Field) -> Vec<u32> {
    let mut dice = Dice::new(7);
    let mut all: Vec<_> = (0..100).filter_map(|_| by_prefix(&mut dice, field)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Catches: a prefix that nobody goes by; one that makes an engine work while others wait; one that
/// is too short to matter and decides all the same; weights that do not count.
#[test]
fn the_longest_prefix_decides_within_what_its_backend_can_take() {
    let few = [(1, 1), (1, 0), (1, 0)];
    let busy = [(1, 10), (1, 8), (1, 6)];
    let hot = [(1, 20), (1, 6), (1, 6)];
    for (backends, held, wanted) in [
        (&few[..], &[][..], &[1, 2][..]),
        (&few, &[(0, 9_000)], &[0]),
        (&few, &[(2, 9_000), (0, 8_000)], &[2]),
        (&few, &[(0, 9_000), (2, 8_000)], &[0]),
        (&few, &[(0, 9_000), (2, 9_000)], &[2]),
        (&busy, &[(0, 9_000)], &[0]),
        (&hot, &[(0, 9_000)], &[1, 2]),
        (&hot, &[(0, 9_000), (2, 4_000)], &[2]),
        // Less than three tenths of it.
        (&few, &[(0, 2_900)], &[1, 2]),
        (&few, &[(2, 2_900)], &[2]),
        // The heavy one can take more.
        (&[(4, 20), (1, 6), (1, 6)], &[(0, 9_000)], &[0]),
        (&[(1, 4), (4, 4), (4, 4)], &[(0, 9_000)], &[1, 2]),
        // It does not fit.
        (&[(0, 0), (1, 3), (1, 2)], &[(0, 9_000)], &[2]),
        (&[(0, 0), (1, 3), (1, 2)], &[(0, 9_000), (1, 5_000)], &[1]),
        // It is not of this tier.
        (&few, &[(7, 9_000)], &[1, 2]),
        (&[(0, 0), (0, 0)], &[(0, 9_000)], &[]),
    ] {
        assert_eq!(picked(&field(backends, held)), wanted, "{backends:?} {held:?}");
    }
}

/// Catches: prompts that begin alike and fill the cache of the one engine that was first, where so
/// few are under way that it never has much to do; a conversation that moves for that reason.
#[test]
fn what_many_begin_with_leads_to_who_has_not_read_more_than_its_share() {
    let idle = [(1, 0), (1, 0), (1, 0)];
    let with = |fresh: &[u32], bytes, is_end| {
        let mut field = field(&idle, &[]);
        field.hints.add(HeldPrefix { place: 0, bytes, age: Duration::ZERO, is_end });
        field.fresh = fresh.to_vec();
        picked(&field)
    };
    assert_eq!(with(&[16_000, 0, 0], 5_000, false), [0]);
    assert_eq!(with(&[90_000, 0, 0], 5_000, false), [1, 2]);
    assert_eq!(with(&[90_000, 80_000, 80_000], 5_000, false), [0]);
    assert_eq!(with(&[90_000, 0, 0], 5_000, true), [0], "its own words");
    assert_eq!(with(&[90_000, 0, 0], 8_000, false), [0], "hardly anything is to be read");
}

#[test]
fn as_many_as_there_is_room_for_are_looked_at_and_none_twice() {
    let mut hints = Hints::NONE;
    for place in 0..20 {
        let held = |bytes| HeldPrefix { place, bytes, age: Duration::ZERO, is_end: false };
        let has_room = hints.add(held(100 - place));
        assert_eq!(has_room, hints.held().len() < PREFIX_HELD_MAX);
        hints.add(held(1));
    }
    assert_eq!(hints.held().len(), PREFIX_HELD_MAX);
    assert_eq!(hints.of(3).map(|held| held.bytes), Some(97));
    assert_eq!(hints.of(19), None);
}

const NAMES: [&str; 5] = ["gpu-1", "gpu-2", "gpu-3", "gpu-4", "gpu-5"];

fn homes(weights: &[u64]) -> Vec<(u32, bool)> {
    let named = NAMES.into_iter().zip([1; 5]).take(weights.len());
    let sessions = Sessions::new(named);
    let backends: Vec<_> = weights.iter().map(|weight| (*weight, 0)).collect();
    let name = |n: u32| fnv::hash(format!("session {n}").bytes());
    let field = field(&backends, &[]);
    (0..2_000).map(|n| sessions.pick(name(n), &field).unwrap()).collect()
}

/// Catches: sessions that move although their backend is there; those of one that went, which all
/// go to the same other one.
#[test]
fn only_the_sessions_of_a_backend_that_goes_move() {
    let (all, without) = (homes(&[1, 1, 1, 1, 1]), homes(&[1, 1, 0, 1, 1]));
    let mut heirs = [0; 5];
    for ((before, strayed), (after, strays)) in all.iter().zip(&without) {
        assert!(!strayed);
        assert_eq!(*strays, *before == 2);
        match *before == 2 {
            true => heirs[*after as usize] += 1,
            false => assert_eq!(before, after),
        }
    }
    assert!(heirs.iter().enumerate().all(|(n, heirs)| n == 2 || *heirs > 60), "{heirs:?}");
    let gone = homes(&[1, 1, 1, 1]);
    let moved = all.iter().zip(&gone).filter(|(before, after)| before.0 != after.0).count();
    assert_eq!(moved, all.iter().filter(|(place, _)| *place == 4).count(), "one is taken out");
}

#[test]
fn heavier_backends_have_more_sessions_and_a_change_moves_few() {
    let count = |homes: &[(u32, bool)], place| homes.iter().filter(|(p, _)| *p == place).count();
    let (even, heavy) = (homes(&[1, 1, 1]), homes(&[3, 1, 1]));
    assert!((560..780).contains(&count(&even, 0)), "{}", count(&even, 0));
    assert!((1_130..1_270).contains(&count(&heavy, 0)), "{}", count(&heavy, 0));
    let moves = even.iter().zip(&heavy).filter(|(before, after)| before.0 != after.0);
    assert!(moves.into_iter().all(|(_, after)| after.0 == 0), "only to the one that grew");
}
