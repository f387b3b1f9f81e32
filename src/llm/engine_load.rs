//! What engines say of their own load: a few gauges of the pages that they have for Prometheus.
//! Everything else on such a page is passed over unread, so that nothing but the lines that count
//! can spoil it; of those, each must be as the text format wants it, and be a count.

use std::str::from_utf8;

/// No engine has so many requests: who says so says nothing.
const REQUESTS_MAX: f64 = 1e6;

/// The load of an engine, by its own count.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EngineLoad {
    /// Requests that it works on.
    pub running: u32,
    /// Requests that wait in it.
    pub waiting: u32,
    /// The share of its KV cache that is in use, from 0 to 1, where it tells that.
    pub cache: Option<f64>,
}

/// What a gauge says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gauge {
    Running,
    Waiting,
    Cache,
}

/// The gauges of vLLM (with the name that the third one had before), SGLang, TGI and llama.cpp.
const GAUGES: [(&[u8], Gauge); 12] = [
    (b"vllm:num_requests_running", Gauge::Running),
    (b"vllm:num_requests_waiting", Gauge::Waiting),
    (b"vllm:kv_cache_usage_perc", Gauge::Cache),
    (b"vllm:gpu_cache_usage_perc", Gauge::Cache),
    (b"sglang:num_running_reqs", Gauge::Running),
    (b"sglang:num_queue_reqs", Gauge::Waiting),
    (b"sglang:token_usage", Gauge::Cache),
    (b"tgi_batch_current_size", Gauge::Running),
    (b"tgi_queue_size", Gauge::Waiting),
    (b"llamacpp:requests_processing", Gauge::Running),
    (b"llamacpp:requests_deferred", Gauge::Waiting),
    (b"llamacpp:kv_cache_usage_ratio", Gauge::Cache),
];

/// Reads a page. Engines of several ranks or models have a series for each: requests add up, and of
/// caches the fullest counts.
///
/// # Errors
/// It has no count of requests, or a line of a gauge that is none; a line for a person.
pub fn read(page: &[u8]) -> Result<EngineLoad, String> {
    let (mut load, mut has_count) = (EngineLoad::default(), false);
    for line in page.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        let name_len = line.iter().position(|byte| b"{ \t".contains(byte)).unwrap_or(line.len());
        let (name, rest) = line.split_at(name_len);
        let Some((_, gauge)) = GAUGES.iter().find(|(known, _)| *known == name) else { continue };
        let value = value(rest).filter(|value| (0.0..=REQUESTS_MAX).contains(value));
        let bad = || format!("a value of {} is none", String::from_utf8_lossy(name));
        let value = value.ok_or_else(bad)?;
        match gauge {
            Gauge::Running => load.running = load.running.saturating_add(value.round() as u32),
            Gauge::Waiting => load.waiting = load.waiting.saturating_add(value.round() as u32),
            Gauge::Cache => load.cache = Some(load.cache.unwrap_or(0.0).max(value.min(1.0))),
        }
        has_count |= *gauge != Gauge::Cache;
    }
    match has_count {
        true if f64::from(load.running) + f64::from(load.waiting) > REQUESTS_MAX => {
            Err("more requests than an engine has".into())
        }
        true => Ok(load),
        false => Err("there is no gauge of an engine's requests".into()),
    }
}

/// The value of a line behind its name: labels, the value, and perhaps when it was taken.
fn value(rest: &[u8]) -> Option<f64> {
    let rest = match rest.strip_prefix(b"{") {
        Some(labels) => behind_labels(labels)?,
        None => rest,
    };
    let mut words = from_utf8(rest).ok()?.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    let is_whole = words.next().is_none_or(|time| time.parse::<f64>().is_ok());
    (is_whole && words.next().is_none()).then_some(value)
}

/// What stands behind the brace that ends the labels. Braces in their values end nothing.
fn behind_labels(labels: &[u8]) -> Option<&[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in labels.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'}' if !is_quoted => return labels.get(at + 1..),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the engines write them.
    const VLLM: &str =
        "# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine=\"0\",model_name=\"a\"} 3.0
vllm:num_requests_running{engine=\"1\",model_name=\"a\"} 2.0
vllm:num_requests_waiting{engine=\"0\",model_name=\"a\"} 4.0
vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 4.0
vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"a\"} 0.25
vllm:kv_cache_usage_perc{engine=\"1\",model_name=\"a\"} 0.5
vllm:time_to_first_token_seconds_bucket{le=\"0.001\",model_name=\"a\"} nonsense
";

    fn load(running: u32, waiting: u32, cache: Option<f64>) -> EngineLoad {
        EngineLoad { running, waiting, cache }
    }

    #[test]
    fn each_engine_is_understood() {
        let tgi = "# TYPE tgi_queue_size gauge\r\ntgi_queue_size 7\r\ntgi_batch_current_size 5\r\n";
        let sglang = "sglang:num_running_reqs{model_name=\"a}b\\\"} 9\"} 2.0\n\
                      sglang:num_queue_reqs{model_name=\"m\"} 1 1700000000000\n\
                      sglang:token_usage{model_name=\"m\"} 0.1\n";
        let llama = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n";
        let old_vllm = "vllm:num_requests_running 1\nvllm:gpu_cache_usage_perc 0.75";
        for (page, wanted) in [
            (VLLM, load(5, 4, Some(0.5))),
            (tgi, load(5, 7, None)),
            (sglang, load(2, 1, Some(0.1))),
            (llama, load(1, 0, None)),
            (old_vllm, load(1, 0, Some(0.75))),
        ] {
            assert_eq!(read(page.as_bytes()), Ok(wanted), "{page}");
        }
    }

    /// Catches: a page of something else taken for an idle engine; a value that is no count taken
    /// for one.
    #[test]
    fn what_is_no_count_is_refused() {
        for page in ["", "{}", "<html>", "up 1\n", "vllm:kv_cache_usage_perc 0.5\n"] {
            assert!(read(page.as_bytes()).is_err(), "{page}");
        }
        for value in [
            " NaN",
            " -1",
            " +Inf",
            " 1e300",
            " 1000001",
            "",
            " ",
            " x",
            " 1 x",
            " 1 2 3",
            "{a=\"b\" 1",
            "{a=\"} 1",
            " \u{e9}",
        ] {
            let page = format!("vllm:num_requests_waiting 1\nvllm:num_requests_running{value}\n");
            assert!(read(page.as_bytes()).is_err(), "{value}");
        }
        assert!(read(b"tgi_queue_size 1\ntgi_batch_current_size \xff\n").is_err());
        assert_eq!(read(b" \ttgi_queue_size\t1e2  \r\n"), Ok(load(0, 100, None)));
    }

    proptest! {
        /// Catches: a panic, or a load beyond all measure, whatever a page holds.
        #[test]
        fn no_bytes_bring_it_down(
            pieces in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..12),
                    proptest::sample::select(GAUGES.map(|(name, _)| name.to_vec()).to_vec()),
                    proptest::sample::select(vec![
                        b"\n".to_vec(),
                        b"{".to_vec(),
                        b"}".to_vec(),
                        b"\"".to_vec(),
                        b" 7".to_vec(),
                    ]),
                ],
                0..40,
            ),
        ) {
            let page = pieces.concat();
            if let Ok(load) = read(&page) {
                prop_assert!(f64::from(load.running) <= REQUESTS_MAX);
                prop_assert!(load.cache.is_none_or(|cache| (0.0..=1.0).contains(&cache)));
            }
        }

        /// Catches: a label that ends the labels, and a figure that is read out of its value.
        #[test]
        fn labels_hold_anything(
            label in "\\PC{0,20}",
            running in 0u32..1000,
            before in "\\PC{0,30}",
        ) {
            let label = label.replace('\\', "\\\\").replace('"', "\\\"");
            let page = format!(
                "# {before}\nother{{a=\"{label}\"}} 5\n\
                 vllm:num_requests_running{{model_name=\"{label}\", b=\"\"}} {running}\n"
            );
            prop_assert_eq!(read(page.as_bytes()), Ok(load(running, 0, None)));
        }
    }
}
