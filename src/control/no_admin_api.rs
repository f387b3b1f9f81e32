//! In place of the admin API in a build without the feature `sql`.

use super::admin_door::{AdminQuestion, Gateway};
use crate::config::plan::Plan;
use crossbeam_channel::Sender;

/// Says that there is no store.
///
/// # Errors
/// The plan asks for it.
pub fn start(plan: &Plan, _: Gateway) -> Result<Option<Sender<AdminQuestion>>, String> {
    match plan.admin {
        None => Ok(None),
        Some(_) => Err("admin: this program was built without SQL".to_owned()),
    }
}
