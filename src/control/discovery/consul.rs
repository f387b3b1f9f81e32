//! Sources that are services in Consul: each instance that passes its checks is a backend.

use super::finder::Inquiry;
use crate::base::limits::DISCOVERY_ANSWER_BYTES_MAX;
use crate::base::secret::Secret;
use crate::config::found::FoundRows;
use crate::config::plan::ConsulSource;
use crate::store::http::{HttpService, Request};
use serde_json::{json, Value};
use std::net::Ipv6Addr;
use std::time::Duration;

/// Asks an agent.
pub struct ConsulInquiry {
    agent: HttpService,
    token: Secret,
    timeout: Duration,
}

impl ConsulInquiry {
    /// Connects to nothing yet.
    pub fn new(source: &ConsulSource) -> ConsulInquiry {
        ConsulInquiry {
            agent: HttpService::new(&Secret::new(url(source))),
            token: source.token.clone(),
            timeout: source.timeout,
        }
    }
}

impl Inquiry for ConsulInquiry {
    fn look(&mut self) -> Result<FoundRows, String> {
        let mut request = Request::builder().method("GET");
        if !self.token.reveal().is_empty() {
            request = request.header("X-Consul-Token", self.token.reveal());
        }
        let place = |why| format!("{}: {why}", self.agent.place());
        let answer = self.agent.ask(request, self.timeout, DISCOVERY_ANSWER_BYTES_MAX);
        let answer = answer.map_err(|trouble| place(trouble.into_words()))?;
        let rows = rows(&answer).and_then(FoundRows::of_values);
        rows.map_err(|why| place(format!("its answer {why}")))
    }
}

/// Of the instances that pass: `/v1/health/service/NAME`.
fn url(source: &ConsulSource) -> String {
    let ConsulSource { scheme, addr, service, tag, .. } = source;
    let mut url =
        format!("{scheme}://{addr}/v1/health/service/{}?passing=true", percent_encoded(service));
    if !tag.is_empty() {
        url.push_str(&format!("&tag={}", percent_encoded(tag)));
    }
    url
}

fn percent_encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    let encoded = |b: u8| if plain(b) { char::from(b).into() } else { format!("%{b:02X}") };
    text.bytes().map(encoded).collect()
}

/// The instances of an answer, in the shape of `backends`. What one lacks its check will say.
fn rows(answer: &[u8]) -> Result<Vec<Value>, String> {
    let value = serde_json::from_slice(answer).map_err(|error| format!("is no JSON: {error}"))?;
    let Value::Array(instances) = value else { return Err("is no list of instances".into()) };
    Ok(instances.iter().map(row).collect())
}

fn row(instance: &Value) -> Value {
    let text = |path| instance.pointer(path).and_then(Value::as_str).filter(|t| !t.is_empty());
    let mut row = json!({});
    if let Some(name) = text("/Service/ID") {
        row["name"] = name.into();
    }
    // An instance without an address of its own is where its node is.
    let host = text("/Service/Address").or(text("/Node/Address"));
    let port = instance.pointer("/Service/Port").and_then(Value::as_u64);
    if let (Some(host), Some(port)) = (host, port) {
        row["url"] = match host.parse::<Ipv6Addr>() {
            Ok(ip) => format!("http://[{ip}]:{port}").into(),
            Err(_) => format!("http://{host}:{port}").into(),
        };
    }
    let weight = instance.pointer("/Service/Meta/weight");
    if let Some(weight) = weight.or_else(|| instance.pointer("/Service/Weights/Passing")) {
        row["weight"] = weight.clone();
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;
    use crate::config::plan::CommonParts;
    use crate::config::plan::SourceKind;
    use proptest::prelude::*;

    fn found(answer: &str) -> crate::config::found::FoundBackends {
        let routing = load_text("t", "", &|_| None).unwrap().plan.routing;
        let rows = FoundRows::of_values(rows(answer.as_bytes()).unwrap()).unwrap();
        rows.check((&routing, &CommonParts::default()), &|_| None)
    }

    #[test]
    fn instances_are_backends() {
        let found = found(
            r#"[{"Node":{"Node":"n1","Address":"10.0.0.1"},"Checks":[],
                 "Service":{"ID":"vllm-1","Service":"vllm","Address":"","Port":8000,
                            "Meta":{"weight":"3"},"Weights":{"Passing":7,"Warning":1}}},
                {"Node":{"Address":"10.0.0.2"},
                 "Service":{"ID":"vllm-2","Address":"2001:db8::1","Port":8001,"Meta":null,
                            "Weights":{"Passing":5}}},
                {"Node":{"Address":"10.0.0.3"}, "Service":{"ID":"no-port"}}, 7]"#,
        );
        let parts = |b: &crate::config::plan::Backend| (b.name.clone(), b.url.clone(), b.weight);
        assert_eq!(
            found.backends.iter().map(parts).collect::<Vec<_>>(),
            [
                ("vllm-1".into(), "http://10.0.0.1:8000".into(), 3),
                ("vllm-2".into(), "http://[2001:db8::1]:8001".into(), 5),
            ]
        );
        assert_eq!(found.faults.len(), 2, "{:?}", found.faults);
        assert!(found.faults[0].contains("`no-port`"), "{:?}", found.faults);
    }

    #[test]
    fn a_name_is_one_part_of_the_path() {
        let text = "discovery: {enabled: true, sources: [{type: consul, \
                    consul: {service: 'a/b?c', tag: 'x&y'}}]}";
        let plan = load_text("t", text, &|_| None).unwrap().plan;
        let SourceKind::Consul { consul } = plan.discovery.unwrap().sources.remove(0).kind else {
            panic!()
        };
        let wanted = "http://localhost:8500/v1/health/service/a%2Fb%3Fc?passing=true&tag=x%26y";
        assert_eq!(url(&consul), wanted);
    }

    proptest! {
        #[test]
        fn any_bytes_give_rows_or_a_line(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = rows(&bytes);
        }
    }
}
