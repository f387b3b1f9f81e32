//! Lua that decides about keys: scripts of the configuration, in a sandbox, under a budget.
//!
//! *Takes:* the text of scripts, and what is known of a key and its request. *Gives:* allowed,
//! denied, or what is wrong with the script. *Runs on:* workers, and threads that check a
//! configuration. *May:* read the processor time of its thread, which is what a run is measured by.
//! *Never:* a socket, a file, a wait; a script that outlives its budget, or leaves anything for the
//! next run.
//!
//! Why Lua's own library is not handed out as it is: functions in C run to their end, however long
//! that takes, and no hook stops them. [`pattern`] and `strings` stand in for those that a script
//! can make run for ever, `sandbox.lua` bounds the others, and there are no metatables, through
//! which the rest could be reached.

mod ask;
pub use ask::{Decided, ScriptError, ScriptInput, ScriptText};

#[cfg(feature = "lua")]
mod budget;
#[cfg(feature = "lua")]
mod codes;
#[cfg(feature = "lua")]
mod convert;
#[cfg(feature = "lua")]
mod outcome;
pub mod pattern;
#[cfg(feature = "lua")]
mod sandbox;
#[cfg(feature = "lua")]
mod strings;
#[cfg(feature = "lua")]
mod vm;
#[cfg(feature = "lua")]
pub use vm::Vm;
#[cfg(not(feature = "lua"))]
mod no_lua;
#[cfg(not(feature = "lua"))]
pub use no_lua::NoVm as Vm;

#[cfg(test)]
#[cfg(feature = "lua")]
mod tests;
