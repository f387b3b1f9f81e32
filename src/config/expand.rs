//! `${VAR}` and `${VAR:-default}` in the text of a value; `$${` stands for a literal `${`.
//! Scripts are never expanded: Lua has its own use for `$` and braces.

/// Replaces every reference in `text`. `env` gives the value of a variable or `None`. As in the
/// shell, the default also stands in for an empty variable. What a variable holds is not expanded
/// again. Errors name the variable and never its value.
pub fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, reference) = rest.split_at(at);
        if let Some(literal) = before.strip_suffix('$') {
            out.push_str(literal);
            out.push_str("${");
            rest = reference.get(2..).unwrap_or("");
            continue;
        }
        out.push_str(before);
        let Some((inside, after)) = reference.get(2..).and_then(|r| r.split_once('}')) else {
            return Err("`${` without its `}` (write `$${` for a literal `${`)".into());
        };
        out.push_str(&value_of(inside, env)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn value_of(inside: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(fine)
    {
        return Err("`${…}` must hold the name of a variable, as in `${NAME}` or \
                    `${NAME:-default}` (write `$${` for a literal `${`)"
            .into());
    }
    match (env(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!(
            "the environment variable {name} is not set (`${{{name}:-default}}` gives a default)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("gpu-1".into()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${HOST}".into()),
            _ => None,
        }
    }

    #[test]
    fn references_are_replaced_once() {
        for (text, want) in [
            ("http://${HOST}:8000", "http://gpu-1:8000"),
            ("${HOST}${HOST}", "gpu-1gpu-1"),
            ("${EMPTY}", ""),
            ("${EMPTY:-x}", "x"),
            ("${NONE:-x y}", "x y"),
            ("${NONE:-}", ""),
            ("${NESTED}", "${HOST}"),
            ("pa$word $5 {a}", "pa$word $5 {a}"),
            ("$${HOST}", "${HOST}"),
            ("ü${HOST}ü", "ügpu-1ü"),
        ] {
            assert_eq!(expand(text, &env).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn a_bad_reference_is_an_error() {
        for text in ["${NONE}", "${", "a${HOST", "${}", "${a b}", "${1X}", "${HOST.x}", "${:-x}"] {
            assert!(expand(text, &env).is_err(), "{text}");
        }
        assert!(expand("${NONE}", &env).unwrap_err().contains("NONE"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_an_answer(text in ".{0,64}") {
            let got = expand(&text, &env);
            // Text without a reference must come out as it went in.
            if !text.contains("${") {
                proptest::prop_assert_eq!(got, Ok(text));
            }
        }
    }
}
