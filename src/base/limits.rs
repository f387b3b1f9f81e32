//! The maxima that a configuration does not set or go beyond, with their units in their names: of a
//! peer's bytes, of queues, of a plan. What happens when one is reached stands beside it; what is
//! refused then has a code, and what is dropped a counter. Waits and lengths that are the matter of
//! one file alone stand as named constants at the top of that file.

use std::time::Duration;

mod flight;
mod scripts;
mod tls;
pub use flight::*;
pub use scripts::*;
pub use tls::*;

/// Bytes of a request or response head, request line and blank line included. Beyond: 431, or 502
/// for a backend.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Fields of one head. Beyond: 431, or 502 for a backend.
pub const HEAD_FIELDS_MAX: usize = 100;
/// Bytes of a request target. Beyond: 414.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;
/// Bytes of one field line of a request, CRLF included; Apache httpd and gunicorn have the same,
/// and nginx and llama.cpp's server refuse not much more. Beyond: 431.
pub const FIELD_LINE_BYTES_MAX: usize = 8190;
/// Bytes of a method. The longest registered one has 17. Beyond: 501.
pub const METHOD_BYTES_MAX: usize = 32;
/// Bytes of the host of a request, port included; a DNS name has at most 253. Beyond: 400.
pub const HOST_BYTES_MAX: usize = 261;
/// Options of all Connection fields of one head. Beyond: 400, or 502 for a backend.
pub const CONNECTION_OPTIONS_MAX: usize = 32;
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
/// Digits in a row in a JSON request body; Python reads 4300 of an integer. Beyond: 400.
pub const JSON_DIGITS_MAX: usize = 4300;
/// Bytes of a value of a JSON request body that something is decided by. Beyond: 400.
pub const WATCHED_VALUE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a JSON request body that are read in one go. Beyond: in slices, between which all other
/// connections of the worker have their turn.
pub const SCAN_BYTES: usize = 256 * 1024;
/// Request bodies that a worker reads in slices at a time. Beyond: they wait for their turn, which
/// is counted, and get a 503 when that takes as long as `server.body_timeout`.
pub const SCANNING_MAX: usize = 16;
/// A slice is so long at least; and so long is a body that never waits for larger ones.
pub const SCAN_SLICE_BYTES_MIN: usize = SCAN_BYTES / SCANNING_MAX;
/// Bytes of bodies that a worker reads in one go between two ticks of its clock. Beyond: in slices.
pub const SCAN_BYTES_PER_TICK_MAX: usize = 8 * 1024 * 1024;
/// Bytes that are read of what a packed answer unpacks to. Beyond: nothing is known of it, and its
/// record says why. Nobody sends more packed bytes than plain ones, so this bounds the copy of the
/// former too.
pub const INFLATED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of what a decoder of zstd holds at a time: what RFC 8878 asks everybody to take, and asks
/// senders not to exceed. (Brotli's largest is 16 MiB, gzip's 32 KiB.) Beyond: usage counts as
/// missing.
pub const INFLATE_WINDOW_BYTES_MAX: usize = 8 * 1024 * 1024;
/// For so long it is known what an engine does when it is asked for usage. Beyond: it is found out
/// again.
pub const USAGE_WISH_KNOWN: Duration = Duration::from_secs(10 * 60);
/// Models of one backend of which that is known. Beyond: what was learnt first is forgotten before
/// its time, and counted.
pub const USAGE_WISH_MODELS_MAX: usize = 64;
/// An event that ends a choice is held back for so long, for what follows it. Beyond: it goes.
pub const FINISH_HELD_MAX: Duration = Duration::from_millis(20);
/// When a client left behind the end of its text and before the usage of the stream, the engine is
/// read on for so long. Beyond: the usage is missing.
pub const LATE_USAGE_WAIT: Duration = Duration::from_secs(1);
/// Bytes of an unpacked request body for each byte that came, beyond
/// [`UNPACKED_RATIO_BYTES_MIN`]. Text is packed to a tenth, seldom to a fiftieth. Beyond: 413.
pub const UNPACKED_RATIO_MAX: u64 = 200;
/// So many unpacked bytes may come of however few.
pub const UNPACKED_RATIO_BYTES_MIN: u64 = 1024 * 1024;
/// Request bodies that a worker unpacks at a time, a window of memory each. Beyond: they wait for
/// their turn, which is counted, and get a 503 when that takes as long as `server.body_timeout`.
pub const UNPACKING_MAX: usize = 4;
/// Bytes of one event that are held back until it is known whether the client gets it. Beyond: it
/// gets it, unlooked at, and that is counted.
pub const EVENT_HELD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of all copies of packed answers together. Beyond: the record says that there was no room,
/// and that is counted.
pub const PACKED_TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Packed answers that wait to be unpacked. Beyond: as if there were no room for the copy.
pub const UNPACK_QUEUE_MAX: usize = 256;
/// The last bytes of a packed answer wait so long until it is unpacked, as they wait for the
/// journal. Beyond: they go, and the record of the answer follows them.
pub const UNPACKED_WAIT: Duration = Duration::from_millis(50);
/// That record waits so long for what is in the answer. Beyond: it says that it came too late.
pub const UNPACKED_LATE_MAX: Duration = Duration::from_secs(30);
/// Bytes of the boundary of a form whose model matters, as RFC 2046 has it. Beyond: 400.
pub const FORM_BOUNDARY_BYTES_MAX: usize = 70;
/// Bytes of the head of one part of such a form. Beyond: 400.
pub const FORM_HEAD_BYTES_MAX: usize = 8 * 1024;
/// Bytes of the model name that is kept for records and logs. Beyond: 400.
pub const MODEL_NAME_BYTES_MAX: usize = 256;

/// Bytes of a pooled buffer: one read from a client or an engine.
pub const BUFFER_BYTES: usize = 16 * 1024;
/// Pooled buffers that a worker keeps when they are not in use.
pub const BUFFERS_IDLE_MAX: usize = 256;
/// Of which so many stay when it has nothing to do.
pub const BUFFERS_IDLE_MIN: usize = 8;
/// Bytes of a pooled buffer for what outgrows a small one: the largest head fits, and most chats.
pub const MEDIUM_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes of a pooled buffer for large bodies: an answer whose reads fill small ones is read with
/// it, and a request body that outgrows a medium one moves into it.
pub const LARGE_BUFFER_BYTES: usize = 256 * 1024;
/// Large buffers with which a worker reads answers at a time; a slow client holds one. Beyond: the
/// answer is read with small ones.
pub const LARGE_BUFFERS_READING_MAX: usize = 8;
/// Bytes of the large buffers that a worker keeps when they are not in use.
pub const LARGE_IDLE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes that a pipe takes at a time, where an answer passes without being read.
pub const PIPE_BYTES: usize = 256 * 1024;
/// Pipes of a worker, two descriptors each; a slow client holds one. Beyond: the answer is read
/// with buffers.
pub const PIPES_MAX: usize = 4;
/// Connections accepted in one turn, so that a flood of connects cannot starve the streams.
pub const ACCEPTS_PER_TURN_MAX: usize = 64;
/// Sections of a read (runs of whole chunks, and pieces of chunks) forwarded by one vectored send.
pub const SECTIONS_PER_SEND_MAX: usize = 4;
/// Bytes that the kernel holds for a client and cannot send yet. Beyond: its engine is not read.
pub const CLIENT_UNSENT_BYTES_MAX: u32 = 64 * 1024;
/// Bytes of an answer that the kernel holds for us and that we do not read yet. Beyond: the engine
/// waits. (The kernel doubles the figure, for its own book-keeping, and cuts it at
/// `net.core.rmem_max`.)
pub const ENGINE_UNREAD_BYTES_MAX: usize = 512 * 1024;
/// Bytes that a client may send behind a request while that is answered, beside those that came
/// with it. Less than the kernel takes for a socket that nobody reads. Beyond: the client counts as
/// gone, and that is counted.
pub const PIPELINED_UNREAD_BYTES_MAX: u64 = 32 * 1024;
/// Bytes of an unread request body that are drained to save a connection. Beyond: close.
pub const DRAIN_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a request body that must arrive in each second of the last
/// [`BODY_RATE_WINDOW_S`], taken together. Below: 408.
pub const BODY_RATE_BYTES_PER_S_MIN: u64 = 1024;
/// Seconds back in which the bytes of a body that still arrives are counted.
pub const BODY_RATE_WINDOW_S: u64 = 10;
/// The same while bytes or connections are scarce, for the last [`SCARCE_RATE_WINDOW_S`].
pub const SCARCE_RATE_BYTES_PER_S_MIN: u64 = 16 * 1024;
/// Seconds back that count while bytes or connections are scarce.
pub const SCARCE_RATE_WINDOW_S: u64 = 3;
/// Seconds in which a body must bring once more what it holds, while bytes or connections are
/// scarce: the more it holds, the faster it must come. Below: 408.
pub const SCARCE_HELD_S_MAX: u64 = 30;
/// One of so many bytes of `server.max_buffered_bytes` is kept for buffers of
/// [`MEDIUM_BUFFER_BYTES`] or less. Beyond: larger ones do not grow, which is a 503.
pub const BUFFERED_SMALL_SHARE: u64 = 8;
/// A kept connection that closes within so long of a request being sent, without a byte of an
/// answer, was closed under us: the request is sent once more on a fresh one.
pub const REUSE_RACE_MAX: Duration = Duration::from_millis(100);
/// Backends tried for one request while none of them took the connection, unless
/// `routing.retry.max_retries` says otherwise. Beyond: 502 or 504.
pub const CONNECT_TRIES_MAX: usize = 3;
/// Backends that a request remembers to have tried: as many as it may try. Beyond: it waits and
/// asks them anew.
pub const TRIED_MAX: usize = RETRIES_MAX as usize + 1;
/// Connections to a backend in a row that fail. Then it is ejected.
pub const FAILED_CONNECTS_MAX: u32 = 3;
/// Answers of a backend in a row that are 5xx, break off, or never come. Then it is ejected.
pub const FAILED_ANSWERS_MAX: u32 = 5;
/// How long a backend is ejected: so long, twice so long the next time, and so on.
pub const EJECTION_STEP: Duration = Duration::from_secs(5);
/// Longest time for which a backend is ejected (and up to a tenth more, at random).
pub const EJECTION_MAX: Duration = Duration::from_secs(60);
/// A backend that was well for so long since its last ejection begins anew with the shortest.
pub const EJECTION_FORGOTTEN: Duration = Duration::from_secs(60);
/// A backend of which a running stream was seen to grow so lately is not ejected for being slow.
/// Streams are looked at every five seconds.
pub const STREAM_ALIVE: Duration = Duration::from_secs(10);
/// Bytes of an error's body that are read to see whether the engine is still loading its model, or
/// refuses what we asked for on our own account. Beyond: it goes to the client as it is.
pub const PEEKED_ANSWER_BYTES_MAX: usize = 8 * 1024;
/// The same in time: what has not come by then is not waited for.
pub const PEEKED_ANSWER_WAIT: Duration = Duration::from_secs(1);

/// An answer that is read for nobody, to spare its engine, is given up after so long.
pub const ANSWER_DRAIN_MAX: Duration = Duration::from_secs(600);
/// Bytes of a path in a record or a log line. Beyond: cut.
pub const RECORD_PATH_BYTES_MAX: usize = 256;

/// Bytes of a journal ring, of which each worker has one: at least, unless said otherwise, at most.
/// What finds no room in it is dropped and counted, or refused.
pub const RING_BYTES_MIN: u64 = 64 * 1024;
/// See [`RING_BYTES_MIN`].
pub const RING_BYTES_DEFAULT: u64 = 4 * 1024 * 1024;
/// See [`RING_BYTES_MIN`].
pub const RING_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A ring's share that one entry may have, so that one large entry neither fills it nor is put off
/// for long.
pub const RING_ENTRY_SHARE: u64 = 4;
/// Bytes by which the end of a request may be longer in a ring than its beginning: what became of
/// it, its usage and times. Room for that is kept for each request in flight.
pub const RING_END_BYTES: u64 = 512;
/// Bytes at the end of a lap into which an end may not fit.
pub const RING_LAP_BYTES: u64 = 2048;
/// While there is traffic the journal takes what is in the rings so often, and each time that a
/// worker has filled a part of its ring ([`RING_CALL_SHARE`]).
pub const JOURNAL_TICK: Duration = Duration::from_millis(20);
/// The same where each write is synced: what a power cut loses is what came since the last one.
pub const JOURNAL_TICK_SYNCED: Duration = Duration::from_millis(5);
/// A worker calls the journal each time that it has filled such a share of its ring.
pub const RING_CALL_SHARE: u64 = 4;
/// Milliseconds before the first repeated try of a reporter; doubled for each further one.
pub const REPORTER_WAIT_MS_MIN: u64 = 1_000;
/// Milliseconds between two tries of a reporter at most.
pub const REPORTER_WAIT_MS_MAX: u64 = 300_000;
/// Records that a lane reads ahead, however small its batches are.
pub const LANE_RECORDS_MIN: usize = 1024;
/// Records that a lane reads ahead at most. Beyond: they stay where they are kept.
pub const LANE_RECORDS_MAX: usize = 16 * 1024;
/// Records that came back to a lane, or wait for such a one of their key, and take no room from the
/// others. Beyond: they do, and a record that holds them up is given up sooner.
pub const LANE_HELD_UP_RECORDS_MAX: usize = 8 * 1024;
/// Tries of one record that got no answer while what was sent next was delivered: with the waits
/// between them about an hour. Beyond: a dead letter.
pub const LANE_LOSSES_PROVEN_MAX: u32 = 24;
/// And so many when a lane holds up as much as it may, about a quarter of an hour.
pub const LANE_LOSSES_PROVEN_SOME: u32 = 12;
/// Tries of one record, alone, that got no answer while there was nothing of another key to try,
/// about a quarter of an hour. Beyond: one record of its key at a time may overtake it.
pub const LANE_OVERTAKEN_LOSSES: u32 = 12;
/// Answers of a receiver in a row that take nothing, each to another record, sent one at a time.
/// Beyond: it is held to be down, as one that has lost its token; waits follow.
pub const LANE_OPINIONS_MAX: u32 = 100;
/// Waits in a row that grow, of a receiver that answers: up to 32 s. Beyond: they stay as long.
pub const LANE_REFUSED_WAITS_MAX: u32 = 6;
/// Distance, in records, between the oldest that a lane has not finished and the last that it has
/// read: so many may be delivered twice after a crash. Beyond: nothing is read.
pub const LANE_SPAN_MAX: u64 = 1024 * 1024;
/// Bytes of request bodies in the records that a lane has read, and as many again in those that are
/// held up. Beyond: nothing is read.
pub const LANE_BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Records that a lane reads in one go, so that large bodies overshoot its limit by little.
pub const LANE_READ_RECORDS: usize = 32;
/// Bytes of a lane's memory for texts that it keeps when nothing comes, and of records
/// [`LANE_RECORDS_MIN`]. Beyond: freed.
pub const LANE_BYTES_KEPT: usize = 64 * 1024;
/// Bytes of lines for a file that are kept for the next batch while there are many: those of
/// [`FILE_BATCH_RECORDS_MAX`] usual records.
pub const FILE_BUFFER_BYTES_KEPT: usize = 4 * 1024 * 1024;
/// Records that are written and synced to a reporter's file together at most.
pub const FILE_BATCH_RECORDS_MAX: usize = 4096;
/// So long the records of a reporter gather that pays for each batch: with a sync (files) or a
/// transaction (SQL). The first after a pause goes at once.
pub const GATHER_COSTLY: Duration = Duration::from_millis(100);
/// The same, of one that pays for each call: Redis, a webhook that takes many in one request.
pub const GATHER_CALLS: Duration = Duration::from_millis(50);
/// The same, of a webhook that takes one record in a request: to wake its lane is all it saves.
pub const GATHER_SINGLES: Duration = Duration::from_millis(10);
/// Bytes of request bodies in one batch. Beyond: the batch ends, with one record at least.
pub const BATCH_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of a batch's buffer that are kept for the next batch; each connection of a reporter has
/// one.
pub const BATCH_BUFFER_BYTES_KEPT: usize = 1024 * 1024;
/// Records of one webhook request at most. Beyond: refused.
pub const WEBHOOK_BATCH_RECORDS_MAX: u32 = 10_000;
/// Requests of one webhook at one time. Beyond: refused.
pub const WEBHOOK_CONCURRENCY_MAX: u32 = 64;
/// Bytes of a webhook's answer that are read to save its connection. Beyond: close.
pub const WEBHOOK_ANSWER_BYTES_MAX: u64 = 16 * 1024;
/// Records of one transaction of a SQL database at most.
pub const SQL_BATCH_RECORDS_MAX: usize = 500;
/// Bytes of values in one SQL statement. Beyond: the batch is split; one row alone may have more.
pub const SQL_STATEMENT_BYTES_MAX: usize = 1024 * 1024;
/// Nesting of a request body that is stored as JSON: MariaDB takes 32. Beyond: as a JSON string.
pub const SQL_JSON_DEPTH_MAX: usize = 30;
/// Rows that one statement deletes when their time is over, so that nobody waits long for it.
pub const RETENTION_ROWS_MAX: usize = 1000;
/// Bytes of a segment of the spool, after which a new one begins; a quarter of the spool's own
/// limit where that is less. The last batch may go beyond.
pub const SPOOL_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes of one entry's payload. Beyond: the record goes without its request body; what is still
/// too long is dropped and counted.
pub const SPOOL_PAYLOAD_BYTES_MAX: usize = RECORD_BODY_BYTES_MAX + 64 * 1024;
/// Bytes that wait in memory while the disk takes none, and without a disk. Beyond: records are
/// dropped and counted.
pub const SPOOL_MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A disk that has not come back from a write after so long is one that fails.
pub const SPOOL_STALL_MAX: Duration = Duration::from_secs(2);
/// Bytes of a batch after which the journal hands it to the kernel.
pub const SPOOL_BATCH_BYTES: usize = 1024 * 1024;
/// Requests in flight whose beginning is written again into each new segment. Beyond: it stays in
/// the old one only, counted.
pub const SPOOL_OPENS_MAX: usize = CONNECTIONS_MAX;
/// Time for which the spool keeps what a reporter was not given that is not configured any more.
/// Beyond, or when the spool needs the room: it is forgotten, with a warning.
pub const SPOOL_ABSENT_REPORTER_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Folders of other processes that are delivered at one time. Beyond: they wait for their turn.
pub const SPOOL_FOLDERS_ADOPTED_MAX: usize = 16;
/// Requests that began on the disk and ended in memory whose delivery is noted for a reporter,
/// while the disk takes nothing. Beyond: a kill tells them once more, as aborted.
pub const SPOOL_RECEIPTS_MAX: usize = 4096;
/// Markers that a folder's register keeps, newest first: one for each start whose segments are
/// still there. Beyond: a segment with an older one is found by its header alone.
pub const SPOOL_MARKERS_MAX: usize = 64;
/// Bytes of a register that are read. Beyond: it counts as damaged.
pub const SPOOL_REGISTER_BYTES_MAX: usize = 1024 * 1024;
/// Of requests that are over, the places in which what was said of them may be used again. Beyond:
/// freed.
pub const SPOOL_ROOMS_MAX: usize = 1024;
/// Bytes of one of them. Beyond: freed.
pub const SPOOL_ROOM_BYTES_MAX: usize = 1024;
/// Bytes of records that one read of a reporter takes, the last of them whole. Beyond: the next
/// read.
pub const SPOOL_READ_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of the file of records that a reporter's receiver refused. Beyond: dropped and counted.
pub const DEAD_LETTER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Access log lines waiting for their writer. Beyond: dropped and counted.
pub const ACCESS_LINES_MAX: usize = 16 * 1024;
/// Spans waiting for their exporter. Beyond: dropped and counted.
pub const SPANS_WAITING_MAX: usize = 4096;
/// Spans of one request of the exporter; OpenTelemetry's own have the same.
pub const SPANS_PER_REQUEST_MAX: usize = 512;
/// Bytes of a text in a span that a client or an engine chose. Beyond: cut.
pub const SPAN_TEXT_BYTES_MAX: usize = 256;
/// Bytes of a receiver's answer to spans that are read. Beyond: it counts as one that took all.
pub const SPANS_ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Scrapes that wait for a metrics page. Beyond: 503.
pub const METRICS_PAGES_WAITING_MAX: usize = 16;
/// Bytes of what a gateway says of its backends, as `llmproxy backends` reads it: far more than of
/// as many as discovery finds at most.
pub const ROSTER_BYTES_MAX: usize = 32 << 20;
/// Bytes of a gateway's metrics page, as `llmproxy top` reads it.
pub const METRICS_PAGE_BYTES_MAX: usize = 64 << 20;
/// Requests that wait for the list of models. Beyond: 503 `models_unavailable`.
pub const MODEL_LISTS_WAITING_MAX: usize = 256;
/// For so long one list of models is the answer to all who ask.
pub const MODEL_LIST_KEPT: Duration = Duration::from_secs(3);
/// Engines get so long, all together, to say what models they have. Beyond: a list without theirs.
pub const MODEL_LIST_TIME: Duration = Duration::from_secs(2);
/// Engines that are asked for their models at a time. Beyond: when another one has answered.
pub const MODEL_LIST_ENGINES_MAX: usize = 32;
/// Bytes of an engine's list of models. Beyond: it is left out, which is logged.
pub const MODEL_LIST_BYTES_MAX: usize = 1024 * 1024;
/// Models in an engine's list. Beyond: it is left out, which is logged.
pub const MODEL_LIST_MODELS_MAX: usize = 4096;
/// File descriptors that are not for clients and backends: rings, logs, the spool, scrapers, the
/// admin API. The
/// workers' pipes and listeners and the reporters come on top.
pub const FDS_RESERVED: usize = 96;
/// File descriptors of one reporter: checkpoint, segment, dead letters, its own files or
/// connections.
pub const FDS_PER_REPORTER: usize = 8;

/// Bytes of a configuration file. Beyond: refused.
pub const CONFIG_FILE_BYTES_MAX: usize = 1024 * 1024;
/// Values of a configuration file, each use of an anchor counted. Beyond: refused.
pub const CONFIG_NODES_MAX: u32 = 100_000;
/// Brackets of a configuration file that are open in each other. Beyond: refused, for the parser
/// takes a time that grows with the square of them. No key needs more than five.
pub const CONFIG_BRACKETS_OPEN_MAX: usize = 64;
/// Findings of one load that are kept. Beyond: counted.
pub const CONFIG_FINDINGS_MAX: usize = 100;
/// Sources of discovery, a thread each. Beyond: refused.
pub const DISCOVERY_SOURCES_MAX: usize = 16;
/// Bytes of what a source of discovery says. Beyond: it counts as a failure of the source.
pub const DISCOVERY_ANSWER_BYTES_MAX: usize = CONFIG_FILE_BYTES_MAX;
/// Backends that one source of discovery may name (beyond: a failure of the source), and those of
/// all sources together (beyond: left out, with a warning).
pub const DISCOVERY_BACKENDS_MAX: usize = 1024;
/// Addresses of IPv6 that discovery found by a name are used for so long after they were last told,
/// while their server fails to tell any. Beyond: only those of IPv4 are used.
pub const DISCOVERY_V6_KEPT: Duration = Duration::from_secs(300);
/// Models with a label of their own. Beyond: refused; of those that the plan names otherwise, the
/// rest count as `other`.
pub const METRICS_MODELS_MAX: usize = 1000;
/// Longest duration that a configuration may set, in seconds (one year). Beyond: refused.
pub const DURATION_SECONDS_MAX: u64 = 365 * 24 * 3600;
/// Worker threads. Beyond: refused.
pub const WORKERS_MAX: usize = 1024;
/// Worker threads unless the configuration says how many: an engine on the same machine needs its
/// CPUs, and eight workers serve more streams than the engines behind them.
pub const WORKERS_AUTO_MAX: usize = 8;
/// Client connections that a configuration may allow. Beyond: refused.
pub const CONNECTIONS_MAX: usize = 1_000_000;
/// Client connections beyond the limit while as many others, which give way to them, close. Beyond:
/// a newcomer is a guest.
pub const CONNECTIONS_OVER_MAX: usize = 32;
/// And so many more, which get `/health`, `/ready` and the metrics, and take the place of another
/// when they ask for an engine. Beyond: one of them gives way, or 503 without a look.
pub const GUESTS_MAX: usize = 16;
/// Longest `Retry-After` that a client is told when all backends are full, in seconds.
pub const FULL_RETRY_AFTER_S_MAX: u32 = 30;
/// Requests that wait for a backend at one time, of all workers: the most that
/// `routing.queue.max_waiting` may say.
pub const QUEUE_WAITING_MAX: u32 = 100_000;
/// Keys whose share of a queue is kept apart. Beyond: some keys share one, found by a hash.
pub const QUEUE_KEYS: usize = 4096;
/// When a newcomer is told how long it would wait, so many of those before it are counted.
pub const QUEUE_COUNTED_MAX: usize = 1000;
/// An engine's own figures of its load are read so often, from the beginning of one reading to that
/// of the next; one reading gets as long. Beyond: it has failed, and is counted.
pub const ENGINE_LOAD_INTERVAL: Duration = Duration::from_secs(1);
/// After readings that failed, the next one comes later and later, up to this.
pub const ENGINE_LOAD_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Figures that are so old are not known any more.
pub const ENGINE_LOAD_KNOWN: Duration = Duration::from_secs(5);
/// Bytes of a page with such figures; vLLM's has some 200 KiB. Beyond: the reading has failed.
pub const ENGINE_LOAD_BYTES_MAX: usize = 1024 * 1024;
/// Engines whose figures are read at a time. Beyond: they wait for their turn.
pub const ENGINE_LOADS_READ_MAX: usize = 32;
/// Requests of others, of which an engine's figures tell, count at a backend up to so many for each
/// of ours that is there. Beyond: they are not believed.
pub const OTHERS_SHARE_MAX: u32 = 3;
/// And so many beside these.
pub const OTHERS_FREE_MAX: u32 = 8;
/// A backend is asked so many times, after it came up, what engine it is. Beyond: it stays unknown.
pub const ENGINE_GUESSES_MAX: u32 = 3;
/// All questions of one such time get so long.
pub const ENGINE_GUESS_TIME: Duration = Duration::from_secs(2);
/// An engine that says that it is full (429 or 503 with `Retry-After`) is spared for as long as it
/// says, and no longer than this.
pub const SPARED_MAX: Duration = Duration::from_secs(60);
/// One that says so and names no time is spared for so long, and each time that it says so again
/// right afterwards for half as long again (each with up to a fifth more, at random).
pub const SPARED_UNASKED: Duration = Duration::from_secs(1);
/// And no longer than this.
pub const SPARED_UNASKED_MAX: Duration = Duration::from_secs(3);
/// Longest `slow_start`. Beyond: refused.
pub const SLOW_START_MAX: Duration = Duration::from_secs(3600);
/// Requests that one backend may be allowed to have at a time (`max_concurrent`). Beyond: refused.
pub const CONCURRENT_MAX: u32 = 1_000_000;
/// Weight of one backend. Beyond: refused.
pub const WEIGHT_MAX: u32 = 10_000;
/// Largest `server.max_body_size`: a body is held in memory. Beyond: refused.
pub const BODY_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Least and largest `server.max_buffered_bytes`. Beyond: refused.
pub const BUFFERED_BYTES_MIN: u64 = 1024 * 1024;
/// See [`BUFFERED_BYTES_MIN`].
pub const BUFFERED_BYTES_MAX: u64 = 1024 * 1024 * 1024 * 1024;
/// Bytes of a request body that travel in a usage record when it is simply switched on.
pub const RECORD_BODY_BYTES_DEFAULT: usize = 64 * 1024;
/// Most bytes of a request body that a configuration may put into a usage record.
pub const RECORD_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a prompt whose beginnings `prefix_affinity` tells apart. Beyond: prompts that agree so
/// far count as one, which is enough to know a conversation.
pub const PREFIX_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a prompt before the first of its milestones: 128 tokens or so, which are read anew as
/// quickly as anything is decided about them.
pub const PREFIX_BYTES_MIN: usize = 512;
/// Milestones at ends of messages that are kept of a prompt, the last ones: as many messages may
/// come between two requests of a conversation. Beyond: the milestones at fixed places tell it.
pub const PREFIX_TURNS_MAX: usize = 16;
/// Bytes of what changes a prompt for an engine (`cache_salt`, `chat_template`, ...), of each, that
/// are told apart. Beyond: what agrees so far counts as the same.
pub const PREFIX_SALT_BYTES_MAX: usize = 16 * 1024;
/// Bytes of the table in which all workers note which engine has read which beginning of a prompt.
/// Beyond: the oldest of a few are forgotten, counted.
pub const PREFIX_TABLE_BYTES: usize = 8 * 1024 * 1024;
/// Engines that are noted for one beginning of a prompt. Beyond: the oldest of them is forgotten.
pub const PREFIX_HOLDERS_MAX: usize = 4;
/// Engines that are looked at in one pick because they have read some of the prompt.
pub const PREFIX_HELD_MAX: usize = 8;
/// After so long without use a prefix counts as gone from its engine's cache.
pub const PREFIX_KEPT_MAX: Duration = Duration::from_secs(30 * 60);
/// Caches of a backend that are told apart, one for each model that it serves. Beyond: several
/// models share what is known of one.
pub const CACHES_MAX: usize = 8;
/// Bytes of the name of a session. Beyond: the request counts as one without a session.
pub const SESSION_BYTES_MAX: usize = 1024;
/// Bytes of the member of a body in which a session may be named, such as `metadata`: it is walked
/// in one go. Beyond: the request counts as one without a session.
pub const SESSION_SPAN_BYTES_MAX: usize = 64 * 1024;
/// Fields of a request head in which a session may be named. Beyond: refused.
pub const SESSION_HEADERS_MAX: usize = 8;
/// Names and patterns of models of all backends that discovery finds. Each may make a group of its
/// own, which workers look through at each change. Beyond: the backend is left out, and the log
/// says so.
pub const DISCOVERY_MODELS_MAX: usize = 500;
/// Bytes of a stream that are held back until its model says something. Beyond: it goes on.
pub const HELD_BYTES_MAX: usize = 8 * 1024;
/// Of a hundred requests so many may be sent once more although an engine may have worked on them.
/// Beyond: the client gets what came of the last try.
pub const RETRY_SHARE_PERCENT: u64 = 20;
/// The same that there are besides in each second, of all workers together.
pub const RETRY_RESERVE_PER_SECOND: u64 = 3;
/// What may be saved up of both, by each worker.
pub const RETRY_BUDGET_MAX: u64 = 100;
/// Tries after the first, of a request or of a usage record. Beyond: refused.
pub const RETRIES_MAX: u32 = 100;
/// Keys, users and models that limits and quotas are counted for, unless `counters.entries` says
/// otherwise: 128 bytes each. Beyond: those that are never used make room, and a key with a quota
/// that finds none is refused.
pub const COUNTERS_ENTRIES_DEFAULT: u32 = 128 * 1024;
/// The most that it may say.
pub const COUNTERS_ENTRIES_MAX: u32 = 16 * 1024 * 1024;
/// For so many of them there is room for one stranger: an address, or a key that nobody checks.
/// Beyond: the strangers that find none share one place.
pub const COUNTERS_STRANGERS_SHARE: usize = 4;
/// It is looked so often whether a process is gone that counted with this one: what it had in
/// flight is freed then.
pub const COUNTERS_LOOK_EVERY: Duration = Duration::from_secs(3);
/// Requests at one time that a limit may allow: the counts of four processes stand in one word.
pub const LIMIT_CONCURRENT_MAX: u32 = 0xffff;
/// Requests that wait for what several gateways count together. Beyond: they are served as if the
/// server of these limits were not there, counted.
pub const LOANS_WAITING_MAX: usize = 4096;
/// Of those that wait, so many are asked about in one call of the server.
pub const LOANS_ASKED_MAX: usize = 128;
/// Amounts that wait to be told to that server, in the queue of the workers and once more where
/// they are added up. Beyond: it is not told, counted.
pub const LOANS_RETURNED_MAX: usize = 16 * 1024;
/// Buckets that may borrow more than was asked for. Beyond: each request asks.
pub const LOANS_AHEAD_MAX: usize = 64 * 1024;
/// What is to be told waits no longer than this, however long a lease is.
pub const LOANS_TICK_MAX: Duration = Duration::from_secs(1);
/// Amounts, and counts of requests at one time, that one call tells it.
pub const LOANS_TOLD_MAX: usize = 512;
/// What is told of requests at one time holds for so long: if the gateway is gone, they are free.
pub const LOANED_SLOTS_LIFE: Duration = Duration::from_secs(10);
/// It is told again after so long.
pub const LOANED_SLOTS_TOLD_EVERY: Duration = Duration::from_secs(3);
/// A server that did not answer is tried again after so long.
pub const LOANS_PAUSE: Duration = Duration::from_millis(500);
/// For how long a gateway may keep what it has not used, at least and at most.
pub const REDIS_LEASE_MIN: Duration = Duration::from_millis(10);
/// See [`REDIS_LEASE_MIN`].
pub const REDIS_LEASE_MAX: Duration = Duration::from_secs(10);
/// Bytes of a client's `Referer` and `User-Agent` that a line of the access log keeps. The rest is
/// cut.
pub const SAID_BYTES_MAX: usize = 512;
/// Bytes of a user's id, and of a key's name, that another system gives. Beyond: a key with such an
/// id counts as disabled, and a name is cut.
pub const KEY_IDENTITY_BYTES_MAX: usize = 256;
/// Items of a list of addresses or models that another system gives of a key. Beyond: the key
/// counts as disabled.
pub const KEY_LIST_ITEMS_MAX: usize = 1000;
/// Keys that a worker may be told to remember of one provider. Beyond: a load error.
pub const KEY_CACHE_ENTRIES_MAX: u32 = 1_000_000;
/// Bytes of a key that is looked up elsewhere. Beyond: nobody has such a key.
pub const LOOKUP_KEY_BYTES_MAX: usize = 1024;
/// Bytes of what another system says of a key. Beyond: the look-up has failed.
pub const LOOKUP_ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Questions about keys that wait for one provider, and that wait for one answer of it. Beyond: the
/// look-up has failed, counted.
pub const LOOKUPS_WAITING_MAX: usize = 4096;
/// Rows of a table of keys that are read for one key: letters of another case, or blanks behind it,
/// may be the same to a database. Beyond: not looked at.
pub const LOOKUP_ROWS_MAX: usize = 8;
/// Bytes of the metadata of a key in a record, as JSON. Beyond: the record says null. With it, a
/// record is still put together in room that is used again.
pub const KEY_METADATA_RECORDED_BYTES_MAX: usize = 2 * 1024;
/// Objects and lists within one another in that metadata. Beyond: likewise.
pub const KEY_METADATA_DEPTH_MAX: usize = 32;
/// Keys of which a gateway knows that they are in use. Beyond: their `last_used_at` stays, counted.
pub const KEY_USES_MAX: usize = 100_000;
/// Threads that ask one provider. Beyond: a store's pool is not used.
pub const LOOKUP_THREADS_MAX: u32 = 16;
/// Log lines of one worker about failed requests of one code in a second. Beyond: they are counted,
/// and one line says how many.
pub const LOG_LINES_OF_A_CODE_MAX: u32 = 10;

const _: () = assert!(SPOOL_SEGMENT_BYTES < SPOOL_MEMORY_BYTES_MAX);
const _: () = assert!(SPOOL_PAYLOAD_BYTES_MAX < u32::MAX as usize, "a length has four bytes");
const _: () = assert!(REPORTER_WAIT_MS_MIN < REPORTER_WAIT_MS_MAX);
const _: () = assert!(TARGET_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(FIELD_LINE_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(FIELD_NAME_BYTES_MAX < FIELD_LINE_BYTES_MAX);
const _: () = assert!(BUFFER_BYTES <= HEAD_BYTES_MAX);
const _: () = assert!(HEAD_BYTES_MAX <= MEDIUM_BUFFER_BYTES, "no head needs a large buffer");
const _: () = assert!(CHUNK_EXTENSION_BYTES_MAX <= BODY_EXTENSION_BYTES_MAX);
const _: () = assert!(CHUNK_SIZE_DIGITS_MAX < 16, "a chunk size must fit in 60 bits");
/// Bytes of the body of a request to the admin API. Beyond: 413.
pub const ADMIN_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Requests to the admin API that wait to be answered. Beyond: 503.
pub const ADMIN_WAITING_MAX: usize = 32;
/// Wrong tokens that an address may show before it has to wait. Beyond: 429.
pub const ADMIN_FAILED_TRIES_MAX: u32 = 10;
/// Addresses of which it is known that they showed wrong ones. Beyond: who showed the fewest is
/// forgotten.
pub const ADMIN_THROTTLED_MAX: usize = 1024;
/// Addresses of one request that proxies before us tell and that are looked at, from the right.
/// Beyond: the leftmost of these counts.
pub const HOPS_MAX: usize = 32;
/// Bytes of a header of the PROXY protocol. Beyond: the connection closes.
pub const PROXY_HEADER_BYTES_MAX: usize = 4096;
/// Keys whose quotas a provider counts together with other gateways. Beyond: each gateway counts
/// theirs for itself, and the look-up is counted.
pub const QUOTA_KEYS_TOLD_MAX: usize = 100_000;
/// Quotas that one call of Redis tells and asks for.
pub const QUOTA_TOLD_KEYS_MAX: usize = 128;
/// What was used of a quota is told so often.
pub const QUOTA_TELL_EVERY: Duration = Duration::from_millis(250);
/// What others have used of a key that is in use is asked for so often.
pub const QUOTA_ASK_EVERY: Duration = Duration::from_secs(2);
/// A key that was not looked up, nor used, for so long is not in use: what others have used of its
/// quota is not asked for.
pub const QUOTA_KEYS_IDLE: Duration = Duration::from_secs(300);
/// After so long nothing is told of it any more either, until it is looked up.
pub const QUOTA_KEYS_KEPT: Duration = Duration::from_secs(2 * 3600);
