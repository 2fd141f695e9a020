//! What a service manager is told: that the daemon serves, that its loop is alive, that it ends. See sd_notify(3).

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::{Duration, Instant};

/// What is asked for on top of the time that a drain may take: to record its end.
const ENDING: Duration = Duration::from_secs(30);

/// Says nothing if nobody wants to hear it.
#[derive(Debug)]
pub(super) struct Notify {
    manager: Option<UnixDatagram>,
    /// How often the loop says that it is alive: twice in the time after which it is taken for dead.
    interval: Option<Duration>,
    next_beat: Instant,
}

impl Notify {
    /// As the environment says.
    pub(super) fn from_env() -> Notify {
        let manager = env::var_os("NOTIFY_SOCKET").and_then(|address| connect(&address));
        let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        let is_for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(process::id()));
        let usec = number("WATCHDOG_USEC").filter(|usec| *usec > 0 && is_for_us);
        let interval =
            usec.filter(|_| manager.is_some()).map(|usec| Duration::from_micros(usec / 2));
        Notify { manager, interval, next_beat: Instant::now() }
    }

    /// The daemon serves.
    pub(super) fn ready(&self) {
        self.say("READY=1\n");
    }

    /// The daemon takes nothing more, and ends within that time.
    pub(super) fn stopping(&self, within: Duration) {
        let usec = (within + ENDING).as_micros();
        self.say(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={usec}\n"));
    }

    /// When the next beat is due.
    pub(super) fn next_beat(&self) -> Option<Instant> {
        self.interval.map(|_| self.next_beat)
    }

    /// The loop is alive: only the loop itself calls this.
    pub(super) fn beat(&mut self) {
        let now = Instant::now();
        if let Some(interval) = self.interval
            && self.next_beat <= now
        {
            self.next_beat = now + interval;
            self.say("WATCHDOG=1\n");
        }
    }

    fn say(&self, text: &str) {
        if let Some(manager) = &self.manager {
            // A manager that does not listen acts as it was told to.
            let _ = manager.send(text.as_bytes());
        }
    }
}

fn connect(address: &OsStr) -> Option<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok()?,
        _ => SocketAddr::from_pathname(address).ok()?,
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect_addr(&address).ok()?;
    // The loop waits for nobody.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}
