//! *Takes:* a file (or `--backend` URLs). *Gives:* a [`plan::Plan`] that cannot be wrong, and a
//! report of what was ignored or assumed. *Runs on:* the main thread, before any worker starts.
//! *May:* read files and environment. *Never:* is asked again by a room that got its plan.

pub mod plan;
