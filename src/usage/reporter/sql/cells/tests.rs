use super::*;

/// Catches: a request body that some database takes for no JSON.
#[test]
fn bodies_are_json_for_every_database() {
    let same = r#"{"seed": 0.70,  "a":"\u00e9🦀"}"#;
    assert_eq!(json(same.as_bytes(), 1000), same);
    let deep = "[".repeat(40) + &"]".repeat(40);
    for body in [
        &b"{\"cut\":\"sh"[..],
        b"--boundary\xff\0",
        b"{\"a\":\"\\u0000\"}",
        b"{\"a\":\"\\ud800\"}",
        b"[1e999]",
        deep.as_bytes(),
        &[b'1'; 2000],
    ] {
        let written = json(body, 1000);
        assert!(written.len() <= 1000 && !written.contains("\\u0000\""), "{written}");
        let parsed: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert!(parsed.is_string(), "{written}");
    }
}

proptest::proptest! {
    /// Catches: any bytes of a client that give no JSON, or more of it than fits.
    #[test]
    fn any_body_is_json(
        body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
        longest in 0_usize..80,
    ) {
        let written = json(&body, longest);
        proptest::prop_assert!(written.len() <= longest.max(2));
        proptest::prop_assert!(serde_json::from_str::<serde_json::Value>(&written).is_ok());
    }

    /// Catches: a cut inside a letter, or a letter too many.
    #[test]
    fn any_text_fits(text in "\\PC{0,12}", most in 0_usize..16) {
        let fit = |width, letters| fit(text.as_str().into(), Some(width), letters);
        let letters = fit(Width::Letters(most), Letters::All);
        proptest::prop_assert!(letters.chars().count() <= most && text.starts_with(&*letters));
        let bytes = fit(Width::Bytes(most), Letters::ThreeBytes);
        proptest::prop_assert!(bytes.len() <= most);
    }
}

/// Catches: a NUL, or a letter that a column's character set has not, in a text that is short
/// enough to go as it is.
#[test]
fn a_text_goes_as_it_is_only_where_the_column_takes_it() {
    for (text, all, three_bytes, ascii) in [
        ("plain", "plain", "plain", "plain"),
        ("a\0b", "a\u{fffd}b", "a\u{fffd}b", "a?b"),
        ("\0", "\u{fffd}", "\u{fffd}", "?"),
        ("gr\u{fc}n", "gr\u{fc}n", "gr\u{fc}n", "gr?n"),
        ("x🦀", "x🦀", "x\u{fffd}", "x?"),
    ] {
        let fit = |letters| fit(text.into(), None, letters).into_owned();
        let fitted = [Letters::All, Letters::ThreeBytes, Letters::Ascii].map(fit);
        assert_eq!(fitted, [all, three_bytes, ascii], "{text:?}");
    }
}
