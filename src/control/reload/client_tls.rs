//! The files of `server.tls` while the process runs: when one of them is another, all are read
//! anew, and what they make is in use at once. Nothing else of the configuration is looked at.

use super::super::supervisor::Event;
use super::super::{tls, watch};
use super::Reloader;
use crate::base::utc::Stamp;
use crate::config::plan::Plan;
use crate::state::certificates::{ClientTls, ServedCertificate};
use std::path::PathBuf;

/// The watch on the files of `server.tls`.
pub struct TlsWatch {
    files: Vec<PathBuf>,
    _watch: watch::ConfigWatch,
}

impl Reloader {
    /// Watches the files of the configuration in use, unless that is being done.
    pub(super) fn watch_client_tls(&mut self) {
        let plan = &self.board.view().plan;
        let files = plan.server.tls.as_ref().map(tls::files_of).unwrap_or_default();
        if self.tls_watch.as_ref().map_or(&[][..], |watch| &watch.files) == files {
            return;
        }
        self.tls_watch = None;
        if files.is_empty() {
            return;
        }
        let events = self.events.clone();
        // Waits for its place: nobody else says that these files have changed.
        let changed = move || {
            let _ = events.send(Event::TlsFiles);
        };
        match watch::start_all(files.clone(), changed) {
            Ok(watch) => self.tls_watch = Some(TlsWatch { files, _watch: watch }),
            Err(error) => {
                tracing::warn!(%error, "server.tls: changes of its files are seen by reloads alone");
            }
        }
        // They may have changed between the time when they were read and now.
        Event::TlsFiles.tell(&self.events);
    }

    /// Reads the files of `server.tls` anew. Where they cannot be used, or are what they were,
    /// nothing changes.
    pub fn renew_client_tls(&mut self) {
        super::super::survive("certificates", || self.put_client_tls());
    }

    fn put_client_tls(&mut self) {
        let before = self.board.view();
        let Some(old) = &before.client_tls else { return };
        let new = match tls::client_tls(&before.plan, &before.given_certificates) {
            Ok(Some(new)) if new.sha256 != old.sha256 => new,
            Ok(_) => return,
            Err(error) => {
                return tracing::warn!(%error, "certificates are not renewed: those in use stay");
            }
        };
        let plan = Plan { backends: self.configured.clone(), ..Plan::clone(&before.plan) };
        let mut builder = self.builder(&before, false);
        builder.client_tls = Some(new.clone());
        match builder.view(plan, self.discovery.found()) {
            Ok(view) => {
                self.board.swap(view);
                tell_what_is_new(old, &new);
            }
            Err(error) => tracing::warn!(%error, "certificates are not renewed"),
        }
    }
}

fn tell_what_is_new(old: &ClientTls, new: &ClientTls) {
    let shown = |certificate: &ServedCertificate| certificate.key.cert.first().cloned();
    let known: Vec<_> = old.files.all().iter().map(|it| shown(it)).collect();
    let fresh = new.files.all().iter().filter(|it| !known.contains(&shown(it)));
    let mut count = 0;
    for certificate in fresh {
        count += 1;
        let (file, names) = (&certificate.label, certificate.facts.names.join(", "));
        let until = Stamp::of(u64::try_from(certificate.facts.not_after).unwrap_or(0) * 1000);
        let until = until.as_ref().map_or("later than 9999", Stamp::day);
        tracing::info!(%file, %names, until, "another certificate is shown from now on");
    }
    if count == 0 {
        tracing::info!("the files of server.tls are read anew: the certificates are the same");
    }
}
