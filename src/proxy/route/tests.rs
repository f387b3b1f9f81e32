//! All strategies together.

mod simulation;
