//! Who may use the gateway: the pipeline of providers, and the keys of the file.

use super::{print, Limits, ModelPattern, Redis, Sql};
use crate::base::secret::Secret;
use crate::config::value::IpRange;
use jiff::Timestamp;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Authentication.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Auth {
    /// How the providers decide together.
    pub mode: AuthMode,
    /// Fields that may carry a key, in the order in which they are tried.
    pub header_names: Vec<String>,
    /// Paths that need no key: exact, or a prefix when they end in `/*`.
    pub skip_paths: Vec<String>,
    /// Status and message by state of a key, where they are not the usual ones.
    #[serde(serialize_with = "print::status_codes")]
    pub status_codes: Vec<(KeyState, StatusCode)>,
    /// The zone whose calendar the periods of quotas follow.
    pub quota_timezone: String,
    /// What a request may cost is taken from its key's quota before it goes to an engine.
    #[serde(serialize_with = "print::quota_reserve")]
    pub quota_reserve: bool,
    /// What becomes of a stream whose key has no more of its quota.
    pub quota_on_exhausted: OnExhausted,
    /// Where the tokens that a key has used are counted.
    pub quota_storage: QuotaStorage,
    /// Who is asked about a key, in this order.
    pub pipeline: Vec<Provider>,
    /// Fields that tell engines whose a request is; `None`: they are not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_identity: Option<ForwardIdentity>,
}

/// Names of the fields that tell engines whose a request is; empty: not sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ForwardIdentity {
    /// The user of the key.
    pub user_id: String,
    /// The label of the key.
    pub key_name: String,
    /// The id of the key, as records have it.
    pub key_id: String,
}

/// How several providers decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMode {
    /// The first that knows the key.
    FirstMatch,
    /// Every one must know and allow it.
    All,
}

/// What a key can be refused for, and the state in which it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// Usable.
    Active,
    /// Switched off.
    Disabled,
    /// Past its end.
    Expired,
    /// Out of tokens.
    QuotaExceeded,
    /// Known to nobody.
    NotFound,
}

/// The answer for one state of a key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusCode {
    /// HTTP status; `None` = the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_code: Option<u16>,
    /// Message; empty = the usual one.
    pub message: String,
}

/// One source of keys.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Provider {
    /// Label in logs and metrics.
    pub name: String,
    /// What it asks.
    #[serde(flatten)]
    pub kind: ProviderKind,
    /// Lua that decides about a key that was found; `None` = the usual rules alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<Script>,
    /// What a provider that cannot answer means.
    pub on_error: OnError,
    /// How long its answers are remembered; `None` where there is nothing to be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<LookupCache>,
}

/// How long what a provider says of keys is remembered, by each worker for itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LookupCache {
    /// Of a key that it knows; zero: not at all.
    #[serde(serialize_with = "print::duration")]
    pub ttl: Duration,
    /// Of one that it does not know, or that may not be used; zero: not at all.
    #[serde(serialize_with = "print::duration")]
    pub negative_ttl: Duration,
    /// Keys of each of these two kinds that are remembered. Beyond: what was not used for long is
    /// forgotten.
    pub max_entries: u32,
}

/// What a provider that cannot answer means for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The next provider is asked.
    Next,
    /// The request is refused.
    Deny,
}

/// Kinds of providers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ProviderKind {
    /// The top-level `api_keys`.
    File,
    /// A list of its own.
    Static {
        /// The list.
        #[serde(rename = "static")]
        list: StaticKeys,
    },
    /// A hash (or a JSON text) per key in Redis.
    Redis {
        /// The server.
        redis: RedisKeys,
    },
    /// A row per key in a SQL table.
    Database {
        /// The table.
        database: DatabaseKeys,
    },
    /// A service that is asked.
    Webhook {
        /// How it is asked.
        webhook: AuthWebhook,
    },
    /// A script alone.
    Lua {
        /// The script.
        lua: Script,
    },
    /// The store inside the gateway.
    Builtin,
}

/// A provider's own keys.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StaticKeys {
    /// Them.
    pub keys: Vec<ApiKey>,
}

/// Keys in Redis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RedisKeys {
    /// The server.
    #[serde(flatten)]
    pub server: Redis,
    /// Name of the hash of a key; `{api_key}` stands for the key.
    pub key_pattern: String,
}

/// Keys in a SQL table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatabaseKeys {
    /// The database.
    #[serde(flatten)]
    pub sql: Sql,
    /// The table.
    pub table: String,
    /// The column that holds the key.
    pub key_column: String,
    /// How the key stands there.
    pub key_form: StoredKeyForm,
    /// Columns to read; empty = all.
    pub fields: Vec<String>,
}

/// How keys stand in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredKeyForm {
    /// As clients show them.
    Plain,
    /// By their SHA-256 digests, in 64 lower-case hexadecimal digits: who reads the table finds no
    /// key.
    Sha256,
}

/// A service that decides about keys.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuthWebhook {
    /// http or https URL.
    #[serde(serialize_with = "print::url")]
    pub url: Secret,
    /// `POST` or `GET`.
    pub method: String,
    /// Of one question.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
    /// Further fields.
    #[serde(serialize_with = "print::fields")]
    pub headers: Vec<(String, Secret)>,
}

/// A Lua script and its bounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Script {
    /// The code, or the file that holds it.
    #[serde(flatten)]
    pub source: ScriptSource,
    /// Time of one run.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
    /// Bytes of one run.
    pub max_memory: u64,
}

/// Where the code of a script is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScriptSource {
    /// In the configuration.
    Script(String),
    /// In a file.
    Path(PathBuf),
}

/// One API key of the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ApiKey {
    /// The key itself.
    #[serde(serialize_with = "print::secret")]
    pub key: Secret,
    /// Label for people.
    pub name: String,
    /// Whom records name.
    pub user_id: String,
    /// Its state in the file.
    pub status: KeyState,
    /// Tokens per period; 0 = unlimited.
    pub total_quota: u64,
    /// Tokens used already when the gateway first meets the key.
    pub used_quota: u64,
    /// When the used tokens count as none again.
    pub quota_reset_period: ResetPeriod,
    /// Clients that may use it; empty = all.
    #[serde(serialize_with = "print::texts")]
    pub allowed_ips: Vec<IpRange>,
    /// Clients that may not, whatever `allowed_ips` says.
    #[serde(serialize_with = "print::texts")]
    pub denied_ips: Vec<IpRange>,
    /// Models it may use; empty = all.
    #[serde(serialize_with = "print::texts")]
    pub allowed_models: Vec<ModelPattern>,
    /// First moment of its life.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::maybe_text")]
    pub starts_at: Option<Timestamp>,
    /// First moment after its life.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::maybe_text")]
    pub expires_at: Option<Timestamp>,
    /// Starting value of the running period.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::maybe_text")]
    pub last_reset_at: Option<Timestamp>,
    /// When it was made; kept for the admin API.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::maybe_text")]
    pub created_at: Option<Timestamp>,
    /// When it was last changed; kept for the admin API.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::maybe_text")]
    pub updated_at: Option<Timestamp>,
    /// Its own limits, over those of `rate_limit.per_key`.
    #[serde(skip_serializing_if = "Limits::is_none")]
    pub rate_limit: Limits,
}

/// Where the tokens that a key has used are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaStorage {
    /// In the gateway's own counters.
    Memory,
    /// There too, and together with other gateways beside the key in its Redis.
    Redis,
}

/// What becomes of a stream that needs more of a quota than there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExhausted {
    /// It is finished; the next request is refused.
    Finish,
    /// It ends as if its engine had been told to say no more.
    Cut,
}

/// When a quota starts again, by the calendar of `auth.quota_timezone`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetPeriod {
    /// Never.
    Never,
    /// At midnight.
    Daily,
    /// On Monday.
    Weekly,
    /// On the first of a month.
    Monthly,
}
