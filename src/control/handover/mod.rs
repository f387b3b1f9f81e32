//! Sockets that listen, given from process to process: by a service manager to the one that it
//! starts, and by one that serves to its successor (a hot restart).
//!
//! *Takes:* descriptors, the plan's addresses, SIGUSR2. *Gives:* a listener to each worker, the
//! phase in which another process serves in our place. *Runs on:* the thread that starts the
//! process, and one for each upgrade. *May:* start the program on the disk anew, wait for it, block
//! on its socket. *Never:* closes a socket in whose queue a client may wait for nobody, stops
//! serving before a successor has said that it serves.
//!
//! A hot restart, step by step. `upgrades` starts the successor with one end of a pair of sockets
//! as its standard input, and sends it all listeners by that (`wire`). The successor
//! (`predecessor`) starts all but its workers and says that it is ready; is told to go on, and from
//! then on cannot be called back; starts its workers and says that it serves. Only then the old one
//! takes no more clients in. Both have the same sockets, so whoever waits in a queue is served by
//! the one or the other. Whatever goes wrong before ends the successor, and the old one has never
//! stopped.

pub mod listeners;
pub mod activation;
pub mod wire;
pub mod predecessor;
pub mod program;
pub mod note;
pub mod upgrades;
