//! Certificates that are fetched from an authority.

use super::{labelled, Facts, Page};
use std::fmt;

impl Facts {
    pub(super) fn acme_orders(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(numbers) = &self.acme else { return Ok(()) };
        let ends = numbers.ends().map(|(result, n)| (result.to_owned(), n));
        let help = "Orders of certificates by ACME, by how they ended.";
        page.counter("llmproxy_acme_orders", help, labelled("result", ends))?;
        let help = "When a certificate is ordered next: its renewal, or the next try.";
        let next = labelled("name", numbers.next_s().into_iter());
        page.gauge("llmproxy_acme_next_order_timestamp_seconds", help, next)?;
        let help = "Orders that failed in a row; 0 once a certificate came.";
        page.gauge(
            "llmproxy_acme_failed_in_row",
            help,
            labelled("name", numbers.failed().into_iter()),
        )
    }
}
