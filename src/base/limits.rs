//! Every maximum of the program that a configuration does not set, with its unit in the name.
//! What happens when one is reached stands beside it; each has a counter or a refusal code.

/// Bytes of a request or response head, request line and blank line included. Beyond: 431, or 502
/// for a backend.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Fields of one head. Beyond: 431, or 502 for a backend.
pub const HEAD_FIELDS_MAX: usize = 100;
/// Bytes of a request target. Beyond: 414.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a field name. Beyond: 431.
pub const FIELD_NAME_BYTES_MAX: usize = 256;
/// Hex digits of a chunk size. Beyond: 400 (or a broken backend).
pub const CHUNK_SIZE_DIGITS_MAX: usize = 15;
/// Bytes of the extensions of one chunk.
pub const CHUNK_EXTENSION_BYTES_MAX: usize = 256;
/// Bytes of the extensions of all chunks of one body.
pub const BODY_EXTENSION_BYTES_MAX: usize = 4 * 1024;
/// Interim (1xx) responses accepted before a final one. Beyond: 502.
pub const INTERIM_RESPONSES_MAX: usize = 8;
/// Nesting of a JSON request body that is scanned for its fields. Beyond: 400.
pub const JSON_DEPTH_MAX: usize = 64;
/// Bytes of one `usage` object that the tap captures. Beyond: usage counts as missing.
pub const USAGE_OBJECT_BYTES_MAX: usize = 4 * 1024;
/// Bytes of the model name that is kept for records and logs. Beyond: 400.
pub const MODEL_NAME_BYTES_MAX: usize = 256;

/// Bytes of a pooled buffer: one read from a client or an engine.
pub const BUFFER_BYTES: usize = 16 * 1024;
/// Pooled buffers that a worker keeps when they are not in use.
pub const BUFFERS_IDLE_MAX: usize = 64;
/// Connections accepted in one turn, so that a flood of connects cannot starve the streams.
pub const ACCEPTS_PER_TURN_MAX: usize = 64;
/// Body slices forwarded by one vectored send.
pub const SLICES_PER_SEND_MAX: usize = 16;
/// Bytes of an unread request body that are drained to save a connection. Beyond: close.
pub const DRAIN_BYTES_MAX: usize = 64 * 1024;

/// Usage records waiting for the reporter thread. Beyond: dropped and counted.
pub const OUTBOX_RECORDS_MAX: usize = 16 * 1024;
/// Access log lines waiting for their writer. Beyond: dropped and counted.
pub const ACCESS_LINES_MAX: usize = 16 * 1024;

/// Bytes of a configuration file. Beyond: refused.
pub const CONFIG_FILE_BYTES_MAX: usize = 1024 * 1024;
/// Values of a configuration file, each use of an anchor counted. Beyond: refused.
pub const CONFIG_NODES_MAX: u32 = 100_000;
/// Findings of one load that are kept. Beyond: counted.
pub const CONFIG_FINDINGS_MAX: usize = 100;
/// Longest duration that a configuration may set, in seconds (one year). Beyond: refused.
pub const DURATION_SECONDS_MAX: u64 = 365 * 24 * 3600;
/// Worker threads. Beyond: refused.
pub const WORKERS_MAX: usize = 1024;
/// Client connections that a configuration may allow. Beyond: refused.
pub const CONNECTIONS_MAX: usize = 1_000_000;
/// Weight of one backend. Beyond: refused.
pub const WEIGHT_MAX: u32 = 10_000;
/// Largest `server.max_body_size`: a body is held in memory. Beyond: refused.
pub const BODY_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Bytes of a request body that travel in a usage record when it is simply switched on.
pub const RECORD_BODY_BYTES_DEFAULT: usize = 64 * 1024;
/// Most bytes of a request body that a configuration may put into a usage record.
pub const RECORD_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Tries after the first, of a request or of a usage record. Beyond: refused.
pub const RETRIES_MAX: u32 = 100;

const _: () = assert!(TARGET_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(BUFFER_BYTES <= HEAD_BYTES_MAX);
const _: () = assert!(CHUNK_EXTENSION_BYTES_MAX <= BODY_EXTENSION_BYTES_MAX);
const _: () = assert!(CHUNK_SIZE_DIGITS_MAX < 16, "a chunk size must fit in 60 bits");
