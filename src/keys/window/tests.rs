use super::*;
use proptest::prelude::*;
use ResetPeriod::{Daily, Monthly, Never, Weekly};

/// UTC where this machine has no zones, which is an error where all tests are run.
fn zone(name: &str) -> TimeZone {
    let found = TimeZone::get(name);
    let is_whole_run = std::env::var_os("LLMPROXY_TEST_CLIENTS").is_some();
    assert!(found.is_ok() || !is_whole_run, "{name}: the package tzdata is missing");
    found.unwrap_or(TimeZone::UTC)
}

/// Cases of a property: more where all tests are run; `PROPTEST_CASES` asks for others.
fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let is_whole_run = std::env::var_os("LLMPROXY_TEST_CLIENTS").is_some();
    asked.unwrap_or(if is_whole_run { 100_000 } else { 2_000 })
}

fn ms(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

/// Catches: a period that begins at another moment than the calendar says.
#[test]
fn periods_begin_with_the_calendar() {
    let of = |kind, moment: &str| period(kind, &TimeZone::UTC, ms(moment));
    let day = of(Daily, "2026-02-28T23:59:59.999Z");
    assert_eq!(day.end_ms, ms("2026-03-01T00:00:00Z"));
    assert_eq!(of(Daily, "2026-03-01T00:00:00Z").number, day.number + 1);
    // A Sunday, and the Monday after it.
    let week = of(Weekly, "2026-11-29T23:59:59Z");
    assert_eq!(
        (week.begin_ms, week.end_ms),
        (ms("2026-11-23T00:00:00Z"), ms("2026-11-30T00:00:00Z"))
    );
    assert_eq!(of(Weekly, "2026-11-30T00:00:00Z").number, week.number + 1);
    let month = of(Monthly, "2028-02-29T12:00:00Z");
    assert_eq!(
        (month.begin_ms, month.end_ms),
        (ms("2028-02-01T00:00:00Z"), ms("2028-03-01T00:00:00Z"))
    );
    assert_eq!(
        of(Monthly, "2028-12-31T23:00:00Z").number + 1,
        of(Monthly, "2029-01-01T00:00:00Z").number
    );
    assert_eq!(of(Never, "2026-01-01T00:00:00Z"), Period::ALWAYS);
}

/// Catches: days that are told by their 24 hours where one has 23, 25, or no midnight.
#[test]
fn days_follow_the_clocks_of_their_zone() {
    let berlin = zone("Europe/Berlin");
    if berlin == TimeZone::UTC {
        // This machine has no zones.
        return;
    }
    let hours = |moment| {
        let day = period(Daily, &berlin, ms(moment));
        (day.end_ms - day.begin_ms) / 3_600_000
    };
    assert_eq!(hours("2026-03-29T12:00:00Z"), 23);
    assert_eq!(hours("2026-10-25T12:00:00Z"), 25);
    assert_eq!(hours("2026-07-01T12:00:00Z"), 24);
    // Cairo skips midnight.
    let cairo = zone("Africa/Cairo");
    let day = period(Daily, &cairo, ms("2026-04-24T12:00:00Z"));
    assert_eq!(day.end_ms - day.begin_ms, 23 * 3_600_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Catches: periods that overlap, leave a gap, or go backwards; a moment outside its own.
    #[test]
    fn periods_tile_the_time(
        at in 1_546_300_800_000i64..2_900_000_000_000,
        kind in prop::sample::select(vec![Daily, Weekly, Monthly]),
        name in prop::sample::select(vec![
            "UTC", "Europe/Berlin", "America/New_York", "Asia/Shanghai", "Australia/Lord_Howe",
            "Pacific/Apia", "Africa/Cairo", "America/Sao_Paulo",
        ]),
    ) {
        let zone = zone(name);
        let here = period(kind, &zone, at);
        prop_assert!(here.has(at), "{here:?}");
        let before = period(kind, &zone, here.begin_ms - 1);
        let after = period(kind, &zone, here.end_ms);
        prop_assert_eq!(before.end_ms, here.begin_ms);
        prop_assert_eq!(after.begin_ms, here.end_ms);
        prop_assert!(before.number < here.number && here.number < after.number);
        prop_assert_eq!(period(kind, &zone, here.begin_ms), here);
        prop_assert_eq!(period(kind, &zone, here.end_ms - 1), here);
    }
}
