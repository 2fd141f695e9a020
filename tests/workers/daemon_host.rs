//! A program that runs a daemon and has a log that panics as soon as a worker is ready, on a thread that the daemon
//! has not started itself. For `it/daemon/restart.rs`.

use std::env;

use procpool_daemon::config::Config;
use procpool_daemon::server::{Root, Server, Settings};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// A log that cannot write.
struct Broken;

impl Subscriber for Broken {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn event(&self, event: &Event<'_>) {
        assert_ne!(event.metadata().name(), "worker_ready", "a log that cannot write");
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn main() {
    procpool::init();
    let state = env::args_os().nth(1).expect("a state directory").into();
    let config = Config::default();
    let settings = Settings { config, config_path: None, state, socket: None, root: Root::Allowed };
    let server = Server::open(settings).expect("the test gives a directory of its own");
    tracing::subscriber::set_global_default(Broken).expect("nobody has set another");
    eprintln!("listening at {}", server.socket().display());
    server.serve().expect("a panic ends it, and nothing else");
}
