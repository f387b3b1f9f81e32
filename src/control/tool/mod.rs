//! Commands that look at what a gateway has written.
//!
//! *Takes:* what was asked on the command line. *Gives:* what is printed. *Runs on:* the main
//! thread of a process that is no gateway. *May:* read files. *Never:* disturbs a gateway that
//! runs beside it.

pub mod usage;
