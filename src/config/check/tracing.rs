//! `tracing`: where the spans of requests go.

use super::{headers, required_url};
use crate::base::secret::Secret;
use crate::config::plan::{OtlpCompression, OtlpTraces};
use crate::config::section::Section;
use crate::config::value;
use std::time::Duration;

/// Where OTLP over HTTP takes traces, unless the URL has a path of its own.
const TRACES_PATH: &str = "/v1/traces";
/// What OpenTelemetry's own exporters have.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the section.
pub fn tracing(root: &mut Section) -> Option<OtlpTraces> {
    root.section("tracing")?.when_present("otlp", otlp)
}

fn otlp(s: &mut Section) -> OtlpTraces {
    s.unsupported(&[("protocol", "spans go by HTTP, as JSON"), ("insecure", "the URL says http")]);
    let packed = [("none", OtlpCompression::None), ("gzip", OtlpCompression::Gzip)];
    OtlpTraces {
        endpoint: endpoint(&required_url(s, "endpoint")),
        headers: headers(s),
        sample_ratio: s.parsed("sample_ratio", ratio).unwrap_or(1.0),
        timeout: s.duration("timeout", TIMEOUT),
        service_name: s
            .parsed("service_name", value::nonempty)
            .unwrap_or_else(|| "llmproxy".into()),
        compression: s.choice("compression", &packed, OtlpCompression::None),
    }
}

/// A URL that names a collector alone gets the path at which all of them take traces.
fn endpoint(url: &Secret) -> Secret {
    let text = url.reveal();
    let (place, query) = match text.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (text, None),
    };
    let behind_scheme = place.split_once("://").map_or("", |(_, rest)| rest);
    if behind_scheme.is_empty() || behind_scheme.trim_end_matches('/').contains('/') {
        return url.clone();
    }
    let mut whole = format!("{}{TRACES_PATH}", place.trim_end_matches('/'));
    if let Some(query) = query {
        whole.push('?');
        whole.push_str(query);
    }
    Secret::new(whole)
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| format!("{} must be a share, from 0 to 1", value::quoted(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: spans that go to a page of the collector that does not take them.
    #[test]
    fn a_collector_is_named_with_or_without_the_path() {
        for (given, whole) in [
            ("http://otel:4318", "http://otel:4318/v1/traces"),
            ("https://otel/", "https://otel/v1/traces"),
            ("https://otel?key=s", "https://otel/v1/traces?key=s"),
            ("http://otel:4318/v1/traces", "http://otel:4318/v1/traces"),
            ("https://o/api/public/otel/v1/traces?a=/", "https://o/api/public/otel/v1/traces?a=/"),
            ("", ""),
        ] {
            assert_eq!(endpoint(&Secret::new(given)).reveal(), whole, "{given}");
        }
    }
}
