//! Which paths exist: three of our own, and those of LLM engines that the plan lets through. A path
//! is brought into its plainest spelling first; what is classified, forwarded and recorded is that.

use crate::base::refusal::Refusal;
use crate::config::plan::endpoints::{
    Endpoint, Methods, BELOW_MODELS, BELOW_RESPONSES, OLLAMA_DELETE,
};
use crate::config::plan::{AdminListen, Plan};
use crate::http::path::{normalise, Normal};
use crate::http::request::{Method, RequestHead};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `/health`: the process lives.
    Health,
    /// `/ready`: at least one backend is healthy and the process does not drain.
    Ready,
    /// The metrics page.
    Metrics,
    /// The admin API, where it is on this port.
    Admin,
    /// The models of all backends together, or one of them.
    Models,
    /// What a browser asks before it sends a request for a page of another origin.
    Preflight,
    /// For a backend.
    Forward,
}

/// What the plan lets through.
#[derive(Debug, Clone, Copy)]
pub struct Served<'a> {
    /// Paths for backends: exact, or prefixes with a `*` behind them.
    paths: &'a [String],
    /// The metrics page, when it is on this port.
    metrics: Option<&'a str>,
    /// The admin API is on this port.
    admin: bool,
    /// No single backend has all models, they have other names here, or not everybody may see all
    /// of them: their list is ours.
    lists_models: bool,
}

impl<'a> Served<'a> {
    /// By a plan.
    pub fn by(plan: &'a Plan) -> Served<'a> {
        let here = plan.metrics.as_ref().filter(|metrics| metrics.listen.is_none());
        let metrics = here.map(|metrics| metrics.path.as_str());
        let admin = plan.admin.as_ref().is_some_and(|admin| admin.listen == AdminListen::Main);
        let lists_models = plan.backends.len() > 1 || plan.names_models() || plan.auth.is_some();
        Served { paths: &plan.server.paths, metrics, admin, lists_models }
    }

    /// As much of a path as may stand in a record, where that is not all: of the admin API's, what
    /// comes behind it names a key, and may be its text.
    pub fn told_of<'p>(&self, path: &'p str, is_normal: bool) -> Option<&'p str> {
        match (self.admin, is_normal) {
            (false, _) => None,
            (true, true) => path.starts_with(ADMIN).then(|| told_of_admin(path)),
            (true, false) => {
                let second = path.match_indices('/').nth(1);
                second.and_then(|(end, _)| path.get(..end))
            }
        }
    }
}

/// Brings the path of a request into its plainest spelling, in the buffer that the head was parsed
/// from; 400 when it could be read in two ways. A slash at the end of a known path goes too:
/// engines answer it with a redirect to themselves, or not at all.
pub fn make_normal(
    head: &mut RequestHead,
    bytes: &mut [u8],
    served: Served<'_>,
) -> Result<(), Refusal> {
    let Some(path) = bytes.get_mut(head.path_range()).filter(|path| path.starts_with(b"/")) else {
        return Ok(());
    };
    let normal = normalise(path).map_err(|bad| Refusal::new(400, "bad_path", bad.0))?;
    let Normal { mut len, encoded_slash } = normal;
    let path = path.get(..len).unwrap_or_default();
    if encoded_slash && !path.starts_with(BELOW_MODELS.as_bytes()) {
        return Err(ENCODED_SLASH);
    }
    if let Some(bare) = path.strip_suffix(b"/") {
        let is_listed = |path: &[u8]| served.paths.iter().any(|p| p.as_bytes() == path);
        if !is_listed(path) && (Endpoint::of(bare).is_some() || is_listed(bare)) {
            len -= 1;
        }
    }
    head.shorten_path(len);
    Ok(())
}

/// Finds out what a request is for, its path being normal: 404 when it is for nothing, 405 when
/// the path has other methods, 400 when it has a body that engines might read or not.
pub fn classify(path: &[u8], head: &RequestHead, served: Served<'_>) -> Result<Purpose, Refusal> {
    let reads = matches!(head.method, Method::Get | Method::Head);
    match known(path, served)? {
        // It says itself which methods it has.
        Some(Purpose::Admin) => return Ok(Purpose::Admin),
        Some(kind) if reads => return Ok(kind),
        Some(_) => return Err(READ_ONLY),
        None => {}
    }
    if let Some(refusal) = methods(path).and_then(|methods| disagrees(methods, head.method)) {
        return Err(refusal);
    }
    let has_meaning =
        head.is_clear() || (head.method == Method::Delete && path == OLLAMA_DELETE.as_bytes());
    match has_meaning {
        true if reads && served.lists_models && is_about_models(path) => Ok(Purpose::Models),
        true => Ok(Purpose::Forward),
        false => Err(UNEXPECTED_BODY),
    }
}

/// What a path of our own is for; `None`: it is one of those for backends.
///
/// # Errors
/// There is no such path, whatever the method.
pub fn known(path: &[u8], served: Served<'_>) -> Result<Option<Purpose>, Refusal> {
    match path {
        b"/health" => Ok(Some(Purpose::Health)),
        b"/ready" => Ok(Some(Purpose::Ready)),
        _ if served.metrics.is_some_and(|page| page.as_bytes() == path) => {
            Ok(Some(Purpose::Metrics))
        }
        _ if served.admin && path.starts_with(ADMIN.as_bytes()) => Ok(Some(Purpose::Admin)),
        _ if served.paths.iter().any(|pattern| matches(pattern, path)) => Ok(None),
        _ => Err(NOT_FOUND),
    }
}

/// The list of models as OpenAI has it, with or without its version, and one of them. (Ollama's own
/// `/api/tags` goes to a backend.)
fn is_about_models(path: &[u8]) -> bool {
    matches!(path, b"/v1/models" | b"/models") || path.starts_with(BELOW_MODELS.as_bytes())
}

fn matches(pattern: &str, path: &[u8]) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix.as_bytes()),
        None => path == pattern.as_bytes(),
    }
}

/// The methods of a path, where they are known.
fn methods(path: &[u8]) -> Option<Methods> {
    match Endpoint::of(path) {
        Some(endpoint) => Some(endpoint.methods),
        None if path.starts_with(BELOW_MODELS.as_bytes()) => Some(Methods::Read),
        None => {
            let stored = path.strip_prefix(BELOW_RESPONSES.as_bytes())?;
            let cancelled = stored.strip_suffix(b"/cancel");
            let is_cancel = cancelled.is_some_and(|id| !id.is_empty() && !id.contains(&b'/'));
            Some(if is_cancel { Methods::Post } else { Methods::ReadOrDelete })
        }
    }
}

/// The 405 of a path that does not have the method: what we take for a chat must be one, and some
/// engines serve a PUT as they serve a POST.
fn disagrees(methods: Methods, method: Method) -> Option<Refusal> {
    let reads = matches!(method, Method::Get | Method::Head);
    let fits = match methods {
        Methods::Post => method == Method::Post,
        Methods::Read => reads,
        Methods::PostOrRead => reads || method == Method::Post,
        Methods::ReadOrDelete => reads || method == Method::Delete,
    };
    if fits || method == Method::Options {
        return None;
    }
    let (message, allow) = match methods {
        Methods::Post => ("This path answers POST.", &("Allow", "POST, OPTIONS")),
        Methods::Read => ("This path answers GET and HEAD.", &("Allow", "GET, HEAD, OPTIONS")),
        Methods::PostOrRead => {
            ("This path answers GET, HEAD and POST.", &("Allow", "GET, HEAD, POST, OPTIONS"))
        }
        Methods::ReadOrDelete => {
            ("This path answers GET, HEAD and DELETE.", &("Allow", "GET, HEAD, DELETE, OPTIONS"))
        }
    };
    Some(Refusal::new(405, "method_not_allowed", message).with_field(allow))
}

/// The label of all paths that have none of their own.
pub const OTHER: &str = "other";

/// The label of a normal path in metrics and records, which is the path itself. A fixed set: a
/// client cannot make series.
pub fn label(path: &[u8]) -> Option<&'static str> {
    const OWN: &[&str] = &["/health", "/ready", "/metrics"];
    let known = Endpoint::of(path).map(|endpoint| endpoint.path);
    known.or_else(|| OWN.iter().find(|own| own.as_bytes() == path).copied())
}

/// Below this is the admin API.
const ADMIN: &str = "/admin/";

/// A path of the admin API up to its second part.
fn told_of_admin(path: &str) -> &str {
    let below = path.get(ADMIN.len()..).unwrap_or_default();
    let end = below.find('/').map_or(path.len(), |end| ADMIN.len().saturating_add(end));
    path.get(..end).unwrap_or_default()
}

const NOT_FOUND: Refusal = Refusal::new(
    404,
    "unknown_path",
    "This path is not served here; `server.paths` of the gateway names those that are.",
);
const READ_ONLY: Refusal =
    Refusal::new(405, "method_not_allowed", "This path answers GET and HEAD only.")
        .with_field(&("Allow", "GET, HEAD"));
const ENCODED_SLASH: Refusal = Refusal::new(
    400,
    "bad_path",
    "The path has an encoded slash, which servers read in different ways; it may stand in the \
     name of a model only, below /v1/models/.",
);
const UNEXPECTED_BODY: Refusal = Refusal::new(
    400,
    "unexpected_body",
    "A request of this method has no body here: servers disagree whether they read it.",
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::HEAD_BYTES_MAX;
    use crate::config::plan::endpoints::default_paths;

    /// The default paths where none are given.
    fn plan(paths: &[&str]) -> Vec<String> {
        match paths {
            [] => default_paths(),
            _ => paths.iter().map(|p| (*p).to_owned()).collect(),
        }
    }

    /// The normal path, and what it is for or the refusal's code.
    fn ask(line: &str, fields: &str, paths: &[String]) -> (String, Result<Purpose, Refusal>) {
        let mut bytes = format!("{line} HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes();
        let mut head = RequestHead::default();
        head.parse(&bytes, HEAD_BYTES_MAX).unwrap();
        let served = Served { paths, metrics: Some("/metrics"), admin: true, lists_models: false };
        let made = make_normal(&mut head, &mut bytes, served);
        let path = head.path(&bytes);
        let kind = made.and_then(|()| classify(path, &head, served));
        (String::from_utf8(path.to_vec()).unwrap(), kind)
    }

    fn code(kind: Result<Purpose, Refusal>) -> (u16, &'static str) {
        kind.map_or_else(|refusal| (refusal.status, refusal.code), |kind| panic!("{kind:?}"))
    }

    /// Catches: a path of the admin API that goes to an engine where that is here, or is answered
    /// by whoever it does not belong to where it is not; a key that stands in a record.
    #[test]
    fn the_admin_api_is_below_its_path_alone() {
        let all = ["/*".to_owned()];
        for method in ["GET", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"] {
            let line = format!("{method} /%61dmin/api-keys/x");
            assert_eq!(ask(&line, "", &all).1, Ok(Purpose::Admin));
        }
        for path in ["/admin", "/administer", "/Admin/stats", "/v1/admin/stats"] {
            assert_eq!(ask(&format!("GET {path}"), "", &all).1, Ok(Purpose::Forward), "{path}");
        }
        let without = Served { paths: &all, metrics: None, admin: false, lists_models: false };
        assert_eq!(known(b"/admin/stats", without), Ok(None));
        assert_eq!(code(ask("GET /admin", "", &plan(&[])).1), (404, "unknown_path"));
        for (path, told) in [
            ("/admin/api-keys/sk-secret", "/admin/api-keys"),
            ("/admin/api-keys/sk-secret/usage", "/admin/api-keys"),
            ("/admin/stats", "/admin/stats"),
            ("/admin/", "/admin/"),
        ] {
            assert_eq!(told_of_admin(path), told);
        }
    }

    /// Catches: a chat in another spelling that is classified as something else.
    #[test]
    fn a_known_path_is_known_in_every_spelling() {
        let plan = plan(&[]);
        for spelling in
            ["/v1/chat/completions", "/v1/%63hat/completions", "/v1/chat/completions/?x"]
        {
            let (path, kind) = ask(&format!("POST {spelling}"), "", &plan);
            assert_eq!((path.as_str(), kind), ("/v1/chat/completions", Ok(Purpose::Forward)));
        }
        for path in ["/v1/chat%2fcompletions", "/v1/chat/completions;x", "/v1//chat/completions"] {
            assert_eq!(code(ask(&format!("POST {path}"), "", &plan).1), (400, "bad_path"));
        }
        let (path, kind) = ask("GET /v1/models/org%2fname", "", &plan);
        assert_eq!((path.as_str(), kind), ("/v1/models/org%2Fname", Ok(Purpose::Forward)));
        assert_eq!(code(ask("GET /v1/responses/a%2fb", "", &plan).1), (400, "bad_path"));
        assert_eq!(ask("GET http://h", "", &plan).0, "/");
        assert_eq!(ask("OPTIONS *", "", &plan).0, "*");
    }

    /// Catches: a slash that is dropped where it may mean something, or kept where it redirects.
    #[test]
    fn a_slash_behind_a_known_path_goes() {
        let plan = plan(&["/v1/*", "/own", "/kept/"]);
        for (sent, normal) in [
            ("/v1/models/", "/v1/models"),
            ("/own/", "/own"),
            ("/kept/", "/kept/"),
            ("/v1/files/", "/v1/files/"),
            ("/health/", "/health/"),
            ("/", "/"),
        ] {
            assert_eq!(ask(&format!("GET {sent}"), "", &plan).0, normal);
        }
    }

    /// Catches: an engine's management that is open to all.
    #[test]
    fn management_is_closed_until_it_is_named() {
        for line in [
            "POST /v1/load_lora_adapter",
            "POST /sleep",
            "POST /flush_cache",
            "DELETE /api/delete",
            "POST /api/pull",
            "GET /slots",
            "POST /props",
            "POST /models/load",
        ] {
            assert_eq!(code(ask(line, "", &plan(&[])).1), (404, "unknown_path"), "{line}");
            let path = line.split_once(' ').unwrap().1;
            assert_eq!(ask(line, "", &plan(&[path])).1, Ok(Purpose::Forward), "{line}");
        }
    }

    #[test]
    fn the_method_decides_too() {
        let plan = plan(&["/v1/*", "/api/delete", "/ping"]);
        for (line, allow) in [
            ("GET /v1/chat/completions", "POST, OPTIONS"),
            ("PUT /v1/%63hat/completions/", "POST, OPTIONS"),
            ("POST /v1/models", "GET, HEAD, OPTIONS"),
            ("DELETE /v1/models/m", "GET, HEAD, OPTIONS"),
            ("PUT /ping", "GET, HEAD, POST, OPTIONS"),
            ("POST /v1/responses/compact", "GET, HEAD, DELETE, OPTIONS"),
            ("POST /v1/responses/resp_1", "GET, HEAD, DELETE, OPTIONS"),
            ("POST /v1/responses/a/b/cancel", "GET, HEAD, DELETE, OPTIONS"),
            ("PUT /v1/responses/resp_1", "GET, HEAD, DELETE, OPTIONS"),
            ("GET /v1/responses/resp_1/cancel", "POST, OPTIONS"),
            ("POST /health", "GET, HEAD"),
        ] {
            let refusal = ask(line, "", &plan).1.unwrap_err();
            let told = (refusal.status, refusal.code, refusal.field);
            assert_eq!(told, (405, "method_not_allowed", Some(&("Allow", allow))), "{line}");
        }
        for line in [
            "OPTIONS /v1/chat/completions",
            "HEAD /v1/models",
            "GET /v1/responses/resp_1",
            "DELETE /v1/responses/resp_1",
            "POST /v1/responses/resp_1/cancel",
            "POST /ping",
        ] {
            assert_eq!(ask(line, "", &plan).1, Ok(Purpose::Forward), "{line}");
        }
        let body = "Content-Length: 3\r\n";
        for line in ["GET /v1/models", "OPTIONS /v1/models", "DELETE /v1/responses/a"] {
            assert_eq!(code(ask(line, body, &plan).1), (400, "unexpected_body"), "{line}");
        }
        assert_eq!(ask("DELETE /api/delete", body, &plan).1, Ok(Purpose::Forward));
        assert_eq!(ask("GET /v1/models", "Content-Length: 0\r\n", &plan).1, Ok(Purpose::Forward));
    }

    /// Catches: a list of one backend's models where there are several; one that needs no list and
    /// does not go to its backend; a path that is ours though the file does not name it.
    #[test]
    fn the_list_of_models_is_ours_where_no_backend_has_it() {
        let purpose = |line: &str, lists_models, paths: &[String]| {
            let bytes = format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes();
            let mut head = RequestHead::default();
            head.parse(&bytes, HEAD_BYTES_MAX).unwrap();
            classify(
                head.path(&bytes),
                &head,
                Served { paths, metrics: None, admin: false, lists_models },
            )
        };
        let all = plan(&[]);
        for line in ["GET /v1/models", "HEAD /models", "GET /v1/models/a/b%2Fc"] {
            assert_eq!(purpose(line, true, &all), Ok(Purpose::Models), "{line}");
            assert_eq!(purpose(line, false, &all), Ok(Purpose::Forward), "{line}");
            let refused = purpose(line, true, &plan(&["/v1/chat/completions"]));
            assert_eq!(code(refused), (404, "unknown_path"), "{line}");
        }
        for line in ["OPTIONS /v1/models", "GET /api/tags"] {
            assert_eq!(purpose(line, true, &all), Ok(Purpose::Forward), "{line}");
        }
    }

    #[test]
    fn patterns_are_exact_or_prefixes() {
        assert!(matches("/v1/*", b"/v1/chat/completions"));
        assert!(!matches("/v1/*", b"/v2/rerank"));
        assert!(matches("/rerank", b"/rerank"));
        assert!(!matches("/rerank", b"/rerank/x"));
    }

    #[test]
    fn a_client_cannot_make_labels() {
        assert_eq!(label(b"/v1/chat/completions"), Some("/v1/chat/completions"));
        assert_eq!(label(b"/ready"), Some("/ready"));
        assert_eq!(label(b"/v1/chat/completions/x"), None);
    }
}
