//! Of the scripts that an operator may write.

use std::time::Duration;

/// Processor time of one run of a script. Beyond: the run ends, and its client is denied. More in a
/// configuration is cut to the most, since the worker stands still meanwhile.
pub const SCRIPT_TIME_MAX: Duration = Duration::from_millis(10);
/// Bytes of one run of a script, beside what its VM has anyway. Beyond: likewise.
pub const SCRIPT_MEMORY_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of the text of one script. Beyond: it does not load.
pub const SCRIPT_BYTES_MAX: u64 = 256 * 1024;
/// Bytes of a message of a script to a client, or to the log. Beyond: cut.
pub const SCRIPT_MESSAGE_BYTES_MAX: usize = 512;
/// Codes that scripts may refuse with, all together. Beyond: `access_denied`.
pub const SCRIPT_CODES_MAX: usize = 64;
/// Lines that one run may log. Beyond: not logged.
pub const SCRIPT_LOG_LINES_MAX: usize = 8;
/// Bytes of a value, or of a line, that a script logs and that are looked at: more than
/// [`SCRIPT_MESSAGE_BYTES_MAX`], since the key is taken out before the line is cut.
pub const SCRIPT_TOLD_BYTES: usize = 8 * SCRIPT_MESSAGE_BYTES_MAX;
/// Entries of the metadata that one run gives, at whatever depth. Beyond: its client is denied.
pub const SCRIPT_METADATA_ENTRIES_MAX: usize = 64;
/// Bytes of names and texts of that metadata. Beyond: likewise.
pub const SCRIPT_METADATA_BYTES_MAX: usize = 4 * 1024;
/// Tables within one another in that metadata. Beyond: likewise.
pub const SCRIPT_METADATA_DEPTH_MAX: usize = 4;
