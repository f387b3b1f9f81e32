//! In place of `table` in a build without the feature `sql`: a configuration that names a table is
//! refused.

use super::{file, Reporter, Shape};
use crate::config::plan;
use std::io;
use std::time::Duration;

fn none(plan: &plan::Reporter) -> String {
    format!("reporter {}: this program was built without SQL (feature `sql`)", plan.name)
}

pub fn open(plan: &plan::Reporter) -> io::Result<Box<dyn Reporter>> {
    Err(io::Error::other(none(plan)))
}

/// Of nothing that is ever opened.
pub fn shape() -> Shape {
    file::shape()
}

pub fn readable(plan: &plan::Reporter) -> Result<(), String> {
    Err(none(plan))
}

pub fn probe(plan: &plan::Reporter, _: Duration) -> Result<(), String> {
    Err(none(plan))
}
