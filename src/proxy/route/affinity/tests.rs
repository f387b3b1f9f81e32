use super::*;
use crate::base::limits::PREFIX_BYTES_MAX;
use crate::llm::request::prompt::Trail;
use crate::llm::request::BodyScan;
use crate::proxy::route::strategy::Fit;
use crate::state::board::Board;
use crate::state::latency::Latency;
use crate::state::member;

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

/// Catches: one name that all requests have, and one engine that works for all while the others
/// have nothing to do.
#[test]
fn a_session_goes_past_a_home_that_has_more_than_its_share() {
    let sessions = Sessions::new(NAMES.into_iter().zip([1; 5]).take(3));
    let pick = |backends: &[(u64, u32)]| sessions.pick(77, &field(backends, &[])).unwrap();
    let mut backends = [(1, 0); 3];
    let (home, strays) = pick(&backends);
    assert!(!strays);
    backends[home as usize].0 = 0;
    let (next, strays) = pick(&backends);
    assert!(strays && next != home);
    for (own, others, wanted) in [
        (2, 0, (home, false)),
        (3, 0, (next, true)),
        (10, 8, (home, false)),
        (20, 6, (next, true)),
        (20, 20, (home, false)),
    ] {
        let mut backends = [(1, others); 3];
        backends[home as usize].1 = own;
        assert_eq!(pick(&backends), wanted, "{own} beside {others}");
    }
    // Its weight is what its share goes by.
    let mut backends = [(1, 0); 3];
    backends[home as usize] = (100, 40);
    assert_eq!(pick(&backends), (home, false));
    let mut backends = [(1, 0); 3];
    for _ in 0..300 {
        let (place, _) = pick(&backends);
        backends[place as usize].1 += 1;
    }
    let most = backends.iter().map(|(_, inflight)| *inflight).max().unwrap();
    assert!((100..=127).contains(&most), "{backends:?}");
}

/// Catches: the system's words alone, sent once, that are taken for the own words of all who begin
/// with them.
#[test]
fn who_sends_only_what_many_begin_with_does_not_make_it_theirs() {
    let text = "backends: [{url: 'http://192.0.2.1'}, {url: 'http://192.0.2.2'}]\n\
                routing: {load_balance: prefix_affinity}";
    let view = Board::of(text).view();
    let of = |messages: &[&str]| {
        let long = "and so on ".repeat(100);
        let message = |text: &&str| format!(r#"{{"content":"{text} {long}"}}"#);
        let all = messages.iter().map(message);
        let body = format!(r#"{{"messages":[{}]}}"#, all.collect::<Vec<_>>().join(","));
        let mut scan = BodyScan::new(body.as_bytes()).with_prompt();
        while scan.step(usize::MAX).is_none() {}
        let key = view.prefixes.as_ref().unwrap().key();
        scan.prompt().unwrap().milestones(body.as_bytes(), "m", key)
    };
    let now = member::now();
    let learn = |messages: &[&str]| learn(&of(messages), 0, (&view, &view.members()[0]), now);
    let held =
        |messages: &[&str]| Hints::find((&of(messages), CacheOf::default()), &view, now).held()[0];
    let is_end = |messages: &[&str]| held(messages).is_end;
    learn(&["system"]);
    assert!(!is_end(&["system", "hello"]));
    learn(&["system", "hello"]);
    assert!(is_end(&["system", "hello", "hi", "why?"]));
    let other = ["system", "good morning"];
    assert!(!is_end(&other));
    // Where more may follow than was looked at, nothing is held against an engine.
    let huge = ["system", &"x".repeat(2 * PREFIX_BYTES_MAX)];
    learn(&huge);
    let measured = |messages: &[&str]| expected(&of(messages), &held(messages));
    assert_eq!(measured(&huge), ExpectedPrefix::default());
    assert_ne!(measured(&other), ExpectedPrefix::default());
}

/// Catches: an engine that answered a prompt with an error and is asked again for having read it;
/// what it had read before, forgotten with that; bytes that count as read though they were not.
#[test]
fn a_try_that_failed_taught_nothing() {
    let text = "backends: [{url: 'http://192.0.2.1'}, {url: 'http://192.0.2.2'}]\n\
                routing: {load_balance: prefix_affinity}";
    let (view, now) = (Board::of(text).view(), member::now());
    let member = &view.members()[0];
    let prompt = |pieces: &[(u64, usize)]| {
        let mut trail = Trail::new(0);
        for (id, bytes) in pieces {
            trail.part(*bytes, std::iter::empty(), |before, len| before ^ (id << 40 | len as u64));
        }
        trail.finish(pieces.len())
    };
    let known = |prompt: &Milestones| {
        let hints = Hints::find((prompt, CacheOf::default()), &view, now);
        hints.held().first().map(|held| held.bytes)
    };
    let (short, long) = (prompt(&[(1, 3_000)]), prompt(&[(1, 3_000), (2, 50_000)]));
    let taught = learn(&long, 0, (&view, member), now);
    assert_eq!((known(&long), member.fresh(now)), (Some(53_000), 53_000));
    taught.unlearn(&long, (&view, member), Duration::ZERO, now);
    assert_eq!((known(&long), known(&short), member.fresh(now)), (None, None, 0));
    assert!(!learn(&short, 0, (&view, member), now).is_nothing());
    let taught = learn(&long, 3_000, (&view, member), now);
    taught.unlearn(&long, (&view, member), Duration::ZERO, now);
    assert_eq!((known(&long), known(&short)), (Some(3_000), Some(3_000)));
    assert_eq!(member.fresh(now), 3_000);
    let again = learn(&long, 53_000, (&view, member), now);
    again.unlearn(&long, (&view, member), Duration::ZERO, now);
    assert_eq!(known(&long), Some(53_000), "that try taught nothing new");
    assert!(Taught::default().is_nothing());
}
