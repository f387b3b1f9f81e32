//! What needs more than one file of this room: the simulations.

mod prefixes;
mod simulation;
