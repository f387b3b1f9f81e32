//! `auth` and `api_keys`: who may use the gateway. In doubt, nobody.

use super::key::{self, KeyDefaults};
use super::operate::script;
use super::storage::{self, Stores};
use super::{headers, required_url};
use crate::base::limits::KEY_CACHE_ENTRIES_MAX;
use crate::config::plan::{
    ApiKey, Auth, AuthMode, AuthWebhook, DatabaseKeys, ForwardIdentity, KeyState, LookupCache,
    OnError, OnExhausted, Provider, ProviderKind, QuotaStorage, Redis, RedisKeys, StaticKeys,
    StatusCode, StoredKeyForm,
};
use crate::config::section::Section;
use crate::config::value;
use std::time::Duration;

/// What the two sections say together.
pub struct Keys {
    /// `None` when everyone may use the gateway.
    pub auth: Option<Auth>,
    /// The keys of the file.
    pub api_keys: Vec<ApiKey>,
}

/// Reads both sections. Keys without `auth` switch it on: a file that lists keys means them.
pub fn keys<'a>(root: &mut Section<'a>, stores: &Stores<'a>) -> Keys {
    let mut defaults = KeyDefaults::default();
    let has_auth = root.has("auth");
    let mut auth = root.when_present("auth", |s| {
        defaults = key::defaults(s);
        if let Some(mut s) = s.section("redis") {
            stores.share(storage::redis(&mut s), Some(s.node()));
        }
        read(s, stores, defaults)
    });
    let api_keys = key::keys(root, "api_keys", defaults);
    if !has_auth && !api_keys.is_empty() {
        root.warn("api_keys", "given without `auth`: authentication is on, with these keys");
        auth = Some(implied());
    }
    if !has_auth && root.has("api_keys") && api_keys.is_empty() {
        let message = "has no key and there is no `auth`: everyone could use the gateway. Give keys, or say `auth: {enabled: false}`";
        root.error("api_keys", message);
    }
    if has_auth && auth.is_none() && !api_keys.is_empty() {
        root.warn("api_keys", "not used, since `auth` is off: everyone may use the gateway");
    }
    if let Some(auth) = &auth {
        let has_file = auth.pipeline.iter().any(|p| p.kind == ProviderKind::File);
        if has_file && api_keys.is_empty() && auth.pipeline.len() == 1 {
            root.warn("auth", "is on, but `api_keys` is empty: every request is refused");
        }
        if !has_file && !api_keys.is_empty() {
            root.warn("api_keys", "not used: no provider of auth.pipeline has `type: file`");
        }
        if let Some(redis) = first_redis(auth) {
            stores.share(redis, None);
        }
    }
    Keys { auth, api_keys }
}

const ON_EXHAUSTED: [(&str, OnExhausted); 2] =
    [("finish", OnExhausted::Finish), ("cut", OnExhausted::Cut)];

const QUOTA_STORAGES: [(&str, QuotaStorage); 2] =
    [("memory", QuotaStorage::Memory), ("redis", QuotaStorage::Redis)];

/// The zone of quotas unless the file says otherwise.
const UTC: &str = "UTC";

fn implied() -> Auth {
    Auth {
        mode: AuthMode::FirstMatch,
        header_names: HEADER_NAMES.iter().map(|n| (*n).to_owned()).collect(),
        skip_paths: Vec::new(),
        status_codes: Vec::new(),
        quota_timezone: UTC.into(),
        quota_reserve: true,
        quota_on_exhausted: OnExhausted::Finish,
        quota_storage: QuotaStorage::Memory,
        pipeline: vec![file_provider()],
        forward_identity: None,
    }
}

const HEADER_NAMES: [&str; 2] = ["Authorization", "X-API-Key"];

fn file_provider() -> Provider {
    Provider {
        name: "file".into(),
        kind: ProviderKind::File,
        script: None,
        on_error: OnError::Next,
        cache: None,
    }
}

fn first_redis(auth: &Auth) -> Option<Redis> {
    auth.pipeline.iter().find_map(|p| match &p.kind {
        ProviderKind::Redis { redis } => Some(redis.server.clone()),
        _ => None,
    })
}

fn read(s: &mut Section, stores: &Stores, defaults: KeyDefaults) -> Auth {
    let modes = [("first_match", AuthMode::FirstMatch), ("all", AuthMode::All)];
    let mode = s.choice("mode", &modes, AuthMode::FirstMatch);
    // With `all`, a provider that cannot answer must not count as one that agreed.
    let on_error = if mode == AuthMode::All { OnError::Deny } else { OnError::Next };
    let given = s.has("pipeline");
    let mut pipeline: Vec<Provider> = Vec::new();
    for item in s.sections("pipeline") {
        let node = item.node();
        let read = |s: &mut Section| provider(s, stores, defaults, on_error);
        let Some(Some(provider)) = item.switched(true, read) else { continue };
        if pipeline.iter().any(|p| p.name == provider.name) {
            s.desk.error(
                node,
                format!("{} is also the name of another provider", value::quoted(&provider.name)),
            );
        }
        pipeline.push(provider);
    }
    if !given {
        pipeline.push(file_provider());
    } else if pipeline.is_empty() {
        s.warn("pipeline", "has no provider: every request is refused");
    }
    let names = s.list("header_names", value::header_name);
    let auth = Auth {
        mode,
        header_names: names.unwrap_or_else(|| implied().header_names),
        skip_paths: s.list("skip_paths", skip_path).unwrap_or_default(),
        status_codes: status_codes(s),
        quota_timezone: s.parsed("quota_timezone", zone).unwrap_or_else(|| UTC.into()),
        quota_reserve: s.choice("quota_reserve", &[("estimate", true), ("none", false)], true),
        quota_on_exhausted: s.choice("quota_on_exhausted", &ON_EXHAUSTED, OnExhausted::Finish),
        quota_storage: s.choice("quota_storage", &QUOTA_STORAGES, QuotaStorage::Memory),
        pipeline,
        forward_identity: s.when_present("forward_identity", forward_identity),
    };
    let is_redis = |p: &Provider| matches!(p.kind, ProviderKind::Redis { .. });
    if auth.quota_storage == QuotaStorage::Redis && !auth.pipeline.iter().any(is_redis) {
        let message = "`redis` counts beside the keys there: auth.pipeline needs a provider of \
                       `type: redis`";
        s.error("quota_storage", message);
    }
    if auth.quota_storage == QuotaStorage::Redis && auth.mode == AuthMode::All {
        s.error("quota_storage", "`redis` goes by what one provider says: not with `mode: all`");
    }
    if auth.header_names.is_empty() && !s.desk.has_errors() {
        s.error("header_names", "must name at least one field, such as Authorization");
    }
    auth
}

fn forward_identity(s: &mut Section) -> ForwardIdentity {
    let name = |text: &str| match text {
        "" => Ok(String::new()),
        _ => value::header_name(text),
    };
    let mut field = |key: &str, usual: &str| s.parsed(key, name).unwrap_or_else(|| usual.into());
    ForwardIdentity {
        user_id: field("user_id", "X-LLMProxy-User"),
        key_name: field("key_name", "X-LLMProxy-Key-Name"),
        key_id: field("key_id", "X-LLMProxy-Key-Id"),
    }
}

/// The name of a zone that this machine knows: `Europe/Berlin`.
fn zone(text: &str) -> Result<String, String> {
    match jiff::tz::TimeZone::get(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{} is no time zone of this machine", value::quoted(text))),
    }
}

/// Exact, or a prefix that ends in `/*`. The empty text once matched everything.
fn skip_path(text: &str) -> Result<String, String> {
    let stem = text.strip_suffix("/*").unwrap_or(text);
    if stem.contains('*') || !text.starts_with('/') {
        return Err(format!(
            "{} must be a path such as /public, or /public/*",
            value::quoted(text)
        ));
    }
    Ok(text.to_owned())
}

fn status_codes(s: &mut Section) -> Vec<(KeyState, StatusCode)> {
    let states = [
        ("active", KeyState::Active),
        ("disabled", KeyState::Disabled),
        ("expired", KeyState::Expired),
        ("quota_exceeded", KeyState::QuotaExceeded),
        ("not_found", KeyState::NotFound),
    ];
    let Some(mut all) = s.section("status_codes") else { return Vec::new() };
    let mut codes = Vec::new();
    for (name, state) in states {
        let Some(mut s) = all.section(name) else { continue };
        let allow = s.boolean("allow", state == KeyState::Active);
        if allow != (state == KeyState::Active) {
            s.warn("allow", "ignored: only active keys are let in, and they always are");
        }
        let code = StatusCode {
            http_code: s.int_opt("http_code", 200..=599u16),
            message: s.text("message").unwrap_or_default(),
        };
        if state != KeyState::Active && code.http_code.is_some_and(|c| c < 400) {
            s.error("http_code", "must be from 400 to 599: the request is refused");
        }
        if code.http_code.is_some() || !code.message.is_empty() {
            codes.push((state, code));
        }
    }
    codes
}

fn provider(
    s: &mut Section,
    stores: &Stores,
    defaults: KeyDefaults,
    on_error: OnError,
) -> Option<Provider> {
    let kinds = ["file", "static", "redis", "database", "webhook", "lua", "builtin"];
    let kind = s.kind("type", &kinds, true)?;
    let name = s.text("name").filter(|n| !n.is_empty()).unwrap_or_else(|| kind.into());
    let script = script(s, "script");
    let errors = [("next", OnError::Next), ("deny", OnError::Deny)];
    let on_error = s.choice("on_error", &errors, on_error);
    let kind = match kind {
        "static" => {
            let keys = s.section("static").map(|mut s| key::keys(&mut s, "keys", defaults));
            ProviderKind::Static { list: StaticKeys { keys: keys.unwrap_or_default() } }
        }
        "redis" => ProviderKind::Redis { redis: redis(s, stores) },
        "database" => ProviderKind::Database { database: database(s, stores)? },
        "webhook" => ProviderKind::Webhook { webhook: webhook(s)? },
        "lua" => match super::operate::script(s, "lua") {
            Some(lua) => ProviderKind::Lua { lua },
            None => {
                if !s.desk.has_errors() {
                    s.error("lua", "is required: give `lua: {script: …}` or `lua: {path: …}`");
                }
                return None;
            }
        },
        "builtin" => ProviderKind::Builtin,
        _ => ProviderKind::File,
    };
    let cache = is_asked(&kind).then(|| cache(s));
    Some(Provider { name, kind, script, on_error, cache })
}

/// Whether there is somebody to be asked, whose answers are worth remembering.
fn is_asked(kind: &ProviderKind) -> bool {
    !matches!(kind, ProviderKind::File | ProviderKind::Static { .. } | ProviderKind::Lua { .. })
}

fn cache(s: &mut Section) -> LookupCache {
    let mut cache = LookupCache {
        ttl: Duration::from_secs(30),
        negative_ttl: Duration::from_secs(5),
        max_entries: 10_000,
    };
    if let Some(mut s) = s.section("cache") {
        let mut time = |key: &str, default| match s.has(key) {
            true => s.duration_or_zero(key),
            false => default,
        };
        cache.ttl = time("ttl", cache.ttl);
        cache.negative_ttl = time("negative_ttl", cache.negative_ttl);
        cache.max_entries = s.int("max_entries", 2..=KEY_CACHE_ENTRIES_MAX, cache.max_entries);
    }
    cache
}

/// Its own address, a named cache, `auth.redis`, or the default address, in this order.
fn redis(s: &mut Section, stores: &Stores) -> RedisKeys {
    let default = "llmproxy:key:{api_key}".to_owned();
    let pattern = |text: &str| {
        if text.contains("{api_key}") {
            return Ok(text.to_owned());
        }
        Err("must hold {api_key}, which stands for the key".to_owned())
    };
    let mut key_pattern = None;
    let mut server = None;
    if let Some(mut s) = s.section("redis") {
        key_pattern = s.parsed("key_pattern", pattern);
        let name = s.text("storage").filter(|name| !name.is_empty());
        let (has_addr, own) = (s.has("addr"), storage::redis(&mut s));
        server = match name {
            Some(name) => stores.cache(&name).unwrap_or_else(|| {
                s.error("storage", format!("{} is not in storage.caches", value::quoted(&name)));
                Some(own)
            }),
            None => has_addr.then_some(own),
        };
    }
    let server = server.or_else(|| stores.shared()).unwrap_or_else(|| {
        let at = storage::REDIS_ADDR;
        s.warn("type", format!("no address of the Redis server is given: {at} is taken"));
        storage::default_redis()
    });
    RedisKeys { server, key_pattern: key_pattern.unwrap_or(default) }
}

fn database(s: &mut Section, stores: &Stores) -> Option<DatabaseKeys> {
    let Some(mut inner) = s.section("database") else {
        s.error("database", "is required: give `database: {driver: …, dsn: …, table: …}`");
        return None;
    };
    let fields = inner.list("fields", |text| match text {
        "*" => Ok(None),
        _ => storage::identifier_text(text).map(Some),
    });
    let forms = [("plain", StoredKeyForm::Plain), ("sha256", StoredKeyForm::Sha256)];
    let keys = DatabaseKeys {
        table: storage::identifier(&mut inner, "table", "api_keys"),
        key_column: storage::identifier(&mut inner, "key_column", "api_key"),
        key_form: inner.choice("key_form", &forms, StoredKeyForm::Plain),
        fields: fields.unwrap_or_default().into_iter().flatten().collect(),
        sql: storage::sql(&mut inner, stores)?,
    };
    Some(keys)
}

fn webhook(s: &mut Section) -> Option<AuthWebhook> {
    let Some(mut inner) = s.section("webhook") else {
        s.error("webhook", "is required: give `webhook: {url: …}`");
        return None;
    };
    let webhook = AuthWebhook {
        url: required_url(&mut inner, "url"),
        method: inner.choice("method", &[("POST", "POST"), ("GET", "GET")], "POST").into(),
        timeout: inner.duration("timeout", Duration::from_secs(5)),
        headers: headers(&mut inner),
    };
    let is_key = |(name, _): &(String, _)| name.eq_ignore_ascii_case("x-api-key");
    if webhook.method == "GET" && webhook.headers.iter().any(is_key) {
        inner.error("headers", "X-API-Key is the field in which GET carries the client's key");
    }
    Some(webhook)
}
