//! The providers of keys that are asked over a network, and the admin API.

use super::{labelled, Facts, Labels, Page, SECOND};
use crate::config::plan::{Provider, ProviderKind, QuotaStorage};
use crate::state::lookup::{KeyService, LookupNumbers};
use crate::state::meters::Times;
use std::fmt;
use std::sync::atomic::Ordering;

/// Upper bounds of the buckets, in seconds.
const BOUNDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

impl Facts {
    pub(super) fn admin_requests(&self, page: &mut Page<'_>) -> fmt::Result {
        if self.view.plan.admin.is_none() {
            return Ok(());
        }
        let results = self.admin.all().map(|(result, count)| (result.to_owned(), count));
        let help =
            "Those who asked the admin API. Put out: silent, or served, while others needed \
                    the place. Turned away: all places were held by others who may ask.";
        page.counter("llmproxy_admin_requests", help, labelled("result", results))
    }

    pub(super) fn key_lookups(&self, page: &mut Page<'_>) -> fmt::Result {
        let pipeline = self.view.plan.auth.iter().flat_map(|auth| &auth.pipeline);
        let services = pipeline.zip(&self.view.services);
        let asked: Vec<(&str, &KeyService)> = services
            .filter_map(|(provider, service)| Some((provider.name.as_str(), service.as_ref()?)))
            .collect();
        if asked.is_empty() {
            return Ok(());
        }
        let label = |provider: &str| vec![("provider", provider.to_owned())];
        let results = asked.iter().flat_map(|(provider, service)| {
            let turned_away = service.ask.turned_away().load(Ordering::Relaxed);
            let counts = LookupNumbers::RESULTS.into_iter().zip(service.numbers.results());
            counts.chain([("turned_away", turned_away)]).map(|(result, count)| {
                let mut labels: Labels = label(provider);
                labels.push(("result", result.to_owned()));
                (labels, count)
            })
        });
        let help = "Questions about keys to a provider that is asked over a network. Turned away: \
                    too many waited.";
        page.counter("llmproxy_key_lookups", help, results.collect())?;
        self.uses_lost(page, &asked)?;
        self.quotas(page, &asked)?;
        let times: Vec<(&str, Times)> =
            asked.iter().map(|(provider, service)| (*provider, service.numbers.times())).collect();
        let times = times.iter().map(|(provider, times)| (label(provider), times));
        let help = "How long such a provider took for its answer.";
        let name = "llmproxy_key_lookup_seconds";
        page.histogram(name, help, (BOUNDS, SECOND), times.collect())
    }

    /// Where they are counted together with other gateways.
    fn quotas(&self, page: &mut Page<'_>, asked: &[(&str, &KeyService)]) -> fmt::Result {
        let Some(auth) = &self.view.plan.auth else { return Ok(()) };
        let is_shared = |provider: &&Provider| {
            let is_redis = matches!(provider.kind, ProviderKind::Redis { .. });
            is_redis && auth.quota_storage == QuotaStorage::Redis
        };
        let mut told: Vec<(Labels, u64)> = Vec::new();
        for provider in auth.pipeline.iter().filter(is_shared) {
            let found = asked.iter().find(|(name, _)| *name == provider.name);
            for (result, count) in found.into_iter().flat_map(|(_, s)| s.numbers.quotas()) {
                let name = ("provider", provider.name.clone());
                told.push((vec![name, ("result", result.to_owned())], count));
            }
        }
        if told.is_empty() {
            return Ok(());
        }
        let help = "Calls that count quotas together with other gateways. Left out: look-ups of \
                    keys beyond those that can be.";
        page.counter("llmproxy_quota_calls", help, told)
    }

    /// Only the store inside the gateway keeps when its keys were used.
    fn uses_lost(&self, page: &mut Page<'_>, asked: &[(&str, &KeyService)]) -> fmt::Result {
        let pipeline = self.view.plan.auth.iter().flat_map(|auth| &auth.pipeline);
        let stores = pipeline.filter(|provider| provider.kind == ProviderKind::Builtin);
        let lost = stores.filter_map(|store| {
            let (name, service) = asked.iter().find(|(name, _)| *name == store.name)?;
            Some((vec![("provider", (*name).to_owned())], service.numbers.uses_lost()))
        });
        let lost: Vec<(Labels, u64)> = lost.collect();
        if lost.is_empty() {
            return Ok(());
        }
        let help = "Look-ups whose key will not show that it was used: too many keys are in use.";
        page.counter("llmproxy_key_uses_lost", help, lost)
    }
}
