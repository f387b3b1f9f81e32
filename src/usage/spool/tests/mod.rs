//! The spool against a disk that fails and forgets.

mod absent;
mod crash;
mod damage;
mod gone;
mod failing;
mod folders;
pub(crate) mod fault;
mod model;
mod replay;
mod rig;
