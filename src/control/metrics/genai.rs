//! The same times by the names and buckets of OpenTelemetry's conventions for generative AI, in
//! seconds, so that a dashboard of several vendors finds them. They are counted once: these are
//! other views of what stands beside them.

use super::{model_label, Facts, Labels, Page, SECOND};
use crate::llm::operation::operation;
use crate::state::meters::{Times, TokenSeries};
use crate::state::token_sizes::TokenUse;
use std::collections::BTreeMap;
use std::fmt;

/// The conventions' buckets.
const DURATIONS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const BETWEEN: [f64; 13] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

const OPERATION: &str = "gen_ai_operation_name";
const MODEL: &str = "gen_ai_request_model";
const TOKEN_TYPE: &str = "gen_ai_token_type";
const SERVER: &str = "server_address";

impl Facts {
    pub(super) fn genai(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut durations: BTreeMap<(&str, String), Times> = BTreeMap::new();
        for (series, requests) in &self.meters.requests {
            if let Some(operation) = operation(series.path) {
                let place = (operation, self.backend(series.backend));
                durations.entry(place).or_default().absorb(&requests.latency);
            }
        }
        let series = durations.iter().filter(|(_, times)| times.count() > 0);
        let series = series.map(|((operation, server), times)| {
            (vec![(OPERATION, (*operation).to_owned()), (SERVER, server.clone())], times)
        });
        let help = "From a request head to the last byte of its answer.";
        let name = "gen_ai_server_request_duration_seconds";
        page.histogram(name, help, (&DURATIONS, SECOND), series.collect())?;

        let models = self.view.labelled_models();
        let sorted: BTreeMap<_, _> = self.meters.ttft.iter().collect();
        let series = sorted.into_iter().map(|(series, times)| {
            let model = model_label(models, series.model);
            (vec![(MODEL, model), (SERVER, self.backend(series.backend))], times)
        });
        let help = "From a request head to the first token of a stream.";
        let name = "gen_ai_server_time_to_first_token_seconds";
        page.histogram(name, help, (&FIRST, SECOND), series.collect())?;

        let sorted: BTreeMap<_, _> = self.meters.inter_token.iter().collect();
        let series: Vec<(Labels, &Times)> = sorted
            .into_iter()
            .map(|(backend, times)| (vec![(SERVER, self.backend(*backend))], times))
            .collect();
        let help = "Between two reads of a streamed answer: a token, where an engine sends each.";
        let name = "gen_ai_server_time_per_output_token_seconds";
        page.histogram(name, help, (&BETWEEN, SECOND), series)?;
        self.token_use(page)
    }

    fn token_use(&self, page: &mut Page<'_>) -> fmt::Result {
        let models = self.view.labelled_models();
        let mut all: BTreeMap<(&str, String, String), TokenUse> = BTreeMap::new();
        for (series, sizes) in &self.meters.token_use {
            let TokenSeries { model, backend } = series.tokens;
            let operation = operation(series.path).unwrap_or("other");
            let place = (operation, model_label(models, model), self.backend(backend));
            all.entry(place).or_default().absorb(sizes);
        }
        let series = all.iter().flat_map(|((operation, model, server), sizes)| {
            [("input", &sizes.input), ("output", &sizes.output)].map(|(kind, sizes)| {
                let labels = [
                    (OPERATION, (*operation).to_owned()),
                    (TOKEN_TYPE, kind.to_owned()),
                    (MODEL, model.clone()),
                    (SERVER, server.clone()),
                ];
                (labels.to_vec(), sizes)
            })
        });
        let help = "Tokens of each request, as its engine counted them.";
        page.size_histogram("gen_ai_client_token_usage", help, series.collect())
    }
}
