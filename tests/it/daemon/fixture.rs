//! A daemon of the test's own: its state directory, its program, and the proof that nothing of it is left.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool_daemon::Client;

use crate::support::TempDir;

pub(super) const PROCPOOL: &str = env!("CARGO_BIN_EXE_procpool-dup");

/// What a program has left when it ended.
#[derive(Debug)]
pub(super) struct Finished {
    /// The exit code, or 128 and the number of the signal.
    pub(super) code: i32,
    pub(super) out: String,
    pub(super) err: String,
}

/// Where a daemon lives. Several can, one after the other.
pub(crate) struct Home {
    dir: TempDir,
}

/// A daemon under way.
pub(super) struct Daemon<'a> {
    home: &'a Home,
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Home {
    /// With this configuration.
    pub(crate) fn new(config: &str) -> Home {
        let dir = TempDir::new();
        fs::write(dir.path().join("config.toml"), config).unwrap();
        Home { dir }
    }

    /// With a queue `tasks` whose worker program is this one, which has the tests' tasks.
    pub(super) fn with_tasks(slots: usize) -> Home {
        let worker = fs::canonicalize("/proc/self/exe").unwrap();
        Home::new(&format!("[queue.tasks]\nworker = {worker:?}\nslots = {slots}\n"))
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state().join("socket")
    }

    /// The daemon's program, ready to be started.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(PROCPOOL);
        command.args(["daemon", "--allow-root", "--config"]).arg(self.path().join("config.toml"));
        command.arg("--state").arg(self.state()).stdin(Stdio::null()).stdout(Stdio::null());
        command.env_remove("PROCPOOL_SOCKET");
        command
    }

    /// Starts a daemon, and waits until it listens.
    pub(super) fn start(&self) -> Daemon<'_> {
        let mut daemon = self.spawn(self.command());
        daemon.wait_to_say("listening at");
        daemon
    }

    pub(super) fn spawn(&self, mut command: Command) -> Daemon<'_> {
        command.stderr(Stdio::piped());
        #[expect(clippy::disallowed_methods, reason = "the program is no worker of a pool of ours")]
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Daemon { home: self, child, stderr, said: String::new() }
    }

    /// Runs a client command to its end.
    pub(super) fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Finished {
        let mut command = Command::new(PROCPOOL);
        command.args(args).env("PROCPOOL_SOCKET", self.socket()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Finished { code, out: text(output.stdout), err: text(output.stderr) }
    }

    /// The same for one that succeeds; answers what it printed.
    pub(super) fn out<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let finished = self.run(args);
        assert_eq!(finished.code, 0, "{finished:?}");
        finished.out
    }

    /// Submits what these words say; answers the number.
    pub(super) fn submit<S: AsRef<OsStr>>(&self, args: &[S]) -> u64 {
        let mut words: Vec<&OsStr> = vec![OsStr::new("submit")];
        words.extend(args.iter().map(AsRef::as_ref));
        self.out(&words).trim().parse().unwrap()
    }

    /// What `status --json` says of a job.
    pub(super) fn status(&self, id: u64) -> serde_json::Value {
        serde_json::from_str(&self.out(&["status", "--json", &id.to_string()])).unwrap()
    }

    /// The states that a job went through.
    pub(super) fn history(&self, id: u64) -> Vec<String> {
        let status = self.status(id);
        let steps = status["history"].as_array().unwrap().iter();
        steps.map(|step| step["state"].as_str().unwrap().to_owned()).collect()
    }

    /// The processes that work for the daemon of this home, or did.
    pub(crate) fn workers(&self) -> Vec<u32> {
        let Ok(state) = fs::metadata(self.state()) else {
            return Vec::new();
        };
        let mark = format!("PROCPOOL_DAEMON={}:{}", state.dev(), state.ino());
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|one| one == mark.as_bytes())
        })
        .collect()
    }
}

impl Daemon<'_> {
    pub(super) fn client(&self) -> Client {
        Client::connect(&self.home.socket()).unwrap()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Whether it has ended. Its end stays to be waited for.
    pub(super) fn has_ended(&self) -> bool {
        !crate::support::is_alive(self.child.id())
    }

    /// Waits until it listens. False if it ends instead.
    pub(super) fn listens(&mut self) -> bool {
        loop {
            let start = self.said.len();
            if self.stderr.read_line(&mut self.said).unwrap() == 0 {
                return false;
            }
            if self.said[start..].contains("listening at") {
                return true;
            }
        }
    }

    /// Reads standard error up to the line that contains `part`.
    pub(super) fn wait_to_say(&mut self, part: &str) {
        loop {
            let start = self.said.len();
            let len = self.stderr.read_line(&mut self.said).unwrap();
            assert!(len > 0, "{part:?} is not in {:?}", self.said);
            if self.said[start..].contains(part) {
                return;
            }
        }
    }

    /// Waits for its end.
    pub(super) fn finish(mut self) -> Finished {
        self.stderr.read_to_string(&mut self.said).unwrap();
        let status = self.child.wait().unwrap();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        Finished { code, out: String::new(), err: self.said }
    }

    /// Has it end when nothing runs any more, and sees that nothing is left.
    pub(super) fn stop(self) {
        let home = self.home;
        self.signal(Signal::SIGTERM);
        let finished = self.finish();
        assert_eq!(finished.code, 0, "{finished:?}");
        assert_eq!(home.workers(), [0_u32; 0]);
        assert!(!home.socket().exists());
    }

    /// Kills it.
    pub(super) fn kill(self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.finish().code, 137);
    }
}
