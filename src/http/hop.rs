//! Hop-by-hop fields.
