//! The spool against a disk that fails and forgets.

mod absent;
mod crash;
mod damage;
mod gone;
mod failing;
mod leftover;
mod folders;
pub(crate) mod fault;
mod model;
mod rehome;
mod replay;
mod rig;
