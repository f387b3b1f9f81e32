//! In place of the client in a build without the feature `acme`, which starts with no plan that
//! asks for it.

use super::AcmeNumbers;
use crate::config::plan::Acme;
use crate::state::board::View;
use crate::state::stop::Stop;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Nothing runs.
pub struct NoAcme(());

impl NoAcme {
    /// Of nothing.
    pub fn numbers(&self) -> Arc<AcmeNumbers> {
        Arc::default()
    }
}

/// Starts nothing.
///
/// # Errors
/// None.
pub fn start(
    _view: &View,
    _stop: &Arc<Stop>,
    _plain: Option<OwnedFd>,
) -> Result<Option<NoAcme>, String> {
    Ok(None)
}

/// Looks at nothing.
///
/// # Errors
/// None.
pub fn look(_acme: &Acme) -> Result<(), String> {
    Ok(())
}
