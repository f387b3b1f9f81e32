//! Web pages of other origins: whether a browser may send what one asks for, and whether the page
//! may read the answer. The rules are those of the Fetch standard, section 3.2.

use crate::base::refusal::Refusal;
use crate::config::plan::Cors;
use crate::http::head::{named, Field};
use crate::http::request::Method;
use crate::proxy::whence::CorsField;

/// The rules of one view, in the form in which they are compared and sent.
pub struct CorsRules {
    origins: Vec<String>,
    any_origin: bool,
    methods: Vec<String>,
    headers: Vec<String>,
    credentials: bool,
    max_age: Option<String>,
    exposed: String,
    listed_methods: String,
    listed_headers: String,
}

/// What a browser asks before it sends a request.
pub struct Preflight<'a> {
    origin: &'a str,
    method: &'a str,
    headers: &'a str,
}

const NOT_ALLOWED: Refusal = Refusal::new(403, "cors_not_allowed", "");
const ANY: &str = "*";
/// What is no text, or is said twice, is nothing that is allowed.
const UNCLEAR: &str = "\u{fffd}";
const ORIGIN: &str = "Access-Control-Allow-Origin";
/// What answers to actual requests have of these fields, and what only those to questions have.
const OURS: [&str; 6] = [
    ORIGIN,
    "Access-Control-Allow-Credentials",
    "Access-Control-Expose-Headers",
    "Access-Control-Allow-Methods",
    "Access-Control-Allow-Headers",
    "Access-Control-Max-Age",
];
const CREDENTIALS: CorsField = ("Access-Control-Allow-Credentials", "true");

impl<'a> Preflight<'a> {
    /// The question that a request is; `None`: it is another one.
    pub fn of(method: Method, fields: &[Field], bytes: &'a [u8]) -> Option<Preflight<'a>> {
        if method != Method::Options {
            return None;
        }
        let origin = the_origin(fields, bytes)?;
        let text = |name: &str| {
            named(fields, bytes, name).map(|text| std::str::from_utf8(text).unwrap_or(UNCLEAR))
        };
        let method = text("access-control-request-method")?;
        let headers = text("access-control-request-headers").unwrap_or("");
        Some(Preflight { origin, method, headers })
    }
}

/// The origin that a request names, if it names any. Of two of them nobody can say which is the
/// page's.
fn the_origin<'a>(fields: &[Field], bytes: &'a [u8]) -> Option<&'a str> {
    let is_origin = |f: &&Field| f.name.of(bytes).eq_ignore_ascii_case(b"origin");
    let mut origins = fields.iter().filter(is_origin).map(|field| field.value.of(bytes));
    let origin = std::str::from_utf8(origins.next()?).unwrap_or(UNCLEAR);
    Some(if origins.next().is_none() { origin } else { UNCLEAR })
}

impl CorsRules {
    /// Of a configuration.
    pub fn of(cors: &Cors) -> CorsRules {
        CorsRules {
            origins: cors.allowed_origins.clone(),
            any_origin: cors.allowed_origins.iter().any(|origin| origin == ANY),
            methods: cors.allowed_methods.clone(),
            headers: cors.allowed_headers.clone(),
            credentials: cors.allow_credentials,
            max_age: cors.max_age.map(|age| age.as_secs().to_string()),
            exposed: cors.expose_headers.join(", "),
            listed_methods: cors.allowed_methods.join(", "),
            listed_headers: cors.allowed_headers.join(", "),
        }
    }

    /// The origin of a request whose page may read the answer.
    pub fn allowed<'a>(&self, fields: &[Field], bytes: &'a [u8]) -> Option<&'a str> {
        let origin = the_origin(fields, bytes)?;
        self.allows(origin).then_some(origin)
    }

    fn allows(&self, origin: &str) -> bool {
        let is = |other: &String| other.eq_ignore_ascii_case(origin);
        origin != UNCLEAR && (self.any_origin || self.origins.iter().any(is))
    }

    /// The fields of the answer to a browser's question.
    ///
    /// # Errors
    /// The page may not do that: the browser will not send its request.
    pub fn answer<'a>(&'a self, asked: &Preflight<'a>) -> Result<Vec<CorsField<'a>>, Refusal> {
        let no = |what: &str, key: &str| {
            let message = format!("The {what} is not one of server.cors.{key}.");
            Err(NOT_ALLOWED.with_message(message))
        };
        if !self.allows(asked.origin) {
            return no("origin of the page", "allowed_origins");
        }
        let any = |list: &[String]| list.iter().any(|entry| entry == ANY);
        if !any(&self.methods) && !self.methods.iter().any(|method| method == asked.method) {
            return no("method", "allowed_methods");
        }
        let any_header = any(&self.headers);
        let is_listed =
            |name: &str| self.headers.iter().any(|header| header.eq_ignore_ascii_case(name));
        let mut names = asked.headers.split(',').map(str::trim).filter(|name| !name.is_empty());
        if !any_header && !names.all(is_listed) {
            return no("request header", "allowed_headers");
        }
        let mut fields = vec![(ORIGIN, self.origin_of(asked.origin))];
        // `*` would not stand for Authorization, so what is asked for is named.
        let methods = if any(&self.methods) { asked.method } else { &self.listed_methods };
        let headers = if any_header { asked.headers } else { &self.listed_headers };
        fields.push(("Access-Control-Allow-Methods", methods));
        fields.extend((!headers.is_empty()).then_some(("Access-Control-Allow-Headers", headers)));
        fields.extend(self.credentials.then_some(CREDENTIALS));
        fields.extend(self.max_age.as_deref().map(|age| ("Access-Control-Max-Age", age)));
        let varies = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        fields.push(("Vary", varies));
        Ok(fields)
    }

    fn origin_of<'a>(&'a self, origin: &'a str) -> &'a str {
        if self.any_origin {
            ANY
        } else {
            origin
        }
    }

    /// The same for an answer of an engine, with an empty value for each field in which only we may
    /// say something: what engines say there is about pages that were to ask them directly.
    pub fn over_engine<'a>(&'a self, origin: Option<&'a str>) -> Vec<CorsField<'a>> {
        let mut fields: Vec<_> = self.fields(origin).collect();
        for name in OURS {
            if !fields.iter().any(|(other, _)| *other == name) {
                fields.push((name, ""));
            }
        }
        fields
    }

    /// The fields of every other answer; `origin` is that of a page that may read it.
    pub fn fields<'a>(&'a self, origin: Option<&'a str>) -> impl Iterator<Item = CorsField<'a>> {
        let allowed = origin.map(|origin| (ORIGIN, self.origin_of(origin)));
        let credentials = origin.filter(|_| self.credentials).map(|_| CREDENTIALS);
        let exposed = origin.filter(|_| !self.exposed.is_empty());
        let exposed = exposed.map(|_| ("Access-Control-Expose-Headers", self.exposed.as_str()));
        // Whoever keeps answers must not show one page another's.
        let varies = (!self.any_origin).then_some(("Vary", "Origin"));
        [allowed, credentials, exposed, varies].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::RequestHead;
    use std::time::Duration;

    fn rules(origins: &[&str], headers: &[&str], credentials: bool) -> CorsRules {
        let own = |list: &[&str]| list.iter().map(|entry| (*entry).to_owned()).collect();
        CorsRules::of(&Cors {
            allowed_origins: own(origins),
            allowed_methods: own(&["GET", "POST"]),
            allowed_headers: own(headers),
            expose_headers: own(&["x-request-id", "x-b"]),
            allow_credentials: credentials,
            max_age: Some(Duration::from_secs(600)),
        })
    }

    const PAGE: &str = "https://chat.example";

    /// Catches: a page that is let in, and one that is kept out.
    #[test]
    fn a_question_is_answered_by_the_rules() {
        let own = rules(&[PAGE, "http://localhost:3000"], &["Authorization", "Content-Type"], true);
        let ask = |origin, method, headers| {
            own.answer(&Preflight { origin, method, headers }).map_err(|refusal| refusal.code)
        };
        let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        let told = ask(PAGE, "POST", "content-type, authorization");
        let expected = vec![
            ("Access-Control-Allow-Origin", PAGE),
            ("Access-Control-Allow-Methods", "GET, POST"),
            ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
            ("Access-Control-Allow-Credentials", "true"),
            ("Access-Control-Max-Age", "600"),
            ("Vary", vary),
        ];
        assert_eq!(told, Ok(expected));
        assert!(ask("http://localhost:3000", "GET", "").is_ok());
        for (origin, method, headers) in [
            ("https://evil.example", "POST", ""),
            ("https://chat.example.evil", "POST", ""),
            ("https://sub.chat.example", "POST", ""),
            ("http://chat.example", "POST", ""),
            ("null", "POST", ""),
            ("", "POST", ""),
            (PAGE, "DELETE", ""),
            (PAGE, "post", ""),
            (PAGE, "POST", "x-evil"),
            (PAGE, "POST", "content-type,x-evil"),
            (PAGE, "POST", "\u{fffd}"),
        ] {
            assert_eq!(ask(origin, method, headers), Err("cors_not_allowed"), "{origin} {method}");
        }
    }

    /// Catches: a page that is let in by the first of two origins.
    #[test]
    fn two_origins_are_none() {
        for (fields, wanted) in [
            ("Origin: https://chat.example\r\n", Some(PAGE)),
            ("Origin: https://chat.example\r\norigin: https://evil.example\r\n", None),
            ("Origin: https://chat.example\r\nOrigin: https://chat.example\r\n", None),
            ("Origin: \u{ff}\r\n", None),
        ] {
            let bytes = format!(
                "OPTIONS /x HTTP/1.1\r\nHost: a\r\n{fields}Access-Control-Request-Method: GET\r\n\r\n"
            );
            let mut head = RequestHead::default();
            head.parse(bytes.as_bytes(), 4096).unwrap();
            let (fields, bytes) = (&head.fields, bytes.as_bytes());
            let asked = Preflight::of(head.method, fields, bytes).unwrap();
            let own = rules(&[PAGE], &[], false);
            assert_eq!(own.allowed(fields, bytes), wanted);
            assert_eq!(own.answer(&asked).is_ok(), wanted.is_some());
            let open = rules(&["*"], &[], false);
            let is_clear = asked.origin != UNCLEAR;
            assert_eq!(open.allowed(fields, bytes).is_some(), is_clear);
            assert_eq!(open.answer(&asked).is_ok(), is_clear);
            assert!(is_clear || wanted.is_none());
        }
    }

    #[test]
    fn any_origin_and_any_header() {
        let open = rules(&["*"], &["*"], false);
        let asked = Preflight { origin: PAGE, method: "POST", headers: "authorization, x-a" };
        let told = open.answer(&asked).unwrap();
        assert!(told.contains(&("Access-Control-Allow-Origin", "*")), "{told:?}");
        assert!(told.contains(&("Access-Control-Allow-Headers", "authorization, x-a")), "{told:?}");
        let fields: Vec<_> = open.fields(Some(PAGE)).collect();
        let exposed = ("Access-Control-Expose-Headers", "x-request-id, x-b");
        assert_eq!(fields, [("Access-Control-Allow-Origin", "*"), exposed]);
        assert_eq!(open.fields(None).count(), 0);
        let own = rules(&[PAGE], &[], true);
        assert_eq!(own.fields(None).collect::<Vec<_>>(), [("Vary", "Origin")]);
        assert_eq!(own.fields(Some(PAGE)).count(), 4);
    }
}
