//! The real binary, started as its users start it, against the mock engines and real sockets.
//! Everything passes on both drivers: `MONOIO_FORCE_LEGACY_DRIVER=1` in the environment reaches
//! every process that is started here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test stops loudly"
)]

mod harness;
mod rig;

mod pass_through;
mod forwarding;
mod connections;
mod keep_alive;
mod early_head;
mod kept_connections;
mod refusals;
mod classify;
mod turns;
mod asking;
mod late_usage;
mod backends;
mod explain;
mod models;
mod model_list;
mod abort;
mod half_close;
mod balancing;
mod queue;
mod affinity;
mod sessions;
mod ejection;
mod engines;
mod engine_faults;
mod bad_answers;
mod slow_reader;
mod large_bodies;
mod leases;
mod health;
mod usage;
mod metering;
mod native;
mod packed;
mod reporters;
mod retry;
mod spool;
mod sql;
mod sql_access;
mod auth;
mod auth_remote;
mod bypass;
mod identity;
mod auth_redis;
mod auth_database;
mod auth_webhook;
mod auth_services;
mod stream_usage;
mod metrics;
mod logs;
mod traces;
mod loops;
mod script;
mod address;
mod cors;
mod stop;
mod notify;
mod upgrade;
mod reload;
mod reload_command;
mod admin_api;
mod admin_main;
mod admin_socket;
mod health_command;
mod top_command;
mod keys_command;
mod stored_keys;
mod discovery;
mod discovery_dns;
mod watch_config;
mod standstill;
mod workers;
mod scale;
mod scenarios;
mod cli;
mod clients;
mod limits;
mod rate_limits;
mod shared_limits;
mod charges;
mod quota;
mod quota_cut;
mod quota_redis;
mod budget;
mod listening;
mod certificates;
mod listeners;
mod tls_listener;
mod acme;
mod tls_strength;
mod machine;
