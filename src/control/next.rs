//! The next view, built beside the one in use: from a plan, with the backends that discovery found
//! behind those of the file. A backend of the file that cannot be used is a reason to keep what is
//! in use; one that was found is left out, with a warning.

use super::resolve::Resolver;
use super::{circle, counters, keys, scripts, shared_limits, tls};
use crate::config::found;
use crate::config::plan::{Backend, Plan};
use crate::script::ScriptText;
use crate::state::board::View;
use crate::state::certificates::ClientTls;
use crate::state::counters::shared::Counters;
use crate::state::lookup::KeyService;
use crate::state::member::MemberTls;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Names of new backends get so long to resolve before requests go there.
const RESOLVE_WAIT: Duration = Duration::from_secs(1);

/// What it takes to build a view.
pub struct Builder<'a> {
    /// The view in use.
    pub before: &'a View,
    /// Finds the addresses of new backends.
    pub resolver: &'a Resolver,
    /// Where we listen.
    pub ours: &'a [SocketAddr],
    /// Read the certificates of all backends anew, and not those of new ones alone.
    pub all_anew: bool,
    /// How clients are served over TLS from now on; `None`: as before, or as the files say where
    /// all is read anew.
    pub client_tls: Option<ClientTls>,
}

/// What a view has beside its backends: TLS towards clients, who answers for providers, scripts.
struct Own {
    client_tls: Option<ClientTls>,
    services: Vec<Option<KeyService>>,
    scripts: Arc<[ScriptText]>,
    counters: Option<Arc<Counters>>,
}

impl Builder<'_> {
    /// The view of `plan`, which has the backends of the file alone, with those that were found.
    ///
    /// # Errors
    /// A backend of the file cannot be used; a line for a person.
    pub fn view(&self, mut plan: Plan, found: Vec<Backend>) -> Result<Arc<View>, String> {
        let configured = std::mem::take(&mut plan.backends);
        let (all, beyond) = found::merge(&configured, found);
        if beyond > 0 {
            tracing::warn!(beyond, "discovery: so many backends are left out: there are too many, or too many models of theirs");
        }
        let mut all = all.into_iter();
        let mut backends_tls = Vec::new();
        let mut roots = None;
        for backend in all.by_ref().take(configured.len()) {
            let settings = self.tls_of(&backend, &mut roots);
            backends_tls
                .push(settings.map_err(|error| format!("backend {}: {error}", backend.name))?);
            plan.backends.push(backend);
        }
        for backend in all {
            match self.tls_of(&backend, &mut roots) {
                Ok(settings) => {
                    backends_tls.push(settings);
                    plan.backends.push(backend);
                }
                Err(error) => leave_out(&backend, &error),
            }
        }
        let counters = counters::of(&plan, self.before.counters.as_ref());
        let services = keys::services(&plan, Some(self.before), counters.as_ref())?;
        let scripts = match self.all_anew {
            true => scripts::read(&plan)?,
            false => Arc::clone(&self.before.scripts),
        };
        let client_tls = match (&self.client_tls, self.all_anew) {
            (Some(new), _) => Some(new.clone()),
            (None, true) => tls::client_tls(&plan, &self.before.given_certificates)?,
            (None, false) => self.before.client_tls.clone(),
        };
        let own = Own { client_tls, services, scripts, counters };
        let view = self.resolved(plan, backends_tls, own)?;
        let view = self.without_circles(view, configured.len())?;
        circle::check(&view, self.ours)?;
        Ok(view)
    }

    fn resolved(
        &self,
        plan: Plan,
        tls: Vec<Option<MemberTls>>,
        own: Own,
    ) -> Result<Arc<View>, String> {
        let mut view = View::new(Arc::new(plan), tls, Some(self.before));
        (view.client_tls, view.services) = (own.client_tls, own.services);
        (view.scripts, view.counters) = (own.scripts, own.counters);
        shared_limits::equip(&mut view, Some(self.before))?;
        let view = Arc::new(view);
        self.resolver.prepare(&view, RESOLVE_WAIT);
        Ok(view)
    }

    /// Leaves out those that were found and are this proxy itself.
    fn without_circles(&self, view: Arc<View>, configured: usize) -> Result<Arc<View>, String> {
        let circles = circle::those_that_lead_back(&view, self.ours);
        let found = view.members().iter().skip(configured);
        let ours: Vec<_> = found.filter(|member| circles.contains(&member.id())).collect();
        if ours.is_empty() {
            return Ok(view);
        }
        ours.iter().for_each(|member| leave_out(&member.plan, "it is this proxy itself"));
        let names: HashSet<&str> = ours.iter().map(|member| &*member.name).collect();
        let rest = view.members().iter().filter(|member| !names.contains(&*member.name));
        let (backends, tls) = rest.map(|m| (m.plan.clone(), m.tls.clone())).unzip();
        let plan = Plan { backends, ..Plan::clone(&view.plan) };
        let own = Own {
            client_tls: view.client_tls.clone(),
            services: view.services.clone(),
            scripts: Arc::clone(&view.scripts),
            counters: view.counters.clone(),
        };
        self.resolved(plan, tls, own)
    }

    fn tls_of(
        &self,
        backend: &Backend,
        roots: &mut Option<Arc<rustls::RootCertStore>>,
    ) -> Result<Option<MemberTls>, String> {
        let Some(settings) = &backend.tls else { return Ok(None) };
        let known = self.before.members().iter().find(|member| member.is_for(backend));
        match known.and_then(|member| member.tls.clone()).filter(|_| !self.all_anew) {
            Some(known) => Ok(Some(known)),
            None => tls::settings_of(backend, settings, roots).map(Some),
        }
    }
}

fn leave_out(backend: &Backend, why: &str) {
    let (name, url) = (&backend.name, &backend.url);
    tracing::warn!(backend = %name, %url, %why, "discovery: the backend is left out");
}
